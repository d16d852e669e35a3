//! Routes with several backends, in modern messages: one question to the backend it means, or to all of them at once.
//!
//! Nothing is judged here. Each backend's part goes through [`Errand::run`] like a request of its own, so its mode, the
//! policies and the filters decide what of it can be seen; what is done here is naming, merging and waiting.

mod aim;
mod cursor;
mod discover;
mod fan;
mod listen;
mod lists;
mod rewrite;
mod source;

use std::sync::Arc;

use futures_util::StreamExt;

use super::Open;
use super::Rejection;
use super::apply::Outgoing;
use super::errand::Errand;
use super::flow::Passing;
use super::prepare::Asked;
use super::tasks;
use crate::limits::Slot;
use crate::mcp::FaultKind;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::list::ListKind;
use crate::route::Names;
use aim::Aim;
pub(super) use lists::Parts;

/// The backend in the record of what went to all of them. No backend can be called that.
const ALL: &str = "*";

/// The member of `_meta` that names the backends a merged answer is without.
const PARTIAL: &str = "dev.wardgate/partial";

/// A route's names, and who asks on it. Cheap to clone; owned, because streams outlive requests.
#[derive(Clone)]
pub(super) struct Federation {
    errand: Errand,
    names: Arc<Names>,
}

impl Federation {
    pub(super) fn new(errand: &Errand, names: &Arc<Names>) -> Federation {
        Federation { errand: errand.clone(), names: names.clone() }
    }

    pub(super) async fn answer(&self, asked: Asked, open: &mut Open) -> Result<Outgoing, Rejection> {
        let (message, mirrors) = asked.into_message().ok_or(Rejection::MethodNotAllowed { allow: "POST" })?;
        // INVARIANT: every modern method that a client may send is a request.
        let (Some(method), Some(id)) = (message.method, message.id().cloned()) else { return Err(Rejection::Internal) };
        if let Some(kind) = ListKind::of(method) {
            return self.list(kind, message, &id, open).await;
        }
        match method {
            Method::CompletionComplete | Method::PromptsGet | Method::ResourcesRead | Method::ToolsCall => {
                self.one(method, message, mirrors, open).await
            }
            Method::TasksCancel | Method::TasksGet | Method::TasksUpdate => {
                self.of_task(method, message, mirrors, open).await
            }
            Method::ServerDiscover => self.discover(message, &id, open).await,
            Method::SubscriptionsListen => self.listen(message, &id, open).await,
            other => Err(Rejection::Message { kind: FaultKind::MethodNotFound { method: other.as_str().to_owned() } }),
        }
    }

    /// What names one thing of one backend. Refusals name it as the client does, whoever refuses.
    async fn one(
        &self,
        method: Method,
        message: Message,
        mirrors: bool,
        open: &mut Open,
    ) -> Result<Outgoing, Rejection> {
        let Aim { share, message, wanted } = Aim::of(&self.names, message).map_err(|(wanted, rejection)| {
            open.target(&wanted);
            rejection
        })?;
        let backend = self.backend(share)?;
        let member = self.errand.member(&backend, open)?;
        let answer = self.errand.run(member, Asked::modern(message, mirrors), None, open).await;
        let answer = answer.map_err(|rejection| aim::in_words_of(&wanted, rejection))?;
        Ok(self.rewritten(method, share, answer))
    }

    /// What is about a task goes to the backend that the task's id says.
    async fn of_task(
        &self,
        method: Method,
        message: Message,
        mirrors: bool,
        open: &mut Open,
    ) -> Result<Outgoing, Rejection> {
        let backend = tasks::backend(&self.errand, &message)?;
        let unknown = || Rejection::UnknownTask { id: message.params.task_id.clone().unwrap_or_default() };
        let share = self.names.shares().position(|share| *share.backend == *backend).ok_or_else(unknown)?;
        let backend = self.backend(share)?;
        let member = self.errand.member(&backend, open)?;
        let answer = self.errand.run(member, Asked::modern(message, mirrors), None, open).await?;
        Ok(self.rewritten(method, share, answer))
    }

    /// The answer with the backend's URIs as they are known on this route.
    fn rewritten(&self, method: Method, share: usize, answer: Outgoing) -> Outgoing {
        match answer {
            Outgoing::Json { status, body, session, error_code, hidden } => {
                let body = rewrite::answer(&body, method, |uri| self.names.uri(share, uri));
                Outgoing::Json { status, body, session, error_code, hidden }
            }
            Outgoing::Events { flow, session } => {
                let names = self.names.clone();
                let flow = flow.map(move |passing| match passing {
                    Passing::Answer { mut event, error_code, hidden } => {
                        event.data = event.data.map(|data| rewrite::answer(&data, method, |uri| names.uri(share, uri)));
                        Passing::Answer { event, error_code, hidden }
                    }
                    other => other,
                });
                Outgoing::Events { flow: flow.boxed(), session }
            }
            Outgoing::Empty { status } => Outgoing::Empty { status },
        }
    }

    fn backend(&self, share: usize) -> Result<Arc<str>, Rejection> {
        // INVARIANT: places come from the names themselves.
        self.names.share(share).map(|share| share.backend.clone()).ok_or(Rejection::Internal)
    }

    /// One call of the principal, however many backends it goes to.
    async fn slot(&self) -> Result<Arc<Slot>, Rejection> {
        self.errand.turn.end();
        let principal = &self.errand.principal;
        let limits = &self.errand.house.limits;
        Ok(Arc::new(limits.acquire(principal.key(), principal.tenant_name(), ALL, None).await?))
    }
}
