//! Opens an address in the person's browser, where there is one. The address is printed as well, so nothing depends on it.

use std::process::Command;
use std::process::Stdio;

/// Starts a browser and does not wait for it.
pub(super) fn open(address: &str) {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let program = match set("BROWSER") {
        Some(program) => program,
        None if cfg!(target_os = "macos") => "open".into(),
        // Without a screen it would be a text browser, over our own words.
        None if set("DISPLAY").is_some() || set("WAYLAND_DISPLAY").is_some() => "xdg-open".into(),
        None => return,
    };
    let mut command = Command::new(program);
    command.arg(address).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.spawn() {
        // Waited for in the background, so that it does not stay behind as a zombie.
        Ok(mut child) => drop(std::thread::spawn(move || child.wait())),
        Err(error) => tracing::debug!(%error, "no browser could be started"),
    }
}
