//! `identity`, as written: the ways callers prove who they are.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Login;
use crate::config::scalar::Span;
use crate::config::scalar::Strings;

/// One way to prove who is calling: a mapping with exactly one of these keys.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum Identity {
    /// No proof at all: a request without a credential is the caller `anonymous`. Only where every listener is on loopback
    /// or a Unix socket.
    Anonymous(Anonymous),
    /// Keys made with `wardgate api-key`.
    ApiKeys(ApiKeys),
    /// Client certificates that name a caller by themselves; the first rule that matches holds. Needs a listener with
    /// `client_auth`.
    Certificates(Vec<CertificateRule>),
    /// Bearer tokens (JWT) of one issuer.
    Oidc(Box<Oidc>),
}

/// Callers without a credential.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Anonymous {
    /// Scopes they have. Default: none.
    pub scopes: Option<Vec<String>>,
}

/// Callers with a key of the gateway's own.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct ApiKeys {
    /// The file of hashed keys, one per line, as `wardgate api-key` prints them.
    #[schemars(with = "String")]
    pub file: Option<String>,
}

/// A client certificate that matches is a caller with these scopes. Exactly one of `spiffe`, `dns`, `fingerprint`, `subject`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct CertificateRule {
    /// Glob over the SPIFFE id, `*` within one segment, `**` over several: `spiffe://prod.example.com/agents/*`.
    pub spiffe: Option<String>,
    /// Glob over the DNS names: `*.agents.example.com`.
    pub dns: Option<String>,
    /// SHA-256 of the certificate, as 64 hex digits; colons are allowed.
    pub fingerprint: Option<String>,
    /// The exact subject as in RFC 4514: `CN=agent,O=Example`.
    pub subject: Option<String>,
    /// Scopes the caller has. Default: none.
    pub scopes: Option<Vec<String>>,
    /// The tenant the caller belongs to. Default: none.
    pub tenant: Option<String>,
}

/// One trusted issuer of tokens, bound to its own keys.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Oidc {
    /// The exact `iss` of its tokens: `https://idp.example.com`.
    #[schemars(with = "String")]
    pub issuer: Option<String>,
    /// One or more audiences; one of them must be in `aud`. Usually the `public_url`.
    #[schemars(with = "Strings")]
    pub audience: Option<Strings>,
    /// Where its keys are published. Default: found by OIDC discovery at the issuer.
    pub jwks_url: Option<String>,
    /// A file with its keys (a JWKS document), in place of `jwks_url`.
    pub jwks_file: Option<String>,
    /// Signature algorithms that are accepted. Those with a shared key (`HS…`) need `jwks_file`.
    /// Default: `[RS256, PS256, ES256, ES384, EdDSA]`.
    pub algorithms: Option<Vec<Algorithm>>,
    /// How far its clock may be off; at most `60s`. Default: `30s`.
    pub leeway: Option<Span>,
    /// Claims that name the tenant, the first that is present. Default: `[tid, tenant_id, tenant]`.
    pub tenant_claim: Option<Strings>,
    /// The claim that lists groups. Default: `groups`.
    pub groups_claim: Option<String>,
    /// How MCP clients log in, where the issuer does not let them by itself. Default: they go to the issuer.
    pub login: Option<Login>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
pub(in crate::config) enum Algorithm {
    #[serde(rename = "EdDSA")]
    EdDsa,
    ES256,
    ES384,
    HS256,
    HS384,
    HS512,
    PS256,
    PS384,
    PS512,
    RS256,
    RS384,
    RS512,
}
