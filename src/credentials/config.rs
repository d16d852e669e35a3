//! What the room is configured with: the kinds of credential, and how the gateway proves itself to a token endpoint.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use url::Url;

use super::vault;
use crate::secret::Secret;

/// How a backend is authenticated to.
#[derive(Clone, Debug, Default)]
pub enum Config {
    #[default]
    None,
    /// A header with a fixed value, for example `Authorization: Bearer …` from a file.
    Static { header: HeaderName, value: Secret },
    /// The caller's own token goes on: a sidecar's own server only, on this machine, with the same audience.
    Forward { audience: String },
    /// A token that the gateway gets.
    Minted(Box<Minted>),
}

impl Config {
    /// Do callers' tokens have to be kept for it?
    pub fn needs_callers(&self) -> bool {
        match self {
            Config::None | Config::Static { .. } => false,
            Config::Forward { .. } => true,
            Config::Minted(minted) => minted.grant.is_personal(),
        }
    }

    /// Feeds every secret in it to `take`: what `Debug` masks still makes two configurations differ.
    pub fn secrets(&self, take: &mut dyn FnMut(&[u8])) {
        match self {
            Config::None | Config::Forward { .. } => {}
            Config::Static { value, .. } => take(value.expose().as_bytes()),
            Config::Minted(minted) => {
                let places = [&minted.place].into_iter().chain(minted.tenants.values());
                for client in places.filter_map(|place| place.client.as_ref()) {
                    match &client.proof {
                        Proof::Basic(secret) | Proof::Post(secret) => take(secret.expose().as_bytes()),
                        Proof::Signed { key, .. } => take(key.expose().as_bytes()),
                        Proof::File(_) | Proof::Managed(_) => {}
                    }
                }
                if let Grant::Vault(login) = &minted.grant {
                    login.secrets(take);
                }
                if let Some(path) = &minted.ca {
                    take(&std::fs::read(path).unwrap_or_default());
                }
                if let Some(discovery) = &minted.discovery {
                    discovery.secrets(take);
                }
            }
        }
    }
}

/// A token from an identity provider.
#[derive(Clone, Debug)]
pub struct Minted {
    pub grant: Grant,
    pub place: Place,
    /// For callers of these tenants, another place.
    pub tenants: BTreeMap<String, Place>,
    /// With what the catalog is asked for, where the grant is personal.
    pub discovery: Option<Box<Config>>,
    /// PEM bundle for the token endpoint; `None`: the system's roots.
    pub ca: Option<PathBuf>,
    /// One exchange, from connecting to the last byte.
    pub timeout: Duration,
}

/// For whom, and for what.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Grant {
    /// Entra's On-Behalf-Of: RFC 7523 with `requested_token_use`.
    OnBehalfOf {
        scope: String,
        /// Tells Entra that claims challenges are understood.
        continuous_access: bool,
    },
    /// RFC 8693.
    Exchange {
        audience: Vec<String>,
        resource: Vec<String>,
        scope: Option<String>,
        /// A file with the actor's token, read each time.
        actor: Option<PathBuf>,
    },
    /// The gateway itself (RFC 6749 section 4.4).
    Client { audience: Vec<String>, resource: Vec<String>, scope: Option<String> },
    /// The machine's identity.
    Managed { identity: Identity, scope: String },
    /// A login at HashiCorp Vault.
    Vault(Box<vault::Config>),
}

impl Grant {
    /// Does each caller have a token of their own?
    pub fn is_personal(&self) -> bool {
        match self {
            Grant::OnBehalfOf { .. } | Grant::Exchange { .. } => true,
            Grant::Client { .. } | Grant::Managed { .. } => false,
            Grant::Vault(login) => login.is_personal(),
        }
    }
}

/// The gateway's own application at Entra, to ask a service there: see [`Applicant`](super::Applicant).
#[derive(Clone, Debug)]
pub struct Application {
    /// Where the tenants' token endpoints are, without a slash at the end.
    pub login: String,
    pub client: Client,
    /// On behalf of callers, or as itself; for the service.
    pub grant: Grant,
    /// What is asked is below it.
    pub service: Url,
    /// One question, the token for it included.
    pub timeout: Duration,
}

/// Where tokens are asked for, and as whom.
#[derive(Clone, Debug)]
pub struct Place {
    /// `None` for the machine's identity.
    pub token_url: Option<Url>,
    pub client: Option<Client>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Client {
    pub id: String,
    pub proof: Proof,
}

/// How the gateway proves to be the client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Proof {
    /// The secret in the `Authorization` header.
    Basic(Secret),
    /// The secret in the form.
    Post(Secret),
    /// An assertion signed with a key (RFC 7523); for Entra the key's certificate is named in it.
    Signed {
        /// PEM.
        key: Secret,
        algorithm: Algorithm,
        key_id: Option<String>,
        /// Its file, and the PEM in it; the first certificate is named by thumbprint.
        certificate: Option<(PathBuf, String)>,
    },
    /// An assertion that somebody else puts into a file and renews (workload identity).
    File(PathBuf),
    /// A token of the machine's identity as the assertion.
    Managed(Identity),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Algorithm {
    Es256,
    Ps256,
    Rs256,
}

impl Algorithm {
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Es256 => "ES256",
            Algorithm::Ps256 => "PS256",
            Algorithm::Rs256 => "RS256",
        }
    }
}

/// Which of the machine's identities.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Identity {
    /// Of a user-assigned one; `None`: the system-assigned.
    pub client_id: Option<String>,
}
