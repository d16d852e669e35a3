//! `Check`: a JSON Schema compiled once, that judges values within bounds: no network, no endless recursion, no bombs.
//!
//! What a validator does is bounded twice. A schema whose references expand to too much, or that could go round without
//! ever going deeper into the value, is no schema here. And before a value meets a schema that refers to itself, or a large
//! one, the number of steps is counted with every pair of schema and value counted once: what would be exponential work
//! is refused, not begun.

mod walk;

use std::fmt;

use jsonschema::Draft;
use jsonschema::PatternOptions;
use jsonschema::ValidationError;
use jsonschema::Validator;
use jsonschema::error::ValidationErrorKind as Kind;
use serde_json::Value;

use super::pin::visible;
use walk::Shape;

/// Steps of one validation. A step takes well under a microsecond.
const STEPS_MAX: u64 = 1_000_000;

/// Levels of value times levels of schema that may be on the stack together.
const LEVELS_MAX: usize = 256;

/// A pattern with look-around or back references may try so often; all others are matched in linear time.
const BACKTRACKS_MAX: usize = 20_000;

/// Of one compiled pattern.
const PATTERN_BYTES_MAX: usize = 1024 * 1024;

/// Told at once, so that a model can correct all of them.
const PROBLEMS_MAX: usize = 5;

/// Of one value of the schema, in a message.
const SHOWN_CHARS_MAX: usize = 160;

/// Why a schema cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unusable {
    #[error("its `$schema` is neither JSON Schema 2020-12 nor draft-07")]
    Dialect,
    #[error("a reference goes round without going deeper into the value")]
    Endless,
    #[error("a subschema has an `$id` of its own, which changes what references mean")]
    Identified,
    #[error("it is not valid as a JSON Schema: {what}")]
    Invalid { what: String },
    #[error("it is nested deeper, or expands to more, than can be checked in bounded time")]
    Large,
    #[error(
        "the reference `{reference}` leaves the schema or leads nowhere; only `#…` is followed, and nothing is fetched"
    )]
    Reference { reference: String },
}

/// What is wrong with a value: where, and which rule; never the value itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem(String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A schema, ready to judge.
pub struct Check {
    validator: Validator,
    schema: Value,
    shape: Shape,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl Check {
    /// # Errors
    /// [`Unusable`]: it cannot be used here, or not by anybody.
    pub fn new(schema: &Value) -> Result<Check, Unusable> {
        let draft = dialect(schema)?;
        let shape = Shape::of(schema)?;
        let patterns = PatternOptions::fancy_regex().backtrack_limit(BACKTRACKS_MAX).size_limit(PATTERN_BYTES_MAX);
        let options = jsonschema::options()
            .with_draft(draft)
            .offline()
            .should_validate_formats(false)
            .with_pattern_options(patterns);
        let built = options.build(schema);
        let validator = built.map_err(|error| Unusable::Invalid { what: short(&error.masked().to_string()) })?;
        Ok(Check { validator, schema: schema.clone(), shape })
    }

    /// # Errors
    /// What is wrong with the value; the first few problems.
    pub fn judge(&self, value: &Value) -> Result<(), Vec<Problem>> {
        let (count, depth) = size(value, LEVELS_MAX + 1);
        if self.shape.recursive && depth.saturating_mul(self.shape.chain.max(1)) > LEVELS_MAX {
            return Err(vec![Problem("it is nested too deeply for its schema to be checked".to_owned())]);
        }
        let easy = !self.shape.recursive && self.shape.steps.saturating_mul(count) <= STEPS_MAX;
        if !easy && walk::steps(&self.schema, value, STEPS_MAX).is_none() {
            return Err(vec![Problem(
                "it takes too many steps to check against its schema: send less at once".to_owned(),
            )]);
        }
        if self.validator.is_valid(value) {
            return Ok(());
        }
        let problems: Vec<Problem> =
            self.validator.iter_errors(value).take(PROBLEMS_MAX).map(|error| problem(&error)).collect();
        // Two evaluations that disagree: the stricter one counts.
        Err(if problems.is_empty() { vec![Problem("it does not fit its schema".to_owned())] } else { problems })
    }
}

fn dialect(schema: &Value) -> Result<Draft, Unusable> {
    let Some(named) = schema.get("$schema") else { return Ok(Draft::Draft202012) };
    match named.as_str().map(|uri| uri.trim_end_matches('#')) {
        Some("https://json-schema.org/draft/2020-12/schema") => Ok(Draft::Draft202012),
        Some("http://json-schema.org/draft-07/schema" | "https://json-schema.org/draft-07/schema") => Ok(Draft::Draft7),
        _ => Err(Unusable::Dialect),
    }
}

/// How many values there are, and how deep they go, as far as `levels` down.
fn size(value: &Value, levels: usize) -> (u64, usize) {
    let Some(levels) = levels.checked_sub(1) else { return (1, 1) };
    let below = |inner: &mut dyn Iterator<Item = &Value>| {
        inner
            .map(|value| size(value, levels))
            .fold((1_u64, 0_usize), |(count, depth), (more, deeper)| (count.saturating_add(more), depth.max(deeper)))
    };
    let (count, depth) = match value {
        Value::Array(items) => below(&mut items.iter()),
        Value::Object(members) => below(&mut members.values()),
        _ => (1, 0),
    };
    (count, depth + 1)
}

/// Names in it are the caller's own, values are not told.
fn problem(error: &ValidationError<'_>) -> Problem {
    let place = match error.instance_path().as_str() {
        "" => "the whole".to_owned(),
        path => format!("`{}`", short(path)),
    };
    let rule = match error.kind() {
        Kind::Required { property } => format!("has no {}, which is required", short(&property.to_string())),
        Kind::Type { kind } => format!("must be {}", types(kind)),
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            format!("must not have `{}`", short(&unexpected.join("`, `")))
        }
        Kind::Enum { options } => format!("must be one of {}", short(&options.to_string())),
        Kind::Constant { expected_value } => format!("must be {}", short(&expected_value.to_string())),
        Kind::Minimum { limit } => format!("must be at least {limit}"),
        Kind::Maximum { limit } => format!("must be at most {limit}"),
        Kind::ExclusiveMinimum { limit } => format!("must be more than {limit}"),
        Kind::ExclusiveMaximum { limit } => format!("must be less than {limit}"),
        Kind::MinLength { limit } => format!("must have at least {limit} characters"),
        Kind::MaxLength { limit } => format!("must have at most {limit} characters"),
        Kind::MinItems { limit } => format!("must have at least {limit} items"),
        Kind::MaxItems { limit } => format!("must have at most {limit} items"),
        Kind::MinProperties { limit } => format!("must have at least {limit} members"),
        Kind::MaxProperties { limit } => format!("must have at most {limit} members"),
        Kind::Pattern { pattern } => format!("must match the pattern {}", short(pattern)),
        Kind::UniqueItems => "must not have the same item twice".to_owned(),
        Kind::AnyOf { .. } | Kind::OneOfNotValid { .. } => "fits none of the alternatives".to_owned(),
        Kind::OneOfMultipleValid { .. } => "fits more than one of the alternatives".to_owned(),
        Kind::FalseSchema => "must not be there".to_owned(),
        _ => "does not fit".to_owned(),
    };
    Problem(format!("{place} {rule} (rule `{}`)", short(error.schema_path().as_str())))
}

fn types(kind: &jsonschema::error::TypeKind) -> String {
    match kind {
        jsonschema::error::TypeKind::Single(kind) => format!("of type {kind}"),
        jsonschema::error::TypeKind::Multiple(kinds) => {
            let kinds: Vec<String> = kinds.iter().map(|kind| kind.to_string()).collect();
            format!("of type {}", kinds.join(" or "))
        }
    }
}

fn short(text: &str) -> String {
    let mut out: String = visible(text).chars().take(SHOWN_CHARS_MAX).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;
    use std::time::Instant;

    use serde_json::json;

    use super::*;

    fn told(schema: &Value, value: &Value) -> String {
        let problems = Check::new(schema).expect("usable").judge(value).expect_err("problems");
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn problems_name_the_place_and_the_rule_and_never_the_value() {
        let schema = json!({
            "type": "object",
            "properties": {
                "path": { "type": "string", "maxLength": 3 },
                "kind": { "enum": ["a", "b"] },
                "pin": { "pattern": "^[0-9]+$" },
            },
            "required": ["path"],
            "additionalProperties": false,
        });
        let check = Check::new(&schema).expect("usable");
        assert_eq!(check.judge(&json!({ "path": "abc", "kind": "a" })), Ok(()));
        let told = told(&schema, &json!({ "kind": "hunter2", "pin": "hunter2", "more": "hunter2" }));
        assert!(!told.contains("hunter2"), "{told}");
        for want in [
            "`/kind` must be one of [\"a\",\"b\"] (rule `/properties/kind/enum`)",
            "`/pin` must match the pattern ^[0-9]+$",
            "the whole has no \"path\", which is required",
            "must not have `more`",
        ] {
            assert!(told.contains(want), "{want} in {told}");
        }
    }

    #[test]
    fn the_dialect_is_2020_12_unless_the_schema_says_draft_07() {
        // A list of `items` is a tuple in draft-07 and nothing in 2020-12.
        let tuple = json!({ "$schema": "http://json-schema.org/draft-07/schema#", "items": [{ "type": "string" }] });
        assert!(told(&tuple, &json!([1])).contains("`/0` must be of type string"));
        let tuple = json!({ "prefixItems": [{ "type": "string" }] });
        assert!(told(&tuple, &json!([1])).contains("`/0` must be of type string"));
        let other = json!({ "$schema": "http://json-schema.org/draft-04/schema#" });
        assert_eq!(Check::new(&other).err(), Some(Unusable::Dialect));
    }

    #[test]
    fn nothing_outside_the_schema_is_followed() {
        for reference in ["https://example.com/s.json", "file:///etc/passwd", "other.json#/a", "#/$defs/none", "#none"]
        {
            let schema = json!({ "properties": { "a": { "$ref": reference } } });
            assert_eq!(Check::new(&schema).err(), Some(Unusable::Reference { reference: reference.to_owned() }));
        }
        let schema = json!({ "properties": { "a": { "$id": "https://example.com/", "$ref": "#/x" } } });
        assert_eq!(Check::new(&schema).err(), Some(Unusable::Identified));
        // What only looks like a reference is none.
        assert!(Check::new(&json!({ "const": { "$ref": "https://example.com/" } })).is_ok());
        assert!(Check::new(&json!({ "properties": { "$ref": { "type": "string" } } })).is_ok());
    }

    #[test]
    fn references_within_the_schema_are_followed() {
        let schema = json!({
            "$ref": "#/$defs/a~1b",
            "$defs": { "a/b": { "properties": { "x": { "$ref": "#name" } } }, "n": { "$anchor": "name", "type": "null" } },
        });
        assert!(told(&schema, &json!({ "x": 1 })).contains("`/x` must be of type null"));
        let tree =
            json!({ "type": "object", "properties": { "child": { "$ref": "#" } }, "additionalProperties": false });
        let check = Check::new(&tree).expect("usable");
        assert_eq!(check.judge(&json!({ "child": { "child": {} } })), Ok(()));
        assert!(check.judge(&json!({ "child": { "child": { "c": 1 } } })).is_err());
    }

    #[test]
    fn a_schema_that_goes_round_or_blows_up_is_unusable() {
        for endless in [
            json!({ "$ref": "#" }),
            json!({ "allOf": [{ "$ref": "#/$defs/a" }], "$defs": { "a": { "not": { "$ref": "#" } } } }),
        ] {
            assert_eq!(Check::new(&endless).err(), Some(Unusable::Endless));
        }
        let mut defs = serde_json::Map::new();
        for level in 0..40 {
            let next = json!({ "$ref": format!("#/$defs/l{}", level + 1) });
            defs.insert(format!("l{level}"), json!({ "allOf": [next, next] }));
        }
        defs.insert("l40".to_owned(), json!({ "type": "object" }));
        let started = Instant::now();
        assert_eq!(Check::new(&json!({ "$ref": "#/$defs/l0", "$defs": defs })).err(), Some(Unusable::Large));
        let deep = (0..200).fold(json!({}), |inner, _| json!({ "not": inner }));
        assert_eq!(Check::new(&deep).err(), Some(Unusable::Large));
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_value_that_would_take_exponential_work_is_refused_in_time() {
        // Two ways to the same child, at each level of the value.
        let doubling = json!({
            "allOf": [{ "properties": { "c": { "$ref": "#" } } }, { "properties": { "c": { "$ref": "#" } } }],
        });
        let value = (0..40).fold(json!({}), |inner, _| json!({ "c": inner }));
        let check = Check::new(&doubling).expect("usable");
        let started = Instant::now();
        let problems = check.judge(&value).expect_err("refused");
        assert!(problems.iter().any(|problem| problem.to_string().contains("too many steps")), "{problems:?}");
        assert_eq!(check.judge(&json!({ "c": { "c": {} } })), Ok(()));
        let tree = Check::new(&json!({ "items": { "$ref": "#" } })).expect("usable");
        let deep = (0..2000).fold(json!([]), |inner, _| json!([inner]));
        assert!(tree.judge(&deep).is_err(), "too deep");
        let pattern = json!({ "type": "string", "pattern": "^(?=(a+)+$)b" });
        let check = Check::new(&pattern).expect("usable");
        assert!(check.judge(&json!(format!("{}!", "a".repeat(5000)))).is_err());
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}
