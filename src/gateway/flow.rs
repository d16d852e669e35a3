//! `Flow`: an upstream's event stream on its way to the client. It holds the slot until it ends or is dropped.
//!
//! Every message is checked again here, one by one: only answers to this request pass, lists are filtered, a modern
//! upstream's requests are dropped, and the stream ends when the caller's token does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use futures_util::stream::BoxStream;

use super::Rejection;
use super::apply::Desk;
use super::apply::Want;
use super::list::Listing;
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
    _slot: Arc<Slot>,
    desk: Desk,
    ends: Option<Instant>,
    /// A legacy stream with event ids may end early and be resumed (`Last-Event-ID`): its end is not a failure.
    resumable: bool,
}

/// What comes out of a flow.
#[derive(Clone)]
pub(super) enum Passing {
    /// A message on its way; more may come.
    Message(Event),
    /// The answer to the request; nothing follows.
    Answer { event: Event, error_code: Option<i64>, hidden: usize },
    /// It ends without an answer, in this outcome; nothing follows.
    End(&'static str),
    /// It ends because of this; nothing follows.
    Fail(Rejection),
}

/// The configuration changed: what was judged under the old one ends.
struct Reloaded;

/// What one upstream event becomes.
enum Step {
    /// Passed on; more may come.
    Pass(Event),
    /// The last that comes.
    Last(Passing),
    Drop,
}

impl Flow {
    pub(super) fn new(
        early: Vec<Event>,
        upstream: BoxStream<'static, Result<Event, backend::Error>>,
        want: Want,
        slot: Arc<Slot>,
        desk: Desk,
    ) -> Flow {
        let left = desk.principal.expires_at().map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        let ends = left.and_then(|left| Instant::now().checked_add(left));
        Flow { early: early.into(), upstream, want, _slot: slot, desk, ends, resumable: false }
    }

    /// Starts to flow. The last item is an [`Passing::Answer`], [`Passing::End`] or [`Passing::Fail`].
    pub(super) fn start(self) -> BoxStream<'static, Passing> {
        stream::unfold(Some(self), advance).boxed()
    }

    async fn next(mut self) -> (Passing, Option<Flow>) {
        loop {
            let left = self.ends.map(|ends| ends.saturating_duration_since(Instant::now()));
            let event = match left {
                None => self.event().await,
                Some(left) => match pingora::time::timeout(left, self.event()).await {
                    Ok(event) => event,
                    Err(_) => return (Passing::End("token_expired"), None),
                },
            };
            let Ok(event) = event else {
                return (Passing::End("reloaded"), None);
            };
            match event {
                None if self.want.id.is_none() || self.resumable => return (Passing::End("streamed"), None),
                // The upstream went away without an answer: the client must not wait for it.
                None => {
                    let backend = self.desk.backend.name().clone();
                    return (Passing::Fail(Rejection::BackendUnavailable { backend }), None);
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "upstream stream failed");
                    return (Passing::Fail(Rejection::from(error)), None);
                }
                Some(Ok(event)) => match self.step(event) {
                    Step::Drop => {}
                    Step::Pass(event) => {
                        self.resumable |= self.want.era == Era::Legacy && event.id.is_some();
                        return (Passing::Message(event), Some(self));
                    }
                    Step::Last(passing) => {
                        self.drain();
                        return (passing, None);
                    }
                },
            }
        }
    }

    /// The answer has been handed over: give the slot back, let the upstream finish on its own.
    fn drain(self) {
        let mut upstream = self.upstream;
        tokio::spawn(async move {
            drop(tokio::time::timeout(DRAIN, async { while upstream.next().await.is_some() {} }).await);
        });
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

    fn step(&self, mut event: Event) -> Step {
        let Some(data) = event.data.clone().filter(|data| !data.is_empty()) else {
            // Priming events carry an id and no message.
            return Step::Pass(event);
        };
        match Incoming::read(&data) {
            Err(what) => {
                tracing::warn!(backend = %self.desk.backend.name(), what, "an event was dropped");
                Step::Drop
            }
            // A server may announce more than the caller may read.
            Ok(Incoming::Notification { method }) if method == "notifications/resources/updated" => {
                if self.desk.may_read(&data) { Step::Pass(event) } else { Step::Drop }
            }
            Ok(Incoming::Notification { method }) => {
                self.desk.house.lists.announced(self.desk.backend.name(), &method);
                if method == "notifications/tools/list_changed" {
                    self.desk.backend.doubt();
                }
                self.told(event, &data, &method)
            }
            // SPEC: 2026-07-28 streamable-http: no requests on response streams.
            Ok(Incoming::Request { .. }) if self.want.era == Era::Modern => Step::Drop,
            Ok(Incoming::Request { method }) => self.told(event, &data, &method),
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
                let filtered = match (&self.want.list, error_code) {
                    (Some(listing), None) => self.desk.filter(listing, &data, wanted).ok_or_else(|| {
                        let backend = self.desk.backend.name().clone();
                        Rejection::BackendProtocol { backend }
                    }),
                    _ => self.desk.checked(data, &self.want, error_code),
                };
                match filtered {
                    Ok((body, hidden)) => {
                        event.data = Some(body);
                        Step::Last(Passing::Answer { event, error_code, hidden })
                    }
                    Err(rejection) => Step::Last(Passing::Fail(rejection)),
                }
            }
        }
    }

    /// What the server says on its own; it may be about a task.
    fn told(&self, event: Event, data: &Bytes, method: &str) -> Step {
        match self.desk.told(data, method, &self.want) {
            Some(data) => Step::Pass(Event { data: Some(data), ..event }),
            None => Step::Drop,
        }
    }

    /// An answer on a GET stream is a replay of an earlier one (`Last-Event-ID`): a list in it is filtered again.
    fn replayed(&self, mut event: Event, id: Option<&Id>) -> Step {
        let Some(data) = &event.data else {
            return Step::Drop;
        };
        match (list::kinds_of(data).as_deref(), id) {
            (Some([]), _) => match self.desk.checked(data.clone(), &self.want, None) {
                Ok((body, _)) => {
                    event.data = Some(body);
                    Step::Pass(event)
                }
                Err(_) => Step::Drop,
            },
            (Some([kind]), Some(id)) => match self.desk.filter(&Listing::said_before(*kind), data, id) {
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
}

/// The flow, or nothing after its end.
async fn advance(flow: Option<Flow>) -> Option<(Passing, Option<Flow>)> {
    let (passing, flow) = flow?.next().await;
    Some((passing, flow))
}
