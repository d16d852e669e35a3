//! `Message`: one parsed and checked JSON-RPC message of a client, and why one is refused.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Era;
use super::Id;
use super::headers;
use super::jsonrpc;
use super::jsonrpc::Judged;
use super::jsonrpc::Spelling;
use crate::exchange::Request;

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    Notification,
    Request {
        id: Id,
    },
    /// A client's answer to a server's request (legacy era only). Its body goes on as it is.
    Response {
        id: Id,
    },
}

/// Every method the protocol defines, of both eras. Anything else is refused.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Method {
    CompletionComplete,
    Initialize,
    LoggingSetLevel,
    NotificationsCancelled,
    NotificationsElicitationComplete,
    NotificationsInitialized,
    NotificationsProgress,
    NotificationsRootsListChanged,
    NotificationsTasksStatus,
    Ping,
    PromptsGet,
    PromptsList,
    ResourcesList,
    ResourcesRead,
    ResourcesSubscribe,
    ResourcesTemplatesList,
    ResourcesUnsubscribe,
    ServerDiscover,
    SubscriptionsListen,
    TasksCancel,
    TasksGet,
    TasksList,
    TasksResult,
    TasksUpdate,
    ToolsCall,
    ToolsList,
}

impl Method {
    pub const ALL: [Method; 26] = [
        Method::CompletionComplete,
        Method::Initialize,
        Method::LoggingSetLevel,
        Method::NotificationsCancelled,
        Method::NotificationsElicitationComplete,
        Method::NotificationsInitialized,
        Method::NotificationsProgress,
        Method::NotificationsRootsListChanged,
        Method::NotificationsTasksStatus,
        Method::Ping,
        Method::PromptsGet,
        Method::PromptsList,
        Method::ResourcesList,
        Method::ResourcesRead,
        Method::ResourcesSubscribe,
        Method::ResourcesTemplatesList,
        Method::ResourcesUnsubscribe,
        Method::ServerDiscover,
        Method::SubscriptionsListen,
        Method::TasksCancel,
        Method::TasksGet,
        Method::TasksList,
        Method::TasksResult,
        Method::TasksUpdate,
        Method::ToolsCall,
        Method::ToolsList,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Method::CompletionComplete => "completion/complete",
            Method::Initialize => "initialize",
            Method::LoggingSetLevel => "logging/setLevel",
            Method::NotificationsCancelled => "notifications/cancelled",
            Method::NotificationsElicitationComplete => "notifications/elicitation/complete",
            Method::NotificationsInitialized => "notifications/initialized",
            Method::NotificationsProgress => "notifications/progress",
            Method::NotificationsRootsListChanged => "notifications/roots/list_changed",
            Method::NotificationsTasksStatus => "notifications/tasks/status",
            Method::Ping => "ping",
            Method::PromptsGet => "prompts/get",
            Method::PromptsList => "prompts/list",
            Method::ResourcesList => "resources/list",
            Method::ResourcesRead => "resources/read",
            Method::ResourcesSubscribe => "resources/subscribe",
            Method::ResourcesTemplatesList => "resources/templates/list",
            Method::ResourcesUnsubscribe => "resources/unsubscribe",
            Method::ServerDiscover => "server/discover",
            Method::SubscriptionsListen => "subscriptions/listen",
            Method::TasksCancel => "tasks/cancel",
            Method::TasksGet => "tasks/get",
            Method::TasksList => "tasks/list",
            Method::TasksResult => "tasks/result",
            Method::TasksUpdate => "tasks/update",
            Method::ToolsCall => "tools/call",
            Method::ToolsList => "tools/list",
        }
    }

    pub fn find(name: &str) -> Option<Method> {
        Method::ALL.into_iter().find(|method| method.as_str() == name)
    }

    /// Is the method part of this era? (MCP 2026-07-28 removed the handshake, sessions and what belongs to them.)
    pub fn belongs_to(self, era: Era) -> bool {
        match self {
            Method::CompletionComplete
            | Method::PromptsGet
            | Method::PromptsList
            | Method::ResourcesList
            | Method::ResourcesRead
            | Method::ResourcesTemplatesList
            | Method::TasksCancel
            | Method::TasksGet
            | Method::ToolsCall
            | Method::ToolsList => true,
            Method::ServerDiscover | Method::SubscriptionsListen | Method::TasksUpdate => era == Era::Modern,
            Method::Initialize
            | Method::LoggingSetLevel
            | Method::NotificationsCancelled
            | Method::NotificationsElicitationComplete
            | Method::NotificationsInitialized
            | Method::NotificationsProgress
            | Method::NotificationsRootsListChanged
            | Method::NotificationsTasksStatus
            | Method::Ping
            | Method::ResourcesSubscribe
            | Method::ResourcesUnsubscribe
            | Method::TasksList
            | Method::TasksResult => era == Era::Legacy,
        }
    }

    pub fn is_notification(self) -> bool {
        self.as_str().starts_with("notifications/")
    }

    /// Is it about one task, named by `params.taskId`?
    pub fn is_of_task(self) -> bool {
        matches!(self, Method::TasksCancel | Method::TasksGet | Method::TasksResult | Method::TasksUpdate)
    }
}

/// The members of `params` that a gateway looks at. `raw` is what is forwarded.
#[derive(Clone, Debug, Default)]
pub struct Params {
    /// The whole `params` object as the client wrote it.
    pub raw: Option<Bytes>,
    /// Of a message about a task, once its id is opened: the tool that the task is a call of.
    pub name: Option<String>,
    pub uri: Option<String>,
    pub arguments: Option<Bytes>,
    pub cursor: Option<String>,
    /// `completion/complete`: the name or URI of `ref`.
    pub reference: Option<Reference>,
    /// `_meta["io.modelcontextprotocol/protocolVersion"]`.
    pub version: Option<String>,
    /// `_meta["io.modelcontextprotocol/clientCapabilities"]` is there and is an object.
    pub capabilities: bool,
    /// `protocolVersion` of `initialize`.
    pub asked_version: Option<String>,
    /// JSON text of `_meta.progressToken`.
    pub progress_token: Option<Bytes>,
    /// `subscriptions/listen`: `notifications.resourceSubscriptions`.
    pub subscriptions: Vec<String>,
    /// JSON text of `inputResponses`: the client's answers to an earlier `input_required`.
    pub input_responses: Option<Bytes>,
    /// JSON text of `requestState`, as an earlier `input_required` gave it.
    pub request_state: Option<Bytes>,
    /// `tasks/*`: `taskId`.
    pub task_id: Option<String>,
    /// `subscriptions/listen`: `notifications.taskIds`.
    pub task_ids: Vec<String>,
    /// The client may be answered by a task (2026-07-28): it declares the extension with this request.
    pub tasks: bool,
    /// The client wants to be answered by a task (2025-11-25): `task` is there.
    pub augmented: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reference {
    Prompt(String),
    Resource(String),
}

/// One message that may be judged and, if permitted, forwarded.
#[derive(Clone, Debug)]
pub struct Message {
    pub kind: Kind,
    /// `None` for a response.
    pub method: Option<Method>,
    pub era: Era,
    pub params: Params,
    /// For `Kind::Response`: `"result":…` or `"error":…` as the client wrote it.
    pub outcome: Option<Bytes>,
}

/// Why a message is refused, and the id to answer with, if it could be read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    pub id: Option<Id>,
    /// Known once the message could be read that far.
    pub era: Option<Era>,
    pub kind: FaultKind,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FaultKind {
    /// -32020: mirrored header missing, doubled, malformed or not what the body says.
    HeaderMismatch { what: String },
    /// -32602: `params` lacks or misuses a member that the method needs.
    InvalidParams { what: String },
    /// -32600: JSON, but not one JSON-RPC message.
    InvalidRequest { what: &'static str },
    /// -32601: not a method of this era.
    MethodNotFound { method: String },
    /// -32700: not JSON, or JSON that two parsers could read in two ways.
    Parse { what: String },
    /// -32022 (modern) or 400 (legacy header).
    UnsupportedVersion { requested: String },
}

/// Reads the one message of an admitted POST.
///
/// # Errors
/// [`Fault`], with the id wherever it could be read.
pub fn parse(request: &Request) -> Result<Message, Fault> {
    let body = &request.body;
    match body.iter().find(|byte| !byte.is_ascii_whitespace()) {
        // SPEC: basic/index: batches exist in 2025-03-26 only; nobody sends them, every parser disagrees on them.
        Some(b'[') => {
            return Err(Fault::without_id(FaultKind::InvalidRequest {
                what: "batches are not accepted; send one message per POST",
            }));
        }
        Some(b'{') => {}
        _ => return Err(Fault::without_id(FaultKind::Parse { what: "the body is not a JSON object".into() })),
    }
    let unreadable = |error: serde_json::Error| Fault::without_id(FaultKind::Parse { what: plain(&error) });
    let spelling = jsonrpc::check(body, Some(&JUDGED)).map_err(unreadable)?;
    let wire: Wire<'_> = serde_json::from_slice(body).map_err(|error| {
        let id = serde_json::from_slice::<JustId<'_>>(body)
            .ok()
            .and_then(|just| just.id)
            .and_then(|raw| Id::from_json(raw.get()));
        Fault { id, era: None, kind: FaultKind::InvalidRequest { what: shape(&error) } }
    })?;
    wire.into_message(request, spelling)
}

/// serde_json's words without the position inside attacker-chosen bytes mattering: they hold no input.
fn plain(error: &serde_json::Error) -> String {
    error.to_string()
}

/// Envelope errors in words that hold nothing of the input.
fn shape(error: &serde_json::Error) -> &'static str {
    let text = error.to_string();
    if text.starts_with("unknown field") {
        "a member that JSON-RPC 2.0 does not know; only jsonrpc, id, method, params, result and error are"
    } else {
        "a member of the JSON-RPC envelope has the wrong type"
    }
}

/// The JSON-RPC envelope; anything else in it is refused, because two servers might read it in two ways.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<'a> {
    #[serde(borrow)]
    jsonrpc: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct JustId<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
}

/// `null` is a value here, not an absence: `"id": null` must not pass for a notification.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Wire<'_> {
    fn into_message(self, request: &Request, spelling: Spelling) -> Result<Message, Fault> {
        let id = match self.id.map(|raw| Id::from_json(raw.get())) {
            None => None,
            Some(Some(id)) => Some(id),
            Some(None) => {
                return Err(Fault::without_id(FaultKind::InvalidRequest {
                    what: "the id must be a string or an integer",
                }));
            }
        };
        let invalid = |what| Fault { id: id.clone(), era: None, kind: FaultKind::InvalidRequest { what } };
        if self.jsonrpc.as_deref() != Some("2.0") {
            return Err(invalid("jsonrpc must be \"2.0\""));
        }
        let Some(name) = self.method.as_deref() else {
            return self.into_response(request, id);
        };
        if self.result.is_some() || self.error.is_some() {
            return Err(invalid("a request has no result or error"));
        }
        let early = |kind| Fault { id: id.clone(), era: None, kind };
        let params = Params::read(self.params, spelling, &request.body).map_err(early)?;
        let era = era_of(request, name, &params).map_err(early)?;
        let fault = |kind| Fault { id: id.clone(), era: Some(era), kind };
        let Some(method) = Method::find(name).filter(|method| method.belongs_to(era)) else {
            if era == Era::Modern {
                headers::check_method(request, name).map_err(fault)?;
            }
            return Err(fault(FaultKind::MethodNotFound { method: name.chars().take(64).collect() }));
        };
        let kind = match (id.clone(), method.is_notification()) {
            (Some(_), true) => return Err(invalid("a notification has no id")),
            (None, false) => return Err(invalid("a request needs an id")),
            (Some(id), false) => Kind::Request { id },
            (None, true) => Kind::Notification,
        };
        let message = Message { kind, method: Some(method), era, params, outcome: None };
        message.check_params().map_err(fault)?;
        if era == Era::Modern {
            headers::check(request, &message).map_err(fault)?;
        }
        Ok(message)
    }

    /// A client's answer to a server's request: legacy era only, exactly one of result and error.
    fn into_response(self, request: &Request, id: Option<Id>) -> Result<Message, Fault> {
        let invalid = |what| Err(Fault { id: id.clone(), era: None, kind: FaultKind::InvalidRequest { what } });
        let outcome = match (self.result, self.error) {
            (Some(result), None) => outcome("result", result),
            (None, Some(error)) => outcome("error", error),
            _ => return invalid("a message has a method, or exactly one of result and error"),
        };
        if self.params.is_some() {
            return invalid("a response has no params");
        }
        let Some(id) = id else {
            return invalid("a response needs an id");
        };
        let version = headers::version(request).map_err(|kind| Fault { id: Some(id.clone()), era: None, kind })?;
        if version.is_some_and(|version| Era::of(version) == Some(Era::Modern)) {
            // SPEC: streamable-http: a modern client never POSTs a response.
            let what = "responses are not sent by clients in this protocol version";
            return Err(Fault { id: Some(id), era: Some(Era::Modern), kind: FaultKind::InvalidRequest { what } });
        }
        Ok(Message {
            kind: Kind::Response { id },
            method: None,
            era: Era::Legacy,
            params: Params::default(),
            outcome: Some(outcome),
        })
    }
}

fn outcome(member: &str, value: &RawValue) -> Bytes {
    format!("\"{member}\":{}", value.get()).into()
}

/// Which era the request belongs to. A request with only one of the two modern marks is refused, never downgraded.
fn era_of(request: &Request, method: &str, params: &Params) -> Result<Era, FaultKind> {
    let header = headers::version(request)?;
    let header_era = match header {
        None => None,
        Some(version) => match Era::of(version) {
            Some(era) => Some(era),
            None => return Err(FaultKind::UnsupportedVersion { requested: version.chars().take(64).collect() }),
        },
    };
    let in_session = request.headers.contains_key("mcp-session-id");
    if method == Method::Initialize.as_str() && header_era != Some(Era::Modern) && params.version.is_none() {
        return Ok(Era::Legacy);
    }
    match (header_era, params.version.is_some()) {
        (Some(Era::Legacy) | None, _) if in_session => Ok(Era::Legacy),
        (Some(Era::Legacy), true) => {
            Err(FaultKind::HeaderMismatch { what: "MCP-Protocol-Version differs from the version in _meta".into() })
        }
        (Some(Era::Modern), _) | (None, true) => Ok(Era::Modern),
        (Some(Era::Legacy) | None, false) => Ok(Era::Legacy),
    }
}

impl Fault {
    fn without_id(kind: FaultKind) -> Fault {
        Fault { id: None, era: None, kind }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ParamsWire<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    uri: Option<Cow<'a, str>>,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
    #[serde(borrow)]
    cursor: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "ref")]
    reference: Option<ReferenceWire<'a>>,
    #[serde(borrow)]
    protocol_version: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "_meta")]
    meta: Option<MetaWire<'a>>,
    #[serde(borrow)]
    notifications: Option<NotificationsWire<'a>>,
    #[serde(borrow)]
    input_responses: Option<&'a RawValue>,
    #[serde(borrow)]
    request_state: Option<&'a RawValue>,
    #[serde(borrow)]
    task_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    task: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ReferenceWire<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    uri: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct MetaWire<'a> {
    #[serde(borrow, rename = "io.modelcontextprotocol/protocolVersion")]
    version: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "io.modelcontextprotocol/clientCapabilities")]
    capabilities: Option<&'a RawValue>,
    #[serde(borrow, rename = "progressToken")]
    progress_token: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct CapabilitiesWire<'a> {
    #[serde(borrow)]
    extensions: Option<ExtensionsWire<'a>>,
}

#[derive(Deserialize)]
struct ExtensionsWire<'a> {
    #[serde(borrow, rename = "io.modelcontextprotocol/tasks")]
    tasks: Option<&'a RawValue>,
}

impl MetaWire<'_> {
    /// Does the client declare that it can be answered by a task?
    fn tasks(&self) -> bool {
        let declared = |raw: &RawValue| {
            let extensions = serde_json::from_str::<CapabilitiesWire<'_>>(raw.get()).ok()?.extensions?;
            extensions.tasks.map(|settings| settings.get().starts_with('{'))
        };
        self.capabilities.and_then(declared).unwrap_or_default()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NotificationsWire<'a> {
    #[serde(borrow, default)]
    resource_subscriptions: Vec<Cow<'a, str>>,
    #[serde(borrow, default)]
    task_ids: Vec<Cow<'a, str>>,
}

/// The members that are judged, and the objects below `params` that hold such. (The envelope knows no others at all.)
static JUDGED: Judged = Judged { members: &[], below: &[("params", &JUDGED_IN_PARAMS)] };
static JUDGED_IN_PARAMS: Judged = Judged {
    members: &[
        "name",
        "uri",
        "arguments",
        "cursor",
        "ref",
        "protocolVersion",
        "_meta",
        "notifications",
        "requestId",
        "inputResponses",
        "requestState",
        "taskId",
        "task",
    ],
    below: &[("ref", &JUDGED_IN_REF), ("notifications", &JUDGED_IN_NOTIFICATIONS), ("_meta", &JUDGED_IN_META)],
};
static JUDGED_IN_REF: Judged = Judged { members: &["type", "name", "uri"], below: &[] };
static JUDGED_IN_NOTIFICATIONS: Judged = Judged { members: &["resourceSubscriptions", "taskIds"], below: &[] };
static JUDGED_IN_META: Judged = Judged {
    members: &[
        "progressToken",
        "io.modelcontextprotocol/protocolVersion",
        "io.modelcontextprotocol/clientCapabilities",
        "io.modelcontextprotocol/logLevel",
    ],
    below: &[("io.modelcontextprotocol/clientCapabilities", &JUDGED_IN_CAPABILITIES)],
};
static JUDGED_IN_CAPABILITIES: Judged =
    Judged { members: &["extensions"], below: &[("extensions", &JUDGED_IN_EXTENSIONS)] };
static JUDGED_IN_EXTENSIONS: Judged = Judged { members: &[super::meta::TASKS], below: &[] };

impl Params {
    fn read(raw: Option<&RawValue>, spelling: Spelling, body: &Bytes) -> Result<Params, FaultKind> {
        let Some(raw) = raw else {
            return Ok(Params::default());
        };
        if !raw.get().starts_with('{') {
            return Err(FaultKind::InvalidParams { what: "params must be an object".into() });
        }
        if spelling == Spelling::Lookalike {
            return Err(FaultKind::InvalidParams { what: "a member of params in another spelling".into() });
        }
        let wire: ParamsWire<'_> = serde_json::from_str(raw.get())
            .map_err(|_| FaultKind::InvalidParams { what: "a member of params has the wrong type".into() })?;
        let slice = |value: &RawValue| body.slice_ref(value.get().as_bytes());
        let reference =
            wire.reference.map(|reference| match (reference.kind.as_ref(), reference.name, reference.uri) {
                ("ref/prompt", Some(name), _) => Ok(Reference::Prompt(name.into_owned())),
                ("ref/resource", _, Some(uri)) => Ok(Reference::Resource(uri.into_owned())),
                _ => Err(FaultKind::InvalidParams {
                    what: "ref must be a ref/prompt with a name or a ref/resource with a uri".into(),
                }),
            });
        let meta = wire.meta;
        Ok(Params {
            name: wire.name.map(Cow::into_owned),
            uri: wire.uri.map(Cow::into_owned),
            arguments: wire.arguments.map(slice),
            cursor: wire.cursor.map(Cow::into_owned),
            reference: reference.transpose()?,
            version: meta.as_ref().and_then(|meta| meta.version.as_deref()).map(str::to_owned),
            asked_version: wire.protocol_version.map(Cow::into_owned),
            capabilities: meta
                .as_ref()
                .is_some_and(|meta| meta.capabilities.is_some_and(|raw| raw.get().starts_with('{'))),
            progress_token: meta.as_ref().and_then(|meta| meta.progress_token).map(slice),
            subscriptions: owned(&wire.notifications, |wanted| &wanted.resource_subscriptions),
            task_ids: owned(&wire.notifications, |wanted| &wanted.task_ids),
            task_id: wire.task_id.map(Cow::into_owned),
            tasks: meta.as_ref().is_some_and(MetaWire::tasks),
            augmented: wire.task.is_some(),
            input_responses: wire.input_responses.map(slice),
            request_state: wire.request_state.map(slice),
            raw: Some(slice(raw)),
        })
    }
}

fn owned<'w, 'a: 'w>(
    wanted: &'w Option<NotificationsWire<'a>>,
    of: impl Fn(&'w NotificationsWire<'a>) -> &'w Vec<Cow<'a, str>>,
) -> Vec<String> {
    wanted.as_ref().map(|wanted| of(wanted).iter().map(|text| text.clone().into_owned()).collect()).unwrap_or_default()
}

impl Message {
    /// A modern request of ours; `params` is a whole JSON object with its `_meta`.
    ///
    /// # Errors
    /// When `params` lacks or misuses a member that the method needs.
    pub fn modern(id: Id, method: Method, params: Bytes) -> Result<Message, FaultKind> {
        let raw: &RawValue = serde_json::from_slice(&params)
            .map_err(|_| FaultKind::InvalidParams { what: "params must be an object".into() })?;
        let read = Params::read(Some(raw), Spelling::Plain, &params)?;
        let kind = Kind::Request { id };
        let message = Message { kind, method: Some(method), era: Era::Modern, params: read, outcome: None };
        message.check_params()?;
        Ok(message)
    }

    pub fn id(&self) -> Option<&Id> {
        match &self.kind {
            Kind::Request { id } | Kind::Response { id } => Some(id),
            Kind::Notification => None,
        }
    }

    /// Waits for an answer?
    pub fn is_request(&self) -> bool {
        matches!(self.kind, Kind::Request { .. })
    }

    /// The canonical bytes: written from what was parsed and judged, not from what came.
    pub fn to_bytes(&self) -> Bytes {
        let params = self.params.raw.as_ref().map_or(&[][..], |raw| raw);
        let mut out = Vec::with_capacity(params.len() + 128);
        out.extend_from_slice(b"{\"jsonrpc\":\"2.0\"");
        if let Some(id) = self.id() {
            out.extend_from_slice(b",\"id\":");
            out.extend_from_slice(id.as_json().as_bytes());
        }
        if let Some(method) = self.method {
            out.extend_from_slice(b",\"method\":\"");
            out.extend_from_slice(method.as_str().as_bytes());
            out.push(b'"');
        }
        if !params.is_empty() {
            out.extend_from_slice(b",\"params\":");
            out.extend_from_slice(params);
        }
        if let Some(outcome) = &self.outcome {
            out.push(b',');
            out.extend_from_slice(outcome);
        }
        out.push(b'}');
        out.into()
    }

    /// The members a method cannot do without.
    fn check_params(&self) -> Result<(), FaultKind> {
        let missing = |what: &str| Err(FaultKind::InvalidParams { what: format!("params.{what} is required") });
        match self.method {
            Some(Method::ToolsCall | Method::PromptsGet) if self.params.name.is_none() => missing("name"),
            Some(Method::ResourcesRead | Method::ResourcesSubscribe | Method::ResourcesUnsubscribe)
                if self.params.uri.is_none() =>
            {
                missing("uri")
            }
            Some(Method::CompletionComplete) if self.params.reference.is_none() => missing("ref"),
            Some(method) if method.is_of_task() && self.params.task_id.is_none() => missing("taskId"),
            Some(Method::TasksUpdate)
                if !self.params.input_responses.as_ref().is_some_and(|answers| answers.starts_with(b"{")) =>
            {
                Err(FaultKind::InvalidParams { what: "params.inputResponses must be an object".into() })
            }
            Some(Method::ToolsCall) if self.params.arguments.as_ref().is_some_and(|args| !args.starts_with(b"{")) => {
                Err(FaultKind::InvalidParams { what: "params.arguments must be an object".into() })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;
    use crate::exchange::RequestId;
    use crate::exchange::Verb;

    fn request(body: &str, headers: &[(&str, &str)]) -> Request {
        let mut map = http::HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<http::HeaderName>().expect("a name"), value.parse().expect("a value"));
        }
        Request {
            id: RequestId(1),
            verb: Verb::Post,
            host: "localhost".into(),
            path: "/mcp".into(),
            headers: map,
            body: Bytes::copy_from_slice(body.as_bytes()),
            peer: Arc::default(),
            at: SystemTime::UNIX_EPOCH,
            started: Instant::now(),
            deadline: Instant::now(),
        }
    }

    const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;

    #[test]
    fn the_era_is_decided_by_both_marks_and_never_by_one() {
        let modern_header = ("mcp-protocol-version", "2026-07-28");
        let legacy_header = ("mcp-protocol-version", "2025-11-25");
        let method = ("mcp-method", "tools/list");
        let session = ("mcp-session-id", "s");
        let with_meta = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{{{META}}}}}"#);
        let without = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
        let era = |body: &str, headers: &[(&str, &str)]| {
            parse(&request(body, headers)).map(|message| message.era).map_err(|fault| fault.kind)
        };
        assert_eq!(era(&with_meta, &[modern_header, method]), Ok(Era::Modern));
        assert_eq!(era(without, &[]), Ok(Era::Legacy));
        assert_eq!(era(without, &[legacy_header]), Ok(Era::Legacy));
        assert_eq!(era(&with_meta, &[legacy_header, session]), Ok(Era::Legacy));
        assert!(matches!(era(&with_meta, &[legacy_header]), Err(FaultKind::HeaderMismatch { .. })));
        assert!(matches!(era(&with_meta, &[method]), Err(FaultKind::HeaderMismatch { .. })));
        assert!(matches!(era(without, &[modern_header, method]), Err(FaultKind::InvalidParams { .. })));
        let hello = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#;
        assert_eq!(era(hello, &[]), Ok(Era::Legacy));
    }

    #[test]
    fn a_fault_carries_the_id_wherever_it_could_be_read() {
        for (body, id) in [
            (r#"{"jsonrpc":"2.0","id":"a","method":"nope"}"#, Some("\"a\"")),
            (r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{}}"#, Some("7")),
            (r#"{"jsonrpc":"2.0","id":7,"method":"tools/list","extra":1}"#, Some("7")),
            (r#"{"jsonrpc":"2.0","id":7,"method":"tools/list""#, None),
            (r#"{"jsonrpc":"2.0","id":null,"method":"tools/list"}"#, None),
        ] {
            let fault = parse(&request(body, &[])).expect_err(body);
            assert_eq!(fault.id.as_ref().map(Id::as_json), id, "{body}");
        }
    }

    fn json(depth: u32) -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            ".{0,12}".prop_map(Into::into)
        ];
        leaf.prop_recursive(depth, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::btree_map("[a-zA-Z_]{1,8}", inner, 0..4)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same_message(arguments in prop::collection::btree_map("[a-z]{1,6}", json(3), 0..4), name in "[a-z_]{1,20}", id in any::<i64>()) {
            let arguments = serde_json::Value::Object(arguments.into_iter().collect());
            let body = serde_json::json!({ "params": { "arguments": arguments, "name": name }, "method": "tools/call", "id": id, "jsonrpc": "2.0" }).to_string();
            let first = parse(&request(&body, &[])).expect("a call");
            let written = first.to_bytes();
            let second = parse(&request(std::str::from_utf8(&written).expect("text"), &[])).expect("the same call");
            prop_assert_eq!(&second.to_bytes(), &written);
            prop_assert_eq!((first.id(), &first.params.name, &first.params.arguments), (second.id(), &second.params.name, &second.params.arguments));
            let value: serde_json::Value = serde_json::from_slice(&written).expect("JSON");
            prop_assert_eq!(&value["params"]["arguments"], &arguments);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut hostile = request("", &[]);
            hostile.body = bytes.into();
            let _ = parse(&hostile);
        }
    }
}
