//! What the tour reads in the audit log: the record of a request it has just made.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::Surprise;
use super::text;

/// Records are written after the answer, by a thread of their own.
const RECORD_TIMEOUT: Duration = Duration::from_secs(5);

/// The newest record whose members are these, once it is there.
pub(super) async fn find(log: &Path, members: &[(&str, &str)]) -> Result<Value, Surprise> {
    let search = async {
        loop {
            if let Some(record) = newest(log, members) {
                return record;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let wanted = || members.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ");
    let found = tokio::time::timeout(RECORD_TIMEOUT, search).await;
    found.map_err(|_| Surprise::new(format!("an audit record with {}", wanted()), "none in five seconds"))
}

fn newest(log: &Path, members: &[(&str, &str)]) -> Option<Value> {
    let lines = std::fs::read_to_string(log).ok()?;
    // A line without its end is still being written.
    let whole = lines.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let matches =
        |record: &Value| members.iter().all(|(name, value)| record.get(name).and_then(Value::as_str) == Some(value));
    whole.lines().rev().filter_map(|line| serde_json::from_str(line).ok()).find(matches)
}

/// A record in a few words: who, what, and the decision with its reason.
pub(super) fn show(record: &Value) -> String {
    let member = |name: &str| record.get(name).and_then(Value::as_str).filter(|value| !value.is_empty());
    let reasons: Vec<&str> = ["reason", "denial"].into_iter().filter_map(member).collect();
    let because = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
    format!(
        "seq {}, {} {} {} effect={}: {}{because}",
        record.get("seq").cloned().unwrap_or_default(),
        text(record, "/subject"),
        text(record, "/method"),
        text(record, "/target"),
        text(record, "/effect"),
        text(record, "/decision"),
    )
}
