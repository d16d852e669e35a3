//! Tests of the workbench: on the policies that ship, and on rules with a fault that is to be found.

use std::path::Path;
use std::path::PathBuf;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    policy: Policy,
}

fn root(path: &str) -> String {
    format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))
}

/// What the verb answers: code and text, or the complaint.
fn asked(words: &[&str]) -> Answer {
    let line = Line::try_parse_from(std::iter::once("policy").chain(words.iter().copied())).expect("a command line");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match line.policy.verb {
        Verb::Test(verb) => verb.run(),
        Verb::Explain(verb) => runtime.block_on(verb.run()),
        Verb::Matrix(verb) => verb.run(),
        Verb::Diff(verb) => verb.run(),
        #[cfg(feature = "prove")]
        Verb::Prove(verb) => runtime.block_on(verb.run()),
    }
}

#[track_caller]
fn said(words: &[&str]) -> (u8, String) {
    match asked(words) {
        Ok((code, text)) => (code, text.replace(&root(""), "")),
        Err(problem) => panic!("{words:?}: {problem}"),
    }
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("a file");
    }
    folder
}

fn within(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

/// If you are here because a policy was changed: its tests are in `policies/tests`, under its name.
#[test]
fn the_shipped_policies_pass_their_tests() {
    let (code, text) = said(&["test", &root("policies/tests")]);
    assert_eq!(code, crate::cli::OK, "{text}");
    assert!(text.contains(" 0 failed"), "{text}");
}

#[test]
fn every_shipped_policy_has_tests() {
    let policies = std::fs::read_dir(root("policies")).expect("policies").map(|entry| entry.expect("an entry").path());
    let policies: Vec<PathBuf> =
        policies.filter(|path| path.extension().is_some_and(|ending| ending == "cedar")).collect();
    assert!(policies.len() >= 7, "{policies:?}");
    for policy in policies {
        let name = policy.file_stem().expect("a name").to_string_lossy().into_owned();
        assert!(Path::new(&root(&format!("policies/tests/{name}.yaml"))).exists(), "{name} has no tests");
    }
}

const RULES: &str = r#"@id("readers")
permit (principal in Scope::"read", action, resource)
when { resource.effect == "read" };

@id("office")
forbid (principal, action, resource)
when { resource.name == "open" }
unless { context.args has door && context.args.door == "front" };
"#;

const CASES: &str = r#"# Cases.
policies: [rules.cedar]
principals:
  alice: { scopes: [read] }
tools: { house/look: read, house/open: read, house/burn: destroy }
tests:
  - { name: right, principal: alice, tool: house/look, expect: allow, by: [readers], listed: true }
  - { name: the wrong answer, principal: alice, tool: house/open, arguments: { door: back }, expect: allow }
  - { name: the wrong policy, principal: alice, tool: house/look, expect: allow, by: [office] }
  - { name: the wrong reason, principal: alice, tool: house/burn, expect: deny, because: forbidden }
  - { name: the wrong list, principal: alice, tool: house/open, arguments: { door: back }, expect: deny, listed: false }
  - { name: nobody of this name, principal: bob, tool: house/look, expect: deny }
"#;

#[test]
fn all_failures_are_told_at_once_with_what_was_expected_and_which_policy_decided() {
    let folder = folder(&[("rules.cedar", RULES), ("cases.yaml", CASES)]);
    let (code, text) = said(&["test", &within(&folder, "cases.yaml")]);
    assert_eq!(code, crate::cli::FAILED, "{text}");
    for expected in [
        "6 tests in 1 files: 1 passed, 5 failed",
        "cases.yaml:8: the wrong answer",
        "expected  allow\n",
        "got       deny (forbidden) by `office`",
        "rules.cedar:5: `office`",
        "expected  allow by `office`",
        "got       deny (not granted)",
        "got       deny (forbidden) by `office`, listed",
        "there is no principal `bob`",
    ] {
        assert!(text.contains(expected), "no `{expected}` in\n{text}");
    }
}

#[test]
fn results_are_written_for_machines_too() {
    let folder = folder(&[("rules.cedar", RULES), ("cases.yaml", CASES)]);
    let (_, text) = said(&["test", &within(&folder, "cases.yaml"), "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let passed: Vec<bool> =
        json["tests"].as_array().expect("tests").iter().map(|test| test["passed"] == true).collect();
    assert_eq!(passed, [true, false, false, false, false, false]);
    let (_, text) = said(&["test", &within(&folder, "cases.yaml"), "--format", "junit"]);
    assert!(text.contains("tests=\"6\" failures=\"5\""), "{text}");
}

#[test]
fn what_cannot_be_understood_in_a_file_is_refused_with_its_place() {
    for (text, expected) in [
        ("tests: [{ name: x }]", "missing field"),
        ("policies: [rules.cedar]\ntest: []", "did you mean `tests`?"),
        ("policies: [none.cedar]", "`none.cedar` cannot be read"),
    ] {
        let folder = folder(&[("rules.cedar", RULES), ("cases.yaml", text)]);
        let problem = asked(&["test", &within(&folder, "cases.yaml")]).expect_err("a wrong file");
        let problem = problem.replace(&format!("{}/", folder.path().display()), "");
        assert!(problem.contains(expected), "{problem}");
    }
}

/// Bless with WARDGATE_BLESS=1 after a change that is meant.
#[test]
fn the_matrix_of_an_example_is_as_committed() {
    let (cases, snapshot) =
        (root("policies/matrix/several-backends.yaml"), root("policies/matrix/several-backends.txt"));
    if std::env::var_os("WARDGATE_BLESS").is_some() {
        let (_, text) = said(&["matrix", &cases]);
        std::fs::write(&snapshot, format!("{}\n", text.trim_end())).expect("the snapshot is written");
    }
    let (code, text) = said(&["matrix", &cases, "--check", &snapshot]);
    assert_eq!(code, crate::cli::OK, "{text}");
}

#[test]
fn a_matrix_that_changed_is_told_line_by_line() {
    let folder = folder(&[("rules.cedar", RULES), ("cases.yaml", CASES)]);
    let cases = within(&folder, "cases.yaml");
    let (_, text) = said(&["matrix", &cases]);
    let row = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in\n{text}"));
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    // Everybody, those with the scope, alice.
    assert_eq!(row(&text, "house/look"), "house/look read full deny allow allow");
    assert_eq!(row(&text, "house/open"), "house/open read full deny listed listed");
    assert_eq!(row(&text, "house/burn"), "house/burn destroy full deny deny deny");
    let snapshot = within(&folder, "matrix.txt");
    std::fs::write(&snapshot, &text).expect("a snapshot");
    assert_eq!(said(&["matrix", &cases, "--check", &snapshot]).0, crate::cli::OK);
    std::fs::write(within(&folder, "rules.cedar"), RULES.replace("== \"read\"", "!= \"write\"")).expect("other rules");
    let (code, text) = said(&["matrix", &cases, "--check", &snapshot]);
    assert_eq!(code, crate::cli::FAILED);
    assert!(text.contains("- house/burn") && text.contains("+ house/burn"), "{text}");
    assert!(!text.contains("house/look"), "{text}");
}

#[test]
fn an_explanation_names_the_policies_and_what_would_be_needed() {
    let folder = folder(&[("rules.cedar", RULES)]);
    let rules = within(&folder, "rules.cedar");
    let explain = |more: &[&str]| said(&[&["explain", "-c", &rules, "--effect", "read"][..], more].concat());
    let (code, text) = explain(&["house/look", "--scope", "read"]);
    assert_eq!(code, crate::cli::OK, "{text}");
    assert!(
        text.starts_with("allow\n") && text.contains("rules.cedar:1") && text.contains("permit (principal in"),
        "{text}"
    );
    let (code, text) = explain(&["house/look", "--mode", "read-only"]);
    assert_eq!(code, crate::cli::FAILED);
    assert!(text.contains("nothing permits it") && text.contains("  - scope read\n"), "{text}");
    let (_, text) = explain(&["house/open", "--scope", "read", "--arguments", r#"{"door": "back"}"#]);
    assert!(text.contains("`office`") && text.contains("other arguments"), "{text}");
    let words = ["explain", "-c", &rules, "--effect", "write", "house/look", "--mode", "read-only", "--format", "json"];
    let (_, text) = said(&words);
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(json["reason"], "ceiling");
    assert_eq!(json["admitted_by_mode"], false);
    // No mode helps a tool that writes: these rules let nobody write.
    assert_eq!(json["needed"], serde_json::json!([["scope read", "the tool classified as read"]]));
}

#[test]
fn a_difference_is_told_by_cell_and_ends_with_one() {
    let folder =
        folder(&[("old.cedar", RULES), ("new.cedar", RULES.replace("\"read\", action", "\"other\", action").as_str())]);
    std::fs::write(within(&folder, "cases.yaml"), CASES.replace("policies: [rules.cedar]\n", "")).expect("cases");
    let (old, new, cases) = (within(&folder, "old.cedar"), within(&folder, "new.cedar"), within(&folder, "cases.yaml"));
    assert_eq!(said(&["diff", &old, &old, "--cases", &cases]).0, crate::cli::OK);
    let (code, text) = said(&["diff", &old, &new, "--cases", &cases]);
    assert_eq!(code, crate::cli::FAILED);
    let line = text.lines().find(|line| line.starts_with("house/look") && line.contains("alice")).expect(&text);
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["house/look", "alice", "allow", "deny"]);
}

/// As the audit log writes them.
fn record(method: &str, target: &str, rest: &str) -> String {
    format!(
        r#"{{"seq":1,"kind":"request","at":"2026-03-02T12:00:00.000001Z","subject":"alice","issuer":"i","caller":"User","backend":"house","method":"{method}","target":"{target}","effect":"read","mode":"full",{rest},"hash":"x"}}"#
    )
}

#[test]
fn past_requests_are_judged_anew_and_what_no_record_holds_is_unknown() {
    let log = [
        record("tools/call", "look", r#""scopes":["read"],"decision":"allowed","policies":["readers"]"#),
        record("tools/call", "look", r#""scopes":["read"],"decision":"allowed","policies":["readers"]"#),
        record("tools/call", "look", r#""scopes":["other"],"decision":"refused","denial":"not_granted""#),
        record(
            "tools/call",
            "open",
            r#""scopes":["read"],"args_digest":"d","decision":"allowed","policies":["readers"]"#,
        ),
        record(
            "tools/call",
            "open",
            r#""scopes":["other"],"args_digest":"d","decision":"refused","denial":"not_granted""#,
        ),
        record(
            "tools/call",
            "look",
            r#""scopes":["read"],"scopes_more":3,"decision":"allowed","policies":["readers"]"#,
        ),
        record("tools/call", "look", r#""decision":"refused","reason":"limited""#),
        r#"{"seq":9,"kind":"reload","at":"2026-03-02T12:00:00Z"}"#.to_owned(),
    ];
    let folder = folder(&[
        ("old.cedar", RULES),
        ("new.cedar", RULES.replace("\"read\", action", "\"other\", action").as_str()),
        ("audit.jsonl", log.join("\n").as_str()),
    ]);
    let (old, new, log) = (within(&folder, "old.cedar"), within(&folder, "new.cedar"), within(&folder, "audit.jsonl"));
    let (code, text) = said(&["diff", &old, &new, "--replay", &log, "--format", "json"]);
    assert_eq!(code, crate::cli::FAILED, "{text}");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let replay = &json["replay"];
    for (name, expected) in [("requests", 7), ("unjudged", 1), ("same", 0)] {
        assert_eq!(replay[name], expected, "{text}");
    }
    let found = |now: &str, target: &str| {
        let changes = replay["changes"].as_array().expect("changes");
        let these = changes.iter().filter(|change| change["now"] == now && change["target"] == target);
        these.map(|change| change["requests"].as_u64().expect("a count")).sum::<u64>()
    };
    assert_eq!(found("denied", "house/look"), 2, "{text}");
    assert_eq!(found("allowed", "house/look"), 1, "{text}");
    // Denied whatever the arguments: known. Allowed for some: not known.
    assert_eq!(found("denied", "house/open"), 1, "{text}");
    assert_eq!(found("unknown", "house/open"), 1, "{text}");
    assert_eq!(found("unknown", "house/look"), 1, "{text}");
    // Under the same rules nothing is unknown for its arguments.
    let (code, text) = said(&["diff", &old, &old, "--replay", &log]);
    assert_eq!(code, crate::cli::OK, "{text}");
    assert!(text.contains("7 requests: 5 as before, 0 denied instead of allowed, 0 allowed"), "{text}");
}

#[test]
fn a_policy_in_shadow_mode_is_seen_and_not_in_force() {
    let shadow = format!("{RULES}\n@id(\"trial\")\n@shadow(\"true\")\nforbid (principal, action, resource);\n");
    let folder = folder(&[("rules.cedar", shadow.as_str()), ("cases.yaml", CASES)]);
    let (_, text) = said(&["matrix", &within(&folder, "cases.yaml")]);
    assert!(text.contains("allow (shadow: trial)"), "{text}");
    let rules = within(&folder, "rules.cedar");
    let (code, text) = said(&["explain", "-c", &rules, "--effect", "read", "--scope", "read", "house/look"]);
    assert_eq!(code, crate::cli::OK);
    assert!(text.contains("in shadow mode, and would change it:\n  `trial`"), "{text}");
}
