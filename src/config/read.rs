//! Tree to `File`: every structural error, each once, in words an operator can act upon.

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use super::strict::ONE_KEY;
use super::strict::Strict;
use super::yaml::Fault;
use super::yaml::Node;
use super::yaml::Step;
use super::yaml::within;

/// More errors than anybody fixes in one go.
const FAULTS_MAX: usize = 100;

/// What came of the tree.
pub(super) struct Read<T> {
    /// What is left when everything wrong is taken out; `None` if there is no end to it.
    pub(super) file: Option<T>,
    pub(super) faults: Vec<Fault>,
    /// Paths that were taken out, or that a wrong key was probably meant to be: no further complaint about these.
    pub(super) pruned: Vec<String>,
}

/// Serde stops at the first error: note it, take the node out, and try again until nothing is wrong any more.
///
/// `refused` are paths that something was said about already.
pub(super) fn read<T: DeserializeOwned>(root: &mut Node, refused: Vec<String>) -> Read<T> {
    let mut read = Read { file: None, faults: Vec::new(), pruned: refused };
    while read.faults.len() < FAULTS_MAX {
        let error = match serde_path_to_error::deserialize::<_, T>(Strict(root)) {
            Ok(file) => {
                read.file = Some(file);
                break;
            }
            Err(error) => error,
        };
        let steps = steps(root, error.path());
        let (node, _) = root.find(&steps);
        let path = node.path.clone();
        let words = words(&error.inner().to_string());
        let at = if words.about_key { node.key_at.unwrap_or(node.at) } else { node.mark() };
        // A choice by key whose key was wrong and is taken out, or a value that is no YAML we take.
        let known =
            read.pruned.iter().any(|pruned| *pruned == path || (words.message == ONE_KEY && within(pruned, &path)));
        if !known {
            read.faults.push(Fault { at, path: path.clone(), message: words.message });
        }
        if steps.is_empty() {
            break;
        }
        if let (Some(meant), Some((_, parent))) = (words.meant, steps.split_last()) {
            read.pruned.push(super::yaml::below(&root.find(parent).0.path, &Step::Name(meant)));
        }
        read.pruned.push(path);
        root.remove(&steps);
    }
    read
}

/// The steps of serde's path that exist in the tree.
fn steps(root: &Node, path: &serde_path_to_error::Path) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut node = root;
    for segment in path {
        let step = match segment {
            Segment::Seq { index } => Step::Index(*index),
            Segment::Map { key } => Step::Name(key.clone()),
            Segment::Enum { variant } => Step::Name(variant.clone()),
            Segment::Unknown => break,
        };
        let Some(next) = node.child(&step) else { break };
        node = next;
        steps.push(step);
    }
    steps
}

struct Words {
    message: String,
    /// The key is wrong, not the value.
    about_key: bool,
    /// The key that was probably meant.
    meant: Option<String>,
}

/// Serde's message in our words. INVARIANT: no value from the file is shown, except a word where one of a few was expected:
/// it could be a secret in the wrong place.
fn words(message: &str) -> Words {
    let plain = |message: String| Words { message, about_key: false, meant: None };
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if message.starts_with("unknown field ") {
        let (wrong, known) = quoted.split_first().map_or(("", &[][..]), |(wrong, known)| (*wrong, known));
        let meant = nearest(wrong, known);
        let message = match meant {
            Some(meant) => format!("unknown key; did you mean `{meant}`?"),
            None => format!("unknown key; known here: {}", list(known)),
        };
        return Words { message, about_key: true, meant: meant.map(str::to_owned) };
    }
    if message.starts_with("unknown variant ") {
        let (wrong, known) = quoted.split_first().map_or(("", &[][..]), |(wrong, known)| (*wrong, known));
        let wrong = super::scalar::short(wrong);
        return plain(match nearest(&wrong, known) {
            Some(meant) => format!("`{wrong}` is not known; did you mean `{meant}`?"),
            None => format!("`{wrong}` is not known; expected {}", list(known)),
        });
    }
    let typed = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    match typed.and_then(|rest| rest.rsplit_once(", expected ")) {
        None => plain(message.to_owned()),
        Some((_, expected)) if message.starts_with("invalid value: integer") => {
            plain(format!("expected {}, found one out of range", kind(expected)))
        }
        Some((found, expected)) => plain(mismatch(found, expected)),
    }
}

fn mismatch(found: &str, expected: &str) -> String {
    let words = match found.split(' ').next().unwrap_or_default() {
        "unit" if found == "unit variant" => "a word",
        "unit" => "nothing",
        "boolean" => "`true` or `false`",
        "integer" => "a number",
        "map" => "a mapping",
        "sequence" => "a list",
        "string" => "text",
        _ => "something else",
    };
    let hint = if expected == "a string" && words == "a number" { ": put it in quotes" } else { "" };
    format!("expected {}, found {words}{hint}", kind(expected))
}

fn kind(expected: &str) -> &str {
    match expected {
        "a boolean" => "`true` or `false`",
        "a sequence" => "a list",
        "a map" | "newtype variant" => "a mapping",
        "u32" => "a whole number that is not negative",
        "a string" => "text",
        other => other,
    }
}

fn list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// The word that was probably meant: few letters away from what was written.
fn nearest<'a>(wrong: &str, known: &[&'a str]) -> Option<&'a str> {
    let flat = |word: &str| word.to_ascii_lowercase().replace('-', "_");
    let wrong = flat(wrong);
    let near = known.iter().map(|word| (distance(&wrong, &flat(word)), *word)).min()?;
    let allowed = (wrong.chars().count() / 3).clamp(1, 3);
    (near.0 <= allowed).then_some(near.1)
}

/// How many letters must be added, left out, changed or swapped with their neighbour.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut above: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    let mut before = None;
    for (index, a) in left.chars().enumerate() {
        let mut next = vec![index + 1];
        for (column, b) in right.iter().enumerate() {
            let cell = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX - 1);
            let mut least = (cell(&row, column) + usize::from(a != *b))
                .min(cell(&row, column + 1) + 1)
                .min(cell(&next, column) + 1);
            let swapped = column.checked_sub(1).and_then(|last| right.get(last)) == Some(&a) && before == Some(*b);
            if let Some(start) = column.checked_sub(1).filter(|_| swapped) {
                least = least.min(cell(&above, start) + 1);
            }
            next.push(least);
        }
        above = std::mem::replace(&mut row, next);
        before = Some(a);
    }
    row.last().copied().unwrap_or_default()
}
