//! `sessions`, as meant: keys decoded, none twice, and a lifetime.

use std::time::Duration;

use crate::config::book::Book;
use crate::config::book::Key;
use crate::config::file;
use crate::gateway;
use crate::gateway::Sessions;

/// Every one is looked through when an id comes; a rotation needs two.
const KEYS_MAX: usize = 16;

const LIFETIME_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A question that nobody answered in this time is forgotten.
const CONFIRM_WITHIN_MAX: Duration = Duration::from_secs(60 * 60);

pub(super) fn sessions(book: &mut Book<'_>, key: &Key, written: file::Sessions) -> Sessions {
    let default = Sessions::default();
    let lifetime = book.span(key, "lifetime", written.lifetime, default.lifetime);
    if lifetime > LIFETIME_MAX {
        book.error(&key.at("lifetime"), "must be at most 30d");
    }
    let confirm_within = book.span(key, "confirm_within", written.confirm_within, default.confirm_within);
    if confirm_within > CONFIRM_WITHIN_MAX {
        book.error(&key.at("confirm_within"), "must be at most 1h");
    }
    let references = written.keys.unwrap_or_default();
    let key = key.at("keys");
    if references.len() > KEYS_MAX {
        book.error(&key, format!("has more than {KEYS_MAX} keys"));
    }
    let mut keys: Vec<gateway::Key> = Vec::new();
    for (index, reference) in references.iter().enumerate() {
        let key = key.index(index);
        let secret = book.secret(&key, reference);
        // Not read, or said already.
        if secret.expose().is_empty() {
            continue;
        }
        match gateway::Key::parse(secret.expose()) {
            Ok(parsed) if keys.contains(&parsed) => book.error(&key, "is the same key as one before it"),
            Ok(parsed) => keys.push(parsed),
            Err(error) => book.error(&key, error.to_string()),
        }
    }
    Sessions { keys, lifetime, confirm_within }
}
