"""Makes DPoP keys and proofs (RFC 9449) with the `cryptography` library alone, independently of the gateway.

Reads one JSON object per line, answers with one per line:
  {"key": "ES256"}                                       -> {"jkt": "..."}
  {"proof": {...claims...}, "key": "ES256", "token": "..."} -> {"proof": "..."}
`header` in the latter changes header members; `null` takes a member out of header or claims.
"""

import base64
import hashlib
import json
import secrets
import sys
import time

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value, length=None):
    return b64(value.to_bytes(length or (value.bit_length() + 7) // 8, "big"))


class Elliptic:
    def __init__(self, curve, name, digest, size):
        self.key, self.digest, self.size = ec.generate_private_key(curve), digest, size
        point = self.key.public_key().public_numbers()
        self.jwk = {"kty": "EC", "crv": name, "x": number(point.x, size), "y": number(point.y, size)}

    def sign(self, data):
        r, s = decode_dss_signature(self.key.sign(data, ec.ECDSA(self.digest)))
        return r.to_bytes(self.size, "big") + s.to_bytes(self.size, "big")


class Edwards:
    def __init__(self):
        self.key = ed25519.Ed25519PrivateKey.generate()
        self.jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64(self.key.public_key().public_bytes_raw())}

    def sign(self, data):
        return self.key.sign(data)


class Rsa:
    def __init__(self, pad):
        self.key, self.pad = rsa.generate_private_key(65537, 2048), pad
        public = self.key.public_key().public_numbers()
        self.jwk = {"kty": "RSA", "n": number(public.n), "e": number(public.e)}

    def sign(self, data):
        return self.key.sign(data, self.pad, hashes.SHA256())


MAKE = {
    "ES256": lambda: Elliptic(ec.SECP256R1(), "P-256", hashes.SHA256(), 32),
    "ES384": lambda: Elliptic(ec.SECP384R1(), "P-384", hashes.SHA384(), 48),
    "EdDSA": Edwards,
    "RS256": lambda: Rsa(padding.PKCS1v15()),
    "PS256": lambda: Rsa(padding.PSS(padding.MGF1(hashes.SHA256()), 32)),
}


def changed(whole, changes):
    return {name: value for name, value in {**whole, **changes}.items() if value is not None}


def proof(key, algorithm, token, header, claims):
    header = changed({"typ": "dpop+jwt", "alg": algorithm, "jwk": key.jwk}, header)
    digest = b64(hashlib.sha256(token.encode()).digest())
    payload = changed({"jti": secrets.token_urlsafe(16), "htm": "POST", "iat": int(time.time()), "ath": digest}, claims)
    signed = ".".join(b64(json.dumps(part).encode()) for part in (header, payload))
    return f"{signed}.{b64(key.sign(signed.encode()))}"


def thumbprint(jwk):
    """RFC 7638: every member of these keys is a required one."""
    return b64(hashlib.sha256(json.dumps(jwk, sort_keys=True, separators=(",", ":")).encode()).digest())


keys = {}
for line in sys.stdin:
    asked = json.loads(line)
    name = asked["key"]
    if name not in keys:
        keys[name] = MAKE[name]()
    if "proof" in asked:
        made = proof(keys[name], name, asked["token"], asked.get("header", {}), asked["proof"])
        answer = {"proof": made}
    else:
        answer = {"jkt": thumbprint(keys[name].jwk)}
    print(json.dumps(answer), flush=True)
