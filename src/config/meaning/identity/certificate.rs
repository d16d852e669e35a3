//! A rule over client certificates, as meant.

use std::collections::BTreeSet;

use crate::config::book::Book;
use crate::config::book::Key;
use crate::config::file;
use crate::config::scalar::short;
use crate::identity::CertificateMatch;
use crate::identity::CertificateRule;
use crate::identity::Names;
use crate::identity::Pattern;
use crate::identity::Subject;
use crate::identity::Tenant;

const TENANT_BYTES_MAX: usize = 256;

pub(super) fn rule(book: &mut Book<'_>, key: &Key, rule: file::CertificateRule) -> Option<CertificateRule> {
    let scopes = super::scopes(book, key, rule.scopes);
    let roles = words(book, &key.at("roles"), rule.roles);
    let groups = words(book, &key.at("groups"), rule.groups);
    let given = [
        ("spiffe", rule.spiffe),
        ("uri", rule.uri),
        ("dns", rule.dns),
        ("email", rule.email),
        ("fingerprint", rule.fingerprint),
        ("subject", rule.subject),
    ];
    let mut given = given.into_iter().filter_map(|(name, text)| Some((name, text?)));
    let (Some((name, text)), None) = (given.next(), given.next()) else {
        if !book.touched(key) {
            book.error(key, "needs exactly one of `spiffe`, `uri`, `dns`, `email`, `fingerprint` and `subject`");
        }
        return None;
    };
    let matches = matches(book, &key.at(name), name, text)?;
    let tenant = match rule.tenant {
        Some(_) if matches.names_tenant() => {
            book.error(&key.at("tenant"), "is said by `{tenant}` already: leave out one of them");
            return None;
        }
        None if matches.names_tenant() => Tenant::Named,
        None => Tenant::None,
        // `|` separates the parts of a principal's key.
        Some(name) if !fits(&name) || name.contains('|') => {
            book.error(&key.at("tenant"), "is not 1 to 256 characters without `|`");
            return None;
        }
        Some(name) => Tenant::Fixed(name),
    };
    Some(CertificateRule { matches, scopes, roles, groups, tenant })
}

pub(in crate::config::meaning) fn matches(
    book: &mut Book<'_>,
    key: &Key,
    name: &str,
    text: String,
) -> Option<CertificateMatch> {
    let mut pattern = |text: &str, names| match Pattern::new(text, names) {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            book.error(key, error.to_string());
            None
        }
    };
    match name {
        "dns" => pattern(&text.to_ascii_lowercase(), Names::Dns).map(CertificateMatch::Dns),
        "email" => {
            let text = match text.rsplit_once('@') {
                Some((local, domain)) => format!("{local}@{}", domain.to_ascii_lowercase()),
                None => text,
            };
            pattern(&text, Names::Email).map(CertificateMatch::Email)
        }
        "uri" => pattern(&text, Names::Uri).map(CertificateMatch::Uri),
        "spiffe" => {
            let pattern = pattern(&text, Names::Uri).map(CertificateMatch::Spiffe);
            if !text.starts_with("spiffe://") {
                book.error(key, format!("`{}` does not begin with `spiffe://`", short(&text)));
            }
            pattern
        }
        "fingerprint" => {
            let hex: String = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
            if hex.len() != 64 || !hex.chars().all(|c| c.is_ascii_hexdigit()) {
                book.error(
                    key,
                    "is not a SHA-256 fingerprint: 64 hex digits, for example from `openssl x509 -fingerprint -sha256`",
                );
            }
            Some(CertificateMatch::Fingerprint(hex))
        }
        _ => {
            let subject = Subject::new(&text);
            if subject.is_none() {
                book.error(
                    key,
                    format!(
                        "`{}` is not a subject such as `CN=agent,O=Example` (RFC 4514; `openssl x509 -subject -nameopt RFC2253`)",
                        short(&text)
                    ),
                );
            }
            subject.map(CertificateMatch::Subject)
        }
    }
}

/// Roles and groups: what grants may name.
fn words(book: &mut Book<'_>, key: &Key, words: Option<Vec<String>>) -> BTreeSet<String> {
    let words = words.unwrap_or_default();
    for (index, word) in words.iter().enumerate() {
        if !fits(word) {
            book.error(&key.index(index), "is not 1 to 256 characters");
        }
    }
    words.into_iter().collect()
}

fn fits(text: &str) -> bool {
    (1..=TENANT_BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control)
}
