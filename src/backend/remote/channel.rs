//! A channel that several share: who waits for what on it, and whose each message is that comes back.
//!
//! The channel is a child process or the event stream of an HTTP+SSE session. Those who share it are its guests, one per
//! legacy session; modern requests come without one.
//!
//! INVARIANT: nobody gets a message that may be about another. Answers and progress go by numbers that are ours; what
//! names nobody goes to all guests only if it says no more than that something changed; the rest goes to the one it can
//! be about, or to nobody. A request whose caller left can still be what it is about, until the server answers it or has
//! had time enough; so can a task that a request began, until the server says that it is over.

mod ghosts;
mod guests;
mod inbox;
mod relay;
mod scan;
mod tasks;
#[cfg(test)]
mod tests;

pub(super) use relay::abilities;
pub(super) use scan::Scan;
pub(super) use scan::Whose;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use ring::rand::SecureRandom;
use tokio::sync::mpsc;

use super::Blame;
use super::is_error;
use crate::backend::Content;
use crate::backend::Error;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::Kind;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::sse::Event;
use ghosts::Ghost;
use ghosts::Ghosts;
use guests::Guests;
use inbox::End;
use inbox::Inbox;
use inbox::Item;
use relay::Belonging;
use relay::Came;

/// Requests that one server works on at once.
const WAITING_MAX: usize = 1_000;

/// What waits for a slow reader may be at least so large, whatever one answer may be.
const INBOX_BYTES_MIN: usize = 16 * 1024 * 1024;

/// Words of a server that are no messages are logged this often and no more.
const BAD_PAUSE: Duration = Duration::from_secs(1);

/// The book of one channel. Knows no pipes and no sockets.
pub(super) struct Desk {
    era: Era,
    blame: Blame,
    answer_bytes_max: usize,
    /// An `initialize` that is not answered within this never will be.
    greeting_timeout: Duration,
    /// Our own words to the server: refusals, cancellations. Lost when the server does not read: worth no waiting.
    asides: mpsc::Sender<Bytes>,
    /// What the first `initialize` was answered; held while it is being asked.
    greeting: tokio::sync::Mutex<Option<Bytes>>,
    state: Mutex<State>,
}

struct State {
    next: u64,
    waiting: BTreeMap<u64, Waiter>,
    guests: Guests,
    ghosts: Ghosts,
    opening: Opening,
    /// `notifications/initialized` was sent.
    initialized: bool,
    used: Instant,
    /// The server has answered something.
    fruitful: bool,
    closed: bool,
    /// When a bad word of the server was logged, and how many were not since.
    bad: (Option<Instant>, u64),
}

/// Has the server begun to serve?
#[derive(Clone, Copy, Debug)]
enum Opening {
    /// It was asked nothing.
    Fresh,
    /// The first that it was asked, then, is answered at once by whatever serves at all.
    Greeted(Instant),
    /// It has answered something, or was asked for work first, which may take its time.
    Over,
}

struct Waiter {
    id: Id,
    token: Option<String>,
    subscription: bool,
    guest: Option<Arc<str>>,
    inbox: Arc<Inbox>,
    /// The client wants to be answered by a task, which runs on after the answer.
    augmented: bool,
    /// The task that it asks for.
    asked: Option<tasks::Asked>,
    /// When the server was told that it is not waited for any more.
    cancelled: Option<Instant>,
}

impl Desk {
    pub(super) fn new(
        era: Era,
        blame: Blame,
        answer_bytes_max: usize,
        greeting_timeout: Duration,
        asides: mpsc::Sender<Bytes>,
    ) -> Desk {
        let state = State {
            next: 1,
            waiting: BTreeMap::new(),
            guests: Guests::default(),
            ghosts: Ghosts::default(),
            opening: Opening::Fresh,
            initialized: false,
            used: Instant::now(),
            fruitful: false,
            closed: false,
            bad: (None, 0),
        };
        let (greeting, state) = (tokio::sync::Mutex::new(None), Mutex::new(state));
        Desk { era, blame, answer_bytes_max, greeting_timeout, asides, greeting, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inbox(&self) -> Arc<Inbox> {
        Arc::new(Inbox::new(self.answer_bytes_max.max(INBOX_BYTES_MIN)))
    }

    /// Why nobody gets an answer from a server that is gone.
    pub(super) fn gone(&self) -> Error {
        match self.era {
            Era::Legacy => self.blame.session_lost(),
            Era::Modern => self.blame.protocol("the process ended before it answered"),
        }
    }

    /// A new guest, who leaves when dropped unless it stays.
    pub(super) fn join(self: &Arc<Self>, session: Arc<str>, owner: &str, hello: &Message) -> Result<Newcomer, Error> {
        let mut state = self.state();
        if state.closed {
            return Err(self.gone());
        }
        let capabilities = relay::capabilities(hello);
        state
            .guests
            .join(session.clone(), owner, capabilities, self.inbox())
            .map_err(|what| self.blame.unavailable(what))?;
        Ok(Newcomer { desk: self.clone(), session: Some(session) })
    }

    /// The guest's session has ended: nobody waits for the answers to what the server asked it.
    pub(super) fn leave(&self, session: &str) {
        let mut state = self.state();
        state.used = Instant::now();
        self.part(&mut state, session);
    }

    fn part(&self, state: &mut State, session: &str) {
        let Some(left) = state.guests.leave(session) else {
            return;
        };
        for id in &left.asked {
            let _ = self.asides.try_send(relay::refusal(id));
        }
        for uri in left.unheard {
            let number = state.next;
            state.next += 1;
            let _ = self.asides.try_send(relay::unsubscribe(number, &uri));
        }
    }

    /// Asks `initialize` once, with the words of the first who comes; whoever comes later gets the same answer.
    ///
    /// The asking goes on when its caller leaves: another one may wait for the answer.
    pub(super) async fn greet<F, S>(self: &Arc<Self>, hello: &Message, send: F) -> Result<Bytes, Error>
    where
        F: FnOnce(Bytes) -> S + Send + 'static,
        S: Future<Output = Result<(), Error>> + Send,
    {
        let Some(id) = hello.id().cloned() else {
            return Err(self.blame.protocol("a request without an id"));
        };
        let (desk, mut hello) = (self.clone(), hello.clone());
        hello.kind = Kind::Request { id: Id::number(0) };
        let asking = tokio::spawn(async move {
            let patience = desk.greeting_timeout;
            let lock = pingora::time::timeout(patience, desk.greeting.lock()).await;
            let mut greeting = lock.map_err(|_| desk.blame.timeout())?;
            if let Some(known) = &*greeting {
                return Ok(known.clone());
            }
            let work = async {
                let waiting = desk.register(&hello, None)?;
                send(waiting.line(&hello)).await?;
                waiting.answer().await
            };
            let answer = pingora::time::timeout(patience, work).await.unwrap_or_else(|_| Err(desk.blame.timeout()))?;
            if !is_error(&answer) {
                *greeting = Some(answer.clone());
            }
            Ok(answer)
        });
        let answer = asking.await.unwrap_or_else(|_| Err(self.blame.unavailable("it is being stopped")));
        let answer = answer.map_err(|error| match error {
            // No session could be lost yet.
            Error::SessionLost { .. } => self.blame.protocol("it ended before it answered"),
            other => other,
        })?;
        relay::readdressed(&answer, id.as_json())
            .ok_or_else(|| self.blame.protocol("initialize was answered by something else"))
    }

    /// Notes that this request waits. Its line is to be sent then.
    pub(super) fn register(self: &Arc<Self>, message: &Message, guest: Option<&str>) -> Result<Waiting, Error> {
        let Some(id) = message.id() else {
            return Err(self.blame.protocol("a request without an id"));
        };
        let mut state = self.state();
        if state.closed {
            return Err(self.gone());
        }
        if state.waiting.len() >= WAITING_MAX {
            return Err(self.blame.unavailable(format!("{WAITING_MAX} requests wait already")));
        }
        let guest = match guest {
            None => None,
            Some(session) => Some(state.guests.touch(session).ok_or_else(|| self.blame.session_lost())?),
        };
        if let (Some(guest), Some(Method::ResourcesSubscribe), Some(uri)) =
            (&guest, message.method, &message.params.uri)
            && !state.guests.subscribe(guest, uri)
        {
            return Err(self.blame.unavailable("this session has too many subscriptions"));
        }
        let number = state.next;
        state.next += 1;
        state.used = Instant::now();
        if matches!(state.opening, Opening::Fresh) {
            state.opening = match message.method {
                Some(Method::Initialize | Method::ServerDiscover | Method::ToolsList) => {
                    Opening::Greeted(Instant::now())
                }
                _ => Opening::Over,
            };
        }
        let inbox = self.inbox();
        let token = message.params.progress_token.as_ref().map(|token| String::from_utf8_lossy(token).into_owned());
        let subscription = message.method == Some(Method::SubscriptionsListen);
        let waiter = Waiter {
            id: id.clone(),
            token,
            subscription,
            guest,
            inbox: inbox.clone(),
            augmented: message.params.augmented,
            asked: tasks::asked(message),
            cancelled: None,
        };
        state.waiting.insert(number, waiter);
        Ok(Waiting { desk: self.clone(), number, reader: inbox.attach(), inbox })
    }

    /// The answer to a request that the server need not be asked: others still listen to what one does not any more.
    pub(super) fn spare(&self, message: &Message, session: &str) -> Option<Bytes> {
        let (Some(Method::ResourcesUnsubscribe), Some(uri), Some(id)) =
            (message.method, &message.params.uri, message.id())
        else {
            return None;
        };
        let shared = self.state().guests.unsubscribe(session, uri);
        shared.then(|| relay::nothing(id.as_json()))
    }

    /// The line for a notification or a client's response, if the server is to hear of it.
    pub(super) fn note(&self, message: &Message, session: Option<&str>) -> Option<Bytes> {
        let mut state = self.state();
        state.used = Instant::now();
        let guest = session.and_then(|session| state.guests.touch(session));
        match (&message.kind, message.method) {
            // Only who was asked may answer.
            (Kind::Response { id }, _) => {
                let asked = state.guests.answered(guest.as_deref()?, id);
                asked.then(|| relay::outgoing(message, None))
            }
            (_, Some(Method::NotificationsProgress)) => {
                let token = relay::progress_token(message)?;
                let known = state.guests.works_on(guest.as_deref()?, &token);
                known.then(|| relay::outgoing(message, None))
            }
            (_, Some(Method::NotificationsCancelled)) => {
                let named = Id::from_json(&relay::cancelled_id(message)?)?;
                // Otherwise it was answered already, or never asked.
                let number = state.cancel(guest.as_deref(), &named, Instant::now())?;
                Some(relay::cancellation(message, number))
            }
            (_, Some(Method::NotificationsInitialized)) => {
                let first = !std::mem::replace(&mut state.initialized, true);
                first.then(|| relay::outgoing(message, None))
            }
            _ => Some(relay::outgoing(message, None)),
        }
    }

    /// A session's stream of server messages. The newest reader is the one reader.
    pub(super) fn stream(self: &Arc<Self>, session: &str) -> Result<Content, Error> {
        let (session, messages) = self.state().guests.listen(session).ok_or_else(|| self.blame.session_lost())?;
        let reader = messages.attach();
        let attached = Attached { desk: self.clone(), session, messages, reader };
        let events = futures_util::stream::unfold(attached, |attached| async move {
            match attached.messages.pop(attached.reader).await {
                Item::Message(message) => Some((Ok(Event::message(message)), attached)),
                Item::End(_) => None,
            }
        });
        Ok(Content::Events(events.boxed()))
    }

    /// One message of the server.
    pub(super) fn take(&self, line: &Bytes) {
        match relay::incoming(line) {
            Ok(Came::Belonging { number, place, kind }) => self.deliver(line, number, place, kind),
            Ok(Came::Request { id, method, token }) => self.ask(line, &id, &method, token),
            // Whose it is cannot be known. SPEC: 2026-07-28: what is not about a request is about a subscription.
            Ok(Came::Notification { .. }) if self.era == Era::Modern => {}
            Ok(Came::Notification { method, uri, request }) => {
                self.tell(line, &method, uri.as_deref(), request.as_deref())
            }
            Err(what) => self.bad(what),
        }
    }

    fn deliver(&self, line: &Bytes, number: u64, place: std::ops::Range<usize>, kind: Belonging) {
        let mut state = self.state();
        match kind {
            Belonging::Progress | Belonging::Subscription => {
                let Some(waiter) = state.waiting.get(&number) else {
                    return;
                };
                let text =
                    if kind == Belonging::Progress { waiter.token.as_deref() } else { Some(waiter.id.as_json()) };
                if let Some(text) = text {
                    self.push(&waiter.inbox, relay::splice(line, place, text));
                }
            }
            Belonging::Response => {
                // Nobody waits: the caller left. SPEC: a late answer is ignored.
                let Some(waiter) = state.answered(number, Some(line), Instant::now()) else {
                    return;
                };
                state.used = Instant::now();
                // A session is idle from its last answer on, not from its last question.
                if let Some(guest) = &waiter.guest {
                    state.guests.touch(guest);
                }
                let id = waiter.id.as_json();
                let mut edits = vec![place];
                edits.extend(waiter.subscription.then(|| relay::subscription_in_result(line, number)).flatten());
                // From the back, so that the places in front stay true.
                edits.sort_by_key(|place| std::cmp::Reverse(place.start));
                let answer = edits.into_iter().fold(line.clone(), |line, place| relay::splice(&line, place, id));
                waiter.inbox.end(End::Answer(answer));
            }
        }
    }

    /// The server asks. Only one session can be meant, and its client can do this, or it is refused.
    fn ask(&self, line: &Bytes, id: &str, method: &str, token: Option<String>) {
        let mut state = self.state();
        let meant = state.meant(Instant::now()).filter(|_| self.era == Era::Legacy);
        let answer = match (meant, Id::from_json(id)) {
            (Some((guest, inbox)), Some(own)) => {
                if inbox.push_if(line.clone(), || state.guests.ask(&guest, own, method, token, inbox.clone())) {
                    return;
                }
                relay::refusal(id)
            }
            // Anybody could answer this one; we do.
            (None, Some(_)) if method == "ping" && self.era == Era::Legacy => relay::nothing(id),
            _ => relay::refusal(id),
        };
        drop(state);
        // A full pipe into a server that misbehaves: the refusal is worth no waiting.
        let _ = self.asides.try_send(answer);
    }

    /// A notification of a legacy server that names no request of a client.
    fn tell(&self, line: &Bytes, method: &str, uri: Option<&str>, request: Option<&str>) {
        let mut state = self.state();
        if method == "notifications/tasks/status"
            && let Some(task) = tasks::told(line)
        {
            state.ghosts.told(&task, Instant::now());
        }
        let alone = state.guests.only();
        match (method, uri, request) {
            (
                "notifications/tools/list_changed"
                | "notifications/prompts/list_changed"
                | "notifications/resources/list_changed",
                ..,
            ) => state.guests.all().for_each(|messages| self.push(messages, line.clone())),
            ("notifications/resources/updated", Some(uri), _) if alone.is_none() => {
                state.guests.subscribed(uri).for_each(|messages| self.push(messages, line.clone()));
            }
            ("notifications/cancelled", _, Some(request)) => {
                if let Some(inbox) = Id::from_json(request).and_then(|id| state.guests.take_back(&id)) {
                    self.push(&inbox, line.clone());
                }
            }
            // What is logged while a request runs is about it, if no other runs.
            ("notifications/message", ..) => {
                if let Some((_, inbox)) = state.meant(Instant::now()) {
                    self.push(&inbox, line.clone());
                }
            }
            _ => {
                if let Some(messages) = alone {
                    self.push(&messages, line.clone());
                }
            }
        }
    }

    fn push(&self, inbox: &Inbox, message: Bytes) {
        if !inbox.push(message) {
            tracing::warn!(target: "wardgate::channel", backend = %self.blame.0, "a message is dropped: its reader is too slow");
        }
    }

    /// A word of the server that is no message. It is nobody's, and it is not logged without end.
    fn bad(&self, what: &str) {
        let mut state = self.state();
        let (last, silent) = state.bad;
        if last.is_some_and(|last| last.elapsed() < BAD_PAUSE) {
            state.bad.1 = silent.saturating_add(1);
            return;
        }
        state.bad = (Some(Instant::now()), 0);
        drop(state);
        tracing::warn!(target: "wardgate::channel", backend = %self.blame.0, what, unlogged = silent, "what the server says is dropped");
    }

    /// A message was longer than any answer may be. Who waits for it fails, and nobody else; if it does not tell whose
    /// it is, the one who can be meant.
    pub(super) fn too_long(&self, whose: Whose) {
        let mut state = self.state();
        let meant = match whose {
            Whose::Answer(number) => state.answered(number, None, Instant::now()),
            Whose::Unknown if state.waiting.len() == 1 && state.ghosts.is_empty(Instant::now()) => {
                state.waiting.pop_first().map(|(_, waiter)| waiter)
            }
            Whose::Nobody | Whose::Unknown => None,
        };
        drop(state);
        self.bad("a message that is too long");
        if let Some(waiter) = meant {
            waiter.inbox.end(End::Failed(self.blame.too_large(self.answer_bytes_max)));
        }
    }

    /// The server is gone: whoever waits gets this error, whoever listens the end. Gives the sessions that are lost.
    pub(super) fn close(&self, error: &Error) -> Vec<Arc<str>> {
        let mut state = self.state();
        state.closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        let guests = std::mem::take(&mut state.guests);
        drop(state);
        for waiter in waiting.into_values() {
            waiter.inbox.end(End::Failed(error.clone()));
        }
        guests.close()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// The server was greeted, and has not answered anything for so long.
    pub(super) fn is_mute(&self, patience: Duration) -> bool {
        matches!(self.state().opening, Opening::Greeted(at) if at.elapsed() >= patience)
    }

    /// The server has answered at least one request.
    pub(super) fn was_fruitful(&self) -> bool {
        self.state().fruitful
    }

    /// Nobody waits, listens, or has a session.
    pub(super) fn is_deserted(&self) -> bool {
        let state = self.state();
        state.waiting.is_empty() && state.guests.is_empty()
    }

    /// How long the channel has served nobody. Sessions that nobody used for `guest_max` end; they are given out.
    pub(super) fn idle(&self, guest_max: Duration) -> (Duration, Vec<Arc<str>>) {
        let mut state = self.state();
        let busy = |state: &State| !state.waiting.is_empty() || state.guests.listening();
        let idle = if busy(&state) { Duration::ZERO } else { state.used.elapsed() };
        let running = |state: &State, session: &str| {
            state.waiting.values().any(|waiter| waiter.guest.as_deref() == Some(session))
        };
        let mut over = state.guests.unused(guest_max);
        over.retain(|session| !running(&state, session));
        over.iter().for_each(|session| self.part(&mut state, session));
        (idle, over)
    }
}

impl State {
    /// The one session that a message without a name can be about: the one whose requests run, if no other's do; if
    /// none run, the only one there is. A request that its caller left may run still, and so may a task: where
    /// principals meet, their words are for nobody else.
    fn meant(&self, now: Instant) -> Option<(Arc<str>, Arc<Inbox>)> {
        let mut running = self.waiting.values().rev().filter(|waiter| waiter.guest.is_some());
        let (session, inbox) = match running.next() {
            None => self.guests.only_one()?,
            Some(newest) if running.all(|other| other.guest == newest.guest) => {
                (newest.guest.clone()?, newest.inbox.clone())
            }
            Some(_) => return None,
        };
        let safe = !self.guests.are_mixed() || self.ghosts.are_of(&session, now);
        safe.then_some((session, inbox))
    }

    /// The server has answered this request, whether somebody waits or not. `line`: what it said, if that is known.
    fn answered(&mut self, number: u64, line: Option<&Bytes>, now: Instant) -> Option<Waiter> {
        // Numbers that were never given out are answered by nobody.
        if number < self.next {
            self.fruitful = true;
            self.opening = Opening::Over;
        }
        // Of what nobody can read it may be said that it began a task.
        let begun = || line.map_or_else(|| Some(tasks::Task::default()), tasks::begun);
        let Some(mut waiter) = self.waiting.remove(&number) else {
            self.ghosts.answered(number, begun, now);
            return None;
        };
        if let Some(guest) = waiter.guest.clone().filter(|_| waiter.augmented)
            && let Some(task) = begun()
        {
            self.ghosts.begin(number, guest, task, now);
        }
        if let (Some(asked), Some(line)) = (waiter.asked.take(), line)
            && let Some(task) = asked.answered(line)
        {
            self.ghosts.told(&task, now);
        }
        Some(waiter)
    }

    /// This guest's client cancels one of its requests. Gives the number under which the server knows it.
    fn cancel(&mut self, guest: Option<&str>, named: &Id, now: Instant) -> Option<u64> {
        let of_guest = |waiter: &Waiter| waiter.guest.as_deref() == guest && waiter.id.same(named);
        if let Some((number, waiter)) = self.waiting.iter_mut().find(|(_, waiter)| of_guest(waiter)) {
            waiter.cancelled.get_or_insert(now);
            return Some(*number);
        }
        self.ghosts.cancel(guest?, named, now)
    }
}

/// A session id of ours.
pub(super) fn mint(blame: &Blame) -> Result<Arc<str>, Error> {
    let mut random = [0u8; 16];
    ring::rand::SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| blame.unavailable("the system gives no random numbers"))?;
    let id = random.iter().fold(String::with_capacity(32), |mut id, byte| {
        // INVARIANT: writing to a String cannot fail.
        let _ = write!(id, "{byte:02x}");
        id
    });
    Ok(id.into())
}

/// A guest whose session is not open yet.
pub(super) struct Newcomer {
    desk: Arc<Desk>,
    session: Option<Arc<str>>,
}

impl Newcomer {
    pub(super) fn stay(mut self) {
        self.session = None;
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.desk.leave(&session);
        }
    }
}

/// A request that waits for its answer; given up when dropped before.
pub(super) struct Waiting {
    desk: Arc<Desk>,
    number: u64,
    inbox: Arc<Inbox>,
    reader: u64,
}

impl Waiting {
    /// The request as the server is to get it.
    pub(super) fn line(&self, message: &Message) -> Bytes {
        relay::outgoing(message, Some(self.number))
    }

    async fn next(&self) -> Item {
        self.inbox.pop(self.reader).await
    }

    /// The answer alone; what comes before it is for nobody.
    async fn answer(self) -> Result<Bytes, Error> {
        loop {
            match self.next().await {
                Item::Message(_) => {}
                Item::End(End::Answer(answer)) => return Ok(answer),
                Item::End(End::Closed) => return Err(self.desk.gone()),
                Item::End(End::Failed(error)) => return Err(error),
            }
        }
    }

    /// Waits for the first that belongs to it: the response alone, or a stream that leads to it.
    pub(super) async fn content(self, silence: Option<Duration>) -> Result<Content, Error> {
        match self.next().await {
            Item::End(End::Answer(answer)) => Ok(Content::Json(answer)),
            Item::End(End::Closed) => Err(self.desk.gone()),
            Item::End(End::Failed(error)) => Err(error),
            Item::Message(first) => Ok(Content::Events(self.stream(first, silence))),
        }
    }

    fn stream(self, first: Bytes, silence: Option<Duration>) -> BoxStream<'static, Result<Event, Error>> {
        let state = (Some(self), Some(first));
        let events = futures_util::stream::unfold(state, move |(waiting, first)| async move {
            let waiting = waiting?;
            if let Some(first) = first {
                return Some((Ok(Event::message(first)), (Some(waiting), None)));
            }
            let item = match silence {
                Some(silence) => match pingora::time::timeout(silence, waiting.next()).await {
                    Ok(item) => item,
                    Err(_) => return Some((Err(waiting.desk.blame.timeout()), (None, None))),
                },
                None => waiting.next().await,
            };
            match item {
                Item::Message(message) => Some((Ok(Event::message(message)), (Some(waiting), None))),
                Item::End(End::Answer(answer)) => Some((Ok(Event::message(answer)), (None, None))),
                Item::End(End::Failed(error)) => Some((Err(error), (None, None))),
                Item::End(End::Closed) => Some((Err(waiting.desk.gone()), (None, None))),
            }
        });
        events.boxed()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.desk.state();
        if let Some(waiter) = state.waiting.remove(&self.number) {
            // SPEC: 2026-07-28 stdio: cancelling is said; 2025-11-25: a client that disconnects does not cancel.
            match (self.desk.era, waiter.guest) {
                (Era::Modern, _) => {
                    let _ = self.desk.asides.try_send(relay::give_up(self.number));
                }
                (Era::Legacy, Some(guest)) => {
                    let now = Instant::now();
                    let ghost = Ghost::of_call(guest, waiter.id, waiter.augmented, waiter.cancelled, now);
                    state.ghosts.add(self.number, ghost, now);
                }
                (Era::Legacy, None) => {}
            }
        }
        // A question that nobody read is owed an answer.
        for message in self.inbox.desert() {
            if let Ok(Came::Request { id, .. }) = relay::incoming(&message)
                && Id::from_json(&id).is_some_and(|own| state.guests.take_back(&own).is_some())
            {
                let _ = self.desk.asides.try_send(relay::refusal(&id));
            }
        }
    }
}

/// A reader of a session's stream.
struct Attached {
    desk: Arc<Desk>,
    session: Arc<str>,
    messages: Arc<Inbox>,
    reader: u64,
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut state = self.desk.state();
        state.guests.listens_no_more(&self.session);
        state.used = Instant::now();
    }
}
