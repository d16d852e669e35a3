//! The shape of a schema: what it applies to what, how far its references expand, and how many steps a value takes.

use std::collections::HashMap;
use std::ptr;

use serde_json::Value;

use super::Unusable;

/// Subschemas with every reference written out.
const EXPANDED_MAX: u64 = 50_000;

/// Schemas within schemas.
const DEPTH_MAX: usize = 128;

/// Schemas that apply to one and the same value, one inside the other.
const CHAIN_MAX: usize = 32;

/// What can be known of a schema without a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Shape {
    /// It refers to itself: how much work it is depends on the value.
    pub(super) recursive: bool,
    /// Steps that one value takes at most, where it does not refer to itself.
    pub(super) steps: u64,
    /// How many schemas can apply to one value, one inside the other.
    pub(super) chain: usize,
}

/// How a schema applies one that stands in it.
enum To<'a> {
    /// To the same value.
    Same,
    /// To a member of this name.
    Member(&'a str),
    /// To the item at this index.
    Item(usize),
    /// To every member or item.
    Every,
    /// To the name of every member.
    Names,
}

/// Calls `found` for everything that the schema applies, references resolved.
fn applied<'a>(
    anchors: &Anchors<'a>,
    schema: &'a Value,
    found: &mut dyn FnMut(To<'a>, &'a Value) -> Result<(), Unusable>,
) -> Result<(), Unusable> {
    let Value::Object(members) = schema else { return Ok(()) };
    for (keyword, value) in members {
        match (keyword.as_str(), value) {
            ("$ref" | "$dynamicRef", Value::String(reference)) => {
                for target in anchors.resolve(reference)? {
                    found(To::Same, target)?;
                }
            }
            ("allOf" | "anyOf" | "oneOf", Value::Array(schemas)) => {
                for schema in schemas {
                    found(To::Same, schema)?;
                }
            }
            ("not" | "if" | "then" | "else", schema) => found(To::Same, schema)?,
            ("dependentSchemas" | "dependencies", Value::Object(schemas)) => {
                for schema in schemas.values().filter(|schema| !schema.is_array()) {
                    found(To::Same, schema)?;
                }
            }
            ("properties", Value::Object(schemas)) => {
                for (name, schema) in schemas {
                    found(To::Member(name), schema)?;
                }
            }
            ("patternProperties", Value::Object(schemas)) => {
                for schema in schemas.values() {
                    found(To::Every, schema)?;
                }
            }
            ("prefixItems" | "items", Value::Array(schemas)) => {
                for (index, schema) in schemas.iter().enumerate() {
                    found(To::Item(index), schema)?;
                }
            }
            (
                "items"
                | "additionalItems"
                | "additionalProperties"
                | "contains"
                | "unevaluatedItems"
                | "unevaluatedProperties",
                schema,
            ) => found(To::Every, schema)?,
            ("propertyNames", schema) => found(To::Names, schema)?,
            _ => {}
        }
    }
    Ok(())
}

/// One step, and more where a rule is a long list.
fn weight(schema: &Value) -> u64 {
    let Value::Object(members) = schema else { return 1 };
    let listed = |name: &str| members.get(name).and_then(Value::as_array).map_or(0, Vec::len);
    u64::try_from(1 + members.len() + listed("enum") + listed("required")).unwrap_or(u64::MAX)
}

/// A schema and the places in it that references can name.
struct Anchors<'a> {
    root: &'a Value,
    named: HashMap<&'a str, Vec<&'a Value>>,
}

impl<'a> Anchors<'a> {
    fn of(root: &'a Value) -> Result<Anchors<'a>, Unusable> {
        let mut anchors = Anchors { root, named: HashMap::new() };
        anchors.collect(root, 0)?;
        Ok(anchors)
    }

    /// Every object counts as a schema here, also what is only an example of one: that finds more, never less.
    fn collect(&mut self, value: &'a Value, depth: usize) -> Result<(), Unusable> {
        if depth > DEPTH_MAX {
            return Err(Unusable::Large);
        }
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| self.collect(item, depth + 1)),
            Value::Object(members) => {
                for keyword in ["$anchor", "$dynamicAnchor"] {
                    if let Some(name) = members.get(keyword).and_then(Value::as_str) {
                        self.named.entry(name).or_default().push(value);
                    }
                }
                members.values().try_for_each(|inner| self.collect(inner, depth + 1))
            }
            _ => Ok(()),
        }
    }

    fn resolve(&self, reference: &str) -> Result<Vec<&'a Value>, Unusable> {
        let nowhere = || Unusable::Reference { reference: super::short(reference) };
        let fragment = reference.strip_prefix('#').ok_or_else(nowhere)?;
        let fragment = percent_decoded(fragment).ok_or_else(nowhere)?;
        if fragment.is_empty() || fragment.starts_with('/') {
            return self.root.pointer(&fragment).map(|target| vec![target]).ok_or_else(nowhere);
        }
        self.named.get(fragment.as_str()).cloned().ok_or_else(nowhere)
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let (high, low) = (char::from(bytes.next()?).to_digit(16)?, char::from(bytes.next()?).to_digit(16)?);
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

/// What is known of a schema once it has been gone through.
#[derive(Clone, Copy)]
struct Seen {
    steps: u64,
    /// Schemas in a row, from here.
    depth: usize,
}

struct Survey<'a> {
    anchors: Anchors<'a>,
    seen: HashMap<*const Value, Seen>,
    /// Being gone through.
    open: Vec<*const Value>,
    /// What each schema applies to the value that it is applied to itself.
    same: HashMap<*const Value, Vec<*const Value>>,
    recursive: bool,
}

impl Shape {
    pub(super) fn of(schema: &Value) -> Result<Shape, Unusable> {
        let anchors = Anchors::of(schema)?;
        let (seen, same) = (HashMap::new(), HashMap::new());
        let mut survey = Survey { anchors, seen, open: Vec::new(), same, recursive: false };
        let whole = survey.visit(schema)?;
        // What nobody refers to is compiled all the same by some, and read by people.
        for keyword in ["$defs", "definitions"] {
            for unused in schema.get(keyword).and_then(Value::as_object).into_iter().flat_map(|defs| defs.values()) {
                survey.visit(unused)?;
            }
        }
        let mut chains = HashMap::new();
        let mut chain = 1;
        for this in survey.same.keys() {
            chain = chain.max(chain_from(*this, &survey.same, &mut chains, &mut Vec::new())?);
        }
        Ok(Shape { recursive: survey.recursive, steps: whole.steps, chain })
    }
}

/// How many schemas apply to one value, this one and one inside the other.
fn chain_from(
    this: *const Value,
    same: &HashMap<*const Value, Vec<*const Value>>,
    known: &mut HashMap<*const Value, usize>,
    open: &mut Vec<*const Value>,
) -> Result<usize, Unusable> {
    if let Some(chain) = known.get(&this) {
        return Ok(*chain);
    }
    if open.contains(&this) {
        return Err(Unusable::Endless);
    }
    if open.len() > CHAIN_MAX {
        return Err(Unusable::Large);
    }
    open.push(this);
    let mut chain = 1;
    for inner in same.get(&this).into_iter().flatten() {
        chain = chain.max(chain_from(*inner, same, known, open)? + 1);
    }
    open.pop();
    if chain > CHAIN_MAX {
        return Err(Unusable::Large);
    }
    known.insert(this, chain);
    Ok(chain)
}

impl<'a> Survey<'a> {
    fn visit(&mut self, schema: &'a Value) -> Result<Seen, Unusable> {
        let this = ptr::from_ref(schema);
        if self.open.contains(&this) {
            self.recursive = true;
            return Ok(Seen { steps: 1, depth: 0 });
        }
        if let Some(seen) = self.seen.get(&this) {
            return Ok(*seen);
        }
        if self.open.len() > DEPTH_MAX {
            return Err(Unusable::Large);
        }
        if !ptr::eq(schema, self.anchors.root) && schema.get("$id").is_some_and(Value::is_string) {
            return Err(Unusable::Identified);
        }
        let mut inner = Vec::new();
        applied(&self.anchors, schema, &mut |to, schema| {
            inner.push((matches!(to, To::Same), schema));
            Ok(())
        })?;
        let same = inner.iter().filter(|(same, _)| *same).map(|(_, schema)| ptr::from_ref(*schema)).collect();
        self.same.insert(this, same);
        self.open.push(this);
        let mut all = Seen { steps: weight(schema), depth: 1 };
        for (_, schema) in inner {
            let seen = self.visit(schema)?;
            all.steps = all.steps.saturating_add(seen.steps);
            all.depth = all.depth.max(seen.depth + 1);
            if all.steps > EXPANDED_MAX || all.depth > DEPTH_MAX {
                return Err(Unusable::Large);
            }
        }
        self.open.pop();
        self.seen.insert(this, all);
        Ok(all)
    }
}

/// How many steps this value takes at most; `None`: more than `max`. Takes itself no more than `max` steps.
pub(super) fn steps(schema: &Value, value: &Value, max: u64) -> Option<u64> {
    let anchors = Anchors::of(schema).ok()?;
    let mut count = Count { anchors, known: HashMap::new(), looked: 0, max };
    count.of(schema, value).filter(|steps| *steps <= max)
}

struct Count<'a> {
    anchors: Anchors<'a>,
    known: HashMap<(*const Value, *const Value), u64>,
    looked: u64,
    max: u64,
}

impl<'a> Count<'a> {
    fn of(&mut self, schema: &'a Value, value: &Value) -> Option<u64> {
        let pair = (ptr::from_ref(schema), ptr::from_ref(value));
        if let Some(known) = self.known.get(&pair) {
            return Some(*known);
        }
        let mut inner = Vec::new();
        applied(&self.anchors, schema, &mut |to, schema| {
            inner.push((to, schema));
            Ok(())
        })
        .ok()?;
        let mut steps = weight(schema);
        for (to, schema) in inner {
            let below: Box<dyn Iterator<Item = &Value>> = match (to, value) {
                (To::Same, value) => Box::new(std::iter::once(value)),
                (To::Member(name), Value::Object(members)) => Box::new(members.get(name).into_iter()),
                (To::Item(index), Value::Array(items)) => Box::new(items.get(index).into_iter()),
                (To::Every, Value::Array(items)) => Box::new(items.iter()),
                (To::Every, Value::Object(members)) => Box::new(members.values()),
                (To::Names, Value::Object(members)) => {
                    let names = u64::try_from(members.len()).unwrap_or(u64::MAX);
                    steps = steps.saturating_add(names.saturating_mul(self.of(schema, &Value::Null)?));
                    continue;
                }
                _ => continue,
            };
            for value in below {
                self.looked += 1;
                if self.looked > self.max {
                    return None;
                }
                steps = steps.saturating_add(self.of(schema, value)?);
                if steps > self.max {
                    return None;
                }
            }
        }
        self.known.insert(pair, steps);
        Some(steps)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_are_counted_once_for_each_pair() {
        let schema = json!({ "allOf": [{ "properties": { "c": { "$ref": "#" } } }, { "properties": { "c": { "$ref": "#" } } }] });
        let value = |depth: usize| (0..depth).fold(json!({}), |inner, _| json!({ "c": inner }));
        let small = steps(&schema, &value(3), u64::MAX).expect("steps");
        let more = steps(&schema, &value(6), u64::MAX).expect("steps");
        assert!(more > small * 7, "it doubles with each level: {small}, {more}");
        assert_eq!(steps(&schema, &value(60), 1_000_000), None);
        let shape = Shape::of(&schema).expect("a shape");
        assert!(shape.recursive);
        let flat = Shape::of(&json!({ "properties": { "a": { "type": "string" } } })).expect("a shape");
        assert!(!flat.recursive && flat.chain == 1 && flat.steps < 10);
    }
}
