//! A real OpenID provider (`tests/real/exchange.mjs`): tokens exchanged by it, and what holds while it hangs, is gone or has
//! other keys or another clock.

use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use jsonwebtoken::DecodingKey;
use jsonwebtoken::Validation;
use jsonwebtoken::jwk::JwkSet;
use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

use crate::harness::AUDIENCE;
use crate::harness::Answer;
use crate::harness::Rig;
use crate::harness::client;
use crate::live::real;
use crate::live::tool;
use crate::scripted;
use crate::scripted::Scripted;

/// Whoever is not being waited for by a provider is answered well within this.
const PROMPT: Duration = Duration::from_secs(4);

/// A fetch from the provider, and some of ours.
const PATIENT: Duration = Duration::from_secs(12);

/// A provider with keys on disk, on one port for all of its lives; ended when dropped.
struct Provider {
    child: Child,
    issuer: String,
    folder: TempDir,
    client: reqwest::Client,
}

impl Provider {
    /// `keys`: those it publishes; it signs with the first.
    fn start(keys: &str) -> Provider {
        let folder = tempfile::tempdir().unwrap();
        let (child, issuer) = Provider::run(folder.path(), keys, 0);
        Provider { child, issuer, folder, client: client() }
    }

    fn run(folder: &Path, keys: &str, port: u16) -> (Child, String) {
        let mut child = Command::new(tool("WARDGATE_NODE"))
            .arg(real("exchange.mjs"))
            .arg(folder)
            .args(["--keys", keys, "--port", &port.to_string()])
            .env("WARDGATE_NODE_MODULES", tool("WARDGATE_NODE_MODULES"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the provider starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: the provider said {line:?}"));
        (child, said["issuer"].as_str().unwrap().to_owned())
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success(), "{signal}");
    }

    /// As `kill -9` leaves it.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its next life, with these keys.
    fn restart(&mut self, keys: &str) {
        // Does nothing to one that is dead already.
        self.kill();
        let port = self.issuer.rsplit(':').next().unwrap().parse().unwrap();
        let (child, issuer) = Provider::run(self.folder.path(), keys, port);
        assert_eq!(issuer, self.issuer);
        self.child = child;
    }

    /// A token that the provider itself issues to a client for this account.
    async fn token(&self, account: &str) -> String {
        let form = [
            ("grant_type", "urn:test:account"),
            ("client_id", "client"),
            ("client_secret", "s3cret"),
            ("account", account),
            ("audience", AUDIENCE),
            ("scope", "mcp.read"),
        ];
        let form = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let sent = self.client.post(format!("{}/token", self.issuer)).body(form);
        let sent = sent.header("content-type", "application/x-www-form-urlencoded").send().await.unwrap();
        let answer: Value = sent.json().await.unwrap();
        answer["access_token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// Tokens of any claims, signed with this key.
    async fn sign(&self, key: u32, claims: impl IntoIterator<Item = Value>) -> Vec<String> {
        let all: Vec<_> = claims.into_iter().map(|claims| json!({ "key": key, "claims": claims })).collect();
        let sent = self.client.post(format!("{}/sign", self.issuer)).body(json!(all).to_string()).send().await.unwrap();
        sent.json().await.unwrap()
    }

    /// So many callers' good tokens, each for one who has not been seen.
    async fn callers(&self, key: u32, prefix: &str, count: usize) -> Vec<String> {
        self.sign(key, (0..count).map(|number| claims(&format!("{prefix}-{number}"), json!({})))).await
    }

    /// A gateway that believes it.
    async fn rig(&self, adjust: impl FnOnce(&mut Value)) -> Rig {
        Rig::with(|file| {
            file["identity"] = json!([{ "oidc": { "issuer": self.issuer, "audience": AUDIENCE } }]);
            adjust(file);
        })
        .await
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// Those of a good token, but for the changes; what is changed to null is left out.
fn claims(subject: &str, changes: Value) -> Value {
    let now = now();
    let mut claims = json!({
        "sub": subject, "aud": AUDIENCE, "scope": "mcp.read", "client_id": "client", "iat": now, "nbf": now, "exp": now + 3600,
    });
    claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

/// The token under another signature.
fn forged(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (first, rest) = signature.split_at_checked(1).unwrap();
    let other = if first == "A" { "B" } else { "A" };
    format!("{signed}.{other}{rest}")
}

async fn listed(rig: &Rig, token: &str) -> (Answer, Duration) {
    let begun = Instant::now();
    let answer = rig.modern(token, "tools/list", json!({})).await;
    (answer, begun.elapsed())
}

async fn passes(rig: &Rig, token: &str) {
    let (answer, took) = listed(rig, token).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(took < PROMPT, "{took:?}");
}

async fn is_refused(rig: &Rig, token: &str, words: &str) {
    let (answer, took) = listed(rig, token).await;
    assert_eq!(answer.status, 401, "{}", answer.text);
    assert!(answer.text.contains(words), "{words}: {}", answer.text);
    assert!(took < PROMPT, "{took:?}");
}

/// Waits until this token is taken.
async fn comes_in(rig: &Rig, token: &str, within: Duration) {
    let begun = Instant::now();
    loop {
        let (answer, took) = listed(rig, token).await;
        assert!(took < PATIENT, "{took:?}");
        if answer.status == 200 {
            return;
        }
        assert!(matches!(answer.status, 401 | 503), "{}", answer.text);
        assert!(begun.elapsed() < within, "after {within:?}: {}", answer.text);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_of_somebody_else_exchanges_tokens_that_the_upstream_can_verify() {
    let provider = Provider::start("1");
    let keys: JwkSet = client().get(format!("{}/jwks", provider.issuer)).send().await.unwrap().json().await.unwrap();
    // What was in the token, when its signature, issuer, audience and times are good.
    let issuer = provider.issuer.clone();
    let verified = move |token: &str| -> Result<Value, String> {
        let key = DecodingKey::from_jwk(&keys.keys[0]).unwrap();
        let mut wanted = Validation::new(jsonwebtoken::Algorithm::RS256);
        wanted.set_audience(&["urn:notes"]);
        wanted.set_issuer(&[&issuer]);
        jsonwebtoken::decode::<Value>(token, &key, &wanted).map(|token| token.claims).map_err(|error| error.to_string())
    };
    let upstream = Scripted::start(move |_, headers, message| {
        if message["method"] == "tools/list" {
            return scripted::result(message, scripted::two_tools());
        }
        let sent = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let text = match verified(sent.strip_prefix("Bearer ").unwrap_or_default()) {
            Ok(claims) => claims.to_string(),
            Err(error) => format!("bad token: {error}"),
        };
        scripted::result(message, json!({ "resultType": "complete", "content": [{ "type": "text", "text": text }] }))
    })
    .await;
    let secret = provider.folder.path().join("secret");
    std::fs::write(&secret, "s3cret\n").unwrap();
    let gateway = json!({ "id": "gateway", "secret": format!("file:{}", secret.display()), "auth": "basic" });
    let exchange = json!({ "token_exchange": {
        "token_url": format!("{}/token", provider.issuer), "client": gateway, "audience": "urn:notes", "scope": "notes.read",
    } });
    let rig = provider
        .rig(|file| {
            file["backends"] = json!({ "notes": { "http": { "url": upstream.url }, "trust_annotations": true, "era": "modern", "credential": exchange } });
            file["routes"][0]["backends"] = json!(["notes"]);
        })
        .await;
    let look = || json!({ "name": "look", "arguments": {} });
    for (account, round) in [("alice", 1), ("bob", 1), ("alice", 2)] {
        let answer = rig.modern(&provider.token(account).await, "tools/call", look()).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let seen: Value = serde_json::from_str(answer.result_text()).unwrap_or_else(|_| panic!("{}", answer.text));
        assert_eq!((&seen["sub"], &seen["aud"]), (&json!(account), &json!("urn:notes")), "{round}");
        assert_eq!(
            (&seen["client_id"], &seen["act"]["sub"]),
            (&json!("gateway"), &json!("gateway")),
            "who acts for them"
        );
        assert_eq!(seen["scope"], "notes.read");
    }
    // The provider's own words for those it does not exchange for.
    let denied = rig.modern(&provider.token("denied-carol").await, "tools/call", look()).await;
    assert_eq!(
        (denied.status, denied.body["error"]["data"]["reason"].as_str()),
        (403, Some("exchange_denied")),
        "{}",
        denied.text
    );
    let twice = provider.sign(1, [claims("dave", json!({ "aud": [AUDIENCE, "https://elsewhere.example"] }))]).await;
    let refused = rig.modern(&twice[0], "tools/call", look()).await;
    assert_eq!(
        (refused.status, refused.body["error"]["data"]["reason"].as_str()),
        (502, Some("not_exchangeable")),
        "{}",
        refused.text
    );
    rig.app.shutdown().await;
}

/// A real minute: the provider hangs (its connections are accepted and never answered), then it is gone.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_provider_hangs_and_then_is_gone_for_a_minute_those_it_has_vouched_for_go_on() {
    const OUTAGE: Duration = Duration::from_secs(61);
    const HANGS: Duration = Duration::from_secs(20);
    /// So that the provider is asked once, and may be again as soon as it is back.
    const ASKED: Duration = Duration::from_secs(50);
    let mut provider = Provider::start("1");
    let rig = provider.rig(|_| {}).await;
    let fresh = provider.callers(1, "caller", 200).await;
    let rotated = provider.callers(2, "rotated", 40).await;
    let expired = provider.sign(1, [claims("late", json!({ "exp": now() - 120 }))]).await;
    let elsewhere = provider.sign(1, [claims("lost", json!({ "aud": "https://elsewhere.example" }))]).await;
    passes(&rig, &fresh[0]).await;

    provider.signal("-STOP");
    let begun = Instant::now();
    let mut every = tokio::time::interval(Duration::from_millis(500));
    let mut unknown = rotated.iter();
    let mut gone = false;
    let mut turns = 0;
    while begun.elapsed() < OUTAGE {
        every.tick().await;
        if !gone && begun.elapsed() > HANGS {
            provider.kill();
            gone = true;
        }
        turns += 1;
        // One who was seen before, one who was not, and those who have no business here.
        passes(&rig, &fresh[0]).await;
        passes(&rig, &fresh[turns % fresh.len()]).await;
        is_refused(&rig, &forged(&fresh[(turns + 7) % fresh.len()]), "signature").await;
        is_refused(&rig, &expired[0], "expired").await;
        is_refused(&rig, &elsewhere[0], "aud").await;
        // Of a key that nobody could tell us about: not called bad, not let in, and not kept waiting for long.
        if turns % 4 == 1 && begun.elapsed() < ASKED {
            let (answer, took) = listed(&rig, unknown.next().unwrap()).await;
            assert_eq!(answer.status, 503, "{}", answer.text);
            assert!(took < PATIENT, "{took:?}");
        }
    }
    assert!(gone && turns > 60, "{turns} turns");

    provider.restart("2,1");
    comes_in(&rig, unknown.next().unwrap(), Duration::from_secs(30)).await;
    passes(&rig, &fresh[0]).await;
    passes(&rig, &provider.token("after").await).await;
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_rotated_by_restarts_of_the_provider_and_old_tokens_hold_as_long_as_their_key_is_known() {
    let mut provider = Provider::start("1");
    let rig = provider.rig(|_| {}).await;
    let old = provider.callers(1, "old", 200).await;
    let issued = provider.token("before").await;
    passes(&rig, &issued).await;

    // The new key comes: it is found by the first token that names it.
    provider.restart("2,1");
    passes(&rig, &provider.token("after").await).await;
    passes(&rig, &old[0]).await;

    // The old one goes; until keys are fetched again it is as good as before, for new tokens, too.
    provider.restart("3,2");
    let mut next = 1;
    let newest = provider.token("newest").await;
    let begun = Instant::now();
    loop {
        let (answer, _) = listed(&rig, &newest).await;
        if answer.status == 200 {
            break;
        }
        assert_eq!(answer.status, 401, "{}", answer.text);
        passes(&rig, &old[next]).await;
        passes(&rig, &issued).await;
        next += 1;
        assert!(
            begun.elapsed() < Duration::from_secs(90),
            "a key that came right after a fetch is found a minute later"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // That fetch has shown that key 1 is gone: what was accepted before is not any more.
    is_refused(&rig, &issued, "names none").await;
    is_refused(&rig, &old[next], "names none").await;
    passes(&rig, &provider.callers(2, "middle", 1).await[0]).await;
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_whose_clock_is_off_is_believed_within_the_leeway_and_not_beyond() {
    let provider = Provider::start("1");
    let rig = provider.rig(|_| {}).await;
    let now = now();
    // As a provider issues them whose clock is so many seconds ahead of ours, for so long.
    let by_clock = |ahead: i64, lifetime: i64| {
        claims(
            &format!("caller-{ahead}-{lifetime}"),
            json!({ "iat": now + ahead, "nbf": now + ahead, "exp": now + ahead + lifetime }),
        )
    };
    let good = [by_clock(0, 3600), by_clock(15, 3600), by_clock(-300, 3600), by_clock(-310, 300)];
    for token in provider.sign(1, good).await {
        passes(&rig, &token).await;
    }
    let bad = [
        (by_clock(300, 3600), "not valid yet"),
        (by_clock(90, 3600), "not valid yet"),
        (by_clock(-360, 300), "expired"),
        (by_clock(-600, 300), "expired"),
        (claims("no-nbf", json!({ "iat": now + 300, "nbf": null, "exp": now + 3900 })), "issued in the future"),
        (claims("backwards", json!({ "iat": now, "nbf": now, "exp": now - 300 })), "expired"),
    ];
    for (claims, words) in bad {
        let token = provider.sign(1, [claims]).await.remove(0);
        // Also when it comes again.
        is_refused(&rig, &token, words).await;
        is_refused(&rig, &token, words).await;
    }
    rig.app.shutdown().await;
}
