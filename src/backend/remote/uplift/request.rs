//! A modern request, read for what answering it will need, and written as the legacy request that it becomes. Pure.

use bytes::Bytes;

use crate::backend::remote::session::Introduction;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::Kind;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::Params;
use crate::mcp::object::Members;
use crate::mcp::object::Writer;
use crate::mcp::quoted;

/// The keys of `_meta` by which a modern request describes itself. Nothing else of `_meta` is ours.
const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
const INFO: &str = "io.modelcontextprotocol/clientInfo";
const LEVEL: &str = "io.modelcontextprotocol/logLevel";

const PROGRESS_TOKEN: &str = "progressToken";

/// Descriptions of a client that are larger than this are not passed on.
const DESCRIPTION_BYTES_MAX: usize = 4 * 1024;

/// RFC 5424 severities, ordered from the chattiest.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(in crate::backend::remote) enum Level {
    Debug,
    Info,
    Notice,
    Warning,
    Error,
    Critical,
    Alert,
    Emergency,
}

impl Level {
    const ALL: [Level; 8] = [
        Level::Debug,
        Level::Info,
        Level::Notice,
        Level::Warning,
        Level::Error,
        Level::Critical,
        Level::Alert,
        Level::Emergency,
    ];

    pub(in crate::backend::remote) fn as_str(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Notice => "notice",
            Level::Warning => "warning",
            Level::Error => "error",
            Level::Critical => "critical",
            Level::Alert => "alert",
            Level::Emergency => "emergency",
        }
    }

    pub(super) fn find(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.as_str() == name)
    }
}

/// What a client can be asked in the middle of a call, as it declares with each request: JSON texts.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Abilities {
    elicitation: Option<String>,
    roots: Option<String>,
    sampling: Option<String>,
    /// Elicitation by URL, which has to be declared by name; forms come with elicitation itself unless only URLs are named.
    url: bool,
    form: bool,
}

#[cfg(test)]
impl Abilities {
    pub(super) fn read_for_tests(capabilities: &str) -> Abilities {
        Abilities::read(capabilities)
    }
}

impl Abilities {
    fn read(capabilities: &str) -> Abilities {
        let Ok(members) = Members::read(capabilities.as_bytes()) else {
            return Abilities::default();
        };
        let object = |key: &str| {
            members
                .find(key)
                .filter(|text| text.starts_with('{') && text.len() <= DESCRIPTION_BYTES_MAX)
                .map(str::to_owned)
        };
        let elicitation = object("elicitation");
        let has = |key: &str| {
            let found = elicitation.as_ref().and_then(|text| Members::read(text.as_bytes()).ok()?.find(key));
            found.is_some_and(|value| value.starts_with('{'))
        };
        let url = has("url");
        let form = elicitation.is_some() && (has("form") || !url);
        Abilities { roots: object("roots"), sampling: object("sampling"), url, form, elicitation }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.elicitation.is_none() && self.roots.is_none() && self.sampling.is_none()
    }

    pub(super) fn url(&self) -> bool {
        self.url
    }

    /// May this request of the server be put to the client?
    pub(super) fn admit(&self, method: &str, params: Option<&str>) -> bool {
        match method {
            "elicitation/create" => {
                let mode = params.and_then(|params| Members::read(params.as_bytes()).ok()?.text("mode"));
                match mode.as_deref() {
                    Some("url") => self.url,
                    None | Some("form") => self.form,
                    Some(_) => false,
                }
            }
            "roots/list" => self.roots.is_some(),
            "sampling/createMessage" => self.sampling.is_some(),
            _ => false,
        }
    }

    /// `capabilities` of the legacy `initialize`; also names the set in the pool of sessions.
    pub(super) fn to_json(&self) -> String {
        let mut object = Writer::new();
        for (key, value) in [("elicitation", &self.elicitation), ("roots", &self.roots), ("sampling", &self.sampling)] {
            if let Some(value) = value {
                object.raw(key, value);
            }
        }
        object.finish()
    }
}

/// All of a client's request that its answer depends on.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) id: Id,
    pub(super) method: Method,
    /// JSON text of the client's progress token.
    pub(super) token: Option<Bytes>,
    /// The least level of log messages that the client wants; `None`: it wants none.
    pub(super) level: Option<Level>,
    pub(super) abilities: Abilities,
    /// JSON text of `clientInfo`.
    pub(super) info: Option<String>,
    /// `params` as the client wrote them.
    pub(super) params: Option<Bytes>,
    pub(super) responses: Option<Bytes>,
    pub(super) state: Option<Bytes>,
    /// Whose credential it came with, where callers have credentials of their own.
    pub(super) whose: Option<[u8; 32]>,
}

impl Asked {
    /// What makes its retry the same request.
    pub(super) fn digest(&self) -> [u8; 32] {
        digest(self.method, self.params.as_ref(), self.whose.as_ref())
    }

    /// # Errors
    /// What is wrong with the request, in words for its client.
    pub(super) fn read(message: &Message) -> Result<Asked, &'static str> {
        let (Kind::Request { id }, Some(method)) = (&message.kind, message.method) else {
            return Err("only requests can be answered");
        };
        let mut asked = Asked {
            id: id.clone(),
            method,
            token: message.params.progress_token.clone(),
            level: None,
            abilities: Abilities::default(),
            info: None,
            params: message.params.raw.clone(),
            responses: message.params.input_responses.clone(),
            state: message.params.request_state.clone(),
            whose: None,
        };
        let Some(raw) = &message.params.raw else {
            return Ok(asked);
        };
        let params = Members::read(raw)?;
        let Some(meta) = params.find("_meta") else {
            return Ok(asked);
        };
        let meta = Members::read(meta.as_bytes()).map_err(|_| "params._meta must be an object")?;
        asked.abilities = meta.find(CAPABILITIES).map(Abilities::read).unwrap_or_default();
        let info = meta.find(INFO).filter(|info| info.starts_with('{') && info.len() <= DESCRIPTION_BYTES_MAX);
        asked.info = info.map(str::to_owned);
        if meta.find(LEVEL).is_some() {
            let level = meta.text(LEVEL).and_then(|level| Level::find(&level));
            asked.level = Some(level.ok_or("params._meta[\"io.modelcontextprotocol/logLevel\"] is no log level")?);
        }
        Ok(asked)
    }

    pub(super) fn introduction(&self) -> Introduction {
        Introduction { info: self.info.clone(), capabilities: Some(self.abilities.to_json()) }
    }

    /// May the answer be `input_required`? SPEC: basic/patterns/mrtr: these three only.
    pub(super) fn may_ask_back(&self) -> bool {
        matches!(self.method, Method::ToolsCall | Method::PromptsGet | Method::ResourcesRead)
    }
}

/// The request as a legacy server knows it, under a number of ours, which is its progress token too if it has one.
///
/// # Errors
/// When its `params` cannot be rewritten.
pub(super) fn lower(message: &Message, number: u64) -> Result<Message, &'static str> {
    let params = match &message.params.raw {
        None => None,
        Some(raw) => Some(lower_params(raw, number)?),
    };
    let token = message.params.progress_token.as_ref().map(|_| Bytes::from(number.to_string()));
    Ok(Message {
        kind: Kind::Request { id: Id::number(number) },
        method: message.method,
        era: Era::Legacy,
        params: Params { raw: params, progress_token: token, ..Params::default() },
        outcome: None,
    })
}

fn lower_params(raw: &[u8], number: u64) -> Result<Bytes, &'static str> {
    let mut out = Writer::new();
    for (key, value) in Members::read(raw)?.iter() {
        match key {
            "_meta" => {
                let meta = lower_meta(value, number)?;
                if !meta.is_empty() {
                    out.raw(key, &meta.finish());
                }
            }
            // A modern client that sends `task` means nothing by it; a legacy server would answer by a task.
            "inputResponses" | "requestState" | "task" => {}
            _ => out.raw(key, value),
        }
    }
    Ok(out.finish().into())
}

fn lower_meta(meta: &str, number: u64) -> Result<Writer, &'static str> {
    let mut out = Writer::new();
    for (key, value) in Members::read(meta.as_bytes())?.iter() {
        match key {
            VERSION | CAPABILITIES | INFO | LEVEL => {}
            PROGRESS_TOKEN => out.raw(key, &number.to_string()),
            _ => out.raw(key, value),
        }
    }
    Ok(out)
}

/// What makes two requests the same one: its method and its params without what differs between a try and its retry, and
/// whose credential it came with. Key order and blanks do not matter.
fn digest(method: Method, params: Option<&Bytes>, whose: Option<&[u8; 32]>) -> [u8; 32] {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    hash.update(whose.map_or(&[], |whose| whose.as_slice()));
    hash.update(method.as_str().as_bytes());
    let params = params.and_then(|raw| serde_json::from_slice::<serde_json::Value>(raw).ok());
    if let Some(serde_json::Value::Object(mut members)) = params {
        for key in ["_meta", "inputResponses", "requestState"] {
            members.remove(key);
        }
        canonical(&serde_json::Value::Object(members), &mut hash);
    }
    let mut out = [0u8; 32];
    out.iter_mut().zip(hash.finish().as_ref()).for_each(|(to, from)| *to = *from);
    out
}

fn canonical(value: &serde_json::Value, hash: &mut ring::digest::Context) {
    match value {
        serde_json::Value::Object(members) => {
            let mut keys: Vec<&String> = members.keys().collect();
            keys.sort_unstable();
            hash.update(b"{");
            for key in keys {
                hash.update(quoted(key).as_bytes());
                if let Some(value) = members.get(key) {
                    canonical(value, hash);
                }
            }
            hash.update(b"}");
        }
        serde_json::Value::Array(items) => {
            hash.update(b"[");
            for item in items {
                canonical(item, hash);
                hash.update(b",");
            }
            hash.update(b"]");
        }
        leaf => hash.update(leaf.to_string().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(params: &str) -> Message {
        Message {
            kind: Kind::Request { id: Id::from_json("\"a\"").expect("an id") },
            method: Some(Method::ToolsCall),
            era: Era::Modern,
            params: Params {
                raw: Some(Bytes::copy_from_slice(params.as_bytes())),
                progress_token: params.contains("progressToken").then(|| Bytes::from_static(b"\"p\"")),
                ..Params::default()
            },
            outcome: None,
        }
    }

    #[test]
    fn the_modern_keys_go_and_everything_else_stays_as_it_was() {
        const META: &str = r#""io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"roots":{}},"io.modelcontextprotocol/clientInfo":{"name":"c","version":"1"},"io.modelcontextprotocol/logLevel":"info""#;
        for (params, want) in [
            (
                format!(r#"{{"name":"t","arguments":{{"x":1.0e2}},"_meta":{{{META}}}}}"#),
                r#"{"name":"t","arguments":{"x":1.0e2}}"#,
            ),
            (
                format!(
                    r#"{{"_meta":{{"traceparent":"00-1","progressToken":"p",{META},"org.example/k":[1, 2]}},"name":"t"}}"#
                ),
                r#"{"_meta":{"traceparent":"00-1","progressToken":7,"org.example/k":[1, 2]},"name":"t"}"#,
            ),
            (
                format!(r#"{{"name":"t","inputResponses":{{"k":{{}}}},"requestState":"s","_meta":{{{META}}}}}"#),
                r#"{"name":"t"}"#,
            ),
        ] {
            let lowered = lower(&message(&params), 7).expect("rewritten");
            let method = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":"#;
            assert_eq!(lowered.to_bytes(), format!("{method}{want}}}"));
            assert_eq!(lowered.era, Era::Legacy);
        }
    }

    #[test]
    fn a_client_is_asked_only_what_it_declares() {
        let abilities = |text: &str| Abilities::read(text);
        let url = Some(r#"{"mode":"url"}"#);
        for (declared, method, params, admitted) in [
            (r#"{}"#, "elicitation/create", None, false),
            (r#"{"elicitation":{}}"#, "elicitation/create", None, true),
            (r#"{"elicitation":{}}"#, "elicitation/create", url, false),
            (r#"{"elicitation":{"url":{}}}"#, "elicitation/create", url, true),
            (r#"{"elicitation":{"url":{}}}"#, "elicitation/create", None, false),
            (r#"{"elicitation":{"url":{},"form":{}}}"#, "elicitation/create", None, true),
            (r#"{"roots":{}}"#, "roots/list", None, true),
            (r#"{"sampling":null}"#, "sampling/createMessage", None, false),
            (r#"{"roots":{},"sampling":{},"elicitation":{}}"#, "tasks/list", None, false),
        ] {
            assert_eq!(abilities(declared).admit(method, params), admitted, "{declared} {method} {params:?}");
        }
        let all = abilities(r#"{"x":{},"sampling":{"tools":{}},"roots":{},"extensions":{"e":{}},"elicitation":{}}"#);
        assert_eq!(all.to_json(), r#"{"elicitation":{},"roots":{},"sampling":{"tools":{}}}"#);
    }

    #[test]
    fn a_log_level_that_does_not_exist_is_refused() {
        let with = |level: &str| {
            Asked::read(&message(&format!(r#"{{"_meta":{{"io.modelcontextprotocol/logLevel":{level}}}}}"#)))
                .map(|asked| asked.level)
        };
        assert_eq!(with("\"warning\""), Ok(Some(Level::Warning)));
        assert!(with("\"loud\"").is_err());
        assert!(with("3").is_err());
    }

    #[test]
    fn a_retry_is_the_same_request_and_another_one_is_not() {
        let of = |params: &str| digest(Method::ToolsCall, Some(&Bytes::copy_from_slice(params.as_bytes())), None);
        let first = of(r#"{"name":"t","arguments":{"a":1,"b":[2]},"_meta":{"x":1}}"#);
        assert_eq!(first, of(r#"{ "arguments":{"b":[2],"a":1},"name":"t","inputResponses":{},"requestState":"s"}"#));
        for other in [r#"{"name":"u","arguments":{"a":1,"b":[2]}}"#, r#"{"name":"t","arguments":{"a":1,"b":2}}"#, "{}"]
        {
            assert_ne!(first, of(other), "{other}");
        }
        assert_ne!(digest(Method::PromptsGet, None, None), digest(Method::ToolsCall, None, None));
        assert_ne!(digest(Method::PromptsGet, None, None), digest(Method::PromptsGet, None, Some(&[0; 32])));
    }
}
