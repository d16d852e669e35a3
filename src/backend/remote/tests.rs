//! Remote backends against scripted servers: pooling, streams, limits, cancelling, retries, replicas.

mod discovery;
pub(super) mod scripted;
mod secured;
mod uplift;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use ::http::HeaderName;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::*;
use crate::backend::Content;
use crate::catalog::Action;
use crate::catalog::Call;
use crate::catalog::Decl;
use crate::catalog::Effect;
use crate::catalog::Kind;
use crate::catalog::Session;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::Params;
use crate::secret::Secret;
use scripted::Reaction;
use scripted::STREAM_HEAD;
use scripted::Seen;
use scripted::Server;
use scripted::chunk;
use scripted::error;
use scripted::http;
use scripted::result;

pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(super) fn endpoint(port: u16) -> Endpoint {
    Endpoint {
        tls: false,
        authority: format!("up.example:{port}"),
        place: Place::Tcp { host: "127.0.0.1".into(), port },
        path: "/mcp".into(),
    }
}

pub(super) fn http_config(endpoints: Vec<Endpoint>) -> Http {
    Http {
        endpoints,
        tls: ClientTls::default(),
        health: None,
        idle_timeout: Duration::from_secs(30),
        connections_max: 16,
    }
}

pub(super) fn config(transport: Transport) -> Config {
    Config {
        name: "up".into(),
        transport,
        era: None,
        effects: Effects::default(),
        pins: None,
        credential: credentials::Config::None,
        mode: None,
        connect_timeout: Duration::from_secs(5),
        read_timeout: Some(Duration::from_secs(10)),
        answer_bytes_max: 64 * 1024,
        event_bytes_max: 4 * 1024,
        catalog_ttl: Duration::from_secs(300),
        breaker: None,
    }
}

fn backend(servers: &[&Server]) -> Arc<dyn Backend> {
    let endpoints = servers.iter().map(|server| endpoint(server.port)).collect();
    new(config(Transport::Http(http_config(endpoints)))).expect("a good configuration")
}

fn credential() -> Credential {
    credentials::own(&credentials::Config::None)
}

pub(super) fn message(id: &str, method: Method, params: &str, era: Era) -> Message {
    let parsed: serde_json::Value = serde_json::from_str(params).expect("JSON");
    let text = |name: &str| parsed[name].as_str().map(str::to_owned);
    let token = parsed["_meta"].get("progressToken").map(|token| Bytes::from(token.to_string()));
    let params = Params {
        raw: Some(Bytes::copy_from_slice(params.as_bytes())),
        name: text("name"),
        progress_token: token,
        ..Params::default()
    };
    let kind = if method.is_notification() {
        mcp::Kind::Notification
    } else {
        mcp::Kind::Request { id: Id::from_json(id).expect("an id") }
    };
    Message { kind, method: Some(method), era, params, outcome: None }
}

/// A permitted call of a tool with this effect, or of the backend itself.
pub(super) fn permit(operation: Operation, effect: Option<Effect>, session: Option<&str>) -> Permit {
    let kind = if effect.is_some() { Kind::Tool } else { Kind::Backend };
    let effect = effect.unwrap_or(Effect::Read);
    let decl = Arc::new(Decl::plain(kind, "up".into(), "t", effect));
    let session = session.map(|id| Session { upstream: id.into(), version: "2025-11-25".into() });
    Permit::for_tests(Call { action: Action::Call, decl, effect, operation, session, version: None })
}

fn tool_call(effect: Effect) -> Permit {
    permit(Operation::Post(message("1", Method::ToolsCall, r#"{"name":"t"}"#, Era::Legacy)), Some(effect), None)
}

async fn call(backend: &Arc<dyn Backend>, permit: Permit) -> Result<Answer, Error> {
    backend.call(permit, credential(), soon()).await
}

#[track_caller]
fn body(answer: Result<Answer, Error>) -> Bytes {
    match answer.expect("an answer").content {
        Content::Json(body) => body,
        Content::Empty => panic!("empty"),
        Content::Events(_) => panic!("events"),
    }
}

#[track_caller]
fn refusal(answer: Result<Answer, Error>) -> Error {
    match answer {
        Ok(answer) => panic!("answered with {}", answer.status),
        Err(error) => error,
    }
}

#[tokio::test]
async fn calls_share_one_connection_and_say_only_what_we_decide() {
    let server = Server::start(|seen| result(seen, "{}")).await;
    let mut config = config(Transport::Http(http_config(vec![endpoint(server.port)])));
    config.era = Some(Era::Modern);
    config.credential = credentials::Config::Static {
        header: HeaderName::from_static("authorization"),
        value: Secret::new("Bearer ours"),
    };
    let own = credentials::own(&config.credential);
    let backend = new(config).expect("good");
    let mut permit = permit(
        Operation::Post(message("\"a\"", Method::ToolsCall, r#"{"name":"t"}"#, Era::Modern)),
        Some(Effect::Read),
        None,
    );
    permit = Permit::for_tests(Call { version: Some("2026-07-28".into()), ..rebuilt(&permit) });
    let answer = backend.call(permit, own, soon()).await;
    assert_eq!(body(answer), r#"{"jsonrpc":"2.0","id":"a","result":{}}"#);
    let first = server.next().await;
    let port = server.port;
    let expected = format!(
        "POST /mcp HTTP/1.1\r\nHost: up.example:{port}\r\nUser-Agent: wardgate/{}\r\nAccept-Encoding: identity\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nContent-Length: {}\r\nmcp-method: tools/call\r\nmcp-name: t\r\n\
         MCP-Protocol-Version: 2026-07-28\r\nauthorization: Bearer ours\r\n\r\n",
        env!("CARGO_PKG_VERSION"),
        first.body.len()
    );
    assert_eq!(first.raw, expected);
    for turn in 1..5 {
        body(call(&backend, tool_call(Effect::Destroy)).await);
        let seen = server.next().await;
        assert_eq!((seen.connection, seen.turn), (0, turn));
    }
}

fn rebuilt(permit: &Permit) -> Call {
    let call = permit.call();
    let operation = Operation::Post(call.message().expect("a message").clone());
    Call {
        action: call.action,
        decl: call.decl.clone(),
        effect: call.effect,
        operation,
        session: call.session.clone(),
        version: None,
    }
}

#[tokio::test]
async fn chunked_and_interim_answers_are_read_and_the_connection_goes_on() {
    let server = Server::start(|seen| {
        let mut raw = b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\ncontent-type: Application/JSON; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        raw.extend(chunk(&format!("{{\"n\":{}", seen.turn)));
        raw.extend(chunk("}"));
        raw.extend(b"0\r\n\r\n");
        Reaction::Raw(raw)
    })
    .await;
    let backend = backend(&[&server]);
    assert_eq!(body(call(&backend, tool_call(Effect::Read)).await), r#"{"n":0}"#);
    assert_eq!(body(call(&backend, tool_call(Effect::Read)).await), r#"{"n":1}"#);
}

#[tokio::test]
async fn a_large_request_arrives_whole() {
    let server = Server::start(|seen| result(seen, "{}")).await;
    let backend = backend(&[&server]);
    let params = format!(r#"{{"name":"t","arguments":{{"x":"{}"}}}}"#, "y".repeat(3_000_000));
    let large =
        permit(Operation::Post(message("1", Method::ToolsCall, &params, Era::Legacy)), Some(Effect::Read), None);
    body(call(&backend, large).await);
    assert!(server.next().await.body.len() > 3_000_000);
}

#[tokio::test]
async fn each_event_is_given_out_when_it_is_whole() {
    let (feed, fed) = mpsc::unbounded_channel();
    let fed = std::sync::Mutex::new(Some(fed));
    let server = Server::start(move |_| Reaction::Feed(fed.lock().expect("lock").take().expect("once"))).await;
    let backend = backend(&[&server]);
    feed.send(STREAM_HEAD.into()).expect("open");
    let answer = call(&backend, tool_call(Effect::Read)).await.expect("an answer");
    let Content::Events(mut events) = answer.content else { panic!("no stream") };
    for number in 0..3 {
        feed.send(chunk(&format!(": keep alive\n\nid: {number}\ndata: {{"))).expect("open");
        feed.send(chunk("}\n\n")).expect("open");
        let event = events.next().await.expect("an event").expect("good");
        assert_eq!(
            event,
            mcp::sse::Event { id: Some(number.to_string()), data: Some("{}".into()), ..Default::default() }
        );
    }
    feed.send(b"0\r\n\r\n".to_vec()).expect("open");
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_stream_that_ends_well_frees_its_connection_and_one_that_breaks_says_so() {
    let server = Server::start(|seen| {
        let whole = [STREAM_HEAD.as_bytes(), &chunk("data: {}\n\n")].concat();
        if seen.turn == 0 { Reaction::Raw([whole, b"0\r\n\r\n".to_vec()].concat()) } else { Reaction::Last(whole) }
    })
    .await;
    let backend = backend(&[&server]);
    for turn in 0..2 {
        let Content::Events(events) = call(&backend, tool_call(Effect::Read)).await.expect("an answer").content else {
            panic!("no stream")
        };
        let items: Vec<_> = events.collect().await;
        assert_eq!(items.len(), turn + 1);
        assert!(items[0].is_ok());
        assert!(items.get(1).is_none_or(|item| matches!(item, Err(Error::Unavailable { .. }))), "{items:?}");
        assert_eq!(server.next().await.connection, 0);
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused_however_it_comes() {
    let large = "x".repeat(70_000);
    for raw in [
        http("200 OK", "Content-Type: application/json\r\n", &large),
        [
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
            chunk(&large),
        ]
        .concat(),
        [b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n".to_vec(), large.clone().into_bytes()].concat(),
    ] {
        let server = Server::start(move |_| Reaction::Raw(raw.clone())).await;
        let error = refusal(call(&backend(&[&server]), tool_call(Effect::Read)).await);
        assert_eq!(error, Error::AnswerTooLarge { backend: "up".into(), bytes_max: 64 * 1024 });
        server.client_left().await;
    }
    let server = Server::start(|_| {
        Reaction::Raw([STREAM_HEAD.as_bytes(), &chunk(&format!("data: {}\n", "x".repeat(5_000)))].concat())
    })
    .await;
    let Content::Events(mut events) =
        call(&backend(&[&server]), tool_call(Effect::Read)).await.expect("an answer").content
    else {
        panic!("no stream")
    };
    assert!(matches!(events.next().await, Some(Err(Error::AnswerTooLarge { bytes_max: 4096, .. }))));
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn dropping_the_call_or_its_stream_closes_the_connection() {
    let server = Server::start(|seen| match seen.connection {
        0 => Reaction::Hang,
        _ => Reaction::Feed({
            let (feed, fed) = mpsc::unbounded_channel();
            feed.send([STREAM_HEAD.as_bytes(), &chunk("data: 1\n\n")].concat()).expect("open");
            std::mem::forget(feed);
            fed
        }),
    })
    .await;
    let backend = backend(&[&server]);
    let waiting = tokio::spawn({
        let backend = backend.clone();
        async move { call(&backend, tool_call(Effect::Read)).await.map(drop) }
    });
    server.next().await;
    waiting.abort();
    assert_eq!(server.client_left().await, 0);
    let Content::Events(mut events) = call(&backend, tool_call(Effect::Read)).await.expect("an answer").content else {
        panic!("no stream")
    };
    events.next().await.expect("an event").expect("good");
    drop(events);
    assert_eq!(server.client_left().await, 1);
}

#[tokio::test]
async fn the_deadline_ends_a_call_that_is_not_answered() {
    let server = Server::start(|_| Reaction::Hang).await;
    let answer = backend(&[&server])
        .call(tool_call(Effect::Read), credential(), Instant::now() + Duration::from_millis(50))
        .await;
    assert_eq!(refusal(answer), Error::Timeout { backend: "up".into() });
    server.client_left().await;
}

/// The first connection answers once and then takes a request without answering it.
async fn dying_server() -> Server {
    Server::start(|seen| if seen.connection == 0 && seen.turn == 1 { Reaction::Close } else { result(seen, "{}") })
        .await
}

#[tokio::test]
async fn what_may_run_twice_is_sent_again_when_a_pooled_connection_dies() {
    for permit in [
        tool_call(Effect::Read),
        permit(Operation::Post(message("1", Method::ToolsList, "{}", Era::Legacy)), None, None),
    ] {
        let server = dying_server().await;
        let backend = backend(&[&server]);
        body(call(&backend, tool_call(Effect::Read)).await);
        body(call(&backend, permit).await);
        let seen: Vec<_> = server.all().await.iter().map(|seen| (seen.connection, seen.turn)).collect();
        assert_eq!(seen, [(0, 0), (0, 1), (1, 0)]);
    }
}

#[tokio::test]
async fn what_must_not_run_twice_is_sent_once() {
    let server = dying_server().await;
    let backend = backend(&[&server]);
    body(call(&backend, tool_call(Effect::Read)).await);
    assert!(matches!(refusal(call(&backend, tool_call(Effect::Write)).await), Error::Unavailable { .. }));
    assert_eq!(server.all().await.len(), 2);
}

#[tokio::test]
async fn a_fresh_connection_that_dies_is_not_tried_again() {
    let server = Server::start(|_| Reaction::Close).await;
    assert!(matches!(refusal(call(&backend(&[&server]), tool_call(Effect::Read)).await), Error::Unavailable { .. }));
    assert_eq!(server.all().await.len(), 1);
}

/// A port on which nobody listens.
async fn dead_port() -> u16 {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound").port()
}

#[tokio::test]
async fn a_dead_replica_costs_no_call() {
    let server = Server::start(|seen| result(seen, "{}")).await;
    let endpoints = vec![endpoint(dead_port().await), endpoint(server.port)];
    let backend = new(config(Transport::Http(http_config(endpoints)))).expect("good");
    for _ in 0..10 {
        body(call(&backend, tool_call(Effect::Destroy)).await);
    }
    assert_eq!(server.all().await.len(), 10);
    assert!(backend.healthy());
}

#[tokio::test]
async fn a_backend_without_a_living_replica_is_unavailable_and_unhealthy() {
    let backend = new(config(Transport::Http(http_config(vec![endpoint(dead_port().await)])))).expect("good");
    for _ in 0..3 {
        assert!(matches!(refusal(call(&backend, tool_call(Effect::Read)).await), Error::Unavailable { .. }));
    }
    assert!(!backend.healthy());
}

fn minting(id: &'static str) -> impl Fn(&Seen) -> Reaction + Send + Sync + 'static {
    move |seen| {
        if seen.method() == "initialize" {
            let body = format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{}}}}"#, seen.json()["id"]);
            return Reaction::Raw(http(
                "200 OK",
                &format!("Mcp-Session-Id: {id}\r\nContent-Type: application/json\r\n"),
                &body,
            ));
        }
        match seen.headers.get("mcp-session-id") {
            Some(session) if session == id => result(seen, "{}"),
            _ => Reaction::Raw(http("404 Not Found", "", "")),
        }
    }
}

#[tokio::test]
async fn a_session_stays_with_the_replica_that_made_it() {
    let (one, two) = (Server::start(minting("s-one")).await, Server::start(minting("s-two")).await);
    let backend = backend(&[&one, &two]);
    let mut sessions = Vec::new();
    for _ in 0..4 {
        let hello = permit(Operation::Post(message("0", Method::Initialize, "{}", Era::Legacy)), None, None);
        sessions.push(call(&backend, hello).await.expect("an answer").session.expect("a session"));
    }
    assert!(sessions.contains(&"s-one".into()) && sessions.contains(&"s-two".into()), "both replicas took part");
    for session in &sessions {
        let inside = permit(
            Operation::Post(message("1", Method::ToolsCall, r#"{"name":"t"}"#, Era::Legacy)),
            Some(Effect::Write),
            Some(session),
        );
        body(call(&backend, inside).await);
    }
    let unknown =
        permit(Operation::Post(message("1", Method::ToolsCall, "{}", Era::Legacy)), Some(Effect::Write), Some("gone"));
    assert_eq!(refusal(call(&backend, unknown).await), Error::SessionLost { backend: "up".into() });
}

#[tokio::test]
async fn every_status_has_its_meaning() {
    let answer = |raw: Vec<u8>, permit: Permit| async move {
        let server = Server::start(move |_| Reaction::Raw(raw.clone())).await;
        call(&backend(&[&server]), permit).await
    };
    let post = || tool_call(Effect::Read);
    let get = || permit(Operation::Stream { last_event_id: None }, None, Some("s"));
    let in_session = || permit(Operation::Post(message("1", Method::Ping, "{}", Era::Legacy)), None, Some("s"));
    let notification =
        || permit(Operation::Post(message("", Method::NotificationsInitialized, "{}", Era::Legacy)), None, None);
    let kind = "Content-Type: application/json\r\n";
    let rpc_error = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"m"}}"#;
    for status in ["401 Unauthorized", "403 Forbidden"] {
        let error = refusal(answer(http(status, "WWW-Authenticate: Bearer x\r\n", rpc_error), post()).await);
        assert!(matches!(error, Error::CredentialRefused { .. }), "{status}: {error}");
    }
    assert!(matches!(refusal(answer(http("302 Found", "Location: /x\r\n", ""), post()).await), Error::Protocol { .. }));
    assert!(matches!(refusal(answer(http("400 Bad", kind, "<html>"), post()).await), Error::Protocol { .. }));
    assert!(matches!(refusal(answer(http("404 No", kind, rpc_error), in_session()).await), Error::SessionLost { .. }));
    assert!(matches!(refusal(answer(http("500 No", kind, rpc_error), post()).await), Error::Unavailable { .. }));
    assert!(matches!(
        refusal(answer(http("200 OK", "Content-Type: text/html\r\n", "<html>"), post()).await),
        Error::Protocol { .. }
    ));
    let gzip = http("200 OK", "Content-Type: application/json\r\nContent-Encoding: gzip\r\n", "{}");
    assert!(matches!(refusal(answer(gzip, post()).await), Error::Protocol { .. }));
    assert!(matches!(
        refusal(answer(b"HTTP/1.1 101 Switching\r\n\r\n".to_vec(), post()).await),
        Error::Unavailable { .. }
    ));
    assert!(matches!(refusal(answer(b"SSH-2.0-OpenSSH\r\n\r\n".to_vec(), post()).await), Error::Unavailable { .. }));

    let relayed = answer(http("404 Not Found", kind, rpc_error), post()).await.expect("an answer");
    assert_eq!((relayed.status, body(Ok(relayed))), (404, rpc_error.into()));
    let accepted = answer(http("202 Accepted", "", ""), notification()).await.expect("an answer");
    assert!(matches!((accepted.status, accepted.content), (202, Content::Empty)));
    let none = answer(http("405 No", "", ""), get()).await.expect("an answer");
    assert!(matches!((none.status, none.content), (405, Content::Empty)));
}

#[tokio::test]
async fn a_session_id_that_could_forge_headers_is_refused() {
    let raw = http("200 OK", "Mcp-Session-Id: a b\r\nContent-Type: application/json\r\n", "{}");
    let server = Server::start(move |_| Reaction::Raw(raw.clone())).await;
    let hello = permit(Operation::Post(message("0", Method::Initialize, "{}", Era::Legacy)), None, None);
    assert!(matches!(refusal(call(&backend(&[&server]), hello).await), Error::Protocol { .. }));
    let inside = permit(Operation::Post(message("1", Method::Ping, "{}", Era::Legacy)), None, Some("a\r\nX-Evil: 1"));
    assert!(matches!(refusal(call(&backend(&[&server]), inside).await), Error::Unavailable { .. }));
    assert_eq!(server.all().await.len(), 1, "nothing was sent");
}

#[tokio::test]
async fn a_stream_and_the_end_of_a_session_carry_the_session() {
    let server = Server::start(|seen| match seen.line.as_str() {
        "GET /mcp HTTP/1.1" => Reaction::Raw([STREAM_HEAD.as_bytes(), &chunk("data: {}\n\n"), b"0\r\n\r\n"].concat()),
        _ => Reaction::Raw(http("200 OK", "", "")),
    })
    .await;
    let backend = backend(&[&server]);
    let get = permit(Operation::Stream { last_event_id: Some("e-7".into()) }, None, Some("s"));
    let Content::Events(events) = call(&backend, get).await.expect("an answer").content else { panic!("no stream") };
    assert_eq!(events.count().await, 1);
    let seen = server.next().await;
    assert_eq!((seen.headers["last-event-id"].as_str(), seen.headers["mcp-session-id"].as_str()), ("e-7", "s"));
    assert_eq!(seen.headers["accept"], "text/event-stream");
    let delete = permit(Operation::EndSession, None, Some("s"));
    assert!(matches!(call(&backend, delete).await.expect("an answer").content, Content::Empty));
    assert_eq!(server.next().await.line, "DELETE /mcp HTTP/1.1");
}

#[tokio::test]
async fn calls_wait_for_a_free_connection() {
    let (feed, fed) = mpsc::unbounded_channel();
    let fed = std::sync::Mutex::new(Some(fed));
    let server = Server::start(move |seen| match fed.lock().expect("lock").take() {
        Some(fed) => Reaction::Feed(fed),
        None => result(seen, "{}"),
    })
    .await;
    let mut http = http_config(vec![endpoint(server.port)]);
    http.connections_max = 1;
    let backend = new(config(Transport::Http(http))).expect("good");
    feed.send(STREAM_HEAD.into()).expect("open");
    let held = call(&backend, tool_call(Effect::Read)).await.expect("an answer");
    let waiting = backend.call(tool_call(Effect::Read), credential(), Instant::now() + Duration::from_millis(50)).await;
    assert_eq!(refusal(waiting), Error::Timeout { backend: "up".into() });
    drop(held);
    body(call(&backend, tool_call(Effect::Read)).await);
}

#[tokio::test]
async fn checks_take_a_failing_replica_out_and_bring_it_back() {
    static STATUS: AtomicUsize = AtomicUsize::new(503);
    let server = Server::start(|_| Reaction::Raw(http(&format!("{} X", STATUS.load(Ordering::SeqCst)), "", ""))).await;
    let mut http = http_config(vec![endpoint(server.port)]);
    let health = Health {
        interval: Duration::from_millis(10),
        timeout: Duration::from_secs(5),
        unhealthy_after: 2,
        healthy_after: 2,
    };
    http.health = Some(health);
    let backend = new(config(Transport::Http(http))).expect("good");
    assert!(backend.healthy(), "innocent until checked");
    backend.start();
    // The third check begins after the second was counted.
    for _ in 0..3 {
        assert_eq!(server.next().await.line, "GET /mcp HTTP/1.1");
    }
    assert!(!backend.healthy());
    STATUS.store(405, Ordering::SeqCst);
    server.all().await;
    // One check may have been under way with the old status.
    for _ in 0..4 {
        server.next().await;
    }
    assert!(backend.healthy());
    backend.stop().await;
}

#[tokio::test]
async fn a_configuration_that_could_forge_a_request_is_refused() {
    for bad in [
        Endpoint { path: "/a b".into(), ..endpoint(1) },
        Endpoint { path: "mcp".into(), ..endpoint(1) },
        Endpoint { authority: "a\r\nX: y".into(), ..endpoint(1) },
        Endpoint { authority: String::new(), ..endpoint(1) },
    ] {
        assert!(new(config(Transport::Http(http_config(vec![bad])))).is_err());
    }
    assert!(new(config(Transport::Http(http_config(Vec::new())))).is_err());
}

#[tokio::test]
async fn a_unix_socket_is_as_good_as_an_address() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("up.sock");
    let server = Server::start_unix(&path, |seen| result(seen, "{}"));
    let endpoint =
        Endpoint { tls: false, authority: "localhost".into(), place: Place::Unix(path), path: "/mcp".into() };
    let backend = new(config(Transport::Http(http_config(vec![endpoint])))).expect("good");
    for turn in 0..3 {
        body(call(&backend, tool_call(Effect::Destroy)).await);
        let seen = server.next().await;
        assert_eq!((seen.connection, seen.turn, seen.headers["host"].as_str()), (0, turn, "localhost"));
    }
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_is_left_alone_and_then_tried_by_one_call() {
    let breaker = breaker::Config { failures: 2, window: Duration::from_secs(60), pause: Duration::from_millis(300) };
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let server = Server::start({
        let broken = broken.clone();
        move |seen| match broken.load(Ordering::Relaxed) {
            true => Reaction::Raw(http("503 Busy", "", "")),
            false => result(seen, "{}"),
        }
    })
    .await;
    let mut config = config(Transport::Http(http_config(vec![endpoint(server.port)])));
    config.breaker = Some(breaker);
    let backend = new(config).expect("a good configuration");
    for _ in 0..2 {
        assert!(backend.healthy());
        let error = call(&backend, tool_call(Effect::Destroy)).await.map(drop);
        assert!(error.is_err_and(|error| error.to_string().contains("status 503")));
    }
    assert!(!backend.healthy());
    let error = call(&backend, tool_call(Effect::Destroy)).await.map(drop);
    assert!(
        matches!(&error, Err(Error::Unavailable { what, .. }) if what == "circuit open, next try in 1 s"),
        "{error:?}"
    );
    assert_eq!(server.all().await.len(), 2, "the third was not sent");
    broken.store(false, Ordering::Relaxed);
    while call(&backend, tool_call(Effect::Destroy)).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert!(backend.healthy());
    assert_eq!(server.all().await.len(), 1);
}

#[tokio::test]
async fn who_waits_for_a_connection_of_ours_says_nothing_about_the_upstream() {
    let (feed, fed) = mpsc::unbounded_channel();
    let fed = std::sync::Mutex::new(Some(fed));
    let server = Server::start(move |_| Reaction::Feed(fed.lock().expect("lock").take().expect("asked once"))).await;
    let http = Http { connections_max: 1, ..http_config(vec![endpoint(server.port)]) };
    let breaker = breaker::Config { failures: 1, window: Duration::from_secs(60), pause: Duration::from_secs(60) };
    let connect_timeout = Duration::from_millis(5);
    let config = Config { breaker: Some(breaker), connect_timeout, ..config(Transport::Http(http)) };
    let backend = new(config).expect("a good configuration");
    feed.send(STREAM_HEAD.into()).expect("open");
    let held = call(&backend, tool_call(Effect::Read)).await.expect("an answer");
    let waiting = backend.call(tool_call(Effect::Read), credential(), Instant::now() + Duration::from_millis(50)).await;
    assert_eq!(refusal(waiting), Error::Timeout { backend: "up".into() });
    assert!(backend.healthy());
    drop(held);
}

#[tokio::test]
async fn refusals_and_callers_without_time_do_not_open_the_circuit() {
    let server = Server::start(|seen| match seen.json()["params"]["name"] == "t" {
        true => error(seen, "400 Bad Request", -32602),
        false => Reaction::Hang,
    })
    .await;
    let mut config = config(Transport::Http(http_config(vec![endpoint(server.port)])));
    config.breaker =
        Some(breaker::Config { failures: 1, window: Duration::from_secs(60), pause: Duration::from_secs(60) });
    let backend = new(config).expect("a good configuration");
    assert_eq!(call(&backend, tool_call(Effect::Read)).await.expect("an answer").status, 400);
    let slow = || permit(Operation::Post(message("1", Method::ToolsCall, "{}", Era::Legacy)), Some(Effect::Read), None);
    let hurried = backend.call(slow(), credential(), Instant::now() + Duration::from_millis(20)).await.map(drop);
    assert!(matches!(hurried, Err(Error::Timeout { .. })), "{hurried:?}");
    let gone = tokio::spawn({
        let (backend, permit) = (backend.clone(), slow());
        async move { call(&backend, permit).await.map(drop) }
    });
    tokio::task::yield_now().await;
    gone.abort();
    drop(gone.await);
    assert!(backend.healthy());
}
