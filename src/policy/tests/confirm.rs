//! Which permits want a person's yes.

use super::*;

/// What a permitted call's person is told; `None`: nobody is asked.
#[track_caller]
fn asks(policy: &Policy, principal: &Principal, decl: &Arc<Decl>, args: &str) -> Option<String> {
    let permit = policy.authorize(principal, call(decl, Some(args)), &noon()).expect("allowed");
    permit.confirm().map(ToString::to_string)
}

#[test]
fn a_call_is_asked_about_if_everything_that_allows_it_asks() {
    let policy = cedar(
        r#"@id("a") @confirm("Really?") permit (principal in Scope::"w", action, resource);
        @id("b") @confirm permit (principal in Scope::"w", action, resource);
        @id("c") permit (principal in Scope::"free", action, resource);
        @id("d") permit (principal in Scope::"w", action, resource) when { context.args has dry && context.args.dry };"#,
    );
    let (asked, free) = (caller("alice", &["w"]), caller("bob", &["w", "free"]));
    let tool = tool("t", Effect::Write);
    assert_eq!(asks(&policy, &asked, &tool, "{}").as_deref(), Some("Really?"));
    assert_eq!(asks(&policy, &free, &tool, "{}"), None, "one that asks nobody is enough");
    assert_eq!(asks(&policy, &asked, &tool, r#"{"dry":true}"#), None, "also for these arguments only");
    assert!(policy.confirms() && policy.lists(&asked, &tool, &noon()));
}

#[test]
fn a_grant_can_ask_and_connects_without_asking() {
    let grant = Grant { confirm: true, ..scope_grant("w", &[Effect::Write], &[]) };
    let policy = policy(&[grant], &[]);
    let alice = caller("alice", &["w"]);
    assert_eq!(asks(&policy, &alice, &tool("t", Effect::Write), "{}").as_deref(), Some(""));
    let backend = decl(Kind::Backend, "vault");
    assert_eq!(asks(&policy, &alice, &backend, "{}"), None);
    assert!(!super::policy(&[scope_grant("w", &[Effect::Write], &[])], &[]).confirms());
}

#[test]
fn what_is_forbidden_cannot_be_asked_for() {
    let sources = vec![("f.cedar".to_owned(), "@confirm(\"x\") forbid (principal, action, resource);".to_owned())];
    let errors = Policy::new(&Config { mode: Mode::Full, grants: Vec::new(), sources }).expect_err("an error");
    assert!(errors.iter().any(|error| error.to_string().contains("`@confirm` is for `permit`")), "{errors:?}");
}
