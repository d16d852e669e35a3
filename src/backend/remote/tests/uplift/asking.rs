//! Questions of the server in the middle of a call: `input_required`, its retry, and every way in which that must fail.

use super::*;

fn eliciting() -> Value {
    json!({ "elicitation": {} })
}

fn question(id: &str, message: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": "elicitation/create", "params": { "message": message, "requestedSchema": { "type": "object" } } })
}

type Feed = mpsc::UnboundedSender<Vec<u8>>;

/// A server whose calls are streams in the test's hand.
async fn streaming() -> (Server, Arc<Mutex<Vec<Feed>>>) {
    let feeds: Arc<Mutex<Vec<Feed>>> = Arc::default();
    let server = legacy(json!({}), {
        let feeds = feeds.clone();
        move |seen, _| {
            (seen.method() == "tools/call").then(|| {
                let (feed, reaction) = feeding();
                feeds.lock().expect("lock").push(feed);
                reaction
            })
        }
    })
    .await;
    (server, feeds)
}

fn params() -> Value {
    modern(json!({ "name": "t", "arguments": { "x": 1 } }), eliciting())
}

fn retry(state: &Value, answers: Value) -> Value {
    let mut params = params();
    params["requestState"] = state.clone();
    params["inputResponses"] = answers;
    params
}

fn later(backend: &Arc<Remote>, permit: Permit) -> tokio::task::JoinHandle<Result<Answer, Error>> {
    let backend = backend.clone();
    tokio::spawn(async move { ask(&backend, permit).await })
}

fn answered(id: &Value) -> Vec<u8> {
    event(&json!({ "jsonrpc": "2.0", "id": id, "result": { "content": [] } }))
}

/// Begins a call as alice and has the server ask; gives the upstream's id of the call and the state.
async fn parked(backend: &Arc<Remote>, server: &Server, feeds: &Mutex<Vec<Feed>>) -> (Value, Value) {
    let waiting = later(backend, calls("alice", "\"a\"", params()));
    let call = next_call(server).await;
    feeds.lock().expect("lock").last().expect("a call").send(event(&question("e-1", "who?"))).expect("open");
    let answer = read(waiting.await.expect("no panic"));
    assert_eq!(answer["id"], "a");
    assert_eq!(answer["result"]["resultType"], "input_required");
    assert_eq!(
        answer["result"]["inputRequests"],
        json!({ "q-1": { "method": "elicitation/create", "params": question("", "who?")["params"] } })
    );
    (call.json()["id"].clone(), answer["result"]["requestState"].clone())
}

fn accepted() -> Value {
    json!({ "q-1": { "action": "accept", "content": { "name": "Alice" } } })
}

#[tokio::test]
async fn a_question_becomes_a_result_and_the_retry_carries_the_answer_to_the_waiting_call() {
    let (server, feeds) = streaming().await;
    let backend = old(&server);
    let (id, state) = parked(&backend, &server, &feeds).await;
    assert_eq!(backend.uplift.counts().1, 1);
    let waiting = later(&backend, calls("alice", "\"b\"", retry(&state, accepted())));
    let told = next_call(&server).await;
    assert_eq!(told.json(), json!({ "jsonrpc": "2.0", "id": "e-1", "result": accepted()["q-1"] }));
    let feed = feeds.lock().expect("lock")[0].clone();
    // The server asks once more, two things at once.
    feed.send([event(&question("e-2", "sure?")), event(&question("e-3", "really?"))].concat()).expect("open");
    let again = read(waiting.await.expect("no panic"));
    assert_eq!(again["id"], "b");
    let requests = again["result"]["inputRequests"].as_object().expect("requests");
    assert_eq!(requests.keys().collect::<Vec<_>>(), ["q-2", "q-3"]);
    let decline = json!({ "action": "decline" });
    let answers = json!({ "q-2": decline, "q-3": decline });
    let waiting = later(&backend, calls("alice", "3", retry(&again["result"]["requestState"], answers)));
    assert_eq!(next_call(&server).await.json()["id"], "e-2");
    assert_eq!(next_call(&server).await.json()["id"], "e-3");
    feed.send(answered(&id)).expect("open");
    let last = read(waiting.await.expect("no panic"));
    let meta = json!({ "io.modelcontextprotocol/serverInfo": { "name": "old", "version": "1" } });
    let result = json!({ "content": [], "resultType": "complete", "_meta": meta });
    assert_eq!(last, json!({ "jsonrpc": "2.0", "id": 3, "result": result }));
    assert_eq!(feeds.lock().expect("lock").len(), 1, "the tool ran once");
    assert_eq!(backend.uplift.counts().1, 0);
}

#[tokio::test]
async fn an_answer_to_one_of_two_questions_leaves_the_other_one_open() {
    let (server, feeds) = streaming().await;
    let backend = old(&server);
    let waiting = later(&backend, calls("alice", "1", params()));
    next_call(&server).await;
    let both = [event(&question("e-1", "who?")), event(&question("e-2", "where?"))].concat();
    feeds.lock().expect("lock")[0].send(both).expect("open");
    let first = read(waiting.await.expect("no panic"));
    let second = read(ask(&backend, calls("alice", "2", retry(&first["result"]["requestState"], accepted()))).await);
    let requests = second["result"]["inputRequests"].as_object().expect("requests");
    assert_eq!(requests.keys().collect::<Vec<_>>(), ["q-2"]);
    assert_ne!(first["result"]["requestState"], second["result"]["requestState"]);
}

#[tokio::test]
async fn a_state_is_worth_nothing_to_others_for_other_requests_without_answers_or_twice() {
    let (server, feeds) = streaming().await;
    let backend = old(&server);
    let (id, state) = parked(&backend, &server, &feeds).await;
    let mut other_params = retry(&state, accepted());
    other_params["arguments"] = json!({ "x": 2 });
    for (who, params, words) in [
        ("bob", retry(&state, accepted()), "not one that was given to this caller"),
        ("alice", retry(&json!("AAAA"), accepted()), "not one that was given"),
        ("alice", retry(&json!(7), accepted()), "not one that was given"),
        ("alice", other_params, "another method or other params"),
        ("alice", retry(&state, json!({ "q-9": {} })), "answers none"),
    ] {
        let answer = ask(&backend, calls(who, "\"r\"", params)).await.expect("an answer");
        assert_eq!(answer.status, 200);
        let answer = read(Ok(answer));
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!("r"), &json!(-32602)));
        assert!(answer["error"]["message"].as_str().expect("words").contains(words), "{answer}");
    }
    assert!(server.all().await.is_empty(), "nothing of it went upstream");
    let waiting = later(&backend, calls("alice", "4", retry(&state, accepted())));
    next_call(&server).await;
    feeds.lock().expect("lock")[0].send(answered(&id)).expect("open");
    assert_eq!(read(waiting.await.expect("no panic"))["result"]["resultType"], "complete");
    let replayed = read(ask(&backend, calls("alice", "5", retry(&state, accepted()))).await);
    assert!(replayed["error"]["message"].as_str().expect("words").contains("used already"), "{replayed}");
    assert_eq!(feeds.lock().expect("lock").len(), 1, "the tool ran once");
}

#[tokio::test]
async fn a_client_that_never_answers_has_its_call_cancelled() {
    let (server, feeds) = streaming().await;
    let backend = with(&server, Limits { parked_timeout: Duration::from_millis(50), ..Limits::default() });
    let (id, state) = parked(&backend, &server, &feeds).await;
    let cancelled = next_call(&server).await;
    assert_eq!(cancelled.method(), "notifications/cancelled");
    assert_eq!(cancelled.json()["params"]["requestId"], id);
    let late = read(ask(&backend, calls("alice", "2", retry(&state, accepted()))).await);
    assert!(late["error"]["message"].as_str().expect("words").contains("expired"), "{late}");
}

#[tokio::test]
async fn what_a_client_did_not_declare_is_refused_for_it_and_a_ping_is_answered() {
    let (server, feeds) = streaming().await;
    let backend = old(&server);
    for (capabilities, method) in
        [(json!({}), "elicitation/create"), (eliciting(), "sampling/createMessage"), (eliciting(), "nobody/knows")]
    {
        let waiting = later(&backend, calls("alice", "1", modern(json!({ "name": "t" }), capabilities)));
        let call = next_call(&server).await;
        let feed = feeds.lock().expect("lock").last().expect("a call").clone();
        feed.send(event(&json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": {} }))).expect("open");
        let refused = next_call(&server).await.json();
        assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!(1), &json!(-32601)));
        feed.send(event(&json!({ "jsonrpc": "2.0", "id": "p", "method": "ping" }))).expect("open");
        assert_eq!(next_call(&server).await.json(), json!({ "jsonrpc": "2.0", "id": "p", "result": {} }));
        feed.send(answered(&call.json()["id"])).expect("open");
        feed.send(b"0\r\n\r\n".to_vec()).expect("open");
        assert_eq!(read_any(waiting.await.expect("no panic")).await["result"]["resultType"], "complete");
    }
}

#[tokio::test]
async fn a_full_shelf_refuses_the_server_and_the_call_goes_on() {
    let (server, feeds) = streaming().await;
    let backend = with(&server, Limits { parked_per_principal_max: 1, ..Limits::default() });
    parked(&backend, &server, &feeds).await;
    let waiting = later(&backend, calls("alice", "1", params()));
    let call = next_call(&server).await;
    let feed = feeds.lock().expect("lock")[1].clone();
    feed.send(event(&question("e-9", "who?"))).expect("open");
    let refused = next_call(&server).await.json();
    assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!("e-9"), &json!(-32603)));
    feed.send(answered(&call.json()["id"])).expect("open");
    assert_eq!(read_any(waiting.await.expect("no panic")).await["result"]["resultType"], "complete");
}

#[tokio::test]
async fn a_question_on_the_sessions_own_stream_reaches_the_client_of_the_call() {
    let streams: Arc<Mutex<Vec<Feed>>> = Arc::default();
    let server = legacy(json!({}), {
        let streams = streams.clone();
        move |seen, _| match seen.method().as_str() {
            "tools/call" => Some(Reaction::Hang),
            _ if seen.line.starts_with("GET") => {
                let (feed, reaction) = feeding();
                streams.lock().expect("lock").push(feed);
                Some(reaction)
            }
            _ => None,
        }
    })
    .await;
    let backend = old(&server);
    let waiting = later(&backend, calls("alice", "1", params()));
    let call = next_call(&server).await;
    let feed = streams.lock().expect("lock").first().expect("the stream was there before the call").clone();
    feed.send(event(&question("e-1", "who?"))).expect("open");
    let answer = read(waiting.await.expect("no panic"));
    let waiting = later(&backend, calls("alice", "2", retry(&answer["result"]["requestState"], accepted())));
    assert_eq!(next_call(&server).await.json()["id"], "e-1");
    feed.send(answered(&call.json()["id"])).expect("open");
    assert_eq!(read(waiting.await.expect("no panic"))["id"], 2);
}

#[tokio::test]
async fn lists_are_never_interrupted_by_questions() {
    let server = legacy(json!({}), |seen, _| {
        (seen.method() == "tools/list").then(|| {
            let answer = json!({ "jsonrpc": "2.0", "id": seen.json()["id"], "result": { "tools": [] } });
            Reaction::Raw([STREAM_HEAD.as_bytes(), &event(&question("e", "?")), &event(&answer), b"0\r\n\r\n"].concat())
        })
    })
    .await;
    let lists = asks("alice", "1", Method::ToolsList, &modern(json!({}), eliciting()), None);
    let answer = read(ask(&old(&server), lists).await);
    assert_eq!((&answer["result"]["tools"], &answer["result"]["ttlMs"]), (&json!([]), &json!(0)));
}
