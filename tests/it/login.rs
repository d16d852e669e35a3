//! Logging in: official SDK clients and `wardgate login` at a real OpenID provider, by itself and through the facade.

use std::io::BufRead;
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use serde_json::Value;
use serde_json::json;

use crate::harness::Answer;
use crate::harness::Rig;
use crate::harness::client;
use crate::live::real;
use crate::live::tool;

const READS: [&str; 3] = ["count_slowly", "list_notes", "read_note"];

/// A real OpenID provider; ended when dropped.
struct Provider {
    child: Child,
    issuer: String,
}

impl Provider {
    fn start(arguments: &[&str]) -> Provider {
        let mut child = Command::new(tool("WARDGATE_NODE"))
            .arg(real("provider.mjs"))
            .args(arguments)
            .env("WARDGATE_NODE_MODULES", tool("WARDGATE_NODE_MODULES"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the provider starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: the provider said {line:?}"));
        Provider { child, issuer: said["issuer"].as_str().unwrap().to_owned() }
    }

    /// What Entra ID is like: nobody registers, PKCE is not spoken of.
    fn bare() -> Provider {
        Provider::start(&["--bare"])
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.end();
    }
}

/// A gateway that is known by its own address, and trusts the provider.
async fn gateway(provider: &Provider, login: Value, adjust: impl FnOnce(&mut Value)) -> Rig {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let base = format!("http://127.0.0.1:{port}");
    Rig::with(|file| {
        file["public_url"] = json!(base);
        let audience = [format!("{base}/mcp"), format!("{base}/write")];
        let mut oidc = json!({ "issuer": provider.issuer, "audience": audience });
        if !login.is_null() {
            oidc["login"] = login;
        }
        file["identity"] = json!([{ "oidc": oidc }]);
        adjust(file);
    })
    .await
}

fn facade() -> Value {
    json!({ "client_id": "public-client" })
}

/// Two routes that want different scopes.
fn two_routes(file: &mut Value) {
    file["backends"]["other"] = file["backends"]["workbench"].clone();
    file["routes"] =
        json!([{ "path": "/mcp", "backends": ["workbench"] }, { "path": "/write", "backends": ["other"] }]);
    file["grants"] = json!([
        { "scope": "mcp.read", "allow": ["read"], "tools": ["workbench/*"] },
        { "scope": "mcp.write", "allow": ["read", "write"], "tools": ["other/*"] },
    ]);
}

/// Runs an SDK client that logs in at these URLs, one after the other.
async fn sdk(which: &str, urls: &[&str]) -> Vec<Value> {
    let mut command = match which {
        "python" => {
            let mut command = tokio::process::Command::new(tool("WARDGATE_PYTHON"));
            command.arg(real("login.py")).env("PYTHONDONTWRITEBYTECODE", "1");
            command
        }
        version => {
            let mut command = tokio::process::Command::new(tool("WARDGATE_NODE"));
            command.arg(real("login.mjs")).arg(version);
            command
        }
    };
    command.env("WARDGATE_NODE_MODULES", tool("WARDGATE_NODE_MODULES")).env("WARDGATE_NODE", tool("WARDGATE_NODE"));
    let output = command.args(urls).output().await.expect("the client runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{which}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn official_clients_log_in_by_themselves_at_the_provider() {
    let provider = Provider::start(&[]);
    let rig = gateway(&provider, Value::Null, |_| {}).await;
    for which in ["python", "v1", "v2"] {
        let lines = sdk(which, &[&rig.url()]).await;
        assert_eq!(lines[0]["tools"], json!(READS), "{which}: {lines:?}");
        assert_eq!(lines[0]["logins"], 1, "{which}");
        assert_ne!(lines[0]["client_id"], "public-client", "{which}: registered anew");
        let record = rig.record(|record| record["target"] == "list_notes" && record["subject"] == "ada").await;
        assert_eq!(record["decision"], "allowed", "{which}");
    }
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn official_clients_log_in_by_themselves_through_the_facade() {
    let provider = Provider::bare();
    let rig = gateway(&provider, facade(), |_| {}).await;
    for which in ["python", "v1", "v2"] {
        let lines = sdk(which, &[&rig.url()]).await;
        assert_eq!(lines[0]["tools"], json!(READS), "{which}: {lines:?}");
        assert_eq!((&lines[0]["logins"], &lines[0]["client_id"]), (&json!(1), &json!("public-client")), "{which}");
    }
    let registered = rig.records().into_iter().filter(|record| record["status"] == 201).count();
    assert_eq!(registered, 3, "each registration has a record");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_lacks_a_scope_is_told_which_and_comes_back_with_it() {
    let provider = Provider::bare();
    let rig = gateway(&provider, facade(), two_routes).await;
    // The v1 client answers with its refresh token, which cannot give what was never granted, and stops there.
    for which in ["python", "v2"] {
        let lines = sdk(which, &[&rig.url(), &format!("{}/write", rig.base)]).await;
        let asked = |index: usize| lines[1]["scopes"][index].as_str().unwrap().to_owned();
        assert!(asked(0).contains("mcp.read") && !asked(0).contains("mcp.write"), "{which}: {lines:?}");
        assert!(asked(1).contains("mcp.write"), "{which}: {lines:?}");
        assert_eq!(lines[1]["logins"], 2, "{which}");
        assert_eq!(lines[1]["tools"].as_array().unwrap().len(), 5, "{which}: {lines:?}");
        let record = rig.record(|record| record["reason"] == "insufficient_scope").await;
        assert_eq!(record["status"], 403, "{which}");
    }
    rig.app.shutdown().await;
}

async fn register(rig: &Rig, redirects: Value) -> Answer {
    let place = rig.base.clone() + &registration_path(rig).await;
    let body = json!({ "redirect_uris": redirects }).to_string();
    let request = rig.client.post(place).header("content-type", "application/json").body(body);
    Answer::of(request.send().await.unwrap()).await
}

async fn document(rig: &Rig, path: &str) -> Answer {
    Answer::of(rig.client.get(format!("{}{path}", rig.base)).send().await.unwrap()).await
}

async fn registration_path(rig: &Rig) -> String {
    let resource = document(rig, "/.well-known/oauth-protected-resource/mcp").await;
    let identifier = resource.body["authorization_servers"][0].as_str().unwrap().to_owned();
    format!("{}/register", identifier.strip_prefix(&rig.base).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_facade_is_described_where_clients_look_and_sends_them_to_the_provider_itself() {
    let mut provider = Provider::bare();
    let rig = gateway(&provider, facade(), |_| {}).await;
    let resource = document(&rig, "/.well-known/oauth-protected-resource/mcp").await.body;
    let path = format!("/login/{}", provider.issuer.strip_prefix("http://").unwrap());
    let identifier = format!("{}{path}", rig.base);
    assert_eq!(resource["authorization_servers"], json!([identifier]));
    assert_eq!(resource["resource"], json!(rig.url()));
    for form in [
        format!("/.well-known/oauth-authorization-server{path}"),
        format!("/.well-known/openid-configuration{path}"),
        format!("{path}/.well-known/openid-configuration"),
    ] {
        let said = document(&rig, &form).await;
        assert_eq!((said.status, &said.body["issuer"]), (200, &json!(identifier)), "{form}");
        assert_eq!(said.body["authorization_endpoint"], json!(format!("{}/auth", provider.issuer)));
        assert_eq!(said.body["token_endpoint"], json!(format!("{}/token", provider.issuer)));
        assert_eq!(said.body["registration_endpoint"], json!(format!("{identifier}/register")));
        assert_eq!(said.body["code_challenge_methods_supported"], json!(["S256"]));
        assert_eq!(said.body.get("authorization_response_iss_parameter_supported"), None);
        assert_eq!(said.header("access-control-allow-origin"), Some("*"), "clients in browsers read it");
    }
    let root = document(&rig, "/.well-known/oauth-authorization-server").await;
    assert_eq!(root.body["issuer"], json!(rig.base), "clients that know no resource metadata ask at the root");
    for absent in ["/.well-known/oauth-authorization-server/other", "/login/other/.well-known/openid-configuration"] {
        assert_eq!(document(&rig, absent).await.status, 404, "{absent}");
    }
    // It goes on being described while the provider is away.
    provider.end();
    assert_eq!(document(&rig, &format!("/.well-known/oauth-authorization-server{path}")).await.status, 200);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_have_codes_of_the_facades_client_sent_elsewhere() {
    let provider = Provider::bare();
    let login = json!({ "client_id": "public-client", "redirect_uris": ["https://app.example/callback"] });
    let rig = gateway(&provider, login, |_| {}).await;
    let good = register(&rig, json!(["http://localhost:1234/callback", "https://app.example/callback"])).await;
    assert_eq!((good.status, &good.body["client_id"]), (201, &json!("public-client")));
    assert_eq!(good.body["token_endpoint_auth_method"], "none");
    assert_eq!(good.body.get("client_secret"), None);
    for bad in ["https://evil.example/callback", "https://app.example/callback2", "http://localhost.evil.example/"] {
        let refused = register(&rig, json!(["http://localhost/", bad])).await;
        assert_eq!((refused.status, &refused.body["error"]), (400, &json!("invalid_redirect_uri")), "{bad}");
    }
    let record = rig.record(|record| record["reason"] == "invalid_redirect_uri").await;
    assert_eq!((&record["outcome"], &record["status"]), (&json!("refused"), &json!(400)));
    // Neither codes nor tokens have a place here: nothing to consent to, nothing to confuse.
    let path = registration_path(&rig).await;
    for name in ["authorize", "token", "callback", "auth"] {
        let place = format!("{}{}", rig.base, path.replace("register", name));
        let get = rig.client.get(format!("{place}?code=c&state=s")).header("accept", "text/event-stream");
        assert_eq!(get.send().await.unwrap().status(), 404, "{name}");
    }
    let place = format!("{}{path}", rig.base);
    let large = rig.client.post(&place).header("content-type", "application/json").body(" ".repeat(20_000));
    assert_eq!(large.send().await.unwrap().status(), 413);
    let form = rig.client.post(&place).header("content-type", "application/x-www-form-urlencoded").body("a=b");
    assert_eq!(form.send().await.unwrap().status(), 415);
    assert_eq!(rig.client.get(&place).send().await.unwrap().status(), 405);
    let mut limited = 0;
    for _ in 0..70 {
        limited += usize::from(register(&rig, json!(["http://localhost/"])).await.status == 429);
    }
    assert!(limited > 5, "registrations of one address are limited");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_speaks_of_the_hosts_and_scopes_that_clients_must_use() {
    let provider = Provider::bare();
    let login = json!({ "client_id": "public-client", "scope_prefix": "api://gw/" });
    let rig = gateway(&provider, login, |file| {
        file["routes"] =
            json!([{ "path": "/mcp", "backends": ["workbench"] }, { "path": "/mcp", "host": "b.test", "backends": ["workbench"] }]);
        file["admission"] = json!({ "hosts": ["b.test"] });
    })
    .await;
    let at = |host: Option<&str>, path: &str| {
        let request = rig.client.get(format!("{}{path}", rig.base));
        let request = host.map_or(request.try_clone().unwrap(), |host| request.header("host", host));
        async move { Answer::of(request.send().await.unwrap()).await }
    };
    let well_known = "/.well-known/oauth-protected-resource/mcp";
    let plain = at(None, well_known).await.body;
    assert_eq!((&plain["resource"], &plain["scopes_supported"]), (&json!(rig.url()), &json!(["api://gw/mcp.read"])));
    let own = at(Some("b.test"), well_known).await.body;
    assert_eq!(own["resource"], json!(rig.url().replace("127.0.0.1", "b.test")));
    // A host that has no route of its own does not come to be named.
    let other = at(Some("localhost"), well_known).await.body;
    assert_eq!(other["resource"], json!(rig.url()));
    let request = rig.client.post(rig.url()).header("host", "b.test").header("content-type", "application/json");
    let request = request.header("accept", "application/json, text/event-stream").body("{}");
    let refused = Answer::of(request.send().await.unwrap()).await;
    let challenge = refused.header("www-authenticate").unwrap();
    let place = rig.base.replace("127.0.0.1", "b.test");
    assert!(challenge.contains(&format!("resource_metadata=\"{place}{well_known}\"")), "{challenge}");
    assert!(challenge.contains("scope=\"api://gw/mcp.read\""), "{challenge}");
    rig.app.shutdown().await;
}

/// A person's home, with a browser that logs in by itself.
struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    fn new() -> Home {
        let folder = tempfile::tempdir().unwrap();
        let script = format!("#!/bin/sh\nexec {} {} \"$1\"\n", tool("WARDGATE_NODE"), real("browser.mjs").display());
        let browser = folder.path().join("browser");
        std::fs::write(&browser, script).unwrap();
        std::fs::set_permissions(&browser, std::fs::Permissions::from_mode(0o755)).unwrap();
        Home { folder }
    }

    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_wardgate"));
        command
            .args(arguments)
            .env("XDG_CONFIG_HOME", self.folder.path().join("config"))
            .env("BROWSER", self.folder.path().join("browser"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.unwrap()
    }

    /// Runs to the end with this input.
    async fn feed(&self, arguments: &[&str], input: &str) -> Output {
        use tokio::io::AsyncWriteExt;
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        pipe.write_all(input.as_bytes()).await.unwrap();
        drop(pipe);
        child.wait_with_output().await.unwrap()
    }

    /// The files of logins.
    fn logins(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path().join("config/wardgate"));
        let paths = entries.into_iter().flatten().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|ending| ending == "json")).collect()
    }

    fn login(&self) -> Value {
        let [path] = &self.logins()[..] else { panic!("not one login: {:?}", self.logins()) };
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn list_request() -> String {
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": { "name": "it", "version": "1" },
    });
    json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": { "_meta": meta } }).to_string() + "\n"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_logs_in_by_the_browser_uses_it_over_stdio_and_logs_out() {
    for (provider, login) in [(Provider::start(&[]), Value::Null), (Provider::bare(), facade())] {
        let rig = gateway(&provider, login, |_| {}).await;
        let (home, url) = (Home::new(), rig.url());
        let before = home.feed(&["stdio", &url], &list_request()).await;
        assert!(out(&before).contains("wardgate login"), "{}", out(&before));
        let login = home.run(&["login", &url]).await;
        assert!(login.status.success(), "{}", err(&login));
        assert!(err(&login).contains("as ada") && out(&login).is_empty(), "{}", err(&login));
        let kept = home.login();
        let token = kept["access_token"].as_str().unwrap();
        assert!(!err(&login).contains(token), "the token is not shown");
        let used = home.feed(&["stdio", &url], &list_request()).await;
        assert!(out(&used).contains("list_notes"), "{}{}", out(&used), err(&used));
        let who = home.run(&["whoami", &url]).await;
        assert!(
            out(&who).contains("sub: ada") && out(&who).contains("accepted; 3 tools"),
            "{}{}",
            out(&who),
            err(&who)
        );
        assert!(!out(&who).contains(token));
        let gone = home.run(&["logout", &url]).await;
        assert!(out(&gone).contains("revoked") && home.logins().is_empty(), "{}{}", out(&gone), err(&gone));
        // What was revoked renews nothing.
        let fields = [
            ("grant_type", "refresh_token"),
            ("client_id", kept["client_id"].as_str().unwrap()),
            ("refresh_token", kept["refresh_token"].as_str().unwrap()),
        ];
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let request = client().post(kept["token_endpoint"].as_str().unwrap());
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(body);
        assert_eq!(request.send().await.unwrap().status(), 400);
        let again = home.run(&["logout", &url]).await;
        assert_eq!(again.status.code(), Some(1));
        rig.app.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_on_another_device_and_a_token_for_a_script() {
    use tokio::io::AsyncBufReadExt;
    let provider = Provider::bare();
    let rig = gateway(&provider, facade(), |_| {}).await;
    let (home, url) = (Home::new(), rig.url());
    let mut child = home.command(&["login", &url, "--device", "--print"]).spawn().unwrap();
    let mut lines = tokio::io::BufReader::new(child.stderr.take().unwrap()).lines();
    // Nothing says what the token is for: the provider of these tests then makes one for nobody.
    let vague = home.run(&["login", &url, "--print", "--no-resource"]).await;
    assert!(vague.status.success(), "{}", err(&vague));
    assert!(!out(&vague).contains('.'), "an opaque token: {}", out(&vague));
    let place = loop {
        let line = lines.next_line().await.unwrap().expect("the address of the device page");
        if line.contains("user_code=") {
            break line.trim().to_owned();
        }
    };
    let browser = tokio::process::Command::new(home.folder.path().join("browser")).arg(&place).output().await.unwrap();
    assert!(browser.status.success(), "{}", err(&browser));
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success());
    assert!(home.logins().is_empty(), "what is printed is not kept");
    let answer = rig.modern(out(&output).trim(), "tools/list", json!({})).await;
    assert_eq!(answer.tools(), READS);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_about_to_end_is_renewed_by_one_of_many() {
    // Shorter than what is renewed in advance: every use renews.
    let provider = Provider::start(&["--life", "30"]);
    let rig = gateway(&provider, Value::Null, |_| {}).await;
    let (home, url) = (Home::new(), rig.url());
    let login = home.run(&["login", &url]).await;
    assert!(login.status.success(), "{}", err(&login));
    let first = home.login();
    let request = list_request();
    let arguments = ["stdio", url.as_str()];
    let uses = (0..3).map(|_| home.feed(&arguments, &request));
    for used in futures_util::future::join_all(uses).await {
        assert!(out(&used).contains("list_notes"), "{}{}", out(&used), err(&used));
    }
    assert_ne!(home.login()["access_token"], first["access_token"]);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_that_is_not_of_the_server_that_was_asked_ends_the_login() {
    for iss in ["wrong", "missing"] {
        let provider = Provider::start(&["--iss", iss]);
        let rig = gateway(&provider, Value::Null, |_| {}).await;
        let home = Home::new();
        let login = home.run(&["login", &rig.url()]).await;
        assert_eq!(login.status.code(), Some(1), "{iss}: {}", err(&login));
        assert!(err(&login).contains("`iss`"), "{iss}: {}", err(&login));
        assert!(home.logins().is_empty(), "{iss}");
        rig.app.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_registers_and_pkce_is_not_promised_the_person_is_told_what_to_do() {
    let provider = Provider::bare();
    let rig = gateway(&provider, Value::Null, |_| {}).await;
    let home = Home::new();
    let login = home.run(&["login", &rig.url()]).await;
    assert!(err(&login).contains("--client-id") && err(&login).contains("`login`"), "{}", err(&login));
    let login = home.run(&["login", &rig.url(), "--client-id", "public-client"]).await;
    assert!(err(&login).contains("PKCE") && err(&login).contains("--device"), "{}", err(&login));
    rig.app.shutdown().await;
}

fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoami_tells_who_a_token_is_to_a_configuration_and_why_not() {
    let provider = Provider::start(&[]);
    let rig = gateway(&provider, Value::Null, |_| {}).await;
    let home = Home::new();
    let token = out(&home.run(&["login", &rig.url(), "--print"]).await).trim().to_owned();
    let configuration = |audience: &str| {
        json!({
            "listeners": [{ "address": "127.0.0.1:0" }],
            "public_url": rig.base,
            "identity": [{ "oidc": { "issuer": provider.issuer, "audience": audience } }],
            "mode": "non-destructive",
            "grants": [
                { "scope": "mcp.write", "allow": ["write"] },
                { "scope": "mcp.read", "allow": ["read"], "tools": ["notes/*"] },
                { "subject": "ada", "allow": ["read"] },
            ],
            "backends": { "notes": { "http": { "url": "http://127.0.0.1:1/mcp" } } },
            "routes": [{ "path": "/mcp", "backends": ["notes"] }],
        })
        .to_string()
    };
    let folder = home.folder.path();
    let right = file(folder, "right.yaml", &configuration(&rig.url()));
    let wrong = file(folder, "wrong.yaml", &configuration("https://other.test"));
    let kept = file(folder, "token", &token);
    let known = home.run(&["whoami", "-c", &right, "--token-file", &kept]).await;
    let said = out(&known);
    assert!(known.status.success(), "{said}{}", err(&known));
    for words in [
        "kind: User",
        "subject: ada",
        &format!("issuer: {}", provider.issuer),
        "scopes: mcp.read",
        "mode: non-destructive",
        "grant-2: scope mcp.read: read of notes/*",
        "grant-3: subject ada: read of all tools",
    ] {
        assert!(said.contains(words), "{words} is not in: {said}");
    }
    assert!(!said.contains("grant-1") && !said.contains(&token), "{said}");
    let unknown = home.feed(&["whoami", "-c", &wrong], &format!("Bearer {token}\n")).await;
    let said = out(&unknown);
    assert_eq!(unknown.status.code(), Some(1), "{said}");
    for words in ["not accepted", "`aud`", &format!("aud: {}", rig.url()), "aud: one of https://other.test", "sub: ada"]
    {
        assert!(said.contains(words), "{words} is not in: {said}");
    }
    assert!(!said.contains(&token), "{said}");
    rig.app.shutdown().await;
}
