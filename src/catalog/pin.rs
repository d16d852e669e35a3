//! `PinFile`: the tools of one remote backend as people reviewed them; what is not in it as it is, is not offered.
//!
//! The digest of a tool is the SHA-256 over the canonical JSON (RFC 8785) of its whole list entry. Every member counts:
//! name, title, description, schemas, annotations, icons, `_meta` and whatever a later revision or an extension adds. A
//! client may show any of them to a model, and what nobody looks at costs nobody a review.

mod canon;
mod diff;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Map;
use serde_json::Value;

use super::Decl;
use super::Effect;
use super::Effects;
use super::Hints;
use super::Kind;
use crate::mcp;
use crate::mcp::list;
use crate::mcp::strict;

pub use diff::Change;
pub use diff::Kind as ChangeKind;
pub use text::visible;

/// Thousands of tools with large schemas; a bigger file is something else.
pub const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// One list entry. A model pays for each byte of it with every request.
pub const DEFINITION_BYTES_MAX: usize = 256 * 1024;

const HEAD: &str = "\
# The tools of one backend as they were reviewed. `wardgate tools pin` writes this file, `wardgate tools approve`
# approves what is in it. `effect`, `why`, `idempotent` and `arguments` are yours to edit; definitions are not.
";

/// One thing that is wrong with a pin file, and where.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct Fault {
    /// Counted from 1; 0 where the file as a whole is meant.
    pub line: usize,
    pub what: String,
}

/// Why a list entry cannot be pinned.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unfit {
    #[error("it is larger than {DEFINITION_BYTES_MAX} bytes")]
    Large,
    #[error("it is not one JSON object without duplicate members")]
    Malformed,
    #[error("its name is none that may be shown")]
    Name,
    #[error("its title or its description is not text")]
    Wordless,
}

/// A list entry, every member of it, and its digest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Definition {
    members: Map<String, Value>,
    sha256: [u8; 32],
}

impl Definition {
    /// # Errors
    /// [`Unfit`]: two readers could read it in two ways, or nobody would read it.
    pub fn read(wire: &[u8]) -> Result<Definition, Unfit> {
        if wire.len() > DEFINITION_BYTES_MAX {
            return Err(Unfit::Large);
        }
        Definition::of(strict::object(wire).ok_or(Unfit::Malformed)?)
    }

    pub(crate) fn of(members: Map<String, Value>) -> Result<Definition, Unfit> {
        if !members.get("name").and_then(Value::as_str).is_some_and(list::good_name) {
            return Err(Unfit::Name);
        }
        if members.iter().any(|(member, value)| is_text(member) && !value.is_string()) {
            return Err(Unfit::Wordless);
        }
        let value = Value::Object(members);
        let sha256 = canon::sha256(&value);
        match value {
            Value::Object(members) => Ok(Definition { members, sha256 }),
            _ => Err(Unfit::Malformed),
        }
    }

    pub fn name(&self) -> &str {
        self.member("name").and_then(Value::as_str).unwrap_or_default()
    }

    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    pub fn member(&self, name: &str) -> Option<&Value> {
        self.members.get(name)
    }

    pub fn members(&self) -> &Map<String, Value> {
        &self.members
    }

    /// The hints the server gives; none where they are malformed.
    pub fn hints(&self) -> Hints {
        self.member("annotations").and_then(|hints| serde_json::from_value(hints.clone()).ok()).unwrap_or_default()
    }

    /// The list entry in canonical form.
    pub fn wire(&self) -> Bytes {
        canon::canonical(&Value::Object(self.members.clone())).into()
    }
}

/// One tool, as reviewed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pin {
    pub approved: bool,
    pub approved_by: Option<String>,
    /// `YYYY-MM-DD`.
    pub approved_at: Option<String>,
    /// What it does. An explicit hint of the definition can raise it, nothing lowers it.
    pub effect: Effect,
    /// Where the effect comes from.
    pub why: Option<String>,
    /// A second identical call changes nothing more: it may be retried.
    pub idempotent: bool,
    /// Its arguments are not validated: the schema cannot be used, and somebody accepted that.
    pub unchecked: bool,
    pub definition: Definition,
    /// Where it stands in the file; 0 where it was not read from one.
    pub line: usize,
}

impl Pin {
    /// Nobody approved it yet; its effect is what the operator's rules and the server's hints say.
    pub fn proposed(definition: Definition, effects: &Effects) -> Pin {
        let hints = definition.hints();
        let (effect, why) = effects.explain(definition.name(), hints);
        Pin {
            approved: false,
            approved_by: None,
            approved_at: None,
            effect,
            why: Some(why.to_owned()),
            idempotent: effects.idempotent(hints),
            unchecked: false,
            definition,
            line: 0,
        }
    }

    /// What is judged: the effect in the file, raised by what the server itself warns of.
    pub fn effect(&self) -> Effect {
        self.definition.hints().raise(self.effect)
    }

    fn forget_approval(&mut self) {
        self.approved = false;
        self.approved_by = None;
        self.approved_at = None;
    }

    /// The declaration of a call to it; `None` where its header bindings are bad, so that no client may call it.
    pub fn declaration(&self, backend: &Arc<str>) -> Option<Decl> {
        let headers = match self.definition.member("inputSchema") {
            Some(schema) => mcp::bindings(schema).ok()?,
            None => Vec::new(),
        };
        Some(Decl {
            kind: Kind::Tool,
            backend: backend.clone(),
            name: self.definition.name().into(),
            effect: self.effect(),
            idempotent: self.idempotent,
            wire: self.definition.wire(),
            headers,
            varies: None,
        })
    }
}

/// What pinning anew did to a file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Repinned {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub gone: Vec<String>,
}

/// The tools of one backend, by name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PinFile {
    pub backend: String,
    pub tools: BTreeMap<String, Pin>,
}

impl PinFile {
    pub fn new(backend: &str) -> PinFile {
        PinFile { backend: backend.to_owned(), tools: BTreeMap::new() }
    }

    /// The file's text: always the same for the same tools.
    pub fn to_yaml(&self) -> String {
        let mut out = format!("{HEAD}version: 1\nbackend: {}\n", text::key(&self.backend));
        out.push_str(if self.tools.is_empty() { "tools: {}\n" } else { "tools:\n" });
        for (name, pin) in &self.tools {
            // INVARIANT: writing to a string does not fail.
            let _ = write_pin(&mut out, name, pin);
        }
        out
    }

    /// Takes over what the backend offers now. What did not change stays as it was; what is new or changed is not approved.
    pub fn repin(&mut self, offered: Vec<Definition>, effects: &Effects) -> Repinned {
        let mut told = Repinned::default();
        let mut tools = BTreeMap::new();
        for definition in offered {
            let name = definition.name().to_owned();
            let pin = match self.tools.remove(&name) {
                None => {
                    told.added.push(name.clone());
                    Pin::proposed(definition, effects)
                }
                Some(pin) if pin.definition.sha256 == definition.sha256 => pin,
                Some(mut pin) => {
                    told.changed.push(name.clone());
                    pin.forget_approval();
                    pin.definition = definition;
                    pin
                }
            };
            tools.insert(name, pin);
        }
        told.gone = self.tools.keys().cloned().collect();
        self.tools = tools;
        told
    }

    /// What the backend offers now and the file has otherwise, tool by tool and field by field.
    pub fn changes(&self, offered: &[Definition]) -> Vec<Change> {
        diff::changes(self, offered)
    }

    /// The declarations of the tools that are approved, for what works without the backend.
    pub fn declarations(&self, backend: &Arc<str>) -> Vec<Arc<Decl>> {
        let approved = self.tools.values().filter(|pin| pin.approved);
        approved.filter_map(|pin| pin.declaration(backend)).map(Arc::new).collect()
    }
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // INVARIANT: writing to a string does not fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn write_pin(out: &mut String, name: &str, pin: &Pin) -> std::fmt::Result {
    writeln!(out, "  {}:", text::key(name))?;
    writeln!(out, "    approved: {}", pin.approved)?;
    if let Some(by) = &pin.approved_by {
        writeln!(out, "    approved_by: {}", text::quoted(by))?;
    }
    if let Some(at) = &pin.approved_at {
        writeln!(out, "    approved_at: {}", text::quoted(at))?;
    }
    writeln!(out, "    effect: {}", pin.effect.as_str())?;
    if let Some(why) = &pin.why {
        writeln!(out, "    why: {}", text::quoted(why))?;
    }
    if pin.idempotent {
        writeln!(out, "    idempotent: true")?;
    }
    if pin.unchecked {
        writeln!(out, "    arguments: unchecked")?;
    }
    writeln!(out, "    sha256: {}", hex(&pin.definition.sha256))?;
    let mut members: Vec<(&String, &Value)> =
        pin.definition.members.iter().filter(|(member, _)| *member != "name").collect();
    members.sort_by_key(|(member, _)| (rank(member), *member));
    if members.is_empty() {
        return writeln!(out, "    definition: {{}}");
    }
    writeln!(out, "    definition:")?;
    for (member, value) in members {
        let value = match value {
            Value::String(text) if is_text(member) => text::scalar(text, 8),
            other => text::json_block(other, 8),
        };
        writeln!(out, "      {}: {value}", text::key(member))?;
    }
    Ok(())
}

/// What a person reads first comes first.
fn rank(member: &str) -> usize {
    let order = ["title", "description", "annotations", "inputSchema", "outputSchema"];
    order.iter().position(|known| *known == member).unwrap_or(order.len())
}

/// Written as text; every other member is written as JSON.
pub(crate) fn is_text(member: &str) -> bool {
    matches!(member, "title" | "description")
}
