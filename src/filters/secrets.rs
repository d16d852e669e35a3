//! `Secrets`: finds what must not leave in a text, and writes marks in its place.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::OnceLock;

use aho_corasick::AhoCorasick;
use aho_corasick::AhoCorasickKind;
use regex::Regex;
use regex::RegexBuilder;

use super::Found;
use super::Kind;

/// Of one compiled pattern of the operator's.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Shorter values of members are not worth the mark.
const MEMBER_BYTES_MIN: usize = 4;

const CARD_DIGITS_MIN: usize = 13;
const CARD_DIGITS_MAX: usize = 19;

/// A pattern that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("pattern `{name}` matches the empty text")]
    Empty { name: String },
    #[error("pattern `{name}`: {what}")]
    Malformed { name: String, what: String },
    #[error("there are {count} patterns; at most {max}")]
    TooMany { count: usize, max: usize },
    #[error("the name `{name}` is taken or is not 1 to {max} of a-z, 0-9, `_` and `-`")]
    Name { name: String, max: usize },
}

#[derive(Debug)]
struct Rule {
    name: Arc<str>,
    kind: Option<Kind>,
    regex: Regex,
    beginning: Option<Regex>,
}

#[derive(Debug)]
pub(super) struct Secrets {
    rules: Vec<Rule>,
    /// The literals of the rules that have some, and escapes that could hide one.
    literals: Option<AhoCorasick>,
    /// By literal: the rule it belongs to; `None` for an escape.
    owners: Vec<Option<usize>>,
    /// Rules that no literal speaks for.
    always: bool,
    card: bool,
}

impl Secrets {
    pub(super) fn new(kinds: &[Kind], patterns: &BTreeMap<String, String>) -> Result<Secrets, Error> {
        if patterns.len() > super::PATTERNS_MAX {
            return Err(Error::TooMany { count: patterns.len(), max: super::PATTERNS_MAX });
        }
        let mut rules = Vec::new();
        let (mut literals, mut owners) = (Vec::new(), Vec::new());
        for kind in Kind::ALL.into_iter().filter(|kind| kinds.contains(kind)) {
            for literal in kind.literals() {
                literals.push((*literal).to_owned());
                owners.push(Some(rules.len()));
            }
            let beginning = Some(compile(kind.as_str(), kind.beginning())?);
            let regex = compile(kind.as_str(), kind.pattern())?;
            rules.push(Rule { name: kind.as_str().into(), kind: Some(kind), regex, beginning });
        }
        for (name, pattern) in patterns {
            check_name(name)?;
            let regex = compile(name, pattern)?;
            if regex.is_match("") {
                return Err(Error::Empty { name: name.clone() });
            }
            rules.push(Rule { name: name.as_str().into(), kind: None, regex, beginning: None });
        }
        for escape in ["\\u", "\\/", "\"blob\""] {
            literals.push(escape.to_owned());
            owners.push(None);
        }
        let literals = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .kind(Some(AhoCorasickKind::DFA))
            .build(&literals)
            .map_err(|error| Error::Malformed { name: "literals".to_owned(), what: error.to_string() })?;
        Ok(Secrets {
            rules,
            literals: Some(literals),
            owners,
            always: !patterns.is_empty(),
            card: kinds.contains(&Kind::Card),
        })
    }

    /// Every kind there is.
    pub(super) fn all() -> Option<&'static Secrets> {
        static ALL: OnceLock<Option<Secrets>> = OnceLock::new();
        ALL.get_or_init(|| Secrets::new(&Kind::ALL, &BTreeMap::new()).ok()).as_ref()
    }

    /// Is it worth a closer look? One pass over the bytes as they are written; never no where there is something.
    pub(super) fn may_be_in(&self, message: &[u8]) -> bool {
        self.always
            || self.literals.as_ref().is_none_or(|literals| literals.is_match(message))
            || (self.card && digits_in_a_row(message))
    }

    /// The text with marks; `None` if there is nothing in it. `name`: of the member whose value it is.
    /// `free`: no word of the protocol stands here, so that patterns of the operator's can hit none.
    pub(super) fn redact(&self, name: &str, text: &str, free: bool, found: &mut Found) -> Option<String> {
        if let Some(rule) = self.member(name).filter(|_| text.len() >= MEMBER_BYTES_MIN && !self.is_mark(text)) {
            found.add(&rule.name, 1);
            return Some(mark(&rule.name));
        }
        let finds = self.find(text, free);
        if finds.is_empty() {
            return None;
        }
        let mut out = String::with_capacity(text.len());
        let mut copied = 0;
        for (range, rule) in finds {
            let Some(rule) = self.rules.get(rule) else { continue };
            out.push_str(text.get(copied..range.start).unwrap_or_default());
            out.push_str(&mark(&rule.name));
            found.add(&rule.name, 1);
            copied = range.end;
        }
        out.push_str(text.get(copied..).unwrap_or_default());
        Some(out)
    }

    /// Where secrets stand, in order, without overlap, and which rule each is of.
    pub(super) fn find(&self, text: &str, free: bool) -> Vec<(Range<usize>, usize)> {
        let mut finds = self.find_in(text, free);
        // A text may itself be JSON, with escapes of its own.
        if text.contains("\\u") || text.contains("\\/") {
            let (view, places) = unescaped(text);
            let place = |at: usize| places.get(at).copied().unwrap_or(text.len());
            finds.extend(
                self.find_in(&view, free).into_iter().map(|(range, rule)| (place(range.start)..place(range.end), rule)),
            );
        }
        if !finds.is_empty() {
            let marks = self.marks(text);
            finds.retain(|(range, _)| {
                let before = marks.partition_point(|mark| mark.start <= range.start);
                before.checked_sub(1).and_then(|last| marks.get(last)).is_none_or(|mark| range.end > mark.end)
            });
        }
        finds.sort_by_key(|(range, _)| (range.start, usize::MAX - range.end));
        finds.dedup_by(|next, kept| {
            let overlap = next.0.start < kept.0.end;
            if overlap {
                kept.0.end = kept.0.end.max(next.0.end);
            }
            overlap
        });
        finds
    }

    fn find_in(&self, text: &str, free: bool) -> Vec<(Range<usize>, usize)> {
        let mut wanted = vec![self.literals.is_none(); self.rules.len()];
        if let Some(literals) = &self.literals {
            for hit in literals.find_overlapping_iter(text) {
                if let Some(Some(rule)) = self.owners.get(hit.pattern().as_usize())
                    && let Some(wanted) = wanted.get_mut(*rule)
                {
                    *wanted = true;
                }
            }
        }
        let mut finds = Vec::new();
        for (index, rule) in self.rules.iter().enumerate() {
            let asked = match rule.kind {
                None => free,
                Some(Kind::Card) => digits_in_a_row(text.as_bytes()),
                Some(_) => wanted.get(index).copied().unwrap_or(true),
            };
            if !asked {
                continue;
            }
            for captures in rule.regex.captures_iter(text) {
                let group = ["secret", "secret2", "secret3"].into_iter().find_map(|name| captures.name(name));
                let Some(hit) = group.or_else(|| captures.get(0)).filter(|hit| !hit.is_empty()) else { continue };
                if rule.kind == Some(Kind::Card) {
                    finds.extend(
                        cards(hit.as_str()).into_iter().map(|at| (hit.start() + at.start..hit.start() + at.end, index)),
                    );
                } else {
                    finds.push((hit.range(), index));
                }
            }
        }
        finds
    }

    /// May the end of the text be the beginning of a secret, to be ended by what is said next?
    pub(super) fn is_unfinished(&self, text: &str) -> bool {
        let beginnings = self.rules.iter().filter_map(|rule| rule.beginning.as_ref());
        beginnings.into_iter().any(|beginning| beginning.is_match(text))
    }

    pub(super) fn is_key_rule(&self, rule: usize) -> bool {
        self.rules.get(rule).is_some_and(|rule| rule.kind == Some(Kind::PrivateKey))
    }

    pub(super) fn name(&self, rule: usize) -> Option<&Arc<str>> {
        self.rules.get(rule).map(|rule| &rule.name)
    }

    fn member(&self, name: &str) -> Option<&Rule> {
        const LONGEST: usize = 32;
        if name.is_empty() || name.len() > LONGEST {
            return None;
        }
        let plain: String = name.chars().filter(|c| !matches!(c, '_' | '-')).map(|c| c.to_ascii_lowercase()).collect();
        self.rules.iter().find(|rule| rule.kind.is_some_and(|kind| kind.members().contains(&plain.as_str())))
    }

    fn is_mark(&self, text: &str) -> bool {
        let name = text.strip_prefix(MARK).and_then(|rest| rest.strip_suffix(']'));
        name.is_some_and(|name| self.rules.iter().any(|rule| &*rule.name == name))
    }

    /// Where marks of ours stand, in order: what is found inside of one was found before.
    fn marks(&self, text: &str) -> Vec<Range<usize>> {
        let one = |from: usize| {
            let rest = text.get(from..)?;
            let whole = rest.get(..=rest.find(']')?)?;
            self.is_mark(whole).then_some(from..from + whole.len())
        };
        text.match_indices(MARK).filter_map(|(from, _)| one(from)).collect()
    }
}

const MARK: &str = "[redacted:";

pub(super) fn mark(name: &str) -> String {
    format!("{MARK}{name}]")
}

/// Is it a name that a pattern can have?
fn check_name(name: &str) -> Result<(), Error> {
    let max = super::PATTERN_NAME_BYTES_MAX;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
    let reserved = [super::HIDDEN, super::TRUNCATED];
    let taken = Kind::ALL.iter().any(|kind| kind.as_str() == name) || reserved.contains(&name);
    if taken || name.is_empty() || name.len() > max || !name.chars().all(plain) {
        return Err(Error::Name { name: name.chars().take(max).collect(), max });
    }
    Ok(())
}

fn compile(name: &str, pattern: &str) -> Result<Regex, Error> {
    RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).build().map_err(|error| Error::Malformed {
        name: name.to_owned(),
        // The last line says what is wrong; those before draw the pattern.
        what: error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    })
}

/// The text as a reader of JSON would understand it, and for each of its bytes where it stood.
fn unescaped(text: &str) -> (String, Vec<usize>) {
    let (mut out, mut places) = (String::with_capacity(text.len()), Vec::with_capacity(text.len() + 1));
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let escaped = rest.strip_prefix("\\u").and_then(|digits| digits.get(..4)).and_then(|digits| {
            let code = u32::from_str_radix(digits, 16).ok()?;
            char::from_u32(code).filter(|c| c.is_ascii() && !c.is_ascii_control())
        });
        let (c, taken) = match escaped {
            Some(c) => (c, 6),
            None if rest.starts_with("\\/") => ('/', 2),
            None => {
                let Some(c) = rest.chars().next() else { break };
                (c, c.len_utf8())
            }
        };
        out.push(c);
        places.extend(std::iter::repeat_n(at, c.len_utf8()));
        at += taken;
    }
    places.push(text.len());
    (out, places)
}

/// Enough digits for a card, with nothing but a space or a hyphen between two of them.
fn digits_in_a_row(text: &[u8]) -> bool {
    let (mut digits, mut gap) = (0, false);
    for byte in text {
        match byte {
            b'0'..=b'9' => {
                digits += 1;
                gap = false;
                if digits >= CARD_DIGITS_MIN {
                    return true;
                }
            }
            b' ' | b'-' if !gap => gap = true,
            _ => (digits, gap) = (0, false),
        }
    }
    false
}

/// Where card numbers stand in a run of digits. They are told from other digits by what is between them.
fn cards(run: &str) -> Vec<Range<usize>> {
    let places: Vec<(usize, u8)> = run.bytes().enumerate().filter(|(_, byte)| byte.is_ascii_digit()).collect();
    let apart = |left: Option<&(usize, u8)>, right: Option<&(usize, u8)>| match (left, right) {
        (Some((left, _)), Some((right, _))) => right - left > 1,
        _ => true,
    };
    let mut found = Vec::new();
    let mut from = 0;
    while from + CARD_DIGITS_MIN <= places.len() {
        let begins = apart(from.checked_sub(1).and_then(|before| places.get(before)), places.get(from));
        let card = (CARD_DIGITS_MIN..=CARD_DIGITS_MAX).rev().filter(|_| begins).find(|length| {
            let end = from + length;
            let Some(digits) = places.get(from..end) else { return false };
            let digits: Vec<u8> = digits.iter().map(|(_, digit)| digit - b'0').collect();
            apart(places.get(end - 1), places.get(end)) && issued(&digits) && luhn(&digits)
        });
        match card.and_then(|length| Some((places.get(from)?.0, places.get(from + length - 1)?.0, length))) {
            Some((start, last, length)) => {
                found.push(start..last + 1);
                from += length;
            }
            None => from += 1,
        }
    }
    found
}

/// Does it begin like the number of a card of its length?
fn issued(digits: &[u8]) -> bool {
    let beginning = digits.iter().take(4).fold(0u32, |number, digit| number * 10 + u32::from(*digit));
    let length = digits.len();
    match beginning {
        4000..=4999 => matches!(length, 13 | 16 | 19),
        5100..=5599 | 2221..=2720 => length == 16,
        3400..=3499 | 3700..=3799 => length == 15,
        3000..=3059 | 3600..=3699 | 3800..=3999 => matches!(length, 14..=19),
        3528..=3589 => matches!(length, 16..=19),
        6011 | 6440..=6599 | 6200..=6299 => matches!(length, 16..=19),
        5000..=5099 | 5600..=5899 | 6000..=6999 => matches!(length, 16..=19),
        _ => false,
    }
}

fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(index, digit)| {
            let value = u32::from(*digit) * if index % 2 == 1 { 2 } else { 1 };
            if value > 9 { value - 9 } else { value }
        })
        .sum();
    sum.is_multiple_of(10)
}
