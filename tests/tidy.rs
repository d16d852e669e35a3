//! Laws of the house: layers, first lines, file sizes, banned words, threats that have a case.
//!
//! If you are here because one of these failed: the message says which file and which law. Change the file, not the
//! law, unless the design itself changed.
#![expect(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// The rooms, layer by layer. A room may use rooms of its own and of earlier layers, with the exceptions below.
const LAYERS: &[(&str, &[&str])] = &[
    ("words", &["exchange", "mcp", "secret"]),
    ("facts", &["principal", "catalog"]),
    ("judgement", &["filters", "route", "policy"]),
    ("work", &["audit", "limits", "fetch", "identity", "credentials", "telemetry", "backend"]),
    ("spine", &["gateway"]),
    ("edge", &["server", "config", "app", "cli", "demo", "main", "lib"]),
];

/// (room, room of a later layer it may use all the same, why).
const EXCEPTIONS: &[(&str, &str, &str)] =
    &[("mcp", "catalog", "list entries carry the hints that the catalog classifies")];

/// Judgement is pure: neither runtime nor clock nor sockets.
const PURE: &[&str] = &["mcp", "catalog", "principal", "filters", "route", "policy"];
const IMPURE: &[&str] =
    &["tokio::", "pingora", "Instant::now", "SystemTime::now", "reqwest", "std::net::Tcp", "std::fs"];

const LINES_MEDIAN_MAX: usize = 170;
const LINES_P90_MAX: usize = 420;
const LINES_MAX: usize = 800;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_under(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    fn walk(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for entry in entries.map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                walk(&entry, endings, found);
            } else if entry.extension().is_some_and(|ending| endings.contains(&ending.to_str().unwrap_or_default())) {
                found.push(entry);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), endings, &mut found);
    found.sort();
    found
}

fn name_of(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// `src/backend/remote/http.rs` lives in the room `backend`.
fn room_of(path: &Path) -> String {
    let inner = path.strip_prefix(root().join("src")).unwrap();
    inner.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

fn layer_of(room: &str) -> usize {
    LAYERS
        .iter()
        .position(|(_, rooms)| rooms.contains(&room))
        .unwrap_or_else(|| panic!("room `{room}` is in no layer: add it to LAYERS"))
}

/// The code of a file without its inline test module and without comments: tests may look anywhere.
fn code_of(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn is_test(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "tests.rs") || path.components().any(|part| part.as_os_str() == "tests")
}

#[test]
fn rooms_use_only_rooms_above_them() {
    let mut wrong = Vec::new();
    for path in files_under("src", &["rs"]).into_iter().filter(|path| !is_test(path)) {
        let room = room_of(&path);
        let code = code_of(&fs::read_to_string(&path).unwrap());
        for (_, rooms) in LAYERS.iter().skip(layer_of(&room) + 1) {
            for later in *rooms {
                let used = code.contains(&format!("crate::{later}::")) || code.contains(&format!("crate::{later};"));
                let excused = EXCEPTIONS.iter().any(|(from, to, _)| *from == room && to == later);
                if used && !excused {
                    wrong.push(format!("{}: uses `{later}`, which is in a later layer than `{room}`", name_of(&path)));
                }
            }
        }
        if code.contains("super::super") {
            wrong.push(format!("{}: `super::super` hides where it looks: write `crate::…`", name_of(&path)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn judgement_is_pure() {
    let mut wrong = Vec::new();
    for path in files_under("src", &["rs"]).into_iter().filter(|path| !is_test(path)) {
        if !PURE.contains(&room_of(&path).as_str()) {
            continue;
        }
        let code = code_of(&fs::read_to_string(&path).unwrap());
        wrong.extend(
            IMPURE
                .iter()
                .filter(|word| code.contains(**word))
                .map(|word| format!("{}: `{word}` in a pure room", name_of(&path))),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn proofs_are_made_only_where_they_are_earned() {
    let rules = [
        ("Principal::verified(", "identity"),
        ("Principal::supposed(", "cli"),
        ("Permit {", "policy"),
        ("Credential {", "credentials"),
    ];
    let mut wrong = Vec::new();
    for path in files_under("src", &["rs"]).into_iter().filter(|path| !is_test(path)) {
        let code = code_of(&fs::read_to_string(&path).unwrap());
        for (word, home) in rules {
            let made =
                code.lines().any(|line| line.contains(word) && !line.contains("impl") && !line.contains("struct"));
            if made && room_of(&path) != home {
                wrong.push(format!("{}: `{word}` belongs to `{home}` alone", name_of(&path)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_lives_in_it() {
    let mut wrong = Vec::new();
    for folder in ["src", "tests", "benches"] {
        for path in files_under(folder, &["rs"]) {
            if !fs::read_to_string(&path).unwrap().starts_with("//! ") {
                wrong.push(format!("{}: line 1 must be `//! ` and one sentence", name_of(&path)));
            }
        }
    }
    for folder in ["tests", "config", "deploy", "policies", "benches"] {
        for path in files_under(folder, &["py", "mjs", "sh", "yaml", "cedar", "yml"]) {
            let text = fs::read_to_string(&path).unwrap();
            let text = text
                .strip_prefix("#!")
                .map_or(text.as_str(), |rest| rest.split_once('\n').map_or("", |(_, rest)| rest));
            if !text.starts_with('#') && !text.starts_with("//") && !text.starts_with("\"\"\"") {
                wrong.push(format!("{}: the first line must be a comment that says what lives here", name_of(&path)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_stay_small() {
    let mut sizes: Vec<(usize, String)> = files_under("src", &["rs"])
        .into_iter()
        .filter(|path| !is_test(path))
        .map(|path| {
            (
                code_of(&fs::read_to_string(&path).unwrap()).lines().filter(|line| !line.trim().is_empty()).count(),
                name_of(&path),
            )
        })
        .collect();
    sizes.sort();
    let at = |share: usize| sizes[(sizes.len() - 1) * share / 100].0;
    let (largest, name) = sizes.last().unwrap();
    assert!(*largest <= LINES_MAX, "{name} has {largest} lines of code: is it one room, or several?");
    assert!(
        at(90) <= LINES_P90_MAX,
        "a tenth of the files is longer than {LINES_P90_MAX} lines: {:?}",
        &sizes[sizes.len() * 9 / 10..]
    );
    assert!(at(50) <= LINES_MEDIAN_MAX, "half of the files is longer than {LINES_MEDIAN_MAX} lines");
}

#[test]
fn nothing_unfinished_and_nothing_hidden_is_in_the_tree() {
    // Written in halves, so that this file does not find itself.
    let banned = [
        (concat!("to", "do!("), "finish it"),
        (concat!("unimplemen", "ted!("), "finish it"),
        (concat!("#[ign", "ore"), "a test that does not run proves nothing"),
        (concat!("d", "bg!("), "left over"),
        (concat!("print", "ln!("), "write to a handle, or log"),
    ];
    let mut wrong = Vec::new();
    for folder in ["src", "tests", "benches"] {
        for path in files_under(folder, &["rs"]) {
            let text = fs::read_to_string(&path).unwrap();
            let code = if folder == "src" { code_of(&text) } else { text };
            for (word, why) in banned {
                let printing = word.starts_with("print");
                if code.contains(word) && !(printing && folder != "src") {
                    wrong.push(format!("{}: `{word}`: {why}", name_of(&path)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Threats of the catalogue that concern what is built. A new one must get a case.
const THREATS: std::ops::RangeInclusive<u32> = 1..=47;

#[test]
fn every_threat_has_a_case() {
    let covered: BTreeSet<u32> = files_under("tests/cases/threats", &["yaml"])
        .iter()
        .filter_map(|path| path.file_stem()?.to_str()?.strip_prefix('T')?.split('-').next()?.parse().ok())
        .collect();
    let missing: Vec<_> = THREATS.filter(|number| !covered.contains(number)).collect();
    assert!(missing.is_empty(), "no case under tests/cases/threats: {missing:?}");
}

#[test]
fn cases_name_tests_that_exist() {
    let sources: String = ["src", "tests"]
        .iter()
        .flat_map(|folder| files_under(folder, &["rs"]))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let mut wrong = Vec::new();
    for path in files_under("tests/cases/threats", &["yaml"]) {
        let text = fs::read_to_string(&path).unwrap();
        let mut inside = false;
        let mut proofs = 0;
        for line in text.lines() {
            if let Some(name) = line.trim().strip_prefix("- ").filter(|_| inside) {
                proofs += 1;
                if !sources.contains(&format!("fn {}(", name.trim())) {
                    wrong.push(format!("{}: there is no test `{name}`", name_of(&path)));
                }
            } else {
                inside = line.starts_with("proved_by:");
            }
        }
        let runs = text.lines().any(|line| line.starts_with("steps:"));
        if proofs == 0 && !runs {
            wrong.push(format!("{}: neither steps nor proved_by", name_of(&path)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
