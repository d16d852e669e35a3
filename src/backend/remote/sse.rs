//! HTTP+SSE of MCP 2024-11-05 as upstream: one event stream per legacy session, and a POST for each message to it.

mod endpoint;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use http::HeaderName;
use http::HeaderValue;
use pingora::upstreams::peer::HttpPeer;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::watch;

use super::Ask;
use super::Blame;
use super::Config;
use super::Endpoint;
use super::Invalid;
use super::Reach;
use super::Sse;
use super::channel;
use super::channel::Desk;
use super::http::AGENT;
use super::http::Composed;
use super::http::WRITE_TIMEOUT;
use super::http::check;
use super::http::server_name;
use super::is_error;
use super::left;
use super::pump::Failure;
use super::pump::Pump;
use super::pump::Response;
use super::replica::Connecting;
use super::replica::Replica;
use super::replica::Replicas;
use super::tls;
use crate::backend::Answer;
use crate::backend::Content;
use crate::backend::Error;
use crate::catalog::Operation;
use crate::credentials::Credential;
use crate::limits::Gate;
use crate::limits::Lines;
use crate::limits::Pass;
use crate::mcp::Era;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::sse::Event;
use crate::secret::Secret;

/// Idle connections for messages are closed after this: shorter than what servers commonly keep them for.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A server may hold the acknowledgement of a message back until it has worked on it, but not for ever.
const POST_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// An `initialize` that is not answered within this never will be.
const GREETING_TIMEOUT: Duration = Duration::from_secs(60);

/// Words of our own on their way to the server.
const ASIDES_MAX: usize = 64;

/// Events without data that may come before the one that names the endpoint.
const EMPTY_EVENTS_MAX: usize = 10;

/// Sessions that nobody uses are looked for at least so often.
const TICK_MAX: Duration = Duration::from_secs(60);

pub(super) struct Upstream(Arc<Inner>);

struct Inner {
    config: Arc<Config>,
    blame: Blame,
    pump: Arc<Pump>,
    /// The one place that sessions are opened at.
    replicas: Replicas,
    idle_timeout: Duration,
    streams_max: usize,
    streams: Arc<Semaphore>,
    posts: Arc<Gate>,
    sessions: Mutex<HashMap<Arc<str>, Arc<Line>>>,
    stopped: AtomicBool,
}

/// The header that opens the upstream.
#[derive(Clone)]
struct Header {
    field: Option<(HeaderName, Secret)>,
    /// One caller's own: what the server wants of it is for them to know.
    personal: bool,
}

/// An open event stream, and where the messages to its session go.
struct Line {
    desk: Arc<Desk>,
    /// The very address that holds the session.
    peer: HttpPeer,
    endpoint: Endpoint,
    /// `true`: it is to end.
    ending: watch::Sender<bool>,
    /// For words of our own: what the last caller opened it with.
    header: Mutex<Header>,
}

impl Upstream {
    pub(super) fn new(config: &Arc<Config>, sse: &Sse) -> Result<Upstream, Invalid> {
        let blame = Blame(config.name.clone());
        check(&sse.endpoint, &blame)?;
        // Each session is a connection of its own beside those that take messages.
        let connector = tls::connector(&sse.tls, sse.connections_max, &blame)?;
        let connecting = Connecting {
            connect_timeout: config.connect_timeout,
            write_timeout: WRITE_TIMEOUT,
            idle_timeout: POOL_IDLE_TIMEOUT,
        };
        let sni = server_name(&sse.endpoint, &sse.tls);
        let group_key = tls::group_key(&sse.tls, &sni, &blame)?;
        let replica = Replica::new(0, sse.endpoint.clone(), sni, group_key, connecting);
        let permits = sse.connections_max.clamp(1, Semaphore::MAX_PERMITS);
        Ok(Upstream(Arc::new(Inner {
            config: config.clone(),
            blame,
            pump: Arc::new(Pump::new(connector, WRITE_TIMEOUT, POOL_IDLE_TIMEOUT)),
            replicas: Replicas::new(vec![Arc::new(replica)], None),
            idle_timeout: sse.idle_timeout,
            streams_max: permits,
            streams: Arc::new(Semaphore::new(permits)),
            posts: Gate::new(permits, Lines::UNBOUNDED),
            sessions: Mutex::default(),
            stopped: AtomicBool::new(false),
        })))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.0.end_all();
    }
}

#[async_trait]
impl Reach for Upstream {
    async fn ask(&self, ask: Ask<'_>, credential: &Credential, deadline: Instant) -> Result<Answer, Error> {
        let header = Header { field: credential.header().cloned(), personal: credential.is_personal() };
        let work = async {
            match ask.operation {
                Operation::EndSession => self.0.end_session(ask.session),
                Operation::Post(message) => self.0.post(message, &ask, header).await,
                Operation::Stream { .. } => self.0.stream(ask.session),
            }
        };
        pingora::time::timeout(left(deadline), work).await.unwrap_or_else(|_| Err(self.0.blame.timeout()))
    }

    fn healthy(&self) -> bool {
        !self.0.stopped.load(Ordering::Relaxed) && self.0.replicas.healthy()
    }

    async fn stop(&self) {
        self.0.stopped.store(true, Ordering::Relaxed);
        self.0.end_all();
    }
}

impl Inner {
    fn sessions(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Line>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_all(&self) {
        let sessions = std::mem::take(&mut *self.sessions());
        sessions.into_values().for_each(|line| line.end());
    }

    fn home(&self, session: &str) -> Result<Arc<Line>, Error> {
        self.sessions().get(session).cloned().ok_or_else(|| self.blame.session_lost())
    }

    fn end_session(&self, session: Option<&str>) -> Result<Answer, Error> {
        let line =
            session.and_then(|session| self.sessions().remove(session)).ok_or_else(|| self.blame.session_lost())?;
        line.end();
        Ok(Answer::empty(200))
    }

    fn stream(&self, session: Option<&str>) -> Result<Answer, Error> {
        let Some(session) = session else {
            return Ok(Answer::empty(405));
        };
        let content = self.home(session)?.desk.stream(session)?;
        Ok(Answer { status: 200, session: None, content })
    }

    async fn post(self: &Arc<Self>, message: &Message, ask: &Ask<'_>, header: Header) -> Result<Answer, Error> {
        match (message.era, ask.session) {
            (Era::Modern, _) => Err(self.blame.protocol("it speaks HTTP+SSE, which knows the legacy era only")),
            (Era::Legacy, Some(session)) => {
                let line = self.home(session)?;
                *line.header.lock().unwrap_or_else(PoisonError::into_inner) = header.clone();
                self.send(&line, message, session, header, ask).await
            }
            (Era::Legacy, None) if message.method == Some(Method::Initialize) => {
                self.begin_session(message, header, ask).await
            }
            // SPEC: lifecycle: nothing but `initialize` comes before the session.
            (Era::Legacy, None) => Err(self.blame.session_lost()),
        }
    }

    async fn send(
        self: &Arc<Self>,
        line: &Arc<Line>,
        message: &Message,
        session: &str,
        header: Header,
        ask: &Ask<'_>,
    ) -> Result<Answer, Error> {
        // Waited for by the caller itself: a caller who leaves while there is no place has asked nothing.
        let slot = self.slot(ask.share).await?;
        if !message.is_request() {
            ask.reach();
            if let Some(words) = line.desk.note(message, Some(session)) {
                self.deliver(line, words, header, slot).await?;
            }
            return Ok(Answer::empty(202));
        }
        let waiting = line.desk.register(message, Some(session))?;
        ask.reach();
        // The server may send what belongs to the request before it acknowledges it; and a caller who leaves does not
        // take the request back.
        let (inner, to, words) = (self.clone(), line.clone(), waiting.line(message));
        let mut posting = tokio::spawn(async move { inner.deliver(&to, words, header, slot).await });
        let mut content = std::pin::pin!(waiting.content(self.config.read_timeout));
        let content = tokio::select! {
            biased;
            content = &mut content => content?,
            posted = &mut posting => {
                posted.unwrap_or_else(|_| Err(self.blame.unavailable("it is being stopped")))?;
                content.await?
            }
        };
        Ok(Answer { status: 200, session: None, content })
    }

    /// Opens a stream, and over it a session that is known to nobody until `initialize` was answered well.
    async fn begin_session(self: &Arc<Self>, hello: &Message, header: Header, ask: &Ask<'_>) -> Result<Answer, Error> {
        let mut newborn = Newborn(Some(self.open(header.clone(), ask).await?));
        let Some(line) = newborn.0.clone() else {
            return Err(self.blame.unavailable("the stream is gone"));
        };
        let id = channel::mint(&self.blame)?;
        let newcomer = line.desk.join(id.clone(), ask.owner, hello)?;
        let (inner, to, slot) = (self.clone(), line.clone(), self.slot(ask.share).await?);
        let body = line.desk.greet(hello, |words| async move { inner.deliver(&to, words, header, slot).await }).await?;
        if is_error(&body) {
            return Ok(Answer { status: 200, session: None, content: Content::Json(body) });
        }
        newborn.0 = None;
        newcomer.stay();
        let mut sessions = self.sessions();
        // It may have ended before it was known here; then nobody else removes it.
        if line.desk.is_closed() || self.stopped.load(Ordering::Relaxed) {
            drop(sessions);
            line.end();
        } else {
            sessions.insert(id.clone(), line);
        }
        Ok(Answer { status: 200, session: Some(id.to_string()), content: Content::Json(body) })
    }

    fn compose(&self, verb: &'static str, body: Bytes, header: &Header) -> Result<Composed, Error> {
        let mut request = Composed { verb, fields: Vec::with_capacity(512), body };
        request.field("User-Agent", &HeaderValue::from_static(AGENT));
        request.field("Accept-Encoding", &HeaderValue::from_static("identity"));
        if verb == "POST" {
            request.field("Content-Type", &HeaderValue::from_static("application/json"));
            request.field("Accept", &HeaderValue::from_static("application/json"));
            let length = HeaderValue::from(request.body.len());
            request.field("Content-Length", &length);
        } else {
            request.field("Accept", &HeaderValue::from_static("text/event-stream"));
            request.field("Cache-Control", &HeaderValue::from_static("no-cache"));
        }
        if let Some((name, secret)) = &header.field {
            let value = HeaderValue::from_str(secret.expose())
                .map_err(|_| self.blame.unavailable("the credential is no header value"))?;
            request.field(name.as_str(), &value);
        }
        Ok(request)
    }

    /// Opens the event stream and reads where messages go.
    async fn open(self: &Arc<Self>, header: Header, ask: &Ask<'_>) -> Result<Arc<Line>, Error> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(self.blame.unavailable("it is being stopped"));
        }
        let full = || self.blame.unavailable(format!("{} sessions run already", self.streams_max));
        let slot = self.streams.clone().try_acquire_owned().map_err(|_| full())?;
        let Some(replica) = self.replicas.all().first() else {
            return Err(self.blame.unavailable("it has no endpoint"));
        };
        let request = self.compose("GET", Bytes::new(), &header)?;
        ask.reach();
        let (peer, response) = self.connect(replica, &request).await?;
        self.judge(&response, header.personal)?;
        // Silence is natural here: it is the answers that are waited for.
        let mut events = response.events(self.config.event_bytes_max, None, self.blame.clone(), slot);
        let said = self.introduction(&mut events).await?;
        let endpoint = endpoint::resolve(&replica.endpoint, &said).map_err(|what| self.blame.protocol(what))?;
        let (asides, to_say) = mpsc::channel(ASIDES_MAX);
        let desk = Desk::new(Era::Legacy, self.blame.clone(), self.config.answer_bytes_max, GREETING_TIMEOUT, asides);
        let (ending, header) = (watch::Sender::new(false), Mutex::new(header));
        let line = Arc::new(Line { desk: Arc::new(desk), peer, endpoint, ending, header });
        tokio::spawn(listen(Arc::downgrade(self), line.clone(), events, to_say, self.idle_timeout));
        Ok(line)
    }

    /// A connection of its own, to the first address that takes it.
    async fn connect(&self, replica: &Replica, request: &Composed) -> Result<(HttpPeer, Response), Error> {
        let head = request.head(&replica.endpoint);
        let mut last = String::from("it has no address");
        let peers = replica.peers().await.unwrap_or_else(|what| {
            last = what;
            Arc::default()
        });
        for (place, peer) in peers.iter().enumerate() {
            match self.pump.exchange(peer, &head, &request.body, true).await {
                Ok(response) => {
                    replica.prefer(place);
                    self.replicas.succeeded(replica);
                    return Ok((peer.clone(), response));
                }
                Err(Failure::Connect(what)) => last = what,
                Err(Failure::Stale { what, .. } | Failure::Broken(what)) => return Err(self.blame.unavailable(what)),
            }
        }
        replica.forget_addresses();
        self.replicas.failed(replica);
        Err(self.blame.unavailable(format!("`{}`: {last}", replica.endpoint.authority)))
    }

    /// Is it an event stream?
    fn judge(&self, response: &Response, personal: bool) -> Result<(), Error> {
        let header = |name: &str| {
            let ambiguous = |()| self.blame.protocol(format!("the header `{name}` is ambiguous"));
            Ok::<_, Error>(response.header(name).map_err(ambiguous)?.map(str::to_ascii_lowercase))
        };
        match response.status {
            200..=299 => {}
            300..=399 => return Err(self.blame.protocol("a redirect; redirects are never followed")),
            status @ (401 | 403) => {
                let claims = if personal { response.wanted_claims() } else { None };
                return Err(self.blame.refused(status, claims));
            }
            status @ 400..=499 => {
                return Err(self.blame.protocol(format!("status {status} in place of an event stream")));
            }
            status => return Err(self.blame.unavailable(format!("status {status}"))),
        }
        if header("content-encoding")?.is_some_and(|encoding| encoding != "identity") {
            return Err(self.blame.protocol("the stream is encoded although identity was asked for"));
        }
        let kind = header("content-type")?.unwrap_or_default();
        match kind.split(';').next().map(str::trim) {
            Some("text/event-stream") => Ok(()),
            _ => Err(self.blame.protocol("what it sends is no event stream")),
        }
    }

    /// SPEC: 2024-11-05 transports: the first event names the endpoint.
    async fn introduction(&self, events: &mut BoxStream<'static, Result<Event, Error>>) -> Result<String, Error> {
        for _ in 0..EMPTY_EVENTS_MAX {
            let Some(event) = events.next().await else {
                break;
            };
            let event = event?;
            match (event.name.as_deref(), event.data) {
                (_, None) => {}
                (Some("endpoint"), Some(data)) => {
                    return String::from_utf8(data.to_vec())
                        .map_err(|_| self.blame.protocol("its endpoint is not UTF-8"));
                }
                (_, Some(_)) => break,
            }
        }
        Err(self.blame.protocol("its event stream does not begin with an endpoint"))
    }

    /// A place for one message on its way.
    async fn slot(&self, share: &str) -> Result<Pass, Error> {
        self.posts.enter(share, 1).await.map_err(|_| self.blame.unavailable("too many wait for it"))
    }

    /// Posts one message. The answer, if it is a request, comes over the stream.
    async fn deliver(&self, line: &Line, words: Bytes, header: Header, _slot: Pass) -> Result<(), Error> {
        let end = words.len() - usize::from(words.ends_with(b"\n"));
        let request = self.compose("POST", words.slice(..end), &header)?;
        let head = request.head(&line.endpoint);
        let work = async {
            let response = match self.pump.exchange(&line.peer, &head, &request.body, false).await {
                // The message never arrived whole: once more, over a connection of its own.
                Err(Failure::Stale { sent: false, .. }) => {
                    self.pump.exchange(&line.peer, &head, &request.body, true).await
                }
                outcome => outcome,
            };
            let response = response.map_err(|failure| match failure {
                Failure::Connect(what) | Failure::Stale { what, .. } | Failure::Broken(what) => {
                    self.blame.unavailable(what)
                }
            })?;
            let status = response.status;
            let claims = if header.personal { response.wanted_claims() } else { None };
            response.discard().await;
            Ok((status, claims))
        };
        let outcome = pingora::time::timeout(POST_TIMEOUT, work).await;
        let (status, claims) = outcome.unwrap_or_else(|_| Err(self.blame.timeout()))?;
        match status {
            200..=299 => Ok(()),
            300..=399 => Err(self.blame.protocol(format!("a redirect ({status}); redirects are never followed"))),
            401 | 403 => Err(self.blame.refused(status, claims)),
            404 | 410 => {
                line.end();
                Err(self.blame.session_lost())
            }
            400..=499 => Err(self.blame.protocol(format!("a message was refused with status {status}"))),
            _ => Err(self.blame.unavailable(format!("status {status}"))),
        }
    }
}

impl Line {
    fn end(&self) {
        self.ending.send_replace(true);
    }
}

/// A stream whose session is not open yet: ended unless it was taken out.
struct Newborn(Option<Arc<Line>>);

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(line) = self.0.take() {
            line.end();
        }
    }
}

/// Hears the stream to its end. Dropping the stream closes its connection.
async fn listen(
    inner: Weak<Inner>,
    line: Arc<Line>,
    mut events: BoxStream<'static, Result<Event, Error>>,
    to_say: mpsc::Receiver<Bytes>,
    idle_timeout: Duration,
) {
    let mut ending = line.ending.subscribe();
    let saying = tokio::spawn(say(inner.clone(), line.clone(), to_say));
    let mut idle = Duration::ZERO;
    let error = loop {
        let rest = idle_timeout.saturating_sub(idle).clamp(Duration::from_millis(10), TICK_MAX);
        tokio::select! {
            biased;
            // The sender lives as long as the line.
            _ = ending.wait_for(|ending| *ending) => break line.desk.gone(),
            event = events.next() => match event {
                Some(Ok(event)) => {
                    if let (None | Some("message"), Some(data)) = (event.name.as_deref(), &event.data) {
                        line.desk.take(data);
                    }
                }
                Some(Err(error)) => break error,
                None => break Error::Unavailable { backend: name(&inner), what: "the event stream ended".into() },
            },
            () = tokio::time::sleep(rest) => {
                idle = line.desk.idle(idle_timeout).0;
                if idle >= idle_timeout {
                    line.end();
                }
            }
        }
    };
    drop(events);
    saying.abort();
    line.desk.close(&error);
    if let Some(inner) = inner.upgrade() {
        inner.sessions().retain(|_, other| !Arc::ptr_eq(other, &line));
    }
}

fn name(inner: &Weak<Inner>) -> Arc<str> {
    inner.upgrade().map(|inner| inner.blame.0.clone()).unwrap_or_default()
}

/// Posts our own words, one after the other.
async fn say(inner: Weak<Inner>, line: Arc<Line>, mut to_say: mpsc::Receiver<Bytes>) {
    while let Some(words) = to_say.recv().await {
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let header = line.header.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sent = async { inner.deliver(&line, words, header, inner.slot("").await?).await };
        if let Err(error) = sent.await {
            tracing::debug!(%error, "a word of ours did not arrive");
        }
    }
}
