//! HashiCorp Vault and OpenBao as a built-in backend: mounts, secrets (KV 1 and 2), certificates (PKI).
//!
//! The address, the namespace and the identity are the configuration's: no argument of a call and no header of a request
//! chooses them. Paths are made of encoded segments. What a mount is, is asked of Vault before anything is done with it, so
//! that a tool for secrets reaches nothing but secrets engines.

mod api;
mod kv;
mod mounts;
mod pki;
pub mod policy;
#[cfg(test)]
mod tests;
mod words;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use globset::GlobMatcher;

use super::Backend;
use super::builtin;
use super::builtin::BuiltIn;
use super::builtin::Client;
use super::builtin::Entry;
use super::builtin::Selection;
use super::builtin::Spec;
use crate::catalog::Decl;
use crate::fetch::origin;
use crate::fetch::origin::Origin;
use mounts::Engines;

/// The groups that can be switched.
pub const GROUPS: [&str; 3] = ["mounts", "secrets", "pki"];

#[derive(Clone, Debug)]
pub struct Config {
    pub origin: origin::Config,
    /// Vault Enterprise and OpenBao: `X-Vault-Namespace`.
    pub namespace: Option<String>,
    /// Mounts that may be used; empty: all.
    pub mounts: Vec<GlobMatcher>,
    /// Mounts can be made and deleted.
    pub mount_management: bool,
    pub wrap: Wrap,
    pub selection: Selection,
}

/// What is given out as a wrapping token instead of the thing itself, also where nobody asked for that.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Wrap {
    pub secrets: bool,
    pub private_keys: bool,
    /// How long a wrapping token is good; what a caller may ask for at most.
    pub ttl: Duration,
}

/// The client: one Vault, one pool of connections.
pub struct Vault {
    config: Config,
    origin: Origin,
    engines: Engines,
    /// Did it answer the last time?
    healthy: AtomicBool,
}

/// Makes the backend. Reads and checks certificates; connects to nothing.
///
/// # Errors
/// What is wrong with the files.
pub fn new(name: &Arc<str>, config: &Config) -> Result<Arc<dyn Backend>, String> {
    Ok(Arc::new(BuiltIn::new(name, Vault::new(config)?, &config.selection)))
}

/// Its tools as configured.
pub fn declarations(name: &Arc<str>, config: &Config) -> Vec<Arc<Decl>> {
    let rows = builtin::chosen::<Vault>(name, &config.selection, |spec| config.offers(spec));
    rows.into_iter().map(|(_, decl)| Arc::new(decl)).collect()
}

impl Config {
    fn offers(&self, spec: &Spec) -> bool {
        self.mount_management || !["create_mount", "delete_mount", "enable_pki"].contains(&spec.name)
    }
}

impl Vault {
    fn new(config: &Config) -> Result<Vault, String> {
        let origin = Origin::new(&config.origin).map_err(|error| error.to_string())?;
        Ok(Vault { config: config.clone(), origin, engines: Engines::new(), healthy: AtomicBool::new(true) })
    }
}

#[async_trait]
impl Client for Vault {
    const TITLE: &'static str = "HashiCorp Vault";
    const TOOLS: &'static [Entry<Vault>] = &[
        Entry::of::<mounts::ListMounts>(),
        Entry::of::<mounts::CreateMount>(),
        Entry::of::<mounts::DeleteMount>(),
        Entry::of::<kv::ListSecrets>(),
        Entry::of::<kv::ReadSecret>(),
        Entry::of::<kv::WriteSecret>(),
        Entry::of::<kv::DeleteSecret>(),
        Entry::of::<pki::EnablePki>(),
        Entry::of::<pki::CreatePkiIssuer>(),
        Entry::of::<pki::ListPkiIssuers>(),
        Entry::of::<pki::ReadPkiIssuer>(),
        Entry::of::<pki::CreatePkiRole>(),
        Entry::of::<pki::ListPkiRoles>(),
        Entry::of::<pki::ReadPkiRole>(),
        Entry::of::<pki::DeletePkiRole>(),
        Entry::of::<pki::IssuePkiCertificate>(),
    ];

    fn instructions(&self) -> Option<String> {
        let mut text =
            "Tools for HashiCorp Vault. A secret has a mount and a path in it; list_mounts shows the mounts. \
                        Do not repeat secret values unless the user asks for them."
                .to_owned();
        if self.config.wrap.secrets {
            text.push_str(" Secrets are given as wrapping tokens, which can be unwrapped once.");
        }
        Some(text)
    }

    fn offers(&self, spec: &Spec) -> bool {
        self.config.offers(spec)
    }

    fn timeout(&self) -> Duration {
        self.config.origin.timeout
    }

    fn healthy(&self) -> bool {
        self.healthy.load(std::sync::atomic::Ordering::Relaxed)
    }
}
