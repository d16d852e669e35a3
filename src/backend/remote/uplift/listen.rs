//! `subscriptions/listen` at a legacy upstream: in the session of its caller's calls, because many servers tell of changes
//! only there; from the session's GET stream, which all its listeners share.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::answer;
use super::answer::Came;
use super::ear;
use super::ear::Stage;
use super::ear::Told;
use super::request::Asked;
use super::sessions::Taken;
use super::watches::Watches;
use super::watches::Watching;
use crate::backend::Content;
use crate::backend::Error;
use crate::backend::remote::left;
use crate::backend::remote::outcome::Outcome;
use crate::backend::remote::session::Session;
use crate::mcp::Id;
use crate::mcp::Method;
use crate::mcp::error;
use crate::mcp::meta::SUBSCRIPTION_ID;
use crate::mcp::object;
use crate::mcp::object::Members;
use crate::mcp::object::Writer;
use crate::mcp::quoted;
use crate::mcp::sse::Event;

/// A server that does not begin its stream within this has none.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// A listener must have moved to the session that replaced its own within this.
const MOVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Resources that one stream watches.
const RESOURCES_MAX: usize = 100;

const TOOLS: &str = "notifications/tools/list_changed";
const PROMPTS: &str = "notifications/prompts/list_changed";
const RESOURCES: &str = "notifications/resources/list_changed";
const UPDATED: &str = "notifications/resources/updated";

/// Is it what listeners are told?
pub(super) fn is_change(method: &str) -> bool {
    [TOOLS, PROMPTS, RESOURCES, UPDATED].contains(&method)
}

/// How many listen, in all and of each principal.
#[derive(Default)]
pub(super) struct Crowd {
    count: Mutex<HashMap<Arc<str>, usize>>,
}

/// A place among the listeners; given back when dropped.
pub(super) struct Place {
    crowd: Arc<Crowd>,
    principal: Arc<str>,
}

impl Crowd {
    pub(super) fn enter(self: &Arc<Self>, principal: &Arc<str>, all_max: usize, own_max: usize) -> Option<Place> {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = count.values().sum();
        // A refused principal leaves nothing behind.
        if all >= all_max || count.get(principal).copied().unwrap_or(0) >= own_max {
            return None;
        }
        *count.entry(principal.clone()).or_default() += 1;
        Some(Place { crowd: self.clone(), principal: principal.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut count = self.crowd.count.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = count.get_mut(&self.principal) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                count.remove(&self.principal);
            }
        }
    }
}

/// What a client wants to hear of, or what it will.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Filter {
    tools: bool,
    prompts: bool,
    resources: bool,
    uris: Vec<String>,
}

impl Filter {
    /// # Errors
    /// What is wrong with it, in words for the client.
    pub(super) fn read(params: Option<&Bytes>) -> Result<Filter, &'static str> {
        let malformed = "params.notifications must be an object";
        let params = Members::read(params.ok_or(malformed)?)?;
        let wanted = params.find("notifications").ok_or(malformed)?;
        let wanted = Members::read(wanted.as_bytes()).map_err(|_| malformed)?;
        let flag = |key: &str| wanted.find(key) == Some("true");
        let uris = wanted.find("resourceSubscriptions");
        let uris = uris.map(serde_json::from_str::<Vec<String>>).transpose();
        let mut uris = uris.map_err(|_| "resourceSubscriptions must be an array of URIs")?.unwrap_or_default();
        let mut met = HashSet::new();
        uris.retain(|uri| met.insert(uri.clone()));
        if uris.len() > RESOURCES_MAX {
            return Err("resourceSubscriptions is too long");
        }
        Ok(Filter {
            tools: flag("toolsListChanged"),
            prompts: flag("promptsListChanged"),
            resources: flag("resourcesListChanged"),
            uris,
        })
    }

    fn is_empty(&self) -> bool {
        *self == Filter::default()
    }

    /// What of it the server can tell.
    fn within(self, session: &Session) -> Filter {
        let offers = &session.hello.offers;
        let subscribe = offers.resources.is_some_and(|resources| resources.subscribe);
        Filter {
            tools: self.tools && offers.tools.is_some_and(|tools| tools.list_changed),
            prompts: self.prompts && offers.prompts.is_some_and(|prompts| prompts.list_changed),
            resources: self.resources && offers.resources.is_some_and(|resources| resources.list_changed),
            uris: if subscribe { self.uris } else { Vec::new() },
        }
    }

    fn wants(&self, method: &str, params: Option<&str>, watches: &Watches) -> bool {
        match method {
            TOOLS => self.tools,
            PROMPTS => self.prompts,
            RESOURCES => self.resources,
            UPDATED => self.watches(params, watches),
            _ => false,
        }
    }

    fn watches(&self, params: Option<&str>, watches: &Watches) -> bool {
        let uri = params.and_then(|params| Members::read(params.as_bytes()).ok()?.text("uri"));
        match uri {
            Some(uri) if self.uris.iter().any(|own| **own == *uri) => true,
            // A server may tell of a part of what is watched, under a URI of its own; what only others watch is theirs.
            Some(uri) => !self.uris.is_empty() && !watches.has(&uri),
            None => false,
        }
    }

    fn acknowledgement(&self, id: &Id) -> Bytes {
        let mut filter = Writer::new();
        for (key, on) in [
            ("toolsListChanged", self.tools),
            ("promptsListChanged", self.prompts),
            ("resourcesListChanged", self.resources),
        ] {
            if on {
                filter.raw(key, "true");
            }
        }
        if !self.uris.is_empty() {
            let uris: Vec<String> = self.uris.iter().map(|uri| quoted(uri)).collect();
            filter.raw("resourceSubscriptions", &format!("[{}]", uris.join(",")));
        }
        let mut params = Writer::new();
        params.raw("notifications", &filter.finish());
        params.raw("_meta", &meta(id));
        object::notification("notifications/subscriptions/acknowledged", &params.finish())
    }
}

fn meta(id: &Id) -> String {
    let mut meta = Writer::new();
    meta.raw(SUBSCRIPTION_ID, id.as_json());
    meta.finish()
}

/// The stream that answers `subscriptions/listen`: the acknowledgement of what is honoured, then the changes. `places`: for
/// the session's stream, if it has none yet.
///
/// # Errors
/// The upstream cannot be asked. [`Error::SessionLost`]: it does not know the session, which is good for nothing then.
pub(super) async fn listen(
    asked: &Asked,
    wanted: Filter,
    taken: &Taken,
    places: &[&Arc<Semaphore>],
    deadline: Instant,
) -> Result<Listening, Error> {
    let session = &taken.session;
    let wanted = wanted.within(session);
    if wanted.is_empty() {
        return Ok(Listening::deaf(asked));
    }
    // Before there is a stream: nothing that comes on it may be missed.
    let changes = session.ears.listener();
    match ear::open(session, places, left(deadline).min(OPEN_TIMEOUT)).await {
        Stage::Open => {}
        _ if taken.reused && is_forgotten(session, deadline).await => {
            session.lose();
            return Err(session.blame().session_lost());
        }
        // It was there before, and may be again: nothing that the client should settle for.
        Stage::Broken | Stage::Paused => {
            return Err(session.blame().unavailable("the stream of its session is interrupted"));
        }
        Stage::Untried | Stage::Opening | Stage::Late | Stage::Absent => return Ok(Listening::deaf(asked)),
    }
    let mut honoured = Filter { uris: Vec::new(), ..wanted };
    let mut watching = Watching::new(session.clone());
    for uri in wanted.uris {
        if watching.watch(&uri, deadline).await {
            honoured.uris.push(uri);
        }
    }
    // After the listener is known to the session: whatever ends it later is told.
    if session.is_over() {
        return Err(session.blame().session_lost());
    }
    Ok(Listening {
        first: Some(Event::message(honoured.acknowledgement(&asked.id))),
        heard: Some(Heard {
            changes,
            honoured,
            watching,
            places: places.iter().map(|places| Arc::clone(places)).collect(),
        }),
        id: asked.id.clone(),
        over: false,
    })
}

/// Has the server forgotten a session that was opened earlier?
async fn is_forgotten(session: &Session, deadline: Instant) -> bool {
    let outcome = session.request(Method::Ping, Bytes::from_static(b"{}"), deadline).await;
    match outcome {
        Ok(Outcome::Refused { code }) => session.has_id() && error::is_legacy(code),
        Err(Error::SessionLost { .. }) => true,
        Ok(Outcome::Result(_)) | Err(_) => session.is_over(),
    }
}

struct Heard {
    changes: broadcast::Receiver<Told>,
    honoured: Filter,
    /// Keeps the session too.
    watching: Watching,
    /// For the stream of a session that it moves to.
    places: Vec<Arc<Semaphore>>,
}

/// One client's share of what a session's stream tells.
pub(super) struct Listening {
    first: Option<Event>,
    /// `None`: there is nothing to hear, and the client was told so; the stream stays open until it leaves.
    heard: Option<Heard>,
    id: Id,
    over: bool,
}

impl Listening {
    fn deaf(asked: &Asked) -> Listening {
        let first = Event::message(Filter::default().acknowledgement(&asked.id));
        Listening { first: Some(first), heard: None, id: asked.id.clone(), over: false }
    }

    /// `place` is given back with the stream.
    pub(super) fn into_content(self, place: Place) -> Content {
        let events = futures_util::stream::unfold((self, place), |(mut listening, place)| async move {
            listening.next().await.map(|event| (event, (listening, place)))
        });
        Content::Events(events.boxed())
    }

    async fn next(&mut self) -> Option<Result<Event, Error>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        if self.over {
            return None;
        }
        let Some(heard) = &mut self.heard else {
            return std::future::pending().await;
        };
        loop {
            match heard.changes.recv().await {
                Ok(Told::Change(message)) => {
                    if let Some(change) = heard.change(&self.id, &message) {
                        return Some(Ok(Event::message(change)));
                    }
                }
                // An end by error: the client listens anew and looks at everything again.
                Ok(Told::Lost) | Err(RecvError::Lagged(_)) => {
                    self.over = true;
                    let blame = heard.watching.session().blame();
                    return Some(Err(blame.unavailable("changes came faster than they were taken")));
                }
                Ok(Told::Moved(successor)) if heard.follow(&successor).await => {}
                // SPEC: basic/patterns/subscriptions: a graceful end is the response to the request.
                Ok(Told::End | Told::Moved(_)) | Err(RecvError::Closed) => {
                    self.over = true;
                    let result = format!(r#"{{"resultType":"complete","_meta":{}}}"#, meta(&self.id));
                    return Some(Ok(Event::message(object::response(self.id.as_json(), "result", &result))));
                }
            }
        }
    }
}

impl Heard {
    /// Moves to the session that replaces its own: what was watched there is watched here before it is given up there.
    /// `false`: not all that was promised can be had.
    async fn follow(&mut self, successor: &Weak<Session>) -> bool {
        let Some(session) = successor.upgrade() else {
            return false;
        };
        let deadline = Instant::now() + MOVE_TIMEOUT;
        let places: Vec<&Arc<Semaphore>> = self.places.iter().collect();
        if self.honoured.clone().within(&session) != self.honoured
            || ear::open(&session, &places, OPEN_TIMEOUT).await != Stage::Open
        {
            return false;
        }
        let mut watching = Watching::new(session.clone());
        for uri in &self.honoured.uris {
            if !watching.watch(uri, deadline).await {
                return false;
            }
        }
        self.watching = watching;
        !session.is_over()
    }

    fn change(&self, id: &Id, message: &[u8]) -> Option<Bytes> {
        let watches = &self.watching.session().ears.watches;
        match answer::read(message) {
            Ok(Came::Notification { method, params }) if self.honoured.wants(&method, params, watches) => {
                answer::subscribed(id, &method, params).ok()
            }
            Ok(_) | Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read_and_acknowledged_in_the_clients_id() {
        let read = |text: &str| Filter::read(Some(&Bytes::copy_from_slice(text.as_bytes())));
        let filter = read(r#"{"notifications":{"toolsListChanged":true,"promptsListChanged":false,"resourceSubscriptions":["a://\"b"]}}"#)
            .expect("a filter");
        assert_eq!(filter, Filter { tools: true, uris: vec!["a://\"b".into()], ..Filter::default() });
        let id = Id::from_json("\"listen:0\"").expect("an id");
        assert_eq!(
            filter.acknowledgement(&id),
            r#"{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"notifications":{"toolsListChanged":true,"resourceSubscriptions":["a://\"b"]},"_meta":{"io.modelcontextprotocol/subscriptionId":"listen:0"}}}"#
        );
        let watches = Watches::default();
        let wants = |method: &str, params: &str| filter.wants(method, Some(params), &watches);
        assert!(wants(TOOLS, "{}") && !wants(PROMPTS, "{}") && !wants("notifications/message", "{}"));
        assert!(
            wants(UPDATED, r#"{"uri":"a://\"b"}"#) && wants(UPDATED, r#"{"uri":"a://part"}"#) && !wants(UPDATED, "{}")
        );
        let twice = read(r#"{"notifications":{"resourceSubscriptions":["a","b","a"]}}"#).expect("a filter");
        assert_eq!(twice.uris, ["a", "b"]);
        assert!(read("{}").is_err() && read(r#"{"notifications":{"resourceSubscriptions":[1]}}"#).is_err());
        assert!(Filter::default().is_empty());
    }

    #[test]
    fn places_are_bounded_for_one_and_for_all() {
        let crowd = Arc::new(Crowd::default());
        let (alice, bob): (Arc<str>, Arc<str>) = ("alice".into(), "bob".into());
        let first = crowd.enter(&alice, 2, 1).expect("a place");
        assert!(crowd.enter(&alice, 2, 1).is_none());
        let _second = crowd.enter(&bob, 2, 1).expect("a place");
        assert!(crowd.enter(&"carol".into(), 2, 1).is_none());
        drop(first);
        assert!(crowd.enter(&alice, 2, 1).is_some());
    }
}
