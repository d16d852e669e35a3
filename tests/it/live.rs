//! Real servers and clients: the Python SDK's server behind the gateway; official SDK clients and the conformance suite
//! in front of it. Everything is installed by `tests/real/setup.sh`; what cannot be had fails.

use std::collections::HashMap;
use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::OnceLock;

use serde_json::Value;
use serde_json::json;

use crate::harness::Rig;

/// Paths that `setup.sh` prints.
pub fn tools() -> &'static HashMap<String, String> {
    static TOOLS: OnceLock<HashMap<String, String>> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let output = Command::new("bash").arg(real("setup.sh")).stderr(Stdio::inherit()).output().expect("bash runs");
        assert!(output.status.success(), "tests/real/setup.sh failed");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
            .collect()
    })
}

pub fn real(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real").join(file)
}

pub fn tool(name: &str) -> &'static str {
    tools().get(name).unwrap_or_else(|| panic!("setup.sh did not print {name}"))
}

/// The fixture server of the official Python SDK; ended when dropped.
pub struct Fixture {
    child: Child,
    pub url: String,
}

impl Fixture {
    pub fn start(arguments: &[&str]) -> Fixture {
        Fixture::of("fixture.py", &[&["--port", "0"], arguments].concat())
    }

    fn of(program: &str, arguments: &[&str]) -> Fixture {
        let mut child = Command::new(tool("WARDGATE_PYTHON"))
            .arg(real(program))
            .args(arguments)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the fixture starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url =
            line.trim().strip_prefix("LISTENING ").unwrap_or_else(|| panic!("the fixture said {line:?}")).to_owned();
        Fixture { child, url }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The gateway in front of the fixture, whose hints are trusted.
async fn before(fixture: &Fixture, adjust: impl FnOnce(&mut Value)) -> Rig {
    Rig::with(|file| {
        file["backends"] = json!({ "fixture": { "http": { "url": fixture.url }, "trust_annotations": true } });
        file["routes"][0]["backends"] = json!(["fixture"]);
        adjust(file);
    })
    .await
}

/// Runs a client to its end without blocking the gateway; gives its JSON lines.
pub async fn lines(command: Command) -> Vec<Value> {
    let output = tokio::process::Command::from(command).output().await.expect("the client runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.is_empty(), "the client said nothing: {}", String::from_utf8_lossy(&output.stderr));
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

pub async fn python(url: &str, token: &str, mode: &str, actions: &[&str]) -> Vec<Value> {
    let mut command = Command::new(tool("WARDGATE_PYTHON"));
    command.arg(real("client.py")).args([url, token, mode]).args(actions).env("PYTHONDONTWRITEBYTECODE", "1");
    lines(command).await
}

async fn typescript(url: &str, token: &str, version: &str, actions: &[&str]) -> Vec<Value> {
    let mut command = Command::new(tool("WARDGATE_NODE"));
    command.arg(real("client.mjs")).args([url, token, version]).args(actions);
    command.env("WARDGATE_NODE_MODULES", tool("WARDGATE_NODE_MODULES"));
    lines(command).await
}

fn names(line: &Value) -> Vec<&str> {
    line["tools"]
        .as_array()
        .unwrap_or_else(|| panic!("no tools: {line}"))
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect()
}

const CALLS: [&str; 12] = [
    "--call",
    "echo",
    r#"{"text":"hällo"}"#,
    "--call",
    "note_delete",
    r#"{"id":"a"}"#,
    "--cancel",
    "slow_count",
    r#"{"seconds":20,"steps":40}"#,
    "1",
    "--call",
    "cancelled_count",
];

/// What every client must see: a viewer's list, a call that works, a hidden one that does not, a cancel that arrives.
async fn judge(rig: &Rig, who: &str, seen: &[Value]) {
    let first = &seen[0];
    let listed = names(first);
    assert!(listed.contains(&"echo") && listed.contains(&"note_read"), "{who}: {listed:?}");
    for hidden in ["note_write", "note_delete", "unhinted"] {
        assert!(!listed.contains(&hidden), "{who} sees {hidden}");
    }
    assert_eq!(seen[1]["text"], "hällo", "{who}: {}", seen[1]);
    let refused = &seen[2];
    assert!(
        refused["error"]["message"].as_str().is_some_and(|words| words.contains("Unknown tool: note_delete")),
        "{who}: {refused}"
    );
    assert_eq!(seen[3]["cancelled"], true, "{who}: {}", seen[3]);
    let record = rig.record(|record| record["target"] == "note_delete").await;
    assert_eq!(record["reason"], "unknown_tool");
}

#[tokio::test(flavor = "multi_thread")]
async fn official_clients_of_both_eras_see_and_do_what_they_may() {
    let fixture = Fixture::start(&["--page-size", "9"]);
    let rig = before(&fixture, |_| {}).await;
    let (url, token) = (rig.url(), rig.viewer());
    let mut cancelled = 0;
    for mode in ["legacy", "auto", "2026-07-28"] {
        let mut actions = CALLS.to_vec();
        actions.push("{}");
        let seen = python(&url, &token, mode, &actions).await;
        judge(&rig, &format!("python {mode}"), &seen).await;
        cancelled = arrived(&seen[4], cancelled, &rig, mode).await;
    }
    for version in ["v1", "v2-legacy", "v2-auto", "v2-modern"] {
        let mut actions = CALLS.to_vec();
        actions.push("{}");
        let seen = typescript(&url, &token, version, &actions).await;
        judge(&rig, &format!("typescript {version}"), &seen).await;
        cancelled = arrived(&seen[4], cancelled, &rig, version).await;
    }
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_official_client_that_only_speaks_stdio_uses_the_gateway_in_both_eras() {
    let fixture = Fixture::start(&["--page-size", "9"]);
    let rig = before(&fixture, |_| {}).await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, rig.viewer()).unwrap();
    let program = env!("CARGO_BIN_EXE_wardgate");
    let target = format!("stdio:{program} stdio {} --bearer-file {}", rig.url(), token.display());
    let mut cancelled = 0;
    for mode in ["legacy", "auto", "2026-07-28"] {
        let mut actions = CALLS.to_vec();
        actions.push("{}");
        let seen = python(&target, "-", mode, &actions).await;
        judge(&rig, &format!("stdio {mode}"), &seen).await;
        cancelled = arrived(&seen[4], cancelled, &rig, mode).await;
    }
    rig.app.shutdown().await;
}

/// To be spoken to in the modern way only, as if it knew no other.
fn forced(file: &mut Value) {
    file["backends"]["fixture"]["era"] = json!("modern");
}

#[tokio::test(flavor = "multi_thread")]
async fn official_legacy_clients_pass_the_door_to_a_modern_server() {
    let fixture = Fixture::start(&["--page-size", "9"]);
    let rig = before(&fixture, forced).await;
    let (url, token) = (rig.url(), rig.viewer());
    let mut actions = CALLS.to_vec();
    actions.push("{}");
    let mut cancelled = 0;
    let seen = python(&url, &token, "legacy", &actions).await;
    judge(&rig, "python", &seen).await;
    cancelled = arrived(&seen[4], cancelled, &rig, "python").await;
    for version in ["v1", "v2-legacy"] {
        let seen = typescript(&url, &token, version, &actions).await;
        judge(&rig, &format!("typescript {version}"), &seen).await;
        cancelled = arrived(&seen[4], cancelled, &rig, version).await;
    }
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_modern_server_asks_reaches_a_legacy_client_and_its_answers_come_back() {
    let fixture = Fixture::start(&[]);
    let rig = before(&fixture, forced).await;
    let call = |name: &'static str| ["--call", name, "{}"];
    let mut actions = vec!["--answer", "--no-list"];
    for name in
        ["elicitation", "sampling", "list_roots", "request_state", "multiple_inputs", "multi_round", "capabilities"]
    {
        let whole: &'static str = format!("test_input_required_result_{name}").leak();
        actions.extend(call(whole));
    }
    actions.extend(["--prompt", "test_input_required_result_prompt", "{}"]);
    let seen = python(&rig.url(), &rig.viewer(), "legacy", &actions).await;
    let texts: Vec<_> =
        seen[1..8].iter().map(|line| line["text"].as_str().unwrap_or_else(|| panic!("{line}"))).collect();
    assert_eq!(
        texts,
        [
            "Hello, Alice!",
            "Paris",
            "roots: file:///test-root",
            "state-ok: confirmed",
            "Alice: Paris; 1 roots",
            "Alice likes Alice",
            "answered: client_roots, greeting, user_name"
        ]
    );
    assert_eq!(seen[8]["messages"], json!(["Use this context: Alice"]), "{}", seen[8]);
    let bare = ["--no-list", "--call", "test_input_required_result_capabilities", "{}"];
    let seen = python(&rig.url(), &rig.viewer(), "legacy", &bare).await;
    assert_eq!(seen[1]["text"], "the client declared nothing that could be asked");
    rig.app.shutdown().await;
}

/// The upstream's count of cancelled calls went up; asks again until it has noticed.
async fn arrived(line: &Value, before: i64, rig: &Rig, who: &str) -> i64 {
    let count = |text: &str| text.trim().parse::<i64>().ok();
    let mut now = line["text"].as_str().and_then(count).unwrap_or_default();
    for _ in 0..100 {
        if now > before {
            return now;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let answer =
            rig.modern(&rig.viewer(), "tools/call", json!({ "name": "cancelled_count", "arguments": {} })).await;
        now = count(answer.result_text()).unwrap_or_default();
    }
    panic!("{who}: the upstream never heard of the cancellation ({now})");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_uses_two_servers_as_one() {
    let (left, right) = (Fixture::start(&["--page-size", "9"]), Fixture::start(&[]));
    let rig = Rig::with(|file| {
        let backend = |url: &str| json!({ "http": { "url": url }, "trust_annotations": true });
        file["backends"] = json!({ "left": backend(&left.url), "right": backend(&right.url) });
        file["routes"][0]["backends"] =
            json!(["left", { "backend": "right", "prefix": "r", "rename": { "echo": "say" } }]);
    })
    .await;
    let actions = [
        "--call",
        "left_echo",
        r#"{"text":"hällo"}"#,
        "--call",
        "r_say",
        r#"{"text":"wörld"}"#,
        "--call",
        "r_note_delete",
        r#"{"id":"a"}"#,
        "--read",
        "wardgate+r+test://static-text",
        "--prompt",
        "left_test_simple_prompt",
        "{}",
        "--resources",
        "--prompts",
    ];
    let seen = python(&rig.url(), &rig.viewer(), "2026-07-28", &actions).await;
    let listed = names(&seen[0]);
    for name in ["left_echo", "left_note_read", "r_say", "r_note_read"] {
        assert!(listed.contains(&name), "{name}: {listed:?}");
    }
    for hidden in ["left_note_write", "r_note_delete", "r_echo", "echo"] {
        assert!(!listed.contains(&hidden), "{hidden}: {listed:?}");
    }
    assert_eq!(listed.len() % 2, 0, "as many of each: {listed:?}");
    assert!(seen[0]["pages"].as_u64().is_some_and(|pages| pages > 1), "{}", seen[0]);
    assert_eq!((&seen[1]["text"], &seen[2]["text"]), (&json!("hällo"), &json!("wörld")));
    let words = seen[3]["error"]["message"].as_str().unwrap_or_default();
    assert!(words.contains("Unknown tool: r_note_delete"), "{}", seen[3]);
    assert!(seen[4]["text"].as_str().is_some_and(|text| !text.is_empty()), "{}", seen[4]);
    assert!(seen[5]["messages"].as_array().is_some_and(|messages| !messages.is_empty()), "{}", seen[5]);
    let has =
        |line: &Value, list: &str, name: &str| line[list].as_array().is_some_and(|all| all.contains(&json!(name)));
    assert!(has(&seen[6], "resources", "wardgate+left+test://static-text"), "{}", seen[6]);
    assert!(has(&seen[7], "prompts", "r_test_simple_prompt"), "{}", seen[7]);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_resources_and_prompts_pass_for_the_python_client() {
    let fixture = Fixture::start(&[]);
    let rig = before(&fixture, |_| {}).await;
    let door = before(&fixture, forced).await;
    for (rig, mode) in [(&rig, "legacy"), (&rig, "2026-07-28"), (&door, "legacy")] {
        let actions = [
            "--read",
            "test://static-text",
            "--prompt",
            "test_simple_prompt",
            "{}",
            "--resources",
            "--prompts",
            "--progress",
            "--call",
            "slow_count",
            r#"{"seconds":0.5,"steps":3}"#,
        ];
        let seen = python(&rig.url(), &rig.viewer(), mode, &actions).await;
        assert!(seen[1]["text"].as_str().is_some_and(|text| !text.is_empty()), "{mode}: {}", seen[1]);
        assert!(seen[2]["messages"].as_array().is_some_and(|messages| !messages.is_empty()), "{mode}: {}", seen[2]);
        assert!(
            seen[3]["resources"].as_array().is_some_and(|all| all.contains(&json!("test://static-text"))),
            "{mode}: {}",
            seen[3]
        );
        assert!(
            seen[4]["prompts"].as_array().is_some_and(|all| all.contains(&json!("test_simple_prompt"))),
            "{mode}: {}",
            seen[4]
        );
        assert!(seen[5]["progress"].as_array().is_some_and(|steps| steps.len() >= 3), "{mode}: {}", seen[5]);
    }
    door.app.shutdown().await;
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_modern_client_uses_a_legacy_server_and_is_asked_in_the_middle_of_its_calls() {
    let fixture = Fixture::start(&["--page-size", "9"]);
    let rig = before(&fixture, |file| file["backends"]["fixture"]["era"] = json!("legacy")).await;
    let actions = [
        "--answer",
        "--call",
        "echo",
        r#"{"text":"hällo"}"#,
        "--call",
        "test_elicitation",
        r#"{"message":"who are you?"}"#,
        "--call",
        "test_sampling",
        r#"{"prompt":"capital of France?"}"#,
        "--call",
        "test_streaming_elicitation",
        "{}",
        "--call",
        "test_reconnection",
        "{}",
        "--read",
        "test://static-text",
        "--progress",
        "--call",
        "slow_count",
        r#"{"seconds":0.5,"steps":3}"#,
        "--cancel",
        "slow_count",
        r#"{"seconds":20,"steps":40}"#,
        "1",
        "--call",
        "cancelled_count",
        "{}",
    ];
    let seen = python(&rig.url(), &rig.viewer(), "2026-07-28", &actions).await;
    assert_eq!(seen[0]["protocol"], "2026-07-28", "{}", seen[0]);
    assert!(names(&seen[0]).contains(&"note_read") && !names(&seen[0]).contains(&"note_write"), "{}", seen[0]);
    for (line, words) in [
        (1, "hällo"),
        (2, "action=accept"),
        (3, "LLM response: Paris"),
        (4, "action=accept"),
        (5, "Reconnection test completed"),
    ] {
        assert!(seen[line]["text"].as_str().is_some_and(|text| text.contains(words)), "{words}: {}", seen[line]);
    }
    assert!(seen[6]["text"].as_str().is_some_and(|text| !text.is_empty()), "{}", seen[6]);
    assert!(seen[7]["progress"].as_array().is_some_and(|steps| steps.len() >= 3), "{}", seen[7]);
    assert_eq!(seen[8]["cancelled"], true, "{}", seen[8]);
    arrived(&seen[9], 0, &rig, "python over a legacy upstream").await;
    let seen = typescript(&rig.url(), &rig.viewer(), "v2-modern", &["--call", "echo", r#"{"text":"hi"}"#]).await;
    assert_eq!(seen[1]["text"], "hi", "{}", seen[1]);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_a_list_is_filtered_and_none_is_lost() {
    let fixture = Fixture::start(&["--page-size", "7", "--many", "60"]);
    let rig = before(&fixture, |_| {}).await;
    let through = python(&rig.url(), &rig.admin_token(), "2026-07-28", &[]).await;
    let direct = python(&fixture.url, "-", "2026-07-28", &[]).await;
    assert_eq!(names(&through[0]), names(&direct[0]), "an admin sees every tool, in the upstream's order");
    assert_eq!(through[0]["pages"], direct[0]["pages"]);
    let viewer = python(&rig.url(), &rig.viewer(), "legacy", &[]).await;
    let hints = direct[0]["annotations"].as_object().unwrap();
    let reads: Vec<_> = names(&direct[0]).into_iter().filter(|name| hints[*name]["readOnlyHint"] == true).collect();
    assert_eq!(names(&viewer[0]), reads);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_client_reaches_the_upstream() {
    let fixture = Fixture::start(&[]);
    let rig = before(&fixture, |_| {}).await;
    let token = rig.viewer();
    let request = crate::harness::modern_request(
        &rig.client,
        &rig.url(),
        "tools/call",
        json!({ "name": "request_headers", "arguments": {} }),
    )
    .bearer_auth(&token)
    .header("cookie", "canary-cookie=1")
    .header("proxy-authorization", "Basic canary-proxy")
    .header("x-forwarded-for", "203.0.113.9")
    .header("x-canary", "canary-header")
    .header("origin-agent-cluster", "canary");
    let answer = crate::harness::Answer::of(request.send().await.unwrap()).await;
    let text = answer.text.to_lowercase();
    assert!(text.contains("mcp-method") && text.contains("request_headers"), "the mirrored headers are there: {text}");
    for canary in ["canary", "authorization", "cookie", "203.0.113.9", &token.to_lowercase()] {
        assert!(!text.contains(canary), "{canary} reached the upstream: {text}");
    }
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrored_argument_headers_are_checked_and_rebuilt() {
    let fixture = Fixture::start(&[]);
    let rig = before(&fixture, |_| {}).await;
    let call = |region: Option<&str>| {
        let params = json!({ "name": "test_x_mcp_header", "arguments": { "region": "us-west1", "priority": 42, "query": "select" } });
        let request = crate::harness::modern_request(&rig.client, &rig.url(), "tools/call", params)
            .bearer_auth(rig.admin_token())
            .header("mcp-param-priority", "42");
        match region {
            Some(region) => request.header("mcp-param-region", region),
            None => request,
        }
    };
    for (region, status) in
        [(Some("us-west1"), 200), (Some("=?base64?dXMtd2VzdDE=?="), 200), (Some("eu-west1"), 400), (None, 400)]
    {
        let answer = crate::harness::Answer::of(call(region).send().await.unwrap()).await;
        assert_eq!(answer.status, status, "{region:?}: {}", answer.text);
        assert_eq!(answer.code(), (status == 400).then_some(-32020), "{region:?}: {}", answer.text);
    }
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_conformance_suite_passes_through_the_gateway_in_both_eras() {
    conform(|_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_conformance_suite_passes_through_the_door() {
    conform(forced).await;
}

/// Runs both sets of the suite; all that is required must pass.
async fn conform(adjust: fn(&mut Value)) {
    let fixture = Fixture::start(&[]);
    let rig = before(&fixture, adjust).await;
    let (passed, text) = conformance(&rig, &[]).await;
    assert!(passed, "{text}");
    for required in ["30 passed, 0 failed", "37 passed, 0 failed"] {
        assert!(text.contains(required), "{text}");
    }
    rig.app.shutdown().await;
}

/// Runs the conformance suite with these options; gives whether every scenario came out as foreseen, and what was said.
async fn conformance(rig: &Rig, options: &[&str]) -> (bool, String) {
    let mut command = tokio::process::Command::new("bash");
    command.arg(real("conformance.sh")).args(options).args([&rig.url(), &rig.admin_token()]);
    let output = command.output().await.expect("bash runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn expected(file: &str) -> String {
    real("expected").join(file).to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_conformance_suite_passes_across_eras() {
    for (era, set, file) in
        [("legacy", "2026-07-28", "legacy-upstream.txt"), ("modern", "2025-11-25", "modern-upstream.txt")]
    {
        let fixture = Fixture::start(&["--era", era]);
        let rig = before(&fixture, |file| file["backends"]["fixture"]["era"] = json!(era)).await;
        let (passed, text) = conformance(&rig, &["--set", set, "--expected", &expected(file)]).await;
        assert!(passed, "{text}");
        rig.app.shutdown().await;
    }
}

/// The fixture's tools are called `test_x`: the route renames them to `x` and prefixes `test` and `_`. Its prompts, which
/// no route renames, are bare already, and resources are mapped where the suite leaves off (see `addbearer.mjs`).
#[tokio::test(flavor = "multi_thread")]
async fn the_official_conformance_suite_passes_through_a_federated_route() {
    let fixture = Fixture::start(&["--bare-prompts"]);
    let direct = python(&fixture.url, "-", "2026-07-28", &[]).await;
    let renamed = names(&direct[0]).into_iter().filter_map(|name| Some((name, name.strip_prefix("test_")?)));
    let rename: serde_json::Map<_, _> = renamed.map(|(name, bare)| (name.to_owned(), json!(bare))).collect();
    let rig = Rig::with(|file| {
        file["backends"]["fixture"] = json!({ "http": { "url": fixture.url }, "trust_annotations": true });
        file["routes"][0]["backends"] =
            json!([{ "backend": "fixture", "prefix": "test", "rename": rename }, "workbench"]);
    })
    .await;
    let options = ["--expected", &expected("federated.txt"), "--scheme", "wardgate+test"];
    let (passed, text) = conformance(&rig, &options).await;
    assert!(passed, "{text}");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_conformance_suite_finds_the_gateway_a_good_client() {
    let mut command = tokio::process::Command::new("bash");
    command.arg(real("client_scenarios.sh")).arg(env!("CARGO_BIN_EXE_wardgate"));
    let output = command.output().await.expect("bash runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("client scenarios: 11 passed"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inspector_lists_and_calls_through_the_gateway() {
    let fixture = Fixture::start(&[]);
    let rig = before(&fixture, |_| {}).await;
    let home = tempfile::tempdir().unwrap();
    for era in ["legacy", "modern"] {
        let mut command = tokio::process::Command::new(tool("WARDGATE_NODE"));
        command
            .arg(tool("WARDGATE_INSPECTOR"))
            .args(["--cli", &rig.url(), "--transport", "http", "--protocol-era", era])
            .args(["--header", &format!("Authorization: Bearer {}", rig.viewer())])
            .args([
                "--method",
                "tools/call",
                "--tool-name",
                "echo",
                "--tool-arg",
                "text=hello",
                "--format",
                "json",
                "-q",
                "--stored-auth-only",
            ])
            .env("HOME", home.path());
        let output = command.output().await.expect("the inspector runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("hello"),
            "{era}: {text}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_2024_11_05_serves_official_clients_through_the_gateway() {
    let fixture = Fixture::of("sse_server.py", &["canary-key"]);
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "canary-key\n").unwrap();
    let rig = before(&fixture, |file| {
        let credential = json!({ "value": format!("file:{}", key.display()) });
        file["backends"]["fixture"] =
            json!({ "sse": { "url": fixture.url }, "trust_annotations": true, "credential": credential });
    })
    .await;
    let token = rig.viewer();
    let mut actions = CALLS.to_vec();
    actions.extend(["{}", "--progress", "--call", "slow_count", r#"{"seconds":0.5,"steps":3}"#]);
    let seen = python(&rig.url(), &token, "legacy", &actions).await;
    judge(&rig, "python over sse", &seen).await;
    assert_eq!(seen[4]["text"].as_str().map(str::trim), Some("1"), "it heard of the cancellation: {}", seen[4]);
    assert!(seen[5]["progress"].as_array().is_some_and(|steps| steps.len() >= 3), "{}", seen[5]);
    let seen = typescript(&rig.url(), &token, "v1", &["--call", "echo", r#"{"text":"again"}"#]).await;
    assert_eq!(seen[1]["text"], "again", "{seen:?}");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_share_a_real_stdio_process_get_their_own_answers_and_progress() {
    let program = json!([tool("WARDGATE_PYTHON"), real("stdio_server.py")]);
    for processes in ["principal", "session", "shared"] {
        let rig = Rig::with(|file| {
            let stdio = json!({ "command": program, "processes": processes });
            file["backends"] = json!({ "fixture": { "stdio": stdio, "trust_annotations": true, "era": "legacy" } });
            file["routes"][0]["backends"] = json!(["fixture"]);
        })
        .await;
        let client = async |token: String, text: &'static str| {
            let said = format!(r#"{{"text":"{text}"}}"#);
            let steps = r#"{"seconds":0.6,"steps":4}"#;
            let actions = ["--progress", "--call", "slow_count", steps, "--call", "echo", &said];
            let seen = python(&rig.url(), &token, "legacy", &actions).await;
            assert_eq!(seen[1]["progress"].as_array().map(Vec::len), Some(4), "{processes} {text}: {seen:?}");
            assert_eq!(seen[2]["text"], text, "{processes}: {seen:?}");
        };
        tokio::join!(client(rig.viewer(), "one"), client(rig.viewer(), "two"), client(rig.editor(), "three"));
        rig.app.shutdown().await;
    }
}
