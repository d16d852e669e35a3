//! The door for legacy clients (sessions) to backends that are served in the modern way (none).
//!
//! ```text
//! initialize → server/discover, and a session id that carries what the client said
//! requests   → the same in the modern way (request), judged like any other, answered in the legacy way (answer);
//!              what the server wants to know meanwhile is asked of the client (rounds)
//! GET        → subscriptions/listen (news)
//! ```
//!
//! INVARIANT: nothing is decided here. Every message that goes on is judged by `Errand::modern`; what is answered here is
//! judged as talking to the backend.

mod answer;
mod line;
mod lobby;
pub(super) mod news;
mod request;
mod rounds;
mod session;

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;

use super::Open;
use super::Rejection;
use super::apply::Outgoing;
use super::errand::Errand;
use super::flow::Passing;
use super::prepare::Asked;
use crate::catalog::Operation;
use crate::mcp::Era;
use crate::mcp::FaultKind;
use crate::mcp::Id;
use crate::mcp::Kind;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::error;
use crate::mcp::object::Object;
use answer::Said;
pub(super) use lobby::Lobby;
use lobby::Seat;
use request::Again;
use rounds::Round;
use session::Guest;

/// SPEC: RFC 5424 severities, as `logging/setLevel` names them.
const LEVELS: [&str; 8] = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];

/// Events that may come before the answer to a question of ours.
const EARLY_EVENTS_MAX: usize = 16;

/// How a legacy client's message goes on.
enum Way {
    Door,
    Straight,
    /// Straight, and if the backend knows no legacy clients, through the door.
    Try,
}

/// A legacy client's message: straight to a backend that knows sessions, through the door to all others.
pub(super) async fn enter(
    errand: &Errand,
    asked: Asked,
    lobby: &Arc<Lobby>,
    open: &mut Open,
) -> Result<Outgoing, Rejection> {
    let spare = match way(errand, &asked, open)? {
        Way::Door => return Box::pin(serve(errand, asked, lobby, open)).await,
        Way::Straight => None,
        Way::Try => asked.again(),
    };
    let in_session = asked.sealed().is_some();
    let outcome = errand.straight(asked, open).await;
    let outcome = match (&spare, outcome) {
        (Some(_), Ok(outgoing)) => Ok(answered(outgoing).await),
        (_, outcome) => outcome,
    };
    match spare {
        Some(asked) if is_refused(&outcome) && Box::pin(is_modern(errand, open)).await => {
            Box::pin(serve(errand, asked, lobby, open)).await
        }
        _ if in_session && is_of_another_era(&outcome) => Err(Rejection::SessionUnknown),
        _ => outcome,
    }
}

/// An upstream of both eras is met as a legacy one: nothing needs translating then. So only `initialize` finds out, and
/// the session id remembers.
fn way(errand: &Errand, asked: &Asked, open: &mut Open) -> Result<Way, Rejection> {
    // A question of ours goes the door's way: who comes in otherwise could not be asked.
    if errand.route.backends.len() != 1 || errand.house.policy.confirms() {
        return Ok(Way::Door);
    }
    let member = errand.only_member(open)?;
    Ok(match member.era {
        Some(Era::Legacy) => Way::Straight,
        Some(Era::Modern) => Way::Door,
        None if asked.is_initialize() && member.backend.era() == Some(Era::Legacy) => Way::Straight,
        None if asked.is_initialize() => Way::Try,
        None if asked.sealed().is_some_and(|id| Guest::open(id, errand).is_some()) => Way::Door,
        None => Way::Straight,
    })
}

/// Reads on until the answer is there: a refusal may come as an event stream too.
async fn answered(outgoing: Outgoing) -> Outgoing {
    let Outgoing::Events { mut flow, session } = outgoing else { return outgoing };
    let mut early = Vec::new();
    while early.len() < EARLY_EVENTS_MAX {
        match flow.next().await {
            Some(Passing::Message(event)) => early.push(Passing::Message(event)),
            Some(Passing::Answer { event, error_code: code @ Some(_), hidden }) => {
                let body = event.data.unwrap_or_default();
                return Outgoing::Json { status: 200, body, session: None, error_code: code, hidden };
            }
            Some(last) => {
                early.push(last);
                break;
            }
            None => break,
        }
    }
    Outgoing::Events { flow: stream::iter(early).chain(flow).boxed(), session }
}

/// Was `initialize` answered as by somebody who does not know it?
fn is_refused(outcome: &Result<Outgoing, Rejection>) -> bool {
    matches!(outcome, Ok(Outgoing::Json { error_code: Some(_), .. }) | Err(Rejection::BackendProtocol { .. }))
}

/// A session with an upstream that has become a modern one is over.
fn is_of_another_era(outcome: &Result<Outgoing, Rejection>) -> bool {
    const MODERN: [i64; 3] =
        [error::HEADER_MISMATCH, error::MISSING_CLIENT_CAPABILITY, error::UNSUPPORTED_PROTOCOL_VERSION];
    matches!(outcome, Ok(Outgoing::Json { error_code: Some(code), .. }) if MODERN.contains(code))
}

async fn is_modern(errand: &Errand, open: &mut Open) -> bool {
    let Ok(member) = errand.only_member(open) else { return false };
    // What is known needs no credential.
    if let Some(era) = member.backend.era() {
        return era == Era::Modern;
    }
    let Ok(credential) = errand.asks_with(member).await else { return false };
    member.backend.speaks(credential, errand.request.deadline).await == Ok(Era::Modern)
}

async fn serve(errand: &Errand, asked: Asked, lobby: &Arc<Lobby>, open: &mut Open) -> Result<Outgoing, Rejection> {
    if asked.is_initialize() {
        let Operation::Post(message) = asked.into_operation() else { return Err(Rejection::Internal) };
        return initialize(errand, &message, open).await;
    }
    let guest = asked.sealed().map(|id| Guest::open(id, errand).ok_or(Rejection::SessionUnknown)).transpose()?;
    let operation = asked.into_operation();
    let Some(guest) = guest else {
        return Err(match operation {
            // Nothing to end.
            Operation::EndSession => Rejection::MethodNotAllowed { allow: "GET, POST" },
            // Without a session nobody was asked anything.
            Operation::Post(message) if message.method.is_none() => Rejection::SessionUnknown,
            Operation::Post(_) | Operation::Stream { .. } => {
                Rejection::BadRequest { what: "Mcp-Session-Id is required here; initialize first" }
            }
        });
    };
    let seat = lobby.seat(&guest, errand.principal.key())?;
    match operation {
        Operation::EndSession => {
            errand.talks(open).await?;
            lobby.end(&guest);
            Ok(Outgoing::Empty { status: 204 })
        }
        Operation::Stream { last_event_id: Some(event_id) } if !news::is_news(&event_id) => {
            resume(errand, &seat, &event_id, open).await
        }
        Operation::Stream { last_event_id } => {
            news::watch(errand, &Arc::new(guest), &seat, last_event_id.as_deref(), open).await
        }
        Operation::Post(message) => match message.kind.clone() {
            Kind::Request { id } => request(errand, guest, seat, id, message, open).await,
            Kind::Notification => {
                errand.talks(open).await?;
                notified(&seat, &message);
                Ok(Outgoing::Empty { status: 202 })
            }
            Kind::Response { id } => {
                errand.talks(open).await?;
                if seat.answered(&id, message.outcome.unwrap_or_default()) {
                    Ok(Outgoing::Empty { status: 202 })
                } else {
                    Err(Rejection::BadRequest { what: "a response to a request that does not wait for one here" })
                }
            }
        },
    }
}

/// `initialize`: answered from what the backends say of themselves.
async fn initialize(errand: &Errand, message: &Message, open: &mut Open) -> Result<Outgoing, Rejection> {
    let id = message.id().ok_or(Rejection::Internal)?.clone();
    let none = bytes::Bytes::from_static(b"{}");
    let params = Object::read(message.params.raw.as_ref().unwrap_or(&none)).ok_or(Rejection::Internal)?;
    let mut guest = Guest::new(&params, errand.request.at).ok_or(Rejection::Internal)?;
    let meta = request::Meta { capabilities: &guest.capabilities, client: guest.client.as_deref(), level: None };
    let discover = request::modern(None, meta, &Again::default())
        .and_then(|params| Message::modern(id.clone(), Method::ServerDiscover, params))
        .map_err(|kind| Rejection::Message { kind })?;
    let outgoing = errand.modern(Asked::modern(discover, false), open).await?;
    let backend = || errand.route.backends.first().cloned().unwrap_or_default();
    let (body, refused) = whole(outgoing).await?.ok_or_else(|| Rejection::BackendProtocol { backend: backend() })?;
    if refused {
        let said = answer::read(&body, &id, Method::Initialize, &guest.version);
        let Ok(Said::Done { body, error_code }) = said else {
            return Err(Rejection::BackendProtocol { backend: backend() });
        };
        return Ok(Outgoing::Json { status: 200, body, session: None, error_code, hidden: 0 });
    }
    let (result, announced) = answer::initialized(&body, &guest.version).map_err(|what| {
        tracing::warn!(backend = %backend(), what, "the upstream's answer breaks the protocol");
        Rejection::BackendProtocol { backend: backend() }
    })?;
    guest.announced = announced;
    let session = Some(guest.seal(errand).ok_or(Rejection::Internal)?);
    Ok(Outgoing::Json { status: 200, body: answer::answer(&id, &result), session, error_code: None, hidden: 0 })
}

/// The answer to a question of ours, and whether it is an error. `None`: there is none.
async fn whole(outgoing: Outgoing) -> Result<Option<(bytes::Bytes, bool)>, Rejection> {
    let mut flow = match outgoing {
        Outgoing::Json { body, error_code, .. } => return Ok(Some((body, error_code.is_some()))),
        Outgoing::Events { flow, .. } => flow.take(EARLY_EVENTS_MAX),
        Outgoing::Empty { .. } => return Ok(None),
    };
    while let Some(passing) = flow.next().await {
        match passing {
            Passing::Message(_) => {}
            Passing::Answer { event, error_code, .. } => {
                return Ok(event.data.map(|body| (body, error_code.is_some())));
            }
            Passing::Fail(rejection) => return Err(rejection),
            Passing::End(_) => break,
        }
    }
    Ok(None)
}

async fn request(
    errand: &Errand,
    guest: Guest,
    seat: Arc<Seat>,
    id: Id,
    message: Message,
    open: &mut Open,
) -> Result<Outgoing, Rejection> {
    let method = message.method.ok_or(Rejection::Internal)?;
    let empty = |id: &Id| {
        let body = answer::answer(id, "{}");
        Ok(Outgoing::Json { status: 200, body, session: None, error_code: None, hidden: 0 })
    };
    match method {
        Method::Ping => {
            errand.talks(open).await?;
            empty(&id)
        }
        Method::LoggingSetLevel => {
            errand.talks(open).await?;
            let params = message.params.raw.as_ref().and_then(|raw| Object::read(raw));
            let asked = params.and_then(|params| params.text("level")).unwrap_or_default();
            let Some(level) = LEVELS.into_iter().find(|level| *level == asked) else {
                let what =
                    "params.level must be one of debug, info, notice, warning, error, critical, alert, emergency";
                return Err(Rejection::Message { kind: FaultKind::InvalidParams { what: what.into() } });
            };
            seat.set_level(level);
            empty(&id)
        }
        Method::ResourcesSubscribe | Method::ResourcesUnsubscribe => {
            let uri = message.params.uri.as_deref().unwrap_or_default();
            let wanted = method == Method::ResourcesSubscribe;
            news::change(errand, &guest, &seat, &id, (uri, wanted), open).await
        }
        Method::CompletionComplete
        | Method::PromptsGet
        | Method::PromptsList
        | Method::ResourcesList
        | Method::ResourcesRead
        | Method::ResourcesTemplatesList
        | Method::ToolsCall
        | Method::ToolsList => {
            let running = seat.begin(&id)?;
            let (errand, guest, params) = (errand.clone(), Arc::new(guest), message.params.raw);
            Round { errand, seat, guest, id, method, params, running }.serve(open).await
        }
        // INVARIANT: the parser lets no other request of the legacy era through.
        _ => Err(Rejection::Message { kind: FaultKind::MethodNotFound { method: method.as_str().to_owned() } }),
    }
}

/// Of all that a legacy client tells, a modern server is to know one thing: that it does not want an answer any more.
fn notified(seat: &Seat, message: &Message) {
    if message.method != Some(Method::NotificationsCancelled) {
        return;
    }
    let params = message.params.raw.as_ref().and_then(|raw| Object::read(raw));
    if let Some(id) = params.and_then(|params| Id::from_json(params.get("requestId")?)) {
        seat.cancel(&id);
    }
}

/// GET with `Last-Event-ID`: what the client missed of one stream of its session, and what is still to come of it.
async fn resume(errand: &Errand, seat: &Arc<Seat>, event_id: &str, open: &mut Open) -> Result<Outgoing, Rejection> {
    let slot = errand.connects(open).await?;
    let (line, number) = seat
        .find_line(event_id, line::Mark::of(errand))
        .ok_or(Rejection::BadRequest { what: "this Last-Event-ID is not known here" })?;
    let owing = line.clone();
    open.owes = Some(Arc::new(move || !owing.has_ended()));
    let rest = (line.replay(number), news::Watch::of(errand), slot);
    let flow = stream::unfold(Some(rest), |rest| async move {
        let (mut flow, mut watch, slot) = rest?;
        tokio::select! {
            biased;
            how = watch.ends() => Some((Passing::End(how), None)),
            passing = flow.next() => Some((passing?, Some((flow, watch, slot)))),
        }
    });
    Ok(Outgoing::Events { flow: flow.boxed(), session: None })
}
