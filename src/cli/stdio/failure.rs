//! `Failure`: what went wrong on the way, as a JSON-RPC error that says what to do about it.

use bytes::Bytes;
use http::HeaderMap;
use http::StatusCode;
use http::header;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::line;
use crate::mcp::Id;
use crate::mcp::error;

/// More of a server's words helps nobody.
const WORDS_CHARS_MAX: usize = 500;

#[derive(Debug)]
pub(super) struct Failure {
    code: i64,
    words: String,
    data: Option<Value>,
}

impl Failure {
    /// The server could not be reached, or went away.
    pub(super) fn transport(words: &str) -> Failure {
        Failure { code: error::UPSTREAM, words: format!("the server cannot be reached: {words}"), data: None }
    }

    /// What came is not what the protocol says.
    pub(super) fn protocol(words: &str) -> Failure {
        Failure { code: error::UPSTREAM, words: format!("the server's answer is not MCP: {words}"), data: None }
    }

    /// Ours to refuse.
    pub(super) fn refused(words: &str) -> Failure {
        Failure { code: error::INVALID_REQUEST, words: words.to_owned(), data: None }
    }

    pub(super) fn session_lost() -> Failure {
        let words = "the session is unknown to the server or has ended: initialize again".to_owned();
        Failure { code: error::REFUSED, words, data: Some(json!({ "httpStatus": 404, "reason": "session_unknown" })) }
    }

    /// An HTTP error. What the server says in JSON-RPC is passed on, and 401 and 403 say what can be done here.
    pub(super) fn of(status: StatusCode, headers: &HeaderMap, body: &[u8], has_bearer: bool) -> Failure {
        let said =
            serde_json::from_slice::<Value>(body).ok().and_then(|mut body| body.get_mut("error").map(Value::take));
        let code = said.as_ref().and_then(|error| error["code"].as_i64());
        let words = said.as_ref().and_then(|error| error["message"].as_str()).map(shortened);
        let challenge = headers.get(header::WWW_AUTHENTICATE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let mut data = match said.as_ref().map(|error| &error["data"]) {
            Some(Value::Object(members)) => members.clone(),
            Some(Value::Null) | None => Map::new(),
            Some(other) => Map::from_iter([("data".to_owned(), other.clone())]),
        };
        data.insert("httpStatus".to_owned(), json!(status.as_u16()));
        for (member, parameter) in [("resourceMetadata", "resource_metadata"), ("scope", "scope")] {
            if let Some(value) = parameter_of(challenge, parameter) {
                data.insert(member.to_owned(), json!(value));
            }
        }
        if let Some(after) = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()) {
            data.insert("retryAfter".to_owned(), json!(after));
        }
        let reason = status.canonical_reason().unwrap_or("no reason");
        let detail = words.clone().map_or_else(String::new, |words| format!(" ({words})"));
        let words = match status {
            StatusCode::UNAUTHORIZED if has_bearer => format!(
                "the server does not accept the token of --bearer-file, --bearer-env or `wardgate login` (HTTP 401): renew it{detail}"
            ),
            StatusCode::UNAUTHORIZED => format!(
                "the server wants authentication (HTTP 401): log in once with `wardgate login URL`, or start `wardgate stdio` with --bearer-file FILE or --bearer-env NAME{detail}"
            ),
            StatusCode::FORBIDDEN => {
                let scope = parameter_of(challenge, "scope");
                let hint = scope.map_or_else(String::new, |scope| format!("; the token lacks scope: {scope}"));
                format!("the server does not allow this (HTTP 403){hint}{detail}")
            }
            _ => words.unwrap_or_else(|| match status {
                StatusCode::NOT_FOUND => "there is no MCP endpoint at this URL (HTTP 404)".to_owned(),
                _ => format!("the server answered HTTP {} {reason}", status.as_u16()),
            }),
        };
        Failure { code: code.unwrap_or(error::UPSTREAM), words, data: Some(Value::Object(data)) }
    }

    pub(super) fn line(&self, id: Option<&Id>) -> Bytes {
        line::error(id, self.code, &self.words, self.data.clone())
    }

    pub(super) fn words(&self) -> &str {
        &self.words
    }
}

fn shortened(words: &str) -> String {
    words.chars().filter(|c| !c.is_control()).take(WORDS_CHARS_MAX).collect()
}

/// A quoted parameter of a challenge (RFC 9110 section 11.6.1).
pub(in crate::cli) fn parameter_of(challenge: &str, name: &str) -> Option<String> {
    let mut rest = challenge;
    while let Some((before, after)) = rest.split_once(&format!("{name}=\"")) {
        // `resource_scope="` is not `scope="`.
        if before.ends_with([' ', ',', '\t']) {
            return after.split_once('"').map(|(value, _)| shortened(value));
        }
        rest = after;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(status: u16, challenge: &str, body: &str, has_bearer: bool) -> Value {
        let mut headers = HeaderMap::new();
        if !challenge.is_empty() {
            headers.insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
        }
        let status = StatusCode::from_u16(status).unwrap();
        let line = Failure::of(status, &headers, body.as_bytes(), has_bearer).line(Id::from_json("\"a\"").as_ref());
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn a_challenge_becomes_words_that_name_the_flag_and_the_metadata() {
        let challenge = r#"Bearer resource_scope="no", resource_metadata="https://gw/.well-known/x", scope="mcp.read""#;
        let error = failure(401, challenge, "<html>", false);
        assert_eq!(error["id"], "a");
        let words = error["error"]["message"].as_str().unwrap();
        assert!(words.contains("--bearer-file") && words.contains("401"), "{words}");
        assert_eq!(error["error"]["data"]["resourceMetadata"], "https://gw/.well-known/x");
        assert_eq!(error["error"]["data"]["scope"], "mcp.read");
        assert!(failure(401, "", "", true)["error"]["message"].as_str().unwrap().contains("renew"));
        assert!(failure(403, challenge, "", true)["error"]["message"].as_str().unwrap().contains("scope: mcp.read"));
    }

    #[test]
    fn what_the_server_says_in_json_rpc_is_passed_on() {
        let body =
            r#"{"jsonrpc":"2.0","id":null,"error":{"code":-31429,"message":"too\u0007 much","data":{"limit":"tool"}}}"#;
        let error = failure(429, "", body, true)["error"].take();
        assert_eq!(
            error,
            json!({ "code": -31429, "message": "too much", "data": { "limit": "tool", "httpStatus": 429 } })
        );
        let bare = failure(502, "", "<html>secret page</html>", true)["error"].take();
        assert_eq!(
            (&bare["code"], &bare["message"]),
            (&json!(-31502), &json!("the server answered HTTP 502 Bad Gateway"))
        );
    }
}
