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
    /// How long the upstream is left alone before one call may try it, and how long that one keeps the others waiting.
    pub pause: Duration,
}

/// The state of one circuit.
#[derive(Debug)]
pub struct Breaker {
    config: Config,
    state: State,
    /// Counts the openings. What began before the last one says nothing about what is now.
    era: u64,
    /// Counts the calls that tried.
    probes: u64,
}

#[derive(Debug)]
enum State {
    /// Calls pass. When the failures since the last success were.
    Closed(VecDeque<Instant>),
    /// No call passes until then.
    Open(Instant),
    /// One call is trying, this one the last; if it takes longer than until then, another one may.
    HalfOpen { probe: u64, until: Instant },
}

/// What a call that may pass gives back with its outcome.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    era: u64,
    /// Which of the calls that tried it is.
    probe: Option<u64>,
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
        Breaker { config, state: State::Closed(VecDeque::new()), era: 0, probes: 0 }
    }

    /// May a call pass now?
    ///
    /// # Errors
    /// How long it is until one may.
    pub fn admit(&mut self, now: Instant) -> Result<Pass, Duration> {
        match self.state {
            State::Closed(_) => Ok(Pass { era: self.era, probe: None }),
            State::Open(until) | State::HalfOpen { until, .. } if until <= now => {
                self.probes += 1;
                let until = now.checked_add(self.config.pause).unwrap_or(now);
                self.state = State::HalfOpen { probe: self.probes, until };
                Ok(Pass { era: self.era, probe: Some(self.probes) })
            }
            State::Open(until) | State::HalfOpen { until, .. } => Err(until.saturating_duration_since(now)),
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
            // Also of one that took long, when another one has begun to try.
            (State::HalfOpen { .. }, Outcome::Alive) if pass.probe.is_some() => {
                self.state = State::Closed(VecDeque::new());
                self.era += 1;
                Change::Closed
            }
            (State::HalfOpen { .. }, Outcome::Failed) if pass.probe.is_some() => self.open(now),
            // Nothing was learnt: the next call tries.
            (State::HalfOpen { probe, .. }, Outcome::Unknown) if pass.probe == Some(*probe) => {
                self.state = State::Open(now);
                Change::Nothing
            }
            (State::Closed(_) | State::HalfOpen { .. } | State::Open(_), _) => Change::Nothing,
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
    fn a_probe_that_takes_long_does_not_keep_the_others_out_for_ever() {
        let (mut breaker, now) = open();
        let slow = breaker.admit(now + second(10)).expect("the pause is over");
        assert_eq!(breaker.admit(now + second(14)).map(drop), Err(second(6)));
        let next = breaker.admit(now + second(20)).expect("the first one takes too long");
        assert_eq!(breaker.report(slow, Outcome::Unknown, now + second(21)), Change::Nothing);
        assert_eq!(breaker.admit(now + second(21)).map(drop), Err(second(9)), "the second one is trying");
        assert_eq!(breaker.report(slow, Outcome::Alive, now + second(22)), Change::Closed, "late, but an answer");
        assert_eq!(breaker.report(next, Outcome::Failed, now + second(23)), Change::Nothing, "of another time");
        assert!(breaker.is_closed());
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
