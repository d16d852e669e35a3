//! The book of a channel that two principals share: what comes when a caller has left, and what is too long.

use super::*;
use crate::backend::remote::tests::message;

const ANNA: &str = "issuer||anna";
const BERT: &str = "issuer||bert";

fn desk() -> (Arc<Desk>, mpsc::Receiver<Bytes>) {
    let (asides, said) = mpsc::channel(16);
    let desk = Desk::new(Era::Legacy, Blame("up".into()), 64 * 1024, Duration::from_secs(60), asides);
    (Arc::new(desk), said)
}

fn join(desk: &Arc<Desk>, session: &str, owner: &str) {
    let hello = message("0", Method::Initialize, r#"{"capabilities":{"roots":{}}}"#, Era::Legacy);
    desk.join(session.into(), owner, &hello).expect("room").stay();
}

/// Two principals, each with a session of the same name.
fn two() -> (Arc<Desk>, mpsc::Receiver<Bytes>) {
    let (desk, said) = desk();
    join(&desk, "anna", ANNA);
    join(&desk, "bert", BERT);
    (desk, said)
}

fn call(desk: &Arc<Desk>, session: &str) -> Waiting {
    let call = message("1", Method::ToolsCall, "{}", Era::Legacy);
    desk.register(&call, Some(session)).expect("registered")
}

fn says(desk: &Desk, line: &str) {
    desk.take(&Bytes::copy_from_slice(line.as_bytes()));
}

fn asks(desk: &Desk, id: &str) {
    says(desk, &format!(r#"{{"jsonrpc":"2.0","id":"{id}","method":"roots/list"}}"#));
}

fn answers(desk: &Desk, number: u64) {
    says(desk, &format!(r#"{{"jsonrpc":"2.0","id":{number},"result":{{}}}}"#));
}

const LOG: &str = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"of somebody"}}"#;

/// What is there for a call by now.
fn heard(waiting: &Waiting) -> Vec<String> {
    waiting.inbox.desert().iter().map(|message| String::from_utf8_lossy(message).into_owned()).collect()
}

#[track_caller]
fn refused(said: &mut mpsc::Receiver<Bytes>, id: &str) {
    let line = said.try_recv().expect("an answer");
    let line = String::from_utf8_lossy(&line).into_owned();
    assert!(line.contains(&format!(r#""id":"{id}","error":{{"code":-32601"#)), "{line}");
}

#[test]
fn nobody_is_guessed_while_the_call_of_a_caller_who_left_is_not_answered() {
    let (desk, mut said) = two();
    let (hers, his) = (call(&desk, "anna"), call(&desk, "bert"));
    drop(hers);
    asks(&desk, "q");
    says(&desk, LOG);
    refused(&mut said, "q");
    answers(&desk, 1);
    asks(&desk, "r");
    says(&desk, LOG);
    let heard = heard(&his);
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert!(heard[0].contains("roots/list") && heard[1].contains("of somebody"));
    assert!(said.try_recv().is_err());
}

/// Anna calls a tool and wants a task.
fn begins(desk: &Arc<Desk>) -> Waiting {
    let mut call = message("1", Method::ToolsCall, "{}", Era::Legacy);
    call.params.augmented = true;
    desk.register(&call, Some("anna")).expect("registered")
}

fn began(desk: &Desk, number: u64) {
    let task = r#"{"task":{"taskId":"t","status":"working"}}"#;
    says(desk, &format!(r#"{{"jsonrpc":"2.0","id":{number},"result":{task}}}"#));
}

#[test]
fn a_task_that_runs_on_after_its_answer_asks_and_tells_nobody_else() {
    for left in [false, true] {
        let (desk, mut said) = two();
        let hers = begins(&desk);
        if left {
            drop(hers);
        } else {
            assert!(heard(&hers).is_empty());
        }
        began(&desk, 1);
        let his = call(&desk, "bert");
        asks(&desk, "q");
        says(&desk, LOG);
        refused(&mut said, "q");
        desk.leave("anna");
        asks(&desk, "r");
        refused(&mut said, "r");
        assert!(heard(&his).is_empty(), "{left}");
        assert!(desk.state().meant(Instant::now() + Duration::from_secs(24 * 60 * 60)).is_none());
    }
}

#[test]
fn a_task_is_forgotten_when_the_server_says_that_it_is_over() {
    let ask = |method| {
        let mut ask = message("2", method, "{}", Era::Legacy);
        ask.params.task_id = Some("t".into());
        ask
    };
    for (method, answer, after) in [
        (None, r#""method":"notifications/tasks/status","params":{"taskId":"t","status":"failed"}"#, Some(0)),
        (None, r#""method":"notifications/tasks/status","params":{"taskId":"t","status":"working"}"#, None),
        (None, r#""method":"notifications/tasks/status","params":{"taskId":"u","status":"failed"}"#, None),
        (Some(Method::TasksGet), r#""id":2,"result":{"taskId":"t","status":"completed"}"#, Some(0)),
        (Some(Method::TasksGet), r#""id":2,"result":{"taskId":"t","status":"input_required"}"#, None),
        (Some(Method::TasksCancel), r#""id":2,"result":{"taskId":"t","status":"cancelled"}"#, Some(31)),
        (Some(Method::TasksResult), r#""id":2,"result":{"content":[]}"#, Some(0)),
        (Some(Method::TasksResult), r#""id":2,"error":{"code":-32602,"message":"not yet"}"#, None),
    ] {
        let (desk, _said) = two();
        let _hers = begins(&desk);
        began(&desk, 1);
        let _asking = method.map(|method| desk.register(&ask(method), Some("anna")).expect("registered"));
        says(&desk, &format!(r#"{{"jsonrpc":"2.0",{answer}}}"#));
        let _his = call(&desk, "bert");
        let meant = |seconds| desk.state().meant(Instant::now() + Duration::from_secs(seconds)).is_some();
        assert_eq!(meant(0), after == Some(0), "{answer}");
        assert_eq!(meant(31), after.is_some(), "{answer}");
    }
}

#[test]
fn a_server_without_tasks_is_silenced_by_nobody_who_wants_one() {
    let (desk, _said) = two();
    let _hers = begins(&desk);
    answers(&desk, 1);
    let his = call(&desk, "bert");
    asks(&desk, "q");
    assert_eq!(heard(&his).len(), 1);
}

#[test]
fn a_cancelled_call_that_is_never_answered_silences_the_server_for_a_while_only() {
    let cancel = |desk: &Desk, session| {
        let cancelled = message("0", Method::NotificationsCancelled, r#"{"requestId":1}"#, Era::Legacy);
        desk.note(&cancelled, Some(session)).map(|line| String::from_utf8_lossy(&line).into_owned())
    };
    for cancelled_first in [Some(true), Some(false), None] {
        let (desk, _said) = two();
        let hers = call(&desk, "anna");
        if cancelled_first == Some(true) {
            assert!(cancel(&desk, "anna").expect("a line").contains(r#""requestId":1"#));
        }
        drop(hers);
        if cancelled_first == Some(false) {
            assert_eq!(cancel(&desk, "bert"), None);
            assert!(cancel(&desk, "anna").expect("a line").contains(r#""requestId":1"#));
        }
        let _his = call(&desk, "bert");
        let meant = |seconds| desk.state().meant(Instant::now() + Duration::from_secs(seconds)).is_some();
        assert!(!meant(0));
        assert_eq!(meant(31), cancelled_first.is_some(), "{cancelled_first:?}");
        assert!(meant(60 * 60 + 1));
    }
}

#[test]
fn the_calls_that_one_session_left_do_not_hide_whom_another_of_its_own_is_about() {
    let (desk, mut said) = two();
    drop(call(&desk, "anna"));
    let second = call(&desk, "anna");
    asks(&desk, "q");
    assert_eq!(heard(&second).len(), 1);
    // Not even when she is gone is it his.
    desk.leave("anna");
    drop(second);
    refused(&mut said, "q");
    let his = call(&desk, "bert");
    asks(&desk, "r");
    refused(&mut said, "r");
    assert!(heard(&his).is_empty());
}

#[test]
fn who_is_left_alone_is_told_nothing_of_who_was_there() {
    let (desk, mut said) = two();
    desk.leave("anna");
    asks(&desk, "q");
    refused(&mut said, "q");
    says(&desk, LOG);
    says(&desk, r#"{"jsonrpc":"2.0","method":"notifications/elicitation/complete","params":{"elicitationId":"hers"}}"#);
    says(&desk, r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"u:hers"}}"#);
    says(&desk, r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#);
    let (_, messages) = desk.state().guests.listen("bert").expect("a session");
    let told = messages.desert();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(String::from_utf8_lossy(&told[0]).contains("list_changed"));
    // The gateway's own sessions, which only look for tools, are nobody's.
    let (desk, _said) = self::desk();
    join(&desk, "own", "");
    join(&desk, "anna", ANNA);
    desk.leave("own");
    asks(&desk, "q");
    let (_, messages) = desk.state().guests.listen("anna").expect("a session");
    assert_eq!(messages.desert().len(), 1);
}

#[test]
fn a_question_that_its_caller_did_not_read_is_answered() {
    let (desk, mut said) = two();
    let hers = call(&desk, "anna");
    asks(&desk, "q");
    says(&desk, LOG);
    assert!(said.try_recv().is_err(), "she is asked");
    drop(hers);
    refused(&mut said, "q");
    assert!(said.try_recv().is_err());
    let reply = Message {
        kind: Kind::Response { id: Id::from_json("\"q\"").expect("an id") },
        method: None,
        era: Era::Legacy,
        params: crate::mcp::Params::default(),
        outcome: Some(r#""result":{"roots":[]}"#.into()),
    };
    assert!(desk.note(&reply, Some("anna")).is_none(), "once");
}

#[test]
fn questions_of_calls_that_are_over_do_not_fill_the_list_for_ever() {
    let (desk, mut said) = two();
    for number in 1..=300 {
        let hers = call(&desk, "anna");
        asks(&desk, &format!("q-{number}"));
        // She reads it and never answers; the server answers the call all the same.
        assert_eq!(hers.inbox.desert().len(), 1, "{number}");
        answers(&desk, number);
    }
    assert!(said.try_recv().is_err());
}

#[test]
fn what_is_too_long_fails_the_one_it_names_or_the_only_one() {
    let failed = |waiting: &Waiting| waiting.inbox.is_over();
    let (desk, _said) = two();
    let (hers, his) = (call(&desk, "anna"), call(&desk, "bert"));
    for whose in [Whose::Unknown, Whose::Nobody, Whose::Answer(7)] {
        desk.too_long(whose);
        assert!(!failed(&hers) && !failed(&his), "{whose:?}");
    }
    desk.too_long(Whose::Answer(1));
    assert!(failed(&hers) && !failed(&his));
    desk.too_long(Whose::Nobody);
    assert!(!failed(&his));
    drop(call(&desk, "anna"));
    desk.too_long(Whose::Unknown);
    assert!(!failed(&his), "it can be the answer to who left");
    answers(&desk, 3);
    desk.too_long(Whose::Unknown);
    assert!(failed(&his));
}

#[test]
fn only_a_greeting_that_is_not_answered_makes_a_server_mute() {
    let greeting = |method| message("0", method, "{}", Era::Legacy);
    for method in [Method::Initialize, Method::ServerDiscover, Method::ToolsList] {
        let (desk, _said) = desk();
        assert!(!desk.is_mute(Duration::ZERO));
        let asked = desk.register(&greeting(method), None).expect("registered");
        assert!(desk.is_mute(Duration::ZERO) && !desk.is_mute(Duration::from_secs(60)));
        drop(asked);
        assert!(desk.is_mute(Duration::ZERO), "whoever waits for it");
        answers(&desk, 1);
        assert!(!desk.is_mute(Duration::ZERO) && desk.was_fruitful());
    }
    let (desk, _said) = two();
    let _work = call(&desk, "anna");
    let _asked = desk.register(&greeting(Method::ToolsList), None).expect("registered");
    assert!(!desk.is_mute(Duration::ZERO), "work may take its time");
}
