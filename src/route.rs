//! Where does it go? Host and path to a route, a route to its backends, a name on it to one of them. Pure.

mod names;
mod uris;

use std::sync::Arc;

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
}

#[derive(Clone, Debug, Default)]
pub struct Config {
    pub routes: Vec<Arc<Route>>,
}

impl Config {
    /// The most specific route: one for this host before one for any host.
    pub fn find(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        let bare = host
            .rsplit_once(':')
            .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
            .map_or(host, |(bare, _)| bare);
        let matching = || self.routes.iter().filter(|route| route.path == path);
        matching()
            .find(|route| route.host.as_deref() == Some(bare))
            .or_else(|| matching().find(|route| route.host.is_none()))
    }
}
