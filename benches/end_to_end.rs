//! What does the gateway cost? In one run: the upstream directly, nginx in front of it as a plain proxy, and Wardgate
//! with JWT, policy, limits, metrics and audit all on; then lists, idle memory and 10,000 open streams.
//!
//! `cargo bench --bench end_to_end --features jemalloc` (needs nginx and wrk). The proxy under test runs alone on core
//! 0; the load and the upstream share core 1. Compare ratios of one run, not numbers of two.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a measuring program may stop where it stands"
)]

#[expect(dead_code, reason = "each measuring program uses its part of what they share")]
#[path = "shared/load.rs"]
mod load;

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use wardgate::demo::issuer::Issuer;

use load::Running;
use load::answer;
use load::compare;
use load::free_port;
use load::rss_mib;
use load::spawn;
use load::verdict;
use load::wait_for;
use load::wardgate;

/// Open streams to hold; fewer where `ulimit -n` is too low (each takes two descriptors in each process).
const STREAMS_WANTED: usize = 10_000;
const TOOLS: usize = 1_000;
const AUDIENCE: &str = "http://bench.test";

/// nginx as the upstream (static answers by `Mcp-Method` and `Mcp-Name`) and nginx as the plain proxy before it.
fn nginx(folder: &Path, upstream: u16, proxy: u16) -> (Running, Running) {
    let tool = |number: usize| {
        let words = "Looks one thing up and says what it found. ".repeat(8);
        json!({ "name": format!("tool_{number}"), "description": words, "inputSchema": { "type": "object", "properties": { "query": { "type": "string", "description": "What to look for" } } }, "annotations": { "readOnlyHint": !number.is_multiple_of(10) } })
    };
    let tools: Vec<_> = (0..TOOLS).map(tool).collect();
    let list = json!({ "resultType": "complete", "tools": tools, "ttlMs": 0, "cacheScope": "public" }).to_string();
    let call =
        json!({ "resultType": "complete", "content": [{ "type": "text", "text": "z".repeat(500) }] }).to_string();
    for (name, body) in [
        ("list", answer("1", &list)),
        ("call", answer("1", &call)),
        (
            "big",
            answer(
                "1",
                &json!({ "resultType": "complete", "content": [{ "type": "text", "text": "z".repeat(list.len()) }] })
                    .to_string(),
            ),
        ),
    ] {
        fs::write(folder.join(name), body).unwrap();
    }
    let common = |pid: &str| {
        format!(
            "daemon off; worker_processes 1; pid {0}/{pid}.pid; error_log /dev/null;\nevents {{ worker_connections 20000; }}\nhttp {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {0}/{pid}-b; proxy_temp_path {0}/{pid}-p; fastcgi_temp_path {0}/{pid}-f; uwsgi_temp_path {0}/{pid}-u; scgi_temp_path {0}/{pid}-s;\n",
            folder.display()
        )
    };
    let file = folder.display();
    let call_text = answer("1", &call);
    let origin = format!(
        "{}map \"$http_mcp_method $http_mcp_name\" $kind {{ default call; \"~^tools/list\" list; \"tools/call tool_3\" big; }}\nserver {{ listen 127.0.0.1:{upstream}; default_type application/json; location = /mcp {{ if ($kind = list) {{ rewrite ^ /list last; }} if ($kind = big) {{ rewrite ^ /big last; }} return 200 '{call_text}'; }} location = /list {{ internal; error_page 405 =200 /list; root {file}; }} location = /big {{ internal; error_page 405 =200 /big; root {file}; }} }} }}\n",
        common("origin"),
    );
    let plain = format!(
        "{}upstream origin {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000000; }}\nserver {{ listen 127.0.0.1:{proxy}; location / {{ proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ''; }} }} }}\n",
        common("proxy"),
    );
    fs::write(folder.join("origin.conf"), origin).unwrap();
    fs::write(folder.join("proxy.conf"), plain).unwrap();
    let origin = spawn("1", "nginx", &["-c", folder.join("origin.conf").to_str().unwrap()]);
    let plain = spawn("0", "nginx", &["-c", folder.join("proxy.conf").to_str().unwrap()]);
    wait_for(upstream);
    wait_for(proxy);
    (origin, plain)
}

fn configuration(folder: &Path, issuer: &Issuer, port: u16, admin: u16, upstream: u16) -> String {
    fs::write(folder.join("jwks.json"), issuer.jwks().to_string()).unwrap();
    json!({
        "listeners": [{ "address": format!("127.0.0.1:{port}") }],
        "public_url": AUDIENCE,
        "identity": [{ "oidc": { "issuer": "https://idp.bench", "audience": AUDIENCE, "jwks_file": folder.join("jwks.json"), "algorithms": ["ES256"] } }],
        "mode": "read-only",
        "grants": [{ "scope": "mcp.read", "allow": ["read"] }],
        "limits": { "address": "1000000000 per 1s", "principal": { "calls": "1000000000 per 1s", "concurrent": 20000 } },
        "backends": { "origin": { "http": { "url": format!("http://127.0.0.1:{upstream}/mcp"), "connections_max": 20000 }, "era": "modern", "trust_annotations": true } },
        "routes": [{ "path": "/mcp", "backends": ["origin"] }],
        "admin": { "address": format!("127.0.0.1:{admin}") },
        "audit": { "file": folder.join(format!("audit-{port}.jsonl")) },
        "admission": { "connections_max": 30000 },
    })
    .to_string()
}

/// The wrk script of one kind of request.
fn script(folder: &Path, name: &str, token: &str, method: &str, tool: Option<&str>) -> String {
    let mut params = json!({ "_meta": { "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {} } });
    if let Some(tool) = tool {
        params["name"] = json!(tool);
        params["arguments"] = json!({ "query": "what is new" });
    }
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let name_header = tool.map(|tool| format!("wrk.headers[\"Mcp-Name\"] = \"{tool}\"\n")).unwrap_or_default();
    let text = format!(
        "wrk.method = \"POST\"\nwrk.body = [==[{body}]==]\nwrk.headers[\"Content-Type\"] = \"application/json\"\nwrk.headers[\"Accept\"] = \"application/json, text/event-stream\"\nwrk.headers[\"Authorization\"] = \"Bearer {token}\"\nwrk.headers[\"MCP-Protocol-Version\"] = \"2026-07-28\"\nwrk.headers[\"Mcp-Method\"] = \"{method}\"\n{name_header}"
    ) + "done = function(s, l, r) io.write(string.format('RESULT %d %d %d %d %d\\n', s.requests, s.duration, l:percentile(50), l:percentile(99), s.errors.status + s.errors.read + s.errors.timeout + s.errors.connect)) end\n";
    let path = folder.join(format!("{name}.lua"));
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// An upstream that opens an event stream and then says nothing.
async fn silent_upstream(listener: TcpListener) {
    while let Ok((mut socket, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut chunk = [0; 2048];
            let read = socket.read(&mut chunk).await.unwrap_or(0);
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            let listing = String::from_utf8_lossy(&chunk[..read]).to_lowercase().contains("mcp-method: tools/list");
            let body = answer("1", r#"{"resultType":"complete","tools":[],"ttlMs":0,"cacheScope":"public"}"#);
            let reply = if listing {
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
            } else {
                head.to_owned()
            };
            let _ = socket.write_all(reply.as_bytes()).await;
            let _ = socket.read(&mut chunk).await;
        });
    }
}

/// As many as this process and the gateway may hold.
fn streams_possible() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let open = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse::<usize>().ok());
    open.map_or(STREAMS_WANTED, |open| (open.saturating_sub(400) / 2).min(STREAMS_WANTED))
}

async fn streams(count: usize, port: u16, token: &str, process: u32) -> f64 {
    let body = json!({ "jsonrpc": "2.0", "id": "s", "method": "subscriptions/listen", "params": { "notifications": { "toolsListChanged": true }, "_meta": { "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {} } } }).to_string();
    let request = format!(
        "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nAuthorization: Bearer {token}\r\nMCP-Protocol-Version: 2026-07-28\r\nMcp-Method: subscriptions/listen\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut open = Vec::with_capacity(count);
    for _ in 0..count {
        let mut socket =
            TcpStream::connect(("127.0.0.1", port)).await.expect("a connection (raise ulimit -n to 65536)");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut chunk = [0; 1024];
        let read = socket.read(&mut chunk).await.unwrap();
        assert!(chunk[..read].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&chunk[..read]));
        open.push(socket);
    }
    let memory = rss_mib(process);
    assert_eq!(open.len(), count);
    memory
}

fn main() {
    // `cargo test --benches` and `--list` call with other arguments: only `cargo bench` measures.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    wardgate::server::install_crypto();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = std::env::temp_dir().join(format!("wardgate-bench-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let issuer = runtime.block_on(Issuer::start(0)).unwrap();
    let mut claims = issuer.claims("bench", "mcp.read", AUDIENCE);
    claims["iss"] = json!("https://idp.bench");
    let token = issuer.token_with(claims);
    let ports: Vec<u16> = (0..6).map(|_| free_port()).collect();
    let (upstream, proxy, gateway, silent, quiet) = (ports[0], ports[1], ports[2], ports[3], ports[4]);
    let (_origin, plain) = nginx(&folder, upstream, proxy);
    let running = wardgate(&folder, "gateway", &configuration(&folder, &issuer, gateway, ports[5], upstream), gateway);
    std::thread::sleep(Duration::from_secs(1));
    let process = running.0.id();
    let idle = rss_mib(process);
    let call = script(&folder, "call", &token, "tools/call", Some("tool_1"));
    let targets =
        [("direct", upstream, None), ("nginx", proxy, Some(plain.0.id())), ("wardgate", gateway, Some(process))];
    let many = compare("tools/call, 250 B to 600 B, 64 connections", &call, 64, &targets);
    let one = compare("tools/call, one connection", &call, 1, &targets);
    let list = script(&folder, "list", &token, "tools/list", None);
    let big = script(&folder, "big", &token, "tools/call", Some("tool_3"));
    let only = [("wardgate", gateway, Some(process))];
    let filtered = compare("tools/list of 1,000 tools, filtered, 8 connections", &list, 8, &only);
    let relayed = compare("the same size relayed unfiltered, 8 connections", &big, 8, &only);

    let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", silent))).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = listener.into_std().unwrap();
        runtime.block_on(async { silent_upstream(TcpListener::from_std(listener).unwrap()).await });
    });
    let holder = wardgate(&folder, "streams", &configuration(&folder, &issuer, quiet, free_port(), silent), quiet);
    let count = streams_possible();
    let before = rss_mib(holder.0.id());
    let held = runtime.block_on(streams(count, quiet, &token, holder.0.id()));
    // Where fewer could be held, the rest is taken to cost the same each.
    let for_all = before + (held - before) * (STREAMS_WANTED as f64 / count as f64);
    println!("\n{count} open event streams: {held:.1} MiB RSS ({before:.1} before)");

    println!();
    verdict("requests/s of nginx's", many[2].per_second / many[1].per_second, 0.5, true);
    verdict("us added to p50 of one connection over direct", one[2].p50_us - one[0].p50_us, 100.0, false);
    verdict("MiB RSS idle", idle, 40.0, false);
    verdict("MiB RSS with 10,000 open event streams", for_all, 400.0, false);
    verdict("CPU of a filtered list over a relayed one", filtered[0].cpu_us / relayed[0].cpu_us, 2.0, false);
    drop((running, holder, plain));
    let _ = fs::remove_dir_all(&folder);
}
