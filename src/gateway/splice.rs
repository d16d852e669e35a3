//! Changing a few values in a JSON text and leaving every other byte as it is.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use serde::de;
use serde::de::DeserializeSeed;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

/// The member of an object, as it is written. `None`: no object, or no such member.
pub(super) fn member<'a>(object: &'a str, name: &str) -> Option<&'a RawValue> {
    let mut deserializer = serde_json::Deserializer::from_str(object);
    Find(name).deserialize(&mut deserializer).ok().flatten()
}

/// The items of an array, as they are written; nothing where it is none.
pub(super) fn items(array: &str) -> Vec<&RawValue> {
    serde_json::from_str(array).unwrap_or_default()
}

/// The text of a JSON string.
pub(super) fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str::<String>(value.get()).ok().map(Cow::Owned)
}

/// The same text with other values in some places.
pub(super) struct Edits<'a> {
    whole: &'a Bytes,
    edits: Vec<(Range<usize>, String)>,
}

impl<'a> Edits<'a> {
    pub(super) fn of(whole: &'a Bytes) -> Edits<'a> {
        Edits { whole, edits: Vec::new() }
    }

    /// `value` must have been found in the very same bytes.
    pub(super) fn replace(&mut self, value: &RawValue, with: String) {
        let start = value.get().as_ptr().addr().wrapping_sub(self.whole.as_ptr().addr());
        self.edits.push((start..start.saturating_add(value.get().len()), with));
    }

    pub(super) fn finish(mut self) -> Bytes {
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

impl<'de> de::Visitor<'de> for Find<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::quoted;

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
}
