//! What a tool's input schema says of its arguments, as far as Cedar has types for it.
//!
//! | JSON Schema | Cedar |
//! |---|---|
//! | `object` with `properties` | a record; members that are not `required` are optional |
//! | `array` | a set of what `items` says |
//! | `string`, whatever its `format` or `enum` | `String` |
//! | `integer` | `Long` |
//! | `number` | `decimal` |
//! | `boolean` | `Bool` |
//! | `anyOf`, `oneOf`, several types, `null`, tuples, nothing at all | open: no type, see `args` |
//!
//! A schema that says nothing of further members means in practice that there are none, so a member that is not declared
//! is a mistake in a policy; one that says `additionalProperties: true` (or gives them a schema) has members that nobody
//! declared, and they are open. The crate `cedar-policy-mcp-schema-generator` does a related thing: an action for each
//! tool, named by the tool alone. It knows neither backends nor our `resource`, brings 6,500 lines, an MCP library and an
//! exact `cedar-policy-core` of its own, and the judgement would have to ask another action for every tool.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::Map;
use serde_json::Value;

use crate::catalog::Decl;

/// Schemas nested deeper are open from there on.
const DEPTH_MAX: usize = 16;

/// The type of a JSON value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Shape {
    Bool,
    Decimal,
    Long,
    /// Anything.
    Open,
    Record(Record),
    Set(Box<Shape>),
    Text,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Record {
    pub(super) members: BTreeMap<String, Member>,
    /// There may be members that are not declared.
    pub(super) beyond: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Member {
    pub(super) shape: Shape,
    required: bool,
}

/// What stands at the end of a path of names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    /// No such member is declared, and none beyond the declared ones.
    Missing,
    Open,
    Typed,
}

impl Shape {
    /// The shape of a tool's arguments; open where its list entry is not known.
    pub(super) fn of(decl: &Decl) -> Shape {
        let entry: Option<Map<String, Value>> = serde_json::from_slice(&decl.wire).ok();
        let Some(schema) = entry.as_ref().and_then(|entry| entry.get("inputSchema")) else {
            return Shape::Open;
        };
        match (Reader { root: schema }).read(schema, 0) {
            record @ Shape::Record(_) => record,
            _ => Shape::Open,
        }
    }

    /// What is read there? A record or a set that holds something open is open as a whole.
    pub(super) fn read(&self, path: &[&str]) -> Place {
        match self.at(path) {
            Err(place) => place,
            Ok(shape) if shape.holds_open() => Place::Open,
            Ok(_) => Place::Typed,
        }
    }

    /// What is asked for by `has`? Open only where the type says nothing of the member.
    pub(super) fn has(&self, path: &[&str]) -> Place {
        match self.at(path) {
            Err(place) => place,
            Ok(shape) if shape.is_unwritten() => Place::Open,
            Ok(_) => Place::Typed,
        }
    }

    fn at(&self, path: &[&str]) -> Result<&Shape, Place> {
        let mut shape = self;
        for name in path {
            shape = match shape {
                Shape::Open => return Err(Place::Open),
                Shape::Record(record) => match record.members.get(*name) {
                    Some(member) => &member.shape,
                    None if record.beyond => return Err(Place::Open),
                    None => return Err(Place::Missing),
                },
                // No record: the validator says so.
                Shape::Bool | Shape::Decimal | Shape::Long | Shape::Set(_) | Shape::Text => return Ok(shape),
            };
        }
        Ok(shape)
    }

    fn holds_open(&self) -> bool {
        match self {
            Shape::Open => true,
            Shape::Set(items) => items.holds_open(),
            Shape::Record(record) => record.beyond || record.members.values().any(|member| member.shape.holds_open()),
            Shape::Bool | Shape::Decimal | Shape::Long | Shape::Text => false,
        }
    }

    /// Cedar's schema has no way to write it.
    fn is_unwritten(&self) -> bool {
        match self {
            Shape::Open => true,
            Shape::Set(items) => items.is_unwritten(),
            Shape::Bool | Shape::Decimal | Shape::Long | Shape::Record(_) | Shape::Text => false,
        }
    }

    /// As a type of a Cedar schema. Open members are left out: nothing that reads them is validated.
    pub(super) fn to_cedar(&self) -> String {
        match self {
            Shape::Bool => "Bool".to_owned(),
            Shape::Decimal => "decimal".to_owned(),
            Shape::Long => "Long".to_owned(),
            Shape::Open => "{}".to_owned(),
            Shape::Set(items) => format!("Set<{}>", items.to_cedar()),
            Shape::Text => "String".to_owned(),
            Shape::Record(record) => {
                let mut text = String::from("{");
                for (name, member) in record.members.iter().filter(|(_, member)| !member.shape.is_unwritten()) {
                    let mark = if member.required { "" } else { "?" };
                    // Writing into a String cannot fail.
                    let _ = write!(text, "{}{mark}: {}, ", super::grants::quoted(name), member.shape.to_cedar());
                }
                text.push('}');
                text
            }
        }
    }
}

struct Reader<'a> {
    root: &'a Value,
}

impl Reader<'_> {
    fn read(&self, schema: &Value, depth: usize) -> Shape {
        let Some(schema) = schema.as_object().filter(|_| depth < DEPTH_MAX) else {
            return Shape::Open;
        };
        // What stands beside a reference can only narrow what it refers to.
        if let Some(target) = schema.get("$ref") {
            let target = target.as_str().and_then(|target| target.strip_prefix('#'));
            return target
                .and_then(|at| self.root.pointer(at))
                .map_or(Shape::Open, |found| self.read(found, depth + 1));
        }
        for choice in ["anyOf", "oneOf", "allOf"] {
            match schema.get(choice).and_then(Value::as_array).map(Vec::as_slice) {
                None => {}
                Some([only]) if !schema.contains_key("type") => return self.read(only, depth + 1),
                Some(_) => return Shape::Open,
            }
        }
        if ["if", "then", "else", "not", "dependentSchemas", "$dynamicRef"]
            .iter()
            .any(|word| schema.contains_key(*word))
        {
            return Shape::Open;
        }
        let named = match schema.get("type") {
            Some(Value::String(name)) => Some(name.as_str()),
            Some(Value::Array(names)) => match names.as_slice() {
                [Value::String(only)] => Some(only.as_str()),
                _ => None,
            },
            Some(_) => None,
            None => of_values(schema),
        };
        match named {
            Some("array") => self.items(schema, depth),
            Some("boolean") => Shape::Bool,
            Some("integer") => Shape::Long,
            Some("number") => Shape::Decimal,
            Some("object") => self.record(schema, depth),
            Some("string") => Shape::Text,
            _ => Shape::Open,
        }
    }

    fn items(&self, schema: &Map<String, Value>, depth: usize) -> Shape {
        match schema.get("items") {
            Some(items) if !schema.contains_key("prefixItems") => Shape::Set(Box::new(self.read(items, depth + 1))),
            _ => Shape::Set(Box::new(Shape::Open)),
        }
    }

    fn record(&self, schema: &Map<String, Value>, depth: usize) -> Shape {
        let properties = schema.get("properties").and_then(Value::as_object);
        let required: BTreeSet<&str> =
            schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let beyond = match schema.get("additionalProperties") {
            Some(Value::Bool(false)) => false,
            Some(_) => true,
            None => properties.is_none(),
        };
        let members = properties.into_iter().flatten().map(|(name, schema)| {
            let required = required.contains(name.as_str());
            (name.clone(), Member { shape: self.read(schema, depth + 1), required })
        });
        let beyond = beyond || schema.contains_key("patternProperties");
        Shape::Record(Record { members: members.collect(), beyond })
    }
}

/// The type of a schema that only lists values, where they are of one.
fn of_values(schema: &Map<String, Value>) -> Option<&'static str> {
    let values = match (schema.get("const"), schema.get("enum")) {
        (Some(value), _) => std::slice::from_ref(value),
        (None, Some(Value::Array(values))) => values.as_slice(),
        (None, Some(_)) => return None,
        (None, None) => {
            return ["properties", "required"].iter().any(|word| schema.contains_key(*word)).then_some("object");
        }
    };
    let of = |value: &Value| match value {
        Value::Bool(_) => Some("boolean"),
        Value::Number(number) if number.is_i64() => Some("integer"),
        Value::String(_) => Some("string"),
        Value::Array(_) | Value::Null | Value::Number(_) | Value::Object(_) => None,
    };
    let first = of(values.first()?)?;
    values.iter().all(|value| of(value) == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Effect;
    use crate::catalog::Kind;

    fn shape(schema: &str) -> Shape {
        let mut decl = Decl::plain(Kind::Tool, "vault".into(), "t", Effect::Read);
        decl.wire = format!(r#"{{"name": "t", "inputSchema": {schema}}}"#).into();
        Shape::of(&decl)
    }

    #[test]
    fn each_schema_has_its_type() {
        for (schema, cedar) in [
            (r#"{"type": "string", "format": "date-time"}"#, "String"),
            (r#"{"type": "string", "enum": ["a", "b"]}"#, "String"),
            (r#"{"enum": ["a", "b"]}"#, "String"),
            (r#"{"const": 3}"#, "Long"),
            (r#"{"type": "integer", "minimum": 0}"#, "Long"),
            (r#"{"type": ["integer"]}"#, "Long"),
            (r#"{"type": "number"}"#, "decimal"),
            (r#"{"type": "boolean"}"#, "Bool"),
            (r#"{"type": "array", "items": {"type": "string"}}"#, "Set<String>"),
            (r#"{"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}"#, "Set<Set<Long>>"),
            (
                r#"{"type": "object", "properties": {"a b": {"type": "integer"}, "c": {"type": "string"}}, "required": ["c"]}"#,
                r#"{"a b"?: Long, "c": String, }"#,
            ),
            (r##"{"$ref": "#/$defs/x"}"##, "Bool"),
            (r#"{"anyOf": [{"type": "string"}]}"#, "String"),
        ] {
            let shape = shape(&format!(
                r#"{{"type": "object", "properties": {{"x": {schema}}}, "$defs": {{"x": {{"type": "boolean"}}}}}}"#
            ));
            assert_eq!(shape.to_cedar(), format!(r#"{{"x"?: {cedar}, }}"#), "{schema}");
            assert_eq!(shape.read(&["x"]), Place::Typed, "{schema}");
        }
    }

    #[test]
    fn what_cedar_has_no_type_for_is_open() {
        for schema in [
            "true",
            "{}",
            r#"{"type": "null"}"#,
            r#"{"type": ["string", "null"]}"#,
            r#"{"anyOf": [{"type": "string"}, {"type": "null"}]}"#,
            r#"{"oneOf": [{"type": "string"}, {"type": "integer"}]}"#,
            r#"{"enum": ["a", 1]}"#,
            r#"{"type": "array"}"#,
            r#"{"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "string"}}"#,
            r##"{"$ref": "#/nowhere"}"##,
            r#"{"$ref": "https://example.com/schema"}"#,
        ] {
            let shape = shape(&format!(r#"{{"type": "object", "properties": {{"x": {schema}}}}}"#));
            assert_eq!(shape.to_cedar(), "{}", "{schema}");
            assert_eq!((shape.read(&["x"]), shape.has(&["x"])), (Place::Open, Place::Open), "{schema}");
            assert_eq!(shape.read(&["y"]), Place::Missing, "{schema}");
        }
    }

    #[test]
    fn members_beyond_the_declared_are_open_only_where_the_schema_says_that_there_are_some() {
        for (schema, expected) in [
            (r#"{"type": "object", "properties": {}}"#, Place::Missing),
            (r#"{"type": "object", "additionalProperties": false}"#, Place::Missing),
            (r#"{"type": "object"}"#, Place::Open),
            (r#"{"type": "object", "properties": {}, "additionalProperties": true}"#, Place::Open),
            (r#"{"type": "object", "additionalProperties": {"type": "string"}}"#, Place::Open),
            (r#"{"type": "object", "properties": {}, "patternProperties": {"^x-": {}}}"#, Place::Open),
            (
                r#"{"type": "object", "properties": {}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}"#,
                Place::Open,
            ),
        ] {
            assert_eq!(shape(schema).read(&["x"]), expected, "{schema}");
            assert_eq!(shape(schema).has(&["x"]), expected, "{schema}");
        }
    }

    #[test]
    fn has_sees_a_record_with_an_open_member() {
        let shape = shape(
            r#"{"type": "object", "properties": {"deep": {"type": "object", "properties": {"n": {"type": "integer"}, "any": {}}}}}"#,
        );
        assert_eq!(shape.to_cedar(), r#"{"deep"?: {"n"?: Long, }, }"#);
        assert_eq!((shape.read(&["deep"]), shape.has(&["deep"])), (Place::Open, Place::Typed));
        assert_eq!((shape.read(&["deep", "n"]), shape.has(&["deep", "any"])), (Place::Typed, Place::Open));
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let shape = shape(r##"{"type": "object", "properties": {"next": {"$ref": "#"}}}"##);
        assert_eq!(shape.read(&["next", "next"]), Place::Open, "its end is open");
        assert_eq!(shape.has(&["next", "next"]), Place::Typed);
    }
}
