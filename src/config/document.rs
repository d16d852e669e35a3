//! Other YAML documents than the configuration, read as strictly: no unknown keys, all errors at once, each with its place.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::Errors;
use super::FILE_BYTES_MAX;
use super::Options;
use super::Problem;
use super::book::Book;
use super::book::Key;
use super::meaning;
use super::read;
use super::scalar::Strings;
use super::yaml;
use super::yaml::Step;

/// What a document holds, and where.
#[derive(Debug)]
pub struct Document<T> {
    pub content: T,
    root: yaml::Node,
}

impl<T> Document<T> {
    /// The line, from 1, of an item of a list at the top of the document.
    pub fn line(&self, list: &str, index: usize) -> usize {
        self.root.find(&[Step::Name(list.to_owned()), Step::Index(index)]).0.at.line
    }
}

/// Takes `text` as the content of the file at `path`.
///
/// # Errors
/// All of them at once, each with its place.
pub fn document<T: DeserializeOwned>(text: &str, path: &Path) -> Result<Document<T>, Errors> {
    let problem = |fault: yaml::Fault| Problem {
        file: path.to_owned(),
        line: fault.at.line,
        column: fault.at.column,
        key: fault.path,
        message: fault.message,
    };
    let whole = |message: String| {
        Errors(vec![Problem { file: path.to_owned(), line: 0, column: 0, key: String::new(), message }])
    };
    if text.len() > FILE_BYTES_MAX {
        return Err(whole(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    let tree = yaml::parse(text.trim_start_matches('\u{feff}'))
        .map_err(|faults| Errors(faults.into_iter().map(problem).collect()))?;
    let yaml::Tree { mut root, faults } = tree;
    let refused = faults.iter().map(|fault| fault.path.clone()).collect();
    let read = read::read(&mut root, refused);
    let mut errors: Vec<Problem> = faults.into_iter().chain(read.faults).map(problem).collect();
    errors.sort_by(|a, b| (a.line, a.column, &a.key).cmp(&(b.line, b.column, &b.key)));
    match read.file {
        Some(content) if errors.is_empty() => Ok(Document { content, root }),
        _ => Err(Errors(errors)),
    }
}

/// The Cedar files that a document names, and those in the folders that it names; relative to the document.
///
/// # Errors
/// All of them at once.
pub fn cedar(paths: &[String], document: &Path) -> Result<Vec<(String, String)>, Errors> {
    let nothing = yaml::Tree::default();
    let options = Options::default();
    let mut book = Book::new(document, &options, &nothing.root, Vec::new());
    let sources = meaning::policy::sources(&mut book, &Key::default().at("policies"), &Strings(paths.to_vec()));
    let (errors, _, _) = book.close();
    if errors.is_empty() { Ok(sources) } else { Err(Errors(errors)) }
}
