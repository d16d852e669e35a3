//! A person's yes: a call that is allowed only with one is answered by a question, and carried out when the question comes
//! back answered.
//!
//! ```text
//! tools/call                                   → input_required: an elicitation, and what was asked, sealed (requestState)
//! tools/call + inputResponses + requestState   → judged like any other; the same caller, route, tool and arguments, in
//!                                                time, for the first time, and a yes: carried out
//! ```
//!
//! Nothing is kept of a question but, once it was answered, its name until it expires: any replica with the same keys
//! takes the answer, and each takes it once. Legacy clients are asked by the door, which speaks this to us.
//!
//! It is the client that shows the question and tells the answer: this stops an agent that runs ahead of its user, not a
//! client that lies.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use serde::Serialize;
use serde_json::json;

use super::Member;
use super::Open;
use super::Purpose;
use super::Rejection;
use super::apply::Outgoing;
use super::errand::Errand;
use super::flow::Passing;
use super::prepare::Asked;
use crate::audit::Audit;
use crate::catalog::Call;
use crate::filters::Filters;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::Method;
use crate::mcp::object::Object;
use crate::mcp::quoted;
use crate::mcp::sse::Event;
use crate::policy::Permit;

/// The question among `inputRequests`.
const KEY: &str = "dev.wardgate/confirm";
const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";

/// What a policy asks if it says nothing.
const WORDS: &str = "An agent wants to do this in your name. Do you allow it?";

/// Of the arguments; more are counted.
const SHOWN_CHARS_MAX: usize = 2_000;
/// Of the policy's words, and of a name.
const WORDS_CHARS_MAX: usize = 500;

/// After a yes the server may have questions of its own. Whoever answers them takes this long at most.
const ROUNDS_WITHIN: Duration = Duration::from_secs(10 * 60);

/// What is sealed between two requests.
#[derive(Deserialize, Serialize)]
struct State {
    /// It is used once, under this name.
    #[serde(rename = "n")]
    name: String,
    /// What it is about, and with which arguments.
    #[serde(rename = "w")]
    what: String,
    /// Seconds since the epoch.
    #[serde(rename = "e")]
    expires: u64,
    /// The yes was said; this is about what the server asked after it.
    #[serde(rename = "y")]
    yes: bool,
    /// The server's own `requestState`, as JSON.
    #[serde(rename = "s", skip_serializing_if = "Option::is_none")]
    inner: Option<String>,
}

/// What a request brings along of an earlier question.
pub(super) struct Said {
    state: State,
    /// `action` of the answer.
    action: Option<String>,
}

/// How a permitted call goes on.
pub(super) enum Settled {
    Ask(Outgoing),
    Go(Option<Confirmed>),
}

/// A call that was allowed by a person. If its server asks something, what comes back is known to be of this call.
pub(super) struct Confirmed {
    errand: Errand,
    backend: Arc<str>,
    name: String,
    what: String,
}

/// Takes what is ours out of a request; the server gets what it gave itself. What does not open stays: it may be the
/// server's.
pub(super) fn take(errand: &Errand, member: &Member, asked: &mut Asked) -> Option<Said> {
    let message = asked.message_mut()?;
    let state: String = serde_json::from_slice(message.params.request_state.as_ref()?).ok()?;
    let state = open(errand, member.backend.name(), &state)?;
    let raw = message.params.raw.clone()?;
    let mut params = Object::read(&raw)?;
    let mut action = None;
    let left = params.object("inputResponses").and_then(|mut responses| {
        action = responses.object(KEY).and_then(|answer| answer.text("action"));
        responses.remove(KEY);
        (!responses.is_empty()).then(|| responses.to_string())
    });
    match &state.inner {
        Some(inner) => params.set("requestState", inner.clone()),
        None => params.remove("requestState"),
    }
    match &left {
        Some(left) => params.set("inputResponses", left.clone()),
        None => params.remove("inputResponses"),
    }
    let edited = Bytes::from(params.to_string());
    message.params.request_state = state.inner.clone().map(Bytes::from);
    message.params.input_responses = left.map(Bytes::from);
    message.params.raw = Some(edited);
    Some(Said { state, action })
}

/// Does the permitted call go on, or is a person asked first?
///
/// # Errors
/// When the answer is no, or no answer to this call.
pub(super) fn settle(
    errand: &Errand,
    permit: &Permit,
    said: Option<Said>,
    open: &mut Open,
) -> Result<Settled, Rejection> {
    let call = permit.call();
    let Some((words, id)) = permit.confirm().zip(asks_for(call)) else { return Ok(Settled::Go(None)) };
    let backend = &call.decl.backend;
    let invalid = |open: &Open, name: &str| {
        open.tally().asked(backend, "invalid", name);
        Rejection::ConfirmationInvalid
    };
    let Some(Said { state, action }) = said else {
        let params = call.message().map(|message| &message.params);
        // An answer to a question that is not ours, or not for this caller: forged, or from before this was asked for.
        if params.is_some_and(|params| params.request_state.is_some() || params.input_responses.is_some()) {
            return Err(invalid(open, ""));
        }
        return ask(errand, call, words, id, open).map(Settled::Ask);
    };
    let (now, expires) = (errand.request.at, UNIX_EPOCH + Duration::from_secs(state.expires));
    // Whoever shows it uses it up, also for another call.
    let first = errand.house.sealer.once(&state.name, expires, now);
    if !first || state.what != what(call) {
        return Err(invalid(open, &state.name));
    }
    let outcome = match action.as_deref() {
        _ if state.yes => "confirmed",
        Some("accept") => "confirmed",
        Some("decline") => "declined",
        _ => "cancelled",
    };
    open.tally().asked(backend, outcome, &state.name);
    if outcome == "confirmed" {
        let (backend, name, what) = (backend.clone(), state.name, state.what);
        return Ok(Settled::Go(Some(Confirmed { errand: errand.clone(), backend, name, what })));
    }
    let name = call.decl.name.to_string();
    let tool = call.message().is_some_and(|message| message.method == Some(Method::ToolsCall));
    let declined = Rejection::ConfirmationDeclined { name };
    if !tool {
        return Err(declined);
    }
    // What a model is to read is a result.
    open.reason(declined.facts(Some(Era::Modern)).reason);
    let result = json!({
        "resultType": "complete",
        "content": [{ "type": "text", "text": declined.words() }],
        "isError": true,
    });
    Ok(Settled::Ask(answer(id, &result.to_string())))
}

/// The id of a request that a person can be asked about. What only prepares (lists, completion) or goes on with what was
/// asked about (tasks) is none.
fn asks_for(call: &Call) -> Option<&Id> {
    let message = call.message()?;
    let asked = matches!(message.method, Some(Method::PromptsGet | Method::ResourcesRead | Method::ToolsCall));
    message.id().filter(|_| asked)
}

fn ask(errand: &Errand, call: &Call, words: &str, id: &Id, open: &Open) -> Result<Outgoing, Rejection> {
    let name = || call.decl.name.to_string();
    let message = call.message().ok_or(Rejection::Internal)?;
    let params = message.params.raw.as_deref().unwrap_or_default();
    // SPEC: 2026-07-28 mrtr: only in the modern era, and only of who declared it with this very request.
    if message.era != Era::Modern || !can_be_asked(params) {
        open.tally().asked(&call.decl.backend, "unsupported", "");
        return Err(Rejection::ConfirmationUnsupported { name: name() });
    }
    let state = State {
        name: errand.house.sealer.draw().ok_or(Rejection::Internal)?,
        what: what(call),
        expires: seconds(errand.request.at + errand.house.sealer.confirm_within()),
        yes: false,
        inner: None,
    };
    let sealed = seal(errand, &call.decl.backend, &state).ok_or(Rejection::Internal)?;
    let question = json!({
        "method": "elicitation/create",
        "params": {
            "mode": "form",
            "message": question(call, words),
            "requestedSchema": { "type": "object", "properties": {} },
        },
    });
    let result = json!({ "resultType": "input_required", "inputRequests": { KEY: question }, "requestState": sealed });
    open.tally().asked(&call.decl.backend, "asked", &state.name);
    Ok(answer(id, &result.to_string()))
}

fn answer(id: &Id, result: &str) -> Outgoing {
    let body = format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, id.as_json()).into();
    Outgoing::Json { status: 200, body, session: None, error_code: None, hidden: 0 }
}

/// Did the client say that it can put a form before somebody? `{}` says so too.
fn can_be_asked(params: &[u8]) -> bool {
    let elicitation = || {
        let params = Object::read(params)?;
        let meta = params.object("_meta")?;
        let capabilities = meta.object(CAPABILITIES)?;
        let elicitation = capabilities.object("elicitation")?;
        Some(elicitation.is_empty() || elicitation.get("form").is_some())
    };
    elicitation().unwrap_or(false)
}

/// What a person reads: the policy's words, and what the call is, in our words. Arguments are JSON, so that a line break in
/// one cannot look like a line of ours.
fn question(call: &Call, words: &str) -> String {
    let words = if words.is_empty() { WORDS } else { words };
    let cut = |text: String, chars_max: usize| {
        let all = text.chars().count();
        let mut shown: String = text.chars().take(chars_max).collect();
        if all > chars_max {
            shown.push_str(&format!("\n… ({} of {all} characters are not shown)", all - chars_max));
        }
        shown
    };
    let short = |text: &str, chars_max: usize| cut(Filters::plainly(text), chars_max);
    let kind = match call.message().and_then(|message| message.method) {
        Some(Method::PromptsGet) => "Prompt",
        Some(Method::ResourcesRead) => "Resource",
        _ => "Tool",
    };
    let (name, backend) = (short(&call.decl.name, WORDS_CHARS_MAX), &call.decl.backend);
    let arguments = call.arguments().map(|raw| {
        let value = serde_json::from_slice::<serde_json::Value>(raw).unwrap_or_default();
        let shown = veiled(&value);
        let pretty = serde_json::to_string_pretty(&shown).unwrap_or_default();
        let notice = if shown == value { "" } else { "\nParts of the arguments look like secrets and are NOT shown." };
        format!("\nArguments: {}{notice}", cut(pretty, SHOWN_CHARS_MAX))
    });
    let words = short(words, WORDS_CHARS_MAX);
    format!("{words}\n\n{kind}: {}\nBackend: {backend}{}", quoted(&name), arguments.unwrap_or_default())
}

/// Each text by itself: what looks like a secret in one argument hides nothing of another.
fn veiled(value: &serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::String(text) => Filters::plainly(text).into(),
        serde_json::Value::Array(items) => items.iter().map(veiled).collect(),
        serde_json::Value::Object(members) => {
            members.iter().map(|(name, value)| (Filters::plainly(name), veiled(value))).collect()
        }
        other => other.clone(),
    }
}

/// What was judged, as a digest: which thing, and all that is said about it. Who and where is in the seal.
fn what(call: &Call) -> String {
    let arguments = call.arguments().map(Bytes::as_ref).unwrap_or(b"{}");
    let digest = Audit::plain_digest(arguments);
    Audit::plain_digest(json!([call.action.as_str(), &*call.decl.name, digest]).to_string().as_bytes())
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// For whom and where: principal and tenant (both in its key), route and backend.
fn bound(errand: &Errand, backend: &str) -> Vec<u8> {
    let host = errand.route.host.as_deref().unwrap_or_default();
    let mut out = Vec::with_capacity(128);
    for part in ["confirm", &**errand.principal.key(), host, errand.route.path.as_str(), backend] {
        out.extend_from_slice(&(part.len() as u64).to_le_bytes());
        out.extend_from_slice(part.as_bytes());
    }
    out
}

fn seal(errand: &Errand, backend: &str, state: &State) -> Option<String> {
    let plain = serde_json::to_vec(state).ok()?;
    errand.house.sealer.seal_bytes(Purpose::State, &plain, &bound(errand, backend))
}

fn open(errand: &Errand, backend: &str, sealed: &str) -> Option<State> {
    let plain = errand.house.sealer.open_bytes(Purpose::State, sealed, &bound(errand, backend))?;
    serde_json::from_slice(&plain).ok()
}

impl Confirmed {
    /// What the server asks after the yes is answered in another request, which must be known to be of this call.
    pub(super) fn goes_on(self, outgoing: Outgoing) -> Outgoing {
        match outgoing {
            Outgoing::Json { status, body, session, error_code, hidden } => {
                let body = self.bind(body);
                Outgoing::Json { status, body, session, error_code, hidden }
            }
            Outgoing::Events { flow, session } => {
                let flow = flow.map(move |passing| match passing {
                    Passing::Answer { event, error_code, hidden } => {
                        let data = event.data.map(|body| self.bind(body));
                        Passing::Answer { event: Event { data, ..event }, error_code, hidden }
                    }
                    other => other,
                });
                Outgoing::Events { flow: flow.boxed(), session }
            }
            Outgoing::Empty { status } => Outgoing::Empty { status },
        }
    }

    /// The answer with our state around the server's, if it asks for input.
    fn bind(&self, body: Bytes) -> Bytes {
        self.bound(&body).unwrap_or(body)
    }

    fn bound(&self, body: &Bytes) -> Option<Bytes> {
        let mut envelope = Object::read(body)?;
        let result = {
            let mut result = envelope.object("result")?;
            if result.text("resultType")? != "input_required" {
                return None;
            }
            let sealer = &self.errand.house.sealer;
            let state = State {
                name: sealer.draw()?,
                what: self.what.clone(),
                expires: seconds(SystemTime::now() + ROUNDS_WITHIN),
                yes: true,
                inner: result.get("requestState").map(str::to_owned),
            };
            // Too long for a seal: the call cannot go on, and its server will say so. Never is the seal left out.
            let sealed = seal(&self.errand, &self.backend, &state).unwrap_or_default();
            tracing::debug!(confirmation = %self.name, goes_on_as = %state.name, "the server asks after a yes");
            result.set("requestState", quoted(&sealed));
            result.to_string()
        };
        envelope.set("result", result);
        Some(envelope.to_string().into())
    }
}
