//! Secrets that a server says in several notifications.

use super::*;

fn log(text: &str) -> Bytes {
    json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": { "level": "info", "logger": "l", "data": text } })
        .to_string()
        .into()
}

fn progress(text: &str) -> Bytes {
    json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": { "progressToken": 1, "progress": 1, "message": text } })
        .to_string()
        .into()
}

fn texts(out: Vec<(Bytes, usize)>) -> Vec<String> {
    let text = |message: &Bytes| {
        let value: Value = serde_json::from_slice(message).expect("JSON");
        let params = &value["params"];
        params["data"].as_str().or(params["message"].as_str()).expect("text").to_owned()
    };
    out.iter().map(|(message, _)| text(message)).collect()
}

fn all(bits: &[&str], form: fn(&str) -> Bytes) -> (Vec<String>, Found) {
    let mut thread = Thread::new(Arc::new(filters()));
    let mut found = Found::default();
    let mut out = Vec::new();
    for (index, bit) in bits.iter().enumerate() {
        out.extend(thread.push(form(bit), index, &mut found));
    }
    out.extend(thread.release(&mut found));
    assert_eq!(
        out.iter().map(|(_, index)| *index).collect::<Vec<_>>(),
        (0..bits.len()).collect::<Vec<_>>(),
        "in order"
    );
    (texts(out), found)
}

#[test]
fn a_token_that_is_split_anywhere_does_not_leave() {
    let text = format!("see {JWT} and on");
    for form in [log as fn(&str) -> Bytes, progress] {
        for at in 0..=text.len() {
            let (before, behind) = text.split_at(at);
            let (out, _) = all(&[before, behind], form);
            let joined = out.concat();
            assert!(!joined.contains("hbGciOiJIUzI1NiJ9") && !joined.contains("zdWIiOiJjYW5hcnkifQ"), "{at}: {joined}");
            assert!(!joined.contains("c2lnbmF0dXJlLWNhbmFyeQ"), "{at}: {joined}");
            assert!(joined.starts_with("see ") && joined.ends_with(" and on"), "{at}: {joined}");
        }
    }
    let bits: Vec<String> = text.chars().map(String::from).collect();
    let bits: Vec<&str> = bits.iter().map(String::as_str).collect();
    let (out, _) = all(&bits, log);
    assert!(!out.concat().contains("NhbmFyeQ") || bits.len() > 32, "{}", out.concat());
}

#[test]
fn a_private_key_said_line_by_line_does_not_leave() {
    let mut lines = vec!["begin", "-----BEGIN EC PRIVATE KEY-----"];
    lines.extend(["canary-line"; 40]);
    lines.extend(["-----END EC PRIVATE KEY----- rest", "after"]);
    let (out, found) = all(&lines, log);
    let joined = out.join("|");
    assert!(!joined.contains("canary"), "{joined}");
    assert_eq!(out.first().map(String::as_str), Some("begin"));
    assert_eq!(out[lines.len() - 2], "[redacted:private_key] rest");
    assert_eq!(out[lines.len() - 1], "after");
    assert!(count(&found, "private_key") > 1);
}

#[test]
fn what_ends_in_nothing_suspicious_is_not_held() {
    let mut thread = Thread::new(Arc::new(filters()));
    let mut found = Found::default();
    for (index, text) in ["line one", "https://example.com/ done", "{}", "50 %"].into_iter().enumerate() {
        assert_eq!(texts(thread.push(log(text), index, &mut found)), [text]);
        assert!(!thread.holds());
    }
    assert!(thread.push(log("token eyJhbGciOi"), 9, &mut found).is_empty());
    assert!(thread.holds());
    assert_eq!(texts(thread.push(progress("else"), 10, &mut found)), ["token eyJhbGciOi", "else"], "another speaker");
}

#[test]
fn what_is_held_is_bounded() {
    let mut thread = Thread::new(Arc::new(filters()));
    let mut found = Found::default();
    let first = format!("eyJ{}", "a".repeat(20 * 1024));
    assert_eq!(thread.push(log(&first), 0, &mut found).len(), 1);
    for index in 0..200 {
        thread.push(log("eyJa"), index, &mut found);
    }
    assert!(thread.release(&mut found).len() <= 32);
}
