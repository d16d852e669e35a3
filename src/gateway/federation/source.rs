//! `Source`: one backend's part of a subscription, opened again when it ends.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use futures_util::stream::BoxStream;
use serde::Deserialize;

use super::Federation;
use crate::exchange::Request;
use crate::gateway::Open;
use crate::gateway::Rejection;
use crate::gateway::apply::Outgoing;
use crate::gateway::flow::Passing;
use crate::gateway::prepare::Asked;
use crate::limits::Slot;
use crate::mcp::Message;

/// The first wait before a backend is asked again; it doubles up to the longest.
const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A stream that held for so long was no failure: the waits start over.
const STEADY: Duration = Duration::from_secs(60);

/// So that not all are asked again at the same moment.
const APART: Duration = Duration::from_millis(37);

const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";

/// What was asked for, and what a backend says it will tell. Resources by the backend's own URIs.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Topics {
    pub(super) tools_list_changed: bool,
    pub(super) prompts_list_changed: bool,
    pub(super) resources_list_changed: bool,
    pub(super) resource_subscriptions: HashSet<String>,
    /// In the client's words.
    pub(super) task_ids: HashSet<String>,
}

impl Topics {
    pub(super) fn is_empty(&self) -> bool {
        *self == Topics::default()
    }
}

/// Why a backend tells nothing.
pub(super) enum Silence {
    /// It may do so later.
    ForNow(Rejection),
    /// The caller may not ask it.
    Denied(Rejection),
    /// It has no subscriptions.
    Unable,
}

/// What a source has to say.
pub(super) enum Heard {
    News(Bytes),
    /// Subscribed again: what happened meanwhile nobody told us.
    Back,
    Gone,
    /// The whole subscription has to end, in this outcome.
    Over(&'static str),
}

pub(super) struct Source {
    federation: Federation,
    share: usize,
    message: Message,
    slot: Arc<Slot>,
    /// Sub-calls note here; it is never written.
    open: Open,
    flow: Option<BoxStream<'static, Passing>>,
    failures: u32,
    since: Instant,
}

impl Source {
    /// Subscribes for the first time, and notes into `open`.
    pub(super) async fn begin(
        federation: &Federation,
        share: usize,
        message: Message,
        slot: &Arc<Slot>,
        mut open: Open,
    ) -> (Source, Result<Topics, Silence>) {
        let begun = federation.subscribe(share, &message, slot, &mut open).await;
        let (flow, topics) = match begun {
            Ok((flow, topics)) => (Some(flow), Ok(topics)),
            Err(silence) => (None, Err(silence)),
        };
        let source = Source {
            federation: federation.clone(),
            share,
            message,
            slot: slot.clone(),
            open,
            flow,
            failures: 0,
            since: Instant::now(),
        };
        (source, topics)
    }

    pub(super) fn share(&self) -> usize {
        self.share
    }

    /// Its notes so far.
    pub(super) fn noted(&mut self) -> Open {
        let fresh = self.open.branch();
        std::mem::replace(&mut self.open, fresh)
    }

    pub(super) fn start(self) -> BoxStream<'static, (usize, Heard)> {
        let share = self.share;
        stream::unfold(Some(self), |source| async move { source?.next().await })
            .map(move |heard| (share, heard))
            .boxed()
    }

    async fn next(mut self) -> Option<(Heard, Option<Source>)> {
        loop {
            let Some(flow) = &mut self.flow else {
                tokio::time::sleep(self.wait()).await;
                match self.again().await {
                    Ok(()) => return Some((Heard::Back, Some(self))),
                    Err(Silence::ForNow(_)) => {
                        self.failures = self.failures.saturating_add(1);
                        continue;
                    }
                    Err(Silence::Denied(_) | Silence::Unable) => return None,
                }
            };
            match flow.next().await {
                Some(Passing::Message(event)) => {
                    if let Some(data) = event.data.filter(|data| !data.is_empty()) {
                        return Some((Heard::News(data), Some(self)));
                    }
                }
                // Ours, not the backend's: the caller's token or the configuration.
                Some(Passing::End(outcome @ ("token_expired" | "reloaded"))) => {
                    return Some((Heard::Over(outcome), None));
                }
                Some(Passing::Answer { .. } | Passing::End(_) | Passing::Fail(_)) | None => {
                    self.flow = None;
                    self.failures = if self.since.elapsed() >= STEADY { 0 } else { self.failures.saturating_add(1) };
                    return Some((Heard::Gone, Some(self)));
                }
            }
        }
    }

    fn wait(&self) -> Duration {
        let doubled = WAIT_MIN.saturating_mul(1 << self.failures.saturating_sub(1).min(6));
        let apart = APART.saturating_mul(u32::try_from(self.share).unwrap_or_default());
        doubled.min(WAIT_MAX).saturating_add(apart)
    }

    /// The same question at another time: the deadline and the clock of the first are long past.
    async fn again(&mut self) -> Result<(), Silence> {
        let first = &self.federation.errand.request;
        let now = Instant::now();
        let request = Request {
            id: first.id,
            verb: first.verb,
            host: first.host.clone(),
            path: first.path.clone(),
            headers: first.headers.clone(),
            body: Bytes::new(),
            peer: first.peer.clone(),
            at: SystemTime::now(),
            started: now,
            deadline: now + self.federation.names.member_timeout * 2,
        };
        self.federation.errand.request = Arc::new(request);
        let mut open = self.open.branch();
        let (flow, _) = self.federation.subscribe(self.share, &self.message, &self.slot, &mut open).await?;
        self.flow = Some(flow);
        self.since = Instant::now();
        Ok(())
    }
}

impl Federation {
    /// One backend's stream, read up to its acknowledgement.
    async fn subscribe(
        &self,
        share: usize,
        message: &Message,
        slot: &Arc<Slot>,
        open: &mut Open,
    ) -> Result<(BoxStream<'static, Passing>, Topics), Silence> {
        let backend = self.backend(share).map_err(Silence::ForNow)?;
        let subscribing = async {
            let member = self.errand.member(&backend, open).map_err(Silence::ForNow)?;
            let asked = Asked::modern(message.clone(), false);
            let answer = self.errand.run_within(member, asked, None, Some(slot.clone()), open).await;
            let mut flow = match answer {
                Ok(Outgoing::Events { flow, .. }) => flow,
                Ok(Outgoing::Json { .. } | Outgoing::Empty { .. }) => return Err(Silence::Unable),
                Err(
                    denied @ (Rejection::InsufficientScope { .. }
                    | Rejection::UnknownResource { .. }
                    | Rejection::UnknownTask { .. }),
                ) => return Err(Silence::Denied(denied)),
                Err(failed) => return Err(Silence::ForNow(failed)),
            };
            loop {
                match flow.next().await {
                    Some(Passing::Message(event)) => {
                        if let Some(topics) = event.data.as_ref().and_then(|data| acknowledged(data)) {
                            return Ok((flow, topics));
                        }
                    }
                    Some(Passing::Answer { error_code: Some(_), .. }) => return Err(Silence::Unable),
                    Some(Passing::Fail(failed)) => return Err(Silence::ForNow(failed)),
                    Some(Passing::Answer { .. } | Passing::End(_)) | None => {
                        return Err(Silence::ForNow(Rejection::BackendUnavailable { backend: backend.clone() }));
                    }
                }
            }
        };
        match pingora::time::timeout(self.patience(), subscribing).await {
            Ok(subscribed) => subscribed,
            Err(_) => Err(Silence::ForNow(Rejection::BackendTimeout { backend: backend.clone() })),
        }
    }
}

/// What an acknowledgement grants; `None` for another message.
fn acknowledged(data: &[u8]) -> Option<Topics> {
    #[derive(Deserialize)]
    struct Notification {
        method: String,
        #[serde(default)]
        params: Params,
    }
    #[derive(Default, Deserialize)]
    struct Params {
        #[serde(default)]
        notifications: Topics,
    }
    let notification: Notification = serde_json::from_slice(data).ok()?;
    (notification.method == ACKNOWLEDGED).then_some(notification.params.notifications)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_says_what_is_granted() {
        let text = br#"{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"_meta":{},"notifications":{"toolsListChanged":true,"resourceSubscriptions":["a:b"],"more":1}}}"#;
        let topics = acknowledged(text).expect("an acknowledgement");
        assert!(topics.tools_list_changed && !topics.prompts_list_changed);
        assert_eq!(topics.resource_subscriptions, HashSet::from(["a:b".to_owned()]));
        assert_eq!(acknowledged(br#"{"jsonrpc":"2.0","method":"notifications/message","params":{}}"#), None);
        assert_eq!(acknowledged(br#"{"method":"notifications/subscriptions/acknowledged"}"#), Some(Topics::default()));
    }
}
