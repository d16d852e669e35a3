//! `News`: who subscribed is told that a resource changed. Knows of changes that went through this gateway only.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::json;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::Answer;
use crate::backend::Content;
use crate::mcp::Id;
use crate::mcp::Message;
use crate::mcp::meta::SUBSCRIPTION_ID;
use crate::mcp::quoted;
use crate::mcp::sse::Event;

/// Changes that a slow subscriber may be behind; then all it watches is said to have changed.
const BEHIND_MAX: usize = 1024;

/// Resources of one subscription.
const WATCHED_MAX: usize = 1000;

pub(super) struct News {
    changes: broadcast::Sender<Arc<str>>,
}

impl News {
    pub(super) fn new() -> News {
        News { changes: broadcast::Sender::new(BEHIND_MAX) }
    }

    pub(super) fn announce(&self, uri: &str) {
        // Nobody listening is no error.
        let _ = self.changes.send(uri.into());
    }

    /// The stream of a subscription: what is acknowledged, then what changes. It ends when it is dropped.
    pub(super) fn listen(&self, id: &Id, message: &Message, able: bool, may: impl Fn(&str) -> bool) -> Answer {
        let wanted = message.params.subscriptions.iter().filter(|uri| able && may(uri));
        let watched: Vec<Arc<str>> = wanted.take(WATCHED_MAX).map(|uri| uri.as_str().into()).collect();
        let granted = if watched.is_empty() { json!({}) } else { json!({ "resourceSubscriptions": watched }) };
        let first =
            notification("notifications/subscriptions/acknowledged", id, &format!(r#","notifications":{granted}"#));
        let listener = Listener { changes: self.changes.subscribe(), watched, id: id.clone() };
        let changes = stream::unfold(listener, |mut listener| async move {
            let events = listener.next().await?;
            Some((stream::iter(events), listener))
        });
        let events = stream::iter([first]).chain(changes.flatten()).map(|data| Ok(Event::message(data)));
        Answer { status: 200, session: None, content: Content::Events(events.boxed()) }
    }
}

struct Listener {
    changes: broadcast::Receiver<Arc<str>>,
    watched: Vec<Arc<str>>,
    id: Id,
}

impl Listener {
    /// The next messages; `None` when the backend is gone.
    async fn next(&mut self) -> Option<Vec<Bytes>> {
        loop {
            let touched: Vec<&Arc<str>> = match self.changes.recv().await {
                Ok(changed) => self.watched.iter().filter(|watched| covers(watched, &changed)).collect(),
                Err(RecvError::Lagged(_)) => self.watched.iter().collect(),
                Err(RecvError::Closed) => return None,
            };
            if !touched.is_empty() {
                let updated = |uri: &Arc<str>| {
                    notification("notifications/resources/updated", &self.id, &format!(r#","uri":{}"#, quoted(uri)))
                };
                return Some(touched.into_iter().map(updated).collect());
            }
        }
    }
}

/// Who watches a folder watches all that is in it.
fn covers(watched: &str, changed: &str) -> bool {
    watched == changed || (watched.ends_with('/') && changed.starts_with(watched))
}

fn notification(method: &str, id: &Id, more: &str) -> Bytes {
    let id = id.as_json();
    format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{{"_meta":{{"{SUBSCRIPTION_ID}":{id}}}{more}}}}}"#).into()
}
