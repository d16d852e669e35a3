//! `Line`: the events of one answer on their way to a client that may lose its connection and come back for the rest.
//!
//! One writer, at most one reader at a time. While a client reads, the writer waits for it; when the client is gone the
//! oldest events give way to new ones.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use futures_util::stream::BoxStream;
use tokio::sync::Notify;

use crate::gateway::errand::Errand;
use crate::gateway::error_body;
use crate::gateway::flow::Passing;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::sse::Event;

/// Kept for a client that comes back, per line.
const EVENTS_MAX: usize = 256;
const BYTES_MAX: usize = 512 * 1024;

/// Kept by all lines of the process together. Above it what has been read is forgotten at once.
const ALL_BYTES_MAX: usize = 256 * 1024 * 1024;

/// How far the writer may be ahead of a reader.
const UNREAD_MAX: usize = 64;

/// A line that ended is kept so long for whoever missed the end.
const KEPT: Duration = Duration::from_secs(120);

/// What all lines keep together, in bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget(Arc<AtomicUsize>);

/// What an answer was judged under: the configuration, and all of the caller that policy sees. The same person may come
/// back with a token that allows less.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Mark {
    reload: u64,
    authority: u128,
}

impl Mark {
    pub(super) fn of(errand: &Errand) -> Mark {
        Mark { reload: *errand.reloads.borrow(), authority: errand.principal.authority() }
    }
}

pub(super) struct Line {
    /// Unguessable: it names the stream in event ids.
    pub(super) name: String,
    /// The request that it answers.
    id: Id,
    /// What it was judged under: nothing is replayed under another configuration, or to another authority.
    pub(super) mark: Mark,
    /// Do its events have ids?
    mints: bool,
    state: Mutex<State>,
    moved: Notify,
    budget: Budget,
}

#[derive(Default)]
struct State {
    kept: VecDeque<Passing>,
    /// The number of the first that is kept.
    first: u64,
    bytes: usize,
    /// The number that the reader takes next.
    next: u64,
    /// Which reader it is by now.
    reader: u64,
    reading: bool,
    left: Option<Instant>,
    ended: Option<Instant>,
}

impl Line {
    pub(super) fn new(name: String, id: &Id, version: &str, mark: Mark, budget: &Budget) -> Arc<Line> {
        let line = Line {
            name,
            id: id.clone(),
            mark,
            mints: version >= "2025-03-26",
            state: Mutex::default(),
            moved: Notify::new(),
            budget: budget.clone(),
        };
        // SPEC: 2025-11-25 transports: an event with an id and no data first, so that the client can come back.
        if version >= "2025-11-25" {
            line.put(Passing::Message(Event { data: Some(Bytes::new()), ..Event::default() }));
        }
        Arc::new(line)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends; waits for a reader that is far behind.
    pub(super) async fn push(&self, passing: Passing) {
        loop {
            let moved = self.moved.notified();
            if !self.state().is_far_behind() {
                self.put(passing);
                return;
            }
            moved.await;
        }
    }

    /// Appends the last one.
    pub(super) fn end(&self, passing: Passing) {
        self.put(passing);
        self.state().ended = Some(Instant::now());
        self.moved.notify_waiters();
    }

    fn put(&self, mut passing: Passing) {
        let mut state = self.state();
        let number = state.first + state.kept.len() as u64;
        if let (true, Passing::Message(event) | Passing::Answer { event, .. }) = (self.mints, &mut passing) {
            event.id = Some(format!("{}-{number}", self.name));
        }
        let size = size(&passing);
        state.bytes += size;
        self.budget.0.fetch_add(size, Relaxed);
        state.kept.push_back(passing);
        self.trim(&mut state);
        drop(state);
        self.moved.notify_waiters();
    }

    fn trim(&self, state: &mut State) {
        while state.kept.len() > 1 {
            let unread = state.reading && state.first >= state.next;
            let many = state.kept.len() > EVENTS_MAX || state.bytes > BYTES_MAX;
            if unread || !(many || self.budget.0.load(Relaxed) > ALL_BYTES_MAX) {
                return;
            }
            if let Some(gone) = state.kept.pop_front() {
                let size = size(&gone);
                state.first += 1;
                state.bytes = state.bytes.saturating_sub(size);
                self.budget.0.fetch_sub(size, Relaxed);
            }
        }
    }

    /// Reads from this number on. Whoever read before reads no more.
    fn reader(self: &Arc<Self>, from: u64) -> Reader {
        let mut state = self.state();
        state.reader += 1;
        state.reading = true;
        state.left = None;
        state.next = from.max(state.first);
        let reader = Reader { line: self.clone(), number: state.reader };
        drop(state);
        self.moved.notify_waiters();
        reader
    }

    /// The stream for the request that was asked.
    pub(super) fn answer(self: &Arc<Self>) -> BoxStream<'static, Passing> {
        self.read(0)
    }

    /// What came after an event, for a client that missed it: an answer is one more message there.
    pub(super) fn replay(self: &Arc<Self>, after: u64) -> BoxStream<'static, Passing> {
        let id = self.id.clone();
        let message = move |passing| match passing {
            Passing::Answer { event, .. } => Passing::Message(event),
            // Whoever resumes has another request open, which has no id to answer with.
            Passing::Fail(rejection) => {
                let (era, words) = (Some(Era::Legacy), rejection.words());
                let body = error_body(Some(&id), rejection.facts(era).code, &words, rejection.data(era));
                Passing::Message(Event::message(body))
            }
            other => other,
        };
        self.read(after.saturating_add(1)).map(message).boxed()
    }

    fn read(self: &Arc<Self>, from: u64) -> BoxStream<'static, Passing> {
        stream::unfold(self.reader(from), |reader| async move { Some((reader.next().await?, reader)) }).boxed()
    }

    /// Waits until nobody has been reading for so long.
    pub(super) async fn abandoned(&self, after: Duration) {
        loop {
            let moved = self.moved.notified();
            let left = self.state().left;
            match left.and_then(|left| after.checked_sub(left.elapsed())) {
                Some(rest) => drop(tokio::time::timeout(rest, moved).await),
                None if left.is_some() => return,
                None => moved.await,
            }
        }
    }

    /// Nobody will come for it any more.
    pub(super) fn is_over(&self) -> bool {
        self.state().ended.is_some_and(|at| at.elapsed() > KEPT)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state().ended.is_some()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let bytes = self.state().bytes;
        self.budget.0.fetch_sub(bytes, Relaxed);
    }
}

impl State {
    fn is_far_behind(&self) -> bool {
        let read = usize::try_from(self.next.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let unread = || self.kept.iter().skip(read);
        self.reading && (unread().count() >= UNREAD_MAX || unread().map(size).sum::<usize>() >= BYTES_MAX)
    }
}

fn size(passing: &Passing) -> usize {
    const OVERHEAD: usize = 128;
    let event = match passing {
        Passing::Message(event) | Passing::Answer { event, .. } => Some(event),
        Passing::End(_) | Passing::Fail(_) => None,
    };
    OVERHEAD + event.and_then(|event| event.data.as_ref()).map_or(0, Bytes::len)
}

struct Reader {
    line: Arc<Line>,
    number: u64,
}

impl Reader {
    async fn next(&self) -> Option<Passing> {
        loop {
            let moved = self.line.moved.notified();
            {
                let mut state = self.line.state();
                if state.reader != self.number {
                    // The client came back on another connection.
                    return Some(Passing::End("resumed"));
                }
                state.next = state.next.max(state.first);
                let index = usize::try_from(state.next - state.first).ok()?;
                if let Some(passing) = state.kept.get(index).cloned() {
                    state.next += 1;
                    drop(state);
                    self.line.moved.notify_waiters();
                    return Some(passing);
                }
                if state.ended.is_some() {
                    return None;
                }
            }
            moved.await;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.line.state();
        if state.reader == self.number {
            state.reading = false;
            state.left = Some(Instant::now());
        }
        drop(state);
        self.line.moved.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::Rejection;

    fn message(text: &str) -> Passing {
        Passing::Message(Event::message(Bytes::copy_from_slice(text.as_bytes())))
    }

    fn line(version: &str) -> Arc<Line> {
        Line::new("s".into(), &Id::number(7), version, Mark::default(), &Budget::default())
    }

    async fn next(stream: &mut BoxStream<'static, Passing>) -> (Option<String>, String) {
        match stream.next().await {
            Some(Passing::Message(event) | Passing::Answer { event, .. }) => {
                (event.id, String::from_utf8(event.data.unwrap_or_default().to_vec()).expect("text"))
            }
            Some(Passing::End(how)) => (None, how.to_owned()),
            Some(Passing::Fail(rejection)) => (None, rejection.words()),
            None => (None, "nothing".into()),
        }
    }

    fn id(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[tokio::test]
    async fn a_client_that_comes_back_gets_what_it_missed_and_then_the_rest() {
        let line = line("2025-11-25");
        let mut first = line.answer();
        assert_eq!(next(&mut first).await, (id("s-0"), String::new()), "the priming event");
        line.push(message("a")).await;
        assert_eq!(next(&mut first).await, (id("s-1"), "a".into()));
        line.push(message("b")).await;
        drop(first);
        line.push(message("c")).await;
        let mut again = line.replay(1);
        assert_eq!(next(&mut again).await, (id("s-2"), "b".into()));
        assert_eq!(next(&mut again).await, (id("s-3"), "c".into()));
        line.end(Passing::End("streamed"));
        assert_eq!(next(&mut again).await, (None, "streamed".into()));
        assert_eq!(next(&mut again).await, (None, "nothing".into()));
    }

    #[tokio::test]
    async fn a_failure_is_an_answer_for_whoever_comes_back() {
        let line = line("2025-11-25");
        line.end(Passing::Fail(Rejection::Internal));
        let (_, text) = next(&mut line.replay(0)).await;
        assert!(text.starts_with(r#"{"jsonrpc":"2.0","id":7,"error":{"#), "{text}");
    }

    #[tokio::test]
    async fn a_second_reader_takes_over_from_the_first() {
        let line = line("2025-06-18");
        let mut first = line.answer();
        line.push(message("a")).await;
        let mut second = line.answer();
        assert_eq!(next(&mut second).await, (id("s-0"), "a".into()), "no priming event before 2025-11-25");
        assert_eq!(next(&mut first).await, (None, "resumed".into()));
    }

    #[tokio::test]
    async fn without_a_reader_the_oldest_events_give_way() {
        let line = line("2024-11-05");
        drop(line.answer());
        for number in 0..EVENTS_MAX + 10 {
            line.push(message(&number.to_string())).await;
        }
        let mut late = line.answer();
        assert_eq!(next(&mut late).await, (None, "10".into()), "no ids before 2025-03-26");
        drop(late);
        for _ in 0..3 {
            line.push(message(&"x".repeat(BYTES_MAX / 2))).await;
        }
        let kept = line.state().bytes;
        assert!(kept <= BYTES_MAX, "{kept}");
        let budget = line.budget.clone();
        assert_eq!(budget.0.load(Relaxed), kept);
        drop(line);
        assert_eq!(budget.0.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn the_writer_waits_for_a_slow_reader() {
        let line = line("2025-06-18");
        let mut reader = line.answer();
        for _ in 0..UNREAD_MAX {
            line.push(message("x")).await;
        }
        let mut push = Box::pin(line.push(message("one more")));
        assert!(futures_util::poll!(&mut push).is_pending());
        next(&mut reader).await;
        push.await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_is_abandoned_only_when_nobody_reads_it() {
        let line = line("2025-06-18");
        let reader = line.answer();
        let mut waiting = Box::pin(line.abandoned(Duration::ZERO));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(reader);
        waiting.await;
    }
}
