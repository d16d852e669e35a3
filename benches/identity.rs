//! What does it cost to know a caller: an RS256 token seen first, one seen before, and one whose key nobody has?
#![expect(clippy::expect_used, reason = "a measuring program may stop where it stands")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use criterion::BatchSize;
use criterion::Criterion;
use criterion::criterion_group;
use criterion::criterion_main;
use http::HeaderMap;
use http::HeaderValue;
use jsonwebtoken::Algorithm;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::RSA_PKCS1_SHA256;
use ring::signature::RsaKeyPair;
use serde_json::json;
use tokio::runtime::Runtime;
use wardgate::exchange::Peer;
use wardgate::exchange::Request;
use wardgate::exchange::RequestId;
use wardgate::exchange::Verb;
use wardgate::identity::Config;
use wardgate::identity::Demand;
use wardgate::identity::Identity;
use wardgate::identity::Issuer;
use wardgate::identity::Keys;

const ISSUER: &str = "https://idp.example.com";
const AUDIENCE: &str = "https://mcp.example.com";

/// Different tokens, so that a first sight is one: as many as the longest run may ask for, and then again.
const TOKENS: usize = 20_000;

fn key() -> RsaKeyPair {
    let text: String = include_str!("../src/identity/tests/rsa-key-1.b64").split_whitespace().collect();
    RsaKeyPair::from_der(&STANDARD.decode(text).expect("base64")).expect("a key")
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// With the claims that an Entra token has, about 1.3 KiB.
fn token(pair: &RsaKeyPair, number: usize) -> String {
    let now = seconds();
    let header = json!({ "typ": "JWT", "alg": "RS256", "kid": "bench" }).to_string();
    let claims = json!({
        "aud": AUDIENCE, "iss": ISSUER, "iat": now - 300, "nbf": now - 300, "exp": now + 36_000,
        "azp": "c11e0000-0000-4000-8000-00000000000c", "azpacr": "0", "name": "Alice Example",
        "oid": "0bec7000-0000-4000-8000-00000000000d", "preferred_username": "alice@contoso.example",
        "rh": "1.AXoAop", "scp": "mcp.read mcp.write", "sub": format!("caller-{number}"),
        "tid": "c0a70500-0000-4000-8000-000000000001", "uti": "x", "ver": "2.0",
        "groups": (0..10).map(|group| format!("{group:08x}-0000-4000-8000-000000000000")).collect::<Vec<_>>(),
    });
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let signed = format!("{}.{}", encode(&header), encode(&claims.to_string()));
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).expect("signed");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn identity(pair: &RsaKeyPair, folder: &std::path::Path) -> Identity {
    let PublicKeyComponents::<Vec<u8>> { n, e } = pair.public().into();
    let (n, e) = (URL_SAFE_NO_PAD.encode(n), URL_SAFE_NO_PAD.encode(e));
    let jwks = json!({ "keys": [{ "kty": "RSA", "use": "sig", "kid": "bench", "n": n, "e": e }] });
    let path = folder.join("jwks.json");
    std::fs::write(&path, jwks.to_string()).expect("written");
    let trusted = Issuer {
        issuer: ISSUER.into(),
        audiences: vec![AUDIENCE.into()],
        keys: Keys::File(path),
        algorithms: vec![Algorithm::RS256],
        leeway: Duration::from_secs(30),
        tenant_claims: vec!["tid".into()],
        groups_claim: "groups".into(),
        certificate_bound: Demand::Optional,
        dpop: Demand::Optional,
    };
    Identity::new(Config { issuers: vec![trusted], ..Config::default() }).expect("identity")
}

fn bearing(token: &str) -> Request {
    let started = Instant::now();
    let mut headers = HeaderMap::new();
    headers.insert("authorization", HeaderValue::try_from(format!("Bearer {token}")).expect("a value"));
    Request {
        id: RequestId(1),
        verb: Verb::Post,
        host: "mcp.example.com".into(),
        path: "/mcp".into(),
        headers,
        body: bytes::Bytes::new(),
        peer: Arc::new(Peer::default()),
        at: SystemTime::now(),
        started,
        deadline: started + Duration::from_secs(60),
    }
}

fn verify(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let pair = key();
    let fresh = || identity(&pair, folder.path());
    let tokens: Vec<Request> = (0..TOKENS).map(|number| bearing(&token(&pair, number))).collect();

    let mut known = fresh();
    let mut next = 0;
    criterion.bench_function("identity/RS256, first seen", |b| {
        b.iter_custom(|rounds| {
            let mut spent = Duration::ZERO;
            for _ in 0..rounds {
                if next == tokens.len() {
                    (known, next) = (fresh(), 0);
                }
                if let Some(request) = tokens.get(next) {
                    let begun = Instant::now();
                    black_box(runtime.block_on(known.verify(request))).expect("accepted");
                    spent += begun.elapsed();
                }
                next += 1;
            }
            spent
        });
    });

    let seen = bearing(&token(&pair, 0));
    runtime.block_on(known.verify(&seen)).expect("accepted");
    criterion.bench_function("identity/seen before", |b| {
        b.iter(|| black_box(runtime.block_on(known.verify(&seen))).expect("accepted"));
    });

    let mut number = 0;
    criterion.bench_function("identity/random kid", |b| {
        let stranger = || {
            number += 1;
            let header = json!({ "typ": "JWT", "alg": "RS256", "kid": format!("random-{number}") }).to_string();
            let claims = json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "a", "exp": seconds() + 600 }).to_string();
            let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
            bearing(&format!("{}.{}.{}", encode(&header), encode(&claims), URL_SAFE_NO_PAD.encode([7; 256])))
        };
        b.iter_batched(
            stranger,
            |request| black_box(runtime.block_on(known.verify(&request))).expect_err("refused"),
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, verify);
criterion_main!(benches);
