//! API keys: a file of hashed keys, one per line, looked up by the SHA-256 of the key presented.
//!
//! A key is `wgk_` and 43 characters of base64url (256 random bits, so that a plain hash of it cannot be searched
//! through). The file has one key per line, as fields parted by blanks; blank lines and lines that begin with `#` are
//! passed over:
//!
//! ```text
//! # name    SHA-256 of the whole key, hex                                      what it may
//! ci-runner 2f1c…64 hex digits…9a                                              scopes=mcp.read,files:read
//! reporter  77ab…64 hex digits…01  scopes=mcp.read tenant=contoso expires=2027-01-31
//! ```
//!
//! * `name`: 1 to 64 of `A-Z a-z 0-9 . _ - @`. Two keys may share a name (and then are the same caller), so that a key
//!   can be replaced without a gap.
//! * `scopes=`, `roles=`, `groups=`: comma-separated; none by default.
//! * `tenant=`: none by default.
//! * `not_before=`, `expires=`: `YYYY-MM-DD` (the first moment of that day, UTC) or `YYYY-MM-DDThh:mm:ssZ`; by default it
//!   is good at once and does not end.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SecureRandom;
use ring::rand::SystemRandom;

use crate::principal::Claims;
use crate::principal::Kind;
use crate::principal::Method;
use crate::principal::Principal;
use crate::secret::Secret;

use super::Error;
use super::Pair;
use super::StartError;

/// How every key begins: tells it from a token, and lets scanners of leaked secrets find it.
pub const PREFIX: &str = "wgk_";

/// 256 bits in base64url.
const RANDOM_CHARS: usize = 43;

const FILE_BYTES_MAX: usize = 16 * 1024 * 1024;

const NAME_BYTES_MAX: usize = 64;

const WORDS_MAX: usize = 256;

/// What metrics show of the hash of a key: enough to find its line.
const PRINT_CHARS: usize = 8;

const TEXT_BYTES_MAX: usize = 256;

type Digest = [u8; 32];

/// Why a key cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error("{0}")]
    Malformed(&'static str),
    #[error("the system has no random numbers")]
    Random,
}

/// What a new key may, as the fields of its line have it.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    pub scopes: Vec<String>,
    pub roles: Vec<String>,
    pub groups: Vec<String>,
    pub tenant: Option<String>,
    pub not_before: Option<String>,
    pub expires: Option<String>,
}

/// Makes a new key: what its holder gets, and the line for the file.
pub fn generate(name: &str, fields: &Fields) -> Result<(Secret, String), GenerateError> {
    let words = [("scopes", &fields.scopes), ("roles", &fields.roles), ("groups", &fields.groups)];
    let values = [("tenant", &fields.tenant), ("not_before", &fields.not_before), ("expires", &fields.expires)];
    if words.iter().any(|(_, words)| words.iter().any(|word| !is_word(word))) {
        return Err(GenerateError::Malformed(WORDS_RULE));
    }
    if values.iter().any(|(_, value)| value.as_ref().is_some_and(|value| value.contains(char::is_whitespace))) {
        return Err(GenerateError::Malformed("a value must be without blanks"));
    }
    let mut random = [0; 32];
    SystemRandom::new().fill(&mut random).map_err(|_| GenerateError::Random)?;
    let key = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
    let mut line = format!("{name} {}", super::hex(&super::sha256(key.as_bytes())));
    for (field, words) in words.iter().filter(|(_, words)| !words.is_empty()) {
        line.push_str(&format!(" {field}={}", words.join(",")));
    }
    for (field, value) in values {
        line.extend(value.as_ref().map(|value| format!(" {field}={value}")));
    }
    // What reads the file is what says whether the line is good.
    Entry::read(&line).map_err(GenerateError::Malformed)?;
    Ok((Secret::new(key), line))
}

/// When a key was used last. Of the key itself there is only the start of its hash.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Use {
    pub name: String,
    /// The first hex digits of the hash in the file: two keys of one name are told apart by it.
    pub print: String,
    /// Seconds since the epoch.
    pub at: i64,
}

/// The keys of the file. Found by a few bytes of the digest, then compared in constant time.
pub(super) struct Keys(HashMap<u64, Vec<Entry>>);

struct Entry {
    digest: Digest,
    not_before: Option<SystemTime>,
    expires: Option<SystemTime>,
    principal: Pair,
    /// Seconds since the epoch; 0 for never.
    used: AtomicI64,
}

impl Keys {
    /// Reads the file; when its keys were used last is taken over from those of before.
    pub(super) fn read(path: &Path, previous: Option<&Keys>) -> Result<Keys, StartError> {
        let bytes = super::read(path, FILE_BYTES_MAX)?;
        let fail = |line, reason: &str| StartError::ApiKeyFile { path: path.into(), line, reason: reason.into() };
        let text = std::str::from_utf8(&bytes).map_err(|_| fail(1, "the file is not UTF-8"))?;
        let mut keys: HashMap<u64, Vec<Entry>> = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let entry = Entry::read(line).map_err(|reason| fail(index + 1, reason))?;
            let bucket = keys.entry(start(&entry.digest)).or_default();
            if bucket.iter().any(|known| known.digest == entry.digest) {
                return Err(fail(index + 1, "the same key is there twice"));
            }
            if let Some(old) = previous.and_then(|previous| previous.find(&entry.digest)) {
                entry.used.store(old.used.load(Relaxed), Relaxed);
            }
            bucket.push(entry);
        }
        Ok(Keys(keys))
    }

    fn find(&self, digest: &Digest) -> Option<&Entry> {
        let bucket = self.0.get(&start(digest)).map_or(&[][..], Vec::as_slice);
        bucket.iter().find(|entry| same(&entry.digest, digest))
    }

    /// The keys that were used since the start.
    pub(super) fn used(&self) -> Vec<Use> {
        let all = self.0.values().flatten().map(|entry| Use {
            name: entry.principal.plain.subject.clone(),
            print: super::hex(&entry.digest).chars().take(PRINT_CHARS).collect(),
            at: entry.used.load(Relaxed),
        });
        all.filter(|used| used.at > 0).collect()
    }

    pub(super) fn verify(&self, key: &str, at: SystemTime, mtls: bool) -> Result<Arc<Principal>, Error> {
        if !is_key(key) {
            return Err(Error::invalid("the API key does not have the form of one"));
        }
        let digest = super::sha256(key.as_bytes());
        let entry = self.find(&digest).ok_or_else(|| Error::invalid(UNKNOWN))?;
        if entry.not_before.is_some_and(|not_before| at < not_before) {
            return Err(Error::invalid("the API key is not valid yet"));
        }
        if entry.expires.is_some_and(|expires| at >= expires) {
            return Err(Error::invalid("the API key has expired"));
        }
        entry.used.fetch_max(super::seconds(at), Relaxed);
        Ok(entry.principal.of(mtls))
    }
}

const NAME_RULE: &str = "the name must be 1 to 64 of `A-Z a-z 0-9 . _ - @`";
const WORDS_RULE: &str = "`scopes`, `roles` and `groups` must be at most 256 comma-separated words of visible ASCII without `\"`, `\\` and `,`";
pub(super) const UNKNOWN: &str = "the API key is not known";

const FIELDS_RULE: &str = "a field must be `scopes=`, `roles=`, `groups=`, `tenant=`, `not_before=` or `expires=`";

impl Entry {
    fn read(line: &str) -> Result<Entry, &'static str> {
        let mut fields = line.split_ascii_whitespace();
        let name = fields.next().filter(|name| is_name(name)).ok_or(NAME_RULE)?;
        let digest =
            fields.next().and_then(digest).ok_or("the second field must be the SHA-256 of the key in 64 hex digits")?;
        let mut claims = Claims {
            kind: Kind::Service,
            subject: name.into(),
            issuer: "api-key".into(),
            method: Method::ApiKey,
            ..Claims::default()
        };
        let mut not_before = None;
        let mut seen = BTreeSet::new();
        for field in fields {
            let (word, value) = field.split_once('=').ok_or(FIELDS_RULE)?;
            if !seen.insert(word) {
                return Err("a field is there twice");
            }
            match word {
                "scopes" => claims.scopes = words(value).ok_or(WORDS_RULE)?,
                "roles" => claims.roles = words(value).ok_or(WORDS_RULE)?,
                "groups" => claims.groups = words(value).ok_or(WORDS_RULE)?,
                "tenant" if is_tenant(value) => claims.tenant = Some(value.into()),
                "tenant" => return Err("`tenant` must be 1 to 256 characters without `|`"),
                "not_before" => {
                    not_before = Some(time(value).ok_or("`not_before` must be `YYYY-MM-DD` or `YYYY-MM-DDThh:mm:ssZ`")?)
                }
                "expires" => {
                    claims.expires_at =
                        Some(time(value).ok_or("`expires` must be `YYYY-MM-DD` or `YYYY-MM-DDThh:mm:ssZ`")?)
                }
                _ => return Err(FIELDS_RULE),
            }
        }
        if not_before.zip(claims.expires_at).is_some_and(|(from, until)| from >= until) {
            return Err("`not_before` is not before `expires`: the key would never be good");
        }
        Ok(Entry {
            digest,
            not_before,
            expires: claims.expires_at,
            principal: Pair::new(claims),
            used: AtomicI64::new(0),
        })
    }
}

fn is_key(key: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    key.strip_prefix(PREFIX).is_some_and(|random| random.len() == RANDOM_CHARS && random.bytes().all(legal))
}

fn is_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(legal)
}

/// RFC 6749 section 3.3, without the comma that parts them here.
fn is_word(word: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_graphic() && !b"\"\\,".contains(&byte);
    (1..=TEXT_BYTES_MAX).contains(&word.len()) && word.bytes().all(legal)
}

/// `|` separates the parts of a principal's key.
fn is_tenant(tenant: &str) -> bool {
    (1..=TEXT_BYTES_MAX).contains(&tenant.len()) && !tenant.contains(|c: char| c == '|' || c.is_control())
}

fn words(text: &str) -> Option<BTreeSet<String>> {
    if text.is_empty() {
        return Some(BTreeSet::new());
    }
    let words: BTreeSet<String> = text.split(',').map(str::to_owned).collect();
    (words.len() <= WORDS_MAX && words.iter().all(|word| is_word(word))).then_some(words)
}

fn digest(text: &str) -> Option<Digest> {
    if text.len() != 64 {
        return None;
    }
    let mut digits = text.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()));
    let mut out = Digest::default();
    for byte in &mut out {
        *byte = digits.next()?? << 4 | digits.next()??;
    }
    Some(out)
}

fn start(digest: &Digest) -> u64 {
    digest.iter().take(8).fold(0, |start, byte| start << 8 | u64::from(*byte))
}

/// Equality that looks at every byte, whatever it finds on the way.
fn same(left: &Digest, right: &Digest) -> bool {
    let difference = left.iter().zip(right).fold(0, |all, (left, right)| std::hint::black_box(all | (left ^ right)));
    std::hint::black_box(difference) == 0
}

/// An RFC 3339 date or date-time in UTC.
/// `YYYY-MM-DD` or `YYYY-MM-DDThh:mm:ssZ`.
pub(crate) fn time(text: &str) -> Option<SystemTime> {
    let (date, clock) = match text.split_once('T') {
        Some((date, clock)) => (date, clock.strip_suffix('Z')?),
        None => (text, "00:00:00"),
    };
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let month_days = match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        1..=12 => 31,
        _ => return None,
    };
    if year < 1970 || !(1..=month_days).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Days from 1970-01-01 in the proleptic Gregorian calendar, with years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(((days * 24 + hour) * 60 + minute) * 60 + second))
}

fn numbers(text: &str, separator: char, widths: [usize; 3]) -> Option<[u64; 3]> {
    let mut parts = text.split(separator);
    let mut out = [0; 3];
    for (number, width) in out.iter_mut().zip(widths) {
        let part = parts.next().filter(|part| part.len() == width && part.bytes().all(|byte| byte.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(out)
}

#[cfg(test)]
mod tests;
