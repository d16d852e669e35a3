//! Rooms from a configuration: on start, on reload (keeping what did not change), and only to see whether they would do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::backend::builtin;
use crate::backend::remote;
use crate::config::Config;
use crate::config::Loaded;
use crate::credentials::Source;
use crate::filters;
use crate::filters::Filters;
use crate::gateway::Gateway;
use crate::gateway::House;
use crate::gateway::Lists;
use crate::gateway::Member;
use crate::gateway::Sealer;
use crate::identity::Identity;
use crate::limits::Limits;
use crate::mcp::Era;
use crate::policy::Grant;
use crate::policy::Policy;
use crate::telemetry::metrics::Metrics;

/// What a newcomer runs into first.
const HINT: &str = "every tool is above the mode and hidden: unclassified tools count as destroy; classify them (`effects:`, \
     `--effect GLOB=EFFECT`) or believe the server's own hints (`trust_annotations:`, `--trust-annotations`)";

/// How long the first look at a backend may take.
const INTRODUCTION: Duration = Duration::from_secs(10);

/// Every room, or every problem. What an equal configuration built before is kept with its pools, caches and counters.
pub(super) async fn house(config: &Config, old: Option<&House>) -> Result<Arc<House>, Vec<String>> {
    let mut problems = Vec::new();
    let policy =
        Policy::new(&config.policy).map_err(|errors| problems.extend(errors.iter().map(ToString::to_string))).ok();
    let identity = match old {
        Some(old) => old.identity.renewed(config.identity.clone()),
        None => Identity::new(config.identity.clone()),
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
    let sealer = Sealer::configured(&config.sessions, old.map(|old| &old.sealer))
        .map_err(|_| problems.push("the system gives no random numbers".to_owned()))
        .ok();
    let (Some(policy), Some(identity), Some(sealer), true) = (policy, identity, sealer, problems.is_empty()) else {
        return Err(problems);
    };
    let limits = match old {
        Some(old) => old.limits.reloaded(config.limits.clone()),
        None => Limits::new(config.limits.clone()),
    };
    identity.warm().await;
    Ok(Arc::new(House {
        identity,
        limits,
        members,
        mode: config.policy.mode,
        policy,
        public_url: config.public_url.clone(),
        routes: config.routes.clone(),
        lists: Lists::after(old.map(|old| &old.lists)),
        first_scopes: first_scopes(&config.policy.grants),
        sealer,
    }))
}

/// The scopes whose grants do least.
fn first_scopes(grants: &[Grant]) -> Vec<String> {
    let highest = |grant: &Grant| grant.allow.iter().max().copied();
    let scoped = || grants.iter().filter(|grant| grant.scope.is_some());
    let least = scoped().filter_map(highest).min();
    scoped().filter(|grant| highest(grant) == least).filter_map(|grant| grant.scope.clone()).collect()
}

fn member(config: &remote::Config, filters: Option<&filters::Config>, old: Option<&House>) -> Result<Member, String> {
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

fn built_in(
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

/// Would these rooms do? For `check`: nothing is bound, nothing is connected to. Gives what the operator should know.
///
/// # Errors
/// Every problem, one a line.
pub fn try_rooms(loaded: &Loaded) -> Result<Vec<String>, String> {
    let config = &loaded.config;
    let mut problems = Vec::new();
    let notes = match Policy::new(&config.policy) {
        Ok(policy) => policy.notes().to_vec(),
        Err(errors) => {
            problems.extend(errors.iter().map(ToString::to_string));
            Vec::new()
        }
    };
    if let Err(error) = Identity::new(config.identity.clone()) {
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
    let house = gateway.house();
    for (name, member) in &house.members {
        let deadline = Instant::now() + INTRODUCTION;
        let own = match member.credential.own(deadline).await {
            Ok(Some(own)) => own,
            Ok(None) => {
                tracing::info!(backend = %name, "it is asked for its tools when the first caller comes, as that caller");
                continue;
            }
            Err(error) => {
                tracing::warn!(backend = %name, %error, "there is no credential to ask it for its tools yet");
                continue;
            }
        };
        match member.backend.refresh(own, deadline).await {
            Ok(catalog) => {
                let mode = member.mode.map_or(house.mode, |mode| mode.min(house.mode));
                let shown = catalog.tools.values().filter(|decl| mode.admits(decl.effect)).count();
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
}

/// Begins the background work of every backend.
pub(super) fn begin(house: &House) {
    house.members.values().for_each(|member| member.backend.start());
}

/// Begins the background work of the backends that the old house had not.
pub(super) fn begin_new(old: &House, new: &House) {
    for (name, member) in &new.members {
        if !old.members.get(name).is_some_and(|was| Arc::ptr_eq(&was.backend, &member.backend)) {
            member.backend.start();
        }
    }
}

/// Ends what the old house had and the new one has not.
pub(super) fn stop_unused(old: &House, new: &House, metrics: &Metrics) {
    for (name, member) in &old.members {
        let kept = new.members.get(name).is_some_and(|now| Arc::ptr_eq(&now.backend, &member.backend));
        if !kept {
            let backend = member.backend.clone();
            tokio::spawn(async move { backend.stop().await });
        }
        if !new.members.contains_key(name) {
            metrics.forget_backend(name);
        }
    }
}

pub(super) async fn stop(house: &House) {
    for member in house.members.values() {
        member.backend.stop().await;
    }
}
