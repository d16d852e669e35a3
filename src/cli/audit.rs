//! `wardgate audit verify`: proves that an audit log is whole, or says where it is not.

use std::path::PathBuf;

use clap::Args;
use clap::Subcommand;

use super::complain;
use super::print;
use crate::audit;

#[derive(Args)]
pub(super) struct Audit {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Check the hash chain of an audit log: modified, deleted, reordered and inserted records are found.
    Verify(Verify),
}

#[derive(Args)]
struct Verify {
    /// The audit log.
    file: PathBuf,
    /// A hash that was noted once (kept elsewhere): it must be in the log, so a log whose end was cut off is found.
    #[arg(long, value_name = "HASH")]
    expect_head: Option<String>,
    /// The last hash of the file before a rotation: the first record must follow it.
    #[arg(long, value_name = "HASH")]
    follows: Option<String>,
}

impl Audit {
    pub(super) fn run(self) -> u8 {
        let Verb::Verify(verify) = self.verb;
        match audit::verify(
            &verify.file,
            &audit::Expect { head: verify.expect_head, seq: None, follows: verify.follows },
        ) {
            Ok(summary) => print(&summary.to_string()),
            Err(broken) => complain(&format!("{}: {broken}", verify.file.display())),
        }
    }
}
