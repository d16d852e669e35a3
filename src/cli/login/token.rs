//! A login that is kept: its tokens, what renews them, and what ends them.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Map;
use serde_json::Value;
use url::Url;

use super::discovery::Discovered;
use super::flow;
use super::flow::Client;
use super::flow::Granted;
use super::store::Store;
use super::web::Web;
use crate::secret::Secret;

/// A token that ends sooner is renewed first: a request may be on its way for a while.
const RENEW_BEFORE: Duration = Duration::from_secs(60);

/// As it is in its file.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cli) struct Login {
    pub(super) url: Url,
    pub(in crate::cli) issuer: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resource: Option<String>,
    client_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_secret: Option<String>,
    token_endpoint: Url,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revocation_endpoint: Option<Url>,
    access_token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    scopes: Vec<String>,
    /// Seconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
}

impl Login {
    pub(super) fn new(url: &Url, found: &Discovered, client: Client, granted: Granted) -> Result<Login, String> {
        let mut login = Login {
            url: url.clone(),
            issuer: found.server.issuer.clone(),
            resource: found.resource.clone(),
            client_id: client.id.ok_or("there is no client id")?,
            client_secret: client.secret.map(|secret| secret.expose().to_owned()),
            token_endpoint: found.server.token.clone(),
            revocation_endpoint: found.server.revocation.clone(),
            access_token: String::new(),
            refresh_token: None,
            scopes: Vec::new(),
            expires_at: None,
        };
        login.take(granted);
        Ok(login)
    }

    fn take(&mut self, granted: Granted) {
        self.access_token = granted.access_token.expose().to_owned();
        // RFC 6749 section 6: without a new one the old one goes on.
        if let Some(token) = granted.refresh_token {
            self.refresh_token = Some(token.expose().to_owned());
        }
        self.scopes = granted.scopes;
        self.expires_at = granted.expires_at.map(seconds);
    }

    pub(in crate::cli) fn token(&self) -> Secret {
        Secret::new(self.access_token.as_str())
    }

    fn lasts(&self, now: SystemTime) -> bool {
        self.expires_at.is_none_or(|at| at > seconds(now + RENEW_BEFORE))
    }

    /// The claims of the access token, unverified: for its owner to look at. `None` where it is no JWT.
    pub(in crate::cli) fn claims(&self) -> Option<Map<String, Value>> {
        claims(&self.access_token)
    }

    /// ` as SUBJECT`, where the token tells.
    pub(super) fn whom(&self) -> String {
        let claims = self.claims().unwrap_or_default();
        let name = ["preferred_username", "email", "upn", "sub"].iter().find_map(|name| claims.get(*name)?.as_str());
        name.map_or_else(String::new, |name| {
            format!(" as {}", name.chars().filter(|c| !c.is_control()).take(200).collect::<String>())
        })
    }

    async fn renewed(&self, web: &Web) -> Result<Login, String> {
        let again = format!("log in again: wardgate login {}", self.url);
        let Some(token) = &self.refresh_token else {
            return Err(format!("the login has expired and cannot be renewed; {again}"));
        };
        let client =
            Client { id: Some(self.client_id.clone()), secret: self.client_secret.as_deref().map(Secret::new) };
        let token = Secret::new(token.as_str());
        let server = (self.issuer.as_str(), &self.token_endpoint);
        let granted = flow::refresh(web, server, &client, (&token, self.resource.as_deref()), &self.scopes).await;
        let granted = granted.map_err(|why| format!("the login cannot be renewed: {why}; {again}"))?;
        let mut login = self.clone();
        login.take(granted);
        Ok(login)
    }

    /// RFC 7009: the refresh token, and with it what came of it. `false` where the server cannot.
    pub(super) async fn revoke(&self, web: &Web) -> Result<bool, String> {
        let Some(endpoint) = &self.revocation_endpoint else { return Ok(false) };
        let (token, kind) = match &self.refresh_token {
            Some(token) => (token, "refresh_token"),
            None => (&self.access_token, "access_token"),
        };
        let mut fields = vec![("token", token.as_str()), ("token_type_hint", kind), ("client_id", &self.client_id)];
        fields.extend(self.client_secret.as_deref().map(|secret| ("client_secret", secret)));
        let answer = web.post_form(endpoint, &fields).await.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(true) } else { Err(format!("HTTP {}", answer.status)) }
    }
}

/// The payload of a JWT, as anybody can read it.
pub(in crate::cli) fn claims(token: &str) -> Option<Map<String, Value>> {
    part(token, 1)
}

/// The header of a JWT, as anybody can read it.
pub(in crate::cli) fn header(token: &str) -> Option<Map<String, Value>> {
    part(token, 0)
}

fn part(token: &str, index: usize) -> Option<Map<String, Value>> {
    let mut parts = token.split('.');
    let encoded = parts.nth(index)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()
}

/// The token of a kept login, renewed when it is about to end. Shared by all requests of a process, and by processes.
pub(in crate::cli) struct Renewing {
    store: Store,
    url: Url,
    web: Web,
    /// The last one read or made. Held while it is renewed: one request asks, the others wait for the answer.
    current: tokio::sync::Mutex<Arc<Login>>,
}

impl Renewing {
    pub(in crate::cli) fn new(store: Store, login: Login, web: Web) -> Renewing {
        Renewing { store, url: login.url.clone(), web, current: tokio::sync::Mutex::new(Arc::new(login)) }
    }

    /// # Errors
    /// Why there is none, and what to do.
    pub(in crate::cli) async fn token(&self) -> Result<Secret, String> {
        let mut current = self.current.lock().await;
        if !current.lasts(SystemTime::now()) {
            // A refresh token may work once: another process must not use it at the same time.
            let held = self.store.lock().await?;
            let gone = || format!("there is no login any more: wardgate login {}", self.url);
            let mut login = self.store.read(&self.url).await?.ok_or_else(gone)?;
            if !login.lasts(SystemTime::now()) {
                login = login.renewed(&self.web).await?;
                self.store.write(&login).await?;
            }
            drop(held);
            *current = Arc::new(login);
        }
        Ok(current.token())
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
