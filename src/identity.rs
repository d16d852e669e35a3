//! Who is calling? Turns a request's credential into a verified `Principal`, or says why not.

pub mod api_key;
pub mod challenge;
mod claims;
mod jwks;
mod jwt;
pub mod mtls;
mod oidc;
mod strict;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use futures_util::StreamExt;
use globset::GlobMatcher;
use moka::sync::Cache;
use ring::digest;

use crate::exchange::ClientCertificate;
use crate::exchange::Request;
use crate::principal::Claims;
use crate::principal::Method;
use crate::principal::Principal;

/// Verified tokens kept, so that a signature is checked once and not per call.
const TOKENS_MAX: u64 = 100_000;

/// Client certificates whose rule has been found.
const CERTIFICATES_MAX: u64 = 10_000;

/// Issuers asked for their keys at the same time at start.
const WARM_CONCURRENT_MAX: usize = 16;

/// Tried by kind of credential; a bad credential never falls through to another method.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub issuers: Vec<Issuer>,
    /// A file of hashed keys, see `api_key`.
    pub api_keys: Option<PathBuf>,
    /// Client certificates that name a principal by themselves.
    pub certificates: Vec<CertificateRule>,
    /// No identity at all: every caller is `anonymous` with these scopes. Only for loopback sidecars.
    pub anonymous: Option<BTreeSet<String>>,
    /// Some backend acts on behalf of callers: their tokens are kept, sealed, as long as they are remembered.
    pub assertions: bool,
}

/// One trusted token issuer, bound to its own keys.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Issuer {
    /// Exact `iss`.
    pub issuer: String,
    /// Any of these must be in `aud`.
    pub audiences: Vec<String>,
    pub keys: Keys,
    /// Explicit; never taken from the token.
    pub algorithms: Vec<jsonwebtoken::Algorithm>,
    /// At most 60 s.
    pub leeway: Duration,
    /// Claim names that carry the tenant, first present wins.
    pub tenant_claims: Vec<String>,
    /// Claim name that carries groups.
    pub groups_claim: String,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Keys {
    /// OIDC discovery at the issuer, then its `jwks_uri`.
    Discover,
    /// A JWKS document read from a file.
    File(PathBuf),
    /// A JWKS document at a fixed URL.
    Url(String),
}

/// A client certificate that matches becomes a `Service` principal with these scopes.
#[derive(Clone, Debug)]
pub struct CertificateRule {
    pub matches: CertificateMatch,
    pub scopes: BTreeSet<String>,
    pub tenant: Option<String>,
}

#[derive(Clone, Debug)]
pub enum CertificateMatch {
    /// Lower-case hex SHA-256 of the leaf.
    Fingerprint(String),
    /// Glob over DNS names of the SAN.
    Dns(GlobMatcher),
    /// Glob over the one SPIFFE id, for example `spiffe://prod.example.com/agents/*`.
    Spiffe(GlobMatcher),
    /// Exact RFC 4514 subject.
    Subject(String),
}

/// Why there is no principal. The words go to the client (RFC 6750 `error_description`): no token content in them.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// A credential was sent and is not good; the words say which check failed.
    #[error("{description}")]
    Invalid { description: String },
    /// No credential was sent: the challenge carries no `error` (RFC 6750 section 3.1).
    #[error("no credential was sent")]
    Missing,
    /// The issuer's keys could not be had, so nothing can be said about the credential.
    #[error("the keys of issuer `{issuer}` are unavailable")]
    Unavailable { issuer: String },
}

impl Error {
    fn invalid(description: impl Into<String>) -> Error {
        Error::Invalid { description: description.into() }
    }
}

/// Why identity cannot be set up as configured. Never because an issuer is away: keys are fetched later.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot read `{path}`")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("`{path}` is longer than {bytes_max} bytes")]
    TooLong { path: PathBuf, bytes_max: usize },
    #[error("JWKS file `{path}` of issuer `{issuer}`: {reason}")]
    KeyFile { path: PathBuf, issuer: String, reason: String },
    #[error("API key file `{path}`, line {line}: {reason}")]
    ApiKeyFile { path: PathBuf, line: usize, reason: String },
    #[error("issuer `{issuer}`: {reason}")]
    Issuer { issuer: String, reason: String },
    #[error("cannot make an HTTPS client for the issuers' keys: {reason}")]
    Client { reason: String },
}

/// The one verb, [`Identity::verify`], with what it needs: issuers and their keys, API keys, certificate rules.
pub struct Identity {
    issuers: Vec<Arc<jwt::Trusted>>,
    api_keys: Option<api_key::Keys>,
    certificates: Vec<CertificateRule>,
    anonymous: Option<Pair>,
    assertions: bool,
    tokens: Cache<TokenKey, Arc<jwt::Verified>>,
    named: Cache<String, Option<Arc<Principal>>>,
}

/// A principal made once, in both forms a connection can give it.
struct Pair {
    plain: Arc<Principal>,
    mtls: Arc<Principal>,
}

impl Pair {
    fn new(claims: Claims) -> Pair {
        let plain = Principal::verified(Claims { mtls: false, ..claims.clone() });
        let mtls = Principal::verified(Claims { mtls: true, ..claims });
        Pair { plain: Arc::new(plain), mtls: Arc::new(mtls) }
    }

    fn of(&self, mtls: bool) -> Arc<Principal> {
        Arc::clone(if mtls { &self.mtls } else { &self.plain })
    }
}

/// The same token on a connection with and without a client certificate is two principals.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct TokenKey {
    digest: [u8; digest::SHA256_OUTPUT_LEN],
    mtls: bool,
}

/// The credential a request carries in its headers.
enum Presented<'a> {
    ApiKey(&'a str),
    Nothing,
    Token(&'a str),
}

impl Identity {
    /// Reads the files named in `config` and checks it. Issuers are not asked yet: see [`Identity::warm`].
    pub fn new(config: Config) -> Result<Identity, StartError> {
        Identity::build(config, None)
    }

    /// The identity for a new configuration, on reload: keys already fetched from an issuer that is configured as
    /// before are carried over, verified tokens are not.
    pub fn renewed(&self, config: Config) -> Result<Identity, StartError> {
        Identity::build(config, Some(self))
    }

    fn build(config: Config, previous: Option<&Identity>) -> Result<Identity, StartError> {
        let api_keys = config.api_keys.as_deref().map(api_key::Keys::read).transpose()?;
        let mut fetchers = oidc::Fetchers::default();
        let mut issuers: Vec<Arc<jwt::Trusted>> = Vec::with_capacity(config.issuers.len());
        for issuer in config.issuers {
            if issuers.iter().any(|known| known.config.issuer == issuer.issuer) {
                let reason = "is configured twice".into();
                return Err(StartError::Issuer { issuer: issuer.issuer, reason });
            }
            let old = previous.and_then(|previous| {
                previous.issuers.iter().find(|old| old.config.issuer == issuer.issuer && old.config.keys == issuer.keys)
            });
            issuers.push(Arc::new(jwt::Trusted::new(issuer, old.map(|old| &old.source), &mut fetchers)?));
        }
        let anonymous = config.anonymous.map(|scopes| {
            let name = || "anonymous".to_owned();
            Pair::new(Claims {
                subject: name(),
                issuer: name(),
                scopes,
                method: Method::Anonymous,
                ..Claims::default()
            })
        });
        Ok(Identity {
            issuers,
            api_keys,
            certificates: config.certificates,
            anonymous,
            assertions: config.assertions,
            tokens: Cache::builder().max_capacity(TOKENS_MAX).expire_after(jwt::UntilExpiry).build(),
            named: Cache::new(CERTIFICATES_MAX),
        })
    }

    /// Who sent this request? A credential that is there and not good is an error, never a reason to try the next.
    pub async fn verify(&self, request: &Request) -> Result<Arc<Principal>, Error> {
        let certificate = request.peer.certificate.as_ref();
        let valid = certificate.filter(|certificate| mtls::is_current(certificate, request.at));
        match presented(request)? {
            Presented::ApiKey(key) => match &self.api_keys {
                Some(keys) => keys.verify(key, request.at, valid.is_some()),
                None => Err(Error::invalid("API keys are not accepted here")),
            },
            Presented::Token(token) => self.token(token, request, valid).await,
            Presented::Nothing => match certificate.and_then(|certificate| self.named(certificate)) {
                Some(principal) if valid.is_some() => Ok(principal),
                Some(_) => Err(Error::invalid("the client certificate has expired")),
                None => self.anonymous.as_ref().map(|pair| pair.of(valid.is_some())).ok_or(Error::Missing),
            },
        }
    }

    /// Fetches the keys of all issuers, so that the first caller need not wait. Failures are logged, not returned.
    pub async fn warm(&self) {
        let now = Instant::now();
        let fetches = self.issuers.iter().map(|issuer| async move { issuer.source.prefetch(now).await });
        futures_util::stream::iter(fetches).for_each_concurrent(WARM_CONCURRENT_MAX, |fetch| fetch).await;
    }

    /// The names of the trusted issuers, for the protected resource metadata.
    pub fn issuers(&self) -> Vec<String> {
        self.issuers.iter().map(|issuer| issuer.config.issuer.clone()).collect()
    }

    async fn token(
        &self,
        token: &str,
        request: &Request,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Arc<Principal>, Error> {
        if token.len() > jwt::TOKEN_BYTES_MAX {
            return Err(Error::invalid("the token is too long"));
        }
        let key = TokenKey { digest: sha256(token.as_bytes()), mtls: certificate.is_some() };
        if let Some(known) = self.tokens.get(&key)
            && known.still_trusted(request.started)
        {
            known.check(request.at, certificate)?;
            return Ok(Arc::clone(&known.principal));
        }
        let mut verified = jwt::verify(&self.issuers, token, request, key.mtls).await?;
        if self.assertions {
            verified.keep(token);
        }
        verified.check(request.at, certificate)?;
        let principal = Arc::clone(&verified.principal);
        self.tokens.insert(key, Arc::new(verified));
        Ok(principal)
    }

    /// The principal that the rules make of this certificate. A fingerprint always gives the same answer.
    fn named(&self, certificate: &ClientCertificate) -> Option<Arc<Principal>> {
        if self.certificates.is_empty() {
            return None;
        }
        if let Some(known) = self.named.get(certificate.fingerprint.as_str()) {
            return known;
        }
        let principal =
            mtls::claims(&self.certificates, certificate).map(|claims| Arc::new(Principal::verified(claims)));
        self.named.insert(certificate.fingerprint.clone(), principal.clone());
        principal
    }
}

/// Finds the one credential in the headers. The query is never looked at (MCP authorization, RFC 6750 section 5.3).
fn presented(request: &Request) -> Result<Presented<'_>, Error> {
    let authorization = request
        .single_header("authorization")
        .map_err(|()| Error::invalid("the `Authorization` header is there more than once or is not visible ASCII"))?;
    let api_key = request
        .single_header("x-api-key")
        .map_err(|()| Error::invalid("the `X-API-Key` header is there more than once or is not visible ASCII"))?;
    match (authorization, api_key) {
        (Some(_), Some(_)) => Err(Error::invalid("`Authorization` and `X-API-Key` must not be sent together")),
        (Some(value), None) => match bearer(value)? {
            key if key.starts_with(api_key::PREFIX) => Ok(Presented::ApiKey(key)),
            token => Ok(Presented::Token(token)),
        },
        (None, Some(key)) => Ok(Presented::ApiKey(key)),
        (None, None) => Ok(Presented::Nothing),
    }
}

/// `Bearer` SP b64token (RFC 6750 section 2.1); the scheme in any case.
fn bearer(value: &str) -> Result<&str, Error> {
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Error::invalid("the `Authorization` scheme is not `Bearer`"));
    }
    let token = token.trim_start_matches(' ');
    let body = token.trim_end_matches('=');
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
    if body.is_empty() || !body.bytes().all(legal) {
        return Err(Error::invalid("the bearer token is empty or has characters that no token has"));
    }
    Ok(token)
}

fn sha256(bytes: &[u8]) -> [u8; digest::SHA256_OUTPUT_LEN] {
    let mut out = [0; digest::SHA256_OUTPUT_LEN];
    out.iter_mut().zip(digest::digest(&digest::SHA256, bytes).as_ref()).for_each(|(to, from)| *to = *from);
    out
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// Reads at most `bytes_max` of a file.
fn read(path: &std::path::Path, bytes_max: usize) -> Result<Vec<u8>, StartError> {
    use std::io::Read;
    let failed = |source| StartError::Read { path: path.into(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > bytes_max {
        return Err(StartError::TooLong { path: path.into(), bytes_max });
    }
    Ok(bytes)
}

/// Whole seconds since the epoch, rounded down; times before it are 0.
fn seconds(at: SystemTime) -> i64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
