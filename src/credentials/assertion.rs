//! `Caller`: the caller's own token as `identity` sealed it; this room alone can open it.

use std::fmt;
use std::time::SystemTime;

use ring::digest;

use crate::principal::Assertion;
use crate::secret::Secret;

pub(super) const NO_TOKEN: &str = "the call came without an access token of a user";
pub(super) const NO_USER: &str = "the call came with an application's own token, which stands for no user";

/// Private to this room, so nobody else can ask an [`Assertion`] for it.
pub(super) struct Caller {
    token: Secret,
    digest: [u8; 32],
    expires_at: Option<SystemTime>,
}

/// Seals a verified token. Called by `identity`, once per verification.
pub fn assertion(token: &str, expires_at: Option<SystemTime>) -> Assertion {
    let mut print = [0; 32];
    let digest = digest::digest(&digest::SHA256, token.as_bytes());
    print.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    Assertion::seal(Caller { token: Secret::new(token), digest: print, expires_at })
}

impl Caller {
    pub(super) fn open(sealed: &Assertion) -> Option<&Caller> {
        sealed.open()
    }

    /// The token, for the one form or header it goes into.
    pub(super) fn token(&self) -> &str {
        self.token.expose()
    }

    pub(super) fn bearer(&self) -> Secret {
        Secret::new(format!("Bearer {}", self.token.expose()))
    }

    /// Tells tokens apart.
    pub(super) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    pub(super) fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Caller(***)")
    }
}
