//! The built-in backend for Vault against a real OpenBao: every tool, its effect by the server's own API, every refusal.

use std::net::TcpListener;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;

use crate::harness::AUDIENCE;
use crate::harness::Answer;
use crate::harness::Rig;
use crate::harness::client;
use crate::live;

const ROOT: &str = "root-of-the-test";
/// Nothing like it may be found in any log.
const CANARY: &str = "canary-7f3b9c51";

const READS: [&str; 7] = [
    "list_mounts",
    "list_pki_issuers",
    "list_pki_roles",
    "list_secrets",
    "read_pki_issuer",
    "read_pki_role",
    "read_secret",
];

/// A server in memory, unsealed; ended when dropped.
struct Bao {
    child: Child,
    url: String,
    client: reqwest::Client,
}

impl Bao {
    async fn start() -> Bao {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(live::tool("WARDGATE_BAO"))
            .args(["server", "-dev", "-dev-no-store-token"])
            .arg(format!("-dev-root-token-id={ROOT}"))
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("OpenBao starts");
        let bao = Bao { child, url: format!("http://127.0.0.1:{port}"), client: client() };
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let health = bao.client.get(format!("{}/v1/sys/health", bao.url)).send().await;
            if health.is_ok_and(|answer| answer.status() == 200) {
                return bao;
            }
            assert!(Instant::now() < deadline, "OpenBao does not become ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The server's own API, as root.
    async fn api(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.client.request(method, format!("{}/v1/{path}", self.url)).header("x-vault-token", ROOT);
        if !body.is_null() {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or_default())
    }

    async fn read(&self, path: &str) -> Value {
        self.api("GET", path, Value::Null).await.1["data"].clone()
    }

    async fn write(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.api("POST", path, body).await;
        assert!(status < 300, "{path}: {status} {answer}");
        answer
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// The gateway in front of it, logged in as root unless `adjust` says otherwise.
    async fn rig(&self, mode: &str, adjust: impl FnOnce(&mut Value)) -> Rig {
        let folder = std::env::temp_dir().join(format!("wardgate-vault-{}-{}", std::process::id(), self.child.id()));
        std::fs::create_dir_all(&folder).unwrap();
        let token = folder.join("token");
        std::fs::write(&token, ROOT).unwrap();
        Rig::with(|file| {
            let login = json!({ "token": format!("file:{}", token.display()) });
            let vault = json!({ "address": self.url, "login": login, "allow_mount_management": true, "timeout": "5s" });
            file["backends"] = json!({ "vault": { "vault": vault } });
            file["routes"][0]["backends"] = json!(["vault"]);
            file["mode"] = json!(mode);
            file["grants"] = json!([
                { "scope": "mcp.list", "allow": ["read"] },
                { "scope": "mcp.read", "allow": ["read", "read_sensitive"] },
                { "scope": "mcp.write", "allow": ["read", "read_sensitive", "write"] },
                { "scope": "mcp.admin", "allow": ["read", "read_sensitive", "write", "destroy"] },
            ]);
            adjust(&mut file["backends"]["vault"]["vault"]);
        })
        .await
    }
}

impl Drop for Bao {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn called(rig: &Rig, token: &str, name: &str, arguments: Value) -> Answer {
    rig.modern(token, "tools/call", json!({ "name": name, "arguments": arguments })).await
}

/// The result of a tool that must succeed.
async fn done(rig: &Rig, name: &str, arguments: Value) -> Value {
    let answer = called(rig, &rig.admin_token(), name, arguments).await;
    assert_eq!((answer.status, &answer.body["result"]["isError"]), (200, &json!(false)), "{name}: {}", answer.text);
    answer.body["result"].clone()
}

/// The words and the kind of a tool error.
async fn failed(rig: &Rig, name: &str, arguments: Value) -> (String, String) {
    let answer = called(rig, &rig.admin_token(), name, arguments).await;
    assert_eq!((answer.status, &answer.body["result"]["isError"]), (200, &json!(true)), "{name}: {}", answer.text);
    let kind = answer.body["result"]["_meta"]["io.wardgate/failure"]["kind"].as_str().unwrap().to_owned();
    (answer.result_text().to_owned(), kind)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_vault_tool_does_what_it_says_and_the_server_agrees() {
    let bao = Bao::start().await;
    let rig = bao.rig("full", |_| {}).await;
    // Mounts.
    done(&rig, "create_mount", json!({ "type": "kv2", "path": "team/keys", "description": "ours" })).await;
    done(&rig, "create_mount", json!({ "type": "kv", "path": "plain" })).await;
    let mounts = bao.read("sys/mounts").await;
    assert_eq!((&mounts["team/keys/"]["options"]["version"], &mounts["plain/"]["type"]), (&json!("2"), &json!("kv")));
    let (words, kind) = failed(&rig, "create_mount", json!({ "type": "kv2", "path": "plain" })).await;
    assert!(words.contains("already exists") && kind == "conflict", "{words}");
    let listed = done(&rig, "list_mounts", json!({})).await;
    let names: Vec<_> =
        listed["structuredContent"]["mounts"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert!(names.contains(&&json!("team/keys/")) && names.contains(&&json!("plain/")), "{names:?}");
    // Secrets, in both versions.
    for (mount, prefix) in [("team/keys", "team/keys/data"), ("plain", "plain")] {
        let at = |more: Value| {
            let mut arguments = json!({ "mount": mount, "path": "a/b" });
            arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            arguments
        };
        assert_eq!(done(&rig, "list_secrets", json!({ "mount": mount })).await["content"][0]["text"], "[]");
        done(&rig, "write_secret", at(json!({ "key": "one", "value": CANARY }))).await;
        done(&rig, "write_secret", at(json!({ "key": "two", "value": "2" }))).await;
        let there = bao.read(&format!("{prefix}/a/b")).await;
        let there = if mount == "plain" { there } else { there["data"].clone() };
        assert_eq!(there, json!({ "one": CANARY, "two": "2" }), "one key is written, the others stay");
        let read = done(&rig, "read_secret", at(json!({}))).await;
        assert_eq!(read["structuredContent"]["data"], there);
        let listed = done(&rig, "list_secrets", json!({ "mount": mount, "path": "/a/" })).await;
        assert_eq!(listed["structuredContent"]["secrets"], json!(["b"]));
        done(&rig, "delete_secret", at(json!({ "key": "two" }))).await;
        let read = done(&rig, "read_secret", at(json!({}))).await;
        assert_eq!(read["structuredContent"]["data"], json!({ "one": CANARY }));
        assert_eq!(failed(&rig, "delete_secret", at(json!({ "key": "two" }))).await.1, "not_found");
        done(&rig, "delete_secret", at(json!({}))).await;
        let (words, kind) = failed(&rig, "read_secret", at(json!({}))).await;
        assert_eq!(kind, "not_found");
        assert!(
            words.contains(if mount == "plain" { "not found at path" } else { "is deleted and cannot be read" }),
            "{words}"
        );
        assert_eq!(failed(&rig, "delete_secret", at(json!({}))).await.1, "not_found");
    }
    // Over a deleted version the next one is written.
    done(&rig, "write_secret", json!({ "mount": "team/keys", "path": "a/b", "key": "k", "value": "v" })).await;
    assert_eq!(bao.read("team/keys/data/a/b").await["metadata"]["version"], 4);
    let (words, _) = failed(&rig, "read_secret", json!({ "mount": "nowhere", "path": "x" })).await;
    assert!(words.contains("Use 'create_mount' with the type kv2"), "{words}");
    certificates(&bao, &rig).await;
    done(&rig, "delete_mount", json!({ "path": "plain" })).await;
    assert_eq!(bao.read("sys/mounts").await["plain/"], Value::Null);
    no_canary(&rig).await;
    rig.app.shutdown().await;
}

/// Roots, intermediates, roles and certificates.
async fn certificates(bao: &Bao, rig: &Rig) {
    done(rig, "enable_pki", json!({ "path": "pki" })).await;
    done(rig, "enable_pki", json!({ "path": "below", "max_ttl": "8760h" })).await;
    assert_eq!(bao.read("sys/mounts").await["below/"]["config"]["max_lease_ttl"], 8760 * 3600);
    assert_eq!(
        done(rig, "list_pki_issuers", json!({})).await["structuredContent"]["issuers"],
        json!({}),
        "empty is no error"
    );
    assert_eq!(done(rig, "list_pki_roles", json!({})).await["structuredContent"]["roles"], json!([]));
    let root = |name: &str| json!({ "type": "internal", "common_name": format!("{name} CA"), "issuer_name": name, "ttl": "8760h" });
    done(rig, "create_pki_issuer", root("first")).await;
    done(rig, "create_pki_issuer", root("second")).await;
    let mut below = root("middle");
    for (name, value) in [("mount", "below"), ("root_mount", "pki"), ("root_issuer", "second"), ("ttl", "30d")] {
        below[name] = json!(value);
    }
    let made = done(rig, "create_pki_issuer", below).await;
    assert!(made["structuredContent"]["certificate"].as_str().unwrap().contains("BEGIN CERTIFICATE"));
    let middle = bao.read("below/issuer/middle").await;
    let second = bao.read("pki/issuer/second").await;
    let chain = middle["ca_chain"].as_array().unwrap();
    assert!(chain.contains(&second["certificate"]), "the issuer that was named has signed it");
    let issuers = done(rig, "list_pki_issuers", json!({})).await["structuredContent"]["issuers"].clone();
    assert_eq!(issuers.as_object().unwrap().len(), 2);
    let read = done(rig, "read_pki_issuer", json!({ "issuer_name": "second" })).await;
    assert_eq!(read["structuredContent"]["issuer"]["certificate"], second["certificate"]);
    assert!(failed(rig, "read_pki_issuer", json!({ "issuer_name": "none" })).await.0.contains("No issuer found"));
    let role = json!({ "role_name": "web", "issuer_name": "second", "allow_any_name": false, "allowed_domains": "example.com, example.org" });
    done(rig, "create_pki_role", role).await;
    let role = bao.read("pki/roles/web").await;
    assert_eq!(
        (&role["issuer_ref"], &role["allowed_domains"]),
        (&json!("second"), &json!(["example.com", "example.org"]))
    );
    assert_eq!(done(rig, "list_pki_roles", json!({})).await["structuredContent"]["roles"], json!(["web"]));
    assert_eq!(done(rig, "read_pki_role", json!({ "role_name": "web" })).await["structuredContent"]["role"], role);
    let issue = json!({ "role_name": "web", "common_name": "a.example.com", "ttl": "1h" });
    let issued = done(rig, "issue_pki_certificate", issue.clone()).await["structuredContent"].clone();
    assert!(issued["private_key"].as_str().unwrap().contains("PRIVATE KEY"));
    assert_eq!(issued["issuing_ca"].as_str().unwrap().trim(), second["certificate"].as_str().unwrap().trim());
    let serial = issued["serial_number"].as_str().unwrap();
    assert_eq!(
        bao.read(&format!("pki/cert/{serial}")).await["certificate"].as_str().unwrap().trim(),
        issued["certificate"].as_str().unwrap().trim()
    );
    // Asked for wrapped, the key is in Vault and the token unwraps it once.
    let mut wrapped = issue;
    wrapped["wrap_ttl"] = json!("60s");
    let answer = done(rig, "issue_pki_certificate", wrapped).await;
    assert!(!answer.to_string().contains("PRIVATE KEY"));
    let token = answer["structuredContent"]["wrapped"]["token"].clone();
    let (status, inside) = bao.api("POST", "sys/wrapping/unwrap", json!({ "token": token })).await;
    assert!(status == 200 && inside["data"]["private_key"].is_string(), "{inside}");
    let (words, _) =
        failed(rig, "issue_pki_certificate", json!({ "role_name": "web", "common_name": "evil.test" })).await;
    assert!(words.contains("not allowed by this role"), "{words}");
    done(rig, "delete_pki_role", json!({ "role_name": "web" })).await;
    assert_eq!(bao.read("pki/roles/web").await, Value::Null);
    assert!(failed(rig, "read_pki_role", json!({ "role_name": "web" })).await.0.contains("No pki role found"));
}

/// What was secret is in no record, metric or status.
async fn no_canary(rig: &Rig) {
    let records: String = rig.records().iter().map(Value::to_string).collect();
    let metrics = rig.client.get(format!("{}/metrics", rig.admin)).send().await.unwrap().text().await.unwrap();
    for secret in [CANARY, ROOT] {
        assert!(!records.contains(secret) && !metrics.contains(secret), "a secret was written down");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_vault_tool_is_refused_above_the_mode_and_without_the_scope() {
    let bao = Bao::start().await;
    bao.write("secret/data/a", json!({ "data": { "k": "v" } })).await;
    let everything = bao.rig("full", |_| {}).await;
    let all = everything.modern(&everything.admin_token(), "tools/list", json!({})).await;
    let all: Vec<(String, String)> = all.body["result"]["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| {
            let hints = &tool["annotations"];
            let effect = match (hints["readOnlyHint"].as_bool().unwrap(), tool["name"].as_str().unwrap()) {
                (true, "read_secret") => "read_sensitive",
                (true, _) => "read",
                (false, name) if name.starts_with("delete_") => "destroy",
                (false, _) => "write",
            };
            (tool["name"].as_str().unwrap().to_owned(), effect.to_owned())
        })
        .collect();
    assert_eq!(all.len(), 16);
    let before = bao.read("sys/mounts").await;
    for (scope, allowed) in [
        ("mcp.list", &["read"][..]),
        ("mcp.read", &["read", "read_sensitive"]),
        ("mcp.write", &["read", "read_sensitive", "write"]),
    ] {
        let token = everything.issuer.token("somebody", scope, AUDIENCE);
        for (name, effect) in all.iter().filter(|(_, effect)| !allowed.contains(&effect.as_str())) {
            let answer = called(&everything, &token, name, json!({ "mount": "secret", "path": "a" })).await;
            assert_eq!(answer.code(), Some(-32602), "{scope} {name} ({effect}): {}", answer.text);
        }
    }
    everything.app.shutdown().await;
    for (mode, allowed) in
        [("read-only", &["read", "read_sensitive"][..]), ("non-destructive", &["read", "read_sensitive", "write"])]
    {
        let rig = bao.rig(mode, |_| {}).await;
        let listed = rig.modern(&rig.admin_token(), "tools/list", json!({})).await.tools();
        let mut expected: Vec<_> =
            all.iter().filter(|(_, effect)| allowed.contains(&effect.as_str())).map(|(name, _)| name.clone()).collect();
        expected.sort();
        assert_eq!(listed, expected, "{mode}");
        for (name, _) in all.iter().filter(|(name, _)| !expected.contains(name)) {
            let answer = called(&rig, &rig.admin_token(), name, json!({ "mount": "secret", "path": "a" })).await;
            assert_eq!(answer.code(), Some(-32602), "{mode} {name}: {}", answer.text);
        }
        rig.app.shutdown().await;
    }
    assert_eq!(bao.read("sys/mounts").await, before);
    assert_eq!(bao.read("secret/data/a").await["data"], json!({ "k": "v" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_read_only_mode_the_token_itself_cannot_write() {
    let bao = Bao::start().await;
    bao.write("secret/data/a", json!({ "data": { "k": "v" } })).await;
    bao.write("sys/mounts/pki", json!({ "type": "pki" })).await;
    let rig = bao.rig("read-only", |_| {}).await;
    let listed = rig.modern(&rig.admin_token(), "tools/list", json!({})).await.tools();
    assert_eq!(listed, READS);
    let read = done(&rig, "read_secret", json!({ "mount": "secret", "path": "a" })).await;
    assert_eq!(read["structuredContent"]["data"], json!({ "k": "v" }));
    done(&rig, "list_secrets", json!({ "mount": "secret" })).await;
    done(&rig, "list_pki_issuers", json!({})).await;
    done(&rig, "list_pki_roles", json!({})).await;
    // The server knows the one child: by its accessor its policies and its parent's are told apart.
    let accessors = bao.api("LIST", "auth/token/accessors", Value::Null).await.1["data"]["keys"].clone();
    let mut children = Vec::new();
    for accessor in accessors.as_array().unwrap() {
        let token = bao.write("auth/token/lookup-accessor", json!({ "accessor": accessor })).await["data"].clone();
        if token["display_name"].as_str().unwrap().contains("wardgate-read-only") {
            children.push(token["policies"].clone());
        }
    }
    assert_eq!(children, [json!(["wardgate-vault-read-only"])], "one child, with one policy");
    // A token like it is refused every write by the server.
    let made = bao
        .write("auth/token/create", json!({ "policies": ["wardgate-vault-read-only"], "no_default_policy": true }))
        .await;
    let child = made["auth"]["client_token"].as_str().unwrap().to_owned();
    for (method, path, body) in [
        ("POST", "secret/data/a", json!({ "data": { "k": "w" } })),
        ("DELETE", "secret/data/a", Value::Null),
        ("DELETE", "secret/metadata/a", Value::Null),
        ("POST", "secret/destroy/a", json!({ "versions": [1] })),
        ("POST", "sys/mounts/x", json!({ "type": "kv" })),
        ("DELETE", "sys/mounts/secret", Value::Null),
        ("POST", "pki/roles/x", json!({ "allow_any_name": true })),
        ("POST", "pki/root/generate/internal", json!({ "common_name": "x" })),
        ("POST", "auth/token/create", json!({})),
        ("POST", "sys/policies/acl/x", json!({ "policy": "" })),
    ] {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request =
            bao.client.request(method.clone(), format!("{}/v1/{path}", bao.url)).header("x-vault-token", &child);
        let status = request.json(&body).send().await.unwrap().status();
        assert_eq!(status, 403, "{method} {path}");
    }
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_argument_leaves_its_mount_and_mounts_that_are_not_allowed_are_out_of_reach() {
    let bao = Bao::start().await;
    bao.write("sys/policies/acl/precious", json!({ "policy": "path \"x\" { capabilities = [\"read\"] }" })).await;
    bao.write("sys/mounts/other", json!({ "type": "kv", "options": { "version": "2" } })).await;
    bao.write("other/data/a", json!({ "data": { "k": CANARY } })).await;
    let rig = bao.rig("full", |vault| vault["mounts"] = json!(["secret", "pki"])).await;
    for arguments in [
        json!({ "mount": "secret", "path": "../../sys/policies/acl/precious" }),
        json!({ "mount": "secret", "path": "a/../../b" }),
        json!({ "mount": "secret", "path": "a//b" }),
        json!({ "mount": "secret", "path": "a\u{0}b" }),
        json!({ "mount": "secret/../sys", "path": "policies/acl/precious" }),
        json!({ "mount": "sys", "path": "policies/acl/precious" }),
        json!({ "mount": "auth/token", "path": "accessors" }),
        json!({ "mount": "", "path": "a" }),
        json!({ "mount": "secret", "path": "a", "address": "http://evil.test" }),
        json!({ "mount": "secret", "path": "a", "namespace": "other" }),
    ] {
        for name in ["read_secret", "delete_secret"] {
            let (words, kind) = failed(&rig, name, arguments.clone()).await;
            assert_eq!(kind, "arguments", "{arguments}: {words}");
        }
    }
    for path in ["%2e%2e/%2e%2e/sys/policies/acl/precious", "..%2f..%2fsys%2fpolicies%2facl%2fprecious", "a?b=c#d"] {
        assert_eq!(
            failed(&rig, "read_secret", json!({ "mount": "secret", "path": path })).await.1,
            "not_found",
            "{path}"
        );
    }
    for (name, arguments) in [
        ("read_secret", json!({ "mount": "other", "path": "a" })),
        ("list_secrets", json!({ "mount": "other" })),
        ("write_secret", json!({ "mount": "other", "path": "a", "key": "k", "value": "w" })),
        ("delete_secret", json!({ "mount": "other", "path": "a" })),
        ("delete_mount", json!({ "path": "other" })),
        ("create_mount", json!({ "type": "kv", "path": "new" })),
    ] {
        let (words, kind) = failed(&rig, name, arguments).await;
        assert!(kind == "forbidden" && !words.contains(CANARY), "{name}: {words}");
    }
    let mounts = done(&rig, "list_mounts", json!({})).await;
    assert!(!mounts.to_string().contains("other/"), "{mounts}");
    assert_eq!(bao.read("other/data/a").await["data"], json!({ "k": CANARY }));
    assert!(bao.read("sys/policies/acl/precious").await["policy"].is_string());
    // A secrets tool reaches no other engine.
    bao.write("sys/mounts/pki", json!({ "type": "pki" })).await;
    assert_eq!(failed(&rig, "read_secret", json!({ "mount": "pki", "path": "ca" })).await.1, "arguments");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_write_at_the_same_time_lose_nothing() {
    let bao = Bao::start().await;
    let rig = bao.rig("full", |_| {}).await;
    let write = |number: usize| {
        let rig = &rig;
        async move {
            let arguments = json!({ "mount": "secret", "path": "shared", "key": format!("k{number}"), "value": "v" });
            let answer = called(rig, &rig.admin_token(), "write_secret", arguments).await;
            answer.body["result"]["isError"] == false
        }
    };
    let outcomes = futures_util::future::join_all((0..8).map(write)).await;
    let there = bao.read("secret/data/shared").await["data"].clone();
    for (number, done) in outcomes.into_iter().enumerate() {
        assert_eq!(
            there[format!("k{number}")] == "v",
            done,
            "what was said to be written is there, and nothing else: {there}"
        );
    }
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_is_sealed_stopped_or_slow_is_said_to_be() {
    let bao = Bao::start().await;
    bao.write("secret/data/a", json!({ "data": { "k": "v" } })).await;
    let rig = bao.rig("full", |vault| vault["timeout"] = json!("1s")).await;
    let read = || json!({ "mount": "secret", "path": "a" });
    done(&rig, "read_secret", read()).await;
    bao.signal("-STOP");
    let began = Instant::now();
    let (words, kind) = failed(&rig, "read_secret", read()).await;
    assert!(kind == "timeout" && began.elapsed() < Duration::from_secs(5), "{words}");
    bao.signal("-CONT");
    done(&rig, "read_secret", read()).await;
    let (status, _) = bao.api("POST", "sys/seal", json!({})).await;
    assert_eq!(status, 204);
    let (words, kind) = failed(&rig, "read_secret", read()).await;
    assert!(kind == "unavailable" && words.contains("sealed"), "{words}");
    drop(bao);
    let (words, kind) = failed(&rig, "read_secret", read()).await;
    assert!(kind == "unavailable" && words.contains("cannot be reached"), "{words}");
    no_canary(&rig).await;
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approle_logs_in_again_when_its_token_is_revoked_and_permission_denied_is_not_taken_for_that() {
    let bao = Bao::start().await;
    bao.write("secret/data/a", json!({ "data": { "k": "v" } })).await;
    bao.write("sys/auth/approle", json!({ "type": "approle" })).await;
    let policy = "path \"secret/data/a\" { capabilities = [\"read\"] }";
    bao.write("sys/policies/acl/app", json!({ "policy": policy })).await;
    bao.write("auth/approle/role/app", json!({ "token_policies": ["app"], "token_ttl": "1h" })).await;
    let role_id = bao.read("auth/approle/role/app/role-id").await["role_id"].clone();
    let secret_id = bao.write("auth/approle/role/app/secret-id", json!({})).await["data"]["secret_id"].clone();
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in [("role", &role_id), ("secret", &secret_id)] {
        std::fs::write(folder.path().join(name), value.as_str().unwrap()).unwrap();
    }
    let file = |name: &str| format!("file:{}", folder.path().join(name).display());
    let login = json!({ "approle": { "role_id": file("role"), "secret_id": file("secret") } });
    let rig = bao.rig("full", |vault| vault["login"] = login).await;
    let read = |path: &str| json!({ "mount": "secret", "path": path });
    done(&rig, "read_secret", read("a")).await;
    let (words, kind) = failed(&rig, "read_secret", read("b")).await;
    assert!(kind == "forbidden" && words.contains("secret/data/b"), "{words}");
    let logins =
        async || bao.api("LIST", "auth/token/accessors", Value::Null).await.1["data"]["keys"].as_array().unwrap().len();
    assert_eq!(logins().await, 2, "root and one login");
    // Revoked behind the gateway's back.
    bao.write("sys/leases/revoke-prefix/auth/approle/login", json!({})).await;
    done(&rig, "read_secret", read("a")).await;
    assert_eq!(logins().await, 2);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_jwt_each_caller_is_at_vault_who_they_are_and_nobody_is_anybody_else() {
    let bao = Bao::start().await;
    for (name, value) in [("alice", "hers"), ("bob", "his")] {
        bao.write(&format!("secret/data/{name}/a"), json!({ "data": { "k": value } })).await;
    }
    let rig = bao.rig("full", |vault| vault["login"] = json!({ "jwt": { "role": "agents" } })).await;
    bao.write("sys/auth/jwt", json!({ "type": "jwt" })).await;
    bao.write("auth/jwt/config", json!({ "jwks_url": format!("{}/jwks.json", rig.issuer.url) })).await;
    let accessor = bao.read("sys/auth").await["jwt/"]["accessor"].as_str().unwrap().to_owned();
    let own = format!("secret/data/{{{{identity.entity.aliases.{accessor}.name}}}}/*");
    bao.write("sys/policies/acl/own", json!({ "policy": format!("path \"{own}\" {{ capabilities = [\"read\"] }}") }))
        .await;
    let role = json!({
        "role_type": "jwt",
        "user_claim": "sub",
        "bound_audiences": [AUDIENCE],
        "bound_claims": { "sub": ["alice", "bob"] },
        "token_policies": ["own"],
        "token_ttl": "10m",
    });
    bao.write("auth/jwt/role/agents", role).await;
    let token = |name: &str| rig.admin_named(name);
    for _ in 0..3 {
        for (name, other, value) in [("alice", "bob", "hers"), ("bob", "alice", "his")] {
            let own =
                called(&rig, &token(name), "read_secret", json!({ "mount": "secret", "path": format!("{name}/a") }))
                    .await;
            assert_eq!(own.body["result"]["structuredContent"]["data"], json!({ "k": value }), "{}", own.text);
            let others = json!({ "mount": "secret", "path": format!("{other}/a") });
            let others = called(&rig, &token(name), "read_secret", others).await;
            assert_eq!(others.body["result"]["_meta"]["io.wardgate/failure"]["kind"], "forbidden", "{}", others.text);
        }
    }
    let carol = called(&rig, &token("carol"), "read_secret", json!({ "mount": "secret", "path": "alice/a" })).await;
    assert_eq!(
        (carol.status, &carol.body["error"]["data"]["reason"]),
        (403, &json!("exchange_denied")),
        "{}",
        carol.text
    );
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn official_clients_of_both_eras_use_vault_through_the_gateway() {
    let bao = Bao::start().await;
    bao.write("secret/data/a", json!({ "data": { "k": "v" } })).await;
    let rig = bao.rig("full", |_| {}).await;
    let token = rig.admin_token();
    let (list, call) = (
        json!({ "step": "list", "prefix": "read_", "must": ["read_secret", "read_pki_issuer", "read_pki_role"], "may": [] }),
        |step: &str, tool: &str, args: Value, text: &str| json!({ "step": step, "tool": tool, "args": args, "text": text }),
    );
    let plan = json!([
        { "step": "list", "prefix": list["prefix"], "must": list["must"], "may": list["may"] },
        call("call", "read_secret", json!({ "mount": "secret", "path": "a" }), "\"k\":\"v\""),
        call("call", "list_secrets", json!({ "mount": "secret" }), "[\"a\"]"),
    ]);
    let cells: Vec<Value> = ["legacy", "2026-07-28"]
        .iter()
        .map(|mode| json!({ "cell": mode, "url": rig.url(), "token": token, "mode": mode, "plan": plan }))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("cells");
    std::fs::write(&input, json!({ "at_once": 2, "cells": cells }).to_string()).unwrap();
    let mut command = Command::new(live::tool("WARDGATE_PYTHON"));
    command.arg(live::real("drive.py")).env("PYTHONDONTWRITEBYTECODE", "1").stdin(std::fs::File::open(&input).unwrap());
    let steps = live::lines(command).await;
    assert!(steps.len() >= 8, "{steps:?}");
    assert!(steps.iter().all(|step| step["ok"] == true), "{steps:#?}");
    rig.app.shutdown().await;
}
