//! A remote MCP server as a `Backend`: streamable HTTP, HTTP+SSE of 2024-11-05, or a stdio child process.

mod channel;
mod discover;
mod guard;
mod http;
mod outcome;
mod pump;
mod replica;
mod session;
mod speech;
mod sse;
mod stdio;
#[cfg(test)]
mod tests;
mod tls;
mod uplift;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Answer;
use super::Backend;
use super::Error;
use super::breaker;
use crate::catalog::Catalog;
use crate::catalog::Effects;
use crate::catalog::Operation;
use crate::catalog::pins::Pinning;
use crate::catalog::pins::Pins;
use crate::credentials;
use crate::credentials::Credential;
use crate::mcp;
use crate::mcp::Era;
use crate::mcp::Message;
use crate::mcp::list::Entry;
use crate::policy::Permit;
use discover::Shelf;
use guard::Guarded;
use speech::Fit;
use speech::Speech;
use uplift::Limits;
use uplift::Uplift;

#[derive(Clone, Debug)]
pub struct Config {
    pub name: Arc<str>,
    pub transport: Transport,
    /// Which protocol era the upstream speaks; `None`: found out by asking.
    pub era: Option<Era>,
    pub effects: Effects,
    /// The tools as they were reviewed. They decide what is offered, and the effects.
    pub pins: Option<Pinning>,
    pub credential: credentials::Config,
    pub mode: Option<crate::catalog::Mode>,
    /// To connect (TCP and TLS together).
    pub connect_timeout: Duration,
    /// Silence on a running answer or stream. `None`: no bound.
    pub read_timeout: Option<Duration>,
    pub answer_bytes_max: usize,
    pub event_bytes_max: usize,
    /// How long a fetched catalog is taken as the truth before a call makes us ask again.
    pub catalog_ttl: Duration,
    /// When to leave an upstream alone that does not answer. Not for child processes: each has its own pauses.
    pub breaker: Option<breaker::Config>,
}

#[derive(Clone, Debug)]
pub enum Transport {
    Http(Http),
    Sse(Sse),
    Stdio(Stdio),
}

#[derive(Clone, Debug)]
pub struct Http {
    /// One or more replicas of the same server.
    pub endpoints: Vec<Endpoint>,
    pub tls: ClientTls,
    pub health: Option<Health>,
    /// Idle pooled connections are closed after this.
    pub idle_timeout: Duration,
    pub connections_max: usize,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    pub tls: bool,
    /// Sent as `Host`.
    pub authority: String,
    pub place: Place,
    /// Path (and query) of the MCP endpoint.
    pub path: String,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// Host and port; resolved by DNS again when connections fail or every 30 s.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClientTls {
    /// PEM bundle; `None`: the system's roots.
    pub ca: Option<PathBuf>,
    /// PEM certificate chain and key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Name for SNI and verification if it is not the URL's host.
    pub sni: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Health {
    pub interval: Duration,
    pub timeout: Duration,
    /// Consecutive failures until a replica gets no more calls.
    pub unhealthy_after: u32,
    /// Consecutive successes until it gets calls again.
    pub healthy_after: u32,
}

/// An upstream call may run so long, waiting for its client included, and behind the request that began it.
const CALL_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// HTTP+SSE of 2024-11-05. A session is an open stream.
#[derive(Clone, Debug)]
pub struct Sse {
    /// Of the event stream; it names the endpoint for messages itself.
    pub endpoint: Endpoint,
    pub tls: ClientTls,
    /// A session that nobody uses is ended after this.
    pub idle_timeout: Duration,
    /// Sessions at once, and messages on their way at once.
    pub connections_max: usize,
}

#[derive(Clone, Debug)]
pub struct Stdio {
    pub command: Vec<String>,
    pub env: Vec<(String, crate::secret::Secret)>,
    pub directory: Option<PathBuf>,
    /// Who shares a process.
    pub processes: Processes,
    /// Child processes at once.
    pub processes_max: usize,
    /// Of one principal. Without meaning where all share one.
    pub processes_per_principal_max: usize,
    /// A child that was greeted and has answered nothing within this is ended.
    pub start_timeout: Duration,
    /// A child that serves nobody is ended after this.
    pub idle_timeout: Duration,
}

/// Whose a child process is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Processes {
    /// All sessions and modern requests of one principal share one.
    Principal,
    /// Each legacy session has its own; modern requests, which have none, share one per principal.
    Session,
    /// All principals share one.
    Shared,
}

/// Why a configured backend cannot be built. Found at start and at reload, never while a call runs.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("backend `{backend}`: {what}")]
pub struct Invalid {
    pub backend: Arc<str>,
    pub what: String,
}

/// Builds the backend. Reads and checks TLS files; connects to nothing and starts nothing.
///
/// # Errors
/// [`Invalid`], naming the file or the value that is bad.
pub fn new(config: Config) -> Result<Arc<dyn Backend>, Invalid> {
    let config = Arc::new(config);
    Ok(match &config.transport {
        Transport::Http(http) => {
            Arc::new(Remote::new(&config, Arc::new(Guarded::new(http::Upstream::new(&config, http)?, &config))))
        }
        Transport::Sse(sse) => {
            Arc::new(Remote::new(&config, Arc::new(Guarded::new(sse::Upstream::new(&config, sse)?, &config))))
        }
        Transport::Stdio(stdio) => Arc::new(Remote::new(&config, Arc::new(stdio::Upstream::new(&config, stdio)?))),
    })
}

/// What a transport is asked to do: taken from a permitted call, or made by discovery.
struct Ask<'a> {
    operation: &'a Operation,
    /// The upstream's session id.
    session: Option<&'a str>,
    /// `MCP-Protocol-Version`.
    version: Option<&'a str>,
    /// Arguments that are mirrored in headers.
    bindings: &'a [mcp::Binding],
    /// May be sent twice, because it changes nothing or changes it only once.
    repeatable: bool,
    /// The principal's key; empty for the gateway itself.
    owner: &'a str,
    /// In whose line it waits: a tenant's, or the principal's own.
    share: &'a str,
    /// Set when the call has what it needs on our side, such as a connection: before that the upstream was not asked.
    reached: Option<&'a OnceLock<Instant>>,
}

impl<'a> Ask<'a> {
    fn of(permit: &'a Permit) -> Ask<'a> {
        let call = permit.call();
        Ask {
            operation: &call.operation,
            session: call.session.as_ref().map(|session| session.upstream.as_str()),
            version: call.version.as_deref(),
            bindings: &call.decl.headers,
            repeatable: call.repeatable(),
            owner: permit.owner(),
            share: permit.share(),
            reached: None,
        }
    }

    /// From now on it is up to the upstream.
    fn reach(&self) {
        if let Some(reached) = self.reached {
            // The first time counts.
            let _ = reached.set(Instant::now());
        }
    }
}

/// One way to reach an upstream: HTTP, HTTP+SSE or a child process.
#[async_trait]
trait Reach: Send + Sync + 'static {
    async fn ask(&self, ask: Ask<'_>, credential: &Credential, deadline: Instant) -> Result<Answer, Error>;

    fn healthy(&self) -> bool;

    fn start(&self) {}

    async fn stop(&self) {}
}

/// A remote backend over any transport.
struct Remote {
    config: Arc<Config>,
    upstream: Arc<dyn Reach>,
    speech: Arc<Speech>,
    shelf: Arc<Shelf>,
    uplift: Uplift,
}

impl Remote {
    fn new(config: &Arc<Config>, upstream: Arc<dyn Reach>) -> Remote {
        Remote::limited(config, upstream, Limits::of(&config.transport))
    }

    fn limited(config: &Arc<Config>, upstream: Arc<dyn Reach>, limits: Limits) -> Remote {
        let speech = Arc::new(Speech::new(config.era));
        Remote {
            shelf: Arc::new(Shelf::new(config, speech.clone())),
            uplift: Uplift::new(config, upstream.clone(), limits),
            config: config.clone(),
            upstream,
            speech,
        }
    }

    /// A call that finds the catalog old lets it be fetched anew meanwhile; it does not wait for that.
    fn renew(&self, credential: &Credential) {
        // Bounds a fetch that nobody waits for.
        const RENEW_TIMEOUT: Duration = Duration::from_secs(60);
        if !self.shelf.wants_renewal() {
            return;
        }
        let (upstream, shelf, credential) = (self.upstream.clone(), self.shelf.clone(), credential.for_catalog());
        tokio::spawn(async move {
            let deadline = Instant::now() + RENEW_TIMEOUT;
            let fetched = match credential.await {
                Ok(credential) => shelf.refresh(&upstream, &Arc::new(credential), deadline).await.map(drop),
                Err(error) => Err(Error::Credential(error)),
            };
            if let Err(error) = fetched {
                tracing::warn!(%error, "the tool catalog cannot be fetched again; the old one stays");
            }
        });
    }

    async fn call_once(&self, permit: &Permit, credential: Credential, deadline: Instant) -> Result<Answer, Error> {
        let modern = permit.call().message().filter(|message| message.era == Era::Modern);
        if let Some(message) = modern.filter(|_| self.speech.known() != Some(Era::Modern)) {
            return Box::pin(self.call_any(permit, message, credential, deadline, None)).await;
        }
        let outcome = self.upstream.ask(Ask::of(permit), &credential, deadline).await;
        match modern {
            Some(message) if speech::fit(Era::Modern, message.method, &outcome) != Fit::Fits => {
                Box::pin(self.call_any(permit, message, credential, deadline, Some(outcome))).await
            }
            _ => outcome,
        }
    }

    /// A modern call whose upstream may not speak the modern era. `had`: what it answered in the modern way, against all
    /// expectation.
    async fn call_any(
        &self,
        permit: &Permit,
        message: &Message,
        credential: Credential,
        deadline: Instant,
        had: Option<Result<Answer, Error>>,
    ) -> Result<Answer, Error> {
        let credential = Arc::new(credential);
        let mut era = match had {
            Some(_) => Era::Modern,
            None => self.shelf.era(&self.upstream, &credential, deadline).await?,
        };
        let (mut had, mut last_try) = (had, false);
        loop {
            let outcome = match (had.take(), era) {
                (Some(outcome), _) => outcome,
                (None, Era::Modern) => self.upstream.ask(Ask::of(permit), &credential, deadline).await,
                (None, Era::Legacy) => self.uplift.call(permit, message, &credential, deadline).await,
            };
            let fit = speech::fit(era, message.method, &outcome);
            if fit == Fit::Fits {
                return outcome;
            }
            self.speech.doubt(&self.config.name);
            // Each era once: an upstream that contradicts both is broken.
            let again = fit == Fit::Refused || Ask::of(permit).repeatable;
            if last_try || !again || self.speech.known().is_some() {
                return outcome;
            }
            match self.shelf.era(&self.upstream, &credential, deadline).await {
                Ok(found) if found != era => (last_try, era) = (true, found),
                Ok(_) | Err(_) => return outcome,
            }
        }
    }
}

#[async_trait]
impl Backend for Remote {
    fn name(&self) -> &Arc<str> {
        &self.config.name
    }

    fn catalog(&self) -> Arc<Catalog> {
        self.shelf.catalog()
    }

    async fn refresh(&self, credential: Credential, deadline: Instant) -> Result<Arc<Catalog>, Error> {
        self.shelf.refresh(&self.upstream, &Arc::new(credential), deadline).await
    }

    fn learn(&self, tools: &[Entry]) {
        self.shelf.learn(tools);
    }

    fn doubt(&self) {
        self.shelf.doubt();
    }

    fn in_doubt(&self) -> bool {
        self.shelf.in_doubt()
    }

    fn pin(&self, pins: Option<Arc<Pins>>) {
        self.shelf.pin(&pins);
    }

    fn era(&self) -> Option<Era> {
        self.speech.known()
    }

    async fn speaks(&self, credential: Credential, deadline: Instant) -> Result<Era, Error> {
        self.shelf.era(&self.upstream, &Arc::new(credential), deadline).await
    }

    async fn call(&self, permit: Permit, credential: Credential, deadline: Instant) -> Result<Answer, Error> {
        self.renew(&credential);
        let spare = credential.spare();
        let outcome = self.call_once(&permit, credential, deadline).await;
        match (outcome, spare) {
            // Who is not let in was not served: the call may be made again, once, with another token.
            (Err(Error::CredentialRefused { status: 401, claims, .. }), Some(spare)) => {
                let renewed = spare.renewed(claims.as_deref(), deadline).await.map_err(Error::Credential)?;
                Box::pin(self.call_once(&permit, renewed, deadline)).await
            }
            (outcome, _) => outcome,
        }
    }

    fn healthy(&self) -> bool {
        self.upstream.healthy()
    }

    fn start(&self) {
        self.upstream.start();
    }

    async fn stop(&self) {
        self.uplift.stop().await;
        self.upstream.stop().await;
    }
}

/// Names the backend in every error of this room.
#[derive(Clone, Debug)]
struct Blame(Arc<str>);

impl Blame {
    fn protocol(&self, what: impl Into<String>) -> Error {
        Error::Protocol { backend: self.0.clone(), what: what.into() }
    }

    fn unavailable(&self, what: impl Into<String>) -> Error {
        Error::Unavailable { backend: self.0.clone(), what: what.into() }
    }

    fn timeout(&self) -> Error {
        Error::Timeout { backend: self.0.clone() }
    }

    fn too_large(&self, bytes_max: usize) -> Error {
        Error::AnswerTooLarge { backend: self.0.clone(), bytes_max }
    }

    fn session_lost(&self) -> Error {
        Error::SessionLost { backend: self.0.clone() }
    }

    fn refused(&self, status: u16, claims: Option<Arc<str>>) -> Error {
        Error::CredentialRefused { backend: self.0.clone(), status, claims }
    }

    fn invalid(&self, what: impl Into<String>) -> Invalid {
        Invalid { backend: self.0.clone(), what: what.into() }
    }
}

/// The time left until a deadline; zero when it has passed.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

#[derive(Deserialize)]
struct ErrorMessage<'a> {
    #[serde(borrow)]
    jsonrpc: Cow<'a, str>,
    #[serde(borrow, rename = "error")]
    _error: ErrorObject<'a>,
}

#[derive(Deserialize)]
struct ErrorObject<'a> {
    #[serde(rename = "code")]
    _code: i64,
    #[serde(borrow, rename = "message")]
    _message: &'a RawValue,
}

/// Is it a JSON-RPC error answer?
fn is_error(body: &[u8]) -> bool {
    serde_json::from_slice::<ErrorMessage<'_>>(body).is_ok_and(|message| message.jsonrpc == "2.0")
}
