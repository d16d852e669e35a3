//! `wardgate whoami`: who a token is to a configuration, and why not; or what a gateway says to the kept login.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use bytes::Bytes;
use clap::Args;
use http::HeaderMap;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use url::Url;

use super::ConfigFile;
use super::complain;
use super::login;
use super::login::shown;
use super::print;
use super::stdio::token;
use crate::config;
use crate::config::Loaded;
use crate::exchange::Peer;
use crate::exchange::Request;
use crate::exchange::RequestId;
use crate::exchange::Verb;
use crate::identity::Error;
use crate::identity::Identity;
use crate::identity::Keys;
use crate::identity::api_key;
use crate::principal::Principal;
use crate::secret::Secret;

const TOKEN_BYTES_MAX: u64 = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Args)]
pub(super) struct Whoami {
    /// URL of a kept login (`wardgate login`): what its token says, and what the gateway there says to it.
    #[arg(conflicts_with_all = ["file", "token_file"])]
    url: Option<Url>,
    #[command(flatten)]
    config: ConfigFile,
    /// File with the token or API key; default: standard input. It is never shown.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file of the authorities to trust instead of the system's, with a URL.
    #[arg(long, value_name = "FILE", requires = "url")]
    ca: Option<PathBuf>,
}

impl Whoami {
    pub(super) async fn run(self) -> u8 {
        if let Some(url) = &self.url {
            return match login::ask(url, self.ca.as_deref()).await {
                Ok(text) => print(&text),
                Err(problem) => complain(&problem),
            };
        }
        match self.judge().await {
            Ok((code, text)) => match print(&text) {
                super::OK => code,
                failed => failed,
            },
            Err(problem) => complain(&problem),
        }
    }

    async fn judge(&self) -> Result<(u8, String), String> {
        let loaded = config::load(&self.config.file, config::Options::default());
        let loaded = loaded.map_err(|errors| format!("the configuration is not valid:\n{errors}"))?;
        let token = read(self.token_file.as_deref())?;
        let identity = Identity::new(loaded.config.identity.clone()).map_err(|error| error.to_string())?;
        let request = request(&token)?;
        Ok(match identity.verify(&request).await {
            Ok(principal) => (super::OK, accepted(&loaded, &principal)),
            Err(error) => (super::FAILED, refused(&loaded, &token, &error)),
        })
    }
}

/// Whom a token names, to a configuration.
pub(super) async fn verified(loaded: &Loaded, file: Option<&Path>) -> Result<Arc<Principal>, String> {
    let token = read(file)?;
    let identity = Identity::new(loaded.config.identity.clone()).map_err(|error| error.to_string())?;
    identity.verify(&request(&token)?).await.map_err(|error| format!("the token is not accepted: {error}"))
}

fn read(file: Option<&Path>) -> Result<Secret, String> {
    let mut text = String::new();
    let read = match file {
        Some(path) => {
            let file = std::fs::File::open(path);
            file.and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut text))
        }
        None => std::io::stdin().take(TOKEN_BYTES_MAX).read_to_string(&mut text),
    };
    let place = file.map_or_else(|| "standard input".to_owned(), |path| format!("`{}`", path.display()));
    read.map_err(|error| format!("no token can be read from {place}: {error}"))?;
    // Copied from a header, the scheme comes along.
    let bare = text.trim();
    let bare = bare
        .get(..7)
        .filter(|start| start.eq_ignore_ascii_case("bearer "))
        .map_or(bare, |_| bare.get(7..).unwrap_or(""));
    token(bare).ok_or_else(|| format!("{place} holds no token: one line of visible characters"))
}

/// The token as it would come, over a plain connection from nowhere.
fn request(token: &Secret) -> Result<Request, String> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| "that is no token")?;
    value.set_sensitive(true);
    let (at, started) = (SystemTime::now(), Instant::now());
    Ok(Request {
        id: RequestId(0),
        verb: Verb::Post,
        host: String::new(),
        path: String::new(),
        headers: HeaderMap::from_iter([(AUTHORIZATION, value)]),
        body: Bytes::new(),
        peer: Arc::new(Peer::default()),
        at,
        started,
        deadline: started + PATIENCE,
    })
}

fn accepted(loaded: &Loaded, principal: &Principal) -> String {
    let mut out = String::from("accepted\n");
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "  {name}: {value}");
    };
    line("kind", principal.kind.as_str());
    line("subject", &plain(&principal.subject));
    line("issuer", &plain(&principal.issuer));
    line("method", principal.method.as_str());
    let some = [("tenant", &principal.tenant), ("client", &principal.client), ("actor", &principal.actor)];
    for (name, value) in some {
        line(name, &value.as_deref().map_or_else(|| "none".to_owned(), plain));
    }
    for (name, values) in [("scopes", &principal.scopes), ("roles", &principal.roles), ("groups", &principal.groups)] {
        let values: Vec<String> = values.iter().map(|value| plain(value)).collect();
        line(name, &if values.is_empty() { "none".to_owned() } else { values.join(", ") });
    }
    let expires = principal.expires_at().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    line("expires", &expires.map_or_else(|| "never".to_owned(), |at| shown("exp", &at.as_secs().into())));
    let policy = &loaded.config.policy;
    let _ = writeln!(out, "mode: {} (what is above it is hidden from everybody)", policy.mode.as_str());
    let _ = writeln!(out, "grants for this caller:");
    let mut none = true;
    for (index, grant) in policy.grants.iter().enumerate().filter(|(_, grant)| grant.is_for(principal)) {
        none = false;
        let effects: Vec<&str> = grant.allow.iter().map(|effect| effect.as_str()).collect();
        let tools = if grant.tools.is_empty() { "all tools".to_owned() } else { grant.tools.join(", ") };
        let _ = writeln!(out, "  grant-{}: {}: {} of {tools}", index + 1, whom(grant), effects.join(", "));
    }
    if none {
        let scopes: Vec<&str> = policy.grants.iter().filter_map(|grant| grant.scope.as_deref()).collect();
        let hint = if scopes.is_empty() {
            String::new()
        } else {
            format!("; there are some for the scopes {}", scopes.join(", "))
        };
        let _ = writeln!(out, "  none{hint}");
    }
    if !policy.sources.is_empty() {
        let _ = writeln!(out, "  and what the Cedar policies say: they may permit more, and their `forbid` wins");
    }
    out.trim_end().to_owned()
}

fn whom(grant: &crate::policy::Grant) -> String {
    let named = [("scope", &grant.scope), ("role", &grant.role), ("group", &grant.group), ("subject", &grant.subject)];
    let named = named.into_iter().find_map(|(kind, value)| Some(format!("{kind} {}", value.as_deref()?)));
    named.unwrap_or_else(|| "everybody".to_owned())
}

/// Which check failed, what the token says there, and what is expected.
fn refused(loaded: &Loaded, token: &Secret, error: &Error) -> String {
    let mut out = format!("not accepted: {error}\n");
    let text = token.expose();
    if text.starts_with(api_key::PREFIX) {
        let known = loaded.config.identity.api_keys.is_some();
        out.push_str(if known {
            "it is an API key; the keys file decides"
        } else {
            "it is an API key, and `identity` has no `api_keys`"
        });
        return out;
    }
    match (login::header(text), login::claims(text)) {
        (Some(header), Some(claims)) => {
            out.push_str("the token says (not verified):\n");
            for name in ["alg", "kid", "typ"] {
                if let Some(value) = header.get(name) {
                    let _ = writeln!(out, "  {name}: {}", shown(name, value));
                }
            }
            for name in ["iss", "aud", "exp", "nbf", "iat", "sub", "azp", "client_id", "tid", "scope", "scp", "roles"] {
                if let Some(value) = claims.get(name) {
                    let _ = writeln!(out, "  {name}: {}", shown(name, value));
                }
            }
        }
        _ => out.push_str("it is not a JWT: three parts of base64url\n"),
    }
    out.push_str("expected:\n");
    for issuer in &loaded.config.identity.issuers {
        let algorithms: Vec<String> = issuer.algorithms.iter().map(|algorithm| format!("{algorithm:?}")).collect();
        let keys = match &issuer.keys {
            Keys::Discover => "found by discovery".to_owned(),
            Keys::File(path) => format!("of `{}`", path.display()),
            Keys::Url(url) => format!("of {url}"),
        };
        let _ = writeln!(out, "  iss: {}", issuer.issuer);
        let _ = writeln!(out, "    aud: one of {}", issuer.audiences.join(", "));
        let _ = writeln!(out, "    alg: one of {}; keys {keys}", algorithms.join(", "));
        let _ = writeln!(out, "    exp, nbf, iat: now, give or take {} s", issuer.leeway.as_secs());
    }
    if loaded.config.identity.issuers.is_empty() {
        out.push_str("  no token at all: `identity` has no issuer\n");
    }
    out.trim_end().to_owned()
}

fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}
