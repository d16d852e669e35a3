//! `Cache`: tokens by whom they are for; single flight, bounded, never longer than the assertion they were got with.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use http::HeaderName;
use ring::rand::SecureRandom;
use ring::rand::SystemRandom;

use super::Why;
use super::answer::Issued;
use super::mint;
use crate::secret::Secret;

/// Of one backend.
const TOKENS_MAX: u64 = 50_000;
const TOKENS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What a token weighs at least, so that there are never more than `TOKENS_MAX`.
const TOKEN_WEIGHT_MIN: u64 = TOKENS_BYTES_MAX.div_ceil(TOKENS_MAX);

/// What it takes to remember a token, besides the texts.
const ENTRY_BYTES: usize = 512;

/// A token is renewed when this much of its life is left, or a quarter of it if that is less; a fifth more or less, so
/// that tokens that came together do not go together.
const LEAD: Duration = Duration::from_secs(5 * 60);

/// Not used in the last moments: it must still be good when it arrives.
const MARGIN: Duration = Duration::from_secs(5);

/// How long a refusal is remembered.
const REFUSED: Duration = Duration::from_secs(10);

/// How long an outage is, for this very caller; across callers see `Outage`.
const SILENT: Duration = Duration::from_secs(1);

/// Between two attempts to renew a token that is still good.
const RENEWAL_PAUSE: Duration = Duration::from_secs(20);

/// Whom a token is for, and what it was got with. What it is for is the same for all tokens of one cache.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Key {
    /// [`crate::principal::Principal::key`], or the desk of the gateway itself.
    pub(super) owner: Arc<str>,
    /// [`crate::principal::Principal::authority`].
    pub(super) authority: u128,
    /// Digest of the assertion; `None` for the gateway itself. How strongly the user signed in shows only there: what a
    /// session with a second factor was given is not for another session of the same user.
    pub(super) assertion: Option<[u8; 32]>,
    /// Good for reading only.
    pub(super) read_only: bool,
}

/// What came of an exchange.
pub(super) struct Kept {
    outcome: Result<Arc<(HeaderName, Secret)>, Why>,
    until: Instant,
    /// `None` where another one would not last longer: the assertion ends first.
    renew_at: Option<Instant>,
    renewing: AtomicBool,
    tried: std::sync::Mutex<Option<Instant>>,
    /// Of the cache when the exchange began.
    epoch: u64,
}

impl Kept {
    /// `left`: of the assertion's life.
    pub(super) fn new(issued: Result<Issued, Why>, began: Instant, left: Option<Duration>, epoch: u64) -> Kept {
        let now = Instant::now();
        let (outcome, until, renew_at) = match issued {
            Ok(Issued { token, lifetime, renew_in }) => {
                // What is too far off to be a time is no bound, or none to wait for.
                let own = began.checked_add(lifetime.saturating_sub(MARGIN.min(lifetime / 4))).unwrap_or(now);
                let end = left.and_then(|left| now.checked_add(left)).map_or(own, |end| own.min(end));
                let lasts = end.saturating_duration_since(began);
                let early = began.checked_add(lasts.saturating_sub(jittered(LEAD.min(lasts / 4)))).unwrap_or(end);
                let asked = renew_in.and_then(|renew_in| began.checked_add(jittered(renew_in.min(lifetime))));
                let renew_at = asked.map_or(early, |asked| asked.min(early));
                (Ok(mint::header(&token)), end, (end == own).then_some(renew_at))
            }
            Err(why) => {
                let pause = if matches!(why, Why::Unavailable { .. }) { SILENT } else { REFUSED };
                (Err(why), now + pause, None)
            }
        };
        Kept { outcome, until, renew_at, renewing: AtomicBool::new(false), tried: std::sync::Mutex::new(None), epoch }
    }

    pub(super) fn header(&self) -> Result<Arc<(HeaderName, Secret)>, Why> {
        self.outcome.clone()
    }

    /// Good now?
    fn holds(&self, epoch: u64) -> bool {
        self.epoch == epoch && Instant::now() < self.until
    }

    /// Is it time, and would another one last longer?
    pub(super) fn wants_renewal(&self) -> bool {
        if self.renewing.load(Ordering::Relaxed) {
            return false;
        }
        let due = self.renew_at.is_some_and(|at| Instant::now() >= at);
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

    fn bytes(&self) -> usize {
        match &self.outcome {
            Ok(header) => header.1.expose().len(),
            Err(Why::Interaction { claims: Some(claims) }) => claims.len(),
            Err(_) => 0,
        }
    }
}

fn weight(key: &Key, kept: &Kept) -> u32 {
    let bytes = (ENTRY_BYTES + key.owner.len() + kept.bytes()) as u64;
    u32::try_from(bytes.max(TOKEN_WEIGHT_MIN)).unwrap_or(u32::MAX)
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
        let kept = moka::future::Cache::builder()
            .max_capacity(TOKENS_BYTES_MAX)
            .weigher(|key, kept: &Arc<Kept>| weight(key, kept))
            .expire_after(UntilEnd)
            .build();
        Cache { kept, epoch: AtomicU64::new(0) }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) async fn get(&self, key: &Key) -> Option<Arc<Kept>> {
        let kept = self.kept.get(key).await?;
        kept.holds(self.epoch()).then_some(kept)
    }

    /// What is kept, unless it is the refused one; else what the exchange gives. One exchange for all who wait.
    pub(super) async fn or_exchange<F: Future<Output = Kept>>(
        &self,
        key: &Key,
        refused: Option<&Arc<(HeaderName, Secret)>>,
        exchange: impl FnOnce() -> F,
    ) -> Arc<Kept> {
        let is_refused = |kept: &Kept| {
            refused.is_some_and(|refused| kept.outcome.as_ref().is_ok_and(|kept| Arc::ptr_eq(kept, refused)))
        };
        let stale = |kept: &Arc<Kept>| !kept.holds(self.epoch()) || is_refused(kept);
        let entry = self.kept.entry_by_ref(key);
        entry.or_insert_with_if(async { Arc::new(exchange().await) }, stale).await.into_value()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(token: &str, renew_in: Option<Duration>, left: Option<Duration>) -> Kept {
        let issued = Issued { token: Secret::new(token), lifetime: Duration::from_secs(3600), renew_in };
        Kept::new(Ok(issued), Instant::now(), left, 0)
    }

    #[test]
    fn a_time_too_far_off_is_no_bound_and_no_panic() {
        let kept = kept("t", Some(Duration::MAX), Some(Duration::MAX));
        let left = kept.until.saturating_duration_since(Instant::now());
        assert!(left <= Duration::from_secs(3600) && left > Duration::from_secs(3500), "{left:?}");
        assert!(kept.renew_at.is_some_and(|at| at < kept.until));
    }

    #[test]
    fn a_token_that_ends_with_its_assertion_is_not_renewed_with_it() {
        let due = Some(Duration::ZERO);
        assert!(kept("t", due, Some(Duration::from_secs(7200))).wants_renewal());
        assert!(!kept("t", due, Some(Duration::from_secs(60))).wants_renewal());
    }

    #[tokio::test]
    async fn tokens_are_bounded_by_their_bytes_and_by_their_number() {
        let key =
            |number: u32| Key { owner: number.to_string().into(), authority: 0, assertion: None, read_only: false };
        assert!(u64::from(weight(&key(1), &kept("t", None, None))) * TOKENS_MAX <= TOKENS_BYTES_MAX + TOKENS_MAX);
        assert!(u64::from(weight(&key(1), &kept("t", None, None))) * (TOKENS_MAX + 1) > TOKENS_BYTES_MAX);
        let cache = Cache::new();
        let long = "x".repeat(64 * 1024);
        for number in 0..1200 {
            cache.or_exchange(&key(number), None, async || kept(&long, None, None)).await;
        }
        cache.kept.run_pending_tasks().await;
        assert!(cache.kept.weighted_size() <= TOKENS_BYTES_MAX);
        assert!((900..1024).contains(&cache.kept.entry_count()), "{}", cache.kept.entry_count());
    }
}
