//! `wardgate tools pin`: a backend's tools, as they are now, into its pin file.

use std::path::PathBuf;

use clap::Args;

use super::Place;
use super::finish;
use crate::catalog::pin::PinFile;
use crate::catalog::pins;
use crate::cli::FAILED;
use crate::cli::OK;
use crate::cli::complain;
use crate::cli::print;

#[derive(Args)]
pub(super) struct Pin {
    #[command(flatten)]
    place: Place,
    /// Take the tools from a saved answer to `tools/list` and ask nobody.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

impl Pin {
    pub(super) async fn run(self) -> u8 {
        finish(self.pin().await)
    }

    async fn pin(self) -> Result<u8, String> {
        let pinned = self.place.find()?;
        let known = pinned.known()?;
        let offered = pinned.offered(self.from.as_deref()).await?;
        let mut pins = known.unwrap_or_else(|| PinFile::new(&pinned.config.name));
        let told = pins.repin(offered, &pinned.config.effects);
        pinned.write(&pins)?;
        for (what, names) in [("new", &told.added), ("changed", &told.changed), ("gone", &told.gone)] {
            for name in names {
                print(&format!("{what}: {name}"));
            }
        }
        let open = pins.tools.values().filter(|pin| !pin.approved).count();
        print(&format!("{}: {} tools, {open} not approved", pinned.file.display(), pins.tools.len()));
        if open > 0 {
            print(&format!("review the file, then: wardgate tools approve {} …", pinned.config.name));
        }
        let mut code = OK;
        for (name, pin) in pins.tools.iter().filter(|(_, pin)| !pin.unchecked) {
            let schema = pin.definition.member("inputSchema");
            if let Some(Err(what)) = schema.map(pins::usable) {
                complain(&format!("tool `{name}` cannot be approved: {what}"));
                code = FAILED;
            }
        }
        Ok(code)
    }
}
