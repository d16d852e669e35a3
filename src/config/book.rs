//! `Book`: collects what is wrong while the file gets its meaning, and turns names of files and secrets into the things.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read as _;
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use globset::Glob;
use globset::GlobMatcher;

use super::Options;
use super::Problem;
use super::scalar::Reference;
use super::scalar::Size;
use super::scalar::Span;
use super::yaml::Node;
use super::yaml::Step;
use super::yaml::below;
use super::yaml::within;
use crate::secret::Secret;

/// A secret is a line; a bigger file is something else.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// Where in the file we are.
#[derive(Clone, Debug, Default)]
pub(super) struct Key(Vec<Step>);

impl Key {
    pub(super) fn at(&self, name: &str) -> Key {
        self.with(Step::Name(name.to_owned()))
    }

    pub(super) fn index(&self, index: usize) -> Key {
        self.with(Step::Index(index))
    }

    fn with(&self, step: Step) -> Key {
        let mut steps = self.0.clone();
        steps.push(step);
        Key(steps)
    }
}

pub(super) struct Book<'a> {
    file: &'a Path,
    base: PathBuf,
    options: &'a Options,
    root: &'a Node,
    /// Nothing more is said about these: something about them was wrong already.
    pruned: Vec<String>,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
    watched: Vec<PathBuf>,
    known: HashSet<PathBuf>,
    /// Where the section is that is read now: at the root, or at a tenant.
    section: Key,
    /// Backends that it may name, and that are not below it.
    elsewhere: Vec<Arc<str>>,
    part: Part,
}

/// What of a configuration is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    Whole,
    Gateway,
    Tenant,
}

impl<'a> Book<'a> {
    pub(super) fn new(file: &'a Path, options: &'a Options, root: &'a Node, pruned: Vec<String>) -> Self {
        let base = options.base.clone().unwrap_or_else(|| file.parent().map(Path::to_owned).unwrap_or_default());
        Book {
            file,
            base,
            options,
            root,
            pruned,
            errors: Vec::new(),
            warnings: Vec::new(),
            watched: Vec::new(),
            known: HashSet::new(),
            section: Key::default(),
            elsewhere: Vec::new(),
            part: Part::Whole,
        }
    }

    /// What is read from now on is the gateway's part of a configuration that has tenants.
    pub(super) fn begin_gateway(&mut self) {
        self.section = Key::default();
        self.elsewhere = Vec::new();
        self.part = Part::Gateway;
    }

    /// What is read from now on is a tenant's. It may name these backends, too.
    pub(super) fn begin_tenant(&mut self, section: &Key, elsewhere: &[Arc<str>]) {
        self.section = section.clone();
        self.elsewhere = elsewhere.to_vec();
        self.part = Part::Tenant;
    }

    /// Is it the section of a tenant?
    pub(super) fn is_tenant(&self) -> bool {
        self.part == Part::Tenant
    }

    /// May what is missing here be elsewhere?
    pub(super) fn is_part(&self) -> bool {
        self.part != Part::Whole
    }

    /// Can this section name a backend like this?
    pub(super) fn has_backend(&self, name: &str) -> bool {
        let place = self.section.at("backends").at(name);
        self.has(&place) || self.touched(&place) || self.elsewhere.iter().any(|known| **known == *name)
    }

    /// Errors, warnings, files to watch.
    pub(super) fn close(mut self) -> (Vec<Problem>, Vec<Problem>, Vec<PathBuf>) {
        self.warnings.sort_by(|a, b| (a.line, a.column, &a.key).cmp(&(b.line, b.column, &b.key)));
        self.warnings.dedup();
        (self.errors, self.warnings, self.watched)
    }

    pub(super) fn options(&self) -> &Options {
        self.options
    }

    pub(super) fn error(&mut self, key: &Key, message: impl Into<String>) {
        let problem = self.problem(key, message.into());
        self.errors.push(problem);
    }

    pub(super) fn warn(&mut self, key: &Key, message: impl Into<String>) {
        let problem = self.problem(key, message.into());
        self.warnings.push(problem);
    }

    /// Warnings of other files that belong to this one.
    pub(super) fn warned(&mut self, warnings: Vec<Problem>) {
        self.warnings.extend(warnings);
    }

    /// A complaint about what is not there, unless it was there and wrong.
    pub(super) fn missing(&mut self, key: &Key, message: impl Into<String>) {
        if !self.touched(key) {
            self.error(key, message);
        }
    }

    /// Was something taken out here, above or below?
    pub(super) fn touched(&self, key: &Key) -> bool {
        let path = self.path_of(key);
        self.pruned.iter().any(|pruned| within(pruned, &path) || within(&path, pruned))
    }

    /// Is it in the file?
    pub(super) fn has(&self, key: &Key) -> bool {
        self.root.find(&key.0).1 == key.0.len()
    }

    fn path_of(&self, key: &Key) -> String {
        let (node, depth) = self.root.find(&key.0);
        key.0.iter().skip(depth).fold(node.path.clone(), |path, step| below(&path, step))
    }

    fn problem(&self, key: &Key, message: String) -> Problem {
        let (node, depth) = self.root.find(&key.0);
        let mark = if depth == key.0.len() { node.mark() } else { node.key_at.unwrap_or(node.at) };
        Problem { file: self.file.to_owned(), line: mark.line, column: mark.column, key: self.path_of(key), message }
    }

    /// A required value.
    pub(super) fn require<T>(&mut self, key: &Key, name: &str, value: Option<T>, example: &str) -> Option<T> {
        if value.is_none() {
            self.missing(&key.at(name), format!("is missing; for example `{example}`"));
        }
        value
    }

    /// A duration of more than nothing.
    pub(super) fn span(&mut self, key: &Key, name: &str, value: Option<Span>, default: Duration) -> Duration {
        match value {
            None => default,
            Some(Span(span)) if span.is_zero() => {
                self.error(&key.at(name), "must be more than nothing");
                default
            }
            Some(Span(span)) => span,
        }
    }

    pub(super) fn size(
        &mut self,
        key: &Key,
        name: &str,
        value: Option<Size>,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> usize {
        let Some(Size(size)) = value else { return default };
        match usize::try_from(size).ok().filter(|size| range.contains(size)) {
            Some(size) => size,
            None => {
                self.error(&key.at(name), format!("must be from {} to {} bytes", range.start(), range.end()));
                default
            }
        }
    }

    pub(super) fn count(&mut self, key: &Key, name: &str, value: Option<u32>, default: u32, max: u32) -> u32 {
        match value {
            None => default,
            Some(count) if (1..=max).contains(&count) => count,
            Some(_) => {
                self.error(&key.at(name), format!("must be from 1 to {max}"));
                default
            }
        }
    }

    /// A glob in which `*` matches any characters.
    pub(super) fn glob(&mut self, key: &Key, text: &str) -> Option<GlobMatcher> {
        if text.is_empty() {
            self.error(key, "is empty; `*` matches everything");
            return None;
        }
        match Glob::new(text) {
            Ok(glob) => Some(glob.compile_matcher()),
            Err(error) => {
                self.error(key, format!("is not a glob: {}", error.kind()));
                None
            }
        }
    }

    /// A path of the configuration, from the folder it starts at.
    pub(super) fn place(&mut self, key: &Key, text: &str) -> PathBuf {
        if text.is_empty() || text.contains('\0') {
            self.error(key, "is not a path");
        }
        self.base.join(text)
    }

    /// A file that must be there.
    pub(super) fn readable(&mut self, key: &Key, text: &str) -> PathBuf {
        let path = self.place(key, text);
        self.watch(&path);
        if self.options.check_files
            && let Err(error) = open(&path)
        {
            self.error(key, format!("`{}` cannot be read: {error}", path.display()));
        }
        path
    }

    /// A file that must be there and that others should not be able to read.
    pub(super) fn private(&mut self, key: &Key, text: &str) -> PathBuf {
        let path = self.readable(key, text);
        self.exposed(key, &path);
        path
    }

    /// A file that will be made: its folder must be there.
    pub(super) fn writable(&mut self, key: &Key, text: &str) -> PathBuf {
        let path = self.place(key, text);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if self.options.check_files && !folder.is_dir() {
            self.error(key, format!("the folder `{}` does not exist", folder.display()));
        }
        path
    }

    pub(super) fn watch(&mut self, path: &Path) {
        if self.known.insert(path.to_owned()) {
            self.watched.push(path.to_owned());
        }
    }

    fn exposed(&mut self, key: &Key, path: &Path) {
        const OTHERS_READ: u32 = 0o004;
        let mode = std::fs::metadata(path).map(|facts| facts.permissions().mode());
        if self.options.check_files && mode.is_ok_and(|mode| mode & OTHERS_READ != 0) {
            self.warn(
                key,
                format!("every user of this machine can read `{}`: take the right away (`chmod o-r`)", path.display()),
            );
        }
    }

    /// The secret behind a reference. Where files are not checked, an empty one.
    pub(super) fn secret(&mut self, key: &Key, reference: &Reference) -> Secret {
        let found = match reference {
            Reference::Environment(_) | Reference::File(_) if !self.options.check_files => Ok(String::new()),
            Reference::Environment(name) => match std::env::var(name) {
                Ok(value) if !value.is_empty() => Ok(value),
                Ok(_) => Err(format!("the environment variable `{name}` is empty")),
                Err(std::env::VarError::NotPresent) => Err(format!("the environment variable `{name}` is not set")),
                Err(std::env::VarError::NotUnicode(_)) => Err(format!("the environment variable `{name}` is not text")),
            },
            Reference::File(name) => {
                let path = self.place(key, name);
                self.exposed(key, &path);
                read_secret(&path)
            }
        };
        if let Reference::File(name) = reference {
            let path = self.base.join(name);
            self.watch(&path);
        }
        match found {
            Ok(value) => Secret::new(value),
            Err(message) => {
                self.error(key, message);
                Secret::new("")
            }
        }
    }

    /// A text file that is part of the configuration.
    pub(super) fn text(&mut self, key: &Key, path: &Path, bytes_max: u64) -> Option<String> {
        self.watch(path);
        let read = open(path).and_then(|file| {
            let mut text = String::new();
            file.take(bytes_max + 1).read_to_string(&mut text).map(|_| text)
        });
        match read {
            Ok(text) if text.len() as u64 > bytes_max => {
                self.error(key, format!("`{}` is larger than {bytes_max} bytes", path.display()));
                None
            }
            Ok(text) => Some(text),
            Err(_) if !self.options.check_files => None,
            Err(error) => {
                self.error(key, format!("`{}` cannot be read: {error}", path.display()));
                None
            }
        }
    }
}

/// Opens a regular file; a folder or a pipe is an error and never blocks.
fn open(path: &Path) -> std::io::Result<File> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    File::open(path)
}

/// The file's text without one newline at its end.
fn read_secret(path: &Path) -> Result<String, String> {
    let unreadable = |what: &str| format!("`{}` {what}", path.display());
    let file = open(path).map_err(|error| unreadable(&format!("cannot be read: {error}")))?;
    let mut text = String::new();
    let read = file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| unreadable(&format!("cannot be read: {error}")))?;
    if text.len() as u64 > SECRET_BYTES_MAX {
        return Err(unreadable(&format!("is larger than {SECRET_BYTES_MAX} bytes: not a secret")));
    }
    if let Some(line) = text.strip_suffix('\n') {
        text.truncate(line.strip_suffix('\r').unwrap_or(line).len());
    }
    if text.is_empty() { Err(unreadable("is empty")) } else { Ok(text) }
}
