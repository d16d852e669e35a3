//! The thread that chains and writes lines, and the handle that gives it some without ever waiting.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::TrySendError;
use std::sync::mpsc::sync_channel;
use std::time::Duration;
use std::time::Instant;

use super::Status;
use super::chain::Head;
use super::chain::hex;
use super::line;
use super::sink;
use super::sink::Opened;
use super::sink::Output;
use super::sink::Tail;

/// A batch is written when it has grown to this, though the queue holds more.
const BATCH_BYTES: usize = 256 * 1024;
/// At most so long after its write, a line is synced to disk.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// After a batch, so long is waited for more: a request that finds the writer gathering need not wake it, which costs
/// more than writing its line.
const GATHER: Duration = Duration::from_millis(5);
/// Between attempts on a sink that fails.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

enum Message {
    /// A record's members, not yet chained.
    Line(Vec<u8>),
    /// Look at the flags.
    Wake,
}

/// What the handle and the writer tell each other beside the queue.
struct Shared {
    /// The last write and the last sync were good.
    works: AtomicBool,
    /// A record found the queue full, and nothing was written since.
    full: AtomicBool,
    /// Lines put into the queue, and lines that found it full.
    accepted: AtomicU64,
    dropped: AtomicU64,
    /// Somebody waits until so many accepted lines are synced.
    flush_to: AtomicU64,
    reopen: AtomicBool,
    closing: AtomicBool,
    progress: Mutex<Progress>,
    moved: Condvar,
}

#[derive(Clone, Copy)]
struct Progress {
    /// Accepted lines that are written and synced.
    settled: u64,
    written: u64,
    failures: u64,
    head: Head,
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The requests' side of the queue.
pub(super) struct Handle {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

impl Handle {
    pub(super) fn push(&self, fields: Vec<u8>) {
        match self.queue.try_send(Message::Line(fields)) {
            Ok(()) => {
                self.shared.accepted.fetch_add(1, SeqCst);
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                // In this order: the writer sees the count at the latest one tick later, and clears `full` then.
                self.shared.full.store(true, SeqCst);
                self.shared.dropped.fetch_add(1, SeqCst);
            }
        }
    }

    pub(super) fn healthy(&self) -> bool {
        self.shared.works.load(SeqCst) && !self.shared.full.load(SeqCst)
    }

    pub(super) fn status(&self) -> Status {
        let progress = *self.shared.progress();
        Status {
            written: progress.written,
            dropped: self.shared.dropped.load(SeqCst),
            healthy: self.healthy(),
            seq: progress.head.seq,
            hash: progress.head.hash,
        }
    }

    pub(super) fn reopen(&self) {
        self.shared.reopen.store(true, SeqCst);
        self.wake();
    }

    pub(super) fn flush(&self, timeout: Duration) -> bool {
        let target = self.shared.accepted.load(SeqCst);
        self.shared.flush_to.fetch_max(target, SeqCst);
        let progress = self.shared.progress();
        let failures = progress.failures;
        self.wake();
        let waiting = |progress: &mut Progress| progress.settled < target && progress.failures == failures;
        let (progress, _) =
            self.shared.moved.wait_timeout_while(progress, timeout, waiting).unwrap_or_else(PoisonError::into_inner);
        progress.settled >= target
    }

    fn wake(&self) {
        // A full queue means that the writer is awake, or waits for its sink and is woken by the condition.
        let _ = self.queue.try_send(Message::Wake);
        self.shared.moved.notify_all();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.closing.store(true, SeqCst);
        self.wake();
    }
}

/// A line of the batch: kept until written, because a new file would chain it anew.
struct Pending {
    fields: Vec<u8>,
    /// Where it ends in the batch.
    end: usize,
    head: Head,
}

pub(super) struct Writer {
    queue: Receiver<Message>,
    shared: Arc<Shared>,
    output: Box<dyn Output>,
    identity: Option<(u64, u64)>,
    path: Option<PathBuf>,
    /// The head after the batch, and before it.
    head: Head,
    base: Head,
    batch: Vec<u8>,
    lines: Vec<Pending>,
    /// How much of the batch the output has taken.
    sent: usize,
    /// Since when something written is not synced.
    unsynced: Option<Instant>,
    taken: u64,
    settled: u64,
    written: u64,
    /// Dropped lines that a `lost` record tells of.
    reported: u64,
    sync_works: bool,
}

impl Writer {
    /// `path` is what [`Handle::reopen`] opens anew.
    pub(super) fn new(opened: Opened, path: Option<PathBuf>, queue_lines: usize) -> (Writer, Handle) {
        let (sender, queue) = sync_channel(queue_lines);
        let progress = Progress { settled: 0, written: 0, failures: 0, head: Head::NONE };
        let shared = Arc::new(Shared {
            works: AtomicBool::new(true),
            full: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            flush_to: AtomicU64::new(0),
            reopen: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            progress: Mutex::new(progress),
            moved: Condvar::new(),
        });
        let Opened { output, identity, tail } = opened;
        let mut writer = Writer {
            queue,
            shared: shared.clone(),
            output,
            identity,
            path,
            head: Head::NONE,
            base: Head::NONE,
            batch: Vec::with_capacity(BATCH_BYTES),
            lines: Vec::new(),
            sent: 0,
            unsynced: None,
            taken: 0,
            settled: 0,
            written: 0,
            reported: 0,
            sync_works: true,
        };
        writer.follow(&tail, None);
        writer.publish();
        writer.tell_head("audit log opened");
        (writer, Handle { queue: sender, shared })
    }

    pub(super) fn run(mut self) {
        loop {
            let busy = !self.lines.is_empty();
            if !self.write() {
                return self.give_up();
            }
            self.sync_if_due();
            self.publish();
            if busy {
                self.gather();
            }
            match self.queue.recv_timeout(self.patience()) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.finish(),
            }
            self.tell_lost();
            if self.shared.reopen.swap(false, SeqCst) {
                self.reopen();
            }
        }
    }

    /// Waits for lines to come together, unless somebody waits for those that are here.
    fn gather(&self) {
        let shared = &self.shared;
        let alone = |progress: &mut Progress| {
            shared.flush_to.load(SeqCst) <= progress.settled
                && !shared.reopen.load(SeqCst)
                && !shared.closing.load(SeqCst)
        };
        drop(shared.moved.wait_timeout_while(shared.progress(), GATHER, alone));
    }

    fn patience(&self) -> Duration {
        self.unsynced.map_or(SYNC_INTERVAL, |since| SYNC_INTERVAL.saturating_sub(since.elapsed()))
    }

    fn take(&mut self, first: Message) {
        let mut next = Some(first);
        while let Some(message) = next {
            if let Message::Line(fields) = message {
                self.taken += 1;
                self.seal(fields);
            }
            next = if self.batch.len() < BATCH_BYTES { self.queue.try_recv().ok() } else { None };
        }
    }

    fn seal(&mut self, fields: Vec<u8>) {
        self.head.seal(&fields, &mut self.batch);
        self.lines.push(Pending { fields, end: self.batch.len(), head: self.head });
    }

    fn tell_lost(&mut self) {
        let dropped = self.shared.dropped.load(SeqCst);
        if dropped > self.reported {
            self.seal(line::lost(dropped - self.reported));
            self.reported = dropped;
        }
    }

    /// Writes the batch, however often that must be tried. False: closing, and the sink still fails.
    fn write(&mut self) -> bool {
        while let Some(rest @ [_, ..]) = self.batch.get(self.sent..) {
            match self.output.write(rest) {
                Ok(0) => self.fails("write", &io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.sent += count;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => self.fails("write", &error),
            }
            if self.shared.closing.load(SeqCst) {
                return false;
            }
            self.pause();
            if self.shared.reopen.swap(false, SeqCst) {
                self.reopen();
            }
        }
        if !self.batch.is_empty() {
            self.written += self.lines.len() as u64;
            self.lines.clear();
            self.batch.clear();
            self.sent = 0;
            self.base = self.head;
            self.unsynced.get_or_insert_with(Instant::now);
            self.shared.full.store(false, SeqCst);
            if self.sync_works {
                self.works();
            }
        }
        true
    }

    fn pause(&self) {
        let progress = self.shared.progress();
        // Woken early by a reopen or the end; a spurious wake is only an early attempt.
        drop(self.shared.moved.wait_timeout(progress, RETRY_INTERVAL));
    }

    fn sync_if_due(&mut self) {
        let flush_to = self.shared.flush_to.load(SeqCst);
        let asked = self.settled < flush_to && self.taken >= flush_to;
        if self.unsynced.is_some_and(|since| asked || since.elapsed() >= SYNC_INTERVAL) {
            self.sync();
        }
    }

    fn sync(&mut self) {
        match self.output.sync() {
            Ok(()) => {
                self.unsynced = None;
                self.settled = self.taken;
                self.sync_works = true;
                self.works();
            }
            Err(error) => {
                self.unsynced = Some(Instant::now());
                self.sync_works = false;
                self.fails("sync", &error);
            }
        }
    }

    fn works(&self) {
        if !self.shared.works.swap(true, SeqCst) {
            tracing::warn!("the audit log works again");
        }
    }

    fn fails(&self, what: &'static str, error: &io::Error) {
        if self.shared.works.swap(false, SeqCst) {
            tracing::error!(%error, what, "the audit log cannot be written");
        }
        self.shared.progress().failures += 1;
        self.shared.moved.notify_all();
    }

    fn publish(&self) {
        let mut progress = self.shared.progress();
        *progress = Progress { settled: self.settled, written: self.written, head: self.base, ..*progress };
        drop(progress);
        self.shared.moved.notify_all();
    }

    /// The path leads to another file than ours: go on there.
    fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        let now = std::fs::metadata(path).ok().and_then(|metadata| sink::identity(&metadata));
        if now.is_some() && now == self.identity {
            return;
        }
        let opened = match sink::open(path) {
            Ok(opened) => opened,
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                return tracing::error!(%error, source, "the audit log stays in its old file");
            }
        };
        let unwritten = self.rewind();
        if let Err(error) = self.output.sync() {
            tracing::error!(%error, "the old audit file could not be synced");
        }
        self.tell_head("audit file closed");
        self.output = opened.output;
        self.identity = opened.identity;
        self.follow(&opened.tail, Some(self.head));
        unwritten.into_iter().for_each(|fields| self.seal(fields));
    }

    /// Takes back what of the batch is not wholly written.
    fn rewind(&mut self) -> Vec<Vec<u8>> {
        let whole = self.lines.iter().take_while(|line| line.end <= self.sent).count();
        let rest = self.lines.split_off(whole);
        self.written += whole as u64;
        self.head = self.lines.last().map_or(self.base, |line| line.head);
        self.base = self.head;
        self.lines.clear();
        self.batch.clear();
        self.sent = 0;
        rest.into_iter().map(|line| line.fields).collect()
    }

    /// Sets the head to what a just opened sink ends in, and batches what must be said about that.
    fn follow(&mut self, tail: &Tail, previous: Option<Head>) {
        match tail {
            Tail::Empty => self.head = previous.unwrap_or(Head::NONE),
            Tail::Whole(head) => self.head = *head,
            Tail::Unended(head) => {
                self.head = *head;
                self.batch.push(b'\n');
            }
            Tail::Torn { head, .. } => {
                self.head = *head;
                self.batch.push(b'\n');
            }
        }
        self.base = self.head;
        if let Tail::Torn { bytes, sha256, .. } = tail {
            self.seal(line::recovered(*bytes, &hex(sha256)));
        }
        match previous {
            Some(previous) if *tail == Tail::Empty => {
                self.seal(line::event("continued", &[("previous", &hex(&previous.hash))]))
            }
            // The file had a chain of its own: ours ends in the old file, and this names its end.
            Some(previous) => self.seal(line::event("joined", &[("previous", &hex(&previous.hash))])),
            None => {}
        }
    }

    /// The handle is gone and the queue is empty.
    fn finish(mut self) {
        self.tell_lost();
        if !self.write() {
            return self.give_up();
        }
        if self.unsynced.is_some() {
            self.sync();
        }
        self.publish();
        self.tell_head("audit log closed");
    }

    fn give_up(self) {
        let accepted = self.shared.accepted.load(SeqCst);
        let lines = self.lines.iter().filter(|line| line.end > self.sent).count() as u64;
        let lost = lines
            + accepted.saturating_sub(self.taken)
            + self.shared.dropped.load(SeqCst).saturating_sub(self.reported);
        tracing::error!(lost, "the audit log is closed while it cannot be written: records are lost");
    }

    /// The head in another place than the file: what `verify` needs to see that the end was cut off.
    fn tell_head(&self, message: &'static str) {
        if self.path.is_some() {
            tracing::info!(seq = self.base.seq, hash = %hex(&self.base.hash), "{message}");
        }
    }
}
