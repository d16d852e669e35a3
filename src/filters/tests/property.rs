//! For any message with secrets planted anywhere: it parses, differs only where a secret was, filtering twice is once.

use proptest::prelude::*;
use serde_json::Map;

use super::*;

const SECRETS: [&str; 8] = [
    JWT,
    "hvs.CAESIcanaryCANARYcanary0123456789",
    "-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----",
    "postgres://app:canarypass@db/x",
    "Password=canarypass;",
    "ghp_canarycanarycanarycanarycanary012345",
    "4111 1111 1111 1111",
    "AccountKey=canarycanarycanarycanarycanarycanarycanarycanary==",
];
const CANARIES: [&str; 5] = ["canary", "eyJzdWIi", "4111", "CANARY", "0123456789"];

/// Text without what could be a part of a secret beside it.
fn plain() -> impl Strategy<Value = String> {
    "[ xyzé\\n\\\\\"/\u{1f600}\u{202e}]{0,12}"
}

fn planted() -> impl Strategy<Value = String> {
    (plain(), prop::sample::select(SECRETS.to_vec()), plain()).prop_map(|(a, secret, b)| format!("{a} {secret} {b}"))
}

fn innocent(number: &i64) -> bool {
    let text = number.to_string();
    !CANARIES.iter().any(|canary| text.contains(canary))
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        plain().prop_map(Value::from),
        planted().prop_map(Value::from),
        any::<i64>().prop_filter("looks like a secret", innocent).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(prop_oneof!["[a-z]{1,6}", planted()], inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Every character of every string as an escape.
fn escaped(text: &str) -> String {
    walk::rewrite(text, |_, part| {
        let units = part.text()?.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect::<String>();
        Some(format!("\"{units}\""))
    })
    .unwrap_or_else(|| text.to_owned())
}

/// Is it the same, but for strings that had something in them?
fn alike(before: &Value, after: &Value) -> bool {
    match (before, after) {
        (Value::Array(before), Value::Array(after)) => {
            before.len() == after.len() && before.iter().zip(after).all(|(before, after)| alike(before, after))
        }
        (Value::Object(before), Value::Object(after)) => {
            before.len() == after.len()
                && before
                    .iter()
                    .filter(|(name, _)| !name.contains(' '))
                    .all(|(name, before)| after.get(name).is_some_and(|after| alike(before, after)))
        }
        (Value::String(before), Value::String(after)) => {
            before == after
                || after.contains("[redacted:")
                || (before.contains('\u{202e}') && !after.contains('\u{202e}'))
        }
        (before, after) => before == after,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn nothing_planted_leaves_and_nothing_else_changes(value in value(), spelled in any::<bool>()) {
        let message = json!({ "jsonrpc": "2.0", "id": 7, "result": { "structuredContent": value } });
        let text = if spelled { escaped(&message.to_string()) } else { message.to_string() };
        let (once, _) = said(&text);
        let after: Value = serde_json::from_str(&once).expect("JSON");
        prop_assert!(alike(&message, &after), "{text}\n{once}");
        // As a client reads it: escapes decoded.
        let read = after.to_string();
        for canary in CANARIES {
            prop_assert!(!read.contains(canary), "{canary} in {once}");
        }
        prop_assert_eq!(&said(&once).0, &once);
    }

    #[test]
    fn any_text_is_filtered_without_harm(text in "\\PC{0,80}") {
        let message = json!({ "id": 1, "result": { "t": text } }).to_string();
        let (once, _) = said(&message);
        serde_json::from_str::<Value>(&once).expect("JSON");
        prop_assert_eq!(&said(&once).0, &once);
    }
}
