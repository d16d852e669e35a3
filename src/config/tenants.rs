//! Do these tenants go together? Two may not have the same host, path or certificates, nor take one caller for theirs.

use std::collections::HashMap;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::Config;
use super::Problem;
use super::Refused;
use super::Tenant;
use crate::identity;
use crate::identity::entra::Entra;
use crate::identity::entra::Tenants;

/// What no two tenants may have both.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Mark {
    Name(Arc<str>),
    Host(String),
    Path(String),
    /// Certificates that alone lead to a tenant.
    Certificate(String),
    /// Credentials of one kind that say this about their tenant.
    Claimed(String, String),
    /// Credentials of one kind, whatever they say.
    All(String),
    /// Credentials of one kind that say something or other: nobody may have them all.
    Some(String),
}

impl Mark {
    fn words(&self, other: &str) -> String {
        match self {
            Mark::Name(name) => format!("there is a tenant `{name}` already"),
            Mark::Host(host) => format!("the host `{host}` is that of {other}"),
            Mark::Path(path) => format!("the path `{path}` is that of {other}"),
            Mark::Certificate(_) => format!("the same certificates are those of {other}"),
            Mark::Claimed(_, claim) => {
                format!("callers of tenant `{claim}` are those of {other}: their credentials would be good in both")
            }
            Mark::All(_) | Mark::Some(_) => format!(
                "{other} trusts the same issuer for the same audience, or the same keys or certificates: say in both whose \
                 callers are whose (`claim`, `entra_tenant`), or give each an audience or keys of its own"
            ),
        }
    }
}

/// The marks of one tenant.
struct Marks {
    /// What it takes for itself.
    wanted: Vec<Mark>,
    /// What nobody else may have taken.
    barred: Vec<Mark>,
    /// What it takes, and others may, too.
    shared: Vec<Mark>,
}

/// Those that go together, and why the others do not. Of two that claim the same, the one that `first` says is in force
/// already stays, then the one of the main file, then the one whose name comes first.
pub fn settle(
    config: &Config,
    tenants: &[Arc<Tenant>],
    first: impl Fn(&str) -> bool,
) -> (Vec<Arc<Tenant>>, Vec<Refused>) {
    let mut order: Vec<&Arc<Tenant>> = tenants.iter().collect();
    order.sort_by_key(|tenant| (tenant.file.is_some(), !first(&tenant.name), tenant.name.clone(), tenant.file.clone()));
    let trust = Trust::of(config, tenants.iter().filter_map(|tenant| tenant.identity.as_ref()));
    let gateway: Arc<str> = "the gateway".into();
    let mut taken: HashMap<Mark, Arc<str>> =
        trust.common.iter().map(|kind| (Mark::Some(kind.clone()), gateway.clone())).collect();
    let (mut together, mut refused) = (Vec::new(), Vec::new());
    for tenant in order {
        let Marks { wanted, barred, shared } = trust.marks(tenant);
        let clash = wanted.iter().chain(&barred).filter_map(|mark| Some(mark.words(taken.get(mark)?)));
        let mut clashes: Vec<String> = clash.collect();
        clashes.dedup();
        if clashes.is_empty() {
            let name: Arc<str> = format!("tenant `{}`", tenant.name).into();
            for mark in wanted.into_iter().chain(shared) {
                taken.entry(mark).or_insert_with(|| name.clone());
            }
            together.push(tenant.clone());
        } else {
            let problems = clashes.into_iter().map(|message| problem(tenant, message)).collect();
            refused.push(Refused { name: tenant.name.clone(), problems });
        }
    }
    together.sort_by(|one, other| one.name.cmp(&other.name));
    (together, refused)
}

fn problem(tenant: &Tenant, message: String) -> Problem {
    let key = if tenant.file.is_some() { String::new() } else { format!("tenants.{}", tenant.name) };
    Problem { file: tenant.file.clone().unwrap_or_default(), line: 0, column: 0, key, message }
}

/// What is wrong between the tenants of the main file: it is taken as a whole or not at all.
pub(super) fn clashes_within(config: &Config, path: &Path) -> Vec<Problem> {
    let inline: Vec<_> = config.tenants.iter().filter(|tenant| tenant.file.is_none()).cloned().collect();
    let problems = settle(config, &inline, |_| false).1.into_iter().flat_map(|refused| refused.problems);
    problems.map(|problem| Problem { file: path.to_owned(), ..problem }).collect()
}

/// Is what this tenant trusts trusted by the gateway, too?
pub fn is_known_to_gateway(config: &Config, tenant: &Tenant) -> bool {
    let Some(identity) = &tenant.identity else { return true };
    let trust = Trust::of(config, std::iter::once(identity));
    trust.kinds(identity).iter().any(|kind| trust.common.contains(kind))
}

/// The kinds of credentials that are good somewhere: an issuer with an audience, a file of keys, a rule for certificates.
struct Trust {
    /// Kinds of Entra's that include every tenant of a login.
    everybodys: HashSet<String>,
    /// What is good at the gateway, for all tenants without an identity of their own.
    common: Vec<String>,
}

impl Trust {
    fn of<'a>(config: &'a Config, tenants: impl Iterator<Item = &'a identity::Config>) -> Trust {
        let open =
            tenants.chain([&config.identity]).flat_map(|identity| &identity.entra).filter(|entra| !is_listed(entra));
        let open = open.flat_map(|entra| entra.audiences.iter().map(|audience| everybody(entra, audience)));
        let mut trust = Trust { everybodys: open.collect(), common: Vec::new() };
        trust.common = trust.kinds(&config.identity);
        trust
    }

    fn kinds(&self, identity: &identity::Config) -> Vec<String> {
        let mut all = Vec::new();
        for issuer in &identity.issuers {
            all.extend(issuer.audiences.iter().map(|audience| format!("{}\n{audience}", issuer.issuer)));
        }
        for entra in &identity.entra {
            for audience in &entra.audiences {
                if let Tenants::Listed(names) = &entra.tenants {
                    all.extend(names.iter().map(|name| format!("{}\n{name}\n{audience}", entra.place_of_logins())));
                }
                // One of a list is one of everybody, where somebody takes everybody.
                all.extend(Some(everybody(entra, audience)).filter(|kind| self.everybodys.contains(kind)));
            }
        }
        all.extend(identity.api_keys.iter().map(|file| format!("keys of {}", file.display())));
        all.extend(identity.certificates.iter().map(|rule| format!("certificate {:?}", rule.matches)));
        all
    }

    fn marks(&self, tenant: &Tenant) -> Marks {
        let rule = &tenant.rule;
        let mut wanted = vec![Mark::Name(tenant.name.clone())];
        wanted.extend(rule.hosts.iter().cloned().map(Mark::Host));
        wanted.extend(rule.path.iter().cloned().map(Mark::Path));
        if rule.hosts.is_empty() && rule.path.is_none() {
            wanted.extend(rule.certificates.iter().map(|one| Mark::Certificate(format!("{one:?}"))));
        }
        let (mut barred, mut shared) = (Vec::new(), Vec::new());
        let own = tenant.identity.as_ref().map(|identity| self.kinds(identity));
        // Where nothing is claimed of the gateway's callers, a certificate tells them apart.
        let apart = own.is_none() && rule.claims.is_empty();
        for kind in own.as_ref().unwrap_or(&self.common).iter().filter(|_| !apart) {
            if rule.claims.is_empty() {
                wanted.push(Mark::All(kind.clone()));
                barred.push(Mark::Some(kind.clone()));
            } else {
                wanted.extend(rule.claims.iter().map(|claim| Mark::Claimed(kind.clone(), claim.clone())));
                barred.push(Mark::All(kind.clone()));
                shared.push(Mark::Some(kind.clone()));
            }
        }
        Marks { wanted, barred, shared }
    }
}

fn is_listed(entra: &Entra) -> bool {
    matches!(entra.tenants, Tenants::Listed(_))
}

fn everybody(entra: &Entra, audience: &str) -> String {
    format!("{}\n*\n{audience}", entra.place_of_logins())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;
    use serde_json::json;

    use super::*;
    use crate::config::Options;
    use crate::config::parse;

    /// What is wrong with these tenants behind a gateway with one issuer, all written in its file.
    fn wrong(tenants: Value) -> String {
        let file = json!({
            "listeners": [{ "address": "127.0.0.1:0" }],
            "public_url": "https://gw.example",
            "identity": [{ "oidc": { "issuer": "https://idp.example", "audience": "gw" } }],
            "grants": [{ "allow": ["read"] }],
            "backends": { "files": { "http": { "url": "http://127.0.0.1:1/mcp" } } },
            "routes": [{ "path": "/mcp", "backends": ["files"] }],
            "audit": { "stdout": true },
            "tenants": tenants,
        });
        let options = Options { check_files: false, ..Options::default() };
        parse(&file.to_string(), Path::new("w.yaml"), options)
            .map_or_else(|errors| errors.to_string(), |_| String::new())
    }

    fn oidc(issuer: &str, audience: &str) -> Value {
        json!([{ "oidc": { "issuer": issuer, "audience": audience } }])
    }

    #[test]
    fn tenants_that_would_take_each_others_callers_are_refused() {
        let own = |issuer: &str, audience: &str| json!({ "path": format!("/t/{audience}"), "identity": oidc(issuer, audience) });
        let (a, mut same) = (own("https://a.example", "x"), own("https://a.example", "x"));
        same["path"] = json!("/t/other");
        let mut said = same.clone();
        said["claim"] = json!("two");
        let mut also = a.clone();
        also["claim"] = json!("one");
        let common = |path: &str| json!({ "path": path, "identity": oidc("https://idp.example", "gw") });
        for (tenants, word) in [
            (json!({ "a": {}, "b": {} }), ""),
            (json!({ "a": {}, "b": { "claim": "a" } }), "callers of tenant `a` are those of tenant `a`"),
            (json!({ "a": { "host": "h.example" }, "b": { "host": "H.example" } }), "the host `h.example`"),
            (json!({ "a": { "path": "/t" }, "b": { "path": "/t" } }), "the path `/t`"),
            (json!({ "a": { "path": "/t" }, "b": { "path": "/t/b" } }), ""),
            (json!({ "a": a, "b": own("https://a.example", "y") }), ""),
            (json!({ "a": a, "b": same }), "trusts the same issuer"),
            (json!({ "a": a, "b": said }), "trusts the same issuer"),
            (json!({ "a": also, "b": said }), ""),
            (json!({ "a": common("/t/a") }), "the gateway trusts the same issuer"),
            (json!({ "a": { "path": "/t/a", "claim": "a", "identity": oidc("https://idp.example", "gw") } }), ""),
            (
                json!({ "a": {}, "b": { "path": "/t/b", "claim": "a", "identity": oidc("https://idp.example", "gw") } }),
                "callers of tenant `a`",
            ),
        ] {
            let said = wrong(tenants.clone());
            assert_eq!(said.is_empty(), word.is_empty(), "{tenants}: {said}");
            assert!(said.contains(word), "{tenants}: {said}");
        }
    }

    #[test]
    fn everybody_of_entra_is_one_of_a_list_too() {
        let entra = |tenants: Value| json!([{ "entra": { "tenants": tenants, "audience": "api://gw" } }]);
        let id = "5f0f1a52-0000-4000-8000-000000000001";
        let other = "5f0f1a52-0000-4000-8000-000000000002";
        let tenant = |path: &str, tenants: Value| json!({ "path": path, "identity": entra(tenants) });
        let listed = tenant("/a", json!([id]));
        assert_eq!(wrong(json!({ "a": listed, "b": tenant("/b", json!([other])) })), "");
        assert!(wrong(json!({ "a": listed, "b": tenant("/b", json!([id])) })).contains("trusts the same"));
        assert!(wrong(json!({ "a": listed, "b": tenant("/b", json!("organizations")) })).contains("trusts the same"));
    }

    #[test]
    fn the_one_in_force_keeps_what_a_new_one_claims() {
        let tenant = |name: &str, path: &str| {
            Arc::new(Tenant {
                name: name.into(),
                file: Some(format!("{name}.yaml").into()),
                rule: crate::gateway::Rule { path: Some(path.into()), ..Default::default() },
                identity: None,
                mode: None,
                policy: None,
                limits: None,
                backends: Vec::new(),
                built_in: Vec::new(),
                filters: Default::default(),
                routes: None,
            })
        };
        let all = [tenant("aaa", "/t"), tenant("contoso", "/t")];
        let names = |tenants: Vec<Arc<Tenant>>| tenants.iter().map(|one| one.name.to_string()).collect::<Vec<_>>();
        let config = Config::default();
        assert_eq!(names(settle(&config, &all, |_| false).0), ["aaa"]);
        let (together, refused) = settle(&config, &all, |name| name == "contoso");
        assert_eq!(names(together), ["contoso"]);
        assert_eq!(refused[0].problems[0].to_string(), "aaa.yaml: the path `/t` is that of tenant `contoso`");
    }
}
