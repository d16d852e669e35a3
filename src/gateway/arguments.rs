//! Arguments are validated against the reviewed input schema before anything goes to the upstream.
//!
//! SPEC: server/tools §Error Handling: what is wrong with the input is a result with `isError`, so that the model that wrote
//! it reads why, and not an error of the protocol.

use bytes::Bytes;
use serde_json::Value;
use serde_json::json;

use super::apply::Outgoing;
use crate::catalog::Call;
use crate::catalog::Catalog;
use crate::mcp::Era;
use crate::mcp::Method;
use crate::mcp::object;
use crate::mcp::strict::Strict;

/// What the caller is told instead of the call's result; `None` where nothing is wrong, or nothing is pinned.
pub(super) fn refused(call: &Call, catalog: &Catalog) -> Option<Outgoing> {
    let message = call.message().filter(|message| message.method == Some(Method::ToolsCall))?;
    let id = message.id()?;
    let check = catalog.pins.as_ref()?.input(&call.decl.name)?;
    let problems = match message.params.arguments.as_ref().map(|text| serde_json::from_slice::<Strict>(text)) {
        None => check.judge(&Value::Object(serde_json::Map::new())),
        Some(Ok(Strict(arguments))) => check.judge(&arguments),
        Some(Err(_)) => return Some(told(message.era, id.as_json(), "they are not JSON without duplicate members")),
    };
    let problems: Vec<String> = problems.err()?.iter().map(ToString::to_string).collect();
    Some(told(message.era, id.as_json(), &problems.join("; ")))
}

fn told(era: Era, id: &str, problems: &str) -> Outgoing {
    let text = format!("The arguments do not fit the tool's input schema and were not sent: {problems}");
    let mut result = json!({ "content": [{ "type": "text", "text": text }], "isError": true });
    if era == Era::Modern
        && let Some(members) = result.as_object_mut()
    {
        members.insert("resultType".to_owned(), "complete".into());
    }
    let body: Bytes = object::response(id, "result", &result.to_string());
    Outgoing::Json { status: 200, body, session: None, error_code: None, hidden: 0 }
}
