//! `backends.NAME.filters`, as meant: kinds of secrets, patterns that compile, sizes within reason.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::book::Book;
use crate::config::book::Key;
use crate::config::file;
use crate::config::file::Redact;
use crate::config::scalar::Size;
use crate::filters;
use crate::filters::Config;
use crate::filters::Filters;
use crate::filters::Kind;

/// Smaller caps leave no room for the answer's own envelope.
const BYTES_MIN: usize = 256;
const BYTES_MAX: usize = 1024 * 1024 * 1024;

/// What each backend's messages are held to; takes it out of what is written of the backends.
pub(super) fn filters(
    book: &mut Book<'_>,
    root: &Key,
    backends: Option<&mut BTreeMap<String, file::Backend>>,
) -> BTreeMap<Arc<str>, Config> {
    let mut meant = BTreeMap::new();
    for (name, backend) in backends.into_iter().flatten() {
        let key = root.at("backends").at(name).at("filters");
        if let Some(written) = backend.filters.take() {
            meant.insert(name.as_str().into(), one(book, &key, written));
        }
    }
    meant
}

fn one(book: &mut Book<'_>, key: &Key, written: file::Filters) -> Config {
    let mut redact: Vec<Kind> = written.redact.unwrap_or_default().into_iter().flat_map(kinds).copied().collect();
    redact.sort_unstable();
    redact.dedup();
    if written.oversize.is_some() && written.item_bytes_max.is_none() && !book.touched(key) {
        book.error(&key.at("oversize"), "is about `item_bytes_max`, which is missing");
    }
    let mut cap = |name: &str, size: Option<Size>| {
        size.map(|size| book.size(key, name, Some(size), BYTES_MAX, BYTES_MIN..=BYTES_MAX))
    };
    let config = Config {
        redact,
        patterns: written.patterns.unwrap_or_default(),
        hidden_declared: written.hidden_text.unwrap_or_default(),
        hidden_said: written.hidden_text_results,
        result_bytes_max: cap("result_bytes_max", written.result_bytes_max),
        item_bytes_max: cap("item_bytes_max", written.item_bytes_max),
        oversize: written.oversize.unwrap_or_default(),
    };
    if let Err(error) = Filters::new(&config) {
        let place = match &error {
            filters::Error::Empty { name } | filters::Error::Malformed { name, .. } => key.at("patterns").at(name),
            filters::Error::Name { .. } | filters::Error::TooMany { .. } => key.at("patterns"),
        };
        book.error(&place, error.to_string());
    }
    config
}

fn kinds(word: Redact) -> &'static [Kind] {
    match word {
        Redact::All => &Kind::ALL,
        Redact::Aws => &[Kind::Aws],
        Redact::Azure => &[Kind::Azure],
        Redact::Card => &[Kind::Card],
        Redact::ConnectionString => &[Kind::ConnectionString],
        Redact::Github => &[Kind::Github],
        Redact::Google => &[Kind::Google],
        Redact::Jwt => &[Kind::Jwt],
        Redact::Password => &[Kind::Password],
        Redact::PrivateKey => &[Kind::PrivateKey],
        Redact::Slack => &[Kind::Slack],
        Redact::Vault => &[Kind::Vault],
    }
}
