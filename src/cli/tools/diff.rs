//! `wardgate tools diff`: what a backend lists now against its pin file.

use std::path::PathBuf;

use clap::Args;

use super::Place;
use super::finish;
use crate::cli::FAILED;
use crate::cli::print;

#[derive(Args)]
pub(super) struct Diff {
    #[command(flatten)]
    place: Place,
    /// Take the tools from a saved answer to `tools/list` and ask nobody.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

impl Diff {
    pub(super) async fn run(self) -> u8 {
        finish(self.diff().await)
    }

    async fn diff(self) -> Result<u8, String> {
        let pinned = self.place.find()?;
        let known = pinned.must_be_known()?;
        let changes = known.changes(&pinned.offered(self.from.as_deref()).await?);
        if changes.is_empty() {
            return Ok(print(&format!("{} tools, all as they are in {}", known.tools.len(), pinned.file.display())));
        }
        for change in &changes {
            print(&change.to_string());
        }
        Ok(FAILED)
    }
}
