//! Sources: what is refused, where the error is said to stand, and what policies on arguments are held to.

use super::*;

#[track_caller]
fn errors(text: &str) -> Vec<String> {
    let sources = vec![("site.cedar".to_owned(), text.to_owned())];
    let errors = Policy::new(&Config { sources, ..Config::default() }).expect_err("a source that does not load");
    errors.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn one_error(text: &str, place: &str, words: &[&str]) {
    let errors = errors(text);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with(&format!("site.cedar:{place}: ")), "{errors:?}");
    for word in words {
        assert!(errors[0].contains(word), "{word}: {errors:?}");
    }
}

#[test]
fn a_syntax_error_is_told_with_its_place() {
    one_error("// ä\npermit (principal, action resource);", "2:27", &["unexpected token"]);
}

#[test]
fn a_type_error_is_told_with_its_place_and_policy() {
    one_error(
        "permit (principal, action, resource)\nwhen { resource.efect == \"read\" };",
        "2:8",
        &["site.cedar#1", "efect", "not found"],
    );
    one_error("permit (principal, action == Action::\"cal\", resource);", "1:30", &["cal"]);
    one_error("permit (principal in Scop::\"x\", action, resource);", "1:22", &["Scop"]);
    one_error("permit (principal, action, resource) when { principal.tenant == \"x\" };", "1:45", &["tenant"]);
    one_error("permit (principal, action, resource) when { context.ip == ip(\"10.0.0.1\") };", "1:45", &["ip"]);
}

#[test]
fn a_policy_on_arguments_is_validated_in_everything_else() {
    let fine = cedar(
        "permit (principal, action, resource) when { context.args has n && context.args.n > 3 || !(context.args.s like \"x*\") };",
    );
    assert_eq!(fine.notes().len(), 1, "{:?}", fine.notes());
    assert!(fine.notes()[0].starts_with("`0.cedar#1` reads `context.args`"));
    one_error(
        "permit (principal, action, resource);\npermit (principal, action, resource) when { context.args.n == 3 && resource.efect == \"read\" };",
        "2:1",
        &["site.cedar#2", "efect"],
    );
    one_error("permit (principal in Scop::\"x\", action, resource) when { context.args.n == 3 };", "1:1", &["Scop"]);
}

#[test]
fn context_cannot_be_used_as_a_whole() {
    one_error("permit (principal, action, resource) when { context == {} };", "1:1", &["name the member of `context`"]);
}

#[test]
fn all_errors_come_at_once() {
    let sources = vec![
        ("a.cedar".to_owned(), "permit (principal, action, resource) when { resource.x == 1 }; permit (principal, action, resource) when { resource.y == 1 };".to_owned()),
        ("b.cedar".to_owned(), "permit".to_owned()),
    ];
    let errors =
        Policy::new(&Config { grants: vec![Grant::default()], sources, ..Config::default() }).expect_err("wrong");
    let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let starts = ["grants[0]: ", "a.cedar:1:45: ", "a.cedar:1:", "b.cedar:1:"];
    assert_eq!(told.len(), starts.len(), "{told:#?}");
    for (told, start) in told.iter().zip(starts) {
        assert!(told.starts_with(start), "{told}");
    }
}

#[test]
fn an_id_belongs_to_one_policy() {
    one_error(
        "@id(\"a\") permit (principal, action, resource);\n@id(\"a\") forbid (principal, action, resource);",
        "2:1",
        &["`a` is the id of two policies"],
    );
    one_error("@id(\"grant-1\") permit (principal, action, resource);", "1:1", &["belong to grants"]);
}

#[test]
fn what_would_be_enforced_against_its_words_is_refused() {
    one_error("@shadow(\"no\") permit (principal, action, resource);", "1:1", &["`@shadow` can only be \"true\""]);
    one_error("permit (principal == ?principal, action, resource);", "1:1", &["template"]);
}

#[test]
fn an_empty_source_is_no_error() {
    assert!(cedar("// nothing here yet\n").notes().is_empty());
}
