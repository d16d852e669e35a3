//! What can be asked for: `Decl` (one declaration of a tool, resource or prompt), `Effect`, `Call`.

pub mod check;
mod effect;
pub mod pin;
pub mod pins;
mod varies;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

pub use effect::Effect;
pub use effect::Effects;
pub use effect::Hints;
pub use effect::Mode;
pub use effect::Rule;
pub use varies::Varies;
pub use varies::When;

use crate::mcp::Binding;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::list::Entry;
use pins::Pins;
use pins::Why;

/// Which kind of thing a declaration is about; also the Cedar resource type.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// The backend itself: `initialize`, `ping`, streams, log level.
    Backend,
    Prompt,
    Resource,
    Tool,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Backend => "Backend",
            Kind::Prompt => "Prompt",
            Kind::Resource => "Resource",
            Kind::Tool => "Tool",
        }
    }
}

/// The one description of something that can be asked for. Everything else derives from it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Decl {
    pub kind: Kind,
    pub backend: Arc<str>,
    /// Tool or prompt name, or resource URI, as the backend knows it. For `Kind::Backend` the backend's name.
    pub name: Arc<str>,
    /// The highest effect a call of it can have: what modes and policy judge when arguments are unknown.
    pub effect: Effect,
    /// A second identical call changes nothing more: it may be retried.
    pub idempotent: bool,
    /// The list entry as the upstream wrote it (a JSON object), or empty where it was not listed.
    pub wire: Bytes,
    /// Arguments that are mirrored in `Mcp-Param-*` headers (`x-mcp-header` of the input schema).
    pub headers: Vec<Binding>,
    /// Where the effect of a call depends on its arguments; `effect` is the highest of them.
    pub varies: Option<Arc<Varies>>,
}

impl Decl {
    /// A declaration that only a name and an effect are known of.
    pub fn plain(kind: Kind, backend: Arc<str>, name: &str, effect: Effect) -> Decl {
        Decl {
            kind,
            backend,
            name: name.into(),
            effect,
            idempotent: false,
            wire: Bytes::new(),
            headers: Vec::new(),
            varies: None,
        }
    }

    /// Its calls have the effects that follow from their arguments.
    #[must_use]
    pub fn varying(self, varies: Varies) -> Decl {
        Decl { effect: varies.highest(), varies: Some(Arc::new(varies)), ..self }
    }

    /// Everything that a call of it can come out as, lowest first.
    pub fn effects(&self) -> &[Effect] {
        self.varies.as_ref().map_or(std::slice::from_ref(&self.effect), |varies| varies.effects())
    }

    /// The effect of every call, if they all have the same.
    pub fn only_effect(&self) -> Option<Effect> {
        match self.effects() {
            [only] => Some(*only),
            _ => None,
        }
    }

    pub fn lowest_effect(&self) -> Effect {
        self.effects().first().copied().unwrap_or(self.effect)
    }

    /// The effect of a call with these arguments (raw JSON).
    pub fn effect_of(&self, arguments: Option<&Bytes>) -> Effect {
        self.varies.as_ref().map_or(self.effect, |varies| varies.effect(arguments.map(AsRef::as_ref)))
    }

    /// May a call be sent again after a failure on the way? Reads always, writes only when idempotent.
    pub fn retryable(&self) -> bool {
        self.effect <= Effect::ReadSensitive || self.idempotent
    }
}

/// All declarations of one backend that are known now.
#[derive(Debug, Default)]
pub struct Catalog {
    pub tools: HashMap<Arc<str>, Arc<Decl>>,
    /// Tools that the backend lists and that are not offered, because nobody approved them as they are.
    pub quarantined: HashMap<Arc<str>, Quarantined>,
    /// What was reviewed. `None`: every tool is offered as it is listed.
    pub pins: Option<Arc<Pins>>,
}

/// A tool that is not offered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Quarantined {
    pub why: Why,
    /// The list entry as the upstream wrote it.
    pub wire: Bytes,
}

impl Catalog {
    /// May this list entry be shown? Without pins, whatever is listed; with them, only what was approved as it is.
    pub fn offers(&self, entry: &Entry) -> bool {
        let Some(pins) = &self.pins else { return true };
        let known = self.tools.get(entry.name.as_str()).is_some_and(|decl| decl.wire == entry.wire);
        known || pins.judge(&entry.name, &entry.wire).is_ok()
    }
}

/// What a caller does to a `Decl`; also the Cedar action.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Action {
    /// `tools/call`
    Call,
    /// `completion/complete`
    Complete,
    /// Protocol housekeeping with a backend: `initialize`, `ping`, lists, streams, sessions, log level.
    Connect,
    /// `prompts/get`
    Get,
    /// `resources/read`, `resources/subscribe`
    Read,
}

impl Action {
    pub const ALL: [Action; 5] = [Action::Call, Action::Complete, Action::Connect, Action::Get, Action::Read];

    pub fn as_str(self) -> &'static str {
        match self {
            Action::Call => "call",
            Action::Complete => "complete",
            Action::Connect => "connect",
            Action::Get => "get",
            Action::Read => "read",
        }
    }
}

/// What goes upstream when the call is permitted.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are posts; a box would cost each of them an allocation")]
pub enum Operation {
    /// DELETE: end the legacy session.
    EndSession,
    /// POST of one JSON-RPC message.
    Post(Message),
    /// GET: the legacy session's stream of server messages, resumed after an event if named.
    Stream { last_event_id: Option<String> },
}

/// A legacy session at the upstream, as unsealed from the id the client holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Session {
    /// The id the upstream gave.
    pub upstream: String,
    /// The protocol version that `initialize` negotiated.
    pub version: String,
}

/// A request that is ready to be judged: what it does, to what, and with which bytes.
#[derive(Debug)]
pub struct Call {
    pub action: Action,
    pub decl: Arc<Decl>,
    /// The effect of this very call; never above `decl.effect`.
    pub effect: Effect,
    pub operation: Operation,
    pub session: Option<Session>,
    /// `MCP-Protocol-Version` to send upstream, if any.
    pub version: Option<String>,
}

impl Call {
    /// A call of what is declared, with the effect that its arguments give it.
    pub fn new(action: Action, decl: Arc<Decl>, operation: Operation) -> Call {
        let mut call = Call { action, effect: decl.effect, decl, operation, session: None, version: None };
        call.effect = call.decl.effect_of(call.arguments());
        call
    }

    pub fn message(&self) -> Option<&Message> {
        match &self.operation {
            Operation::Post(message) => Some(message),
            Operation::EndSession | Operation::Stream { .. } => None,
        }
    }

    /// The raw JSON of the tool's arguments, for policy conditions.
    pub fn arguments(&self) -> Option<&Bytes> {
        self.message().and_then(|message| message.params.arguments.as_ref())
    }

    /// It goes on with an earlier call, whose arguments were judged then and are not sent again.
    pub fn is_follow_up(&self) -> bool {
        self.message().and_then(|message| message.method).is_some_and(Method::is_of_task)
    }

    /// Carrying it out twice is like carrying it out once.
    pub fn repeatable(&self) -> bool {
        let method = self.message().and_then(|message| message.method);
        self.decl.kind == Kind::Backend
            || self.effect <= Effect::ReadSensitive
            || self.decl.retryable()
            || matches!(method, Some(Method::TasksCancel | Method::TasksGet | Method::TasksResult))
    }
}
