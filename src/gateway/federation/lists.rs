//! Merged lists: every backend's page with its names as they are on the route, in the order of the configuration.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use bytes::Bytes;
use moka::sync::Cache;
use serde_json::json;

use super::ALL;
use super::Federation;
use super::PARTIAL;
use super::cursor;
use super::cursor::Place;
use super::fan;
use super::fan::Missing;
use super::fan::Question;
use super::rewrite;
use crate::gateway::Open;
use crate::gateway::Rejection;
use crate::gateway::apply::Outgoing;
use crate::mcp::Id;
use crate::mcp::Kind;
use crate::mcp::Message;
use crate::mcp::Params;
use crate::mcp::list::ListKind;
use crate::mcp::list::Page;
use crate::mcp::object;
use crate::mcp::quoted;
use crate::route::Names;

/// A page of a merged list. What does not fit comes on the next one.
const PAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A longer cursor is a payload.
const CURSOR_BYTES_MAX: usize = 8 * 1024;

/// Parts kept, in bytes of input and output together.
const PARTS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Hidden names that were logged. More are logged again.
const LOGGED_MAX: usize = 10_000;

/// One backend's page, ready to be merged.
struct Part {
    input: Bytes,
    /// Its entries under their names on the route, with commas between.
    entries: Bytes,
    /// Entries that have no name on the route.
    hidden: usize,
    next: Option<String>,
    ttl_ms: u64,
}

/// Whose part it is: the house, the names (by their address, which lives as long as the house), the backend, the list, the caller's
/// authority, and where in the list.
type PartKey = (u64, usize, usize, ListKind, u128, Option<String>);

/// The parts made lately: the same page for the same authority becomes the same part.
pub(in crate::gateway) struct Parts {
    realm: u64,
    cache: Cache<PartKey, Arc<Part>>,
    logged: Mutex<HashSet<(Arc<str>, String)>>,
}

impl Default for Parts {
    fn default() -> Self {
        let weigher =
            |_: &_, part: &Arc<Part>| u32::try_from(part.input.len() + part.entries.len()).unwrap_or(u32::MAX);
        let cache = Cache::builder().max_capacity(PARTS_BYTES_MAX).weigher(weigher).build();
        Parts { realm: 0, cache, logged: Mutex::default() }
    }
}

/// A merged page in the making.
struct Merged {
    entries: Vec<u8>,
    /// Where the next page goes on.
    places: Vec<Place>,
    missing: Vec<Missing>,
    hidden: usize,
    ttl_ms: u64,
    /// Something did not fit: the order stays only if nothing later comes before it.
    full: bool,
}

impl Federation {
    pub(super) async fn list(
        &self,
        kind: ListKind,
        message: Message,
        id: &Id,
        open: &mut Open,
    ) -> Result<Outgoing, Rejection> {
        open.to(&ALL.into());
        let places = match &message.params.cursor {
            Some(cursor) => self.unseal(kind, cursor)?,
            None => (0..self.names.shares().len()).map(|share| (share, None)).collect(),
        };
        let slot = self.slot().await?;
        let question =
            |(share, cursor): &Place| Question { share: *share, message: part_of(&message, cursor.as_deref()) };
        let answers = self.ask(places.iter().map(question).collect(), &slot, open).await?;
        open.target(ALL);
        let started =
            |share: usize| places.iter().find(|(place, _)| *place == share).and_then(|(_, cursor)| cursor.clone());
        // A backend that does not know its own cursor any more: the client has to start again.
        if answers.missing.iter().any(|one| one.reason == fan::INVALID_PARAMS && started(one.share).is_some()) {
            return Err(cursor::invalid());
        }
        let mut merged = Merged {
            entries: Vec::new(),
            places: Vec::new(),
            missing: answers.missing,
            hidden: answers.hidden,
            ttl_ms: u64::MAX,
            full: false,
        };
        for (share, body) in answers.whole {
            self.merge(kind, share, started(share), body, &mut merged)?;
        }
        self.finish(kind, id, merged)
    }

    fn merge(
        &self,
        kind: ListKind,
        share: usize,
        from: Option<String>,
        body: Bytes,
        merged: &mut Merged,
    ) -> Result<(), Rejection> {
        let backend = self.backend(share)?;
        let Some(part) = self.part(kind, share, from.clone(), body) else {
            merged.missing.push(Missing::protocol(share, backend, "backend_protocol"));
            return Ok(());
        };
        merged.full |= !merged.entries.is_empty() && merged.entries.len() + part.entries.len() > PAGE_BYTES_MAX;
        if merged.full {
            merged.places.push((share, from));
            return Ok(());
        }
        if !part.entries.is_empty() && !merged.entries.is_empty() {
            merged.entries.push(b',');
        }
        merged.entries.extend_from_slice(&part.entries);
        merged.hidden += part.hidden;
        merged.ttl_ms = merged.ttl_ms.min(part.ttl_ms);
        match &part.next {
            None => {}
            // A list that goes on where it is would never end.
            Some(next) if Some(next) == from.as_ref() => {
                merged.missing.push(Missing::protocol(share, backend, "cursor_repeated"));
            }
            Some(next) if next.len() > CURSOR_BYTES_MAX => {
                merged.missing.push(Missing::protocol(share, backend, "cursor_too_long"));
            }
            Some(next) => merged.places.push((share, Some(next.clone()))),
        }
        Ok(())
    }

    fn finish(&self, kind: ListKind, id: &Id, mut merged: Merged) -> Result<Outgoing, Rejection> {
        let mut next = None;
        while !merged.places.is_empty() && next.is_none() {
            next = self.seal(kind, &merged.places);
            if next.is_none()
                && let Some((share, _)) = merged.places.pop()
            {
                merged.missing.push(Missing::protocol(share, self.backend(share)?, "cursor_too_long"));
            }
        }
        let ttl_ms = if merged.missing.is_empty() && merged.ttl_ms < u64::MAX { merged.ttl_ms } else { 0 };
        let mut tail = serde_json::Map::from_iter([
            ("ttlMs".to_owned(), json!(ttl_ms)),
            ("cacheScope".to_owned(), json!("private")),
        ]);
        if let Some(next) = next {
            tail.insert("nextCursor".to_owned(), next.into());
        }
        if !merged.missing.is_empty() {
            tail.insert("_meta".to_owned(), json!({ PARTIAL: fan::named(&merged.missing) }));
        }
        let tail = serde_json::Value::Object(tail).to_string();
        let mut body = Vec::with_capacity(merged.entries.len() + tail.len() + 128);
        let head = format!(
            r#"{{"jsonrpc":"2.0","id":{},"result":{{"resultType":"complete","{}":["#,
            id.as_json(),
            kind.member()
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(&merged.entries);
        body.extend_from_slice(b"],");
        // Without its opening brace: it goes on with the result's members.
        body.extend_from_slice(tail.as_bytes().get(1..).unwrap_or_default());
        body.push(b'}');
        Ok(Outgoing::Json { status: 200, body: body.into(), session: None, error_code: None, hidden: merged.hidden })
    }

    /// A filtered page as a part of the merged one. `None`: it is no list.
    fn part(&self, kind: ListKind, share: usize, from: Option<String>, body: Bytes) -> Option<Arc<Part>> {
        let parts = &self.errand.house.lists.parts;
        let authority = self.errand.principal.authority();
        let key = (parts.realm, Arc::as_ptr(&self.names).addr(), share, kind, authority, from);
        if let Some(known) = parts.cache.get(&key).filter(|known| known.input == body) {
            return Some(known);
        }
        let (part, nameless) = Part::read(kind, &self.names, share, body)?;
        let part = Arc::new(part);
        let backend = self.backend(share).ok()?;
        nameless.into_iter().for_each(|name| parts.log(&backend, name));
        parts.cache.insert(key, part.clone());
        Some(part)
    }
}

impl Part {
    /// The part, and the entries that have no name on the route.
    fn read(kind: ListKind, names: &Names, share: usize, body: Bytes) -> Option<(Part, Vec<String>)> {
        let page = Page::parse(kind, &body).ok()?;
        let mut entries = Vec::with_capacity(body.len());
        let mut nameless = Vec::new();
        for entry in page.entries.iter().filter(|entry| entry.valid) {
            let shown = match kind {
                ListKind::Tools => names.tool(share, &entry.name),
                ListKind::Prompts => names.prompt(share, &entry.name),
                ListKind::Resources | ListKind::Templates => names.uri(share, &entry.name),
            };
            let Some(wire) = shown.and_then(|shown| rewrite::entry(&entry.wire, kind.name_member(), &shown)) else {
                nameless.push(entry.name.clone());
                continue;
            };
            if !entries.is_empty() {
                entries.push(b',');
            }
            entries.extend_from_slice(&wire);
        }
        let hidden = nameless.len();
        let (next, ttl_ms) = (page.next_cursor, page.ttl_ms);
        Some((Part { input: body, entries: entries.into(), hidden, next, ttl_ms }, nameless))
    }
}

impl Parts {
    /// Those of another house: the same memory, and no entry in common.
    pub(in crate::gateway) fn beside(&self, realm: u64) -> Parts {
        Parts { realm, cache: self.cache.clone(), logged: Mutex::default() }
    }

    /// Once for each name.
    fn log(&self, backend: &Arc<str>, name: String) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() >= LOGGED_MAX {
            logged.clear();
        }
        if logged.insert((backend.clone(), name.clone())) {
            tracing::warn!(%backend, name, "hidden: too long with its prefix, or a rename took its name");
        }
    }
}

/// The client's question as one backend gets it: its `_meta`, and the backend's own cursor.
fn part_of(message: &Message, cursor: Option<&str>) -> Message {
    let raw = message.params.raw.as_ref().and_then(|raw| std::str::from_utf8(raw).ok()).unwrap_or_default();
    let meta = object::member(raw, "_meta").map_or("{}", |meta| meta.get());
    let raw = match cursor {
        None => format!(r#"{{"_meta":{meta}}}"#),
        Some(cursor) => format!(r#"{{"_meta":{meta},"cursor":{}}}"#, quoted(cursor)),
    };
    let params = Params { raw: Some(raw.into()), cursor: cursor.map(str::to_owned), ..message.params.clone() };
    Message { kind: Kind::Request { id: fan::part_id() }, params, ..message.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::MEMBER_TIMEOUT;
    use crate::route::Share;

    #[test]
    fn a_part_has_the_entries_under_their_names_and_nothing_else_changed() {
        let mut share = Share { backend: "files".into(), prefix: "fs".into(), ..Share::default() };
        share.rename.insert("read_file".into(), "open".into());
        let names = Names::new("_", MEMBER_TIMEOUT, vec![share]).expect("names");
        let long = "x".repeat(126);
        let body = format!(
            r#"{{"result":{{"tools":[{{"title":"a", "name":"list","x":1.0e2}},{{"name":"read_file"}},{{"name":"open"}},{{"name":"{long}"}}],"ttlMs":9,"nextCursor":""}}}}"#
        );
        let (part, nameless) = Part::read(ListKind::Tools, &names, 0, body.into()).expect("a part");
        let entries = std::str::from_utf8(&part.entries).expect("text");
        assert_eq!(entries, r#"{"title":"a", "name":"fs_list","x":1.0e2},{"name":"fs_open"}"#);
        assert_eq!(nameless, ["open", &long]);
        assert_eq!((part.next.as_deref(), part.ttl_ms, part.hidden), (Some(""), 9, 2));
    }
}
