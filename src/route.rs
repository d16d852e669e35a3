//! Where does it go? Host and path to a route, a route to its backends, a name on it to one of them. Pure.

mod names;
mod uris;

use std::sync::Arc;

use url::Url;

pub use names::Clash;
pub use names::Found;
pub use names::MEMBER_TIMEOUT;
pub use names::Names;
pub use names::PREFIX_BYTES_MAX;
pub use names::SEPARATOR;
pub use names::SEPARATOR_BYTES_MAX;
pub use names::Share;

use crate::catalog::Mode;

/// One MCP endpoint of the gateway.
#[derive(Clone, Debug)]
pub struct Route {
    /// Exact path, for example `/mcp`.
    pub path: String,
    /// Only for this host (no port), if given.
    pub host: Option<String>,
    /// Names of backends: with one the route is transparent.
    pub backends: Vec<Arc<str>>,
    /// What is whose, on a route with several backends: one share for each, in the same order.
    pub names: Option<Arc<Names>>,
    pub mode: Option<Mode>,
    /// HTTP+SSE of 2024-11-05 is served below the path: `/sse` and `/messages/<id>`.
    pub old_sse: bool,
}

/// What is at a path that belongs to a route.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Entry<'a> {
    /// The route itself: streamable HTTP.
    Endpoint,
    /// The stream of HTTP+SSE.
    Stream,
    /// Where the messages of the HTTP+SSE connection of this name are sent to.
    Messages(&'a str),
}

/// Below a route's path: the stream, and the messages of one connection.
const STREAM: &str = "/sse";
const MESSAGES: &str = "/messages";

/// 128 bits in lower-case hex.
const CONNECTION_DIGITS: usize = 32;

/// Can messages of HTTP+SSE be sent to this path?
pub fn takes_messages(path: &str) -> bool {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    path.rsplit_once('/').is_some_and(|(base, name)| {
        base.ends_with(MESSAGES) && name.len() == CONNECTION_DIGITS && name.bytes().all(digit)
    })
}

impl Route {
    /// The path of the stream.
    pub fn stream_path(&self) -> String {
        format!("{}{STREAM}", self.path)
    }

    /// The path for the messages of a connection; for all of them, without its name.
    pub fn messages_path(&self, name: &str) -> String {
        let slash = if name.is_empty() { "" } else { "/" };
        format!("{}{MESSAGES}{slash}{name}", self.path)
    }

    /// Does HTTP+SSE of this route stand at the path of the other, for some host?
    pub fn overlaps(&self, other: &Route) -> bool {
        let same_host = self.host == other.host || self.host.is_none() || other.host.is_none();
        let below = other.path == self.stream_path()
            || (takes_messages(&other.path) && other.path.starts_with(&format!("{}/", self.messages_path(""))));
        self.old_sse && same_host && below
    }
}

#[derive(Clone, Debug, Default)]
pub struct Config {
    pub routes: Vec<Arc<Route>>,
}

impl Config {
    /// The route that a path belongs to, and what is there. A route's own path comes before what is below another's.
    pub fn resolve<'a>(&self, host: &str, path: &'a str) -> Option<(&Arc<Route>, Entry<'a>)> {
        if let Some(route) = self.find(host, path) {
            return Some((route, Entry::Endpoint));
        }
        let (base, entry) = match path.strip_suffix(STREAM) {
            Some(base) => (base, Entry::Stream),
            None => {
                let (base, name) = path.rsplit_once('/')?;
                (base.strip_suffix(MESSAGES)?, Entry::Messages(name))
            }
        };
        self.find(host, base).filter(|route| route.old_sse).map(|route| (route, entry))
    }

    /// The one route that this host has, if it has one alone.
    pub fn only(&self, host: &str) -> Option<&Arc<Route>> {
        let bare = bare(host);
        let mut reached = self.routes.iter().filter(|route| route.host.as_deref().is_none_or(|own| own == bare));
        reached.next().filter(|_| reached.next().is_none())
    }

    /// The most specific route: one for this host before one for any host.
    fn find(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        let bare = bare(host);
        let matching = || self.routes.iter().filter(|route| route.path == path);
        matching()
            .find(|route| route.host.as_deref() == Some(bare))
            .or_else(|| matching().find(|route| route.host.is_none()))
    }
}

/// Where clients know what is at `own`, a host that a route has for itself, or else what any host has: configuration alone
/// says so, and not what a request claims to have asked for.
pub fn address(public: &Url, own: Option<&str>) -> Option<Url> {
    let mut url = public.clone();
    if let Some(host) = own {
        url.set_host(Some(host)).ok()?;
    }
    Some(url)
}

/// Without its port.
pub fn bare(host: &str) -> &str {
    host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(bare, _)| bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(path: &str, host: Option<&str>, old_sse: bool) -> Arc<Route> {
        let host = host.map(str::to_owned);
        Arc::new(Route { path: path.to_owned(), host, backends: Vec::new(), names: None, mode: None, old_sse })
    }

    #[test]
    fn a_path_below_a_route_is_its_stream_or_its_messages_and_nothing_else() {
        let routes = Config {
            routes: vec![route("/mcp", None, true), route("/new", None, false), route("/mcp", Some("a.test"), false)],
        };
        let at = |host: &str, path| routes.resolve(host, path).map(|(route, entry)| (route.path.clone(), entry));
        assert_eq!(at("h:80", "/mcp"), Some(("/mcp".to_owned(), Entry::Endpoint)));
        assert_eq!(at("h", "/mcp/sse"), Some(("/mcp".to_owned(), Entry::Stream)));
        assert_eq!(at("h", "/mcp/messages/ab"), Some(("/mcp".to_owned(), Entry::Messages("ab"))));
        for (host, path) in [
            ("h", "/sse"),
            ("h", "/mcp/messages"),
            ("h", "/mcp/sse/x"),
            ("h", "/mcp/x/sse"),
            ("h", "/mcpsse"),
            ("h", "/new/sse"),
            ("h", "/new/messages/ab"),
            ("a.test", "/mcp/sse"),
        ] {
            assert_eq!(at(host, path), None, "{host}{path}");
        }
    }

    #[test]
    fn a_routes_own_path_comes_first_and_overlap_is_seen() {
        let name = "0123456789abcdef0123456789abcdef";
        let (old, own) = (route("/mcp", None, true), route("/mcp/sse", None, false));
        let routes = Config { routes: vec![old.clone(), own.clone()] };
        assert_eq!(routes.resolve("h", "/mcp/sse").map(|(_, entry)| entry), Some(Entry::Endpoint));
        assert!(old.overlaps(&own) && !own.overlaps(&old));
        assert!(old.overlaps(&route(&old.messages_path(name), Some("a.test"), true)));
        assert!(!old.overlaps(&route("/mcp/messages/notes", None, true)));
        assert!(!route("/mcp", Some("b.test"), true).overlaps(&route("/mcp/sse", Some("a.test"), true)));
        assert!(!route("/mcp", None, false).overlaps(&own));
        assert!(takes_messages(&old.messages_path(name)) && !takes_messages("/mcp/messages/0123"));
    }
}
