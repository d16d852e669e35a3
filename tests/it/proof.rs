//! Proofs of who is calling beyond the token: DPoP made by another implementation, certificates over real TLS.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::process::Child;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rcgen::SanType;
use serde_json::Value;
use serde_json::json;

use crate::harness::AUDIENCE;
use crate::harness::Answer;
use crate::harness::Rig;
use crate::harness::modern_request;
use crate::live;

/// Keys and proofs made by Python's `cryptography`.
struct Prover {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Prover {
    fn start() -> Prover {
        let mut child = Command::new(live::tool("WARDGATE_PYTHON"))
            .arg(live::real("dpop.py"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python runs");
        let (asks, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Prover { child, asks, answers }
    }

    fn ask(&mut self, question: &Value) -> Value {
        writeln!(self.asks, "{question}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    fn thumbprint(&mut self, key: &str) -> String {
        self.ask(&json!({ "key": key }))["jkt"].as_str().unwrap().to_owned()
    }

    fn proof(&mut self, key: &str, token: &str, header: Value, claims: Value) -> String {
        let question = json!({ "key": key, "token": token, "header": header, "proof": claims });
        self.ask(&question)["proof"].as_str().unwrap().to_owned()
    }
}

impl Drop for Prover {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bound(rig: &Rig, cnf: Value) -> String {
    let mut claims = rig.issuer.claims("viewer", "mcp.read", AUDIENCE);
    claims["cnf"] = cnf;
    rig.issuer.token_with(claims)
}

async fn list(rig: &Rig, headers: &[(&str, &str)]) -> Answer {
    let mut request = modern_request(&rig.client, &rig.url(), "tools/list", json!({}));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Answer::of(request.send().await.unwrap()).await
}

async fn proven(rig: &Rig, token: &str, proof: &str) -> Answer {
    list(rig, &[("authorization", &format!("DPoP {token}")), ("dpop", proof)]).await
}

async fn metadata(rig: &Rig) -> Value {
    let url = format!("{}/.well-known/oauth-protected-resource/mcp", rig.base);
    rig.client.get(url).send().await.unwrap().json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn proofs_made_by_another_implementation_are_judged_alike() {
    let rig = Rig::start().await;
    let mut prover = Prover::start();
    let place = format!("{AUDIENCE}/mcp");
    for key in ["ES256", "ES384", "EdDSA", "RS256", "PS256"] {
        let token = bound(&rig, json!({ "jkt": prover.thumbprint(key) }));
        let proof = prover.proof(key, &token, json!({}), json!({ "htu": place }));
        let good = proven(&rig, &token, &proof).await;
        assert_eq!(good.status, 200, "{key}: {}", good.text);
        let again = proven(&rig, &token, &proof).await;
        assert_eq!(again.status, 401, "{key}: replayed");
        let challenge = again.header("www-authenticate").unwrap();
        let start = r#"DPoP algs="ES256 ES384 EdDSA PS256 RS256", error="invalid_dpop_proof""#;
        assert!(challenge.starts_with(start) && challenge.contains("resource_metadata="), "{challenge}");
        let fresh = prover.proof(key, &token, json!({}), json!({ "htu": place }));
        assert_eq!(proven(&rig, &token, &fresh).await.status, 200, "{key}: another one");
    }
    let token = bound(&rig, json!({ "jkt": prover.thumbprint("ES256") }));
    for (what, header, claims) in [
        ("another method", json!({}), json!({ "htu": place, "htm": "GET" })),
        ("the Host as it was sent", json!({}), json!({ "htu": rig.url() })),
        ("an old one", json!({}), json!({ "htu": place, "iat": 1_700_000_000 })),
        ("without the token's digest", json!({}), json!({ "htu": place, "ath": null })),
        ("without a name", json!({}), json!({ "htu": place, "jti": null })),
        ("as a plain JWT", json!({ "typ": "JWT" }), json!({ "htu": place })),
        ("without a key", json!({ "jwk": null }), json!({ "htu": place })),
        ("said to be of another kind", json!({ "alg": "ES384" }), json!({ "htu": place })),
    ] {
        let proof = prover.proof("ES256", &token, header, claims);
        let answer = proven(&rig, &token, &proof).await;
        assert_eq!(answer.status, 401, "{what}: {}", answer.text);
        assert!(answer.header("www-authenticate").unwrap().contains("invalid_dpop_proof"), "{what}");
    }
    let foreign = prover.proof("PS256", &token, json!({}), json!({ "htu": place }));
    assert_eq!(proven(&rig, &token, &foreign).await.status, 401, "another key's");
    let record = rig.record(|record| record["reason"] == "dpop_invalid").await;
    assert!(!record.to_string().contains(&foreign) && !record.to_string().contains(&token), "{record}");

    let as_bearer = list(&rig, &[("authorization", &format!("Bearer {token}"))]).await;
    assert_eq!(as_bearer.status, 401);
    let challenge = as_bearer.header("www-authenticate").unwrap();
    assert!(challenge.starts_with("DPoP ") && challenge.contains(r#"error="invalid_token""#), "{challenge}");
    assert_eq!(list(&rig, &[("authorization", &format!("Bearer {}", rig.viewer()))]).await.status, 200);
    let said = metadata(&rig).await;
    assert_eq!(said["dpop_signing_alg_values_supported"].as_array().map(Vec::len), Some(5), "{said}");
    assert_eq!(said.get("dpop_bound_access_tokens_required"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_demands_proofs_says_so_and_takes_nothing_less() {
    let rig = Rig::with(|file| file["identity"][0]["oidc"]["dpop"] = json!("required")).await;
    let nothing = list(&rig, &[]).await;
    let challenge = nothing.header("www-authenticate").unwrap();
    assert!(
        nothing.status == 401 && challenge.starts_with("DPoP algs=") && !challenge.contains("error"),
        "{challenge}"
    );
    let unbound = list(&rig, &[("authorization", &format!("Bearer {}", rig.viewer()))]).await;
    assert!(unbound.status == 401 && unbound.text.contains("must be bound to a key"), "{}", unbound.text);
    assert_eq!(metadata(&rig).await["dpop_bound_access_tokens_required"], true);
    let mut prover = Prover::start();
    let token = bound(&rig, json!({ "jkt": prover.thumbprint("EdDSA") }));
    let proof = prover.proof("EdDSA", &token, json!({}), json!({ "htu": format!("{AUDIENCE}/mcp") }));
    let good = proven(&rig, &token, &proof).await;
    assert_eq!(good.status, 200, "{}", good.text);
}

/// A certificate authority of the test's own.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A client with a certificate, and the digest that a token is bound to it by.
struct Client {
    client: reqwest::Client,
    thumbprint: String,
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "the test's authority");
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    fn issue(&self, name: SanType, usage: ExtendedKeyUsagePurpose) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![name];
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn client(&self, spiffe: &str) -> Client {
        let name = SanType::URI(spiffe.try_into().unwrap());
        let (certificate, key) = self.issue(name, ExtendedKeyUsagePurpose::ClientAuth);
        let identity = format!("{}{}", certificate.pem(), key.serialize_pem());
        let client = self.builder().identity(reqwest::Identity::from_pem(identity.as_bytes()).unwrap());
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate.der());
        Client { client: client.build().unwrap(), thumbprint: URL_SAFE_NO_PAD.encode(digest) }
    }

    fn builder(&self) -> reqwest::ClientBuilder {
        let root = reqwest::Certificate::from_pem(self.pem.as_bytes()).unwrap();
        reqwest::Client::builder().no_proxy().tls_certs_only([root])
    }
}

async fn ask(rig: &Rig, client: &reqwest::Client, token: Option<&str>) -> Answer {
    let url = format!("{}/mcp", rig.base.replace("http://127.0.0.1", "https://localhost"));
    let mut request = modern_request(client, &url, "tools/list", json!({}));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    Answer::of(request.send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_names_its_tenant_and_bound_tokens_need_it_over_real_tls() {
    crate::harness::prepare();
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let server = SanType::DnsName("localhost".try_into().unwrap());
    let (certificate, key) = authority.issue(server, ExtendedKeyUsagePurpose::ServerAuth);
    std::fs::write(path("tls.crt"), certificate.pem()).unwrap();
    std::fs::write(path("tls.key"), key.serialize_pem()).unwrap();
    std::fs::write(path("ca.pem"), &authority.pem).unwrap();
    let rig = Rig::with(|file| {
        file["listeners"][0]["tls"] = json!({
            "certificate": path("tls.crt"), "key": path("tls.key"), "client_ca": path("ca.pem"), "client_auth": "optional",
        });
        let rule = json!({ "spiffe": "spiffe://prod.example.com/tenant/{tenant}/agent/*", "roles": ["agent"] });
        file["identity"].as_array_mut().unwrap().push(json!({ "certificates": [rule] }));
        file["grants"].as_array_mut().unwrap().push(json!({ "role": "agent", "allow": ["read"] }));
    })
    .await;
    let contoso = authority.client("spiffe://prod.example.com/tenant/contoso/agent/one");
    let fabrikam = authority.client("spiffe://prod.example.com/tenant/fabrikam/agent/one");
    let stranger = authority.client("spiffe://prod.example.com/agent/one");
    let bare = authority.builder().build().unwrap();

    for (client, tenant) in [(&contoso, "contoso"), (&fabrikam, "fabrikam")] {
        let answer = ask(&rig, &client.client, None).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let id = answer.header("x-request-id").unwrap().to_owned();
        let record = rig.record(|record| record["request_id"] == id.as_str()).await;
        assert_eq!(record["tenant"], tenant, "{record}");
        assert_eq!(record["subject"], format!("spiffe://prod.example.com/tenant/{tenant}/agent/one"), "{record}");
    }
    assert_eq!(ask(&rig, &stranger.client, None).await.status, 401);
    assert_eq!(ask(&rig, &bare, None).await.status, 401);

    let token = bound(&rig, json!({ "x5t#S256": contoso.thumbprint }));
    // In both orders, so that the token is held to it when it is known too.
    for _ in 0..2 {
        for (client, status) in [
            (&contoso.client, 200),
            (&fabrikam.client, 401),
            (&bare, 401),
            (&stranger.client, 401),
            (&contoso.client, 200),
        ] {
            let answer = ask(&rig, client, Some(&token)).await;
            assert_eq!(answer.status, status, "{}", answer.text);
            if status == 401 {
                assert!(answer.text.contains("connect with the certificate"), "{}", answer.text);
            }
        }
    }
    assert_eq!(ask(&rig, &bare, Some(&rig.viewer())).await.status, 200, "an unbound one is a bearer token");
}
