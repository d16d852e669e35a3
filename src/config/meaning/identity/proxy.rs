//! A proxy in front, as meant; and whether anybody shows client certificates at all.

use crate::config::book::Book;
use crate::config::book::Key;
use crate::config::file;
use crate::config::scalar::short;
use crate::identity::CertificateMatch;
use crate::identity::CertificateRule;
use crate::identity::Config;
use crate::identity::Demand;
use crate::identity::forwarded::CertificateHeader;
use crate::identity::forwarded::NetworkError;
use crate::identity::forwarded::Place;
use crate::identity::forwarded::Proxy;
use crate::server::Address;
use crate::server::ClientAuth;
use crate::server::Listener;

const FROM: &str = "is missing: without it anyone could name themselves; say where the proxy connects from, for example \
                    `from: [10.0.0.0/8]` or `from: unix`";

const HEADER: &str = "is missing: name the header that the proxy sets or removes on every request, \
                      `x-forwarded-client-cert` (Envoy), `x-ssl-client-cert` or `x-ssl-client-s-dn` (nginx, HAProxy); for \
                      the latter two it must set or remove both that header and `x-ssl-client-verify`";

pub(super) fn proxy(book: &mut Book<'_>, key: &Key, written: file::Proxy, listeners: &[Listener]) -> Option<Proxy> {
    let header = written.certificate_header.map(|header| match header {
        file::CertificateHeader::Envoy => CertificateHeader::Envoy,
        file::CertificateHeader::Pem => CertificateHeader::Pem,
        file::CertificateHeader::Subject => CertificateHeader::Subject,
    });
    if header.is_none() {
        book.missing(&key.at("certificate_header"), HEADER);
    }
    let texts = written.from.unwrap_or_default().0;
    let from_key = key.at("from");
    if texts.is_empty() {
        book.missing(&from_key, FROM);
        return None;
    }
    let mut from = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let key = if texts.len() == 1 { from_key.clone() } else { from_key.index(index) };
        if text == "unix" {
            if !listeners.iter().any(|listener| matches!(listener.address, Address::Unix(..)))
                && !book.touched(&Key::default().at("listeners"))
            {
                book.error(&key, "no listener is a Unix socket");
            }
            from.push(Place::Unix);
            continue;
        }
        match text.parse() {
            Ok(network) => from.push(Place::Network(network)),
            Err(error @ NetworkError::Malformed) => book.error(&key, format!("`{}` {error}", short(text))),
            Err(error) => book.error(&key, format!("`{text}` {error}")),
        }
    }
    Some(Proxy { from, header: header? })
}

/// Rules need certificates, as bound tokens do, and a proxy needs something that looks at what it says.
pub(super) fn who_shows_certificates(
    book: &mut Book<'_>,
    root: &Key,
    listeners: &[Listener],
    (certificates, proxy): (Option<Key>, Option<Key>),
    meant: &Config,
) {
    let identity = root.at("identity");
    if book.touched(&root.at("listeners")) || book.touched(&identity) {
        return;
    }
    let asked =
        listeners.iter().any(|listener| listener.tls.as_ref().is_some_and(|tls| tls.client_auth != ClientAuth::None));
    let subject_only = meant.proxy.as_ref().is_some_and(|proxy| proxy.header == CertificateHeader::Subject);
    match (&certificates, &proxy) {
        (Some(key), None) if !asked => book.error(
            key,
            "no listener asks for client certificates: give one `tls: { client_ca: …, client_auth: optional }`, or say \
             which `proxy` in front does",
        ),
        (None, Some(key)) if meant.issuers.is_empty() => book.error(
            key,
            "says what certificates clients have shown, and there are no rules for them: add \
             `- certificates: [{ subject: \"CN=agent,O=Example\", scopes: [mcp.read] }]`",
        ),
        _ => {}
    }
    let by_subject = |rule: &CertificateRule| matches!(rule.matches, CertificateMatch::Subject(_));
    if let Some(key) = proxy.as_ref().filter(|_| subject_only && !asked)
        && !meant.certificates.iter().all(by_subject)
    {
        book.warn(
            &key.at("certificate_header"),
            "tells the subject alone, so that only `subject` rules can match: for the others use `x-ssl-client-cert`",
        );
    }
    let bound = meant.issuers.iter().find(|issuer| issuer.certificate_bound == Demand::Required);
    if let Some(issuer) = bound.filter(|_| !asked && (proxy.is_none() || subject_only)) {
        book.error(
            &identity,
            format!(
                "`certificate_bound: required` of `{}` lets nobody in: no listener asks for client certificates (`client_ca`, \
                 `client_auth`), and no `proxy` in front tells them whole",
                short(&issuer.issuer)
            ),
        );
    }
}
