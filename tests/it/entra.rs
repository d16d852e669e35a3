//! An identity provider in the shape of Entra (`tests/real/entra.mjs`), an upstream that says whose token it got, and a
//! gateway between them.

use std::io::BufRead;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;

use axum::http::HeaderMap;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

use crate::harness::Rig;
use crate::live;
use crate::scripted;
use crate::scripted::Scripted;

/// The gateway's app registration.
pub const CLIENT: &str = "11111111-2222-3333-4444-555555555555";
pub const SCOPE: &str = "api://notes/.default";

/// A running provider; ended when dropped.
pub struct Entra {
    pub url: String,
    /// The same on loopback, without TLS.
    pub plain: String,
    pub folder: TempDir,
    child: Child,
    client: reqwest::Client,
}

impl Entra {
    pub fn start() -> Entra {
        crate::harness::prepare();
        let folder = tempfile::tempdir().unwrap();
        certificates(folder.path());
        let mut child = Command::new(live::tool("WARDGATE_NODE"))
            .arg(live::real("entra.mjs"))
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the provider starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said = line.trim().strip_prefix("LISTENING ").and_then(|urls| urls.split_once(' '));
        let (url, plain) = said.unwrap_or_else(|| panic!("the provider said {line:?}"));
        let ca = reqwest::Certificate::from_pem(&std::fs::read(folder.path().join("ca.pem")).unwrap()).unwrap();
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([ca]).build().unwrap();
        Entra { url: url.to_owned(), plain: plain.to_owned(), folder, child, client }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn authority(&self) -> String {
        format!("{}/contoso", self.url)
    }

    /// Settings, counters and forms.
    pub async fn control(&self, body: Value) -> Value {
        let sent = self.client.post(format!("{}/control", self.url)).body(body.to_string()).send().await.unwrap();
        sent.json().await.unwrap()
    }

    pub async fn set(&self, settings: Value) {
        self.control(json!({ "set": settings })).await;
    }

    /// How often a token was issued for this user.
    pub async fn exchanges(&self, user: &str) -> u64 {
        self.control(json!({})).await["exchanges"][user].as_u64().unwrap_or(0)
    }

    pub async fn forms(&self) -> Vec<Value> {
        self.control(json!({})).await["forms"].as_array().unwrap().clone()
    }

    /// Tokens for the gateway.
    pub async fn tokens(&self, users: &[String]) -> Vec<String> {
        let tokens = self.control(json!({ "tokens": users })).await;
        tokens.as_array().unwrap().iter().map(|token| token.as_str().unwrap().to_owned()).collect()
    }

    pub async fn token(&self, user: &str) -> String {
        self.token_with(user, json!({})).await
    }

    pub async fn token_with(&self, user: &str, claims: Value) -> String {
        let tokens = self.control(json!({ "tokens": [{ "user": user, "claims": claims }] })).await;
        tokens[0].as_str().unwrap().to_owned()
    }

    /// The credential most tests want.
    pub fn on_behalf_of(&self) -> Value {
        let secret = self.at("secret");
        std::fs::write(&secret, "s3cret\n").unwrap();
        json!({
            "on_behalf_of": {
                "authority": self.url, "tenant": "contoso", "scope": SCOPE,
                "client": { "id": CLIENT, "secret": format!("file:{}", secret.display()) },
            },
            "ca": self.at("ca.pem"),
        })
    }

    /// A gateway that believes this provider, in front of an upstream with this credential.
    pub async fn rig(&self, upstream: &str, era: &str, credential: Value) -> Rig {
        Rig::with(|file| self.adjust(file, upstream, era, credential)).await
    }

    pub fn adjust(&self, file: &mut Value, upstream: &str, era: &str, credential: Value) {
        let issuer = format!("{}/contoso/v2.0", self.url);
        let audience = json!([CLIENT, "api://second"]);
        file["identity"] =
            json!([{ "oidc": { "issuer": issuer, "audience": audience, "jwks_file": self.at("jwks.json") } }]);
        file["backends"] = json!({ "notes": { "http": { "url": upstream }, "trust_annotations": true, "era": era, "credential": credential } });
        file["routes"][0]["backends"] = json!(["notes"]);
    }
}

impl Drop for Entra {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `ca.pem`, `tls.crt` and `tls.key` for localhost; `client.crt` and `client.key` (RSA) of the gateway.
fn certificates(folder: &std::path::Path) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "test authority of an identity provider");
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(folder.join("ca.pem"), certificate.pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    std::fs::write(folder.join("tls.crt"), leaf.pem()).unwrap();
    std::fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=gateway", "-keyout"])
        .arg(folder.join("client.key"))
        .arg("-out")
        .arg(folder.join("client.crt"))
        .stderr(Stdio::null())
        .status();
    assert!(made.is_ok_and(|status| status.success()), "openssl makes a key and a certificate");
}

/// What an upstream saw: the method, and the token's content, or how it was not one of the provider's.
pub type Seen = Arc<Mutex<Vec<(String, Value)>>>;

/// What is in a token of the provider, or `null` and the header for anything else.
pub fn content(headers: &HeaderMap) -> Value {
    let sent = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let encoded = sent.strip_prefix("Bearer t.").unwrap_or_default();
    let bytes = URL_SAFE_NO_PAD.decode(encoded).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_else(|_| json!({ "foreign": sent }))
}

/// An upstream that answers each call with what was in its token, unless `refuse` has an answer of its own.
pub async fn upstream(refuse: impl Fn(&Value) -> Option<Response> + Send + Sync + 'static) -> (Scripted, Seen) {
    let seen = Seen::default();
    let upstream = Scripted::start({
        let seen = seen.clone();
        move |_, headers, message| {
            let method = message["method"].as_str().unwrap_or_default().to_owned();
            let token = content(headers);
            seen.lock().unwrap().push((method.clone(), token.clone()));
            if let Some(refused) = refuse(&token) {
                return refused;
            }
            match method.as_str() {
                "tools/list" => scripted::result(message, scripted::two_tools()),
                "initialize" => {
                    let hello = json!({ "protocolVersion": "2025-11-25", "capabilities": { "tools": {} }, "serverInfo": { "name": "s", "version": "1" } });
                    let mut answer = scripted::result(message, hello);
                    answer.headers_mut().insert("mcp-session-id", "session-1".parse().unwrap());
                    answer
                }
                _ if message["id"].is_null() => Response::builder().status(202).body(axum::body::Body::empty()).unwrap(),
                _ => {
                    let text = token.to_string();
                    let content = json!([{ "type": "text", "text": text }]);
                    scripted::result(message, json!({ "resultType": "complete", "content": content }))
                }
            }
        }
    })
    .await;
    (upstream, seen)
}
