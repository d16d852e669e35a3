//! `wardgate tools list`: what is in a pin file, or what is built in.

use clap::Args;
use clap::ValueEnum;
use serde_json::json;

use super::Place;
use super::finish;
use crate::backend::builtin::page;
use crate::catalog::pin::PinFile;
use crate::catalog::pin::hex;
use crate::cli::ConfigFile;
use crate::cli::print;

#[derive(Args)]
pub(super) struct List {
    /// The backend, by its name in the configuration.
    #[arg(required_unless_present = "builtin")]
    backend: Option<String>,
    #[command(flatten)]
    config: ConfigFile,
    /// Every tool of every built-in backend in place of a pin file's: what each is called, what it does and what it takes.
    #[arg(long, conflicts_with = "backend")]
    builtin: bool,
    /// How it is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Json,
    Text,
}

impl List {
    pub(super) fn run(self) -> u8 {
        let Some(backend) = self.backend else {
            return match self.format {
                Format::Json => print(&format!("{:#}", page::json())),
                Format::Text => print(page::text().trim_end()),
            };
        };
        let place = Place { backend, config: self.config };
        finish(place.find().and_then(|pinned| pinned.must_be_known()).map(|pins| {
            print(&match self.format {
                Format::Json => as_json(&pins),
                Format::Text => as_text(&pins),
            })
        }))
    }
}

fn as_json(pins: &PinFile) -> String {
    let tools = pins.tools.iter().map(|(name, pin)| {
        json!({
            "name": name,
            "backend": pins.backend,
            "effect": pin.effect().as_str(),
            "why": pin.why,
            "idempotent": pin.idempotent,
            "approved": pin.approved,
            "approved_by": pin.approved_by,
            "approved_at": pin.approved_at,
            "arguments": if pin.unchecked { "unchecked" } else { "validated" },
            "sha256": hex(pin.definition.sha256()),
        })
    });
    format!("{:#}", json!({ "tools": tools.collect::<Vec<_>>() }))
}

fn as_text(pins: &PinFile) -> String {
    let width = pins.tools.keys().map(String::len).max().unwrap_or_default();
    let lines = pins.tools.iter().map(|(name, pin)| {
        let state = if pin.approved { "approved" } else { "NOT APPROVED" };
        let mut line = format!("{name:width$}  {:14}  {state}", pin.effect().as_str());
        if pin.effect() > pin.effect {
            line.push_str(&format!("  (the file says {}; a hint of the server raises it)", pin.effect.as_str()));
        }
        if pin.unchecked {
            line.push_str("  arguments unchecked");
        }
        line
    });
    lines.collect::<Vec<_>>().join("\n")
}
