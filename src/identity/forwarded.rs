//! Client certificates that a proxy in front has verified: its headers, believed from its own addresses alone.
//!
//! From any other address the headers are bytes like any others (they are not even read), and only the header that the
//! configuration names is read at all: what a proxy does not set itself, it may pass on from the client. Beside
//! `X-SSL-Client-Cert` and `X-SSL-Client-S-DN` a second header decides, `X-SSL-Client-Verify`: the proxy must set or remove
//! BOTH on every request, or a client says of itself that it was verified.

use std::collections::BTreeSet;
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

/// What Envoy writes once for each name of the proxy's own certificate (`By`) or the client's. None of them is believed.
const REPEATED: [&str; 3] = ["by", "uri", "dns"];

const UNREADABLE: &str = "is there twice or cannot be read";

const ELEMENTS: &str = "has more than one element, of which any could be the client's own: Envoy must replace what clients \
                        send (`forward_client_cert_details: SANITIZE_SET`)";

const REPEATS: &str = "has a key twice that Envoy writes once";

const NO_HASH: &str = "has no `Hash`";

const NO_CERTIFICATE: &str = "has no `Cert`, and names without it are not believed: Envoy must send the whole certificate \
                              (`set_current_client_cert_details: { cert: true }`)";

const DISAGREES: &str = "has a `Cert` that its `Hash` is not of";

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
    /// `X-Forwarded-Client-Cert` as Envoy writes it: one element with `Hash` and `Cert`.
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
            (CertificateHeader::Envoy, Some(text)) => envoy(text).map_err(|reason| unreadable(name, reason))?,
            (CertificateHeader::Pem | CertificateHeader::Subject, text) => {
                // nginx says `NONE` where there was no certificate, and leaves out headers without a value.
                let text = match (header(request, "x-ssl-client-verify")?, text) {
                    (Some("SUCCESS"), Some(text)) => text,
                    (None | Some("NONE"), None) => return Ok(None),
                    _ => return Err(Error::invalid("the proxy in front has not verified the client certificate")),
                };
                let certificate = match self.header {
                    CertificateHeader::Pem => from_escaped(text),
                    _ => subject::canonical(text).map(named),
                };
                certificate.ok_or_else(|| unreadable(name, UNREADABLE))?
            }
        };
        Ok(Some(certificate))
    }
}

fn header<'a>(request: &'a Request, name: &str) -> Result<Option<&'a str>, Error> {
    let value = request.single_header(name).map_err(|()| unreadable(name, UNREADABLE))?;
    Ok(value.map(str::trim).filter(|value| !value.is_empty()))
}

fn unreadable(name: &str, reason: &str) -> Error {
    Error::invalid(format!("the `{name}` header of the proxy in front {reason}"))
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

/// The certificate that Envoy has seen. Envoy writes the URI and DNS names of a certificate without quotes or escapes, so
/// that a client can have a name with `;` or `,` and what looks like more keys and elements behind it. Hence only the whole
/// certificate is believed, held to its hash (Envoy writes that of every certificate, and before any name); of two
/// elements, or two of either, nobody can say which is Envoy's.
fn envoy(text: &str) -> Result<ClientCertificate, &'static str> {
    if text.contains(char::is_control) {
        return Err(UNREADABLE);
    }
    let elements = parts(text, ',').ok_or(UNREADABLE)?;
    let [element] = elements.as_slice() else { return Err(ELEMENTS) };
    let mut seen = BTreeSet::new();
    let (mut hash, mut whole) = (None, None);
    for pair in parts(element, ';').ok_or(UNREADABLE)? {
        let (key, value) = pair.split_once('=').ok_or(UNREADABLE)?;
        let key = key.to_ascii_lowercase();
        let (value, quoted) = unquoted(value).ok_or(UNREADABLE)?;
        // The subject is always quoted; its escapes are those of RFC 4514, and Envoy adds none. Other values have none.
        let good = if key == "subject" { quoted } else { !value.contains('\\') };
        if !good || !key.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(UNREADABLE);
        }
        match key.as_str() {
            "hash" => hash = Some(value),
            "cert" => whole = Some(value),
            // What else there is says nothing that the certificate does not say.
            _ => {}
        }
        if !REPEATED.contains(&key.as_str()) && !seen.insert(key) {
            return Err(REPEATS);
        }
    }
    let hash = hash.ok_or(NO_HASH)?;
    let certificate = from_escaped(whole.ok_or(NO_CERTIFICATE)?).ok_or(UNREADABLE)?;
    if !hash.eq_ignore_ascii_case(&certificate.fingerprint) {
        return Err(DISAGREES);
    }
    Ok(certificate)
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
pub(super) mod tests;
