//! One child process: its pipes, who waits for what from it, and its end.

use std::collections::BTreeMap;
use std::process::Stdio as Pipe;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use nix::sys::signal::Signal;
use nix::sys::signal::killpg;
use nix::unistd::Pid;
use tokio::io::AsyncBufRead;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::process::ChildStderr;
use tokio::process::ChildStdin;
use tokio::process::ChildStdout;
use tokio::process::Command;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Blame;
use super::Config;
use super::Stdio;
use super::inbox::End;
use super::inbox::Inbox;
use super::inbox::Item;
use super::relay;
use super::relay::Belonging;
use super::relay::Came;
use crate::backend::Content;
use crate::backend::Error;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::sse::Event;

/// What a process inherits of our environment: what programs need to run, and nothing that could be a secret.
const INHERITED: [&str; 14] = [
    "HOME",
    "LANG",
    "LC_ALL",
    "LOGNAME",
    "PATH",
    "SHELL",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TERM",
    "TMPDIR",
    "TZ",
    "USER",
    "XDG_CACHE_HOME",
    "XDG_DATA_HOME",
];

/// Messages on their way into the process.
const LINES_MAX: usize = 64;

/// Requests that one process works on at once.
const WAITING_MAX: usize = 1_000;

const STDERR_LINE_BYTES_MAX: usize = 8 * 1024;

/// What waits for a slow reader may be at least so large, whatever one answer may be.
const INBOX_BYTES_MIN: usize = 16 * 1024 * 1024;

/// How long a process may take to end by itself once its input is closed, and again once it is told to.
const GRACE: Duration = Duration::from_secs(2);

pub(super) struct Child {
    era: Era,
    blame: Blame,
    born: Instant,
    answer_bytes_max: usize,
    lines: mpsc::Sender<Bytes>,
    ending: watch::Sender<Ending>,
    desk: Mutex<Desk>,
    /// Server messages of a legacy session that belong to no request.
    messages: Arc<Inbox>,
}

struct Desk {
    next: u64,
    waiting: BTreeMap<u64, Waiter>,
    streams: usize,
    used: Instant,
    ended: Option<Ended>,
}

struct Waiter {
    id: Id,
    token: Option<String>,
    subscription: bool,
    inbox: Arc<Inbox>,
}

/// Is the process to end, and who says so?
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ending {
    No,
    /// It closed its output and can answer nobody any more.
    OutputClosed,
    Wanted,
}

async fn told_to_end(ending: &mut watch::Receiver<Ending>) -> Ending {
    // The sender lives as long as the child; without it the end is wanted.
    ending.wait_for(|ending| *ending != Ending::No).await.map_or(Ending::Wanted, |ending| *ending)
}

/// When and how a process ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) at: Instant,
    pub(super) lived: Duration,
    /// We ended it.
    pub(super) expected: bool,
}

impl Child {
    /// Starts the process. `slot` is held until it is reaped; `forget` runs when it has ended.
    pub(super) fn spawn(
        stdio: &Stdio,
        config: &Config,
        era: Era,
        slot: OwnedSemaphorePermit,
        forget: impl FnOnce() + Send + 'static,
    ) -> Result<Arc<Child>, String> {
        let (program, arguments) = stdio.command.split_first().ok_or("its command is empty")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(INHERITED.iter().filter_map(|name| std::env::var_os(name).map(|value| (name, value))));
        command.envs(stdio.env.iter().map(|(name, value)| (name, value.expose())));
        if let Some(directory) = &stdio.directory {
            command.current_dir(directory);
        }
        // A group of its own: signals for us are not for it, and its own children end with it.
        command.stdin(Pipe::piped()).stdout(Pipe::piped()).stderr(Pipe::piped()).process_group(0).kill_on_drop(true);
        let mut process = command.spawn().map_err(|error| format!("`{program}` cannot be started: {error}"))?;
        let group = Group(process.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
        let pipes = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(format!("`{program}` has no pipes"));
        };
        let (lines, to_write) = mpsc::channel(LINES_MAX);
        let now = Instant::now();
        let child = Arc::new(Child {
            era,
            blame: Blame(config.name.clone()),
            born: now,
            answer_bytes_max: config.answer_bytes_max,
            lines,
            ending: watch::Sender::new(Ending::No),
            desk: Mutex::new(Desk { next: 1, waiting: BTreeMap::new(), streams: 0, used: now, ended: None }),
            messages: Arc::new(Inbox::new(config.answer_bytes_max.max(INBOX_BYTES_MIN))),
        });
        tokio::spawn(write_lines(stdin, to_write, child.ending.subscribe()));
        tokio::spawn(log_lines(stderr, config.name.clone()));
        let reading = tokio::spawn(read_lines(child.clone(), stdout));
        tokio::spawn(keep(child.clone(), process, group, reading, stdio.idle_timeout, (slot, forget)));
        Ok(child)
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ended(&self) -> Option<Ended> {
        self.desk().ended
    }

    pub(super) fn is_over(&self) -> bool {
        self.ended().is_some()
    }

    /// Asks the process to end; it is made to if it does not.
    pub(super) fn end(&self) {
        self.ending.send_replace(Ending::Wanted);
    }

    /// Why nobody gets an answer from a process that is gone.
    fn gone(&self) -> Error {
        match self.era {
            Era::Legacy => self.blame.session_lost(),
            Era::Modern => self.blame.protocol("the process ended before it answered"),
        }
    }

    /// Sends a request and waits for the first that belongs to it: the response alone, or a stream that leads to it.
    pub(super) async fn request(
        self: &Arc<Self>,
        message: &Message,
        silence: Option<Duration>,
    ) -> Result<Content, Error> {
        let waiting = self.register(message)?;
        self.write(relay::outgoing(message, Some(waiting.number))).await?;
        match waiting.next().await {
            Item::End(End::Answer(answer)) => Ok(Content::Json(answer)),
            Item::End(End::Closed) => Err(self.gone()),
            Item::End(End::Failed(error)) => Err(error),
            Item::Message(first) => Ok(Content::Events(waiting.stream(first, silence))),
        }
    }

    /// Sends a notification or a client's response.
    pub(super) async fn tell(&self, message: &Message) -> Result<(), Error> {
        self.desk().used = Instant::now();
        let line = match message.method {
            Some(Method::NotificationsCancelled) => {
                let named = relay::cancelled_id(message).and_then(|text| Id::from_json(&text));
                let number = named.and_then(|id| {
                    self.desk().waiting.iter().find(|(_, waiter)| waiter.id.same(&id)).map(|(number, _)| *number)
                });
                match number {
                    Some(number) => relay::cancellation(message, number),
                    // Answered already, or never asked.
                    None => return Ok(()),
                }
            }
            _ => relay::outgoing(message, None),
        };
        self.write(line).await
    }

    /// The session's stream of server messages. The newest reader is the one reader.
    pub(super) fn stream(self: &Arc<Self>) -> Content {
        let reader = self.messages.attach();
        self.desk().streams += 1;
        let attached = Attached { child: self.clone(), reader };
        let events = futures_util::stream::unfold(attached, |attached| async move {
            match attached.child.messages.pop(attached.reader).await {
                Item::Message(message) => Some((Ok(Event::message(message)), attached)),
                Item::End(_) => None,
            }
        });
        Content::Events(events.boxed())
    }

    async fn write(&self, line: Bytes) -> Result<(), Error> {
        self.lines.send(line).await.map_err(|_| self.gone())
    }

    fn register(self: &Arc<Self>, message: &Message) -> Result<Waiting, Error> {
        let Some(id) = message.id() else {
            return Err(self.blame.protocol("a request without an id"));
        };
        let mut desk = self.desk();
        if desk.ended.is_some() {
            return Err(self.gone());
        }
        if desk.waiting.len() >= WAITING_MAX {
            return Err(self.blame.unavailable(format!("{WAITING_MAX} requests wait already")));
        }
        let number = desk.next;
        desk.next += 1;
        desk.used = Instant::now();
        let inbox = Arc::new(Inbox::new(self.answer_bytes_max.max(INBOX_BYTES_MIN)));
        let token = message.params.progress_token.as_ref().map(|token| String::from_utf8_lossy(token).into_owned());
        let subscription = message.method == Some(Method::SubscriptionsListen);
        desk.waiting.insert(number, Waiter { id: id.clone(), token, subscription, inbox: inbox.clone() });
        Ok(Waiting { child: self.clone(), number, reader: inbox.attach(), inbox })
    }

    /// One line of the process.
    fn take(&self, line: &Bytes) {
        match relay::incoming(line) {
            Ok(Came::Belonging { number, place, kind }) => self.deliver(line, number, place, kind),
            // SPEC: 2026-07-28 basic/transports/stdio: modern servers send no requests.
            Ok(Came::Request { id }) if self.era == Era::Modern => {
                // A full pipe into a server that misbehaves: the refusal is worth no waiting.
                let _ = self.lines.try_send(relay::refusal(&id));
            }
            Ok(Came::Request { .. }) => self.pass_on(line, true),
            // Whose it is cannot be known, and the process is everybody's.
            Ok(Came::Notification { .. }) if self.era == Era::Modern => {}
            Ok(Came::Notification { method }) => self.pass_on(line, method == "notifications/message"),
            Err(what) => {
                tracing::warn!(target: "wardgate::stdio", backend = %self.blame.0, what, "a line of the process is dropped")
            }
        }
    }

    fn deliver(&self, line: &Bytes, number: u64, place: std::ops::Range<usize>, kind: Belonging) {
        let mut desk = self.desk();
        match kind {
            Belonging::Progress | Belonging::Subscription => {
                let Some(waiter) = desk.waiting.get(&number) else {
                    return;
                };
                let text =
                    if kind == Belonging::Progress { waiter.token.as_deref() } else { Some(waiter.id.as_json()) };
                if let Some(text) = text {
                    self.push(&waiter.inbox, relay::splice(line, place, text));
                }
            }
            Belonging::Response => {
                // Nobody waits: the caller left. SPEC: a late answer is ignored.
                let Some(waiter) = desk.waiting.remove(&number) else {
                    return;
                };
                desk.used = Instant::now();
                let id = waiter.id.as_json();
                let mut edits = vec![place];
                edits.extend(waiter.subscription.then(|| relay::subscription_in_result(line, number)).flatten());
                // From the back, so that the places in front stay true.
                edits.sort_by_key(|place| std::cmp::Reverse(place.start));
                let answer = edits.into_iter().fold(line.clone(), |line, place| relay::splice(&line, place, id));
                waiter.inbox.end(End::Answer(answer));
            }
        }
    }

    /// A message of a legacy session's server that names no request of the client: with a request that waits, if it
    /// may be about it, else on the session's own stream.
    fn pass_on(&self, line: &Bytes, with_request: bool) {
        let newest = self.desk().waiting.last_key_value().map(|(_, waiter)| waiter.inbox.clone());
        let inbox = newest.filter(|_| with_request).unwrap_or_else(|| self.messages.clone());
        self.push(&inbox, line.clone());
    }

    fn push(&self, inbox: &Inbox, message: Bytes) {
        if !inbox.push(message) {
            tracing::warn!(target: "wardgate::stdio", backend = %self.blame.0, "a message is dropped: its reader is too slow");
        }
    }

    /// A line was longer than any answer may be. Its id was not read; all who wait could be meant.
    fn too_long(&self) {
        let waiting = std::mem::take(&mut self.desk().waiting);
        for waiter in waiting.into_values() {
            waiter.inbox.end(End::Failed(self.blame.too_large(self.answer_bytes_max)));
        }
    }

    fn close(&self, expected: bool) {
        let mut desk = self.desk();
        desk.ended = Some(Ended { at: Instant::now(), lived: self.born.elapsed(), expected });
        let waiting = std::mem::take(&mut desk.waiting);
        drop(desk);
        for waiter in waiting.into_values() {
            waiter.inbox.end(End::Failed(self.gone()));
        }
        self.messages.end(End::Closed);
    }

    /// How long the process has served nobody.
    fn idle(&self) -> Duration {
        let desk = self.desk();
        if desk.waiting.is_empty() && desk.streams == 0 { desk.used.elapsed() } else { Duration::ZERO }
    }
}

/// A request that waits for its answer; given up when dropped before.
struct Waiting {
    child: Arc<Child>,
    number: u64,
    inbox: Arc<Inbox>,
    reader: u64,
}

impl Waiting {
    async fn next(&self) -> Item {
        self.inbox.pop(self.reader).await
    }

    fn stream(
        self,
        first: Bytes,
        silence: Option<Duration>,
    ) -> futures_util::stream::BoxStream<'static, Result<Event, Error>> {
        let state = (Some(self), Some(first));
        let events = futures_util::stream::unfold(state, move |(waiting, first)| async move {
            let waiting = waiting?;
            if let Some(first) = first {
                return Some((Ok(Event::message(first)), (Some(waiting), None)));
            }
            let item = match silence {
                Some(silence) => match pingora::time::timeout(silence, waiting.next()).await {
                    Ok(item) => item,
                    Err(_) => return Some((Err(waiting.child.blame.timeout()), (None, None))),
                },
                None => waiting.next().await,
            };
            match item {
                Item::Message(message) => Some((Ok(Event::message(message)), (Some(waiting), None))),
                Item::End(End::Answer(answer)) => Some((Ok(Event::message(answer)), (None, None))),
                Item::End(End::Failed(error)) => Some((Err(error), (None, None))),
                Item::End(End::Closed) => Some((Err(waiting.child.gone()), (None, None))),
            }
        });
        events.boxed()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waited = self.child.desk().waiting.remove(&self.number).is_some();
        // SPEC: 2026-07-28 stdio: cancelling is said; 2025-11-25: a client that disconnects does not cancel.
        if waited && self.child.era == Era::Modern {
            let _ = self.child.lines.try_send(relay::give_up(self.number));
        }
    }
}

/// A reader of a session's stream.
struct Attached {
    child: Arc<Child>,
    reader: u64,
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut desk = self.child.desk();
        desk.streams = desk.streams.saturating_sub(1);
        desk.used = Instant::now();
    }
}

/// The process group of a child: killed when dropped, so that nothing outlives the gateway or its own parent.
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // It may be empty already.
            let _ = killpg(group, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// Watches over the process until it is reaped.
async fn keep<F: FnOnce() + Send + 'static>(
    child: Arc<Child>,
    mut process: tokio::process::Child,
    group: Group,
    reading: JoinHandle<()>,
    idle_timeout: Duration,
    (slot, forget): (OwnedSemaphorePermit, F),
) {
    let mut ending = child.ending.subscribe();
    let mut expected = false;
    loop {
        let rest = idle_timeout.saturating_sub(child.idle()).max(Duration::from_millis(10));
        tokio::select! {
            _ = process.wait() => break,
            why = told_to_end(&mut ending) => {
                expected = why == Ending::Wanted;
                end(&mut process, &group).await;
                break;
            }
            () = tokio::time::sleep(rest) => {
                if child.idle() >= idle_timeout {
                    child.end();
                }
            }
        }
    }
    let status = process.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
    tracing::info!(target: "wardgate::stdio", backend = %child.blame.0, status, "the process ended");
    // Whoever it left behind ends too, and with them the pipe; what is in the pipe still counts.
    drop(group);
    let _ = pingora::time::timeout(Duration::from_secs(1), reading).await;
    child.close(expected);
    child.end();
    forget();
    drop(slot);
}

/// SPEC: basic/transports/stdio §Shutdown: close the input, wait, SIGTERM, wait, SIGKILL. The input is closed by its writer.
async fn end(process: &mut tokio::process::Child, group: &Group) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if pingora::time::timeout(GRACE, process.wait()).await.is_ok() {
            return;
        }
        group.signal(signal);
    }
}

async fn write_lines(mut stdin: ChildStdin, mut lines: mpsc::Receiver<Bytes>, mut ending: watch::Receiver<Ending>) {
    let writing = async {
        while let Some(line) = lines.recv().await {
            if stdin.write_all(&line).await.is_err() || stdin.flush().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = writing => {}
        _ = told_to_end(&mut ending) => {}
    }
}

async fn read_lines(child: Arc<Child>, stdout: ChildStdout) {
    let mut reader = BufReader::with_capacity(64 * 1024, stdout);
    loop {
        match next_line(&mut reader, child.answer_bytes_max).await {
            Some(Line::Whole(line)) if line.iter().all(u8::is_ascii_whitespace) => {}
            Some(Line::Whole(line)) => child.take(&line.into()),
            Some(Line::Cut(_)) => child.too_long(),
            None => break,
        }
    }
    child.ending.send_if_modified(|ending| {
        let first = *ending == Ending::No;
        if first {
            *ending = Ending::OutputClosed;
        }
        first
    });
}

async fn log_lines(stderr: ChildStderr, backend: Arc<str>) {
    let mut reader = BufReader::new(stderr);
    while let Some(line) = next_line(&mut reader, STDERR_LINE_BYTES_MAX).await {
        let (Line::Whole(line) | Line::Cut(line)) = line;
        let line = String::from_utf8_lossy(&line);
        // `?`: control characters are escaped, so that no process can write lines into our log.
        tracing::info!(target: "wardgate::stdio", %backend, line = ?line.trim_end());
    }
}

enum Line {
    Whole(Vec<u8>),
    /// The beginning of a line that is longer than it may be.
    Cut(Vec<u8>),
}

/// The next line without its end; `None` when there are no more. Never holds more than `bytes_max`.
async fn next_line<R: AsyncBufRead + Unpin>(reader: &mut R, bytes_max: usize) -> Option<Line> {
    let mut line = Vec::new();
    let mut cut = false;
    loop {
        let chunk = reader.fill_buf().await.ok()?;
        if chunk.is_empty() {
            // An unfinished last line is no message.
            return None;
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let (piece, used) = match end {
            Some(end) => (chunk.get(..end).unwrap_or_default(), end + 1),
            None => (chunk, chunk.len()),
        };
        let room = bytes_max - line.len();
        cut |= piece.len() > room;
        line.extend_from_slice(piece.get(..piece.len().min(room)).unwrap_or_default());
        reader.consume(used);
        if end.is_some() {
            return Some(if cut { Line::Cut(line) } else { Line::Whole(line) });
        }
    }
}
