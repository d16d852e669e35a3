//! Every revision of the protocol on both sides of the gateway, and every kind of message that the gateway can write.
//!
//! One scripted upstream of each revision; a client of each revision uses those that it can be given: its own, and
//! through the gateway's translation those of the other era, alone and all together on one route. What is written is
//! judged by the referee; here it is counted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::http::Method;
use axum::response::Response;
use serde_json::Value;
use serde_json::json;
use tokio::sync::broadcast;
use tokio::sync::mpsc;
use wardgate::mcp::sse::Event;
use wardgate::mcp::sse::Parser;

use crate::harness::Rig;
use crate::referee::note::Side;
use crate::referee::schema::Revision;
use crate::scripted;
use crate::scripted::Scripted;

const MODERN: &str = "2026-07-28";
const WATCHED: &str = "note://watched";
const PATIENCE: Duration = Duration::from_secs(20);

/// An upstream of one revision that uses all of it.
#[derive(Clone)]
struct Peer {
    revision: &'static str,
    /// What its open streams carry.
    news: broadcast::Sender<Value>,
    /// Answers to what it asks.
    answers: broadcast::Sender<Value>,
    sessions: Arc<AtomicU64>,
}

impl Peer {
    async fn start(revision: &'static str) -> Scripted {
        let (news, answers) = (broadcast::channel(64).0, broadcast::channel(64).0);
        let peer = Peer { revision, news, answers, sessions: Arc::default() };
        Scripted::start(move |verb, _: &HeaderMap, message| peer.respond(verb, message)).await
    }

    fn modern(&self) -> bool {
        self.revision == MODERN
    }

    fn respond(&self, verb: &Method, message: &Value) -> Response {
        let accepted = || Response::builder().status(202).body(Body::empty()).unwrap();
        match (verb.as_str(), message["method"].as_str()) {
            ("GET", _) if !self.modern() => self.stream(None),
            ("POST", Some("tools/call")) => self.call(message),
            ("POST", Some("subscriptions/listen")) if self.modern() => self.stream(Some(message)),
            ("POST", Some(method)) if method.starts_with("notifications/") => accepted(),
            ("POST", Some(method)) => self.plain(method, message),
            ("POST", None) => {
                let _ = self.answers.send(message.clone());
                accepted()
            }
            ("DELETE", _) => Response::builder().status(204).body(Body::empty()).unwrap(),
            _ => Response::builder().status(405).body(Body::empty()).unwrap(),
        }
    }

    fn plain(&self, method: &str, message: &Value) -> Response {
        let can = json!({
            "tools": { "listChanged": true }, "prompts": { "listChanged": true }, "logging": {}, "completions": {},
            "resources": { "listChanged": true, "subscribe": true },
        });
        let info = json!({ "name": format!("peer {}", self.revision), "version": "1" });
        let result = match method {
            "initialize" => json!({ "protocolVersion": self.revision, "capabilities": can, "serverInfo": info }),
            "server/discover" => json!({ "supportedVersions": [MODERN], "capabilities": can }),
            "tools/list" => json!({ "tools": self.tools() }),
            "prompts/list" => json!({ "prompts": [{ "name": "greet", "arguments": [{ "name": "who" }] }] }),
            "prompts/get" => {
                let rich = self.rich().into_iter().map(|block| json!({ "role": "user", "content": block }));
                json!({ "messages": rich.collect::<Vec<_>>() })
            }
            "resources/list" => json!({ "resources": [{ "uri": WATCHED, "name": "watched" }] }),
            "resources/templates/list" => {
                json!({ "resourceTemplates": [{ "uriTemplate": "note://{id}", "name": "notes" }] })
            }
            "resources/read" => json!({ "contents": [{ "uri": message["params"]["uri"], "text": "words" }] }),
            "completion/complete" => json!({ "completion": { "values": ["world"] } }),
            "ping" | "logging/setLevel" | "resources/subscribe" | "resources/unsubscribe" if !self.modern() => {
                json!({})
            }
            _ => {
                let error = json!({ "code": -32601, "message": "Method not found" });
                let mut response = scripted::plain(json!({ "jsonrpc": "2.0", "id": message["id"], "error": error }));
                if self.modern() {
                    *response.status_mut() = http::StatusCode::NOT_FOUND;
                }
                return response;
            }
        };
        let cached = method.ends_with("/list") || matches!(method, "server/discover" | "resources/read");
        let mut response = scripted::result(message, self.typed(result, cached));
        if method == "initialize" {
            let session = format!("peer-{}-{}", self.revision, self.sessions.fetch_add(1, Ordering::Relaxed));
            response.headers_mut().insert("mcp-session-id", session.parse().unwrap());
        }
        response
    }

    /// Tools with all that the revision allows in them.
    fn tools(&self) -> Value {
        let mut properties = json!({ "n": { "type": "integer" } });
        if self.modern() {
            properties["any"] = json!(true);
        }
        let mut tool = json!({ "description": "d", "inputSchema": { "type": "object", "properties": properties } });
        if self.revision >= "2025-03-26" {
            tool["annotations"] = json!({ "title": "t", "readOnlyHint": true });
        }
        if self.revision >= "2025-06-18" {
            tool["title"] = json!("t");
            tool["_meta"] = json!({ "dev.test/x": 1 });
        }
        if self.revision >= "2025-11-25" {
            tool["icons"] = json!([{ "src": "https://example.com/icon.png", "sizes": ["48x48"] }]);
        }
        let named = |name: &str| {
            let mut tool = tool.clone();
            tool["name"] = json!(name);
            if name == "show" && self.revision >= "2025-06-18" {
                let of = if self.modern() { "array" } else { "object" };
                tool["outputSchema"] = json!({ "type": of });
            }
            tool
        };
        ["look", "show", "ask", "wait", "fail"].map(named).to_vec().into()
    }

    /// A block of every kind that the revision knows.
    fn rich(&self) -> Vec<Value> {
        let mut blocks = vec![
            json!({ "type": "text", "text": "words" }),
            json!({ "type": "image", "data": "AA==", "mimeType": "image/png" }),
            json!({ "type": "resource", "resource": { "uri": WATCHED, "text": "words" } }),
        ];
        if self.revision >= "2025-03-26" {
            blocks.push(json!({ "type": "audio", "data": "AA==", "mimeType": "audio/wav" }));
        }
        if self.revision >= "2025-06-18" {
            blocks.push(json!({ "type": "resource_link", "uri": WATCHED, "name": "watched" }));
        }
        blocks
    }

    /// A result with what the modern revision wants in it.
    fn typed(&self, mut result: Value, cached: bool) -> Value {
        if self.modern() {
            result["resultType"] = json!("complete");
            if cached {
                (result["ttlMs"], result["cacheScope"]) = (json!(0), json!("private"));
            }
        }
        result
    }

    fn call(&self, message: &Value) -> Response {
        let (sender, response) = events();
        let say = move |message: Value| sender.send(format!("data: {message}\n\n")).is_ok();
        let (id, params) = (message["id"].clone(), message["params"].clone());
        let progress = json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": {
            "progressToken": params["_meta"]["progressToken"], "progress": 1, "total": 2 } });
        let log = json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": { "level": "info", "data": "words" } });
        let content = self.typed(json!({ "content": [{ "type": "text", "text": "done" }] }), false);
        let done = json!({ "jsonrpc": "2.0", "id": id, "result": content });
        match params["name"].as_str().unwrap() {
            "look" => {
                for kind in ["tools/list_changed", "prompts/list_changed", "resources/list_changed"] {
                    let _ = self.news.send(json!({ "jsonrpc": "2.0", "method": format!("notifications/{kind}") }));
                }
                let _ = self.news.send(json!({ "jsonrpc": "2.0", "method": "notifications/resources/updated", "params": { "uri": WATCHED } }));
                if params["_meta"]["progressToken"].is_null() {
                    return scripted::plain(done);
                }
                let _ = say(progress) && say(log) && say(done);
            }
            "wait" => {
                say(progress);
                tokio::spawn(async move {
                    let _open = say;
                    tokio::time::sleep(PATIENCE).await;
                });
            }
            "show" => {
                let mut shown = self.typed(json!({ "content": self.rich() }), false);
                if self.revision >= "2025-06-18" {
                    shown["structuredContent"] = if self.modern() { json!([1]) } else { json!({ "n": 1 }) };
                }
                return scripted::result(message, shown);
            }
            "ask" if self.modern() && params["inputResponses"].is_object() => return scripted::plain(done),
            "ask" if self.modern() => {
                let able = &params["_meta"]["io.modelcontextprotocol/clientCapabilities"];
                let requests: serde_json::Map<_, _> = questions()
                    .into_iter()
                    .filter(|(needs, ..)| able[needs].is_object())
                    .map(|(needs, method, params)| (needs.to_owned(), question(method, params)))
                    .collect();
                let asks =
                    json!({ "resultType": "input_required", "inputRequests": requests, "requestState": "state" });
                return scripted::result(message, asks);
            }
            "ask" => self.ask(say, done),
            _ => {
                let error = json!({ "code": -32602, "message": "It fails." });
                return scripted::plain(json!({ "jsonrpc": "2.0", "id": id, "error": error }));
            }
        }
        response
    }

    /// Asks all that the revision knows, each when the one before is answered, and then is done.
    fn ask(&self, say: impl Fn(Value) -> bool + Send + 'static, done: Value) {
        let mut answers = self.answers.subscribe();
        let old = ["2024-11-05", "2025-03-26"].contains(&self.revision);
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let asked = questions().into_iter().filter(|(needs, ..)| !(old && *needs == "elicitation"));
            for (needs, method, params) in asked.chain([("ping", "ping", Value::Null)]) {
                let id = json!(format!("{needs}-{number}"));
                let mut question = question(method, params);
                (question["jsonrpc"], question["id"]) = (json!("2.0"), id.clone());
                say(question);
                while answers.recv().await.unwrap()["id"] != id {}
            }
            say(done);
        });
    }

    /// An open stream with all news: of a legacy session, or what a modern client has asked for.
    fn stream(&self, listen: Option<&Value>) -> Response {
        let (sender, response) = events();
        let mut news = self.news.subscribe();
        let meta = listen.map(|listen| json!({ "io.modelcontextprotocol/subscriptionId": listen["id"] }));
        if let (Some(listen), Some(meta)) = (listen, &meta) {
            let params = json!({ "notifications": listen["params"]["notifications"], "_meta": meta });
            let words =
                json!({ "jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": params });
            sender.send(format!("data: {words}\n\n")).unwrap();
        }
        let wanted = listen.map(|listen| listen["params"]["notifications"].clone());
        tokio::spawn(async move {
            while let Ok(mut word) = news.recv().await {
                let kind = match word["method"].as_str().unwrap() {
                    "notifications/tools/list_changed" => "toolsListChanged",
                    "notifications/prompts/list_changed" => "promptsListChanged",
                    "notifications/resources/list_changed" => "resourcesListChanged",
                    _ => "resourceSubscriptions",
                };
                if wanted.as_ref().is_some_and(|wanted| wanted.get(kind).is_none()) {
                    continue;
                }
                if let Some(meta) = &meta {
                    word["params"]["_meta"] = meta.clone();
                }
                if sender.send(format!("data: {word}\n\n")).is_err() {
                    return;
                }
            }
        });
        response
    }
}

/// What clients can be asked: the capability it takes, the method, the parameters.
fn questions() -> [(&'static str, &'static str, Value); 3] {
    let form = json!({ "type": "object", "properties": { "name": { "type": "string" } } });
    let sample =
        json!({ "messages": [{ "role": "user", "content": { "type": "text", "text": "Paris?" } }], "maxTokens": 9 });
    [
        ("elicitation", "elicitation/create", json!({ "message": "Name?", "requestedSchema": form })),
        ("sampling", "sampling/createMessage", sample),
        ("roots", "roots/list", Value::Null),
    ]
}

fn question(method: &str, params: Value) -> Value {
    if params.is_null() { json!({ "method": method }) } else { json!({ "method": method, "params": params }) }
}

fn reply(method: &str) -> Value {
    match method {
        "elicitation/create" => json!({ "action": "accept", "content": { "name": "Alice" } }),
        "sampling/createMessage" => {
            json!({ "role": "assistant", "model": "m", "content": { "type": "text", "text": "yes" } })
        }
        "roots/list" => json!({ "roots": [{ "uri": "file:///home" }] }),
        "ping" => json!({}),
        other => panic!("nobody answers {other}"),
    }
}

fn events() -> (mpsc::UnboundedSender<String>, Response) {
    let (sender, mut receiver) = mpsc::unbounded_channel::<String>();
    let body = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    let body = futures_util::StreamExt::map(body, |text| Ok::<_, std::io::Error>(Bytes::from(text)));
    (sender, Response::builder().header("content-type", "text/event-stream").body(Body::from_stream(body)).unwrap())
}

/// A client of one revision on one route.
#[derive(Clone)]
struct Caller {
    client: reqwest::Client,
    url: String,
    token: String,
    revision: &'static str,
    session: Option<String>,
    ids: Arc<AtomicU64>,
    /// The methods of all that it was told.
    told: Arc<Mutex<Vec<String>>>,
}

/// What comes back for one request.
struct Stream {
    response: Option<reqwest::Response>,
    parser: Parser,
    events: VecDeque<Event>,
    /// The only message, where there is no stream.
    whole: Option<Value>,
}

impl Stream {
    async fn next(&mut self) -> Option<Value> {
        if let Some(whole) = self.whole.take() {
            return Some(whole);
        }
        loop {
            if let Some(event) = self.events.pop_front() {
                if let Some(data) = event.data.filter(|data| !data.is_empty()) {
                    return Some(serde_json::from_slice(&data).unwrap());
                }
                continue;
            }
            let more =
                tokio::time::timeout(PATIENCE, self.response.as_mut()?.chunk()).await.expect("something in time");
            self.parser.feed(&more.ok().flatten()?, &mut self.events).unwrap();
        }
    }
}

impl Caller {
    fn modern(&self) -> bool {
        self.revision == MODERN
    }

    /// Can its users be asked by form? Older revisions had no such thing.
    fn able(&self) -> Value {
        let mut able = json!({ "sampling": {}, "roots": {} });
        if self.revision >= "2025-06-18" {
            able["elicitation"] = json!({});
        }
        if !self.modern() {
            able["roots"]["listChanged"] = json!(true);
        }
        able
    }

    async fn send(&self, message: &Value) -> reqwest::Response {
        let mut request = self
            .client
            .post(&self.url)
            .bearer_auth(&self.token)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(message.to_string());
        if self.revision >= "2025-06-18" && message["method"] != "initialize" {
            request = request.header("mcp-protocol-version", self.revision);
        }
        if let Some(session) = &self.session {
            request = request.header("mcp-session-id", session);
        }
        if self.modern() {
            request = request.header("mcp-method", message["method"].as_str().unwrap());
            let params = &message["params"];
            if let Some(name) = params["name"].as_str().or(params["uri"].as_str()) {
                request = request.header("mcp-name", name);
            }
        }
        request.send().await.unwrap()
    }

    async fn open(&self, method: &str, mut params: Value) -> Stream {
        if self.modern() {
            params["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!(MODERN);
            params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = self.able();
            params["_meta"]["io.modelcontextprotocol/logLevel"] = json!("debug");
        }
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let response = self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })).await;
        Caller::stream(response).await
    }

    async fn stream(response: reqwest::Response) -> Stream {
        let streams = response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream");
        let mut stream = Stream { response: None, parser: Parser::new(1 << 20), events: VecDeque::new(), whole: None };
        if streams {
            stream.response = Some(response);
        } else {
            stream.whole = Some(response.json().await.unwrap());
        }
        stream
    }

    fn hear(&self, message: &Value) {
        self.told.lock().unwrap().push(message["method"].as_str().unwrap().to_owned());
    }

    fn was_told(&self, method: &str) -> bool {
        self.told.lock().unwrap().iter().any(|known| known == method)
    }

    /// Sends a request, answers what is asked meanwhile, and gives the answer.
    async fn ask(&self, method: &str, params: Value) -> Value {
        let mut stream = self.open(method, params.clone()).await;
        loop {
            let message = stream.next().await.unwrap_or_else(|| panic!("{method} was never answered"));
            let Some(asked) = message["method"].as_str() else {
                let result = &message["result"];
                if result["resultType"] != "input_required" {
                    return message;
                }
                let mut again = params.clone();
                let requests = result["inputRequests"].as_object().cloned().unwrap_or_default();
                again["inputResponses"] = requests
                    .iter()
                    .map(|(key, asked)| (key.clone(), reply(asked["method"].as_str().unwrap())))
                    .collect();
                if let Some(state) = result.get("requestState") {
                    again["requestState"] = state.clone();
                }
                return Box::pin(self.ask(method, again)).await;
            };
            if message.get("id").is_some() {
                let answer = json!({ "jsonrpc": "2.0", "id": message["id"], "result": reply(asked) });
                assert_eq!(self.send(&answer).await.status(), 202, "{message}");
            } else {
                self.hear(&message);
            }
        }
    }

    async fn result(&self, method: &str, params: Value) -> Value {
        let answer = self.ask(method, params).await;
        assert!(answer["result"].is_object(), "{} at {}: {method}: {answer}", self.revision, self.url);
        answer["result"].clone()
    }

    async fn tell(&self, method: &str, params: Value) {
        let status = self.send(&json!({ "jsonrpc": "2.0", "method": method, "params": params })).await.status();
        assert_eq!(status, 202, "{method}");
    }

    /// Everything a client of its revision can do on its route, with the tools of one upstream of it.
    async fn use_all(mut self, prefix: &str, uri: &str) {
        let read = json!({ "uri": uri });
        let listening = if self.modern() { self.discover(uri).await } else { self.initialize().await };
        let lists = ["tools/list", "prompts/list", "resources/list", "resources/templates/list"];
        for method in lists {
            self.result(method, json!({})).await;
        }
        let prompt = format!("{prefix}greet");
        self.result("prompts/get", json!({ "name": prompt, "arguments": { "who": "you" } })).await;
        self.result("resources/read", read.clone()).await;
        let argument = json!({ "name": "who", "value": "w" });
        self.result(
            "completion/complete",
            json!({ "ref": { "type": "ref/prompt", "name": prompt }, "argument": argument }),
        )
        .await;
        if !self.modern() {
            self.result("ping", json!({})).await;
            self.result("logging/setLevel", json!({ "level": "debug" })).await;
            self.result("resources/subscribe", read.clone()).await;
        }
        let call = |name: &str, token: &str| json!({ "name": format!("{prefix}{name}"), "arguments": { "n": 1 }, "_meta": { "progressToken": token } });
        self.result("tools/call", json!({ "name": format!("{prefix}look"), "arguments": {} })).await;
        let kinds =
            ["tools/list_changed", "prompts/list_changed", "resources/list_changed", "resources/updated", "progress"];
        for turn in 0..200 {
            self.result("tools/call", call("look", &format!("look-{turn}"))).await;
            if kinds.iter().all(|kind| self.was_told(&format!("notifications/{kind}"))) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for kind in kinds {
            let told = self.told.lock().unwrap().clone();
            assert!(
                self.was_told(&format!("notifications/{kind}")),
                "{} at {}: no {kind} in {told:?}",
                self.revision,
                self.url
            );
        }
        self.result("tools/call", call("show", "show")).await;
        self.result("tools/call", call("ask", "ask")).await;
        for refused in ["fail", "nowhere"] {
            assert!(self.ask("tools/call", call(refused, "fail")).await["error"].is_object());
        }
        self.give_up(call("wait", "wait")).await;
        if !self.modern() {
            self.result("resources/unsubscribe", read).await;
            self.tell("notifications/roots/list_changed", json!({})).await;
            let session = self.session.clone().expect("a session");
            let delete = self.client.delete(&self.url).bearer_auth(&self.token).header("mcp-session-id", session);
            assert!(delete.send().await.unwrap().status().is_success());
        }
        listening.abort();
    }

    async fn initialize(&mut self) -> tokio::task::JoinHandle<()> {
        let params = json!({ "protocolVersion": self.revision, "capabilities": self.able(), "clientInfo": { "name": "caller", "version": "1" } });
        let message = json!({ "jsonrpc": "2.0", "id": "hello", "method": "initialize", "params": params });
        let response = self.send(&message).await;
        self.session = response.headers().get("mcp-session-id").map(|id| id.to_str().unwrap().to_owned());
        let answer = Caller::stream(response).await.next().await.unwrap();
        assert_eq!(answer["result"]["protocolVersion"], self.revision, "{}: {answer}", self.url);
        self.tell("notifications/initialized", json!({})).await;
        let request = self.client.get(&self.url).bearer_auth(&self.token).header("accept", "text/event-stream");
        let mut request = request.header("mcp-session-id", self.session.as_ref().expect("a session"));
        if self.revision >= "2025-06-18" {
            request = request.header("mcp-protocol-version", self.revision);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{} at {}", self.revision, self.url);
        self.listen(Caller::stream(response).await)
    }

    async fn discover(&self, uri: &str) -> tokio::task::JoinHandle<()> {
        self.result("server/discover", json!({})).await;
        let wanted = json!({ "toolsListChanged": true, "promptsListChanged": true, "resourcesListChanged": true, "resourceSubscriptions": [uri] });
        let stream = self.open("subscriptions/listen", json!({ "notifications": wanted })).await;
        self.listen(stream)
    }

    /// Takes in what comes unasked.
    fn listen(&self, mut stream: Stream) -> tokio::task::JoinHandle<()> {
        let caller = self.clone();
        tokio::spawn(async move {
            while let Some(message) = stream.next().await {
                if message["method"].is_string() {
                    caller.hear(&message);
                }
            }
        })
    }

    /// Begins a call and cancels it once it is known to run.
    async fn give_up(&self, params: Value) {
        let id = self.ids.load(Ordering::Relaxed);
        let mut stream = self.open("tools/call", params).await;
        assert_eq!(stream.next().await.expect("it begins")["method"], "notifications/progress");
        if !self.modern() {
            self.tell("notifications/cancelled", json!({ "requestId": id, "reason": "enough" })).await;
        }
    }
}

/// Kinds of messages, and the revisions (first and last) in which the gateway writes them to this side.
const TO_CLIENTS: &[(&str, &str, &str)] = &[
    ("initialize → result", "2024-11-05", "2025-11-25"),
    ("ping → result", "2024-11-05", "2025-11-25"),
    ("logging/setLevel → result", "2024-11-05", "2025-11-25"),
    ("resources/subscribe → result", "2024-11-05", "2025-11-25"),
    ("resources/unsubscribe → result", "2024-11-05", "2025-11-25"),
    ("elicitation/create", "2025-06-18", "2025-11-25"),
    ("sampling/createMessage", "2024-11-05", "2025-11-25"),
    ("roots/list", "2024-11-05", "2025-11-25"),
    ("ping", "2024-11-05", "2025-11-25"),
    ("server/discover → result", MODERN, MODERN),
    ("tools/call → input_required", MODERN, MODERN),
    ("notifications/subscriptions/acknowledged", MODERN, MODERN),
    ("tools/list → result", "2024-11-05", MODERN),
    ("tools/call → result", "2024-11-05", MODERN),
    ("prompts/list → result", "2024-11-05", MODERN),
    ("prompts/get → result", "2024-11-05", MODERN),
    ("resources/list → result", "2024-11-05", MODERN),
    ("resources/templates/list → result", "2024-11-05", MODERN),
    ("resources/read → result", "2024-11-05", MODERN),
    ("completion/complete → result", "2024-11-05", MODERN),
    ("notifications/progress", "2024-11-05", MODERN),
    ("notifications/message", "2024-11-05", MODERN),
    ("notifications/tools/list_changed", "2024-11-05", MODERN),
    ("notifications/prompts/list_changed", "2024-11-05", MODERN),
    ("notifications/resources/list_changed", "2024-11-05", MODERN),
    ("notifications/resources/updated", "2024-11-05", MODERN),
    ("error", "2024-11-05", MODERN),
];

const TO_UPSTREAMS: &[(&str, &str, &str)] = &[
    ("initialize", "2024-11-05", "2025-11-25"),
    ("notifications/initialized", "2024-11-05", "2025-11-25"),
    ("notifications/cancelled", "2024-11-05", "2025-11-25"),
    ("notifications/roots/list_changed", "2024-11-05", "2025-11-25"),
    ("ping", "2024-11-05", "2025-11-25"),
    ("logging/setLevel", "2024-11-05", "2025-11-25"),
    ("resources/subscribe", "2024-11-05", "2025-11-25"),
    ("resources/unsubscribe", "2024-11-05", "2025-11-25"),
    ("elicitation/create → result", "2025-06-18", "2025-11-25"),
    ("sampling/createMessage → result", "2024-11-05", "2025-11-25"),
    ("roots/list → result", "2024-11-05", "2025-11-25"),
    ("ping → result", "2024-11-05", "2025-11-25"),
    ("server/discover", MODERN, MODERN),
    ("subscriptions/listen", MODERN, MODERN),
    ("tools/list", "2024-11-05", MODERN),
    ("tools/call", "2024-11-05", MODERN),
    ("prompts/list", "2024-11-05", MODERN),
    ("prompts/get", "2024-11-05", MODERN),
    ("resources/list", "2024-11-05", MODERN),
    ("resources/templates/list", "2024-11-05", MODERN),
    ("resources/read", "2024-11-05", MODERN),
    ("completion/complete", "2024-11-05", MODERN),
];

/// What the gateway can write besides, and why this test does not see it.
const ELSEWHERE: &[(Side, &str, &str)] = &[
    (
        Side::Clients,
        "notifications/cancelled",
        "passed on where a legacy server takes back what it asked; none at hand does",
    ),
    (
        Side::Clients,
        "notifications/elicitation/complete",
        "passed on after an elicitation by URL; none at hand asks by URL",
    ),
    (
        Side::Clients,
        "prompts/get → input_required",
        "the fixture's prompts ask, and the conformance suite answers: `live`",
    ),
    (Side::Clients, "resources/read → input_required", "passed on as it comes; no server at hand asks there"),
    (Side::Clients, "subscriptions/listen → result", "written when every backend has ended its part: `federation`"),
    (
        Side::Upstreams,
        "notifications/progress",
        "passed on from legacy clients at work for the server; none at hand reports it",
    ),
    (Side::Upstreams, "error", "a client's refusal of what it is asked, passed on: `live`"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_revision_is_spoken_as_its_schema_says_on_both_sides() {
    let mut peers = Vec::new();
    for revision in Revision::NAMES {
        peers.push((format!("p{}", revision.replace('-', "")), revision, Peer::start(revision).await));
    }
    let rig = Rig::with(|file| {
        let backend = |(name, revision, peer): &(String, &str, Scripted)| {
            let era = if *revision == MODERN { "modern" } else { "legacy" };
            let of =
                json!({ "http": { "url": peer.url }, "era": era, "effects": [{ "tools": "*", "effect": "read" }] });
            (name.clone(), of)
        };
        file["backends"] = peers.iter().map(backend).collect();
        let route = |(name, ..): &(String, &str, Scripted)| json!({ "path": format!("/{name}"), "backends": [name] });
        let names: Vec<_> = peers.iter().map(|(name, ..)| json!(name)).collect();
        let all = json!({ "path": "/all", "backends": names });
        file["routes"] = peers.iter().map(route).chain([all]).collect();
    })
    .await;
    for client in Revision::NAMES {
        for (name, upstream, _) in &peers {
            let caller = |path: &str| Caller {
                client: rig.client.clone(),
                url: format!("{}/{path}", rig.base),
                // Clients of one caller may share a session at a legacy upstream, and would hear each other's news.
                token: rig.admin_named(&format!("{client} {name} {path}")),
                revision: client,
                session: None,
                ids: Arc::new(AtomicU64::new(1)),
                told: Arc::default(),
            };
            // A legacy client and a legacy upstream agree on a revision themselves.
            if client == *upstream || client == MODERN || *upstream == MODERN {
                caller(name).use_all("", WATCHED).await;
            }
            caller("all").use_all(&format!("{name}_"), &format!("wardgate+{name}+{WATCHED}")).await;
        }
    }
    rig.app.shutdown().await;
    let verdict = rig.referee.close();
    println!("{}", verdict.summary());
    assert_eq!(verdict.unread_connections, 0, "nothing escapes the referee");
    let mut missing = Vec::new();
    for (side, promised) in [(Side::Clients, TO_CLIENTS), (Side::Upstreams, TO_UPSTREAMS)] {
        for revision in Revision::all() {
            assert!(verdict.count(revision, side) > 0, "nothing of {} to {side:?}", revision.name());
            let due = promised.iter().filter(|(_, from, to)| (*from..=*to).contains(&revision.name()));
            let unseen = due.filter(|(kind, ..)| !verdict.saw(revision, side, kind));
            missing.extend(unseen.map(|(kind, ..)| format!("{} to {side:?}: {kind}", revision.name())));
        }
    }
    assert!(missing.is_empty(), "not one of these was seen:\n{}", missing.join("\n"));
    for (side, kind, why) in ELSEWHERE {
        println!("elsewhere {side:?} {kind}: {why}");
    }
    let stated = |side: Side, kind: &str| {
        let promised = if side == Side::Clients { TO_CLIENTS } else { TO_UPSTREAMS };
        promised.iter().any(|(known, ..)| *known == kind)
            || ELSEWHERE.iter().any(|(at, known, _)| (*at, *known) == (side, kind))
    };
    let unstated: Vec<_> = verdict.tally.keys().filter(|(_, side, kind)| !stated(*side, kind)).collect();
    assert!(unstated.is_empty(), "neither promised nor told of: {unstated:?}");
}
