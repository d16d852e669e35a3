//! Strict JSON: no duplicate keys at any depth, bounded depth and width; ids kept in type and value.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeSeed;
use serde::de::MapAccess;
use serde::de::SeqAccess;
use serde::de::Visitor;

/// Nesting of arrays and objects. MCP messages are shallow; deep ones only attack parsers.
pub const DEPTH_MAX: usize = 64;

/// Members of one object. A tool call has a handful; thousands of keys are an attack on somebody's hash map.
pub const MEMBERS_MAX: usize = 10_000;

/// A longer id is never needed to correlate one answer.
pub const ID_BYTES_MAX: usize = 256;

/// A JSON-RPC id: the text of a JSON string or integer, kept byte for byte so that type and value survive.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Id(Box<str>);

impl Id {
    /// An id from its JSON text.
    ///
    /// Strings and integers only (MCP basic/index §Requests): not null, not fractional.
    pub fn from_json(text: &str) -> Option<Id> {
        let text = text.trim_matches([' ', '\t', '\n', '\r']);
        if text.len() > ID_BYTES_MAX {
            return None;
        }
        let string = text.starts_with('"') && serde_json::from_str::<String>(text).is_ok();
        let digits = text.strip_prefix('-').unwrap_or(text);
        let integer = !digits.is_empty()
            && digits.bytes().all(|b| b.is_ascii_digit())
            && serde_json::from_str::<serde_json::Number>(text).is_ok();
        (string || integer).then(|| Id(text.into()))
    }

    pub fn number(value: u64) -> Id {
        Id(value.to_string().into())
    }

    /// The id as JSON text.
    pub fn as_json(&self) -> &str {
        &self.0
    }

    /// Same type and same value (`1` and `1`, `"a"` and `"\u0061"`), never `1` and `"1"`.
    pub fn same(&self, other: &Id) -> bool {
        if self.0 == other.0 {
            return true;
        }
        match (serde_json::from_str::<String>(&self.0), serde_json::from_str::<String>(&other.0)) {
            (Ok(left), Ok(right)) => left == right,
            _ => false,
        }
    }
}

/// A text as a JSON string.
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Members that somebody judges: of one object, and of the objects in it that hold more of them.
#[derive(Debug)]
pub struct Judged {
    pub members: &'static [&'static str],
    pub below: &'static [(&'static str, &'static Judged)],
}

/// Checks a whole JSON text: well-formed, no duplicate keys at any depth, depth and width bounded, no trailing bytes.
/// Says whether a member is there that is one of the judged ones in another spelling.
pub fn check(bytes: &[u8], judged: Option<&'static Judged>) -> Result<Spelling, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let lookalike = Cell::new(false);
    Strict { depth: 0, judged, lookalike: &lookalike }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(if lookalike.get() { Spelling::Lookalike } else { Spelling::Plain })
}

/// Is every judged member written as the specification writes it?
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Spelling {
    /// Another spelling of a judged member is another request for a parser that ignores case (CVE-2026-27896): we would
    /// judge one call and the upstream would run another.
    Lookalike,
    Plain,
}

struct Strict<'c> {
    depth: usize,
    judged: Option<&'static Judged>,
    lookalike: &'c Cell<bool>,
}

impl<'c> Strict<'c> {
    fn deeper<E: serde::de::Error>(&self) -> Result<usize, E> {
        if self.depth >= DEPTH_MAX {
            return Err(E::custom(format_args!("nested deeper than {DEPTH_MAX} levels")));
        }
        Ok(self.depth + 1)
    }

    /// For the value of a member of this object.
    fn below(&self, depth: usize, key: &str) -> Strict<'c> {
        let judged = self.judged.and_then(|judged| {
            if judged.members.iter().any(|known| key != *known && folds_to(key, known)) {
                self.lookalike.set(true);
            }
            judged.below.iter().find(|(name, _)| *name == key).map(|(_, judged)| *judged)
        });
        Strict { depth, judged, lookalike: self.lookalike }
    }
}

/// Equal for a parser that ignores case: ASCII, and the two letters that Unicode folds into ASCII.
fn folds_to(key: &str, known: &str) -> bool {
    if key.is_ascii() {
        return key.eq_ignore_ascii_case(known);
    }
    let fold = |letter: char| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(known.chars().map(fold))
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let depth = self.deeper::<A::Error>()?;
        while items.next_element_seed(Strict { depth, judged: None, lookalike: self.lookalike })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let depth = self.deeper::<A::Error>()?;
        let mut seen = Keys::default();
        while let Some(key) = members.next_key::<Key<'de>>()? {
            let below = self.below(depth, &key.0);
            if !seen.insert(key.0) {
                return Err(serde::de::Error::custom("an object has the same member twice"));
            }
            if seen.len() > MEMBERS_MAX {
                return Err(serde::de::Error::custom(format_args!("an object has more than {MEMBERS_MAX} members")));
            }
            members.next_value_seed(below)?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>);

/// Keys of one object: compared linearly while few, hashed when many.
#[derive(Default)]
struct Keys<'a> {
    few: Vec<std::borrow::Cow<'a, str>>,
    many: HashSet<std::borrow::Cow<'a, str>>,
}

impl<'a> Keys<'a> {
    fn len(&self) -> usize {
        self.few.len() + self.many.len()
    }

    fn insert(&mut self, key: std::borrow::Cow<'a, str>) -> bool {
        const FEW: usize = 16;
        if self.few.contains(&key) {
            return false;
        }
        if self.few.len() < FEW {
            self.few.push(key);
            return true;
        }
        self.many.insert(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid(bytes: &[u8]) -> Result<Spelling, serde_json::Error> {
        check(bytes, None)
    }

    #[test]
    fn another_spelling_of_a_judged_member_is_seen_where_it_is_judged_only() {
        static INNER: Judged = Judged { members: &["name", "skin"], below: &[] };
        static OUTER: Judged = Judged { members: &["params"], below: &[("params", &INNER)] };
        let spelling = |text: &str| check(text.as_bytes(), Some(&OUTER)).expect(text);
        for plain in [
            r#"{"params":{"name":1,"other":{"NAME":1}},"name":2,"Name":3}"#,
            r#"{"params":[{"Name":1}]}"#,
            r#"{"params":{"names":1,"nam":2,"näme":3}}"#,
        ] {
            assert_eq!(spelling(plain), Spelling::Plain, "{plain}");
        }
        for other in [
            r#"{"Params":1}"#,
            r#"{"params":{"Name":1}}"#,
            r#"{"params":{"\u004eame":1}}"#,
            "{\"params\":{\"\u{17f}kin\":1}}",
            "{\"params\":{\"s\u{212a}in\":1}}",
        ] {
            assert_eq!(spelling(other), Spelling::Lookalike, "{other}");
        }
    }

    #[test]
    fn ids_are_strings_and_integers_only() {
        for good in ["0", "-1", "\"\"", "\"listen:0\"", "123456789012345678", " 7 "] {
            assert!(Id::from_json(good).is_some(), "{good} is an id");
        }
        for bad in ["null", "1.0", "1e3", "{}", "[1]", "true", "", "-", "+1", "01"] {
            assert!(Id::from_json(bad).is_none(), "{bad} is no id");
        }
    }

    #[test]
    fn an_id_keeps_its_type() {
        let number = Id::from_json("1").expect("number");
        let string = Id::from_json("\"1\"").expect("string");
        assert!(!number.same(&string));
        assert!(string.same(&Id::from_json("\"\\u0031\"").expect("escaped")));
    }

    #[test]
    fn duplicate_members_are_found_at_any_depth() {
        assert!(valid(br#"{"a":1,"b":[{"c":1,"d":2}]}"#).is_ok());
        assert!(valid(br#"{"a":1,"a":2}"#).is_err());
        assert!(valid(br#"{"a":1,"b":[{"c":1,"\u0063":2}]}"#).is_err());
    }

    #[test]
    fn depth_is_bounded() {
        let nest = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(valid(nest(DEPTH_MAX).as_bytes()).is_ok());
        assert!(valid(nest(DEPTH_MAX + 1).as_bytes()).is_err());
        assert!(valid("[".repeat(1_000_000).as_bytes()).is_err());
    }
}
