//! Logs: `tracing` events as text or JSON on standard error, each exactly one line whatever is in it.

use std::fmt::Write as _;
use std::io;
use std::io::IsTerminal as _;
use std::io::Write;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::audit::misleading;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{level}` is not a log level or filter")]
    Level { level: String },
}

/// Starts logging, once: later calls check their level and change nothing. `level` is a level (`info`) or a filter
/// (`info,wardgate::backend=debug`).
///
/// # Errors
/// `level` is neither.
pub fn init(level: &str, json: bool) -> Result<(), Error> {
    // pingora tells at `error` of every scanner that fails a handshake; the gateway counts those. First, so that a
    // filter of the operator's own wins.
    let filter = EnvFilter::builder()
        .parse(format!("pingora_core=off,{level}"))
        .map_err(|_| Error::Level { level: level.to_owned() })?;
    // Colours are escape sequences, which is what must not be in a line: they come from nobody.
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(Lines { json, to: io::stderr });
    let started = if json {
        logs.json().flatten_event(true).finish().try_init()
    } else {
        logs.with_target(io::stderr().is_terminal()).finish().try_init()
    };
    // An error says that logging was started before.
    drop(started);
    Ok(())
}

/// Makes each event one line. `tracing` hands over an event in one piece.
struct Lines<T> {
    json: bool,
    to: T,
}

impl<'a, T: MakeWriter<'a>> MakeWriter<'a> for Lines<T> {
    type Writer = Line<T::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Line { json: self.json, to: self.to.make_writer() }
    }
}

struct Line<W> {
    json: bool,
    to: W,
}

impl<W: Write> Write for Line<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(event) {
            Ok(text) if text.strip_suffix('\n').is_some_and(|text| !text.chars().any(misleading)) => {
                self.to.write_all(event)?
            }
            Ok(text) => self.to.write_all(one_line(text, self.json).as_bytes())?,
            Err(_) => self.to.write_all(one_line(&String::from_utf8_lossy(event), self.json).as_bytes())?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn one_line(event: &str, json: bool) -> String {
    let event = event.strip_suffix('\n').unwrap_or(event);
    let mut line = String::with_capacity(event.len() + 16);
    for c in event.chars() {
        // Writing into a `String` cannot fail.
        let _ = match c {
            '\n' if !json => line.write_str("\\n"),
            '\r' if !json => line.write_str("\\r"),
            '\t' if !json => line.write_str("\\t"),
            // In JSON only inside a string, where this is how it is written: control characters are escaped already.
            c if misleading(c) && json => {
                c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(line, "\\u{unit:04x}"))
            }
            c if misleading(c) => write!(line, "\\u{{{:x}}}", u32::from(c)),
            c => line.write_char(c),
        };
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const HOSTILE: &str = "a\nINFO forged\r\t\x1b[31m\u{9b}2K\u{202e}\u{2028}\"}\u{e0041}\\";

    fn logged(json: bool) -> String {
        let memory = Memory::default();
        let made = memory.clone();
        let lines = Lines { json, to: move || made.clone() };
        let logs = tracing_subscriber::fmt().with_ansi(false).with_writer(lines);
        let emit = || tracing::info!(shown = %HOSTILE, debug = ?HOSTILE, text = HOSTILE, "said {HOSTILE}");
        if json {
            tracing::subscriber::with_default(logs.json().flatten_event(true).finish(), emit);
        } else {
            tracing::subscriber::with_default(logs.finish(), emit);
        }
        String::from_utf8(memory.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_hostile_event_is_one_clean_line_of_text() {
        let text = logged(false);
        let line = text.strip_suffix('\n').unwrap();
        assert!(!line.chars().any(misleading), "{line:?}");
        assert!(line.contains("a\\nINFO forged"));
    }

    #[test]
    fn a_hostile_event_is_one_clean_line_of_json_that_parses_back() {
        let text = logged(true);
        let line = text.strip_suffix('\n').unwrap();
        assert!(!line.chars().any(misleading), "{line:?}");
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(json["text"], HOSTILE);
        assert_eq!(json["shown"], HOSTILE);
        assert!(json["message"].as_str().unwrap().contains("forged"));
    }

    #[test]
    fn a_clean_event_is_left_as_it_is() {
        assert_eq!(one_line("größe 東京 \"x\"\n", false), "größe 東京 \"x\"\n");
    }

    #[test]
    fn init_twice_is_fine_and_a_bad_level_is_not() {
        init("warn", false).unwrap();
        init("info,wardgate=debug", true).unwrap();
        assert!(matches!(init("wardgate=loudest", false), Err(Error::Level { .. })));
    }
}
