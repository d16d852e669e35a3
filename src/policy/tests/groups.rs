//! A caller whose groups are not known gets nothing by a group and is spared nothing by one.

use super::*;

/// In no group, in these, and with groups that are not known.
fn in_groups(groups: &[&str]) -> Principal {
    let groups = groups.iter().map(|group| (*group).to_owned()).collect();
    Principal::verified(Claims { groups, ..claims("alice", &["mcp.read"]) })
}

fn unknown() -> Principal {
    Principal::verified(Claims { groups_unknown: true, ..claims("alice", &["mcp.read"]) })
}

#[track_caller]
fn may(policy: &Policy, principal: &Principal, effect: Effect) -> bool {
    let tool = tool("t", effect);
    let judged = judge(policy, principal, &tool, "{}", &noon());
    let listed = policy.lists(principal, &tool, &noon());
    assert!(judged.is_err() || listed, "allowed and not listed");
    assert!(listed || judged.is_err(), "not listed and allowed");
    judged.is_ok()
}

#[test]
fn a_grant_by_group_is_not_for_them_and_a_grant_by_scope_is() {
    let by_group = Grant { group: Some("g".into()), allow: vec![Effect::Write], ..Grant::default() };
    let policy = policy(&[by_group, scope_grant("mcp.read", &[Effect::Read], &[])], &[]);
    assert!(may(&policy, &in_groups(&["g"]), Effect::Write));
    assert!(!may(&policy, &unknown(), Effect::Write));
    assert!(may(&policy, &unknown(), Effect::Read));
}

#[test]
fn a_forbid_by_group_is_for_them_and_only_for_what_it_forbids() {
    let policy = cedar(
        r#"permit (principal, action, resource);
           @id("no") forbid (principal in Group::"contractors", action, resource) when { resource.effect == "write" };"#,
    );
    assert!(may(&policy, &in_groups(&[]), Effect::Write));
    assert!(!may(&policy, &in_groups(&["contractors"]), Effect::Write));
    assert!(!may(&policy, &unknown(), Effect::Write));
    assert!(may(&policy, &unknown(), Effect::Read));
    let denied = judge(&policy, &unknown(), &tool("t", Effect::Write), "{}", &noon());
    assert_eq!(denied, Err((Reason::Forbidden, false)));
}

/// Each with whether a caller whose groups are not known may.
#[test]
fn whichever_way_a_condition_asks_for_a_group_the_answer_is_the_worse_one() {
    const ALL: &str = "permit (principal, action, resource);";
    for (text, expected) in [
        (r#"permit (principal, action, resource) when { principal in Group::"g" };"#, false),
        (r#"permit (principal, action, resource) unless { principal in Group::"g" };"#, false),
        (r#"permit (principal, action, resource) when { !(principal in Group::"g") };"#, false),
        (r#"permit (principal, action, resource) when { (principal in Group::"g") == false };"#, false),
        (r#"permit (principal, action, resource) when { principal in [Group::"g", Group::"h"] };"#, false),
        (r#"permit (principal is User in Group::"g", action, resource);"#, false),
        (r#"permit (principal, action, resource) when { principal is User in Group::"g" };"#, false),
        (
            r#"permit (principal, action, resource) when { principal in Scope::"mcp.read" || principal in Group::"g" };"#,
            true,
        ),
        (
            r#"permit (principal, action, resource) when { principal in Scope::"other" || principal in Group::"g" };"#,
            false,
        ),
        (r#"permit (principal, action, resource) when { if principal in Group::"g" then true else true };"#, false),
        (
            r#"permit (principal, action, resource) when { if context.mtls then principal in Group::"g" else true };"#,
            true,
        ),
        (
            r#"permit (principal, action, resource) when { if context.mtls then true else principal in Group::"g" };"#,
            false,
        ),
        (r#"forbid (principal, action, resource) when { principal in Group::"g" };"#, false),
        (r#"forbid (principal, action, resource) unless { principal in Group::"g" };"#, false),
        (r#"forbid (principal, action, resource) when { !(principal in Group::"g") };"#, false),
        (r#"forbid (principal, action, resource) when { principal in Group::"g" && context.mtls };"#, true),
        (r#"forbid (principal is User in Group::"g", action, resource);"#, false),
        (r#"forbid (principal is Service in Group::"g", action, resource);"#, true),
        (
            r#"forbid (principal, action, resource) when { principal in Group::"g" && principal in Scope::"other" };"#,
            true,
        ),
        (r#"forbid (principal, action, resource) when { principal in Scope::"other" };"#, true),
        (r#"forbid (principal, action, resource) when { principal.groups_unknown };"#, false),
    ] {
        let policy = if text.starts_with("permit") { cedar(text) } else { cedar(&format!("{ALL}\n{text}")) };
        assert_eq!(may(&policy, &unknown(), Effect::Read), expected, "{text}");
    }
}

#[test]
fn arguments_are_still_looked_at() {
    let policy = cedar(
        r#"permit (principal, action, resource);
           forbid (principal in Group::"g", action, resource) when { context.args has force && context.args.force };"#,
    );
    let tool = tool("t", Effect::Write);
    assert!(policy.lists(&unknown(), &tool, &noon()));
    assert!(judge(&policy, &unknown(), &tool, r#"{"force":false}"#, &noon()).is_ok());
    assert_eq!(judge(&policy, &unknown(), &tool, r#"{"force":true}"#, &noon()), Err((Reason::Forbidden, true)));
    assert!(judge(&policy, &in_groups(&[]), &tool, r#"{"force":true}"#, &noon()).is_ok());
}

/// Whatever the groups turn out to be, they could not do less than without them being known.
#[test]
fn what_is_allowed_with_unknown_groups_is_allowed_with_any_groups() {
    let conditions = [
        r#"principal in Group::"a""#,
        r#"principal in Group::"b""#,
        r#"principal in Scope::"mcp.read""#,
        r#"resource.effect == "read""#,
    ];
    let mut expressions: Vec<String> = conditions.iter().map(|one| (*one).to_owned()).collect();
    for one in conditions {
        expressions.push(format!("!({one})"));
        for other in conditions {
            expressions.push(format!("({one}) && !({other})"));
            expressions.push(format!("({one}) || !({other})"));
            expressions.push(format!("if ({one}) then ({other}) else !({other})"));
        }
    }
    let everybody: Vec<Principal> = [&[][..], &["a"], &["b"], &["a", "b"]].into_iter().map(in_groups).collect();
    let mut allowed = 0;
    for expression in &expressions {
        for kind in ["when", "unless"] {
            for text in [
                format!("permit (principal, action, resource) {kind} {{ {expression} }};"),
                format!(
                    "permit (principal, action, resource); forbid (principal, action, resource) {kind} {{ {expression} }};"
                ),
            ] {
                let policy = cedar(&text);
                for effect in [Effect::Read, Effect::Write] {
                    if may(&policy, &unknown(), effect) {
                        allowed += 1;
                        assert!(everybody.iter().all(|one| may(&policy, one, effect)), "{text}");
                    }
                }
            }
        }
    }
    assert!(allowed > 50, "it must not simply deny everything: {allowed}");
}

#[test]
fn guests_can_be_told() {
    let policy = cedar(
        r#"permit (principal, action, resource);
           forbid (principal, action, resource) when { principal.guest && resource.effect != "read" };"#,
    );
    let guest = Principal::verified(Claims { guest: true, ..claims("alice", &["mcp.read"]) });
    assert!(may(&policy, &guest, Effect::Read));
    assert!(!may(&policy, &guest, Effect::Write));
    assert!(may(&policy, &in_groups(&[]), Effect::Write), "the same subject as a member");
}
