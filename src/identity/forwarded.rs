//! Client certificates that a proxy in front has verified: its headers, believed from its own addresses alone.
//!
//! From any other address the headers are bytes like any others (they are not even read), and only the one header that
//! the configuration names is read at all: what a proxy does not set itself, it may pass on from the client.

use std::net::IpAddr;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::exchange::ClientCertificate;
use crate::exchange::Peer;
use crate::exchange::Request;

use super::Error;
use super::mtls;
use super::subject;

/// As many as a certificate has that anybody uses.
const NAMES_MAX: usize = 64;

/// A proxy that terminates TLS for us.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Proxy {
    pub from: Vec<Place>,
    pub header: CertificateHeader,
}

/// Where a trusted proxy connects from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    Network(Network),
    /// Any Unix socket of ours.
    Unix,
}

/// The one way in which the proxy says what certificate the client has shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CertificateHeader {
    /// `X-Forwarded-Client-Cert` as Envoy writes it.
    Envoy,
    /// `X-SSL-Client-Cert`, the whole certificate in PEM and percent-encoded, beside `X-SSL-Client-Verify: SUCCESS`.
    Pem,
    /// `X-SSL-Client-S-DN` beside `X-SSL-Client-Verify: SUCCESS`.
    Subject,
}

impl CertificateHeader {
    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            CertificateHeader::Envoy => "x-forwarded-client-cert",
            CertificateHeader::Pem => "x-ssl-client-cert",
            CertificateHeader::Subject => "x-ssl-client-s-dn",
        }
    }
}

/// An address, or all addresses with the same first bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Network {
    address: IpAddr,
    prefix: u32,
}

/// Why a text is no network.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NetworkError {
    #[error("is not an address or network such as `10.1.2.3`, `10.0.0.0/8`, `fd00::/8`, or `unix`")]
    Malformed,
    #[error("has bits behind its prefix: write `{0}/{1}`")]
    Bits(IpAddr, u32),
    #[error("is everybody: anyone could name themselves")]
    Everybody,
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Network, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NetworkError::Malformed)?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let digits = |text: &&str| text.len() <= 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = match prefix {
            None => width,
            Some(text) => {
                Some(text).filter(digits).and_then(|text| text.parse().ok()).ok_or(NetworkError::Malformed)?
            }
        };
        if prefix > width || matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some()) {
            return Err(NetworkError::Malformed);
        }
        if prefix == 0 {
            return Err(NetworkError::Everybody);
        }
        let clean = masked(address, prefix);
        if clean == address { Ok(Network { address, prefix }) } else { Err(NetworkError::Bits(clean, prefix)) }
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.prefix) == self.address
    }
}

/// The address with all bits behind the prefix cleared.
fn masked(address: IpAddr, prefix: u32) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            IpAddr::V4((address.to_bits() & u32::MAX.checked_shl(32_u32.saturating_sub(prefix)).unwrap_or(0)).into())
        }
        IpAddr::V6(address) => {
            IpAddr::V6((address.to_bits() & u128::MAX.checked_shl(128_u32.saturating_sub(prefix)).unwrap_or(0)).into())
        }
    }
}

impl Proxy {
    /// Is this connection the proxy's? Then its own certificate is never the caller's.
    pub(super) fn is_at(&self, peer: &Peer) -> bool {
        self.from.iter().any(|place| match (place, peer.address) {
            (Place::Network(network), Some(address)) => network.contains(address),
            (Place::Unix, None) => true,
            _ => false,
        })
    }

    /// The certificate that the client has shown to the proxy, if any.
    pub(super) fn certificate(&self, request: &Request) -> Result<Option<ClientCertificate>, Error> {
        let name = self.header.as_str();
        let text = header(request, name)?;
        let certificate = match (self.header, text) {
            (CertificateHeader::Envoy, None) => return Ok(None),
            (CertificateHeader::Envoy, Some(text)) => envoy(text),
            (CertificateHeader::Pem | CertificateHeader::Subject, text) => {
                // nginx says `NONE` where there was no certificate, and leaves out headers without a value.
                let text = match (header(request, "x-ssl-client-verify")?, text) {
                    (Some("SUCCESS"), Some(text)) => text,
                    (None | Some("NONE"), None) => return Ok(None),
                    _ => return Err(Error::invalid("the proxy in front has not verified the client certificate")),
                };
                match self.header {
                    CertificateHeader::Pem => from_escaped(text),
                    _ => subject::canonical(text).map(named),
                }
            }
        };
        certificate.map(Some).ok_or_else(|| unreadable(name))
    }
}

fn header<'a>(request: &'a Request, name: &str) -> Result<Option<&'a str>, Error> {
    let value = request.single_header(name).map_err(|()| unreadable(name))?;
    Ok(value.map(str::trim).filter(|value| !value.is_empty()))
}

fn unreadable(name: &str) -> Error {
    Error::invalid(format!("the `{name}` header of the proxy in front is there twice or cannot be read"))
}

/// A certificate of which only the subject is known.
fn named(subject: String) -> ClientCertificate {
    ClientCertificate { subject, not_after: mtls::NOT_AFTER_UNKNOWN, ..ClientCertificate::default() }
}

/// A certificate in PEM, percent-encoded.
fn from_escaped(text: &str) -> Option<ClientCertificate> {
    let der = CertificateDer::from_pem_slice(&decoded(text)?).ok()?;
    mtls::certificate_from_der(&der).ok()
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(if byte == b'%' { digit(bytes.next()?)? << 4 | digit(bytes.next()?)? } else { byte });
    }
    Some(out)
}

/// The last element: what the nearest proxy has added. What stands before it was said by somebody else.
fn envoy(text: &str) -> Option<ClientCertificate> {
    if text.contains(char::is_control) {
        return None;
    }
    let element = parts(text, ',')?.pop()?;
    let mut out = named(String::new());
    let mut whole = None;
    let (mut has_subject, mut has_hash) = (false, false);
    for pair in parts(element, ';')? {
        let (key, value) = pair.split_once('=')?;
        let key = key.trim_start_matches(' ').to_ascii_lowercase();
        let (value, quoted) = unquoted(value)?;
        // The subject is always quoted; its escapes are those of RFC 4514, and Envoy adds none. Other values have none.
        let good = if key == "subject" { quoted } else { !value.contains('\\') };
        if !good {
            return None;
        }
        match key.as_str() {
            "subject" if !std::mem::replace(&mut has_subject, true) => {
                out.subject = if value.is_empty() { String::new() } else { subject::canonical(value)? };
            }
            "hash" if !std::mem::replace(&mut has_hash, true) => {
                if value.len() != 64 || !value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return None;
                }
                out.fingerprint = value.to_ascii_lowercase();
            }
            "cert" if whole.is_none() => whole = Some(from_escaped(value)?),
            "subject" | "hash" | "cert" => return None,
            "uri" => out.uris.extend(nonempty(value)),
            "dns" => out.dns_names.extend(nonempty(&value.to_ascii_lowercase())),
            // `By` is the proxy itself, `Chain` whom it trusted; keys of the future say nothing about the client to us.
            _ => {}
        }
    }
    if out.uris.len() > NAMES_MAX || out.dns_names.len() > NAMES_MAX {
        return None;
    }
    out.spiffe_id = mtls::spiffe_id(&out.uris);
    match whole {
        // The certificate says it all, and must not say anything else than the rest.
        Some(certificate) => {
            let agrees = (!has_hash || out.fingerprint == certificate.fingerprint)
                && (!has_subject || out.subject == certificate.subject)
                && out.uris.iter().all(|uri| certificate.uris.contains(uri))
                && out.dns_names.iter().all(|name| certificate.dns_names.contains(name));
            agrees.then_some(certificate)
        }
        None => Some(out),
    }
}

fn nonempty(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

/// Parts between separators outside of quotes; inside, a backslash takes the next character's meaning away.
fn parts(text: &str, separator: char) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    let (mut start, mut quoted) = (0, false);
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' if quoted => drop(characters.next()?),
            '"' => quoted = !quoted,
            character if character == separator && !quoted => {
                parts.push(text.get(start..at)?);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text.get(start..)?);
    (!quoted).then_some(parts)
}

/// The inside of a value's quotes, or a value that needs none.
fn unquoted(value: &str) -> Option<(&str, bool)> {
    match value.strip_prefix('"') {
        None => (!value.contains(['"', '\\', ' '])).then_some((value, false)),
        Some(rest) => {
            let inside = rest.strip_suffix('"')?;
            // One pair only: `"a""b"` is nobody's value.
            let mut characters = inside.chars();
            while let Some(character) = characters.next() {
                match character {
                    '"' => return None,
                    '\\' => drop(characters.next()?),
                    _ => {}
                }
            }
            Some((inside, true))
        }
    }
}

#[cfg(test)]
mod tests;
