//! `Flow`: an event stream on its way to the client. It holds the slot and the record until it ends or is dropped.
//!
//! Every message is checked again here, one by one: only answers to this request pass, lists are filtered, a modern
//! upstream's requests are dropped, and the stream ends when the caller's token does.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::StreamExt;
use futures_util::stream;
use futures_util::stream::BoxStream;

use super::Open;
use super::Rejection;
use super::apply::Desk;
use super::apply::Want;
use super::error_body;
use crate::backend;
use crate::limits::Slot;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::Incoming;
use crate::mcp::list;
use crate::mcp::sse::Event;

/// After the answer has left, the upstream gets this long to end its stream, so that the connection can be used again.
const DRAIN: Duration = Duration::from_secs(1);

pub(super) struct Flow {
    early: VecDeque<Event>,
    upstream: BoxStream<'static, Result<Event, backend::Error>>,
    want: Want,
    /// Held, not read: concurrency ends with the stream.
    _slot: Slot,
    desk: Desk,
    ends: Option<Instant>,
}

/// The configuration changed: what was judged under the old one ends.
struct Reloaded;

/// What one upstream event becomes.
enum Step {
    /// Passed on; more may come.
    Pass(Event),
    /// The answer: the last event.
    Last(Event),
    Drop,
}

impl Flow {
    pub(super) fn new(
        early: Vec<Event>,
        upstream: BoxStream<'static, Result<Event, backend::Error>>,
        want: Want,
        slot: Slot,
        desk: Desk,
    ) -> Flow {
        let left = desk.principal.expires_at().map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        let ends = left.and_then(|left| Instant::now().checked_add(left));
        Flow { early: early.into(), upstream, want, _slot: slot, desk, ends }
    }

    /// Starts to flow. The record is closed when the stream ends, or when the client drops it.
    pub(super) fn start(self, open: Open) -> Pin<Box<dyn Stream<Item = Bytes> + Send>> {
        open.metrics().open_streams.inc();
        let running = Running { flow: self, open, answered: false, resumable: false };
        Box::pin(stream::unfold(Some(running), |running| async move { running?.next().await }))
    }

    /// The next event; `Err` when the configuration changed under an open-ended stream.
    async fn event(&mut self) -> Result<Option<Result<Event, backend::Error>>, Reloaded> {
        if let Some(event) = self.early.pop_front() {
            return Ok(Some(Ok(event)));
        }
        if !self.want.open_ended {
            return Ok(self.upstream.next().await);
        }
        tokio::select! {
            biased;
            Ok(()) = self.desk.reloads.changed() => Err(Reloaded),
            event = self.upstream.next() => Ok(event),
        }
    }

    fn step(&self, mut event: Event, open: &mut Open) -> Step {
        let Some(data) = event.data.as_ref().filter(|data| !data.is_empty()) else {
            // Priming events carry an id and no message.
            return Step::Pass(event);
        };
        match Incoming::read(data) {
            Err(what) => {
                tracing::warn!(backend = %self.desk.backend.name(), what, "an event was dropped");
                Step::Drop
            }
            // A server may announce more than the caller may read.
            Ok(Incoming::Notification { method }) if method == "notifications/resources/updated" => {
                if self.desk.may_read(data) { Step::Pass(event) } else { Step::Drop }
            }
            Ok(Incoming::Notification { .. }) => Step::Pass(event),
            // SPEC: 2026-07-28 streamable-http: no requests on response streams.
            Ok(Incoming::Request { .. }) if self.want.era == Era::Modern => Step::Drop,
            Ok(Incoming::Request { .. }) => Step::Pass(event),
            Ok(Incoming::Response { id, error_code }) => {
                if self.want.stream {
                    return self.replayed(event, id.as_ref());
                }
                let (Some(wanted), Some(got)) = (&self.want.id, &id) else {
                    return Step::Drop;
                };
                if !got.same(wanted) {
                    return Step::Drop;
                }
                open.error_code(error_code);
                if let (Some(kind), None) = (self.want.list, error_code) {
                    match self.desk.filter(kind, data, wanted) {
                        Some((body, hidden)) => {
                            open.hid(hidden);
                            event.data = Some(body);
                        }
                        None => return Step::Last(self.broken()),
                    }
                }
                Step::Last(event)
            }
        }
    }

    /// An answer on a GET stream is a replay of an earlier one (`Last-Event-ID`): a list in it is filtered again.
    fn replayed(&self, mut event: Event, id: Option<&Id>) -> Step {
        let Some(data) = &event.data else {
            return Step::Drop;
        };
        match (list::kinds_of(data).as_deref(), id) {
            (Some([]), _) => Step::Pass(event),
            (Some([kind]), Some(id)) => match self.desk.filter(*kind, data, id) {
                Some((body, _)) => {
                    event.data = Some(body);
                    Step::Pass(event)
                }
                None => Step::Drop,
            },
            // Not to be understood, or more than one list: not to be filtered, so not to be passed.
            _ => Step::Drop,
        }
    }

    fn broken(&self) -> Event {
        self.failure(&Rejection::BackendProtocol { backend: self.desk.backend.name().clone() })
    }

    fn failure(&self, rejection: &Rejection) -> Event {
        let facts = rejection.facts(Some(self.want.era));
        let body =
            error_body(self.want.id.as_ref(), facts.code, &rejection.words(), rejection.data(Some(self.want.era)));
        Event::message(body)
    }
}

struct Running {
    flow: Flow,
    open: Open,
    answered: bool,
    /// A legacy stream with event ids may end early and be resumed (`Last-Event-ID`): its end is not a failure.
    resumable: bool,
}

impl Running {
    /// The next bytes to write, and what goes on after them.
    async fn next(mut self) -> Option<(Bytes, Option<Running>)> {
        loop {
            let left = self.flow.ends.map(|ends| ends.saturating_duration_since(Instant::now()));
            let event = match left {
                None => self.flow.event().await,
                Some(left) => match pingora::time::timeout(left, self.flow.event()).await {
                    Ok(event) => event,
                    Err(_) => return self.end("token_expired"),
                },
            };
            let Ok(event) = event else {
                return self.end("reloaded");
            };
            match event {
                None if self.answered || self.flow.want.id.is_none() || self.resumable => return self.end("streamed"),
                // The upstream went away without an answer: the client must not wait for it.
                None => {
                    let rejection = Rejection::BackendUnavailable { backend: self.flow.desk.backend.name().clone() };
                    return self.fail(&rejection);
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "upstream stream failed");
                    return self.fail(&Rejection::from(error));
                }
                Some(Ok(event)) => match self.flow.step(event, &mut self.open) {
                    Step::Drop => {}
                    Step::Pass(event) => {
                        self.resumable |= self.flow.want.era == Era::Legacy && event.id.is_some();
                        let bytes = event.to_bytes();
                        self.open.streamed(bytes.len());
                        return Some((bytes, Some(self)));
                    }
                    Step::Last(event) => {
                        self.answered = true;
                        let bytes = event.to_bytes();
                        self.open.streamed(bytes.len());
                        self.drain();
                        return Some((bytes, None));
                    }
                },
            }
        }
    }

    /// Ends without another byte.
    fn end(mut self, outcome: &'static str) -> Option<(Bytes, Option<Running>)> {
        self.open.close(outcome);
        None
    }

    fn fail(mut self, rejection: &Rejection) -> Option<(Bytes, Option<Running>)> {
        let facts = rejection.facts(Some(self.flow.want.era));
        self.open.reason(facts.reason);
        self.open.error_code(Some(facts.code));
        let last = self.flow.want.id.is_some().then(|| self.flow.failure(rejection).to_bytes());
        self.open.close("failed");
        last.map(|bytes| (bytes, None))
    }

    /// The answer has been handed over: close the record, give the slot back, let the upstream finish on its own.
    fn drain(mut self) {
        self.open.close("streamed");
        let mut upstream = std::mem::replace(&mut self.flow.upstream, stream::empty().boxed());
        drop(self);
        tokio::spawn(async move {
            drop(tokio::time::timeout(DRAIN, async { while upstream.next().await.is_some() {} }).await);
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.open.metrics().open_streams.dec();
    }
}
