//! ASSEMBLY: a `Config` becomes a running program; the only file that knows every room.

mod admin;
mod build;
mod quarantine;
mod reload;
mod tenants;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::audit::Audit;
use crate::config::Errors;
use crate::config::Loaded;
use crate::exchange::Peer;
use crate::exchange::Reply;
use crate::exchange::Request;
use crate::gateway::Gateway;
use crate::gateway::Head;
use crate::gateway::House;
use crate::gateway::Rejection;
use crate::server::Server;
use crate::server::Spine;
use crate::telemetry;
use crate::telemetry::metrics::Metrics;

pub use build::known;
pub use build::try_rooms;
use tenants::Standing;

/// How often files are looked at for changes. A change holds after two looks: a key that was revoked, within a second.
const TICK: Duration = Duration::from_millis(400);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Audit(#[from] crate::audit::Error),
    #[error("{0}")]
    Logs(#[from] telemetry::logs::Error),
    #[error("{}", .0.join("\n"))]
    Rooms(Vec<String>),
    #[error("{0}")]
    Server(#[from] crate::server::Error),
    #[error("cannot listen for signals: {0}")]
    Signals(#[from] std::io::Error),
}

/// Reads the configuration again, for a reload.
pub type Load = Box<dyn Fn() -> Result<Loaded, Errors> + Send + Sync>;

/// A running gateway.
pub struct App {
    gateway: Arc<Gateway>,
    audit: Arc<Audit>,
    metrics: Arc<Metrics>,
    server: Arc<Server>,
    shutdown: watch::Sender<bool>,
    running: JoinHandle<()>,
    ticking: JoinHandle<()>,
    watched: std::sync::Mutex<reload::Watched>,
    /// Held while a reload is under way: one at a time.
    standing: tokio::sync::Mutex<Standing>,
}

impl App {
    /// Binds, builds every room and serves.
    ///
    /// # Errors
    /// Everything that is wrong, in words that say what to do.
    pub async fn start(loaded: Loaded) -> Result<App, Error> {
        let config = &loaded.config;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let metrics = Arc::new(Metrics::new());
        let audit = Audit::open(&config.audit)?;
        let server = Arc::new(Server::bind(&config.server).await?);
        let (house, standing) = build::house(config, None, &Standing::default()).await.map_err(Error::Rooms)?;
        build::warm_new(None, &house);
        report(&house, None);
        // Without what it was before, nobody can tell whose its callers are: they would be the gateway's own.
        let absent: Vec<String> = house
            .tenants
            .troubles()
            .iter()
            .filter(|trouble| !trouble.kept)
            .flat_map(|trouble| trouble.problems.iter().map(|what| format!("tenant `{}`: {what}", trouble.name)))
            .collect();
        if !absent.is_empty() {
            return Err(Error::Rooms(absent));
        }
        let gateway = Arc::new(Gateway::new(house, audit.clone(), metrics.clone()));
        let (shutdown, stopping) = watch::channel(false);
        let admin = Arc::new(admin::Desk::new(
            gateway.clone(),
            audit.clone(),
            metrics.clone(),
            server.clone(),
            stopping.clone(),
        ));
        let running = tokio::spawn({
            let (server, gateway) = (server.clone(), gateway.clone());
            async move { server.run(gateway, admin, stopping).await }
        });
        let ticking = tokio::spawn(admin::tick(gateway.clone(), audit.clone(), metrics.clone()));
        metrics.loaded();
        build::begin(&gateway.house());
        let watched = std::sync::Mutex::new(reload::Watched::of(&config.watched));
        metrics.tenants(&house_counts(&gateway.house()));
        let standing = tokio::sync::Mutex::new(standing);
        Ok(App { standing, gateway, audit, metrics, server, shutdown, running, ticking, watched })
    }

    /// Every listener as configured, with the address it is bound to.
    pub fn addresses(&self) -> Vec<(String, String)> {
        self.server.addresses()
    }

    /// The admin listener, if there is one.
    pub fn admin_address(&self) -> Option<String> {
        self.server.admin_address()
    }

    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Waits until every record so far is on its way to the disk.
    pub fn flush_audit(&self) {
        self.audit.flush();
    }

    /// Stops accepting, lets calls finish within the grace time, ends streams, writes the last records.
    pub async fn shutdown(self) {
        self.shutdown.send_replace(true);
        drop(self.running.await);
        self.ticking.abort();
        build::stop(&self.gateway.house()).await;
        self.audit.flush();
    }
}

#[async_trait]
impl Spine for Gateway {
    async fn serve(&self, request: Request) -> Reply {
        Gateway::serve(self, request).await
    }

    fn refuse(&self, head: Head, rejection: Rejection) -> Reply {
        Gateway::refuse(self, head, rejection)
    }

    fn note(&self, head: Head, reply: Reply) -> Reply {
        Gateway::note(self, head, reply)
    }

    async fn document(&self, host: &str, path: &str) -> Result<Bytes, Rejection> {
        Gateway::document(self, host, path).await
    }

    fn register(&self, head: Head, path: &str, body: &[u8]) -> Reply {
        Gateway::register(self, head, path, body)
    }

    fn admit(&self, peer: &Peer) -> Result<(), Rejection> {
        Gateway::admit(self, peer)
    }
}

/// Runs until SIGTERM or SIGINT. SIGHUP and changed files reload, where there is something to reload from.
///
/// # Errors
/// When it cannot start.
pub async fn run(loaded: Loaded, load: Option<Load>) -> Result<(), Error> {
    telemetry::logs::init(&loaded.config.log.level, loaded.config.log.format == crate::config::LogFormat::Json)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let app = App::start(loaded).await?;
    for (configured, bound) in app.addresses() {
        tracing::info!(listener = configured, address = bound, "listening");
    }
    if let Some(address) = app.admin_address() {
        tracing::info!(address, "admin listener");
    }
    tokio::spawn(build::introduce(app.gateway.clone()));
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                app.audit.reopen();
                app.reload(load.as_ref()).await;
            }
            _ = tick.tick() => {
                if app.files_changed() {
                    app.reload(load.as_ref()).await;
                }
            }
        }
    }
    tracing::info!("shutting down: no new connections, calls may finish");
    app.shutdown().await;
    tracing::info!("bye");
    Ok(())
}

impl App {
    fn files_changed(&self) -> bool {
        self.watched.lock().is_ok_and(|mut watched| watched.changed())
    }

    /// Puts a new configuration in force, or keeps the old one and says why.
    async fn reload(&self, load: Option<&Load>) {
        let Some(load) = load else { return };
        let taken = match load() {
            Ok(loaded) => self.take(loaded).await,
            Err(errors) => Err(errors.to_string()),
        };
        match taken {
            Ok(notes) => {
                self.metrics.reloaded(true);
                tracing::info!("the configuration was reloaded");
                for note in notes {
                    tracing::warn!("{note}");
                }
            }
            Err(problem) => {
                self.metrics.reloaded(false);
                tracing::error!("the new configuration is not valid; the old one stays in force");
                problem.lines().for_each(|line| tracing::error!("{line}"));
            }
        }
    }

    /// Puts a configuration in force as a whole, or not at all. Gives the notes an operator should read.
    ///
    /// # Errors
    /// Why the old configuration stays in force.
    pub async fn take(&self, loaded: Loaded) -> Result<Vec<String>, String> {
        if loaded.config.identity.anonymous.is_some() && !self.server.all_local() {
            let why =
                "`anonymous` needs listeners that only this machine reaches; the open ones change after a restart";
            return Err(why.to_owned());
        }
        let old = self.gateway.house();
        let mut standing = self.standing.lock().await;
        let built = build::house(&loaded.config, Some(&old), &standing).await;
        let (house, now) = built.map_err(|problems| problems.join("\n"))?;
        let mut notes: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        notes.extend(self.server.reload(&loaded.config.server).map_err(|error| error.to_string())?);
        if let Ok(mut watched) = self.watched.lock() {
            *watched = reload::Watched::of(&loaded.config.watched);
        }
        reload::record_raised(&old, &house, &self.audit);
        build::pin(&loaded.config, &house);
        let old = self.gateway.swap(house.clone());
        *standing = now;
        report(&house, Some(&old));
        self.metrics.tenants(&house_counts(&house));
        build::warm_new(Some(&old), &house);
        build::begin_new(&old, &house);
        build::stop_unused(&old, &house, &self.metrics);
        Ok(notes)
    }
}

/// How many tenants are in force, kept as they were, and absent.
fn house_counts(house: &House) -> [(&'static str, usize); 3] {
    let kept = house.tenants.troubles().iter().filter(|trouble| trouble.kept).count();
    let refused = house.tenants.troubles().len() - kept;
    [("in_force", house.tenants.iter().count()), ("kept", kept), ("refused", refused)]
}

/// Says in the log what is wrong with which tenant, and which came and went.
fn report(house: &House, old: Option<&House>) {
    for trouble in house.tenants.troubles() {
        let tenant = &*trouble.name;
        match trouble.kept {
            true => tracing::error!(tenant, "the tenant cannot be as it is written now; it stays as it was"),
            false => tracing::error!(tenant, "the tenant cannot be as it is written; it is absent"),
        }
        trouble.problems.iter().for_each(|problem| tracing::error!(tenant, "{problem}"));
    }
    let Some(old) = old else {
        let count = house.tenants.iter().count();
        if count > 0 {
            tracing::info!(count, "tenants");
        }
        return;
    };
    let names = |house: &House| house.tenants.iter().filter_map(|house| house.name().cloned()).collect::<BTreeSet<_>>();
    let (before, now) = (names(old), names(house));
    before.difference(&now).for_each(|tenant| tracing::info!(%tenant, "the tenant is gone"));
    now.difference(&before).for_each(|tenant| tracing::info!(%tenant, "a new tenant"));
}
