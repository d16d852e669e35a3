//! Who is calling? Turns a request's credential into a verified `Principal`, or says why not.

pub mod api_key;
pub mod challenge;
mod claims;
mod dpop;
pub mod entra;
pub mod facade;
pub mod forwarded;
mod groups;
mod jwks;
mod jwt;
mod key;
pub mod mtls;
mod oidc;
mod pattern;
mod presented;
pub mod registration;
mod shared;
mod subject;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use futures_util::StreamExt;
use moka::sync::Cache;
use ring::digest;
use url::Url;

use crate::exchange::ClientCertificate;
use crate::exchange::Request;
use crate::principal::Claims;
use crate::principal::Method;
use crate::principal::Principal;
use crate::route;

use presented::Presented;

pub use pattern::Names;
pub use pattern::Pattern;
pub use shared::Shared;
pub use subject::Subject;

/// Verified tokens kept, so that a signature is checked once and not per call.
const TOKENS_MAX: u64 = 100_000;
const TOKENS_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// What a verified token weighs at least, so that there are never more than `TOKENS_MAX`.
const TOKEN_WEIGHT_MIN: u64 = TOKENS_BYTES_MAX.div_ceil(TOKENS_MAX);

const NO_API_KEYS: &str = "API keys are not accepted here";

/// Client certificates whose rule has been found.
const CERTIFICATES_MAX: u64 = 10_000;

/// Issuers asked for their keys at the same time at start.
const WARM_CONCURRENT_MAX: usize = 16;

/// Tried by kind of credential; a bad credential never falls through to another method.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub issuers: Vec<Issuer>,
    pub entra: Vec<entra::Entra>,
    /// Issuers that clients log in at through a facade of the gateway's.
    pub logins: Vec<facade::Login>,
    /// A file of hashed keys, see `api_key`.
    pub api_keys: Option<PathBuf>,
    /// Client certificates that name a principal by themselves.
    pub certificates: Vec<CertificateRule>,
    /// A proxy in front that has verified the client certificates for us.
    pub proxy: Option<forwarded::Proxy>,
    /// The address clients use: what a DPoP proof must be for.
    pub public_url: Option<Url>,
    /// Hosts that stand in its place, for they are a route's own.
    pub hosts: BTreeSet<String>,
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
    /// Tokens bound to a client certificate (RFC 8705). Those that are must always come with theirs.
    pub certificate_bound: Demand,
    /// Tokens bound to a key (RFC 9449).
    pub dpop: Demand,
}

/// Whether tokens of an issuer are bound to something that the caller must prove to have.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Demand {
    Off,
    #[default]
    Optional,
    Required,
}

/// How a token is presented: the scheme of `Authorization`, and of the challenge.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scheme {
    Bearer,
    Dpop,
}

/// What the protected resource metadata says about proofs of possession.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Proofs {
    pub certificate_bound: bool,
    pub dpop: Demand,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Keys {
    /// OIDC discovery at the issuer, then its `jwks_uri`.
    Discover,
    /// A JWKS document read from a file.
    File(PathBuf),
    /// A JWKS document at a fixed URL.
    Url(String),
}

/// A client certificate that matches becomes a `Service` principal with these scopes, roles and groups.
#[derive(Clone, Debug)]
pub struct CertificateRule {
    pub matches: CertificateMatch,
    pub scopes: BTreeSet<String>,
    pub roles: BTreeSet<String>,
    pub groups: BTreeSet<String>,
    pub tenant: Tenant,
}

/// Whose the caller of a certificate rule is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Tenant {
    Fixed(String),
    /// The part of the name that the pattern calls `{tenant}`.
    Named,
    None,
}

#[derive(Clone, Debug)]
pub enum CertificateMatch {
    /// DNS names of the SAN.
    Dns(Pattern),
    /// Mail addresses of the SAN.
    Email(Pattern),
    /// Lower-case hex SHA-256 of the leaf.
    Fingerprint(String),
    /// The one SPIFFE id, for example `spiffe://prod.example.com/agents/*`.
    Spiffe(Pattern),
    /// The whole RFC 4514 subject.
    Subject(Subject),
    /// URIs of the SAN.
    Uri(Pattern),
}

impl CertificateMatch {
    /// Is it this certificate?
    pub fn matches(&self, certificate: &ClientCertificate) -> bool {
        mtls::matches(self, certificate)
    }

    /// Does it take the tenant from the name?
    pub fn names_tenant(&self) -> bool {
        match self {
            CertificateMatch::Dns(pattern)
            | CertificateMatch::Email(pattern)
            | CertificateMatch::Spiffe(pattern)
            | CertificateMatch::Uri(pattern) => pattern.names_tenant(),
            CertificateMatch::Fingerprint(_) => false,
            CertificateMatch::Subject(subject) => subject.names_tenant(),
        }
    }
}

/// Why there is no principal. The words go to the client (RFC 6750 `error_description`): no token content in them.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// A credential was sent and is not good; the words say which check failed.
    #[error("{description}")]
    Invalid { description: String },
    /// The same of a token that is, or should be, presented with DPoP (RFC 9449 section 7.1).
    #[error("{description}")]
    Dpop { fault: Fault, description: String },
    /// No credential was sent: the challenge carries no `error` (RFC 6750 section 3.1).
    #[error("no credential was sent")]
    Missing,
    /// The issuer's keys could not be had, so nothing can be said about the credential.
    #[error("the keys of issuer `{issuer}` are unavailable")]
    Unavailable { issuer: String },
}

/// What is not good when a token is presented with DPoP.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    Proof,
    Token,
}

impl Error {
    fn invalid(description: impl Into<String>) -> Error {
        Error::Invalid { description: description.into() }
    }

    /// The same to a client that presents its token by this scheme.
    fn by(self, scheme: Scheme) -> Error {
        match (self, scheme) {
            (Error::Invalid { description }, Scheme::Dpop) => Error::Dpop { fault: Fault::Token, description },
            (error, _) => error,
        }
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
    /// Tells its entries from those of others in caches that are shared.
    realm: u64,
    trust: jwt::Trust,
    facades: Vec<Arc<facade::Facade>>,
    api_keys: Option<api_key::Keys>,
    certificates: Vec<CertificateRule>,
    proxy: Option<forwarded::Proxy>,
    public_url: Option<Url>,
    hosts: BTreeSet<String>,
    anonymous: Option<Pair>,
    assertions: bool,
    replays: Arc<dpop::Replays>,
    groups_asked: Arc<groups::Tally>,
    tokens: Cache<TokenKey, Arc<jwt::Verified>>,
    named: Cache<(u64, String), Option<Arc<Principal>>>,
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
    /// Of which identity: a token is good for the one that verified it.
    realm: u64,
    digest: [u8; digest::SHA256_OUTPUT_LEN],
    mtls: bool,
}

impl Identity {
    /// Reads the files named in `config` and checks it. Issuers are not asked yet: see [`Identity::warm`].
    pub fn new(config: Config) -> Result<Identity, StartError> {
        Identity::build(config, None, &mut Shared::new(None))
    }

    /// The identity for a new configuration, on reload: keys already fetched from an issuer that is configured as
    /// before are carried over, and so are the DPoP proofs that were seen; verified tokens are not.
    pub fn renewed(&self, config: Config) -> Result<Identity, StartError> {
        Identity::build(config, Some(self), &mut Shared::new(Some(self)))
    }

    /// One of several of the same gateway, and of `previous` where this one was configured before: issuers' keys, HTTP
    /// clients and memory are shared, and nothing that was verified.
    ///
    /// # Errors
    /// As [`Identity::new`].
    pub fn among(config: Config, previous: Option<&Identity>, shared: &mut Shared) -> Result<Identity, StartError> {
        Identity::build(config, previous, shared)
    }

    fn build(config: Config, previous: Option<&Identity>, shared: &mut Shared) -> Result<Identity, StartError> {
        let api_keys = config.api_keys.as_deref().map(|path| {
            let old = previous.and_then(|previous| previous.api_keys.as_ref());
            api_key::Keys::read(path, old)
        });
        let api_keys = api_keys.transpose()?;
        let mut trust = jwt::Trust::default();
        let groups_asked = previous.map_or_else(Arc::default, |previous| Arc::clone(&previous.groups_asked));
        for issuer in config.issuers {
            if trust.issuers.iter().any(|known| known.config.issuer == issuer.issuer) {
                let reason = "is configured twice".into();
                return Err(StartError::Issuer { issuer: issuer.issuer, reason });
            }
            let old = previous.and_then(|previous| {
                previous
                    .trust
                    .issuers
                    .iter()
                    .find(|old| old.config.issuer == issuer.issuer && old.config.keys == issuer.keys)
            });
            let known = old.map(|old| old.source.clone()).or_else(|| shared.issuer(&issuer));
            trust.issuers.push(jwt::Trusted::new(issuer, known.as_ref(), &mut shared.fetchers)?);
        }
        for entra in config.entra {
            let known = previous.map(|previous| previous.trust.directories.as_slice()).unwrap_or_default();
            let directory = entra::Directory::new(entra, known, shared, &groups_asked)?;
            if trust.directories.iter().any(|other| other.config.overlaps(&directory.config)) {
                let reason = "is configured twice".into();
                return Err(StartError::Issuer { issuer: directory.login_at(), reason });
            }
            trust.directories.push(directory);
        }
        let mut facades = Vec::with_capacity(config.logins.len());
        for login in config.logins {
            let old = previous.and_then(|previous| previous.facades.iter().find(|old| *old.login() == login));
            facades.push(match old {
                Some(facade) => Arc::clone(facade),
                None => Arc::new(facade::Facade::new(login, &mut shared.fetchers)?),
            });
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
        let identity = Identity {
            realm: shared::realm(),
            trust,
            facades,
            api_keys,
            certificates: config.certificates,
            proxy: config.proxy,
            public_url: config.public_url,
            hosts: config.hosts,
            anonymous,
            assertions: config.assertions,
            replays: Arc::clone(&shared.replays),
            groups_asked,
            tokens: shared.tokens.clone(),
            named: shared.named.clone(),
        };
        shared.learn(&identity);
        Ok(identity)
    }

    /// Who sent this request? A credential that is there and not good is an error, never a reason to try the next.
    pub async fn verify(&self, request: &Request) -> Result<Arc<Principal>, Error> {
        // On a proxy's connection the certificate, if there is one, is the proxy's.
        let forwarded = self.proxy.as_ref().filter(|proxy| proxy.is_at(&request.peer));
        let forwarded = forwarded.map(|proxy| proxy.certificate(request)).transpose()?;
        let certificate = match &forwarded {
            Some(shown) => shown.as_ref(),
            None => request.peer.certificate.as_ref(),
        };
        let valid = certificate.filter(|certificate| mtls::is_current(certificate, request.at));
        match Presented::by(request)? {
            Presented::ApiKey(key) => match &self.api_keys {
                Some(keys) => keys.verify(key, request.at, valid.is_some()),
                None => Err(Error::invalid(NO_API_KEYS)),
            },
            Presented::Token(scheme, token) => self.token(scheme, token, request, valid).await,
            Presented::Nothing => {
                match certificate.and_then(|certificate| self.named(certificate, forwarded.is_some())) {
                    Some(principal) if valid.is_some() => Ok(principal),
                    Some(_) => Err(Error::invalid("the client certificate has expired")),
                    None => self.anonymous.as_ref().map(|pair| pair.of(valid.is_some())).ok_or(Error::Missing),
                }
            }
        }
    }

    /// The client certificate that a request comes with, if it is good now; who knows its bearer is another question.
    ///
    /// # Errors
    /// When a proxy says something of one that cannot be understood.
    pub fn certificate<'a>(&self, request: &'a Request) -> Result<Option<Cow<'a, ClientCertificate>>, Error> {
        let shown = match self.proxy.as_ref().filter(|proxy| proxy.is_at(&request.peer)) {
            Some(proxy) => proxy.certificate(request)?.map(Cow::Owned),
            None => request.peer.certificate.as_ref().map(Cow::Borrowed),
        };
        Ok(shown.filter(|certificate| mtls::is_current(certificate, request.at)))
    }

    /// What the bearer of a credential is told that nobody here knows; one that is good, and somebody else's, too.
    pub fn stranger(&self, request: &Request) -> Error {
        match Presented::by(request) {
            Ok(Presented::ApiKey(_)) if self.api_keys.is_some() => Error::invalid(api_key::UNKNOWN),
            Ok(Presented::ApiKey(_)) => Error::invalid(NO_API_KEYS),
            Ok(Presented::Token(scheme, _)) => self.trust.stranger().by(scheme),
            Ok(Presented::Nothing) => Error::Missing,
            Err(error) => error,
        }
    }

    /// Fetches the keys of all issuers, so that the first caller need not wait. Failures are logged, not returned.
    pub async fn warm(&self) {
        let now = Instant::now();
        let fetches = self.trust.sources().map(|source| async move { source.prefetch(now).await });
        futures_util::stream::iter(fetches).for_each_concurrent(WARM_CONCURRENT_MAX, |fetch| fetch).await;
    }

    /// Where clients can get a token, for the protected resource metadata: at the trusted issuers, or at their facades
    /// below `base`. Clients go to the first: where people are at Entra, that is where.
    pub fn authorization_servers(&self, base: &str) -> Vec<String> {
        let issuers = self.trust.issuers.iter().map(|issuer| (issuer.config.issuer.clone(), None));
        let directories = self.trust.directories.iter();
        let all = directories.map(|entra| (entra.config.place(), Some(entra.login_at()))).chain(issuers);
        let name = |(place, own): (String, Option<String>)| match self.facade_of(&place) {
            Some(facade) => format!("{base}{}", facade.path()),
            None => own.unwrap_or(place),
        };
        all.map(name).collect()
    }

    fn facade_of(&self, place: &str) -> Option<&Arc<facade::Facade>> {
        self.facades.iter().find(|facade| facade.login().issuer == place)
    }

    /// These scopes as clients must ask for them at the issuer that is named first, which is where they go.
    pub fn asked_as(&self, scopes: &[String]) -> Vec<String> {
        let issuer = || self.trust.issuers.first().map(|issuer| issuer.config.issuer.clone());
        let first = self.trust.directories.first().map(|directory| directory.config.place()).or_else(issuer);
        let facade = first.and_then(|first| self.facade_of(&first));
        let prefix = facade.map_or("", |facade| &facade.login().scope_prefix);
        scopes.iter().map(|scope| format!("{prefix}{scope}")).collect()
    }

    /// The facade that is described at this path, and what comes behind the public URL in its identifier there.
    pub fn facade_described_at(&self, path: &str) -> Option<(&Arc<facade::Facade>, &str)> {
        // Clients of 2025-03-26 know no protected resource metadata: they ask at the root.
        if let ([only], true) = (self.facades.as_slice(), facade::is_root_form(path)) {
            return Some((only, ""));
        }
        self.facades.iter().find(|facade| facade.describes_at(path)).map(|facade| (facade, facade.path()))
    }

    /// The facade whose clients register at this path.
    pub fn facade_registering_at(&self, path: &str) -> Option<&Arc<facade::Facade>> {
        let path = path.strip_suffix(facade::REGISTER)?;
        self.facades.iter().find(|facade| facade.path() == path)
    }

    /// How a caller without a token should present one: by DPoP where nothing else would be accepted.
    pub fn scheme(&self) -> Scheme {
        let only = self.proofs().dpop == Demand::Required && self.api_keys.is_none();
        if only { Scheme::Dpop } else { Scheme::Bearer }
    }

    /// What the issuers together demand.
    pub fn proofs(&self) -> Proofs {
        let mut demands = self.trust.demands();
        let Some(first) = demands.next() else { return Proofs { certificate_bound: false, dpop: Demand::Off } };
        let one = Proofs { certificate_bound: first.certificate_bound == Demand::Required, dpop: first.dpop };
        demands.fold(one, |all, next| Proofs {
            certificate_bound: all.certificate_bound || next.certificate_bound == Demand::Required,
            dpop: if all.dpop == next.dpop { all.dpop } else { Demand::Optional },
        })
    }

    /// When each API key was used last, for those that were since the start.
    pub fn api_keys_used(&self) -> Vec<api_key::Use> {
        self.api_keys.as_ref().map(api_key::Keys::used).unwrap_or_default()
    }

    /// How often Graph was asked for groups that a token left out, by how it ended.
    pub fn groups_asked(&self) -> [(&'static str, u64); 4] {
        self.groups_asked.counts()
    }

    async fn token(
        &self,
        scheme: Scheme,
        token: &str,
        request: &Request,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Arc<Principal>, Error> {
        let verified = self.verified(token, request, certificate).await.map_err(|error| error.by(scheme))?;
        // What is remembered is the token. Its proof is another one for each request.
        if let Some(bound_to) = verified.key(scheme)? {
            self.proof(bound_to, token, request, verified.leeway_s())
                .map_err(|description| Error::Dpop { fault: Fault::Proof, description })?;
        }
        Ok(Arc::clone(&verified.principal))
    }

    /// The token as verified now or before, good at this time and on this connection.
    async fn verified(
        &self,
        token: &str,
        request: &Request,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Arc<jwt::Verified>, Error> {
        if token.len() > jwt::TOKEN_BYTES_MAX {
            return Err(Error::invalid("the token is too long"));
        }
        let key = TokenKey { realm: self.realm, digest: sha256(token.as_bytes()), mtls: certificate.is_some() };
        if let Some(known) = self.tokens.get(&key).filter(|known| known.still_trusted(request.started)) {
            known.check(request.at, certificate)?;
            return Ok(known);
        }
        let mut verified = Box::pin(jwt::verify(&self.trust, token, request, key.mtls)).await?;
        verified.check(request.at, certificate)?;
        // Only for whoever may come in.
        Box::pin(verified.find_groups(token)).await;
        if self.assertions {
            verified.keep(token);
        }
        let verified = Arc::new(verified);
        self.tokens.insert(key, Arc::clone(&verified));
        Ok(verified)
    }

    fn proof(&self, bound_to: &dpop::Thumbprint, token: &str, request: &Request, leeway_s: i64) -> Result<(), String> {
        let proof = request.single_header("dpop").map_err(|()| "there is more than one `DPoP` header")?;
        let proof = proof.ok_or("there is no `DPoP` header with a proof")?;
        // Where there are issuers there is a public URL; without one no proof could be for us.
        let own = self.hosts.get(route::bare(&request.host)).map(String::as_str);
        let base = self.public_url.as_ref().and_then(|public| route::address(public, own));
        let base = base.ok_or("DPoP needs the `public_url` of the gateway")?;
        let expected = dpop::Expected {
            bound_to,
            token,
            method: request.verb.as_str(),
            base: &base,
            path: &request.path,
            // Now, not when the head came: a body can be slow, and what was seen meanwhile may be forgotten by now.
            now: seconds(request.at.checked_add(request.started.elapsed()).unwrap_or(request.at)),
            leeway_s,
        };
        dpop::check(proof, &expected, &self.replays)
    }

    /// The principal that the rules make of this certificate. The same certificate always gives the same answer; what a
    /// proxy says of one may be less than the whole, and is remembered apart.
    fn named(&self, certificate: &ClientCertificate, forwarded: bool) -> Option<Arc<Principal>> {
        if self.certificates.is_empty() {
            return None;
        }
        let key = match forwarded {
            true => format!("forwarded {}", hex(&sha256(format!("{certificate:?}").as_bytes()))),
            false => certificate.fingerprint.clone(),
        };
        let key = (self.realm, key);
        if let Some(known) = self.named.get(&key) {
            return known;
        }
        let principal =
            mtls::claims(&self.certificates, certificate).map(|claims| Arc::new(Principal::verified(claims)));
        self.named.insert(key, principal.clone());
        principal
    }
}

/// Verified tokens: bounded in number, and in bytes for those with hundreds of groups.
fn tokens() -> Cache<TokenKey, Arc<jwt::Verified>> {
    let weight = |_: &TokenKey, verified: &Arc<jwt::Verified>| {
        u32::try_from((verified.bytes() as u64).max(TOKEN_WEIGHT_MIN)).unwrap_or(u32::MAX)
    };
    Cache::builder().max_capacity(TOKENS_BYTES_MAX).weigher(weight).expire_after(jwt::UntilExpiry).build()
}

/// What was expected, for a refusal: public configuration, never a piece of the token.
fn expected(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ")
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
