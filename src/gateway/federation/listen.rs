//! `subscriptions/listen` on several backends: one stream to the client, made of all of theirs.
//!
//! The messages are ours: what leaves is written from what was understood of a backend's message, with the client's id
//! for the subscription and the URIs of the route, and only if it was acknowledged.

use std::collections::HashSet;
use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use futures_util::stream::BoxStream;
use futures_util::stream::SelectAll;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use serde_json::value::RawValue;

use super::ALL;
use super::Federation;
use super::aim;
use super::rewrite;
use super::source::Heard;
use super::source::Silence;
use super::source::Source;
use super::source::Topics;
use crate::gateway::Open;
use crate::gateway::Rejection;
use crate::gateway::apply::Outgoing;
use crate::gateway::flow::Passing;
use crate::gateway::tasks;
use crate::limits::Slot;
use crate::mcp::FaultKind;
use crate::mcp::Id;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::meta::SUBSCRIPTION_ID;
use crate::mcp::object;
use crate::mcp::object::Edits;
use crate::mcp::quoted;
use crate::mcp::sse::Event;
use crate::route::Found;
use crate::route::Names;

const TOOLS: &str = "notifications/tools/list_changed";
const PROMPTS: &str = "notifications/prompts/list_changed";
const RESOURCES: &str = "notifications/resources/list_changed";
const UPDATED: &str = "notifications/resources/updated";

/// A resource in the client's words, and whose it is.
struct Watched {
    shown: String,
    found: Found,
}

impl Federation {
    pub(super) async fn listen(&self, message: Message, id: &Id, open: &mut Open) -> Result<Outgoing, Rejection> {
        open.to(&ALL.into());
        let watched = self.watched(&message)?;
        let tasks = self.tasks(&message)?;
        let wanted = wanted(&message);
        self.errand.turn.end();
        let limits = &self.errand.house.limits;
        let slot = match &self.errand.slot {
            Some(slot) => slot.clone(),
            None => Arc::new(limits.acquire_stream(&self.errand.principal, ALL).await?),
        };
        let asked =
            (0..self.names.shares().len()).filter_map(|share| part_of(&message, &wanted, share, (&watched, &tasks)));
        let begun = asked.map(|(share, message)| Source::begin(self, share, message, &slot, open.branch()));
        let begun = join_all(begun.collect::<Vec<_>>()).await;
        open.target(ALL);
        let (mut sources, mut granted, mut live) = (Vec::new(), Granted::default(), 0);
        let mut silence = Vec::new();
        for (mut source, topics) in begun {
            open.absorb(source.noted());
            match topics {
                Ok(topics) => {
                    granted.add(&self.names, source.share(), topics, &wanted);
                    live += 1;
                    sources.push(source);
                }
                Err(Silence::Denied(Rejection::UnknownResource { uri })) => {
                    let theirs = |one: &&Watched| one.found == Found { share: source.share(), name: uri.clone() };
                    let shown = watched.iter().find(theirs).map_or(uri.as_str(), |one| one.shown.as_str());
                    return Err(aim::in_words_of(shown, Rejection::UnknownResource { uri: uri.clone() }));
                }
                Err(Silence::Denied(unknown @ Rejection::UnknownTask { .. })) => return Err(unknown),
                Err(Silence::ForNow(rejection)) => {
                    silence.push(Silence::ForNow(rejection));
                    sources.push(source);
                }
                Err(other) => {
                    // Whose resources may not be known is like whose do not exist.
                    let own = watched.iter().find(|one| one.found.share == source.share());
                    if let (Silence::Denied(Rejection::InsufficientScope { .. }), Some(one)) = (&other, own) {
                        return Err(Rejection::UnknownResource { uri: one.shown.clone() });
                    }
                    silence.push(other);
                }
            }
        }
        if live == 0 {
            return Err(why(silence));
        }
        let fan_in = FanIn {
            sources: sources.into_iter().map(Source::start).collect(),
            live,
            ready: VecDeque::from([granted.acknowledgement(id)]),
            granted,
            names: self.names.clone(),
            id: id.clone(),
            _slot: slot,
        };
        Ok(Outgoing::Events { flow: fan_in.start(), session: None })
    }

    fn watched(&self, message: &Message) -> Result<Vec<Watched>, Rejection> {
        let find = |uri: &String| {
            let found = self.names.find_uri(uri).ok_or_else(|| Rejection::UnknownResource { uri: uri.clone() })?;
            Ok(Watched { shown: uri.clone(), found })
        };
        message.params.subscriptions.iter().map(find).collect()
    }

    /// The tasks that the client wants to hear of, and whose each is.
    fn tasks(&self, message: &Message) -> Result<Vec<(String, usize)>, Rejection> {
        if !message.params.task_ids.is_empty() {
            tasks::declared(message)?;
        }
        let find = |id: &String| {
            let backend = tasks::backend_of(&self.errand, id);
            let share = backend.and_then(|backend| self.names.shares().position(|share| *share.backend == *backend));
            share.map(|share| (id.clone(), share)).ok_or_else(|| Rejection::UnknownTask { id: id.clone() })
        };
        message.params.task_ids.iter().map(find).collect()
    }
}

/// What the client wants to hear.
fn wanted(message: &Message) -> Topics {
    let raw = message.params.raw.as_ref().and_then(|raw| std::str::from_utf8(raw).ok()).unwrap_or_default();
    let notifications = object::member(raw, "notifications").map_or("{}", RawValue::get);
    serde_json::from_str(notifications).unwrap_or_default()
}

/// The question for one backend: its own resources and tasks only. `None`: it has nothing that is wanted.
fn part_of(
    message: &Message,
    wanted: &Topics,
    share: usize,
    (watched, tasks): (&[Watched], &[(String, usize)]),
) -> Option<(usize, Message)> {
    let own: Vec<String> =
        watched.iter().filter(|one| one.found.share == share).map(|one| one.found.name.clone()).collect();
    let own_tasks: Vec<String> = tasks.iter().filter(|task| task.1 == share).map(|task| task.0.clone()).collect();
    let lists = wanted.tools_list_changed || wanted.prompts_list_changed || wanted.resources_list_changed;
    if own.is_empty() && own_tasks.is_empty() && !lists && !wanted.is_empty() {
        return None;
    }
    let mut message = message.clone();
    let raw = message.params.raw.take().unwrap_or_default();
    let notifications = std::str::from_utf8(&raw).ok().and_then(|text| object::member(text, "notifications"));
    let mut edits = Edits::of(&raw);
    for (name, ids) in [("resourceSubscriptions", &own), ("taskIds", &own_tasks)] {
        if let Some(place) = notifications.and_then(|notifications| object::member(notifications.get(), name)) {
            edits.replace(place, Value::from(ids.clone()).to_string());
        }
    }
    message.params.raw = Some(edits.finish());
    message.params.subscriptions = own;
    message.params.task_ids = own_tasks;
    Some((share, message))
}

/// Nobody tells anything: for want of rights, because nobody can, or because all failed.
fn why(silence: Vec<Silence>) -> Rejection {
    let mut needed: Option<Vec<String>> = None;
    for one in silence {
        match one {
            Silence::ForNow(rejection) => return rejection,
            Silence::Denied(Rejection::InsufficientScope { scopes }) => {
                let all = needed.get_or_insert_default();
                all.extend(scopes.into_iter().filter(|scope| !all.contains(scope)).collect::<Vec<_>>());
            }
            Silence::Denied(rejection) => return rejection,
            Silence::Unable => {}
        }
    }
    match needed {
        Some(scopes) => Rejection::InsufficientScope { scopes },
        None => {
            let method = Method::SubscriptionsListen.as_str().to_owned();
            Rejection::Message { kind: FaultKind::MethodNotFound { method } }
        }
    }
}

/// What the client was told that it will hear. Resources by their URIs on the route.
#[derive(Default)]
struct Granted {
    topics: Topics,
}

impl Granted {
    /// A backend may grant more than was asked; the client hears what it asked for.
    fn add(&mut self, names: &Names, share: usize, one: Topics, wanted: &Topics) {
        let all = &mut self.topics;
        all.tools_list_changed |= one.tools_list_changed && wanted.tools_list_changed;
        all.prompts_list_changed |= one.prompts_list_changed && wanted.prompts_list_changed;
        all.resources_list_changed |= one.resources_list_changed && wanted.resources_list_changed;
        let shown = one.resource_subscriptions.iter().filter_map(|uri| names.uri(share, uri));
        all.resource_subscriptions.extend(shown.filter(|uri| wanted.resource_subscriptions.contains(uri)));
        all.task_ids.extend(one.task_ids.into_iter().filter(|id| wanted.task_ids.contains(id)));
    }

    fn acknowledgement(&self, id: &Id) -> Bytes {
        let topics = &self.topics;
        let mut notifications = serde_json::Map::new();
        for (name, granted) in [
            ("toolsListChanged", topics.tools_list_changed),
            ("promptsListChanged", topics.prompts_list_changed),
            ("resourcesListChanged", topics.resources_list_changed),
        ] {
            if granted {
                notifications.insert(name.to_owned(), true.into());
            }
        }
        for (name, granted) in
            [("resourceSubscriptions", &topics.resource_subscriptions), ("taskIds", &topics.task_ids)]
        {
            if !granted.is_empty() {
                let mut sorted: Vec<&String> = granted.iter().collect();
                sorted.sort();
                notifications.insert(name.to_owned(), json!(sorted));
            }
        }
        let more = format!(r#","notifications":{}"#, Value::Object(notifications));
        notification("notifications/subscriptions/acknowledged", id, &more)
    }

    /// Lists that may have changed while nobody told us.
    fn lists(&self) -> impl Iterator<Item = &'static str> {
        let topics = &self.topics;
        [
            (TOOLS, topics.tools_list_changed),
            (PROMPTS, topics.prompts_list_changed),
            (RESOURCES, topics.resources_list_changed),
        ]
        .into_iter()
        .filter_map(|(method, granted)| granted.then_some(method))
    }
}

fn notification(method: &str, id: &Id, more: &str) -> Bytes {
    format!(
        r#"{{"jsonrpc":"2.0","method":"{method}","params":{{"_meta":{{"{SUBSCRIPTION_ID}":{}}}{more}}}}}"#,
        id.as_json()
    )
    .into()
}

/// All sources on their way into one stream.
struct FanIn {
    sources: SelectAll<BoxStream<'static, (usize, Heard)>>,
    /// Sources that are subscribed now.
    live: usize,
    /// Messages for the client, in order.
    ready: VecDeque<Bytes>,
    granted: Granted,
    names: Arc<Names>,
    id: Id,
    /// Held, not read: also while a source is away.
    _slot: Arc<Slot>,
}

impl FanIn {
    fn start(self) -> BoxStream<'static, Passing> {
        stream::unfold(Some(self), |fan_in| async move {
            let (passing, fan_in) = fan_in?.next().await;
            Some((passing, fan_in))
        })
        .boxed()
    }

    async fn next(mut self) -> (Passing, Option<FanIn>) {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return (Passing::Message(Event::message(message)), Some(self));
            }
            match self.sources.next().await {
                Some((share, Heard::News(data))) => self.ready.extend(self.translated(share, &data)),
                Some((_, Heard::Back)) => {
                    self.live += 1;
                    let missed: Vec<Bytes> =
                        self.granted.lists().map(|method| notification(method, &self.id, "")).collect();
                    self.ready.extend(missed);
                }
                Some((_, Heard::Gone)) => {
                    self.live = self.live.saturating_sub(1);
                    if self.live == 0 {
                        return (self.end(), None);
                    }
                }
                Some((_, Heard::Over(outcome))) => return (Passing::End(outcome), None),
                None => return (self.end(), None),
            }
        }
    }

    /// A backend's message in ours; `None`: the client did not ask for it.
    fn translated(&self, share: usize, data: &Bytes) -> Option<Bytes> {
        #[derive(Deserialize)]
        struct Notification {
            method: String,
            #[serde(default)]
            params: Params,
        }
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Params {
            uri: Option<String>,
            task_id: Option<String>,
        }
        let heard: Notification = serde_json::from_slice(data).ok()?;
        if heard.method == UPDATED {
            let uri = self.names.uri(share, &heard.params.uri?)?;
            let watched: &HashSet<String> = &self.granted.topics.resource_subscriptions;
            // SPEC: server/resources §Subscriptions: the update may be about a part of what is watched.
            let about = watched.contains(&uri) || watched.iter().any(|watched| uri.starts_with(watched.as_str()));
            return about.then(|| notification(UPDATED, &self.id, &format!(r#","uri":{}"#, quoted(&uri))));
        }
        if heard.method == tasks::NEWS {
            let granted = heard.params.task_id.is_some_and(|id| self.granted.topics.task_ids.contains(&id));
            return granted.then(|| self.of_task(share, data))?;
        }
        let method = self.granted.lists().find(|method| *method == heard.method)?;
        Some(notification(method, &self.id, ""))
    }

    /// News of a task, with the client's id for the subscription and the URIs of the route.
    fn of_task(&self, share: usize, data: &Bytes) -> Option<Bytes> {
        let data = rewrite::news_of_task(data, |uri| self.names.uri(share, uri));
        let params = object::member(std::str::from_utf8(&data).ok()?, "params")?;
        let place = object::member(object::member(params.get(), "_meta")?.get(), SUBSCRIPTION_ID)?;
        let mut edits = Edits::of(&data);
        edits.replace(place, self.id.as_json().to_owned());
        Some(edits.finish())
    }

    /// A graceful end tells the client that it may ask again.
    fn end(&self) -> Passing {
        let id = self.id.as_json();
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":{id},"result":{{"resultType":"complete","_meta":{{"{SUBSCRIPTION_ID}":{id}}}}}}}"#
        );
        Passing::Answer { event: Event::message(body.into()), error_code: None, hidden: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::Era;
    use crate::mcp::Kind;
    use crate::mcp::Params;
    use crate::route::MEMBER_TIMEOUT;
    use crate::route::Share;

    fn names() -> Names {
        let share = |prefix: &str| Share { backend: prefix.into(), prefix: prefix.into(), ..Share::default() };
        Names::new("_", MEMBER_TIMEOUT, vec![share("a"), share("b")]).expect("names")
    }

    #[test]
    fn each_backend_is_asked_for_its_own_and_only_if_there_is_something() {
        let raw = r#"{"notifications":{"resourceSubscriptions": ["wardgate+b+n:1"] },"_meta":{"x":1.0}}"#;
        let params = Params { raw: Some(Bytes::from_static(raw.as_bytes())), ..Params::default() };
        let kind = Kind::Request { id: Id::number(1) };
        let message =
            Message { kind, method: Some(Method::SubscriptionsListen), era: Era::Modern, params, outcome: None };
        let found = names().find_uri("wardgate+b+n:1").expect("found");
        let watched = [Watched { shown: "wardgate+b+n:1".into(), found }];
        let wanted = wanted(&message);
        assert!(part_of(&message, &wanted, 0, (&watched, &[])).is_none());
        let (_, part) = part_of(&message, &wanted, 1, (&watched, &[])).expect("a part");
        let want = r#"{"notifications":{"resourceSubscriptions": ["n:1"] },"_meta":{"x":1.0}}"#;
        assert_eq!(part.params.raw.as_deref(), Some(want.as_bytes()));
        assert_eq!(part.params.subscriptions, ["n:1"]);
    }

    #[test]
    fn what_was_not_asked_for_is_not_granted() {
        let mut granted = Granted::default();
        let wanted = Topics {
            tools_list_changed: true,
            resource_subscriptions: ["wardgate+a+n:1".to_owned()].into(),
            ..Topics::default()
        };
        let one = Topics {
            tools_list_changed: true,
            prompts_list_changed: true,
            resources_list_changed: false,
            resource_subscriptions: ["n:1".to_owned(), "n:2".to_owned()].into(),
            task_ids: ["nobody's".to_owned()].into(),
        };
        granted.add(&names(), 0, one, &wanted);
        let text = granted.acknowledgement(&Id::from_json("\"l\"").expect("id"));
        let want = r#"{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"l"},"notifications":{"toolsListChanged":true,"resourceSubscriptions":["wardgate+a+n:1"]}}}"#;
        assert_eq!(text, want);
    }
}
