//! Client certificates: what the leaf says, and the rule that makes a principal of it.
//!
//! The chain has been verified by the listener. The common name is never taken for a name: only the fingerprint, the
//! subject alternative names and the subject as a whole are compared.

use std::time::SystemTime;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::exchange::ClientCertificate;
use crate::principal::Claims;
use crate::principal::Kind;
use crate::principal::Method;

use super::CertificateMatch;
use super::CertificateRule;
use super::Pattern;
use super::Tenant;
use super::subject;

const SPIFFE: &str = "spiffe://";

/// SPIFFE ID specification, section 2.3.
const SPIFFE_BYTES_MAX: usize = 2048;

/// The end of a certificate of which only names are known, because a proxy in front has seen it and not we.
pub(super) const NOT_AFTER_UNKNOWN: i64 = i64::MAX;

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
        subject: subject::write(certificate.subject()),
        issuer: subject::write(certificate.issuer()),
        fingerprint: super::hex(&super::sha256(leaf)),
        not_after: certificate.validity().not_after.timestamp(),
        ..ClientCertificate::default()
    };
    let names = certificate.subject_alternative_name().map_err(|_| CertificateError::Malformed)?;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        if let GeneralName::DNSName(text) | GeneralName::RFC822Name(text) | GeneralName::URI(text) = name
            && text.contains(char::is_control)
        {
            return Err(CertificateError::Malformed);
        }
        match name {
            GeneralName::DNSName(name) => out.dns_names.push(name.to_ascii_lowercase()),
            GeneralName::RFC822Name(name) => out.emails.push(email(name)),
            GeneralName::URI(uri) => out.uris.push((*uri).to_owned()),
            GeneralName::Invalid(..) => return Err(CertificateError::Malformed),
            _ => {}
        }
    }
    out.spiffe_id = spiffe_id(&out.uris);
    Ok(out)
}

/// The domain of an address is the same in any case, the local part is not.
fn email(name: &str) -> String {
    match name.rsplit_once('@') {
        Some((local, domain)) => format!("{local}@{}", domain.to_ascii_lowercase()),
        None => name.to_owned(),
    }
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
    let (rule, named) = rules.iter().find_map(|rule| Some((rule, matched(&rule.matches, certificate)?)))?;
    let tenant = match &rule.tenant {
        Tenant::None => None,
        Tenant::Fixed(name) => Some(name.clone()),
        // INVARIANT: such a rule is over a pattern that names the tenant; without one the certificate names nobody.
        Tenant::Named => Some(named.tenant?),
    };
    Some(Claims {
        kind: Kind::Service,
        subject: named.subject,
        issuer: "mtls".into(),
        tenant,
        scopes: rule.scopes.clone(),
        roles: rule.roles.clone(),
        groups: rule.groups.clone(),
        method: Method::Certificate,
        mtls: true,
        expires_at: end(certificate),
        ..Claims::default()
    })
}

/// When the certificate ends, where that is known.
fn end(certificate: &ClientCertificate) -> Option<SystemTime> {
    if certificate.not_after == NOT_AFTER_UNKNOWN {
        return None;
    }
    let not_after = u64::try_from(certificate.not_after).unwrap_or(0);
    SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(not_after))
}

/// What of a certificate a rule matches: this names the principal, and perhaps its tenant.
struct Named {
    subject: String,
    tenant: Option<String>,
}

pub(super) fn matches(rule: &CertificateMatch, certificate: &ClientCertificate) -> bool {
    matched(rule, certificate).is_some()
}

fn matched(rule: &CertificateMatch, certificate: &ClientCertificate) -> Option<Named> {
    // A certificate for `*.example.com` names no client in particular.
    let dns = || certificate.dns_names.iter().filter(|name| !name.contains('*'));
    match rule {
        CertificateMatch::Dns(pattern) => first(pattern, dns()),
        CertificateMatch::Email(pattern) => first(pattern, certificate.emails.iter()),
        CertificateMatch::Spiffe(pattern) => first(pattern, certificate.spiffe_id.iter()),
        CertificateMatch::Uri(pattern) => first(pattern, certificate.uris.iter()),
        CertificateMatch::Fingerprint(print) => {
            let same = !print.is_empty() && print.eq_ignore_ascii_case(&certificate.fingerprint);
            same.then(|| Named { subject: format!("sha256:{}", certificate.fingerprint), tenant: None })
        }
        CertificateMatch::Subject(subject) => {
            let tenant = subject.find(&certificate.subject)?;
            Some(Named { subject: certificate.subject.clone(), tenant })
        }
    }
}

/// The first name that matches. Names that say different tenants leave in doubt whose it is, so that it is nobody's.
fn first<'a>(pattern: &Pattern, names: impl Iterator<Item = &'a String>) -> Option<Named> {
    let mut found: Option<Named> = None;
    for name in names {
        let Some(matched) = pattern.find(name) else { continue };
        match &found {
            Some(known) if known.tenant.as_deref() != matched.tenant => return None,
            Some(_) => {}
            None => found = Some(Named { subject: name.clone(), tenant: matched.tenant.map(str::to_owned) }),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::Names;
    use super::super::Subject;
    use super::*;
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
        let scopes = ["mcp.read".to_owned()].into();
        CertificateRule {
            matches,
            scopes,
            roles: ["agent".to_owned()].into(),
            groups: ["ops".to_owned()].into(),
            tenant: Tenant::Fixed("contoso".into()),
        }
    }

    fn dns_names(text: &str) -> CertificateMatch {
        CertificateMatch::Dns(Pattern::new(text, Names::Dns).expect("pattern"))
    }

    fn spiffe(text: &str) -> CertificateMatch {
        CertificateMatch::Spiffe(Pattern::new(text, Names::Uri).expect("pattern"))
    }

    fn subject(text: &str) -> CertificateMatch {
        CertificateMatch::Subject(Subject::new(text).expect("subject"))
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
        let one = read(|params| params.subject_alt_names = vec![uri("spiffe://prod.example.com/agents/one")]);
        let who = |matches: CertificateMatch, certificate: &ClientCertificate| {
            claims(&[rule(matches)], certificate).map(|claims| claims.subject)
        };
        let prod = || spiffe("spiffe://prod.example.com/agents/*");
        assert_eq!(who(prod(), &one).as_deref(), Some("spiffe://prod.example.com/agents/one"));
        let other = read(|params| params.subject_alt_names = vec![uri("spiffe://test.example.com/agents/one")]);
        assert_eq!(who(prod(), &other), None, "another trust domain");

        let named = || dns_names("*.example.com");
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
        assert_eq!(who(subject("CN=agent.example.com"), &agent).as_deref(), Some("CN=agent.example.com"));
        assert_eq!(who(subject("CN=*"), &ClientCertificate::default()), None);
        assert_eq!(who(CertificateMatch::Fingerprint(String::new()), &one), None);
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let agent = read(|params| params.subject_alt_names = vec![dns("agent.example.com")]);
        let mut second = rule(dns_names("agent.*"));
        second.scopes.clear();
        let rules = [rule(dns_names("other.*")), second, rule(dns_names("*"))];
        let claims = claims(&rules, &agent).expect("matched");
        assert!(claims.scopes.is_empty());
        assert_eq!((claims.kind, claims.method, claims.mtls), (Kind::Service, Method::Certificate, true));
        assert_eq!((claims.issuer.as_str(), claims.tenant.as_deref()), ("mtls", Some("contoso")));
        assert!(claims.expires_at.is_some());
    }

    #[test]
    fn a_rule_can_take_the_tenant_from_the_name() {
        let rules = [CertificateRule {
            tenant: Tenant::Named,
            ..rule(spiffe("spiffe://prod.example.com/tenant/{tenant}/agent/*"))
        }];
        let of = |id: &str| {
            let certificate = read(|params| params.subject_alt_names = vec![uri(id)]);
            claims(&rules, &certificate).map(|claims| (claims.subject, claims.tenant.unwrap_or_default()))
        };
        let contoso = "spiffe://prod.example.com/tenant/contoso/agent/one";
        assert_eq!(of(contoso), Some((contoso.to_owned(), "contoso".to_owned())));
        assert_eq!(of("spiffe://test.example.com/tenant/contoso/agent/one"), None);
        assert_eq!(of("spiffe://prod.example.com/tenant/contoso/agent/one/two"), None);

        let named = [CertificateRule { tenant: Tenant::Named, ..rule(dns_names("*.{tenant}.example.com")) }];
        let both = |names: &[&str]| {
            let certificate = read(|params| params.subject_alt_names = names.iter().map(|name| dns(name)).collect());
            claims(&named, &certificate).map(|claims| (claims.subject, claims.tenant.unwrap_or_default()))
        };
        let one = ("a.contoso.example.com".to_owned(), "contoso".to_owned());
        assert_eq!(both(&["a.contoso.example.com", "b.contoso.example.com", "c.other"]), Some(one));
        assert_eq!(both(&["a.contoso.example.com", "b.fabrikam.example.com"]), None, "whose is it?");
    }

    #[test]
    fn uris_and_addresses_are_matched_and_roles_and_groups_given() {
        let agent = read(|params| {
            params.subject_alt_names = vec![
                uri("https://id.example.com/agents/7"),
                SanType::Rfc822Name("Bot@Example.COM".try_into().expect("IA5")),
            ];
        });
        let pattern = |text: &str, names| Pattern::new(text, names).expect("pattern");
        let by_uri =
            claims(&[rule(CertificateMatch::Uri(pattern("https://id.example.com/agents/*", Names::Uri)))], &agent);
        let by_uri = by_uri.expect("matched");
        assert_eq!(by_uri.subject, "https://id.example.com/agents/7");
        assert_eq!((by_uri.roles, by_uri.groups), (["agent".to_owned()].into(), ["ops".to_owned()].into()));
        let by_mail = claims(&[rule(CertificateMatch::Email(pattern("*@example.com", Names::Email)))], &agent);
        assert_eq!(by_mail.expect("matched").subject, "Bot@example.com");
        assert!(claims(&[rule(CertificateMatch::Email(pattern("bot@example.com", Names::Email)))], &agent).is_none());
        assert!(claims(&[rule(spiffe("**"))], &agent).is_none(), "no SPIFFE id");
    }
}
