//! The program as a person uses it: exit codes, words, signals, reload.

use std::io::Write;
use std::path::Path;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncBufReadExt;
use tokio::io::BufReader;
use tokio::process::Child;
use tokio::process::Command;
use wardgate::demo::issuer::Issuer;
use wardgate::demo::workbench::Workbench;

use crate::harness;
use crate::live;

const PROGRAM: &str = env!("CARGO_BIN_EXE_wardgate");

async fn wardgate(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().await.expect("the program runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A running program, its log so far, and the address of its first listener.
struct Running {
    child: Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStderr>>,
    log: String,
}

impl Running {
    fn start(arguments: &[&str]) -> Running {
        let mut child = Command::new(PROGRAM)
            .args(arguments)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Running { child, lines, log: String::new() }
    }

    /// Reads the log until a line has this word; gives the line.
    async fn until(&mut self, word: &str) -> String {
        loop {
            let line = tokio::time::timeout(Duration::from_secs(30), self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("no `{word}` in 30 s:\n{}", self.log)).unwrap();
            let line = line.unwrap_or_else(|| panic!("ended without `{word}`:\n{}", self.log));
            self.log.push_str(&line);
            self.log.push('\n');
            if line.contains(word) {
                return line;
            }
        }
    }

    async fn address(&mut self) -> String {
        Running::value(&self.until("listening").await, "address")
    }

    /// The value of a field in a log line.
    fn value(line: &str, field: &str) -> String {
        let after = line.split(&format!("{field}=")).nth(1).unwrap_or_else(|| panic!("no {field} in {line}"));
        after.trim_start_matches('"').split(['"', ' ']).next().unwrap().to_owned()
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().expect("it runs").to_string();
        assert!(std::process::Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    async fn ended(mut self) -> (Option<i32>, String) {
        while let Ok(Some(line)) = self.lines.next_line().await {
            self.log.push_str(&line);
            self.log.push('\n');
        }
        (self.child.wait().await.unwrap().code(), self.log)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_tour_ends_well() {
    let output = wardgate(&["demo", "--tour"]).await;
    assert!(output.status.success(), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_every_error_with_file_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.yaml");
    std::fs::write(
        &path,
        "listeners:\n  - address: nowhere\nmode: harmless\nbackends:\n  a: { http: { url: 'ftp://x' } }\nroutez: []\n",
    )
    .unwrap();
    let output = wardgate(&["check", "-c", path.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    for part in ["bad.yaml:2:", "listeners[0].address", "bad.yaml:3:", "mode", "bad.yaml:6:", "routez"] {
        assert!(said.contains(part), "lacks {part}:\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_masks_secrets_and_the_sidecar_manifest_holds_a_good_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("token");
    std::fs::write(&secret, "canary-secret-value\n").unwrap();
    let path = folder.path().join("good.yaml");
    let file = json!({
        "listeners": [{ "address": "127.0.0.1:0" }],
        "identity": [{ "anonymous": {} }],
        "grants": [{ "allow": ["read"] }],
        "backends": { "a": { "http": { "url": "http://127.0.0.1:1/mcp" }, "credential": { "scheme": "Bearer", "value": format!("file:{}", secret.display()) } } },
        "routes": [{ "path": "/mcp", "backends": ["a"] }],
    });
    std::fs::write(&path, file.to_string()).unwrap();
    let output = wardgate(&["check", "-c", path.to_str().unwrap()]).await;
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("***") && !said.contains("canary-secret-value"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_issuer_is_refused_by_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("demo.yaml");
    let file = json!({
        "listeners": [{ "address": "127.0.0.1:0" }],
        "public_url": "http://127.0.0.1:1",
        "identity": [{ "oidc": { "issuer": "http://127.0.0.1:1/wardgate-demo-issuer", "audience": "x" } }],
        "grants": [{ "allow": ["read"] }],
        "backends": { "a": { "http": { "url": "http://127.0.0.1:1/mcp" } } },
        "routes": [{ "path": "/mcp", "backends": ["a"] }],
    });
    std::fs::write(&path, file.to_string()).unwrap();
    let output = wardgate(&["run", "-c", path.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("demo"), "{}", text(&output));
}

/// A configuration file in front of the workbench, with a JWKS file so that the issuer is an ordinary one.
struct Stand {
    folder: tempfile::TempDir,
    issuer: Issuer,
    workbench: Workbench,
}

impl Stand {
    async fn new() -> Stand {
        harness::prepare();
        let stand = Stand {
            folder: tempfile::tempdir().unwrap(),
            issuer: Issuer::start(0).await.unwrap(),
            workbench: Workbench::start(0).await.unwrap(),
        };
        std::fs::write(stand.folder.path().join("jwks.json"), stand.issuer.jwks().to_string()).unwrap();
        stand.write(&stand.file());
        stand
    }

    fn file(&self) -> Value {
        let mut file =
            harness::configuration(&self.issuer, &self.workbench.url, &self.folder.path().join("audit.jsonl"));
        let jwks = self.folder.path().join("jwks.json");
        file["identity"] = json!([{ "oidc": { "issuer": "https://idp.test", "audience": harness::AUDIENCE, "jwks_file": jwks, "algorithms": ["ES256"] } }]);
        file
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("wardgate.yaml")
    }

    fn write(&self, file: &Value) {
        std::fs::write(self.path(), format!("{file:#}")).unwrap();
    }

    fn token(&self, scope: &str) -> String {
        let mut claims = self.issuer.claims("somebody", scope, harness::AUDIENCE);
        claims["iss"] = json!("https://idp.test");
        self.issuer.token_with(claims)
    }

    async fn tools(&self, address: &str) -> Result<usize, reqwest::Error> {
        let request =
            harness::modern_request(&harness::client(), &format!("http://{address}/mcp"), "tools/list", json!({}));
        let answer = harness::Answer::of(request.bearer_auth(self.token("mcp.read")).send().await?).await;
        Ok(answer.tools().len())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn run_reloads_on_hangup_and_on_a_changed_file_and_keeps_the_old_when_the_new_is_bad() {
    let stand = Stand::new().await;
    let mut running = Running::start(&["run", "-c", stand.path().to_str().unwrap()]);
    let address = running.address().await;
    assert_eq!(stand.tools(&address).await.unwrap(), 3);
    let mut file = stand.file();
    file["grants"] = json!([{ "scope": "mcp.read", "allow": ["read", "write"] }]);
    stand.write(&file);
    running.until("was reloaded").await;
    assert_eq!(stand.tools(&address).await.unwrap(), 5, "a changed file is enough");
    std::fs::write(stand.path(), "mode: [").unwrap();
    running.signal("-HUP");
    running.until("the old one stays in force").await;
    assert_eq!(stand.tools(&address).await.unwrap(), 5);
    running.signal("-TERM");
    let (code, log) = running.ended().await;
    assert_eq!(code, Some(0), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn terminate_lets_a_running_call_finish_and_exits_0() {
    let stand = Stand::new().await;
    let mut running = Running::start(&["run", "-c", stand.path().to_str().unwrap()]);
    let address = running.address().await;
    let admin = Running::value(&running.until("admin listener").await, "address");
    let params = json!({ "name": "count_slowly", "arguments": { "to": 3, "pause_ms": 700 } });
    let request = harness::modern_request(&harness::client(), &format!("http://{address}/mcp"), "tools/call", params)
        .bearer_auth(stand.token("mcp.read"));
    let call = tokio::spawn(async move { harness::Answer::of(request.send().await.unwrap()).await });
    // The call must have reached the gateway before the signal does.
    let metrics = format!("http://{admin}/metrics");
    while !harness::client()
        .get(&metrics)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap()
        .contains("wardgate_in_flight_requests 1")
    {
        tokio::task::yield_now().await;
    }
    running.signal("-TERM");
    let answer = call.await.unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.body["result"].is_object(), "{}", answer.text);
    let (code, log) = running.ended().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(stand.tools(&address).await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_with_the_same_keys_serve_one_session_and_one_that_is_killed_takes_nothing_with_it() {
    let stand = Stand::new().await;
    let (old, new) = ("0f".repeat(32), "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=");
    std::fs::write(stand.folder.path().join("old"), old).unwrap();
    std::fs::write(stand.folder.path().join("new"), new).unwrap();
    let path = |name: &str| stand.folder.path().join(name);
    // In the middle of a rotation: one replica seals with the new key already.
    for (name, keys) in [("one", ["file:new", "file:old"]), ("two", ["file:old", "file:new"])] {
        let mut file = stand.file();
        file["sessions"] = json!({ "keys": keys });
        file["audit"]["file"] = json!(path(&format!("{name}.jsonl")));
        std::fs::write(path(&format!("{name}.yaml")), file.to_string()).unwrap();
    }
    let mut one = Running::start(&["run", "-c", path("one.yaml").to_str().unwrap()]);
    let mut two = Running::start(&["run", "-c", path("two.yaml").to_str().unwrap()]);
    let (one_at, two_at) = (one.address().await, two.address().await);
    let token = stand.token("mcp.read mcp.write");
    let client = harness::client();
    let post = async |address: &str, session: Option<&str>, method: &str, params: Value| {
        let mut request = client
            .post(format!("http://{address}/mcp"))
            .bearer_auth(&token)
            .json(&json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }));
        request = request.header("accept", "application/json, text/event-stream");
        if let Some(session) = session {
            request = request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-11-25");
        }
        harness::Answer::of(request.send().await.unwrap()).await
    };
    let hello =
        json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "it", "version": "1" } });
    let begun = post(&one_at, None, "initialize", hello).await;
    let session = begun.header("mcp-session-id").expect("the workbench has sessions").to_owned();
    for turn in 0..3 {
        let tool = if turn == 0 { "write_note" } else { "append_note" };
        let note = json!({ "name": tool, "arguments": { "id": "shared", "text": format!("turn {turn}\n") } });
        let address = if turn % 2 == 0 { &two_at } else { &one_at };
        let answer = post(address, Some(&session), "tools/call", note).await;
        assert_eq!(answer.status, 200, "turn {turn}: {}", answer.text);
        assert_ne!(answer.body["result"]["isError"], true, "turn {turn}: {}", answer.text);
    }
    one.child.kill().await.unwrap();
    let read = json!({ "name": "read_note", "arguments": { "id": "shared" } });
    let answer = post(&two_at, Some(&session), "tools/call", read).await;
    for turn in 0..3 {
        assert!(answer.result_text().contains(&format!("turn {turn}")), "{}", answer.text);
    }
    // A reload that drops the key ends the sessions sealed under it.
    let mut file = stand.file();
    file["sessions"] = json!({ "keys": ["file:old"] });
    file["audit"]["file"] = json!(path("two.jsonl"));
    std::fs::write(path("two.yaml"), file.to_string()).unwrap();
    two.until("was reloaded").await;
    let answer = post(&two_at, Some(&session), "ping", json!({})).await;
    assert_eq!((answer.status, &answer.body["error"]["data"]["reason"]), (404, &json!("session_unknown")));
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_verify_finds_a_changed_record() {
    let stand = Stand::new().await;
    let mut running = Running::start(&["run", "-c", stand.path().to_str().unwrap()]);
    let address = running.address().await;
    for _ in 0..3 {
        stand.tools(&address).await.unwrap();
    }
    running.signal("-TERM");
    running.ended().await;
    let log = stand.folder.path().join("audit.jsonl");
    let good = wardgate(&["audit", "verify", log.to_str().unwrap()]).await;
    assert!(good.status.success(), "{}", text(&good));
    let forged = std::fs::read_to_string(&log).unwrap().replacen("somebody", "someone!", 1);
    std::fs::write(&log, forged).unwrap();
    let bad = wardgate(&["audit", "verify", log.to_str().unwrap()]).await;
    assert_eq!(bad.status.code(), Some(1), "{}", text(&bad));
}

#[tokio::test(flavor = "multi_thread")]
async fn front_puts_a_url_behind_the_gateway_from_one_line() {
    harness::prepare();
    let workbench = Workbench::start(0).await.unwrap();
    let mut running = Running::start(&[
        "front",
        &workbench.url,
        "--listen",
        "127.0.0.1:0",
        "--trust-annotations",
        "--mode",
        "non-destructive",
    ]);
    let address = running.address().await;
    let request =
        harness::modern_request(&harness::client(), &format!("http://{address}/mcp"), "tools/list", json!({}));
    let answer = harness::Answer::of(request.send().await.unwrap()).await;
    assert_eq!(answer.tools().len(), 5, "{}", answer.text);
    running.signal("-TERM");
    assert_eq!(running.ended().await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn front_puts_a_stdio_server_behind_the_gateway_for_official_clients_of_both_eras() {
    let python = live::tool("WARDGATE_PYTHON");
    let server = live::real("stdio_server.py");
    let mut running = Running::start(&[
        "front",
        "--listen",
        "127.0.0.1:0",
        "--trust-annotations",
        "--",
        python,
        server.to_str().unwrap(),
    ]);
    let address = running.address().await;
    for mode in ["legacy", "2026-07-28"] {
        let seen = live::python(
            &format!("http://{address}/mcp"),
            "-",
            mode,
            &["--call", "echo", r#"{"text":"over stdio"}"#, "--call", "note_delete", "{}"],
        )
        .await;
        assert_eq!(seen[1]["text"], "over stdio", "{mode}: {seen:?}");
        assert!(
            seen[2]["error"]["message"].as_str().is_some_and(|words| words.contains("Unknown tool")),
            "{mode}: {seen:?}"
        );
    }
    running.signal("-TERM");
    assert_eq!(running.ended().await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn front_without_authentication_stays_on_loopback() {
    let output = wardgate(&["front", "http://127.0.0.1:1/mcp", "--listen", "0.0.0.0:8080"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("loopback") && text(&output).contains("--api-key-file"), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_rotated_without_a_gap_and_revoked_when_its_line_goes() {
    let stand = Stand::new().await;
    let mut lines = Vec::new();
    let mut secrets = Vec::new();
    for _ in 0..2 {
        let made = text(&wardgate(&["api-key", "ci", "--role", "runner", "--expires", "2099-01-01"]).await);
        let after =
            |word: &str| made.lines().find_map(|line| line.strip_prefix(word)).unwrap_or_else(|| panic!("{made}"));
        secrets.push(after("key (shown once): ").to_owned());
        lines.push(after("line for the keys file: ").to_owned());
    }
    let keys = stand.folder.path().join("keys");
    std::fs::write(&keys, &lines[0]).unwrap();
    let mut file = stand.file();
    file["identity"] = json!([{ "api_keys": { "file": keys } }]);
    file["grants"] = json!([{ "role": "runner", "allow": ["read"] }]);
    stand.write(&file);
    let mut running = Running::start(&["run", "-c", stand.path().to_str().unwrap()]);
    let address = running.address().await;
    let admin = Running::value(&running.until("admin listener").await, "address");
    let client = harness::client();
    let status = async |key: &str| {
        let request = harness::modern_request(&client, &format!("http://{address}/mcp"), "tools/list", json!({}));
        request.header("x-api-key", key).send().await.unwrap().status().as_u16()
    };
    assert_eq!((status(&secrets[0]).await, status(&secrets[1]).await), (200, 401));

    std::fs::write(&keys, lines.join("\n")).unwrap();
    running.until("was reloaded").await;
    assert_eq!((status(&secrets[0]).await, status(&secrets[1]).await), (200, 200), "both, while callers change over");
    let metrics = client.get(format!("http://{admin}/metrics")).send().await.unwrap().text().await.unwrap();
    let hash = lines[0].split(' ').nth(1).unwrap();
    let used =
        format!("wardgate_api_key_last_used_timestamp_seconds{{hash=\"{}\",name=\"ci\"}}", hash.get(..8).unwrap());
    assert!(metrics.contains(&used) && !metrics.contains(hash), "{metrics}");

    std::fs::write(&keys, &lines[1]).unwrap();
    let removed = std::time::Instant::now();
    running.until("was reloaded").await;
    assert!(removed.elapsed() < Duration::from_secs(5), "under a second on a machine that has nothing else to do");
    assert_eq!((status(&secrets[0]).await, status(&secrets[1]).await), (401, 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_key_made_on_the_command_line_opens_the_gateway() {
    harness::prepare();
    let folder = tempfile::tempdir().unwrap();
    let made = wardgate(&["api-key", "ci", "--scope", "mcp.read"]).await;
    let said = text(&made);
    let after = |word: &str| {
        said.lines()
            .find_map(|line| line.split_once(word))
            .map(|(_, rest)| rest.trim().to_owned())
            .unwrap_or_else(|| panic!("{said}"))
    };
    let (key, line) = (after("key (shown once):"), after("line for the keys file:"));
    let keys = folder.path().join("keys");
    writeln!(std::fs::File::create(&keys).unwrap(), "{line}").unwrap();
    let workbench = Workbench::start(0).await.unwrap();
    let mut running = Running::start(&[
        "front",
        &workbench.url,
        "--listen",
        "127.0.0.1:0",
        "--trust-annotations",
        "--api-key-file",
        keys.to_str().unwrap(),
    ]);
    let address = running.address().await;
    for (token, status) in [(key.as_str(), 200), ("wgk_wrong", 401)] {
        let request =
            harness::modern_request(&harness::client(), &format!("http://{address}/mcp"), "tools/list", json!({}));
        assert_eq!(request.bearer_auth(token).send().await.unwrap().status(), status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_published_schema_is_the_one_in_the_tree() {
    let output = wardgate(&["schema"]).await;
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let file =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/wardgate.schema.json")).unwrap();
    assert_eq!(printed, serde_json::from_str::<Value>(&file).unwrap());
}
