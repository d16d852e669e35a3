//! A backend's `credential`, as written: a fixed header, or a token that the gateway gets for callers or for itself.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::scalar::Reference;
use crate::config::scalar::Span;
use crate::config::scalar::Strings;

/// One way to authenticate to a backend: `value`, or exactly one of `on_behalf_of`, `token_exchange`,
/// `client_credentials`, `workload_identity`, `managed_identity` and `forward`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Credential {
    /// With `value`: the header's name. Default: `Authorization`.
    pub header: Option<String>,
    /// A fixed secret: `file:/path` or `env:NAME`. One newline at the end of a file is dropped.
    #[schemars(with = "Option<Reference>")]
    pub value: Option<Reference>,
    /// Put before the value, with a blank; `none` for the value as it is. Default: `Bearer` for `Authorization`, `none` for
    /// other headers.
    pub scheme: Option<String>,
    /// Microsoft Entra's On-Behalf-Of: a token for each user.
    pub on_behalf_of: Option<OnBehalfOf>,
    /// RFC 8693 token exchange: a token for each caller.
    pub token_exchange: Option<TokenExchange>,
    /// The gateway's own token (RFC 6749 section 4.4), the same for all callers.
    pub client_credentials: Option<ClientCredentials>,
    /// The gateway's own token by the workload identity of its pod (AKS), the same for all callers.
    pub workload_identity: Option<WorkloadIdentity>,
    /// The gateway's own token by the managed identity of its machine (Azure), the same for all callers.
    pub managed_identity: Option<ManagedIdentity>,
    /// The caller's own token goes on. Only to a server on this machine that has the gateway's audience.
    pub forward: Option<Forward>,
    /// By tenant of the caller, as the token's issuer names it: another token endpoint and client. Ids of tenants are the
    /// same in lower and upper case.
    pub tenants: Option<BTreeMap<String, TenantPlace>>,
    /// With `on_behalf_of` and `token_exchange`: what the list of tools is asked for with at start and when it is old.
    /// Default: the first caller's credential.
    pub discovery: Option<Discovery>,
    /// PEM bundle of the token endpoint's authorities. Default: the system's.
    pub ca: Option<String>,
    /// One exchange with the token endpoint. Default: `5s`.
    pub timeout: Option<Span>,
}

/// A token for each user, by Entra. The token endpoint is `token_url`, or it follows from `tenant`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct OnBehalfOf {
    /// Directory (tenant) id or domain.
    pub tenant: Option<String>,
    /// Of another cloud. Default: `https://login.microsoftonline.com`.
    pub authority: Option<String>,
    /// The token endpoint itself.
    pub token_url: Option<String>,
    /// The gateway's own app registration: the one that callers' tokens are for.
    #[schemars(with = "Client")]
    pub client: Option<Client>,
    /// What the token is for, as `api://<app>/.default`.
    #[schemars(with = "Strings")]
    pub scope: Option<Strings>,
    /// Tells Entra that claims challenges are understood (the client capability `cp1`), for a backend that makes them:
    /// tokens then live longer, and end at once when access does. Needs callers whose clients answer challenges.
    /// Default: `false`.
    pub continuous_access: Option<bool>,
}

/// A token for each caller, by any provider that speaks RFC 8693.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct TokenExchange {
    /// The token endpoint.
    #[schemars(with = "String")]
    pub token_url: Option<String>,
    /// Who the gateway is to it.
    #[schemars(with = "Client")]
    pub client: Option<Client>,
    /// Names of the services that the token is for.
    pub audience: Option<Strings>,
    /// URLs of the services that the token is for.
    pub resource: Option<Strings>,
    pub scope: Option<Strings>,
    /// A file with the token of who acts for the caller; read each time.
    pub actor_token_file: Option<String>,
}

/// The gateway's own token. The token endpoint is `token_url`, or, for Entra, it follows from `tenant`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct ClientCredentials {
    /// Entra: directory (tenant) id or domain.
    pub tenant: Option<String>,
    /// Entra: of another cloud. Default: `https://login.microsoftonline.com`.
    pub authority: Option<String>,
    /// The token endpoint itself.
    pub token_url: Option<String>,
    /// Who the gateway is to it.
    #[schemars(with = "Client")]
    pub client: Option<Client>,
    pub scope: Option<Strings>,
    /// Names of the services that the token is for.
    pub audience: Option<Strings>,
    /// URLs of the services that the token is for.
    pub resource: Option<Strings>,
}

/// What a pod with Azure Workload Identity has in its environment, unless it is written here.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct WorkloadIdentity {
    /// Default: `AZURE_TENANT_ID` of the environment.
    pub tenant: Option<String>,
    /// Default: `AZURE_AUTHORITY_HOST` of the environment, or `https://login.microsoftonline.com`.
    pub authority: Option<String>,
    /// Default: `AZURE_CLIENT_ID` of the environment.
    pub client_id: Option<String>,
    /// Default: `AZURE_FEDERATED_TOKEN_FILE` of the environment. Read each time.
    pub token_file: Option<String>,
    /// What the token is for, as `https://vault.azure.net/.default`.
    #[schemars(with = "Strings")]
    pub scope: Option<Strings>,
}

/// The identity that Azure gives the machine (IMDS, App Service, Container Apps).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct ManagedIdentity {
    /// Of a user-assigned identity. Default: the system-assigned one.
    pub client_id: Option<String>,
    /// What the token is for, as `https://vault.azure.net/.default`.
    #[schemars(with = "String")]
    pub scope: Option<String>,
}

/// The caller's token as it came.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Forward {
    /// The server's audience; it must be the only audience of every issuer under `identity`.
    #[schemars(with = "String")]
    pub audience: Option<String>,
}

/// For callers of one tenant.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct TenantPlace {
    /// Entra: directory (tenant) id or domain.
    pub tenant: Option<String>,
    /// Entra: of another cloud. Default: `https://login.microsoftonline.com`.
    pub authority: Option<String>,
    /// The token endpoint itself.
    pub token_url: Option<String>,
    /// Default: the same as for everybody.
    pub client: Option<Client>,
}

/// The gateway's own identity for the list of tools; calls never use it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Discovery {
    pub client_credentials: Option<ClientCredentials>,
    pub workload_identity: Option<WorkloadIdentity>,
    pub managed_identity: Option<ManagedIdentity>,
}

/// Who the gateway is to a token endpoint, and how it proves that: one of `secret`, `key`, `token_file` and
/// `managed_identity`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Client {
    /// The client (application) id.
    #[schemars(with = "String")]
    pub id: Option<String>,
    /// A client secret.
    pub secret: Option<Reference>,
    /// How the secret is sent. Default: `post`.
    pub auth: Option<SecretIn>,
    /// A private key (PEM) that signs an assertion (`private_key_jwt`).
    pub key: Option<Reference>,
    /// The certificate of the key (PEM), which Entra knows the key by.
    pub certificate: Option<String>,
    /// Of the signature. Default: `PS256`.
    pub algorithm: Option<Signature>,
    /// `kid` of the assertion.
    pub key_id: Option<String>,
    /// A file with an assertion that somebody else renews (workload identity); read each time.
    pub token_file: Option<String>,
    /// The machine's managed identity vouches for the client: no secret at all.
    pub managed_identity: Option<Voucher>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum SecretIn {
    Basic,
    Post,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub(in crate::config) enum Signature {
    #[serde(rename = "ES256")]
    Es256,
    #[serde(rename = "PS256")]
    Ps256,
    #[serde(rename = "RS256")]
    Rs256,
}

/// Which managed identity.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Voucher {
    /// Of a user-assigned identity. Default: the system-assigned one.
    pub client_id: Option<String>,
}
