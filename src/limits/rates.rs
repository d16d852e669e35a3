//! Token buckets per key (GCRA, `governor`), in a table that cannot outgrow its bound.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::hash::Hash;
use std::hash::RandomState;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use governor::Quota;
use governor::RateLimiter;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;

use super::Rate;

/// Keys one table remembers, about 40 bytes each. Beyond it, new keys of a shard share one bucket.
pub(super) const KEYS_MAX: usize = 1_000_000;

const SHARDS: usize = 64;

/// A full shard looks for keys to forget at most so often.
const FULL_SWEEP_INTERVAL: Nanos = Nanos::new(1_000_000_000);

/// Longer periods are not told apart: the arithmetic below stays far from its end.
const PERIOD_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// Names of any length become 128 bits, keyed afresh in each process: nobody can aim at another's bucket.
#[derive(Default)]
pub(super) struct Keys {
    low: RandomState,
    high: RandomState,
}

pub(super) type Key = u128;

impl Keys {
    /// IPv6 by /64, the least a customer gets; IPv4 written as IPv6 as what it is.
    pub(super) fn address(&self, address: IpAddr) -> Key {
        match address.to_canonical() {
            IpAddr::V4(address) => self.key(("v4", address.to_bits())),
            IpAddr::V6(address) => self.key(("v6", address.to_bits() >> 64)),
        }
    }

    /// Of whatever kind, and whose.
    pub(super) fn of(&self, kind: &str, name: [&str; 3]) -> Key {
        self.key((kind, name))
    }

    fn key(&self, name: impl Hash) -> Key {
        u128::from(self.low.hash_one(&name)) | u128::from(self.high.hash_one(&name)) << 64
    }
}

/// One rate over many keys.
pub(super) struct Rates<C: Clock + Clone> {
    rate: Rate,
    limiter: RateLimiter<Key, Table, C, NoOpMiddleware<C::Instant>>,
    clock: C,
}

impl<C: Clock + Clone> Rates<C> {
    pub(super) fn new(rate: Rate, clock: C) -> Rates<C> {
        Rates::with_keys_max(rate, clock, KEYS_MAX)
    }

    pub(super) fn with_keys_max(rate: Rate, clock: C, keys_max: usize) -> Rates<C> {
        // More calls than nanoseconds, or no time at all: one nanosecond each, the finest there is.
        let each = (rate.period.min(PERIOD_MAX) / rate.calls.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(each).unwrap_or_else(|| Quota::per_second(rate.calls)).allow_burst(rate.calls);
        Rates { rate, limiter: RateLimiter::new(quota, Table::new(each.into(), keys_max), clock.clone()), clock }
    }

    pub(super) fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes one token, or says how long there will be none.
    pub(super) fn count(&self, key: Key) -> Result<(), Duration> {
        self.limiter.check_key(&key).map_err(|until| until.wait_time_from(self.clock.now()))
    }

    pub(super) fn sweep(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }

    #[cfg(test)]
    pub(super) fn keys(&self) -> usize {
        self.limiter.len()
    }
}

/// The theoretical arrival time (GCRA) of each key.
struct Table {
    /// What one call adds to it.
    each: Nanos,
    keys_per_shard_max: usize,
    shards: Vec<Mutex<Shard>>,
}

#[derive(Default)]
struct Shard {
    keys: HashMap<Key, Nanos>,
    /// Of all keys that found no room.
    overflow: Option<Nanos>,
    swept: Nanos,
}

impl Table {
    fn new(each: Nanos, keys_max: usize) -> Table {
        Table {
            each,
            keys_per_shard_max: keys_max.div_ceil(SHARDS),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    fn shards(&self) -> impl Iterator<Item = MutexGuard<'_, Shard>> {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl StateStore for Table {
    type Key = Key;

    fn measure_and_replace<T, F, E>(&self, key: &Key, judge: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // The key is a keyed hash: its low bits choose the shard.
        let Some(shard) = self.shards.get((key % SHARDS as u128) as usize) else {
            return judge(None).map(|(answer, _)| answer);
        };
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shard.keys.get_mut(key) {
            let (answer, next) = judge(Some(*known))?;
            *known = next;
            return Ok(answer);
        }
        let (answer, next) = judge(None)?;
        if shard.keys.len() >= self.keys_per_shard_max {
            // A key nobody knew arrives now, so `now` is what it gets less one call.
            let now = Nanos::new(next.as_u64().saturating_sub(self.each.as_u64()));
            shard.sweep_full(now);
        }
        if shard.keys.len() < self.keys_per_shard_max {
            shard.keys.insert(*key, next);
            return Ok(answer);
        }
        let (answer, next) = judge(shard.overflow)?;
        shard.overflow = Some(next);
        Ok(answer)
    }
}

impl Shard {
    fn sweep_full(&mut self, now: Nanos) {
        if now >= self.swept + FULL_SWEEP_INTERVAL {
            self.swept = now;
            // An arrival time in the past is as good as none.
            self.keys.retain(|_, arrival| *arrival > now);
        }
    }
}

impl ShrinkableKeyedStateStore<Key> for Table {
    fn retain_recent(&self, drop_below: Nanos) {
        self.shards().for_each(|mut shard| shard.keys.retain(|_, arrival| *arrival >= drop_below));
    }

    fn shrink_to_fit(&self) {
        self.shards().for_each(|mut shard| {
            let room = shard.keys.len() * 2;
            shard.keys.shrink_to(room);
        });
    }

    fn len(&self) -> usize {
        self.shards().map(|shard| shard.keys.len()).sum()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
