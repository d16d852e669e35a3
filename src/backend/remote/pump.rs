//! One HTTP/1.1 exchange over a pooled connection: head and body leave in one write, the answer is read as it comes.
//!
//! INVARIANT: a connection goes back to the pool only after its answer was read to the end. Everything else, dropped
//! futures and streams included, closes it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use http::HeaderMap;
use pingora::ErrorType;
use pingora::connectors::TransportConnector;
use pingora::protocols::Stream;
use pingora::protocols::http::v1::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use pingora::upstreams::peer::Peer;
use tokio::io::AsyncWriteExt;

use super::Blame;
use crate::backend::Error;
use crate::credentials;
use crate::mcp::sse::Event;
use crate::mcp::sse::Parser;

/// A body up to this size is written together with the head.
const ONE_WRITE_BYTES_MAX: usize = 64 * 1024;

/// More interim answers than this before the real one is no HTTP server.
const INTERIM_ANSWERS_MAX: usize = 10;

pub(super) struct Pump {
    connector: TransportConnector,
    write_timeout: Duration,
    idle_timeout: Duration,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection: nothing was sent, anybody else may be asked.
    Connect(String),
    /// A connection out of the pool was dead. `sent`: the whole request may have arrived.
    Stale { sent: bool, what: String },
    /// The connection broke, or what came is not HTTP.
    Broken(String),
}

impl Pump {
    pub(super) fn new(connector: TransportConnector, write_timeout: Duration, idle_timeout: Duration) -> Pump {
        Pump { connector, write_timeout, idle_timeout }
    }

    /// Sends one request and reads the head of its answer. `fresh`: not over a pooled connection.
    pub(super) async fn exchange(
        self: &Arc<Self>,
        peer: &HttpPeer,
        head: &[u8],
        body: &Bytes,
        fresh: bool,
    ) -> Result<Response, Failure> {
        let (stream, reused) = match fresh {
            true => (self.connector.new_stream(peer).await, false),
            false => match self.connector.get_stream(peer).await {
                Ok((stream, reused)) => (Ok(stream), reused),
                Err(error) => (Err(error), false),
            },
        };
        let mut stream = stream.map_err(|error| Failure::Connect(words(&error)))?;
        if let Err(what) = self.write(&mut stream, head, body).await {
            // An incomplete request was not carried out: its length says so.
            return Err(if reused { Failure::Stale { sent: false, what } } else { Failure::Broken(what) });
        }
        let mut session = HttpSession::new(stream);
        for _ in 0..INTERIM_ANSWERS_MAX {
            if let Err(error) = session.read_response().await {
                let dead = matches!(error.etype(), ErrorType::ConnectionClosed | ErrorType::ReadError);
                let what = words(&error);
                return Err(if reused && dead { Failure::Stale { sent: true, what } } else { Failure::Broken(what) });
            }
            let status = session.get_status().map_or(0, |status| status.as_u16());
            if status >= 200 {
                return Ok(Response { session, status, pump: self.clone(), pool_key: peer.reuse_hash() });
            }
            if status == 101 {
                break;
            }
        }
        Err(Failure::Broken("interim answers instead of an answer".into()))
    }

    async fn write(&self, stream: &mut Stream, head: &[u8], body: &Bytes) -> Result<(), String> {
        let write = async {
            if body.len() <= ONE_WRITE_BYTES_MAX {
                let mut whole = Vec::with_capacity(head.len() + body.len());
                whole.extend_from_slice(head);
                whole.extend_from_slice(body);
                stream.write_all(&whole).await?;
            } else {
                stream.write_all(head).await?;
                stream.write_all(body).await?;
            }
            stream.flush().await
        };
        match pingora::time::timeout(self.write_timeout, write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("the request cannot be written: {error}")),
            Err(_) => Err("the request was not taken in time".into()),
        }
    }
}

/// What an operator needs to know of a failed connection.
fn words(error: &pingora::Error) -> String {
    const WORDS_CHARS_MAX: usize = 300;
    let context = error.context.as_ref().map_or("", |context| context.as_str());
    let text = format!("{} {context}", error.etype().as_str());
    text.trim_end().chars().take(WORDS_CHARS_MAX).collect()
}

/// An answer whose head is here.
pub(super) struct Response {
    session: HttpSession,
    pub(super) status: u16,
    pump: Arc<Pump>,
    pool_key: u64,
}

/// Why a body cannot be had.
pub(super) enum Unread {
    Broken(String),
    Silent,
    TooLarge,
}

impl Response {
    pub(super) fn headers(&self) -> Option<&HeaderMap> {
        self.session.resp_header().map(|head| &head.headers)
    }

    /// The claims that a 401 asks for (Entra's continuous access evaluation), decoded.
    pub(super) fn wanted_claims(&self) -> Option<Arc<str>> {
        let challenge = self.header("www-authenticate").ok().flatten().filter(|_| self.status == 401)?;
        let (_, rest) = challenge.split_once("claims=\"")?;
        let (encoded, _) = rest.split_once('"')?;
        let encoded = encoded.trim_end_matches('=').replace('-', "+").replace('_', "/");
        let text = String::from_utf8(STANDARD_NO_PAD.decode(encoded).ok()?).ok()?;
        credentials::claims(&text)
    }

    /// The value of a header that is there exactly once, as visible ASCII.
    pub(super) fn header(&self, name: &str) -> Result<Option<&str>, ()> {
        let Some(headers) = self.headers() else {
            return Ok(None);
        };
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => value.to_str().map(|value| Some(value.trim())).map_err(drop),
            (Some(_), Some(_)) => Err(()),
        }
    }

    /// Reads the body to its end; then the connection is free for others.
    pub(super) async fn read_all(mut self, bytes_max: usize, read_timeout: Option<Duration>) -> Result<Bytes, Unread> {
        self.session.read_timeout = read_timeout;
        let announced = self.header("content-length").ok().flatten().and_then(|length| length.parse::<usize>().ok());
        if announced.is_some_and(|length| length > bytes_max) {
            return Err(Unread::TooLarge);
        }
        let mut body = Vec::with_capacity(announced.unwrap_or(0));
        loop {
            match self.session.read_body_ref().await {
                Ok(Some(chunk)) if body.len() + chunk.len() > bytes_max => return Err(Unread::TooLarge),
                Ok(Some(chunk)) => body.extend_from_slice(chunk),
                Ok(None) => break,
                Err(error) if *error.etype() == ErrorType::ReadTimedout => return Err(Unread::Silent),
                Err(error) => return Err(Unread::Broken(words(&error))),
            }
        }
        self.release().await;
        Ok(body.into())
    }

    /// Nobody wants the body. A short one is read so that the connection can be used again.
    pub(super) async fn discard(self) {
        const DISCARD_BYTES_MAX: usize = 64 * 1024;
        const DISCARD_TIMEOUT: Duration = Duration::from_millis(200);
        let framed = self.headers().is_some_and(|headers| {
            headers.contains_key(http::header::CONTENT_LENGTH) || headers.contains_key(http::header::TRANSFER_ENCODING)
        });
        if framed || self.status == 204 {
            drop(pingora::time::timeout(DISCARD_TIMEOUT, self.read_all(DISCARD_BYTES_MAX, None)).await);
        }
    }

    async fn release(mut self) {
        self.session.respect_keepalive();
        if let Some(stream) = self.session.reuse().await {
            self.pump.connector.release_stream(stream, self.pool_key, Some(self.pump.idle_timeout));
        }
    }

    /// The body as events, each given out when its last byte is here. `lease` is dropped with the stream.
    pub(super) fn events<L: Send + 'static>(
        mut self,
        event_bytes_max: usize,
        read_timeout: Option<Duration>,
        blame: Blame,
        lease: L,
    ) -> BoxStream<'static, Result<Event, Error>> {
        self.session.read_timeout = read_timeout;
        let parser = Parser::new(event_bytes_max);
        let reading =
            Reading { response: Some(self), parser, ready: VecDeque::new(), failed: None, blame, _lease: lease };
        futures_util::stream::unfold(reading, |mut reading| async move {
            reading.next().await.map(|event| (event, reading))
        })
        .boxed()
    }
}

struct Reading<L> {
    /// `None` once the stream has ended, well or badly.
    response: Option<Response>,
    parser: Parser,
    ready: VecDeque<Event>,
    /// How it ended badly; told after the events that were whole by then.
    failed: Option<Error>,
    blame: Blame,
    _lease: L,
}

impl<L> Reading<L> {
    async fn next(&mut self) -> Option<Result<Event, Error>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if let Some(failed) = self.failed.take() {
                return Some(Err(failed));
            }
            let failed = match self.response.as_mut()?.session.read_body_ref().await {
                Ok(Some(chunk)) => match self.parser.feed(chunk, &mut self.ready) {
                    Ok(()) => continue,
                    Err(too_large) => self.blame.too_large(too_large.event_bytes_max),
                },
                Ok(None) => {
                    self.response.take()?.release().await;
                    return None;
                }
                Err(error) if *error.etype() == ErrorType::ReadTimedout => self.blame.timeout(),
                Err(error) => self.blame.unavailable(format!("the stream broke: {}", words(&error))),
            };
            self.response = None;
            self.failed = Some(failed);
        }
    }
}
