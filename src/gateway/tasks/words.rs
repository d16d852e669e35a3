//! What an upstream says of tasks, in the client's words: every id is the sealed one, and what is not for this caller goes.

use std::borrow::Cow;

use bytes::Bytes;
use memchr::memmem;
use serde_json::Value;
use serde_json::value::RawValue;

use super::Known;
use super::seal::Bound;
use super::seal::Task;
use crate::gateway::Rejection;
use crate::gateway::apply::Desk;
use crate::gateway::apply::Want;
use crate::mcp::Era;
use crate::mcp::Method;
use crate::mcp::error;
use crate::mcp::meta::RELATED_TASK;
use crate::mcp::meta::TASKS;
use crate::mcp::object;
use crate::mcp::object::Edits;
use crate::mcp::object::Object;
use crate::mcp::object::Writer;
use crate::mcp::quoted;

const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";

/// Of the extension.
pub(in crate::gateway) const NEWS: &str = "notifications/tasks";

/// Of the core of 2025-11-25.
const LEGACY_NEWS: &str = "notifications/tasks/status";

/// May a text say anything of tasks? Looking for the word is cheaper than parsing; JSON may write its letters otherwise.
pub(super) fn mentions(text: &[u8]) -> bool {
    memmem::find(text, b"task").is_some() || memmem::find(text, b"\\u0").is_some()
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
        match (error_code, want.era) {
            (Some(code), _) => self.refused(body, want, code).map(|body| (body, 0)),
            (None, _) if !of_task && !mentions(&body) => Ok((body, 0)),
            (None, Era::Modern) => self.modern(&body, want).map(|body| (body, 0)),
            (None, Era::Legacy) => self.legacy(&body, want),
        }
    }

    /// An error in answer to a message about tasks.
    fn refused(&self, body: Bytes, want: &Want, code: i64) -> Result<Bytes, Rejection> {
        let named = &want.tasks.named;
        let Some(task) = named.first() else { return Ok(body) };
        // Nothing but the id can be wrong then: unknown to the upstream is unknown, in our words.
        let id_alone = match want.tasks.method {
            Some(Method::TasksGet) => true,
            Some(Method::TasksCancel) => want.era == Era::Modern,
            _ => false,
        };
        if code == error::INVALID_PARAMS && id_alone {
            return Err(Rejection::UnknownTask { id: task.shown.clone() });
        }
        let error = std::str::from_utf8(&body).ok().and_then(|text| object::member(text, "error"));
        let error = error.ok_or_else(|| self.breaks("the error cannot be read"))?;
        let mut edits = Edits::of(&body);
        edits.replace(error, anew(error.get(), code, named));
        Ok(edits.finish())
    }

    fn modern(&self, body: &Bytes, want: &Want) -> Result<Bytes, Rejection> {
        let text = std::str::from_utf8(body).map_err(|_| self.breaks("the answer is not UTF-8"))?;
        let Some(result) = object::member(text, "result").map(RawValue::get) else { return Ok(body.clone()) };
        let id = self.only(result, "taskId")?;
        let id_text = id.and_then(object::text);
        let begun = self.only(result, "resultType")?.and_then(object::text).as_deref() == Some("task");
        let shown = match (want.tasks.method, want.tasks.named.first()) {
            (Some(method), Some(task)) if method.is_of_task() => match (begun, id, id_text) {
                (false, None, _) => None,
                (false, Some(_), Some(id)) if id == task.id => Some(task.shown.clone()),
                _ => return Err(self.breaks("the answer is about another task")),
            },
            _ if !begun => None,
            (Some(Method::ToolsCall), _) => {
                // SPEC: SEP-2663: never to a client that did not declare it.
                let tool = want.tasks.begins.as_ref().ok_or(Rejection::MissingExtension { id: TASKS })?;
                let shown = id_text.and_then(|id| self.sealed(&id, tool, want.era));
                Some(shown.ok_or_else(|| self.breaks("a task without a good id"))?)
            }
            _ => return Err(self.breaks("a task where there can be none")),
        };
        let mut edits = Edits::of(body);
        if let (Some(id), Some(shown)) = (id, shown) {
            edits.replace(id, quoted(&shown));
        }
        self.relate(&mut edits, result, want)?;
        Ok(edits.finish())
    }

    fn legacy(&self, body: &Bytes, want: &Want) -> Result<(Bytes, usize), Rejection> {
        let text = std::str::from_utf8(body).map_err(|_| self.breaks("the answer is not UTF-8"))?;
        let Some(result) = object::member(text, "result").map(RawValue::get) else { return Ok((body.clone(), 0)) };
        let mut edits = Edits::of(body);
        for place in [self.begun(result, want)?, self.only(result, "taskId")?].into_iter().flatten() {
            // An id that cannot be sealed says nothing to the client, and is not for it to see.
            let shown = object::text(place).and_then(|id| self.shown(&id, want));
            let (shown, _) = shown.ok_or_else(|| self.breaks("a task that is not known to be the caller's"))?;
            edits.replace(place, quoted(&shown));
        }
        self.relate(&mut edits, result, want)?;
        let mut hidden = 0;
        // A resumed stream does not say what was asked; a tool's own result has content.
        let listed = match want.tasks.method {
            Some(Method::TasksList) => true,
            None => object::member(result, "content").is_none(),
            Some(_) => false,
        };
        let tasks = if listed { self.only(result, "tasks")? } else { None };
        if let Some(tasks) = tasks {
            if !tasks.get().starts_with('[') {
                return Err(self.breaks("a list of tasks that is none"));
            }
            let items = object::items(tasks.get());
            let kept: Vec<String> = items.iter().filter_map(|task| self.permitted(task, want)).collect();
            hidden = items.len() - kept.len();
            edits.replace(tasks, format!("[{}]", kept.join(",")));
        }
        Ok((edits.finish(), hidden))
    }

    /// The id of the task that a legacy result begins; on a resumed stream, of one that was begun earlier.
    fn begun<'r>(&self, result: &'r str, want: &Want) -> Result<Option<&'r RawValue>, Rejection> {
        let Some(task) = self.only(result, "task")?.filter(|task| task.get().starts_with('{')) else {
            return Ok(None);
        };
        let id = self.only(task.get(), "taskId")?;
        match (want.tasks.method, &want.tasks.begins) {
            (Some(Method::ToolsCall), Some(tool)) => {
                let text = id.and_then(object::text).filter(|id| self.sealed(id, tool, want.era).is_some());
                let text = text.ok_or_else(|| self.breaks("a task without a good id"))?;
                self.house.lists.tasks.note(self.principal.key(), self.backend.name(), &text, tool.clone());
                Ok(id)
            }
            // SPEC: 2025-11-25 basic/utilities/tasks: a request that is not augmented is not answered by a task.
            (Some(Method::ToolsCall), None) => Err(self.breaks("a task that nobody asked for")),
            (Some(_), _) if id.is_some() => Err(self.breaks("a task where there can be none")),
            _ => Ok(id),
        }
    }

    /// Which task a result is about, in the client's words; not at all if there are none for it.
    fn relate(&self, edits: &mut Edits<'_>, result: &str, want: &Want) -> Result<(), Rejection> {
        if let Some(related) = Related::of(result).map_err(|what| self.breaks(what))? {
            match related.id().and_then(|id| self.shown(&id, want)) {
                Some((shown, _)) => related.replace(edits, &shown),
                None => related.remove(edits),
            }
        }
        Ok(())
    }

    /// [`only`] of an answer.
    fn only<'t>(&self, object: &'t str, name: &str) -> Result<Option<&'t RawValue>, Rejection> {
        only(object, name).map_err(|what| self.breaks(what))
    }

    /// A message of the server's own, in the client's words; `None`: it is not for this caller.
    pub(in crate::gateway) fn told(&self, data: &Bytes, method: &str, want: &Want) -> Option<Bytes> {
        let news = [NEWS, LEGACY_NEWS].contains(&method);
        if !news && !mentions(data) {
            return Some(data.clone());
        }
        let params = object::member(std::str::from_utf8(data).ok()?, "params").map(RawValue::get);
        let mut edits = Edits::of(data);
        match (want.era, method) {
            (Era::Modern, NEWS) => {
                let id = only(params?, "taskId").ok()??;
                let (shown, _) = self.shown(&object::text(id)?, want)?;
                edits.replace(id, quoted(&shown));
            }
            (Era::Modern, ACKNOWLEDGED) => {
                if let Some(granted) = only(only(params?, "notifications").ok()??.get(), "taskIds").ok()? {
                    let ids: Vec<String> = serde_json::from_str(granted.get()).ok()?;
                    let shown: Vec<String> =
                        ids.iter().filter_map(|id| Some(self.shown(id, want)?.0.into_owned())).collect();
                    edits.replace(granted, Value::from(shown).to_string());
                }
            }
            (Era::Legacy, LEGACY_NEWS) => {
                let id = only(params?, "taskId").ok()??;
                let (shown, tool) = self.shown(&object::text(id)?, want)?;
                if !self.may_call(&tool) {
                    return None;
                }
                edits.replace(id, quoted(&shown));
            }
            // Those of the other era are nobody's.
            (Era::Modern, LEGACY_NEWS) | (Era::Legacy, NEWS) => return None,
            _ => {}
        }
        if let Some(related) = params.map_or(Ok(None), Related::of).ok()? {
            let (shown, _) = self.shown(&related.id()?, want)?;
            related.replace(&mut edits, &shown);
        }
        Some(edits.finish())
    }

    /// An entry of a list of tasks, if the caller may still use its tool.
    fn permitted(&self, task: &RawValue, want: &Want) -> Option<String> {
        let whole = Bytes::copy_from_slice(task.get().as_bytes());
        let place = only(std::str::from_utf8(&whole).ok()?, "taskId").ok()??;
        let (shown, tool) = self.shown(&object::text(place)?, want)?;
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

/// A member of an object that has it once at most.
///
/// # Errors
/// When it is there twice, or the object cannot be read: the client could take another value for it than we do.
pub(super) fn only<'t>(object: &'t str, name: &str) -> Result<Option<&'t RawValue>, &'static str> {
    if !object.starts_with('{') {
        return Ok(None);
    }
    let members = Object::read(object.as_bytes()).ok_or("an object that cannot be read")?;
    match members.members().filter(|(member, _)| *member == name).count() {
        0 => Ok(None),
        1 => Ok(object::member(object, name)),
        _ => Err("an object has the same member twice"),
    }
}

/// Which task the holder of a `_meta` is about.
pub(super) struct Related<'t> {
    meta: &'t RawValue,
    /// `None`: it is said in a way that nobody understands.
    id: Option<&'t RawValue>,
}

impl<'t> Related<'t> {
    /// # Errors
    /// As for [`only`].
    pub(super) fn of(object: &'t str) -> Result<Option<Related<'t>>, &'static str> {
        let Some(meta) = only(object, "_meta")? else { return Ok(None) };
        let Some(related) = only(meta.get(), RELATED_TASK)? else { return Ok(None) };
        Ok(Some(Related { meta, id: only(related.get(), "taskId")? }))
    }

    pub(super) fn id(&self) -> Option<Cow<'t, str>> {
        self.id.and_then(object::text)
    }

    pub(super) fn replace(&self, edits: &mut Edits<'_>, id: &str) {
        match self.id {
            Some(place) => edits.replace(place, quoted(id)),
            None => self.remove(edits),
        }
    }

    /// It is about no task then. The rest of `_meta` stays.
    pub(super) fn remove(&self, edits: &mut Edits<'_>) {
        let mut meta = Object::read(self.meta.get().as_bytes()).unwrap_or_default();
        meta.remove(RELATED_TASK);
        edits.replace(self.meta, meta.to_string());
    }
}

/// An error about these tasks, in the client's words. Data that names one of them goes: its form is the upstream's own.
pub(super) fn anew(error: &str, code: i64, tasks: &[Known]) -> String {
    let message = object::member(error, "message").and_then(object::text).unwrap_or_default();
    let mut out = Writer::new();
    out.raw("code", &code.to_string());
    out.text("message", &reworded(&message, tasks));
    // Written anew as well: of a member that is there twice, one could not be seen here.
    let data = object::member(error, "data").and_then(|data| serde_json::from_str::<Value>(data.get()).ok());
    if let Some(data) = data.filter(|data| !names(data, tasks)) {
        out.raw("data", &data.to_string());
    }
    out.finish()
}

/// In one go: what stands for one task is not searched for the next one.
fn reworded(words: &str, tasks: &[Known]) -> String {
    let mut out = String::with_capacity(words.len());
    let mut rest = words.chars();
    loop {
        let here = |task: &&Known| !task.id.is_empty() && rest.as_str().starts_with(&task.id);
        match tasks.iter().filter(here).max_by_key(|task| task.id.len()) {
            Some(task) => {
                out.push_str(&task.shown);
                rest = rest.as_str().strip_prefix(&task.id).unwrap_or_default().chars();
            }
            None => match rest.next() {
                Some(letter) => out.push(letter),
                None => return out,
            },
        }
    }
}

fn names(value: &Value, tasks: &[Known]) -> bool {
    let told = |words: &str| tasks.iter().any(|task| words.contains(&task.id));
    match value {
        Value::String(words) => told(words),
        Value::Array(items) => items.iter().any(|item| names(item, tasks)),
        Value::Object(members) => members.iter().any(|(key, value)| told(key) || names(value, tasks)),
        Value::Null | Value::Bool(_) => false,
        Value::Number(number) => told(&number.to_string()),
    }
}
