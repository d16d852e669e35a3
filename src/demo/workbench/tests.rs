//! The workbench over real HTTP: lists and calls in both eras, progress on the way, resources and the prompt.

use reqwest::RequestBuilder;
use serde_json::Value;
use serde_json::json;

use super::Workbench;
use crate::demo::tour::modern_params;

const MODERN: &str = "2026-07-28";
const LEGACY: &str = "2025-11-25";

fn post(workbench: &Workbench, body: &Value) -> RequestBuilder {
    let _: Result<(), _> = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.post(&workbench.url).body(body.to_string()).header("content-type", "application/json");
    request.header("accept", "application/json, text/event-stream")
}

/// All messages of the answer, whether it is one JSON document or an event stream.
async fn messages(request: RequestBuilder) -> Vec<Value> {
    let text = request.send().await.unwrap().error_for_status().unwrap().text().await.unwrap();
    let whole = serde_json::from_str(&text).into_iter().collect::<Vec<Value>>();
    let events = text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data:")?).ok());
    whole.into_iter().chain(events).collect()
}

async fn modern_messages(workbench: &Workbench, method: &str, params: Value) -> Vec<Value> {
    let name = params["name"].as_str().or(params["uri"].as_str()).map(str::to_owned);
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": modern_params(params) });
    let mut request = post(workbench, &body).header("mcp-protocol-version", MODERN).header("mcp-method", method);
    if let Some(name) = name {
        request = request.header("mcp-name", name);
    }
    messages(request).await
}

async fn modern(workbench: &Workbench, method: &str, params: Value) -> Value {
    modern_messages(workbench, method, params).await.pop().unwrap()["result"].take()
}

struct Session {
    id: String,
}

impl Session {
    async fn begin(workbench: &Workbench) -> Session {
        let params =
            json!({ "protocolVersion": LEGACY, "capabilities": {}, "clientInfo": { "name": "test", "version": "1" } });
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params });
        let reply = post(workbench, &body).send().await.unwrap();
        let id = reply.headers()["mcp-session-id"].to_str().unwrap().to_owned();
        reply.text().await.unwrap();
        let session = Session { id };
        let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        assert_eq!(session.post(workbench, &ready).send().await.unwrap().status(), 202);
        session
    }

    fn post(&self, workbench: &Workbench, body: &Value) -> RequestBuilder {
        post(workbench, body).header("mcp-session-id", &self.id).header("mcp-protocol-version", LEGACY)
    }

    async fn ask(&self, workbench: &Workbench, method: &str, params: Value) -> Value {
        let body = json!({ "jsonrpc": "2.0", "id": 2, "method": method, "params": params });
        messages(self.post(workbench, &body)).await.pop().unwrap()["result"].take()
    }
}

fn hints(list: &Value, name: &str) -> (Option<bool>, Option<bool>) {
    let tool = list["tools"].as_array().unwrap().iter().find(|tool| tool["name"] == name).unwrap();
    (tool["annotations"]["readOnlyHint"].as_bool(), tool["annotations"]["destructiveHint"].as_bool())
}

fn said(result: &Value) -> &str {
    result["content"][0]["text"].as_str().unwrap()
}

#[tokio::test]
async fn the_tools_and_their_hints_are_listed_in_both_eras() {
    let workbench = Workbench::start(0).await.unwrap();
    let legacy = Session::begin(&workbench).await.ask(&workbench, "tools/list", json!({})).await;
    for list in [modern(&workbench, "tools/list", json!({})).await, legacy] {
        assert_eq!(list["tools"].as_array().unwrap().len(), 7);
        assert_eq!(hints(&list, "list_notes").0, Some(true));
        assert_eq!(hints(&list, "read_note").0, Some(true));
        assert_eq!(hints(&list, "count_slowly").0, Some(true));
        assert_eq!(hints(&list, "write_note"), (Some(false), Some(false)));
        assert_eq!(hints(&list, "append_note"), (Some(false), Some(false)));
        assert_eq!(hints(&list, "delete_note"), (Some(false), Some(true)));
        assert_eq!(hints(&list, "wipe_notes"), (Some(false), Some(true)));
    }
}

#[tokio::test]
async fn a_note_written_in_one_era_is_read_and_deleted_in_the_other() {
    let workbench = Workbench::start(0).await.unwrap();
    let session = Session::begin(&workbench).await;
    let call = |name: &str, arguments: Value| json!({ "name": name, "arguments": arguments });
    let wrote = modern(&workbench, "tools/call", call("write_note", json!({ "id": "n", "text": "one" }))).await;
    assert_eq!((said(&wrote), &wrote["resultType"]), ("wrote note `n` (3 bytes)", &json!("complete")));
    session.ask(&workbench, "tools/call", call("append_note", json!({ "id": "n", "text": "two" }))).await;
    let read = session.ask(&workbench, "tools/call", call("read_note", json!({ "id": "n" }))).await;
    assert_eq!((said(&read), read.get("resultType")), ("one\ntwo", None));
    let again = modern(&workbench, "tools/call", call("write_note", json!({ "id": "n", "text": "other" }))).await;
    assert_eq!(again["isError"], true, "a note is not overwritten");
    modern(&workbench, "tools/call", call("delete_note", json!({ "id": "n" }))).await;
    let gone = session.ask(&workbench, "tools/call", call("read_note", json!({ "id": "n" }))).await;
    assert_eq!((&gone["isError"], said(&gone)), (&json!(true), "there is no note `n`"));
    modern(&workbench, "tools/call", call("wipe_notes", json!({}))).await;
    let empty = modern(&workbench, "tools/call", call("list_notes", json!({}))).await;
    assert_eq!(said(&empty), "there are no notes");
}

#[tokio::test]
async fn counting_reports_its_progress_before_the_result_in_both_eras() {
    let workbench = Workbench::start(0).await.unwrap();
    let params =
        json!({ "name": "count_slowly", "arguments": { "to": 3, "pause_ms": 1 }, "_meta": { "progressToken": "p" } });
    let session = Session::begin(&workbench).await;
    let body = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params });
    let legacy = messages(session.post(&workbench, &body)).await;
    for messages in [modern_messages(&workbench, "tools/call", params.clone()).await, legacy] {
        let progress: Vec<f64> = messages.iter().filter_map(|message| message["params"]["progress"].as_f64()).collect();
        assert_eq!(progress, [1.0, 2.0, 3.0]);
        assert_eq!(said(&messages.last().unwrap()["result"]), "counted to 3");
    }
}

#[tokio::test]
async fn notes_are_resources_and_there_is_one_prompt() {
    let workbench = Workbench::start(0).await.unwrap();
    let list = modern(&workbench, "resources/list", json!({})).await;
    assert_eq!(list["resources"].as_array().unwrap().len(), 3);
    let read = modern(&workbench, "resources/read", json!({ "uri": "note://welcome" })).await;
    assert!(read["contents"][0]["text"].as_str().unwrap().contains("Wardgate"));
    let templates = modern(&workbench, "resources/templates/list", json!({})).await;
    assert_eq!(templates["resourceTemplates"][0]["uriTemplate"], "note://{id}");
    let prompt =
        modern(&workbench, "prompts/get", json!({ "name": "summarise", "arguments": { "id": "ideas" } })).await;
    assert!(prompt["messages"][0]["content"]["text"].as_str().unwrap().contains("espresso"));
}

#[tokio::test]
async fn a_stopped_workbench_answers_no_more() {
    let workbench = Workbench::start(0).await.unwrap();
    Session::begin(&workbench).await;
    workbench.stop().await;
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    assert!(post(&workbench, &body).send().await.is_err());
}
