//! Starts a gateway in this process, on port 0, with the demo's issuer and workbench behind it.

use std::path::PathBuf;
use std::sync::Once;

use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;
use wardgate::app::App;
use wardgate::config;
use wardgate::demo::issuer::Issuer;
use wardgate::demo::workbench::Workbench;

use crate::referee::Referee;

pub const AUDIENCE: &str = "http://gateway.test";

/// A running gateway and all that stands around it.
pub struct Rig {
    pub app: App,
    pub issuer: Issuer,
    pub workbench: Workbench,
    /// Judges all that the gateway writes, when the test ends.
    pub referee: Referee,
    /// `http://127.0.0.1:PORT` of the first listener, through the referee's tap.
    pub base: String,
    pub admin: String,
    pub audit: PathBuf,
    pub client: reqwest::Client,
    _folder: TempDir,
}

/// The first line of every test: crypto and logs of the process.
pub fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(wardgate::server::install_crypto);
}

/// A client that reuses nothing of the machine's settings.
pub fn client() -> reqwest::Client {
    prepare();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// The configuration most tests want: three scopes, everything classified, mode full.
pub fn configuration(issuer: &Issuer, upstream: &str, audit: &std::path::Path) -> Value {
    json!({
        "listeners": [{ "address": "127.0.0.1:0" }],
        "public_url": AUDIENCE,
        "identity": [{ "oidc": { "issuer": issuer.url, "audience": AUDIENCE } }],
        "mode": "full",
        "grants": [
            { "scope": "mcp.read", "allow": ["read"] },
            { "scope": "mcp.write", "allow": ["read", "write"] },
            { "scope": "mcp.admin", "allow": ["read", "read_sensitive", "write", "destroy"] },
        ],
        "backends": {
            "workbench": {
                "http": { "url": upstream },
                "effects": [
                    { "tools": "{list,read,count}_*", "effect": "read" },
                    { "tools": "{write,append}_*", "effect": "write" },
                ],
            },
        },
        "routes": [{ "path": "/mcp", "backends": ["workbench"] }],
        "admin": { "address": "127.0.0.1:0" },
        "audit": { "file": audit },
    })
}

impl Rig {
    pub async fn start() -> Rig {
        Rig::with(|_| {}).await
    }

    /// Starts with a configuration that `adjust` has changed.
    pub async fn with(adjust: impl FnOnce(&mut Value)) -> Rig {
        prepare();
        let folder = tempfile::tempdir().unwrap();
        let issuer = Issuer::start(0).await.unwrap();
        let workbench = Workbench::start(0).await.unwrap();
        let audit = folder.path().join("audit.jsonl");
        let mut file = configuration(&issuer, &workbench.url, &audit);
        adjust(&mut file);
        let referee = Referee::default();
        referee.before_upstreams(&mut file).await;
        let loaded = load(&file).unwrap_or_else(|errors| panic!("the test's configuration is wrong:\n{errors}"));
        let app = App::start(loaded).await.unwrap_or_else(|error| panic!("the gateway does not start: {error}"));
        let base = format!("http://{}", referee.before_clients(&app.addresses()[0].1, &file["public_url"]).await);
        let admin = format!("http://{}", app.admin_address().unwrap());
        Rig { app, issuer, workbench, referee, base, admin, audit, client: client(), _folder: folder }
    }

    /// Puts another configuration in force, with the referee still in between.
    pub async fn reload(&self, mut file: Value) {
        self.referee.before_upstreams(&mut file).await;
        self.app.take(load(&file).unwrap()).await.unwrap();
    }

    pub fn url(&self) -> String {
        format!("{}/mcp", self.base)
    }

    pub fn viewer(&self) -> String {
        self.issuer.token("viewer", "mcp.read", AUDIENCE)
    }

    pub fn editor(&self) -> String {
        self.issuer.token("editor", "mcp.read mcp.write", AUDIENCE)
    }

    pub fn admin_token(&self) -> String {
        self.admin_named("admin")
    }

    pub fn admin_named(&self, subject: &str) -> String {
        self.issuer.token(subject, "mcp.read mcp.write mcp.admin", AUDIENCE)
    }

    /// One modern request; gives status, headers and the JSON-RPC answer (from JSON or from the last event).
    pub async fn modern(&self, token: &str, method: &str, params: Value) -> Answer {
        let request = modern_request(&self.client, &self.url(), method, params);
        Answer::of(request.bearer_auth(token).send().await.unwrap()).await
    }

    /// Starts a legacy session and gives its id.
    pub async fn session(&self, token: &str) -> Option<String> {
        let params = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "it", "version": "1" } });
        let answer = self.legacy(token, None, "initialize", params).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        let session = answer.header("mcp-session-id").map(str::to_owned);
        let done = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        let sent = self.post(token, session.as_deref(), &done.to_string()).await;
        assert_eq!(sent.status, 202, "{:?}", sent.body);
        session
    }

    pub async fn legacy(&self, token: &str, session: Option<&str>, method: &str, params: Value) -> Answer {
        let body = json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params });
        self.post(token, session, &body.to_string()).await
    }

    /// One legacy POST with these very bytes.
    pub async fn post(&self, token: &str, session: Option<&str>, body: &str) -> Answer {
        let mut request = self
            .client
            .post(self.url())
            .bearer_auth(token)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(body.to_owned());
        if let Some(session) = session {
            request = request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-11-25");
        }
        Answer::of(request.send().await.unwrap()).await
    }

    /// All audit records, after everything in flight has been written.
    pub fn records(&self) -> Vec<Value> {
        self.app.flush_audit();
        let text = std::fs::read_to_string(&self.audit).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The newest record that satisfies the test; waits for records that are written after the reply.
    pub async fn record(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..500 {
            if let Some(found) = self.records().into_iter().rev().find(|record| wanted(record)) {
                return found;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("no such record among: {:#?}", self.records());
    }
}

/// The configuration as the program would read it, the demo's issuer allowed.
pub fn load(file: &Value) -> Result<config::Loaded, config::Errors> {
    let options = config::Options { allow_demo_issuer: true, ..config::Options::default() };
    config::parse(&file.to_string(), std::path::Path::new("test.yaml"), options)
}

/// A request as a modern client sends it: metadata in the body, mirrored in the headers.
pub fn modern_request(client: &reqwest::Client, url: &str, method: &str, mut params: Value) -> reqwest::RequestBuilder {
    let name = match method {
        "tools/call" | "prompts/get" => params["name"].as_str().map(str::to_owned),
        "resources/read" => params["uri"].as_str().map(str::to_owned),
        "tasks/get" | "tasks/update" | "tasks/cancel" => params["taskId"].as_str().map(str::to_owned),
        _ => None,
    };
    params["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2026-07-28");
    let capabilities = &mut params["_meta"]["io.modelcontextprotocol/clientCapabilities"];
    if capabilities.is_null() {
        *capabilities = json!({});
    }
    params["_meta"]["io.modelcontextprotocol/clientInfo"] = json!({ "name": "it", "version": "1" });
    let body = json!({ "jsonrpc": "2.0", "id": "q-1", "method": method, "params": params });
    let mut request = client
        .post(url)
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", method)
        .body(body.to_string());
    if let Some(name) = name {
        request = request.header("mcp-name", name);
    }
    request
}

/// A whole HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub text: String,
    /// The JSON-RPC message: the body, or the last event's data.
    pub body: Value,
}

impl Answer {
    pub async fn of(response: reqwest::Response) -> Answer {
        let status = response.status().as_u16();
        let headers: Vec<_> = response
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        let text = response.text().await.unwrap_or_default();
        let last_data =
            text.lines().rev().filter_map(|line| line.strip_prefix("data:")).find(|data| !data.trim().is_empty());
        let body =
            serde_json::from_str(&text).ok().or_else(|| last_data.and_then(|data| serde_json::from_str(data).ok()));
        Answer { status, headers, text, body: body.unwrap_or_default() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn code(&self) -> Option<i64> {
        self.body["error"]["code"].as_i64()
    }

    /// Names of the tools in a list answer.
    pub fn tools(&self) -> Vec<String> {
        let tools = self.body["result"]["tools"].as_array().unwrap_or_else(|| panic!("no tools in {}", self.text));
        let mut names: Vec<_> = tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    /// The text of a tool's result.
    pub fn result_text(&self) -> &str {
        self.body["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("no text in {}", self.text))
    }
}
