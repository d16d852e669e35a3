//! The caller's arguments as Cedar values: every JSON value has one, and what is not of the declared type cannot be read.
//!
//! | JSON | where the tool's schema says nothing | where it says `integer` or `number` |
//! |---|---|---|
//! | `true`, a string | `Bool`, `String` | |
//! | `3`, `3.0` | `Long` | `Long`; `decimal` |
//! | `0.25` | `decimal` | cannot be read; `decimal` |
//! | `0.00001`, `1e30` | `Json::"0.00001"`, `Json::"1000000000000000000000000000000"` | cannot be read |
//! | `null` | `Json::"null"` | cannot be read |
//! | an array | a set, of values of any types | |
//! | an object | a record | |
//!
//! A `Json` entity stands for what Cedar has no value for. It can be compared with `==` and `!=`, and everything else that
//! is done with it fails, which denies. Its id is the value in one spelling: no exponent up to 40 digits, no zeros at the
//! end of a fraction.
//!
//! What cannot be read is there all the same: `has` sees it. Leaving it out would let `{"force": null}` slip past a
//! `forbid … when { context.args has force }`.

use std::collections::BTreeMap;

use bytes::Bytes;
use cedar_policy::RestrictedExpression;
use serde_json::value::RawValue;

use super::facts;
use super::shape::Record;
use super::shape::Shape;

/// Arguments nested deeper cannot be read.
const DEPTH_MAX: usize = 64;

/// Digits before or after the point up to which a number is spelled without an exponent.
const PLAIN_DIGITS_MAX: i64 = 40;

/// The caller's arguments as Cedar values.
pub(super) struct Args {
    pub(super) value: RestrictedExpression,
    /// Every member can be read. If not, the others are there by name, with an unknown value.
    pub(super) whole: bool,
}

impl Args {
    /// Where no policy reads them.
    pub(super) fn none() -> Option<Args> {
        Some(Args { value: RestrictedExpression::new_record([]).ok()?, whole: true })
    }

    /// `None` for what is no JSON object: callers deny.
    pub(super) fn read(json: Option<&Bytes>, shape: &Shape) -> Option<Args> {
        let Some(json) = json else {
            return Args::none();
        };
        let members: BTreeMap<String, &RawValue> = serde_json::from_slice(json).ok()?;
        let mut whole = true;
        let value = record(members, shape, 0, &mut whole)?;
        Some(Args { value, whole })
    }
}

/// `None` only if Cedar refuses plain values: callers deny.
fn value(json: &RawValue, shape: &Shape, depth: usize, whole: &mut bool) -> Option<RestrictedExpression> {
    let text = json.get();
    if depth >= DEPTH_MAX {
        return Some(unreadable(whole));
    }
    Some(match (text.as_bytes().first()?, shape) {
        (b't' | b'f', Shape::Bool | Shape::Open) => RestrictedExpression::new_bool(text == "true"),
        (b'"', Shape::Text | Shape::Open) => RestrictedExpression::new_string(serde_json::from_str(text).ok()?),
        (b'n', Shape::Open) => entity("null"),
        (b'[', Shape::Set(_) | Shape::Open) => {
            let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            let of = if let Shape::Set(of) = shape { of.as_ref() } else { &Shape::Open };
            let items: Option<Vec<_>> = items.into_iter().map(|item| value(item, of, depth + 1, whole)).collect();
            RestrictedExpression::new_set(items?)
        }
        (b'{', Shape::Record(_) | Shape::Open) => record(serde_json::from_str(text).ok()?, shape, depth, whole)?,
        (b'-' | b'0'..=b'9', shape) => Number::parse(text)?.value(shape).unwrap_or_else(|| unreadable(whole)),
        _ => unreadable(whole),
    })
}

fn record(
    members: BTreeMap<String, &RawValue>,
    shape: &Shape,
    depth: usize,
    whole: &mut bool,
) -> Option<RestrictedExpression> {
    let declared = if let Shape::Record(Record { members, .. }) = shape { Some(members) } else { None };
    let members: Option<Vec<_>> = members
        .into_iter()
        .map(|(name, json)| {
            let shape = declared.and_then(|members| members.get(&name)).map_or(&Shape::Open, |member| &member.shape);
            let value = value(json, shape, depth + 1, whole)?;
            Some((name, value))
        })
        .collect();
    RestrictedExpression::new_record(members?).ok()
}

fn unreadable(whole: &mut bool) -> RestrictedExpression {
    *whole = false;
    facts::unknown("an argument that is not of its type")
}

fn entity(id: &str) -> RestrictedExpression {
    RestrictedExpression::new_entity_uid(facts::json(id))
}

/// A JSON number without loss: ± digits × 10^exponent, the digits without zeros at either end.
#[derive(Debug, Eq, PartialEq)]
struct Number {
    negative: bool,
    digits: String,
    exponent: i64,
}

impl Number {
    fn parse(text: &str) -> Option<Number> {
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            // An exponent that no i64 holds is beyond everything, whichever way.
            Some((mantissa, power)) => {
                let extreme = if power.starts_with('-') { i64::MIN / 2 } else { i64::MAX / 2 };
                (mantissa, power.parse().unwrap_or(extreme).clamp(i64::MIN / 2, i64::MAX / 2))
            }
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        let digits = all.trim_end_matches('0');
        let dropped = i64::try_from(all.len() - digits.len()).ok()?;
        let digits = digits.trim_start_matches('0').to_owned();
        if digits.is_empty() {
            return Some(Number { negative: false, digits, exponent: 0 });
        }
        let exponent = exponent + dropped - i64::try_from(fraction.len()).ok()?;
        Some(Number { negative, digits, exponent })
    }

    fn value(&self, shape: &Shape) -> Option<RestrictedExpression> {
        let long = || self.scaled(0).map(RestrictedExpression::new_long);
        match shape {
            Shape::Decimal => self.decimal(),
            Shape::Long => long(),
            Shape::Open => long().or_else(|| self.decimal()).or_else(|| Some(entity(&self.spelled()))),
            Shape::Bool | Shape::Record(_) | Shape::Set(_) | Shape::Text => None,
        }
    }

    /// The number times 10^places, where that is an integer of 64 bits.
    fn scaled(&self, places: i64) -> Option<i64> {
        if self.digits.is_empty() {
            return Some(0);
        }
        let zeros = usize::try_from(self.exponent + places).ok().filter(|zeros| *zeros < 20)?;
        format!("{}{}{}", if self.negative { "-" } else { "" }, self.digits, "0".repeat(zeros)).parse().ok()
    }

    /// Exact in the four places that Cedar has.
    fn decimal(&self) -> Option<RestrictedExpression> {
        let scaled = self.scaled(4)?;
        let sign = if scaled < 0 { "-" } else { "" };
        let (whole, fraction) = (scaled.unsigned_abs() / 10_000, scaled.unsigned_abs() % 10_000);
        Some(RestrictedExpression::new_decimal(format!("{sign}{whole}.{fraction:04}")))
    }

    fn spelled(&self) -> String {
        let sign = if self.negative { "-" } else { "" };
        let count = i64::try_from(self.digits.len()).unwrap_or(i64::MAX / 2);
        let before = count.saturating_add(self.exponent);
        let zeros = |count: i64| "0".repeat(usize::try_from(count).unwrap_or_default());
        if self.exponent >= 0 && before <= PLAIN_DIGITS_MAX {
            return format!("{sign}{}{}", self.digits, zeros(self.exponent));
        }
        if self.exponent < 0 && before <= PLAIN_DIGITS_MAX && self.exponent >= -PLAIN_DIGITS_MAX {
            let digits = format!("{}{}", zeros(1 - before), self.digits);
            let (whole, fraction) = digits.split_at(usize::try_from(before.max(1)).unwrap_or_default());
            return format!("{sign}{whole}.{fraction}");
        }
        format!("{sign}{}e{}", self.digits, self.exponent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str, shape: &Shape) -> String {
        let raw: Box<RawValue> = serde_json::from_str(json).expect("JSON");
        let mut whole = true;
        let value = value(&raw, shape, 0, &mut whole).expect("a value");
        if !whole {
            return "unreadable".to_owned();
        }
        let attributes = std::collections::HashMap::from([("x".to_owned(), value)]);
        let holder = cedar_policy::Entity::new(facts::json("holder"), attributes, std::collections::HashSet::new());
        holder.expect("an entity").attr("x").expect("an attribute").expect("a value").to_string()
    }

    #[test]
    fn every_json_value_has_a_cedar_value() {
        for (json, cedar) in [
            ("true", "true"),
            (r#""a\u0041""#, r#""aA""#),
            ("null", r#"Json::"null""#),
            ("3", "3"),
            ("-0", "0"),
            ("3.0", "3"),
            ("3e2", "300"),
            ("30e-1", "3"),
            ("0.25", r#"decimal("0.2500")"#),
            ("-0.0001", r#"decimal("-0.0001")"#),
            ("0.00001", r#"Json::"0.00001""#),
            ("1.50000001e1", r#"Json::"15.0000001""#),
            ("9223372036854775807", "9223372036854775807"),
            ("-9223372036854775808", "(-9223372036854775808)"),
            ("9223372036854775808", r#"Json::"9223372036854775808""#),
            ("18446744073709551617", r#"Json::"18446744073709551617""#),
            ("922337203685477.5807", r#"decimal("922337203685477.5807")"#),
            ("922337203685477.5808", r#"Json::"922337203685477.5808""#),
            ("1e30", r#"Json::"1000000000000000000000000000000""#),
            ("1e400", r#"Json::"1e400""#),
            ("-12e-99", r#"Json::"-12e-99""#),
            ("1e99999999999999999999", r#"Json::"1e4611686018427387903""#),
            (r#"{"a": {"b": null}}"#, r#"{"a": {"b": Json::"null"}}"#),
        ] {
            let got = read(json, &Shape::Open);
            let plain = |text: &str| text.replace(['(', ')', ' '], "");
            assert_eq!(plain(&got), plain(cedar), "{json}");
        }
    }

    #[test]
    fn what_is_not_of_its_type_cannot_be_read() {
        let set = Shape::Set(Box::new(Shape::Text));
        for (json, shape, fits) in [
            ("true", &Shape::Bool, true),
            ("\"true\"", &Shape::Bool, false),
            ("1", &Shape::Long, true),
            ("1.0", &Shape::Long, true),
            ("1.5", &Shape::Long, false),
            ("9223372036854775808", &Shape::Long, false),
            ("\"1\"", &Shape::Long, false),
            ("null", &Shape::Long, false),
            ("1", &Shape::Decimal, true),
            ("1.00010", &Shape::Decimal, true),
            ("1.00001", &Shape::Decimal, false),
            ("\"x\"", &Shape::Text, true),
            ("[\"x\"]", &Shape::Text, false),
            ("null", &Shape::Text, false),
            ("[\"x\"]", &set, true),
            ("[]", &set, true),
            ("[\"x\", 1]", &set, false),
            ("\"x\"", &set, false),
        ] {
            assert_eq!(read(json, shape) != "unreadable", fits, "{json} {shape:?}");
        }
        assert_eq!(read("1", &Shape::Decimal), r#"decimal("1.0000")"#);
    }

    #[test]
    fn two_spellings_of_a_number_are_one_value() {
        for spellings in
            [["1180591620717411303424", "1180591620717411303424.0"], ["1e-7", "0.00000010"], ["1e50", "10e49"]]
        {
            let [one, other] = spellings.map(|json| read(json, &Shape::Open));
            assert_eq!(one, other);
            assert!(one.starts_with("Json::"), "{one}");
        }
        assert_ne!(read("1180591620717411303424", &Shape::Open), read("1180591620717411303425", &Shape::Open));
    }

    #[test]
    fn arguments_that_are_no_object_are_none() {
        for json in ["[]", "1", "", "{"] {
            assert!(Args::read(Some(&Bytes::from_static(json.as_bytes())), &Shape::Open).is_none(), "{json}");
        }
    }
}
