//! Which tool a legacy server's task is of, for messages that name it without having been asked about it.
//!
//! A server that lists its tasks, or says that one has changed, does not say which tool they are of; nor whose they are,
//! where callers share a process. Only what was begun through this process a while ago is known here. The rest is not
//! shown: it can be asked for by its id all the same.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;

/// Tasks remembered; about 300 bytes each.
const TASKS_MAX: u64 = 50_000;

/// Most servers keep a task for minutes.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Whose, which backend, and the upstream's id.
type Key = (Arc<str>, Arc<str>, String);

#[derive(Clone)]
pub(in crate::gateway) struct Remembered(Cache<Key, Arc<str>>);

impl Default for Remembered {
    fn default() -> Self {
        Remembered(Cache::builder().max_capacity(TASKS_MAX).time_to_live(KEPT).build())
    }
}

impl Remembered {
    pub(super) fn note(&self, owner: &Arc<str>, backend: &Arc<str>, id: &str, tool: Arc<str>) {
        self.0.insert((owner.clone(), backend.clone(), id.to_owned()), tool);
    }

    pub(super) fn tool(&self, owner: &Arc<str>, backend: &Arc<str>, id: &str) -> Option<Arc<str>> {
        self.0.get(&(owner.clone(), backend.clone(), id.to_owned()))
    }
}
