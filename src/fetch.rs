//! `Fetch`: the gateway's own HTTP exchanges (keys, metadata, tokens), bounded in time and size, and guarded against SSRF.
//!
//! Names are resolved by a resolver that gives only addresses which [`Reach`] allows, and the connection is made to
//! exactly these: what was checked is what is used. Redirects are never followed.

pub mod origin;

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::header::ACCEPT;
use http::header::AUTHORIZATION;
use http::header::CONTENT_TYPE;
use http::header::RETRY_AFTER;
use reqwest::dns::Addrs;
use reqwest::dns::Name;
use reqwest::dns::Resolve;
use reqwest::dns::Resolving;
use url::Host;
use url::Url;
use zeroize::Zeroizing;

use crate::secret::Secret;

/// Idle connections are closed soon: fetches come in bursts.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// How far a fetch may reach: as far as whoever named the address is trusted.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Reach {
    /// The operator wrote the address: private networks too, but never where clouds keep their metadata.
    Configured,
    /// The operator wrote `http` and an address of this very machine.
    Loopback,
    /// Somebody else named the address: public ones only.
    Named,
}

impl Reach {
    /// For a URL that the operator wrote.
    pub fn of(url: &Url) -> Reach {
        if url.scheme() == "http" && is_loopback(url) { Reach::Loopback } else { Reach::Configured }
    }

    /// May it be asked at all? Names are looked at again when they have become addresses.
    pub fn permits(self, url: &Url) -> bool {
        let scheme = if self == Reach::Loopback { "http" } else { "https" };
        let plain = url.scheme() == scheme && url.username().is_empty() && url.password().is_none();
        let host = match url.host() {
            Some(Host::Domain(name)) => self != Reach::Loopback || name == "localhost",
            Some(Host::Ipv4(address)) => self.allows(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => self.allows(IpAddr::V6(address)),
            None => false,
        };
        plain && host
    }

    /// May a connection be made to this address?
    pub fn allows(self, address: IpAddr) -> bool {
        let address = embedded(address);
        match self {
            Reach::Loopback => address.is_loopback(),
            Reach::Configured => !is_forbidden(address),
            Reach::Named => !is_forbidden(address) && is_public(address),
        }
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// An IPv4 address in any of the clothes that IPv6 has for it (mapped, compatible, NAT64, 6to4).
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(wide) = address else { return address };
    let [a, b, c, d, e, f, g, h] = wide.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0xffff) | (0x64, 0xff9b, 0, 0, 0, 0) => v4(g, h),
        (0, 0, 0, 0, 0, 0) if wide != Ipv6Addr::LOCALHOST && wide != Ipv6Addr::UNSPECIFIED => v4(g, h),
        (0x2002, ..) => v4(b, c),
        _ => address,
    }
}

/// Nobody's identity provider: link-local, multicast, and where clouds tell machines their secrets.
fn is_forbidden(address: IpAddr) -> bool {
    /// Azure's WireServer.
    const WIRE_SERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
    /// The metadata services that are not link-local: Alibaba's, Oracle's.
    const METADATA: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];
    /// AWS by IPv6.
    const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    match address {
        IpAddr::V4(v4) => {
            let out = v4.is_unspecified() || v4.is_broadcast() || v4.is_multicast() || v4.is_link_local();
            out || v4 == WIRE_SERVER || METADATA.contains(&v4)
        }
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local() || v6 == METADATA_V6,
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let special = match (a, b) {
                (0 | 240..=255, _) | (192, 0) | (198, 18 | 19) => true,
                (100, 64..=127) => true,
                (192, 88) => c == 99,
                _ => false,
            };
            !(special || v4.is_private() || v4.is_loopback() || v4.is_documentation())
        }
        // Global unicast is 2000::/3; within it, what documentation and tunnels have.
        IpAddr::V6(v6) => {
            let [a, b, ..] = v6.segments();
            a & 0xe000 == 0x2000 && (a, b) != (0x2001, 0xdb8) && (a, b) != (0x2001, 0) && a != 0x3fff
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{url}` is not a place to fetch from")]
    Forbidden { url: String },
    #[error("cannot make an HTTPS client: {reason}")]
    Setup { reason: String },
    #[error("more than {bytes_max} bytes from `{url}`")]
    TooLong { url: String, bytes_max: usize },
    #[error("cannot reach `{url}`: {reason}")]
    Transport { url: String, reason: String },
}

/// What was answered, whatever the status.
pub struct Answer {
    pub status: u16,
    /// `Retry-After` in seconds.
    pub retry_after: Option<Duration>,
    /// Wiped when dropped: it may hold a token.
    pub body: Zeroizing<Vec<u8>>,
}

/// A client with one reach.
#[derive(Clone, Debug)]
pub struct Fetch {
    client: reqwest::Client,
    reach: Reach,
}

impl Fetch {
    /// `ca`: a PEM bundle that is trusted instead of the system's roots. `timeout`: from connecting to the last byte.
    ///
    /// # Errors
    /// [`Error::Setup`].
    pub fn new(reach: Reach, ca: Option<&[u8]>, timeout: Duration) -> Result<Fetch, Error> {
        // reqwest panics without a provider; if one is installed already this changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let setup = |error: reqwest::Error| Error::Setup { reason: chain(&error) };
        let builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .timeout(timeout)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .dns_resolver(Arc::new(Guard { reach }))
            .user_agent(concat!("wardgate/", env!("CARGO_PKG_VERSION")));
        // A proxy is the operator's word about what the operator wrote; it resolves names by itself.
        let builder = if reach == Reach::Configured { builder } else { builder.no_proxy() };
        let builder = match (reach, ca) {
            (Reach::Loopback, _) => builder.tls_certs_only([]),
            (_, Some(pem)) => {
                let roots = reqwest::Certificate::from_pem_bundle(pem).map_err(setup)?;
                if roots.is_empty() {
                    return Err(Error::Setup { reason: "the CA file has no certificate".into() });
                }
                builder.https_only(true).tls_certs_only(roots)
            }
            (_, None) => builder.https_only(true),
        };
        Ok(Fetch { client: builder.build().map_err(setup)?, reach })
    }

    /// # Errors
    /// When nothing came that could be read; any status is an answer.
    pub async fn get(&self, url: &Url, bytes_max: usize) -> Result<Answer, Error> {
        self.check(url)?;
        self.send(self.client.get(url.clone()), url, bytes_max).await
    }

    /// Sends a form.
    ///
    /// # Errors
    /// When nothing came that could be read; any status is an answer.
    pub async fn post(
        &self,
        url: &Url,
        form: Zeroizing<String>,
        authorization: Option<&Secret>,
        bytes_max: usize,
    ) -> Result<Answer, Error> {
        self.check(url)?;
        let form = bytes::Bytes::from_owner(Wiped(form));
        let request =
            self.client.post(url.clone()).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form);
        let request = match authorization {
            Some(secret) => request.header(AUTHORIZATION, sensitive(secret, url)?),
            None => request,
        };
        self.send(request, url, bytes_max).await
    }

    /// Sends JSON to an API.
    ///
    /// # Errors
    /// When nothing came that could be read; any status is an answer.
    pub async fn post_json(
        &self,
        url: &Url,
        json: String,
        authorization: &Secret,
        bytes_max: usize,
    ) -> Result<Answer, Error> {
        self.check(url)?;
        let request = self.client.post(url.clone()).header(CONTENT_TYPE, "application/json").body(json);
        self.send(request.header(AUTHORIZATION, sensitive(authorization, url)?), url, bytes_max).await
    }

    fn check(&self, url: &Url) -> Result<(), Error> {
        if self.reach.permits(url) { Ok(()) } else { Err(Error::Forbidden { url: url.to_string() }) }
    }

    async fn send(&self, request: reqwest::RequestBuilder, url: &Url, bytes_max: usize) -> Result<Answer, Error> {
        let failed =
            |error: reqwest::Error| Error::Transport { url: url.to_string(), reason: chain(&error.without_url()) };
        let mut response = request.header(ACCEPT, "application/json").send().await.map_err(failed)?;
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let mut body = Zeroizing::new(Vec::new());
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > bytes_max {
                return Err(Error::TooLong { url: url.to_string(), bytes_max });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status: response.status().as_u16(), retry_after: seconds.map(Duration::from_secs), body })
    }
}

fn sensitive(secret: &Secret, url: &Url) -> Result<HeaderValue, Error> {
    let value = HeaderValue::from_str(secret.expose());
    let mut value = value.map_err(|_| Error::Forbidden { url: url.to_string() })?;
    value.set_sensitive(true);
    Ok(value)
}

/// A form on its way out; wiped when it has been sent.
struct Wiped(Zeroizing<String>);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Resolves names to addresses that may be connected to, and to no others.
struct Guard {
    reach: Reach,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.reach;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found.filter(|address| reach.allows(address.ip())).collect();
            if allowed.is_empty() {
                return Err("the name has no address that may be connected to".into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// reqwest says what happened only in the sources of its errors.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(reach: Reach, url: &str) -> bool {
        Url::parse(url).is_ok_and(|url| reach.permits(&url))
    }

    /// However it is written: decimal, octal, hexadecimal, short, mapped into IPv6, by NAT64.
    const METADATA: [&str; 12] = [
        "https://169.254.169.254/latest",
        "https://0xa9fea9fe/",
        "https://2852039166/",
        "https://0251.0376.0251.0376/",
        "https://[::ffff:169.254.169.254]/",
        "https://[::169.254.169.254]/",
        "https://[64:ff9b::a9fe:a9fe]/",
        "https://[2002:a9fe:a9fe::1]/",
        "https://168.63.129.16/",
        "https://[fe80::1]/",
        "https://[fd00:ec2::254]/",
        "https://100.100.100.200/",
    ];

    #[test]
    fn metadata_services_are_out_of_reach_however_they_are_written() {
        for url in METADATA {
            for reach in [Reach::Configured, Reach::Loopback, Reach::Named] {
                assert!(!permits(reach, url), "{reach:?} reaches {url}");
            }
        }
    }

    #[test]
    fn what_others_name_must_be_public() {
        let inside = [
            "https://10.0.0.1/",
            "https://172.16.0.1/",
            "https://192.168.1.1/",
            "https://100.64.0.1/",
            "https://127.0.0.1/",
            "https://127.1/",
            "https://0.0.0.0/",
            "https://[::1]/",
            "https://[fd12::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://192.0.2.1/",
            "https://198.18.0.1/",
            "https://240.0.0.1/",
            "https://[2001:db8::1]/",
        ];
        for url in inside {
            assert!(!permits(Reach::Named, url), "{url}");
        }
        for url in ["https://20.190.128.1/", "https://[2603:1006:2000::1]/", "https://idp.example.com/"] {
            assert!(permits(Reach::Named, url), "{url}");
        }
        assert!(permits(Reach::Configured, "https://10.0.0.1/"), "an identity provider of the house");
    }

    #[test]
    fn plain_http_is_for_this_machine_and_only_where_it_is_written() {
        assert!(permits(Reach::Loopback, "http://127.0.0.1:8080/token"));
        assert!(permits(Reach::Loopback, "http://localhost:8080/token"));
        for (reach, url) in [
            (Reach::Loopback, "http://10.0.0.1/"),
            (Reach::Loopback, "http://idp.example.com/"),
            (Reach::Configured, "http://127.0.0.1/"),
            (Reach::Named, "http://20.190.128.1/"),
            (Reach::Configured, "https://user:secret@idp.example.com/"),
            (Reach::Configured, "ftp://idp.example.com/"),
            (Reach::Configured, "file:///etc/passwd"),
        ] {
            assert!(!permits(reach, url), "{reach:?} {url}");
        }
    }

    /// `localhost` resolves to loopback: a name is looked at again when it has become an address.
    #[tokio::test]
    async fn a_name_that_resolves_to_the_inside_is_not_connected_to() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let url = Url::parse(&format!("https://localhost:{port}/keys")).expect("a URL");
        let named = Fetch::new(Reach::Named, None, Duration::from_secs(5)).expect("a client");
        let error = named.get(&url, 1000).await.map(|answer| answer.status).expect_err("refused");
        assert!(error.to_string().contains("no address that may be connected to"), "{error}");
        let refused = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(refused.is_err(), "somebody connected");
    }

    #[tokio::test]
    async fn redirects_are_not_followed_and_size_is_bounded() {
        use tokio::io::AsyncReadExt;
        use tokio::io::AsyncWriteExt;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = tokio::spawn(async move {
            for answer in [
                "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                    .to_owned(),
                format!("HTTP/1.1 200 OK\r\ncontent-length: 2000\r\nconnection: close\r\n\r\n{}", "x".repeat(2000)),
            ] {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut head = [0u8; 2048];
                let _ = stream.read(&mut head).await.expect("a request");
                stream.write_all(answer.as_bytes()).await.expect("written");
            }
        });
        let url = Url::parse(&format!("http://{address}/token")).expect("a URL");
        let fetch = Fetch::new(Reach::of(&url), None, Duration::from_secs(5)).expect("a client");
        assert_eq!(fetch.get(&url, 1000).await.expect("an answer").status, 302);
        let error = fetch.get(&url, 1000).await.map(|answer| answer.status).expect_err("too long");
        assert!(error.to_string().contains("more than 1000 bytes"), "{error}");
        server.await.expect("served");
    }
}
