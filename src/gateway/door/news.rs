//! The session's GET stream: what changed at the backends, from one `subscriptions/listen` that follows what the session
//! subscribes to. With nothing to relay it stays open and silent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;
use std::time::SystemTime;

use futures_util::StreamExt;
use futures_util::stream;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;
use tokio::sync::watch;

use super::answer;
use super::lobby::Seat;
use super::lobby::Subscription;
use super::request::Again;
use super::rounds;
use super::session::Guest;
use super::session::unguessable;
use crate::gateway::Open;
use crate::gateway::Rejection;
use crate::gateway::apply::Outgoing;
use crate::gateway::errand::Errand;
use crate::gateway::flow::Passing;
use crate::limits::Slot;
use crate::mcp::Id;
use crate::mcp::Method;
use crate::mcp::object::Object;
use crate::mcp::sse::Event;

/// Attempts to change a set that others change at the same time.
const ATTEMPTS_MAX: usize = 8;

/// What came of asking to be told.
enum Listening {
    Flow(BoxStream<'static, Passing>),
    /// The upstream does not do that; its answer, as it is.
    Refused(bytes::Bytes),
}

/// Opens the GET stream.
pub(super) async fn watch(
    errand: &Errand,
    guest: &Guest,
    seat: &Arc<Seat>,
    open: &mut Open,
) -> Result<Outgoing, Rejection> {
    let inbox = seat.watch();
    let (topics, _) = seat.topics();
    let wants = !topics.is_empty() || guest.announced.tools || guest.announced.prompts || guest.announced.resources;
    let heard = if wants { Some(listen(errand, guest, seat, &topics, open).await?) } else { None };
    let (flow, slot) = match heard {
        Some(Listening::Flow(flow)) => (Some(flow), None),
        Some(Listening::Refused(_)) | None => (None, Some(errand.connects(open)?)),
    };
    let news = News { flow, inbox, watch: Watch::of(errand), slot };
    let flow = stream::unfold(Some(news), |news| async move { Some(news?.next().await) }).boxed();
    Ok(Outgoing::Events { flow, session: None })
}

/// `resources/subscribe` and `resources/unsubscribe`: the subscription with the changed set takes the place of the old one.
pub(super) async fn change(
    errand: &Errand,
    guest: &Guest,
    seat: &Arc<Seat>,
    id: &Id,
    (uri, wanted): (&str, bool),
    open: &mut Open,
) -> Result<Outgoing, Rejection> {
    let done = || {
        let body = answer::answer(id, "{}");
        Outgoing::Json { status: 200, body, session: None, error_code: None, hidden: 0 }
    };
    for _ in 0..ATTEMPTS_MAX {
        let (mut topics, edition) = seat.topics();
        if wanted {
            topics.insert(uri.to_owned())
        } else {
            topics.remove(uri)
        };
        let subscription: Subscription = if wanted || seat.is_watched() {
            match listen(errand, guest, seat, &topics, open).await? {
                Listening::Flow(flow) => Some(flow),
                Listening::Refused(body) if wanted => {
                    let said = answer::read(&body, id, Method::ResourcesSubscribe, &guest.version);
                    let Ok(answer::Said::Done { body, error_code }) = said else {
                        return Err(Rejection::Internal);
                    };
                    return Ok(Outgoing::Json { status: 200, body, session: None, error_code, hidden: 0 });
                }
                Listening::Refused(_) => None,
            }
        } else {
            errand.talks(open)?;
            None
        };
        open.target(uri);
        if seat.subscribe(topics, edition, subscription)? {
            return Ok(done());
        }
    }
    Err(Rejection::TooManyConcurrent { limit: "session-subscriptions" })
}

/// One `subscriptions/listen`, up to its acknowledgement.
async fn listen(
    errand: &Errand,
    guest: &Guest,
    seat: &Arc<Seat>,
    topics: &BTreeSet<String>,
    open: &mut Open,
) -> Result<Listening, Rejection> {
    let mut filter = Object::default();
    let announced = guest.announced;
    for (name, wanted) in [
        ("toolsListChanged", announced.tools),
        ("promptsListChanged", announced.prompts),
        ("resourcesListChanged", announced.resources),
    ] {
        if wanted {
            filter.set(name, "true");
        }
    }
    if !topics.is_empty() {
        filter.set("resourceSubscriptions", serde_json::json!(topics).to_string());
    }
    let params = format!(r#"{{"notifications":{filter}}}"#).into();
    let id = unguessable().and_then(|name| Id::from_json(&format!("\"wg-{name}\""))).ok_or(Rejection::Internal)?;
    let asked = rounds::asked(guest, seat, id, Method::SubscriptionsListen, Some(&params), &Again::default())?;
    let mut flow = match errand.modern(asked, open).await? {
        Outgoing::Events { flow, .. } => flow,
        Outgoing::Json { body, error_code: Some(_), .. } => return Ok(Listening::Refused(body)),
        Outgoing::Json { .. } | Outgoing::Empty { .. } => {
            let backend = errand.route.backends.first().cloned().unwrap_or_default();
            return Err(Rejection::BackendProtocol { backend });
        }
    };
    let backend = || errand.route.backends.first().cloned().unwrap_or_default();
    match flow.next().await {
        Some(Passing::Message(event)) => {
            let accepted = event.data.as_ref().and_then(|data| answer::acknowledged(data));
            if let Some(Some(accepted)) = &accepted
                && let Some(uri) = topics.iter().find(|uri| !accepted.contains(uri))
            {
                return Err(Rejection::UnknownResource { uri: uri.clone() });
            }
            let flow = match accepted {
                Some(_) => flow,
                // No acknowledgement first: lenient, for it is news all the same.
                None => stream::iter([Passing::Message(event)]).chain(flow).boxed(),
            };
            Ok(Listening::Flow(flow))
        }
        Some(Passing::Answer { event, error_code: Some(_), .. }) => {
            Ok(Listening::Refused(event.data.unwrap_or_default()))
        }
        Some(Passing::Fail(rejection)) => Err(rejection),
        Some(Passing::Answer { .. } | Passing::End(_)) | None => {
            Err(Rejection::BackendUnavailable { backend: backend() })
        }
    }
}

/// When a stream that waits for news has to end, whatever it waits for.
pub(in crate::gateway) struct Watch {
    reloads: watch::Receiver<u64>,
    expires: Option<tokio::time::Instant>,
}

impl Watch {
    pub(in crate::gateway) fn of(errand: &Errand) -> Watch {
        let left = errand.principal.expires_at().map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        let expires = left.and_then(|left| Instant::now().checked_add(left)).map(tokio::time::Instant::from_std);
        Watch { reloads: errand.reloads.clone(), expires }
    }

    /// Waits for the end and says which it is.
    pub(in crate::gateway) async fn ends(&mut self) -> &'static str {
        let expired = async {
            match self.expires {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Ok(()) = self.reloads.changed() => "reloaded",
            () = expired => "token_expired",
        }
    }
}

/// The GET stream while it is open.
struct News {
    flow: Option<BoxStream<'static, Passing>>,
    inbox: mpsc::Receiver<Subscription>,
    watch: Watch,
    /// Held while there is no flow that holds its own.
    slot: Option<Slot>,
}

impl News {
    async fn next(mut self) -> (Passing, Option<News>) {
        loop {
            let passing = tokio::select! {
                biased;
                how = self.watch.ends() => return (Passing::End(how), None),
                changed = self.inbox.recv() => match changed {
                    Some(subscription) => {
                        if subscription.is_some() {
                            self.slot = None;
                        }
                        self.flow = subscription;
                        continue;
                    }
                    // Another GET stream of the session has taken over, or the session has ended.
                    None => return (Passing::End("streamed"), None),
                },
                passing = passing(&mut self.flow) => passing,
            };
            match passing {
                Some(Passing::Message(event)) => {
                    if let Some(data) = event.data.as_ref().and_then(answer::news) {
                        return (Passing::Message(Event::message(data)), Some(self));
                    }
                }
                Some(last @ (Passing::End(_) | Passing::Fail(_))) => return (last, None),
                Some(Passing::Answer { .. }) | None => return (Passing::End("streamed"), None),
            }
        }
    }
}

async fn passing(flow: &mut Subscription) -> Option<Passing> {
    match flow {
        Some(flow) => flow.next().await,
        None => std::future::pending().await,
    }
}
