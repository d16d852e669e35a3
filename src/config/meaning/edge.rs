//! `listeners`, `admin` and `admission`, as meant.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::time::Duration;

use url::Url;

use crate::config::book::Book;
use crate::config::book::Key;
use crate::config::file;
use crate::config::scalar::short;
use crate::server::Address;
use crate::server::Admission;
use crate::server::ClientAuth;
use crate::server::Listener;
use crate::server::Tls;

/// As long as Kubernetes waits by default.
pub(super) const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);

/// Owner and group: the agent beside the gateway shares a group with it.
const SOCKET_MODE: u32 = 0o660;

/// `sun_path` with its closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

const HEADER_BYTES_MAX: usize = 1024 * 1024;
const BODY_BYTES_MAX: usize = 1024 * 1024 * 1024;
const CONNECTIONS_MAX: u32 = 1_000_000;

/// Only this machine can reach it.
pub(super) fn is_local(address: &Address) -> bool {
    match address {
        Address::Tcp(address) => address.ip().to_canonical().is_loopback(),
        Address::Unix(..) => true,
    }
}

pub(super) fn listeners(book: &mut Book<'_>, root: &Key, listeners: Option<Vec<file::Listener>>) -> Vec<Listener> {
    let key = root.at("listeners");
    let listeners = listeners.unwrap_or_default();
    if listeners.is_empty() {
        book.missing(&key, "the gateway listens nowhere; for example `listeners: [{ address: \"127.0.0.1:8080\" }]`");
    }
    let mut meant: Vec<Listener> = Vec::new();
    for (index, listener) in listeners.into_iter().enumerate() {
        let key = key.index(index);
        let tls = listener.tls.and_then(|written| tls(book, &key.at("tls"), written));
        let Some(text) = book.require(&key, "address", listener.address, "address: \"127.0.0.1:8080\"") else {
            continue;
        };
        let Some(address) = address(book, &key, &text, listener.socket_mode) else { continue };
        let free = matches!(address, Address::Tcp(address) if address.port() == 0);
        if !free && meant.iter().any(|known| known.address == address) {
            book.error(&key.at("address"), format!("`{}` is listened on already", short(&text)));
        }
        if tls.is_none() && !is_local(&address) && !book.touched(&key.at("tls")) {
            book.warn(
                &key.at("address"),
                "other machines reach this address without TLS: tokens and answers cross the network in the clear",
            );
        }
        meant.push(Listener { address, tls });
    }
    meant
}

pub(super) fn admin(book: &mut Book<'_>, key: &Key, admin: file::Admin) -> Option<Address> {
    let text = book.require(key, "address", admin.address, "address: \"127.0.0.1:9090\"")?;
    let address = address(book, key, &text, admin.socket_mode)?;
    if !is_local(&address) {
        book.warn(
            &key.at("address"),
            "other machines reach the admin listener, and it knows no authentication: keep it off the public network",
        );
    }
    Some(address)
}

fn address(book: &mut Book<'_>, parent: &Key, text: &str, socket_mode: Option<String>) -> Option<Address> {
    let key = parent.at("address");
    if let Some(path) = text.strip_prefix("unix:") {
        let path = book.writable(&key, path);
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            book.error(&key, format!("the path of a Unix socket has at most {SOCKET_PATH_BYTES_MAX} bytes"));
        }
        let mode = socket_mode.map_or(Some(SOCKET_MODE), |text| bits(book, &parent.at("socket_mode"), &text))?;
        return Some(Address::Unix(path, mode));
    }
    if socket_mode.is_some() {
        book.error(&parent.at("socket_mode"), "is for Unix sockets only");
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(Address::Tcp(address));
    }
    let port = |prefix: &str| text.strip_prefix(prefix).and_then(|port| port.parse::<u16>().ok());
    if let Some(port) = port("localhost:") {
        return Some(Address::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)));
    }
    let message = match port(":").or_else(|| port("*:")).or_else(|| text.parse().ok()) {
        Some(port) => {
            format!("write which address: `127.0.0.1:{port}` for this machine only, `0.0.0.0:{port}` for all")
        }
        None => format!(
            "`{}` is not `IP:PORT` (such as `127.0.0.1:8080` or `[::]:8443`) or `unix:/path/to.sock`",
            short(text)
        ),
    };
    book.error(&key, message);
    None
}

fn bits(book: &mut Book<'_>, key: &Key, text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0o").or_else(|| text.strip_prefix('0'));
    let bits = digits.and_then(|digits| u32::from_str_radix(digits, 8).ok()).filter(|bits| *bits <= 0o777);
    if bits.is_none() {
        book.error(key, format!("`{}` is not octal permission bits with a leading zero, such as `0660`", short(text)));
    }
    bits
}

fn tls(book: &mut Book<'_>, key: &Key, tls: file::Tls) -> Option<Tls> {
    let certificate = book.require(key, "certificate", tls.certificate, "certificate: /etc/wardgate/tls.crt");
    let certificate = certificate.map(|path| book.readable(&key.at("certificate"), &path));
    let private = book.require(key, "key", tls.key, "key: /etc/wardgate/tls.key");
    let private = private.map(|path| book.private(&key.at("key"), &path));
    let client_ca = tls.client_ca.map(|path| book.readable(&key.at("client_ca"), &path));
    let client_auth = match tls.client_auth {
        Some(file::ClientAuth::None) => ClientAuth::None,
        Some(file::ClientAuth::Optional) => ClientAuth::Optional,
        Some(file::ClientAuth::Required) => ClientAuth::Required,
        None if client_ca.is_some() => {
            book.missing(&key.at("client_auth"), "is missing beside `client_ca`: say `required`, `optional` or `none`");
            ClientAuth::None
        }
        None => ClientAuth::None,
    };
    if client_auth != ClientAuth::None && client_ca.is_none() {
        book.missing(&key.at("client_ca"), "is missing: client certificates are verified against it");
    }
    Some(Tls { certificate: certificate?, key: private?, client_ca, client_auth })
}

pub(super) fn admission(book: &mut Book<'_>, key: &Key, written: file::Admission) -> Admission {
    let default = Admission::default();
    let list = |items: Option<Vec<String>>| items.unwrap_or_default().into_iter().enumerate();
    let hosts = list(written.hosts)
        .map(|(index, name)| host(book, &key.at("hosts").index(index), &name))
        .collect::<BTreeSet<_>>();
    let origins: BTreeSet<String> = list(written.origins)
        .filter_map(|(index, text)| origin(book, &key.at("origins").index(index), &text))
        .collect();
    let connections = u32::try_from(default.connections_max).unwrap_or(CONNECTIONS_MAX);
    let connections_max = book.count(key, "connections_max", written.connections_max, connections, CONNECTIONS_MAX);
    Admission {
        hosts: hosts.into_iter().collect(),
        public_host: None,
        origins: origins.into_iter().collect(),
        header_bytes_max: book.size(
            key,
            "header_bytes_max",
            written.header_bytes_max,
            default.header_bytes_max,
            1024..=HEADER_BYTES_MAX,
        ),
        body_bytes_max: book.size(
            key,
            "body_bytes_max",
            written.body_bytes_max,
            default.body_bytes_max,
            1024..=BODY_BYTES_MAX,
        ),
        head_timeout: book.span(key, "head_timeout", written.head_timeout, default.head_timeout),
        body_timeout: book.span(key, "body_timeout", written.body_timeout, default.body_timeout),
        idle_timeout: book.span(key, "idle_timeout", written.idle_timeout, default.idle_timeout),
        request_timeout: book.span(key, "request_timeout", written.request_timeout, default.request_timeout),
        connections_max: usize::try_from(connections_max).unwrap_or(default.connections_max),
        keepalive_interval: book.span(
            key,
            "keepalive_interval",
            written.keepalive_interval,
            default.keepalive_interval,
        ),
        write_timeout: book.span(key, "write_timeout", written.write_timeout, default.write_timeout),
    }
}

/// A host name or address as it stands in a URL, lower case, without port.
pub(super) fn host(book: &mut Book<'_>, key: &Key, text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    // An IPv6 address has its brackets in `Host`.
    let bracketed = if lower.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{lower}]") } else { lower };
    let parsed = Url::parse(&format!("http://{bracketed}/")).ok();
    let same = parsed
        .as_ref()
        .is_some_and(|url| url.host_str() == Some(bracketed.as_str()) && url.port().is_none() && url.path() == "/");
    if !same || bracketed.contains('*') {
        book.error(key, format!("`{}` is not a host name without port, such as `mcp.example.com`", short(text)));
    }
    bracketed
}

fn origin(book: &mut Book<'_>, key: &Key, text: &str) -> Option<String> {
    let origin = Url::parse(text).ok().map(|url| url.origin().ascii_serialization());
    let same = origin
        .as_ref()
        .is_some_and(|origin| origin != "null" && text.trim_end_matches('/').eq_ignore_ascii_case(origin));
    if !same || text.contains('*') {
        book.error(key, format!("`{}` is not an origin such as `https://app.example.com`", short(text)));
        return None;
    }
    origin
}
