//! HTTP+SSE upstreams on scripted servers: the endpoint, sessions, correlation, credentials, broken streams, limits.

use tokio::sync::mpsc::UnboundedSender;

use super::super::ClientTls;
use super::super::Transport;
use super::super::tests::config;
use super::super::tests::endpoint;
use super::super::tests::message;
use super::super::tests::scripted::Reaction;
use super::super::tests::scripted::STREAM_HEAD;
use super::super::tests::scripted::Seen;
use super::super::tests::scripted::Server;
use super::super::tests::scripted::chunk;
use super::super::tests::scripted::http as raw;
use super::super::tests::soon;
use super::*;
use crate::credentials;

/// One open stream of the old server: what the test says over it.
struct Stream(UnboundedSender<Vec<u8>>);

impl Stream {
    fn say(&self, event: &str) {
        // Nobody may listen any more.
        let _ = self.0.send(chunk(event));
    }

    fn message(&self, json: &str) {
        self.say(&format!("event: message\ndata: {json}\n\n"));
    }

    fn answer(&self, seen: &Seen, result: &str) {
        self.message(&format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, seen.json()["id"]));
    }
}

type Streams = Arc<Mutex<Vec<Stream>>>;

const HELLO: &str = r#"{"protocolVersion":"2024-11-05","capabilities":{},"serverInfo":{"name":"old","version":"1"}}"#;

/// A server of 2024-11-05: each GET is a session, named by its number; `react` sees what is posted to it.
async fn old(react: impl Fn(&Seen, &Stream) -> Option<&'static str> + Send + Sync + 'static) -> (Server, Streams) {
    let streams = Streams::default();
    let all = streams.clone();
    let server = Server::start(move |seen| {
        let mut all = all.lock().expect("no panic");
        if seen.line.starts_with("GET") {
            let (sender, feed) = mpsc::unbounded_channel();
            sender.send(STREAM_HEAD.into()).expect("just made");
            sender.send(chunk(&format!("event: endpoint\ndata: /messages?session={}\n\n", all.len()))).expect("open");
            all.push(Stream(sender));
            return Reaction::Feed(feed);
        }
        let number = seen.line.split(['=', ' ']).nth(2).and_then(|number| number.parse::<usize>().ok());
        let stream = &all[number.unwrap_or_else(|| panic!("posted to {}", seen.line))];
        if seen.method() == "initialize" {
            stream.answer(seen, HELLO);
        } else if let Some(status) = react(seen, stream) {
            return Reaction::Raw(raw(status, "", ""));
        }
        Reaction::Raw(raw("202 Accepted", "", "Accepted"))
    })
    .await;
    (server, streams)
}

fn sse(port: u16) -> Sse {
    Sse {
        endpoint: Endpoint { path: "/sse".into(), ..endpoint(port) },
        tls: ClientTls::default(),
        idle_timeout: Duration::from_secs(60),
        connections_max: 4,
    }
}

fn upstream_of(sse: &Sse) -> Upstream {
    Upstream::new(&Arc::new(config(Transport::Sse(sse.clone()))), sse).expect("good")
}

fn upstream(server: &Server) -> Upstream {
    upstream_of(&sse(server.port))
}

async fn ask(upstream: &Upstream, operation: Operation, session: Option<&str>) -> Result<Answer, Error> {
    let header = http::header::AUTHORIZATION;
    let credential = credentials::Config::Static { header, value: Secret::new("Bearer key") };
    let ask = Ask {
        operation: &operation,
        session,
        version: None,
        bindings: &[],
        repeatable: false,
        owner: "i||anna",
        share: "i||anna",
        reached: None,
    };
    upstream.ask(ask, &credentials::own(&credential), soon()).await
}

fn post(id: &str, method: Method, params: &str) -> Operation {
    Operation::Post(message(id, method, params, Era::Legacy))
}

async fn open(upstream: &Upstream) -> String {
    let params = r#"{"capabilities":{"roots":{}}}"#;
    let hello = ask(upstream, post("\"h\"", Method::Initialize, params), None).await.expect("an answer");
    let Content::Json(body) = hello.content else {
        panic!("no body");
    };
    assert_eq!(body, format!(r#"{{"jsonrpc":"2.0","id":"h","result":{HELLO}}}"#));
    hello.session.expect("a session")
}

#[track_caller]
fn body(answer: Result<Answer, Error>) -> String {
    match answer.expect("an answer").content {
        Content::Json(body) => String::from_utf8(body.to_vec()).expect("UTF-8"),
        Content::Empty | Content::Events(_) => panic!("no body"),
    }
}

async fn next(events: &mut BoxStream<'static, Result<Event, Error>>) -> String {
    let event = events.next().await.expect("an event").expect("good");
    String::from_utf8(event.data.expect("data").to_vec()).expect("UTF-8")
}

#[track_caller]
fn events(answer: Result<Answer, Error>) -> BoxStream<'static, Result<Event, Error>> {
    match answer.expect("an answer").content {
        Content::Events(events) => events,
        Content::Empty | Content::Json(_) => panic!("no stream"),
    }
}

#[tokio::test]
async fn a_session_is_a_stream_and_its_answers_find_their_requests() {
    let (server, streams) = old(|seen, stream| {
        if seen.json()["params"]["late"] == true {
            return None;
        }
        stream.answer(seen, &format!("{{\"who\":{}}}", seen.json()["params"]["who"]));
        None
    })
    .await;
    let upstream = upstream(&server);
    let (anna, bert) = (open(&upstream).await, open(&upstream).await);
    assert!(anna != bert && anna.len() == 32, "unguessable and our own: {anna}");
    let call = |who: &str| post("1", Method::ToolsCall, &format!(r#"{{"who":"{who}"}}"#));
    let (one, two) = tokio::join!(ask(&upstream, call("anna"), Some(&anna)), ask(&upstream, call("bert"), Some(&bert)));
    assert_eq!(body(one), r#"{"jsonrpc":"2.0","id":1,"result":{"who":"anna"}}"#);
    assert_eq!(body(two), r#"{"jsonrpc":"2.0","id":1,"result":{"who":"bert"}}"#);
    let note = ask(&upstream, post("", Method::NotificationsInitialized, "{}"), Some(&anna)).await;
    assert_eq!(note.expect("taken").status, 202);
    assert_eq!(streams.lock().expect("no panic").len(), 2);
    let seen = server.all().await;
    assert!(seen.iter().all(|seen| seen.headers["authorization"] == "Bearer key"), "with GET and with POST");
    let gets: Vec<_> = seen.iter().filter(|seen| seen.line.starts_with("GET")).collect();
    assert!(gets.iter().all(|seen| seen.line == "GET /sse HTTP/1.1" && seen.headers["accept"] == "text/event-stream"));
    assert!(seen.iter().all(|seen| !seen.headers.contains_key("mcp-session-id")));
}

#[tokio::test]
async fn an_endpoint_of_another_origin_gets_nothing() {
    let trap = Server::start(|_| Reaction::Close).await;
    let elsewhere = trap.port;
    for named in [
        format!("http://127.0.0.1:{elsewhere}/messages"),
        format!("//up.example:{elsewhere}/messages"),
        "https://up.example/messages".to_owned(),
    ] {
        let server = Server::start(move |seen| {
            assert!(seen.line.starts_with("GET"), "nothing is posted: {}", seen.line);
            Reaction::Raw([STREAM_HEAD.into(), chunk(&format!("event: endpoint\ndata: {named}\n\n"))].concat())
        })
        .await;
        let upstream = upstream(&server);
        let hello = ask(&upstream, post("0", Method::Initialize, "{}"), None).await.map(drop);
        assert!(matches!(&hello, Err(Error::Protocol { what, .. }) if what.contains("another origin")), "{hello:?}");
        server.client_left().await;
    }
    assert!(trap.all().await.is_empty());
}

#[tokio::test]
async fn what_does_not_begin_with_an_endpoint_is_no_session() {
    let first_message = [STREAM_HEAD.into(), chunk("event: message\ndata: {}\n\n")].concat();
    for (reaction, words) in [
        (first_message, "does not begin with an endpoint"),
        (raw("200 OK", "Content-Type: application/json\r\n", "{}"), "no event stream"),
        (raw("404 Not Found", "", ""), "status 404"),
        (raw("302 Found", "Location: http://127.0.0.1:1/\r\n", ""), "redirect"),
        (raw("503 Busy", "", ""), "status 503"),
        (raw("401 No", "", ""), "refused the gateway's credential"),
    ] {
        let server = Server::start(move |_| Reaction::Raw(reaction.clone())).await;
        let error = ask(&upstream(&server), post("0", Method::Initialize, "{}"), None).await.map(drop);
        assert!(error.as_ref().is_err_and(|error| error.to_string().contains(words)), "{words}: {error:?}");
    }
}

#[tokio::test]
async fn progress_and_the_servers_requests_come_with_the_call_and_the_rest_on_the_stream() {
    let (server, _) = old(|seen, stream| {
        if seen.method() == "tools/call" {
            let token = &seen.json()["params"]["_meta"]["progressToken"];
            stream.message(&format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token},"progress":1}}}}"#
            ));
            stream.message(r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#);
            stream.message(r#"{"jsonrpc":"2.0","id":"s","method":"roots/list"}"#);
        } else if seen.json()["result"]["roots"].is_array() {
            stream.message(r#"{"jsonrpc":"2.0","id":2,"result":{"done":true}}"#);
        }
        None
    })
    .await;
    let upstream = upstream(&server);
    let session = open(&upstream).await;
    let call = post("\"c\"", Method::ToolsCall, r#"{"_meta":{"progressToken":"mine"}}"#);
    let mut stream = events(ask(&upstream, call, Some(&session)).await);
    assert!(next(&mut stream).await.contains(r#""progressToken":"mine""#));
    assert_eq!(next(&mut stream).await, r#"{"jsonrpc":"2.0","id":"s","method":"roots/list"}"#);
    let reply = Message {
        kind: crate::mcp::Kind::Response { id: crate::mcp::Id::from_json("\"s\"").expect("an id") },
        method: None,
        era: Era::Legacy,
        params: crate::mcp::Params::default(),
        outcome: Some(r#""result":{"roots":[]}"#.into()),
    };
    assert_eq!(ask(&upstream, Operation::Post(reply), Some(&session)).await.expect("taken").status, 202);
    assert_eq!(next(&mut stream).await, r#"{"jsonrpc":"2.0","id":"c","result":{"done":true}}"#);
    assert!(stream.next().await.is_none());
    let mut rest = events(ask(&upstream, Operation::Stream { last_event_id: None }, Some(&session)).await);
    assert!(next(&mut rest).await.contains("tools/list_changed"));
    ask(&upstream, Operation::EndSession, Some(&session)).await.expect("ended");
    assert!(rest.next().await.is_none(), "it ends with the session");
    server.client_left().await;
}

#[tokio::test]
async fn a_stream_that_breaks_fails_what_runs_and_loses_the_session() {
    let (server, streams) = old(|_, _| None).await;
    let upstream = Arc::new(upstream(&server));
    let session = open(&upstream).await;
    drop((server.next().await, server.next().await));
    let running = tokio::spawn({
        let (upstream, session) = (upstream.clone(), session.clone());
        async move { ask(&upstream, post("1", Method::ToolsCall, "{}"), Some(&session)).await.map(drop) }
    });
    server.next().await;
    streams.lock().expect("no panic").clear();
    let failed = running.await.expect("no panic");
    assert!(matches!(failed, Err(Error::Unavailable { .. })), "{failed:?}");
    let lost = Err(Error::SessionLost { backend: "up".into() });
    for session in [Some(session.as_str()), Some("forged"), None] {
        assert_eq!(ask(&upstream, post("2", Method::Ping, "{}"), session).await.map(drop), lost);
    }
}

#[tokio::test]
async fn a_refused_message_fails_its_request_and_an_unknown_session_is_lost() {
    let (server, _) = old(|seen, _| match seen.method().as_str() {
        "ping" => Some("500 Broken"),
        "tools/call" => Some("404 Not Found"),
        _ => None,
    })
    .await;
    let upstream = upstream(&server);
    let session = open(&upstream).await;
    let ping = ask(&upstream, post("1", Method::Ping, "{}"), Some(&session)).await.map(drop);
    assert!(matches!(ping, Err(Error::Unavailable { .. })), "{ping:?}");
    let lost = Err(Error::SessionLost { backend: "up".into() });
    assert_eq!(ask(&upstream, post("2", Method::ToolsCall, "{}"), Some(&session)).await.map(drop), lost);
    server.client_left().await;
}

#[tokio::test]
async fn a_caller_who_leaves_does_not_take_the_request_back_and_modern_ones_are_refused() {
    let (server, _) = old(|_, _| None).await;
    let upstream = Arc::new(upstream(&server));
    let session = open(&upstream).await;
    drop((server.next().await, server.next().await));
    let gone = tokio::spawn({
        let upstream = upstream.clone();
        async move { ask(&upstream, post("1", Method::ToolsCall, "{}"), Some(&session)).await.map(drop) }
    });
    tokio::task::yield_now().await;
    gone.abort();
    assert_eq!(server.next().await.method(), "tools/call");
    let modern = Operation::Post(message("1", Method::ToolsCall, "{}", Era::Modern));
    assert!(matches!(ask(&upstream, modern, None).await.map(drop), Err(Error::Protocol { .. })));
}

#[tokio::test]
async fn a_message_that_waits_for_a_place_is_not_sent_when_its_caller_leaves() {
    let streams = Streams::default();
    let held: Arc<Mutex<Vec<UnboundedSender<Vec<u8>>>>> = Arc::default();
    let server = Server::start({
        let (streams, held) = (streams.clone(), held.clone());
        move |seen| {
            let mut streams = streams.lock().expect("no panic");
            let (sender, feed) = mpsc::unbounded_channel();
            match seen.method().as_str() {
                "" => {
                    sender.send(STREAM_HEAD.into()).expect("just made");
                    sender.send(chunk("event: endpoint\ndata: /messages\n\n")).expect("open");
                    streams.push(Stream(sender));
                    return Reaction::Feed(feed);
                }
                "initialize" => streams[0].answer(seen, HELLO),
                // Taken, but not acknowledged until the test says so.
                "tools/call" => {
                    held.lock().expect("no panic").push(sender);
                    return Reaction::Feed(feed);
                }
                _ => streams[0].answer(seen, "{}"),
            }
            Reaction::Raw(raw("202 Accepted", "", ""))
        }
    })
    .await;
    let upstream = Arc::new(upstream_of(&Sse { connections_max: 1, ..sse(server.port) }));
    let session = open(&upstream).await;
    drop(server.all().await);
    let begin = |method: Method| {
        let (upstream, session) = (upstream.clone(), session.clone());
        tokio::spawn(async move { ask(&upstream, post("1", method, "{}"), Some(&session)).await.map(drop) })
    };
    let _first = begin(Method::ToolsCall);
    assert_eq!(server.next().await.method(), "tools/call");
    let second = begin(Method::PromptsList);
    tokio::task::yield_now().await;
    second.abort();
    drop(second.await);
    let third = begin(Method::ToolsList);
    tokio::task::yield_now().await;
    for held in held.lock().expect("no panic").drain(..) {
        held.send(raw("202 Accepted", "Connection: close\r\n", "")).expect("open");
    }
    assert_eq!(server.next().await.method(), "tools/list", "not the one whose caller left");
    third.await.expect("no panic").expect("an answer");
}

#[tokio::test]
async fn sessions_that_we_have_no_place_for_do_not_open_the_circuit() {
    let (server, _) = old(|_, _| None).await;
    let sse = Sse { connections_max: 1, ..sse(server.port) };
    let breaker = crate::backend::breaker::Config {
        failures: 1,
        window: Duration::from_secs(60),
        pause: Duration::from_secs(60),
    };
    let config = Config { breaker: Some(breaker), ..config(Transport::Sse(sse)) };
    let backend = super::super::new(config).expect("good");
    let hello = || {
        let permit = super::super::tests::permit(post("0", Method::Initialize, "{}"), None, None);
        backend.call(permit, credentials::own(&credentials::Config::None), soon())
    };
    hello().await.expect("a session");
    let second = hello().await.map(drop);
    assert!(matches!(&second, Err(Error::Unavailable { what, .. }) if what.contains("1 sessions")), "{second:?}");
    assert!(backend.healthy());
}

#[tokio::test]
async fn there_are_only_so_many_sessions_and_idle_ones_end() {
    let (server, _) = old(|_, _| None).await;
    let mut sse = sse(server.port);
    (sse.connections_max, sse.idle_timeout) = (1, Duration::from_millis(50));
    let upstream = upstream_of(&sse);
    let session = open(&upstream).await;
    server.client_left().await;
    let lost = Err(Error::SessionLost { backend: "up".into() });
    assert_eq!(ask(&upstream, post("1", Method::Ping, "{}"), Some(&session)).await.map(drop), lost);
    sse.idle_timeout = Duration::from_secs(60);
    let upstream = upstream_of(&sse);
    let session = open(&upstream).await;
    let second = ask(&upstream, post("0", Method::Initialize, "{}"), None).await.map(drop);
    assert!(matches!(&second, Err(Error::Unavailable { what, .. }) if what.contains("1 sessions")), "{second:?}");
    upstream.stop().await;
    server.client_left().await;
    assert_eq!(ask(&upstream, post("1", Method::Ping, "{}"), Some(&session)).await.map(drop), lost);
    assert!(!upstream.healthy());
}

#[tokio::test]
async fn an_event_that_is_too_large_ends_the_session() {
    let (server, _) = old(|seen, stream| {
        stream.answer(seen, &format!("\"{}\"", "x".repeat(5_000)));
        None
    })
    .await;
    let upstream = upstream(&server);
    let session = open(&upstream).await;
    let error = ask(&upstream, post("1", Method::ToolsCall, "{}"), Some(&session)).await.map(drop);
    assert_eq!(error, Err(Error::AnswerTooLarge { backend: "up".into(), bytes_max: 4 * 1024 }));
    server.client_left().await;
}

#[tokio::test]
async fn the_catalog_is_found_over_it_and_its_session_ends() {
    let (server, _) = old(|seen, stream| {
        if seen.method() == "tools/list" {
            stream.answer(seen, r#"{"tools":[{"name":"t","inputSchema":{"type":"object"}}]}"#);
        }
        None
    })
    .await;
    let sse = sse(server.port);
    let config = Config { era: Some(Era::Legacy), ..config(Transport::Sse(sse)) };
    let backend = super::super::new(config).expect("good");
    let catalog = backend.refresh(credentials::own(&credentials::Config::None), soon()).await.expect("a catalog");
    assert!(catalog.tools.contains_key("t"));
    server.client_left().await;
}
