//! What an HTTP response says: one JSON body, or events until the answer; bounded in size.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use http::header;
use reqwest::Response;

use crate::fetch::chain;
use crate::mcp::sse::Event;
use crate::mcp::sse::Parser;

/// One message of the server.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Of an error page: enough for the words of any server.
pub(super) const ERROR_BYTES_MAX: usize = 64 * 1024;

/// From the head of an answer to its end, where it is one body.
const BODY_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// Servers may ask for any pause; nobody waits longer than this.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What a stream says next.
pub(super) enum Spoken {
    Message(Bytes),
    /// An event without a message: a position, a pause.
    Other,
    Broken(String),
    End,
}

pub(super) struct Events {
    response: Response,
    parser: Parser,
    ready: VecDeque<Event>,
    last_id: Option<String>,
    retry: Option<Duration>,
}

impl Events {
    pub(super) fn are_in(response: &Response) -> bool {
        media_type(response).is_some_and(|media| media == "text/event-stream")
    }

    pub(super) fn of(response: Response) -> Events {
        let parser = Parser::new(MESSAGE_BYTES_MAX);
        Events { response, parser, ready: VecDeque::new(), last_id: None, retry: None }
    }

    /// Where to take up a stream that was lost.
    pub(super) fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref().filter(|id| !id.is_empty())
    }

    /// The pause before that, as the server asked.
    pub(super) fn retry(&self) -> Option<Duration> {
        self.retry
    }

    pub(super) async fn next(&mut self) -> Spoken {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.last_id = event.id.or(self.last_id.take());
                self.retry = event.retry.map(|ms| Duration::from_millis(ms).min(RETRY_MAX)).or(self.retry);
                return match event.data.filter(|data| !data.is_empty()) {
                    // SPEC: HTML section 9.2: other names are other events; MCP has none but `message`.
                    Some(data) if event.name.as_deref().is_none_or(|name| name == "message") => Spoken::Message(data),
                    _ => Spoken::Other,
                };
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => {
                    if let Err(error) = self.parser.feed(&chunk, &mut self.ready) {
                        return Spoken::Broken(error.to_string());
                    }
                }
                Ok(None) => return Spoken::End,
                Err(error) => return Spoken::Broken(chain(&error.without_url())),
            }
        }
    }
}

/// Without its parameters, in lower case.
pub(super) fn media_type(response: &Response) -> Option<String> {
    let value = response.headers().get(header::CONTENT_TYPE)?.to_str().ok()?;
    value.split(';').next().map(|media| media.trim().to_ascii_lowercase())
}

/// The whole body.
pub(super) async fn body(response: Response, bytes_max: usize) -> Result<Bytes, String> {
    let whole = tokio::time::timeout(BODY_TIMEOUT, collected(response, bytes_max)).await;
    whole.unwrap_or_else(|_| Err(format!("the answer did not come to its end in {} s", BODY_TIMEOUT.as_secs())))
}

async fn collected(mut response: Response, bytes_max: usize) -> Result<Bytes, String> {
    let mut whole = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error.without_url()))? {
        if whole.len() + chunk.len() > bytes_max {
            return Err(format!("the answer is larger than {bytes_max} bytes"));
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}
