//! From bytes to a `Call` that can be judged: which message, which declaration, which effect; and the words of a no.

use std::sync::Arc;
use std::time::SystemTime;

use super::Errand;
use super::House;
use super::Member;
use super::Open;
use super::Rejection;
use super::Sealer;
use crate::catalog::Action;
use crate::catalog::Call;
use crate::catalog::Decl;
use crate::catalog::Effect;
use crate::catalog::Kind;
use crate::catalog::Mode;
use crate::catalog::Operation;
use crate::catalog::Session;
use crate::exchange::Request;
use crate::exchange::Verb;
use crate::mcp;
use crate::mcp::Era;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::list::ListKind;
use crate::policy;
use crate::policy::Denial;
use crate::principal::Principal;

/// What the client asks for, read and checked; nothing is looked up yet.
pub(super) struct Asked {
    operation: Operation,
    era: Era,
    /// `Mcp-Session-Id` as sent; only the legacy era knows it.
    sealed: Option<String>,
    /// `MCP-Protocol-Version` as sent, a version we know.
    version: Option<String>,
    /// The client wrote this very message: headers that mirror its body must agree with it.
    mirrors: bool,
}

impl Asked {
    pub(super) fn read(request: &Request, open: &mut Open) -> Result<Asked, Rejection> {
        let version = request.single_header("mcp-protocol-version").ok().flatten().map(str::trim);
        let header_era = version.and_then(Era::of);
        let (operation, era) = match request.verb {
            Verb::Post => {
                let message = mcp::parse(request).map_err(|fault| {
                    open.asks(fault.id.as_ref(), fault.era.or(header_era).unwrap_or(Era::Legacy));
                    Rejection::Message { kind: fault.kind }
                })?;
                // The id of a response is the server's and names nothing that the client waits for.
                open.asks(message.id().filter(|_| message.is_request()), message.era);
                open.method(message.method.map_or("response", Method::as_str));
                let era = message.era;
                (Operation::Post(message), era)
            }
            // SPEC: 2026-07-28 streamable-http: POST only.
            Verb::Get | Verb::Delete if header_era == Some(Era::Modern) => {
                return Err(Rejection::MethodNotAllowed { allow: "POST" });
            }
            Verb::Get => {
                let last_event_id = request
                    .single_header("last-event-id")
                    .map_err(|()| Rejection::BadRequest { what: "Last-Event-ID" })?;
                (Operation::Stream { last_event_id: last_event_id.map(str::to_owned) }, Era::Legacy)
            }
            Verb::Delete => (Operation::EndSession, Era::Legacy),
        };
        if version.is_some() && header_era.is_none() {
            let requested = version.unwrap_or_default().chars().take(64).collect();
            return Err(Rejection::Message { kind: mcp::FaultKind::UnsupportedVersion { requested } });
        }
        let sealed =
            request.single_header("mcp-session-id").map_err(|()| Rejection::BadRequest { what: "Mcp-Session-Id" })?;
        let asked = Asked {
            operation,
            era,
            sealed: sealed.map(str::to_owned),
            version: version.map(str::to_owned),
            mirrors: true,
        };
        if asked.is_initialize() || era == Era::Modern {
            return Ok(Asked { sealed: None, ..asked });
        }
        Ok(asked)
    }

    /// A modern message that is sent for the client: its own (`mirrors`), changed for a backend, or one of ours.
    pub(super) fn modern(message: Message, mirrors: bool) -> Asked {
        let newest = || mcp::MODERN_VERSIONS.first().map(|version| (*version).to_owned());
        let version = message.params.version.clone().or_else(newest);
        Asked { operation: Operation::Post(message), era: Era::Modern, sealed: None, version, mirrors }
    }

    /// The message and whether the client wrote it; `None` for what is no message.
    pub(super) fn into_message(self) -> Option<(Message, bool)> {
        match self.operation {
            Operation::Post(message) => Some((message, self.mirrors)),
            Operation::EndSession | Operation::Stream { .. } => None,
        }
    }

    pub(super) fn era(&self) -> Era {
        self.era
    }

    /// `Mcp-Session-Id` as sent.
    pub(super) fn sealed(&self) -> Option<&str> {
        self.sealed.as_deref()
    }

    pub(super) fn into_operation(self) -> Operation {
        self.operation
    }

    /// The same once more, if it is a message.
    pub(super) fn again(&self) -> Option<Asked> {
        let operation = Operation::Post(self.message()?.clone());
        Some(Asked {
            operation,
            era: self.era,
            sealed: self.sealed.clone(),
            version: self.version.clone(),
            mirrors: self.mirrors,
        })
    }

    pub(super) fn mirrors(&self) -> bool {
        self.mirrors
    }

    /// The message, if it is one.
    pub(super) fn message(&self) -> Option<&Message> {
        match &self.operation {
            Operation::Post(message) => Some(message),
            Operation::EndSession | Operation::Stream { .. } => None,
        }
    }

    pub(super) fn message_mut(&mut self) -> Option<&mut Message> {
        match &mut self.operation {
            Operation::Post(message) => Some(message),
            Operation::EndSession | Operation::Stream { .. } => None,
        }
    }

    pub(super) fn is_initialize(&self) -> bool {
        self.message().is_some_and(|message| message.method == Some(Method::Initialize))
    }

    /// The legacy session the client is in. An id that does not open is an unknown session, whatever the reason.
    pub(super) fn session(
        &self,
        sealer: &Sealer,
        owner: &Principal,
        member: &Member,
        now: SystemTime,
    ) -> Result<Option<Session>, Rejection> {
        let Some(sealed) = &self.sealed else {
            return match self.operation {
                // Nothing to end.
                Operation::EndSession => Err(Rejection::MethodNotAllowed { allow: "GET, POST" }),
                // Without a session nobody was asked anything.
                Operation::Post(ref message) if message.method.is_none() => Err(Rejection::SessionUnknown),
                Operation::Post(_) | Operation::Stream { .. } => Ok(None),
            };
        };
        sealer.unseal(sealed, owner, member.backend.name(), now).map(Some).ok_or(Rejection::SessionUnknown)
    }
}

/// Finds what the message is about. An unknown tool makes us ask the backend once more before we say so. `may_read`: would
/// the caller be shown a tool of this declaration?
pub(super) async fn call(
    asked: Asked,
    session: Option<Session>,
    member: &Member,
    errand: &Errand,
    may_read: impl Fn(&Decl) -> bool,
) -> Result<Call, Rejection> {
    let (action, decl) = match asked.message() {
        Some(message) => declared(message, member, errand, may_read).await?,
        None => (Action::Connect, connect(member)),
    };
    let version = match (&asked.operation, &session) {
        // SPEC: the header belongs to every request after `initialize`.
        (Operation::Post(message), _) if message.method == Some(Method::Initialize) => None,
        (_, Some(session)) if asked.era == Era::Legacy => asked.version.or_else(|| Some(session.version.clone())),
        _ => asked.version,
    };
    Ok(Call { session, version, ..Call::new(action, decl, asked.operation) })
}

/// The backend itself, for housekeeping with it.
pub(super) fn connect(member: &Member) -> Arc<Decl> {
    let name = member.backend.name();
    Arc::new(Decl::plain(Kind::Backend, name.clone(), name, Effect::Read))
}

async fn declared(
    message: &Message,
    member: &Member,
    errand: &Errand,
    may_read: impl Fn(&Decl) -> bool,
) -> Result<(Action, Arc<Decl>), Rejection> {
    let plain = |kind, name: &str| Arc::new(member.backend.plain(kind, name));
    let name = message.params.name.as_deref().unwrap_or_default();
    let uri = message.params.uri.as_deref().unwrap_or_default();
    Ok(match message.method {
        Some(Method::ToolsCall) => (Action::Call, tool(name, member, errand, may_read).await?),
        // What may be known of a task, and done to it, is what may be done with its tool.
        Some(method) if method.is_of_task() => (Action::Call, tool(name, member, errand, may_read).await?),
        Some(Method::PromptsGet) => (Action::Get, plain(Kind::Prompt, name)),
        Some(Method::ResourcesRead | Method::ResourcesSubscribe | Method::ResourcesUnsubscribe) => {
            (Action::Read, plain(Kind::Resource, uri))
        }
        Some(Method::CompletionComplete) => match &message.params.reference {
            Some(mcp::Reference::Prompt(name)) => (Action::Complete, plain(Kind::Prompt, name)),
            Some(mcp::Reference::Resource(uri)) => (Action::Complete, plain(Kind::Resource, uri)),
            None => (Action::Connect, connect(member)),
        },
        _ => (Action::Connect, connect(member)),
    })
}

/// A name that is in no catalog, also after asking again, is unknown. Where there is no catalog because the backend cannot
/// be asked, that is told to those who could use a tool of this name if it only read; for all others it is hidden, and so
/// is the backend.
pub(super) async fn tool(
    name: &str,
    member: &Member,
    errand: &Errand,
    may_read: impl Fn(&Decl) -> bool,
) -> Result<Arc<Decl>, Rejection> {
    match member.backend.catalog().tools.get(name).filter(|_| !member.backend.in_doubt()) {
        Some(decl) => Ok(decl.clone()),
        // Seldom, and large: no call should carry it about.
        None => Box::pin(sought(name, member, errand, may_read)).await,
    }
}

async fn sought(
    name: &str,
    member: &Member,
    errand: &Errand,
    may_read: impl Fn(&Decl) -> bool,
) -> Result<Arc<Decl>, Rejection> {
    let unknown = || Rejection::UnknownTool { name: name.to_owned() };
    let hidden = || {
        // With a catalog in hand the answer must not tell a hidden tool from a missing one.
        !member.backend.catalog().tools.is_empty()
            || !may_read(&Decl::plain(Kind::Tool, member.backend.name().clone(), name, Effect::Read))
    };
    let credential = match errand.asks_with(member).await {
        Ok(credential) => credential,
        // Who may not even talk to the backend is told what everybody is told of a tool that is not there.
        Err(Rejection::InsufficientScope { .. }) => return Err(unknown()),
        Err(_) if hidden() => return Err(unknown()),
        Err(rejection) => return Err(rejection),
    };
    match member.backend.refresh(credential, errand.request.deadline).await {
        Ok(catalog) => catalog.tools.get(name).cloned().ok_or_else(unknown),
        Err(_) if hidden() => Err(unknown()),
        Err(error) => {
            tracing::warn!(backend = %member.backend.name(), %error, "the tool catalog cannot be fetched");
            Err(error.into())
        }
    }
}

/// What a judgement depends on besides the caller and the call.
pub(super) fn context(mode: Mode, principal: &Principal, request: &Request) -> policy::Context {
    policy::Context { mode, ip: request.peer.address, mtls: principal.mtls, now: request.at }
}

/// What is needed after the call went into the judgement: its context, and the words if the answer is no.
pub(super) struct Judged {
    pub(super) context: policy::Context,
    action: Action,
    kind: Kind,
    name: Arc<str>,
    subscriptions: Vec<String>,
    /// A mirrored argument header that lies. Told only to those who may call the tool.
    headers: Result<(), mcp::FaultKind>,
}

impl Judged {
    pub(super) fn of(call: &Call, mode: Mode, principal: &Principal, request: &Request, mirrors: bool) -> Judged {
        let context = context(mode, principal, request);
        let message = call.message().filter(|_| mirrors);
        let headers = message.map_or(Ok(()), |message| mcp::check_params(request, message, &call.decl.headers));
        let subscriptions = call.message().map(|message| message.params.subscriptions.clone()).unwrap_or_default();
        Judged {
            context,
            action: call.action,
            kind: call.decl.kind,
            name: call.decl.name.clone(),
            subscriptions,
            headers,
        }
    }

    /// The rejection for a denial. Hidden is unknown: same words, same work, as for what does not exist.
    pub(super) async fn refuse(&self, denial: Denial, member: &Member, open: &mut Open, errand: &Errand) -> Rejection {
        open.denied_by(&denial);
        let name = || self.name.to_string();
        match (self.action, self.kind) {
            (Action::Connect, _) | (_, Kind::Backend) => {
                Rejection::InsufficientScope { scopes: errand.house.scopes_of(member.backend.name()) }
            }
            (_, Kind::Prompt) => Rejection::UnknownPrompt { name: name() },
            (_, Kind::Resource) => Rejection::UnknownResource { uri: name() },
            (_, Kind::Tool) if denial.listed => Rejection::ArgumentsDenied { tool: name() },
            (_, Kind::Tool) => {
                // A missing tool makes us ask the backend; so does a hidden one, or the clock would tell them apart.
                // The outcome does not matter here: the catalog keeps what it learns, and no list from before is served.
                let known = member.backend.catalog();
                if let Ok(credential) = errand.asks_with(member).await {
                    drop(member.backend.refresh(credential, errand.request.deadline).await);
                }
                if !Arc::ptr_eq(&known, &member.backend.catalog()) {
                    errand.house.lists.changed(member.backend.name(), ListKind::Tools);
                }
                Rejection::UnknownTool { name: name() }
            }
        }
    }

    /// What only a permitted caller is told: lying headers, and resources in a subscription that they may not read.
    pub(super) fn after(&self, house: &House, principal: &Principal, member: &Member) -> Result<(), Rejection> {
        self.headers.clone().map_err(|kind| Rejection::Message { kind })?;
        for uri in &self.subscriptions {
            let decl = member.backend.plain(Kind::Resource, uri);
            if !house.policy.lists(principal, &decl, &self.context) {
                return Err(Rejection::UnknownResource { uri: uri.clone() });
            }
        }
        Ok(())
    }
}
