//! Deficit round robin: who waits longest in one line says nothing, every line gets its turn. Pure.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;

/// What each line may spend in a round; the least that anything costs.
const QUANTUM: u32 = 1;

/// Nothing costs more than so many small ones.
pub(super) const COST_MAX: u32 = 16;

/// One line per tenant.
pub(super) struct Queue<T> {
    lines: HashMap<Arc<str>, Line<T>>,
    round: VecDeque<Arc<str>>,
    waiting: usize,
    last_id: u64,
}

struct Line<T> {
    waiting: VecDeque<Waiter<T>>,
    deficit: u32,
}

struct Waiter<T> {
    id: u64,
    cost: u32,
    item: T,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue { lines: HashMap::new(), round: VecDeque::new(), waiting: 0, last_id: 0 }
    }
}

impl<T> Queue<T> {
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    pub(super) fn len_of(&self, whose: &str) -> usize {
        self.lines.get(whose).map_or(0, |line| line.waiting.len())
    }

    /// At the end of the line; gives a number to be removed by.
    pub(super) fn push(&mut self, whose: &str, cost: u32, item: T) -> u64 {
        self.last_id += 1;
        let waiter = Waiter { id: self.last_id, cost: cost.clamp(1, COST_MAX), item };
        match self.lines.get_mut(whose) {
            Some(line) => line.waiting.push_back(waiter),
            None => {
                let whose: Arc<str> = whose.into();
                self.round.push_back(whose.clone());
                self.lines.insert(whose, Line { waiting: [waiter].into(), deficit: QUANTUM });
            }
        }
        self.waiting += 1;
        self.last_id
    }

    /// Whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        // Each turn of the loop ends in an answer, or lets a line save for its first: after COST_MAX rounds one has enough.
        loop {
            let whose = self.round.front()?.clone();
            let Some(line) = self.lines.get_mut(&whose) else {
                self.round.pop_front();
                continue;
            };
            let Some(first) = line.waiting.pop_front() else {
                self.leave(&whose);
                continue;
            };
            if line.deficit >= first.cost {
                line.deficit -= first.cost;
                if line.waiting.is_empty() {
                    self.leave(&whose); // nothing is saved up by staying away
                }
                self.waiting -= 1;
                return Some(first.item);
            }
            line.waiting.push_front(first);
            line.deficit += QUANTUM;
            self.round.rotate_left(1);
        }
    }

    /// Somebody will not wait any longer. `None`: it was their turn already.
    pub(super) fn remove(&mut self, whose: &str, id: u64) -> Option<T> {
        let line = self.lines.get_mut(whose)?;
        let place = line.waiting.binary_search_by_key(&id, |waiter| waiter.id).ok()?;
        let waiter = line.waiting.remove(place)?;
        if line.waiting.is_empty() {
            self.leave(whose);
        }
        self.waiting -= 1;
        Some(waiter.item)
    }

    fn leave(&mut self, whose: &str) {
        self.lines.remove(whose);
        self.round.retain(|one| &**one != whose);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_who_comes_alone_waits_for_one_of_those_who_came_in_crowds() {
        let mut queue = Queue::default();
        for _ in 0..500 {
            queue.push("noisy", 1, "noisy");
        }
        queue.push("quiet", 1, "quiet");
        let turns: Vec<_> = (0..4).filter_map(|_| queue.pop()).collect();
        let place = turns.iter().position(|one| *one == "quiet");
        assert!(place.is_some_and(|place| place <= 1), "{turns:?}");
    }

    #[test]
    fn what_costs_more_comes_less_often() {
        let mut queue = Queue::default();
        for _ in 0..100 {
            queue.push("large", 4, "large");
            queue.push("small", 1, "small");
        }
        let served: Vec<_> = (0..50).filter_map(|_| queue.pop()).collect();
        let large = served.iter().filter(|one| **one == "large").count();
        assert!((9..=11).contains(&large), "one in five: {large}");
    }

    #[test]
    fn who_leaves_the_line_is_not_served_and_an_empty_queue_keeps_nothing() {
        let mut queue = Queue::default();
        let first = queue.push("a", 1, 1);
        queue.push("a", 1, 2);
        assert_eq!(queue.remove("a", first), Some(1));
        assert_eq!(queue.remove("a", first), None);
        assert_eq!((queue.pop(), queue.pop(), queue.len()), (Some(2), None, 0));
        assert!(queue.lines.is_empty() && queue.round.is_empty());
    }

    proptest! {
        /// While two lines wait, neither is ahead of the other by more than one request's cost and a quantum.
        #[test]
        fn lines_that_wait_are_served_alike(costs in prop::collection::vec((0u8..4, 1u32..=COST_MAX), 1..200)) {
            let mut queue = Queue::default();
            for (whose, cost) in &costs {
                queue.push(&whose.to_string(), *cost, (*whose, *cost));
            }
            let mut spent = [0u32; 4];
            let mut total = 0;
            while let Some((whose, cost)) = queue.pop() {
                spent[usize::from(whose)] += cost;
                total += 1;
                let busy: Vec<u32> =
                    (0..4u8).filter(|one| queue.len_of(&one.to_string()) > 0).map(|one| spent[usize::from(one)]).collect();
                if let (Some(least), Some(most)) = (busy.iter().min(), busy.iter().max()) {
                    prop_assert!(most - least <= COST_MAX + QUANTUM, "{busy:?}");
                }
            }
            prop_assert_eq!(total, costs.len());
            prop_assert_eq!(queue.len(), 0);
        }
    }
}
