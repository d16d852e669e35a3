//! One pass over a JSON text that says where each string stands, and changes some of them. Everything else stays.

use std::borrow::Cow;

/// A string of the text, between its quotes, as it is written.
pub(super) enum Part<'t> {
    Key(&'t str),
    Value(&'t str),
}

impl<'t> Part<'t> {
    pub(super) fn is_key(&self) -> bool {
        matches!(self, Part::Key(_))
    }

    /// What it says.
    pub(super) fn text(&self) -> Option<Cow<'t, str>> {
        let (Part::Key(raw) | Part::Value(raw)) = self;
        said(raw)
    }
}

/// What is written between two quotes says. Half a surrogate pair says U+FFFD: nothing hides behind it.
fn said(raw: &str) -> Option<Cow<'_, str>> {
    let Some(first) = raw.find('\\') else { return Some(raw.into()) };
    let (plain, mut rest) = raw.split_at_checked(first)?;
    let mut out = String::with_capacity(raw.len());
    out.push_str(plain);
    while let Some(escape) = rest.strip_prefix('\\') {
        let mut after = escape.chars();
        match after.next()? {
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'u' => {
                let (c, left) = unit(after.as_str())?;
                out.push(c);
                after = left.chars();
            }
            other => out.push(other),
        }
        let left = after.as_str();
        let (plain, next) = left.split_at_checked(left.find('\\').unwrap_or(left.len()))?;
        out.push_str(plain);
        rest = next;
    }
    Some(out.into())
}

/// What the four digits after `\u` mean, with the other half of a pair, and what follows.
fn unit(text: &str) -> Option<(char, &str)> {
    let four = |text: &str| u32::from_str_radix(text.get(..4)?, 16).ok();
    let (high, rest) = (four(text)?, text.get(4..)?);
    if !(0xD800..0xDC00).contains(&high) {
        return Some((char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER), rest));
    }
    let low = rest.strip_prefix("\\u").and_then(|rest| Some((four(rest)?, rest.get(4..)?)));
    match low.filter(|(low, _)| (0xDC00..0xE000).contains(low)) {
        Some((low, rest)) => {
            let code = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
            Some((char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), rest))
        }
        None => Some((char::REPLACEMENT_CHARACTER, rest)),
    }
}

/// An object or array that is not closed yet.
struct Open {
    object: bool,
    /// Its member's name is the last of the path.
    named: bool,
}

/// The text with other strings where `change` has one (as JSON, quotes included); `None` if it has none. `change` gets the
/// names of the members on the way to the string, arrays left out; a key's own name is the last.
///
/// The text must be JSON; of one that is not, only what is in quotes may change.
pub(super) fn rewrite<'t>(
    text: &'t str,
    mut change: impl FnMut(&[Cow<'t, str>], Part<'t>) -> Option<String>,
) -> Option<String> {
    let bytes = text.as_bytes();
    let mut path: Vec<Cow<'t, str>> = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    let mut expects_key = false;
    let mut out: Option<String> = None;
    let mut copied = 0;
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' => {
                expects_key = *byte == b'{';
                open.push(Open { object: expects_key, named: false });
            }
            b'}' | b']' => {
                if open.pop().is_some_and(|closed| closed.named) {
                    path.pop();
                }
                expects_key = false;
            }
            b',' => {
                if let Some(holder) = open.last_mut() {
                    if std::mem::take(&mut holder.named) {
                        path.pop();
                    }
                    expects_key = holder.object;
                }
            }
            b'"' => {
                let end = end_of_string(bytes, at)?;
                let raw = text.get(at..end)?;
                let part = if expects_key { Part::Key(raw) } else { Part::Value(raw) };
                if expects_key {
                    path.push(said(raw)?);
                    if let Some(holder) = open.last_mut() {
                        holder.named = true;
                    }
                    expects_key = false;
                }
                if let Some(new) = change(&path, part) {
                    let out = out.get_or_insert_with(|| String::with_capacity(text.len()));
                    out.push_str(text.get(copied..at - 1)?);
                    out.push_str(&new);
                    copied = end + 1;
                }
                at = end + 1;
            }
            _ => {}
        }
    }
    let mut out = out?;
    out.push_str(text.get(copied..)?);
    Some(out)
}

/// Where the quote is that ends the string that begins here.
fn end_of_string(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let rest = bytes.get(at..)?;
        let next = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        if rest.get(next) == Some(&b'"') {
            return Some(at + next);
        }
        at += next + 2;
    }
}
