//! Requests whose callers left before the server answered: it may work on them still, and ask or tell of them. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

/// More are not known one by one any more.
const GHOSTS_MAX: usize = 1_000;

/// By the number of the request: whose it was. Each stays until the server answers it.
#[derive(Default)]
pub(super) struct Ghosts {
    known: BTreeMap<u64, Arc<str>>,
    rest: Rest,
}

/// Those beyond [`GHOSTS_MAX`], which stay as long as the channel.
#[derive(Default)]
enum Rest {
    #[default]
    None,
    Of(Arc<str>),
    OfSeveral,
}

impl Ghosts {
    pub(super) fn add(&mut self, number: u64, session: Arc<str>) {
        if self.known.len() < GHOSTS_MAX {
            self.known.insert(number, session);
            return;
        }
        self.rest = match std::mem::take(&mut self.rest) {
            Rest::None => Rest::Of(session),
            Rest::Of(other) if other == session => Rest::Of(other),
            Rest::Of(_) | Rest::OfSeveral => Rest::OfSeveral,
        };
    }

    /// The server has answered it.
    pub(super) fn lay(&mut self, number: u64) {
        self.known.remove(&number);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty() && matches!(self.rest, Rest::None)
    }

    /// Are there none of another session?
    pub(super) fn are_of(&self, session: &str) -> bool {
        let rest = match &self.rest {
            Rest::None => true,
            Rest::Of(other) => other.as_ref() == session,
            Rest::OfSeveral => false,
        };
        rest && self.known.values().all(|other| other.as_ref() == session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ghost_stays_until_it_is_answered_and_more_than_can_be_counted_stay_for_ever() {
        let (anna, bert): (Arc<str>, Arc<str>) = ("anna".into(), "bert".into());
        let mut ghosts = Ghosts::default();
        assert!(ghosts.is_empty() && ghosts.are_of("anna"));
        ghosts.add(1, anna.clone());
        assert!(ghosts.are_of("anna") && !ghosts.are_of("bert"));
        ghosts.lay(1);
        assert!(ghosts.is_empty() && ghosts.are_of("bert"));
        for number in 0..2_000 {
            ghosts.add(number, anna.clone());
        }
        (0..2_000).for_each(|number| ghosts.lay(number));
        assert!(ghosts.are_of("anna") && !ghosts.are_of("bert") && !ghosts.is_empty());
        for number in 0..1_001 {
            ghosts.add(number, bert.clone());
        }
        (0..2_000).for_each(|number| ghosts.lay(number));
        assert!(!ghosts.are_of("anna") && !ghosts.are_of("bert"));
    }
}
