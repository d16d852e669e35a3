//! Every refusal in one closed table: status, JSON-RPC code, public words, reason slug, side, retryable.
//!
//! The words go to the client: no upstream text, no policy ids, nothing secret. The reason slug is also the metric
//! label and the audit field. A hidden tool and a tool that does not exist are the same rejection.

mod limit;

use std::num::NonZeroU32;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use crate::backend;
use crate::credentials;
use crate::credentials::Why;
use crate::identity;
use crate::limits::Limited;
use crate::limits::Of;
use crate::limits::Quota;
use crate::limits::Rate;
use crate::limits::Window;
use crate::mcp;
use crate::mcp::Era;
use crate::mcp::FaultKind;
use crate::mcp::Id;
use crate::mcp::error;

/// Whose fault it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    Downstream,
    Internal,
    Upstream,
}

impl Side {
    pub fn as_str(self) -> &'static str {
        match self {
            Side::Downstream => "downstream",
            Side::Internal => "internal",
            Side::Upstream => "upstream",
        }
    }
}

impl Facts {
    /// A refusal in answer to this id. SPEC: 2025-11-25 streamable HTTP: what awaits no answer (a notification, a
    /// response) is refused by an HTTP error, since nobody reads the body.
    pub(super) fn to(self, id: Option<&Id>) -> Facts {
        if self.status == 200 && id.is_none() { Facts { status: 400, ..self } } else { self }
    }
}

/// A request we refuse, any reason. Closed: a new reason must break the build until it has words.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Rejection {
    // admission
    BadHost,
    BadOrigin,
    BadPath,
    BadRequest {
        what: &'static str,
    },
    BodyTimeout,
    BodyTooLarge {
        bytes_max: usize,
    },
    Draining,
    HeadersTooLarge,
    MethodNotAllowed {
        allow: &'static str,
    },
    NotAcceptable,
    NotFound,
    Overloaded,
    UnsupportedMediaType,
    // identity
    Identity {
        problem: identity::Error,
    },
    // message
    Message {
        kind: FaultKind,
    },
    MissingExtension {
        id: &'static str,
    },
    SessionUnknown,
    // policy
    ArgumentsDenied {
        tool: String,
    },
    /// A person who was asked said no, or closed the question.
    ConfirmationDeclined {
        name: String,
    },
    /// A yes that is for something else, too old, used already, or not ours.
    ConfirmationInvalid,
    /// The client cannot ask anybody.
    ConfirmationUnsupported {
        name: String,
    },
    InsufficientScope {
        scopes: Vec<String>,
    },
    UnknownPrompt {
        name: String,
    },
    UnknownResource {
        uri: String,
    },
    UnknownTask {
        id: String,
    },
    UnknownTool {
        name: String,
    },
    // limits
    LimitsUnavailable {
        retry_after: Duration,
    },
    QueueFull {
        limit: &'static str,
        retry_after: Duration,
    },
    QuotaExhausted {
        limit: &'static str,
        quota: Quota,
        ends_s: u64,
        retry_after: Duration,
    },
    RateLimited {
        limit: &'static str,
        rate: Rate,
        retry_after: Duration,
    },
    /// `max`: the configured bound, if it is one.
    TooManyConcurrent {
        limit: &'static str,
        max: Option<NonZeroU32>,
    },
    TooManyStreams {
        limit: &'static str,
        max: Option<NonZeroU32>,
    },
    // backend
    AnswerTooLarge {
        backend: Arc<str>,
    },
    /// Not too large to be read, but to be passed on: what the operator allows of a result.
    ResultTooLarge {
        backend: Arc<str>,
        cap: &'static str,
        bytes_max: usize,
    },
    BackendProtocol {
        backend: Arc<str>,
    },
    BackendTimeout {
        backend: Arc<str>,
    },
    BackendUnavailable {
        backend: Arc<str>,
    },
    CredentialRefused {
        backend: Arc<str>,
    },
    // acting for the caller
    ConsentMissing {
        backend: Arc<str>,
    },
    CredentialExpired,
    CredentialMisconfigured {
        backend: Arc<str>,
    },
    CredentialUnavailable {
        backend: Arc<str>,
        retry_after: Duration,
    },
    ExchangeDenied {
        backend: Arc<str>,
    },
    InteractionRequired {
        backend: Arc<str>,
        claims: Option<Arc<str>>,
    },
    NotExchangeable {
        backend: Arc<str>,
    },
    UserRequired {
        backend: Arc<str>,
        what: &'static str,
    },
    // ours
    AuditUnavailable,
    Internal,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Facts {
    /// HTTP status.
    pub status: u16,
    /// JSON-RPC error code.
    pub code: i64,
    /// Slug for audit and metrics.
    pub reason: &'static str,
    pub side: Side,
    /// The same request may succeed later.
    pub retryable: bool,
}

const fn facts(status: u16, code: i64, reason: &'static str, side: Side, retryable: bool) -> Facts {
    Facts { status, code, reason, side, retryable }
}

impl Rejection {
    pub fn facts(&self, era: Option<Era>) -> Facts {
        use Side::Downstream;
        use Side::Internal;
        use Side::Upstream;
        match self {
            Rejection::BadHost => facts(421, error::REFUSED, "bad_host", Downstream, false),
            Rejection::BadOrigin => facts(403, error::REFUSED, "bad_origin", Downstream, false),
            Rejection::BadPath => facts(400, error::INVALID_REQUEST, "bad_path", Downstream, false),
            Rejection::BadRequest { .. } => facts(400, error::INVALID_REQUEST, "bad_request", Downstream, false),
            Rejection::BodyTimeout => facts(408, error::INVALID_REQUEST, "body_timeout", Downstream, true),
            Rejection::BodyTooLarge { .. } => facts(413, error::INVALID_REQUEST, "body_too_large", Downstream, false),
            Rejection::Draining => facts(503, error::REFUSED, "draining", Internal, true),
            Rejection::HeadersTooLarge => facts(431, error::INVALID_REQUEST, "headers_too_large", Downstream, false),
            Rejection::MethodNotAllowed { .. } => facts(405, error::REFUSED, "method_not_allowed", Downstream, false),
            Rejection::NotAcceptable => facts(406, error::REFUSED, "not_acceptable", Downstream, false),
            Rejection::NotFound => facts(404, error::REFUSED, "not_found", Downstream, false),
            Rejection::Overloaded => facts(503, error::LIMITED, "overloaded", Internal, true),
            Rejection::UnsupportedMediaType => facts(415, error::REFUSED, "unsupported_media_type", Downstream, false),
            Rejection::Identity { problem } => match problem {
                identity::Error::Invalid { .. } => facts(401, error::REFUSED, "credential_invalid", Downstream, false),
                identity::Error::Dpop { fault: identity::Fault::Proof, .. } => {
                    facts(401, error::REFUSED, "dpop_invalid", Downstream, false)
                }
                identity::Error::Dpop { fault: identity::Fault::Token, .. } => {
                    facts(401, error::REFUSED, "credential_invalid", Downstream, false)
                }
                identity::Error::Missing => facts(401, error::REFUSED, "credential_missing", Downstream, false),
                identity::Error::Unavailable { .. } => {
                    facts(503, error::REFUSED, "identity_unavailable", Upstream, true)
                }
            },
            Rejection::Message { kind } => message_facts(kind, era),
            // A legacy client cannot be told of an extension.
            Rejection::MissingExtension { .. } if era == Some(Era::Legacy) => {
                facts(200, error::INVALID_PARAMS, "missing_extension", Downstream, false)
            }
            Rejection::MissingExtension { .. } => {
                facts(400, error::MISSING_CLIENT_CAPABILITY, "missing_extension", Downstream, false)
            }
            Rejection::SessionUnknown => facts(404, error::REFUSED, "session_unknown", Downstream, false),
            Rejection::ArgumentsDenied { .. } => facts(200, error::REFUSED, "arguments_denied", Downstream, false),
            Rejection::ConfirmationDeclined { .. } => {
                facts(200, error::REFUSED, "confirmation_declined", Downstream, false)
            }
            Rejection::ConfirmationInvalid => {
                facts(200, error::INVALID_PARAMS, "confirmation_invalid", Downstream, false)
            }
            // A legacy client said what it can do when it initialized, not with this request.
            Rejection::ConfirmationUnsupported { .. } if era == Some(Era::Legacy) => {
                facts(200, error::INVALID_PARAMS, "confirmation_unsupported", Downstream, false)
            }
            Rejection::ConfirmationUnsupported { .. } => {
                facts(400, error::MISSING_CLIENT_CAPABILITY, "confirmation_unsupported", Downstream, false)
            }
            Rejection::InsufficientScope { .. } => facts(403, error::REFUSED, "insufficient_scope", Downstream, false),
            Rejection::UnknownPrompt { .. } => facts(200, error::INVALID_PARAMS, "unknown_prompt", Downstream, false),
            // SPEC: 2026-07-28 server/resources: -32602; the legacy revisions: -32002.
            Rejection::UnknownResource { .. } if era == Some(Era::Legacy) => {
                facts(200, error::LEGACY_RESOURCE_NOT_FOUND, "unknown_resource", Downstream, false)
            }
            Rejection::UnknownResource { .. } => {
                facts(200, error::INVALID_PARAMS, "unknown_resource", Downstream, false)
            }
            Rejection::UnknownTask { .. } => facts(200, error::INVALID_PARAMS, "unknown_task", Downstream, false),
            Rejection::UnknownTool { .. } => facts(200, error::INVALID_PARAMS, "unknown_tool", Downstream, false),
            Rejection::LimitsUnavailable { .. } => facts(503, error::LIMITED, "limits_unavailable", Internal, true),
            Rejection::QueueFull { .. } => facts(503, error::LIMITED, "queue_full", Internal, true),
            Rejection::QuotaExhausted { .. } => facts(429, error::LIMITED, "quota_exhausted", Downstream, true),
            Rejection::RateLimited { .. } => facts(429, error::LIMITED, "rate_limited", Downstream, true),
            Rejection::TooManyConcurrent { .. } => facts(429, error::LIMITED, "too_many_concurrent", Downstream, true),
            Rejection::TooManyStreams { .. } => facts(429, error::LIMITED, "too_many_streams", Downstream, true),
            Rejection::AnswerTooLarge { .. } => facts(502, error::UPSTREAM, "answer_too_large", Upstream, false),
            // The call was made, and its answer is withheld: an error of the message, not of the way.
            Rejection::ResultTooLarge { .. } => facts(200, error::UPSTREAM, "result_too_large", Upstream, false),
            Rejection::BackendProtocol { .. } => facts(502, error::UPSTREAM, "backend_protocol", Upstream, false),
            Rejection::BackendTimeout { .. } => facts(504, error::UPSTREAM, "backend_timeout", Upstream, true),
            Rejection::BackendUnavailable { .. } => facts(502, error::UPSTREAM, "backend_unavailable", Upstream, true),
            Rejection::CredentialRefused { .. } => facts(502, error::UPSTREAM, "credential_refused", Upstream, false),
            Rejection::ConsentMissing { .. } => facts(403, error::REFUSED, "consent_missing", Downstream, false),
            Rejection::CredentialExpired => facts(401, error::REFUSED, "credential_expired", Downstream, false),
            Rejection::CredentialMisconfigured { .. } => {
                facts(502, error::UPSTREAM, "credential_misconfigured", Internal, false)
            }
            Rejection::CredentialUnavailable { .. } => {
                facts(503, error::UPSTREAM, "credential_unavailable", Upstream, true)
            }
            Rejection::ExchangeDenied { .. } => facts(403, error::REFUSED, "exchange_denied", Downstream, false),
            Rejection::InteractionRequired { .. } => {
                facts(401, error::REFUSED, "interaction_required", Downstream, false)
            }
            Rejection::NotExchangeable { .. } => facts(502, error::UPSTREAM, "not_exchangeable", Internal, false),
            Rejection::UserRequired { .. } => facts(403, error::REFUSED, "user_required", Downstream, false),
            Rejection::AuditUnavailable => facts(503, error::REFUSED, "audit_unavailable", Internal, true),
            Rejection::Internal => facts(500, error::INTERNAL_ERROR, "internal", Internal, false),
        }
    }

    /// What the client reads: says what is wrong and what to do.
    pub fn words(&self) -> String {
        match self {
            Rejection::BadHost => "this gateway does not answer to that Host; use its public address".into(),
            Rejection::BadOrigin => "this Origin is not allowed; the operator may add it to admission.origins".into(),
            Rejection::BadPath => "the path has escapes, empty or dot segments; use the plain path of a route".into(),
            Rejection::BadRequest { what } => format!("malformed HTTP request: {what}"),
            Rejection::BodyTimeout => "the request body did not arrive in time".into(),
            Rejection::BodyTooLarge { bytes_max } => format!("the request body is larger than {bytes_max} bytes"),
            Rejection::Draining => "the gateway is shutting down; retry elsewhere".into(),
            Rejection::HeadersTooLarge => "the request headers are too large".into(),
            Rejection::MethodNotAllowed { allow } => format!("this HTTP method is not allowed here; allowed: {allow}"),
            Rejection::NotAcceptable => "Accept must list application/json and text/event-stream".into(),
            Rejection::NotFound => "there is no MCP endpoint at this path".into(),
            Rejection::Overloaded => "the gateway is at its limit of connections; retry later".into(),
            Rejection::UnsupportedMediaType => {
                "Content-Type must be application/json in UTF-8, without encoding".into()
            }
            Rejection::Identity { problem } => match problem {
                identity::Error::Dpop { description, .. } | identity::Error::Invalid { description } => {
                    format!("authentication failed: {description}")
                }
                identity::Error::Missing => "authentication is required; see the WWW-Authenticate header".into(),
                identity::Error::Unavailable { .. } => {
                    "the identity provider's keys are unavailable; retry later".into()
                }
            },
            Rejection::Message { kind } => message_words(kind),
            Rejection::MissingExtension { id } => {
                format!("this needs the extension {id}, which the request's client capabilities do not declare")
            }
            Rejection::SessionUnknown => "unknown or ended session; initialize again".into(),
            Rejection::ArgumentsDenied { tool } => format!("tool {tool} is not allowed with these arguments"),
            Rejection::ConfirmationDeclined { name } => {
                format!("{name} was not carried out: the person who was asked did not allow it")
            }
            Rejection::ConfirmationInvalid => {
                "this confirmation is not for this request, has expired, or was used already; call again to be asked anew".into()
            }
            Rejection::ConfirmationUnsupported { name } => format!(
                "{name} needs a person's confirmation here, and this client cannot ask for it: it declares no elicitation of forms"
            ),
            Rejection::InsufficientScope { .. } => {
                "the token does not allow anything on this endpoint; see the WWW-Authenticate header".into()
            }
            Rejection::UnknownPrompt { name } => format!("Unknown prompt: {name}"),
            Rejection::UnknownResource { uri } => format!("Resource not found: {uri}"),
            Rejection::UnknownTask { id } => format!("Unknown task: {id}"),
            Rejection::UnknownTool { name } => format!("Unknown tool: {name}"),
            Rejection::LimitsUnavailable { .. }
            | Rejection::QueueFull { .. }
            | Rejection::QuotaExhausted { .. }
            | Rejection::RateLimited { .. }
            | Rejection::TooManyConcurrent { .. }
            | Rejection::TooManyStreams { .. } => limit::words(self),
            Rejection::AnswerTooLarge { backend } => format!("backend {backend} sent an answer over the size limit"),
            Rejection::ResultTooLarge { backend, cap, bytes_max } => format!(
                "the call was carried out, but backend {backend} answered with more than {cap} allows here ({bytes_max} bytes); ask for less"
            ),
            Rejection::BackendProtocol { backend } => {
                format!("backend {backend} sent an answer that breaks the protocol")
            }
            Rejection::BackendTimeout { backend } => format!("backend {backend} did not answer in time"),
            Rejection::BackendUnavailable { backend } => format!("backend {backend} is unavailable"),
            Rejection::CredentialRefused { backend } => format!("backend {backend} refused the gateway's credential"),
            Rejection::ConsentMissing { backend } => format!(
                "nobody has consented to the gateway acting for you at backend {backend}; ask an administrator to grant it"
            ),
            Rejection::CredentialExpired => "the access token has just expired; get a new one".into(),
            Rejection::CredentialMisconfigured { backend } => format!(
                "the identity provider does not accept the gateway's own client for backend {backend}; the operator finds the reason in the gateway's log"
            ),
            Rejection::CredentialUnavailable { backend, .. } => {
                format!("the identity provider for backend {backend} does not answer; retry later")
            }
            Rejection::ExchangeDenied { backend } => {
                format!(
                    "the identity provider does not let you use backend {backend}; ask an administrator to assign you"
                )
            }
            Rejection::InteractionRequired { backend, .. } => {
                format!("backend {backend} needs you to sign in again; see the WWW-Authenticate header")
            }
            Rejection::NotExchangeable { backend } => format!(
                "the identity provider does not take your token for an exchange for backend {backend}: it must be for the application that the gateway is registered as"
            ),
            Rejection::UserRequired { backend, what } => {
                format!("backend {backend} acts on behalf of users, and {what}")
            }
            Rejection::AuditUnavailable => "the audit log cannot be written; requests are refused until it can".into(),
            Rejection::Internal => "internal error; the request id names it in the gateway's log".into(),
        }
    }

    /// Machine-readable detail of the JSON-RPC error, as JSON.
    pub fn data(&self, era: Option<Era>) -> Option<serde_json::Value> {
        match self {
            Rejection::Message { kind: FaultKind::UnsupportedVersion { requested } } => {
                // The legacy revisions are negotiated by `initialize`, not named here.
                Some(serde_json::json!({ "supported": mcp::MODERN_VERSIONS, "requested": requested }))
            }
            Rejection::MissingExtension { id } if era != Some(Era::Legacy) => {
                Some(serde_json::json!({ "requiredCapabilities": { "extensions": { *id: {} } } }))
            }
            Rejection::ConfirmationUnsupported { .. } if era != Some(Era::Legacy) => {
                Some(serde_json::json!({ "requiredCapabilities": { "elicitation": {} } }))
            }
            other if other.limit().is_some() => Some(limit::data(other, other.facts(era).reason)),
            other => {
                let facts = other.facts(era);
                [error::REFUSED, error::LIMITED, error::UPSTREAM]
                    .contains(&facts.code)
                    .then(|| serde_json::json!({ "reason": facts.reason }))
            }
        }
    }

    /// `WWW-Authenticate` says what to sign in with: the caller's token is good, and not good enough or about to end.
    pub(super) fn asks_to_sign_in(&self) -> Option<Option<&str>> {
        match self {
            Rejection::CredentialExpired => Some(None),
            Rejection::InteractionRequired { claims, .. } => Some(claims.as_deref()),
            _ => None,
        }
    }

    /// Which limit it was, if it was one.
    pub fn limit(&self) -> Option<&'static str> {
        match self {
            Rejection::QueueFull { limit, .. }
            | Rejection::QuotaExhausted { limit, .. }
            | Rejection::RateLimited { limit, .. }
            | Rejection::TooManyConcurrent { limit, .. }
            | Rejection::TooManyStreams { limit, .. } => Some(limit),
            Rejection::LimitsUnavailable { .. } => Some("shared"),
            _ => None,
        }
    }

    /// When the same request may succeed, where that is known.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Rejection::CredentialUnavailable { retry_after, .. }
            | Rejection::LimitsUnavailable { retry_after }
            | Rejection::QueueFull { retry_after, .. }
            | Rejection::QuotaExhausted { retry_after, .. }
            | Rejection::RateLimited { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// `RateLimit-Policy` and `RateLimit`, where a rate or a quota refused.
    pub(super) fn rate_limit(&self) -> Vec<(HeaderName, String)> {
        limit::headers(self)
    }

    /// One of each, for the snapshot of the table and the documentation.
    pub fn examples() -> Vec<Rejection> {
        let backend: Arc<str> = "b".into();
        let text = || "t".to_owned();
        vec![
            Rejection::BadHost,
            Rejection::BadOrigin,
            Rejection::BadPath,
            Rejection::BadRequest { what: "…" },
            Rejection::BodyTimeout,
            Rejection::BodyTooLarge { bytes_max: 1 },
            Rejection::Draining,
            Rejection::HeadersTooLarge,
            Rejection::MethodNotAllowed { allow: "POST" },
            Rejection::NotAcceptable,
            Rejection::NotFound,
            Rejection::Overloaded,
            Rejection::UnsupportedMediaType,
            Rejection::Identity { problem: identity::Error::Missing },
            Rejection::Identity { problem: identity::Error::Invalid { description: "…".into() } },
            Rejection::Identity {
                problem: identity::Error::Dpop { fault: identity::Fault::Proof, description: "…".into() },
            },
            Rejection::Identity { problem: identity::Error::Unavailable { issuer: text() } },
            Rejection::Message { kind: FaultKind::Parse { what: "…".into() } },
            Rejection::Message { kind: FaultKind::InvalidRequest { what: "…" } },
            Rejection::Message { kind: FaultKind::MethodNotFound { method: "m".into() } },
            Rejection::Message { kind: FaultKind::InvalidParams { what: "…".into() } },
            Rejection::Message { kind: FaultKind::HeaderMismatch { what: "…".into() } },
            Rejection::Message { kind: FaultKind::UnsupportedVersion { requested: "v".into() } },
            Rejection::MissingExtension { id: mcp::meta::TASKS },
            Rejection::SessionUnknown,
            Rejection::ArgumentsDenied { tool: text() },
            Rejection::ConfirmationDeclined { name: text() },
            Rejection::ConfirmationInvalid,
            Rejection::ConfirmationUnsupported { name: text() },
            Rejection::InsufficientScope { scopes: vec![text()] },
            Rejection::UnknownPrompt { name: text() },
            Rejection::UnknownResource { uri: text() },
            Rejection::UnknownTask { id: text() },
            Rejection::UnknownTool { name: text() },
            Rejection::LimitsUnavailable { retry_after: Duration::from_secs(1) },
            Rejection::QueueFull { limit: "tenant-waiting", retry_after: Duration::from_secs(1) },
            Rejection::QuotaExhausted {
                limit: "tenant-day",
                quota: Quota { calls: NonZeroU64::MIN, window: Window::Day },
                ends_s: 0,
                retry_after: Duration::from_secs(1),
            },
            Rejection::RateLimited {
                limit: "tool",
                rate: Rate { calls: NonZeroU32::MIN, period: Duration::from_secs(1) },
                retry_after: Duration::from_secs(1),
            },
            Rejection::TooManyConcurrent { limit: "principal-concurrent", max: Some(NonZeroU32::MIN) },
            Rejection::TooManyStreams { limit: "principal-streams", max: Some(NonZeroU32::MIN) },
            Rejection::AnswerTooLarge { backend: backend.clone() },
            Rejection::ResultTooLarge { backend: backend.clone(), cap: "result_bytes_max", bytes_max: 1 },
            Rejection::BackendProtocol { backend: backend.clone() },
            Rejection::BackendTimeout { backend: backend.clone() },
            Rejection::BackendUnavailable { backend: backend.clone() },
            Rejection::CredentialRefused { backend: backend.clone() },
            Rejection::ConsentMissing { backend: backend.clone() },
            Rejection::CredentialExpired,
            Rejection::CredentialMisconfigured { backend: backend.clone() },
            Rejection::CredentialUnavailable { backend: backend.clone(), retry_after: Duration::from_secs(1) },
            Rejection::ExchangeDenied { backend: backend.clone() },
            Rejection::InteractionRequired { backend: backend.clone(), claims: None },
            Rejection::NotExchangeable { backend: backend.clone() },
            Rejection::UserRequired { backend, what: "…" },
            Rejection::AuditUnavailable,
            Rejection::Internal,
        ]
    }
}

/// Whole seconds, rounded up, at least one: what `Retry-After` can carry.
pub fn seconds(duration: Duration) -> u64 {
    duration.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX)
}

/// In the legacy era 404 means a lost session, so errors of a well-formed message go with 200 there.
fn message_facts(kind: &FaultKind, era: Option<Era>) -> Facts {
    let legacy = era == Some(Era::Legacy);
    let (status, code, reason) = match kind {
        FaultKind::HeaderMismatch { .. } => (400, error::HEADER_MISMATCH, "header_mismatch"),
        FaultKind::InvalidParams { .. } => (if legacy { 200 } else { 400 }, error::INVALID_PARAMS, "invalid_params"),
        FaultKind::InvalidRequest { .. } => (400, error::INVALID_REQUEST, "invalid_request"),
        FaultKind::MethodNotFound { .. } => {
            (if legacy { 200 } else { 404 }, error::METHOD_NOT_FOUND, "method_not_found")
        }
        FaultKind::Parse { .. } => (400, error::PARSE_ERROR, "parse_error"),
        FaultKind::UnsupportedVersion { .. } => (400, error::UNSUPPORTED_PROTOCOL_VERSION, "unsupported_version"),
    };
    facts(status, code, reason, Side::Downstream, false)
}

fn message_words(kind: &FaultKind) -> String {
    match kind {
        FaultKind::HeaderMismatch { what } => format!("Header mismatch: {what}"),
        FaultKind::InvalidParams { what } => format!("Invalid params: {what}"),
        FaultKind::InvalidRequest { what } => format!("Invalid request: {what}"),
        FaultKind::MethodNotFound { method } => format!("Method not found: {method}"),
        FaultKind::Parse { what } => format!("Parse error: {what}"),
        FaultKind::UnsupportedVersion { requested } => format!("Unsupported protocol version: {requested}"),
    }
}

impl From<identity::Error> for Rejection {
    fn from(problem: identity::Error) -> Self {
        Rejection::Identity { problem }
    }
}

impl From<Limited> for Rejection {
    fn from(limited: Limited) -> Self {
        let Limited { limit, retry_after, of } = limited;
        match of {
            Of::Calls(rate) => Rejection::RateLimited { limit, rate, retry_after },
            Of::Quota { quota, ends_s } => Rejection::QuotaExhausted { limit, quota, ends_s, retry_after },
            Of::Concurrent(max) => Rejection::TooManyConcurrent { limit, max: Some(max) },
            Of::Streams(max) => Rejection::TooManyStreams { limit, max: Some(max) },
            Of::Unavailable => Rejection::LimitsUnavailable { retry_after },
            Of::Waiting => Rejection::QueueFull { limit, retry_after },
        }
    }
}

impl From<credentials::Error> for Rejection {
    fn from(credentials::Error { backend, why }: credentials::Error) -> Self {
        match why {
            Why::Denied => Rejection::ExchangeDenied { backend },
            Why::Expired => Rejection::CredentialExpired,
            Why::Interaction { claims } => Rejection::InteractionRequired { backend, claims },
            Why::Misconfigured => Rejection::CredentialMisconfigured { backend },
            Why::NoConsent => Rejection::ConsentMissing { backend },
            Why::NotExchangeable => Rejection::NotExchangeable { backend },
            Why::Unavailable { retry_after } => Rejection::CredentialUnavailable { backend, retry_after },
            Why::UserRequired { what } => Rejection::UserRequired { backend, what },
        }
    }
}

impl From<backend::Error> for Rejection {
    fn from(error: backend::Error) -> Self {
        match error {
            backend::Error::AnswerTooLarge { backend, .. } => Rejection::AnswerTooLarge { backend },
            backend::Error::Credential(error) => error.into(),
            backend::Error::CredentialRefused { backend, claims: claims @ Some(_), .. } => {
                Rejection::InteractionRequired { backend, claims }
            }
            backend::Error::CredentialRefused { backend, .. } => Rejection::CredentialRefused { backend },
            backend::Error::Protocol { backend, .. } => Rejection::BackendProtocol { backend },
            backend::Error::SessionLost { .. } => Rejection::SessionUnknown,
            backend::Error::Timeout { backend } => Rejection::BackendTimeout { backend },
            backend::Error::Unavailable { backend, .. } => Rejection::BackendUnavailable { backend },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> String {
        let mut out = String::from(
            "# Rejections\n\n\
             <!-- Written by a test from the table in the code: WARDGATE_BLESS=1 cargo test rejection -->\n\n\
             Every refusal is a JSON-RPC error with the request's id (none where it could not be read). The reason is the audit\n\
             field and the metric label; `data.reason` carries it where the code is the gateway's own (-31403 refused, -31429\n\
             limited, -31502 upstream). Retryable ones come with `Retry-After`. A hidden tool and a missing one are the same row.\n\
             A notification or a response, which awaits no answer, gets 400 where a request gets 200.\n\n\
             | Reason | Side | HTTP, modern | HTTP, legacy | Code | Retryable | Words |\n|---|---|---|---|---|---|---|\n",
        );
        for rejection in Rejection::examples() {
            let (modern, legacy) = (rejection.facts(Some(Era::Modern)), rejection.facts(Some(Era::Legacy)));
            let code = if modern.code == legacy.code {
                modern.code.to_string()
            } else {
                format!("{} ({} legacy)", modern.code, legacy.code)
            };
            let retry = if modern.retryable { "yes" } else { "no" };
            out.push_str(&format!(
                "| `{}` | {} | {} | {} | {code} | {retry} | {} |\n",
                modern.reason,
                modern.side.as_str(),
                modern.status,
                legacy.status,
                rejection.words()
            ));
        }
        out
    }

    #[test]
    fn the_documented_table_is_the_one_in_the_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rejections.md");
        if std::env::var_os("WARDGATE_BLESS").is_some() {
            std::fs::write(path, table()).expect("written");
        }
        let written = std::fs::read_to_string(path).expect("docs/rejections.md");
        assert!(written == table(), "docs/rejections.md is stale: WARDGATE_BLESS=1 cargo test rejection");
    }

    #[test]
    fn every_reason_is_one_slug() {
        let mut seen = std::collections::BTreeSet::new();
        for rejection in Rejection::examples() {
            let reason = rejection.facts(None).reason;
            assert!(reason.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{reason}");
            assert!(seen.insert(reason), "{reason} stands for two things");
        }
    }

    #[test]
    fn a_modern_client_never_sees_a_code_that_the_specification_keeps() {
        for rejection in Rejection::examples() {
            let code = rejection.facts(Some(Era::Modern)).code;
            let allowed = [-32700, -32600, -32601, -32602, -32603, -32020, -32021, -32022].contains(&code);
            assert!(allowed || !(-32768..=-32000).contains(&code), "{rejection:?}: {code}");
        }
    }

    #[test]
    fn waiting_is_told_in_whole_seconds_and_never_as_none() {
        assert_eq!(seconds(Duration::ZERO), 1);
        assert_eq!(seconds(Duration::from_millis(1001)), 2);
    }
}
