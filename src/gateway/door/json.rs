//! A JSON object with its members in order and their values byte for byte: changed here and there, copied elsewhere.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::MapAccess;
use serde::de::Visitor;
use serde_json::value::RawValue;

/// Members as they were written; what is set comes last, or where the old value stood.
#[derive(Clone, Debug, Default)]
pub(super) struct Object<'a>(Vec<Member<'a>>);

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
    pub(super) fn read(text: &'a [u8]) -> Option<Object<'a>> {
        serde_json::from_slice(text).ok()
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|member| member.name == name).map(|member| &*member.value)
    }

    /// The member's value, if it is a JSON string.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?).ok()
    }

    /// The member's value, if it is an object.
    pub(super) fn object(&self, name: &str) -> Option<Object<'_>> {
        Object::read(self.get(name)?.as_bytes())
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.0.retain(|member| member.name != name);
    }

    pub(super) fn set(&mut self, name: &'a str, value: impl Into<Cow<'a, str>>) {
        let value = value.into();
        match self.0.iter_mut().find(|member| member.name == name) {
            Some(member) => member.value = value,
            None => self.push(name.into(), value),
        }
    }

    /// Appends a member whose name is not there yet.
    pub(super) fn push(&mut self, name: Cow<'a, str>, value: Cow<'a, str>) {
        let key = serde_json::Value::from(&*name).to_string();
        self.0.push(Member { name, key: key.into(), value });
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|member| keep(&member.name));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// (name, value as JSON text)
    pub(super) fn members(&self) -> impl Iterator<Item = (&str, &str)> {
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

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Vec<Member<'de>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(map.size_hint().unwrap_or(8));
                while let Some((key, value)) = map.next_entry::<&'de RawValue, &'de RawValue>()? {
                    let name: Name<'de> = serde_json::from_str(key.get()).map_err(serde::de::Error::custom)?;
                    members.push(Member { name: name.0, key: key.get().into(), value: value.get().into() });
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Members).map(Object)
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

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
}
