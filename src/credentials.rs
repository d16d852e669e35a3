//! With what do we act upstream? A `Credential` is obtained from a `Permit`, never from a request.

use http::HeaderName;

use crate::policy::Permit;
use crate::secret::Secret;

/// How a backend is authenticated to.
#[derive(Clone, Debug, Default)]
pub enum Config {
    #[default]
    None,
    /// A header with a fixed value, for example `Authorization: Bearer …` from a file.
    Static { header: HeaderName, value: Secret },
}

/// What opens the upstream. Not `Clone`: obtained per call.
#[derive(Debug)]
pub struct Credential {
    header: Option<(HeaderName, Secret)>,
}

impl Credential {
    /// The header to send, if any.
    pub fn header(&self) -> Option<&(HeaderName, Secret)> {
        self.header.as_ref()
    }
}

/// The credential for a permitted call.
pub fn obtain(config: &Config, _permit: &Permit) -> Credential {
    own(config)
}

/// The gateway's own credential for a backend: discovery and health checks only.
pub fn own(config: &Config) -> Credential {
    let header = match config {
        Config::None => None,
        Config::Static { header, value } => Some((header.clone(), value.clone())),
    };
    Credential { header }
}
