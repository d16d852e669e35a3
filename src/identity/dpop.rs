//! DPoP proofs (RFC 9449): the caller holds the key that the token is bound to, and signed this very request with it.
//!
//! A proof is good for one request. Which ones were seen is remembered by this process alone: behind several replicas a
//! proof that was caught could be used once at each of the others within its minute, for the same method, address and
//! token. The nonce of RFC 9449 section 8 and 9 is not asked for: it would cost clients a round trip and replicas a
//! shared secret, and what it is against (proofs made ahead of time) is bounded by the same minute.

mod replay;

use jsonwebtoken::Algorithm;
use ring::digest::SHA256_OUTPUT_LEN;
use serde_json::Map;
use serde_json::Value;
use url::Url;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::jwt::Parts;
use super::jwt::object;
use super::key::Key;

pub(super) use replay::Replays;

/// Asymmetric, and of a strength that is not in doubt. The order is that of the challenge.
pub(super) const ALGORITHMS: [Algorithm; 5] =
    [Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA, Algorithm::PS256, Algorithm::RS256];

/// One with an RSA key of 4096 bits has less than 3 KiB.
const PROOF_BYTES_MAX: usize = 8 * 1024;

const JTI_BYTES_MAX: usize = 512;

const URL_BYTES_MAX: usize = 2048;

/// How old a proof may be: the way here, not a supply for later.
pub(super) const AGE_S_MAX: i64 = 60;

/// RFC 7638 thumbprint, SHA-256.
pub(super) type Thumbprint = [u8; SHA256_OUTPUT_LEN];

/// What a proof must say to be for this request.
pub(super) struct Expected<'a> {
    /// The key the token is bound to (`cnf.jkt`).
    pub(super) bound_to: &'a Thumbprint,
    pub(super) token: &'a str,
    pub(super) method: &'a str,
    /// The gateway's own address as configured; never made of what the request says.
    pub(super) base: &'a Url,
    /// The path as routed.
    pub(super) path: &'a str,
    /// Seconds since the epoch.
    pub(super) now: i64,
    pub(super) leeway_s: i64,
}

/// Checks everything of one proof, the cheap first, and remembers it.
///
/// # Errors
/// In words for the client.
pub(super) fn check(proof: &str, expected: &Expected<'_>, replays: &Replays) -> Result<(), String> {
    if proof.len() > PROOF_BYTES_MAX {
        return Err("the DPoP proof is too long".into());
    }
    let parts = Parts::split(proof).map_err(|_| "the DPoP proof is not a signed JWT (three parts)")?;
    let header = object(parts.header).ok_or("the DPoP proof's header is not one strict JSON object")?;
    let payload = object(parts.payload).ok_or("the DPoP proof's claims are not one strict JSON object")?;
    let algorithm = algorithm(&header)?;
    let jwk = public(&header)?;
    let thumbprint =
        thumbprint(jwk).ok_or("the DPoP proof's `jwk` is not a public RSA, P-256, P-384 or Ed25519 key")?;
    if thumbprint != *expected.bound_to {
        return Err("the DPoP proof is signed with another key than the token is bound to (`cnf.jkt`)".into());
    }
    let said = Said::read(&payload)?;
    said.check(expected)?;
    let key = Key::read(&Value::Object(jwk.clone()), false)
        .ok_or("the DPoP proof's `jwk` is not a public RSA, P-256, P-384 or Ed25519 key")?;
    if !key.fits(algorithm) || !key.verifies(algorithm, parts.signed.as_bytes(), parts.signature) {
        return Err("the DPoP proof's signature does not verify".into());
    }
    let last = said.issued.saturating_add(AGE_S_MAX).saturating_add(expected.leeway_s);
    replays.note(&thumbprint, said.jti, expected.now, last).map_err(str::to_owned)
}

fn algorithm(header: &Map<String, Value>) -> Result<Algorithm, String> {
    let text = |member: &str| header.get(member).and_then(Value::as_str);
    if !text("typ").is_some_and(|kind| kind.eq_ignore_ascii_case("dpop+jwt")) {
        return Err("the DPoP proof's `typ` is not `dpop+jwt`".into());
    }
    if header.contains_key("crit") {
        return Err("the DPoP proof's header has `crit`, which is not accepted".into());
    }
    let algorithm = text("alg").and_then(|name| name.parse().ok()).filter(|one| ALGORITHMS.contains(one));
    algorithm.ok_or_else(|| format!("the DPoP proof's `alg` is none of {}", names()))
}

/// The algorithms as `algs` of a challenge has them.
pub(super) fn names() -> String {
    ALGORITHMS.map(|algorithm| format!("{algorithm:?}")).join(" ")
}

fn public(header: &Map<String, Value>) -> Result<&Map<String, Value>, &'static str> {
    let jwk = header.get("jwk").and_then(Value::as_object).ok_or("the DPoP proof has no `jwk`")?;
    if ["d", "p", "q", "dp", "dq", "qi", "oth", "k"].iter().any(|member| jwk.contains_key(*member)) {
        return Err("the DPoP proof's `jwk` holds a private or shared key: make a new one and keep it secret");
    }
    Ok(jwk)
}

/// RFC 7638: the required members, in order, without blanks.
fn thumbprint(jwk: &Map<String, Value>) -> Option<Thumbprint> {
    let member = |name: &str| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        jwk.get(name).and_then(Value::as_str).filter(|text| !text.is_empty() && text.bytes().all(legal))
    };
    let text = match member("kty")? {
        "EC" => format!(r#"{{"crv":"{}","kty":"EC","x":"{}","y":"{}"}}"#, member("crv")?, member("x")?, member("y")?),
        "OKP" => format!(r#"{{"crv":"{}","kty":"OKP","x":"{}"}}"#, member("crv")?, member("x")?),
        "RSA" => format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, member("e")?, member("n")?),
        _ => return None,
    };
    Some(super::sha256(text.as_bytes()))
}

/// The claims of a proof.
struct Said<'a> {
    jti: &'a str,
    method: &'a str,
    url: &'a str,
    token_digest: &'a str,
    issued: i64,
}

impl<'a> Said<'a> {
    fn read(payload: &'a Map<String, Value>) -> Result<Said<'a>, String> {
        let text = |claim: &str, bytes_max: usize| {
            let text = payload.get(claim).and_then(Value::as_str);
            let text = text.filter(|text| (1..=bytes_max).contains(&text.len()));
            text.ok_or_else(|| format!("the DPoP proof has no good `{claim}`"))
        };
        let issued = payload.get("iat").and_then(|value| {
            let whole = value.as_f64().filter(|time| time.is_finite() && (0.0..1e12).contains(time));
            // Within the range just checked, so the conversion is exact.
            value.as_i64().or_else(|| whole.map(|time| time as i64))
        });
        Ok(Said {
            jti: text("jti", JTI_BYTES_MAX)?,
            method: text("htm", 32)?,
            url: text("htu", URL_BYTES_MAX)?,
            token_digest: text("ath", 64)?,
            issued: issued.ok_or("the DPoP proof has no good `iat`")?,
        })
    }

    fn check(&self, expected: &Expected<'_>) -> Result<(), String> {
        if self.method != expected.method {
            return Err(format!("the DPoP proof's `htm` is not `{}`", expected.method));
        }
        if !same_place(self.url, expected.base, expected.path) {
            let base = expected.base.as_str().trim_end_matches('/');
            return Err(format!("the DPoP proof's `htu` is not `{base}{}`", expected.path));
        }
        if self.token_digest != URL_SAFE_NO_PAD.encode(super::sha256(expected.token.as_bytes())) {
            return Err("the DPoP proof's `ath` is not the digest of the token".into());
        }
        if self.issued > expected.now.saturating_add(expected.leeway_s) {
            return Err("the DPoP proof's `iat` lies in the future: check the clock".into());
        }
        if self.issued < expected.now.saturating_sub(AGE_S_MAX).saturating_sub(expected.leeway_s) {
            return Err("the DPoP proof is too old: make one for each request, and check the clock".into());
        }
        Ok(())
    }
}

/// RFC 9449 section 4.3: compared after normalisation, without query and fragment. A slash at the end is forgiven, as it
/// is in the request.
fn same_place(text: &str, base: &Url, path: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let plain = |path: &str| path.strip_suffix('/').unwrap_or(path).to_owned();
    url.scheme() == base.scheme()
        && url.host() == base.host()
        && url.port_or_known_default() == base.port_or_known_default()
        && url.username().is_empty()
        && url.password().is_none()
        && plain(url.path()) == plain(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thumbprint_is_that_of_the_specification() {
        // RFC 7638 section 3.1 and RFC 8037 appendix A.3.
        let rsa = serde_json::json!({
            "kty": "RSA", "alg": "RS256", "kid": "2011-04-29", "e": "AQAB",
            "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        });
        let okp =
            serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
        for (jwk, expected) in
            [(rsa, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"), (okp, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k")]
        {
            assert_eq!(
                thumbprint(jwk.as_object().expect("object")),
                URL_SAFE_NO_PAD.decode(expected).ok().map(|bytes| bytes.try_into().expect("32 bytes"))
            );
        }
    }

    #[test]
    fn an_address_is_compared_after_normalisation() {
        let base = Url::parse("https://mcp.example.com").expect("a URL");
        for good in [
            "https://mcp.example.com/mcp",
            "HTTPS://MCP.Example.COM:443/mcp",
            "https://mcp.example.com/mcp/",
            "https://mcp.example.com/mcp?a=b#c",
            "https://mcp.example.com/a/../mcp",
        ] {
            assert!(same_place(good, &base, "/mcp"), "{good}");
        }
        for bad in [
            "http://mcp.example.com/mcp",
            "https://mcp.example.com:8443/mcp",
            "https://mcp.example.com/",
            "https://mcp.example.com/mcp/x",
            "https://mcp.example.com/MCP",
            "https://mcp.example.com.evil.example/mcp",
            "https://user@mcp.example.com/mcp",
            "/mcp",
        ] {
            assert!(!same_place(bad, &base, "/mcp"), "{bad}");
        }
    }
}
