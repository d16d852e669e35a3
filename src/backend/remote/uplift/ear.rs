//! The GET stream of a session whose client can be asked: many servers put their questions there, not on the stream of the
//! call that they are about.
//!
//! Such a question names no call. It goes to the newest one of this session that may ask back; all calls of a session are
//! one principal's.

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
use tokio::sync::OnceCell;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use super::answer;
use super::answer::Came;
use super::json::Members;
use crate::backend::Content;
use crate::backend::remote::session::Session;
use crate::mcp::Method;
use crate::mcp::error;

/// A call waits so long for the stream to be there before it begins: a server that finds no stream drops its question.
const OPEN_PATIENCE: Duration = Duration::from_secs(1);

/// A server that does not begin its stream within this has none.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Between the end of a stream and the next one.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// Messages that wait for one call.
const HEARD_MAX: usize = 64;

struct Hearer {
    may_ask_back: bool,
    inbox: mpsc::Sender<Bytes>,
}

/// Who listens to a session's stream.
#[derive(Default)]
pub(in crate::backend::remote) struct Ears {
    /// By the number of the call.
    hearers: Mutex<BTreeMap<u64, Hearer>>,
    /// Does the server have such a stream? Once it is kept open, and once it was tried.
    open: OnceCell<bool>,
    probed: OnceCell<bool>,
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
}

/// Opens the session's stream unless it is open; it stays as long as the session. Says whether there is one. Each stream
/// takes one of `places`; without a place left the session goes without.
pub(super) async fn listen(session: &Arc<Session>, places: &Arc<Semaphore>) -> bool {
    if let Some(open) = session.ears.open.get() {
        return *open;
    }
    let Ok(place) = places.clone().try_acquire_owned() else {
        return false;
    };
    let open = async {
        let (began, begun) = oneshot::channel();
        session.keep(tokio::spawn(hear_forever(Arc::downgrade(session), began, place)));
        pingora::time::timeout(OPEN_PATIENCE, begun).await.is_ok_and(|begun| begun.unwrap_or(false))
    };
    *session.ears.open.get_or_init(|| open).await
}

/// Does the server have such a stream? Asked once; `keep`: if there is a place, the stream stays open for questions.
pub(super) async fn has_stream(session: &Arc<Session>, keep: Option<&Arc<Semaphore>>, deadline: Instant) -> bool {
    if let Some(places) = keep
        && listen(session, places).await
    {
        return true;
    }
    // A stream that is opened to see whether it can be, and closed again.
    *session.ears.probed.get_or_init(|| async { super::listen::open(session, deadline).await.is_some() }).await
}

async fn hear_forever(session: Weak<Session>, began: oneshot::Sender<bool>, _place: OwnedSemaphorePermit) {
    let mut began = Some(began);
    let mut last = None;
    while let Some(open) = session.upgrade() {
        let answer = open.stream(last.clone(), Instant::now() + OPEN_TIMEOUT).await;
        // The stream must not keep the session.
        drop(open);
        let stream = match answer.map(|answer| answer.content) {
            Ok(Content::Events(stream)) => Some(stream),
            Ok(Content::Json(_) | Content::Empty) | Err(_) => None,
        };
        if let Some(began) = began.take() {
            // Nobody waits any more: all the same.
            let _ = began.send(stream.is_some());
        }
        let Some(mut stream) = stream else {
            return;
        };
        while let Some(Ok(event)) = stream.next().await {
            last = event.id.filter(|id| !id.is_empty()).or(last);
            let Some(session) = session.upgrade() else {
                return;
            };
            if let Some(message) = event.data.filter(|data| !data.is_empty()) {
                route(&session, message);
            }
        }
        tokio::time::sleep(REOPEN_PAUSE).await;
    }
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
