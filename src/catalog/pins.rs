//! `Pins`: the reviewed tools of one backend, ready to judge what the backend lists now; what does not fit is quarantined.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::Decl;
use super::Effect;
use super::check::Check;
use super::pin::Definition;
use super::pin::Fault;
use super::pin::Pin;
use super::pin::PinFile;

/// Why a tool is not offered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Why {
    /// It is not what was reviewed.
    Changed,
    /// Nobody can say what it is: two readers could read it in two ways, or it is too large.
    Malformed,
    /// It was never reviewed; a tool that was renamed is one.
    New,
    /// It is in the pin file and not approved there.
    Unapproved,
}

impl Why {
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Changed => "changed",
            Why::Malformed => "malformed",
            Why::New => "new",
            Why::Unapproved => "unapproved",
        }
    }
}

/// One tool, as reviewed.
pub struct Pinned {
    sha256: [u8; 32],
    approved: bool,
    pub effect: Effect,
    pub idempotent: bool,
    /// For its arguments. `None`: it has no schema, or somebody accepted that they are not validated.
    pub input: Option<Check>,
}

/// The reviewed tools of one backend. None of those that are not in it may be offered.
#[derive(Default)]
pub struct Pins {
    tools: HashMap<Box<str>, Pinned>,
    declared: Vec<Arc<Decl>>,
}

impl fmt::Debug for Pins {
    /// Says nothing of the content: a backend whose pins change stays the same backend.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pins")
    }
}

impl Pins {
    /// # Errors
    /// Every approved tool whose schema cannot be used, with its line.
    pub fn new(file: &PinFile) -> Result<Pins, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut tools = HashMap::with_capacity(file.tools.len());
        for (name, pin) in &file.tools {
            match Pinned::of(pin) {
                Ok(pinned) => drop(tools.insert(name.as_str().into(), pinned)),
                Err(what) => faults.push(Fault { line: pin.line, what: format!("tool `{name}`: {what}") }),
            }
        }
        let backend: Arc<str> = file.backend.as_str().into();
        let declared = file.tools.values().filter_map(|pin| pin.declaration(&backend)).map(Arc::new).collect();
        if faults.is_empty() { Ok(Pins { tools, declared }) } else { Err(faults) }
    }

    /// All that are in the file, approved or not: what policies may be written about.
    pub fn declarations(&self) -> &[Arc<Decl>] {
        &self.declared
    }

    /// Is this list entry, byte for byte but for spelling, what was reviewed and approved?
    ///
    /// # Errors
    /// [`Why`] not.
    pub fn judge(&self, name: &str, wire: &[u8]) -> Result<&Pinned, Why> {
        let pinned = self.tools.get(name).ok_or(Why::New)?;
        let definition = Definition::read(wire).map_err(|_unfit| Why::Malformed)?;
        if definition.name() != name || *definition.sha256() != pinned.sha256 {
            return Err(Why::Changed);
        }
        if pinned.approved { Ok(pinned) } else { Err(Why::Unapproved) }
    }

    /// What the arguments of a tool are validated with.
    pub fn input(&self, name: &str) -> Option<&Check> {
        self.tools.get(name)?.input.as_ref()
    }
}

impl Pinned {
    fn of(pin: &Pin) -> Result<Pinned, String> {
        let schema = pin.definition.member("inputSchema").filter(|_| pin.approved && !pin.unchecked);
        let input = schema.map(usable).transpose()?;
        Ok(Pinned {
            sha256: *pin.definition.sha256(),
            approved: pin.approved,
            effect: pin.effect(),
            idempotent: pin.idempotent,
            input,
        })
    }
}

/// # Errors
/// Why arguments cannot be validated with it, and what can be done.
pub fn usable(schema: &serde_json::Value) -> Result<Check, String> {
    Check::new(schema).map_err(|unusable| {
        format!("its inputSchema cannot be used: {unusable}; `arguments: unchecked` accepts that its arguments are not validated")
    })
}

/// A backend's pin file, and what it says.
#[derive(Clone, Debug)]
pub struct Pinning {
    pub file: std::path::PathBuf,
    pub pins: Arc<Pins>,
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use super::*;
    use crate::catalog::Effects;

    fn file(tools: &[Value]) -> PinFile {
        let mut file = PinFile::new("b");
        let read = |tool: &Value| Definition::read(tool.to_string().as_bytes()).expect("a definition");
        file.repin(tools.iter().map(read).collect(), &Effects::default());
        file.tools.values_mut().for_each(|pin| pin.approved = true);
        file
    }

    #[test]
    fn only_what_was_approved_as_it_is_fits() {
        let mut file = file(&[json!({ "name": "a", "description": "x" }), json!({ "name": "b" })]);
        if let Some(pin) = file.tools.get_mut("b") {
            pin.approved = false;
        }
        let pins = Pins::new(&file).expect("pins");
        let judge = |name: &str, wire: &str| pins.judge(name, wire.as_bytes()).map(|pinned| pinned.effect);
        assert_eq!(judge("a", r#"{ "description": "\u0078", "name": "a" }"#), Ok(Effect::Destroy));
        assert_eq!(judge("a", r#"{"name":"a","description":"y"}"#), Err(Why::Changed));
        assert_eq!(judge("a", r#"{"name":"a","description":"x","title":"t"}"#), Err(Why::Changed));
        assert_eq!(judge("a", r#"{"name":"a","description":"x","description":"x"}"#), Err(Why::Malformed));
        assert_eq!(judge("b", r#"{"name":"b"}"#), Err(Why::Unapproved));
        assert_eq!(judge("c", r#"{"name":"a","description":"x"}"#), Err(Why::New), "renamed");
        assert!(Pins::default().judge("a", b"{}").is_err(), "nothing is approved by nobody");
    }

    #[test]
    fn a_tool_whose_schema_cannot_be_used_is_not_approved_silently() {
        let mut file = file(&[json!({ "name": "a", "inputSchema": { "$ref": "https://example.com/s.json" } })]);
        let faults = Pins::new(&file).expect_err("a fault");
        assert!(faults[0].what.starts_with("tool `a`: its inputSchema cannot be used: the reference"), "{faults:?}");
        if let Some(pin) = file.tools.get_mut("a") {
            pin.unchecked = true;
        }
        assert!(Pins::new(&file).is_ok_and(|pins| pins.input("a").is_none()));
        if let Some(pin) = file.tools.get_mut("a") {
            (pin.unchecked, pin.approved) = (false, false);
        }
        assert!(Pins::new(&file).is_ok(), "what is not approved harms nobody");
    }
}
