//! One request of a legacy client to modern backends: from the first answer to the last, with the questions in between.
//!
//! In the legacy era a client that loses its connection has not cancelled anything: the call goes on in a task of its
//! own, and what comes of it is kept for a while (see `line`).

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::stream;
use futures_util::stream::BoxStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::answer;
use super::answer::Ask;
use super::answer::Said;
use super::answer::Topic;
use super::line::Line;
use super::line::total;
use super::lobby::Running;
use super::lobby::Seat;
use super::request;
use super::request::Again;
use super::session::Guest;
use super::session::unguessable;
use crate::gateway::Open;
use crate::gateway::Rejection;
use crate::gateway::apply::Outgoing;
use crate::gateway::errand::Errand;
use crate::gateway::flow::Passing;
use crate::gateway::prepare::Asked;
use crate::identity;
use crate::mcp::Id;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::error;
use crate::mcp::object::Object;
use crate::mcp::quoted;
use crate::mcp::sse::Event;

/// How often one call may ask the client for input.
const ROUNDS_MAX: usize = 8;

/// People take their time to answer; but not for ever.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// Kept of the request's own time for saying that nothing came.
const MARGIN: Duration = Duration::from_millis(100);

/// One request of the session.
pub(super) struct Round {
    pub(super) errand: Errand,
    pub(super) seat: Arc<Seat>,
    pub(super) guest: Arc<Guest>,
    pub(super) id: Id,
    pub(super) method: Method,
    pub(super) params: Option<Bytes>,
    pub(super) running: Running,
}

/// The record, given back with what came first.
type Hand = oneshot::Sender<(Open, Result<Outgoing, Rejection>)>;

/// What an upstream's answer is to the conversation.
enum Heard {
    Flow(BoxStream<'static, Passing>),
    Asks { asks: Vec<Ask>, state: Option<String> },
    Last(Passing),
}

impl Round {
    /// Starts it and waits for what the client gets first: a whole answer, or a stream.
    pub(super) async fn serve(self, open: &mut Open) -> Result<Outgoing, Rejection> {
        let (hand, mut back) = oneshot::channel();
        // The record goes with the call: if the client leaves before the answer, it still says what became of it.
        let mut work = Outliving::new(self.run(open.lend(), hand));
        let given = poll_fn(|cx| {
            // It has given the record back by its end, and a stream goes on after that.
            let _ended = work.poll_unpin(cx);
            back.poll_unpin(cx)
        });
        let (record, outcome) = given.await.map_err(|_| Rejection::Internal)?;
        *open = record;
        outcome
    }

    async fn run(self, mut open: Open, hand: Hand) {
        let mut shadow = open.shadow();
        let first = AssertUnwindSafe(self.first(&mut open)).catch_unwind().await;
        let first = first.unwrap_or(Err(Rejection::Internal));
        let begun = match first {
            Ok(Begun::Whole(outgoing)) => Err(Ok(outgoing)),
            Ok(Begun::Stream(heard)) => match self.seat.line(&self.errand, &self.id, &self.guest.version) {
                Ok(line) => Ok((line, heard)),
                Err(rejection) => Err(Err(rejection)),
            },
            Err(rejection) => Err(Err(rejection)),
        };
        let (line, heard) = match begun {
            Ok(begun) => begun,
            Err(outcome) => return self.give(hand, open, outcome),
        };
        self.give(hand, open, Ok(Outgoing::Events { flow: line.answer(), session: None }));
        let last = tokio::select! {
            biased;
            () = self.running.cancelled() => Passing::End("cancelled"),
            // Once nobody listens it has as long as any request has.
            () = line.abandoned(self.errand.span()) => Passing::End("client_gone"),
            last = total(self.converse(&line, heard, &mut shadow)) => last,
        };
        line.end(last);
    }

    /// The first answer, within the request's deadline.
    async fn first(&self, open: &mut Open) -> Result<Begun, Rejection> {
        let asked = self.asked(self.id.clone(), &Again::default())?;
        // Before the request's own deadline, so that it is this end that answers and whose words are recorded.
        let left = self.errand.request.deadline.saturating_duration_since(Instant::now());
        let left = left.saturating_sub(MARGIN).max(left / 2);
        let outcome = {
            let work = self.errand.modern(asked, open);
            tokio::select! {
                biased;
                () = self.running.cancelled() => {
                    // SPEC: a cancelled request is not answered.
                    let flow = stream::iter([Passing::End("cancelled")]).boxed();
                    return Ok(Begun::Whole(Outgoing::Events { flow, session: None }));
                }
                outcome = pingora::time::timeout(left, work) => outcome,
            }
        };
        let outgoing = match outcome {
            Ok(outgoing) => outgoing?,
            Err(_elapsed) => return Err(late(open)),
        };
        match outgoing {
            Outgoing::Json { body, hidden, .. } => match self.read(&body)? {
                // SPEC: legacy transports: to a client in a session 404 means that the session is gone; errors of requests
                // come with 200.
                Said::Done { body, error_code } => {
                    Ok(Begun::Whole(Outgoing::Json { status: 200, body, session: None, error_code, hidden }))
                }
                Said::Asks { asks, state } => Ok(Begun::Stream(Heard::Asks { asks, state })),
            },
            Outgoing::Events { flow, .. } => Ok(Begun::Stream(Heard::Flow(flow))),
            Outgoing::Empty { .. } => Err(self.breaks("a request was answered by nothing")),
        }
    }

    /// Relays, asks and calls again, until there is a last word.
    async fn converse(&self, line: &Line, first: Heard, open: &mut Open) -> Passing {
        let mut heard = first;
        for _ in 0..=ROUNDS_MAX {
            let (asks, state) = match heard {
                Heard::Last(last) => return last,
                Heard::Asks { asks, state } => (asks, state),
                Heard::Flow(flow) => match self.relay(line, flow).await {
                    Heard::Asks { asks, state } => (asks, state),
                    Heard::Last(last) => return last,
                    Heard::Flow(_) => return Passing::Fail(Rejection::Internal),
                },
            };
            let again = match self.ask(line, asks).await {
                Ok(responses) => Again { responses, state },
                Err(last) => return last,
            };
            heard = self.again(&again, open).await.unwrap_or_else(|rejection| Heard::Last(Passing::Fail(rejection)));
        }
        self.fails("the server asked for input too often")
    }

    /// Passes the events on up to the answer. Ids of the upstream mean nothing to our client.
    async fn relay(&self, line: &Line, mut flow: BoxStream<'static, Passing>) -> Heard {
        while let Some(passing) = flow.next().await {
            match passing {
                Passing::Message(Event { data: Some(data), .. }) if !data.is_empty() => {
                    line.push(Passing::Message(Event::message(data))).await;
                }
                Passing::Message(_) => {}
                Passing::Answer { event, hidden, .. } => {
                    return match self.read(&event.data.unwrap_or_default()) {
                        Ok(Said::Done { body, error_code }) => {
                            Heard::Last(Passing::Answer { event: Event::message(body), error_code, hidden })
                        }
                        Ok(Said::Asks { asks, state }) => Heard::Asks { asks, state },
                        Err(rejection) => Heard::Last(Passing::Fail(rejection)),
                    };
                }
                last @ (Passing::End(_) | Passing::Fail(_)) => return Heard::Last(last),
            }
        }
        Heard::Last(Passing::End("streamed"))
    }

    /// Asks the client everything and waits for all answers: `inputResponses`, if anything was asked.
    async fn ask(&self, line: &Line, asks: Vec<Ask>) -> Result<Option<String>, Passing> {
        if asks.is_empty() {
            return Ok(None);
        }
        if let Some(ask) = asks.iter().find(|ask| !self.guest.declares(ask.topic.capability())) {
            tracing::warn!(method = ask.topic.method(), "the upstream asks what the client cannot be asked");
            return Err(Passing::Fail(self.breaks("it asks for what the client did not declare")));
        }
        let mut waiting = Vec::with_capacity(asks.len());
        for ask in asks {
            let one = self.seat.expect().map_err(Passing::Fail)?;
            let mut question = Object::default();
            question.set("jsonrpc", "\"2.0\"");
            question.set("id", quoted(&one.id));
            question.set("method", quoted(ask.topic.method()));
            if let Some(params) = &ask.params {
                question.set("params", params);
            }
            line.push(Passing::Message(Event::message(question.to_string().into()))).await;
            waiting.push((ask, one));
        }
        let all = async {
            let mut responses = Object::default();
            for (ask, mut one) in waiting {
                let outcome = one.answer().await.unwrap_or_default();
                let response = self.response(ask.topic, &outcome)?;
                responses.push(ask.key.into(), response.into());
            }
            Ok(Some(responses.to_string()))
        };
        let answered = pingora::time::timeout(ANSWER_TIMEOUT, all).await;
        answered.unwrap_or_else(|_| Err(self.fails("the client did not answer what the server asked")))
    }

    /// The client's answer as the server gets it.
    fn response(&self, topic: Topic, outcome: &[u8]) -> Result<String, Passing> {
        let whole = [b"{", outcome, b"}"].concat();
        let message = Object::read(&whole).unwrap_or_default();
        match (message.get("result"), topic) {
            (Some(result), _) if result.starts_with('{') => Ok(result.to_owned()),
            // SPEC: elicitation knows a client that does not answer; for the others there is no such answer.
            (_, Topic::Elicitation) => Ok(r#"{"action":"cancel"}"#.to_owned()),
            _ => Err(self.fails(&format!("the client refused {}", topic.method()))),
        }
    }

    /// The same call with what the client answered: a new request, judged and counted like any other.
    async fn again(&self, again: &Again, open: &mut Open) -> Result<Heard, Rejection> {
        let errand = self.errand.anew();
        if errand.principal.expires_at().is_some_and(|at| at <= SystemTime::now()) {
            let description = "the token expired while the call waited for the client".to_owned();
            return Err(Rejection::Identity { problem: identity::Error::Invalid { description } });
        }
        if errand.reloads.has_changed().unwrap_or(true) {
            // What is allowed may be something else by now; a new request is judged by it.
            tracing::info!("a call that waited for its client ends because the configuration changed");
            return Err(Rejection::BackendUnavailable { backend: self.backend() });
        }
        // SPEC: 2026-07-28 mrtr: under a new id.
        let id = unguessable().and_then(|name| Id::from_json(&format!("\"wg-{name}\""))).ok_or(Rejection::Internal)?;
        let asked = self.asked(id, again)?;
        let work = pingora::time::timeout(errand.span(), errand.modern(asked, open));
        let outgoing = work.await.map_err(|_| Rejection::BackendTimeout { backend: self.backend() })??;
        match outgoing {
            Outgoing::Json { body, hidden, .. } => Ok(match self.read(&body)? {
                Said::Done { body, error_code } => {
                    Heard::Last(Passing::Answer { event: Event::message(body), error_code, hidden })
                }
                Said::Asks { asks, state } => Heard::Asks { asks, state },
            }),
            Outgoing::Events { flow, .. } => Ok(Heard::Flow(flow)),
            Outgoing::Empty { .. } => Err(self.breaks("a request was answered by nothing")),
        }
    }

    /// Gives the record back. If nobody waits for it any more, it is closed here: the client has left meanwhile, or it was
    /// told that nothing came in time.
    fn give(&self, hand: Hand, open: Open, outcome: Result<Outgoing, Rejection>) {
        let Err((mut open, outcome)) = hand.send((open, outcome)) else { return };
        let told = Instant::now() >= self.errand.request.deadline;
        let rejection = if told { Some(late(&open)) } else { outcome.err() };
        let Some(rejection) = rejection else { return open.close("client_gone") };
        let facts = rejection.facts(open.era());
        open.reason(facts.reason);
        open.error_code(Some(facts.code));
        if told {
            open.status(facts.status);
        }
        open.close(if told { "failed" } else { "client_gone" });
    }

    fn asked(&self, id: Id, again: &Again) -> Result<Asked, Rejection> {
        asked(&self.guest, &self.seat, id, self.method, self.params.as_ref(), again)
    }

    fn read(&self, body: &[u8]) -> Result<Said, Rejection> {
        answer::read(body, &self.id, self.method, &self.guest.version).map_err(|what| self.breaks(what))
    }

    fn backend(&self) -> Arc<str> {
        self.errand.route.backends.first().cloned().unwrap_or_default()
    }

    fn breaks(&self, what: &str) -> Rejection {
        let backend = self.backend();
        tracing::warn!(%backend, what, "the upstream's answer breaks the protocol");
        Rejection::BackendProtocol { backend }
    }

    /// The call ends here, and the client is told why.
    fn fails(&self, words: &str) -> Passing {
        let event = Event::message(answer::failure(&self.id, words));
        Passing::Answer { event, error_code: Some(error::INTERNAL_ERROR), hidden: 0 }
    }
}

/// Work that goes on in a task of its own once nobody waits for it here any more. Most work is done before that, and a
/// task for each call costs more than the call's own part of the door.
struct Outliving<F: Future<Output = ()> + Send + 'static>(Option<Pin<Box<F>>>);

impl<F: Future<Output = ()> + Send + 'static> Outliving<F> {
    fn new(work: F) -> Outliving<F> {
        Outliving(Some(Box::pin(work)))
    }
}

impl<F: Future<Output = ()> + Send + 'static> Future for Outliving<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<()> {
        if let Some(work) = &mut self.0 {
            ready!(work.as_mut().poll(cx));
            self.0 = None;
        }
        Poll::Ready(())
    }
}

impl<F: Future<Output = ()> + Send + 'static> Drop for Outliving<F> {
    fn drop(&mut self) {
        // Without a runtime the program is ending, and all work with it.
        if let (Some(work), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(work);
        }
    }
}

/// How the answer to the client begins.
enum Begun {
    Whole(Outgoing),
    Stream(Heard),
}

/// A legacy request as its modern counterpart.
pub(super) fn asked(
    guest: &Guest,
    seat: &Seat,
    id: Id,
    method: Method,
    params: Option<&Bytes>,
    again: &Again,
) -> Result<Asked, Rejection> {
    // SPEC: a legacy server decides what it logs until it is told; a modern one logs nothing until it is.
    let level = seat.level().or(guest.announced.logging.then_some("info"));
    let meta = request::Meta { capabilities: &guest.capabilities, client: guest.client.as_deref(), level };
    let params = request::modern(params, meta, again).map_err(|kind| Rejection::Message { kind })?;
    let message = Message::modern(id, method, params).map_err(|kind| Rejection::Message { kind })?;
    Ok(Asked::modern(message, false))
}

/// Nothing came in time. Before a backend was chosen nobody upstream is to blame.
fn late(open: &Open) -> Rejection {
    open.backend().map_or(Rejection::Overloaded, |backend| Rejection::BackendTimeout { backend })
}
