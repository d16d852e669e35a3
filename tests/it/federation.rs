//! Routes with several backends: names, merged lists, what fails alone, cursors, subscriptions, one record each.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::Value;
use serde_json::json;
use tokio::sync::broadcast;
use wardgate::demo::workbench::Workbench;

use crate::harness::Answer;
use crate::harness::Rig;
use crate::harness::modern_request;
use crate::scripted;
use crate::scripted::Scripted;

/// Two workbenches on one route, the second under another prefix and with a tool renamed.
async fn pair(adjust: impl FnOnce(&mut Value)) -> (Rig, Workbench) {
    let second = Workbench::start(0).await.unwrap();
    let rig = Rig::with(|file| {
        let one = file["backends"]["workbench"].clone();
        let mut two = one.clone();
        two["http"]["url"] = json!(second.url);
        file["backends"] = json!({ "one": one, "two": two });
        file["routes"][0]["backends"] =
            json!(["one", { "backend": "two", "prefix": "zwei", "rename": { "list_notes": "all" } }]);
        adjust(file);
    })
    .await;
    (rig, second)
}

/// Scripted upstreams on one route, by name, in this order; their hints are trusted.
async fn scripts(upstreams: &[(&str, &str)], adjust: impl FnOnce(&mut Value)) -> Rig {
    Rig::with(|file| {
        let backend = |url: &str| json!({ "http": { "url": url }, "era": "modern", "trust_annotations": true });
        file["backends"] = upstreams.iter().map(|(name, url)| ((*name).to_owned(), backend(url))).collect();
        file["routes"][0]["backends"] = upstreams.iter().map(|(name, _)| json!(name)).collect();
        adjust(file);
    })
    .await
}

fn tool(name: &str) -> Value {
    json!({ "name": name, "inputSchema": { "type": "object" }, "annotations": { "readOnlyHint": true } })
}

/// An upstream with these tools and nothing else.
async fn with_tools(names: &'static [&'static str]) -> Scripted {
    Scripted::start(move |_, _, message| match message["method"].as_str() {
        Some("tools/list") => {
            let tools: Vec<_> = names.iter().map(|name| tool(name)).collect();
            scripted::result(
                message,
                json!({ "resultType": "complete", "tools": tools, "ttlMs": 0, "cacheScope": "private" }),
            )
        }
        _ => unknown(message),
    })
    .await
}

fn unknown(message: &Value) -> Response {
    let error = json!({ "code": -32601, "message": "Method not found" });
    let mut response = scripted::plain(json!({ "jsonrpc": "2.0", "id": message["id"], "error": error }));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

/// An upstream that takes every request and never answers.
async fn silent() -> Scripted {
    Scripted::start(|_, _, _| {
        let silence = futures_util::stream::pending::<Result<axum::body::Bytes, std::io::Error>>();
        Response::builder().header("content-type", "text/event-stream").body(Body::from_stream(silence)).unwrap()
    })
    .await
}

/// Names in the order in which they came.
fn ordered(answer: &Answer, list: &str, name: &str) -> Vec<String> {
    let entries = answer.body["result"][list].as_array().unwrap_or_else(|| panic!("no {list} in {}", answer.text));
    entries.iter().map(|entry| entry[name].as_str().unwrap().to_owned()).collect()
}

fn call(name: &str, arguments: Value) -> Value {
    json!({ "name": name, "arguments": arguments })
}

const PARTIAL: &str = "dev.wardgate/partial";

#[tokio::test(flavor = "multi_thread")]
async fn tools_of_all_backends_are_listed_and_called_by_their_names() {
    let (rig, _second) = pair(|_| {}).await;
    let list = rig.modern(&rig.viewer(), "tools/list", json!({})).await;
    let want =
        ["one_count_slowly", "one_list_notes", "one_read_note", "zwei_all", "zwei_count_slowly", "zwei_read_note"];
    assert_eq!(list.tools(), want, "{}", list.text);
    let names = ordered(&list, "tools", "name");
    assert!(names[..3].iter().all(|name| name.starts_with("one_")), "the configuration's order: {names:?}");
    assert_eq!((&list.body["id"], &list.body["result"]["cacheScope"]), (&json!("q-1"), &json!("private")));
    assert!(list.body["result"]["_meta"].is_null(), "{}", list.text);

    let note = json!({ "id": "canary", "text": "only in one" });
    assert_eq!(rig.modern(&rig.editor(), "tools/call", call("one_write_note", note)).await.status, 200);
    let read = json!({ "id": "canary" });
    let there = rig.modern(&rig.viewer(), "tools/call", call("one_read_note", read.clone())).await;
    assert!(there.result_text().contains("only in one"), "{}", there.text);
    let elsewhere = rig.modern(&rig.viewer(), "tools/call", call("zwei_read_note", read)).await;
    assert!(elsewhere.result_text().contains("there is no note"), "{}", elsewhere.text);
    let renamed = rig.modern(&rig.viewer(), "tools/call", call("zwei_all", json!({}))).await;
    assert_eq!(renamed.body["result"]["isError"], false, "{}", renamed.text);

    let record = rig.record(|record| record["target"] == "write_note").await;
    assert_eq!((&record["backend"], &record["decision"]), (&json!("one"), &json!("allowed")));
    let record = rig.record(|record| record["method"] == "tools/list").await;
    assert_eq!(
        (&record["backend"], &record["decision"], &record["hidden"]),
        (&json!("*"), &json!("allowed"), &json!(8))
    );
    assert_eq!(record["policies"], json!(["grant-1-connect"]), "each once: {record}");
    assert_eq!(
        rig.records().iter().filter(|record| record["method"] == "tools/list").count(),
        1,
        "one request, one record"
    );
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_missing_foreign_and_renamed_away_answer_the_same_bytes() {
    let (rig, _second) = pair(|_| {}).await;
    let hidden = rig.modern(&rig.viewer(), "tools/call", call("one_delete_note", json!({}))).await;
    assert_eq!((hidden.status, hidden.code()), (200, Some(-32602)), "{}", hidden.text);
    assert!(hidden.text.contains("Unknown tool: one_delete_note"), "{}", hidden.text);
    for other in
        ["one_delete_nope", "drei_delete_note", "delete_note", "zwei_list_notes", "zwei_delete_note", "two_all"]
    {
        let answer = rig.modern(&rig.viewer(), "tools/call", call(other, json!({}))).await;
        assert_eq!(answer.text.replace(other, "one_delete_note"), hidden.text);
        assert_eq!(answer.status, hidden.status);
    }
    for foreign in ["note://groceries", "wardgate+drei+note://groceries"] {
        let answer = rig.modern(&rig.viewer(), "resources/read", json!({ "uri": foreign })).await;
        assert!(answer.text.contains(&format!("Resource not found: {foreign}")), "{}", answer.text);
    }
    let prompt = rig.modern(&rig.viewer(), "prompts/get", json!({ "name": "summarise" })).await;
    assert!(prompt.text.contains("Unknown prompt: summarise"), "{}", prompt.text);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_and_prompts_are_named_and_found_by_backend() {
    let (rig, _second) = pair(|_| {}).await;
    let viewer = rig.viewer();
    let list = rig.modern(&viewer, "resources/list", json!({})).await;
    let uris = ordered(&list, "resources", "uri");
    let of = |scheme: &str| uris.iter().filter(|uri| uri.starts_with(scheme)).count();
    assert_eq!((of("wardgate+one+note://"), of("wardgate+zwei+note://"), uris.len()), (3, 3, 6), "{uris:?}");
    let uri = uris.iter().find(|uri| uri.starts_with("wardgate+zwei+")).unwrap();
    let read = rig.modern(&viewer, "resources/read", json!({ "uri": uri })).await;
    assert_eq!(read.body["result"]["contents"][0]["uri"], json!(uri), "{}", read.text);
    let missing = rig.modern(&viewer, "resources/read", json!({ "uri": "wardgate+one+note://nope" })).await;
    assert_eq!(missing.body["error"]["data"]["uri"], "wardgate+one+note://nope", "{}", missing.text);

    let templates = rig.modern(&viewer, "resources/templates/list", json!({})).await;
    assert_eq!(
        ordered(&templates, "resourceTemplates", "uriTemplate"),
        ["wardgate+one+note://{id}", "wardgate+zwei+note://{id}"]
    );
    let prompts = rig.modern(&viewer, "prompts/list", json!({})).await;
    assert_eq!(ordered(&prompts, "prompts", "name"), ["one_summarise", "zwei_summarise"]);
    let id = uri.rsplit('/').next().unwrap();
    let prompt =
        rig.modern(&viewer, "prompts/get", json!({ "name": "zwei_summarise", "arguments": { "id": id } })).await;
    assert!(prompt.text.contains("Summarise this note"), "{}", prompt.text);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_backend_keeps_its_own_ceiling() {
    let (rig, _second) = pair(|file| file["backends"]["two"]["mode"] = json!("read-only")).await;
    let tools = rig.modern(&rig.editor(), "tools/list", json!({})).await.tools();
    assert!(
        tools.contains(&"one_write_note".to_owned()) && !tools.contains(&"zwei_write_note".to_owned()),
        "{tools:?}"
    );
    let answer =
        rig.modern(&rig.editor(), "tools/call", call("zwei_write_note", json!({ "id": "a", "text": "b" }))).await;
    assert_eq!(answer.code(), Some(-32602), "{}", answer.text);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_use_only_some_backends_sees_only_those_and_who_may_use_none_is_challenged() {
    let (rig, _second) = pair(|file| {
        file["grants"] = json!([
            { "scope": "mcp.read", "allow": ["read"], "tools": ["one/*"] },
            { "scope": "mcp.two", "allow": ["read"], "tools": ["two/*"] },
        ]);
    })
    .await;
    let list = rig.modern(&rig.viewer(), "tools/list", json!({})).await;
    assert!(list.tools().iter().all(|name| name.starts_with("one_")), "{}", list.text);
    assert!(
        !list.text.contains("zwei") && list.body["result"]["_meta"].is_null(),
        "no right is no failure: {}",
        list.text
    );
    let stranger = rig.issuer.token("stranger", "openid", crate::harness::AUDIENCE);
    let answer = rig.modern(&stranger, "tools/list", json!({})).await;
    assert_eq!(answer.status, 403, "{}", answer.text);
    assert!(answer.header("www-authenticate").unwrap().contains("insufficient_scope"));
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_route_can_do_is_what_its_backends_can() {
    let (rig, _second) = pair(|_| {}).await;
    let answer = rig.modern(&rig.viewer(), "server/discover", json!({})).await;
    let result = &answer.body["result"];
    assert_eq!(result["supportedVersions"], json!(["2026-07-28"]), "{}", answer.text);
    assert_eq!(result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "wardgate");
    for capability in ["tools", "prompts", "resources"] {
        assert!(result["capabilities"][capability].is_object(), "{capability}: {}", answer.text);
    }
    let words = result["instructions"].as_str().unwrap();
    assert!(words.contains("## one (names") && words.contains("begin with `zwei_`"), "{words}");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_and_a_dead_backend_hide_nobody_else_and_are_named() {
    let (good, slow) = (with_tools(&["look"]).await, silent().await);
    let rig = scripts(&[("slow", &slow.url), ("dead", "http://127.0.0.1:1/mcp"), ("good", &good.url)], |file| {
        file["routes"][0]["member_timeout"] = json!("400ms")
    })
    .await;
    let from = std::time::Instant::now();
    let list = rig.modern(&rig.viewer(), "tools/list", json!({})).await;
    assert!(from.elapsed() < Duration::from_secs(5), "the slow one is not waited for");
    assert_eq!(list.tools(), ["good_look"], "{}", list.text);
    let partial = &list.body["result"]["_meta"][PARTIAL];
    let want = json!([
        { "backend": "slow", "reason": "backend_timeout" }, { "backend": "dead", "reason": "backend_unavailable" },
    ]);
    assert_eq!(partial, &want, "{}", list.text);
    assert_eq!(list.body["result"]["ttlMs"], 0);
    // The good one has no prompts, which is no failure; the others are still named.
    let prompts = rig.modern(&rig.viewer(), "prompts/list", json!({})).await;
    assert_eq!(prompts.body["result"]["prompts"], json!([]), "{}", prompts.text);
    assert_eq!(prompts.body["result"]["_meta"][PARTIAL].as_array().unwrap().len(), 2);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_fail_there_is_an_error_and_no_empty_list() {
    let rig = scripts(&[("a", "http://127.0.0.1:1/mcp"), ("b", "http://127.0.0.1:2/mcp")], |_| {}).await;
    let answer = rig.modern(&rig.viewer(), "tools/list", json!({})).await;
    assert_eq!(
        (answer.status, &answer.body["error"]["data"]["reason"]),
        (502, &json!("backend_unavailable")),
        "{}",
        answer.text
    );
    let record = rig.record(|record| record["method"] == "tools/list").await;
    assert_eq!((&record["backend"], &record["reason"]), (&json!("*"), &json!("backend_unavailable")));
    rig.app.shutdown().await;
}

/// Three pages of two tools each; cursors are `p1` and `p2`.
async fn paged() -> Scripted {
    Scripted::start(|_, _, message| {
        if message["method"] != "tools/list" {
            return unknown(message);
        }
        let page = match message["params"]["cursor"].as_str() {
            None => 0,
            Some("p1") => 1,
            Some("p2") => 2,
            Some(_) => {
                let error = json!({ "code": -32602, "message": "Invalid cursor" });
                return scripted::plain(json!({ "jsonrpc": "2.0", "id": message["id"], "error": error }));
            }
        };
        let tools = json!([tool(&format!("t{}", page * 2)), tool(&format!("t{}", page * 2 + 1))]);
        let mut list = json!({ "resultType": "complete", "tools": tools, "ttlMs": 5000, "cacheScope": "private" });
        if page < 2 {
            list["nextCursor"] = json!(format!("p{}", page + 1));
        }
        scripted::result(message, list)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_every_backend_is_reached_by_sealed_cursors() {
    let (a, b, c) = (paged().await, with_tools(&["only"]).await, paged().await);
    let rig = scripts(&[("a", &a.url), ("b", &b.url), ("c", &c.url)], |file| {
        let backends = file["routes"][0]["backends"].clone();
        file["routes"] = json!([{ "path": "/mcp", "backends": backends }, { "path": "/other", "backends": backends }]);
    })
    .await;
    let (mut seen, mut cursors, mut params) = (Vec::new(), Vec::new(), json!({}));
    loop {
        let page = rig.modern(&rig.viewer(), "tools/list", params).await;
        assert_eq!(page.status, 200, "{}", page.text);
        seen.extend(ordered(&page, "tools", "name"));
        let Some(cursor) = page.body["result"]["nextCursor"].as_str() else { break };
        // Sealed: what it says of the backends is nothing that could be read or, below, written.
        assert!(cursor.len() > 20 && !cursor.starts_with("p1"), "{cursor}");
        cursors.push(cursor.to_owned());
        params = json!({ "cursor": cursor });
    }
    let want =
        ["a_t0", "a_t1", "b_only", "c_t0", "c_t1", "a_t2", "a_t3", "c_t2", "c_t3", "a_t4", "a_t5", "c_t4", "c_t5"];
    assert_eq!(seen, want);
    assert_eq!(cursors.len(), 2);
    let first = rig.modern(&rig.viewer(), "tools/list", json!({})).await;
    assert_eq!(first.body["result"]["ttlMs"], 0, "the least of all: {}", first.text);

    let foreign = |token: String, method: &'static str, path: &'static str, cursor: String| {
        let url = format!("{}{path}", rig.base);
        let request = modern_request(&rig.client, &url, method, json!({ "cursor": cursor })).bearer_auth(token);
        async move { Answer::of(request.send().await.unwrap()).await }
    };
    let mine = &cursors[0];
    let mut forged = mine.clone();
    forged.replace_range(30..31, if mine.as_bytes()[30] == b'A' { "B" } else { "A" });
    for (what, answer) in [
        ("another caller's", foreign(rig.editor(), "tools/list", "/mcp", mine.clone()).await),
        ("another route's", foreign(rig.viewer(), "tools/list", "/other", mine.clone()).await),
        ("another list's", foreign(rig.viewer(), "prompts/list", "/mcp", mine.clone()).await),
        ("a forged one", foreign(rig.viewer(), "tools/list", "/mcp", forged).await),
        ("the backend's own", foreign(rig.viewer(), "tools/list", "/mcp", "p1".into()).await),
        ("an empty one", foreign(rig.viewer(), "tools/list", "/mcp", String::new()).await),
    ] {
        assert_eq!(answer.code(), Some(-32602), "{what}: {}", answer.text);
    }
    assert_eq!(foreign(rig.viewer(), "tools/list", "/mcp", mine.clone()).await.status, 200, "it was good");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_reach_the_backend_in_its_own_names() {
    let echo = Scripted::start(|_, _, message| match message["method"].as_str() {
        Some("completion/complete") => {
            let reference = message["params"]["ref"].to_string();
            scripted::result(message, json!({ "resultType": "complete", "completion": { "values": [reference] } }))
        }
        _ => unknown(message),
    })
    .await;
    let other = with_tools(&[]).await;
    let rig = scripts(&[("other", &other.url), ("echo", &echo.url)], |_| {}).await;
    for (reference, want) in [
        (json!({ "type": "ref/prompt", "name": "echo_greet" }), json!({ "type": "ref/prompt", "name": "greet" })),
        (
            json!({ "type": "ref/resource", "uri": "wardgate+echo+file:///{path}" }),
            json!({ "type": "ref/resource", "uri": "file:///{path}" }),
        ),
    ] {
        let params = json!({ "ref": reference, "argument": { "name": "path", "value": "a" } });
        let answer = rig.modern(&rig.viewer(), "completion/complete", params).await;
        let said: Value =
            serde_json::from_str(answer.body["result"]["completion"]["values"][0].as_str().unwrap()).unwrap();
        assert_eq!(said, want, "{}", answer.text);
    }
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merged_list_counts_as_one_call() {
    let (rig, _second) =
        pair(|file| file["limits"] = json!({ "principal": { "calls": "2 per 1m", "concurrent": 1 } })).await;
    for _ in 0..2 {
        assert_eq!(rig.modern(&rig.viewer(), "tools/list", json!({})).await.status, 200);
    }
    assert_eq!(rig.modern(&rig.viewer(), "tools/list", json!({})).await.status, 429);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_client_uses_several_backends_as_one_server() {
    let (rig, _second) = pair(|_| {}).await;
    let params =
        json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "it", "version": "1" } });
    let hello = rig.legacy(&rig.viewer(), None, "initialize", params).await;
    assert_eq!(hello.body["result"]["protocolVersion"], "2025-06-18", "{}", hello.text);
    assert!(hello.body["result"]["instructions"].as_str().unwrap().contains("zwei_"), "{}", hello.text);
    let session = rig.session(&rig.viewer()).await;
    let list = rig.legacy(&rig.viewer(), session.as_deref(), "tools/list", json!({})).await;
    let modern = rig.modern(&rig.viewer(), "tools/list", json!({})).await;
    assert_eq!(list.tools(), modern.tools());
    assert!(list.tools().iter().any(|tool| tool.starts_with("zwei_")), "{}", list.text);
    let call = |name: &str| json!({ "name": name, "arguments": {} });
    let seen = rig.legacy(&rig.viewer(), session.as_deref(), "tools/call", call("zwei_all")).await;
    assert_eq!((seen.status, seen.code()), (200, None), "{}", seen.text);
    let hidden = rig.legacy(&rig.viewer(), session.as_deref(), "tools/call", call("zwei_delete_note")).await;
    let missing = rig.legacy(&rig.viewer(), session.as_deref(), "tools/call", call("zwei_delete_nope")).await;
    assert_eq!(hidden.text, missing.text.replace("delete_nope", "delete_note"));
    let record = rig.record(|record| record["target"] == "list_notes").await;
    assert_eq!((&record["era"], &record["backend"]), (&json!("legacy"), &json!("two")), "{record}");
    rig.app.shutdown().await;
}

/// An upstream that counts how often it is asked for its tools, and tells its subscribers what the test says.
async fn teller(scope: &'static str) -> (Scripted, Arc<AtomicUsize>, broadcast::Sender<String>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let (sender, _) = broadcast::channel::<String>(16);
    let (count, news) = (asked.clone(), sender.clone());
    let upstream = Scripted::start(move |_, _, message| match message["method"].as_str() {
        Some("tools/list") => {
            count.fetch_add(1, Ordering::SeqCst);
            let list =
                json!({ "resultType": "complete", "tools": [tool("look")], "ttlMs": 60_000, "cacheScope": scope });
            scripted::result(message, list)
        }
        Some("subscriptions/listen") => {
            let meta = json!({ "io.modelcontextprotocol/subscriptionId": message["id"] });
            let params = json!({ "_meta": meta, "notifications": message["params"]["notifications"] });
            let first =
                json!({ "jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": params });
            let start = (Some(first.to_string()), news.subscribe());
            let events = futures_util::stream::unfold(start, |(first, mut receiver)| async move {
                let text = match first {
                    Some(text) => text,
                    None => receiver.recv().await.ok().filter(|text| text != "END")?,
                };
                let event = axum::body::Bytes::from(format!("data: {text}\n\n"));
                Some((Ok::<_, std::io::Error>(event), (None, receiver)))
            });
            Response::builder().header("content-type", "text/event-stream").body(Body::from_stream(events)).unwrap()
        }
        _ => unknown(message),
    })
    .await;
    (upstream, asked, sender)
}

/// Reads a client's stream message by message.
struct Reader {
    response: reqwest::Response,
    text: String,
}

impl Reader {
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let event: String = self.text.drain(..end + 2).collect();
                if let Some(data) = event.lines().find_map(|line| line.strip_prefix("data:")) {
                    return Some(serde_json::from_str(data).unwrap());
                }
                continue;
            }
            let chunk =
                tokio::time::timeout(Duration::from_secs(20), self.response.chunk()).await.expect("something comes");
            self.text.push_str(std::str::from_utf8(&chunk.unwrap()?).unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_to_several_backends_is_one_open_stream_of_its_caller() {
    let ((a, ..), (b, ..)) = (teller("private").await, teller("private").await);
    let rig = scripts(&[("a", &a.url), ("b", &b.url)], |file| {
        file["limits"] = json!({ "principal": { "streams": 1 } });
    })
    .await;
    let listen = || {
        let params = json!({ "notifications": { "toolsListChanged": true } });
        modern_request(&rig.client, &rig.url(), "subscriptions/listen", params).bearer_auth(rig.viewer()).send()
    };
    let first = listen().await.unwrap();
    assert_eq!(first.status(), 200);
    let second = Answer::of(listen().await.unwrap()).await;
    assert_eq!(second.status, 429, "{}", second.text);
    rig.record(|record| record["limit"] == "principal-streams").await;
    drop(first);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_subscription_hears_all_backends_and_outlives_each() {
    let ((a, _, tell_a), (b, _, tell_b)) = (teller("private").await, teller("private").await);
    let plain = with_tools(&["x"]).await;
    let rig = scripts(&[("a", &a.url), ("plain", &plain.url), ("b", &b.url)], |_| {}).await;
    let params = json!({ "notifications": {
        "toolsListChanged": true, "resourceSubscriptions": ["wardgate+b+n:1", "wardgate+a+n:2"],
    } });
    let request = modern_request(&rig.client, &rig.url(), "subscriptions/listen", params).bearer_auth(rig.viewer());
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let mut reader = Reader { response, text: String::new() };
    let subscription = json!({ "io.modelcontextprotocol/subscriptionId": "q-1" });
    let first = reader.next().await.unwrap();
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
    let granted = json!({ "toolsListChanged": true, "resourceSubscriptions": ["wardgate+a+n:2", "wardgate+b+n:1"] });
    assert_eq!((&first["params"]["notifications"], &first["params"]["_meta"]), (&granted, &subscription));

    let updated =
        |uri: &str| json!({ "jsonrpc": "2.0", "method": "notifications/resources/updated", "params": { "uri": uri } });
    let changed =
        |list: &str| json!({ "jsonrpc": "2.0", "method": format!("notifications/{list}/list_changed"), "params": {} });
    tell_b.send(updated("n:2").to_string()).unwrap(); // not b's to tell, nobody asked b for it
    tell_b.send(changed("prompts").to_string()).unwrap(); // nobody asked for it
    tell_b.send(updated("n:1").to_string()).unwrap();
    let news = reader.next().await.unwrap();
    assert_eq!(news["params"], json!({ "_meta": subscription, "uri": "wardgate+b+n:1" }), "{news}");
    tell_a.send(changed("tools").to_string()).unwrap();
    let news = reader.next().await.unwrap();
    assert_eq!(
        (&news["method"], &news["params"]),
        (&json!("notifications/tools/list_changed"), &json!({ "_meta": subscription }))
    );

    // One ends: the other goes on. The first comes back, and what it may have missed is announced.
    tell_a.send("END".into()).unwrap();
    tell_b.send(updated("n:1").to_string()).unwrap();
    assert_eq!(reader.next().await.unwrap()["params"]["uri"], "wardgate+b+n:1");
    assert_eq!(reader.next().await.unwrap()["method"], "notifications/tools/list_changed");
    tell_a.send(updated("n:2").to_string()).unwrap();
    assert_eq!(reader.next().await.unwrap()["params"]["uri"], "wardgate+a+n:2", "subscribed again");

    // All gone: a graceful end.
    tell_a.send("END".into()).unwrap();
    tell_b.send("END".into()).unwrap();
    let last = reader.next().await.unwrap();
    assert_eq!(
        last,
        json!({ "jsonrpc": "2.0", "id": "q-1", "result": { "resultType": "complete", "_meta": subscription } })
    );
    assert!(reader.next().await.is_none());
    let record = rig.record(|record| record["method"] == "subscriptions/listen").await;
    assert_eq!((&record["backend"], &record["outcome"]), (&json!("*"), &json!("streamed")));
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_list_is_fetched_once_for_all_callers_and_a_private_one_for_each() {
    let ((public, asked_public, tell), (private, asked_private, _)) = (teller("public").await, teller("private").await);
    let rig = scripts(&[("p", &public.url), ("q", &private.url)], |file| {
        file["routes"] = json!([{ "path": "/mcp", "backends": ["p", "q"] }, { "path": "/p", "backends": ["p"] }]);
    })
    .await;
    let counts = || (asked_public.load(Ordering::SeqCst), asked_private.load(Ordering::SeqCst));
    let first = rig.modern(&rig.viewer(), "tools/list", json!({})).await;
    assert_eq!(first.tools(), ["p_look", "q_look"]);
    let (p, q) = counts();
    for token in [rig.viewer(), rig.editor()] {
        let answer = rig.modern(&token, "tools/list", json!({})).await;
        assert_eq!(answer.tools(), ["p_look", "q_look"]);
        assert_eq!(answer.body["result"]["cacheScope"], "private");
    }
    assert_eq!(counts(), (p, q + 2));
    // The transparent route has a part in it, with its own id.
    let request =
        modern_request(&rig.client, &format!("{}/p", rig.base), "tools/list", json!({})).bearer_auth(rig.editor());
    let single = Answer::of(request.send().await.unwrap()).await;
    assert_eq!((single.tools(), &single.body["id"]), (vec!["look".to_owned()], &json!("q-1")));
    assert_eq!(counts(), (p, q + 2));

    // Somebody hears that it changed: nobody is served the old one any more.
    let params = json!({ "notifications": { "toolsListChanged": true } });
    let request = modern_request(&rig.client, &rig.url(), "subscriptions/listen", params).bearer_auth(rig.viewer());
    let mut reader = Reader { response: request.send().await.unwrap(), text: String::new() };
    assert_eq!(reader.next().await.unwrap()["method"], "notifications/subscriptions/acknowledged");
    tell.send(json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": {} }).to_string())
        .unwrap();
    assert_eq!(reader.next().await.unwrap()["method"], "notifications/tools/list_changed");
    drop(reader);
    assert_eq!(rig.modern(&rig.editor(), "tools/list", json!({})).await.status, 200);
    assert_eq!(counts(), (p + 1, q + 3));
    rig.app.shutdown().await;
}
