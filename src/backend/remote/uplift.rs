//! Modern calls at a legacy upstream: sessions are opened for them, requests and answers rewritten, questions of the server
//! turned into `input_required` results, subscriptions into session streams.
//!
//! | Modern | Legacy |
//! |---|---|
//! | `server/discover` | from the `initialize` result of the caller's session |
//! | any request | in a pooled session, under an id of ours ([`sessions`], [`request`]) |
//! | `subscriptions/listen` | the same session's GET stream and what its calls bring, shared by its listeners ([`listen`], [`watches`]); they move when the session is replaced |
//! | an answer, its notifications | hints and types added, legacy codes mapped ([`answer`]) |
//! | `input_required` and the retry | a server's question; the call waits meanwhile ([`parked`]) |
//! | the client leaves | `notifications/cancelled` ([`exchange`]) |
//!
//! INVARIANT: a call is sent a second time only if the upstream certainly did not carry it out, or if it may run twice.

mod answer;
mod ear;
mod exchange;
mod listen;
mod parked;
mod request;
mod sessions;
mod watches;

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use futures_util::StreamExt;
use tokio::sync::Semaphore;

pub(super) use ear::Ears;
pub(super) use request::Level;

use super::Blame;
use super::Config;
use super::Reach;
use super::Transport;
use super::left;
use super::session::Line;
use crate::backend::Answer;
use crate::backend::Content;
use crate::backend::Error;
use crate::catalog::Effect;
use crate::catalog::Kind;
use crate::credentials::Credential;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::error;
use crate::mcp::object::Members;
use crate::mcp::object::Writer;
use crate::mcp::sse::Event;
use crate::policy::Permit;
use answer::Raised;
use exchange::Exchange;
use exchange::Step;
use listen::Crowd;
use listen::Filter;
use parked::Closed;
use parked::Owner;
use parked::Parked;
use request::Asked;
use sessions::Key;
use sessions::Pool;
use sessions::Taken;

/// An upstream that answers by a stream is waited for so long in the hope that nothing but the answer is on it: then the
/// client gets a plain answer with its status.
const PATIENCE: Duration = Duration::from_secs(1);

/// All that is bounded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Upstream sessions that are open.
    pub(super) sessions_max: usize,
    /// One caller's: as many credentials and sets of abilities.
    pub(super) sessions_per_principal_max: usize,
    /// A session that nobody uses is ended after this.
    pub(super) session_idle_timeout: Duration,
    /// A session gets no more calls after this.
    pub(super) session_lifetime: Duration,
    /// Calls that wait for their client's answer.
    pub(super) parked_max: usize,
    pub(super) parked_per_principal_max: usize,
    /// A client must answer within this.
    pub(super) parked_timeout: Duration,
    /// `subscriptions/listen` streams.
    pub(super) listens_max: usize,
    pub(super) listens_per_principal_max: usize,
    /// Sessions whose own stream is held open for questions that servers put there.
    pub(super) ears_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            sessions_max: 1_000,
            sessions_per_principal_max: 16,
            session_idle_timeout: Duration::from_secs(10 * 60),
            session_lifetime: Duration::from_secs(8 * 60 * 60),
            parked_max: 1_000,
            parked_per_principal_max: 16,
            parked_timeout: Duration::from_secs(5 * 60),
            listens_max: 1_000,
            listens_per_principal_max: 16,
            ears_max: 1_000,
        }
    }
}

impl Limits {
    /// What waits holds a connection or a process: a quarter of them is left to what does not.
    pub(super) fn of(transport: &Transport) -> Limits {
        let room = match transport {
            Transport::Http(http) => http.connections_max,
            Transport::Sse(sse) => sse.connections_max,
            Transport::Stdio(stdio) => stdio.processes_max,
        };
        let limits = Limits::default();
        let quarter = room / 4;
        let listens_max = quarter.clamp(1, limits.listens_max);
        let sessions_max = match transport {
            Transport::Http(_) => limits.sessions_max,
            // Each session may hold a connection or a process as long as it lasts.
            Transport::Sse(_) | Transport::Stdio(_) => (room / 2).min(limits.sessions_max),
        };
        Limits {
            // Those that are kept by listeners leave as many to calls.
            sessions_max: sessions_max + listens_max,
            parked_max: quarter.clamp(1, limits.parked_max),
            listens_max,
            ears_max: quarter.min(limits.ears_max),
            ..limits
        }
    }
}

pub(super) struct Uplift {
    upstream: Arc<dyn Reach>,
    blame: Blame,
    limits: Limits,
    pool: Arc<Pool>,
    parked: Arc<Parked>,
    crowd: Arc<Crowd>,
    ears: Arc<Semaphore>,
    /// For the streams of sessions that are listened to; `ears` come first.
    ears_of_listeners: Arc<Semaphore>,
    /// "Session lost" is said before the call was carried out: over HTTP it is the whole answer to it. A process may die of
    /// the call itself.
    lost_means_not_run: bool,
}

impl Uplift {
    pub(super) fn new(config: &Config, upstream: Arc<dyn Reach>, limits: Limits) -> Uplift {
        let blame = Blame(config.name.clone());
        Uplift {
            upstream,
            limits,
            pool: Pool::new(blame.clone(), limits),
            parked: Parked::new(config.name.clone(), limits),
            crowd: Arc::default(),
            ears: Arc::new(Semaphore::new(limits.ears_max)),
            ears_of_listeners: Arc::new(Semaphore::new(limits.listens_max)),
            lost_means_not_run: matches!(config.transport, Transport::Http(_)),
            blame,
        }
    }

    /// Runs a permitted modern call.
    ///
    /// # Errors
    /// When there is no trustworthy answer. [`Error::Protocol`] also when the upstream turns out to be no legacy server;
    /// then nothing was sent to it but the handshake.
    pub(super) async fn call(
        &self,
        permit: &Permit,
        message: &Message,
        credential: &Arc<Credential>,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        if !message.is_request() {
            // SPEC: 2026-07-28 knows no notification of clients over HTTP.
            return Ok(Answer::empty(202));
        }
        let asked = match Asked::read(message) {
            Ok(asked) => Asked { whose: credential.identity().filter(|_| credential.is_personal()), ..asked },
            Err(what) => {
                let id = message.id().cloned().unwrap_or_else(|| crate::mcp::Id::number(0));
                return Ok(whole(answer::failure(&id, 400, error::INVALID_PARAMS, what, None)));
            }
        };
        let line = Line {
            upstream: self.upstream.clone(),
            credential: credential.clone(),
            owner: permit.owner().clone(),
            share: permit.share().into(),
            blame: self.blame.clone(),
        };
        let outcome = match asked.method {
            Method::SubscriptionsListen => self.listen(permit, &asked, &line, deadline).await,
            Method::ServerDiscover => self.discover(permit, &asked, &line, deadline).await,
            // SPEC: the tasks of 2025-11-25 are not those of the extension.
            Method::TasksCancel | Method::TasksGet | Method::TasksUpdate => {
                Ok(whole(answer::failure(&asked.id, 404, error::METHOD_NOT_FOUND, "Method not found", None)))
            }
            _ if asked.state.is_some() => self.resume(permit, asked, deadline).await,
            _ => self.run(permit, message, asked, &line, deadline).await,
        };
        // To a modern client there is no session that it could open again.
        outcome.map_err(|error| match error {
            Error::SessionLost { .. } => self.blame.unavailable("it lost the session of the call"),
            other => other,
        })
    }

    async fn take(&self, permit: &Permit, asked: &Asked, line: &Line, deadline: Instant) -> Result<Taken, Error> {
        let key = Key::new(permit.owner(), &line.credential, asked.abilities.to_json());
        self.pool.take(&key, line, &asked.introduction(), deadline).await
    }

    async fn discover(&self, permit: &Permit, asked: &Asked, line: &Line, deadline: Instant) -> Result<Answer, Error> {
        let session = self.take(permit, asked, line, deadline).await?.session;
        let offers = &session.hello.offers;
        let changes = [offers.tools, offers.prompts, offers.resources].into_iter().flatten();
        let some = { changes }.any(|offer| offer.list_changed || offer.subscribe);
        // What is told on a stream is on offer only where there is one.
        let listens =
            some && ear::has_stream(&session, (!asked.abilities.is_empty()).then_some(&self.ears), deadline).await;
        Ok(whole(answer::discovered(asked, &session.hello, listens)))
    }

    async fn listen(&self, permit: &Permit, asked: &Asked, line: &Line, deadline: Instant) -> Result<Answer, Error> {
        let limits = &self.limits;
        let place = self.crowd.enter(permit.owner(), limits.listens_max, limits.listens_per_principal_max);
        let place = place.ok_or_else(|| self.blame.unavailable("too many subscriptions are open"))?;
        let wanted = match Filter::read(asked.params.as_ref()) {
            Ok(wanted) => wanted,
            Err(what) => return Ok(whole(answer::failure(&asked.id, 400, error::INVALID_PARAMS, what, None))),
        };
        let places = [&self.ears, &self.ears_of_listeners];
        let mut first = true;
        loop {
            let taken = self.take(permit, asked, line, deadline).await?;
            match listen::listen(asked, wanted.clone(), &taken, &places, deadline).await {
                // To listen twice does nothing twice.
                Err(Error::SessionLost { .. }) if first => first = false,
                outcome => {
                    let content = outcome?.into_content(place);
                    return Ok(Answer { status: 200, session: None, content });
                }
            }
        }
    }

    async fn run(
        &self,
        permit: &Permit,
        message: &Message,
        asked: Asked,
        line: &Line,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let decl = &permit.call().decl;
        let reads = permit.call().effect <= Effect::ReadSensitive;
        let repeatable = decl.kind == Kind::Backend || reads || decl.retryable();
        let mut first = true;
        loop {
            let taken = self.take(permit, &asked, line, deadline).await?;
            if let Some(level) = asked.level {
                taken.session.log_from(level, deadline).await;
            }
            if asked.may_ask_back() && !asked.abilities.is_empty() {
                ear::listen(&taken.session, &self.ears).await;
            }
            let number = taken.session.number();
            let lowered = request::lower(message, number).map_err(|what| self.blame.protocol(what))?;
            let exchange = Exchange::begin(taken, &asked, number, lowered, repeatable);
            match self.answer(permit, exchange, &asked, deadline).await {
                Err(Error::SessionLost { .. }) if first && (repeatable || self.lost_means_not_run) => first = false,
                outcome => return outcome,
            }
        }
    }

    /// The retry of a client that was asked something: its answers go to the call that waits for them. Nothing is sent a
    /// second time, whatever happens.
    async fn resume(&self, permit: &Permit, asked: Asked, deadline: Instant) -> Result<Answer, Error> {
        let refused = |closed: Closed| {
            Ok(whole(answer::failure(&asked.id, 200, error::INVALID_PARAMS, &closed.to_string(), None)))
        };
        let state = asked.state.as_ref().and_then(|state| serde_json::from_slice::<String>(state).ok());
        let Some(state) = state.filter(|_| asked.may_ask_back()) else {
            return refused(Closed::Foreign);
        };
        let answers = asked.responses.clone().unwrap_or_else(|| bytes::Bytes::from_static(b"{}"));
        let Ok(answers) = Members::read(&answers) else {
            return refused(Closed::NoAnswer);
        };
        let digest = asked.digest();
        let mut exchange = match self.parked.fetch(&state, &Owner { principal: permit.owner(), digest }, &answers) {
            Ok(exchange) => exchange,
            Err(closed) => return refused(closed),
        };
        exchange.answer(&answers).await?;
        self.answer(permit, exchange, &asked, deadline).await
    }

    /// What the client gets: a plain answer if that is all there is soon, else a stream.
    async fn answer(
        &self,
        permit: &Permit,
        mut exchange: Exchange,
        asked: &Asked,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let mut until = if exchange.is_flowing() { deadline.min(Instant::now() + PATIENCE) } else { deadline };
        let first = loop {
            match pingora::time::timeout(left(until), exchange.step(asked)).await {
                Err(_) if until < deadline => break None,
                Err(_) => return Err(self.blame.timeout()),
                Ok(step) => match step? {
                    Step::Flowing => until = deadline.min(Instant::now() + PATIENCE),
                    Step::Relay(message) => break Some(Event::message(message)),
                    Step::Answer(raised) => return Ok(whole(raised)),
                    Step::Question => match ask_back(&self.parked, permit.owner(), exchange, asked) {
                        Ok(raised) => return Ok(whole(raised)),
                        Err(back) => exchange = back,
                    },
                },
            }
        };
        let flow = Flow {
            exchange: Some(exchange),
            first,
            asked: asked.clone(),
            principal: permit.owner().clone(),
            parked: self.parked.clone(),
        };
        let events =
            futures_util::stream::unfold(flow, |mut flow| async move { flow.next().await.map(|event| (event, flow)) });
        Ok(Answer { status: 200, session: None, content: Content::Events(events.boxed()) })
    }

    pub(super) async fn stop(&self) {
        self.parked.stop();
        self.pool.stop().await;
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.pool.count(), self.parked.count())
    }
}

/// Puts the call on the shelf and its questions to the client. Without room the server is refused, and the call goes on.
#[expect(clippy::result_large_err, reason = "the call comes back to go on")]
fn ask_back(parked: &Arc<Parked>, principal: &Arc<str>, exchange: Exchange, asked: &Asked) -> Result<Raised, Exchange> {
    let mut requests = Writer::new();
    for question in exchange.questions() {
        requests.raw(&question.key, &question.request);
    }
    let digest = asked.digest();
    match parked.park(&Owner { principal, digest }, exchange) {
        Ok(state) => {
            let body = answer::input_required(&asked.id, &requests.finish(), Some(&state));
            Ok(Raised { status: 200, body })
        }
        Err(mut exchange) => {
            exchange.refuse_questions("too many calls wait for their clients");
            Err(exchange)
        }
    }
}

fn whole(raised: Raised) -> Answer {
    Answer { status: raised.status, session: None, content: Content::Json(raised.body) }
}

/// A call whose client reads its stream.
struct Flow {
    /// `None` after the answer.
    exchange: Option<Exchange>,
    first: Option<Event>,
    asked: Asked,
    principal: Arc<str>,
    parked: Arc<Parked>,
}

impl Flow {
    async fn next(&mut self) -> Option<Result<Event, Error>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        loop {
            let step = match self.exchange.as_mut()?.step(&self.asked).await {
                Ok(step) => step,
                Err(error) => {
                    self.exchange = None;
                    return Some(Err(error));
                }
            };
            match step {
                Step::Flowing => {}
                Step::Relay(message) => return Some(Ok(Event::message(message))),
                Step::Answer(raised) => {
                    self.exchange = None;
                    return Some(Ok(Event::message(raised.body)));
                }
                Step::Question => match ask_back(&self.parked, &self.principal, self.exchange.take()?, &self.asked) {
                    Ok(raised) => return Some(Ok(Event::message(raised.body))),
                    Err(exchange) => self.exchange = Some(exchange),
                },
            }
        }
    }
}
