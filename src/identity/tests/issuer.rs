//! A small issuer on loopback: fetching, flooding, outage, rotation, discovery.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::sync::Semaphore;

use super::*;

pub(super) const MINUTE: Duration = Duration::from_secs(60);

/// Serves what it is told to and counts how often it is asked.
#[derive(Clone)]
pub(super) struct Idp {
    pub(super) url: String,
    pub(super) inner: Arc<Inner>,
}

#[derive(Default)]
pub(super) struct Inner {
    pages: Mutex<HashMap<String, (u16, String)>>,
    asked: AtomicUsize,
    /// While there is a gate, answers wait for its permits.
    gate: Mutex<Option<Arc<Semaphore>>>,
    pub(super) arrived: Notify,
}

impl Idp {
    pub(super) async fn start() -> Idp {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let idp = Idp { url, inner: Arc::default() };
        let inner = Arc::clone(&idp.inner);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&inner)));
            }
        });
        idp
    }

    pub(super) fn serve(&self, path: &str, status: u16, body: impl Into<String>) {
        self.inner.pages.lock().expect("lock").insert(path.into(), (status, body.into()));
    }

    pub(super) fn serve_keys(&self, keys: &[&Value]) {
        self.serve("/jwks", 200, jwks(keys));
    }

    pub(super) fn asked(&self) -> usize {
        self.inner.asked.load(Ordering::SeqCst)
    }

    pub(super) fn close_gate(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.inner.gate.lock().expect("lock") = Some(Arc::clone(&gate));
        gate
    }

    pub(super) fn jwks_url(&self) -> Keys {
        Keys::Url(format!("{}/jwks", self.url))
    }

    pub(super) fn trusted(&self) -> Identity {
        with_issuers(vec![issuer(ISSUER, self.jwks_url())])
    }
}

async fn answer(mut stream: TcpStream, inner: Arc<Inner>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).expect("ASCII");
    let path = head.split(' ').nth(1).expect("path").to_owned();
    inner.asked.fetch_add(1, Ordering::SeqCst);
    inner.arrived.notify_one();
    let gate = inner.gate.lock().expect("lock").clone();
    if let Some(gate) = gate {
        gate.acquire().await.expect("open").forget();
    }
    let (status, body) = inner.pages.lock().expect("lock").get(&path).cloned().unwrap_or((404, String::new()));
    let location = if status == 302 { format!("location: {body}\r\n") } else { String::new() };
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{location}content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    // The client may have gone away: not this server's affair.
    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
}

/// The same request, sent so much later by the monotonic clock.
pub(super) fn later(mut request: Request, by: Duration) -> Request {
    request.started += by;
    request
}

/// Waits for the fetch that is under way, if there is one.
pub(super) async fn settled(identity: &Identity) {
    for source in identity.trust.sources() {
        source.settled().await;
    }
}

#[tokio::test]
async fn keys_are_fetched_once_when_they_are_first_needed() {
    let signer = Signer::new("one");
    let idp = Idp::start().await;
    idp.serve_keys(&[&signer.jwk]);
    let identity = idp.trusted();
    assert_eq!(idp.asked(), 0, "nothing is fetched at construction");
    for _ in 0..3 {
        accepted(&identity, &bearing(&signer.good())).await;
    }
    accepted(&identity, &bearing(&signer.token(&json!({}), &json!({ "sub": "bob" })))).await;
    assert_eq!(idp.asked(), 1);
}

#[tokio::test]
async fn warming_fetches_before_the_first_caller_and_survives_an_outage() {
    let signer = Signer::new("one");
    let idp = Idp::start().await;
    idp.serve_keys(&[&signer.jwk]);
    let identity = idp.trusted();
    identity.warm().await;
    identity.warm().await;
    assert_eq!(idp.asked(), 1);
    accepted(&identity, &bearing(&signer.good())).await;
    assert_eq!(idp.asked(), 1);

    let down = Idp::start().await;
    let identity = down.trusted();
    identity.warm().await;
    let error = identity.verify(&bearing(&signer.good())).await.unwrap_err();
    assert_eq!(error, Error::Unavailable { issuer: ISSUER.into() });
    assert_eq!(down.asked(), 1, "a second try waits a while");
    down.serve_keys(&[&signer.jwk]);
    accepted(&identity, &later(bearing(&signer.good()), Duration::from_secs(6))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_random_kids_cause_at_most_one_fetch() {
    let signer = Signer::new("one");
    let idp = Idp::start().await;
    idp.serve_keys(&[&signer.jwk]);
    let identity = Arc::new(idp.trusted());
    identity.warm().await;
    assert_eq!(idp.asked(), 1);
    // The cool-down of the first fetch is over: one more is due, and only one.
    let base = later(bearing("x"), MINUTE * 2).started;
    let floods = (0..4).map(|worker| {
        let identity = Arc::clone(&identity);
        tokio::spawn(async move {
            for n in 0..2500 {
                let header = json!({ "alg": "ES256", "kid": format!("{worker}-{n}") }).to_string();
                let mut request = bearing(&format!("{}.{}.AAAA", b64(header), b64(payload(&json!({})))));
                request.started = base;
                let words = refused(&identity, &request).await;
                assert_eq!(words, "the token's `kid` names none of the issuer's keys");
            }
        })
    });
    for flood in futures_util::future::join_all(floods).await {
        flood.expect("flood");
    }
    assert_eq!(idp.asked(), 2);
    accepted(&identity, &bearing(&signer.good())).await;
}

#[tokio::test]
async fn those_who_come_together_share_one_fetch() {
    let signer = Signer::new("one");
    let idp = Idp::start().await;
    idp.serve_keys(&[&signer.jwk]);
    let gate = idp.close_gate();
    let identity = idp.trusted();
    let requests: Vec<Request> = (0..50).map(|_| bearing(&signer.good())).collect();
    let all = futures_util::future::join_all(requests.iter().map(|request| identity.verify(request)));
    let open = async {
        idp.inner.arrived.notified().await;
        gate.add_permits(1000);
    };
    let (results, ()) = tokio::join!(all, open);
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(idp.asked(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_does_not_stop_the_fetch() {
    let signer = Signer::new("one");
    let idp = Idp::start().await;
    idp.serve_keys(&[&signer.jwk]);
    let gate = idp.close_gate();
    let identity = idp.trusted();
    let request = bearing(&signer.good());
    tokio::select! {
        biased;
        _ = identity.verify(&request) => panic!("the gate is closed"),
        () = idp.inner.arrived.notified() => {}
    }
    gate.add_permits(1000);
    settled(&identity).await;
    accepted(&identity, &request).await;
    assert_eq!(idp.asked(), 1);
}

#[tokio::test]
async fn an_outage_is_bridged_with_the_last_good_keys_for_a_day() {
    let signer = Signer::new("one");
    let idp = Idp::start().await;
    idp.serve_keys(&[&signer.jwk]);
    let identity = idp.trusted();
    let fresh = |sub: &str| bearing(&signer.token(&json!({}), &json!({ "sub": sub })));
    let first = fresh("a");
    let start = first.started;
    let at = |sub: &str, after: Duration| {
        let mut request = fresh(sub);
        request.started = start + after;
        request
    };
    accepted(&identity, &first).await;

    for (status, body) in [(500, ""), (200, "garbage"), (200, "{\"keys\":[]}"), (302, "/jwks")] {
        idp.serve("/jwks", status, body);
        let asked = idp.asked();
        let after = MINUTE * (11 + 2 * asked as u32);
        accepted(&identity, &at(&format!("b{asked}"), after)).await;
        settled(&identity).await;
        assert_eq!(idp.asked(), asked + 1, "old keys are asked for anew, redirects are not followed");
    }
    accepted(&identity, &at("c", MINUTE * 60 * 23)).await;
    settled(&identity).await;
    let too_long = MINUTE * 60 * 25;
    let unavailable = Error::Unavailable { issuer: ISSUER.into() };
    assert_eq!(identity.verify(&at("d", too_long)).await.unwrap_err(), unavailable);
    assert_eq!(identity.verify(&at("a", too_long)).await.unwrap_err(), unavailable, "also for a token seen before");

    idp.serve_keys(&[&signer.jwk]);
    accepted(&identity, &at("a", too_long + MINUTE)).await;
}

#[tokio::test]
async fn a_rotated_key_is_picked_up_and_the_old_one_is_dropped() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let idp = Idp::start().await;
    idp.serve_keys(&[&old.jwk]);
    let identity = idp.trusted();
    let request = bearing(&old.good());
    accepted(&identity, &request).await;

    // Rotated right after the fetch, and used at once.
    idp.serve_keys(&[&old.jwk, &new.jwk]);
    accepted(&identity, &later(bearing(&new.good()), Duration::from_secs(1))).await;
    assert_eq!(idp.asked(), 2);
    let kept = accepted(&identity, &later(bearing(&old.good()), MINUTE)).await;
    assert!(Arc::ptr_eq(&kept, &accepted(&identity, &later(bearing(&old.good()), MINUTE)).await));

    // The issuer takes the old key away: tokens that it signed are not good any more, cached or not.
    idp.serve_keys(&[&new.jwk]);
    let stale = later(bearing(&new.good()), MINUTE * 15);
    accepted(&identity, &stale).await;
    settled(&identity).await;
    assert!(refused(&identity, &later(bearing(&old.good()), MINUTE * 15)).await.contains("names none"));
    accepted(&identity, &later(bearing(&new.good()), MINUTE * 15)).await;
}

#[tokio::test]
async fn a_second_rotation_within_a_minute_is_picked_up_when_the_minute_is_over() {
    let (old, new, newer) = (Signer::new("old"), Signer::new("new"), Signer::new("newer"));
    let idp = Idp::start().await;
    idp.serve_keys(&[&old.jwk]);
    let identity = idp.trusted();
    accepted(&identity, &bearing(&old.good())).await;
    idp.serve_keys(&[&old.jwk, &new.jwk]);
    accepted(&identity, &bearing(&new.good())).await;
    idp.serve_keys(&[&old.jwk, &new.jwk, &newer.jwk]);
    let soon = later(bearing(&newer.good()), Duration::from_secs(50));
    assert!(refused(&identity, &soon).await.contains("names none"), "within the cool-down");
    accepted(&identity, &later(bearing(&newer.good()), MINUTE + Duration::from_secs(1))).await;
    assert_eq!(idp.asked(), 3);
}

#[tokio::test]
async fn one_client_with_an_old_token_does_not_use_up_the_fetches() {
    let (signer, new) = (Signer::new("one"), Signer::new("new"));
    let stale = Signer::new("gone").good();
    let idp = Idp::start().await;
    idp.serve_keys(&[&signer.jwk]);
    let identity = idp.trusted();
    let begun = bearing(&signer.good());
    accepted(&identity, &begun).await;
    let at = |token: &str, after: Duration| {
        let mut request = bearing(token);
        request.started = begun.started + after;
        request
    };
    // A token a second, for five minutes: fetches at 0, 60 and 180 seconds.
    for second in 0..300 {
        refused(&identity, &at(&stale, Duration::from_secs(second))).await;
    }
    assert_eq!(idp.asked(), 4);
    // There is one left for somebody else.
    idp.serve_keys(&[&signer.jwk, &new.jwk]);
    accepted(&identity, &at(&new.good(), Duration::from_secs(300))).await;
}

#[tokio::test]
async fn a_reload_keeps_fetched_keys_of_an_issuer_that_stays_the_same() {
    let signer = Signer::new("one");
    let idp = Idp::start().await;
    idp.serve_keys(&[&signer.jwk]);
    let first = idp.trusted();
    accepted(&first, &bearing(&signer.good())).await;
    let config = |keys: Keys| Config { issuers: vec![issuer(ISSUER, keys)], ..Config::default() };
    let second = first.renewed(config(idp.jwks_url())).expect("identity");
    accepted(&second, &bearing(&signer.good())).await;
    assert_eq!(idp.asked(), 1);

    idp.serve("/other", 200, jwks(&[&Signer::new("one").jwk]));
    let moved = second.renewed(config(Keys::Url(format!("{}/other", idp.url)))).expect("identity");
    refused(&moved, &bearing(&signer.good())).await;
    assert_eq!(idp.asked(), 2);
}

#[tokio::test]
async fn a_secret_served_by_a_url_is_no_key() {
    let idp = Idp::start().await;
    let signer = Signer::new("one");
    idp.serve_keys(&[&json!({ "kty": "oct", "kid": "s", "k": b64([7; 32]) }), &signer.jwk]);
    let identity = with_issuers(vec![Issuer {
        algorithms: vec![Algorithm::HS256, Algorithm::ES256],
        ..issuer(ISSUER, idp.jwks_url())
    }]);
    accepted(&identity, &bearing(&signer.good())).await;
    let signed = format!("{}.{}", b64(json!({ "alg": "HS256", "kid": "s" }).to_string()), b64(payload(&json!({}))));
    let key = EncodingKey::from_secret(&[7; 32]);
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).expect("signature");
    assert!(refused(&identity, &bearing(&format!("{signed}.{signature}"))).await.contains("names none"));
}

#[tokio::test]
async fn a_header_never_makes_us_ask_anybody() {
    let evil = Idp::start().await;
    evil.serve_keys(&[&Signer::new("one").jwk]);
    let signer = Signer::new("one");
    let identity = trusting(&[&signer.jwk]);
    for member in ["jku", "x5u"] {
        let token = signer.token(&json!({ member: format!("{}/jwks", evil.url) }), &json!({}));
        refused(&identity, &bearing(&token)).await;
    }
    assert_eq!(evil.asked(), 0);
}

#[tokio::test]
async fn a_document_that_is_too_long_is_not_read_to_its_end() {
    let signer = Signer::new("one");
    let idp = Idp::start().await;
    idp.serve("/jwks", 200, format!("{}{}", " ".repeat(jwks::JWKS_BYTES_MAX), jwks(&[&signer.jwk])));
    let error = idp.trusted().verify(&bearing(&signer.good())).await.unwrap_err();
    assert_eq!(error, Error::Unavailable { issuer: ISSUER.into() });
}

fn discovery(issuer: &str, jwks_uri: &str) -> String {
    json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "jwks_uri": jwks_uri,
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    })
    .to_string()
}

#[tokio::test]
async fn an_issuer_is_discovered_by_its_name() {
    const WELL_KNOWN: &str = "/realm/.well-known/openid-configuration";
    let signer = Signer::new("one");
    let idp = Idp::start().await;
    let name = format!("{}/realm", idp.url);
    idp.serve_keys(&[&signer.jwk]);
    idp.serve(WELL_KNOWN, 200, discovery(&name, &format!("{}/jwks", idp.url)));
    let token = signer.token(&json!({}), &json!({ "iss": name }));
    let identity = || with_issuers(vec![issuer(&name, Keys::Discover)]);
    assert_eq!(accepted(&identity(), &bearing(&token)).await.issuer, name);
    assert_eq!(idp.asked(), 2);

    let unavailable = Error::Unavailable { issuer: name.clone() };
    for document in [
        discovery("https://other.example", &format!("{}/jwks", idp.url)),
        discovery(&format!("{name}/"), &format!("{}/jwks", idp.url)),
        discovery(&name.replace("http", "HTTP"), &format!("{}/jwks", idp.url)),
        // An address that is not on loopback over plain HTTP, and a file.
        discovery(&name, "http://169.254.169.254/jwks"),
        discovery(&name, "file:///etc/passwd"),
        "{}".to_owned(),
    ] {
        idp.serve(WELL_KNOWN, 200, document.as_str());
        assert_eq!(identity().verify(&bearing(&token)).await.unwrap_err(), unavailable, "{document}");
    }
}
