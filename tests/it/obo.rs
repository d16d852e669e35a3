//! Acting on behalf of callers, against a provider in the shape of Entra, with Microsoft's own clients as referees.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::convert::Infallible;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use axum::body::Body;
use axum::http::Method;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::json;
use tokio::sync::mpsc;

use crate::entra::CLIENT;
use crate::entra::Entra;
use crate::entra::SCOPE;
use crate::entra::content;
use crate::entra::upstream;
use crate::harness::Answer;
use crate::harness::Rig;
use crate::harness::client;
use crate::harness::load;
use crate::harness::modern_request;
use crate::live;
use crate::scripted;
use crate::scripted::Scripted;

fn look() -> Value {
    json!({ "name": "look", "arguments": {} })
}

async fn called(rig: &Rig, token: &str) -> Answer {
    rig.modern(token, "tools/call", look()).await
}

/// What the upstream found in the token of this call.
fn served(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text);
    serde_json::from_str(answer.result_text()).unwrap()
}

fn reason(answer: &Answer) -> (u16, &str) {
    (answer.status, answer.body["error"]["data"]["reason"].as_str().unwrap_or_else(|| panic!("{}", answer.text)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_users_interleaved_each_get_their_own_token_by_one_exchange() {
    const USERS: usize = 1000;
    const CONNECTIONS: usize = 64;
    const ROUNDS: usize = 3;
    let entra = Entra::start();
    let (upstream, seen) = upstream(|_| None).await;
    let rig = entra.rig(&upstream.url, "modern", entra.on_behalf_of()).await;
    let users: Vec<String> = (0..USERS).map(|number| format!("user-{number}")).collect();
    let tokens = std::sync::Arc::new(entra.tokens(&users).await);
    // Everybody's first call races with others of the same user on other connections: the stride is prime to the count.
    let work = (0..CONNECTIONS).map(|connection| {
        let (url, tokens, users) = (rig.url(), tokens.clone(), users.clone());
        tokio::spawn(async move {
            let client = client();
            for turn in (connection..USERS * ROUNDS).step_by(CONNECTIONS) {
                let user = turn / ROUNDS * 7 % USERS;
                let request = modern_request(&client, &url, "tools/call", look()).bearer_auth(&tokens[user]);
                let answer = Answer::of(request.send().await.unwrap()).await;
                assert_eq!(served(&answer)["user"], json!(users[user]), "another's token reached this user's call");
            }
        })
    });
    for task in work.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let exchanges = entra.control(json!({})).await["exchanges"].as_object().unwrap().clone();
    assert_eq!(exchanges.len(), USERS);
    assert!(exchanges.values().all(|count| count == 1), "somebody was exchanged twice");
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert!(seen.iter().all(|(_, token)| token["foreign"].is_null()), "a caller's own token reached the upstream");
    assert!(seen.iter().all(|(_, token)| token["user"] != "the-gateway"), "the gateway acted as itself");
    rig.app.shutdown().await;
}

/// The fields that are the protocol's; libraries add telemetry, and scopes for signing in, which a gateway has no use for.
fn essential(form: &Value) -> BTreeMap<String, String> {
    const TELEMETRY: [&str; 3] = ["client-request-id", "client_info", "tenant"];
    let fields = form.as_object().unwrap().iter();
    let fields = fields.filter(|(name, _)| !TELEMETRY.contains(&name.as_str()) && !name.starts_with("x-"));
    let fields = fields.map(|(name, value)| {
        let text = value.as_str().unwrap();
        let text = match name.as_str() {
            "scope" => text.split(' ').filter(|word| !["openid", "profile", "offline_access"].contains(word)).collect(),
            // msal-node also asks what an ID token may say, which nobody here reads.
            "claims" => serde_json::from_str::<Value>(text).unwrap()["access_token"].to_string(),
            // Fresh each time; the provider has verified it.
            "client_assertion" => text.split('.').next().map(header_of).unwrap(),
            _ => text.to_owned(),
        };
        (name.clone(), text)
    });
    fields.collect()
}

/// The JOSE header of an assertion without the member that carries the whole certificate, and without the padding that
/// msal for Python leaves on the thumbprint.
fn header_of(encoded: &str) -> String {
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).unwrap();
    let mut header: BTreeMap<String, Value> = serde_json::from_slice(&bytes).unwrap();
    header.remove("x5c");
    format!("{header:?}").replace("=\"", "\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_sends_field_by_field_what_microsofts_own_clients_send() {
    let entra = Entra::start();
    let (upstream, _) = upstream(|_| None).await;
    let (key, certificate) = (entra.at("client.key"), entra.at("client.crt"));
    let mut with_certificate = entra.on_behalf_of();
    with_certificate["on_behalf_of"]["client"] =
        json!({ "id": CLIENT, "key": format!("file:{}", key.display()), "certificate": certificate });
    let mut capable = entra.on_behalf_of();
    capable["on_behalf_of"]["continuous_access"] = json!(true);
    let as_text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let secret = || vec!["s3cret".to_owned()];
    for (kind, capability, proof, credential) in [
        ("secret", "", secret(), entra.on_behalf_of()),
        ("secret", "cp1", secret(), capable),
        ("certificate", "", vec![as_text(&key), as_text(&certificate)], with_certificate),
    ] {
        let token = entra.token("alice").await;
        entra.control(json!({ "forget": true })).await;
        let ca = as_text(&entra.at("ca.pem"));
        let mut python = Command::new(live::tool("WARDGATE_PYTHON"));
        python.arg(live::real("msal_obo.py")).args([&entra.authority(), &ca, CLIENT, SCOPE, &token, kind]).args(&proof);
        let mut node = Command::new(live::tool("WARDGATE_NODE"));
        node.arg(live::real("msal_obo.mjs")).args([&entra.authority(), CLIENT, SCOPE, &token, kind]).args(&proof);
        node.env("WARDGATE_NODE_MODULES", live::tool("WARDGATE_NODE_MODULES")).env("NODE_EXTRA_CA_CERTS", &ca);
        for mut command in [python, node] {
            command.env("CAPABILITY", capability);
            let output = tokio::process::Command::from(command).output().await.unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("\"access_token\": \"t.") || text.contains("\"access_token\":\"t."), "{output:?}");
        }
        let rig = entra.rig(&upstream.url, "modern", credential).await;
        assert_eq!(served(&called(&rig, &token).await)["user"], "alice");
        let forms = entra.forms().await;
        let [python, node, gateway] = forms.as_slice() else { panic!("{} requests", forms.len()) };
        assert_eq!(essential(gateway), essential(python), "{kind}: msal for Python");
        assert_eq!(essential(gateway), essential(node), "{kind}: msal-node");
        assert_eq!(gateway["claims"].as_str().is_some_and(|claims| claims.contains("cp1")), !capability.is_empty());
        rig.app.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_of_the_exchange_tells_the_caller_what_to_do() {
    let entra = Entra::start();
    let (upstream, seen) = upstream(|_| None).await;
    let rig = entra.rig(&upstream.url, "modern", entra.on_behalf_of()).await;
    let consent = called(&rig, &entra.token("noconsent-1").await).await;
    assert_eq!(reason(&consent), (403, "consent_missing"));
    assert_eq!(reason(&called(&rig, &entra.token("denied-1").await).await), (403, "exchange_denied"));
    let other = entra.token_with("eve", json!({ "aud": "api://second" })).await;
    assert_eq!(reason(&called(&rig, &other).await), (502, "not_exchangeable"));

    // Conditional access: the challenge carries the claims; with a token that has them it goes on at once.
    let mfa = called(&rig, &entra.token("mfa-1").await).await;
    assert_eq!(reason(&mfa), (401, "interaction_required"));
    let challenge = mfa.header("www-authenticate").unwrap();
    assert!(challenge.starts_with("Bearer error=\"insufficient_claims\", claims=\""), "{challenge}");
    let encoded = challenge.split("claims=\"").nth(1).unwrap().split('"').next().unwrap();
    let claims: Value = serde_json::from_slice(&STANDARD.decode(encoded).unwrap()).unwrap();
    assert_eq!(claims["access_token"]["acrs"]["value"], "c1");
    let stepped_up = entra.token_with("mfa-1", json!({ "acrs": ["c1"] })).await;
    assert_eq!(served(&called(&rig, &stepped_up).await)["user"], "mfa-1");

    // An application cannot be acted for: the provider is not even asked.
    entra.control(json!({ "forget": true })).await;
    let app = called(&rig, &entra.token("app-1").await).await;
    assert_eq!(reason(&app), (403, "user_required"));
    assert!(app.text.contains("application"), "{}", app.text);
    assert!(entra.forms().await.is_empty());

    for answer in [&consent, &mfa, &app] {
        assert!(!format!("{:?}{}", answer.headers, answer.text).contains("canary"), "{}", answer.text);
    }
    assert!(!std::fs::read_to_string(&rig.audit).unwrap().contains("canary"));
    let users: BTreeSet<_> = seen.lock().unwrap().iter().map(|(_, token)| token["user"].to_string()).collect();
    assert_eq!(users, BTreeSet::from(["\"mfa-1\"".to_owned()]), "who was refused reached nothing");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_is_away_stops_only_those_it_has_given_nothing_yet() {
    let entra = Entra::start();
    let (upstream, _) = upstream(|_| None).await;
    let mut credential = entra.on_behalf_of();
    credential["timeout"] = json!("400ms");
    let rig = entra.rig(&upstream.url, "modern", credential).await;
    let (alice, bob, carol) = (entra.token("alice").await, entra.token("bob").await, entra.token("carol").await);
    served(&called(&rig, &alice).await);
    entra.set(json!({ "down": true })).await;
    served(&called(&rig, &alice).await);
    let away = called(&rig, &bob).await;
    assert_eq!(reason(&away), (503, "credential_unavailable"));
    assert_eq!(away.header("retry-after"), Some("3"));
    entra.set(json!({ "down": false, "slow_ms": 20_000 })).await;
    let began = Instant::now();
    assert_eq!(reason(&called(&rig, &carol).await), (503, "credential_unavailable"));
    assert!(began.elapsed() < Duration::from_secs(5), "a slow provider is waited for no longer than configured");
    served(&called(&rig, &alice).await);
    entra.set(json!({ "slow_ms": 0 })).await;
    // A short memory of the failure, then everything goes on by itself.
    let until = Instant::now() + Duration::from_secs(20);
    while called(&rig, &bob).await.status != 200 {
        assert!(Instant::now() < until, "it does not recover");
    }
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claims_challenge_of_the_upstream_is_answered_once_and_then_passed_on() {
    const WANTED: &str = r#"{"access_token":{"nbf":{"essential":true,"value":"1900000000"}}}"#;
    let refused = |body: &str| {
        let challenge =
            format!("Bearer realm=\"\", error=\"insufficient_claims\", claims=\"{}\"", STANDARD.encode(body));
        let answer = Response::builder().status(401).header("www-authenticate", challenge);
        answer.body(Body::from("canary")).unwrap()
    };
    let entra = Entra::start();
    let (upstream, _) = upstream(move |token| match token["user"].as_str() {
        // Satisfied by a token that was asked for with the claims.
        Some("alice") if token["claims"].is_null() => Some(refused(WANTED)),
        // Revoked: by no token.
        Some("bob") => Some(refused(WANTED)),
        _ => None,
    })
    .await;
    let rig = entra.rig(&upstream.url, "modern", entra.on_behalf_of()).await;
    // The catalog by somebody who is let in.
    served(&called(&rig, &entra.token("carol").await).await);
    let alice = entra.token("alice").await;
    assert_eq!(served(&called(&rig, &alice).await)["claims"], WANTED);
    assert_eq!(served(&called(&rig, &alice).await)["claims"], WANTED, "the renewed token is kept");
    assert_eq!(entra.exchanges("alice").await, 2);
    let bob = called(&rig, &entra.token("bob").await).await;
    assert_eq!(reason(&bob), (401, "interaction_required"));
    assert!(bob.header("www-authenticate").unwrap().contains(&STANDARD.encode(WANTED)));
    assert!(!bob.text.contains("canary"));
    assert_eq!(entra.exchanges("bob").await, 2, "once, and once more");
    rig.app.shutdown().await;
}

/// A server of 2024-11-05: its answers come on the caller's own stream. Some callers it refuses at the stream, some at the
/// message, unless their token was asked for with what it wants.
async fn old_server(wanted: &'static str) -> Scripted {
    let streams: Mutex<HashMap<String, mpsc::UnboundedSender<String>>> = Mutex::default();
    Scripted::start(move |method, headers, message| {
        let token = content(headers);
        let user = token["user"].as_str().unwrap_or_default().to_owned();
        let at_stream = method == Method::GET;
        let refused = match user.as_str() {
            "alice" => at_stream && token["claims"].is_null(),
            "bob" => at_stream,
            "eve" => message["method"] == "tools/call",
            _ => false,
        };
        if refused {
            let challenge = format!("Bearer error=\"insufficient_claims\", claims=\"{}\"", STANDARD.encode(wanted));
            let answer = Response::builder().status(401).header("www-authenticate", challenge);
            return answer.body(Body::from("canary")).unwrap();
        }
        if at_stream {
            let (say, said) = mpsc::unbounded_channel();
            say.send("event: endpoint\ndata: /messages\n\n".to_owned()).unwrap();
            streams.lock().unwrap().insert(user, say);
            let events = futures_util::stream::unfold(said, |mut said: mpsc::UnboundedReceiver<String>| async move {
                said.recv().await.map(|event| (Ok::<_, Infallible>(event), said))
            });
            return Response::builder().header("content-type", "text/event-stream").body(Body::from_stream(events)).unwrap();
        }
        let result = match message["method"].as_str().unwrap_or_default() {
            "initialize" => json!({ "protocolVersion": "2024-11-05", "capabilities": { "tools": {} }, "serverInfo": { "name": "s", "version": "1" } }),
            "tools/list" => scripted::two_tools(),
            _ => json!({ "content": [{ "type": "text", "text": token.to_string() }] }),
        };
        if !message["id"].is_null() {
            let answer = json!({ "jsonrpc": "2.0", "id": message["id"], "result": result });
            let _ = streams.lock().unwrap()[&user].send(format!("event: message\ndata: {answer}\n\n"));
        }
        Response::builder().status(202).body(Body::empty()).unwrap()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claims_challenge_of_a_server_of_2024_11_05_is_understood_alike() {
    const WANTED: &str = r#"{"access_token":{"nbf":{"essential":true,"value":"1900000000"}}}"#;
    let entra = Entra::start();
    let upstream = old_server(WANTED).await;
    let rig = Rig::with(|file| {
        entra.adjust(file, &upstream.url, "legacy", entra.on_behalf_of());
        file["backends"]["notes"] =
            json!({ "sse": { "url": upstream.url }, "trust_annotations": true, "credential": entra.on_behalf_of() });
    })
    .await;
    served(&called(&rig, &entra.token("carol").await).await);
    assert_eq!(served(&called(&rig, &entra.token("alice").await).await)["claims"], WANTED);
    for user in ["bob", "eve"] {
        let answer = called(&rig, &entra.token(user).await).await;
        assert_eq!(reason(&answer), (401, "interaction_required"), "{user}");
        assert!(answer.header("www-authenticate").unwrap().contains(&STANDARD.encode(WANTED)), "{user}");
        assert!(!answer.text.contains("canary"));
    }
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchanged_token_does_not_outlive_the_assertion_it_was_got_with() {
    let entra = Entra::start();
    let (upstream, _) = upstream(|_| None).await;
    let rig = entra.rig(&upstream.url, "modern", entra.on_behalf_of()).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let short = entra.token_with("alice", json!({ "exp": now + 8 })).await;
    let first = served(&called(&rig, &short).await)["number"].clone();
    // Another token of the same user, with the same rights, is exchanged for itself: what it was signed in with may differ.
    let long = entra.token("alice").await;
    assert_ne!(served(&called(&rig, &long).await)["number"], first);
    // The upstream's token would be good for an hour. The caller's is let in a little longer than it says; its own is not used.
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = called(&rig, &short).await;
        if answer.status == 401 {
            assert_eq!(reason(&answer), (401, "credential_expired"));
            break;
        }
        assert_eq!(served(&answer)["number"], first);
        assert!(Instant::now() < until, "it outlived its assertion");
    }
    assert_eq!(entra.exchanges("alice").await, 2);
    // A token with other rights is another matter from the start.
    let other = entra.token_with("alice", json!({ "scp": "mcp.read mcp.write" })).await;
    served(&called(&rig, &other).await);
    assert_eq!(entra.exchanges("alice").await, 3);
    // Past its time, within the leeway of clocks: not exchanged, and told as what it is.
    let late = entra.token_with("dave", json!({ "exp": now })).await;
    let answer = called(&rig, &late).await;
    assert_eq!(answer.status, 401, "{}", answer.text);
    assert_eq!(entra.exchanges("dave").await, 0);
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_forgotten_on_demand_and_sessions_with_the_upstream_go_on() {
    let entra = Entra::start();
    let (upstream, seen) = upstream(|_| None).await;
    let rig = entra.rig(&upstream.url, "legacy", entra.on_behalf_of()).await;
    let alice = entra.token("alice").await;
    let first = served(&called(&rig, &alice).await)["number"].clone();
    let opened = || seen.lock().unwrap().iter().filter(|(method, _)| method == "initialize").count();
    let sessions = opened();
    let clear = format!("{}/credentials/clear", rig.admin);
    let page = rig.client.post(&clear).header("origin", "https://page.example").send().await.unwrap();
    assert_eq!(page.status(), 403, "a web page clears nothing");
    assert_eq!(rig.client.get(&clear).send().await.unwrap().status(), 404);
    assert_eq!(served(&called(&rig, &alice).await)["number"], first);
    assert_eq!(rig.client.post(&clear).send().await.unwrap().status(), 200);
    let second = served(&called(&rig, &alice).await)["number"].clone();
    assert_ne!(second, first, "a new token");
    assert_eq!(opened(), sessions, "in the same session");
    rig.record(|record| record.to_string().contains("credentials_cleared")).await;
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_secret_takes_effect_on_reload_and_an_old_one_is_told_as_ours_to_repair() {
    let entra = Entra::start();
    let (upstream, _) = upstream(|_| None).await;
    let credential = entra.on_behalf_of();
    let rig = entra.rig(&upstream.url, "modern", credential.clone()).await;
    let alice = entra.token("alice").await;
    served(&called(&rig, &alice).await);
    entra.set(json!({ "secret": "n3w" })).await;
    served(&called(&rig, &alice).await);
    let bob = called(&rig, &entra.token("bob").await).await;
    assert_eq!(reason(&bob), (502, "credential_misconfigured"));
    std::fs::write(entra.at("secret"), "n3w\n").unwrap();
    let mut file = crate::harness::configuration(&rig.issuer, &upstream.url, &rig.audit);
    entra.adjust(&mut file, &upstream.url, "modern", credential);
    rig.app.take(load(&file).unwrap_or_else(|errors| panic!("{errors}"))).await.unwrap();
    served(&called(&rig, &entra.token("bob").await).await);
    served(&called(&rig, &alice).await);
    assert_eq!(entra.exchanges("alice").await, 2, "what the old secret got went with it");
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_may_have_an_identity_of_its_own_and_calls_never_use_it() {
    let entra = Entra::start();
    let (upstream, seen) = upstream(|_| None).await;
    let mut credential = entra.on_behalf_of();
    let client = credential["on_behalf_of"]["client"].clone();
    let token_url = format!("{}/oauth2/v2.0/token", entra.authority());
    credential["discovery"] =
        json!({ "client_credentials": { "token_url": token_url, "client": client, "scope": SCOPE } });
    let rig = entra.rig(&upstream.url, "modern", credential).await;
    assert_eq!(served(&called(&rig, &entra.token("alice").await).await)["user"], "alice");
    assert_eq!(reason(&called(&rig, &entra.token("noconsent-1").await).await), (403, "consent_missing"));
    for (method, token) in seen.lock().unwrap().iter() {
        let want = if method == "tools/call" { "alice" } else { "the-gateway" };
        assert_eq!(token["user"], want, "{method}");
    }
    rig.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_grants_and_proofs_work_too_and_tenants_have_their_own_place() {
    let entra = Entra::start();
    let (upstream, _) = upstream(|_| None).await;
    let token_url = format!("{}/oauth2/v2.0/token", entra.authority());
    let secret = entra.on_behalf_of()["on_behalf_of"]["client"]["secret"].clone();
    let ca = entra.at("ca.pem");

    let basic = json!({ "id": CLIENT, "secret": secret, "auth": "basic" });
    let exchange =
        json!({ "token_exchange": { "token_url": token_url, "client": basic, "audience": "notes" }, "ca": ca });
    let rig = entra.rig(&upstream.url, "modern", exchange).await;
    let token = served(&called(&rig, &entra.token("alice").await).await);
    assert_eq!((&token["user"], &token["for"]), (&json!("alice"), &json!("notes")));
    rig.app.shutdown().await;

    let file = entra.at("federated");
    std::fs::write(&file, "federated-1\n").unwrap();
    let workload = json!({
        "workload_identity": { "authority": entra.url, "tenant": "contoso", "client_id": CLIENT, "token_file": file, "scope": SCOPE },
        "ca": ca,
    });
    let rig = entra.rig(&upstream.url, "modern", workload).await;
    assert_eq!(served(&called(&rig, &entra.token("alice").await).await)["user"], "the-gateway");
    // Kubernetes renews the file: it is read again.
    entra.set(json!({ "federated": "federated-2" })).await;
    std::fs::write(&file, "federated-2\n").unwrap();
    rig.client.post(format!("{}/credentials/clear", rig.admin)).send().await.unwrap();
    assert_eq!(served(&called(&rig, &entra.token("bob").await).await)["user"], "the-gateway");
    rig.app.shutdown().await;

    let mut tenants = entra.on_behalf_of();
    tenants["tenants"] = json!({ "fabrikam": { "authority": entra.url, "tenant": "fabrikam" } });
    let rig = entra.rig(&upstream.url, "modern", tenants).await;
    entra.control(json!({ "forget": true })).await;
    served(&called(&rig, &entra.token("alice").await).await);
    served(&called(&rig, &entra.token_with("alice", json!({ "tid": "fabrikam" })).await).await);
    let asked: Vec<_> = entra.forms().await.iter().map(|form| form["tenant"].clone()).collect();
    assert_eq!(asked, [json!("contoso"), json!("fabrikam")]);
    rig.app.shutdown().await;
}
