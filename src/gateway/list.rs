//! Lists answer from the same judgement as calls: what may not be called is not shown.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use bytes::Bytes;
use moka::sync::Cache;

use super::apply::Desk;
use super::federation::Parts;
use super::tasks::Remembered;
use crate::catalog::Decl;
use crate::catalog::Effect;
use crate::catalog::Kind;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::Message;
use crate::mcp::list;
use crate::mcp::list::ListKind;
use crate::mcp::list::Page;
use crate::principal::Principal;

/// Filtered pages kept, in bytes of input and output together.
const CACHE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Public pages kept, unfiltered.
const KEPT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A bigger page is not worth everybody else's.
const KEPT_PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A change that nobody announces is seen after this, whatever the server said.
const KEPT_MAX: Duration = Duration::from_secs(60);

/// A page that was filtered once, for one authority.
struct Filtered {
    input: Bytes,
    /// Where the id stands in `input`, and in `output`.
    input_id: (usize, usize),
    output: Bytes,
    output_id: (usize, usize),
    /// Where `ttlMs` stands in `output`, counted from its end: ids of any length may come before it.
    ttl: Option<(usize, usize)>,
    hidden: usize,
    /// How long the unfiltered page may be served to others; nothing where it is private.
    public_for: Duration,
}

/// A list that is asked for: which, from where on, and what was known to have changed when it was asked for.
#[derive(Clone, Debug)]
pub(super) struct Listing {
    pub(super) kind: ListKind,
    /// Whether the answer may be kept for others, and under which key.
    kept_as: Option<KeptAs>,
    /// Was it said just now? What was said before may be older than what the catalog has learned since.
    fresh: bool,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct KeptAs {
    realm: u64,
    backend: Arc<str>,
    kind: ListKind,
    cursor: Option<String>,
    /// How often the list was said to have changed: what was asked for before that is not served after it.
    changes: u64,
}

impl Listing {
    /// A list that was said some time ago: it undoes nothing that was learned since, and is not kept anew.
    pub(super) fn said_before(kind: ListKind) -> Listing {
        Listing { kind, kept_as: None, fresh: false }
    }

    /// It is for the caller alone who asked for it.
    pub(super) fn keep_nothing(&mut self) {
        self.kept_as = None;
    }
}

/// An unfiltered page that the upstream calls public: the same for every caller.
struct Kept {
    body: Bytes,
    /// Where the id stands in it.
    id: (usize, usize),
    until: Instant,
}

/// Another one for each house of the process.
fn realm() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// The pages filtered lately. A server sends the same list again and again; only the id differs.
pub struct Lists {
    /// Of which house: houses of tenants share caches and no entries.
    realm: u64,
    cache: Cache<(u64, u128, Arc<str>, ListKind), Arc<Filtered>>,
    kept: Cache<KeptAs, Arc<Kept>>,
    changes: Mutex<HashMap<(Arc<str>, ListKind), u64>>,
    /// What merged answers are made of.
    pub(super) parts: Parts,
    /// Which tools the tasks of legacy servers are of.
    pub(super) tasks: Remembered,
}

impl Default for Lists {
    fn default() -> Self {
        Lists::new()
    }
}

impl Lists {
    pub fn new() -> Lists {
        let weigher =
            |_: &_, page: &Arc<Filtered>| u32::try_from(page.input.len() + page.output.len()).unwrap_or(u32::MAX);
        let weight = |_: &_, kept: &Arc<Kept>| u32::try_from(kept.body.len()).unwrap_or(u32::MAX);
        Lists {
            realm: realm(),
            cache: Cache::builder().max_capacity(CACHE_BYTES_MAX).weigher(weigher).build(),
            kept: Cache::builder().max_capacity(KEPT_BYTES_MAX).weigher(weight).time_to_live(KEPT_MAX).build(),
            changes: Mutex::default(),
            parts: Parts::default(),
            tasks: Remembered::default(),
        }
    }

    /// Those of a new configuration: nothing that an old policy said, but the facts.
    pub fn after(before: Option<&Lists>) -> Lists {
        let tasks = before.map(|before| before.tasks.clone()).unwrap_or_default();
        Lists { tasks, ..Lists::new() }
    }

    /// Those of another house, which share nothing with these but the memory: it is bounded for all of them together.
    pub fn beside(&self) -> Lists {
        let realm = realm();
        Lists {
            realm,
            cache: self.cache.clone(),
            kept: self.kept.clone(),
            changes: Mutex::default(),
            parts: self.parts.beside(realm),
            tasks: self.tasks.clone(),
        }
    }

    /// What a message that asks for a list asks for. Only the modern era says who may see an answer, and for how long.
    pub(super) fn listing(&self, backend: &Arc<str>, kind: ListKind, message: &Message) -> Listing {
        let kept_as = (message.era == Era::Modern).then(|| KeptAs {
            realm: self.realm,
            backend: backend.clone(),
            kind,
            cursor: message.params.cursor.clone(),
            changes: self.changes(backend, kind),
        });
        Listing { kind, kept_as, fresh: true }
    }

    /// The answer that the upstream gave to somebody a moment ago, if it is the same for everybody. It is unfiltered.
    pub(super) fn known(&self, listing: &Listing, id: &Id) -> Option<Bytes> {
        let kept = self.kept.get(listing.kept_as.as_ref()?).filter(|kept| Instant::now() < kept.until)?;
        let (start, end) = kept.id;
        with_id(&kept.body, start..end, id)
    }

    /// Keeps a public page as long as its server says, within bounds. A caller may be served a page that is as old
    /// again as its `ttlMs` says, because the bytes do not change while it is kept.
    fn keep(&self, listing: &Listing, public_for: Duration, body: &Bytes, id: &Id) {
        let small = body.len() <= KEPT_PAGE_BYTES_MAX && !public_for.is_zero();
        let Some(key) = listing.kept_as.clone().filter(|_| small) else { return };
        if let (Some(span), Some(until)) = (id_span(body, id), Instant::now().checked_add(public_for)) {
            self.kept.insert(key, Arc::new(Kept { body: body.clone(), id: span, until }));
        }
    }

    /// The list is not what it was: what is kept of it is not served any more.
    pub(super) fn changed(&self, backend: &Arc<str>, kind: ListKind) {
        *self.lock_changes().entry((backend.clone(), kind)).or_default() += 1;
    }

    /// A backend's notification went by.
    pub(super) fn announced(&self, backend: &Arc<str>, method: &str) {
        let kinds: &[ListKind] = match method {
            "notifications/tools/list_changed" => &[ListKind::Tools],
            "notifications/prompts/list_changed" => &[ListKind::Prompts],
            "notifications/resources/list_changed" => &[ListKind::Resources, ListKind::Templates],
            _ => &[],
        };
        kinds.iter().for_each(|kind| self.changed(backend, *kind));
    }

    fn changes(&self, backend: &Arc<str>, kind: ListKind) -> u64 {
        self.lock_changes().get(&(backend.clone(), kind)).copied().unwrap_or_default()
    }

    fn lock_changes(&self) -> std::sync::MutexGuard<'_, HashMap<(Arc<str>, ListKind), u64>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer with only what this caller may use, and how many entries were hidden.
    ///
    /// # Errors
    /// What breaks the protocol.
    pub(super) fn filter(
        &self,
        desk: &Desk,
        listing: &Listing,
        answer: &Bytes,
        id: &Id,
    ) -> Result<(Bytes, usize), &'static str> {
        let kind = listing.kind;
        let authority = desk.principal.authority() ^ desk.context.mode as u128;
        let key = (self.realm, authority, desk.backend.name().clone(), kind);
        if let Some(known) = self.cache.get(&key)
            && let Some(output) = known.answer_for(answer, id)
        {
            self.keep(listing, known.public_for, answer, id);
            return Ok((within_life(output, known.ttl, &desk.principal), known.hidden));
        }
        let page = Page::parse(kind, answer)?;
        // Where nothing is known yet there is nothing that an older word could undo.
        if kind == ListKind::Tools && (listing.fresh || desk.backend.catalog().tools.is_empty()) {
            desk.backend.learn(&page.entries);
        }
        let public_for = if page.public { Duration::from_millis(page.ttl_ms).min(KEPT_MAX) } else { Duration::ZERO };
        self.keep(listing, public_for, answer, id);
        let decls = declared(desk, kind, &page);
        let judged = desk.house.policy.list(&desk.principal, &decls, &desk.context);
        desk.shadows.note(&judged.shadows);
        let catalog = desk.backend.catalog();
        // Also what was said before: a page may be older than the approval, or than its withdrawal.
        let offered = |entry: &list::Entry| kind != ListKind::Tools || catalog.offers(entry);
        let keep: Vec<bool> = page
            .entries
            .iter()
            .zip(&judged.listed)
            .map(|(entry, listed)| entry.valid && *listed && offered(entry))
            .collect();
        let hidden = keep.iter().filter(|keep| !**keep).count();
        let output = page.keep(&keep);
        let ttl = ttl_place(&output);
        if judged.cacheable
            && let (Some(input_id), Some(output_id)) = (id_span(answer, id), id_span(&output, id))
        {
            let (input, kept) = (answer.clone(), output.clone());
            let filtered = Filtered { input, input_id, output: kept, output_id, ttl, hidden, public_for };
            self.cache.insert(key, Arc::new(filtered));
        }
        Ok((within_life(output, ttl, &desk.principal), hidden))
    }
}

impl Filtered {
    /// The remembered output with another id, if the new input differs from the remembered one in nothing but its id.
    fn answer_for(&self, answer: &Bytes, asked: &Id) -> Option<Bytes> {
        let id = asked.as_json().as_bytes();
        let (start, end) = self.input_id;
        let (head, tail) = (self.input.get(..start)?, self.input.get(end..)?);
        let rest = answer.strip_prefix(head)?.strip_prefix(id)?;
        if rest != tail {
            return None;
        }
        let (start, end) = self.output_id;
        with_id(&self.output, start..end, asked)
    }
}

/// The same answer to another request. No copy where the ids are the same.
fn with_id(answer: &Bytes, at: Range<usize>, id: &Id) -> Option<Bytes> {
    let id = id.as_json().as_bytes();
    if answer.get(at.clone())? == id {
        return Some(answer.clone());
    }
    let mut out = Vec::with_capacity(answer.len() + id.len());
    out.extend_from_slice(answer.get(..at.start)?);
    out.extend_from_slice(id);
    out.extend_from_slice(answer.get(at.end..)?);
    Some(out.into())
}

/// Where `result.ttlMs` stands, counted from the end.
pub(super) fn ttl_place(answer: &[u8]) -> Option<(usize, usize)> {
    let (start, end) = list::ttl_span(answer).map(|span| (span.start, span.end))?;
    Some((answer.len().checked_sub(start)?, answer.len().checked_sub(end)?))
}

/// The same list, fresh no longer than the caller's token lives. SPEC: 2026-07-28 caching: a private answer is good in one
/// authorization context only. Whole seconds, so that equal lists stay equal bytes for a moment.
pub(super) fn within_life(answer: Bytes, ttl: Option<(usize, usize)>, principal: &Principal) -> Bytes {
    let (Some((start, end)), Some(expires)) = (ttl, principal.expires_at()) else { return answer };
    let (start, end) = (answer.len().saturating_sub(start), answer.len().saturating_sub(end));
    let left = expires.duration_since(SystemTime::now()).unwrap_or_default().as_secs().saturating_mul(1000);
    let said = answer.get(start..end).and_then(|said| std::str::from_utf8(said).ok()?.parse::<u64>().ok());
    // What is no number of milliseconds is no time to keep it.
    let given = said.unwrap_or_default().min(left);
    if said == Some(given) {
        return answer;
    }
    let text = given.to_string();
    let head = answer.get(..start).unwrap_or_default();
    [head, text.as_bytes(), answer.get(end..).unwrap_or_default()].concat().into()
}

/// Where the id's text stands, if the answer begins with an envelope whose id comes before anything long.
fn id_span(answer: &[u8], id: &Id) -> Option<(usize, usize)> {
    const NEAR: usize = 512;
    let near = answer.get(..answer.len().min(NEAR))?;
    let text = id.as_json().as_bytes();
    let at = near.windows(4).position(|window| window == b"\"id\"")?;
    // Only the envelope's own `id` counts: nothing that could hold another one may stand before it.
    if near.get(1..at)?.contains(&b'{') {
        return None;
    }
    let after = at + 4 + near.get(at + 4..)?.iter().position(|byte| !matches!(byte, b':' | b' '))?;
    answer.get(after..)?.starts_with(text).then_some((after, after + text.len()))
}

/// The declarations of a page's entries: tools from the catalog that just learned them, the rest are reads.
fn declared(desk: &Desk, kind: ListKind, page: &Page) -> Vec<Arc<Decl>> {
    let backend = desk.backend.name();
    let catalog = desk.backend.catalog();
    let plain = |kind: Kind, name: &str| Arc::new(desk.backend.plain(kind, name));
    let unknown = |name: &str| Arc::new(Decl::plain(Kind::Tool, backend.clone(), name, Effect::Destroy));
    let one = |name: &str| match kind {
        // Not learned means not valid; it is hidden whatever policy says.
        ListKind::Tools => catalog.tools.get(name).cloned().unwrap_or_else(|| unknown(name)),
        ListKind::Prompts => plain(Kind::Prompt, name),
        ListKind::Resources | ListKind::Templates => plain(Kind::Resource, name),
    };
    page.entries.iter().map(|entry| one(&entry.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::Claims;

    fn filtered(input: &str, output: &str, id: &str) -> Filtered {
        let id = Id::from_json(id).expect("id");
        let (input, output) = (Bytes::copy_from_slice(input.as_bytes()), Bytes::copy_from_slice(output.as_bytes()));
        let (input_id, output_id) = (id_span(&input, &id).expect("id"), id_span(&output, &id).expect("id"));
        Filtered { input, input_id, output, output_id, ttl: None, hidden: 1, public_for: Duration::ZERO }
    }

    #[test]
    fn the_same_list_with_another_id_is_known() {
        let known =
            filtered(r#"{"jsonrpc":"2.0","id":1,"result":[1,2]}"#, r#"{"jsonrpc":"2.0","id":1,"result":[1]}"#, "1");
        let id = Id::from_json("\"x\"").expect("id");
        let answer = known.answer_for(&Bytes::from_static(br#"{"jsonrpc":"2.0","id":"x","result":[1,2]}"#), &id);
        assert_eq!(answer.as_deref(), Some(&br#"{"jsonrpc":"2.0","id":"x","result":[1]}"#[..]));
    }

    #[test]
    fn a_list_that_differs_in_one_byte_is_not_known() {
        let known =
            filtered(r#"{"jsonrpc":"2.0","id":1,"result":[1,2]}"#, r#"{"jsonrpc":"2.0","id":1,"result":[1]}"#, "1");
        let id = Id::from_json("1").expect("id");
        for other in [
            r#"{"jsonrpc":"2.0","id":1,"result":[1,3]}"#,
            r#"{"jsonrpc":"2.0","id":11,"result":[1,2]}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":[1,2]} "#,
        ] {
            assert_eq!(known.answer_for(&Bytes::copy_from_slice(other.as_bytes()), &id), None, "{other}");
        }
    }

    #[test]
    fn a_list_is_fresh_no_longer_than_the_callers_token_lives() {
        let caller = |lives: Option<u64>| {
            let expires_at = lives.map(|seconds| SystemTime::now() + Duration::from_secs(seconds));
            Principal::verified(Claims { expires_at, ..Claims::default() })
        };
        let given = |said: &str, lives: Option<u64>| {
            let text = format!(
                r#"{{"id":"n-1","result":{{"ttlMs": {said},"tools":[{{"ttlMs":1}}],"cacheScope":"private"}}}}"#
            );
            let answer = Bytes::from(text);
            let out = within_life(answer.clone(), ttl_place(&answer), &caller(lives));
            let value: serde_json::Value = serde_json::from_slice(&out).expect("json");
            assert_eq!(value["result"]["tools"][0]["ttlMs"], 1, "an entry is not the list");
            value["result"]["ttlMs"].as_u64().expect("a number")
        };
        assert_eq!(given("3600000", None), 3_600_000, "without an end nothing is cut");
        assert_eq!(given("5000", Some(60)), 5_000);
        assert!((55_000..=60_000).contains(&given("3600000", Some(60))));
        assert_eq!(given("3600000", Some(0)), 0);
        assert_eq!(given("1e9", Some(60)), 0, "what is no number of milliseconds");
    }

    #[test]
    fn an_id_inside_the_result_is_not_the_envelopes() {
        let id = Id::from_json("1").expect("id");
        assert_eq!(id_span(br#"{"result":{"id":1},"id":1}"#, &id), None);
        assert_eq!(id_span(br#"{"id":1,"result":{"id":1}}"#, &id), Some((6, 7)));
    }
}
