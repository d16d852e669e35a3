//! Wire tests of the edge: a scripted spine behind real sockets. Each duty listed in `http.rs` has one here.

mod framing;
mod headers;
mod life;
mod secure;

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderName;
use http::HeaderValue;
use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::exchange::Body;
use crate::exchange::Peer;
use crate::exchange::Reply;
use crate::exchange::Request;
use crate::gateway::Head;
use crate::gateway::Rejection;

use super::Address;
use super::Admin;
use super::Config;
use super::Listener;
use super::Server;
use super::Spine;

const RATE: crate::limits::Rate =
    crate::limits::Rate { calls: std::num::NonZeroU32::MIN, period: Duration::from_secs(60) };

/// Nothing in these tests takes as long; without it a failure would hang.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(15), future).await.expect("this should have happened long ago")
}

/// What the spine saw.
#[derive(Debug, PartialEq)]
enum Event {
    Served(String),
    Refused {
        rejection: Rejection,
        method: String,
        path: String,
    },
    /// Answered by the edge itself: method and path.
    Noted(String, String),
    /// A call or a stream was dropped before its end.
    Dropped(String),
}

/// Tells when it is dropped, unless it was disarmed.
struct Tell(mpsc::UnboundedSender<Event>, String, bool);

impl Drop for Tell {
    fn drop(&mut self) {
        if self.2 {
            drop(self.0.send(Event::Dropped(self.1.clone())));
        }
    }
}

/// Answers by path.
struct Scripted {
    events: mpsc::UnboundedSender<Event>,
    /// Lets one `/gate` call go on.
    open: Notify,
    /// What `/events` sends.
    news: Mutex<Option<mpsc::UnboundedReceiver<Bytes>>>,
    limited: AtomicBool,
}

#[async_trait]
impl Spine for Scripted {
    fn note(&self, head: Head, reply: Reply) -> Reply {
        drop(self.events.send(Event::Noted(head.http_method, head.path)));
        reply
    }

    async fn serve(&self, request: Request) -> Reply {
        let mut tell = Tell(self.events.clone(), request.path.clone(), true);
        drop(self.events.send(Event::Served(request.path.clone())));
        let reply = match request.path.as_str() {
            "/hang" => std::future::pending().await,
            "/gate" => {
                self.open.notified().await;
                echo(&request)
            }
            "/events" => {
                let mut news = self.news.lock().unwrap().take().expect("one stream per test");
                let held = Tell(self.events.clone(), "/events stream".to_owned(), true);
                let stream = futures_util::stream::poll_fn(move |cx| {
                    let _held = &held;
                    news.poll_recv(cx)
                });
                Reply { status: 200, headers: Vec::new(), body: Body::Events(Box::pin(stream)), owes: None }
            }
            "/big" => Reply::json(200, Bytes::from(vec![b'x'; 64 * 1024 * 1024])),
            "/accepted" => Reply::empty(202),
            "/rude" => {
                ["connection", "transfer-encoding", "access-control-allow-origin", "content-length", "x-request-id"]
                    .iter()
                    .fold(echo(&request), |reply, name| {
                        reply.with(HeaderName::from_static(name), HeaderValue::from_static("evil"))
                    })
                    .with(HeaderName::from_static("mcp-session-id"), HeaderValue::from_static("s"))
            }
            _ => echo(&request),
        };
        tell.2 = false;
        reply
    }

    fn refuse(&self, head: Head, rejection: Rejection) -> Reply {
        let status = match &rejection {
            Rejection::BadRequest { .. } | Rejection::BadPath => 400,
            Rejection::BadOrigin => 403,
            Rejection::BadHost => 421,
            Rejection::BodyTimeout => 408,
            Rejection::BodyTooLarge { .. } => 413,
            Rejection::HeadersTooLarge => 431,
            Rejection::MethodNotAllowed { .. } => 405,
            Rejection::NotAcceptable => 406,
            Rejection::NotFound => 404,
            Rejection::RateLimited { .. } => 429,
            Rejection::UnsupportedMediaType => 415,
            _ => 500,
        };
        drop(self.events.send(Event::Refused { rejection, method: head.http_method, path: head.path }));
        Reply::json(status, Bytes::from_static(b"{\"refused\":true}"))
    }

    async fn document(&self, host: &str, path: &str) -> Result<Bytes, Rejection> {
        let document = json!({ "resource": format!("https://{host}/mcp") });
        if path.ends_with("/mcp") { Ok(document.to_string().into()) } else { Err(Rejection::NotFound) }
    }

    fn register(&self, head: Head, path: &str, body: &[u8]) -> Reply {
        drop(self.events.send(Event::Noted(head.http_method, path.to_owned())));
        Reply::json(201, Bytes::copy_from_slice(body))
    }

    fn admit(&self, _peer: &Peer) -> Result<(), Rejection> {
        if self.limited.load(SeqCst) {
            return Err(Rejection::RateLimited { limit: "address", rate: RATE, retry_after: Duration::from_secs(1) });
        }
        Ok(())
    }
}

/// What arrived, as JSON.
fn echo(request: &Request) -> Reply {
    let seen = json!({
        "id": request.id.to_string(),
        "verb": request.verb.as_str(),
        "host": request.host,
        "path": request.path,
        "headers": request.headers.len(),
        "authorization": request.single_header("authorization").ok().flatten(),
        "body": String::from_utf8_lossy(&request.body[..request.body.len().min(100)]),
        "bytes": request.body.len(),
        "tls": request.peer.tls,
        "address": request.peer.address,
        "subject": request.peer.certificate.as_ref().map(|certificate| &certificate.subject),
    });
    Reply::json(200, seen.to_string().into())
}

struct Desk(AtomicBool);

impl Admin for Desk {
    fn clear_credentials(&self) -> u64 {
        3
    }

    fn live(&self) -> bool {
        true
    }

    fn ready(&self) -> Result<(), String> {
        if self.0.load(SeqCst) { Ok(()) } else { Err("not yet".to_owned()) }
    }

    fn metrics(&self) -> String {
        "wardgate_up 1\n".to_owned()
    }

    fn status(&self) -> Value {
        json!({ "fine": true })
    }
}

/// A running edge.
struct Rig {
    server: Arc<Server>,
    spine: Arc<Scripted>,
    desk: Arc<Desk>,
    events: mpsc::UnboundedReceiver<Event>,
    news: mpsc::UnboundedSender<Bytes>,
    stop: watch::Sender<bool>,
    running: JoinHandle<()>,
    /// Of the first listener.
    address: SocketAddr,
}

fn configuration() -> Config {
    Config {
        listeners: vec![Listener { address: Address::Tcp("127.0.0.1:0".parse().unwrap()), tls: None }],
        admin: Some(Address::Tcp("127.0.0.1:0".parse().unwrap())),
        shutdown_grace: Duration::from_secs(10),
        ..Config::default()
    }
}

impl Rig {
    async fn start() -> Rig {
        Rig::with(|_| {}).await
    }

    async fn with(adjust: impl FnOnce(&mut Config)) -> Rig {
        super::install_crypto();
        let mut config = configuration();
        adjust(&mut config);
        let server = Arc::new(Server::bind(&config).await.unwrap());
        let address = server.addresses()[0].1.parse().unwrap_or_else(|_| "0.0.0.0:0".parse().unwrap());
        let (seen, events) = mpsc::unbounded_channel();
        let (news, receiver) = mpsc::unbounded_channel();
        let spine = Arc::new(Scripted {
            events: seen,
            open: Notify::new(),
            news: Mutex::new(Some(receiver)),
            limited: AtomicBool::new(false),
        });
        let desk = Arc::new(Desk(AtomicBool::new(true)));
        let (stop, stopping) = watch::channel(false);
        let running = tokio::spawn({
            let (server, spine, desk) = (server.clone(), spine.clone(), desk.clone());
            async move { server.run(spine, desk, stopping).await }
        });
        Rig { server, spine, desk, events, news, stop, running, address }
    }

    async fn connect(&self) -> Raw<TcpStream> {
        Raw::new(TcpStream::connect(self.address).await.unwrap())
    }

    /// One request on a connection of its own.
    async fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut raw = self.connect().await;
        raw.send(request).await;
        raw.answer().await
    }

    async fn event(&mut self) -> Event {
        soon(self.events.recv()).await.unwrap()
    }

    /// Nothing has reached the spine's `serve`.
    fn nothing_was_served(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            assert!(!matches!(event, Event::Served(_)), "{event:?}");
        }
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&self.body)))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// HTTP/1.1 by hand, so that the bytes are ours.
struct Raw<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    fn new(stream: S) -> Raw<S> {
        Raw { stream, buffer: Vec::new() }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    async fn more(&mut self) -> usize {
        soon(self.stream.read_buf(&mut self.buffer)).await.unwrap_or(0)
    }

    async fn until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return self.buffer.drain(..at + end.len()).collect();
            }
            assert!(self.more().await > 0, "closed after {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }

    async fn exactly(&mut self, bytes: usize) -> Vec<u8> {
        while self.buffer.len() < bytes {
            assert!(self.more().await > 0, "closed after {:?}", String::from_utf8_lossy(&self.buffer));
        }
        self.buffer.drain(..bytes).collect()
    }

    async fn head(&mut self) -> Answer {
        let text = String::from_utf8(self.until(b"\r\n\r\n").await).unwrap();
        let mut lines = text.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers =
            lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Answer { status, headers: headers.collect(), body: Vec::new() }
    }

    async fn answer(&mut self) -> Answer {
        let mut answer = self.head().await;
        if let Some(length) = answer.header("content-length").map(|length| length.parse().unwrap()) {
            answer.body = self.exactly(length).await;
        }
        answer
    }

    /// The next chunk of a chunked body; empty at its end.
    async fn chunk(&mut self) -> String {
        let size = self.until(b"\r\n").await;
        let size = usize::from_str_radix(std::str::from_utf8(&size).unwrap().trim(), 16).unwrap();
        let chunk = self.exactly(size + 2).await;
        String::from_utf8_lossy(&chunk[..size]).into_owned()
    }

    /// True when the other side has closed without saying more.
    async fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && self.more().await == 0
    }
}

/// A sound POST with this body.
fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A sound head with these header lines (each with its CRLF) added, and a body.
fn crafted(lines: &str, body: &str) -> String {
    format!(
        "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\n{lines}\r\n{body}"
    )
}
