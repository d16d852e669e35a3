//! The circuit breaker around a transport: an upstream that does not answer is left alone for a while.

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;

use super::Ask;
use super::Blame;
use super::Config;
use super::Reach;
use crate::backend::Answer;
use crate::backend::Error;
use crate::backend::breaker::Breaker;
use crate::backend::breaker::Change;
use crate::backend::breaker::Outcome;
use crate::backend::breaker::Pass;
use crate::catalog::Operation;
use crate::credentials::Credential;

pub(super) struct Guarded<U> {
    upstream: U,
    blame: Blame,
    /// A caller who had less time than it takes to connect learns nothing about the upstream.
    patience: Duration,
    breaker: Option<Mutex<Breaker>>,
}

impl<U: Reach> Guarded<U> {
    pub(super) fn new(upstream: U, config: &Config) -> Guarded<U> {
        Guarded {
            upstream,
            blame: Blame(config.name.clone()),
            patience: config.connect_timeout,
            breaker: config.breaker.map(|config| Mutex::new(Breaker::new(config))),
        }
    }
}

/// A call that passed. One that is dropped before its outcome is known says that nothing is.
struct Attempt<'a> {
    breaker: &'a Mutex<Breaker>,
    blame: &'a Blame,
    pass: Pass,
    outcome: Outcome,
}

fn open(breaker: &Mutex<Breaker>) -> MutexGuard<'_, Breaker> {
    breaker.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        match open(self.breaker).report(self.pass, self.outcome, Instant::now()) {
            Change::Nothing => {}
            Change::Opened => tracing::warn!(backend = %self.blame.0, "it does not answer: the circuit is open"),
            Change::Closed => tracing::info!(backend = %self.blame.0, "it answers again: the circuit is closed"),
        }
    }
}

#[async_trait]
impl<U: Reach> Reach for Guarded<U> {
    async fn ask(&self, ask: Ask<'_>, credential: &Credential, deadline: Instant) -> Result<Answer, Error> {
        let Some(breaker) = &self.breaker else {
            return self.upstream.ask(ask, credential, deadline).await;
        };
        let pass = open(breaker).admit(Instant::now()).map_err(|wait| {
            let seconds = wait.as_millis().div_ceil(1000).max(1);
            self.blame.unavailable(format!("circuit open, next try in {seconds} s"))
        })?;
        let mut attempt = Attempt { breaker, blame: &self.blame, pass, outcome: Outcome::Unknown };
        let asks = matches!(ask.operation, Operation::Post(_));
        let own = OnceLock::new();
        let reached = ask.reached.unwrap_or(&own);
        let answer = self.upstream.ask(Ask { reached: Some(reached), ..ask }, credential, deadline).await;
        // Who waited for a place of ours alone has learnt nothing of the upstream.
        let since = reached.get().map(Instant::elapsed);
        attempt.outcome = match &answer {
            Err(Error::Unavailable { .. }) if since.is_some() => Outcome::Failed,
            Err(Error::Timeout { .. }) if since.is_some_and(|since| since >= self.patience) => Outcome::Failed,
            // Streams and sessions may be our own affair: the upstream need not have been asked.
            Err(Error::Unavailable { .. } | Error::Timeout { .. } | Error::SessionLost { .. }) => Outcome::Unknown,
            Ok(_) if !asks => Outcome::Unknown,
            Ok(_)
            | Err(
                Error::AnswerTooLarge { .. }
                | Error::Credential(_)
                | Error::CredentialRefused { .. }
                | Error::Protocol { .. },
            ) => Outcome::Alive,
        };
        answer
    }

    fn healthy(&self) -> bool {
        self.upstream.healthy() && self.breaker.as_ref().is_none_or(|breaker| open(breaker).is_closed())
    }

    fn start(&self) {
        self.upstream.start();
    }

    async fn stop(&self) {
        self.upstream.stop().await;
    }
}
