//! What happened? One hash-chained record for every request, also the refused ones.
//!
//! A record is one line of JSON. A dedicated thread chains and writes the lines, so that a request never waits for a
//! disk:
//!
//! * each line starts with `seq` (counted from 1) and `prev` (the `hash` of the line before it, zeros for the first) and
//!   ends with `hash`, the SHA-256 of all bytes of the line before `,"hash":`. [`verify()`] finds a changed, deleted,
//!   inserted or moved line and a missing head;
//! * lines cut off the *end* cannot be seen from the file alone, and whoever may rewrite the whole file can compute a
//!   new chain: note the head elsewhere ([`Audit::status`], also logged when the file is opened and closed) and give it
//!   to [`verify()`] as [`Expect`];
//! * what is in the queue is written in one go when the queue is empty or 256 KiB are together, and synced to disk at
//!   most one second later: a crash of the process loses what was queued, a crash of the machine up to that second. A
//!   line torn by a crash stays, ended by a newline and followed by a `recovered` record with its hash;
//! * after a rotation ([`Audit::reopen`]) the new file starts with a `continued` record that carries the last hash of
//!   the old file as its `prev`;
//! * records that found the queue full are counted, and a `lost` record with the count follows when writing works again.
//!   With `fail_closed`, [`Audit::available`] is false meanwhile and the gateway refuses new requests. A request that
//!   was already running when the disk failed still ends, with its record queued or counted as lost.

mod args;
mod chain;
mod line;
mod sink;
#[cfg(test)]
mod tests;
mod time;
mod verify;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

pub(crate) use line::misleading;
pub use time::timestamp;
pub use verify::Broken;
pub use verify::Expect;
pub use verify::Problem;
pub use verify::Summary;
pub use verify::verify;
pub use verify::verify_reader;

use crate::secret::Secret;
use writer::Handle;
use writer::Writer;

/// Lines that may wait for the writer. At about 700 bytes each: 11 MiB when the disk stands still.
const QUEUE_LINES: usize = 16_384;

/// A disk that takes longer than this to write what is queued is as good as gone when the program ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// A shorter key would be weaker than the digest it makes.
const DIGEST_KEY_BYTES_MIN: usize = 32;

/// Where records go.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub sink: Sink,
    /// Refuse requests (503) while records cannot be written.
    pub fail_closed: bool,
    /// Keys the digests of arguments: with the same key, equal arguments have equal digests across restarts and
    /// replicas. Without one, a key is drawn at start, and digests compare within one run of one process only.
    pub digest_key: Option<Secret>,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Sink {
    File(PathBuf),
    #[default]
    None,
    Stdout,
}

/// One request's record. Filled while the request lives, closed exactly once.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// RFC 3339, microseconds, UTC: taken at admission.
    pub at: String,
    pub request_id: String,
    pub peer: Option<String>,
    pub listener: Arc<str>,
    pub http_method: &'static str,
    pub path: String,
    pub auth: Option<&'static str>,
    pub subject: Option<String>,
    pub issuer: Option<String>,
    pub actor: Option<String>,
    pub client: Option<String>,
    /// The configured tenant, else what the credential says.
    pub tenant: Option<String>,
    /// `User`, `Service` or `Agent`.
    pub caller: Option<&'static str>,
    pub scopes: Vec<String>,
    pub roles: Vec<String>,
    pub groups: Vec<String>,
    /// A client certificate was verified.
    pub mtls: bool,
    /// How they logged in, as the token says it.
    pub acr: Option<String>,
    pub amr: Vec<String>,
    pub auth_time: Option<String>,
    /// The configured tenant: for metrics, whose labels no credential may choose.
    pub home: Option<Arc<str>>,
    /// The caller is a guest in the tenant.
    pub guest: bool,
    /// The token left groups out: what is decided by groups was decided against the caller.
    pub groups_unknown: bool,
    pub route: Option<Arc<str>>,
    pub backend: Option<Arc<str>>,
    pub era: Option<&'static str>,
    pub method: Option<String>,
    /// Tool, prompt or resource.
    pub target: Option<String>,
    pub effect: Option<&'static str>,
    pub mode: Option<&'static str>,
    /// Keyed digest (HMAC-SHA-256, hex) of the canonical arguments; the arguments themselves are never written.
    pub args_digest: Option<String>,
    /// `allowed` or `refused`.
    pub decision: Option<&'static str>,
    /// Why refused: the rejection's slug.
    pub reason: Option<&'static str>,
    /// Why the policy said no, when it did.
    pub denial: Option<&'static str>,
    /// Which limit refused it, when one did.
    pub limit: Option<&'static str>,
    /// The ids of the policies that decided.
    pub policies: Vec<String>,
    /// The ids of the policies in shadow mode that would have changed the answer, or the list.
    pub shadows: Vec<String>,
    /// Entries of a list that the caller was not shown.
    pub hidden: u64,
    /// What became of the question whether a person allows the call, and its id: `asked`, `confirmed`, `declined`, …
    pub confirmation: Option<(&'static str, String)>,
    /// What the filters took out of the answer, by name, and how often; never what it was.
    pub filtered: Vec<(Arc<str>, u64)>,
    /// How it ended: `answered`, `streamed`, `refused`, `failed`, `client_gone`, `cancelled`, …
    pub outcome: Option<&'static str>,
    pub status: Option<u16>,
    pub error_code: Option<i64>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub events_out: u64,
    pub duration_us: u64,
    pub upstream_us: Option<u64>,
    pub trace_id: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the audit digest key has fewer than {DIGEST_KEY_BYTES_MIN} bytes")]
    DigestKey,
    #[error("`{path}` is written by another process")]
    Locked { path: PathBuf },
    #[error("`{path}` does not end in an audit record")]
    NotAudit { path: PathBuf },
    #[error("cannot open `{path}`")]
    Open { path: PathBuf, source: std::io::Error },
    #[error("no random numbers from the system")]
    Random,
    #[error("cannot start the audit writer")]
    Thread { source: std::io::Error },
}

/// How the log stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Status {
    /// Records of this process that are written.
    pub written: u64,
    /// Records of this process that found the queue full.
    pub dropped: u64,
    /// Writing works and the queue has room.
    pub healthy: bool,
    /// The head of the chain, as written: `seq` and `hash` of the last record.
    pub seq: u64,
    pub hash: [u8; 32],
}

impl Status {
    /// The hash as it stands in the file, to note elsewhere.
    pub fn hash_hex(&self) -> String {
        chain::hex(&self.hash)
    }
}

/// The audit log. Dropping the last reference writes what is queued.
pub struct Audit {
    /// `None`: no sink.
    queue: Option<Handle>,
    thread: Option<JoinHandle<()>>,
    fail_closed: bool,
    digest_key: ring::hmac::Key,
}

impl Audit {
    /// Opens the sink, continues the chain of an existing file, and starts the writer.
    ///
    /// # Errors
    /// The file cannot be opened, is written by another process, or is not an audit log.
    pub fn open(config: &Config) -> Result<Arc<Audit>, Error> {
        let key = args::key(config.digest_key.as_ref())?;
        let writer = match &config.sink {
            Sink::None => None,
            Sink::Stdout => Some(Writer::new(sink::stdout()?, None, QUEUE_LINES)),
            Sink::File(path) => {
                let opened = sink::open(path)?;
                Some(Writer::new(opened, Some(path.clone()), QUEUE_LINES))
            }
        };
        Audit::start(writer, config.fail_closed, key)
    }

    fn start(
        writer: Option<(Writer, Handle)>,
        fail_closed: bool,
        digest_key: ring::hmac::Key,
    ) -> Result<Arc<Audit>, Error> {
        let Some((writer, handle)) = writer else {
            return Ok(Arc::new(Audit { queue: None, thread: None, fail_closed, digest_key }));
        };
        let thread = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| Error::Thread { source })?;
        Ok(Arc::new(Audit { queue: Some(handle), thread: Some(thread), fail_closed, digest_key }))
    }

    /// Queues one closed record. Never waits.
    pub fn record(&self, record: Record) {
        if let Some(queue) = &self.queue {
            queue.push(line::request(&record));
        }
    }

    /// Queues what is not a request but belongs into the log: a reload, a raised ceiling, a start.
    pub fn event(&self, kind: &'static str, fields: &[(&'static str, &str)]) {
        if let Some(queue) = &self.queue {
            queue.push(line::event(kind, fields));
        }
    }

    /// May requests be served? False only with `fail_closed`, while records cannot be written.
    pub fn available(&self) -> bool {
        !self.fail_closed || self.queue.as_ref().is_none_or(Handle::healthy)
    }

    pub fn status(&self) -> Status {
        self.queue
            .as_ref()
            .map_or(Status { written: 0, dropped: 0, healthy: true, seq: 0, hash: chain::GENESIS }, Handle::status)
    }

    /// Asks the writer to open the file's path anew, after a rotation (SIGHUP). Does not wait; if the path cannot be
    /// opened, the old file stays in use and the problem is logged.
    pub fn reopen(&self) {
        if let Some(queue) = &self.queue {
            queue.reopen();
        }
    }

    /// Waits until everything queued before is written and synced; for the shutdown, not for a request's path.
    /// False if that did not come to pass: the sink fails, or five seconds were not enough.
    pub fn flush(&self) -> bool {
        self.queue.as_ref().is_none_or(|queue| queue.flush(FLUSH_TIMEOUT))
    }

    /// The same without a key, for what is sealed and never shown.
    pub fn plain_digest(raw_json: &[u8]) -> String {
        args::digest(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &[]), raw_json)
    }

    /// The keyed digest of a call's arguments (JSON), independent of member order, white space and string escapes.
    pub fn digest_args(&self, raw_json: &[u8]) -> String {
        args::digest(&self.digest_key, raw_json)
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        // The writer ends when its queue is closed and empty.
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the audit writer panicked");
        }
    }
}
