//! A legacy server's messages, written as the modern ones that they become. Pure.

use bytes::Bytes;

use super::request::Asked;
use super::request::Level;
use crate::mcp::Id;
use crate::mcp::MODERN_VERSIONS;
use crate::mcp::Method;
use crate::mcp::error;
use crate::mcp::meta::SERVER_INFO;
use crate::mcp::meta::SUBSCRIPTION_ID;
use crate::mcp::object;
use crate::mcp::object::Members;
use crate::mcp::object::Writer;
use crate::mcp::quoted;

/// An answer in the modern era.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Raised {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

/// Which message of a legacy server it is.
#[derive(Debug)]
pub(super) enum Came<'a> {
    Notification { method: String, params: Option<&'a str> },
    Request { id: Id, method: String, params: Option<&'a str> },
    Result { id: Id, result: &'a str },
    Error { id: Option<Id>, error: &'a str },
}

/// # Errors
/// What is wrong with it, in words that hold nothing of its content.
pub(super) fn read(message: &[u8]) -> Result<Came<'_>, &'static str> {
    let members = Members::read(message)?;
    if members.text("jsonrpc").as_deref() != Some("2.0") {
        return Err("jsonrpc is not 2.0");
    }
    let id = match members.find("id").filter(|id| *id != "null") {
        None => None,
        Some(id) => Some(Id::from_json(id).ok_or("the id is neither string nor integer")?),
    };
    let method = members.text("method");
    match (method, id, members.find("result"), members.find("error")) {
        (Some(method), None, None, None) => Ok(Came::Notification { method, params: members.find("params") }),
        (Some(method), Some(id), None, None) => Ok(Came::Request { id, method, params: members.find("params") }),
        (None, Some(id), Some(result), None) => Ok(Came::Result { id, result }),
        (None, id, None, Some(error)) => Ok(Came::Error { id, error }),
        _ => Err("neither request, notification nor response"),
    }
}

/// SPEC: server/utilities/caching: the results that must carry hints.
fn is_cacheable(method: Method) -> bool {
    matches!(
        method,
        Method::ServerDiscover
            | Method::ToolsList
            | Method::PromptsList
            | Method::ResourcesList
            | Method::ResourcesTemplatesList
            | Method::ResourcesRead
    )
}

/// The result of a legacy server.
///
/// # Errors
/// When it is no object.
pub(super) fn result(asked: &Asked, result: &str, server_info: Option<&str>) -> Result<Raised, &'static str> {
    let mut out = Writer::new();
    let mut meta = Writer::new();
    for (key, value) in Members::read(result.as_bytes())?.iter() {
        match key {
            // A dual-era server may say these in the legacy era too; here they are ours to say.
            "resultType" | "ttlMs" | "cacheScope" => {}
            "_meta" => {
                for (key, value) in Members::read(value.as_bytes())?.iter() {
                    if key != SERVER_INFO {
                        meta.raw(key, value);
                    }
                }
            }
            _ => out.raw(key, value),
        }
    }
    Ok(Raised { status: 200, body: completed(asked, out, meta, server_info) })
}

fn completed(asked: &Asked, mut out: Writer, mut meta: Writer, server_info: Option<&str>) -> Bytes {
    out.text("resultType", "complete");
    if is_cacheable(asked.method) {
        out.raw("ttlMs", "0");
        out.text("cacheScope", "private");
    }
    if let Some(info) = server_info {
        meta.raw(SERVER_INFO, info);
    }
    if !meta.is_empty() {
        out.raw("_meta", &meta.finish());
    }
    object::response(asked.id.as_json(), "result", &out.finish())
}

/// The error of a legacy server. What only the legacy era knows becomes what says the same in the modern one.
///
/// # Errors
/// When it is no JSON-RPC error.
pub(super) fn error(asked: &Asked, error: &str) -> Result<Raised, &'static str> {
    let members = Members::read(error.as_bytes())?;
    let code: i64 = members.find("code").and_then(|code| code.parse().ok()).ok_or("an error without a code")?;
    let message = members.text("message").ok_or("an error without a message")?;
    let data = members.find("data");
    if code == error::LEGACY_URL_ELICITATION {
        return Ok(url_elicitation(asked, &message, data));
    }
    let (status, code) = match code {
        error::LEGACY_RESOURCE_NOT_FOUND => (200, error::INVALID_PARAMS),
        error::METHOD_NOT_FOUND => (404, error::METHOD_NOT_FOUND),
        // A server of both eras says this in either of them.
        error::MISSING_CLIENT_CAPABILITY if data.is_some() => (400, error::MISSING_CLIENT_CAPABILITY),
        // The other modern ones mean nothing in an answer to a legacy request.
        -32099..=-32000 => (200, error::INTERNAL_ERROR),
        code => (200, code),
    };
    let mut out = Writer::new();
    out.raw("code", &code.to_string());
    out.text("message", &message);
    if let Some(data) = data {
        out.raw("data", data);
    }
    Ok(Raised { status, body: object::response(asked.id.as_json(), "error", &out.finish()) })
}

/// "Ask the user to open these, then call again" is an `input_required` without state: the call was not carried out, and
/// the retry is a call of its own.
fn url_elicitation(asked: &Asked, message: &str, data: Option<&str>) -> Raised {
    let needs = data.and_then(|data| Members::read(data.as_bytes()).ok()?.find("elicitations"));
    let urls: Vec<&serde_json::value::RawValue> =
        needs.and_then(|list| serde_json::from_str(list).ok()).unwrap_or_default();
    if !asked.abilities.url() || !asked.may_ask_back() || urls.is_empty() {
        let data = r#"{"requiredCapabilities":{"elicitation":{"url":{}}}}"#;
        return failure(&asked.id, 400, error::MISSING_CLIENT_CAPABILITY, message, Some(data));
    }
    let mut requests = Writer::new();
    for (index, url) in urls.iter().enumerate() {
        let mut request = Writer::new();
        request.text("method", "elicitation/create");
        request.raw("params", url.get());
        requests.raw(&format!("url-{}", index + 1), &request.finish());
    }
    Raised { status: 200, body: input_required(&asked.id, &requests.finish(), None) }
}

/// The result by which the client is asked for something in the middle of its call.
pub(super) fn input_required(id: &Id, requests: &str, state: Option<&str>) -> Bytes {
    let mut out = Writer::new();
    out.text("resultType", "input_required");
    out.raw("inputRequests", requests);
    if let Some(state) = state {
        out.text("requestState", state);
    }
    object::response(id.as_json(), "result", &out.finish())
}

/// An error of ours.
pub(super) fn failure(id: &Id, status: u16, code: i64, message: &str, data: Option<&str>) -> Raised {
    let mut out = Writer::new();
    out.raw("code", &code.to_string());
    out.text("message", message);
    if let Some(data) = data {
        out.raw("data", data);
    }
    Raised { status, body: object::response(id.as_json(), "error", &out.finish()) }
}

/// What `server/discover` answers with.
pub(super) fn discovered(asked: &Asked, hello: &crate::backend::remote::session::Hello, listens: bool) -> Raised {
    use crate::backend::remote::session::Offer;
    let offer = |offer: Offer| {
        let mut out = Writer::new();
        if listens && offer.list_changed {
            out.raw("listChanged", "true");
        }
        if listens && offer.subscribe {
            out.raw("subscribe", "true");
        }
        out.finish()
    };
    let offers = &hello.offers;
    let mut capabilities = Writer::new();
    for (key, offered) in [
        ("tools", offers.tools.map(|tools| offer(Offer { subscribe: false, ..tools }))),
        ("prompts", offers.prompts.map(|prompts| offer(Offer { subscribe: false, ..prompts }))),
        ("resources", offers.resources.map(offer)),
        ("completions", offers.completions.map(|_| "{}".to_owned())),
        ("logging", offers.logging.map(|_| "{}".to_owned())),
    ] {
        if let Some(offered) = offered {
            capabilities.raw(key, &offered);
        }
    }
    let versions = MODERN_VERSIONS.map(quoted).join(",");
    let mut out = Writer::new();
    out.raw("supportedVersions", &format!("[{versions}]"));
    out.raw("capabilities", &capabilities.finish());
    if let Some(instructions) = &hello.instructions {
        out.raw("instructions", instructions);
    }
    Raised { status: 200, body: completed(asked, out, Writer::new(), hello.server_info.as_deref()) }
}

/// A notification on its way to a call's client, or `None` if it is not about this call or not wanted.
pub(super) fn notification(asked: &Asked, number: u64, method: &str, params: Option<&str>) -> Option<Bytes> {
    let params = Members::read(params?.as_bytes()).ok()?;
    match method {
        "notifications/progress" => {
            let token = asked.token.as_ref().and_then(|token| std::str::from_utf8(token).ok())?;
            if params.find("progressToken")? != number.to_string() {
                return None;
            }
            let mut out = Writer::new();
            for (key, value) in params.iter() {
                out.raw(key, if key == "progressToken" { token } else { value });
            }
            Some(object::notification(method, &out.finish()))
        }
        "notifications/message" => {
            let level = params.text("level").and_then(|level| Level::find(&level))?;
            if asked.level.is_none_or(|wanted| level < wanted) {
                return None;
            }
            let mut out = Writer::new();
            params.iter().for_each(|(key, value)| out.raw(key, value));
            Some(object::notification(method, &out.finish()))
        }
        _ => None,
    }
}

/// A change notification as part of a subscription.
pub(super) fn subscribed(id: &Id, method: &str, params: Option<&str>) -> Result<Bytes, &'static str> {
    let mut out = Writer::new();
    let mut meta = Writer::new();
    if let Some(params) = params {
        for (key, value) in Members::read(params.as_bytes())?.iter() {
            if key == "_meta" {
                for (key, value) in Members::read(value.as_bytes())?.iter() {
                    if key != SUBSCRIPTION_ID {
                        meta.raw(key, value);
                    }
                }
            } else {
                out.raw(key, value);
            }
        }
    }
    meta.raw(SUBSCRIPTION_ID, id.as_json());
    out.raw("_meta", &meta.finish());
    Ok(object::notification(method, &out.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::remote::session::Hello;
    use crate::backend::remote::uplift::request::Abilities;

    fn asked(method: Method) -> Asked {
        Asked {
            id: Id::from_json("\"a\"").expect("an id"),
            method,
            token: Some(Bytes::from_static(b"\"p\"")),
            level: None,
            abilities: Abilities::default(),
            info: None,
            params: None,
            responses: None,
            state: None,
            whose: None,
        }
    }

    fn able(method: Method, capabilities: &str) -> Asked {
        Asked { abilities: Abilities::read_for_tests(capabilities), ..asked(method) }
    }

    #[test]
    fn a_result_says_its_type_its_hints_and_its_server() {
        let info = r#"{"name":"s","version":"1"}"#;
        for (method, given, info, want) in [
            (
                Method::ToolsCall,
                r#"{"content":[],"structuredContent":{"x":1.50},"isError":false}"#,
                None,
                r#"{"content":[],"structuredContent":{"x":1.50},"isError":false,"resultType":"complete"}"#,
            ),
            (
                Method::ToolsList,
                r#"{"tools":[{"name":"t","x":1e2}],"nextCursor":""}"#,
                Some(info),
                r#"{"tools":[{"name":"t","x":1e2}],"nextCursor":"","resultType":"complete","ttlMs":0,"cacheScope":"private","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"s","version":"1"}}}"#,
            ),
            (
                Method::ResourcesRead,
                r#"{"_meta":{"k":[1]},"contents":[],"ttlMs":60000,"cacheScope":"public","resultType":"x"}"#,
                Some(info),
                r#"{"contents":[],"resultType":"complete","ttlMs":0,"cacheScope":"private","_meta":{"k":[1],"io.modelcontextprotocol/serverInfo":{"name":"s","version":"1"}}}"#,
            ),
            (
                Method::CompletionComplete,
                r#"{"completion":{"values":[]}}"#,
                None,
                r#"{"completion":{"values":[]},"resultType":"complete"}"#,
            ),
        ] {
            let raised = result(&asked(method), given, info).expect("an object");
            assert_eq!(raised.body, format!(r#"{{"jsonrpc":"2.0","id":"a","result":{want}}}"#));
            assert_eq!(raised.status, 200);
        }
        for method in [Method::PromptsList, Method::ResourcesList, Method::ResourcesTemplatesList] {
            let raised = result(&asked(method), "{}", None).expect("an object");
            assert!(
                String::from_utf8_lossy(&raised.body).contains(r#""ttlMs":0,"cacheScope":"private""#),
                "{method:?}"
            );
        }
        assert!(result(&asked(Method::ToolsCall), "[]", None).is_err());
    }

    #[test]
    fn no_code_of_the_legacy_era_reaches_a_modern_client() {
        for (given, status, want) in [
            (-32002, 200, -32602),
            (-32601, 404, -32601),
            (-32602, 200, -32602),
            (-32603, 200, -32603),
            (-32000, 200, -32603),
            (-32001, 200, -32603),
            (-32022, 200, -32603),
            (-32021, 400, -32021),
            (-1, 200, -1),
        ] {
            let raised = error(
                &asked(Method::ResourcesRead),
                &format!(r#"{{"data":{{"u":1.0}},"code":{given},"message":"m"}}"#),
            );
            let body =
                format!(r#"{{"jsonrpc":"2.0","id":"a","error":{{"code":{want},"message":"m","data":{{"u":1.0}}}}}}"#);
            assert_eq!(raised, Ok(Raised { status, body: body.into() }), "{given}");
        }
        assert!(error(&asked(Method::ToolsCall), r#"{"code":"x","message":"m"}"#).is_err());
    }

    #[test]
    fn a_url_to_be_opened_first_is_asked_of_those_who_can_open_it() {
        let needed = r#"{"code":-32042,"message":"m","data":{"elicitations":[{"mode":"url","url":"https://x","message":"go","elicitationId":"e"}]}}"#;
        let raised = error(&able(Method::ToolsCall, r#"{"elicitation":{"url":{}}}"#), needed).expect("mapped");
        let want = r#"{"jsonrpc":"2.0","id":"a","result":{"resultType":"input_required","inputRequests":{"url-1":{"method":"elicitation/create","params":{"mode":"url","url":"https://x","message":"go","elicitationId":"e"}}}}}"#;
        assert_eq!((raised.status, &raised.body[..]), (200, want.as_bytes()));
        let raised = error(&able(Method::ToolsCall, r#"{"elicitation":{}}"#), needed).expect("mapped");
        let want = r#"{"jsonrpc":"2.0","id":"a","error":{"code":-32021,"message":"m","data":{"requiredCapabilities":{"elicitation":{"url":{}}}}}}"#;
        assert_eq!((raised.status, &raised.body[..]), (400, want.as_bytes()));
    }

    #[test]
    fn progress_gets_the_clients_token_back_and_others_progress_is_dropped() {
        let ours = r#"{"progressToken":7,"progress":0.50,"total":1}"#;
        let passed = notification(&asked(Method::ToolsCall), 7, "notifications/progress", Some(ours));
        let want = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"p","progress":0.50,"total":1}}"#;
        assert_eq!(passed.as_deref(), Some(want.as_bytes()));
        for (number, params) in [(8, ours), (7, r#"{"progressToken":"7","progress":1}"#)] {
            assert_eq!(notification(&asked(Method::ToolsCall), number, "notifications/progress", Some(params)), None);
        }
        let silent = Asked { token: None, ..asked(Method::ToolsCall) };
        assert_eq!(notification(&silent, 7, "notifications/progress", Some(ours)), None);
    }

    #[test]
    fn log_messages_go_to_those_who_want_them_from_the_level_they_want() {
        let told = |wanted: Option<Level>, level: &str| {
            let asked = Asked { level: wanted, ..asked(Method::ToolsCall) };
            notification(&asked, 7, "notifications/message", Some(&format!(r#"{{"level":"{level}","data":1.0}}"#)))
                .is_some()
        };
        assert!(
            told(Some(Level::Info), "info") && told(Some(Level::Info), "error") && told(Some(Level::Debug), "debug")
        );
        assert!(!told(Some(Level::Info), "debug") && !told(None, "emergency") && !told(Some(Level::Debug), "loud"));
        assert_eq!(notification(&asked(Method::ToolsCall), 7, "notifications/tools/list_changed", Some("{}")), None);
    }

    #[test]
    fn discovery_offers_what_can_be_kept() {
        let hello = |offers: &str| Hello {
            offers: serde_json::from_str(offers).expect("offers"),
            server_info: Some(r#"{"name":"s"}"#.into()),
            instructions: Some("\"be nice\"".into()),
        };
        let all = hello(
            r#"{"tools":{"listChanged":true},"prompts":{},"resources":{"subscribe":true,"listChanged":true},"completions":{},"logging":{},"tasks":{"list":{}},"experimental":{"x":{}}}"#,
        );
        let body = |hello: &Hello, listens| {
            let raised = discovered(&asked(Method::ServerDiscover), hello, listens);
            String::from_utf8(raised.body.to_vec()).expect("text")
        };
        let want = |capabilities: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","id":"a","result":{{"supportedVersions":["2026-07-28"],"capabilities":{capabilities},"instructions":"be nice","resultType":"complete","ttlMs":0,"cacheScope":"private","_meta":{{"io.modelcontextprotocol/serverInfo":{{"name":"s"}}}}}}}}"#
            )
        };
        assert_eq!(
            body(&all, true),
            want(
                r#"{"tools":{"listChanged":true},"prompts":{},"resources":{"listChanged":true,"subscribe":true},"completions":{},"logging":{}}"#
            )
        );
        assert_eq!(
            body(&all, false),
            want(r#"{"tools":{},"prompts":{},"resources":{},"completions":{},"logging":{}}"#)
        );
        assert_eq!(body(&hello("{}"), true), want("{}"));
    }

    #[test]
    fn a_change_names_the_subscription_in_the_clients_type() {
        let id = Id::from_json("0").expect("an id");
        assert_eq!(
            subscribed(&id, "notifications/tools/list_changed", None).as_deref(),
            Ok(&br#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":0}}}"#[..])
        );
        assert_eq!(
            subscribed(&id, "notifications/resources/updated", Some(r#"{"uri":"a://b","_meta":{"k":1}}"#)).as_deref(),
            Ok(&br#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"a://b","_meta":{"k":1,"io.modelcontextprotocol/subscriptionId":0}}}"#[..])
        );
    }
}
