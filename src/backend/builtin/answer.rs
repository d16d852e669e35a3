//! What a built-in backend says, as JSON-RPC messages of the modern era.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use super::Client;
use super::Contents;
use super::Failure;
use super::Prompt;
use super::Prompted;
use super::Trouble;
use super::table::Done;
use crate::backend::Answer;
use crate::backend::Content;
use crate::mcp::Id;
use crate::mcp::MODERN_VERSIONS;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::Reference;
use crate::mcp::error;
use crate::mcp::meta::SERVER_INFO;
use crate::mcp::quoted;

/// What is on offer changes with the configuration only; a client asks again after this.
const TTL_MS: u64 = 60_000;

/// Values of one completion (MCP: at most 100).
const VALUES_MAX: usize = 100;

/// Where a failed tool's facts are found.
const FAILURE: &str = "io.wardgate/failure";

/// An answer, before it has the id of its request.
pub(super) enum Said {
    /// A tool ran into trouble: a result with `isError`.
    Failed(Failure),
    Refused {
        status: u16,
        code: i64,
        message: String,
        locked_out: bool,
    },
    /// The JSON of a result.
    Result(String),
}

impl Said {
    pub(super) fn invalid(message: &str) -> Said {
        Said::Refused { status: 400, code: error::INVALID_PARAMS, message: message.to_owned(), locked_out: false }
    }

    pub(super) fn unknown(method: Option<Method>) -> Said {
        let message = format!("`{}` is not known here", method.map_or("a response", Method::as_str));
        Said::Refused { status: 404, code: error::METHOD_NOT_FOUND, message, locked_out: false }
    }

    /// For what is no tool, and has no result that could say so.
    pub(super) fn failed(failure: &Failure) -> Said {
        let locked_out = failure.trouble == Trouble::LockedOut;
        let (status, code) = match failure.trouble {
            Trouble::Arguments | Trouble::NotFound => (400, error::INVALID_PARAMS),
            _ => (200, error::UPSTREAM),
        };
        Said::Refused { status, code, message: failure.text(), locked_out }
    }

    /// The upstream did not take the credential.
    pub(super) fn is_locked_out(&self) -> bool {
        match self {
            Said::Failed(failure) => failure.trouble == Trouble::LockedOut,
            Said::Refused { locked_out, .. } => *locked_out,
            Said::Result(_) => false,
        }
    }

    pub(super) fn into_answer(self, id: &Id) -> Answer {
        let (status, member, value) = match self {
            Said::Result(result) => (200, "result", result),
            Said::Failed(failure) => (200, "result", failed(&failure)),
            Said::Refused { status, code, message, .. } => {
                (status, "error", format!(r#"{{"code":{code},"message":{}}}"#, quoted(&message)))
            }
        };
        let body = format!(r#"{{"jsonrpc":"2.0","id":{},"{member}":{value}}}"#, id.as_json());
        Answer { status, session: None, content: Content::Json(Bytes::from(body)) }
    }
}

fn failed(failure: &Failure) -> String {
    json!({
        "resultType": "complete",
        "content": [{ "type": "text", "text": failure.text() }],
        "isError": true,
        "_meta": { FAILURE: failure.facts() },
    })
    .to_string()
}

pub(super) fn done(done: &Done) -> Said {
    Said::Result(format!(
        r#"{{"resultType":"complete","content":[{{"type":"text","text":{}}}],"structuredContent":{},"isError":false}}"#,
        quoted(&done.text),
        done.structured
    ))
}

/// What cannot be written is empty; nothing of ours is.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "[]".to_owned())
}

pub(super) fn list(member: &str, entries: &str, public: bool) -> Said {
    let (ttl_ms, scope) = if public { (TTL_MS, "public") } else { (0, "private") };
    Said::Result(format!(r#"{{"resultType":"complete","{member}":{entries},"ttlMs":{ttl_ms},"cacheScope":"{scope}"}}"#))
}

pub(super) fn discovered<C: Client>(client: &C) -> Said {
    let mut capabilities = serde_json::Map::from_iter([("tools".to_owned(), json!({}))]);
    if client.has_resources() {
        capabilities.insert("resources".to_owned(), json!({ "subscribe": true }));
        capabilities.insert("completions".to_owned(), json!({}));
    }
    if !client.prompts().is_empty() {
        capabilities.insert("prompts".to_owned(), json!({}));
    }
    let mut result = json!({
        "resultType": "complete",
        "supportedVersions": MODERN_VERSIONS,
        "capabilities": capabilities,
        "ttlMs": TTL_MS,
        "cacheScope": "public",
        "_meta": { SERVER_INFO: { "name": "wardgate", "title": C::TITLE, "version": env!("CARGO_PKG_VERSION") } },
    });
    if let (Some(instructions), Some(members)) = (client.instructions(), result.as_object_mut()) {
        members.insert("instructions".to_owned(), instructions.into());
    }
    Said::Result(result.to_string())
}

pub(super) fn contents(uri: &str, contents: &Contents) -> Said {
    let result = json!({
        "resultType": "complete",
        "contents": [{ "uri": uri, "mimeType": contents.mime_type, "text": contents.text }],
        "ttlMs": 0,
        "cacheScope": "private",
    });
    Said::Result(result.to_string())
}

/// Fills a prompt in; arguments are texts, and the required ones must be there.
pub(super) fn prompted(
    prompts: &[Prompt],
    name: &str,
    arguments: Option<&Bytes>,
    fill: impl FnOnce(&str, &BTreeMap<String, String>) -> Result<Prompted, Failure>,
) -> Said {
    let Some(prompt) = prompts.iter().find(|prompt| prompt.name == name) else {
        return Said::invalid("there is no such prompt");
    };
    let given: Option<BTreeMap<String, String>> = match arguments {
        Some(text) => serde_json::from_slice(text).ok(),
        None => Some(BTreeMap::new()),
    };
    let Some(given) = given else { return Said::invalid("params.arguments must be texts by name") };
    if let Some(unknown) = given.keys().find(|name| !prompt.arguments.iter().any(|one| one.name == name.as_str())) {
        let shown: String = unknown.chars().take(64).collect();
        return Said::invalid(&format!("the prompt has no argument `{shown}`"));
    }
    if let Some(missing) = prompt.arguments.iter().find(|one| one.required && !given.contains_key(one.name)) {
        return Said::invalid(&format!("the prompt needs the argument `{}`", missing.name));
    }
    match fill(name, &given) {
        Ok(prompted) => Said::Result(
            json!({
                "resultType": "complete",
                "description": prompted.description,
                "messages": [{ "role": "user", "content": { "type": "text", "text": prompted.text } }],
                "_meta": prompted.meta,
            })
            .to_string(),
        ),
        Err(failure) => Said::failed(&failure),
    }
}

#[derive(Deserialize)]
struct Completing {
    argument: Argument,
}

#[derive(Deserialize)]
struct Argument {
    name: String,
    value: String,
}

/// What is to be completed: of what, which argument, and what was typed of it.
pub(super) fn asked_to_complete(message: &Message) -> Option<(&Reference, String, String)> {
    let of = message.params.reference.as_ref()?;
    let Completing { argument } = serde_json::from_slice(message.params.raw.as_ref()?).ok()?;
    Some((of, argument.name, argument.value))
}

pub(super) fn completed(mut values: Vec<String>) -> Said {
    let total = values.len();
    values.truncate(VALUES_MAX);
    let completion = json!({ "values": values, "total": total, "hasMore": total > VALUES_MAX });
    let result: Value = json!({ "resultType": "complete", "completion": completion });
    Said::Result(result.to_string())
}
