//! The pool of upstream sessions: one per principal, credential and set of abilities; bounded, and never shared between
//! principals.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;
use std::time::Instant;

use super::Limits;
use crate::backend::Error;
use crate::backend::remote::Blame;
use crate::backend::remote::left;
use crate::backend::remote::session::Introduction;
use crate::backend::remote::session::Line;
use crate::backend::remote::session::Session;
use crate::credentials::Credential;

/// Whose session it is. A token that was renewed for the same caller goes on with the same session; a fixed credential that
/// changed gets a session of its own, who listened to the old one moves there, and the old one idles out.
#[derive(Clone, Eq, Hash, PartialEq)]
pub(super) struct Key {
    principal: Arc<str>,
    credential: [u8; 32],
    /// The upstream sees the caller, and what they may do there, in the credential itself.
    personal: bool,
    abilities: String,
}

impl Key {
    pub(super) fn new(principal: &Arc<str>, credential: &Credential, abilities: String) -> Key {
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        if let Some(whose) = credential.identity() {
            digest.update(&whose);
        } else if let Some((name, secret)) = credential.header() {
            digest.update(name.as_str().as_bytes());
            digest.update(b"\0");
            digest.update(secret.expose().as_bytes());
        }
        let mut identity = [0u8; 32];
        identity.iter_mut().zip(digest.finish().as_ref()).for_each(|(to, from)| *to = *from);
        Key { principal: principal.clone(), credential: identity, personal: credential.is_personal(), abilities }
    }
}

/// A place in the pool. The session in it is opened by whoever holds the lock; the others wait for it.
struct Slot {
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
    used: Mutex<Instant>,
}

impl Slot {
    fn used(&self) -> Instant {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Does nobody use or open it?
    fn is_free(self: &Arc<Self>) -> bool {
        // One reference is the pool's.
        Arc::strong_count(self) == 1
            && self
                .session
                .try_lock()
                .is_ok_and(|session| session.as_ref().is_none_or(|session| Arc::strong_count(session) == 1))
    }

    fn is_worth_keeping(&self, limits: &Limits) -> bool {
        let Ok(session) = self.session.try_lock() else {
            return true;
        };
        let good = |session: &Arc<Session>| !session.is_over() && session.born.elapsed() < limits.session_lifetime;
        self.used().elapsed() < limits.session_idle_timeout && session.as_ref().is_some_and(good)
    }
}

/// A session out of the pool.
pub(super) struct Taken {
    pub(super) session: Arc<Session>,
    /// It was opened for an earlier call: the upstream may have forgotten it since.
    pub(super) reused: bool,
}

pub(super) struct Pool {
    blame: Blame,
    limits: Limits,
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
    /// Somebody looks after idle sessions.
    swept: std::sync::atomic::AtomicBool,
}

impl Pool {
    pub(super) fn new(blame: Blame, limits: Limits) -> Arc<Pool> {
        Arc::new(Pool { blame, limits, slots: Mutex::default(), swept: false.into() })
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Key, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The principal's session, opened if there is none. Single flight.
    ///
    /// # Errors
    /// When the pool is full of sessions in use, or the upstream does not open one.
    pub(super) async fn take(
        self: &Arc<Self>,
        key: &Key,
        line: &Line,
        who: &Introduction,
        deadline: Instant,
    ) -> Result<Taken, Error> {
        let slot = self.slot(key)?;
        let Ok(mut place) = pingora::time::timeout(left(deadline), slot.session.lock()).await else {
            return Err(self.blame.timeout());
        };
        slot.touch();
        let good =
            |session: &&Arc<Session>| !session.is_over() && session.born.elapsed() < self.limits.session_lifetime;
        if let Some(session) = place.as_ref().filter(good) {
            session.carry(&line.credential);
            return Ok(Taken { session: session.clone(), reused: true });
        }
        let session = Arc::new(Session::open(line.clone(), who, deadline).await?);
        // What listens to another one would hear nothing of the calls that come.
        if let Some(old) = place.replace(session.clone()) {
            old.ears.follow(&session);
        }
        for old in self.others(key) {
            old.ears.follow(&session);
        }
        Ok(Taken { session, reused: false })
    }

    /// The same caller's sessions under credentials of another time: the upstream takes all of them for one. Credentials
    /// of the caller's own are renewed without another key: another one is of other rights, and none of its business.
    fn others(&self, key: &Key) -> Vec<Arc<Session>> {
        let slots = self.slots();
        if key.personal {
            return Vec::new();
        }
        let same = slots.iter().filter(|(other, _)| {
            other.principal == key.principal
                && !other.personal
                && other.abilities == key.abilities
                && other.credential != key.credential
        });
        // One that is being opened has no listeners yet.
        same.filter_map(|(_, slot)| slot.session.try_lock().ok()?.clone()).collect()
    }

    fn slot(self: &Arc<Self>, key: &Key) -> Result<Arc<Slot>, Error> {
        let mut slots = self.slots();
        if let Some(slot) = slots.get(key) {
            return Ok(slot.clone());
        }
        let own = slots.keys().filter(|other| other.principal == key.principal).count();
        if own >= self.limits.sessions_per_principal_max {
            let owned = |other: &Key| other.principal == key.principal;
            self.evict(&mut slots, owned, "this caller's")?;
        } else if slots.len() >= self.limits.sessions_max {
            self.evict(&mut slots, |_| true, "all")?;
        }
        let slot = Arc::new(Slot { session: tokio::sync::Mutex::new(None), used: Mutex::new(Instant::now()) });
        slots.insert(key.clone(), slot.clone());
        drop(slots);
        if !self.swept.swap(true, std::sync::atomic::Ordering::Relaxed) {
            tokio::spawn(sweep(Arc::downgrade(self), self.limits.session_idle_timeout / 4));
        }
        Ok(slot)
    }

    /// Makes room by ending the session that nobody has used for the longest time.
    fn evict(
        &self,
        slots: &mut HashMap<Key, Arc<Slot>>,
        which: impl Fn(&Key) -> bool,
        whose: &str,
    ) -> Result<(), Error> {
        let free = slots.iter().filter(|(key, slot)| which(key) && slot.is_free());
        let oldest = free.min_by_key(|(_, slot)| slot.used()).map(|(key, _)| key.clone());
        match oldest {
            Some(key) => {
                slots.remove(&key);
                Ok(())
            }
            None => Err(self.blame.unavailable(format!("{whose} upstream sessions are in use"))),
        }
    }

    /// Ends all sessions.
    pub(super) async fn stop(&self) {
        let slots = std::mem::take(&mut *self.slots());
        let end = slots.into_values().map(|slot| async move {
            if let Ok(session) = slot.session.try_lock()
                && let Some(session) = session.as_ref()
            {
                session.end().await;
            }
        });
        futures_util::future::join_all(end).await;
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.slots().len()
    }
}

/// Ends sessions that are idle or too old, until none is left and the pool is gone.
async fn sweep(pool: Weak<Pool>, pause: Duration) {
    loop {
        tokio::time::sleep(pause.max(Duration::from_millis(10))).await;
        let Some(pool) = pool.upgrade() else {
            return;
        };
        // Dropped outside the lock: ending a session spawns a task.
        let mut done = Vec::new();
        let mut slots = pool.slots();
        slots.retain(|_, slot| {
            let keep = !slot.is_free() || slot.is_worth_keeping(&pool.limits);
            if !keep {
                done.push(slot.clone());
            }
            keep
        });
        let empty = slots.is_empty();
        if empty {
            pool.swept.store(false, std::sync::atomic::Ordering::Relaxed);
        }
        drop(slots);
        drop(done);
        if empty {
            return;
        }
    }
}
