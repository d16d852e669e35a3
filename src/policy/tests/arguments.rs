//! Conditions on arguments of every JSON type; what was not sent or is of another type denies.

use super::*;

fn outcome(policy: &Policy, decl: &Arc<Decl>, args: &str) -> &'static str {
    match judge(policy, &caller("alice", &[]), decl, args, &noon()) {
        Ok(_) => "allowed",
        Err((reason, _)) => reason.as_str(),
    }
}

/// A tool that says nothing of its arguments: each value as it comes.
#[test]
fn every_json_value_can_be_decided_on() {
    let decl = tool("t", Effect::Read);
    for (condition, args, expected) in [
        (r#"context.args.x == Json::"null""#, r#"{"x": null}"#, "allowed"),
        (r#"context.args.x == Json::"null""#, r#"{"x": "null"}"#, "not_granted"),
        (r#"context.args.x != Json::"null""#, r#"{"x": 0}"#, "allowed"),
        (r#"context.args.x == decimal("0.25")"#, r#"{"x": 0.25}"#, "allowed"),
        (r#"context.args.x == decimal("0.25")"#, r#"{"x": 2.5e-1}"#, "allowed"),
        (r#"context.args.x.lessThan(decimal("0.5"))"#, r#"{"x": 0.4999}"#, "allowed"),
        (r#"context.args.x.lessThan(decimal("0.5"))"#, r#"{"x": 0.49999}"#, "error"),
        (r#"context.args.x.lessThan(decimal("0.5"))"#, r#"{"x": "0.4"}"#, "error"),
        (r#"context.args.x == 3"#, r#"{"x": 3.0}"#, "allowed"),
        (r#"context.args.x == 3"#, r#"{"x": 3.5}"#, "error"),
        (r#"context.args.x == Json::"18446744073709551617""#, r#"{"x": 18446744073709551617}"#, "allowed"),
        (r#"context.args.x == Json::"18446744073709551617""#, r#"{"x": 18446744073709551616}"#, "not_granted"),
        (r#"context.args.x > 3"#, r#"{"x": 18446744073709551617}"#, "error"),
        (r#"context.args.x == Json::"1e99""#, r#"{"x": 10E98}"#, "allowed"),
        (r#"context.args.x.contains(Json::"null")"#, r#"{"x": [1, "a", null, [2]]}"#, "allowed"),
        (r#"context.args.x.contains([2])"#, r#"{"x": [1, "a", null, [2]]}"#, "allowed"),
        (r#"context.args.x == [1, "a"]"#, r#"{"x": ["a", 1, 1]}"#, "allowed"),
        (r#"context.args.x.a.b.c"#, r#"{"x": {"a": {"b": {"c": true}}}}"#, "allowed"),
        (r#"context.args.x.a.b.c"#, r#"{"x": {"a": {"b": {"c": null}}}}"#, "error"),
        (r#"context.args.x == {a: Json::"null"}"#, r#"{"x": {"a": null}}"#, "allowed"),
        (r#"context.args.x.isEmpty()"#, r#"{"x": []}"#, "allowed"),
        (r#"context.args["odd name"] == "y""#, r#"{"odd name": "y"}"#, "allowed"),
    ] {
        let policy = cedar(&format!("permit (principal, action, resource) when {{ {condition} }};"));
        assert_eq!(outcome(&policy, &decl, args), expected, "{condition} {args}");
    }
}

#[test]
fn a_comparison_with_another_type_denies_as_a_missing_argument_does() {
    let everything = "permit (principal, action, resource);";
    let decl = tool("t", Effect::Read);
    for (forbidden, harmless, wrong) in [
        (r#"context.args.x == "prod""#, r#""dev""#, [r#"["prod"]"#, "1", "null", r#"{"a": "prod"}"#]),
        (r#""prod" == context.args.x"#, r#""dev""#, [r#"["prod"]"#, "1", "null", "true"]),
        (r#"["prod", "live"].contains(context.args.x)"#, r#""dev""#, [r#"["prod"]"#, "1", "null", "0.5"]),
        (r#"context.args.x == 1"#, "2", [r#""1""#, "1.5", "null", "18446744073709551617"]),
        (r#"context.args.x == true"#, "false", [r#""true""#, "1", "null", "[true]"]),
        (r#"context.args.x == decimal("1.5")"#, "2.5", [r#""1.5""#, "1.50000001", "null", "true"]),
        (r#"context.args.x.contains("prod")"#, r#"["dev"]"#, [r#""prod""#, "1", "null", r#"{"prod": 1}"#]),
        (r#"context.args.x == ["prod"]"#, r#"["dev"]"#, [r#""prod""#, "1", "null", r#"{"prod": 1}"#]),
        (r#"context.args.x == principal.subject"#, r#""bob""#, [r#"["alice"]"#, "1", "null", "true"]),
        (r#"context.args.x != "dev""#, r#""dev""#, [r#"["dev"]"#, "1", "null", "true"]),
    ] {
        let policy = cedar(&format!("{everything} forbid (principal, action, resource) when {{ {forbidden} }};"));
        assert_eq!(outcome(&policy, &decl, &format!(r#"{{"x": {harmless}}}"#)), "allowed", "{forbidden}");
        for value in wrong {
            assert_eq!(outcome(&policy, &decl, &format!(r#"{{"x": {value}}}"#)), "error", "{forbidden} {value}");
        }
        assert_eq!(outcome(&policy, &decl, "{}"), "error", "{forbidden}, not sent");
    }
}

#[test]
fn an_argument_that_is_not_as_declared_denies_wherever_it_is_read() {
    let decl = declared(
        "t",
        Effect::Read,
        r#"{"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"},
            "n": {"type": "number"}, "i": {"type": "integer"}, "list": {"type": "array", "items": {"type": "string"}}}}"#,
    );
    for (condition, args, expected) in [
        ("context.args.a == context.args.b", r#"{"a": "x", "b": "x"}"#, "allowed"),
        ("context.args.a == context.args.b", r#"{"a": "x", "b": "y"}"#, "not_granted"),
        ("context.args.a == context.args.b", r#"{"a": [], "b": []}"#, "error"),
        (r#"context.args.list.contains("x")"#, r#"{"list": ["x"]}"#, "allowed"),
        (r#"context.args.list.contains("x")"#, r#"{"list": [["x"]]}"#, "error"),
        (r#"context.args.list.contains("x")"#, r#"{"list": ["x", 1]}"#, "error"),
        (r#"context.args.n.greaterThan(decimal("0.5"))"#, r#"{"n": 1}"#, "allowed"),
        (r#"context.args.n.greaterThan(decimal("0.5"))"#, r#"{"n": 0.25}"#, "not_granted"),
        ("context.args.i > 2", r#"{"i": 3.0, "a": null}"#, "allowed"),
        ("context.args has a", r#"{"a": null}"#, "allowed"),
        (r#"context.args.more == Json::"null""#, r#"{"more": null}"#, "allowed"),
    ] {
        let policy = cedar(&format!("permit (principal, action, resource) when {{ {condition} }};"));
        assert_eq!(outcome(&policy, &decl, args), expected, "{condition} {args}");
    }
}
