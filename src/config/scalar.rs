//! Values with a unit or a form of their own: durations, sizes, rates, references to secrets, one-or-many strings.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU32;
use std::num::NonZeroU64;
use std::time::Duration;

use schemars::JsonSchema;
use schemars::Schema;
use schemars::SchemaGenerator;
use schemars::json_schema;
use serde::Deserialize;
use serde::Deserializer;
use serde::de;

use crate::limits;

/// Longer is a mistake.
const SPAN_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// More is no quota; and it is counted exactly in every store.
const QUOTA_MAX: u64 = 1_000_000_000_000;

/// A value written as text, or, where that is unambiguous, as a plain number.
trait Written: Sized {
    const EXPECTED: &'static str;

    fn parse(text: &str) -> Result<Self, String>;

    fn number(_number: u64) -> Result<Self, String> {
        Err(format!("expected {}, found a number", Self::EXPECTED))
    }
}

struct AsWritten<T>(PhantomData<T>);

impl<T: Written> de::Visitor<'_> for AsWritten<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        T::parse(text).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        T::number(number).map_err(E::custom)
    }
}

macro_rules! written {
    ($name:ident, $pattern:expr, $kinds:tt) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(AsWritten(PhantomData))
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "description": format!("{}.", <$name as Written>::EXPECTED), "type": $kinds, "pattern": $pattern })
            }
        }
    };
}

/// A duration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Span(pub(super) Duration);

written!(Span, r"^[0-9]+(ms|s|m|h|d)$", "string");

impl Written for Span {
    const EXPECTED: &'static str = "a duration such as `500ms`, `30s`, `5m`, `1h` or `1d`";

    fn parse(text: &str) -> Result<Self, String> {
        let malformed = || format!("`{}` is not {}", short(text), Self::EXPECTED);
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(malformed)?;
        let (count, unit) = text.split_at_checked(digits).ok_or_else(malformed)?;
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60 * 1000,
            "h" => 60 * 60 * 1000,
            "d" => 24 * 60 * 60 * 1000,
            _ => return Err(malformed()),
        };
        let count: u64 = count.parse().map_err(|_| malformed())?;
        let span = count.checked_mul(unit_ms).map(Duration::from_millis).filter(|span| *span <= SPAN_MAX);
        span.map(Span).ok_or_else(|| format!("`{}` is longer than 366 days", short(text)))
    }

    fn number(number: u64) -> Result<Self, String> {
        Err(format!("a duration needs a unit: write `{number}s` or `{number}ms`"))
    }
}

/// A duration, or `none` for no bound.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct OptionalSpan(pub(super) Option<Duration>);

written!(OptionalSpan, r"^([0-9]+(ms|s|m|h|d)|none)$", "string");

impl Written for OptionalSpan {
    const EXPECTED: &'static str = "a duration such as `30s` or `5m`, or `none`";

    fn parse(text: &str) -> Result<Self, String> {
        if text == "none" { Ok(OptionalSpan(None)) } else { Span::parse(text).map(|span| OptionalSpan(Some(span.0))) }
    }

    fn number(number: u64) -> Result<Self, String> {
        Span::number(number).map(|span| OptionalSpan(Some(span.0)))
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Size(pub(super) u64);

written!(Size, r"^[0-9]+(B|KiB|MiB|GiB)$", ["string", "integer"]);

impl Written for Size {
    const EXPECTED: &'static str = "a size such as `64KiB`, `4MiB` or a plain number of bytes";

    fn parse(text: &str) -> Result<Self, String> {
        let malformed = || format!("`{}` is not {}", short(text), Self::EXPECTED);
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (count, unit) = text.split_at_checked(digits).ok_or_else(malformed)?;
        let unit_bytes = match unit {
            "" | "B" => 1,
            "KiB" => 1024,
            "MiB" => 1024 * 1024,
            "GiB" => 1024 * 1024 * 1024,
            "K" | "M" | "G" | "KB" | "MB" | "GB" | "kB" => {
                return Err(format!("`{}`: write the unit as `KiB`, `MiB` or `GiB`", short(text)));
            }
            _ => return Err(malformed()),
        };
        let count: u64 = count.parse().map_err(|_| malformed())?;
        count.checked_mul(unit_bytes).map(Size).ok_or_else(malformed)
    }

    fn number(number: u64) -> Result<Self, String> {
        Ok(Size(number))
    }
}

/// So many calls in so much time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Rate(pub(super) limits::Rate);

written!(Rate, r"^[0-9]+ per [0-9]+(ms|s|m|h|d)$", "string");

impl Written for Rate {
    const EXPECTED: &'static str = "a rate such as `60 per 1m`";

    fn parse(text: &str) -> Result<Self, String> {
        let malformed = || format!("`{}` is not {}", short(text), Self::EXPECTED);
        let (calls, period) = text.split_once(" per ").ok_or_else(malformed)?;
        let calls: NonZeroU32 = calls.trim().parse().map_err(|_| malformed())?;
        let period = Span::parse(period.trim()).map_err(|_| malformed())?.0;
        if period.is_zero() {
            return Err(malformed());
        }
        Ok(Rate(limits::Rate { calls, period }))
    }
}

/// So many calls in each day or month.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Quota(pub(super) limits::Quota);

written!(Quota, r"^[0-9]+ per (day|month)$", "string");

impl Written for Quota {
    const EXPECTED: &'static str = "a quota such as `1000 per day` or `20000 per month`";

    fn parse(text: &str) -> Result<Self, String> {
        let malformed = || format!("`{}` is not {}", short(text), Self::EXPECTED);
        let (calls, window) = text.split_once(" per ").ok_or_else(malformed)?;
        let calls: NonZeroU64 = calls.trim().parse().map_err(|_| malformed())?;
        if calls.get() > QUOTA_MAX {
            return Err(format!("`{}` is more than {QUOTA_MAX} calls", short(text)));
        }
        let window = match window.trim() {
            "day" => limits::Window::Day,
            "month" => limits::Window::Month,
            _ => return Err(malformed()),
        };
        Ok(Quota(limits::Quota { calls, window }))
    }
}

/// How far a time zone is ahead of UTC, in seconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Offset(pub(super) i32);

written!(Offset, r"^[+-](0[0-9]|1[0-4]):[0-5][0-9]$", "string");

impl Written for Offset {
    const EXPECTED: &'static str = "an offset from UTC such as `+02:00` or `-05:30`";

    fn parse(text: &str) -> Result<Self, String> {
        const HOURS_MAX: i32 = 14;
        let malformed = || format!("`{}` is not {}", short(text), Self::EXPECTED);
        let (sign, clock) = match text.split_at_checked(1) {
            Some(("+", clock)) => (1, clock),
            Some(("-", clock)) => (-1, clock),
            _ => return Err(malformed()),
        };
        let two = |digits: &str| {
            let good = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
            good.then(|| digits.parse::<i32>().ok()).flatten().ok_or_else(malformed)
        };
        let (hours, minutes) = clock.split_once(':').ok_or_else(malformed)?;
        let (hours, minutes) = (two(hours)?, two(minutes)?);
        if hours > HOURS_MAX || minutes > 59 {
            return Err(malformed());
        }
        Ok(Offset(sign * (hours * 60 + minutes) * 60))
    }
}

/// Where a secret stands. Never the secret itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Reference {
    Environment(String),
    File(String),
}

const INLINE: &str = "secrets are not written into this file: put it into a file that only the gateway can read and write \
                      `file:/path/to/it`, or into an environment variable and write `env:NAME`";

written!(Reference, r"^(file:.+|env:[A-Za-z_][A-Za-z0-9_]*)$", "string");

impl Written for Reference {
    const EXPECTED: &'static str = "a reference to a secret: `file:/path` or `env:NAME`";

    /// INVARIANT: `text` may be the secret itself and appears in no message.
    fn parse(text: &str) -> Result<Self, String> {
        let name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if let Some(path) = text.strip_prefix("file:").filter(|path| !path.is_empty()) {
            Ok(Reference::File(path.to_owned()))
        } else if let Some(variable) = text
            .strip_prefix("env:")
            .filter(|v| v.starts_with(|c| name(c) && !c.is_ascii_digit()) && v.chars().all(name))
        {
            Ok(Reference::Environment(variable.to_owned()))
        } else {
            Err(INLINE.to_owned())
        }
    }

    fn number(_: u64) -> Result<Self, String> {
        Err(INLINE.to_owned())
    }
}

/// A value for a child's environment: a reference to a secret, or what is none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Variable {
    Plain(String),
    Secret(Reference),
}

written!(Variable, r"^(file:.+|env:[A-Za-z_][A-Za-z0-9_]*|plain:.*)$", "string");

impl Written for Variable {
    const EXPECTED: &'static str = "`file:/path` or `env:NAME` for a secret, `plain:TEXT` for what is none";

    fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("plain:") {
            Some(plain) => Ok(Variable::Plain(plain.to_owned())),
            None => Reference::parse(text)
                .map(Variable::Secret)
                .map_err(|message| format!("{message}; if it is no secret, write `plain:TEXT`")),
        }
    }

    fn number(_: u64) -> Result<Self, String> {
        Err(format!("expected {}", Self::EXPECTED))
    }
}

/// One string, or a list of strings.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Strings(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;

        impl<'de> de::Visitor<'de> for OneOrMany {
            type Value = Strings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Strings, E> {
                Ok(Strings(vec![text.to_owned()]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Strings, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = items.next_element()? {
                    all.push(item);
                }
                Ok(Strings(all))
            }
        }

        deserializer.deserialize_any(OneOrMany)
    }
}

impl JsonSchema for Strings {
    fn schema_name() -> Cow<'static, str> {
        "Strings".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "One string, or a list of strings.",
            "type": ["string", "array"],
            "items": { "type": "string" },
        })
    }
}

/// One quota, or a list of them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Quotas(pub(super) Vec<Quota>);

impl<'de> Deserialize<'de> for Quotas {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;

        impl<'de> de::Visitor<'de> for OneOrMany {
            type Value = Quotas;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quota such as `1000 per day`, or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quotas, E> {
                Quota::parse(text).map(|quota| Quotas(vec![quota])).map_err(E::custom)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Quotas, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = items.next_element()? {
                    all.push(item);
                }
                Ok(Quotas(all))
            }
        }

        deserializer.deserialize_any(OneOrMany)
    }
}

impl JsonSchema for Quotas {
    fn schema_name() -> Cow<'static, str> {
        "Quotas".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let quota = generator.subschema_for::<Quota>();
        json_schema!({ "description": "One quota, or a list of them.", "anyOf": [quota, { "type": "array", "items": quota }] })
    }
}

/// So much of a wrong value as a message may carry.
pub(super) fn short(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    let mut shown: String = text.chars().take(CHARS_MAX).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}
