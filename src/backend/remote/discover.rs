//! What does the upstream offer? The catalog of one backend, and asking the upstream for it in either era.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::Deserialize;

use super::Ask;
use super::Blame;
use super::Config;
use super::Reach;
use super::left;
use super::outcome::Outcome;
use super::outcome::outcome;
use super::session::Introduction;
use super::session::Line;
use super::session::Session;
use super::speech::Speech;
use crate::backend::Error;
use crate::catalog::Catalog;
use crate::catalog::Decl;
use crate::catalog::Effects;
use crate::catalog::Kind as DeclKind;
use crate::catalog::Operation;
use crate::catalog::Quarantined;
use crate::catalog::pins::Pins;
use crate::credentials::Credential;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::Kind;
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

/// What discovery declares as a client's capabilities. Some servers show a tool that asks only to clients that can be
/// asked; the catalog must know it all the same. Discovery itself calls nothing, so it is never asked.
pub(super) const ABILITIES: &str = r#"{"elicitation":{"form":{},"url":{}},"sampling":{},"roots":{}}"#;

/// A server that is silent when asked in the modern way is a legacy one (stdio transport §Backward Compatibility), or still
/// starting. After this it is asked in the legacy way too, and what it answers first counts: a program that was started
/// later and has answered by then shows that the silent one is not starting any more.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The catalog of one backend, and when it was asked for.
pub(super) struct Shelf {
    blame: Blame,
    effects: Effects,
    speech: Arc<Speech>,
    ttl: Duration,
    probe_timeout: Duration,
    catalog: ArcSwap<Catalog>,
    /// The upstream said that its tools changed, and was not asked since.
    doubted: AtomicBool,
    times: Mutex<Times>,
    /// Held while the upstream is being asked: whoever comes meanwhile waits and takes the same outcome.
    flight: tokio::sync::Mutex<Flight>,
}

#[derive(Default)]
struct Times {
    fetched: Option<Instant>,
    renewal: Option<Instant>,
}

#[derive(Default)]
struct Flight {
    last: Option<(Instant, Result<(), Error>)>,
    /// Who asked last, where callers have credentials of their own.
    whose: Option<[u8; 32]>,
    failures: u32,
}

impl Flight {
    fn pause(&self) -> Duration {
        COOL_DOWN.saturating_mul(1 << self.failures.saturating_sub(1).min(16)).min(COOL_DOWN_MAX)
    }
}

impl Shelf {
    pub(super) fn new(config: &Config, speech: Arc<Speech>) -> Shelf {
        Shelf {
            blame: Blame(config.name.clone()),
            effects: config.effects.clone(),
            speech,
            ttl: config.catalog_ttl,
            probe_timeout: PROBE_TIMEOUT,
            catalog: ArcSwap::from_pointee(Catalog {
                pins: config.pins.as_ref().map(|pinning| pinning.pins.clone()),
                ..Catalog::default()
            }),
            doubted: AtomicBool::new(false),
            times: Mutex::new(Times::default()),
            flight: tokio::sync::Mutex::new(Flight::default()),
        }
    }

    #[cfg(test)]
    pub(super) fn probing_for(mut self, probe_timeout: Duration) -> Shelf {
        self.probe_timeout = probe_timeout;
        self
    }

    pub(super) fn catalog(&self) -> Arc<Catalog> {
        self.catalog.load_full()
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

    /// The era that the upstream speaks; asked for together with the catalog if it is not known or in doubt.
    ///
    /// # Errors
    /// When the upstream cannot be asked.
    pub(super) async fn era(
        &self,
        upstream: &Arc<dyn Reach>,
        credential: &Arc<Credential>,
        deadline: Instant,
    ) -> Result<Era, Error> {
        if let Some(era) = self.speech.known() {
            return Ok(era);
        }
        let fetched = self.refresh(upstream, credential, deadline).await;
        // It may have told its era and still failed to tell its tools.
        match (self.speech.known(), fetched) {
            (Some(era), _) => Ok(era),
            (None, Err(error)) => Err(error),
            (None, Ok(_)) => Err(self.blame.protocol("it does not say which era it speaks")),
        }
    }

    pub(super) async fn refresh(
        &self,
        upstream: &Arc<dyn Reach>,
        credential: &Arc<Credential>,
        deadline: Instant,
    ) -> Result<Arc<Catalog>, Error> {
        let Ok(mut flight) = pingora::time::timeout(left(deadline), self.flight.lock()).await else {
            return Err(self.blame.timeout());
        };
        if let Some((at, outcome)) = &flight.last
            && at.elapsed() < flight.pause()
            // What one caller was told says nothing of what another one is.
            && (flight.whose == credential.identity() || !credential.is_personal())
            // A success says nothing of an era that was put in doubt since.
            && (outcome.is_err() || self.speech.known().is_some())
        {
            return outcome.clone().map(|()| self.catalog());
        }
        let line = Line {
            upstream: upstream.clone(),
            credential: credential.clone(),
            owner: "".into(),
            share: "".into(),
            blame: self.blame.clone(),
        };
        let (probe_timeout, heard) = (self.probe_timeout, AtomicBool::new(false));
        let fetch = Fetch { line, blame: &self.blame, speech: &self.speech, deadline, probe_timeout, heard };
        // Before it is asked: what it says while it answers counts.
        let doubted = self.doubted.swap(false, Ordering::AcqRel);
        let fetched = pingora::time::timeout(left(deadline), fetch.tools()).await;
        let outcome = fetched.unwrap_or_else(|_| Err(self.blame.timeout())).map(|(era, tools)| {
            self.speech.learn(era);
            tracing::debug!(backend = %self.blame.0, era = era.as_str(), tools = tools.len(), "tool catalog fetched");
            // Each caller of such an upstream may be told of other tools: none of them takes another one's away.
            if credential.is_personal() {
                self.learn(&tools);
                self.times.lock().unwrap_or_else(PoisonError::into_inner).fetched = Some(Instant::now());
            } else {
                self.replace(&tools);
            }
        });
        if outcome.is_err() && doubted {
            self.doubt();
        }
        // One caller's trouble says nothing to the next.
        if credential.is_personal() && outcome.is_err() {
            return outcome.map(|()| self.catalog());
        }
        flight.whose = credential.identity();
        flight.failures = if outcome.is_ok() { 0 } else { flight.failures.saturating_add(1) };
        flight.last = Some((Instant::now(), outcome.clone()));
        outcome.map(|()| self.catalog())
    }

    pub(super) fn doubt(&self) {
        self.doubted.store(true, Ordering::Release);
    }

    /// A tool that is pinned is not called while its upstream says that it changed: it is asked first, at most once per
    /// [`COOL_DOWN`], however often it says so.
    pub(super) fn in_doubt(&self) -> bool {
        self.doubted.load(Ordering::Acquire) && self.catalog.load().pins.is_some()
    }

    fn declare(&self, entry: &Entry) -> Decl {
        Decl {
            kind: DeclKind::Tool,
            backend: self.blame.0.clone(),
            name: entry.name.as_str().into(),
            effect: self.effects.classify(&entry.name, entry.hints),
            idempotent: self.effects.idempotent(entry.hints),
            // A copy: the slice would keep the whole page alive.
            wire: Bytes::copy_from_slice(&entry.wire),
            headers: entry.headers.clone(),
            varies: self.effects.varies(&entry.name, entry.hints).map(Arc::new),
        }
    }

    /// Puts an entry where it belongs: among the tools, or, if there are pins and it is not as it was approved, not.
    fn shelve(&self, catalog: &mut Catalog, entry: &Entry) {
        let name: Arc<str> = entry.name.as_str().into();
        let mut decl = self.declare(entry);
        match catalog.pins.as_ref().map(|pins| pins.judge(&name, &entry.wire)) {
            None => {}
            // The file names one effect, for whatever arguments.
            Some(Ok(pinned)) => {
                (decl.effect, decl.idempotent, decl.varies) = (pinned.effect, pinned.idempotent, None);
            }
            Some(Err(why)) => {
                catalog.tools.remove(&name);
                if catalog.quarantined.len() < TOOLS_MAX || catalog.quarantined.contains_key(&name) {
                    catalog.quarantined.insert(name, Quarantined { why, wire: decl.wire });
                }
                return;
            }
        }
        catalog.quarantined.remove(&name);
        if catalog.tools.len() < TOOLS_MAX || catalog.tools.contains_key(&name) {
            catalog.tools.insert(name, Arc::new(decl));
        }
    }

    /// The whole list, newly told.
    fn replace(&self, entries: &[Entry]) {
        let mut seen = HashSet::with_capacity(entries.len());
        // INVARIANT: a page hides its own doubles; here those across pages.
        let twice: HashSet<&str> = entries
            .iter()
            .filter(|entry| !seen.insert(entry.name.as_str()) || !entry.valid)
            .map(|entry| entry.name.as_str())
            .collect();
        self.catalog.rcu(|old| {
            let mut catalog = Catalog { pins: old.pins.clone(), ..Catalog::default() };
            catalog.tools.reserve(entries.len());
            for entry in entries.iter().filter(|entry| !twice.contains(entry.name.as_str())) {
                // What did not change was judged already.
                match old.tools.get_key_value(entry.name.as_str()) {
                    Some((name, decl)) if decl.wire == entry.wire => {
                        catalog.tools.insert(name.clone(), decl.clone());
                    }
                    _ => self.shelve(&mut catalog, entry),
                }
            }
            catalog
        });
        self.times.lock().unwrap_or_else(PoisonError::into_inner).fetched = Some(Instant::now());
    }

    /// Takes over what differs. The usual page says nothing new and costs one comparison per tool.
    pub(super) fn learn(&self, entries: &[Entry]) {
        let differs = |catalog: &Catalog, entry: &Entry| match catalog.tools.get(entry.name.as_str()) {
            Some(decl) => !entry.valid || decl.wire != entry.wire,
            None => {
                let known = catalog.quarantined.get(entry.name.as_str()).is_some_and(|known| known.wire == entry.wire);
                entry.valid && !known
            }
        };
        let known = self.catalog.load();
        let changed: Vec<&Entry> = entries.iter().filter(|entry| differs(&known, entry)).collect();
        if changed.is_empty() {
            return;
        }
        self.catalog.rcu(|old| {
            let (tools, quarantined) = (old.tools.clone(), old.quarantined.clone());
            let mut catalog = Catalog { tools, quarantined, pins: old.pins.clone() };
            for entry in &changed {
                if entry.valid {
                    self.shelve(&mut catalog, entry);
                } else {
                    catalog.tools.remove(entry.name.as_str());
                }
            }
            catalog
        });
    }

    /// Other pins: everything that is known is judged by them.
    pub(super) fn pin(&self, pins: &Option<Arc<Pins>>) {
        self.catalog.rcu(|old| {
            let mut catalog = Catalog { pins: pins.clone(), ..Catalog::default() };
            let wires = old.tools.values().map(|decl| &decl.wire);
            for wire in wires.chain(old.quarantined.values().map(|known| &known.wire)) {
                let entry = Entry::tool(wire);
                if entry.valid {
                    self.shelve(&mut catalog, &entry);
                }
            }
            catalog
        });
    }
}

/// One walk through the pages of an upstream's `tools/list`.
struct Fetch<'a> {
    line: Line,
    blame: &'a Blame,
    speech: &'a Speech,
    deadline: Instant,
    probe_timeout: Duration,
    /// It has answered in the modern way.
    heard: AtomicBool,
}

/// Why a walk in the modern way came to nothing.
enum Modern {
    /// The upstream is no modern one, or not recognisably so.
    Foreign {
        tools_unknown: bool,
    },
    Failed(Error),
}

impl Fetch<'_> {
    /// The tools, and the era they were got in: the configured one, else the one found before, else by asking.
    async fn tools(&self) -> Result<(Era, Vec<Entry>), Error> {
        if let Some(era) = self.speech.configured() {
            let tools = match era {
                Era::Legacy => self.legacy().await?,
                Era::Modern => match self.modern().await {
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
        // In doubt it is asked anew in the modern way: that harms no legacy server.
        if self.speech.known() == Some(Era::Legacy) {
            match self.legacy().await {
                // It may have been replaced by a modern one since.
                Err(Error::Protocol { .. }) => {}
                outcome => return outcome.map(|tools| (Era::Legacy, tools)),
            }
        }
        self.find_out().await
    }

    /// In the modern way first, and in the legacy way when that is refused or not answered in time.
    async fn find_out(&self) -> Result<(Era, Vec<Entry>), Error> {
        let mut modern = std::pin::pin!(self.modern());
        let early = pingora::time::timeout(self.probe_timeout.min(left(self.deadline)), &mut modern).await;
        match early {
            Ok(outcome) => return self.settle(outcome, self.legacy()).await,
            // It takes its time for further pages.
            Err(_) if self.heard.load(Ordering::Relaxed) => return self.settle(modern.await, self.legacy()).await,
            Err(_) => {}
        }
        let mut legacy = std::pin::pin!(self.legacy());
        tokio::select! {
            biased;
            outcome = &mut modern => self.settle(outcome, legacy).await,
            found = &mut legacy => match found {
                Ok(tools) => Ok((Era::Legacy, tools)),
                // It may be a modern one that does not know `initialize` and is slow.
                Err(refused) => match modern.await {
                    Ok(tools) => Ok((Era::Modern, tools)),
                    Err(Modern::Foreign { .. } | Modern::Failed(_)) => Err(refused),
                },
            }
        }
    }

    /// What the answer to the modern question means; `legacy` is asked, or asked on, if it is needed.
    async fn settle(
        &self,
        modern: Result<Vec<Entry>, Modern>,
        legacy: impl Future<Output = Result<Vec<Entry>, Error>>,
    ) -> Result<(Era, Vec<Entry>), Error> {
        match modern {
            Ok(tools) => Ok((Era::Modern, tools)),
            Err(Modern::Failed(error)) => Err(error),
            Err(Modern::Foreign { tools_unknown }) => match legacy.await {
                // It knows neither tools nor `initialize`: a modern server that has no tools.
                Err(Error::Protocol { .. }) if tools_unknown => Ok((Era::Modern, Vec::new())),
                outcome => outcome.map(|tools| (Era::Legacy, tools)),
            },
        }
    }

    async fn modern(&self) -> Result<Vec<Entry>, Modern> {
        let version = MODERN_VERSIONS.first().copied().unwrap_or_default();
        let mut walk = Walk::default();
        loop {
            let params = params(walk.cursor.as_deref(), Some(version));
            let first = walk.pages == 0;
            let outcome = match self.ask_modern(params, walk.pages).await {
                Ok(outcome) => outcome,
                // SPEC: versioning §Backward Compatibility: whatever is no modern error means legacy.
                Err(Error::Protocol { .. } | Error::SessionLost { .. }) if first => {
                    return Err(Modern::Foreign { tools_unknown: false });
                }
                Err(error) => return Err(Modern::Failed(error)),
            };
            match outcome {
                Outcome::Result(answer) if first && !has_result_type(&answer) => {
                    return Err(Modern::Foreign { tools_unknown: false });
                }
                Outcome::Result(answer) => {
                    self.heard.store(true, Ordering::Relaxed);
                    match walk.take(&answer).map_err(|what| Modern::Failed(self.blame.protocol(what)))? {
                        Step::Done(tools) => return Ok(tools),
                        Step::Next => {}
                    }
                }
                Outcome::Refused {
                    code:
                        error::HEADER_MISMATCH | error::MISSING_CLIENT_CAPABILITY | error::UNSUPPORTED_PROTOCOL_VERSION,
                } => {
                    self.speech.learn(Era::Modern);
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
        let who = Introduction { info: None, capabilities: Some(ABILITIES.to_owned()) };
        let session = Session::open(self.line.clone(), &who, self.deadline).await?;
        // The handshake settles the era, whatever becomes of the list.
        self.speech.learn(Era::Legacy);
        let tools = self.pages(&session).await;
        session.end().await;
        tools
    }

    async fn pages(&self, session: &Session) -> Result<Vec<Entry>, Error> {
        let mut walk = Walk::default();
        loop {
            let params = params(walk.cursor.as_deref(), None).raw.unwrap_or_default();
            match session.request(Method::ToolsList, params, self.deadline).await? {
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

    async fn ask_modern(&self, params: Params, page: usize) -> Result<Outcome, Error> {
        let id = Id::number(page as u64 + 1);
        let operation = Operation::Post(Message {
            kind: Kind::Request { id: id.clone() },
            method: Some(Method::ToolsList),
            era: Era::Modern,
            params,
            outcome: None,
        });
        let ask = Ask {
            operation: &operation,
            session: None,
            version: None,
            bindings: &[],
            repeatable: true,
            owner: "",
            share: "",
            reached: None,
        };
        let work = async {
            let answer = self.line.upstream.ask(ask, &self.line.credential, self.deadline).await?;
            outcome(answer, &id, self.blame).await
        };
        pingora::time::timeout(left(self.deadline), work).await.unwrap_or_else(|_| Err(self.blame.timeout()))
    }
}

fn params(cursor: Option<&str>, version: Option<&str>) -> Params {
    let mut raw = serde_json::Map::new();
    if let Some(cursor) = cursor {
        raw.insert("cursor".into(), cursor.into());
    }
    if let Some(version) = version {
        let abilities: serde_json::Value = serde_json::from_str(ABILITIES).unwrap_or_default();
        let meta = serde_json::json!({
            "io.modelcontextprotocol/protocolVersion": version,
            "io.modelcontextprotocol/clientCapabilities": abilities,
            "io.modelcontextprotocol/clientInfo": { "name": "wardgate", "version": env!("CARGO_PKG_VERSION") },
        });
        raw.insert("_meta".into(), meta);
    }
    let raw = serde_json::Value::Object(raw).to_string().into();
    Params { raw: Some(raw), version: version.map(str::to_owned), capabilities: version.is_some(), ..Params::default() }
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
