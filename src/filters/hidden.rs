//! Text that a model reads and a person does not see: invisible, reordering and terminal control characters.
//!
//! What scripts and emoji need stays: joiners between letters of other scripts, one variation selector behind a
//! character that has variants.

use schemars::JsonSchema;
use serde::Deserialize;

/// What becomes of it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Hidden {
    /// It passes.
    Allow,
    /// A visible mark stands in its place: `[hidden:tags 12]`.
    Mark,
    /// It is taken out.
    #[default]
    Strip,
}

impl Hidden {
    pub fn as_str(self) -> &'static str {
        match self {
            Hidden::Allow => "allow",
            Hidden::Mark => "mark",
            Hidden::Strip => "strip",
        }
    }
}

/// What a hidden character is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Class {
    Bidi,
    Control,
    Tags,
    Variation,
    ZeroWidth,
}

impl Class {
    fn as_str(self) -> &'static str {
        match self {
            Class::Bidi => "bidi",
            Class::Control => "control",
            Class::Tags => "tags",
            Class::Variation => "variation",
            Class::ZeroWidth => "zero-width",
        }
    }
}

/// Is it worth a closer look? Plain ASCII without escapes is not, and is found to be so fast.
pub(super) fn may_be_in(message: &[u8]) -> bool {
    let escapes = || message.split(|byte| *byte == b'\\').skip(1);
    !message.is_ascii()
        || message.contains(&0x7F)
        || (message.contains(&b'\\') && escapes().any(|rest| matches!(rest.first(), Some(b'b' | b'f' | b'u'))))
}

/// The text without hidden characters, and how many there were; `None` if there are none, or all may pass.
pub(super) fn take(how: Hidden, text: &str) -> Option<(String, u64)> {
    if how == Hidden::Allow || (text.is_ascii() && !text.bytes().any(is_ascii_control)) {
        return None;
    }
    let mut out: Option<String> = None;
    let mut total = 0;
    let mut run: Option<(Class, u64)> = None;
    let mut at = 0;
    // The last character that was seen, hidden or not, and whether it was hidden.
    let mut before: Option<(char, bool)> = None;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let Some(c) = rest.chars().next() else { break };
        let (class, length) = match escape(rest) {
            Some(length) => (Some(Class::Control), length),
            None => {
                let after = rest.chars().nth(1);
                (class(c, before, after), c.len_utf8())
            }
        };
        match class {
            Some(class) => {
                total += 1;
                let kept = out.get_or_insert_with(|| text.get(..at).unwrap_or_default().to_owned());
                run = match run {
                    Some((running, count)) if running == class => Some((class, count + 1)),
                    other => {
                        end_run(how, other, kept);
                        Some((class, 1))
                    }
                };
            }
            None => {
                if let Some(kept) = &mut out {
                    end_run(how, run.take(), kept);
                    kept.push(c);
                }
            }
        }
        before = Some((c, class.is_some()));
        at += length;
    }
    let mut out = out?;
    end_run(how, run, &mut out);
    Some((out, total))
}

fn end_run(how: Hidden, run: Option<(Class, u64)>, out: &mut String) {
    if let (Hidden::Mark, Some((class, count))) = (how, run) {
        out.push_str("[hidden:");
        out.push_str(class.as_str());
        if count > 1 {
            out.push(' ');
            out.push_str(&count.to_string());
        }
        out.push(']');
    }
}

/// Line breaks and tabs are seen.
fn is_ascii_control(byte: u8) -> bool {
    byte.is_ascii_control() && !matches!(byte, b'\t' | b'\n' | b'\r')
}

/// The length of the terminal sequence that the text begins with: `ESC [ … m`, `ESC ] … BEL`, `ESC c`.
fn escape(text: &str) -> Option<usize> {
    const LONGEST: usize = 4096;
    let bytes = text.as_bytes();
    let (kind, from) = match bytes.first()? {
        0x1B => (bytes.get(1).copied(), 2),
        // The same in one character: CSI and OSC.
        0xC2 if bytes.get(1) == Some(&0x9B) => (Some(b'['), 2),
        0xC2 if bytes.get(1) == Some(&0x9D) => (Some(b']'), 2),
        _ => return None,
    };
    let rest = bytes.get(from..)?;
    let rest = rest.get(..rest.len().min(LONGEST))?;
    let length = match kind {
        Some(b'[') => {
            let parameters = rest.iter().take_while(|byte| matches!(byte, 0x20..=0x3F)).count();
            let ended = rest.get(parameters).is_some_and(|byte| matches!(byte, 0x40..=0x7E));
            from + parameters + usize::from(ended)
        }
        Some(b']' | b'P' | b'X' | b'^' | b'_') => {
            let bell = rest.iter().position(|byte| *byte == 0x07).map(|at| at + 1);
            let end = rest.windows(2).position(|pair| pair == b"\x1b\\").map(|at| at + 2);
            match bell.into_iter().chain(end).min() {
                Some(length) => from + length,
                None => from,
            }
        }
        Some(0x20..=0x7E) => 2,
        _ => 1,
    };
    text.is_char_boundary(length).then_some(length)
}

/// Which hidden character it is, between its neighbours; `None` if it is none.
fn class(c: char, before: Option<(char, bool)>, after: Option<char>) -> Option<Class> {
    let beside = |c: Option<char>| c.is_some_and(|c| !c.is_ascii() && !is_invisible(c));
    let seen_before = before.filter(|(_, hidden)| !hidden).map(|(c, _)| c);
    Some(match c {
        '\u{0}'..='\u{8}' | '\u{B}' | '\u{C}' | '\u{E}'..='\u{1F}' | '\u{7F}'..='\u{9F}' => Class::Control,
        '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{206F}' => Class::Bidi,
        // Joiners: for letters that join and for emoji that are made of several, which both are no ASCII. An emoji may
        // have its selector before the joiner.
        '\u{200C}' | '\u{200D}'
            if seen_before.is_some_and(|c| !c.is_ascii() && (!is_invisible(c) || c == '\u{FE0F}'))
                && beside(after) =>
        {
            return None;
        }
        '\u{AD}'
        | '\u{34F}'
        | '\u{115F}'
        | '\u{1160}'
        | '\u{17B4}'
        | '\u{17B5}'
        | '\u{180B}'..='\u{180F}'
        | '\u{200B}'..='\u{200D}'
        | '\u{2060}'..='\u{2065}'
        | '\u{3164}'
        | '\u{FEFF}'
        | '\u{FFA0}'
        | '\u{FFF0}'..='\u{FFFB}'
        | '\u{1BCA0}'..='\u{1BCA3}'
        | '\u{1D173}'..='\u{1D17A}' => Class::ZeroWidth,
        '\u{E0000}'..='\u{E007F}' => Class::Tags,
        // Text or emoji: digits have both too.
        '\u{FE0E}' | '\u{FE0F}'
            if seen_before.is_some_and(|c| {
                (!c.is_ascii() && !is_invisible(c)) || matches!(c, '0'..='9' | '#' | '*')
            }) =>
        {
            return None;
        }
        // Forms of ideographs and of mathematical signs.
        '\u{FE00}'..='\u{FE0D}' | '\u{E0100}'..='\u{E01EF}'
            if seen_before.is_some_and(|c| matches!(c, '\u{1820}'..='\u{18AA}' | '\u{2190}'..='\u{2BFF}' | '\u{3000}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}')) =>
        {
            return None;
        }
        '\u{FE00}'..='\u{FE0F}' | '\u{E0100}'..='\u{E01EF}' => Class::Variation,
        '\u{E0080}'..='\u{E0FFF}' => Class::Tags,
        _ => return None,
    })
}

/// Has it no form of its own?
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{80}'..='\u{9F}'
            | '\u{AD}'
            | '\u{34F}'
            | '\u{61C}'
            | '\u{115F}'
            | '\u{1160}'
            | '\u{17B4}'
            | '\u{17B5}'
            | '\u{180B}'..='\u{180F}'
            | '\u{200B}'..='\u{200F}'
            | '\u{202A}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}'
            | '\u{3164}'
            | '\u{FE00}'..='\u{FE0F}'
            | '\u{FEFF}'
            | '\u{FFA0}'
            | '\u{FFF0}'..='\u{FFFB}'
            | '\u{E0000}'..='\u{E0FFF}'
    )
}
