//! Secrets: key/value engines of both versions. Writes are read-change-write of one key, guarded by check-and-set.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::Vault;
use super::api::Call;
use super::api::within;
use super::mounts::Engine;
use super::mounts::Said;
use super::words::Folder;
use super::words::KeyName;
use super::words::Mount;
use super::words::SecretPath;
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

/// A secret of Vault may have 1 MiB (512 KiB with integrated storage).
const VALUE_BYTES_MAX: usize = 1024 * 1024;

/// Which version of the engine it is.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Version {
    One,
    Two,
}

impl Version {
    /// Where a secret's data is.
    fn data(self, mount: &str, path: &str) -> Path {
        match self {
            Version::One => within(mount).through(path),
            Version::Two => within(mount).at("data").through(path),
        }
    }

    fn folder(self, mount: &str, folder: &str) -> Path {
        let base = match self {
            Version::One => within(mount),
            Version::Two => within(mount).at("metadata"),
        };
        if folder.is_empty() { base } else { base.through(folder) }
    }
}

/// A secret as it is now.
struct Current {
    data: Map<String, Value>,
    /// Of version 2; 0 where there never was one.
    version: u64,
    /// Is there anything to be read? A deleted secret has a version and no data.
    there: bool,
    /// When it was deleted.
    deleted: bool,
}

impl Vault {
    async fn version(&self, on: &On<'_>, mount: &Mount) -> Result<Version, Failure> {
        match self.engine(on, mount).await? {
            Some(Engine::Kv1) => Ok(Version::One),
            Some(Engine::Kv2) => Ok(Version::Two),
            Some(_) => Err(Failure::arguments(format!("mount path '{}' is not a key/value engine", &**mount))),
            None => Err(Failure::missing(format!(
                "mount path '{}' does not exist. Use 'create_mount' with the type kv2 to create the mount.",
                &**mount
            ))),
        }
    }

    async fn current(
        &self,
        on: &On<'_>,
        version: Version,
        mount: &Mount,
        path: &SecretPath,
    ) -> Result<Current, Failure> {
        let reply = self.ask(on, Call::get(version.data(mount, path))).await?;
        let data = reply.data();
        let (data, metadata) = match version {
            Version::One => (Some(data), None),
            Version::Two => (data.get("data"), data.get("metadata")),
        };
        let number = metadata.and_then(|metadata| metadata.get("version")).and_then(Value::as_u64);
        let deleted = metadata.is_some_and(|metadata| {
            let time = metadata.get("deletion_time").and_then(Value::as_str).unwrap_or_default();
            !time.is_empty() || metadata.get("destroyed") == Some(&Value::Bool(true))
        });
        let data = data.and_then(Value::as_object).cloned();
        Ok(Current {
            there: reply.found && data.is_some(),
            data: data.unwrap_or_default(),
            version: number.unwrap_or_default(),
            deleted: deleted && !reply.found,
        })
    }

    /// Writes all of a secret; gives the number of its version. INVARIANT: in version 2 only over the version that was read.
    async fn put(
        &self,
        on: &On<'_>,
        version: Version,
        (mount, path): (&Mount, &SecretPath),
        data: Map<String, Value>,
        over: u64,
    ) -> Result<u64, Failure> {
        let body = match version {
            Version::One => Value::Object(data),
            Version::Two => json!({ "data": data, "options": { "cas": over } }),
        };
        let reply = self.ask(on, Call::post(version.data(mount, path), body)).await?;
        let reply = reply.or_missing(|| missing(mount, path))?;
        Ok(reply.data().get("version").and_then(Value::as_u64).unwrap_or_default())
    }
}

fn missing(mount: &Mount, path: &SecretPath) -> String {
    format!("no secret exists at path '{}' in mount '{}'", &**path, &**mount)
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InFolder {
    /// The mount that the secrets are in.
    mount: Mount,
    /// The folder in the mount; empty for all of the mount.
    #[serde(default)]
    path: Folder,
}

#[derive(JsonSchema, Serialize)]
pub(super) struct Listed {
    /// Names; those that end with a slash are folders.
    secrets: Vec<String>,
}

impl Output for Listed {
    fn text(&self) -> Option<String> {
        serde_json::to_string(&self.secrets).ok()
    }
}

pub(super) struct ListSecrets;

impl Tool for ListSecrets {
    const SPEC: Spec = Spec {
        group: "secrets",
        name: "list_secrets",
        title: "List secrets",
        summary: "List the names of the secrets and folders at a path of a key/value mount, without values.",
        details: "",
        effect: Effect::Read,
        overwrites: false,
        idempotent: true,
        open_world: false,
    };
    type Client = Vault;
    type Args = InFolder;
    type Output = Listed;

    async fn call(vault: &Vault, on: &On<'_>, args: InFolder) -> Result<Listed, Failure> {
        let version = vault.version(on, &args.mount).await?;
        let reply = vault.ask(on, Call::list(version.folder(&args.mount, &args.path))).await?;
        Ok(Listed { secrets: reply.keys() })
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reading {
    /// The mount that the secret is in.
    mount: Mount,
    /// Where in the mount.
    path: SecretPath,
    /// Give a wrapping token that is good for this long (`5m`) instead of the secret itself.
    wrap_ttl: Option<Ttl>,
}

#[derive(JsonSchema, Serialize)]
pub(super) struct Secret {
    /// The secret, key by key.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Map<String, Value>>,
    /// Which version it is, where the mount keeps versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    /// In place of the secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    wrapped: Option<Wrapped>,
}

impl Output for Secret {
    fn text(&self) -> Option<String> {
        self.data.as_ref().and_then(|data| serde_json::to_string(data).ok())
    }
}

pub(super) struct ReadSecret;

impl Tool for ReadSecret {
    const SPEC: Spec = Spec {
        group: "secrets",
        name: "read_secret",
        title: "Read a secret",
        summary: "Read a secret: all its keys and values.",
        details: "With `wrap_ttl` the values stay in Vault and a token is given that unwraps them once.",
        effect: Effect::ReadSensitive,
        overwrites: false,
        idempotent: true,
        open_world: false,
    };
    type Client = Vault;
    type Args = Reading;
    type Output = Secret;

    async fn call(vault: &Vault, on: &On<'_>, args: Reading) -> Result<Secret, Failure> {
        let (mount, path) = (&args.mount, &args.path);
        let version = vault.version(on, mount).await?;
        let lost = |deleted: bool| {
            let (path, mount) = (&**path, &**mount);
            if deleted {
                return Failure::missing(format!(
                    "Secret at path '{path}' in mount '{mount}' is deleted and cannot be read."
                ));
            }
            Failure::missing(format!(
                "Secret not found at path '{path}' in mount '{mount}'. Use 'write_secret' to write a new secret at that path."
            ))
        };
        if let Some(wrap) = vault.wrap(args.wrap_ttl.as_ref(), vault.config.wrap.secrets) {
            let reply = vault.ask(on, Call::get(version.data(mount, path)).wrapped(Some(wrap))).await?;
            if !reply.found {
                return Err(lost(false));
            }
            let wrapped = Wrapped::of(&reply.body).ok_or_else(|| Failure::upstream("Vault did not wrap the secret"))?;
            return Ok(Secret { data: None, version: None, wrapped: Some(wrapped) });
        }
        let current = vault.current(on, version, mount, path).await?;
        if !current.there {
            return Err(lost(current.deleted));
        }
        let number = (version == Version::Two).then_some(current.version);
        Ok(Secret { data: Some(current.data), version: number, wrapped: None })
    }
}

impl Vault {
    /// How long a wrapping token is to be good: as asked, within what is configured. `None`: nothing is wrapped.
    pub(super) fn wrap(&self, asked: Option<&Ttl>, always: bool) -> Option<Duration> {
        let longest = self.config.wrap.ttl;
        match asked {
            Some(asked) => Some(asked.span().clamp(Duration::from_secs(1), longest)),
            None => always.then_some(longest),
        }
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Writing {
    /// The mount that the secret is in.
    mount: Mount,
    /// Where in the mount.
    path: SecretPath,
    /// Which key of the secret.
    key: KeyName,
    /// Its value.
    #[schemars(length(max = 1_048_576))]
    value: String,
}

pub(super) struct WriteSecret;

impl Tool for WriteSecret {
    const SPEC: Spec = Spec {
        group: "secrets",
        name: "write_secret",
        title: "Write a key of a secret",
        summary: "Write one key of a secret, and leave its other keys as they are.",
        details: "",
        effect: Effect::Write,
        overwrites: true,
        idempotent: false,
        open_world: false,
    };
    type Client = Vault;
    type Args = Writing;
    type Output = Said;

    async fn call(vault: &Vault, on: &On<'_>, args: Writing) -> Result<Said, Failure> {
        if args.value.len() > VALUE_BYTES_MAX {
            return Err(Failure::arguments(format!("argument `value`: has more than {VALUE_BYTES_MAX} bytes")));
        }
        let (mount, path, key) = (&args.mount, &args.path, &*args.key);
        let version = vault.version(on, mount).await?;
        let change = |data: &mut Map<String, Value>| {
            data.insert(key.to_owned(), args.value.as_str().into());
            Ok(Step::Put)
        };
        let number = vault.change(on, version, (mount, path), change).await?;
        let (path, mount) = (&**path, &**mount);
        let message = match version {
            Version::Two => format!(
                "Successfully wrote version {number} of the secret to path '{path}' in mount '{mount}' with key '{key}'"
            ),
            Version::One => format!(
                "Successfully updated the secret, adding or updating the key '{key}' at path '{path}' in mount '{mount}'"
            ),
        };
        Ok(Said { message })
    }
}

/// What a change comes to.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Step {
    Delete,
    Put,
}

impl Vault {
    /// Reads, changes and writes; once more where somebody else wrote in between. Gives the number of the version.
    async fn change(
        &self,
        on: &On<'_>,
        version: Version,
        (mount, path): (&Mount, &SecretPath),
        change: impl Fn(&mut Map<String, Value>) -> Result<Step, Failure>,
    ) -> Result<u64, Failure> {
        let mut last_try = false;
        loop {
            let Current { mut data, version: over, .. } = self.current(on, version, mount, path).await?;
            let put = match change(&mut data)? {
                Step::Put => self.put(on, version, (mount, path), data, over).await,
                Step::Delete => self.delete(on, version, mount, path).await.map(|()| over),
            };
            match put {
                Err(failure) if failure.trouble == Trouble::Conflict && !last_try => last_try = true,
                outcome => return outcome,
            }
        }
    }

    async fn delete(&self, on: &On<'_>, version: Version, mount: &Mount, path: &SecretPath) -> Result<(), Failure> {
        self.ask(on, Call::delete(version.data(mount, path))).await?.or_missing(|| missing(mount, path)).map(drop)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Deleting {
    /// The mount that the secret is in.
    mount: Mount,
    /// Where in the mount.
    path: SecretPath,
    /// Delete this key only. Without it: the whole secret.
    #[serde(default)]
    #[schemars(length(max = 512))]
    key: String,
}

pub(super) struct DeleteSecret;

impl Tool for DeleteSecret {
    const SPEC: Spec = Spec {
        group: "secrets",
        name: "delete_secret",
        title: "Delete a secret",
        summary: "Delete a secret, or one key of it.",
        details: "Where the mount keeps versions, only the newest is deleted.",
        effect: Effect::Destroy,
        overwrites: true,
        idempotent: false,
        open_world: false,
    };
    type Client = Vault;
    type Args = Deleting;
    type Output = Said;

    async fn call(vault: &Vault, on: &On<'_>, args: Deleting) -> Result<Said, Failure> {
        let (mount, path, key) = (&args.mount, &args.path, args.key.as_str());
        let version = vault.version(on, mount).await?;
        if key.is_empty() {
            if !vault.current(on, version, mount, path).await?.there {
                return Err(Failure::missing(missing(mount, path)));
            }
            vault.delete(on, version, mount, path).await?;
            let message = format!("Successfully deleted secret at path '{}' in mount '{}'", &**path, &**mount);
            return Ok(Said { message });
        }
        let change = |data: &mut Map<String, Value>| {
            if data.remove(key).is_none() {
                return Err(Failure::missing(format!(
                    "the secret at path '{}' in mount '{}' has no key '{key}'",
                    &**path, &**mount
                )));
            }
            Ok(if data.is_empty() { Step::Delete } else { Step::Put })
        };
        let number = vault.change(on, version, (mount, path), change).await?;
        let (path, mount) = (&**path, &**mount);
        let message = match version {
            Version::Two => format!(
                "Successfully wrote version {number} of the secret to path '{path}' in mount '{mount}' without key '{key}'"
            ),
            Version::One => {
                format!("Successfully deleted key '{key}' of the secret at path '{path}' in mount '{mount}'")
            }
        };
        Ok(Said { message })
    }
}
