//! Every row of the translation table, as exact JSON.

use super::*;

fn id() -> Id {
    Id::from_json("\"a-1\"").expect("an id")
}

fn done(body: &str, method: Method, version: &str) -> (String, Option<i64>) {
    match read(body.as_bytes(), &id(), method, version).expect(body) {
        Said::Done { body, error_code } => (String::from_utf8(body.to_vec()).expect("text"), error_code),
        Said::Asks { .. } => panic!("asks: {body}"),
    }
}

#[test]
fn results_lose_what_is_modern_and_keep_the_rest_byte_for_byte() {
    for (method, version, result, wanted) in [
        (
            Method::ToolsCall,
            "2025-11-25",
            r#"{"resultType":"complete","content":[ ],"isError":false}"#,
            r#"{"content":[ ],"isError":false}"#,
        ),
        (
            Method::ToolsList,
            "2025-11-25",
            r#"{"tools":[{"name":"a","inputSchema":{"type":"object"}}],"ttlMs":5,"cacheScope":"private","resultType":"complete","nextCursor":""}"#,
            r#"{"tools":[{"name":"a","inputSchema":{"type":"object"}}],"nextCursor":""}"#,
        ),
        (
            Method::ResourcesRead,
            "2025-11-25",
            r#"{"contents":[],"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"x","version":"1"},"mine/y":1.0}}"#,
            r#"{"contents":[],"_meta":{"mine/y":1.0}}"#,
        ),
        (
            Method::PromptsList,
            "2025-11-25",
            r#"{"resultType":"complete","prompts":[],"_meta":{"io.modelcontextprotocol/serverInfo":{}}}"#,
            r#"{"prompts":[]}"#,
        ),
        (Method::ToolsCall, "2025-11-25", r#"{"content":[],"structuredContent":[1,2]}"#, r#"{"content":[]}"#),
        (
            Method::ToolsCall,
            "2025-11-25",
            r#"{"content":[],"structuredContent":{"a":1}}"#,
            r#"{"content":[],"structuredContent":{"a":1}}"#,
        ),
        (
            Method::ToolsList,
            "2025-11-25",
            r#"{"tools":[{"name":"a","outputSchema":{"type":"array"},"z":1},{"name":"b","outputSchema":{"type":"object"}}]}"#,
            r#"{"tools":[{"name":"a","z":1},{"name":"b","outputSchema":{"type":"object"}}]}"#,
        ),
        (
            Method::ToolsList,
            "2025-11-25",
            r#"{"tools":[{"name":"a","inputSchema":{"type":"object","properties":{"x":true,"y":false,"z":{"a":1.0}}}}]}"#,
            r#"{"tools":[{"name":"a","inputSchema":{"type":"object","properties":{"x":{},"y":{"not":{}},"z":{"a":1.0}}}}]}"#,
        ),
        (
            Method::ToolsCall,
            "2024-11-05",
            r#"{"content":[{"type":"audio","data":"","mimeType":"audio/wav"},{"type":"resource_link","uri":"a:b","name":"n"},{"type":"text","text":"t"}]}"#,
            r#"{"content":[{"type":"text","text":"[audio, audio/wav: not known to this protocol version]"},{"type":"text","text":"[resource: a:b]"},{"type":"text","text":"t"}]}"#,
        ),
        (
            Method::PromptsGet,
            "2025-03-26",
            r#"{"messages":[{"role":"user","content":{"type":"resource_link","uri":"a:b","name":"n"}},{"role":"user","content":{"type":"audio","data":""}}]}"#,
            r#"{"messages":[{"role":"user","content":{"type":"text","text":"[resource: a:b]"}},{"role":"user","content":{"type":"audio","data":""}}]}"#,
        ),
        (
            Method::ToolsCall,
            "2025-06-18",
            r#"{"content":[{"type":"resource_link","uri":"a:b","name":"n"}]}"#,
            r#"{"content":[{"type":"resource_link","uri":"a:b","name":"n"}]}"#,
        ),
    ] {
        let (body, code) = done(&format!(r#"{{"jsonrpc":"2.0","id":99,"result":{result}}}"#), method, version);
        assert_eq!(body, format!(r#"{{"jsonrpc":"2.0","id":"a-1","result":{wanted}}}"#), "{result}");
        assert_eq!(code, None);
    }
}

#[test]
fn errors_have_codes_that_a_legacy_client_knows() {
    for (method, from, to) in [
        (Method::ResourcesRead, -32602, -32002),
        (Method::ToolsCall, -32602, -32602),
        (Method::ToolsCall, -32020, -32600),
        (Method::ToolsCall, -32021, -32602),
        (Method::ToolsCall, -32022, -32600),
        (Method::ToolsCall, -32601, -32601),
        (Method::ToolsCall, 7, 7),
    ] {
        let sent = format!(r#"{{"jsonrpc":"2.0","id":1,"error":{{"code":{from},"message":"m","data":{{"x":1.0}}}}}}"#);
        let wanted =
            format!(r#"{{"jsonrpc":"2.0","id":"a-1","error":{{"code":{to},"message":"m","data":{{"x":1.0}}}}}}"#);
        assert_eq!(done(&sent, method, "2025-11-25"), (wanted, Some(to)));
    }
}

#[test]
fn what_the_server_wants_to_know_is_read_with_its_state_untouched() {
    let body = br#"{"result":{"resultType":"input_required","inputRequests":{"a":{"method":"elicitation/create","params":{"message":"\u0041"}},"b":{"method":"roots/list"}},"requestState":"\u0061=="}}"#;
    let wanted = Said::Asks {
        asks: vec![
            Ask { key: "a".into(), topic: Topic::Elicitation, params: Some(r#"{"message":"\u0041"}"#.into()) },
            Ask { key: "b".into(), topic: Topic::Roots, params: None },
        ],
        state: Some(r#""\u0061==""#.into()),
    };
    assert_eq!(read(body, &id(), Method::ToolsCall, "2025-11-25"), Ok(wanted));
    for method in [Method::ToolsList, Method::CompletionComplete] {
        assert!(read(body, &id(), method, "2025-11-25").is_err(), "{method:?} must not ask");
    }
}

#[test]
fn answers_that_break_the_protocol_are_not_passed_on() {
    let many = (0..=ASKS_MAX).map(|n| format!(r#""k{n}":{{"method":"roots/list"}}"#)).collect::<Vec<_>>().join(",");
    for result in [
        r#"{"resultType":"task","taskId":"1"}"#.to_owned(),
        r#"{"resultType":7}"#.to_owned(),
        r#"{"resultType":"input_required"}"#.to_owned(),
        r#"{"resultType":"input_required","requestState":7}"#.to_owned(),
        r#"{"resultType":"input_required","inputRequests":{"a":{"method":"ping"}}}"#.to_owned(),
        r#"{"resultType":"input_required","inputRequests":{"a":7}}"#.to_owned(),
        format!(r#"{{"resultType":"input_required","inputRequests":{{{many}}}}}"#),
        "[]".to_owned(),
    ] {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
        assert!(read(body.as_bytes(), &id(), Method::ToolsCall, "2025-11-25").is_err(), "{result}");
    }
}

#[test]
fn notifications_of_a_subscription_lose_its_id_and_the_acknowledgement_is_swallowed() {
    let made = |text: &str| {
        news(&Bytes::copy_from_slice(text.as_bytes())).map(|bytes| String::from_utf8(bytes.to_vec()).expect("text"))
    };
    assert_eq!(
        made(r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"a:b","_meta":{"io.modelcontextprotocol/subscriptionId":"7"}}}"#).as_deref(),
        Some(r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"a:b"}}"#)
    );
    assert_eq!(
        made(r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":7}}}"#).as_deref(),
        Some(r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#)
    );
    let acknowledgement = r#"{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"notifications":{"resourceSubscriptions":["a:b"]}}}"#;
    assert_eq!(made(acknowledgement), None);
    assert_eq!(acknowledged(acknowledgement.as_bytes()), Some(Some(vec!["a:b".to_owned()])));
}

#[test]
fn initialize_is_answered_from_what_the_server_says_of_itself() {
    let body = br#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{"listChanged":true},"resources":{"subscribe":true,"listChanged":false},"logging":{},"extensions":{"x/y":{}},"tasks":{}},"instructions":"be\u0020nice","ttlMs":0,"cacheScope":"private","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"s","version":"2"}}}}"#;
    let (result, announced) = initialized(body, "2025-06-18").expect("a discovery");
    assert_eq!(
        result,
        r#"{"protocolVersion":"2025-06-18","capabilities":{"tools":{"listChanged":true},"resources":{"subscribe":true,"listChanged":false},"logging":{}},"serverInfo":{"name":"s","version":"2"},"instructions":"be\u0020nice"}"#
    );
    assert_eq!(announced, Announced { tools: true, prompts: false, resources: false, logging: true });
    let (result, _) = initialized(br#"{"result":{"capabilities":{}}}"#, "2025-11-25").expect("a terse discovery");
    assert!(result.contains(r#""serverInfo":{"name":"wardgate""#), "{result}");
    assert!(initialized(br#"{"result":{}}"#, "2025-11-25").is_err());
}
