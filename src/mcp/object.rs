//! JSON objects as raw text: read member by member, changed in a few places, written anew; the rest stays byte for byte.
//!
//! [`Members`] is what an object says, [`Object`] is one that is changed, [`Edits`] changes values inside a whole message,
//! [`Writer`] writes an object from nothing. Pure.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde::de;
use serde::de::DeserializeSeed;
use serde::de::IgnoredAny;
use serde::de::MapAccess;
use serde::de::Visitor;
use serde_json::value::RawValue;

use super::quoted;

/// The members of one object as they were written.
pub struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// # Errors
    /// When it is no object, or has a member twice: two readers could take it for two things.
    pub fn read(text: &'a [u8]) -> Result<Members<'a>, &'static str> {
        let Raw(members) = serde_json::from_slice(text).map_err(|_| "not a JSON object")?;
        let members: Vec<_> = members
            .into_iter()
            .map(|(key, value)| Ok((name(key)?, value)))
            .collect::<Result<_, _>>()
            .map_err(|_: serde_json::Error| "not a JSON object")?;
        let members = Members(members);
        let mut keys: Vec<&str> = members.0.iter().map(|(key, _)| key.as_ref()).collect();
        keys.sort_unstable();
        if keys.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err("an object has the same member twice");
        }
        Ok(members)
    }

    pub fn find(&self, key: &str) -> Option<&'a str> {
        self.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// A member that is a string.
    pub fn text(&self, key: &str) -> Option<String> {
        serde_json::from_str(self.find(key)?).ok()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), value.get()))
    }
}

/// Members as they were written; what is set comes last, or where the old value stood.
#[derive(Clone, Debug, Default)]
pub struct Object<'a>(Vec<Member<'a>>);

#[derive(Clone, Debug)]
struct Member<'a> {
    name: Cow<'a, str>,
    /// The name as JSON text.
    key: Cow<'a, str>,
    /// The value as JSON text.
    value: Cow<'a, str>,
}

impl<'a> Object<'a> {
    /// `None` if it is not one whole JSON object.
    pub fn read(text: &'a [u8]) -> Option<Object<'a>> {
        let Raw(members) = serde_json::from_slice(text).ok()?;
        let one = |(key, value): (&'a RawValue, &'a RawValue)| {
            Some(Member { name: name(key).ok()?, key: key.get().into(), value: value.get().into() })
        };
        members.into_iter().map(one).collect::<Option<_>>().map(Object)
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|member| member.name == name).map(|member| &*member.value)
    }

    /// The member's value, if it is a JSON string.
    pub fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?).ok()
    }

    /// The member's value, if it is an object.
    pub fn object(&self, name: &str) -> Option<Object<'_>> {
        Object::read(self.get(name)?.as_bytes())
    }

    pub fn remove(&mut self, name: &str) {
        self.0.retain(|member| member.name != name);
    }

    pub fn set(&mut self, name: &'a str, value: impl Into<Cow<'a, str>>) {
        let value = value.into();
        match self.0.iter_mut().find(|member| member.name == name) {
            Some(member) => member.value = value,
            None => self.push(name.into(), value),
        }
    }

    /// Appends a member whose name is not there yet.
    pub fn push(&mut self, name: Cow<'a, str>, value: Cow<'a, str>) {
        let key = quoted(&name);
        self.0.push(Member { name, key: key.into(), value });
    }

    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|member| keep(&member.name));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// (name, value as JSON text)
    pub fn members(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|member| (&*member.name, &*member.value))
    }
}

impl fmt::Display for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (index, member) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{}:{}", member.key, member.value)?;
        }
        f.write_str("}")
    }
}

/// (key, value) as they are written, in their order.
struct Raw<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;
        impl<'de> Visitor<'de> for Walk {
            type Value = Raw<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(map.size_hint().unwrap_or(8));
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Raw(members))
            }
        }
        deserializer.deserialize_map(Walk)
    }
}

/// What a key says; without a copy where nothing in it is escaped.
fn name(key: &RawValue) -> Result<Cow<'_, str>, serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Name<'_>>(key.get()).map(|name| name.0)
}

/// The member of an object, as it is written. `None`: no object, or no such member.
pub fn member<'a>(object: &'a str, name: &str) -> Option<&'a RawValue> {
    let mut deserializer = serde_json::Deserializer::from_str(object);
    Find(name).deserialize(&mut deserializer).ok().flatten()
}

/// The items of an array, as they are written; nothing where it is none.
pub fn items(array: &str) -> Vec<&RawValue> {
    serde_json::from_str(array).unwrap_or_default()
}

/// The text of a JSON string.
pub fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str::<String>(value.get()).ok().map(Cow::Owned)
}

/// The same text with other values in some places.
pub struct Edits<'a> {
    whole: &'a Bytes,
    edits: Vec<(Range<usize>, String)>,
}

impl<'a> Edits<'a> {
    pub fn of(whole: &'a Bytes) -> Edits<'a> {
        Edits { whole, edits: Vec::new() }
    }

    /// `value` must have been found in the very same bytes.
    pub fn replace(&mut self, value: &RawValue, with: String) {
        let start = value.get().as_ptr().addr().wrapping_sub(self.whole.as_ptr().addr());
        self.edits.push((start..start.saturating_add(value.get().len()), with));
    }

    pub fn finish(mut self) -> Bytes {
        if self.edits.is_empty() {
            return self.whole.clone();
        }
        self.edits.sort_by_key(|(range, _)| range.start);
        let mut out =
            Vec::with_capacity(self.whole.len() + self.edits.iter().map(|(_, with)| with.len()).sum::<usize>());
        let mut copied = 0;
        for (range, with) in &self.edits {
            out.extend_from_slice(self.whole.get(copied..range.start).unwrap_or_default());
            out.extend_from_slice(with.as_bytes());
            copied = range.end;
        }
        out.extend_from_slice(self.whole.get(copied..).unwrap_or_default());
        out.into()
    }
}

struct Find<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Find<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key == self.0 {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Writes one object.
pub struct Writer(String);

impl Default for Writer {
    fn default() -> Self {
        Writer::new()
    }
}

impl Writer {
    #[must_use]
    pub fn new() -> Writer {
        Writer(String::from("{"))
    }

    pub fn is_empty(&self) -> bool {
        self.0.len() == 1
    }

    /// A member whose value is JSON text.
    pub fn raw(&mut self, key: &str, value: &str) {
        if !self.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(&quoted(key));
        self.0.push(':');
        self.0.push_str(value);
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.raw(key, &quoted(value));
    }

    pub fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

/// A whole JSON-RPC message whose one further member (`result`, `error` or `params`) is JSON text.
pub fn response(id: &str, member: &str, value: &str) -> Bytes {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"{member}":{value}}}"#).into()
}

pub fn notification(method: &str, params: &str) -> Bytes {
    format!(r#"{{"jsonrpc":"2.0","method":{},"params":{params}}}"#, quoted(method)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_touched_stays_byte_for_byte_and_in_order() {
        let text = br#"{ "b" : [1, 2.50,"\u0041"], "\u0061":{"x" :1e3}, "c":null }"#;
        let mut object = Object::read(text).expect("an object");
        assert_eq!(object.to_string(), r#"{"b":[1, 2.50,"\u0041"],"\u0061":{"x" :1e3},"c":null}"#);
        assert_eq!(object.get("a"), Some(r#"{"x" :1e3}"#));
        object.remove("b");
        object.set("c", "7");
        object.set("d\"", "true");
        assert_eq!(object.to_string(), r#"{"\u0061":{"x" :1e3},"c":7,"d\"":true}"#);
    }

    #[test]
    fn only_an_object_is_one() {
        for other in ["[]", "1", "null", "", "{} {}", "{"] {
            assert!(Object::read(other.as_bytes()).is_none(), "{other}");
        }
        assert!(Object::read(b" {} ").is_some_and(|object| object.is_empty()));
    }

    #[test]
    fn only_the_replaced_values_change() {
        let whole = Bytes::from_static(br#" {"a" : {"n\u0061me":"x" },"name":  1.0e2, "b":["x"]}"#);
        let text = std::str::from_utf8(&whole).expect("text");
        let mut edits = Edits::of(&whole);
        edits.replace(member(text, "name").expect("name"), "2".into());
        let inner = member(text, "a").expect("a");
        edits.replace(member(inner.get(), "name").expect("inner name"), quoted("y\""));
        assert_eq!(&edits.finish()[..], br#" {"a" : {"n\u0061me":"y\"" },"name":  2, "b":["x"]}"#);
    }

    #[test]
    fn what_is_no_object_has_no_members() {
        for text in ["[]", "1", "\"a\"", "{\"a\":", ""] {
            assert!(member(text, "a").is_none(), "{text}");
        }
        assert!(items("{}").is_empty());
    }

    #[test]
    fn what_is_copied_is_copied_byte_for_byte_and_in_order() {
        let text = br#"{"z" : 1.50e3, "a":[ 1,2 ],"\u0062":123456789012345678901234567890}"#;
        let members = Members::read(text).expect("an object");
        let mut object = Writer::new();
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
