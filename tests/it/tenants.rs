//! Many tenants behind one gateway: who is in which, what crosses, what a reload touches.

use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;
use wardgate::app::App;
use wardgate::config;
use wardgate::demo::issuer::Issuer;
use wardgate::demo::workbench::Workbench;

use crate::harness::AUDIENCE;
use crate::harness::Answer;
use crate::harness::Rig;
use crate::harness::client;
use crate::harness::configuration;
use crate::harness::modern_request;
use crate::live::python;

/// A caller of the shared issuer, whose token says which tenant it is of.
fn token(issuer: &Issuer, subject: &str, tenant: &str) -> String {
    let mut claims = issuer.claims(subject, "mcp.read", AUDIENCE);
    if !tenant.is_empty() {
        claims["tenant"] = json!(tenant);
    }
    issuer.token_with(claims)
}

async fn ask(base: &str, path: &str, token: &str, method: &str, params: Value) -> Answer {
    let request = modern_request(&client(), &format!("{base}{path}"), method, params);
    Answer::of(request.bearer_auth(token).send().await.unwrap()).await
}

async fn legacy(base: &str, path: &str, token: &str, session: Option<&str>, method: &str, params: Value) -> Answer {
    let body = json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params });
    let mut request = client()
        .post(format!("{base}{path}"))
        .bearer_auth(token)
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(body.to_string());
    if let Some(session) = session {
        request = request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-11-25");
    }
    Answer::of(request.send().await.unwrap()).await
}

fn hello() -> Value {
    json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "it", "version": "1" } })
}

/// Two with paths of their own, one that only its callers' tokens lead to.
fn three(file: &mut Value) {
    let upstream = file["backends"]["workbench"].clone();
    file["tenants"] = json!({
        "contoso": { "path": "/t/contoso" },
        "fabrikam": {
            "path": "/t/fabrikam",
            "claim": "fab",
            "grants": [{ "allow": ["read"], "tools": ["own/list_*"] }],
            "backends": { "own": upstream },
            "routes": [{ "path": "/mcp", "backends": ["own"] }],
        },
        "nomad": { "mode": "read-only" },
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_one_tenant_is_nothing_in_another_in_the_words_for_a_stranger() {
    let rig = Rig::with(three).await;
    let of = |tenant: &str| token(&rig.issuer, "ann", tenant);
    let list = |path: &'static str, token: String| {
        let base = rig.base.clone();
        async move { ask(&base, path, &token, "tools/list", json!({})).await }
    };
    // Who is which tenant: path, the token's tenant, and whether it is let in.
    for (path, tenant, good) in [
        ("/mcp", "", true),
        ("/mcp", "somebody", true),
        ("/mcp", "nomad", true),
        ("/mcp", "contoso", false),
        ("/mcp", "fab", false),
        ("/t/contoso/mcp", "contoso", true),
        ("/t/contoso/mcp", "", false),
        ("/t/contoso/mcp", "fab", false),
        ("/t/contoso/mcp", "nomad", false),
        ("/t/contoso/mcp", "somebody", false),
        ("/t/fabrikam/mcp", "fab", true),
        ("/t/fabrikam/mcp", "fabrikam", false),
        ("/t/fabrikam/mcp", "contoso", false),
    ] {
        let answer = list(path, of(tenant)).await;
        assert_eq!(answer.status, if good { 200 } else { 401 }, "{path} {tenant}: {}", answer.text);
    }
    // Byte for byte what a token of an issuer that nobody trusts is told, the challenge included.
    let mut foreign = rig.issuer.claims("ann", "mcp.read", AUDIENCE);
    foreign["iss"] = json!("https://elsewhere.example");
    let unknown = list("/t/contoso/mcp", rig.issuer.token_with(foreign)).await;
    let other = list("/t/contoso/mcp", of("fab")).await;
    assert_eq!((unknown.status, &unknown.text), (other.status, &other.text));
    assert_eq!(unknown.header("www-authenticate"), other.header("www-authenticate"));
    let challenge = other.header("www-authenticate").unwrap();
    assert!(challenge.contains("/.well-known/oauth-protected-resource/t/contoso/mcp"), "{challenge}");
    // The metadata of each is at its own address.
    let url = format!("{}/.well-known/oauth-protected-resource/t/contoso/mcp", rig.base);
    let document: Value = client().get(url).send().await.unwrap().json().await.unwrap();
    assert_eq!(document["resource"], format!("{AUDIENCE}/t/contoso/mcp"));
    // The record and the metrics say whose it was.
    let record = rig.record(|record| record["route"] == "/t/fabrikam/mcp" && record["status"] == 200).await;
    assert_eq!(record["tenant"], "fabrikam");
    let metrics = client().get(format!("{}/metrics", rig.admin)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains(r#"wardgate_tenant_requests_total{outcome="streamed",tenant="nomad"} 1"#), "{metrics}");
    assert!(!metrics.contains("somebody"), "a label from a token");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tenant_sees_its_own_backends_and_tools_and_no_session_crosses() {
    let rig = Rig::with(three).await;
    let (ann, bob) = (token(&rig.issuer, "ann", "contoso"), token(&rig.issuer, "ann", "fab"));
    let contoso = ask(&rig.base, "/t/contoso/mcp", &ann, "tools/list", json!({})).await;
    let fabrikam = ask(&rig.base, "/t/fabrikam/mcp", &bob, "tools/list", json!({})).await;
    assert!(contoso.tools().iter().any(|tool| tool.starts_with("read_")), "{:?}", contoso.tools());
    assert!(fabrikam.tools().iter().all(|tool| tool.starts_with("list_")), "{:?}", fabrikam.tools());
    assert_ne!(fabrikam.tools().len(), 0);
    // The same person in two tenants: a session of one opens nothing in the other, whoever's token comes with it.
    let begun = legacy(&rig.base, "/t/contoso/mcp", &ann, None, "initialize", hello()).await;
    assert_eq!(begun.status, 200, "{}", begun.text);
    let session = begun.header("mcp-session-id").unwrap();
    for (path, token, status) in [
        ("/t/contoso/mcp", &ann, 200),
        ("/t/fabrikam/mcp", &bob, 404),
        ("/t/fabrikam/mcp", &ann, 401),
        ("/t/contoso/mcp", &bob, 401),
    ] {
        let answer = legacy(&rig.base, path, token, Some(session), "tools/list", json!({})).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdk_as_several_tenants_at_once_sees_each_ones_own() {
    let rig = Rig::with(three).await;
    let urls = ["/t/contoso/mcp", "/t/fabrikam/mcp", "/mcp"].map(|path| format!("{}{path}", rig.base));
    let tokens = ["contoso", "fab", "nomad"].map(|tenant| token(&rig.issuer, "ann", tenant));
    let (one, two, three) = tokio::join!(
        python(&urls[0], &tokens[0], "legacy", &[]),
        python(&urls[1], &tokens[1], "legacy", &[]),
        python(&urls[2], &tokens[2], "2026-07-28", &[]),
    );
    let tools = |lines: &[Value]| lines[0]["tools"].as_array().unwrap().len();
    assert_eq!(tools(&one), tools(&three));
    assert!(tools(&two) < tools(&one) && tools(&two) > 0, "{two:?}");
    let crossed = python(&urls[0], &tokens[1], "legacy", &[]).await;
    assert_eq!(crossed[0]["error"]["http"]["status"], 401, "{crossed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_adds_and_removes_a_tenant_while_the_stream_of_another_goes_on() {
    let rig = Rig::with(three).await;
    let (ann, bob) = (token(&rig.issuer, "ann", "contoso"), token(&rig.issuer, "bob", "fab"));
    let begun = legacy(&rig.base, "/t/contoso/mcp", &ann, None, "initialize", hello()).await;
    let session = begun.header("mcp-session-id").unwrap().to_owned();
    let stream = |path: &str, token: &str, session: &str| {
        let request = client().get(format!("{}{path}", rig.base)).bearer_auth(token);
        let request = request.header("accept", "text/event-stream").header("mcp-session-id", session);
        request.header("mcp-protocol-version", "2025-11-25").send()
    };
    let kept = stream("/t/contoso/mcp", &ann, &session).await.unwrap();
    let other = legacy(&rig.base, "/t/fabrikam/mcp", &bob, None, "initialize", hello()).await;
    let gone = stream("/t/fabrikam/mcp", &bob, other.header("mcp-session-id").unwrap()).await.unwrap();
    assert_eq!((kept.status(), gone.status()), (reqwest::StatusCode::OK, reqwest::StatusCode::OK));

    let mut file = configuration(&rig.issuer, &rig.workbench.url, &rig.audit);
    three(&mut file);
    file["tenants"].as_object_mut().unwrap().remove("fabrikam");
    file["tenants"]["adatum"] = json!({ "path": "/t/adatum" });
    rig.reload(file).await;

    // The stream of the removed one ends, and its address is nobody's.
    tokio::time::timeout(Duration::from_secs(5), gone.bytes()).await.expect("the stream has ended").ok();
    assert_eq!(ask(&rig.base, "/t/fabrikam/mcp", &bob, "tools/list", json!({})).await.status, 404);
    let new = token(&rig.issuer, "eve", "adatum");
    assert_eq!(ask(&rig.base, "/t/adatum/mcp", &new, "tools/list", json!({})).await.status, 200);
    // The other one has noticed nothing: its stream is open and its session goes on.
    let mut kept = kept;
    while let Ok(chunk) = tokio::time::timeout(Duration::from_millis(300), kept.chunk()).await {
        assert!(matches!(chunk, Ok(Some(_))), "the stream has ended");
    }
    let answer = legacy(&rig.base, "/t/contoso/mcp", &ann, Some(&session), "tools/list", json!({})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

fn options() -> config::Options {
    config::Options { allow_demo_issuer: true, ..config::Options::default() }
}

/// Writes a gateway whose tenants are in a folder beside it.
fn write(folder: &Path, issuer: &Issuer, upstream: &str) -> std::path::PathBuf {
    let mut file = configuration(issuer, upstream, &folder.join("audit.jsonl"));
    file["tenants"] = json!({ "folder": "tenants" });
    std::fs::create_dir_all(folder.join("tenants")).unwrap();
    let path = folder.join("wardgate.yaml");
    std::fs::write(&path, file.to_string()).unwrap();
    path
}

fn tenant(folder: &Path, name: &str, content: &Value) {
    std::fs::write(folder.join("tenants").join(format!("{name}.yaml")), content.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_tenant_file_keeps_its_old_version_or_is_absent_and_stops_no_other() {
    crate::harness::prepare();
    let folder = tempfile::tempdir().unwrap();
    let (issuer, workbench) = (Issuer::start(0).await.unwrap(), Workbench::start(0).await.unwrap());
    let path = write(folder.path(), &issuer, &workbench.url);
    tenant(folder.path(), "contoso", &json!({ "path": "/t/contoso" }));
    tenant(folder.path(), "broken", &json!({ "path": "/t/broken", "mood": "read-only" }));
    let refused = App::start(config::load(&path, options()).unwrap()).await.err().map(|error| error.to_string());
    assert!(refused.is_some_and(|why| why.contains("broken.yaml")), "a start needs all of them");
    std::fs::remove_file(folder.path().join("tenants/broken.yaml")).unwrap();
    let app = App::start(config::load(&path, options()).unwrap()).await.unwrap();
    let base = format!("http://{}", app.addresses()[0].1);
    let status = async |path: &str, tenant: &str| {
        ask(&base, path, &token(&issuer, "ann", tenant), "tools/list", json!({})).await.status
    };
    assert_eq!(status("/t/contoso/mcp", "contoso").await, 200);
    // One goes bad, one is new, one takes what is another's; the gateway's own part changes, too.
    tenant(folder.path(), "contoso", &json!({ "path": "/t/contoso", "grants": "everything" }));
    tenant(folder.path(), "broken", &json!({ "path": "/t/broken", "mood": "read-only" }));
    tenant(folder.path(), "adatum", &json!({ "path": "/t/adatum" }));
    tenant(folder.path(), "aaa", &json!({ "path": "/t/contoso" }));
    app.take(config::load(&path, options()).unwrap()).await.unwrap();
    assert_eq!(status("/t/contoso/mcp", "contoso").await, 200, "as it was");
    assert_eq!(status("/t/broken/mcp", "broken").await, 404, "new and bad: absent");
    assert_eq!(status("/t/contoso/mcp", "aaa").await, 401, "its path is not taken away");
    assert_eq!(status("/t/adatum/mcp", "adatum").await, 200);
    let house = app.gateway().house();
    let troubles: Vec<_> = house.tenants.troubles().iter().map(|one| (&*one.name, one.kept)).collect();
    assert_eq!(troubles, [("aaa", false), ("broken", false), ("contoso", true)]);
    let problem = &house.tenants.troubles()[2].problems[0];
    assert!(problem.contains("contoso.yaml:1:") && problem.contains("grants"), "{problem}");
    // `check` says all of it.
    let said = wardgate::app::try_rooms(&config::load(&path, options()).unwrap()).unwrap_err();
    for word in ["broken.yaml", "contoso.yaml", "mood: unknown key"] {
        assert!(said.contains(word), "{word}: {said}");
    }

    std::fs::remove_file(folder.path().join("tenants/contoso.yaml")).unwrap();
    app.take(config::load(&path, options()).unwrap()).await.unwrap();
    assert_eq!(status("/t/contoso/mcp", "aaa").await, 200, "free again");
    app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_tenants_load_and_the_first_and_the_last_are_served() {
    crate::harness::prepare();
    let folder = tempfile::tempdir().unwrap();
    let (issuer, workbench) = (Issuer::start(0).await.unwrap(), Workbench::start(0).await.unwrap());
    let path = write(folder.path(), &issuer, &workbench.url);
    for index in 0..1000 {
        let written = json!({
            "path": format!("/t/{index}"),
            "mode": "read-only",
            "limits": { "principal": { "calls": "600 per 1m" } },
            "grants": [{ "scope": "mcp.read", "allow": ["read"], "tools": ["own/*"] }],
            "backends": { "own": { "http": { "url": workbench.url }, "trust_annotations": true } },
            "routes": [{ "path": "/mcp", "backends": ["own"] }],
        });
        tenant(folder.path(), &format!("tenant-{index:04}"), &written);
    }
    let before = (Instant::now(), resident_bytes());
    let loaded = config::load(&path, options()).unwrap();
    let app = App::start(loaded).await.unwrap();
    let (took, grown) = (before.0.elapsed(), resident_bytes().saturating_sub(before.1));
    eprintln!("1,000 tenants: {took:?}, {} MiB", grown / 1024 / 1024);
    assert_eq!(app.gateway().house().tenants.iter().count(), 1000);
    let base = format!("http://{}", app.addresses()[0].1);
    for name in ["tenant-0000", "tenant-0999"] {
        let index: usize = name.trim_start_matches("tenant-").parse().unwrap();
        let url = format!("/t/{index}/mcp");
        let answer = ask(&base, &url, &token(&issuer, "ann", name), "tools/list", json!({})).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    app.shutdown().await;
}

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
