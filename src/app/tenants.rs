//! Tenants from a configuration: each a house of its own; what is equal is shared, what did not change is kept.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::build::built_in;
use super::build::member;
use crate::backend::builtin;
use crate::backend::remote;
use crate::catalog::Mode;
use crate::config;
use crate::config::Config;
use crate::config::Refused;
use crate::gateway::House;
use crate::gateway::Life;
use crate::gateway::Member;
use crate::gateway::Tenant;
use crate::gateway::Tenants;
use crate::gateway::Trouble;
use crate::identity;
use crate::identity::Identity;
use crate::identity::Keys;
use crate::identity::Shared;
use crate::policy;
use crate::policy::Policy;
use crate::route;
use crate::route::Route;

/// The tenants in force, as they were written: one whose file goes bad stays as it was.
#[derive(Clone, Default)]
pub(super) struct Standing(HashMap<Arc<str>, Arc<config::Tenant>>);

impl Standing {
    fn get(&self, name: &str) -> Option<&Arc<config::Tenant>> {
        self.0.get(name)
    }
}

/// Which tenants are to be, each as it is written now or as it was before; and what is wrong with the others.
pub(super) struct Chosen {
    tenants: Vec<Arc<config::Tenant>>,
    troubles: Vec<Trouble>,
}

impl Chosen {
    pub(super) fn of(config: &Config, standing: &Standing) -> Chosen {
        let mut candidates = config.tenants.clone();
        let mut troubled: HashMap<Arc<str>, Vec<String>> = HashMap::new();
        let mut refused: Vec<Refused> = config.refused.clone();
        // Once for those whose file is bad, once more for those that clash with others as they are now.
        for _ in 0..2 {
            for Refused { name, problems } in refused.drain(..) {
                let written = candidates.iter().position(|one| one.name == name && one.file.is_some());
                // Two of one name: the one that clashes is only in the list once more.
                let twice = candidates.iter().filter(|one| one.name == name).count() > 1;
                if let Some(index) = written {
                    candidates.remove(index);
                }
                if let Some(old) = standing.get(&name).filter(|_| !twice)
                    && !candidates.iter().any(|one| one.name == name)
                {
                    candidates.push(old.clone());
                }
                troubled.entry(name).or_default().extend(problems.iter().map(ToString::to_string));
            }
            let (together, clashing) = config::settle(config, &candidates, |name| standing.get(name).is_some());
            refused = clashing;
            if refused.is_empty() {
                candidates = together;
                break;
            }
        }
        for Refused { name, problems } in refused {
            candidates.retain(|one| one.name != name || one.file.is_none());
            troubled.entry(name).or_default().extend(problems.iter().map(ToString::to_string));
        }
        // What clashes even as it was before is out; then the rest goes together.
        let (tenants, out) = config::settle(config, &candidates, |name| standing.get(name).is_some());
        for Refused { name, problems } in out {
            troubled.entry(name).or_default().extend(problems.iter().map(ToString::to_string));
        }
        let kept = |name: &str| tenants.iter().any(|one| *one.name == *name);
        let troubles = troubled.into_iter().map(|(name, problems)| Trouble { kept: kept(&name), name, problems });
        let mut troubles: Vec<Trouble> = troubles.collect();
        troubles.sort_by(|one, other| one.name.cmp(&other.name));
        Chosen { tenants, troubles }
    }

    /// Does somebody among them act with the tokens of the gateway's callers?
    pub(super) fn need_callers(&self) -> bool {
        let inherit = self.tenants.iter().filter(|tenant| tenant.identity.is_none());
        let mut credentials = inherit.flat_map(|tenant| {
            let remote = tenant.backends.iter().map(|backend| &backend.credential);
            remote.chain(tenant.built_in.iter().map(|backend| &backend.credential))
        });
        credentials.any(|credential| credential.needs_callers())
    }
}

/// Builds tenants inside the gateway's house.
pub(super) struct Builder<'a> {
    config: &'a Config,
    /// The gateway's, without tenants yet.
    gateway: &'a House,
    old: Option<&'a House>,
    standing: &'a Standing,
    shared: Shared,
    /// Equal grants and policies are judged by one.
    policies: HashMap<String, Arc<Policy>>,
    /// Of what tenants have from the gateway.
    prints: Prints,
}

struct Prints {
    identity: [u8; 32],
    rest: [u8; 32],
    limits: [u8; 32],
    /// Bounds of the gateway's backends: they hold for tenants with limits of their own, too.
    backends: [u8; 32],
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        config: &'a Config,
        gateway: &'a House,
        old: Option<&'a House>,
        standing: &'a Standing,
    ) -> Builder<'a> {
        let mut shared = Shared::with(&gateway.identity);
        // Keys that were fetched for a tenant before are good for it, and for others.
        let before = old.into_iter().flat_map(|old| old.tenants.iter());
        before.for_each(|house| shared.learn(&house.identity));
        let listeners = config.server.listeners.len();
        let rest = format!("{:?}{:?}{:?}{listeners:?}", config.policy, config.filters, config.public_url);
        let prints = Prints {
            identity: print_of(&config.identity),
            rest: digest(&[rest.as_bytes()]),
            limits: digest(&[format!("{:?}", config.limits).as_bytes()]),
            backends: digest(&[format!("{:?}", config.limits.backends).as_bytes()]),
        };
        Builder { config, gateway, old, standing, shared, policies: HashMap::new(), prints }
    }

    /// Every tenant that can be, and what is wrong with the others.
    pub(super) fn build(mut self, chosen: Chosen) -> (Tenants, Standing) {
        let Chosen { tenants, mut troubles } = chosen;
        let (mut houses, mut standing) = (Vec::with_capacity(tenants.len()), HashMap::new());
        for tenant in tenants {
            let before = self.standing.get(&tenant.name).filter(|before| !Arc::ptr_eq(before, &tenant)).cloned();
            let (house, written) = match (self.house(&tenant), before) {
                (Ok(house), _) => (Some(house), tenant.clone()),
                (Err(problems), before) => {
                    let house = before.as_ref().and_then(|before| self.house(before).ok());
                    let kept = house.is_some();
                    let prefix = |problem: String| format!("tenant `{}`: {problem}", tenant.name);
                    let problems = problems.into_iter().map(prefix).collect();
                    troubles.push(Trouble { name: tenant.name.clone(), kept, problems });
                    (house, before.unwrap_or_else(|| tenant.clone()))
                }
            };
            if let Some(house) = house {
                standing.insert(tenant.name.clone(), written);
                houses.push(house);
            }
        }
        (Tenants::new(houses, troubles), Standing(standing))
    }

    fn house(&mut self, tenant: &config::Tenant) -> Result<Arc<House>, Vec<String>> {
        let old = self.old.and_then(|old| old.tenants.find(&tenant.name));
        let routes = routes_of(tenant, &self.config.routes);
        let (members, own_backends) = self.members(tenant, &routes, old.map(AsRef::as_ref))?;
        let fingerprint = self.fingerprint(tenant, &routes, &members);
        if let Some(old) = old
            && old.tenant.as_ref().is_some_and(|tenant| tenant.fingerprint == fingerprint)
            && Arc::ptr_eq(&old.sealer, &self.gateway.sealer)
            && old.limits.counts_with(&self.gateway.limits)
        {
            return Ok(old.clone());
        }
        let identity = self.identity(tenant, &members, old)?;
        let policy = self.policy(tenant)?;
        let grants = tenant.policy.as_ref().map_or(&self.config.policy.grants, |policy| &policy.grants);
        let limits = match &tenant.limits {
            None => self.gateway.limits.clone(),
            Some(limits) => {
                let had = |old: &&Arc<House>| old.tenant.as_ref().is_some_and(|tenant| tenant.own_limits);
                let before = old.filter(had).map(|old| &*old.limits);
                let own = (&tenant.name, &own_backends);
                Arc::new(self.gateway.limits.within(limits.clone(), own, before))
            }
        };
        let known_to_gateway = config::is_known_to_gateway(self.config, tenant);
        Ok(Arc::new(House {
            identity,
            limits,
            members,
            mode: tenant.mode.map_or(self.gateway.mode, |mode: Mode| mode.min(self.gateway.mode)),
            policy,
            public_url: self.gateway.public_url.clone(),
            routes,
            lists: self.gateway.lists.beside(),
            first_scopes: super::build::first_scopes(grants),
            sealer: self.gateway.sealer.clone(),
            tenant: Some(Tenant {
                name: tenant.name.clone(),
                rule: tenant.rule.clone(),
                own_identity: tenant.identity.is_some(),
                own_limits: tenant.limits.is_some(),
                known_to_gateway,
                own_backends,
                fingerprint,
            }),
            tenants: Tenants::default(),
            life: Life::default(),
        }))
    }

    /// Its own backends, and those of the gateway that its routes lead to.
    fn members(
        &self,
        tenant: &config::Tenant,
        routes: &route::Config,
        old: Option<&House>,
    ) -> Result<Members, Vec<String>> {
        let (mut members, mut own, mut problems) = (HashMap::new(), BTreeSet::new(), Vec::new());
        for backend in &tenant.backends {
            match member(backend, tenant.filters.get(&backend.name), old) {
                Ok(member) => drop(members.insert(backend.name.clone(), member)),
                Err(problem) => problems.push(problem),
            }
            own.insert(backend.name.clone());
        }
        for backend in &tenant.built_in {
            match built_in(backend, tenant.filters.get(&backend.name), old) {
                Ok(member) => drop(members.insert(backend.name.clone(), member)),
                Err(problem) => problems.push(problem),
            }
            own.insert(backend.name.clone());
        }
        for name in routes.routes.iter().flat_map(|route| &route.backends).filter(|name| !own.contains(*name)) {
            match self.gateway.members.get(name) {
                Some(member) => drop(members.insert(name.clone(), member.clone())),
                None => problems.push(format!("there is no backend `{name}` any more")),
            }
        }
        if problems.is_empty() { Ok((members, own)) } else { Err(problems) }
    }

    fn identity(
        &mut self,
        tenant: &config::Tenant,
        members: &HashMap<Arc<str>, Member>,
        old: Option<&Arc<House>>,
    ) -> Result<Arc<Identity>, Vec<String>> {
        let Some(config) = &tenant.identity else { return Ok(self.gateway.identity.clone()) };
        let assertions = members.values().any(|member| member.credential.is_personal());
        let config = identity::Config { assertions, ..config.clone() };
        let was_own = |old: &&Arc<House>| old.tenant.as_ref().is_some_and(|tenant| tenant.own_identity);
        let old = old.filter(was_own).map(|old| &*old.identity);
        let identity = Identity::among(config, old, &mut self.shared).map_err(|error| vec![error.to_string()])?;
        Ok(Arc::new(identity))
    }

    fn policy(&mut self, tenant: &config::Tenant) -> Result<Arc<Policy>, Vec<String>> {
        let Some(config) = &tenant.policy else { return Ok(self.gateway.policy.clone()) };
        let own: Vec<_> = tenant.backend_names().collect();
        let key = format!("{:?}{:?}{own:?}", config.grants, config.sources);
        let known = super::build::known_to(tenant, self.config);
        if let Some(known) = self.policies.get(&key) {
            return Ok(known.clone());
        }
        let said = |errors: Vec<policy::Error>| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        let policy = Arc::new(self.gateway.policy.within(config, &known).map_err(said)?);
        self.policies.insert(key, policy.clone());
        Ok(policy)
    }

    fn fingerprint(
        &self,
        tenant: &config::Tenant,
        routes: &route::Config,
        members: &HashMap<Arc<str>, Member>,
    ) -> [u8; 32] {
        let mut names: Vec<_> = members.iter().map(|(name, member)| (name, member.fingerprint)).collect();
        names.sort();
        let text = format!("{tenant:?}{routes:?}{names:?}");
        let identity = tenant.identity.as_ref().map_or(self.prints.identity, print_of);
        let limits = if tenant.limits.is_none() { self.prints.limits } else { self.prints.backends };
        digest(&[text.as_bytes(), &identity, &limits, &self.prints.rest])
    }
}

type Members = (HashMap<Arc<str>, Member>, BTreeSet<Arc<str>>);

/// Its routes at its hosts and below its path: its own, or those that the gateway has at no host of its own.
fn routes_of(tenant: &config::Tenant, gateway: &route::Config) -> route::Config {
    let rule = &tenant.rule;
    let prefix = rule.path.as_deref().unwrap_or_default();
    let written = tenant.routes.as_ref().unwrap_or(gateway).routes.iter();
    let at = |route: &Arc<Route>, host: Option<&String>| {
        let host = host.or(route.host.as_ref()).cloned();
        Arc::new(Route { path: format!("{prefix}{}", route.path), host, ..Route::clone(route) })
    };
    let routes = match (rule.hosts.is_empty(), tenant.routes.is_some()) {
        (true, _) => written.map(|route| at(route, None)).collect(),
        (false, own) => {
            let fits = |route: &&Arc<Route>, host: &String| match &route.host {
                Some(only) => own && only == host,
                None => true,
            };
            let at_host =
                |host| written.clone().filter(move |route| fits(route, host)).map(move |route| at(route, Some(host)));
            rule.hosts.iter().flat_map(at_host).collect()
        }
    };
    route::Config { routes }
}

/// Equal prints mean the same identity, its files included.
fn print_of(config: &identity::Config) -> [u8; 32] {
    let keys = config.issuers.iter().filter_map(|issuer| match &issuer.keys {
        Keys::File(path) => Some(path),
        Keys::Discover | Keys::Url(_) => None,
    });
    let read = |path: &Path| std::fs::read(path).unwrap_or_default();
    let files: Vec<Vec<u8>> = keys.chain(&config.api_keys).map(|path| read(path)).collect();
    let text = format!("{config:?}");
    let parts: Vec<&[u8]> = std::iter::once(text.as_bytes()).chain(files.iter().map(Vec::as_slice)).collect();
    digest(&parts)
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        digest.update(&(part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let mut print = [0; 32];
    print.copy_from_slice(digest.finish().as_ref());
    print
}

/// Would these do? For `check`: every problem, with the tenant it is about.
pub(super) fn try_tenants(config: &Config, gateway: &Policy) -> Vec<String> {
    let refused = config.refused.iter().flat_map(|refused| &refused.problems).map(ToString::to_string);
    let mut problems: Vec<String> = refused.collect();
    let (together, clashing) = config::settle(config, &config.tenants, |_| false);
    problems.extend(clashing.iter().flat_map(|refused| &refused.problems).map(ToString::to_string));
    for tenant in together {
        let mut complain = |what: String| {
            let place = tenant
                .file
                .as_deref()
                .map_or_else(|| format!("tenants.{}", tenant.name), |file| file.display().to_string());
            problems.push(format!("{place}: {what}"));
        };
        if let Some(Err(errors)) = tenant.policy.as_ref().map(|policy| {
            let known = super::build::known_to(&tenant, config);
            gateway.within(policy, &known)
        }) {
            errors.iter().for_each(|error| complain(error.to_string()));
        }
        if let Some(Err(error)) = tenant.identity.clone().map(Identity::new) {
            complain(error.to_string());
        }
        let sources = tenant
            .backends
            .iter()
            .map(|one: &remote::Config| crate::credentials::Source::new(&one.name, &one.credential));
        sources.filter_map(Result::err).for_each(|error| complain(error.to_string()));
        tenant.built_in.iter().filter_map(|one| builtin::new(one).err()).for_each(&mut complain);
    }
    problems
}
