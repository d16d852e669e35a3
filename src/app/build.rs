//! Rooms from a configuration: on start, on reload (keeping what did not change), and only to see whether they would do.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::tenants::Builder;
use super::tenants::Chosen;
use super::tenants::Standing;
use crate::backend::Backend;
use crate::backend::builtin;
use crate::backend::remote;
use crate::catalog::Decl;
use crate::catalog::Mode;
use crate::config;
use crate::config::Config;
use crate::config::Loaded;
use crate::credentials::Source;
use crate::filters;
use crate::filters::Filters;
use crate::gateway::Gateway;
use crate::gateway::House;
use crate::gateway::Life;
use crate::gateway::Lists;
use crate::gateway::Member;
use crate::gateway::Sealer;
use crate::gateway::Tenants;
use crate::identity::Identity;
use crate::limits::Limits;
use crate::mcp::Era;
use crate::policy::Grant;
use crate::policy::Known;
use crate::policy::Policy;
use crate::telemetry::metrics::Metrics;

/// What a newcomer runs into first.
const HINT: &str = "every tool is above the mode and hidden: unclassified tools count as destroy; classify them (`effects:`, \
     `--effect GLOB=EFFECT`) or believe the server's own hints (`trust_annotations:`, `--trust-annotations`)";

/// How long the first look at a backend may take.
const INTRODUCTION: Duration = Duration::from_secs(10);

/// Every room, or every problem. What an equal configuration built before is kept with its pools, caches and counters.
pub(super) async fn house(
    config: &Config,
    old: Option<&House>,
    standing: &Standing,
) -> Result<(Arc<House>, Standing), Vec<String>> {
    let mut problems = Vec::new();
    let chosen = Chosen::of(config, standing);
    let mut trusted = config.identity.clone();
    trusted.assertions |= chosen.need_callers();
    let policy = Policy::over(&config.policy, &known(config))
        .map_err(|errors| problems.extend(errors.iter().map(ToString::to_string)))
        .ok();
    let identity = match old {
        Some(old) => old.identity.renewed(trusted),
        None => Identity::new(trusted),
    };
    let identity = identity.map_err(|error| problems.push(error.to_string())).ok();
    let mut members = HashMap::new();
    for backend in &config.backends {
        match member(backend, config.filters.get(&backend.name), old) {
            Ok(member) => drop(members.insert(backend.name.clone(), member)),
            Err(problem) => problems.push(problem),
        }
    }
    for backend in &config.built_in {
        match built_in(backend, config.filters.get(&backend.name), old) {
            Ok(member) => drop(members.insert(backend.name.clone(), member)),
            Err(problem) => problems.push(problem),
        }
    }
    let limits = match old {
        Some(old) => old.limits.reloaded(config.limits.clone()),
        None => Limits::new(config.limits.clone()),
    };
    let limits = limits.map_err(|error| problems.push(error.to_string())).ok();
    let sealer = Sealer::kept(&config.sessions, old.map(|old| &old.sealer))
        .map_err(|_| problems.push("the system gives no random numbers".to_owned()))
        .ok();
    let (Some(policy), Some(identity), Some(limits), Some(sealer), true) =
        (policy, identity, limits, sealer, problems.is_empty())
    else {
        return Err(problems);
    };
    tokio::join!(identity.warm(), limits.start());
    let mut house = House {
        identity: Arc::new(identity),
        limits: Arc::new(limits),
        members,
        mode: config.policy.mode,
        policy: Arc::new(policy),
        public_url: config.public_url.clone(),
        routes: config.routes.clone(),
        lists: Lists::after(old.map(|old| &old.lists)),
        first_scopes: first_scopes(&config.policy.grants),
        sealer,
        tenant: None,
        tenants: Tenants::default(),
        life: Life::default(),
    };
    let (tenants, standing) = Builder::new(config, &house, old, standing).build(chosen);
    house.tenants = tenants;
    Ok((Arc::new(house), standing))
}

/// Fetches the keys of issuers that only tenants have, one after the other: nobody waits for them.
pub(super) fn warm_new(old: Option<&Arc<House>>, new: &Arc<House>) {
    let known: HashSet<*const Identity> =
        old.iter().flat_map(|old| old.houses()).map(|house| Arc::as_ptr(&house.identity)).collect();
    let own = new.tenants.iter().filter(|house| house.tenant.as_ref().is_some_and(|tenant| tenant.own_identity));
    let new: Vec<Arc<Identity>> =
        own.map(|house| house.identity.clone()).filter(|identity| !known.contains(&Arc::as_ptr(identity))).collect();
    if !new.is_empty() {
        tokio::spawn(async move {
            for identity in new {
                identity.warm().await;
            }
        });
    }
}

/// The scopes whose grants do least.
pub(super) fn first_scopes(grants: &[Grant]) -> Vec<String> {
    let highest = |grant: &Grant| grant.allow.iter().max().copied();
    let scoped = || grants.iter().filter(|grant| grant.scope.is_some());
    let least = scoped().filter_map(highest).min();
    scoped().filter(|grant| highest(grant) == least).filter_map(|grant| grant.scope.clone()).collect()
}

pub(super) fn member(
    config: &remote::Config,
    filters: Option<&filters::Config>,
    old: Option<&House>,
) -> Result<Member, String> {
    let print = fingerprint(config);
    let known = old.and_then(|house| house.members.get(&config.name)).filter(|member| member.fingerprint == print);
    // Together: what was got with an old credential goes with it.
    let (backend, credential) = match known {
        Some(member) => (member.backend.clone(), member.credential.clone()),
        None => {
            let credential = Source::new(&config.name, &config.credential).map_err(|error| error.to_string())?;
            (remote::new(config.clone()).map_err(|error| error.to_string())?, credential)
        }
    };
    let filters = held_to(&config.name, filters)?;
    Ok(Member { backend, credential, mode: config.mode, filters, era: config.era, fingerprint: print })
}

pub(super) fn built_in(
    config: &builtin::Config,
    filters: Option<&filters::Config>,
    old: Option<&House>,
) -> Result<Member, String> {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    digest.update(format!("{config:?}").as_bytes());
    let mut take = |bytes: &[u8]| {
        digest.update(&(bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    config.credential.secrets(&mut take);
    config.files(&mut take);
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest.finish().as_ref());
    let known = old.and_then(|house| house.members.get(&config.name)).filter(|one| one.fingerprint == fingerprint);
    let (backend, credential) = match known {
        Some(member) => (member.backend.clone(), member.credential.clone()),
        None => {
            let credential = Source::new(&config.name, &config.credential).map_err(|error| error.to_string())?;
            (builtin::new(config)?, credential)
        }
    };
    let filters = held_to(&config.name, filters)?;
    Ok(Member { backend, credential, mode: config.mode, filters, era: Some(Era::Modern), fingerprint })
}

/// Where nothing is said: no redaction, declarations without hidden text. A backend that is built in is no exception.
fn held_to(name: &str, config: Option<&filters::Config>) -> Result<Arc<Filters>, String> {
    let Some(config) = config else { return Ok(Arc::default()) };
    Filters::new(config).map(Arc::new).map_err(|error| format!("backend `{name}`: {error}"))
}

/// Equal fingerprints mean the same backend, its files and secrets included.
fn fingerprint(config: &remote::Config) -> [u8; 32] {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    digest.update(format!("{config:?}").as_bytes());
    config.credential.secrets(&mut |secret| {
        digest.update(&(secret.len() as u64).to_le_bytes());
        digest.update(secret);
    });
    match &config.transport {
        remote::Transport::Http(http) => tls_files(&mut digest, &http.tls),
        remote::Transport::Sse(sse) => tls_files(&mut digest, &sse.tls),
        remote::Transport::Stdio(stdio) => {
            stdio.env.iter().for_each(|(_, value)| digest.update(value.expose().as_bytes()))
        }
    }
    let mut print = [0; 32];
    print.copy_from_slice(digest.finish().as_ref());
    print
}

fn tls_files(digest: &mut ring::digest::Context, tls: &remote::ClientTls) {
    let client = tls.client.iter().flat_map(|(chain, key)| [chain, key]);
    for path in tls.ca.iter().chain(client) {
        digest.update(&std::fs::read(path).unwrap_or_default());
    }
}

/// What policies may name: every backend, with its tools where they are known before it is asked.
pub fn known(config: &Config) -> Known {
    Known::new(declared(&config.backends, &config.built_in).collect::<HashMap<_, _>>())
}

/// What the policies of a tenant may name: its own backends, and the gateway's.
pub(super) fn known_to(tenant: &config::Tenant, config: &Config) -> Known {
    let mut known: HashMap<_, _> = declared(&config.backends, &config.built_in).collect();
    // What a tenant calls like one of the gateway's stands before it.
    known.extend(declared(&tenant.backends, &tenant.built_in));
    Known::new(known)
}

fn declared<'b>(
    remote: &'b [remote::Config],
    built_in: &'b [builtin::Config],
) -> impl Iterator<Item = (Arc<str>, Option<Vec<Arc<Decl>>>)> + 'b {
    let pinned = |backend: &remote::Config| backend.pins.as_ref().map(|pinning| pinning.pins.declarations().to_vec());
    let remote = remote.iter().map(move |backend| (backend.name.clone(), pinned(backend)));
    remote.chain(built_in.iter().map(|backend| (backend.name.clone(), Some(builtin::declarations(backend)))))
}

/// Would these rooms do? For `check`: nothing is bound, nothing is connected to. Gives what the operator should know.
///
/// # Errors
/// Every problem, one a line.
pub fn try_rooms(loaded: &Loaded) -> Result<Vec<String>, String> {
    let config = &loaded.config;
    let mut problems = Vec::new();
    let notes = match Policy::over(&config.policy, &known(config)) {
        Ok(policy) => {
            problems.extend(super::tenants::try_tenants(config, &policy));
            policy.notes().to_vec()
        }
        Err(errors) => {
            problems.extend(errors.iter().map(ToString::to_string));
            Vec::new()
        }
    };
    if let Err(error) = Identity::new(config.identity.clone()) {
        problems.push(error.to_string());
    }
    if let Err(error) = Limits::new(config.limits.clone()) {
        problems.push(error.to_string());
    }
    if let Err(error) = crate::server::check(&config.server) {
        problems.push(error.to_string());
    }
    for backend in &config.backends {
        if let Err(error) = Source::new(&backend.name, &backend.credential) {
            problems.push(error.to_string());
        }
    }
    for backend in &config.built_in {
        problems.extend(builtin::new(backend).err());
    }
    if problems.is_empty() { Ok(notes) } else { Err(problems.join("\n")) }
}

/// Says once, in the log, what each backend offers and how much of it this mode shows.
pub(super) async fn introduce(gateway: Arc<Gateway>) {
    let whole = gateway.house();
    for house in whole.houses() {
        for (name, member) in house.own_members() {
            introduced(&house.label(name), member, house.mode).await;
        }
    }
}

async fn introduced(name: &str, member: &Member, mode: Mode) {
    let deadline = Instant::now() + INTRODUCTION;
    let own = match member.credential.own(deadline).await {
        Ok(Some(own)) => own,
        Ok(None) => {
            tracing::info!(backend = %name, "it is asked for its tools when the first caller comes, as that caller");
            return;
        }
        Err(error) => {
            tracing::warn!(backend = %name, %error, "there is no credential to ask it for its tools yet");
            return;
        }
    };
    match member.backend.refresh(own, deadline).await {
        Ok(catalog) => {
            let mode = member.mode.map_or(mode, |own| own.min(mode));
            let shown = catalog.tools.values().filter(|decl| mode.admits(decl.lowest_effect())).count();
            tracing::info!(backend = %name, tools = catalog.tools.len(), within_mode = shown, mode = mode.as_str(), "backend is up");
            if shown == 0 && !catalog.tools.is_empty() {
                tracing::warn!(backend = %name, "{HINT}");
            } else if shown < catalog.tools.len() {
                tracing::info!(backend = %name, "tools above the mode are hidden; unclassified ones count as destroy");
            }
        }
        Err(error) => tracing::warn!(backend = %name, %error, "backend is not reachable yet"),
    }
}

/// Every backend with the name that metrics and logs have for it.
fn backends(house: &Arc<House>) -> Vec<(String, Arc<dyn Backend>)> {
    let own = |house: &Arc<House>| {
        let named = house.own_members().map(|(name, member)| (house.label(name), member.backend.clone()));
        named.collect::<Vec<_>>()
    };
    house.houses().flat_map(own).collect()
}

fn address(backend: &Arc<dyn Backend>) -> usize {
    Arc::as_ptr(backend).cast::<()>().addr()
}

/// Tools that were approved, or are not any more: a backend that is kept keeps its connections and processes.
pub(super) fn pin(config: &Config, house: &House) {
    pin_members(&config.backends, house);
    let with_pins = |tenant: &&Arc<config::Tenant>| tenant.backends.iter().any(|backend| backend.pins.is_some());
    for tenant in config.tenants.iter().filter(with_pins) {
        if let Some(own) = house.tenants.iter().find(|own| own.name() == Some(&tenant.name)) {
            pin_members(&tenant.backends, own);
        }
    }
}

fn pin_members(backends: &[remote::Config], house: &House) {
    for backend in backends {
        if let Some(member) = house.members.get(&backend.name) {
            member.backend.pin(backend.pins.as_ref().map(|pinning| pinning.pins.clone()));
        }
    }
}

/// Begins the background work of every backend.
pub(super) fn begin(house: &Arc<House>) {
    backends(house).iter().for_each(|(_, backend)| backend.start());
}

/// Begins the background work of the backends that the old house had not.
pub(super) fn begin_new(old: &Arc<House>, new: &Arc<House>) {
    let known: HashSet<usize> = backends(old).iter().map(|(_, backend)| address(backend)).collect();
    backends(new).iter().filter(|(_, backend)| !known.contains(&address(backend))).for_each(|(_, one)| one.start());
}

/// Ends what the old house had and the new one has not.
pub(super) fn stop_unused(old: &Arc<House>, new: &Arc<House>, metrics: &Metrics) {
    let now = backends(new);
    let kept: HashSet<usize> = now.iter().map(|(_, backend)| address(backend)).collect();
    let labels: HashSet<&str> = now.iter().map(|(label, _)| label.as_str()).collect();
    for (label, backend) in backends(old) {
        if !labels.contains(label.as_str()) {
            metrics.forget_backend(&label);
        }
        if !kept.contains(&address(&backend)) {
            tokio::spawn(async move { backend.stop().await });
        }
    }
    let gone = old.tenants.iter().filter_map(|house| house.name()).filter(|name| new.tenants.find(name).is_none());
    gone.for_each(|name| metrics.forget_tenant(name));
}

pub(super) async fn stop(house: &Arc<House>) {
    for (_, backend) in backends(house) {
        backend.stop().await;
    }
}
