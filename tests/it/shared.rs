//! Limits that replicas share, on real Redis and Valkey: killed, paused, flushed, over TLS; quotas; fair lines.

use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use futures_util::future::join_all;
use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;
use wardgate::app::App;
use wardgate::limits::Window;

use crate::harness::Answer;
use crate::harness::Rig;
use crate::harness::configuration;
use crate::harness::load;
use crate::harness::modern_request;
use crate::live::tool;
use crate::scripted;
use crate::scripted::Scripted;

/// A Redis or Valkey of this test alone; ended when dropped.
struct Store {
    program: &'static str,
    port: u16,
    arguments: Vec<String>,
    child: Child,
    folder: TempDir,
}

impl Store {
    fn redis() -> Store {
        Store::start(tool("WARDGATE_REDIS"), &[])
    }

    fn start(program: &'static str, arguments: &[&str]) -> Store {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let arguments: Vec<String> =
            arguments.iter().map(|argument| argument.replace("PORT", &port.to_string())).collect();
        let child = spawn(program, port, &arguments, folder.path());
        let store = Store { program, port, arguments, child, folder };
        store.wait();
        store
    }

    /// Until it accepts connections; a bounded number of tries.
    fn wait(&self) {
        for _ in 0..1000 {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{} does not start", self.program);
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn revive(&mut self) {
        self.child = spawn(self.program, self.port, &self.arguments, self.folder.path());
        self.wait();
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut connection = redis::Client::open(self.url()).unwrap().get_connection().unwrap();
        let mut command = redis::Cmd::new();
        command.arg(words);
        command.query(&mut connection).unwrap()
    }

    /// How often a command came over the wire or from a script.
    fn calls(&self, command: &str) -> u64 {
        let stats: String = self.ask(&["INFO", "commandstats"]);
        let line =
            stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")).map(str::to_owned));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(program: &str, port: u16, arguments: &[String], folder: &Path) -> Child {
    let plain = ["--port".to_owned(), port.to_string()];
    Command::new(program)
        .args(if arguments.iter().any(|argument| argument == "--tls-port") { &[][..] } else { &plain[..] })
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
        .arg(folder)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the store starts")
}

/// Two gateways of the same configuration.
struct Pair {
    rig: Rig,
    other: App,
    other_url: String,
    _folder: TempDir,
}

impl Pair {
    async fn start(adjust: impl Fn(&mut Value)) -> Pair {
        let rig = Rig::with(&adjust).await;
        let folder = tempfile::tempdir().unwrap();
        let other = another(&rig, &adjust, folder.path()).await;
        let other_url = format!("http://{}/mcp", other.addresses()[0].1);
        Pair { rig, other, other_url, _folder: folder }
    }

    /// One call through the first or the second.
    async fn call(&self, turn: usize, token: &str) -> Answer {
        let url = if turn.is_multiple_of(2) { self.rig.url() } else { self.other_url.clone() };
        call(&self.rig, &url, token).await
    }

    async fn end(self) {
        self.other.shutdown().await;
        self.rig.app.shutdown().await;
    }
}

async fn another(rig: &Rig, adjust: impl Fn(&mut Value), folder: &Path) -> App {
    let mut file = configuration(&rig.issuer, &rig.workbench.url, &folder.join("audit.jsonl"));
    adjust(&mut file);
    App::start(load(&file).unwrap_or_else(|errors| panic!("{errors}"))).await.unwrap()
}

async fn call(rig: &Rig, url: &str, token: &str) -> Answer {
    let params = json!({ "name": "list_notes", "arguments": {} });
    Answer::of(modern_request(&rig.client, url, "tools/call", params).bearer_auth(token).send().await.unwrap()).await
}

async fn is_up(rig: &Rig) -> bool {
    let status: Value = serde_json::from_str(
        &rig.client.get(format!("{}/status", rig.admin)).send().await.unwrap().text().await.unwrap(),
    )
    .unwrap();
    status["limits"]["shared"]["nodes"].as_array().unwrap().iter().all(|node| node["up"] == true)
}

async fn wait_until_up(rig: &Rig, up: bool) {
    for _ in 0..1000 {
        if is_up(rig).await == up {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the store is never seen as {}", if up { "up" } else { "away" });
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

async fn share(store: &Store) {
    let limits = json!({
        "principal": { "calls": "10 per 1h", "quota": ["1000 per day", "5000 per month"] },
        "tools": [{ "tools": "workbench/*", "calls": "50 per 1h" }],
        "shared": { "url": store.url(), "timeout": "2s" },
    });
    let pair = Pair::start(|file| file["limits"] = limits.clone()).await;
    let token = pair.rig.viewer();
    let _: () = store.ask(&["CONFIG", "RESETSTAT"]);
    let began = Instant::now();
    let answers = join_all((0..30).map(|turn| pair.call(turn, &token))).await;
    let looks = began.elapsed().as_secs() / 5 + 1; // at an idle connection, of each gateway
    let passed = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(passed, 10, "in total, whichever gateway was asked");
    let refused = answers.iter().find(|answer| answer.status == 429).unwrap();
    let data = &refused.body["error"]["data"];
    assert_eq!(
        (&data["limit"], &data["whose"], &data["allowed"]),
        (&json!("principal"), &json!("principal"), &json!(10))
    );
    assert_eq!(refused.header("ratelimit-policy"), Some("\"principal\";q=10;w=3600"));
    assert!(refused.header("ratelimit").unwrap().starts_with("\"principal\";r=0;t="));
    let evaluated = store.calls("evalsha");
    assert!((30..=30 + 2 * looks).contains(&evaluated), "one round trip a call: {evaluated} for 30 calls");
    assert_eq!((store.calls("eval"), store.calls("script|load")), (0, 0), "the script is known");
    let keys: Vec<String> = store.ask(&["KEYS", "*"]);
    assert!(keys.iter().filter(|key| !key.ends_with("probe")).count() == 4, "{keys:?}");
    for key in keys.iter().filter(|key| !key.ends_with("probe")) {
        assert!(key.starts_with("wardgate:") && !key.contains("viewer") && !key.contains("127.0.0.1"), "{key}");
        assert!(store.ask::<i64>(&["TTL", key]) > 0, "{key} never expires");
    }
    assert_eq!(pair.call(1, &pair.rig.editor()).await.status, 200, "another caller has a bucket of their own");
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_share_one_limit_exactly_and_each_call_is_one_question() {
    share(&Store::redis()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn valkey_does_as_well() {
    share(&Store::start(tool("WARDGATE_VALKEY"), &[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_are_shared_outlive_gateways_and_say_when_they_begin_anew() {
    let store = Store::redis();
    for (quota, window, offset) in [("3 per day", Window::Day, "+05:30"), ("3 per month", Window::Month, "-08:00")] {
        let _: () = store.ask(&["FLUSHALL"]);
        let adjust = |file: &mut Value| {
            file["limits"] = json!({
                "principal": { "quota": quota }, "utc_offset": offset, "shared": { "url": store.url(), "timeout": "2s" },
            });
        };
        let pair = Pair::start(adjust).await;
        let token = pair.rig.viewer();
        for turn in 0..3 {
            assert_eq!(pair.call(turn, &token).await.status, 200);
        }
        let folder = tempfile::tempdir().unwrap();
        let third = another(&pair.rig, adjust, folder.path()).await;
        let refused = call(&pair.rig, &format!("http://{}/mcp", third.addresses()[0].1), &token).await;
        assert_eq!(refused.status, 429);
        let offset_s = if offset == "+05:30" { 19_800 } else { -28_800 };
        let data = &refused.body["error"]["data"];
        assert_eq!(
            (&data["reason"], &data["of"], &data["allowed"]),
            (&json!("quota_exhausted"), &json!("quota"), &json!(3))
        );
        assert_eq!(data["resetsAt"], json!(window.ends(now_s(), offset_s)), "the store's calendar is ours");
        let left = window.ends(now_s(), offset_s) - now_s();
        let after: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!(after.abs_diff(left) <= 5, "{after} {left}");
        third.shutdown().await;
        pair.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_away_each_gateway_counts_and_when_it_is_back_they_share_again() {
    let mut store = Store::redis();
    let limits = json!({ "principal": { "calls": "5 per 1h" }, "shared": { "url": store.url(), "timeout": "2s" } });
    let pair = Pair::start(|file| file["limits"] = limits.clone()).await;
    let token = pair.rig.viewer();
    store.kill();
    wait_until_up(&pair.rig, false).await;
    let mut passed = [0, 0];
    for turn in 0..20 {
        passed[turn % 2] += usize::from(pair.call(turn, &token).await.status == 200);
    }
    assert_eq!(passed, [5, 5], "the same figures, for each");
    let metrics =
        pair.rig.client.get(format!("{}/metrics", pair.rig.admin)).send().await.unwrap().text().await.unwrap();
    assert!(
        metrics.contains(&format!("wardgate_limits_node_up{{node=\"127.0.0.1:{}/0\"}} 0", store.port)),
        "{metrics}"
    );
    assert!(metrics.contains("wardgate_limits_judged_total{by=\"local\"} 1"), "{metrics}");
    store.revive();
    wait_until_up(&pair.rig, true).await;
    for _ in 0..1000 {
        // The other one has no address to be asked at: it is back when the store has heard of it.
        let clients: String = store.ask(&["CLIENT", "LIST"]);
        if clients.lines().count() >= 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let answers = join_all((0..20).map(|turn| pair.call(turn, &token))).await;
    let passed = answers.iter().filter(|answer| answer.status == 200).count();
    assert!((5..=6).contains(&passed), "one budget again: {passed}");
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_told_so_refuses_while_the_store_is_away() {
    let mut store = Store::redis();
    let limits = json!({
        "principal": { "calls": "100 per 1h" }, "shared": { "url": store.url(), "timeout": "2s", "unreachable": "refuse" },
    });
    let rig = Rig::with(|file| file["limits"] = limits.clone()).await;
    let token = rig.viewer();
    assert_eq!(call(&rig, &rig.url(), &token).await.status, 200);
    store.kill();
    wait_until_up(&rig, false).await;
    let refused = call(&rig, &rig.url(), &token).await;
    assert_eq!((refused.status, &refused.body["error"]["data"]["reason"]), (503, &json!("limits_unavailable")));
    assert_eq!(refused.header("retry-after"), Some("2"));
    store.revive();
    wait_until_up(&rig, true).await;
    assert_eq!(call(&rig, &rig.url(), &token).await.status, 200, "without a restart");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_costs_a_few_calls_their_timeout_and_the_others_nothing() {
    let store = Store::redis();
    let limits = json!({
        "principal": { "calls": "100 per 1h" },
        "shared": { "url": store.url(), "timeout": "500ms", "connect_timeout": "500ms" },
    });
    let rig = Rig::with(|file| file["limits"] = limits.clone()).await;
    let token = rig.viewer();
    assert_eq!(call(&rig, &rig.url(), &token).await.status, 200);
    store.signal("-STOP");
    let began = Instant::now();
    for _ in 0..40 {
        assert_eq!(call(&rig, &rig.url(), &token).await.status, 200);
    }
    let took = began.elapsed();
    store.signal("-CONT");
    assert!(took < Duration::from_millis(500) * 20, "forty timeouts would be 20 s: {took:?}");
    assert!(took >= Duration::from_millis(500), "the first ones wait: {took:?}");
    wait_until_up(&rig, true).await;
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_forgets_the_script_is_told_again() {
    let store = Store::redis();
    let limits = json!({ "principal": { "calls": "3 per 1h" }, "shared": { "url": store.url(), "timeout": "2s" } });
    let rig = Rig::with(|file| file["limits"] = limits.clone()).await;
    let token = rig.viewer();
    let mut passed = 0;
    for _ in 0..5 {
        let _: () = store.ask(&["SCRIPT", "FLUSH"]);
        passed += usize::from(call(&rig, &rig.url(), &token).await.status == 200);
    }
    assert_eq!(passed, 3, "no call was counted twice or not at all");
    let metrics = rig.client.get(format!("{}/metrics", rig.admin)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("wardgate_limits_judged_total{by=\"shared\"} 5"), "{metrics}");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_a_login_are_demanded_and_the_authority_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "authority of the test's store");
    std::fs::write(at("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    std::fs::write(at("leaf.pem"), leaf.pem()).unwrap();
    std::fs::write(at("leaf.key"), key.serialize_pem()).unwrap();
    std::fs::write(at("password"), "a password of the test").unwrap();
    std::fs::write(at("wrong"), "another").unwrap();
    // No more than docs/limits.md asks for.
    let may = "-@all +evalsha +script|load +time +get +set +incr +expireat";
    let acl = format!("user default off\nuser gateway on #{} ~wardgate:* {may}\n", sha256("a password of the test"));
    std::fs::write(at("acl"), acl).unwrap();
    let arguments = [
        "--tls-port",
        "PORT",
        "--port",
        "0",
        "--tls-auth-clients",
        "no",
        "--tls-cert-file",
        &at("leaf.pem"),
        "--tls-key-file",
        &at("leaf.key"),
        "--tls-ca-cert-file",
        &at("ca.pem"),
        "--aclfile",
        &at("acl"),
    ];
    let store = Store::start(tool("WARDGATE_REDIS"), &arguments);
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(at("other.pem"), other.cert.pem()).unwrap();
    for (ca, password, up) in
        [("ca.pem", "password", true), ("other.pem", "password", false), ("ca.pem", "wrong", false)]
    {
        let shared = json!({
            "url": format!("rediss://localhost:{}", store.port), "ca": at(ca), "user": "gateway",
            "password": format!("file:{}", at(password)), "timeout": "2s", "connect_timeout": "5s",
        });
        let limits = json!({ "principal": { "calls": "2 per 1h" }, "shared": shared });
        let rig = Rig::with(|file| file["limits"] = limits.clone()).await;
        assert_eq!(is_up(&rig).await, up, "{ca} {password}");
        let token = rig.viewer();
        for status in [200, 200, 429] {
            assert_eq!(call(&rig, &rig.url(), &token).await.status, status);
        }
        rig.app.shutdown().await;
    }
}

fn sha256(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_spread_over_several_stores_and_one_that_is_lost_takes_only_its_own() {
    let mut stores = [Store::redis(), Store::redis(), Store::redis()];
    let urls: Vec<String> = stores.iter().map(Store::url).collect();
    let limits = json!({
        "principal": { "calls": "1 per 1h" }, "shared": { "nodes": urls, "timeout": "2s", "unreachable": "refuse" },
    });
    let pair = Pair::start(|file| file["limits"] = limits.clone()).await;
    let tokens: Vec<String> = (0..24).map(|caller| pair.rig.admin_named(&format!("caller-{caller}"))).collect();
    for token in &tokens {
        assert_eq!([pair.call(0, token).await.status, pair.call(1, token).await.status], [200, 429]);
    }
    let counts: Vec<usize> = stores
        .iter()
        .map(|store| {
            store.ask::<Vec<String>>(&["KEYS", "wardgate:r:*"]).iter().filter(|key| !key.ends_with("probe")).count()
        })
        .collect();
    assert_eq!(counts.iter().sum::<usize>(), 24, "{counts:?}");
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    stores[0].kill();
    wait_until_up(&pair.rig, false).await;
    let mut lost = 0;
    for token in &tokens {
        lost += usize::from(pair.call(0, token).await.status == 503);
    }
    assert_eq!(lost, counts[0], "the callers of the lost one and no others");
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_callers_crowd_at_a_backend_does_not_delay_another() {
    const CROWD: usize = 200;
    let served: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = served.clone();
    let upstream = Scripted::start(move |_, _, message| match message["method"].as_str() {
        Some("tools/list") => scripted::result(message, scripted::two_tools()),
        Some("tools/call") => {
            seen.lock().unwrap().push(message["params"]["arguments"]["who"].as_str().unwrap_or_default().to_owned());
            let result =
                json!({ "jsonrpc": "2.0", "id": message["id"], "result": { "resultType": "complete", "content": [] } });
            let slowly = futures_util::stream::once(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok::<_, std::io::Error>(result.to_string())
            });
            let body = axum::body::Body::from_stream(slowly);
            axum::response::Response::builder().header("content-type", "application/json").body(body).unwrap()
        }
        _ => scripted::result(message, json!({ "resultType": "complete" })),
    })
    .await;
    let rig = Rig::with(|file| {
        file["backends"]["workbench"] = json!({
            "http": { "url": upstream.url, "connections_max": 2 }, "era": "modern",
            "effects": [{ "tools": "look", "effect": "read" }],
        });
    })
    .await;
    let call = |token: String, who: &'static str| {
        let params = json!({ "name": "look", "arguments": { "who": who } });
        let request = modern_request(&rig.client, &rig.url(), "tools/call", params).bearer_auth(token);
        async move { Answer::of(request.send().await.unwrap()).await }
    };
    let warm = call(rig.admin_named("warm"), "warm").await;
    assert_eq!(warm.status, 200, "{}", warm.text);
    let noisy = rig.admin_named("noisy");
    let crowd = tokio::spawn(join_all((0..CROWD).map(|_| call(noisy.clone(), "noisy")).collect::<Vec<_>>()));
    let count = || served.lock().unwrap().len();
    while count() < 10 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // By now the whole crowd is on its way; nearly all of it waits for one of the two connections.
    let before = count();
    let quiet = call(rig.admin_named("quiet"), "quiet").await;
    assert_eq!(quiet.status, 200, "{}", quiet.text);
    let place = served.lock().unwrap().iter().position(|who| who == "quiet").unwrap();
    assert!(place - before < CROWD / 4, "served {} places later, a line of all would be about {CROWD}", place - before);
    assert!(crowd.await.unwrap().iter().all(|answer| answer.status == 200), "nobody starves");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_is_not_called_more_often_at_once_than_it_may() {
    let rig = Rig::with(|file| file["limits"] = json!({ "backends": { "workbench": { "concurrent": 1 } } })).await;
    let params = json!({ "name": "count_slowly", "arguments": { "to": 20, "pause_ms": 1000 }, "_meta": { "progressToken": "p" } });
    let request = modern_request(&rig.client, &rig.url(), "tools/call", params).bearer_auth(rig.viewer());
    let mut running = request.send().await.unwrap();
    assert!(running.chunk().await.unwrap().is_some(), "the stream flows");
    let refused = call(&rig, &rig.url(), &rig.editor()).await;
    let data = &refused.body["error"]["data"];
    assert_eq!((refused.status, &data["limit"], &data["allowed"]), (429, &json!("backend-concurrent"), &json!(1)));
    drop(running);
    rig.app.shutdown().await;
}
