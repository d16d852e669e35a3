//! `wardgate login URL`: a person's token for a route, by the browser or by a code; kept for `wardgate stdio`.

mod ask;
mod browser;
mod discovery;
mod flow;
mod redirect;
mod store;
mod token;
mod web;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use url::Url;

use super::complain;
use super::print;
pub(super) use ask::ask;
pub(super) use ask::shown;
use flow::Client;
pub(super) use store::Store;
pub(super) use token::Login as Stored;
pub(super) use token::Renewing;
pub(super) use token::claims;
pub(super) use token::header;
pub(super) use web::Web;

/// From the printed address to the redirect.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

#[derive(Args)]
pub(super) struct Login {
    /// URL of the gateway's route, or of any MCP server that wants a login: `https://mcp.example.com/mcp`.
    url: Url,
    /// Log in on another device: a code is shown here, and typed in there.
    #[arg(long)]
    device: bool,
    /// Scope to ask for, in place of those that the server names; repeat for several.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Client id that is registered for this purpose; without one, the authorization server is asked to register this client.
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// Where the browser comes back to, as it is registered; the port is ours to choose.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1/callback", conflicts_with = "device")]
    redirect_uri: Url,
    /// Which of the server's authorization servers, if it names several; default: the first.
    #[arg(long, value_name = "ISSUER")]
    issuer: Option<String>,
    /// Do not name the server to the provider (RFC 8707 `resource`), for those that refuse it: Entra ID, where the Application
    /// ID URI is not the URL (AADSTS9010010).
    #[arg(long)]
    no_resource: bool,
    /// Print the address, and start no browser.
    #[arg(long)]
    no_browser: bool,
    /// Write the access token to standard output, and keep nothing.
    #[arg(long)]
    print: bool,
    /// PEM file of the authorities to trust instead of the system's.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct Logout {
    /// The URL of the login.
    url: Url,
    /// PEM file of the authorities to trust instead of the system's.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl Login {
    pub(super) async fn run(self) -> u8 {
        match self.login().await {
            Ok(code) => code,
            Err(problem) => complain(&problem),
        }
    }

    async fn login(&self) -> Result<u8, String> {
        super::stdio::check_url(&self.url)?;
        let store = if self.print { None } else { Some(Store::open()?) };
        let web = Web::new(&self.url, self.ca.as_deref()).await?;
        let mut found = discovery::discover(&web, &self.url, self.issuer.as_deref()).await?;
        if self.no_resource {
            found.resource = None;
        }
        let scopes = found.scopes_to_ask(&self.scopes);
        let mut client = Client { id: self.client_id.clone(), secret: None };
        let granted = if self.device {
            client.register_if_new(&web, &found.server, None).await?;
            flow::device(&web, &found, &client, &scopes, &tell).await?
        } else {
            let (listening, redirect) = redirect::listen(&self.redirect_uri).await?;
            client.register_if_new(&web, &found.server, Some(&redirect)).await?;
            let begun = flow::begin(&found, &client, &scopes, &redirect)?;
            tell(&format!("Open this address in a browser to log in:\n\n  {}\n", begun.address));
            if !self.no_browser {
                browser::open(begun.address.as_str());
            }
            let expected = redirect::Expected {
                path: self.redirect_uri.path(),
                state: &begun.state,
                issuer: &found.server.issuer,
                names_itself: found.server.names_itself,
            };
            let code = tokio::time::timeout(PATIENCE, redirect::wait(listening, &expected)).await;
            let code = code.map_err(|_| format!("nobody logged in within {} minutes", PATIENCE.as_secs() / 60))??;
            flow::finish(&web, &found, &client, begun, code).await?
        };
        if self.print {
            return Ok(print(granted.access_token.expose()));
        }
        let login = Stored::new(&self.url, &found, client, granted)?;
        tell(&format!("Logged in at {}{}.", login.issuer, login.whom()));
        if let Some(store) = store {
            store.write(&login).await?;
            tell(&format!("`wardgate stdio {0}` uses this login; `wardgate logout {0}` ends it.", self.url));
        }
        Ok(super::OK)
    }
}

impl Logout {
    pub(super) async fn run(self) -> u8 {
        let outcome = async {
            let store = Store::open()?;
            let login = store.read(&self.url).await?;
            let login = login.ok_or_else(|| format!("there is no login for {}", self.url))?;
            // First of all it is gone here; the provider may be away.
            store.remove(&self.url).await?;
            let web = Web::new(&self.url, self.ca.as_deref()).await?;
            Ok::<_, String>(login.revoke(&web).await)
        };
        match outcome.await {
            Err(problem) => complain(&problem),
            Ok(Ok(true)) => print("logged out, and the tokens are revoked"),
            Ok(Ok(false)) => print("logged out; the provider cannot revoke tokens, they end when they expire"),
            Ok(Err(problem)) => print(&format!("logged out here; the tokens could not be revoked: {problem}")),
        }
    }
}

/// For the person: standard output is for what a script wants.
fn tell(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}
