//! `Request` and `Reply`: one HTTP exchange as the rooms see it, free of any server library.

use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::Stream;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;

/// The HTTP methods an MCP endpoint knows (streamable HTTP; GET and DELETE are legacy era only).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verb {
    Delete,
    Get,
    Post,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Delete => "DELETE",
            Verb::Get => "GET",
            Verb::Post => "POST",
        }
    }
}

/// An admitted request: sizes, method, media type, Host and Origin are already checked, the body is whole.
#[derive(Debug)]
pub struct Request {
    /// Names this exchange in the audit log, the log lines and the `X-Request-Id` reply header.
    pub id: RequestId,
    pub verb: Verb,
    /// The authority the client used, lower case, port included when it was sent.
    pub host: String,
    /// The path as it is routed: no query, no dot segments, no percent-encoding, no empty segments.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub peer: Arc<Peer>,
    /// Wall clock at admission: token lifetimes, audit time stamps.
    pub at: SystemTime,
    /// Monotonic clock at admission: durations.
    pub started: Instant,
    /// The absolute end of this exchange's work (streams excepted once they flow).
    pub deadline: Instant,
}

impl Request {
    /// The value of a header if it is present exactly once and is visible ASCII.
    ///
    /// # Errors
    /// `Err(())` if it is there more than once or is not visible ASCII: callers refuse the request.
    #[expect(clippy::result_unit_err, reason = "the only fact is that the header is unusable")]
    pub fn single_header(&self, name: &str) -> Result<Option<&str>, ()> {
        let mut values = self.headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => value.to_str().map(Some).map_err(|_| ()),
            (Some(_), Some(_)) => Err(()),
        }
    }
}

/// Names one exchange: 64 random bits of the process and a count, written as 32 hex digits. Unique, not secret.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct RequestId(pub u128);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The downstream connection a request came on; shared by all requests of that connection.
#[derive(Debug, Default)]
pub struct Peer {
    /// `None` on a Unix socket.
    pub address: Option<IpAddr>,
    /// The listener's address as configured, for logs and metrics.
    pub listener: Arc<str>,
    pub tls: bool,
    /// Present only when the chain was verified against the listener's client CA for this very connection.
    pub certificate: Option<ClientCertificate>,
}

/// What a verified client certificate says (RFC 5280; SPIFFE X.509-SVID).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClientCertificate {
    /// RFC 4514 string of the subject.
    pub subject: String,
    /// RFC 4514 string of the issuer.
    pub issuer: String,
    pub dns_names: Vec<String>,
    pub emails: Vec<String>,
    pub uris: Vec<String>,
    /// The one `spiffe://` URI, if there is exactly one.
    pub spiffe_id: Option<String>,
    /// SHA-256 of the leaf in DER, lower-case hex.
    pub fingerprint: String,
    /// Seconds since the epoch.
    pub not_after: i64,
}

/// What goes back to the client.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Body,
    /// For an event stream that waits for news: does an answer belong to it that is still to come? At shutdown it is then
    /// given the time that answers get.
    pub owes: Option<Owes>,
}

pub type Owes = Arc<dyn Fn() -> bool + Send + Sync>;

pub enum Body {
    Empty,
    Full(Bytes),
    /// Encoded server-sent events. Dropping the stream means the client is gone; its end ends the response.
    Events(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

impl Reply {
    pub fn empty(status: u16) -> Self {
        Reply { status, headers: Vec::new(), body: Body::Empty, owes: None }
    }

    pub fn json(status: u16, body: Bytes) -> Self {
        let kind = HeaderValue::from_static("application/json");
        let headers = vec![(http::header::CONTENT_TYPE, kind)];
        Reply { status, headers, body: Body::Full(body), owes: None }
    }

    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
}
