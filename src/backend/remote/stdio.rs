//! A child process as upstream: one per legacy session, one shared by all modern requests, newline-delimited JSON.

mod child;
mod inbox;
mod relay;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use ring::rand::SecureRandom;
use tokio::sync::Semaphore;

use super::Ask;
use super::Blame;
use super::Config;
use super::Invalid;
use super::Reach;
use super::Stdio;
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

/// A shared process that lives longer than this is not failing.
const STEADY: Duration = Duration::from_secs(10);

/// The first pause before a failing process is started again; doubled each time up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(500);

const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// All processes must be gone within this after `stop`.
const STOP_TIMEOUT: Duration = Duration::from_secs(6);

pub(super) struct Upstream(Arc<Inner>);

struct Inner {
    config: Arc<Config>,
    stdio: Stdio,
    blame: Blame,
    /// One permit per process, held until the process is reaped.
    slots: Arc<Semaphore>,
    sessions: Mutex<HashMap<String, Arc<Child>>>,
    shared: Mutex<Shared>,
    /// The last attempt to start a process failed.
    broken: AtomicBool,
    stopped: AtomicBool,
}

#[derive(Default)]
struct Shared {
    child: Option<Arc<Child>>,
    /// Processes in a row that ended before they were steady.
    failures: u32,
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
            sessions: Mutex::new(HashMap::new()),
            shared: Mutex::new(Shared::default()),
            broken: AtomicBool::new(false),
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
        let work = async {
            match ask.operation {
                Operation::EndSession => self.0.end_session(ask.session),
                Operation::Post(message) => self.0.post(message, ask.session).await,
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
            && self.0.shared().failures < FAILURES_MAX
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
    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Arc<Child>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_all(&self) {
        let sessions = std::mem::take(&mut *self.sessions());
        let shared = self.shared().child.take();
        sessions.into_values().chain(shared).for_each(|child| child.end());
    }

    async fn post(self: &Arc<Self>, message: &Message, session: Option<&str>) -> Result<Answer, Error> {
        match (message.era, session) {
            (Era::Modern, _) => self.send(&self.modern_child()?, message).await,
            (Era::Legacy, Some(session)) => self.send(&self.home(session)?, message).await,
            (Era::Legacy, None) if message.method == Some(Method::Initialize) => self.begin_session(message).await,
            // SPEC: lifecycle (2025-11-25): nothing but `initialize` comes before the session.
            (Era::Legacy, None) => Err(self.blame.session_lost()),
        }
    }

    async fn send(&self, child: &Arc<Child>, message: &Message) -> Result<Answer, Error> {
        if message.is_request() {
            let content = child.request(message, self.config.read_timeout).await?;
            return Ok(Answer { status: 200, session: None, content });
        }
        child.tell(message).await?;
        Ok(Answer::empty(202))
    }

    fn home(&self, session: &str) -> Result<Arc<Child>, Error> {
        self.sessions().get(session).cloned().ok_or_else(|| self.blame.session_lost())
    }

    fn end_session(&self, session: Option<&str>) -> Result<Answer, Error> {
        let child =
            session.and_then(|session| self.sessions().remove(session)).ok_or_else(|| self.blame.session_lost())?;
        child.end();
        Ok(Answer::empty(200))
    }

    fn stream(&self, session: Option<&str>) -> Result<Answer, Error> {
        let Some(session) = session else {
            return Ok(Answer::empty(405));
        };
        let content = self.home(session)?.stream();
        Ok(Answer { status: 200, session: None, content })
    }

    /// A session of its own process. It is known to nobody until `initialize` was answered well.
    async fn begin_session(self: &Arc<Self>, message: &Message) -> Result<Answer, Error> {
        let id = self.mint()?;
        let child = Newborn(Some(self.spawn(Era::Legacy, Some(id.clone()))?));
        let Some(process) = &child.0 else {
            return Err(self.blame.unavailable("the process is gone"));
        };
        let content = process.request(message, self.config.read_timeout).await?;
        if matches!(&content, Content::Json(body) if is_error(body)) {
            return Ok(Answer { status: 200, session: None, content });
        }
        if let Some(process) = child.keep() {
            self.sessions().insert(id.clone(), process.clone());
            // It may have ended before it was known here; then nobody else removes it.
            if process.is_over() || self.stopped.load(Ordering::Relaxed) {
                self.sessions().remove(&id);
                process.end();
            }
        }
        Ok(Answer { status: 200, session: Some(id), content })
    }

    fn mint(&self) -> Result<String, Error> {
        let mut random = [0u8; 16];
        ring::rand::SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| self.blame.unavailable("the system gives no random numbers"))?;
        Ok(random.iter().fold(String::with_capacity(32), |mut id, byte| {
            // INVARIANT: writing to a String cannot fail.
            let _ = write!(id, "{byte:02x}");
            id
        }))
    }

    /// The process that all modern requests share, started when needed, not too often when it keeps ending.
    fn modern_child(self: &Arc<Self>) -> Result<Arc<Child>, Error> {
        let mut shared = self.shared();
        if let Some(child) = &shared.child {
            let Some(ended) = child.ended() else {
                return Ok(child.clone());
            };
            let steady = ended.lived >= STEADY || ended.expected;
            let failures = if steady { 0 } else { shared.failures.saturating_add(1) };
            let pause = BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(BACKOFF_MAX);
            let wait = pause.saturating_sub(ended.at.elapsed());
            if failures > 0 && !wait.is_zero() {
                return Err(self
                    .blame
                    .unavailable(format!("the process ended and is started again in {} ms", wait.as_millis())));
            }
            *shared = Shared { child: None, failures };
        }
        let child = self.spawn(Era::Modern, None)?;
        shared.child = Some(child.clone());
        Ok(child)
    }

    fn spawn(self: &Arc<Self>, era: Era, session: Option<String>) -> Result<Arc<Child>, Error> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(self.blame.unavailable("it is being stopped"));
        }
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            return Err(self.blame.unavailable(format!("{} processes run already", self.stdio.processes_max)));
        };
        let inner: Weak<Inner> = Arc::downgrade(self);
        let forget = move || {
            if let (Some(inner), Some(session)) = (inner.upgrade(), session) {
                inner.sessions().remove(&session);
            }
        };
        let child = Child::spawn(&self.stdio, &self.config, era, slot, forget);
        self.broken.store(child.is_err(), Ordering::Relaxed);
        child.map_err(|what| self.blame.unavailable(what))
    }
}

/// A process whose session is not open yet: ended unless kept.
struct Newborn(Option<Arc<Child>>);

impl Newborn {
    fn keep(mut self) -> Option<Arc<Child>> {
        self.0.take()
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(child) = self.0.take() {
            child.end();
        }
    }
}
