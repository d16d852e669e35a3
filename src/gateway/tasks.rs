//! Tasks: tool calls that are answered later. What a client holds of one is a sealed id; what it is judged by is the tool.
//!
//! The id says which backend, which of its tasks and which tool. It opens for the caller and on the route it was made
//! for, and for nobody else: a foreign id, a forged one and one of a tool that may not be called any more are unknown,
//! all in the same words. Nothing is stored, so any replica serves it, and the same task has the same id everywhere.
//!
//! Both kinds of tasks are carried, between two sides that know them: those of the extension (2026-07-28) and those of
//! the core of 2025-11-25. They are not the same, and nothing is translated.

mod remembered;
mod seal;
mod words;

use std::sync::Arc;

pub(super) use remembered::Remembered;
use serde_json::Value;
use serde_json::value::RawValue;

use super::Member;
use super::Rejection;
use super::errand::Errand;
use super::prepare;
use super::prepare::Asked;
use crate::catalog::Call;
use crate::catalog::Decl;
use crate::mcp::Era;
use crate::mcp::FaultKind;
use crate::mcp::Kind;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::meta::TASKS;
use crate::mcp::object;
use crate::mcp::object::Edits;
use crate::mcp::quoted;
use crate::policy;
use seal::Bound;
pub(super) use words::NEWS;
use words::Related;

/// Tasks in one subscription.
const WATCHED_MAX: usize = 256;

/// One task, as the upstream and as the client know it.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Known {
    /// The upstream's id.
    id: String,
    /// The client's.
    shown: String,
    /// The backend's own name for the tool that it is a call of.
    tool: String,
}

/// The tasks that a message names.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// The message is about one task.
    one: bool,
    tasks: Vec<Known>,
}

/// What an answer may say of tasks.
#[derive(Clone, Default)]
pub(super) struct Tasks {
    method: Option<Method>,
    /// The tool that is called, where the client can be answered by a task.
    begins: Option<Arc<str>>,
    named: Vec<Known>,
}

impl Tasks {
    pub(super) fn of(call: &Call, named: &Named) -> Tasks {
        let Some(message) = call.message() else { return Tasks::default() };
        let ready = match message.era {
            Era::Modern => message.params.tasks,
            Era::Legacy => message.params.augmented,
        };
        let begins = (ready && message.method == Some(Method::ToolsCall)).then(|| call.decl.name.clone());
        Tasks { method: message.method, begins, named: named.tasks.clone() }
    }
}

/// Puts the ids of tasks in a message for this backend into the backend's words.
///
/// # Errors
/// When an id is not one that was given to this caller here, or the client does not know of tasks.
pub(super) fn open(errand: &Errand, member: &Member, asked: &mut Asked) -> Result<Named, Rejection> {
    let Some(message) = asked.message_mut() else { return Ok(Named::default()) };
    let bound = Bound::of(errand, message.era);
    let ours = |shown: &str| bound.open(shown).filter(|task| task.backend == **member.backend.name());
    match message.method {
        Some(method) if method.is_of_task() => {
            declared(message)?;
            let shown = message.params.task_id.clone().unwrap_or_default();
            let task = ours(&shown).ok_or_else(|| Rejection::UnknownTask { id: shown.clone() })?;
            edit(message, |params| Some(vec![(object::member(params, "taskId")?, quoted(&task.id))]))?;
            related(message, ours)?;
            let known = Known { id: task.id.to_string(), shown, tool: task.tool.to_string() };
            message.params.task_id = Some(known.id.clone());
            message.params.name = Some(known.tool.clone());
            message.params.arguments = None;
            Ok(Named { one: true, tasks: vec![known] })
        }
        Some(Method::SubscriptionsListen) if !message.params.task_ids.is_empty() => {
            declared(message)?;
            if message.params.task_ids.len() > WATCHED_MAX {
                let what = format!("notifications.taskIds may have {WATCHED_MAX} entries at most");
                return Err(Rejection::Message { kind: FaultKind::InvalidParams { what } });
            }
            let find = |shown: &String| {
                let task = ours(shown).ok_or_else(|| Rejection::UnknownTask { id: shown.clone() })?;
                Ok(Known { id: task.id.to_string(), shown: shown.clone(), tool: task.tool.to_string() })
            };
            let tasks = message.params.task_ids.iter().map(find).collect::<Result<Vec<_>, Rejection>>()?;
            let ids: Vec<String> = tasks.iter().map(|task| task.id.clone()).collect();
            let text = Value::from(ids.clone()).to_string();
            edit(message, |params| {
                let place = object::member(object::member(params, "notifications")?.get(), "taskIds")?;
                Some(vec![(place, text)])
            })?;
            message.params.task_ids = ids;
            Ok(Named { one: false, tasks })
        }
        _ => related(message, ours).map(|()| Named::default()),
    }
}

/// Which backend a message about a task is for.
///
/// # Errors
/// As for [`open`].
pub(super) fn backend(errand: &Errand, message: &Message) -> Result<String, Rejection> {
    declared(message)?;
    let shown = message.params.task_id.clone().unwrap_or_default();
    backend_of(errand, &shown).ok_or(Rejection::UnknownTask { id: shown })
}

/// Whose a modern client's task is.
pub(super) fn backend_of(errand: &Errand, shown: &str) -> Option<String> {
    Bound::of(errand, Era::Modern).open(shown).map(|task| task.backend.into_owned())
}

/// SPEC: SEP-2663: what has to do with tasks is for those who declare the extension with the very request.
pub(super) fn declared(message: &Message) -> Result<(), Rejection> {
    if message.era == Era::Modern && !message.params.tasks {
        return Err(Rejection::MissingExtension { id: TASKS });
    }
    Ok(())
}

/// Other values in some places of `params`. Every other byte stays the client's.
fn edit<'m>(
    message: &'m mut Message,
    places: impl for<'p> FnOnce(&'p str) -> Option<Vec<(&'p RawValue, String)>>,
) -> Result<(), Rejection> {
    let raw = message.params.raw.take().unwrap_or_default();
    let edited = std::str::from_utf8(&raw).ok().and_then(places).map(|places| {
        let mut edits = Edits::of(&raw);
        places.into_iter().for_each(|(place, text)| edits.replace(place, text));
        edits.finish()
    });
    // INVARIANT: what was parsed as UTF-8 and had the member still does.
    message.params.raw = Some(edited.ok_or(Rejection::Internal)?);
    Ok(())
}

/// A client may say of any message that it is about a task of the server's: an id of ours becomes the server's, and no
/// other one gets there. What nobody can answer, a response or a notification, is about no task then.
fn related<'t>(message: &mut Message, ours: impl Fn(&str) -> Option<seal::Task<'t>>) -> Result<(), Rejection> {
    const RESULT: &str = "\"result\":";
    let response = matches!(message.kind, Kind::Response { .. });
    let whole = if response { &message.outcome } else { &message.params.raw };
    let Some(whole) = whole.clone().filter(|whole| words::mentions(whole)) else { return Ok(()) };
    let text = std::str::from_utf8(&whole).map_err(|_| Rejection::Internal)?;
    let object = if response { text.strip_prefix(RESULT) } else { Some(text) };
    let related = object.map_or(Ok(None), Related::of);
    let related =
        related.map_err(|what| Rejection::Message { kind: FaultKind::InvalidParams { what: what.into() } })?;
    let Some(related) = related else { return Ok(()) };
    let shown = related.id().unwrap_or_default();
    let mut edits = Edits::of(&whole);
    match ours(&shown) {
        Some(task) => related.replace(&mut edits, &task.id),
        None if message.is_request() => return Err(Rejection::UnknownTask { id: shown.into_owned() }),
        None => related.remove(&mut edits),
    }
    let edited = Some(edits.finish());
    if response {
        message.outcome = edited
    } else {
        message.params.raw = edited
    }
    Ok(())
}

impl Named {
    /// May the caller hear of the tasks that a subscription names? Whoever may not use a tool does not know its tasks.
    ///
    /// # Errors
    /// The first task that is unknown to this caller.
    pub(super) async fn judge(
        &self,
        errand: &Errand,
        member: &Member,
        context: &policy::Context,
    ) -> Result<(), Rejection> {
        if self.one {
            return Ok(()); // judged as a call of its tool
        }
        let listed = |decl: &Decl| errand.house.policy.lists(&errand.principal, decl, context);
        for task in &self.tasks {
            let unknown = || Rejection::UnknownTask { id: task.shown.clone() };
            let decl = prepare::tool(&task.tool, member, errand, listed).await.map_err(|_| unknown())?;
            if !listed(&decl) {
                return Err(unknown());
            }
        }
        Ok(())
    }

    /// A task whose tool is hidden is unknown.
    pub(super) fn in_words_of_client(&self, rejection: Rejection) -> Rejection {
        match (rejection, self.tasks.first()) {
            (Rejection::ArgumentsDenied { .. } | Rejection::UnknownTool { .. }, Some(task)) if self.one => {
                Rejection::UnknownTask { id: task.shown.clone() }
            }
            (rejection, _) => rejection,
        }
    }
}

#[cfg(test)]
mod tests;
