//! Which proofs have been seen: for each key the `jti`s of the last minutes, so that a key's flood is its own problem.

use std::collections::BTreeSet;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::Thumbprint;
use crate::identity::sha256;

/// Keys at once. Each needs a token of its own that an issuer has bound to it.
const KEYS_MAX: u64 = 100_000;

/// Proofs of one key within the time they could be used again: some 800 requests a second.
const PROOFS_PER_KEY_MAX: usize = 100_000;

/// Longer than any proof is taken (a minute, and twice the largest leeway): a key that has been silent this long has none
/// left that could be used again.
const WINDOW: Duration = Duration::from_secs(4 * 60);

/// Remembers proofs. Survives reloads.
pub(in crate::identity) struct Replays(Cache<Thumbprint, Arc<Mutex<Seen>>>);

struct Seen {
    digests: HashSet<u128>,
    /// The same, behind the last second at which each would be taken.
    order: BTreeSet<(i64, u128)>,
    /// The latest second known: what ended before it may be forgotten already.
    latest: i64,
    /// When that was, by a clock that nobody sets.
    latest_at: Instant,
}

impl Default for Replays {
    fn default() -> Replays {
        // LRU: the default policy may refuse a newcomer its place, and its proofs would be good twice.
        let cache = Cache::builder().max_capacity(KEYS_MAX).eviction_policy(EvictionPolicy::lru()).time_to_idle(WINDOW);
        Replays(cache.build())
    }
}

impl Replays {
    /// Takes a proof once.
    pub(super) fn note(&self, key: &Thumbprint, jti: &str, now: i64, last: i64) -> Result<(), &'static str> {
        let seen = self.0.get_with(*key, || Arc::new(Mutex::new(Seen::new(now, Instant::now()))));
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.note(jti, (now, Instant::now()), last)
    }
}

impl Seen {
    fn new(now: i64, at: Instant) -> Seen {
        Seen { digests: HashSet::new(), order: BTreeSet::new(), latest: now, latest_at: at }
    }

    fn note(&mut self, jti: &str, (now, at): (i64, Instant), last: i64) -> Result<(), &'static str> {
        // A wall clock that was ahead for a moment must not lock the key out until the time it showed: what was forgotten
        // then has ended for every clock a window later, and from there on the clock of now counts.
        if now >= self.latest || at.saturating_duration_since(self.latest_at) >= WINDOW {
            (self.latest, self.latest_at) = (now, at);
        }
        // A request that was overtaken by later ones.
        if last < self.latest {
            return Err("the DPoP proof is too old: make one for each request, and check the clock");
        }
        let latest = self.latest;
        while let Some((_, digest)) = self.order.first().copied().filter(|(last, _)| *last < latest) {
            self.order.pop_first();
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
        self.order.insert((last, digest));
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
    fn a_clock_that_was_ahead_for_a_moment_locks_a_key_out_for_one_window_at_most() {
        const NOW: i64 = 1_000_000;
        let start = Instant::now();
        let mut seen = Seen::new(NOW, start);
        let mut note = |jti: &str, wall: i64, after_s: u64, last: i64| {
            seen.note(jti, (wall, start + Duration::from_secs(after_s)), last)
        };
        assert!(note("before", NOW, 0, NOW + 180).is_ok());
        // An hour ahead, in the same second: what came before is forgotten.
        assert!(note("ahead", NOW + 3600, 0, NOW + 3690).is_ok());
        // Tries go on all the time, and must not put the end off.
        for after in 1..WINDOW.as_secs() {
            let wall = NOW + i64::try_from(after).expect("small");
            assert!(note("before", wall, after, NOW + 180).expect_err("it may be used again").contains("too old"));
            assert!(note("honest", wall, after, wall + 90).is_err(), "after {after} s");
        }
        let wall = NOW + 240;
        assert!(note("before", wall, 240, NOW + 180).is_err(), "it has ended");
        assert!(note("honest", wall, 240, wall + 90).is_ok());
        assert!(note("honest", wall, 240, wall + 90).is_err(), "once");
        // What was seen of the hour to come is not forgotten with it, and keeps nothing else from being forgotten.
        assert!(note("ahead", wall + 3400, 3640, NOW + 3690).expect_err("seen").contains("before"));
        assert_eq!(seen.order.len(), 1);
    }

    #[test]
    fn a_clock_that_goes_back_a_little_or_runs_on_resets_nothing() {
        let start = Instant::now();
        let mut seen = Seen::new(1000, start);
        assert!(seen.note("a", (1000, start), 1090).is_ok());
        assert!(seen.note("b", (970, start + Duration::from_secs(1)), 1060).is_ok());
        assert_eq!(seen.latest, 1000);
        assert!(seen.note("b", (1001, start + Duration::from_secs(32)), 1060).is_err(), "seen");
        assert!(seen.note("c", (1200, start + Duration::from_secs(231)), 1290).is_ok());
        assert!(seen.note("a", (1199, start + Duration::from_secs(232)), 1090).is_err(), "forgotten and too old");
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
