//! `wardgate tools list --builtin`: every tool of every built-in backend, from its declaration.

use clap::Args;
use clap::Subcommand;
use clap::ValueEnum;

use super::print;
use crate::backend::builtin::page;

#[derive(Args)]
pub(super) struct Tools {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// The tools that are built in: what each is called, what it does and what it takes. Needs no server.
    List(List),
}

#[derive(Args)]
struct List {
    /// Those of the built-in backends.
    #[arg(long, required = true)]
    builtin: bool,
    /// For people, or for programs.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Json,
    Text,
}

impl Tools {
    pub(super) fn run(self) -> u8 {
        let Verb::List(List { builtin: _, format }) = self.verb;
        match format {
            Format::Json => print(&format!("{:#}", page::json())),
            Format::Text => print(page::text().trim_end()),
        }
    }
}
