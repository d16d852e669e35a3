//! The spine over real sockets: lists and calls from one judgement, sessions, limits, streams, records, reload.

use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::harness::Answer;
use crate::harness::Rig;
use crate::harness::load;
use crate::harness::modern_request;
use crate::scripted;
use crate::scripted::Scripted;

const READS: [&str; 3] = ["count_slowly", "list_notes", "read_note"];

#[tokio::test(flavor = "multi_thread")]
async fn each_scope_sees_what_it_may_call_in_both_eras() {
    let rig = Rig::start().await;
    for (token, want) in [(rig.viewer(), 3), (rig.editor(), 5), (rig.admin_token(), 7)] {
        let modern = rig.modern(&token, "tools/list", json!({})).await;
        let session = rig.session(&token).await;
        let legacy = rig.legacy(&token, session.as_deref(), "tools/list", json!({})).await;
        assert_eq!(modern.tools().len(), want, "{}", modern.text);
        assert_eq!(modern.tools(), legacy.tools());
    }
    assert_eq!(rig.modern(&rig.viewer(), "tools/list", json!({})).await.tools(), READS);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_tool_answers_byte_for_byte_like_one_that_does_not_exist() {
    let rig = Rig::start().await;
    let call = |name: &str| json!({ "name": name, "arguments": {} });
    let hidden = rig.modern(&rig.viewer(), "tools/call", call("delete_note")).await;
    let missing = rig.modern(&rig.viewer(), "tools/call", call("delete_nope")).await;
    assert_eq!(hidden.status, missing.status);
    assert_eq!(hidden.text, missing.text.replace("delete_nope", "delete_note"));
    assert_eq!(hidden.code(), Some(-32602));
    let names = |answer: &Answer| answer.headers.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&hidden), names(&missing));
    let record = rig.record(|record| record["target"] == "delete_note").await;
    assert_eq!(
        (&record["reason"], &record["denial"], &record["effect"]),
        (&json!("unknown_tool"), &json!("not_granted"), &json!("destroy"))
    );
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permitted_call_reaches_the_upstream_and_is_recorded_without_its_arguments() {
    let rig = Rig::start().await;
    let params = json!({ "name": "write_note", "arguments": { "id": "canary-id", "text": "canary-text" } });
    let answer = rig.modern(&rig.editor(), "tools/call", params).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body["id"], "q-1");
    let read = rig
        .modern(&rig.viewer(), "tools/call", json!({ "name": "read_note", "arguments": { "id": "canary-id" } }))
        .await;
    assert!(read.result_text().contains("canary-text"), "{}", read.text);
    let record = rig.record(|record| record["target"] == "write_note").await;
    assert_eq!(
        (&record["subject"], &record["decision"], &record["outcome"]),
        (&json!("editor"), &json!("allowed"), &record["outcome"])
    );
    assert!(record["policies"].as_array().unwrap().iter().any(|id| id == "grant-2"), "{record}");
    assert!(record["args_digest"].as_str().unwrap().len() >= 32);
    assert!(!std::fs::read_to_string(&rig.audit).unwrap().contains("canary-text"));
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_in_shadow_mode_is_noted_in_records_of_calls_and_lists_and_opens_nothing() {
    let rig = Rig::with(|file| {
        file["mode"] = json!("full");
        let grants = file["grants"].as_array_mut().unwrap();
        grants.push(json!({ "scope": "mcp.read", "allow": ["destroy"], "shadow": true }));
    })
    .await;
    let id = "grant-4";
    assert_eq!(rig.modern(&rig.viewer(), "tools/list", json!({})).await.tools(), READS);
    let refused = rig.modern(&rig.viewer(), "tools/call", json!({ "name": "wipe_notes", "arguments": {} })).await;
    assert_eq!(refused.code(), Some(-32602));
    let read = rig.modern(&rig.viewer(), "tools/call", json!({ "name": "list_notes", "arguments": {} })).await;
    assert_eq!(read.code(), None, "{}", read.text);
    for (what, expected) in [("wipe_notes", json!([id])), ("list_notes", Value::Null)] {
        assert_eq!(rig.record(|record| record["target"] == what).await["shadows"], expected, "{what}");
    }
    let listed = rig.record(|record| record["method"] == "tools/list").await;
    assert_eq!(listed["shadows"], json!([id]));
    assert!(listed["caller"].is_string() && listed["scopes"].to_string().contains("mcp.read"), "{listed}");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mode_is_a_ceiling_for_everybody() {
    for (mode, want) in [("read-only", 3), ("non-destructive", 5), ("full", 7)] {
        let rig = Rig::with(|file| file["mode"] = json!(mode)).await;
        let admin = rig.admin_token();
        assert_eq!(rig.modern(&admin, "tools/list", json!({})).await.tools().len(), want, "{mode}");
        let answer = rig.modern(&admin, "tools/call", json!({ "name": "wipe_notes", "arguments": {} })).await;
        assert_eq!(answer.code().is_none(), mode == "full", "{mode}: {}", answer.text);
        rig.app.shutdown().await;
    }
    // The lowest of all wins.
    let rig = Rig::with(|file| {
        file["routes"][0]["mode"] = json!("non-destructive");
        file["backends"]["workbench"]["mode"] = json!("read-only");
    })
    .await;
    assert_eq!(rig.modern(&rig.admin_token(), "tools/list", json!({})).await.tools(), READS);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_leaves_as_private_whatever_the_upstream_said() {
    let rig = Rig::start().await;
    let answer = rig.modern(&rig.viewer(), "tools/list", json!({})).await;
    assert_eq!(answer.body["result"]["cacheScope"], "private");
    assert!(answer.header("cache-control").unwrap().contains("no-store"));
    assert!(!answer.text.contains("delete_note"), "a hidden name is in no byte");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_the_challenge_leads_to_the_metadata() {
    let rig = Rig::start().await;
    let bare = modern_request(&rig.client, &rig.url(), "tools/list", json!({}));
    let answer = Answer::of(bare.send().await.unwrap()).await;
    assert_eq!(answer.status, 401);
    let challenge = answer.header("www-authenticate").unwrap();
    assert!(challenge.starts_with("Bearer ") && !challenge.contains("error="), "{challenge}");
    assert!(
        challenge.contains(r#"resource_metadata="http://gateway.test/.well-known/oauth-protected-resource/mcp""#),
        "{challenge}"
    );
    let document =
        rig.client.get(format!("{}/.well-known/oauth-protected-resource/mcp", rig.base)).send().await.unwrap();
    assert_eq!(document.status(), 200);
    let document: Value = document.json().await.unwrap();
    assert_eq!(document["resource"], "http://gateway.test/mcp");
    assert_eq!(document["scopes_supported"], json!(["mcp.read"]), "the least set, never the catalogue");
    assert_eq!(document["authorization_servers"], json!([rig.issuer.url]));
    let record = rig.record(|record| record["path"] == "/.well-known/oauth-protected-resource/mcp").await;
    assert_eq!((&record["status"], &record["outcome"]), (&json!(200), &json!("answered")), "public, but not unseen");
    assert_eq!(
        rig.client
            .get(format!("{}/.well-known/oauth-protected-resource/nope", rig.base))
            .send()
            .await
            .unwrap()
            .status(),
        404
    );
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_principal_without_any_grant_is_told_which_scopes_open_the_route() {
    let rig = Rig::start().await;
    let token = rig.issuer.token("stranger", "openid", crate::harness::AUDIENCE);
    let answer = rig.modern(&token, "tools/list", json!({})).await;
    assert_eq!(answer.status, 403);
    let challenge = answer.header("www-authenticate").unwrap();
    assert!(challenge.contains(r#"error="insufficient_scope""#) && challenge.contains("mcp.read"), "{challenge}");
    assert_eq!(answer.body["id"], "q-1");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_belongs_to_its_principal() {
    let rig = Rig::start().await;
    let session = rig.session(&rig.viewer()).await.expect("the workbench has sessions");
    let own = rig.legacy(&rig.viewer(), Some(&session), "ping", json!({})).await;
    assert_eq!(own.status, 200, "{}", own.text);
    let foreign = rig.legacy(&rig.editor(), Some(&session), "ping", json!({})).await;
    let unknown = rig.legacy(&rig.editor(), Some("AAAA"), "ping", json!({})).await;
    assert_eq!((foreign.status, &foreign.text), (404, &unknown.text));
    // A refreshed token of the same subject goes on with the session.
    let refreshed = rig.issuer.token("viewer", "mcp.read mcp.more", crate::harness::AUDIENCE);
    assert_eq!(rig.legacy(&refreshed, Some(&session), "ping", json!({})).await.status, 200);
    let ended =
        rig.client.delete(rig.url()).bearer_auth(rig.viewer()).header("mcp-session-id", &session).send().await.unwrap();
    assert!(ended.status().is_success(), "{}", ended.status());
    assert_eq!(rig.legacy(&rig.viewer(), Some(&session), "ping", json!({})).await.status, 404);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_bites_and_keeps_the_id() {
    let rig =
        Rig::with(|file| file["limits"] = json!({ "tools": [{ "tools": "workbench/list_*", "calls": "2 per 1m" }] }))
            .await;
    let call = json!({ "name": "list_notes", "arguments": {} });
    for _ in 0..2 {
        assert_eq!(rig.modern(&rig.viewer(), "tools/call", call.clone()).await.status, 200);
    }
    let third = rig.modern(&rig.viewer(), "tools/call", call.clone()).await;
    assert_eq!(third.status, 429);
    let after: u64 = third.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&after));
    assert_eq!((&third.body["id"], third.code()), (&json!("q-1"), Some(-31429)));
    assert_eq!(rig.modern(&rig.editor(), "tools/call", call).await.status, 200, "another principal has its own bucket");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrency_is_bounded_and_given_back() {
    let rig = Rig::with(|file| file["limits"] = json!({ "principal": { "concurrent": 1 } })).await;
    let (url, token) = (rig.url(), rig.viewer());
    let params = json!({ "name": "count_slowly", "arguments": { "to": 20, "pause_ms": 1000 }, "_meta": { "progressToken": "p" } });
    let mut running = modern_request(&rig.client, &url, "tools/call", params).bearer_auth(&token).send().await.unwrap();
    assert_eq!(running.status(), 200);
    assert!(running.chunk().await.unwrap().is_some(), "the stream flows");
    let second = rig.modern(&token, "tools/call", json!({ "name": "list_notes", "arguments": {} })).await;
    assert_eq!((second.status, &second.body["error"]["data"]["reason"]), (429, &json!("too_many_concurrent")));
    drop(running);
    for _ in 0..500 {
        if rig.modern(&token, "tools/call", json!({ "name": "list_notes", "arguments": {} })).await.status == 200 {
            rig.app.shutdown().await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the slot of a client that left is not given back");
}

/// An upstream of either era whose every stream is open and silent.
async fn silent() -> Scripted {
    Scripted::start(|method, _, message| match (method.as_str(), message["method"].as_str()) {
        (_, Some("tools/list")) => scripted::result(message, scripted::two_tools()),
        ("GET", _) | (_, Some("subscriptions/listen")) => {
            let silence = futures_util::stream::pending::<Result<axum::body::Bytes, std::io::Error>>();
            let body = axum::body::Body::from_stream(silence);
            axum::response::Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
        }
        _ => scripted::result(message, json!({ "resultType": "complete", "content": [] })),
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn open_streams_are_bounded_per_caller_and_given_back() {
    for era in ["legacy", "modern"] {
        let upstream = silent().await;
        let rig = Rig::with(|file| {
            file["backends"] =
                json!({ "odd": { "http": { "url": upstream.url }, "trust_annotations": true, "era": era } });
            file["routes"][0]["backends"] = json!(["odd"]);
            file["limits"] = json!({ "principal": { "streams": 2 } });
        })
        .await;
        let open = async |token: String| {
            let request = if era == "legacy" {
                rig.client.get(rig.url()).header("accept", "text/event-stream")
            } else {
                let params = json!({ "notifications": { "toolsListChanged": true } });
                modern_request(&rig.client, &rig.url(), "subscriptions/listen", params)
            };
            request.bearer_auth(token).send().await.unwrap()
        };
        let first = open(rig.viewer()).await;
        let _second = open(rig.viewer()).await;
        let third = Answer::of(open(rig.viewer()).await).await;
        let asked = if era == "legacy" { json!(null) } else { json!("q-1") };
        assert_eq!((third.status, third.code(), &third.body["id"]), (429, Some(-31429), &asked), "{era}");
        assert_eq!(third.body["error"]["data"]["reason"], "too_many_streams");
        assert_eq!(third.header("retry-after"), Some("1"));
        let record = rig.record(|record| record["reason"] == "too_many_streams").await;
        assert_eq!(record["limit"], "principal-streams");
        assert_eq!(open(rig.editor()).await.status(), 200, "another caller has slots of their own");
        drop(first);
        let again = async {
            while open(rig.viewer()).await.status() != 200 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), again).await.expect("the slot comes back with the stream's end");
        rig.app.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_flows_event_by_event_and_a_client_that_leaves_is_recorded() {
    let rig = Rig::start().await;
    let params = json!({ "name": "count_slowly", "arguments": { "to": 20, "pause_ms": 1000 }, "_meta": { "progressToken": "p-1" } });
    let mut running =
        modern_request(&rig.client, &rig.url(), "tools/call", params).bearer_auth(rig.viewer()).send().await.unwrap();
    let mut seen = String::new();
    while !seen.contains("notifications/progress") {
        seen.push_str(&String::from_utf8_lossy(&running.chunk().await.unwrap().expect("more")));
    }
    assert!(seen.contains("p-1"), "{seen}");
    drop(running);
    let record = rig.record(|record| record["target"] == "count_slowly").await;
    assert_eq!(record["outcome"], "client_gone");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_leaves_exactly_one_record_also_the_refused_ones() {
    let rig = Rig::start().await;
    let viewer = rig.viewer();
    rig.modern(&viewer, "tools/list", json!({})).await;
    rig.modern("nonsense", "tools/list", json!({})).await;
    rig.modern(&viewer, "no/such", json!({})).await;
    rig.post(&viewer, None, "{").await;
    rig.client.get(format!("{}/nowhere", rig.base)).header("accept", "text/event-stream").send().await.unwrap();
    rig.client.post(rig.url()).bearer_auth(&viewer).body("x").send().await.unwrap();
    let reasons: Vec<_> = rig
        .records()
        .iter()
        .filter(|record| record["request_id"].is_string())
        .map(|record| record["reason"].clone())
        .collect();
    assert_eq!(
        reasons,
        [
            json!(null),
            json!("credential_invalid"),
            json!("method_not_found"),
            json!("parse_error"),
            json!("not_found"),
            json!("unsupported_media_type")
        ]
    );
    let audit = rig.audit.clone();
    rig.app.flush_audit();
    wardgate::audit::verify(&audit, &wardgate::audit::Expect::default()).unwrap_or_else(|broken| panic!("{broken}"));
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_canary_of_the_caller_reaches_the_upstream_log_or_metrics() {
    let rig = Rig::start().await;
    let token = rig.viewer();
    let answer = rig.modern(&token, "tools/call", json!({ "name": "list_notes", "arguments": {} })).await;
    assert_eq!(answer.status, 200);
    let metrics = rig.client.get(format!("{}/metrics", rig.admin)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("wardgate_requests_total"), "{metrics}");
    for place in [&metrics, &std::fs::read_to_string(&rig.audit).unwrap()] {
        assert!(!place.contains(&token));
        assert!(!place.contains(token.rsplit('.').next().unwrap()));
    }
    assert!(!metrics.contains("viewer"), "no user ids in labels");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_listener_answers_and_the_gateway_does_not_answer_for_it() {
    let rig = Rig::start().await;
    for (path, status) in [("/livez", 200), ("/readyz", 200), ("/metrics", 200), ("/status", 200), ("/mcp", 404)] {
        assert_eq!(rig.client.get(format!("{}{path}", rig.admin)).send().await.unwrap().status(), status, "{path}");
    }
    for path in ["/livez", "/metrics", "/status"] {
        let answer =
            rig.client.get(format!("{}{path}", rig.base)).header("accept", "text/event-stream").send().await.unwrap();
        assert_eq!(answer.status(), 404, "{path}");
    }
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_and_prompts_pass_the_same_judgement() {
    let rig = Rig::with(|file| {
        file["grants"] = json!([{ "scope": "mcp.read", "allow": ["read"], "tools": ["workbench/list_notes"] }])
    })
    .await;
    let viewer = rig.viewer();
    assert_eq!(rig.modern(&viewer, "tools/list", json!({})).await.tools(), ["list_notes"]);
    let resources = rig.modern(&viewer, "resources/list", json!({})).await;
    assert_eq!(resources.body["result"]["resources"], json!([]), "{}", resources.text);
    let prompts = rig.modern(&viewer, "prompts/list", json!({})).await;
    assert_eq!(prompts.body["result"]["prompts"], json!([]), "{}", prompts.text);
    let read = rig.modern(&viewer, "resources/read", json!({ "uri": "note://welcome" })).await;
    assert_eq!(read.code(), Some(-32602), "{}", read.text);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_gone_gives_a_clear_error_and_a_known_tool_stays_hidden() {
    let rig = Rig::start().await;
    assert_eq!(rig.modern(&rig.viewer(), "tools/list", json!({})).await.status, 200);
    rig.workbench.stop().await;
    let answer = rig.modern(&rig.viewer(), "tools/call", json!({ "name": "list_notes", "arguments": {} })).await;
    assert_eq!(
        (answer.status, &answer.body["error"]["data"]["reason"]),
        (502, &json!("backend_unavailable")),
        "{}",
        answer.text
    );
    let hidden = rig.modern(&rig.viewer(), "tools/call", json!({ "name": "delete_note", "arguments": {} })).await;
    let missing = rig.modern(&rig.viewer(), "tools/call", json!({ "name": "delete_nope", "arguments": {} })).await;
    assert_eq!(hidden.text, missing.text.replace("delete_nope", "delete_note"));
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_policy_at_once_and_a_bad_one_changes_nothing() {
    let rig = Rig::start().await;
    let viewer = rig.viewer();
    assert_eq!(rig.modern(&viewer, "tools/list", json!({})).await.tools().len(), 3);
    let mut file = crate::harness::configuration(&rig.issuer, &rig.workbench.url, &rig.audit);
    file["grants"] = json!([{ "scope": "mcp.read", "allow": ["read", "write"] }]);
    rig.reload(file.clone()).await;
    assert_eq!(rig.modern(&viewer, "tools/list", json!({})).await.tools().len(), 5);
    file["policies"] = json!(["/no/such/folder"]);
    assert!(load(&file).is_err());
    assert_eq!(rig.modern(&viewer, "tools/list", json!({})).await.tools().len(), 5);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn raising_a_ceiling_is_written_to_the_audit_log() {
    let rig = Rig::with(|file| file["mode"] = json!("read-only")).await;
    let mut file = crate::harness::configuration(&rig.issuer, &rig.workbench.url, &rig.audit);
    file["mode"] = json!("full");
    rig.reload(file.clone()).await;
    let record = rig.record(|record| record["kind"] == "ceiling_raised").await;
    assert_eq!((&record["mode"], &record["place"]), (&json!("full"), &json!("gateway")));
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_keep_their_type_and_value() {
    let rig = Rig::start().await;
    let viewer = rig.viewer();
    for id in ["0", "7", "-3", "9007199254740993", r#""7""#, r#""listen:0""#, r#""\u00e9""#] {
        let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"delete_note"}}}}"#);
        let answer = rig.post(&viewer, None, &body).await;
        assert!(answer.text.contains(&format!(r#""id":{id},"#)), "{id}: {}", answer.text);
    }
    rig.app.shutdown().await;
}

/// The gateway in front of a scripted upstream whose hints are trusted.
async fn before(upstream: &Scripted, era: &str) -> Rig {
    Rig::with(|file| {
        file["backends"] = json!({ "odd": { "http": { "url": upstream.url }, "trust_annotations": true, "era": era } });
        file["routes"][0]["backends"] = json!(["odd"]);
    })
    .await
}

const LOOK: &str = "look";

fn look() -> Value {
    json!({ "name": LOOK, "arguments": {} })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_token_does() {
    let upstream = Scripted::start(|_, _, message| match message["method"].as_str() {
        Some("tools/list") => scripted::result(message, scripted::two_tools()),
        _ => {
            let silence = futures_util::stream::pending::<Result<axum::body::Bytes, std::io::Error>>();
            axum::response::Response::builder()
                .header("content-type", "text/event-stream")
                .body(axum::body::Body::from_stream(silence))
                .unwrap()
        }
    })
    .await;
    let rig = before(&upstream, "modern").await;
    let mut claims = rig.issuer.claims("viewer", "mcp.read", crate::harness::AUDIENCE);
    claims["exp"] = json!(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 2);
    let params = json!({ "notifications": { "toolsListChanged": true } });
    let request = modern_request(&rig.client, &rig.url(), "subscriptions/listen", params)
        .bearer_auth(rig.issuer.token_with(claims));
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let body = tokio::time::timeout(Duration::from_secs(10), response.text()).await.expect("the stream ends by itself");
    assert!(body.is_ok());
    let record = rig.record(|record| record["method"] == "subscriptions/listen").await;
    assert_eq!(record["outcome"], "token_expired");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_sets_no_header_of_ours() {
    let upstream = Scripted::start(|_, _, message| match message["method"].as_str() {
        Some("tools/list") => scripted::result(message, scripted::two_tools()),
        _ => {
            let mut response = scripted::result(message, json!({ "resultType": "complete", "content": [] }));
            for (name, value) in [
                ("set-cookie", "canary=1"),
                ("www-authenticate", "Bearer resource_metadata=\"https://canary.example\""),
                ("access-control-allow-origin", "*"),
                ("x-canary", "canary"),
                ("cache-control", "public, max-age=canary"),
                ("connection", "x-canary"),
                ("mcp-session-id", "canary-session"),
            ] {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        }
    })
    .await;
    let rig = before(&upstream, "modern").await;
    let answer = rig.modern(&rig.viewer(), "tools/call", look()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(!format!("{:?}", answer.headers).contains("canary"), "{:?}", answer.headers);
    assert!(answer.header("access-control-allow-origin").is_none());
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_stream_is_filtered_again() {
    let upstream = Scripted::start(|method, _, message| match (method.as_str(), message["method"].as_str()) {
        ("GET", _) => {
            let replay = json!({ "jsonrpc": "2.0", "id": 3, "result": scripted::two_tools() });
            scripted::events(format!("id: 9\ndata: {replay}\n\n"))
        }
        (_, Some("initialize")) => {
            let mut response = scripted::result(message, json!({ "protocolVersion": "2025-11-25", "capabilities": { "tools": {} }, "serverInfo": { "name": "odd", "version": "1" } }));
            response.headers_mut().insert("mcp-session-id", "s-1".parse().unwrap());
            response
        }
        (_, Some("tools/list")) => scripted::result(message, scripted::two_tools()),
        _ => axum::response::Response::builder().status(202).body(axum::body::Body::empty()).unwrap(),
    })
    .await;
    let rig = before(&upstream, "legacy").await;
    let session = rig.session(&rig.viewer()).await.unwrap();
    let request = rig.client.get(rig.url()).bearer_auth(rig.viewer()).header("accept", "text/event-stream");
    let answer =
        Answer::of(request.header("mcp-session-id", &session).header("last-event-id", "8").send().await.unwrap()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.tools(), [LOOK]);
    assert!(!answer.text.contains("canary"), "{}", answer.text);
    assert!(answer.text.contains("id: 9") || answer.text.contains("id:9"), "event ids pass: {}", answer.text);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_another_request_does_not_pass() {
    let upstream = Scripted::start(|_, _, message| match (message["method"].as_str(), message["params"]["name"].as_str()) {
        (Some("tools/list"), _) => scripted::result(message, scripted::two_tools()),
        (_, Some(LOOK)) if message["params"]["arguments"]["how"] == "events" => {
            let foreign = json!({ "jsonrpc": "2.0", "id": "somebody-else", "result": { "content": [{ "type": "text", "text": "canary" }] } });
            let own = json!({ "jsonrpc": "2.0", "id": message["id"], "result": { "content": [] } });
            scripted::events(format!("data: {foreign}\n\ndata: not json canary\n\ndata: {own}\n\n"))
        }
        _ => scripted::plain(json!({ "jsonrpc": "2.0", "id": "somebody-else", "result": { "content": [{ "type": "text", "text": "canary" }] } })),
    })
    .await;
    let rig = before(&upstream, "modern").await;
    let whole = rig.modern(&rig.viewer(), "tools/call", look()).await;
    assert_eq!(
        (whole.status, &whole.body["error"]["data"]["reason"]),
        (502, &json!("backend_protocol")),
        "{}",
        whole.text
    );
    assert_eq!(whole.body["id"], "q-1");
    let streamed =
        rig.modern(&rig.viewer(), "tools/call", json!({ "name": LOOK, "arguments": { "how": "events" } })).await;
    assert_eq!(streamed.body["result"], json!({ "content": [] }), "{}", streamed.text);
    assert!(!whole.text.contains("canary") && !streamed.text.contains("canary"));
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_comes_as_events_is_filtered_too() {
    let upstream = Scripted::start(|_, _, message| {
        let own = json!({ "jsonrpc": "2.0", "id": message["id"], "result": scripted::two_tools() });
        scripted::events(format!("data: {own}\n\n"))
    })
    .await;
    let rig = before(&upstream, "modern").await;
    let answer = rig.modern(&rig.viewer(), "tools/list", json!({})).await;
    assert_eq!(answer.tools(), [LOOK], "{}", answer.text);
    assert!(!answer.text.contains("canary"), "{}", answer.text);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_refuses_our_credential_does_not_send_clients_to_its_login() {
    let upstream = Scripted::start(|_, _, message| match message["method"].as_str() {
        Some("tools/list") => scripted::result(message, scripted::two_tools()),
        _ => axum::response::Response::builder()
            .status(401)
            .header("www-authenticate", "Bearer resource_metadata=\"https://canary.example\"")
            .body(axum::body::Body::from("canary"))
            .unwrap(),
    })
    .await;
    let rig = before(&upstream, "modern").await;
    let answer = rig.modern(&rig.viewer(), "tools/call", look()).await;
    assert_eq!(
        (answer.status, &answer.body["error"]["data"]["reason"]),
        (502, &json!("credential_refused")),
        "{}",
        answer.text
    );
    assert!(!format!("{:?}{}", answer.headers, answer.text).contains("canary"));
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_gets_its_own_credential_and_never_the_callers() {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let upstream = Scripted::start({
        let seen = seen.clone();
        move |_, headers, message| {
            let sent = headers.get_all("authorization").iter().map(|value| value.to_str().unwrap().to_owned());
            seen.lock().unwrap().extend(sent);
            match message["method"].as_str() {
                Some("tools/list") => scripted::result(message, scripted::two_tools()),
                _ => scripted::result(message, json!({ "resultType": "complete", "content": [] })),
            }
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "upstream-secret\n").unwrap();
    let rig = Rig::with(|file| {
        let credential = json!({ "scheme": "Bearer", "value": format!("file:{}", secret.display()) });
        file["backends"] = json!({ "odd": { "http": { "url": upstream.url }, "trust_annotations": true, "era": "modern", "credential": credential } });
        file["routes"][0]["backends"] = json!(["odd"]);
    })
    .await;
    let answer = rig.modern(&rig.viewer(), "tools/call", look()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let seen = seen.lock().unwrap().clone();
    assert!(!seen.is_empty() && seen.iter().all(|sent| sent == "Bearer upstream-secret"), "{seen:?}");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_opens_the_gateway_and_names_the_principal() {
    crate::harness::prepare();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let signer = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), rcgen::Issuer::new(params, key))
    };
    let (authority_pem, authority) = signer("test authority");
    let leaf = |names: Vec<rcgen::SanType>, usage: rcgen::ExtendedKeyUsagePurpose| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = names;
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &authority).unwrap().pem(), key.serialize_pem())
    };
    let (server, server_key) =
        leaf(vec![rcgen::SanType::IpAddress([127, 0, 0, 1].into())], rcgen::ExtendedKeyUsagePurpose::ServerAuth);
    let agent_id = rcgen::SanType::URI("spiffe://prod.example.com/agents/builder".try_into().unwrap());
    let (agent, agent_key) = leaf(vec![agent_id], rcgen::ExtendedKeyUsagePurpose::ClientAuth);
    for (name, text) in [("ca.pem", &authority_pem), ("tls.crt", &server), ("tls.key", &server_key)] {
        std::fs::write(at(name), text).unwrap();
    }
    let rig = Rig::with(|file| {
        let tls = json!({ "certificate": at("tls.crt"), "key": at("tls.key"), "client_ca": at("ca.pem"), "client_auth": "required" });
        file["listeners"] = json!([{ "address": "127.0.0.1:0", "tls": tls }]);
        file["identity"].as_array_mut().unwrap().push(json!({ "certificates": [{ "spiffe": "spiffe://prod.example.com/agents/*", "scopes": ["mcp.read"] }] }));
    })
    .await;
    let url = format!("{}/mcp", rig.base.replace("http://", "https://"));
    let root = reqwest::Certificate::from_pem(authority_pem.as_bytes()).unwrap();
    let builder = || reqwest::Client::builder().no_proxy().tls_certs_only([root.clone()]);
    let identity = reqwest::Identity::from_pem(format!("{agent_key}{agent}").as_bytes()).unwrap();
    let known = builder().identity(identity).build().unwrap();
    let answer = Answer::of(modern_request(&known, &url, "tools/list", json!({})).send().await.unwrap()).await;
    assert_eq!(answer.tools(), READS, "{}", answer.text);
    let record = rig.record(|record| record["auth"] == "certificate").await;
    assert_eq!(record["subject"], "spiffe://prod.example.com/agents/builder");
    let stranger = builder().build().unwrap();
    assert!(
        modern_request(&stranger, &url, "tools/list", json!({})).send().await.is_err(),
        "no certificate, no handshake"
    );
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_ends_on_reload_to_be_judged_anew() {
    let upstream = Scripted::start(|_, _, message| match message["method"].as_str() {
        Some("tools/list") => scripted::result(message, scripted::two_tools()),
        _ => {
            let silence = futures_util::stream::pending::<Result<axum::body::Bytes, std::io::Error>>();
            let body = axum::body::Body::from_stream(silence);
            axum::response::Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
        }
    })
    .await;
    let rig = before(&upstream, "modern").await;
    let params = json!({ "notifications": { "toolsListChanged": true } });
    let request = modern_request(&rig.client, &rig.url(), "subscriptions/listen", params).bearer_auth(rig.viewer());
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let mut file = crate::harness::configuration(&rig.issuer, &upstream.url, &rig.audit);
    file["mode"] = json!("read-only");
    rig.reload(file.clone()).await;
    tokio::time::timeout(Duration::from_secs(10), response.text()).await.expect("the stream ends by itself").unwrap();
    let record = rig.record(|record| record["method"] == "subscriptions/listen").await;
    assert_eq!(record["outcome"], "reloaded");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_stream_that_may_be_resumed_does_not_end_in_an_error() {
    let upstream = Scripted::start(|_, _, message| match message["method"].as_str() {
        Some("initialize") => scripted::result(message, json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": { "name": "odd", "version": "1" } })),
        Some("tools/list") => scripted::result(message, scripted::two_tools()),
        Some("tools/call") => scripted::events("id: 1\nretry: 500\ndata:\n\n".to_owned()),
        _ => axum::response::Response::builder().status(202).body(axum::body::Body::empty()).unwrap(),
    })
    .await;
    let rig = before(&upstream, "legacy").await;
    let answer = rig.legacy(&rig.viewer(), None, "tools/call", look()).await;
    assert_eq!(answer.status, 200);
    assert!(!answer.text.contains("error") && answer.text.contains("id: 1"), "{}", answer.text);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_of_resources_that_may_not_be_read_are_not_passed_on() {
    let upstream = Scripted::start(|method, _, message| match (method.as_str(), message["method"].as_str()) {
        ("GET", _) => {
            let update = |uri: &str| json!({ "jsonrpc": "2.0", "method": "notifications/resources/updated", "params": { "uri": uri } });
            scripted::events(format!("data: {}\n\ndata: {}\n\n", update("vault://canary"), update("open/readme")))
        }
        (_, Some("tools/list")) => scripted::result(message, scripted::two_tools()),
        _ => axum::response::Response::builder().status(202).body(axum::body::Body::empty()).unwrap(),
    })
    .await;
    let rig = Rig::with(|file| {
        file["backends"] =
            json!({ "odd": { "http": { "url": upstream.url }, "trust_annotations": true, "era": "legacy" } });
        file["routes"][0]["backends"] = json!(["odd"]);
        file["grants"] = json!([{ "scope": "mcp.read", "allow": ["read"], "tools": ["odd/open*"] }]);
    })
    .await;
    let request = rig.client.get(rig.url()).bearer_auth(rig.viewer()).header("accept", "text/event-stream");
    let answer = Answer::of(request.send().await.unwrap()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(answer.text.contains("open/readme") && !answer.text.contains("canary"), "{}", answer.text);
    rig.app.shutdown().await;
}
