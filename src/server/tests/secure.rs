//! TLS, client certificates, their reload, and HTTP/2.

use std::path::PathBuf;

use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::ALPN;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use tempfile::TempDir;

use super::*;
use crate::server::ClientAuth;
use crate::server::Error;
use crate::server::Tls;
use crate::server::check;

/// A certificate authority of the test's own.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key in PEM.
    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn server(&self, name: &str) -> (String, String) {
        self.issue(name, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn client(&self, name: &str) -> String {
        let (certificate, key) = self.issue(name, ExtendedKeyUsagePurpose::ClientAuth);
        format!("{certificate}{key}")
    }
}

/// Files of a TLS listener.
struct Files(TempDir);

impl Files {
    fn new(ours: &Authority, clients: &Authority) -> Files {
        let files = Files(tempfile::tempdir().unwrap());
        files.certificate(ours.server("server"));
        std::fs::write(files.path("ca.pem"), &clients.pem).unwrap();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn certificate(&self, (certificate, key): (String, String)) {
        std::fs::write(self.path("tls.crt"), certificate).unwrap();
        std::fs::write(self.path("tls.key"), key).unwrap();
    }

    fn tls(&self, client_auth: ClientAuth) -> Tls {
        let client_ca = (client_auth != ClientAuth::None).then(|| self.path("ca.pem"));
        Tls { certificate: self.path("tls.crt"), key: self.path("tls.key"), client_ca, client_auth }
    }
}

fn client(ours: &Authority, identity: Option<&str>) -> reqwest::Client {
    let root = reqwest::Certificate::from_pem(ours.pem.as_bytes()).unwrap();
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([root]);
    match identity {
        Some(pem) => builder.identity(reqwest::Identity::from_pem(pem.as_bytes()).unwrap()).build().unwrap(),
        None => builder.build().unwrap(),
    }
}

impl Rig {
    async fn secure(tls: Tls) -> Rig {
        Rig::with(|config| config.listeners[0].tls = Some(tls)).await
    }

    async fn call(&self, client: &reqwest::Client) -> Result<Value, reqwest::Error> {
        let request = client
            .post(format!("https://localhost:{}/mcp", self.address.port()))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body("{}");
        let text = soon(request.send()).await?.text().await?;
        Ok(serde_json::from_str(&text).unwrap())
    }

    /// A reload with these TLS settings.
    fn renew(&self, tls: Tls) -> Result<Vec<String>, Error> {
        let mut config = configuration();
        config.listeners[0].tls = Some(tls);
        self.server.reload(&config)
    }
}

#[tokio::test]
async fn tls_without_client_certificates_serves_anybody() {
    crate::server::install_crypto();
    let ours = Authority::new("ours");
    let files = Files::new(&ours, &ours);
    let rig = Rig::secure(files.tls(ClientAuth::None)).await;
    let seen = rig.call(&client(&ours, None)).await.unwrap();
    assert_eq!((&seen["tls"], &seen["subject"]), (&json!(true), &Value::Null));
    // Plain HTTP at a TLS port is not answered.
    let mut raw = rig.connect().await;
    raw.send(post("/mcp", "{}")).await;
    while raw.more().await > 0 {}
    assert!(!raw.buffer.starts_with(b"HTTP"));
    assert_eq!(rig.server.counts().handshakes_failed, 1);
}

#[tokio::test]
async fn client_certificates_are_optional_or_required_and_verified_either_way() {
    crate::server::install_crypto();
    let (ours, clients, strangers) = (Authority::new("ours"), Authority::new("clients"), Authority::new("strangers"));
    let files = Files::new(&ours, &clients);
    let trusted = client(&ours, Some(&clients.client("agent-7")));
    let untrusted = client(&ours, Some(&strangers.client("agent-7")));
    let bare = client(&ours, None);
    let (certificate, key) = clients.server("agent-7");
    let wrong_usage = client(&ours, Some(&format!("{certificate}{key}")));
    for auth in [ClientAuth::Optional, ClientAuth::Required] {
        let mut rig = Rig::secure(files.tls(auth)).await;
        let seen = rig.call(&trusted).await.unwrap();
        assert!(seen["subject"].as_str().unwrap().contains("CN=agent-7"), "{seen}");
        assert_eq!(rig.event().await, Event::Served("/mcp".into()));
        assert!(rig.call(&untrusted).await.is_err(), "{auth:?}");
        assert!(rig.call(&wrong_usage).await.is_err(), "{auth:?}");
        rig.nothing_was_served();
        match rig.call(&bare).await {
            Ok(seen) => assert_eq!((auth, &seen["subject"]), (ClientAuth::Optional, &Value::Null)),
            Err(_) => assert_eq!(auth, ClientAuth::Required),
        }
    }
}

#[tokio::test]
async fn a_new_certificate_is_served_while_old_connections_stay() {
    crate::server::install_crypto();
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let files = Files::new(&ours, &ours);
    let rig = Rig::secure(files.tls(ClientAuth::None)).await;
    let (stays, comes) = (client(&ours, None), client(&other, None));
    rig.call(&stays).await.unwrap();
    assert!(rig.call(&comes).await.is_err());
    files.certificate(other.server("renewed"));
    assert_eq!(rig.renew(files.tls(ClientAuth::None)).unwrap(), Vec::<String>::new());
    rig.call(&comes).await.unwrap();
    rig.call(&stays).await.expect("its connection is still there");
    assert!(rig.call(&client(&ours, None)).await.is_err(), "a new connection sees the new certificate");
}

#[tokio::test]
async fn a_reload_with_a_bad_file_changes_nothing_and_names_it() {
    crate::server::install_crypto();
    let ours = Authority::new("ours");
    let files = Files::new(&ours, &ours);
    let rig = Rig::secure(files.tls(ClientAuth::None)).await;
    let refused = |what: &str, name: &str| {
        let error = rig.renew(files.tls(ClientAuth::Required)).err().unwrap().to_string();
        assert!(error.contains(what) && error.contains(name), "{error}");
    };
    let (_, other_key) = ours.server("other");
    let good = std::fs::read(files.path("tls.key")).unwrap();
    std::fs::write(files.path("tls.key"), other_key).unwrap();
    refused("key", "tls.key");
    std::fs::write(files.path("tls.key"), "nonsense").unwrap();
    refused("key", "tls.key");
    std::fs::write(files.path("tls.key"), good).unwrap();
    std::fs::write(files.path("ca.pem"), "nonsense").unwrap();
    refused("client CA", "ca.pem");
    std::fs::remove_file(files.path("tls.crt")).unwrap();
    refused("certificate", "tls.crt");
    rig.call(&client(&ours, None)).await.unwrap();
}

#[tokio::test]
async fn check_finds_client_certificates_without_an_authority() {
    crate::server::install_crypto();
    let ours = Authority::new("ours");
    let files = Files::new(&ours, &ours);
    let mut config = configuration();
    config.listeners[0].tls = Some(Tls { client_ca: None, ..files.tls(ClientAuth::Required) });
    assert!(matches!(check(&config), Err(Error::NoClientCa { .. })));
    config.listeners[0].tls = Some(files.tls(ClientAuth::Required));
    assert!(check(&config).is_ok());
}

#[tokio::test]
async fn connections_that_proved_themselves_to_an_old_authority_are_drained() {
    crate::server::install_crypto();
    let (ours, old, new) = (Authority::new("ours"), Authority::new("old"), Authority::new("new"));
    let files = Files::new(&ours, &old);
    let rig = Rig::secure(files.tls(ClientAuth::Required)).await;
    let agent = client(&ours, Some(&old.client("agent")));
    rig.call(&agent).await.unwrap();
    assert_eq!(rig.server.counts().connections, 1);
    std::fs::write(files.path("ca.pem"), &new.pem).unwrap();
    rig.renew(files.tls(ClientAuth::Required)).unwrap();
    soon(async {
        while rig.server.counts().connections > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(rig.call(&agent).await.is_err(), "neither resumed nor trusted");
    rig.call(&client(&ours, Some(&new.client("agent")))).await.unwrap();
}

/// rustls by hand, to see whether a session is resumed.
async fn handshake_kind(address: SocketAddr, config: &Arc<rustls::ClientConfig>) -> rustls::HandshakeKind {
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut connection = rustls::ClientConnection::new(config.clone(), name).unwrap();
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    let mut tls = rustls::Stream::new(&mut connection, &mut socket);
    let request = post("/mcp", "{}").replace("Content-Length", "Connection: close\r\nContent-Length");
    std::io::Write::write_all(&mut tls, request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut tls, &mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    connection.handshake_kind().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_resumed_only_where_no_client_certificate_is_asked_for() {
    crate::server::install_crypto();
    let ours = Authority::new("ours");
    let files = Files::new(&ours, &ours);
    for (auth, second) in
        [(ClientAuth::None, rustls::HandshakeKind::Resumed), (ClientAuth::Optional, rustls::HandshakeKind::Full)]
    {
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let rig = Rig::secure(files.tls(auth)).await;
            let mut roots = rustls::RootCertStore::empty();
            let root = <rustls::pki_types::CertificateDer as rustls::pki_types::pem::PemObject>::from_pem_slice(
                ours.pem.as_bytes(),
            );
            roots.add(root.unwrap()).unwrap();
            let config = rustls::ClientConfig::builder_with_protocol_versions(&[version]).with_root_certificates(roots);
            let config = Arc::new(config.with_no_client_auth());
            assert_eq!(handshake_kind(rig.address, &config).await, rustls::HandshakeKind::Full);
            assert_eq!(handshake_kind(rig.address, &config).await, second, "{auth:?} {version:?}");
        }
    }
}

/// An h2 stream, by pingora's own client.
async fn h2(rig: &Rig, tls: bool) -> HttpSession {
    let mut peer = HttpPeer::new(rig.address, tls, "localhost".to_owned());
    peer.options.alpn = ALPN::H2;
    peer.options.verify_cert = false;
    peer.options.max_h2_streams = 10;
    let (session, _) = soon(Connector::new(None).get_http_session(&peer)).await.unwrap();
    assert!(session.as_http2().is_some());
    session
}

async fn ask_h2(session: &mut HttpSession, path: &str, lines: &[(&'static str, &str)], body: &[u8]) -> u16 {
    send_h2(session, path, lines).await;
    session.write_request_body(Bytes::copy_from_slice(body), true).await.unwrap();
    session.finish_request_body().await.unwrap();
    status_h2(session).await
}

async fn status_h2(session: &mut HttpSession) -> u16 {
    soon(session.read_response_header()).await.unwrap();
    session.response_header().unwrap().status.as_u16()
}

async fn send_h2(session: &mut HttpSession, path: &str, lines: &[(&'static str, &str)]) {
    let mut head = RequestHeader::build("POST", path.as_bytes(), None).unwrap();
    head.set_version(http::Version::HTTP_2);
    head.insert_header("host", "localhost").unwrap();
    head.insert_header("content-type", "application/json").unwrap();
    head.insert_header("accept", "application/json, text/event-stream").unwrap();
    for (name, value) in lines {
        head.insert_header(*name, *value).unwrap();
    }
    session.write_request_header(Box::new(head)).await.unwrap();
}

async fn rest(session: &mut HttpSession) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(chunk) = soon(session.read_response_body()).await.unwrap() {
        body.extend_from_slice(&chunk);
    }
    body
}

#[tokio::test]
async fn h2_is_spoken_over_tls_and_with_prior_knowledge() {
    crate::server::install_crypto();
    let ours = Authority::new("ours");
    let files = Files::new(&ours, &ours);
    for (rig, tls) in [(Rig::secure(files.tls(ClientAuth::None)).await, true), (Rig::start().await, false)] {
        let mut session = h2(&rig, tls).await;
        assert_eq!(ask_h2(&mut session, "/mcp?q", &[], &vec![b'x'; 1_000_000]).await, 200);
        let headers = session.response_header().unwrap().headers.clone();
        assert!(headers.contains_key("x-request-id") && !headers.contains_key("connection"));
        let seen: Value = serde_json::from_slice(&rest(&mut session).await).unwrap();
        assert_eq!((&seen["bytes"], &seen["path"], &seen["tls"]), (&json!(1_000_000), &json!("/mcp"), &json!(tls)));
        assert_eq!(seen["host"], "localhost");
    }
}

#[tokio::test]
async fn h2_requests_pass_the_same_admission() {
    let mut rig = Rig::with(|config| config.admission.body_bytes_max = 1000).await;
    for (path, lines, body, status) in [
        ("/%6dcp", &[][..], &b"{}"[..], 400),
        ("//mcp", &[], b"{}", 400),
        ("/mcp", &[("host", "evil.example")], b"{}", 421),
        ("/mcp", &[("origin", "https://evil.example")], b"{}", 403),
        ("/mcp", &[("content-type", "text/plain")], b"{}", 415),
        ("/mcp", &[("accept", "text/html")], b"{}", 406),
        ("/mcp", &[("expect", "x")], b"{}", 400),
        ("/mcp", &[], &[b'x'; 1001], 413),
    ] {
        let mut session = h2(&rig, false).await;
        assert_eq!(ask_h2(&mut session, path, lines, body).await, status, "{path} {lines:?}");
    }
    let mut session = h2(&rig, false).await;
    send_h2(&mut session, "/mcp", &[("content-length", "5000")]).await;
    assert_eq!(status_h2(&mut session).await, 413, "before any of it");
    rig.nothing_was_served();
}

#[tokio::test]
async fn an_h2_client_that_resets_its_stream_cancels_its_call() {
    let mut rig = Rig::start().await;
    let mut session = h2(&rig, false).await;
    let call = tokio::spawn(async move {
        ask_h2(&mut session, "/hang", &[], b"{}").await;
    });
    assert_eq!(rig.event().await, Event::Served("/hang".into()));
    call.abort();
    assert_eq!(rig.event().await, Event::Dropped("/hang".into()));
}

#[tokio::test]
async fn h2_streams_carry_events_and_end_with_the_edge() {
    let rig = Rig::start().await;
    let mut session = h2(&rig, false).await;
    assert_eq!(ask_h2(&mut session, "/events", &[("mcp-method", "subscriptions/listen")], b"{}").await, 200);
    rig.news.send(Bytes::from_static(b"data: 1\n\n")).unwrap();
    assert_eq!(soon(session.read_response_body()).await.unwrap().unwrap(), "data: 1\n\n");
    rig.stop.send(true).unwrap();
    assert_eq!(rest(&mut session).await, b"", "a clean end");
    drop(session);
    soon(rig.running).await.unwrap();
}

/// One h2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_connection() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let rig = Rig::start().await;
    let mut raw = rig.connect().await;
    // POST, http, /, :authority localhost; from the static table of HPACK.
    let head = [&[0x83, 0x86, 0x84, 0x41, 0x09][..], b"localhost"].concat();
    let mut flood = [PREFACE, &frame(4, 0, 0, &[])].concat();
    for stream in (1..2000).step_by(2) {
        flood.extend(frame(1, 0x4, stream, &head));
        flood.extend(frame(3, 0, stream, &8u32.to_be_bytes()));
    }
    // It may be cut off before it has sent everything.
    drop(soon(raw.stream.write_all(&flood)).await);
    while raw.more().await > 0 {}
    let calm = [7, 0, 0, 0, 0, 0]; // GOAWAY on stream 0
    let goaway = raw.buffer.windows(calm.len()).position(|window| window == calm).expect("a GOAWAY");
    assert_eq!(raw.buffer[goaway + 10..goaway + 14], 11u32.to_be_bytes(), "ENHANCE_YOUR_CALM");
}

#[tokio::test]
async fn half_a_preface_and_an_idle_h2_connection_are_closed_in_time() {
    let rig = Rig::with(|config| {
        config.admission.head_timeout = Duration::from_millis(200);
        config.admission.idle_timeout = Duration::from_millis(200);
    })
    .await;
    let mut half = rig.connect().await;
    half.send("PRI * HTTP/2").await;
    assert!(half.is_closed().await);
    let mut idle = rig.connect().await;
    idle.send([&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[])].concat()).await;
    while idle.more().await > 0 {}
    assert!(!idle.buffer.is_empty(), "it was answered before it was closed");
}
