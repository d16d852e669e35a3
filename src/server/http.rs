//! pingora's HTTP session ⇄ `Request` and `Reply`: one exchange from head to last byte, over HTTP/1.1 and h2.
//!
//! The hygiene that a server built on bare sessions owes, each with a wire test in `tests.rs`:
//!
//! * every phase has a deadline: head, body, silence between requests, writes, the wait for the spine;
//! * every size has a cap: head, body, bodies of all connections together, connections, h2 streams;
//! * framing that two parsers could read differently is refused and ends the connection: CL beside TE, repeated CL, TE
//!   or Host, a TE other than `chunked`, bare LF, folded lines, control characters, HTTP/1.0;
//! * CONNECT, TRACE and unknown methods are refused; no Upgrade is ever made; an `Expect` other than 100-continue is
//!   refused, and 100-continue is answered before the body is read;
//! * paths are plain or refused; Host and Origin are checked before anything is read of the body;
//! * media types are exact, encodings refused, bodies of GET and DELETE refused;
//! * what a client sends beyond its request is never taken for the next one;
//! * a refusal reaches a client that is still sending: what it sends is read and dropped for a moment;
//! * a client that leaves cancels its call: the spine's future or stream is dropped at once;
//! * hop-by-hop, framing and CORS headers of a reply are ours alone;
//! * at shutdown nothing new begins, calls finish, streams end cleanly, answers say `Connection: close`.

mod body;

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use pingora::ErrorType;
use pingora::apps::HttpPersistentSettings;
use pingora::apps::HttpServerApp;
use pingora::apps::HttpServerOptions;
use pingora::apps::ReusedHttpStream;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::server::ShutdownWatch;
use pingora::time::timeout;
use ring::rand::SecureRandom;
use ring::rand::SystemRandom;

use crate::exchange::Peer;
use crate::exchange::Reply;
use crate::exchange::Request;
use crate::exchange::RequestId;
use crate::exchange::Verb;
use crate::gateway::Head;
use crate::gateway::Rejection;

use super::admit;
use super::admit::Admitted;
use super::admit::Call;
use super::admit::Gate;
use super::admit::Reach;
use super::admit::Sight;
use super::drain::Presence;
use super::drain::Share;
use super::drain::raised;
use super::listener::Edge;
use super::reply;
use super::reply::Outgoing;
use super::reply::Readers;
use super::wellknown;
use super::wire::Gauge;

/// How long an idle connection is kept at shutdown for a request that may be on its way.
const DRAIN_LINGER: Duration = Duration::from_secs(1);

/// Closing now and then frees memory and lets a balancer spread the load.
const REQUESTS_PER_CONNECTION_MAX: u32 = 10_000;

const H2_STREAMS_MAX: u32 = 128;
/// A body of the usual size comes in without waiting for a window update.
const H2_STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Resets a client may provoke or leave behind before the connection is closed (rapid reset, MadeYouReset).
const H2_RESETS_MAX: usize = 50;

/// One downstream connection.
pub(super) struct Connection {
    edge: Arc<Edge>,
    peer: Arc<Peer>,
    reach: Reach,
    gauge: Arc<Gauge>,
    options: HttpServerOptions,
    h2_header_bytes_max: u32,
    first_head_by: Instant,
    first_head_read: AtomicBool,
}

/// What the wait for a head came to.
enum Waited {
    Head,
    Closed,
    Refused(Rejection),
}

/// Why an exchange has no answer.
enum Halt {
    Refused(Rejection),
    /// The client is gone; there is nobody to answer.
    Left,
}

impl From<Rejection> for Halt {
    fn from(rejection: Rejection) -> Halt {
        Halt::Refused(rejection)
    }
}

/// When and under which name an exchange began.
struct Birth {
    id: RequestId,
    at: SystemTime,
    started: Instant,
}

impl Birth {
    fn now() -> Option<Birth> {
        let process = (*PROCESS)?;
        let count = COUNT.fetch_add(1, Relaxed);
        let id = RequestId(u128::from(process) << 64 | u128::from(count));
        Some(Birth { id, at: SystemTime::now(), started: Instant::now() })
    }
}

/// Half of a request's name: 64 random bits of this process. The other half counts; a name must be unique, not secret,
/// and a system call for each request is too much for that.
static PROCESS: LazyLock<Option<u64>> = LazyLock::new(|| {
    let mut bits = [0; 8];
    SystemRandom::new().fill(&mut bits).ok().map(|()| u64::from_ne_bytes(bits))
});
static COUNT: AtomicU64 = AtomicU64::new(0);

impl Connection {
    pub(super) fn new(edge: Arc<Edge>, gate: &Gate, peer: Arc<Peer>, reach: Reach, gauge: Arc<Gauge>) -> Connection {
        let mut options = HttpServerOptions::default();
        options.h2c = true; // with prior knowledge, on plain listeners only
        options.h2_idle_timeout = Some(gate.admission.idle_timeout);
        options.keepalive_request_limit = Some(REQUESTS_PER_CONNECTION_MAX);
        Connection {
            edge,
            peer,
            reach,
            gauge,
            options,
            h2_header_bytes_max: gate.admission.header_bytes_max.try_into().unwrap_or(u32::MAX),
            first_head_by: Instant::now() + gate.admission.head_timeout,
            first_head_read: AtomicBool::new(false),
        }
    }

    /// Waits for the next head, within its deadline, and at shutdown only a moment longer.
    async fn next_head(&self, session: &mut ServerSession, gate: &Gate, drain: &ShutdownWatch) -> Waited {
        if session.is_http2() {
            return Waited::Head;
        }
        let limit = if self.first_head_read.swap(true, Relaxed) {
            gate.admission.idle_timeout + gate.admission.head_timeout
        } else {
            self.first_head_by.saturating_duration_since(Instant::now())
        };
        session.set_keepalive(Some(0)); // pingora's own timer is per read; the deadline here is for the whole head
        self.gauge.expect_head(gate.admission.header_bytes_max);
        let outcome = {
            let read = timeout(limit, session.read_request());
            tokio::pin!(read);
            tokio::select! {
                biased;
                outcome = &mut read => outcome,
                () = raised(drain) => timeout(DRAIN_LINGER, read).await.and_then(|inner| inner),
            }
        };
        let too_large = self.gauge.head_is_too_large();
        self.gauge.head_is_read();
        match outcome {
            Ok(Ok(true)) => Waited::Head,
            Ok(Ok(false)) => Waited::Closed,
            Ok(Err(_)) if too_large => Waited::Refused(Rejection::HeadersTooLarge),
            Ok(Err(error)) if matches!(error.etype(), ErrorType::ConnectionClosed | ErrorType::ReadError) => {
                Waited::Closed
            }
            Ok(Err(error)) => {
                tracing::debug!(
                    listener = &*self.peer.listener,
                    "a head that cannot be parsed: {}",
                    error.etype().as_str()
                );
                Waited::Refused(Rejection::BadRequest { what: "malformed head" })
            }
            Err(_elapsed) if self.gauge.head_has_begun() => {
                Waited::Refused(Rejection::BadRequest { what: "the head did not arrive in time" })
            }
            Err(_elapsed) => Waited::Closed,
        }
    }

    /// A head that could not be read: nothing is known of the request, and nothing more will be read.
    async fn turn_away(&self, mut session: ServerSession, gate: &Gate, drain: &ShutdownWatch, rejection: Rejection) {
        let Some(birth) = Birth::now() else { return };
        let head = self.head(&birth, String::new(), String::new(), 0);
        let outgoing = Outgoing::new(birth.id, self.edge.spine.refuse(head, rejection));
        self.gauge.linger();
        session.set_keepalive(None);
        if reply::send(&mut session, outgoing, gate, drain).await.is_ok() {
            drop(session.finish().await);
        }
    }

    fn head(&self, birth: &Birth, http_method: String, path: String, bytes_in: u64) -> Head {
        Head {
            id: birth.id,
            http_method,
            path,
            peer: self.peer.clone(),
            at: birth.at,
            started: birth.started,
            bytes_in,
        }
    }

    /// From a head to the end of its reply; gives the connection back if it can carry another request.
    async fn exchange(
        &self,
        mut session: ServerSession,
        gate: Arc<Gate>,
        drain: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let _presence: Option<Presence> = session.is_http2().then(|| self.edge.crowd.stream());
        let birth = Birth::now()?;
        let mut readers = Readers::Same;
        let outgoing = match self.answer(&mut session, &gate, &birth, &mut readers).await {
            Ok(outgoing) => outgoing,
            Err(halt) => {
                let rejection = match halt {
                    Halt::Refused(rejection) => rejection,
                    Halt::Left => return None,
                };
                self.refuse(&mut session, &birth, rejection)
            }
        };
        let outgoing = outgoing.readable_by(readers);
        if *drain.borrow() {
            session.set_keepalive(None);
        }
        if let Err(broken) = reply::send(&mut session, outgoing, &gate, drain).await {
            tracing::debug!(request = %birth.id, "the reply did not arrive: {broken}");
            return None;
        }
        if *drain.borrow() {
            session.set_keepalive(None);
        }
        let settings = HttpPersistentSettings::for_session(&session);
        let stream = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(stream, settings))
    }

    /// The reply of a request that did not get in, and what becomes of its connection.
    fn refuse(&self, session: &mut ServerSession, birth: &Birth, rejection: Rejection) -> Outgoing {
        let ends_connection = matches!(
            rejection,
            Rejection::BadPath // pingora repairs a request line with spaces into an escaped path
                | Rejection::BadRequest { .. }
                | Rejection::BodyTimeout
                | Rejection::BodyTooLarge { .. }
                | Rejection::HeadersTooLarge
                | Rejection::MethodNotAllowed { .. }
        );
        if ends_connection {
            session.set_keepalive(None);
        }
        // With framing in doubt, what "the body" is would be a guess.
        if !session.is_http2() && (ends_connection || !session.is_body_done()) {
            self.gauge.linger();
        }
        Outgoing::new(birth.id, self.edge.spine.refuse(self.head_of(session, birth), rejection))
    }

    /// What the record says of a request that the edge answers by itself.
    fn head_of(&self, session: &ServerSession, birth: &Birth) -> Head {
        let request = session.req_header();
        let method = clipped(request.method.as_str().as_bytes(), 16);
        // Without the query: people put tokens there.
        let path = request.raw_path().split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default();
        self.head(birth, method, clipped(path, 256), session.body_bytes_read() as u64)
    }

    /// Admission, body, spine.
    async fn answer(
        &self,
        session: &mut ServerSession,
        gate: &Gate,
        birth: &Birth,
        readers: &mut Readers,
    ) -> Result<Outgoing, Halt> {
        self.edge.spine.admit(&self.peer)?;
        let (call, registers) = match self.admission(session, gate, readers)? {
            Admitted::Call(call) => (call, false),
            Admitted::Registration(call) => {
                *readers = Readers::Any;
                (call, true)
            }
            Admitted::Document { host, path } => {
                *readers = Readers::Any;
                let document = self.edge.spine.document(&host, &path).await?;
                let reply = self.edge.spine.note(self.head_of(session, birth), wellknown::reply(document));
                return Ok(Outgoing::new(birth.id, reply));
            }
            Admitted::Preflight { any_origin } => {
                if any_origin {
                    *readers = Readers::Any;
                }
                return Ok(self.preflight(session, birth));
            }
        };
        let (body, share) = match body::read(session, gate, &call, Share::none(&self.edge.crowd)).await {
            Ok(body) => body,
            Err(Halt::Refused(rejection)) => return Err(Halt::Refused(rejection)),
            Err(Halt::Left) => {
                // There is a record of it all the same; the reply has nobody to go to.
                drop(self.refuse(
                    session,
                    birth,
                    Rejection::BadRequest { what: "the client left before the body was complete" },
                ));
                return Err(Halt::Left);
            }
        };
        if registers {
            let reply = self.edge.spine.register(self.head_of(session, birth), &call.path, &body);
            return Ok(Outgoing::new(birth.id, reply));
        }
        let Call { verb, host, path, .. } = call;
        let headers = take_headers(session).ok_or(Rejection::Internal)?;
        let open_ended =
            verb == Verb::Get || headers.get("mcp-method").is_some_and(|method| method == "subscriptions/listen");
        let request = Request {
            id: birth.id,
            verb,
            host,
            path,
            headers,
            body,
            peer: self.peer.clone(),
            at: birth.at,
            started: birth.started,
            deadline: birth.started + gate.admission.request_timeout,
        };
        let reply = self.serve(session, request).await?;
        drop(share);
        let outgoing = Outgoing::new(birth.id, reply);
        Ok(if open_ended { outgoing.open_ended() } else { outgoing })
    }

    fn preflight(&self, session: &ServerSession, birth: &Birth) -> Outgoing {
        let reply = self.edge.spine.note(self.head_of(session, birth), Reply::empty(204));
        if reply.status == 204 { Outgoing::preflight(birth.id, reply) } else { Outgoing::new(birth.id, reply) }
    }

    fn admission(&self, session: &ServerSession, gate: &Gate, readers: &mut Readers) -> Result<Admitted, Rejection> {
        let request = session.req_header();
        let raw; // outlives the target that points into it
        let (target, authority) = match session {
            ServerSession::H1(h1) => {
                raw = h1.get_headers_raw_bytes();
                (admit::framing(&raw, gate.admission.header_bytes_max)?, None)
            }
            _ => (request.raw_path(), request.uri.authority().map(|authority| authority.as_str())),
        };
        let sight = Sight { method: &request.method, target, authority, headers: &request.headers, reach: self.reach };
        let (origin, admitted) = admit::examine(gate, &sight);
        if let Some(origin) = origin {
            *readers = Readers::Origin(origin);
        }
        admitted
    }

    /// The spine's reply, unless the client leaves first: then the spine's future is dropped.
    async fn serve(&self, session: &mut ServerSession, request: Request) -> Result<Reply, Halt> {
        let mut serve = self.edge.spine.serve(request);
        tokio::select! {
            biased;
            reply = &mut serve => return Ok(reply),
            gone = session.read_body_or_idle(true) => {
                if is_gone(&gone) {
                    return Err(Halt::Left);
                }
            }
        }
        // It has sent more already, which nobody will read; whether it stays cannot be seen behind that.
        session.set_keepalive(None);
        self.gauge.linger();
        Ok(serve.await)
    }
}

/// Did the client leave, or did it send bytes after the end of its request?
pub(super) fn is_gone(outcome: &pingora::Result<Option<Bytes>>) -> bool {
    // pingora's word for "sent data after end of body".
    !matches!(outcome, Err(error) if *error.etype() == ErrorType::ConnectError)
}

/// Moves the headers out of a session whose body has been read; what pingora still asks of the head stays true.
fn take_headers(session: &mut ServerSession) -> Option<HeaderMap> {
    let head = session.req_header_mut();
    let mut empty = RequestHeader::build_no_case(Method::POST, b"/", Some(0)).ok()?;
    empty.set_version(head.version);
    let parts: http::request::Parts = std::mem::replace(head, empty).into();
    Some(parts.headers)
}

fn clipped(bytes: &[u8], bytes_max: usize) -> String {
    String::from_utf8_lossy(bytes.get(..bytes_max).unwrap_or(bytes)).into_owned()
}

#[async_trait]
impl HttpServerApp for Connection {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        drain: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        // While a connection waits it should cost little: the large futures are boxed when there is something to do.
        let waited = {
            let gate = self.edge.gate.load_full();
            self.next_head(&mut session, &gate, drain).await
        };
        let gate = self.edge.gate.load_full();
        match waited {
            Waited::Head => Box::pin(self.exchange(session, gate, drain)).await,
            Waited::Closed => {
                session.shutdown().await;
                None
            }
            Waited::Refused(rejection) => {
                Box::pin(self.turn_away(session, &gate, drain, rejection)).await;
                None
            }
        }
    }

    fn h2_options(&self) -> Option<H2Options> {
        let mut options = H2Options::default();
        options
            .initial_window_size(H2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
            .max_header_list_size(self.h2_header_bytes_max)
            .max_concurrent_streams(H2_STREAMS_MAX)
            .max_concurrent_reset_streams(H2_RESETS_MAX)
            .max_pending_accept_reset_streams(H2_RESETS_MAX)
            .max_local_error_reset_streams(Some(H2_RESETS_MAX));
        Some(options)
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}

/// The value of `X-Request-Id`.
pub(super) fn id_value(id: RequestId) -> Option<HeaderValue> {
    HeaderValue::try_from(id.to_string()).ok()
}
