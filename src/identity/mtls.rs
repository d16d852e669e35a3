//! Client certificates: what the leaf says, and the rule that makes a principal of it.
//!
//! The chain has been verified by the listener. The common name is never taken for a name: only the fingerprint, the
//! subject alternative names and the subject as a whole are compared.

use std::time::SystemTime;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::x509::AttributeTypeAndValue;
use x509_parser::x509::X509Name;

use crate::exchange::ClientCertificate;
use crate::principal::Claims;
use crate::principal::Kind;
use crate::principal::Method;

use super::CertificateMatch;
use super::CertificateRule;

const SPIFFE: &str = "spiffe://";

/// SPIFFE ID specification, section 2.3.
const SPIFFE_BYTES_MAX: usize = 2048;

/// Why a leaf is not taken as a client certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CertificateError {
    #[error("the client certificate is malformed")]
    Malformed,
    #[error("the client certificate is not for client authentication")]
    Usage,
}

/// What a leaf in DER says. Its chain must have been verified.
pub fn certificate_from_der(leaf: &[u8]) -> Result<ClientCertificate, CertificateError> {
    let (rest, certificate) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::Malformed)?;
    if !rest.is_empty() {
        return Err(CertificateError::Malformed);
    }
    let usage = certificate.extended_key_usage().map_err(|_| CertificateError::Malformed)?;
    if usage.is_some_and(|usage| !usage.value.client_auth && !usage.value.any) {
        return Err(CertificateError::Usage);
    }
    let mut out = ClientCertificate {
        subject: distinguished_name(certificate.subject()),
        issuer: distinguished_name(certificate.issuer()),
        fingerprint: super::hex(&super::sha256(leaf)),
        not_after: certificate.validity().not_after.timestamp(),
        ..ClientCertificate::default()
    };
    let names = certificate.subject_alternative_name().map_err(|_| CertificateError::Malformed)?;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::DNSName(name) => out.dns_names.push(name.to_ascii_lowercase()),
            GeneralName::RFC822Name(name) => out.emails.push((*name).to_owned()),
            GeneralName::URI(uri) => out.uris.push((*uri).to_owned()),
            GeneralName::Invalid(..) => return Err(CertificateError::Malformed),
            _ => {}
        }
    }
    out.spiffe_id = spiffe_id(&out.uris);
    Ok(out)
}

/// X.509-SVID section 2: exactly one URI, and it is the SPIFFE id. With a second URI of any kind it is no SVID.
fn spiffe_id(uris: &[String]) -> Option<String> {
    match uris {
        [uri] if is_spiffe_id(uri) => Some(uri.clone()),
        _ => None,
    }
}

/// SPIFFE ID section 2: no user, port, query or fragment, no percent-encoding, no empty or dot segments.
fn is_spiffe_id(uri: &str) -> bool {
    let Some(rest) = uri.strip_prefix(SPIFFE).filter(|_| uri.len() <= SPIFFE_BYTES_MAX) else { return false };
    let mut segments = rest.split('/');
    let domain = segments.next().unwrap_or_default();
    let in_domain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    let in_path = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let good = |segment: &str| !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(in_path);
    (1..=255).contains(&domain.len()) && domain.bytes().all(in_domain) && segments.all(good)
}

/// A connection can outlive the certificate it was made with.
pub(super) fn is_current(certificate: &ClientCertificate, at: SystemTime) -> bool {
    super::seconds(at) <= certificate.not_after
}

/// The principal that the first matching rule makes of a certificate.
pub(super) fn claims(rules: &[CertificateRule], certificate: &ClientCertificate) -> Option<Claims> {
    let (rule, subject) = rules.iter().find_map(|rule| Some((rule, matched(&rule.matches, certificate)?)))?;
    let not_after = u64::try_from(certificate.not_after).unwrap_or(0);
    Some(Claims {
        kind: Kind::Service,
        subject,
        issuer: "mtls".into(),
        tenant: rule.tenant.clone(),
        scopes: rule.scopes.clone(),
        method: Method::Certificate,
        mtls: true,
        expires_at: SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(not_after)),
        ..Claims::default()
    })
}

/// What of the certificate a rule matches: this names the principal.
fn matched(rule: &CertificateMatch, certificate: &ClientCertificate) -> Option<String> {
    match rule {
        CertificateMatch::Fingerprint(print) => {
            print.eq_ignore_ascii_case(&certificate.fingerprint).then(|| format!("sha256:{}", certificate.fingerprint))
        }
        // A certificate for `*.example.com` names no client in particular.
        CertificateMatch::Dns(glob) => {
            certificate.dns_names.iter().find(|name| !name.contains('*') && glob.is_match(name)).cloned()
        }
        CertificateMatch::Spiffe(glob) => certificate.spiffe_id.clone().filter(|id| glob.is_match(id)),
        CertificateMatch::Subject(subject) => {
            (!subject.is_empty() && *subject == certificate.subject).then(|| certificate.subject.clone())
        }
    }
}

/// RFC 4514: the last part first, parted by commas.
fn distinguished_name(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> =
        name.iter_rdn().map(|part| part.iter().map(attribute).collect::<Vec<_>>().join("+")).collect();
    parts.reverse();
    parts.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    // RFC 4514 section 3, and two that OpenSSL writes by name.
    let name = match oid.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => return format!("{oid}=#{}", super::hex(&encoded(attribute))),
    };
    match attribute.as_str() {
        Ok(value) => format!("{name}={}", escaped(value)),
        Err(_) => format!("{name}=#{}", super::hex(&encoded(attribute))),
    }
}

/// The value in DER again, for types that have no text form.
fn encoded(attribute: &AttributeTypeAndValue<'_>) -> Vec<u8> {
    let value = attribute.attr_value();
    let tag = u8::try_from(value.header.tag().0).unwrap_or(0x1f);
    let first = (value.header.class() as u8) << 6 | u8::from(value.header.constructed()) << 5 | tag;
    let mut out = vec![first];
    let length = value.data.len();
    if let Ok(short @ 0..0x80) = u8::try_from(length) {
        out.push(short);
    } else {
        let bytes: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
        out.push(0x80 | u8::try_from(bytes.len()).unwrap_or(0));
        out.extend(bytes);
    }
    out.extend_from_slice(value.data);
    out
}

/// RFC 4514 section 2.4; control characters as hex pairs, so that no name breaks a line.
fn escaped(value: &str) -> String {
    use std::fmt::Write;
    let last = value.chars().count().saturating_sub(1);
    let mut out = String::with_capacity(value.len());
    for (index, character) in value.chars().enumerate() {
        match character {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => out.extend(['\\', character]),
            '#' if index == 0 => out.push_str("\\#"),
            ' ' if index == 0 || index == last => out.push_str("\\ "),
            character if character.is_control() => {
                let mut buffer = [0; 4];
                for byte in character.encode_utf8(&mut buffer).bytes() {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "\\{byte:02x}");
                }
            }
            character => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use globset::Glob;
    use rcgen::CertificateParams;
    use rcgen::DnType;
    use rcgen::ExtendedKeyUsagePurpose;
    use rcgen::KeyPair;
    use rcgen::SanType;

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().expect("IA5"))
    }

    fn dns(text: &str) -> SanType {
        SanType::DnsName(text.try_into().expect("IA5"))
    }

    fn leaf(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "agent.example.com");
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        change(&mut params);
        params.self_signed(&key).expect("certificate").der().to_vec()
    }

    fn read(change: impl FnOnce(&mut CertificateParams)) -> ClientCertificate {
        certificate_from_der(&leaf(change)).expect("certificate")
    }

    fn rule(matches: CertificateMatch) -> CertificateRule {
        CertificateRule { matches, scopes: ["mcp.read".to_owned()].into(), tenant: Some("contoso".into()) }
    }

    fn glob(text: &str) -> globset::GlobMatcher {
        Glob::new(text).expect("glob").compile_matcher()
    }

    #[test]
    fn a_leaf_is_read_whole() {
        let der = leaf(|params| {
            params.distinguished_name.push(DnType::OrganizationName, "Example, \"Inc\" + Sons ");
            params.distinguished_name.push(DnType::CountryName, "DE");
            params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 65]), "nobody");
            params.subject_alt_names = vec![
                dns("Agent.Example.COM"),
                SanType::Rfc822Name("agent@example.com".try_into().expect("IA5")),
                uri("spiffe://prod.example.com/agents/one"),
            ];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        });
        let certificate = certificate_from_der(&der).expect("certificate");
        assert_eq!(
            certificate.subject,
            r#"2.5.4.65=#0c066e6f626f6479,C=DE,O=Example\, \"Inc\" \+ Sons\ ,CN=agent.example.com"#
        );
        assert_eq!(certificate.issuer, certificate.subject);
        assert_eq!(certificate.dns_names, ["agent.example.com"]);
        assert_eq!(certificate.emails, ["agent@example.com"]);
        assert_eq!(certificate.spiffe_id.as_deref(), Some("spiffe://prod.example.com/agents/one"));
        assert_eq!(certificate.not_after, 2_208_988_800);
        assert_eq!(
            certificate.fingerprint,
            super::super::hex(ring::digest::digest(&ring::digest::SHA256, &der).as_ref())
        );
    }

    #[test]
    fn only_one_well_formed_spiffe_uri_is_an_id() {
        let one = |text: &str| read(|params| params.subject_alt_names = vec![uri(text)]).spiffe_id;
        assert!(one("spiffe://prod.example.com").is_some());
        for bad in [
            "spiffe://",
            "spiffe:///agents",
            "spiffe://Prod.example.com/a",
            "spiffe://user@prod.example.com/a",
            "spiffe://prod.example.com:443/a",
            "spiffe://prod.example.com/a/",
            "spiffe://prod.example.com//a",
            "spiffe://prod.example.com/a/../b",
            "spiffe://prod.example.com/%61",
            "spiffe://prod.example.com/a?b",
            "spiffe://prod.example.com/a#b",
            "https://prod.example.com/a",
        ] {
            assert_eq!(one(bad), None, "{bad}");
        }
        let two = read(|params| params.subject_alt_names = vec![uri("spiffe://a/b"), uri("spiffe://a/c")]);
        assert_eq!((two.spiffe_id, two.uris.len()), (None, 2));
        let mixed = read(|params| params.subject_alt_names = vec![uri("https://a/b"), uri("spiffe://a/c")]);
        assert_eq!(mixed.spiffe_id, None);
    }

    #[test]
    fn a_server_certificate_and_garbage_are_refused() {
        let server = leaf(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
        assert_eq!(certificate_from_der(&server), Err(CertificateError::Usage));
        assert_eq!(certificate_from_der(b"garbage"), Err(CertificateError::Malformed));
        let mut longer = leaf(|_| {});
        longer.push(0);
        assert_eq!(certificate_from_der(&longer), Err(CertificateError::Malformed));
    }

    #[test]
    fn rules_match_what_they_name_and_never_the_common_name() {
        let spiffe = read(|params| params.subject_alt_names = vec![uri("spiffe://prod.example.com/agents/one")]);
        let who = |matches: CertificateMatch, certificate: &ClientCertificate| {
            claims(&[rule(matches)], certificate).map(|claims| claims.subject)
        };
        let prod = || CertificateMatch::Spiffe(glob("spiffe://prod.example.com/agents/*"));
        assert_eq!(who(prod(), &spiffe).as_deref(), Some("spiffe://prod.example.com/agents/one"));
        let other = read(|params| params.subject_alt_names = vec![uri("spiffe://test.example.com/agents/one")]);
        assert_eq!(who(prod(), &other), None, "another trust domain");

        let named = || CertificateMatch::Dns(glob("*.example.com"));
        assert_eq!(who(named(), &read(|_| {})), None, "the common name is no DNS name");
        assert_eq!(
            who(named(), &read(|params| params.subject_alt_names = vec![dns("*.example.com")])),
            None,
            "a wildcard"
        );
        let agent = read(|params| params.subject_alt_names = vec![dns("AGENT.example.com")]);
        assert_eq!(who(named(), &agent).as_deref(), Some("agent.example.com"));

        let print = CertificateMatch::Fingerprint(agent.fingerprint.clone());
        assert_eq!(who(print.clone(), &agent), Some(format!("sha256:{}", agent.fingerprint)));
        assert_eq!(who(print, &other), None);
        assert_eq!(
            who(CertificateMatch::Subject("CN=agent.example.com".into()), &agent).as_deref(),
            Some("CN=agent.example.com")
        );
        assert_eq!(who(CertificateMatch::Subject("agent.example.com".into()), &agent), None);
        assert_eq!(who(CertificateMatch::Subject(String::new()), &ClientCertificate::default()), None);
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let agent = read(|params| params.subject_alt_names = vec![dns("agent.example.com")]);
        let mut second = rule(CertificateMatch::Dns(glob("agent.*")));
        second.scopes.clear();
        let rules = [rule(CertificateMatch::Dns(glob("other.*"))), second, rule(CertificateMatch::Dns(glob("*")))];
        let claims = claims(&rules, &agent).expect("matched");
        assert!(claims.scopes.is_empty());
        assert_eq!((claims.kind, claims.method, claims.mtls), (Kind::Service, Method::Certificate, true));
        assert_eq!((claims.issuer.as_str(), claims.tenant.as_deref()), ("mtls", Some("contoso")));
        assert!(claims.expires_at.is_some());
    }
}
