//! `limits`, as meant: bounds that bound something, backends that exist, and the store that replicas share.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use url::Host;
use url::Url;

use super::is_loopback;
use super::policy;
use crate::config::book::Book;
use crate::config::book::Key;
use crate::config::file;
use crate::config::scalar::Quotas;
use crate::config::scalar::Rate;
use crate::config::scalar::short;
use crate::limits::Bound;
use crate::limits::Config;
use crate::limits::Quota;
use crate::limits::TurnsConfig;
use crate::limits::Window;
use crate::limits::shared;
use crate::limits::shared::Address;
use crate::limits::shared::Unreachable;

const CONCURRENT_MAX: u32 = 1_000_000;

/// Within a data centre a question takes less than a millisecond; a call must not wait much longer than it would run.
const TIMEOUT: Duration = Duration::from_millis(50);
const TIMEOUT_MAX: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(30);
const PREFIX: &str = "wardgate:";
const PREFIX_BYTES_MAX: usize = 100;
const KEY_BYTES_MIN: usize = 32;
const NODES_MAX: usize = 64;
const PORT: u16 = 6379;

const WAIT_MAX: Duration = Duration::from_secs(60);

/// What stands at `limits` below the root, of a gateway or tenant that has these backends.
pub(super) fn limits(book: &mut Book<'_>, root: &Key, limits: file::Limits, backends: &[Arc<str>]) -> Config {
    let key = root.at("limits");
    let mut bound = |name: &str, bound: Option<file::CallerBound>| {
        let (bound, key) = (bound.unwrap_or_default(), key.at(name));
        let streams = held(book, &key, "streams", bound.streams);
        Bound { streams, ..bound_of(book, &key, (bound.calls, bound.quota), bound.concurrent) }
    };
    let principal = bound("principal", limits.principal);
    let tenant = bound("tenant", limits.tenant);
    let mut tools = Vec::new();
    for (index, entry) in limits.tools.unwrap_or_default().into_iter().enumerate() {
        let key = key.at("tools").index(index);
        let bound = bound_of(book, &key, (entry.calls, entry.quota), entry.concurrent);
        if bound == Bound::default() && !book.touched(&key) {
            book.error(&key, "limits nothing: give `calls`, `quota` or `concurrent`");
        }
        let Some(text) = book.require(&key, "tools", entry.tools, "tools: \"files/*\"") else { continue };
        policy::check_tools(book, &key.at("tools"), &text);
        if let Some(glob) = book.glob(&key.at("tools"), &text) {
            tools.push((glob, bound));
        }
    }
    Config {
        address: limits.address.map(|rate| rate.0),
        principal,
        tenant,
        tools,
        backends: backend_bounds(book, root, limits.backends.unwrap_or_default(), backends),
        offset_s: limits.utc_offset.map_or(0, |offset| offset.0),
        shared: limits.shared.and_then(|shared| store(book, &key.at("shared"), shared)),
        turns: turns(book, &key.at("turns"), limits.turns.unwrap_or_default()),
    }
}

fn backend_bounds(
    book: &mut Book<'_>,
    root: &Key,
    bounds: BTreeMap<String, file::BackendBound>,
    backends: &[Arc<str>],
) -> BTreeMap<String, NonZeroU32> {
    let mut all = BTreeMap::new();
    for (name, bound) in bounds {
        let (key, place) = (root.at("limits").at("backends").at(&name), root.at("backends").at(&name));
        if !backends.iter().any(|backend| **backend == *name) && !book.touched(&place) {
            book.error(&key, format!("there is no backend `{}`", short(&name)));
        }
        match held(book, &key, "concurrent", bound.concurrent) {
            Some(concurrent) => drop(all.insert(name, concurrent)),
            None => book.missing(&key, "limits nothing: give `concurrent`"),
        }
    }
    all
}

fn bound_of(
    book: &mut Book<'_>,
    key: &Key,
    (calls, quota): (Option<Rate>, Option<Quotas>),
    concurrent: Option<u32>,
) -> Bound {
    let concurrent = held(book, key, "concurrent", concurrent);
    let quotas = quota.map(|quota| quotas(book, &key.at("quota"), quota)).unwrap_or_default();
    Bound { calls: calls.map(|rate| rate.0), quotas, concurrent, streams: None }
}

fn quotas(book: &mut Book<'_>, key: &Key, written: Quotas) -> [Option<Quota>; 2] {
    let (mut day, mut month) = (None, None);
    for (index, quota) in written.0.into_iter().enumerate() {
        let place = match quota.0.window {
            Window::Day => &mut day,
            Window::Month => &mut month,
        };
        if place.replace(quota.0).is_some() {
            book.error(&key.index(index), format!("is the second one per {}", quota.0.window.as_str()));
        }
    }
    [day, month]
}

fn held(book: &mut Book<'_>, key: &Key, name: &str, count: Option<u32>) -> Option<NonZeroU32> {
    count.and_then(|count| NonZeroU32::new(book.count(key, name, Some(count), 1, CONCURRENT_MAX)))
}

fn turns(book: &mut Book<'_>, key: &Key, written: file::Turns) -> TurnsConfig {
    let default = TurnsConfig::default();
    let mut count = |name: &str, value: Option<u32>, default| held(book, key, name, value).unwrap_or(default);
    TurnsConfig {
        in_progress: count("in_progress", written.in_progress, default.in_progress),
        waiting_max: count("waiting_max", written.waiting_max, default.waiting_max),
        waiting_per_tenant_max: count(
            "waiting_per_tenant_max",
            written.waiting_per_tenant_max,
            default.waiting_per_tenant_max,
        ),
        wait_max: at_most(book, key, "wait", written.wait, default.wait_max, WAIT_MAX),
    }
}

fn at_most(
    book: &mut Book<'_>,
    key: &Key,
    name: &str,
    written: Option<crate::config::scalar::Span>,
    default: Duration,
    max: Duration,
) -> Duration {
    let span = book.span(key, name, written, default);
    if span > max {
        book.error(&key.at(name), format!("must be at most {}s", max.as_secs()));
    }
    span
}

fn store(book: &mut Book<'_>, key: &Key, written: file::SharedLimits) -> Option<shared::Config> {
    let urls: Vec<(Key, String)> = match (written.url, written.nodes) {
        (Some(url), None) => vec![(key.at("url"), url)],
        (None, Some(nodes)) => {
            let key = key.at("nodes");
            nodes.into_iter().enumerate().map(|(index, url)| (key.index(index), url)).collect()
        }
        (Some(_), Some(_)) => {
            book.error(key, "`url` and `nodes` exclude each other");
            return None;
        }
        (None, None) => Vec::new(),
    };
    if urls.is_empty() {
        book.missing(key, "names no server: give `url: redis://HOST:6379` or `nodes`");
        return None;
    }
    if urls.len() > NODES_MAX {
        book.error(&key.at("nodes"), format!("has more than {NODES_MAX} servers"));
    }
    let login = written.password.is_some();
    let mut nodes = Vec::new();
    for (key, url) in urls {
        let Some(address) = address(book, &key, &url, login) else { continue };
        if nodes.contains(&address) {
            book.error(&key, "is the same server as one before it");
        }
        nodes.push(address);
    }
    if written.ca.is_some() && nodes.iter().all(|node| !node.tls) {
        book.error(&key.at("ca"), "is for `rediss://` alone");
    }
    if written.user.is_some() && !login {
        book.error(&key.at("user"), "needs a `password`");
    }
    let prefix = written.prefix.unwrap_or_else(|| PREFIX.to_owned());
    if prefix.len() > PREFIX_BYTES_MAX || !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
        book.error(&key.at("prefix"), format!("must be at most {PREFIX_BYTES_MAX} visible ASCII characters"));
    }
    let secret = written.key.map(|reference| {
        let key = key.at("key");
        let secret = book.secret(&key, &reference);
        if (1..KEY_BYTES_MIN).contains(&secret.expose().len()) {
            book.error(&key, format!("has fewer than {KEY_BYTES_MIN} bytes"));
        }
        secret
    });
    Some(shared::Config {
        nodes,
        user: written.user,
        password: written.password.map(|reference| book.secret(&key.at("password"), &reference)),
        ca: written.ca.map(|ca| book.readable(&key.at("ca"), &ca)),
        prefix,
        key: secret.filter(|secret| !secret.expose().is_empty()),
        timeout: at_most(book, key, "timeout", written.timeout, TIMEOUT, TIMEOUT_MAX),
        connect_timeout: at_most(
            book,
            key,
            "connect_timeout",
            written.connect_timeout,
            CONNECT_TIMEOUT,
            CONNECT_TIMEOUT_MAX,
        ),
        unreachable: match written.unreachable {
            Some(file::Unreachable::Refuse) => Unreachable::Refuse,
            Some(file::Unreachable::Local) | None => Unreachable::Local,
        },
    })
}

fn address(book: &mut Book<'_>, key: &Key, text: &str, login: bool) -> Option<Address> {
    let url = match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "redis" | "rediss") && url.has_host() => url,
        _ => {
            // INVARIANT: the text may have a password in it.
            book.error(key, "is not an address such as `redis://HOST:6379` or `rediss://HOST:6379`");
            return None;
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        book.error(key, "must be without user and password: write `user` and `password: file:/path/to/it`");
    }
    if url.query().is_some() || url.fragment().is_some() {
        book.error(key, "must be without query and fragment");
    }
    let tls = url.scheme() == "rediss";
    if login && !tls && !is_loopback(&url) && url.host_str() != Some("127.0.0.1") {
        book.warn(key, "is without TLS: the password crosses the network in the clear");
    }
    let database = match url.path().trim_start_matches('/') {
        "" => Some(0),
        number => number.parse::<u16>().ok(),
    };
    let Some(database) = database else {
        book.error(key, "ends in something that is no number of a database");
        return None;
    };
    // The parser reads no IPv4 addresses in schemes that it does not know, and keeps the brackets of IPv6.
    let host = match url.host()? {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    };
    Some(Address { tls, host, port: url.port().unwrap_or(PORT), database })
}
