//! `backends.NAME.vault`, as written: HashiCorp Vault or OpenBao as a built-in backend.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::scalar::Reference;
use crate::config::scalar::Span;

/// HashiCorp Vault or OpenBao: tools of the gateway itself, no other MCP server.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Vault {
    /// Where Vault is: `https://vault.example.com:8200`. Nothing else ever chooses it.
    #[schemars(with = "String")]
    pub address: Option<String>,
    /// Vault Enterprise and OpenBao: the namespace of everything.
    pub namespace: Option<String>,
    /// PEM file of the authorities that its certificate is verified against. Default: the system's.
    pub ca: Option<String>,
    /// PEM file of the certificate the gateway shows; needs `client_key`.
    pub client_certificate: Option<String>,
    /// PEM file of the key of `client_certificate`.
    pub client_key: Option<String>,
    /// How the gateway, or each caller, gets a token of Vault.
    #[schemars(with = "VaultLogin")]
    pub login: Option<VaultLogin>,
    /// With what calls that only read are made. Default: where the ceiling is `read-only`, a child token with a policy that
    /// the gateway writes; else the login's own token.
    pub read_only: Option<VaultReadOnly>,
    /// Mounts that may be used, as globs: `secret`, `team/*`. Default: all.
    pub mounts: Option<Vec<String>>,
    /// Mounts with key/value engines of version 1, for the policy that the gateway writes: their paths look like any others.
    pub kv1_mounts: Option<Vec<String>>,
    /// Offer the tools that make and delete mounts. Default: `false`.
    pub allow_mount_management: Option<bool>,
    /// What is given out as a wrapping token, which unwraps once, in place of the thing itself.
    pub wrap: Option<VaultWrap>,
    /// Which tools are offered, and what they are called.
    pub tools: Option<ToolChoice>,
    /// One exchange with Vault, and one call of a tool. Default: `30s`.
    pub timeout: Option<Span>,
    /// Connections to it at once; more calls wait. Default: `256`.
    pub connections_max: Option<u32>,
}

/// Exactly one of these.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct VaultLogin {
    /// A token: `file:/path` or `env:NAME`. It is renewed; a changed file is read again.
    pub token: Option<Reference>,
    /// AppRole.
    pub approle: Option<VaultAppRole>,
    /// The service account of the gateway's pod.
    pub kubernetes: Option<VaultKubernetes>,
    /// Each caller's own token: Vault's policies are then for the caller, not for the gateway.
    pub jwt: Option<VaultRole>,
    /// The client certificate (`client_certificate`).
    pub certificate: Option<VaultRole>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct VaultAppRole {
    /// Where the auth method is mounted. Default: `approle`.
    pub mount: Option<String>,
    #[schemars(with = "Reference")]
    pub role_id: Option<Reference>,
    #[schemars(with = "Reference")]
    pub secret_id: Option<Reference>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct VaultKubernetes {
    /// Where the auth method is mounted. Default: `kubernetes`.
    pub mount: Option<String>,
    #[schemars(with = "String")]
    pub role: Option<String>,
    /// Read each time. Default: `/var/run/secrets/kubernetes.io/serviceaccount/token`.
    pub token_file: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct VaultRole {
    /// Where the auth method is mounted. Default: `jwt`, or `cert`.
    pub mount: Option<String>,
    /// Default: the auth method's own default.
    pub role: Option<String>,
}

/// A token that cannot write, so that a mistake of the gateway cannot either. `role`, `trust_login`, or a child token.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct VaultReadOnly {
    /// The one policy that the child token has. Default: `wardgate-NAME-read-only`.
    pub policy: Option<String>,
    /// The gateway writes the policy; `false`: somebody else has. Default: `true`.
    pub write_policy: Option<bool>,
    /// A token role to make the child by, where the login's own policies do not include `policy`.
    pub token_role: Option<String>,
    /// In place of a child: the same login (`kubernetes`, `jwt`, `certificate`) with another role.
    pub role: Option<String>,
    /// In place of a child: the login's own token, which the operator has seen to. Default: `false`.
    pub trust_login: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct VaultWrap {
    /// Every secret that is read. Default: `false`, only when the caller asks for it.
    pub secrets: Option<bool>,
    /// Every certificate that is issued, with its private key. Default: `false`, only when the caller asks for it.
    pub private_keys: Option<bool>,
    /// How long a wrapping token is good; the longest a caller may ask for. Default: `5m`.
    pub ttl: Option<Span>,
}

/// Which tools of a built-in backend are offered.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct ToolChoice {
    /// Groups of tools. Default: all.
    pub groups: Option<Vec<String>>,
    /// Tools that are not offered, as globs.
    pub disable: Option<Vec<String>>,
    /// How names with dots are written. Default: `dotted`.
    pub names: Option<ToolNames>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum ToolNames {
    /// `kv.read`
    Dotted,
    /// `kv_read`, for model APIs that take no dots.
    Underscored,
}
