//! Which proofs have been seen: for each key the `jti`s of the last minutes, so that a key's flood is its own problem.

use std::collections::HashSet;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::Thumbprint;
use crate::identity::sha256;

/// Keys at once. Each needs a token of its own that an issuer has bound to it.
const KEYS_MAX: u64 = 100_000;

/// Proofs of one key within the time they could be used again: some 800 requests a second.
const PROOFS_PER_KEY_MAX: usize = 100_000;

/// A key that has been silent this long has no proof left that would be taken (a minute, and twice the largest leeway).
const IDLE: Duration = Duration::from_secs(4 * 60);

/// Remembers proofs. Survives reloads.
pub(in crate::identity) struct Replays(Cache<Thumbprint, Arc<Mutex<Seen>>>);

#[derive(Default)]
struct Seen {
    digests: HashSet<u128>,
    /// In order of arrival, with the last second at which the proof would be taken.
    order: VecDeque<(i64, u128)>,
    /// The latest second known: what ended before it may be forgotten already.
    latest: i64,
}

impl Default for Replays {
    fn default() -> Replays {
        // LRU: the default policy may refuse a newcomer its place, and its proofs would be good twice.
        let cache = Cache::builder().max_capacity(KEYS_MAX).eviction_policy(EvictionPolicy::lru()).time_to_idle(IDLE);
        Replays(cache.build())
    }
}

impl Replays {
    /// Takes a proof once.
    pub(super) fn note(&self, key: &Thumbprint, jti: &str, now: i64, last: i64) -> Result<(), &'static str> {
        let seen = self.0.get_with(*key, Arc::default);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.note(jti, now, last)
    }
}

impl Seen {
    fn note(&mut self, jti: &str, now: i64, last: i64) -> Result<(), &'static str> {
        self.latest = self.latest.max(now);
        // A request that was overtaken by later ones.
        if last < self.latest {
            return Err("the DPoP proof is too old: make one for each request, and check the clock");
        }
        let latest = self.latest;
        while let Some((_, digest)) = self.order.front().copied().filter(|(last, _)| *last < latest) {
            self.order.pop_front();
            self.digests.remove(&digest);
        }
        let digest = half(&sha256(jti.as_bytes()));
        if self.digests.contains(&digest) {
            return Err("the DPoP proof has been used before: make one for each request");
        }
        if self.order.len() >= PROOFS_PER_KEY_MAX {
            return Err("there were too many DPoP proofs of this key within a minute");
        }
        self.digests.insert(digest);
        self.order.push_back((last, digest));
        Ok(())
    }
}

fn half(digest: &[u8]) -> u128 {
    digest.iter().take(16).fold(0, |half, byte| half << 8 | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_taken_once_by_its_key_and_forgotten_when_it_is_too_old_anyway() {
        let replays = Replays::default();
        let (one, two) = ([1; 32], [2; 32]);
        assert!(replays.note(&one, "a", 100, 190).is_ok());
        assert!(replays.note(&one, "a", 100, 190).is_err());
        assert!(replays.note(&one, "a", 190, 190).is_err(), "it could still be used");
        assert!(replays.note(&one, "b", 190, 190).is_ok());
        assert!(replays.note(&two, "a", 100, 190).is_ok(), "another key's");
        let seen = replays.0.get(&one).expect("known");
        assert_eq!(seen.lock().expect("whole").order.len(), 2);
        assert!(replays.note(&one, "c", 191, 281).is_ok());
        assert!(replays.note(&one, "a", 190, 190).expect_err("overtaken").contains("too old"));
        assert_eq!(seen.lock().expect("whole").order.len(), 1);
        assert_eq!(seen.lock().expect("whole").digests.len(), 1);
    }

    #[test]
    fn a_key_that_floods_is_stopped_and_no_proof_is_forgotten() {
        let replays = Replays::default();
        for n in 0..PROOFS_PER_KEY_MAX {
            assert!(replays.note(&[1; 32], &n.to_string(), 100, 190).is_ok());
        }
        assert!(replays.note(&[1; 32], "one more", 100, 190).expect_err("full").contains("too many"));
        assert!(replays.note(&[1; 32], "0", 100, 190).expect_err("seen").contains("before"));
        assert!(replays.note(&[2; 32], "0", 100, 190).is_ok(), "others are not touched");
    }
}
