//! The URIs in a backend's answers, as they are known on the route. Places that the protocol knows, never free text.

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::gateway::splice;
use crate::gateway::splice::Edits;
use crate::mcp::Method;
use crate::mcp::quoted;

/// The answer with the URIs of `contents` (`resources/read`), and of links and embedded resources (`tools/call`,
/// `prompts/get`), made into what `shown` says. What it does not understand stays as it is.
pub(super) fn answer(body: &Bytes, method: Method, shown: impl Fn(&str) -> Option<String>) -> Bytes {
    // Most answers have no URI in them: looking for the word is cheaper than parsing.
    if !body.windows(5).any(|window| window == b"\"uri\"") {
        return body.clone();
    }
    let Ok(text) = std::str::from_utf8(body) else { return body.clone() };
    let mut uris = Vec::new();
    if let Some(result) = splice::member(text, "result") {
        let below = |name| splice::member(result.get(), name).map(RawValue::get);
        match method {
            Method::ResourcesRead => {
                let contents = below("contents").map(splice::items).unwrap_or_default();
                uris.extend(contents.into_iter().filter_map(|content| splice::member(content.get(), "uri")));
            }
            Method::ToolsCall => blocks(below("content"), &mut uris),
            Method::TasksGet => task(result.get(), &mut uris),
            Method::PromptsGet => {
                for message in below("messages").map(splice::items).unwrap_or_default() {
                    blocks(splice::member(message.get(), "content").map(RawValue::get), &mut uris);
                }
            }
            _ => {}
        }
    } else if let Some(error) = splice::member(text, "error") {
        // SPEC: server/resources §Error Handling: `data.uri` of a resource that was not found.
        let data = splice::member(error.get(), "data");
        uris.extend(data.and_then(|data| splice::member(data.get(), "uri")));
    }
    let mut edits = Edits::of(body);
    for uri in uris {
        if let Some(shown) = splice::text(uri).and_then(|uri| shown(&uri)) {
            edits.replace(uri, quoted(&shown));
        }
    }
    edits.finish()
}

/// News of a task, with the URIs in it as they are known on the route.
pub(super) fn news_of_task(data: &Bytes, shown: impl Fn(&str) -> Option<String>) -> Bytes {
    let mut uris = Vec::new();
    let params = std::str::from_utf8(data).ok().and_then(|text| splice::member(text, "params"));
    if let Some(params) = params {
        task(params.get(), &mut uris);
    }
    let mut edits = Edits::of(data);
    for uri in uris {
        if let Some(shown) = splice::text(uri).and_then(|uri| shown(&uri)) {
            edits.replace(uri, quoted(&shown));
        }
    }
    edits.finish()
}

/// The result of the call that a task was.
fn task<'a>(state: &'a str, uris: &mut Vec<&'a RawValue>) {
    let content = splice::member(state, "result").and_then(|result| splice::member(result.get(), "content"));
    blocks(content.map(RawValue::get), uris);
}

/// One content block or a list of them.
fn blocks<'a>(content: Option<&'a str>, uris: &mut Vec<&'a RawValue>) {
    let Some(content) = content else { return };
    if content.starts_with('[') {
        splice::items(content).into_iter().for_each(|block| uris.extend(uri_of(block.get())));
    } else {
        uris.extend(uri_of(content));
    }
}

fn uri_of(block: &str) -> Option<&RawValue> {
    match splice::text(splice::member(block, "type")?)?.as_ref() {
        "resource_link" => splice::member(block, "uri"),
        "resource" => splice::member(splice::member(block, "resource")?.get(), "uri"),
        _ => None,
    }
}

/// An entry of a list under another name. `None`: it has none.
pub(super) fn entry(wire: &Bytes, member: &str, name: &str) -> Option<Bytes> {
    let value = splice::member(std::str::from_utf8(wire).ok()?, member)?;
    let mut edits = Edits::of(wire);
    edits.replace(value, quoted(name));
    Some(edits.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(method: Method, body: &str) -> String {
        let body = answer(&Bytes::copy_from_slice(body.as_bytes()), method, |uri| Some(format!("w+{uri}")));
        String::from_utf8(body.to_vec()).expect("text")
    }

    #[test]
    fn the_known_places_are_rewritten_and_nothing_else() {
        for (method, body, want) in [
            (
                Method::ResourcesRead,
                r#"{"id":1, "result":{"contents":[{"uri":"a:b","text":"\"uri\":\"a:b\""},{"uri":"c:d"}],"uri":"e:f"}}"#,
                r#"{"id":1, "result":{"contents":[{"uri":"w+a:b","text":"\"uri\":\"a:b\""},{"uri":"w+c:d"}],"uri":"e:f"}}"#,
            ),
            (
                Method::ToolsCall,
                r#"{"result":{"content":[{"type":"text","text":"a:b","uri":"a:b"},{"uri":"a:b","type":"resource_link"},{"type":"resource","resource":{"uri":"a:b"}}],"structuredContent":{"uri":"a:b"}}}"#,
                r#"{"result":{"content":[{"type":"text","text":"a:b","uri":"a:b"},{"uri":"w+a:b","type":"resource_link"},{"type":"resource","resource":{"uri":"w+a:b"}}],"structuredContent":{"uri":"a:b"}}}"#,
            ),
            (
                Method::PromptsGet,
                r#"{"result":{"messages":[{"content":{"type":"resource_link","uri":"a:b"}},{"content":[{"type":"resource","resource":{"uri":"c:d"}}]}]}}"#,
                r#"{"result":{"messages":[{"content":{"type":"resource_link","uri":"w+a:b"}},{"content":[{"type":"resource","resource":{"uri":"w+c:d"}}]}]}}"#,
            ),
            (
                Method::ResourcesRead,
                r#"{"error":{"code":-32602,"message":"a:b","data":{"uri":"a:b"}}}"#,
                r#"{"error":{"code":-32602,"message":"a:b","data":{"uri":"w+a:b"}}}"#,
            ),
            (
                Method::ToolsCall,
                r#"{"result":{"resultType":"input_required","requestState":"\"uri\"","inputRequests":{"a":{"uri":"a:b"}}}}"#,
                r#"{"result":{"resultType":"input_required","requestState":"\"uri\"","inputRequests":{"a":{"uri":"a:b"}}}}"#,
            ),
            (
                Method::TasksGet,
                r#"{"result":{"taskId":"t","result":{"content":[{"uri":"a:b","type":"resource_link"}]},"uri":"a:b"}}"#,
                r#"{"result":{"taskId":"t","result":{"content":[{"uri":"w+a:b","type":"resource_link"}]},"uri":"a:b"}}"#,
            ),
            (Method::ToolsCall, r#"{"result":{"content":{"uri":[]}}}"#, r#"{"result":{"content":{"uri":[]}}}"#),
        ] {
            assert_eq!(rewritten(method, body), want);
        }
    }
}
