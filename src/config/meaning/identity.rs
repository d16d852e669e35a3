//! `identity`, as meant: issuers, API keys, certificate rules, anonymous callers.

use std::collections::BTreeSet;
use std::time::Duration;

use url::Url;

use super::edge;
use super::is_loopback;
use super::login::login;
use crate::config::book::Book;
use crate::config::book::Key;
use crate::config::file;
use crate::config::file::Identity;
use crate::config::scalar::Strings;
use crate::config::scalar::short;
use crate::identity::CertificateMatch;
use crate::identity::CertificateRule;
use crate::identity::Config;
use crate::identity::Issuer;
use crate::identity::Keys;
use crate::server::ClientAuth;
use crate::server::Listener;

/// The last part of the path of every issuer that `wardgate demo` makes. Its key is open to everybody on the machine.
const DEMO_ISSUER: &str = "wardgate-demo-issuer";

/// Clocks that are kept by NTP differ by less.
const LEEWAY: Duration = Duration::from_secs(30);
/// What `identity` accepts at most: a longer one would keep expired tokens alive.
const LEEWAY_MAX: Duration = Duration::from_secs(60);

/// What providers sign with. No shared keys among them.
const ALGORITHMS: [file::Algorithm; 5] = [
    file::Algorithm::RS256,
    file::Algorithm::PS256,
    file::Algorithm::ES256,
    file::Algorithm::ES384,
    file::Algorithm::EdDsa,
];

/// Entra's claim first, then what others use.
const TENANT_CLAIMS: [&str; 3] = ["tid", "tenant_id", "tenant"];
const GROUPS_CLAIM: &str = "groups";

const NOBODY: &str = "nobody could call: add a way to prove who is calling, for example \
                      `- oidc: { issuer: https://idp.example.com, audience: https://mcp.example.com }` or \
                      `- api_keys: { file: /etc/wardgate/api-keys }`; for callers of this machine alone, `- anonymous: {}`";

pub(super) fn identity(
    book: &mut Book<'_>,
    root: &Key,
    ways: Option<Vec<Identity>>,
    listeners: &[Listener],
    public: bool,
) -> Config {
    let key = root.at("identity");
    let ways = ways.unwrap_or_default();
    if ways.is_empty() {
        book.missing(&key, NOBODY);
    }
    let mut meant = Config::default();
    for (index, way) in ways.into_iter().enumerate() {
        let key = key.index(index);
        match way {
            Identity::Anonymous(written) => {
                let key = key.at("anonymous");
                let scopes = scopes(book, &key, written.scopes);
                once(book, &key, meant.anonymous.replace(scopes).is_some());
                if let Some(open) = listeners.iter().find(|listener| !edge::is_local(&listener.address)) {
                    let crate::server::Address::Tcp(address) = &open.address else { continue };
                    book.error(&key, format!("anyone who reaches `{address}` could call: `anonymous` is allowed only where every listener is on a loopback address or a Unix socket"));
                }
            }
            Identity::ApiKeys(written) => {
                let key = key.at("api_keys");
                let Some(file) = book.require(&key, "file", written.file, "file: /etc/wardgate/api-keys") else {
                    continue;
                };
                let file = book.readable(&key.at("file"), &file);
                once(book, &key, meant.api_keys.replace(file).is_some());
            }
            Identity::Certificates(rules) => {
                let key = key.at("certificates");
                if rules.is_empty() {
                    book.missing(&key.index(0), "there is no rule; for example `- { spiffe: \"spiffe://prod.example.com/agents/*\", scopes: [mcp.read] }`");
                }
                if !listeners
                    .iter()
                    .any(|listener| listener.tls.as_ref().is_some_and(|tls| tls.client_auth != ClientAuth::None))
                    && !book.touched(&root.at("listeners"))
                {
                    book.error(&key, "no listener asks for client certificates: give one `tls: { client_ca: …, client_auth: optional }`");
                }
                meant.certificates.extend(
                    rules
                        .into_iter()
                        .enumerate()
                        .filter_map(|(index, rule)| certificate(book, &key.index(index), rule)),
                );
            }
            Identity::Oidc(mut written) => {
                let key = key.at("oidc");
                let facade = written.login.take();
                if !public && !book.touched(&root.at("public_url")) {
                    book.error(&root.at("public_url"), "is missing, and `oidc` needs it: clients find the login by it (RFC 9728); for example `public_url: https://mcp.example.com`");
                }
                if let Some(issuer) = issuer(book, &key, *written) {
                    if meant.issuers.iter().any(|known| known.issuer == issuer.issuer) {
                        book.error(
                            &key.at("issuer"),
                            format!(
                                "`{}` is configured twice: give one entry several audiences",
                                short(&issuer.issuer)
                            ),
                        );
                    }
                    login(book, &key, facade, &issuer.issuer, &mut meant.logins);
                    meant.issuers.push(issuer);
                }
            }
        }
    }
    meant
}

fn once(book: &mut Book<'_>, key: &Key, again: bool) {
    if again {
        book.error(key, "is here twice: it can be given once");
    }
}

/// Scopes as RFC 6749 has them: visible ASCII without quotes and backslash.
fn scopes(book: &mut Book<'_>, parent: &Key, scopes: Option<Vec<String>>) -> BTreeSet<String> {
    let scopes = scopes.unwrap_or_default();
    for (index, scope) in scopes.iter().enumerate() {
        if scope.is_empty() || !scope.chars().all(|c| c.is_ascii_graphic() && c != '"' && c != '\\') {
            book.error(&parent.at("scopes").index(index), format!("`{}` is not a scope", short(scope)));
        }
    }
    scopes.into_iter().collect()
}

fn certificate(book: &mut Book<'_>, key: &Key, rule: file::CertificateRule) -> Option<CertificateRule> {
    let scopes = scopes(book, key, rule.scopes);
    let given = [rule.spiffe.is_some(), rule.dns.is_some(), rule.fingerprint.is_some(), rule.subject.is_some()];
    if given.iter().filter(|given| **given).count() != 1 {
        if !book.touched(key) {
            book.error(key, "needs exactly one of `spiffe`, `dns`, `fingerprint` and `subject`");
        }
        return None;
    }
    let matches = if let Some(text) = rule.spiffe {
        let key = key.at("spiffe");
        if !text.starts_with("spiffe://") {
            book.error(&key, format!("`{}` does not begin with `spiffe://`", short(&text)));
        }
        CertificateMatch::Spiffe(book.path_glob(&key, &text)?)
    } else if let Some(text) = rule.dns {
        CertificateMatch::Dns(book.glob(&key.at("dns"), &text.to_ascii_lowercase())?)
    } else if let Some(text) = rule.fingerprint {
        let hex: String = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
        if hex.len() != 64 || !hex.chars().all(|c| c.is_ascii_hexdigit()) {
            book.error(
                &key.at("fingerprint"),
                "is not a SHA-256 fingerprint: 64 hex digits, for example from `openssl x509 -fingerprint -sha256`",
            );
        }
        CertificateMatch::Fingerprint(hex)
    } else {
        let subject = rule.subject?;
        if subject.is_empty() {
            book.error(&key.at("subject"), "is empty");
        }
        CertificateMatch::Subject(subject)
    };
    Some(CertificateRule { matches, scopes, tenant: rule.tenant })
}

fn issuer(book: &mut Book<'_>, key: &Key, written: file::Oidc) -> Option<Issuer> {
    let audiences =
        book.require(key, "audience", written.audience, "audience: https://mcp.example.com").map(|audience| audience.0);
    if audiences.as_ref().is_some_and(|all| all.is_empty() || all.iter().any(String::is_empty)) {
        book.error(&key.at("audience"), "is empty: without an audience, tokens for others would be accepted");
    }
    let leeway = written.leeway.map_or(LEEWAY, |span| span.0);
    if leeway > LEEWAY_MAX {
        book.error(&key.at("leeway"), format!("is more than {} s: expired tokens would live on", LEEWAY_MAX.as_secs()));
    }
    let keys = keys(book, key, written.jwks_url, written.jwks_file);
    let algorithms = written.algorithms.unwrap_or_else(|| ALGORITHMS.to_vec());
    if algorithms.is_empty() && !book.touched(&key.at("algorithms")) {
        book.error(&key.at("algorithms"), "is empty: no token could be verified");
    }
    for (index, algorithm) in algorithms.iter().enumerate() {
        if is_shared(*algorithm) && !matches!(keys, Keys::File(_)) {
            book.error(
                &key.at("algorithms").index(index),
                "signs with a shared key, and a key that is published is no secret: it needs `jwks_file`",
            );
        }
    }
    let tenant_claims = written.tenant_claim.unwrap_or_else(|| Strings(TENANT_CLAIMS.map(str::to_owned).to_vec())).0;
    let issuer = book.require(key, "issuer", written.issuer, "issuer: https://idp.example.com")?;
    check_issuer(book, &key.at("issuer"), &issuer, matches!(keys, Keys::Discover));
    Some(Issuer {
        issuer,
        audiences: audiences?,
        keys,
        algorithms: algorithms.into_iter().map(algorithm).collect(),
        leeway,
        tenant_claims,
        groups_claim: written.groups_claim.unwrap_or_else(|| GROUPS_CLAIM.to_owned()),
    })
}

fn check_issuer(book: &mut Book<'_>, key: &Key, issuer: &str, discover: bool) {
    if issuer.is_empty() {
        book.error(key, "is empty");
    }
    if issuer.split(['/', '?', '#']).any(|part| part == DEMO_ISSUER) && !book.options().allow_demo_issuer {
        book.error(key, "is the issuer of `wardgate demo`, which gives everybody a token: it is never trusted here");
    }
    if discover {
        check_url(book, key, issuer, "where its keys are discovered");
    }
}

fn keys(book: &mut Book<'_>, key: &Key, url: Option<String>, file: Option<String>) -> Keys {
    match (url, file) {
        (Some(_), Some(_)) => {
            book.error(key, "`jwks_url` and `jwks_file` exclude each other");
            Keys::Discover
        }
        (Some(url), None) => {
            check_url(book, &key.at("jwks_url"), &url, "where its keys are fetched");
            Keys::Url(url)
        }
        (None, Some(file)) => Keys::File(book.readable(&key.at("jwks_file"), &file)),
        (None, None) => Keys::Discover,
    }
}

/// Who can change the keys on their way can sign tokens.
pub(super) fn check_url(book: &mut Book<'_>, key: &Key, text: &str, what: &str) {
    let url = Url::parse(text).ok().filter(Url::has_host);
    let good = url.as_ref().is_some_and(|url| {
        let clean = url.username().is_empty() && url.password().is_none();
        clean && (url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url)))
    });
    if !good {
        book.error(
            key,
            format!("must be an `https://` URL without user and password, {what} (`http://` only on this machine)"),
        );
    }
}

fn is_shared(algorithm: file::Algorithm) -> bool {
    matches!(algorithm, file::Algorithm::HS256 | file::Algorithm::HS384 | file::Algorithm::HS512)
}

fn algorithm(written: file::Algorithm) -> jsonwebtoken::Algorithm {
    match written {
        file::Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        file::Algorithm::ES256 => jsonwebtoken::Algorithm::ES256,
        file::Algorithm::ES384 => jsonwebtoken::Algorithm::ES384,
        file::Algorithm::HS256 => jsonwebtoken::Algorithm::HS256,
        file::Algorithm::HS384 => jsonwebtoken::Algorithm::HS384,
        file::Algorithm::HS512 => jsonwebtoken::Algorithm::HS512,
        file::Algorithm::PS256 => jsonwebtoken::Algorithm::PS256,
        file::Algorithm::PS384 => jsonwebtoken::Algorithm::PS384,
        file::Algorithm::PS512 => jsonwebtoken::Algorithm::PS512,
        file::Algorithm::RS256 => jsonwebtoken::Algorithm::RS256,
        file::Algorithm::RS384 => jsonwebtoken::Algorithm::RS384,
        file::Algorithm::RS512 => jsonwebtoken::Algorithm::RS512,
    }
}
