//! With what do we act upstream? A `Credential` is obtained from a `Permit`, never from a request.
//!
//! Three ways ([`Config`]): a fixed header; a token that the gateway gets for each caller (on behalf of, by exchange) or
//! for itself; or, for a sidecar's own server only, the caller's token as it came. A caller is never served with the
//! gateway's own identity because theirs could not be had: what fails, fails ([`Why`]).

mod answer;
mod applicant;
mod assertion;
mod cache;
mod client;
mod config;
mod managed;
mod mint;
#[cfg(test)]
mod tests;
pub mod vault;

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use http::HeaderName;
use http::header::AUTHORIZATION;
use ring::digest;

use crate::catalog::Effect;
use crate::policy::Permit;
use crate::principal::Principal;
use crate::secret::Secret;
use assertion::Caller;
use mint::Lease;
use mint::Mint;

pub use answer::claims;
pub use applicant::Applicant;
pub use assertion::assertion;
pub use config::Algorithm;
pub use config::Application;
pub use config::Client;
pub use config::Config;
pub use config::Grant;
pub use config::Identity;
pub use config::Minted;
pub use config::Place;
pub use config::Proof;

/// What opens the upstream. Not `Clone`: obtained per call.
#[derive(Debug)]
pub struct Credential {
    header: Option<Arc<(HeaderName, Secret)>>,
    origin: Origin,
}

/// Whose a credential is, and whether there can be another one.
#[derive(Clone, Debug)]
enum Origin {
    /// The gateway's, as configured.
    Fixed,
    /// The caller's own token: only they have another one. With the print of whose it is.
    Forwarded([u8; 32]),
    Leased(Lease),
}

impl Credential {
    fn fixed(header: Option<Arc<(HeaderName, Secret)>>) -> Credential {
        Credential { header, origin: Origin::Fixed }
    }

    /// The header to send, if any.
    pub fn header(&self) -> Option<&(HeaderName, Secret)> {
        self.header.as_deref()
    }

    /// Is it one caller's, and no other's?
    pub fn is_personal(&self) -> bool {
        match &self.origin {
            Origin::Fixed => false,
            Origin::Forwarded(_) => true,
            Origin::Leased(lease) => lease.is_personal(),
        }
    }

    /// Names whose it is rather than what it is: the same before and after it was renewed. `None` for a fixed one.
    pub fn identity(&self) -> Option<[u8; 32]> {
        match &self.origin {
            Origin::Fixed => None,
            Origin::Forwarded(print) => Some(*print),
            Origin::Leased(lease) => Some(lease.identity()),
        }
    }

    /// A second one like it, to be renewed if the upstream refuses the first. `None`: renewing would change nothing.
    pub fn spare(&self) -> Option<Credential> {
        match &self.origin {
            Origin::Leased(_) => Some(Credential { header: self.header.clone(), origin: self.origin.clone() }),
            Origin::Fixed | Origin::Forwarded(_) => None,
        }
    }

    /// The upstream refused it: forget the token and get another one. `claims`: what the upstream asks for (JSON).
    ///
    /// # Errors
    /// When there is none to be had.
    pub async fn renewed(self, claims: Option<&str>, deadline: Instant) -> Result<Credential, Error> {
        match (self.header, self.origin) {
            (Some(refused), Origin::Leased(lease)) => lease.renewed(&refused, claims, deadline).await,
            (header, origin) => Ok(Credential { header, origin }),
        }
    }

    /// With what the backend's catalog is asked for when this call finds it old: the gateway's own credential where
    /// there is one, else this caller's.
    pub fn for_catalog(&self) -> impl Future<Output = Result<Credential, Error>> + Send + 'static {
        const OWN_TIMEOUT: Duration = Duration::from_secs(10);
        let (header, origin) = (self.header.clone(), self.origin.clone());
        async move {
            let own = match &origin {
                Origin::Leased(lease) => lease.own(Instant::now() + OWN_TIMEOUT).await?,
                Origin::Fixed | Origin::Forwarded(_) => None,
            };
            Ok(own.unwrap_or(Credential { header, origin }))
        }
    }
}

/// Why there is no credential for a call.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("backend `{backend}`: {why}")]
pub struct Error {
    pub backend: Arc<str>,
    pub why: Why,
}

/// What stands between a caller and a credential; each is something that somebody can do something about.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Why {
    /// The provider does not let this user use that.
    #[error("the identity provider denies this user the exchange")]
    Denied,
    /// The caller's token expired, if only just now.
    #[error("the caller's token has expired")]
    Expired,
    /// The user must sign in again, satisfying the claims (JSON) if there are some.
    #[error("the user must sign in again")]
    Interaction { claims: Option<Arc<str>> },
    /// The gateway's own client, its proof, or what it asks for is not accepted.
    #[error("the identity provider does not accept the gateway's client or what it asks for")]
    Misconfigured,
    /// Nobody consented to the gateway acting for this user.
    #[error("the consent for the gateway to act for this user is missing")]
    NoConsent,
    /// The token is good for the gateway and not for an exchange.
    #[error("the identity provider does not accept the caller's token for an exchange")]
    NotExchangeable,
    #[error("the identity provider does not answer")]
    Unavailable { retry_after: Duration },
    /// The call is not by a user with a token.
    #[error("{what}")]
    UserRequired { what: &'static str },
}

/// Why credentials cannot be had as configured. Found at start and at reload.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("backend `{backend}`: credential: {what}")]
pub struct Invalid {
    pub backend: Arc<str>,
    pub what: String,
}

/// Where one backend's credentials come from; with the tokens it has got so far.
#[derive(Debug)]
pub struct Source {
    backend: Arc<str>,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Fixed(Option<Arc<(HeaderName, Secret)>>),
    Forward,
    Minted(Arc<Mint>),
}

impl Source {
    /// Reads and checks keys and CA files; connects to nothing.
    ///
    /// # Errors
    /// [`Invalid`].
    pub fn new(backend: &Arc<str>, config: &Config) -> Result<Arc<Source>, Invalid> {
        let way = match config {
            Config::None | Config::Static { .. } => Way::Fixed(own(config).header),
            Config::Forward { .. } => Way::Forward,
            Config::Minted(minted) => Way::Minted(Mint::new(backend, minted)?),
        };
        Ok(Arc::new(Source { backend: backend.clone(), way }))
    }

    /// No credential at all.
    pub fn none() -> Arc<Source> {
        Arc::new(Source { backend: "".into(), way: Way::Fixed(None) })
    }

    /// Does each caller have a credential of their own?
    pub fn is_personal(&self) -> bool {
        match &self.way {
            Way::Fixed(_) => false,
            Way::Forward => true,
            Way::Minted(mint) => mint.is_personal(),
        }
    }

    /// The credential for a permitted call.
    ///
    /// # Errors
    /// When it cannot be had; there is no other then.
    pub async fn obtain(&self, permit: &Permit, deadline: Instant) -> Result<Credential, Error> {
        match &self.way {
            Way::Fixed(header) => Ok(Credential::fixed(header.clone())),
            Way::Forward => self.forwarded(permit),
            Way::Minted(mint) => {
                let reads = permit.call().effect <= Effect::ReadSensitive;
                mint.lease(permit.caller(), reads).map_err(|why| self.error(why))?.obtain(deadline).await
            }
        }
    }

    /// The gateway's own credential: discovery only. `None`: it has none here, only callers have.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn own(&self, deadline: Instant) -> Result<Option<Credential>, Error> {
        match &self.way {
            Way::Fixed(header) => Ok(Some(Credential::fixed(header.clone()))),
            Way::Forward => Ok(None),
            Way::Minted(mint) => mint.own(deadline).await,
        }
    }

    /// Forgets every token it has got. Returns how many there were, roughly.
    pub fn clear(&self) -> u64 {
        match &self.way {
            Way::Fixed(_) | Way::Forward => 0,
            Way::Minted(mint) => mint.clear(),
        }
    }

    fn forwarded(&self, permit: &Permit) -> Result<Credential, Error> {
        let caller = permit.caller();
        let token = caller.and_then(Principal::assertion).and_then(Caller::open);
        let (Some(caller), Some(token)) = (caller, token) else {
            return Err(self.error(Why::UserRequired { what: assertion::NO_TOKEN }));
        };
        let header = Some(Arc::new((AUTHORIZATION, token.bearer())));
        let print = identity_print(&self.backend, caller.key(), caller.authority());
        Ok(Credential { header, origin: Origin::Forwarded(print) })
    }

    fn error(&self, why: Why) -> Error {
        Error { backend: self.backend.clone(), why }
    }
}

/// The credential that needs nobody to be asked: health checks only. Nothing where there is none of that kind.
pub fn own(config: &Config) -> Credential {
    let header = match config {
        Config::Static { header, value } => Some(Arc::new((header.clone(), value.clone()))),
        Config::None | Config::Forward { .. } | Config::Minted(_) => None,
    };
    Credential::fixed(header)
}

/// Names whose a credential is at a backend, with which rights.
fn identity_print(backend: &str, owner: &str, authority: u128) -> [u8; 32] {
    let mut digest = digest::Context::new(&digest::SHA256);
    digest.update(backend.as_bytes());
    digest.update(b"\0");
    digest.update(owner.as_bytes());
    digest.update(&authority.to_le_bytes());
    let mut print = [0; 32];
    print.iter_mut().zip(digest.finish().as_ref()).for_each(|(to, from)| *to = *from);
    print
}
