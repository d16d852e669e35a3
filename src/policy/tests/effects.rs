//! Effects that depend on arguments: calls are judged by the one they have, lists by all that are possible.

use serde_json::json;

use super::*;
use crate::catalog::Varies;
use crate::catalog::When;

/// Reads when it lists, writes when it sets, destroys otherwise.
fn rollout() -> Arc<Decl> {
    let when =
        |values: serde_json::Value| When(vec![("action".to_owned(), values.as_array().expect("values").clone())]);
    let rules = vec![(when(json!(["list", "get"])), Effect::Read), (when(json!(["set"])), Effect::Write)];
    let decl = Decl::plain(Kind::Tool, "vault".into(), "rollout", Effect::Destroy);
    Arc::new(decl.varying(Varies::by_rules(rules, Effect::Destroy)))
}

#[test]
fn a_mode_admits_the_calls_that_stay_below_it_and_lists_the_tool_for_them() {
    let policy = cedar("permit (principal, action, resource);");
    let (alice, decl) = (caller("alice", &[]), rollout());
    for (mode, args, expected) in [
        (Mode::ReadOnly, r#"{"action": "list"}"#, true),
        (Mode::ReadOnly, r#"{"action": "set"}"#, false),
        (Mode::ReadOnly, r#"{"action": "undo"}"#, false),
        (Mode::NonDestructive, r#"{"action": "set"}"#, true),
        (Mode::NonDestructive, "{}", false),
        (Mode::NonDestructive, r#"{"action": ["list"]}"#, false),
        (Mode::Full, r#"{"action": "undo"}"#, true),
    ] {
        let context = Context { mode, ..noon() };
        let outcome = judge(&policy, &alice, &decl, args, &context).map(drop);
        assert_eq!(outcome, if expected { Ok(()) } else { Err((Reason::Ceiling, true)) }, "{mode:?} {args}");
        assert!(policy.lists(&alice, &decl, &context), "{mode:?}");
    }
}

#[test]
fn policies_see_the_effect_of_the_call() {
    let policy = cedar(r#"permit (principal, action, resource) when { resource.effect == "write" };"#);
    let (alice, decl) = (caller("alice", &[]), rollout());
    assert!(judge(&policy, &alice, &decl, r#"{"action": "set"}"#, &noon()).is_ok());
    assert_eq!(judge(&policy, &alice, &decl, r#"{"action": "get"}"#, &noon()), Err((Reason::NotGranted, true)));
    let read_only = Context { mode: Mode::ReadOnly, ..noon() };
    assert!(!policy.lists(&alice, &decl, &read_only), "what it may do is above the mode");
    assert_eq!(judge(&policy, &alice, &decl, r#"{"action": "set"}"#, &read_only), Err((Reason::Ceiling, false)));
}

#[test]
fn what_is_asked_of_a_task_is_allowed_where_the_worst_call_is() {
    let (alice, decl) = (caller("alice", &[]), rollout());
    let follow_up = |policy: &Policy, mode: Mode| {
        let mut call = call(&decl, None);
        if let Operation::Post(message) = &mut call.operation {
            message.method = Some(Method::TasksGet);
        }
        policy.authorize(&alice, call, &Context { mode, ..noon() }).map(drop).map_err(|denial| denial.reason)
    };
    let all = cedar("permit (principal, action, resource);");
    assert_eq!(follow_up(&all, Mode::Full), Ok(()));
    assert_eq!(follow_up(&all, Mode::ReadOnly), Err(Reason::Ceiling));
    let reads = cedar(r#"permit (principal, action, resource) when { resource.effect == "read" };"#);
    assert_eq!(follow_up(&reads, Mode::Full), Err(Reason::NotGranted));
}

#[test]
fn an_effect_that_no_call_of_it_has_counts_as_the_highest() {
    let policy = cedar("permit (principal, action, resource);");
    let mut odd = call(&rollout(), Some(r#"{"action": "list"}"#));
    odd.effect = Effect::ReadSensitive;
    let read_only = Context { mode: Mode::ReadOnly, ..noon() };
    let denial = policy.authorize(&caller("alice", &[]), odd, &read_only).expect_err("above the mode");
    assert_eq!(denial.reason, Reason::Ceiling);
}
