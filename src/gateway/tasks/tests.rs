//! What an id of a task opens for.

use std::sync::Arc;
use std::time::Instant;
use std::time::SystemTime;

use super::seal::Bound;
use super::seal::Task;
use super::words::mentions;
use crate::exchange::Request;
use crate::exchange::RequestId;
use crate::exchange::Verb;
use crate::gateway::Sealer;
use crate::mcp;
use crate::mcp::Era;
use crate::mcp::FaultKind;
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
