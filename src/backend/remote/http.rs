//! Streamable HTTP upstreams: the request written from nothing, the attempts, and what each kind of answer means.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use http::HeaderValue;
use tokio::task::JoinHandle;

use super::Ask;
use super::Blame;
use super::ClientTls;
use super::Config;
use super::Endpoint;
use super::Health;
use super::Http;
use super::Invalid;
use super::Place;
use super::Reach;
use super::is_error;
use super::left;
use super::pump::Failure;
use super::pump::Pump;
use super::pump::Response;
use super::pump::Unread;
use super::replica::Connecting;
use super::replica::InFlight;
use super::replica::Replica;
use super::replica::Replicas;
use super::replica::bare;
use super::tls;
use crate::backend::Answer;
use crate::backend::Content;
use crate::backend::Error;
use crate::catalog::Operation;
use crate::credentials;
use crate::credentials::Credential;
use crate::limits::Gate;
use crate::limits::Lines;
use crate::limits::Pass;
use crate::mcp;
use crate::mcp::Era;
use crate::mcp::Method;

/// How long an upstream may take to accept written bytes.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// An error body larger than this is no JSON-RPC error.
const ERROR_BYTES_MAX: usize = 1024 * 1024;

const SESSION_BYTES_MAX: usize = 1024;

pub(super) const AGENT: &str = concat!("wardgate/", env!("CARGO_PKG_VERSION"));

pub(super) struct Upstream(Arc<Inner>);

struct Inner {
    config: Arc<Config>,
    blame: Blame,
    pump: Arc<Pump>,
    replicas: Replicas,
    health: Option<Health>,
    /// Who waits for a connection waits in the line of their tenant, until their deadline.
    slots: Arc<Gate>,
    checks: Mutex<Option<JoinHandle<()>>>,
}

/// Held as long as an exchange or its stream lives.
struct Lease {
    _slot: Pass,
    _in_flight: InFlight,
}

impl Upstream {
    pub(super) fn new(config: &Arc<Config>, http: &Http) -> Result<Upstream, Invalid> {
        let blame = Blame(config.name.clone());
        if http.endpoints.is_empty() {
            return Err(blame.invalid("it has no endpoint"));
        }
        let connector = tls::connector(&http.tls, http.connections_max, &blame)?;
        let connecting = Connecting {
            connect_timeout: config.connect_timeout,
            write_timeout: WRITE_TIMEOUT,
            idle_timeout: http.idle_timeout,
        };
        let replica = |(index, endpoint): (usize, &Endpoint)| {
            check(endpoint, &blame)?;
            let sni = server_name(endpoint, &http.tls);
            let group_key = tls::group_key(&http.tls, &sni, &blame)?;
            Ok(Arc::new(Replica::new(index, endpoint.clone(), sni, group_key, connecting.clone())))
        };
        let replicas = http.endpoints.iter().enumerate().map(replica).collect::<Result<Vec<_>, Invalid>>()?;
        Ok(Upstream(Arc::new(Inner {
            config: config.clone(),
            pump: Arc::new(Pump::new(connector, WRITE_TIMEOUT, http.idle_timeout)),
            replicas: Replicas::new(replicas, http.health),
            health: http.health,
            slots: Gate::new(http.connections_max, Lines::UNBOUNDED),
            checks: Mutex::new(None),
            blame,
        })))
    }
}

/// Authority and path are written as they are: nothing in them may end a line or a word.
pub(super) fn check(endpoint: &Endpoint, blame: &Blame) -> Result<(), Invalid> {
    let visible = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if !visible(&endpoint.authority) {
        return Err(blame.invalid(format!("the authority `{}` is not usable", endpoint.authority.escape_debug())));
    }
    if !visible(&endpoint.path) || !endpoint.path.starts_with('/') {
        return Err(blame.invalid(format!("the path `{}` is not usable", endpoint.path.escape_debug())));
    }
    Ok(())
}

pub(super) fn server_name(endpoint: &Endpoint, tls: &ClientTls) -> String {
    match (&tls.sni, &endpoint.place) {
        (Some(sni), _) => sni.clone(),
        (None, Place::Tcp { host, .. }) => bare(host).to_owned(),
        (None, Place::Unix(_)) => {
            let authority = endpoint.authority.as_str();
            let host = authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
            bare(host.map_or(authority, |(host, _)| host)).to_owned()
        }
    }
}

#[async_trait]
impl Reach for Upstream {
    async fn ask(&self, ask: Ask<'_>, credential: &Credential, deadline: Instant) -> Result<Answer, Error> {
        // In its place before it is wrapped: a wrapping would move it, and it is large.
        let work = std::pin::pin!(self.0.ask(&ask, credential));
        pingora::time::timeout(left(deadline), work).await.unwrap_or_else(|_| Err(self.0.blame.timeout()))
    }

    fn healthy(&self) -> bool {
        self.0.replicas.healthy()
    }

    fn start(&self) {
        let Some(health) = self.0.health else {
            return;
        };
        let task = tokio::spawn(check_forever(Arc::downgrade(&self.0), health));
        let before = self.0.checks.lock().unwrap_or_else(PoisonError::into_inner).replace(task);
        if let Some(before) = before {
            before.abort();
        }
    }

    async fn stop(&self) {
        let task = self.0.checks.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(task) = self.checks.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

/// Asks every replica at every interval, until the backend is gone.
async fn check_forever(inner: Weak<Inner>, health: Health) {
    let mut ticks = tokio::time::interval(health.interval.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        join_all(inner.replicas.all().iter().map(|replica| inner.check(replica, health))).await;
    }
}

/// A request without the parts that differ between replicas.
pub(super) struct Composed {
    pub(super) verb: &'static str,
    pub(super) fields: Vec<u8>,
    pub(super) body: Bytes,
}

impl Composed {
    pub(super) fn head(&self, endpoint: &Endpoint) -> Vec<u8> {
        let mut head = Vec::with_capacity(self.fields.len() + endpoint.path.len() + endpoint.authority.len() + 64);
        for part in [self.verb, " ", &endpoint.path, " HTTP/1.1\r\nHost: ", &endpoint.authority, "\r\n"] {
            head.extend_from_slice(part.as_bytes());
        }
        head.extend_from_slice(&self.fields);
        head.extend_from_slice(b"\r\n");
        head
    }

    /// A `HeaderValue` cannot hold a line end, so no value can start a field of its own.
    pub(super) fn field(&mut self, name: &str, value: &HeaderValue) {
        self.fields.extend_from_slice(name.as_bytes());
        self.fields.extend_from_slice(b": ");
        self.fields.extend_from_slice(value.as_bytes());
        self.fields.extend_from_slice(b"\r\n");
    }
}

impl Inner {
    async fn ask(&self, ask: &Ask<'_>, credential: &Credential) -> Result<Answer, Error> {
        let request = self.compose(ask, credential)?;
        let slot = self.slots.enter(ask.share, 1).await.map_err(|_| self.blame.unavailable("too many wait for it"))?;
        ask.reach();
        let (replica, in_flight, response) = self.attempts(ask, &request).await?;
        let lease = Lease { _slot: slot, _in_flight: in_flight };
        let answer = self.read(ask, response, lease, credential.is_personal()).await;
        match (&answer, ask.operation, ask.session) {
            (Ok(answer), _, _) if answer.session.is_some() => {
                self.replicas.remember(answer.session.as_deref().unwrap_or_default(), &replica);
            }
            (Ok(_), Operation::EndSession, Some(session)) | (Err(Error::SessionLost { .. }), _, Some(session)) => {
                self.replicas.forget(session)
            }
            _ => {}
        }
        answer
    }

    /// The request, from nothing but the call: no header of the client is copied.
    fn compose(&self, ask: &Ask<'_>, credential: &Credential) -> Result<Composed, Error> {
        let mut request = match ask.operation {
            Operation::EndSession => Composed { verb: "DELETE", fields: Vec::with_capacity(512), body: Bytes::new() },
            Operation::Post(message) => {
                Composed { verb: "POST", fields: Vec::with_capacity(512), body: message.to_bytes() }
            }
            Operation::Stream { .. } => Composed { verb: "GET", fields: Vec::with_capacity(512), body: Bytes::new() },
        };
        let value = |what: &str, text: &str| {
            HeaderValue::from_str(text).map_err(|_| self.blame.unavailable(format!("{what} is no header value")))
        };
        request.field("User-Agent", &HeaderValue::from_static(AGENT));
        request.field("Accept-Encoding", &HeaderValue::from_static("identity"));
        let mut version = ask.version;
        match ask.operation {
            Operation::Post(message) => {
                request.field("Content-Type", &HeaderValue::from_static("application/json"));
                request.field("Accept", &HeaderValue::from_static("application/json, text/event-stream"));
                let length = HeaderValue::from(request.body.len());
                request.field("Content-Length", &length);
                if message.era == Era::Modern {
                    version = version.or(message.params.version.as_deref());
                    for (name, value) in mcp::mirrored(message, ask.bindings) {
                        request.field(name.as_str(), &value);
                    }
                }
            }
            Operation::Stream { last_event_id } => {
                request.field("Accept", &HeaderValue::from_static("text/event-stream"));
                if let Some(id) = last_event_id {
                    request.field("Last-Event-ID", &value("the last event id", id)?);
                }
            }
            Operation::EndSession => {}
        }
        if let Some(version) = version {
            request.field("MCP-Protocol-Version", &value("the protocol version", version)?);
        }
        if let Some(session) = ask.session {
            request.field("Mcp-Session-Id", &value("the session id", session)?);
        }
        if let Some((name, secret)) = credential.header() {
            request.field(name.as_str(), &value("the credential", secret.expose())?);
        }
        Ok(request)
    }

    /// Asks one replica after the other until one takes the request.
    async fn attempts(&self, ask: &Ask<'_>, request: &Composed) -> Result<(Arc<Replica>, InFlight, Response), Error> {
        let mut tried = Vec::new();
        let mut last = String::from("it has no endpoint");
        while let Some(replica) = self.replicas.choose(ask.session, &tried).cloned() {
            let in_flight = replica.enter();
            let outcome = match self.attempt(&replica, request, false).await {
                // The request never arrived whole, or it may run twice: once more, over a connection of its own.
                Err(Failure::Stale { sent, .. }) if !sent || ask.repeatable => {
                    self.attempt(&replica, request, true).await
                }
                outcome => outcome,
            };
            match outcome {
                Ok(response) => return Ok((replica, in_flight, response)),
                Err(Failure::Connect(what)) => {
                    last = format!("`{}`: {what}", replica.endpoint.authority);
                    tried.push(replica.index);
                }
                Err(Failure::Stale { what, .. } | Failure::Broken(what)) => return Err(self.blame.unavailable(what)),
            }
        }
        Err(self.blame.unavailable(last))
    }

    /// Asks one replica, over the first of its addresses that takes the connection.
    async fn attempt(&self, replica: &Replica, request: &Composed, fresh: bool) -> Result<Response, Failure> {
        let head = request.head(&replica.endpoint);
        let mut last = String::from("it has no address");
        let peers = match replica.peers().await {
            Ok(peers) => peers,
            Err(what) => {
                self.replicas.failed(replica);
                return Err(Failure::Connect(what));
            }
        };
        for (place, peer) in peers.iter().enumerate() {
            match self.pump.exchange(peer, &head, &request.body, fresh).await {
                Err(Failure::Connect(what)) => last = what,
                outcome => {
                    replica.prefer(place);
                    self.replicas.succeeded(replica);
                    return outcome;
                }
            }
        }
        replica.forget_addresses();
        self.replicas.failed(replica);
        Err(Failure::Connect(last))
    }

    /// What the answer means.
    async fn read(&self, ask: &Ask<'_>, response: Response, lease: Lease, personal: bool) -> Result<Answer, Error> {
        let status = response.status;
        let encoding = response
            .header("content-encoding")
            .map_err(|()| self.blame.protocol("the content encoding is ambiguous"))?;
        if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
            return Err(self.blame.protocol("the answer is encoded although identity was asked for"));
        }
        match (status, ask.operation) {
            (200..=299, _) => self.read_success(ask, response, lease).await,
            (300..=399, _) => Err(self.blame.protocol(format!("a redirect ({status}); redirects are never followed"))),
            (401 | 403, _) => {
                let claims = if personal { response.wanted_claims() } else { None };
                response.discard().await;
                Err(self.blame.refused(status, claims))
            }
            (405, Operation::Stream { .. } | Operation::EndSession) => {
                response.discard().await;
                Ok(Answer::empty(405))
            }
            (404, _) if ask.session.is_some() && era(ask) == Era::Legacy => {
                response.discard().await;
                Err(self.blame.session_lost())
            }
            (400..=499, _) => self.read_refusal(response).await,
            _ => {
                response.discard().await;
                Err(self.blame.unavailable(format!("status {status}")))
            }
        }
    }

    async fn read_success(&self, ask: &Ask<'_>, response: Response, lease: Lease) -> Result<Answer, Error> {
        let status = response.status;
        let session = self.session(ask, &response)?;
        let kind =
            response.header("content-type").map_err(|()| self.blame.protocol("the content type is ambiguous"))?;
        let kind = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
        let content = match (ask.operation, kind.as_deref()) {
            (Operation::EndSession, _) => {
                response.discard().await;
                Content::Empty
            }
            (Operation::Post(_), _) if matches!(status, 202 | 204) => {
                response.discard().await;
                Content::Empty
            }
            (_, Some("text/event-stream")) => Content::Events(response.events(
                self.config.event_bytes_max,
                self.config.read_timeout,
                self.blame.clone(),
                lease,
            )),
            (Operation::Post(message), Some("application/json")) => {
                let body = self.body(response, self.config.answer_bytes_max).await?;
                // Some servers acknowledge a notification with 200 and nothing, or with `null`.
                if message.is_request() { Content::Json(body) } else { Content::Empty }
            }
            (Operation::Post(message), None) if !message.is_request() => {
                response.discard().await;
                Content::Empty
            }
            _ => return Err(self.blame.protocol("the content type is neither application/json nor text/event-stream")),
        };
        Ok(Answer { status, session, content })
    }

    /// A client error is passed on if it is a JSON-RPC error; anything else is for nobody's eyes.
    async fn read_refusal(&self, response: Response) -> Result<Answer, Error> {
        let status = response.status;
        let body = response
            .read_all(ERROR_BYTES_MAX.min(self.config.answer_bytes_max), self.config.read_timeout)
            .await
            .unwrap_or_default();
        if is_error(&body) {
            return Ok(Answer { status, session: None, content: Content::Json(body) });
        }
        Err(self.blame.protocol(format!("status {status} without a JSON-RPC error")))
    }

    async fn body(&self, response: Response, bytes_max: usize) -> Result<Bytes, Error> {
        response.read_all(bytes_max, self.config.read_timeout).await.map_err(|unread| match unread {
            Unread::Broken(what) => self.blame.unavailable(format!("the answer broke off: {what}")),
            Unread::Silent => self.blame.timeout(),
            Unread::TooLarge => self.blame.too_large(bytes_max),
        })
    }

    /// A session id that the upstream gives. SPEC: basic/transports (2025-11-25): visible ASCII; only `initialize` makes one.
    fn session(&self, ask: &Ask<'_>, response: &Response) -> Result<Option<String>, Error> {
        let initialize =
            matches!(ask.operation, Operation::Post(message) if message.method == Some(Method::Initialize));
        let bad = || self.blame.protocol("the session id is malformed");
        match response.header("mcp-session-id").map_err(|()| bad())? {
            Some(id) if initialize => {
                let good =
                    !id.is_empty() && id.len() <= SESSION_BYTES_MAX && id.bytes().all(|byte| byte.is_ascii_graphic());
                if good { Ok(Some(id.to_owned())) } else { Err(bad()) }
            }
            _ => Ok(None),
        }
    }

    /// One health check: a connection of its own, and any answer that is not a server error.
    async fn check(&self, replica: &Replica, health: Health) {
        let stream = Operation::Stream { last_event_id: None };
        let ask = Ask {
            operation: &stream,
            session: None,
            version: None,
            bindings: &[],
            repeatable: true,
            owner: "",
            share: "",
            reached: None,
        };
        let Ok(request) = self.compose(&ask, &credentials::own(&self.config.credential)) else {
            return;
        };
        let head = request.head(&replica.endpoint);
        let probe = async {
            let peers = replica.peers().await?;
            let mut last = Err(String::from("it has no address"));
            for peer in peers.iter() {
                last = match self.pump.exchange(peer, &head, &request.body, true).await {
                    Ok(response) if response.status < 500 => return Ok(()),
                    Ok(response) => Err(format!("status {}", response.status)),
                    Err(Failure::Connect(what) | Failure::Broken(what) | Failure::Stale { what, .. }) => Err(what),
                };
            }
            replica.forget_addresses();
            last
        };
        match pingora::time::timeout(health.timeout, probe).await.unwrap_or_else(|_| Err("no answer in time".into())) {
            Ok(()) => self.replicas.succeeded(replica),
            Err(what) => {
                tracing::debug!(backend = %self.config.name, authority = %replica.endpoint.authority, what, "health check failed");
                self.replicas.failed(replica);
            }
        }
    }
}

fn era(ask: &Ask<'_>) -> Era {
    match ask.operation {
        Operation::Post(message) => message.era,
        Operation::EndSession | Operation::Stream { .. } => Era::Legacy,
    }
}
