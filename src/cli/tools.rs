//! `wardgate tools`: which tools a backend has, what they do, and which of them somebody approved.

mod approve;
mod diff;
mod list;
mod pin;

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use clap::Args;
use clap::Subcommand;

use super::ConfigFile;
use super::complain;
use crate::backend::remote;
use crate::catalog::pin::Definition;
use crate::catalog::pin::Fault;
use crate::catalog::pin::PinFile;
use crate::config;
use crate::credentials::Source;
use crate::mcp::list::ListKind;
use crate::mcp::list::Page;

/// A program may have to be fetched before it starts, the first time.
const PATIENCE: Duration = Duration::from_secs(150);

const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;

#[derive(Args)]
pub(super) struct Tools {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Ask a backend for its tools and write them into its pin file. What is new or changed there is not approved.
    Pin(pin::Pin),
    /// The tools of a pin file: what they do, and whether they are approved.
    List(list::List),
    /// What a backend's tools have become since they were pinned; exit code 1 if anything.
    Diff(diff::Diff),
    /// Approve tools as they are in the pin file. A running gateway takes it over at once.
    Approve(approve::Approve),
}

impl Tools {
    pub(super) async fn run(self) -> u8 {
        match self.verb {
            Verb::Pin(verb) => verb.run().await,
            Verb::List(verb) => verb.run(),
            Verb::Diff(verb) => verb.run().await,
            Verb::Approve(verb) => verb.run(),
        }
    }
}

/// One backend of a configuration, and where its pins are.
#[derive(Args)]
struct Place {
    /// The backend, by its name in the configuration.
    backend: String,
    #[command(flatten)]
    config: ConfigFile,
}

/// A backend whose tools are pinned.
struct Pinned {
    config: remote::Config,
    file: PathBuf,
}

impl Place {
    fn find(&self) -> Result<Pinned, String> {
        let options = config::Options { read_pins: false, ..config::Options::default() };
        let loaded = config::load(&self.config.file, options)
            .map_err(|errors| format!("the configuration is not valid:\n{errors}"))?;
        let found = loaded.config.backends.into_iter().find(|backend| *backend.name == *self.backend);
        let Some(config) = found else { return Err(format!("there is no backend `{}`", self.backend)) };
        match config.pins.as_ref().map(|pinning| pinning.file.clone()) {
            Some(file) => Ok(Pinned { config, file }),
            None => Err(format!(
                "backend `{0}` has no pin file: say where it is to be, `backends: {{ {0}: {{ pins: policies/{0}.tools.yaml }} }}`",
                self.backend
            )),
        }
    }
}

impl Pinned {
    /// The pin file; `None` where there is none yet.
    fn known(&self) -> Result<Option<PinFile>, String> {
        if !self.file.exists() {
            return Ok(None);
        }
        let known = PinFile::read(&self.file).map_err(|faults| self.told(&faults))?;
        if *known.backend == *self.config.name {
            Ok(Some(known))
        } else {
            Err(format!("`{}` is of another backend", self.file.display()))
        }
    }

    fn must_be_known(&self) -> Result<PinFile, String> {
        self.known()?.ok_or_else(|| {
            format!("there is no `{}` yet: `wardgate tools pin {}` writes it", self.file.display(), self.config.name)
        })
    }

    fn write(&self, pins: &PinFile) -> Result<(), String> {
        pins.write(&self.file).map_err(|error| format!("`{}` cannot be written: {error}", self.file.display()))
    }

    fn told(&self, faults: &[Fault]) -> String {
        let lines: Vec<String> = faults.iter().map(|fault| format!("{}: {fault}", self.file.display())).collect();
        lines.join("\n")
    }

    /// What the backend lists now, from itself or from an answer that somebody saved. Entries that cannot be pinned are
    /// complained about and left out: they are never offered.
    async fn offered(&self, from: Option<&Path>) -> Result<Vec<Definition>, String> {
        let wires = match from {
            Some(file) => saved(file)?,
            None => self.asked().await?,
        };
        let mut offered = Vec::with_capacity(wires.len());
        for (name, wire) in wires {
            match Definition::read(&wire) {
                Ok(definition) => offered.push(definition),
                Err(unfit) => {
                    complain(&format!("tool `{name}` is left out: {unfit}"));
                }
            }
        }
        Ok(offered)
    }

    async fn asked(&self) -> Result<Vec<(String, Bytes)>, String> {
        let deadline = Instant::now() + PATIENCE;
        let source = Source::new(&self.config.name, &self.config.credential).map_err(|error| error.to_string())?;
        let own = source.own(deadline).await.map_err(|error| error.to_string())?;
        let Some(own) = own else {
            return Err(format!(
                "backend `{}` answers callers only, and the gateway has no credential of its own for it: save a caller's answer to `tools/list` and pass it with `--from FILE`",
                self.config.name
            ));
        };
        // Without pins: everything that could be offered is asked for.
        let config = remote::Config { pins: None, ..self.config.clone() };
        let backend = remote::new(config).map_err(|error| error.to_string())?;
        backend.start();
        let catalog = backend.refresh(own, deadline).await;
        backend.stop().await;
        let catalog = catalog.map_err(|error| error.to_string())?;
        Ok(catalog.tools.iter().map(|(name, decl)| (name.to_string(), decl.wire.clone())).collect())
    }
}

/// The tools of an answer to `tools/list`, with or without its JSON-RPC envelope.
fn saved(file: &Path) -> Result<Vec<(String, Bytes)>, String> {
    let shown = file.display();
    let unreadable = |error: std::io::Error| format!("`{shown}` cannot be read: {error}");
    if std::fs::metadata(file).map_err(unreadable)?.len() > ANSWER_BYTES_MAX {
        return Err(format!("`{shown}` is larger than {ANSWER_BYTES_MAX} bytes"));
    }
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    let page = |text: String| Page::parse(ListKind::Tools, &Bytes::from(text));
    let page = page(text.clone()).or_else(|_| page(format!("{{\"result\":{text}}}")));
    let page = page.map_err(|what| format!("`{shown}` is no answer to tools/list: {what}"))?;
    if page.next_cursor.is_some() {
        complain("warning: the answer has a `nextCursor`: it is not the whole list");
    }
    Ok(page.entries.into_iter().filter(|entry| entry.valid).map(|entry| (entry.name, entry.wire)).collect())
}

/// The outcome of a command that says what went wrong in words.
fn finish(outcome: Result<u8, String>) -> u8 {
    outcome.unwrap_or_else(|problem| complain(&problem))
}
