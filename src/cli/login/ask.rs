//! What does a gateway say to the kept login? `wardgate whoami URL`: the token as anybody can read it, and one harmless list.

use http::HeaderName;
use http::HeaderValue;
use serde_json::Value;
use serde_json::json;
use url::Url;

use super::store::Store;
use super::token::Renewing;
use super::token::claims;
use super::web::Web;

/// What of a token concerns its owner; the rest stays unsaid.
const CLAIMS: [&str; 16] = [
    "iss",
    "aud",
    "sub",
    "preferred_username",
    "email",
    "tid",
    "azp",
    "client_id",
    "appid",
    "idtyp",
    "scope",
    "scp",
    "roles",
    "groups",
    "act",
    "exp",
];

/// # Errors
/// Why it cannot be said.
pub(in crate::cli) async fn ask(url: &Url, ca: Option<&std::path::Path>) -> Result<String, String> {
    let store = Store::open()?;
    let login = store.read(url).await?;
    let login = login.ok_or_else(|| format!("there is no login for {url}: wardgate login {url}"))?;
    let issuer = login.issuer.clone();
    let web = Web::new(url, ca).await?;
    let token = Renewing::new(store, login, Web::new(url, ca).await?).token().await?;
    let mut lines = vec![
        format!("login: {url}"),
        format!("logged in at: {issuer}"),
        "the token says (not verified here):".to_owned(),
    ];
    match claims(token.expose()) {
        Some(claims) => lines
            .extend(CLAIMS.iter().filter_map(|name| Some(format!("  {name}: {}", shown(name, claims.get(*name)?))))),
        None => lines.push("  nothing that can be read: it is not a JWT".to_owned()),
    }
    lines.push("the gateway says:".to_owned());
    lines.push(format!("  {}", answer(&web, url, token.expose()).await?));
    Ok(lines.join("\n"))
}

/// A claim on one line of a terminal.
pub(in crate::cli) fn shown(name: &str, value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let text: String = text.chars().filter(|c| !c.is_control()).take(1000).collect();
    match value.as_u64().filter(|_| matches!(name, "exp" | "nbf" | "iat")) {
        Some(at) => {
            let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
            let now = now.map_or(0, |since| since.as_secs());
            let away = if at > now { format!("in {} s", at - now) } else { format!("{} s ago", now - at) };
            format!("{text} ({away})")
        }
        None => text,
    }
}

async fn answer(web: &Web, url: &Url, token: &str) -> Result<String, String> {
    const VERSION: &str = "2026-07-28";
    let body = json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/list",
        "params": { "_meta": {
            "io.modelcontextprotocol/protocolVersion": VERSION,
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": { "name": "wardgate", "version": env!("CARGO_PKG_VERSION") },
        } },
    });
    let headers = [
        (HeaderName::from_static("mcp-protocol-version"), HeaderValue::from_static(VERSION)),
        (HeaderName::from_static("mcp-method"), HeaderValue::from_static("tools/list")),
    ];
    let said = web.post_mcp(url, Some(token), &headers, &body).await.map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&said.body).into_owned();
    let message = serde_json::from_str::<Value>(&text).ok().or_else(|| {
        let last = text.lines().rev().find_map(|line| line.strip_prefix("data:"));
        last.and_then(|data| serde_json::from_str(data).ok())
    });
    let message = message.unwrap_or_default();
    let words = message.pointer("/error/message").and_then(Value::as_str).unwrap_or("no reason is given");
    let tools = message.pointer("/result/tools").and_then(Value::as_array);
    Ok(match (said.status, tools) {
        (200, Some(tools)) => {
            let more = if message.pointer("/result/nextCursor").is_some() { " and more" } else { "" };
            format!("accepted; {} tools{more} are offered", tools.len())
        }
        (401, _) => format!("not accepted: {}", shown("", &words.into())),
        (403, _) => format!("accepted, but nothing is allowed here: {}", shown("", &words.into())),
        (status, _) => format!("HTTP {status}: {}", shown("", &words.into())),
    })
}
