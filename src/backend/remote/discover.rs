//! What does the upstream offer? The catalog of one backend, and asking the upstream for it in either era.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Ask;
use super::Blame;
use super::Config;
use super::Reach;
use super::left;
use crate::backend::Answer;
use crate::backend::Content;
use crate::backend::Error;
use crate::catalog::Catalog;
use crate::catalog::Decl;
use crate::catalog::Effects;
use crate::catalog::Kind as DeclKind;
use crate::catalog::Operation;
use crate::credentials::Credential;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::Kind;
use crate::mcp::LEGACY_VERSIONS;
use crate::mcp::MODERN_VERSIONS;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::Params;
use crate::mcp::error;
use crate::mcp::list::Entry;
use crate::mcp::list::ListKind;
use crate::mcp::list::Page;

/// After a success nobody asks again for so long.
const COOL_DOWN: Duration = Duration::from_secs(1);

/// After failures the pause doubles from [`COOL_DOWN`] up to this.
const COOL_DOWN_MAX: Duration = Duration::from_secs(60);

const PAGES_MAX: usize = 100;

/// Tools of one backend. More cannot be used by any model, and each costs a decision per list.
const TOOLS_MAX: usize = 10_000;

/// Events before the answer to a request of ours.
const EVENTS_MAX: usize = 1_000;

/// A server that is silent when asked in the modern way is a legacy one (stdio transport §Backward Compatibility).
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The catalog of one backend, and when it was asked for.
pub(super) struct Shelf {
    blame: Blame,
    effects: Effects,
    /// The era that is configured.
    era: Option<Era>,
    ttl: Duration,
    catalog: ArcSwap<Catalog>,
    times: Mutex<Times>,
    /// Held while the upstream is being asked: whoever comes meanwhile waits and takes the same outcome.
    flight: tokio::sync::Mutex<Flight>,
}

#[derive(Default)]
struct Times {
    /// The era of the last fetch.
    found: Option<Era>,
    fetched: Option<Instant>,
    renewal: Option<Instant>,
}

#[derive(Default)]
struct Flight {
    last: Option<(Instant, Result<(), Error>)>,
    failures: u32,
    /// The era that the upstream was found to speak.
    found: Option<Era>,
}

impl Flight {
    fn pause(&self) -> Duration {
        COOL_DOWN.saturating_mul(1 << self.failures.saturating_sub(1).min(16)).min(COOL_DOWN_MAX)
    }
}

impl Shelf {
    pub(super) fn new(config: &Config) -> Shelf {
        Shelf {
            blame: Blame(config.name.clone()),
            effects: config.effects.clone(),
            era: config.era,
            ttl: config.catalog_ttl,
            catalog: ArcSwap::default(),
            times: Mutex::new(Times::default()),
            flight: tokio::sync::Mutex::new(Flight::default()),
        }
    }

    pub(super) fn catalog(&self) -> Arc<Catalog> {
        self.catalog.load_full()
    }

    /// The era that the upstream was found to speak.
    pub(super) fn found(&self) -> Option<Era> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).found
    }

    /// Is the catalog older than its lifetime? Says yes to one caller per pause. A catalog that was never fetched is
    /// not renewed but fetched, by whoever needs it.
    pub(super) fn wants_renewal(&self) -> bool {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let old = times.fetched.is_some_and(|at| at.elapsed() > self.ttl);
        let alone = times.renewal.is_none_or(|at| at.elapsed() > COOL_DOWN);
        if old && alone {
            times.renewal = Some(Instant::now());
        }
        old && alone
    }

    pub(super) async fn refresh<U: Reach>(
        &self,
        upstream: &U,
        credential: &Credential,
        deadline: Instant,
    ) -> Result<Arc<Catalog>, Error> {
        let Ok(mut flight) = pingora::time::timeout(left(deadline), self.flight.lock()).await else {
            return Err(self.blame.timeout());
        };
        if let Some((at, outcome)) = &flight.last
            && at.elapsed() < flight.pause()
        {
            return outcome.clone().map(|()| self.catalog());
        }
        let fetch = Fetch { upstream, blame: &self.blame, credential, deadline };
        let fetched = pingora::time::timeout(left(deadline), fetch.tools(self.era, flight.found)).await;
        let outcome = fetched.unwrap_or_else(|_| Err(self.blame.timeout())).map(|(era, tools)| {
            flight.found = Some(era);
            self.times.lock().unwrap_or_else(PoisonError::into_inner).found = Some(era);
            tracing::debug!(backend = %self.blame.0, era = era.as_str(), tools = tools.len(), "tool catalog fetched");
            self.replace(&tools);
        });
        flight.failures = if outcome.is_ok() { 0 } else { flight.failures.saturating_add(1) };
        flight.last = Some((Instant::now(), outcome.clone()));
        outcome.map(|()| self.catalog())
    }

    fn declare(&self, entry: &Entry) -> Arc<Decl> {
        Arc::new(Decl {
            kind: DeclKind::Tool,
            backend: self.blame.0.clone(),
            name: entry.name.as_str().into(),
            effect: self.effects.classify(&entry.name, entry.hints),
            idempotent: self.effects.idempotent(entry.hints),
            // A copy: the slice would keep the whole page alive.
            wire: Bytes::copy_from_slice(&entry.wire),
            headers: entry.headers.clone(),
        })
    }

    fn replace(&self, entries: &[Entry]) {
        let mut tools = HashMap::with_capacity(entries.len());
        let mut twice = HashSet::new();
        for entry in entries {
            // INVARIANT: a page hides its own doubles; here those across pages.
            if !entry.valid || tools.insert(entry.name.as_str().into(), self.declare(entry)).is_some() {
                twice.insert(entry.name.as_str());
            }
        }
        tools.retain(|name: &Arc<str>, _| !twice.contains(name.as_ref()));
        self.catalog.store(Arc::new(Catalog { tools }));
        self.times.lock().unwrap_or_else(PoisonError::into_inner).fetched = Some(Instant::now());
    }

    /// Takes over what differs. The usual page says nothing new and costs one comparison per tool.
    pub(super) fn learn(&self, entries: &[Entry]) {
        let differs = |catalog: &Catalog, entry: &Entry| match catalog.tools.get(entry.name.as_str()) {
            Some(decl) => !entry.valid || decl.wire != entry.wire,
            None => entry.valid,
        };
        let known = self.catalog.load();
        let changed: Vec<&Entry> = entries.iter().filter(|entry| differs(&known, entry)).collect();
        if changed.is_empty() {
            return;
        }
        self.catalog.rcu(|catalog| {
            let mut tools = catalog.tools.clone();
            for entry in &changed {
                if !entry.valid {
                    tools.remove(entry.name.as_str());
                } else if tools.len() < TOOLS_MAX || tools.contains_key(entry.name.as_str()) {
                    tools.insert(entry.name.as_str().into(), self.declare(entry));
                }
            }
            Catalog { tools }
        });
    }
}

/// One walk through the pages of an upstream's `tools/list`.
struct Fetch<'a, U> {
    upstream: &'a U,
    blame: &'a Blame,
    credential: &'a Credential,
    deadline: Instant,
}

/// What an upstream made of a request.
enum Outcome {
    Result(Bytes),
    Refused { code: i64 },
}

/// Why a walk in the modern way came to nothing.
enum Modern {
    /// The upstream is no modern one, or not recognisably so.
    Foreign {
        tools_unknown: bool,
    },
    Failed(Error),
}

/// A legacy session while it lasts; stateless legacy servers give no id.
struct Session {
    id: Option<String>,
    version: String,
}

impl<U: Reach> Fetch<'_, U> {
    /// The tools, and the era they were got in: the configured one, else the one found before, else by asking.
    async fn tools(&self, configured: Option<Era>, found: Option<Era>) -> Result<(Era, Vec<Entry>), Error> {
        if let Some(era) = configured {
            let tools = match era {
                Era::Legacy => self.legacy().await?,
                Era::Modern => match self.modern(self.deadline).await {
                    Ok(tools) => tools,
                    Err(Modern::Foreign { tools_unknown: true }) => Vec::new(),
                    Err(Modern::Foreign { .. }) => {
                        return Err(self.blame.protocol("it does not answer tools/list in the modern era"));
                    }
                    Err(Modern::Failed(error)) => return Err(error),
                },
            };
            return Ok((era, tools));
        }
        if found == Some(Era::Legacy) {
            match self.legacy().await {
                // It may have been replaced by a modern one since.
                Err(Error::Protocol { .. }) => {}
                outcome => return outcome.map(|tools| (Era::Legacy, tools)),
            }
        }
        let probe = self.deadline.min(Instant::now() + PROBE_TIMEOUT);
        match self.modern(probe).await {
            Ok(tools) => Ok((Era::Modern, tools)),
            Err(Modern::Failed(error)) => Err(error),
            Err(Modern::Foreign { tools_unknown }) => match self.legacy().await {
                // It knows neither tools nor `initialize`: a modern server that has no tools.
                Err(Error::Protocol { .. }) if tools_unknown => Ok((Era::Modern, Vec::new())),
                outcome => outcome.map(|tools| (Era::Legacy, tools)),
            },
        }
    }

    async fn modern(&self, probe: Instant) -> Result<Vec<Entry>, Modern> {
        let version = MODERN_VERSIONS.first().copied().unwrap_or_default();
        let mut walk = Walk::default();
        loop {
            let params = params(walk.cursor.as_deref(), Some(version));
            let first = walk.pages == 0;
            let until = if first { probe } else { self.deadline };
            let outcome = match self.request(Method::ToolsList, params, Era::Modern, None, walk.pages, until).await {
                Ok(outcome) => outcome,
                // SPEC: versioning §Backward Compatibility: whatever is no modern error means legacy.
                Err(Error::Protocol { .. } | Error::SessionLost { .. }) if first => {
                    return Err(Modern::Foreign { tools_unknown: false });
                }
                Err(Error::Timeout { .. }) if first && probe < self.deadline => {
                    return Err(Modern::Foreign { tools_unknown: false });
                }
                Err(error) => return Err(Modern::Failed(error)),
            };
            match outcome {
                Outcome::Result(answer) if first && !has_result_type(&answer) => {
                    return Err(Modern::Foreign { tools_unknown: false });
                }
                Outcome::Result(answer) => {
                    match walk.take(&answer).map_err(|what| Modern::Failed(self.blame.protocol(what)))? {
                        Step::Done(tools) => return Ok(tools),
                        Step::Next => {}
                    }
                }
                Outcome::Refused {
                    code:
                        error::HEADER_MISMATCH | error::MISSING_CLIENT_CAPABILITY | error::UNSUPPORTED_PROTOCOL_VERSION,
                } => {
                    return Err(Modern::Failed(
                        self.blame.protocol(format!("it is modern, but refuses protocol version {version}")),
                    ));
                }
                Outcome::Refused { code } if first => {
                    return Err(Modern::Foreign { tools_unknown: code == error::METHOD_NOT_FOUND });
                }
                Outcome::Refused { code } => {
                    return Err(Modern::Failed(self.blame.protocol(format!("tools/list failed midway ({code})"))));
                }
            }
        }
    }

    async fn legacy(&self) -> Result<Vec<Entry>, Error> {
        let version = LEGACY_VERSIONS.first().copied().unwrap_or_default();
        let hello = format!(
            r#"{{"protocolVersion":"{version}","capabilities":{{}},"clientInfo":{{"name":"wardgate","version":"{}"}}}}"#,
            env!("CARGO_PKG_VERSION")
        );
        let (answer, id) = self.initialize(Params { raw: Some(hello.into()), ..Params::default() }).await?;
        let session = Session { id, version: self.negotiated(&answer)? };
        let tools = self.pages(&session).await;
        if session.id.is_some() {
            // The outcome does not matter: many servers keep sessions until they time out.
            drop(self.ask(&Operation::EndSession, Some(&session), self.deadline).await);
        }
        tools
    }

    async fn initialize(&self, params: Params) -> Result<(Bytes, Option<String>), Error> {
        let id = Id::number(0);
        let message = message(Some(id.clone()), Method::Initialize, params, Era::Legacy);
        let answer = self.ask(&Operation::Post(message), None, self.deadline).await?;
        let session = answer.session.clone();
        match self.outcome(answer, &id).await? {
            Outcome::Result(answer) => Ok((answer, session)),
            Outcome::Refused { code } => Err(self.blame.protocol(format!("initialize was refused ({code})"))),
        }
    }

    fn negotiated(&self, answer: &[u8]) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Wire {
            result: Initialized,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Initialized {
            protocol_version: String,
        }
        let wire: Wire = serde_json::from_slice(answer)
            .map_err(|_| self.blame.protocol("initialize was answered without a version"))?;
        let version = wire.result.protocol_version;
        if Era::of(&version) == Some(Era::Legacy) {
            Ok(version)
        } else {
            Err(self.blame.protocol("it negotiates a version that nobody knows"))
        }
    }

    async fn pages(&self, session: &Session) -> Result<Vec<Entry>, Error> {
        let ready = message(None, Method::NotificationsInitialized, Params::default(), Era::Legacy);
        self.ask(&Operation::Post(ready), Some(session), self.deadline).await?;
        let mut walk = Walk::default();
        loop {
            let params = params(walk.cursor.as_deref(), None);
            match self.request(Method::ToolsList, params, Era::Legacy, Some(session), walk.pages, self.deadline).await?
            {
                Outcome::Result(answer) => match walk.take(&answer).map_err(|what| self.blame.protocol(what))? {
                    Step::Done(tools) => return Ok(tools),
                    Step::Next => {}
                },
                Outcome::Refused { code: error::METHOD_NOT_FOUND } if walk.pages == 0 => return Ok(Vec::new()),
                Outcome::Refused { code } => {
                    return Err(self.blame.protocol(format!("tools/list was refused ({code})")));
                }
            }
        }
    }

    async fn request(
        &self,
        method: Method,
        params: Params,
        era: Era,
        session: Option<&Session>,
        page: usize,
        until: Instant,
    ) -> Result<Outcome, Error> {
        let id = Id::number(page as u64 + 1);
        let message = message(Some(id.clone()), method, params, era);
        let work = async {
            let answer = self.ask(&Operation::Post(message), session, until).await?;
            self.outcome(answer, &id).await
        };
        pingora::time::timeout(left(until), work).await.unwrap_or_else(|_| Err(self.blame.timeout()))
    }

    async fn ask(&self, operation: &Operation, session: Option<&Session>, until: Instant) -> Result<Answer, Error> {
        let ask = Ask {
            operation,
            session: session.and_then(|session| session.id.as_deref()),
            version: session.map(|session| session.version.as_str()),
            bindings: &[],
            repeatable: true,
        };
        self.upstream.ask(ask, self.credential, until).await
    }

    /// The response to the request with this id, out of a plain answer or an event stream.
    async fn outcome(&self, answer: Answer, id: &Id) -> Result<Outcome, Error> {
        match answer.content {
            Content::Empty => Err(self.blame.protocol("a request was answered by nothing")),
            Content::Json(body) => response(&body, id)
                .map_err(|what| self.blame.protocol(what))?
                .ok_or_else(|| self.blame.protocol("the answer is to another request")),
            Content::Events(mut events) => {
                for _ in 0..EVENTS_MAX {
                    let Some(event) = events.next().await else {
                        break;
                    };
                    let Some(data) = event?.data.filter(|data| !data.is_empty()) else {
                        continue;
                    };
                    if let Some(outcome) = response(&data, id).map_err(|what| self.blame.protocol(what))? {
                        return Ok(outcome);
                    }
                }
                Err(self.blame.protocol("the stream ended without an answer"))
            }
        }
    }
}

fn message(id: Option<Id>, method: Method, params: Params, era: Era) -> Message {
    let kind = id.map_or(Kind::Notification, |id| Kind::Request { id });
    Message { kind, method: Some(method), era, params, outcome: None }
}

fn params(cursor: Option<&str>, version: Option<&str>) -> Params {
    let mut raw = serde_json::Map::new();
    if let Some(cursor) = cursor {
        raw.insert("cursor".into(), cursor.into());
    }
    if let Some(version) = version {
        let meta = serde_json::json!({
            "io.modelcontextprotocol/protocolVersion": version,
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": { "name": "wardgate", "version": env!("CARGO_PKG_VERSION") },
        });
        raw.insert("_meta".into(), meta);
    }
    let raw = serde_json::Value::Object(raw).to_string().into();
    Params { raw: Some(raw), version: version.map(str::to_owned), capabilities: version.is_some(), ..Params::default() }
}

#[derive(Deserialize)]
struct ResponseWire<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<ErrorWire>,
}

#[derive(Deserialize)]
struct ErrorWire {
    code: i64,
}

/// `Ok(None)`: a message, but not the response to this id.
fn response(body: &Bytes, id: &Id) -> Result<Option<Outcome>, &'static str> {
    let wire: ResponseWire<'_> = serde_json::from_slice(body).map_err(|_| "not a JSON-RPC message")?;
    let answers = wire.id.and_then(|raw| Id::from_json(raw.get())).map(|got| got.same(id));
    Ok(match (wire.method, wire.result, wire.error) {
        (None, Some(_), None) if answers == Some(true) => Some(Outcome::Result(body.clone())),
        // An error about a request that the server could not read has no id.
        (None, None, Some(error)) if answers != Some(false) => Some(Outcome::Refused { code: error.code }),
        _ => None,
    })
}

/// SPEC: 2026-07-28 basic/index: every result says its type. A legacy server that ignores what it does not know, does not.
fn has_result_type(answer: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Wire {
        result: Typed,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        result_type: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_slice::<Wire>(answer).is_ok_and(|wire| wire.result.result_type.is_some())
}

/// The pages so far.
#[derive(Default)]
struct Walk {
    pages: usize,
    cursor: Option<String>,
    seen: HashSet<String>,
    tools: Vec<Entry>,
}

enum Step {
    Done(Vec<Entry>),
    Next,
}

impl Walk {
    fn take(&mut self, answer: &Bytes) -> Result<Step, &'static str> {
        let page = Page::parse(ListKind::Tools, answer)?;
        self.pages += 1;
        self.tools.extend(page.entries);
        if self.tools.len() > TOOLS_MAX {
            return Err("tools/list has too many tools");
        }
        let Some(cursor) = page.next_cursor else {
            return Ok(Step::Done(std::mem::take(&mut self.tools)));
        };
        if self.pages >= PAGES_MAX {
            return Err("tools/list has too many pages");
        }
        if !self.seen.insert(cursor.clone()) {
            return Err("tools/list repeats a cursor");
        }
        self.cursor = Some(cursor);
        Ok(Step::Next)
    }
}
