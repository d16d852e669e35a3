//! Legacy clients in front of modern upstreams: the workbench and the Python fixture forced to be modern, and upstreams
//! whose every word is scripted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use axum::body::Body;
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::Value;
use serde_json::json;
use tokio::sync::mpsc;

use crate::harness::AUDIENCE;
use crate::harness::Answer;
use crate::harness::Rig;
use crate::scripted;
use crate::scripted::Scripted;

const READS: [&str; 3] = ["count_slowly", "list_notes", "read_note"];

async fn workbench() -> Rig {
    Rig::with(|file| file["backends"]["workbench"]["era"] = json!("modern")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_scope_sees_and_calls_through_the_door_what_it_may() {
    let rig = workbench().await;
    for (token, want) in [(rig.viewer(), 3), (rig.editor(), 5), (rig.admin_token(), 7)] {
        let session = rig.session(&token).await.expect("the door has sessions");
        let answer = rig.legacy(&token, Some(&session), "tools/list", json!({})).await;
        assert_eq!(answer.tools().len(), want, "{}", answer.text);
        for modern in ["resultType", "ttlMs", "cacheScope", "io.modelcontextprotocol"] {
            assert!(!answer.text.contains(modern), "{modern}: {}", answer.text);
        }
    }
    let session = rig.session(&rig.viewer()).await;
    let answer = rig.legacy(&rig.viewer(), session.as_deref(), "tools/list", json!({})).await;
    assert_eq!(answer.tools(), READS);
    let call = json!({ "name": "list_notes", "arguments": {} });
    let answer = rig.legacy(&rig.viewer(), session.as_deref(), "tools/call", call).await;
    assert_eq!((answer.status, &answer.body["id"]), (200, &json!(7)), "{}", answer.text);
    let record = rig.record(|record| record["target"] == "list_notes").await;
    assert_eq!(
        (&record["era"], &record["method"], &record["decision"], &record["outcome"]),
        (&json!("legacy"), &json!("tools/call"), &json!("allowed"), &json!("streamed"))
    );
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_tool_answers_through_the_door_like_one_that_does_not_exist() {
    let rig = workbench().await;
    let session = rig.session(&rig.viewer()).await;
    let call = |name: &str| json!({ "name": name, "arguments": {} });
    let hidden = rig.legacy(&rig.viewer(), session.as_deref(), "tools/call", call("delete_note")).await;
    let missing = rig.legacy(&rig.viewer(), session.as_deref(), "tools/call", call("delete_nope")).await;
    assert_eq!((hidden.status, hidden.code()), (200, Some(-32602)), "{}", hidden.text);
    assert_eq!(hidden.text, missing.text.replace("delete_nope", "delete_note"));
    let record = rig.record(|record| record["target"] == "delete_note").await;
    assert_eq!((&record["reason"], &record["era"]), (&json!("unknown_tool"), &json!("legacy")));
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_session_belongs_to_its_principal_and_ends_when_it_is_ended() {
    let rig = workbench().await;
    let session = rig.session(&rig.viewer()).await.unwrap();
    assert_eq!(rig.legacy(&rig.viewer(), Some(&session), "ping", json!({})).await.body["result"], json!({}));
    let foreign = rig.legacy(&rig.editor(), Some(&session), "ping", json!({})).await;
    let unknown = rig.legacy(&rig.editor(), Some("AAAA"), "ping", json!({})).await;
    assert_eq!((foreign.status, &foreign.text), (404, &unknown.text));
    let response = json!({ "jsonrpc": "2.0", "id": "wg-x", "result": {} }).to_string();
    assert_eq!(rig.post(&rig.editor(), Some(&session), &response).await.status, 404, "a foreign session");
    assert_eq!(rig.post(&rig.viewer(), Some(&session), &response).await.status, 400, "nobody waits");
    assert_eq!(rig.post(&rig.viewer(), None, &response).await.status, 404, "no session");
    assert_eq!(rig.legacy(&rig.viewer(), None, "tools/list", json!({})).await.status, 400, "initialize comes first");
    let delete = || rig.client.delete(rig.url()).bearer_auth(rig.viewer()).header("mcp-session-id", &session);
    assert_eq!(delete().send().await.unwrap().status(), 204);
    assert_eq!(rig.legacy(&rig.viewer(), Some(&session), "ping", json!({})).await.status, 404);
    let levels = rig.session(&rig.viewer()).await;
    for (level, wanted) in [("debug", None), ("loud", Some(-32602))] {
        let answer = rig.legacy(&rig.viewer(), levels.as_deref(), "logging/setLevel", json!({ "level": level })).await;
        assert_eq!(answer.code(), wanted, "{}", answer.text);
    }
    rig.app.shutdown().await;
}

/// A modern upstream: discovery and catalog are given, everything else is the script's.
pub async fn modern(script: impl Fn(&HeaderMap, &Value) -> Response + Send + Sync + 'static) -> Scripted {
    Scripted::start(move |method, headers, message| match (method.as_str(), message["method"].as_str()) {
        ("POST", Some("initialize")) => {
            let error = json!({ "code": -32022, "message": "no", "data": { "supported": ["2026-07-28"] } });
            let mut refused = scripted::plain(json!({ "jsonrpc": "2.0", "id": message["id"], "error": error }));
            *refused.status_mut() = http::StatusCode::BAD_REQUEST;
            refused
        }
        ("POST", Some("tools/list")) => scripted::result(message, scripted::two_tools()),
        ("POST", Some("server/discover")) => scripted::result(
            message,
            json!({
                "resultType": "complete", "supportedVersions": ["2026-07-28"], "ttlMs": 0, "cacheScope": "private",
                "capabilities": { "tools": { "listChanged": true }, "resources": { "subscribe": true }, "logging": {}, "extensions": { "x/y": {} } },
                "_meta": { "io.modelcontextprotocol/serverInfo": { "name": "odd", "version": "1" } },
            }),
        ),
        ("POST", _) => script(headers, message),
        _ => Response::builder().status(405).body(Body::empty()).unwrap(),
    })
    .await
}

pub async fn before(upstream: &Scripted, era: Option<&str>) -> Rig {
    Rig::with(|file| {
        file["backends"] = json!({ "odd": { "http": { "url": upstream.url }, "trust_annotations": true } });
        if let Some(era) = era {
            file["backends"]["odd"]["era"] = json!(era);
        }
        file["routes"][0]["backends"] = json!(["odd"]);
    })
    .await
}

/// A session whose client can be asked everything.
pub async fn session(rig: &Rig, version: &str, capabilities: Value) -> (Answer, String) {
    let params = json!({ "protocolVersion": version, "capabilities": capabilities, "clientInfo": { "name": "it", "version": "1" } });
    let answer = rig.legacy(&rig.viewer(), None, "initialize", params).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let session = answer.header("mcp-session-id").expect("a session").to_owned();
    (answer, session)
}

/// What the upstream was asked, and the streams it answers with.
#[derive(Clone, Default)]
pub struct Seen {
    messages: Arc<Mutex<Vec<Value>>>,
    streams: Arc<Mutex<VecDeque<mpsc::UnboundedSender<String>>>>,
}

impl Seen {
    pub fn note(&self, message: &Value) -> usize {
        let mut messages = self.messages.lock().unwrap();
        messages.push(message.clone());
        messages.len()
    }

    pub fn all(&self) -> Vec<Value> {
        self.messages.lock().unwrap().clone()
    }

    /// An answer that the test writes as it goes.
    pub fn stream(&self) -> Response {
        let (sender, mut receiver) = mpsc::unbounded_channel::<String>();
        self.streams.lock().unwrap().push_back(sender);
        let body = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let body = futures_util::StreamExt::map(body, |text| Ok::<_, std::io::Error>(Bytes::from(text)));
        Response::builder().header("content-type", "text/event-stream").body(Body::from_stream(body)).unwrap()
    }

    /// The next stream that the upstream has opened.
    pub async fn next(&self) -> mpsc::UnboundedSender<String> {
        for _ in 0..500 {
            if let Some(stream) = self.streams.lock().unwrap().pop_front() {
                return stream;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the upstream was not asked for a stream: {:#?}", self.all());
    }
}

pub fn event(message: &Value) -> String {
    format!("data: {message}\n\n")
}

/// A response that is read event by event.
pub struct Reading {
    response: reqwest::Response,
    text: String,
}

impl Reading {
    pub async fn open(request: reqwest::RequestBuilder) -> Reading {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        Reading { response, text: String::new() }
    }

    /// The next event that is not a comment: (id, data).
    pub async fn next(&mut self) -> Option<(Option<String>, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                let id = field("id:").map(str::to_owned);
                if let Some(data) = field("data:") {
                    return Some((id, serde_json::from_str(data).unwrap_or(Value::Null)));
                }
                continue;
            }
            let chunk =
                tokio::time::timeout(Duration::from_secs(20), self.response.chunk()).await.expect("more or the end");
            self.text.push_str(&String::from_utf8_lossy(&chunk.unwrap()?));
        }
    }

    /// The next message.
    pub async fn message(&mut self) -> Value {
        loop {
            let (_, data) = self.next().await.expect("a message");
            if !data.is_null() {
                return data;
            }
        }
    }
}

pub fn call(rig: &Rig, session: &str, id: Value) -> reqwest::RequestBuilder {
    let body = json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": { "name": "look", "arguments": { "n": 1 }, "_meta": { "progressToken": "p" } } });
    rig.client
        .post(rig.url())
        .bearer_auth(rig.viewer())
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("mcp-session-id", session)
        .header("mcp-protocol-version", "2025-11-25")
        .body(body.to_string())
}

pub fn watch(rig: &Rig, session: &str) -> reqwest::RequestBuilder {
    rig.client
        .get(rig.url())
        .bearer_auth(rig.viewer())
        .header("accept", "text/event-stream")
        .header("mcp-session-id", session)
        .header("mcp-protocol-version", "2025-11-25")
}

const ALL: &str = r#"{"elicitation":{"form":{}},"sampling":{},"roots":{"listChanged":true}}"#;

pub fn all() -> Value {
    serde_json::from_str(ALL).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn initialize_is_answered_from_discovery_and_every_request_carries_what_the_client_said() {
    let seen = Seen::default();
    let noted = seen.clone();
    let upstream = modern(move |headers, message| {
        let mut message = message.clone();
        message["header"] = json!(headers.get("mcp-name").and_then(|name| name.to_str().ok()));
        noted.note(&message);
        scripted::result(&message, json!({ "resultType": "complete", "content": [], "structuredContent": [1] }))
    })
    .await;
    let rig = before(&upstream, Some("modern")).await;
    let (answer, session) = session(&rig, "2025-06-18", all()).await;
    assert_eq!(
        answer.body["result"],
        json!({
            "protocolVersion": "2025-06-18", "serverInfo": { "name": "odd", "version": "1" },
            "capabilities": { "tools": { "listChanged": true }, "resources": { "subscribe": true }, "logging": {} },
        })
    );
    rig.legacy(&rig.viewer(), Some(&session), "logging/setLevel", json!({ "level": "debug" })).await;
    let answer = Answer::of(call(&rig, &session, json!("a")).send().await.unwrap()).await;
    assert_eq!(answer.text, r#"{"jsonrpc":"2.0","id":"a","result":{"content":[]}}"#);
    let asked = &seen.all()[0];
    assert_eq!((&asked["header"], &asked["params"]["arguments"]), (&json!("look"), &json!({ "n": 1 })));
    assert_eq!(
        asked["params"]["_meta"],
        json!({
            "progressToken": "p",
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": { "elicitation": { "form": {} }, "sampling": {}, "roots": {} },
            "io.modelcontextprotocol/clientInfo": { "name": "it", "version": "1" },
            "io.modelcontextprotocol/logLevel": "debug",
        })
    );
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_wants_to_know_is_asked_of_the_client_over_two_rounds() {
    let seen = Seen::default();
    let noted = seen.clone();
    let upstream = modern(move |_, message| match noted.note(message) {
        1 => scripted::result(message, json!({
            "resultType": "input_required", "requestState": "s-1 \u{e4}",
            "inputRequests": {
                "user": { "method": "elicitation/create", "params": { "message": "Name?", "requestedSchema": { "type": "object", "properties": {} } } },
                "roots": { "method": "roots/list" },
            },
        })),
        2 => {
            let progress = json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": { "progressToken": "p", "progress": 1 } });
            let asks = json!({ "jsonrpc": "2.0", "id": message["id"], "result": { "resultType": "input_required",
                "inputRequests": { "model": { "method": "sampling/createMessage", "params": { "messages": [], "maxTokens": 1 } } } } });
            scripted::events(format!("{}{}", event(&progress), event(&asks)))
        }
        _ => scripted::result(message, json!({ "resultType": "complete", "content": [{ "type": "text", "text": "done" }] })),
    })
    .await;
    let rig = before(&upstream, Some("modern")).await;
    let (_, session) = session(&rig, "2025-11-25", all()).await;
    let mut stream = Reading::open(call(&rig, &session, json!("a"))).await;
    let (first, second) = (stream.message().await, stream.message().await);
    assert_eq!((&first["method"], &first["params"]["message"]), (&json!("elicitation/create"), &json!("Name?")));
    assert_eq!((&second["method"], second.get("params")), (&json!("roots/list"), None));
    assert_ne!(first["id"], second["id"]);
    let reply = async |id: &Value, outcome: (&str, Value)| {
        let mut body = json!({ "jsonrpc": "2.0", "id": id });
        body[outcome.0] = outcome.1;
        rig.post(&rig.viewer(), Some(&session), &body.to_string()).await.status
    };
    let foreign = json!({ "jsonrpc": "2.0", "id": first["id"], "result": { "action": "accept" } }).to_string();
    assert_eq!(
        rig.post(&rig.editor(), Some(&session), &foreign).await.status,
        404,
        "somebody else answers for the user"
    );
    assert_eq!(reply(&second["id"], ("result", json!({ "roots": [] }))).await, 202);
    assert_eq!(reply(&first["id"], ("error", json!({ "code": -1, "message": "no" }))).await, 202);
    assert_eq!(stream.message().await["method"], "notifications/progress");
    let third = stream.message().await;
    assert_eq!(third["method"], "sampling/createMessage");
    assert_eq!(
        reply(
            &third["id"],
            ("result", json!({ "role": "assistant", "model": "m", "content": { "type": "text", "text": "t" } }))
        )
        .await,
        202
    );
    let last = stream.message().await;
    assert_eq!(
        last,
        json!({ "jsonrpc": "2.0", "id": "a", "result": { "content": [{ "type": "text", "text": "done" }] } })
    );
    assert!(stream.next().await.is_none(), "the answer ends the stream");
    assert_eq!(reply(&third["id"], ("result", json!({}))).await, 400, "once");
    let asked = seen.all();
    assert_eq!(asked.len(), 3);
    assert_eq!(
        asked[1]["params"]["inputResponses"],
        json!({ "user": { "action": "cancel" }, "roots": { "roots": [] } })
    );
    assert_eq!(asked[1]["params"]["requestState"], "s-1 \u{e4}");
    assert_eq!(asked[2]["params"]["inputResponses"]["model"]["model"], "m");
    assert_eq!(asked[2]["params"].get("requestState"), None);
    let mut ids: Vec<_> = asked.iter().map(|message| message["id"].to_string()).collect();
    ids.dedup();
    assert_eq!(ids.len(), 3, "each round has an id of its own: {ids:?}");
    assert!(asked.iter().all(|message| message["params"]["arguments"] == json!({ "n": 1 })));
    let records: Vec<_> = rig.records().into_iter().filter(|record| record["method"] == "tools/call").collect();
    assert_eq!(records.len(), 1, "one record for one request: {records:#?}");
    assert_eq!((&records[0]["target"], &records[0]["outcome"]), (&json!("look"), &json!("streamed")));
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_not_asked_for_what_it_did_not_declare_and_not_for_ever() {
    let seen = Seen::default();
    let noted = seen.clone();
    let upstream = modern(move |_, message| {
        noted.note(message);
        scripted::result(message, json!({ "resultType": "input_required", "inputRequests": { "user": { "method": "elicitation/create", "params": { "message": "Name?" } } } }))
    })
    .await;
    let rig = before(&upstream, Some("modern")).await;
    let (_, bare) = session(&rig, "2025-11-25", json!({})).await;
    let mut stream = Reading::open(call(&rig, &bare, json!(1))).await;
    let refused = stream.message().await;
    assert_eq!(
        (&refused["id"], refused["error"]["data"]["reason"].as_str()),
        (&json!(1), Some("backend_protocol")),
        "{refused}"
    );
    assert_eq!(seen.all()[0]["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"], json!({}));
    let (_, able) = session(&rig, "2025-11-25", all()).await;
    let mut stream = Reading::open(call(&rig, &able, json!(2))).await;
    let mut asked = 0;
    let last = loop {
        let message = stream.message().await;
        if message.get("method").is_none() {
            break message;
        }
        asked += 1;
        let body = json!({ "jsonrpc": "2.0", "id": message["id"], "result": { "action": "decline" } }).to_string();
        assert_eq!(rig.post(&rig.viewer(), Some(&able), &body).await.status, 202);
    };
    assert!(last["error"]["message"].as_str().is_some_and(|words| words.contains("too often")), "{last}");
    assert!((8..=9).contains(&asked), "{asked}");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_is_relayed_on_the_get_stream_and_follows_what_is_subscribed() {
    let seen = Seen::default();
    let noted = seen.clone();
    let upstream = modern(move |_, message| {
        noted.note(message);
        noted.stream()
    })
    .await;
    let rig = before(&upstream, Some("modern")).await;
    let (_, session) = session(&rig, "2025-11-25", json!({})).await;
    let acknowledge = |stream: &mpsc::UnboundedSender<String>, accepted: Value| {
        let words = json!({ "jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": { "notifications": accepted, "_meta": { "io.modelcontextprotocol/subscriptionId": "x" } } });
        stream.send(event(&words)).unwrap();
    };
    let watching = watch(&rig, &session);
    let opened = tokio::spawn(Reading::open(watching));
    let first = seen.next().await;
    assert_eq!(seen.all()[0]["params"]["notifications"], json!({ "toolsListChanged": true }), "what was announced");
    acknowledge(&first, json!({ "toolsListChanged": true }));
    let mut news = opened.await.unwrap();
    let changed = json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": { "_meta": { "io.modelcontextprotocol/subscriptionId": "x" } } });
    first.send(event(&changed)).unwrap();
    assert_eq!(news.message().await, json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed" }));

    let (url, token) = (json!({ "uri": "note://a" }), rig.viewer());
    let subscribing = rig.legacy(&token, Some(&session), "resources/subscribe", url.clone());
    let answering = async {
        let second = seen.next().await;
        acknowledge(&second, json!({ "toolsListChanged": true, "resourceSubscriptions": ["note://a"] }));
        second
    };
    let (subscribed, second) = tokio::join!(subscribing, answering);
    assert_eq!(subscribed.body["result"], json!({}), "{}", subscribed.text);
    assert_eq!(seen.all()[1]["params"]["notifications"]["resourceSubscriptions"], json!(["note://a"]));
    let updated = json!({ "jsonrpc": "2.0", "method": "notifications/resources/updated", "params": { "uri": "note://a", "_meta": { "io.modelcontextprotocol/subscriptionId": "x" } } });
    second.send(event(&updated)).unwrap();
    assert_eq!(news.message().await["params"], json!({ "uri": "note://a" }));
    tokio::time::timeout(Duration::from_secs(10), first.closed()).await.expect("the old subscription is dropped");

    let refusing = async {
        let third = seen.next().await;
        acknowledge(&third, json!({ "toolsListChanged": true, "resourceSubscriptions": ["note://a"] }));
    };
    let (refused, ()) = tokio::join!(
        rig.legacy(&token, Some(&session), "resources/subscribe", json!({ "uri": "note://none" })),
        refusing
    );
    assert_eq!(refused.code(), Some(-32002), "what the upstream does not accept is not subscribed: {}", refused.text);

    let leaving = async {
        let fourth = seen.next().await;
        acknowledge(&fourth, json!({ "toolsListChanged": true }));
        fourth
    };
    let (left, fourth) = tokio::join!(rig.legacy(&token, Some(&session), "resources/unsubscribe", url), leaving);
    assert_eq!(left.body["result"], json!({}), "{}", left.text);
    assert_eq!(seen.all()[3]["params"]["notifications"], json!({ "toolsListChanged": true }));
    drop(news);
    let ended =
        rig.client.delete(rig.url()).bearer_auth(&token).header("mcp-session-id", &session).send().await.unwrap();
    assert_eq!(ended.status(), 204);
    tokio::time::timeout(Duration::from_secs(10), fourth.closed())
        .await
        .expect("the subscription ends with the session");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_ends_the_call_at_the_upstream() {
    let seen = Seen::default();
    let noted = seen.clone();
    let upstream = modern(move |_, _| noted.stream()).await;
    let rig = before(&upstream, Some("modern")).await;
    let (_, session) = session(&rig, "2025-11-25", json!({})).await;
    let mut stream = Reading::open(call(&rig, &session, json!("c-1"))).await;
    let upstream = seen.next().await;
    let cancel = |id: &str| {
        json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": id } }).to_string()
    };
    assert_eq!(rig.post(&rig.viewer(), Some(&session), &cancel("c-2")).await.status, 202);
    let progress = json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": { "progressToken": "p", "progress": 1 } });
    upstream.send(event(&progress)).unwrap();
    assert_eq!(stream.message().await["method"], "notifications/progress", "another id cancels nothing");
    assert_eq!(rig.post(&rig.viewer(), Some(&session), &cancel("c-1")).await.status, 202);
    tokio::time::timeout(Duration::from_secs(10), upstream.closed()).await.expect("the upstream sees the end");
    assert!(stream.next().await.is_none(), "a cancelled request is not answered");
    let record = rig.record(|record| record["method"] == "tools/call").await;
    assert_eq!(record["outcome"], "cancelled");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_loses_its_connection_comes_back_for_the_rest() {
    let seen = Seen::default();
    let noted = seen.clone();
    let upstream = modern(move |_, _| noted.stream()).await;
    let rig = before(&upstream, Some("modern")).await;
    let (_, own) = session(&rig, "2025-11-25", json!({})).await;
    let (_, other) = session(&rig, "2025-11-25", json!({})).await;
    let mut stream = Reading::open(call(&rig, &own, json!("r-1"))).await;
    let upstream = seen.next().await;
    let progress = |n: u32| {
        event(
            &json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": { "progressToken": "p", "progress": n } }),
        )
    };
    let (priming, data) = stream.next().await.unwrap();
    assert!(priming.is_some() && data.is_null(), "an id and no message first: {priming:?} {data}");
    upstream.send(progress(1)).unwrap();
    let (id, first) = stream.next().await.unwrap();
    let id = id.expect("events can be named");
    assert_eq!(first["params"]["progress"], 1);
    drop(stream);
    rig.record(|record| record["method"] == "tools/call" && record["outcome"] == "client_gone").await;
    upstream.send(progress(2)).unwrap();
    assert!(!upstream.is_closed(), "leaving is not cancelling");

    let refused = watch(&rig, &other).header("last-event-id", &id).send().await.unwrap();
    assert_eq!(refused.status(), 400, "another session's stream");
    let narrower = rig.issuer.token("viewer", "mcp.read mcp.else", AUDIENCE);
    let request = rig.client.get(rig.url()).bearer_auth(narrower).header("accept", "text/event-stream");
    let request = request.header("mcp-session-id", &own).header("mcp-protocol-version", "2025-11-25");
    let refused = request.header("last-event-id", &id).send().await.unwrap();
    assert_eq!(refused.status(), 400, "the same person, with another token than the answer was judged for");
    let mut rest = Reading::open(watch(&rig, &own).header("last-event-id", &id)).await;
    assert_eq!(rest.message().await["params"]["progress"], 2);
    upstream.send(progress(3)).unwrap();
    assert_eq!(rest.message().await["params"]["progress"], 3);
    let done = json!({ "jsonrpc": "2.0", "id": "r-1", "result": { "resultType": "complete", "content": [] } });
    upstream.send(event(&done)).unwrap();
    assert_eq!(rest.message().await, json!({ "jsonrpc": "2.0", "id": "r-1", "result": { "content": [] } }));
    assert!(rest.next().await.is_none());
    let mut once_more = Reading::open(watch(&rig, &own).header("last-event-id", priming.unwrap())).await;
    assert_eq!(once_more.message().await["params"]["progress"], 1, "all of it is still there for a while");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_of_unknown_era_that_refuses_initialize_is_reached_through_the_door() {
    let upstream =
        modern(|_, message| scripted::result(message, json!({ "resultType": "complete", "content": [] }))).await;
    let rig = before(&upstream, None).await;
    let (answer, session) = session(&rig, "2025-11-25", json!({})).await;
    assert_eq!(answer.body["result"]["serverInfo"]["name"], "odd");
    let answer = Answer::of(call(&rig, &session, json!(1)).send().await.unwrap()).await;
    assert_eq!(answer.text, r#"{"jsonrpc":"2.0","id":1,"result":{"content":[]}}"#);
    let records: Vec<_> = rig.records().into_iter().filter(|record| record["method"] == "initialize").collect();
    assert_eq!(records.len(), 1, "{records:#?}");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_one_path_is_unknown_on_the_other() {
    let rig = Rig::with(|file| file["backends"]["workbench"]["era"] = json!("legacy")).await;
    let straight = rig.session(&rig.viewer()).await.expect("the workbench has sessions");
    let mut file = crate::harness::configuration(&rig.issuer, &rig.workbench.url, &rig.audit);
    file["backends"]["workbench"]["era"] = json!("modern");
    rig.reload(file.clone()).await;
    assert_eq!(rig.legacy(&rig.viewer(), Some(&straight), "ping", json!({})).await.status, 404);
    let door = rig.session(&rig.viewer()).await.expect("the door has sessions");
    assert_eq!(rig.legacy(&rig.viewer(), Some(&door), "ping", json!({})).await.status, 200);
    file["backends"]["workbench"]["era"] = json!("legacy");
    rig.reload(file.clone()).await;
    assert_eq!(rig.legacy(&rig.viewer(), Some(&door), "ping", json!({})).await.status, 404);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_waited_over_a_reload_is_not_made_again() {
    let seen = Seen::default();
    let noted = seen.clone();
    let upstream = modern(move |_, message| {
        noted.note(message);
        scripted::result(
            message,
            json!({ "resultType": "input_required", "inputRequests": { "user": { "method": "elicitation/create", "params": { "message": "Name?" } } } }),
        )
    })
    .await;
    let rig = before(&upstream, Some("modern")).await;
    let (_, session) = session(&rig, "2025-11-25", all()).await;
    let mut stream = Reading::open(call(&rig, &session, json!(1))).await;
    let question = stream.message().await;
    let mut file = crate::harness::configuration(&rig.issuer, &upstream.url, &rig.audit);
    file["backends"] =
        json!({ "odd": { "http": { "url": upstream.url }, "trust_annotations": true, "era": "modern" } });
    file["routes"][0]["backends"] = json!(["odd"]);
    file["mode"] = json!("read-only");
    rig.reload(file.clone()).await;
    let answer = json!({ "jsonrpc": "2.0", "id": question["id"], "result": { "action": "decline" } }).to_string();
    assert_eq!(rig.post(&rig.viewer(), Some(&session), &answer).await.status, 202);
    let last = stream.message().await;
    assert_eq!((&last["id"], &last["error"]["data"]["reason"]), (&json!(1), &json!("backend_unavailable")), "{last}");
    assert_eq!(seen.all().len(), 1, "what was allowed before is not taken for allowed now");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_takes_too_long_is_recorded_once_and_as_what_the_client_was_told() {
    let upstream = modern(|_, _| {
        let silent = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        Response::builder().header("content-type", "application/json").body(Body::from_stream(silent)).unwrap()
    })
    .await;
    let rig = Rig::with(|file| {
        file["backends"] =
            json!({ "odd": { "http": { "url": upstream.url }, "trust_annotations": true, "era": "modern" } });
        file["routes"][0]["backends"] = json!(["odd"]);
        file["admission"] = json!({ "request_timeout": "1s" });
    })
    .await;
    let (_, session) = session(&rig, "2025-11-25", json!({})).await;
    let calls = (0..8).map(|n| call(&rig, &session, json!(n)).send());
    for answer in futures_util::future::join_all(calls).await {
        let answer = Answer::of(answer.unwrap()).await;
        assert_eq!((answer.status, &answer.body["error"]["data"]["reason"]), (504, &json!("backend_timeout")));
    }
    let late = |record: &Value| record["method"] == "tools/call" && record["reason"] == "backend_timeout";
    rig.record(late).await;
    let audit = rig.audit.clone();
    let records = rig.records();
    let calls: Vec<_> = records.iter().filter(|record| record["method"] == "tools/call").collect();
    assert_eq!(calls.len(), 8, "{audit:?}: {calls:#?}");
    for record in calls {
        assert_eq!(
            (&record["reason"], &record["outcome"], &record["status"], &record["target"]),
            (&json!("backend_timeout"), &json!("failed"), &json!(504), &json!("look"))
        );
    }
    rig.app.shutdown().await;
}
