//! A modern server's answers and notifications in the legacy way. Pure.

use std::borrow::Cow;

use bytes::Bytes;

use super::session::Announced;
use crate::mcp::Id;
use crate::mcp::Method;
use crate::mcp::error;
use crate::mcp::meta::SERVER_INFO;
use crate::mcp::meta::SUBSCRIPTION_ID;
use crate::mcp::object::Object;
use crate::mcp::quoted;

/// Requests that one answer may ask of the client.
const ASKS_MAX: usize = 16;

/// The first version with every type of content block that there is. Versions are dates: they compare as text.
const KNOWS_ALL_BLOCKS: &str = "2025-06-18";

/// What a modern server said to a request.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Said {
    /// The answer as the legacy client gets it.
    Done { body: Bytes, error_code: Option<i64> },
    /// It wants to know something of the client first.
    Asks { asks: Vec<Ask>, state: Option<String> },
}

/// One of `inputRequests`.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Ask {
    /// The key its answer goes under.
    pub(super) key: String,
    pub(super) topic: Topic,
    /// As JSON, byte for byte.
    pub(super) params: Option<String>,
}

/// What a client can be asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Topic {
    Elicitation,
    Roots,
    Sampling,
}

impl Topic {
    const ALL: [Topic; 3] = [Topic::Elicitation, Topic::Roots, Topic::Sampling];

    pub(super) fn method(self) -> &'static str {
        match self {
            Topic::Elicitation => "elicitation/create",
            Topic::Roots => "roots/list",
            Topic::Sampling => "sampling/createMessage",
        }
    }

    /// The capability of clients that answer it.
    pub(super) fn capability(self) -> &'static str {
        match self {
            Topic::Elicitation => "elicitation",
            Topic::Roots => "roots",
            Topic::Sampling => "sampling",
        }
    }
}

/// Reads the answer to a request of this method; what goes to the client has its id and is fit for its version.
///
/// # Errors
/// What breaks the modern protocol.
pub(super) fn read(body: &[u8], id: &Id, method: Method, version: &str) -> Result<Said, &'static str> {
    let envelope = Object::read(body).ok_or("the answer is no object")?;
    if let Some(refusal) = envelope.object("error") {
        return Ok(refused(refusal, id, method));
    }
    let mut result = envelope.object("result").ok_or("the result is no object")?;
    match result.text("resultType").as_deref() {
        Some("input_required") => {
            // SPEC: 2026-07-28 mrtr: these three only.
            if !matches!(method, Method::ToolsCall | Method::PromptsGet | Method::ResourcesRead) {
                return Err("input is required where it may not be");
            }
            return asks(&result);
        }
        Some("complete") => {}
        None if result.get("resultType").is_none() => {}
        _ => return Err("a result of a type that nobody asked for"),
    }
    for name in ["resultType", "ttlMs", "cacheScope"] {
        result.remove(name);
    }
    without_meta(&mut result, SERVER_INFO);
    match method {
        Method::ToolsCall => {
            // SPEC: up to 2025-11-25 structured content is an object; the text says the same.
            if result.get("structuredContent").is_some_and(|content| !content.starts_with('{')) {
                result.remove("structuredContent");
            }
            if let Some(content) = result.get("content").and_then(|content| blocks(content, version)) {
                result.set("content", content);
            }
        }
        Method::PromptsGet => {
            if let Some(messages) = result.get("messages").and_then(|messages| spoken(messages, version)) {
                result.set("messages", messages);
            }
        }
        Method::ToolsList => {
            if let Some(tools) = result.get("tools").and_then(declared) {
                result.set("tools", tools);
            }
        }
        _ => {}
    }
    Ok(Said::Done { body: answer(id, &result.to_string()), error_code: None })
}

/// A whole answer with this result.
pub(super) fn answer(id: &Id, result: &str) -> Bytes {
    format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, id.as_json()).into()
}

/// A whole answer with an error of ours.
pub(super) fn failure(id: &Id, words: &str) -> Bytes {
    let error = format!(r#"{{"code":{},"message":{}}}"#, error::INTERNAL_ERROR, quoted(words));
    format!(r#"{{"jsonrpc":"2.0","id":{},"error":{error}}}"#, id.as_json()).into()
}

fn refused(mut refusal: Object<'_>, id: &Id, method: Method) -> Said {
    let code = refusal.get("code").and_then(|code| code.parse::<i64>().ok()).unwrap_or(error::INTERNAL_ERROR);
    let code = match code {
        error::INVALID_PARAMS if method == Method::ResourcesRead => error::LEGACY_RESOURCE_NOT_FOUND,
        error::MISSING_CLIENT_CAPABILITY => error::INVALID_PARAMS,
        error::HEADER_MISMATCH | error::UNSUPPORTED_PROTOCOL_VERSION => error::INVALID_REQUEST,
        other => other,
    };
    refusal.set("code", code.to_string());
    let body = format!(r#"{{"jsonrpc":"2.0","id":{},"error":{refusal}}}"#, id.as_json());
    Said::Done { body: body.into(), error_code: Some(code) }
}

fn asks(result: &Object<'_>) -> Result<Said, &'static str> {
    let requests = match result.get("inputRequests") {
        Some(raw) => Object::read(raw.as_bytes()).ok_or("inputRequests is no object")?,
        None => Object::default(),
    };
    let state = match result.get("requestState") {
        Some(state) if state.starts_with('"') => Some(state.to_owned()),
        Some(_) => return Err("requestState is no string"),
        None => None,
    };
    if requests.is_empty() && state.is_none() {
        return Err("input is required, but nothing is asked");
    }
    if requests.len() > ASKS_MAX {
        return Err("too much input is asked for at once");
    }
    let one = |(key, raw): (&str, &str)| {
        let request = Object::read(raw.as_bytes()).ok_or("an input request is no object")?;
        let method = request.text("method").ok_or("an input request has no method")?;
        let topic = Topic::ALL.into_iter().find(|topic| topic.method() == method);
        let topic = topic.ok_or("an input request that no client knows")?;
        Ok(Ask { key: key.to_owned(), topic, params: request.get("params").map(str::to_owned) })
    };
    Ok(Said::Asks { asks: requests.members().map(one).collect::<Result<_, &str>>()?, state })
}

/// Takes one key out of `_meta`, and an empty `_meta` with it.
fn without_meta(object: &mut Object<'_>, key: &str) {
    let Some(mut meta) = object.object("_meta") else { return };
    if meta.get(key).is_none() {
        return;
    }
    meta.remove(key);
    let left = (!meta.is_empty()).then(|| meta.to_string());
    match left {
        Some(left) => object.set("_meta", left),
        None => object.remove("_meta"),
    }
}

/// Content blocks, those that the version does not know said in words; `None` if it knows all.
fn blocks(content: &str, version: &str) -> Option<String> {
    if version >= KNOWS_ALL_BLOCKS {
        return None;
    }
    each(content, |block| older(block, version))
}

/// The messages of a prompt, likewise.
fn spoken(messages: &str, version: &str) -> Option<String> {
    if version >= KNOWS_ALL_BLOCKS {
        return None;
    }
    each(messages, |message| {
        let mut message = Object::read(message.as_bytes())?;
        let content = older(message.get("content")?, version)?;
        message.set("content", content);
        Some(message.to_string())
    })
}

/// A block that this version has no type for, as text.
fn older(block: &str, version: &str) -> Option<String> {
    let block = Object::read(block.as_bytes())?;
    let said = match block.text("type").as_deref() {
        Some("audio") if version < "2025-03-26" => {
            format!("[audio, {}: not known to this protocol version]", block.text("mimeType").unwrap_or_default())
        }
        Some("resource_link") => format!("[resource: {}]", block.text("uri").unwrap_or_default()),
        _ => return None,
    };
    Some(format!(r#"{{"type":"text","text":{}}}"#, quoted(&said)))
}

/// Tools as the legacy revisions declare them: with output schemas of objects only, and objects for the schemas of all
/// properties.
fn declared(tools: &str) -> Option<String> {
    each(tools, |tool| {
        let mut tool = Object::read(tool.as_bytes())?;
        let of_objects =
            tool.object("outputSchema").is_some_and(|schema| schema.text("type").as_deref() == Some("object"));
        let mut changed = tool.get("outputSchema").is_some() && !of_objects;
        if changed {
            tool.remove("outputSchema");
        }
        for name in ["inputSchema", "outputSchema"] {
            if let Some(schema) = tool.get(name).and_then(spelled_out) {
                tool.set(name, schema);
                changed = true;
            }
        }
        changed.then(|| tool.to_string())
    })
}

/// The schema with an object for each property whose schema is `true` or `false`; `None` if there is none.
fn spelled_out(schema: &str) -> Option<String> {
    let mut schema = Object::read(schema.as_bytes())?;
    let objects = {
        let properties = schema.object("properties")?;
        if !properties.members().any(|(_, one)| matches!(one, "true" | "false")) {
            return None;
        }
        let mut objects = Object::default();
        for (name, one) in properties.members() {
            let one = match one {
                "true" => "{}",
                "false" => r#"{"not":{}}"#,
                other => other,
            };
            objects.push(name.to_owned().into(), one.to_owned().into());
        }
        objects.to_string()
    };
    schema.set("properties", objects);
    Some(schema.to_string())
}

/// The array with those items replaced that `change` has a replacement for; `None` if there is none.
fn each(array: &str, change: impl Fn(&str) -> Option<String>) -> Option<String> {
    let items: Vec<&serde_json::value::RawValue> = serde_json::from_str(array).ok()?;
    let mut changed = false;
    let items: Vec<Cow<'_, str>> = items
        .into_iter()
        .map(|item| match change(item.get()) {
            Some(new) => {
                changed = true;
                new.into()
            }
            None => item.get().into(),
        })
        .collect();
    changed.then(|| format!("[{}]", items.join(",")))
}

/// A notification of a subscription, as the legacy client's GET stream carries it. `None`: not for it.
pub(super) fn news(body: &Bytes) -> Option<Bytes> {
    let mut envelope = Object::read(body)?;
    let method = envelope.text("method")?;
    if method == "notifications/subscriptions/acknowledged" {
        return None;
    }
    let params = {
        let mut params = envelope.object("params");
        if let Some(params) = &mut params {
            without_meta(params, SUBSCRIPTION_ID);
        }
        params.map(|params| params.to_string())
    };
    match params {
        Some(empty) if empty == "{}" => envelope.remove("params"),
        Some(params) => envelope.set("params", params),
        None => {}
    }
    Some(envelope.to_string().into())
}

/// The resources of an acknowledgement, if it names them; the outer `None` if it is none.
pub(super) fn acknowledged(body: &[u8]) -> Option<Option<Vec<String>>> {
    let envelope = Object::read(body)?;
    if envelope.text("method")? != "notifications/subscriptions/acknowledged" {
        return None;
    }
    let named = || {
        let params = envelope.object("params")?;
        let accepted = params.object("notifications")?;
        serde_json::from_str(accepted.get("resourceSubscriptions").unwrap_or("[]")).ok()
    };
    Some(named())
}

/// The result of `initialize` from that of `server/discover`.
///
/// # Errors
/// What breaks the protocol.
pub(super) fn initialized(body: &[u8], version: &str) -> Result<(String, Announced), &'static str> {
    const KNOWN: [&str; 6] = ["tools", "prompts", "resources", "logging", "completions", "experimental"];
    let envelope = Object::read(body).ok_or("the answer is no object")?;
    let result = envelope.object("result").ok_or("the result is no object")?;
    let mut capabilities = result.object("capabilities").ok_or("server/discover was answered without capabilities")?;
    capabilities.retain(|name| KNOWN.contains(&name));
    let changes = |name: &str| capabilities.object(name).is_some_and(|one| one.get("listChanged") == Some("true"));
    let announced = Announced {
        tools: changes("tools"),
        prompts: changes("prompts"),
        resources: changes("resources"),
        logging: capabilities.get("logging").is_some(),
    };
    let meta = result.object("_meta");
    let server = meta.as_ref().and_then(|meta| meta.get(SERVER_INFO)).filter(|server| server.starts_with('{'));
    let ours = || format!(r#"{{"name":"wardgate","version":"{}"}}"#, env!("CARGO_PKG_VERSION"));
    let mut out = Object::default();
    out.set("protocolVersion", quoted(version));
    out.set("capabilities", capabilities.to_string());
    out.set("serverInfo", server.map_or_else(ours, str::to_owned));
    if let Some(instructions) = result.get("instructions") {
        out.set("instructions", instructions);
    }
    Ok((out.to_string(), announced))
}

#[cfg(test)]
mod tests;
