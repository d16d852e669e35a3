//! `Line`: what the client says on standard input, understood as far as HTTP needs it; and messages as single lines.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::error;

const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";

/// One message of the client. Its bytes go upstream as they came.
#[derive(Debug)]
pub(super) struct Line {
    pub bytes: Bytes,
    pub kind: Kind,
    pub params: Value,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Notification {
        method: String,
    },
    Request {
        id: Id,
        method: String,
    },
    /// The answer to a request of the server (legacy era).
    Response,
}

/// A line that is no message, and what to call it back by.
#[derive(Debug)]
pub(super) struct Malformed {
    pub id: Option<Id>,
    pub code: i64,
    pub words: String,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: Option<String>,
    #[serde(default)]
    params: Value,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

impl Line {
    pub(super) fn parse(bytes: Bytes) -> Result<Line, Malformed> {
        let malformed = |id: Option<Id>, code, words: &str| Malformed { id, code, words: words.to_owned() };
        if bytes.trim_ascii_start().starts_with(b"[") {
            return Err(malformed(None, error::INVALID_REQUEST, "Invalid request: batches are not supported"));
        }
        let envelope: Envelope<'_> = match serde_json::from_slice(&bytes) {
            Ok(envelope) => envelope,
            Err(fault) if fault.is_data() => {
                return Err(malformed(None, error::INVALID_REQUEST, "Invalid request: not one JSON-RPC message"));
            }
            Err(_) => return Err(malformed(None, error::PARSE_ERROR, "Parse error: the line is not one JSON value")),
        };
        let id = envelope.id.and_then(|raw| Id::from_json(raw.get()));
        let invalid = |words: &str| Err(malformed(id.clone(), error::INVALID_REQUEST, words));
        if envelope.jsonrpc.is_none_or(|version| version.get() != "\"2.0\"") {
            return invalid("Invalid request: jsonrpc is not \"2.0\"");
        }
        if envelope.id.is_some() && id.is_none() {
            return invalid("Invalid request: the id is neither string nor integer");
        }
        let outcome = envelope.result.is_some() || envelope.error.is_some();
        let kind = match (envelope.method, id.clone(), outcome) {
            (Some(method), Some(id), false) => Kind::Request { id, method },
            (Some(method), None, false) => Kind::Notification { method },
            (None, Some(_), true) => Kind::Response,
            _ => return invalid("Invalid request: neither request, notification nor response"),
        };
        let params = envelope.params;
        Ok(Line { bytes: bytes.clone(), kind, params })
    }

    /// The version in `_meta`: a message that has one is of the modern era.
    pub(super) fn version(&self) -> Option<&str> {
        self.params.get("_meta")?.get(META_VERSION)?.as_str()
    }

    pub(super) fn era(&self) -> Era {
        if self.version().is_some() { Era::Modern } else { Era::Legacy }
    }

    /// The value that `Mcp-Name` mirrors, for the methods that have one.
    pub(super) fn name(&self) -> Option<&str> {
        let member = match self.method()? {
            "tools/call" | "prompts/get" => "name",
            "resources/read" => "uri",
            "tasks/get" | "tasks/update" | "tasks/cancel" => "taskId",
            _ => return None,
        };
        self.params.get(member)?.as_str()
    }

    pub(super) fn method(&self) -> Option<&str> {
        match &self.kind {
            Kind::Notification { method } | Kind::Request { method, .. } => Some(method),
            Kind::Response => None,
        }
    }

    /// Which request `notifications/cancelled` is about.
    pub(super) fn cancels(&self) -> Option<Id> {
        if self.method() != Some("notifications/cancelled") {
            return None;
        }
        Id::from_json(&self.params.get("requestId")?.to_string())
    }
}

/// A message as one line: line ends between its tokens become blanks, inside strings JSON has none. `None`: no JSON.
pub(super) fn one_line(message: &Bytes) -> Option<Bytes> {
    serde_json::from_slice::<&RawValue>(message).ok()?;
    if !message.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        return Some(message.clone());
    }
    Some(message.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect())
}

/// A JSON-RPC error. SPEC: where the id could not be read MCP has none; JSON-RPC's null is no `RequestId`.
pub(super) fn error(id: Option<&Id>, code: i64, words: &str, data: Option<Value>) -> Bytes {
    let mut error = serde_json::json!({ "code": code, "message": words });
    if let (Some(data), Some(members)) = (data, error.as_object_mut()) {
        members.insert("data".to_owned(), data);
    }
    let id = id.map(|id| format!("\"id\":{},", id.as_json())).unwrap_or_default();
    format!("{{\"jsonrpc\":\"2.0\",{id}\"error\":{error}}}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Line, Malformed> {
        Line::parse(Bytes::from(text.to_owned()))
    }

    #[test]
    fn a_line_is_told_by_its_members_and_its_era_by_its_meta() {
        let modern = parse(r#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"x","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#).unwrap();
        assert_eq!((modern.version(), modern.era(), modern.name()), (Some("2026-07-28"), Era::Modern, Some("x")));
        let legacy = parse(r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#).unwrap();
        assert_eq!((legacy.era(), legacy.name()), (Era::Legacy, None));
        assert!(matches!(legacy.kind, Kind::Request { ref id, .. } if id.as_json() == "7"));
        let task = parse(r#"{"jsonrpc":"2.0","id":7,"method":"tasks/get","params":{"taskId":"t"}}"#).unwrap();
        assert_eq!(task.name(), Some("t"));
        let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"a"}}"#;
        assert_eq!(parse(cancel).unwrap().cancels().unwrap().as_json(), "\"a\"");
        let answer = parse(r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"no"}}"#).unwrap();
        assert_eq!(answer.kind, Kind::Response);
    }

    #[test]
    fn what_is_no_message_is_told_with_its_id_where_there_is_one() {
        let code = |text: &str| parse(text).map(|_| 0).unwrap_or_else(|malformed| malformed.code);
        assert_eq!(code("{"), error::PARSE_ERROR);
        assert_eq!(code("[]"), error::INVALID_REQUEST);
        assert_eq!(code("7"), error::INVALID_REQUEST);
        assert_eq!(code(r#"{"jsonrpc":"2.0","id":1}"#), error::INVALID_REQUEST);
        assert_eq!(code(r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"x"}"#), error::INVALID_REQUEST);
        let fault = parse(r#"{"jsonrpc":"1.0","id":"a","method":"x"}"#).unwrap_err();
        assert_eq!((fault.code, fault.id.unwrap().as_json()), (error::INVALID_REQUEST, "\"a\""));
    }

    #[test]
    fn a_message_on_several_lines_becomes_one_and_keeps_its_strings() {
        let pretty = Bytes::from_static(b"{\r\n \"a\": \"x\\ny\"\n}");
        assert_eq!(one_line(&pretty).unwrap(), Bytes::from_static(b"{   \"a\": \"x\\ny\" }"));
        assert_eq!(one_line(&Bytes::from_static(b"{} {}")), None);
    }
}
