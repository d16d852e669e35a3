//! `routes`, as written: endpoints of the gateway, the backends each leads to and what their tools are called there.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use schemars::Schema;
use schemars::SchemaGenerator;
use schemars::json_schema;
use serde::Deserialize;
use serde::Deserializer;
use serde::de;
use serde::de::value::MapAccessDeserializer;

use crate::catalog::Mode;
use crate::config::scalar::Span;

/// One MCP endpoint of the gateway.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Route {
    /// The exact path: `/mcp`.
    #[schemars(with = "String")]
    pub path: Option<String>,
    /// Only for requests to this host name (no port). Default: any host.
    pub host: Option<String>,
    /// The backends it leads to. With one the route is transparent; with several, names begin with the backend's.
    #[schemars(with = "Destinations")]
    pub backends: Option<Destinations>,
    /// What stands between a backend's prefix and a name, on a route with several backends: one to four of `_`, `.` and `-`.
    /// Default: `_`, because many hosts take no dot in the name of a tool.
    pub separator: Option<String>,
    /// How long a list waits for each backend, on a route with several; who is later is named in it as missing.
    /// Default: `5s`.
    pub member_timeout: Option<Span>,
    /// A ceiling for this route. Default: the gateway's `mode`.
    pub mode: Option<Mode>,
    /// Serve clients that only speak HTTP+SSE of 2024-11-05 too: their stream is at the path followed by `/sse`.
    /// Default: `true`.
    pub old_sse: Option<bool>,
}

/// One name, or a list of names and mappings.
#[derive(Debug, Default)]
pub(in crate::config) struct Destinations(pub Vec<Destination>);

/// A backend of a route: its name, or what more there is to say about it there.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Destination")]
pub(in crate::config) struct Destination {
    /// The backend's name under `backends`.
    #[schemars(with = "String")]
    pub backend: Option<String>,
    /// What its names begin with on this route: letters, digits, `_`, `.` and `-`. Default: the backend's name.
    pub prefix: Option<String>,
    /// Other names for some of its tools, after the prefix: `{ read_file: open }`. The old name is then nobody's.
    pub rename: Option<BTreeMap<String, String>>,
}

struct OneOrMany;

impl<'de> Deserialize<'de> for Destinations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrMany)
    }
}

impl<'de> de::Visitor<'de> for OneOrMany {
    type Value = Destinations;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a backend or a list of backends")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Destinations, E> {
        Ok(Destinations(vec![Destination { backend: Some(name.to_owned()), ..Destination::default() }]))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Destinations, A::Error> {
        let mut all = Vec::new();
        while let Some(Either(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(Destinations(all))
    }
}

/// A destination in its short or its long form.
struct Either(Destination);

impl<'de> Deserialize<'de> for Either {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShortOrLong;

        impl<'de> de::Visitor<'de> for ShortOrLong {
            type Value = Either;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a backend or a mapping such as `{ backend: files, prefix: fs }`")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Either, E> {
                Ok(Either(Destination { backend: Some(name.to_owned()), ..Destination::default() }))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Either, A::Error> {
                Destination::deserialize(MapAccessDeserializer::new(map)).map(Either)
            }
        }

        deserializer.deserialize_any(ShortOrLong)
    }
}

impl JsonSchema for Destinations {
    fn schema_name() -> Cow<'static, str> {
        "Destinations".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let long = generator.subschema_for::<Destination>();
        json_schema!({
            "anyOf": [
                { "type": "string" },
                { "type": "array", "items": { "anyOf": [{ "type": "string" }, long] } },
            ],
        })
    }
}
