//! A bounded queue of messages for one reader: the answer stream of a request, or a session's stream of server messages.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::backend::Error;

/// Messages that wait for a slow reader. More are dropped.
const MESSAGES_MAX: usize = 1_000;

#[derive(Debug)]
pub(super) struct Inbox {
    state: Mutex<State>,
    bell: Notify,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Bytes>,
    bytes: usize,
    end: Option<End>,
    /// The reader who may read; an earlier one is told to leave.
    reader: u64,
}

/// How it ended.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// With the response that was waited for.
    Answer(Bytes),
    /// The server is gone, or another reader took over.
    Closed,
    Failed(Error),
}

pub(super) enum Item {
    End(End),
    Message(Bytes),
}

impl Inbox {
    pub(super) fn new(bytes_max: usize) -> Inbox {
        Inbox { state: Mutex::default(), bell: Notify::new(), bytes_max }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `false`: the queue is full, the message is dropped.
    pub(super) fn push(&self, message: Bytes) -> bool {
        self.push_if(message, || true)
    }

    /// The same, where something else must succeed too. It is not tried when there is no room.
    pub(super) fn push_if(&self, message: Bytes, also: impl FnOnce() -> bool) -> bool {
        let mut state = self.state();
        let full = state.queue.len() >= MESSAGES_MAX || state.bytes + message.len() > self.bytes_max;
        if state.end.is_some() || full || !also() {
            return false;
        }
        state.bytes += message.len();
        state.queue.push_back(message);
        drop(state);
        self.bell.notify_one();
        true
    }

    /// The first end counts.
    pub(super) fn end(&self, end: End) {
        self.state().end.get_or_insert(end);
        self.bell.notify_one();
    }

    pub(super) fn is_over(&self) -> bool {
        self.state().end.is_some()
    }

    /// Nobody will read it any more: what is in it, and an end to it.
    pub(super) fn desert(&self) -> Vec<Bytes> {
        let mut state = self.state();
        state.end.get_or_insert(End::Closed);
        state.bytes = 0;
        state.queue.drain(..).collect()
    }

    /// Makes the caller the one reader.
    pub(super) fn attach(&self) -> u64 {
        let mut state = self.state();
        state.reader += 1;
        let reader = state.reader;
        drop(state);
        self.bell.notify_one();
        reader
    }

    /// The next message for this reader, or the end.
    pub(super) async fn pop(&self, reader: u64) -> Item {
        loop {
            {
                let mut state = self.state();
                if state.reader != reader {
                    drop(state);
                    // The bell may have rung for the other one.
                    self.bell.notify_one();
                    return Item::End(End::Closed);
                }
                if let Some(message) = state.queue.pop_front() {
                    state.bytes -= message.len();
                    return Item::Message(message);
                }
                if let Some(end) = &state.end {
                    return Item::End(end.clone());
                }
            }
            self.bell.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_come_before_the_end_and_the_first_end_counts() {
        let inbox = Inbox::new(100);
        let me = inbox.attach();
        assert!(inbox.push("a".into()));
        inbox.end(End::Answer("b".into()));
        inbox.end(End::Closed);
        assert!(!inbox.push("late".into()));
        assert!(matches!(inbox.pop(me).await, Item::Message(message) if message == "a"));
        assert!(matches!(inbox.pop(me).await, Item::End(End::Answer(answer)) if answer == "b"));
    }

    #[tokio::test]
    async fn a_full_inbox_drops_by_count_and_by_bytes() {
        let inbox = Inbox::new(10);
        assert!(inbox.push("123456789".into()));
        assert!(!inbox.push("ab".into()));
        let me = inbox.attach();
        assert!(matches!(inbox.pop(me).await, Item::Message(_)));
        assert!(inbox.push("ab".into()), "what was read is free again");
        let inbox = Inbox::new(usize::MAX);
        assert_eq!((0..2_000).filter(|_| inbox.push("x".into())).count(), MESSAGES_MAX);
    }

    #[tokio::test]
    async fn a_second_reader_takes_over() {
        let inbox = std::sync::Arc::new(Inbox::new(100));
        let first = inbox.attach();
        let waiting = tokio::spawn({
            let inbox = inbox.clone();
            async move { matches!(inbox.pop(first).await, Item::End(End::Closed)) }
        });
        tokio::task::yield_now().await;
        let second = inbox.attach();
        assert!(waiting.await.expect("no panic"), "the first leaves");
        inbox.push("a".into());
        assert!(matches!(inbox.pop(second).await, Item::Message(_)));
    }
}
