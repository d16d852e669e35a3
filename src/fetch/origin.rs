//! `Origin`: one HTTP server that the operator named, with a pool of kept-alive connections and bounds on everything.
//!
//! Nobody but the configuration says where it is: requests have a path made of encoded segments, never a URL. Redirects are
//! not followed, proxies of the environment are not used, metadata services of clouds are out of reach.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::header::ACCEPT;
use http::header::CONTENT_TYPE;
use http::header::RETRY_AFTER;
use tokio::sync::Semaphore;
use url::Host;
use url::Url;
use zeroize::Zeroizing;

use super::Answer;
use super::Guard;
use super::Reach;
use super::Wiped;
use super::chain;
use crate::secret::Secret;

/// Shorter than what servers commonly keep idle connections for.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A PEM file larger than this holds no certificates.
const PEM_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Where the server is and how it is trusted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// Scheme, host, port; a path that all requests begin with.
    pub base: Url,
    /// PEM bundle; `None`: the system's roots.
    pub ca: Option<PathBuf>,
    /// PEM certificate chain and key that the gateway shows.
    pub client: Option<(PathBuf, PathBuf)>,
    pub connect_timeout: Duration,
    /// One exchange, from connecting to the last byte.
    pub timeout: Duration,
    /// Exchanges at once; more wait.
    pub connections_max: usize,
    pub answer_bytes_max: usize,
}

impl Config {
    /// The files whose content is a part of it.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let client = self.client.iter().flat_map(|(chain, key)| [chain, key]);
        self.ca.iter().chain(client)
    }
}

/// A path below the server's base, and a query. Each segment is encoded as it is added, so that none can become two, go up
/// or end the path.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Path {
    text: String,
    asks: bool,
}

impl Path {
    /// From fixed segments: `v1/sys/health`.
    pub fn fixed(text: &'static str) -> Path {
        let mut path = Path::default();
        text.split('/').for_each(|segment| path.push(segment));
        path
    }

    /// One more segment, whatever is in it.
    #[must_use]
    pub fn at(mut self, segment: &str) -> Path {
        self.push(segment);
        self
    }

    /// Several more, between slashes.
    #[must_use]
    pub fn through(mut self, path: &str) -> Path {
        path.split('/').for_each(|segment| self.push(segment));
        self
    }

    #[must_use]
    pub fn query(mut self, name: &'static str, value: &str) -> Path {
        self.text.push(if self.asks { '&' } else { '?' });
        self.asks = true;
        self.text.push_str(name);
        self.text.push('=');
        self.text.extend(url::form_urlencoded::byte_serialize(value.as_bytes()));
        self
    }

    /// INVARIANT: dot segments are not left to be resolved by anybody: a URL parser would take even `%2e` for a dot.
    fn push(&mut self, segment: &str) {
        const HEX: &[u8; 16] = b"0123456789ABCDEF";
        self.text.push('/');
        let dots = matches!(segment, "." | "..");
        for byte in segment.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') || (byte == b'.' && !dots) {
                self.text.push(char::from(byte));
            } else if dots {
                // No server has such a name; it must at least not be another one.
                self.text.push_str("%252E");
            } else {
                let digit = |nibble: u8| char::from(HEX.get(usize::from(nibble)).copied().unwrap_or(b'0'));
                self.text.extend(['%', digit(byte >> 4), digit(byte & 15)]);
            }
        }
    }

    /// Without the query.
    pub fn as_str(&self) -> &str {
        self.text.split('?').next().unwrap_or_default()
    }
}

/// One request.
pub struct Ask<'a> {
    pub method: Method,
    pub path: &'a Path,
    pub headers: &'a [(HeaderName, &'a str)],
    /// What opens the server; not shown anywhere.
    pub secret: Option<(HeaderName, &'a Secret)>,
    /// JSON.
    pub body: Option<Zeroizing<String>>,
    pub deadline: Instant,
}

/// Why there is no answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// Nobody has the request.
    #[error("cannot connect: {reason}")]
    Connect { reason: String },
    #[error("cannot make an HTTP client: {reason}")]
    Setup { reason: String },
    #[error("no answer in time")]
    Timeout,
    #[error("the answer has more than {bytes_max} bytes")]
    TooLong { bytes_max: usize },
    /// Whether it was carried out is not known.
    #[error("the connection broke: {reason}")]
    Transport { reason: String },
}

/// The client. Cheap to share by reference; one pool of connections.
#[derive(Debug)]
pub struct Origin {
    client: reqwest::Client,
    base: String,
    places: Semaphore,
    timeout: Duration,
    answer_bytes_max: usize,
}

impl Origin {
    /// Reads and checks certificates; connects to nothing.
    ///
    /// # Errors
    /// [`Error::Setup`], naming the file that is bad.
    pub fn new(config: &Config) -> Result<Origin, Error> {
        // reqwest panics without a provider; if one is installed already this changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let setup = |error: reqwest::Error| Error::Setup { reason: chain(&error) };
        if !permitted(&config.base) {
            return Err(Error::Setup { reason: format!("`{}` is not a server to be asked", config.base) });
        }
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .tcp_nodelay(true)
            .connect_timeout(config.connect_timeout)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(config.connections_max)
            .dns_resolver(Arc::new(Guard { reach: Reach::Configured }))
            .user_agent(concat!("wardgate/", env!("CARGO_PKG_VERSION")));
        if config.base.scheme() == "http" {
            builder = builder.tls_certs_only([]);
        } else {
            builder = builder.https_only(true);
            if let Some(ca) = &config.ca {
                let roots = reqwest::Certificate::from_pem_bundle(&read(ca)?).map_err(setup)?;
                if roots.is_empty() {
                    return Err(Error::Setup { reason: format!("`{}` has no certificate", ca.display()) });
                }
                builder = builder.tls_certs_only(roots);
            }
            if let Some((chain, key)) = &config.client {
                let mut pem = Zeroizing::new(read(chain)?);
                pem.push(b'\n');
                pem.extend_from_slice(&Zeroizing::new(read(key)?));
                builder = builder.identity(reqwest::Identity::from_pem(&pem).map_err(setup)?);
            }
        }
        Ok(Origin {
            client: builder.build().map_err(setup)?,
            base: config.base.as_str().trim_end_matches('/').to_owned(),
            places: Semaphore::new(config.connections_max.clamp(1, Semaphore::MAX_PERMITS)),
            timeout: config.timeout,
            answer_bytes_max: config.answer_bytes_max,
        })
    }

    /// Any status is an answer. A read is asked again once, on another connection, where a pooled one turns out to be dead.
    ///
    /// # Errors
    /// When nothing came that could be read.
    pub async fn send(&self, ask: Ask<'_>) -> Result<Answer, Error> {
        let left = ask.deadline.saturating_duration_since(Instant::now()).min(self.timeout);
        let work = async {
            let _place = self.places.acquire().await;
            match self.send_once(&ask).await {
                Err(Error::Transport { .. }) if ask.method == Method::GET => self.send_once(&ask).await,
                outcome => outcome,
            }
        };
        tokio::time::timeout(left, work).await.unwrap_or(Err(Error::Timeout))
    }

    async fn send_once(&self, ask: &Ask<'_>) -> Result<Answer, Error> {
        // The text as it is encoded: nothing in it is left for a URL parser to resolve.
        let url = Url::parse(&format!("{}{}", self.base, ask.path.text))
            .map_err(|_| Error::Setup { reason: "the path is no path".to_owned() })?;
        let mut request = self.client.request(ask.method.clone(), url).header(ACCEPT, "application/json");
        for (name, value) in ask.headers {
            request = request.header(name, *value);
        }
        if let Some((name, secret)) = &ask.secret {
            let value = HeaderValue::from_str(secret.expose());
            let mut value = value.map_err(|_| Error::Setup { reason: "the credential cannot be sent".to_owned() })?;
            value.set_sensitive(true);
            request = request.header(name, value);
        }
        if let Some(body) = &ask.body {
            let body = bytes::Bytes::from_owner(Wiped(body.clone()));
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        let failed = |error: reqwest::Error| {
            let reason = chain(&error.without_url());
            Error::Transport { reason }
        };
        let sent = request.send().await.map_err(|error| {
            if error.is_connect() { Error::Connect { reason: chain(&error.without_url()) } } else { failed(error) }
        });
        let mut response = sent?;
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let length = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
        let mut body = Zeroizing::new(Vec::with_capacity(length.min(self.answer_bytes_max)));
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > self.answer_bytes_max {
                return Err(Error::TooLong { bytes_max: self.answer_bytes_max });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status: response.status().as_u16(), retry_after: seconds.map(Duration::from_secs), body })
    }
}

/// May such a server be asked at all? Names are looked at again when they have become addresses.
pub fn permitted(base: &Url) -> bool {
    let plain = base.username().is_empty() && base.password().is_none() && base.query().is_none();
    let host = match base.host() {
        Some(Host::Domain(_)) => true,
        Some(Host::Ipv4(address)) => Reach::Configured.allows(address.into()),
        Some(Host::Ipv6(address)) => Reach::Configured.allows(address.into()),
        None => false,
    };
    plain && host && base.fragment().is_none() && matches!(base.scheme(), "http" | "https")
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Error> {
    let unreadable = |what: &str| Error::Setup { reason: format!("file `{}` {what}", path.display()) };
    let size = std::fs::metadata(path).map_err(|error| unreadable(&format!("cannot be read: {error}")))?.len();
    if size > PEM_BYTES_MAX {
        return Err(unreadable(&format!("is larger than {PEM_BYTES_MAX} bytes")));
    }
    std::fs::read(path).map_err(|error| unreadable(&format!("cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    fn config(base: &str) -> Config {
        Config {
            base: Url::parse(base).expect("a URL"),
            ca: None,
            client: None,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            connections_max: 4,
            answer_bytes_max: 1000,
        }
    }

    fn ask(path: &Path, method: Method) -> Ask<'_> {
        let deadline = Instant::now() + Duration::from_secs(5);
        Ask { method, path, headers: &[], secret: None, body: None, deadline }
    }

    #[test]
    fn a_segment_stays_one_segment_whatever_is_in_it() {
        for segment in ["a/b", "..", ".", "%2e%2e", "%2f", "a?b", "a#b", "a\\b", "ä ", "a;b", "", "..%00", "\r\nX: y"]
        {
            let path = Path::fixed("v1/secret").at(segment).at("end").query("list", "a&b=c");
            let url = Url::parse(&format!("http://127.0.0.1{}", path.text)).expect("a URL");
            let segments: Vec<&str> = url.path_segments().expect("segments").collect();
            assert_eq!(
                (segments.len(), segments[0], segments[1], segments[3]),
                (4, "v1", "secret", "end"),
                "{segment}"
            );
            assert_eq!(url.query(), Some("list=a%26b%3Dc"), "{segment}");
            assert_eq!(url.fragment(), None, "{segment}");
        }
        assert_eq!(Path::fixed("v1").through("a/b c").as_str(), "/v1/a/b%20c");
    }

    #[test]
    fn metadata_services_and_urls_with_passwords_are_no_servers() {
        for base in
            ["http://169.254.169.254/", "http://[fe80::1]/", "https://u:p@vault/", "ftp://vault/", "http://v/?a=b"]
        {
            assert!(Origin::new(&config(base)).is_err(), "{base}");
        }
        for base in ["http://10.0.0.1:8200", "http://127.0.0.1:8200", "http://vault:8200"] {
            assert!(Origin::new(&config(base)).is_ok(), "{base}");
        }
    }

    /// Answers each connection's requests with these, then closes it; counts requests by the first word.
    async fn server(connections: Vec<Vec<String>>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let task = tokio::spawn(async move {
            let mut seen = Vec::new();
            for answers in connections {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                for answer in answers {
                    let mut head = [0u8; 4096];
                    let length = stream.read(&mut head).await.expect("a request");
                    seen.push(String::from_utf8_lossy(&head[..length]).split(' ').next().unwrap_or("").to_owned());
                    stream.write_all(answer.as_bytes()).await.expect("written");
                }
            }
            seen
        });
        (base, task)
    }

    fn said(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn a_read_on_a_dead_connection_is_asked_again_and_a_write_is_not() {
        let path = Path::fixed("v1/x");
        let cut = "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf".to_owned();
        let (base, task) = server(vec![vec![cut.clone()], vec![said("200 OK", "{}")], vec![cut]]).await;
        let origin = Origin::new(&config(&base)).expect("a client");
        assert_eq!(origin.send(ask(&path, Method::GET)).await.expect("an answer").status, 200);
        // The connection of the second answer was closed by the server: nothing of the write was sent there.
        let error = origin.send(ask(&path, Method::POST)).await.map(|answer| answer.status).expect_err("cut");
        assert!(matches!(error, Error::Transport { .. }), "{error}");
        assert_eq!(task.await.expect("served"), ["GET", "GET", "POST"]);
    }

    #[tokio::test]
    async fn redirects_are_not_followed_and_answers_are_bounded() {
        let moved = "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
        let (base, task) = server(vec![vec![moved.to_owned(), said("200 OK", &"x".repeat(2000))]]).await;
        let origin = Origin::new(&config(&base)).expect("a client");
        let path = Path::fixed("v1/x");
        assert_eq!(origin.send(ask(&path, Method::GET)).await.expect("an answer").status, 307);
        let error = origin.send(ask(&path, Method::GET)).await.map(|answer| answer.status).expect_err("too long");
        assert_eq!(error, Error::TooLong { bytes_max: 1000 });
        task.await.expect("served");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_has_nothing_of_the_request() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        drop(listener);
        let origin = Origin::new(&config(&base)).expect("a client");
        let error = origin.send(ask(&Path::fixed("v1/x"), Method::POST)).await.map(|answer| answer.status);
        assert!(matches!(error, Err(Error::Connect { .. })));
    }
}
