//! What may leave: an upstream's answer is checked, filtered and turned into what goes to the client.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use http::HeaderName;
use http::HeaderValue;
use serde::Deserialize;
use tokio::sync::watch;

use super::House;
use super::Lists;
use super::Member;
use super::Open;
use super::Rejection;
use super::errand::Errand;
use super::flow::Flow;
use super::flow::Passing;
use super::list::Listing;
use super::list::ttl_place;
use super::list::within_life;
use super::open::Shadows;
use super::stream;
use super::tasks::Named;
use super::tasks::Tasks;
use crate::backend;
use crate::backend::Answer;
use crate::backend::Backend;
use crate::backend::Content;
use crate::catalog;
use crate::catalog::Operation;
use crate::catalog::Session;
use crate::exchange::Body;
use crate::exchange::Reply;
use crate::exchange::Request;
use crate::limits::Slot;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::Incoming;
use crate::mcp::Kind;
use crate::mcp::Method;
use crate::mcp::list::ListKind;
use crate::mcp::object;
use crate::mcp::object::Edits;
use crate::mcp::sse::Event;
use crate::policy;
use crate::policy::Permit;
use crate::principal::Principal;
use crate::route::Route;

/// `cacheScope` of what is one caller's.
const PRIVATE: &str = "\"private\"";

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");

/// Events that may come before the answer to `initialize`.
const EARLY_EVENTS_MAX: usize = 16;

/// What answer the permitted call must have.
#[derive(Clone)]
pub(super) struct Want {
    /// The id to be answered; `None` for notifications, responses, GET and DELETE.
    pub(super) id: Option<Id>,
    pub(super) era: Era,
    pub(super) list: Option<Listing>,
    /// Read for this caller alone, whatever the server says of others.
    pub(super) read: bool,
    initialize: bool,
    /// A GET stream: server messages, and replayed answers when resumed.
    pub(super) stream: bool,
    /// Ends only when somebody ends it: GET streams and `subscriptions/listen`.
    pub(super) open_ended: bool,
    pub(super) tasks: Tasks,
}

impl Want {
    /// No answer.
    fn nothing() -> Want {
        let (era, list) = (Era::Legacy, None);
        let tasks = Tasks::default();
        Want { id: None, era, list, read: false, initialize: false, stream: false, open_ended: false, tasks }
    }

    pub(super) fn of(permit: &Permit, lists: &Lists, named: &Named) -> Want {
        match &permit.call().operation {
            Operation::EndSession => Want::nothing(),
            Operation::Stream { .. } => Want { stream: true, open_ended: true, ..Want::nothing() },
            Operation::Post(message) => Want {
                id: match &message.kind {
                    Kind::Request { id } => Some(id.clone()),
                    Kind::Notification | Kind::Response { .. } => None,
                },
                era: message.era,
                list: message
                    .method
                    .and_then(ListKind::of)
                    .map(|kind| lists.listing(&permit.call().decl.backend, kind, message)),
                read: message.era == Era::Modern && message.method == Some(Method::ResourcesRead),
                initialize: message.method == Some(Method::Initialize),
                stream: false,
                open_ended: message.method == Some(Method::SubscriptionsListen),
                tasks: Tasks::of(permit.call(), named),
            },
        }
    }
}

impl Want {
    /// What is listed here is for this caller alone.
    pub(super) fn keep_nothing(&mut self) {
        if let Some(listing) = &mut self.list {
            listing.keep_nothing();
        }
    }

    /// The answer, where one that is the same for everybody is known. It is filtered like any other.
    pub(super) fn known(&mut self, lists: &Lists) -> Option<Answer> {
        let listing = self.list.as_mut()?;
        let body = lists.known(listing, self.id.as_ref()?)?;
        // Kept as long as when it came, not anew each time somebody is served it.
        *listing = Listing::said_before(listing.kind);
        Some(Answer { status: 200, session: None, content: Content::Json(body) })
    }
}

/// Everything the answer is judged with; owned, because a stream outlives its request.
pub(super) struct Desk {
    pub(super) house: Arc<House>,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) reloads: watch::Receiver<u64>,
    pub(super) principal: Arc<Principal>,
    pub(super) context: policy::Context,
    pub(super) route: Arc<Route>,
    /// Of the request's record.
    pub(super) shadows: Shadows,
}

/// What goes to the client.
pub(super) enum Outgoing {
    Empty { status: u16 },
    Json { status: u16, body: Bytes, session: Option<String>, error_code: Option<i64>, hidden: usize },
    Events { flow: BoxStream<'static, Passing>, session: Option<String> },
}

impl Outgoing {
    pub(super) fn into_reply(self, mut open: Open) -> Reply {
        match self {
            Outgoing::Empty { status } => {
                let reply = Reply::empty(status);
                open.reply("answered", &reply);
                reply
            }
            Outgoing::Json { status, body, session, error_code, hidden } => {
                let reply = with_session(Reply::json(status, body), session);
                open.error_code(error_code);
                open.hid(hidden);
                open.reply("answered", &reply);
                reply
            }
            Outgoing::Events { flow, session } => {
                open.status(200);
                let owes = open.owes.take();
                let body = Body::Events(stream::to_client(flow, open));
                let reply = Reply { status: 200, headers: Vec::new(), body, owes };
                with_session(reply, session)
            }
        }
    }
}

fn with_session(reply: Reply, session: Option<String>) -> Reply {
    match session.and_then(|id| HeaderValue::try_from(id).ok()) {
        Some(id) => reply.with(SESSION_ID, id),
        None => reply,
    }
}

impl Desk {
    pub(super) fn new(errand: &Errand, member: &Member, context: policy::Context, shadows: Shadows) -> Desk {
        Desk {
            house: errand.house.clone(),
            backend: member.backend.clone(),
            reloads: errand.reloads.clone(),
            principal: errand.principal.clone(),
            context,
            route: errand.route.clone(),
            shadows,
        }
    }

    pub(super) async fn apply(
        self,
        answer: Answer,
        want: Want,
        slot: Arc<Slot>,
        request: &Request,
    ) -> Result<Outgoing, Rejection> {
        match answer.content {
            Content::Empty => self.empty(answer.status, &want),
            Content::Json(body) => self.json(answer.status, answer.session, body, &want, request.at),
            Content::Events(events) => {
                let mut events = events;
                let mut early = Vec::new();
                let session = match answer.session {
                    Some(upstream) if want.initialize => {
                        let version =
                            negotiated(&mut events, &mut early).await.map_err(|rejection| match rejection {
                                Rejection::Internal => self.breaks("initialize was answered without a version"),
                                other => other,
                            })?;
                        self.seal(upstream, version, request.at)?
                    }
                    _ => None,
                };
                Ok(Outgoing::Events { flow: Flow::new(early, events, want, slot, self).start(), session })
            }
        }
    }

    fn empty(&self, status: u16, want: &Want) -> Result<Outgoing, Rejection> {
        match (status, &want.id) {
            // An upstream without GET streams or without sessions to end says so.
            (405, None) => Err(Rejection::MethodNotAllowed { allow: "POST" }),
            (_, Some(_)) => Err(self.breaks("a request was answered by nothing")),
            (200..=299, None) if want.stream => Err(self.breaks("a stream was answered by nothing")),
            (200..=299, None) => Ok(Outgoing::Empty { status: if status == 204 { 204 } else { 202 } }),
            _ => Err(self.breaks("an unexpected status")),
        }
    }

    fn json(
        &self,
        status: u16,
        session: Option<String>,
        body: Bytes,
        want: &Want,
        now: SystemTime,
    ) -> Result<Outgoing, Rejection> {
        let incoming = Incoming::read(&body).map_err(|what| self.breaks(what))?;
        let Incoming::Response { id, error_code } = incoming else {
            return Err(self.breaks("a request was answered by a message that is no response"));
        };
        let answers = match (&id, &want.id) {
            (Some(got), Some(wanted)) => got.same(wanted),
            // An error about a message whose id the upstream could not or need not read.
            (None, _) => true,
            (Some(_), None) => false,
        };
        if !answers {
            return Err(self.breaks("the answer is to another request"));
        }
        let (body, hidden) = match (&want.list, &want.id, error_code) {
            (Some(listing), Some(id), None) => {
                self.house.lists.filter(self, listing, &body, id).map_err(|what| self.breaks(what))?
            }
            _ => self.checked(body, want, error_code)?,
        };
        let session = match (session, error_code) {
            (Some(upstream), None) if want.initialize => {
                let version =
                    version_of(&body).ok_or_else(|| self.breaks("initialize was answered without a version"))?;
                self.seal(upstream, version, now)?
            }
            _ => None,
        };
        Ok(Outgoing::Json { status, body, session, error_code, hidden })
    }

    /// An answer that is no list, as the caller may have it, and how much of it was taken out.
    pub(super) fn checked(
        &self,
        body: Bytes,
        want: &Want,
        error_code: Option<i64>,
    ) -> Result<(Bytes, usize), Rejection> {
        let (body, hidden) = self.with_tasks(body, want, error_code)?;
        Ok(if want.read && error_code.is_none() { (self.own(body), hidden) } else { (body, hidden) })
    }

    fn seal(&self, upstream: String, version: String, now: SystemTime) -> Result<Option<String>, Rejection> {
        let session = Session { upstream, version };
        let sealed = self.house.sealer.seal(&session, &self.principal, self.backend.name(), now);
        sealed.map(Some).ok_or_else(|| self.breaks("the session id is malformed"))
    }

    pub(super) fn breaks(&self, what: &str) -> Rejection {
        let backend = self.backend.name().clone();
        tracing::warn!(%backend, what, "the upstream's answer breaks the protocol");
        Rejection::BackendProtocol { backend }
    }

    /// May the caller know of the resource that `notifications/resources/updated` names?
    pub(super) fn may_read(&self, notification: &[u8]) -> bool {
        let uri = serde_json::from_slice::<Updated>(notification).ok().map(|updated| updated.params.uri);
        let readable = |uri: String| {
            let decl = self.backend.plain(catalog::Kind::Resource, &uri);
            self.house.policy.lists(&self.principal, &decl, &self.context)
        };
        uri.is_some_and(readable)
    }

    /// A resource as it was read for this caller: who else may read it is not the server's to say, and nobody may keep it
    /// for longer than the caller's token lives.
    fn own(&self, body: Bytes) -> Bytes {
        let scope = std::str::from_utf8(&body).ok().and_then(|text| {
            let scope = object::member(object::member(text, "result")?.get(), "cacheScope")?;
            (scope.get() != PRIVATE).then_some(scope)
        });
        let mut edits = Edits::of(&body);
        if let Some(scope) = scope {
            edits.replace(scope, PRIVATE.to_owned());
        }
        let body = edits.finish();
        let ttl = ttl_place(&body);
        within_life(body, ttl, &self.principal)
    }

    /// The answer to a list with only what this caller may use; `None` if it breaks the protocol.
    pub(super) fn filter(&self, listing: &Listing, body: &Bytes, id: &Id) -> Option<(Bytes, usize)> {
        self.house.lists.filter(self, listing, body, id).map_err(|what| self.breaks(what)).ok()
    }
}

#[derive(Deserialize)]
struct Updated {
    params: UpdatedParams,
}

#[derive(Deserialize)]
struct UpdatedParams {
    uri: String,
}

/// Reads on until the answer to `initialize` is there, because the session id in the headers needs its version.
async fn negotiated(
    events: &mut BoxStream<'static, Result<Event, backend::Error>>,
    early: &mut Vec<Event>,
) -> Result<String, Rejection> {
    while early.len() < EARLY_EVENTS_MAX {
        let Some(event) = events.next().await else { break };
        let event = event?;
        let version = event.data.as_ref().and_then(|data| version_of(data));
        early.push(event);
        if let Some(version) = version {
            return Ok(version);
        }
    }
    Err(Rejection::Internal)
}

/// `result.protocolVersion` of an answer to `initialize`.
fn version_of(answer: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        result: Option<Result>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Result {
        protocol_version: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    answer.result?.protocol_version.filter(|version| Era::of(version) == Some(Era::Legacy))
}
