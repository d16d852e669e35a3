//! A legacy client's params in the modern way: three members of `_meta` more, everything else byte for byte. Pure.

use bytes::Bytes;

use super::json::Object;
use crate::mcp::FaultKind;

const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
const CLIENT: &str = "io.modelcontextprotocol/clientInfo";
const LEVEL: &str = "io.modelcontextprotocol/logLevel";
const VERSION: &str = "io.modelcontextprotocol/protocolVersion";

/// What a modern request says of its client.
#[derive(Clone, Copy)]
pub(super) struct Meta<'a> {
    /// As JSON.
    pub(super) capabilities: &'a str,
    /// As JSON.
    pub(super) client: Option<&'a str>,
    pub(super) level: Option<&'static str>,
}

/// What a call that was asked for input brings along when it is made again.
#[derive(Default)]
pub(super) struct Again {
    /// `inputResponses`, as JSON.
    pub(super) responses: Option<String>,
    /// `requestState`, as JSON: as it came, byte for byte.
    pub(super) state: Option<String>,
}

/// # Errors
/// When `_meta` is not an object.
pub(super) fn modern(params: Option<&Bytes>, meta: Meta<'_>, again: &Again) -> Result<Bytes, FaultKind> {
    let invalid = || FaultKind::InvalidParams { what: "params and params._meta must be objects".into() };
    let mut object = match params {
        Some(raw) => Object::read(raw).ok_or_else(invalid)?,
        None => Object::default(),
    };
    // Not the client's to say: they belong to the modern way of being asked, which it does not know.
    object.remove("inputResponses");
    object.remove("requestState");
    // The tasks of 2025-11-25 are not those of the extension, and are not on offer here.
    object.remove("task");
    let told = {
        let mut told = match object.get("_meta") {
            Some(raw) => Object::read(raw.as_bytes()).ok_or_else(invalid)?,
            None => Object::default(),
        };
        told.retain(|name| ![CAPABILITIES, CLIENT, LEVEL, VERSION].contains(&name));
        told.set(VERSION, format!("\"{}\"", crate::mcp::MODERN_VERSIONS.first().copied().unwrap_or_default()));
        told.set(CAPABILITIES, meta.capabilities);
        if let Some(client) = meta.client {
            told.set(CLIENT, client);
        }
        if let Some(level) = meta.level {
            told.set(LEVEL, format!("\"{level}\""));
        }
        told.to_string()
    };
    object.set("_meta", told);
    if let Some(responses) = &again.responses {
        object.set("inputResponses", responses);
    }
    if let Some(state) = &again.state {
        object.set("requestState", state);
    }
    Ok(object.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(params: Option<&str>, meta: Meta<'_>, again: &Again) -> String {
        let params = params.map(|text| Bytes::copy_from_slice(text.as_bytes()));
        let made = modern(params.as_ref(), meta, again).expect("objects");
        String::from_utf8(made.to_vec()).expect("text")
    }

    const BARE: Meta<'static> = Meta { capabilities: "{}", client: None, level: None };

    #[test]
    fn a_request_gains_what_the_modern_era_requires_and_keeps_the_rest() {
        let full = Meta {
            capabilities: r#"{"roots":{}}"#,
            client: Some(r#"{"name":"a","version":"1"}"#),
            level: Some("debug"),
        };
        for (params, meta, wanted) in [
            (
                None,
                BARE,
                r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}"#,
            ),
            (
                Some(r#"{"name":"x", "arguments":{"n":1.0,"s":"\u0041"},"odd":[ 1 ]}"#),
                BARE,
                r#"{"name":"x","arguments":{"n":1.0,"s":"\u0041"},"odd":[ 1 ],"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}"#,
            ),
            (
                Some(
                    r#"{"_meta":{"progressToken":"p","mine/x":1,"io.modelcontextprotocol/protocolVersion":"2025-11-25"},"cursor":""}"#,
                ),
                full,
                r#"{"_meta":{"progressToken":"p","mine/x":1,"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"roots":{}},"io.modelcontextprotocol/clientInfo":{"name":"a","version":"1"},"io.modelcontextprotocol/logLevel":"debug"},"cursor":""}"#,
            ),
        ] {
            assert_eq!(made(params, meta, &Again::default()), wanted);
        }
    }

    #[test]
    fn a_call_made_again_carries_answers_and_state_and_not_what_the_client_made_up() {
        let again =
            Again { responses: Some(r#"{"k":{"action":"accept"}}"#.into()), state: Some(r#""\u0061 b""#.into()) };
        let params = r#"{"name":"x","requestState":"forged","inputResponses":{}}"#;
        let meta = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;
        assert_eq!(
            made(Some(params), BARE, &again),
            format!(
                r#"{{"name":"x",{meta},"inputResponses":{{"k":{{"action":"accept"}}}},"requestState":"\u0061 b"}}"#
            )
        );
        assert_eq!(made(Some(params), BARE, &Again::default()), format!(r#"{{"name":"x",{meta}}}"#));
    }

    #[test]
    fn a_meta_that_is_no_object_is_refused() {
        for bad in [r#"{"_meta":[]}"#, r#"{"_meta":null}"#, "[]"] {
            assert!(modern(Some(&Bytes::copy_from_slice(bad.as_bytes())), BARE, &Again::default()).is_err(), "{bad}");
        }
    }
}
