//! `mode`, `grants` and `policies`, as meant; Cedar files are read here and judged by their own room.

use std::path::Path;
use std::path::PathBuf;

use crate::catalog::Mode;
use crate::config::book::Book;
use crate::config::book::Key;
use crate::config::file;
use crate::config::scalar::Strings;
use crate::config::scalar::short;
use crate::policy::Config;
use crate::policy::Grant;

const CEDAR_BYTES_MAX: u64 = 1024 * 1024;
const CEDAR_FILES_MAX: usize = 1000;

pub(super) fn policy(
    book: &mut Book<'_>,
    root: &Key,
    mode: Option<Mode>,
    grants: Option<Vec<file::Grant>>,
    policies: Option<Strings>,
) -> Config {
    let nothing = grants.as_ref().is_none_or(Vec::is_empty) && policies.is_none();
    if nothing && !book.is_part() && !book.touched(&root.at("grants")) && !book.touched(&root.at("policies")) {
        book.warn(root, "there are no `grants` and no `policies`: nobody may do anything; for example `grants: [{ scope: mcp.read, allow: [read] }]`");
    }
    let grants = grants.unwrap_or_default().into_iter().enumerate();
    let grants = grants.filter_map(|(index, written)| grant(book, &root.at("grants").index(index), written)).collect();
    let sources = policies.map(|paths| sources(book, &root.at("policies"), &paths)).unwrap_or_default();
    Config { mode: mode.unwrap_or_default(), grants, sources }
}

fn grant(book: &mut Book<'_>, key: &Key, written: file::Grant) -> Option<Grant> {
    let whom =
        [("scope", &written.scope), ("role", &written.role), ("group", &written.group), ("subject", &written.subject)];
    let given: Vec<&str> = whom.iter().filter(|(_, value)| value.is_some()).map(|(name, _)| *name).collect();
    if given.len() > 1 {
        book.error(key, format!("is for one of `{}`: write one grant each", given.join("` and `")));
    }
    if given.is_empty() && book.touched(key) {
        // Whom it is for was wrong: it must not become a grant for everybody, not even while errors are collected.
        return None;
    }
    for (name, value) in whom {
        if value.as_ref().is_some_and(String::is_empty) {
            book.error(&key.at(name), "is empty");
        }
    }
    let allow = book.require(key, "allow", written.allow, "allow: [read]")?;
    if allow.is_empty() && !book.touched(&key.at("allow")) {
        book.error(&key.at("allow"), "is empty: name `read`, `read_sensitive`, `write` or `destroy`");
    }
    let listed = written.tools.is_some();
    let tools = written.tools.unwrap_or_default().0;
    if listed && tools.is_empty() {
        book.error(&key.at("tools"), "is empty: leave it out for all tools, or name some");
    }
    for (index, text) in tools.iter().enumerate() {
        let key = if tools.len() == 1 { key.at("tools") } else { key.at("tools").index(index) };
        if let Some(wild) = text.chars().find(|c| "?[]{}\\".contains(*c)) {
            book.error(&key, format!("`{wild}` has no meaning in a grant's pattern, only `*` has: list the tools, or say more with a Cedar policy"));
        } else if text.is_empty() {
            book.error(&key, "is empty; `*` means all tools");
        } else {
            check_tools(book, &key, text);
        }
    }
    Some(Grant {
        scope: written.scope,
        role: written.role,
        group: written.group,
        subject: written.subject,
        allow,
        tools,
        shadow: written.shadow.unwrap_or_default(),
        confirm: written.confirm.unwrap_or(false),
    })
}

/// Could the glob match `backend/tool` of a backend that is there?
pub(super) fn check_tools(book: &mut Book<'_>, key: &Key, text: &str) {
    match text.split_once('/') {
        Some((backend, tool)) if !backend.is_empty() && !tool.is_empty() => {
            let exact = !backend.contains(['*', '?', '[', '{']);
            if exact && !book.has_backend(backend) {
                book.warn(key, format!("there is no backend `{}`", short(backend)));
            }
        }
        None if matches!(text, "" | "*") => {}
        _ => book
            .error(key, format!("`{}` is not a `backend/tool` glob, such as `files/read_*` or `files/*`", short(text))),
    }
}

/// The text of every `.cedar` file, in the order written, files of a folder by name.
pub(in crate::config) fn sources(book: &mut Book<'_>, key: &Key, paths: &Strings) -> Vec<(String, String)> {
    let mut sources: Vec<(String, String)> = Vec::new();
    for (index, text) in paths.0.iter().enumerate() {
        let key = if paths.0.len() == 1 { key.clone() } else { key.index(index) };
        let path = book.place(&key, text);
        let files = if path.is_dir() { folder(book, &key, &path) } else { vec![path] };
        for file in files {
            let name = file.display().to_string();
            if sources.iter().any(|(known, _)| *known == name) {
                book.error(&key, format!("`{name}` is named twice"));
            } else if sources.len() >= CEDAR_FILES_MAX {
                book.error(&key, format!("more than {CEDAR_FILES_MAX} policy files"));
                return sources;
            } else if let Some(text) = book.text(&key, &file, CEDAR_BYTES_MAX) {
                sources.push((name, text));
            } else if book.options().check_policies && !book.options().check_files {
                book.error(&key, format!("`{name}` cannot be read"));
            }
        }
    }
    sources
}

fn folder(book: &mut Book<'_>, key: &Key, path: &Path) -> Vec<PathBuf> {
    book.watch(path);
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => {
            book.error(key, format!("`{}` cannot be read: {error}", path.display()));
            return Vec::new();
        }
    };
    // Names with a dot in front are what editors and Kubernetes leave beside the files.
    let hidden = |path: &Path| path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "cedar") && !hidden(path))
        .collect();
    files.sort();
    if files.is_empty() {
        book.warn(key, format!("there is no `.cedar` file in `{}`", path.display()));
    }
    files
}
