//! Arguments of tools: decoding them strictly, and the words for what is wrong, which never repeat a value.

use serde::de::DeserializeOwned;

use super::Failure;

/// Decodes the arguments of a call.
///
/// # Errors
/// Which argument is not what the tool takes. The value itself is not repeated: it may be a secret.
pub fn read<A: DeserializeOwned>(text: &[u8]) -> Result<A, Failure> {
    // Decoding would take an array for the arguments in the order of their declaration: policies saw no names.
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(Failure::arguments("expected an object"));
    }
    let deserializer = &mut serde_json::Deserializer::from_slice(text);
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let path = error.path().to_string();
        let words = words(&error.inner().to_string());
        let place =
            if path == "." || path.is_empty() { String::new() } else { format!("argument `{}`: ", short(&path)) };
        Failure::arguments(format!("{place}{words}"))
    })
}

/// serde's words without positions and without what was found.
fn words(text: &str) -> String {
    let text = text.split(" at line ").next().unwrap_or_default();
    if text.starts_with("invalid type") || text.starts_with("invalid value") || text.starts_with("unknown variant") {
        return match text.rsplit_once(", expected ") {
            Some((_, expected)) => format!("expected {expected}"),
            None => "is not of the right kind".to_owned(),
        };
    }
    short(text)
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only decoded")]
    struct Args {
        path: String,
        version: Option<u32>,
    }

    #[test]
    fn what_is_wrong_is_named_and_no_value_is_repeated() {
        for (text, expected) in [
            (
                r#"{"path":"a","versoin":1}"#,
                "argument `versoin`: unknown field `versoin`, expected `path` or `version`",
            ),
            (r#"{"version":1}"#, "missing field `path`"),
            (r#"{"path":"a","version":"hunter2"}"#, "argument `version`: expected u32"),
            (r#"{"path":{"hunter2":1}}"#, "argument `path`: expected a string"),
            (r#"{"path":"a","version":-7}"#, "argument `version`: expected u32"),
            ("[]", "expected an object"),
            (r#" ["a", 1]"#, "expected an object"),
        ] {
            let failure = read::<Args>(text.as_bytes()).expect_err(text);
            assert!(failure.message.starts_with(expected), "{text}: {}", failure.message);
            assert!(!failure.message.contains("hunter2") && !failure.message.contains("-7"), "{}", failure.message);
        }
    }
}
