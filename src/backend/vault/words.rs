//! The words that Vault's tools take: mounts, paths, names, times. What is not well-formed is refused before Vault is asked.

use std::borrow::Cow;
use std::time::Duration;

use schemars::JsonSchema;
use schemars::Schema;
use schemars::SchemaGenerator;
use schemars::json_schema;
use serde::Deserialize;
use serde::Serialize;

/// Longer is no path that anybody chose.
const PATH_BYTES_MAX: usize = 512;
const SEGMENTS_MAX: usize = 32;

/// What Vault keeps for itself; no mount that a tool may name.
const OWN: [&str; 4] = ["sys", "auth", "identity", "cubbyhole"];

/// The segments of a path: not empty, no dots that go up, nothing that some server could take for a separator.
fn segments(text: &str) -> Result<(), String> {
    if text.len() > PATH_BYTES_MAX || text.split('/').count() > SEGMENTS_MAX {
        return Err(format!("has more than {PATH_BYTES_MAX} bytes or {SEGMENTS_MAX} segments"));
    }
    for segment in text.split('/') {
        if segment.is_empty() || segment == "." || segment == ".." {
            return Err("has an empty segment, `.` or `..`".to_owned());
        }
        if segment.chars().any(|c| c.is_control() || c == '\\') {
            return Err("has a control character or a backslash".to_owned());
        }
    }
    Ok(())
}

macro_rules! word {
    ($name:ident, $pattern:expr, $max:expr, $parse:expr) => {
        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                let parse: fn(&str) -> Result<String, String> = $parse;
                parse(&text).map($name)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "maxLength": $max })
            }
        }

        impl std::ops::Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }
    };
}

/// Where an engine is mounted; may have slashes in it. One slash at its end is cut.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub(super) struct Mount(String);

word!(Mount, r"^[^/\\\x00-\x1f][^\\\x00-\x1f]*$", PATH_BYTES_MAX, |text| {
    let text = text.strip_suffix('/').unwrap_or(text);
    if text.is_empty() {
        return Err("missing or invalid 'mount' parameter".to_owned());
    }
    segments(text)?;
    if OWN.contains(&text.split('/').next().unwrap_or_default()) {
        return Err("names a part of Vault itself and no mount".to_owned());
    }
    Ok(text.to_owned())
});

/// Where a secret is in its mount. One slash at its beginning is cut.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub(super) struct SecretPath(String);

word!(SecretPath, r"^[^\\\x00-\x1f]+$", PATH_BYTES_MAX, |text| {
    let text = text.strip_prefix('/').unwrap_or(text);
    if text.is_empty() {
        return Err("Missing or invalid 'path' parameter".to_owned());
    }
    segments(text)?;
    Ok(text.to_owned())
});

/// A folder of secrets; empty for the mount itself.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub(super) struct Folder(String);

word!(Folder, r"^[^\\\x00-\x1f]*$", PATH_BYTES_MAX, |text| {
    let text = text.strip_prefix('/').unwrap_or(text);
    let text = text.strip_suffix('/').unwrap_or(text);
    if !text.is_empty() {
        segments(text)?;
    }
    Ok(text.to_owned())
});

/// The name of a key in a secret.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub(super) struct KeyName(String);

word!(KeyName, r"^.+$", PATH_BYTES_MAX, |text| {
    let good = !text.is_empty() && text.len() <= PATH_BYTES_MAX;
    good.then(|| text.to_owned()).ok_or_else(|| format!("must have 1 to {PATH_BYTES_MAX} bytes"))
});

/// The name of a role or an issuer: one segment.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub(super) struct Name(String);

word!(Name, r"^[A-Za-z0-9_][A-Za-z0-9_.@-]*$", 128, |text| {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.@-".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let good = begins && text.len() <= 128 && text.chars().all(plain);
    good.then(|| text.to_owned())
        .ok_or_else(|| "must have 1 to 128 letters, digits, `_`, `.`, `@` and `-`, and begin with a letter".to_owned())
});

impl Name {
    pub(super) fn fixed(name: &'static str) -> Name {
        Name(name.to_owned())
    }
}

impl Mount {
    pub(super) fn pki() -> Mount {
        Mount("pki".to_owned())
    }
}

/// A time as Vault writes it: `300`, `90s`, `5m`, `24h`, `30d`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub(super) struct Ttl(String);

word!(Ttl, r"^[0-9]{1,9}(s|m|h|d)?$", 10, |text| {
    seconds(text).map(|_| text.to_owned()).ok_or_else(|| "is not a time such as `90s`, `5m`, `24h` or `30d`".to_owned())
});

impl Ttl {
    pub(super) fn fixed(text: &'static str) -> Ttl {
        Ttl(text.to_owned())
    }

    pub(super) fn span(&self) -> Duration {
        Duration::from_secs(seconds(&self.0).unwrap_or_default())
    }
}

fn seconds(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let (digits, unit) = text.split_at_checked(digits.len())?;
    let unit = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return None,
    };
    let plain = (1..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse::<u64>().ok().filter(|_| plain)?.checked_mul(unit)
}

/// A token that unwraps to what was asked for, once.
#[derive(Clone, Debug, Eq, JsonSchema, PartialEq, Serialize)]
pub(super) struct Wrapped {
    /// For `sys/wrapping/unwrap`; good for one use.
    pub(super) token: String,
    /// Seconds until it ends.
    pub(super) ttl: u64,
    /// The path of Vault that made what is in it: check it before you trust the content.
    pub(super) creation_path: String,
}

impl Wrapped {
    pub(super) fn of(body: &serde_json::Value) -> Option<Wrapped> {
        let info = body.get("wrap_info")?;
        let text = |name: &str| info.get(name)?.as_str().map(str::to_owned);
        Some(Wrapped {
            token: text("token")?,
            ttl: info.get("ttl")?.as_u64()?,
            creation_path: text("creation_path").unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leaves_its_mount() {
        let bad = ["../../sys/policies/acl/x", "a/../b", "a//b", ".", "a/.", "a\0b", "a\nb", "a\\b", "", "/", "a/"];
        for text in bad {
            assert!(SecretPath::try_from(text.to_owned()).is_err(), "{text:?}");
        }
        assert!(SecretPath::try_from("x/".repeat(40) + "x").is_err());
        assert!(SecretPath::try_from("x".repeat(513)).is_err());
        // An encoded dot is a name like any other: it is encoded once more and never decoded here.
        for text in ["%2e%2e/x", "a%2fb", "/configs/demo", "ä ö"] {
            assert!(SecretPath::try_from(text.to_owned()).is_ok(), "{text:?}");
        }
        assert_eq!(&*Folder::try_from("/a/b/".to_owned()).expect("a folder"), "a/b");
        assert_eq!(&*Folder::try_from("/".to_owned()).expect("a folder"), "");
        assert!(Folder::try_from("a/../b".to_owned()).is_err());
    }

    #[test]
    fn mounts_are_not_vaults_own_parts() {
        for text in ["sys", "sys/", "auth/token", "identity", "cubbyhole/", "", "/", "/secret", "a//b", ".."] {
            assert!(Mount::try_from(text.to_owned()).is_err(), "{text:?}");
        }
        assert_eq!(&*Mount::try_from("team/api-keys/".to_owned()).expect("a mount"), "team/api-keys");
        assert_eq!(&*Mount::try_from("system".to_owned()).expect("a mount"), "system");
    }

    #[test]
    fn times_are_what_vault_takes() {
        for (text, seconds) in [("300", 300), ("90s", 90), ("5m", 300), ("24h", 86_400), ("30d", 2_592_000)] {
            assert_eq!(Ttl::try_from(text.to_owned()).expect("a time").span().as_secs(), seconds);
        }
        for text in ["", "s", "5 m", "-5m", "1w", "1h30m", "9999999999"] {
            assert!(Ttl::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn names_are_one_segment() {
        for text in ["a/b", "..", ".", "-x", "", "a b", "a?b", "ä"] {
            assert!(Name::try_from(text.to_owned()).is_err(), "{text:?}");
        }
        assert!(Name::try_from("my-role.v2@team_1".to_owned()).is_ok());
    }
}
