//! Legacy sessions without a store: the id the client holds is sealed and carries what is needed to go on.
//!
//! The id is AEAD (ChaCha20-Poly1305) over the upstream's session id and the negotiated version, with the owner and the
//! backend as associated data. It is bound to issuer, tenant and subject, not to token bytes: tokens are refreshed in
//! the middle of a session. A foreign, forged or expired id is an unknown session, nothing more.

use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead;
use ring::rand::SecureRandom;
use ring::rand::SystemRandom;
use serde::Deserialize;
use serde::Serialize;

use crate::catalog::Session;
use crate::principal::Principal;

/// A session never outlives this, whatever the upstream thinks: a leaked id has an end.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Longer ids are not ours.
const ID_BYTES_MAX: usize = 4096;

/// The upstream's ids are visible ASCII; a longer one is not a session id but a payload.
const UPSTREAM_ID_BYTES_MAX: usize = 1024;

pub struct Sealer {
    key: aead::LessSafeKey,
    random: SystemRandom,
}

#[derive(Deserialize, Serialize)]
struct Sealed<'a> {
    u: std::borrow::Cow<'a, str>,
    v: std::borrow::Cow<'a, str>,
    /// Seconds since the epoch at sealing.
    t: u64,
}

impl Sealer {
    /// A fresh random key: sessions end with the process.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new() -> Result<Sealer, ring::error::Unspecified> {
        let random = SystemRandom::new();
        let mut bytes = [0u8; 32];
        random.fill(&mut bytes)?;
        let key = aead::LessSafeKey::new(aead::UnboundKey::new(&aead::CHACHA20_POLY1305, &bytes)?);
        Ok(Sealer { key, random })
    }

    /// The id to hand to the client. `None` if the upstream's id is no session id (size, characters).
    pub fn seal(&self, session: &Session, owner: &Principal, backend: &str, now: SystemTime) -> Option<String> {
        if session.upstream.len() > UPSTREAM_ID_BYTES_MAX
            || !session.upstream.bytes().all(|b| (0x21..=0x7e).contains(&b))
        {
            return None;
        }
        let sealed = Sealed { u: session.upstream.as_str().into(), v: session.version.as_str().into(), t: epoch(now) };
        self.lock(&associated("wardgate-session-1", owner, backend), serde_json::to_vec(&sealed).ok()?)
    }

    /// A text that only this process opens, and only for the same purpose and owner; see [`associated`].
    pub(super) fn lock(&self, associated: &[u8], mut text: Vec<u8>) -> Option<String> {
        let mut nonce = [0u8; aead::NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let associated = aead::Aad::from(associated);
        self.key.seal_in_place_append_tag(aead::Nonce::assume_unique_for_key(nonce), associated, &mut text).ok()?;
        let mut whole = nonce.to_vec();
        whole.extend_from_slice(&text);
        Some(URL_SAFE_NO_PAD.encode(whole)).filter(|id| id.len() <= ID_BYTES_MAX)
    }

    /// The text behind [`Sealer::lock`].
    pub(super) fn unlock(&self, associated: &[u8], id: &str) -> Option<Vec<u8>> {
        if id.len() > ID_BYTES_MAX {
            return None;
        }
        let mut whole = URL_SAFE_NO_PAD.decode(id).ok()?;
        let (nonce, text) = whole.split_at_mut_checked(aead::NONCE_LEN)?;
        let nonce = aead::Nonce::try_assume_unique_for_key(nonce).ok()?;
        self.key.open_in_place(nonce, aead::Aad::from(associated), text).ok().map(|text| text.to_vec())
    }

    /// The session behind an id, if it is ours, this principal's, this backend's, and not too old.
    pub fn unseal(&self, id: &str, owner: &Principal, backend: &str, now: SystemTime) -> Option<Session> {
        let text = self.unlock(&associated("wardgate-session-1", owner, backend), id)?;
        let sealed: Sealed<'_> = serde_json::from_slice(&text).ok()?;
        alive(sealed.t, now).then(|| Session { upstream: sealed.u.into_owned(), version: sealed.v.into_owned() })
    }
}

/// Is a session of then still good?
pub(super) fn alive(since: u64, now: SystemTime) -> bool {
    epoch(now).checked_sub(since).is_some_and(|age| age <= LIFETIME_MAX.as_secs())
}

pub(super) fn epoch(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What a sealed text is bound to: what it is for, whose it is, and which backend (or backends) it belongs to.
pub(super) fn associated(purpose: &str, owner: &Principal, backend: &str) -> Vec<u8> {
    let mut out = purpose.as_bytes().to_vec();
    out.push(0);
    out.extend_from_slice(&(owner.key().len() as u64).to_le_bytes());
    out.extend_from_slice(owner.key().as_bytes());
    out.extend_from_slice(backend.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(sealer.unseal(&id, &alice("alice"), "files", now + LIFETIME_MAX * 2), None);
        assert_eq!(Sealer::new().expect("randomness").unseal(&id, &alice("alice"), "files", now), None);
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
