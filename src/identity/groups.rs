//! `Resolver`: asks Microsoft Graph for the groups that an Entra token leaves out, and remembers them for a while.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use futures_util::future::BoxFuture;
use moka::future::Cache;
use serde_json::Value;

use crate::credentials;
use crate::credentials::Applicant;
use crate::credentials::Application;
use crate::credentials::Grant;
use crate::credentials::Why;
use crate::fetch::Answer;
use crate::principal::Kind;
use crate::principal::Principal;

use super::entra;
use super::entra::Resolve;
use super::entra::is_id;
use crate::mcp::strict;

/// More than this Graph does not tell either (it answers with an error).
const GROUPS_MAX: usize = 2046;

/// Callers whose groups are remembered, in bytes: those of a few thousand callers with very many, of many more with few.
const KNOWN_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What it takes to remember one caller, and each group besides its id.
const KNOWN_BYTES: usize = 256;
const GROUP_BYTES: usize = 48;

/// Until Graph is asked again for the same caller when it said no, and when it said nothing.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
const UNAVAILABLE_PAUSE: Duration = Duration::from_secs(5);

/// Graph's word for more groups than it tells.
const TOO_MANY: &str = "Directory_ResultSizeLimitExceeded";

/// One per entry of the configuration. What a token itself says of where its groups are (`_claim_sources`) is not read: it
/// names an API that is gone, or whatever somebody would like to have asked.
pub(super) struct Resolver {
    config: entra::Groups,
    applicant: Applicant,
    /// By [`Principal::key`]: issuer, tenant and subject.
    known: Cache<Arc<str>, Arc<Known>>,
    tally: Arc<Tally>,
}

/// What is known of one caller's groups.
pub(super) struct Known {
    /// `None`: Graph could not say.
    groups: Option<BTreeSet<String>>,
    until: Instant,
}

impl Known {
    fn lasting(groups: Option<BTreeSet<String>>, since: Instant, lasts: Duration) -> Known {
        Known { groups, until: since.checked_add(lasts).unwrap_or(since) }
    }

    pub(super) fn groups(&self) -> Option<&BTreeSet<String>> {
        self.groups.as_ref()
    }

    /// How much longer it may be believed.
    pub(super) fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    fn bytes(&self) -> usize {
        let groups = self.groups.iter().flatten().map(|group| GROUP_BYTES + group.len());
        KNOWN_BYTES + groups.sum::<usize>()
    }
}

/// Drops what has ended.
struct UntilEnd;

impl moka::Expiry<Arc<str>, Arc<Known>> for UntilEnd {
    fn expire_after_create(&self, _: &Arc<str>, known: &Arc<Known>, at: Instant) -> Option<Duration> {
        Some(known.until.saturating_duration_since(at))
    }

    fn expire_after_update(
        &self,
        _: &Arc<str>,
        known: &Arc<Known>,
        at: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(known.until.saturating_duration_since(at))
    }
}

/// Why groups stay unknown. No word of Graph's but its code.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("Microsoft Graph's answer is not a list of ids")]
    Malformed,
    #[error("{0}")]
    Nobody(&'static str),
    #[error("Microsoft Graph refuses with status {status}, code `{code}`")]
    Refused { status: u16, code: String },
    #[error("there is no token for Microsoft Graph: {0}")]
    Token(Why),
    #[error("there are more than {GROUPS_MAX}")]
    TooMany,
    #[error("Microsoft Graph or its token endpoint does not answer")]
    Unavailable,
}

/// Questions by how they ended, since the start.
#[derive(Debug, Default)]
pub struct Tally {
    refused: AtomicU64,
    resolved: AtomicU64,
    too_many: AtomicU64,
    unavailable: AtomicU64,
}

impl Tally {
    fn count<T>(&self, outcome: &Result<T, Failure>) {
        let counter = match outcome {
            Ok(_) => &self.resolved,
            Err(Failure::TooMany) => &self.too_many,
            Err(Failure::Unavailable) => &self.unavailable,
            Err(Failure::Malformed | Failure::Nobody(_) | Failure::Refused { .. } | Failure::Token(_)) => &self.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// By outcome.
    pub fn counts(&self) -> [(&'static str, u64); 4] {
        [
            ("refused", &self.refused),
            ("resolved", &self.resolved),
            ("too_many", &self.too_many),
            ("unavailable", &self.unavailable),
        ]
        .map(|(outcome, counter)| (outcome, counter.load(Ordering::Relaxed)))
    }
}

impl Resolver {
    /// # Errors
    /// What is wrong with the gateway's client.
    pub(super) fn new(login: &str, config: &entra::Groups, tally: &Arc<Tally>) -> Result<Resolver, String> {
        let scope = format!("{}/.default", config.graph.as_str().trim_end_matches('/'));
        let grant = match config.resolve {
            Resolve::OnBehalfOf => Grant::OnBehalfOf { scope, continuous_access: false },
            Resolve::ClientCredentials => {
                Grant::Client { audience: Vec::new(), resource: Vec::new(), scope: Some(scope) }
            }
        };
        let applicant = Applicant::new(&Application {
            login: login.to_owned(),
            client: config.client.clone(),
            grant,
            service: config.graph.clone(),
            timeout: config.timeout,
        })?;
        let known = Cache::builder()
            .max_capacity(KNOWN_BYTES_MAX)
            .weigher(|key: &Arc<str>, known: &Arc<Known>| u32::try_from(key.len() + known.bytes()).unwrap_or(u32::MAX))
            .expire_after(UntilEnd)
            .build();
        Ok(Resolver { config: config.clone(), applicant, known, tally: Arc::clone(tally) })
    }

    /// The groups of a verified caller: remembered, or asked for by one of those who wait. Never longer than the
    /// configured time and a quarter. Boxed: rare, and deep.
    pub(super) fn groups<'a>(&'a self, principal: &'a Principal, token: &'a str) -> BoxFuture<'a, Arc<Known>> {
        Box::pin(async move {
            let ask = async { Arc::new(self.asked(principal, token).await) };
            let stale = |known: &Arc<Known>| known.left().is_zero();
            let flight = self.known.entry_by_ref(principal.key()).or_insert_with_if(ask, stale);
            // The question itself is ended before that, so that what came of it is remembered.
            let patience = self.config.timeout + self.config.timeout / 4;
            match tokio::time::timeout(patience, flight).await {
                Ok(entry) => entry.into_value(),
                Err(_) => Arc::new(Known::lasting(None, Instant::now(), UNAVAILABLE_PAUSE)),
            }
        })
    }

    async fn asked(&self, principal: &Principal, token: &str) -> Known {
        let began = Instant::now();
        let outcome = self.ask(principal, token).await;
        self.tally.count(&outcome);
        match outcome {
            Ok(groups) => Known::lasting(Some(groups), began, self.config.keep),
            Err(failure) => {
                tracing::warn!(issuer = %principal.issuer, %failure, "groups that a token left out stay unknown");
                let pause = if matches!(failure, Failure::Unavailable) { UNAVAILABLE_PAUSE } else { REFUSED_PAUSE };
                Known::lasting(None, Instant::now(), pause)
            }
        }
    }

    async fn ask(&self, principal: &Principal, token: &str) -> Result<BTreeSet<String>, Failure> {
        // Both become parts of URLs.
        let tenant = principal.tenant.as_deref().filter(|tenant| is_id(tenant));
        let tenant = tenant.ok_or(Failure::Nobody("the caller has no tenant"))?;
        let own = || match is_id(&principal.subject) {
            true => Ok(&principal.subject),
            false => Err(Failure::Nobody("the caller's `oid` is not an id")),
        };
        let path = match (self.config.resolve, principal.kind) {
            (Resolve::OnBehalfOf, Kind::Service) => {
                return Err(Failure::Nobody(
                    "nobody can act on behalf of an application: only `resolve: client_credentials` finds its groups",
                ));
            }
            (Resolve::OnBehalfOf, _) => "v1.0/me/getMemberObjects".to_owned(),
            (Resolve::ClientCredentials, Kind::Service) => {
                format!("v1.0/servicePrincipals/{}/getMemberObjects", own()?)
            }
            (Resolve::ClientCredentials, _) => format!("v1.0/users/{}/getMemberObjects", own()?),
        };
        let body = serde_json::json!({ "securityEnabledOnly": self.config.security_only }).to_string();
        let caller = credentials::assertion(token, principal.expires_at());
        match self.applicant.ask(tenant, &caller, &path, &body).await {
            Ok(answer) => read(&answer),
            Err(Why::Unavailable { .. }) => Err(Failure::Unavailable),
            Err(why) => Err(Failure::Token(why)),
        }
    }
}

/// All of them, or none: a cut list could miss the one that forbids.
fn read(answer: &Answer) -> Result<BTreeSet<String>, Failure> {
    let document = strict::object(&answer.body);
    if answer.status != 200 {
        let code = document.as_ref().and_then(|document| document.get("error")?.get("code")?.as_str());
        let code = code.unwrap_or_default();
        if code == TOO_MANY {
            return Err(Failure::TooMany);
        }
        let shown = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
        return Err(Failure::Refused { status: answer.status, code: code.chars().filter(shown).take(64).collect() });
    }
    let document = document.ok_or(Failure::Malformed)?;
    if document.contains_key("@odata.nextLink") {
        return Err(Failure::TooMany);
    }
    let Some(Value::Array(values)) = document.get("value") else { return Err(Failure::Malformed) };
    if values.len() > GROUPS_MAX {
        return Err(Failure::TooMany);
    }
    let ids = values.iter().map(|value| value.as_str().map(str::to_ascii_lowercase).filter(|id| is_id(id)));
    ids.collect::<Option<_>>().ok_or(Failure::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0f0e0d0c-0b0a-4908-8706-050403020100";

    fn answered(status: u16, body: &str) -> Result<BTreeSet<String>, Failure> {
        read(&Answer { status, retry_after: None, body: body.as_bytes().to_vec().into() })
    }

    #[test]
    fn a_list_is_read_as_a_whole_or_not_at_all() {
        let groups = answered(200, &format!(r#"{{"@odata.context":"x","value":["{}"]}}"#, ID.to_uppercase()));
        assert_eq!(groups.expect("a list"), BTreeSet::from([ID.to_owned()]), "as tokens have them, in lower case");
        assert!(answered(200, r#"{"value":[]}"#).expect("a list").is_empty());
        for body in [
            "",
            "[]",
            "{}",
            r#"{"value":"x"}"#,
            r#"{"value":["admins"]}"#,
            r#"{"value":[null]}"#,
            &format!(r#"{{"value":["{ID}","admins"]}}"#),
            &format!(r#"{{"value":[],"value":["{ID}"]}}"#),
        ] {
            assert!(matches!(answered(200, body), Err(Failure::Malformed)), "{body}");
        }
        let more = format!(r#"{{"value":["{ID}"],"@odata.nextLink":"https://graph.microsoft.com/next"}}"#);
        assert!(matches!(answered(200, &more), Err(Failure::TooMany)));
        let very_many = format!(r#"{{"value":[{}"{ID}"]}}"#, format!("\"{ID}\",").repeat(GROUPS_MAX));
        assert!(matches!(answered(200, &very_many), Err(Failure::TooMany)));
    }

    #[test]
    fn a_refusal_says_its_code_and_nothing_else() {
        let body = r#"{"error":{"code":"Authorization_RequestDenied\nx","message":"canary"}}"#;
        let failure = answered(403, body).expect_err("a refusal").to_string();
        assert_eq!(failure, "Microsoft Graph refuses with status 403, code `Authorization_RequestDeniedx`");
        let body = r#"{"error":{"code":"Directory_ResultSizeLimitExceeded"}}"#;
        assert!(matches!(answered(400, body), Err(Failure::TooMany)));
        assert!(matches!(answered(302, ""), Err(Failure::Refused { status: 302, .. })));
    }
}
