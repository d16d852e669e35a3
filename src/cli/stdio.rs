//! `wardgate stdio URL`: for clients that only speak stdio, an MCP server on HTTP(S) as a program: messages of standard
//! input go to the URL, what it answers goes to standard output, and nothing else does. Logs go to standard error.

mod answer;
mod failure;
mod legacy;
mod line;
mod pipe;
mod relay;
mod remote;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use http::HeaderName;
use http::HeaderValue;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::task::JoinSet;
use url::Url;

use super::complain;
use super::login;
use crate::telemetry;
pub(super) use failure::parameter_of;
use relay::Relay;
use remote::Bearer;
use remote::Remote;
use remote::Tls;
pub(super) use remote::token;

/// How long requests that are running may go on when standard input has ended, or after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(super) struct Stdio {
    /// URL of the gateway's route, or of any MCP server (streamable HTTP): `https://mcp.example.com/mcp`.
    url: Url,
    /// File with the bearer token (default: the login of `wardgate login`, if there is one); read anew for each request, so that something else may renew it.
    #[arg(long, value_name = "FILE", conflicts_with = "bearer_env")]
    bearer_file: Option<PathBuf>,
    /// Environment variable with the bearer token (or API key).
    #[arg(long, value_name = "NAME")]
    bearer_env: Option<String>,
    /// Header to send along, `Name: value`; repeat for several. A secret is referred to: `Name: file:/path` or `Name: env:NAME`.
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// PEM file of the authorities to trust instead of the system's.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// PEM file of a client certificate and its chain.
    #[arg(long, value_name = "FILE", requires = "client_key")]
    client_cert: Option<PathBuf>,
    /// PEM file of the client certificate's private key.
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,
    /// What is logged on standard error: `error`, `warn`, `info`, `debug`.
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log: String,
}

impl Stdio {
    pub(super) async fn run(self) -> u8 {
        if let Err(error) = telemetry::logs::init(&self.log, false) {
            return complain(&error.to_string());
        }
        let remote = match self.remote().await {
            Ok(remote) => remote,
            Err(problem) => return complain(&problem),
        };
        match serve(remote).await {
            Ok(()) => super::OK,
            Err(error) => complain(&format!("cannot listen for signals: {error}")),
        }
    }

    async fn remote(&self) -> Result<Remote, String> {
        check_url(&self.url)?;
        let bearer = match (&self.bearer_file, &self.bearer_env) {
            (Some(path), _) => {
                // What is wrong with it is told now, not with the first request.
                remote::token_of(path).await?;
                Some(Bearer::File(path.clone()))
            }
            (None, Some(name)) => {
                let text = variable("--bearer-env", name)?;
                let token = token(&text);
                let token = token.ok_or_else(|| format!("--bearer-env `{name}` holds no token: visible characters"))?;
                Some(Bearer::Fixed(token))
            }
            (None, None) if self.has_other_credential() => None,
            (None, None) => self.login().await?,
        };
        if self.url.scheme() == "http" && bearer.is_some() && !is_loopback(&self.url) {
            tracing::warn!("the token crosses the network in the clear: use https");
        }
        let headers = self.headers.iter().map(|text| header(text)).collect::<Result<_, _>>()?;
        let client = match (&self.client_cert, &self.client_key) {
            (Some(certificate), Some(key)) => {
                let mut pem = read("--client-cert", certificate).await?;
                pem.push(b'\n');
                pem.extend(read("--client-key", key).await?);
                Some(pem)
            }
            _ => None,
        };
        let ca = match &self.ca {
            Some(path) => Some(read("--ca", path).await?),
            None => None,
        };
        Remote::new(self.url.clone(), bearer, headers, Tls { ca, client })
    }

    fn has_other_credential(&self) -> bool {
        let named = |text: &String| text.split_once(':').map(|(name, _)| name.trim().to_ascii_lowercase());
        let mut names = self.headers.iter().filter_map(named);
        self.client_cert.is_some() || names.any(|name| matches!(name.as_str(), "authorization" | "x-api-key"))
    }

    /// The login that is kept for this URL, if there is one.
    async fn login(&self) -> Result<Option<Bearer>, String> {
        // Where nobody can be at home, nobody has logged in.
        let Ok(store) = login::Store::open() else { return Ok(None) };
        let Some(login) = store.read(&self.url).await? else { return Ok(None) };
        let web = login::Web::new(&self.url, self.ca.as_deref()).await?;
        Ok(Some(Bearer::Login(Arc::new(login::Renewing::new(store, login, web)))))
    }
}

/// Until standard input ends, nobody reads the output any more, or a signal comes.
async fn serve(remote: Remote) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut lines = pipe::input();
    let (out, mut written) = pipe::output();
    let relay = Arc::new(Relay::new(remote, out));
    let mut tasks = JoinSet::new();
    let feed = async {
        while let Some(read) = lines.recv().await {
            relay.take(read, &mut tasks).await;
        }
    };
    let mut read_by_nobody = tokio::select! {
        () = feed => false,
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        _ = &mut written => true,
    };
    if read_by_nobody {
        tasks.abort_all();
    }
    relay.end_open_ended();
    let rest = async { while tasks.join_next().await.is_some() {} };
    tokio::select! {
        ended = tokio::time::timeout(GRACE, rest) => {
            if ended.is_err() {
                tracing::warn!("requests that did not end within {} s are given up", GRACE.as_secs());
            }
        }
        _ = &mut written, if !read_by_nobody => read_by_nobody = true,
    }
    tasks.abort_all();
    // The last answers must be out; whoever does not read them does not hold us.
    let goodbye = async {
        relay.close().await;
        if !read_by_nobody {
            let _ = written.await;
        }
    };
    let _ = tokio::time::timeout(GRACE, goodbye).await;
    Ok(())
}

pub(super) fn check_url(url: &Url) -> Result<(), String> {
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(format!("`{}:` is no address of a server: give https://HOST/PATH", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the URL must be without user and password: other users of this machine see them".to_owned());
    }
    Ok(())
}

pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

pub(super) async fn read(flag: &str, path: &std::path::Path) -> Result<Vec<u8>, String> {
    tokio::fs::read(path).await.map_err(|error| format!("{flag} `{}` cannot be read: {error}", path.display()))
}

fn variable(flag: &str, name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|_| format!("{flag}: the environment variable `{name}` is not set"))
}

/// `Name: value`, the value perhaps a reference to a secret. INVARIANT: no message repeats the value.
fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    const OURS: [&str; 10] = [
        "accept",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "last-event-id",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    const SECRET: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];
    let (name, value) = text.split_once(':').ok_or("--header wants `Name: value`")?;
    let name = HeaderName::try_from(name.trim()).map_err(|_| "--header: that is no name of a header".to_owned())?;
    if OURS.contains(&name.as_str()) || name.as_str().starts_with("mcp-") {
        return Err(format!("--header: `{name}` is set by the protocol"));
    }
    let value = value.trim();
    let (value, referred) = if let Some(path) = value.strip_prefix("file:") {
        let read = std::fs::read_to_string(path);
        (read.map_err(|error| format!("--header {name}: `{path}` cannot be read: {error}"))?, true)
    } else if let Some(variable_name) = value.strip_prefix("env:") {
        (variable(&format!("--header {name}"), variable_name)?, true)
    } else {
        (value.to_owned(), false)
    };
    if SECRET.contains(&name.as_str()) && !referred {
        return Err(format!(
            "--header {name}: other users of this machine see the command line; write `{name}: file:/path` or `{name}: env:NAME`"
        ));
    }
    let mut value =
        HeaderValue::from_str(value.trim()).map_err(|_| format!("--header {name}: the value cannot be sent"))?;
    value.set_sensitive(referred);
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_plain_or_referred_to_and_secrets_only_the_latter() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "canary-1\n").unwrap();
        assert_eq!(header("X-Team: blue").unwrap(), ("x-team".parse().unwrap(), HeaderValue::from_static("blue")));
        let referred = header(&format!("Authorization: file:{}", secret.display())).unwrap();
        assert_eq!(referred.1, "canary-1");
        assert!(referred.1.is_sensitive());
        for bad in [
            "Authorization: canary-2",
            "Mcp-Session-Id: canary-2",
            "no colon canary-2",
            "a b: canary-2",
            "Host: canary-2",
        ] {
            let words = header(bad).unwrap_err();
            assert!(!words.contains("canary"), "{words}");
        }
    }

    #[test]
    fn the_url_is_of_http_and_holds_no_password() {
        let check = |text: &str| check_url(&text.parse().unwrap());
        assert!(check("https://gw.test/mcp").is_ok() && check("http://127.0.0.1:1/mcp").is_ok());
        assert!(check("ftp://gw.test").is_err() && check("https://me:canary@gw.test/mcp").is_err());
    }
}
