//! Callers who are in more groups than a token holds: asked for at a stand-in of Microsoft Graph, or taken against them.

use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;

use crate::entra::CLIENT;
use crate::entra::Entra;
use crate::entra::Seen;
use crate::entra::upstream;
use crate::harness::Answer;
use crate::harness::Rig;
use crate::scripted::Scripted;

const CONTOSO: &str = "8a7b6c5d-4e3f-4a2b-9c1d-0e9f8a7b6c5d";
const FABRIKAM: &str = "72f988bf-86f1-41af-91ab-2d7cd011db47";
const ALICE: &str = "00000000-0000-4000-8000-00000000a11c";
const ROBOT: &str = "00000000-0000-4000-8000-000000000b07";
const READERS: &str = "0f0e0d0c-0b0a-4908-8706-050403020100";
const OTHERS: &str = "1f0e0d0c-0b0a-4908-8706-050403020100";

/// A gateway where only one group may read, before an upstream that has nothing to do with identity.
struct Stage {
    entra: Entra,
    rig: Rig,
    file: Value,
    _upstream: (Scripted, Seen),
}

impl Stage {
    /// `groups`: what is changed of the usual configuration of the question.
    async fn new(resolve: &str, groups: Value) -> Stage {
        let entra = Entra::start();
        let upstream = upstream(|_| None).await;
        let secret = entra.at("secret");
        std::fs::write(&secret, "s3cret\n").unwrap();
        let mut asked = json!({
            "resolve": resolve, "graph": entra.plain,
            "client": { "id": CLIENT, "secret": format!("file:{}", secret.display()) },
        });
        asked.as_object_mut().unwrap().extend(groups.as_object().unwrap().clone());
        let mut kept = Value::Null;
        let rig = Rig::with(|file| {
            file["identity"] = json!([{ "entra": {
                "tenants": [CONTOSO, FABRIKAM], "audience": CLIENT, "authority": entra.plain, "groups": asked,
            } }]);
            file["grants"] = json!([{ "group": READERS, "allow": ["read"] }]);
            file["backends"] =
                json!({ "notes": { "http": { "url": upstream.0.url }, "trust_annotations": true, "era": "modern" } });
            file["routes"][0]["backends"] = json!(["notes"]);
            kept = file.clone();
        })
        .await;
        Stage { entra, rig, file: kept, _upstream: upstream }
    }

    async fn members(&self, members: Value) {
        self.entra.set(json!({ "members": members })).await;
    }

    /// A token that leaves the groups out and, as Entra's do, names a place where nobody should ask.
    async fn token(&self, tenant: &str, oid: &str, claims: Value) -> String {
        let place = format!("{}/windows.net/{oid}/getMemberObjects", self.entra.plain);
        let mut all = json!({
            "iss": format!("{}/{tenant}/v2.0", self.entra.plain), "tid": tenant, "oid": oid, "sub": oid,
            "_claim_names": { "groups": "src1" }, "_claim_sources": { "src1": { "endpoint": place } },
        });
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        self.entra.token_with("somebody", all).await
    }

    async fn alice(&self) -> String {
        self.token(CONTOSO, ALICE, json!({})).await
    }

    async fn call(&self, token: &str) -> Answer {
        self.rig.modern(token, "tools/call", json!({ "name": "look", "arguments": {} })).await
    }

    async fn may(&self, token: &str) -> bool {
        let answer = self.call(token).await;
        let done = answer.body["result"]["content"].is_array();
        assert!(done || answer.body["error"].is_object(), "{}", answer.text);
        assert_ne!(answer.status, 401, "whoever they are, they are known: {}", answer.text);
        done
    }

    /// Waits until the answer is another one than now.
    async fn changes(&self, token: &str, to: bool, within: Duration) {
        let begun = Instant::now();
        while self.may(token).await != to {
            assert!(begun.elapsed() < within, "it did not become {to} within {within:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn questions(&self) -> Vec<Value> {
        let state = self.entra.control(json!({})).await;
        assert_eq!(state["strays"], json!([]), "what a token names was asked");
        state["questions"].as_array().unwrap().clone()
    }

    async fn metric(&self, outcome: &str) -> u64 {
        let url = format!("{}/metrics", self.rig.admin);
        let text = self.rig.client.get(url).send().await.unwrap().text().await.unwrap();
        let start = format!("wardgate_entra_groups_total{{outcome=\"{outcome}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(start.as_str()));
        line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_that_a_token_left_out_are_asked_for_once_and_open_what_they_are_granted() {
    for (resolve, path, only) in [
        ("on_behalf_of", "/v1.0/me/getMemberObjects".to_owned(), true),
        ("client_credentials", format!("/v1.0/users/{ALICE}/getMemberObjects"), false),
    ] {
        let stage = Stage::new(resolve, json!({ "security_only": only })).await;
        stage.members(json!({ format!("{CONTOSO}/{ALICE}"): [OTHERS, READERS.to_uppercase()] })).await;
        // Two logins of one person, each on many connections at once.
        let tokens = [stage.alice().await, stage.token(CONTOSO, ALICE, json!({ "uti": "second" })).await];
        let calls = (0..20).map(|number| stage.may(&tokens[number % 2]));
        assert!(futures_util::future::join_all(calls).await.into_iter().all(|may| may), "{resolve}");
        let question = json!({ "path": path, "object": format!("{CONTOSO}/{ALICE}"), "securityEnabledOnly": only });
        assert_eq!(stage.questions().await, [question]);
        let record = stage.rig.record(|record| record["method"] == "tools/call").await;
        assert!(record["groups_unknown"].is_null(), "{record}");
        assert_eq!(stage.metric("resolved").await, 1);
        let forms = stage.entra.forms().await;
        let [form] = forms.as_slice() else { panic!("{} tokens for Graph", forms.len()) };
        assert_eq!(
            (&form["tenant"], &form["scope"]),
            (&json!(CONTOSO), &json!(format!("{}/.default", stage.entra.plain)))
        );
        stage.rig.app.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_in_the_group_stays_out_and_a_token_that_has_its_groups_is_not_asked_about() {
    let stage = Stage::new("on_behalf_of", json!({})).await;
    stage.members(json!({ format!("{CONTOSO}/{ALICE}"): [OTHERS] })).await;
    assert!(!stage.may(&stage.alice().await).await);
    let record = stage.rig.record(|record| record["method"] == "tools/call").await;
    assert!(record["groups_unknown"].is_null(), "known, and not enough: {record}");
    assert_eq!(stage.questions().await.len(), 1);
    let told = json!({ "_claim_names": {}, "_claim_sources": {}, "groups": [READERS] });
    assert!(stage.may(&stage.token(CONTOSO, ALICE, told).await).await);
    assert_eq!(stage.questions().await.len(), 1);
    // Nobody is asked for whoever does not come in.
    let expired = stage.token(CONTOSO, ROBOT, json!({ "exp": 1_000_000_000 })).await;
    assert_eq!(stage.call(&expired).await.status, 401);
    let forged = format!("{}x", stage.token(CONTOSO, ROBOT, json!({})).await);
    assert_eq!(stage.call(&forged).await.status, 401);
    assert_eq!(stage.questions().await.len(), 1);
    stage.rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_graph_cannot_say_the_groups_are_unknown_and_nobody_waits_long() {
    let stage = Stage::new("on_behalf_of", json!({ "timeout": "500ms" })).await;
    stage.members(json!({ format!("{CONTOSO}/{ALICE}"): [READERS] })).await;
    let token = stage.alice().await;
    stage.entra.set(json!({ "graph": "down" })).await;
    assert!(!stage.may(&token).await);
    let record = stage.rig.record(|record| record["method"] == "tools/call").await;
    assert_eq!(record["groups_unknown"], true, "{record}");
    assert!(!stage.may(&token).await, "that nobody answered is remembered for a while");
    assert_eq!(stage.metric("unavailable").await, 1);

    // Another caller, while Graph hangs: all of their calls are over soon, and there was one question.
    stage.entra.set(json!({ "graph": "up", "graph_slow_ms": 30_000 })).await;
    let slow = stage.token(CONTOSO, ROBOT, json!({})).await;
    let begun = Instant::now();
    let calls = futures_util::future::join_all((0..10).map(|_| stage.may(&slow))).await;
    assert!(calls.into_iter().all(|may| !may));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(stage.metric("unavailable").await, 2);

    stage.entra.set(json!({ "graph_slow_ms": 0 })).await;
    stage.changes(&token, true, Duration::from_secs(20)).await;

    // What Graph refuses is told apart, and is no less shut.
    stage.entra.set(json!({ "graph": "too_many" })).await;
    let many = stage.token(CONTOSO, OTHERS, json!({})).await;
    assert!(!stage.may(&many).await);
    assert_eq!(stage.metric("too_many").await, 1);
    stage.entra.set(json!({ "graph": "up" })).await;
    let unheard = stage.token(CONTOSO, READERS, json!({})).await;
    assert!(!stage.may(&unheard).await, "of somebody Graph does not know");
    let refused = stage.token(CONTOSO, CLIENT, json!({ "sub": "noconsent-1" })).await;
    assert!(!stage.may(&refused).await, "for whom there is no token");
    assert_eq!(stage.metric("refused").await, 2);
    stage.rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_another_tenant_never_has_the_groups_of_this_one() {
    for resolve in ["on_behalf_of", "client_credentials"] {
        let stage = Stage::new(resolve, json!({})).await;
        // The same object id in both, as if somebody had managed to have it.
        stage.members(json!({ format!("{CONTOSO}/{ALICE}"): [READERS], format!("{FABRIKAM}/{ALICE}"): [] })).await;
        let (ours, theirs) = (stage.alice().await, stage.token(FABRIKAM, ALICE, json!({})).await);
        for _ in 0..2 {
            assert!(stage.may(&ours).await, "{resolve}");
            assert!(!stage.may(&theirs).await, "{resolve}");
        }
        let asked: Vec<_> = stage.questions().await.iter().map(|question| question["object"].clone()).collect();
        assert_eq!(asked, [json!(format!("{CONTOSO}/{ALICE}")), json!(format!("{FABRIKAM}/{ALICE}"))]);
        let tenants: Vec<_> = stage.entra.forms().await.iter().map(|form| form["tenant"].clone()).collect();
        assert_eq!(tenants, [json!(CONTOSO), json!(FABRIKAM)], "each asks at the login of its own tenant");
        stage.rig.app.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_taken_out_of_a_group_is_out_when_the_answer_has_aged() {
    let stage = Stage::new("client_credentials", json!({ "keep": "1s" })).await;
    stage.members(json!({ format!("{CONTOSO}/{ALICE}"): [READERS] })).await;
    let token = stage.alice().await;
    assert!(stage.may(&token).await);
    stage.members(json!({ format!("{CONTOSO}/{ALICE}"): [OTHERS] })).await;
    stage.changes(&token, false, Duration::from_secs(10)).await;
    stage.members(json!({ format!("{CONTOSO}/{ALICE}"): [OTHERS, READERS] })).await;
    stage.changes(&token, true, Duration::from_secs(10)).await;
    // An old answer is not good for longer because there is no new one.
    stage.entra.set(json!({ "graph": "down" })).await;
    stage.changes(&token, false, Duration::from_secs(10)).await;
    assert_eq!(stage.entra.exchanges("the-gateway").await, 1, "the gateway's own token is kept");
    stage.rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_applications_groups_are_asked_for_as_the_gateway_alone() {
    let application = json!({ "idtyp": "app", "scp": null, "roles": ["Tools.Read.All"] });
    for (resolve, may, questions) in [("client_credentials", true, 1), ("on_behalf_of", false, 0)] {
        let stage = Stage::new(resolve, json!({})).await;
        stage.members(json!({ format!("{CONTOSO}/{ROBOT}"): [READERS] })).await;
        let token = stage.token(CONTOSO, ROBOT, application.clone()).await;
        assert_eq!(stage.may(&token).await, may, "{resolve}");
        let asked = stage.questions().await;
        assert_eq!(asked.len(), questions);
        let path = json!(format!("/v1.0/servicePrincipals/{ROBOT}/getMemberObjects"));
        assert!(asked.iter().all(|question| question["path"] == path), "{asked:?}");
        stage.rig.app.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_what_is_known_of_groups_unless_the_way_to_ask_is_another_one() {
    let stage = Stage::new("client_credentials", json!({})).await;
    stage.members(json!({ format!("{CONTOSO}/{ALICE}"): [READERS] })).await;
    let token = stage.alice().await;
    assert!(stage.may(&token).await);
    stage.entra.set(json!({ "graph": "down" })).await;
    let mut file = stage.file.clone();
    file["mode"] = json!("non-destructive");
    stage.rig.reload(file.clone()).await;
    assert!(stage.may(&token).await);
    file["identity"][0]["entra"]["groups"]["security_only"] = json!(false);
    stage.rig.reload(file).await;
    assert!(!stage.may(&token).await);
    assert_eq!(stage.metric("resolved").await, 1, "counters go on");
    stage.rig.app.shutdown().await;
}
