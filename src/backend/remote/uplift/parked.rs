//! Calls that wait for their client's answer: the shelf they lie on, and the sealed state that fetches one back, once.
//!
//! `requestState` is AEAD (ChaCha20-Poly1305, a key per backend and process) over the place on the shelf, the digest of the
//! request and the expiry, with principal and backend as associated data. The client can neither read nor make one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead;
use ring::rand::SecureRandom;
use ring::rand::SystemRandom;
use tokio::task::JoinHandle;

use super::Limits;
use super::exchange::Exchange;
use crate::mcp::object::Members;

/// A longer state is not ours.
const STATE_BYTES_MAX: usize = 1024;

const TICKET_BYTES: usize = 8;

/// Why a state opens nothing. The words are for the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Closed {
    #[error("requestState is not one that was given to this caller here")]
    Foreign,
    #[error("requestState was used already or has expired; call again without it")]
    Gone,
    #[error("inputResponses answers none of the inputRequests")]
    NoAnswer,
    #[error("requestState belongs to a request with another method or other params")]
    OtherRequest,
}

struct Waiting {
    owner: Arc<str>,
    digest: [u8; 32],
    exchange: Exchange,
    _timer: Timer,
}

/// Takes a call off the shelf when its time is over.
struct Timer(JoinHandle<()>);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) struct Parked {
    backend: Arc<str>,
    limits: Limits,
    born: Instant,
    seal: Option<(aead::LessSafeKey, SystemRandom)>,
    shelf: Mutex<Shelf>,
}

#[derive(Default)]
struct Shelf {
    next: u64,
    waiting: HashMap<u64, Waiting>,
}

/// Whose call it is.
pub(super) struct Owner<'a> {
    pub(super) principal: &'a Arc<str>,
    pub(super) digest: [u8; 32],
}

impl Parked {
    pub(super) fn new(backend: Arc<str>, limits: Limits) -> Arc<Parked> {
        let random = SystemRandom::new();
        let mut bytes = [0u8; 32];
        let key = random
            .fill(&mut bytes)
            .and_then(|()| aead::UnboundKey::new(&aead::CHACHA20_POLY1305, &bytes))
            .map(aead::LessSafeKey::new);
        // Without randomness nothing can be parked; everything else goes on.
        let seal = key.ok().map(|key| (key, random));
        Arc::new(Parked { backend, limits, born: Instant::now(), seal, shelf: Mutex::default() })
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lays a call on the shelf; gives the state that fetches it.
    ///
    /// # Errors
    /// The call itself, when there is no room for it.
    #[expect(clippy::result_large_err, reason = "the call comes back to go on")]
    pub(super) fn park(self: &Arc<Self>, owner: &Owner<'_>, exchange: Exchange) -> Result<String, Exchange> {
        let mut shelf = self.shelf();
        let own = shelf.waiting.values().filter(|waiting| waiting.owner == *owner.principal).count();
        let full = shelf.waiting.len() >= self.limits.parked_max || own >= self.limits.parked_per_principal_max;
        let ticket = shelf.next;
        let state = if full { None } else { self.seal(ticket, owner) };
        let Some(state) = state else {
            return Err(exchange);
        };
        shelf.next += 1;
        let (parked, timeout) = (Arc::downgrade(self), self.limits.parked_timeout);
        let timer = tokio::spawn(async move {
            tokio::time::sleep(timeout).await;
            let late = parked.upgrade().and_then(|parked| parked.shelf().waiting.remove(&ticket));
            // Cancelled upstream by being dropped, outside the lock.
            drop(late);
        });
        let waiting = Waiting { owner: owner.principal.clone(), digest: owner.digest, exchange, _timer: Timer(timer) };
        shelf.waiting.insert(ticket, waiting);
        Ok(state)
    }

    /// Takes the call that a state stands for off the shelf. A state that does not fit leaves it there.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn fetch(&self, state: &str, owner: &Owner<'_>, answers: &Members<'_>) -> Result<Exchange, Closed> {
        let (ticket, digest, expiry) = self.unseal(state, owner.principal).ok_or(Closed::Foreign)?;
        if digest != owner.digest {
            return Err(Closed::OtherRequest);
        }
        if self.now() >= expiry {
            return Err(Closed::Gone);
        }
        let mut shelf = self.shelf();
        let waiting = shelf.waiting.get(&ticket).ok_or(Closed::Gone)?;
        // INVARIANT: the seal binds both already; this holds should the seal ever change.
        if waiting.owner != *owner.principal || waiting.digest != digest {
            return Err(Closed::Foreign);
        }
        if !waiting.exchange.questions().iter().any(|question| answers.find(&question.key).is_some()) {
            return Err(Closed::NoAnswer);
        }
        let waiting = shelf.waiting.remove(&ticket).ok_or(Closed::Gone)?;
        drop(shelf);
        Ok(waiting.exchange)
    }

    /// Cancels all.
    pub(super) fn stop(&self) {
        let all = std::mem::take(&mut self.shelf().waiting);
        drop(all);
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.shelf().waiting.len()
    }

    /// Milliseconds of this shelf.
    fn now(&self) -> u64 {
        self.born.elapsed().as_millis().try_into().unwrap_or(u64::MAX)
    }

    fn seal(&self, ticket: u64, owner: &Owner<'_>) -> Option<String> {
        let (key, random) = self.seal.as_ref()?;
        let expiry = self.now().saturating_add(self.limits.parked_timeout.as_millis().try_into().unwrap_or(u64::MAX));
        let mut text = ticket.to_le_bytes().to_vec();
        text.extend_from_slice(&expiry.to_le_bytes());
        text.extend_from_slice(&owner.digest);
        let mut nonce = [0u8; aead::NONCE_LEN];
        random.fill(&mut nonce).ok()?;
        let associated = aead::Aad::from(self.associated(owner.principal));
        key.seal_in_place_append_tag(aead::Nonce::assume_unique_for_key(nonce), associated, &mut text).ok()?;
        let mut whole = nonce.to_vec();
        whole.extend_from_slice(&text);
        Some(URL_SAFE_NO_PAD.encode(whole))
    }

    fn unseal(&self, state: &str, principal: &str) -> Option<(u64, [u8; 32], u64)> {
        if state.len() > STATE_BYTES_MAX {
            return None;
        }
        let mut whole = URL_SAFE_NO_PAD.decode(state).ok()?;
        let (nonce, text) = whole.split_at_mut_checked(aead::NONCE_LEN)?;
        let nonce = aead::Nonce::try_assume_unique_for_key(nonce).ok()?;
        let (key, _) = self.seal.as_ref()?;
        let text = key.open_in_place(nonce, aead::Aad::from(self.associated(principal)), text).ok()?;
        let (ticket, rest) = text.split_at_checked(TICKET_BYTES)?;
        let (expiry, digest) = rest.split_at_checked(TICKET_BYTES)?;
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
        Some((number(ticket)?, <[u8; 32]>::try_from(digest).ok()?, number(expiry)?))
    }

    fn associated(&self, principal: &str) -> Vec<u8> {
        let mut out = b"wardgate-parked-1\0".to_vec();
        out.extend_from_slice(&(principal.len() as u64).to_le_bytes());
        out.extend_from_slice(principal.as_bytes());
        out.extend_from_slice(self.backend.as_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_opens_for_its_owner_here_and_unchanged_only() {
        let principal: Arc<str> = "alice".into();
        let owner = Owner { principal: &principal, digest: [7; 32] };
        let parked = Parked::new("up".into(), Limits::default());
        let state = parked.seal(3, &owner).expect("randomness");
        let opened = parked.unseal(&state, "alice").expect("ours");
        assert_eq!((opened.0, opened.1), (3, [7; 32]));
        assert_eq!(parked.unseal(&state, "bob"), None);
        assert_eq!(Parked::new("up".into(), Limits::default()).unseal(&state, "alice"), None, "another process");
        let other = Parked { backend: "down".into(), ..Arc::into_inner(parked).expect("alone") };
        assert_eq!(other.unseal(&state, "alice"), None, "another backend");
        let parked = Parked { backend: "up".into(), ..other };
        for at in 0..state.len() {
            let mut bytes = state.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(bytes).expect("ASCII");
            assert_eq!(parked.unseal(&forged, "alice"), None, "position {at}");
        }
        assert_eq!(parked.unseal("", "alice"), None);
    }
}
