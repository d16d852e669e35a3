//! `identity`, as meant: issuers, API keys, certificate rules, anonymous callers.

mod certificate;
pub(super) mod entra;
mod proxy;

use std::collections::BTreeSet;
use std::time::Duration;

use url::Url;

pub(super) use certificate::matches;

use super::edge;
use super::is_loopback;
use super::login::login;
use crate::config::book::Book;
use crate::config::book::Key;
use crate::config::file;
use crate::config::file::Identity;
use crate::config::scalar::Span;
use crate::config::scalar::Strings;
use crate::config::scalar::short;
use crate::identity::Config;
use crate::identity::Demand;
use crate::identity::Issuer;
use crate::identity::Keys;
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
    if ways.is_empty() && (!book.is_part() || book.has(&key)) {
        book.missing(&key, NOBODY);
    }
    let mut meant = Config::default();
    let (mut certificates_at, mut proxy_at) = (None, None);
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
                certificates_at.get_or_insert(key.clone());
                meant.certificates.extend(
                    rules
                        .into_iter()
                        .enumerate()
                        .filter_map(|(index, rule)| certificate::rule(book, &key.index(index), rule)),
                );
            }
            Identity::Entra(written) => {
                let key = key.at("entra");
                needs_public_url(book, root, public, "entra");
                add_entra(book, &key, *written, &mut meant);
            }
            Identity::Oidc(written) => {
                let key = key.at("oidc");
                needs_public_url(book, root, public, "oidc");
                add_issuer(book, &key, *written, &mut meant);
            }
            Identity::Proxy(written) => {
                let key = key.at("proxy");
                once(book, &key, proxy_at.replace(key.clone()).is_some());
                meant.proxy = proxy::proxy(book, &key, written, listeners);
            }
        }
    }
    if !book.is_tenant() {
        proxy::who_shows_certificates(book, root, listeners, (certificates_at, proxy_at), &meant);
    }
    meant
}

fn add_entra(book: &mut Book<'_>, key: &Key, mut written: file::Entra, meant: &mut Config) {
    let facade = written.login.take();
    let Some(entra) = entra::entra(book, key, written) else { return };
    if meant.entra.iter().any(|known| known.overlaps(&entra)) {
        book.error(key, "a tenant of this is in another `entra`, too: give one entry several audiences");
    }
    login(book, key, facade, (&entra.place(), Some(entra.named_there())), &mut meant.logins);
    meant.entra.push(entra);
}

fn add_issuer(book: &mut Book<'_>, key: &Key, mut written: file::Oidc, meant: &mut Config) {
    let facade = written.login.take();
    let Some(issuer) = issuer(book, key, written) else { return };
    if meant.issuers.iter().any(|known| known.issuer == issuer.issuer) {
        let words = format!("`{}` is configured twice: give one entry several audiences", short(&issuer.issuer));
        book.error(&key.at("issuer"), words);
    }
    login(book, key, facade, (&issuer.issuer, None), &mut meant.logins);
    meant.issuers.push(issuer);
}

fn needs_public_url(book: &mut Book<'_>, root: &Key, public: bool, way: &str) {
    let key = root.at("public_url");
    if !public && !book.touched(&key) {
        book.error(&key, format!("is missing, and `{way}` needs it: clients find the login by it (RFC 9728); for example `public_url: https://mcp.example.com`"));
    }
}

/// A proof says which address it is for, and protects a token from those who see it on its way.
pub(super) fn check_proofs(book: &mut Book<'_>, root: &Key, config: &Config) {
    let plain = config.public_url.as_ref().is_some_and(|url| url.scheme() == "http" && !is_loopback(url));
    let issuers = config.issuers.iter().map(|issuer| issuer.dpop);
    let mut all = issuers.chain(config.entra.iter().map(|entra| entra.dpop));
    if plain && all.any(|dpop| dpop == Demand::Required) {
        book.warn(
            &root.at("public_url"),
            "is plain http, and `dpop: required` proves who sent a request but hides nothing: use https",
        );
    }
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

fn issuer(book: &mut Book<'_>, key: &Key, written: file::Oidc) -> Option<Issuer> {
    let audiences = audiences(book, key, written.audience, "audience: https://mcp.example.com");
    let leeway = leeway(book, key, written.leeway);
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
        certificate_bound: certificate_bound(written.certificate_bound),
        dpop: dpop(written.dpop),
    })
}

fn certificate_bound(written: Option<file::CertificateBound>) -> Demand {
    match written {
        Some(file::CertificateBound::Required) => Demand::Required,
        Some(file::CertificateBound::Optional) | None => Demand::Optional,
    }
}

fn dpop(written: Option<file::Dpop>) -> Demand {
    match written {
        Some(file::Dpop::Off) => Demand::Off,
        Some(file::Dpop::Optional) | None => Demand::Optional,
        Some(file::Dpop::Required) => Demand::Required,
    }
}

fn audiences(book: &mut Book<'_>, key: &Key, written: Option<Strings>, example: &str) -> Option<Vec<String>> {
    let audiences = book.require(key, "audience", written, example)?.0;
    if audiences.is_empty() || audiences.iter().any(String::is_empty) {
        book.error(&key.at("audience"), "is empty: without an audience, tokens for others would be accepted");
    }
    Some(audiences)
}

fn leeway(book: &mut Book<'_>, key: &Key, written: Option<Span>) -> Duration {
    let leeway = written.map_or(LEEWAY, |span| span.0);
    if leeway > LEEWAY_MAX {
        book.error(&key.at("leeway"), format!("is more than {} s: expired tokens would live on", LEEWAY_MAX.as_secs()));
    }
    leeway
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
    if entra::is_issuer(issuer) {
        book.warn(key, "is an issuer of Microsoft Entra ID: `entra: { tenant: …, audience: … }` knows its tokens better (ID tokens, both versions, object ids)");
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
