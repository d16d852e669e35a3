//! Concurrency: how many calls and streams a key holds now, and the `Slot` that gives them back when dropped.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::Mutex;
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
    held: Vec<Key>,
}

impl Slot {
    pub(super) fn new(slots: &Arc<Slots>) -> Slot {
        Slot { slots: slots.clone(), held: Vec::new() }
    }

    /// No bound: nothing to count.
    pub(super) fn take(&mut self, key: Key, concurrent_max: Option<NonZeroU32>) -> Result<(), ()> {
        if let Some(concurrent_max) = concurrent_max {
            self.slots.take(key, concurrent_max)?;
            self.held.push(key);
        }
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.held.iter().for_each(|key| self.slots.give_back(*key));
    }
}
