//! Dynamic client registration (RFC 7591) that registers nothing: the answer is always the one public client.
//!
//! Everybody may ask, so what protects people is the list of redirect addresses: a code can be sent only to the asker's
//! own machine or to an address that the operator wrote down, here and at the issuer.

use bytes::Bytes;
use serde_json::Value;
use serde_json::json;
use url::Url;

use super::facade::Login;
use crate::mcp::strict;

/// What a client says about itself is less than a KiB.
pub const REQUEST_BYTES_MAX: usize = 16 * 1024;

const REDIRECTS_MAX: usize = 16;
const NAME_CHARS_MAX: usize = 200;

/// What a public client may ask for with this client id.
const GRANTS: [&str; 3] = ["authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"];

/// RFC 7591 section 3.2.2.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refused {
    /// `invalid_redirect_uri` or `invalid_client_metadata`.
    pub error: &'static str,
    pub description: &'static str,
}

impl Refused {
    fn metadata(description: &'static str) -> Refused {
        Refused { error: "invalid_client_metadata", description }
    }

    fn redirect(description: &'static str) -> Refused {
        Refused { error: "invalid_redirect_uri", description }
    }

    pub fn document(&self) -> Bytes {
        json!({ "error": self.error, "error_description": self.description }).to_string().into()
    }
}

/// The client information response (RFC 7591 section 3.2.1).
pub(super) fn register(login: &Login, request: &[u8]) -> Result<Bytes, Refused> {
    let asked = strict::object(request).ok_or_else(|| Refused::metadata("the request is not one JSON object"))?;
    let redirects = texts(asked.get("redirect_uris"), "`redirect_uris` is not a list of texts")?.unwrap_or_default();
    if redirects.is_empty() || redirects.len() > REDIRECTS_MAX {
        return Err(Refused::redirect("`redirect_uris` must have 1 to 16 addresses"));
    }
    if !redirects.iter().all(|redirect| permits(login, redirect)) {
        return Err(Refused::redirect(
            "an address in `redirect_uris` is not one that the operator of this gateway allows",
        ));
    }
    let grants = texts(asked.get("grant_types"), "`grant_types` is not a list of texts")?;
    let mut grants = grants.unwrap_or_else(|| vec!["authorization_code"]);
    grants.retain(|grant| GRANTS.contains(grant));
    if !grants.contains(&"authorization_code") {
        return Err(Refused::metadata("`grant_types` must contain `authorization_code`"));
    }
    let responses = texts(asked.get("response_types"), "`response_types` is not a list of texts")?;
    if responses.is_some_and(|types| !types.contains(&"code")) {
        return Err(Refused::metadata("`response_types` must contain `code`"));
    }
    let mut answer = json!({
        "client_id": login.client_id,
        "redirect_uris": redirects,
        "grant_types": grants,
        "response_types": ["code"],
        // Whatever was asked for: there is no secret.
        "token_endpoint_auth_method": "none",
    });
    if let (Some(members), Some(name)) = (answer.as_object_mut(), asked.get("client_name").and_then(Value::as_str)) {
        let name: String = name.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect();
        members.insert("client_name".to_owned(), name.into());
    }
    Ok(answer.to_string().into())
}

fn texts<'a>(value: Option<&'a Value>, problem: &'static str) -> Result<Option<Vec<&'a str>>, Refused> {
    let Some(value) = value else { return Ok(None) };
    let list = value.as_array().ok_or_else(|| Refused::metadata(problem))?;
    list.iter().map(Value::as_str).collect::<Option<Vec<_>>>().map(Some).ok_or_else(|| Refused::metadata(problem))
}

fn permits(login: &Login, redirect: &str) -> bool {
    login.redirect_uris.iter().any(|known| known == redirect) || (login.loopback && is_loopback(redirect))
}

/// RFC 8252 section 7.3. Looked at twice, as text and as a URL: nobody may read another host in it.
fn is_loopback(redirect: &str) -> bool {
    let text = ["http://127.0.0.1", "http://[::1]", "http://localhost"]
        .iter()
        .filter_map(|start| redirect.strip_prefix(start))
        .any(|rest| rest.is_empty() || rest.starts_with([':', '/']));
    let plain = redirect.bytes().all(|byte| byte.is_ascii_graphic() && !b"\\#?@".contains(&byte));
    let host = Url::parse(redirect).ok().and_then(|url| url.host_str().map(str::to_owned));
    text && plain && matches!(host.as_deref(), Some("127.0.0.1" | "[::1]" | "localhost"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login() -> Login {
        Login {
            issuer: "https://idp.example".into(),
            entra: None,
            client_id: "public-1".into(),
            loopback: true,
            redirect_uris: vec!["https://app.example/callback".into(), "cursor://mcp/callback".into()],
            scope_prefix: String::new(),
        }
    }

    fn ask(request: &Value) -> Result<Value, Refused> {
        register(&login(), request.to_string().as_bytes()).map(|answer| serde_json::from_slice(&answer).unwrap())
    }

    #[test]
    fn every_client_gets_the_one_public_client_and_no_secret() {
        let answer = ask(&json!({
            "client_name": "a\u{7}b",
            "redirect_uris": ["http://127.0.0.1:33418/", "https://app.example/callback"],
            "grant_types": ["authorization_code", "refresh_token", "client_credentials"],
            "token_endpoint_auth_method": "client_secret_post",
            "scope": "x",
        }));
        let expected = json!({
            "client_id": "public-1",
            "client_name": "ab",
            "redirect_uris": ["http://127.0.0.1:33418/", "https://app.example/callback"],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": "none",
        });
        assert_eq!(answer, Ok(expected));
    }

    #[test]
    fn only_redirect_addresses_that_the_operator_allows_can_be_registered() {
        for good in [
            "http://localhost",
            "http://localhost:1/",
            "http://[::1]:65535/a/b",
            "http://127.0.0.1/callback",
            "cursor://mcp/callback",
        ] {
            assert!(ask(&json!({ "redirect_uris": [good] })).is_ok(), "{good}");
        }
        for bad in [
            "https://evil.example/callback",
            "https://app.example/callback/",
            "https://app.example/callback?x=1",
            "https://app.example/CALLBACK",
            "http://app.example/callback",
            "https://127.0.0.1/",
            "http://127.0.0.1.evil.example/",
            "http://127.0.0.1@evil.example/",
            "http://127.0.0.1:80@evil.example/",
            "http://localhost.evil.example/",
            "http://localhost:x/",
            "http://127.1/",
            "http://2130706433/",
            "http://127.0.0.1\\@evil.example/",
            "http://127.0.0.1/#evil",
            "http://127.0.0.1/?next=evil",
            "http://127.0.0.1/ evil",
            "HTTP://127.0.0.1/",
            "javascript:alert(1)",
            "",
        ] {
            // One bad address among good ones is enough.
            let refused = ask(&json!({ "redirect_uris": ["http://localhost/", bad] })).unwrap_err();
            assert_eq!(refused.error, "invalid_redirect_uri", "{bad}");
        }
        let strict = Login { loopback: false, ..login() };
        let request = json!({ "redirect_uris": ["http://localhost/"] }).to_string();
        assert_eq!(register(&strict, request.as_bytes()).unwrap_err().error, "invalid_redirect_uri");
    }

    #[test]
    fn what_cannot_be_a_code_client_is_refused() {
        let redirect = json!(["http://localhost/"]);
        for bad in [
            json!({ "redirect_uris": redirect, "grant_types": ["client_credentials"] }),
            json!({ "redirect_uris": redirect, "grant_types": "authorization_code" }),
            json!({ "redirect_uris": redirect, "response_types": ["token"] }),
            json!({ "redirect_uris": "http://localhost/" }),
            json!({ "redirect_uris": [1] }),
            json!([]),
        ] {
            assert_eq!(ask(&bad).unwrap_err().error, "invalid_client_metadata", "{bad}");
        }
        let many: Vec<_> = (0..17).map(|port| format!("http://localhost:{port}/")).collect();
        assert_eq!(ask(&json!({ "redirect_uris": many })).unwrap_err().error, "invalid_redirect_uri");
        assert_eq!(ask(&json!({})).unwrap_err().error, "invalid_redirect_uri");
        let twice = br#"{"redirect_uris":["http://localhost/"],"redirect_uris":["https://evil.example/"]}"#;
        assert_eq!(register(&login(), twice).unwrap_err().error, "invalid_client_metadata");
    }
}
