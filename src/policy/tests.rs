//! Tests of the judgement; this file holds what they share and the cases of `authorize` and `lists`.

mod arguments;
mod confirm;
mod effects;
mod examples;
mod groups;
mod known;
mod loading;
mod lowering;
mod property;
mod shadows;

use std::collections::BTreeSet;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use bytes::Bytes;

use super::judge::fits;
use super::judge::natural;
use super::*;
use crate::catalog::Operation;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::Params;
use crate::principal::Claims;

fn caller(subject: &str, scopes: &[&str]) -> Principal {
    Principal::verified(claims(subject, scopes))
}

fn claims(subject: &str, scopes: &[&str]) -> Claims {
    Claims {
        subject: subject.into(),
        issuer: "https://idp.example.com".into(),
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect::<BTreeSet<_>>(),
        ..Claims::default()
    }
}

fn tool(name: &str, effect: Effect) -> Arc<Decl> {
    Arc::new(Decl::plain(Kind::Tool, "vault".into(), name, effect))
}

fn decl(kind: Kind, name: &str) -> Arc<Decl> {
    Arc::new(Decl::plain(kind, "vault".into(), name, Effect::Read))
}

fn call(decl: &Arc<Decl>, args: Option<&str>) -> Call {
    call_as(natural(decl.kind), decl, args)
}

fn call_as(action: Action, decl: &Arc<Decl>, args: Option<&str>) -> Call {
    let params = Params { arguments: args.map(|args| Bytes::copy_from_slice(args.as_bytes())), ..Params::default() };
    let message = Message {
        kind: crate::mcp::Kind::Request { id: Id::number(1) },
        method: Some(Method::ToolsCall),
        era: Era::Modern,
        params,
        outcome: None,
    };
    Call::new(action, decl.clone(), Operation::Post(message))
}

/// A tool of `vault` whose arguments are declared.
fn declared(name: &str, effect: Effect, schema: &str) -> Arc<Decl> {
    let wire = format!(r#"{{"name": "{name}", "inputSchema": {schema}}}"#).into();
    Arc::new(Decl { wire, ..Decl::plain(Kind::Tool, "vault".into(), name, effect) })
}

/// 2026-07-28T12:00:00Z, a full ceiling, no certificate.
fn noon() -> Context {
    Context {
        mode: Mode::Full,
        ip: Some([10, 0, 0, 7].into()),
        mtls: false,
        now: UNIX_EPOCH + Duration::from_secs(1_785_240_000),
    }
}

#[track_caller]
fn cedar(text: &str) -> Policy {
    policy(&[], &[text])
}

#[track_caller]
fn policy(grants: &[Grant], texts: &[&str]) -> Policy {
    let sources =
        texts.iter().enumerate().map(|(index, text)| (format!("{index}.cedar"), (*text).to_owned())).collect();
    Policy::new(&Config { mode: Mode::Full, grants: grants.to_vec(), sources }).expect("policies that load")
}

fn scope_grant(scope: &str, allow: &[Effect], tools: &[&str]) -> Grant {
    let tools = tools.iter().map(|tool| (*tool).to_owned()).collect();
    Grant { scope: Some(scope.into()), allow: allow.to_vec(), tools, ..Grant::default() }
}

/// The ids that allow, or the reason and whether it is listed.
fn judge(
    policy: &Policy,
    principal: &Principal,
    decl: &Arc<Decl>,
    args: &str,
    context: &Context,
) -> Result<Vec<String>, (Reason, bool)> {
    match policy.authorize(principal, call(decl, Some(args)), context) {
        Ok(permit) => Ok(permit.policies().to_vec()),
        Err(denial) => Err((denial.reason, denial.listed)),
    }
}

#[test]
fn what_is_asked_of_a_task_is_judged_as_its_tool_with_the_arguments_unknown() {
    let policy = cedar(
        r#"permit (principal, action, resource) when { context.args.n == 1 && resource.name == "open" };
        forbid (principal, action, resource) unless { context.mtls };"#,
    );
    let (alice, mtls) = (caller("alice", &[]), Context { mtls: true, ..noon() });
    let follow_up = |decl: &Arc<Decl>, context: &Context| {
        let mut call = call(decl, None);
        if let Operation::Post(message) = &mut call.operation {
            message.method = Some(Method::TasksGet);
        }
        policy.authorize(&alice, call, context).map(drop).map_err(|denial| denial.reason)
    };
    let (open, shut) = (tool("open", Effect::Write), tool("shut", Effect::Write));
    assert_eq!(follow_up(&open, &mtls), Ok(()));
    assert_eq!(judge(&policy, &alice, &open, "{}", &mtls), Err((Reason::Error, true)), "a call has to say");
    assert_eq!(follow_up(&open, &noon()), Err(Reason::Forbidden));
    assert_eq!(follow_up(&shut, &mtls), Err(Reason::NotGranted));
    let read_only = Context { mode: Mode::ReadOnly, ..mtls };
    assert_eq!(follow_up(&open, &read_only), Err(Reason::Ceiling));
}

#[test]
fn nothing_is_permitted_without_a_policy() {
    let policy = policy(&[], &[]);
    let alice = caller("alice", &["mcp.read"]);
    for kind in [Kind::Backend, Kind::Prompt, Kind::Resource, Kind::Tool] {
        let decl = decl(kind, "vault");
        assert_eq!(judge(&policy, &alice, &decl, "{}", &noon()), Err((Reason::NotGranted, false)), "{kind:?}");
        assert!(!policy.lists(&alice, &decl, &noon()));
    }
}

#[test]
fn the_mode_is_a_ceiling_over_every_permit() {
    let policy = cedar("permit (principal, action, resource);");
    let alice = caller("alice", &[]);
    for mode in [Mode::ReadOnly, Mode::NonDestructive, Mode::Full] {
        for effect in Effect::ALL {
            let context = Context { mode, ..noon() };
            let expected =
                if mode.admits(effect) { Ok(vec!["0.cedar#1".to_owned()]) } else { Err((Reason::Ceiling, false)) };
            assert_eq!(judge(&policy, &alice, &tool("t", effect), "{}", &context), expected, "{mode:?} {effect:?}");
            assert_eq!(policy.lists(&alice, &tool("t", effect), &context), mode.admits(effect));
        }
    }
}

#[test]
fn an_effect_is_judged_by_the_higher_of_call_and_declaration() {
    let policy = cedar(r#"permit (principal, action, resource) when { resource.effect == "read" };"#);
    let decl = tool("t", Effect::Destroy);
    let milder = Call { effect: Effect::Read, ..call(&decl, None) };
    let denial = policy.authorize(&caller("alice", &[]), milder, &noon()).expect_err("judged as destroy");
    assert_eq!((denial.reason, denial.listed), (Reason::NotGranted, false));
}

#[test]
fn forbid_overrides_permit_and_is_named() {
    let policy = cedar(
        r#"permit (principal, action, resource); @id("no") forbid (principal, action, resource == Tool::"vault/kv.read");"#,
    );
    let denial = policy
        .authorize(&caller("alice", &[]), call(&tool("kv.read", Effect::Read), None), &noon())
        .expect_err("forbidden");
    assert_eq!(
        denial,
        Denial {
            reason: Reason::Forbidden,
            policies: Arc::new(["no".to_owned()]),
            listed: false,
            shadows: Arc::default()
        }
    );
    assert!(judge(&policy, &caller("alice", &[]), &tool("kv.list", Effect::Read), "{}", &noon()).is_ok());
}

#[test]
fn a_policy_that_fails_denies_although_another_permits() {
    let policy = cedar(
        r#"permit (principal, action, resource); @id("fails") permit (principal, action, resource) when { context.args.n > 3 };"#,
    );
    let alice = caller("alice", &[]);
    let decl = tool("t", Effect::Read);
    assert_eq!(judge(&policy, &alice, &decl, r#"{"n": 1}"#, &noon()), Ok(vec!["0.cedar#1".into()]));
    for args in
        ["{}", r#"{"n": "4"}"#, r#"{"n": 4.5}"#, r#"{"n": null}"#, r#"{"n": 9223372036854775808}"#, "[]", "not json"]
    {
        assert_eq!(judge(&policy, &alice, &decl, args, &noon()), Err((Reason::Error, true)), "{args}");
    }
    let denial = policy.authorize(&alice, call(&decl, Some("{}")), &noon()).expect_err("fails");
    assert_eq!(*denial.policies, ["fails".to_owned()]);
}

#[test]
fn arguments_are_read_as_they_were_sent() {
    let deep = r#"permit (principal, action, resource) when {
        context.args.a.b == "x" && context.args.list.contains(3) && context.args.yes && context.args.n == -9223372036854775808 };"#;
    let policy = cedar(deep);
    let decl = tool("t", Effect::Write);
    let alice = caller("alice", &[]);
    let sent =
        r#"{"a": {"b": "x", "c": 1.5}, "list": [1, 3, "z"], "yes": true, "n": -9223372036854775808, "other": null}"#;
    assert!(judge(&policy, &alice, &decl, sent, &noon()).is_ok());
    assert_eq!(judge(&policy, &alice, &decl, &sent.replace('x', "y"), &noon()), Err((Reason::NotGranted, true)));
    assert!(judge(&policy, &alice, &decl, &sent.replace("[1, 3", "[1.5, null, 3"), &noon()).is_ok());
    assert_eq!(
        judge(&policy, &alice, &decl, &sent.replace("[1, 3", "[[1, 3]"), &noon()),
        Err((Reason::NotGranted, true))
    );
    assert_eq!(judge(&policy, &alice, &decl, &sent.replace("\"x\"", "null"), &noon()), Err((Reason::Error, true)));
    assert!(policy.lists(&alice, &decl, &noon()));
}

#[test]
fn a_null_argument_does_not_slip_past_a_forbid() {
    let policy = cedar(
        r#"permit (principal, action, resource); forbid (principal, action, resource) when { context.args has force };"#,
    );
    let alice = caller("alice", &[]);
    let decl = tool("t", Effect::Read);
    assert_eq!(judge(&policy, &alice, &decl, r#"{"force": null}"#, &noon()), Err((Reason::Forbidden, true)));
    assert_eq!(judge(&policy, &alice, &decl, r#"{"force": 0.0}"#, &noon()), Err((Reason::Forbidden, true)));
    assert!(judge(&policy, &alice, &decl, r#"{"other": null}"#, &noon()).is_ok());
    assert!(policy.authorize(&alice, call(&decl, None), &noon()).is_ok(), "no arguments at all");
}

#[test]
fn an_unreadable_argument_does_not_hide_the_rest_of_the_context() {
    let policy = cedar(
        r#"permit (principal, action, resource) when { context.args.n == 1 && context.mtls && context has ip && context.ip.isInRange(ip("10.0.0.0/8"))
            && context.now < datetime("2027-01-01") && context.mode == "full" };"#,
    );
    let decl = tool("t", Effect::Read);
    let alice = caller("alice", &[]);
    let by_certificate = Context { mtls: true, ..noon() };
    assert!(judge(&policy, &alice, &decl, r#"{"n": 1, "temperature": 0.7}"#, &by_certificate).is_ok());
    assert_eq!(
        judge(&policy, &alice, &decl, r#"{"n": 1, "temperature": 0.7}"#, &noon()),
        Err((Reason::NotGranted, false))
    );
    assert_eq!(
        judge(&policy, &alice, &decl, r#"{"n": 2, "temperature": 0.7}"#, &by_certificate),
        Err((Reason::NotGranted, true))
    );
}

#[test]
fn a_tool_is_listed_only_where_some_arguments_could_be_allowed() {
    let backwards = r#"permit (principal, action, resource) when { context.args.n == 1 && resource.name == "open" };
        forbid (principal, action, resource) when { context.args.n == 7 || resource.name == "shut" };"#;
    let policy = cedar(backwards);
    let alice = caller("alice", &[]);
    assert!(policy.lists(&alice, &tool("open", Effect::Read), &noon()));
    assert!(!policy.lists(&alice, &tool("other", Effect::Read), &noon()), "the permit can never hold");
    assert!(!policy.lists(&alice, &tool("shut", Effect::Read), &noon()), "the forbid always holds");
}

#[test]
fn lists_know_the_context_and_so_do_denials() {
    let policy = cedar(
        r#"permit (principal, action, resource) when { context.args.n == 1 }; forbid (principal, action, resource) unless { context.mtls };"#,
    );
    let alice = caller("alice", &[]);
    let decl = tool("t", Effect::Read);
    assert!(!policy.lists(&alice, &decl, &noon()));
    assert_eq!(judge(&policy, &alice, &decl, r#"{"n": 1}"#, &noon()), Err((Reason::Forbidden, false)));
    let by_certificate = Context { mtls: true, ..noon() };
    assert!(policy.lists(&alice, &decl, &by_certificate));
    assert!(judge(&policy, &alice, &decl, r#"{"n": 1}"#, &by_certificate).is_ok());
    assert_eq!(judge(&policy, &alice, &decl, r#"{"n": 2}"#, &by_certificate), Err((Reason::NotGranted, true)));
    assert!(!policy.lists(&alice, &decl, &noon()), "what was remembered does not know the context");
}

#[test]
fn an_address_may_be_missing() {
    let policy = cedar(
        r#"permit (principal, action, resource) when { context has ip && context.ip.isInRange(ip("10.0.0.0/8")) };"#,
    );
    let alice = caller("alice", &[]);
    let decl = tool("t", Effect::Read);
    for (ip, expected) in
        [(Some("10.1.2.3"), true), (Some("192.0.2.1"), false), (Some("2001:db8::1"), false), (None, false)]
    {
        let context = Context { ip: ip.map(|ip| ip.parse().expect("an address")), ..noon() };
        assert_eq!(judge(&policy, &alice, &decl, "{}", &context).is_ok(), expected, "{ip:?}");
        assert_eq!(policy.lists(&alice, &decl, &context), expected, "{ip:?}");
    }
}

#[test]
fn a_time_that_no_calendar_has_denies_where_time_matters() {
    let policy = cedar(
        r#"permit (principal, action, resource == Tool::"vault/any"); permit (principal, action, resource) when { context.now > datetime("2020-01-01") };"#,
    );
    let alice = caller("alice", &[]);
    let context = Context { now: UNIX_EPOCH + Duration::from_secs(400_000_000_000), ..noon() };
    assert_eq!(judge(&policy, &alice, &tool("t", Effect::Read), "{}", &context), Err((Reason::Error, false)));
    assert!(judge(&policy, &alice, &tool("t", Effect::Read), "{}", &noon()).is_ok());
}

#[test]
fn time_is_written_as_cedar_reads_it() {
    for (seconds, milliseconds, expected) in [
        (0, 0, "1970-01-01T00:00:00.000Z"),
        (951_782_399, 999, "2000-02-28T23:59:59.999Z"),
        (951_782_400, 0, "2000-02-29T00:00:00.000Z"),
        (1_785_240_000, 5, "2026-07-28T12:00:00.005Z"),
        (4_102_444_799, 0, "2099-12-31T23:59:59.000Z"),
    ] {
        let at = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(milliseconds);
        assert_eq!(facts::datetime(at).as_deref(), Some(expected));
    }
    assert_eq!(facts::datetime(UNIX_EPOCH - Duration::from_secs(1)).as_deref(), Some("1969-12-31T23:59:59.000Z"));
}

#[test]
fn policies_see_everything_of_the_principal() {
    let full = Claims {
        kind: crate::principal::Kind::Agent,
        actor: Some("copilot".into()),
        client: Some("app-1".into()),
        tenant: Some("contoso".into()),
        roles: BTreeSet::from(["ops".to_owned()]),
        groups: BTreeSet::from(["oncall".to_owned()]),
        ..claims("alice", &["mcp.read"])
    };
    let alice = Principal::verified(full);
    let bob = caller("bob", &[]);
    for condition in [
        r#"principal is Agent"#,
        r#"principal.subject == "alice" && principal.issuer == "https://idp.example.com""#,
        r#"principal has actor && principal.actor == "copilot""#,
        r#"principal has client && principal.client == "app-1""#,
        r#"principal has tenant && principal.tenant == "contoso""#,
        r#"principal in Tenant::"contoso""#,
        r#"principal in Role::"ops""#,
        r#"principal in Group::"oncall""#,
        r#"principal in Scope::"mcp.read""#,
    ] {
        let policy = cedar(&format!("permit (principal, action, resource) when {{ {condition} }};"));
        let decl = tool("t", Effect::Read);
        assert!(judge(&policy, &alice, &decl, "{}", &noon()).is_ok(), "{condition}");
        assert_eq!(judge(&policy, &bob, &decl, "{}", &noon()), Err((Reason::NotGranted, false)), "{condition}");
    }
}

#[test]
fn policies_see_the_backend_as_parent_and_as_attribute() {
    let policy = cedar(
        r#"permit (principal, action, resource in Backend::"vault") when { resource.backend == "vault" && resource.name == "x" };"#,
    );
    let alice = caller("alice", &[]);
    for kind in [Kind::Prompt, Kind::Resource, Kind::Tool] {
        assert!(judge(&policy, &alice, &decl(kind, "x"), "{}", &noon()).is_ok(), "{kind:?}");
        let elsewhere = Arc::new(Decl::plain(kind, "other".into(), "x", Effect::Read));
        assert!(judge(&policy, &alice, &elsewhere, "{}", &noon()).is_err(), "{kind:?}");
    }
}

#[test]
fn completion_of_what_is_hidden_is_denied() {
    let policy = cedar(
        r#"permit (principal, action == Action::"complete", resource); permit (principal, action == Action::"get", resource == Prompt::"vault/open");"#,
    );
    let alice = caller("alice", &[]);
    let complete = |name| policy.authorize(&alice, call_as(Action::Complete, &decl(Kind::Prompt, name), None), &noon());
    assert!(complete("open").is_ok());
    let denial = complete("hidden").expect_err("not listed");
    assert_eq!((denial.reason, denial.listed), (Reason::NotGranted, false));
}

#[test]
fn an_action_that_does_not_fit_its_resource_is_denied() {
    let policy = cedar("permit (principal, action, resource);");
    let alice = caller("alice", &[]);
    for action in Action::ALL {
        for kind in [Kind::Backend, Kind::Prompt, Kind::Resource, Kind::Tool] {
            let judged = policy.authorize(&alice, call_as(action, &decl(kind, "x"), None), &noon());
            assert_eq!(judged.is_ok(), fits(action, kind), "{action:?} {kind:?}");
        }
    }
}

#[test]
fn two_principals_never_share_a_remembered_decision() {
    let policy = policy(&[scope_grant("mcp.read", &[Effect::Read], &[])], &[]);
    let decl = tool("t", Effect::Read);
    let (reader, other) = (caller("alice", &["mcp.read"]), caller("alice", &["mcp.write"]));
    for _ in 0..2 {
        assert!(judge(&policy, &reader, &decl, "{}", &noon()).is_ok());
        assert!(judge(&policy, &other, &decl, "{}", &noon()).is_err());
        assert!(
            judge(&policy, &reader, &tool("t", Effect::Write), "{}", &noon()).is_err(),
            "the effect is part of the question"
        );
    }
}

#[test]
fn a_list_may_be_remembered_only_if_nothing_in_it_depends_on_the_context() {
    let decls = [tool("a", Effect::Read), tool("b", Effect::Write), tool("c", Effect::Destroy)];
    let alice = caller("alice", &["mcp.read"]);
    let plain = policy(&[scope_grant("mcp.read", &[Effect::Read, Effect::Destroy], &[])], &[]);
    let listed = plain.list(&alice, &decls, &noon());
    assert_eq!(listed, Listed { listed: vec![true, false, true], cacheable: true, shadows: Arc::default() });
    let read_only = Context { mode: Mode::ReadOnly, ..noon() };
    assert_eq!(plain.list(&alice, &decls, &read_only).listed, [true, false, false]);
    assert_eq!(plain.list(&caller("bob", &[]), &decls, &noon()).listed, [false; 3]);

    let timed = policy(
        &[scope_grant("mcp.read", &[Effect::Read], &[])],
        &["forbid (principal, action, resource) unless { context.mtls };"],
    );
    assert!(!timed.list(&alice, &decls, &noon()).cacheable);
    assert_eq!(timed.list(&alice, &decls, &noon()).listed, [false; 3]);
    assert_eq!(timed.list(&alice, &decls, &Context { mtls: true, ..noon() }).listed, [true, false, false]);
}
