//! Tree to `File`: every structural error, each once, in words an operator can act upon.

use serde_path_to_error::Segment;

use super::file::File;
use super::yaml::Fault;
use super::yaml::Node;
use super::yaml::Step;

/// More errors than anybody fixes in one go.
const FAULTS_MAX: usize = 100;

/// What came of the tree.
pub(super) struct Read {
    /// What is left when everything wrong is taken out; `None` if there is no end to it.
    pub(super) file: Option<File>,
    pub(super) faults: Vec<Fault>,
    /// Paths that were taken out, or that a wrong key was probably meant to be: no further complaint about these.
    pub(super) pruned: Vec<String>,
}

/// Serde stops at the first error: note it, take the node out, and try again until nothing is wrong any more.
pub(super) fn read(root: &mut Node) -> Read {
    let mut read = Read { file: None, faults: Vec::new(), pruned: Vec::new() };
    while read.faults.len() < FAULTS_MAX {
        let error = match serde_path_to_error::deserialize::<_, File>(root.value()) {
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
        read.faults.push(Fault { at, path: path.clone(), message: words.message });
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
    if message.contains("expected map with a single key") {
        return plain("expected a mapping with exactly one key".to_owned());
    }
    let typed = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    match typed.and_then(|rest| rest.rsplit_once(", expected ")) {
        None => plain(message.to_owned()),
        Some((found, expected)) => plain(mismatch(found, expected)),
    }
}

fn mismatch(found: &str, expected: &str) -> String {
    let number = ["integer", "floating point"].iter().any(|kind| found.starts_with(kind));
    let expected_words = match expected {
        "a boolean" => "`true` or `false`",
        "a sequence" => "a list",
        "a map" => "a mapping",
        "u16" | "u32" | "u64" | "usize" => "a whole number that is not negative",
        "a string" => "text",
        other if other.starts_with("struct ") || other.starts_with("newtype variant") => "a mapping",
        other if other.starts_with("enum ") => "one word",
        other if other.starts_with("tuple variant") => "a list",
        "string or map" => "one word, or a mapping with one key",
        other => other,
    };
    let found_words = match found.split(' ').next().unwrap_or_default() {
        "null" | "unit" if found != "unit variant" => "nothing",
        "boolean" => "`true` or `false`",
        "integer" | "floating" => "a number",
        "map" => "a mapping",
        "sequence" => "a list",
        "string" => "text",
        "unit" => "a word",
        _ => "something else",
    };
    match expected {
        "a string" if number => format!("expected {expected_words}, found a number: put it in quotes"),
        _ => format!("expected {expected_words}, found {found_words}"),
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

/// Levenshtein's, one row at a time.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (done, a) in left.chars().enumerate() {
        let mut diagonal = done;
        let mut last = done + 1;
        let mut next = vec![last];
        for (b, above) in right.iter().zip(row.iter().skip(1)) {
            last = (diagonal + usize::from(a != *b)).min(last + 1).min(above + 1);
            diagonal = *above;
            next.push(last);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
