//! What a client without a good credential is told: `WWW-Authenticate` values and the protected resource metadata.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;

use super::Demand;
use super::Error;
use super::Fault;
use super::Proofs;
use super::Scheme;
use super::dpop;

const DESCRIPTION_BYTES_MAX: usize = 200;

/// The `WWW-Authenticate` value of a 401 (RFC 6750 section 3, RFC 9728 section 5.1, RFC 9449 section 7.1). `scheme` is
/// the one to use where the request had none.
pub fn challenge(error: &Error, metadata_url: Option<&str>, scopes: &[String], scheme: Scheme) -> String {
    let (scheme, problem) = match error {
        Error::Dpop { fault: Fault::Proof, description } => (Scheme::Dpop, Some(("invalid_dpop_proof", description))),
        Error::Dpop { fault: Fault::Token, description } => (Scheme::Dpop, Some(("invalid_token", description))),
        Error::Invalid { description } => (scheme, Some(("invalid_token", description))),
        // Without a credential, and where the fault is ours, there is no error to tell (RFC 6750 section 3.1).
        Error::Missing | Error::Unavailable { .. } => (scheme, None),
    };
    let mut header = Header::of(scheme);
    if let Some((code, description)) = problem {
        header.text("error", code);
        header.text("error_description", &plain(description));
    }
    header.place(metadata_url, scopes);
    header.finish()
}

/// The `WWW-Authenticate` value of a 401 to a caller whose token is good for us and not for what is behind: with the
/// claims (JSON) that the next token must satisfy, as Entra's clients read them.
pub fn interaction(claims: Option<&str>, metadata_url: Option<&str>, scopes: &[String], scheme: Scheme) -> String {
    let mut header = Header::of(scheme);
    match claims {
        Some(claims) => {
            header.text("error", "insufficient_claims");
            header.text("claims", &STANDARD.encode(claims));
        }
        None => {
            header.text("error", "invalid_token");
            header.text("error_description", "sign in again: the token cannot be used for what is behind the gateway");
        }
    }
    header.place(metadata_url, scopes);
    header.finish()
}

/// The `WWW-Authenticate` value of a 403: the scopes that this one operation needs, all of them.
pub fn insufficient_scope(scopes: &[String], metadata_url: Option<&str>, scheme: Scheme) -> String {
    let mut header = Header::of(scheme);
    header.text("error", "insufficient_scope");
    header.text("error_description", "the token does not have the scopes that this operation needs");
    header.place(metadata_url, scopes);
    header.finish()
}

/// The protected resource metadata document (RFC 9728 section 2).
pub fn metadata(resource: &str, authorization_servers: &[String], scopes: &[String], proofs: Proofs) -> Bytes {
    #[derive(Serialize)]
    struct Document<'a> {
        resource: &'a str,
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        authorization_servers: &'a [String],
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        scopes_supported: &'a [String],
        bearer_methods_supported: [&'static str; 1],
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        tls_client_certificate_bound_access_tokens: bool,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        dpop_signing_alg_values_supported: Vec<String>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        dpop_bound_access_tokens_required: bool,
    }
    let algorithms = match proofs.dpop {
        Demand::Off => Vec::new(),
        _ => dpop::names().split(' ').map(str::to_owned).collect(),
    };
    let document = Document {
        resource,
        authorization_servers,
        scopes_supported: scopes,
        bearer_methods_supported: ["header"],
        tls_client_certificate_bound_access_tokens: proofs.certificate_bound,
        dpop_signing_alg_values_supported: algorithms,
        dpop_bound_access_tokens_required: proofs.dpop == Demand::Required,
    };
    // Texts and lists of texts always have a JSON form.
    serde_json::to_vec(&document).unwrap_or_default().into()
}

struct Header {
    scheme: Scheme,
    parameters: Vec<String>,
}

impl Header {
    fn of(scheme: Scheme) -> Header {
        let mut header = Header { scheme, parameters: Vec::new() };
        if scheme == Scheme::Dpop {
            header.text("algs", &dpop::names());
        }
        header
    }

    fn text(&mut self, name: &str, value: &str) {
        self.parameters.push(format!("{name}=\"{}\"", quoted(value)));
    }

    fn place(&mut self, metadata_url: Option<&str>, scopes: &[String]) {
        if let Some(url) = metadata_url {
            self.text("resource_metadata", url);
        }
        let scopes: Vec<&str> = scopes.iter().map(String::as_str).filter(|scope| is_scope(scope)).collect();
        if !scopes.is_empty() {
            self.text("scope", &scopes.join(" "));
        }
    }

    /// A challenge must have a parameter (RFC 6750 section 3).
    fn finish(mut self) -> String {
        if self.parameters.is_empty() {
            self.text("realm", "wardgate");
        }
        let scheme = match self.scheme {
            Scheme::Bearer => "Bearer",
            Scheme::Dpop => "DPoP",
        };
        format!("{scheme} {}", self.parameters.join(", "))
    }
}

/// RFC 6749 section 3.3.
fn is_scope(scope: &str) -> bool {
    !scope.is_empty() && scope.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
}

/// The inside of a quoted-string (RFC 9110 section 5.6.4); what cannot be in a header is left out.
fn quoted(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for character in value.chars().filter(|character| matches!(character, ' '..='~')) {
        if matches!(character, '"' | '\\') {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

/// The characters that RFC 6750 section 3 allows in `error_description`.
fn plain(description: &str) -> String {
    let legal =
        description.chars().filter(|character| matches!(character, ' '..='~') && !matches!(character, '"' | '\\'));
    legal.take(DESCRIPTION_BYTES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://gw.example/.well-known/oauth-protected-resource/mcp";

    const OFF: Proofs = Proofs { certificate_bound: false, dpop: Demand::Off };

    fn scopes(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn bearer(error: &Error, metadata_url: Option<&str>, scopes: &[String]) -> String {
        challenge(error, metadata_url, scopes, Scheme::Bearer)
    }

    #[test]
    fn a_dpop_challenge_names_the_algorithms_and_what_was_wrong() {
        let proof = Error::Dpop { fault: Fault::Proof, description: "too old".into() };
        let expected =
            r#"DPoP algs="ES256 ES384 EdDSA PS256 RS256", error="invalid_dpop_proof", error_description="too old""#;
        assert_eq!(bearer(&proof, None, &[]), expected);
        let token = Error::Dpop { fault: Fault::Token, description: "unbound".into() };
        assert!(bearer(&token, None, &[]).contains(r#"error="invalid_token""#));
        let bare = challenge(&Error::Missing, Some(URL), &[], Scheme::Dpop);
        assert_eq!(bare, format!(r#"DPoP algs="ES256 ES384 EdDSA PS256 RS256", resource_metadata="{URL}""#));
    }

    #[test]
    fn the_metadata_says_which_proofs_are_taken_and_asked_for() {
        let of = |certificate_bound, dpop| -> serde_json::Value {
            serde_json::from_slice(&metadata("r", &[], &[], Proofs { certificate_bound, dpop })).expect("JSON")
        };
        let optional = of(false, Demand::Optional);
        assert_eq!(
            optional["dpop_signing_alg_values_supported"],
            serde_json::json!(["ES256", "ES384", "EdDSA", "PS256", "RS256"])
        );
        assert_eq!(optional.get("dpop_bound_access_tokens_required"), None);
        let required = of(true, Demand::Required);
        assert_eq!(required["dpop_bound_access_tokens_required"], true);
        assert_eq!(required["tls_client_certificate_bound_access_tokens"], true);
    }

    #[test]
    fn without_a_credential_there_is_no_error_in_the_challenge() {
        assert_eq!(
            bearer(&Error::Missing, Some(URL), &scopes(&["mcp.read"])),
            format!("Bearer resource_metadata=\"{URL}\", scope=\"mcp.read\"")
        );
        assert_eq!(bearer(&Error::Missing, None, &[]), "Bearer realm=\"wardgate\"");
        assert!(!bearer(&Error::Unavailable { issuer: "https://idp".into() }, Some(URL), &[]).contains("error"));
    }

    #[test]
    fn a_bad_credential_is_described() {
        assert_eq!(
            bearer(&Error::invalid("the token has expired"), Some(URL), &scopes(&["a", "b"])),
            format!(
                "Bearer error=\"invalid_token\", error_description=\"the token has expired\", resource_metadata=\"{URL}\", scope=\"a b\""
            )
        );
    }

    #[test]
    fn nothing_can_break_out_of_its_quotes() {
        let nasty = Error::invalid("a\"b\\c\r\nd\u{e9}e, realm=\"x\"");
        let value = bearer(&nasty, Some("https://gw/\"\\\r\n"), &scopes(&["ok", "no\"no", "no no", "é", ""]));
        assert_eq!(
            value,
            r#"Bearer error="invalid_token", error_description="abcde, realm=x", resource_metadata="https://gw/\"\\", scope="ok""#
        );
        assert!(http::HeaderValue::from_str(&value).is_ok());
        let long = bearer(&Error::invalid("x".repeat(10_000)), None, &[]);
        assert!(long.len() < 300);
    }

    #[test]
    fn claims_are_carried_in_base64_and_break_out_of_nothing() {
        let claims = r#"{"access_token":{"acrs":{"essential":true,"value":"c1"}}}"#;
        let value = interaction(Some(claims), Some(URL), &scopes(&["mcp.read"]), Scheme::Bearer);
        let encoded = STANDARD.encode(claims);
        assert!(value.starts_with(&format!("Bearer error=\"insufficient_claims\", claims=\"{encoded}\", ")), "{value}");
        assert!(value.contains(URL) && value.contains("mcp.read"));
        assert!(interaction(None, None, &[], Scheme::Bearer).starts_with("Bearer error=\"invalid_token\""));
        assert!(interaction(None, None, &[], Scheme::Dpop).starts_with("DPoP algs="));
    }

    #[test]
    fn a_step_up_names_all_scopes_of_the_operation() {
        let value = insufficient_scope(&scopes(&["mcp.write", "files:write"]), Some(URL), Scheme::Bearer);
        assert!(value.starts_with("Bearer error=\"insufficient_scope\", "));
        assert!(value.contains("scope=\"mcp.write files:write\""));
        assert!(value.contains(URL));
    }

    #[test]
    fn the_metadata_names_the_resource_and_its_issuers() {
        let document =
            metadata("https://gw.example/mcp", &scopes(&["https://idp.example"]), &scopes(&["mcp.read"]), OFF);
        let document: serde_json::Value = serde_json::from_slice(&document).expect("JSON");
        assert_eq!(
            document,
            serde_json::json!({
                "resource": "https://gw.example/mcp",
                "authorization_servers": ["https://idp.example"],
                "scopes_supported": ["mcp.read"],
                "bearer_methods_supported": ["header"],
            })
        );
        let bare: serde_json::Value = serde_json::from_slice(&metadata("r", &[], &[], OFF)).expect("JSON");
        assert_eq!(bare.as_object().map(serde_json::Map::len), Some(2));
    }
}
