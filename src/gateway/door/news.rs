//! The session's stream of news (GET): what changed at the backends, from one `subscriptions/listen` that follows what the
//! session subscribes to. With nothing to relay it stays open and silent.
//!
//! It runs in a task of its own and outlives its connection for a while: a client that comes back with `Last-Event-ID` gets
//! a new stream that begins with what it missed, equal news once. Where that cannot be known for certain, all it may hear
//! of is said to have changed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::stream;
use futures_util::stream::BoxStream;
use tokio::sync::Notify;
use tokio::sync::watch;

use super::answer;
use super::line::KEPT;
use super::line::Line;
use super::line::Mark;
use super::line::total;
use super::lobby::Away;
use super::lobby::Seat;
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
use crate::mcp::quoted;

/// Attempts to change a set that others change at the same time.
const ATTEMPTS_MAX: usize = 8;

/// Begins the ids of events of news, and of nothing else.
const NAME: &str = "news-";

/// How long an older stream may take to hand over what it has.
const DRAIN: Duration = Duration::from_secs(1);

const UPDATED: &str = "notifications/resources/updated";

/// What came of asking to be told.
enum Listening {
    /// It tells, of these topics at least.
    Flow(Heard),
    /// The upstream does not do that; its answer, as it is.
    Refused(Bytes),
}

/// What a stream of news relays, and which topics were asked for.
pub(super) struct Heard {
    flow: BoxStream<'static, Passing>,
    topics: BTreeSet<String>,
}

/// What is to become of a stream of news.
pub(super) enum Change {
    /// It relays this.
    Relay(Heard),
    /// It asks for itself, because what was asked by somebody with other rights is not for it.
    Again,
}

/// A stream of news, as others in its session reach it.
pub(super) struct Wire {
    pub(super) line: Arc<Line>,
    orders: Mutex<Orders>,
    woken: Notify,
    open: AtomicBool,
    /// What it counts for. Whoever takes its place counts for the same.
    slot: Weak<Slot>,
}

#[derive(Default)]
struct Orders {
    /// The last word counts.
    change: Option<Change>,
    over: bool,
    /// Nobody takes orders any more.
    closed: bool,
}

impl Wire {
    fn new(line: Arc<Line>, slot: &Arc<Slot>) -> Arc<Wire> {
        let (orders, slot) = (Mutex::default(), Arc::downgrade(slot));
        Arc::new(Wire { line, orders, woken: Notify::new(), open: AtomicBool::new(true), slot })
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change(&self, change: Change) {
        let mut orders = self.orders();
        if orders.closed {
            return; // what it was to relay ends here
        }
        orders.change = Some(change);
        drop(orders);
        self.woken.notify_waiters();
    }

    /// It ends; nothing that it counts for is given back by it from now on but by dropping it.
    pub(super) fn stop(&self) {
        self.orders().over = true;
        self.woken.notify_waiters();
    }

    /// Nothing goes on here from now on.
    fn close(&self) {
        self.open.store(false, Relaxed);
        let mut orders = self.orders();
        orders.closed = true;
        drop((orders.change.take(), orders));
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Relaxed)
    }

    /// The next thing it is told; `None`: to end.
    async fn order(&self) -> Option<Change> {
        loop {
            let woken = self.woken.notified();
            {
                let mut orders = self.orders();
                if orders.over {
                    return None;
                }
                if let Some(change) = orders.change.take() {
                    return Some(change);
                }
            }
            woken.await;
        }
    }

    async fn stopped(&self) {
        loop {
            let woken = self.woken.notified();
            if self.orders().over {
                return;
            }
            woken.await;
        }
    }
}

/// Is this the id of an event of news?
pub(super) fn is_news(event_id: &str) -> bool {
    event_id.starts_with(NAME)
}

/// Opens the stream. `last`: the last event that the client has of an earlier one.
pub(super) async fn watch(
    errand: &Errand,
    guest: &Arc<Guest>,
    seat: &Arc<Seat>,
    last: Option<&str>,
    open: &mut Open,
) -> Result<Outgoing, Rejection> {
    let before = seat.news().filter(|before| before.is_open());
    let slot = match before.and_then(|before| before.slot.upgrade()).filter(|slot| !slot.is_given_back()) {
        // The older one ends in favour of this one.
        Some(slot) => {
            errand.talks(open).await?;
            slot
        }
        None => Arc::new(errand.connects(open).await?),
    };
    let errand = Errand { slot: Some(slot.clone()), ..errand.clone() };
    let (topics, edition) = seat.topics();
    let announced = guest.announced;
    let wants = !topics.is_empty() || announced.tools || announced.prompts || announced.resources;
    let heard = match wants {
        true => match listen(&errand, guest, seat, &topics, None, open).await? {
            Listening::Flow(heard) => Some(heard),
            Listening::Refused(_) => None,
        },
        false => None,
    };
    let name = format!("{NAME}{}", unguessable().ok_or(Rejection::Internal)?);
    let line = Line::new(name, None, &guest.version, Mark::of(&errand), seat.shelves());
    let wire = Wire::new(line.clone(), &slot);
    let old = seat.watch(&wire, edition);
    if slot.is_given_back() {
        // The older one's client left at this very moment.
        let refused = |_: &Rejection| {
            wire.close();
            wire.line.end(Passing::End("streamed"));
        };
        slot.renew(errand.connects(open).await.inspect_err(refused)?);
    }
    let flow = line.answer();
    let watch = Watch::of(&errand);
    let pump = Pump { errand, guest: guest.clone(), seat: seat.clone(), wire, heard, watch, note: open.shadow(), slot };
    tokio::spawn(pump.run(old, last.map(str::to_owned)));
    Ok(Outgoing::Events { flow, session: None })
}

/// What a client that has this event has missed since.
fn missed(last: &str, old: Option<(&Wire, bool)>, new: &Line, guest: &Guest, topics: &BTreeSet<String>) -> Vec<Bytes> {
    let known = last.rsplit_once('-').and_then(|(name, number)| {
        let (old, was_open) = old.filter(|(old, _)| old.line.name == name && old.line.mark == new.mark)?;
        let (news, whole) = old.line.since(number.parse().ok()?);
        Some((news, whole && was_open))
    });
    let (mut news, whole) = known.unwrap_or_default();
    if !whole {
        // For a time nobody listened, or it was not kept.
        let announced = guest.announced;
        let lists = [("tools", announced.tools), ("prompts", announced.prompts), ("resources", announced.resources)];
        for (list, _) in lists.iter().filter(|(_, announced)| *announced) {
            news.push(format!(r#"{{"jsonrpc":"2.0","method":"notifications/{list}/list_changed"}}"#).into());
        }
        for uri in topics {
            let uri = quoted(uri);
            news.push(format!(r#"{{"jsonrpc":"2.0","method":"{UPDATED}","params":{{"uri":{uri}}}}}"#).into());
        }
    }
    news
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
        let watching = seat.news().filter(|news| news.is_open());
        let slot = watching.as_ref().and_then(|news| news.slot.upgrade());
        if slot.is_some() || !wanted {
            errand.talks(open).await?;
        }
        // One stream of news counts once, whatever it is made of.
        let errand = Errand { slot, ..errand.clone() };
        let listening = match (wanted, &watching) {
            (true, _) => Some(listen(&errand, guest, seat, &topics, Some(uri), open).await?),
            // Nobody is kept from hearing less: if it cannot be asked for anew, what is not wanted is left out.
            (false, Some(_)) => listen(&errand, guest, seat, &topics, None, &mut open.shadow()).await.ok(),
            (false, None) => None,
        };
        open.target(uri);
        let change = match listening {
            Some(Listening::Refused(body)) if wanted => {
                let said = answer::read(&body, id, Method::ResourcesSubscribe, &guest.version);
                let Ok(answer::Said::Done { body, error_code }) = said else {
                    return Err(Rejection::Internal);
                };
                return Ok(Outgoing::Json { status: 200, body, session: None, error_code, hidden: 0 });
            }
            // What was judged for one authority is relayed to no other.
            Some(Listening::Flow(heard)) => watching.map(|news| match news.line.mark == Mark::of(&errand) {
                true => Change::Relay(heard),
                false => Change::Again,
            }),
            Some(Listening::Refused(_)) | None => None,
        };
        if seat.subscribe(topics, edition, change)? {
            return Ok(done());
        }
    }
    Err(Rejection::TooManyConcurrent { limit: "session-subscriptions", max: None })
}

/// One `subscriptions/listen`, up to its acknowledgement. `asked`: the topic that must be among what is told; any other that
/// this caller may not know of is left out.
async fn listen(
    errand: &Errand,
    guest: &Guest,
    seat: &Arc<Seat>,
    topics: &BTreeSet<String>,
    asked: Option<&str>,
    open: &mut Open,
) -> Result<Listening, Rejection> {
    let mut topics = topics.clone();
    loop {
        match listen_once(errand, guest, seat, &topics, asked, open).await {
            // INVARIANT: one topic less each time.
            Err(Rejection::UnknownResource { uri }) if asked != Some(&uri) && topics.remove(&uri) => {}
            Err(rejection) => return Err(rejection),
            Ok(Ok(flow)) => return Ok(Listening::Flow(Heard { flow, topics })),
            Ok(Err(refused)) => return Ok(Listening::Refused(refused)),
        }
    }
}

/// The flow, or the upstream's refusal.
async fn listen_once(
    errand: &Errand,
    guest: &Guest,
    seat: &Arc<Seat>,
    topics: &BTreeSet<String>,
    asked: Option<&str>,
    open: &mut Open,
) -> Result<Result<BoxStream<'static, Passing>, Bytes>, Rejection> {
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
    let message = rounds::asked(guest, seat, id, Method::SubscriptionsListen, Some(&params), &Again::default())?;
    let backend = || errand.route.backends.first().cloned().unwrap_or_default();
    let mut flow = match errand.modern(message, open).await? {
        Outgoing::Events { flow, .. } => flow,
        Outgoing::Json { body, error_code: Some(_), .. } => return Ok(Err(body)),
        Outgoing::Json { .. } | Outgoing::Empty { .. } => {
            return Err(Rejection::BackendProtocol { backend: backend() });
        }
    };
    match flow.next().await {
        Some(Passing::Message(event)) => {
            let accepted = event.data.as_ref().and_then(|data| answer::acknowledged(data));
            if let (Some(Some(accepted)), Some(asked)) = (&accepted, asked)
                && !accepted.iter().any(|uri| uri == asked)
            {
                return Err(Rejection::UnknownResource { uri: asked.to_owned() });
            }
            Ok(Ok(match accepted {
                Some(_) => flow,
                // No acknowledgement first: lenient, for it is news all the same.
                None => stream::iter([Passing::Message(event)]).chain(flow).boxed(),
            }))
        }
        Some(Passing::Answer { event, error_code: Some(_), .. }) => Ok(Err(event.data.unwrap_or_default())),
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

/// What keeps a stream of news going, read or not.
struct Pump {
    errand: Errand,
    guest: Arc<Guest>,
    seat: Arc<Seat>,
    wire: Arc<Wire>,
    heard: Option<Heard>,
    watch: Watch,
    /// For what is done without a record of its own.
    note: Open,
    slot: Arc<Slot>,
}

impl Pump {
    async fn run(mut self, old: Option<(Arc<Wire>, bool)>, last_event_id: Option<String>) {
        let last = total(async {
            self.take_over(old, last_event_id.as_deref()).await;
            self.pump().await
        });
        let last = last.await;
        let wire = self.wire.clone();
        wire.close();
        // What it counts for goes before its end is seen.
        drop(self);
        wire.line.end(last);
    }

    /// Begins with what the client missed of the older stream, which ends.
    async fn take_over(&mut self, old: Option<(Arc<Wire>, bool)>, last_event_id: Option<&str>) {
        if let Some(last) = last_event_id {
            if let Some((old, _)) = &old {
                drop(pingora::time::timeout(DRAIN, old.line.ends()).await);
            }
            let (line, nothing) = (self.wire.line.clone(), BTreeSet::new());
            let told = self.heard.as_ref().map_or(&nothing, |heard| &heard.topics);
            let old = old.as_ref().map(|(old, was_open)| (&**old, *was_open));
            for news in missed(last, old, &line, &self.guest, told) {
                line.push_once(news).await;
            }
        }
        if let Some((old, _)) = old {
            old.line.hide();
        }
    }

    async fn pump(&mut self) -> Passing {
        let mut away: Option<Away> = None;
        loop {
            let patience = if away.is_some() { KEPT } else { Duration::ZERO };
            let passing = tokio::select! {
                biased;
                how = self.watch.ends() => return Passing::End(how),
                change = self.wire.order() => match change {
                    Some(Change::Relay(heard)) => {
                        self.heard = Some(heard);
                        continue;
                    }
                    Some(Change::Again) => {
                        self.again().await;
                        continue;
                    }
                    // Another GET stream of the session has taken over, or the session has ended.
                    None => {
                        self.drain().await;
                        return Passing::End("streamed");
                    }
                },
                () = self.wire.line.abandoned(patience) => {
                    if away.is_some() || !self.wire.line.mints() {
                        return Passing::End("client_gone");
                    }
                    let Some(stays) = self.seat.stays() else { return Passing::End("client_gone") };
                    away = Some(stays);
                    self.lets_go();
                    continue;
                }
                passing = passing(&mut self.heard) => passing,
            };
            match passing {
                Some(Passing::Message(event)) => {
                    let news = event.data.as_ref().and_then(answer::news).filter(|news| self.is_wanted(news));
                    let Some(news) = news else { continue };
                    tokio::select! {
                        biased;
                        how = self.watch.ends() => return Passing::End(how),
                        () = self.wire.stopped() => return Passing::End("streamed"),
                        () = self.wire.line.push_once(news) => {}
                    }
                }
                Some(last @ (Passing::End(_) | Passing::Fail(_))) => return last,
                Some(Passing::Answer { .. }) | None => return Passing::End("streamed"),
            }
        }
    }

    /// What has arrived already is not lost for whoever takes over.
    async fn drain(&mut self) {
        while let Some(Some(Passing::Message(event))) = passing(&mut self.heard).now_or_never() {
            let news = event.data.as_ref().and_then(answer::news).filter(|news| self.is_wanted(news));
            if let Some(news) = news
                && self.wire.line.push_once(news).now_or_never().is_none()
            {
                return;
            }
        }
    }

    /// The client has left: what is done for its return does not count for what it may do at once, unless somebody is about
    /// to take over.
    fn lets_go(&self) {
        let orders = self.wire.orders();
        if !orders.over {
            self.slot.give_back();
        }
    }

    /// Listens anew, as the caller that this stream is for. If that fails, it goes on with what it has.
    async fn again(&mut self) {
        let errand = self.errand.anew();
        let (topics, _) = self.seat.topics();
        let asked = listen(&errand, &self.guest, &self.seat, &topics, None, &mut self.note);
        match pingora::time::timeout(errand.span(), asked).await {
            Ok(Ok(Listening::Flow(heard))) => self.heard = Some(heard),
            Ok(Ok(Listening::Refused(_)) | Err(_)) | Err(_) => {
                tracing::info!("a stream of news could not be asked for anew; it goes on as it was");
            }
        }
    }

    /// Not of a resource that is not subscribed to any more.
    fn is_wanted(&self, news: &Bytes) -> bool {
        let Some(envelope) = Object::read(news) else { return false };
        if envelope.text("method").as_deref() != Some(UPDATED) {
            return true;
        }
        let Some(uri) = envelope.object("params").and_then(|params| params.text("uri")) else { return false };
        // SPEC: server/resources §Subscriptions: the update may be about a part of what is watched.
        let about = |topics: &BTreeSet<String>| topics.iter().any(|topic| uri.starts_with(topic.as_str()));
        let (now, _) = self.seat.topics();
        about(&now) || !self.heard.as_ref().is_some_and(|heard| about(&heard.topics))
    }
}

async fn passing(heard: &mut Option<Heard>) -> Option<Passing> {
    match heard {
        Some(heard) => heard.flow.next().await,
        None => std::future::pending().await,
    }
}
