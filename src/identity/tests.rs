//! `Identity::verify` from outside: real keys, real tokens, a small issuer on loopback.

mod chaos;
mod entra;
mod issuer;
mod keys;
mod proofs;
mod tokens;

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use jsonwebtoken::Algorithm;
use jsonwebtoken::EncodingKey;
use ring::rand::SystemRandom;
use ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
use ring::signature::EcdsaKeyPair;
use ring::signature::KeyPair;
use serde_json::Value;
use serde_json::json;

use super::*;
use crate::exchange::Peer;
use crate::exchange::RequestId;
use crate::exchange::Verb;
use crate::principal::Kind;

const ISSUER: &str = "https://a.example";
const AUDIENCE: &str = "https://gw.example/mcp";

/// The wall clock of the tests, in seconds since the epoch.
const NOW: i64 = 1_800_000_000;

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn wall(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds as u64)
}

/// An ES256 key with its public half as a JWK.
struct Signer {
    kid: String,
    key: EncodingKey,
    jwk: Value,
}

impl Signer {
    fn new(kid: &str) -> Signer {
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).expect("key");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref(), &SystemRandom::new())
            .expect("key");
        let public = pair.public_key().as_ref();
        let jwk = json!({ "kty": "EC", "crv": "P-256", "kid": kid, "x": b64(&public[1..33]), "y": b64(&public[33..]) });
        Signer { kid: kid.into(), key: EncodingKey::from_ec_der(der.as_ref()), jwk }
    }

    fn sign_text(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", b64(header), b64(payload));
        let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &self.key, Algorithm::ES256).expect("signature");
        format!("{signed}.{signature}")
    }

    /// A good token with these changes; a member that is changed to null is left out.
    fn token(&self, header: &Value, claims: &Value) -> String {
        let mut whole = json!({ "alg": "ES256", "typ": "at+jwt", "kid": self.kid });
        merge(&mut whole, header);
        self.sign_text(&whole.to_string(), &payload(claims))
    }

    fn good(&self) -> String {
        self.token(&json!({}), &json!({}))
    }
}

fn payload(changes: &Value) -> String {
    let mut claims = json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": NOW - 60, "exp": NOW + 600 });
    merge(&mut claims, changes);
    claims.to_string()
}

fn merge(into: &mut Value, changes: &Value) {
    let into = into.as_object_mut().expect("object");
    for (name, value) in changes.as_object().expect("object") {
        match value {
            Value::Null => into.remove(name),
            value => into.insert(name.clone(), value.clone()),
        };
    }
}

fn jwks(keys: &[&Value]) -> String {
    json!({ "keys": keys }).to_string()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

fn issuer(name: &str, keys: Keys) -> Issuer {
    Issuer {
        issuer: name.into(),
        audiences: vec!["other".into(), AUDIENCE.into()],
        keys,
        algorithms: vec![Algorithm::ES256, Algorithm::RS256],
        leeway: Duration::from_secs(30),
        tenant_claims: vec!["tid".into()],
        groups_claim: "groups".into(),
        certificate_bound: Demand::Optional,
        dpop: Demand::Optional,
    }
}

fn with_issuers(issuers: Vec<Issuer>) -> Identity {
    let public_url = Url::parse("https://gw.example").ok();
    Identity::new(Config { issuers, public_url, ..Config::default() }).expect("identity")
}

/// An identity that trusts one issuer, whose keys are in a file.
fn trusting(keys: &[&Value]) -> Identity {
    let file = file(&jwks(keys));
    with_issuers(vec![issuer(ISSUER, Keys::File(file.path().into()))])
}

fn request(headers: &[(&str, &str)]) -> Request {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("name");
        map.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("value"));
    }
    let started = Instant::now();
    Request {
        id: RequestId(1),
        verb: Verb::Post,
        host: "gw.example".into(),
        path: "/mcp".into(),
        headers: map,
        body: bytes::Bytes::new(),
        peer: Arc::new(Peer::default()),
        at: wall(NOW),
        started,
        deadline: started + Duration::from_secs(60),
    }
}

fn bearing(token: &str) -> Request {
    request(&[("authorization", &format!("Bearer {token}"))])
}

fn with_certificate(mut request: Request, certificate: ClientCertificate) -> Request {
    request.peer = Arc::new(Peer { certificate: Some(certificate), ..Peer::default() });
    request
}

async fn accepted(identity: &Identity, request: &Request) -> Arc<Principal> {
    identity.verify(request).await.expect("accepted")
}

/// The words of the refusal.
async fn refused(identity: &Identity, request: &Request) -> String {
    match identity.verify(request).await {
        Err(Error::Invalid { description }) => description,
        other => panic!("must be refused as invalid, got {other:?}"),
    }
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn agent_certificate() -> ClientCertificate {
    ClientCertificate {
        subject: "CN=agent".into(),
        dns_names: vec!["agent.example.com".into()],
        fingerprint: "ab".repeat(32),
        not_after: NOW + 1000,
        ..ClientCertificate::default()
    }
}

fn dns_rule() -> CertificateRule {
    let pattern = Pattern::new("*.example.com", Names::Dns).expect("pattern");
    CertificateRule {
        matches: CertificateMatch::Dns(pattern),
        scopes: set(&["mcp.read"]),
        roles: set(&[]),
        groups: set(&[]),
        tenant: Tenant::None,
    }
}

#[tokio::test]
async fn without_any_identity_nobody_is_let_in() {
    let identity = Identity::new(Config::default()).expect("identity");
    assert_eq!(identity.verify(&request(&[])).await.unwrap_err(), Error::Missing);
    let signer = Signer::new("one");
    assert_eq!(refused(&identity, &bearing(&signer.good())).await, "bearer tokens are not accepted here");
    let key = format!("wgk_{}", "A".repeat(43));
    assert_eq!(refused(&identity, &request(&[("x-api-key", &key)])).await, "API keys are not accepted here");
    assert_eq!(refused(&identity, &bearing(&key)).await, "API keys are not accepted here");
}

#[tokio::test]
async fn anonymous_is_for_requests_without_a_credential_only() {
    let config = Config { anonymous: Some(set(&["mcp.read"])), ..Config::default() };
    let identity = Identity::new(config).expect("identity");
    let principal = accepted(&identity, &request(&[])).await;
    assert_eq!((principal.method, principal.issuer.as_str()), (Method::Anonymous, "anonymous"));
    assert_eq!(principal.scopes, set(&["mcp.read"]));
    assert_eq!(principal.expires_at(), None);
    refused(&identity, &bearing("x")).await;
    refused(&identity, &request(&[("x-api-key", "x")])).await;
    refused(&identity, &request(&[("authorization", "")])).await;
}

#[tokio::test]
async fn a_credential_must_be_there_once_and_whole() {
    let signer = Signer::new("one");
    let identity = trusting(&[&signer.jwk]);
    let good = format!("Bearer {}", signer.good());
    accepted(&identity, &request(&[("authorization", &good)])).await;
    accepted(&identity, &request(&[("Authorization", &good.replace("Bearer ", "bEARER   "))])).await;
    for headers in [
        vec![("authorization", good.as_str()), ("authorization", good.as_str())],
        vec![("authorization", good.as_str()), ("x-api-key", "wgk_x")],
        vec![("x-api-key", "wgk_x"), ("x-api-key", "wgk_x")],
        vec![("authorization", "Bearer")],
        vec![("authorization", "Bearer ")],
        vec![("authorization", "Bearer a b")],
        vec![("authorization", "Bearer =")],
        vec![("authorization", "Bearer \u{e9}")],
        vec![("authorization", "Basic YTpi")],
        vec![("authorization", &format!("{good}, {good}"))],
    ] {
        refused(&identity, &request(&headers)).await;
    }
    let by_dpop = identity.verify(&request(&[("authorization", "DPoP abc")])).await;
    assert!(matches!(by_dpop, Err(Error::Dpop { fault: Fault::Token, .. })), "{by_dpop:?}");
    let mut in_query = request(&[]);
    in_query.path = format!("/mcp?access_token={}", signer.good());
    assert_eq!(identity.verify(&in_query).await.unwrap_err(), Error::Missing);
    assert_eq!(refused(&identity, &bearing(&"a".repeat(jwt::TOKEN_BYTES_MAX + 1))).await, "the token is too long");
}

#[tokio::test]
async fn an_api_key_comes_in_either_header_and_never_falls_through() {
    let (key, line) =
        api_key::generate("ci", &api_key::Fields { scopes: vec!["mcp.read".to_owned()], ..Default::default() })
            .expect("key");
    let file = file(&line);
    let config = Config { api_keys: Some(file.path().into()), anonymous: Some(set(&["all"])), ..Config::default() };
    let identity = Identity::new(config).expect("identity");
    for request in [bearing(key.expose()), request(&[("X-API-Key", key.expose())])] {
        let principal = accepted(&identity, &request).await;
        assert_eq!((principal.subject.as_str(), principal.method), ("ci", Method::ApiKey));
    }
    let wrong = format!("wgk_{}", "A".repeat(43));
    assert_eq!(refused(&identity, &bearing(&wrong)).await, "the API key is not known");
    assert_eq!(refused(&identity, &request(&[("x-api-key", &wrong)])).await, "the API key is not known");
}

#[tokio::test]
async fn a_certificate_names_a_service_when_there_is_no_other_credential() {
    let signer = Signer::new("one");
    let keys = file(&jwks(&[&signer.jwk]));
    let config = Config {
        issuers: vec![issuer(ISSUER, Keys::File(keys.path().into()))],
        certificates: vec![dns_rule()],
        ..Config::default()
    };
    let identity = Identity::new(config).expect("identity");

    for _ in 0..2 {
        let principal = accepted(&identity, &with_certificate(request(&[]), agent_certificate())).await;
        assert_eq!((principal.kind, principal.method), (Kind::Service, Method::Certificate));
        assert_eq!((principal.issuer.as_str(), principal.subject.as_str()), ("mtls", "agent.example.com"));
        assert_eq!(principal.expires_at(), Some(wall(NOW + 1000)));
    }

    let bearer = accepted(&identity, &with_certificate(bearing(&signer.good()), agent_certificate())).await;
    assert_eq!((bearer.method, bearer.subject.as_str(), bearer.mtls), (Method::Bearer, "alice", true));
    assert!(!accepted(&identity, &bearing(&signer.good())).await.mtls, "the same token without the certificate");
    refused(&identity, &with_certificate(bearing("bad"), agent_certificate())).await;

    let stranger = ClientCertificate {
        dns_names: vec!["agent.other".into()],
        fingerprint: "cd".repeat(32),
        ..agent_certificate()
    };
    accepted(&identity, &with_certificate(bearing(&signer.good()), stranger.clone())).await;
    assert_eq!(identity.verify(&with_certificate(request(&[]), stranger)).await.unwrap_err(), Error::Missing);

    let mut late = with_certificate(request(&[]), agent_certificate());
    late.at = wall(NOW + 1001);
    assert_eq!(refused(&identity, &late).await, "the client certificate has expired");
}

#[tokio::test]
async fn a_header_that_speaks_of_a_certificate_is_not_one() {
    let identity = Identity::new(Config { certificates: vec![dns_rule()], ..Config::default() }).expect("identity");
    let spoof = request(&[("x-forwarded-client-cert", "DNS=agent.example.com"), ("x-ssl-client-verify", "SUCCESS")]);
    assert_eq!(identity.verify(&spoof).await.unwrap_err(), Error::Missing);
}

#[test]
fn what_cannot_work_is_said_at_start() {
    let good = Signer::new("one").jwk;
    let missing = Keys::File("/nowhere/jwks.json".into());
    let fail = |config: Config| Identity::new(config).err().expect("refused").to_string();
    let keys = |text: &str| {
        let file = file(text);
        fail(Config { issuers: vec![issuer(ISSUER, Keys::File(file.path().into()))], ..Config::default() })
    };
    assert!(
        fail(Config { issuers: vec![issuer(ISSUER, missing.clone())], ..Config::default() })
            .contains("/nowhere/jwks.json")
    );
    assert!(fail(Config { api_keys: Some("/nowhere/keys".into()), ..Config::default() }).contains("/nowhere/keys"));
    assert!(keys("secret").contains("is not a JWKS document (line 1"));
    assert!(!keys("{\"keys\":[\"secret\" x").contains("secret"));
    assert!(keys("{\"keys\":[]}").contains("has no key that can verify a token"));
    assert!(keys(&" ".repeat(jwks::JWKS_BYTES_MAX + 1)).contains("is longer than"));

    let with = |change: &dyn Fn(&mut Issuer)| {
        let file = file(&jwks(&[&good]));
        let mut issuer = issuer(ISSUER, Keys::File(file.path().into()));
        change(&mut issuer);
        fail(Config { issuers: vec![issuer], ..Config::default() })
    };
    assert!(with(&|issuer| issuer.audiences.clear()).contains("has no audience"));
    assert!(with(&|issuer| issuer.algorithms.clear()).contains("has no algorithm"));
    for name in ["mtls", "api-key", "anonymous", "", "a|b"] {
        assert!(with(&|issuer| issuer.issuer = name.into()).contains("not fit to name an issuer"), "{name}");
    }
    for url in ["http://idp.example/jwks", "ftp://idp.example", "https://user:pass@idp.example/jwks", "nonsense"] {
        let error = with(&|issuer| issuer.keys = Keys::Url(url.into()));
        assert!(error.contains("URL"), "{url}: {error}");
    }
    let discover = |name: &str| with(&|issuer| (issuer.issuer, issuer.keys) = (name.to_owned(), Keys::Discover));
    assert!(discover("idp").contains("is not a URL"));
    assert!(discover("http://idp.example").contains("must come from an `https` URL"));
    assert!(discover("https://idp.example/?a").contains("has a query"));
    let file = file(&jwks(&[&good]));
    let twice = vec![issuer(ISSUER, Keys::File(file.path().into())); 2];
    assert!(fail(Config { issuers: twice, ..Config::default() }).contains("configured twice"));
}

#[test]
fn verify_can_run_on_any_thread() {
    fn is_send<T: Send>(_: T) {}
    let identity = Identity::new(Config::default()).expect("identity");
    let request = request(&[]);
    is_send(identity.verify(&request));
    is_send(identity.warm());
}
