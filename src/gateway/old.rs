//! HTTP+SSE of 2024-11-05, for clients that know nothing newer: one stream for all that is said to the client.
//!
//! ```text
//! GET  <route>/sse             the stream: first an event `endpoint` with the path for messages, then events `message`
//! POST <route>/messages/<name> an ordinary legacy message; a request is answered on the stream, others right here
//! ```
//!
//! The session that the gateway or the upstream knows the client by is kept here and ends with the stream. Each message
//! is verified, judged, limited and recorded as any other. What answers requests runs only while the stream is read, so
//! that a client that does not read holds back its own answers and nothing piles up.

mod answer;
mod berth;
mod voice;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::stream;
use http::HeaderValue;

use super::Gateway;
use super::Open;
use super::Rejection;
use super::apply::Outgoing;
use super::door;
use super::errand::Errand;
use super::prepare::Asked;
use super::settled;
use crate::exchange::Request;
use crate::exchange::Verb;
use crate::mcp::Era;
use crate::mcp::FaultKind;
use crate::mcp::Id;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::sse::Event;
use berth::Berth;
pub(super) use berth::Berths;
use voice::Voice;

/// What a request has to say on the stream.
enum Heard {
    Event(Event),
    /// The connection has to end, in this outcome.
    Over(&'static str),
}

/// Opens the stream.
pub(super) async fn stream(gateway: &Gateway, errand: Errand, open: &mut Open) -> Result<Outgoing, Rejection> {
    open.asks(None, Era::Legacy);
    if errand.request.verb != Verb::Get {
        return Err(Rejection::MethodNotAllowed { allow: "GET" });
    }
    let slot = errand.connects(open).await?;
    let (berth, jobs) = Berth::new(&errand, slot);
    let name = gateway.berths.moor(&berth)?;
    let busy = berth.clone();
    open.owes = Some(Arc::new(move || busy.is_busy()));
    let endpoint = Event {
        name: Some("endpoint".to_owned()),
        data: Some(errand.route.messages_path(&name).into()),
        ..Event::default()
    };
    let voice = Voice::new(gateway.clone(), errand, name, berth, jobs, open.shadow());
    let first = stream::iter([super::flow::Passing::Message(endpoint)]);
    Ok(Outgoing::Events { flow: first.chain(voice.speak()).boxed(), session: None })
}

/// Takes one message.
pub(super) async fn message(
    gateway: &Gateway,
    errand: Errand,
    name: &str,
    open: &mut Open,
) -> Result<Outgoing, Rejection> {
    open.asks(None, Era::Legacy);
    if errand.request.verb != Verb::Post {
        return Err(Rejection::MethodNotAllowed { allow: "POST" });
    }
    let berth = gateway.berths.find(name, &errand).ok_or(Rejection::SessionUnknown)?;
    let errand = within(&errand, Verb::Post, berth.session(), None);
    let asked = Asked::read(&errand.request, open)?;
    if asked.era() != Era::Legacy {
        let what = "this transport is of 2024-11-05 and carries only the legacy revisions";
        return Err(Rejection::Message { kind: FaultKind::InvalidRequest { what } });
    }
    let message = asked.message().ok_or(Rejection::Internal)?;
    if !message.is_request() {
        let (method, cancelled) = (message.method, cancelled(message));
        passed_on(gateway, &errand, asked, &berth, open).await?;
        if method == Some(Method::NotificationsInitialized) {
            berth.say(|| answer::news(gateway, &errand, &berth, open.shadow()))?;
        }
        if let Some(id) = cancelled {
            berth.cancel(&id);
        }
        return Ok(Outgoing::Empty { status: 202 });
    }
    let id = message.id().cloned().ok_or(Rejection::Internal)?;
    // SPEC: 2026-07-28 authorization: whoever lacks a scope is told by 403 and a challenge. On the stream it would be too late.
    errand.is_admitted(open)?;
    let (running, registration) = berth.begin(&id, asked.is_initialize())?;
    berth.say(|| {
        let said = answer::said(gateway.clone(), errand, asked, open.lend(), running);
        stream::Abortable::new(said, registration).boxed()
    })?;
    Ok(Outgoing::Empty { status: 202 })
}

/// A notification or a response: the order in which a client sends them is the order in which they arrive.
async fn passed_on(
    gateway: &Gateway,
    errand: &Errand,
    asked: Asked,
    berth: &Berth,
    open: &mut Open,
) -> Result<(), Rejection> {
    let outcome = door::enter(errand, asked, &gateway.lobby, open).await;
    if matches!(outcome, Err(Rejection::SessionUnknown)) {
        // The client cannot begin a new one here.
        drop(berth.say(|| stream::iter([Heard::Over("session_unknown")]).boxed()));
    }
    outcome.map(drop)
}

/// Which request `notifications/cancelled` means.
fn cancelled(message: &Message) -> Option<Id> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params<'a> {
        #[serde(borrow)]
        request_id: &'a serde_json::value::RawValue,
    }
    if message.method != Some(Method::NotificationsCancelled) {
        return None;
    }
    let params: Params<'_> = serde_json::from_slice(message.params.raw.as_ref()?).ok()?;
    Id::from_json(params.request_id.get())
}

/// The errand as one of streamable HTTP: to the route itself, in the connection's session.
fn within(errand: &Errand, verb: Verb, session: Option<HeaderValue>, last_event_id: Option<&str>) -> Errand {
    let old = &*errand.request;
    let mut headers = old.headers.clone();
    for (name, value) in
        [("mcp-session-id", session), ("last-event-id", last_event_id.and_then(|id| HeaderValue::from_str(id).ok()))]
    {
        headers.remove(name);
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    let request = Request {
        id: old.id,
        verb,
        host: old.host.clone(),
        path: errand.route.path.clone(),
        headers,
        body: if verb == Verb::Post { old.body.clone() } else { Bytes::new() },
        peer: old.peer.clone(),
        at: old.at,
        started: old.started,
        deadline: old.deadline,
    };
    Errand { request: request.into(), ..errand.clone() }
}

/// What is asked for the client, in its time.
async fn ask(gateway: &Gateway, errand: &Errand, open: &mut Open) -> Result<Outgoing, Rejection> {
    let work = async {
        let asked = Asked::read(&errand.request, open)?;
        door::enter(errand, asked, &gateway.lobby, open).await
    };
    let work = AssertUnwindSafe(work).catch_unwind();
    let left = errand.request.deadline.saturating_duration_since(Instant::now());
    let ended = pingora::time::timeout(left, work).await;
    settled(ended, open)
}
