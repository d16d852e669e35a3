//! A tree as serde input, without serde's leniency: a list is never taken for a mapping.

use serde::Deserializer;
use serde::de::Error as _;
use serde::de::IntoDeserializer;
use serde::de::Unexpected;
use serde::de::Visitor;
use serde::de::value::Error;
use serde::de::value::MapAccessDeserializer;
use serde::de::value::MapDeserializer;
use serde::de::value::SeqDeserializer;
use serde_json::Value;

use super::yaml::Content;
use super::yaml::Node;

#[derive(Clone, Copy)]
pub(super) struct Strict<'a>(pub(super) &'a Node);

/// What a mapping with the wrong number of keys is told where one of several is chosen by its key.
pub(super) const ONE_KEY: &str = "expected a mapping with exactly one key";

impl Strict<'_> {
    fn found(&self) -> Unexpected<'_> {
        match &self.0.content {
            Content::Mapping(_) => Unexpected::Map,
            Content::Sequence(_) => Unexpected::Seq,
            Content::Scalar(Value::Bool(value)) => Unexpected::Bool(*value),
            Content::Scalar(Value::Number(number)) => Unexpected::Signed(number.as_i64().unwrap_or_default()),
            Content::Scalar(Value::String(text)) => Unexpected::Str(text),
            Content::Scalar(_) => Unexpected::Unit,
        }
    }
}

impl<'de> IntoDeserializer<'de> for Strict<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Strict<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.0.content {
            Content::Mapping(entries) => visitor
                .visit_map(MapDeserializer::new(entries.iter().map(|(name, node)| (name.as_str(), Strict(node))))),
            Content::Sequence(items) => visitor.visit_seq(SeqDeserializer::new(items.iter().map(Strict))),
            Content::Scalar(Value::Bool(value)) => visitor.visit_bool(*value),
            Content::Scalar(Value::String(text)) => visitor.visit_borrowed_str(text),
            Content::Scalar(Value::Number(number)) => match number.as_u64() {
                Some(number) => visitor.visit_u64(number),
                None => visitor.visit_i64(number.as_i64().unwrap_or_default()),
            },
            Content::Scalar(_) => visitor.visit_unit(),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.0.content {
            Content::Scalar(Value::Null) => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.0.content {
            Content::Mapping(_) => self.deserialize_any(visitor),
            _ => Err(Error::invalid_type(self.found(), &"a map")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.0.content {
            Content::Scalar(Value::String(text)) => visitor.visit_enum(text.as_str().into_deserializer()),
            Content::Mapping(entries) if entries.len() == 1 => {
                let entries = entries.iter().map(|(name, node)| (name.as_str(), Strict(node)));
                visitor.visit_enum(MapAccessDeserializer::new(MapDeserializer::new(entries)))
            }
            Content::Mapping(_) => Err(Error::custom(ONE_KEY)),
            _ => Err(Error::invalid_type(self.found(), &"one word")),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct newtype_struct seq tuple tuple_struct map identifier ignored_any
    }
}
