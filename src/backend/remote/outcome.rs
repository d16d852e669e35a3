//! The response to a request of the gateway's own, out of a plain answer or an event stream.

use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Blame;
use crate::backend::Answer;
use crate::backend::Content;
use crate::backend::Error;
use crate::mcp::Id;

/// Events before the answer to a request of ours.
const EVENTS_MAX: usize = 1_000;

/// What an upstream made of a request.
pub(super) enum Outcome {
    /// The whole response.
    Result(Bytes),
    Refused {
        code: i64,
    },
}

/// The response to the request with this id.
///
/// # Errors
/// When there is none, or what came breaks the protocol.
pub(super) async fn outcome(answer: Answer, id: &Id, blame: &Blame) -> Result<Outcome, Error> {
    match answer.content {
        Content::Empty => Err(blame.protocol("a request was answered by nothing")),
        Content::Json(body) => response(&body, id)
            .map_err(|what| blame.protocol(what))?
            .ok_or_else(|| blame.protocol("the answer is to another request")),
        Content::Events(mut events) => {
            for _ in 0..EVENTS_MAX {
                let Some(event) = events.next().await else {
                    break;
                };
                let Some(data) = event?.data.filter(|data| !data.is_empty()) else {
                    continue;
                };
                if let Some(outcome) = response(&data, id).map_err(|what| blame.protocol(what))? {
                    return Ok(outcome);
                }
            }
            Err(blame.protocol("the stream ended without an answer"))
        }
    }
}

#[derive(Deserialize)]
struct ResponseWire<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<ErrorWire>,
}

#[derive(Deserialize)]
struct ErrorWire {
    code: i64,
}

/// `Ok(None)`: a message, but not the response to this id.
fn response(body: &Bytes, id: &Id) -> Result<Option<Outcome>, &'static str> {
    let wire: ResponseWire<'_> = serde_json::from_slice(body).map_err(|_| "not a JSON-RPC message")?;
    let answers = wire.id.and_then(|raw| Id::from_json(raw.get())).map(|got| got.same(id));
    Ok(match (wire.method, wire.result, wire.error) {
        (None, Some(_), None) if answers == Some(true) => Some(Outcome::Result(body.clone())),
        // An error about a request that the server could not read has no id.
        (None, None, Some(error)) if answers != Some(false) => Some(Outcome::Refused { code: error.code }),
        _ => None,
    })
}
