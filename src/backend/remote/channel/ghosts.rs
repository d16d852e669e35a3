//! What a server may work on although nobody waits for its answer: calls whose callers left, and tasks. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::tasks::Over;
use super::tasks::Task;
use crate::backend::remote::CALL_TIMEOUT;
use crate::mcp::Id;

/// More are not known one by one any more.
const GHOSTS_MAX: usize = 1_000;

/// A server that stops at all when it is told to has stopped by then. It need not answer, so nothing else would tell;
/// and one caller who cancels is not to silence the server for the others for longer.
const CANCELLED_MAX: Duration = Duration::from_secs(30);

/// By the number of the request: whose it was. Each stays until the server has answered it, or has had its time.
#[derive(Default)]
pub(super) struct Ghosts {
    known: BTreeMap<u64, Ghost>,
    rest: Option<Rest>,
}

pub(super) struct Ghost {
    session: Arc<str>,
    what: What,
    /// Nobody's words can be about it from then on. `None`: only the server can tell.
    until: Option<Instant>,
}

enum What {
    /// Not answered yet. `augmented`: the answer may be that a task was begun.
    Call { id: Id, augmented: bool },
    /// It was answered, and is worked on in the background.
    Task { id: Option<Box<str>> },
}

/// Those beyond [`GHOSTS_MAX`], which go together.
struct Rest {
    /// `None`: several.
    session: Option<Arc<str>>,
    until: Option<Instant>,
}

fn lives(until: Option<Instant>, now: Instant) -> bool {
    until.is_none_or(|until| now < until)
}

impl Ghost {
    /// A call whose caller leaves now, and may have cancelled it before.
    pub(super) fn of_call(
        session: Arc<str>,
        id: Id,
        augmented: bool,
        cancelled: Option<Instant>,
        now: Instant,
    ) -> Ghost {
        let until = cancelled.map_or(now + CALL_TIMEOUT, |at| at + CANCELLED_MAX);
        Ghost { session, what: What::Call { id, augmented }, until: Some(until) }
    }

    fn shorten(&mut self, now: Instant) {
        let until = now + CANCELLED_MAX;
        self.until = Some(self.until.map_or(until, |other| other.min(until)));
    }
}

impl Ghosts {
    pub(super) fn add(&mut self, number: u64, ghost: Ghost, now: Instant) {
        if self.known.len() >= GHOSTS_MAX {
            self.known.retain(|_, other| lives(other.until, now));
        }
        if self.known.len() < GHOSTS_MAX {
            self.known.insert(number, ghost);
            return;
        }
        // What becomes of a task will not be known.
        let endless = matches!(ghost.what, What::Task { .. } | What::Call { augmented: true, .. });
        let until = (!endless).then(|| now + CALL_TIMEOUT);
        self.rest = Some(match self.rest.take().filter(|rest| lives(rest.until, now)) {
            None => Rest { session: Some(ghost.session), until },
            Some(rest) => Rest {
                session: rest.session.filter(|other| *other == ghost.session),
                until: rest.until.zip(until).map(|(one, other)| one.max(other)),
            },
        });
    }

    /// The server has answered a call of this session by beginning a task.
    pub(super) fn begin(&mut self, number: u64, session: Arc<str>, task: Task, now: Instant) {
        if task.over == Some(Over::Done) {
            return;
        }
        let mut ghost = Ghost { session, what: What::Task { id: task.id }, until: None };
        if task.over == Some(Over::Cancelled) {
            ghost.shorten(now);
        }
        self.add(number, ghost, now);
    }

    /// The server has answered it; `begun` finds the task that it began instead of being over.
    pub(super) fn answered(&mut self, number: u64, begun: impl FnOnce() -> Option<Task>, now: Instant) {
        let Some(Ghost { what: What::Call { augmented, .. }, .. }) = self.known.get(&number) else {
            return;
        };
        let task = if *augmented { begun() } else { None };
        if let (Some(ghost), Some(task)) = (self.known.remove(&number), task) {
            self.begin(number, ghost.session, task, now);
        }
    }

    /// The server has told how a task is.
    pub(super) fn told(&mut self, told: &Task, now: Instant) {
        let same = |ghost: &Ghost| matches!(&ghost.what, What::Task { id: Some(id) } if told.id.as_ref() == Some(id));
        match told.over {
            None => {}
            Some(Over::Done) => self.known.retain(|_, ghost| !same(ghost)),
            Some(Over::Cancelled) => {
                self.known.values_mut().filter(|ghost| same(ghost)).for_each(|ghost| ghost.shorten(now));
            }
        }
    }

    /// The client cancels a call that it left before. Gives the number under which the server knows it.
    pub(super) fn cancel(&mut self, session: &str, named: &Id, now: Instant) -> Option<u64> {
        let meant = |ghost: &Ghost| {
            ghost.session.as_ref() == session && matches!(&ghost.what, What::Call { id, .. } if id.same(named))
        };
        let (number, ghost) = self.known.iter_mut().rev().find(|(_, ghost)| meant(ghost))?;
        ghost.shorten(now);
        Some(*number)
    }

    fn alive(&self, now: Instant) -> impl Iterator<Item = Option<&str>> {
        let known = self.known.values().map(|ghost| (Some(ghost.session.as_ref()), ghost.until));
        let rest = self.rest.iter().map(|rest| (rest.session.as_deref(), rest.until));
        known.chain(rest).filter(move |(_, until)| lives(*until, now)).map(|(session, _)| session)
    }

    pub(super) fn is_empty(&self, now: Instant) -> bool {
        self.alive(now).next().is_none()
    }

    /// Are there none of another session?
    pub(super) fn are_of(&self, session: &str, now: Instant) -> bool {
        self.alive(now).all(|other| other == Some(session))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(session: &str, augmented: bool, cancelled: Option<Instant>, now: Instant) -> Ghost {
        Ghost::of_call(session.into(), Id::number(7), augmented, cancelled, now)
    }

    fn task(id: &str, over: Option<Over>) -> Task {
        Task { id: Some(id.into()), over }
    }

    fn answered(ghosts: &mut Ghosts, number: u64, now: Instant) {
        ghosts.answered(number, || None, now);
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_ghost_stays_until_it_is_answered_or_has_had_its_time() {
        let now = Instant::now();
        let mut ghosts = Ghosts::default();
        assert!(ghosts.is_empty(now) && ghosts.are_of("anna", now));
        ghosts.add(1, call("anna", false, None, now), now);
        assert!(ghosts.are_of("anna", now) && !ghosts.are_of("bert", now) && !ghosts.is_empty(now));
        let over = now + CALL_TIMEOUT;
        assert!(!ghosts.are_of("bert", over - SECOND));
        assert!(ghosts.are_of("bert", over) && ghosts.is_empty(over));
        answered(&mut ghosts, 1, now);
        assert!(ghosts.is_empty(now) && ghosts.are_of("bert", now));
    }

    #[test]
    fn what_was_cancelled_is_over_soon() {
        let now = Instant::now();
        let soon = now + CANCELLED_MAX;
        let mut ghosts = Ghosts::default();
        ghosts.add(1, call("anna", false, Some(now), now + SECOND), now + SECOND);
        assert!(!ghosts.are_of("bert", soon - SECOND) && ghosts.are_of("bert", soon));
        // She leaves first, and then cancels; twice is not longer.
        ghosts.add(2, call("anna", false, None, now), now);
        assert!(!ghosts.are_of("bert", soon));
        assert_eq!(ghosts.cancel("bert", &Id::number(7), now), None, "it is not his");
        assert_eq!(ghosts.cancel("anna", &Id::number(8), now), None);
        assert_eq!(ghosts.cancel("anna", &Id::number(7), now), Some(2));
        assert_eq!(ghosts.cancel("anna", &Id::number(7), now + SECOND), Some(2));
        assert!(!ghosts.are_of("bert", soon - SECOND) && ghosts.are_of("bert", soon));
    }

    #[test]
    fn a_task_stays_until_the_server_says_that_it_is_over() {
        let now = Instant::now();
        let late = now + CALL_TIMEOUT * 100;
        let mut ghosts = Ghosts::default();
        ghosts.begin(1, "anna".into(), task("t", None), now);
        ghosts.begin(2, "anna".into(), Task::default(), now);
        ghosts.begin(3, "bert".into(), task("u", Some(Over::Done)), now);
        answered(&mut ghosts, 1, now);
        assert_eq!(ghosts.cancel("anna", &Id::number(7), now), None);
        ghosts.told(&task("t", None), now);
        ghosts.told(&task("u", Some(Over::Done)), now);
        ghosts.told(&Task { id: None, over: Some(Over::Done) }, now);
        assert!(ghosts.known.len() == 2 && !ghosts.are_of("bert", late) && ghosts.are_of("anna", late));
        ghosts.told(&task("t", Some(Over::Done)), now);
        assert!(ghosts.known.len() == 1 && !ghosts.are_of("bert", late), "the other one cannot be told of");
    }

    #[test]
    fn a_cancelled_task_may_be_worked_on_for_a_while() {
        let now = Instant::now();
        let mut ghosts = Ghosts::default();
        ghosts.begin(1, "anna".into(), task("t", None), now);
        ghosts.begin(2, "anna".into(), task("u", Some(Over::Cancelled)), now);
        ghosts.told(&task("t", Some(Over::Cancelled)), now);
        // However often it is asked for.
        ghosts.told(&task("t", Some(Over::Cancelled)), now + SECOND);
        assert!(!ghosts.are_of("bert", now + CANCELLED_MAX - SECOND));
        assert!(ghosts.are_of("bert", now + CANCELLED_MAX));
    }

    #[test]
    fn a_call_whose_caller_left_becomes_the_task_that_it_wanted_even_late() {
        let now = Instant::now();
        let late = now + CALL_TIMEOUT * 100;
        let mut ghosts = Ghosts::default();
        ghosts.add(1, call("anna", false, None, now), now);
        ghosts.answered(1, || Some(task("t", None)), now);
        assert!(ghosts.is_empty(now), "it wanted none");
        ghosts.add(2, call("anna", true, Some(now), now), now);
        assert!(ghosts.are_of("bert", late));
        ghosts.answered(2, || Some(task("t", None)), late);
        assert!(!ghosts.are_of("bert", late));
        ghosts.add(3, call("anna", true, None, now), now);
        ghosts.told(&task("t", Some(Over::Done)), now);
        answered(&mut ghosts, 3, now);
        assert!(ghosts.is_empty(now));
    }

    #[test]
    fn more_than_can_be_counted_go_together_when_the_last_has_had_its_time() {
        let now = Instant::now();
        let (later, over) = (now + SECOND, now + SECOND + CALL_TIMEOUT);
        let mut ghosts = Ghosts::default();
        let fill = |ghosts: &mut Ghosts, session, cancelled, now| {
            (0..2_000).for_each(|number| ghosts.add(number, call(session, false, cancelled, now), now));
        };
        let lay = |ghosts: &mut Ghosts| (0..2_000).for_each(|number| answered(ghosts, number, now));
        fill(&mut ghosts, "anna", Some(now), now);
        lay(&mut ghosts);
        assert!(ghosts.are_of("anna", now) && !ghosts.are_of("bert", now) && !ghosts.is_empty(now));
        fill(&mut ghosts, "bert", None, later);
        lay(&mut ghosts);
        assert!(!ghosts.are_of("anna", over - SECOND) && !ghosts.are_of("bert", over - SECOND));
        assert!(ghosts.is_empty(over));
        // The dead make room, each for one that is known.
        fill(&mut ghosts, "anna", Some(over), over);
        ghosts.add(3_000, call("bert", false, None, over + CANCELLED_MAX), over + CANCELLED_MAX);
        assert_eq!(ghosts.known.len(), 1);
    }

    #[test]
    fn a_task_that_is_not_known_by_itself_is_never_over() {
        let now = Instant::now();
        for augmented in [false, true] {
            let mut ghosts = Ghosts::default();
            (0..1_000).for_each(|number| ghosts.add(number, call("anna", false, None, now), now));
            match augmented {
                true => ghosts.add(1_000, call("anna", true, Some(now), now), now),
                false => ghosts.begin(1_000, "anna".into(), task("t", None), now),
            }
            ghosts.add(1_001, call("anna", false, None, now), now);
            let late = now + CALL_TIMEOUT * 100;
            assert!(ghosts.are_of("anna", late) && !ghosts.are_of("bert", late), "{augmented}");
        }
    }
}
