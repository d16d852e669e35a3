//! Where is it done? One trait for built-in and remote backends; a call runs only with a `Permit`.

pub mod breaker;
pub mod builtin;
pub mod remote;
pub mod vault;

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::catalog::Catalog;
use crate::catalog::Decl;
use crate::catalog::Effect;
use crate::catalog::Kind;
use crate::catalog::pins::Pins;
use crate::credentials;
use crate::credentials::Credential;
use crate::mcp::Era;
use crate::mcp::list::Entry;
use crate::mcp::sse::Event;
use crate::policy::Permit;

#[async_trait]
pub trait Backend: Send + Sync {
    fn name(&self) -> &Arc<str>;

    /// What is on offer, as far as known now. No I/O.
    fn catalog(&self) -> Arc<Catalog>;

    /// Asks the upstream what is on offer, unless that was done a moment ago (single flight, cool-down).
    ///
    /// # Errors
    /// When the upstream cannot be asked; the known catalog stays.
    async fn refresh(&self, credential: Credential, deadline: Instant) -> Result<Arc<Catalog>, Error>;

    /// A page of this backend's `tools/list` went by: it is the newest truth about the tools named in it.
    fn learn(&self, tools: &[Entry]);

    /// The upstream said that its tools are not what they were.
    fn doubt(&self) {}

    /// Must the upstream be asked before a tool of the catalog is used? Only where tools are pinned.
    fn in_doubt(&self) -> bool {
        false
    }

    /// From now on these tools are the approved ones; what is known of the upstream is judged anew. `None`: all are.
    fn pin(&self, _pins: Option<Arc<Pins>>) {}

    /// What is known of something that is in no catalog: a resource, a prompt. Only a built-in backend knows more than
    /// that it is read.
    fn plain(&self, kind: Kind, name: &str) -> Decl {
        Decl::plain(kind, self.name().clone(), name, Effect::Read)
    }

    /// The era that the upstream speaks: configured, or found by asking. `None`: not known yet, or in doubt. No I/O.
    fn era(&self) -> Option<Era>;

    /// The era that the upstream speaks; asks it if that is not known (single flight, remembered). What is configured is
    /// never asked. An answer that contradicts what was found (a modern upstream's 400, 404 or 405 without a modern error,
    /// or `server/discover` unknown to it; a legacy upstream's refusal of the handshake) puts it in doubt, and the
    /// upstream is asked again.
    ///
    /// # Errors
    /// When the upstream cannot be asked.
    async fn speaks(&self, credential: Credential, deadline: Instant) -> Result<Era, Error>;

    /// Runs a permitted call. There is no other way in. Dropping the future or the answer's stream cancels it as
    /// the call's era demands. A modern call runs whatever the upstream speaks; a legacy call needs a legacy upstream.
    ///
    /// # Errors
    /// When there is no trustworthy answer; see [`Error`].
    async fn call(&self, permit: Permit, credential: Credential, deadline: Instant) -> Result<Answer, Error>;

    /// Can it take calls right now? For `/readyz`, `/status` and metrics.
    fn healthy(&self) -> bool;

    /// Begins background work (health checks). Called once, inside the runtime the backend is to live in.
    fn start(&self) {}

    /// Ends child processes and background work.
    async fn stop(&self) {}
}

/// What an upstream answered.
pub struct Answer {
    /// The upstream's HTTP status (2xx, or 4xx with a JSON-RPC error body). stdio answers are 200 or 202.
    pub status: u16,
    /// A session id the upstream minted (`initialize`, legacy era).
    pub session: Option<String>,
    pub content: Content,
}

impl Answer {
    pub(crate) fn empty(status: u16) -> Answer {
        Answer { status, session: None, content: Content::Empty }
    }
}

pub enum Content {
    Empty,
    /// One JSON-RPC message.
    Json(Bytes),
    /// Server-sent events; ends when the upstream ends. Dropping it cancels.
    Events(BoxStream<'static, Result<Event, Error>>),
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("backend `{backend}`: the answer is larger than {bytes_max} bytes")]
    AnswerTooLarge { backend: Arc<str>, bytes_max: usize },
    #[error("backend `{backend}`: the upstream refused the gateway's credential ({status})")]
    CredentialRefused {
        backend: Arc<str>,
        status: u16,
        /// What the upstream wants of the user (continuous access evaluation), as JSON. Only where the credential is the
        /// user's own.
        claims: Option<Arc<str>>,
    },
    #[error(transparent)]
    Credential(credentials::Error),
    #[error("backend `{backend}`: the answer breaks the protocol: {what}")]
    Protocol { backend: Arc<str>, what: String },
    #[error("backend `{backend}`: the session is not known to the upstream any more")]
    SessionLost { backend: Arc<str> },
    #[error("backend `{backend}`: no answer before the deadline")]
    Timeout { backend: Arc<str> },
    #[error("backend `{backend}` is unavailable: {what}")]
    Unavailable { backend: Arc<str>, what: String },
}
