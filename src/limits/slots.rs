//! Concurrency: how many calls and streams a key holds now, and the `Slot` that gives them back when dropped.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use super::rates::Key;

const SHARDS: usize = 64;

/// Counts per key. A key with none is forgotten, so the table is never larger than what is held.
pub(super) struct Slots {
    shards: Vec<Mutex<HashMap<Key, u32>>>,
}

impl Default for Slots {
    fn default() -> Self {
        Slots { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Slots {
    fn shard<T>(&self, key: Key, work: impl FnOnce(&mut HashMap<Key, u32>) -> T) -> Option<T> {
        let shard = self.shards.get((key % SHARDS as u128) as usize)?;
        Some(work(&mut shard.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn take(&self, key: Key, concurrent_max: NonZeroU32) -> Result<(), ()> {
        let taken = self.shard(key, |held| {
            let count = held.get(&key).copied().unwrap_or(0);
            if count >= concurrent_max.get() {
                return Err(());
            }
            held.insert(key, count + 1);
            Ok(())
        });
        taken.unwrap_or(Err(()))
    }

    fn give_back(&self, key: Key) {
        self.shard(key, |held| {
            let left = held.get(&key).copied().unwrap_or(0).saturating_sub(1);
            if left == 0 {
                held.remove(&key);
            } else {
                held.insert(key, left);
            }
        });
    }

    #[cfg(test)]
    pub(super) fn keys(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().len()).sum()
    }
}

/// The right to run one call, held until its answer is out. Dropping it gives it back.
#[must_use = "a slot that is not held limits nothing"]
pub struct Slot {
    slots: Arc<Slots>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    keys: Vec<Key>,
    given_back: bool,
}

impl Slot {
    pub(super) fn new(slots: &Arc<Slots>) -> Slot {
        Slot { slots: slots.clone(), held: Mutex::default() }
    }

    /// No bound: nothing to count. What is held already is not counted again. Refused: the bound.
    pub(super) fn take(&self, key: Key, concurrent_max: Option<NonZeroU32>) -> Result<(), NonZeroU32> {
        let Some(concurrent_max) = concurrent_max else { return Ok(()) };
        let mut held = self.held();
        if !held.keys.contains(&key) {
            self.slots.take(key, concurrent_max).map_err(|()| concurrent_max)?;
            held.keys.push(key);
        }
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back what it holds before it is dropped.
    pub fn give_back(&self) {
        let mut held = self.held();
        held.given_back = true;
        held.keys.drain(..).for_each(|key| self.slots.give_back(key));
    }

    /// Holds what another one was given, after it gave back its own.
    pub fn renew(&self, mut other: Slot) {
        let keys = std::mem::take(&mut other.held.get_mut().unwrap_or_else(PoisonError::into_inner).keys);
        let mut held = self.held();
        held.given_back = false;
        held.keys.extend(keys);
    }

    pub fn is_given_back(&self) -> bool {
        self.held().given_back
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.give_back();
    }
}
