//! Shadow mode: what it would change is told of calls and lists alike, and nothing changes.

use super::*;

const READ: &str = "@id(\"read\") permit (principal, action, resource) when { resource.effect == \"read\" };";

fn shadows(policy: &Policy, decl: &Arc<Decl>, args: &str) -> (bool, Vec<String>) {
    match policy.authorize(&caller("alice", &[]), call(decl, Some(args)), &noon()) {
        Ok(permit) => (true, permit.shadows().to_vec()),
        Err(denial) => (false, denial.shadows.to_vec()),
    }
}

#[test]
fn a_shadow_is_told_where_it_would_change_the_answer_and_changes_none() {
    let trial = "@id(\"no-x\") @shadow(\"true\") forbid (principal, action, resource) when { resource.name == \"x\" };";
    let more =
        "@id(\"write\") @shadow(\"true\") permit (principal, action, resource) when { resource.effect == \"write\" };";
    let policy = policy(&[], &[READ, trial, more]);
    assert_eq!(shadows(&policy, &tool("x", Effect::Read), "{}"), (true, vec!["no-x".to_owned()]));
    assert_eq!(shadows(&policy, &tool("y", Effect::Read), "{}"), (true, vec![]));
    assert_eq!(shadows(&policy, &tool("y", Effect::Write), "{}"), (false, vec!["write".to_owned()]));
    // Each for itself: `no-x` alone changes nothing of what is denied, and `write` alone would allow it.
    assert_eq!(shadows(&policy, &tool("x", Effect::Write), "{}"), (false, vec!["write".to_owned()]));
    assert_eq!(shadows(&policy, &tool("x", Effect::Destroy), "{}"), (false, vec![]));
}

#[test]
fn lists_tell_the_same_and_are_not_remembered_meanwhile() {
    let trial = "@id(\"no-x\") @shadow(\"true\") forbid (principal, action, resource) when { resource.name == \"x\" };";
    let policy = policy(&[], &[READ, trial]);
    let alice = caller("alice", &[]);
    let (x, y) = (tool("x", Effect::Read), tool("y", Effect::Read));
    let listed = policy.list(&alice, &[x, y.clone()], &noon());
    assert_eq!(listed.listed, [true, true]);
    assert_eq!((listed.cacheable, listed.shadows.to_vec()), (false, vec!["no-x".to_owned()]));
    let listed = policy.list(&alice, &[y], &noon());
    assert_eq!((listed.cacheable, listed.shadows.len()), (true, 0));
}

#[test]
fn arguments_count_in_the_shadow_as_in_force() {
    let trial = "@id(\"odd\") @shadow(\"true\") forbid (principal, action, resource) when { context.args has n && context.args.n == 1 };";
    let policy = policy(&[], &[READ, trial]);
    let x = tool("x", Effect::Read);
    assert_eq!(shadows(&policy, &x, r#"{"n": 1}"#), (true, vec!["odd".to_owned()]));
    assert_eq!(shadows(&policy, &x, r#"{"n": 2}"#), (true, vec![]));
}

#[test]
fn a_grant_in_the_shadow_is_one_thing_and_its_scope_is_not_asked_for() {
    let grant = Grant { shadow: true, ..scope_grant("s", &[Effect::Read], &[]) };
    let policy = policy(&[grant], &[]);
    let alice = caller("alice", &["s"]);
    for decl in [tool("x", Effect::Read), decl(Kind::Backend, "vault")] {
        let denial = policy.authorize(&alice, call(&decl, None), &noon()).expect_err("not in force");
        assert_eq!(denial.shadows.to_vec(), ["grant-1"]);
    }
    assert!(policy.scopes().is_empty());
    assert!(policy.origin("grant-1").is_some_and(|origin| origin.shadow));
}

#[test]
fn too_many_shadows_are_refused() {
    let many: String =
        (0..17).map(|n| format!("@id(\"p{n}\") @shadow(\"true\") permit (principal, action, resource);\n")).collect();
    let config = Config { sources: vec![("many.cedar".to_owned(), many)], ..Config::default() };
    let errors = Policy::new(&config).expect_err("too many");
    assert!(errors.iter().any(|error| error.to_string().contains("more than 16 policies")), "{errors:?}");
}

#[test]
fn how_somebody_logged_in_is_for_policies_to_ask() {
    let policy = cedar(
        "permit (principal, action, resource) when { principal.amr.contains(\"mfa\") && principal has auth_time && \
         context.now.durationSince(principal.auth_time) < duration(\"15m\") };",
    );
    let login = |amr: &[&str], minutes: u64| {
        let auth_time = Some(noon().now - Duration::from_secs(minutes * 60));
        let amr = amr.iter().map(|means| (*means).to_owned()).collect();
        Principal::verified(Claims { amr, auth_time, ..claims("alice", &[]) })
    };
    let x = tool("x", Effect::Read);
    for (principal, expected) in [
        (login(&["mfa"], 14), true),
        (login(&["mfa"], 15), false),
        (login(&["pwd"], 1), false),
        (caller("alice", &[]), false),
    ] {
        assert_eq!(judge(&policy, &principal, &x, "{}", &noon()).is_ok(), expected);
    }
    assert!(policy.whom().contains(&Whom::Amr("mfa".to_owned())));
}
