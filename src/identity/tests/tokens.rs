//! Tables of tokens, good and bad, against one issuer whose keys are in a file.

use super::*;

/// Each case changes a good token; `expected` is a part of the refusal.
struct Case {
    header: Value,
    claims: Value,
    expected: &'static str,
}

fn header(header: Value, expected: &'static str) -> Case {
    Case { header, claims: json!({}), expected }
}

fn claims(claims: Value, expected: &'static str) -> Case {
    Case { header: json!({}), claims, expected }
}

async fn check_refused(cases: Vec<Case>) {
    let signer = Signer::new("one");
    let identity = trusting(&[&signer.jwk]);
    accepted(&identity, &bearing(&signer.good())).await;
    for Case { header, claims, expected } in cases {
        let token = signer.token(&header, &claims);
        let words = refused(&identity, &bearing(&token)).await;
        assert!(words.contains(expected), "{header} {claims}: got `{words}`, expected `{expected}`");
    }
}

async fn check_accepted(changes: &Value) -> Arc<Principal> {
    let signer = Signer::new("one");
    let identity = trusting(&[&signer.jwk]);
    identity
        .verify(&bearing(&signer.token(&json!({}), changes)))
        .await
        .unwrap_or_else(|error| panic!("{changes}: {error}"))
}

#[tokio::test]
async fn a_good_token_names_its_principal() {
    let principal = check_accepted(&json!({
        "sub": "alice", "azp": "cli", "tid": "contoso", "scope": "mcp.read  files:read", "scp": ["mcp.write", "mcp.read"],
        "roles": ["Reader"], "groups": ["g1", "g2"], "act": { "sub": "agent-7", "act": { "sub": "earlier" } },
    }))
    .await;
    assert_eq!((principal.kind, principal.method, principal.mtls), (Kind::Agent, Method::Bearer, false));
    assert_eq!((principal.subject.as_str(), principal.issuer.as_str()), ("alice", ISSUER));
    assert_eq!(principal.scopes, set(&["files:read", "mcp.read", "mcp.write"]));
    assert_eq!((principal.roles.clone(), principal.groups.clone()), (set(&["Reader"]), set(&["g1", "g2"])));
    assert_eq!((principal.actor.as_deref(), principal.client.as_deref()), (Some("agent-7"), Some("cli")));
    assert_eq!(principal.tenant.as_deref(), Some("contoso"));
    assert_eq!(principal.expires_at(), Some(wall(NOW + 600)));
}

#[tokio::test]
async fn how_and_when_somebody_logged_in_is_known_where_the_token_says_it() {
    let silent = check_accepted(&json!({})).await;
    assert_eq!((silent.acr.as_deref(), silent.amr.len(), silent.auth_time), (None, 0, None));
    let strong = json!({ "acr": "urn:mfa", "amr": ["pwd", "mfa"], "auth_time": NOW - 60 });
    let strong = check_accepted(&strong).await;
    assert_eq!((strong.acr.as_deref(), strong.auth_time), (Some("urn:mfa"), Some(wall(NOW - 60))));
    assert_eq!(strong.amr, set(&["mfa", "pwd"]));
    assert_ne!(silent.authority(), strong.authority(), "policy can tell them apart");
    assert_eq!(check_accepted(&json!({ "acr": 2 })).await.acr.as_deref(), Some("2"));
    check_refused(vec![
        claims(json!({ "acr": ["x"] }), "`acr`"),
        claims(json!({ "amr": [1] }), "`amr`"),
        claims(json!({ "auth_time": "yesterday" }), "`auth_time`"),
    ])
    .await;
}

#[tokio::test]
async fn scopes_are_whole_words_and_none_are_none() {
    for (changes, expected) in [
        (json!({}), vec![]),
        (json!({ "scp": "" }), vec![]),
        (json!({ "scp": "a b" }), vec!["a", "b"]),
        (json!({ "scp": ["a", "b", "a"] }), vec!["a", "b"]),
        (json!({ "scp": "a", "scope": "b a" }), vec!["a", "b"]),
        (json!({ "scp": "read.all" }), vec!["read.all"]),
        (json!({ "scp": "READ" }), vec!["READ"]),
        (json!({ "scp": "a,b" }), vec!["a,b"]),
    ] {
        assert_eq!(check_accepted(&changes).await.scopes, set(&expected), "{changes}");
    }
}

#[tokio::test]
async fn the_kind_tells_users_from_services() {
    for (changes, expected) in [
        (json!({}), Kind::User),
        (json!({ "idtyp": "app", "roles": ["R"] }), Kind::Service),
        (json!({ "idtyp": "app", "sub": null, "oid": "app-object" }), Kind::Service),
        (json!({ "idtyp": "user", "oid": "alice", "roles": ["R"] }), Kind::User),
        (json!({ "client_id": "alice", "scope": "a" }), Kind::Service),
        (json!({ "client_id": "cli" }), Kind::User),
        (json!({ "act": { "sub": "helper" } }), Kind::Agent),
        (json!({ "oid": "alice", "appid": "cli", "roles": ["R"] }), Kind::Service),
        (json!({ "oid": "alice", "appid": "cli", "roles": ["R"], "scp": "a" }), Kind::User),
    ] {
        assert_eq!(check_accepted(&changes).await.kind, expected, "{changes}");
    }
}

#[tokio::test]
async fn groups_that_are_left_out_are_unknown_and_not_none() {
    for (changes, unknown) in [
        (json!({}), false),
        (json!({ "groups": ["g"] }), false),
        (json!({ "hasgroups": false }), false),
        (json!({ "_claim_names": { "roles": "src1" } }), false),
        (json!({ "_claim_names": { "groups": "src1" }, "_claim_sources": { "src1": { "endpoint": "x" } } }), true),
        (json!({ "_claim_names": { "groups": "src1" }, "groups": ["g"] }), true),
        (json!({ "_claim_names": "groups" }), true),
        (json!({ "hasgroups": true }), true),
        (json!({ "hasgroups": "true" }), true),
    ] {
        assert_eq!(check_accepted(&changes).await.groups_unknown, unknown, "{changes}");
    }
    // Policy must not take one for the other: what it remembers is kept by authority.
    let all = check_accepted(&json!({})).await;
    let unknown = check_accepted(&json!({ "hasgroups": true })).await;
    assert_eq!(all.key(), unknown.key());
    assert_ne!(all.authority(), unknown.authority());
}

#[tokio::test]
async fn an_audience_must_be_ours() {
    for ours in [json!(AUDIENCE), json!(["x", AUDIENCE]), json!("other")] {
        check_accepted(&json!({ "aud": ours })).await;
    }
    let expected = "`aud` does not contain an accepted audience; expected `other` or `https://gw.example/mcp`";
    let upper = AUDIENCE.to_uppercase();
    let slash = format!("{AUDIENCE}/");
    check_refused(vec![
        claims(json!({ "aud": null }), expected),
        claims(json!({ "aud": "https://else.example" }), expected),
        claims(json!({ "aud": [] }), expected),
        claims(json!({ "aud": [[AUDIENCE]] }), expected),
        claims(json!({ "aud": [AUDIENCE, 1] }), expected),
        claims(json!({ "aud": { "0": AUDIENCE } }), expected),
        claims(json!({ "aud": upper }), expected),
        claims(json!({ "aud": slash }), expected),
        claims(json!({ "aud": format!("{AUDIENCE} other") }), expected),
    ])
    .await;
}

#[tokio::test]
async fn times_are_numbers_within_the_leeway() {
    for good in [
        json!({ "exp": NOW - 29 }),
        json!({ "exp": NOW as f64 + 1.5 }),
        json!({ "nbf": NOW + 30 }),
        json!({ "iat": NOW + 30, "nbf": NOW }),
        json!({ "iat": null }),
        json!({ "iat": 0 }),
    ] {
        check_accepted(&good).await;
    }
    check_refused(vec![
        claims(json!({ "exp": null }), "has no `exp`"),
        claims(json!({ "exp": NOW - 30 }), "has expired"),
        claims(json!({ "exp": NOW as f64 - 29.5 }), "has expired"),
        claims(json!({ "exp": 0 }), "has expired"),
        claims(json!({ "nbf": NOW + 31 }), "not valid yet"),
        claims(json!({ "nbf": NOW as f64 + 30.1 }), "not valid yet"),
        claims(json!({ "iat": NOW + 31 }), "issued in the future"),
        claims(json!({ "exp": NOW.to_string() }), "`exp` is not a time"),
        claims(json!({ "exp": -1 }), "`exp` is not a time"),
        claims(json!({ "exp": -1.5 }), "`exp` is not a time"),
        claims(json!({ "exp": u64::MAX }), "`exp` is not a time"),
        claims(json!({ "exp": i64::MAX }), "`exp` is not a time"),
        claims(json!({ "exp": 1e300 }), "`exp` is not a time"),
        claims(json!({ "exp": true }), "`exp` is not a time"),
        claims(json!({ "exp": [NOW + 600] }), "`exp` is not a time"),
        claims(json!({ "nbf": "0" }), "`nbf` is not a time"),
        claims(json!({ "nbf": -1 }), "`nbf` is not a time"),
        claims(json!({ "iat": "0" }), "`iat` is not a time"),
        claims(json!({ "iat": 1e20 }), "`iat` is not a time"),
    ])
    .await;
}

#[tokio::test]
async fn a_leeway_of_more_than_a_minute_is_a_minute() {
    let signer = Signer::new("one");
    let keys = file(&jwks(&[&signer.jwk]));
    let generous = Issuer { leeway: Duration::from_secs(3600), ..issuer(ISSUER, Keys::File(keys.path().into())) };
    let identity = with_issuers(vec![generous]);
    accepted(&identity, &bearing(&signer.token(&json!({}), &json!({ "exp": NOW - 59 })))).await;
    refused(&identity, &bearing(&signer.token(&json!({}), &json!({ "exp": NOW - 60 })))).await;
}

#[tokio::test]
async fn tokens_of_other_types_are_refused() {
    for typ in [json!(null), json!("JWT"), json!("jwt"), json!("AT+JWT"), json!("application/at+jwt")] {
        let signer = Signer::new("one");
        accepted(&trusting(&[&signer.jwk]), &bearing(&signer.token(&json!({ "typ": typ }), &json!({})))).await;
    }
    check_refused(vec![
        header(json!({ "typ": "oauth-id-jag+jwt" }), "`typ` is not that of an access token"),
        header(json!({ "typ": "logout+jwt" }), "`typ` is not that of an access token"),
        header(json!({ "typ": "dpop+jwt" }), "`typ` is not that of an access token"),
        header(json!({ "typ": "application/application/jwt" }), "`typ` is not that of an access token"),
        header(json!({ "typ": "" }), "`typ` is not that of an access token"),
        header(json!({ "typ": 1 }), "`typ` is not that of an access token"),
        claims(json!({ "nonce": "n" }), "is an ID token"),
        claims(json!({ "at_hash": "h" }), "is an ID token"),
        claims(json!({ "typ": "Refresh" }), "`typ` claim"),
        claims(json!({ "typ": "ID" }), "`typ` claim"),
    ])
    .await;
}

#[tokio::test]
async fn who_is_meant_must_be_clear() {
    let many: Vec<String> = (0..257).map(|n| format!("g{n}")).collect();
    let words = many.join(" ");
    let long = "x".repeat(257);
    check_refused(vec![
        claims(json!({ "sub": null }), "has no `sub`"),
        claims(json!({ "sub": null, "oid": "object" }), "has no `sub`"),
        claims(json!({ "sub": "" }), "`sub` is not a name"),
        claims(json!({ "sub": 7 }), "`sub` is not a name"),
        claims(json!({ "sub": "a\nb" }), "`sub` is not a name"),
        claims(json!({ "sub": "x".repeat(513) }), "`sub` is not a name"),
        claims(json!({ "tid": "" }), "`tid` is not a name"),
        claims(json!({ "tid": ["contoso"] }), "`tid` is not a name"),
        claims(json!({ "tid": "a|b" }), "`tid` is not fit to name a tenant"),
        claims(json!({ "azp": 1 }), "`azp` is not a name"),
        claims(json!({ "act": "agent" }), "`act` is not an object"),
        claims(json!({ "act": {} }), "`act` has no `sub`"),
        claims(json!({ "groups": many }), "`groups` is not at most 256"),
        claims(json!({ "roles": many }), "`roles` is not at most 256"),
        claims(json!({ "scp": many }), "`scp` is not at most 256"),
        claims(json!({ "scope": words }), "`scope` is not at most 256"),
        claims(json!({ "groups": [long] }), "`groups` is not at most 256"),
        claims(json!({ "roles": ["a", 1] }), "`roles` is not at most 256"),
        claims(json!({ "groups": { "a": 1 } }), "`groups` is not at most 256"),
        claims(json!({ "scp": ["a b"] }), "`scp` is not at most 256"),
        claims(json!({ "scp": 1 }), "`scp` is not at most 256"),
        claims(json!({ "iss": null }), "`iss` is not an accepted issuer; expected `https://a.example`"),
        claims(json!({ "iss": [ISSUER] }), "`iss` is not an accepted issuer"),
        claims(json!({ "iss": format!("{ISSUER}/") }), "`iss` is not an accepted issuer"),
        claims(json!({ "iss": "HTTPS://A.EXAMPLE" }), "`iss` is not an accepted issuer"),
    ])
    .await;
}

#[tokio::test]
async fn a_header_cannot_bring_its_own_key_or_algorithm() {
    let signer = Signer::new("one");
    check_refused(vec![
        header(json!({ "jwk": signer.jwk }), "header has `jwk`"),
        header(json!({ "jku": "https://evil.example/jwks" }), "header has `jku`"),
        header(json!({ "x5u": "https://evil.example/cert" }), "header has `x5u`"),
        header(json!({ "x5c": ["MII"] }), "header has `x5c`"),
        header(json!({ "crit": ["exp"], "exp": 1 }), "header has `crit`"),
        header(json!({ "crit": [] }), "header has `crit`"),
        header(json!({ "alg": "none" }), "`alg` is not accepted"),
        header(json!({ "alg": "None" }), "`alg` is not accepted"),
        header(json!({ "alg": "" }), "`alg` is not accepted"),
        header(json!({ "alg": null }), "`alg` is not accepted"),
        header(json!({ "alg": ["ES256"] }), "`alg` is not accepted"),
        header(json!({ "alg": "es256" }), "`alg` is not accepted"),
        header(json!({ "alg": "HS256" }), "`alg` is not accepted"),
        header(json!({ "alg": "ES384" }), "`alg` is not accepted"),
        // In the issuer's list, but there is no such key.
        header(json!({ "alg": "RS256" }), "no key that fits"),
    ])
    .await;
}

#[tokio::test]
async fn a_kid_is_only_ever_compared() {
    let none = "names none of the issuer's keys";
    let not = "`kid` is not a short text";
    check_refused(vec![
        header(json!({ "kid": "../../etc/passwd" }), none),
        header(json!({ "kid": "one'--" }), none),
        header(json!({ "kid": "x".repeat(256) }), none),
        header(json!({ "kid": "ONE" }), none),
        header(json!({ "kid": "' OR 1=1" }), not),
        header(json!({ "kid": "one\u{0}" }), not),
        header(json!({ "kid": "one\r\nx" }), not),
        header(json!({ "kid": "x".repeat(257) }), not),
        header(json!({ "kid": "" }), not),
        header(json!({ "kid": 1 }), not),
        header(json!({ "kid": ["one"] }), not),
    ])
    .await;
    let signer = Signer::new("one");
    let huge = signer.token(&json!({ "kid": "x".repeat(64 * 1024) }), &json!({}));
    assert_eq!(refused(&trusting(&[&signer.jwk]), &bearing(&huge)).await, "the token is too long");
    accepted(&trusting(&[&signer.jwk]), &bearing(&signer.token(&json!({ "kid": null }), &json!({})))).await;
}

#[tokio::test]
async fn a_token_must_be_read_in_one_way_only() {
    let signer = Signer::new("one");
    let identity = trusting(&[&signer.jwk]);
    let head = r#"{"alg":"ES256","kid":"one"}"#;
    accepted(&identity, &bearing(&signer.sign_text(head, &payload(&json!({}))))).await;
    for bad in [
        r#"{"alg":"none","alg":"ES256","kid":"one"}"#,
        r#"{"alg":"ES256","a\u006cg":"ES256"}"#,
        "[]",
        "",
        "\"x\"",
        "{} ",
    ] {
        refused(&identity, &bearing(&signer.sign_text(bad, &payload(&json!({}))))).await;
    }
    let twice = payload(&json!({})).replacen('{', &format!("{{\"aud\":\"{AUDIENCE}\","), 1);
    assert!(refused(&identity, &bearing(&signer.sign_text(head, &twice))).await.contains("strict JSON"));
    for bad in ["", "x", "null", "{}x"] {
        refused(&identity, &bearing(&signer.sign_text(head, bad))).await;
    }
    let good = signer.good();
    let (signed, signature) = good.rsplit_once('.').expect("parts");
    for bad in [
        "a".to_owned(),
        "a.b".to_owned(),
        "..".to_owned(),
        format!("{signed}."),
        signed.to_owned(),
        format!("{good}."),
        format!("{good}.x"),
        format!("{good}.x.y"),
        format!("{good}="),
        format!(".{good}"),
        format!("{signed}.{}", "A".repeat(signature.len())),
        format!("{signed}.{}", signature.chars().rev().collect::<String>()),
    ] {
        refused(&identity, &bearing(&bad)).await;
    }
}

#[tokio::test]
async fn a_changed_claim_breaks_the_signature() {
    let signer = Signer::new("one");
    let good = signer.good();
    let parts: Vec<&str> = good.split('.').collect();
    let forged = format!("{}.{}.{}", parts[0], b64(payload(&json!({ "sub": "admin" }))), parts[2]);
    assert_eq!(refused(&trusting(&[&signer.jwk]), &bearing(&forged)).await, "the token's signature does not verify");
}

#[tokio::test]
async fn no_refusal_repeats_what_the_token_says() {
    let signer = Signer::new("one");
    let identity = trusting(&[&signer.jwk]);
    for (header, claims) in [
        (json!({ "kid": "CANARY" }), json!({})),
        (json!({ "alg": "CANARY" }), json!({})),
        (json!({ "typ": "CANARY" }), json!({})),
        (json!({}), json!({ "iss": "CANARY" })),
        (json!({}), json!({ "aud": "CANARY" })),
        (json!({}), json!({ "exp": "CANARY" })),
        (json!({}), json!({ "sub": "CANARY\n" })),
        (json!({}), json!({ "act": "CANARY" })),
    ] {
        let words = refused(&identity, &bearing(&signer.token(&header, &claims))).await;
        assert!(!words.contains("CANARY"), "{words}");
    }
}

#[tokio::test]
async fn a_token_bound_to_a_certificate_needs_that_certificate() {
    let signer = Signer::new("one");
    let identity = trusting(&[&signer.jwk]);
    let print = b64([0xab; 32]);
    let bound = signer.token(&json!({}), &json!({ "cnf": { "x5t#S256": print } }));
    let thief = ClientCertificate { fingerprint: "cd".repeat(32), ..agent_certificate() };
    // In both orders, so that the cached token is held to it too.
    for _ in 0..2 {
        assert!(refused(&identity, &bearing(&bound)).await.contains("bound to a client certificate"));
        assert!(
            refused(&identity, &with_certificate(bearing(&bound), thief.clone()))
                .await
                .contains("bound to a client certificate")
        );
        accepted(&identity, &with_certificate(bearing(&bound), agent_certificate())).await;
    }
    check_refused(vec![
        claims(json!({ "cnf": { "jkt": "x" } }), "proof of possession"),
        claims(json!({ "cnf": { "x5t#S256": print, "jkt": "x" } }), "proof of possession"),
        claims(json!({ "cnf": { "x5t#S256": print, "jwk": print } }), "proof of possession"),
        claims(json!({ "cnf": { "x5t#S256": "short" } }), "proof of possession"),
        claims(json!({ "cnf": "x" }), "proof of possession"),
    ])
    .await;
}

#[tokio::test]
async fn a_token_seen_before_is_held_to_the_time_again() {
    let signer = Signer::new("one");
    let identity = trusting(&[&signer.jwk]);
    let token = signer.token(&json!({}), &json!({ "nbf": NOW - 10, "iat": NOW - 10 }));
    let first = accepted(&identity, &bearing(&token)).await;
    let second = accepted(&identity, &bearing(&token)).await;
    assert!(Arc::ptr_eq(&first, &second), "the second use comes from the cache");
    let at = |time: i64| {
        let mut request = bearing(&token);
        request.at = wall(time);
        request
    };
    accepted(&identity, &at(NOW + 629)).await;
    assert_eq!(refused(&identity, &at(NOW + 630)).await, "the token has expired");
    assert_eq!(refused(&identity, &at(NOW - 41)).await, "the token is not valid yet (`nbf`)");
}

#[tokio::test]
async fn tokens_are_remembered_by_number_and_by_bytes() {
    let signer = Signer::new("one");
    let identity = trusting(&[&signer.jwk]);
    let weight = || {
        identity.tokens.run_pending_tasks();
        identity.tokens.weighted_size()
    };
    accepted(&identity, &bearing(&signer.good())).await;
    let small = weight();
    assert!(small * TOKENS_MAX >= TOKENS_BYTES_MAX && small * TOKENS_MAX <= TOKENS_BYTES_MAX + TOKENS_MAX, "{small}");
    let groups: Vec<String> = (0..100).map(|number| format!("{number:0>64}")).collect();
    accepted(&identity, &bearing(&signer.token(&json!({}), &json!({ "groups": groups })))).await;
    assert!(weight() >= small + 6400, "{}", weight());
}

#[test]
fn a_token_that_is_kept_weighs_its_own_bytes_too() {
    let signer = Signer::new("one");
    let file = file(&jwks(&[&signer.jwk]));
    let issuers = vec![issuer(ISSUER, Keys::File(file.path().into()))];
    let token = signer.token(&json!({}), &json!({ "unknown": "x".repeat(8000) }));
    let weigh = |assertions: bool| {
        let identity = Identity::new(Config { issuers: issuers.clone(), assertions, ..Config::default() });
        let identity = identity.expect("identity");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(identity.verify(&bearing(&token))).expect("a principal");
        identity.tokens.run_pending_tasks();
        identity.tokens.weighted_size()
    };
    assert!(weigh(true) >= token.len() as u64 && weigh(false) < 8000);
}
