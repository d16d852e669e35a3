//! Logging in to HashiCorp Vault (or OpenBao): tokens of Vault for the gateway or for each caller, and children that only read.

use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use http::HeaderName;
use http::Method;
use http::header::AUTHORIZATION;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::Why;
use super::answer;
use super::answer::Issued;
use super::assertion;
use super::assertion::Caller;
use super::client;
use crate::fetch::origin;
use crate::fetch::origin::Ask;
use crate::fetch::origin::Origin;
use crate::fetch::origin::Path;
use crate::secret::Secret;

const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
const REQUEST: HeaderName = HeaderName::from_static("x-vault-request");

/// Of a token that never expires, or of which nothing can be found out: looked at again after this.
const LIFETIME_UNSAID: Duration = Duration::from_secs(60 * 60);

/// A child lives no longer; the next one is made in time.
const CHILD_TTL: Duration = Duration::from_secs(60 * 60);

/// A token that is used to make others must live a little longer still.
const PARENT_MARGIN: Duration = Duration::from_secs(10);

/// How the gateway gets its tokens of one Vault.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    pub origin: origin::Config,
    /// Vault Enterprise and OpenBao: `X-Vault-Namespace`.
    pub namespace: Option<String>,
    pub login: Login,
    /// With what calls that only read are made. `None`: with the login's own token.
    pub read_only: Option<ReadOnly>,
    /// May there be tokens that are good for more than reading? Not where the ceiling is `read-only`.
    pub writes: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Login {
    AppRole {
        mount: String,
        role_id: Secret,
        secret_id: Secret,
    },
    /// The client certificate of the connection.
    Certificate {
        mount: String,
        role: Option<String>,
    },
    /// Each caller's own token is the proof: Vault's policies are for the person, not for the gateway.
    Jwt {
        mount: String,
        role: Option<String>,
    },
    /// The token of the pod's service account, read each time.
    Kubernetes {
        mount: String,
        role: String,
        token: PathBuf,
    },
    Token(Secret),
}

/// A token that cannot write, so that a mistake of ours cannot either.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ReadOnly {
    /// A child token with this policy and no other.
    Child {
        policy: String,
        /// What the gateway writes into the policy; `None`: the operator has written it.
        text: Option<String>,
        /// A token role to make it by, where the login's own policies do not include this one.
        token_role: Option<String>,
    },
    /// The same login with another role.
    Role(String),
}

impl Config {
    pub(super) fn is_personal(&self) -> bool {
        matches!(self.login, Login::Jwt { .. })
    }

    /// Is this call to be made with a token that only reads?
    pub(super) fn narrows(&self, reads: bool) -> bool {
        self.read_only.is_some() && (reads || !self.writes)
    }

    /// Feeds every secret in it to `take`.
    pub(super) fn secrets(&self, take: &mut dyn FnMut(&[u8])) {
        match &self.login {
            Login::AppRole { role_id, secret_id, .. } => {
                take(role_id.expose().as_bytes());
                take(secret_id.expose().as_bytes());
            }
            Login::Token(token) => take(token.expose().as_bytes()),
            Login::Certificate { .. } | Login::Jwt { .. } | Login::Kubernetes { .. } => {}
        }
        self.origin.files().for_each(|path| take(&std::fs::read(path).unwrap_or_default()));
    }
}

/// A token of Vault.
#[derive(Clone)]
struct Held {
    token: Secret,
    lifetime: Duration,
    renewable: bool,
    since: Instant,
}

impl Held {
    /// Two thirds of its life are left to be used before another one is got.
    fn issued(&self) -> Issued {
        let left = self.lifetime.saturating_sub(self.since.elapsed());
        Issued { token: self.token.clone(), lifetime: left, renew_in: Some(left.mul_f64(2.0 / 3.0)) }
    }

    fn lasts(&self) -> bool {
        self.since.elapsed() + PARENT_MARGIN < self.lifetime
    }
}

/// One Vault, and who we are to it.
pub(super) struct Vault {
    config: Config,
    origin: Origin,
    /// The gateway's own token; of callers nothing is kept here.
    own: Mutex<Option<Held>>,
}

#[derive(Deserialize)]
struct Answer {
    auth: Option<Auth>,
    data: Option<Looked>,
}

#[derive(Deserialize)]
struct Auth {
    client_token: String,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
    #[serde(default)]
    policies: Vec<String>,
}

/// `auth/token/lookup-self`.
#[derive(Deserialize)]
struct Looked {
    #[serde(default)]
    ttl: u64,
    #[serde(default)]
    renewable: bool,
}

impl Vault {
    pub(super) fn new(config: &Config) -> Result<Vault, String> {
        let origin = Origin::new(&config.origin).map_err(|error| error.to_string())?;
        Ok(Vault { config: config.clone(), origin, own: Mutex::new(None) })
    }

    /// A token that is good for a while: for the caller where the login is personal, else the gateway's own.
    pub(super) async fn token(&self, caller: Option<&Caller>, read_only: bool) -> Result<Issued, Why> {
        match (&self.config.read_only, read_only) {
            (Some(ReadOnly::Child { .. }), true) => {
                let child = self.child(&self.parent(caller, false).await?).await;
                match child {
                    // The parent was revoked behind our back.
                    Err(Refusal { status: 403, .. }) if !self.config.is_personal() => {
                        let child = self.child(&self.parent(caller, true).await?).await;
                        child.map_err(|refusal| self.why(refusal))
                    }
                    child => child.map_err(|refusal| self.why(refusal)),
                }
                .map(|held| held.issued())
            }
            (Some(ReadOnly::Role(role)), true) => self.login(caller, Some(role)).await.map(|held| held.issued()),
            (None, true) | (_, false) if self.config.is_personal() => {
                self.login(caller, None).await.map(|held| held.issued())
            }
            (None, true) | (_, false) => self.renewed().await.map(|held| held.issued()),
        }
    }

    /// What children are made with.
    async fn parent(&self, caller: Option<&Caller>, anew: bool) -> Result<Held, Why> {
        if self.config.is_personal() {
            return self.login(caller, None).await;
        }
        if !anew && let Some(held) = self.own.lock().await.as_ref().filter(|held| held.lasts()) {
            return Ok(held.clone());
        }
        self.renewed().await
    }

    /// The gateway's own token, with its life begun anew; another one where that cannot be.
    async fn renewed(&self) -> Result<Held, Why> {
        let mut own = self.own.lock().await;
        if let Some(held) = own.as_ref().filter(|held| held.renewable) {
            match self
                .ask(Method::POST, &Path::fixed("v1/auth/token/renew-self"), Some(&held.token), Some(&json!({})))
                .await
            {
                Ok(Answer { auth: Some(auth), .. }) => {
                    let renewed = held_of(auth);
                    // At the end of its longest life a renewal adds next to nothing.
                    if renewed.lifetime > held.lifetime / 4 {
                        *own = Some(renewed.clone());
                        return Ok(renewed);
                    }
                }
                Ok(_) => {}
                Err(refusal @ Refusal { status: 429 | 500.., .. }) => return Err(self.why(refusal)),
                Err(_) => {}
            }
        }
        *own = None;
        let held = match &self.config.login {
            Login::Token(token) => self.looked_up(token).await?,
            _ => self.login(None, None).await?,
        };
        *own = Some(held.clone());
        Ok(held)
    }

    /// A token that was given to us: how long is it good for?
    async fn looked_up(&self, token: &Secret) -> Result<Held, Why> {
        let looked = self.ask(Method::GET, &Path::fixed("v1/auth/token/lookup-self"), Some(token), None).await;
        let (ttl, renewable) = match looked {
            Ok(Answer { data: Some(looked), .. }) => (looked.ttl, looked.renewable),
            // It may be good for other things than this; what it is good for, calls will show.
            Ok(_) | Err(Refusal { status: 400..=499, retry_after: None, .. }) => (0, false),
            Err(refusal) => return Err(self.why(refusal)),
        };
        let lifetime = if ttl == 0 { LIFETIME_UNSAID } else { Duration::from_secs(ttl) };
        Ok(Held { token: token.clone(), lifetime, renewable: renewable && ttl > 0, since: Instant::now() })
    }

    async fn login(&self, caller: Option<&Caller>, other_role: Option<&str>) -> Result<Held, Why> {
        let (mount, body) = match &self.config.login {
            Login::AppRole { mount, role_id, secret_id } => {
                (mount, json!({ "role_id": role_id.expose(), "secret_id": secret_id.expose() }))
            }
            Login::Certificate { mount, role } => match other_role.or(role.as_deref()) {
                Some(role) => (mount, json!({ "name": role })),
                None => (mount, json!({})),
            },
            Login::Jwt { mount, role } => {
                let caller = caller.ok_or(Why::UserRequired { what: assertion::NO_TOKEN })?;
                let mut body = json!({ "jwt": caller.token() });
                if let (Some(role), Some(members)) = (other_role.or(role.as_deref()), body.as_object_mut()) {
                    members.insert("role".to_owned(), role.into());
                }
                (mount, body)
            }
            Login::Kubernetes { mount, role, token } => {
                let jwt = client::read(token).await?;
                (mount, json!({ "role": other_role.unwrap_or(role), "jwt": jwt.as_str() }))
            }
            Login::Token(token) => return self.looked_up(token).await,
        };
        let path = Path::fixed("v1/auth").through(mount).at("login");
        match self.ask(Method::POST, &path, None, Some(&body)).await {
            Ok(Answer { auth: Some(auth), .. }) => Ok(held_of(auth)),
            Ok(_) => {
                tracing::error!("vault: the answer to the login has no token");
                Err(answer::silent())
            }
            Err(refusal) => Err(self.why(refusal)),
        }
    }

    /// A token with one policy. INVARIANT: there is no falling back to the parent.
    async fn child(&self, parent: &Held) -> Result<Held, Refusal> {
        let Some(ReadOnly::Child { policy, text, token_role }) = &self.config.read_only else {
            return Err(Refusal { status: 400, retry_after: None });
        };
        if let Some(text) = text {
            let path = Path::fixed("v1/sys/policies/acl").at(policy);
            match self.ask_any(Method::PUT, &path, Some(&parent.token), Some(&json!({ "policy": text }))).await {
                Ok(_) => {}
                // Then the operator wrote it, or the child will have no rights at all.
                Err(Refusal { status: 403, .. }) => {
                    tracing::debug!(policy, "vault: the gateway may not write the policy of its read-only tokens");
                }
                Err(refusal) => return Err(refusal),
            }
        }
        let path = Path::fixed("v1/auth/token/create");
        let path = token_role.iter().fold(path, |path, role| path.at(role));
        let body = json!({
            "policies": [policy],
            "no_default_policy": true,
            "renewable": false,
            "ttl": format!("{}s", CHILD_TTL.as_secs()),
            "display_name": "wardgate-read-only",
        });
        let made = self.ask(Method::POST, &path, Some(&parent.token), Some(&body)).await?;
        let auth = made.auth.ok_or(Refusal { status: 502, retry_after: None })?;
        if auth.policies.iter().any(|has| has != policy) || auth.policies.is_empty() {
            tracing::error!(policy, "vault: the child token has other policies than the one asked for; it is not used");
            return Err(Refusal { status: 400, retry_after: None });
        }
        Ok(held_of(auth))
    }

    async fn ask(
        &self,
        method: Method,
        path: &Path,
        token: Option<&Secret>,
        body: Option<&Value>,
    ) -> Result<Answer, Refusal> {
        let text = self.ask_any(method, path, token, body).await?;
        serde_json::from_slice(&text).map_err(|_| Refusal { status: 502, retry_after: None })
    }

    async fn ask_any(
        &self,
        method: Method,
        path: &Path,
        token: Option<&Secret>,
        body: Option<&Value>,
    ) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        let mut headers = vec![(REQUEST, "true")];
        headers.extend(self.config.namespace.as_deref().map(|namespace| (NAMESPACE, namespace)));
        let bearer = token.map(|token| Secret::new(format!("Bearer {}", token.expose())));
        let body = body.map(|body| Zeroizing::new(body.to_string()));
        let deadline = Instant::now() + self.config.origin.timeout;
        let secret = bearer.as_ref().map(|bearer| (AUTHORIZATION, bearer));
        let answer = self.origin.send(Ask { method, path, headers: &headers, secret, body, deadline }).await;
        let answer = answer.map_err(|error| {
            tracing::warn!(%error, "vault does not answer");
            Refusal { status: 503, retry_after: None }
        })?;
        match answer.status {
            200..=299 => Ok(answer.body),
            status => {
                tracing::warn!(status, path = path.as_str(), "vault refuses the gateway's login or token");
                Err(Refusal { status, retry_after: answer.retry_after })
            }
        }
    }

    fn why(&self, refusal: Refusal) -> Why {
        match refusal.status {
            429 | 500.. => match refusal.retry_after {
                Some(retry_after) => Why::Unavailable { retry_after: retry_after.min(Duration::from_secs(60)) },
                None => answer::silent(),
            },
            // Vault's word for a token whose claims the role does not take is 400.
            400 | 403 if self.config.is_personal() => Why::Denied,
            _ if self.config.is_personal() => Why::NotExchangeable,
            _ => Why::Misconfigured,
        }
    }
}

/// Vault said no, with this status.
struct Refusal {
    status: u16,
    retry_after: Option<Duration>,
}

fn held_of(auth: Auth) -> Held {
    let lifetime = if auth.lease_duration == 0 { LIFETIME_UNSAID } else { Duration::from_secs(auth.lease_duration) };
    let renewable = auth.renewable && auth.lease_duration > 0;
    Held { token: Secret::new(auth.client_token), lifetime, renewable, since: Instant::now() }
}
