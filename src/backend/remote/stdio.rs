//! Child processes as upstream, newline-delimited JSON: one per legacy session, one per principal, or one for all.
//!
//! A process serves one era: what it was first told decides how it reads everything else. Where both eras are spoken
//! to one principal, there are two processes.

mod child;
mod tap;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;

use super::Ask;
use super::Blame;
use super::Config;
use super::Invalid;
use super::Processes;
use super::Reach;
use super::Stdio;
use super::channel;
use super::is_error;
use super::left;
use crate::backend::Answer;
use crate::backend::Content;
use crate::backend::Error;
use crate::catalog::Operation;
use crate::credentials::Credential;
use crate::mcp::Era;
use crate::mcp::Message;
use crate::mcp::Method;
use child::Child;
use child::Ended;

/// A process that lives longer than this, and has answered something, is not failing.
const STEADY: Duration = Duration::from_secs(10);

/// The first pause before a failing process is started again; doubled each time up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(500);

const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// All processes must be gone within this after `stop`; one of them, where its place is waited for.
const STOP_TIMEOUT: Duration = Duration::from_secs(6);

/// Failures of so many are remembered; more are forgotten when their pause is over.
const RECORDS_MAX: usize = 1_000;

pub(super) struct Upstream(Arc<Inner>);

struct Inner {
    config: Arc<Config>,
    stdio: Stdio,
    blame: Blame,
    /// One permit per process, held until the process is reaped.
    slots: Arc<Semaphore>,
    state: Mutex<State>,
    /// The last attempt to start a process failed.
    broken: AtomicBool,
    /// Processes in a row that ended early without a single answer.
    fruitless: AtomicU32,
    stopped: AtomicBool,
}

#[derive(Default)]
struct State {
    sessions: HashMap<Arc<str>, Arc<Child>>,
    /// Processes that several sessions and requests may share.
    shared: HashMap<Key, Arc<Child>>,
    /// All processes that are not reaped.
    all: Vec<Arc<Child>>,
    /// How many there are of one principal.
    owned: HashMap<Arc<str>, usize>,
    records: HashMap<Key, Record>,
}

/// Whose process, and which era it speaks. The owner is empty for all principals together, and for discovery.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Key {
    owner: Arc<str>,
    era: Era,
    /// What its clients can be asked: a server is told once, so clients that differ in this share no process. Zero for all
    /// together, and in the modern era, which tells it with every request.
    abilities: u8,
}

impl Key {
    /// What failing processes are counted by: whatever their clients can be asked.
    fn trouble(&self) -> Key {
        Key { abilities: 0, ..self.clone() }
    }
}

/// Processes in a row that ended before they were steady.
#[derive(Clone, Copy)]
struct Record {
    failures: u32,
    at: Instant,
}

impl Record {
    fn pause(self) -> Duration {
        let pause = BACKOFF.saturating_mul(1 << self.failures.saturating_sub(1).min(16)).min(BACKOFF_MAX);
        pause.saturating_sub(self.at.elapsed())
    }
}

/// Where a process lives: its place among all, and who is told of its end.
struct Home {
    inner: Weak<Inner>,
    key: Key,
    name: Arc<str>,
    _slot: OwnedSemaphorePermit,
}

impl Home {
    fn backend(&self) -> &str {
        &self.name
    }

    fn forget(&self, sessions: &[Arc<str>]) {
        if let Some(inner) = self.inner.upgrade().filter(|_| !sessions.is_empty()) {
            inner.state().sessions.retain(|session, _| !sessions.contains(session));
        }
    }

    fn over(self, child: &Arc<Child>, ended: Ended) {
        if let Some(inner) = self.inner.upgrade() {
            inner.bury(&self.key, child, ended);
        }
    }
}

impl Upstream {
    pub(super) fn new(config: &Arc<Config>, stdio: &Stdio) -> Result<Upstream, Invalid> {
        let blame = Blame(config.name.clone());
        if stdio.command.first().is_none_or(String::is_empty) {
            return Err(blame.invalid("its command is empty"));
        }
        if let Some(directory) = stdio.directory.as_ref().filter(|directory| !directory.is_dir()) {
            return Err(blame.invalid(format!("`{}` is not a directory", directory.display())));
        }
        Ok(Upstream(Arc::new(Inner {
            config: config.clone(),
            stdio: stdio.clone(),
            blame,
            slots: Arc::new(Semaphore::new(stdio.processes_max.clamp(1, 100_000))),
            state: Mutex::default(),
            broken: AtomicBool::new(false),
            fruitless: AtomicU32::new(0),
            stopped: AtomicBool::new(false),
        })))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.0.end_all();
    }
}

#[async_trait]
impl Reach for Upstream {
    async fn ask(&self, ask: Ask<'_>, _credential: &Credential, deadline: Instant) -> Result<Answer, Error> {
        // There is no queue in front of a process that is worth telling from the process.
        ask.reach();
        let work = async {
            match ask.operation {
                Operation::EndSession => self.0.end_session(ask.session),
                Operation::Post(message) => self.0.post(message, ask.session, ask.owner).await,
                Operation::Stream { .. } => self.0.stream(ask.session),
            }
        };
        pingora::time::timeout(left(deadline), work).await.unwrap_or_else(|_| Err(self.0.blame.timeout()))
    }

    fn healthy(&self) -> bool {
        // One early end may be an accident; three in a row are a process that cannot run.
        const FAILURES_MAX: u32 = 3;
        !self.0.stopped.load(Ordering::Relaxed)
            && !self.0.broken.load(Ordering::Relaxed)
            && self.0.fruitless.load(Ordering::Relaxed) < FAILURES_MAX
    }

    async fn stop(&self) {
        self.0.stopped.store(true, Ordering::Relaxed);
        self.0.end_all();
        let all = u32::try_from(self.0.stdio.processes_max.clamp(1, 100_000)).unwrap_or(u32::MAX);
        if pingora::time::timeout(STOP_TIMEOUT, self.0.slots.acquire_many(all)).await.is_err() {
            tracing::warn!(backend = %self.0.blame.0, "child processes did not end in time");
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_all(&self) {
        let mut state = self.state();
        state.sessions.clear();
        state.shared.clear();
        state.all.iter().for_each(|child| child.end());
    }

    async fn post(self: &Arc<Self>, message: &Message, session: Option<&str>, owner: &str) -> Result<Answer, Error> {
        match (message.era, session) {
            (Era::Modern, _) => {
                let child = self.shared(&self.key(owner, Era::Modern, 0)).await?;
                self.send(&child, message, None).await
            }
            (Era::Legacy, Some(session)) => {
                let child = self.home(session)?;
                self.send(&child, message, Some(session)).await
            }
            (Era::Legacy, None) if message.method == Some(Method::Initialize) => {
                self.begin_session(message, owner).await
            }
            // SPEC: lifecycle (2025-11-25): nothing but `initialize` comes before the session.
            (Era::Legacy, None) => Err(self.blame.session_lost()),
        }
    }

    async fn send(&self, child: &Child, message: &Message, session: Option<&str>) -> Result<Answer, Error> {
        if message.is_request() {
            let content = child.request(message, session, self.config.read_timeout).await?;
            return Ok(Answer { status: 200, session: None, content });
        }
        child.tell(message, session).await?;
        Ok(Answer::empty(202))
    }

    fn home(&self, session: &str) -> Result<Arc<Child>, Error> {
        self.state().sessions.get(session).cloned().ok_or_else(|| self.blame.session_lost())
    }

    fn end_session(&self, session: Option<&str>) -> Result<Answer, Error> {
        let session = session.ok_or_else(|| self.blame.session_lost())?;
        let mut state = self.state();
        let child = state.sessions.remove(session).ok_or_else(|| self.blame.session_lost())?;
        let shared = state.shared.values().any(|shared| Arc::ptr_eq(shared, &child));
        drop(state);
        child.desk.leave(session);
        if !shared {
            child.end();
        }
        Ok(Answer::empty(200))
    }

    fn stream(&self, session: Option<&str>) -> Result<Answer, Error> {
        let Some(session) = session else {
            return Ok(Answer::empty(405));
        };
        let content = self.home(session)?.desk.stream(session)?;
        Ok(Answer { status: 200, session: None, content })
    }

    fn key(&self, owner: &str, era: Era, abilities: u8) -> Key {
        if self.stdio.processes == Processes::Shared {
            return Key { owner: "".into(), era, abilities: 0 };
        }
        Key { owner: owner.into(), era, abilities }
    }

    /// A session, in a process of its own or in one that it shares. It is known to nobody until `initialize` was
    /// answered well.
    async fn begin_session(self: &Arc<Self>, hello: &Message, owner: &str) -> Result<Answer, Error> {
        let key = self.key(owner, Era::Legacy, channel::abilities(hello));
        let own = match self.stdio.processes {
            Processes::Session => true,
            // Discovery looks and goes; its process must not keep a place for longer.
            Processes::Principal => owner.is_empty(),
            Processes::Shared => false,
        };
        let (child, newborn) = if own {
            let child = self.start(&key, false).await?;
            (child.clone(), Newborn(Some(child)))
        } else {
            (self.shared(&key).await?, Newborn(None))
        };
        let id = channel::mint(&self.blame)?;
        let newcomer = child.desk.join(id.clone(), owner, hello)?;
        let body = child.greet(hello).await?;
        if is_error(&body) {
            return Ok(Answer { status: 200, session: None, content: Content::Json(body) });
        }
        newborn.keep();
        newcomer.stay();
        let mut state = self.state();
        // It may have ended before it was known here; then nobody else removes it.
        if child.is_over() || self.stopped.load(Ordering::Relaxed) {
            drop(state);
            child.end();
        } else {
            state.sessions.insert(id.clone(), child);
        }
        Ok(Answer { status: 200, session: Some(id.to_string()), content: Content::Json(body) })
    }

    /// The process that shares this key, started when needed.
    async fn shared(self: &Arc<Self>, key: &Key) -> Result<Arc<Child>, Error> {
        let known = self.state().running(key);
        match known {
            Some(child) => Ok(child),
            None => self.start(key, true).await,
        }
    }

    /// Starts a process, not too often when it keeps ending, as soon as there is a place for it.
    async fn start(self: &Arc<Self>, key: &Key, shared: bool) -> Result<Arc<Child>, Error> {
        let slot = match self.slots.clone().try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => self.make_room().await?,
        };
        let mut state = self.state();
        if let Some(child) = state.running(key).filter(|_| shared) {
            return Ok(child);
        }
        if self.stopped.load(Ordering::Relaxed) {
            return Err(self.blame.unavailable("it is being stopped"));
        }
        let pause = state.records.get(&key.trouble()).map_or(Duration::ZERO, |record| record.pause());
        if !pause.is_zero() {
            let pause = pause.as_millis();
            return Err(self.blame.unavailable(format!("the process ended and is started again in {pause} ms")));
        }
        let owned = state.owned.get(&key.owner).copied().unwrap_or(0);
        if owned >= self.stdio.processes_per_principal_max && !key.owner.is_empty() {
            return Err(self.blame.unavailable(format!("{owned} processes run for this principal already")));
        }
        let home = Home { inner: Arc::downgrade(self), key: key.clone(), name: self.config.name.clone(), _slot: slot };
        let child = Child::spawn(&self.stdio, &self.config, key.era, home);
        self.broken.store(child.is_err(), Ordering::Relaxed);
        let child = child.map_err(|what| self.blame.unavailable(what))?;
        *state.owned.entry(key.owner.clone()).or_default() += 1;
        state.all.push(child.clone());
        if shared {
            state.shared.insert(key.clone(), child.clone());
        }
        Ok(child)
    }

    /// All places are taken: one whose process serves nobody, or is ending, becomes free in a moment.
    async fn make_room(&self) -> Result<OwnedSemaphorePermit, Error> {
        let full = || self.blame.unavailable(format!("{} processes run already", self.stdio.processes_max));
        {
            let state = self.state();
            if !state.all.iter().any(|child| child.is_ending()) {
                let deserted = state.shared.values().find(|child| child.is_spare());
                deserted.ok_or_else(full)?.end();
            }
        }
        let slot = pingora::time::timeout(STOP_TIMEOUT, self.slots.clone().acquire_owned()).await;
        slot.map_err(|_| full())?.map_err(|_| full())
    }

    /// A process was reaped.
    fn bury(&self, key: &Key, child: &Arc<Child>, ended: Ended) {
        let mut state = self.state();
        state.all.retain(|other| !Arc::ptr_eq(other, child));
        state.sessions.retain(|_, other| !Arc::ptr_eq(other, child));
        if state.shared.get(key).is_some_and(|other| Arc::ptr_eq(other, child)) {
            state.shared.remove(key);
        }
        if let Some(count) = state.owned.get_mut(&key.owner) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.owned.remove(&key.owner);
            }
        }
        if ended.fruitful || ended.expected {
            self.fruitless.store(0, Ordering::Relaxed);
        } else {
            self.fruitless.fetch_add(1, Ordering::Relaxed);
        }
        if (ended.lived >= STEADY && ended.fruitful) || ended.expected {
            state.records.remove(&key.trouble());
            return;
        }
        if state.records.len() >= RECORDS_MAX {
            state.records.retain(|_, record| !record.pause().is_zero());
        }
        let failures = state.records.get(&key.trouble()).map_or(0, |record| record.failures).saturating_add(1);
        state.records.insert(key.trouble(), Record { failures, at: ended.at });
    }
}

impl State {
    fn running(&self, key: &Key) -> Option<Arc<Child>> {
        self.shared.get(key).filter(|child| !child.is_ending() && !child.is_over()).cloned()
    }
}

/// A process of a session that is not open yet: ended unless kept.
struct Newborn(Option<Arc<Child>>);

impl Newborn {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(child) = self.0.take() {
            child.end();
        }
    }
}
