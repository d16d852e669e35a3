//! TLS of a listener: certificate, key and client CA become rustls terms; the handshake, and who is at the other end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use pingora::listeners::tls::Acceptor;
use pingora::protocols::Ssl;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::tls::TlsStream;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::NoServerSessionStorage;
use rustls::server::WebPkiClientVerifier;
use x509_parser::prelude::FromDer;
use x509_parser::prelude::X509Certificate;

use crate::exchange::ClientCertificate;
use crate::identity::mtls;

use super::ClientAuth;
use super::Error;
use super::Tls;

/// From the first byte to the end of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A certificate that ends within this time gets a warning when it is read.
const SOON: Duration = Duration::from_secs(7 * 24 * 3600);

/// Makes ring the crypto provider of the process. Call it first thing; later calls do nothing.
pub fn install_crypto() {
    pingora::tls::install_default_crypto_provider();
}

/// What a listener's handshakes follow.
pub(super) struct Terms {
    config: Arc<ServerConfig>,
    clients: Clients,
}

/// What client certificates are measured by.
#[derive(Eq, PartialEq)]
struct Clients {
    auth: ClientAuth,
    authorities: Vec<CertificateDer<'static>>,
}

impl Terms {
    /// Would these terms judge a client certificate in the same way?
    pub(super) fn judge_clients_like(&self, other: &Terms) -> bool {
        self.clients == other.clients
    }
}

/// Reads and checks the files of a listener.
///
/// # Errors
/// Names the file and what is wrong with it.
pub(super) fn load(tls: &Tls) -> Result<Terms, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates("certificate", &tls.certificate)?;
    warn_of_expiry(&tls.certificate, chain.first());
    let key = read("key", &tls.key)?;
    let key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|error| unusable("key", &tls.key, format!("no private key in PEM: {error}")))?;
    let authorities = match (&tls.client_ca, tls.client_auth) {
        (_, ClientAuth::None) => Vec::new(),
        (Some(file), _) => certificates("client CA", file)?,
        (None, _) => return Err(Error::NoClientCa { file: tls.certificate.display().to_string() }),
    };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| unusable("certificate", &tls.certificate, error.to_string()))?;
    let builder = match (&tls.client_ca, tls.client_auth) {
        (Some(file), auth @ (ClientAuth::Optional | ClientAuth::Required)) => {
            let broken = |why: String| unusable("client CA", file, why);
            let mut roots = RootCertStore::empty();
            for authority in &authorities {
                roots.add(authority.clone()).map_err(|error| broken(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if auth == ClientAuth::Optional { verifier.allow_unauthenticated() } else { verifier };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| broken(error.to_string()))?)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| {
        unusable("key", &tls.key, format!("does not go with `{}`: {error}", tls.certificate.display()))
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    if tls.client_auth != ClientAuth::None {
        // A resumed session skips the verifier, so one that was verified by an old CA would come back for good.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Terms { config: Arc::new(config), clients: Clients { auth: tls.client_auth, authorities } })
}

fn unusable(what: &'static str, file: &Path, why: String) -> Error {
    Error::Unusable { what, file: file.display().to_string(), why }
}

fn read(what: &'static str, file: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(file).map_err(|cause| Error::Read { what, file: file.display().to_string(), cause })
}

fn certificates(what: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(what, file)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Err(error) => Err(unusable(what, file, error.to_string())),
        Ok(all) if all.is_empty() => Err(unusable(what, file, "no certificate in PEM".to_owned())),
        Ok(all) => Ok(all),
    }
}

/// An old certificate is served all the same: clients then say why, which beats a gateway that does not start.
fn warn_of_expiry(file: &Path, leaf: Option<&CertificateDer<'_>>) {
    let Some(Ok((_, leaf))) = leaf.map(|leaf| X509Certificate::from_der(leaf)) else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs().cast_signed());
    let (from, until) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    let file = file.display();
    if now < from {
        tracing::warn!("certificate `{file}` is not valid yet");
    } else if now > until {
        tracing::warn!("certificate `{file}` has expired");
    } else if now > until - SOON.as_secs().cast_signed() {
        tracing::warn!("certificate `{file}` expires within a week");
    }
}

/// Why a connection did not become a TLS session. Not for the client.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the handshake failed: {0}")]
    Handshake(Box<pingora::Error>),
    #[error("the handshake took too long")]
    Slow,
    #[error("{0}")]
    Certificate(#[from] mtls::CertificateError),
}

/// Shakes hands within the time allowed; gives the certificate if one was shown (it is verified by then).
///
/// # Errors
/// The connection is to be dropped.
pub(super) async fn shake(
    terms: &Terms,
    stream: Stream,
) -> Result<(TlsStream<Stream>, Option<ClientCertificate>), Failure> {
    let acceptor = Acceptor::from_server_config(terms.config.clone());
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.tls_handshake(stream))
        .await
        .map_err(|_elapsed| Failure::Slow)?
        .map_err(Failure::Handshake)?;
    let certificate = match stream.get_ssl().and_then(|session| session.peer_certificate_der()) {
        Some(leaf) => Some(mtls::certificate_from_der(leaf)?),
        None => None,
    };
    Ok((stream, certificate))
}
