//! Where a merged list goes on: for each backend that has more, where its own list does. Sealed; the client learns nothing.

use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use ring::digest;
use serde::Deserialize;
use serde::Serialize;

use super::Federation;
use crate::gateway::Purpose;
use crate::gateway::Rejection;
use crate::mcp::FaultKind;
use crate::mcp::list::ListKind;

/// A list that nobody went on with for so long has changed.
const LIFETIME_MAX_SECONDS: u64 = 60 * 60;

/// Longer ones are not ours.
const SEALED_BYTES_MAX: usize = 256 * 1024;

/// One backend, and its own cursor; `None`: from the start.
pub(super) type Place = (usize, Option<String>);

#[derive(Deserialize, Serialize)]
struct Sealed {
    /// Seconds since the epoch at sealing.
    t: u64,
    places: Vec<Place>,
}

impl Federation {
    /// `None`: too long to be carried.
    pub(super) fn seal(&self, kind: ListKind, places: &[Place]) -> Option<String> {
        let sealed = Sealed { t: epoch(self.errand.request.at), places: places.to_vec() };
        let plain = serde_json::to_vec(&sealed).ok()?;
        let text = self.errand.sealer.seal_bytes(Purpose::Cursor, &plain, &self.binding(kind))?;
        (text.len() <= SEALED_BYTES_MAX).then_some(text)
    }

    /// # Errors
    /// For what was not sealed for this caller, on this route, for this list and these backends, or too long ago.
    pub(super) fn unseal(&self, kind: ListKind, cursor: &str) -> Result<Vec<Place>, Rejection> {
        self.opened(kind, cursor).ok_or_else(invalid)
    }

    fn opened(&self, kind: ListKind, cursor: &str) -> Option<Vec<Place>> {
        if cursor.len() > SEALED_BYTES_MAX {
            return None;
        }
        let plain = self.errand.sealer.open_bytes(Purpose::Cursor, cursor, &self.binding(kind))?;
        let sealed: Sealed = serde_json::from_slice(&plain).ok()?;
        let age = epoch(self.errand.request.at).checked_sub(sealed.t)?;
        (age <= LIFETIME_MAX_SECONDS).then_some(sealed.places)
    }

    /// What a cursor is bound to: the caller, the route, the list, and the generation of the route: its backends as they
    /// are configured. Another policy alone changes no place: every page is judged when it is asked for.
    fn binding(&self, kind: ListKind) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        let mut part = |bytes: &[u8]| {
            out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            out.extend_from_slice(bytes);
        };
        part(self.errand.principal.key().as_bytes());
        part(self.errand.route.path.as_bytes());
        part(self.errand.route.host.as_deref().unwrap_or_default().as_bytes());
        part(kind.member().as_bytes());
        let mut generation = digest::Context::new(&digest::SHA256);
        for share in self.names.shares() {
            for text in [&*share.backend, &share.prefix] {
                generation.update(&(text.len() as u64).to_le_bytes());
                generation.update(text.as_bytes());
            }
            if let Some(member) = self.errand.house.members.get(&share.backend) {
                generation.update(&member.fingerprint);
            }
        }
        part(generation.finish().as_ref());
        out
    }
}

pub(super) fn invalid() -> Rejection {
    Rejection::Message {
        kind: FaultKind::InvalidParams { what: "the cursor is not valid; start the list again".into() },
    }
}

fn epoch(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
