//! Standard input and output as channels of lines: bounded lines in, whole lines out, each flushed.

use std::io::BufRead;
use std::io::Write;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

/// A longer line is no message anybody should answer.
pub(super) const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What is read ahead, and what waits to be written: beyond it, whoever brings more has to wait.
const LINES_MAX: usize = 64;

#[derive(Debug, Eq, PartialEq)]
pub(super) enum Read {
    Line(Bytes),
    /// It was skipped to its end.
    TooLong,
}

/// Lines of standard input, until it ends. A thread reads: nothing else can be interrupted by nobody writing.
pub(super) fn input() -> mpsc::Receiver<Read> {
    let (lines, received) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        while let Ok(Some(line)) = next(&mut input, LINE_BYTES_MAX) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    received
}

/// What is to be written, `None` for the end of it; and word of that end, or that nobody reads any more.
pub(super) fn output() -> (mpsc::Sender<Option<Bytes>>, oneshot::Receiver<()>) {
    let (lines, mut received) = mpsc::channel::<Option<Bytes>>(LINES_MAX);
    let (ended, end) = oneshot::channel();
    std::thread::spawn(move || {
        let mut output = std::io::stdout().lock();
        while let Some(Some(line)) = received.blocking_recv() {
            let written = output.write_all(&line).and_then(|()| output.write_all(b"\n")).and_then(|()| output.flush());
            if written.is_err() {
                break;
            }
        }
        let _ = ended.send(());
    });
    (lines, end)
}

/// The next line that is not blank; `None` at the end.
fn next(input: &mut impl BufRead, bytes_max: usize) -> std::io::Result<Option<Read>> {
    loop {
        let (mut line, mut skipping, mut any) = (Vec::new(), false, false);
        loop {
            let chunk = match input.fill_buf() {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                chunk => chunk?,
            };
            if chunk.is_empty() {
                break;
            }
            any = true;
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(chunk.len());
            if !skipping && line.len() + taken <= bytes_max {
                line.extend_from_slice(chunk.get(..taken).unwrap_or_default());
            } else {
                skipping = true;
                line = Vec::new();
            }
            input.consume(end.map_or(taken, |end| end + 1));
            if end.is_some() {
                break;
            }
        }
        if skipping {
            return Ok(Some(Read::TooLong));
        }
        if !line.trim_ascii().is_empty() {
            return Ok(Some(Read::Line(line.into())));
        }
        if !any {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, bytes_max: usize) -> Vec<Read> {
        let mut input = std::io::BufReader::with_capacity(3, text.as_bytes());
        std::iter::from_fn(|| next(&mut input, bytes_max).unwrap()).collect()
    }

    #[test]
    fn lines_are_bounded_blank_ones_skipped_and_the_last_needs_no_end() {
        let line = |text: &str| Read::Line(Bytes::from(text.to_owned()));
        assert_eq!(lines("ab\n\n  \r\ncd", 8), [line("ab"), line("cd")]);
        assert_eq!(lines("12345678\n123456789\nx\n", 8), [line("12345678"), Read::TooLong, line("x")]);
        assert_eq!(lines("123456789", 8), [Read::TooLong]);
        assert_eq!(lines("", 8), []);
    }
}
