//! Certificates: PKI mounts, their issuers and roles, and issuing.

mod issuers;
mod roles;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use super::Vault;
use super::api::Call;
use super::api::Reply;
use super::api::within;
use super::mounts::Engine;
use super::mounts::Said;
use super::words::Mount;
use super::words::Name;
use super::words::Ttl;
use super::words::Wrapped;
use crate::backend::builtin::Failure;
use crate::backend::builtin::On;
use crate::backend::builtin::Output;
use crate::backend::builtin::Spec;
use crate::backend::builtin::Tool;
use crate::backend::builtin::Trouble;
use crate::catalog::Effect;
use crate::fetch::origin::Path;
pub(super) use issuers::CreatePkiIssuer;
pub(super) use issuers::ListPkiIssuers;
pub(super) use issuers::ReadPkiIssuer;
pub(super) use roles::CreatePkiRole;
pub(super) use roles::DeletePkiRole;
pub(super) use roles::ListPkiRoles;
pub(super) use roles::ReadPkiRole;

impl Vault {
    /// Is this a PKI mount?
    async fn check_pki(&self, on: &On<'_>, mount: &Mount) -> Result<(), Failure> {
        match self.engine(on, mount).await? {
            Some(Engine::Pki) => Ok(()),
            Some(_) => Err(Failure::arguments(format!("mount path '{}' is not a pki engine", &**mount))),
            None => Err(Failure::missing(format!(
                "mount path '{}' does not exist, you should use 'enable_pki' if you want enable pki on this mount.",
                &**mount
            ))),
        }
    }
}

/// A text of an answer.
fn text(value: &Value, name: &str) -> String {
    value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Enabling {
    /// Where the engine is mounted.
    #[serde(default = "Mount::pki")]
    #[schemars(extend("default" = "pki"))]
    path: Mount,
    /// For people.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    description: String,
    /// The longest life of anything it issues.
    #[serde(default = "ten_years")]
    #[schemars(extend("default" = "87600h"))]
    max_ttl: Ttl,
}

fn ten_years() -> Ttl {
    Ttl::fixed("87600h")
}

fn thirty_days() -> Ttl {
    Ttl::fixed("30d")
}

pub(super) struct EnablePki;

impl Tool for EnablePki {
    const SPEC: Spec = Spec {
        group: "pki",
        name: "enable_pki",
        title: "Enable PKI",
        summary: "Mount a PKI engine, which issues certificates, at a path.",
        details: "",
        effect: Effect::Write,
        overwrites: false,
        idempotent: false,
        open_world: false,
    };
    type Client = Vault;
    type Args = Enabling;
    type Output = Said;

    async fn call(vault: &Vault, on: &On<'_>, args: Enabling) -> Result<Said, Failure> {
        let path = &*args.path;
        if vault.engine(on, &args.path).await?.is_some() {
            let message = format!(
                "mount path '{path}' already exists, you should use 'delete_mount' if you want to re-create it."
            );
            return Err(Failure::new(Trouble::Conflict, message));
        }
        let mount = Path::fixed("v1/sys/mounts").through(path);
        let body = json!({ "type": "pki", "description": args.description });
        vault.ask(on, Call::post(mount.clone(), body)).await?;
        vault.engines.forget();
        let tune = json!({ "max_lease_ttl": &*args.max_ttl });
        if let Err(failure) = vault.ask(on, Call::post(mount.clone().at("tune"), tune)).await {
            // Half an engine is worse than none.
            if vault.ask(on, Call::delete(mount)).await.is_err() {
                return Err(failure.hint(format!("The mount at '{path}' was made and could not be taken back.")));
            }
            vault.engines.forget();
            return Err(failure);
        }
        Ok(Said { message: format!("Successfully created pki mount at path '{path}'") })
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Issuing {
    /// The PKI mount.
    #[serde(default = "Mount::pki")]
    #[schemars(extend("default" = "pki"))]
    mount: Mount,
    /// The role that says what may be issued.
    role_name: Name,
    /// The common name of the certificate.
    #[schemars(length(min = 1, max = 255))]
    common_name: String,
    /// How long it is to be good.
    #[serde(default = "thirty_days")]
    #[schemars(extend("default" = "30d"))]
    ttl: Ttl,
    /// Give a wrapping token that is good for this long (`5m`) instead of the certificate and its private key.
    wrap_ttl: Option<Ttl>,
}

#[derive(JsonSchema, Serialize)]
pub(super) struct Issued {
    /// PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    /// PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    issuing_ca: Option<String>,
    /// PEM, one by one.
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_chain: Option<Vec<String>>,
    /// PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial_number: Option<String>,
    /// Seconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration: Option<u64>,
    /// In place of all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    wrapped: Option<Wrapped>,
}

impl Output for Issued {}

pub(super) struct IssuePkiCertificate;

impl Tool for IssuePkiCertificate {
    const SPEC: Spec = Spec {
        group: "pki",
        name: "issue_pki_certificate",
        title: "Issue a certificate",
        summary: "Issue a certificate with a new private key, by a role of a PKI mount.",
        details: "The private key is in the result unless `wrap_ttl` is given: then a token is given that unwraps all once.",
        effect: Effect::Write,
        overwrites: false,
        idempotent: false,
        open_world: false,
    };
    type Client = Vault;
    type Args = Issuing;
    type Output = Issued;

    async fn call(vault: &Vault, on: &On<'_>, args: Issuing) -> Result<Issued, Failure> {
        if args.common_name.is_empty() || args.common_name.len() > 255 {
            return Err(Failure::arguments("argument `common_name`: must have 1 to 255 bytes"));
        }
        vault.check_pki(on, &args.mount).await?;
        let wrap = vault.wrap(args.wrap_ttl.as_ref(), vault.config.wrap.private_keys);
        let path = within(&args.mount).at("issue").at(&args.role_name);
        let body = json!({ "common_name": args.common_name, "ttl": &*args.ttl });
        let reply = vault.ask(on, Call::post(path, body).wrapped(wrap)).await?;
        let reply = reply.or_missing(|| no_role(&args.role_name, &args.mount))?;
        if wrap.is_some() {
            let wrapped = Wrapped::of(&reply.body);
            let wrapped = wrapped.ok_or_else(|| Failure::upstream("Vault did not wrap the certificate"))?;
            return Ok(Issued { wrapped: Some(wrapped), ..Issued::nothing() });
        }
        Ok(Issued::of(&reply))
    }
}

fn no_role(role: &Name, mount: &Mount) -> String {
    format!("No pki role found with name '{}' in mount '{}'", &**role, &**mount)
}

impl Issued {
    fn nothing() -> Issued {
        Issued {
            certificate: None,
            issuing_ca: None,
            ca_chain: None,
            private_key: None,
            private_key_type: None,
            serial_number: None,
            expiration: None,
            wrapped: None,
        }
    }

    fn of(reply: &Reply) -> Issued {
        let data = reply.data();
        let one = |name: &str| data.get(name).and_then(Value::as_str).map(str::to_owned);
        let chain = data.get("ca_chain").and_then(Value::as_array);
        Issued {
            certificate: one("certificate"),
            issuing_ca: one("issuing_ca"),
            ca_chain: chain.map(|chain| chain.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
            private_key: one("private_key"),
            private_key_type: one("private_key_type"),
            serial_number: one("serial_number"),
            expiration: data.get("expiration").and_then(Value::as_u64),
            wrapped: None,
        }
    }
}
