//! `subscriptions/listen` at a legacy upstream.

use futures_util::FutureExt;
use futures_util::stream::BoxStream;

use super::*;

type Events = BoxStream<'static, Result<mcp::sse::Event, Error>>;

fn wants(who: &str, notifications: Value) -> Permit {
    let params = modern(json!({ "notifications": notifications }), json!({}));
    asks(who, "\"listen:0\"", Method::SubscriptionsListen, &params, None)
}

async fn stream(backend: &Arc<Remote>, permit: Permit) -> Events {
    match ask(backend, permit).await.expect("an answer").content {
        Content::Events(events) => events,
        Content::Json(_) | Content::Empty => panic!("no stream"),
    }
}

async fn next(events: &mut Events) -> Value {
    let event = events.next().await.expect("an event").expect("good");
    serde_json::from_slice(&event.data.expect("data")).expect("JSON")
}

#[tokio::test]
async fn what_is_honoured_is_acknowledged_and_nothing_else_is_told() {
    let (feed, reaction) = feeding();
    let stream_of_session = Mutex::new(Some(reaction));
    let capabilities = json!({ "tools": { "listChanged": true }, "prompts": {}, "resources": { "subscribe": true, "listChanged": true } });
    let server = legacy(capabilities, move |seen, _| match seen.method().as_str() {
        "resources/subscribe" if seen.json()["params"]["uri"] == "a://bad" => Some(error(seen, "200 OK", -32002)),
        "resources/subscribe" | "resources/unsubscribe" => Some(result(seen, "{}")),
        _ if seen.line.starts_with("GET") => stream_of_session.lock().expect("lock").take(),
        _ => None,
    })
    .await;
    // Idle at once, and kept all the same as long as somebody listens.
    let backend = with(&server, Limits { session_idle_timeout: Duration::from_millis(40), ..Limits::default() });
    let uris = ["a://b", "a://bad"];
    let wanted = json!({ "toolsListChanged": true, "promptsListChanged": true, "resourceSubscriptions": uris });
    let mut events = stream(&backend, wants("alice", wanted)).await;
    let meta = json!({ "io.modelcontextprotocol/subscriptionId": "listen:0" });
    let honoured = json!({ "toolsListChanged": true, "resourceSubscriptions": ["a://b"] });
    let first = next(&mut events).await;
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
    assert_eq!(first["params"], json!({ "notifications": honoured, "_meta": meta }));
    let tell = |method: &str, params: Value| {
        feed.send(event(&json!({ "jsonrpc": "2.0", "method": method, "params": params }))).expect("open");
    };
    tell("notifications/prompts/list_changed", json!({}));
    tell("notifications/resources/list_changed", json!({}));
    tell("notifications/message", json!({ "level": "emergency", "data": 1 }));
    tell("notifications/progress", json!({ "progressToken": 1, "progress": 1 }));
    tell("notifications/tools/list_changed", json!({}));
    tell("notifications/resources/updated", json!({ "uri": "a://b" }));
    let change = next(&mut events).await;
    assert_eq!(change["method"], "notifications/tools/list_changed");
    assert_eq!(change["params"], json!({ "_meta": meta }));
    assert_eq!(next(&mut events).await["params"], json!({ "uri": "a://b", "_meta": meta }));
    feed.send(b"0\r\n\r\n".to_vec()).expect("open");
    // The connection closes too: nothing else may be sent over it.
    drop(feed);
    // It cannot be taken up again.
    let end = next(&mut events).await;
    let result = json!({ "resultType": "complete", "_meta": meta });
    assert_eq!(end, json!({ "jsonrpc": "2.0", "id": "listen:0", "result": result }));
    assert!(events.next().await.is_none());
    drop(events);
    let mut after = Vec::new();
    while after.last().is_none_or(|line: &String| line != "DELETE") {
        let seen = server.next().await;
        after.push(if seen.line.starts_with("DELETE") { "DELETE".into() } else { seen.method() });
    }
    assert!(after.ends_with(&["resources/unsubscribe".into(), "DELETE".into()]), "{after:?}");
    assert_eq!(after.iter().filter(|line| *line == "DELETE").count(), 1);
}

type Feed = mpsc::UnboundedSender<Vec<u8>>;

/// A server with resources to watch, whose sessions' own streams are in the test's hand.
async fn telling(
    script: impl Fn(&Seen, &str) -> Option<Reaction> + Send + Sync + 'static,
) -> (Server, Arc<Mutex<Vec<Feed>>>) {
    let feeds: Arc<Mutex<Vec<Feed>>> = Arc::default();
    let capabilities = json!({ "tools": { "listChanged": true }, "resources": { "subscribe": true } });
    let server = legacy(capabilities, {
        let feeds = feeds.clone();
        move |seen, session| {
            if let Some(reaction) = script(seen, session) {
                return Some(reaction);
            }
            match seen.method().as_str() {
                "resources/subscribe" | "resources/unsubscribe" | "ping" => Some(result(seen, "{}")),
                "tools/call" => Some(result(seen, &json!({ "content": [], "s": session }).to_string())),
                _ if seen.line.starts_with("GET") => {
                    let (feed, reaction) = feeding();
                    feeds.lock().expect("lock").push(feed);
                    Some(reaction)
                }
                _ => None,
            }
        }
    })
    .await;
    (server, feeds)
}

fn update(uri: &str) -> Value {
    json!({ "jsonrpc": "2.0", "method": "notifications/resources/updated", "params": { "uri": uri } })
}

fn watches(who: &str, uris: &[&str]) -> Permit {
    wants(who, json!({ "resourceSubscriptions": uris }))
}

fn newest(feeds: &Mutex<Vec<Feed>>) -> Feed {
    feeds.lock().expect("lock").last().expect("a stream").clone()
}

/// The resources that the server was asked about so far.
fn asked_about(seen: &[Seen], method: &str) -> Vec<Value> {
    seen.iter().filter(|seen| seen.method() == method).map(|seen| seen.json()["params"]["uri"].clone()).collect()
}

/// The server has heard of the end of a subscription.
async fn unsubscribed(server: &Server) -> Value {
    let seen = next_call(server).await;
    assert_eq!(seen.method(), "resources/unsubscribe");
    seen.json()["params"]["uri"].clone()
}

#[tokio::test]
async fn listeners_share_the_session_of_the_calls_its_stream_and_its_subscriptions() {
    let (server, feeds) = telling(|_, _| None).await;
    let backend = old(&server);
    let mut first = stream(&backend, watches("alice", &["a://1", "a://2", "a://1"])).await;
    let call = calls("alice", "1", modern(json!({ "name": "t" }), json!({})));
    assert_eq!(read(ask(&backend, call).await)["result"]["s"], "s-1");
    let mut second = stream(&backend, watches("alice", &["a://2", "a://3"])).await;
    let acknowledged = next(&mut first).await["params"]["notifications"].clone();
    assert_eq!(acknowledged, json!({ "resourceSubscriptions": ["a://1", "a://2"] }));
    next(&mut second).await;
    let seen = server.all().await;
    assert_eq!(asked_about(&seen, "resources/subscribe"), ["a://1", "a://2", "a://3"]);
    assert_eq!(seen.iter().filter(|seen| seen.method() == "initialize").count(), 1);
    assert_eq!(seen.iter().filter(|seen| seen.line.starts_with("GET")).count(), 1);
    let others = seen.iter().filter(|seen| seen.method() != "initialize");
    assert!({ others }.all(|seen| seen.headers["mcp-session-id"] == "s-1"));
    let feed = newest(&feeds);
    for uri in ["a://1", "a://3", "a://2", "a://2/part"] {
        feed.send(event(&update(uri))).expect("open");
    }
    for (events, own) in [(&mut first, "a://1"), (&mut second, "a://3")] {
        for uri in [own, "a://2", "a://2/part"] {
            assert_eq!(next(events).await["params"]["uri"], uri);
        }
    }
    drop(first);
    assert_eq!(unsubscribed(&server).await, "a://1");
    feed.send(event(&update("a://2"))).expect("open");
    assert_eq!(next(&mut second).await["params"]["uri"], "a://2");
    drop(second);
    // Nothing was said of the second one when the first listener left.
    assert_eq!([unsubscribed(&server).await, unsubscribed(&server).await], ["a://2", "a://3"]);
    let third = stream(&backend, watches("alice", &["a://2"])).await;
    assert_eq!(asked_about(&server.all().await, "resources/subscribe"), ["a://2"]);
    drop(third);
    let mut bobs = stream(&backend, watches("bob", &["a://1"])).await;
    next(&mut bobs).await;
    let seen = server.all().await;
    let hers = seen.iter().filter(|seen| seen.method() == "resources/subscribe");
    assert!({ hers }.all(|seen| seen.headers["mcp-session-id"] == "s-2"), "nobody shares another one's session");
}

#[tokio::test]
async fn a_listener_that_lags_is_ended_by_an_error_and_the_others_go_on() {
    let (server, feeds) = telling(|_, _| None).await;
    let backend = old(&server);
    let mut slow = stream(&backend, watches("alice", &["a://1"])).await;
    let mut other = stream(&backend, wants("alice", json!({ "toolsListChanged": true }))).await;
    assert_eq!(next(&mut other).await["params"]["notifications"], json!({ "toolsListChanged": true }));
    let feed = newest(&feeds);
    let tools = json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed" });
    for _ in 0..3 {
        for _ in 0..100 {
            feed.send(event(&update("a://1"))).expect("open");
        }
        feed.send(event(&tools)).expect("open");
        assert_eq!(next(&mut other).await["method"], "notifications/tools/list_changed");
    }
    assert_eq!(next(&mut slow).await["method"], "notifications/subscriptions/acknowledged");
    assert!(matches!(slow.next().await, Some(Err(Error::Unavailable { .. }))));
    assert!(slow.next().await.is_none());
}

#[tokio::test]
async fn a_stream_that_ends_is_taken_up_where_it_can_be_and_ends_its_listeners_where_it_cannot() {
    for resumable in [true, false] {
        let (server, feeds) = telling(|_, _| None).await;
        let backend = old(&server);
        let mut events = stream(&backend, watches("alice", &["a://1"])).await;
        next(&mut events).await;
        let told = update("a://1");
        let bytes = if resumable { event(&told) } else { chunk(&format!("data: {told}\n\n")) };
        let feed = newest(&feeds);
        feed.send(bytes).expect("open");
        assert_eq!(next(&mut events).await["params"]["uri"], "a://1");
        feeds.lock().expect("lock").clear();
        feed.send(b"0\r\n\r\n".to_vec()).expect("open");
        drop(feed);
        if !resumable {
            assert_eq!(next(&mut events).await["result"]["resultType"], "complete");
            assert!(events.next().await.is_none());
            drop(events);
            // Whoever listens again waits for the next stream.
            events = stream(&backend, watches("alice", &["a://1"])).await;
            assert_eq!(
                next(&mut events).await["params"]["notifications"],
                json!({ "resourceSubscriptions": ["a://1"] })
            );
        }
        let again = loop {
            let seen = server.next().await;
            if seen.line.starts_with("GET") && feeds.lock().expect("lock").len() == 1 {
                break seen;
            }
        };
        assert_eq!(again.headers["mcp-session-id"], "s-1");
        assert_eq!(again.headers.get("last-event-id").map(String::as_str), resumable.then_some("7"));
        newest(&feeds).send(event(&told)).expect("open");
        assert_eq!(next(&mut events).await["params"]["uri"], "a://1");
    }
}

#[tokio::test]
async fn the_loss_of_a_session_ends_what_listens_to_it_and_the_next_listener_gets_a_new_one() {
    let lost = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (server, _feeds) = telling({
        let lost = lost.clone();
        move |_, session| {
            (lost.load(Ordering::SeqCst) && session == "s-1").then(|| Reaction::Raw(http("404 Not Found", "", "")))
        }
    })
    .await;
    let backend = old(&server);
    let mut events = stream(&backend, watches("alice", &["a://1"])).await;
    next(&mut events).await;
    lost.store(true, Ordering::SeqCst);
    let call = || calls("alice", "1", modern(json!({ "name": "t" }), json!({})));
    assert_eq!(read(ask(&backend, call()).await)["result"]["s"], "s-2", "the call went to a new one");
    assert_eq!(next(&mut events).await["result"]["resultType"], "complete");
    let mut events = stream(&backend, watches("alice", &["a://1"])).await;
    assert_eq!(next(&mut events).await["params"]["notifications"], json!({ "resourceSubscriptions": ["a://1"] }));
}

#[tokio::test]
async fn a_session_that_was_forgotten_between_a_call_and_a_listener_is_replaced() {
    let lost = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (server, _feeds) = telling({
        let lost = lost.clone();
        move |seen, session| {
            let body = r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: No valid session ID provided"},"id":null}"#;
            let refusal = match seen.line.starts_with("GET") {
                true => http("400 Bad Request", "", "Invalid or missing session ID"),
                false => http("400 Bad Request", "Content-Type: application/json\r\n", body),
            };
            (lost.load(Ordering::SeqCst) && session == "s-1").then_some(Reaction::Raw(refusal))
        }
    })
    .await;
    let backend = old(&server);
    let call = calls("alice", "1", modern(json!({ "name": "t" }), json!({})));
    assert_eq!(read(ask(&backend, call).await)["result"]["s"], "s-1");
    lost.store(true, Ordering::SeqCst);
    let mut events = stream(&backend, watches("alice", &["a://1"])).await;
    assert_eq!(next(&mut events).await["params"]["notifications"], json!({ "resourceSubscriptions": ["a://1"] }));
    let seen = server.all().await;
    let last = seen.iter().rfind(|seen| seen.method() == "resources/subscribe").expect("a subscription");
    assert_eq!(last.headers["mcp-session-id"], "s-2");
}

#[tokio::test]
async fn the_stream_that_a_question_about_streams_left_behind_does_not_stand_in_the_way() {
    let begun = AtomicUsize::new(0);
    let (server, _feeds) = telling(move |seen, _| {
        // The first one is the question; the server takes its time to see that it was closed.
        let refused = seen.line.starts_with("GET") && (1..3).contains(&begun.fetch_add(1, Ordering::SeqCst));
        refused.then(|| Reaction::Raw(http("409 Conflict", "", "")))
    })
    .await;
    let backend = old(&server);
    let discovers = asks("alice", "1", Method::ServerDiscover, &modern(json!({}), json!({})), None);
    let offers = read(ask(&backend, discovers).await)["result"]["capabilities"].clone();
    assert_eq!(offers["resources"]["subscribe"], true);
    let mut events = stream(&backend, watches("alice", &["a://1"])).await;
    assert_eq!(next(&mut events).await["params"]["notifications"], json!({ "resourceSubscriptions": ["a://1"] }));
}

#[tokio::test]
async fn a_server_without_a_stream_is_owned_up_to_by_an_empty_acknowledgement() {
    let server = legacy(json!({ "tools": { "listChanged": true } }), |_, _| None).await;
    let backend = old(&server);
    let mut events = stream(&backend, wants("alice", json!({ "toolsListChanged": true }))).await;
    assert_eq!(next(&mut events).await["params"]["notifications"], json!({}));
    let more = tokio::time::timeout(Duration::from_millis(50), events.next()).await;
    assert!(more.is_err(), "it stays open and silent");
}

#[tokio::test]
async fn what_changed_is_told_to_the_listeners_wherever_the_server_says_it() {
    let (server, _feeds) = telling(|seen, _| {
        let (feed, reaction) = feeding();
        (seen.method() == "tools/call").then(|| {
            feed.send(event(&update("a://1"))).expect("open");
            let tools = json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed" });
            feed.send(event(&tools)).expect("open");
            let answer = json!({ "jsonrpc": "2.0", "id": seen.json()["id"], "result": { "content": [] } });
            feed.send([event(&answer), b"0\r\n\r\n".to_vec()].concat()).expect("open");
            reaction
        })
    })
    .await;
    let backend = old(&server);
    let wanted = || json!({ "toolsListChanged": true, "resourceSubscriptions": ["a://1"] });
    let mut hers = stream(&backend, wants("alice", wanted())).await;
    let mut bobs = stream(&backend, wants("bob", wanted())).await;
    next(&mut hers).await;
    next(&mut bobs).await;
    let call = calls("alice", "1", modern(json!({ "name": "t" }), json!({})));
    assert_eq!(read(ask(&backend, call).await)["result"]["resultType"], "complete", "a plain answer");
    let change = next(&mut hers).await["params"].clone();
    let meta = json!({ "io.modelcontextprotocol/subscriptionId": "listen:0" });
    assert_eq!(change, json!({ "uri": "a://1", "_meta": meta }));
    assert_eq!(next(&mut hers).await["method"], "notifications/tools/list_changed");
    assert!(bobs.next().now_or_never().is_none(), "it was not his session");
}

fn renewed() -> Credential {
    let header = HeaderName::from_static("authorization");
    credentials::own(&credentials::Config::Static { header, value: Secret::new("Bearer new") })
}

#[tokio::test]
async fn a_listener_moves_with_the_calls_when_the_credential_is_renewed() {
    let (server, feeds) = telling(|_, _| None).await;
    let backend = old(&server);
    let wanted = json!({ "toolsListChanged": true, "resourceSubscriptions": ["a://1"] });
    let mut events = stream(&backend, wants("alice", wanted)).await;
    next(&mut events).await;
    let mut bobs = stream(&backend, watches("bob", &["a://1"])).await;
    next(&mut bobs).await;
    let tools = json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed" });
    let call = calls("alice", "1", modern(json!({ "name": "t" }), json!({})));
    let answer = read(backend.call(call, renewed(), soon()).await);
    assert_eq!(answer["result"]["s"], "s-3");
    drop(server.all().await);
    let hers = tokio::spawn(async move {
        let first = next(&mut events).await;
        (first, events)
    });
    let mut after = Vec::new();
    while after.len() < 3 {
        let seen = server.next().await;
        let what = if seen.line.starts_with("GET") { "GET".to_owned() } else { seen.method() };
        after.push((what, seen.headers["mcp-session-id"].clone()));
    }
    let want = [("GET", "s-3"), ("resources/subscribe", "s-3"), ("resources/unsubscribe", "s-1")];
    assert_eq!(after, want.map(|(what, session)| (what.to_owned(), session.to_owned())));
    newest(&feeds).send(event(&update("a://1"))).expect("open");
    let (told, mut events) = hers.await.expect("no panic");
    assert_eq!(told["params"]["uri"], "a://1", "nothing was said of the move");
    newest(&feeds).send(event(&tools)).expect("open");
    assert_eq!(next(&mut events).await["method"], "notifications/tools/list_changed");
    assert!(bobs.next().now_or_never().is_none());
}

#[tokio::test]
async fn a_listener_that_cannot_move_is_ended() {
    let (server, _feeds) = telling(|seen, session| {
        (seen.method() == "resources/subscribe" && session == "s-2").then(|| error(seen, "200 OK", -32002))
    })
    .await;
    let backend = old(&server);
    let mut events = stream(&backend, watches("alice", &["a://1"])).await;
    next(&mut events).await;
    let call = calls("alice", "1", modern(json!({ "name": "t" }), json!({})));
    read(backend.call(call, renewed(), soon()).await);
    assert_eq!(next(&mut events).await["result"]["resultType"], "complete");
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn listeners_are_bounded() {
    let server = legacy(json!({}), |_, _| None).await;
    let backend = with(&server, Limits { listens_per_principal_max: 1, ..Limits::default() });
    let first = stream(&backend, wants("alice", json!({}))).await;
    assert!(matches!(refusal(ask(&backend, wants("alice", json!({}))).await), Error::Unavailable { .. }));
    let _bobs = stream(&backend, wants("bob", json!({}))).await;
    drop(first);
    let _second = stream(&backend, wants("alice", json!({}))).await;
    let malformed = asks("carol", "1", Method::SubscriptionsListen, &modern(json!({}), json!({})), None);
    assert_eq!(read(ask(&backend, malformed).await)["error"]["code"], -32602);
}
