//! One Redis or Valkey: a connection that is kept, and one script call per question over it.
//!
//! A keeper connects, tries the script, and connects again when it is lost. Calls use what the keeper has: while there is
//! nothing they do not wait, so a server that is away costs only those calls that were on their way to it.

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::AsyncConnectionConfig;
use redis::Client;
use redis::ConnectionAddr;
use redis::IntoConnectionInfo as _;
use redis::RedisError;
use redis::Script;
use redis::TlsCertificates;
use redis::aio::MultiplexedConnection;
use tokio::sync::Notify;
use tokio::sync::watch;

use super::Address;
use super::Away;
use super::Config;
use super::Invalid;

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("judge.lua")));

/// Questions in a row without a good answer: the connection is given up. One that is lost for certain is at once.
const FAILURES_MAX: u32 = 3;

/// Between two tries to connect; doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A connection that nobody uses is looked after so often.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Keys and their three arguments each.
#[derive(Default)]
pub(super) struct Question {
    keys: Vec<String>,
    words: Vec<(&'static str, u64, i64)>,
}

impl Question {
    pub(super) fn add(&mut self, key: String, kind: &'static str, first: u64, second: i64) {
        self.keys.push(key);
        self.words.push((kind, first, second));
    }
}

pub(super) struct Verdict {
    /// The place of the claim that refuses.
    pub(super) refused_by: Option<usize>,
    pub(super) wait: Duration,
    /// Of a quota's window.
    pub(super) ends_s: u64,
}

pub(super) struct Node {
    name: String,
    client: Client,
    /// What the keeper tries with: the bucket is gone after a millisecond.
    probe: String,
    timeout: Duration,
    connect_timeout: Duration,
    line: ArcSwapOption<MultiplexedConnection>,
    failures: AtomicU32,
    broken: Notify,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Untried,
    Up,
    Down,
}

impl Node {
    pub(super) fn new(address: &Address, config: &Config, ca: Option<Vec<u8>>) -> Result<Node, Invalid> {
        let Address { tls, host, port, database } = address;
        let invalid = |error: RedisError| Invalid { what: format!("`{host}:{port}` is not usable: {error}") };
        if *tls {
            // The crate takes the process's provider.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let at = match tls {
            true => ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None },
            false => ConnectionAddr::Tcp(host.clone(), *port),
        };
        let info = at.into_connection_info().map_err(invalid)?;
        // A login that may do nothing but count need not be allowed to name its library.
        let mut login = info.redis_settings().clone().set_db(i64::from(*database)).set_skip_set_lib_name();
        if let Some(user) = &config.user {
            login = login.set_username(user);
        }
        if let Some(password) = &config.password {
            login = login.set_password(password.expose());
        }
        let info = info.set_redis_settings(login);
        let client = match ca {
            Some(ca) if *tls => Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(ca) }),
            _ => Client::open(info),
        };
        Ok(Node {
            name: format!("{host}:{port}/{database}"),
            client: client.map_err(invalid)?,
            probe: format!("{}probe", config.prefix),
            timeout: config.timeout,
            connect_timeout: config.connect_timeout,
            line: ArcSwapOption::empty(),
            failures: AtomicU32::new(0),
            broken: Notify::new(),
            state: watch::Sender::new(State::Untried),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_up(&self) -> bool {
        *self.state.borrow() == State::Up
    }

    /// Until it is known whether it is there. Bounded by the timeout of the keeper's first try.
    pub(super) async fn tried(&self) {
        let mut state = self.state.subscribe();
        // The sender lives in this node.
        let _ = state.wait_for(|state| *state != State::Untried).await;
    }

    pub(super) async fn ask(&self, question: &Question) -> Result<Verdict, Away> {
        let line = self.line.load_full().ok_or(Away)?;
        let asked = pingora::time::timeout(self.timeout, invoke(&line, question)).await;
        let why = match asked {
            Ok(Ok(verdict)) => {
                self.failures.store(0, Relaxed);
                return Ok(verdict);
            }
            Ok(Err(error)) if error.is_connection_dropped() || error.is_unrecoverable_error() => {
                self.give_up(&line, &error.to_string());
                return Err(Away);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => format!("no answer within {} ms", self.timeout.as_millis()),
        };
        tracing::debug!(node = %self.name, why, "a question to the shared limits got no answer");
        if self.failures.fetch_add(1, Relaxed) + 1 >= FAILURES_MAX {
            self.give_up(&line, &why);
        }
        Err(Away)
    }

    /// Keeps a connection for as long as it is not aborted.
    pub(super) async fn keep(self: Arc<Self>) {
        let mut pause = PAUSE_MIN;
        loop {
            match self.connect().await {
                Ok(line) => {
                    pause = PAUSE_MIN;
                    self.failures.store(0, Relaxed);
                    self.line.store(Some(Arc::new(line)));
                    self.turn(State::Up, "");
                    self.watch_over().await;
                }
                Err(why) => {
                    self.turn(State::Down, &why);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// A connection over which the script has run: that shows more than an open port.
    async fn connect(&self) -> Result<MultiplexedConnection, String> {
        // Answers are waited for out here.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let work = async {
            let line = self.client.get_multiplexed_async_connection_with_config(&config).await?;
            self.try_out(&line).await?;
            Ok(line)
        };
        match pingora::time::timeout(self.connect_timeout, work).await {
            Ok(tried) => tried.map_err(|error: RedisError| error.to_string()),
            Err(_elapsed) => Err(format!("no connection within {} ms", self.connect_timeout.as_millis())),
        }
    }

    async fn try_out(&self, line: &MultiplexedConnection) -> Result<(), RedisError> {
        let mut question = Question::default();
        question.add(self.probe.clone(), "r", 1, 1000);
        invoke(line, &question).await.map(drop)
    }

    /// Until the connection is lost.
    async fn watch_over(&self) {
        loop {
            tokio::select! {
                () = self.broken.notified() => {}
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            let Some(line) = self.line.load_full() else { return };
            match pingora::time::timeout(self.connect_timeout, self.try_out(&line)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.give_up(&line, &error.to_string()),
                Err(_elapsed) => self.give_up(&line, "it does not answer any more"),
            }
        }
    }

    fn give_up(&self, line: &Arc<MultiplexedConnection>, why: &str) {
        // What began on an older connection says nothing of this one.
        let known = self.line.load_full();
        if !known.is_some_and(|known| Arc::ptr_eq(&known, line)) {
            return;
        }
        self.line.store(None);
        self.turn(State::Down, why);
        self.broken.notify_one();
    }

    /// Says it when it changes, and only then.
    fn turn(&self, to: State, why: &str) {
        let changed = self.state.send_if_modified(|state| std::mem::replace(state, to) != to);
        match (changed, to) {
            (true, State::Up) => tracing::info!(node = %self.name, "the store of the shared limits is there"),
            (true, _) => tracing::warn!(node = %self.name, why, "the store of the shared limits is away"),
            (false, _) => {}
        }
    }
}

/// EVALSHA; a server that has forgotten the script is told it again.
async fn invoke(line: &MultiplexedConnection, question: &Question) -> Result<Verdict, RedisError> {
    let mut invocation = SCRIPT.prepare_invoke();
    for (key, (kind, first, second)) in question.keys.iter().zip(&question.words) {
        invocation.key(key).arg(*kind).arg(*first).arg(*second);
    }
    let answer: Vec<i64> = invocation.invoke_async(&mut line.clone()).await?;
    let number = |place: usize| u64::try_from(answer.get(place).copied().unwrap_or(0)).unwrap_or(0);
    Ok(Verdict {
        refused_by: usize::try_from(number(0)).ok().and_then(|place| place.checked_sub(1)),
        wait: Duration::from_micros(number(1)),
        ends_s: number(2),
    })
}
