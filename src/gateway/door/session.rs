//! The door's sessions: what the client said at `initialize`, sealed into the id it holds. Any replica can open it.

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SecureRandom;
use ring::rand::SystemRandom;
use serde::Deserialize;
use serde::Serialize;

use crate::gateway::Purpose;
use crate::gateway::errand::Errand;
use crate::gateway::legacy;
use crate::mcp::LEGACY_VERSIONS;
use crate::mcp::object::Object;
use crate::mcp::quoted;

/// A client's description of itself is carried in every session id: a longer one is cut down to name and version.
const CLIENT_BYTES_MAX: usize = 512;

/// A legacy client in one session, as it introduced itself.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Guest {
    /// Names the session in this process. Random, so that nobody else's session is met by chance or by guessing.
    #[serde(rename = "n")]
    pub(super) nonce: String,
    /// The negotiated version.
    #[serde(rename = "v")]
    pub(super) version: String,
    /// Its capabilities as a modern server is told of them: what can be bridged, as JSON.
    #[serde(rename = "c")]
    pub(super) capabilities: String,
    /// `clientInfo`, as JSON.
    #[serde(rename = "i")]
    pub(super) client: Option<String>,
    #[serde(rename = "a")]
    pub(super) announced: Announced,
    /// Seconds since the epoch at sealing.
    #[serde(rename = "t")]
    since: u64,
}

/// What the upstream said it would tell about, so that only this is asked of it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Announced {
    #[serde(rename = "t")]
    pub(super) tools: bool,
    #[serde(rename = "p")]
    pub(super) prompts: bool,
    #[serde(rename = "r")]
    pub(super) resources: bool,
    #[serde(rename = "l")]
    pub(super) logging: bool,
}

impl Guest {
    /// From the params of `initialize`.
    pub(super) fn new(params: &Object<'_>, now: SystemTime) -> Option<Guest> {
        let newest = LEGACY_VERSIONS.first().copied().unwrap_or_default();
        let asked = params.text("protocolVersion").unwrap_or_default();
        let version = LEGACY_VERSIONS.into_iter().find(|version| *version == asked).unwrap_or(newest);
        Some(Guest {
            nonce: unguessable()?,
            version: version.to_owned(),
            capabilities: bridged(params.object("capabilities").as_ref()),
            client: params.object("clientInfo").and_then(|client| introduction(&client)),
            announced: Announced::default(),
            since: legacy::epoch(now),
        })
    }

    /// Did the client say that it answers such requests?
    pub(super) fn declares(&self, capability: &str) -> bool {
        Object::read(self.capabilities.as_bytes()).is_some_and(|object| object.get(capability).is_some())
    }

    /// The id to hand out.
    pub(super) fn seal(&self, errand: &Errand) -> Option<String> {
        let plain = serde_json::to_vec(self).ok()?;
        let id = errand.house.sealer.seal_bytes(Purpose::Door, &plain, &bound(errand))?;
        (id.len() <= legacy::ID_BYTES_MAX).then_some(id)
    }

    /// The session behind an id, if it is one of the door's, of this caller and of this route's backends.
    pub(super) fn open(id: &str, errand: &Errand) -> Option<Guest> {
        let sealer = &errand.house.sealer;
        let text = sealer.open_bytes(Purpose::Door, id, &bound(errand)).filter(|_| id.len() <= legacy::ID_BYTES_MAX)?;
        let guest: Guest = serde_json::from_slice(&text).ok()?;
        sealer.alive(guest.since, errand.request.at).then_some(guest)
    }
}

fn bound(errand: &Errand) -> Vec<u8> {
    legacy::associated(&errand.principal, &errand.route.backends.join("\0"))
}

/// 128 random bits; `None` when the system has no randomness.
pub(super) fn unguessable() -> Option<String> {
    let mut bytes = [0u8; 16];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

/// The capabilities of a legacy client that can be bridged, in their modern form. Settings are not carried: there are
/// none yet, and what a client invents has no place in a session id.
fn bridged(declared: Option<&Object<'_>>) -> String {
    const BRIDGED: [(&str, &[&str]); 3] =
        [("elicitation", &["form", "url"]), ("sampling", &["context", "tools"]), ("roots", &[])];
    let mut out = Object::default();
    for (name, parts) in BRIDGED {
        if let Some(said) = declared.and_then(|declared| declared.object(name)) {
            let mut kept = Object::default();
            parts.iter().filter(|part| said.object(part).is_some()).for_each(|part| kept.set(part, "{}"));
            out.set(name, kept.to_string());
        }
    }
    out.to_string()
}

fn introduction(client: &Object<'_>) -> Option<String> {
    let (name, version) = (client.text("name")?, client.text("version")?);
    let short = |text: String| Some(text).filter(|text| text.len() <= CLIENT_BYTES_MAX);
    short(client.to_string())
        .or_else(|| short(format!(r#"{{"name":{},"version":{}}}"#, quoted(&name), quoted(&version))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(params: &str) -> Guest {
        Guest::new(&Object::read(params.as_bytes()).expect("params"), SystemTime::UNIX_EPOCH).expect("randomness")
    }

    #[test]
    fn the_version_is_the_clients_if_it_is_served_and_the_newest_legacy_one_if_not() {
        for (asked, given) in [
            (r#""2024-11-05""#, "2024-11-05"),
            (r#""2025-06-18""#, "2025-06-18"),
            (r#""2026-07-28""#, "2025-11-25"),
            (r#""1.0""#, "2025-11-25"),
            ("7", "2025-11-25"),
        ] {
            assert_eq!(guest(&format!(r#"{{"protocolVersion":{asked}}}"#)).version, given, "{asked}");
        }
    }

    #[test]
    fn only_capabilities_that_can_be_bridged_are_told_upstream() {
        for (declared, told) in [
            (r#"{}"#, r#"{}"#),
            (r#"{"roots":{"listChanged":true},"tasks":{},"experimental":{"x":{}}}"#, r#"{"roots":{}}"#),
            (
                r#"{"elicitation":{"url":{},"form":{},"odd":{}},"sampling":{"tools":{"a":1}}}"#,
                r#"{"elicitation":{"form":{},"url":{}},"sampling":{"tools":{}}}"#,
            ),
            (r#"{"elicitation":{},"sampling":7}"#, r#"{"elicitation":{}}"#),
        ] {
            assert_eq!(guest(&format!(r#"{{"capabilities":{declared}}}"#)).capabilities, told, "{declared}");
        }
    }

    #[test]
    fn a_client_that_says_too_much_of_itself_is_cut_down_to_name_and_version() {
        let client = |text: &str| guest(&format!(r#"{{"clientInfo":{text}}}"#)).client;
        let small = r#"{"name":"a","version":"1","title":"A"}"#;
        assert_eq!(client(small).as_deref(), Some(small));
        let long = format!(r#"{{"name":"a","version":"1","title":"{}"}}"#, "x".repeat(CLIENT_BYTES_MAX));
        assert_eq!(client(&long).as_deref(), Some(r#"{"name":"a","version":"1"}"#));
        let name = "x".repeat(CLIENT_BYTES_MAX);
        assert_eq!(client(&format!(r#"{{"name":"{name}","version":"1"}}"#)), None);
        assert_eq!(client(r#"{"name":"a"}"#), None);
    }
}
