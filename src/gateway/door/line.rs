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
mod tests {
    use super::*;

    fn message(text: &str) -> Passing {
        Passing::Message(Event::message(Bytes::copy_from_slice(text.as_bytes())))
    }

    fn answer(bytes: usize) -> Passing {
        Passing::Answer { event: Event::message(vec![b'x'; bytes].into()), error_code: None, hidden: 0 }
    }

    fn shelves() -> Shelves {
        [Shelf::of_a_session(), Shelf::of_the_process()]
    }

    fn on(shelves: &Shelves, version: &str) -> Arc<Line> {
        Line::new("s".into(), Some(&Id::number(7)), version, Mark::default(), shelves)
    }

    fn line(version: &str) -> Arc<Line> {
        on(&shelves(), version)
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
    async fn a_panic_of_the_writer_ends_the_line_with_an_internal_error() {
        let line = line("2025-11-25");
        let mut reader = line.answer();
        next(&mut reader).await;
        let writing = async {
            line.push(message("a")).await;
            panic!("a bug")
        };
        line.end(total(writing).await);
        assert_eq!(next(&mut reader).await.1, "a");
        assert_eq!(next(&mut reader).await, (None, Rejection::Internal.words()));
        assert_eq!(next(&mut reader).await.1, "nothing");
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
        let shelves = line.shelves.clone();
        assert!(shelves.iter().all(|shelf| shelf.bytes.load(Relaxed) == kept));
        drop(line);
        assert!(shelves.iter().all(|shelf| shelf.bytes.load(Relaxed) == 0 && shelf.lines().is_empty()));
    }

    #[tokio::test]
    async fn answers_that_nobody_reads_are_bounded_per_session_and_the_oldest_give_way() {
        const ANSWER: usize = 4 * 1024 * 1024;
        let shelves = shelves();
        let lines: Vec<_> = (0..16).map(|_| on(&shelves, "2025-06-18")).collect();
        for line in &lines {
            drop(line.answer());
            line.end(answer(ANSWER));
        }
        let kept = shelves[0].bytes.load(Relaxed);
        assert!(kept <= SESSION_BYTES_MAX, "{kept}");
        assert_eq!(kept, lines.iter().map(|line| line.state().bytes).sum::<usize>(), "nothing is counted twice");
        let (name, newest) = next(&mut lines[15].replay(u64::MAX - 1)).await;
        assert_eq!((name, newest.as_str()), (None, "nothing"), "a number from the future");
        let (_, newest) = next(&mut lines[15].answer()).await;
        assert_eq!(newest.len(), ANSWER, "the newest is there");
        let mut back = lines[0].answer();
        let (name, text) = next(&mut back).await;
        assert_eq!(name, id("s-0"), "the event keeps its id");
        let told: serde_json::Value = serde_json::from_str(&text).expect("json");
        assert_eq!((told["id"].as_u64(), told["error"]["message"].as_str()), (Some(7), Some(NOT_KEPT)));
        assert_eq!(next(&mut back).await.1, "nothing");
    }

    #[tokio::test]
    async fn all_sessions_together_are_bounded_and_who_reads_loses_nothing() {
        let process = Shelf::new(1000);
        let line = |text: &str| {
            let shelves = [Shelf::of_a_session(), process.clone()];
            Line::new(text.into(), Some(&Id::number(1)), "2025-06-18", Mark::default(), &shelves)
        };
        let (read, left, late) = (line("read"), line("left"), line("late"));
        let mut reader = read.answer();
        drop(left.answer());
        drop(late.answer());
        read.push(message(&"r".repeat(400))).await;
        left.push(message(&"l".repeat(200))).await;
        late.push(message("small")).await;
        late.push(message("smaller")).await;
        assert!(process.bytes.load(Relaxed) <= 1000);
        assert_eq!(left.since(0), (Vec::new(), true), "the oldest that nobody reads");
        assert_eq!(left.state().first, 1);
        assert_eq!(next(&mut reader).await.1.len(), 400, "what is about to be read stays");
        assert_eq!(next(&mut late.answer()).await.1, "small");
        drop(reader);
        late.push(message(&"x".repeat(500))).await;
        assert_eq!(read.state().first, 1, "it has been read");
    }

    #[tokio::test]
    async fn a_line_that_nobody_can_find_keeps_nothing() {
        let line = line("2025-06-18");
        let mut reader = line.answer();
        line.push(message("a")).await;
        line.push(message("b")).await;
        line.hide();
        assert_eq!(next(&mut reader).await.1, "a");
        assert_eq!(next(&mut reader).await.1, "b");
        drop(reader);
        line.push(message("c")).await;
        assert_eq!(line.state().bytes, 0);
    }

    #[tokio::test]
    async fn equal_news_that_wait_for_a_reader_are_one() {
        let line = line("2025-06-18");
        let mut reader = line.answer();
        let changed = |text: &'static str| Bytes::from_static(text.as_bytes());
        line.push_once(changed("tools")).await;
        assert_eq!(next(&mut reader).await.1, "tools");
        drop(reader);
        for text in ["tools", "prompts", "tools", "prompts", "tools"] {
            line.push_once(changed(text)).await;
        }
        let missed = vec![changed("tools"), changed("prompts")];
        assert_eq!(line.since(0), (missed.clone(), true), "read before is not read since");
        for number in 0..EVENTS_MAX {
            line.push(message(&number.to_string())).await;
        }
        assert!(!line.since(0).1, "what gave way is missing");
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
