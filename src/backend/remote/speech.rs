//! Which era an upstream speaks: configured, or found by asking and doubted again when its answers contradict it.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use crate::backend::Answer;
use crate::backend::Content;
use crate::backend::Error;
use crate::mcp::Era;
use crate::mcp::Incoming;
use crate::mcp::Method;
use crate::mcp::error;

/// What was found a moment ago is not doubted: an upstream that is simply broken must not be asked before every call.
const CERTAIN: Duration = Duration::from_secs(1);

const UNKNOWN: u8 = 0;
const LEGACY: u8 = 1;
const MODERN: u8 = 2;

/// The era of one upstream. Reading it costs one load.
#[derive(Debug)]
pub(super) struct Speech {
    configured: Option<Era>,
    /// The era that was found last; kept under doubt as the better guess of where to begin asking.
    found: AtomicU8,
    doubted: AtomicBool,
    learned: Mutex<Option<Instant>>,
}

impl Speech {
    pub(super) fn new(configured: Option<Era>) -> Speech {
        Speech { configured, found: AtomicU8::new(UNKNOWN), doubted: false.into(), learned: Mutex::new(None) }
    }

    pub(super) fn configured(&self) -> Option<Era> {
        self.configured
    }

    /// What calls go by. `None`: the upstream must be asked first.
    pub(super) fn known(&self) -> Option<Era> {
        self.configured.or_else(|| self.found().filter(|_| !self.doubted.load(Ordering::Relaxed)))
    }

    /// What was found last, doubted or not.
    fn found(&self) -> Option<Era> {
        match self.found.load(Ordering::Relaxed) {
            LEGACY => Some(Era::Legacy),
            MODERN => Some(Era::Modern),
            _ => None,
        }
    }

    /// The upstream was asked and speaks this era.
    pub(super) fn learn(&self, era: Era) {
        let value = match era {
            Era::Legacy => LEGACY,
            Era::Modern => MODERN,
        };
        *self.learned.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.found.store(value, Ordering::Relaxed);
        self.doubted.store(false, Ordering::Relaxed);
    }

    /// An answer does not fit what was found: ask again before the next call. What is configured is never doubted.
    pub(super) fn doubt(&self, backend: &str) {
        self.doubt_at(backend, Instant::now());
    }

    fn doubt_at(&self, backend: &str, now: Instant) {
        let learned = *self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        let certain = learned.is_none_or(|at| now.saturating_duration_since(at) < CERTAIN);
        if self.configured.is_none() && !certain && !self.doubted.swap(true, Ordering::Relaxed) {
            tracing::info!(backend, "the upstream's answers do not fit its era; it is asked again");
        }
    }
}

/// What the answer to a modern request says about the era of who gave it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fit {
    Fits,
    /// A server of the other era gave it, and did not carry the request out.
    Refused,
    /// A server of the other era may have given it, and may have carried the request out.
    Odd,
}

/// Does the answer to a modern request look like one of a server of this era?
///
/// SPEC: versioning §Backward Compatibility: a 400, 404 or 405 without a modern error means legacy. One code of those that
/// the legacy era used freely (-32000 and around) is no modern error, and no modern server lacks `server/discover`.
pub(super) fn fit(era: Era, method: Option<Method>, outcome: &Result<Answer, Error>) -> Fit {
    let answer = match outcome {
        Ok(answer) => answer,
        Err(Error::Protocol { .. }) => return Fit::Odd,
        Err(_) => return Fit::Fits,
    };
    if era == Era::Legacy {
        // A handshake that was refused is an error.
        return Fit::Fits;
    }
    let discover = method == Some(Method::ServerDiscover);
    let (Content::Json(body), true) = (&answer.content, discover || answer.status >= 400) else {
        return Fit::Fits;
    };
    let Ok(Incoming::Response { error_code: Some(code), .. }) = Incoming::read(body) else {
        return Fit::Fits;
    };
    let unknown = discover && code == error::METHOD_NOT_FOUND;
    if unknown || (answer.status >= 400 && error::is_legacy(code)) { Fit::Refused } else { Fit::Fits }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blame() -> crate::backend::remote::Blame {
        crate::backend::remote::Blame("up".into())
    }

    fn answered(status: u16, code: i64) -> Result<Answer, Error> {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"error":{{"code":{code},"message":"m"}}}}"#);
        Ok(Answer { status, session: None, content: Content::Json(body.into()) })
    }

    #[test]
    fn what_is_found_can_be_doubted_and_what_is_configured_cannot() {
        let later = Instant::now() + 2 * CERTAIN;
        let speech = Speech::new(None);
        assert_eq!(speech.known(), None);
        speech.learn(Era::Modern);
        assert_eq!(speech.known(), Some(Era::Modern));
        speech.doubt("up");
        assert_eq!(speech.known(), Some(Era::Modern), "found a moment ago");
        speech.doubt_at("up", later);
        assert_eq!((speech.known(), speech.found()), (None, Some(Era::Modern)));
        speech.learn(Era::Legacy);
        assert_eq!(speech.known(), Some(Era::Legacy));
        let speech = Speech::new(Some(Era::Legacy));
        speech.learn(Era::Legacy);
        speech.doubt_at("up", later);
        assert_eq!(speech.known(), Some(Era::Legacy));
    }

    #[test]
    fn only_answers_of_legacy_servers_do_not_fit() {
        let call = Some(Method::ToolsCall);
        for (method, outcome, fits) in [
            (call, answered(200, -32601), Fit::Fits),
            (call, answered(404, -32601), Fit::Fits),
            (call, answered(400, -32020), Fit::Fits),
            (call, answered(400, -32602), Fit::Fits),
            (call, answered(400, -32000), Fit::Refused),
            (call, answered(404, -32001), Fit::Refused),
            (Some(Method::ServerDiscover), answered(200, -32601), Fit::Refused),
            (Some(Method::ServerDiscover), answered(200, -32603), Fit::Fits),
            (call, Err(blame().protocol("status 400 without a JSON-RPC error")), Fit::Odd),
            (call, Err(blame().timeout()), Fit::Fits),
            (call, Ok(Answer::empty(202)), Fit::Fits),
        ] {
            assert_eq!(fit(Era::Modern, method, &outcome), fits, "{method:?}");
        }
    }
}
