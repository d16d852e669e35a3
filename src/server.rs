//! Over which wire? Listeners, TLS, the pingora session, admission, well-known documents, the admin listener.

mod admin;
mod admit;
mod drain;
mod http;
mod listener;
mod reply;
mod tls;
mod wellknown;
mod wire;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::exchange::Peer;
use crate::exchange::Reply;
use crate::exchange::Request;
use crate::gateway::Head;
use crate::gateway::Rejection;

use admit::Gate;
use drain::Crowd;
use drain::raised;
use listener::Door;
use listener::Edge;
use listener::Post;

pub use admin::Admin;
pub use tls::install_crypto;

/// After the grace time everything is cut; this is how long the cut ones may take to be gone.
const CUT: Duration = Duration::from_secs(1);

/// Everything the edge is configured with.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub listeners: Vec<Listener>,
    pub admin: Option<Address>,
    pub admission: Admission,
    /// How long calls and streams may go on after SIGTERM.
    pub shutdown_grace: Duration,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    Tcp(SocketAddr),
    /// Path and permission bits of the socket file.
    Unix(PathBuf, u32),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path, _) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Listener {
    pub address: Address,
    pub tls: Option<Tls>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
    pub client_auth: ClientAuth,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ClientAuth {
    #[default]
    None,
    Optional,
    Required,
}

/// What is checked before anything is parsed.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Host names (no port) we answer to; empty means any. `localhost` and loopback addresses are always right
    /// for loopback listeners.
    pub hosts: Vec<String>,
    /// The name clients know the gateway by: right for loopback listeners too, where a proxy in front keeps the Host.
    pub public_host: Option<String>,
    /// Browser origins (`scheme://host[:port]`) that may call; none by default. Requests without `Origin` pass.
    pub origins: Vec<String>,
    pub header_bytes_max: usize,
    pub body_bytes_max: usize,
    /// From the first byte of a request to the end of its head.
    pub head_timeout: Duration,
    /// From the end of the head to the end of the body.
    pub body_timeout: Duration,
    /// Between requests on a kept-alive connection.
    pub idle_timeout: Duration,
    /// From admission to the (start of the) answer.
    pub request_timeout: Duration,
    pub connections_max: usize,
    /// Between keep-alive comments on a silent event stream.
    pub keepalive_interval: Duration,
    /// How long a client may take to accept written bytes.
    pub write_timeout: Duration,
}

impl Default for Admission {
    fn default() -> Self {
        Admission {
            hosts: Vec::new(),
            public_host: None,
            origins: Vec::new(),
            header_bytes_max: 64 * 1024,
            body_bytes_max: 4 * 1024 * 1024,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(60),
            connections_max: 20_000,
            keepalive_interval: Duration::from_secs(15),
            write_timeout: Duration::from_secs(30),
        }
    }
}

/// What the edge asks of the spine.
#[async_trait]
pub trait Spine: Send + Sync + 'static {
    /// Total. The future is dropped when the client leaves.
    async fn serve(&self, request: Request) -> Reply;
    /// The reply and the record of a request that did not get in.
    fn refuse(&self, head: Head, rejection: Rejection) -> Reply;
    /// The record of what the edge answers by itself (documents, preflights), and that answer: or a refusal, while
    /// records cannot be written.
    fn note(&self, head: Head, reply: Reply) -> Reply;
    /// The well-known document at this path of this host.
    ///
    /// # Errors
    /// Why there is none.
    async fn document(&self, host: &str, path: &str) -> Result<Bytes, Rejection>;
    /// The reply to a client that registers, and its record.
    fn register(&self, head: Head, path: &str, body: &[u8]) -> Reply;
    /// Is this address within its rate?
    ///
    /// # Errors
    /// The rejection it gets.
    fn admit(&self, peer: &Peer) -> Result<(), Rejection>;
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on `{address}`: {cause}")]
    Bind { address: String, cause: std::io::Error },
    #[error("cannot read {what} `{file}`: {cause}")]
    Read { what: &'static str, file: String, cause: std::io::Error },
    #[error("{what} `{file}` cannot be used: {why}")]
    Unusable { what: &'static str, file: String, why: String },
    #[error("client certificates are asked for beside `{file}`, but no client CA is set")]
    NoClientCa { file: String },
}

/// Numbers of the edge since it was bound.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Open now.
    pub connections: usize,
    /// Closed at once because `connections_max` were open.
    pub connections_refused: u64,
    /// Not finished, not trusted, or not TLS.
    pub handshakes_failed: u64,
}

/// Would this configuration do? Reads and checks the TLS files; binds nothing.
///
/// # Errors
/// The first file that cannot be used.
pub fn check(config: &Config) -> Result<(), Error> {
    config.listeners.iter().filter_map(|listener| listener.tls.as_ref()).try_for_each(|tls| tls::load(tls).map(drop))
}

/// The bound edge.
pub struct Server {
    posts: Vec<Arc<Post>>,
    /// Configured and bound.
    admin: Option<(Address, String)>,
    doors: Mutex<Option<Doors>>,
    gate: Arc<ArcSwap<Gate>>,
    crowd: Arc<Crowd>,
}

struct Doors {
    mcp: Vec<Door>,
    admin: Option<Door>,
}

impl Server {
    /// Reads certificates and binds every listener, the admin one included.
    ///
    /// # Errors
    /// Names the address or the file.
    pub async fn bind(config: &Config) -> Result<Server, Error> {
        let mut mcp = Vec::with_capacity(config.listeners.len());
        for listener in &config.listeners {
            mcp.push(Door::open(listener).await?);
        }
        let admin = match &config.admin {
            Some(address) => Some(Door::open(&Listener { address: address.clone(), tls: None }).await?),
            None => None,
        };
        Ok(Server {
            posts: mcp.iter().map(|door| door.post().clone()).collect(),
            admin: config.admin.clone().zip(admin.as_ref().map(|door| door.post().bound().to_owned())),
            doors: Mutex::new(Some(Doors { mcp, admin })),
            gate: Arc::new(ArcSwap::from_pointee(Gate::new(config))),
            crowd: Arc::default(),
        })
    }

    /// Every MCP listener: as configured, and as bound (a port 0 has become a real one).
    pub fn addresses(&self) -> Vec<(String, String)> {
        self.posts.iter().map(|post| (post.label().to_string(), post.bound().to_owned())).collect()
    }

    /// Only this machine reaches the listeners that are open now.
    pub fn all_local(&self) -> bool {
        self.posts.iter().all(|post| match post.address() {
            Address::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Address::Unix(..) => true,
        })
    }

    /// The admin listener as bound.
    pub fn admin_address(&self) -> Option<String> {
        self.admin.as_ref().map(|(_, bound)| bound.clone())
    }

    pub fn counts(&self) -> Counts {
        self.crowd.counts()
    }

    /// Puts certificates, client CAs and admission of a new configuration in force, or nothing of it. Connections
    /// stay; those whose listener changed its mind about client certificates are drained, since what they proved was
    /// proved to the old CA. Returns notes about what needs a restart.
    ///
    /// # Errors
    /// The file that cannot be used; everything stays as it was.
    pub fn reload(&self, config: &Config) -> Result<Vec<String>, Error> {
        let mut notes = Vec::new();
        let mut fresh = Vec::new();
        for listener in &config.listeners {
            let terms = listener.tls.as_ref().map(tls::load).transpose()?;
            let post = self.posts.iter().find(|post| post.address() == &listener.address);
            match (post, terms) {
                (None, _) => notes.push(format!("listener `{}` is new: it opens after a restart", listener.address)),
                (Some(post), Some(terms)) if post.speaks_tls() => fresh.push((post, terms)),
                (Some(post), terms) if post.speaks_tls() != terms.is_some() => {
                    notes.push(format!("listener `{}` turns TLS on or off after a restart", listener.address));
                }
                (Some(_), _) => {}
            }
        }
        for post in &self.posts {
            if !config.listeners.iter().any(|listener| &listener.address == post.address()) {
                notes.push(format!("listener `{}` is gone: it closes after a restart", post.label()));
            }
        }
        if self.admin.as_ref().map(|(address, _)| address) != config.admin.as_ref() {
            notes.push("the admin listener moves after a restart".to_owned());
        }
        for (post, terms) in fresh {
            post.renew(terms);
        }
        self.gate.store(Arc::new(Gate::new(config)));
        Ok(notes)
    }

    /// Serves until `shutdown` becomes true, then drains: nothing new is accepted, idle connections close, streams
    /// end, calls may finish within the grace time, the rest is cut. Returns when all is gone.
    pub async fn run(&self, spine: Arc<dyn Spine>, admin: Arc<dyn Admin>, shutdown: watch::Receiver<bool>) {
        let Some(doors) = self.doors.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let (cut, watching) = watch::channel(false);
        let edge = Arc::new(Edge::new(spine, self.gate.clone(), self.crowd.clone(), watching.clone()));
        let mut welcoming = JoinSet::new();
        for door in doors.mcp {
            welcoming.spawn(door.welcome(edge.clone(), shutdown.clone()));
        }
        let mut desk = JoinSet::new();
        if let Some(door) = doors.admin {
            desk.spawn(admin::welcome(door, admin, watching));
        }
        raised(&shutdown).await;
        while welcoming.join_next().await.is_some() {}
        for post in &self.posts {
            post.close();
        }
        let grace = self.gate.load().grace;
        if tokio::time::timeout(grace, self.crowd.gone()).await.is_err() {
            tracing::warn!(
                connections = self.crowd.counts().connections,
                "the shutdown grace is over: what is left is cut"
            );
        }
        cut.send_replace(true);
        drop(tokio::time::timeout(CUT, self.crowd.gone()).await);
        desk.shutdown().await;
    }
}
