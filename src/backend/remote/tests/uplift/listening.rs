//! `subscriptions/listen` at a legacy upstream.

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
    let backend = old(&server);
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
