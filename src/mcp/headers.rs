//! The headers that mirror the body (SEP-2243): checking what came against the body, writing what goes upstream.
//!
//! INVARIANT: nothing is decided by a header. A header only has to agree with the body.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderName;
use http::HeaderValue;
use serde_json::Value;

use super::Era;
use super::Message;
use super::Method;
use super::message::FaultKind;
use crate::exchange::Request;

const VERSION: &str = "mcp-protocol-version";
const METHOD: &str = "mcp-method";
const NAME: &str = "mcp-name";
const PARAM: &str = "mcp-param-";

/// `MCP-Protocol-Version`, at most once.
pub(super) fn version(request: &Request) -> Result<Option<&str>, FaultKind> {
    request
        .single_header(VERSION)
        .map(|value| value.map(str::trim))
        .map_err(|()| mismatch("MCP-Protocol-Version is sent twice or is not ASCII"))
}

fn mismatch(what: &str) -> FaultKind {
    FaultKind::HeaderMismatch { what: what.to_owned() }
}

/// `Mcp-Method` must be there and say what the body says.
pub(super) fn check_method(request: &Request, method: &str) -> Result<(), FaultKind> {
    match request.single_header(METHOD) {
        Err(()) => Err(mismatch("Mcp-Method is sent twice or is not ASCII")),
        Ok(None) => Err(mismatch("Mcp-Method is missing")),
        Ok(Some(value)) if value.trim() == method => Ok(()),
        Ok(Some(_)) => Err(mismatch("Mcp-Method differs from the body's method")),
    }
}

/// All that a modern request must carry (MCP 2026-07-28, streamable-http §Request Metadata; basic/index §_meta).
pub(super) fn check(request: &Request, message: &Message) -> Result<(), FaultKind> {
    let header = version(request)?;
    let Some(in_body) = message.params.version.as_deref() else {
        return Err(FaultKind::InvalidParams {
            what: "params._meta[\"io.modelcontextprotocol/protocolVersion\"] is required".into(),
        });
    };
    match header {
        None => return Err(mismatch("MCP-Protocol-Version is missing")),
        Some(header) if header != in_body => {
            return Err(mismatch("MCP-Protocol-Version differs from the version in _meta"));
        }
        Some(_) => {}
    }
    if Era::of(in_body) != Some(Era::Modern) {
        return Err(FaultKind::UnsupportedVersion { requested: in_body.chars().take(64).collect() });
    }
    if !message.params.capabilities {
        return Err(FaultKind::InvalidParams {
            what: "params._meta[\"io.modelcontextprotocol/clientCapabilities\"] is required".into(),
        });
    }
    if let Some(method) = message.method {
        check_method(request, method.as_str())?;
    }
    let Some(wanted) = named(message) else {
        return Ok(());
    };
    match request.single_header(NAME) {
        Err(()) => Err(mismatch("Mcp-Name is sent twice or is not ASCII")),
        Ok(None) => Err(mismatch("Mcp-Name is missing")),
        Ok(Some(value)) => match decode(value) {
            None => Err(mismatch("Mcp-Name is not valid base64 of UTF-8")),
            Some(value) if value == wanted => Ok(()),
            Some(_) => Err(mismatch("Mcp-Name differs from the body")),
        },
    }
}

/// The value that `Mcp-Name` mirrors, for the methods that have one.
fn named(message: &Message) -> Option<&str> {
    match message.method {
        Some(Method::ToolsCall | Method::PromptsGet) => message.params.name.as_deref(),
        Some(Method::ResourcesRead) => message.params.uri.as_deref(),
        // SPEC: SEP-2663 §Streamable HTTP: Routing Headers.
        Some(Method::TasksCancel | Method::TasksGet | Method::TasksUpdate) => message.params.task_id.as_deref(),
        _ => None,
    }
}

/// The mirrored headers for the upstream leg of a modern message, written from the body alone.
pub fn mirrored(message: &Message, bindings: &[Binding]) -> Vec<(HeaderName, HeaderValue)> {
    if message.era != Era::Modern {
        return Vec::new();
    }
    let mut out = Vec::with_capacity(2 + bindings.len());
    if let Some(method) = message.method {
        out.push((HeaderName::from_static(METHOD), HeaderValue::from_static(method.as_str())));
    }
    if let Some(value) = named(message).and_then(encode) {
        out.push((HeaderName::from_static(NAME), value));
    }
    if bindings.is_empty() {
        return out;
    }
    let arguments = message.params.arguments.as_ref().and_then(|raw| serde_json::from_slice::<Value>(raw).ok());
    mirror_params(arguments.as_ref(), bindings, &mut out);
    out
}

/// What a client writes: the headers of a modern message, given its parts as they stand in the body. Methods are passed
/// on whether we know them or not.
pub fn mirror(
    version: Option<&str>,
    method: Option<&str>,
    name: Option<&str>,
    arguments: Option<&Value>,
    bindings: &[Binding],
) -> Vec<(HeaderName, HeaderValue)> {
    let plain = |name: &'static str, text: Option<&str>| {
        let value = text.and_then(|text| HeaderValue::from_str(text).ok());
        value.map(|value| (HeaderName::from_static(name), value))
    };
    let mut out: Vec<_> = plain(VERSION, version).into_iter().chain(plain(METHOD, method)).collect();
    out.extend(name.and_then(encode).map(|value| (HeaderName::from_static(NAME), value)));
    mirror_params(arguments, bindings, &mut out);
    out
}

fn mirror_params(arguments: Option<&Value>, bindings: &[Binding], out: &mut Vec<(HeaderName, HeaderValue)>) {
    for binding in bindings {
        let value = arguments.and_then(|arguments| binding.extract(arguments));
        let name = HeaderName::try_from(format!("{PARAM}{}", binding.header.to_ascii_lowercase()));
        if let (Some(value), Ok(name)) = (value.and_then(|value| encode(&value)), name) {
            out.push((name, value));
        }
    }
}

/// Does each `Mcp-Param-*` header agree with the argument it mirrors? Unknown ones are ignored (§3.5 of SEP-2243).
///
/// # Errors
/// A header that is missing, doubled, undecodable or different.
pub fn check_params(request: &Request, message: &Message, bindings: &[Binding]) -> Result<(), FaultKind> {
    if message.era != Era::Modern || bindings.is_empty() {
        return Ok(());
    }
    let arguments = message.params.arguments.as_ref().and_then(|raw| serde_json::from_slice::<Value>(raw).ok());
    for binding in bindings {
        let wanted = arguments.as_ref().and_then(|arguments| binding.extract(arguments));
        let name = format!("{PARAM}{}", binding.header.to_ascii_lowercase());
        let wrong = |how: &str| mismatch(&format!("Mcp-Param-{} {how}", binding.header));
        let sent = request.single_header(&name).map_err(|()| wrong("is sent twice or is not ASCII"))?;
        let sent = match sent {
            None => None,
            Some(value) => Some(decode(value).ok_or_else(|| wrong("is not valid base64 of UTF-8"))?),
        };
        match (wanted, sent) {
            (None, None) => {}
            (Some(wanted), Some(sent)) if wanted == sent || same_integer(&wanted, &sent) => {}
            (Some(_), None) => return Err(wrong("is missing")),
            (None, Some(_)) => return Err(wrong("is sent, but the argument is absent")),
            (Some(_), Some(_)) => return Err(wrong("differs from the argument")),
        }
    }
    Ok(())
}

/// SPEC: integers are compared numerically: `42.0` is `42`.
fn same_integer(left: &str, right: &str) -> bool {
    const EXACT: f64 = 9_007_199_254_740_991.0;
    match (left.parse::<f64>(), right.parse::<f64>()) {
        (Ok(left), Ok(right)) => left.to_bits() == right.to_bits() && left.abs() <= EXACT && left.fract() == 0.0,
        _ => false,
    }
}

/// One `x-mcp-header` of a tool's input schema: the argument at `path` is mirrored as `Mcp-Param-{header}`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Binding {
    pub header: String,
    pub path: Vec<String>,
}

impl Binding {
    fn extract(&self, arguments: &Value) -> Option<String> {
        let value = self.path.iter().try_fold(arguments, |value, key| value.get(key))?;
        match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(flag) => Some(flag.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }
}

/// The bindings of an input schema, or why the tool must be dropped from lists (SEP-2243, client MUST).
///
/// # Errors
/// The first rule that is broken.
pub fn bindings(schema: &Value) -> Result<Vec<Binding>, &'static str> {
    let mut found = Vec::new();
    walk(schema, &mut Vec::new(), true, 0, &mut found)?;
    let mut seen = std::collections::HashSet::new();
    if found.iter().all(|binding: &Binding| seen.insert(binding.header.to_ascii_lowercase())) {
        Ok(found)
    } else {
        Err("x-mcp-header is not unique")
    }
}

fn walk(
    schema: &Value,
    path: &mut Vec<String>,
    pure: bool,
    depth: usize,
    found: &mut Vec<Binding>,
) -> Result<(), &'static str> {
    if depth > super::jsonrpc::DEPTH_MAX {
        return Err("the schema is nested too deeply");
    }
    match schema {
        Value::Object(members) => {
            if let Some(header) = members.get("x-mcp-header") {
                let header = header.as_str().ok_or("x-mcp-header is not a string")?;
                if !pure || path.is_empty() {
                    return Err("x-mcp-header is not reachable through properties alone");
                }
                if header.is_empty() || !header.bytes().all(is_tchar) {
                    return Err("x-mcp-header is not an HTTP token");
                }
                match members.get("type").and_then(Value::as_str) {
                    Some("string" | "integer" | "boolean") => {
                        found.push(Binding { header: header.to_owned(), path: path.clone() })
                    }
                    _ => return Err("x-mcp-header is not on a string, integer or boolean"),
                }
            }
            for (key, value) in members {
                match (key.as_str(), value) {
                    ("properties", Value::Object(properties)) => {
                        for (name, property) in properties {
                            path.push(name.clone());
                            walk(property, path, pure, depth + 1, found)?;
                            path.pop();
                        }
                    }
                    ("default" | "examples" | "const" | "enum" | "x-mcp-header", _) => {}
                    _ => walk(value, path, false, depth + 1, found)?,
                }
            }
            Ok(())
        }
        Value::Array(items) => items.iter().try_for_each(|item| walk(item, path, false, depth + 1, found)),
        _ => Ok(()),
    }
}

fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A header value back to its text: surrounding blanks trimmed, the base64 sentinel decoded.
fn decode(value: &str) -> Option<String> {
    let value = value.trim_matches([' ', '\t']);
    match value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) {
        Some(encoded) => STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok()),
        None => Some(value.to_owned()),
    }
}

/// A text as a header value: plain when it survives as it is, else behind the base64 sentinel.
fn encode(text: &str) -> Option<HeaderValue> {
    let plain = text.bytes().all(|byte| matches!(byte, 0x20..=0x7e | b'\t'))
        && text.trim_matches([' ', '\t']) == text
        && !(text.starts_with("=?base64?") && text.ends_with("?="));
    if plain {
        HeaderValue::from_str(text).ok()
    } else {
        HeaderValue::try_from(format!("=?base64?{}?=", STANDARD.encode(text))).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_the_specification_hold() {
        for (text, wire) in [
            (" padded ", "=?base64?IHBhZGRlZCA=?="),
            ("line1\nline2", "=?base64?bGluZTEKbGluZTI=?="),
            ("=?base64?literal?=", "=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="),
            ("us west 1", "us west 1"),
            ("", ""),
        ] {
            assert_eq!(encode(text).expect("encodable").to_str().expect("ascii"), wire);
            assert_eq!(decode(wire).as_deref(), Some(text));
        }
        assert_eq!(decode("=?BASE64?eA==?=").as_deref(), Some("=?BASE64?eA==?="), "an upper-case prefix is a literal");
        assert_eq!(decode("=?base64?***?="), None);
    }

    #[test]
    fn bindings_come_from_pure_property_chains_only() {
        let schema = |text: &str| serde_json::from_str::<Value>(text).expect("json");
        let good = schema(
            r#"{"type":"object","properties":{"a":{"type":"object","properties":{"b":{"type":"string","x-mcp-header":"Region"}}}}}"#,
        );
        assert_eq!(bindings(&good), Ok(vec![Binding { header: "Region".into(), path: vec!["a".into(), "b".into()] }]));
        for bad in [
            r#"{"properties":{"a":{"type":"number","x-mcp-header":"X"}}}"#,
            r#"{"properties":{"a":{"type":"string","x-mcp-header":""}}}"#,
            r#"{"properties":{"a":{"type":"string","x-mcp-header":"a b"}}}"#,
            r#"{"properties":{"a":{"type":"string","x-mcp-header":"X"},"b":{"type":"string","x-mcp-header":"x"}}}"#,
            r#"{"properties":{"a":{"type":"array","items":{"type":"string","x-mcp-header":"X"}}}}"#,
            r#"{"oneOf":[{"properties":{"a":{"type":"string","x-mcp-header":"X"}}}]}"#,
        ] {
            assert!(bindings(&schema(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn integers_are_compared_as_numbers() {
        assert!(same_integer("42", "42.0"));
        assert!(!same_integer("42", "42.5"));
        assert!(!same_integer("9007199254740993", "9007199254740992"));
    }
}
