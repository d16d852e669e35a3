//! Clients that only speak HTTP+SSE of 2024-11-05 in front of every kind of route.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use serde_json::Value;
use serde_json::json;
use wardgate::mcp::sse::Event;
use wardgate::mcp::sse::Parser;

use crate::harness::Answer;
use crate::harness::Rig;
use crate::live;
use crate::scripted;
use crate::scripted::Scripted;

const PATIENCE: Duration = Duration::from_secs(20);

/// One open stream, and where its messages go.
struct Line {
    response: reqwest::Response,
    parser: Parser,
    events: VecDeque<Event>,
    base: String,
    /// As the gateway said it.
    endpoint: String,
    token: String,
    client: reqwest::Client,
}

async fn get(rig: &Rig, path: &str, token: Option<&str>) -> reqwest::Response {
    let request = rig.client.get(format!("{}{path}", rig.base)).header("accept", "text/event-stream");
    let request = match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    };
    request.send().await.unwrap()
}

impl Line {
    async fn open(rig: &Rig, token: &str) -> Line {
        let response = get(rig, "/mcp/sse", Some(token)).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut line = Line {
            response,
            parser: Parser::new(1 << 20),
            events: VecDeque::new(),
            base: rig.base.clone(),
            endpoint: String::new(),
            token: token.to_owned(),
            client: rig.client.clone(),
        };
        let first = line.event().await.expect("an endpoint");
        assert_eq!(first.name.as_deref(), Some("endpoint"));
        line.endpoint = String::from_utf8(first.data.unwrap().to_vec()).unwrap();
        line
    }

    /// The next event; `None` at the end of the stream.
    async fn event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("something in time");
            self.parser.feed(&chunk.ok().flatten()?, &mut self.events).unwrap();
        }
    }

    async fn message(&mut self) -> Value {
        let event = self.event().await.expect("the stream goes on");
        assert_eq!((event.name.as_deref(), event.id), (Some("message"), None));
        serde_json::from_slice(&event.data.unwrap()).unwrap()
    }

    /// As these clients send it: they ask for no media type.
    async fn post(&self, token: &str, message: &Value) -> Answer {
        let request = self.client.post(format!("{}{}", self.base, self.endpoint)).bearer_auth(token);
        let request = request.header("content-type", "application/json").body(message.to_string());
        Answer::of(request.send().await.unwrap()).await
    }

    async fn send(&self, message: Value) {
        let answer = self.post(&self.token, &message).await;
        assert_eq!((answer.status, answer.text.as_str()), (202, ""), "{message}");
        assert_eq!(answer.header("mcp-session-id"), None);
    }

    /// Sends a request and gives its answer, and what came before it.
    async fn ask(&mut self, id: u64, method: &str, params: Value) -> (Value, Vec<Value>) {
        self.send(json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })).await;
        let mut before = Vec::new();
        loop {
            let message = self.message().await;
            if message["id"] == id && message.get("method").is_none() {
                return (message, before);
            }
            before.push(message);
        }
    }

    async fn initialize(&mut self) -> Value {
        let params = json!({ "protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": { "name": "old", "version": "1" } });
        let (answer, _) = self.ask(0, "initialize", params).await;
        assert_eq!(answer["result"]["protocolVersion"], "2024-11-05", "{answer}");
        self.send(json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
        answer
    }

    async fn tools(&mut self) -> Vec<String> {
        let (answer, _) = self.ask(1, "tools/list", json!({})).await;
        let tools = answer["result"]["tools"].as_array().unwrap_or_else(|| panic!("no tools in {answer}"));
        let mut names: Vec<_> = tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }
}

/// A workbench that is met in this era.
async fn workbench(era: &str) -> Rig {
    Rig::with(|file| file["backends"]["workbench"]["era"] = json!(era)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_client_lists_and_calls_what_it_may_whatever_the_backend_speaks() {
    for era in ["legacy", "modern"] {
        let rig = workbench(era).await;
        let mut line = Line::open(&rig, &rig.viewer()).await;
        assert!(line.endpoint.starts_with("/mcp/messages/"), "{}", line.endpoint);
        assert_eq!(line.endpoint.len(), "/mcp/messages/".len() + 32);
        line.initialize().await;
        assert_eq!(line.tools().await, ["count_slowly", "list_notes", "read_note"], "{era}");
        let count = json!({ "name": "count_slowly", "arguments": { "to": 3, "pause_ms": 10 }, "_meta": { "progressToken": "p" } });
        let (answer, before) = line.ask(2, "tools/call", count).await;
        assert_eq!(answer["result"]["content"][0]["text"], "counted to 3", "{era}: {answer}");
        let progress = before.iter().filter(|message| message["method"] == "notifications/progress").count();
        assert_eq!(progress, 3, "{era}: {before:?}");
        let (hidden, _) = line.ask(3, "tools/call", json!({ "name": "wipe_notes", "arguments": {} })).await;
        assert_eq!(hidden["error"]["message"], "Unknown tool: wipe_notes", "{era}: {hidden}");
        let record = rig.record(|record| record["target"] == "count_slowly").await;
        assert_eq!(
            (&record["path"], &record["route"], &record["method"], &record["decision"], &record["subject"]),
            (&json!("/mcp/messages"), &json!("/mcp"), &json!("tools/call"), &json!("allowed"), &json!("viewer"))
        );
        let calls = rig.records().iter().filter(|record| record["target"] == "count_slowly").count();
        assert_eq!(calls, 1, "one request, one record");
        drop(line);
        let opened = rig.record(|record| record["path"] == "/mcp/sse").await;
        assert_eq!((&opened["outcome"], &opened["status"]), (&json!("client_gone"), &json!(200)));
        rig.app.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_backends_on_one_route_are_used_as_one() {
    let rig = Rig::with(|file| {
        let one = file["backends"]["workbench"].clone();
        file["backends"] = json!({ "one": one, "two": one });
        file["routes"][0]["backends"] = json!(["one", "two"]);
    })
    .await;
    let mut line = Line::open(&rig, &rig.viewer()).await;
    line.initialize().await;
    let tools = line.tools().await;
    assert!(tools.contains(&"one_list_notes".to_owned()) && tools.contains(&"two_read_note".to_owned()), "{tools:?}");
    let (answer, _) = line.ask(2, "tools/call", json!({ "name": "two_list_notes", "arguments": {} })).await;
    assert!(answer["result"]["content"][0]["text"].is_string(), "{answer}");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_its_callers_and_what_is_not_a_message_is_an_http_error() {
    let rig = Rig::start().await;
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    let mut line = Line::open(&rig, &rig.viewer()).await;
    line.initialize().await;
    let foreign = line.post(&rig.editor(), &ping).await;
    let name = std::mem::replace(&mut line.endpoint, format!("/mcp/messages/{}", "0".repeat(32)));
    let unknown = line.post(&rig.editor(), &ping).await;
    assert_eq!((foreign.status, unknown.status), (404, 404));
    assert_eq!(foreign.text, unknown.text);
    line.endpoint = name;
    let fractional = json!({ "jsonrpc": "2.0", "id": 1.5, "method": "ping" });
    assert_eq!(line.post(&line.token, &fractional).await.status, 400);
    let url = format!("{}{}", rig.base, line.endpoint);
    let bare = |token: &str| rig.client.post(&url).bearer_auth(token).body("{}");
    assert_eq!(bare(&line.token).send().await.unwrap().status(), 415);
    for (path, method) in [("/mcp/sse", "GET"), (line.endpoint.as_str(), "POST")] {
        let request = match method {
            "GET" => rig.client.get(format!("{}{path}", rig.base)).header("accept", "text/event-stream"),
            _ => rig.client.post(format!("{}{path}", rig.base)).header("content-type", "application/json").body("{}"),
        };
        let answer = Answer::of(request.send().await.unwrap()).await;
        assert_eq!(answer.status, 401, "{path}");
        let challenge = answer.header("www-authenticate").unwrap();
        let document = "http://gateway.test/.well-known/oauth-protected-resource/mcp\"";
        assert!(challenge.contains(document), "{challenge}");
    }
    let delete = |path: &str| rig.client.delete(format!("{}{path}", rig.base)).bearer_auth(rig.viewer()).send();
    assert_eq!(delete("/mcp/sse").await.unwrap().status(), 405);
    assert_eq!(delete(&line.endpoint).await.unwrap().status(), 405);
    let wrong = rig.client.get(format!("{}/mcp/sse", rig.base)).bearer_auth(rig.viewer()).header("accept", "text/html");
    assert_eq!(wrong.send().await.unwrap().status(), 406);
    let modern = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": { "_meta": {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {} } } });
    let request = rig.client.post(&url).bearer_auth(&line.token).header("content-type", "application/json");
    let request = request.header("mcp-protocol-version", "2026-07-28").header("mcp-method", "tools/list");
    let answer = Answer::of(request.body(modern.to_string()).send().await.unwrap()).await;
    assert_eq!(answer.status, 400, "{}", answer.text);
    assert!(answer.text.contains("carries only the legacy revisions"), "{}", answer.text);
    let again = json!({ "jsonrpc": "2.0", "id": 9, "method": "initialize", "params": {
        "protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": { "name": "old", "version": "1" } } });
    assert_eq!(line.post(&line.token, &again).await.status, 400, "one session on one stream");
    let (pong, _) = line.ask(5, "ping", json!({})).await;
    assert_eq!(pong["result"], json!({}), "it still works: {pong}");
    rig.app.shutdown().await;
}

/// An upstream with a session, whose call `look` never ends, and all it was asked.
async fn endless() -> (Scripted, Arc<Mutex<Vec<(String, String)>>>) {
    let seen: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let notes = seen.clone();
    let upstream = Scripted::start(move |verb, headers, message| {
        let method = message["method"].as_str().unwrap_or(verb.as_str()).to_owned();
        let session = headers.get("mcp-session-id").map_or("", |id| id.to_str().unwrap()).to_owned();
        notes.lock().unwrap().push((method.clone(), session));
        match method.as_str() {
            "initialize" => {
                let info = json!({ "name": "endless", "version": "1" });
                let result = json!({ "protocolVersion": "2024-11-05", "capabilities": { "tools": {} }, "serverInfo": info });
                let mut reply = scripted::result(message, result);
                reply.headers_mut().insert("mcp-session-id", "upstream-1".parse().unwrap());
                reply
            }
            "tools/list" => scripted::result(message, scripted::two_tools()),
            "tools/call" => {
                let first = "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{\"level\":\"info\",\"data\":\"begun\"}}\n\n";
                let body = futures_util::StreamExt::chain(
                    futures_util::stream::iter([Ok::<_, std::io::Error>(first)]),
                    futures_util::stream::pending(),
                );
                let events = Response::builder().header("content-type", "text/event-stream");
                events.body(Body::from_stream(body)).unwrap()
            }
            "GET" => Response::builder().status(405).body(Body::empty()).unwrap(),
            _ => Response::builder().status(202).body(Body::empty()).unwrap(),
        }
    })
    .await;
    (upstream, seen)
}

async fn before(upstream: &Scripted, adjust: impl FnOnce(&mut Value)) -> Rig {
    Rig::with(|file| {
        let backend = json!({ "http": { "url": upstream.url }, "trust_annotations": true, "era": "legacy" });
        file["backends"] = json!({ "odd": backend });
        file["routes"][0]["backends"] = json!(["odd"]);
        adjust(file);
    })
    .await
}

async fn until(seen: &Mutex<Vec<(String, String)>>, wanted: (&str, &str)) {
    for _ in 0..500 {
        if seen.lock().unwrap().iter().any(|(method, session)| (method.as_str(), session.as_str()) == wanted) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{wanted:?} is not among {:?}", seen.lock().unwrap());
}

fn look(id: u64) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": { "name": "look", "arguments": {} } })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_stream_ends_the_session_and_what_runs() {
    let (upstream, seen) = endless().await;
    let rig = before(&upstream, |_| {}).await;
    let mut line = Line::open(&rig, &rig.viewer()).await;
    line.initialize().await;
    until(&seen, ("notifications/initialized", "upstream-1")).await;
    until(&seen, ("GET", "upstream-1")).await;
    line.send(look(4)).await;
    assert_eq!(line.message().await["params"]["data"], "begun");
    assert_eq!(line.post(&line.token, &look(4)).await.status, 400, "its id is taken");
    let (endpoint, token) = (line.endpoint.clone(), line.token.clone());
    drop(line);
    until(&seen, ("DELETE", "upstream-1")).await;
    let call = rig.record(|record| record["target"] == "look").await;
    assert_eq!(call["outcome"], "client_gone", "{call}");
    let late = rig.client.post(format!("{}{endpoint}", rig.base)).bearer_auth(&token);
    let late = late.header("content-type", "application/json").body(look(5).to_string()).send().await.unwrap();
    assert_eq!(late.status(), 404);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_request_is_told_upstream_and_makes_room() {
    let (upstream, seen) = endless().await;
    let rig = before(&upstream, |_| {}).await;
    let mut line = Line::open(&rig, &rig.viewer()).await;
    line.initialize().await;
    for id in 0..32 {
        line.send(look(id)).await;
        assert_eq!(line.message().await["params"]["data"], "begun");
    }
    let full = line.post(&line.token, &look(99)).await;
    assert_eq!((full.status, full.code()), (429, Some(-31429)), "{}", full.text);
    let cancel = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 7 } });
    line.send(cancel).await;
    until(&seen, ("notifications/cancelled", "upstream-1")).await;
    rig.record(|record| record["target"] == "look" && record["outcome"] == "client_gone").await;
    line.send(look(99)).await;
    assert_eq!(line.message().await["params"]["data"], "begun");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_on_the_stream_gets_the_grace_of_any_call_at_shutdown_and_an_idle_stream_does_not_hold_it_up() {
    let seen = crate::door::Seen::default();
    let noted = seen.clone();
    let upstream = Scripted::start(move |verb, _, message| match message["method"].as_str().unwrap_or(verb.as_str()) {
        "initialize" => {
            let info = json!({ "name": "slow", "version": "1" });
            let result =
                json!({ "protocolVersion": "2024-11-05", "capabilities": { "tools": {} }, "serverInfo": info });
            scripted::result(message, result)
        }
        "tools/list" => scripted::result(message, scripted::two_tools()),
        "tools/call" => noted.stream(),
        "GET" => Response::builder().status(405).body(Body::empty()).unwrap(),
        _ => Response::builder().status(202).body(Body::empty()).unwrap(),
    })
    .await;
    let rig = before(&upstream, |file| file["shutdown_grace"] = json!("60s")).await;
    let (mut busy, mut idle) = (Line::open(&rig, &rig.viewer()).await, Line::open(&rig, &rig.viewer()).await);
    busy.initialize().await;
    idle.initialize().await;
    busy.send(look(4)).await;
    let call = seen.next().await;
    let shutdown = tokio::spawn(rig.app.shutdown());
    assert!(idle.event().await.is_none(), "with no call to wait for it ends at once");
    let answer = json!({ "jsonrpc": "2.0", "id": 4, "result": { "content": [{ "type": "text", "text": "late" }] } });
    let early = tokio::time::timeout(Duration::from_secs(1), busy.event()).await;
    assert!(early.is_err(), "a call that runs is not cut: {early:?}");
    call.send(crate::door::event(&answer)).unwrap();
    assert_eq!(busy.message().await, answer);
    assert!(busy.event().await.is_none(), "nothing more is to come");
    tokio::time::timeout(PATIENCE, shutdown).await.expect("long before the grace is over").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_a_token_that_allows_nothing_is_challenged_before_it_is_accepted() {
    let rig = Rig::start().await;
    let mut line = Line::open(&rig, &rig.viewer()).await;
    line.initialize().await;
    let poor = rig.issuer.token("viewer", "openid", crate::harness::AUDIENCE);
    let call = json!({ "jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": { "name": "list_notes", "arguments": {} } });
    let refused = line.post(&poor, &call).await;
    assert_eq!((refused.status, &refused.body["id"]), (403, &json!(5)), "{}", refused.text);
    let challenge = refused.header("www-authenticate").expect("a challenge");
    assert!(challenge.contains("insufficient_scope") && challenge.contains("mcp.read"), "{challenge}");
    let records = rig.records();
    let refusals: Vec<_> = records.iter().filter(|record| record["reason"] == "insufficient_scope").collect();
    assert_eq!(refusals.len(), 1, "{refusals:#?}");
    assert_eq!((&refusals[0]["status"], &refusals[0]["method"]), (&json!(403), &json!("tools/call")));
    let (answer, _) = line.ask(5, "tools/call", call["params"].clone()).await;
    assert!(answer["result"]["content"][0]["text"].is_string(), "the stream and the id are as they were: {answer}");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_counts_once_for_the_limit_of_streams() {
    for era in ["legacy", "modern"] {
        let rig = Rig::with(|file| {
            file["backends"]["workbench"]["era"] = json!(era);
            file["limits"] = json!({ "principal": { "streams": 1 } });
        })
        .await;
        let mut line = Line::open(&rig, &rig.viewer()).await;
        line.initialize().await;
        assert_eq!(line.tools().await.len(), 3, "{era}");
        let second = Answer::of(get(&rig, "/mcp/sse", Some(&rig.viewer())).await).await;
        assert_eq!(second.status, 429, "{era}: {}", second.text);
        Line::open(&rig, &rig.editor()).await;
        drop(line);
        rig.record(|record| record["path"] == "/mcp/sse" && record["subject"] == "viewer" && record["status"] == 200)
            .await;
        let mut freed = get(&rig, "/mcp/sse", Some(&rig.viewer())).await;
        for _ in 0..200 {
            if freed.status() == 200 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            freed = get(&rig, "/mcp/sse", Some(&rig.viewer())).await;
        }
        assert_eq!(freed.status(), 200, "{era}");
        rig.app.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_the_server_ends_before_the_answer_is_taken_up_again() {
    let upstream = Scripted::start(|verb, headers, message| match message["method"].as_str() {
        Some("initialize") => {
            let info = json!({ "name": "odd", "version": "1" });
            let result =
                json!({ "protocolVersion": "2024-11-05", "capabilities": { "tools": {} }, "serverInfo": info });
            let mut reply = scripted::result(message, result);
            reply.headers_mut().insert("mcp-session-id", "upstream-1".parse().unwrap());
            reply
        }
        Some("tools/list") => scripted::result(message, scripted::two_tools()),
        Some("tools/call") => scripted::events("id: part-1\nretry: 10\ndata: \n\n".to_owned()),
        Some(_) => Response::builder().status(202).body(Body::empty()).unwrap(),
        None if verb == "GET" && headers.get("last-event-id").is_some_and(|id| id == "part-1") => {
            scripted::events("data: {\"jsonrpc\":\"2.0\",\"id\":4,\"result\":{\"content\":[]}}\n\n".to_owned())
        }
        None => Response::builder().status(405).body(Body::empty()).unwrap(),
    })
    .await;
    let rig = before(&upstream, |_| {}).await;
    let mut line = Line::open(&rig, &rig.viewer()).await;
    line.initialize().await;
    let (answer, _) = line.ask(4, "tools/call", json!({ "name": "look", "arguments": {} })).await;
    assert_eq!(answer["result"], json!({ "content": [] }), "{answer}");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_ends_the_stream() {
    let rig = Rig::start().await;
    let mut line = Line::open(&rig, &rig.viewer()).await;
    line.initialize().await;
    let file = crate::harness::configuration(&rig.issuer, &rig.workbench.url, &rig.audit);
    rig.reload(file.clone()).await;
    while let Some(event) = line.event().await {
        assert_eq!(event.name.as_deref(), Some("message"));
    }
    let record = rig.record(|record| record["path"] == "/mcp/sse").await;
    assert_eq!(record["outcome"], "reloaded");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_does_not_want_it_has_no_old_endpoint() {
    let rig = Rig::with(|file| file["routes"][0]["old_sse"] = json!(false)).await;
    assert_eq!(get(&rig, "/mcp/sse", Some(&rig.viewer())).await.status(), 404);
    assert_eq!(get(&rig, "/other/sse", Some(&rig.viewer())).await.status(), 404);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_of_the_old_transport_passes() {
    let fixture = live::Fixture::start(&["--page-size", "9"]);
    for era in ["legacy", "modern"] {
        let rig = Rig::with(|file| {
            let backend = json!({ "http": { "url": fixture.url }, "trust_annotations": true, "era": era });
            file["backends"] = json!({ "fixture": backend });
            file["routes"][0]["backends"] = json!(["fixture"]);
        })
        .await;
        let actions = [
            "--answer",
            "--call",
            "echo",
            r#"{"text":"hällo"}"#,
            "--call",
            "note_delete",
            r#"{"id":"a"}"#,
            "--read",
            "test://static-text",
            "--prompt",
            "test_simple_prompt",
            "{}",
            "--cancel",
            "slow_count",
            r#"{"seconds":20,"steps":40}"#,
            "1",
            "--progress",
            "--call",
            "slow_count",
            r#"{"seconds":0.5,"steps":3}"#,
            "--call",
            if era == "legacy" { "test_elicitation" } else { "test_input_required_result_elicitation" },
            r#"{"message":"who are you?"}"#,
        ];
        let seen = live::python(&format!("sse:{}/sse", rig.url()), &rig.viewer(), "legacy", &actions).await;
        let listed = seen[0]["tools"].as_array().unwrap_or_else(|| panic!("{era}: {}", seen[0]));
        assert!(listed.contains(&json!("note_read")) && !listed.contains(&json!("note_delete")), "{era}: {listed:?}");
        assert_eq!(seen[1]["text"], "hällo", "{era}: {}", seen[1]);
        let refused = seen[2]["error"]["message"].as_str().unwrap_or_default();
        assert!(refused.contains("Unknown tool: note_delete"), "{era}: {}", seen[2]);
        assert!(seen[3]["text"].as_str().is_some_and(|text| !text.is_empty()), "{era}: {}", seen[3]);
        assert!(seen[4]["messages"].as_array().is_some_and(|all| !all.is_empty()), "{era}: {}", seen[4]);
        assert_eq!(seen[5]["cancelled"], true, "{era}: {}", seen[5]);
        assert!(seen[6]["progress"].as_array().is_some_and(|steps| steps.len() >= 3), "{era}: {}", seen[6]);
        let asked = seen[7]["text"].as_str().unwrap_or_default();
        assert!(asked.contains("action=accept") || asked.contains("Hello, Alice"), "{era}: {}", seen[7]);
        rig.app.shutdown().await;
    }
}
