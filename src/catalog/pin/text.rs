//! Text that people review: YAML in a stable order, JSON in a stable shape, and nothing hidden in either.

use std::fmt::Write as _;

use serde_json::Value;

/// Does a reader of a terminal or a review page see it as what it is?
fn is_seen(c: char) -> bool {
    !(c.is_control()
        || matches!(c,
            '\u{a0}' | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{2000}'..='\u{200f}' | '\u{2028}'..='\u{202f}' | '\u{205f}'..='\u{206f}'
            | '\u{2800}' | '\u{3000}' | '\u{3164}' | '\u{e000}'..='\u{f8ff}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{fffe}'..='\u{ffff}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{10ffff}'))
}

/// The text with what hides, turns or moves other text spelled out: `a\u{200b}b`.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_seen(c) {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
    }
    out
}

/// A YAML scalar in double quotes.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        // INVARIANT: writing to a string does not fail.
        let _ = match c {
            '"' => out.write_str("\\\""),
            '\\' => out.write_str("\\\\"),
            '\n' => out.write_str("\\n"),
            '\t' => out.write_str("\\t"),
            '\r' => out.write_str("\\r"),
            c if is_seen(c) => out.write_char(c),
            c if u32::from(c) <= 0xff => write!(out, "\\x{:02x}", u32::from(c)),
            c if u32::from(c) <= 0xffff => write!(out, "\\u{:04x}", u32::from(c)),
            c => write!(out, "\\U{:08x}", u32::from(c)),
        };
    }
    out.push('"');
    out
}

/// A YAML key: bare where it cannot be taken for anything else.
pub(super) fn key(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    let word = matches!(
        name.to_ascii_lowercase().as_str(),
        "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    if plain && !word { name.to_owned() } else { quoted(name) }
}

/// A YAML value: lines as a literal block where every character of it is seen, else in double quotes on one line.
pub(super) fn scalar(text: &str, indent: usize) -> String {
    let body = text.strip_suffix('\n').unwrap_or(text);
    let fit = body.contains('\n')
        && !body.ends_with('\n')
        && !body.starts_with([' ', '\n'])
        && body.split('\n').all(|line| !line.ends_with(' ') && line.chars().all(is_seen));
    if !fit {
        return quoted(text);
    }
    let header = if body.len() == text.len() { "|-" } else { "|" };
    block(header, body, indent)
}

/// A JSON value as a literal block.
pub(super) fn json_block(value: &Value, indent: usize) -> String {
    block("|", &json(value), indent)
}

fn block(header: &str, body: &str, indent: usize) -> String {
    let mut out = header.to_owned();
    for line in body.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            out.extend(std::iter::repeat_n(' ', indent));
            out.push_str(line);
        }
    }
    out
}

/// JSON over lines, members by name, with what is not seen escaped: equal values give equal text.
pub fn json(value: &Value) -> String {
    let mut out = String::new();
    json_into(value, 0, &mut out);
    out
}

fn json_into(value: &Value, depth: usize, out: &mut String) {
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', depth * 2));
    };
    match value {
        Value::Object(members) if !members.is_empty() => {
            let mut sorted: Vec<(&String, &Value)> = members.iter().collect();
            sorted.sort_by_key(|(name, _)| *name);
            out.push('{');
            for (index, (name, value)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                line(out, depth + 1);
                json_string(name, out);
                out.push_str(": ");
                json_into(value, depth + 1, out);
            }
            line(out, depth);
            out.push('}');
        }
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                line(out, depth + 1);
                json_into(item, depth + 1, out);
            }
            line(out, depth);
            out.push(']');
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                json_into(item, depth, out);
            }
            out.push(']');
        }
        Value::String(text) => json_string(text, out),
        other => out.push_str(&other.to_string()),
    }
}

fn json_string(text: &str, out: &mut String) {
    for c in Value::from(text).to_string().chars() {
        if is_seen(c) {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // INVARIANT: writing to a string does not fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hides_is_spelled_out() {
        assert_eq!(visible("a\u{200b}b\u{202e}c\u{e0041}\u{7f}\n"), "a\\u{200b}b\\u{202e}c\\u{e0041}\\u{7f}\\n");
        assert_eq!(visible("naïve 漢字 🙂"), "naïve 漢字 🙂");
        assert_eq!(quoted("a\u{85}\u{200b}\u{e0041}\""), "\"a\\x85\\u200b\\U000e0041\\\"\"");
        assert_eq!(json(&Value::from("\u{200b}\u{e0041}é")), "\"\\u200b\\udb40\\udc41é\"");
    }
}
