//! The configuration file as written (`file`), made into what it means, with every error at once.

mod book;
mod file;
mod meaning;
mod read;
#[cfg(test)]
mod reference;
mod scalar;
mod schema;
mod show;
mod strict;
#[cfg(test)]
mod tests;
mod yaml;

use std::collections::HashMap;
use std::fmt;
use std::io::Read as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

pub use schema::schema;
pub use show::show;

use crate::audit;
use crate::backend::builtin;
use crate::backend::remote;
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
    pub filters: HashMap<Arc<str>, filters::Config>,
    pub routes: route::Config,
    pub audit: audit::Config,
    pub sessions: gateway::Sessions,
    pub log: Log,
    /// Files whose change makes a reload: the configuration itself, policies, keys, certificates, secrets.
    pub watched: Vec<PathBuf>,
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
    /// The folder that relative paths start at; default: the configuration file's.
    pub base: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options { allow_demo_issuer: false, check_files: true, base: None }
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
    let file = std::fs::File::open(path).map_err(|error| whole(format!("cannot be read: {error}")))?;
    let mut text = String::new();
    let bytes_max = u64::try_from(FILE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    file.take(bytes_max).read_to_string(&mut text).map_err(|error| whole(format!("cannot be read: {error}")))?;
    let mut loaded = parse(&text, path, options)?;
    loaded.config.watched.insert(0, path.to_owned());
    Ok(loaded)
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
    let read = read::read(&mut root, refused);
    let mut errors: Vec<Problem> = faults.into_iter().chain(read.faults).map(problem).collect();
    let mut book = book::Book::new(path, &options, &root, read.pruned);
    let config = read.file.map(|file| meaning::mean(&mut book, file));
    let (more, warnings, watched) = book.close();
    errors.extend(more);
    errors.sort_by(|a, b| (a.line, a.column, &a.key).cmp(&(b.line, b.column, &b.key)));
    errors.dedup();
    match config {
        Some(config) if errors.is_empty() => Ok(Loaded { config: Config { watched, ..config }, warnings }),
        _ => Err(Errors(errors)),
    }
}
