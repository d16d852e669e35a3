//! One legacy session at an upstream, opened by the gateway: handshake, requests under ids of its own, end.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::task::JoinHandle;

use super::Ask;
use super::Blame;
use super::Reach;
use super::left;
use super::outcome::Outcome;
use super::outcome::outcome;
use super::uplift::Ears;
use super::uplift::Level;
use crate::backend::Answer;
use crate::backend::Error;
use crate::catalog::Operation;
use crate::credentials::Credential;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::Kind;
use crate::mcp::LEGACY_VERSIONS;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::Params;

/// A notification, a response or the end of a session must be taken within this; nobody waits for it.
const TELL_TIMEOUT: Duration = Duration::from_secs(10);

/// Who reaches the upstream, with what, and in whose name errors are told.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) upstream: Arc<dyn Reach>,
    pub(super) credential: Arc<Credential>,
    /// The principal's key; empty for the gateway itself.
    pub(super) owner: Arc<str>,
    /// In whose line they wait.
    pub(super) share: Arc<str>,
    pub(super) blame: Blame,
}

/// The other side as it presents itself: JSON texts.
#[derive(Clone, Debug, Default)]
pub(super) struct Introduction {
    /// `clientInfo`; `None`: our own.
    pub(super) info: Option<String>,
    /// `capabilities`.
    pub(super) capabilities: Option<String>,
}

/// What the upstream said of itself in `initialize`.
#[derive(Debug, Default)]
pub(super) struct Hello {
    /// JSON text.
    pub(super) server_info: Option<String>,
    /// JSON text of a string.
    pub(super) instructions: Option<String>,
    pub(super) offers: Offers,
}

/// The capabilities of a legacy server that mean the same in the modern era.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Offers {
    pub(super) tools: Option<Offer>,
    pub(super) prompts: Option<Offer>,
    pub(super) resources: Option<Offer>,
    pub(super) completions: Option<serde::de::IgnoredAny>,
    pub(super) logging: Option<serde::de::IgnoredAny>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Offer {
    #[serde(default)]
    pub(super) list_changed: bool,
    #[serde(default)]
    pub(super) subscribe: bool,
}

/// A session while it lasts; stateless legacy servers give no id. Dropping the last reference ends it.
pub(super) struct Session {
    line: Line,
    /// The newest of its caller: the session outlives the credential that it was opened with.
    credential: ArcSwap<Credential>,
    id: Option<String>,
    version: String,
    pub(super) hello: Hello,
    pub(super) born: Instant,
    next: AtomicU64,
    /// The log level that was set last.
    level: tokio::sync::Mutex<Option<Level>>,
    over: AtomicBool,
    pub(super) ears: Ears,
    /// Work that lives as long as the session.
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Session {
    /// The handshake.
    ///
    /// # Errors
    /// [`Error::Protocol`] when it is refused or not understood: the upstream may be no legacy server.
    pub(super) async fn open(line: Line, who: &Introduction, deadline: Instant) -> Result<Session, Error> {
        let version = LEGACY_VERSIONS.first().copied().unwrap_or_default();
        let own = concat!(r#"{"name":"wardgate","version":""#, env!("CARGO_PKG_VERSION"), r#""}"#);
        let hello = format!(
            r#"{{"protocolVersion":"{version}","capabilities":{},"clientInfo":{}}}"#,
            who.capabilities.as_deref().unwrap_or("{}"),
            who.info.as_deref().unwrap_or(own),
        );
        let id = Id::number(0);
        let params = Params { raw: Some(hello.into()), ..Params::default() };
        let operation = Operation::Post(message(Some(id.clone()), Method::Initialize, params));
        let answer = ask(&line, &line.credential, &operation, None, None, true, deadline).await?;
        let given = answer.session.clone();
        let hello = match within(deadline, &line.blame, outcome(answer, &id, &line.blame)).await? {
            Outcome::Result(answer) => answer,
            Outcome::Refused { code } => {
                return Err(line.blame.protocol(format!("initialize was refused ({code})")));
            }
        };
        let (version, hello) = read_hello(&hello, &line.blame)?;
        let session = Session {
            credential: ArcSwap::new(line.credential.clone()),
            line,
            id: given,
            version,
            hello,
            born: Instant::now(),
            next: AtomicU64::new(1),
            level: tokio::sync::Mutex::new(None),
            over: AtomicBool::new(false),
            ears: Ears::default(),
            task: Mutex::new(None),
        };
        session.post(message(None, Method::NotificationsInitialized, Params::default()), true, deadline).await?;
        Ok(session)
    }

    pub(super) fn blame(&self) -> &Blame {
        &self.line.blame
    }

    pub(super) fn has_id(&self) -> bool {
        self.id.is_some()
    }

    /// A number that no other request of this session has.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// `repeatable`: may be sent again over a fresh connection when a pooled one dies.
    pub(super) async fn post(&self, message: Message, repeatable: bool, deadline: Instant) -> Result<Answer, Error> {
        self.ask(&Operation::Post(message), repeatable, deadline, None).await
    }

    /// [`Session::post`]; `reached` is set as soon as the upstream may get the message.
    pub(super) async fn post_tracked(
        &self,
        message: Message,
        repeatable: bool,
        deadline: Instant,
        reached: &OnceLock<Instant>,
    ) -> Result<Answer, Error> {
        self.ask(&Operation::Post(message), repeatable, deadline, Some(reached)).await
    }

    /// The session's stream of server messages.
    pub(super) async fn stream(&self, last_event_id: Option<String>, deadline: Instant) -> Result<Answer, Error> {
        self.ask(&Operation::Stream { last_event_id }, true, deadline, None).await
    }

    /// A request of our own in this session.
    pub(super) async fn request(&self, method: Method, raw: Bytes, deadline: Instant) -> Result<Outcome, Error> {
        let id = Id::number(self.number());
        let message = message(Some(id.clone()), method, Params { raw: Some(raw), ..Params::default() });
        let work = async { outcome(self.post(message, true, deadline).await?, &id, self.blame()).await };
        within(deadline, self.blame(), work).await
    }

    /// A notification.
    pub(super) async fn notify(&self, method: Method, params: String) {
        let params = Params { raw: Some(params.into()), ..Params::default() };
        self.told(self.post(message(None, method, params), true, Instant::now() + TELL_TIMEOUT).await);
    }

    /// The answer to a request of the server: `outcome` is `"result":…` or `"error":…`.
    pub(super) async fn respond(&self, id: Id, outcome: String) -> Result<(), Error> {
        let message = Message {
            kind: Kind::Response { id },
            method: None,
            era: Era::Legacy,
            params: Params::default(),
            outcome: Some(outcome.into()),
        };
        self.post(message, false, Instant::now() + TELL_TIMEOUT).await.map(drop)
    }

    /// [`Session::respond`] for what nobody waits for.
    pub(super) fn respond_later(self: &Arc<Self>, id: Id, outcome: String) {
        let session = self.clone();
        tokio::spawn(async move { session.told(session.respond(id, outcome).await) });
    }

    fn told<T>(&self, outcome: Result<T, Error>) {
        if let Err(error) = outcome {
            tracing::debug!(%error, "a message to the upstream's session was not taken");
        }
    }

    /// Makes sure that log messages of this level are sent. A server that refuses stays as it is.
    pub(super) async fn log_from(&self, level: Level, deadline: Instant) {
        if self.hello.offers.logging.is_none() {
            return;
        }
        let Ok(mut set) = pingora::time::timeout(left(deadline), self.level.lock()).await else {
            return;
        };
        if set.is_some_and(|set| set <= level) {
            return;
        }
        let params = format!(r#"{{"level":"{}"}}"#, level.as_str());
        if self.request(Method::LoggingSetLevel, params.into(), deadline).await.is_ok() {
            *set = Some(level);
        }
    }

    /// The server does not know it any more.
    pub(super) fn lose(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.ears.dismiss();
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Runs until the session is dropped.
    pub(super) fn keep(&self, task: JoinHandle<()>) {
        let before = self.task.lock().unwrap_or_else(PoisonError::into_inner).replace(task);
        if let Some(before) = before {
            before.abort();
        }
    }

    /// Ends it now. The outcome does not matter: many servers keep sessions until they time out.
    pub(super) async fn end(&self) {
        if let Some(end) = self.ending() {
            end.await;
        }
    }

    fn ending(&self) -> Option<impl Future<Output = ()> + Send + 'static> {
        if self.over.swap(true, Ordering::Relaxed) {
            return None;
        }
        self.ears.dismiss();
        let (line, id, version) = (self.line.clone(), self.id.clone()?, self.version.clone());
        let credential = self.credential.load_full();
        Some(async move {
            let deadline = Instant::now() + TELL_TIMEOUT;
            drop(ask(&line, &credential, &Operation::EndSession, Some(&id), Some(&version), true, deadline).await);
        })
    }

    /// From now on with this credential, which is the same caller's.
    pub(super) fn carry(&self, credential: &Arc<Credential>) {
        self.credential.store(credential.clone());
    }

    async fn ask(
        &self,
        operation: &Operation,
        repeatable: bool,
        deadline: Instant,
        reached: Option<&OnceLock<Instant>>,
    ) -> Result<Answer, Error> {
        // SPEC: the header came with 2025-06-18.
        let version = Some(self.version.as_str()).filter(|version| *version >= "2025-06-18");
        let owner = self.line.owner.as_ref();
        let (session, share) = (self.id.as_deref(), self.line.share.as_ref());
        let ask = Ask { operation, session, version, bindings: &[], repeatable, owner, share, reached };
        let credential = self.credential.load_full();
        let answer = self.line.upstream.ask(ask, &credential, deadline).await;
        // A 404 to GET may as well be a server that has no such stream.
        if matches!(operation, Operation::Post(_)) && matches!(answer, Err(Error::SessionLost { .. })) {
            self.lose();
        }
        answer
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
        // Without a runtime the process is going down, and the server's own time limit must do.
        if let (Some(end), Ok(runtime)) = (self.ending(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(end);
        }
    }
}

async fn ask(
    line: &Line,
    credential: &Credential,
    operation: &Operation,
    session: Option<&str>,
    version: Option<&str>,
    repeatable: bool,
    deadline: Instant,
) -> Result<Answer, Error> {
    // SPEC: the header came with 2025-06-18.
    let version = version.filter(|version| *version >= "2025-06-18");
    let (owner, share) = (&*line.owner, &*line.share);
    let ask = Ask { operation, session, version, bindings: &[], repeatable, owner, share, reached: None };
    line.upstream.ask(ask, credential, deadline).await
}

async fn within<T>(deadline: Instant, blame: &Blame, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    pingora::time::timeout(left(deadline), work).await.unwrap_or_else(|_| Err(blame.timeout()))
}

fn message(id: Option<Id>, method: Method, params: Params) -> Message {
    let kind = id.map_or(Kind::Notification, |id| Kind::Request { id });
    Message { kind, method: Some(method), era: Era::Legacy, params, outcome: None }
}

fn read_hello(answer: &[u8], blame: &Blame) -> Result<(String, Hello), Error> {
    #[derive(Deserialize)]
    struct Wire<'a> {
        #[serde(borrow)]
        result: Initialized<'a>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Initialized<'a> {
        protocol_version: String,
        #[serde(default)]
        capabilities: Offers,
        #[serde(borrow)]
        server_info: Option<&'a RawValue>,
        #[serde(borrow)]
        instructions: Option<&'a RawValue>,
    }
    let wire: Wire<'_> =
        serde_json::from_slice(answer).map_err(|_| blame.protocol("initialize was answered without a version"))?;
    let Initialized { protocol_version: version, capabilities: offers, server_info, instructions } = wire.result;
    if Era::of(&version) != Some(Era::Legacy) {
        return Err(blame.protocol("it negotiates a version that nobody knows"));
    }
    let text = |raw: &RawValue, first: char| raw.get().starts_with(first).then(|| raw.get().to_owned());
    let server_info = server_info.and_then(|raw| text(raw, '{'));
    let instructions = instructions.and_then(|raw| text(raw, '"'));
    Ok((version, Hello { server_info, instructions, offers }))
}
