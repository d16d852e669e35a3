//! An identity provider in trouble and clocks that differ: who may goes on, and nobody comes in who may not.

use super::issuer::Idp;
use super::issuer::MINUTE;
use super::issuer::later;
use super::issuer::settled;
use super::*;

/// A token nobody has sent before.
fn fresh(signer: &Signer, number: u64) -> String {
    signer.token(&json!({}), &json!({ "sub": format!("caller-{number}") }))
}

/// Sent so long after the start by the monotonic clock, however long the test itself takes.
fn at(start: Instant, token: &str, after: Duration) -> Request {
    let mut request = bearing(token);
    request.started = start + after;
    request
}

#[tokio::test]
async fn while_the_provider_is_down_tokens_of_known_keys_pass_and_others_are_told_to_retry() {
    let (known, rotated, forger) = (Signer::new("known"), Signer::new("rotated"), Signer::new("known"));
    let idp = Idp::start().await;
    idp.serve_keys(&[&known.jwk]);
    let identity = idp.trusted();
    identity.warm().await;
    let unavailable = Error::Unavailable { issuer: ISSUER.into() };

    let start = bearing("x").started;

    idp.serve("/jwks", 500, "");
    for second in (0..60).step_by(6) {
        let now = |token: &str| at(start, token, Duration::from_secs(second));
        accepted(&identity, &now(&fresh(&known, second))).await;
        // Rotated meanwhile: whether it is good cannot be said, so the token is not called bad.
        assert_eq!(identity.verify(&now(&fresh(&rotated, second))).await.unwrap_err(), unavailable);
        assert_eq!(refused(&identity, &now(&fresh(&forger, second))).await, "the token's signature does not verify");
        let expired = known.token(&json!({}), &json!({ "exp": NOW - 60 }));
        assert_eq!(refused(&identity, &now(&expired)).await, "the token has expired");
    }
    assert_eq!(idp.asked(), 2, "it is not hammered while it is down");

    idp.serve_keys(&[&known.jwk, &rotated.jwk]);
    let back = MINUTE + Duration::from_secs(5);
    accepted(&identity, &at(start, &fresh(&rotated, 100), back)).await;
    assert!(refused(&identity, &at(start, &Signer::new("none").good(), back)).await.contains("names none"));
}

#[tokio::test]
async fn a_slow_provider_delays_only_those_who_need_it() {
    let (known, rotated) = (Signer::new("known"), Signer::new("rotated"));
    let idp = Idp::start().await;
    idp.serve_keys(&[&known.jwk]);
    let identity = idp.trusted();
    identity.warm().await;
    // What `warm` told; from now on, somebody is waiting.
    idp.inner.arrived.notified().await;

    let gate = idp.close_gate();
    idp.serve_keys(&[&known.jwk, &rotated.jwk]);
    let (waiting, old) = (bearing(&rotated.good()), later(bearing(&fresh(&known, 0)), MINUTE * 15));
    let rest = async {
        idp.inner.arrived.notified().await;
        // The fetch is under way and stuck: known keys go on, also when they are old enough to be asked for anew.
        accepted(&identity, &bearing(&fresh(&known, 1))).await;
        accepted(&identity, &old).await;
        gate.add_permits(100);
    };
    let (late, ()) = tokio::join!(identity.verify(&waiting), rest);
    assert_eq!(late.expect("accepted once the keys are there").subject, "alice");
    settled(&identity).await;
    assert_eq!(idp.asked(), 2);
}

#[tokio::test]
async fn a_rotation_under_load_refuses_nobody() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let idp = Idp::start().await;
    idp.serve_keys(&[&old.jwk]);
    let identity = idp.trusted();
    identity.warm().await;
    let start = bearing("x").started;
    for second in (0..1300).step_by(10) {
        match second {
            600 => idp.serve_keys(&[&old.jwk, &new.jwk]),
            // The usual order: tokens of the old key have expired before it goes.
            900 => idp.serve_keys(&[&new.jwk]),
            _ => {}
        }
        let signer = if second < 600 { &old } else { &new };
        accepted(&identity, &at(start, &fresh(signer, second), Duration::from_secs(second))).await;
    }
    settled(&identity).await;
    let stale = at(start, &fresh(&old, 1), Duration::from_secs(1301));
    assert!(refused(&identity, &stale).await.contains("names none"), "the key that went is not trusted any more");
}

#[tokio::test]
async fn a_clock_that_is_five_minutes_off_neither_opens_nor_crashes() {
    let signer = Signer::new("one");
    let identity = trusting(&[&signer.jwk]);
    let hour = signer.token(&json!({}), &json!({ "nbf": NOW - 60, "exp": NOW + 3600 }));
    let new = signer.token(&json!({}), &json!({ "iat": NOW, "nbf": NOW, "exp": NOW + 3600, "sub": "new" }));
    let over = signer.token(&json!({}), &json!({ "iat": NOW - 3600, "exp": NOW - 31, "sub": "over" }));
    let at = |token: &str, seconds: i64| {
        let mut request = bearing(token);
        request.at = wall(NOW + seconds);
        request
    };
    for round in 0..2 {
        // Ahead: tokens in the middle of their life pass.
        accepted(&identity, &at(&hour, 300)).await;
        accepted(&identity, &at(&new, 300)).await;
        assert_eq!(refused(&identity, &at(&over, 300)).await, "the token has expired", "{round}");
        // Behind: what was issued just now has not begun, and the words say which claim.
        assert_eq!(refused(&identity, &at(&new, -300)).await, "the token is not valid yet (`nbf`)");
        assert_eq!(refused(&identity, &at(&hour, -300)).await, "the token is not valid yet (`nbf`)");
        // Right again: seen or not, the same token is judged by the time of now.
        accepted(&identity, &at(&hour, 0)).await;
        accepted(&identity, &at(&new, 0)).await;
        assert_eq!(refused(&identity, &at(&over, 0)).await, "the token has expired");
        accepted(&identity, &at(&new, -30)).await;
        assert_eq!(refused(&identity, &at(&new, -31)).await, "the token is not valid yet (`nbf`)");
        assert_eq!(refused(&identity, &at(&hour, 3630)).await, "the token has expired");
    }
}
