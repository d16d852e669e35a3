//! The open connections by their names, and what each is in the middle of.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use futures_util::stream::AbortHandle;
use futures_util::stream::AbortRegistration;
use futures_util::stream::BoxStream;
use http::HeaderValue;
use ring::rand::SecureRandom;
use ring::rand::SystemRandom;
use tokio::sync::mpsc;

use super::Heard;
use crate::gateway::Rejection;
use crate::gateway::errand::Errand;
use crate::limits::Slot;
use crate::mcp::FaultKind;
use crate::mcp::Id;
use crate::route::Route;

const CONNECTIONS_MAX: usize = 4096;

const CONNECTIONS_PER_PRINCIPAL_MAX: usize = 64;

/// Requests of one connection that are not answered yet.
const REQUESTS_MAX: usize = 32;

/// Besides requests: the stream of server messages, and the word that it is over.
const WAITING_MAX: usize = REQUESTS_MAX + 4;

pub(super) type Job = BoxStream<'static, Heard>;

/// All open connections of this process.
#[derive(Default)]
pub(in crate::gateway) struct Berths {
    open: Mutex<HashMap<String, Arc<Berth>>>,
}

impl Berths {
    /// Gives a new connection its name.
    pub(super) fn moor(&self, berth: &Arc<Berth>) -> Result<String, Rejection> {
        let mut bits = [0u8; 16];
        SystemRandom::new().fill(&mut bits).map_err(|_| Rejection::Internal)?;
        let name = format!("{:032x}", u128::from_ne_bytes(bits));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= CONNECTIONS_MAX {
            return Err(Rejection::Overloaded);
        }
        if open.values().filter(|other| other.owner == berth.owner).count() >= CONNECTIONS_PER_PRINCIPAL_MAX {
            return Err(Rejection::TooManyStreams { limit: "old-sse-connections", max: None });
        }
        open.insert(name.clone(), berth.clone());
        Ok(name)
    }

    /// The connection of this name, if it is the caller's and of the route.
    pub(super) fn find(&self, name: &str, errand: &Errand) -> Option<Arc<Berth>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let theirs = |berth: &&Arc<Berth>| {
            berth.owner == *errand.principal.key()
                && berth.route.path == errand.route.path
                && berth.route.host == errand.route.host
        };
        open.get(name).filter(theirs).cloned()
    }

    pub(super) fn leave(&self, name: &str) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// One connection, as those who bring messages see it.
pub(super) struct Berth {
    owner: Arc<str>,
    route: Arc<Route>,
    jobs: mpsc::Sender<Job>,
    held: Mutex<Held>,
}

struct Held {
    session: Session,
    running: HashMap<String, Option<AbortHandle>>,
    /// What the stream counts for, while no stream of server messages counts for it.
    slot: Option<Slot>,
    /// The stream of server messages is opened once.
    listens: bool,
}

enum Session {
    None,
    /// `initialize` is on its way.
    Begun,
    /// With what names it; some servers have none.
    Open(Option<HeaderValue>),
}

impl Berth {
    pub(super) fn new(errand: &Errand, slot: Slot) -> (Arc<Berth>, mpsc::Receiver<Job>) {
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        let held = Held { session: Session::None, running: HashMap::new(), slot: Some(slot), listens: false };
        let (owner, route) = (errand.principal.key().clone(), errand.route.clone());
        (Arc::new(Berth { owner, route, jobs, held: Mutex::new(held) }), waiting)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `Mcp-Session-Id` of the session, which the client never sees.
    pub(super) fn session(&self) -> Option<HeaderValue> {
        match &self.held().session {
            Session::Open(id) => id.clone(),
            Session::None | Session::Begun => None,
        }
    }

    /// Hands something to the stream, made only if there is room for it.
    pub(super) fn say(&self, job: impl FnOnce() -> Job) -> Result<(), Rejection> {
        match self.jobs.try_reserve() {
            Ok(place) => {
                place.send(job());
                Ok(())
            }
            Err(mpsc::error::TrySendError::Full(())) => {
                Err(Rejection::TooManyConcurrent { limit: "old-sse-requests", max: None })
            }
            Err(mpsc::error::TrySendError::Closed(())) => Err(Rejection::SessionUnknown),
        }
    }

    /// A request begins. Its end is the guard's.
    pub(super) fn begin(
        self: &Arc<Self>,
        id: &Id,
        initialize: bool,
    ) -> Result<(Running, AbortRegistration), Rejection> {
        let invalid = |what| Err(Rejection::Message { kind: FaultKind::InvalidRequest { what } });
        let mut held = self.held();
        if held.running.len() >= REQUESTS_MAX {
            return Err(Rejection::TooManyConcurrent { limit: "old-sse-requests", max: None });
        }
        if held.running.contains_key(id.as_json()) {
            return invalid("a request with this id is not answered yet");
        }
        if initialize && !matches!(held.session, Session::None) {
            return invalid("this connection is initialized already");
        }
        if initialize {
            held.session = Session::Begun;
        }
        let (handle, registration) = AbortHandle::new_pair();
        // SPEC: 2025-03-26 cancellation, "the initialize request MUST NOT be cancelled".
        held.running.insert(id.as_json().to_owned(), Some(handle).filter(|_| !initialize));
        Ok((Running { berth: self.clone(), id: id.as_json().to_owned() }, registration))
    }

    /// The client does not want this answer any more.
    pub(super) fn cancel(&self, id: &Id) {
        if let Some(Some(handle)) = self.held().running.get(id.as_json()) {
            handle.abort();
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.held().running.is_empty()
    }

    /// True for the first who asks.
    pub(super) fn listens(&self) -> bool {
        !std::mem::replace(&mut self.held().listens, true)
    }

    /// Puts what the stream counts for in its place, or takes it away.
    pub(super) fn count(&self, slot: Option<Slot>) {
        let before = std::mem::replace(&mut self.held().slot, slot);
        drop(before);
    }
}

/// A request that is not answered yet.
pub(super) struct Running {
    berth: Arc<Berth>,
    id: String,
}

impl Running {
    pub(super) fn berth(&self) -> &Arc<Berth> {
        &self.berth
    }

    /// `initialize` was answered: with a session, or (the outer `None`) by an error.
    pub(super) fn initialized(&self, session: Option<Option<HeaderValue>>) {
        self.berth.held().session = session.map_or(Session::None, Session::Open);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.berth.held().running.remove(&self.id);
    }
}
