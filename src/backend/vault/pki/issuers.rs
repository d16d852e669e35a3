//! Issuers of a PKI mount: roots, and intermediates that another mount's issuer signs.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::text;
use super::thirty_days;
use crate::backend::builtin::Failure;
use crate::backend::builtin::On;
use crate::backend::builtin::Output;
use crate::backend::builtin::Spec;
use crate::backend::builtin::Tool;
use crate::backend::vault::Vault;
use crate::backend::vault::api::Call;
use crate::backend::vault::api::within;
use crate::backend::vault::words::Folder;
use crate::backend::vault::words::Mount;
use crate::backend::vault::words::Name;
use crate::backend::vault::words::Ttl;
use crate::catalog::Effect;

/// Where the private key of an issuer is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(in crate::backend::vault) enum KeyPlace {
    /// In Vault; it never leaves it.
    Internal,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::backend::vault) struct NewIssuer {
    /// The PKI mount.
    #[serde(default = "Mount::pki")]
    #[schemars(extend("default" = "pki"))]
    mount: Mount,
    /// Where the private key is: always in Vault.
    #[serde(rename = "type")]
    _key: KeyPlace,
    /// The common name of the issuer's certificate.
    #[schemars(length(min = 1, max = 255))]
    common_name: String,
    /// The name of the issuer in the mount.
    issuer_name: Name,
    /// How long its certificate is to be good.
    #[serde(default = "thirty_days")]
    #[schemars(extend("default" = "30d"))]
    ttl: Ttl,
    /// For an intermediate: the PKI mount whose issuer signs it. Needs `root_issuer`.
    #[serde(default)]
    root_mount: Folder,
    /// For an intermediate: the issuer that signs it. Needs `root_mount`.
    #[serde(default)]
    #[schemars(length(max = 128))]
    root_issuer: String,
}

#[derive(JsonSchema, Serialize)]
pub(in crate::backend::vault) struct Created {
    message: String,
    /// PEM.
    certificate: String,
    issuer_id: String,
}

impl Output for Created {
    fn text(&self) -> Option<String> {
        Some(format!("{}\n{}", self.message, self.certificate))
    }
}

pub(in crate::backend::vault) struct CreatePkiIssuer;

impl Tool for CreatePkiIssuer {
    const SPEC: Spec = Spec {
        group: "pki",
        name: "create_pki_issuer",
        title: "Create an issuer",
        summary: "Create an issuer in a PKI mount: a root, or an intermediate that an issuer of another mount signs.",
        details: "",
        effect: Effect::Write,
        overwrites: false,
        idempotent: false,
        open_world: false,
    };
    type Client = Vault;
    type Args = NewIssuer;
    type Output = Created;

    async fn call(vault: &Vault, on: &On<'_>, args: NewIssuer) -> Result<Created, Failure> {
        if args.common_name.is_empty() || args.common_name.len() > 255 {
            return Err(Failure::arguments("argument `common_name`: must have 1 to 255 bytes"));
        }
        vault.check_pki(on, &args.mount).await?;
        match (args.root_mount.is_empty(), args.root_issuer.is_empty()) {
            (true, true) => vault.root(on, &args).await,
            (false, false) => {
                let word = |name, what: String| Failure::arguments(format!("argument `{name}`: {what}"));
                let mount = Mount::try_from(args.root_mount.to_string()).map_err(|what| word("root_mount", what))?;
                let issuer = Name::try_from(args.root_issuer.clone()).map_err(|what| word("root_issuer", what))?;
                vault.check_pki(on, &mount).await?;
                vault.intermediate(on, &args, &mount, &issuer).await
            }
            _ => Err(Failure::arguments("`root_mount` and `root_issuer` go together")),
        }
    }
}

impl Vault {
    async fn root(&self, on: &On<'_>, args: &NewIssuer) -> Result<Created, Failure> {
        let path = within(&args.mount).through("root/generate/internal");
        let body = json!({ "common_name": args.common_name, "issuer_name": &*args.issuer_name, "ttl": &*args.ttl });
        let reply = self.ask(on, Call::post(path, body)).await?.or_missing(|| "the mount has no issuers".to_owned())?;
        let certificate = text(reply.data(), "certificate");
        if certificate.is_empty() {
            return Err(Failure::upstream("Vault's answer has no certificate"));
        }
        Ok(created(args, certificate, text(reply.data(), "issuer_id")))
    }

    async fn intermediate(
        &self,
        on: &On<'_>,
        args: &NewIssuer,
        root: &Mount,
        issuer: &Name,
    ) -> Result<Created, Failure> {
        let mount = || within(&args.mount);
        let lost = || "the mount has no issuers".to_owned();
        let body = json!({ "common_name": args.common_name });
        let asked = Call::post(mount().through("intermediate/generate/internal"), body);
        let csr = text(self.ask(on, asked).await?.or_missing(lost)?.data(), "csr");
        let body = json!({ "csr": csr, "format": "pem_bundle", "ttl": &*args.ttl });
        let sign = within(root).at("issuer").at(issuer).at("sign-intermediate");
        let signed = self.ask(on, Call::post(sign, body)).await?;
        let signed =
            signed.or_missing(|| format!("No issuer found with name '{}' in mount '{}'", &**issuer, &**root))?;
        let certificate = text(signed.data(), "certificate");
        if certificate.is_empty() {
            return Err(Failure::upstream("Vault's answer has no certificate"));
        }
        let set = Call::post(mount().through("intermediate/set-signed"), json!({ "certificate": certificate }));
        let imported = self.ask(on, set).await?.or_missing(lost)?;
        let id = own_issuer(imported.data());
        if let Some(id) = &id {
            let name = json!({ "issuer_name": &*args.issuer_name });
            self.ask(on, Call::post(mount().at("issuer").at(id), name)).await?;
        }
        let base = self.config.origin.base.as_str().trim_end_matches('/');
        let urls = json!({
            "issuing_certificates": format!("{base}/v1/{}/ca", &*args.mount),
            "crl_distribution_points": format!("{base}/v1/{}/crl", &*args.mount),
        });
        self.ask(on, Call::post(mount().through("config/urls"), urls)).await?;
        Ok(created(args, certificate, id.unwrap_or_default()))
    }
}

/// Of what was imported, the issuer that has a key: the others are its chain.
fn own_issuer(data: &Value) -> Option<String> {
    let mapping = data.get("mapping").and_then(Value::as_object);
    let with_key = mapping.into_iter().flatten().find(|(_, key)| key.as_str().is_some_and(|key| !key.is_empty()));
    let first = || data.get("imported_issuers")?.as_array()?.first()?.as_str().map(str::to_owned);
    with_key.map(|(id, _)| id.clone()).or_else(first)
}

fn created(args: &NewIssuer, certificate: String, issuer_id: String) -> Created {
    let message = format!("Successfully created issuer '{}' in mount '{}'", &*args.issuer_name, &*args.mount);
    Created { message, certificate, issuer_id }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::backend::vault) struct OfMount {
    /// The PKI mount.
    #[serde(default = "Mount::pki")]
    #[schemars(extend("default" = "pki"))]
    pub(super) mount: Mount,
}

#[derive(JsonSchema, Serialize)]
pub(in crate::backend::vault) struct Issuers {
    /// What is known of each issuer, by its id.
    issuers: Map<String, Value>,
}

impl Output for Issuers {
    fn text(&self) -> Option<String> {
        serde_json::to_string(&self.issuers).ok()
    }
}

impl Vault {
    async fn issuers(&self, on: &On<'_>, mount: &Mount) -> Result<Map<String, Value>, Failure> {
        self.check_pki(on, mount).await?;
        let reply = self.ask(on, Call::list(within(mount).at("issuers"))).await?;
        Ok(reply.data().get("key_info").and_then(Value::as_object).cloned().unwrap_or_default())
    }
}

pub(in crate::backend::vault) struct ListPkiIssuers;

impl Tool for ListPkiIssuers {
    const SPEC: Spec = Spec {
        group: "pki",
        name: "list_pki_issuers",
        title: "List issuers",
        summary: "List the issuers of a PKI mount by their ids, with their names.",
        details: "",
        effect: Effect::Read,
        overwrites: false,
        idempotent: true,
        open_world: false,
    };
    type Client = Vault;
    type Args = OfMount;
    type Output = Issuers;

    async fn call(vault: &Vault, on: &On<'_>, args: OfMount) -> Result<Issuers, Failure> {
        Ok(Issuers { issuers: vault.issuers(on, &args.mount).await? })
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::backend::vault) struct OneIssuer {
    /// The PKI mount.
    #[serde(default = "Mount::pki")]
    #[schemars(extend("default" = "pki"))]
    mount: Mount,
    /// The name of the issuer.
    issuer_name: Name,
}

#[derive(JsonSchema, Serialize)]
pub(in crate::backend::vault) struct Issuer {
    /// As Vault has it: certificate, chain, usage.
    issuer: Map<String, Value>,
}

impl Output for Issuer {
    fn text(&self) -> Option<String> {
        serde_json::to_string(&self.issuer).ok()
    }
}

pub(in crate::backend::vault) struct ReadPkiIssuer;

impl Tool for ReadPkiIssuer {
    const SPEC: Spec = Spec {
        group: "pki",
        name: "read_pki_issuer",
        title: "Read an issuer",
        summary: "Read an issuer of a PKI mount: its certificate, its chain and what it may be used for.",
        details: "",
        effect: Effect::Read,
        overwrites: false,
        idempotent: true,
        open_world: false,
    };
    type Client = Vault;
    type Args = OneIssuer;
    type Output = Issuer;

    async fn call(vault: &Vault, on: &On<'_>, args: OneIssuer) -> Result<Issuer, Failure> {
        let name = &*args.issuer_name;
        let lost = || format!("No issuer found with name '{name}' in mount '{}'", &*args.mount);
        let issuers = vault.issuers(on, &args.mount).await?;
        let named = |issuer: &Value| issuer.get("issuer_name").and_then(Value::as_str) == Some(name);
        let id = issuers.iter().find(|(id, issuer)| named(issuer) || id.as_str() == name).map(|(id, _)| id.as_str());
        let id = id.ok_or_else(|| Failure::missing(lost()))?;
        let reply = vault.ask(on, Call::get(within(&args.mount).at("issuer").at(id))).await?.or_missing(lost)?;
        match reply.data() {
            Value::Object(issuer) => Ok(Issuer { issuer: issuer.clone() }),
            _ => Err(Failure::upstream("Vault's answer has no issuer")),
        }
    }
}
