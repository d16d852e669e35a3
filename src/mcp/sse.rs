//! Server-sent events: an incremental parser with bounded events, and the writer. (WHATWG HTML §9.2.)

use std::collections::VecDeque;

use bytes::Bytes;

/// Written by the server on silent streams so that nobody in between takes them for dead. Receivers ignore it.
pub const KEEPALIVE: &[u8] = b":\n\n";

/// One event. Comments are not events; they are dropped and the server writes its own keep-alives.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Event {
    pub id: Option<String>,
    /// Milliseconds.
    pub retry: Option<u64>,
    /// `None` means `message`.
    pub name: Option<String>,
    /// `None`: the event has no `data` field at all. Lines are joined by `\n`.
    pub data: Option<Bytes>,
}

impl Event {
    /// An event that carries one message and nothing else.
    pub fn message(data: Bytes) -> Event {
        Event { data: Some(data), ..Event::default() }
    }

    /// The event on the wire, its blank line included; nothing for an event without any field.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.data.as_ref().map_or(0, Bytes::len) + 64);
        self.write(&mut out);
        out.into()
    }

    /// Appends the event to `out`.
    ///
    /// INVARIANT: no field value can start a new line of its own: `data` is split at every line end that a parser
    /// knows, and an `id` or a name that holds one is left out.
    pub fn write(&self, out: &mut Vec<u8>) {
        let before = out.len();
        if let Some(id) = self.id.as_deref().filter(|id| !id.contains(['\n', '\r', '\0'])) {
            field(out, b"id", id.as_bytes());
        }
        if let Some(name) = self.name.as_deref().filter(|name| !name.contains(['\n', '\r'])) {
            field(out, b"event", name.as_bytes());
        }
        if let Some(retry) = self.retry {
            field(out, b"retry", retry.to_string().as_bytes());
        }
        if let Some(data) = &self.data {
            let mut rest: &[u8] = data;
            loop {
                let (line, next) = split_line(rest);
                field(out, b"data", line);
                match next {
                    Some(next) => rest = next,
                    None => break,
                }
            }
        }
        if out.len() > before {
            out.push(b'\n');
        }
    }
}

fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// The first line, and what follows its end (`\r\n`, `\n` or `\r`); `None` when there is no line end.
fn split_line(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    let Some(end) = line_end(text) else {
        return (text, None);
    };
    let (line, rest) = text.split_at(end);
    let rest = rest.strip_prefix(b"\r\n").or_else(|| rest.split_first().map(|(_, rest)| rest));
    (line, rest)
}

fn line_end(text: &[u8]) -> Option<usize> {
    text.iter().position(|byte| matches!(byte, b'\n' | b'\r'))
}

/// The event being received is larger than the bound given to [`Parser::new`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a server-sent event is larger than {event_bytes_max} bytes")]
pub struct TooLarge {
    pub event_bytes_max: usize,
}

/// Turns chunks of an event stream, cut anywhere, into events. Holds at most one unfinished event.
#[derive(Debug)]
pub struct Parser {
    event_bytes_max: usize,
    /// The unfinished line.
    line: Vec<u8>,
    event: Event,
    data: Vec<u8>,
    /// The last chunk ended in `\r`: a `\n` at the start of the next one belongs to it.
    after_cr: bool,
    /// Nothing was parsed yet: a byte order mark may come.
    start: bool,
}

impl Parser {
    pub fn new(event_bytes_max: usize) -> Self {
        Parser {
            event_bytes_max,
            line: Vec::new(),
            event: Event::default(),
            data: Vec::new(),
            after_cr: false,
            start: true,
        }
    }

    /// Takes the next chunk and appends the events it completes. An event that the stream's end leaves unfinished
    /// is never given out.
    ///
    /// # Errors
    /// [`TooLarge`]; the parser must not be fed again.
    pub fn feed(&mut self, chunk: &[u8], events: &mut VecDeque<Event>) -> Result<(), TooLarge> {
        let mut rest = chunk;
        if self.after_cr && !rest.is_empty() {
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            self.after_cr = false;
        }
        while let Some(end) = line_end(rest) {
            let (line, tail) = rest.split_at(end);
            self.after_cr = tail == b"\r";
            rest = tail.strip_prefix(b"\r\n").or_else(|| tail.split_first().map(|(_, tail)| tail)).unwrap_or_default();
            if self.line.is_empty() {
                self.bound(line.len())?;
                self.take(line, events);
            } else {
                self.bound(self.line.len() + line.len())?;
                let mut whole = std::mem::take(&mut self.line);
                whole.extend_from_slice(line);
                self.take(&whole, events);
                whole.clear();
                self.line = whole;
            }
        }
        self.bound(self.line.len() + rest.len())?;
        self.line.extend_from_slice(rest);
        Ok(())
    }

    fn bound(&self, line_bytes: usize) -> Result<(), TooLarge> {
        let small = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let held = self.data.len() + small(&self.event.id) + small(&self.event.name) + line_bytes;
        if held > self.event_bytes_max { Err(TooLarge { event_bytes_max: self.event_bytes_max }) } else { Ok(()) }
    }

    fn take(&mut self, line: &[u8], events: &mut VecDeque<Event>) {
        let line =
            if std::mem::take(&mut self.start) { line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line) } else { line };
        if line.is_empty() {
            self.dispatch(events);
            return;
        }
        let (name, value) = match line.iter().position(|byte| *byte == b':') {
            None => (line, &[][..]),
            Some(colon) => {
                let (name, value) = line.split_at(colon);
                let value = value.strip_prefix(b":").unwrap_or(value);
                (name, value.strip_prefix(b" ").unwrap_or(value))
            }
        };
        match name {
            b"data" => {
                if self.event.data.is_some() {
                    self.data.push(b'\n');
                }
                self.event.data = Some(Bytes::new());
                self.data.extend_from_slice(value);
            }
            b"event" => self.event.name = Some(String::from_utf8_lossy(value).into_owned()),
            b"id" if !value.contains(&0) => self.event.id = Some(String::from_utf8_lossy(value).into_owned()),
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                self.event.retry = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
            }
            _ => {}
        }
    }

    fn dispatch(&mut self, events: &mut VecDeque<Event>) {
        let data = std::mem::take(&mut self.data);
        let mut event = std::mem::take(&mut self.event);
        if let Some(slot) = &mut event.data {
            *slot = data.into();
        }
        if event != Event::default() {
            events.push_back(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(chunks: &[&[u8]]) -> Vec<Event> {
        let mut parser = Parser::new(1024);
        let mut events = VecDeque::new();
        for chunk in chunks {
            parser.feed(chunk, &mut events).expect("small events");
        }
        events.into()
    }

    fn data(text: &str) -> Event {
        Event::message(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn all_three_line_ends_separate_lines() {
        for wire in ["data: a\ndata: b\n\n", "data: a\r\ndata: b\r\n\r\n", "data: a\rdata: b\r\r"] {
            assert_eq!(parse(&[wire.as_bytes()]), [data("a\nb")], "{wire:?}");
        }
    }

    #[test]
    fn a_stream_may_be_cut_anywhere() {
        let wire = b"\xEF\xBB\xBF: hi\r\nid: 7\r\nevent: message\r\nretry: 10\r\ndata: {\"a\":\r\ndata:1}\r\n\r\ndata\n\nid\n\n";
        let whole = parse(&[wire]);
        assert_eq!(whole.len(), 3);
        for cut in 0..wire.len() {
            let (left, right) = wire.split_at(cut);
            assert_eq!(parse(&[left, right]), whole, "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = wire.chunks(1).collect();
        assert_eq!(parse(&bytes), whole);
    }

    #[test]
    fn a_priming_event_is_kept_and_a_comment_is_not() {
        let events = parse(&[b":\n\nid: 1\ndata:\n\n: ping\n\nretry: 5\n\nretry: x\n\n"]);
        let priming = Event { id: Some("1".into()), data: Some(Bytes::new()), ..Event::default() };
        assert_eq!(events, [priming, Event { retry: Some(5), ..Event::default() }]);
    }

    #[test]
    fn an_unfinished_event_is_not_given_out() {
        assert_eq!(parse(&[b"data: whole\n\ndata: half\n"]), [data("whole")]);
    }

    #[test]
    fn an_event_is_bounded_by_what_it_holds() {
        let mut parser = Parser::new(16);
        let mut events = VecDeque::new();
        assert!(parser.feed(b"data: 0123456789\n", &mut events).is_ok());
        assert_eq!(parser.feed(b"data: 0123456789\n", &mut events), Err(TooLarge { event_bytes_max: 16 }));
        assert!(Parser::new(16).feed(&[b'x'; 17], &mut events).is_err(), "a line without end");
        let mut parser = Parser::new(16);
        for _ in 0..100 {
            assert!(parser.feed(b": comment\ndata: x\n\n", &mut events).is_ok(), "many small events are no large one");
        }
    }

    #[test]
    fn no_field_can_forge_a_line() {
        let event = Event {
            id: Some("1\ndata: forged".into()),
            name: Some("a\rb".into()),
            data: Some("x\r\ny\rz\n".into()),
            retry: None,
        };
        assert_eq!(event.to_bytes(), "data: x\ndata: y\ndata: z\ndata: \n\n");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            id in proptest::option::of("[a-z0-9 :]{0,8}"),
            name in proptest::option::of("[a-z:]{0,8}"),
            retry in proptest::option::of(0u64..1_000_000),
            text in proptest::option::of("[ -~\n:]{0,64}"),
            cut in 0usize..100,
        ) {
            let event = Event { id, retry, name, data: text.map(Bytes::from) };
            let wire = event.to_bytes();
            let (left, right) = wire.split_at(cut.min(wire.len()));
            let expected: Vec<Event> = if event == Event::default() { Vec::new() } else { vec![event] };
            prop_assert_eq!(parse(&[left, right]), expected);
        }

        #[test]
        fn any_bytes_are_survived(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..10)) {
            let mut parser = Parser::new(32);
            let mut events = VecDeque::new();
            for chunk in &chunks {
                if parser.feed(chunk, &mut events).is_err() {
                    break;
                }
            }
        }
    }
}
