//! `server/discover` of several backends: what they can do together, and what each has to say.

use serde::Deserialize;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::ALL;
use super::Federation;
use super::PARTIAL;
use super::fan;
use super::fan::Missing;
use super::fan::Question;
use crate::gateway::Open;
use crate::gateway::Rejection;
use crate::gateway::apply::Outgoing;
use crate::mcp::Id;
use crate::mcp::Kind;
use crate::mcp::MODERN_VERSIONS;
use crate::mcp::Message;
use crate::mcp::meta::SERVER_INFO;
use crate::mcp::meta::TASKS;

/// What a route can relay. Extensions are between one client and one server, but for tasks: their ids say whose they are.
const CAPABILITIES: [&str; 5] = ["completions", "logging", "prompts", "resources", "tools"];

/// Of one backend's instructions; a model reads all of them in every conversation.
const INSTRUCTIONS_CHARS_MAX: usize = 4_000;

/// Of all of them together.
const INSTRUCTIONS_BYTES_MAX: usize = 32 * 1024;

#[derive(Deserialize)]
struct Answer {
    result: Discovered,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Discovered {
    #[serde(default)]
    capabilities: Map<String, Value>,
    instructions: Option<String>,
    #[serde(default)]
    ttl_ms: Value,
}

impl Federation {
    pub(super) async fn discover(&self, message: Message, id: &Id, open: &mut Open) -> Result<Outgoing, Rejection> {
        open.to(&ALL.into());
        let slot = self.slot().await?;
        let question = |share| {
            let message = Message { kind: Kind::Request { id: fan::part_id() }, ..message.clone() };
            Question { share, message }
        };
        let mut answers = self.ask((0..self.names.shares().len()).map(question).collect(), &slot, open).await?;
        open.target(ALL);
        let mut capabilities = Map::new();
        let mut instructions = String::new();
        let mut ttl_ms = u64::MAX;
        for (share, body) in answers.whole {
            let Ok(Answer { result }) = serde_json::from_slice::<Answer>(&body) else {
                answers.missing.push(Missing::protocol(share, self.backend(share)?, "backend_protocol"));
                continue;
            };
            unite(&mut capabilities, &result.capabilities);
            ttl_ms = ttl_ms.min(result.ttl_ms.as_u64().unwrap_or_default());
            if let (Some(text), Some(prefix)) =
                (result.instructions, self.names.share(share).map(|share| &share.prefix))
            {
                self.instruct(&mut instructions, prefix, &text);
            }
        }
        let whole = answers.missing.is_empty() && ttl_ms < u64::MAX;
        let info = json!({ "name": "wardgate", "version": env!("CARGO_PKG_VERSION") });
        let mut meta = Map::from_iter([(SERVER_INFO.to_owned(), info)]);
        if !answers.missing.is_empty() {
            meta.insert(PARTIAL.to_owned(), json!(fan::named(&answers.missing)));
        }
        let mut result = Map::from_iter([
            ("resultType".to_owned(), json!("complete")),
            ("supportedVersions".to_owned(), json!(MODERN_VERSIONS)),
            ("capabilities".to_owned(), json!(capabilities)),
            ("ttlMs".to_owned(), json!(if whole { ttl_ms } else { 0 })),
            ("cacheScope".to_owned(), json!("private")),
            ("_meta".to_owned(), meta.into()),
        ]);
        if !instructions.is_empty() {
            result.insert("instructions".to_owned(), instructions.into());
        }
        let result = Value::Object(result);
        let body = format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, id.as_json()).into();
        Ok(Outgoing::Json { status: 200, body, session: None, error_code: None, hidden: 0 })
    }

    /// One backend's instructions, under a heading that says which names they are about.
    fn instruct(&self, instructions: &mut String, prefix: &str, text: &str) {
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        let mut shown: String = text.chars().take(INSTRUCTIONS_CHARS_MAX).collect();
        if shown.len() < text.len() {
            shown.push('…');
        }
        let gap = if instructions.is_empty() { "" } else { "\n\n" };
        let section =
            format!("{gap}## {prefix} (names that begin with `{prefix}{}`)\n\n{shown}", self.names.separator());
        if instructions.len() + section.len() <= INSTRUCTIONS_BYTES_MAX {
            instructions.push_str(&section);
        }
    }
}

/// What any of them can do; a flag is up where one has it up.
fn unite(all: &mut Map<String, Value>, one: &Map<String, Value>) {
    for name in CAPABILITIES {
        let Some(Value::Object(flags)) = one.get(name) else { continue };
        let united = all.entry(name).or_insert_with(|| json!({}));
        for flag in ["listChanged", "subscribe"] {
            if flags.get(flag) == Some(&Value::Bool(true)) {
                united[flag] = true.into();
            }
        }
    }
    let tasks = one.get("extensions").and_then(|extensions| extensions.get(TASKS)).filter(|tasks| tasks.is_object());
    if tasks.is_some() {
        all.insert("extensions".to_owned(), json!({ TASKS: {} }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_united_and_extensions_other_than_tasks_are_not_passed() {
        let mut all = Map::new();
        for one in [
            json!({ "tools": { "listChanged": false }, "extensions": { "x": {} }, "resources": { "subscribe": true } }),
            json!({ "tools": { "listChanged": true, "odd": 1 }, "resources": {}, "prompts": 7 }),
        ] {
            unite(&mut all, one.as_object().expect("an object"));
        }
        assert_eq!(Value::Object(all), json!({ "tools": { "listChanged": true }, "resources": { "subscribe": true } }));
        let mut all = Map::new();
        for one in
            [json!({ "extensions": { TASKS: { "x": 1 }, "y": {} } }), json!({ "extensions": { "z": {} } }), json!({})]
        {
            unite(&mut all, one.as_object().expect("an object"));
        }
        assert_eq!(Value::Object(all), json!({ "extensions": { TASKS: {} } }));
    }
}
