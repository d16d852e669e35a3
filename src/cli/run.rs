//! `wardgate run`: the gateway from a configuration file, until SIGTERM; SIGHUP and file changes reload.

use clap::Args;

use super::ConfigFile;
use super::complain;
use crate::app;
use crate::config;

#[derive(Args)]
pub(super) struct Run {
    #[command(flatten)]
    config: ConfigFile,
}

impl Run {
    pub(super) async fn run(self) -> u8 {
        let path = self.config.file;
        let load = move || config::load(&path, config::Options::default());
        let loaded = match load() {
            Ok(loaded) => loaded,
            Err(errors) => return complain(&format!("the configuration is not valid:\n{errors}")),
        };
        match app::run(loaded, Some(Box::new(load))).await {
            Ok(()) => super::OK,
            Err(error) => complain(&error.to_string()),
        }
    }
}
