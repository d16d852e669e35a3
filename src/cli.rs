//! The command line: `run`, `front`, `stdio`, `login`, `logout`, `whoami`, `demo`, `check`, `audit verify`, `api-key`, `schema`.

mod audit;
mod builtin;
mod check;
mod front;
mod login;
mod run;
mod stdio;
mod whoami;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::Parser;
use clap::Subcommand;

use crate::identity::api_key;
use crate::identity::api_key::Fields;

/// The command did what it was asked for.
pub const OK: u8 = 0;
/// The command ran and the answer is no: a bad configuration, a broken audit log, a failed tour.
pub const FAILED: u8 = 1;

/// A reverse-proxy gateway and sidecar for the Model Context Protocol (MCP).
#[derive(Parser)]
#[command(name = "wardgate", version, about, max_term_width = 100)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the gateway from a configuration file.
    Run(run::Run),
    /// Put one MCP server behind the gateway, from one line: a URL, or `-- COMMAND ARGS…` for a stdio server.
    Front(front::Front),
    /// Let a client that only speaks stdio use a gateway, or any MCP server on HTTP(S): it starts this command.
    Stdio(stdio::Stdio),
    /// Log in for a gateway's route, or for any MCP server that wants it; `wardgate stdio URL` uses the login.
    Login(login::Login),
    /// End a login: forget its tokens, and revoke them where that is possible.
    Logout(login::Logout),
    /// Who is a token to a configuration, and why not? With a URL: what does the gateway say to the kept login?
    Whoami(whoami::Whoami),
    /// See it work: an identity provider, an MCP server and the gateway on loopback, and a short tour.
    #[cfg(feature = "demo")]
    Demo(Demo),
    /// Check a configuration file: all errors at once; prints the effective configuration with secrets masked.
    Check(check::Check),
    /// Which tools there are.
    Tools(builtin::Tools),
    /// Look into audit logs.
    Audit(audit::Audit),
    /// Make an API key: prints the key once, and the line for the keys file.
    ApiKey(ApiKey),
    /// Print the JSON Schema of the configuration file.
    Schema,
}

#[cfg(feature = "demo")]
#[derive(Args)]
struct Demo {
    /// End after the tour; exit code 0 only if every step had the expected outcome.
    #[arg(long)]
    tour: bool,
}

#[derive(Args)]
struct ApiKey {
    /// Who gets the key: the principal's subject.
    name: String,
    /// Scope of the key; repeat for several.
    #[arg(long = "scope")]
    scopes: Vec<String>,
    /// Role of the key; repeat for several.
    #[arg(long = "role")]
    roles: Vec<String>,
    /// Group of the key; repeat for several.
    #[arg(long = "group")]
    groups: Vec<String>,
    /// The tenant that its holder belongs to.
    #[arg(long)]
    tenant: Option<String>,
    /// It is good from this moment on: YYYY-MM-DD or YYYY-MM-DDThh:mm:ssZ.
    #[arg(long)]
    not_before: Option<String>,
    /// It ends at this moment: YYYY-MM-DD or YYYY-MM-DDThh:mm:ssZ.
    #[arg(long)]
    expires: Option<String>,
}

/// Where the configuration stands; shared by the verbs that read it.
#[derive(Args)]
struct ConfigFile {
    /// The configuration file (YAML).
    #[arg(short = 'c', long = "config", default_value = "/etc/wardgate/wardgate.yaml")]
    file: PathBuf,
}

pub fn main() -> ExitCode {
    crate::server::install_crypto();
    let command = Command::parse();
    let code = match command.verb {
        Verb::Run(verb) => block_on(verb.run()),
        Verb::Front(verb) => block_on(verb.run()),
        Verb::Stdio(verb) => block_on(verb.run()),
        Verb::Login(verb) => block_on(verb.run()),
        Verb::Logout(verb) => block_on(verb.run()),
        Verb::Whoami(verb) => block_on(verb.run()),
        #[cfg(feature = "demo")]
        Verb::Demo(verb) => block_on(crate::demo::run(crate::demo::Options { tour_only: verb.tour })),
        Verb::Check(verb) => verb.run(),
        Verb::Tools(verb) => verb.run(),
        Verb::Audit(verb) => verb.run(),
        Verb::ApiKey(verb) => verb.run(),
        Verb::Schema => print(&format!("{:#}", crate::config::schema())),
    };
    ExitCode::from(code)
}

fn block_on(work: impl Future<Output = u8>) -> u8 {
    match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("wardgate").build() {
        Ok(runtime) => {
            let code = runtime.block_on(work);
            // Nothing of value runs any more: do not wait for a stray blocking task.
            runtime.shutdown_background();
            code
        }
        Err(error) => complain(&format!("cannot start the runtime: {error}")),
    }
}

impl ApiKey {
    fn run(self) -> u8 {
        let fields = Fields {
            scopes: self.scopes,
            roles: self.roles,
            groups: self.groups,
            tenant: self.tenant,
            not_before: self.not_before,
            expires: self.expires,
        };
        match api_key::generate(&self.name, &fields) {
            Ok((key, line)) => print(&format!("key (shown once): {}\nline for the keys file: {line}", key.expose())),
            Err(error) => complain(&error.to_string()),
        }
    }
}

/// Writes to standard output; a closed pipe is not an error worth a panic.
fn print(text: &str) -> u8 {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => OK,
        Err(_) => FAILED,
    }
}

/// Writes to standard error and fails.
fn complain(text: &str) -> u8 {
    drop(writeln!(std::io::stderr(), "wardgate: {text}"));
    FAILED
}
