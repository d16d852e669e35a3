//! Mounts: which engine is where, asked of Vault and remembered for a moment; and the tools that list, make and delete them.

use std::time::Duration;

use moka::sync::Cache;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::Vault;
use super::api::Call;
use super::words::Mount;
use crate::backend::builtin::Failure;
use crate::backend::builtin::On;
use crate::backend::builtin::Output;
use crate::backend::builtin::Spec;
use crate::backend::builtin::Tool;
use crate::backend::builtin::Trouble;
use crate::catalog::Effect;
use crate::fetch::origin::Path;

/// Mounts hardly ever change; what is made and deleted here is known at once.
const KNOWN_FOR: Duration = Duration::from_secs(30);
const KNOWN_MAX: u64 = 10_000;

/// What is mounted somewhere.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Engine {
    Kv1,
    Kv2,
    Other,
    Pki,
}

impl Engine {
    fn of(mount: &Value) -> Engine {
        let version = mount.get("options").and_then(|options| options.get("version")).and_then(Value::as_str);
        match (mount.get("type").and_then(Value::as_str), version) {
            (Some("kv"), Some("2")) => Engine::Kv2,
            (Some("kv" | "generic"), _) => Engine::Kv1,
            (Some("pki"), _) => Engine::Pki,
            _ => Engine::Other,
        }
    }
}

/// By whose token it was asked (what one caller may know of is not another's to learn), and where.
type Place = (Option<[u8; 32]>, String);

pub(super) struct Engines(Cache<Place, Engine>);

impl Engines {
    pub(super) fn new() -> Engines {
        Engines(Cache::builder().max_capacity(KNOWN_MAX).time_to_live(KNOWN_FOR).build())
    }

    pub(super) fn forget(&self) {
        self.0.invalidate_all();
    }
}

impl Vault {
    /// May this mount be used at all?
    pub(super) fn allows(&self, mount: &str) -> bool {
        self.config.mounts.is_empty() || self.config.mounts.iter().any(|glob| glob.is_match(mount))
    }

    pub(super) fn check_allowed(&self, mount: &Mount) -> Result<(), Failure> {
        if self.allows(mount) {
            return Ok(());
        }
        let message = format!("mount path '{}' is not one that the gateway's configuration allows", &**mount);
        Err(Failure::new(Trouble::Forbidden, message))
    }

    /// What is mounted there. `None`: nothing, as far as this token may know.
    pub(super) async fn engine(&self, on: &On<'_>, mount: &Mount) -> Result<Option<Engine>, Failure> {
        self.check_allowed(mount)?;
        let place = (on.identity(), mount.to_string());
        if let Some(engine) = self.engines.0.get(&place) {
            return Ok(Some(engine));
        }
        let found = self.look(on, mount).await?;
        if let Some(engine) = found {
            self.engines.0.insert(place, engine);
        }
        Ok(found)
    }

    /// First the way that needs no right beyond using the mount, then the list of all mounts.
    async fn look(&self, on: &On<'_>, mount: &Mount) -> Result<Option<Engine>, Failure> {
        let path = Path::fixed("v1/sys/internal/ui/mounts").through(mount);
        match self.ask(on, Call::get(path)).await {
            Ok(reply) if reply.found => {
                // It answers with the mount that the path lies in, which may be another one.
                let at = reply.data().get("path").and_then(Value::as_str).map(|path| path.trim_end_matches('/'));
                return Ok((at == Some(&**mount)).then(|| Engine::of(reply.data())));
            }
            Ok(_) => {}
            Err(failure) if failure.trouble == Trouble::Forbidden => {}
            // The question may have been answered by 403 because nothing is mounted there.
            Err(failure) if failure.trouble == Trouble::LockedOut => {
                return match self.all(on).await {
                    Ok(mounts) => Ok(mounts.get(&format!("{}/", &**mount)).map(Engine::of)),
                    Err(_) => Err(failure),
                };
            }
            Err(failure) => return Err(failure),
        }
        match self.all(on).await {
            Ok(mounts) => Ok(mounts.get(&format!("{}/", &**mount)).map(Engine::of)),
            Err(failure) if failure.trouble == Trouble::Forbidden => {
                let message = format!("mount path '{}' does not exist, or Vault's policies hide it", &**mount);
                Err(Failure::new(Trouble::Forbidden, message))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Every mount, by its path with a slash at its end.
    async fn all(&self, on: &On<'_>) -> Result<Map<String, Value>, Failure> {
        let reply = self.ask(on, Call::get(Path::fixed("v1/sys/mounts"))).await?;
        match reply.data() {
            Value::Object(mounts) => Ok(mounts.clone()),
            _ => Err(Failure::upstream("Vault's answer has no mounts")),
        }
    }
}

/// No arguments.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

#[derive(JsonSchema, Serialize)]
pub(super) struct Mounts {
    mounts: Vec<Mounted>,
}

#[derive(JsonSchema, Serialize)]
pub(super) struct Mounted {
    /// With a slash at its end.
    name: String,
    r#type: String,
    description: String,
    /// Seconds.
    default_lease_ttl: u64,
    /// Seconds.
    max_lease_ttl: u64,
}

impl Output for Mounts {
    fn text(&self) -> Option<String> {
        serde_json::to_string(&self.mounts).ok()
    }
}

pub(super) struct ListMounts;

impl Tool for ListMounts {
    const SPEC: Spec = Spec {
        group: "mounts",
        name: "list_mounts",
        title: "List mounts",
        summary: "List the mounts of Vault: where each secrets engine is, and of which type it is.",
        details: "",
        effect: Effect::Read,
        overwrites: false,
        idempotent: true,
        open_world: false,
    };
    type Client = Vault;
    type Args = Nothing;
    type Output = Mounts;

    async fn call(vault: &Vault, on: &On<'_>, Nothing {}: Nothing) -> Result<Mounts, Failure> {
        let mounted = |(name, mount): (&String, &Value)| {
            let text = |name: &str| mount.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let ttl = |name: &str| {
                mount.get("config").and_then(|config| config.get(name)).and_then(Value::as_u64).unwrap_or_default()
            };
            Mounted {
                name: name.clone(),
                r#type: text("type"),
                description: text("description"),
                default_lease_ttl: ttl("default_lease_ttl"),
                max_lease_ttl: ttl("max_lease_ttl"),
            }
        };
        let all = vault.all(on).await?;
        let allowed = all.iter().filter(|(name, _)| vault.allows(name.trim_end_matches('/')));
        Ok(Mounts { mounts: allowed.map(mounted).collect() })
    }
}

/// The engines that can be mounted.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
pub(super) enum MountType {
    /// Key/value, version 1: without versions.
    #[serde(rename = "kv")]
    Kv,
    /// Key/value, version 2: with versions.
    #[serde(rename = "kv2", alias = "kv-v2")]
    Kv2,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewMount {
    /// The engine.
    r#type: MountType,
    /// Where it is mounted.
    path: Mount,
    /// For people.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    description: String,
    /// More options of the engine.
    #[serde(default)]
    options: Map<String, Value>,
}

/// What was done, in a sentence.
#[derive(JsonSchema, Serialize)]
pub(super) struct Said {
    pub(super) message: String,
}

impl Output for Said {
    fn text(&self) -> Option<String> {
        Some(self.message.clone())
    }
}

pub(super) struct CreateMount;

impl Tool for CreateMount {
    const SPEC: Spec = Spec {
        group: "mounts",
        name: "create_mount",
        title: "Create a mount",
        summary: "Mount a key/value secrets engine at a path.",
        details: "Type `kv2` keeps versions of each secret, `kv` does not.",
        effect: Effect::Write,
        overwrites: false,
        idempotent: false,
        open_world: false,
    };
    type Client = Vault;
    type Args = NewMount;
    type Output = Said;

    async fn call(vault: &Vault, on: &On<'_>, args: NewMount) -> Result<Said, Failure> {
        let path = &*args.path;
        if vault.engine(on, &args.path).await?.is_some() {
            let message = format!(
                "mount path '{path}' already exists, you should use 'delete_mount' if you want to re-create it."
            );
            return Err(Failure::new(Trouble::Conflict, message));
        }
        let mut options = args.options;
        let name = match args.r#type {
            MountType::Kv => "kv",
            MountType::Kv2 => {
                options.insert("version".to_owned(), "2".into());
                "kv2"
            }
        };
        if options.values().any(|value| !value.is_string()) {
            return Err(Failure::arguments("argument `options`: values are texts"));
        }
        let body = json!({ "type": "kv", "description": args.description, "options": options });
        vault.ask(on, Call::post(Path::fixed("v1/sys/mounts").through(path), body)).await?;
        vault.engines.forget();
        let mut message = format!("Successfully created {name} mount at path '{path}'");
        if !args.description.is_empty() {
            message.push_str(&format!(" with description: {}", args.description));
        }
        Ok(Said { message })
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OneMount {
    /// Where it is mounted.
    path: Mount,
}

pub(super) struct DeleteMount;

impl Tool for DeleteMount {
    const SPEC: Spec = Spec {
        group: "mounts",
        name: "delete_mount",
        title: "Delete a mount",
        summary: "Delete a mount with everything in it, for good.",
        details: "",
        effect: Effect::Destroy,
        overwrites: true,
        idempotent: true,
        open_world: false,
    };
    type Client = Vault;
    type Args = OneMount;
    type Output = Said;

    async fn call(vault: &Vault, on: &On<'_>, args: OneMount) -> Result<Said, Failure> {
        let path = &*args.path;
        vault.check_allowed(&args.path)?;
        vault.ask(on, Call::delete(Path::fixed("v1/sys/mounts").through(path))).await?;
        vault.engines.forget();
        Ok(Said { message: format!("Successfully deleted mount at path '{path}'") })
    }
}
