//! `File` to `Config`: defaults, cross-checks, and each room's own configuration.

mod backend;
mod credential;
mod edge;
mod filters;
mod identity;
mod limits;
mod login;
pub(super) mod policy;
mod route;
mod sessions;
mod tenant;
mod vault;

use std::sync::Arc;

use url::Url;

use super::Config;
use super::Log;
use super::LogFormat;
use super::book::Book;
use super::book::Key;
use super::file;
use super::file::File;
use super::scalar::short;
use crate::audit;
use crate::secret::Secret;
use crate::server;

/// A shorter key would be weaker than the digests it makes.
const DIGEST_KEY_BYTES_MIN: usize = 32;

/// Everything the file means. What is wrong is in the book; then the result is not used.
pub(super) fn mean(book: &mut Book<'_>, file: File) -> Config {
    let root = Key::default();
    if file.tenants.is_some() || book.touched(&root.at("tenants")) {
        book.begin_gateway();
    }
    let public = file.public_url.is_some();
    let public_url = public_url(book, &root.at("public_url"), file.public_url);
    let listeners = edge::listeners(book, &root, file.listeners);
    let admin = file.admin.and_then(|admin| edge::admin(book, &root.at("admin"), admin));
    let mut identity = identity::identity(book, &root, file.identity, &listeners, public);
    identity.public_url.clone_from(&public_url);
    identity::check_proofs(book, &root, &identity);
    let mut admission = edge::admission(book, &root.at("admission"), file.admission.unwrap_or_default());
    admission.public_host = public_url.as_ref().and_then(Url::host_str).map(str::to_owned);
    if identity.anonymous.is_some() && admission.hosts.is_empty() {
        // Without authentication, the `Host` is what tells a local client from a web page that made its name resolve here.
        admission.hosts.push(admission.public_host.clone().unwrap_or_else(|| "localhost".to_owned()));
    }
    let names: Vec<Arc<str>> = file.backends.iter().flatten().map(|(name, _)| name.as_str().into()).collect();
    let mut written = file.backends;
    let filters = filters::filters(book, &root, written.as_mut());
    let (backends, built_in) = backend::backends(book, &root, written, file.mode.unwrap_or_default());
    credential::check_forwarded(book, &root, &backends, &identity);
    credential::check_tenants(book, &root, &backends, &identity);
    let credentials = backends.iter().map(|one| &one.credential).chain(built_in.iter().map(|one| &one.credential));
    identity.assertions = credentials.into_iter().any(|credential| credential.needs_callers());
    let routes = route::routes(book, &root, file.routes, &names, &names);
    identity.hosts = routes.routes.iter().filter_map(|route| route.host.clone()).collect();
    let policy = policy::policy(book, &root, file.mode, file.grants, file.policies);
    let limits = file.limits.map(|limits| limits::limits(book, &root, limits, &names)).unwrap_or_default();
    let audit = audit(book, &root, file.audit, &listeners);
    let sessions = sessions::sessions(book, &root.at("sessions"), file.sessions.unwrap_or_default());
    let log = log(book, &root.at("log"), file.log.unwrap_or_default());
    let server = server::Config {
        listeners,
        admin,
        admission,
        shutdown_grace: file.shutdown_grace.map_or(edge::SHUTDOWN_GRACE, |span| span.0),
    };
    let mut config = Config {
        server,
        public_url,
        identity,
        policy,
        limits,
        backends,
        built_in,
        filters,
        routes,
        audit,
        sessions,
        log,
        ..Config::default()
    };
    if let Some(written) = file.tenants {
        let meant = tenant::tenants(book, &root, written, &config);
        book.warned(meant.warnings);
        if !config.server.admission.hosts.is_empty() {
            let hosts = &mut config.server.admission.hosts;
            for host in tenant::hosts(&meant.tenants) {
                if !hosts.contains(&host) {
                    hosts.push(host);
                }
            }
            hosts.sort();
        }
        (config.tenants, config.refused) = (meant.tenants, meant.refused);
    }
    config
}

fn public_url(book: &mut Book<'_>, key: &Key, text: Option<String>) -> Option<Url> {
    let text = text?;
    let url = match Url::parse(&text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
        _ => {
            book.error(key, format!("`{}` is not an address such as `https://mcp.example.com`", short(&text)));
            return None;
        }
    };
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        book.error(key, "must be without path, query and fragment: routes have the paths");
    } else if !url.username().is_empty() || url.password().is_some() {
        book.error(key, "must be without user and password");
    } else if url.scheme() == "http" && !is_loopback(&url) {
        book.warn(key, "is plain http: tokens cross the network in the clear, and many clients refuse to log in");
    }
    Some(url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn audit(book: &mut Book<'_>, root: &Key, audit: Option<file::Audit>, listeners: &[server::Listener]) -> audit::Config {
    let key = root.at("audit");
    let Some(audit) = audit else {
        if listeners.iter().any(|listener| !edge::is_local(&listener.address)) && !book.touched(&key) {
            book.warn(root, "there is no `audit`: no record is kept of who did what");
        }
        return audit::Config::default();
    };
    let sink = match (audit.file, audit.stdout) {
        (Some(_), Some(true)) => {
            book.error(&key, "`file` and `stdout` exclude each other");
            audit::Sink::None
        }
        (Some(file), _) => audit::Sink::File(book.writable(&key.at("file"), &file)),
        (None, Some(true)) => audit::Sink::Stdout,
        (None, _) => {
            book.missing(
                &key,
                "names no place for the records: give `file: /var/log/wardgate/audit.jsonl` or `stdout: true`",
            );
            audit::Sink::None
        }
    };
    let digest_key = audit.digest_key.map(|reference| {
        let key = key.at("digest_key");
        let secret = book.secret(&key, &reference);
        let length = secret.expose().len();
        if (1..DIGEST_KEY_BYTES_MIN).contains(&length) {
            book.error(&key, format!("has fewer than {DIGEST_KEY_BYTES_MIN} bytes"));
        }
        secret
    });
    let digest_key = digest_key.filter(|secret: &Secret| !secret.expose().is_empty());
    audit::Config { sink, fail_closed: audit.fail_closed.unwrap_or(false), digest_key }
}

fn log(book: &mut Book<'_>, key: &Key, log: file::Log) -> Log {
    let default = Log::default();
    let level = log.level.unwrap_or(default.level);
    if tracing_subscriber::EnvFilter::builder().parse(&level).is_err() || level.trim().is_empty() {
        book.error(
            &key.at("level"),
            format!("`{}` is not a level (`error`, `warn`, `info`, `debug`, `trace`) or filter", short(&level)),
        );
    }
    let format = match log.format {
        Some(file::LogFormat::Json) => LogFormat::Json,
        Some(file::LogFormat::Text) | None => LogFormat::Text,
    };
    Log { level, format }
}
