//! List answers (`tools/list`, `prompts/list`, `resources/list`, `resources/templates/list`): finding the entries in
//! the raw bytes, and writing the same answer with some of them left out.
//!
//! What is kept is kept byte for byte, in the upstream's order. A filtered answer is private to the caller, so
//! `cacheScope` becomes `"private"` (MCP 2026-07-28, server/utilities/caching).

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::Binding;
use super::Method;
use super::bindings;
use super::object;
use crate::catalog::Hints;

/// Entries of one page. No client shows more, and each costs a decision.
pub const ENTRIES_MAX: usize = 10_000;

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ListKind {
    Prompts,
    Resources,
    Templates,
    Tools,
}

impl ListKind {
    pub const ALL: [ListKind; 4] = [ListKind::Prompts, ListKind::Resources, ListKind::Templates, ListKind::Tools];

    /// The member of the result that holds the entries.
    pub fn member(self) -> &'static str {
        match self {
            ListKind::Prompts => "prompts",
            ListKind::Resources => "resources",
            ListKind::Templates => "resourceTemplates",
            ListKind::Tools => "tools",
        }
    }

    /// The member of an entry that names it.
    pub fn name_member(self) -> &'static str {
        match self {
            ListKind::Prompts | ListKind::Tools => "name",
            ListKind::Resources => "uri",
            ListKind::Templates => "uriTemplate",
        }
    }

    pub fn of(method: Method) -> Option<ListKind> {
        match method {
            Method::PromptsList => Some(ListKind::Prompts),
            Method::ResourcesList => Some(ListKind::Resources),
            Method::ResourcesTemplatesList => Some(ListKind::Templates),
            Method::ToolsList => Some(ListKind::Tools),
            _ => None,
        }
    }
}

/// One entry of a list answer.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Name, URI or URI template: what policy judges.
    pub name: String,
    pub hints: Hints,
    /// The entry as the upstream wrote it.
    pub wire: Bytes,
    /// Arguments that are mirrored in headers.
    pub headers: Vec<Binding>,
    /// May be shown at all: a good name that no other entry has, and (tools) good header bindings.
    pub valid: bool,
}

/// A parsed page of a list.
#[derive(Debug)]
pub struct Page {
    whole: Bytes,
    pub entries: Vec<Entry>,
    spans: Vec<Range<usize>>,
    cache_scope: Option<Range<usize>>,
    /// The upstream calls it the same for every caller.
    pub public: bool,
    /// How long it is fresh; 0 where that is not said.
    pub ttl_ms: u64,
    pub next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    result: Option<Listing<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listing<'a> {
    #[serde(borrow)]
    tools: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    prompts: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    resources: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    resource_templates: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    cache_scope: Option<&'a RawValue>,
    #[serde(borrow)]
    ttl_ms: Option<&'a RawValue>,
    #[serde(borrow)]
    next_cursor: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EntryWire<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    uri: Option<Cow<'a, str>>,
    #[serde(borrow)]
    uri_template: Option<Cow<'a, str>>,
    annotations: Option<Hints>,
    #[serde(borrow)]
    input_schema: Option<&'a RawValue>,
}

/// Which lists a result carries, whatever was asked: for answers that come without their question (resumed streams).
/// `None`: it cannot be told.
pub fn kinds_of(answer: &[u8]) -> Option<Vec<ListKind>> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        result: Option<&'a RawValue>,
    }
    let Some(result) =
        serde_json::from_slice::<Answer<'_>>(answer).ok()?.result.filter(|raw| raw.get().starts_with('{'))
    else {
        return Some(Vec::new());
    };
    let members: HashMap<Cow<'_, str>, IgnoredAny> = serde_json::from_str(result.get()).ok()?;
    Some(ListKind::ALL.into_iter().filter(|kind| members.contains_key(kind.member())).collect())
}

/// Where the value of the result's `ttlMs` stands.
pub fn ttl_span(answer: &[u8]) -> Option<Range<usize>> {
    let text = std::str::from_utf8(answer).ok()?;
    let ttl = object::member(object::member(text, "result")?.get(), "ttlMs")?.get();
    let start = ttl.as_ptr().addr().checked_sub(text.as_ptr().addr())?;
    Some(start..start + ttl.len())
}

impl Listing<'_> {
    fn entries(&self, kind: ListKind) -> Option<&Vec<&RawValue>> {
        match kind {
            ListKind::Prompts => self.prompts.as_ref(),
            ListKind::Resources => self.resources.as_ref(),
            ListKind::Templates => self.resource_templates.as_ref(),
            ListKind::Tools => self.tools.as_ref(),
        }
    }
}

impl Page {
    /// # Errors
    /// What breaks the protocol, in words that hold nothing of the content.
    pub fn parse(kind: ListKind, answer: &Bytes) -> Result<Page, &'static str> {
        let envelope: Envelope<'_> = serde_json::from_slice(answer).map_err(|_| "the list answer is malformed")?;
        let listing = envelope.result.ok_or("the list answer has no result")?;
        let raw = listing.entries(kind).ok_or("the list answer has no list")?;
        if raw.len() > ENTRIES_MAX {
            return Err("the list answer has too many entries");
        }
        let span = |value: &RawValue| {
            let start = value.get().as_ptr().addr().wrapping_sub(answer.as_ptr().addr());
            start..start + value.get().len()
        };
        let spans: Vec<_> = raw.iter().map(|value| span(value)).collect();
        let mut entries = Vec::with_capacity(raw.len());
        for value in raw {
            entries.push(Entry::read(kind, value, answer));
        }
        hide_doubles(&mut entries);
        let public = listing.cache_scope.is_some_and(|scope| scope.get() == "\"public\"");
        let ttl_ms = listing.ttl_ms.and_then(|ttl| ttl.get().parse().ok()).unwrap_or_default();
        let cache_scope = listing.cache_scope.map(span);
        let next_cursor = listing.next_cursor.map(Cow::into_owned);
        Ok(Page { whole: answer.clone(), entries, spans, cache_scope, public, ttl_ms, next_cursor })
    }

    /// The same answer with only the entries whose flag is true.
    pub fn keep(&self, keep: &[bool]) -> Bytes {
        let mut out = Vec::with_capacity(self.whole.len() + 16);
        let mut copied = 0;
        let copy =
            |out: &mut Vec<u8>, range: Range<usize>| out.extend_from_slice(self.whole.get(range).unwrap_or_default());
        // The scope may stand before or after the list.
        let list = self.spans.first().map(|first| first.start)..self.spans.last().map(|last| last.end);
        let mut edits: Vec<(Range<usize>, Option<&[u8]>)> = Vec::with_capacity(2);
        if let Some(scope) = &self.cache_scope {
            edits.push((scope.clone(), Some(b"\"private\"")));
        }
        if let (Some(start), Some(end)) = (list.start, list.end) {
            edits.push((start..end, None));
        }
        edits.sort_by_key(|(range, _)| range.start);
        for (range, text) in edits {
            copy(&mut out, copied..range.start);
            match text {
                Some(text) => out.extend_from_slice(text),
                None => {
                    let kept = self.spans.iter().zip(keep).filter(|(_, keep)| **keep).map(|(span, _)| span);
                    for (index, span) in kept.enumerate() {
                        if index > 0 {
                            out.push(b',');
                        }
                        copy(&mut out, span.clone());
                    }
                }
            }
            copied = range.end;
        }
        copy(&mut out, copied..self.whole.len());
        out.into()
    }
}

impl Entry {
    /// A tool's entry that stands alone.
    pub fn tool(wire: &Bytes) -> Entry {
        match serde_json::from_slice::<&RawValue>(wire) {
            Ok(value) => Entry::read(ListKind::Tools, value, wire),
            Err(_) => Entry {
                name: String::new(),
                hints: Hints::default(),
                wire: wire.clone(),
                headers: Vec::new(),
                valid: false,
            },
        }
    }

    /// A malformed entry hides itself, not the others.
    fn read(kind: ListKind, value: &RawValue, answer: &Bytes) -> Entry {
        let bytes = answer.slice_ref(value.get().as_bytes());
        let hidden =
            |wire| Entry { name: String::new(), hints: Hints::default(), wire, headers: Vec::new(), valid: false };
        let Ok(wire) = serde_json::from_str::<EntryWire<'_>>(value.get()) else {
            return hidden(bytes);
        };
        let name = match kind {
            ListKind::Prompts | ListKind::Tools => wire.name,
            ListKind::Resources => wire.uri,
            ListKind::Templates => wire.uri_template,
        };
        let Some(name) = name.map(Cow::into_owned) else {
            return hidden(bytes);
        };
        let mut valid = match kind {
            ListKind::Tools => good_name(&name),
            ListKind::Prompts | ListKind::Resources | ListKind::Templates => !name.is_empty(),
        };
        let mut headers = Vec::new();
        if let Some(schema) = wire.input_schema.filter(|schema| may_bind(schema.get())) {
            match serde_json::from_str(schema.get()).map_err(|_| "malformed").and_then(|schema| bindings(&schema)) {
                Ok(found) => headers = found,
                Err(_) => valid = false,
            }
        }
        Entry { name, hints: wire.annotations.unwrap_or_default(), wire: bytes, headers, valid }
    }
}

/// Only a schema that has the word, or escapes that could spell it, is worth a full parse.
fn may_bind(schema: &str) -> bool {
    schema.contains("x-mcp-header") || schema.contains("\\u")
}

/// SPEC: server/tools §Tool Names. Anything else could look like another tool (homoglyphs, blanks, bidi).
pub fn good_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Two entries of one name: nobody can say which one a call would reach, so neither is shown.
fn hide_doubles(entries: &mut [Entry]) {
    let mut seen: HashMap<&str, usize> = HashMap::with_capacity(entries.len());
    let mut doubled = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        if let Some(first) = seen.insert(&entry.name, index) {
            doubled.extend([first, index]);
        }
    }
    for index in doubled {
        if let Some(entry) = entries.get_mut(index) {
            entry.valid = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(text: &str) -> Page {
        Page::parse(ListKind::Tools, &Bytes::copy_from_slice(text.as_bytes())).expect("a page")
    }

    #[test]
    fn what_is_kept_is_kept_byte_for_byte() {
        let text = r#"{"jsonrpc":"2.0","id":1, "result":{"cacheScope" : "public","tools":[ {"name":"a","x":1.0e2} , {"name":"b"},{"name":"c","é":"\u0041"}],"nextCursor":"n","ttlMs":5}}"#;
        let page = page(text);
        assert_eq!(page.next_cursor.as_deref(), Some("n"));
        let kept = page.keep(&[true, false, true]);
        let want = r#"{"jsonrpc":"2.0","id":1, "result":{"cacheScope" : "private","tools":[ {"name":"a","x":1.0e2},{"name":"c","é":"\u0041"}],"nextCursor":"n","ttlMs":5}}"#;
        assert_eq!(String::from_utf8_lossy(&kept), want);
        let none = page.keep(&[false, false, false]);
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&none).expect("json")["result"]["tools"],
            serde_json::json!([])
        );
    }

    #[test]
    fn the_scope_may_follow_the_list() {
        let kept = page(r#"{"id":1,"result":{"tools":[{"name":"a"}],"cacheScope":"public"}}"#).keep(&[false]);
        assert_eq!(&kept[..], br#"{"id":1,"result":{"tools":[],"cacheScope":"private"}}"#);
    }

    #[test]
    fn an_empty_list_stays_empty() {
        let text = r#"{"id":1,"result":{"tools":[]}}"#;
        assert_eq!(&page(text).keep(&[])[..], text.as_bytes());
    }

    #[test]
    fn bad_names_and_doubles_are_never_shown() {
        let page = page(
            r#"{"result":{"tools":[{"name":"ok"},{"name":"b\u0430d"},{"name":"twice"},{"name":"twice"},{"name":""},{"name":"a b"}]}}"#,
        );
        let shown: Vec<_> = page.entries.iter().filter(|entry| entry.valid).map(|entry| entry.name.as_str()).collect();
        assert_eq!(shown, ["ok"]);
    }

    #[test]
    fn a_tool_with_bad_header_bindings_is_never_shown() {
        let page = page(
            r#"{"result":{"tools":[{"name":"a","inputSchema":{"properties":{"p":{"type":"number","x-mcp-header":"P"}}}},{"name":"b","inputSchema":{"properties":{"p":{"type":"string","x-mcp-header":"P"}}}}]}}"#,
        );
        assert_eq!(
            page.entries.iter().map(|entry| (entry.valid, entry.headers.len())).collect::<Vec<_>>(),
            [(false, 0), (true, 1)]
        );
    }

    #[test]
    fn a_malformed_entry_hides_itself_and_not_the_others() {
        let text = r#"{"result":{"tools":[1,{},{"name":7},{"name":"a","annotations":3},{"name":"b"},{"name":"c","inputSchema":{"properties":{"p":{"type":"number","x-mcp-heade\u0072":"P"}}}}]}}"#;
        let shown: Vec<_> =
            page(text).entries.into_iter().filter(|entry| entry.valid).map(|entry| entry.name).collect();
        assert_eq!(shown, ["b"]);
    }

    #[test]
    fn a_malformed_answer_is_refused_whole() {
        for bad in [
            r#"{"result":{}}"#,
            r#"{"result":{"tools":1}}"#,
            r#"{"error":{}}"#,
            "[]",
            r#"{"result":{"tools":[],"tools":[]}}"#,
        ] {
            assert!(Page::parse(ListKind::Tools, &Bytes::copy_from_slice(bad.as_bytes())).is_err(), "{bad}");
        }
    }
}
