//! `tenants`, as meant: those of the file itself, and those of a folder, of which one that is wrong leaves the others alone.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use super::backend;
use super::credential;
use super::edge;
use super::filters;
use super::identity;
use super::limits;
use super::policy;
use super::route;
use crate::config::Config;
use crate::config::Options;
use crate::config::Problem;
use crate::config::Refused;
use crate::config::Tenant;
use crate::config::book::Book;
use crate::config::book::Key;
use crate::config::file;
use crate::config::read;
use crate::config::scalar::short;
use crate::config::yaml;
use crate::gateway::Certificate;
use crate::gateway::Rule;
use crate::identity::Subject;
use crate::server::ClientAuth;

const NAME_BYTES_MAX: usize = 64;
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// More than one gateway should answer for.
const FILES_MAX: usize = 10_000;

/// Tenants that mean something, and those that do not.
#[derive(Default)]
pub(super) struct Meant {
    pub(super) tenants: Vec<Arc<Tenant>>,
    pub(super) refused: Vec<Refused>,
    pub(super) warnings: Vec<Problem>,
}

pub(super) fn tenants(book: &mut Book<'_>, root: &Key, written: file::Tenants, gateway: &Config) -> Meant {
    let key = root.at("tenants");
    let mut meant = Meant::default();
    for (name, written) in written.named {
        let key = key.at(&name);
        check_name(book, &key, &name);
        meant.tenants.push(Arc::new(tenant(book, &key, (&name, None), written, gateway)));
    }
    book.begin_gateway();
    if let Some(folder) = written.folder {
        let key = key.at(file::FOLDER);
        let folder = book.place(&key, &folder);
        for path in files(book, &key, &folder) {
            from_file(book, &path, gateway, &mut meant);
        }
    }
    meant
}

/// Its `.yaml` files, by name.
fn files(book: &mut Book<'_>, key: &Key, folder: &Path) -> Vec<PathBuf> {
    book.watch(folder);
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(_) if !book.options().check_files => return Vec::new(),
        Err(error) => {
            book.error(key, format!("`{}` cannot be read: {error}", folder.display()));
            return Vec::new();
        }
    };
    // Names with a dot in front are what editors and Kubernetes leave beside the files.
    let hidden = |path: &Path| path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
    let ours = |path: &Path| path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| ours(path) && !hidden(path))
        .collect();
    files.sort();
    if files.len() > FILES_MAX {
        book.error(key, format!("more than {FILES_MAX} tenants in `{}`", folder.display()));
        files.clear();
    }
    files
}

fn from_file(book: &mut Book<'_>, path: &Path, gateway: &Config, meant: &mut Meant) {
    book.watch(path);
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let read = read_file(book.options(), path, &name, gateway, meant);
    match read {
        Ok((tenant, watched)) => {
            watched.iter().for_each(|path| book.watch(path));
            meant.tenants.push(Arc::new(tenant));
        }
        Err((problems, watched)) => {
            watched.iter().for_each(|path| book.watch(path));
            meant.refused.push(Refused { name: name.into(), problems });
        }
    }
}

type Read = Result<(Tenant, Vec<PathBuf>), (Vec<Problem>, Vec<PathBuf>)>;

fn read_file(options: &Options, path: &Path, name: &str, gateway: &Config, meant: &mut Meant) -> Read {
    let whole = |message: String| Problem { file: path.to_owned(), line: 0, column: 0, key: String::new(), message };
    let text = crate::config::text_of(path, FILE_BYTES_MAX).map_err(|message| (vec![whole(message)], Vec::new()))?;
    let problem = |fault: yaml::Fault| Problem {
        file: path.to_owned(),
        line: fault.at.line,
        column: fault.at.column,
        key: fault.path,
        message: fault.message,
    };
    let tree = yaml::parse(text.trim_start_matches('\u{feff}'))
        .map_err(|faults| (faults.into_iter().map(problem).collect(), Vec::new()))?;
    let yaml::Tree { mut root, faults } = tree;
    let refused = faults.iter().map(|fault| fault.path.clone()).collect();
    let read = read::read::<Option<file::Tenant>>(&mut root, refused);
    let mut errors: Vec<Problem> = faults.into_iter().chain(read.faults).map(problem).collect();
    let options = Options { base: None, ..options.clone() };
    let mut book = Book::new(path, &options, &root, read.pruned);
    check_name(&mut book, &Key::default(), name);
    let written = read.file.map(Option::unwrap_or_default);
    let tenant = written.map(|written| tenant(&mut book, &Key::default(), (name, Some(path)), written, gateway));
    let (more, warnings, watched) = book.close();
    errors.extend(more);
    errors.sort_by(|a, b| (a.line, a.column, &a.key).cmp(&(b.line, b.column, &b.key)));
    errors.dedup();
    match tenant {
        Some(tenant) if errors.is_empty() => {
            meant.warnings.extend(warnings);
            Ok((tenant, watched))
        }
        _ => Err((errors, watched)),
    }
}

fn check_name(book: &mut Book<'_>, key: &Key, name: &str) {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.chars().all(plain)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !good {
        let what = "1 to 64 letters, digits, `-`, `_` and `.`, and begins with a letter or digit";
        book.error(key, format!("`{}` is not a tenant's name, which has {what}", short(name)));
    }
}

/// One tenant. What is wrong is in the book; then the result is not used.
fn tenant(
    book: &mut Book<'_>,
    key: &Key,
    (name, file): (&str, Option<&Path>),
    written: file::Tenant,
    gateway: &Config,
) -> Tenant {
    let theirs: Vec<Arc<str>> = gateway.backend_names().cloned().collect();
    book.begin_tenant(key, &theirs);
    let own_identity = written.identity.is_some();
    let mut rule = rule(book, key, &written, gateway);
    if rule.claims.is_empty() && !own_identity && rule.certificates.is_empty() {
        rule.claims.insert(name.to_owned());
    }
    let identity = written.identity.map(|ways| own(book, key, ways, &rule, gateway));
    let verified = identity.as_ref().unwrap_or(&gateway.identity);
    if !own_identity && nobody(verified) {
        let message = "has no `identity`, and neither has the gateway: nobody could call";
        book.missing(&key.at("identity"), message);
    }
    let own: Vec<Arc<str>> = written.backends.iter().flatten().map(|(name, _)| name.as_str().into()).collect();
    let mut backends = written.backends;
    let filters = filters::filters(book, key, backends.as_mut());
    let mode = written.mode.map_or(gateway.policy.mode, |own| own.min(gateway.policy.mode));
    let (backends, built_in) = match backends {
        Some(backends) => backend::backends(book, key, Some(backends), mode),
        None => Default::default(),
    };
    credential::check_forwarded(book, key, &backends, verified);
    credential::check_tenants(book, key, &backends, verified);
    let known: Vec<Arc<str>> = own.iter().chain(theirs.iter().filter(|name| !own.contains(name))).cloned().collect();
    let routes = written.routes.map(|routes| route::routes(book, key, Some(routes), &known, &own));
    if routes.is_none() && gateway.routes.routes.is_empty() {
        book.missing(&key.at("routes"), "has no `routes`, and neither has the gateway");
    }
    for (index, route) in routes.iter().flat_map(|routes| routes.routes.iter()).enumerate() {
        if let Some(host) = route.host.as_ref().filter(|host| !rule.hosts.contains(*host)) {
            let why = format!("`{}` is no host of this tenant: name it in the tenant's `host`", short(host));
            book.error(&key.at("routes").index(index).at("host"), why);
        }
    }
    let stated = written.grants.is_some() || written.policies.is_some();
    let judged = policy::policy(book, key, written.mode, written.grants, written.policies);
    let limits = written.limits.map(|limits| limits_of(book, key, limits, &known, gateway));
    Tenant {
        name: name.into(),
        file: file.map(Path::to_owned),
        rule,
        identity,
        mode: written.mode,
        policy: stated.then_some(judged),
        limits,
        backends,
        built_in,
        filters,
        routes,
    }
}

/// Figures of its own. What there is one of in the process the gateway's `limits` have.
fn limits_of(
    book: &mut Book<'_>,
    root: &Key,
    written: file::Limits,
    backends: &[Arc<str>],
    gateway: &Config,
) -> crate::limits::Config {
    let own_offset = written.utc_offset.is_some();
    for (there, name, why) in [
        (written.address.is_some(), "address", "is counted before it is known whose a request is"),
        (written.shared.is_some(), "shared", "is one store for everybody: tenants are counted there, too"),
        (written.turns.is_some(), "turns", "are of all tenants together"),
    ] {
        if there {
            book.error(&root.at("limits").at(name), format!("{why}: only the gateway's `limits` have it"));
        }
    }
    let written = file::Limits { address: None, shared: None, turns: None, ..written };
    let mut meant = limits::limits(book, root, written, backends);
    if !own_offset {
        meant.offset_s = gateway.limits.offset_s;
    }
    meant
}

fn nobody(identity: &crate::identity::Config) -> bool {
    identity.issuers.is_empty()
        && identity.entra.is_empty()
        && identity.api_keys.is_none()
        && identity.certificates.is_empty()
        && identity.anonymous.is_none()
}

fn rule(book: &mut Book<'_>, key: &Key, written: &file::Tenant, gateway: &Config) -> Rule {
    let mut rule = Rule::default();
    let each = |name: &str, index: usize, count: usize| {
        if count == 1 { key.at(name) } else { key.at(name).index(index) }
    };
    for (name, texts) in [("host", &written.host), ("entra_tenant", &written.entra_tenant), ("claim", &written.claim)] {
        let texts: &[String] = texts.as_ref().map(|texts| texts.0.as_slice()).unwrap_or_default();
        if texts.is_empty() && book.has(&key.at(name)) {
            book.missing(&key.at(name), "is empty");
        }
        for (index, text) in texts.iter().enumerate() {
            let at = each(name, index, texts.len());
            if name == "host" {
                let host = edge::host(book, &at, text);
                if gateway.routes.routes.iter().any(|route| route.host.as_ref() == Some(&host)) {
                    book.error(&at, format!("the gateway has a route of its own at `{}`", short(&host)));
                }
                rule.hosts.insert(host);
            } else if name == "entra_tenant" && !is_id(text) {
                book.error(&at, format!("`{}` is not the id of an Entra tenant", short(text)));
            } else if text.is_empty() || text.len() > 256 || text.contains(|c: char| c == '|' || c.is_control()) {
                book.error(&at, "is not 1 to 256 characters without `|`");
            } else {
                rule.claims.insert(if name == "claim" { text.clone() } else { text.to_ascii_lowercase() });
            }
        }
    }
    if let Some(path) = &written.path {
        let at = key.at("path");
        route::check_path(book, &at, path);
        let inside =
            |route: &str| route == path || route.strip_prefix(path.as_str()).is_some_and(|r| r.starts_with('/'));
        if let Some(route) = gateway.routes.routes.iter().find(|route| inside(&route.path)) {
            book.error(&at, format!("the gateway has a route of its own there: `{}`", short(&route.path)));
        }
        rule.path = Some(path.clone());
    }
    for (index, written) in written.certificate.iter().flatten().enumerate() {
        let key = key.at("certificate").index(index);
        rule.certificates.extend(certificate(book, &key, written));
    }
    let asked = gateway.identity.proxy.is_some()
        || gateway
            .server
            .listeners
            .iter()
            .any(|one| one.tls.as_ref().is_some_and(|tls| tls.client_auth != ClientAuth::None));
    if !rule.certificates.is_empty() && !asked {
        let why = "no listener asks for client certificates: give one `tls: { client_ca: …, client_auth: optional }`";
        book.error(&key.at("certificate"), why);
    }
    rule
}

fn is_id(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12])
        && parts.iter().all(|part| part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn certificate(book: &mut Book<'_>, key: &Key, written: &file::TenantCertificate) -> Option<Certificate> {
    let given = [
        ("spiffe", &written.spiffe),
        ("uri", &written.uri),
        ("dns", &written.dns),
        ("email", &written.email),
        ("fingerprint", &written.fingerprint),
        ("subject", &written.subject),
    ];
    let mut given = given.into_iter().filter_map(|(name, text)| Some((name, text.clone()?)));
    let holder = given.next();
    if given.next().is_some() || (holder.is_none() && written.issuer.is_none()) {
        if !book.touched(key) {
            book.error(
                key,
                "needs one of `spiffe`, `uri`, `dns`, `email`, `fingerprint` and `subject`, `issuer`, or both",
            );
        }
        return None;
    }
    let holder = match holder {
        Some((name, text)) => Some(identity::matches(book, &key.at(name), name, text)?),
        None => None,
    };
    if holder.as_ref().is_some_and(|holder| holder.names_tenant()) {
        book.error(key, "is for this tenant alone: write its name where `{tenant}` is");
    }
    let issuer = match &written.issuer {
        Some(text) => {
            let issuer = Subject::new(text);
            if issuer.is_none() {
                book.error(
                    &key.at("issuer"),
                    format!("`{}` is not a name such as `CN=Contoso CA,O=Contoso` (RFC 4514)", short(text)),
                );
            }
            Some(issuer?)
        }
        None => None,
    };
    Some(Certificate { holder, issuer })
}

/// Issuers of its own. Who is in front of the gateway, and where, the gateway knows.
fn own(
    book: &mut Book<'_>,
    key: &Key,
    ways: Vec<file::Identity>,
    rule: &Rule,
    gateway: &Config,
) -> crate::identity::Config {
    let at = key.at("identity");
    let public = gateway.public_url.is_some();
    let mut meant = identity::identity(book, key, Some(ways), &gateway.server.listeners, public);
    if !rule.has_place() {
        let why =
            "needs `host`, `path` or `certificate`: before a caller is verified it must be known by whose issuers";
        book.error(&at, why);
    }
    for (there, what) in [
        (
            meant.proxy.take().is_some(),
            "a `proxy` stands in front of the whole gateway: it belongs to the gateway's `identity`",
        ),
        (meant.anonymous.take().is_some(), "`anonymous` callers belong to nobody: a tenant has none"),
        (
            !meant.logins.is_empty(),
            "a `login` stands at the gateway's own address: it belongs to the gateway's `identity`",
        ),
    ] {
        if there {
            book.error(&at, what);
        }
    }
    meant.logins.clear();
    meant.proxy.clone_from(&gateway.identity.proxy);
    meant.public_url.clone_from(&gateway.public_url);
    meant.hosts = if rule.hosts.is_empty() { gateway.identity.hosts.clone() } else { rule.hosts.clone() };
    identity::check_proofs(book, key, &meant);
    meant
}

/// Hosts of all tenants: a request to one of them is for us.
pub(super) fn hosts(tenants: &[Arc<Tenant>]) -> BTreeSet<String> {
    tenants.iter().flat_map(|tenant| tenant.rule.hosts.iter().cloned()).collect()
}
