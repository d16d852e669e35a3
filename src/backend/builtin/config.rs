//! Which built-in backends there are, and how each is configured.

use std::sync::Arc;

use super::Declared;
use super::declared;
use crate::backend::Backend;
use crate::backend::vault;
use crate::catalog::Decl;
use crate::catalog::Mode;
use crate::credentials;

/// One built-in backend, everything decided.
#[derive(Clone, Debug)]
pub struct Config {
    pub name: Arc<str>,
    pub mode: Option<Mode>,
    pub credential: credentials::Config,
    pub product: Product,
}

#[derive(Clone, Debug)]
pub enum Product {
    Vault(Box<vault::Config>),
}

impl Config {
    /// Feeds the content of every file that it names to `take`; the credential's apart.
    pub fn files(&self, take: &mut dyn FnMut(&[u8])) {
        match &self.product {
            Product::Vault(vault) => {
                vault.origin.files().for_each(|path| take(&std::fs::read(path).unwrap_or_default()))
            }
        }
    }
}

/// Makes the backend; connects to nothing.
///
/// # Errors
/// What is wrong with its files.
pub fn new(config: &Config) -> Result<Arc<dyn Backend>, String> {
    match &config.product {
        Product::Vault(vault) => vault::new(&config.name, vault),
    }
    .map_err(|what| format!("backend `{}`: {what}", config.name))
}

/// The tools that it has as configured, without making it.
pub fn declarations(config: &Config) -> Vec<Arc<Decl>> {
    match &config.product {
        Product::Vault(vault) => vault::declarations(&config.name, vault),
    }
}

/// Every tool of every built-in backend, in the order of the tables.
pub fn all() -> Vec<Declared> {
    declared::<vault::Vault>("vault")
}
