//! Child processes as upstreams, written in `sh`: sessions, ids of two callers, streams, cancelling, limits, the end.

mod sharing;
mod starting;

use std::path::PathBuf;

use futures_util::StreamExt;

use super::super::Transport;
use super::super::tests::config;
use super::super::tests::message;
use super::super::tests::soon;
use super::*;
use crate::catalog::Operation;
use crate::credentials;
use crate::mcp::Id;
use crate::mcp::Kind;
use crate::mcp::sse::Event;

/// `id LINE` and `who LINE` print what a request holds; `answer ID RESULT` answers it.
const WORDS: &str = r#"
id() { printf '%s' "$1" | sed -n 's/^{"jsonrpc":"2.0","id":\([0-9]*\).*/\1/p'; }
who() { printf '%s' "$1" | sed -n 's/.*"who":"\([a-z]*\)".*/\1/p'; }
answer() { printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$1" "$2"; }
say() { printf '%s\n' "$1"; }
"#;

/// Answers `initialize`, then everything else that has an id.
const POLITE: &str = r#"
while read -r line; do n=$(id "$line"); [ -n "$n" ] && answer "$n" "{\"pid\":$$}"; done
"#;

fn stdio(script: &str) -> Stdio {
    Stdio {
        command: vec!["/bin/sh".into(), "-c".into(), format!("{WORDS}{script}")],
        env: Vec::new(),
        directory: None,
        processes: Processes::Session,
        processes_max: 4,
        processes_per_principal_max: 4,
        start_timeout: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(60),
    }
}

fn upstream_of(stdio: &Stdio) -> Arc<Upstream> {
    let config = Arc::new(config(Transport::Stdio(stdio.clone())));
    Arc::new(Upstream::new(&config, stdio).expect("good"))
}

fn upstream(script: &str) -> Arc<Upstream> {
    upstream_of(&stdio(script))
}

async fn ask(upstream: &Upstream, operation: Operation, session: Option<&str>) -> Result<Answer, Error> {
    ask_as(ANNA, upstream, operation, session).await
}

const ANNA: &str = "issuer||anna";
const BERT: &str = "issuer||bert";

async fn ask_as(
    owner: &str,
    upstream: &Upstream,
    operation: Operation,
    session: Option<&str>,
) -> Result<Answer, Error> {
    let ask = Ask {
        operation: &operation,
        session,
        version: None,
        bindings: &[],
        repeatable: false,
        owner,
        share: owner,
        reached: None,
    };
    upstream.ask(ask, &credentials::own(&credentials::Config::None), soon()).await
}

fn post(id: &str, method: Method, params: &str, era: Era) -> Operation {
    Operation::Post(message(id, method, params, era))
}

fn modern(id: &str, params: &str) -> Operation {
    post(id, Method::ToolsCall, params, Era::Modern)
}

#[track_caller]
fn body(answer: Result<Answer, Error>) -> String {
    match answer.expect("an answer").content {
        Content::Json(body) => String::from_utf8(body.to_vec()).expect("UTF-8"),
        Content::Empty => panic!("empty"),
        Content::Events(_) => panic!("events"),
    }
}

#[track_caller]
fn events(answer: Result<Answer, Error>) -> futures_util::stream::BoxStream<'static, Result<Event, Error>> {
    match answer.expect("an answer").content {
        Content::Events(events) => events,
        Content::Empty | Content::Json(_) => panic!("no stream"),
    }
}

async fn next(events: &mut futures_util::stream::BoxStream<'static, Result<Event, Error>>) -> String {
    let event = events.next().await.expect("an event").expect("good");
    String::from_utf8(event.data.expect("data").to_vec()).expect("UTF-8")
}

async fn open(upstream: &Upstream) -> String {
    open_as(ANNA, upstream).await
}

fn hello() -> Operation {
    post("0", Method::Initialize, r#"{"capabilities":{"roots":{}}}"#, Era::Legacy)
}

async fn open_as(owner: &str, upstream: &Upstream) -> String {
    let hello = ask_as(owner, upstream, hello(), None).await;
    hello.expect("an answer").session.expect("a session")
}

/// All processes of an upstream have been reaped.
async fn all_ended(upstream: &Upstream) {
    let all = u32::try_from(upstream.0.stdio.processes_max).expect("small");
    drop(upstream.0.slots.acquire_many(all).await.expect("open"));
}

#[tokio::test]
async fn two_callers_with_one_id_get_their_own_answers() {
    let upstream = upstream(
        r#"read -r a; read -r b; answer $(id "$b") "{\"for\":\"$(who "$b")\"}"; answer $(id "$a") "{\"for\":\"$(who "$a")\"}"; cat >/dev/null"#,
    );
    let (one, two) = tokio::join!(
        ask(&upstream, modern("1", r#"{"who":"anna"}"#), None),
        ask(&upstream, modern("\"1\"", r#"{"who":"bert"}"#), None),
    );
    assert_eq!(body(one), r#"{"jsonrpc":"2.0","id":1,"result":{"for":"anna"}}"#);
    assert_eq!(body(two), r#"{"jsonrpc":"2.0","id":"1","result":{"for":"bert"}}"#);
}

#[tokio::test]
async fn progress_goes_to_its_request_with_the_callers_token_and_other_notes_to_nobody() {
    let upstream = upstream(
        r#"read -r line; n=$(id "$line")
        say '{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"of somebody"}}'
        say '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":999,"progress":1}}'
        printf '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":1,"progressToken":%s}}\n' "$n"
        say 'debug output that is no message'
        answer "$n" '{"x":1.50}'; cat >/dev/null"#,
    );
    let mut stream = events(ask(&upstream, modern("7", r#"{"_meta":{"progressToken":"mine"}}"#), None).await);
    assert_eq!(
        next(&mut stream).await,
        r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":1,"progressToken":"mine"}}"#
    );
    assert_eq!(next(&mut stream).await, r#"{"jsonrpc":"2.0","id":7,"result":{"x":1.50}}"#);
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_modern_caller_who_leaves_cancels() {
    let upstream = upstream(r#"read -r a; read -r b; read -r c; answer $(id "$c") "$b"; cat >/dev/null"#);
    let gone = tokio::spawn({
        let upstream = upstream.clone();
        async move { ask(&upstream, modern("1", "{}"), None).await.map(drop) }
    });
    // On this one thread the call runs until it waits for its answer.
    tokio::task::yield_now().await;
    gone.abort();
    drop(gone.await);
    let heard = body(ask(&upstream, modern("2", "{}"), None).await);
    assert!(
        heard.contains(r#""result":{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1,"#),
        "{heard}"
    );
}

#[tokio::test]
async fn a_legacy_caller_who_leaves_does_not_cancel_but_may_say_so() {
    let upstream = upstream(
        r#"read -r a; answer $(id "$a") '{}'; read -r b; read -r c; answer $(id "$c") "$c"
        read -r d; read -r e; answer $(id "$d") "$e"; cat >/dev/null"#,
    );
    let session = open(&upstream).await;
    let call = |id: &'static str| {
        let (upstream, session) = (upstream.clone(), session.clone());
        tokio::spawn(async move {
            body(ask(&upstream, post(id, Method::ToolsCall, "{}", Era::Legacy), Some(&session)).await)
        })
    };
    let first = call("1");
    // On this one thread the call runs until it waits for its answer.
    tokio::task::yield_now().await;
    first.abort();
    assert!(first.await.is_err());
    let heard = body(ask(&upstream, post("2", Method::Ping, "{}", Era::Legacy), Some(&session)).await);
    assert!(heard.contains(r#""method":"ping""#), "{heard}");
    let second = call(r#""x""#);
    tokio::task::yield_now().await;
    for unknown_then_known in ["7", r#""x""#] {
        let params = format!(r#"{{"requestId":{unknown_then_known}}}"#);
        let cancel = post("", Method::NotificationsCancelled, &params, Era::Legacy);
        assert_eq!(ask(&upstream, cancel, Some(&session)).await.expect("taken").status, 202);
    }
    let heard = second.await.expect("answered");
    assert!(
        heard.contains(r#""method":"notifications/cancelled","params":{"requestId":4}"#),
        "our number for it: {heard}"
    );
}

#[tokio::test]
async fn a_session_is_a_process_of_its_own_until_it_is_ended() {
    let upstream = upstream(POLITE);
    let (one, two) = (open(&upstream).await, open(&upstream).await);
    assert_ne!(one, two);
    let ping = || post("1", Method::Ping, "{}", Era::Legacy);
    let first = body(ask(&upstream, ping(), Some(&one)).await);
    assert_eq!(first, body(ask(&upstream, ping(), Some(&one)).await));
    assert_ne!(first, body(ask(&upstream, ping(), Some(&two)).await));
    let note = ask(&upstream, post("", Method::NotificationsInitialized, "{}", Era::Legacy), Some(&one))
        .await
        .expect("an answer");
    assert_eq!(note.status, 202);
    assert!(matches!(
        ask(&upstream, Operation::EndSession, Some(&one)).await.expect("an answer").content,
        Content::Empty
    ));
    let lost = Error::SessionLost { backend: "up".into() };
    for session in [Some(one.as_str()), Some("forged"), None] {
        assert_eq!(ask(&upstream, ping(), session).await.map(drop), Err(lost.clone()));
    }
    body(ask(&upstream, ping(), Some(&two)).await);
}

#[tokio::test]
async fn a_process_that_exits_loses_its_session() {
    let upstream = upstream(r#"read -r line; answer $(id "$line") '{}'; read -r line; exit 3"#);
    let session = open(&upstream).await;
    let lost = Err(Error::SessionLost { backend: "up".into() });
    let ping = || post("1", Method::Ping, "{}", Era::Legacy);
    assert_eq!(ask(&upstream, ping(), Some(&session)).await.map(drop), lost);
    all_ended(&upstream).await;
    assert_eq!(ask(&upstream, ping(), Some(&session)).await.map(drop), lost);
    assert!(upstream.0.state().sessions.is_empty());
}

#[tokio::test]
async fn an_answer_written_just_before_the_exit_still_counts() {
    let upstream = upstream(r#"read -r line; answer $(id "$line") '{"last":true}'; exit 0"#);
    assert_eq!(
        body(ask(&upstream, modern("1", "{}"), None).await),
        r#"{"jsonrpc":"2.0","id":1,"result":{"last":true}}"#
    );
}

#[tokio::test]
async fn a_refused_initialize_opens_no_session() {
    let upstream = upstream(
        r#"read -r line; say "{\"jsonrpc\":\"2.0\",\"id\":$(id "$line"),\"error\":{\"code\":-32602,\"message\":\"no\"}}"; cat >/dev/null"#,
    );
    let answer = ask(&upstream, post("0", Method::Initialize, "{}", Era::Legacy), None).await.expect("an answer");
    assert_eq!(answer.session, None);
    all_ended(&upstream).await;
}

#[tokio::test]
async fn a_server_asks_within_the_call_and_gets_the_clients_response() {
    let upstream = upstream(
        r#"read -r line; answer $(id "$line") '{}'; read -r call
        say '{"jsonrpc":"2.0","id":"s-1","method":"roots/list"}'; read -r reply
        answer $(id "$call") "$reply"; cat >/dev/null"#,
    );
    let session = open(&upstream).await;
    let mut stream = events(ask(&upstream, post("5", Method::ToolsCall, "{}", Era::Legacy), Some(&session)).await);
    assert_eq!(next(&mut stream).await, r#"{"jsonrpc":"2.0","id":"s-1","method":"roots/list"}"#);
    let reply = Message {
        kind: Kind::Response { id: Id::from_json("\"s-1\"").expect("an id") },
        method: None,
        era: Era::Legacy,
        params: crate::mcp::Params::default(),
        outcome: Some("\"result\":{\n}".into()),
    };
    assert_eq!(ask(&upstream, Operation::Post(reply), Some(&session)).await.expect("an answer").status, 202);
    assert_eq!(
        next(&mut stream).await,
        r#"{"jsonrpc":"2.0","id":5,"result":{"jsonrpc":"2.0","id":"s-1","result":{ }}}"#
    );
}

#[tokio::test]
async fn what_belongs_to_no_call_waits_for_the_sessions_stream() {
    let upstream = upstream(
        r#"read -r line; answer $(id "$line") '{}'; say '{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}'
        read -r line; say '{"jsonrpc":"2.0","method":"notifications/resources/list_changed"}'; answer $(id "$line") '{}'; cat >/dev/null"#,
    );
    let session = open(&upstream).await;
    body(ask(&upstream, post("1", Method::Ping, "{}", Era::Legacy), Some(&session)).await);
    let get = || Operation::Stream { last_event_id: None };
    let mut stream = events(ask(&upstream, get(), Some(&session)).await);
    assert!(next(&mut stream).await.contains("tools/list_changed"));
    assert!(next(&mut stream).await.contains("resources/list_changed"));
    assert_eq!(ask(&upstream, get(), None).await.expect("an answer").status, 405);
    ask(&upstream, Operation::EndSession, Some(&session)).await.expect("ended");
    assert!(stream.next().await.is_none(), "the stream ends with the session");
}

#[tokio::test]
async fn a_line_that_is_too_long_fails_the_call_and_not_the_process() {
    let upstream = upstream(
        r#"read -r a; head -c 200000 /dev/zero | tr '\0' 'x'; say ''; read -r b; answer $(id "$b") '{}'; cat >/dev/null"#,
    );
    let error = ask(&upstream, modern("1", "{}"), None).await.map(drop);
    assert_eq!(error, Err(Error::AnswerTooLarge { backend: "up".into(), bytes_max: 64 * 1024 }));
    body(ask(&upstream, modern("2", "{}"), None).await);
}

#[tokio::test]
async fn a_process_that_keeps_ending_is_not_started_at_once_again() {
    let upstream = upstream("exit 1");
    assert!(matches!(ask(&upstream, modern("1", "{}"), None).await.map(drop), Err(Error::Protocol { .. })));
    all_ended(&upstream).await;
    let again = ask(&upstream, modern("1", "{}"), None).await.map(drop);
    assert!(matches!(&again, Err(Error::Unavailable { what, .. }) if what.contains("started again")), "{again:?}");
}

#[tokio::test]
async fn there_are_only_so_many_processes() {
    let mut stdio = stdio(POLITE);
    stdio.processes_max = 1;
    let upstream = upstream_of(&stdio);
    let session = open(&upstream).await;
    let second = ask(&upstream, post("0", Method::Initialize, "{}", Era::Legacy), None).await.map(drop);
    assert!(matches!(second, Err(Error::Unavailable { .. })));
    ask(&upstream, Operation::EndSession, Some(&session)).await.expect("ended");
    all_ended(&upstream).await;
    open(&upstream).await;
}

#[tokio::test]
async fn an_idle_process_is_ended() {
    let mut stdio = stdio(POLITE);
    stdio.idle_timeout = Duration::from_millis(50);
    let upstream = upstream_of(&stdio);
    let session = open(&upstream).await;
    all_ended(&upstream).await;
    let ping = ask(&upstream, post("1", Method::Ping, "{}", Era::Legacy), Some(&session)).await.map(drop);
    assert_eq!(ping, Err(Error::SessionLost { backend: "up".into() }));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let mut stdio = stdio("");
    stdio.command = vec!["/nowhere/mcp-server".into()];
    let upstream = upstream_of(&stdio);
    let error = ask(&upstream, modern("1", "{}"), None).await.map(drop);
    assert!(
        matches!(&error, Err(Error::Unavailable { what, .. }) if what.contains("/nowhere/mcp-server")),
        "{error:?}"
    );
    assert!(!upstream.healthy());
    stdio.command = Vec::new();
    assert!(Upstream::new(&Arc::new(config(Transport::Stdio(stdio.clone()))), &stdio).is_err());
}

#[tokio::test]
async fn a_process_gets_its_own_environment_and_not_ours() {
    let mut stdio = stdio(
        r#"read -r line; answer $(id "$line") "{\"own\":\"$OWN\",\"ours\":\"$CARGO_MANIFEST_DIR\"}"; cat >/dev/null"#,
    );
    stdio.env = vec![("OWN".into(), crate::secret::Secret::new("value"))];
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some(), "cargo sets it for tests");
    let answer = body(ask(&upstream_of(&stdio), modern("1", "{}"), None).await);
    assert!(answer.ends_with(r#"{"own":"value","ours":""}}"#), "{answer}");
}

/// Does the process still run? A zombie, which only its parent can bury, has no command line any more.
fn runs(pid: &str) -> bool {
    std::fs::read(PathBuf::from("/proc").join(pid).join("cmdline")).is_ok_and(|line| !line.is_empty())
}

#[tokio::test]
async fn what_a_process_leaves_behind_ends_with_it() {
    let upstream = upstream(r#"read -r line; sleep 1000 & answer $(id "$line") "{\"pid\":\"$!\"}"; exit 0"#);
    let answer = body(ask(&upstream, modern("1", "{}"), None).await);
    let pid = answer.split('"').rev().nth(1).expect("a pid").to_owned();
    all_ended(&upstream).await;
    assert!(!runs(&pid), "{pid}");
}

#[tokio::test]
async fn what_left_the_group_of_a_process_and_holds_its_pipes_keeps_nothing_of_ours() {
    let upstream = upstream(r#"read -r line; setsid sleep 5 & answer $(id "$line") '{}'; cat >/dev/null"#);
    body(ask(&upstream, modern("1", "{}"), None).await);
    let child = Arc::downgrade(&upstream.0.state().all[0]);
    upstream.stop().await;
    let began = Instant::now();
    while child.upgrade().is_some() {
        assert!(began.elapsed() < Duration::from_secs(3), "its readers live on");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn stopping_ends_a_process_that_does_not_listen_and_its_own_children() {
    let upstream = upstream(r#"read -r line; sleep 1000 & answer $(id "$line") "{\"pids\":\"$$ $!\"}"; wait; wait"#);
    let answer = body(ask(&upstream, modern("1", "{}"), None).await);
    let pids: Vec<&str> =
        answer.split('"').filter(|part| part.contains(' ')).flat_map(|pids| pids.split(' ')).collect();
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|pid| runs(pid)));
    upstream.stop().await;
    assert!(!pids.iter().any(|pid| runs(pid)));
    assert!(matches!(ask(&upstream, modern("1", "{}"), None).await.map(drop), Err(Error::Unavailable { .. })));
    assert!(!upstream.healthy());
}
