//! The referee itself: what is right passes, and each kind of wrong message is found and laid at the right door.

use std::sync::Arc;

use serde_json::Value;
use serde_json::json;

use super::http::Talk;
use super::judge::Verdict;
use super::judge::judge;
use super::note::Note;
use super::note::Record;
use super::note::Role;
use super::note::Role::Client;
use super::note::Role::Server;
use super::note::Side;
use super::schema::Revision;

fn note(side: Side, version: &str, exchange: u64, writer: Role, message: &Value) -> Note {
    Note {
        exchange,
        verb: "POST".to_owned(),
        path: "/mcp".to_owned(),
        session: None,
        version: Some(version.to_owned()),
        status: if writer == Server { 200 } else { 0 },
        ..Note::line(side, writer, "", &message.to_string())
    }
}

/// The verdict over one exchange with a client of this revision.
fn said(version: &str, messages: &[(Role, Value)]) -> Verdict {
    let notes: Vec<_> =
        messages.iter().map(|(writer, message)| note(Side::Clients, version, 1, *writer, message)).collect();
    judge(&notes)
}

fn request(method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params })
}

fn result(result: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": 1, "result": result })
}

fn modern(mut params: Value) -> Value {
    params["_meta"] = json!({ "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {} });
    params
}

fn tools() -> Value {
    json!({ "tools": [{ "name": "look", "inputSchema": { "type": "object" } }] })
}

fn modern_tools() -> Value {
    let mut list = tools();
    list.as_object_mut()
        .unwrap()
        .extend(json!({ "resultType": "complete", "ttlMs": 0, "cacheScope": "private" }).as_object().unwrap().clone());
    list
}

/// What is found wrong in the answer to `tools/list`.
fn answered(version: &str, answer: Value) -> Vec<String> {
    let params = if version == "2026-07-28" { modern(json!({})) } else { json!({}) };
    wrong(&said(version, &[(Client, request("tools/list", params)), (Server, answer)]))
}

fn wrong(verdict: &Verdict) -> Vec<String> {
    let faults = verdict.wrong.iter().flat_map(|finding| &finding.faults);
    faults.map(|fault| format!("{}: {}", fault.at, fault.what)).collect()
}

#[test]
fn what_is_right_in_each_revision_passes_and_is_counted() {
    for revision in Revision::all() {
        let name = revision.name();
        let (params, list) = match name {
            "2026-07-28" => (modern(json!({})), modern_tools()),
            _ => (json!({}), tools()),
        };
        let progress = json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": { "progressToken": "p", "progress": 1 } });
        let verdict =
            said(name, &[(Client, request("tools/list", params)), (Server, progress), (Server, result(list))]);
        assert_eq!(wrong(&verdict), [""; 0], "{name}");
        assert_eq!((verdict.count(revision, Side::Clients), verdict.foreign_judged), (2, 1), "{name}");
        assert!(verdict.saw(revision, Side::Clients, "tools/list → result"), "{:?}", verdict.tally);
        verdict.assert();
    }
}

#[test]
fn an_answer_that_lacks_a_member_or_has_a_wrong_type_is_found() {
    for lacking in ["resultType", "ttlMs", "cacheScope", "tools"] {
        let mut list = modern_tools();
        list.as_object_mut().unwrap().remove(lacking);
        let found = answered("2026-07-28", result(list));
        assert!(found.iter().any(|fault| fault.contains(lacking)), "{lacking}: {found:?}");
    }
    for (member, value) in [
        ("ttlMs", json!("5")),
        ("ttlMs", json!(-1)),
        ("cacheScope", json!("shared")),
        ("tools", json!({})),
        ("nextCursor", json!(7)),
    ] {
        let mut list = modern_tools();
        list[member] = value;
        let found = answered("2026-07-28", result(list));
        assert!(found.iter().any(|fault| fault.starts_with(&format!("/{member}"))), "{member}: {found:?}");
    }
    for revision in Revision::all() {
        let mut list = modern_tools();
        list["tools"][0]["inputSchema"] = json!({ "type": "string" });
        assert!(!answered(revision.name(), result(list)).is_empty(), "{}", revision.name());
    }
}

#[test]
fn an_id_too_many_or_one_that_nobody_asked_with_is_found() {
    let unasked = json!({ "jsonrpc": "2.0", "id": 2, "result": tools() });
    assert!(answered("2025-11-25", unasked).iter().any(|fault| fault.contains("answers nothing")));
    let other_type = json!({ "jsonrpc": "2.0", "id": "1", "result": tools() });
    assert!(answered("2025-11-25", other_type).iter().any(|fault| fault.contains("answers nothing")));
    let numbered = request("notifications/progress", json!({ "progressToken": "p", "progress": 1 }));
    assert!(answered("2025-11-25", numbered).iter().any(|fault| fault.contains("no request that a Server sends")));
    let null = json!({ "jsonrpc": "2.0", "id": null, "error": { "code": -32700, "message": "no" } });
    assert!(!answered("2025-06-18", null.clone()).is_empty());
    assert!(!answered("2026-07-28", null).is_empty());
    let mute = json!({ "jsonrpc": "2.0", "error": { "code": -32700, "message": "no" } });
    assert!(answered("2025-11-25", mute.clone()).iter().any(|fault| fault.contains("does not say what it answers")));
    let refusal = Note { status: 400, ..note(Side::Clients, "2025-06-18", 1, Server, &mute) };
    assert_eq!(wrong(&judge(&[refusal])), [""; 0], "a refusal of what could not be read");
    let refused = |answer: Value| said("2025-11-25", &[(Client, answer), (Server, refusal_of(1))]);
    assert_eq!(wrong(&refused(json!({ "jsonrpc": "2.0", "id": 1 }))), [""; 0]);
    let found = wrong(&refused(json!({ "jsonrpc": "2.0", "id": 1, "result": {} })));
    assert!(found[0].contains("answers nothing"), "the id of an answer is the server's: {found:?}");
}

fn refusal_of(id: u64) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32600, "message": "no" } })
}

#[test]
fn methods_that_a_revision_or_a_party_does_not_have_are_found() {
    let alone = |version: &str, writer: Role, message: Value| {
        let side = if writer == Server { Side::Clients } else { Side::Upstreams };
        wrong(&judge(&[note(side, version, 1, writer, &message)]))
    };
    let sampling = request("sampling/createMessage", json!({ "messages": [], "maxTokens": 1 }));
    assert_eq!(alone("2025-11-25", Server, sampling.clone()), [""; 0]);
    assert!(!alone("2026-07-28", Server, sampling.clone()).is_empty(), "modern servers ask in their answers");
    assert!(!alone("2025-11-25", Client, sampling).is_empty(), "clients do not sample");
    let form = json!({ "message": "Name?", "requestedSchema": { "type": "object", "properties": {} } });
    let elicit = request("elicitation/create", form);
    assert_eq!(alone("2025-06-18", Server, elicit.clone()), [""; 0]);
    assert!(!alone("2025-03-26", Server, elicit).is_empty(), "younger than that revision");
    assert!(!alone("2025-11-25", Client, request("tools/invent", json!({}))).is_empty());
    let invented = json!({ "jsonrpc": "2.0", "method": "notifications/invented" });
    assert!(!alone("2025-11-25", Client, invented).is_empty());
    let listen = request("subscriptions/listen", json!({ "notifications": {} }));
    assert!(!alone("2025-11-25", Client, listen.clone()).is_empty());
    assert!(!alone("2026-07-28", Client, listen).is_empty(), "it lacks its _meta");
    let listen = request("subscriptions/listen", modern(json!({ "notifications": {} })));
    assert_eq!(alone("2026-07-28", Client, listen), [""; 0]);
}

#[test]
fn envelopes_and_errors_are_judged_too() {
    let mut extra = result(tools());
    extra["extra"] = json!(1);
    let mut both = result(tools());
    both["error"] = json!({ "code": 1, "message": "no" });
    let mut old = result(tools());
    old["jsonrpc"] = json!("1.0");
    let silent = json!({ "jsonrpc": "2.0", "id": 1, "error": { "code": -32602 } });
    let worded = json!({ "jsonrpc": "2.0", "id": 1, "error": { "code": "-32602", "message": "no" } });
    for bad in [extra, both, old, silent, worded] {
        assert!(!answered("2025-11-25", bad.clone()).is_empty(), "{bad}");
    }
    let version =
        |data: Value| json!({ "jsonrpc": "2.0", "id": 1, "error": { "code": -32022, "message": "no", "data": data } });
    assert!(!answered("2026-07-28", version(json!({ "supported": "all" }))).is_empty());
    assert_eq!(answered("2026-07-28", version(json!({ "supported": ["2026-07-28"], "requested": "x" }))), [""; 0]);
}

#[test]
fn questions_are_answers_only_where_they_may_be() {
    let asks =
        || result(json!({ "resultType": "input_required", "inputRequests": { "roots": { "method": "roots/list" } } }));
    let call = request("tools/call", modern(json!({ "name": "look" })));
    assert_eq!(wrong(&said("2026-07-28", &[(Client, call.clone()), (Server, asks())])), [""; 0]);
    assert!(answered("2026-07-28", asks()).iter().any(|fault| fault.contains("may not be answered with questions")));
    let nothing = result(json!({ "resultType": "input_required" }));
    assert!(!wrong(&said("2026-07-28", &[(Client, call.clone()), (Server, nothing)])).is_empty());
    let odd = result(json!({ "resultType": "input_required", "inputRequests": { "x": { "method": "tools/list" } } }));
    assert!(!wrong(&said("2026-07-28", &[(Client, call), (Server, odd)])).is_empty());
}

#[test]
fn a_session_has_the_revision_that_its_initialize_was_answered_with() {
    let hello =
        json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "c", "version": "1" } });
    let info =
        json!({ "protocolVersion": "2024-11-05", "capabilities": {}, "serverInfo": { "name": "s", "version": "1" } });
    let audio = json!({ "content": [{ "type": "audio", "data": "AA==", "mimeType": "audio/wav" }] });
    let turns = [
        (1, Client, request("initialize", hello)),
        (1, Server, result(info)),
        (2, Client, request("tools/call", json!({ "name": "look" }))),
        (2, Server, result(audio)),
    ];
    let notes: Vec<_> = turns
        .iter()
        .map(|(exchange, writer, message)| Note {
            session: (*exchange == 2 || *writer == Server).then(|| "s-1".to_owned()),
            version: None,
            ..note(Side::Clients, "", *exchange, *writer, message)
        })
        .collect();
    let verdict = judge(&notes);
    assert_eq!(verdict.wrong.len(), 1, "{:?}", verdict.wrong);
    assert_eq!(verdict.wrong[0].revision.name(), "2024-11-05", "which had no audio yet");
}

#[test]
fn what_an_upstream_got_wrong_and_the_gateway_passed_on_is_the_upstreams() {
    let mut list = modern_tools();
    list["tools"][0]["inputSchema"] = json!({ "type": "string" });
    let passed = |given: &Value, on: &Value| {
        let ask = request("tools/list", modern(json!({})));
        judge(&[
            note(Side::Clients, "2026-07-28", 1, Client, &ask),
            note(Side::Upstreams, "2026-07-28", 2, Client, &ask),
            note(Side::Upstreams, "2026-07-28", 2, Server, &result(given.clone())),
            note(Side::Clients, "2026-07-28", 1, Server, &result(on.clone())),
        ])
    };
    let verdict = passed(&list, &list);
    assert_eq!((verdict.wrong.len(), verdict.mirrored.len(), verdict.foreign.len()), (0, 1, 1));
    verdict.assert();
    let verdict = passed(&modern_tools(), &list);
    assert_eq!((verdict.wrong.len(), verdict.mirrored.len(), verdict.foreign.len()), (1, 0, 0));
    let mut worse = list.clone();
    worse.as_object_mut().unwrap().remove("ttlMs");
    let verdict = passed(&list, &worse);
    assert_eq!((verdict.wrong.len(), verdict.mirrored.len()), (1, 0), "one of its faults is the gateway's");
    let failed = std::panic::catch_unwind(|| verdict.assert());
    assert!(failed.is_err(), "and the test fails");
}

#[test]
fn messages_are_read_from_connections_however_they_are_cut() {
    let list = result(tools()).to_string();
    let (left, right) = list.split_at(20);
    let ask = request("tools/list", json!({})).to_string();
    let asked = format!(
        "HEAD / HTTP/1.1\r\n\r\nPOST /mcp HTTP/1.1\r\nMCP-Protocol-Version: 2025-11-25\r\nContent-Length: {}\r\n\r\n{ask}\
         POST /mcp HTTP/1.1\r\nMcp-Session-Id: s-1\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{ask}\r\n0\r\n\r\n\
         GET /mcp HTTP/1.1\r\n\r\n",
        ask.len(),
        ask.len()
    );
    let event = format!("id: 1\ndata:\n\n: nothing\n\nevent: message\ndata: {list}\n\n");
    let answered = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n\
         {:x};x=1\r\n{left}\r\n{:x}\r\n{right}\r\n0\r\nTrailer: 1\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {}\r\n\r\n{event}\
         HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n{event}",
        left.len(),
        right.len(),
        event.len()
    );
    for size in [1, 7, 4096] {
        let record = Arc::new(Record::default());
        let mut talk = Talk::new("peer".to_owned(), Side::Clients, Arc::clone(&record));
        asked.as_bytes().chunks(size).for_each(|bytes| talk.heard(Client, bytes));
        answered.as_bytes().chunks(size).for_each(|bytes| talk.heard(Server, bytes));
        talk.heard(Server, b"");
        let notes = record.notes();
        let texts: Vec<_> = notes.iter().map(|note| String::from_utf8_lossy(&note.text).into_owned()).collect();
        assert_eq!(texts, [&ask, &ask, &list, &list, &list].map(String::as_str), "cut every {size} bytes");
        let places: Vec<_> =
            notes.iter().map(|note| (note.exchange, note.verb.as_str(), note.session.as_deref())).collect();
        assert_eq!(
            places,
            [
                (2, "POST", None),
                (3, "POST", Some("s-1")),
                (2, "POST", None),
                (3, "POST", Some("s-1")),
                (4, "GET", None)
            ]
        );
        assert_eq!(notes[2].version.as_deref(), Some("2025-11-25"));
        assert_eq!(record.unread_connections(), 0);
    }
    for odd in ["PRI * HTTP/2.0\r\n\r\nSM", "\u{16}\u{3}\u{1}", "POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"] {
        let record = Arc::new(Record::default());
        let mut talk = Talk::new("peer".to_owned(), Side::Clients, Arc::clone(&record));
        talk.heard(Client, odd.as_bytes());
        talk.heard(Client, b"");
        talk.heard(Server, b"");
        assert_eq!(record.unread_connections(), 1, "{odd:?} is not passed over in silence");
    }
}
