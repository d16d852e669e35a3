//! Who is here: connections, h2 streams and bodies are counted and capped; tells when all are gone.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::AcqRel;
use std::sync::atomic::Ordering::Acquire;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::Notify;
use tokio::sync::watch;

use super::Counts;

/// Resolves when the flag is up, or when nobody is left to raise it.
pub(super) async fn raised(flag: &watch::Receiver<bool>) {
    drop(flag.clone().wait_for(|up| *up).await);
}

#[derive(Default)]
pub(super) struct Crowd {
    connections: AtomicUsize,
    /// Streams of h2 connections run in tasks of their own, which may outlive their connection's for a moment.
    streams: AtomicUsize,
    /// Request bodies held in memory.
    body_bytes: AtomicUsize,
    refused: AtomicU64,
    handshakes_failed: AtomicU64,
    left: Notify,
}

/// One connection's or stream's presence.
pub(super) struct Presence {
    crowd: Arc<Crowd>,
    what: What,
}

enum What {
    Connection,
    Stream,
}

impl Crowd {
    /// A place for one more connection, if there is one.
    pub(super) fn enter(self: &Arc<Self>, connections_max: usize) -> Option<Presence> {
        if self.connections.fetch_add(1, AcqRel) >= connections_max {
            self.connections.fetch_sub(1, AcqRel);
            self.refused.fetch_add(1, Relaxed);
            return None;
        }
        Some(Presence { crowd: self.clone(), what: What::Connection })
    }

    pub(super) fn stream(self: &Arc<Self>) -> Presence {
        self.streams.fetch_add(1, AcqRel);
        Presence { crowd: self.clone(), what: What::Stream }
    }

    pub(super) fn handshake_failed(&self) {
        self.handshakes_failed.fetch_add(1, Relaxed);
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            connections: self.connections.load(Acquire),
            connections_refused: self.refused.load(Relaxed),
            handshakes_failed: self.handshakes_failed.load(Relaxed),
        }
    }

    /// Resolves when nobody is here.
    pub(super) async fn gone(&self) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable(); // before the look, so that a departure between look and wait is not missed
            if self.connections.load(Acquire) == 0 && self.streams.load(Acquire) == 0 {
                return;
            }
            left.await;
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let count = match self.what {
            What::Connection => &self.crowd.connections,
            What::Stream => &self.crowd.streams,
        };
        if count.fetch_sub(1, AcqRel) == 1 {
            self.crowd.left.notify_waiters();
        }
    }
}

/// The bytes of one request body, counted among all that are held.
pub(super) struct Share {
    crowd: Arc<Crowd>,
    bytes: usize,
}

impl Share {
    pub(super) fn none(crowd: &Arc<Crowd>) -> Share {
        Share { crowd: crowd.clone(), bytes: 0 }
    }

    /// Counts more bytes; false when all bodies together would be over `bytes_max`.
    pub(super) fn grow(&mut self, bytes: usize, bytes_max: usize) -> bool {
        self.bytes += bytes;
        self.crowd.body_bytes.fetch_add(bytes, Relaxed) + bytes <= bytes_max
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.crowd.body_bytes.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_capped_together_and_give_back_what_they_took() {
        let crowd = Arc::<Crowd>::default();
        let (mut one, mut other) = (Share::none(&crowd), Share::none(&crowd));
        assert!(one.grow(60, 100));
        assert!(other.grow(40, 100));
        assert!(!one.grow(1, 100));
        drop(one);
        assert!(other.grow(60, 100));
        drop(other);
        assert_eq!(crowd.body_bytes.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn the_last_to_leave_is_noticed() {
        let crowd = Arc::<Crowd>::default();
        crowd.gone().await;
        let connection = crowd.enter(1).unwrap();
        let stream = crowd.stream();
        assert!(crowd.enter(1).is_none());
        let gone = tokio::spawn({
            let crowd = crowd.clone();
            async move { crowd.gone().await }
        });
        drop(connection);
        assert!(!gone.is_finished());
        drop(stream);
        gone.await.unwrap();
    }
}
