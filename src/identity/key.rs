//! One key of an issuer: read from a JWK if it is fit to verify signatures, and the verifying itself.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use jsonwebtoken::AlgorithmFamily;
use jsonwebtoken::jwk::AlgorithmParameters;
use jsonwebtoken::jwk::EllipticCurve;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::jwk::KeyOperations;
use jsonwebtoken::jwk::PublicKeyUse;
use ring::hmac;
use ring::signature;
use ring::signature::RsaPublicKeyComponents;
use ring::signature::UnparsedPublicKey;
use serde::Deserialize;

const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=512;

/// RFC 7518 section 3.2: at least as long as the hash.
const SECRET_BYTES_MIN: usize = 32;

pub(super) struct Key {
    pub(super) kid: Option<String>,
    /// Whose keys it signs for, as Entra says it in a set that several tenants share. No standard member.
    issuer: Option<Box<str>>,
    /// The algorithms it can be used with by its type, curve and length, and by its own `alg`.
    algorithms: Vec<Algorithm>,
    material: Material,
    /// Digest of the key as read.
    print: [u8; 32],
}

enum Material {
    /// A point, uncompressed.
    Curve(Vec<u8>),
    Ed25519(Vec<u8>),
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    Secret(Vec<u8>),
}

impl Key {
    /// `None` for a key that is not for signatures, is of a type we do not know, or is too weak. `secrets` admits
    /// symmetric keys.
    pub(super) fn read(value: &serde_json::Value, secrets: bool) -> Option<Key> {
        let jwk = Jwk::deserialize(value).ok()?;
        let common = &jwk.common;
        if common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
            return None;
        }
        if common.key_operations.as_ref().is_some_and(|allowed| !allowed.contains(&KeyOperations::Verify)) {
            return None;
        }
        let (material, mut algorithms) = material(&jwk.algorithm, secrets)?;
        if let Some(own) = common.key_algorithm {
            let own = Algorithm::try_from(own).ok()?;
            algorithms.retain(|algorithm| *algorithm == own);
        }
        if algorithms.is_empty() {
            return None;
        }
        // Of another form, it can equal no issuer's name.
        let issuer = value.get("issuer").map(|issuer| issuer.as_str().unwrap_or_default().into());
        let print = super::sha256(&serde_json::to_vec(&(&jwk, &issuer)).ok()?);
        Some(Key { kid: common.key_id.clone(), issuer, algorithms, material, print })
    }

    /// The key type decides the algorithm, never the token: an RSA key can never become an HMAC secret.
    pub(super) fn fits(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    pub(super) fn is(&self, other: &Key) -> bool {
        self.print == other.print
    }

    /// May it sign for this tenant? A key that names nobody may, as the set is the issuer's own.
    pub(super) fn signs_for(&self, issuer: &str, tenant: &str) -> bool {
        self.issuer.as_ref().is_none_or(|named| named.replace(super::entra::TENANT_PLACE, tenant) == issuer)
    }

    /// Is this the key's signature? `encoded` is the last part of a compact JWS.
    pub(super) fn verifies(&self, algorithm: Algorithm, signed: &[u8], encoded: &str) -> bool {
        let Ok(signature) = URL_SAFE_NO_PAD.decode(encoded) else { return false };
        let point = |kind, point: &[u8]| UnparsedPublicKey::new(kind, point).verify(signed, &signature).is_ok();
        let rsa = |kind, key: &RsaPublicKeyComponents<Vec<u8>>| key.verify(kind, signed, &signature).is_ok();
        let secret = |kind, key: &[u8]| hmac::verify(&hmac::Key::new(kind, key), signed, &signature).is_ok();
        match (&self.material, algorithm) {
            (Material::Curve(key), Algorithm::ES256) => point(&signature::ECDSA_P256_SHA256_FIXED, key),
            (Material::Curve(key), Algorithm::ES384) => point(&signature::ECDSA_P384_SHA384_FIXED, key),
            (Material::Ed25519(key), Algorithm::EdDSA) => {
                UnparsedPublicKey::new(&signature::ED25519, key).verify(signed, &signature).is_ok()
            }
            (Material::Rsa(key), Algorithm::RS256) => rsa(&signature::RSA_PKCS1_2048_8192_SHA256, key),
            (Material::Rsa(key), Algorithm::RS384) => rsa(&signature::RSA_PKCS1_2048_8192_SHA384, key),
            (Material::Rsa(key), Algorithm::RS512) => rsa(&signature::RSA_PKCS1_2048_8192_SHA512, key),
            (Material::Rsa(key), Algorithm::PS256) => rsa(&signature::RSA_PSS_2048_8192_SHA256, key),
            (Material::Rsa(key), Algorithm::PS384) => rsa(&signature::RSA_PSS_2048_8192_SHA384, key),
            (Material::Rsa(key), Algorithm::PS512) => rsa(&signature::RSA_PSS_2048_8192_SHA512, key),
            (Material::Secret(key), Algorithm::HS256) => secret(hmac::HMAC_SHA256, key),
            (Material::Secret(key), Algorithm::HS384) => secret(hmac::HMAC_SHA384, key),
            (Material::Secret(key), Algorithm::HS512) => secret(hmac::HMAC_SHA512, key),
            _ => false,
        }
    }
}

fn material(parameters: &AlgorithmParameters, secrets: bool) -> Option<(Material, Vec<Algorithm>)> {
    let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    match parameters {
        AlgorithmParameters::RSA(key) => {
            // ring refuses leading zeros.
            let number = |text: &str| Some(bytes(text)?.into_iter().skip_while(|byte| *byte == 0).collect::<Vec<u8>>());
            let (n, e) = (number(&key.n)?, number(&key.e)?);
            let fits = RSA_BYTES.contains(&n.len()) && !e.is_empty();
            fits.then(|| (Material::Rsa(RsaPublicKeyComponents { n, e }), AlgorithmFamily::Rsa.algorithms().to_vec()))
        }
        AlgorithmParameters::EllipticCurve(key) => {
            let (algorithm, length) = match key.curve {
                EllipticCurve::P256 => (Algorithm::ES256, 32),
                EllipticCurve::P384 => (Algorithm::ES384, 48),
                _ => return None,
            };
            let (x, y) = (bytes(&key.x)?, bytes(&key.y)?);
            let whole = x.len() == length && y.len() == length;
            // SEC 1: 4 says that both halves follow.
            whole.then(|| (Material::Curve([&[4], x.as_slice(), &y].concat()), vec![algorithm]))
        }
        AlgorithmParameters::OctetKeyPair(key) => {
            let x = bytes(&key.x)?;
            let whole = key.curve == EllipticCurve::Ed25519 && x.len() == 32;
            whole.then(|| (Material::Ed25519(x), vec![Algorithm::EdDSA]))
        }
        AlgorithmParameters::OctetKey(key) if secrets => {
            let secret = bytes(&key.value)?;
            let long_enough = |algorithm: &Algorithm| match algorithm {
                Algorithm::HS384 => secret.len() >= 48,
                Algorithm::HS512 => secret.len() >= 64,
                _ => secret.len() >= SECRET_BYTES_MIN,
            };
            let algorithms = AlgorithmFamily::Hmac.algorithms().iter().copied().filter(long_enough).collect();
            Some((Material::Secret(secret), algorithms))
        }
        _ => None,
    }
}
