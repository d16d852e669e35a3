//! `backends`, as meant: transports, endpoints, effects, credentials.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use url::Host;
use url::Url;

use super::credential::credential;
use super::is_loopback;
use crate::backend::breaker;
use crate::backend::builtin;
use crate::backend::remote::ClientTls;
use crate::backend::remote::Config;
use crate::backend::remote::Endpoint;
use crate::backend::remote::Health;
use crate::backend::remote::Http;
use crate::backend::remote::Place;
use crate::backend::remote::Processes;
use crate::backend::remote::Sse;
use crate::backend::remote::Stdio;
use crate::backend::remote::Transport;
use crate::catalog::Effects;
use crate::catalog::Mode;
use crate::catalog::Rule;
use crate::catalog::When;
use crate::catalog::pin;
use crate::catalog::pin::PinFile;
use crate::catalog::pins::Pinning;
use crate::catalog::pins::Pins;
use crate::config::book::Book;
use crate::config::book::Key;
use crate::config::file;
use crate::config::scalar::Variable;
use crate::credentials;
use crate::mcp::Era;
use crate::secret::Secret;

/// A backend in the same region answers in milliseconds; more is an outage.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Servers that stream send something, if only a comment, more often than this.
const READ_TIMEOUT: Duration = Duration::from_secs(5 * 60);
const ANSWER_BYTES: usize = 16 * 1024 * 1024;
const EVENT_BYTES: usize = 4 * 1024 * 1024;
const BYTES_MAX: usize = 1024 * 1024 * 1024;
const CATALOG_TTL: Duration = Duration::from_secs(60);
/// Shorter than what servers commonly keep idle connections for.
const HTTP_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECTIONS: u32 = 1000;
const CONNECTIONS_MAX: u32 = 100_000;
/// A child process is often an interpreter with 100 MB.
const PROCESSES: u32 = 16;
const PROCESSES_MAX: u32 = 10_000;
/// Enough for a few clients of one caller, a small part of all.
const PROCESSES_PER_PRINCIPAL: u32 = 4;
const SSE_IDLE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// A restart takes an upstream about so long; five callers in a row are no accident.
const BREAKER: breaker::Config =
    breaker::Config { failures: 5, window: Duration::from_secs(60), pause: Duration::from_secs(10) };
const BREAKER_FAILURES_MAX: u32 = 1000;
const STDIO_IDLE_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// Programs are fetched from a registry before they start, the first time.
const STDIO_START_TIMEOUT: Duration = Duration::from_secs(2 * 60);
const HEALTH: Health =
    Health { interval: Duration::from_secs(10), timeout: Duration::from_secs(2), unhealthy_after: 3, healthy_after: 2 };
const HEALTH_COUNT_MAX: u32 = 1000;

const NAME_BYTES_MAX: usize = 64;

/// MCP servers elsewhere, and those that are built in. `mode`: the gateway's ceiling.
pub(super) fn backends(
    book: &mut Book<'_>,
    root: &Key,
    backends: Option<BTreeMap<String, file::Backend>>,
    mode: Mode,
) -> (Vec<Config>, Vec<builtin::Config>) {
    let key = root.at("backends");
    let backends = backends.unwrap_or_default();
    if backends.is_empty() && (!book.is_part() || book.has(&key)) {
        book.missing(&key, "there is no MCP server behind the gateway; for example `backends: { files: { http: { url: \"http://127.0.0.1:3001/mcp\" } } }`");
    }
    let (mut remote, mut built_in) = (Vec::new(), Vec::new());
    for (name, mut written) in backends {
        let key = key.at(&name);
        check_name(book, &key, &name);
        match written.vault.take() {
            Some(vault) => built_in.extend(with_vault(book, &key, name, (vault, written), mode)),
            None => remote.extend(backend(book, &key, name, written)),
        }
    }
    (remote, built_in)
}

fn check_name(book: &mut Book<'_>, key: &Key, name: &str) {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(plain) {
        book.error(key, format!("a backend's name has 1 to {NAME_BYTES_MAX} letters, digits, `-` and `_`"));
    }
}

/// Built in: what belongs to servers elsewhere is a mistake.
fn with_vault(
    book: &mut Book<'_>,
    key: &Key,
    name: String,
    (vault, written): (file::Vault, file::Backend),
    mode: Mode,
) -> Option<builtin::Config> {
    if written.http.is_some() || written.sse.is_some() || written.stdio.is_some() {
        book.error(key, "`http`, `sse`, `stdio` and `vault` exclude each other");
    }
    for (name, there) in [
        ("era", written.era.is_some()),
        ("effects", written.effects.is_some()),
        ("pins", written.pins.is_some()),
        ("trust_annotations", written.trust_annotations.is_some()),
        ("read_timeout", written.read_timeout.is_some()),
        ("event_bytes_max", written.event_bytes_max.is_some()),
        ("catalog_ttl", written.catalog_ttl.is_some()),
        ("breaker", written.breaker.is_some()),
    ] {
        if there {
            book.error(&key.at(name), "is for MCP servers elsewhere: a built-in one knows its tools");
        }
    }
    if written.credential.is_some() {
        book.error(&key.at("credential"), "is for MCP servers elsewhere: give `vault.login`");
    }
    let common = super::vault::Common {
        name,
        mode: written.mode,
        ceiling: written.mode.map_or(mode, |own| own.min(mode)),
        connect_timeout: written.connect_timeout,
        answer_bytes_max: written.answer_bytes_max,
    };
    super::vault::vault(book, key, vault, common)
}

fn backend(book: &mut Book<'_>, key: &Key, name: String, written: file::Backend) -> Option<Config> {
    let stdio_only = written.stdio.is_some() && written.http.is_none() && written.sse.is_none();
    if stdio_only && written.credential.is_some() {
        book.error(
            &key.at("credential"),
            "is for `http` and `sse` backends: a program gets its secrets by `stdio.env`",
        );
    }
    let credential = match written.credential.filter(|_| !stdio_only) {
        Some(written) => credential(book, &key.at("credential"), written),
        None => credentials::Config::None,
    };
    if written.sse.is_some() && matches!(written.era, Some(file::Era::Modern)) {
        book.error(&key.at("era"), "is `legacy` for `sse`: HTTP+SSE knows no other");
    }
    let era = match written.era {
        _ if written.sse.is_some() => Some(Era::Legacy),
        Some(file::Era::Legacy) => Some(Era::Legacy),
        Some(file::Era::Modern) => Some(Era::Modern),
        Some(file::Era::Auto) | None => None,
    };
    if stdio_only && written.breaker.is_some() {
        book.error(&key.at("breaker"), "is for `http` and `sse` backends: a program that ends has pauses of its own");
    }
    let breaker = breaker(book, &key.at("breaker"), written.breaker).filter(|_| !stdio_only);
    let with_credential = !matches!(credential, credentials::Config::None);
    let transport = transport(book, key, (written.http, written.sse, written.stdio), with_credential);
    if matches!(credential, credentials::Config::Forward { .. }) && !transport.as_ref().is_some_and(is_near) {
        book.error(
            &key.at("credential").at("forward"),
            "is for a server on this machine: `127.0.0.1`, `[::1]`, `localhost` or a Unix socket; for others use `on_behalf_of` or `token_exchange`",
        );
    }
    let effects = effects(book, &key.at("effects"), written.effects, written.trust_annotations);
    let pins = written.pins.and_then(|text| pins(book, &key.at("pins"), &name, &text));
    let read_timeout = written.read_timeout.map_or(Some(READ_TIMEOUT), |span| span.0);
    if read_timeout.is_some_and(|span| span.is_zero()) {
        book.error(&key.at("read_timeout"), "must be more than nothing; `none` for no bound");
    }
    let config = Config {
        name: name.into(),
        era,
        breaker,
        effects,
        pins,
        credential,
        mode: written.mode,
        connect_timeout: book.span(key, "connect_timeout", written.connect_timeout, CONNECT_TIMEOUT),
        read_timeout,
        answer_bytes_max: book.size(key, "answer_bytes_max", written.answer_bytes_max, ANSWER_BYTES, 1024..=BYTES_MAX),
        event_bytes_max: book.size(key, "event_bytes_max", written.event_bytes_max, EVENT_BYTES, 1024..=BYTES_MAX),
        catalog_ttl: book.span(key, "catalog_ttl", written.catalog_ttl, CATALOG_TTL),
        // Without a transport there is an error, and nobody will use this; routes to it should still find it.
        transport: transport.unwrap_or(Transport::Stdio(Stdio {
            command: Vec::new(),
            env: Vec::new(),
            directory: None,
            processes: Processes::Principal,
            processes_max: 1,
            processes_per_principal_max: 1,
            start_timeout: STDIO_START_TIMEOUT,
            idle_timeout: STDIO_IDLE_TIMEOUT,
        })),
    };
    Some(config)
}

/// Does every request stay on this machine?
fn is_near(transport: &Transport) -> bool {
    let near = |endpoint: &Endpoint| match &endpoint.place {
        Place::Unix(_) => true,
        Place::Tcp { host, .. } => {
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    };
    match transport {
        Transport::Http(http) => http.endpoints.iter().all(near),
        Transport::Sse(sse) => near(&sse.endpoint),
        Transport::Stdio(_) => false,
    }
}

/// The one way there is.
fn transport(
    book: &mut Book<'_>,
    key: &Key,
    written: (Option<file::Http>, Option<file::Sse>, Option<file::Stdio>),
    with_credential: bool,
) -> Option<Transport> {
    match written {
        (Some(written), None, None) => http(book, &key.at("http"), written, with_credential).map(Transport::Http),
        (None, Some(written), None) => sse(book, &key.at("sse"), written, with_credential).map(Transport::Sse),
        (None, None, Some(written)) => stdio(book, &key.at("stdio"), written).map(Transport::Stdio),
        (None, None, None) => {
            book.missing(
                key,
                "does not say where the server is: give `http: { url: … }`, `sse: { url: … }`, `stdio: { command: […] }` or `vault: { address: … }`",
            );
            None
        }
        _ => {
            book.error(key, "`http`, `sse` and `stdio` exclude each other");
            None
        }
    }
}

/// The reviewed tools. Where pins are written and not used, the file need not be there yet.
fn pins(book: &mut Book<'_>, key: &Key, backend: &str, text: &str) -> Option<Pinning> {
    let file = book.place(key, text);
    if !book.options().read_pins {
        return Some(Pinning { file, pins: Arc::default() });
    }
    let Some(text) = book.text(key, &file, pin::FILE_BYTES_MAX) else {
        return Some(Pinning { file, pins: Arc::default() });
    };
    let read = PinFile::parse(&text).and_then(|pinned| {
        if pinned.backend == backend {
            Pins::new(&pinned)
        } else {
            let what = format!("`backend` is `{}`, not `{backend}`", pin::visible(&pinned.backend));
            Err(vec![pin::Fault { line: 0, what }])
        }
    });
    match read {
        Ok(pins) => Some(Pinning { file, pins: Arc::new(pins) }),
        Err(faults) => {
            for fault in faults {
                book.error(key, format!("`{}`: {fault}", file.display()));
            }
            None
        }
    }
}

fn effects(book: &mut Book<'_>, key: &Key, rules: Option<Vec<file::EffectRule>>, trust: Option<bool>) -> Effects {
    let mut meant = Effects { rules: Vec::new(), trust_annotations: trust.unwrap_or(false) };
    for (index, rule) in rules.unwrap_or_default().into_iter().enumerate() {
        let key = key.index(index);
        let tools = book.require(&key, "tools", rule.tools, "tools: \"read_*\"");
        let effect = book.require(&key, "effect", rule.effect, "effect: read");
        let glob = tools.and_then(|text| book.glob(&key.at("tools"), &text));
        let when = when(book, &key.at("when"), rule.when);
        meant.rules.extend(glob.zip(effect).map(|(tools, effect)| Rule { tools, when, effect }));
    }
    meant
}

fn when(book: &mut Book<'_>, key: &Key, written: Option<BTreeMap<String, file::Values>>) -> When {
    if written.as_ref().is_some_and(BTreeMap::is_empty) {
        book.error(key, "names no argument: leave it out for every call");
    }
    let mut meant = Vec::new();
    for (name, file::Values(values)) in written.into_iter().flatten() {
        if values.is_empty() {
            book.error(&key.at(&name), "names no value");
        }
        meant.push((name, values));
    }
    When(meant)
}

fn http(book: &mut Book<'_>, key: &Key, written: file::Http, with_credential: bool) -> Option<Http> {
    let urls: Vec<(Key, String)> = match (written.url, written.urls) {
        (Some(_), Some(_)) => {
            book.error(key, "`url` and `urls` exclude each other");
            return None;
        }
        (Some(url), None) => vec![(key.at("url"), url)],
        (None, Some(urls)) if !urls.is_empty() => {
            urls.into_iter().enumerate().map(|(index, url)| (key.at("urls").index(index), url)).collect()
        }
        (None, _) => {
            if !book.touched(&key.at("urls")) {
                book.missing(&key.at("url"), "is missing; for example `url: \"http://127.0.0.1:3001/mcp\"`");
            }
            return None;
        }
    };
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for (key, text) in &urls {
        let Some(endpoint) = endpoint(book, key, text, with_credential) else { continue };
        if endpoints.contains(&endpoint) {
            book.error(key, "is here twice");
        }
        endpoints.push(endpoint);
    }
    if !endpoints.is_empty() && endpoints.iter().all(|endpoint| !endpoint.tls) {
        no_tls(book, key, [&written.ca, &written.client_certificate, &written.client_key, &written.sni]);
    }
    let tls = client_tls(book, key, written.ca, written.client_certificate, written.client_key, written.sni);
    let health = written.health.map(|written| {
        let key = key.at("health");
        Health {
            interval: book.span(&key, "interval", written.interval, HEALTH.interval),
            timeout: book.span(&key, "timeout", written.timeout, HEALTH.timeout),
            unhealthy_after: book.count(
                &key,
                "unhealthy_after",
                written.unhealthy_after,
                HEALTH.unhealthy_after,
                HEALTH_COUNT_MAX,
            ),
            healthy_after: book.count(
                &key,
                "healthy_after",
                written.healthy_after,
                HEALTH.healthy_after,
                HEALTH_COUNT_MAX,
            ),
        }
    });
    let connections_max = book.count(key, "connections_max", written.connections_max, CONNECTIONS, CONNECTIONS_MAX);
    Some(Http {
        endpoints,
        tls,
        health,
        idle_timeout: book.span(key, "idle_timeout", written.idle_timeout, HTTP_IDLE_TIMEOUT),
        connections_max: usize::try_from(connections_max).unwrap_or(usize::MAX),
    })
}

fn sse(book: &mut Book<'_>, key: &Key, written: file::Sse, with_credential: bool) -> Option<Sse> {
    let url = book.require(key, "url", written.url, "url: \"http://127.0.0.1:3001/sse\"")?;
    let endpoint = endpoint(book, &key.at("url"), &url, with_credential)?;
    if !endpoint.tls {
        no_tls(book, key, [&written.ca, &written.client_certificate, &written.client_key, &written.sni]);
    }
    let connections_max = book.count(key, "connections_max", written.connections_max, CONNECTIONS, CONNECTIONS_MAX);
    Some(Sse {
        endpoint,
        tls: client_tls(book, key, written.ca, written.client_certificate, written.client_key, written.sni),
        idle_timeout: book.span(key, "idle_timeout", written.idle_timeout, SSE_IDLE_TIMEOUT),
        connections_max: usize::try_from(connections_max).unwrap_or(usize::MAX),
    })
}

fn no_tls(book: &mut Book<'_>, key: &Key, values: [&Option<String>; 4]) {
    for (name, value) in ["ca", "client_certificate", "client_key", "sni"].iter().zip(values) {
        if value.is_some() {
            book.error(&key.at(name), "is for `https://` URLs only");
        }
    }
}

fn breaker(book: &mut Book<'_>, key: &Key, written: Option<file::MaybeBreaker>) -> Option<breaker::Config> {
    let written = match written {
        Some(file::MaybeBreaker::Off) => return None,
        Some(file::MaybeBreaker::On(written)) => written,
        None => file::Breaker::default(),
    };
    Some(breaker::Config {
        failures: book.count(key, "failures", written.failures, BREAKER.failures, BREAKER_FAILURES_MAX),
        pause: book.span(key, "pause", written.pause, BREAKER.pause),
        window: BREAKER.window,
    })
}

pub(super) fn client_tls(
    book: &mut Book<'_>,
    key: &Key,
    ca: Option<String>,
    certificate: Option<String>,
    private: Option<String>,
    sni: Option<String>,
) -> ClientTls {
    let ca = ca.map(|path| book.readable(&key.at("ca"), &path));
    if certificate.is_some() != private.is_some() {
        let (here, there) = if certificate.is_some() {
            ("client_certificate", "client_key")
        } else {
            ("client_key", "client_certificate")
        };
        book.missing(&key.at(there), format!("is missing beside `{here}`"));
    }
    let client = certificate.zip(private).map(|(certificate, private)| {
        (book.readable(&key.at("client_certificate"), &certificate), book.private(&key.at("client_key"), &private))
    });
    let sni = sni.map(|name| super::edge::host(book, &key.at("sni"), &name));
    ClientTls { ca, client, sni }
}

fn endpoint(book: &mut Book<'_>, key: &Key, text: &str, with_credential: bool) -> Option<Endpoint> {
    const FORMS: &str = "expected `http://host:port/path`, `https://host/path` or `unix:/path/to.sock:/path`";
    if let Some(rest) = text.strip_prefix("unix:") {
        let Some((socket, path)) = rest.rsplit_once(":/").filter(|(socket, _)| !socket.is_empty()) else {
            book.error(key, "the HTTP path is missing: write `unix:/path/to.sock:/mcp`");
            return None;
        };
        let place: PathBuf = book.place(key, socket);
        return Some(Endpoint {
            tls: false,
            authority: "localhost".to_owned(),
            place: Place::Unix(place),
            path: format!("/{path}"),
        });
    }
    let url = match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => url,
        _ => {
            // INVARIANT: the text may have a password in it.
            book.error(key, format!("is not a URL the gateway can call; {FORMS}"));
            return None;
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        book.error(key, "must be without user and password: give the backend a `credential`");
    }
    if url.fragment().is_some() {
        book.error(key, "must be without fragment");
    }
    let tls = url.scheme() == "https";
    if with_credential && !tls && !is_loopback(&url) {
        book.warn(key, "is plain http: the backend's credential crosses the network in the clear");
    }
    let host = match url.host()? {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    };
    let bare = url.host_str()?;
    let authority = url.port().map_or_else(|| bare.to_owned(), |port| format!("{bare}:{port}"));
    let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    Some(Endpoint { tls, authority, place: Place::Tcp { host, port: url.port_or_known_default()? }, path })
}

fn stdio(book: &mut Book<'_>, key: &Key, written: file::Stdio) -> Option<Stdio> {
    let command = book.require(key, "command", written.command, "command: [uvx, mcp-server-git]")?;
    if command.first().is_none_or(String::is_empty) && !book.touched(&key.at("command")) {
        book.error(&key.at("command"), "is empty: name the program and its arguments");
    }
    if command.iter().any(|word| word.contains('\0')) {
        book.error(&key.at("command"), "has a zero byte in it");
    }
    let mut env = Vec::new();
    for (name, variable) in written.env.unwrap_or_default() {
        let key = key.at("env").at(&name);
        if name.is_empty() || name.contains(['=', '\0']) {
            book.error(&key, "is not the name of an environment variable");
        }
        let value = match variable {
            Variable::Plain(text) => Secret::new(text),
            Variable::Secret(reference) => book.secret(&key, &reference),
        };
        env.push((name, value));
    }
    let directory = written.directory.map(|path| {
        let key = key.at("directory");
        let path = book.place(&key, &path);
        if book.options().check_files && !path.is_dir() {
            book.error(&key, format!("`{}` is not a folder", path.display()));
        }
        path
    });
    let processes = match written.processes {
        Some(file::Processes::Session) => Processes::Session,
        Some(file::Processes::Shared) => Processes::Shared,
        Some(file::Processes::Principal) | None => Processes::Principal,
    };
    let processes_max = book.count(key, "processes_max", written.processes_max, PROCESSES, PROCESSES_MAX);
    let of_one = written.processes_per_principal_max;
    let of_one = book.count(key, "processes_per_principal_max", of_one, PROCESSES_PER_PRINCIPAL, PROCESSES_MAX);
    Some(Stdio {
        command,
        env,
        directory,
        processes,
        processes_max: usize::try_from(processes_max).unwrap_or(usize::MAX),
        processes_per_principal_max: usize::try_from(of_one).unwrap_or(usize::MAX),
        start_timeout: book.span(key, "start_timeout", written.start_timeout, STDIO_START_TIMEOUT),
        idle_timeout: book.span(key, "idle_timeout", written.idle_timeout, STDIO_IDLE_TIMEOUT),
    })
}
