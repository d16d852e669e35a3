//! Runs `tests/cases/threats/T*.yaml`: each names a threat, its pass condition, and the requests that prove it.
//!
//! A case is a gateway (a merge patch over the harness's configuration) and steps. A step sends one request: `rpc`
//! (built as the era demands), `body` (these bytes), or `raw` (these bytes on the socket); `expect` says what must come
//! back. Threats that no request can show name the tests that show them in `proved_by`; `tests/tidy.rs` checks that
//! those exist.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;

use crate::harness::AUDIENCE;
use crate::harness::Answer;
use crate::harness::Rig;
use crate::harness::modern_request;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    threat: String,
    condition: String,
    #[serde(default)]
    gateway: Value,
    #[serde(default)]
    steps: Vec<Step>,
    #[serde(default, rename = "proved_by")]
    _proved_by: Vec<String>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    what: String,
    /// `viewer` (default), `editor`, `admin`, `none`, or `{claims: …}`, `{unsigned: header}`, `{literal: text}`.
    #[serde(default)]
    auth: Value,
    #[serde(default)]
    era: Option<String>,
    #[serde(default)]
    verb: Option<String>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    rpc: Option<Rpc>,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    raw: Option<String>,
    /// Set (or, with null, take away) request headers.
    #[serde(default)]
    headers: BTreeMap<String, Option<String>>,
    /// Headers to send once more.
    #[serde(default)]
    twice: BTreeMap<String, String>,
    #[serde(default)]
    repeat: Option<usize>,
    expect: Expect,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rpc {
    method: String,
    #[serde(default)]
    params: Option<Value>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    status: Value,
    #[serde(default)]
    code: Option<i64>,
    #[serde(default)]
    has: Vec<String>,
    #[serde(default)]
    lacks: Vec<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// The audit record's `reason`.
    #[serde(default)]
    reason: Option<String>,
    /// The body is byte for byte that of this earlier step (from 1), the step's own name replaced.
    #[serde(default)]
    same_as: Option<usize>,
    /// The connection is closed after the answer (raw steps).
    #[serde(default)]
    closed: bool,
}

/// YAML to JSON, for plain data.
pub fn yaml(text: &str) -> Value {
    use saphyr::LoadableYamlNode;
    let mut documents = saphyr::Yaml::load_from_str(text).unwrap_or_else(|error| panic!("{error}"));
    convert(&documents.remove(0))
}

fn convert(node: &saphyr::Yaml<'_>) -> Value {
    match node {
        saphyr::Yaml::Value(saphyr::Scalar::Null) => Value::Null,
        saphyr::Yaml::Value(saphyr::Scalar::Boolean(value)) => Value::Bool(*value),
        saphyr::Yaml::Value(saphyr::Scalar::Integer(value)) => Value::from(*value),
        saphyr::Yaml::Value(saphyr::Scalar::FloatingPoint(value)) => Value::from(value.into_inner()),
        saphyr::Yaml::Value(saphyr::Scalar::String(value)) => Value::from(value.as_ref()),
        saphyr::Yaml::Sequence(items) => items.iter().map(convert).collect(),
        saphyr::Yaml::Mapping(members) => members
            .iter()
            .map(|(key, value)| (key.as_str().expect("keys are strings").to_owned(), convert(value)))
            .collect(),
        other => panic!("not plain YAML: {other:?}"),
    }
}

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(target.as_object_mut().unwrap().entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn cases() -> Vec<(String, Case)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/threats");
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let case = serde_json::from_value(yaml(&std::fs::read_to_string(&path).unwrap()))
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            (name, case)
        })
        .collect();
    found.sort_by(|left, right| left.0.cmp(&right.0));
    found
}

fn token(rig: &Rig, auth: &Value) -> Option<String> {
    match auth {
        Value::Null => Some(rig.viewer()),
        Value::String(name) => match name.as_str() {
            "viewer" => Some(rig.viewer()),
            "editor" => Some(rig.editor()),
            "admin" => Some(rig.admin_token()),
            "none" => None,
            other => panic!("nobody is called {other}"),
        },
        auth => {
            let mut claims = rig.issuer.claims("viewer", "mcp.read", AUDIENCE);
            merge(&mut claims, auth.get("claims").unwrap_or(&Value::Object(serde_json::Map::new())));
            if let Some(literal) = auth.get("literal") {
                return Some(literal.as_str().unwrap().to_owned());
            }
            if let Some(header) = auth.get("unsigned") {
                let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
                return Some(format!("{}.{}.", part(header), part(&claims)));
            }
            Some(rig.issuer.token_with(claims))
        }
    }
}

async fn send(rig: &Rig, step: &Step) -> (Answer, bool) {
    let token = token(rig, &step.auth);
    let host = rig.base.trim_start_matches("http://");
    let fill = |text: &str| {
        text.replace("${host}", host).replace("${token}", token.as_deref().unwrap_or("")).replace("${base}", &rig.base)
    };
    if let Some(raw) = &step.raw {
        return exchange(host, &fill(raw)).await;
    }
    let url = format!("{}{}", rig.base, step.path.as_deref().unwrap_or("/mcp"));
    let verb = step.verb.as_deref().unwrap_or("POST").parse().unwrap();
    let mut request = match (&step.rpc, step.era.as_deref()) {
        (Some(rpc), None | Some("modern")) => {
            modern_request(&rig.client, &url, &rpc.method, rpc.params.clone().unwrap_or_else(|| serde_json::json!({})))
        }
        (rpc, _) => {
            let body = match rpc {
                Some(rpc) => serde_json::json!({ "jsonrpc": "2.0", "id": "q-1", "method": rpc.method, "params": rpc.params.clone().unwrap_or_else(|| serde_json::json!({})) }).to_string(),
                None => step.body.as_deref().map(&fill).unwrap_or_default(),
            };
            let request = rig.client.request(verb, &url).header("accept", "application/json, text/event-stream");
            if body.is_empty() { request } else { request.header("content-type", "application/json").body(body) }
        }
    };
    if let Some(token) = &token {
        request = request.bearer_auth(token);
    }
    let mut request = request.build().unwrap();
    if let (Some(_), Some(body)) = (&step.rpc, &step.body) {
        *request.body_mut() = Some(fill(body).into());
    }
    for (name, value) in &step.headers {
        let name: http::HeaderName = name.parse().unwrap();
        match value {
            Some(value) => drop(request.headers_mut().insert(name, fill(value).parse().unwrap())),
            None => drop(request.headers_mut().remove(name)),
        }
    }
    for (name, value) in &step.twice {
        request.headers_mut().append(name.parse::<http::HeaderName>().unwrap(), fill(value).parse().unwrap());
    }
    (Answer::of(rig.client.execute(request).await.unwrap()).await, false)
}

/// These bytes on a fresh connection; reads until the other side closes or is silent.
async fn exchange(host: &str, raw: &str) -> (Answer, bool) {
    let mut socket = tokio::net::TcpStream::connect(host).await.unwrap();
    let bytes = raw.replace("\\r", "\r").replace("\\n", "\n").replace("\\0", "\0").replace("\\t", "\t");
    // The gateway may answer and close before it has read all.
    let _ = socket.write_all(bytes.as_bytes()).await;
    let mut got = Vec::new();
    let closed = loop {
        let mut chunk = [0; 4096];
        match tokio::time::timeout(Duration::from_millis(1500), socket.read(&mut chunk)).await {
            Ok(Ok(0) | Err(_)) => break true,
            Ok(Ok(n)) => got.extend_from_slice(&chunk[..n]),
            Err(_) => break false,
        }
    };
    let text = String::from_utf8_lossy(&got).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let headers = head
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let body_json = serde_json::from_str(body).unwrap_or_default();
    (Answer { status, headers, text: body.to_owned(), body: body_json }, closed)
}

fn judge(step: &Step, answer: &Answer, closed: bool, earlier: &[Answer]) -> Vec<String> {
    let expect = &step.expect;
    let mut wrong = Vec::new();
    let statuses: Vec<u64> = expect.status.as_array().map_or_else(
        || vec![expect.status.as_u64().unwrap()],
        |all| all.iter().map(|one| one.as_u64().unwrap()).collect(),
    );
    if !statuses.contains(&u64::from(answer.status)) {
        wrong.push(format!("status {} instead of {statuses:?}", answer.status));
    }
    if expect.code.is_some() && answer.code() != expect.code {
        wrong.push(format!("code {:?} instead of {:?}", answer.code(), expect.code));
    }
    wrong.extend(expect.has.iter().filter(|text| !answer.text.contains(*text)).map(|text| format!("lacks `{text}`")));
    let whole = format!("{:?}{}", answer.headers, answer.text);
    wrong.extend(expect.lacks.iter().filter(|text| whole.contains(*text)).map(|text| format!("has `{text}`")));
    for (name, part) in &expect.headers {
        if !answer.header(name).is_some_and(|value| value.contains(part)) {
            wrong.push(format!("header {name} is {:?}, which lacks `{part}`", answer.header(name)));
        }
    }
    if expect.closed && !closed {
        wrong.push("the connection stays open".into());
    }
    if let Some(other) = expect.same_as.map(|number| &earlier[number - 1]) {
        let name = |answer: &Answer| {
            answer.body["error"]["message"]
                .as_str()
                .and_then(|words| words.rsplit(' ').next())
                .unwrap_or_default()
                .to_owned()
        };
        let (mine, theirs) = (name(answer), name(other));
        if answer.text.replace(&mine, "NAME") != other.text.replace(&theirs, "NAME") || answer.status != other.status {
            wrong.push(format!("differs from step {:?}: {}", expect.same_as, other.text));
        }
    }
    wrong
}

async fn run(name: &str, case: &Case) -> Vec<String> {
    assert!(
        case.condition.len() > 10 && name.starts_with(&case.threat),
        "{name}: say the condition, and be named by the threat"
    );
    if case.steps.is_empty() {
        return Vec::new();
    }
    let rig = Rig::with(|file| {
        if !case.gateway.is_null() {
            merge(file, &case.gateway)
        }
    })
    .await;
    let mut wrong = Vec::new();
    let mut answers = Vec::new();
    for step in &case.steps {
        for _ in 1..step.repeat.unwrap_or(1) {
            send(&rig, step).await;
        }
        let (answer, closed) = send(&rig, step).await;
        wrong.extend(judge(step, &answer, closed, &answers).into_iter().map(|what| {
            format!("{name}: {}: {what}\n    {} {:?} {}", step.what, answer.status, answer.headers, answer.text)
        }));
        if let Some(reason) = &step.expect.reason {
            let id = answer.header("x-request-id").unwrap_or_default().to_owned();
            let record = rig.record(|record| id.is_empty() || record["request_id"] == id.as_str()).await;
            if record["reason"] != reason.as_str() && record["denial"] != reason.as_str() {
                wrong.push(format!(
                    "{name}: {}: recorded as {} / {}, not {reason}",
                    step.what, record["reason"], record["denial"]
                ));
            }
        }
        answers.push(answer);
    }
    rig.app.shutdown().await;
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_threat_case_holds() {
    let mut wrong = Vec::new();
    for (name, case) in cases() {
        wrong.extend(run(&name, &case).await);
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
