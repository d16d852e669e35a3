//! How much of an answer may leave: a cap on the whole, and one on each item, which is cut where that can be told.
//!
//! Cut is text that a model reads, with a mark that says so. What a program reads (structured content, resources,
//! pictures) is whole or does not leave at all: half of it would be something else.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Place;
use crate::mcp::object;
use crate::mcp::object::Edits;
use crate::mcp::quoted;

/// What becomes of an item that is too large.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Oversize {
    /// The whole answer is refused.
    #[default]
    Refuse,
    /// Text is cut, and says so. What cannot be cut is refused.
    Truncate,
}

impl Oversize {
    pub fn as_str(self) -> &'static str {
        match self {
            Oversize::Refuse => "refuse",
            Oversize::Truncate => "truncate",
        }
    }
}

/// An answer that may not leave: larger than this cap.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the answer is over `{cap}` ({bytes_max} bytes)")]
pub struct Excess {
    /// As in the configuration.
    pub cap: &'static str,
    pub bytes_max: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) result_bytes_max: Option<usize>,
    pub(super) item_bytes_max: Option<usize>,
    pub(super) oversize: Oversize,
}

impl Sizes {
    pub(super) fn bound(&self, place: Place) -> bool {
        place == Place::Said && (self.result_bytes_max.is_some() || self.item_bytes_max.is_some())
    }

    /// The answer within the caps, and how many of its items were cut.
    pub(super) fn hold(&self, message: &Bytes) -> Result<(Bytes, u64), Excess> {
        let (message, cut) = match self.item_bytes_max.filter(|max| message.len() > *max) {
            Some(bytes_max) => self.hold_items(message, bytes_max)?,
            None => (message.clone(), 0),
        };
        match self.result_bytes_max.filter(|max| message.len() > *max) {
            Some(bytes_max) => Err(Excess { cap: "result_bytes_max", bytes_max }),
            None => Ok((message, cut)),
        }
    }

    fn hold_items(&self, message: &Bytes, bytes_max: usize) -> Result<(Bytes, u64), Excess> {
        let excess = Excess { cap: "item_bytes_max", bytes_max };
        let Some(result) = std::str::from_utf8(message).ok().and_then(|text| object::member(text, "result")) else {
            return Ok((message.clone(), 0));
        };
        // A task holds the result of its call.
        let inner = object::member(result.get(), "result").or_else(|| {
            let task = object::member(result.get(), "task")?;
            object::member(task.get(), "result")
        });
        let (mut edits, mut cut) = (Edits::of(message), 0);
        for result in inner.into_iter().chain([result]) {
            let whole = ["structuredContent", "completion"];
            if whole.iter().filter_map(|name| object::member(result.get(), name)).any(|raw| raw.get().len() > bytes_max)
            {
                return Err(excess);
            }
            for item in items_of(result) {
                if item.get().len() <= bytes_max {
                    continue;
                }
                let text = Some(item).filter(|_| self.oversize == Oversize::Truncate).and_then(text_of);
                // What the block has besides its text stays, so it must fit by itself.
                let (place, text) = text.ok_or(excess)?;
                let rest = item.get().len() - place.get().len();
                let room = bytes_max.checked_sub(rest).ok_or(excess)?;
                edits.replace(place, shortened(&text, room).ok_or(excess)?);
                cut += 1;
            }
        }
        Ok((edits.finish(), cut))
    }
}

/// Content blocks of tools, what was read of resources, messages of prompts.
fn items_of(result: &RawValue) -> Vec<&RawValue> {
    let list = |name: &str| object::member(result.get(), name).map(|raw| object::items(raw.get())).unwrap_or_default();
    let mut items = list("content");
    items.extend(list("contents"));
    for message in list("messages") {
        items.extend(object::member(message.get(), "content"));
    }
    items
}

/// The text of a block of text, and where it stands. A file's text is no such text.
fn text_of(item: &RawValue) -> Option<(&RawValue, String)> {
    let kind = object::member(item.get(), "type")?;
    if kind.get() != "\"text\"" {
        return None;
    }
    let place = object::member(item.get(), "text")?;
    Some((place, object::text(place)?.into_owned()))
}

/// As much of the text as fits, as JSON, with a mark that says how much that is.
fn shortened(text: &str, room: usize) -> Option<String> {
    let mut keep = room.min(text.len());
    loop {
        while !text.is_char_boundary(keep) {
            keep -= 1;
        }
        let cut = quoted(&format!("{}\n[truncated: {keep} of {} bytes]", text.get(..keep)?, text.len()));
        if cut.len() <= room {
            return Some(cut);
        }
        if keep == 0 {
            return None;
        }
        // Escapes make it longer than it says: closer at least by what is too much, counted at six bytes a character.
        keep -= ((cut.len() - room) / 6).clamp(1, keep);
    }
}
