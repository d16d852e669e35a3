//! Tasks of 2025-11-25, between a legacy client and a legacy server; and where only one side has them.

use std::process::Command;

use axum::body::Body;
use axum::http::Method;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::Value;
use serde_json::json;

use super::TaskServer;
use super::before;
use super::declaring;
use crate::harness::AUDIENCE;
use crate::harness::Answer;
use crate::harness::Rig;
use crate::live::lines;
use crate::live::real;
use crate::live::tool;
use crate::matrix::Everything;
use crate::scripted;
use crate::scripted::Scripted;

/// All that is of this kind among the lines, in order.
fn all<'l>(seen: &'l [Value], kind: &str) -> Vec<&'l Value> {
    seen.iter().map(|line| &line[kind]).filter(|value| !value.is_null()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_drives_tasks_of_server_everything_through_the_gateway() {
    let everything = Everything::start();
    let rig = before(&everything.url).await;
    let mut command = Command::new(tool("WARDGATE_NODE"));
    command.arg(real("tasks.mjs")).args([&rig.url(), &rig.editor()]);
    command.env("WARDGATE_NODE_MODULES", tool("WARDGATE_NODE_MODULES"));
    let seen = lines(command).await;
    assert!(all(&seen, "error").is_empty(), "{seen:?}");
    let offers = all(&seen, "capabilities")[0];
    assert!(offers["tasks"]["requests"]["tools"]["call"].is_object(), "{offers}");
    let created = all(&seen, "created");
    let id = created[0].as_str().unwrap();
    assert!(id.len() > 100, "sealed: {id}");
    assert!(all(&seen, "of").iter().all(|of| **of == *id), "{seen:?}");
    let asked = seen.iter().find(|line| line["asked"].is_string()).expect("it asks");
    assert_eq!(asked["about"], id, "the question says which task it is about: {asked}");
    let result = seen.iter().find(|line| line["text"].is_string()).expect("a result");
    assert!(result["text"].as_str().unwrap().contains("python (technical)"), "{result}");
    assert_eq!(result["about"], id);
    assert_eq!(all(&seen, "cancelled"), [&json!("cancelled")]);
    let mut listed: Vec<&str> = all(&seen, "listed")[0].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let mut wanted: Vec<&str> = created.iter().filter_map(|id| id.as_str()).collect();
    listed.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(listed, wanted);
    assert_eq!(all(&seen, "code"), [&json!(-32602)]);

    // The same person with a token for less, and somebody else, in sessions of their own.
    for token in [rig.issuer.token("editor", "mcp.read", AUDIENCE), rig.admin_token()] {
        let session = rig.session(&token).await;
        for method in ["tasks/get", "tasks/result", "tasks/cancel"] {
            let answer = rig.legacy(&token, session.as_deref(), method, json!({ "taskId": id })).await;
            assert_eq!(answer.body["error"]["message"], format!("Unknown task: {id}"), "{method}: {}", answer.text);
            assert_eq!((answer.status, answer.code()), (200, Some(-32602)));
        }
        let listed = rig.legacy(&token, session.as_deref(), "tasks/list", json!({})).await;
        assert_eq!(listed.body["result"]["tasks"].as_array().map_or(0, Vec::len), 0, "{}", listed.text);
    }
    let record = rig
        .record(|record| {
            record["method"] == "tasks/result" && record["subject"] == "editor" && record["decision"] == "allowed"
        })
        .await;
    assert_eq!(
        (&record["target"], &record["effect"]),
        (&json!("simulate-research-query"), &json!("write")),
        "{record}"
    );
    rig.app.shutdown().await;
}

const RELATED: &str = "io.modelcontextprotocol/related-task";

fn task(id: &str) -> Value {
    json!({ "taskId": id, "status": "working", "createdAt": "2026-11-21T00:00:00Z", "lastUpdatedAt": "2026-11-21T00:00:00Z", "ttl": null })
}

/// A legacy server that shares what it knows with everybody. Its tasks are `canary-` and the number of the call.
async fn gossip() -> Scripted {
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let bare = |status: StatusCode| Response::builder().status(status).body(Body::empty()).unwrap();
    Scripted::start(move |method, _, message| {
        if method != Method::POST {
            return bare(StatusCode::METHOD_NOT_ALLOWED);
        }
        let answer = |result: Value| -> Response {
            let mut response = scripted::result(message, result);
            response.headers_mut().insert("mcp-session-id", "s".parse().unwrap());
            response
        };
        match message["method"].as_str() {
            Some("initialize") => answer(json!({ "protocolVersion": "2025-11-25", "capabilities": { "tools": {}, "tasks": { "list": {}, "requests": { "tools": { "call": {} } } } },
                "serverInfo": { "name": "s", "version": "1" } })),
            Some("tools/list") => answer(json!({ "tools": scripted::two_tools()["tools"] })),
            Some("tools/call") if message["params"]["task"].is_object() => {
                let id = format!("canary-{}", calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
                let answer = json!({ "jsonrpc": "2.0", "id": message["id"], "result": { "task": task(&id) } });
                let about = json!({ RELATED: { "taskId": id } });
                let said = |method: &str, params: Value| format!("data: {}\n\n", json!({ "jsonrpc": "2.0", "method": method, "params": params }));
                scripted::events(format!(
                    "{}{}data: {answer}\n\n",
                    said("notifications/tasks/status", task("canary-of-others")),
                    said("notifications/message", json!({ "level": "info", "data": "hello", "_meta": about })),
                ))
            }
            Some("tools/call") => answer(json!({ "content": [{ "type": "text", "text": "at once" }] })),
            Some("tasks/get") => answer(task(message["params"]["taskId"].as_str().unwrap())),
            Some("tasks/result") => {
                let id = &message["params"]["taskId"];
                let about = json!({ RELATED: { "taskId": id } });
                let news = json!({ "jsonrpc": "2.0", "method": "notifications/tasks/status", "params": task(id.as_str().unwrap()) });
                let result = json!({ "content": [], "_meta": about, "echo": message["params"]["_meta"] });
                let answer = json!({ "jsonrpc": "2.0", "id": message["id"], "result": result });
                scripted::events(format!("data: {news}\n\ndata: {answer}\n\n"))
            }
            Some("tasks/list") => {
                let known = calls.load(std::sync::atomic::Ordering::Relaxed);
                let tasks: Vec<_> = (0..known).map(|n| task(&format!("canary-{n}"))).chain([task("canary-of-others")]).collect();
                answer(json!({ "tasks": tasks, "nextCursor": "on" }))
            }
            _ => bare(StatusCode::ACCEPTED),
        }
    })
    .await
}

async fn before_gossip(server: &Scripted) -> Rig {
    Rig::with(|file| {
        file["backends"] =
            json!({ "s": { "http": { "url": server.url }, "trust_annotations": true, "era": "legacy" } });
        file["routes"][0]["backends"] = json!(["s"]);
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_id_of_the_servers_passes_and_nobody_elses_tasks_are_listed_or_told_of() {
    let server = gossip().await;
    let rig = before_gossip(&server).await;
    let call = json!({ "name": "look", "arguments": {}, "task": {} });
    let (alice, bob) = (rig.admin_named("alice"), rig.admin_named("bob"));
    let (hers, his) = (rig.session(&alice).await, rig.session(&bob).await);
    let begun = rig.legacy(&alice, hers.as_deref(), "tools/call", call.clone()).await;
    let id = begun.body["result"]["task"]["taskId"].as_str().unwrap_or_else(|| panic!("{}", begun.text)).to_owned();
    assert!(!begun.text.contains("canary-of-others"), "{}", begun.text);
    let destroys = json!({ "name": "canary_wipe", "arguments": {}, "task": {} });
    let wiping = rig.legacy(&alice, hers.as_deref(), "tools/call", destroys).await;
    let wiping = wiping.body["result"]["task"]["taskId"].as_str().unwrap().to_owned();
    let other = rig.legacy(&bob, his.as_deref(), "tools/call", call).await;
    assert_ne!(other.body["result"]["task"]["taskId"], id);

    let got = rig.legacy(&alice, hers.as_deref(), "tasks/get", json!({ "taskId": id })).await;
    assert_eq!(got.body["result"]["taskId"], id, "{}", got.text);
    let about = json!({ RELATED: { "taskId": id } });
    let params = json!({ "taskId": id, "_meta": about });
    let result = rig.legacy(&alice, hers.as_deref(), "tasks/result", params).await;
    assert_eq!(result.body["result"]["_meta"][RELATED]["taskId"], id, "{}", result.text);
    assert_eq!(result.body["result"]["echo"][RELATED]["taskId"], "canary-0", "the server's words for the server");
    let told = result.text.lines().find(|line| line.contains("tasks/status")).expect("it is told");
    assert!(told.contains(&id) && !told.contains("canary-0"), "{told}");

    let listed = rig.legacy(&alice, hers.as_deref(), "tasks/list", json!({})).await;
    let ids: Vec<&str> =
        listed.body["result"]["tasks"].as_array().unwrap().iter().filter_map(|task| task["taskId"].as_str()).collect();
    assert_eq!(ids, [&id, &wiping], "{}", listed.text);
    assert_eq!(listed.body["result"]["nextCursor"], "on");
    let record = rig.record(|record| record["method"] == "tasks/list").await;
    assert_eq!(record["hidden"], 2, "{record}");
    // With a token for less, the task of the tool that is hidden now is not shown.
    let lesser = rig.issuer.token("alice", "mcp.read", AUDIENCE);
    let listed = rig.legacy(&lesser, hers.as_deref(), "tasks/list", json!({})).await;
    assert_eq!(listed.body["result"]["tasks"].as_array().map(Vec::len), Some(1), "{}", listed.text);
    assert!(!listed.text.contains("canary"), "{}", listed.text);
    rig.app.shutdown().await;
}

/// What a server says to whoever resumes a stream: its tasks are nobody's that the gateway knows of.
fn replays() -> String {
    let about = |id: &str| json!({ RELATED: { "taskId": id }, "org.example/k": 1 });
    let said = |method: &str, params: Value| json!({ "jsonrpc": "2.0", "method": method, "params": params });
    let result = |result: Value| json!({ "jsonrpc": "2.0", "id": 3, "result": result }).to_string();
    let mut question =
        said("elicitation/create", json!({ "message": "m", "requestedSchema": {}, "_meta": about("canary-e") }));
    question["id"] = json!(9);
    [
        result(json!({ "task": task("canary-a") })),
        result(task("canary-b")),
        result(json!({ "content": [{ "type": "text", "text": "kept" }], "_meta": about("canary-c") })),
        said("notifications/message", json!({ "level": "info", "data": "lost", "_meta": about("canary-d") })).to_string(),
        question.to_string(),
        r#"{"jsonrpc":"2.0","id":3,"result":{"content":[],"_meta":{"io.modelcontextprotocol/related-task":{"taskId":"canary-f","taskId":"x"}}}}"#.to_owned(),
        result(json!({ "tasks": { "0": task("canary-g") } })),
        said("notifications/message", json!({ "level": "info", "data": "the last of the tasks" })).to_string(),
    ]
    .iter()
    .enumerate()
    .map(|(n, data)| format!("id: {n}\ndata: {data}\n\n"))
    .collect()
}

/// A legacy server that answers a call by what its argument `say` says, and every cancelling by an error.
async fn careless() -> Scripted {
    let bare = |status: StatusCode| Response::builder().status(status).body(Body::empty()).unwrap();
    Scripted::start(move |method, _, message| {
        let params = &message["params"];
        let error = |error: Value| scripted::plain(json!({ "jsonrpc": "2.0", "id": message["id"], "error": error }));
        match (method.as_str(), message["method"].as_str()) {
            ("GET", _) => scripted::events(replays()),
            (_, Some("initialize")) => {
                let capabilities = json!({ "tools": {}, "tasks": { "requests": { "tools": { "call": {} } } } });
                let hello = json!({ "protocolVersion": "2025-11-25", "capabilities": capabilities, "serverInfo": { "name": "s", "version": "1" } });
                let mut response = scripted::result(message, hello);
                response.headers_mut().insert("mcp-session-id", "s".parse().unwrap());
                response
            }
            (_, Some("tools/list")) => scripted::result(message, json!({ "tools": scripted::two_tools()["tools"] })),
            (_, Some("tools/call")) => {
                let said = params["arguments"]["say"].as_str().unwrap();
                let text = format!(r#"{{"jsonrpc":"2.0","id":{},"result":{said}}}"#, message["id"]);
                Response::builder().header("content-type", "application/json").body(Body::from(text)).unwrap()
            }
            (_, Some("tasks/cancel")) => {
                let id = params["taskId"].as_str().unwrap();
                error(json!({ "code": -32602, "message": format!("{id} has ended"), "data": { "of": [id] }, "id": id }))
            }
            _ => bare(StatusCode::ACCEPTED),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_stream_says_nothing_of_tasks_that_are_not_known_to_be_the_callers() {
    let server = careless().await;
    let rig = before_gossip(&server).await;
    let token = rig.viewer();
    let session = rig.session(&token).await.unwrap();
    let request = rig.client.get(rig.url()).bearer_auth(&token).header("accept", "text/event-stream");
    let request = request.header("mcp-session-id", &session).header("last-event-id", "8");
    let answer = Answer::of(request.send().await.unwrap()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(!answer.text.contains("canary") && !answer.text.contains("lost"), "{}", answer.text);
    let data = answer.text.lines().filter_map(|line| line.strip_prefix("data:"));
    let seen: Vec<Value> = data.filter_map(|data| serde_json::from_str(data).ok()).collect();
    assert_eq!(seen.len(), 2, "{}", answer.text);
    assert_eq!(seen[0]["result"]["content"][0]["text"], "kept");
    assert_eq!(seen[0]["result"]["_meta"], json!({ "org.example/k": 1 }), "it is about no task");
    assert_eq!(seen[1]["params"]["data"], "the last of the tasks");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_answer_with_a_task_that_cannot_be_shown_is_refused() {
    let server = careless().await;
    let rig = before_gossip(&server).await;
    let token = rig.viewer();
    let session = rig.session(&token).await;
    let session = session.as_deref();
    let call = async |augmented: bool, say: &str| {
        let mut params = json!({ "name": "look", "arguments": { "say": say } });
        if augmented {
            params["task"] = json!({});
        }
        rig.legacy(&token, session, "tools/call", params).await
    };
    for (augmented, say) in [
        (false, r#"{"task":{"taskId":"canary-1","status":"working"}}"#),
        (false, r#"{"t\u0061sk":{}}"#),
        (false, r#"{"content":[],"taskId":"canary-1"}"#),
        (true, r#"{"content":[],"taskId":"canary-1"}"#),
        (true, r#"{"task":{"status":"working"}}"#),
        (true, r#"{"task":{"taskId":7}}"#),
        (true, r#"{"task":{"taskId":"canary-1","taskId":"canary-2"}}"#),
        (true, r#"{"task":{"taskId":"canary-1"},"task":{"taskId":"canary-2"}}"#),
        (true, r#"{"task":{"taskId":"canary-1"},"taskId":7}"#),
    ] {
        let answer = call(augmented, say).await;
        assert_eq!(answer.status, 502, "{augmented} {say}: {}", answer.text);
        assert!(!answer.text.contains("canary"), "{say}: {}", answer.text);
    }
    let about = format!(
        r#"{{"content":[{{"type":"text","text":"x"}}],"_meta":{{"{RELATED}":{{"taskId":"canary-of-others"}}}}}}"#
    );
    for augmented in [false, true] {
        let answer = call(augmented, &about).await;
        assert_eq!(answer.result_text(), "x", "{}", answer.text);
        assert_eq!(answer.body["result"]["_meta"], json!({}));
    }

    let at = r#""createdAt":"2026-11-21T00:00:00Z","lastUpdatedAt":"2026-11-21T00:00:00Z","ttl":null"#;
    let begun = call(true, &format!(r#"{{"task":{{"taskId":"canary-1","status":"working",{at}}}}}"#)).await;
    let id = begun.body["result"]["task"]["taskId"].as_str().unwrap_or_else(|| panic!("{}", begun.text));
    assert!(!begun.text.contains("canary"), "{}", begun.text);
    let cancelled = rig.legacy(&token, session, "tasks/cancel", json!({ "taskId": id })).await;
    let wanted = json!({ "code": -32602, "message": format!("{id} has ended") });
    assert_eq!(cancelled.body["error"], wanted, "{}", cancelled.text);

    // Nor does a client get one of the server's ids across.
    let params =
        json!({ "name": "look", "arguments": { "say": "{}" }, "_meta": { RELATED: { "taskId": "canary-1" } } });
    let foreign = rig.legacy(&token, session, "tools/call", params).await;
    assert_eq!((foreign.status, foreign.code()), (200, Some(-32602)), "{}", foreign.text);
    assert_eq!(foreign.body["error"]["message"], "Unknown task: canary-1");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_two_sides_are_of_different_eras_tasks_are_not_on_offer() {
    let (server, jobs) = (gossip().await, TaskServer::start().await);
    // A modern client at a legacy server.
    let rig = before_gossip(&server).await;
    let token = rig.viewer();
    let offers = declaring(&rig, &token, "server/discover", json!({})).await;
    let capabilities = &offers.body["result"]["capabilities"];
    assert!(capabilities["tools"].is_object() && !offers.text.contains("tasks"), "{}", offers.text);
    let called = declaring(&rig, &token, "tools/call", json!({ "name": "look", "arguments": {}, "task": {} })).await;
    assert_eq!(called.result_text(), "at once", "a legacy `task` means nothing here");
    rig.app.shutdown().await;
    // A legacy client at a modern server.
    let rig = before(&jobs.url).await;
    let token = rig.editor();
    let params = json!({ "protocolVersion": "2025-11-25", "capabilities": { "tasks": {} }, "clientInfo": { "name": "it", "version": "1" } });
    let hello = rig.legacy(&token, None, "initialize", params).await;
    assert!(
        hello.body["result"]["capabilities"]["tools"].is_object() && !hello.text.contains("tasks"),
        "{}",
        hello.text
    );
    let session = hello.header("mcp-session-id").map(str::to_owned);
    let call = json!({ "name": "slow_compute", "arguments": {}, "task": {} });
    let called = rig.legacy(&token, session.as_deref(), "tools/call", call).await;
    assert_eq!(called.result_text(), "computed at once");
    for method in ["tasks/get", "tasks/list", "tasks/result"] {
        let refused = rig.legacy(&token, session.as_deref(), method, json!({ "taskId": "x" })).await;
        assert_eq!((refused.status, refused.code()), (200, Some(-32601)), "{method}: {}", refused.text);
    }
    rig.app.shutdown().await;
}
