//! The one way out: what a backend said, checked and judged by now, passes its filters here and nowhere else.
//!
//! Whatever the client sees of a backend came out of [`Errand::run`](super::errand::Errand::run): whole answers and
//! events, lists, results of tasks, questions to the user, news; for routes of one backend and of several, for clients
//! of either era. So this is where it leaves.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use futures_util::stream::BoxStream;

use super::Member;
use super::Open;
use super::Rejection;
use super::apply::Outgoing;
use super::flow::Passing;
use crate::catalog::Call;
use crate::filters::Excess;
use crate::filters::Filters;
use crate::filters::Found;
use crate::filters::Place;
use crate::filters::Thread;
use crate::mcp::Incoming;
use crate::mcp::Method;
use crate::mcp::list;
use crate::mcp::list::ListKind;
use crate::mcp::sse::Event;
use crate::telemetry::metrics::Metrics;

/// A bit of text that may be the beginning of a secret waits this long for the next one.
const HELD: Duration = Duration::from_millis(500);

/// What the filters found in everything that was said in answer to one request.
pub(super) struct Tally {
    metrics: Arc<Metrics>,
    counts: Mutex<Vec<(Arc<str>, u64)>>,
    /// What became of the question to a person that was asked meanwhile.
    confirmation: Mutex<Option<(&'static str, String)>>,
}

impl Tally {
    pub(super) fn new(metrics: &Arc<Metrics>) -> Tally {
        Tally { metrics: metrics.clone(), counts: Mutex::default(), confirmation: Mutex::default() }
    }

    fn add(&self, backend: &str, found: &Found) {
        if found.is_empty() {
            return;
        }
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, times) in found.iter() {
            self.metrics.filtered(backend, name, times);
            match counts.iter_mut().find(|(known, _)| known == name) {
                Some((_, count)) => *count += times,
                None => counts.push((name.clone(), times)),
            }
        }
    }

    pub(super) fn asked(&self, backend: &str, what: &'static str, id: &str) {
        self.metrics.confirmation(backend, what);
        *self.confirmation.lock().unwrap_or_else(PoisonError::into_inner) = Some((what, id.to_owned()));
    }

    pub(super) fn confirmation(&self) -> Option<(&'static str, String)> {
        self.confirmation.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn counts(&self) -> Vec<(Arc<str>, u64)> {
        std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The filters that one answer passes, and who counts.
pub(super) struct Leaving {
    filters: Arc<Filters>,
    backend: Arc<str>,
    place: Place,
    tally: Arc<Tally>,
}

impl Leaving {
    /// `None`: whatever is answered passes as it is.
    pub(super) fn of(member: &Member, call: &Call, open: &Open) -> Option<Leaving> {
        let place = match call.message().and_then(|message| message.method) {
            Some(Method::Initialize | Method::ServerDiscover) => Place::Declared,
            Some(method) if ListKind::of(method).is_some() => Place::Declared,
            _ => Place::Said,
        };
        let filters = &member.filters;
        // Streams carry both.
        if filters.passes(Place::Declared) && filters.passes(Place::Said) {
            return None;
        }
        let backend = member.backend.name().clone();
        Some(Leaving { filters: filters.clone(), backend, place, tally: open.tally().clone() })
    }

    pub(super) fn through(self, outgoing: Outgoing) -> Result<Outgoing, Rejection> {
        Ok(match outgoing {
            Outgoing::Empty { status } => Outgoing::Empty { status },
            Outgoing::Json { status, body, session, error_code, hidden } => {
                let body = self.answer(self.place, &body)?;
                Outgoing::Json { status, body, session, error_code, hidden }
            }
            Outgoing::Events { flow, session } => {
                let thread = Thread::new(self.filters.clone());
                let screened = Screened { flow, leaving: self, thread, ready: VecDeque::new() };
                Outgoing::Events { flow: stream::unfold(screened, Screened::next).boxed(), session }
            }
        })
    }

    fn answer(&self, place: Place, body: &Bytes) -> Result<Bytes, Rejection> {
        let mut found = Found::default();
        let answer = self.filters.answer(place, body, &mut found);
        self.tally.add(&self.backend, &found);
        answer.map_err(|Excess { cap, bytes_max }| {
            tracing::warn!(backend = %self.backend, cap, bytes_max, "an answer is withheld for its size");
            Rejection::ResultTooLarge { backend: self.backend.clone(), cap, bytes_max }
        })
    }

    fn message(&self, place: Place, body: &Bytes) -> Bytes {
        let mut found = Found::default();
        let message = self.filters.message(place, body, &mut found);
        self.tally.add(&self.backend, &found);
        message
    }
}

/// A stream on its way through the filters.
struct Screened {
    flow: BoxStream<'static, Passing>,
    leaving: Leaving,
    thread: Thread<Event>,
    ready: VecDeque<Passing>,
}

impl Screened {
    async fn next(mut self) -> Option<(Passing, Screened)> {
        loop {
            if let Some(passing) = self.ready.pop_front() {
                return Some((passing, self));
            }
            let passing = if self.thread.holds() {
                match pingora::time::timeout(HELD, self.flow.next()).await {
                    Ok(passing) => passing,
                    Err(_) => {
                        self.release();
                        continue;
                    }
                }
            } else {
                self.flow.next().await
            };
            match passing {
                Some(passing) => self.take(passing),
                None if self.thread.holds() => self.release(),
                None => return None,
            }
        }
    }

    fn take(&mut self, passing: Passing) {
        match passing {
            Passing::Message(event) => self.message(event),
            Passing::Answer { event, error_code, hidden } => {
                self.release();
                let data = event.data.as_ref().map(|data| self.leaving.answer(self.leaving.place, data)).transpose();
                self.ready.push_back(match data {
                    Ok(data) => Passing::Answer { event: Event { data, ..event }, error_code, hidden },
                    Err(rejection) => Passing::Fail(rejection),
                });
            }
            last @ (Passing::End(_) | Passing::Fail(_)) => {
                self.release();
                self.ready.push_back(last);
            }
        }
    }

    fn message(&mut self, event: Event) {
        let Some(data) = event.data.clone().filter(|data| !data.is_empty()) else {
            self.release();
            return self.ready.push_back(Passing::Message(event));
        };
        let data = match Incoming::read(&data) {
            Ok(Incoming::Notification { .. }) => {
                let mut found = Found::default();
                let leaving = self.thread.push(data, event, &mut found);
                return self.pass(leaving, &found);
            }
            Ok(Incoming::Response { .. }) => {
                let lists = list::kinds_of(&data).is_some_and(|kinds| !kinds.is_empty());
                match self.leaving.answer(if lists { Place::Declared } else { Place::Said }, &data) {
                    Ok(data) => data,
                    // A replay that is too large was too large the first time.
                    Err(_) => return self.release(),
                }
            }
            // What a server asks is shown to a person.
            Ok(Incoming::Request { .. }) | Err(_) => self.leaving.message(Place::Declared, &data),
        };
        self.release();
        self.ready.push_back(Passing::Message(Event { data: Some(data), ..event }));
    }

    fn release(&mut self) {
        let mut found = Found::default();
        let leaving = self.thread.release(&mut found);
        self.pass(leaving, &found);
    }

    fn pass(&mut self, leaving: Vec<(Bytes, Event)>, found: &Found) {
        self.leaving.tally.add(&self.leaving.backend, found);
        let events = leaving.into_iter().map(|(data, event)| Passing::Message(Event { data: Some(data), ..event }));
        self.ready.extend(events);
    }
}
