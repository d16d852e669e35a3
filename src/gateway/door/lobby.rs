//! `Lobby`: what legacy sessions are in the middle of. In this process only, bounded, and forgotten when idle.
//!
//! A session itself needs none of it: any replica opens its id. What is here is soft: the log level, subscriptions, and
//! the answers that a running call waits for.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;

use super::line::Budget;
use super::line::Line;
use super::line::Mark;
use super::session::Guest;
use super::session::unguessable;
use crate::gateway::Rejection;
use crate::gateway::errand::Errand;
use crate::gateway::flow::Passing;
use crate::mcp::Id;

const SEATS_MAX: usize = 50_000;
const SEATS_PER_OWNER_MAX: usize = 1_000;

/// A session that does nothing for so long loses its log level and its subscriptions.
const IDLE: Duration = Duration::from_secs(30 * 60);

/// How often the idle are looked for.
const SWEEP: Duration = Duration::from_secs(10);

/// Sessions that were ended are known as such for as long as their ids would open.
const ENDED_MAX: u64 = 100_000;
/// The longest that a session may last by configuration.
const ENDED_FOR: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Of one session at once.
const RUNNING_MAX: usize = 256;
const WAITING_MAX: usize = 64;
const LINES_MAX: usize = 16;
const TOPICS_MAX: usize = 256;

pub(in crate::gateway) struct Lobby {
    seats: Mutex<Seats>,
    ended: Cache<String, ()>,
    budget: Budget,
}

struct Seats {
    by_nonce: HashMap<String, Arc<Seat>>,
    by_owner: HashMap<Arc<str>, usize>,
    swept: Instant,
}

/// One session in this process.
pub(super) struct Seat {
    owner: Arc<str>,
    state: Mutex<State>,
    budget: Budget,
}

struct State {
    used: Instant,
    level: Option<&'static str>,
    topics: BTreeSet<String>,
    /// Goes up with every change of the topics.
    edition: u64,
    running: Vec<(u64, Id, watch::Sender<bool>)>,
    waiting: HashMap<String, oneshot::Sender<Bytes>>,
    lines: Vec<Arc<Line>>,
    /// The GET stream, and which one it is by now.
    news: Option<mpsc::Sender<Subscription>>,
    count: u64,
}

/// What a GET stream relays.
pub(super) type Subscription = Option<BoxStream<'static, Passing>>;

impl Default for Lobby {
    fn default() -> Self {
        let seats = Seats { by_nonce: HashMap::new(), by_owner: HashMap::new(), swept: Instant::now() };
        let ended = Cache::builder()
            .max_capacity(ENDED_MAX)
            // The newest must always find room.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(ENDED_FOR)
            .build();
        Lobby { seats: Mutex::new(seats), ended, budget: Budget::default() }
    }
}

impl Lobby {
    /// The session's place.
    ///
    /// # Errors
    /// If the session was ended, or if nobody gives way for it.
    pub(super) fn seat(&self, guest: &Guest, owner: &Arc<str>) -> Result<Arc<Seat>, Rejection> {
        if self.ended.contains_key(&guest.nonce) {
            return Err(Rejection::SessionUnknown);
        }
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if seats.swept.elapsed() > SWEEP {
            seats.sweep();
        }
        if let Some(seat) = seats.by_nonce.get(&guest.nonce) {
            seat.state().used = Instant::now();
            return Ok(seat.clone());
        }
        let full = Rejection::TooManyConcurrent { limit: "sessions" };
        if seats.by_owner.get(owner).is_some_and(|count| *count >= SEATS_PER_OWNER_MAX) {
            seats.give_way(Some(owner)).ok_or_else(|| full.clone())?;
        }
        if seats.by_nonce.len() >= SEATS_MAX {
            seats.give_way(None).ok_or(full)?;
        }
        let seat = Arc::new(Seat::new(owner.clone(), self.budget.clone()));
        seats.by_nonce.insert(guest.nonce.clone(), seat.clone());
        *seats.by_owner.entry(owner.clone()).or_default() += 1;
        Ok(seat)
    }

    /// The session is no more: what runs is cancelled, its id is unknown here from now on.
    pub(super) fn end(&self, guest: &Guest) {
        self.ended.insert(guest.nonce.clone(), ());
        let seat = self.seats.lock().unwrap_or_else(PoisonError::into_inner).remove(&guest.nonce);
        if let Some(seat) = seat {
            let mut state = seat.state();
            state.running.iter().for_each(|(_, _, stop)| {
                stop.send_replace(true);
            });
            state.news = None;
        }
    }
}

impl Seats {
    fn sweep(&mut self) {
        self.swept = Instant::now();
        let idle: Vec<String> = self
            .by_nonce
            .iter()
            .filter(|(_, seat)| seat.idle().is_some_and(|since| since.elapsed() > IDLE))
            .map(|(nonce, _)| nonce.clone())
            .collect();
        idle.iter().for_each(|nonce| drop(self.remove(nonce)));
    }

    /// Lets go of the place (of this owner) that has been idle longest.
    fn give_way(&mut self, owner: Option<&Arc<str>>) -> Option<()> {
        let nonce = self
            .by_nonce
            .iter()
            .filter(|(_, seat)| owner.is_none_or(|owner| seat.owner == *owner))
            .filter_map(|(nonce, seat)| Some((seat.idle()?, nonce)))
            .min()
            .map(|(_, nonce)| nonce.clone())?;
        self.remove(&nonce).map(drop)
    }

    fn remove(&mut self, nonce: &str) -> Option<Arc<Seat>> {
        let seat = self.by_nonce.remove(nonce)?;
        if let Some(count) = self.by_owner.get_mut(&seat.owner) {
            *count -= 1;
            if *count == 0 {
                self.by_owner.remove(&seat.owner);
            }
        }
        Some(seat)
    }
}

impl Seat {
    fn new(owner: Arc<str>, budget: Budget) -> Seat {
        let state = State {
            used: Instant::now(),
            level: None,
            topics: BTreeSet::new(),
            edition: 0,
            running: Vec::new(),
            waiting: HashMap::new(),
            lines: Vec::new(),
            news: None,
            count: 0,
        };
        Seat { owner, state: Mutex::new(state), budget }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when nothing happens here; `None` while something does.
    fn idle(&self) -> Option<Instant> {
        let mut state = self.state();
        state.lines.retain(|line| !line.is_over());
        let watched = state.news.as_ref().is_some_and(|news| !news.is_closed());
        let busy = watched || !state.running.is_empty() || !state.waiting.is_empty() || !state.lines.is_empty();
        (!busy).then_some(state.used)
    }

    pub(super) fn level(&self) -> Option<&'static str> {
        self.state().level
    }

    pub(super) fn set_level(&self, level: &'static str) {
        self.state().level = Some(level);
    }

    /// A request of this session begins.
    ///
    /// # Errors
    /// If too many are running.
    pub(super) fn begin(self: &Arc<Self>, id: &Id) -> Result<Running, Rejection> {
        let (stop, stopped) = watch::channel(false);
        let mut state = self.state();
        if state.running.len() >= RUNNING_MAX {
            return Err(Rejection::TooManyConcurrent { limit: "session-requests" });
        }
        state.count += 1;
        let number = state.count;
        state.running.push((number, id.clone(), stop));
        Ok(Running { seat: self.clone(), number, stopped })
    }

    /// The client does not want the answer to this request any more.
    pub(super) fn cancel(&self, id: &Id) {
        let state = self.state();
        state.running.iter().filter(|(_, known, _)| known.same(id)).for_each(|(_, _, stop)| {
            stop.send_replace(true);
        });
    }

    /// A question to the client: the id to send it under, and what waits for the answer.
    pub(super) fn expect(self: &Arc<Self>) -> Option<Waiting> {
        let id = format!("wg-{}", unguessable()?);
        let (answered, answer) = oneshot::channel();
        let mut state = self.state();
        if state.waiting.len() >= WAITING_MAX {
            return None;
        }
        state.waiting.insert(id.clone(), answered);
        Some(Waiting { seat: self.clone(), id, answer })
    }

    /// The client answered: `false` if nobody waits for it (any more).
    pub(super) fn answered(&self, id: &Id, outcome: Bytes) -> bool {
        let Ok(id) = serde_json::from_str::<String>(id.as_json()) else { return false };
        let waiting = self.state().waiting.remove(&id);
        waiting.is_some_and(|waiting| waiting.send(outcome).is_ok())
    }

    /// A new line for the events of one answer. The oldest that has ended gives way to it.
    pub(super) fn line(&self, errand: &Errand, id: &Id, version: &str) -> Result<Arc<Line>, Rejection> {
        let name = unguessable().ok_or(Rejection::Internal)?;
        let line = Line::new(name, id, version, Mark::of(errand), &self.budget);
        let mut state = self.state();
        state.lines.retain(|line| !line.is_over());
        if state.lines.len() >= LINES_MAX {
            let done = state.lines.iter().position(|line| line.has_ended()).unwrap_or(0);
            // Its client may go on reading it; it can only not be found any more.
            state.lines.remove(done);
        }
        state.lines.push(line.clone());
        Ok(line)
    }

    /// The line that an event id of this session names, and the event's number in it.
    pub(super) fn find_line(&self, event_id: &str, mark: Mark) -> Option<(Arc<Line>, u64)> {
        let (name, number) = event_id.rsplit_once('-')?;
        let state = self.state();
        let line = state.lines.iter().find(|line| line.name == name && line.mark == mark)?;
        Some((line.clone(), number.parse().ok()?))
    }

    /// The resources subscribed to, and the edition of that set.
    pub(super) fn topics(&self) -> (BTreeSet<String>, u64) {
        let state = self.state();
        (state.topics.clone(), state.edition)
    }

    /// Puts a changed set in force, unless somebody else changed it since this edition: then the subscription comes back.
    ///
    /// # Errors
    /// If there are too many.
    pub(super) fn subscribe(
        &self,
        topics: BTreeSet<String>,
        edition: u64,
        subscription: Subscription,
    ) -> Result<bool, Rejection> {
        if topics.len() > TOPICS_MAX {
            return Err(Rejection::TooManyConcurrent { limit: "session-subscriptions" });
        }
        let mut state = self.state();
        if state.edition != edition {
            return Ok(false);
        }
        state.topics = topics;
        state.edition += 1;
        if let Some(news) = &state.news {
            drop(news.try_send(subscription));
        }
        Ok(true)
    }

    /// Is somebody listening to the session's GET stream?
    pub(super) fn is_watched(&self) -> bool {
        self.state().news.as_ref().is_some_and(|news| !news.is_closed())
    }

    /// The one GET stream from now on; an older one ends.
    pub(super) fn watch(&self) -> mpsc::Receiver<Subscription> {
        const CHANGES_MAX: usize = 32;
        let (news, inbox) = mpsc::channel(CHANGES_MAX);
        self.state().news = Some(news);
        inbox
    }
}

/// A running request; forgotten when dropped.
pub(super) struct Running {
    seat: Arc<Seat>,
    number: u64,
    stopped: watch::Receiver<bool>,
}

impl Running {
    /// Waits until the client cancels it.
    pub(super) async fn cancelled(&self) {
        let mut stopped = self.stopped.clone();
        if stopped.wait_for(|stopped| *stopped).await.is_err() {
            // INVARIANT: the sender goes with the entry, and the entry with this.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.seat.state();
        state.running.retain(|(number, _, _)| *number != self.number);
        state.used = Instant::now();
    }
}

/// A question that waits for the client's answer; nobody waits any more when dropped.
pub(super) struct Waiting {
    seat: Arc<Seat>,
    pub(super) id: String,
    answer: oneshot::Receiver<Bytes>,
}

impl Waiting {
    /// `"result":…` or `"error":…`, as the client wrote it. `None`: the session ended.
    pub(super) async fn answer(&mut self) -> Option<Bytes> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.seat.state().waiting.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::mcp::object::Object;

    fn guest() -> Guest {
        Guest::new(&Object::default(), SystemTime::UNIX_EPOCH).expect("randomness")
    }

    fn id(text: &str) -> Id {
        Id::from_json(text).expect("an id")
    }

    #[test]
    fn a_session_that_was_ended_is_unknown() {
        let (lobby, guest, owner) = (Lobby::default(), guest(), "alice".into());
        assert!(lobby.seat(&guest, &owner).is_ok());
        lobby.end(&guest);
        assert_eq!(lobby.seat(&guest, &owner).err(), Some(Rejection::SessionUnknown));
    }

    #[test]
    fn one_owner_cannot_take_all_the_places() {
        let (lobby, owner): (_, Arc<str>) = (Lobby::default(), "mallory".into());
        let first = guest();
        lobby.seat(&first, &owner).expect("a place").set_level("debug");
        let busy: Vec<_> = (1..SEATS_PER_OWNER_MAX)
            .map(|_| lobby.seat(&guest(), &owner).expect("a place").begin(&id("1")).expect("few run"))
            .collect();
        assert!(lobby.seat(&guest(), &owner).is_ok(), "the idle one gives way");
        let newcomer = lobby.seat(&first, &owner).expect("the other idle one gives way");
        assert_eq!(newcomer.level(), None, "what was soft is gone");
        let _running = newcomer.begin(&id("1"));
        let full = Rejection::TooManyConcurrent { limit: "sessions" };
        assert_eq!(lobby.seat(&guest(), &owner).err(), Some(full));
        assert!(lobby.seat(&guest(), &"alice".into()).is_ok(), "others are not concerned");
        drop(busy);
    }

    #[tokio::test]
    async fn cancelling_reaches_the_request_of_that_id_and_no_other() {
        let seat = Lobby::default().seat(&guest(), &"alice".into()).expect("a place");
        let (number, text) = (seat.begin(&id("1")).expect("runs"), seat.begin(&id("\"1\"")).expect("runs"));
        seat.cancel(&id("\"\\u0031\""));
        text.cancelled().await;
        assert!(futures_util::poll!(Box::pin(number.cancelled())).is_pending());
    }

    #[tokio::test]
    async fn an_answer_is_taken_once_and_only_while_somebody_waits() {
        let seat = Lobby::default().seat(&guest(), &"alice".into()).expect("a place");
        let mut waiting = seat.expect().expect("few wait");
        let name = id(&format!("\"{}\"", waiting.id));
        assert!(!seat.answered(&id("\"wg-other\""), Bytes::new()));
        assert!(seat.answered(&name, Bytes::from_static(b"\"result\":{}")));
        assert_eq!(waiting.answer().await.as_deref(), Some(&b"\"result\":{}"[..]));
        assert!(!seat.answered(&name, Bytes::new()), "once");
        let late = seat.expect().expect("few wait");
        let name = id(&format!("\"{}\"", late.id));
        drop(late);
        assert!(!seat.answered(&name, Bytes::new()), "nobody waits");
    }

    #[test]
    fn a_change_of_topics_does_not_undo_another() {
        let seat = Lobby::default().seat(&guest(), &"alice".into()).expect("a place");
        let (topics, edition) = seat.topics();
        assert_eq!(seat.subscribe(BTreeSet::from(["a".to_owned()]), edition, None), Ok(true));
        assert_eq!(seat.subscribe(topics, edition, None), Ok(false));
        assert_eq!(seat.topics().0.len(), 1);
        let many = (0..=TOPICS_MAX).map(|n| n.to_string()).collect();
        assert!(seat.subscribe(many, seat.topics().1, None).is_err());
    }
}
