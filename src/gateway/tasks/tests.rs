//! What an id of a task opens for.

use std::sync::Arc;
use std::time::Instant;
use std::time::SystemTime;

use bytes::Bytes;

use super::Known;
use super::related;
use super::seal::Bound;
use super::seal::Task;
use super::words::Related;
use super::words::anew;
use super::words::mentions;
use super::words::only;
use crate::exchange::Request;
use crate::exchange::RequestId;
use crate::exchange::Verb;
use crate::gateway::Rejection;
use crate::gateway::Sealer;
use crate::mcp;
use crate::mcp::Era;
use crate::mcp::FaultKind;
use crate::mcp::Id;
use crate::mcp::Kind;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::Params;
use crate::mcp::object::Edits;
use crate::principal::Claims;
use crate::principal::Principal;
use crate::route::Route;

fn person(subject: &str, tenant: Option<&str>) -> Principal {
    let tenant = tenant.map(str::to_owned);
    Principal::verified(Claims { subject: subject.into(), issuer: "https://idp".into(), tenant, ..Claims::default() })
}

fn route(host: Option<&str>, path: &str) -> Route {
    Route {
        path: path.to_owned(),
        host: host.map(str::to_owned),
        backends: vec!["up".into()],
        names: None,
        mode: None,
        old_sse: false,
    }
}

fn task(id: &str) -> Task<'_> {
    Task { backend: "up".into(), id: id.into(), tool: "dig".into() }
}

#[test]
fn an_id_opens_for_its_owner_on_its_route_in_its_era_and_is_always_the_same() {
    let sealer = Sealer::new().expect("randomness");
    let (alice, here) = (person("alice", None), route(None, "/mcp"));
    let own = Bound::new(&sealer, &alice, &here, Era::Modern);
    let id = own.seal(&task("t-1")).expect("sealed");
    assert_eq!(own.seal(&task("t-1")), Some(id.clone()));
    assert_eq!(own.open(&id), Some(task("t-1")));
    assert!(!id.contains("t-1") && id.len() < 256, "{id}");
    let (bob, other_tenant) = (person("bob", None), person("alice", Some("x")));
    let (elsewhere, other_host) = (route(None, "/other"), route(Some("h"), "/mcp"));
    for (who, place, era) in [
        (&bob, &here, Era::Modern),
        (&other_tenant, &here, Era::Modern),
        (&alice, &elsewhere, Era::Modern),
        (&alice, &other_host, Era::Modern),
        (&alice, &here, Era::Legacy),
    ] {
        assert_eq!(Bound::new(&sealer, who, place, era).open(&id), None, "{} {place:?} {era:?}", who.key());
    }
    for forged in ["", "t-1", id.get(1..).expect("an id"), &format!("{id}A"), &"A".repeat(4096)] {
        assert_eq!(own.open(forged), None, "{forged}");
    }
}

#[test]
fn an_upstream_id_that_is_no_name_is_not_carried() {
    let sealer = Sealer::new().expect("randomness");
    let (alice, here) = (person("alice", None), route(None, "/mcp"));
    let own = Bound::new(&sealer, &alice, &here, Era::Modern);
    assert_eq!(own.seal(&task("")), None);
    assert_eq!(own.seal(&task(&"x".repeat(513))), None);
    let odd = "ü \"\n".repeat(40);
    let id = own.seal(&task(&odd)).expect("any text will do");
    assert_eq!(own.open(&id), Some(task(&odd)));
    assert!(id.bytes().all(|byte| byte.is_ascii_graphic()), "fit for a header");
}

#[test]
fn what_may_be_about_a_task_is_looked_at() {
    assert!(mentions(br#"{"resultType":"task"}"#));
    assert!(mentions(br#"{"resultType":"t\u0061sk"}"#));
    assert!(!mentions(br#"{"resultType":"complete","content":[{"text":"ta sk \\ \n"}]}"#));
}

/// `tasks/get` of a client with these capabilities, and these members of `params`; `Mcp-Name` says `t`.
fn asked(capabilities: &str, members: &str) -> Result<bool, FaultKind> {
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{{{members}"_meta":{{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{capabilities}}}}}}}"#
    );
    let mut headers = http::HeaderMap::new();
    for (name, value) in [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "tasks/get"), ("mcp-name", "t")] {
        headers.insert(name, http::HeaderValue::from_static(value));
    }
    let request = Request {
        id: RequestId(1),
        verb: Verb::Post,
        host: "localhost".into(),
        path: "/mcp".into(),
        headers,
        body: body.into(),
        peer: Arc::default(),
        at: SystemTime::UNIX_EPOCH,
        started: Instant::now(),
        deadline: Instant::now(),
    };
    mcp::parse(&request).map(|message| message.params.tasks).map_err(|fault| fault.kind)
}

#[test]
fn only_the_very_extension_is_a_declaration() {
    let own = r#""taskId":"t","#;
    for (capabilities, declared) in [
        (r#"{"extensions":{"io.modelcontextprotocol/tasks":{}}}"#, true),
        (r#"{"roots":{},"extensions":{"a/b":{},"io.modelcontextprotocol\u002ftasks":{"x":1}}}"#, true),
        ("{}", false),
        (r#"{"extensions":{}}"#, false),
        (r#"{"extensions":[]}"#, false),
        (r#"{"extensions":{"io.modelcontextprotocol/tasks":true}}"#, false),
        (r#"{"tasks":{},"io.modelcontextprotocol/tasks":{}}"#, false),
    ] {
        assert_eq!(asked(capabilities, own), Ok(declared), "{capabilities}");
    }
    for lookalike in [r#"{"Extensions":{}}"#, r#"{"extensions":{"io.modelcontextprotocol/Tasks":{}}}"#] {
        assert!(matches!(asked(lookalike, own), Err(FaultKind::InvalidParams { .. })), "{lookalike}");
    }
}

#[test]
fn the_id_is_required_and_mirrored() {
    assert!(matches!(asked("{}", ""), Err(FaultKind::InvalidParams { .. })));
    assert!(matches!(asked("{}", r#""taskId":7,"#), Err(FaultKind::InvalidParams { .. })));
    assert!(matches!(asked("{}", r#""taskId":"t","TaskId":"u","#), Err(FaultKind::InvalidParams { .. })));
    assert!(matches!(asked("{}", r#""taskId":"u","#), Err(FaultKind::HeaderMismatch { .. })));
    assert_eq!(asked("{}", r#""taskId":"t","#), Ok(false));
}

/// This message, `_meta` and all, as the upstream of the task `up-1`, which the client knows as `ours`, would get it.
fn sent(kind: Kind, era: Era, object: &str) -> Result<String, Rejection> {
    let response = matches!(kind, Kind::Response { .. });
    let raw = (!response).then(|| Bytes::from(object.to_owned()));
    let outcome = response.then(|| Bytes::from(format!("\"result\":{object}")));
    let params = Params { raw, ..Params::default() };
    let mut message = Message { kind, method: Some(Method::Ping), era, params, outcome };
    related(&mut message, |shown| (shown == "ours").then(|| task("up-1")))?;
    let whole = if response { message.outcome } else { message.params.raw };
    Ok(String::from_utf8(whole.expect("it is there").to_vec()).expect("UTF-8"))
}

#[test]
fn no_id_but_a_sealed_one_reaches_an_upstream_as_what_a_message_is_about() {
    let id = || Id::from_json("1").expect("an id");
    let about = |task: &str| format!(r#"{{"a":1,"_meta":{{"k":2,"io.modelcontextprotocol/related-task":{task}}}}}"#);
    for era in [Era::Legacy, Era::Modern] {
        for kind in [Kind::Request { id: id() }, Kind::Notification, Kind::Response { id: id() }] {
            let good = sent(kind, era, &about(r#"{"taskId":"ours"}"#)).expect("ours");
            assert!(good.ends_with(&about(r#"{"taskId":"up-1"}"#)), "{good}");
        }
        for (foreign, shown) in
            [(r#"{"taskId":"up-1"}"#, "up-1"), (r#"{"taskId":7}"#, ""), (r#""up-1""#, ""), ("{}", "")]
        {
            let refused = sent(Kind::Request { id: id() }, era, &about(foreign));
            let Err(rejection @ Rejection::UnknownTask { .. }) = refused else { panic!("{foreign}: {refused:?}") };
            assert_eq!(rejection.words(), format!("Unknown task: {shown}"));
            assert_eq!(rejection.facts(Some(era)).code, -32602);
            for kind in [Kind::Notification, Kind::Response { id: id() }] {
                let bare = sent(kind, era, &about(foreign)).expect("nobody can be answered");
                assert!(bare.ends_with(r#"{"a":1,"_meta":{"k":2}}"#), "{bare}");
            }
        }
        for twice in [
            about(r#"{"taskId":"up-1","taskId":"ours"}"#),
            about(r#"{"taskId":"up-1"},"io.modelcontextprotocol\u002frelated-task":{"taskId":"ours"}"#),
        ] {
            for kind in [Kind::Request { id: id() }, Kind::Notification, Kind::Response { id: id() }] {
                let refused = sent(kind, era, &twice);
                assert!(matches!(refused, Err(Rejection::Message { .. })), "{twice}: {refused:?}");
            }
        }
    }
}

#[test]
fn a_member_that_two_readers_could_take_for_two_things_is_not_read() {
    let found = |object, name| only(object, name).map(|value| value.map(|value| value.get().to_owned()));
    assert_eq!(found(r#"{"b":{"a":1},"a":2,"b\u0062":3}"#, "a"), Ok(Some("2".to_owned())));
    assert_eq!(found(r#"{"b":{"a":1}}"#, "a"), Ok(None));
    assert_eq!(found(r#"[{"a":1}]"#, "a"), Ok(None));
    for bad in [r#"{"a":1,"a":1}"#, r#"{"a":1,"\u0061":2}"#, r#"{"\ud800":1,"a":2}"#] {
        assert!(found(bad, "a").is_err(), "{bad}");
    }
}

#[test]
fn what_a_result_is_about_is_replaced_or_goes_and_the_rest_stays() {
    let whole = Bytes::from_static(
        br#"{"x": 1.0, "_meta":{"k":[1, 2],"io.modelcontextprotocol/related-task":{"taskId":"up-1"}}, "y":2}"#,
    );
    let related = Related::of(std::str::from_utf8(&whole).expect("text")).expect("read").expect("it is about one");
    assert_eq!(related.id().as_deref(), Some("up-1"));
    let mut edits = Edits::of(&whole);
    related.replace(&mut edits, "ours");
    let about = br#"{"x": 1.0, "_meta":{"k":[1, 2],"io.modelcontextprotocol/related-task":{"taskId":"ours"}}, "y":2}"#;
    assert_eq!(&edits.finish()[..], about);
    let mut edits = Edits::of(&whole);
    related.remove(&mut edits);
    assert_eq!(&edits.finish()[..], br#"{"x": 1.0, "_meta":{"k":[1, 2]}, "y":2}"#);
}

#[test]
fn an_error_about_a_task_is_written_anew_without_the_upstreams_id() {
    let known = |id: &str, shown: &str| Known { id: id.into(), shown: shown.into(), tool: "dig".into() };
    let one = [known("up/1", "ours")];
    for (error, wanted) in [
        (
            r#"{"code":5,"message":"no up\/1","data":{"n":[1.5,null]}}"#,
            r#"{"code":5,"message":"no ours","data":{"n":[1.5,null]}}"#,
        ),
        (r#"{"code":5,"message":"m","task":"up/1","data":"of up\u002f1!"}"#, r#"{"code":5,"message":"m"}"#),
        (r#"{"code":5,"message":"m","data":[{"up/1":0}]}"#, r#"{"code":5,"message":"m"}"#),
        (r#"{"code":5,"message":"m","data":{"a":"up/1","a":"x"}}"#, r#"{"code":5,"message":"m","data":{"a":"x"}}"#),
        (r#"{"code":5,"message":"up/1","message":"m","data":"\ud800up/1"}"#, r#"{"code":5,"message":"m"}"#),
        (r#"{"code":5}"#, r#"{"code":5,"message":""}"#),
    ] {
        assert_eq!(anew(error, 5, &one), wanted, "{error}");
    }
    let number = r#"{"code":5,"message":"m","data":{"task":17}}"#;
    assert_eq!(anew(number, 5, &[known("17", "ours")]), r#"{"code":5,"message":"m"}"#);
    // What stands for one is not mistaken for another, and the longer of two is meant.
    let several = [known("1", "a2"), known("2", "b1"), known("21", "c")];
    assert_eq!(anew(r#"{"code":5,"message":"1, 2, 21"}"#, 5, &several), r#"{"code":5,"message":"a2, b1, c"}"#);
}
