//! What may leave? Secrets, hidden text and sizes of what a backend says, before it reaches a client. Pure.
//!
//! A message is walked once, as text: what is not changed stays byte for byte, numbers and ids among it. Strings are
//! judged by what they say, not by how they are written: `\u0065yJ…` is `eyJ…`.
//!
//! What is taken out is replaced by a mark that says what it was: `[redacted:jwt]`, `[hidden:tags 12]`. A mark is never
//! taken for a finding, so filtering twice is filtering once.

mod hidden;
mod kind;
mod secrets;
mod size;
#[cfg(test)]
mod tests;
mod thread;
mod walk;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

pub use hidden::Hidden;
pub use kind::Kind;
pub use secrets::Error;
use secrets::Secrets;
pub use size::Excess;
pub use size::Oversize;
pub use thread::Thread;
use walk::Part;

use crate::mcp::quoted;

/// Counted under this name: hidden text that was taken out or marked.
pub const HIDDEN: &str = "hidden_text";
/// Counted under this name: items that were cut.
pub const TRUNCATED: &str = "truncated";

/// A longer name of an operator's pattern makes long marks.
pub const PATTERN_NAME_BYTES_MAX: usize = 32;
pub const PATTERNS_MAX: usize = 64;

/// What one backend's messages are held to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Config {
    /// Secrets that are taken out.
    pub redact: Vec<Kind>,
    /// The operator's own: name and regular expression.
    pub patterns: BTreeMap<String, String>,
    /// In what a model reads as instructions: names of things, descriptions, schemas, questions to the user.
    pub hidden_declared: Hidden,
    /// In results, errors, logs and progress.
    pub hidden_said: Option<Hidden>,
    /// Of a whole answer that is no list, as it leaves.
    pub result_bytes_max: Option<usize>,
    /// Of one content block or resource in it.
    pub item_bytes_max: Option<usize>,
    /// What becomes of an item over `item_bytes_max`.
    pub oversize: Oversize,
}

/// What a message is, to a model.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// Lists, instructions, questions to the user.
    Declared,
    /// Results, errors, logs, progress.
    Said,
}

/// What was found, by name, and how often.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Found(Vec<(Arc<str>, u64)>);

impl Found {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, u64)> {
        self.0.iter().map(|(name, count)| (name, *count))
    }

    fn add(&mut self, name: &Arc<str>, count: u64) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, counted)) => *counted += count,
            None if count > 0 => self.0.push((name.clone(), count)),
            None => {}
        }
    }
}

/// The filters of one backend, ready to be used.
#[derive(Debug)]
pub struct Filters {
    secrets: Option<Secrets>,
    declared: Hidden,
    said: Hidden,
    sizes: size::Sizes,
    hidden_name: Arc<str>,
    truncated_name: Arc<str>,
}

impl Default for Filters {
    /// Nothing is hidden in declarations; everything else passes.
    fn default() -> Self {
        Filters::of(&Config::default(), None)
    }
}

impl Filters {
    /// # Errors
    /// When a pattern of the operator's cannot be used.
    pub fn new(config: &Config) -> Result<Filters, Error> {
        let secrets = if config.redact.is_empty() && config.patterns.is_empty() {
            None
        } else {
            Some(Secrets::new(&config.redact, &config.patterns)?)
        };
        Ok(Filters::of(config, secrets))
    }

    fn of(config: &Config, secrets: Option<Secrets>) -> Filters {
        Filters {
            secrets,
            declared: config.hidden_declared,
            said: config.hidden_said.unwrap_or(Hidden::Allow),
            sizes: size::Sizes {
                result_bytes_max: config.result_bytes_max,
                item_bytes_max: config.item_bytes_max,
                oversize: config.oversize,
            },
            hidden_name: HIDDEN.into(),
            truncated_name: TRUNCATED.into(),
        }
    }

    /// Does a message of this kind pass as it is, whatever it says?
    pub fn passes(&self, place: Place) -> bool {
        // A result may ask the user something, which is declared.
        let hidden = self.hidden(place) != Hidden::Allow || self.declared != Hidden::Allow;
        self.secrets.is_none() && !hidden && !self.sizes.bound(place)
    }

    /// Are secrets looked for?
    pub fn redacts(&self) -> bool {
        self.secrets.is_some()
    }

    fn hidden(&self, place: Place) -> Hidden {
        match place {
            Place::Declared => self.declared,
            Place::Said => self.said,
        }
    }

    /// A whole answer as it may leave.
    ///
    /// # Errors
    /// When it is larger than it may be and cannot be cut.
    pub fn answer(&self, place: Place, message: &Bytes, found: &mut Found) -> Result<Bytes, Excess> {
        let message = self.message(place, message, found);
        if !self.sizes.bound(place) {
            return Ok(message);
        }
        let (message, cut) = self.sizes.hold(&message)?;
        found.add(&self.truncated_name, cut);
        Ok(message)
    }

    /// Any message as it may leave, whatever its size.
    pub fn message(&self, place: Place, message: &Bytes, found: &mut Found) -> Bytes {
        let secrets = self.secrets.as_ref().filter(|secrets| secrets.may_be_in(message));
        // Questions to the user come in results too.
        let (base, asks) = (self.hidden(place), self.declared);
        let hides = match (base, asks) {
            (Hidden::Allow, Hidden::Allow) => false,
            (Hidden::Allow, _) => may_ask(message) && hidden::may_be_in(message),
            _ => hidden::may_be_in(message),
        };
        if secrets.is_none() && !hides {
            return message.clone();
        }
        let Ok(text) = std::str::from_utf8(message) else { return message.clone() };
        let mut keys = 0;
        let changed = walk::rewrite(text, |path, part| {
            if is_opaque(path) {
                return None;
            }
            let hidden = if path.get(1).is_some_and(|name| name == "inputRequests") { asks } else { base };
            let hidden = if is_identifier(path) || part.is_key() { Hidden::Allow } else { hidden };
            let plain = part.text()?;
            let name = if part.is_key() { "" } else { path.last().map(Cow::as_ref).unwrap_or_default() };
            let free = is_free(path) || !(part.is_key() || is_word_of_protocol(name));
            let shown = self.text(secrets, hidden, (name, free), &plain, found)?;
            let shown = if part.is_key() {
                keys += 1;
                // Two members must not get the same name.
                if keys == 1 { shown } else { format!("{shown}#{keys}") }
            } else {
                shown
            };
            Some(quoted(&shown))
        });
        changed.map_or_else(|| message.clone(), Bytes::from)
    }

    /// The text without what may not leave; `None` if all of it may.
    fn text(
        &self,
        secrets: Option<&Secrets>,
        hidden: Hidden,
        (name, free): (&str, bool),
        text: &str,
        found: &mut Found,
    ) -> Option<String> {
        let bare = hidden::take(hidden, text);
        let bare = bare.map(|(bare, count)| {
            found.add(&self.hidden_name, count);
            bare
        });
        let Some(secrets) = secrets else { return bare };
        let seen = bare.as_deref().unwrap_or(text);
        let redacted = if name == "blob" { redact_blob(secrets, seen, found) } else { None };
        redacted.or_else(|| secrets.redact(name, seen, free, found)).or(bare)
    }

    /// Text of our own making (a question about arguments) without secrets and hidden text, whatever is configured.
    pub fn plainly(text: &str) -> String {
        let bare = hidden::take(Hidden::Mark, text).map_or_else(|| text.to_owned(), |(bare, _)| bare);
        let mut found = Found::default();
        let redacted = Secrets::all().and_then(|secrets| secrets.redact("", &bare, false, &mut found));
        redacted.unwrap_or(bare)
    }
}

/// May it be a result that asks the user something first?
fn may_ask(message: &[u8]) -> bool {
    memchr::memmem::find(message, b"inputRequests").is_some() || memchr::memmem::find(message, b"\\u").is_some()
}

/// The base64 of a text is that text: what is found in it is taken out, and the rest encoded anew.
fn redact_blob(secrets: &Secrets, blob: &str, found: &mut Found) -> Option<String> {
    let text = String::from_utf8(STANDARD.decode(blob).ok()?).ok()?;
    secrets.redact("", &text, true, found).map(|shown| STANDARD.encode(shown))
}

/// What clients hand back as they got it, and what the protocol's machinery is made of: no model reads it, and with
/// another value the conversation breaks.
fn is_opaque(path: &[Cow<'_, str>]) -> bool {
    const TOP: [&str; 3] = ["id", "jsonrpc", "method"];
    const BELOW: [&str; 8] = [
        "nextCursor",
        "progressToken",
        "protocolVersion",
        "requestId",
        "requestState",
        "resultType",
        "taskId",
        "cacheScope",
    ];
    match path {
        [one] => TOP.contains(&one.as_ref()),
        [_, one] => BELOW.contains(&one.as_ref()),
        [_, holder, one] => {
            matches!((holder.as_ref(), one.as_ref()), ("task" | "tasks", "taskId") | ("_meta", "progressToken"))
        }
        _ => false,
    }
}

/// Is it in what servers fill as they like?
fn is_free(path: &[Cow<'_, str>]) -> bool {
    const HOLDERS: [&str; 4] = ["_meta", "arguments", "data", "structuredContent"];
    path.iter().rev().skip(1).any(|name| HOLDERS.contains(&name.as_ref()))
}

/// Members whose values are one of a few words of the protocol.
fn is_word_of_protocol(name: &str) -> bool {
    matches!(name, "action" | "level" | "mimeType" | "mode" | "role" | "status" | "type")
}

/// What clients send back to say which one they mean.
fn is_identifier(path: &[Cow<'_, str>]) -> bool {
    let name = path.last().map(Cow::as_ref).unwrap_or_default();
    matches!(name, "name" | "uri" | "uriTemplate" | "required" | "$ref")
}
