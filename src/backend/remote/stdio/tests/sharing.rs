//! Whose process is it: what several sessions and principals that share one get of each other, which is nothing.

use super::*;

/// Answers `initialize` and takes `notifications/initialized`; then the rest of the script runs.
const GREETING: &str = r#"read -r h; answer $(id "$h") '{"protocolVersion":"2025-06-18","pid":"'$$'"}'; read -r ready
progress() { printf '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%s,"progress":1}}\n' "$1"; }
"#;

fn sharing(processes: Processes, script: &str) -> Arc<Upstream> {
    let mut stdio = stdio(script);
    stdio.processes = processes;
    upstream_of(&stdio)
}

/// Two principals with a session each, on one process.
async fn two(script: &str) -> (Arc<Upstream>, String, String) {
    let upstream = sharing(Processes::Shared, &format!("{GREETING}{script}"));
    let (anna, bert) = (open_as(ANNA, &upstream).await, open_as(BERT, &upstream).await);
    assert_ne!(anna, bert);
    for (owner, session) in [(ANNA, &anna), (BERT, &bert)] {
        let ready = post("", Method::NotificationsInitialized, "{}", Era::Legacy);
        assert_eq!(ask_as(owner, &upstream, ready, Some(session)).await.expect("taken").status, 202);
    }
    assert_eq!(upstream.0.state().all.len(), 1);
    (upstream, anna, bert)
}

fn call(id: &str, params: &str) -> Operation {
    post(id, Method::ToolsCall, params, Era::Legacy)
}

/// Begins a call and lets it run until it waits.
async fn begin(
    upstream: &Arc<Upstream>,
    owner: &'static str,
    session: &str,
    operation: Operation,
) -> tokio::task::JoinHandle<Result<Answer, Error>> {
    let (upstream, session) = (upstream.clone(), session.to_owned());
    let running = tokio::spawn(async move { ask_as(owner, &upstream, operation, Some(&session)).await });
    // On this one thread the call runs until it waits for its answer.
    tokio::task::yield_now().await;
    running
}

fn stream() -> Operation {
    Operation::Stream { last_event_id: None }
}

#[tokio::test]
async fn two_principals_with_equal_ids_and_tokens_get_their_own_answers_and_progress() {
    let (upstream, anna, bert) =
        two(r#"read -r a; read -r b; progress $(id "$b"); answer $(id "$b") "{\"for\":\"$(who "$b")\"}"
        progress $(id "$a"); answer $(id "$a") "{\"for\":\"$(who "$a")\"}"; cat >/dev/null"#)
        .await;
    let params = |who: &str, token: &str| format!(r#"{{"who":"{who}","_meta":{{"progressToken":{token}}}}}"#);
    let one = begin(&upstream, ANNA, &anna, call("1", &params("anna", "1"))).await;
    let two = begin(&upstream, BERT, &bert, call("1", &params("bert", "\"1\""))).await;
    for (running, who, token) in [(one, "anna", "1"), (two, "bert", "\"1\"")] {
        let mut stream = events(running.await.expect("no panic"));
        let progress = format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token},"progress":1}}}}"#
        );
        assert_eq!(next(&mut stream).await, progress);
        assert_eq!(next(&mut stream).await, format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"for":"{who}"}}}}"#));
        assert!(stream.next().await.is_none());
    }
}

#[tokio::test]
async fn initialize_is_asked_once_and_answered_to_each_with_their_own_id() {
    let upstream = sharing(
        Processes::Principal,
        r#"read -r h; answer $(id "$h") '{"protocolVersion":"2025-06-18"}'; read -r next; answer $(id "$next") "$next"; cat >/dev/null"#,
    );
    let hello = |id: &str, version: &str| {
        let params = format!(r#"{{"protocolVersion":"{version}","capabilities":{{}}}}"#);
        post(id, Method::Initialize, &params, Era::Legacy)
    };
    let (one, two) = tokio::join!(
        ask(&upstream, hello("7", "2025-06-18"), None),
        ask(&upstream, hello("\"x\"", "2024-11-05"), None)
    );
    let session = one.as_ref().expect("an answer").session.clone();
    assert_eq!(body(one), r#"{"jsonrpc":"2.0","id":7,"result":{"protocolVersion":"2025-06-18"}}"#);
    assert_eq!(body(two), r#"{"jsonrpc":"2.0","id":"x","result":{"protocolVersion":"2025-06-18"}}"#);
    let heard = body(ask(&upstream, call("2", "{}"), session.as_deref()).await);
    assert!(heard.contains("tools/call"), "no second initialize: {heard}");
}

#[tokio::test]
async fn a_caller_who_leaves_during_initialize_does_not_spoil_it_for_the_next() {
    let upstream = sharing(
        Processes::Principal,
        r#"read -r h; read -r go <"$GO"; answer $(id "$h") '{"protocolVersion":"2025-06-18"}'; cat >/dev/null"#,
    );
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("go");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    let mut stdio = upstream.0.stdio.clone();
    stdio.env = vec![("GO".into(), crate::secret::Secret::new(pipe.to_str().expect("UTF-8")))];
    let upstream = upstream_of(&stdio);
    let first = tokio::spawn({
        let upstream = upstream.clone();
        async move { ask(&upstream, hello(), None).await.map(drop) }
    });
    tokio::task::yield_now().await;
    first.abort();
    drop(first.await);
    let second = tokio::spawn({
        let upstream = upstream.clone();
        async move { ask(&upstream, hello(), None).await.map(|answer| answer.session.is_some()) }
    });
    tokio::task::yield_now().await;
    tokio::fs::write(&pipe, "go\n").await.expect("written");
    assert_eq!(second.await.expect("no panic"), Ok(true));
    assert_eq!(upstream.0.state().all.len(), 1);
}

#[tokio::test]
async fn a_principal_has_one_process_per_era_and_nobody_elses() {
    let upstream = sharing(Processes::Principal, POLITE);
    let pid = async |owner: &str, session: Option<&str>| {
        let era = if session.is_some() { Era::Legacy } else { Era::Modern };
        body(ask_as(owner, &upstream, post("1", Method::ToolsCall, "{}", era), session).await)
    };
    let (one, two, other) =
        (open_as(ANNA, &upstream).await, open_as(ANNA, &upstream).await, open_as(BERT, &upstream).await);
    assert_eq!(pid(ANNA, Some(&one)).await, pid(ANNA, Some(&two)).await);
    assert_ne!(pid(ANNA, Some(&one)).await, pid(BERT, Some(&other)).await);
    assert_eq!(pid(ANNA, None).await, pid(ANNA, None).await);
    assert_ne!(pid(ANNA, None).await, pid(BERT, None).await);
    assert_ne!(pid(ANNA, None).await, pid(ANNA, Some(&one)).await, "one of each era");
    ask(&upstream, Operation::EndSession, Some(&one)).await.expect("ended");
    let lost = Err(Error::SessionLost { backend: "up".into() });
    assert_eq!(ask(&upstream, call("1", "{}"), Some(&one)).await.map(drop), lost);
    pid(ANNA, Some(&two)).await;
}

#[tokio::test]
async fn what_changed_is_told_to_all_and_a_resource_only_to_those_who_listen() {
    let (upstream, anna, bert) = two(r#"read -r s; answer $(id "$s") '{}'; read -r a
        say '{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"u:a"}}'
        say '{"jsonrpc":"2.0","method":"notifications/elicitation/complete","params":{"elicitationId":"of somebody"}}'
        say '{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}'; answer $(id "$a") '{}'
        read -r b; read -r c; say '{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"of one of two"}}'
        answer $(id "$b") '{}'; answer $(id "$c") '{}'; cat >/dev/null"#)
    .await;
    let subscribe = Message {
        params: crate::mcp::Params {
            uri: Some("u:a".into()),
            ..message("1", Method::ResourcesSubscribe, r#"{"uri":"u:a"}"#, Era::Legacy).params
        },
        ..message("1", Method::ResourcesSubscribe, "{}", Era::Legacy)
    };
    body(ask_as(ANNA, &upstream, Operation::Post(subscribe), Some(&anna)).await);
    body(ask_as(BERT, &upstream, call("1", "{}"), Some(&bert)).await);
    let mut hers = events(ask_as(ANNA, &upstream, stream(), Some(&anna)).await);
    let mut his = events(ask_as(BERT, &upstream, stream(), Some(&bert)).await);
    assert!(next(&mut hers).await.contains("u:a"));
    assert!(next(&mut hers).await.contains("list_changed"));
    assert!(next(&mut his).await.contains("list_changed"));
    let one = begin(&upstream, ANNA, &anna, call("2", "{}")).await;
    let two = begin(&upstream, BERT, &bert, call("2", "{}")).await;
    for running in [one, two] {
        assert_eq!(body(running.await.expect("no panic")), r#"{"jsonrpc":"2.0","id":2,"result":{}}"#);
    }
    for (owner, session, mut stream) in [(ANNA, anna, hers), (BERT, bert, his)] {
        ask_as(owner, &upstream, Operation::EndSession, Some(&session)).await.expect("ended");
        assert!(stream.next().await.is_none(), "nothing else came for {owner}");
    }
}

fn reply(id: &str) -> Operation {
    Operation::Post(Message {
        kind: Kind::Response { id: Id::from_json(id).expect("an id") },
        method: None,
        era: Era::Legacy,
        params: crate::mcp::Params::default(),
        outcome: Some(r#""result":{"roots":[]}"#.into()),
    })
}

#[tokio::test]
async fn a_server_asks_the_one_whose_call_runs_and_only_that_one_answers() {
    let (upstream, anna, bert) = two(
        r#"read -r a; say '{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage","params":{}}'; read -r no
        say '{"jsonrpc":"2.0","id":2,"method":"roots/list"}'; read -r reply; answer $(id "$a") "[$no,$reply]"; cat >/dev/null"#,
    )
    .await;
    let mut hers = events(ask_as(ANNA, &upstream, call("1", "{}"), Some(&anna)).await);
    assert_eq!(next(&mut hers).await, r#"{"jsonrpc":"2.0","id":2,"method":"roots/list"}"#);
    // Not asked, so nothing reaches the process.
    assert_eq!(ask_as(BERT, &upstream, reply("2"), Some(&bert)).await.expect("taken").status, 202);
    assert_eq!(ask_as(ANNA, &upstream, reply("3"), Some(&anna)).await.expect("taken").status, 202);
    assert_eq!(ask_as(ANNA, &upstream, reply("2"), Some(&anna)).await.expect("taken").status, 202);
    let answer = next(&mut hers).await;
    assert!(answer.contains(r#""result":[{"jsonrpc":"2.0","id":1,"error":{"code":-32601"#), "not declared: {answer}");
    assert!(answer.ends_with(r#",{"jsonrpc":"2.0","id":2,"result":{"roots":[]}}]}"#), "{answer}");
}

#[tokio::test]
async fn a_server_that_could_mean_two_is_refused() {
    let (upstream, anna, bert) =
        two(r#"read -r a; read -r b; say '{"jsonrpc":"2.0","id":"s","method":"roots/list"}'; read -r no
        say '{"jsonrpc":"2.0","id":"p","method":"ping"}'; read -r pong
        answer $(id "$a") "$no"; answer $(id "$b") "$pong"; cat >/dev/null"#)
        .await;
    let one = begin(&upstream, ANNA, &anna, call("1", "{}")).await;
    let two = begin(&upstream, BERT, &bert, call("1", "{}")).await;
    let (one, two) = (body(one.await.expect("no panic")), body(two.await.expect("no panic")));
    assert!(one.contains(r#""id":"s","error":{"code":-32601"#), "{one}");
    assert!(two.contains(r#""id":"p","result":{}"#), "{two}");
}

#[tokio::test]
async fn nobody_cancels_the_call_of_another() {
    let (upstream, anna, bert) = two(r#"read -r a; read -r b; answer $(id "$a") "$b"; cat >/dev/null"#).await;
    let running = begin(&upstream, ANNA, &anna, call("5", "{}")).await;
    let cancel = || post("", Method::NotificationsCancelled, r#"{"requestId":5}"#, Era::Legacy);
    ask_as(BERT, &upstream, cancel(), Some(&bert)).await.expect("taken");
    ask_as(ANNA, &upstream, cancel(), Some(&anna)).await.expect("taken");
    let heard = body(running.await.expect("no panic"));
    assert!(heard.contains(r#""method":"notifications/cancelled","params":{"requestId":2}"#), "hers alone: {heard}");
}

#[tokio::test]
async fn all_who_wait_for_a_process_that_dies_hear_of_it_and_their_sessions_are_lost() {
    let (upstream, anna, bert) = two(r#"read -r a; read -r b; kill -9 $$"#).await;
    let one = begin(&upstream, ANNA, &anna, call("1", "{}")).await;
    let two = begin(&upstream, BERT, &bert, call("1", "{}")).await;
    let lost = Err(Error::SessionLost { backend: "up".into() });
    assert_eq!(one.await.expect("no panic").map(drop), lost);
    assert_eq!(two.await.expect("no panic").map(drop), lost);
    all_ended(&upstream).await;
    assert_eq!(ask_as(ANNA, &upstream, call("2", "{}"), Some(&anna)).await.map(drop), lost);
    let again = ask_as(BERT, &upstream, hello(), None).await.map(drop);
    assert!(matches!(&again, Err(Error::Unavailable { what, .. }) if what.contains("started again")), "{again:?}");
}

#[tokio::test]
async fn a_failing_process_waits_longer_each_time_whoever_it_is_for() {
    for processes in [Processes::Session, Processes::Principal, Processes::Shared] {
        let upstream = sharing(processes, "exit 1");
        let key = upstream.0.key(ANNA, Era::Legacy, 0);
        for failures in 1..=3 {
            let ended = ask(&upstream, hello(), None).await.map(drop);
            assert!(matches!(ended, Err(Error::Protocol { .. })), "{processes:?} {failures}: {ended:?}");
            all_ended(&upstream).await;
            let record = upstream.0.state().records[&key];
            assert_eq!(record.failures, failures);
            assert!(record.pause() > BACKOFF * (1 << (failures - 1)) / 2, "{processes:?} {failures}");
            let soon = ask(&upstream, hello(), None).await.map(drop);
            assert!(
                matches!(&soon, Err(Error::Unavailable { what, .. }) if what.contains("started again")),
                "{soon:?}"
            );
            // As if the pause had passed.
            let at = record.at.checked_sub(BACKOFF_MAX).expect("the clock has run");
            upstream.0.state().records.insert(key.clone(), Record { at, ..record });
        }
        assert!(!upstream.healthy(), "{processes:?}");
        let other = upstream.0.key(BERT, Era::Legacy, 0);
        assert_eq!(upstream.0.state().records.contains_key(&other), processes == Processes::Shared);
    }
}

#[tokio::test]
async fn a_principal_cannot_take_all_places() {
    let mut stdio = stdio(POLITE);
    stdio.processes_per_principal_max = 2;
    let upstream = upstream_of(&stdio);
    let first = open(&upstream).await;
    open(&upstream).await;
    let third = ask(&upstream, hello(), None).await.map(drop);
    assert!(matches!(&third, Err(Error::Unavailable { what, .. }) if what.contains("this principal")), "{third:?}");
    open_as(BERT, &upstream).await;
    ask(&upstream, Operation::EndSession, Some(&first)).await.expect("ended");
    while upstream.0.state().owned[ANNA] > 1 {
        tokio::task::yield_now().await;
    }
    open(&upstream).await;
}

#[tokio::test]
async fn a_process_that_serves_nobody_makes_room() {
    let mut stdio = stdio(POLITE);
    (stdio.processes, stdio.processes_max) = (Processes::Principal, 1);
    let upstream = upstream_of(&stdio);
    body(ask_as("", &upstream, modern("1", "{}"), None).await);
    body(ask_as(ANNA, &upstream, modern("1", "{}"), None).await);
    let session = open_as(BERT, &upstream).await;
    let full = ask_as(ANNA, &upstream, modern("1", "{}"), None).await.map(drop);
    assert!(matches!(full, Err(Error::Unavailable { .. })), "a session is not thrown out: {full:?}");
    body(ask_as(BERT, &upstream, call("1", "{}"), Some(&session)).await);
}

#[tokio::test]
async fn discovery_keeps_no_process() {
    let upstream = sharing(Processes::Principal, POLITE);
    let session = open_as("", &upstream).await;
    ask_as("", &upstream, Operation::EndSession, Some(&session)).await.expect("ended");
    all_ended(&upstream).await;
}

#[tokio::test]
async fn garbage_and_a_line_without_end_harm_nobody_but_who_is_named_in_it() {
    let (upstream, anna, bert) =
        two(r#"read -r a; read -r b; printf '\377\376 garbage {\n[]\n{"jsonrpc":"2.0","id":999,"result":{}}\n'
        printf '{"jsonrpc":"2.0","id":%s,"result":"' "$(id "$a")"; head -c 200000 /dev/zero | tr '\0' 'x'; say '"}'
        answer $(id "$b") '{}'; cat >/dev/null"#)
        .await;
    let one = begin(&upstream, ANNA, &anna, call("1", "{}")).await;
    let two = begin(&upstream, BERT, &bert, call("1", "{}")).await;
    let too_large = Err(Error::AnswerTooLarge { backend: "up".into(), bytes_max: 64 * 1024 });
    assert_eq!(one.await.expect("no panic").map(drop), too_large);
    assert_eq!(body(two.await.expect("no panic")), r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
}

#[tokio::test]
async fn an_answer_that_is_too_long_and_names_its_request_last_fails_that_one_alone() {
    let (upstream, anna, bert) = two(r#"read -r a; read -r b
        printf '{"jsonrpc":"2.0","result":{"id":%s,"x":"' "$(id "$b")"; head -c 200000 /dev/zero | tr '\0' 'x'
        printf '\\","id":1"},"id":%s}\n' "$(id "$a")"; answer $(id "$b") '{}'; cat >/dev/null"#)
    .await;
    let one = begin(&upstream, ANNA, &anna, call("1", "{}")).await;
    let two = begin(&upstream, BERT, &bert, call("1", "{}")).await;
    let too_large = Err(Error::AnswerTooLarge { backend: "up".into(), bytes_max: 64 * 1024 });
    assert_eq!(one.await.expect("no panic").map(drop), too_large);
    assert_eq!(body(two.await.expect("no panic")), r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
}

#[tokio::test]
async fn what_a_process_asks_about_the_call_of_one_who_left_reaches_nobody_else() {
    let (upstream, anna, bert) =
        two(r#"read -r a; read -r b; say '{"jsonrpc":"2.0","id":"q","method":"roots/list"}'; read -r no
        say '{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"hers"}}'; answer $(id "$a") '{}'
        say '{"jsonrpc":"2.0","id":"r","method":"roots/list"}'; read -r reply
        answer $(id "$b") "[$no,$reply]"; cat >/dev/null"#)
        .await;
    let gone = begin(&upstream, ANNA, &anna, call("1", "{}")).await;
    gone.abort();
    drop(gone.await);
    let mut his = events(ask_as(BERT, &upstream, call("1", "{}"), Some(&bert)).await);
    assert_eq!(next(&mut his).await, r#"{"jsonrpc":"2.0","id":"r","method":"roots/list"}"#);
    assert_eq!(ask_as(BERT, &upstream, reply("\"r\""), Some(&bert)).await.expect("taken").status, 202);
    let answer = next(&mut his).await;
    assert!(answer.contains(r#"[{"jsonrpc":"2.0","id":"q","error":{"code":-32601"#), "{answer}");
}

#[tokio::test]
async fn a_session_that_nobody_uses_ends_and_its_process_lives_on() {
    let mut stdio = stdio(POLITE);
    (stdio.processes, stdio.idle_timeout) = (Processes::Shared, Duration::from_millis(200));
    let upstream = upstream_of(&stdio);
    let (anna, bert) = (open_as(ANNA, &upstream).await, open_as(BERT, &upstream).await);
    let _listening = events(ask_as(BERT, &upstream, stream(), Some(&bert)).await);
    while upstream.0.state().sessions.len() > 1 {
        tokio::task::yield_now().await;
    }
    let lost = Err(Error::SessionLost { backend: "up".into() });
    assert_eq!(ask_as(ANNA, &upstream, call("1", "{}"), Some(&anna)).await.map(drop), lost);
    body(ask_as(BERT, &upstream, call("1", "{}"), Some(&bert)).await);
}
