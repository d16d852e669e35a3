//! Quotas counted in memory: calls of a key in the current day or month, in a table that cannot outgrow its bound.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use super::rates::KEYS_MAX;
use super::rates::Key;

const SHARDS: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Used {
    calls: u64,
    ends_s: u64,
}

#[derive(Default)]
struct Shard {
    keys: HashMap<Key, Used>,
    /// Of all keys that found no room.
    overflow: Option<Used>,
}

/// Forgotten when the process ends: the shared store does not forget.
pub(super) struct Quotas {
    keys_per_shard_max: usize,
    shards: Vec<Mutex<Shard>>,
}

impl Default for Quotas {
    fn default() -> Self {
        Quotas::with_keys_max(KEYS_MAX)
    }
}

impl Quotas {
    pub(super) fn with_keys_max(keys_max: usize) -> Quotas {
        Quotas {
            keys_per_shard_max: keys_max.div_ceil(SHARDS),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    fn shard(&self, key: Key) -> Option<MutexGuard<'_, Shard>> {
        let shard = self.shards.get((key % SHARDS as u128) as usize)?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts one call of the window that ends then. `false`: it is used up.
    pub(super) fn take(&self, key: Key, calls_max: u64, ends_s: u64, now_s: u64) -> bool {
        let Some(mut shard) = self.shard(key) else { return false };
        if !shard.keys.contains_key(&key) && shard.keys.len() >= self.keys_per_shard_max {
            shard.keys.retain(|_, used| used.ends_s > now_s);
        }
        let fresh = Used { calls: 0, ends_s };
        let used = if shard.keys.contains_key(&key) || shard.keys.len() < self.keys_per_shard_max {
            shard.keys.entry(key).or_insert(fresh)
        } else {
            shard.overflow.get_or_insert(fresh)
        };
        if used.ends_s <= now_s {
            *used = fresh;
        }
        let free = used.calls < calls_max;
        if free {
            used.calls += 1;
        }
        free
    }

    /// Takes back what was counted for a call that did not come to pass.
    pub(super) fn give_back(&self, key: Key) {
        let Some(mut shard) = self.shard(key) else { return };
        let shard = &mut *shard;
        if let Some(used) = shard.keys.get_mut(&key).or(shard.overflow.as_mut()) {
            used.calls = used.calls.saturating_sub(1);
        }
    }

    pub(super) fn sweep(&self, now_s: u64) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.keys.retain(|_, used| used.ends_s > now_s);
            let room = shard.keys.len() * 2;
            shard.keys.shrink_to(room);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_used_up_and_the_next_one_begins_anew() {
        let quotas = Quotas::default();
        assert!((0..3).all(|_| quotas.take(7, 3, 100, 50)));
        assert!(!quotas.take(7, 3, 100, 99));
        assert!(quotas.take(8, 3, 100, 99), "another key");
        quotas.give_back(7);
        assert!(quotas.take(7, 3, 100, 99) && !quotas.take(7, 3, 100, 99));
        assert!(quotas.take(7, 3, 200, 100), "the next window");
        quotas.sweep(200);
        assert!(quotas.shards.iter().all(|shard| shard.lock().unwrap().keys.is_empty()));
    }

    #[test]
    fn a_full_table_counts_newcomers_together_and_forgets_windows_that_are_over() {
        let quotas = Quotas::with_keys_max(SHARDS);
        let key = |count: u128| count * SHARDS as u128; // all of one shard
        assert!(quotas.take(key(1), 2, 100, 50));
        assert!(quotas.take(key(2), 2, 100, 50) && quotas.take(key(3), 2, 100, 50));
        assert!(!quotas.take(key(4), 2, 100, 50), "those without a place share one");
        assert!(quotas.take(key(5), 2, 200, 100), "the first key's window is over, its place is free");
        assert!(quotas.take(key(5), 2, 200, 100));
        assert!(!quotas.take(key(5), 2, 200, 100));
    }
}
