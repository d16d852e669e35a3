//! Which key may verify which token: families, confusion, issuers apart, weak keys.

use super::*;

/// A public RSA key and a token it signed, made once; the private half is gone.
const RSA_N: &str = "\
    qjlnzNP0h0Bc5OdJOSY--MT85QHqQk_w5lgRg8w8ztYjQ1uFjCo5Qt-Dm5-PcPj_yLXaPQi2aHEeF2vyKwyhxCy8_NeVv5qJF2qQAVr-\
    ma9yvMaZhgP6_KCuz8vSgWPL7lK81kvksmk07JrJ_RLg6IqsQKe_lqkNqjasYXDiLnOU5nfFd9437WjckmollQe5ML2WH-Rp0xO_r65hz31BQn\
    lY2MrNa3n1j0190OyyXS5ZQL7xpdk384XTJoldO04HCn1-\
    phHicmAr__JyEQo1WYt8joeOxisVBE0MOH9t4XSOUWAFPcAARvlmcibDTYwS4fP5465UCb4mLR1KneOtuw";
const RSA_TOKEN: &str = "\
    eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCIsImtpZCI6InJzYSJ9.eyJpc3MiOiJodHRwczovL2EuZXhhbXBsZSIsImF1ZCI6Imh0dHBzOi8vZ\
    3cuZXhhbXBsZS9tY3AiLCJzdWIiOiJhbGljZSIsImV4cCI6MTkwMDAwMDAwMH0.jNPQvsdeHsZrs-\
    bY8Mgx_vJO56RKlJSjebWJx8Aa7fRjs4QmlMPIBSc-BeXxTuqvfgZ72oDuQ31Jc7aqELW_SCPzMVYCtOjQUT3skTDsDFEeveShqDaVmuNPfLf_\
    2Ctl9xBC6m-RhMj1aicJt5ERSmEQbDD7_TdUJ-R6BWdTakYcynb5IZtLb58KDL56fpWj9hoyIh8P7JiaZdLk67DPeSBIit_ttr5GbLqYpZU-\
    zEcuUlcDfJNa2CfSatAtC8EI70oYFZ2pdtF4UQahqK-Wb-pdfdzsrZFv0cThk_6Ky8r6lMqcAiISpzZAigO8Rig_f2S0cNL4cayjXRTS3EbuWA";

fn rsa() -> Value {
    json!({ "kty": "RSA", "kid": "rsa", "n": RSA_N, "e": "AQAB" })
}

fn with(mut key: Value, changes: &Value) -> Value {
    merge(&mut key, changes);
    key
}

/// An identity with these keys in a file and these algorithms allowed.
fn allowing(algorithms: &[Algorithm], keys: &[&Value]) -> Result<Identity, StartError> {
    let file = file(&jwks(keys));
    let issuer = Issuer { algorithms: algorithms.to_vec(), ..issuer(ISSUER, Keys::File(file.path().into())) };
    Identity::new(Config { issuers: vec![issuer], ..Config::default() })
}

fn hmac(secret: &[u8], algorithm: Algorithm, kid: Option<&str>) -> String {
    let header = json!({ "alg": format!("{algorithm:?}"), "kid": kid });
    let signed = format!("{}.{}", b64(with(header, &json!({ "kid": kid })).to_string()), b64(payload(&json!({}))));
    let signature =
        jsonwebtoken::crypto::sign(signed.as_bytes(), &EncodingKey::from_secret(secret), algorithm).expect("signature");
    format!("{signed}.{signature}")
}

#[tokio::test]
async fn an_rsa_token_verifies_with_its_key_and_algorithm_only() {
    assert_eq!(accepted(&trusting(&[&rsa()]), &bearing(RSA_TOKEN)).await.subject, "alice");
    let own = with(rsa(), &json!({ "alg": "RS256", "use": "sig", "key_ops": ["verify"] }));
    accepted(&trusting(&[&own]), &bearing(RSA_TOKEN)).await;

    let es_only = allowing(&[Algorithm::ES256], &[&rsa()]).expect("identity");
    assert!(refused(&es_only, &bearing(RSA_TOKEN)).await.contains("`alg` is not accepted"));
    let ours = Signer::new("one").jwk;
    for unfit in [
        json!({ "alg": "RS512" }),
        json!({ "alg": "PS256" }),
        json!({ "alg": "RSA-OAEP" }),
        json!({ "use": "enc" }),
        json!({ "key_ops": ["encrypt"] }),
    ] {
        let identity = trusting(&[&with(rsa(), &unfit), &ours]);
        let words = refused(&identity, &bearing(RSA_TOKEN)).await;
        assert!(words.contains("no key that fits") || words.contains("names none"), "{unfit}: {words}");
    }
}

#[tokio::test]
async fn a_public_key_is_never_an_hmac_secret() {
    let signer = Signer::new("ec");
    let all = [Algorithm::ES256, Algorithm::RS256, Algorithm::HS256];
    let identity = allowing(&all, &[&rsa(), &signer.jwk]).expect("identity");
    let n = URL_SAFE_NO_PAD.decode(RSA_N).expect("base64");
    let jwk = rsa().to_string();
    for secret in [n.as_slice(), RSA_N.as_bytes(), jwk.as_bytes(), b""] {
        for kid in [Some("rsa"), Some("ec"), None] {
            let words = refused(&identity, &bearing(&hmac(secret, Algorithm::HS256, kid))).await;
            assert_eq!(words, "the issuer has no key that fits the token's `alg` and `kid`");
        }
    }
    // And where HMAC is not in the list, it does not come to the keys at all.
    let words = refused(&trusting(&[&rsa()]), &bearing(&hmac(&n, Algorithm::HS256, Some("rsa")))).await;
    assert!(words.contains("`alg` is not accepted"));
}

#[tokio::test]
async fn hmac_works_where_it_is_allowed_by_name_with_a_long_secret_from_a_file() {
    let secret = [7; 32];
    let oct = json!({ "kty": "oct", "kid": "s", "k": b64(secret) });
    let identity = allowing(&[Algorithm::HS256, Algorithm::HS512], &[&oct]).expect("identity");
    accepted(&identity, &bearing(&hmac(&secret, Algorithm::HS256, Some("s")))).await;
    refused(&identity, &bearing(&hmac(&[8; 32], Algorithm::HS256, Some("s")))).await;
    assert!(
        refused(&identity, &bearing(&hmac(&secret, Algorithm::HS512, Some("s")))).await.contains("no key that fits")
    );

    let not_named = allowing(&[Algorithm::ES256], &[&oct]).expect("identity");
    assert!(
        refused(&not_named, &bearing(&hmac(&secret, Algorithm::HS256, Some("s"))))
            .await
            .contains("`alg` is not accepted")
    );
    let short = json!({ "kty": "oct", "kid": "s", "k": b64([7; 31]) });
    assert!(allowing(&[Algorithm::HS256], &[&short]).is_err(), "a short secret is no key");
}

#[test]
fn weak_and_broken_keys_are_no_keys() {
    let ec = Signer::new("one").jwk;
    for (key, changes) in [
        (rsa(), json!({ "n": b64([0xff; 128]) })),
        (rsa(), json!({ "n": b64([&[0; 200][..], &[0xff; 128]].concat()) })),
        (rsa(), json!({ "n": b64([0xff; 1024]) })),
        (rsa(), json!({ "n": "%%%" })),
        (rsa(), json!({ "e": null })),
        (ec.clone(), json!({ "crv": "P-521" })),
        (ec.clone(), json!({ "crv": "P-384" })),
        (ec.clone(), json!({ "x": b64([1; 31]) })),
        (ec.clone(), json!({ "kty": "AKP" })),
        (ec, json!({ "alg": "ES384" })),
    ] {
        let key = with(key, &changes);
        let error = allowing(&[Algorithm::ES256], &[&key]).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("has no key that can verify a token")), "{key}");
    }
}

#[tokio::test]
async fn one_bad_key_does_not_spoil_the_set() {
    let signer = Signer::new("one");
    let identity = trusting(&[&json!("x"), &json!({ "kty": "RSA" }), &signer.jwk]);
    accepted(&identity, &bearing(&signer.good())).await;
}

#[tokio::test]
async fn keys_that_share_a_kid_are_all_tried() {
    let (first, second) = (Signer::new("same"), Signer::new("same"));
    let identity = trusting(&[&first.jwk, &second.jwk]);
    accepted(&identity, &bearing(&first.good())).await;
    accepted(&identity, &bearing(&second.good())).await;
    refused(&identity, &bearing(&Signer::new("same").good())).await;
}

#[tokio::test]
async fn an_issuer_cannot_speak_for_another() {
    let (a, b) = (Signer::new("one"), Signer::new("one"));
    let (files, name) = ((file(&jwks(&[&a.jwk])), file(&jwks(&[&b.jwk]))), "https://b.example");
    let mut other = issuer(name, Keys::File(files.1.path().into()));
    other.audiences = vec!["b-only".into()];
    let identity = with_issuers(vec![issuer(ISSUER, Keys::File(files.0.path().into())), other]);
    assert_eq!(identity.authorization_servers("https://gw"), [ISSUER, name]);

    accepted(&identity, &bearing(&a.good())).await;
    let for_b = json!({ "iss": name, "aud": "b-only" });
    assert_eq!(accepted(&identity, &bearing(&b.token(&json!({}), &for_b))).await.issuer, name);
    assert_eq!(
        refused(&identity, &bearing(&a.token(&json!({}), &for_b))).await,
        "the token's signature does not verify"
    );
    assert_eq!(refused(&identity, &bearing(&b.good())).await, "the token's signature does not verify");
    // The audience of one issuer is no audience for the other.
    assert!(refused(&identity, &bearing(&a.token(&json!({}), &json!({ "aud": "b-only" })))).await.contains("`aud`"));
}
