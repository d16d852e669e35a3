//! `login` of an issuer, as written: clients log in by themselves where the issuer alone would not let them.

use schemars::JsonSchema;
use serde::Deserialize;

/// Lets MCP clients log in by themselves at an issuer that registers no clients or does not say that it supports PKCE, such
/// as Entra ID. The gateway then describes the issuer's login in its own name and answers dynamic registration (RFC 7591) with
/// one public client; the browser and the tokens go between client and issuer as ever. Not for issuers that name themselves in
/// redirects (RFC 9207): clients would see two names for one issuer.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Login {
    /// The client that every MCP client becomes: registered at the issuer, public (no secret), with PKCE.
    #[schemars(with = "String")]
    pub client_id: Option<String>,
    /// Whether redirects to the client's own machine are allowed: `http://127.0.0.1`, `http://[::1]` and `http://localhost`,
    /// any port and path. Default: `true`.
    pub loopback: Option<bool>,
    /// Other redirects that are allowed, exactly as written here and at the issuer: `https://app.example.com/callback`, or an
    /// application's own scheme, `cursor://anysphere.cursor-mcp/oauth/callback`. Default: none.
    pub redirect_uris: Option<Vec<String>>,
    /// What clients must put before a scope when they ask for it. Entra wants the Application ID URI there and leaves it out of
    /// the token: with `https://mcp.example.com/mcp/` clients ask for `https://mcp.example.com/mcp/mcp.read`, and grants say
    /// `mcp.read`. It is that of the first issuer that counts, for that is where clients log in. Default: nothing.
    pub scope_prefix: Option<String>,
}
