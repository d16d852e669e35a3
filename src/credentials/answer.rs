//! What a token endpoint answered: a token, or which of the few things that can be wrong. No word of the provider's goes on.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::Grant;
use super::Why;
use super::assertion::NO_USER;
use crate::fetch::Answer;
use crate::secret::Secret;

/// Tokens with many groups come to 16 KiB.
pub(super) const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// A header must hold it.
const TOKEN_BYTES_MAX: usize = 64 * 1024;

/// Claims go into a header, too.
const CLAIMS_BYTES_MAX: usize = 4 * 1024;

/// Where the provider does not say (RFC 6749 section 5.1: recommended).
const LIFETIME_UNSAID: Duration = Duration::from_secs(5 * 60);

/// Longer is a mistake, or no token that should be kept.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Where the provider does not say when to come again.
const RETRY_AFTER: Duration = Duration::from_secs(2);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// A token as issued.
pub(super) struct Issued {
    pub(super) token: Secret,
    pub(super) lifetime: Duration,
    /// When the provider would like it to be renewed.
    pub(super) renew_in: Option<Duration>,
}

#[derive(Deserialize)]
struct Success {
    access_token: Secretive,
    token_type: Option<String>,
    expires_in: Option<Seconds>,
    refresh_in: Option<Seconds>,
}

/// Wiped when dropped.
struct Secretive(Secret);

impl<'de> Deserialize<'de> for Secretive {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Secretive(Secret::new(text)))
    }
}

/// Some providers write numbers as texts.
#[derive(Clone, Copy)]
struct Seconds(Duration);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let seconds = match &value {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        seconds.map(|s| Seconds(Duration::from_secs(s))).ok_or_else(|| serde::de::Error::custom("no seconds"))
    }
}

/// RFC 6749 section 5.2, and what Entra adds to it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Failure {
    error: String,
    error_description: String,
    error_codes: Vec<u32>,
    suberror: String,
    claims: Option<String>,
    trace_id: String,
}

/// # Errors
/// What is wrong; logged here with the provider's codes, never with its words, which may quote the token.
pub(super) fn read(answer: &Answer, grant: &Grant, backend: &str) -> Result<Issued, Why> {
    if answer.status == 200 {
        return success(&answer.body).ok_or_else(|| {
            tracing::error!(backend, "the token endpoint's answer has no usable bearer token");
            Why::Unavailable { retry_after: RETRY_AFTER }
        });
    }
    let failure: Failure = serde_json::from_slice(&answer.body).unwrap_or_default();
    let code = failure.code();
    let why = match answer.status {
        429 | 500.. => away(answer),
        _ => failure.why(code, grant, answer.retry_after),
    };
    let shown = |text: &str| text.chars().filter(|c| c.is_ascii_graphic()).take(64).collect::<String>();
    tracing::warn!(
        backend,
        status = answer.status,
        error = shown(&failure.error),
        suberror = shown(&failure.suberror),
        code,
        trace = shown(&failure.trace_id),
        outcome = %why,
        "no token from the identity provider"
    );
    Err(why)
}

fn retry_after(said: Option<Duration>) -> Duration {
    said.unwrap_or(RETRY_AFTER).clamp(Duration::from_secs(1), RETRY_AFTER_MAX)
}

/// It says itself that it cannot answer now.
pub(super) fn away(answer: &Answer) -> Why {
    Why::Unavailable { retry_after: retry_after(answer.retry_after) }
}

/// Nothing could be read from the provider at all.
pub(super) fn silent() -> Why {
    Why::Unavailable { retry_after: RETRY_AFTER }
}

fn success(body: &[u8]) -> Option<Issued> {
    let success: Success = serde_json::from_slice(body).ok()?;
    let token = success.access_token.0;
    // RFC 6749 section 7.1: a type we do not understand must not be used. RFC 8693 `N_A` is no bearer token.
    let bearer = success.token_type.is_none_or(|kind| kind.eq_ignore_ascii_case("bearer"));
    let text = token.expose();
    let good = (1..=TOKEN_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    let lifetime = success.expires_in.map_or(LIFETIME_UNSAID, |seconds| seconds.0).min(LIFETIME_MAX);
    let renew_in = success.refresh_in.map(|seconds| seconds.0.min(LIFETIME_MAX));
    (bearer && good).then_some(Issued { token, lifetime, renew_in })
}

impl Failure {
    /// Entra's own number; in older answers only the description has it.
    fn code(&self) -> u32 {
        let described = || {
            let (_, rest) = self.error_description.split_once("AADSTS")?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        self.error_codes.first().copied().or_else(described).unwrap_or(0)
    }

    fn why(&self, code: u32, grant: &Grant, said: Option<Duration>) -> Why {
        let error = self.error.as_str();
        if matches!(error, "temporarily_unavailable" | "server_error") {
            return Why::Unavailable { retry_after: retry_after(said) };
        }
        if !grant.is_personal() {
            // No caller can do anything about it.
            return Why::Misconfigured;
        }
        let claims = self.claims.as_deref().and_then(claims);
        if claims.is_some() {
            return Why::Interaction { claims };
        }
        match code {
            // Consent; a service principal that is not there for want of it.
            65001 | 90094 | 90095 | 650_057 => return Why::NoConsent,
            // Wrong audience or signature, a nonce or a token of another kind, an issuer that does not fit.
            50013 | 50027 | 500_131 | 500_132 | 240_002 => return Why::NotExchangeable,
            500_133 => return Why::Expired,
            7_000_114 => return Why::UserRequired { what: NO_USER },
            50105 | 50177 | 501_051 => return Why::Denied,
            // Second factor, device, location, password changed, session revoked.
            50076 | 50078 | 50079 | 50129 | 50158 | 50173 | 53000..=53004 | 70043 | 700_082 => {
                return Why::Interaction { claims: None };
            }
            _ => {}
        }
        match (error, self.suberror.as_str()) {
            (_, "consent_required") | ("consent_required", _) => Why::NoConsent,
            ("interaction_required" | "login_required" | "invalid_grant", _) => Why::Interaction { claims: None },
            ("access_denied", _) => Why::Denied,
            // RFC 8693 section 2.2.2: a subject token that is invalid or unacceptable.
            ("invalid_request", _) if matches!(grant, Grant::Exchange { .. }) => Why::NotExchangeable,
            _ => Why::Misconfigured,
        }
    }
}

/// Claims as they may be passed on: one JSON object, small.
pub fn claims(text: &str) -> Option<Arc<str>> {
    let good = text.len() <= CLAIMS_BYTES_MAX && serde_json::from_str::<serde_json::Map<String, Value>>(text).is_ok();
    good.then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn obo() -> Grant {
        Grant::OnBehalfOf { scope: "api://x/.default".into(), continuous_access: false }
    }

    fn exchange() -> Grant {
        Grant::Exchange { audience: Vec::new(), resource: Vec::new(), scope: None, actor: None }
    }

    fn answered(status: u16, body: &str, grant: &Grant) -> Result<Issued, Why> {
        let body = body.as_bytes().to_vec().into();
        read(&Answer { status, retry_after: Some(Duration::from_secs(7)), body }, grant, "b")
    }

    fn refused(body: Value, grant: &Grant) -> Why {
        answered(400, &body.to_string(), grant).err().expect("a refusal")
    }

    #[test]
    fn each_failure_of_the_provider_becomes_what_somebody_can_do_about_it() {
        use serde_json::json;
        let login = Why::Interaction { claims: None };
        let user = Why::UserRequired { what: NO_USER };
        let table = [
            (
                json!({ "error": "invalid_grant", "error_codes": [65001], "suberror": "consent_required" }),
                Why::NoConsent,
            ),
            (json!({ "error": "invalid_grant", "error_description": "AADSTS65001: The user has not" }), Why::NoConsent),
            (json!({ "error": "consent_required" }), Why::NoConsent),
            (json!({ "error": "interaction_required", "error_codes": [50076] }), login.clone()),
            (json!({ "error": "invalid_grant", "error_codes": [50173] }), login.clone()),
            (json!({ "error": "invalid_grant" }), login),
            (json!({ "error": "invalid_grant", "error_codes": [50013] }), Why::NotExchangeable),
            (
                json!({ "error": "invalid_grant", "error_description": "AADSTS500131: Assertion audience" }),
                Why::NotExchangeable,
            ),
            (json!({ "error": "invalid_grant", "error_codes": [500133] }), Why::Expired),
            (json!({ "error": "invalid_request", "error_codes": [7000114] }), user),
            (json!({ "error": "invalid_grant", "error_codes": [50105] }), Why::Denied),
            (json!({ "error": "access_denied" }), Why::Denied),
            (json!({ "error": "invalid_client", "error_codes": [7000215] }), Why::Misconfigured),
            (json!({ "error": "unauthorized_client", "error_codes": [700016] }), Why::Misconfigured),
            (json!({ "error": "invalid_scope" }), Why::Misconfigured),
            (json!({ "error": "temporarily_unavailable" }), Why::Unavailable { retry_after: Duration::from_secs(7) }),
            (json!("nonsense"), Why::Misconfigured),
        ];
        for (body, want) in table {
            assert_eq!(refused(body.clone(), &obo()), want, "{body}");
        }
        assert_eq!(refused(serde_json::json!({ "error": "invalid_request" }), &exchange()), Why::NotExchangeable);
        let own = Grant::Client { audience: Vec::new(), resource: Vec::new(), scope: None };
        assert_eq!(refused(serde_json::json!({ "error": "invalid_grant", "claims": "{}" }), &own), Why::Misconfigured);
    }

    #[test]
    fn claims_are_passed_on_only_as_one_small_object() {
        let body = |claims: &str| serde_json::json!({ "error": "interaction_required", "claims": claims });
        let asked = r#"{"access_token":{"capolids":{"essential":true,"values":["c1"]}}}"#;
        assert_eq!(refused(body(asked), &obo()), Why::Interaction { claims: Some(asked.into()) });
        for bad in ["[]", "not json", "{", &format!("{{\"a\":\"{}\"}}", "x".repeat(5000))] {
            assert_eq!(refused(body(bad), &obo()), Why::Interaction { claims: None }, "{bad}");
        }
    }

    #[test]
    fn an_outage_is_told_with_a_time_to_come_again() {
        for status in [429, 500, 502, 503] {
            let why = answered(status, "<html>", &obo()).err();
            assert_eq!(why, Some(Why::Unavailable { retry_after: Duration::from_secs(7) }));
        }
        assert_eq!(retry_after(Some(Duration::from_secs(99_999))), RETRY_AFTER_MAX);
    }

    #[test]
    fn only_a_bearer_token_that_fits_a_header_is_a_token() {
        let good = answered(
            200,
            r#"{"access_token":"t","token_type":"bearer","expires_in":"3599","refresh_in":1800}"#,
            &obo(),
        );
        let good = good.expect("a token");
        assert_eq!((good.token.expose(), good.lifetime), ("t", Duration::from_secs(3599)));
        assert_eq!(good.renew_in, Some(Duration::from_secs(1800)));
        let endless = answered(
            200,
            r#"{"access_token":"t","expires_in":99999999999,"refresh_in":"18446744073709551615"}"#,
            &obo(),
        );
        let endless = endless.ok().map(|token| (token.lifetime, token.renew_in));
        assert_eq!(endless, Some((LIFETIME_MAX, Some(LIFETIME_MAX))));
        assert_eq!(answered(200, r#"{"access_token":"t"}"#, &obo()).ok().map(|t| t.lifetime), Some(LIFETIME_UNSAID));
        for bad in [
            r#"{"access_token":"t","token_type":"N_A"}"#,
            r#"{"access_token":"t","token_type":"pop"}"#,
            r#"{"access_token":""}"#,
            r#"{"access_token":"a\r\nb: c"}"#,
            r#"{"id_token":"t"}"#,
            "<html>",
        ] {
            assert_eq!(answered(200, bad, &obo()).err(), Some(silent()), "{bad}");
        }
    }
}
