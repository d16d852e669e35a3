//! The room from outside: whom it serves, what it refuses before anybody is asked, and what never shows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use url::Url;

use super::*;
use crate::catalog::Action;
use crate::catalog::Call;
use crate::catalog::Decl;
use crate::catalog::Effect;
use crate::catalog::Operation;
use crate::principal::Claims;
use crate::principal::Kind;
use crate::principal::Principal;

const TOKEN: &str = "canary.caller.token";

/// A token endpoint on loopback: each exchange gets the next number; gives the forms it was sent.
async fn endpoint(lifetime_s: u64, pause: Duration) -> (Url, Arc<std::sync::Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = Url::parse(&format!("http://{}/token", listener.local_addr().expect("an address"))).expect("a URL");
    let forms = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = forms.clone();
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut text = String::new();
                let whole = |text: &str| {
                    let (head, body) = text.split_once("\r\n\r\n")?;
                    let line = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
                    (body.len() >= line.parse().ok()?).then(|| body.to_owned())
                };
                let body = loop {
                    let mut bytes = [0u8; 4096];
                    let count = stream.read(&mut bytes).await.expect("a request");
                    text.push_str(std::str::from_utf8(&bytes[..count]).expect("text"));
                    if let Some(body) = whole(&text) {
                        break body;
                    }
                };
                let number = {
                    let mut seen = seen.lock().expect("a lock");
                    seen.push(body);
                    seen.len()
                };
                tokio::time::sleep(pause).await;
                let body = format!(
                    "{{\"access_token\":\"token-{number}\",\"token_type\":\"Bearer\",\"expires_in\":{lifetime_s}}}"
                );
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).await.expect("written");
            });
        }
    });
    (url, forms)
}

fn minted(url: &Url, grant: Grant) -> Config {
    let client = Client { id: "gateway".into(), proof: Proof::Post(Secret::new("canary-secret")) };
    let place = Place { token_url: Some(url.clone()), client: Some(client) };
    let timeout = Duration::from_secs(5);
    Config::Minted(Box::new(Minted { grant, place, tenants: BTreeMap::new(), discovery: None, ca: None, timeout }))
}

fn obo() -> Grant {
    Grant::OnBehalfOf { scope: "api://notes/.default".into(), continuous_access: false }
}

fn user(name: &str, scope: &str, token: Option<&str>, lasts: Duration) -> Principal {
    let claims = Claims {
        subject: name.into(),
        issuer: "https://idp.example".into(),
        scopes: [scope.to_owned()].into(),
        ..Claims::default()
    };
    let principal = Principal::for_tests(claims);
    match token {
        Some(token) => principal.bearing(assertion(token, Some(SystemTime::now() + lasts))),
        None => principal,
    }
}

fn permit(caller: &Principal) -> Permit {
    let decl = Arc::new(Decl::plain(crate::catalog::Kind::Backend, "notes".into(), "notes", Effect::Read));
    let operation = Operation::Stream { last_event_id: None };
    let call = Call { action: Action::Connect, effect: Effect::Read, decl, operation, session: None, version: None };
    Permit::for_tests_by(call, caller)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

const HOUR: Duration = Duration::from_secs(3600);

async fn sent(source: &Source, caller: &Principal) -> Result<String, Why> {
    let credential = source.obtain(&permit(caller), soon()).await.map_err(|error| error.why)?;
    Ok(credential.header().expect("a header").1.expose().to_owned())
}

fn source(config: &Config) -> Arc<Source> {
    Source::new(&"notes".into(), config).expect("a source")
}

#[tokio::test]
async fn all_who_wait_for_one_caller_wait_for_one_exchange() {
    let (url, forms) = endpoint(3600, Duration::from_millis(50)).await;
    let source = source(&minted(&url, obo()));
    let alice = user("alice", "read", Some(TOKEN), HOUR);
    let calls = (0..50).map(|_| sent(&source, &alice));
    let all = futures_util::future::join_all(calls).await;
    assert!(all.iter().all(|header| header.as_deref() == Ok("Bearer token-1")), "{all:?}");
    let forms = forms.lock().expect("a lock").clone();
    assert_eq!(forms.len(), 1);
    let fields: BTreeMap<_, _> = url::form_urlencoded::parse(forms[0].as_bytes()).collect();
    let want = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
        ("requested_token_use", "on_behalf_of"),
        ("scope", "api://notes/.default"),
        ("assertion", TOKEN),
        ("client_id", "gateway"),
        ("client_secret", "canary-secret"),
    ];
    assert_eq!(fields, want.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect());
}

#[tokio::test]
async fn nobody_gets_what_another_or_a_token_with_other_rights_was_exchanged_for() {
    let (url, forms) = endpoint(3600, Duration::ZERO).await;
    let source = source(&minted(&url, obo()));
    let mut seen = std::collections::BTreeSet::new();
    for (name, scope) in [("alice", "read"), ("bob", "read"), ("alice", "write")] {
        assert!(seen.insert(sent(&source, &user(name, scope, Some(TOKEN), HOUR)).await.expect("a token")));
    }
    assert_eq!(forms.lock().expect("a lock").len(), 3);
}

/// A session with a second factor is no other session's, though policy sees the same rights in both.
#[tokio::test]
async fn each_token_of_one_user_is_exchanged_for_itself_and_once() {
    const WITH_FACTOR: &str = "another.caller.token";
    let (url, forms) = endpoint(3600, Duration::from_millis(50)).await;
    let source = source(&minted(&url, obo()));
    let (plain, strong) = (user("alice", "read", Some(TOKEN), HOUR), user("alice", "read", Some(WITH_FACTOR), HOUR));
    assert_eq!((plain.key(), plain.authority()), (strong.key(), strong.authority()));
    let calls = (0..20).map(|number| sent(&source, if number % 2 == 0 { &plain } else { &strong }));
    let sent_all = futures_util::future::join_all(calls).await;
    assert!(sent_all.iter().all(Result::is_ok), "{sent_all:?}");
    let (of_plain, of_strong) = (sent(&source, &plain).await, sent(&source, &strong).await);
    assert_ne!(of_plain, of_strong);
    for (number, sent) in sent_all.into_iter().enumerate() {
        assert_eq!(&sent, if number % 2 == 0 { &of_plain } else { &of_strong }, "{number}");
    }
    let forms = forms.lock().expect("a lock");
    assert_eq!(forms.len(), 2);
    for token in [TOKEN, WITH_FACTOR] {
        assert_eq!(forms.iter().filter(|form| form.contains(&format!("assertion={token}&"))).count(), 1, "{forms:?}");
    }
}

#[tokio::test]
async fn without_a_users_token_nobody_is_asked_and_the_gateway_does_not_step_in() {
    let (url, forms) = endpoint(3600, Duration::ZERO).await;
    let source = source(&minted(&url, obo()));
    let bare = user("alice", "read", None, HOUR);
    assert_eq!(sent(&source, &bare).await, Err(Why::UserRequired { what: assertion::NO_TOKEN }));
    let mut claims = Claims::clone(&bare);
    claims.kind = Kind::Service;
    let app = Principal::for_tests(claims).bearing(assertion(TOKEN, None));
    assert_eq!(sent(&source, &app).await, Err(Why::UserRequired { what: assertion::NO_USER }));
    assert_eq!(sent(&source, &user("bob", "read", Some(TOKEN), Duration::ZERO)).await, Err(Why::Expired));
    assert!(source.own(soon()).await.expect("no error").is_none());
    assert!(forms.lock().expect("a lock").is_empty());
}

#[tokio::test]
async fn a_token_about_to_end_is_renewed_while_nobody_waits() {
    // Lives 12 s; the last quarter of what is used of it is for renewing.
    let (url, forms) = endpoint(12, Duration::from_millis(600)).await;
    let source = source(&minted(&url, obo()));
    let alice = user("alice", "read", Some(TOKEN), HOUR);
    sent(&source, &alice).await.expect("a token");
    let began = Instant::now();
    while sent(&source, &alice).await.as_deref() == Ok("Bearer token-1") {
        let asked = Instant::now();
        sent(&source, &alice).await.expect("a token");
        assert!(asked.elapsed() < Duration::from_millis(500), "somebody waited for the renewal");
        assert!(began.elapsed() < Duration::from_secs(12), "it was not renewed in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(forms.lock().expect("a lock").len(), 2);
}

#[tokio::test]
async fn a_refused_token_is_replaced_once_for_all_who_had_it() {
    let (url, forms) = endpoint(3600, Duration::from_millis(20)).await;
    let source = source(&minted(&url, obo()));
    let alice = user("alice", "read", Some(TOKEN), HOUR);
    let mut spares = Vec::new();
    for _ in 0..10 {
        spares.push(source.obtain(&permit(&alice), soon()).await.expect("a token").spare().expect("renewable"));
    }
    let claims = r#"{"access_token":{}}"#;
    let renewed = spares.into_iter().map(|spare| spare.renewed(Some(claims), soon()));
    for credential in futures_util::future::join_all(renewed).await {
        assert_eq!(credential.expect("a token").header().expect("a header").1.expose(), "Bearer token-2");
    }
    let forms = forms.lock().expect("a lock");
    assert_eq!(forms.len(), 2);
    assert!(forms[1].contains("claims=%7B%22access_token%22"), "{}", forms[1]);
}

#[tokio::test]
async fn the_gateways_own_token_is_one_for_all_and_needs_no_callers_token() {
    let (url, forms) = endpoint(3600, Duration::ZERO).await;
    let grant = Grant::Client { audience: vec!["notes".into()], resource: Vec::new(), scope: None };
    let config = minted(&url, grant);
    assert!(!config.needs_callers());
    let source = source(&config);
    for name in ["alice", "bob"] {
        assert_eq!(sent(&source, &user(name, "read", None, HOUR)).await.as_deref(), Ok("Bearer token-1"));
    }
    assert!(source.own(soon()).await.expect("no error").is_some());
    assert_eq!(source.clear(), 1);
    assert_eq!(sent(&source, &user("alice", "read", None, HOUR)).await.as_deref(), Ok("Bearer token-2"));
    let forms = forms.lock().expect("a lock");
    assert!(forms[0].starts_with("grant_type=client_credentials&audience=notes&"), "{}", forms[0]);
}

#[tokio::test]
async fn a_forwarded_token_is_the_callers_and_nobody_elses() {
    let source = source(&Config::Forward { audience: "https://mcp.example.com".into() });
    assert_eq!(sent(&source, &user("alice", "read", Some(TOKEN), HOUR)).await, Ok(format!("Bearer {TOKEN}")));
    assert!(sent(&source, &user("alice", "read", None, HOUR)).await.is_err());
    assert!(source.own(soon()).await.expect("no error").is_none());
}

#[tokio::test]
async fn a_forwarded_token_is_personal_and_known_by_whose_it_is_and_not_by_its_text() {
    let source = source(&Config::Forward { audience: "https://mcp.example.com".into() });
    let identity = async |name: &str, scope: &str, token: &str| {
        let credential = source.obtain(&permit(&user(name, scope, Some(token), HOUR)), soon()).await.expect("a token");
        assert!(credential.is_personal() && credential.spare().is_none());
        let catalog = credential.for_catalog().await.expect("a credential");
        assert!(catalog.is_personal() && catalog.identity() == credential.identity());
        credential.identity().expect("an identity")
    };
    let alice = identity("alice", "read", TOKEN).await;
    assert_eq!(alice, identity("alice", "read", "another.caller.token").await);
    assert_ne!(alice, identity("bob", "read", TOKEN).await);
    assert_ne!(alice, identity("alice", "write", TOKEN).await);
    assert!(!own(&Config::None).is_personal());
}

#[tokio::test]
async fn no_secret_and_no_token_has_a_debug_form() {
    let (url, _) = endpoint(3600, Duration::ZERO).await;
    let config = minted(&url, obo());
    let source = source(&config);
    let alice = user("alice", "read", Some(TOKEN), HOUR);
    let credential = source.obtain(&permit(&alice), soon()).await.expect("a token");
    let shown = format!("{config:?} {source:?} {alice:?} {credential:?} {:?}", permit(&alice));
    assert!(!shown.contains("canary") && !shown.contains("token-1"), "{shown}");
}

/// Nobody but this room can name the type inside an assertion.
#[test]
fn an_assertion_cannot_be_opened_with_any_other_type() {
    let sealed = assertion(TOKEN, None);
    assert!(sealed.open::<String>().is_none() && sealed.open::<Secret>().is_none());
    assert!(sealed.open::<Box<str>>().is_none());
    assert_eq!(Caller::open(&sealed).map(Caller::token), Some(TOKEN));
}

#[test]
fn the_capability_is_declared_beside_the_claims_that_are_asked_for() {
    assert_eq!(mint::capable(None), r#"{"access_token":{"xms_cc":{"values":["cp1"]}}}"#);
    let wanted = r#"{"access_token":{"nbf":{"essential":true}},"id_token":{"x":null}}"#;
    let all = r#"{"access_token":{"nbf":{"essential":true},"xms_cc":{"values":["cp1"]}},"id_token":{"x":null}}"#;
    assert_eq!(mint::capable(Some(wanted)), all);
    // What somebody else has written in another way is theirs.
    assert_eq!(mint::capable(Some(r#"{"access_token":null}"#)), r#"{"access_token":null}"#);
}
