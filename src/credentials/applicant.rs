//! `Applicant`: the gateway as an application of Entra that asks one of its services, for a caller or on its own behalf.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use moka::sync::Cache;
use tokio::sync::Mutex;
use tokio::sync::Semaphore;
use url::Url;

use super::Application;
use super::Why;
use super::answer;
use super::answer::Issued;
use super::assertion;
use super::assertion::Caller;
use super::client::Signer;
use super::mint;
use super::mint::Outage;
use crate::fetch::Answer;
use crate::fetch::Fetch;
use crate::fetch::Reach;
use crate::identity::entra::is_id;
use crate::principal::Assertion;
use crate::secret::Secret;

/// Tenants whose own token and whose outage are remembered.
const TENANTS_MAX: u64 = 1_000;

/// Questions at once: more would only make the service slower.
const QUESTIONS_MAX: usize = 64;

/// The gateway's own token is not used in its last moments.
const MARGIN: Duration = Duration::from_secs(60);

/// How long a refusal of the gateway's own token is remembered; an outage is [`Outage`]'s affair.
const REFUSED: Duration = Duration::from_secs(10);

/// Tokens that it gets leave this room only in the header of a question to the one service they are for.
pub struct Applicant {
    service: Url,
    login: String,
    grant: super::Grant,
    signer: Signer,
    /// To the token endpoints.
    tokens: Fetch,
    /// To the service.
    questions: Fetch,
    desks: Cache<Box<str>, Arc<Desk>>,
    places: Semaphore,
    timeout: Duration,
}

/// One tenant's token endpoint: what goes wrong at one is nothing to the others.
struct Desk {
    token_url: Url,
    outage: Outage,
    own: Mutex<Option<Own>>,
}

/// What came of asking for the gateway's own token.
struct Own {
    outcome: Result<Arc<Secret>, Why>,
    until: Instant,
}

impl Applicant {
    /// Connects to nothing.
    ///
    /// # Errors
    /// What is wrong with the client's key or certificate, or that there can be no HTTP client.
    pub fn new(config: &Application) -> Result<Applicant, String> {
        let login = Url::parse(&config.login).map_err(|_| format!("`{}` is not a URL", config.login))?;
        let fetch = |url: &Url| Fetch::new(Reach::of(url), None, config.timeout).map_err(|error| error.to_string());
        let questions = fetch(&config.service)?;
        let same = Reach::of(&login) == Reach::of(&config.service);
        Ok(Applicant {
            service: config.service.clone(),
            login: config.login.clone(),
            grant: config.grant.clone(),
            signer: Signer::new(&config.client)?,
            tokens: if same { questions.clone() } else { fetch(&login)? },
            questions,
            desks: Cache::new(TENANTS_MAX),
            places: Semaphore::new(QUESTIONS_MAX),
            timeout: config.timeout,
        })
    }

    /// Asks the service, in this tenant, for this caller: with a token that stands for them, or, where the grant is not
    /// personal, with the gateway's own. `body` is JSON. Within the configured time.
    ///
    /// # Errors
    /// When there is no token, and when the service is away; what it refuses is an answer.
    pub async fn ask(&self, tenant: &str, caller: &Assertion, path: &str, body: &str) -> Result<Answer, Why> {
        let desk = self.desk(tenant)?;
        desk.outage.check()?;
        let url = self.service.join(path).map_err(|_| Why::Misconfigured)?;
        let question = async {
            let _place = self.places.acquire().await;
            let token = self.token(&desk, caller).await?;
            let answer = self.questions.post_json(&url, body.to_owned(), &token, answer::ANSWER_BYTES_MAX).await;
            let answer = answer.map_err(|error| {
                tracing::warn!(%error, "the service does not answer");
                answer::silent()
            })?;
            match answer.status {
                401 => drop(desk.own.lock().await.take()),
                429 | 500.. => return Err(answer::away(&answer)),
                _ => {}
            }
            Ok(answer)
        };
        let answered = tokio::time::timeout(self.timeout, question).await.unwrap_or_else(|_| Err(answer::silent()));
        desk.outage.learn(&answered);
        answered
    }

    fn desk(&self, tenant: &str) -> Result<Arc<Desk>, Why> {
        // It becomes a part of the URL.
        if !is_id(tenant) {
            return Err(Why::Misconfigured);
        }
        let make = || {
            let token_url = Url::parse(&format!("{}/{tenant}/oauth2/v2.0/token", self.login))?;
            Ok::<_, url::ParseError>(Arc::new(Desk { token_url, outage: Outage::default(), own: Mutex::default() }))
        };
        self.desks.try_get_with(tenant.into(), make).map_err(|_| Why::Misconfigured)
    }

    async fn token(&self, desk: &Desk, caller: &Assertion) -> Result<Arc<Secret>, Why> {
        if !self.grant.is_personal() {
            return self.own(desk).await;
        }
        let caller = Caller::open(caller).ok_or(Why::UserRequired { what: assertion::NO_TOKEN })?;
        // Not kept: what it is asked for is.
        self.issue(desk, Some(caller.token())).await.map(|issued| bearer(&issued))
    }

    /// Who waits for the lock waits for the same token.
    async fn own(&self, desk: &Desk) -> Result<Arc<Secret>, Why> {
        let mut own = desk.own.lock().await;
        if let Some(held) = own.as_ref().filter(|held| Instant::now() < held.until) {
            return held.outcome.clone();
        }
        let began = Instant::now();
        let (outcome, lasts) = match self.issue(desk, None).await {
            Ok(issued) => (Ok(bearer(&issued)), issued.lifetime.saturating_sub(MARGIN.min(issued.lifetime / 4))),
            Err(Why::Unavailable { retry_after }) => return Err(Why::Unavailable { retry_after }),
            Err(why) => (Err(why), REFUSED),
        };
        *own = Some(Own { outcome: outcome.clone(), until: began.checked_add(lasts).unwrap_or(began) });
        outcome
    }

    async fn issue(&self, desk: &Desk, caller: Option<&str>) -> Result<Issued, Why> {
        let mut form = mint::form(&self.grant, caller, None).await?;
        let header = self.signer.prove(&mut form, &desk.token_url, SystemTime::now()).await?;
        let answer = self.tokens.post(&desk.token_url, form.finish(), header.as_ref(), answer::ANSWER_BYTES_MAX).await;
        let answer = answer.map_err(|error| {
            tracing::warn!(%error, "the token endpoint does not answer");
            answer::silent()
        })?;
        answer::read(&answer, &self.grant, self.service.as_str())
    }
}

fn bearer(issued: &Issued) -> Arc<Secret> {
    Arc::new(Secret::new(format!("Bearer {}", issued.token.expose())))
}
