//! Modern calls at scripted legacy upstreams: sessions, rewriting, loss, cancelling, eras.

mod asking;
mod listening;

use std::sync::Mutex;

use serde_json::Value;
use serde_json::json;

use super::*;

/// What a legacy server makes of what is no housekeeping; `None`: 202.
type Script = dyn Fn(&Seen, &str) -> Option<Reaction> + Send + Sync;

/// A legacy server that counts its sessions: `s-1`, `s-2`, …
pub(super) async fn legacy(
    capabilities: Value,
    script: impl Fn(&Seen, &str) -> Option<Reaction> + Send + Sync + 'static,
) -> Server {
    let sessions = AtomicUsize::new(0);
    let script: Box<Script> = Box::new(script);
    Server::start(move |seen| {
        if seen.headers.get("mcp-protocol-version").is_some_and(|version| version == "2026-07-28") {
            return Reaction::Raw(http("400 Bad Request", "Content-Type: text/plain\r\n", "no session"));
        }
        let session = seen.headers.get("mcp-session-id").cloned().unwrap_or_default();
        let reaction = script(seen, &session);
        match (seen.line.split(' ').next(), seen.method().as_str()) {
            _ if reaction.is_some() => reaction.expect("just seen"),
            (_, "initialize") => {
                let number = sessions.fetch_add(1, Ordering::SeqCst) + 1;
                let result = json!({ "protocolVersion": "2025-11-25", "capabilities": capabilities, "serverInfo": { "name": "old", "version": "1" } });
                let body = json!({ "jsonrpc": "2.0", "id": seen.json()["id"], "result": result }).to_string();
                Reaction::Raw(http("200 OK", &format!("Mcp-Session-Id: s-{number}\r\nContent-Type: application/json\r\n"), &body))
            }
            (Some("GET"), _) => Reaction::Raw(http("405 No", "", "")),
            (Some("DELETE"), _) => Reaction::Raw(http("204 No Content", "", "")),
            _ => Reaction::Raw(http("202 Accepted", "", "")),
        }
    })
    .await
}

pub(super) fn old(server: &Server) -> Arc<Remote> {
    with(server, Limits::default())
}

pub(super) fn with(server: &Server, limits: Limits) -> Arc<Remote> {
    let mut config = config(Transport::Http(http_config(vec![endpoint(server.port)])));
    config.era = Some(Era::Legacy);
    let Transport::Http(http) = &config.transport else { panic!("made so") };
    let upstream = http::Upstream::new(&Arc::new(config.clone()), http).expect("good");
    Arc::new(Remote::limited(&Arc::new(config.clone()), Arc::new(upstream), limits))
}

/// `params` with the modern `_meta`, the capabilities among it.
pub(super) fn modern(mut params: Value, capabilities: Value) -> Value {
    let meta = params["_meta"].take();
    let mut whole = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": capabilities,
        "io.modelcontextprotocol/clientInfo": { "name": "new", "version": "2" },
    });
    if let Some(meta) = meta.as_object() {
        whole.as_object_mut().expect("an object").extend(meta.clone());
    }
    params["_meta"] = whole;
    params
}

pub(super) fn asks(who: &str, id: &str, method: Method, params: &Value, effect: Option<Effect>) -> Permit {
    let mut message = message(id, method, &params.to_string(), Era::Modern);
    message.params.version = Some("2026-07-28".into());
    message.params.input_responses = params.get("inputResponses").map(|value| value.to_string().into());
    message.params.request_state = params.get("requestState").map(|value| value.to_string().into());
    let permit = permit(Operation::Post(message), effect, None);
    Permit::for_tests_of(rebuilt(&permit), who)
}

pub(super) fn calls(who: &str, id: &str, params: Value) -> Permit {
    asks(who, id, Method::ToolsCall, &params, Some(Effect::Destroy))
}

pub(super) async fn ask(backend: &Arc<Remote>, permit: Permit) -> Result<Answer, Error> {
    backend.call(permit, credential(), soon()).await
}

#[track_caller]
pub(super) fn read(answer: Result<Answer, Error>) -> Value {
    serde_json::from_slice(&body(answer)).expect("JSON")
}

/// An open stream of events and its feed.
pub(super) fn feeding() -> (mpsc::UnboundedSender<Vec<u8>>, Reaction) {
    let (feed, fed) = mpsc::unbounded_channel();
    feed.send(STREAM_HEAD.into()).expect("open");
    (feed, Reaction::Feed(fed))
}

pub(super) fn event(message: &Value) -> Vec<u8> {
    chunk(&format!("id: 7\ndata: {message}\n\n"))
}

/// The next request that is no housekeeping of sessions.
pub(super) async fn next_call(server: &Server) -> Seen {
    loop {
        let seen = server.next().await;
        if !["initialize", "notifications/initialized"].contains(&seen.method().as_str())
            && seen.line.starts_with("POST")
        {
            return seen;
        }
    }
}

/// The id of a call, and the stream that answers it.
type Asker = (Value, mpsc::UnboundedSender<Vec<u8>>);

#[tokio::test]
async fn one_principals_calls_share_a_session_and_anothers_do_not() {
    let server = legacy(json!({}), |seen, session| {
        (seen.method() == "tools/call").then(|| result(seen, &json!({ "content": [], "s": session }).to_string()))
    })
    .await;
    let backend = old(&server);
    let call =
        |who: &'static str, capabilities: Value| calls(who, "\"a\"", modern(json!({ "name": "t" }), capabilities));
    for (who, capabilities, session) in [
        ("alice", json!({}), "s-1"),
        ("alice", json!({}), "s-1"),
        ("bob", json!({}), "s-2"),
        ("alice", json!({ "roots": {} }), "s-3"),
        ("alice", json!({ "extensions": { "x": {} } }), "s-1"),
    ] {
        let answer = read(ask(&backend, call(who, capabilities)).await);
        assert_eq!((&answer["result"]["s"], &answer["id"]), (&json!(session), &json!("a")), "{who}");
    }
    let seen = server.all().await;
    let hello = &seen[0];
    assert_eq!(
        hello.json()["params"],
        json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "new", "version": "2" } })
    );
    assert!(!hello.headers.contains_key("mcp-protocol-version"));
    let call = seen.iter().find(|seen| seen.method() == "tools/call").expect("a call");
    assert_eq!(call.headers["mcp-protocol-version"], "2025-11-25");
    assert!(!call.headers.contains_key("mcp-method") && !call.headers.contains_key("mcp-name"));
    assert_eq!(call.json()["params"], json!({ "name": "t" }));
}

#[tokio::test]
async fn ids_and_progress_tokens_of_many_clients_never_meet_upstream() {
    let waiting: Arc<Mutex<Vec<Asker>>> = Arc::default();
    let server = legacy(json!({}), {
        let waiting = waiting.clone();
        move |seen, session| {
            (seen.method() == "tools/call").then(|| {
                let (feed, reaction) = feeding();
                let mut call = seen.json();
                call["session"] = session.into();
                waiting.lock().expect("lock").push((call, feed));
                reaction
            })
        }
    })
    .await;
    let backend = old(&server);
    let clients: Vec<_> = ["alice", "alice", "bob", "bob"]
        .into_iter()
        .enumerate()
        .map(|(turn, who)| {
            let backend = backend.clone();
            tokio::spawn(async move {
                let params = json!({ "name": "t", "arguments": { "n": turn }, "_meta": { "progressToken": 0 } });
                let Content::Events(events) =
                    ask(&backend, calls(who, "0", modern(params, json!({})))).await.expect("an answer").content
                else {
                    panic!("no stream")
                };
                let events: Vec<_> = events.map(|event| event.expect("good")).collect().await;
                let data = |event: &mcp::sse::Event| -> Value {
                    assert!(event.id.is_none(), "modern streams have no event ids");
                    serde_json::from_slice(event.data.as_ref().expect("data")).expect("JSON")
                };
                let [progress, answer] = &events[..] else { panic!("{events:?}") };
                assert_eq!(data(progress)["params"], json!({ "progressToken": 0, "progress": turn }));
                assert_eq!((&data(answer)["id"], &data(answer)["result"]["n"]), (&json!(0), &json!(turn)));
            })
        })
        .collect();
    for _ in 0..4 {
        next_call(&server).await;
    }
    let waiting = std::mem::take(&mut *waiting.lock().expect("lock"));
    let mut ids: Vec<String> = waiting.iter().map(|(call, _)| format!("{} {}", call["session"], call["id"])).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4, "{ids:?}");
    // Everything is told on every stream: only what is the call's own may pass.
    for (_, feed) in &waiting {
        for (call, _) in &waiting {
            let (token, turn) = (&call["params"]["_meta"]["progressToken"], &call["params"]["arguments"]["n"]);
            assert_eq!(token, &call["id"]);
            let own =
                waiting.iter().any(|(other, sender)| sender.same_channel(feed) && other["session"] == call["session"]);
            if own {
                feed.send(event(&json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": { "progressToken": token, "progress": turn } }))).ok();
            }
        }
    }
    for (call, feed) in waiting {
        let answer = json!({ "jsonrpc": "2.0", "id": call["id"], "result": { "n": call["params"]["arguments"]["n"] } });
        feed.send(event(&answer)).expect("open");
    }
    for client in clients {
        client.await.expect("no panic");
    }
}

#[tokio::test]
async fn a_lost_session_is_opened_again_and_the_call_sent_once_more() {
    type Loss = fn(&Seen) -> Reaction;
    let losses: [Loss; 2] = [
        |_| Reaction::Raw(http("404 Not Found", "Content-Type: text/plain\r\n", "unknown session")),
        |_| {
            let body = r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: No valid session ID provided"},"id":null}"#;
            Reaction::Raw(http("400 Bad Request", "Content-Type: application/json\r\n", body))
        },
    ];
    for loss in losses {
        let count = AtomicUsize::new(0);
        let server = legacy(json!({}), move |seen, session| {
            (seen.method() == "tools/call").then(|| match (count.fetch_add(1, Ordering::SeqCst), session) {
                (0, _) | (_, "s-2") => result(seen, r#"{"content":[]}"#),
                _ => loss(seen),
            })
        })
        .await;
        let backend = old(&server);
        let call = || calls("alice", "1", modern(json!({ "name": "t" }), json!({})));
        for _ in 0..2 {
            assert_eq!(read(ask(&backend, call()).await)["result"]["resultType"], "complete");
        }
        let methods: Vec<_> = server.all().await.iter().map(Seen::method).collect();
        let open = ["initialize", "notifications/initialized", "tools/call"];
        assert_eq!(methods, [&open[..], &["tools/call"], &open[..]].concat());
    }
    let server = legacy(json!({}), |seen, _| {
        (seen.method() == "tools/call").then(|| Reaction::Raw(http("404 Not Found", "", "")))
    })
    .await;
    let error = refusal(ask(&old(&server), calls("alice", "1", modern(json!({ "name": "t" }), json!({})))).await);
    assert!(matches!(error, Error::Unavailable { .. }), "once more and not for ever: {error}");
    assert_eq!(server.all().await.iter().filter(|seen| seen.method() == "tools/call").count(), 2);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_call_whether_it_streams_or_not() {
    for streams in [false, true] {
        let server = legacy(json!({}), move |seen, _| {
            (seen.method() == "tools/call").then(|| if streams { Reaction::Raw([STREAM_HEAD.as_bytes(), &event(&json!({"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":seen.json()["id"],"progress":1}}))].concat()) } else { Reaction::Hang })
        })
        .await;
        let backend = old(&server);
        let params = modern(json!({ "name": "t", "_meta": { "progressToken": "p" } }), json!({}));
        let waiting = tokio::spawn({
            let backend = backend.clone();
            async move { ask(&backend, calls("alice", "\"x\"", params)).await }
        });
        let call = next_call(&server).await;
        if streams {
            let Content::Events(mut events) = waiting.await.expect("no panic").expect("an answer").content else {
                panic!("no stream")
            };
            events.next().await.expect("progress").expect("good");
            drop(events);
        } else {
            waiting.abort();
        }
        let cancelled = next_call(&server).await;
        assert_eq!(cancelled.method(), "notifications/cancelled");
        assert_eq!(cancelled.json()["params"]["requestId"], call.json()["id"]);
        assert_eq!(cancelled.headers["mcp-session-id"], call.headers["mcp-session-id"]);
    }
}

#[tokio::test]
async fn a_call_that_waits_for_a_connection_is_not_sent_when_its_client_leaves() {
    let held: Arc<Mutex<Vec<mpsc::UnboundedSender<Vec<u8>>>>> = Arc::default();
    let server = legacy(json!({}), {
        let held = held.clone();
        move |seen, _| match seen.json()["params"]["name"].as_str() {
            Some("held") => {
                let (feed, fed) = mpsc::unbounded_channel();
                held.lock().expect("lock").push(feed);
                Some(Reaction::Feed(fed))
            }
            Some(_) => Some(result(seen, "{}")),
            None => None,
        }
    })
    .await;
    let mut config = config(Transport::Http(Http { connections_max: 1, ..http_config(vec![endpoint(server.port)]) }));
    config.era = Some(Era::Legacy);
    let Transport::Http(http) = &config.transport else { panic!("made so") };
    let upstream = http::Upstream::new(&Arc::new(config.clone()), http).expect("good");
    let backend = Arc::new(Remote::limited(&Arc::new(config.clone()), Arc::new(upstream), Limits::default()));
    let begin = |name: &str| {
        let (backend, params) = (backend.clone(), modern(json!({ "name": name }), json!({})));
        tokio::spawn(async move { ask(&backend, calls("alice", "1", params)).await.map(drop) })
    };
    begin("first").await.expect("no panic").expect("an answer");
    next_call(&server).await;
    let _held = begin("held");
    assert_eq!(next_call(&server).await.json()["params"]["name"], "held");
    let gone = begin("gone");
    // It takes the session, then its request waits.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    gone.abort();
    drop(gone.await);
    let last = begin("last");
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let answer = json!({ "jsonrpc": "2.0", "id": 2, "result": {} }).to_string();
    let answer = scripted::http("200 OK", "Connection: close\r\nContent-Type: application/json\r\n", &answer);
    held.lock().expect("lock").drain(..).for_each(|held| held.send(answer.clone()).expect("open"));
    let next = next_call(&server).await;
    assert_eq!((next.method().as_str(), &next.json()["params"]["name"]), ("tools/call", &json!("last")));
    last.await.expect("no panic").expect("an answer");
}

#[tokio::test]
async fn a_call_that_was_answered_is_not_cancelled() {
    let server = legacy(json!({}), |seen, _| (seen.method() == "tools/call").then(|| result(seen, "{}"))).await;
    let backend = old(&server);
    for _ in 0..2 {
        read(ask(&backend, calls("alice", "1", modern(json!({ "name": "t" }), json!({})))).await);
    }
    backend.stop().await;
    let seen = server.all().await;
    assert!(seen.iter().all(|seen| seen.method() != "notifications/cancelled"));
    assert!(seen.last().is_some_and(|seen| seen.line.starts_with("DELETE")), "stopping ends the sessions");
}

#[tokio::test]
async fn discovery_is_answered_from_the_callers_own_session() {
    let server =
        legacy(json!({ "tools": { "listChanged": true }, "resources": { "subscribe": true }, "tasks": {} }), |_, _| {
            None
        })
        .await;
    let discover = asks("alice", "\"d\"", Method::ServerDiscover, &modern(json!({}), json!({})), None);
    let answer = read(ask(&old(&server), discover).await);
    let want = json!({
        "supportedVersions": ["2026-07-28"], "capabilities": { "tools": {}, "resources": {} }, "resultType": "complete",
        "ttlMs": 0, "cacheScope": "private",
        "_meta": { "io.modelcontextprotocol/serverInfo": { "name": "old", "version": "1" } },
    });
    assert_eq!(
        answer,
        json!({ "jsonrpc": "2.0", "id": "d", "result": want }),
        "without a stream nothing can be told of changes"
    );
}

#[tokio::test]
async fn the_log_level_is_lowered_once_and_each_client_hears_what_it_wants() {
    let server = legacy(json!({ "logging": {} }), |seen, _| match seen.method().as_str() {
        "logging/setLevel" => Some(result(seen, "{}")),
        "tools/call" => {
            let note = |level: &str| event(&json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": { "level": level, "data": 1 } }));
            let answer = event(&json!({ "jsonrpc": "2.0", "id": seen.json()["id"], "result": {} }));
            Some(Reaction::Raw([STREAM_HEAD.as_bytes(), &note("debug"), &note("warning"), &answer, b"0\r\n\r\n"].concat()))
        }
        _ => None,
    })
    .await;
    let backend = old(&server);
    let heard = async |level: Option<&str>| -> usize {
        let meta = level.map_or(json!({}), |level| json!({ "io.modelcontextprotocol/logLevel": level }));
        let call = calls("alice", "1", modern(json!({ "name": "t", "_meta": meta }), json!({})));
        match ask(&backend, call).await.expect("an answer").content {
            Content::Json(_) => 0,
            Content::Events(events) => events.collect::<Vec<_>>().await.len() - 1,
            Content::Empty => panic!("empty"),
        }
    };
    assert_eq!(heard(None).await, 0);
    assert_eq!(heard(Some("warning")).await, 1);
    assert_eq!(heard(Some("debug")).await, 2);
    assert_eq!(heard(Some("error")).await, 0);
    let set: Vec<_> = server
        .all()
        .await
        .iter()
        .filter(|seen| seen.method() == "logging/setLevel")
        .map(|seen| seen.json()["params"]["level"].clone())
        .collect();
    assert_eq!(set, [json!("warning"), json!("debug")]);
    let bad =
        calls("alice", "1", modern(json!({ "_meta": { "io.modelcontextprotocol/logLevel": "loud" } }), json!({})));
    let answer = ask(&backend, bad).await.expect("an answer");
    assert_eq!(answer.status, 400);
    assert_eq!(read(Ok(answer))["error"]["code"], -32602);
}

#[tokio::test]
async fn errors_become_modern_ones_with_their_status() {
    for (code, status, want) in [(-32601, 404, -32601), (-32002, 200, -32602), (-32001, 200, -32603)] {
        let server =
            legacy(json!({}), move |seen, _| (seen.method() == "resources/read").then(|| error(seen, "200 OK", code)))
                .await;
        let reads = asks("alice", "5", Method::ResourcesRead, &modern(json!({ "uri": "a://b" }), json!({})), None);
        let answer = ask(&old(&server), reads).await.expect("an answer");
        assert_eq!(answer.status, status);
        assert_eq!(read(Ok(answer)), json!({ "jsonrpc": "2.0", "id": 5, "error": { "code": want, "message": "m" } }));
    }
}

#[tokio::test]
async fn a_stream_that_is_closed_early_is_fetched_to_its_end() {
    let answer: Arc<Mutex<Value>> = Arc::default();
    let server = legacy(json!({}), move |seen, _| {
        if seen.method() == "tools/call" {
            *answer.lock().expect("lock") = seen.json()["id"].clone();
            return Some(Reaction::Raw(
                [STREAM_HEAD.as_bytes(), &chunk("id: 41\nretry: 1\ndata:\n\n"), b"0\r\n\r\n"].concat(),
            ));
        }
        (seen.line.starts_with("GET") && seen.headers.get("last-event-id").is_some_and(|id| id == "41")).then(|| {
            let id = answer.lock().expect("lock").clone();
            Reaction::Raw(
                [STREAM_HEAD.as_bytes(), &event(&json!({ "jsonrpc": "2.0", "id": id, "result": { "late": true } }))]
                    .concat(),
            )
        })
    })
    .await;
    let answer =
        read_any(ask(&old(&server), calls("alice", "1", modern(json!({ "name": "t" }), json!({})))).await).await;
    assert_eq!(answer["result"]["late"], true);
}

/// The answer, however it comes.
pub(super) async fn read_any(answer: Result<Answer, Error>) -> Value {
    match answer.expect("an answer").content {
        Content::Json(body) => serde_json::from_slice(&body).expect("JSON"),
        Content::Events(events) => {
            let all: Vec<_> = events.collect().await;
            let last = all.into_iter().next_back().expect("an event").expect("good");
            serde_json::from_slice(&last.data.expect("data")).expect("JSON")
        }
        Content::Empty => panic!("empty"),
    }
}

#[tokio::test]
async fn the_pool_is_bounded_and_who_leaves_it_is_ended() {
    let server = legacy(json!({}), |seen, _| (seen.method() == "tools/call").then(|| result(seen, "{}"))).await;
    let limits = Limits { sessions_max: 2, sessions_per_principal_max: 1, ..Limits::default() };
    let backend = with(&server, limits);
    let call = |who: &'static str, capabilities: Value| calls(who, "1", modern(json!({ "name": "t" }), capabilities));
    let mut ended = Vec::new();
    for (who, capabilities, ends) in [
        ("alice", json!({}), None),
        ("alice", json!({ "roots": {} }), Some("s-1")),
        ("bob", json!({}), None),
        ("carol", json!({}), Some("s-2")),
    ] {
        read(ask(&backend, call(who, capabilities)).await);
        while let Some(session) = ends.filter(|session| !ended.iter().any(|done| done == session)) {
            let seen = server.next().await;
            if seen.line.starts_with("DELETE") {
                assert_eq!(seen.headers["mcp-session-id"], session);
                ended.push(session.to_owned());
            }
        }
    }
    assert_eq!(backend.uplift.counts().0, 2);
    let backend = with(&server, Limits { session_idle_timeout: Duration::from_millis(40), ..limits });
    read(ask(&backend, call("alice", json!({}))).await);
    loop {
        if server.next().await.line.starts_with("DELETE") {
            break;
        }
    }
    assert_eq!(backend.uplift.counts().0, 0, "an idle session is ended");
}

#[tokio::test]
async fn callers_at_one_time_open_one_session() {
    let server = legacy(json!({}), |seen, _| (seen.method() == "tools/call").then(|| result(seen, "{}"))).await;
    let backend = old(&server);
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let backend = backend.clone();
            tokio::spawn(async move {
                read(ask(&backend, calls("alice", "1", modern(json!({ "name": "t" }), json!({})))).await)
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("no panic");
    }
    assert_eq!(server.all().await.iter().filter(|seen| seen.method() == "initialize").count(), 1);
}

#[tokio::test]
async fn the_era_is_found_by_asking_and_asked_for_again_when_contradicted() {
    let turned = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let server = Server::start({
        let turned = turned.clone();
        move |seen| {
            let modern = seen.headers.get("mcp-protocol-version").is_some_and(|version| version == "2026-07-28");
            match (turned.load(Ordering::SeqCst), modern, seen.method().as_str()) {
                (false, true, "tools/list") => {
                    result(seen, r#"{"resultType":"complete","tools":[],"ttlMs":0,"cacheScope":"public"}"#)
                }
                (false, true, _) => result(seen, r#"{"resultType":"complete","era":"modern"}"#),
                (true, true, _) => error(seen, "400 Bad Request", -32000),
                (true, false, "initialize") => result(seen, r#"{"protocolVersion":"2025-06-18","capabilities":{}}"#),
                (true, false, "tools/list") => result(seen, r#"{"tools":[]}"#),
                (true, false, "tools/call") => result(seen, r#"{"era":"legacy"}"#),
                (_, _, "notifications/initialized") => Reaction::Raw(http("202 Accepted", "", "")),
                _ => Reaction::Raw(http("400 Bad Request", "", "")),
            }
        }
    })
    .await;
    let backend = backend(&[&server]);
    assert_eq!(backend.era(), None);
    let call = || calls("alice", "1", modern(json!({ "name": "t" }), json!({})));
    let era = async |permit| read(backend.call(permit, credential(), soon()).await)["result"]["era"].clone();
    assert_eq!(era(call()).await, "modern");
    assert_eq!(backend.era(), Some(Era::Modern));
    assert_eq!(backend.speaks(credential(), soon()).await, Ok(Era::Modern));
    turned.store(true, Ordering::SeqCst);
    // Beyond the time in which what was found is certain.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(era(call()).await, "legacy", "it was refused as a modern one: nothing had run");
    assert_eq!(backend.era(), Some(Era::Legacy));
    turned.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let reads = asks("bob", "1", Method::ToolsCall, &modern(json!({ "name": "t" }), json!({})), Some(Effect::Read));
    assert_eq!(era(reads).await, "modern", "the handshake was refused, and a read may be sent again");
}
