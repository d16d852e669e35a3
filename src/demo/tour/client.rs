//! `Client`: just enough of an MCP client over HTTP for the tour, in both eras; it shows what came, not what it means.

use std::time::Duration;

use http::HeaderMap;
use http::header::ACCEPT;
use http::header::AUTHORIZATION;
use http::header::CONTENT_TYPE;
use serde_json::Value;
use serde_json::json;

use super::Surprise;
use super::text;

pub(super) const MODERN: &str = "2026-07-28";
pub(super) const LEGACY: &str = "2025-11-25";

/// As much of an unexpected result as a terminal should see.
const SHOWN_CHARS_MAX: usize = 300;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
}

/// One answer, as far as it goes.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    /// The JSON-RPC answer; null where there is none.
    pub(super) message: Value,
    /// Notifications that came before it.
    pub(super) notifications: Vec<Value>,
}

impl Client {
    pub(super) fn new(url: &str, token: Option<&str>) -> Result<Client, Surprise> {
        Client::with(reqwest::Client::builder(), url, token)
    }

    /// A client that trusts this authority and no other.
    pub(super) fn trusting(authority: &str, url: &str, token: &str) -> Result<Client, Surprise> {
        let certificate =
            reqwest::Certificate::from_pem(authority.as_bytes()).map_err(|error| came_not("a certificate", &error))?;
        Client::with(reqwest::Client::builder().tls_certs_only([certificate]), url, Some(token))
    }

    fn with(builder: reqwest::ClientBuilder, url: &str, token: Option<&str>) -> Result<Client, Surprise> {
        let http =
            builder.no_proxy().timeout(REQUEST_TIMEOUT).build().map_err(|error| came_not("an HTTP client", &error))?;
        Ok(Client { http, url: url.to_owned(), token: token.map(str::to_owned) })
    }

    /// A plain GET of a JSON or text document.
    pub(super) async fn get(&self, url: &str) -> Result<(u16, String), Surprise> {
        let what = format!("an answer from {url}");
        let response = self.http.get(url).send().await.map_err(|error| came_not(&what, &error))?;
        let status = response.status().as_u16();
        Ok((status, response.text().await.map_err(|error| came_not(&what, &error))?))
    }

    /// A stateless request of the revision 2026-07-28.
    pub(super) async fn modern(&self, method: &str, params: Value) -> Result<Reply, Surprise> {
        let mut headers = vec![("mcp-protocol-version", MODERN), ("mcp-method", method)];
        let name = ["/name", "/uri"]
            .map(|pointer| text(&params, pointer).to_owned())
            .into_iter()
            .find(|name| !name.is_empty());
        if let Some(name) = &name {
            headers.push(("mcp-name", name));
        }
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": modern_params(params) });
        self.post(&headers, &body).await
    }

    pub(super) async fn call(&self, tool: &str, arguments: Value) -> Result<Reply, Surprise> {
        self.modern("tools/call", json!({ "name": tool, "arguments": arguments })).await
    }

    /// A message of the revision 2025-11-25, in its session once there is one. Without an id: a notification.
    pub(super) async fn legacy(
        &self,
        session: Option<&str>,
        id: Option<u32>,
        method: &str,
        params: Value,
    ) -> Result<Reply, Surprise> {
        let mut headers = Vec::new();
        if let Some(session) = session {
            headers.extend([("mcp-session-id", session), ("mcp-protocol-version", LEGACY)]);
        }
        let mut body = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        if let (Some(id), Some(members)) = (id, body.as_object_mut()) {
            members.insert("id".to_owned(), json!(id));
        }
        self.post(&headers, &body).await
    }

    /// Ends a session; gives the HTTP status.
    pub(super) async fn end(&self, session: &str) -> Result<u16, Surprise> {
        let mut request =
            self.http.delete(&self.url).header("mcp-session-id", session).header("mcp-protocol-version", LEGACY);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let response = request.send().await.map_err(|error| came_not("an answer to DELETE", &error))?;
        Ok(response.status().as_u16())
    }

    async fn post(&self, headers: &[(&str, &str)], body: &Value) -> Result<Reply, Surprise> {
        let mut request = self
            .http
            .post(&self.url)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json, text/event-stream")
            .body(body.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let what = format!("an answer from {}", self.url);
        let response = request.send().await.map_err(|error| came_not(&what, &error))?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let streamed = headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let text = response.text().await.map_err(|error| came_not(&what, &error))?;
        let mut messages: Vec<Value> =
            if streamed { events(&text) } else { serde_json::from_str(&text).into_iter().collect() };
        let answer = messages.iter().position(|message| message.get("method").is_none());
        let message = answer.map_or(Value::Null, |at| messages.remove(at));
        Ok(Reply { status, headers, message, notifications: messages })
    }
}

impl Reply {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The first text of a tool's result that is no error; anything else is a surprise.
    pub(super) fn said(&self) -> Result<&str, Surprise> {
        let failed = self.message.pointer("/result/isError").and_then(Value::as_bool).unwrap_or(false);
        let said = self.message.pointer("/result/content/0/text").and_then(Value::as_str);
        said.filter(|_| self.status == 200 && !failed).ok_or_else(|| Surprise::new("a result", self))
    }

    /// The names in a list of tools.
    pub(super) fn tools(&self) -> Result<Vec<&str>, Surprise> {
        let tools = self.message.pointer("/result/tools").and_then(Value::as_array);
        let tools = tools.filter(|_| self.status == 200).ok_or_else(|| Surprise::new("a list of tools", self))?;
        Ok(tools.iter().map(|tool| text(tool, "/name")).collect())
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let error = self.message.get("error");
        match error {
            Some(error) => {
                let code = error.get("code").cloned().unwrap_or_default();
                write!(f, "HTTP {}, error {code}: {}", self.status, text(error, "/message"))
            }
            None if self.message.is_null() => write!(f, "HTTP {} without a message", self.status),
            None => {
                let result = self.message.get("result").unwrap_or(&self.message).to_string();
                write!(f, "HTTP {}: {}", self.status, result.chars().take(SHOWN_CHARS_MAX).collect::<String>())
            }
        }
    }
}

/// The parameters of a request of the revision 2026-07-28: it carries what a session would have known.
pub fn modern_params(mut params: Value) -> Value {
    if let Some(members) = params.as_object_mut() {
        let meta = members.entry("_meta").or_insert_with(|| json!({}));
        if let Some(meta) = meta.as_object_mut() {
            meta.insert("io.modelcontextprotocol/protocolVersion".to_owned(), json!(MODERN));
            meta.insert("io.modelcontextprotocol/clientCapabilities".to_owned(), json!({}));
        }
    }
    params
}

/// The messages of an event stream that has ended. Comments, ids and empty priming events carry none.
fn events(stream: &str) -> Vec<Value> {
    let stream = stream.replace("\r\n", "\n");
    let data = |event: &str| -> String {
        let lines = event.lines().filter_map(|line| line.strip_prefix("data:"));
        lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n")
    };
    stream.split("\n\n").filter_map(|event| serde_json::from_str(&data(event)).ok()).collect()
}

fn came_not(what: &str, error: &dyn std::error::Error) -> Surprise {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    Surprise { expected: what.to_owned(), came: words }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_stream_gives_its_messages_and_nothing_else() {
        let stream = ": hello\n\nid: 0\nretry: 3000\ndata:\n\nevent: message\r\ndata: {\"method\":\"n\"}\r\n\r\ndata: {\"id\":1,\ndata: \"result\":{}}\n\n";
        assert_eq!(events(stream), [json!({ "method": "n" }), json!({ "id": 1, "result": {} })]);
    }

    #[test]
    fn modern_parameters_keep_the_meta_members_that_were_there() {
        let params = modern_params(json!({ "name": "t", "_meta": { "progressToken": 7 } }));
        assert_eq!(params["_meta"]["progressToken"], 7);
        assert_eq!(params["_meta"]["io.modelcontextprotocol/protocolVersion"], MODERN);
    }
}
