//! The sealed id of a task, and what it is bound to.

use std::borrow::Cow;

use serde::Deserialize;
use serde::Serialize;

use crate::gateway::Purpose;
use crate::gateway::Sealer;
use crate::gateway::errand::Errand;
use crate::mcp::Era;
use crate::principal::Principal;
use crate::route::Route;

/// A longer one is no name but a payload: it goes through headers (`Mcp-Name`).
const UPSTREAM_ID_BYTES_MAX: usize = 512;

/// Longer ones are not ours.
const SEALED_BYTES_MAX: usize = 2048;

/// What a sealed id says.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Task<'t> {
    #[serde(rename = "b")]
    pub(super) backend: Cow<'t, str>,
    /// The upstream's id.
    #[serde(rename = "i")]
    pub(super) id: Cow<'t, str>,
    /// The backend's own name for the tool.
    #[serde(rename = "t")]
    pub(super) tool: Cow<'t, str>,
}

/// Whom and where a task's id is for: the caller, the route, and the kind of tasks.
pub(super) struct Bound<'s> {
    sealer: &'s Sealer,
    owner: &'s Principal,
    route: &'s Route,
    era: Era,
}

impl<'s> Bound<'s> {
    pub(super) fn of(errand: &'s Errand, era: Era) -> Bound<'s> {
        Bound::new(&errand.house.sealer, &errand.principal, &errand.route, era)
    }

    pub(super) fn new(sealer: &'s Sealer, owner: &'s Principal, route: &'s Route, era: Era) -> Bound<'s> {
        Bound { sealer, owner, route, era }
    }

    /// `None`: the upstream's id is none that can be carried.
    pub(super) fn seal(&self, task: &Task<'_>) -> Option<String> {
        if task.id.is_empty() || task.id.len() > UPSTREAM_ID_BYTES_MAX {
            return None;
        }
        let plain = serde_json::to_vec(task).ok()?;
        let sealed = self.sealer.seal_name(Purpose::Task, &plain, &self.bytes())?;
        (sealed.len() <= SEALED_BYTES_MAX).then_some(sealed)
    }

    /// `None` for everything that was not sealed for this caller here, whatever the reason.
    pub(super) fn open(&self, sealed: &str) -> Option<Task<'static>> {
        if sealed.len() > SEALED_BYTES_MAX {
            return None;
        }
        let plain = self.sealer.open_bytes(Purpose::Task, sealed, &self.bytes())?;
        let task: Task<'_> = serde_json::from_slice(&plain).ok()?;
        Some(Task {
            backend: task.backend.into_owned().into(),
            id: task.id.into_owned().into(),
            tool: task.tool.into_owned().into(),
        })
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        let host = self.route.host.as_deref().unwrap_or_default();
        for part in [&**self.owner.key(), self.era.as_str(), host, self.route.path.as_str()] {
            out.extend_from_slice(&(part.len() as u64).to_le_bytes());
            out.extend_from_slice(part.as_bytes());
        }
        out
    }
}
