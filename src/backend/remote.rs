//! A remote MCP server as a `Backend`: streamable HTTP over TCP, TLS or a Unix socket, or a stdio child process.

mod discover;
mod http;
mod pump;
mod replica;
mod stdio;
#[cfg(test)]
mod tests;
mod tls;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Answer;
use super::Backend;
use super::Error;
use crate::catalog::Call;
use crate::catalog::Catalog;
use crate::catalog::Effects;
use crate::catalog::Kind;
use crate::catalog::Operation;
use crate::credentials;
use crate::credentials::Credential;
use crate::mcp;
use crate::mcp::list::Entry;
use crate::policy::Permit;
use discover::Shelf;

#[derive(Clone, Debug)]
pub struct Config {
    pub name: Arc<str>,
    pub transport: Transport,
    /// Which protocol era the upstream speaks; `None`: found out by asking.
    pub era: Option<mcp::Era>,
    pub effects: Effects,
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
}

#[derive(Clone, Debug)]
pub enum Transport {
    Http(Http),
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

#[derive(Clone, Debug)]
pub struct Stdio {
    pub command: Vec<String>,
    pub env: Vec<(String, crate::secret::Secret)>,
    pub directory: Option<PathBuf>,
    /// Child processes at once.
    pub processes_max: usize,
    /// A child that serves nobody is ended after this.
    pub idle_timeout: Duration,
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
        Transport::Http(http) => Arc::new(Remote::new(&config, http::Upstream::new(&config, http)?)),
        Transport::Stdio(stdio) => Arc::new(Remote::new(&config, stdio::Upstream::new(&config, stdio)?)),
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
}

impl<'a> Ask<'a> {
    fn of(call: &'a Call) -> Ask<'a> {
        Ask {
            operation: &call.operation,
            session: call.session.as_ref().map(|session| session.upstream.as_str()),
            version: call.version.as_deref(),
            bindings: &call.decl.headers,
            repeatable: call.decl.kind == Kind::Backend || call.decl.retryable(),
        }
    }
}

/// One way to reach an upstream: HTTP or a child process.
#[async_trait]
trait Reach: Send + Sync + 'static {
    async fn ask(&self, ask: Ask<'_>, credential: &Credential, deadline: Instant) -> Result<Answer, Error>;

    fn healthy(&self) -> bool;

    fn start(&self) {}

    async fn stop(&self) {}
}

/// A remote backend over either transport.
struct Remote<U> {
    config: Arc<Config>,
    upstream: Arc<U>,
    shelf: Arc<Shelf>,
}

impl<U: Reach> Remote<U> {
    fn new(config: &Arc<Config>, upstream: U) -> Self {
        Remote { config: config.clone(), upstream: Arc::new(upstream), shelf: Arc::new(Shelf::new(config)) }
    }

    /// A call that finds the catalog old lets it be fetched anew meanwhile; it does not wait for that.
    fn renew(&self) {
        // Bounds a fetch that nobody waits for.
        const RENEW_TIMEOUT: Duration = Duration::from_secs(60);
        if !self.shelf.wants_renewal() {
            return;
        }
        let (config, upstream, shelf) = (self.config.clone(), self.upstream.clone(), self.shelf.clone());
        tokio::spawn(async move {
            let credential = credentials::own(&config.credential);
            if let Err(error) = shelf.refresh(upstream.as_ref(), &credential, Instant::now() + RENEW_TIMEOUT).await {
                tracing::warn!(%error, "the tool catalog cannot be fetched again; the old one stays");
            }
        });
    }
}

#[async_trait]
impl<U: Reach> Backend for Remote<U> {
    fn name(&self) -> &Arc<str> {
        &self.config.name
    }

    fn catalog(&self) -> Arc<Catalog> {
        self.shelf.catalog()
    }

    async fn refresh(&self, credential: Credential, deadline: Instant) -> Result<Arc<Catalog>, Error> {
        self.shelf.refresh(self.upstream.as_ref(), &credential, deadline).await
    }

    fn era(&self) -> Option<mcp::Era> {
        self.config.era.or_else(|| self.shelf.found())
    }

    async fn speaks(&self, credential: Credential, deadline: Instant) -> Result<mcp::Era, Error> {
        if let Some(era) = self.era() {
            return Ok(era);
        }
        self.refresh(credential, deadline).await?;
        self.era().ok_or_else(|| Blame(self.config.name.clone()).unavailable("its era is not known"))
    }

    fn learn(&self, tools: &[Entry]) {
        self.shelf.learn(tools);
    }

    async fn call(&self, permit: Permit, credential: Credential, deadline: Instant) -> Result<Answer, Error> {
        self.renew();
        self.upstream.ask(Ask::of(permit.call()), &credential, deadline).await
    }

    fn healthy(&self) -> bool {
        self.upstream.healthy()
    }

    fn start(&self) {
        self.upstream.start();
    }

    async fn stop(&self) {
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

    fn refused(&self, status: u16) -> Error {
        Error::CredentialRefused { backend: self.0.clone(), status }
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
