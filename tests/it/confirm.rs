//! A person's yes, in both eras: asked for, bound to one call, used once.

use serde_json::Value;
use serde_json::json;

use crate::door;
use crate::door::Reading;
use crate::harness::Answer;
use crate::harness::Rig;

const KEY: &str = "dev.wardgate/confirm";

/// Reading asks nobody; writing needs a yes by a grant, destroying by a policy with words of its own.
async fn rig(era: &str) -> Rig {
    let policies = tempfile::tempdir().unwrap();
    let file = policies.path().join("confirm.cedar");
    let text = r#"
        @id("asks") @confirm("Wipe it?")
        permit (principal in Scope::"mcp.admin", action == Action::"call", resource)
        when { resource.effect == "destroy" };
    "#;
    std::fs::write(&file, text).unwrap();
    Rig::with(|config| {
        config["backends"]["workbench"]["era"] = json!(era);
        config["grants"] = json!([
            { "scope": "mcp.read", "allow": ["read"] },
            { "scope": "mcp.write", "allow": ["write"], "confirm": true },
        ]);
        config["policies"] = json!(file);
    })
    .await
}

fn write(id: &str) -> Value {
    let capabilities = json!({ "io.modelcontextprotocol/clientCapabilities": { "elicitation": { "form": {} } } });
    json!({ "name": "write_note", "arguments": { "id": id, "text": "hello" }, "_meta": capabilities })
}

fn answered(mut params: Value, asked: &Answer, action: &str) -> Value {
    params["requestState"] = asked.body["result"]["requestState"].clone();
    params["inputResponses"] = json!({ KEY: { "action": action } });
    params
}

async fn is_there(rig: &Rig, id: &str) -> bool {
    let params = json!({ "name": "read_note", "arguments": { "id": id } });
    rig.modern(&rig.viewer(), "tools/call", params).await.body["result"]["isError"] != json!(true)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_yes_nothing_is_carried_out() {
    let rig = rig("modern").await;
    let editor = rig.editor();
    assert_eq!(
        rig.modern(&editor, "tools/list", json!({})).await.tools().len(),
        5,
        "listed as far as it could be allowed"
    );
    let asked = rig.modern(&editor, "tools/call", write("n-1")).await;
    assert_eq!(asked.body["result"]["resultType"], "input_required", "{}", asked.text);
    let question = &asked.body["result"]["inputRequests"][KEY];
    assert_eq!(question["method"], "elicitation/create");
    let message = question["params"]["message"].as_str().unwrap();
    for part in ["write_note", "Backend: workbench", "\"id\": \"n-1\""] {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert!(!is_there(&rig, "n-1").await);
    for (action, outcome) in [("decline", "declined"), ("cancel", "cancelled"), ("maybe", "cancelled")] {
        let asked = rig.modern(&editor, "tools/call", write("n-1")).await;
        let no = rig.modern(&editor, "tools/call", answered(write("n-1"), &asked, action)).await;
        assert_eq!(no.body["result"]["isError"], true, "{}", no.text);
        let record = rig.record(|record| record["confirmation"] == outcome).await;
        assert_eq!(record["reason"], "confirmation_declined");
    }
    let mut mute = write("n-1");
    mute["_meta"] = json!({});
    let refused = rig.modern(&editor, "tools/call", mute).await;
    assert_eq!((refused.status, refused.code()), (400, Some(-32021)), "{}", refused.text);
    assert_eq!(refused.body["error"]["data"]["requiredCapabilities"], json!({ "elicitation": {} }));
    let wipe = json!({ "name": "wipe_notes", "arguments": {}, "_meta": write("x")["_meta"] });
    let asked = rig.modern(&rig.admin_token(), "tools/call", wipe).await;
    let message = &asked.body["result"]["inputRequests"][KEY]["params"]["message"];
    assert!(message.as_str().unwrap().starts_with("Wipe it?"), "{}", asked.text);
    assert!(!is_there(&rig, "n-1").await);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_yes_is_for_one_call_of_one_caller_once() {
    let rig = rig("modern").await;
    let editor = rig.editor();
    let asked = rig.modern(&editor, "tools/call", write("n-1")).await;
    let invalid = async |token: &str, params: Value| {
        let answer = rig.modern(token, "tools/call", params).await;
        assert_eq!(answer.code(), Some(-32602), "{}", answer.text);
        assert!(answer.text.contains("confirmation"), "{}", answer.text);
    };
    invalid(&editor, answered(write("n-2"), &asked, "accept")).await; // for other arguments: and it is used up now
    invalid(&editor, answered(write("n-1"), &asked, "accept")).await;
    let asked = rig.modern(&editor, "tools/call", write("n-1")).await;
    invalid(&rig.admin_token(), answered(write("n-1"), &asked, "accept")).await;
    let mut forged = answered(write("n-1"), &asked, "accept");
    forged["requestState"] = json!("AAAA");
    invalid(&editor, forged).await;
    let mut none = answered(write("n-1"), &asked, "accept");
    none.as_object_mut().unwrap().remove("requestState");
    invalid(&editor, none).await;
    assert!(!is_there(&rig, "n-1").await);
    // The same arguments, written otherwise.
    let mut same = answered(write("n-1"), &asked, "accept");
    same["arguments"] = serde_json::from_str(r#"{ "text":"hel\u006co", "id":"n-1" }"#).unwrap();
    let done = rig.modern(&editor, "tools/call", same.clone()).await;
    assert_eq!(done.body["result"]["resultType"], "complete", "{}", done.text);
    assert!(is_there(&rig, "n-1").await);
    invalid(&editor, same).await;
    let record = rig.record(|record| record["confirmation"] == "confirmed").await;
    let before = rig
        .record(|other| other["confirmation"] == "asked" && other["confirmation_id"] == record["confirmation_id"])
        .await;
    assert_eq!(before["args_digest"], record["args_digest"]);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_client_is_asked_on_the_stream_of_its_call() {
    for era in ["modern", "legacy"] {
        let rig = rig(era).await;
        let editor = rig.editor();
        for (capabilities, action) in [(door::all(), "accept"), (door::all(), "decline"), (json!({}), "")] {
            let params = json!({ "protocolVersion": "2025-11-25", "capabilities": capabilities, "clientInfo": { "name": "it", "version": "1" } });
            let hello = rig.legacy(&editor, None, "initialize", params).await;
            let session = hello.header("mcp-session-id").expect("a session").to_owned();
            let id = format!("{era}-{action}");
            let body = json!({ "jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": { "name": "write_note", "arguments": { "id": id, "text": "t" } } });
            if action.is_empty() {
                let answer = rig.post(&editor, Some(&session), &body.to_string()).await;
                assert_eq!(answer.code(), Some(-32602), "{}", answer.text);
                assert!(answer.text.contains("elicitation"), "{}", answer.text);
                continue;
            }
            let request = rig.client.post(rig.url()).bearer_auth(&editor);
            let request = request
                .header("content-type", "application/json")
                .header("accept", "application/json, text/event-stream")
                .header("mcp-session-id", &session)
                .header("mcp-protocol-version", "2025-11-25");
            let mut stream = Reading::open(request.body(body.to_string())).await;
            let question = stream.message().await;
            assert_eq!(question["method"], "elicitation/create", "{question}");
            assert!(!is_there(&rig, &id).await);
            let reply =
                json!({ "jsonrpc": "2.0", "id": question["id"], "result": { "action": action, "content": {} } });
            assert_eq!(rig.post(&editor, Some(&session), &reply.to_string()).await.status, 202);
            let last = stream.message().await;
            assert_eq!(last["result"]["isError"] == json!(true), action == "decline", "{last}");
            assert!(last["result"].get("resultType").is_none());
            assert_eq!(is_there(&rig, &id).await, action == "accept");
            let outcome = if action == "accept" { "confirmed" } else { "declined" };
            rig.record(|record| record["confirmation"] == outcome && record["era"] == "legacy").await;
        }
        rig.app.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_the_official_sdks_ask_their_user_in_both_eras() {
    let rig = rig("modern").await;
    let plan = |index: usize| {
        let arguments = json!({ "id": format!("sdk-{index}"), "text": "hello" });
        vec![json!({ "step": "elicit", "tool": "write_note", "args": arguments, "text": "wrote note" })]
    };
    let (clients, lines) = crate::matrix::official(&rig.url(), &rig.editor(), plan).await;
    let failed: Vec<_> = lines.iter().filter(|line| line["ok"] != true).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(lines.iter().filter(|line| line["step"] == "elicit").count(), clients);
    for index in 0..clients {
        assert!(is_there(&rig, &format!("sdk-{index}")).await);
    }
    let confirmed = rig.records().into_iter().filter(|record| record["confirmation"] == "confirmed").count();
    assert_eq!(confirmed, clients);
    rig.app.shutdown().await;
}
