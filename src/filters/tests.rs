//! What leaves is JSON, equal outside of what was found, the same if filtered twice, and without what was planted.

mod property;
mod secrets;
mod sizes;
mod threads;

use bytes::Bytes;
use serde_json::Value;
use serde_json::json;

use super::*;

fn config() -> Config {
    Config { redact: Kind::ALL.to_vec(), hidden_said: Some(Hidden::Strip), ..Config::default() }
}

fn filters() -> Filters {
    Filters::new(&config()).expect("filters")
}

fn through(filters: &Filters, place: Place, text: &str) -> (String, Found) {
    let mut found = Found::default();
    let out = filters.message(place, &Bytes::copy_from_slice(text.as_bytes()), &mut found);
    (String::from_utf8(out.to_vec()).expect("UTF-8"), found)
}

fn said(text: &str) -> (String, Found) {
    through(&filters(), Place::Said, text)
}

fn count(found: &Found, name: &str) -> u64 {
    found.iter().find(|(known, _)| &***known == name).map(|(_, count)| count).unwrap_or_default()
}

const JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJlLWNhbmFyeQ";

#[test]
fn everything_that_is_not_found_stays_byte_for_byte() {
    let text = format!(
        r#"{{ "jsonrpc":"2.0","id":  1e0,"result":{{"a":1.50,"b":[1, 2,-0.0E+2],"\u0063":"\u00e9\/","secret":"x {JWT} y","n":12345678901234567890}}}}"#
    );
    let (out, found) = said(&text);
    assert_eq!(out, text.replace(JWT, "[redacted:jwt]"));
    assert_eq!(count(&found, "jwt"), 1);
}

#[test]
fn secrets_are_found_wherever_a_message_has_text() {
    for text in [
        json!({ "jsonrpc": "2.0", "id": 1, "result": { "content": [{ "type": "text", "text": JWT }] } }),
        json!({ "jsonrpc": "2.0", "id": 1, "result": { "structuredContent": { "a": { "b": [[JWT]] } } } }),
        json!({ "jsonrpc": "2.0", "id": 1, "result": { "contents": [{ "uri": format!("x://y?{JWT}"), "text": "" }] } }),
        json!({ "jsonrpc": "2.0", "id": 1, "error": { "code": -1, "message": format!("no: {JWT}"), "data": { "t": JWT } } }),
        json!({ "jsonrpc": "2.0", "id": 1, "result": { "_meta": { "x": JWT } } }),
        json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": { "level": "info", "data": { "m": JWT } } }),
        json!({ "jsonrpc": "2.0", "id": 1, "result": { "tools": [{ "name": "t", "description": JWT }] } }),
    ] {
        let (out, found) = said(&text.to_string());
        assert!(!out.contains("eyJ") && out.contains("[redacted:jwt]"), "{out}");
        serde_json::from_str::<Value>(&out).expect("JSON");
        assert!(count(&found, "jwt") > 0);
    }
}

#[test]
fn escapes_hide_nothing_on_either_level() {
    let once = JWT.replacen('e', "\\u0065", 1);
    let half = format!("\\ud800{JWT}");
    for inner in [once.clone(), half, once.replace("\\u", "\\\\u"), JWT.replace('.', "\\u002e")] {
        let text = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"x":"{{\"t\":\"{}\"}}"}}}}"#, inner);
        let (out, _) = said(&text);
        assert!(out.contains("[redacted:jwt]") && !out.contains("yJhbGci"), "{text} became {out}");
    }
    let (out, _) =
        said(r#"{"result":{"x":"{\"url\":\"postgres:\\/\\/u:canary@h\\/d\"}","y":"postgres:\/\/u:canary@h\/d"}}"#);
    assert!(!out.contains("canary"), "{out}");
}

#[test]
fn a_member_name_that_is_a_secret_is_replaced_and_stays_unique() {
    let other = JWT.replace("c2ln", "d2ln");
    let (out, _) = said(&format!(r#"{{"result":{{"s":{{"{JWT}":1,"{other}":2}}}}}}"#));
    assert_eq!(out, r#"{"result":{"s":{"[redacted:jwt]":1,"[redacted:jwt]#2":2}}}"#);
}

#[test]
fn the_base64_of_a_text_is_that_text_and_of_a_picture_is_none() {
    let blob = STANDARD.encode(format!("a file with {JWT} in it"));
    let picture = STANDARD.encode([0xFFu8, 0xD8, 0xFF, 0xE0, 0x00]);
    let text = json!({ "result": { "contents": [{ "uri": "f", "blob": blob }, { "uri": "g", "blob": picture }] } });
    let (out, found) = said(&text.to_string());
    let out: Value = serde_json::from_str(&out).expect("JSON");
    let decoded = STANDARD.decode(out["result"]["contents"][0]["blob"].as_str().expect("text")).expect("base64");
    assert_eq!(String::from_utf8(decoded).expect("UTF-8"), "a file with [redacted:jwt] in it");
    assert_eq!(out["result"]["contents"][1]["blob"], picture);
    assert_eq!(count(&found, "jwt"), 1);
}

#[test]
fn what_a_client_hands_back_stays_as_it_is() {
    let text = format!(
        r#"{{"jsonrpc":"2.0","id":"{JWT}","result":{{"resultType":"input_required","requestState":"{JWT}","nextCursor":"{JWT}","inputRequests":{{}}}}}}"#
    );
    assert_eq!(said(&text).0, text);
}

#[test]
fn without_filters_nothing_is_looked_at() {
    let open = Filters::new(&Config { hidden_declared: Hidden::Allow, ..Config::default() }).expect("filters");
    assert!(open.passes(Place::Declared) && open.passes(Place::Said));
    let text = format!(r#"{{"result":{{"t":"{JWT} \u202e"}}}}"#);
    assert_eq!(through(&open, Place::Declared, &text).0, text);
    assert_eq!(through(&Filters::default(), Place::Said, &text).0, text, "results pass by default");
}

#[test]
fn declarations_lose_their_hidden_text_by_default() {
    let tags: String = "ignore".chars().filter_map(|c| char::from_u32(0xE0000 + c as u32)).collect();
    let text = json!({ "jsonrpc": "2.0", "id": 1, "result": { "tools": [{
        "name": "t", "title": "A\u{202e}B", "description": format!("good{tags} \u{1b}[8mtool\u{1b}[0m\u{200b}"),
        "inputSchema": { "properties": { "p": { "description": "x\u{2066}y", "enum": ["\u{feff}z"] } } },
        "annotations": { "title": "\u{fe01}\u{fe02}T" },
    }], "instructions": "a\u{ad}b" } });
    let (out, found) = through(&Filters::default(), Place::Declared, &text.to_string());
    let expected = json!({ "jsonrpc": "2.0", "id": 1, "result": { "tools": [{
        "name": "t", "title": "AB", "description": "good tool",
        "inputSchema": { "properties": { "p": { "description": "xy", "enum": ["z"] } } },
        "annotations": { "title": "T" },
    }], "instructions": "ab" } });
    assert_eq!(serde_json::from_str::<Value>(&out).expect("JSON"), expected);
    assert_eq!(count(&found, HIDDEN), 1 + 6 + 2 + 1 + 1 + 1 + 2 + 1);
}

#[test]
fn hidden_text_can_be_made_visible() {
    let marking = Filters::new(&Config { hidden_declared: Hidden::Mark, ..Config::default() }).expect("filters");
    let text = json!({ "result": { "description": "a\u{202e}b\u{e0041}\u{e0042}c\u{1b}[31md" } }).to_string();
    let (out, _) = through(&marking, Place::Declared, &text);
    assert_eq!(out, r#"{"result":{"description":"a[hidden:bidi]b[hidden:tags 2]c[hidden:control]d"}}"#);
    assert_eq!(through(&marking, Place::Declared, &out).0, out);
}

#[test]
fn what_scripts_and_emoji_need_stays() {
    for text in [
        "\u{1f469}\u{200d}\u{1f4bb}",
        "\u{2764}\u{fe0f}\u{200d}\u{1f525}",
        "1\u{fe0f}\u{20e3}",
        "می\u{200c}خواهم",
        "葛\u{e0100}城",
        "שלום",
    ] {
        let message = json!({ "result": { "description": text } }).to_string();
        assert_eq!(through(&Filters::default(), Place::Declared, &message).0, message, "{text}");
    }
}

#[test]
fn a_question_to_the_user_is_declared_wherever_it_comes() {
    let text = r#"{"result":{"resultType":"input_required","inputRequests":{"k":{"method":"elicitation/create","params":{"message":"a\u202eb"}}},"other":"a\u202eb"}}"#;
    let (out, _) = through(&Filters::default(), Place::Said, text);
    assert_eq!(out, text.replacen("a\\u202eb", "ab", 1));
}

#[test]
fn what_we_write_ourselves_holds_neither() {
    assert_eq!(Filters::plainly(&format!("a\u{202e}b {JWT}")), "a[hidden:bidi]b [redacted:jwt]");
}
