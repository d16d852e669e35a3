//! `wardgate tools approve`: somebody read what is in the pin file and wants it offered.

use std::time::SystemTime;

use clap::Args;

use super::Place;
use super::finish;
use crate::audit;
use crate::catalog::pin::PinFile;
use crate::catalog::pins;
use crate::cli::OK;
use crate::cli::print;

#[derive(Args)]
pub(super) struct Approve {
    #[command(flatten)]
    place: Place,
    /// The tools, by name.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    tools: Vec<String>,
    /// All tools of the file.
    #[arg(long)]
    all: bool,
    /// Who approves; written into the file.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

impl Approve {
    pub(super) fn run(self) -> u8 {
        finish(self.approve())
    }

    fn approve(self) -> Result<u8, String> {
        let pinned = self.place.find()?;
        let mut pins = pinned.must_be_known()?;
        let wanted = if self.all { pins.tools.keys().cloned().collect() } else { self.tools };
        let today: String = audit::timestamp(SystemTime::now()).chars().take(10).collect();
        let approved = approve(&mut pins, &wanted, self.by.as_deref(), &today)?;
        pinned.write(&pins)?;
        for name in &approved {
            let effect = pins.tools.get(name).map_or("", |pin| pin.effect().as_str());
            print(&format!("approved: {name} ({effect})"));
        }
        print(&format!(
            "{}: {} of {} tools are approved",
            pinned.file.display(),
            pins.tools.values().filter(|pin| pin.approved).count(),
            pins.tools.len()
        ));
        Ok(OK)
    }
}

/// Approves what is not approved yet, all or nothing; gives the names.
fn approve(pins: &mut PinFile, wanted: &[String], by: Option<&str>, today: &str) -> Result<Vec<String>, String> {
    let mut problems = Vec::new();
    let mut approved = Vec::new();
    for name in wanted {
        let Some(pin) = pins.tools.get_mut(name) else {
            problems.push(format!("there is no tool `{name}` in the pin file"));
            continue;
        };
        let schema = pin.definition.member("inputSchema").filter(|_| !pin.unchecked);
        if let Some(Err(what)) = schema.map(pins::usable) {
            problems.push(format!("tool `{name}` cannot be approved: {what}"));
        } else if !pin.approved {
            pin.approved = true;
            pin.approved_by = by.map(str::to_owned);
            pin.approved_at = Some(today.to_owned());
            approved.push(name.clone());
        }
    }
    if problems.is_empty() { Ok(approved) } else { Err(problems.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Effects;
    use crate::catalog::pin::Definition;

    #[test]
    fn approving_is_all_or_nothing_and_keeps_older_approvals() {
        let mut pins = PinFile::new("b");
        let wires = [r#"{"name":"a"}"#, r#"{"name":"b","inputSchema":{"$ref":"http://x/"}}"#, r#"{"name":"c"}"#];
        let read = |wire: &&str| Definition::read(wire.as_bytes()).expect("a definition");
        pins.repin(wires.iter().map(read).collect(), &Effects::default());
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(approve(&mut pins, &names(&["a"]), Some("me"), "2026-11-21"), Ok(names(&["a"])));
        let problem = approve(&mut pins.clone(), &names(&["a", "b", "none"]), None, "").expect_err("a problem");
        assert!(problem.contains("`b` cannot be approved") && problem.contains("no tool `none`"), "{problem}");
        assert_eq!(approve(&mut pins, &names(&["a", "c"]), Some("you"), "2027-01-01"), Ok(names(&["c"])));
        let by = |name: &str| pins.tools.get(name).and_then(|pin| pin.approved_by.clone());
        assert_eq!((by("a").as_deref(), by("b"), by("c").as_deref()), (Some("me"), None, Some("you")));
    }
}
