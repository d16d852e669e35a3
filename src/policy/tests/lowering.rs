//! Grants: what they lower to, what is refused, and that no value can say more than it should.

use proptest::prelude::*;

use super::*;

#[test]
fn a_grant_lowers_to_policies_that_can_be_read() {
    let policy = policy(&[scope_grant("mcp.write", &[Effect::Write, Effect::Read], &["vault/kv.*", "git*/*"])], &[]);
    let expected = r#"@id("grant-1")
permit (
  principal in Scope::"mcp.write",
  action in [Action::"call", Action::"complete", Action::"get", Action::"read"],
  resource
)
when { ["read", "write"].contains(resource.effect) }
when { (resource.backend == "vault" && resource.name like "kv.*") || (resource.backend like "git*" && resource.name like "*") };

@id("grant-1-connect")
permit (
  principal in Scope::"mcp.write",
  action == Action::"connect",
  resource
)
when { resource.backend == "vault" || resource.backend like "git*" };
"#;
    assert_eq!(policy.sources(), expected);
}

#[test]
fn a_grant_allows_exactly_the_effects_it_names() {
    for effect in Effect::ALL {
        let policy = policy(&[scope_grant("s", &[effect], &[])], &[]);
        for asked in Effect::ALL {
            let judged = judge(&policy, &caller("alice", &["s"]), &tool("t", asked), "{}", &noon());
            let expected =
                if asked == effect { Ok(vec!["grant-1".to_owned()]) } else { Err((Reason::NotGranted, false)) };
            assert_eq!(judged, expected, "{effect:?} asked for {asked:?}");
        }
    }
}

#[test]
fn a_grant_is_for_whom_it_names() {
    let allow = vec![Effect::Read];
    let grants = [
        Grant { scope: Some("x".into()), allow: allow.clone(), ..Grant::default() },
        Grant { role: Some("x".into()), allow: allow.clone(), ..Grant::default() },
        Grant { group: Some("x".into()), allow: allow.clone(), ..Grant::default() },
        Grant { subject: Some("x".into()), allow: allow.clone(), ..Grant::default() },
    ];
    let x = || BTreeSet::from(["x".to_owned()]);
    let callers = [
        claims("a", &["x"]),
        Claims { roles: x(), ..claims("a", &[]) },
        Claims { groups: x(), ..claims("a", &[]) },
        claims("x", &[]),
    ];
    for (index, grant) in grants.iter().enumerate() {
        let policy = policy(std::slice::from_ref(grant), &[]);
        for (other, claims) in callers.iter().enumerate() {
            let principal = Principal::verified(claims.clone());
            assert_eq!(
                judge(&policy, &principal, &tool("t", Effect::Read), "{}", &noon()).is_ok(),
                index == other,
                "{grant:?} {claims:?}"
            );
            assert_eq!(policy.lists(&principal, &decl(Kind::Backend, "vault"), &noon()), index == other);
            assert_eq!(grant.is_for(&principal), index == other, "what is shown is what is judged");
        }
    }
    let everybody = policy(&[Grant { allow, ..Grant::default() }], &[]);
    for claims in callers {
        assert!(judge(&everybody, &Principal::verified(claims), &tool("t", Effect::Read), "{}", &noon()).is_ok());
    }
}

#[test]
fn a_grant_connects_to_the_backends_it_reaches_only() {
    let policy = policy(&[scope_grant("s", &[Effect::Write], &["va*/kv.*"])], &[]);
    let alice = caller("alice", &["s"]);
    for (backend, reached) in [("vault", true), ("va", true), ("git", false)] {
        let decl = Arc::new(Decl::plain(Kind::Backend, backend.into(), backend, Effect::Read));
        assert_eq!(judge(&policy, &alice, &decl, "{}", &noon()).is_ok(), reached, "{backend}");
        assert_eq!(policy.scopes_for(backend).len(), usize::from(reached), "{backend}");
    }
    assert!(judge(&policy, &alice, &tool("kv.put", Effect::Write), "{}", &noon()).is_ok());
    assert!(judge(&policy, &alice, &tool("sys.put", Effect::Write), "{}", &noon()).is_err());
}

#[test]
fn a_star_does_not_cross_from_backend_to_tool() {
    let policy = policy(&[scope_grant("s", &[Effect::Read], &["v*/b"])], &[]);
    let alice = caller("alice", &["s"]);
    assert!(judge(&policy, &alice, &tool("b", Effect::Read), "{}", &noon()).is_ok());
    assert!(judge(&policy, &alice, &tool("a/b", Effect::Read), "{}", &noon()).is_err());
}

#[test]
fn scopes_are_told_in_order_and_once() {
    let grants = [
        scope_grant("b", &[Effect::Read], &[]),
        Grant { role: Some("r".into()), allow: vec![Effect::Read], ..Grant::default() },
        scope_grant("a", &[Effect::Read], &["git/*"]),
        scope_grant("b", &[Effect::Write], &["git/*"]),
    ];
    let policy = policy(&grants, &[]);
    assert_eq!(policy.scopes(), ["b", "a"]);
    assert_eq!(policy.scopes_for("vault"), ["b"]);
    assert_eq!(policy.scopes_for("git"), ["b", "a"]);
}

#[test]
fn every_wrong_grant_is_named_at_once() {
    let grants = [
        scope_grant("s", &[Effect::Read], &["vault/kv.?", "kv", "/x", "x/", "a[b]/c"]),
        scope_grant("s", &[Effect::Read], &["*", "**/*"]),
        Grant { scope: Some("s".into()), role: Some("r".into()), allow: vec![Effect::Read], ..Grant::default() },
        scope_grant("s", &[], &[]),
        scope_grant("", &[Effect::Read], &[]),
    ];
    let errors = Policy::new(&Config { grants: grants.to_vec(), ..Config::default() }).expect_err("all wrong");
    let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let expected = [
        "grants[0]: `vault/kv.?`: `?` has no meaning in a tool pattern, only `*` has",
        "grants[0]: `kv` must name a backend and a tool, as in `vault/kv.*`",
        "grants[0]: `/x` must name a backend and a tool, as in `vault/kv.*`",
        "grants[0]: `x/` must name a backend and a tool, as in `vault/kv.*`",
        "grants[0]: `a[b]/c`: `[` has no meaning in a tool pattern, only `*` has",
        "grants[2]: names a `scope` and a `role`; a grant is for one of scope, role, group and subject",
        "grants[3]: `allow` names no effect",
        "grants[4]: `scope` is empty",
    ];
    assert_eq!(told, expected);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn no_value_says_more_than_itself(value in "\\PC{1,12}|[\"\\\\'*(){};,\n\r\t\u{0}\u{202e}\u{301}a]{1,12}", other in "[\"*a]{1,4}") {
        let whom = [
            Grant { scope: Some(value.clone()), ..Grant::default() },
            Grant { role: Some(value.clone()), ..Grant::default() },
            Grant { group: Some(value.clone()), ..Grant::default() },
            Grant { subject: Some(value.clone()), ..Grant::default() },
        ];
        for grant in whom {
            let policy = policy(&[Grant { allow: vec![Effect::Read], ..grant.clone() }], &[]);
            let holder = |value: &str| {
                let set = |on: bool| if on { BTreeSet::from([value.to_owned()]) } else { BTreeSet::new() };
                Principal::verified(Claims {
                    scopes: set(grant.scope.is_some()),
                    roles: set(grant.role.is_some()),
                    groups: set(grant.group.is_some()),
                    ..claims(if grant.subject.is_some() { value } else { "alice" }, &[])
                })
            };
            let decl = tool("t", Effect::Read);
            prop_assert!(policy.lists(&holder(&value), &decl, &noon()));
            prop_assert_eq!(policy.lists(&holder(&other), &decl, &noon()), other == value);
            prop_assert!(!policy.lists(&holder(&value), &tool("t", Effect::Write), &noon()));
        }
    }

    #[test]
    fn no_tool_pattern_says_more_than_itself(name in "[\"\\\\';()|&a\n\u{202e}]{1,8}") {
        // A backslash in a pattern is refused; everything else means itself.
        let grant = scope_grant("s", &[Effect::Read], &[&format!("vault/{name}"), &format!("{name}/x*")]);
        let made = Policy::new(&Config { grants: vec![grant], ..Config::default() });
        prop_assert_eq!(made.is_err(), name.contains('\\'));
        if let Ok(policy) = made {
            let alice = caller("alice", &["s"]);
            prop_assert!(policy.lists(&alice, &tool(&name, Effect::Read), &noon()));
            let longer = format!("{name}.");
            prop_assert!(!policy.lists(&alice, &tool(&longer, Effect::Read), &noon()));
            let there = Decl::plain(Kind::Tool, name.as_str().into(), "x\"y", Effect::Read);
            prop_assert!(policy.lists(&alice, &there, &noon()));
        }
    }
}
