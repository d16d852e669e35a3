//! Tenants as they are shown: what each states, wherever it was written.

use std::sync::Arc;

use super::Shown;
use super::backends;
use super::grant;
use super::holder;
use super::identity;
use super::limits;
use super::list;
use super::map;
use super::maybe;
use super::mode;
use super::route;
use super::text;
use super::unless_empty;
use crate::config::Tenant;
use crate::gateway::Certificate;

pub(super) fn tenants(tenants: &[Arc<Tenant>]) -> Shown {
    if tenants.is_empty() {
        return Shown::Nothing;
    }
    Shown::Map(tenants.iter().map(|one| (one.name.to_string(), tenant(one))).collect())
}

fn tenant(tenant: &Tenant) -> Shown {
    let rule = &tenant.rule;
    let own = tenant.identity.as_ref().map(|own| identity(&identity::Config { proxy: None, ..own.clone() }));
    let policy = tenant.policy.as_ref();
    let has_none = tenant.backends.is_empty() && tenant.built_in.is_empty();
    let backends = || backends(&tenant.backends, &tenant.built_in, &tenant.filters);
    let hosts: Vec<_> = rule.hosts.iter().collect();
    let claims: Vec<_> = rule.claims.iter().collect();
    map([
        ("host", unless_empty(&hosts, text)),
        ("path", maybe(rule.path.as_ref(), text)),
        ("claim", unless_empty(&claims, text)),
        ("certificate", unless_empty(&rule.certificates, certificate)),
        ("identity", own.unwrap_or(Shown::Nothing)),
        ("mode", maybe(tenant.mode, mode)),
        ("grants", maybe(policy, |policy| list(&policy.grants, grant))),
        ("policies", maybe(policy, |policy| unless_empty(&policy.sources, |(name, _)| text(name)))),
        ("limits", maybe(tenant.limits.as_ref(), limits)),
        ("backends", if has_none { Shown::Nothing } else { backends() }),
        ("routes", maybe(tenant.routes.as_ref(), |routes| list(&routes.routes, |one| route(one)))),
    ])
}

fn certificate(certificate: &Certificate) -> Shown {
    let holder = certificate.holder.as_ref().map(holder);
    let issuer = certificate.issuer.as_ref().map(|issuer| ("issuer", text(issuer.text())));
    Shown::Map(holder.into_iter().chain(issuer).map(|(name, shown)| (name.to_owned(), shown)).collect())
}
