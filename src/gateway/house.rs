//! `House`: everything one configuration brings, swapped as a whole on reload.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::watch;

use super::Lists;
use super::Sealer;
use super::Tenant;
use super::Tenants;
use crate::backend::Backend;
use crate::catalog::Mode;
use crate::credentials;
use crate::filters::Filters;
use crate::identity::Identity;
use crate::identity::challenge;
use crate::identity::facade::Facade;
use crate::limits::Limits;
use crate::mcp::Era;
use crate::policy::Policy;
use crate::route;
use crate::route::Entry;
use crate::route::Route;

const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// The rooms as configured.
pub struct House {
    pub identity: Arc<Identity>,
    pub limits: Arc<Limits>,
    pub members: HashMap<Arc<str>, Member>,
    pub mode: Mode,
    pub policy: Arc<Policy>,
    pub public_url: Option<url::Url>,
    pub routes: route::Config,
    /// Filtered lists, remembered under this configuration's policy and no other's.
    pub lists: Lists,
    /// The scopes whose grants do least: what a client is told to ask for first.
    pub first_scopes: Vec<String>,
    /// Seals what clients carry for us: session ids.
    pub sealer: Arc<Sealer>,
    /// Whose it is; `None`: the gateway's own.
    pub tenant: Option<Tenant>,
    /// Houses inside this one; a tenant has none.
    pub tenants: Tenants,
    pub life: Life,
}

/// How long a house is in force. Open-ended streams end with it, to be judged anew.
pub struct Life {
    id: u64,
    number: watch::Sender<u64>,
}

impl Default for Life {
    fn default() -> Self {
        let id = Life::next();
        Life { id, number: watch::Sender::new(id) }
    }
}

impl Life {
    fn next() -> u64 {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        COUNT.fetch_add(1, Ordering::Relaxed)
    }

    /// Changes when it ends, also if it has ended already. Its value names the house.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        let mut life = self.number.subscribe();
        if *life.borrow() != self.id {
            life.mark_changed();
        }
        life
    }

    pub(super) fn end(&self) {
        self.number.send_replace(Life::next());
    }
}

/// One backend with what the configuration says about it.
#[derive(Clone)]
pub struct Member {
    pub backend: Arc<dyn Backend>,
    pub credential: Arc<credentials::Source>,
    pub mode: Option<Mode>,
    /// What may leave of what it says.
    pub filters: Arc<Filters>,
    /// The era it is to be spoken to in, where that is configured.
    pub era: Option<Era>,
    /// Equal fingerprints mean the same backend, its files and secrets included.
    pub fingerprint: [u8; 32],
}

impl House {
    /// The lowest of all ceilings that apply.
    pub(super) fn ceiling(&self, route: &Route, member: &Member) -> Mode {
        self.mode.lowest([route.mode, member.mode])
    }

    /// Where the metadata of the route at this path stands; `None` without a public URL, an issuer or such a route.
    pub(super) fn metadata_url(&self, host: &str, path: &str) -> Option<String> {
        // Without an issuer there is nobody to log in at: a link would lead nowhere.
        let base = self.base().filter(|base| !self.identity.authorization_servers(base).is_empty())?;
        let (route, _) = self.resolve(host, path)?;
        Some(format!("{}{WELL_KNOWN}{}", self.base_of(route).unwrap_or(base.to_owned()), route.path))
    }

    /// The scopes a client should ask for first: the least that opens this route.
    pub(super) fn base_scopes(&self, host: &str, path: &str) -> Vec<String> {
        let route = self.resolve(host, path);
        self.identity.asked_as(&route.map(|(route, _)| self.scopes_of_route(route)).unwrap_or_default())
    }

    /// SPEC: authorization §Scope Selection: the least set, never the catalogue. More is asked for when it is needed.
    pub(super) fn scopes_of(&self, backend: &str) -> Vec<String> {
        let all = self.policy.scopes_for(backend);
        let first: Vec<_> = all.iter().filter(|scope| self.first_scopes.contains(scope)).cloned().collect();
        if first.is_empty() { all } else { first }
    }

    fn scopes_of_route(&self, route: &Route) -> Vec<String> {
        let mut scopes: Vec<String> = Vec::new();
        for scope in route.backends.iter().flat_map(|backend| self.scopes_of(backend)) {
            if !scopes.contains(&scope) {
                scopes.push(scope);
            }
        }
        scopes
    }

    /// What is at this address, for whoever it may be: of this house, or of some tenant that is known by its callers.
    pub(super) fn resolve<'a>(&self, host: &str, path: &'a str) -> Option<(&Arc<Route>, Entry<'a>)> {
        self.routes.resolve(host, path).or_else(|| self.tenants.entry(host, path))
    }

    pub(super) fn metadata(&self, host: &str, path: &str) -> Option<Bytes> {
        let suffix = path.strip_prefix(WELL_KNOWN)?;
        if let Some(house) = self.tenants.at(host, suffix) {
            return house.metadata(host, path);
        }
        let base = self.base()?;
        let route = match suffix {
            // The root form names a resource only where there is no doubt which.
            "" | "/" => self.routes.only(host)?,
            path => self.resolve(host, path)?.0,
        };
        let servers = self.identity.authorization_servers(base);
        if servers.is_empty() {
            return None;
        }
        let resource = format!("{}{}", self.base_of(route)?, route.path);
        let scopes = self.identity.asked_as(&self.scopes_of_route(route));
        Some(challenge::metadata(&resource, &servers, &scopes, self.identity.proofs()))
    }

    /// The facade that is described at this path, and the identifier it has there.
    pub(super) fn authorization_server(&self, path: &str) -> Option<(&Arc<Facade>, String, &str)> {
        let base = self.base()?;
        let (facade, behind) = self.identity.facade_described_at(path)?;
        Some((facade, format!("{base}{behind}"), base))
    }

    /// Where clients know this route's host.
    fn base_of(&self, route: &Route) -> Option<String> {
        let url = route::address(self.public_url.as_ref()?, route.host.as_deref())?;
        Some(url.as_str().trim_end_matches('/').to_owned())
    }

    fn base(&self) -> Option<&str> {
        self.public_url.as_ref().map(|url| url.as_str().trim_end_matches('/'))
    }
}
