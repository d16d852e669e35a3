//! What a reload needs: noticing that files changed, and the record of a ceiling that was raised.

use std::path::PathBuf;
use std::time::SystemTime;

use crate::audit::Audit;
use crate::gateway::House;

/// The files of a configuration, as they were when it was read. Looked at by name, so that an atomic rename and the
/// symlink swap of a Kubernetes ConfigMap are both seen.
pub(super) struct Watched {
    files: Vec<(PathBuf, Option<Stamp>)>,
    /// A change is acted upon when it has been still for one look: editors and `cp` write in pieces.
    pending: bool,
}

#[derive(Clone, Copy, Eq, PartialEq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl Watched {
    pub(super) fn of(paths: &[PathBuf]) -> Watched {
        Watched { files: paths.iter().map(|path| (path.clone(), stamp(path))).collect(), pending: false }
    }

    /// True once per change, when it is over.
    pub(super) fn changed(&mut self) -> bool {
        let mut moved = false;
        for (path, known) in &mut self.files {
            let now = stamp(path);
            if now != *known {
                *known = now;
                moved = true;
            }
        }
        let settled = self.pending && !moved;
        self.pending = moved;
        settled
    }
}

fn stamp(path: &std::path::Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let facts = std::fs::metadata(path).ok()?;
    Some(Stamp { modified: facts.modified().ok(), length: facts.len(), inode: facts.ino() })
}

/// Raising a ceiling is written to the audit log: somebody will ask since when.
pub(super) fn record_raised(old: &House, new: &House, audit: &Audit) {
    let ceilings = |house: &House| {
        let mut all = vec![("gateway".to_owned(), house.mode)];
        let tenants = house.tenants.iter().filter_map(|house| Some((format!("tenant {}", house.name()?), house.mode)));
        all.extend(tenants);
        all.extend(
            house.members.iter().filter_map(|(name, member)| member.mode.map(|mode| (format!("backend {name}"), mode))),
        );
        all.extend(
            house
                .routes
                .routes
                .iter()
                .filter_map(|route| route.mode.map(|mode| (format!("route {}", route.path), mode))),
        );
        all
    };
    let before = ceilings(old);
    for (place, mode) in ceilings(new) {
        let was = before.iter().find(|(name, _)| *name == place).map(|(_, mode)| *mode);
        if was.is_some_and(|was| mode > was) {
            audit.event("ceiling_raised", &[("place", &place), ("mode", mode.as_str())]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_and_after_it_is_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("wardgate.yaml");
        std::fs::write(&file, "a").expect("written");
        let mut watched = Watched::of(std::slice::from_ref(&file));
        assert!(!watched.changed());
        std::fs::write(&file, "ab").expect("written");
        assert!(!watched.changed(), "still moving");
        assert!(watched.changed(), "settled");
        assert!(!watched.changed(), "told once");
        std::fs::remove_file(&file).expect("removed");
        assert!(!watched.changed());
        assert!(watched.changed(), "a removed file is a change");
    }
}
