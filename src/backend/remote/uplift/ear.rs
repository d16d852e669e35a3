//! The GET stream of a session: many servers put their questions there, not on the stream of the call that they are about;
//! and all of them tell there what has changed.
//!
//! A question names no call. It goes to the newest one of this session that may ask back; all calls of a session are one
//! principal's. A change goes to all listeners of the session.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::OnceCell;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::broadcast;
use tokio::sync::mpsc;
use tokio::sync::watch;

use super::answer;
use super::answer::Came;
use super::watches::Watches;
use crate::backend::Content;
use crate::backend::Error;
use crate::backend::remote::session::Session;
use crate::mcp::Method;
use crate::mcp::error;
use crate::mcp::object::Members;
use crate::mcp::sse::Event;

/// A call waits so long for the stream to be there before it begins: a server that finds no stream drops its question.
const OPEN_PATIENCE: Duration = Duration::from_secs(1);

/// A server that does not begin its stream within this has none.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// As for [`OPEN_TIMEOUT`], where a client waits for it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Between the end of a stream and the next one.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// A server that has a stream may refuse another one until it has seen the end of the last one: tried again so often.
const REFUSALS_MAX: usize = 20;

const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// Messages that wait for one call.
const HEARD_MAX: usize = 64;

/// Changes that wait for one listener.
const CHANGES_MAX: usize = 256;

/// A change names a resource at most: a larger one is not kept for listeners.
const CHANGE_BYTES_MAX: usize = 64 * 1024;

struct Hearer {
    may_ask_back: bool,
    inbox: mpsc::Sender<Bytes>,
}

/// What became of a session's stream.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Stage {
    #[default]
    Untried,
    Opening,
    /// As before; calls do not wait for it any more.
    Late,
    Open,
    /// It ended, and is about to be opened again.
    Paused,
    /// The server has none.
    Absent,
    /// The server had one, and does not give another one.
    Broken,
}

/// What the listeners of a session are told.
#[derive(Clone, Debug)]
pub(super) enum Told {
    /// A notification, whole.
    Change(Bytes),
    /// Something cannot be told.
    Lost,
    /// The calls go to another session of the same caller from now on, and what is told there is told here too.
    Moved(Weak<Session>),
    /// Nothing more will be told, or something may have been missed: whoever wants more listens anew.
    End,
}

/// Who listens to a session's stream.
#[derive(Default)]
pub(in crate::backend::remote) struct Ears {
    /// By the number of the call.
    hearers: Mutex<BTreeMap<u64, Hearer>>,
    stage: watch::Sender<Stage>,
    /// Does the server have such a stream? Asked without keeping it.
    probed: OnceCell<bool>,
    /// `None` until somebody listens.
    changes: Mutex<Option<broadcast::Sender<Told>>>,
    /// The channel of those who listened until the session was replaced. They hear its changes still, but not its end.
    moved: Mutex<Option<broadcast::Sender<Told>>>,
    pub(super) watches: Watches,
}

impl Ears {
    fn hearers(&self) -> MutexGuard<'_, BTreeMap<u64, Hearer>> {
        self.hearers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message to a call; `false` if there is none.
    fn tell(&self, number: Option<u64>, message: Bytes, question: bool) -> bool {
        let hearers = self.hearers();
        let hearer = match number {
            Some(number) => hearers.get(&number),
            None => hearers.values().rev().find(|hearer| hearer.may_ask_back || !question),
        };
        hearer.is_some_and(|hearer| hearer.inbox.try_send(message).is_ok())
    }

    fn changes(&self) -> MutexGuard<'_, Option<broadcast::Sender<Told>>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All changes from now on.
    pub(super) fn listener(&self) -> broadcast::Receiver<Told> {
        self.changes().get_or_insert_with(|| broadcast::channel(CHANGES_MAX).0).subscribe()
    }

    fn moved(&self) -> MutexGuard<'_, Option<broadcast::Sender<Told>>> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_listeners(&self, told: Told) {
        // Nobody listens: all the same.
        if let Some(moved) = &*self.moved() {
            let _ = moved.send(told.clone());
        }
        if let Some(changes) = &*self.changes() {
            let _ = changes.send(told);
        }
    }

    /// Ends what listens: the session is no more.
    pub(in crate::backend::remote) fn dismiss(&self) {
        if let Some(changes) = &*self.changes() {
            let _ = changes.send(Told::End);
        }
    }

    /// The session of this one's caller is replaced by `successor`: whoever listens hears both from now on, so that nothing
    /// is missed, and is told to move.
    pub(super) fn follow(&self, successor: &Arc<Session>) {
        let Some(changes) = self.changes().take().filter(|changes| changes.receiver_count() > 0) else {
            return;
        };
        let mut new = successor.ears.changes();
        let told = if new.is_none() {
            *new = Some(changes.clone());
            *self.moved() = Some(changes.clone());
            Told::Moved(Arc::downgrade(successor))
        } else {
            // The listeners of another one came first: these listen anew.
            Told::End
        };
        drop(new);
        let _ = changes.send(told);
    }

    fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    fn turn(&self, from: &[Stage], to: Stage) -> bool {
        self.stage.send_if_modified(|stage| {
            let turns = from.contains(stage);
            if turns {
                *stage = to;
            }
            turns
        })
    }
}

/// Opens the session's stream for a call unless it is open; it stays as long as the session. Says whether there is one.
/// Each stream takes one of `places`; without a place left the session goes without.
pub(super) async fn listen(session: &Arc<Session>, places: &Arc<Semaphore>) -> bool {
    let ears = &session.ears;
    match ears.stage() {
        Stage::Open => true,
        Stage::Late | Stage::Paused | Stage::Absent | Stage::Broken => false,
        Stage::Untried | Stage::Opening => {
            let open = open(session, &[places], OPEN_PATIENCE).await == Stage::Open;
            ears.turn(&[Stage::Opening], Stage::Late);
            open
        }
    }
}

/// [`listen`] for whoever can wait, and has the first place that is left; says what became of the stream.
pub(super) async fn open(session: &Arc<Session>, places: &[&Arc<Semaphore>], patience: Duration) -> Stage {
    let ears = &session.ears;
    let mut stages = ears.stage.subscribe();
    let before = ears.stage();
    if matches!(before, Stage::Untried | Stage::Broken) {
        let Some(place) = places.iter().find_map(|places| Arc::clone(places).try_acquire_owned().ok()) else {
            return before;
        };
        if ears.turn(&[before], Stage::Opening) {
            let had_one = before == Stage::Broken;
            session.keep(tokio::spawn(hear_forever(Arc::downgrade(session), had_one, place)));
        }
    }
    let settled = stages.wait_for(|stage| !matches!(stage, Stage::Opening | Stage::Late | Stage::Paused));
    match pingora::time::timeout(patience, settled).await {
        Ok(Ok(stage)) => *stage,
        Ok(Err(_)) | Err(_) if before == Stage::Broken => before,
        Ok(Err(_)) | Err(_) => ears.stage(),
    }
}

/// Does the server have such a stream? Asked once; `keep`: if there is a place, the stream stays open for questions.
pub(super) async fn has_stream(session: &Arc<Session>, keep: Option<&Arc<Semaphore>>, deadline: Instant) -> bool {
    if let Some(places) = keep
        && listen(session, places).await
    {
        return true;
    }
    if matches!(session.ears.stage(), Stage::Open | Stage::Paused | Stage::Broken) {
        return true;
    }
    // A stream that is opened to see whether it can be, and closed again.
    let probe = async || begin(session, None, deadline.min(Instant::now() + PROBE_TIMEOUT)).await.is_ok();
    *session.ears.probed.get_or_init(probe).await
}

/// The stream, or why there is none; `None`: the server says that it has none.
async fn begin(
    session: &Session,
    last: Option<String>,
    deadline: Instant,
) -> Result<BoxStream<'static, Result<Event, Error>>, Option<Error>> {
    match session.stream(last, deadline).await.map(|answer| answer.content) {
        Ok(Content::Events(stream)) => Ok(stream),
        Ok(Content::Json(_) | Content::Empty) => Err(None),
        Err(error) => Err(Some(error)),
    }
}

/// `had_one`: the session had such a stream before.
async fn hear_forever(session: Weak<Session>, mut had_one: bool, _place: OwnedSemaphorePermit) {
    let mut last = None;
    let mut refusals = 0;
    while let Some(open) = session.upgrade() {
        let stream = match begin(&open, last.clone(), Instant::now() + OPEN_TIMEOUT).await {
            Ok(stream) => stream,
            // The stream that it was asked about by has only just been closed.
            Err(_) if !had_one && refusals < REFUSALS_MAX && open.ears.probed.get() == Some(&true) => {
                drop(open);
                refusals += 1;
                tokio::time::sleep(REFUSED_PAUSE).await;
                continue;
            }
            Err(why) => {
                if had_one && matches!(why, Some(Error::SessionLost { .. })) {
                    open.lose();
                }
                open.ears.stage.send_replace(if had_one { Stage::Broken } else { Stage::Absent });
                open.ears.dismiss();
                return;
            }
        };
        had_one = true;
        open.ears.stage.send_replace(Stage::Open);
        // The stream must not keep the session.
        drop(open);
        last = hear(&session, stream, last).await;
        let Some(open) = session.upgrade() else {
            return;
        };
        if last.is_none() {
            // What is told until the next stream begins is lost.
            open.ears.dismiss();
        }
        open.ears.turn(&[Stage::Open], Stage::Paused);
        drop(open);
        tokio::time::sleep(REOPEN_PAUSE).await;
    }
}

/// Hears a stream to its end; gives the id of the last event.
async fn hear(
    session: &Weak<Session>,
    mut stream: BoxStream<'static, Result<Event, Error>>,
    mut last: Option<String>,
) -> Option<String> {
    while let Some(Ok(event)) = stream.next().await {
        last = event.id.filter(|id| !id.is_empty()).or(last);
        let Some(session) = session.upgrade() else {
            return last;
        };
        if let Some(message) = event.data.filter(|data| !data.is_empty()) {
            route(&session, message);
        }
    }
    last
}

fn route(session: &Arc<Session>, message: Bytes) {
    let whole = message.clone();
    match answer::read(&message) {
        Ok(Came::Request { id, method, .. }) if method == Method::Ping.as_str() => {
            session.respond_later(id, r#""result":{}"#.to_owned());
        }
        Ok(Came::Request { id, .. }) => {
            if !session.ears.tell(None, whole, true) {
                session.respond_later(id, refusal(error::METHOD_NOT_FOUND));
            }
        }
        Ok(Came::Notification { method, params }) if method == Method::NotificationsProgress.as_str() => {
            let token = params.and_then(|params| Members::read(params.as_bytes()).ok()?.find("progressToken"));
            if let Some(number) = token.and_then(|token| token.parse().ok()) {
                session.ears.tell(Some(number), whole, false);
            }
        }
        Ok(Came::Notification { method, .. }) if super::listen::is_change(&method) => {
            tell_change(session, whole);
        }
        Ok(Came::Notification { .. }) => {
            session.ears.tell(None, whole, false);
        }
        Ok(Came::Result { id, .. } | Came::Error { id: Some(id), .. }) => {
            if let Ok(number) = id.as_json().parse() {
                session.ears.tell(Some(number), whole, false);
            }
        }
        Ok(Came::Error { id: None, .. }) | Err(_) => {}
    }
}

/// A change, wherever the server told of it: for the listeners of this session.
pub(super) fn tell_change(session: &Session, whole: Bytes) {
    let told = if whole.len() > CHANGE_BYTES_MAX { Told::Lost } else { Told::Change(whole) };
    session.ears.tell_listeners(told);
}

fn refusal(code: i64) -> String {
    format!(r#""error":{{"code":{code},"message":"there is no call whose client could be asked"}}"#)
}

/// One call's share of the stream.
pub(super) struct Ear {
    session: Arc<Session>,
    number: u64,
    inbox: mpsc::Receiver<Bytes>,
}

impl Ear {
    pub(super) fn attach(session: &Arc<Session>, number: u64, may_ask_back: bool) -> Ear {
        let (sender, inbox) = mpsc::channel(HEARD_MAX);
        session.ears.hearers().insert(number, Hearer { may_ask_back, inbox: sender });
        Ear { session: session.clone(), number, inbox }
    }

    /// The next message for the call; never ends. Cancel safe.
    pub(super) async fn hear(&mut self) -> Bytes {
        match self.inbox.recv().await {
            Some(message) => message,
            // INVARIANT: the sender is in the session's list until this ear is dropped.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.session.ears.hearers().remove(&self.number);
        self.inbox.close();
        // A question that nobody read is owed an answer.
        while let Ok(message) = self.inbox.try_recv() {
            if let Ok(Came::Request { id, .. }) = answer::read(&message)
                && tokio::runtime::Handle::try_current().is_ok()
            {
                self.session.respond_later(id, refusal(error::INTERNAL_ERROR));
            }
        }
    }
}
