//! What is hidden, missing or out of date: what its callers learn of it, and the record.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use serde_json::json;

use crate::harness::AUDIENCE;
use crate::harness::Rig;
use crate::scripted;
use crate::scripted::Scripted;

#[tokio::test(flavor = "multi_thread")]
async fn while_a_backend_cannot_be_asked_only_who_may_use_it_learns_of_it() {
    let rig = Rig::with(|file| file["backends"]["workbench"]["http"]["url"] = json!("http://127.0.0.1:9/mcp")).await;
    let call = json!({ "name": "list_notes", "arguments": {} });
    let told = rig.modern(&rig.viewer(), "tools/call", call.clone()).await;
    assert_eq!((told.status, &told.body["error"]["data"]["reason"]), (502, &json!("backend_unavailable")), "{told:?}");
    let stranger = rig.issuer.token("stranger", "openid", AUDIENCE);
    let hidden = rig.modern(&stranger, "tools/call", call).await;
    assert_eq!((hidden.status, hidden.code()), (200, Some(-32602)), "{}", hidden.text);
    assert!(!hidden.text.contains("workbench") && hidden.header("retry-after").is_none(), "{hidden:?}");
    let record = rig.record(|record| record["subject"] == "stranger").await;
    assert_eq!((&record["target"], &record["reason"]), (&json!("list_notes"), &json!("unknown_tool")));
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_is_nowhere_is_in_the_record_by_the_name_it_was_asked_for() {
    let rig = Rig::start().await;
    let name = format!("nowhere_{}", "x".repeat(1000));
    rig.modern(&rig.viewer(), "tools/call", json!({ "name": name, "arguments": {} })).await;
    let record = rig.record(|record| record["reason"] == "unknown_tool").await;
    let target = record["target"].as_str().expect("a target");
    assert!(target.starts_with("nowhere_xxx") && target.len() < 300, "{target}");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_was_kept_does_not_undo_what_the_catalog_has_learned_since() {
    let lists = Arc::new(AtomicUsize::new(0));
    let (count, worse) = (lists.clone(), Arc::new(AtomicBool::new(false)));
    let flag = worse.clone();
    let upstream = Scripted::start(move |_, _, message| match message["method"].as_str() {
        Some("tools/list") => {
            count.fetch_add(1, SeqCst);
            let mut list = scripted::two_tools();
            list["ttlMs"] = json!(60_000);
            if flag.load(SeqCst) {
                list["tools"][0]["annotations"] = json!({ "readOnlyHint": false, "destructiveHint": true });
            }
            scripted::result(message, list)
        }
        Some("server/discover") => scripted::result(
            message,
            json!({ "resultType": "complete", "supportedVersions": ["2026-07-28"], "ttlMs": 0, "cacheScope": "private", "capabilities": { "tools": {} } }),
        ),
        _ => scripted::result(message, json!({ "resultType": "complete", "content": [] })),
    })
    .await;
    let rig = Rig::with(|file| {
        file["backends"] =
            json!({ "odd": { "http": { "url": upstream.url }, "trust_annotations": true, "era": "modern" } });
        file["routes"][0]["backends"] = json!(["odd"]);
    })
    .await;
    let viewer = rig.viewer();
    assert_eq!(rig.modern(&viewer, "tools/list", json!({})).await.tools(), ["look"]);
    worse.store(true, SeqCst);
    // Whoever calls a hidden tool makes the catalog ask again, though not at every call.
    let (before, call) = (lists.load(SeqCst), |name: &str| json!({ "name": name, "arguments": {} }));
    for _ in 0..500 {
        rig.modern(&viewer, "tools/call", call("canary_wipe")).await;
        if lists.load(SeqCst) > before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(lists.load(SeqCst) > before, "the catalog asked again");
    for _ in 0..2 {
        assert_eq!(rig.modern(&viewer, "tools/list", json!({})).await.tools(), [""; 0]);
        let answer = rig.modern(&viewer, "tools/call", call("look")).await;
        assert_eq!(answer.code(), Some(-32602), "{}", answer.text);
    }
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_for_one_caller_is_nobody_elses_to_keep() {
    let upstream = Scripted::start(|_, _, message| match message["method"].as_str() {
        Some("tools/list") => scripted::result(message, scripted::two_tools()),
        Some("server/discover") => scripted::result(
            message,
            json!({ "resultType": "complete", "supportedVersions": ["2026-07-28"], "ttlMs": 0, "cacheScope": "private", "capabilities": { "resources": {} } }),
        ),
        _ => {
            let contents = json!([{ "uri": "note://a", "text": "a", "cacheScope": "public" }]);
            let result = json!({ "resultType": "complete", "ttlMs": u32::MAX, "cacheScope": "public", "contents": contents });
            let answer = json!({ "jsonrpc": "2.0", "id": message["id"], "result": result });
            if message["params"]["uri"] == "note://a" { scripted::plain(answer) } else { scripted::events(format!("data: {answer}\n\n")) }
        }
    })
    .await;
    let rig = Rig::with(|file| {
        file["backends"] = json!({ "odd": { "http": { "url": upstream.url }, "era": "modern" } });
        file["routes"][0]["backends"] = json!(["odd"]);
    })
    .await;
    for uri in ["note://a", "note://b"] {
        let read = rig.modern(&rig.viewer(), "resources/read", json!({ "uri": uri })).await;
        let result = &read.body["result"];
        assert_eq!(result["cacheScope"], "private", "{}", read.text);
        assert_eq!(result["contents"][0]["cacheScope"], "public", "the content is the server's");
        let ttl = result["ttlMs"].as_u64().expect("a number");
        assert!(ttl > 0 && ttl < 24 * 60 * 60 * 1000, "a token of the demo lives less than a day: {ttl}");
    }
    rig.app.shutdown().await;
}
