//! `Cache`: tokens by whom they are for; single flight, bounded, never longer than the assertion they were got with.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use http::HeaderName;
use ring::rand::SecureRandom;
use ring::rand::SystemRandom;

use super::Why;
use super::answer::Issued;
use super::mint;
use crate::secret::Secret;

/// Of one backend.
const TOKENS_MAX: u64 = 50_000;

/// A token is renewed when this much of its life is left, or a quarter of it if that is less; a fifth more or less, so
/// that tokens that came together do not go together.
const LEAD: Duration = Duration::from_secs(5 * 60);

/// Not used in the last moments: it must still be good when it arrives.
const MARGIN: Duration = Duration::from_secs(5);

/// How long a refusal is remembered, for this very assertion.
const REFUSED: Duration = Duration::from_secs(10);

/// How long an outage is, for this very caller; across callers see `Outage`.
const SILENT: Duration = Duration::from_secs(1);

/// Between two attempts to renew a token that is still good.
const RENEWAL_PAUSE: Duration = Duration::from_secs(20);

/// Whom a token is for. What it is for is the same for all tokens of one cache.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Key {
    /// [`crate::principal::Principal::key`], or the desk of the gateway itself.
    pub(super) owner: Arc<str>,
    /// [`crate::principal::Principal::authority`].
    pub(super) authority: u128,
}

/// What came of an exchange.
pub(super) struct Kept {
    outcome: Result<Arc<(HeaderName, Secret)>, Why>,
    /// Digest of the assertion; `None` for the gateway itself.
    assertion: Option<[u8; 32]>,
    until: Instant,
    /// It could have lasted longer had the assertion.
    cut: Option<SystemTime>,
    renew_at: Instant,
    renewing: AtomicBool,
    tried: std::sync::Mutex<Option<Instant>>,
    /// Of the cache when the exchange began.
    epoch: u64,
}

impl Kept {
    /// `left`: of the assertion's life.
    pub(super) fn new(
        issued: Result<Issued, Why>,
        began: Instant,
        left: Option<Duration>,
        assertion: Option<[u8; 32]>,
        epoch: u64,
    ) -> Kept {
        let now = Instant::now();
        let (outcome, until, renew_at, cut) = match issued {
            Ok(Issued { token, lifetime, renew_in }) => {
                let own = began + lifetime.saturating_sub(MARGIN.min(lifetime / 4));
                let end = left.map_or(own, |left| own.min(now + left));
                let cut = (end < own).then(|| SystemTime::now() + left.unwrap_or_default());
                let lasts = end.saturating_duration_since(began);
                let early = began + lasts.saturating_sub(jittered(LEAD.min(lasts / 4)));
                let asked = renew_in.map(|renew_in| began + jittered(renew_in));
                (Ok(mint::header(&token)), end, asked.map_or(early, |asked| asked.min(early)), cut)
            }
            Err(why) => {
                let pause = if matches!(why, Why::Unavailable { .. }) { SILENT } else { REFUSED };
                (Err(why), now + pause, now + pause, None)
            }
        };
        Kept {
            outcome,
            assertion,
            until,
            cut,
            renew_at,
            renewing: AtomicBool::new(false),
            tried: std::sync::Mutex::new(None),
            epoch,
        }
    }

    pub(super) fn header(&self) -> Result<Arc<(HeaderName, Secret)>, Why> {
        self.outcome.clone()
    }

    /// Good for this assertion now? A refusal holds for the very assertion that was refused.
    fn holds(&self, assertion: Option<[u8; 32]>, epoch: u64) -> bool {
        let meant = self.outcome.is_ok() || self.assertion == assertion;
        meant && self.epoch == epoch && Instant::now() < self.until
    }

    /// Is it time, and would this assertion give a token that lasts longer?
    pub(super) fn wants_renewal(&self, assertion_expires: Option<SystemTime>) -> bool {
        if self.outcome.is_err() || self.renewing.load(Ordering::Relaxed) {
            return false;
        }
        // Where the assertion ends before the token only a later assertion helps.
        let helps = self.cut.is_none_or(|cut| assertion_expires.is_none_or(|expires| expires > cut + MARGIN));
        let due = helps && Instant::now() >= self.renew_at;
        let tried = self.tried.lock().ok().and_then(|tried| *tried);
        due && tried.is_none_or(|at| at.elapsed() >= RENEWAL_PAUSE)
    }

    /// Only one renews it.
    pub(super) fn begin_renewal(&self) -> bool {
        !self.renewing.swap(true, Ordering::Relaxed)
    }

    pub(super) fn end_renewal(&self) {
        if let Ok(mut tried) = self.tried.lock() {
            *tried = Some(Instant::now());
        }
        self.renewing.store(false, Ordering::Relaxed);
    }
}

/// A fifth more or less.
fn jittered(span: Duration) -> Duration {
    let mut byte = [128u8];
    // Without random numbers there is no jitter, which harms nobody.
    let _ = SystemRandom::new().fill(&mut byte);
    let [byte] = byte;
    span.mul_f64(0.8 + 0.4 * f64::from(byte) / 255.0)
}

/// Drops what has ended.
struct UntilEnd;

impl moka::Expiry<Key, Arc<Kept>> for UntilEnd {
    fn expire_after_create(&self, _: &Key, kept: &Arc<Kept>, at: Instant) -> Option<Duration> {
        Some(kept.until.saturating_duration_since(at))
    }

    fn expire_after_update(&self, _: &Key, kept: &Arc<Kept>, at: Instant, _: Option<Duration>) -> Option<Duration> {
        Some(kept.until.saturating_duration_since(at))
    }
}

pub(super) struct Cache {
    kept: moka::future::Cache<Key, Arc<Kept>>,
    /// Grows with each clearing: what was begun before counts no more.
    epoch: AtomicU64,
}

impl Cache {
    pub(super) fn new() -> Cache {
        let kept = moka::future::Cache::builder().max_capacity(TOKENS_MAX).expire_after(UntilEnd).build();
        Cache { kept, epoch: AtomicU64::new(0) }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) async fn get(&self, key: &Key, assertion: Option<[u8; 32]>) -> Option<Arc<Kept>> {
        let kept = self.kept.get(key).await?;
        kept.holds(assertion, self.epoch()).then_some(kept)
    }

    /// What is kept, unless it is the refused one; else what the exchange gives. One exchange for all who wait.
    pub(super) async fn or_exchange<F: Future<Output = Kept>>(
        &self,
        key: &Key,
        assertion: Option<[u8; 32]>,
        refused: Option<&Arc<(HeaderName, Secret)>>,
        exchange: impl Fn() -> F,
    ) -> Arc<Kept> {
        let is_refused = |kept: &Kept| {
            refused.is_some_and(|refused| kept.outcome.as_ref().is_ok_and(|kept| Arc::ptr_eq(kept, refused)))
        };
        let stale = |kept: &Arc<Kept>| !kept.holds(assertion, self.epoch()) || is_refused(kept);
        let entry = self.kept.entry_by_ref(key);
        let kept = entry.or_insert_with_if(async { Arc::new(exchange().await) }, stale).await.into_value();
        if stale(&kept) && !is_refused(&kept) && kept.assertion != assertion {
            // It was waited for together with another assertion, which was refused. Now for this one.
            let entry = self.kept.entry_by_ref(key);
            return entry.or_insert_with_if(async { Arc::new(exchange().await) }, stale).await.into_value();
        }
        kept
    }

    /// Puts a renewed token in the old one's place, unless that is gone.
    pub(super) async fn replace(&self, key: &Key, old: &Arc<Kept>, fresh: Kept) {
        let still = self.kept.get(key).await.is_some_and(|kept| Arc::ptr_eq(&kept, old));
        if still && fresh.epoch == self.epoch() {
            self.kept.insert(key.clone(), Arc::new(fresh)).await;
        }
    }

    pub(super) fn clear(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        // The cache's own count lags behind.
        let count = self.kept.iter().count() as u64;
        self.kept.invalidate_all();
        count
    }
}
