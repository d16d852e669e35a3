//! `identity`, as written: the ways callers prove who they are.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Client;
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
    /// Bearer tokens of Microsoft Entra ID (Azure AD), of version 1.0 and 2.0.
    Entra(Box<Entra>),
    /// Bearer tokens (JWT) of one issuer.
    Oidc(Box<Oidc>),
    /// A proxy in front that terminates TLS: the client certificates it has verified, mapped by the `certificates` rules.
    Proxy(Proxy),
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

/// A client certificate that matches is a caller with these scopes, roles and groups. Exactly one of `spiffe`, `uri`, `dns`,
/// `email`, `fingerprint`, `subject`. Where it is a pattern, one whole part may be `{tenant}`: it names the tenant.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct CertificateRule {
    /// Glob over the SPIFFE id, `*` within one segment, `**` over several: `spiffe://prod.example.com/agents/*`,
    /// `spiffe://prod.example.com/tenant/{tenant}/agent/*`.
    pub spiffe: Option<String>,
    /// Glob over the URIs, `*` within one segment: `https://id.example.com/agents/*`.
    pub uri: Option<String>,
    /// Glob over the DNS names: `*.agents.example.com`, `*.{tenant}.agents.example.com`.
    pub dns: Option<String>,
    /// Glob over the mail addresses: `*@agents.example.com`, `*@{tenant}`.
    pub email: Option<String>,
    /// SHA-256 of the certificate, as 64 hex digits; colons are allowed.
    pub fingerprint: Option<String>,
    /// The whole subject as in RFC 4514: `CN=agent,O=Example`. A value may be `*` for any: `CN=*,OU={tenant},O=Example`.
    pub subject: Option<String>,
    /// Scopes the caller has. Default: none.
    pub scopes: Option<Vec<String>>,
    /// Roles the caller has. Default: none.
    pub roles: Option<Vec<String>>,
    /// Groups the caller is in. Default: none.
    pub groups: Option<Vec<String>>,
    /// The tenant the caller belongs to. Default: what `{tenant}` stands for, else none.
    pub tenant: Option<String>,
}

/// One or several Entra tenants, each bound to its own keys. A caller is known by tenant and object id (`tid`, `oid`).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Entra {
    /// The tenant: its id, or one of its verified domains. This or `tenants`.
    pub tenant: Option<String>,
    /// Several tenants; `organizations` for the accounts of every organisation, `any` for personal accounts, too.
    pub tenants: Option<Strings>,
    /// The application that the tokens are for: its client id, its App ID URI, or both. Of `api://CLIENT-ID`, each form
    /// implies the other.
    #[schemars(with = "Strings")]
    pub audience: Option<Strings>,
    /// Which cloud the tenants are in. Default: `public`.
    pub cloud: Option<Cloud>,
    /// An emulator in place of a cloud: an `https://` URL, or `http://` on this machine. Issuers begin with it.
    pub authority: Option<String>,
    /// Accounts of other organisations that were invited into a tenant. Default: `allow`.
    pub guests: Option<Access>,
    /// Applications that act for themselves; they have roles and no scopes. Default: `allow`.
    pub applications: Option<Access>,
    /// How far its clock may be off; at most `60s`. Default: `30s`.
    pub leeway: Option<Span>,
    /// Whether its tokens must be bound to a client certificate, as those of `oidc`. Default: `optional`.
    pub certificate_bound: Option<CertificateBound>,
    /// Whether its tokens must be bound to a key, as those of `oidc`. Default: `optional`.
    pub dpop: Option<Dpop>,
    /// Callers who are in more groups than a token holds. Default: what is granted by group does not hold for them, what is
    /// forbidden by group does.
    pub groups: Option<Groups>,
    /// How MCP clients log in: Entra does not let them by itself. With several tenants they do at `organizations`.
    pub login: Option<Login>,
}

/// Asks Microsoft Graph for the groups that a token leaves out. They are ids of groups: policies must name them so.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Groups {
    /// With which kind of token Graph is asked.
    #[schemars(with = "Resolve")]
    pub resolve: Option<Resolve>,
    /// The gateway's own app registration: for `on_behalf_of` the one that callers' tokens are for.
    #[schemars(with = "Client")]
    pub client: Option<Client>,
    /// Where Graph is: `https://dod-graph.microsoft.us`, or one of your own beside `authority`. Default: that of the cloud.
    pub graph: Option<String>,
    /// Security groups alone; `false` for distribution lists, directory roles and administrative units, too. As the groups
    /// claim of the app registration is configured. Default: `true`.
    pub security_only: Option<bool>,
    /// How long an answer is believed: who is taken out of a group may act as its member for so long. From `1s` to `1h`.
    /// Default: `5m`.
    pub keep: Option<Span>,
    /// How long a caller waits for the answer, from `100ms` to `10s`; then the groups are unknown. Default: `3s`.
    pub timeout: Option<Span>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum Resolve {
    /// The gateway's own token asks about anybody, applications included: it needs the application permissions
    /// `User.Read.All`, and `Application.Read.All` for applications.
    ClientCredentials,
    /// Each caller's own token, exchanged, asks about themselves: it needs the delegated permission `User.Read`. For people.
    OnBehalfOf,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(in crate::config) enum Cloud {
    China,
    Public,
    UsGovernment,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(in crate::config) enum Access {
    Allow,
    Deny,
}

/// A proxy in front that terminates TLS and verifies client certificates. It must set (or remove) the header on every
/// request, and `X-SSL-Client-Verify` too where that counts; from any other address they are ignored.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Proxy {
    /// Where it connects from: addresses, networks (`10.0.0.0/8`), or `unix` for the Unix sockets.
    #[schemars(with = "Strings")]
    pub from: Option<Strings>,
    /// The one header that says what certificate the client has shown. The `x-ssl-client-…` ones count only beside
    /// `X-SSL-Client-Verify: SUCCESS`: the proxy must set or remove BOTH on every request.
    #[schemars(with = "CertificateHeader")]
    pub certificate_header: Option<CertificateHeader>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub(in crate::config) enum CertificateHeader {
    /// Envoy's, one element with `Hash` and `Cert`: `forward_client_cert_details: SANITIZE_SET` and
    /// `set_current_client_cert_details: { cert: true }`. All names come from that certificate.
    #[serde(rename = "x-forwarded-client-cert")]
    Envoy,
    /// The whole certificate in PEM, percent-encoded (nginx: `$ssl_client_escaped_cert`).
    #[serde(rename = "x-ssl-client-cert")]
    Pem,
    /// The subject as in RFC 4514 (nginx: `$ssl_client_s_dn`); for `subject` rules only.
    #[serde(rename = "x-ssl-client-s-dn")]
    Subject,
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
    /// Whether its tokens must be bound to a client certificate (RFC 8705). Those that are bound are accepted only on a
    /// connection with that certificate. Default: `optional`.
    pub certificate_bound: Option<CertificateBound>,
    /// Whether its tokens must be bound to a key, with a proof for each request (DPoP, RFC 9449). With `off` none is
    /// accepted that is. Default: `optional`.
    pub dpop: Option<Dpop>,
    /// How MCP clients log in, where the issuer does not let them by itself. Default: they go to the issuer.
    pub login: Option<Login>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum CertificateBound {
    Optional,
    Required,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum Dpop {
    Off,
    Optional,
    Required,
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
