//! `wardgate policy`: tests of policies, why a decision is what it is, who may do what, and what a change would change.

mod cases;
mod diff;
mod explain;
mod matrix;
mod needs;
#[cfg(feature = "prove")]
mod prove;
mod replay;
mod rulebook;
mod table;
mod test;
#[cfg(test)]
mod tests;

use clap::Args;
use clap::Subcommand;
use clap::ValueEnum;

use super::complain;
use super::print;

#[derive(Args)]
pub(super) struct Policy {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "one of them is made, once")]
enum Verb {
    /// Run table tests of policies: all failures at once; exit code 1 if there is one.
    Test(test::Test),
    /// Say why one caller may or may not make one call, and what would be needed.
    Explain(explain::Explain),
    /// Print who may do what.
    Matrix(matrix::Matrix),
    /// Compare two configurations or sets of policies: whose rights change; exit code 1 if any do.
    Diff(diff::Diff),
    /// Ask a solver (cvc5) whether any request could destroy or write: exit code 0 no, 1 yes and how, 2 not decided.
    #[cfg(feature = "prove")]
    Prove(prove::Prove),
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

impl Policy {
    pub(super) async fn run(self) -> u8 {
        let answer = match self.verb {
            Verb::Test(verb) => verb.run(),
            Verb::Explain(verb) => verb.run().await,
            Verb::Matrix(verb) => verb.run(),
            Verb::Diff(verb) => verb.run(),
            #[cfg(feature = "prove")]
            Verb::Prove(verb) => verb.run().await,
        };
        match answer {
            Ok((code, text)) => match print(text.trim_end()) {
                super::OK => code,
                failed => failed,
            },
            Err(problem) => complain(&problem),
        }
    }
}

/// The exit code and what goes to standard output, or why there is no answer.
type Answer = Result<(u8, String), String>;

/// One line without what could mislead a terminal.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}
