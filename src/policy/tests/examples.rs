//! The policies that ship: each loads without a complaint and does what its comment says.

use super::*;

fn shipped(name: &str) -> (String, String) {
    let path = format!("{}/policies/{name}", env!("CARGO_MANIFEST_DIR"));
    (name.to_owned(), std::fs::read_to_string(&path).expect(&path))
}

#[track_caller]
fn load(name: &str, grants: &[Grant]) -> Policy {
    let config = Config { mode: Mode::Full, grants: grants.to_vec(), sources: vec![shipped(name)] };
    Policy::new(&config).expect("a shipped policy loads")
}

fn everything() -> Grant {
    Grant { allow: Effect::ALL.to_vec(), ..Grant::default() }
}

#[track_caller]
fn allowed(policy: &Policy, principal: &Principal, context: &Context) -> Vec<Effect> {
    let judged =
        |effect: &Effect| judge(policy, principal, &tool("t", *effect), r#"{"namespace": "dev"}"#, context).is_ok();
    Effect::ALL.into_iter().filter(judged).collect()
}

#[test]
fn every_shipped_policy_loads_and_says_first_what_it_is_for() {
    let folder = format!("{}/policies", env!("CARGO_MANIFEST_DIR"));
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .expect("policies")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    names.retain(|name| name.ends_with(".cedar"));
    names.sort();
    assert_eq!(
        names,
        [
            "break-glass.cedar",
            "business-hours.cedar",
            "non-destructive.cedar",
            "per-scope.cedar",
            "per-tenant.cedar",
            "read-only.cedar",
            "secrets-only-by-mtls.cedar"
        ]
    );
    for name in &names {
        assert!(shipped(name).1.starts_with("// "), "{name}");
        load(name, &[]);
    }
    Policy::new(&Config { sources: names.iter().map(|name| shipped(name)).collect(), ..Config::default() })
        .expect("all together");
}

#[test]
fn read_only_lets_everybody_read() {
    let policy = load("read-only.cedar", &[]);
    let alice = caller("alice", &[]);
    assert_eq!(allowed(&policy, &alice, &noon()), [Effect::Read]);
    assert!(judge(&policy, &alice, &decl(Kind::Backend, "vault"), "{}", &noon()).is_ok());
}

#[test]
fn non_destructive_spares_only_the_admin_role() {
    let policy = load("non-destructive.cedar", &[everything()]);
    let admin = Principal::verified(Claims { roles: BTreeSet::from(["mcp.admin".to_owned()]), ..claims("root", &[]) });
    assert_eq!(allowed(&policy, &caller("alice", &[]), &noon()), [Effect::Read, Effect::ReadSensitive, Effect::Write]);
    assert_eq!(allowed(&policy, &admin, &noon()), Effect::ALL);
}

#[test]
fn per_scope_gives_each_scope_its_own() {
    let policy = load("per-scope.cedar", &[]);
    for (scope, effect) in [
        ("mcp.read", Effect::Read),
        ("mcp.secrets", Effect::ReadSensitive),
        ("mcp.write", Effect::Write),
        ("mcp.destroy", Effect::Destroy),
    ] {
        let alice = caller("alice", &[scope]);
        assert_eq!(allowed(&policy, &alice, &noon()), [effect]);
        assert!(judge(&policy, &alice, &decl(Kind::Backend, "vault"), "{}", &noon()).is_ok(), "{scope}");
    }
    let alice = caller("alice", &["mcp.destroy"]);
    let destroy = tool("t", Effect::Destroy);
    assert_eq!(
        judge(&policy, &alice, &destroy, r#"{"namespace": "production"}"#, &noon()),
        Err((Reason::NotGranted, true))
    );
    assert_eq!(judge(&policy, &alice, &destroy, "{}", &noon()), Err((Reason::NotGranted, true)));
    assert_eq!(allowed(&policy, &caller("bob", &["other"]), &noon()), []);
}

#[test]
fn secrets_need_a_client_certificate() {
    let policy = load("secrets-only-by-mtls.cedar", &[everything()]);
    let alice = caller("alice", &[]);
    assert_eq!(allowed(&policy, &alice, &noon()), [Effect::Read, Effect::Write, Effect::Destroy]);
    assert!(!policy.lists(&alice, &tool("t", Effect::ReadSensitive), &noon()));
    assert_eq!(allowed(&policy, &alice, &Context { mtls: true, ..noon() }), Effect::ALL);
}

#[test]
fn changes_wait_for_business_hours() {
    let policy = load("business-hours.cedar", &[everything()]);
    let alice = caller("alice", &[]);
    let midnight = noon().now - Duration::from_secs(12 * 3600);
    for (minutes, open) in [(0, false), (7 * 60 - 1, false), (7 * 60, true), (18 * 60 - 1, true), (18 * 60, false)] {
        let context = Context { now: midnight + Duration::from_secs(minutes * 60), ..noon() };
        let expected = if open { Effect::ALL.to_vec() } else { vec![Effect::Read, Effect::ReadSensitive] };
        assert_eq!(allowed(&policy, &alice, &context), expected, "minute {minutes}");
    }
}
