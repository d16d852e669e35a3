//! `backends`, as written: MCP servers behind the gateway and how each is reached.

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

use crate::catalog::Effect;
use crate::catalog::Mode;
use crate::config::file::Credential;
use crate::config::file::Vault;
use crate::config::scalar::OptionalSpan;
use crate::config::scalar::Size;
use crate::config::scalar::Span;
use crate::config::scalar::Variable;
use crate::filters::Hidden;
use crate::filters::Oversize;

/// One MCP server. Exactly one of `http`, `sse`, `stdio` and `vault`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Backend {
    /// A server that speaks streamable HTTP.
    pub http: Option<Http>,
    /// A server that speaks HTTP+SSE of 2024-11-05, before streamable HTTP. Its era is `legacy`.
    pub sse: Option<Sse>,
    /// A server that is a program and speaks over its standard input and output.
    pub stdio: Option<Stdio>,
    /// No other server: tools of the gateway itself for HashiCorp Vault or OpenBao.
    pub vault: Option<Vault>,
    /// The protocol era it speaks. Default: `auto`.
    pub era: Option<Era>,
    /// What its tools do; the first rule that matches holds. A tool without a rule counts as `destroy`.
    pub effects: Option<Vec<EffectRule>>,
    /// Believe its own hints (`readOnlyHint` and so on) about tools without a rule. Without this, hints can only raise an
    /// effect. Default: `false`.
    pub trust_annotations: Option<bool>,
    /// File with its tools as they were reviewed, written by `wardgate tools pin`. With it only tools that are approved
    /// there, and are as they were then, are offered; it says what they do; and their arguments are validated. Default:
    /// none, every tool is offered.
    pub pins: Option<String>,
    /// A ceiling for this backend. Default: the gateway's `mode`.
    pub mode: Option<Mode>,
    /// What the gateway authenticates with. The caller's own token is passed on only by `forward`. Default: nothing.
    pub credential: Option<Credential>,
    /// To connect, TCP and TLS together. Default: `5s`.
    pub connect_timeout: Option<Span>,
    /// How long a running answer or stream may be silent; `none` for no bound. Default: `5m`.
    pub read_timeout: Option<OptionalSpan>,
    /// Size of one answer. Default: `16MiB`; at most `1GiB`.
    pub answer_bytes_max: Option<Size>,
    /// Size of one server-sent event. Default: `4MiB`; at most `1GiB`.
    pub event_bytes_max: Option<Size>,
    /// How long its list of tools is taken as the truth before it is asked again. Default: `1m`.
    pub catalog_ttl: Option<Span>,
    /// What may leave of what it says. Default: its declarations without hidden text, everything else as it is.
    pub filters: Option<Filters>,
    /// Leave it alone for a while when it does not answer; `false` or `off` for never. For `http` and `sse`: a program
    /// that ends has pauses of its own.
    pub breaker: Option<MaybeBreaker>,
}

/// What may leave of what a server says: secrets, hidden text, sizes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Filters {
    /// Secrets that are replaced by `[redacted:KIND]` wherever a text of this server has them. Not for a server that is asked
    /// for secrets. Default: none.
    pub redact: Option<Vec<Redact>>,
    /// Secrets of your own, by a name of your choice: regular expressions of the Rust crate `regex`, matched in linear time.
    pub patterns: Option<BTreeMap<String, String>>,
    /// Text that a model reads and a person does not see (invisible, reordering and terminal control characters), in
    /// descriptions, titles, schemas, instructions and questions to the user. Default: `strip`.
    pub hidden_text: Option<Hidden>,
    /// The same in results, errors, logs and progress. Default: `allow`.
    pub hidden_text_results: Option<Hidden>,
    /// Size of one result as it leaves; a larger one is withheld, and the caller is told the cap. Default: no cap but
    /// `answer_bytes_max` of the backend, up to which it is read.
    pub result_bytes_max: Option<Size>,
    /// Size of one content block or resource in a result. Default: no cap.
    pub item_bytes_max: Option<Size>,
    /// What becomes of an item over `item_bytes_max`: `refuse` withholds the result, `truncate` cuts text blocks and says so
    /// in them. Default: `refuse`.
    pub oversize: Option<Oversize>,
}

/// A kind of secret, or all that are known.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum Redact {
    /// All that follow.
    All,
    /// AWS access key ids; secret access keys and session tokens where they are named.
    Aws,
    /// Azure storage and Service Bus keys, signatures of SAS URLs, Entra client secrets.
    Azure,
    /// Payment card numbers: known beginnings, right length, right check digit.
    Card,
    /// Passwords in URLs: `postgres://user:password@host`.
    ConnectionString,
    /// GitHub tokens.
    Github,
    /// Google API keys, access and refresh tokens, client secrets.
    Google,
    /// JSON Web Tokens.
    Jwt,
    /// `password=…` in a text, and members of that name.
    Password,
    /// PEM blocks of private keys. Certificates pass.
    PrivateKey,
    /// Slack tokens and webhooks.
    Slack,
    /// HashiCorp Vault tokens.
    Vault,
}

/// When to leave a server alone that does not answer. Failures are connections that cannot be made, status 500 and
/// above, and answers that do not come in time.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Breaker {
    /// Failures in a row, within a minute, until calls are refused at once. Default: `5`.
    pub failures: Option<u32>,
    /// How long they are; then one call tries it. Default: `10s`.
    pub pause: Option<Span>,
}

/// A breaker, or none.
#[derive(Debug)]
pub(in crate::config) enum MaybeBreaker {
    Off,
    On(Breaker),
}

impl<'de> Deserialize<'de> for MaybeBreaker {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OffOrOn;

        impl<'de> de::Visitor<'de> for OffOrOn {
            type Value = MaybeBreaker;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping, `false` or `off`")
            }

            fn visit_bool<E: de::Error>(self, on: bool) -> Result<MaybeBreaker, E> {
                if on { Ok(MaybeBreaker::On(Breaker::default())) } else { Ok(MaybeBreaker::Off) }
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<MaybeBreaker, E> {
                match word {
                    "off" => Ok(MaybeBreaker::Off),
                    _ => Err(E::invalid_type(de::Unexpected::Str(word), &self)),
                }
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<MaybeBreaker, A::Error> {
                Breaker::deserialize(de::value::MapAccessDeserializer::new(map)).map(MaybeBreaker::On)
            }
        }

        deserializer.deserialize_any(OffOrOn)
    }
}

impl JsonSchema for MaybeBreaker {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "MaybeBreaker".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "boolean" }, { "const": "off" }, generator.subschema_for::<Breaker>()] })
    }
}

/// A server that speaks streamable HTTP. Exactly one of `url` and `urls`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Http {
    /// Its MCP endpoint: `http://host:port/path`, `https://host/path`, or `unix:/path/to.sock:/path` for HTTP over a Unix
    /// socket.
    pub url: Option<String>,
    /// Several replicas of the same server, in place of `url`.
    pub urls: Option<Vec<String>>,
    /// PEM file of the authorities that its certificate is verified against. Default: the system's.
    pub ca: Option<String>,
    /// PEM file of the certificate the gateway shows; needs `client_key`.
    pub client_certificate: Option<String>,
    /// PEM file of the key of `client_certificate`.
    pub client_key: Option<String>,
    /// The name its certificate must have. Default: the URL's host.
    pub sni: Option<String>,
    /// Ask each replica regularly whether it is well. Default: judged by the calls alone.
    pub health: Option<Health>,
    /// Idle connections are closed after this. Default: `60s`.
    pub idle_timeout: Option<Span>,
    /// Calls and streams to it at once, each a connection. Default: `1000`.
    pub connections_max: Option<u32>,
}

/// Regular health checks.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Health {
    /// Between two checks of a replica. Default: `10s`.
    pub interval: Option<Span>,
    /// For one check. Default: `2s`.
    pub timeout: Option<Span>,
    /// Failures in a row until a replica gets no more calls. Default: `3`.
    pub unhealthy_after: Option<u32>,
    /// Successes in a row until it gets calls again. Default: `2`.
    pub healthy_after: Option<u32>,
}

/// A server that speaks HTTP+SSE of 2024-11-05: each session is an open event stream, which names the endpoint for
/// messages. That must be of the same origin. One server: no replicas, and no health checks but the calls themselves.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Sse {
    /// Its event stream: `http://host:port/sse`, `https://host/sse`, or `unix:/path/to.sock:/sse` for HTTP over a Unix
    /// socket.
    #[schemars(with = "String")]
    pub url: Option<String>,
    /// PEM file of the authorities that its certificate is verified against. Default: the system's.
    pub ca: Option<String>,
    /// PEM file of the certificate the gateway shows; needs `client_key`.
    pub client_certificate: Option<String>,
    /// PEM file of the key of `client_certificate`.
    pub client_key: Option<String>,
    /// The name its certificate must have. Default: the URL's host.
    pub sni: Option<String>,
    /// A session that nobody uses is ended after this. Default: `10m`.
    pub idle_timeout: Option<Span>,
    /// Sessions at once, each a connection, and as many again for messages. Default: `1000`.
    pub connections_max: Option<u32>,
}

/// Whose a process is.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum Processes {
    /// All sessions and modern requests of one caller share one.
    Principal,
    /// Each legacy session has its own; modern requests share one per caller.
    Session,
    /// All callers share one. Only for a server that keeps nothing of a caller.
    Shared,
}

/// A server that is a program. It gets no environment but `env` and what a program needs to start.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Stdio {
    /// The program and its arguments, not passed to a shell: `[uvx, mcp-server-git]`.
    #[schemars(with = "Vec<String>")]
    pub command: Option<Vec<String>>,
    /// Environment variables: secrets as `file:/path` or `env:NAME`, other values as `plain:TEXT`.
    pub env: Option<BTreeMap<String, Variable>>,
    /// The folder it runs in. Default: the gateway's own.
    pub directory: Option<String>,
    /// Whose a process is. Default: `principal`.
    pub processes: Option<Processes>,
    /// Processes at once. Default: `16`.
    pub processes_max: Option<u32>,
    /// Processes of one caller at once. Default: `4`.
    pub processes_per_principal_max: Option<u32>,
    /// A process that has not answered its first question within this is ended. Default: `2m`.
    pub start_timeout: Option<Span>,
    /// A process that serves nobody is ended after this. Default: `10m`.
    pub idle_timeout: Option<Span>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum Era {
    /// Found out by asking.
    Auto,
    /// 2024-11-05 to 2025-11-25: `initialize` and sessions.
    Legacy,
    /// 2026-07-28 and later: stateless.
    Modern,
}

/// The values of an argument that a rule is about: one or several.
#[derive(Debug)]
pub(in crate::config) struct Values(pub(in crate::config) Vec<serde_json::Value>);

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrSeveral;

        impl<'de> de::Visitor<'de> for OneOrSeveral {
            type Value = Values;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, an integer, `true`, `false`, or a list of these")
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Values, E> {
                Ok(Values(vec![value.into()]))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Values, E> {
                Ok(Values(vec![value.into()]))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Values, E> {
                Ok(Values(vec![value.into()]))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Values, E> {
                Ok(Values(vec![value.into()]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Values, A::Error> {
                let mut values = Vec::new();
                while let Some(Values(item)) = items.next_element()? {
                    values.extend(item);
                }
                Ok(Values(values))
            }
        }

        deserializer.deserialize_any(OneOrSeveral)
    }
}

impl JsonSchema for Values {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Values".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let one = || json_schema!({ "type": ["string", "integer", "boolean"] });
        json_schema!({ "anyOf": [one(), { "type": "array", "items": one(), "minItems": 1 }] })
    }
}

/// What the tools that match do.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct EffectRule {
    /// Glob over the names of this backend's tools: `get_*`, `{list,read}_*`.
    #[schemars(with = "String")]
    pub tools: Option<String>,
    /// Only calls with these arguments: `{ action: [list, get] }`. All must be sent, each with one of its values.
    pub when: Option<BTreeMap<String, Values>>,
    /// What they do. Explicit hints of the server may still raise it.
    #[schemars(with = "Effect")]
    pub effect: Option<Effect>,
}
