//! The effective configuration as YAML: every default filled in, every secret masked. What it shows can be loaded again.

mod builtin;
mod credential;
mod tenant;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use super::Config;
use super::Loaded;
use super::LogFormat;
use crate::audit;
use crate::backend::remote;
use crate::catalog::Effect;
use crate::catalog::Mode;
use crate::catalog::When;
use crate::filters;
use crate::identity;
use crate::identity::CertificateMatch;
use crate::identity::Demand;
use crate::identity::Keys;
use crate::identity::Tenant;
use crate::identity::entra::Cloud;
use crate::identity::entra::Entra;
use crate::identity::entra::Groups;
use crate::identity::entra::Resolve;
use crate::identity::entra::Tenants;
use crate::identity::facade::Login;
use crate::identity::forwarded::Place;
use crate::limits;
use crate::route::Route;
use crate::server;
use crate::server::Address;
use crate::server::ClientAuth;

const MASK: &str = "***";

/// What is in force with this configuration.
pub fn show(loaded: &Loaded) -> String {
    let mut text = String::new();
    sheet(&loaded.config).write(&mut text, 0);
    text
}

/// A value to be written; `Map` leaves out what is `Nothing`.
enum Shown {
    List(Vec<Shown>),
    Map(Vec<(String, Shown)>),
    Nothing,
    Text(String),
    /// Written as it is: numbers, `true`, `false`.
    Word(String),
}

fn text(value: impl Display) -> Shown {
    Shown::Text(value.to_string())
}

fn word(value: impl Display) -> Shown {
    Shown::Word(value.to_string())
}

fn maybe<T>(value: Option<T>, shown: impl FnOnce(T) -> Shown) -> Shown {
    value.map_or(Shown::Nothing, shown)
}

fn list<T>(items: impl IntoIterator<Item = T>, shown: impl FnMut(T) -> Shown) -> Shown {
    Shown::List(items.into_iter().map(shown).collect())
}

fn unless_empty<'a, T>(items: &'a [T], shown: impl FnMut(&'a T) -> Shown) -> Shown {
    if items.is_empty() { Shown::Nothing } else { list(items, shown) }
}

fn map<const N: usize>(entries: [(&str, Shown); N]) -> Shown {
    Shown::Map(entries.into_iter().map(|(name, shown)| (name.to_owned(), shown)).collect())
}

fn path(value: &std::path::Path) -> Shown {
    text(value.display())
}

/// In the largest unit that fits evenly.
fn span(value: Duration) -> Shown {
    let ms = value.as_millis();
    if ms == 0 {
        return word("0s");
    }
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let fits = units.into_iter().find(|(unit, _)| ms.is_multiple_of(*unit));
    word(fits.map_or_else(|| format!("{ms}ms"), |(unit, name)| format!("{}{name}", ms / unit)))
}

fn size(value: usize) -> Shown {
    let units = [(1024 * 1024 * 1024, "GiB"), (1024 * 1024, "MiB"), (1024, "KiB")];
    let fits = units.into_iter().find(|(unit, _)| value > 0 && value.is_multiple_of(*unit));
    word(fits.map_or_else(|| value.to_string(), |(unit, name)| format!("{}{name}", value / unit)))
}

fn mode(value: Mode) -> Shown {
    word(value.as_str())
}

fn effect(value: Effect) -> Shown {
    word(value.as_str())
}

fn when(when: &When) -> Shown {
    let value = |value: &serde_json::Value| value.as_str().map_or_else(|| word(value), text);
    let members = when.0.iter().map(|(name, values)| (name.clone(), list(values, value)));
    if when.0.is_empty() { Shown::Nothing } else { Shown::Map(members.collect()) }
}

fn sheet(config: &Config) -> Shown {
    let admission = &config.server.admission;
    map([
        ("listeners", list(&config.server.listeners, listener)),
        ("public_url", maybe(config.public_url.as_ref(), |url| text(url.as_str().trim_end_matches('/')))),
        ("identity", identity(&config.identity)),
        ("mode", mode(config.policy.mode)),
        ("grants", unless_empty(&config.policy.grants, grant)),
        ("policies", unless_empty(&config.policy.sources, |(name, _)| text(name))),
        ("limits", limits(&config.limits)),
        ("backends", backends(&config.backends, &config.built_in, &config.filters)),
        ("routes", list(&config.routes.routes, |one| route(one))),
        ("tenants", tenant::tenants(&config.tenants)),
        (
            "sessions",
            map([
                ("keys", unless_empty(&config.sessions.keys, |_| text(MASK))),
                ("lifetime", span(config.sessions.lifetime)),
                ("confirm_within", span(config.sessions.confirm_within)),
            ]),
        ),
        ("admin", maybe(config.server.admin.as_ref(), |address| Shown::Map(address_of(address)))),
        ("audit", audit(&config.audit)),
        (
            "admission",
            map([
                ("hosts", unless_empty(&admission.hosts, text)),
                ("origins", unless_empty(&admission.origins, text)),
                ("header_bytes_max", size(admission.header_bytes_max)),
                ("body_bytes_max", size(admission.body_bytes_max)),
                ("head_timeout", span(admission.head_timeout)),
                ("body_timeout", span(admission.body_timeout)),
                ("idle_timeout", span(admission.idle_timeout)),
                ("request_timeout", span(admission.request_timeout)),
                ("connections_max", word(admission.connections_max)),
                ("keepalive_interval", span(admission.keepalive_interval)),
                ("write_timeout", span(admission.write_timeout)),
            ]),
        ),
        ("shutdown_grace", span(config.server.shutdown_grace)),
        (
            "log",
            map([
                ("level", text(&config.log.level)),
                (
                    "format",
                    word(match config.log.format {
                        LogFormat::Json => "json",
                        LogFormat::Text => "text",
                    }),
                ),
            ]),
        ),
    ])
}

fn route(route: &Route) -> Shown {
    map([
        ("path", text(&route.path)),
        ("host", maybe(route.host.as_ref(), text)),
        ("backends", destinations(route)),
        ("separator", maybe(route.names.as_ref(), |names| text(names.separator()))),
        ("member_timeout", maybe(route.names.as_ref(), |names| span(names.member_timeout))),
        ("mode", maybe(route.mode, mode)),
        ("old_sse", word(route.old_sse)),
    ])
}

fn address_of(address: &Address) -> Vec<(String, Shown)> {
    match address {
        Address::Tcp(address) => vec![("address".to_owned(), text(address))],
        Address::Unix(path, bits) => {
            let address = text(format!("unix:{}", path.display()));
            vec![("address".to_owned(), address), ("socket_mode".to_owned(), text(format!("0{bits:o}")))]
        }
    }
}

fn listener(listener: &server::Listener) -> Shown {
    let mut entries = address_of(&listener.address);
    if let Some(tls) = &listener.tls {
        let client_auth = match tls.client_auth {
            ClientAuth::None => "none",
            ClientAuth::Optional => "optional",
            ClientAuth::Required => "required",
        };
        let shown = map([
            ("certificate", path(&tls.certificate)),
            ("key", path(&tls.key)),
            ("client_ca", maybe(tls.client_ca.as_deref(), path)),
            ("client_auth", word(client_auth)),
        ]);
        entries.push(("tls".to_owned(), shown));
    }
    Shown::Map(entries)
}

fn identity(config: &identity::Config) -> Shown {
    let mut ways: Vec<Shown> = config.entra.iter().map(|one| map([("entra", entra(one, &config.logins))])).collect();
    ways.extend(config.issuers.iter().map(|one| map([("oidc", issuer(one, &config.logins))])));
    ways.extend(config.api_keys.as_deref().map(|file| map([("api_keys", map([("file", path(file))]))])));
    if !config.certificates.is_empty() {
        ways.push(map([("certificates", list(&config.certificates, certificate))]));
    }
    if let Some(proxy) = &config.proxy {
        let from = list(&proxy.from, |place| match place {
            Place::Network(network) => text(network),
            Place::Unix => word("unix"),
        });
        ways.push(map([("proxy", map([("from", from), ("certificate_header", word(proxy.header.as_str()))]))]));
    }
    ways.extend(config.anonymous.as_ref().map(|scopes| map([("anonymous", map([("scopes", list(scopes, text))]))])));
    Shown::List(ways)
}

fn entra(entra: &Entra, logins: &[Login]) -> Shown {
    let (tenant, tenants) = match &entra.tenants {
        Tenants::Any => (Shown::Nothing, word("any")),
        Tenants::Organizations => (Shown::Nothing, word("organizations")),
        Tenants::Listed(names) => match names.as_slice() {
            [one] => (text(one), Shown::Nothing),
            several => (Shown::Nothing, list(several, text)),
        },
    };
    let cloud = match entra.cloud {
        Cloud::China => "china",
        Cloud::Public => "public",
        Cloud::UsGovernment => "us-government",
    };
    let access = |allowed: bool| word(if allowed { "allow" } else { "deny" });
    map([
        ("tenant", tenant),
        ("tenants", tenants),
        ("audience", list(&entra.audiences, text)),
        ("cloud", if entra.authority.is_some() { Shown::Nothing } else { word(cloud) }),
        ("authority", maybe(entra.authority.as_ref(), text)),
        ("guests", access(entra.guests)),
        ("applications", access(entra.applications)),
        ("leeway", span(entra.leeway)),
        ("certificate_bound", demand(entra.certificate_bound)),
        ("dpop", demand(entra.dpop)),
        ("groups", maybe(entra.groups.as_ref(), groups)),
        ("login", login(&entra.place(), logins)),
    ])
}

fn groups(groups: &Groups) -> Shown {
    let resolve = match groups.resolve {
        Resolve::ClientCredentials => "client_credentials",
        Resolve::OnBehalfOf => "on_behalf_of",
    };
    map([
        ("resolve", word(resolve)),
        ("client", credential::client(&groups.client)),
        ("graph", text(groups.graph.as_str().trim_end_matches('/'))),
        ("security_only", word(groups.security_only)),
        ("keep", span(groups.keep)),
        ("timeout", span(groups.timeout)),
    ])
}

fn issuer(issuer: &identity::Issuer, logins: &[Login]) -> Shown {
    let (url, file) = match &issuer.keys {
        Keys::Discover => (Shown::Nothing, Shown::Nothing),
        Keys::File(file) => (Shown::Nothing, path(file)),
        Keys::Url(url) => (text(url), Shown::Nothing),
    };
    map([
        ("issuer", text(&issuer.issuer)),
        ("audience", list(&issuer.audiences, text)),
        ("jwks_url", url),
        ("jwks_file", file),
        ("algorithms", list(&issuer.algorithms, |algorithm| word(format_args!("{algorithm:?}")))),
        ("leeway", span(issuer.leeway)),
        ("tenant_claim", list(&issuer.tenant_claims, text)),
        ("groups_claim", text(&issuer.groups_claim)),
        ("certificate_bound", demand(issuer.certificate_bound)),
        ("dpop", demand(issuer.dpop)),
        ("login", login(&issuer.issuer, logins)),
    ])
}

fn login(issuer: &str, logins: &[Login]) -> Shown {
    let Some(login) = logins.iter().find(|login| login.issuer == issuer) else { return Shown::Nothing };
    map([
        ("client_id", text(&login.client_id)),
        ("loopback", word(login.loopback)),
        ("redirect_uris", unless_empty(&login.redirect_uris, text)),
        ("scope_prefix", maybe(Some(&login.scope_prefix).filter(|prefix| !prefix.is_empty()), text)),
    ])
}

fn demand(demand: Demand) -> Shown {
    word(match demand {
        Demand::Off => "off",
        Demand::Optional => "optional",
        Demand::Required => "required",
    })
}

fn holder(matches: &CertificateMatch) -> (&'static str, Shown) {
    match matches {
        CertificateMatch::Dns(pattern) => ("dns", text(pattern.text())),
        CertificateMatch::Email(pattern) => ("email", text(pattern.text())),
        CertificateMatch::Fingerprint(hex) => ("fingerprint", text(hex)),
        CertificateMatch::Spiffe(pattern) => ("spiffe", text(pattern.text())),
        CertificateMatch::Subject(subject) => ("subject", text(subject.text())),
        CertificateMatch::Uri(pattern) => ("uri", text(pattern.text())),
    }
}

fn certificate(rule: &identity::CertificateRule) -> Shown {
    let (name, value) = holder(&rule.matches);
    let words = |set: &BTreeSet<String>| if set.is_empty() { Shown::Nothing } else { list(set, text) };
    let tenant = match &rule.tenant {
        Tenant::Fixed(name) => text(name),
        Tenant::Named | Tenant::None => Shown::Nothing,
    };
    map([
        (name, value),
        ("scopes", list(&rule.scopes, text)),
        ("roles", words(&rule.roles)),
        ("groups", words(&rule.groups)),
        ("tenant", tenant),
    ])
}

fn grant(grant: &crate::policy::Grant) -> Shown {
    map([
        ("scope", maybe(grant.scope.as_ref(), text)),
        ("role", maybe(grant.role.as_ref(), text)),
        ("group", maybe(grant.group.as_ref(), text)),
        ("subject", maybe(grant.subject.as_ref(), text)),
        ("allow", list(grant.allow.iter().copied(), effect)),
        ("tools", unless_empty(&grant.tools, text)),
        ("shadow", if grant.shadow { word(true) } else { Shown::Nothing }),
        ("confirm", if grant.confirm { word(true) } else { Shown::Nothing }),
    ])
}

fn rate(rate: limits::Rate) -> Shown {
    match span(rate.period) {
        Shown::Word(period) => word(format_args!("{} per {period}", rate.calls)),
        other => other,
    }
}

fn quotas(quotas: &[Option<limits::Quota>]) -> Shown {
    let quotas: Vec<_> = quotas.iter().flatten().collect();
    unless_empty(&quotas, |quota| word(format_args!("{} per {}", quota.calls, quota.window.as_str())))
}

fn bound(bound: &limits::Bound) -> Shown {
    if *bound == limits::Bound::default() {
        return Shown::Nothing;
    }
    map([
        ("calls", maybe(bound.calls, rate)),
        ("quota", quotas(&bound.quotas)),
        ("concurrent", maybe(bound.concurrent, word)),
        ("streams", maybe(bound.streams, word)),
    ])
}

fn limits(config: &limits::Config) -> Shown {
    let tools = unless_empty(&config.tools, |(glob, bound)| {
        let calls = maybe(bound.calls, rate);
        let concurrent = maybe(bound.concurrent, word);
        map([
            ("tools", text(glob.glob())),
            ("calls", calls),
            ("quota", quotas(&bound.quotas)),
            ("concurrent", concurrent),
        ])
    });
    let mut backends: Vec<_> = config.backends.iter().collect();
    backends.sort();
    let backends = backends
        .into_iter()
        .map(|(name, concurrent)| (name.clone(), map([("concurrent", word(concurrent))])))
        .collect();
    let turns = match config.turns == limits::TurnsConfig::default() {
        true => Shown::Nothing, // as many as there are cores here
        false => turns(&config.turns),
    };
    let shown = [
        ("address", maybe(config.address, rate)),
        ("principal", bound(&config.principal)),
        ("tenant", bound(&config.tenant)),
        ("tools", tools),
        ("backends", if config.backends.is_empty() { Shown::Nothing } else { Shown::Map(backends) }),
        ("utc_offset", if config.offset_s == 0 { Shown::Nothing } else { text(offset(config.offset_s)) }),
        ("shared", maybe(config.shared.as_ref(), shared_limits)),
        ("turns", turns),
    ];
    if shown.iter().all(|(_, value)| matches!(value, Shown::Nothing)) { Shown::Nothing } else { map(shown) }
}

fn offset(seconds: i32) -> String {
    let (sign, minutes) = (if seconds < 0 { '-' } else { '+' }, seconds.unsigned_abs() / 60);
    format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60)
}

fn turns(turns: &limits::TurnsConfig) -> Shown {
    map([
        ("in_progress", word(turns.in_progress)),
        ("waiting_max", word(turns.waiting_max)),
        ("waiting_per_tenant_max", word(turns.waiting_per_tenant_max)),
        ("wait", span(turns.wait_max)),
    ])
}

fn shared_limits(config: &limits::shared::Config) -> Shown {
    let url = |node: &limits::shared::Address| {
        let scheme = if node.tls { "rediss" } else { "redis" };
        let host = if node.host.contains(':') { format!("[{}]", node.host) } else { node.host.clone() };
        let database = if node.database == 0 { String::new() } else { format!("/{}", node.database) };
        text(format_args!("{scheme}://{host}:{}{database}", node.port))
    };
    map([
        ("nodes", list(&config.nodes, url)),
        ("user", maybe(config.user.as_ref(), text)),
        ("password", maybe(config.password.as_ref(), |_| text(MASK))),
        ("ca", maybe(config.ca.as_deref(), path)),
        ("prefix", text(&config.prefix)),
        ("key", maybe(config.key.as_ref(), |_| text(MASK))),
        ("timeout", span(config.timeout)),
        ("connect_timeout", span(config.connect_timeout)),
        ("unreachable", word(config.unreachable.as_str())),
    ])
}

/// The gateway's, or a tenant's own.
fn backends(
    remote: &[remote::Config],
    built_in: &[crate::backend::builtin::Config],
    held: &BTreeMap<Arc<str>, filters::Config>,
) -> Shown {
    let held = |name: &str| filters(held.get(name).unwrap_or(&filters::Config::default()));
    let remote = remote.iter().map(|one| (one.name.to_string(), backend(one, held(&one.name))));
    let built_in = built_in.iter().map(|one| (one.name.to_string(), builtin::shown(one, held(&one.name))));
    let mut all: Vec<_> = remote.chain(built_in).collect();
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    Shown::Map(all)
}

fn backend(config: &remote::Config, held: Shown) -> Shown {
    let (way, shown) = match &config.transport {
        remote::Transport::Http(one) => ("http", http(one)),
        remote::Transport::Sse(one) => ("sse", sse(one)),
        remote::Transport::Stdio(one) => ("stdio", stdio(one)),
    };
    let breaker = match (&config.transport, config.breaker) {
        (remote::Transport::Stdio(_), _) => Shown::Nothing,
        (_, None) => word(false),
        (_, Some(breaker)) => map([("failures", word(breaker.failures)), ("pause", span(breaker.pause))]),
    };
    map([
        (way, shown),
        ("era", word(config.era.map_or("auto", crate::mcp::Era::as_str))),
        (
            "effects",
            unless_empty(&config.effects.rules, |rule| {
                map([
                    ("tools", text(rule.tools.glob().glob())),
                    ("when", when(&rule.when)),
                    ("effect", effect(rule.effect)),
                ])
            }),
        ),
        ("trust_annotations", word(config.effects.trust_annotations)),
        ("pins", maybe(config.pins.as_ref(), |pinning| text(pinning.file.display().to_string()))),
        ("mode", maybe(config.mode, mode)),
        ("credential", credential::shown(&config.credential)),
        ("connect_timeout", span(config.connect_timeout)),
        ("read_timeout", config.read_timeout.map_or_else(|| word("none"), span)),
        ("answer_bytes_max", size(config.answer_bytes_max)),
        ("event_bytes_max", size(config.event_bytes_max)),
        ("catalog_ttl", span(config.catalog_ttl)),
        ("breaker", breaker),
        ("filters", held),
    ])
}

fn filters(config: &filters::Config) -> Shown {
    let patterns = config.patterns.iter().map(|(name, pattern)| (name.clone(), text(pattern))).collect();
    let oversize = config.item_bytes_max.map(|_| config.oversize.as_str());
    map([
        ("redact", unless_empty(&config.redact, |kind| word(kind.as_str()))),
        ("patterns", if config.patterns.is_empty() { Shown::Nothing } else { Shown::Map(patterns) }),
        ("hidden_text", word(config.hidden_declared.as_str())),
        ("hidden_text_results", word(config.hidden_said.unwrap_or(filters::Hidden::Allow).as_str())),
        ("result_bytes_max", maybe(config.result_bytes_max, size)),
        ("item_bytes_max", maybe(config.item_bytes_max, size)),
        ("oversize", maybe(oversize, word)),
    ])
}

fn destinations(route: &Route) -> Shown {
    let Some(names) = &route.names else { return list(&route.backends, text) };
    let shares: Vec<_> = names.shares().collect();
    list(&shares, |share| {
        let rename = share.rename.iter().map(|(own, new)| (own.clone(), text(new))).collect();
        map([
            ("backend", text(&share.backend)),
            ("prefix", text(&share.prefix)),
            ("rename", if share.rename.is_empty() { Shown::Nothing } else { Shown::Map(rename) }),
        ])
    })
}

fn http(http: &remote::Http) -> Shown {
    let (certificate, key) = match &http.tls.client {
        Some((certificate, key)) => (path(certificate), path(key)),
        None => (Shown::Nothing, Shown::Nothing),
    };
    let (url, urls) = match http.endpoints.as_slice() {
        [one] => (endpoint(one), Shown::Nothing),
        several => (Shown::Nothing, list(several, endpoint)),
    };
    map([
        ("url", url),
        ("urls", urls),
        ("ca", maybe(http.tls.ca.as_deref(), path)),
        ("client_certificate", certificate),
        ("client_key", key),
        ("sni", maybe(http.tls.sni.as_ref(), text)),
        (
            "health",
            maybe(http.health, |health| {
                map([
                    ("interval", span(health.interval)),
                    ("timeout", span(health.timeout)),
                    ("unhealthy_after", word(health.unhealthy_after)),
                    ("healthy_after", word(health.healthy_after)),
                ])
            }),
        ),
        ("idle_timeout", span(http.idle_timeout)),
        ("connections_max", word(http.connections_max)),
    ])
}

fn sse(sse: &remote::Sse) -> Shown {
    let (certificate, key) = match &sse.tls.client {
        Some((certificate, key)) => (path(certificate), path(key)),
        None => (Shown::Nothing, Shown::Nothing),
    };
    map([
        ("url", endpoint(&sse.endpoint)),
        ("ca", maybe(sse.tls.ca.as_deref(), path)),
        ("client_certificate", certificate),
        ("client_key", key),
        ("sni", maybe(sse.tls.sni.as_ref(), text)),
        ("idle_timeout", span(sse.idle_timeout)),
        ("connections_max", word(sse.connections_max)),
    ])
}

fn endpoint(endpoint: &remote::Endpoint) -> Shown {
    match &endpoint.place {
        remote::Place::Unix(socket) => text(format_args!("unix:{}:{}", socket.display(), endpoint.path)),
        remote::Place::Tcp { .. } => {
            let scheme = if endpoint.tls { "https" } else { "http" };
            text(format_args!("{scheme}://{}{}", endpoint.authority, endpoint.path))
        }
    }
}

fn stdio(stdio: &remote::Stdio) -> Shown {
    // What was `plain:` cannot be told from a secret any more, so all are masked.
    let env = Shown::Map(stdio.env.iter().map(|(name, _)| (name.clone(), text(MASK))).collect());
    let processes = match stdio.processes {
        remote::Processes::Principal => "principal",
        remote::Processes::Session => "session",
        remote::Processes::Shared => "shared",
    };
    map([
        ("command", list(&stdio.command, text)),
        ("env", if stdio.env.is_empty() { Shown::Nothing } else { env }),
        ("directory", maybe(stdio.directory.as_deref(), path)),
        ("processes", word(processes)),
        ("processes_max", word(stdio.processes_max)),
        ("processes_per_principal_max", word(stdio.processes_per_principal_max)),
        ("start_timeout", span(stdio.start_timeout)),
        ("idle_timeout", span(stdio.idle_timeout)),
    ])
}

fn audit(config: &audit::Config) -> Shown {
    let (file, stdout) = match &config.sink {
        audit::Sink::None => return Shown::Nothing,
        audit::Sink::File(file) => (path(file), Shown::Nothing),
        audit::Sink::Stdout => (Shown::Nothing, word(true)),
    };
    let digest_key = maybe(config.digest_key.as_ref(), |_| text(MASK));
    map([("file", file), ("stdout", stdout), ("fail_closed", word(config.fail_closed)), ("digest_key", digest_key)])
}

impl Shown {
    fn is_nothing(&self) -> bool {
        matches!(self, Shown::Nothing)
    }

    /// On the line of its key: scalars, lists of scalars, what is empty.
    fn inline(&self) -> Option<String> {
        match self {
            Shown::Nothing => None,
            Shown::Text(text) => Some(quoted(text)),
            Shown::Word(word) => Some(word.clone()),
            Shown::Map(entries) => entries.iter().all(|(_, shown)| shown.is_nothing()).then(|| "{}".to_owned()),
            Shown::List(items) => {
                let flat = items.iter().all(|item| matches!(item, Shown::Text(_) | Shown::Word(_)));
                flat.then(|| format!("[{}]", items.iter().filter_map(Shown::inline).collect::<Vec<_>>().join(", ")))
            }
        }
    }

    fn write(&self, out: &mut String, indent: usize) {
        let pad = " ".repeat(indent);
        match self {
            Shown::Map(entries) => {
                for (name, shown) in entries.iter().filter(|(_, shown)| !shown.is_nothing()) {
                    match shown.inline() {
                        Some(value) => out.push_str(&format!("{pad}{}: {value}\n", quoted(name))),
                        None => {
                            out.push_str(&format!("{pad}{}:\n", quoted(name)));
                            shown.write(out, indent + 2);
                        }
                    }
                }
            }
            Shown::List(items) => {
                for item in items {
                    let mut inner = String::new();
                    item.write(&mut inner, indent + 2);
                    let first = inner.trim_start();
                    out.push_str(&format!("{pad}- {}", if first.is_empty() { "{}\n" } else { first }));
                }
            }
            Shown::Nothing => {}
            Shown::Text(_) | Shown::Word(_) => out.push_str(&format!("{pad}{}\n", self.inline().unwrap_or_default())),
        }
    }
}

/// Plain where YAML cannot take it for anything else, in double quotes otherwise.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let taken =
        ["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text.to_ascii_lowercase().as_str());
    // A colon is plain inside a word, as in a URL.
    let colons = text.chars().all(|c| plain(c) || c == ':') && !text.ends_with(':');
    if starts && colons && !taken { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}
