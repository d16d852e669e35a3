//! An upstream that does what no real server would: for the faults and lies that real ones cannot be made to show.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::Method;
use axum::response::Response;
use serde_json::Value;
use serde_json::json;

type Script = Arc<dyn Fn(&Method, &HeaderMap, &Value) -> Response + Send + Sync>;

/// A server on loopback whose every answer is the script's, but for the catalog that the gateway asks for first.
pub struct Scripted {
    pub url: String,
    task: tokio::task::JoinHandle<()>,
}

impl Scripted {
    pub async fn start(script: impl Fn(&Method, &HeaderMap, &Value) -> Response + Send + Sync + 'static) -> Scripted {
        let script: Script = Arc::new(script);
        let app = Router::new().fallback(answer).with_state(script);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Scripted { url, task }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(script): State<Script>, method: Method, headers: HeaderMap, body: Bytes) -> Response {
    let message: Value = serde_json::from_slice(&body).unwrap_or_default();
    script(&method, &headers, &message)
}

pub fn plain(body: Value) -> Response {
    Response::builder().header("content-type", "application/json").body(Body::from(body.to_string())).unwrap()
}

pub fn result(message: &Value, result: Value) -> Response {
    plain(json!({ "jsonrpc": "2.0", "id": message["id"], "result": result }))
}

pub fn events(text: String) -> Response {
    Response::builder().header("content-type", "text/event-stream").body(Body::from(text)).unwrap()
}

/// Two tools, one that reads and one that destroys.
pub fn two_tools() -> Value {
    json!({ "resultType": "complete", "tools": [
        { "name": "look", "inputSchema": { "type": "object" }, "annotations": { "readOnlyHint": true } },
        { "name": "canary_wipe", "inputSchema": { "type": "object" }, "annotations": { "readOnlyHint": false, "destructiveHint": true } },
    ], "ttlMs": 0, "cacheScope": "public" })
}
