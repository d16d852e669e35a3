//! `Line`: the events of one answer on their way to a client that may lose its connection and come back for the rest.
//!
//! One writer, at most one reader at a time. While a client reads, the writer waits for it; when the client is gone the
//! oldest events give way to new ones.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::stream;
use futures_util::stream::BoxStream;
use tokio::sync::Notify;

use crate::gateway::Rejection;
use crate::gateway::errand::Errand;
use crate::gateway::error_body;
use crate::gateway::flow::Passing;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::error;
use crate::mcp::sse::Event;

/// Kept for a client that comes back, per line. The newest event may be larger by itself.
const EVENTS_MAX: usize = 256;
const BYTES_MAX: usize = 512 * 1024;

/// Kept by all lines of one session together: some large answers.
const SESSION_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Kept by all lines of the process together.
const ALL_BYTES_MAX: usize = 256 * 1024 * 1024;

/// How far the writer may be ahead of a reader.
const UNREAD_MAX: usize = 64;

/// A line that ended is kept so long for whoever missed the end.
pub(super) const KEPT: Duration = Duration::from_secs(120);

/// In the place of an answer that could not be kept.
const NOT_KEPT: &str = "the answer came while nobody read it and was too large to be kept; ask again";

/// Tells lines apart, the older from the newer.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// What several lines keep together, within a bound: the oldest line gives way first.
pub(super) struct Shelf {
    bytes_max: usize,
    bytes: AtomicUsize,
    /// Those that have something to give.
    lines: Mutex<BTreeMap<u64, Weak<Line>>>,
}

/// The shelves that a line stands on: its session's and the process's.
pub(super) type Shelves = [Arc<Shelf>; 2];

impl Shelf {
    fn new(bytes_max: usize) -> Arc<Shelf> {
        Arc::new(Shelf { bytes_max, bytes: AtomicUsize::new(0), lines: Mutex::default() })
    }

    pub(super) fn of_a_session() -> Arc<Shelf> {
        Shelf::new(SESSION_BYTES_MAX)
    }

    pub(super) fn of_the_process() -> Arc<Shelf> {
        Shelf::new(ALL_BYTES_MAX)
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<u64, Weak<Line>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_full(&self) -> bool {
        self.bytes.load(Relaxed) > self.bytes_max
    }

    /// This line has something to give; whatever is too much goes.
    fn hold(&self, line: &Line) {
        self.lines().insert(line.serial, line.me.clone());
        while self.is_full() {
            let oldest = self.lines().pop_first();
            let Some((serial, oldest)) = oldest else { return };
            let Some(line) = oldest.upgrade() else { continue };
            line.give_way(self);
            if !self.is_full() {
                // It may have more. A line with nothing left is on the shelf for nothing, but only until it is next asked.
                self.lines().insert(serial, oldest);
            }
        }
    }
}

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
    /// The request that it answers; `None`: it carries news.
    id: Option<Id>,
    /// What it was judged under: nothing is replayed under another configuration, or to another authority.
    pub(super) mark: Mark,
    /// Do its events have ids?
    mints: bool,
    state: Mutex<State>,
    moved: Notify,
    shelves: Shelves,
    serial: u64,
    me: Weak<Line>,
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
    /// Nobody can come back to it: nothing is kept but for who reads it now.
    unfindable: bool,
}

impl Line {
    pub(super) fn new(name: String, id: Option<&Id>, version: &str, mark: Mark, shelves: &Shelves) -> Arc<Line> {
        let line = Arc::new_cyclic(|me| Line {
            name,
            id: id.cloned(),
            mark,
            mints: version >= "2025-03-26",
            state: Mutex::default(),
            moved: Notify::new(),
            shelves: shelves.clone(),
            serial: SERIAL.fetch_add(1, Relaxed),
            me: me.clone(),
        });
        // SPEC: 2025-11-25 transports: an event with an id and no data first, so that the client can come back.
        if version >= "2025-11-25" {
            line.put(Passing::Message(Event { data: Some(Bytes::new()), ..Event::default() }));
        }
        line
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

    /// [`Line::push`], unless the same is still to be read: who has not read of a change yet learns nothing from a second.
    pub(super) async fn push_once(&self, data: Bytes) {
        if !self.state().awaits(&data) {
            self.push(Passing::Message(Event::message(data))).await;
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
        self.count(&mut state, 0, size(&passing));
        state.kept.push_back(passing);
        self.trim(&mut state);
        drop(state);
        self.moved.notify_waiters();
        self.shelves.iter().for_each(|shelf| shelf.hold(self));
    }

    fn count(&self, state: &mut State, gone: usize, came: usize) {
        state.bytes = (state.bytes + came).saturating_sub(gone);
        for shelf in &self.shelves {
            shelf.bytes.fetch_add(came, Relaxed);
            shelf.bytes.fetch_sub(gone, Relaxed);
        }
    }

    /// Within the line's own bounds.
    fn trim(&self, state: &mut State) {
        let many = |state: &State| state.kept.len() > EVENTS_MAX || state.bytes > BYTES_MAX;
        while (state.unfindable || (state.kept.len() > 1 && many(state))) && self.forget_one(state) {}
    }

    /// Forgets as long as there is too much on the shelf.
    fn give_way(&self, shelf: &Shelf) {
        let mut state = self.state();
        while shelf.is_full() && self.forget_one(&mut state) {}
    }

    /// Forgets the oldest event, if nobody is about to read it. Whoever comes back for an answer that was not kept is told
    /// so: it is the last event, and stays the last. `false`: there is nothing to forget.
    fn forget_one(&self, state: &mut State) -> bool {
        if state.reading && state.first >= state.next {
            return false;
        }
        let before = match state.kept.front() {
            None | Some(Passing::End(_) | Passing::Fail(_)) => return false,
            Some(oldest) => size(oldest),
        };
        if let Some(Passing::Answer { event, error_code, .. }) = state.kept.front_mut() {
            let body = error_body(self.id.as_ref(), error::INTERNAL_ERROR, NOT_KEPT, None);
            if event.data.as_ref().is_none_or(|data| data.len() <= body.len()) {
                return false;
            }
            (event.data, *error_code) = (Some(body), Some(error::INTERNAL_ERROR));
            let after = state.kept.front().map_or(0, size);
            self.count(state, before, after);
        } else {
            state.kept.pop_front();
            state.first += 1;
            self.count(state, before, 0);
        }
        true
    }

    /// Nobody can come back to it from now on.
    pub(super) fn hide(&self) {
        let mut state = self.state();
        state.unfindable = true;
        self.trim(&mut state);
    }

    /// What came after an event, as far as it is kept, and whether nothing of it is missing.
    pub(super) fn since(&self, after: u64) -> (Vec<Bytes>, bool) {
        let state = self.state();
        let from = after.saturating_add(1);
        let known = usize::try_from(from.saturating_sub(state.first)).unwrap_or(usize::MAX);
        let rest = state.kept.iter().skip(known).filter_map(|passing| message(passing).cloned());
        (rest.filter(|data| !data.is_empty()).collect(), from >= state.first)
    }

    /// Can its reader come back for what it missed?
    pub(super) fn mints(&self) -> bool {
        self.mints
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
                let body = error_body(id.as_ref(), rejection.facts(era).code, &words, rejection.data(era));
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

    /// Waits for the last event to be there.
    pub(super) async fn ends(&self) {
        loop {
            let moved = self.moved.notified();
            if self.has_ended() {
                return;
            }
            moved.await;
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
        for shelf in &self.shelves {
            shelf.bytes.fetch_sub(bytes, Relaxed);
            shelf.lines().remove(&self.serial);
        }
    }
}

impl State {
    fn unread(&self) -> impl Iterator<Item = &Passing> {
        let read = usize::try_from(self.next.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.kept.iter().skip(read)
    }

    fn is_far_behind(&self) -> bool {
        self.reading && (self.unread().count() >= UNREAD_MAX || self.unread().map(size).sum::<usize>() >= BYTES_MAX)
    }

    /// Is there such a message that nobody has read yet?
    fn awaits(&self, data: &Bytes) -> bool {
        self.unread().any(|passing| message(passing) == Some(data))
    }
}

fn message(passing: &Passing) -> Option<&Bytes> {
    match passing {
        Passing::Message(event) => event.data.as_ref(),
        Passing::Answer { .. } | Passing::End(_) | Passing::Fail(_) => None,
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

/// Total, as the spine is: whoever reads a line gets its end, also when what writes to it panics.
pub(super) async fn total(writing: impl Future<Output = Passing>) -> Passing {
    AssertUnwindSafe(writing).catch_unwind().await.unwrap_or(Passing::Fail(Rejection::Internal))
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
            self.line.trim(&mut state);
        }
        drop(state);
        self.line.moved.notify_waiters();
        // What nobody was to lose a moment ago may have to give way now.
        self.line.shelves.iter().for_each(|shelf| shelf.hold(&self.line));
    }
}

#[cfg(test)]
mod tests;
