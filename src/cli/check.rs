//! `wardgate check`: every error of a configuration file at once, or the effective configuration.

use clap::Args;

use super::ConfigFile;
use super::complain;
use super::print;
use crate::app;
use crate::config;

#[derive(Args)]
pub(super) struct Check {
    #[command(flatten)]
    config: ConfigFile,
    /// Say only what is wrong.
    #[arg(long, short)]
    quiet: bool,
}

impl Check {
    pub(super) fn run(self) -> u8 {
        let loaded = match config::load(&self.config.file, config::Options::default()) {
            Ok(loaded) => loaded,
            Err(errors) => return complain(&format!("the configuration is not valid:\n{errors}")),
        };
        for warning in &loaded.warnings {
            complain(&format!("warning: {warning}"));
        }
        match app::try_rooms(&loaded) {
            Ok(notes) => {
                for note in notes {
                    complain(&format!("note: {note}"));
                }
            }
            Err(error) => return complain(&format!("the configuration is not valid:\n{error}")),
        }
        if self.quiet { super::OK } else { print(&config::show(&loaded)) }
    }
}
