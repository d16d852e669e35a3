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
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::sync::oneshot;
use tokio::sync::watch;

use super::line::Line;
use super::line::Mark;
use super::line::Shelf;
use super::line::Shelves;
use super::news::Change;
use super::news::Wire;
use super::session::Guest;
use super::session::unguessable;
use crate::gateway::Rejection;
use crate::gateway::errand::Errand;
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
/// Streams of news of one principal that are kept open for clients that left and may come back. They hold no slot either.
const AWAY_PER_OWNER_MAX: usize = 16;
/// Questions that wait for one principal's answers, in all its sessions. The calls behind them hold no slot of any limit.
const WAITING_PER_OWNER_MAX: usize = 256;
const LINES_MAX: usize = 16;
const TOPICS_MAX: usize = 256;

pub(in crate::gateway) struct Lobby {
    seats: Mutex<Seats>,
    ended: Cache<String, ()>,
    shelf: Arc<Shelf>,
    tallies: Tallies,
}

/// What is counted per principal, over all its sessions.
#[derive(Clone)]
struct Tallies {
    questions: Arc<Tally>,
    away: Arc<Tally>,
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
    shelves: Shelves,
    tallies: Tallies,
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
    /// The stream of news, read or not.
    news: Option<Arc<Wire>>,
    count: u64,
}

impl Default for Lobby {
    fn default() -> Self {
        let seats = Seats { by_nonce: HashMap::new(), by_owner: HashMap::new(), swept: Instant::now() };
        let ended = Cache::builder()
            .max_capacity(ENDED_MAX)
            // The newest must always find room.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(ENDED_FOR)
            .build();
        let tallies = Tallies { questions: Tally::new(WAITING_PER_OWNER_MAX), away: Tally::new(AWAY_PER_OWNER_MAX) };
        Lobby { seats: Mutex::new(seats), ended, shelf: Shelf::of_the_process(), tallies }
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
        let full = Rejection::TooManyConcurrent { limit: "sessions", max: None };
        if seats.by_owner.get(owner).is_some_and(|count| *count >= SEATS_PER_OWNER_MAX) {
            seats.give_way(Some(owner)).ok_or_else(|| full.clone())?;
        }
        if seats.by_nonce.len() >= SEATS_MAX {
            seats.give_way(None).ok_or(full)?;
        }
        let seat = Arc::new(Seat::new(owner.clone(), &self.shelf, &self.tallies));
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
            if let Some(news) = state.news.take() {
                news.stop();
            }
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
    fn new(owner: Arc<str>, shelf: &Arc<Shelf>, tallies: &Tallies) -> Seat {
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
        let shelves = [Shelf::of_a_session(), shelf.clone()];
        Seat { owner, state: Mutex::new(state), shelves, tallies: tallies.clone() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when nothing happens here; `None` while something does.
    fn idle(&self) -> Option<Instant> {
        let mut state = self.state();
        state.lines.retain(|line| !line.is_over());
        let watched = state.news.as_ref().is_some_and(|news| news.is_open() || !news.line.is_over());
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
            return Err(Rejection::TooManyConcurrent { limit: "session-requests", max: None });
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
    ///
    /// # Errors
    /// If too many wait for this session's client, or for its owner's answers.
    pub(super) fn expect(self: &Arc<Self>) -> Result<Waiting, Rejection> {
        let id = format!("wg-{}", unguessable().ok_or(Rejection::Internal)?);
        let (answered, answer) = oneshot::channel();
        let mut state = self.state();
        if state.waiting.len() >= WAITING_MAX {
            return Err(Rejection::TooManyConcurrent { limit: "session-questions", max: None });
        }
        if !self.tallies.questions.take(&self.owner) {
            return Err(Rejection::TooManyConcurrent { limit: "principal-questions", max: None });
        }
        state.waiting.insert(id.clone(), answered);
        Ok(Waiting { seat: self.clone(), id, answer })
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
        let line = Line::new(name, Some(id), version, Mark::of(errand), &self.shelves);
        let mut state = self.state();
        state.lines.retain(|line| !line.is_over());
        if state.lines.len() >= LINES_MAX {
            let done = state.lines.iter().position(|line| line.has_ended()).unwrap_or(0);
            // Its client may go on reading it; it can only not be found any more.
            state.lines.remove(done).hide();
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

    /// Puts a changed set in force, unless somebody else changed it since this edition. `change`: what the stream of news
    /// relays from now on, if it is open.
    ///
    /// # Errors
    /// If there are too many.
    pub(super) fn subscribe(
        &self,
        topics: BTreeSet<String>,
        edition: u64,
        change: Option<Change>,
    ) -> Result<bool, Rejection> {
        if topics.len() > TOPICS_MAX {
            return Err(Rejection::TooManyConcurrent { limit: "session-subscriptions", max: None });
        }
        let mut state = self.state();
        if state.edition != edition {
            return Ok(false);
        }
        state.topics = topics;
        state.edition += 1;
        if let (Some(news), Some(change)) = (&state.news, change) {
            news.change(change);
        }
        Ok(true)
    }

    /// The session's stream of news, as it was last opened.
    pub(super) fn news(&self) -> Option<Arc<Wire>> {
        self.state().news.clone()
    }

    /// The one stream of news from now on. An older one ends, and is given back with whether it was open until now. It listens for the topics of this edition;
    /// if they have changed meanwhile, it listens again.
    pub(super) fn watch(&self, wire: &Arc<Wire>, edition: u64) -> Option<(Arc<Wire>, bool)> {
        let mut state = self.state();
        if state.edition != edition {
            wire.change(Change::Again);
        }
        let old = state.news.replace(wire.clone())?;
        let was_open = old.is_open();
        old.stop();
        Some((old, was_open))
    }

    pub(super) fn shelves(&self) -> &Shelves {
        &self.shelves
    }

    /// May a stream of news go on while its client is away? Counted until dropped.
    pub(super) fn stays(self: &Arc<Self>) -> Option<Away> {
        self.tallies.away.take(&self.owner).then(|| Away(self.clone()))
    }
}

/// A stream of news whose client has left and may come back.
pub(super) struct Away(Arc<Seat>);

impl Drop for Away {
    fn drop(&mut self) {
        self.0.tallies.away.give_back(&self.0.owner);
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
        self.seat.tallies.questions.give_back(&self.seat.owner);
    }
}

/// How many of something each principal has. Who has none is not in it.
struct Tally {
    each_max: usize,
    counts: Mutex<HashMap<Arc<str>, usize>>,
}

impl Tally {
    fn new(each_max: usize) -> Arc<Tally> {
        Arc::new(Tally { each_max, counts: Mutex::default() })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `false`: too many.
    fn take(&self, owner: &Arc<str>) -> bool {
        let mut open = self.open();
        let count = open.entry(owner.clone()).or_default();
        let free = *count < self.each_max;
        *count += usize::from(free);
        free
    }

    fn give_back(&self, owner: &Arc<str>) {
        let mut open = self.open();
        let Some(count) = open.get_mut(owner) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            open.remove(owner);
        }
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
        let full = Rejection::TooManyConcurrent { limit: "sessions", max: None };
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
    fn questions_are_bounded_per_session_and_per_principal_and_make_room_again() {
        let (lobby, owner): (_, Arc<str>) = (Lobby::default(), "mallory".into());
        let refused = |seat: &Arc<Seat>| seat.expect().err();
        let too_many = |limit| Some(Rejection::TooManyConcurrent { limit, max: None });
        let mut waiting = Vec::new();
        for _ in 0..WAITING_PER_OWNER_MAX / WAITING_MAX {
            let seat = lobby.seat(&guest(), &owner).expect("a place");
            waiting.extend((0..WAITING_MAX).map(|_| seat.expect().expect("few wait")));
            assert_eq!(refused(&seat), too_many("session-questions"));
        }
        let another = lobby.seat(&guest(), &owner).expect("a place");
        assert_eq!(refused(&another), too_many("principal-questions"));
        assert_eq!(refused(&lobby.seat(&guest(), &"alice".into()).expect("a place")), None, "others are not concerned");
        waiting.pop();
        assert_eq!(refused(&another), None);
        drop(waiting);
        assert!(lobby.tallies.questions.open().is_empty(), "who has none is forgotten");
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
