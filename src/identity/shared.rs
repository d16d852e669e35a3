//! `Shared`: what the identities of one gateway have in common: issuers' keys, HTTP clients, and memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use moka::sync::Cache;

use super::CERTIFICATES_MAX;
use super::Identity;
use super::Issuer;
use super::Keys;
use super::TokenKey;
use super::dpop;
use super::jwks::Source;
use super::jwt;
use super::oidc;
use super::tokens;
use crate::principal::Principal;

/// Keys of an issuer are fetched once for all who trust it; memory is bounded for all of them together.
pub struct Shared {
    pub(super) fetchers: oidc::Fetchers,
    issuers: HashMap<(String, Keys), Arc<Source>>,
    /// By the login's address and the tenant's name there.
    members: HashMap<(String, String), Arc<Source>>,
    pub(super) replays: Arc<dpop::Replays>,
    pub(super) tokens: Cache<TokenKey, Arc<jwt::Verified>>,
    pub(super) named: Cache<(u64, String), Option<Arc<Principal>>>,
}

impl Shared {
    /// With nothing known of issuers, and with the proofs that were seen before.
    pub(super) fn new(previous: Option<&Identity>) -> Shared {
        Shared {
            fetchers: oidc::Fetchers::default(),
            issuers: HashMap::new(),
            members: HashMap::new(),
            replays: previous.map_or_else(Arc::default, |previous| Arc::clone(&previous.replays)),
            tokens: tokens(),
            named: Cache::new(CERTIFICATES_MAX),
        }
    }

    /// What this identity has, for others beside it.
    pub fn with(first: &Identity) -> Shared {
        let mut shared =
            Shared { tokens: first.tokens.clone(), named: first.named.clone(), ..Shared::new(Some(first)) };
        shared.learn(first);
        shared
    }

    /// Takes over the keys that were fetched for this one.
    pub fn learn(&mut self, identity: &Identity) {
        for issuer in identity.trust.issuers.iter().filter(|issuer| issuer.source.is_remote()) {
            let key = (issuer.config.issuer.clone(), issuer.config.keys.clone());
            self.issuers.entry(key).or_insert_with(|| Arc::clone(&issuer.source));
        }
        for directory in &identity.trust.directories {
            for (name, source) in directory.named_sources() {
                let key = (directory.config.login().to_owned(), name.to_owned());
                self.members.entry(key).or_insert_with(|| Arc::clone(source));
            }
        }
    }

    pub(super) fn issuer(&self, issuer: &Issuer) -> Option<Arc<Source>> {
        self.issuers.get(&(issuer.issuer.clone(), issuer.keys.clone())).cloned()
    }

    pub(super) fn member(&self, login: &str, name: &str) -> Option<Arc<Source>> {
        self.members.get(&(login.to_owned(), name.to_owned())).cloned()
    }
}

/// Another one for each identity of the process.
pub(super) fn realm() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}
