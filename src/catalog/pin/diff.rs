//! What changed between two definitions of a tool, in words for the person who decides.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

use super::Definition;
use super::PinFile;
use super::text;
use super::visible;

/// What happened to a tool since it was pinned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Added,
    Changed,
    Gone,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Added => "new",
            Kind::Changed => "changed",
            Kind::Gone => "gone",
        }
    }
}

/// One tool that is not as it was pinned.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    pub tool: String,
    pub kind: Kind,
    /// A tool that is gone and has, but for its name, this one's definition: it was renamed.
    pub renamed_from: Option<String>,
    /// What differs, one statement each; values with nothing hidden in them.
    pub fields: Vec<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.tool, self.kind.as_str())?;
        if let Some(from) = &self.renamed_from {
            write!(f, ", as {from} was before: renamed")?;
        }
        self.fields.iter().try_for_each(|field| write!(f, "\n  {field}"))
    }
}

pub(super) fn changes(file: &PinFile, offered: &[Definition]) -> Vec<Change> {
    let mut changes = Vec::new();
    let offered_names: BTreeSet<&str> = offered.iter().map(Definition::name).collect();
    let gone = || file.tools.iter().filter(|(name, _)| !offered_names.contains(name.as_str()));
    for now in offered {
        let name = now.name();
        match file.tools.get(name) {
            Some(pin) if pin.definition.sha256() == now.sha256() => {}
            Some(pin) => changes.push(Change {
                tool: name.to_owned(),
                kind: Kind::Changed,
                renamed_from: None,
                fields: fields(&pin.definition, now),
            }),
            None => {
                let renamed_from =
                    gone().find(|(_, pin)| same_but_name(&pin.definition, now)).map(|(name, _)| name.clone());
                let fields = if renamed_from.is_some() { Vec::new() } else { described(now) };
                changes.push(Change { tool: name.to_owned(), kind: Kind::Added, renamed_from, fields });
            }
        }
    }
    for (name, _) in gone() {
        changes.push(Change { tool: name.clone(), kind: Kind::Gone, renamed_from: None, fields: Vec::new() });
    }
    changes.sort_by(|a, b| a.tool.cmp(&b.tool));
    changes
}

fn same_but_name(a: &Definition, b: &Definition) -> bool {
    let nameless = |definition: &Definition| {
        let mut members = definition.members().clone();
        members.remove("name");
        super::canon::sha256(&Value::Object(members))
    };
    nameless(a) == nameless(b)
}

fn described(now: &Definition) -> Vec<String> {
    now.members()
        .iter()
        .filter(|(name, _)| matches!(name.as_str(), "title" | "description" | "annotations"))
        .map(|(name, value)| format!("{name}: {}", shown(value)))
        .collect()
}

fn fields(was: &Definition, now: &Definition) -> Vec<String> {
    let mut out = Vec::new();
    let names: BTreeSet<&String> = was.members().keys().chain(now.members().keys()).collect();
    for name in names {
        compare(&visible(name), was.member(name), now.member(name), &mut out);
    }
    out
}

/// Goes down into objects, so that one property of a schema is told and not the whole schema.
fn compare(path: &str, was: Option<&Value>, now: Option<&Value>, out: &mut Vec<String>) {
    match (was, now) {
        (Some(was), Some(now)) if super::canon::canonical(was) == super::canon::canonical(now) => {}
        (Some(Value::Object(was)), Some(Value::Object(now))) => {
            let names: BTreeSet<&String> = was.keys().chain(now.keys()).collect();
            for name in names {
                compare(&format!("{path}.{}", visible(name)), was.get(name), now.get(name), out);
            }
        }
        (Some(was), Some(now)) => {
            out.push(format!("{path} was {}", shown(was)));
            out.push(format!("{path} is  {}", shown(now)));
        }
        (Some(was), None) => out.push(format!("{path} is gone; it was {}", shown(was))),
        (None, Some(now)) => out.push(format!("{path} is new: {}", shown(now))),
        (None, None) => {}
    }
}

/// On one line, hidden characters spelled out.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("\"{}\"", visible(text)),
        other => {
            let lines = text::json(other);
            lines.lines().map(str::trim_start).collect::<Vec<_>>().join(" ")
        }
    }
}
