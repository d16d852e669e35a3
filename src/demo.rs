//! `wardgate demo`: an identity provider, an MCP server and the gateway on loopback, and a short tour of all three.

pub mod issuer;
mod loopback;
mod ports;
mod stage;
pub mod tour;
pub mod workbench;

use std::io::IsTerminal;
use std::io::Write;

use stage::Stage;

/// How the demo is played.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// End after the tour instead of staying up until Ctrl-C.
    pub tour_only: bool,
}

/// Every step of the tour had the expected outcome (or the demo was ended by its user).
const OK: u8 = 0;
const FAILED: u8 = 1;
/// Ctrl-C before the tour was over.
const INTERRUPTED: u8 = 130;

/// Sets the stage, plays the tour, and (unless told otherwise) stays up until Ctrl-C. Gives the exit code.
pub async fn run(options: Options) -> u8 {
    crate::server::install_crypto();
    let voice = Voice::of_stdout();
    let stage = match Stage::set(&voice).await {
        Ok(stage) => stage,
        Err(error) => {
            complain(&format!("the demo cannot start: {error}"));
            return FAILED;
        }
    };
    if !options.tour_only {
        voice.say(&stage.introduction());
    }
    let code = perform(&stage, &voice, options).await;
    stage.strike().await;
    code
}

async fn perform(stage: &Stage, voice: &Voice, options: Options) -> u8 {
    let failed = tokio::select! {
        failed = tour::play(&stage.scene, voice) => failed,
        () = asked_to_end() => return INTERRUPTED,
    };
    for failure in &failed {
        complain(&format!("step {} ({}): {}", failure.number, failure.title, failure.surprise));
    }
    if !options.tour_only {
        voice.say("\nEverything stays up for your own client. Ctrl-C ends it and removes all files of the demo.");
        asked_to_end().await;
    }
    if failed.is_empty() { OK } else { FAILED }
}

/// Waits for Ctrl-C or SIGTERM.
async fn asked_to_end() {
    use tokio::signal::unix::SignalKind;
    let mut terminate = match tokio::signal::unix::signal(SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => {
            tracing::warn!(%error, "SIGTERM cannot be watched");
            return std::future::pending().await;
        }
    };
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => if let Err(error) = interrupted {
            tracing::warn!(%error, "Ctrl-C cannot be watched");
        },
        _ = terminate.recv() => {}
    }
}

/// Writes to standard output: plain, with a little weight on headlines where a person is looking.
pub struct Voice {
    decorated: bool,
}

impl Voice {
    fn of_stdout() -> Voice {
        // https://no-color.org: any non-empty value means no codes.
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Voice { decorated: std::io::stdout().is_terminal() && !unwanted }
    }

    /// A closed pipe is no reason to stop: the exit code still says how the tour went.
    fn say(&self, text: &str) {
        drop(writeln!(std::io::stdout(), "{text}"));
    }

    fn headline(&self, text: &str) {
        let line = format!("-- {text} {}", "-".repeat(72_usize.saturating_sub(text.chars().count())));
        if self.decorated { self.say(&format!("\n\u{1b}[1m{line}\u{1b}[0m")) } else { self.say(&format!("\n{line}")) }
    }
}

fn complain(text: &str) {
    drop(writeln!(std::io::stderr(), "wardgate: {text}"));
}
