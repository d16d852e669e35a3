//! The whole body of a request, within its size, its time and its share of the memory.

use bytes::Bytes;
use bytes::BytesMut;
use pingora::ErrorType;
use pingora::protocols::http::ServerSession;
use pingora::time::timeout;

use crate::exchange::Verb;
use crate::gateway::Rejection;
use crate::server::admit::Call;
use crate::server::admit::Gate;
use crate::server::drain::Share;

use super::Halt;

/// All bodies together may hold this many times the largest one.
const BODIES_MAX: usize = 64;

/// Read in advance of the bytes arriving, at most.
const BODY_RESERVE_BYTES: usize = 64 * 1024;

/// The whole body, within its size and time.
pub(super) async fn read(
    session: &mut ServerSession,
    gate: &Gate,
    call: &Call,
    share: Share,
) -> Result<(Bytes, Share), Halt> {
    if call.expects_continue
        && let ServerSession::H1(h1) = session
    {
        // The interim response must not count as the response, or the connection would be closed.
        h1.set_close_on_response_before_downstream_finish(false);
        h1.write_continue_response().await.map_err(|_| Halt::Left)?;
        h1.set_close_on_response_before_downstream_finish(true);
    }
    session.set_read_timeout(None); // the deadline here is for the whole body, and h2 has no timer of its own
    match timeout(gate.admission.body_timeout, collect(session, gate, call, share)).await {
        Ok(body) => body,
        Err(_elapsed) => Err(Rejection::BodyTimeout.into()),
    }
}

async fn collect(
    session: &mut ServerSession,
    gate: &Gate,
    call: &Call,
    mut share: Share,
) -> Result<(Bytes, Share), Halt> {
    let bytes_max = call.body_bytes_max;
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    loop {
        let chunk = match session.read_request_body().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => return Err(body_halt(&error)),
        };
        if call.verb != Verb::Post && !chunk.is_empty() {
            return Err(Rejection::BadRequest { what: "only POST carries a body" }.into());
        }
        if first.len().max(rest.len()) + chunk.len() > bytes_max {
            return Err(Rejection::BodyTooLarge { bytes_max }.into());
        }
        if !share.grow(chunk.len(), gate.admission.body_bytes_max.saturating_mul(BODIES_MAX)) {
            return Err(Rejection::Overloaded.into());
        }
        if first.is_empty() && rest.is_empty() {
            first = chunk; // usually all there is
        } else {
            if rest.is_empty() {
                rest.reserve((first.len() + chunk.len()).max(BODY_RESERVE_BYTES));
                rest.extend_from_slice(&first);
            }
            rest.extend_from_slice(&chunk);
        }
    }
    Ok((if rest.is_empty() { first } else { rest.freeze() }, share))
}

fn body_halt(error: &pingora::Error) -> Halt {
    match error.etype() {
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::H2Error => Halt::Left,
        ErrorType::Custom("PrematureBodyEnd") => Halt::Left,
        ErrorType::ReadTimedout => Halt::Refused(Rejection::BodyTimeout),
        _ => Halt::Refused(Rejection::BadRequest { what: "malformed chunked body" }),
    }
}
