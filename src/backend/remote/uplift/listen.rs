//! `subscriptions/listen` at a legacy upstream: a session of its own, its GET stream, and its resource subscriptions.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::answer;
use super::answer::Came;
use super::answer::SUBSCRIPTION_ID;
use super::json;
use super::json::Members;
use super::json::Object;
use super::json::quoted;
use super::request::Asked;
use crate::backend::Content;
use crate::backend::Error;
use crate::backend::remote::left;
use crate::backend::remote::outcome::Outcome;
use crate::backend::remote::session::Introduction;
use crate::backend::remote::session::Line;
use crate::backend::remote::session::Session;
use crate::mcp::Id;
use crate::mcp::Method;
use crate::mcp::error;
use crate::mcp::sse::Event;

/// A server that does not begin its stream within this has none.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Resources that one stream watches.
const RESOURCES_MAX: usize = 100;

const TOOLS: &str = "notifications/tools/list_changed";
const PROMPTS: &str = "notifications/prompts/list_changed";
const RESOURCES: &str = "notifications/resources/list_changed";
const UPDATED: &str = "notifications/resources/updated";

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
        let own = count.entry(principal.clone()).or_default();
        if all >= all_max || *own >= own_max {
            return None;
        }
        *own += 1;
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
#[derive(Debug, Default, Eq, PartialEq)]
struct Filter {
    tools: bool,
    prompts: bool,
    resources: bool,
    uris: Vec<String>,
}

impl Filter {
    fn read(params: Option<&Bytes>) -> Result<Filter, &'static str> {
        let malformed = "params.notifications must be an object";
        let params = Members::read(params.ok_or(malformed)?)?;
        let wanted = params.find("notifications").ok_or(malformed)?;
        let wanted = Members::read(wanted.as_bytes()).map_err(|_| malformed)?;
        let flag = |key: &str| wanted.find(key) == Some("true");
        let uris = wanted.find("resourceSubscriptions");
        let uris = uris.map(serde_json::from_str).transpose();
        Ok(Filter {
            tools: flag("toolsListChanged"),
            prompts: flag("promptsListChanged"),
            resources: flag("resourcesListChanged"),
            uris: uris.map_err(|_| "resourceSubscriptions must be an array of URIs")?.unwrap_or_default(),
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

    fn wants(&self, method: &str) -> bool {
        match method {
            TOOLS => self.tools,
            PROMPTS => self.prompts,
            RESOURCES => self.resources,
            // A server may tell of a part of what is watched, under a URI of its own.
            UPDATED => !self.uris.is_empty(),
            _ => false,
        }
    }

    fn acknowledgement(&self, id: &Id) -> Bytes {
        let mut filter = Object::new();
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
        let mut params = Object::new();
        params.raw("notifications", &filter.finish());
        params.raw("_meta", &meta(id));
        json::notification("notifications/subscriptions/acknowledged", &params.finish())
    }
}

fn meta(id: &Id) -> String {
    let mut meta = Object::new();
    meta.raw(SUBSCRIPTION_ID, id.as_json());
    meta.finish()
}

/// The stream that answers `subscriptions/listen`: the acknowledgement of what is honoured, then the changes.
///
/// # Errors
/// Outer: the upstream cannot be asked. Inner: the request is malformed, in words for its client.
pub(super) async fn listen(
    asked: &Asked,
    line: Line,
    place: Place,
    deadline: Instant,
) -> Result<Result<Content, &'static str>, Error> {
    let wanted = match Filter::read(asked.params.as_ref()) {
        Ok(wanted) if wanted.uris.len() > RESOURCES_MAX => return Ok(Err("resourceSubscriptions is too long")),
        Ok(wanted) => wanted,
        Err(what) => return Ok(Err(what)),
    };
    let who = Introduction { info: asked.info.clone(), capabilities: None };
    let session = Arc::new(Session::open(line, &who, deadline).await?);
    let wanted = wanted.within(&session);
    let stream = if wanted.is_empty() { None } else { open(&session, deadline).await };
    let mut honoured = match stream {
        Some(_) => wanted,
        None => Filter::default(),
    };
    let mut watching = Watching { session, uris: Vec::new(), _place: place };
    for uri in std::mem::take(&mut honoured.uris) {
        if watching.watch(&uri, deadline).await {
            honoured.uris.push(uri);
        }
    }
    let first = Event::message(honoured.acknowledgement(&asked.id));
    let listening = Listening { first: Some(first), stream, honoured, watching, id: asked.id.clone(), over: false };
    let events = futures_util::stream::unfold(listening, |mut listening| async move {
        listening.next().await.map(|event| (event, listening))
    });
    Ok(Ok(Content::Events(events.boxed())))
}

/// The session's stream, if its server has one.
pub(super) async fn open(
    session: &Arc<Session>,
    deadline: Instant,
) -> Option<BoxStream<'static, Result<Event, Error>>> {
    let patience = left(deadline).min(OPEN_TIMEOUT);
    let answer = session.stream(None, Instant::now() + patience).await;
    match answer.map(|answer| answer.content) {
        Ok(Content::Events(stream)) => Some(stream),
        Ok(Content::Json(_) | Content::Empty) | Err(_) => None,
    }
}

/// The subscriptions of one stream; undone when dropped, before the session ends.
struct Watching {
    session: Arc<Session>,
    uris: Vec<String>,
    _place: Place,
}

impl Watching {
    async fn watch(&mut self, uri: &str, deadline: Instant) -> bool {
        let params = format!(r#"{{"uri":{}}}"#, quoted(uri));
        let outcome = self.session.request(Method::ResourcesSubscribe, params.into(), deadline).await;
        let watched = matches!(outcome, Ok(Outcome::Result(_)));
        if watched {
            self.uris.push(uri.to_owned());
        }
        watched
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        const UNDO_TIMEOUT: Duration = Duration::from_secs(10);
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
            for uri in uris {
                let params = format!(r#"{{"uri":{}}}"#, quoted(&uri));
                if session.request(Method::ResourcesUnsubscribe, params.into(), deadline).await.is_err() {
                    break;
                }
            }
        });
    }
}

struct Listening {
    first: Option<Event>,
    /// `None`: there is nothing to hear, and the client was told so; the stream stays open until it leaves.
    stream: Option<BoxStream<'static, Result<Event, Error>>>,
    honoured: Filter,
    watching: Watching,
    id: Id,
    over: bool,
}

impl Listening {
    async fn next(&mut self) -> Option<Result<Event, Error>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        if self.over {
            return None;
        }
        let Some(stream) = &mut self.stream else {
            return std::future::pending().await;
        };
        loop {
            match stream.next().await {
                Some(Ok(event)) => {
                    let message = event.data.filter(|data| !data.is_empty());
                    if let Some(change) =
                        message.and_then(|message| change(&self.watching.session, &self.honoured, &self.id, &message))
                    {
                        return Some(Ok(Event::message(change)));
                    }
                }
                Some(Err(error)) => {
                    self.over = true;
                    return Some(Err(error));
                }
                // SPEC: basic/patterns/subscriptions: a graceful end is the response to the request.
                None => {
                    self.over = true;
                    let result = format!(r#"{{"resultType":"complete","_meta":{}}}"#, meta(&self.id));
                    return Some(Ok(Event::message(json::response(self.id.as_json(), "result", &result))));
                }
            }
        }
    }
}

fn change(session: &Arc<Session>, honoured: &Filter, id: &Id, message: &[u8]) -> Option<Bytes> {
    match answer::read(message) {
        Ok(Came::Notification { method, params }) if honoured.wants(&method) => {
            answer::subscribed(id, &method, params).ok()
        }
        Ok(Came::Request { id, method, .. }) if method == Method::Ping.as_str() => {
            session.respond_later(id, r#""result":{}"#.to_owned());
            None
        }
        Ok(Came::Request { id, .. }) => {
            let code = error::METHOD_NOT_FOUND;
            session.respond_later(id, format!(r#""error":{{"code":{code},"message":"not on this stream"}}"#));
            None
        }
        Ok(_) | Err(_) => None,
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
        assert!(
            filter.wants(TOOLS)
                && filter.wants(UPDATED)
                && !filter.wants(PROMPTS)
                && !filter.wants("notifications/message")
        );
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
