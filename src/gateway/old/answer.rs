//! What a request has to say on the stream, up to its answer; and the server's own messages.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::stream;
use futures_util::stream::BoxStream;
use http::HeaderValue;

use super::Berth;
use super::Heard;
use super::ask;
use super::berth::Job;
use super::berth::Running;
use super::within;
use crate::exchange::Body;
use crate::exchange::Verb;
use crate::gateway::Gateway;
use crate::gateway::Open;
use crate::gateway::Rejection;
use crate::gateway::apply::Outgoing;
use crate::gateway::door;
use crate::gateway::errand::Errand;
use crate::gateway::flow::Passing;
use crate::gateway::prepare::Asked;
use crate::gateway::settled;
use crate::gateway::stream::to_others;
use crate::identity;
use crate::mcp::Id;
use crate::mcp::Incoming;
use crate::mcp::sse::Event;

/// Between the end of a stream and the next attempt, if the server does not say.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
const REOPEN_AFTER_MAX: Duration = Duration::from_secs(30);

/// Attempts in a row that bring nothing.
const REOPENED_MAX: u32 = 8;

/// A request, from here to its answer.
pub(super) fn said(gateway: Gateway, errand: Errand, asked: Asked, open: Open, running: Running) -> Job {
    let begun = async move {
        let heard = begin(&gateway, &errand, asked, open, &running).await;
        heard.map(move |heard| {
            let _until_the_end = &running;
            heard
        })
    };
    stream::once(begun).flatten().boxed()
}

async fn begin(gateway: &Gateway, errand: &Errand, asked: Asked, mut open: Open, running: &Running) -> Job {
    let initialize = asked.is_initialize();
    let id = open.id().cloned();
    let left = errand.request.deadline.saturating_duration_since(Instant::now());
    let work = AssertUnwindSafe(door::enter(errand, asked, &gateway.lobby, &mut open)).catch_unwind();
    let ended = pingora::time::timeout(left, work).await;
    let outcome = settled(ended, &open);
    if initialize {
        let session = |id: &Option<String>| Some(id.as_ref().and_then(|id| HeaderValue::try_from(id).ok()));
        running.initialized(match &outcome {
            Ok(Outgoing::Json { session: id, error_code: None, .. } | Outgoing::Events { session: id, .. }) => {
                session(id)
            }
            Ok(Outgoing::Json { .. } | Outgoing::Empty { .. }) | Err(_) => None,
        });
    }
    let lost = matches!(outcome, Err(Rejection::SessionUnknown));
    let reply = match outcome {
        Ok(Outgoing::Events { flow, .. }) => {
            open.status(200);
            let note = open.shadow();
            let following = id.map(|id| Following {
                gateway: gateway.clone(),
                errand: errand.clone(),
                berth: running.berth().clone(),
                id,
                flow,
                last: None,
                wait: REOPEN_AFTER,
                reopened: 0,
                note,
            });
            let flow = stream::unfold(following, |following| async move { Some(following?.next().await) }).boxed();
            return to_others(flow, open).map(Heard::Event).boxed();
        }
        Ok(outgoing) => outgoing.into_reply(open),
        Err(rejection) => gateway.reject(&errand.house, (&errand.request.host, &errand.request.path), open, rejection),
    };
    let answer = match reply.body {
        Body::Full(body) => Some(Heard::Event(Event::message(body))),
        Body::Empty | Body::Events(_) => None,
    };
    // A client of this transport cannot begin another session on its stream.
    let over = lost.then_some(Heard::Over("session_unknown"));
    stream::iter(answer.into_iter().chain(over)).boxed()
}

/// A request's event stream. A server may end it before the answer and wait to be asked for the rest, which this client
/// cannot do: so it is done here.
struct Following {
    gateway: Gateway,
    errand: Errand,
    berth: Arc<Berth>,
    id: Id,
    flow: BoxStream<'static, Passing>,
    /// The id of the last event that had one.
    last: Option<String>,
    wait: Duration,
    reopened: u32,
    note: Open,
}

impl Following {
    async fn next(mut self) -> (Passing, Option<Following>) {
        loop {
            match self.flow.next().await {
                Some(Passing::Message(event)) => {
                    if let Some(id) = &event.id {
                        self.last = Some(id.clone());
                    }
                    if let Some(retry) = event.retry {
                        self.wait = Duration::from_millis(retry).min(REOPEN_AFTER_MAX);
                    }
                    let Some(data) = event.data.as_ref().filter(|data| !data.is_empty()) else { continue };
                    self.reopened = 0;
                    // On a stream that was taken up again the answer is one message of many.
                    if let Ok(Incoming::Response { id, error_code }) = Incoming::read(data) {
                        if !id.is_some_and(|id| id.same(&self.id)) {
                            continue;
                        }
                        return (Passing::Answer { event, error_code, hidden: 0 }, None);
                    }
                    return (Passing::Message(event), Some(self));
                }
                Some(last @ (Passing::Answer { .. } | Passing::Fail(_))) => return (last, None),
                Some(Passing::End("token_expired")) => {
                    let problem = identity::Error::Invalid { description: "the token has expired".to_owned() };
                    return (Passing::Fail(Rejection::Identity { problem }), None);
                }
                Some(Passing::End(_)) | None => {
                    if let Err(rejection) = self.take_up().await {
                        return (Passing::Fail(rejection), None);
                    }
                }
            }
        }
    }

    async fn take_up(&mut self) -> Result<(), Rejection> {
        let lost = || Rejection::BackendUnavailable {
            backend: self.errand.route.backends.first().cloned().unwrap_or_default(),
        };
        if self.last.is_none() || self.reopened >= REOPENED_MAX {
            return Err(lost());
        }
        self.reopened += 1;
        tokio::time::sleep(self.wait).await;
        let errand = within(&self.errand.anew(), Verb::Get, self.berth.session(), self.last.as_deref());
        match ask(&self.gateway, &errand, &mut self.note).await? {
            Outgoing::Events { flow, .. } => {
                self.flow = flow;
                Ok(())
            }
            Outgoing::Empty { .. } | Outgoing::Json { .. } => Err(lost()),
        }
    }
}

/// The server's own messages: the session's GET stream, which this client does not know of.
pub(super) fn news(gateway: &Gateway, errand: &Errand, berth: &Arc<Berth>, note: Open) -> Job {
    let listening = Listening {
        gateway: gateway.clone(),
        errand: errand.clone(),
        berth: berth.clone(),
        note,
        flow: None,
        opened: 0,
    };
    let first = berth.listens().then_some(listening);
    stream::unfold(first, |listening| async move { listening?.next().await }).boxed()
}

struct Listening {
    gateway: Gateway,
    errand: Errand,
    berth: Arc<Berth>,
    note: Open,
    flow: Option<BoxStream<'static, Passing>>,
    /// Attempts in a row that brought nothing.
    opened: u32,
}

impl Listening {
    async fn next(mut self) -> Option<(Heard, Option<Listening>)> {
        loop {
            let Some(flow) = &mut self.flow else {
                match self.open().await {
                    Ok(true) => continue,
                    Ok(false) => return None,
                    Err(over) => return Some((over, None)),
                }
            };
            match flow.next().await {
                Some(Passing::Message(event)) => {
                    // An event without a message is no sign of life: such a server is asked again after a pause.
                    if event.data.as_ref().is_some_and(|data| !data.is_empty()) {
                        self.opened = 1;
                    }
                    return Some((Heard::Event(event), Some(self)));
                }
                // Every message of the client is judged by its own token; the stream's is watched by the stream.
                Some(Passing::End("reloaded" | "token_expired")) => {
                    return self.recount().await.err().map(|over| (over, None));
                }
                Some(Passing::Answer { .. } | Passing::End(_) | Passing::Fail(_)) | None => self.flow = None,
            }
        }
    }

    /// Opens it; `false` when there is none to be had. While it is open it counts as the connection's stream.
    async fn open(&mut self) -> Result<bool, Heard> {
        if self.opened > 0 {
            tokio::time::sleep(REOPEN_AFTER * self.opened).await;
        }
        self.opened += 1;
        let gone = self.opened > REOPENED_MAX || self.errand.reloads.has_changed().unwrap_or(true);
        let Some(session) = self.berth.session().filter(|_| !gone) else { return self.recount().await };
        let errand = within(&self.errand.anew(), Verb::Get, Some(session), None);
        self.berth.count(None);
        match ask(&self.gateway, &errand, &mut self.note).await {
            Ok(Outgoing::Events { flow, .. }) => {
                self.flow = Some(flow);
                Ok(true)
            }
            Ok(Outgoing::Empty { .. } | Outgoing::Json { .. }) | Err(_) => self.recount().await,
        }
    }

    async fn recount(&mut self) -> Result<bool, Heard> {
        match self.errand.connects(&mut self.note).await {
            Ok(slot) => {
                self.berth.count(Some(slot));
                Ok(false)
            }
            Err(_) => Err(Heard::Over("too_many_streams")),
        }
    }
}
