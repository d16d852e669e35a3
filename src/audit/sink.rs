//! Where lines go: a file that continues its own chain, or standard output.

use std::fs::File;
use std::fs::Metadata;
use std::fs::OpenOptions;
use std::fs::TryLockError;
use std::io;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::Error;
use super::chain::Head;
use super::chain::Sealed;
use super::chain::sha256;

/// A line longer than this was not written by us: a torn tail or a last line beyond it is refused.
pub(super) const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How much of a file's end is looked at first; lines are some hundred bytes long.
const READ_BYTES: u64 = 64 * 1024;

pub(super) trait Output: Send {
    /// Like [`io::Write::write`]: may take less than it is given.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    fn sync(&mut self) -> io::Result<()>;
}

/// A sink that is ready to be written, and what the writer must know of what is in it.
pub(super) struct Opened {
    pub(super) output: Box<dyn Output>,
    /// Device and inode of a regular file.
    pub(super) identity: Option<(u64, u64)>,
    pub(super) tail: Tail,
}

/// How an existing file ends.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Tail {
    /// Nothing in it.
    Empty,
    /// A whole record.
    Whole(Head),
    /// A whole record that lacks its newline.
    Unended(Head),
    /// A crash tore the last line: these bytes, after that head.
    Torn { head: Head, bytes: u64, sha256: [u8; 32] },
}

struct Stream {
    file: File,
    regular: bool,
}

impl Output for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.regular { self.file.sync_data() } else { Ok(()) }
    }
}

/// Standard output, unbuffered: the writer batches.
pub(super) fn stdout() -> Result<Opened, Error> {
    let open = || {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let regular = file.metadata()?.is_file();
        Ok(Opened { output: Box::new(Stream { file, regular }), identity: None, tail: Tail::Empty })
    };
    open().map_err(|source| Error::Open { path: "standard output".into(), source })
}

/// Opens for appending, takes the file's lock and reads its tail. A new file is readable by its owner alone.
pub(super) fn open(path: &Path) -> Result<Opened, Error> {
    let failed = |source| Error::Open { path: path.to_owned(), source };
    let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Ok(Opened { output: Box::new(Stream { file, regular: false }), identity: None, tail: Tail::Empty });
    }
    // Two writers would interleave two chains. The lock goes with the descriptor.
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    let tail = tail(&file, metadata.len()).map_err(failed)?.ok_or_else(|| Error::NotAudit { path: path.to_owned() })?;
    Ok(Opened { output: Box::new(Stream { file, regular: true }), identity: identity(&metadata), tail })
}

pub(super) fn identity(metadata: &Metadata) -> Option<(u64, u64)> {
    metadata.is_file().then(|| (metadata.dev(), metadata.ino()))
}

/// `None`: the last whole line is not a record.
fn tail(file: &File, file_bytes: u64) -> io::Result<Option<Tail>> {
    let mut window = READ_BYTES;
    loop {
        let from = file_bytes.saturating_sub(window);
        let mut end = vec![0; usize::try_from(file_bytes - from).unwrap_or(LINE_BYTES_MAX)];
        file.read_exact_at(&mut end, from)?;
        // Two newlines: the last whole line is in it.
        if from == 0 || end.iter().filter(|byte| **byte == b'\n').count() >= 2 {
            return Ok(judge(&end));
        }
        if end.len() > 2 * LINE_BYTES_MAX {
            return Ok(None);
        }
        window *= 2;
    }
}

/// `end`: the whole file, or its end from before the last whole line.
fn judge(end: &[u8]) -> Option<Tail> {
    if end.is_empty() {
        return Some(Tail::Empty);
    }
    let (whole, torn) = match end.iter().rposition(|byte| *byte == b'\n') {
        Some(newline) => (end.get(..newline), end.get(newline + 1..)?),
        None => (None, end),
    };
    let head = match whole {
        Some(whole) => record(whole.rsplit(|byte| *byte == b'\n').next()?)?,
        None => Head::NONE,
    };
    if torn.is_empty() {
        return Some(Tail::Whole(head));
    }
    if let Some(last) = record(torn) {
        return Some(Tail::Unended(last));
    }
    // One line alone that never was the beginning of a record: somebody else's file.
    let ours = torn.starts_with(b"{\"seq\":") || b"{\"seq\":".starts_with(torn) || torn.iter().all(|byte| *byte == 0);
    if whole.is_none() && !ours {
        return None;
    }
    Some(Tail::Torn { head, bytes: torn.len() as u64, sha256: sha256(torn) })
}

fn record(line: &[u8]) -> Option<Head> {
    Sealed::parse(line).filter(Sealed::is_intact).map(|sealed| sealed.head())
}
