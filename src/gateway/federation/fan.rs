//! Asking several backends at once: each with its own deadline, so that a slow one holds up nobody, and what came of it.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::Value;
use serde_json::json;

use super::Federation;
use crate::gateway::Open;
use crate::gateway::Rejection;
use crate::gateway::apply::Outgoing;
use crate::gateway::flow::Passing;
use crate::gateway::prepare::Asked;
use crate::limits::Slot;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::Message;
use crate::mcp::error;

/// Kept of the request's own time for merging and writing.
const MARGIN: Duration = Duration::from_millis(100);

/// What one backend is asked.
pub(super) struct Question {
    pub(super) share: usize,
    pub(super) message: Message,
}

/// A backend that the answer is without.
pub(super) struct Missing {
    pub(super) share: usize,
    pub(super) backend: Arc<str>,
    pub(super) reason: &'static str,
    rejection: Rejection,
}

impl Missing {
    pub(super) fn protocol(share: usize, backend: Arc<str>, reason: &'static str) -> Missing {
        Missing { share, rejection: Rejection::BackendProtocol { backend: backend.clone() }, backend, reason }
    }

    fn refused(share: usize, backend: Arc<str>, rejection: Rejection) -> Missing {
        Missing { share, backend, reason: rejection.facts(Some(Era::Modern)).reason, rejection }
    }
}

/// The value of [`super::PARTIAL`].
pub(super) fn named(missing: &[Missing]) -> Value {
    missing.iter().map(|one| json!({ "backend": &*one.backend, "reason": one.reason })).collect()
}

/// What came of asking several, in the order of the route.
pub(super) struct Answers {
    pub(super) whole: Vec<(usize, Bytes)>,
    pub(super) missing: Vec<Missing>,
    /// Entries that the filters took out.
    pub(super) hidden: usize,
}

/// One backend's whole answer.
struct Said {
    body: Bytes,
    error_code: Option<i64>,
    hidden: usize,
}

impl Federation {
    /// Asks all of them at once. A backend that the caller may not use, or that does not know the method, has no part in
    /// the answer; one that fails is missing.
    ///
    /// # Errors
    /// When there is no answer at all: for want of rights, or because all failed.
    pub(super) async fn ask(
        &self,
        questions: Vec<Question>,
        slot: &Arc<Slot>,
        open: &mut Open,
    ) -> Result<Answers, Rejection> {
        let within = self.patience();
        let asked = questions.into_iter().map(|question| {
            let mut branch = open.branch();
            async move {
                let share = question.share;
                let said = self.ask_one(question, slot, &mut branch);
                let said = match pingora::time::timeout(within, said).await {
                    Ok(said) => said,
                    Err(_) => self.backend(share).and_then(|backend| Err(Rejection::BackendTimeout { backend })),
                };
                (share, said, branch)
            }
        });
        let mut answers = Answers { whole: Vec::new(), missing: Vec::new(), hidden: 0 };
        let mut lacking = false;
        let mut scopes: Option<Vec<String>> = None;
        for (share, said, branch) in join_all(asked).await {
            open.absorb(branch);
            let backend = self.backend(share)?;
            match said {
                Ok(Said { body, error_code: None, hidden }) => {
                    answers.hidden += hidden;
                    answers.whole.push((share, body));
                }
                Ok(Said { error_code: Some(error::METHOD_NOT_FOUND), .. }) => lacking = true,
                Ok(Said { error_code: Some(error::INVALID_PARAMS), .. }) => {
                    answers.missing.push(Missing::protocol(share, backend, INVALID_PARAMS));
                }
                Ok(Said { .. }) => answers.missing.push(Missing::protocol(share, backend, "backend_error")),
                Err(Rejection::InsufficientScope { scopes: needed }) => {
                    let all = scopes.get_or_insert_default();
                    all.extend(needed.into_iter().filter(|scope| !all.contains(scope)).collect::<Vec<_>>());
                }
                Err(rejection) => answers.missing.push(Missing::refused(share, backend, rejection)),
            }
        }
        match (answers.whole.is_empty() && !lacking, answers.missing.first(), scopes) {
            (true, Some(first), _) => Err(first.rejection.clone()),
            (true, None, Some(scopes)) => Err(Rejection::InsufficientScope { scopes }),
            _ => Ok(answers),
        }
    }

    /// How long one backend is waited for.
    pub(super) fn patience(&self) -> Duration {
        let left = self.errand.request.deadline.saturating_duration_since(Instant::now());
        self.names.member_timeout.min(left.saturating_sub(MARGIN))
    }

    async fn ask_one(&self, question: Question, slot: &Arc<Slot>, branch: &mut Open) -> Result<Said, Rejection> {
        let backend = self.backend(question.share)?;
        let member = self.errand.member(&backend, branch)?;
        let asked = Asked::modern(question.message, false);
        match self.errand.run_within(member, asked, None, Some(slot.clone()), branch).await? {
            Outgoing::Json { body, error_code, hidden, .. } => Ok(Said { body, error_code, hidden }),
            Outgoing::Empty { .. } => Err(Rejection::BackendProtocol { backend }),
            Outgoing::Events { mut flow, .. } => loop {
                match flow.next().await {
                    Some(Passing::Message(_)) => {} // nobody asked for progress of a part
                    Some(Passing::Answer { event, error_code, hidden }) => {
                        return Ok(Said { body: event.data.unwrap_or_default(), error_code, hidden });
                    }
                    Some(Passing::Fail(rejection)) => return Err(rejection),
                    Some(Passing::End(_)) | None => return Err(Rejection::BackendUnavailable { backend }),
                }
            },
        }
    }
}

/// The reason of a backend that refuses the params: of a cursor, if one was sent.
pub(super) const INVALID_PARAMS: &str = "invalid_params";

/// The same question to somebody else. Parts have an id of their own: equal answers are then equal bytes, and nobody
/// upstream sees which of the client's requests they belong to.
pub(super) fn part_id() -> Id {
    Id::number(1)
}
