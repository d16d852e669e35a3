//! How much of what a process writes to its log goes into ours. Pure: the time is an argument.

use std::time::Duration;
use std::time::Instant;

/// Lines in one [`WINDOW`]. A stack trace passes; a loop that logs does not fill the disk.
const LINES_MAX: u32 = 200;

const WINDOW: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Tap {
    began: Instant,
    lines: u32,
    missed: u64,
}

impl Tap {
    pub(super) fn new(now: Instant) -> Tap {
        Tap { began: now, lines: 0, missed: 0 }
    }

    /// May this line pass, and how many did not pass that are to be told of now?
    pub(super) fn pass(&mut self, now: Instant) -> (bool, u64) {
        let mut missed = 0;
        if now.saturating_duration_since(self.began) >= WINDOW {
            missed = self.missed;
            *self = Tap::new(now);
        }
        let pass = self.lines < LINES_MAX;
        if pass {
            self.lines += 1;
        } else {
            self.missed = self.missed.saturating_add(1);
        }
        (pass, missed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_passes_up_to_the_limit_and_its_rest_is_counted() {
        let start = Instant::now();
        let mut tap = Tap::new(start);
        let passed = (0..1_000).filter(|_| tap.pass(start).0).count();
        assert_eq!(passed, 200);
        assert_eq!(tap.pass(start + WINDOW), (true, 800));
        assert_eq!(tap.pass(start + WINDOW), (true, 0));
    }
}
