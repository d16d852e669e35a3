//! The protocol's own schemas, one for each revision: which definition a message has to satisfy, and whether it does.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::Mutex;

use jsonschema::Validator;
use jsonschema::error::ValidationErrorKind;
use serde_json::Value;
use serde_json::json;

use super::note::Role;

/// A revision of the protocol, by its place in `ALL`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Revision(usize);

impl Revision {
    pub const NAMES: [&str; 5] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"];
    /// What is assumed of a client that never said its revision.
    pub const SILENT: Revision = Revision(1);
    pub const LAST_LEGACY: Revision = Revision(3);
    pub const MODERN: Revision = Revision(4);

    pub fn named(name: &str) -> Option<Revision> {
        Revision::NAMES.iter().position(|known| *known == name).map(Revision)
    }

    pub fn all() -> impl Iterator<Item = Revision> {
        (0..Revision::NAMES.len()).map(Revision)
    }

    pub fn name(self) -> &'static str {
        Revision::NAMES[self.0]
    }

    pub fn schema(self) -> &'static Schema {
        &SCHEMAS[self.0]
    }
}

static SCHEMAS: LazyLock<[Schema; 5]> = LazyLock::new(|| {
    [
        Schema::read(include_str!("../../schemas/2024-11-05.json")),
        Schema::read(include_str!("../../schemas/2025-03-26.json")),
        Schema::read(include_str!("../../schemas/2025-06-18.json")),
        Schema::read(include_str!("../../schemas/2025-11-25.json")),
        Schema::read(include_str!("../../schemas/2026-07-28.json")),
    ]
});

/// The tasks extension of 2026-07-28, of which no schema is published: written from its text.
pub static TASKS: LazyLock<Schema> = LazyLock::new(|| Schema::read(include_str!("../../schemas/extension-tasks.json")));

/// What is wrong, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    pub at: String,
    pub what: String,
    /// The words of this fault and of those that led to it, each with the value it is about: the same value with the same
    /// fault in another message is the same fault.
    pub marks: Vec<String>,
}

impl Fault {
    pub fn of(what: impl Into<String>) -> Fault {
        Fault { at: String::new(), what: what.into(), marks: Vec::new() }
    }
}

pub struct Schema {
    /// `$schema` and the key under which the definitions stand.
    dialect: Value,
    key: &'static str,
    definitions: BTreeMap<String, Value>,
    /// Method → definition, of the requests and of the notifications that a party may send.
    requests: HashMap<(Role, String), String>,
    notifications: HashMap<(Role, String), String>,
    validators: Mutex<HashMap<String, Arc<Validator>>>,
}

impl Schema {
    fn read(text: &str) -> Schema {
        let whole: Value = serde_json::from_str(text).unwrap();
        let key = if whole["$defs"].is_object() { "$defs" } else { "definitions" };
        let definitions: BTreeMap<_, _> =
            whole[key].as_object().unwrap().iter().map(|(name, of)| (name.clone(), of.clone())).collect();
        let methods = |kind: &str| {
            let of = |(role, party): (Role, &str)| {
                let known = methods(&definitions, &format!("{party}{kind}"), kind);
                known.into_iter().map(move |(method, name)| ((role, method), name)).collect::<Vec<_>>()
            };
            [(Role::Client, "Client"), (Role::Server, "Server")].into_iter().flat_map(of).collect()
        };
        let (requests, notifications) = (methods("Request"), methods("Notification"));
        let dialect = whole["$schema"].clone();
        Schema { dialect, key, definitions, requests, notifications, validators: Mutex::default() }
    }

    pub fn has(&self, definition: &str) -> bool {
        self.definitions.contains_key(definition)
    }

    /// The definition of a request that this party may send.
    pub fn request(&self, writer: Role, method: &str) -> Option<&str> {
        self.requests.get(&(writer, method.to_owned())).map(String::as_str)
    }

    pub fn notification(&self, writer: Role, method: &str) -> Option<&str> {
        self.notifications.get(&(writer, method.to_owned())).map(String::as_str)
    }

    /// The first of these definitions that the revision has: their names changed over time.
    pub fn first(&self, names: &[&'static str]) -> &'static str {
        names.iter().find(|name| self.has(name)).unwrap_or_else(|| panic!("none of {names:?}"))
    }

    /// What a value lacks to be what a definition says.
    pub fn faults(&self, definition: &str, value: &Value) -> Vec<Fault> {
        let validator = self.validator(definition);
        validator.iter_errors(value).map(|error| fault(&error)).collect()
    }

    fn validator(&self, definition: &str) -> Arc<Validator> {
        let mut validators = self.validators.lock().unwrap();
        if let Some(known) = validators.get(definition) {
            return Arc::clone(known);
        }
        // Only what it refers to: the whole file would be read anew for every definition.
        let needed: serde_json::Map<_, _> = self
            .reached(definition)
            .into_iter()
            .map(|name| (name.to_owned(), self.definitions[name].clone()))
            .collect();
        let path = format!("#/{}/{definition}", self.key);
        let schema = json!({ "$schema": self.dialect, "$ref": path, self.key: needed });
        let built = jsonschema::options().offline().should_validate_formats(true).build(&schema);
        let validator = Arc::new(built.unwrap_or_else(|error| panic!("{definition}: {error}")));
        validators.insert(definition.to_owned(), Arc::clone(&validator));
        validator
    }

    fn reached<'a>(&'a self, definition: &'a str) -> BTreeSet<&'a str> {
        let mut reached = BTreeSet::new();
        let mut open = vec![definition];
        while let Some(name) = open.pop() {
            if reached.insert(name) {
                references(&self.definitions[name], &mut open);
            }
        }
        reached
    }
}

fn references<'a>(schema: &'a Value, found: &mut Vec<&'a str>) {
    match schema {
        Value::Object(members) => {
            found.extend(members.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next()));
            members.values().for_each(|member| references(member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

/// The methods of a union such as `ClientRequest`, each with its definition. Modern servers send no requests and have no
/// such union; where a union has one member only, the schema's generator has written it out in place.
fn methods(definitions: &BTreeMap<String, Value>, union: &str, kind: &str) -> Vec<(String, String)> {
    let Some(union) = definitions.get(union) else { return Vec::new() };
    let method = |schema: &Value| schema["properties"]["method"]["const"].as_str().map(str::to_owned);
    let alone = vec![union.clone()];
    let of = |one: &Value| match one["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        Some(name) => (method(&definitions[name]).unwrap(), name.to_owned()),
        None => {
            let method = method(one).unwrap();
            let same = |(name, schema): &(&String, &Value)| {
                name.ends_with(kind) && schema["properties"]["method"]["const"] == json!(method)
            };
            let name = definitions.iter().find(same).unwrap().0.clone();
            (method, name)
        }
    };
    union["anyOf"].as_array().unwrap_or(&alone).iter().map(of).collect()
}

fn fault(error: &jsonschema::ValidationError<'_>) -> Fault {
    let mut marks = Vec::new();
    mark(error, &mut marks);
    Fault { at: error.instance_path().to_string(), what: error.to_string(), marks }
}

fn mark(error: &jsonschema::ValidationError<'_>, marks: &mut Vec<String>) {
    marks.push(format!("{error} in {}", error.instance()));
    if let ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } = error.kind() {
        context.iter().flatten().for_each(|error| mark(error, marks));
    }
}
