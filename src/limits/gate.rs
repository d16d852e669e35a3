//! A number of places for work, and fair lines before them: one per tenant. While there are free places it is one atomic.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::AcqRel;
use std::sync::atomic::Ordering::Acquire;

use tokio::sync::oneshot;

use super::queue::Queue;

/// The upper half of the word counts who waits, the lower half what is free.
const WAITER: u64 = 1 << 32;
const FREE: u64 = WAITER - 1;

/// How many may wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lines {
    pub waiting_max: usize,
    pub waiting_per_tenant_max: usize,
}

impl Lines {
    /// Whoever waits is bounded elsewhere.
    pub const UNBOUNDED: Lines = Lines { waiting_max: usize::MAX, waiting_per_tenant_max: usize::MAX };
}

/// Which line is full.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Full {
    All,
    Tenant,
}

/// INVARIANT: while somebody waits nothing is free, so nobody overtakes those in line. The count of waiters changes only
/// under the lock.
pub struct Gate {
    word: AtomicU64,
    queue: Mutex<Queue<oneshot::Sender<()>>>,
    lines: Lines,
    places: u32,
}

impl Gate {
    pub fn new(places: usize, lines: Lines) -> Arc<Gate> {
        let places = u32::try_from(places).unwrap_or(u32::MAX).max(1);
        Arc::new(Gate { word: AtomicU64::new(u64::from(places)), queue: Mutex::default(), lines, places })
    }

    /// Takes a place, after those who wait.
    ///
    /// # Errors
    /// [`Full`] when too many wait.
    pub async fn enter(self: &Arc<Self>, whose: &str, cost: u32) -> Result<Pass, Full> {
        if self.took_free() {
            return Ok(Pass(self.clone()));
        }
        let Some(mut waiting) = self.stand(whose, cost)? else { return Ok(Pass(self.clone())) };
        // A sender goes away with the gate alone, which is held here.
        waiting.granted = (&mut waiting.turn).await.is_ok();
        Ok(Pass(self.clone()))
    }

    /// Holds a place, or nothing.
    pub fn try_enter(self: &Arc<Self>) -> Option<Pass> {
        self.took_free().then(|| Pass(self.clone()))
    }

    pub fn places(&self) -> u32 {
        self.places
    }

    pub fn taken(&self) -> u32 {
        let free = u32::try_from(self.word.load(Acquire) & FREE).unwrap_or(0);
        self.places.saturating_sub(free)
    }

    pub fn waiting(&self) -> usize {
        usize::try_from(self.word.load(Acquire) / WAITER).unwrap_or(usize::MAX)
    }

    fn queue(&self) -> MutexGuard<'_, Queue<oneshot::Sender<()>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn took_free(&self) -> bool {
        let take = |word: u64| (word < WAITER && word > 0).then(|| word - 1);
        self.word.fetch_update(AcqRel, Acquire, take).is_ok()
    }

    /// Stands in line; `None` when a place became free just now.
    fn stand<'a>(self: &'a Arc<Self>, whose: &'a str, cost: u32) -> Result<Option<Waiting<'a>>, Full> {
        let mut queue = self.queue();
        if queue.len_of(whose) >= self.lines.waiting_per_tenant_max {
            return Err(Full::Tenant);
        }
        if queue.len() >= self.lines.waiting_max {
            return Err(Full::All);
        }
        let step = |word: u64| Some(if word < WAITER && word > 0 { word - 1 } else { word + WAITER });
        let before = self.word.fetch_update(AcqRel, Acquire, step).unwrap_or_else(|word| word);
        if before < WAITER && before > 0 {
            return Ok(None);
        }
        let (call, turn) = oneshot::channel();
        let id = queue.push(whose, cost, call);
        Ok(Some(Waiting { gate: self, whose, id, turn, granted: false }))
    }

    /// A place goes to whose turn it is.
    fn leave(&self) {
        let free = |word: u64| (word < WAITER).then(|| word + 1);
        if self.word.fetch_update(AcqRel, Acquire, free).is_ok() {
            return;
        }
        let mut queue = self.queue();
        while let Some(next) = queue.pop() {
            self.word.fetch_sub(WAITER, AcqRel);
            if next.send(()).is_ok() {
                return;
            }
        }
        self.word.fetch_add(1, AcqRel);
    }
}

/// Somebody in line. Dropped when they do not want to wait any longer.
struct Waiting<'a> {
    gate: &'a Arc<Gate>,
    whose: &'a str,
    id: u64,
    turn: oneshot::Receiver<()>,
    granted: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.granted {
            return;
        }
        let mut queue = self.gate.queue();
        if queue.remove(self.whose, self.id).is_some() {
            self.gate.word.fetch_sub(WAITER, AcqRel);
            return;
        }
        drop(queue);
        // Their turn came at this very moment: it goes on to the next.
        if self.turn.try_recv().is_ok() {
            self.gate.leave();
        }
    }
}

/// A place. Dropping it lets the next one in.
#[must_use = "a place that is not held is free"]
pub struct Pass(Arc<Gate>);

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::FutureExt as _;
    use futures_util::poll;

    use super::*;

    fn bounded(waiting_max: usize, waiting_per_tenant_max: usize) -> Lines {
        Lines { waiting_max, waiting_per_tenant_max }
    }

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        future.now_or_never()
    }

    #[tokio::test]
    async fn free_places_are_taken_at_once_and_the_next_one_waits_for_the_first_to_leave() {
        let gate = Gate::new(2, Lines::UNBOUNDED);
        let (one, _two) = (now(gate.enter("a", 1)).unwrap().unwrap(), now(gate.enter("a", 1)).unwrap().unwrap());
        let mut third = std::pin::pin!(gate.enter("a", 1));
        assert!(poll!(&mut third).is_pending());
        assert_eq!((gate.taken(), gate.waiting()), (2, 1));
        assert!(gate.try_enter().is_none());
        drop(one);
        assert!(gate.try_enter().is_none(), "the place is the waiter's, nobody overtakes");
        let Poll::Ready(Ok(third)) = poll!(&mut third) else { panic!("its turn") };
        assert_eq!((gate.taken(), gate.waiting()), (2, 0));
        drop((third, _two));
        assert_eq!((gate.taken(), gate.waiting()), (0, 0));
    }

    #[tokio::test]
    async fn while_one_tenant_has_500_in_line_another_is_served_within_two_turns() {
        let gate = Gate::new(4, Lines::UNBOUNDED);
        let held: Vec<_> = (0..4).map(|_| gate.try_enter().unwrap()).collect();
        let mut noisy: Vec<_> = (0..500).map(|_| Box::pin(gate.enter("noisy", 1))).collect();
        for one in &mut noisy {
            assert!(poll!(one).is_pending());
        }
        let mut quiet = Box::pin(gate.enter("quiet", 1));
        assert!(poll!(&mut quiet).is_pending());
        let mut turns = 0;
        for pass in held {
            drop(pass);
            turns += 1;
            if poll!(&mut quiet).is_ready() {
                break;
            }
        }
        assert!(turns <= 2, "{turns}");
    }

    #[tokio::test]
    async fn who_leaves_the_line_leaves_no_place_behind_and_loses_none() {
        let gate = Gate::new(1, Lines::UNBOUNDED);
        let pass = gate.try_enter().unwrap();
        {
            let mut gone = Box::pin(gate.enter("a", 1));
            assert!(poll!(&mut gone).is_pending());
        }
        assert_eq!(gate.waiting(), 0);
        let mut late = Box::pin(gate.enter("a", 1));
        let mut next = Box::pin(gate.enter("a", 1));
        assert!(poll!(&mut late).is_pending() && poll!(&mut next).is_pending());
        drop(pass); // it is the first one's turn
        drop(late); // who has not looked yet, and leaves
        assert!(poll!(&mut next).is_ready());
        assert_eq!((gate.taken(), gate.waiting()), (0, 0));
    }

    #[tokio::test]
    async fn lines_are_bounded_for_each_and_for_all() {
        let gate = Gate::new(1, bounded(3, 2));
        let _pass = gate.try_enter().unwrap();
        let mut waiting: Vec<_> = ["a", "a", "b"].map(|whose| Box::pin(gate.enter(whose, 1))).into();
        for one in &mut waiting {
            assert!(poll!(one).is_pending());
        }
        assert_eq!(gate.enter("a", 1).await.err(), Some(Full::Tenant));
        assert_eq!(gate.enter("b", 1).await.err(), Some(Full::All));
        waiting.clear();
        assert_eq!(gate.waiting(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn under_contention_no_place_is_lost_or_given_twice() {
        let gate = Gate::new(3, Lines::UNBOUNDED);
        let inside = Arc::new(AtomicU64::new(0));
        let work: Vec<_> = (0..16)
            .map(|task| {
                let (gate, inside) = (gate.clone(), inside.clone());
                tokio::spawn(async move {
                    for turn in 0..500 {
                        let whose = (task % 3).to_string();
                        let mut entering = Box::pin(gate.enter(&whose, 1));
                        if turn % 5 == 0 {
                            // Some give up at once.
                            drop(poll!(&mut entering));
                            continue;
                        }
                        let pass = entering.await.unwrap();
                        assert!(inside.fetch_add(1, AcqRel) < 3);
                        tokio::task::yield_now().await;
                        inside.fetch_sub(1, AcqRel);
                        drop(pass);
                    }
                })
            })
            .collect();
        for one in work {
            one.await.unwrap();
        }
        assert_eq!((gate.taken(), gate.waiting()), (0, 0));
    }
}
