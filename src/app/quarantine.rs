//! What went into quarantine and what came out: one line in the log and one audit record per change, however often it is
//! listed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::Audit;
use crate::catalog::Catalog;
use crate::catalog::pin::hex;
use crate::gateway::House;
use crate::telemetry::metrics::Metrics;

/// Between two looks at the catalogs. What changed and changed back in between was offered to nobody.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// Records in a row about one backend. A server that changes its tools all the time gets no more than
/// [`LOOKS_PER_RECORD`] allows after that; the rest is counted.
const RECORDS_MAX: u32 = 100;

const LOOKS_PER_RECORD: u32 = 10;

/// The catalogs as they were at the last look.
#[derive(Default)]
pub(super) struct Watch {
    seen: HashMap<Arc<str>, Seen>,
    looks: u32,
}

struct Seen {
    catalog: Arc<Catalog>,
    /// Records that may still be written.
    records: u32,
    /// Changes that were not recorded.
    untold: u64,
}

impl Watch {
    pub(super) fn look(&mut self, house: &House, audit: &Audit, metrics: &Metrics) {
        self.looks = self.looks.wrapping_add(1);
        let refill = self.looks.is_multiple_of(LOOKS_PER_RECORD);
        self.seen.retain(|name, _| house.members.contains_key(name));
        for (name, member) in &house.members {
            let catalog = member.backend.catalog();
            let seen = self.seen.entry(name.clone()).or_insert_with(Seen::nothing);
            if refill {
                seen.refill(name, audit);
            }
            if Arc::ptr_eq(&seen.catalog, &catalog) {
                continue;
            }
            let more = seen.compare(name, &catalog, audit);
            if catalog.pins.is_some() || seen.catalog.pins.is_some() {
                metrics.quarantined(name, catalog.quarantined.len(), more);
            }
            seen.catalog = catalog;
        }
    }
}

impl Seen {
    fn nothing() -> Seen {
        Seen { catalog: Arc::default(), records: RECORDS_MAX, untold: 0 }
    }

    /// Tells what is new; gives how many tools were put into quarantine.
    fn compare(&mut self, backend: &str, now: &Catalog, audit: &Audit) -> usize {
        let before = self.catalog.clone();
        let mut names: Vec<&Arc<str>> = now.quarantined.keys().chain(before.quarantined.keys()).collect();
        names.sort();
        names.dedup();
        let mut more = 0;
        for name in names {
            match (before.quarantined.get(name), now.quarantined.get(name)) {
                (was, Some(is)) if was != Some(is) => {
                    more += 1;
                    if self.may_tell() {
                        let digest = ring::digest::digest(&ring::digest::SHA256, &is.wire);
                        let (tool, why) = (&**name, is.why.as_str());
                        tracing::warn!(
                            backend,
                            tool,
                            why,
                            "a tool is not offered: review it (`wardgate tools diff`), then approve it"
                        );
                        let entry = hex(digest.as_ref());
                        audit.event(
                            "tool_quarantined",
                            &[("backend", backend), ("tool", tool), ("why", why), ("entry_sha256", &entry)],
                        );
                    }
                }
                (Some(_), None) if now.tools.contains_key(name) && self.may_tell() => {
                    tracing::info!(backend, tool = &**name, "a tool is offered again: it is as it was approved");
                    audit.event("tool_released", &[("backend", backend), ("tool", name)]);
                }
                _ => {}
            }
        }
        more
    }

    fn may_tell(&mut self) -> bool {
        match self.records.checked_sub(1) {
            Some(left) => self.records = left,
            None => {
                self.untold += 1;
                return false;
            }
        }
        true
    }

    fn refill(&mut self, backend: &str, audit: &Audit) {
        if self.untold > 0 {
            let untold = std::mem::take(&mut self.untold);
            tracing::warn!(backend, changes = untold, "its tools change all the time: no line for each");
            audit.event("tools_unsteady", &[("backend", backend), ("changes", &untold.to_string())]);
        } else if self.records < RECORDS_MAX {
            self.records += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::audit;
    use crate::catalog::Quarantined;
    use crate::catalog::pins::Why;

    fn catalog(tools: &[(&str, &str)]) -> Arc<Catalog> {
        let quarantined = tools.iter().map(|(name, wire)| {
            ((*name).into(), Quarantined { why: Why::New, wire: Bytes::copy_from_slice(wire.as_bytes()) })
        });
        Arc::new(Catalog { quarantined: quarantined.collect(), ..Catalog::default() })
    }

    #[test]
    fn each_change_counts_once_and_a_storm_is_not_told_line_by_line() {
        let audit = Audit::open(&audit::Config::default()).expect("an audit log");
        let mut seen = Seen::nothing();
        let mut look = |now: Arc<Catalog>| {
            let more = seen.compare("b", &now, &audit);
            seen.catalog = now;
            (more, seen.records, seen.untold)
        };
        assert_eq!(look(catalog(&[("a", "1")])), (1, RECORDS_MAX - 1, 0));
        assert_eq!(look(catalog(&[("a", "1")])), (0, RECORDS_MAX - 1, 0), "the same once more");
        assert_eq!(look(catalog(&[("a", "2"), ("b", "1")])), (2, RECORDS_MAX - 3, 0));
        for wire in 0..500 {
            look(catalog(&[("a", &wire.to_string())]));
        }
        let (_, records, untold) = look(catalog(&[("a", "end")]));
        assert_eq!(records, 0);
        assert!(untold > 300, "{untold}");
        seen.refill("b", &audit);
        assert_eq!((seen.records, seen.untold), (0, 0), "told in one line");
        seen.refill("b", &audit);
        assert_eq!(seen.records, 1);
    }
}
