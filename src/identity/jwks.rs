//! The keys of one issuer: fetched at most once a minute for what tokens say, kept through an outage, never mixed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use arc_swap::ArcSwapOption;
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use tokio::sync::watch;

use super::Keys;
use super::StartError;
use super::key::Key;
use super::oidc;
use super::oidc::Fetched;
use super::oidc::Origin;

/// Key sets are a few KiB.
pub(super) const JWKS_BYTES_MAX: usize = 1024 * 1024;

const KEYS_MAX: usize = 1000;

/// Between two fetches that tokens cause, whatever tokens come: random `kid`s must not make us flood an issuer. The same
/// between two that age causes; one of each may follow each other, so that a key that is rotated right after a fetch is
/// not refused for a minute.
const COOL_DOWN: Duration = Duration::from_secs(60);

/// The same while there are no keys at all, and so nobody of that issuer can be let in.
const COOL_DOWN_EMPTY: Duration = Duration::from_secs(5);

/// Older keys are fetched anew in the background while they go on being used.
const STALE_AFTER: Duration = Duration::from_secs(10 * 60);

/// An issuer that has been away this long may have revoked anything: its keys are not trusted any more.
const HARD_EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);

/// `kid`s that were asked for and are not there. Each waits twice as long for its next fetch, so that one client with an
/// old token does not use up the fetches that a rotation needs.
const MISSED_MAX: usize = 1000;

/// The keys of one issuer as last seen.
pub(super) struct KeySet {
    keys: Arc<[Key]>,
    /// When they were asked for; `None` for a file, which does not grow old.
    fetched: Option<Instant>,
    /// Grows when a key is taken away: tokens verified before must be verified again.
    pub(super) generation: u64,
}

impl KeySet {
    pub(super) fn knows(&self, kid: &str) -> bool {
        self.keys.iter().any(|key| key.kid.as_deref() == Some(kid))
    }

    /// The keys that may verify a token with this `kid` and `alg`.
    pub(super) fn fitting(&self, kid: Option<&str>, algorithm: Algorithm) -> impl Iterator<Item = &Key> {
        let named = move |key: &&Key| kid.is_none() || key.kid.as_deref() == kid;
        self.keys.iter().filter(named).filter(move |key| key.fits(algorithm))
    }
}

/// Reads a JWKS document. `secrets` admits symmetric keys: from a file only, for what a URL serves is no secret.
fn read(document: &[u8], secrets: bool) -> Result<Arc<[Key]>, String> {
    #[derive(Deserialize)]
    struct Document {
        keys: Vec<serde_json::Value>,
    }
    // serde_json's own words could quote a piece of a secret key.
    let document: Document = serde_json::from_slice(document)
        .map_err(|error| format!("is not a JWKS document (line {}, column {})", error.line(), error.column()))?;
    if document.keys.len() > KEYS_MAX {
        return Err(format!("has more than {KEYS_MAX} keys"));
    }
    let keys: Arc<[Key]> = document.keys.iter().filter_map(|key| Key::read(key, secrets)).collect();
    if keys.is_empty() {
        return Err("has no key that can verify a token (RSA of 2048 to 4096 bits, P-256, P-384, Ed25519, or in a file a secret of 32 bytes or more)".into());
    }
    Ok(keys)
}

/// Where one issuer's keys come from, and those we have.
pub(super) struct Source {
    issuer: Box<str>,
    origin: Option<Origin>,
    current: ArcSwapOption<KeySet>,
    /// The tenant that the issuer's metadata named first; another one later is not the one that was configured.
    tenant: OnceLock<Box<str>>,
    fetching: Mutex<Fetching>,
}

#[derive(Default)]
struct Fetching {
    last: Option<Instant>,
    /// The last fetch that a token caused.
    asked: Option<Instant>,
    /// The last fetch brought no keys: what is not among ours may be among those we could not get.
    failed: bool,
    /// Closed when the fetch that is under way has ended.
    running: Option<watch::Receiver<()>>,
    missed: HashMap<Box<str>, Missed>,
}

struct Missed {
    at: Instant,
    wait: Duration,
}

/// Why keys are to be fetched.
#[derive(Clone, Copy)]
enum Cause<'a> {
    /// Those we have are old.
    Age,
    /// There are none.
    Empty,
    /// A token names one that is not among them.
    Unknown(&'a str),
}

impl Source {
    pub(super) fn new(issuer: &str, keys: &Keys, fetchers: &mut oidc::Fetchers) -> Result<Source, StartError> {
        Ok(match keys {
            Keys::File(path) => Source::of(issuer, None, Some(Arc::new(file(path, issuer)?))),
            Keys::Url(url) => Source::remote(issuer, fetchers.fixed(issuer, url)?),
            Keys::Discover => Source::remote(issuer, fetchers.discovered(issuer)?),
        })
    }

    pub(super) fn remote(issuer: &str, origin: Origin) -> Source {
        Source::of(issuer, Some(origin), None)
    }

    fn of(issuer: &str, origin: Option<Origin>, current: Option<Arc<KeySet>>) -> Source {
        Source {
            issuer: issuer.into(),
            origin,
            current: ArcSwapOption::new(current),
            tenant: OnceLock::new(),
            fetching: Mutex::default(),
        }
    }

    pub(super) fn issuer(&self) -> &str {
        &self.issuer
    }

    pub(super) fn is_remote(&self) -> bool {
        self.origin.is_some()
    }

    /// The tenant that the issuer's metadata named, once it was read.
    pub(super) fn tenant(&self) -> Option<&str> {
        self.tenant.get().map(AsRef::as_ref)
    }

    /// The keys to verify with now. When they are old, a fetch is begun that nobody waits for.
    pub(super) fn keys(self: &Arc<Self>, now: Instant) -> Option<Arc<KeySet>> {
        let keys = self.current.load_full()?;
        let age = keys.fetched.map_or(Duration::ZERO, |fetched| now.saturating_duration_since(fetched));
        if age > STALE_AFTER {
            self.begin(now, Cause::Age);
        }
        (age <= HARD_EXPIRY).then_some(keys)
    }

    /// The keys for a token with this `kid`: as they are if it is among them, or after a fetch, own or other, unless
    /// there was one a short while ago. `None` if nothing can be said about it: there are no keys, or it is not among them
    /// and the issuer could not be asked.
    pub(super) async fn keys_for(self: &Arc<Self>, kid: Option<&str>, now: Instant) -> Option<Arc<KeySet>> {
        let known = |keys: &KeySet| kid.is_none_or(|kid| keys.knows(kid));
        let cause = match (self.keys(now), kid) {
            (Some(keys), _) if known(&keys) => return Some(keys),
            (Some(_), Some(kid)) => Cause::Unknown(kid),
            _ => Cause::Empty,
        };
        let fetched = self.wait_for(self.begin(now, cause)).await;
        let keys = self.keys(now)?;
        if known(&keys) {
            return Some(keys);
        }
        let mut fetching = self.fetching();
        if fetching.failed {
            return None;
        }
        if let Some(kid) = kid.filter(|_| fetched) {
            fetching.miss(kid, now);
        }
        Some(keys)
    }

    /// Fetches the keys unless there are some.
    pub(super) async fn prefetch(self: &Arc<Self>, now: Instant) {
        if self.keys(now).is_none() {
            self.wait_for(self.begin(now, Cause::Empty)).await;
        }
    }

    /// Waits for the fetch that is under way, if there is one.
    #[cfg(test)]
    pub(super) async fn settled(&self) {
        let running = self.fetching().running.clone();
        self.wait_for(running).await;
    }

    async fn wait_for(&self, running: Option<watch::Receiver<()>>) -> bool {
        let Some(mut running) = running else { return false };
        // An error means the sender is gone, which is how the end is told.
        let _ = running.changed().await;
        true
    }

    fn fetching(&self) -> MutexGuard<'_, Fetching> {
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a fetch, or finds the one that is under way; `None` while the last one is too recent.
    ///
    /// The fetch is a task of its own: a client that goes away must not be able to stop it.
    fn begin(self: &Arc<Self>, now: Instant, cause: Cause<'_>) -> Option<watch::Receiver<()>> {
        let origin = self.origin.clone()?;
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let mut fetching = self.fetching();
        if let Some(running) = fetching.running.as_ref().filter(|running| running.has_changed().is_ok()) {
            return Some(running.clone());
        }
        if !fetching.may_begin(cause, now) {
            return None;
        }
        fetching.last = Some(now);
        if let Cause::Unknown(_) = cause {
            fetching.asked = Some(now);
        }
        let (ended, running) = watch::channel(());
        fetching.running = Some(running.clone());
        let source = Arc::clone(self);
        runtime.spawn(async move {
            let outcome = origin.fetch().await.map_err(|error| error.to_string());
            let outcome = outcome.and_then(|fetched| source.land(fetched, now));
            if let Err(reason) = &outcome {
                tracing::warn!(issuer = %source.issuer, %reason, "cannot fetch the issuer's keys");
            }
            source.fetching().failed = outcome.is_err();
            drop(ended);
        });
        Some(running)
    }

    fn land(&self, fetched: Fetched, now: Instant) -> Result<(), String> {
        let keys = read(&fetched.document, false)?;
        if let Some(tenant) = fetched.tenant
            && **self.tenant.get_or_init(|| tenant.as_str().into()) != *tenant
        {
            return Err("the name now belongs to another tenant; if that is meant, restart the gateway".into());
        }
        let old = self.current.load_full();
        let generation = old.map_or(0, |old| {
            let all_kept = old.keys.iter().all(|before| keys.iter().any(|key| key.is(before)));
            if all_kept { old.generation } else { old.generation.wrapping_add(1) }
        });
        tracing::debug!(issuer = %self.issuer, keys = keys.len(), generation, "fetched the issuer's keys");
        self.current.store(Some(Arc::new(KeySet { keys, fetched: Some(now), generation })));
        Ok(())
    }
}

impl Fetching {
    fn may_begin(&self, cause: Cause<'_>, now: Instant) -> bool {
        let over = |since: Option<Instant>, pause| since.is_none_or(|at| now.saturating_duration_since(at) >= pause);
        match cause {
            Cause::Age => over(self.last, COOL_DOWN),
            Cause::Empty => over(self.last, COOL_DOWN_EMPTY),
            Cause::Unknown(kid) => {
                let missed = self.missed.get(kid);
                over(self.asked, COOL_DOWN) && missed.is_none_or(|missed| over(Some(missed.at), missed.wait))
            }
        }
    }

    fn miss(&mut self, kid: &str, now: Instant) {
        if self.missed.len() >= MISSED_MAX {
            // The regular fetch comes after that time, and asks for all of them at once.
            self.missed.retain(|_, missed| now.saturating_duration_since(missed.at) < STALE_AFTER);
        }
        if let Some(missed) = self.missed.get_mut(kid) {
            *missed = Missed { at: now, wait: (missed.wait * 2).min(STALE_AFTER) };
        } else if self.missed.len() < MISSED_MAX {
            self.missed.insert(kid.into(), Missed { at: now, wait: COOL_DOWN });
        }
    }
}

fn file(path: &Path, issuer: &str) -> Result<KeySet, StartError> {
    let document = super::read(path, JWKS_BYTES_MAX)?;
    let keys = read(&document, true).map_err(|reason| StartError::KeyFile {
        path: path.into(),
        issuer: issuer.into(),
        reason,
    })?;
    Ok(KeySet { keys, fetched: None, generation: 0 })
}
