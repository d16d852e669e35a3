//! What does a change of era cost? CPU per call of a translated route beside a transparent one, in one run.
//!
//! `cargo bench --bench translate --features jemalloc` (needs wrk). The gateway runs alone on core 0; the load and the
//! upstream, which speaks whichever era it is asked in, share core 1. Compare ratios of one run, not numbers of two.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    reason = "a measuring program may stop where it stands"
)]

#[expect(dead_code, reason = "each measuring program uses its part of what they share")]
#[path = "shared/load.rs"]
mod load;

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use load::answer;
use load::cpu_ratio;
use load::free_port;
use load::rounds;
use load::verdict;
use load::wardgate;

const CONNECTIONS: u32 = 32;
/// Of all four; noise comes and goes within seconds.
const ROUNDS: usize = 9;

/// A server of both eras: sessions where it is asked for them, 600 bytes for a call.
async fn upstream(listener: TcpListener) {
    while let Ok((mut socket, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut bytes = Vec::new();
            loop {
                let Some((head, body)) = request(&mut socket, &mut bytes).await else { return };
                let message: Value = serde_json::from_slice(&body).unwrap_or_default();
                let reply = reply(&head, &message);
                if socket.write_all(reply.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn request(socket: &mut tokio::net::TcpStream, bytes: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
            let length: usize = length.unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                let body = bytes[end + 4..end + 4 + length].to_vec();
                bytes.drain(..end + 4 + length);
                return Some((head, body));
            }
        }
        if socket.read_buf(bytes).await.ok()? == 0 {
            return None;
        }
    }
}

fn reply(head: &str, message: &Value) -> String {
    let modern = head.contains("mcp-protocol-version: 2026-07-28");
    if head.starts_with("get ") || head.starts_with("delete ") {
        return "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n".to_owned();
    }
    let Some(id) = message.get("id") else {
        return "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n".to_owned();
    };
    let tools =
        json!([{ "name": "look", "inputSchema": { "type": "object" }, "annotations": { "readOnlyHint": true } }]);
    let (mut result, session) = match message["method"].as_str().unwrap_or_default() {
        "initialize" => (
            json!({ "protocolVersion": "2025-11-25", "capabilities": { "tools": {} }, "serverInfo": { "name": "bench", "version": "1" } }),
            "Mcp-Session-Id: bench-session\r\n",
        ),
        "server/discover" => (
            json!({ "supportedVersions": ["2026-07-28"], "capabilities": { "tools": {} }, "ttlMs": 60000, "cacheScope": "public" }),
            "",
        ),
        "tools/list" if modern => (json!({ "tools": tools, "ttlMs": 60000, "cacheScope": "public" }), ""),
        "tools/list" => (json!({ "tools": tools }), ""),
        _ => (json!({ "content": [{ "type": "text", "text": "z".repeat(500) }] }), ""),
    };
    if modern {
        result["resultType"] = json!("complete");
    }
    let body = answer(&id.to_string(), &result.to_string());
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{session}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn configuration(folder: &Path, port: u16, upstream: u16) -> String {
    let backend = |era: &str| json!({ "http": { "url": format!("http://127.0.0.1:{upstream}/mcp"), "connections_max": 1000 }, "era": era, "trust_annotations": true });
    json!({
        "listeners": [{ "address": format!("127.0.0.1:{port}") }],
        "identity": [{ "anonymous": { "scopes": ["mcp.read"] } }],
        "mode": "read-only",
        "grants": [{ "scope": "mcp.read", "allow": ["read"] }],
        "backends": { "modern": backend("modern"), "legacy": backend("legacy") },
        "routes": [{ "path": "/modern", "backends": ["modern"] }, { "path": "/legacy", "backends": ["legacy"] }],
        "audit": { "file": folder.join("audit.jsonl") },
    })
    .to_string()
}

/// Asks once, for the session id that a legacy client is given.
fn session(port: u16, path: &str) -> String {
    let body = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": { "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "bench", "version": "1" } } }).to_string();
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(
        socket,
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let lower = text.to_lowercase();
    let at = lower.find("mcp-session-id: ").unwrap_or_else(|| panic!("no session: {text}")) + "mcp-session-id: ".len();
    text[at..].lines().next().unwrap_or_default().to_owned()
}

fn script(folder: &Path, name: &str, path: &str, legacy_session: Option<&str>) -> String {
    let mut params = json!({ "name": "look", "arguments": { "query": "what is new" } });
    let headers = match legacy_session {
        Some(session) => format!(
            "wrk.headers[\"MCP-Protocol-Version\"] = \"2025-11-25\"\nwrk.headers[\"Mcp-Session-Id\"] = \"{session}\"\n"
        ),
        None => {
            params["_meta"] = json!({ "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {} });
            "wrk.headers[\"MCP-Protocol-Version\"] = \"2026-07-28\"\nwrk.headers[\"Mcp-Method\"] = \"tools/call\"\nwrk.headers[\"Mcp-Name\"] = \"look\"\n".to_owned()
        }
    };
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params }).to_string();
    let text = format!(
        "wrk.method = \"POST\"\nwrk.path = \"{path}\"\nwrk.body = [==[{body}]==]\nwrk.headers[\"Content-Type\"] = \"application/json\"\nwrk.headers[\"Accept\"] = \"application/json, text/event-stream\"\n{headers}"
    ) + "done = function(s, l, r) io.write(string.format('RESULT %d %d %d %d %d\\n', s.requests, s.duration, l:percentile(50), l:percentile(99), s.errors.status + s.errors.read + s.errors.timeout + s.errors.connect)) end\n";
    let file = folder.join(format!("{name}.lua"));
    fs::write(&file, text).unwrap();
    file.display().to_string()
}

fn main() {
    // `cargo test --benches` and `--list` call with other arguments: only `cargo bench` measures.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let folder = std::env::temp_dir().join(format!("wardgate-translate-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (port, server) = (free_port(), free_port());
    let listener = std::net::TcpListener::bind(("127.0.0.1", server)).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { upstream(TcpListener::from_std(listener).unwrap()).await });
    });
    let running = wardgate(&folder, "translate", &configuration(&folder, port, server), port);
    std::thread::sleep(Duration::from_secs(2));
    let process = Some(running.0.id());
    let (to_modern, to_legacy) = (session(port, "/modern"), session(port, "/legacy"));
    let modern = script(&folder, "mm", "/modern", None);
    let up = script(&folder, "ml", "/legacy", None);
    let legacy = script(&folder, "ll", "/legacy", Some(&to_legacy));
    let down = script(&folder, "lm", "/modern", Some(&to_modern));
    let targets = [
        ("modern client, modern upstream", modern.as_str(), port, process),
        ("modern client, legacy upstream", up.as_str(), port, process),
        ("legacy client, legacy upstream", legacy.as_str(), port, process),
        ("legacy client, modern upstream", down.as_str(), port, process),
    ];
    let all = rounds("one call, through one gateway", ROUNDS, CONNECTIONS, &targets);
    let [modern, up, legacy, down] = &all[..] else { panic!("four targets") };
    let (up, down) = (cpu_ratio(up, modern), cpu_ratio(down, legacy));
    println!();
    verdict("CPU of a call translated to a legacy upstream over a transparent one", up, 1.3, false);
    verdict("CPU of a call translated to a modern upstream over a transparent one", down, 1.3, false);
    drop(running);
    let _ = fs::remove_dir_all(&folder);
}
