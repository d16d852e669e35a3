//! Resource subscriptions of a session: counted, so that listeners may watch the same resource and leave in any order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use crate::backend::Error;
use crate::backend::remote::left;
use crate::backend::remote::outcome::Outcome;
use crate::backend::remote::session::Session;
use crate::mcp::Method;
use crate::mcp::quoted;

/// Subscriptions that nobody needs any more must be undone within this.
const UNDO_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Watches {
    /// Held while the server is told: what it hears of one resource comes in order.
    turn: tokio::sync::Mutex<()>,
    watched: Mutex<HashMap<String, Watched>>,
}

#[derive(Default)]
struct Watched {
    watchers: usize,
    /// The server said so. A watcher that left while it was asked leaves this open.
    subscribed: bool,
}

impl Watches {
    fn watched(&self) -> MutexGuard<'_, HashMap<String, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does any listener of the session watch it?
    pub(super) fn has(&self, uri: &str) -> bool {
        self.watched().contains_key(uri)
    }

    /// Is it subscribed to already?
    fn enter(&self, uri: &str) -> bool {
        let mut watched = self.watched();
        let entry = watched.entry(uri.to_owned()).or_default();
        entry.watchers += 1;
        entry.subscribed
    }

    fn subscribed(&self, uri: &str) {
        if let Some(entry) = self.watched().get_mut(uri) {
            entry.subscribed = true;
        }
    }

    /// Was it the last one? Then it stays known until [`Watches::forget`].
    fn leave(&self, uri: &str) -> bool {
        self.watched().get_mut(uri).is_none_or(|entry| {
            entry.watchers = entry.watchers.saturating_sub(1);
            entry.watchers == 0
        })
    }

    fn forget(&self, uri: &str) {
        self.watched().remove(uri);
    }
}

/// The subscriptions of one listener; given back when dropped.
pub(super) struct Watching {
    session: Arc<Session>,
    uris: Vec<String>,
}

impl Watching {
    pub(super) fn new(session: Arc<Session>) -> Watching {
        Watching { session, uris: Vec::new() }
    }

    pub(super) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Subscribes, unless another listener of the session did.
    pub(super) async fn watch(&mut self, uri: &str, deadline: Instant) -> bool {
        let session = self.session.clone();
        let watches = &session.ears.watches;
        let Ok(_turn) = pingora::time::timeout(left(deadline), watches.turn.lock()).await else {
            return false;
        };
        // Before the server is asked: if this is given up meanwhile, it may be subscribed to all the same.
        self.uris.push(uri.to_owned());
        if watches.enter(uri) {
            return true;
        }
        if matches!(tell(&session, Method::ResourcesSubscribe, uri, deadline).await, Ok(Outcome::Result(_))) {
            watches.subscribed(uri);
            return true;
        }
        self.uris.pop();
        if watches.leave(uri) {
            watches.forget(uri);
        }
        false
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let uris = std::mem::take(&mut self.uris);
        if uris.is_empty() || self.session.is_over() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let session = self.session.clone();
        runtime.spawn(async move {
            let deadline = Instant::now() + UNDO_TIMEOUT;
            let mut fails = false;
            for uri in uris {
                let watches = &session.ears.watches;
                let _turn = watches.turn.lock().await;
                if watches.leave(&uri) {
                    fails = fails || tell(&session, Method::ResourcesUnsubscribe, &uri, deadline).await.is_err();
                    watches.forget(&uri);
                }
            }
        });
    }
}

async fn tell(session: &Session, method: Method, uri: &str, deadline: Instant) -> Result<Outcome, Error> {
    session.request(method, format!(r#"{{"uri":{}}}"#, quoted(uri)).into(), deadline).await
}
