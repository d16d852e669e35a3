//! One child process: its pipes, its log, and its end.

use std::process::Stdio as Pipe;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
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
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Blame;
use super::Config;
use super::Home;
use super::STEADY;
use super::Stdio;
use super::tap::Tap;
use crate::backend::Content;
use crate::backend::Error;
use crate::backend::remote::channel::Desk;
use crate::backend::remote::channel::Scan;
use crate::backend::remote::channel::Whose;
use crate::mcp::Era;
use crate::mcp::Message;

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

const STDERR_LINE_BYTES_MAX: usize = 8 * 1024;

/// How long a process may take to end by itself once its input is closed, and again once it is told to.
const GRACE: Duration = Duration::from_secs(2);

/// Sessions that nobody uses are looked for at least so often.
const TICK_MAX: Duration = Duration::from_secs(60);

pub(super) struct Child {
    pub(super) desk: Arc<Desk>,
    born: Instant,
    answer_bytes_max: usize,
    lines: mpsc::Sender<Bytes>,
    ending: watch::Sender<Ending>,
    ended: OnceLock<Ended>,
}

/// Is the process to end, and who says so?
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ending {
    No,
    /// It closed its output or its input, or never answered its greeting, and can answer nobody any more.
    Closed,
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
    /// It had answered something.
    pub(super) fruitful: bool,
}

impl Child {
    /// Starts the process. `home` is held until it is reaped, and told what becomes of it.
    pub(super) fn spawn(stdio: &Stdio, config: &Config, era: Era, home: Home) -> Result<Arc<Child>, String> {
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
        let blame = Blame(config.name.clone());
        let desk = Desk::new(era, blame, config.answer_bytes_max, stdio.start_timeout, lines.clone());
        let child = Arc::new(Child {
            desk: Arc::new(desk),
            born: Instant::now(),
            answer_bytes_max: config.answer_bytes_max,
            lines,
            ending: watch::Sender::new(Ending::No),
            ended: OnceLock::new(),
        });
        tokio::spawn(write_lines(child.clone(), stdin, to_write));
        let logging = tokio::spawn(log_lines(stderr, config.name.clone()));
        let reading = tokio::spawn(read_lines(child.clone(), stdout));
        let patience = Patience { start: stdio.start_timeout, idle: stdio.idle_timeout };
        tokio::spawn(keep(child.clone(), process, group, [reading, logging], patience, home));
        Ok(child)
    }

    pub(super) fn is_over(&self) -> bool {
        self.ended.get().is_some()
    }

    /// It serves nobody any more: its output or its input is closed, or it never said a word.
    fn closed(&self) {
        self.ending(Ending::Closed);
    }

    /// The first reason counts.
    fn ending(&self, why: Ending) {
        self.ending.send_if_modified(|ending| {
            let first = *ending == Ending::No;
            if first {
                *ending = why;
            }
            first
        });
    }

    /// Nothing new is to begin in it.
    pub(super) fn is_ending(&self) -> bool {
        *self.ending.borrow() != Ending::No
    }

    /// It serves nobody, and nobody has just started it.
    pub(super) fn is_spare(&self) -> bool {
        self.desk.is_deserted() && (self.desk.was_fruitful() || self.born.elapsed() >= STEADY)
    }

    /// Asks the process to end; it is made to if it does not.
    pub(super) fn end(&self) {
        self.ending(Ending::Wanted);
    }

    /// Sends a request and waits for the first that belongs to it: the response alone, or a stream that leads to it.
    pub(super) async fn request(
        &self,
        message: &Message,
        session: Option<&str>,
        silence: Option<Duration>,
    ) -> Result<Content, Error> {
        if let Some(answer) = session.and_then(|session| self.desk.spare(message, session)) {
            return Ok(Content::Json(answer));
        }
        // First the place: a caller who leaves while there is none has asked nothing.
        let place = self.place().await?;
        let waiting = self.desk.register(message, session)?;
        place.send(waiting.line(message));
        waiting.content(silence).await
    }

    /// Asks `initialize`, or knows what it was answered.
    pub(super) async fn greet(&self, hello: &Message) -> Result<Bytes, Error> {
        let (lines, gone) = (self.lines.clone(), self.desk.gone());
        let answer = self.desk.greet(hello, |line| async move { lines.send(line).await.map_err(|_| gone) }).await;
        if matches!(answer, Err(Error::Timeout { .. })) {
            self.closed();
        }
        answer
    }

    /// Sends a notification or a client's response.
    pub(super) async fn tell(&self, message: &Message, session: Option<&str>) -> Result<(), Error> {
        let place = self.place().await?;
        if let Some(line) = self.desk.note(message, session) {
            place.send(line);
        }
        Ok(())
    }

    /// Room for one line on its way into the process.
    async fn place(&self) -> Result<mpsc::Permit<'_, Bytes>, Error> {
        self.lines.reserve().await.map_err(|_| self.desk.gone())
    }

    fn close(&self, expected: bool) -> Ended {
        let ended =
            Ended { at: Instant::now(), lived: self.born.elapsed(), expected, fruitful: self.desk.was_fruitful() };
        // Nothing else sets it.
        let _ = self.ended.set(ended);
        self.desk.close(&self.desk.gone());
        ended
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

/// How long a process may do without an answer to its greeting, and without anybody to serve.
#[derive(Clone, Copy)]
struct Patience {
    start: Duration,
    idle: Duration,
}

/// Watches over the process until it is reaped.
async fn keep(
    child: Arc<Child>,
    mut process: tokio::process::Child,
    group: Group,
    readers: [JoinHandle<()>; 2],
    patience: Patience,
    home: Home,
) {
    let mut ending = child.ending.subscribe();
    let mut expected = false;
    let mut idle = Duration::ZERO;
    loop {
        let mut rest = patience.idle.saturating_sub(idle).min(TICK_MAX);
        if !child.desk.was_fruitful() {
            rest = rest.min(patience.start / 8);
        }
        tokio::select! {
            _ = process.wait() => break,
            why = told_to_end(&mut ending) => {
                expected = why == Ending::Wanted;
                end(&mut process, &group).await;
                break;
            }
            () = tokio::time::sleep(rest.max(Duration::from_millis(10))) => {
                let sessions;
                (idle, sessions) = child.desk.idle(patience.idle);
                home.forget(&sessions);
                if child.desk.is_mute(patience.start) {
                    tracing::warn!(target: "wardgate::stdio", backend = %home.backend(), "the process does not answer its greeting; it is ended");
                    child.closed();
                } else if idle >= patience.idle {
                    child.end();
                }
            }
        }
    }
    let status = process.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
    tracing::info!(target: "wardgate::stdio", backend = %home.backend(), status, "the process ended");
    // Whoever it left behind ends too, and with them the pipe; what is in the pipe still counts.
    drop(group);
    let [reading, logging] = readers;
    finish(reading).await;
    let ended = child.close(expected);
    child.end();
    home.over(&child, ended);
    finish(logging).await;
}

/// Reads what is in a pipe. Whoever left the group may hold it open for as long as it lives: that is not waited for.
async fn finish(reading: JoinHandle<()>) {
    let end = reading.abort_handle();
    if pingora::time::timeout(Duration::from_secs(1), reading).await.is_err() {
        end.abort();
    }
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

async fn write_lines(child: Arc<Child>, mut stdin: ChildStdin, mut lines: mpsc::Receiver<Bytes>) {
    let mut ending = child.ending.subscribe();
    let writing = async {
        while let Some(line) = lines.recv().await {
            if stdin.write_all(&line).await.is_err() || stdin.flush().await.is_err() {
                return true;
            }
        }
        false
    };
    tokio::select! {
        // A process that takes nothing any more serves nobody, though it may live on.
        broken = writing => if broken { child.closed() },
        _ = told_to_end(&mut ending) => {}
    }
}

async fn read_lines(child: Arc<Child>, stdout: ChildStdout) {
    let mut reader = BufReader::with_capacity(64 * 1024, stdout);
    loop {
        match next_line(&mut reader, child.answer_bytes_max).await {
            Some(Line::Whole(line)) if line.iter().all(u8::is_ascii_whitespace) => {}
            Some(Line::Whole(line)) => child.desk.take(&line.into()),
            Some(Line::Cut(_, whose)) => child.desk.too_long(whose),
            None => break,
        }
    }
    child.closed();
}

async fn log_lines(stderr: ChildStderr, backend: Arc<str>) {
    let mut reader = BufReader::new(stderr);
    let mut tap = Tap::new(Instant::now());
    while let Some(line) = next_line(&mut reader, STDERR_LINE_BYTES_MAX).await {
        let (Line::Whole(line) | Line::Cut(line, _)) = line;
        let (pass, missed) = tap.pass(Instant::now());
        if missed > 0 {
            tracing::warn!(target: "wardgate::stdio", %backend, lines = missed, "the process wrote more than is logged");
        }
        if pass {
            let line = String::from_utf8_lossy(&line);
            // `?`: control characters are escaped, so that no process can write lines into our log.
            tracing::info!(target: "wardgate::stdio", %backend, line = ?line.trim_end());
        }
    }
}

enum Line {
    Whole(Vec<u8>),
    /// The beginning of a line that is longer than it may be, and whose message it is.
    Cut(Vec<u8>, Whose),
}

/// The next line without its end; `None` when there are no more. Never holds more than `bytes_max`.
async fn next_line<R: AsyncBufRead + Unpin>(reader: &mut R, bytes_max: usize) -> Option<Line> {
    let mut line = Vec::new();
    let mut scan: Option<Scan> = None;
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
        let (fits, rest) = piece.split_at(piece.len().min(bytes_max - line.len()));
        line.extend_from_slice(fits);
        if !rest.is_empty() {
            let scan = scan.get_or_insert_with(|| {
                let mut scan = Scan::default();
                scan.feed(&line);
                scan
            });
            scan.feed(rest);
        }
        reader.consume(used);
        if end.is_some() {
            return Some(match scan {
                None => Line::Whole(line),
                Some(scan) => Line::Cut(line, scan.whose()),
            });
        }
    }
}
