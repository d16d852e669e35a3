//! What may leave: filters on every way out, by one upstream that says secrets and hidden text wherever it can.

use axum::response::Response;
use serde_json::Value;
use serde_json::json;

use crate::door;
use crate::door::Reading;
use crate::harness::Rig;
use crate::scripted;
use crate::scripted::Scripted;

const JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJlLWNhbmFyeQ";
const CANARIES: [&str; 3] = ["eyJzdWIiOiJjYW5hcnkifQ", "c2lnbmF0dXJl", "\u{202e}"];

fn event(message: &Value) -> String {
    format!("data: {message}\n\n")
}

fn log(text: &str) -> Value {
    json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": { "level": "info", "data": text } })
}

/// A modern upstream whose tool says the same thing in as many ways as `arguments.way` names.
async fn careless() -> Scripted {
    let said = || format!("a \u{202e}token {JWT} here");
    Scripted::start(move |method, _, message| -> Response {
        match (method.as_str(), message["method"].as_str()) {
            ("POST", Some("tools/list")) => scripted::result(message, json!({ "resultType": "complete", "ttlMs": 0, "cacheScope": "public", "tools": [
                { "name": "look", "title": "Lo\u{200b}ok", "description": said(), "annotations": { "readOnlyHint": true },
                  "inputSchema": { "type": "object", "properties": { "way": { "description": "x\u{e0041}y" } } } },
            ] })),
            ("POST", Some("server/discover")) => scripted::result(message, json!({
                "resultType": "complete", "supportedVersions": ["2026-07-28"], "ttlMs": 0, "cacheScope": "private",
                "capabilities": { "tools": {}, "logging": {} }, "instructions": said(),
            })),
            ("POST", Some("tools/call")) => match message["params"]["arguments"]["way"].as_str() {
                Some("error") => scripted::plain(json!({ "jsonrpc": "2.0", "id": message["id"], "error": { "code": -1, "message": said() } })),
                Some("events") => {
                    let (head, tail) = JWT.split_at(30);
                    let answer = json!({ "jsonrpc": "2.0", "id": message["id"], "result": { "resultType": "complete", "content": [{ "type": "text", "text": said() }] } });
                    scripted::events(format!("{}{}{}", event(&log(&format!("begin {head}"))), event(&log(&format!("{tail} end"))), event(&answer)))
                }
                Some("large") => scripted::result(message, json!({ "resultType": "complete", "content": [{ "type": "text", "text": "x".repeat(5000) }] })),
                Some("structured") => scripted::result(message, json!({ "resultType": "complete", "content": [], "structuredContent": { "list": vec!["y".repeat(2000)] } })),
                Some("ask") => scripted::result(message, json!({ "resultType": "input_required", "requestState": JWT, "inputRequests": {
                    "user": { "method": "elicitation/create", "params": { "message": said(), "requestedSchema": { "type": "object", "properties": {} } } } } })),
                _ => scripted::result(message, json!({ "resultType": "complete", "content": [{ "type": "text", "text": said() }], "structuredContent": { "n": 1.25, "t": [said()] }, "_meta": { "x/y": said() } })),
            },
            _ => Response::builder().status(405).body(axum::body::Body::empty()).unwrap(),
        }
    })
    .await
}

async fn rig(upstream: &Scripted, filters: Value, prefixed: bool) -> Rig {
    Rig::with(|file| {
        file["backends"] = json!({
            "odd": { "http": { "url": upstream.url }, "era": "modern", "trust_annotations": true, "filters": filters },
        });
        file["routes"][0]["backends"] = json!(["odd"]);
        if prefixed {
            file["backends"]["other"] = file["backends"]["odd"].clone();
            file["routes"][0]["backends"] = json!(["odd", "other"]);
        }
    })
    .await
}

fn clean(text: &str) {
    for canary in CANARIES {
        assert!(!text.contains(canary), "{canary:?} in {text}");
    }
}

fn all() -> Value {
    json!({ "redact": ["all"], "hidden_text_results": "strip" })
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_text_and_secrets_are_filtered_on_every_way_out() {
    let upstream = careless().await;
    for prefixed in [false, true] {
        let rig = rig(&upstream, all(), prefixed).await;
        let name = if prefixed { "odd_look" } else { "look" };
        let call = |way: &str| {
            let elicitation = json!({ "io.modelcontextprotocol/clientCapabilities": { "elicitation": {} } });
            json!({ "name": name, "arguments": { "way": way }, "_meta": elicitation })
        };
        let list = rig.modern(&rig.viewer(), "tools/list", json!({})).await;
        clean(&list.text);
        let tool = &list.body["result"]["tools"][0];
        assert_eq!(tool["description"], "a token [redacted:jwt] here");
        assert_eq!(
            (&tool["title"], &tool["inputSchema"]["properties"]["way"]["description"]),
            (&json!("Look"), &json!("xy"))
        );
        let discovered = rig.modern(&rig.viewer(), "server/discover", json!({})).await;
        clean(&discovered.text);
        assert!(discovered.body["result"]["instructions"].as_str().unwrap().contains("a token [redacted:jwt] here"));
        for way in ["plain", "error", "events"] {
            let answer = rig.modern(&rig.viewer(), "tools/call", call(way)).await;
            clean(&answer.text);
            assert!(answer.text.contains("a token [redacted:jwt] here"), "{way}: {}", answer.text);
            assert_eq!(answer.text.contains("1.25"), way == "plain", "numbers stay as they came");
        }
        let asked = rig.modern(&rig.viewer(), "tools/call", call("ask")).await;
        assert_eq!(asked.body["result"]["requestState"], JWT, "the server gets it back as it was");
        let message = &asked.body["result"]["inputRequests"]["user"]["params"]["message"];
        assert_eq!(message, "a token [redacted:jwt] here");
        let record = rig.record(|record| record["method"] == "tools/call" && record["outcome"] == "answered").await;
        assert!(record["filtered"]["jwt"].as_u64().unwrap() > 0, "{record}");
        let metrics = rig.client.get(format!("{}/metrics", rig.admin)).send().await.unwrap().text().await.unwrap();
        for kind in ["jwt", "hidden_text"] {
            assert!(
                metrics.contains(&format!(r#"wardgate_filtered_total{{backend="odd",kind="{kind}"}}"#)),
                "{metrics}"
            );
        }
        rig.app.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leaves_by_the_door_is_filtered_too() {
    let upstream = careless().await;
    let rig = rig(&upstream, all(), false).await;
    let (answer, session) = door::session(&rig, "2025-11-25", door::all()).await;
    clean(&answer.text);
    let list = rig.legacy(&rig.viewer(), Some(&session), "tools/list", json!({})).await;
    clean(&list.text);
    for way in ["plain", "error", "events"] {
        let params = json!({ "name": "look", "arguments": { "way": way } });
        let answer = rig.legacy(&rig.viewer(), Some(&session), "tools/call", params).await;
        clean(&answer.text);
        assert!(answer.text.contains("[redacted:jwt]"), "{way}: {}", answer.text);
    }
    let body = json!({ "jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": { "name": "look", "arguments": { "way": "ask" } } });
    let request = rig.client.post(rig.url()).bearer_auth(rig.viewer());
    let request = request
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("mcp-session-id", &session)
        .header("mcp-protocol-version", "2025-11-25");
    let mut stream = Reading::open(request.body(body.to_string())).await;
    assert_eq!(stream.message().await["params"]["message"], "a token [redacted:jwt] here");
    drop(stream);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_declarations_lose_hidden_text_and_results_pass() {
    let upstream = careless().await;
    let rig = rig(&upstream, json!({}), false).await;
    let list = rig.modern(&rig.viewer(), "tools/list", json!({})).await;
    assert_eq!(list.body["result"]["tools"][0]["description"], format!("a token {JWT} here"));
    let params = json!({ "name": "look", "arguments": {} });
    let answer = rig.modern(&rig.viewer(), "tools/call", params).await;
    assert_eq!(answer.result_text(), format!("a \u{202e}token {JWT} here"));
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_over_their_cap_are_cut_or_withheld_and_the_caller_is_told() {
    let upstream = careless().await;
    let rig =
        rig(&upstream, json!({ "item_bytes_max": 1000, "oversize": "truncate", "result_bytes_max": 4096 }), false)
            .await;
    let call = |way: &str| json!({ "name": "look", "arguments": { "way": way } });
    let cut = rig.modern(&rig.viewer(), "tools/call", call("large")).await;
    assert!(cut.result_text().ends_with("of 5000 bytes]") && cut.text.len() < 1500, "{}", cut.text);
    let withheld = rig.modern(&rig.viewer(), "tools/call", call("structured")).await;
    assert_eq!((withheld.status, &withheld.body["error"]["data"]["reason"]), (200, &json!("result_too_large")));
    assert!(withheld.text.contains("item_bytes_max") && withheld.text.contains("1000 bytes"), "{}", withheld.text);
    let record = rig.record(|record| record["reason"] == "result_too_large").await;
    assert_eq!(record["outcome"], "failed");
    rig.app.shutdown().await;
}
