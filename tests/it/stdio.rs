//! `wardgate stdio` as a client uses it: lines in, lines out, through a real gateway and in front of scripted servers.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use axum::http::HeaderMap;
use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::process::Child;
use tokio::process::ChildStdin;
use tokio::process::ChildStdout;
use tokio::process::Command;

use crate::harness::Rig;
use crate::referee::judge::judge;
use crate::referee::note::Note;
use crate::referee::note::Role;
use crate::referee::note::Side;
use crate::scripted;
use crate::scripted::Scripted;

/// The program and the two ends of its pipes.
struct Talk {
    child: Child,
    input: Option<ChildStdin>,
    lines: tokio::io::Lines<BufReader<ChildStdout>>,
    /// All lines of both, for the referee.
    notes: Vec<Note>,
}

impl Drop for Talk {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            judge(&self.notes).assert();
        }
    }
}

impl Talk {
    fn start(arguments: &[&str]) -> Talk {
        let mut child = Command::new(env!("CARGO_BIN_EXE_wardgate"))
            .arg("stdio")
            .args(arguments)
            .env("NO_PROXY", "*")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Talk { input: child.stdin.take(), child, lines, notes: Vec::new() }
    }

    async fn say(&mut self, line: &str) {
        self.notes.push(Note::line(Side::Clients, Role::Client, "stdio", line));
        let input = self.input.as_mut().expect("open");
        input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        input.flush().await.unwrap();
    }

    /// The next line; `None` at the end.
    async fn hear(&mut self) -> Option<Value> {
        let line = tokio::time::timeout(Duration::from_secs(30), self.lines.next_line()).await.expect("a line in 30 s");
        let line = line.unwrap()?;
        self.notes.push(Note::line(Side::Clients, Role::Server, "stdio", &line));
        Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")))
    }

    /// The answer with this id; what comes before it is collected.
    async fn answer(&mut self, id: &Value, before: &mut Vec<Value>) -> Value {
        loop {
            let line = self.hear().await.unwrap_or_else(|| panic!("ended without an answer to {id}: {before:?}"));
            if line["id"] == *id && line.get("method").is_none() {
                return line;
            }
            before.push(line);
        }
    }

    async fn ask(&mut self, id: Value, method: &str, params: Value) -> Value {
        self.say(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string()).await;
        self.answer(&id, &mut Vec::new()).await
    }

    async fn initialize(&mut self) -> Value {
        let params = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "it", "version": "1" } });
        let answer = self.ask(json!(0), "initialize", params).await;
        self.say(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
        answer
    }

    /// Closes standard input; gives what was still said, and the exit code.
    async fn end(mut self) -> (Vec<Value>, Option<i32>) {
        drop(self.input.take());
        let mut rest = Vec::new();
        while let Some(line) = self.hear().await {
            rest.push(line);
        }
        (rest, self.child.wait().await.unwrap().code())
    }
}

/// A file with the viewer's token.
fn token_file(folder: &Path, token: &str) -> String {
    let path = folder.join("token");
    std::fs::write(&path, format!("{token}\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

fn modern(mut params: Value) -> Value {
    params["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2026-07-28");
    params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({});
    params
}

fn names(answer: &Value) -> Vec<&str> {
    let tools = answer["result"]["tools"].as_array().unwrap_or_else(|| panic!("no tools: {answer}"));
    tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_client_gets_its_session_its_progress_and_a_goodbye_at_the_end() {
    let rig = Rig::start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = token_file(folder.path(), &rig.viewer());
    let mut talk = Talk::start(&[&rig.url(), "--bearer-file", &token]);
    assert_eq!(talk.initialize().await["result"]["protocolVersion"], "2025-11-25");
    let listed = talk.ask(json!("a"), "tools/list", json!({})).await;
    assert_eq!(names(&listed).len(), 3, "{listed}");
    let call =
        json!({ "name": "count_slowly", "arguments": { "to": 3, "pause_ms": 10 }, "_meta": { "progressToken": "p" } });
    talk.say(&json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call }).to_string()).await;
    let mut before = Vec::new();
    let answer = talk.answer(&json!(2), &mut before).await;
    assert!(answer["result"]["content"].is_array(), "{answer}");
    assert!(before.iter().any(|line| line["method"] == "notifications/progress"), "{before:?}");
    let hidden = talk.ask(json!(3), "tools/call", json!({ "name": "delete_note", "arguments": {} })).await;
    assert_eq!(hidden["error"]["code"], -32602, "{hidden}");
    // The stream of server messages is open, and is nothing to wait for at the end.
    rig.record(|record| record["method"] == "notifications/initialized").await;
    let (_, code) = talk.end().await;
    assert_eq!(code, Some(0));
    let goodbye = rig.record(|record| record["http_method"] == "DELETE").await;
    assert_eq!(goodbye["outcome"], "answered", "{goodbye}");
    let opened = rig.record(|record| record["http_method"] == "GET").await;
    assert_eq!(opened["subject"], "viewer");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_modern_client_cancels_by_line_and_the_gateway_sees_the_stream_close() {
    let rig = Rig::start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = token_file(folder.path(), &rig.viewer());
    let mut talk = Talk::start(&[&rig.url(), "--bearer-file", &token]);
    let listed = talk.ask(json!(1), "tools/list", modern(json!({}))).await;
    assert_eq!(names(&listed).len(), 3, "{listed}");
    let call =
        json!({ "name": "count_slowly", "arguments": { "to": 20, "pause_ms": 1000 }, "_meta": { "progressToken": 7 } });
    talk.say(&json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": modern(call) }).to_string()).await;
    let progress = talk.hear().await.unwrap();
    assert_eq!(progress["method"], "notifications/progress", "{progress}");
    // Others run beside it.
    let read = json!({ "name": "list_notes", "arguments": {} });
    let other = talk.ask(json!(3), "tools/call", modern(read)).await;
    assert!(other["result"].is_object(), "{other}");
    talk.say(
        &json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 2 } }).to_string(),
    )
    .await;
    let record = rig.record(|record| record["target"] == "count_slowly").await;
    assert_eq!(record["outcome"], "client_gone");
    // The id is free again, and nothing answers the cancelled request.
    let again = talk.ask(json!(2), "ping/unknown", modern(json!({}))).await;
    assert_eq!(again["error"]["code"], -32601, "{again}");
    let (rest, code) = talk.end().await;
    assert_eq!((rest.iter().filter(|line| line["id"] == 2).count(), code), (0, Some(0)));
    assert!(rig.records().iter().all(|record| record["method"] != "notifications/cancelled"), "closing says it");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_become_words_that_say_what_to_do() {
    let rig = Rig::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut talk = Talk::start(&[&rig.url()]);
    let refused = talk.ask(json!("x"), "tools/list", modern(json!({}))).await;
    let words = refused["error"]["message"].as_str().unwrap();
    assert!(words.contains("401") && words.contains("--bearer-file"), "{words}");
    assert_eq!(
        refused["error"]["data"]["resourceMetadata"],
        "http://gateway.test/.well-known/oauth-protected-resource/mcp"
    );
    for (line, code) in [("{", -32700), ("[]", -32600), (r#"{"jsonrpc":"2.0","id":1}"#, -32600)] {
        talk.say(line).await;
        assert_eq!(talk.hear().await.unwrap()["error"]["code"], code, "{line}");
    }
    assert_eq!(talk.end().await.1, Some(0));
    // The token is read anew for each request.
    let token = token_file(folder.path(), "nonsense");
    let mut talk = Talk::start(&[&rig.url(), "--bearer-file", &token]);
    let refused = talk.ask(json!(1), "tools/list", modern(json!({}))).await;
    assert!(refused["error"]["message"].as_str().unwrap().contains("renew it"), "{refused}");
    token_file(folder.path(), &rig.viewer());
    assert_eq!(names(&talk.ask(json!(2), "tools/list", modern(json!({}))).await).len(), 3);
    let id = talk.child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert_eq!(talk.child.wait().await.unwrap().code(), Some(0), "SIGTERM is a graceful end");
    let url = rig.url();
    rig.app.shutdown().await;
    let mut talk = Talk::start(&[&url, "--bearer-file", &token]);
    let refused = talk.ask(json!(1), "tools/list", modern(json!({}))).await;
    assert!(refused["error"]["message"].as_str().unwrap().contains("cannot be reached"), "{refused}");
    assert_eq!(talk.end().await.1, Some(0));
}

type Seen = Arc<Mutex<Vec<(String, HeaderMap, Value)>>>;

fn empty(status: u16) -> axum::response::Response {
    axum::response::Response::builder().status(status).body(axum::body::Body::empty()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_stream_is_taken_up_after_its_last_event_and_a_lost_session_is_said() {
    let seen = Seen::default();
    let server = Scripted::start({
        let seen = seen.clone();
        move |method, headers, message| {
            seen.lock().unwrap().push((method.to_string(), headers.clone(), message.clone()));
            let after = headers.get("last-event-id").and_then(|id| id.to_str().ok());
            let session = headers.get("mcp-session-id").is_some();
            match (method.as_str(), message["method"].as_str(), after) {
                (_, Some("initialize"), _) => {
                    let mut answer = scripted::result(message, json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": { "name": "odd", "version": "1" } }));
                    answer.headers_mut().insert("mcp-session-id", "s-1".parse().unwrap());
                    answer
                }
                // The call's stream breaks off after a position; its answer comes where it is taken up.
                (_, Some("tools/call"), _) => scripted::events("id: call-1\nretry: 10\ndata:\n\n".to_owned()),
                ("GET", _, Some("call-1")) => {
                    let answer = "{\ndata: \"jsonrpc\": \"2.0\",\ndata: \"id\": 5, \"result\": {\"content\": []}}";
                    scripted::events(format!("id: call-2\ndata: {answer}\n\n"))
                }
                // So does the stream of server messages.
                ("GET", _, None) => scripted::events(
                    "id: get-1\nretry: 10\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/tools/list_changed\"}\n\n".to_owned(),
                ),
                ("GET", _, Some("get-1")) => scripted::events(
                    "data: {\"jsonrpc\":\"2.0\",\"id\":\"srv\",\"method\":\"ping\"}\n\n".to_owned(),
                ),
                (_, Some("tools/list"), _) if session => empty(404),
                _ => empty(202),
            }
        }
    })
    .await;
    let mut talk = Talk::start(&[&server.url, "--header", "X-Team: blue"]);
    talk.initialize().await;
    let mut heard = vec![talk.hear().await.unwrap()];
    while !heard.iter().any(|line| line["method"] == "ping") {
        heard.push(talk.hear().await.unwrap());
    }
    assert_eq!(heard[0]["method"], "notifications/tools/list_changed");
    talk.say(r#"{"jsonrpc":"2.0","id":"srv","result":{}}"#).await;
    let params = json!({ "name": "x", "arguments": {} });
    talk.say(&json!({ "jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params }).to_string()).await;
    assert_eq!(talk.answer(&json!(5), &mut heard).await["result"], json!({ "content": [] }));
    let lost = talk.ask(json!(6), "tools/list", json!({})).await;
    assert!(lost["error"]["message"].as_str().unwrap().contains("initialize again"), "{lost}");
    assert_eq!(talk.end().await.1, Some(0));
    let seen = seen.lock().unwrap();
    let header = |headers: &HeaderMap, name: &str| headers.get(name).map(|v| v.to_str().unwrap().to_owned());
    for (method, headers, message) in seen.iter().filter(|(_, _, message)| message["method"] != "initialize") {
        assert_eq!(header(headers, "mcp-session-id").as_deref(), Some("s-1"), "{method} {message}");
        assert_eq!(header(headers, "mcp-protocol-version").as_deref(), Some("2025-06-18"), "{method} {message}");
        assert_eq!(header(headers, "x-team").as_deref(), Some("blue"));
    }
    assert!(seen.iter().any(|(_, _, message)| message["id"] == "srv" && message["result"] == json!({})));
    assert!(seen.iter().all(|(method, ..)| method != "DELETE"), "a lost session is not ended again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_headers_of_the_modern_era_are_written_from_the_body() {
    let seen = Seen::default();
    let server = Scripted::start({
        let seen = seen.clone();
        move |method, headers, message| {
            seen.lock().unwrap().push((method.to_string(), headers.clone(), message.clone()));
            match message["method"].as_str() {
                Some("tools/list") => scripted::result(message, json!({ "resultType": "complete", "tools": [
                    { "name": "größe", "inputSchema": { "type": "object", "properties": { "region": { "type": "string", "x-mcp-header": "Region" } } } },
                    { "name": "broken", "inputSchema": { "type": "object", "properties": { "a": { "type": "number", "x-mcp-header": "A" } } } },
                ], "ttlMs": 0, "cacheScope": "private" })),
                Some("resources/read") => {
                    let read = json!({ "resultType": "complete", "contents": [], "ttlMs": 0, "cacheScope": "private" });
                    scripted::result(message, read)
                }
                _ => scripted::result(message, json!({ "resultType": "complete", "content": [] })),
            }
        }
    })
    .await;
    let mut talk = Talk::start(&[&server.url]);
    assert_eq!(names(&talk.ask(json!(1), "tools/list", modern(json!({}))).await), ["größe"]);
    let call = modern(json!({ "name": "größe", "arguments": { "region": " north " } }));
    assert!(talk.ask(json!(2), "tools/call", call).await["result"].is_object());
    assert!(talk.ask(json!(3), "resources/read", modern(json!({ "uri": "a " }))).await["result"].is_object());
    assert_eq!(talk.end().await.1, Some(0));
    let seen = seen.lock().unwrap();
    let (_, headers, message) = &seen[2];
    assert_eq!(headers["mcp-name"], "=?base64?YSA=?=", "{message}");
    let (_, headers, _) = &seen[1];
    let sent = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(sent("mcp-protocol-version"), Some("2026-07-28"));
    assert_eq!(sent("mcp-method"), Some("tools/call"));
    assert_eq!(sent("mcp-name"), Some("=?base64?Z3LDtsOfZQ==?="));
    assert_eq!(sent("mcp-param-region"), Some("=?base64?IG5vcnRoIA==?="));
    assert_eq!(sent("mcp-session-id"), None);
    assert_eq!(seen.len(), 3, "nothing is ended where nothing was begun");
}

/// A certificate and its key in PEM, signed by the authority.
fn issued(
    authority: &rcgen::Issuer<'_, rcgen::KeyPair>,
    name: &str,
    usage: rcgen::ExtendedKeyUsagePurpose,
) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.extended_key_usages = vec![usage];
    (params.signed_by(&key, authority).unwrap().pem(), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_authority_is_trusted_by_flag_and_a_client_certificate_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    let authority = rcgen::Issuer::new(params, key);
    let server = issued(&authority, "server", rcgen::ExtendedKeyUsagePurpose::ServerAuth);
    let client = issued(&authority, "client", rcgen::ExtendedKeyUsagePurpose::ClientAuth);
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (ca, certificate, private) = (file("ca.pem", &pem), file("tls.crt", &server.0), file("tls.key", &server.1));
    let rig = Rig::with(|configuration| {
        configuration["listeners"][0]["tls"] =
            json!({ "certificate": certificate, "key": private, "client_ca": ca, "client_auth": "required" });
    })
    .await;
    let url = format!("https://localhost:{}/mcp", rig.base.rsplit(':').next().unwrap());
    let token = token_file(folder.path(), &rig.viewer());
    let (shown, shown_key) = (file("client.crt", &client.0), file("client.key", &client.1));
    let whole = ["--ca", &ca, "--client-cert", &shown, "--client-key", &shown_key];
    for (flags, works) in [(&whole[..], true), (&whole[..2], false), (&whole[2..], false)] {
        let mut arguments = vec![url.as_str(), "--bearer-file", &token];
        arguments.extend(flags);
        let mut talk = Talk::start(&arguments);
        let listed = talk.ask(json!(1), "tools/list", modern(json!({}))).await;
        assert_eq!(listed["result"]["tools"].as_array().map(Vec::len), works.then_some(3), "{flags:?}: {listed}");
        assert_eq!(talk.end().await.1, Some(0));
    }
    rig.app.shutdown().await;
}
