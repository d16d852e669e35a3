//! What a refusal by a limit says: which one, whose, how much it allows, and when to ask again. For people, agents and proxies.

use std::num::NonZeroU32;
use std::time::Duration;

use http::HeaderName;
use serde_json::Value;
use serde_json::json;

use super::Rejection;
use super::seconds;
use crate::limits::Rate;
use crate::limits::Window;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

pub(super) fn words(rejection: &Rejection) -> String {
    let times = |max: Option<NonZeroU32>| max.map(|max| format!(" of {max}")).unwrap_or_default();
    match rejection {
        Rejection::LimitsUnavailable { .. } => "the limits cannot be judged at the moment; retry later".into(),
        Rejection::QueueFull { limit: "tenant-waiting", .. } => {
            "too many requests of your tenant are waiting; retry when some have been answered".into()
        }
        Rejection::QueueFull { .. } => "the gateway is busy and this request has waited too long; retry later".into(),
        Rejection::QuotaExhausted { limit, quota, retry_after, .. } => {
            let (calls, window) = (quota.calls, quota.window.as_str());
            format!(
                "the quota {} is used up ({calls} calls per {window}); the next {window} begins in {} s",
                whose(limit),
                seconds(*retry_after)
            )
        }
        Rejection::RateLimited { limit, rate, retry_after } => {
            format!("the rate limit {} is reached ({}); retry in {} s", whose(limit), per(*rate), seconds(*retry_after))
        }
        Rejection::TooManyConcurrent { limit, max } => {
            format!("the limit{} concurrent calls {} is reached; retry when one has ended", times(*max), whose(limit))
        }
        Rejection::TooManyStreams { limit, max } => format!(
            "the limit{} open event streams {} is reached; close one, or retry when one has ended",
            times(*max),
            whose(limit)
        ),
        _ => String::new(),
    }
}

/// For agents: they read this and not the words.
pub(super) fn data(rejection: &Rejection, reason: &str) -> Value {
    let limit = rejection.limit().unwrap_or_default();
    let mut data = json!({ "reason": reason, "limit": limit, "whose": owner(limit).0 });
    let allowed = match rejection {
        Rejection::QuotaExhausted { quota, ends_s, .. } => {
            json!({ "of": "quota", "allowed": quota.calls, "per": quota.window.as_str(), "resetsAt": ends_s })
        }
        Rejection::RateLimited { rate, .. } => {
            json!({ "of": "calls", "allowed": rate.calls, "perMs": millis(rate.period) })
        }
        Rejection::TooManyConcurrent { max, .. } => json!({ "of": "concurrent", "allowed": max }),
        Rejection::TooManyStreams { max, .. } => json!({ "of": "streams", "allowed": max }),
        Rejection::QueueFull { .. } => json!({ "of": "waiting" }),
        _ => json!({}),
    };
    // Whoever knows no better time is told a second: as the header says.
    let retry_after = rejection.retry_after().unwrap_or(Duration::from_secs(1));
    let retry = json!({ "retryAfterMs": millis(retry_after), "retryAfterSeconds": seconds(retry_after) });
    if let Some(members) = data.as_object_mut() {
        let more = [allowed, retry].into_iter().filter_map(|value| match value {
            Value::Object(members) => Some(members),
            _ => None,
        });
        members.extend(more.flatten().filter(|(_, value)| !value.is_null()));
    }
    data
}

/// SPEC: draft-ietf-httpapi-ratelimit-headers-10: the policy, and what is left of it. What may still be spent is not known
/// without asking, so only refusals say it.
pub(super) fn headers(rejection: &Rejection) -> Vec<(HeaderName, String)> {
    let (limit, calls, window_s, retry_after) = match rejection {
        Rejection::RateLimited { limit, rate, retry_after } => {
            (limit, u64::from(rate.calls.get()), Some(seconds(rate.period)), retry_after)
        }
        Rejection::QuotaExhausted { limit, quota, retry_after, .. } => {
            let window_s = match quota.window {
                Window::Day => Some(24 * 60 * 60),
                Window::Month => None, // of no one length
            };
            (limit, quota.calls.get(), window_s, retry_after)
        }
        _ => return Vec::new(),
    };
    let window = window_s.map(|window_s| format!(";w={window_s}")).unwrap_or_default();
    vec![
        (RATE_LIMIT_POLICY, format!("\"{limit}\";q={calls}{window}")),
        (RATE_LIMIT, format!("\"{limit}\";r=0;t={}", seconds(*retry_after))),
    ]
}

/// Whose limit it is, by the first word of its name.
fn owner(limit: &str) -> (&'static str, &'static str) {
    match limit.split('-').next().unwrap_or(limit) {
        "address" | "registration" => ("address", "of your address"),
        "backend" => ("backend", "of this backend"),
        "principal" => ("principal", "of your account"),
        "session" | "sessions" => ("session", "of this session"),
        "tenant" => ("tenant", "of your tenant"),
        "tool" => ("tool", "of yours for this tool"),
        _ => ("gateway", "of the gateway"),
    }
}

/// In words for the caller.
fn whose(limit: &str) -> &'static str {
    owner(limit).1
}

fn per(rate: Rate) -> String {
    let period = if rate.period.subsec_millis() == 0 {
        format!("{} s", rate.period.as_secs())
    } else {
        format!("{} ms", rate.period.as_millis())
    };
    format!("{} calls per {period}", rate.calls)
}

fn millis(duration: Duration) -> u64 {
    // Rounded up: a moment too early is refused again.
    duration.as_micros().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Quota;

    #[test]
    fn an_agent_can_tell_which_limit_whose_how_much_and_when() {
        let rate = Rate { calls: 60.try_into().unwrap(), period: Duration::from_secs(60) };
        let rejection = Rejection::RateLimited { limit: "tool", rate, retry_after: Duration::from_micros(1_500_001) };
        assert_eq!(
            rejection.data(None).unwrap(),
            json!({ "reason": "rate_limited", "limit": "tool", "whose": "tool", "of": "calls", "allowed": 60, "perMs": 60000,
                    "retryAfterMs": 1501, "retryAfterSeconds": 2 })
        );
        assert_eq!(
            rejection.words(),
            "the rate limit of yours for this tool is reached (60 calls per 60 s); retry in 2 s"
        );
        assert_eq!(
            rejection.rate_limit(),
            [(RATE_LIMIT_POLICY, "\"tool\";q=60;w=60".to_owned()), (RATE_LIMIT, "\"tool\";r=0;t=2".to_owned())]
        );
        let quota = Quota { calls: 7.try_into().unwrap(), window: Window::Month };
        let retry_after = Duration::from_secs(90);
        let rejection = Rejection::QuotaExhausted { limit: "tenant-month", quota, ends_s: 1_796_083_200, retry_after };
        assert_eq!(
            rejection.data(None).unwrap(),
            json!({ "reason": "quota_exhausted", "limit": "tenant-month", "whose": "tenant", "of": "quota", "allowed": 7,
                    "per": "month", "resetsAt": 1_796_083_200, "retryAfterMs": 90_000, "retryAfterSeconds": 90 })
        );
        let rejection = Rejection::TooManyConcurrent { limit: "backend-concurrent", max: NonZeroU32::new(5) };
        assert_eq!(
            rejection.data(None).unwrap(),
            json!({ "reason": "too_many_concurrent", "limit": "backend-concurrent", "whose": "backend", "of": "concurrent",
                    "allowed": 5, "retryAfterMs": 1000, "retryAfterSeconds": 1 })
        );
        assert!(rejection.rate_limit().is_empty());
    }
}
