//! The last step of an event stream: from what passes to the bytes for the client, and to the record.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::Stream;
use futures_util::StreamExt;
use futures_util::stream;
use futures_util::stream::BoxStream;

use super::Open;
use super::Rejection;
use super::error_body;
use super::flow::Passing;
use crate::mcp::sse::Event;

/// The stream as it is written. The record is closed when it ends, or when the client drops it.
pub(super) fn to_client(flow: BoxStream<'static, Passing>, open: Open) -> Pin<Box<dyn Stream<Item = Bytes> + Send>> {
    written(flow, open, |_, bytes| bytes)
}

/// The same as events, for a stream that is not this request's alone.
pub(super) fn to_others(flow: BoxStream<'static, Passing>, open: Open) -> BoxStream<'static, Event> {
    written(flow, open, |event, _| event)
}

fn written<T: Send + 'static>(
    flow: BoxStream<'static, Passing>,
    open: Open,
    form: fn(Event, Bytes) -> T,
) -> Pin<Box<dyn Stream<Item = T> + Send>> {
    open.metrics().open_streams.inc();
    Box::pin(stream::unfold(Some(Writing { flow, open, form }), |writing| async move { writing?.next().await }))
}

struct Writing<T> {
    flow: BoxStream<'static, Passing>,
    open: Open,
    form: fn(Event, Bytes) -> T,
}

impl<T> Writing<T> {
    /// The next to write, and what goes on after it.
    async fn next(mut self) -> Option<(T, Option<Writing<T>>)> {
        // Total, as the spine is: the work of a stream is done while it is written.
        let passing = AssertUnwindSafe(self.flow.next()).catch_unwind().await;
        match passing.unwrap_or(Some(Passing::Fail(Rejection::Internal))) {
            Some(Passing::Message(event)) => {
                let written = self.write(event);
                Some((written, Some(self)))
            }
            Some(Passing::Answer { event, error_code, hidden }) => {
                self.open.error_code(error_code);
                self.open.hid(hidden);
                let written = self.write(event);
                self.open.close("streamed");
                Some((written, None))
            }
            Some(Passing::End(outcome)) => {
                self.open.close(outcome);
                None
            }
            Some(Passing::Fail(rejection)) => self.fail(&rejection),
            None => {
                self.open.close("streamed");
                None
            }
        }
    }

    fn write(&mut self, event: Event) -> T {
        let bytes = event.to_bytes();
        self.open.streamed(bytes.len());
        (self.form)(event, bytes)
    }

    /// Whoever waits for an answer gets an error; a stream of news just ends.
    fn fail(mut self, rejection: &Rejection) -> Option<(T, Option<Writing<T>>)> {
        let era = self.open.era();
        let facts = rejection.facts(era);
        self.open.reason(facts.reason);
        self.open.error_code(Some(facts.code));
        let body = self.open.id().map(|id| error_body(Some(id), facts.code, &rejection.words(), rejection.data(era)));
        let last = body.map(|body| self.write(Event::message(body)));
        self.open.close("failed");
        last.map(|written| (written, None))
    }
}

impl<T> Drop for Writing<T> {
    fn drop(&mut self) {
        self.open.metrics().open_streams.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;
    use std::time::SystemTime;

    use super::*;
    use crate::audit;
    use crate::audit::Audit;
    use crate::exchange::RequestId;
    use crate::gateway::Head;
    use crate::mcp::Era;
    use crate::mcp::Id;
    use crate::telemetry::metrics::Metrics;

    #[tokio::test]
    async fn a_panic_in_a_stream_is_answered_and_recorded_as_a_failure() {
        let audit = Audit::open(&audit::Config::default()).expect("no sink");
        let metrics = Arc::new(Metrics::new());
        let head = Head {
            id: RequestId(1),
            http_method: "POST".into(),
            path: "/mcp".into(),
            peer: Arc::default(),
            at: SystemTime::now(),
            started: Instant::now(),
            bytes_in: 0,
        };
        let mut open = Open::begin_bare(head, &audit, &metrics);
        open.asks(Some(&Id::number(7)), Era::Legacy);
        let news = Passing::Message(Event::message(Bytes::from_static(b"{}")));
        let flow = stream::iter([Some(news), None]).map(|passing| passing.expect("a bug")).boxed();
        let written: Vec<Bytes> = to_client(flow, open).collect().await;
        assert_eq!(written.len(), 2);
        let last = String::from_utf8_lossy(&written[1]).into_owned();
        assert!(last.contains(r#""id":7,"error":{"#) && last.contains("internal error"), "{last}");
        assert_eq!((metrics.open_streams.get(), metrics.in_flight.get()), (0, 0));
    }
}
