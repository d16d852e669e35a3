//! Upstream TLS: own CA, client certificates, and that a pool never vouches for somebody else's check.

use std::path::PathBuf;

use pingora::tls::TlsAcceptor;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CertifiedIssuer;
use rcgen::IsCa;
use rcgen::KeyPair;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;

use super::*;

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed");
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).expect("written");
        Authority { issuer, directory }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("params");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        std::fs::write(self.file(&format!("{name}.pem")), certificate.pem()).expect("written");
        std::fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).expect("written");
        (certificate, key)
    }

    /// An acceptor for `up.example`; with `clients`, only for clients of that authority.
    fn acceptor(&self, clients: Option<&Authority>) -> TlsAcceptor {
        let (certificate, key) = self.issue("up.example");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("versions");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.issuer.der().clone()).expect("a root");
                builder.with_client_cert_verifier(
                    WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().expect("a verifier"),
                )
            }
        };
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let config = builder.with_single_cert(vec![certificate.der().clone()], key).expect("a pair");
        TlsAcceptor::from(Arc::new(config))
    }
}

fn secured(port: u16, ca: PathBuf, client: Option<(PathBuf, PathBuf)>) -> Result<Arc<dyn Backend>, Invalid> {
    let mut http = http_config(vec![Endpoint { tls: true, ..endpoint(port) }]);
    http.tls = ClientTls { ca: Some(ca), client, sni: Some("up.example".into()) };
    new(config(Transport::Http(http)))
}

#[tokio::test]
async fn a_server_of_the_configured_authority_is_trusted_and_its_connection_kept() {
    let authority = Authority::new("one");
    let server = Server::start_with(Some(authority.acceptor(None)), |seen| result(seen, "{}")).await;
    let backend = secured(server.port, authority.file("ca.pem"), None).expect("good");
    for turn in 0..3 {
        body(call(&backend, tool_call(Effect::Destroy)).await);
        let seen = server.next().await;
        assert_eq!((seen.connection, seen.turn), (0, turn));
    }
}

#[tokio::test]
async fn another_authority_is_refused_also_while_a_good_connection_lies_in_a_pool() {
    let (one, two) = (Authority::new("one"), Authority::new("two"));
    let server = Server::start_with(Some(one.acceptor(None)), |seen| result(seen, "{}")).await;
    let good = secured(server.port, one.file("ca.pem"), None).expect("good");
    body(call(&good, tool_call(Effect::Read)).await);
    let wrong = secured(server.port, two.file("ca.pem"), None).expect("a good configuration");
    let error = refusal(call(&wrong, tool_call(Effect::Read)).await);
    assert!(matches!(&error, Error::Unavailable { what, .. } if what.contains("UnknownIssuer")), "{error}");
    assert_eq!(server.all().await.len(), 1, "no request went to a server that is not trusted");
}

#[tokio::test]
async fn a_server_with_another_name_is_refused() {
    let authority = Authority::new("one");
    let server = Server::start_with(Some(authority.acceptor(None)), |seen| result(seen, "{}")).await;
    let mut http = http_config(vec![Endpoint { tls: true, ..endpoint(server.port) }]);
    http.tls = ClientTls { ca: Some(authority.file("ca.pem")), client: None, sni: None };
    let backend = new(config(Transport::Http(http))).expect("good");
    assert!(
        matches!(refusal(call(&backend, tool_call(Effect::Read)).await), Error::Unavailable { .. }),
        "127.0.0.1 is not up.example"
    );
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_one_is_asked_for() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    clients.issue("gateway");
    let server = Server::start_with(Some(servers.acceptor(Some(&clients))), |seen| result(seen, "{}")).await;
    let without = secured(server.port, servers.file("ca.pem"), None).expect("good");
    assert!(matches!(refusal(call(&without, tool_call(Effect::Read)).await), Error::Unavailable { .. }));
    let pair = (clients.file("gateway.pem"), clients.file("gateway.key"));
    let with = secured(server.port, servers.file("ca.pem"), Some(pair)).expect("good");
    body(call(&with, tool_call(Effect::Read)).await);
    assert_eq!(server.all().await.len(), 1);
}

#[test]
fn a_bad_file_is_named_at_construction() {
    let authority = Authority::new("one");
    authority.issue("a");
    authority.issue("b");
    let write = |name: &str, text: &str| {
        std::fs::write(authority.file(name), text).expect("written");
        authority.file(name)
    };
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let ca = || authority.file("ca.pem");
    let cases = [
        (secured(1, authority.file("absent.pem"), None), "absent.pem"),
        (secured(1, write("empty.pem", ""), None), "empty.pem"),
        (secured(1, write("broken.pem", broken), None), "broken.pem"),
        (secured(1, ca(), Some((authority.file("a.pem"), authority.file("b.key")))), "b.key"),
        (secured(1, ca(), Some((authority.file("a.pem"), write("no.key", "x")))), "no.key"),
        (secured(1, ca(), Some((write("broken2.pem", broken), authority.file("a.key")))), "broken2.pem"),
    ];
    for (outcome, file) in cases {
        let Err(error) = outcome else { panic!("{file} was taken") };
        assert!(error.to_string().contains(file), "{error}");
    }
}
