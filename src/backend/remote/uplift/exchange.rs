//! One call at a legacy upstream while it runs: what comes for it, what is answered at once, and its cancellation.
//!
//! It belongs to whoever waits for it: a client's request, its answer stream, or the shelf of parked calls. Dropped
//! before its response is there, it is cancelled upstream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::task::JoinHandle;

use super::answer;
use super::answer::Came;
use super::answer::Raised;
use super::ear;
use super::ear::Ear;
use super::request::Asked;
use super::sessions::Taken;
use crate::backend::Answer;
use crate::backend::Content;
use crate::backend::Error;
use crate::backend::remote::CALL_TIMEOUT;
use crate::backend::remote::session::Session;
use crate::mcp::Id;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::error;
use crate::mcp::object::Members;
use crate::mcp::object::Writer;
use crate::mcp::sse::Event;

/// Questions of the server that wait for one client at once.
const QUESTIONS_MAX: usize = 16;

/// Times that one call may ask back.
const ROUNDS_MAX: usize = 32;

/// A server may close a call's stream and have us fetch the rest so often (2025-11-25, streamable HTTP).
const RESUMES_MAX: usize = 100;

const RESUME_PAUSE_MAX: Duration = Duration::from_secs(30);

/// What the next step of a call is.
pub(super) enum Step {
    /// A message for the client; more will come.
    Relay(Bytes),
    /// The upstream answers by a stream; nothing has come on it.
    Flowing,
    /// The response.
    Answer(Raised),
    /// The server wants something of the client before it goes on: see [`Exchange::questions`].
    Question,
}

/// A question of the server, to be answered by the client's retry.
pub(super) struct Question {
    /// Names it in `inputRequests`.
    pub(super) key: String,
    id: Id,
    /// `{"method":…,"params":…}`
    pub(super) request: String,
}

enum Source {
    /// The request is on its way; its answer has not begun.
    Asked(JoinHandle<Result<Answer, Error>>),
    Events(BoxStream<'static, Result<Event, Error>>),
    Over,
}

/// One thing that came.
enum Item {
    Flowing,
    Message(Bytes),
    /// A whole answer, with its status.
    Whole(u16, Bytes),
}

#[derive(Default)]
struct Resume {
    last_event_id: Option<String>,
    pause: Duration,
    times: usize,
}

pub(super) struct Exchange {
    session: Arc<Session>,
    number: u64,
    /// Was the session opened for an earlier call?
    reused: bool,
    /// Set when the upstream may have got the request.
    reached: Arc<OnceLock<Instant>>,
    source: Source,
    ear: Ear,
    /// Came together with a question; goes to whoever waits next.
    backlog: VecDeque<Item>,
    resume: Resume,
    questions: Vec<Question>,
    rounds: usize,
}

impl Exchange {
    /// Sends the request. `lowered` is for the session's request `number`.
    pub(super) fn begin(taken: Taken, asked: &Asked, number: u64, lowered: Message, repeatable: bool) -> Exchange {
        let Taken { session, reused } = taken;
        let ear = Ear::attach(&session, number, asked.may_ask_back());
        // A task of its own: when its client leaves, the upstream is told before the answer is given up.
        let (asking, reached) = (session.clone(), Arc::new(OnceLock::new()));
        let begun = reached.clone();
        let posted = tokio::spawn(async move {
            asking.post_tracked(lowered, repeatable, Instant::now() + CALL_TIMEOUT, &begun).await
        });
        Exchange {
            session,
            number,
            reused,
            reached,
            source: Source::Asked(posted),
            ear,
            backlog: VecDeque::new(),
            resume: Resume::default(),
            questions: Vec::new(),
            rounds: 0,
        }
    }

    pub(super) fn questions(&self) -> &[Question] {
        &self.questions
    }

    /// Does the upstream answer by a stream already?
    pub(super) fn is_flowing(&self) -> bool {
        matches!(self.source, Source::Events(_))
    }

    /// Waits for what comes next. Cancel safe.
    ///
    /// # Errors
    /// When there will be no answer. [`Error::SessionLost`]: the upstream does not know the session.
    pub(super) async fn step(&mut self, asked: &Asked) -> Result<Step, Error> {
        loop {
            if !self.questions.is_empty() {
                self.gather(asked)?;
                return Ok(Step::Question);
            }
            let item = match self.backlog.pop_front() {
                Some(item) => item,
                None => self.item().await?,
            };
            if let Some(step) = self.take(asked, item)? {
                return Ok(step);
            }
        }
    }

    /// Answers questions; those without an answer stay.
    ///
    /// # Errors
    /// When the upstream does not take an answer.
    pub(super) async fn answer(&mut self, answers: &Members<'_>) -> Result<(), Error> {
        let questions = std::mem::take(&mut self.questions);
        let mut failed = None;
        for question in questions {
            match answers.find(&question.key) {
                Some(result) if failed.is_none() => {
                    failed = self.session.respond(question.id, format!("\"result\":{result}")).await.err();
                }
                Some(_) => {}
                None => self.questions.push(question),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Refuses what the client cannot be asked any more.
    pub(super) fn refuse_questions(&mut self, why: &str) {
        for question in std::mem::take(&mut self.questions) {
            self.refuse(question.id, error::INTERNAL_ERROR, why);
        }
    }

    fn refuse(&self, id: Id, code: i64, why: &str) {
        self.session.respond_later(id, format!(r#""error":{{"code":{code},"message":"{why}"}}"#));
    }

    /// What has come already belongs to the same answer if it is a question too; the rest waits.
    fn gather(&mut self, asked: &Asked) -> Result<(), Error> {
        if self.backlog.iter().any(|item| matches!(item, Item::Whole(..))) {
            return Ok(());
        }
        while let Some(item) = self.item().now_or_never() {
            match item? {
                Item::Message(message) if self.is_for_others(asked, &message) => {
                    self.take(asked, Item::Message(message))?;
                }
                item => {
                    let whole = matches!(item, Item::Whole(..));
                    self.backlog.push_back(item);
                    if whole {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// A question, which is gathered, or a change, which others listen to: neither waits for this client.
    fn is_for_others(&self, asked: &Asked, message: &[u8]) -> bool {
        match answer::read(message) {
            Ok(Came::Request { method, params, .. }) => asked.may_ask_back() && asked.abilities.admit(&method, params),
            Ok(Came::Notification { method, .. }) => super::listen::is_change(&method),
            Ok(_) | Err(_) => false,
        }
    }

    async fn item(&mut self) -> Result<Item, Error> {
        loop {
            match &mut self.source {
                Source::Asked(asked) => {
                    let answer = tokio::select! {
                        answer = asked => answer.unwrap_or_else(|_| Err(self.session.blame().unavailable("the call broke off")))?,
                        heard = self.ear.hear() => return Ok(Item::Message(heard)),
                    };
                    match answer.content {
                        Content::Json(body) => {
                            self.source = Source::Over;
                            return Ok(Item::Whole(answer.status, body));
                        }
                        Content::Events(events) => self.source = Source::Events(events),
                        Content::Empty => {
                            self.source = Source::Over;
                            return Err(self.session.blame().protocol("a request was answered by nothing"));
                        }
                    }
                    return Ok(Item::Flowing);
                }
                Source::Events(events) => {
                    let event = tokio::select! {
                        event = events.next() => event,
                        heard = self.ear.hear() => return Ok(Item::Message(heard)),
                    };
                    match event {
                        Some(Ok(event)) => {
                            if let Some(message) = self.resume.note(event) {
                                return Ok(Item::Message(message));
                            }
                        }
                        Some(Err(error)) if self.resume.last_event_id.is_none() => return Err(error),
                        None if self.resume.last_event_id.is_none() => {
                            return Err(self.session.blame().unavailable("the stream ended without an answer"));
                        }
                        Some(Err(_)) | None => self.reopen()?,
                    }
                }
                Source::Over => return Err(self.session.blame().unavailable("the call is over")),
            }
        }
    }

    /// SPEC: 2025-11-25 streamable HTTP §Sending Messages: a server may close the stream of a call after an event with an
    /// id; the rest is fetched by GET.
    fn reopen(&mut self) -> Result<(), Error> {
        self.resume.times += 1;
        if self.resume.times > RESUMES_MAX {
            return Err(self.session.blame().unavailable("the stream ended too often without an answer"));
        }
        let (session, pause, last) = (self.session.clone(), self.resume.pause, self.resume.last_event_id.clone());
        self.source = Source::Asked(tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            match session.stream(last, Instant::now() + CALL_TIMEOUT).await {
                Ok(answer) if matches!(answer.content, Content::Events(_)) => Ok(answer),
                // Also when the session is said to be lost: the call was carried out, nothing may send it again.
                Ok(_) | Err(Error::SessionLost { .. }) => {
                    Err(session.blame().unavailable("the stream ended without an answer and cannot be resumed"))
                }
                Err(error) => Err(error),
            }
        }));
        Ok(())
    }

    fn take(&mut self, asked: &Asked, item: Item) -> Result<Option<Step>, Error> {
        let (status, message) = match item {
            Item::Flowing => return Ok(Some(Step::Flowing)),
            Item::Message(message) => (None, message),
            Item::Whole(status, message) => (Some(status), message),
        };
        let blame = self.session.blame().clone();
        let breaks = |what: &str| blame.protocol(what);
        let raised = match answer::read(&message) {
            Err(what) if status.is_some() => {
                self.source = Source::Over;
                return Err(breaks(what));
            }
            Err(what) => {
                tracing::warn!(backend = %blame.0, what, "an event was dropped");
                return Ok(None);
            }
            Ok(Came::Notification { method, params }) => {
                if method == Method::NotificationsCancelled.as_str() {
                    self.withdraw(params);
                }
                if super::listen::is_change(&method) {
                    // Not for this client as such: for whoever listens to the session.
                    ear::tell_change(&self.session, message.clone());
                    return Ok(None);
                }
                return Ok(answer::notification(asked, self.number, &method, params).map(Step::Relay));
            }
            Ok(Came::Request { id, method, params }) => {
                self.requested(asked, id, &method, params);
                return Ok(None);
            }
            Ok(Came::Result { id, result }) if id.same(&Id::number(self.number)) => {
                self.source = Source::Over;
                answer::result(asked, result, self.session.hello.server_info.as_deref())
            }
            Ok(Came::Error { id: None, error }) if self.is_forgotten(status, error) => {
                self.source = Source::Over;
                self.session.lose();
                return Err(blame.session_lost());
            }
            Ok(Came::Error { id, error }) if id.as_ref().is_none_or(|id| id.same(&Id::number(self.number))) => {
                self.source = Source::Over;
                answer::error(asked, error)
            }
            Ok(Came::Result { .. } | Came::Error { .. }) if status.is_some() => {
                self.source = Source::Over;
                return Err(breaks("the answer is to another request"));
            }
            Ok(Came::Result { .. } | Came::Error { .. }) => return Ok(None),
        };
        raised.map(|raised| Some(Step::Answer(raised))).map_err(breaks)
    }

    /// Many servers forget a session by a 400 with a code of their own ("no valid session id"), not by the 404 they owe.
    /// A refusal without an id is of the whole message: it was not carried out.
    fn is_forgotten(&self, status: Option<u16>, error: &str) -> bool {
        let code = || Members::read(error.as_bytes()).ok()?.find("code")?.parse::<i64>().ok();
        let refused = status.is_some_and(|status| (400..500).contains(&status));
        self.reused && self.session.has_id() && refused && code().is_some_and(error::is_legacy)
    }

    fn requested(&mut self, asked: &Asked, id: Id, method: &str, params: Option<&str>) {
        if method == Method::Ping.as_str() {
            self.session.respond_later(id, r#""result":{}"#.to_owned());
        } else if !asked.may_ask_back() || !asked.abilities.admit(method, params) {
            self.refuse(id, error::METHOD_NOT_FOUND, "the client of this call cannot be asked this");
        } else if self.questions.len() >= QUESTIONS_MAX || self.rounds >= ROUNDS_MAX {
            self.refuse(id, error::INTERNAL_ERROR, "the client of this call was asked too much");
        } else {
            self.rounds += 1;
            let mut request = Writer::new();
            request.text("method", method);
            if let Some(params) = params {
                request.raw("params", params);
            }
            self.questions.push(Question { key: format!("q-{}", self.rounds), id, request: request.finish() });
        }
    }

    /// The server does not wait for an answer any more.
    fn withdraw(&mut self, params: Option<&str>) {
        let id = params.and_then(|params| Id::from_json(Members::read(params.as_bytes()).ok()?.find("requestId")?));
        if let Some(id) = id {
            self.questions.retain(|question| !question.id.same(&id));
        }
    }
}

impl Resume {
    /// Keeps what resuming needs; gives the message if there is one.
    fn note(&mut self, event: Event) -> Option<Bytes> {
        if let Some(id) = event.id.filter(|id| !id.is_empty()) {
            self.last_event_id = Some(id);
        }
        if let Some(retry) = event.retry {
            self.pause = Duration::from_millis(retry).min(RESUME_PAUSE_MAX);
        }
        event.data.filter(|data| !data.is_empty())
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let source = std::mem::replace(&mut self.source, Source::Over);
        let over = matches!(source, Source::Over);
        let asked = match source {
            Source::Asked(asked) => Some(asked),
            Source::Events(_) | Source::Over => None,
        };
        let owes = !over && !self.session.is_over() && self.reached.get().is_some();
        let runtime = tokio::runtime::Handle::try_current().ok().filter(|_| owes);
        let Some(runtime) = runtime else {
            // Nobody can be told, or nothing was sent yet; nothing runs on for nobody either.
            asked.iter().for_each(JoinHandle::abort);
            return;
        };
        // A server must not wait for ever for what it asked.
        self.refuse_questions("the client of this call left");
        let (session, number) = (self.session.clone(), self.number);
        runtime.spawn(async move {
            let params = format!(r#"{{"requestId":{number},"reason":"the client left"}}"#);
            session.notify(Method::NotificationsCancelled, params).await;
            asked.iter().for_each(JoinHandle::abort);
        });
    }
}
