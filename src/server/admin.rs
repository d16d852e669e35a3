//! The admin listener: `/livez`, `/readyz`, `/metrics`, `/status`, `POST /credentials/clear`, on an address of its own.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::header;
use pingora::apps::HttpPersistentSettings;
use pingora::apps::HttpServerApp;
use pingora::apps::HttpServerOptions;
use pingora::apps::ReusedHttpStream;
use pingora::apps::ServerApp;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream;
use pingora::server::ShutdownWatch;
use pingora::time::timeout;
use tokio::sync::watch;

use super::admit::Host;
use super::admit::Reach;
use super::drain::Crowd;
use super::drain::raised;
use super::listener::Door;
use super::wire::Gauge;
use super::wire::Transport;
use super::wire::Wire;

/// A probe or two and a scraper; more is a mistake somewhere.
const CONNECTIONS_MAX: usize = 256;
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEAD: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(120);
const WRITE: Duration = Duration::from_secs(10);

/// What the admin listener shows.
pub trait Admin: Send + Sync + 'static {
    /// Is the process worth keeping?
    fn live(&self) -> bool;
    /// Should it get traffic?
    ///
    /// # Errors
    /// Why not, in words for an operator.
    fn ready(&self) -> Result<(), String>;
    /// Prometheus text exposition.
    fn metrics(&self) -> String;
    fn status(&self) -> serde_json::Value;
    /// Forgets every token got for callers. Gives roughly how many there were.
    fn clear_credentials(&self) -> u64;
}

/// Accepts until cut. It stays up while the MCP listeners drain: that is when `/readyz` matters.
pub(super) async fn welcome(door: Door, admin: Arc<dyn Admin>, cut: watch::Receiver<bool>) {
    let crowd = Arc::<Crowd>::default();
    let reach = door.post().reach();
    loop {
        let accepted = tokio::select! {
            biased;
            () = raised(&cut) => return,
            accepted = door.accept() => accepted,
        };
        let Some((stream, _)) = accepted else { continue };
        let Some(presence) = crowd.enter(CONNECTIONS_MAX) else { continue };
        let (admin, cut) = (admin.clone(), cut.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = raised(&cut) => {}
                () = converse(admin, stream, reach, &cut) => {}
            }
            drop(presence);
        });
    }
}

async fn converse(admin: Arc<dyn Admin>, stream: Stream, reach: Reach, drain: &ShutdownWatch) {
    let gauge = Gauge::new();
    let wire = Wire::new(Transport::Plain(Box::new(stream)), gauge.clone(), HEAD, WRITE);
    let desk = Arc::new(Desk { admin, gauge, reach, options: HttpServerOptions::default() });
    desk.process_new(Box::new(wire), drain).await;
}

struct Desk {
    admin: Arc<dyn Admin>,
    gauge: Arc<Gauge>,
    reach: Reach,
    options: HttpServerOptions,
}

impl Desk {
    fn answer(&self, session: &ServerSession) -> (u16, &'static str, Bytes) {
        const TEXT: &str = "text/plain; charset=utf-8";
        let request = session.req_header();
        // A web page that rebinds its name to this machine reads nothing here.
        let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok()).and_then(Host::parse);
        if self.reach == Reach::Loopback && !host.is_some_and(|host| host.is_local()) {
            return (421, TEXT, Bytes::from_static(b"use localhost\n"));
        }
        if request.method == Method::POST && request.raw_path() == b"/credentials/clear" {
            // A web page may send this, but not without saying that it is one.
            let page = ["origin", "sec-fetch-site"].iter().any(|name| request.headers.contains_key(*name));
            return match page {
                true => (403, TEXT, Bytes::from_static(b"not from a web page\n")),
                false => (200, TEXT, format!("{} forgotten\n", self.admin.clear_credentials()).into()),
            };
        }
        if !matches!(request.method, Method::GET | Method::HEAD) {
            return (405, TEXT, Bytes::from_static(b"GET or HEAD\n"));
        }
        match request.raw_path() {
            b"/livez" if self.admin.live() => (200, TEXT, Bytes::from_static(b"ok\n")),
            b"/livez" => (503, TEXT, Bytes::from_static(b"not alive\n")),
            b"/readyz" => match self.admin.ready() {
                Ok(()) => (200, TEXT, Bytes::from_static(b"ok\n")),
                Err(reason) => (503, TEXT, format!("{reason}\n").into()),
            },
            b"/metrics" => (200, "text/plain; version=0.0.4", self.admin.metrics().into()),
            b"/status" => (200, "application/json", format!("{:#}\n", self.admin.status()).into()),
            _ => (404, TEXT, Bytes::from_static(b"/livez /readyz /metrics /status, POST /credentials/clear\n")),
        }
    }
}

#[async_trait]
impl HttpServerApp for Desk {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        _drain: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        session.set_keepalive(Some(0));
        self.gauge.expect_head(HEAD_BYTES_MAX);
        let read = timeout(IDLE, session.read_request()).await;
        self.gauge.head_is_read();
        if !matches!(read, Ok(Ok(true))) {
            return None;
        }
        let (status, media, body) = self.answer(&session);
        let mut head = ResponseHeader::build_no_case(status, Some(6)).ok()?;
        head.insert_header(header::CONTENT_TYPE, HeaderValue::from_static(media)).ok()?;
        head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(body.len())).ok()?;
        head.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("no-store")).ok()?;
        head.insert_header(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")).ok()?;
        let with_body = session.req_header().method != Method::HEAD;
        session.write_response_header(Box::new(head)).await.ok()?;
        if with_body {
            session.write_response_body(body, true).await.ok()?;
        }
        let settings = HttpPersistentSettings::for_session(&session);
        let stream = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(stream, settings))
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}
