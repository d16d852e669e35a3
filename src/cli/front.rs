//! `wardgate front`: a sidecar from one line; the flags become a configuration like any other.
#![expect(clippy::indexing_slicing, reason = "assigning by key inserts into the JSON objects made right here")]

use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;

use clap::Args;
use clap::ValueEnum;
use serde_json::Value;
use serde_json::json;

use super::complain;
use crate::app;
use crate::config;

#[derive(Clone, Copy, ValueEnum)]
enum ModeFlag {
    ReadOnly,
    NonDestructive,
    Full,
}

#[derive(Args)]
pub(super) struct Front {
    /// URL of the MCP server (streamable HTTP), for example http://127.0.0.1:3001/mcp.
    #[arg(required_unless_present = "command", conflicts_with = "command")]
    url: Option<String>,
    /// The ceiling for everybody.
    #[arg(long, value_enum, default_value = "read-only")]
    mode: ModeFlag,
    /// Address to listen on. Without authentication it must be a loopback address.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Believe the server's own hints (readOnlyHint, destructiveHint) about its tools.
    #[arg(long)]
    trust_annotations: bool,
    /// Effect of tools, first match wins: `GLOB=read|read_sensitive|write|destroy`; repeat for several.
    #[arg(long = "effect", value_name = "GLOB=EFFECT")]
    effects: Vec<String>,
    /// File of hashed API keys (see `wardgate api-key`).
    #[arg(long)]
    api_key_file: Option<PathBuf>,
    /// Token issuer (exact `iss`); its keys are found by OIDC discovery unless --jwks is given.
    #[arg(long, requires = "audience")]
    issuer: Option<String>,
    /// JWKS file or URL of the issuer.
    #[arg(long, requires = "issuer")]
    jwks: Option<String>,
    /// Audience that tokens must have.
    #[arg(long, requires = "issuer")]
    audience: Option<String>,
    /// The address clients use, for the login metadata; default: http://LISTEN.
    #[arg(long)]
    public_url: Option<String>,
    /// Admin listener (/livez, /readyz, /metrics, /status).
    #[arg(long)]
    admin: Option<SocketAddr>,
    /// Write the audit log here.
    #[arg(long)]
    audit: Option<PathBuf>,
    /// Print the configuration that this line amounts to, and end: the start of a file for `wardgate run`.
    #[arg(long)]
    print_config: bool,
    /// A stdio MCP server and its arguments, after `--`.
    #[arg(last = true)]
    command: Vec<String>,
}

impl Front {
    pub(super) async fn run(self) -> u8 {
        let file = match self.file() {
            Ok(file) => file,
            Err(problem) => return complain(&problem),
        };
        // JSON is YAML: the file parser gives the same checks and the same words.
        let text = format!("{file:#}");
        if self.print_config {
            return super::print(&text);
        }
        let load = move || config::parse(&text, Path::new("front"), config::Options::default());
        let loaded = match load() {
            Ok(loaded) => loaded,
            Err(errors) => return complain(&format!("these flags do not work together:\n{errors}")),
        };
        match app::run(loaded, Some(Box::new(load))).await {
            Ok(()) => super::OK,
            Err(error) => complain(&error.to_string()),
        }
    }

    fn file(&self) -> Result<Value, String> {
        let authenticated = self.api_key_file.is_some() || self.issuer.is_some();
        if !authenticated && !self.listen.ip().is_loopback() {
            return Err(format!(
                "{} is not a loopback address: add --issuer and --audience, or --api-key-file, before others can reach it",
                self.listen
            ));
        }
        let mut backend = match &self.url {
            Some(url) => json!({ "http": { "url": url } }),
            None => json!({ "stdio": { "command": self.command } }),
        };
        backend["trust_annotations"] = json!(self.trust_annotations);
        backend["effects"] = self.effects.iter().map(|rule| effect(rule)).collect::<Result<Value, _>>()?;
        let mut file = json!({
            "listeners": [{ "address": self.listen.to_string() }],
            "public_url": self.public_url.clone().unwrap_or_else(|| format!("http://{}", self.listen)),
            "identity": self.identity(),
            "mode": match self.mode {
                ModeFlag::ReadOnly => "read-only",
                ModeFlag::NonDestructive => "non-destructive",
                ModeFlag::Full => "full",
            },
            // Everyone who is let in may do what the mode admits.
            "grants": [{ "allow": ["read", "read_sensitive", "write", "destroy"] }],
            "backends": { "server": backend },
            "routes": [{ "path": "/mcp", "backends": ["server"] }],
        });
        if let Some(admin) = self.admin {
            file["admin"] = json!({ "address": admin.to_string() });
        }
        if let Some(audit) = &self.audit {
            file["audit"] = json!({ "file": audit });
        }
        Ok(file)
    }

    fn identity(&self) -> Value {
        let mut identity = Vec::new();
        if let (Some(issuer), Some(audience)) = (&self.issuer, &self.audience) {
            let mut oidc = json!({ "issuer": issuer, "audience": audience });
            if let Some(jwks) = &self.jwks {
                let key = if jwks.contains("://") { "jwks_url" } else { "jwks_file" };
                oidc[key] = json!(jwks);
            }
            identity.push(json!({ "oidc": oidc }));
        }
        if let Some(file) = &self.api_key_file {
            identity.push(json!({ "api_keys": { "file": file } }));
        }
        if identity.is_empty() {
            identity.push(json!({ "anonymous": {} }));
        }
        Value::Array(identity)
    }
}

fn effect(rule: &str) -> Result<Value, String> {
    let (tools, effect) =
        rule.split_once('=').ok_or_else(|| format!("--effect {rule}: write GLOB=EFFECT, for example get_*=read"))?;
    Ok(json!({ "tools": tools, "effect": effect }))
}
