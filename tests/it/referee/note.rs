//! One message as it passed: who wrote it, on which side, in which exchange and session.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use serde_json::Value;

/// With whom the gateway speaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    Clients,
    Upstreams,
}

/// Which party of the protocol wrote a message: the one that calls, or the one that serves.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    Client,
    Server,
}

impl Role {
    pub fn other(self) -> Role {
        if self == Role::Client { Role::Server } else { Role::Client }
    }
}

#[derive(Clone, Debug)]
pub struct Note {
    pub side: Side,
    pub writer: Role,
    /// Which gateway or server is spoken to.
    pub peer: String,
    /// The HTTP request, with all of its answer.
    pub exchange: u64,
    /// Empty where there is no HTTP.
    pub verb: String,
    pub path: String,
    /// `Mcp-Session-Id`, or the process.
    pub session: Option<String>,
    /// `MCP-Protocol-Version`.
    pub version: Option<String>,
    /// Of the answer; 0 in requests.
    pub status: u16,
    /// The name of the server-sent event.
    pub event: Option<String>,
    pub text: Vec<u8>,
}

impl Note {
    /// Did the gateway write it?
    pub fn ours(&self) -> bool {
        (self.side == Side::Clients) == (self.writer == Role::Server)
    }

    /// A line of a conversation over stdio; `process` tells such conversations apart.
    pub fn line(side: Side, writer: Role, process: &str, text: &str) -> Note {
        Note {
            side,
            writer,
            peer: String::new(),
            exchange: 0,
            verb: String::new(),
            path: String::new(),
            session: Some(process.to_owned()),
            version: None,
            status: 0,
            event: None,
            text: text.as_bytes().to_vec(),
        }
    }

    /// What `tee.py` wrote of one process.
    pub fn lines(file: &Path) -> Vec<Note> {
        let text = std::fs::read_to_string(file).unwrap();
        let noted = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let note = |noted: Value| {
            let writer = if noted["from"] == "gateway" { Role::Client } else { Role::Server };
            let process = file.file_name().unwrap().to_str().unwrap();
            Note::line(Side::Upstreams, writer, process, noted["line"].as_str().unwrap())
        };
        noted.map(note).collect()
    }
}

/// All notes of one test in the order in which the messages passed, so that a question stands before its answer.
#[derive(Default)]
pub struct Record {
    notes: Mutex<Vec<Note>>,
    exchanges: AtomicU64,
    unread: AtomicUsize,
}

impl Record {
    pub fn add(&self, note: Note) {
        self.notes.lock().unwrap().push(note);
    }

    pub fn exchange(&self) -> u64 {
        self.exchanges.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A connection on which something else than HTTP/1.1 was spoken: TLS, HTTP/2, or nonsense.
    pub fn unread(&self) {
        self.unread.fetch_add(1, Ordering::Relaxed);
    }

    pub fn unread_connections(&self) -> usize {
        self.unread.load(Ordering::Relaxed)
    }

    pub fn notes(&self) -> Vec<Note> {
        self.notes.lock().unwrap().clone()
    }
}
