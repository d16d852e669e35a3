//! The configuration file as written: serde types, one field per key. Their doc comments are the schema's and the reference's words.

mod backend;
mod credential;
mod identity;
mod login;
mod route;
mod tenant;
mod vault;

use schemars::JsonSchema;
use serde::Deserialize;

pub(super) use backend::Backend;
pub(super) use backend::Breaker;
pub(super) use backend::EffectRule;
pub(super) use backend::Era;
pub(super) use backend::Filters;
pub(super) use backend::Http;
pub(super) use backend::MaybeBreaker;
pub(super) use backend::Processes;
pub(super) use backend::Redact;
pub(super) use backend::Sse;
pub(super) use backend::Stdio;
pub(super) use backend::Values;
pub(super) use credential::Client;
pub(super) use credential::ClientCredentials;
pub(super) use credential::Credential;
pub(super) use credential::Discovery;
pub(super) use credential::ManagedIdentity;
pub(super) use credential::OnBehalfOf;
pub(super) use credential::SecretIn;
pub(super) use credential::Signature;
pub(super) use credential::TenantPlace;
pub(super) use credential::TokenExchange;
pub(super) use credential::WorkloadIdentity;
pub(super) use identity::Access;
pub(super) use identity::Algorithm;
pub(super) use identity::CertificateBound;
pub(super) use identity::CertificateHeader;
pub(super) use identity::CertificateRule;
pub(super) use identity::Cloud;
pub(super) use identity::Dpop;
pub(super) use identity::Entra;
pub(super) use identity::Groups;
pub(super) use identity::Identity;
pub(super) use identity::Oidc;
pub(super) use identity::Proxy;
pub(super) use identity::Resolve;
pub(super) use login::Login;
pub(super) use route::Destination;
pub(super) use route::Route;
pub(super) use tenant::FOLDER;
pub(super) use tenant::Tenant;
pub(super) use tenant::TenantCertificate;
pub(super) use tenant::Tenants;
pub(super) use vault::ToolChoice;
pub(super) use vault::ToolNames;
pub(super) use vault::Vault;
pub(super) use vault::VaultLogin;
pub(super) use vault::VaultReadOnly;
pub(super) use vault::VaultWrap;

use super::scalar::Offset;
use super::scalar::Quotas;
use super::scalar::Rate;
use super::scalar::Reference;
use super::scalar::Size;
use super::scalar::Span;
use super::scalar::Strings;
use crate::catalog::Effect;
use crate::catalog::Mode;

/// The configuration of Wardgate. Relative paths start at the folder of this file.
//
// Every field is an `Option`, also the required ones: what is missing is then found together with everything else that
// is wrong, and an empty key (`backends:` with everything below it commented out) counts as absent.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Wardgate configuration")]
pub(super) struct File {
    /// Addresses that clients reach the gateway on; at least one.
    #[schemars(with = "Vec<Listener>")]
    pub listeners: Option<Vec<Listener>>,
    /// The address clients use, without a path: `https://mcp.example.com`. Needed with `entra` and `oidc`, because clients find the
    /// login by it (RFC 9728).
    pub public_url: Option<String>,
    /// How callers prove who they are; at least one way. A bad credential is refused, it never falls through to another way.
    #[schemars(with = "Vec<Identity>")]
    pub identity: Option<Vec<Identity>>,
    /// The ceiling over everything that is granted. It never grants; the lowest of gateway, tenant, route and backend holds.
    /// Default: `read-only`.
    pub mode: Option<Mode>,
    /// Who may do what. What nobody granted is denied.
    pub grants: Option<Vec<Grant>>,
    /// Cedar policies: a `.cedar` file, a folder of them, or a list of both. They are in force beside the grants, and their
    /// `forbid` wins over any grant.
    pub policies: Option<Strings>,
    /// How much callers may do. Default: no limits.
    pub limits: Option<Limits>,
    /// MCP servers behind the gateway, by name (letters, digits, `-` and `_`).
    #[schemars(with = "std::collections::BTreeMap<String, Backend>")]
    pub backends: Option<std::collections::BTreeMap<String, Backend>>,
    /// MCP endpoints of the gateway; at least one.
    #[schemars(with = "Vec<Route>")]
    pub routes: Option<Vec<Route>>,
    /// Tenants, by name: each with its own callers, and with backends, grants and limits of its own or the gateway's. Under
    /// `folder`, a folder with more of them, each in a file `NAME.yaml`. Default: none.
    pub tenants: Option<Tenants>,
    /// How the sessions of legacy clients are kept.
    pub sessions: Option<Sessions>,
    /// The listener for `/livez`, `/readyz`, `/metrics` and `/status`. Default: none.
    pub admin: Option<Admin>,
    /// Where the audit log goes: one hash-chained record per request. Default: nowhere.
    pub audit: Option<Audit>,
    /// What is checked of a request before anything of it is parsed.
    pub admission: Option<Admission>,
    /// How long calls and streams may go on after SIGTERM. Default: `30s`.
    pub shutdown_grace: Option<Span>,
    /// The log on standard error (not the audit log).
    pub log: Option<Log>,
}

/// One address clients reach the gateway on.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Listener {
    /// `IP:PORT`, for example `0.0.0.0:8443`, `127.0.0.1:8080` or `[::]:8443`; or `unix:/path/to.sock`.
    #[schemars(with = "String")]
    pub address: Option<String>,
    /// Permission bits of a Unix socket, in octal and in quotes. Default: `"0660"`.
    pub socket_mode: Option<String>,
    /// TLS for this address. Default: plain HTTP.
    pub tls: Option<Tls>,
}

/// TLS of a listener. Changed files are taken up by a reload.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    /// PEM file of the certificate chain, leaf first.
    #[schemars(with = "String")]
    pub certificate: Option<String>,
    /// PEM file of the private key.
    #[schemars(with = "String")]
    pub key: Option<String>,
    /// PEM file of the authorities that client certificates are verified against.
    pub client_ca: Option<String>,
    /// Whether clients are asked for a certificate. Default: `none`.
    pub client_auth: Option<ClientAuth>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ClientAuth {
    /// Not asked for.
    None,
    /// Asked for; one that is sent must be valid.
    Optional,
    /// No connection without a valid one.
    Required,
}

/// Who may do what. At most one of `scope`, `role`, `group` and `subject`; without any, it is for every caller who is let in.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Grant {
    /// For callers with this OAuth scope.
    pub scope: Option<String>,
    /// For callers with this role.
    pub role: Option<String>,
    /// For callers in this group.
    pub group: Option<String>,
    /// For this one caller: a token's `sub`, the name of an API key, or a certificate's identity.
    pub subject: Option<String>,
    /// Effects it allows; each must be named, `write` does not include `read`.
    #[schemars(with = "Vec<Effect>")]
    pub allow: Option<Vec<Effect>>,
    /// Tools it is for, as `backend/tool`, where `*` stands for any characters: `files/read_*`, `files/*`. Default: all tools
    /// of all backends.
    pub tools: Option<Strings>,
    /// Not in force: the audit log and a metric tell where it would have changed the answer. Default: `false`.
    pub shadow: Option<bool>,
    /// What it allows needs a person's yes, each time; the client asks them. Default: `false`.
    pub confirm: Option<bool>,
}

/// How much callers may do. What is not given is unlimited.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    /// Requests from one client address (IPv6: one /64), counted before anything is read, refused ones included:
    /// `600 per 1m`.
    pub address: Option<Rate>,
    /// Of one caller.
    pub principal: Option<CallerBound>,
    /// Of all callers of one tenant together.
    pub tenant: Option<CallerBound>,
    /// Of one caller and one tool; the first entry that matches the tool holds.
    pub tools: Option<Vec<ToolBound>>,
    /// Of everybody at one backend, by its name. Each replica counts for itself.
    pub backends: Option<std::collections::BTreeMap<String, BackendBound>>,
    /// Whose midnight ends the days and months of quotas: `+02:00`. There is no summer time. Default: `+00:00`, UTC.
    pub utc_offset: Option<Offset>,
    /// Count `calls` and `quota` of all replicas together, in Redis or Valkey. Default: each replica counts for itself.
    pub shared: Option<SharedLimits>,
    /// Turns of requests before they wait for anything: tenants (callers without one: each by itself) take turns, so that a
    /// crowd of one does not delay another.
    pub turns: Option<Turns>,
}

/// A bound for one backend.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BackendBound {
    /// Calls and streams held at once.
    pub concurrent: Option<u32>,
}

/// Redis (6 and later) or Valkey. Exactly one of `url` and `nodes`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SharedLimits {
    /// `redis://HOST:PORT`, or `rediss://HOST:PORT` with TLS; `/N` at the end chooses a database.
    pub url: Option<String>,
    /// Several servers side by side (no Redis Cluster), in place of `url`: each tenant is counted by one of them. The same
    /// list on every replica.
    pub nodes: Option<Vec<String>>,
    /// The name to log in with. Default: the server's default user.
    pub user: Option<String>,
    /// Default: no login.
    pub password: Option<Reference>,
    /// PEM file of the authorities that the servers' certificates are verified against. Default: the system's.
    pub ca: Option<String>,
    /// What every key begins with. Default: `wardgate:`.
    pub prefix: Option<String>,
    /// Secret that keys the hashes of callers' and tenants' names; the same on every replica. Default: hashes without a key,
    /// which whoever reads the store can compare with names they guess.
    pub key: Option<Reference>,
    /// For one question; a server that does not answer three in a row is asked no more until it is back. Default: `50ms`.
    pub timeout: Option<Span>,
    /// To connect, TLS and login included. Default: `1s`.
    pub connect_timeout: Option<Span>,
    /// What holds while a server cannot be asked. Default: `local`.
    pub unreachable: Option<Unreachable>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unreachable {
    /// The same figures, counted by each replica for itself.
    Local,
    /// Calls that a rate or a quota is for are refused (503, `limits_unavailable`).
    Refuse,
}

/// Who is in progress, and who waits for that.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Turns {
    /// Requests that are read and judged at once; what they wait for later (servers, tokens) is not counted. Default: 4 for
    /// each core.
    pub in_progress: Option<u32>,
    /// Requests in line. Default: `10000`.
    pub waiting_max: Option<u32>,
    /// Of one tenant, or caller without one. Default: `1000`.
    pub waiting_per_tenant_max: Option<u32>,
    /// How long one waits until it is refused (503, `queue_full`). Default: `5s`.
    pub wait: Option<Span>,
}

/// A rate, a number of calls at once, a number of streams at once, or several of them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CallerBound {
    /// Calls over time, as a bucket that refills evenly: `60 per 1m`.
    pub calls: Option<Rate>,
    /// Calls in each day or month: `1000 per day`; or a list of both. Without `shared` a restart forgets them.
    pub quota: Option<Quotas>,
    /// Calls and streams held at once.
    pub concurrent: Option<u32>,
    /// Event streams held open at once: `GET` streams of legacy clients and `subscriptions/listen` of modern ones. They
    /// count as `concurrent` too.
    pub streams: Option<u32>,
}

/// A bound for the tools that match.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ToolBound {
    /// `backend/tool` glob: `files/search_*`.
    #[schemars(with = "String")]
    pub tools: Option<String>,
    /// Calls over time, as a bucket that refills evenly: `60 per 1m`.
    pub calls: Option<Rate>,
    /// Calls in each day or month: `1000 per day`; or a list of both. Without `shared` a restart forgets them.
    pub quota: Option<Quotas>,
    /// Calls held at once.
    pub concurrent: Option<u32>,
}

/// How the sessions of legacy clients are kept. There is no store: a session id is sealed with a key and carries its session.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Sessions {
    /// Secrets of at least 32 bytes, in base64 or hex: the first seals, all open. The same list on every replica lets each
    /// serve the sessions of the others, and sessions survive a restart. To rotate: put the new key second everywhere,
    /// then first, then drop the old one; sessions sealed under a dropped key end. Default: one key, drawn anew at each
    /// start.
    pub keys: Option<Vec<Reference>>,
    /// From `initialize` to the end of a session, used or not. Default: `24h`; at most `30d`.
    pub lifetime: Option<Span>,
    /// How long a person has to say yes to a call that needs it. Default: `2m`; at most `1h`.
    pub confirm_within: Option<Span>,
}

/// The listener for operations. It knows no authentication: keep it off the public network.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Admin {
    /// `IP:PORT` or `unix:/path/to.sock`.
    #[schemars(with = "String")]
    pub address: Option<String>,
    /// Permission bits of a Unix socket, in octal and in quotes. Default: `"0660"`.
    pub socket_mode: Option<String>,
}

/// Where audit records go: `file` or `stdout`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Audit {
    /// A file that records are appended to. After a rotation, send SIGHUP.
    pub file: Option<String>,
    /// `true`: records go to standard output.
    pub stdout: Option<bool>,
    /// Refuse requests (503) while records cannot be written. Default: `false`.
    pub fail_closed: Option<bool>,
    /// Secret of at least 32 bytes that keys the digests of arguments, so that equal arguments can be told across restarts
    /// and replicas. Default: drawn anew at each start.
    pub digest_key: Option<Reference>,
}

/// What is checked of a request before anything of it is parsed.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Admission {
    /// Host names (no port) the gateway answers to. On loopback listeners, `localhost`, loopback addresses and
    /// the host of `public_url` are always right. Default: any; with `anonymous`: the host of `public_url`, or `localhost`.
    pub hosts: Option<Vec<String>>,
    /// Browser origins that may call: `https://app.example.com`. Requests without an `Origin` header pass. Default: none.
    pub origins: Option<Vec<String>>,
    /// Size of a request's head. Default: `64KiB`; at most `1MiB`.
    pub header_bytes_max: Option<Size>,
    /// Size of a request's body. Default: `4MiB`; at most `1GiB`.
    pub body_bytes_max: Option<Size>,
    /// From the first byte of a request to the end of its head. Default: `10s`.
    pub head_timeout: Option<Span>,
    /// From the end of the head to the end of the body. Default: `30s`.
    pub body_timeout: Option<Span>,
    /// Between two requests on a connection. Default: `60s`.
    pub idle_timeout: Option<Span>,
    /// From admission to the answer, or to the start of its stream. Default: `60s`.
    pub request_timeout: Option<Span>,
    /// Client connections at once. Default: `20000`.
    pub connections_max: Option<u32>,
    /// Between keep-alive comments on a silent event stream. Default: `15s`.
    pub keepalive_interval: Option<Span>,
    /// How long a client may take to accept what is written to it. Default: `30s`.
    pub write_timeout: Option<Span>,
}

/// The log on standard error.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`; or a filter per module: `info,wardgate::backend=debug`. Default: `info`.
    pub level: Option<String>,
    /// How lines are written. Default: `text`.
    pub format: Option<LogFormat>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum LogFormat {
    /// One JSON object per line, for machines.
    Json,
    /// Lines for people.
    Text,
}
