//! Proofs of possession and what a proxy in front says: DPoP, certificate-bound tokens, forwarded certificates.

use super::*;
use crate::identity::forwarded::CertificateHeader;
use crate::identity::forwarded::Place;
use crate::identity::forwarded::Proxy;
use crate::identity::forwarded::tests::dns;
use crate::identity::forwarded::tests::shown;
use crate::identity::forwarded::tests::uri;

const KEY_THUMBPRINT_MEMBERS: [&str; 4] = ["crv", "kty", "x", "y"];

/// A caller's own key, with the tokens bound to it and the proofs made by it.
struct Holder(Signer);

impl Holder {
    fn new() -> Holder {
        Holder(Signer::new("proof"))
    }

    fn jwk(&self) -> Value {
        let member = |name: &&str| ((*name).to_owned(), self.0.jwk[*name].clone());
        Value::Object(KEY_THUMBPRINT_MEMBERS.iter().map(member).collect())
    }

    fn thumbprint(&self) -> String {
        let jwk = self.jwk();
        let text = format!(r#"{{"crv":{},"kty":{},"x":{},"y":{}}}"#, jwk["crv"], jwk["kty"], jwk["x"], jwk["y"]);
        b64(sha256(text.as_bytes()))
    }

    fn token(&self, issuer: &Signer) -> String {
        issuer.token(&json!({}), &json!({ "cnf": { "jkt": self.thumbprint() } }))
    }

    /// A proof for this token with these changes to header and claims; a member that is changed to null is left out.
    fn proof(&self, token: &str, header: &Value, claims: &Value) -> String {
        let mut whole = json!({ "alg": "ES256", "typ": "dpop+jwt", "jwk": self.jwk() });
        merge(&mut whole, header);
        let mut payload = json!({
            "jti": b64(ring::rand::generate::<[u8; 16]>(&SystemRandom::new()).expect("random").expose()),
            "htm": "POST", "htu": "https://gw.example/mcp", "iat": NOW, "ath": b64(sha256(token.as_bytes())),
        });
        merge(&mut payload, claims);
        self.0.sign_text(&whole.to_string(), &payload.to_string())
    }
}

fn proven(token: &str, proof: &str) -> Request {
    request(&[("authorization", &format!("DPoP {token}")), ("dpop", proof)])
}

/// The words of a refusal that has to do with DPoP.
#[track_caller]
fn at_fault(outcome: Result<Arc<Principal>, Error>) -> (Fault, String) {
    match outcome {
        Err(Error::Dpop { fault, description }) => (fault, description),
        other => panic!("must be refused for its proof, got {other:?}"),
    }
}

fn demanding(signer: &Signer, change: impl FnOnce(&mut Issuer)) -> Identity {
    let file = file(&jwks(&[&signer.jwk]));
    let mut issuer = issuer(ISSUER, Keys::File(file.path().into()));
    change(&mut issuer);
    with_issuers(vec![issuer])
}

#[tokio::test]
async fn a_bound_token_is_accepted_with_a_proof_for_each_request_and_no_other() {
    let (signer, holder) = (Signer::new("one"), Holder::new());
    let identity = trusting(&[&signer.jwk]);
    let token = holder.token(&signer);
    let proof = holder.proof(&token, &json!({}), &json!({}));
    let principal = accepted(&identity, &proven(&token, &proof)).await;
    assert_eq!((principal.subject.as_str(), principal.method), ("alice", Method::Dpop));
    let (fault, words) = at_fault(identity.verify(&proven(&token, &proof)).await);
    assert!(fault == Fault::Proof && words.contains("used before"), "{words}");
    accepted(&identity, &proven(&token, &holder.proof(&token, &json!({}), &json!({})))).await;

    // A reload forgets tokens, never proofs.
    let file = file(&jwks(&[&signer.jwk]));
    let public_url = Url::parse("https://gw.example").ok();
    let issuers = vec![issuer(ISSUER, Keys::File(file.path().into()))];
    let renewed = identity.renewed(Config { issuers, public_url, ..Config::default() }).expect("identity");
    assert!(at_fault(renewed.verify(&proven(&token, &proof)).await).1.contains("used before"));
}

#[tokio::test]
async fn a_bound_token_is_no_bearer_token_and_an_unbound_one_no_dpop_token() {
    let (signer, holder) = (Signer::new("one"), Holder::new());
    let identity = trusting(&[&signer.jwk]);
    let token = holder.token(&signer);
    // In both orders, so that the cached token is held to it too.
    for _ in 0..2 {
        let (fault, words) = at_fault(identity.verify(&bearing(&token)).await);
        assert!(fault == Fault::Token && words.contains("send it as `Authorization: DPoP`"), "{words}");
        accepted(&identity, &proven(&token, &holder.proof(&token, &json!({}), &json!({})))).await;
    }
    // A proof does not make it better.
    let mut downgraded = bearing(&token);
    let proof = holder.proof(&token, &json!({}), &json!({}));
    downgraded.headers.insert("dpop", HeaderValue::try_from(&proof).expect("ASCII"));
    at_fault(identity.verify(&downgraded).await);

    let unbound = signer.good();
    let proof = holder.proof(&unbound, &json!({}), &json!({}));
    let (fault, words) = at_fault(identity.verify(&proven(&unbound, &proof)).await);
    assert!(fault == Fault::Token && words.contains("not bound to a key"), "{words}");
    accepted(&identity, &bearing(&unbound)).await;
}

#[tokio::test]
async fn a_proof_for_a_host_that_a_route_has_for_itself_names_that_host() {
    let (signer, holder) = (Signer::new("one"), Holder::new());
    let file = file(&jwks(&[&signer.jwk]));
    let identity = Identity::new(Config {
        issuers: vec![issuer(ISSUER, Keys::File(file.path().into()))],
        public_url: Url::parse("https://gw.example").ok(),
        hosts: BTreeSet::from(["own.example".to_owned()]),
        ..Config::default()
    })
    .expect("identity");
    let token = holder.token(&signer);
    let at = |host: &str, named: &str| {
        let proof = holder.proof(&token, &json!({}), &json!({ "htu": format!("https://{named}/mcp") }));
        Request { host: host.into(), ..proven(&token, &proof) }
    };
    for host in ["own.example", "own.example:443"] {
        accepted(&identity, &at(host, "own.example")).await;
        assert!(at_fault(identity.verify(&at(host, "gw.example")).await).1.contains("`https://own.example/mcp`"));
    }
    // A host of nobody's is what the request claims, and counts for nothing.
    at_fault(identity.verify(&at("other.example", "other.example")).await);
    accepted(&identity, &at("other.example", "gw.example")).await;
}

#[tokio::test]
async fn a_proof_is_for_one_request_one_token_and_one_key() {
    let (signer, holder, thief) = (Signer::new("one"), Holder::new(), Holder::new());
    let identity = trusting(&[&signer.jwk]);
    let token = holder.token(&signer);
    let none = json!({});
    let header = |header: Value| holder.proof(&token, &header, &none);
    let claims = |claims: Value| holder.proof(&token, &none, &claims);
    let mut with_private = holder.jwk();
    with_private["d"] = json!("AAAA");
    let good = header(json!({}));
    let mut forged = good.clone();
    forged.replace_range(good.len() - 8..good.len() - 4, if good.ends_with("AAAA") { "BBBB" } else { "AAAA" });
    for (proof, expected) in [
        (thief.proof(&token, &none, &none), "another key"),
        (thief.proof(&token, &json!({ "jwk": holder.jwk() }), &none), "signature does not verify"),
        (forged, "signature does not verify"),
        (header(json!({ "typ": "jwt" })), "`typ`"),
        (header(json!({ "typ": null })), "`typ`"),
        (header(json!({ "alg": "none" })), "`alg`"),
        (header(json!({ "alg": "HS256" })), "`alg`"),
        (header(json!({ "alg": "RS256" })), "signature does not verify"),
        (header(json!({ "crit": ["b64"] })), "`crit`"),
        (header(json!({ "jwk": null })), "`jwk`"),
        (header(json!({ "jwk": with_private })), "private or shared key"),
        (header(json!({ "jwk": { "kty": "oct", "k": "AAAA" } })), "private or shared key"),
        (header(json!({ "jwk": { "kty": "EC", "crv": "P-256", "x": "\"" , "y": "a" } })), "not a public"),
        (claims(json!({ "htm": "GET" })), "`htm` is not `POST`"),
        (claims(json!({ "htm": "post" })), "`htm` is not `POST`"),
        (claims(json!({ "htu": "https://other.example/mcp" })), "`htu` is not `https://gw.example/mcp`"),
        (claims(json!({ "htu": "https://gw.example/other" })), "`htu`"),
        (claims(json!({ "htu": 7 })), "`htu`"),
        (claims(json!({ "iat": NOW - 91 })), "too old"),
        (claims(json!({ "iat": NOW + 31 })), "in the future"),
        (claims(json!({ "iat": "now" })), "`iat`"),
        (claims(json!({ "iat": null })), "`iat`"),
        (claims(json!({ "jti": null })), "`jti`"),
        (claims(json!({ "jti": "" })), "`jti`"),
        (claims(json!({ "ath": null })), "`ath`"),
        (claims(json!({ "ath": b64(sha256(b"another token")) })), "`ath`"),
        (format!("{}.", header(json!({}))), "three parts"),
        ("x".repeat(9000), "too long"),
    ] {
        let (fault, words) = at_fault(identity.verify(&proven(&token, &proof)).await);
        assert_eq!(fault, Fault::Proof, "{words}");
        assert!(words.contains(expected), "expected {expected}, got {words}");
    }
    for edge in [json!({ "iat": NOW - 90 }), json!({ "iat": NOW + 30 }), json!({ "iat": NOW as f64 + 0.5 })] {
        accepted(&identity, &proven(&token, &claims(edge))).await;
    }
    accepted(&identity, &proven(&token, &claims(json!({ "htu": "https://GW.example:443/mcp/?x" })))).await;

    // The Host that a request names has no say in what its address is.
    let mut elsewhere = proven(&token, &claims(json!({ "htu": "https://evil.example/mcp" })));
    elsewhere.host = "evil.example".into();
    assert!(at_fault(identity.verify(&elsewhere).await).1.contains("`htu`"));

    let none_at_all = request(&[("authorization", &format!("DPoP {token}"))]);
    assert!(at_fault(identity.verify(&none_at_all).await).1.contains("no `DPoP` header"));
    let twice = request(&[("authorization", &format!("DPoP {token}")), ("dpop", &good), ("dpop", &good)]);
    assert!(at_fault(identity.verify(&twice).await).1.contains("more than one"));
    let (fault, words) = at_fault(identity.verify(&proven("bad", &good)).await);
    assert!(fault == Fault::Token && words.contains("three parts"), "{words}");
}

#[tokio::test]
async fn an_issuer_can_demand_proofs_or_have_none_of_them() {
    let (signer, holder) = (Signer::new("one"), Holder::new());
    let token = holder.token(&signer);
    let proof = || holder.proof(&token, &json!({}), &json!({}));
    let required = demanding(&signer, |issuer| issuer.dpop = Demand::Required);
    accepted(&required, &proven(&token, &proof())).await;
    assert!(at_fault(required.verify(&bearing(&signer.good())).await).1.contains("must be bound to a key"));
    assert_eq!((required.scheme(), required.proofs().dpop), (Scheme::Dpop, Demand::Required));

    let off = demanding(&signer, |issuer| issuer.dpop = Demand::Off);
    assert!(refused(&off, &proven(&token, &proof())).await.contains("DPoP is not accepted"));
    assert!(refused(&off, &bearing(&token)).await.contains("DPoP is not accepted"));
    accepted(&off, &bearing(&signer.good())).await;
    assert_eq!((off.scheme(), off.proofs().dpop), (Scheme::Bearer, Demand::Off));

    let certificates = demanding(&signer, |issuer| issuer.certificate_bound = Demand::Required);
    let bound = signer.token(&json!({}), &json!({ "cnf": { "x5t#S256": b64([0xab; 32]) } }));
    accepted(&certificates, &with_certificate(bearing(&bound), agent_certificate())).await;
    let unbound = with_certificate(bearing(&signer.good()), agent_certificate());
    assert!(refused(&certificates, &unbound).await.contains("not bound to a client certificate"));
    assert!(certificates.proofs().certificate_bound);
}

#[tokio::test]
async fn a_token_bound_to_both_needs_both() {
    let (signer, holder) = (Signer::new("one"), Holder::new());
    let identity = trusting(&[&signer.jwk]);
    let both = json!({ "cnf": { "x5t#S256": b64([0xab; 32]), "jkt": holder.thumbprint() } });
    let token = signer.token(&json!({}), &both);
    let proof = || holder.proof(&token, &json!({}), &json!({}));
    accepted(&identity, &with_certificate(proven(&token, &proof()), agent_certificate())).await;
    assert!(at_fault(identity.verify(&proven(&token, &proof())).await).1.contains("client certificate"));
    at_fault(identity.verify(&with_certificate(bearing(&token), agent_certificate())).await);
}

#[tokio::test]
async fn keys_of_every_kind_can_prove() {
    let signer = Signer::new("one");
    let identity = trusting(&[&signer.jwk]);
    let pair = ring::signature::Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("key");
    let public = ring::signature::Ed25519KeyPair::from_pkcs8(pair.as_ref()).expect("key");
    let x = b64(public.public_key().as_ref());
    let thumbprint = b64(sha256(format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#).as_bytes()));
    let token = signer.token(&json!({}), &json!({ "cnf": { "jkt": thumbprint } }));
    let header = json!({ "alg": "EdDSA", "typ": "dpop+jwt", "jwk": { "kty": "OKP", "crv": "Ed25519", "x": x } });
    let claims = json!({ "jti": "1", "htm": "POST", "htu": "https://gw.example/mcp", "iat": NOW, "ath": b64(sha256(token.as_bytes())) });
    let signed = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
    let key = EncodingKey::from_ed_der(pair.as_ref());
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::EdDSA).expect("signature");
    accepted(&identity, &proven(&token, &format!("{signed}.{signature}"))).await;
}

fn behind(from: &str, header: CertificateHeader) -> Identity {
    let from = if from == "unix" { Place::Unix } else { Place::Network(from.parse().expect("a network")) };
    let subject = CertificateRule {
        matches: CertificateMatch::Subject(Subject::new("CN=*,OU={tenant}").expect("a subject")),
        tenant: Tenant::Named,
        ..dns_rule()
    };
    let proxy = Some(Proxy { from: vec![from], header });
    Identity::new(Config { certificates: vec![dns_rule(), subject], proxy, ..Config::default() }).expect("identity")
}

fn from(address: &str, headers: &[(&str, &str)]) -> Request {
    let mut request = request(headers);
    request.peer = Arc::new(Peer { address: address.parse().ok(), ..Peer::default() });
    request
}

const VERIFIED: (&str, &str) = ("X-SSL-Client-Verify", "SUCCESS");

#[tokio::test]
async fn a_proxy_in_front_is_believed_at_its_own_address_alone() {
    let identity = behind("10.0.0.0/8", CertificateHeader::Subject);
    let shown = [VERIFIED, ("X-SSL-Client-S-DN", "CN=agent,OU=contoso")];
    let principal = accepted(&identity, &from("10.1.2.3", &shown)).await;
    assert_eq!((principal.subject.as_str(), principal.tenant.as_deref()), ("CN=agent,OU=contoso", Some("contoso")));
    assert_eq!((principal.method, principal.mtls, principal.expires_at()), (Method::Certificate, true, None));
    for stranger in ["192.0.2.1", "::1", "nowhere"] {
        assert_eq!(identity.verify(&from(stranger, &shown)).await.unwrap_err(), Error::Missing, "{stranger}");
    }
    // The header that is not the configured one is not read, wherever it comes from.
    let other = [("x-forwarded-client-cert", "DNS=agent.example.com")];
    assert_eq!(identity.verify(&from("10.1.2.3", &other)).await.unwrap_err(), Error::Missing);
    let spelled = [("x_ssl_client_verify", "SUCCESS"), ("x_ssl_client_s_dn", "CN=agent,OU=contoso")];
    assert_eq!(identity.verify(&from("10.1.2.3", &spelled)).await.unwrap_err(), Error::Missing);
    assert_eq!(
        identity.verify(&from("10.1.2.3", &[("X-SSL-Client-Verify", "NONE")])).await.unwrap_err(),
        Error::Missing
    );
    let unix = behind("unix", CertificateHeader::Subject);
    accepted(&unix, &request(&shown)).await;
    assert_eq!(unix.verify(&from("127.0.0.1", &shown)).await.unwrap_err(), Error::Missing);
}

#[tokio::test]
async fn what_a_proxy_has_not_verified_or_not_written_well_is_refused() {
    let identity = behind("10.0.0.0/8", CertificateHeader::Subject);
    let name = ("X-SSL-Client-S-DN", "CN=agent,OU=contoso");
    for headers in [
        vec![name],
        vec![("X-SSL-Client-Verify", "FAILED:unable to verify the first certificate"), name],
        vec![("X-SSL-Client-Verify", "success"), name],
        vec![("X-SSL-Client-Verify", "NONE"), name],
        vec![VERIFIED],
        vec![VERIFIED, name, name],
        vec![VERIFIED, VERIFIED, name],
        vec![VERIFIED, ("X-SSL-Client-S-DN", "/OU=contoso/CN=agent")],
    ] {
        let words = refused(&identity, &from("10.1.2.3", &headers)).await;
        assert!(words.contains("proxy in front"), "{headers:?}: {words}");
    }
    let envoy = behind("10.0.0.0/8", CertificateHeader::Envoy);
    let header = |text: &str| from("10.1.2.3", &[("X-Forwarded-Client-Cert", text)]);
    let (_, agent) = shown(&[dns("agent.example.com")]);
    assert_eq!(accepted(&envoy, &header(&agent)).await.subject, "agent.example.com");
    let (_, evil) = shown(&[dns("evil.other")]);
    assert_eq!(envoy.verify(&header(&evil)).await.unwrap_err(), Error::Missing);
    assert_eq!(envoy.verify(&header(&format!("{evil};DNS=agent.example.com"))).await.unwrap_err(), Error::Missing);
    let (_, forged) = shown(&[uri("https://x,Hash=ab;DNS=agent.example.com")]);
    assert!(refused(&envoy, &header(&forged)).await.contains("proxy in front has more than one element"));
    assert!(refused(&envoy, &header("Hash=ab;DNS=agent.example.com")).await.contains("{ cert: true }"));
    refused(&envoy, &header("DNS=\"agent")).await;
    let twice = ("X-Forwarded-Client-Cert", agent.as_str());
    refused(&envoy, &from("10.1.2.3", &[twice, twice])).await;
}

#[tokio::test]
async fn the_certificate_of_a_proxys_own_connection_is_never_the_callers() {
    let identity = behind("10.0.0.0/8", CertificateHeader::Envoy);
    let own = |headers: &[(&str, &str)]| {
        let mut request = from("10.1.2.3", headers);
        let address = request.peer.address;
        request.peer = Arc::new(Peer { address, certificate: Some(agent_certificate()), ..Peer::default() });
        request
    };
    assert_eq!(identity.verify(&own(&[])).await.unwrap_err(), Error::Missing);
    let (_, other) = shown(&[dns("other.example.com")]);
    let shown = [("X-Forwarded-Client-Cert", other.as_str())];
    assert_eq!(accepted(&identity, &own(&shown)).await.subject, "other.example.com");
    // Elsewhere the connection's certificate counts as ever.
    let mut direct = from("192.0.2.1", &shown);
    direct.peer =
        Arc::new(Peer { address: "192.0.2.1".parse().ok(), certificate: Some(agent_certificate()), ..Peer::default() });
    assert_eq!(accepted(&identity, &direct).await.subject, "agent.example.com");
}

#[tokio::test]
async fn a_bound_token_behind_a_proxy_is_held_to_the_certificate_that_the_proxy_saw() {
    let signer = Signer::new("one");
    let keys = file(&jwks(&[&signer.jwk]));
    let place = Place::Network("10.0.0.0/8".parse().expect("a network"));
    let config = Config {
        issuers: vec![issuer(ISSUER, Keys::File(keys.path().into()))],
        proxy: Some(Proxy { from: vec![place], header: CertificateHeader::Envoy }),
        ..Config::default()
    };
    let identity = Identity::new(config).expect("identity");
    let ((der, own), (_, other)) = (shown(&[]), shown(&[]));
    let bound = signer.token(&json!({}), &json!({ "cnf": { "x5t#S256": b64(sha256(&der)) } }));
    let bearer = format!("Bearer {bound}");
    let with =
        |address: &str, value: &str| from(address, &[("authorization", &bearer), ("x-forwarded-client-cert", value)]);
    assert!(accepted(&identity, &with("10.1.2.3", &own)).await.mtls);
    refused(&identity, &with("10.1.2.3", &other)).await;
    let hash = own.split(';').find(|pair| pair.starts_with("Hash=")).expect("a hash");
    refused(&identity, &with("10.1.2.3", hash)).await;
    refused(&identity, &from("10.1.2.3", &[("authorization", &bearer)])).await;
    refused(&identity, &with("192.0.2.1", &own)).await;
}
