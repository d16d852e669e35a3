//! Legacy sessions without a store: the id the client holds is sealed and carries what is needed to go on.
//!
//! Inside are the upstream's session id and the negotiated version, with the owner and the backend as associated bytes.
//! It is bound to issuer, tenant and subject, not to token bytes: tokens are refreshed in the middle of a session. A
//! foreign, forged or expired id is an unknown session, nothing more.

use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use serde::Deserialize;
use serde::Serialize;

use super::Purpose;
use super::Sealer;
use crate::catalog::Session;
use crate::principal::Principal;

/// Longer ids are not ours.
pub(super) const ID_BYTES_MAX: usize = 4096;

/// The upstream's ids are visible ASCII; a longer one is not a session id but a payload.
const UPSTREAM_ID_BYTES_MAX: usize = 1024;

/// By how much the clocks of two replicas may differ.
const CLOCK_SKEW_SECONDS: u64 = 60;

#[derive(Deserialize, Serialize)]
struct Sealed<'a> {
    u: std::borrow::Cow<'a, str>,
    v: std::borrow::Cow<'a, str>,
    /// Seconds since the epoch at sealing.
    t: u64,
}

impl Sealer {
    /// The id to hand to the client. `None` if the upstream's id is no session id (size, characters).
    pub fn seal(&self, session: &Session, owner: &Principal, backend: &str, now: SystemTime) -> Option<String> {
        if session.upstream.len() > UPSTREAM_ID_BYTES_MAX
            || !session.upstream.bytes().all(|b| (0x21..=0x7e).contains(&b))
        {
            return None;
        }
        let sealed = Sealed { u: session.upstream.as_str().into(), v: session.version.as_str().into(), t: epoch(now) };
        let plain = serde_json::to_vec(&sealed).ok()?;
        self.seal_bytes(Purpose::Session, &plain, &associated(owner, backend)).filter(|id| id.len() <= ID_BYTES_MAX)
    }

    /// The session behind an id, if it is ours, this principal's, this backend's, and not too old.
    pub fn unseal(&self, id: &str, owner: &Principal, backend: &str, now: SystemTime) -> Option<Session> {
        if id.len() > ID_BYTES_MAX {
            return None;
        }
        let plain = self.open_bytes(Purpose::Session, id, &associated(owner, backend))?;
        let sealed: Sealed<'_> = serde_json::from_slice(&plain).ok()?;
        self.alive(sealed.t, now).then(|| Session { upstream: sealed.u.into_owned(), version: sealed.v.into_owned() })
    }

    /// Is a session of then still good?
    pub(super) fn alive(&self, since: u64, now: SystemTime) -> bool {
        // A replica whose clock is a little behind is not a forger.
        let age = (epoch(now) + CLOCK_SKEW_SECONDS).checked_sub(since);
        age.is_some_and(|age| age.saturating_sub(CLOCK_SKEW_SECONDS) <= self.lifetime().as_secs())
    }
}

pub(super) fn epoch(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What a session id is bound to: whose it is, and which backend (or backends) it belongs to.
pub(super) fn associated(owner: &Principal, backend: &str) -> Vec<u8> {
    let mut out = (owner.key().len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(owner.key().as_bytes());
    out.extend_from_slice(backend.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::gateway::seal::LIFETIME;
    use crate::principal::Claims;

    fn alice(subject: &str) -> Principal {
        Principal::verified(Claims { subject: subject.into(), issuer: "https://idp".into(), ..Claims::default() })
    }

    #[test]
    fn a_session_opens_for_its_owner_and_backend_only() {
        let sealer = Sealer::new().expect("randomness");
        let now = SystemTime::now();
        let session = Session { upstream: "abc".into(), version: "2025-11-25".into() };
        let id = sealer.seal(&session, &alice("alice"), "files", now).expect("sealed");
        assert_eq!(sealer.unseal(&id, &alice("alice"), "files", now), Some(session));
        assert_eq!(sealer.unseal(&id, &alice("bob"), "files", now), None);
        assert_eq!(sealer.unseal(&id, &alice("alice"), "git", now), None);
        assert_eq!(sealer.unseal(&id, &alice("alice"), "files", now + LIFETIME * 2), None);
        assert_eq!(Sealer::new().expect("randomness").unseal(&id, &alice("alice"), "files", now), None);
    }

    #[test]
    fn a_replica_whose_clock_is_behind_opens_the_session_and_one_from_the_future_is_refused() {
        let sealer = Sealer::new().expect("randomness");
        let now = SystemTime::now();
        let session = Session { upstream: "abc".into(), version: "2025-11-25".into() };
        let id = sealer.seal(&session, &alice("a"), "b", now).expect("sealed");
        assert!(sealer.unseal(&id, &alice("a"), "b", now - Duration::from_secs(30)).is_some());
        assert!(sealer.unseal(&id, &alice("a"), "b", now - Duration::from_secs(300)).is_none());
    }

    #[test]
    fn every_flipped_character_is_found() {
        let sealer = Sealer::new().expect("randomness");
        let now = SystemTime::now();
        let id = sealer
            .seal(&Session { upstream: "abc".into(), version: "2025-11-25".into() }, &alice("a"), "b", now)
            .expect("sealed");
        for at in 0..id.len() {
            let mut bytes = id.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(bytes).expect("ascii");
            assert_eq!(sealer.unseal(&forged, &alice("a"), "b", now), None, "position {at}");
        }
        assert_eq!(sealer.unseal("", &alice("a"), "b", now), None);
    }

    #[test]
    fn an_upstream_id_that_is_no_session_id_is_not_carried() {
        let sealer = Sealer::new().expect("randomness");
        for bad in ["a b", "a\nb", "é", &"x".repeat(UPSTREAM_ID_BYTES_MAX + 1)] {
            let session = Session { upstream: bad.to_owned(), version: "2025-11-25".into() };
            assert_eq!(sealer.seal(&session, &alice("a"), "b", SystemTime::now()), None);
        }
    }
}
