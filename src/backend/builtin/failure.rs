//! `Failure`: why a tool did not do what it was asked for, in words for the model and without secrets.

use std::borrow::Cow;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::catalog::Effect;

/// What kind of no it is; clients find it in `_meta`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trouble {
    /// The arguments are not what the tool takes.
    Arguments,
    /// Somebody else changed it meanwhile, or it is there already.
    Conflict,
    /// The upstream does not let this identity do that.
    Forbidden,
    /// The upstream does not know the credential (any more).
    LockedOut,
    NotFound,
    /// Too many requests.
    Throttled,
    /// No answer in time.
    Timeout,
    /// The upstream cannot serve now.
    Unavailable,
    /// The upstream refused or answered nonsense.
    Upstream,
}

impl Trouble {
    pub fn as_str(self) -> &'static str {
        match self {
            Trouble::Arguments => "arguments",
            Trouble::Conflict => "conflict",
            Trouble::Forbidden => "forbidden",
            Trouble::LockedOut => "unauthenticated",
            Trouble::NotFound => "not_found",
            Trouble::Throttled => "throttled",
            Trouble::Timeout => "timeout",
            Trouble::Unavailable => "unavailable",
            Trouble::Upstream => "upstream",
        }
    }

    /// May the same call succeed a little later?
    fn passes(self) -> bool {
        matches!(self, Trouble::Throttled | Trouble::Timeout | Trouble::Unavailable)
    }
}

/// A tool error.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    pub trouble: Trouble,
    /// What is wrong. INVARIANT: no secret, no token.
    pub message: Cow<'static, str>,
    /// What to do about it.
    pub hint: Option<Cow<'static, str>>,
    /// When it is worth another try.
    pub retry_after: Option<Duration>,
}

impl Failure {
    pub fn new(trouble: Trouble, message: impl Into<Cow<'static, str>>) -> Failure {
        Failure { trouble, message: message.into(), hint: None, retry_after: None }
    }

    pub fn arguments(message: impl Into<Cow<'static, str>>) -> Failure {
        Failure::new(Trouble::Arguments, message)
    }

    pub fn missing(message: impl Into<Cow<'static, str>>) -> Failure {
        Failure::new(Trouble::NotFound, message)
    }

    pub fn upstream(message: impl Into<Cow<'static, str>>) -> Failure {
        Failure::new(Trouble::Upstream, message)
    }

    /// No answer before the deadline.
    pub fn late(effect: Effect) -> Failure {
        let failure = Failure::new(Trouble::Timeout, "no answer in time");
        if effect <= Effect::ReadSensitive {
            return failure;
        }
        failure.hint("It may have been carried out all the same: look before you repeat it.")
    }

    #[must_use]
    pub fn hint(self, hint: impl Into<Cow<'static, str>>) -> Failure {
        Failure { hint: Some(hint.into()), ..self }
    }

    #[must_use]
    pub fn retry_after(self, after: Option<Duration>) -> Failure {
        Failure { retry_after: after, ..self }
    }

    /// The text of the result.
    pub(super) fn text(&self) -> String {
        let mut text = self.message.to_string();
        if let Some(hint) = &self.hint {
            text.push_str(if text.ends_with('.') { " " } else { ". " });
            text.push_str(hint);
        }
        if let Some(after) = self.retry_after {
            let end = if text.ends_with('.') { "" } else { "." };
            text.push_str(&format!("{end} Try again in {} s.", after.as_secs().max(1)));
        }
        text
    }

    /// The same for programs.
    pub(super) fn facts(&self) -> Value {
        let mut facts = json!({ "kind": self.trouble.as_str(), "retryable": self.trouble.passes() });
        if let (Some(after), Some(facts)) = (self.retry_after, facts.as_object_mut()) {
            facts.insert("retryAfterMs".to_owned(), u64::try_from(after.as_millis()).unwrap_or(u64::MAX).into());
        }
        facts
    }
}
