//! The stream of news of a legacy session in front of a modern backend: coming back, taking over, subscriptions, limits.

use std::time::Duration;

use axum::response::Response;
use serde_json::Value;
use serde_json::json;
use tokio::sync::mpsc;

use crate::door::Reading;
use crate::door::Seen;
use crate::door::event;
use crate::door::modern;
use crate::door::session;
use crate::door::watch;
use crate::harness::AUDIENCE;
use crate::harness::Rig;
use crate::scripted;
use crate::scripted::Scripted;

type Upstream = mpsc::UnboundedSender<String>;

/// An upstream whose every subscription the test writes, and a gateway before it.
async fn begin(adjust: impl FnOnce(&mut Value)) -> (Seen, Scripted, Rig) {
    let seen = Seen::default();
    let noted = seen.clone();
    let upstream = modern(move |_, message| match noted.note(message) {
        _ if message["params"]["notifications"]["resourceSubscriptions"] == json!(["note://broken"]) => broken(),
        _ => noted.stream(),
    })
    .await;
    let rig = Rig::with(|file| {
        file["backends"] =
            json!({ "odd": { "http": { "url": upstream.url }, "trust_annotations": true, "era": "modern" } });
        file["routes"][0]["backends"] = json!(["odd"]);
        adjust(file);
    })
    .await;
    (seen, upstream, rig)
}

fn broken() -> Response {
    let mut answer = scripted::plain(json!({}));
    *answer.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
    answer
}

fn acknowledge(stream: &Upstream, uris: &[&str]) {
    let accepted = json!({ "toolsListChanged": true, "resourceSubscriptions": uris });
    let meta = json!({ "io.modelcontextprotocol/subscriptionId": "x" });
    let words = json!({ "jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": { "notifications": accepted, "_meta": meta } });
    stream.send(event(&words)).unwrap();
}

fn changed(list: &str) -> Value {
    json!({ "jsonrpc": "2.0", "method": format!("notifications/{list}/list_changed") })
}

fn updated(uri: &str) -> Value {
    json!({ "jsonrpc": "2.0", "method": "notifications/resources/updated", "params": { "uri": uri } })
}

/// Opens the client's stream, and the upstream's behind it.
async fn open(seen: &Seen, request: reqwest::RequestBuilder, uris: &[&str]) -> (Reading, Upstream) {
    let opening = tokio::spawn(Reading::open(request));
    let upstream = seen.next().await;
    acknowledge(&upstream, uris);
    (opening.await.unwrap(), upstream)
}

async fn subscribe(seen: &Seen, rig: &Rig, session: &str, uri: &str, accepted: &[&str]) -> Upstream {
    let answering = async {
        let upstream = seen.next().await;
        acknowledge(&upstream, accepted);
        upstream
    };
    let token = rig.viewer();
    let asking = rig.legacy(&token, Some(session), "resources/subscribe", json!({ "uri": uri }));
    let (answer, upstream) = tokio::join!(asking, answering);
    assert_eq!(answer.body["result"], json!({}), "{}", answer.text);
    upstream
}

async fn closed(upstream: &Upstream, why: &str) {
    tokio::time::timeout(Duration::from_secs(10), upstream.closed()).await.expect(why);
}

/// Everything of a stream up to this message, but for what carries none.
async fn up_to(news: &mut Reading, last: &Value) -> Vec<Value> {
    let mut before = Vec::new();
    loop {
        let message = news.message().await;
        if message == *last {
            return before;
        }
        before.push(message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_back_hears_once_of_what_changed_while_it_was_away() {
    let (seen, _upstream, rig) = begin(|_| {}).await;
    let (_, own) = session(&rig, "2025-11-25", json!({})).await;
    let (mut news, mut upstream) = open(&seen, watch(&rig, &own), &[]).await;
    let (first, data) = news.next().await.unwrap();
    assert!(data.is_null(), "an id and no message first: {data}");
    let mut last = first.expect("events of news have ids");
    let mut missed = Vec::new();
    // The old subscription and the new one are two connections: what is under way on the old one may come too late.
    for round in 1..=20 {
        drop(news);
        let gone = |records: Vec<Value>| records.iter().filter(|record| record["outcome"] == "client_gone").count();
        while gone(rig.records()) < round {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!upstream.is_closed(), "it is still listened to");
        for list in ["tools", "prompts", "tools", "prompts", "tools"] {
            upstream.send(event(&changed(list))).unwrap();
        }
        (news, upstream) = open(&seen, watch(&rig, &own).header("last-event-id", &last), &[]).await;
        let (id, _) = news.next().await.unwrap();
        last = id.expect("an id");
        upstream.send(event(&updated("note://end"))).unwrap();
        missed = up_to(&mut news, &updated("note://end")).await;
        if missed.len() == 2 {
            break;
        }
    }
    assert_eq!(missed, [changed("tools"), changed("prompts")], "each once");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_it_is_not_known_what_was_missed_everything_is_said_to_have_changed() {
    let (seen, _upstream, rig) = begin(|_| {}).await;
    let (_, own) = session(&rig, "2025-11-25", json!({})).await;
    let _probe = subscribe(&seen, &rig, &own, "note://a", &["note://a"]).await;
    let back = watch(&rig, &own).header("last-event-id", "news-of-another-process-7");
    let (mut news, upstream) = open(&seen, back, &["note://a"]).await;
    upstream.send(event(&changed("prompts"))).unwrap();
    assert_eq!(up_to(&mut news, &changed("prompts")).await, [changed("tools"), updated("note://a")]);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_stream_that_is_refused_leaves_the_first_as_it_is() {
    let seen = Seen::default();
    let noted = seen.clone();
    let upstream = modern(move |_, message| if noted.note(message) == 1 { noted.stream() } else { broken() }).await;
    let rig = crate::door::before(&upstream, Some("modern")).await;
    let (_, own) = session(&rig, "2025-11-25", json!({})).await;
    let (mut news, upstream) = open(&seen, watch(&rig, &own), &[]).await;
    assert_eq!(watch(&rig, &own).send().await.unwrap().status(), 502);
    upstream.send(event(&changed("tools"))).unwrap();
    assert_eq!(news.message().await, changed("tools"));
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_stream_allowed_a_session_subscribes_while_it_listens_and_listens_anew() {
    let (seen, _upstream, rig) = begin(|file| file["limits"] = json!({ "principal": { "streams": 1 } })).await;
    let (_, own) = session(&rig, "2025-11-25", json!({})).await;
    let (mut news, first) = open(&seen, watch(&rig, &own), &[]).await;
    let second = subscribe(&seen, &rig, &own, "note://a", &["note://a"]).await;
    closed(&first, "the old subscription is dropped").await;
    second.send(event(&updated("note://a"))).unwrap();
    assert_eq!(news.message().await, updated("note://a"));
    let (mut newer, third) = open(&seen, watch(&rig, &own), &["note://a"]).await;
    while news.next().await.is_some() {}
    third.send(event(&changed("tools"))).unwrap();
    assert_eq!(newer.message().await, changed("tools"));
    let (_, other) = session(&rig, "2025-11-25", json!({})).await;
    assert_eq!(watch(&rig, &other).send().await.unwrap().status(), 429, "another session is one more");
    drop(newer);
    rig.record(|record| record["http_method"] == "GET" && record["outcome"] == "client_gone").await;
    // What is done for a client's return takes nothing from what it may do meanwhile.
    let (_news, _upstream) = {
        let mut freed = watch(&rig, &other);
        loop {
            let opening = tokio::spawn(freed.send());
            tokio::select! {
                upstream = seen.next() => {
                    acknowledge(&upstream, &[]);
                    let response = opening.await.unwrap().unwrap();
                    assert_eq!(response.status(), 200);
                    break (response, upstream);
                }
                () = tokio::time::sleep(Duration::from_millis(500)) => freed = watch(&rig, &other),
            }
        }
    };
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_is_not_accepted_any_more_keeps_nobody_from_ending_another() {
    let (seen, _upstream, rig) = begin(|_| {}).await;
    let (_, own) = session(&rig, "2025-11-25", json!({})).await;
    let (mut news, _first) = open(&seen, watch(&rig, &own), &[]).await;
    let _second = subscribe(&seen, &rig, &own, "note://a", &["note://a"]).await;
    let third = subscribe(&seen, &rig, &own, "note://broken", &["note://a", "note://broken"]).await;
    // From here on the upstream fails whoever asks for the broken one alone.
    let left = rig.legacy(&rig.viewer(), Some(&own), "resources/unsubscribe", json!({ "uri": "note://a" })).await;
    assert_eq!(left.body["result"], json!({}), "{}", left.text);
    third.send(event(&updated("note://a"))).unwrap();
    third.send(event(&updated("note://a/part"))).unwrap();
    third.send(event(&updated("note://broken"))).unwrap();
    assert_eq!(news.message().await, updated("note://broken"), "what was left is not heard of any more");
    // Nor from subscribing to what is accepted.
    let fourth = subscribe(&seen, &rig, &own, "note://c", &["note://c"]).await;
    fourth.send(event(&updated("note://c"))).unwrap();
    assert_eq!(news.message().await, updated("note://c"));
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_judged_for_another_token_is_asked_for_anew_with_the_streams_own() {
    let (seen, _upstream, rig) = begin(|_| {}).await;
    let (_, own) = session(&rig, "2025-11-25", json!({})).await;
    let (mut news, _first) = open(&seen, watch(&rig, &own), &[]).await;
    let wider = rig.issuer.token("viewer", "mcp.read mcp.write", AUDIENCE);
    let answering = async {
        let probe = seen.next().await;
        acknowledge(&probe, &["note://a"]);
        probe
    };
    let asking = rig.legacy(&wider, Some(&own), "resources/subscribe", json!({ "uri": "note://a" }));
    let (answer, probe) = tokio::join!(asking, answering);
    assert_eq!(answer.body["result"], json!({}), "{}", answer.text);
    let third = seen.next().await;
    acknowledge(&third, &["note://a"]);
    closed(&probe, "what was asked with the other token is not listened to").await;
    third.send(event(&updated("note://a"))).unwrap();
    assert_eq!(news.message().await, updated("note://a"));
    rig.app.shutdown().await;
}
