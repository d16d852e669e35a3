//! Policies held to the backends, tools and arguments that there are.

use super::*;

const PUT: &str = r#"{"type": "object", "required": ["path"], "properties": {
    "path": {"type": "string"}, "version": {"type": "integer"}, "ratio": {"type": "number"},
    "tags": {"type": "array", "items": {"type": "string"}}, "force": {"type": "boolean"},
    "owner": {"type": "object", "properties": {"team": {"type": "string"}}},
    "either": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}"#;

/// `vault` with `kv.put`, `kv.read` and `seal`; `git`, of which nothing is known, if asked for.
fn known(git: bool) -> Known {
    let tools = vec![
        declared("kv.put", Effect::Write, PUT),
        declared(
            "kv.read",
            Effect::ReadSensitive,
            r#"{"type": "object", "properties": {"path": {"type": "string"}, "version": {"type": "string"}}}"#,
        ),
        declared("seal", Effect::Destroy, r#"{"type": "object", "properties": {}}"#),
    ];
    let git = git.then(|| ("git".into(), None));
    Known::new([("vault".into(), Some(tools))].into_iter().chain(git))
}

fn over(text: &str, known: &Known) -> Result<Policy, Vec<String>> {
    let sources = vec![("site.cedar".to_owned(), text.to_owned())];
    let config = Config { mode: Mode::Full, sources, ..Config::default() };
    Policy::over(&config, known).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

/// A `forbid` for calls of `resource`, under this condition.
fn forbid(resource: &str, condition: &str) -> String {
    format!("forbid (principal, action == Action::\"call\", {resource}) when {{ {condition} }};")
}

#[track_caller]
fn refused(text: &str, known: &Known, words: &[&str]) {
    let errors = over(text, known).map(|_| ()).expect_err(text);
    assert_eq!(errors.len(), 1, "{text}: {errors:?}");
    assert!(errors[0].starts_with("site.cedar:1:"), "{errors:?}");
    for word in words {
        assert!(errors[0].contains(word), "`{word}` in {errors:?}");
    }
}

#[test]
fn what_is_not_there_cannot_be_named() {
    for (resource, condition, word) in [
        ("resource == Tool::\"vault/kv.putt\"", "true", "backend `vault` has no tool `kv.putt`"),
        ("resource == Tool::\"valt/kv.put\"", "true", "there is no backend `valt`"),
        ("resource == Tool::\"kv.put\"", "true", "must be a backend and a name"),
        ("resource in Backend::\"valt\"", "true", "there is no backend `valt`"),
        ("resource", "resource in Backend::\"valt\"", "there is no backend `valt`"),
        ("resource", "resource.backend == \"valt\"", "there is no backend `valt`"),
        ("resource", "[\"vault\", \"valt\"].contains(resource.backend)", "there is no backend `valt`"),
        ("resource", "resource == Tool::\"vault/kv.lst\"", "backend `vault` has no tool `kv.lst`"),
        ("resource", "resource.name == \"kv.lst\"", "no backend that it is about has a tool `kv.lst`"),
        ("resource in Backend::\"vault\"", "resource.name != \"kv.lst\"", "has a tool `kv.lst`"),
    ] {
        refused(&forbid(resource, condition), &known(false), &[word]);
    }
    for (resource, condition) in [
        ("resource == Tool::\"vault/kv.put\"", "true"),
        ("resource", "resource.name == \"kv.put\" && resource.backend == \"vault\""),
        ("resource", "resource.name like \"kv.*\""),
    ] {
        let policy = over(&forbid(resource, condition), &known(false)).expect("all of it is there");
        assert!(policy.notes().is_empty(), "{:?}", policy.notes());
    }
}

#[test]
fn what_may_be_there_can_be_named() {
    for resource in ["resource == Tool::\"git/anything\"", "resource in Backend::\"git\""] {
        assert!(over(&forbid(resource, "true"), &known(true)).is_ok(), "{resource}");
    }
    assert!(over(&forbid("resource", "resource.name == \"kv.lst\""), &known(true)).is_ok(), "`git` may have it");
    // A prompt may have the name: the operator is told, and may have meant it.
    let text = "forbid (principal, action, resource) when { resource.name == \"kv.lst\" };";
    let policy = over(text, &known(false)).expect("it may be a prompt");
    assert_eq!(policy.notes(), ["`site.cedar#1`: no backend that it is about has a tool `kv.lst`"]);
}

#[test]
fn a_grant_is_held_to_the_backends_too() {
    let config = |tools: &str| {
        let grants = vec![scope_grant("a", &[Effect::Read], &[tools])];
        Config { mode: Mode::Full, grants, ..Config::default() }
    };
    let errors = Policy::over(&config("valt/kv.put"), &known(false)).map(|_| ()).expect_err("no such backend");
    assert!(errors.iter().all(|error| error.to_string().starts_with("grants[0]: ")), "{errors:?}");
    assert!(errors[0].to_string().contains("there is no backend `valt`"), "{errors:?}");
    assert_eq!(Policy::over(&config("vault/kv.put"), &known(false)).expect("it is there").notes().len(), 0);
    let notes = Policy::over(&config("vault/kv.lst"), &known(false)).expect("may be a prompt").notes().to_vec();
    assert_eq!(notes, ["`grant-1`: no backend that it is about has a tool `kv.lst`"]);
    assert!(Policy::over(&config("va*/kv.*"), &known(false)).is_ok());
}

#[test]
fn arguments_are_held_to_what_the_tool_declares() {
    let put = "resource == Tool::\"vault/kv.put\"";
    for condition in [
        "context.args.path == \"secret\"",
        "context.args.path like \"secret/*\"",
        "context.args has version && context.args.version > 3",
        "context.args has ratio && context.args.ratio.lessThan(decimal(\"0.5\"))",
        "context.args has tags && context.args.tags.contains(\"x\")",
        "context.args has force && context.args.force",
        "context.args has owner && context.args.owner has team && context.args.owner.team == \"a\"",
        "context.args has owner.team && context.args.owner.team == \"a\"",
    ] {
        let policy =
            over(&forbid(put, condition), &known(false)).unwrap_or_else(|errors| panic!("{condition}: {errors:?}"));
        assert!(policy.notes().is_empty(), "{condition}: {:?}", policy.notes());
    }
    for (condition, words) in [
        (
            "context.args has pth && context.args.pth == \"x\"",
            ["no tool that it is about has the argument `pth`"].as_slice(),
        ),
        ("context.args.pth == \"x\"", &["no tool that it is about has the argument `pth`"]),
        ("context.args has owner && context.args.owner has tem", &["the argument `owner.tem`"]),
        ("context.args.path == 3", &["for `vault/kv.put`"]),
        ("context.args.path > 3", &["for `vault/kv.put`", "Long"]),
        ("context.args.version > 3", &["for `vault/kv.put`", "version"]),
        ("context.args has version && context.args.version like \"3*\"", &["for `vault/kv.put`", "String"]),
        ("context.args has ratio && context.args.ratio < 1", &["for `vault/kv.put`"]),
        ("context.args has tags && context.args.tags.contains(3)", &["for `vault/kv.put`"]),
        ("context.args has tags && context.args.tags == \"x\"", &["for `vault/kv.put`"]),
        ("context.args has force && context.args.force == \"yes\"", &["for `vault/kv.put`"]),
        ("context.args.path == \"x\" && resource.efect == \"read\"", &["efect"]),
    ] {
        refused(&forbid(put, condition), &known(false), words);
    }
}

#[test]
fn a_policy_is_held_only_to_the_tools_that_it_can_be_about() {
    // `version` is an integer of `kv.put` and a string of `kv.read`; `seal` has none.
    for (resource, condition) in [
        ("resource", "resource.name == \"kv.put\" && context.args has version && context.args.version > 3"),
        ("resource", "resource.effect == \"write\" && context.args has version && context.args.version > 3"),
        ("resource", "resource.name == \"kv.read\" && context.args has version && context.args.version like \"v*\""),
        ("resource in Backend::\"vault\"", "context.args has path && context.args.path like \"secret/*\""),
    ] {
        assert!(over(&forbid(resource, condition), &known(false)).is_ok(), "{condition}");
    }
    let number = "context.args has version && context.args.version > 3";
    refused(&forbid("resource", number), &known(false), &["for `vault/kv.read`"]);
    let unasked = forbid("resource in Backend::\"vault\"", "context.args.path == \"x\"");
    let errors = over(&unasked, &known(false)).map(|_| ()).expect_err("`path` may be missing, and `seal` has none");
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors.iter().any(|error| error.contains("for `vault/kv.read`")), "{errors:?}");
    assert!(errors.iter().any(|error| error.contains("for `vault/seal`")), "{errors:?}");
    refused(&forbid("resource in Backend::\"vault\"", number), &known(true), &["for `vault/kv.read`"]);
}

#[test]
fn what_has_no_type_is_not_held_to_one_and_the_operator_is_told() {
    let open = forbid(
        "resource == Tool::\"vault/kv.put\"",
        "context.args has either && context.args.either == Json::\"null\"",
    );
    let policy = over(&open, &known(false)).expect("an argument of any type");
    assert!(policy.notes()[0].contains("not type-checked"), "{:?}", policy.notes());
    let unknown = forbid("resource in Backend::\"git\"", "context.args.n == 3");
    let policy = over(&unknown, &known(true)).expect("a tool that may have it");
    assert!(policy.notes()[0].contains("not type-checked"), "{:?}", policy.notes());
    let nothing =
        over(&forbid("resource == Tool::\"vault/seal\"", "true"), &known(false)).expect("no argument is read");
    assert!(nothing.notes().is_empty());
}
