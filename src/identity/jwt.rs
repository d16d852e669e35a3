//! JSON Web Tokens: strict header, one issuer's keys, one signature check, times checked again at every use.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde_json::Map;
use serde_json::Value;

use crate::credentials;
use crate::exchange::ClientCertificate;
use crate::exchange::Request;
use crate::principal::Claims;
use crate::principal::Principal;

use super::Demand;
use super::Error;
use super::Fault;
use super::Issuer;
use super::Scheme;
use super::StartError;
use super::claims;
use super::claims::BoundTo;
use super::claims::Rules;
use super::claims::Times;
use super::dpop::Thumbprint;
use super::entra;
use super::groups::Resolver;
use super::jwks::KeySet;
use super::jwks::Source;
use super::key::Key;
use super::oidc;
use crate::mcp::strict;

/// Entra tokens with many groups come to about 8 KiB.
pub(super) const TOKEN_BYTES_MAX: usize = 16 * 1024;

const KID_BYTES_MAX: usize = 256;

const NO_TOKENS: &str = "bearer tokens are not accepted here";

/// What it takes to remember a verified token, and each name in its sets, besides the texts.
const VERIFIED_BYTES: usize = 1024;
const NAME_BYTES: usize = 48;

/// Clocks that differ more than this must be repaired, not tolerated.
const LEEWAY_MAX: Duration = Duration::from_secs(60);

/// Keys tried for one token: several keys may share one `kid` (or have none).
const CANDIDATES_MAX: usize = 4;

/// Issuer names that other methods use; a token must not be able to look like one of them.
const RESERVED: [&str; 3] = ["anonymous", "api-key", "mtls"];

/// An issuer with the place its keys come from.
pub(super) struct Trusted {
    pub(super) config: Issuer,
    pub(super) source: Arc<Source>,
}

impl Trusted {
    pub(super) fn new(
        mut config: Issuer,
        carried: Option<&Arc<Source>>,
        fetchers: &mut oidc::Fetchers,
    ) -> Result<Trusted, StartError> {
        let name = &config.issuer;
        // `|` separates the parts of a principal's key.
        let unfit =
            name.is_empty() || RESERVED.contains(&name.as_str()) || name.contains(|c: char| c.is_control() || c == '|');
        let problem = [
            (unfit, "is not fit to name an issuer"),
            (config.audiences.is_empty(), "has no audience, so no token could be for us"),
            (config.algorithms.is_empty(), "has no algorithm, so no token could be verified"),
        ];
        if let Some((_, reason)) = problem.into_iter().find(|(wrong, _)| *wrong) {
            return Err(StartError::Issuer { issuer: config.issuer, reason: reason.into() });
        }
        config.leeway = config.leeway.min(LEEWAY_MAX);
        let source = match carried.filter(|source| source.is_remote()) {
            Some(source) => Arc::clone(source),
            None => Arc::new(Source::new(&config.issuer, &config.keys, fetchers)?),
        };
        Ok(Trusted { config, source })
    }

    fn demanded(&self) -> Demanded {
        Demanded { certificate_bound: self.config.certificate_bound, dpop: self.config.dpop }
    }
}

/// The proofs of possession that an issuer's tokens must come with.
#[derive(Clone, Copy)]
pub(super) struct Demanded {
    pub(super) certificate_bound: Demand,
    pub(super) dpop: Demand,
}

/// Everybody whose tokens are accepted.
#[derive(Default)]
pub(super) struct Trust {
    pub(super) issuers: Vec<Trusted>,
    pub(super) directories: Vec<entra::Directory>,
}

impl Trust {
    /// How many names a refusal lists at most.
    const EXPECTED_MAX: usize = 3;

    pub(super) fn sources(&self) -> impl Iterator<Item = &Arc<Source>> {
        let issuers = self.issuers.iter().map(|issuer| &issuer.source);
        issuers.chain(self.directories.iter().flat_map(entra::Directory::sources))
    }

    /// What each of them demands.
    pub(super) fn demands(&self) -> impl Iterator<Item = Demanded> {
        let issuers = self.issuers.iter().map(Trusted::demanded);
        issuers.chain(self.directories.iter().map(entra::Directory::demanded))
    }

    /// The issuer that a token names, if it is one of ours. Nothing about the token is verified yet.
    async fn find(&self, iss: Option<&str>, now: Instant) -> Result<Sender<'_>, Error> {
        let iss = iss.ok_or_else(|| self.unaccepted())?;
        if let Some(issuer) = self.issuers.iter().find(|issuer| issuer.config.issuer == iss) {
            return Ok(Sender {
                source: Arc::clone(&issuer.source),
                algorithms: &issuer.config.algorithms,
                leeway: issuer.config.leeway,
                demanded: issuer.demanded(),
                rules: Rules::Oidc(&issuer.config),
                groups: None,
            });
        }
        let mut refusal = self.unaccepted();
        for directory in &self.directories {
            let Some(tenant) = directory.config.tenant_of(iss) else { continue };
            match directory.source(tenant, now).await {
                Ok(source) => {
                    return Ok(Sender {
                        source,
                        algorithms: directory.algorithms(),
                        leeway: directory.config.leeway.min(LEEWAY_MAX),
                        demanded: directory.demanded(),
                        rules: Rules::Entra(&directory.config, tenant.to_owned()),
                        groups: directory.groups.clone(),
                    });
                }
                // Another entry may have this tenant; that one could not be asked says more than that one is not there.
                Err(error) if !matches!(refusal, Error::Unavailable { .. }) => refusal = error,
                Err(_) => {}
            }
        }
        Err(refusal)
    }

    /// What a token is told that is from nobody we know.
    pub(super) fn stranger(&self) -> Error {
        if self.issuers.is_empty() && self.directories.is_empty() {
            Error::invalid(NO_TOKENS)
        } else {
            self.unaccepted()
        }
    }

    fn unaccepted(&self) -> Error {
        let issuers = self.issuers.iter().map(|issuer| issuer.config.issuer.clone());
        let all = issuers.chain(self.directories.iter().flat_map(entra::Directory::expected));
        let expected = super::expected(&all.take(Trust::EXPECTED_MAX).collect::<Vec<_>>());
        Error::invalid(format!("the token's `iss` is not an accepted issuer; expected {expected}"))
    }
}

/// Whom a token says it is from, and what that means for the rest of it.
struct Sender<'a> {
    source: Arc<Source>,
    algorithms: &'a [Algorithm],
    leeway: Duration,
    demanded: Demanded,
    rules: Rules<'a>,
    groups: Option<Arc<Resolver>>,
}

/// A token whose signature and claims are good, with what must be asked again each time it is used.
pub(super) struct Verified {
    pub(super) principal: Arc<Principal>,
    times: Times,
    leeway_s: i64,
    bound_to: BoundTo,
    demanded: Demanded,
    source: Arc<Source>,
    generation: u64,
    /// How long the cache may keep it.
    lasts: Duration,
    /// Of the token, where it is kept.
    token_bytes: usize,
    /// Who can be asked for what the token left out.
    groups: Option<Arc<Resolver>>,
}

impl Verified {
    /// Seals the token into its principal. It goes when they go: the cache drops both when the token expires.
    pub(super) fn keep(&mut self, token: &str) {
        let sealed = credentials::assertion(token, self.principal.expires_at());
        self.principal = Arc::new(Principal::clone(&self.principal).bearing(sealed));
        self.token_bytes = token.len();
    }

    /// Asks for the groups that the token left out, where that is configured. Whatever comes of it holds for a while only;
    /// while they are not known, they are taken against the caller.
    pub(super) async fn find_groups(&mut self, token: &str) {
        let Some(resolver) = self.groups.as_ref().filter(|_| self.principal.groups_unknown) else { return };
        let known = resolver.groups(&self.principal, token).await;
        self.lasts = self.lasts.min(known.left());
        if let Some(groups) = known.groups() {
            let claims = Claims { groups: groups.clone(), groups_unknown: false, ..Claims::clone(&self.principal) };
            self.principal = Arc::new(Principal::verified(claims));
        }
    }

    /// What remembering it takes, roughly.
    pub(super) fn bytes(&self) -> usize {
        let claims = &self.principal;
        let sets = [&claims.scopes, &claims.roles, &claims.groups];
        let names = sets.into_iter().flatten().map(|name| NAME_BYTES + name.len());
        // In the claims, and once more in the key.
        let texts = 2 * (claims.subject.len() + claims.issuer.len() + claims.tenant.as_ref().map_or(0, String::len));
        let others = [&claims.actor, &claims.client].into_iter().flatten().map(String::len);
        VERIFIED_BYTES + texts + self.token_bytes + names.sum::<usize>() + others.sum::<usize>()
    }

    /// The issuer still has every key it had when the signature was checked.
    pub(super) fn still_trusted(&self, now: Instant) -> bool {
        self.source.keys(now).is_some_and(|keys| keys.generation == self.generation)
    }

    /// What can change between two uses of a token: the time and the connection.
    pub(super) fn check(&self, at: SystemTime, certificate: Option<&ClientCertificate>) -> Result<(), Error> {
        self.times.check(super::seconds(at), self.leeway_s)?;
        match &self.bound_to.certificate {
            Some(bound) if certificate.is_none_or(|certificate| certificate.fingerprint != *bound) => {
                Err(Error::invalid(
                    "the token is bound to a client certificate that this connection does not have: \
                     connect with the certificate that the token was asked for with",
                ))
            }
            None if self.demanded.certificate_bound == Demand::Required => Err(Error::invalid(
                "the token is not bound to a client certificate (`cnf`), and this issuer's must be: \
                 ask for it over a connection with one",
            )),
            _ => Ok(()),
        }
    }

    /// The key that a DPoP proof must come from, for a token that is presented by this scheme; `None`: there need be none.
    pub(super) fn key(&self, scheme: Scheme) -> Result<Option<&Thumbprint>, Error> {
        let refused = |words: &str| Err(Error::Dpop { fault: Fault::Token, description: words.into() });
        match (self.demanded.dpop, scheme, &self.bound_to.key) {
            (Demand::Off, Scheme::Bearer, None) | (Demand::Optional, Scheme::Bearer, None) => Ok(None),
            (Demand::Off, ..) => Err(Error::invalid("DPoP is not accepted for tokens of this issuer")),
            (_, Scheme::Dpop, Some(key)) => Ok(Some(key)),
            (_, Scheme::Dpop, None) => refused(
                "the token is not bound to a key (`cnf.jkt`): send it as `Bearer`, or ask for one with a DPoP proof",
            ),
            (_, Scheme::Bearer, Some(_)) => refused(
                "the token is bound to a key: send it as `Authorization: DPoP` with a proof in the `DPoP` header",
            ),
            (Demand::Required, Scheme::Bearer, None) => {
                refused("tokens of this issuer must be bound to a key: ask for one with a DPoP proof")
            }
        }
    }

    pub(super) fn leeway_s(&self) -> i64 {
        self.leeway_s
    }
}

/// Drops a cached token when it expires.
pub(super) struct UntilExpiry;

impl<K> moka::Expiry<K, Arc<Verified>> for UntilExpiry {
    fn expire_after_create(&self, _: &K, token: &Arc<Verified>, _: Instant) -> Option<Duration> {
        Some(token.lasts)
    }

    fn expire_after_update(&self, _: &K, token: &Arc<Verified>, _: Instant, _: Option<Duration>) -> Option<Duration> {
        Some(token.lasts)
    }
}

/// Verifies everything about a token that does not change.
pub(super) async fn verify(trust: &Trust, token: &str, request: &Request, mtls: bool) -> Result<Verified, Error> {
    if trust.sources().next().is_none() {
        return Err(Error::invalid(NO_TOKENS));
    }
    let parts = Parts::split(token)?;
    let header = Header::read(parts.header)?;
    let payload =
        object(parts.payload).ok_or_else(|| Error::invalid("the token's claims are not one strict JSON object"))?;
    let sender = trust.find(payload.get("iss").and_then(Value::as_str), request.started).await?;
    if !sender.algorithms.contains(&header.algorithm) {
        return Err(Error::invalid("the token's `alg` is not accepted for its issuer"));
    }
    let keys = sender.source.keys_for(header.kid.as_deref(), request.started).await;
    let keys = keys.ok_or_else(|| Error::Unavailable { issuer: sender.source.issuer().into() })?;
    check_signature(&keys, &header, &parts, &sender.rules)?;

    let claims::Accepted { claims, times, bound_to } = claims::accept(&payload, &sender.rules, mtls)?;
    let lasts = times.until_expiry(super::seconds(request.at));
    Ok(Verified {
        principal: Arc::new(Principal::verified(claims)),
        times,
        leeway_s: i64::try_from(sender.leeway.as_secs()).unwrap_or(0),
        bound_to,
        generation: keys.generation,
        demanded: sender.demanded,
        source: sender.source,
        lasts,
        token_bytes: 0,
        groups: sender.groups,
    })
}

fn check_signature(keys: &KeySet, header: &Header, parts: &Parts<'_>, rules: &Rules<'_>) -> Result<(), Error> {
    if let Some(kid) = &header.kid
        && !keys.knows(kid)
    {
        return Err(Error::invalid("the token's `kid` names none of the issuer's keys"));
    }
    let candidates = keys.fitting(header.kid.as_deref(), header.algorithm).filter(|key| rules.admit(key));
    let mut candidates = candidates.take(CANDIDATES_MAX).peekable();
    if candidates.peek().is_none() {
        return Err(Error::invalid("the issuer has no key that fits the token's `alg` and `kid`"));
    }
    let verifies = |key: &Key| key.verifies(header.algorithm, parts.signed.as_bytes(), parts.signature);
    if candidates.any(verifies) { Ok(()) } else { Err(Error::invalid("the token's signature does not verify")) }
}

/// The three parts of a compact JWS, still encoded.
pub(super) struct Parts<'a> {
    pub(super) header: &'a str,
    pub(super) payload: &'a str,
    pub(super) signature: &'a str,
    /// Header, dot, payload.
    pub(super) signed: &'a str,
}

impl<'a> Parts<'a> {
    pub(super) fn split(token: &'a str) -> Result<Self, Error> {
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Error::invalid("the token is not a signed JWT (three parts)"));
        };
        let signed = token.rsplit_once('.').map_or("", |(signed, _)| signed);
        Ok(Parts { header, payload, signature, signed })
    }
}

/// What we read from a JOSE header; everything else in it is either refused or of no effect.
struct Header {
    algorithm: Algorithm,
    kid: Option<String>,
}

impl Header {
    fn read(encoded: &str) -> Result<Header, Error> {
        let header =
            object(encoded).ok_or_else(|| Error::invalid("the token's header is not one strict JSON object"))?;
        // A key or a place to fetch one from is never taken from the token itself; `crit` asks for things we do not do.
        for member in ["crit", "jku", "jwk", "x5c", "x5u"] {
            if header.contains_key(member) {
                return Err(Error::invalid(format!("the token's header has `{member}`, which is not accepted")));
            }
        }
        let algorithm = match header.get("alg") {
            Some(Value::String(name)) => Algorithm::from_str(name).ok(),
            _ => None,
        };
        let algorithm = algorithm.ok_or_else(|| Error::invalid("the token's `alg` is not accepted for its issuer"))?;
        let kid = match header.get("kid") {
            None => None,
            Some(Value::String(kid)) if is_key_id(kid) => Some(kid.clone()),
            Some(_) => return Err(Error::invalid("the token's `kid` is not a short text of visible ASCII")),
        };
        match header.get("typ") {
            None => {}
            Some(Value::String(kind)) if is_access_token_type(kind) => {}
            Some(_) => return Err(Error::invalid("the token's `typ` is not that of an access token")),
        }
        Ok(Header { algorithm, kid })
    }
}

fn is_key_id(kid: &str) -> bool {
    (1..=KID_BYTES_MAX).contains(&kid.len()) && kid.bytes().all(|byte| byte.is_ascii_graphic())
}

/// RFC 9068 section 2.1 and RFC 7519 section 5.1. Others (an ID-JAG, a logout token, a DPoP proof) are not for us.
fn is_access_token_type(kind: &str) -> bool {
    let kind = kind.to_ascii_lowercase();
    matches!(kind.strip_prefix("application/").unwrap_or(&kind), "jwt" | "at+jwt")
}

/// An encoded part as one JSON object without duplicate members at any depth.
pub(super) fn object(encoded: &str) -> Option<Map<String, Value>> {
    strict::object(&URL_SAFE_NO_PAD.decode(encoded).ok()?)
}
