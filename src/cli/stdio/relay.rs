//! `Relay`: every line of the client to its place: requests run at once and answer once, notifications keep their order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use http::HeaderValue;
use http::StatusCode;
use reqwest::Response;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::task::JoinSet;

use super::answer;
use super::answer::Events;
use super::answer::Spoken;
use super::failure::Failure;
use super::legacy;
use super::legacy::Session;
use super::line;
use super::line::Kind;
use super::line::Line;
use super::line::Malformed;
use super::pipe;
use super::remote::Remote;
use crate::mcp;
use crate::mcp::Binding;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::Incoming;
use crate::mcp::error;
use crate::mcp::list::ListKind;
use crate::mcp::list::Page;

const RUNNING_MAX: usize = 512;

/// Tools whose mirrored arguments are remembered.
const TOOLS_MAX: usize = 10_000;

/// How often in a row a lost stream is taken up without hearing anything on it.
const RESUMES_MAX: u32 = 5;
const RESUME_PAUSE: Duration = Duration::from_secs(1);

/// How long a notification may hold the lines behind it.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long `initialize` may.
const INITIALIZE_TIMEOUT: Duration = Duration::from_secs(60);

/// The goodbye at the end is not worth more.
const END_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Relay {
    remote: Remote,
    out: mpsc::Sender<Option<Bytes>>,
    running: Mutex<HashMap<Id, Running>>,
    session: Mutex<Option<Session>>,
    listening: Mutex<Option<AbortHandle>>,
    /// Which arguments of which tool are mirrored in headers, from the lists that passed.
    bindings: Mutex<HashMap<String, Vec<Binding>>>,
}

struct Running {
    task: AbortHandle,
    era: Era,
    /// Waits for news: not to be waited for at the end.
    open_ended: bool,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Relay {
    pub(super) fn new(remote: Remote, out: mpsc::Sender<Option<Bytes>>) -> Relay {
        Relay {
            remote,
            out,
            running: Mutex::default(),
            session: Mutex::default(),
            listening: Mutex::default(),
            bindings: Mutex::default(),
        }
    }

    pub(super) fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Takes what was read. Returns when the next line may be read.
    pub(super) async fn take(self: &Arc<Self>, read: pipe::Read, tasks: &mut JoinSet<()>) {
        while tasks.try_join_next().is_some() {}
        let line = match read {
            pipe::Read::TooLong => {
                let words = format!("Invalid request: the line is longer than {} bytes", pipe::LINE_BYTES_MAX);
                return self.say(line::error(None, error::INVALID_REQUEST, &words, None)).await;
            }
            pipe::Read::Line(bytes) => match Line::parse(bytes) {
                Ok(line) => line,
                Err(Malformed { id, code, words }) => {
                    return self.say(line::error(id.as_ref(), code, &words, None)).await;
                }
            },
        };
        match line.kind.clone() {
            Kind::Request { id, method } => self.request(line, id, &method, tasks).await,
            Kind::Notification { method } => match line.cancels() {
                Some(id) => self.cancel(line, &id, tasks),
                None => self.notify(line, &method).await,
            },
            // In order with notifications: the server may go on only when it has them.
            Kind::Response => self.notify(line, "response").await,
        }
    }

    async fn request(self: &Arc<Self>, line: Line, id: Id, method: &str, tasks: &mut JoinSet<()>) {
        let (era, first) = (line.era(), method == "initialize");
        let open_ended = method == "subscriptions/listen";
        let refusal = {
            let mut running = lock(&self.running);
            if running.contains_key(&id) {
                Some("Invalid request: a request with this id is running")
            } else if running.len() >= RUNNING_MAX {
                Some("too many requests are running; retry when one has ended")
            } else {
                let (relay, key) = (self.clone(), id.clone());
                let task = tasks.spawn(async move { relay.run(line, key, era).await });
                running.insert(id.clone(), Running { task, era, open_ended });
                None
            }
        };
        if let Some(words) = refusal {
            return self.say(Failure::refused(words).line(Some(&id))).await;
        }
        if first {
            // Everything after it belongs to the session that it begins.
            let answered =
                async { while lock(&self.running).contains_key(&id) && tasks.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(INITIALIZE_TIMEOUT, answered).await;
        }
    }

    async fn run(self: Arc<Self>, line: Line, id: Id, era: Era) {
        let answer = self.exchange(&line, &id, era).await.unwrap_or_else(|failure| failure.line(Some(&id)));
        // First, so that the client may use the id again as soon as it has the answer.
        lock(&self.running).remove(&id);
        self.say(answer).await;
    }

    /// The answer to a request. What comes before it on the same stream is passed on.
    async fn exchange(self: &Arc<Self>, line: &Line, id: &Id, era: Era) -> Result<Bytes, Failure> {
        let initialize = era == Era::Legacy && line.method() == Some("initialize");
        if initialize {
            self.forget_session();
        }
        let session = lock(&self.session).clone().filter(|_| era == Era::Legacy);
        let headers = self.headers(line, era, session.as_ref());
        let posted = self.remote.post(line.bytes.clone(), headers).await;
        let response = self.accepted(posted, session.as_ref()).await?;
        let session_id = legacy::session_id(response.headers()).cloned();
        let answer = if Events::are_in(&response) {
            self.events(response, id, era, session.as_ref()).await?
        } else if answer::media_type(&response).as_deref() == Some("application/json") {
            let body = answer::body(response, answer::MESSAGE_BYTES_MAX).await;
            let body = body.map_err(|words| Failure::transport(&words))?;
            match Incoming::read(&body) {
                Ok(Incoming::Response { id: Some(got), .. }) if got.same(id) => body,
                _ => return Err(Failure::protocol("the body does not answer this request")),
            }
        } else {
            return Err(Failure::protocol("it is neither JSON nor an event stream"));
        };
        let answer = line::one_line(&answer).ok_or_else(|| Failure::protocol("it is no JSON"))?;
        if initialize && let Some(begun) = Session::begun(session_id.as_ref(), &answer) {
            *lock(&self.session) = Some(begun);
        }
        if era == Era::Modern && line.method() == Some("tools/list") {
            return Ok(self.learn(line, answer));
        }
        Ok(answer)
    }

    /// Messages until the answer. A legacy stream that ends early is taken up after its last event.
    async fn events(&self, response: Response, id: &Id, era: Era, session: Option<&Session>) -> Result<Bytes, Failure> {
        let mut events = Events::of(response);
        let (mut last_id, mut fruitless) = (None, 0);
        loop {
            let why = match events.next().await {
                Spoken::Message(data) => {
                    fruitless = 0;
                    match Incoming::read(&data) {
                        Ok(Incoming::Response { id: Some(got), .. }) if got.same(id) => return Ok(data),
                        Ok(Incoming::Notification { .. }) => self.pass(&data).await,
                        Ok(Incoming::Request { .. }) if era == Era::Legacy => self.pass(&data).await,
                        // SPEC: 2026-07-28 streamable-http: no requests on response streams.
                        Ok(_) | Err(_) => tracing::warn!("an event that answers nothing was dropped"),
                    }
                    continue;
                }
                Spoken::Other => continue,
                Spoken::Broken(words) => words,
                Spoken::End => "the stream ended without an answer".to_owned(),
            };
            last_id = events.last_id().map(str::to_owned).or(last_id);
            let (Some(session), Some(after)) = (session, last_id.as_deref()) else {
                return Err(Failure::transport(&why));
            };
            if fruitless >= RESUMES_MAX {
                return Err(Failure::transport(&why));
            }
            fruitless += 1;
            tokio::time::sleep(events.retry().unwrap_or(RESUME_PAUSE)).await;
            let resumed = self.remote.listen(session.headers(), Some(after)).await;
            let resumed = self.accepted(resumed, Some(session)).await?;
            if !Events::are_in(&resumed) {
                return Err(Failure::protocol("a lost stream cannot be taken up again"));
            }
            events = Events::of(resumed);
        }
    }

    /// Only a good status goes on; everything else becomes words.
    async fn accepted(&self, sent: Result<Response, String>, session: Option<&Session>) -> Result<Response, Failure> {
        let response = sent.map_err(|words| Failure::transport(&words))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status == StatusCode::NOT_FOUND && session.is_some_and(|session| session.id.is_some()) {
            let mut held = lock(&self.session);
            if held.as_ref() == session {
                *held = None;
            }
            return Err(Failure::session_lost());
        }
        let headers = response.headers().clone();
        let body = answer::body(response, answer::ERROR_BYTES_MAX).await.unwrap_or_default();
        Err(Failure::of(status, &headers, &body, self.remote.has_bearer()))
    }

    async fn notify(self: &Arc<Self>, line: Line, what: &str) {
        let era = line.era();
        let session = lock(&self.session).clone().filter(|_| era == Era::Legacy);
        if era == Era::Legacy && session.is_none() {
            // SPEC: 2026-07-28 streamable-http: the modern era has neither answers nor notifications from the client.
            return tracing::info!(what, "outside of a session there is nobody to tell");
        }
        let headers = self.headers(&line, era, session.as_ref());
        let sent = async {
            let posted = self.remote.post(line.bytes.clone(), headers).await;
            self.accepted(posted, session.as_ref()).await.map(drop)
        };
        let sent = tokio::time::timeout(NOTIFY_TIMEOUT, sent).await;
        match sent.unwrap_or_else(|_| Err(Failure::transport("no answer in time"))) {
            Err(failure) => tracing::warn!(what, "the server did not take it: {}", failure.words()),
            Ok(_) => {
                if let (Some(session), "notifications/initialized") = (session, what) {
                    let task = tokio::spawn(legacy::listen(self.clone(), session)).abort_handle();
                    if let Some(before) = lock(&self.listening).replace(task) {
                        before.abort();
                    }
                }
            }
        }
    }

    /// The client wants no answer any more. In the modern era closing the stream says so; in the legacy era it must be told.
    fn cancel(self: &Arc<Self>, line: Line, id: &Id, tasks: &mut JoinSet<()>) {
        let Some(running) = lock(&self.running).remove(id) else { return };
        if running.era == Era::Modern {
            return running.task.abort();
        }
        let relay = self.clone();
        tasks.spawn(async move {
            relay.notify(line, "notifications/cancelled").await;
            running.task.abort();
        });
    }

    fn headers(&self, line: &Line, era: Era, session: Option<&Session>) -> Vec<(HeaderName, HeaderValue)> {
        if era == Era::Legacy {
            // Before there is a session, the body of `initialize` alone names a version.
            return session.map(Session::headers).unwrap_or_default();
        }
        let bindings = lock(&self.bindings);
        let bindings = match (line.method(), line.name()) {
            (Some("tools/call"), Some(name)) => bindings.get(name).map(Vec::as_slice).unwrap_or_default(),
            _ => &[],
        };
        mcp::mirror(line.version(), line.method(), line.name(), line.params.get("arguments"), bindings)
    }

    /// Remembers which arguments the listed tools want mirrored, and drops tools that cannot be called (SEP-2243).
    fn learn(&self, line: &Line, answer: Bytes) -> Bytes {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Tool {
            name: String,
            #[serde(default)]
            input_schema: Value,
        }
        let Ok(page) = Page::parse(ListKind::Tools, &answer) else { return answer };
        let mut known = lock(&self.bindings);
        if line.params.get("cursor").is_none() {
            known.clear();
        }
        let mut keep = Vec::with_capacity(page.entries.len());
        for entry in &page.entries {
            // What is odd in other ways is the client's to judge.
            let Ok(tool) = serde_json::from_slice::<Tool>(&entry.wire) else {
                keep.push(true);
                continue;
            };
            let bindings = mcp::bindings(&tool.input_schema);
            if let Err(why) = &bindings {
                tracing::warn!(tool = tool.name, "is left out of the list: {why}");
            }
            keep.push(bindings.is_ok());
            if let Some(bindings) = bindings.ok().filter(|bindings| !bindings.is_empty() && known.len() < TOOLS_MAX) {
                known.insert(tool.name, bindings);
            }
        }
        if keep.iter().all(|keep| *keep) { answer } else { page.keep(&keep) }
    }

    /// A message of the server, as one line.
    pub(super) async fn pass(&self, message: &Bytes) {
        match line::one_line(message) {
            Some(line) => self.say(line).await,
            None => tracing::warn!("a message was no JSON"),
        }
    }

    async fn say(&self, line: Bytes) {
        // Nobody reads any more: the main loop ends by itself.
        let _ = self.out.send(Some(line)).await;
    }

    fn forget_session(&self) -> Option<Session> {
        if let Some(listening) = lock(&self.listening).take() {
            listening.abort();
        }
        lock(&self.session).take()
    }

    /// Requests that wait for news end now; the others may be waited for.
    pub(super) fn end_open_ended(&self) {
        lock(&self.running).values().filter(|running| running.open_ended).for_each(|running| running.task.abort());
    }

    /// Says goodbye: the session ends at the server too.
    pub(super) async fn close(&self) {
        if let Some(session) = self.forget_session().filter(|session| session.id.is_some()) {
            match tokio::time::timeout(END_TIMEOUT, self.remote.end(session.headers())).await {
                Ok(Ok(response)) => tracing::debug!(status = response.status().as_u16(), "the session is ended"),
                Ok(Err(words)) => tracing::info!("the session could not be ended: {words}"),
                Err(_) => tracing::info!("the session could not be ended in time"),
            }
        }
        let _ = self.out.send(None).await;
    }
}
