//! Methods, paths, hosts, origins, media types, and what the edge adds to replies; the admin listener.

use super::*;

fn get(path: &str, host: &str, lines: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n{lines}\r\n")
}

#[tokio::test]
async fn methods_that_mcp_does_not_know_are_refused() {
    let mut rig = Rig::start().await;
    for method in ["PUT", "PATCH", "HEAD", "TRACE", "PROPFIND", "post", "OPTIONS"] {
        let mut raw = rig.connect().await;
        raw.send(format!("{method} /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n")).await;
        assert_eq!(raw.head().await.status, 405, "{method}");
    }
    let answer = rig.ask("CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n\r\n").await;
    assert_eq!(answer.status, 405);
    rig.nothing_was_served();
}

#[tokio::test]
async fn an_upgrade_is_refused_and_an_offer_of_h2c_is_ignored() {
    let rig = Rig::start().await;
    let websocket =
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13\r\n";
    let answer = rig.ask(get("/mcp", "localhost", websocket)).await;
    assert_eq!((answer.status, answer.header("connection")), (400, Some("close")));
    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n";
    assert_eq!(rig.ask(get("/mcp", "localhost", h2c)).await.status, 200);
}

#[tokio::test]
async fn paths_that_need_decoding_are_refused() {
    let mut rig = Rig::start().await;
    for path in [
        "/%6dcp", "/mcp%2f", "//mcp", "/a//b", "/./mcp", "/../mcp", "/mcp/..", "/mcp;x=1", "/mcp\\x", "/mcp#f",
        "/mcp//", "//", "*",
    ] {
        assert_eq!(rig.ask(get(path, "localhost", "")).await.status, 400, "{path}");
    }
    rig.nothing_was_served();
    for path in ["/", "/mcp", "/a/b.c/mcp", "/mcp?token=%00//.."] {
        assert_eq!(rig.ask(get(path, "localhost", "")).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_loopback_listener_answers_to_loopback_names_only() {
    let mut rig = Rig::start().await;
    for host in [
        "evil.example",
        "localhost.evil.example",
        "0.0.0.0",
        "169.254.169.254",
        "[::2]",
        "localhost:x",
        "",
        "a b",
        "localhost:99999",
    ] {
        assert_ne!(rig.ask(get("/mcp", host, "")).await.status, 200, "{host}");
    }
    rig.nothing_was_served();
    for host in ["localhost", "LOCALHOST:8080", "localhost.", "127.0.0.1:1", "[::1]", "[::1]:8080", "127.1.2.3"] {
        assert_eq!(rig.ask(get("/mcp", host, "")).await.status, 200, "{host}");
    }
    let answer = rig.ask(get("/mcp", "LocalHost.:8080", "")).await;
    assert_eq!(answer.json()["host"], "localhost:8080");
}

#[tokio::test]
async fn configured_hosts_are_the_only_ones() {
    let rig = Rig::with(|config| config.admission.hosts = vec!["MCP.example.com".into(), "::2".into()]).await;
    for host in ["mcp.example.com", "mcp.example.com:8443", "mcp.example.com.", "localhost", "[::2]:1"] {
        assert_eq!(rig.ask(get("/mcp", host, "")).await.status, 200, "{host}");
    }
    assert_eq!(rig.ask(get("/mcp", "other.example.com", "")).await.status, 421);
}

#[tokio::test]
async fn origins_are_ours_or_listed() {
    let rig = Rig::with(|config| config.admission.origins = vec!["https://inspector.example".into()]).await;
    for origin in [
        "https://evil.example",
        "null",
        "http://localhost:6274",
        "https://inspector.example.evil.example",
        "http://127.0.0.1",
    ] {
        let answer = rig.ask(get("/mcp", "localhost", &format!("Origin: {origin}\r\n"))).await;
        assert_eq!(answer.status, 403, "{origin}");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    let answer = rig.ask(get("/mcp", "localhost:81", "Origin: http://localhost:81\r\n")).await;
    assert_eq!(answer.status, 200, "our own");
    let answer = rig.ask(get("/mcp", "localhost", "Origin: https://Inspector.example\r\n")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://Inspector.example"));
    assert_eq!(answer.header("vary"), Some("Origin"));
    assert!(answer.header("access-control-expose-headers").unwrap().contains("Mcp-Session-Id"));
    let refused = rig.ask(get("/mcp", "localhost", "Origin: https://inspector.example\r\nExpect: x\r\n")).await;
    assert_eq!(refused.status, 400);
    let twice = "Origin: https://inspector.example\r\nOrigin: https://inspector.example\r\n";
    assert_eq!(rig.ask(get("/mcp", "localhost", twice)).await.status, 400);
}

#[tokio::test]
async fn a_preflight_is_answered_for_listed_origins_only() {
    let mut rig = Rig::with(|config| config.admission.origins = vec!["https://inspector.example".into()]).await;
    let preflight = |origin: &str, path: &str| {
        format!(
            "OPTIONS {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\r\n"
        )
    };
    let mut raw = rig.connect().await;
    raw.send(preflight("https://inspector.example", "/mcp")).await;
    let answer = raw.answer().await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://inspector.example"));
    assert_eq!(answer.header("access-control-allow-methods"), Some("POST, GET, DELETE"));
    assert!(answer.header("access-control-allow-headers").unwrap().contains("mcp-protocol-version"));
    raw.send(post("/mcp", "{}")).await;
    assert_eq!(raw.answer().await.status, 200, "the connection goes on");
    assert_eq!(rig.ask(preflight("https://evil.example", "/mcp")).await.status, 403);
    let open = rig.ask(preflight("https://evil.example", "/.well-known/oauth-protected-resource/mcp")).await;
    assert_eq!((open.status, open.header("access-control-allow-origin")), (204, Some("*")));
    assert_eq!(rig.event().await, Event::Noted("OPTIONS".into(), "/mcp".into()));
    assert_eq!(rig.event().await, Event::Served("/mcp".into()));
    rig.nothing_was_served();
}

#[tokio::test]
async fn well_known_documents_are_public() {
    let mut rig = Rig::start().await;
    let answer = rig
        .ask(get("/.well-known/oauth-protected-resource/mcp", "localhost:9", "Origin: https://any.example\r\n"))
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["resource"], "https://localhost:9/mcp");
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(answer.header("cache-control"), Some("public, max-age=300"));
    let missing = rig.ask(get("/.well-known/oauth-protected-resource", "localhost", "")).await;
    assert_eq!(missing.status, 404);
    assert_eq!(rig.ask(post("/.well-known/oauth-protected-resource/mcp", "{}")).await.status, 405);
    rig.nothing_was_served();
    let other = rig.ask(get("/.well-known/oauth-protected-resources", "localhost", "")).await;
    assert_eq!(other.json()["path"], "/.well-known/oauth-protected-resources", "an ordinary path");
}

#[tokio::test]
async fn media_types_are_exact() {
    let mut rig = Rig::start().await;
    let with = |media: &str, accept: &str, more: &str| {
        format!("POST /mcp HTTP/1.1\r\nHost: localhost\r\n{media}{accept}{more}Content-Length: 2\r\n\r\n{{}}")
    };
    let (json, both) = ("Content-Type: application/json\r\n", "Accept: application/json, text/event-stream\r\n");
    for media in [
        "",
        "Content-Type: text/plain\r\n",
        "Content-Type: application/json-seq\r\n",
        "Content-Type: application/json; charset=utf-16\r\n",
        "Content-Type: application/json; x=y\r\n",
        "Content-Type: multipart/form-data; boundary=application/json\r\n",
    ] {
        assert_eq!(rig.ask(with(media, both, "")).await.status, 415, "{media}");
    }
    assert_eq!(rig.ask(with(json, both, "Content-Encoding: gzip\r\n")).await.status, 415);
    assert_eq!(rig.ask(with(&format!("{json}{json}"), both, "")).await.status, 400);
    for accept in [
        "",
        "Accept: application/json\r\n",
        "Accept: text/event-stream\r\n",
        "Accept: text/html\r\n",
        "Accept: */*, text/event-stream;q=0\r\n",
        "Accept: application/json, text/event-stream;q=0.0\r\n",
    ] {
        assert_eq!(rig.ask(with(json, accept, "")).await.status, 406, "{accept}");
    }
    rig.nothing_was_served();
    for accept in [
        both,
        "Accept: */*\r\n",
        "Accept: application/*, text/*;q=0.5\r\n",
        "Accept: application/json\r\nAccept: text/event-stream\r\n",
        "ACCEPT: Text/Event-Stream , Application/JSON;q=1\r\n",
    ] {
        assert_eq!(rig.ask(with(json, accept, "")).await.status, 200, "{accept}");
    }
    assert_eq!(rig.ask(with("Content-Type: Application/Json; Charset=\"UTF-8\"\r\n", both, "")).await.status, 200);
    assert_eq!(rig.ask("GET /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n").await.status, 406);
    assert_eq!(rig.ask("DELETE /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n").await.status, 200);
}

#[tokio::test]
async fn replies_carry_what_the_edge_adds_and_nothing_that_only_it_may_say() {
    let rig = Rig::start().await;
    let answer = rig.ask(post("/rude", "{}")).await;
    assert_eq!(answer.status, 200);
    assert!(!answer.headers.values().any(|value| value == "evil"), "{answer:?}");
    assert_eq!(answer.header("mcp-session-id"), Some("s"));
    assert_eq!(answer.header("cache-control"), Some("private, no-store"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    let mut raw = rig.connect().await;
    raw.send(post("/accepted", "{}")).await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.header("content-length")), (202, Some("0")));
    raw.send(post("/mcp", "{}")).await;
    assert_eq!(raw.answer().await.status, 200);
}

#[tokio::test]
async fn an_address_over_its_rate_is_refused_before_its_body_is_read() {
    let mut rig = Rig::start().await;
    rig.spine.limited.store(true, SeqCst);
    assert_eq!(rig.ask(crafted("Content-Length: 1000\r\n", "")).await.status, 429);
    let expected = Rejection::RateLimited { limit: "address", rate: RATE, retry_after: Duration::from_secs(1) };
    assert_eq!(rig.event().await, Event::Refused { rejection: expected, method: "POST".into(), path: "/mcp".into() });
}

#[tokio::test]
async fn the_admin_listener_shows_four_pages_and_the_mcp_listener_none_of_them() {
    let rig = Rig::start().await;
    let address: SocketAddr = rig.server.admin_address().unwrap().parse().unwrap();
    let mut raw = Raw::new(TcpStream::connect(address).await.unwrap());
    let pages = [
        ("/livez", "ok\n"),
        ("/readyz", "ok\n"),
        ("/metrics", "wardgate_up 1\n"),
        ("/status", "{\n  \"fine\": true\n}\n"),
    ];
    for (page, text) in pages {
        raw.send(get(page, "localhost", "")).await;
        let answer = raw.answer().await;
        assert_eq!((answer.status, String::from_utf8_lossy(&answer.body).as_ref()), (200, text));
    }
    rig.desk.0.store(false, SeqCst);
    raw.send(get("/readyz", "localhost", "")).await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.body.as_slice()), (503, &b"not yet\n"[..]));
    raw.send("HEAD /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(raw.head().await.status, 200);
    raw.send(get("/mcp", "localhost", "")).await;
    assert_eq!(raw.answer().await.status, 404);
    raw.send(get("/metrics", "evil.example", "")).await;
    assert_eq!(raw.answer().await.status, 421);
    assert_eq!(rig.ask(get("/metrics", "localhost", "")).await.json()["path"], "/metrics", "the spine's to refuse");
}
