//! Upstream TLS: the configured files are read and proven good here, before pingora, which panics on bad ones.

use std::panic::AssertUnwindSafe;
use std::path::Path;

use pingora::connectors::ConnectorOptions;
use pingora::connectors::TransportConnector;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;

use super::Blame;
use super::ClientTls;
use super::Invalid;

/// A PEM file larger than this holds no certificates.
const PEM_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The backend's own connector and connection pool.
///
/// INVARIANT: one per backend. Pingora's pool key leaves the CA out; here a connection that was verified against one
/// backend's CA cannot be met by another backend, because it lies in another pool.
pub(super) fn connector(tls: &ClientTls, connections_max: usize, blame: &Blame) -> Result<TransportConnector, Invalid> {
    let mut options = ConnectorOptions::new(connections_max.max(1));
    if let Some(ca) = &tls.ca {
        check_ca(ca, blame)?;
        options.ca_file = Some(utf8(ca, blame)?);
    }
    if let Some((certificate, key)) = &tls.client {
        check_pair(certificate, key, blame)?;
        options.cert_key_file = Some((utf8(certificate, blame)?, utf8(key, blame)?));
    }
    // Pingora unwraps what it loads. Ours is checked; the system's roots, or a file that changed since, are not.
    std::panic::catch_unwind(AssertUnwindSafe(|| TransportConnector::new(Some(options)))).map_err(|_| {
        blame.invalid("the trusted certificates (or the system's, where none are configured) cannot be loaded")
    })
}

/// What distinguishes this backend's verified connections from any other's: its name, CA and client certificate.
pub(super) fn group_key(tls: &ClientTls, sni: &str, blame: &Blame) -> Result<u64, Invalid> {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    let mut part = |bytes: &[u8]| {
        digest.update(&(bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    part(blame.0.as_bytes());
    part(sni.as_bytes());
    for path in [tls.ca.as_ref(), tls.client.as_ref().map(|(certificate, _)| certificate)].into_iter().flatten() {
        part(&read(path, blame)?);
    }
    let mut half = [0u8; 8];
    half.iter_mut().zip(digest.finish().as_ref()).for_each(|(to, from)| *to = *from);
    Ok(u64::from_le_bytes(half))
}

fn read(path: &Path, blame: &Blame) -> Result<Vec<u8>, Invalid> {
    let unreadable = |what: &str| blame.invalid(format!("file `{}` {what}", path.display()));
    let size = std::fs::metadata(path).map_err(|error| unreadable(&format!("cannot be read: {error}")))?.len();
    if size > PEM_BYTES_MAX {
        return Err(unreadable(&format!("is larger than {PEM_BYTES_MAX} bytes")));
    }
    std::fs::read(path).map_err(|error| unreadable(&format!("cannot be read: {error}")))
}

fn utf8(path: &Path, blame: &Blame) -> Result<String, Invalid> {
    path.to_str().map(str::to_owned).ok_or_else(|| blame.invalid(format!("the path `{}` is not UTF-8", path.display())))
}

fn certificates(path: &Path, blame: &Blame) -> Result<Vec<CertificateDer<'static>>, Invalid> {
    let pem = read(path, blame)?;
    let bad = |what: &str| blame.invalid(format!("file `{}` {what}", path.display()));
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|_| bad("is not well-formed PEM"))?;
    if found.is_empty() {
        return Err(bad("holds no certificate"));
    }
    for certificate in &found {
        // Pingora and rustls look into certificates with two parsers; both must agree.
        x509_parser::parse_x509_certificate(certificate).map_err(|_| bad("holds a certificate that is not X.509"))?;
    }
    Ok(found)
}

fn check_ca(path: &Path, blame: &Blame) -> Result<(), Invalid> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, blame)? {
        roots.add(certificate).map_err(|error| {
            blame.invalid(format!("file `{}` holds a certificate that is no CA: {error}", path.display()))
        })?;
    }
    Ok(())
}

fn check_pair(certificate: &Path, key: &Path, blame: &Blame) -> Result<(), Invalid> {
    let chain = certificates(certificate, blame)?;
    let pem = read(key, blame)?;
    let key_der = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| blame.invalid(format!("file `{}` holds no private key", key.display())))?;
    CertifiedKey::from_der(chain, key_der, &rustls::crypto::ring::default_provider()).map(drop).map_err(|error| {
        blame.invalid(format!(
            "certificate `{}` and key `{}` do not go together: {error}",
            certificate.display(),
            key.display()
        ))
    })
}
