//! What an id of a task opens for.

use super::seal::Bound;
use super::seal::Task;
use super::words::mentions;
use crate::gateway::Sealer;
use crate::mcp::Era;
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
    for forged in ["", "t-1", &id[1..], &format!("{id}A"), &"A".repeat(4096)] {
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
