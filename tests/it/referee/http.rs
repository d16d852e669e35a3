//! Reads the messages out of the bytes of one HTTP/1.1 connection, without touching them.

use std::collections::VecDeque;
use std::sync::Arc;

use wardgate::mcp::sse::Parser;

use super::note::Note;
use super::note::Record;
use super::note::Role;
use super::note::Side;

const EVENT_BYTES_MAX: usize = 64 << 20;

/// One connection: questions and, in the same order, their answers.
pub struct Talk {
    record: Arc<Record>,
    side: Side,
    peer: String,
    questions: Reader,
    answers: Reader,
    /// The body of the question that is being read.
    question: Option<(Note, Vec<u8>)>,
    /// Questions without their bodies, until they are answered.
    waiting: VecDeque<Note>,
    answer: Option<Answer>,
    /// Something was said that is not HTTP/1.1.
    unread: bool,
}

/// The answer that is being read.
struct Answer {
    note: Note,
    body: Body,
}

enum Body {
    Whole(Vec<u8>),
    Events(Box<Parser>),
}

impl Talk {
    pub fn new(peer: String, side: Side, record: Arc<Record>) -> Talk {
        Talk {
            record,
            side,
            peer,
            questions: Reader::default(),
            answers: Reader::default(),
            question: None,
            waiting: VecDeque::new(),
            answer: None,
            unread: false,
        }
    }

    /// Takes what one party has sent; nothing means that it will send nothing more.
    pub fn heard(&mut self, writer: Role, bytes: &[u8]) {
        self.read(writer, bytes);
        let reader = if writer == Role::Client { &self.questions } else { &self.answers };
        if !self.unread && reader.is_lost(bytes.is_empty()) {
            self.unread = true;
            self.record.unread();
        }
    }

    fn read(&mut self, writer: Role, bytes: &[u8]) {
        match writer {
            Role::Client => {
                self.questions.push(bytes);
                while let Some(part) = self.questions.next(false) {
                    self.asked(part);
                }
            }
            Role::Server => {
                self.answers.push(bytes);
                loop {
                    let bodiless = self.waiting.front().is_some_and(|question| question.verb == "HEAD");
                    let Some(part) = self.answers.next(bodiless) else { break };
                    self.answered(part);
                }
                if bytes.is_empty() && self.answer.is_some() {
                    self.answered(Part::End);
                }
            }
        }
    }

    /// A question with this head.
    fn note(&self, head: &Head) -> Note {
        let mut first = head.first.split(' ').map(str::to_owned);
        Note {
            side: self.side,
            writer: Role::Client,
            peer: self.peer.clone(),
            exchange: self.record.exchange(),
            verb: first.next().unwrap_or_default(),
            path: first.next().unwrap_or_default(),
            session: head.header("mcp-session-id"),
            version: head.header("mcp-protocol-version"),
            status: 0,
            event: None,
            text: Vec::new(),
        }
    }

    fn asked(&mut self, part: Part) {
        match part {
            Part::Head(head) => {
                let note = self.note(&head);
                self.waiting.push_back(note.clone());
                self.question = Some((note, Vec::new()));
            }
            Part::Body(bytes) => {
                if let Some((_, body)) = &mut self.question {
                    body.extend(bytes);
                }
            }
            Part::End => {
                if let Some((note, text)) = self.question.take().filter(|(_, body)| !body.is_empty()) {
                    self.record.add(Note { text, ..note });
                }
            }
        }
    }

    fn answered(&mut self, part: Part) {
        match part {
            Part::Head(head) => {
                let status = head.first.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
                // A question that cannot be read may still be answered.
                let question = self.waiting.pop_front().unwrap_or_else(|| self.note(&Head::read("")));
                if (100..200).contains(&status) {
                    self.waiting.push_front(question);
                    return;
                }
                let session = head.header("mcp-session-id").or_else(|| question.session.clone());
                let note = Note { writer: Role::Server, status, session, ..question };
                let kind = head.header("content-type").unwrap_or_default();
                let body = match kind.split(';').next() {
                    Some("text/event-stream") => Body::Events(Box::new(Parser::new(EVENT_BYTES_MAX))),
                    _ => Body::Whole(Vec::new()),
                };
                self.answer = Some(Answer { note, body });
            }
            Part::Body(bytes) => {
                let Some(answer) = &mut self.answer else { return };
                match &mut answer.body {
                    Body::Whole(body) => body.extend(bytes),
                    Body::Events(parser) => {
                        let mut events = VecDeque::new();
                        parser.feed(&bytes, &mut events).unwrap();
                        for event in events {
                            let text = event.data.unwrap_or_default().to_vec();
                            // An event without data only names itself: where a stream may be taken up again.
                            if !text.is_empty() {
                                self.record.add(Note { event: event.name, text, ..answer.note.clone() });
                            }
                        }
                    }
                }
            }
            Part::End => {
                if let Some(Answer { note, body: Body::Whole(text) }) = self.answer.take()
                    && !text.is_empty()
                {
                    self.record.add(Note { text, ..note });
                }
            }
        }
    }
}

enum Part {
    Head(Head),
    Body(Vec<u8>),
    End,
}

struct Head {
    /// The request line or the status line.
    first: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn read(text: &str) -> Head {
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default().to_owned();
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        Head { first, headers: lines.filter_map(header).collect() }
    }

    fn header(&self, name: &str) -> Option<String> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    fn framing(&self, bodiless: bool) -> State {
        let answer = self.first.starts_with("HTTP/");
        let status: u16 = self.first.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
        if answer && (100..200).contains(&status) {
            return State::Head;
        }
        if bodiless || answer && matches!(status, 204 | 304) {
            return State::Length(0);
        }
        if self.header("transfer-encoding").is_some() {
            return State::Size;
        }
        match self.header("content-length").map(|length| length.parse()) {
            Some(Ok(length)) => State::Length(length),
            Some(Err(_)) => State::Lost,
            None if answer => State::UntilClose,
            None => State::Length(0),
        }
    }
}

#[derive(Default)]
enum State {
    #[default]
    Head,
    Length(usize),
    /// The line with the size of a chunk.
    Size,
    Chunk(usize),
    Trailers,
    UntilClose,
    /// Not HTTP/1.1, or not well-formed: nothing more can be read of it.
    Lost,
}

/// One direction of a connection.
#[derive(Default)]
struct Reader {
    buffer: Vec<u8>,
    state: State,
}

impl Reader {
    /// Was there something that cannot be read, or that at the end is no whole message?
    fn is_lost(&self, over: bool) -> bool {
        matches!(self.state, State::Lost) || over && matches!(self.state, State::Head) && !self.buffer.is_empty()
    }

    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next part that is there in whole.
    fn next(&mut self, bodiless: bool) -> Option<Part> {
        loop {
            match self.state {
                State::Head => {
                    let head = self.until(b"\r\n\r\n")?;
                    if head.starts_with("PRI * HTTP/2") {
                        self.state = State::Lost;
                        return None;
                    }
                    let head = Head::read(&head);
                    self.state = head.framing(bodiless);
                    return Some(Part::Head(head));
                }
                State::Length(0) => {
                    self.state = State::Head;
                    return Some(Part::End);
                }
                State::Length(left) => {
                    let body = self.take(left)?;
                    self.state = State::Length(left - body.len());
                    return Some(Part::Body(body));
                }
                State::Size => {
                    let line = self.until(b"\r\n")?;
                    let size = line.split(';').next().unwrap_or_default().trim();
                    self.state = match usize::from_str_radix(size, 16) {
                        Ok(0) => State::Trailers,
                        Ok(size) => State::Chunk(size),
                        Err(_) => State::Lost,
                    };
                }
                State::Chunk(0) => {
                    self.until(b"\r\n")?;
                    self.state = State::Size;
                }
                State::Chunk(left) => {
                    let body = self.take(left)?;
                    self.state = State::Chunk(left - body.len());
                    return Some(Part::Body(body));
                }
                State::Trailers => {
                    if self.until(b"\r\n")?.is_empty() {
                        self.state = State::Head;
                        return Some(Part::End);
                    }
                }
                State::UntilClose => return self.take(usize::MAX).map(Part::Body),
                State::Lost => return None,
            }
        }
    }

    /// The text before this mark, which is taken off too.
    fn until(&mut self, mark: &[u8]) -> Option<String> {
        let end = self.buffer.windows(mark.len()).position(|window| window == mark)?;
        let text = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + mark.len());
        Some(text)
    }

    fn take(&mut self, most: usize) -> Option<Vec<u8>> {
        let count = most.min(self.buffer.len());
        (count > 0).then(|| self.buffer.drain(..count).collect())
    }
}
