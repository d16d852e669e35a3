//! Tasks through the gateway, of both eras: real servers and clients with tasks, and scripted ones for what they cannot show.

mod legacy;
mod news;
mod server;

use std::time::Duration;

use rmcp::ClientLifecycleMode;
use rmcp::ClientServiceExt;
use rmcp::model::CallToolRequestParams;
use rmcp::model::CallToolResponse;
use rmcp::model::CancelTaskParams;
use rmcp::model::ClientCapabilities;
use rmcp::model::ClientConfig;
use rmcp::model::GetTaskParams;
use rmcp::model::Implementation;
use rmcp::model::ProtocolVersion;
use rmcp::model::TaskStatus;
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use serde_json::Value;
use serde_json::json;

use crate::harness::Answer;
use crate::harness::Rig;
use crate::harness::modern_request;
use crate::live::real;
use crate::scripted;
use crate::scripted::Scripted;
use server::TaskServer;

const TASKS: &str = "io.modelcontextprotocol/tasks";
const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";

/// The gateway in front of one server, whose hints are trusted; `/other` is another route to it.
async fn before(url: &str) -> Rig {
    Rig::with(|file| {
        file["backends"] = json!({ "jobs": { "http": { "url": url }, "trust_annotations": true } });
        file["routes"] = json!([{ "path": "/mcp", "backends": ["jobs"] }, { "path": "/other", "backends": ["jobs"] }]);
    })
    .await
}

/// The gateway in front of two servers on one route.
async fn before_both(one: &str, two: &str) -> Rig {
    Rig::with(|file| {
        let backend = |url: &str| json!({ "http": { "url": url }, "trust_annotations": true });
        file["backends"] = json!({ "one": backend(one), "two": backend(two) });
        file["routes"][0]["backends"] = json!(["one", { "backend": "two", "prefix": "zwei" }]);
    })
    .await
}

/// A request of a client that declares the extension.
async fn declaring(rig: &Rig, token: &str, method: &str, params: Value) -> Answer {
    declaring_on(rig, "/mcp", token, method, params).await
}

async fn declaring_on(rig: &Rig, path: &str, token: &str, method: &str, mut params: Value) -> Answer {
    params["_meta"] = json!({ CAPABILITIES: { "elicitation": {}, "extensions": { TASKS: {} } } });
    let request = modern_request(&rig.client, &format!("{}{path}", rig.base), method, params);
    Answer::of(request.bearer_auth(token).send().await.unwrap()).await
}

/// A task that was begun; gives its id.
async fn begun(rig: &Rig, token: &str, tool: &str, arguments: Value) -> String {
    let answer = declaring(rig, token, "tools/call", json!({ "name": tool, "arguments": arguments })).await;
    assert_eq!((answer.status, &answer.body["result"]["resultType"]), (200, &json!("task")), "{}", answer.text);
    answer.body["result"]["taskId"].as_str().unwrap().to_owned()
}

async fn task(rig: &Rig, token: &str, method: &str, id: &str) -> Answer {
    let params = match method {
        "tasks/update" => json!({ "taskId": id, "inputResponses": {} }),
        _ => json!({ "taskId": id }),
    };
    declaring(rig, token, method, params).await
}

/// Asks until the task is in this state.
async fn until(rig: &Rig, token: &str, id: &str, status: &str) -> Value {
    for _ in 0..500 {
        let answer = task(rig, token, "tasks/get", id).await;
        let state = &answer.body["result"];
        assert_eq!(state["taskId"], id, "{}", answer.text);
        if state["status"] == status {
            return state.clone();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the task does not become {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_lives_under_a_sealed_id_from_call_to_result() {
    let jobs = TaskServer::start().await;
    let rig = before(&jobs.url).await;
    let token = rig.editor();
    let offers = declaring(&rig, &token, "server/discover", json!({})).await;
    assert_eq!(offers.body["result"]["capabilities"]["extensions"][TASKS], json!({}), "{}", offers.text);

    let id = begun(&rig, &token, "slow_compute", json!({ "seconds": 0.2 })).await;
    assert!(id.len() > 100 && id.bytes().all(|byte| byte.is_ascii_graphic()), "sealed: {id}");
    let state = until(&rig, &token, &id, "completed").await;
    assert_eq!(state["result"]["content"][0]["text"], "computed for 0.2 s");
    let record = rig.record(|record| record["method"] == "tasks/get").await;
    assert_eq!(
        (&record["target"], &record["backend"], &record["effect"], &record["decision"], &record["subject"]),
        (&json!("slow_compute"), &json!("jobs"), &json!("write"), &json!("allowed"), &json!("editor")),
        "{record}"
    );

    // What it asks for on the way is answered by `tasks/update`.
    let id = begun(&rig, &token, "confirm_delete", json!({})).await;
    let state = until(&rig, &token, &id, "input_required").await;
    assert_eq!(state["inputRequests"]["confirm"]["method"], "elicitation/create", "{state}");
    let answers = json!({ "confirm": { "action": "accept", "content": { "confirm": true } } });
    let params = json!({ "taskId": id, "inputResponses": answers });
    let updated = declaring(&rig, &token, "tasks/update", params).await;
    assert_eq!(updated.body["result"]["resultType"], "complete", "{}", updated.text);
    let state = until(&rig, &token, &id, "completed").await;
    assert_eq!(state["result"]["content"][0]["text"], "confirmed: true");

    // Cancelling goes all the way.
    let id = begun(&rig, &token, "slow_compute", json!({ "seconds": 60 })).await;
    let cancelled = task(&rig, &token, "tasks/cancel", &id).await;
    assert_eq!(cancelled.body["result"]["resultType"], "complete", "{}", cancelled.text);
    until(&rig, &token, &id, "cancelled").await;
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_official_client_drives_a_task_of_an_official_server_through_either_kind_of_route() {
    let (jobs, other) = (TaskServer::start().await, TaskServer::start().await);
    for (rig, tool) in
        [(before(&jobs.url).await, "slow_compute"), (before_both(&other.url, &jobs.url).await, "zwei_slow_compute")]
    {
        let mut config = StreamableHttpClientTransportConfig::with_uri(rig.url());
        config.auth_header = Some(rig.editor());
        let transport = StreamableHttpClientTransport::with_client(crate::harness::client(), config);
        let lifecycle = ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] };
        let capabilities = ClientCapabilities::builder().enable_tasks().build();
        let me = ClientConfig::new(capabilities, Implementation::new("it", "1"));
        let client = me.serve_with_lifecycle(transport, lifecycle).await.unwrap();
        let call = |seconds: f64| {
            let arguments = json!({ "seconds": seconds }).as_object().cloned().unwrap();
            client.call_tool_once(CallToolRequestParams::new(tool).with_arguments(arguments))
        };
        let CallToolResponse::Task(begun) = call(0.1).await.unwrap() else { panic!("no task") };
        let id = begun.task.task_id;
        let done = loop {
            let state = client.get_task(GetTaskParams::new(id.clone())).await.unwrap();
            if state.task.status().is_terminal() {
                break serde_json::to_value(&state).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(done["result"]["content"][0]["text"], "computed for 0.1 s", "{done}");
        let CallToolResponse::Task(begun) = call(60.0).await.unwrap() else { panic!("no task") };
        client.cancel_task(CancelTaskParams::new(begun.task.task_id.clone())).await.unwrap();
        let state = loop {
            let state = client.get_task(GetTaskParams::new(begun.task.task_id.clone())).await.unwrap();
            if state.task.status().is_terminal() {
                break state;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(state.task.status(), TaskStatus::Cancelled);
        client.cancel().await.unwrap();
        rig.app.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_forged_misplaced_and_revoked_tasks_are_unknown_in_the_same_words() {
    let jobs = TaskServer::start().await;
    let rig = before(&jobs.url).await;
    let token = rig.editor();
    let id = begun(&rig, &token, "slow_compute", json!({ "seconds": 60 })).await;
    // The same person with a token for less: the tool is hidden by now.
    let (foreigner, lesser) = (rig.admin_token(), rig.issuer.token("editor", "mcp.read", crate::harness::AUDIENCE));
    let with =
        |letter: char| id.char_indices().map(|(at, own)| if at == 40 { letter } else { own }).collect::<String>();
    let forged = if with('A') == id { with('B') } else { with('A') };
    for method in ["tasks/get", "tasks/update", "tasks/cancel"] {
        let garbage = task(&rig, &token, method, "no-such-task").await;
        assert_eq!((garbage.status, garbage.code()), (200, Some(-32602)), "{}", garbage.text);
        assert_eq!(garbage.body["error"]["message"], "Unknown task: no-such-task");
        let params = json!({ "taskId": id, "inputResponses": {} });
        for (why, answer) in [
            ("foreign", task(&rig, &foreigner, method, &id).await),
            ("revoked", task(&rig, &lesser, method, &id).await),
            ("elsewhere", declaring_on(&rig, "/other", &token, method, params).await),
            ("forged", task(&rig, &token, method, &forged).await),
        ] {
            let words = garbage.text.replace("no-such-task", if why == "forged" { &forged } else { &id });
            assert_eq!((answer.status, answer.text), (200, words), "{method} {why}");
        }
        let record = rig.record(|record| record["subject"] == "admin" && record["method"] == method).await;
        assert_eq!((&record["reason"], &record["outcome"]), (&json!("unknown_task"), &json!("refused")), "{record}");
    }
    // None of it reached the task.
    let state = task(&rig, &token, "tasks/get", &id).await;
    assert_eq!(state.body["result"]["status"], "working", "{}", state.text);
    // A ceiling that is lowered counts at once.
    let mut file = crate::harness::configuration(&rig.issuer, &jobs.url, &rig.audit);
    file["backends"] =
        json!({ "jobs": { "http": { "url": jobs.url }, "trust_annotations": true, "mode": "read-only" } });
    file["routes"][0]["backends"] = json!(["jobs"]);
    rig.app.take(crate::harness::load(&file).unwrap()).await.unwrap();
    let lowered = task(&rig, &token, "tasks/get", &id).await;
    assert_eq!(lowered.body["error"]["message"], format!("Unknown task: {id}"), "{}", lowered.text);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_declare_the_extension_neither_gets_nor_asks_for_a_task() {
    let jobs = TaskServer::start().await;
    let rig = before(&jobs.url).await;
    let token = rig.editor();
    let id = begun(&rig, &token, "slow_compute", json!({ "seconds": 60 })).await;
    let wanted = json!({ "requiredCapabilities": { "extensions": { TASKS: {} } } });
    for (method, params) in [
        ("tasks/get", json!({ "taskId": id })),
        ("tasks/cancel", json!({ "taskId": "x" })),
        ("tasks/update", json!({ "taskId": id, "inputResponses": {} })),
        ("subscriptions/listen", json!({ "notifications": { "taskIds": [id] } })),
    ] {
        let answer = rig.modern(&token, method, params).await;
        assert_eq!((answer.status, answer.code()), (400, Some(-32021)), "{method}: {}", answer.text);
        assert_eq!(answer.body["error"]["data"], wanted, "{method}");
    }
    let sync = rig.modern(&token, "tools/call", json!({ "name": "slow_compute", "arguments": {} })).await;
    assert_eq!(sync.result_text(), "computed at once");
    let removed = declaring(&rig, &token, "tasks/result", json!({ "taskId": id })).await;
    assert_eq!((removed.status, removed.code()), (404, Some(-32601)), "{}", removed.text);
    let missing = declaring(&rig, &token, "tasks/get", json!({})).await;
    assert_eq!((missing.status, missing.code()), (400, Some(-32602)), "{}", missing.text);
    rig.app.shutdown().await;
}

fn state(id: &str, more: Value) -> Value {
    let mut state = json!({ "taskId": id, "status": "working", "createdAt": "2026-11-21T00:00:00Z",
        "lastUpdatedAt": "2026-11-21T00:00:00Z", "ttlMs": null });
    for (name, value) in more.as_object().unwrap() {
        state[name] = value.clone();
    }
    state
}

/// What a scripted server with tasks says of itself.
fn offers() -> Value {
    json!({ "resultType": "complete", "supportedVersions": ["2026-07-28"], "ttlMs": 0, "cacheScope": "private",
        "capabilities": { "tools": {}, "extensions": { TASKS: {} } } })
}

/// A server that answers every call by a task, asked for or not; its only task's id is `canary-id`.
async fn pushy() -> Scripted {
    Scripted::start(|_, headers, message| {
        let params = &message["params"];
        match message["method"].as_str() {
            Some("tools/list") => scripted::result(message, scripted::two_tools()),
            Some("server/discover") => scripted::result(message, offers()),
            Some("tools/call") if params["arguments"]["id"].is_string() => {
                scripted::result(message, state(params["arguments"]["id"].as_str().unwrap(), json!({ "resultType": "task" })))
            }
            Some("tools/call" | "resources/read") => {
                let answer = json!({ "jsonrpc": "2.0", "id": message["id"], "result": state("canary-id", json!({ "resultType": "task" })) });
                scripted::events(format!("data: {answer}\n\n"))
            }
            Some("tasks/get") if params["taskId"] == "canary-id" && headers["mcp-name"] == "canary-id" => {
                let link = json!({ "type": "resource_link", "uri": "note://1", "name": "n" });
                let more = json!({ "resultType": "complete", "status": "completed", "result": { "content": [link] } });
                scripted::result(message, state("canary-id", more))
            }
            Some("tasks/get") => scripted::result(message, state("another", json!({ "resultType": "complete" }))),
            _ => {
                let error = json!({ "code": -32603, "message": "canary-id is busy" });
                scripted::plain(json!({ "jsonrpc": "2.0", "id": message["id"], "error": error }))
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_breaks_the_rules_of_tasks_is_not_believed() {
    let server = pushy().await;
    let rig = before(&server.url).await;
    let token = rig.viewer();
    let look = |arguments: Value| json!({ "name": "look", "arguments": arguments });
    // Nobody asked for a task.
    let pushed = rig.modern(&token, "tools/call", look(json!({ "id": "canary-id" }))).await;
    assert_eq!((pushed.status, pushed.code()), (400, Some(-32021)), "{}", pushed.text);
    let streamed = rig.modern(&token, "tools/call", look(json!({}))).await;
    assert_eq!((streamed.status, streamed.code()), (200, Some(-32021)), "{}", streamed.text);
    assert!(!pushed.text.contains("canary-id") && !streamed.text.contains("canary-id"));
    // A task where there can be none, and tasks without a name.
    let read = declaring(&rig, &token, "resources/read", json!({ "uri": "note://1" })).await;
    assert_eq!(read.body["error"]["data"]["reason"], "backend_protocol", "{}", read.text);
    for id in [String::new(), "x".repeat(600)] {
        let nameless = declaring(&rig, &token, "tools/call", look(json!({ "id": id }))).await;
        assert_eq!(nameless.body["error"]["data"]["reason"], "backend_protocol", "{}", nameless.text);
    }
    // Another task's state.
    let id = begun(&rig, &token, "look", json!({ "id": "mine" })).await;
    let other = task(&rig, &token, "tasks/get", &id).await;
    assert_eq!(other.body["error"]["data"]["reason"], "backend_protocol", "{}", other.text);
    // An error that names the task names it as the client does.
    let id = begun(&rig, &token, "look", json!({})).await;
    assert_eq!(begun(&rig, &token, "look", json!({})).await, id, "the same task has the same id");
    let busy = task(&rig, &token, "tasks/cancel", &id).await;
    assert_eq!(busy.body["error"]["message"], format!("{id} is busy"), "{}", busy.text);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_federated_route_a_task_goes_back_to_the_server_that_began_it() {
    crate::harness::prepare();
    let (jobs, pushy) = (TaskServer::start().await, pushy().await);
    let rig = before_both(&pushy.url, &jobs.url).await;
    let token = rig.editor();
    let offers = declaring(&rig, &token, "server/discover", json!({})).await;
    assert_eq!(offers.body["result"]["capabilities"]["extensions"], json!({ TASKS: {} }), "{}", offers.text);
    let theirs = begun(&rig, &token, "zwei_confirm_delete", json!({})).await;
    let ours = begun(&rig, &token, "one_look", json!({})).await;
    until(&rig, &token, &theirs, "input_required").await;
    let done = until(&rig, &token, &ours, "completed").await;
    assert_eq!(done["result"]["content"][0]["uri"], "wardgate+one+note://1", "{done}");
    let record = rig.record(|record| record["method"] == "tasks/get" && record["backend"] == "one").await;
    assert_eq!(record["target"], "look", "{record}");
    task(&rig, &token, "tasks/cancel", &theirs).await;
    until(&rig, &token, &theirs, "cancelled").await;
    let garbage = task(&rig, &token, "tasks/get", "garbage").await;
    let foreign = task(&rig, &rig.admin_token(), "tasks/get", &theirs).await;
    assert_eq!((foreign.status, &foreign.text), (200, &garbage.text.replace("garbage", &theirs)));
    let undeclared = rig.modern(&token, "tasks/get", json!({ "taskId": theirs })).await;
    assert_eq!((undeclared.status, undeclared.code()), (400, Some(-32021)), "{}", undeclared.text);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_conformance_scenarios_about_tasks_pass_through_the_gateway() {
    let jobs = TaskServer::start().await;
    let rig = before(&jobs.url).await;
    let mut command = tokio::process::Command::new("bash");
    command.arg(real("conformance.sh"));
    for scenario in [
        "lifecycle",
        "capability-negotiation",
        "wire-fields",
        "request-state-removal",
        "mrtr-input",
        "request-headers",
        "dispatch-and-envelope",
        "required-task-error",
        "mrtr-composition",
    ] {
        command.args(["--scenario", &format!("tasks-{scenario}")]);
    }
    let output = command.args([&rig.url(), &rig.admin_token()]).output().await.expect("bash runs");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && text.contains("9 passed, 0 failed"), "{text}");
    rig.app.shutdown().await;
}
