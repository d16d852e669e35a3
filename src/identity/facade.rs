//! `Facade`: describes an issuer's authorization server in the words that MCP clients need, where its own lack some.
//!
//! Entra ID publishes no RFC 8414 document, does not say that it supports PKCE, and registers no clients; standard MCP
//! clients then give up. The facade is a second name for such an issuer: its metadata as fetched from it, with what is
//! missing. The endpoints in it are the issuer's own: codes and tokens never pass here, and there is no `/authorize`
//! here that could be talked into anything.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;
use tokio::sync::watch;

use super::Error;
use super::StartError;
use super::entra;
use super::oidc;
use super::registration;
use crate::mcp::strict;

/// Where facades stand, below the public URL. Routes cannot.
pub const ROOT: &str = "/login/";

/// Below a facade: RFC 7591.
pub const REGISTER: &str = "/register";

const OAUTH: &str = "/.well-known/oauth-authorization-server";
const OPENID: &str = "/.well-known/openid-configuration";

const STALE_AFTER: Duration = Duration::from_secs(10 * 60);

/// An issuer that cannot be asked goes on being described as it was: its endpoints hardly ever move.
const HARD_EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);

const COOL_DOWN: Duration = Duration::from_secs(60);

/// The same while nothing is known yet.
const COOL_DOWN_EMPTY: Duration = Duration::from_secs(5);

/// Members taken over as they are, addresses only where they are safe. What is not here (signed metadata, endpoint
/// aliases, pushed requests, whatever comes) could say something that is not true of the facade.
const TAKEN_OVER: [&str; 20] = [
    "acr_values_supported",
    "authorization_endpoint",
    "claims_supported",
    "client_id_metadata_document_supported",
    "device_authorization_endpoint",
    "dpop_signing_alg_values_supported",
    "end_session_endpoint",
    "grant_types_supported",
    "id_token_signing_alg_values_supported",
    "jwks_uri",
    "op_policy_uri",
    "op_tos_uri",
    "response_modes_supported",
    "response_types_supported",
    "revocation_endpoint",
    "scopes_supported",
    "service_documentation",
    "subject_types_supported",
    "token_endpoint",
    "userinfo_endpoint",
];

/// Is this where the description of a server without a path stands?
pub(super) fn is_root_form(path: &str) -> bool {
    path == OAUTH || path == OPENID
}

/// Is this the path of a description (whether there is one or not)?
pub fn is_description(path: &str) -> bool {
    let below = |form| path.strip_prefix(form).is_some_and(|rest: &str| rest.is_empty() || rest.starts_with('/'));
    below(OAUTH) || below(OPENID) || (path.starts_with(ROOT) && path.ends_with(OPENID))
}

/// Is this a path that clients register at (whether they can or not)?
pub fn is_registration(path: &str) -> bool {
    path.starts_with(ROOT) && path.ends_with(REGISTER)
}

/// No login without them. Other addresses that are not safe are left out.
const ENDPOINTS: [&str; 2] = ["authorization_endpoint", "token_endpoint"];

/// Is this the name of a member that clients go to?
fn is_address(name: &str) -> bool {
    name.ends_with("_endpoint") || name.ends_with("_uri") || name == "service_documentation"
}

/// An issuer that clients log in at through a facade, and as whom.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Login {
    /// Exact `iss`, one of the trusted issuers; or the place of one or several tenants of Entra.
    pub issuer: String,
    /// What that place must call itself, where that is not its address.
    pub entra: Option<entra::Named>,
    /// A public client registered at the issuer.
    pub client_id: String,
    /// Loopback redirect addresses of any port and path may be registered.
    pub loopback: bool,
    /// Exact redirect addresses that may be registered beside them.
    pub redirect_uris: Vec<String>,
    /// What stands before a scope when it is asked for at the issuer, and not in the tokens it makes.
    pub scope_prefix: String,
}

impl Login {
    /// The path of the facade: the issuer without its scheme, below [`ROOT`]. `None` for an issuer that has none.
    pub fn path(&self) -> Option<String> {
        let (_, rest) = self.issuer.split_once("://")?;
        let rest = rest.trim_end_matches('/');
        // What admission lets through as a path.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~:".contains(&byte);
        let good = rest.bytes().all(plain) && !rest.split('/').any(|part| matches!(part, "" | "." | ".."));
        good.then(|| format!("{ROOT}{rest}"))
    }
}

/// The issuer's own description, as far as it is taken over.
struct Known {
    members: Map<String, Value>,
    fetched: Instant,
}

pub struct Facade {
    login: Login,
    path: String,
    origin: oidc::Description,
    current: ArcSwapOption<Known>,
    fetching: Mutex<Fetching>,
}

#[derive(Default)]
struct Fetching {
    last: Option<Instant>,
    /// Closed when the fetch that is under way has ended.
    running: Option<watch::Receiver<()>>,
}

impl Facade {
    pub(super) fn new(login: Login, fetchers: &mut oidc::Fetchers) -> Result<Facade, StartError> {
        let path = login.path().ok_or_else(|| StartError::Issuer {
            issuer: login.issuer.clone(),
            reason: "has characters that the path of its login cannot have".into(),
        })?;
        let origin = fetchers.description(&login.issuer)?;
        Ok(Facade { login, path, origin, current: ArcSwapOption::empty(), fetching: Mutex::default() })
    }

    pub(super) fn login(&self) -> &Login {
        &self.login
    }

    /// What comes behind the public URL in the facade's own issuer identifier.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Is this where the facade's description stands, in one of the three forms that clients try?
    pub(super) fn describes_at(&self, path: &str) -> bool {
        let inserted = |form| path.strip_prefix(form) == Some(&self.path);
        inserted(OAUTH) || inserted(OPENID) || path.strip_suffix(OPENID) == Some(&self.path)
    }

    /// RFC 8414 section 2, under this identifier; clients compare it with the one they asked for.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while the issuer has never been heard.
    pub async fn description(self: &Arc<Self>, identifier: &str, base: &str) -> Result<Bytes, Error> {
        let known = self.known().await.ok_or_else(|| Error::Unavailable { issuer: self.login.issuer.clone() })?;
        let mut members = known.members.clone();
        let mut say = |name: &str, value: Value| drop(members.insert(name.to_owned(), value));
        say("issuer", json!(identifier));
        say("registration_endpoint", json!(format!("{base}{}{REGISTER}", self.path)));
        say("code_challenge_methods_supported", json!(["S256"]));
        // The client is public: whatever else the issuer supports, there is no secret to show.
        say("token_endpoint_auth_methods_supported", json!(["none"]));
        Ok(serde_json::to_vec(&members).unwrap_or_default().into())
    }

    /// RFC 7591: the one client, for those who come with a redirect address that is allowed.
    pub fn register(&self, request: &[u8]) -> Result<Bytes, registration::Refused> {
        registration::register(&self.login, request)
    }

    async fn known(self: &Arc<Self>) -> Option<Arc<Known>> {
        let now = Instant::now();
        let fit = |known: &Arc<Known>, most| now.saturating_duration_since(known.fetched) <= most;
        let current = self.current.load_full();
        if let Some(known) = current.clone().filter(|known| fit(known, STALE_AFTER)) {
            return Some(known);
        }
        let old = current.filter(|known| fit(known, HARD_EXPIRY));
        let running = self.begin(now, if old.is_some() { COOL_DOWN } else { COOL_DOWN_EMPTY });
        if let (None, Some(mut running)) = (&old, running) {
            // An error means the sender is gone, which is how the end is told.
            let _ = running.changed().await;
        }
        old.or_else(|| self.current.load_full())
    }

    /// Begins a fetch, or finds the one that is under way; `None` while the last one is too recent. A task of its own:
    /// a client that goes away must not be able to stop it.
    fn begin(self: &Arc<Self>, now: Instant, cool_down: Duration) -> Option<watch::Receiver<()>> {
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = fetching.running.as_ref().filter(|running| running.has_changed().is_ok()) {
            return Some(running.clone());
        }
        if fetching.last.is_some_and(|last| now.saturating_duration_since(last) < cool_down) {
            return None;
        }
        fetching.last = Some(now);
        let (ended, running) = watch::channel(());
        fetching.running = Some(running.clone());
        let facade = Arc::clone(self);
        runtime.spawn(async move {
            let document = facade.origin.fetch().await.map_err(|error| error.to_string());
            match document.and_then(|document| facade.read(&document)) {
                Ok(members) => facade.current.store(Some(Arc::new(Known { members, fetched: now }))),
                Err(reason) => {
                    tracing::warn!(issuer = %facade.login.issuer, %reason, "cannot describe the issuer's login");
                }
            }
            drop(ended);
        });
        Some(running)
    }

    fn read(&self, document: &[u8]) -> Result<Map<String, Value>, String> {
        let mut whole = strict::object(document).ok_or("its metadata is not one JSON object")?;
        // RFC 8414 section 3.3: whoever describes another issuer is not believed.
        let named = whole.get("issuer").and_then(Value::as_str).unwrap_or_default();
        let right = self.login.entra.as_ref().map_or(named == self.login.issuer, |entra| entra.is(named));
        if !right {
            return Err("its metadata names another issuer".into());
        }
        let safe = |value: &Value| {
            let url = value.as_str().and_then(|text| url::Url::parse(text).ok());
            url.is_some_and(|url| self.origin.permits(&url))
        };
        for name in ENDPOINTS {
            if !whole.get(name).is_some_and(safe) {
                return Err(format!("its metadata has no `{name}` at an https URL"));
            }
        }
        let methods = whole.get("code_challenge_methods_supported").and_then(Value::as_array);
        if methods.is_some_and(|methods| !methods.iter().any(|method| method == "S256")) {
            return Err("it says that it does not support PKCE with S256".into());
        }
        if whole.get("authorization_response_iss_parameter_supported") == Some(&Value::Bool(true)) {
            // RFC 9207: its own name comes back in the redirect, and a client that compares it finds another one.
            tracing::warn!(
                issuer = %self.login.issuer,
                "the issuer names itself in redirects (RFC 9207): clients refuse a login through the facade; remove `login`"
            );
        }
        let mut members: Map<_, _> = TAKEN_OVER.iter().filter_map(|name| whole.remove_entry(*name)).collect();
        members.retain(|name, value| {
            let good = !is_address(name) || safe(value);
            if !good {
                tracing::warn!(issuer = %self.login.issuer, %name, "the issuer's metadata has no safe URL here: left out");
            }
            good
        });
        Ok(members)
    }
}

#[cfg(test)]
mod tests;
