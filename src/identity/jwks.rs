//! The keys of one issuer: read strictly, fetched at most once a minute, kept through an outage, never mixed with others.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use arc_swap::ArcSwapOption;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use jsonwebtoken::AlgorithmFamily;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::AlgorithmParameters;
use jsonwebtoken::jwk::EllipticCurve;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::jwk::KeyOperations;
use jsonwebtoken::jwk::PublicKeyUse;
use serde::Deserialize;
use tokio::sync::watch;

use super::Issuer;
use super::Keys;
use super::StartError;
use super::oidc;
use super::oidc::Origin;

/// Key sets are a few KiB.
pub(super) const JWKS_BYTES_MAX: usize = 1024 * 1024;

const KEYS_MAX: usize = 1000;

/// Between two fetches from one issuer, whatever tokens come: random `kid`s must not make us flood it.
const COOL_DOWN: Duration = Duration::from_secs(60);

/// The same while there are no keys at all, and so nobody of that issuer can be let in.
const COOL_DOWN_EMPTY: Duration = Duration::from_secs(5);

/// Older keys are fetched anew in the background while they go on being used.
const STALE_AFTER: Duration = Duration::from_secs(10 * 60);

/// An issuer that has been away this long may have revoked anything: its keys are not trusted any more.
const HARD_EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);

const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=512;

/// RFC 7518 section 3.2: at least as long as the hash.
const SECRET_BYTES_MIN: usize = 32;

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
    pub(super) fn fitting(&self, kid: Option<&str>, algorithm: Algorithm) -> impl Iterator<Item = &DecodingKey> {
        let named = move |key: &&Key| kid.is_none() || key.kid.as_deref() == kid;
        self.keys.iter().filter(named).filter(move |key| key.fits(algorithm)).map(|key| &key.decoding)
    }
}

struct Key {
    kid: Option<String>,
    /// The algorithms it can be used with by its type, curve and length, and by its own `alg`.
    algorithms: Vec<Algorithm>,
    decoding: DecodingKey,
    /// Digest of the key as read.
    print: [u8; 32],
}

impl Key {
    /// The key type decides the algorithm, never the token: an RSA key can never become an HMAC secret.
    fn fits(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    /// `None` for a key that is not for signatures, is of a type we do not know, or is too weak.
    fn read(value: &serde_json::Value, secrets: bool) -> Option<Key> {
        let jwk = Jwk::deserialize(value).ok()?;
        let common = &jwk.common;
        if common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
            return None;
        }
        if common.key_operations.as_ref().is_some_and(|allowed| !allowed.contains(&KeyOperations::Verify)) {
            return None;
        }
        let mut algorithms = algorithms(&jwk.algorithm, secrets)?;
        if let Some(own) = common.key_algorithm {
            let own = Algorithm::try_from(own).ok()?;
            algorithms.retain(|algorithm| *algorithm == own);
        }
        if algorithms.is_empty() {
            return None;
        }
        let print = super::sha256(&serde_json::to_vec(&jwk).ok()?);
        Some(Key { kid: common.key_id.clone(), algorithms, decoding: DecodingKey::from_jwk(&jwk).ok()?, print })
    }
}

/// A public key that did not come from an issuer (that of a DPoP proof), with the algorithms it can be used with.
pub(super) fn lone(jwk: &serde_json::Value) -> Option<(Vec<Algorithm>, DecodingKey)> {
    Key::read(jwk, false).map(|key| (key.algorithms, key.decoding))
}

fn algorithms(parameters: &AlgorithmParameters, secrets: bool) -> Option<Vec<Algorithm>> {
    let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    match parameters {
        AlgorithmParameters::RSA(key) => {
            let modulus = bytes(&key.n)?;
            let length = modulus.iter().skip_while(|byte| **byte == 0).count();
            RSA_BYTES.contains(&length).then(|| AlgorithmFamily::Rsa.algorithms().to_vec())
        }
        AlgorithmParameters::EllipticCurve(key) => {
            let (algorithm, length) = match key.curve {
                EllipticCurve::P256 => (Algorithm::ES256, 32),
                EllipticCurve::P384 => (Algorithm::ES384, 48),
                _ => return None,
            };
            let whole = bytes(&key.x)?.len() == length && bytes(&key.y)?.len() == length;
            whole.then(|| vec![algorithm])
        }
        AlgorithmParameters::OctetKeyPair(key) => {
            (key.curve == EllipticCurve::Ed25519 && bytes(&key.x)?.len() == 32).then(|| vec![Algorithm::EdDSA])
        }
        AlgorithmParameters::OctetKey(key) if secrets => {
            let length = bytes(&key.value)?.len();
            let long_enough = |algorithm: &Algorithm| match algorithm {
                Algorithm::HS384 => length >= 48,
                Algorithm::HS512 => length >= 64,
                _ => length >= SECRET_BYTES_MIN,
            };
            Some(AlgorithmFamily::Hmac.algorithms().iter().copied().filter(long_enough).collect())
        }
        _ => None,
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
    fetching: Mutex<Fetching>,
}

#[derive(Default)]
struct Fetching {
    last: Option<Instant>,
    /// Closed when the fetch that is under way has ended.
    running: Option<watch::Receiver<()>>,
}

impl Source {
    pub(super) fn new(issuer: &Issuer, fetchers: &mut oidc::Fetchers) -> Result<Source, StartError> {
        let (origin, current) = match &issuer.keys {
            Keys::File(path) => (None, Some(Arc::new(file(path, &issuer.issuer)?))),
            Keys::Url(url) => (Some(fetchers.fixed(&issuer.issuer, url)?), None),
            Keys::Discover => (Some(fetchers.discovered(&issuer.issuer)?), None),
        };
        let issuer = issuer.issuer.as_str().into();
        Ok(Source { issuer, origin, current: ArcSwapOption::new(current), fetching: Mutex::default() })
    }

    pub(super) fn issuer(&self) -> &str {
        &self.issuer
    }

    pub(super) fn is_remote(&self) -> bool {
        self.origin.is_some()
    }

    /// The keys to verify with now. When they are old, a fetch is begun that nobody waits for.
    pub(super) fn keys(self: &Arc<Self>, now: Instant) -> Option<Arc<KeySet>> {
        let keys = self.current.load_full()?;
        let age = keys.fetched.map_or(Duration::ZERO, |fetched| now.saturating_duration_since(fetched));
        if age > STALE_AFTER {
            self.begin(now);
        }
        (age <= HARD_EXPIRY).then_some(keys)
    }

    /// Fetches the keys unless that was done a short while ago, and waits for the fetch, own or other.
    pub(super) async fn refetch(self: &Arc<Self>, now: Instant) {
        if let Some(mut running) = self.begin(now) {
            // An error means the sender is gone, which is how the end is told.
            let _ = running.changed().await;
        }
    }

    /// Fetches the keys unless there are some.
    pub(super) async fn prefetch(self: &Arc<Self>, now: Instant) {
        if self.keys(now).is_none() {
            self.refetch(now).await;
        }
    }

    /// Begins a fetch, or finds the one that is under way; `None` while the last one is too recent.
    ///
    /// The fetch is a task of its own: a client that goes away must not be able to stop it.
    fn begin(self: &Arc<Self>, now: Instant) -> Option<watch::Receiver<()>> {
        let origin = self.origin.clone()?;
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = fetching.running.as_ref().filter(|running| running.has_changed().is_ok()) {
            return Some(running.clone());
        }
        let usable = |keys: &KeySet| keys.fetched.is_none_or(|at| now.saturating_duration_since(at) <= HARD_EXPIRY);
        let cool_down =
            if self.current.load().as_ref().is_some_and(|keys| usable(keys)) { COOL_DOWN } else { COOL_DOWN_EMPTY };
        if fetching.last.is_some_and(|last| now.saturating_duration_since(last) < cool_down) {
            return None;
        }
        fetching.last = Some(now);
        let (ended, running) = watch::channel(());
        fetching.running = Some(running.clone());
        let source = Arc::clone(self);
        runtime.spawn(async move {
            let outcome = origin.fetch().await.map_err(|error| error.to_string());
            match outcome.and_then(|document| read(&document, false)) {
                Ok(keys) => source.land(keys, now),
                Err(reason) => tracing::warn!(issuer = %source.issuer, %reason, "cannot fetch the issuer's keys"),
            }
            drop(ended);
        });
        Some(running)
    }

    fn land(&self, keys: Arc<[Key]>, now: Instant) {
        let old = self.current.load_full();
        let generation = old.map_or(0, |old| {
            let all_kept = old.keys.iter().all(|before| keys.iter().any(|key| key.print == before.print));
            if all_kept { old.generation } else { old.generation.wrapping_add(1) }
        });
        tracing::debug!(issuer = %self.issuer, keys = keys.len(), generation, "fetched the issuer's keys");
        self.current.store(Some(Arc::new(KeySet { keys, fetched: Some(now), generation })));
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
