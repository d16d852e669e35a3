//! A circuit breaker: after failures in a row an upstream is left alone for a while, then tried by one call. Pure: the
//! time is an argument.

use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Config {
    /// So many failures in a row open the circuit.
    pub failures: u32,
    /// If they lie within this.
    pub window: Duration,
    /// How long the upstream is left alone before one call may try it.
    pub pause: Duration,
}

/// The state of one circuit.
#[derive(Debug)]
pub struct Breaker {
    config: Config,
    state: State,
    /// Counts the openings. What began before the last one says nothing about what is now.
    era: u64,
}

#[derive(Debug)]
enum State {
    /// Calls pass. When the failures since the last success were.
    Closed(VecDeque<Instant>),
    /// No call passes until then.
    Open(Instant),
    /// One call is trying.
    HalfOpen,
}

/// What a call that may pass gives back with its outcome.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    era: u64,
    probe: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The upstream answered, whatever it said.
    Alive,
    /// It did not.
    Failed,
    /// The call ended before that could be known.
    Unknown,
}

/// What an outcome changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    Closed,
    Nothing,
    Opened,
}

impl Breaker {
    pub fn new(config: Config) -> Breaker {
        Breaker { config, state: State::Closed(VecDeque::new()), era: 0 }
    }

    /// May a call pass now?
    ///
    /// # Errors
    /// How long it is until one may.
    pub fn admit(&mut self, now: Instant) -> Result<Pass, Duration> {
        match self.state {
            State::Closed(_) => Ok(Pass { era: self.era, probe: false }),
            State::Open(until) if until <= now => {
                self.state = State::HalfOpen;
                Ok(Pass { era: self.era, probe: true })
            }
            State::Open(until) => Err(until.saturating_duration_since(now)),
            // The one that tries is not back yet; nobody knows when it will be.
            State::HalfOpen => Err(Duration::from_secs(1)),
        }
    }

    /// What became of a call that passed.
    pub fn report(&mut self, pass: Pass, outcome: Outcome, now: Instant) -> Change {
        if pass.era != self.era {
            return Change::Nothing;
        }
        match (&mut self.state, outcome) {
            (State::Closed(failures), Outcome::Alive) => {
                failures.clear();
                Change::Nothing
            }
            (State::Closed(failures), Outcome::Failed) => {
                failures.push_back(now);
                let needed = usize::try_from(self.config.failures.max(1)).unwrap_or(usize::MAX);
                if failures.len() > needed {
                    failures.pop_front();
                }
                let since = failures.front().map(|first| now.saturating_duration_since(*first));
                if failures.len() == needed && since.is_some_and(|since| since <= self.config.window) {
                    return self.open(now);
                }
                Change::Nothing
            }
            (State::HalfOpen, Outcome::Alive) if pass.probe => {
                self.state = State::Closed(VecDeque::new());
                self.era += 1;
                Change::Closed
            }
            (State::HalfOpen, Outcome::Failed) if pass.probe => self.open(now),
            // Nothing was learnt: the next call tries.
            (State::HalfOpen, Outcome::Unknown) if pass.probe => {
                self.state = State::Open(now);
                Change::Nothing
            }
            (State::Closed(_) | State::HalfOpen | State::Open(_), _) => Change::Nothing,
        }
    }

    fn open(&mut self, now: Instant) -> Change {
        self.state = State::Open(now.checked_add(self.config.pause).unwrap_or(now));
        self.era += 1;
        Change::Opened
    }

    /// Do calls pass?
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: Config = Config { failures: 3, window: Duration::from_secs(60), pause: Duration::from_secs(10) };

    fn second(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// A breaker that has just been opened, and when.
    fn open() -> (Breaker, Instant) {
        let (mut breaker, now) = (Breaker::new(CONFIG), Instant::now());
        for _ in 0..3 {
            let pass = breaker.admit(now).expect("closed");
            breaker.report(pass, Outcome::Failed, now);
        }
        assert!(!breaker.is_closed());
        (breaker, now)
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_them_does_not() {
        let (mut breaker, now) = (Breaker::new(CONFIG), Instant::now());
        for outcome in
            [Outcome::Failed, Outcome::Failed, Outcome::Alive, Outcome::Failed, Outcome::Unknown, Outcome::Failed]
        {
            let pass = breaker.admit(now).expect("closed");
            assert_eq!(breaker.report(pass, outcome, now), Change::Nothing);
        }
        let pass = breaker.admit(now).expect("closed");
        assert_eq!(breaker.report(pass, Outcome::Failed, now), Change::Opened);
        assert_eq!(breaker.admit(now + second(4)).map(drop), Err(second(6)));
    }

    #[test]
    fn failures_that_are_far_apart_do_not_open_it() {
        let (mut breaker, start) = (Breaker::new(CONFIG), Instant::now());
        for turn in 0..20 {
            let now = start + second(31) * turn;
            let pass = breaker.admit(now).expect("closed");
            assert_eq!(breaker.report(pass, Outcome::Failed, now), Change::Nothing, "{turn}");
        }
    }

    #[test]
    fn one_call_at_a_time_tries_it_and_closes_it() {
        let (mut breaker, now) = open();
        let later = now + second(10);
        let probe = breaker.admit(later).expect("the pause is over");
        assert!(breaker.admit(later).is_err(), "one is trying");
        assert_eq!(breaker.report(probe, Outcome::Alive, later), Change::Closed);
        assert!(breaker.is_closed());
        assert!(breaker.admit(later).is_ok() && breaker.admit(later).is_ok());
    }

    #[test]
    fn a_probe_that_fails_opens_it_again_and_one_that_is_given_up_lets_the_next_try() {
        let (mut breaker, now) = open();
        let later = now + second(10);
        let probe = breaker.admit(later).expect("the pause is over");
        assert_eq!(breaker.report(probe, Outcome::Failed, later), Change::Opened);
        assert_eq!(breaker.admit(later + second(1)).map(drop), Err(second(9)));
        let probe = breaker.admit(later + second(10)).expect("the pause is over");
        assert_eq!(breaker.report(probe, Outcome::Unknown, later + second(11)), Change::Nothing);
        assert!(!breaker.is_closed());
        assert!(breaker.admit(later + second(11)).is_ok());
    }

    #[test]
    fn what_began_before_it_opened_changes_nothing() {
        let (mut breaker, now) = (Breaker::new(CONFIG), Instant::now());
        let passes: Vec<Pass> = (0..5).map(|_| breaker.admit(now).expect("closed")).collect();
        for pass in passes.iter().take(3) {
            breaker.report(*pass, Outcome::Failed, now);
        }
        assert_eq!(breaker.report(passes[3], Outcome::Alive, now), Change::Nothing);
        assert!(!breaker.is_closed(), "an old success does not close it");
        let _probe = breaker.admit(now + second(10)).expect("the pause is over");
        assert_eq!(breaker.report(passes[4], Outcome::Failed, now), Change::Nothing);
        assert_eq!(breaker.report(passes[4], Outcome::Alive, now), Change::Nothing, "only the probe decides");
        assert!(!breaker.is_closed());
    }
}
