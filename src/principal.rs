//! `Principal`: the verified caller, and everything policy may know about them.

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

/// What a verifier has established. Only [`Principal::verified`] turns it into a `Principal`.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    pub kind: Kind,
    /// `sub`, key name, or certificate identity; unique within `issuer`.
    pub subject: String,
    /// Token issuer; `api-key`, `mtls` or `anonymous` for the other methods.
    pub issuer: String,
    /// Who acts for the subject (RFC 8693 `act.sub`).
    pub actor: Option<String>,
    /// OAuth client (`azp`, `client_id`, `appid`).
    pub client: Option<String>,
    pub tenant: Option<String>,
    pub scopes: BTreeSet<String>,
    pub roles: BTreeSet<String>,
    pub groups: BTreeSet<String>,
    /// The issuer left groups out (Entra's overage): `groups` is not all of them, and being absent from it means nothing.
    pub groups_unknown: bool,
    /// An account of another organisation that was invited into this tenant.
    pub guest: bool,
    /// How strongly the issuer vouches for the login (OpenID Connect `acr`).
    pub acr: Option<String>,
    /// By which means they logged in (RFC 8176 `amr`): `pwd`, `mfa`, `hwk`, …
    pub amr: BTreeSet<String>,
    /// When they logged in (OpenID Connect `auth_time`), not when the token was issued.
    pub auth_time: Option<SystemTime>,
    pub method: Method,
    /// The connection carried a verified client certificate, whatever method named the principal.
    pub mtls: bool,
    pub expires_at: Option<SystemTime>,
}

#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Kind {
    /// Somebody acts for the subject (RFC 8693 `act`).
    Agent,
    /// An application on its own behalf.
    Service,
    #[default]
    User,
}

impl Kind {
    /// The Cedar entity type.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Agent => "Agent",
            Kind::Service => "Service",
            Kind::User => "User",
        }
    }
}

/// How the caller proved who they are.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Method {
    /// Only where no identity is configured at all (a loopback sidecar).
    #[default]
    Anonymous,
    ApiKey,
    Bearer,
    Certificate,
    /// A token, and for each request a proof by the key that it is bound to (RFC 9449).
    Dpop,
}

impl Method {
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Anonymous => "anonymous",
            Method::ApiKey => "api_key",
            Method::Bearer => "bearer",
            Method::Certificate => "certificate",
            Method::Dpop => "dpop",
        }
    }
}

/// The verified caller. Made once per verified credential, shared by reference.
#[derive(Clone, Debug)]
pub struct Principal {
    claims: Arc<Claims>,
    key: Arc<str>,
    authority: u128,
    assertion: Option<Assertion>,
    /// The key without the configured tenant.
    name: Arc<str>,
    /// The configured tenant it is in. `claims.tenant` is only what the credential says.
    home: Option<Arc<str>>,
    /// What the credential says of its tenant is said by somebody who may speak for that tenant.
    vouched: bool,
}

/// The caller's own token, sealed: it can be opened only by the room that can name the type of what is inside, and that
/// type is private to `credentials`. It has no text form and is wiped when the last principal of the token is gone.
#[derive(Clone)]
pub struct Assertion(Arc<dyn Any + Send + Sync>);

impl Assertion {
    pub fn seal<T: Any + Send + Sync>(inside: T) -> Assertion {
        Assertion(Arc::new(inside))
    }

    pub fn open<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl fmt::Debug for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Assertion(***)")
    }
}

impl Principal {
    /// INVARIANT: called by `identity` alone (held by `tests/tidy.rs`), after verification.
    pub fn verified(claims: Claims) -> Self {
        let key = format!("{}|{}|{}", claims.issuer, claims.tenant.as_deref().unwrap_or(""), claims.subject);
        let authority = authority(&claims);
        let key: Arc<str> = key.into();
        Principal {
            claims: Arc::new(claims),
            name: key.clone(),
            key,
            authority,
            assertion: None,
            home: None,
            vouched: true,
        }
    }

    /// The same caller as one of this configured tenant: what is kept, counted or decided for it serves no other tenant.
    #[must_use]
    pub fn at_home(&self, tenant: &Arc<str>) -> Self {
        // No issuer has a control character: no caller without a tenant has such a key.
        let key = format!("\u{1f}{tenant}\u{1f}{}", self.name);
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        digest.update(&self.authority.to_le_bytes());
        digest.update(tenant.as_bytes());
        let authority = half(&digest.finish());
        Principal { key: key.into(), authority, home: Some(tenant.clone()), ..self.clone() }
    }

    /// The same caller of an issuer that is one tenant's own: it can name any tenant, and speaks for no other.
    #[must_use]
    pub fn unvouched(self) -> Self {
        Principal { vouched: false, ..self }
    }

    /// The tenant that the credential names, for what is chosen by it.
    pub fn vouched_tenant(&self) -> Option<&str> {
        self.tenant.as_deref().filter(|_| self.vouched)
    }

    /// The configured tenant it is in, if there is one: a name from a list that the operator wrote.
    pub fn home(&self) -> Option<&Arc<str>> {
        self.home.as_ref()
    }

    /// Whose it is: the configured tenant, and where there is none, what the credential says.
    pub fn tenant_name(&self) -> Option<&str> {
        self.home.as_deref().or(self.tenant.as_deref())
    }

    /// Somebody who is only asked about: for the workbench, which answers what a policy would say. Nothing is served to
    /// them.
    ///
    /// INVARIANT: called by `cli` alone (held by `tests/tidy.rs`).
    pub fn supposed(claims: Claims) -> Self {
        Self::verified(claims)
    }

    /// The same, with the token that proved it: where a backend is to act on behalf of callers.
    #[must_use]
    pub fn bearing(self, assertion: Assertion) -> Self {
        Principal { assertion: Some(assertion), ..self }
    }

    /// What `credentials` may exchange; `None` for callers that came without a token, or where no backend needs it.
    pub fn assertion(&self) -> Option<&Assertion> {
        self.assertion.as_ref()
    }

    /// issuer, tenant and subject, as policies name the principal.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The same with the configured tenant: names the principal in limits, sessions and caches.
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// In whose line it waits where lines are fair, and with whom its counts stand: its tenant, or without one itself.
    pub fn share(&self) -> &str {
        self.tenant_name().unwrap_or(&self.key)
    }

    /// Digest of everything policy can see: two principals with the same authority get the same decisions.
    pub fn authority(&self) -> u128 {
        self.authority
    }

    pub fn expires_at(&self) -> Option<SystemTime> {
        self.claims.expires_at
    }
}

#[cfg(test)]
impl Principal {
    /// A principal that nobody verified: for tests of the rooms behind identity.
    pub fn for_tests(claims: Claims) -> Self {
        Self::verified(claims)
    }
}

impl std::ops::Deref for Principal {
    type Target = Claims;

    fn deref(&self) -> &Claims {
        &self.claims
    }
}

fn authority(claims: &Claims) -> u128 {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    let mut field = |value: &str| {
        digest.update(&(value.len() as u64).to_le_bytes());
        digest.update(value.as_bytes());
    };
    field(claims.kind.as_str());
    field(claims.method.as_str());
    for (flag, name) in [(claims.mtls, "mtls"), (claims.groups_unknown, "groups_unknown"), (claims.guest, "guest")] {
        field(if flag { name } else { "" });
    }
    for value in [
        Some(&claims.subject),
        Some(&claims.issuer),
        claims.actor.as_ref(),
        claims.client.as_ref(),
        claims.tenant.as_ref(),
        claims.acr.as_ref(),
    ] {
        field(value.map_or("\u{0}", String::as_str));
    }
    for set in [&claims.scopes, &claims.roles, &claims.groups, &claims.amr] {
        field(&set.len().to_string());
        set.iter().for_each(|value| field(value));
    }
    let login = claims.auth_time.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    field(&login.map_or_else(String::new, |since| since.as_millis().to_string()));
    half(&digest.finish())
}

fn half(digest: &ring::digest::Digest) -> u128 {
    let mut half = [0u8; 16];
    half.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    u128::from_le_bytes(half)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_caller_in_two_tenants_shares_neither_key_nor_decisions() {
        let claims = Claims { subject: "ann".into(), issuer: "https://idp".into(), ..Claims::default() };
        let nowhere = Principal::for_tests(claims);
        let (one, other) = (nowhere.at_home(&"one".into()), nowhere.at_home(&"other".into()));
        let all = [&nowhere, &one, &other];
        for (index, left) in all.iter().enumerate() {
            for right in all.iter().skip(index + 1) {
                assert_ne!(left.key(), right.key());
                assert_ne!(left.authority(), right.authority());
            }
        }
        assert_eq!(one.key(), nowhere.at_home(&"one".into()).key());
        assert_eq!((nowhere.tenant_name(), one.tenant_name()), (None, Some("one")));
    }

    #[test]
    fn the_configured_tenant_stands_before_what_the_credential_says() {
        let claims = Claims { tenant: Some("5f0f".into()), ..Claims::default() };
        let principal = Principal::for_tests(claims);
        assert_eq!(principal.tenant_name(), Some("5f0f"));
        let principal = principal.at_home(&"contoso".into());
        assert_eq!((principal.tenant_name(), principal.tenant.as_deref()), (Some("contoso"), Some("5f0f")));
    }
}
