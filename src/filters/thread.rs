//! `Thread`: what a server says bit by bit. A secret may begin in one log message or progress report and end in the next.
//!
//! A bit that ends in what may be the beginning of a secret is held until the next one is there. How long to wait is for
//! whoever has a clock ([`Thread::holds`], [`Thread::release`]).

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Filters;
use super::Found;
use super::Part;
use super::Place;
use super::hidden;
use super::secrets::Secrets;
use super::secrets::mark;
use super::walk;
use crate::mcp::object;
use crate::mcp::quoted;

/// Held together; more is let go.
const HELD_MAX: usize = 32;
const HELD_BYTES_MAX: usize = 16 * 1024;

/// Of what has left: a secret's first characters may be in it.
const CONTEXT_BYTES: usize = 32;

/// A private key of more lines than this has no end that we wait for.
const KEY_BITS_MAX: usize = 512;

/// One bit: a message, and the text in it.
struct Bit<T> {
    message: Bytes,
    text: String,
    tag: T,
}

/// The bits of one stream of messages. `T` goes with each message.
pub struct Thread<T> {
    filters: Arc<Filters>,
    held: Vec<Bit<T>>,
    /// Whose bits they are: the method, and the logger or the progress token.
    speaker: String,
    /// The end of what the speaker has said before the held bits.
    context: String,
    /// Bits seen since a private key began that has not ended.
    in_key: Option<usize>,
}

impl<T> Thread<T> {
    pub fn new(filters: Arc<Filters>) -> Thread<T> {
        Thread { filters, held: Vec::new(), speaker: String::new(), context: String::new(), in_key: None }
    }

    /// Is something held back?
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// A notification of the stream; gives what may leave now, in order.
    pub fn push(&mut self, message: Bytes, tag: T, found: &mut Found) -> Vec<(Bytes, T)> {
        let Some((speaker, text)) = self.filters.secrets.as_ref().and_then(|_| bit_of(&message)) else {
            let mut out = self.release(found);
            let message = self.filters.message(Place::Said, &message, found);
            out.push((message, tag));
            return out;
        };
        let mut out = Vec::new();
        if speaker != self.speaker {
            out = self.release(found);
            self.speaker = speaker;
            self.context.clear();
            self.in_key = None;
        }
        let text = hidden::take(self.filters.said, &text).map_or(text, |(bare, _)| bare);
        self.held.push(Bit { message, text, tag });
        let bytes: usize = self.held.iter().map(|bit| bit.text.len()).sum();
        let joined = self.joined();
        let secrets = self.filters.secrets.as_ref();
        let unfinished = self.in_key.is_none() && secrets.is_some_and(|secrets| secrets.is_unfinished(tail(&joined)));
        if !unfinished || bytes > HELD_BYTES_MAX || self.held.len() >= HELD_MAX {
            out.extend(self.release(found));
        }
        out
    }

    /// Lets go what is held.
    pub fn release(&mut self, found: &mut Found) -> Vec<(Bytes, T)> {
        let bits = std::mem::take(&mut self.held);
        let filters = self.filters.clone();
        let (false, Some(secrets)) = (bits.is_empty(), filters.secrets.as_ref()) else { return Vec::new() };
        let mut joined = self.context.clone();
        let mut places: Vec<Range<usize>> = Vec::with_capacity(bits.len());
        for bit in &bits {
            places.push(joined.len()..joined.len() + bit.text.len());
            joined.push_str(&bit.text);
        }
        let finds = self.finds(secrets, &joined);
        let mut out = Vec::with_capacity(bits.len());
        for (bit, place) in bits.into_iter().zip(places) {
            let text = without(secrets, &joined, &place, &finds, self.context.len(), found);
            let message = if text == bit.text { bit.message } else { said_anew(&bit.message, &text) };
            out.push((filters.message(Place::Said, &message, found), bit.tag));
        }
        let from = (joined.len().saturating_sub(CONTEXT_BYTES)..=joined.len()).find(|at| joined.is_char_boundary(*at));
        self.context = from.and_then(|from| joined.get(from..)).unwrap_or_default().to_owned();
        out
    }

    fn joined(&self) -> String {
        self.held.iter().fold(self.context.clone(), |joined, bit| joined + &bit.text)
    }

    /// What is found in the bits together, and whether a private key goes on after them.
    fn finds(&mut self, secrets: &Secrets, joined: &str) -> Vec<(Range<usize>, usize)> {
        let mut finds = secrets.find(joined, true);
        if let Some(seen) = self.in_key.take() {
            let end = end_of_key(joined);
            let range = 0..end.unwrap_or(joined.len());
            let rule = (0..).take_while(|rule| secrets.name(*rule).is_some()).find(|rule| secrets.is_key_rule(*rule));
            finds.retain(|(find, _)| find.start >= range.end);
            finds.insert(0, (range, rule.unwrap_or_default()));
            self.in_key = (end.is_none() && seen < KEY_BITS_MAX).then_some(seen + 1);
        }
        if let Some((range, rule)) = finds.last()
            && self.in_key.is_none()
            && secrets.is_key_rule(*rule)
            && range.end == joined.len()
            && joined.get(range.clone()).and_then(end_of_key).is_none()
        {
            self.in_key = Some(0);
        }
        finds
    }
}

/// The method and speaker of a notification that is a bit of text, and the text.
fn bit_of(message: &[u8]) -> Option<(String, String)> {
    #[derive(Deserialize)]
    struct Wire<'a> {
        method: String,
        #[serde(borrow)]
        params: &'a RawValue,
    }
    let wire: Wire<'_> = serde_json::from_slice(message).ok()?;
    let (text, speaker) = match wire.method.as_str() {
        "notifications/message" => ("data", "logger"),
        "notifications/progress" => ("message", "progressToken"),
        _ => return None,
    };
    let text = object::text(object::member(wire.params.get(), text)?)?.into_owned();
    let speaker = object::member(wire.params.get(), speaker).map(RawValue::get).unwrap_or_default();
    Some((format!("{} {speaker}", wire.method), text))
}

/// The same message with another text.
fn said_anew(message: &Bytes, text: &str) -> Bytes {
    let Ok(whole) = std::str::from_utf8(message) else { return message.clone() };
    let changed = walk::rewrite(whole, |path, part| match (path, part) {
        ([params, name], Part::Value(_)) if params == "params" && (name == "data" || name == "message") => {
            Some(quoted(text))
        }
        _ => None,
    });
    changed.map_or_else(|| message.clone(), Bytes::from)
}

/// One bit of the joined text with marks where secrets begin. What goes on from an earlier bit is left out; where that
/// one has left already, the mark stands here.
fn without(
    secrets: &Secrets,
    joined: &str,
    place: &Range<usize>,
    finds: &[(Range<usize>, usize)],
    context: usize,
    found: &mut Found,
) -> String {
    let mut out = String::new();
    let mut copied = place.start;
    for (range, rule) in finds.iter().filter(|(range, _)| range.start < place.end && range.end > place.start) {
        out.push_str(joined.get(copied..range.start.max(copied)).unwrap_or_default());
        let begins = range.start >= place.start || (range.start < context && place.start == context);
        if let (true, Some(name)) = (begins, secrets.name(*rule)) {
            out.push_str(&mark(name));
            found.add(name, 1);
        }
        copied = range.end.min(place.end);
    }
    out.push_str(joined.get(copied..place.end).unwrap_or_default());
    out
}

/// Where the private key ends, if it does.
fn end_of_key(text: &str) -> Option<usize> {
    let from = text.find("-----END ")?;
    let rest = text.get(from..)?;
    let end = rest.find("PRIVATE KEY")?;
    let close = rest.get(end..)?.find("-----")?;
    Some(from + end + close + 5)
}

/// The end of a text is where a secret goes on.
fn tail(text: &str) -> &str {
    const TAIL_BYTES: usize = 8 * 1024;
    let from = (text.len().saturating_sub(TAIL_BYTES)..=text.len()).find(|at| text.is_char_boundary(*at));
    from.and_then(|from| text.get(from..)).unwrap_or(text)
}
