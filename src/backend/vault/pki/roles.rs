//! Roles of a PKI mount: what may be issued by it.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::issuers::OfMount;
use super::no_role;
use super::thirty_days;
use crate::backend::builtin::Failure;
use crate::backend::builtin::On;
use crate::backend::builtin::Output;
use crate::backend::builtin::Spec;
use crate::backend::builtin::Tool;
use crate::backend::vault::Vault;
use crate::backend::vault::api::Call;
use crate::backend::vault::api::within;
use crate::backend::vault::mounts::Said;
use crate::backend::vault::words::Mount;
use crate::backend::vault::words::Name;
use crate::backend::vault::words::Ttl;
use crate::catalog::Effect;

fn default_issuer() -> Name {
    Name::fixed("default")
}

fn yes() -> bool {
    true
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::backend::vault) struct NewRole {
    /// The PKI mount.
    #[serde(default = "Mount::pki")]
    #[schemars(extend("default" = "pki"))]
    mount: Mount,
    /// The name of the role.
    role_name: Name,
    /// The issuer that signs what the role issues.
    #[serde(default = "default_issuer")]
    #[schemars(extend("default" = "default"))]
    issuer_name: Name,
    /// Any common name may be issued.
    #[serde(default = "yes")]
    #[schemars(extend("default" = true))]
    allow_any_name: bool,
    /// Domains that may be issued, with commas between them.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    allowed_domains: String,
    /// The domains may have `*` in them.
    #[serde(default)]
    #[schemars(extend("default" = false))]
    allow_glob_domains: bool,
    /// IP addresses may be in a certificate.
    #[serde(default)]
    #[schemars(extend("default" = false))]
    allow_ip_sans: bool,
    /// The longest life of what is issued.
    #[serde(default = "thirty_days")]
    #[schemars(extend("default" = "30d"))]
    max_ttl: Ttl,
}

pub(in crate::backend::vault) struct CreatePkiRole;

impl Tool for CreatePkiRole {
    const SPEC: Spec = Spec {
        group: "pki",
        name: "create_pki_role",
        title: "Create a role",
        summary: "Create a role of a PKI mount, which says what certificates may be issued by it.",
        details: "A role of that name is replaced.",
        effect: Effect::Write,
        overwrites: false,
        idempotent: true,
        open_world: false,
    };
    type Client = Vault;
    type Args = NewRole;
    type Output = Said;

    async fn call(vault: &Vault, on: &On<'_>, args: NewRole) -> Result<Said, Failure> {
        if args.allowed_domains.len() > 4096 {
            return Err(Failure::arguments("argument `allowed_domains`: has more than 4096 bytes"));
        }
        vault.check_pki(on, &args.mount).await?;
        let domains: Vec<&str> = args.allowed_domains.split(',').map(str::trim).filter(|one| !one.is_empty()).collect();
        let body = json!({
            "issuer_ref": &*args.issuer_name,
            "allow_any_name": args.allow_any_name,
            "allowed_domains": domains,
            "allow_bare_domains": !domains.is_empty(),
            "allow_subdomains": !domains.is_empty(),
            "allow_glob_domains": args.allow_glob_domains,
            "allow_ip_sans": args.allow_ip_sans,
            "max_ttl": &*args.max_ttl,
        });
        vault.ask(on, Call::post(within(&args.mount).at("roles").at(&args.role_name), body)).await?;
        let message =
            format!("Successfully created pki role with name '{}' in mount '{}'", &*args.role_name, &*args.mount);
        Ok(Said { message })
    }
}

#[derive(JsonSchema, Serialize)]
pub(in crate::backend::vault) struct Roles {
    roles: Vec<String>,
}

impl Output for Roles {
    fn text(&self) -> Option<String> {
        serde_json::to_string(&self.roles).ok()
    }
}

pub(in crate::backend::vault) struct ListPkiRoles;

impl Tool for ListPkiRoles {
    const SPEC: Spec = Spec {
        group: "pki",
        name: "list_pki_roles",
        title: "List roles",
        summary: "List the names of the roles of a PKI mount.",
        details: "",
        effect: Effect::Read,
        overwrites: false,
        idempotent: true,
        open_world: false,
    };
    type Client = Vault;
    type Args = OfMount;
    type Output = Roles;

    async fn call(vault: &Vault, on: &On<'_>, args: OfMount) -> Result<Roles, Failure> {
        vault.check_pki(on, &args.mount).await?;
        let reply = vault.ask(on, Call::list(within(&args.mount).at("roles"))).await?;
        Ok(Roles { roles: reply.keys() })
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::backend::vault) struct OneRole {
    /// The PKI mount.
    #[serde(default = "Mount::pki")]
    #[schemars(extend("default" = "pki"))]
    mount: Mount,
    /// The name of the role.
    role_name: Name,
}

#[derive(JsonSchema, Serialize)]
pub(in crate::backend::vault) struct Role {
    /// As Vault has it.
    role: Map<String, Value>,
}

impl Output for Role {
    fn text(&self) -> Option<String> {
        serde_json::to_string(&self.role).ok()
    }
}

pub(in crate::backend::vault) struct ReadPkiRole;

impl Tool for ReadPkiRole {
    const SPEC: Spec = Spec {
        group: "pki",
        name: "read_pki_role",
        title: "Read a role",
        summary: "Read a role of a PKI mount: what certificates may be issued by it.",
        details: "",
        effect: Effect::Read,
        overwrites: false,
        idempotent: true,
        open_world: false,
    };
    type Client = Vault;
    type Args = OneRole;
    type Output = Role;

    async fn call(vault: &Vault, on: &On<'_>, args: OneRole) -> Result<Role, Failure> {
        vault.check_pki(on, &args.mount).await?;
        let path = within(&args.mount).at("roles").at(&args.role_name);
        let reply = vault.ask(on, Call::get(path)).await?.or_missing(|| no_role(&args.role_name, &args.mount))?;
        match reply.data() {
            Value::Object(role) => Ok(Role { role: role.clone() }),
            _ => Err(Failure::upstream("Vault's answer has no role")),
        }
    }
}

pub(in crate::backend::vault) struct DeletePkiRole;

impl Tool for DeletePkiRole {
    const SPEC: Spec = Spec {
        group: "pki",
        name: "delete_pki_role",
        title: "Delete a role",
        summary: "Delete a role of a PKI mount; what it issued stays good.",
        details: "",
        effect: Effect::Destroy,
        overwrites: true,
        idempotent: true,
        open_world: false,
    };
    type Client = Vault;
    type Args = OneRole;
    type Output = Said;

    async fn call(vault: &Vault, on: &On<'_>, args: OneRole) -> Result<Said, Failure> {
        vault.check_pki(on, &args.mount).await?;
        let path = within(&args.mount).at("roles").at(&args.role_name);
        vault.ask(on, Call::delete(path)).await?;
        let message =
            format!("Successfully deleted pki role with name '{}' in mount '{}'", &*args.role_name, &*args.mount);
        Ok(Said { message })
    }
}
