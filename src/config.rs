//! The configuration file as written (`file`), made into what it means, with every error at once.

mod book;
mod document;
mod file;
mod meaning;
mod pinned;
mod read;
#[cfg(test)]
mod reference;
mod scalar;
mod schema;
mod show;
mod strict;
mod tenants;
#[cfg(test)]
mod tests;
pub(crate) mod yaml;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

pub use document::Document;
pub use document::cedar;
pub use document::document;
pub use schema::schema;
pub use show::show;
pub use tenants::is_known_to_gateway;
pub use tenants::settle;

use crate::audit;
use crate::backend::builtin;
use crate::backend::remote;
use crate::catalog::Mode;
use crate::filters;
use crate::gateway;
use crate::identity;
use crate::limits;
use crate::policy;
use crate::route;
use crate::server;

/// A configuration is a few pages; a bigger file is not one.
const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The whole configuration, as meant: nothing left to look up, every default decided.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub server: server::Config,
    /// The address clients use, without path and trailing slash. Needed for RFC 9728 metadata.
    pub public_url: Option<url::Url>,
    pub identity: identity::Config,
    pub policy: policy::Config,
    pub limits: limits::Config,
    /// MCP servers elsewhere.
    pub backends: Vec<remote::Config>,
    /// Built-in ones. No name is in both.
    pub built_in: Vec<builtin::Config>,
    /// What may leave of what a backend says, by its name.
    pub filters: BTreeMap<Arc<str>, filters::Config>,
    pub routes: route::Config,
    /// Each with a meaning of its own; whether they go together, [`settle`] says.
    pub tenants: Vec<Arc<Tenant>>,
    /// Files of tenants that have none.
    pub refused: Vec<Refused>,
    pub audit: audit::Config,
    pub sessions: gateway::Sessions,
    pub log: Log,
    /// Files whose change makes a reload: the configuration itself, policies, keys, certificates, secrets.
    pub watched: Vec<PathBuf>,
}

/// One tenant, as meant: what it states, and nothing that it has from the gateway.
#[derive(Clone, Debug)]
pub struct Tenant {
    pub name: Arc<str>,
    /// Its own file; `None`: it is in the gateway's.
    pub file: Option<PathBuf>,
    pub rule: gateway::Rule,
    pub identity: Option<identity::Config>,
    pub mode: Option<Mode>,
    /// `None`: the gateway's, all of it.
    pub policy: Option<policy::Config>,
    pub limits: Option<limits::Config>,
    pub backends: Vec<remote::Config>,
    pub built_in: Vec<builtin::Config>,
    /// Of its own backends.
    pub filters: BTreeMap<Arc<str>, filters::Config>,
    /// As written: without the tenant's hosts and path.
    pub routes: Option<route::Config>,
}

impl Config {
    /// Of all backends, wherever they are.
    pub fn backend_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.backends.iter().map(|one| &one.name).chain(self.built_in.iter().map(|one| &one.name))
    }
}

impl Tenant {
    /// Of its own backends, wherever they are.
    pub fn backend_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.backends.iter().map(|one| &one.name).chain(self.built_in.iter().map(|one| &one.name))
    }
}

/// A tenant that cannot be as it is written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refused {
    pub name: Arc<str>,
    pub problems: Vec<Problem>,
}

/// The log on standard error.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Log {
    /// Directives of `tracing_subscriber::EnvFilter`, checked: `info`, `info,wardgate::backend=debug`.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    Json,
    #[default]
    Text,
}

impl Default for Log {
    fn default() -> Self {
        Log { level: "info".to_owned(), format: LogFormat::Text }
    }
}

/// How a file is taken.
#[derive(Clone, Debug)]
pub struct Options {
    /// The demo's issuer may be trusted. Only the demo itself and tests say so.
    pub allow_demo_issuer: bool,
    /// Files and variables that the configuration names must be there, and secrets are read.
    pub check_files: bool,
    /// The policies that the configuration names must be there, even where other files need not.
    pub check_policies: bool,
    /// Pin files are read, and must be there.
    pub read_pins: bool,
    /// The folder that relative paths start at; default: the configuration file's.
    pub base: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options { allow_demo_issuer: false, check_files: true, check_policies: true, read_pins: true, base: None }
    }
}

/// A configuration that holds together.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// What is allowed and probably not wanted.
    pub warnings: Vec<Problem>,
}

/// One thing that is wrong, and where. Shown as `wardgate.yaml:12:5: backends.files.http.url: message`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    pub file: PathBuf,
    /// Counted from 1; 0 where the file as a whole is meant.
    pub line: usize,
    /// Counted from 1, in characters; 0 where the file as a whole is meant.
    pub column: usize,
    /// For example `grants[1].allow[0]`; empty for the file as a whole.
    pub key: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Everything that is wrong with a configuration, in the order of the file; one a line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Errors(pub Vec<Problem>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// Reads a configuration file and everything it names.
///
/// # Errors
/// All of them at once, each with its place.
pub fn load(path: &Path, options: Options) -> Result<Loaded, Errors> {
    let whole = |message: String| {
        Errors(vec![Problem { file: path.to_owned(), line: 0, column: 0, key: String::new(), message }])
    };
    let text = text_of(path, FILE_BYTES_MAX as u64).map_err(whole)?;
    let mut loaded = parse(&text, path, options)?;
    loaded.config.watched.insert(0, path.to_owned());
    Ok(loaded)
}

/// The text of a file, or why there is none.
fn text_of(path: &Path, bytes_max: u64) -> Result<String, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    file.take(bytes_max.saturating_add(1)).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > bytes_max { Err(format!("larger than {bytes_max} bytes")) } else { Ok(text) }
}

/// Takes `text` as the content of the file at `path`, which need not exist.
///
/// # Errors
/// All of them at once, each with its place.
pub fn parse(text: &str, path: &Path, options: Options) -> Result<Loaded, Errors> {
    let problem = |fault: yaml::Fault| Problem {
        file: path.to_owned(),
        line: fault.at.line,
        column: fault.at.column,
        key: fault.path,
        message: fault.message,
    };
    if text.len() > FILE_BYTES_MAX {
        let message = format!("larger than {FILE_BYTES_MAX} bytes");
        return Err(Errors(vec![Problem { file: path.to_owned(), line: 0, column: 0, key: String::new(), message }]));
    }
    let tree = yaml::parse(text.trim_start_matches('\u{feff}'))
        .map_err(|faults| Errors(faults.into_iter().map(problem).collect()))?;
    let yaml::Tree { mut root, faults } = tree;
    let refused = faults.iter().map(|fault| fault.path.clone()).collect();
    let read = read::read::<file::File>(&mut root, refused);
    let mut errors: Vec<Problem> = faults.into_iter().chain(read.faults).map(problem).collect();
    let mut book = book::Book::new(path, &options, &root, read.pruned);
    let config = read.file.map(|file| meaning::mean(&mut book, file));
    let (more, warnings, watched) = book.close();
    errors.extend(more);
    errors.sort_by(|a, b| (a.line, a.column, &a.key).cmp(&(b.line, b.column, &b.key)));
    errors.dedup();
    if let Some(config) = &config {
        errors.extend(tenants::clashes_within(config, path));
    }
    match config {
        Some(config) if errors.is_empty() => Ok(Loaded { config: Config { watched, ..config }, warnings }),
        _ => Err(Errors(errors)),
    }
}
