//! What a legacy server says of the tasks that it works on in the background (MCP 2025-11-25). Pure.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::mcp::Message;
use crate::mcp::Method;

/// A task with a longer id is not known by it.
const ID_BYTES_MAX: usize = 1_024;

/// How a task came to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Over {
    /// Completed or failed: no work is done for it any more.
    Done,
    /// SPEC: tasks §Cancellation: work may go on for a while.
    Cancelled,
}

/// A task as the server tells of it.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Task {
    pub(super) id: Option<Box<str>>,
    pub(super) over: Option<Over>,
}

/// What a request asks of a task.
#[derive(Debug)]
pub(super) struct Asked {
    id: Box<str>,
    /// What came of it: SPEC: tasks §Result Retrieval: answered when it is over, and not before.
    result: bool,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Begun<'a> {
    #[serde(borrow)]
    task: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TaskWire<'a> {
    #[serde(borrow)]
    task_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    status: Option<Cow<'a, str>>,
}

impl Task {
    fn of(raw: &RawValue) -> Task {
        let wire: TaskWire<'_> = serde_json::from_str(raw.get()).unwrap_or_default();
        let over = match wire.status.as_deref() {
            Some("completed" | "failed") => Some(Over::Done),
            Some("cancelled") => Some(Over::Cancelled),
            _ => None,
        };
        Task { id: wire.task_id.filter(|id| id.len() <= ID_BYTES_MAX).map(|id| id.as_ref().into()), over }
    }
}

/// The task that this response says was begun. Servers without tasks answer as if none had been wanted.
pub(super) fn begun(line: &Bytes) -> Option<Task> {
    let result = envelope(line)?.result?;
    match serde_json::from_str::<Begun<'_>>(result.get()) {
        Ok(begun) => begun.task.map(Task::of),
        // It may say that.
        Err(_) => Some(Task::default()),
    }
}

/// The task that a `notifications/tasks/status` is about.
pub(super) fn told(line: &Bytes) -> Option<Task> {
    envelope(line)?.params.map(Task::of)
}

/// The task that a client's request is about, if its answer says how that is.
pub(super) fn asked(message: &Message) -> Option<Asked> {
    let result = match message.method? {
        Method::TasksCancel | Method::TasksGet => false,
        Method::TasksResult => true,
        _ => return None,
    };
    let id = message.params.task_id.as_deref().filter(|id| id.len() <= ID_BYTES_MAX)?;
    Some(Asked { id: id.into(), result })
}

impl Asked {
    /// What the answer says of the task. An error says nothing: the task may be one that the server does not show.
    pub(super) fn answered(self, line: &Bytes) -> Option<Task> {
        let result = envelope(line)?.result?;
        let over = if self.result { Some(Over::Done) } else { Task::of(result).over };
        Some(Task { id: Some(self.id), over })
    }
}

fn envelope(line: &Bytes) -> Option<Envelope<'_>> {
    serde_json::from_slice(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn a_task_was_begun_unless_the_answer_says_nothing_of_one() {
        for (text, want) in [
            (r#"{"id":1,"result":{"task":{"taskId":"t","status":"working"}}}"#, Some((Some("t"), None))),
            (r#"{"id":1,"result":{"task":{"taskId":"t","status":"completed"}}}"#, Some((Some("t"), Some(Over::Done)))),
            (r#"{"id":1,"result":{"task":{"status":"input_required"}}}"#, Some((None, None))),
            (r#"{"id":1,"result":{"task":7}}"#, Some((None, None))),
            (r#"{"id":1,"result":{"task":{"taskId":"t"},"task":{"taskId":"u"}}}"#, Some((None, None))),
            (r#"{"id":1,"result":{"content":[],"structuredContent":{"task":{"taskId":"t"}}}}"#, None),
            (r#"{"id":1,"error":{"code":1,"message":"m","data":{"task":{"taskId":"t"}}}}"#, None),
        ] {
            let want = want.map(|(id, over)| Task { id: id.map(Into::into), over });
            assert_eq!(begun(&line(text)), want, "{text}");
        }
        let long = format!(r#"{{"id":1,"result":{{"task":{{"taskId":"{}"}}}}}}"#, "t".repeat(ID_BYTES_MAX + 1));
        assert_eq!(begun(&line(&long)), Some(Task::default()));
    }

    #[test]
    fn only_a_result_tells_how_a_task_is() {
        let asked = |result| Asked { id: "t".into(), result };
        let over = |result, text: &str| asked(result).answered(&line(text)).and_then(|task| task.over);
        for (status, want) in [
            ("working", None),
            ("input_required", None),
            ("failed", Some(Over::Done)),
            ("cancelled", Some(Over::Cancelled)),
        ] {
            let answer = format!(r#"{{"id":1,"result":{{"taskId":"t","status":"{status}"}}}}"#);
            assert_eq!(over(false, &answer), want, "{status}");
        }
        assert_eq!(over(true, r#"{"id":1,"result":{"content":[]}}"#), Some(Over::Done));
        assert_eq!(asked(true).answered(&line(r#"{"id":1,"error":{"code":-32602,"message":"m"}}"#)), None);
        let news = r#"{"method":"notifications/tasks/status","params":{"taskId":"t","status":"cancelled"}}"#;
        assert_eq!(told(&line(news)), Some(Task { id: Some("t".into()), over: Some(Over::Cancelled) }));
    }
}
