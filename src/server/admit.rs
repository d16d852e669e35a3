//! What is checked of a request's head before anything is parsed: framing, method, target, Host, Origin, media types.
//!
//! Pure: bytes and headers in, a decision out. pingora forgives much that two parsers read differently (CL beside TE,
//! equal duplicate lengths, bare LF); here it is refused, on the raw bytes, because the parsed headers no longer show it.

mod framing;
mod host;
mod media;

use std::collections::HashSet;
use std::time::Duration;

use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::header;

use crate::exchange::Verb;
use crate::gateway::Rejection;
use crate::route::takes_messages;

use super::Admission;
use super::Config;
use super::wellknown;

use media::EVENTS;
use media::JSON;
use media::accepts;
use media::is_json;

pub(super) use framing::framing;
pub(super) use host::Host;

/// More fields than any MCP client sends, fewer than make a hash table slow.
const HEADERS_MAX: usize = 128;

/// Paths are those of routes, which people write; a query means nothing here.
const TARGET_BYTES_MAX: usize = 2048;

const ALLOW: &str = "POST, GET, DELETE";

/// Who can reach a listener; decides which Host is right when none is configured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reach {
    /// Only this machine, but its browsers too: a web page may rebind its name to 127.0.0.1.
    Loopback,
    Network,
    /// No browser gets here.
    Unix,
}

/// The admission of one configuration, ready to be asked.
pub(super) struct Gate {
    pub(super) admission: Admission,
    pub(super) grace: Duration,
    hosts: HashSet<String>,
    public_host: Option<String>,
    origins: HashSet<String>,
}

impl Gate {
    pub(super) fn new(config: &Config) -> Gate {
        let host = |text: &String| {
            let text = text.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
            if text.contains(':') { format!("[{text}]") } else { text }
        };
        let origin = |text: &String| text.trim_end_matches('/').to_ascii_lowercase();
        Gate {
            admission: config.admission.clone(),
            grace: config.shutdown_grace,
            hosts: config.admission.hosts.iter().map(host).collect(),
            public_host: config.admission.public_host.as_ref().map(host),
            origins: config.admission.origins.iter().map(origin).collect(),
        }
    }

    fn knows_host(&self, host: &Host, reach: Reach) -> bool {
        match reach {
            Reach::Loopback => {
                let public = self.public_host.as_ref() == Some(&host.name);
                host.is_local() || public || self.hosts.contains(&host.name)
            }
            Reach::Unix => self.hosts.is_empty() || host.is_local() || self.hosts.contains(&host.name),
            Reach::Network => self.hosts.is_empty() || self.hosts.contains(&host.name),
        }
    }

    /// Listed, or our own: the latter only where the Host is known to be ours, or a page could bring its own name.
    fn knows_origin(&self, origin: &str, host: &Host, reach: Reach) -> bool {
        if self.origins.contains(origin) {
            return true;
        }
        let own = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        let host_is_ours = reach == Reach::Loopback || !self.hosts.is_empty();
        host_is_ours && own.is_some_and(|authority| authority == host.authority)
    }
}

/// A request's head, as far as it concerns admission.
pub(super) struct Sight<'a> {
    pub(super) method: &'a Method,
    /// The request target as sent.
    pub(super) target: &'a [u8],
    /// `:authority` of h2.
    pub(super) authority: Option<&'a str>,
    pub(super) headers: &'a HeaderMap,
    pub(super) reach: Reach,
}

#[derive(Debug)]
pub(super) enum Admitted {
    Call(Call),
    /// A GET of a well-known document.
    Document {
        host: String,
        path: String,
    },
    /// A client that registers itself, from anywhere.
    Registration(Call),
    /// A CORS preflight; any origin for what anybody may ask for.
    Preflight {
        any_origin: bool,
    },
}

#[derive(Debug)]
pub(super) struct Call {
    pub(super) verb: Verb,
    pub(super) host: String,
    pub(super) path: String,
    pub(super) expects_continue: bool,
    pub(super) body_bytes_max: usize,
}

fn bad(what: &'static str) -> Rejection {
    Rejection::BadRequest { what }
}

/// Decides on a head whose framing is sound. The first value is the origin that may read the answer, known also when
/// the request is refused afterwards.
pub(super) fn examine(gate: &Gate, sight: &Sight<'_>) -> (Option<HeaderValue>, Result<Admitted, Rejection>) {
    let mut origin = None;
    let admitted = examine_all(gate, sight, &mut origin);
    (origin, admitted)
}

fn examine_all(gate: &Gate, sight: &Sight<'_>, reader: &mut Option<HeaderValue>) -> Result<Admitted, Rejection> {
    let headers = sight.headers;
    if headers.len() > HEADERS_MAX {
        return Err(Rejection::HeadersTooLarge);
    }
    // Clients that would like h2c say so on every request and take no for an answer; anything else wants a tunnel.
    if headers.get_all(header::UPGRADE).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"h2c")) {
        return Err(bad("Upgrade is not offered"));
    }
    let expects_continue = match single(headers, header::EXPECT, "more than one Expect")? {
        None => false,
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => true,
        Some(_) => return Err(bad("an Expect other than 100-continue")),
    };
    let verb = match *sight.method {
        Method::POST => Some(Verb::Post),
        Method::GET => Some(Verb::Get),
        Method::DELETE => Some(Verb::Delete),
        Method::OPTIONS => None,
        _ => return Err(Rejection::MethodNotAllowed { allow: ALLOW }),
    };
    let (authority, path) = target(sight)?;
    let host = Host::parse(authority).ok_or(Rejection::BadHost)?;
    if !gate.knows_host(&host, sight.reach) {
        return Err(Rejection::BadHost);
    }
    let path = plain_path(path)?;
    if verb != Some(Verb::Post) {
        let has_body =
            headers.contains_key(header::TRANSFER_ENCODING) || length(headers)?.is_some_and(|length| length > 0);
        if has_body {
            return Err(bad("only POST carries a body"));
        }
    }
    if wellknown::is_document(&path) {
        return match verb {
            Some(Verb::Get) => Ok(Admitted::Document { host: host.authority, path }),
            None if headers.contains_key(header::ORIGIN) => Ok(Admitted::Preflight { any_origin: true }),
            _ => Err(Rejection::MethodNotAllowed { allow: "GET" }),
        };
    }
    if wellknown::is_registration(&path) {
        return match verb {
            Some(Verb::Post) => {
                let body_bytes_max = gate.admission.body_bytes_max.min(wellknown::REGISTRATION_BYTES_MAX);
                body(headers, body_bytes_max)?;
                let host = host.authority;
                Ok(Admitted::Registration(Call { verb: Verb::Post, host, path, expects_continue, body_bytes_max }))
            }
            None if headers.contains_key(header::ORIGIN) => Ok(Admitted::Preflight { any_origin: true }),
            _ => Err(Rejection::MethodNotAllowed { allow: "POST" }),
        };
    }
    if let Some(origin) = single(headers, header::ORIGIN, "more than one Origin")? {
        let text = origin.to_str().map_err(|_| Rejection::BadOrigin)?;
        if !gate.knows_origin(&text.to_ascii_lowercase(), &host, sight.reach) {
            return Err(Rejection::BadOrigin);
        }
        *reader = Some(origin.clone());
    }
    let Some(verb) = verb else {
        return if reader.is_some() {
            Ok(Admitted::Preflight { any_origin: false })
        } else {
            Err(Rejection::MethodNotAllowed { allow: ALLOW })
        };
    };
    match verb {
        Verb::Delete => {}
        Verb::Get => {
            if !accepts(headers, EVENTS) {
                return Err(Rejection::NotAcceptable);
            }
        }
        Verb::Post => post(gate, headers, &path)?,
    }
    let body_bytes_max = gate.admission.body_bytes_max;
    Ok(Admitted::Call(Call { verb, host: host.authority, path, expects_continue, body_bytes_max }))
}

fn post(gate: &Gate, headers: &HeaderMap, path: &str) -> Result<(), Rejection> {
    body(headers, gate.admission.body_bytes_max)?;
    // SPEC: streamable HTTP, "the client MUST include an Accept header, listing both".
    // Clients of 2024-11-05 do not: what answers them is on a stream they have asked for.
    if !takes_messages(path) && (!accepts(headers, JSON) || !accepts(headers, EVENTS)) {
        return Err(Rejection::NotAcceptable);
    }
    Ok(())
}

fn body(headers: &HeaderMap, bytes_max: usize) -> Result<(), Rejection> {
    if length(headers)?.is_some_and(|length| length > bytes_max) {
        return Err(Rejection::BodyTooLarge { bytes_max });
    }
    let media = single(headers, header::CONTENT_TYPE, "more than one Content-Type")?;
    if !media.and_then(|media| media.to_str().ok()).is_some_and(is_json) {
        return Err(Rejection::UnsupportedMediaType);
    }
    if headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        return Err(Rejection::UnsupportedMediaType);
    }
    Ok(())
}

fn single<'a>(
    headers: &'a HeaderMap,
    name: header::HeaderName,
    twice: &'static str,
) -> Result<Option<&'a HeaderValue>, Rejection> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(bad(twice)),
    }
}

/// The announced length of the body.
fn length(headers: &HeaderMap) -> Result<Option<usize>, Rejection> {
    let Some(value) = single(headers, header::CONTENT_LENGTH, "more than one Content-Length")? else { return Ok(None) };
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|text| text.parse().ok()).map(Some).ok_or(bad("malformed Content-Length"))
}

/// Authority and path (with query) of the request. In absolute form, and in h2, Host may only repeat the authority.
fn target<'a>(sight: &Sight<'a>) -> Result<(&'a str, &'a [u8]), Rejection> {
    let host = single(sight.headers, header::HOST, "more than one Host")?;
    let host = host.map(|value| value.to_str()).transpose().map_err(|_| Rejection::BadHost)?;
    if sight.target.starts_with(b"/") {
        return match (sight.authority, host) {
            (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
                Err(bad("Host differs from :authority"))
            }
            (Some(authority), _) => Ok((authority, sight.target)),
            (None, Some(host)) => Ok((host, sight.target)),
            (None, None) => Err(bad("no Host")),
        };
    }
    let rest = [&b"http://"[..], b"https://"].iter().find_map(|scheme| {
        sight.target.get(..scheme.len()).filter(|start| start.eq_ignore_ascii_case(scheme))?;
        sight.target.get(scheme.len()..)
    });
    let rest = rest.ok_or(Rejection::BadPath)?;
    let (authority, path) = rest.split_at(rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len()));
    match host {
        Some(host) if host.as_bytes().eq_ignore_ascii_case(authority) => {
            Ok((host, if path.is_empty() { b"/" } else { path }))
        }
        _ => Err(bad("Host differs from the request target")),
    }
}

/// The path as it is routed: what is written is what is meant, so nothing needs decoding and nothing can differ.
fn plain_path(target: &[u8]) -> Result<String, Rejection> {
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    let path = std::str::from_utf8(path).map_err(|_| Rejection::BadPath)?;
    // RFC 3986 `pchar` without escapes, and without `;` (path parameters are stripped by some servers).
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,=:@".contains(&byte);
    if target.len() > TARGET_BYTES_MAX
        || !target.iter().all(u8::is_ascii_graphic)
        || target.contains(&b'#')
        || !path.bytes().all(plain)
    {
        return Err(Rejection::BadPath);
    }
    let inner = path.strip_prefix('/').ok_or(Rejection::BadPath)?;
    // One slash at the end is forgiven: `/mcp/` is how some clients write `/mcp`.
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    if !inner.is_empty() && inner.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(Rejection::BadPath);
    }
    if path == "//" { Err(Rejection::BadPath) } else { Ok(format!("/{inner}")) }
}

#[cfg(test)]
mod tests;
