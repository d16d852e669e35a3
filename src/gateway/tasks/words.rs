//! What an upstream says of tasks, in the client's words: every id is the sealed one, and what is not for this caller goes.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;

use super::seal::Bound;
use super::seal::Task;
use crate::gateway::Rejection;
use crate::gateway::apply::Desk;
use crate::gateway::apply::Want;
use crate::gateway::splice;
use crate::gateway::splice::Edits;
use crate::mcp::Era;
use crate::mcp::Method;
use crate::mcp::error;
use crate::mcp::meta::RELATED_TASK;
use crate::mcp::meta::TASKS;
use crate::mcp::quoted;

const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";

/// Of the extension.
pub(in crate::gateway) const NEWS: &str = "notifications/tasks";

/// Of the core of 2025-11-25.
const LEGACY_NEWS: &str = "notifications/tasks/status";

/// May a text say anything of tasks? Looking for the word is cheaper than parsing; JSON may write its letters otherwise.
pub(super) fn mentions(text: &[u8]) -> bool {
    text.windows(4).any(|window| window == b"task" || window.starts_with(b"\\u0"))
}

impl Desk {
    /// The answer with its tasks in the client's words, and how many tasks of a list were left out.
    pub(in crate::gateway) fn with_tasks(
        &self,
        body: Bytes,
        want: &Want,
        error_code: Option<i64>,
    ) -> Result<(Bytes, usize), Rejection> {
        let of_task = want.tasks.method.is_some_and(Method::is_of_task);
        if !of_task && (error_code.is_some() || !mentions(&body)) {
            return Ok((body, 0));
        }
        match (error_code, want.era) {
            (Some(code), _) => self.refused(body, want, code).map(|body| (body, 0)),
            (None, Era::Modern) => self.modern(&body, want).map(|body| (body, 0)),
            (None, Era::Legacy) => self.legacy(&body, want),
        }
    }

    /// An error in answer to a message about a task.
    fn refused(&self, body: Bytes, want: &Want, code: i64) -> Result<Bytes, Rejection> {
        let Some(task) = want.tasks.named.first() else { return Ok(body) };
        // Nothing but the id can be wrong then: unknown to the upstream is unknown, in our words.
        let id_alone = match want.tasks.method {
            Some(Method::TasksGet) => true,
            Some(Method::TasksCancel) => want.era == Era::Modern,
            _ => false,
        };
        if code == error::INVALID_PARAMS && id_alone {
            return Err(Rejection::UnknownTask { id: task.shown.clone() });
        }
        let message = std::str::from_utf8(&body).ok().and_then(|text| {
            let message = splice::member(splice::member(text, "error")?.get(), "message")?;
            let words = splice::text(message)?;
            words.contains(&task.id).then(|| (message, words.replace(&task.id, &task.shown)))
        });
        Ok(match message {
            Some((place, words)) => {
                let mut edits = Edits::of(&body);
                edits.replace(place, quoted(&words));
                edits.finish()
            }
            None => body,
        })
    }

    fn modern(&self, body: &Bytes, want: &Want) -> Result<Bytes, Rejection> {
        let text = std::str::from_utf8(body).map_err(|_| self.breaks("the answer is not UTF-8"))?;
        let Some(result) = splice::member(text, "result").map(RawValue::get) else { return Ok(body.clone()) };
        let id = splice::member(result, "taskId");
        let id_text = id.and_then(splice::text);
        let begun = splice::member(result, "resultType").and_then(splice::text).as_deref() == Some("task");
        let shown = match (want.tasks.method, want.tasks.named.first()) {
            (Some(method), Some(task)) if method.is_of_task() => match (begun, id_text) {
                (false, None) => return Ok(body.clone()),
                (false, Some(id)) if id == task.id => task.shown.clone(),
                _ => return Err(self.breaks("the answer is about another task")),
            },
            _ if !begun => return Ok(body.clone()),
            (Some(Method::ToolsCall), _) => {
                // SPEC: SEP-2663: never to a client that did not declare it.
                let tool = want.tasks.begins.as_ref().ok_or(Rejection::MissingExtension { id: TASKS })?;
                id_text
                    .and_then(|id| self.sealed(&id, tool, want.era))
                    .ok_or_else(|| self.breaks("a task without a good id"))?
            }
            _ => return Err(self.breaks("a task where there can be none")),
        };
        let mut edits = Edits::of(body);
        if let Some(id) = id {
            edits.replace(id, quoted(&shown));
        }
        Ok(edits.finish())
    }

    fn legacy(&self, body: &Bytes, want: &Want) -> Result<(Bytes, usize), Rejection> {
        let text = std::str::from_utf8(body).map_err(|_| self.breaks("the answer is not UTF-8"))?;
        let Some(result) = splice::member(text, "result").map(RawValue::get) else { return Ok((body.clone(), 0)) };
        let begun = splice::member(result, "task").and_then(|task| splice::member(task.get(), "taskId"));
        if let (Some(tool), Some(id)) = (&want.tasks.begins, begun.and_then(splice::text)) {
            if self.sealed(&id, tool, want.era).is_none() {
                return Err(self.breaks("a task without a good id"));
            }
            self.house.lists.tasks.note(self.principal.key(), self.backend.name(), &id, tool.clone());
        }
        let mut edits = Edits::of(body);
        let related = related(result);
        for place in [begun, splice::member(result, "taskId"), related].into_iter().flatten() {
            if let Some((shown, _)) = splice::text(place).and_then(|id| self.shown(&id, want)) {
                edits.replace(place, quoted(&shown));
            }
        }
        let mut hidden = 0;
        // A resumed stream does not say what was asked; a tool's own result has content.
        let listed = match want.tasks.method {
            Some(Method::TasksList) => true,
            None => splice::member(result, "content").is_none(),
            Some(_) => false,
        };
        if let Some(tasks) = splice::member(result, "tasks").filter(|tasks| listed && tasks.get().starts_with('[')) {
            let items = splice::items(tasks.get());
            let kept: Vec<String> = items.iter().filter_map(|task| self.permitted(task, want)).collect();
            hidden = items.len() - kept.len();
            edits.replace(tasks, format!("[{}]", kept.join(",")));
        }
        Ok((edits.finish(), hidden))
    }

    /// A message of the server's own, in the client's words; `None`: it is not for this caller.
    pub(in crate::gateway) fn told(&self, data: &Bytes, method: &str, want: &Want) -> Option<Bytes> {
        let news = [NEWS, LEGACY_NEWS].contains(&method);
        if !news && !mentions(data) {
            return Some(data.clone());
        }
        let params = splice::member(std::str::from_utf8(data).ok()?, "params").map(RawValue::get);
        let mut edits = Edits::of(data);
        match (want.era, method) {
            (Era::Modern, NEWS) => {
                let id = splice::member(params?, "taskId")?;
                let (shown, _) = self.shown(&splice::text(id)?, want)?;
                edits.replace(id, quoted(&shown));
            }
            (Era::Modern, ACKNOWLEDGED) => {
                if let Some(granted) = splice::member(splice::member(params?, "notifications")?.get(), "taskIds") {
                    let ids: Vec<String> = serde_json::from_str(granted.get()).ok()?;
                    let shown: Vec<String> =
                        ids.iter().filter_map(|id| Some(self.shown(id, want)?.0.into_owned())).collect();
                    edits.replace(granted, Value::from(shown).to_string());
                }
            }
            (Era::Legacy, LEGACY_NEWS) => {
                let id = splice::member(params?, "taskId")?;
                let (shown, tool) = self.shown(&splice::text(id)?, want)?;
                if !self.may_call(&tool) {
                    return None;
                }
                edits.replace(id, quoted(&shown));
            }
            // Those of the other era are nobody's.
            (Era::Modern, LEGACY_NEWS) | (Era::Legacy, NEWS) => return None,
            _ => {}
        }
        if let (Era::Legacy, Some(id)) = (want.era, params.and_then(related))
            && let Some((shown, _)) = splice::text(id).and_then(|id| self.shown(&id, want))
        {
            edits.replace(id, quoted(&shown));
        }
        Some(edits.finish())
    }

    /// An entry of a list of tasks, if the caller may still use its tool.
    fn permitted(&self, task: &RawValue, want: &Want) -> Option<String> {
        let whole = Bytes::copy_from_slice(task.get().as_bytes());
        let place = splice::member(std::str::from_utf8(&whole).ok()?, "taskId")?;
        let (shown, tool) = self.shown(&splice::text(place)?, want)?;
        if !self.may_call(&tool) {
            return None;
        }
        let mut edits = Edits::of(&whole);
        edits.replace(place, quoted(&shown));
        String::from_utf8(edits.finish().to_vec()).ok()
    }

    fn may_call(&self, tool: &str) -> bool {
        let decl = self.backend.catalog().tools.get(tool).cloned();
        decl.is_some_and(|decl| self.house.policy.lists(&self.principal, &decl, &self.context))
    }

    /// The client's id for a task of the upstream's, and its tool. `None`: not known to be this caller's.
    fn shown<'w>(&self, id: &str, want: &'w Want) -> Option<(Cow<'w, str>, Cow<'w, str>)> {
        if let Some(task) = want.tasks.named.iter().find(|task| task.id == id) {
            return Some((task.shown.as_str().into(), task.tool.as_str().into()));
        }
        if want.era == Era::Modern {
            return None;
        }
        let tool = self.house.lists.tasks.tool(self.principal.key(), self.backend.name(), id)?;
        Some((self.sealed(id, &tool, want.era)?.into(), tool.to_string().into()))
    }

    fn sealed(&self, id: &str, tool: &str, era: Era) -> Option<String> {
        let task = Task { backend: (&**self.backend.name()).into(), id: id.into(), tool: tool.into() };
        Bound::new(&self.house.sealer, &self.principal, &self.route, era).seal(&task)
    }
}

/// Which task the holder of this `_meta` is about.
pub(super) fn related(object: &str) -> Option<&RawValue> {
    let meta = splice::member(object, "_meta")?;
    splice::member(splice::member(meta.get(), RELATED_TASK)?.get(), "taskId")
}
