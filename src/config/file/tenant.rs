//! `tenants`, as written: who is told apart behind one gateway, by name, and where more of them are.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use schemars::Schema;
use schemars::SchemaGenerator;
use schemars::json_schema;
use serde::Deserialize;
use serde::Deserializer;
use serde::de;

use super::Backend;
use super::Grant;
use super::Identity;
use super::Limits;
use super::Route;
use crate::catalog::Mode;
use crate::config::scalar::Strings;

/// One tenant: who is told apart from everybody else behind the gateway. It is found by `host`, `path`, `certificate`, or by
/// what a credential says about its caller's tenant (`entra_tenant`, `claim`); all that is given must hold. What it does not
/// state of `identity`, `grants` and `policies`, `limits`, `backends` and `routes` it has from the gateway.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Tenant {
    /// Host names (no port) that are this tenant's alone: `contoso.mcp.example.com`.
    pub host: Option<Strings>,
    /// A path that is this tenant's alone, with all below it: `/t/contoso`. Its routes are below: `/t/contoso/mcp`.
    pub path: Option<String>,
    /// Ids of its Entra tenants: what tokens have as `tid`.
    pub entra_tenant: Option<Strings>,
    /// What its callers' credentials say about their tenant: a token's tenant claim, `tenant=` of an API key, the tenant of a
    /// certificate rule. Default: the tenant's name; with an `identity` of its own or a `certificate`, anything.
    pub claim: Option<Strings>,
    /// Client certificates of its callers; any of them.
    pub certificate: Option<Vec<TenantCertificate>>,
    /// How its callers prove who they are. Needs `host`, `path` or `certificate`. Default: as the gateway's.
    pub identity: Option<Vec<Identity>>,
    /// A ceiling for this tenant; the lowest of gateway, tenant, route and backend holds. Default: the gateway's.
    pub mode: Option<Mode>,
    /// Who of its callers may do what. With these or `policies`, nothing that the gateway grants or permits holds here; what
    /// the gateway's policies `forbid` always does. Default: the gateway's.
    pub grants: Option<Vec<Grant>>,
    /// Cedar policies for its callers, as the gateway's `policies`.
    pub policies: Option<Strings>,
    /// How much its callers may do, in place of the gateway's; `tenant` is for all of them together. `address`, `shared`
    /// and `turns` are the gateway's alone, and its bounds of `backends` hold as well. Default: the gateway's.
    pub limits: Option<Limits>,
    /// MCP servers of its own, beside the gateway's. One with the name of one of the gateway's stands in its place.
    #[schemars(with = "Option<BTreeMap<String, Backend>>")]
    pub backends: Option<BTreeMap<String, Backend>>,
    /// Its endpoints, in place of the gateway's. Without `host` and `path` at the gateway's own addresses. Default: the
    /// gateway's.
    pub routes: Option<Vec<Route>>,
}

/// Client certificates of a tenant. At most one of `spiffe`, `uri`, `dns`, `email`, `fingerprint` and `subject`, as in a
/// certificate rule, `issuer`, or both.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct TenantCertificate {
    /// Glob over the SPIFFE id: `spiffe://prod.example.com/tenant/contoso/**`.
    pub spiffe: Option<String>,
    /// Glob over the URIs.
    pub uri: Option<String>,
    /// Glob over the DNS names: `*.contoso.agents.example.com`.
    pub dns: Option<String>,
    /// Glob over the mail addresses.
    pub email: Option<String>,
    /// SHA-256 of the certificate, as 64 hex digits.
    pub fingerprint: Option<String>,
    /// The whole subject as in RFC 4514; a value may be `*`: `CN=*,OU=contoso,O=Example`.
    pub subject: Option<String>,
    /// The whole name of the authority that issued it, as in RFC 4514; a value may be `*`.
    pub issuer: Option<String>,
}

/// Tenants by name; `folder` names a folder with more of them, each in a file `NAME.yaml`.
#[derive(Debug, Default)]
pub(in crate::config) struct Tenants {
    pub folder: Option<String>,
    pub named: BTreeMap<String, Tenant>,
}

pub(in crate::config) const FOLDER: &str = "folder";

impl<'de> Deserialize<'de> for Tenants {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ByName;

        impl<'de> de::Visitor<'de> for ByName {
            type Value = Tenants;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of names to tenants")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Tenants, A::Error> {
                let mut tenants = Tenants::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == FOLDER {
                        tenants.folder = map.next_value()?;
                    } else {
                        tenants.named.insert(name, map.next_value::<Option<Tenant>>()?.unwrap_or_default());
                    }
                }
                Ok(tenants)
            }
        }

        deserializer.deserialize_any(ByName)
    }
}

impl JsonSchema for Tenants {
    fn schema_name() -> Cow<'static, str> {
        "Tenants".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "properties": { "folder": { "type": "string" } },
            "additionalProperties": generator.subschema_for::<Tenant>(),
        })
    }
}
