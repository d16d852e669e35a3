//! Is the log what was written? Checks every line's hash and place, and names the first line that is wrong.
//!
//! Seen from the file alone: changed, deleted, inserted, doubled and moved lines, and a missing head. Not seen: lines cut
//! off the end, and a file that was computed anew as a whole. For those, note the head in another place and say in
//! [`Expect`] what must still be there.

use std::fmt;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;

use super::chain::GENESIS;
use super::chain::Head;
use super::chain::Sealed;
use super::chain::hex;
use super::chain::sha256;
use super::chain::unhex;
use super::sink::LINE_BYTES_MAX;

/// What is known from elsewhere. Hashes as in the file: 64 lower-case hex digits.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Expect {
    /// A head that was noted once: a record with this hash must be there, now perhaps with others after it.
    pub head: Option<String>,
    /// The chain must reach at least this `seq`.
    pub seq: Option<u64>,
    /// The first record must follow this hash: the `last_hash` of the file before a rotation.
    pub follows: Option<String>,
}

/// A log that is what was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Summary {
    pub records: u64,
    /// `seq` of the first and last record; 0 in an empty file.
    pub first: u64,
    pub last: u64,
    pub first_at: Option<String>,
    pub last_at: Option<String>,
    /// What the first record follows: zeros, or the last hash of the file before.
    pub follows: String,
    pub last_hash: String,
    /// Lines that a crash tore, each vouched for by a `recovered` record.
    pub recovered: u64,
    /// Records that `lost` records tell of.
    pub lost: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.records == 0 {
            return f.write_str("whole: no records");
        }
        let at = |at: &Option<String>| at.clone().unwrap_or_default();
        writeln!(f, "whole: {} records, {} to {}", self.records, self.first, self.last)?;
        writeln!(f, "  from {} to {}", at(&self.first_at), at(&self.last_at))?;
        writeln!(f, "  follows {}", self.follows)?;
        write!(f, "  head    {}", self.last_hash)?;
        if self.recovered > 0 {
            write!(f, "\n  {} lines torn by a crash, each vouched for", self.recovered)?;
        }
        if self.lost > 0 {
            write!(f, "\n  {} records were lost while the log could not be written", self.lost)?;
        }
        Ok(())
    }
}

/// A log that is not what was written, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("cannot read the audit log")]
    Read(#[from] io::Error),
    #[error("line {line}: {problem}")]
    Line { line: u64, problem: Problem },
    #[error("no record has the expected head `{head}`: the end was cut off, or this is another chain")]
    HeadNotFound { head: String },
    #[error("the chain ends at record {last}, before the expected {expected}: the end was cut off")]
    TooShort { last: u64, expected: u64 },
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Problem {
    /// Its hash is not that of its content.
    Changed,
    /// The file starts here, but its chain started earlier.
    HeadMissing { seq: u64 },
    /// Records between the line before and this one are gone.
    Missing { from: u64, to: u64 },
    /// Not a record, and no `recovered` record vouches for it.
    NotARecord,
    /// A record that stands before, or twice, or was put in.
    OutOfOrder { seq: u64, expected: u64 },
    /// The last line is incomplete: a crash (the next start of the gateway will vouch for it), or cut.
    Torn,
    /// A `recovered` record tells of a torn line that is not before it.
    TornGone,
    /// The right number, but it follows another record than the one before it.
    Unlinked,
    /// The first record follows another hash than the expected one.
    WrongStart,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Changed => f.write_str("the record was changed: its hash does not match"),
            Problem::HeadMissing { seq } => {
                write!(f, "the file starts with record {seq}: the records before it are missing")
            }
            Problem::Missing { from, to } if from == to => write!(f, "record {from} is missing before this one"),
            Problem::Missing { from, to } => write!(f, "records {from} to {to} are missing before this one"),
            Problem::NotARecord => f.write_str("not an audit record"),
            Problem::OutOfOrder { seq, expected } => {
                write!(f, "record {seq} stands where {expected} belongs: moved or inserted")
            }
            Problem::Torn => f.write_str("the last line is incomplete"),
            Problem::TornGone => f.write_str("the torn line that this record tells of is missing"),
            Problem::Unlinked => f.write_str("the record does not follow the one before it: one of them was replaced"),
            Problem::WrongStart => f.write_str("the first record does not follow the expected hash"),
        }
    }
}

/// Checks one file.
///
/// # Errors
/// [`Broken`], with the first line that is wrong.
pub fn verify(path: &Path, expect: &Expect) -> Result<Summary, Broken> {
    verify_reader(BufReader::with_capacity(256 * 1024, File::open(path)?), expect)
}

/// Checks what a reader gives; memory is bounded by the longest line.
///
/// # Errors
/// [`Broken`], with the first line that is wrong.
pub fn verify_reader(mut reader: impl BufRead, expect: &Expect) -> Result<Summary, Broken> {
    let mut walk = Walk::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        // One byte more than may be, so that a longer line is seen as such.
        reader.by_ref().take(LINE_BYTES_MAX as u64 + 2).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            break;
        }
        walk.line += 1;
        let ended = line.pop_if(|byte| *byte == b'\n').is_some();
        let at = walk.line;
        if line.len() > LINE_BYTES_MAX {
            return Err(Broken::Line { line: at, problem: Problem::NotARecord });
        }
        walk.step(&line, ended, expect).map_err(|(line, problem)| Broken::Line { line, problem })?;
    }
    walk.finish(expect)
}

/// The members of a record that the check itself needs.
#[derive(Deserialize)]
struct Members {
    kind: String,
    at: Option<String>,
    torn_sha256: Option<String>,
    torn_bytes: Option<u64>,
    count: Option<u64>,
}

struct Torn {
    line: u64,
    bytes: u64,
    sha256: String,
    ended: bool,
}

#[derive(Default)]
struct Walk {
    line: u64,
    records: u64,
    first: Option<(u64, [u8; 32])>,
    previous: Option<Head>,
    /// The record before was the first after a rotation.
    rotated: bool,
    torn: Option<Torn>,
    first_at: Option<String>,
    last_at: Option<String>,
    recovered: u64,
    lost: u64,
    head_found: bool,
}

impl Walk {
    fn step(&mut self, line: &[u8], ended: bool, expect: &Expect) -> Result<(), (u64, Problem)> {
        let at = self.line;
        let Some(sealed) = Sealed::parse(line) else {
            if let Some(torn) = &self.torn {
                return Err((torn.line, Problem::NotARecord));
            }
            self.torn = Some(Torn { line: at, bytes: line.len() as u64, sha256: hex(&sha256(line)), ended });
            return Ok(());
        };
        if !sealed.is_intact() {
            return Err((at, Problem::Changed));
        }
        let members: Members = serde_json::from_slice(line).map_err(|_| (at, Problem::NotARecord))?;
        self.vouched(&members, at)?;
        self.placed(&sealed, &members, expect).map_err(|problem| (at, problem))?;
        self.records += 1;
        self.head_found |= expect.head.as_ref().is_some_and(|head| unhex(head.as_bytes()) == Some(sealed.hash));
        if members.kind == "lost" {
            self.lost += members.count.unwrap_or(0);
        }
        if self.first_at.is_none() {
            self.first_at.clone_from(&members.at);
        }
        self.last_at = members.at;
        self.rotated = matches!(members.kind.as_str(), "continued" | "joined");
        self.first.get_or_insert((sealed.seq, sealed.prev));
        self.previous = Some(sealed.head());
        Ok(())
    }

    /// A line that is no record must be the torn one that the record after it tells of, and the other way round.
    fn vouched(&mut self, members: &Members, at: u64) -> Result<(), (u64, Problem)> {
        let tells = members.kind == "recovered";
        let Some(torn) = self.torn.take() else {
            // A rotation may come between: then the torn line is the end of the old file.
            return if tells && !self.rotated { Err((at, Problem::TornGone)) } else { Ok(()) };
        };
        let same =
            members.torn_bytes == Some(torn.bytes) && members.torn_sha256.as_deref() == Some(torn.sha256.as_str());
        self.recovered += 1;
        if tells && same { Ok(()) } else { Err((torn.line, Problem::NotARecord)) }
    }

    fn placed(&self, sealed: &Sealed<'_>, members: &Members, expect: &Expect) -> Result<(), Problem> {
        let Some(previous) = self.previous else {
            if expect.follows.as_ref().is_some_and(|hash| unhex(hash.as_bytes()) != Some(sealed.prev)) {
                return Err(Problem::WrongStart);
            }
            let starts = (sealed.seq == 1 && sealed.prev == GENESIS) || members.kind == "continued";
            return if starts { Ok(()) } else { Err(Problem::HeadMissing { seq: sealed.seq }) };
        };
        let expected = previous.seq.saturating_add(1);
        if sealed.seq > expected {
            return Err(Problem::Missing { from: expected, to: sealed.seq - 1 });
        }
        if sealed.seq < expected {
            return Err(Problem::OutOfOrder { seq: sealed.seq, expected });
        }
        if sealed.prev == previous.hash { Ok(()) } else { Err(Problem::Unlinked) }
    }

    fn finish(self, expect: &Expect) -> Result<Summary, Broken> {
        if let Some(torn) = self.torn {
            let problem = if torn.ended { Problem::NotARecord } else { Problem::Torn };
            return Err(Broken::Line { line: torn.line, problem });
        }
        let last = self.previous.unwrap_or(Head::NONE);
        if let Some(expected) = expect.seq.filter(|seq| *seq > last.seq) {
            return Err(Broken::TooShort { last: last.seq, expected });
        }
        if let Some(head) = expect.head.as_ref().filter(|_| !self.head_found) {
            return Err(Broken::HeadNotFound { head: head.clone() });
        }
        let (first, follows) = self.first.unwrap_or((0, GENESIS));
        Ok(Summary {
            records: self.records,
            first,
            last: last.seq,
            first_at: self.first_at,
            last_at: self.last_at,
            follows: hex(&follows),
            last_hash: hex(&last.hash),
            recovered: self.recovered,
            lost: self.lost,
        })
    }
}
