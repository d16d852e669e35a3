//! Pin files: a text to a [`PinFile`], with every fault at once and its line; reading and writing the file.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Map;
use serde_json::Value;

use super::yaml;
use super::yaml::Content;
use super::yaml::Node;
use crate::catalog::Effect;
use crate::catalog::pin::DEFINITION_BYTES_MAX;
use crate::catalog::pin::Definition;
use crate::catalog::pin::FILE_BYTES_MAX;
use crate::catalog::pin::Fault;
use crate::catalog::pin::Pin;
use crate::catalog::pin::PinFile;
use crate::catalog::pin::hex;
use crate::catalog::pin::is_text;
use crate::mcp::strict::Strict;

const NOTE_BYTES_MAX: usize = 1024;

impl PinFile {
    /// # Errors
    /// Everything that is wrong with it, each with its line.
    pub fn parse(text: &str) -> Result<PinFile, Vec<Fault>> {
        parse(text)
    }

    /// # Errors
    /// That it cannot be read, or everything that is wrong with it.
    pub fn read(path: &Path) -> Result<PinFile, Vec<Fault>> {
        let whole = |what: String| vec![Fault { line: 0, what }];
        let length = std::fs::metadata(path).map_err(|error| whole(format!("cannot be read: {error}")))?.len();
        if length > FILE_BYTES_MAX {
            return Err(whole(format!("is larger than {FILE_BYTES_MAX} bytes")));
        }
        PinFile::parse(&std::fs::read_to_string(path).map_err(|error| whole(format!("cannot be read: {error}")))?)
    }

    /// Puts the file in the place of the old one, as a whole or not at all. Makes its folder.
    ///
    /// # Errors
    /// That it cannot be written.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut draft = path.as_os_str().to_owned();
        draft.push(".new");
        std::fs::write(&draft, self.to_yaml())?;
        std::fs::rename(&draft, path)
    }
}

fn parse(text: &str) -> Result<PinFile, Vec<Fault>> {
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(vec![Fault { line: 0, what: format!("is larger than {FILE_BYTES_MAX} bytes") }]);
    }
    let plain =
        |fault: yaml::Fault| Fault { line: fault.at.line, what: format!("`{}`: {}", fault.path, fault.message) };
    let tree = yaml::parse(text.trim_start_matches('\u{feff}'))
        .map_err(|faults| faults.into_iter().map(plain).collect::<Vec<_>>())?;
    let mut reader = Reader { faults: tree.faults.into_iter().map(plain).collect() };
    let file = reader.file(&tree.root);
    reader.faults.sort_by(|a, b| (a.line, &a.what).cmp(&(b.line, &b.what)));
    match file {
        Some(file) if reader.faults.is_empty() => Ok(file),
        _ => Err(reader.faults),
    }
}

struct Reader {
    faults: Vec<Fault>,
}

impl Reader {
    fn fault(&mut self, node: &Node, what: impl Into<String>) {
        let what = what.into();
        let path = if node.path.is_empty() { String::new() } else { format!("`{}` ", node.path) };
        self.faults.push(Fault { line: node.mark().line, what: format!("{path}{what}") });
    }

    fn members<'a>(&mut self, node: &'a Node, known: &[&str]) -> Option<&'a [(String, Node)]> {
        let Content::Mapping(members) = &node.content else {
            self.fault(node, "is not a mapping");
            return None;
        };
        for (name, node) in members {
            if !known.is_empty() && !known.contains(&name.as_str()) {
                self.fault(node, format!("is not known here; known are `{}`", known.join("`, `")));
            }
        }
        Some(members)
    }

    fn text<'a>(&mut self, node: &'a Node) -> Option<&'a str> {
        match &node.content {
            Content::Scalar(Value::String(text)) => Some(text),
            _ => {
                self.fault(node, "is not text: write it in quotes");
                None
            }
        }
    }

    fn note(&mut self, node: &Node) -> Option<String> {
        let text = self.text(node)?;
        if text.len() > NOTE_BYTES_MAX {
            self.fault(node, format!("is longer than {NOTE_BYTES_MAX} bytes"));
        }
        Some(text.to_owned())
    }

    fn flag(&mut self, node: &Node) -> Option<bool> {
        match &node.content {
            Content::Scalar(Value::Bool(flag)) => Some(*flag),
            _ => {
                self.fault(node, "is neither `true` nor `false`");
                None
            }
        }
    }

    fn file(&mut self, root: &Node) -> Option<PinFile> {
        let members = self.members(root, &["version", "backend", "tools"])?;
        let find = |wanted: &str| members.iter().find(|(name, _)| name == wanted).map(|(_, node)| node);
        match find("version") {
            Some(node) if matches!(&node.content, Content::Scalar(version) if *version == 1) => {}
            Some(node) => self.fault(node, "is not `1`: this program knows no other"),
            None => self.fault(root, "`version: 1` is missing"),
        }
        let backend = match find("backend") {
            Some(node) => self.note(node),
            None => {
                self.fault(root, "`backend` is missing: whose tools are these?");
                None
            }
        };
        let Some(listed) = find("tools") else {
            self.fault(root, "`tools` is missing");
            return None;
        };
        let mut tools = BTreeMap::new();
        for (name, node) in self.members(listed, &[])? {
            if let Some(pin) = self.pin(name, node) {
                tools.insert(name.clone(), pin);
            }
        }
        Some(PinFile { backend: backend?, tools })
    }

    fn pin(&mut self, name: &str, node: &Node) -> Option<Pin> {
        const KNOWN: [&str; 9] = [
            "approved",
            "approved_by",
            "approved_at",
            "effect",
            "why",
            "idempotent",
            "arguments",
            "sha256",
            "definition",
        ];
        let members = self.members(node, &KNOWN)?;
        let find = |wanted: &str| members.iter().find(|(name, _)| name == wanted).map(|(_, node)| node);
        let required = |reader: &mut Reader, wanted: &str| {
            let found = find(wanted);
            if found.is_none() {
                reader.fault(node, format!("has no `{wanted}`"));
            }
            found
        };
        let approved = required(self, "approved").and_then(|node| self.flag(node));
        let effect = required(self, "effect").and_then(|node| self.effect(node));
        let sha256 = required(self, "sha256").and_then(|node| Some((node, self.text(node)?)));
        let definition = required(self, "definition").and_then(|node| self.definition(name, node));
        let unchecked = find("arguments").is_some_and(|node| match self.text(node) {
            Some("unchecked") => true,
            Some(_) => {
                self.fault(node, "can only be `unchecked`");
                false
            }
            None => false,
        });
        let idempotent = find("idempotent").and_then(|node| self.flag(node)).unwrap_or(false);
        let mut note = |wanted: &str| find(wanted).and_then(|node| self.note(node));
        let (approved_by, approved_at, why) = (note("approved_by"), note("approved_at"), note("why"));
        let (definition, (digest_at, sha256)) = (definition?, sha256?);
        if hex(definition.sha256()) != sha256 {
            self.fault(digest_at, format!("is not the digest of the definition (`{}`): definitions are not edited but pinned (`wardgate tools pin`)", hex(definition.sha256())));
        }
        Some(Pin {
            approved: approved?,
            approved_by,
            approved_at,
            effect: effect?,
            why,
            idempotent,
            unchecked,
            definition,
            line: node.mark().line,
        })
    }

    fn effect(&mut self, node: &Node) -> Option<Effect> {
        let text = self.text(node)?;
        let found = Effect::ALL.into_iter().find(|effect| effect.as_str() == text);
        if found.is_none() {
            self.fault(node, "is none of `read`, `read_sensitive`, `write` and `destroy`");
        }
        found
    }

    fn definition(&mut self, name: &str, node: &Node) -> Option<Definition> {
        let mut members = Map::new();
        members.insert("name".to_owned(), name.into());
        for (member, node) in self.members(node, &[])? {
            if member == "name" {
                self.fault(node, "is said by the key of the tool");
                continue;
            }
            let text = self.text(node)?;
            let value = if is_text(member) {
                Value::from(text)
            } else {
                match serde_json::from_str::<Strict>(text) {
                    Ok(Strict(value)) => value,
                    Err(_) => {
                        self.fault(node, "is not JSON without duplicate members");
                        continue;
                    }
                }
            };
            members.insert(member.clone(), value);
        }
        if Value::Object(members.clone()).to_string().len() > DEFINITION_BYTES_MAX * 2 {
            self.fault(node, "is too large");
            return None;
        }
        match Definition::of(members) {
            Ok(definition) => Some(definition),
            Err(unfit) => {
                self.fault(node, format!("cannot be: {unfit}"));
                None
            }
        }
    }
}
