//! The legacy era's state: the session that `initialize` began, and the stream of what the server says unasked.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use http::HeaderValue;
use http::StatusCode;
use serde::Deserialize;

use super::answer::Events;
use super::answer::Spoken;
use super::relay::Relay;
use crate::mcp::Incoming;

const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");

/// Between two tries to open the stream: from this, doubled each time nothing came, to that.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What `initialize` agreed on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Session {
    /// Servers without sessions give none.
    pub id: Option<HeaderValue>,
    pub version: HeaderValue,
}

impl Session {
    /// From the answer to `initialize`; `None` when it was refused or names no version.
    pub(super) fn begun(id: Option<&HeaderValue>, answer: &Bytes) -> Option<Session> {
        #[derive(Deserialize)]
        struct Answer {
            result: Outcome,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Outcome {
            protocol_version: String,
        }
        let answer: Answer = serde_json::from_slice(answer).ok()?;
        Some(Session { id: id.cloned(), version: HeaderValue::try_from(answer.result.protocol_version).ok()? })
    }

    pub(super) fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let id = self.id.iter().map(|id| (SESSION, id.clone()));
        id.chain([(VERSION, self.version.clone())]).collect()
    }
}

pub(super) fn session_id(headers: &http::HeaderMap) -> Option<&HeaderValue> {
    headers.get(SESSION)
}

/// Holds the GET stream of a session open until the session ends: what comes is relayed, a lost stream is taken up
/// after its last event.
pub(super) async fn listen(relay: Arc<Relay>, session: Session) {
    let mut last_event_id: Option<String> = None;
    let mut pause = RETRY_FIRST;
    loop {
        match relay.remote().listen(session.headers(), last_event_id.as_deref()).await {
            Err(words) => tracing::warn!("the stream of server messages cannot be opened: {words}"),
            Ok(response) => match response.status() {
                StatusCode::OK if Events::are_in(&response) => {
                    let mut events = Events::of(response);
                    let came = relay_all(&relay, &mut events).await;
                    last_event_id = events.last_id().map(str::to_owned).or(last_event_id);
                    if came {
                        pause = events.retry().unwrap_or(RETRY_FIRST);
                    }
                }
                // SPEC: 2025-11-25 transports: a server without such a stream answers 405.
                StatusCode::METHOD_NOT_ALLOWED => return,
                StatusCode::NOT_FOUND => {
                    tracing::info!("the server knows the session no more, or has no stream of messages");
                    return;
                }
                status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
                    tracing::warn!(status = status.as_u16(), "the stream of server messages is refused");
                }
                status => {
                    tracing::info!(status = status.as_u16(), "the stream of server messages is not to be had yet")
                }
            },
        }
        tokio::time::sleep(pause.min(RETRY_MAX)).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

/// Did anything come?
async fn relay_all(relay: &Relay, events: &mut Events) -> bool {
    let mut came = false;
    loop {
        match events.next().await {
            Spoken::Message(data) => {
                came = true;
                match Incoming::read(&data) {
                    Ok(Incoming::Request { .. } | Incoming::Notification { .. }) => relay.pass(&data).await,
                    // SPEC: 2025-11-25 transports: answers come on the stream of their request.
                    Ok(Incoming::Response { .. }) | Err(_) => tracing::warn!("an event on the stream was dropped"),
                }
            }
            Spoken::Other => came = true,
            Spoken::Broken(words) => {
                tracing::info!("the stream of server messages broke: {words}");
                return came;
            }
            Spoken::End => return came,
        }
    }
}
