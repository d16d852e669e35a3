//! Rewriting JSON objects member by member: what is not touched stays byte for byte and in its order. Pure.

use std::borrow::Cow;
use std::fmt;

use crate::mcp::quoted;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::MapAccess;
use serde::de::Visitor;
use serde_json::value::RawValue;

/// The members of one object as they were written.
pub(super) struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// # Errors
    /// When it is no object, or has a member twice: two readers could take it for two things.
    pub(super) fn read(text: &'a [u8]) -> Result<Members<'a>, &'static str> {
        let members: Members<'a> = serde_json::from_slice(text).map_err(|_| "not a JSON object")?;
        let mut keys: Vec<&str> = members.0.iter().map(|(key, _)| key.as_ref()).collect();
        keys.sort_unstable();
        if keys.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err("an object has the same member twice");
        }
        Ok(members)
    }

    pub(super) fn find(&self, key: &str) -> Option<&'a str> {
        self.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// A member that is a string.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        serde_json::from_str(self.find(key)?).ok()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), value.get()))
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;
        impl<'de> Visitor<'de> for Walk {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((key, value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
                    members.push((key.0, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Walk)
    }
}

/// Writes one object.
pub(super) struct Object(String);

impl Object {
    pub(super) fn new() -> Object {
        Object(String::from("{"))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.len() == 1
    }

    /// A member whose value is JSON text.
    pub(super) fn raw(&mut self, key: &str, value: &str) {
        if !self.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(&quoted(key));
        self.0.push(':');
        self.0.push_str(value);
    }

    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.raw(key, &quoted(value));
    }

    pub(super) fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

/// A whole JSON-RPC message whose one further member (`result`, `error` or `params`) is JSON text.
pub(super) fn response(id: &str, member: &str, value: &str) -> Bytes {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"{member}":{value}}}"#).into()
}

pub(super) fn notification(method: &str, params: &str) -> Bytes {
    format!(r#"{{"jsonrpc":"2.0","method":{},"params":{params}}}"#, quoted(method)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_copied_is_copied_byte_for_byte_and_in_order() {
        let text = br#"{"z" : 1.50e3, "a":[ 1,2 ],"\u0062":123456789012345678901234567890}"#;
        let members = Members::read(text).expect("an object");
        let mut object = Object::new();
        members.iter().for_each(|(key, value)| object.raw(key, value));
        assert_eq!(object.finish(), r#"{"z":1.50e3,"a":[ 1,2 ],"b":123456789012345678901234567890}"#);
    }

    #[test]
    fn what_two_readers_could_read_in_two_ways_is_refused() {
        for bad in [r#"{"a":1,"\u0061":2}"#, "[]", "1", ""] {
            assert!(Members::read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
