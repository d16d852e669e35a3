//! Writes a `Reply`: headers that are ours, a whole body in one write, or events until one side has had enough.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::StreamExt;
use http::HeaderName;
use http::HeaderValue;
use http::header;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use tokio::time::Instant;

use crate::exchange::Body;
use crate::exchange::Owes;
use crate::exchange::Reply;
use crate::exchange::RequestId;

use super::admit::Gate;
use super::drain::raised;
use super::http::id_value;
use super::http::is_gone;

/// A stream that waits for news ends this long after shutdown began: what is on its way gets out.
const LAST_NEWS: Duration = Duration::from_millis(100);

/// A stream that carries a call's answer ends this long before the shutdown grace does, so that it ends cleanly.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Each piece has the write timeout for itself: a slow client may take long, a stuck one may not.
const PIECE_BYTES: usize = 64 * 1024;

/// A comment (HTML standard section 9.2.6), ignored by clients, seen by whatever counts silence in between.
const KEEPALIVE: Bytes = Bytes::from_static(crate::mcp::sse::KEEPALIVE);

const HEADERS_ALLOWED: HeaderValue = HeaderValue::from_static(
    "authorization, dpop, content-type, accept, mcp-protocol-version, mcp-session-id, mcp-method, mcp-name, last-event-id",
);
const HEADERS_EXPOSED: HeaderValue =
    HeaderValue::from_static("Mcp-Session-Id, WWW-Authenticate, Retry-After, X-Request-Id");

/// Which web pages may read the reply.
pub(super) enum Readers {
    /// None but those of our own origin.
    Same,
    Origin(HeaderValue),
    Any,
}

/// A reply and what the edge adds to it.
pub(super) struct Outgoing {
    id: RequestId,
    reply: Reply,
    readers: Readers,
    kind: Kind,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Answer,
    /// Its events wait for news and answer no call.
    OpenEnded,
    Preflight,
}

impl Outgoing {
    pub(super) fn new(id: RequestId, reply: Reply) -> Outgoing {
        Outgoing { id, reply, readers: Readers::Same, kind: Kind::Answer }
    }

    pub(super) fn readable_by(self, readers: Readers) -> Outgoing {
        Outgoing { readers, ..self }
    }

    /// The answer to a preflight of an origin that is allowed.
    pub(super) fn preflight(id: RequestId, reply: Reply) -> Outgoing {
        Outgoing { kind: Kind::Preflight, ..Outgoing::new(id, reply) }
    }

    /// Its events wait for news and answer no call.
    pub(super) fn open_ended(self) -> Outgoing {
        Outgoing { kind: Kind::OpenEnded, ..self }
    }
}

/// Why a reply was not written to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the client left")]
    Left,
    #[error("{}", .0.etype().as_str())]
    Write(#[from] Box<pingora::Error>),
}

/// Writes the reply. After an error the session is good for nothing.
pub(super) async fn send(
    session: &mut ServerSession,
    outgoing: Outgoing,
    gate: &Gate,
    drain: &ShutdownWatch,
) -> Result<(), Broken> {
    if session.is_http2() {
        // Under HTTP/1.1 the wire watches; an h2 stream can be stuck on its window while the connection is not.
        session.set_write_timeout(Some(gate.admission.write_timeout));
    }
    let Outgoing { id, reply: Reply { status, headers, body, owes }, readers, kind } = outgoing;
    let mut head = ResponseHeader::build_no_case(status, Some(headers.len() + 8))?;
    for (name, value) in headers {
        if !is_ours(&name) {
            head.append_header(name, value)?;
        }
    }
    readers_headers(&mut head, readers)?;
    if kind == Kind::Preflight {
        head.insert_header(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST, GET, DELETE"))?;
        head.insert_header(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS_ALLOWED)?;
        head.insert_header(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"))?;
    }
    if let Some(id) = id_value(id) {
        head.insert_header("x-request-id", id)?;
    }
    head.insert_header(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))?;
    if !head.headers.contains_key(header::CACHE_CONTROL) {
        head.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"))?;
    }
    match body {
        Body::Empty => {
            if !matches!(status, 204 | 304) {
                head.insert_header(header::CONTENT_LENGTH, HeaderValue::from_static("0"))?;
            }
            if let ServerSession::H2(h2) = session {
                h2.write_response_header(Box::new(head), true)?
            } else {
                session.write_response_header(Box::new(head)).await?
            }
            Ok(())
        }
        Body::Full(bytes) => {
            head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()))?;
            session.write_response_header(Box::new(head)).await?;
            whole(session, bytes).await
        }
        Body::Events(stream) => {
            head.insert_header(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"))?;
            head.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store, no-transform"))?;
            head.insert_header("x-accel-buffering", HeaderValue::from_static("no"))?;
            if !session.is_http2() {
                head.insert_header(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
            }
            session.write_response_header(Box::new(head)).await?;
            let answers = gate.grace.saturating_sub(LAST_ANSWERS).max(LAST_NEWS);
            let grace = Grace { news: if kind == Kind::OpenEnded { LAST_NEWS } else { answers }, answers, owes };
            events(session, stream, gate.admission.keepalive_interval, grace, drain).await
        }
    }
}

/// Headers that only the edge may set: framing, hop-by-hop, CORS, and what it says about the exchange.
fn is_ours(name: &HeaderName) -> bool {
    const OURS: [HeaderName; 9] = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::DATE,
        header::PROXY_AUTHENTICATE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::X_CONTENT_TYPE_OPTIONS,
    ];
    OURS.contains(name)
        || matches!(name.as_str(), "keep-alive" | "x-request-id")
        || name.as_str().starts_with("access-control-")
}

fn readers_headers(head: &mut ResponseHeader, readers: Readers) -> pingora::Result<()> {
    let origin = match readers {
        Readers::Same => return Ok(()),
        Readers::Origin(origin) => {
            head.append_header(header::VARY, HeaderValue::from_static("Origin"))?;
            origin
        }
        Readers::Any => HeaderValue::from_static("*"),
    };
    head.insert_header(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin)?;
    head.insert_header(header::ACCESS_CONTROL_EXPOSE_HEADERS, HEADERS_EXPOSED)
}

/// How long a stream may go on once we shut down.
struct Grace {
    /// With nothing but news to come.
    news: Duration,
    /// As long as an answer is to come on it.
    answers: Duration,
    owes: Option<Owes>,
}

impl Grace {
    async fn over(self) {
        let end = Instant::now() + self.answers;
        tokio::time::sleep(self.news).await;
        while self.owes.as_ref().is_some_and(|owes| owes()) && Instant::now() < end {
            tokio::time::sleep(LAST_NEWS).await;
        }
    }
}

async fn whole(session: &mut ServerSession, mut bytes: Bytes) -> Result<(), Broken> {
    loop {
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
        session.write_response_body(piece, bytes.is_empty()).await?;
        if bytes.is_empty() {
            return Ok(());
        }
    }
}

/// Events as they come, a comment when none comes for long, until the stream ends, the client leaves or we shut down.
async fn events(
    session: &mut ServerSession,
    mut stream: Pin<Box<dyn Stream<Item = Bytes> + Send>>,
    interval: Duration,
    grace: Grace,
    drain: &ShutdownWatch,
) -> Result<(), Broken> {
    let quiet = tokio::time::sleep(interval);
    tokio::pin!(quiet);
    let stop = async {
        raised(drain).await;
        grace.over().await;
    };
    tokio::pin!(stop);
    let mut watching = true;
    loop {
        let chunk = tokio::select! {
            biased;
            chunk = stream.next() => match chunk {
                Some(chunk) => chunk,
                None => break,
            },
            gone = session.read_body_or_idle(true), if watching => {
                if is_gone(&gone) {
                    return Err(Broken::Left);
                }
                session.set_keepalive(None);
                watching = false;
                continue;
            }
            () = &mut quiet => KEEPALIVE,
            () = &mut stop => break,
        };
        session.write_response_body(chunk, false).await?;
        quiet.as_mut().reset(Instant::now() + interval);
    }
    // The end is written by `finish`.
    Ok(())
}
