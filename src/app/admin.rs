//! What the admin listener answers from, and the gauges that are set now and then.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use tokio::sync::watch;

use super::quarantine;
use super::quarantine::Watch;
use crate::audit::Audit;
use crate::gateway::Gateway;
use crate::gateway::House;
use crate::server::Admin;
use crate::server::Server;
use crate::telemetry::metrics::Metrics;

/// Between two looks at limits and backends.
const SWEEP: Duration = Duration::from_secs(15);

pub(super) struct Desk {
    gateway: Arc<Gateway>,
    audit: Arc<Audit>,
    metrics: Arc<Metrics>,
    server: Arc<Server>,
    stopping: watch::Receiver<bool>,
}

impl Desk {
    pub(super) fn new(
        gateway: Arc<Gateway>,
        audit: Arc<Audit>,
        metrics: Arc<Metrics>,
        server: Arc<Server>,
        stopping: watch::Receiver<bool>,
    ) -> Desk {
        Desk { gateway, audit, metrics, server, stopping }
    }
}

impl Admin for Desk {
    fn live(&self) -> bool {
        true
    }

    fn ready(&self) -> Result<(), String> {
        if *self.stopping.borrow() {
            return Err("shutting down".to_owned());
        }
        if !self.audit.available() {
            return Err("the audit log cannot be written".to_owned());
        }
        Ok(())
    }

    fn metrics(&self) -> String {
        gauges(&self.gateway, &self.audit, &self.metrics);
        let counts = self.server.counts();
        self.metrics.listeners(counts.connections, counts.connections_refused, counts.handshakes_failed);
        self.metrics.render()
    }

    fn clear_credentials(&self) -> u64 {
        let house = self.gateway.house();
        let all = house.houses().flat_map(|house| house.own_members());
        let count = all.map(|(_, member)| member.credential.clear()).sum::<u64>();
        self.audit.event("credentials_cleared", &[("tokens", &count.to_string())]);
        count
    }

    fn status(&self) -> Value {
        let house = self.gateway.house();
        let mut backends: Vec<_> = house
            .members
            .iter()
            .map(|(name, member)| {
                json!({ "name": &**name, "healthy": member.backend.healthy(), "tools": member.backend.catalog().tools.len() })
            })
            .collect();
        backends.sort_by_key(|backend| backend["name"].to_string());
        let routes: Vec<_> =
            house.routes.routes.iter().map(|route| json!({ "path": route.path, "backends": route.backends.iter().map(|name| &**name).collect::<Vec<_>>() })).collect();
        let limits = &house.limits;
        let shared = limits.shared().map(|shared| {
            let nodes: Vec<_> =
                shared.nodes().into_iter().map(|node| json!({ "node": node.name, "up": node.up })).collect();
            json!({ "nodes": nodes, "unreachable": shared.unreachable().as_str() })
        });
        let turns = limits.turns();
        json!({
            "limits": {
                "shared": shared,
                "turns": { "in_progress": turns.taken(), "in_progress_max": turns.places(), "waiting": turns.waiting() },
            },
            "version": env!("CARGO_PKG_VERSION"),
            "mode": house.mode.as_str(),
            "ready": self.ready().is_ok(),
            "backends": backends,
            "routes": routes,
            "tenants": house.tenants.iter().map(|house| tenant(house)).collect::<Vec<_>>(),
            "tenants_in_trouble": house.tenants.troubles().iter().map(|trouble| {
                json!({ "name": &*trouble.name, "kept": trouble.kept, "problems": trouble.problems })
            }).collect::<Vec<_>>(),
        })
    }
}

/// What may be known of a tenant by whoever runs the gateway: no secrets, and nobody's names.
fn tenant(house: &House) -> Value {
    let routes = house.routes.routes.iter().map(|route| {
        let backends: Vec<_> = route.backends.iter().map(|name| &**name).collect();
        json!({ "host": route.host, "path": route.path, "backends": backends })
    });
    let mut backends: Vec<_> = house
        .own_members()
        .map(|(name, member)| json!({ "name": &**name, "healthy": member.backend.healthy(), "tools": member.backend.catalog().tools.len() }))
        .collect();
    backends.sort_by_key(|backend| backend["name"].to_string());
    json!({
        "name": house.name().map(|name| &**name),
        "mode": house.mode.as_str(),
        "backends": backends,
        "routes": routes.collect::<Vec<_>>(),
    })
}

fn gauges(gateway: &Gateway, audit: &Audit, metrics: &Metrics) {
    let whole = gateway.house();
    let mut keys = whole.identity.api_keys_used();
    for house in whole.houses() {
        for (name, member) in house.own_members() {
            metrics.backend(&house.label(name), member.backend.healthy(), member.backend.catalog().tools.len());
        }
        if house.tenant.as_ref().is_some_and(|tenant| tenant.own_identity) {
            keys.extend(house.identity.api_keys_used());
        }
    }
    metrics.turns(whole.limits.turns().taken(), whole.limits.turns().waiting());
    metrics.shared_limits(whole.limits.shared());
    metrics.api_keys(&keys);
    metrics.entra_groups(&whole.identity.groups_asked());
    metrics.audit(&audit.status());
}

/// Housekeeping for as long as the program runs.
pub(super) async fn tick(gateway: Arc<Gateway>, audit: Arc<Audit>, metrics: Arc<Metrics>) {
    let (mut every, mut looks) = (tokio::time::interval(SWEEP), tokio::time::interval(quarantine::LOOK));
    let mut watch = Watch::default();
    loop {
        tokio::select! {
            _ = every.tick() => {
                let whole = gateway.house();
                let own = |house: &&Arc<House>| house.tenant.as_ref().is_some_and(|tenant| tenant.own_limits);
                whole.tenants.iter().filter(own).chain([&whole]).for_each(|house| house.limits.sweep());
                gauges(&gateway, &audit, &metrics);
            }
            _ = looks.tick() => watch.look(&gateway.house(), &audit, &metrics),
        }
    }
}
