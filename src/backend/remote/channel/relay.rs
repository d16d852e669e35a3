//! Messages on a shared channel: ids and progress tokens replaced by numbers of ours and back. Pure.
//!
//! Clients count their ids from 0 or 1, all of them. Whoever shares a channel with others must not get their answers;
//! so every request travels under a number that no other has. Everything else stays byte for byte.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::mcp::Message;

/// `_meta` key by which notifications of a subscription name the request they belong to (MCP 2026-07-28).
use crate::mcp::meta::SUBSCRIPTION_ID;

/// A client's message as one line; a request gets `number` as its id and, if it has one, as its progress token.
pub(super) fn outgoing(message: &Message, number: Option<u64>) -> Bytes {
    let mut params = message.params.raw.clone();
    if let (Some(number), Some(raw)) = (number, &params) {
        params = token_range(raw).map(|token| splice(raw, token, &number.to_string())).or(params);
    }
    write(message, number, params)
}

/// A client's `notifications/cancelled`, naming the request by our number.
pub(super) fn cancellation(message: &Message, number: u64) -> Bytes {
    let params = message.params.raw.as_ref().and_then(|raw| {
        let wire: ParamsWire<'_> = serde_json::from_slice(raw).ok()?;
        Some(splice(raw, range_of(raw, wire.request_id?), &number.to_string()))
    });
    write(message, None, params)
}

/// The request that a client's `notifications/cancelled` names, as JSON text.
pub(super) fn cancelled_id(message: &Message) -> Option<String> {
    let wire: ParamsWire<'_> = serde_json::from_slice(message.params.raw.as_ref()?).ok()?;
    Some(wire.request_id?.get().to_owned())
}

/// Our own word that a modern request is not waited for any more.
pub(super) fn give_up(number: u64) -> Bytes {
    let method = "notifications/cancelled";
    format!("{{\"jsonrpc\":\"2.0\",\"method\":\"{method}\",\"params\":{{\"requestId\":{number},\"reason\":\"the caller left\"}}}}\n").into()
}

/// The answer to a request of the server that nobody can be asked.
pub(super) fn refusal(id: &str) -> Bytes {
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{{\"code\":-32601,\"message\":\"no client can be asked this\"}}}}\n").into()
}

/// A result with nothing in it.
pub(super) fn nothing(id: &str) -> Bytes {
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{}}}}\n").into()
}

/// Our own word that nobody listens to a resource any more.
pub(super) fn unsubscribe(number: u64, uri: &str) -> Bytes {
    let uri = serde_json::Value::from(uri);
    let method = "resources/unsubscribe";
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{number},\"method\":\"{method}\",\"params\":{{\"uri\":{uri}}}}}\n").into()
}

/// An answer with the id of another request in place of the number it has.
pub(super) fn readdressed(answer: &Bytes, id: &str) -> Option<Bytes> {
    match incoming(answer) {
        Ok(Came::Belonging { place, kind: Belonging::Response, .. }) => Some(splice(answer, place, id)),
        _ => None,
    }
}

/// The names of the client's capabilities in `initialize`.
pub(super) fn capabilities(message: &Message) -> Vec<String> {
    declared(message).map(|declared| declared.into_keys().map(Cow::into_owned).collect()).unwrap_or_default()
}

/// What the client of `initialize` can be asked: as many bits as kinds of questions.
pub(in crate::backend::remote) fn abilities(message: &Message) -> u8 {
    let Some(declared) = declared(message) else { return 0 };
    let url = |raw: &RawValue| {
        serde_json::from_str::<BTreeMap<Cow<'_, str>, IgnoredAny>>(raw.get())
            .is_ok_and(|modes| modes.contains_key("url"))
    };
    let elicitation = declared.get("elicitation");
    [
        declared.contains_key("roots"),
        declared.contains_key("sampling"),
        elicitation.is_some(),
        elicitation.is_some_and(|raw| url(raw)),
    ]
    .into_iter()
    .fold(0, |bits, can| bits << 1 | u8::from(can))
}

fn declared(message: &Message) -> Option<BTreeMap<Cow<'_, str>, &RawValue>> {
    #[derive(Deserialize)]
    struct Hello<'a> {
        #[serde(borrow)]
        capabilities: BTreeMap<Cow<'a, str>, &'a RawValue>,
    }
    serde_json::from_slice::<Hello<'_>>(message.params.raw.as_ref()?).ok().map(|hello| hello.capabilities)
}

/// The progress token of a client's `notifications/progress`, as JSON text.
pub(super) fn progress_token(message: &Message) -> Option<String> {
    let wire: ParamsWire<'_> = serde_json::from_slice(message.params.raw.as_ref()?).ok()?;
    Some(wire.progress_token?.get().to_owned())
}

fn write(message: &Message, number: Option<u64>, params: Option<Bytes>) -> Bytes {
    let mut out = Vec::with_capacity(params.as_ref().map_or(0, Bytes::len) + 128);
    out.extend_from_slice(b"{\"jsonrpc\":\"2.0\"");
    let number = number.map(|number| number.to_string());
    if let Some(id) = number.as_deref().or_else(|| message.id().map(crate::mcp::Id::as_json)) {
        out.extend_from_slice(b",\"id\":");
        out.extend_from_slice(id.as_bytes());
    }
    if let Some(method) = message.method {
        out.extend_from_slice(b",\"method\":\"");
        out.extend_from_slice(method.as_str().as_bytes());
        out.push(b'"');
    }
    if let Some(params) = params {
        out.extend_from_slice(b",\"params\":");
        out.extend_from_slice(&params);
    }
    if let Some(outcome) = &message.outcome {
        out.push(b',');
        out.extend_from_slice(outcome);
    }
    out.push(b'}');
    // In JSON a raw line end is always a blank between tokens; on this wire it would end the message.
    out.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
    out.push(b'\n');
    out.into()
}

/// What came from the server.
#[derive(Debug)]
pub(super) enum Came {
    /// Belongs to the request `number`: put the request's own text at `place`.
    Belonging { number: u64, place: Range<usize>, kind: Belonging },
    /// Belongs to no request that can be named.
    Notification {
        method: String,
        /// The `uri` it is about.
        uri: Option<String>,
        /// The request of the server that it takes back, as JSON text.
        request: Option<String>,
    },
    /// The server asks; `id` is its own, as JSON text, and so is the token for progress.
    Request { id: String, method: String, token: Option<String> },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Belonging {
    Progress,
    Response,
    Subscription,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    jsonrpc: Cow<'a, str>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ParamsWire<'a> {
    #[serde(borrow)]
    progress_token: Option<&'a RawValue>,
    #[serde(borrow)]
    request_id: Option<&'a RawValue>,
    #[serde(borrow)]
    uri: Option<&'a RawValue>,
    #[serde(borrow, rename = "_meta")]
    meta: Option<MetaWire<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetaWire<'a> {
    #[serde(borrow)]
    progress_token: Option<&'a RawValue>,
    #[serde(borrow, rename = "io.modelcontextprotocol/subscriptionId")]
    subscription: Option<&'a RawValue>,
}

/// Reads one message of the server.
///
/// # Errors
/// When it is not one JSON-RPC message; the words hold nothing of it.
pub(super) fn incoming(line: &Bytes) -> Result<Came, &'static str> {
    let wire: Wire<'_> = serde_json::from_slice(line).map_err(|_| "not a JSON-RPC message")?;
    if wire.jsonrpc != "2.0" {
        return Err("not JSON-RPC 2.0");
    }
    match (wire.method, wire.id) {
        (Some(method), Some(id)) => {
            // The client reads the params; only the token matters here.
            let params = wire.params.and_then(|raw| serde_json::from_str::<ParamsWire<'_>>(raw.get()).ok());
            let token = params.and_then(|params| params.meta?.progress_token).map(|token| token.get().to_owned());
            Ok(Came::Request { id: id.get().to_owned(), method: method.into_owned(), token })
        }
        (Some(method), None) => {
            let params: ParamsWire<'_> = match wire.params {
                Some(raw) => serde_json::from_str(raw.get()).map_err(|_| "a notification with malformed params")?,
                None => ParamsWire::default(),
            };
            let (raw, kind) =
                match (method.as_ref(), params.progress_token, params.meta.and_then(|meta| meta.subscription)) {
                    ("notifications/progress", Some(token), _) => (token, Belonging::Progress),
                    (_, _, Some(subscription)) => (subscription, Belonging::Subscription),
                    _ => {
                        let uri = params.uri.and_then(|raw| serde_json::from_str(raw.get()).ok());
                        let request = params.request_id.map(|raw| raw.get().to_owned());
                        return Ok(Came::Notification { method: method.into_owned(), uri, request });
                    }
                };
            let number = number(raw).ok_or("a notification for no request of ours")?;
            Ok(Came::Belonging { number, place: range_of(line, raw), kind })
        }
        (None, Some(id)) if wire.result.is_some() != wire.error.is_some() => {
            let number = number(id).ok_or("a response to no request of ours")?;
            Ok(Came::Belonging { number, place: range_of(line, id), kind: Belonging::Response })
        }
        (None, _) => Err("neither request, notification nor response"),
    }
}

/// Where the final answer of a subscription repeats the request's number.
pub(super) fn subscription_in_result(line: &Bytes, number: u64) -> Option<Range<usize>> {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        #[serde(borrow)]
        result: ResultWire<'a>,
    }
    #[derive(Deserialize)]
    struct ResultWire<'a> {
        #[serde(borrow, rename = "_meta")]
        meta: MetaWire<'a>,
    }
    if !line.windows(SUBSCRIPTION_ID.len()).any(|window| window == SUBSCRIPTION_ID.as_bytes()) {
        return None;
    }
    let envelope: Envelope<'_> = serde_json::from_slice(line).ok()?;
    let raw = envelope.result.meta.subscription?;
    (self::number(raw) == Some(number)).then(|| range_of(line, raw))
}

fn number(raw: &RawValue) -> Option<u64> {
    raw.get().parse().ok()
}

fn token_range(params: &Bytes) -> Option<Range<usize>> {
    let wire: ParamsWire<'_> = serde_json::from_slice(params).ok()?;
    Some(range_of(params, wire.meta?.progress_token?))
}

/// Where a piece that serde_json borrowed from `whole` stands in it.
fn range_of(whole: &Bytes, piece: &RawValue) -> Range<usize> {
    let start = piece.get().as_ptr().addr().saturating_sub(whole.as_ptr().addr());
    start..start + piece.get().len()
}

/// `whole` with the bytes at `place` replaced.
pub(super) fn splice(whole: &Bytes, place: Range<usize>, text: &str) -> Bytes {
    let mut out = Vec::with_capacity(whole.len() + text.len());
    out.extend_from_slice(whole.get(..place.start).unwrap_or_default());
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(whole.get(place.end..).unwrap_or_default());
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::Era;
    use crate::mcp::Id;
    use crate::mcp::Kind;
    use crate::mcp::Method;
    use crate::mcp::Params;

    fn request(id: &str, params: &str) -> Message {
        Message {
            kind: Kind::Request { id: Id::from_json(id).expect("id") },
            method: Some(Method::ToolsCall),
            era: Era::Modern,
            params: Params { raw: Some(Bytes::copy_from_slice(params.as_bytes())), ..Params::default() },
            outcome: None,
        }
    }

    #[test]
    fn a_request_travels_under_our_number_on_one_line() {
        let message = request("\"a\"", "{\n\"_meta\": {\"progressToken\" : \"t\"},\r\n\"x\":1.0e2}");
        let line = outgoing(&message, Some(42));
        let want = "{\"jsonrpc\":\"2.0\",\"id\":42,\"method\":\"tools/call\",\"params\":{ \"_meta\": {\"progressToken\" : 42},  \"x\":1.0e2}}\n";
        assert_eq!(line, want);
    }

    #[test]
    fn what_comes_back_gets_its_own_text_and_nothing_else_changes() {
        for (line, kind, want) in [
            (
                r#"{"result":{"id":7,"x":1.50},"jsonrpc":"2.0","id": 7}"#,
                Belonging::Response,
                r#"{"result":{"id":7,"x":1.50},"jsonrpc":"2.0","id": "a"}"#,
            ),
            (
                r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":7,"progressToken":7}}"#,
                Belonging::Progress,
                r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":7,"progressToken":"a"}}"#,
            ),
            (
                r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":7}}}"#,
                Belonging::Subscription,
                r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"a"}}}"#,
            ),
        ] {
            let line = Bytes::copy_from_slice(line.as_bytes());
            let Ok(Came::Belonging { number: 7, place, kind: found }) = incoming(&line) else {
                panic!("{line:?}");
            };
            assert_eq!(found, kind);
            assert_eq!(splice(&line, place, "\"a\""), want);
        }
    }

    #[test]
    fn a_subscription_ends_with_the_clients_id() {
        let line = Bytes::from_static(br#"{"jsonrpc":"2.0","id":9,"result":{"resultType":"complete","_meta":{"io.modelcontextprotocol/subscriptionId":9}}}"#);
        let place = subscription_in_result(&line, 9).expect("found");
        assert!(splice(&line, place, "\"s\"").ends_with(br#""io.modelcontextprotocol/subscriptionId":"s"}}}"#));
    }

    #[test]
    fn what_is_not_one_message_is_refused() {
        for bad in [
            "hello",
            "[]",
            "{}",
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","id":"1","result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"id":2,"result":{}}"#,
            r#"{"jsonrpc":"1.0","id":1,"result":{}}"#,
        ] {
            assert!(incoming(&Bytes::copy_from_slice(bad.as_bytes())).is_err(), "{bad}");
        }
        assert!(
            matches!(incoming(&Bytes::from_static(br#"{"jsonrpc":"2.0","id":"s1","method":"roots/list"}"#)), Ok(Came::Request { id, method, token: None }) if id == "\"s1\"" && method == "roots/list")
        );
    }

    #[test]
    fn a_cancellation_names_our_number() {
        let mut message = request("1", r#"{"requestId":"a","reason":"r"}"#);
        message.kind = Kind::Notification;
        message.method = Some(Method::NotificationsCancelled);
        assert_eq!(cancelled_id(&message).as_deref(), Some("\"a\""));
        assert_eq!(
            cancellation(&message, 5),
            "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/cancelled\",\"params\":{\"requestId\":5,\"reason\":\"r\"}}\n"
        );
    }
}
