//! `Mint`: where tokens are got: one exchange per caller's token at a time, remembered, renewed before they expire.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use http::HeaderName;
use http::header::AUTHORIZATION;
use serde_json::Map;
use serde_json::Value;
use tokio::sync::Semaphore;
use url::Url;

use super::Credential;
use super::Error;
use super::Grant;
use super::Invalid;
use super::Minted;
use super::Origin;
use super::Place;
use super::Source;
use super::Why;
use super::answer;
use super::answer::Issued;
use super::assertion;
use super::assertion::Caller;
use super::cache::Cache;
use super::cache::Kept;
use super::cache::Key;
use super::client;
use super::client::Form;
use super::client::Signer;
use super::managed::Managed;
use super::vault::Vault;
use crate::fetch::Fetch;
use crate::fetch::Reach;
use crate::identity::entra::is_id;
use crate::principal::Assertion;
use crate::principal::Kind;
use crate::principal::Principal;
use crate::secret::Secret;

const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

/// Exchanges at once of one backend: more would only make the provider slower.
const EXCHANGES_MAX: usize = 64;

/// Failures in a row until nobody is asked for a while.
const OUTAGE_AFTER: u32 = 5;

pub(super) struct Mint {
    backend: Arc<str>,
    grant: Grant,
    desk: Desk,
    /// By tenant of the caller.
    desks: BTreeMap<String, Desk>,
    discovery: Option<Arc<Source>>,
    cache: Cache,
    places: Semaphore,
    timeout: Duration,
}

impl std::fmt::Debug for Mint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mint").field("backend", &self.backend).field("grant", &self.grant).finish_non_exhaustive()
    }
}

/// One token endpoint, and who we are to it.
struct Desk {
    /// Tells desks apart in the cache.
    name: Arc<str>,
    way: Way,
    outage: Outage,
}

enum Way {
    Endpoint { url: Url, signer: Box<Signer>, fetch: Fetch },
    Machine(Managed),
    Vault(Box<Vault>),
}

impl Mint {
    pub(super) fn new(backend: &Arc<str>, config: &Minted) -> Result<Arc<Mint>, Invalid> {
        let invalid = |what: String| Invalid { backend: backend.clone(), what };
        let ca = config.ca.as_deref().map(|path| {
            std::fs::read(path).map_err(|error| invalid(format!("`{}` cannot be read: {error}", path.display())))
        });
        let ca = ca.transpose()?;
        let mut clients = HashMap::new();
        let mut desk =
            |name: &str, place: &Place| Desk::new(name, place, config, ca.as_deref(), &mut clients).map_err(invalid);
        let home = desk("", &config.place)?;
        let desks = config.tenants.iter().map(|(tenant, place)| Ok((tenant.clone(), desk(tenant, place)?)));
        let desks = desks.collect::<Result<_, Invalid>>()?;
        let discovery = config.discovery.as_deref().map(|config| Source::new(backend, config)).transpose()?;
        Ok(Arc::new(Mint {
            backend: backend.clone(),
            grant: config.grant.clone(),
            desk: home,
            desks,
            discovery,
            cache: Cache::new(),
            places: Semaphore::new(EXCHANGES_MAX),
            timeout: config.timeout,
        }))
    }

    /// Whom a token would be for; `reads`: what it is for changes nothing. Nobody is asked yet.
    ///
    /// # Errors
    /// Where it is clear already that there can be none.
    pub(super) fn lease(self: &Arc<Self>, caller: Option<&Principal>, reads: bool) -> Result<Lease, Why> {
        let read_only = matches!(&self.grant, Grant::Vault(login) if login.narrows(reads));
        let tenant = caller.and_then(Principal::vouched_tenant);
        let desk = tenant.map_or(&self.desk, |tenant| self.desk_of(tenant));
        if !self.grant.is_personal() {
            let name = desk.name.clone();
            let key = Key { owner: name, authority: 0, assertion: None, read_only };
            return Ok(Lease { mint: self.clone(), key, assertion: None });
        }
        let no_token = Why::UserRequired { what: assertion::NO_TOKEN };
        let (Some(caller), Some(sealed)) = (caller, caller.and_then(Principal::assertion)) else {
            return Err(no_token);
        };
        // Better than the provider's word for it (AADSTS7000114), and a round trip earlier.
        if caller.kind == Kind::Service && matches!(self.grant, Grant::OnBehalfOf { .. }) {
            return Err(Why::UserRequired { what: assertion::NO_USER });
        }
        let assertion = Some(Caller::open(sealed).ok_or(no_token)?.digest());
        // The authority is a digest of issuer, tenant, subject, client, actor, scopes, roles, groups: a token with fewer
        // rights is never served with what one with more rights was exchanged for. Nor is one token with what another
        // one was exchanged for: what the provider knows of a session (a second factor, a device) is not in the authority.
        let key = Key { owner: caller.key().clone(), authority: caller.authority(), assertion, read_only };
        Ok(Lease { mint: self.clone(), key, assertion: Some((sealed.clone(), desk.name.clone())) })
    }

    pub(super) async fn own(self: &Arc<Self>, deadline: Instant) -> Result<Option<Credential>, Error> {
        if !self.grant.is_personal() {
            let lease = self.lease(None, true).map_err(|why| self.error(why))?;
            return lease.obtain(deadline).await.map(Some);
        }
        match &self.discovery {
            Some(source) => Box::pin(source.own(deadline)).await,
            None => Ok(None),
        }
    }

    pub(super) fn is_personal(&self) -> bool {
        self.grant.is_personal()
    }

    pub(super) fn clear(&self) -> u64 {
        self.cache.clear() + self.discovery.as_ref().map_or(0, |source| source.clear())
    }

    /// A tenant's own desk, or the one for all. Ids are configured in lower case; not every issuer writes them so.
    fn desk_of(&self, tenant: &str) -> &Desk {
        if self.desks.is_empty() {
            return &self.desk;
        }
        let id = || Some(tenant.to_ascii_lowercase()).filter(|id| is_id(id));
        let own = self.desks.get(tenant).or_else(|| self.desks.get(&id()?));
        own.unwrap_or(&self.desk)
    }

    fn desk(&self, name: &str) -> &Desk {
        self.desks.get(name).unwrap_or(&self.desk)
    }

    fn error(&self, why: Why) -> Error {
        Error { backend: self.backend.clone(), why }
    }

    /// One exchange, and what to remember of it.
    async fn exchange(&self, lease: &Lease, claims: Option<&str>) -> Kept {
        let epoch = self.cache.epoch();
        let caller = lease.caller();
        let began = Instant::now();
        let issued = self.ask(lease, caller, claims).await;
        let left =
            caller.and_then(Caller::expires_at).map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        Kept::new(issued, began, left, epoch)
    }

    async fn ask(&self, lease: &Lease, caller: Option<&Caller>, claims: Option<&str>) -> Result<Issued, Why> {
        let desk = lease.desk();
        if caller.is_some_and(|caller| caller.expires_at().is_some_and(|at| at <= SystemTime::now())) {
            return Err(Why::Expired);
        }
        desk.outage.check()?;
        let issued = tokio::time::timeout(self.timeout, async {
            let _place = self.places.acquire().await;
            match &desk.way {
                Way::Machine(managed) => {
                    let Grant::Managed { scope, .. } = &self.grant else { return Err(Why::Misconfigured) };
                    managed.token(scope).await
                }
                Way::Vault(vault) => vault.token(caller, lease.key.read_only).await,
                Way::Endpoint { url, signer, fetch } => {
                    let mut form = form(&self.grant, caller.map(Caller::token), claims).await?;
                    let header = signer.prove(&mut form, url, SystemTime::now()).await?;
                    let answer = fetch.post(url, form.finish(), header.as_ref(), answer::ANSWER_BYTES_MAX).await;
                    let answer = answer.map_err(|error| {
                        tracing::warn!(backend = %self.backend, %error, "the token endpoint does not answer");
                        answer::silent()
                    })?;
                    answer::read(&answer, &self.grant, &self.backend)
                }
            }
        });
        let issued = issued.await.unwrap_or_else(|_| {
            tracing::warn!(backend = %self.backend, "the identity provider does not answer in time");
            Err(answer::silent())
        });
        desk.outage.learn(&issued);
        issued
    }
}

/// The request for a token, but for who asks. `token`: the caller's, where the grant is personal.
pub(super) async fn form(grant: &Grant, token: Option<&str>, claims: Option<&str>) -> Result<Form, Why> {
    let mut form = Form::new();
    let no_token = Why::UserRequired { what: assertion::NO_TOKEN };
    match grant {
        Grant::OnBehalfOf { scope, .. } => {
            form.add("grant_type", JWT_BEARER);
            form.add("requested_token_use", "on_behalf_of");
            form.add("scope", scope);
            form.add("assertion", token.ok_or(no_token)?);
        }
        Grant::Exchange { audience, resource, scope, actor } => {
            form.add("grant_type", TOKEN_EXCHANGE);
            form.add("subject_token_type", ACCESS_TOKEN);
            form.add("requested_token_type", ACCESS_TOKEN);
            aims(&mut form, audience, resource, scope.as_deref());
            form.add("subject_token", token.ok_or(no_token)?);
            if let Some(path) = actor {
                form.add("actor_token", &client::read(path).await?);
                form.add("actor_token_type", "urn:ietf:params:oauth:token-type:jwt");
            }
        }
        Grant::Client { audience, resource, scope } => {
            form.add("grant_type", "client_credentials");
            aims(&mut form, audience, resource, scope.as_deref());
        }
        Grant::Managed { .. } | Grant::Vault(_) => return Err(Why::Misconfigured),
    }
    match grant {
        Grant::OnBehalfOf { continuous_access: true, .. } => form.add("claims", &capable(claims)),
        _ => claims.into_iter().for_each(|claims| form.add("claims", claims)),
    }
    Ok(form)
}

/// The claims, and that we understand a challenge: Entra then gives tokens that services may refuse at any time (continuous
/// access evaluation), in place of short ones.
pub(super) fn capable(claims: Option<&str>) -> String {
    let mut all: Map<String, Value> = claims.and_then(|claims| serde_json::from_str(claims).ok()).unwrap_or_default();
    let of_token = all.entry("access_token").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(of_token) = of_token {
        of_token.insert("xms_cc".to_owned(), serde_json::json!({ "values": ["cp1"] }));
    }
    Value::Object(all).to_string()
}

fn aims(form: &mut Form, audience: &[String], resource: &[String], scope: Option<&str>) {
    audience.iter().for_each(|value| form.add("audience", value));
    resource.iter().for_each(|value| form.add("resource", value));
    if let Some(scope) = scope {
        form.add("scope", scope);
    }
}

impl Desk {
    /// `clients`: made so far; to make one, the system's certificates are loaded.
    fn new(
        name: &str,
        place: &Place,
        config: &Minted,
        ca: Option<&[u8]>,
        clients: &mut HashMap<Reach, Fetch>,
    ) -> Result<Desk, String> {
        let way = match (&config.grant, &place.token_url, &place.client) {
            (Grant::Managed { identity, .. }, ..) => Way::Machine(Managed::new(identity)?),
            (Grant::Vault(login), ..) => Way::Vault(Box::new(Vault::new(login)?)),
            (_, Some(url), Some(client)) => {
                let reach = Reach::of(url);
                let fetch = match clients.get(&reach) {
                    Some(known) => known.clone(),
                    None => {
                        let made = Fetch::new(reach, ca, config.timeout).map_err(|error| error.to_string())?;
                        clients.entry(reach).or_insert(made).clone()
                    }
                };
                Way::Endpoint { url: url.clone(), signer: Box::new(Signer::new(client)?), fetch }
            }
            _ => return Err("names no token endpoint or no client".to_owned()),
        };
        Ok(Desk { name: name.into(), way, outage: Outage::default() })
    }
}

/// When a provider fails again and again, callers are told at once instead of each waiting for it.
#[derive(Default)]
pub(super) struct Outage {
    failures: AtomicU32,
    until: std::sync::Mutex<Option<Instant>>,
}

impl Outage {
    pub(super) fn check(&self) -> Result<(), Why> {
        let until = self.until.lock().ok().and_then(|until| *until);
        match until.map(|until| until.saturating_duration_since(Instant::now())) {
            Some(left) if !left.is_zero() => Err(Why::Unavailable { retry_after: left }),
            _ => Ok(()),
        }
    }

    pub(super) fn learn<T>(&self, outcome: &Result<T, Why>) {
        let Err(Why::Unavailable { retry_after }) = outcome else {
            return self.failures.store(0, Ordering::Relaxed);
        };
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= OUTAGE_AFTER
            && let Ok(mut until) = self.until.lock()
        {
            *until = Some(Instant::now() + *retry_after);
        }
    }
}

/// Whom a token is for, and where it comes from: enough to get it again.
#[derive(Clone)]
pub(super) struct Lease {
    mint: Arc<Mint>,
    key: Key,
    /// The caller's sealed token and the desk it goes to; `None` for the gateway itself.
    assertion: Option<(Assertion, Arc<str>)>,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("backend", &self.mint.backend).finish_non_exhaustive()
    }
}

impl Lease {
    pub(super) fn is_personal(&self) -> bool {
        self.assertion.is_some()
    }

    pub(super) fn identity(&self) -> [u8; 32] {
        // Without the assertion: who comes with a fresh token of the same rights goes on with the same session.
        super::identity_print(&self.mint.backend, &self.key.owner, self.key.authority)
    }

    pub(super) async fn own(&self, deadline: Instant) -> Result<Option<Credential>, Error> {
        self.mint.own(deadline).await
    }

    fn caller(&self) -> Option<&Caller> {
        self.assertion.as_ref().and_then(|(sealed, _)| Caller::open(sealed))
    }

    fn desk(&self) -> &Desk {
        self.mint.desk(self.assertion.as_ref().map_or(&self.key.owner, |(_, desk)| desk))
    }

    /// The token that is remembered, or one from an exchange. Single flight.
    pub(super) async fn obtain(self, deadline: Instant) -> Result<Credential, Error> {
        if let Some(kept) = self.mint.cache.get(&self.key).await {
            if kept.wants_renewal() {
                self.clone().renew_early(kept.clone());
            }
            return self.credential(&kept);
        }
        self.fresh(None, None, deadline).await
    }

    /// Another token than the refused one; somebody else may have got it already.
    pub(super) async fn renewed(
        self,
        refused: &Arc<(HeaderName, Secret)>,
        claims: Option<&str>,
        deadline: Instant,
    ) -> Result<Credential, Error> {
        let claims = claims.and_then(answer::claims);
        self.fresh(Some(refused), claims.as_deref(), deadline).await
    }

    /// Boxed: rare, and deep.
    fn fresh<'a>(
        &'a self,
        refused: Option<&'a Arc<(HeaderName, Secret)>>,
        claims: Option<&'a str>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Credential, Error>> {
        Box::pin(async move {
            let exchange = || self.mint.exchange(self, claims);
            let work = self.mint.cache.or_exchange(&self.key, refused, exchange);
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, work).await {
                Ok(kept) => self.credential(&kept),
                Err(_) => Err(self.mint.error(answer::silent())),
            }
        })
    }

    fn credential(&self, kept: &Kept) -> Result<Credential, Error> {
        let header = kept.header().map_err(|why| self.mint.error(why))?;
        Ok(Credential { header: Some(header), origin: Origin::Leased(self.clone()) })
    }

    /// While the old one is still good nobody waits for the new one.
    fn renew_early(self, kept: Arc<Kept>) {
        if !kept.begin_renewal() {
            return;
        }
        tokio::spawn(async move {
            let fresh = self.mint.exchange(&self, None).await;
            if fresh.header().is_ok() {
                self.mint.cache.replace(&self.key, &kept, fresh).await;
            } else {
                // The old one is used until it expires; then the failure is told.
                kept.end_renewal();
            }
        });
    }
}

/// A token in the header it is sent in.
pub(super) fn header(token: &Secret) -> Arc<(HeaderName, Secret)> {
    Arc::new((AUTHORIZATION, Secret::new(format!("Bearer {}", token.expose()))))
}
