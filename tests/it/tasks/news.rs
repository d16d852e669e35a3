//! `notifications/tasks` on `subscriptions/listen`: ids in the words of whoever reads them, and nobody else's tasks.

use std::sync::Arc;
use std::sync::Mutex;

use axum::response::Response;
use serde_json::Value;
use serde_json::json;

use super::before;
use super::before_both;
use super::begun;
use super::declaring;
use super::offers;
use super::state;
use crate::harness::Rig;
use crate::scripted;
use crate::scripted::Scripted;

const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// A server whose calls become tasks named as their arguments say. It tells of every task that is asked for, of one that
/// is not, and remembers which were.
async fn teller(asked: Arc<Mutex<Vec<Value>>>) -> Scripted {
    Scripted::start(move |_, _, message| {
        let params = &message["params"];
        match message["method"].as_str() {
            Some("tools/list") => scripted::result(message, scripted::two_tools()),
            Some("server/discover") => scripted::result(message, offers()),
            Some("tools/call") => scripted::result(
                message,
                state(params["arguments"]["id"].as_str().unwrap(), json!({ "resultType": "task" })),
            ),
            Some("subscriptions/listen") => {
                let ids = params["notifications"]["taskIds"].clone();
                asked.lock().unwrap().push(ids.clone());
                tell(message, &ids)
            }
            _ => scripted::result(message, json!({ "resultType": "complete" })),
        }
    })
    .await
}

fn tell(message: &Value, ids: &Value) -> Response {
    let meta = json!({ SUBSCRIPTION: message["id"] });
    let mut text = String::new();
    let mut say = |method: &str, mut params: Value| {
        params["_meta"] = meta.clone();
        let said = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        text.push_str(&format!("data: {said}\n\n"));
    };
    say("notifications/subscriptions/acknowledged", json!({ "notifications": { "taskIds": ids } }));
    say("notifications/tasks", state("canary-unasked", json!({})));
    for id in ids.as_array().into_iter().flatten().filter_map(Value::as_str) {
        let link = json!({ "type": "resource_link", "uri": "note://1", "name": "n" });
        say("notifications/tasks", state(id, json!({ "status": "completed", "result": { "content": [link] } })));
    }
    let end = json!({ "jsonrpc": "2.0", "id": message["id"], "result": { "resultType": "complete", "_meta": meta } });
    text.push_str(&format!("data: {end}\n\n"));
    scripted::events(text)
}

/// What a subscription to these tasks says, up to its end.
async fn heard(rig: &Rig, token: &str, ids: &[&str]) -> Vec<Value> {
    let answer = declaring(rig, token, "subscriptions/listen", json!({ "notifications": { "taskIds": ids } })).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(!answer.text.contains("canary"), "{}", answer.text);
    let data = answer.text.lines().filter_map(|line| line.strip_prefix("data:"));
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}

fn told(heard: &[Value]) -> Vec<(&str, &str)> {
    let news = heard.iter().filter(|said| said["method"] == "notifications/tasks");
    news.map(|said| {
        assert_eq!(said["params"]["_meta"][SUBSCRIPTION], "q-1", "{said}");
        let uri = said["params"]["result"]["content"][0]["uri"].as_str().unwrap();
        (said["params"]["taskId"].as_str().unwrap(), uri)
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn news_of_tasks_come_under_the_ids_that_the_client_knows() {
    let asked = Arc::default();
    let server = teller(Arc::clone(&asked)).await;
    let rig = before(&server.url).await;
    let token = rig.viewer();
    let one = begun(&rig, &token, "look", json!({ "id": "canary-1" })).await;
    let two = begun(&rig, &token, "look", json!({ "id": "canary-2" })).await;
    let said = heard(&rig, &token, &[&two, &one]).await;
    assert_eq!(said[0]["params"]["notifications"]["taskIds"], json!([two, one]), "{said:?}");
    assert_eq!(told(&said), [(&*two, "note://1"), (&*one, "note://1")]);
    assert_eq!(*asked.lock().unwrap(), [json!(["canary-2", "canary-1"])]);

    // One that is not the caller's spoils the question, and the server is not asked.
    let forged =
        declaring(&rig, &token, "subscriptions/listen", json!({ "notifications": { "taskIds": [one, "x"] } })).await;
    assert_eq!((forged.status, forged.code()), (200, Some(-32602)), "{}", forged.text);
    assert_eq!(forged.body["error"]["message"], "Unknown task: x");
    let params = json!({ "notifications": { "taskIds": [one] } });
    let foreign = declaring(&rig, &rig.admin_token(), "subscriptions/listen", params).await;
    assert_eq!(foreign.body["error"]["message"], format!("Unknown task: {one}"), "{}", foreign.text);
    // So does one whose tool is hidden by now.
    let owner = rig.admin_named("owner");
    let wiping = begun(&rig, &owner, "canary_wipe", json!({ "id": "canary-3" })).await;
    let lesser = rig.issuer.token("owner", "mcp.read", crate::harness::AUDIENCE);
    let params = json!({ "notifications": { "taskIds": [wiping] } });
    let revoked = declaring(&rig, &lesser, "subscriptions/listen", params).await;
    assert_eq!(revoked.body["error"]["message"], format!("Unknown task: {wiping}"), "{}", revoked.text);
    let many = vec!["x"; 300];
    let many = declaring(&rig, &token, "subscriptions/listen", json!({ "notifications": { "taskIds": many } })).await;
    assert_eq!(many.code(), Some(-32602), "{}", many.text);
    assert_eq!(asked.lock().unwrap().len(), 1);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_federated_subscription_asks_each_server_for_its_own_tasks() {
    let (first, second) = (Arc::default(), Arc::default());
    let (one, two) = (teller(Arc::clone(&first)).await, teller(Arc::clone(&second)).await);
    let rig = before_both(&one.url, &two.url).await;
    let token = rig.viewer();
    let ours = begun(&rig, &token, "one_look", json!({ "id": "canary-1" })).await;
    let theirs = begun(&rig, &token, "zwei_look", json!({ "id": "canary-1" })).await;
    assert_ne!(ours, theirs);
    let said = heard(&rig, &token, &[&ours]).await;
    assert_eq!(said[0]["params"]["notifications"]["taskIds"], json!([ours]), "{said:?}");
    assert_eq!(told(&said), [(&*ours, "wardgate+one+note://1")]);
    assert!(second.lock().unwrap().is_empty(), "the other has nothing to tell");
    let said = heard(&rig, &token, &[&theirs, &ours]).await;
    let mut wanted = [(&*ours, "wardgate+one+note://1"), (&*theirs, "wardgate+zwei+note://1")];
    let mut told = told(&said);
    told.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(told, wanted);
    assert_eq!((*second.lock().unwrap()).clone(), [json!(["canary-1"])]);
    let params = json!({ "notifications": { "taskIds": [ours, "x"] } });
    let forged = declaring(&rig, &token, "subscriptions/listen", params).await;
    assert_eq!(
        (forged.code(), &forged.body["error"]["message"]),
        (Some(-32602), &json!("Unknown task: x")),
        "{}",
        forged.text
    );
    let undeclared =
        rig.modern(&token, "subscriptions/listen", json!({ "notifications": { "taskIds": [ours] } })).await;
    assert_eq!((undeclared.status, undeclared.code()), (400, Some(-32021)), "{}", undeclared.text);
    rig.app.shutdown().await;
}
