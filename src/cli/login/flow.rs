//! The two ways to a token: authorization code with PKCE (RFC 7636) through a browser, and the device flow (RFC 8628).

use std::time::Duration;
use std::time::SystemTime;

use openidconnect::AuthType;
use openidconnect::AuthorizationCode;
use openidconnect::ClientId;
use openidconnect::ClientSecret;
use openidconnect::CsrfToken;
use openidconnect::DeviceAuthorizationUrl;
use openidconnect::EndpointNotSet;
use openidconnect::EndpointSet;
use openidconnect::ErrorResponse;
use openidconnect::IssuerUrl;
use openidconnect::JsonWebKeySet;
use openidconnect::OAuth2TokenResponse;
use openidconnect::PkceCodeChallenge;
use openidconnect::PkceCodeVerifier;
use openidconnect::RedirectUrl;
use openidconnect::RefreshToken;
use openidconnect::RequestTokenError;
use openidconnect::Scope;
use openidconnect::TokenUrl;
use openidconnect::core::CoreClient;
use openidconnect::core::CoreDeviceAuthorizationResponse;
use openidconnect::core::CoreTokenResponse;
use serde_json::json;
use url::Url;

use super::discovery::Discovered;
use super::discovery::Server;
use super::web;
use super::web::Web;
use crate::secret::Secret;

const NO_CLIENT: &str = "there is no client id";

const CLIENT_NAME: &str = "wardgate";

/// A server that asks for more patience than this does not want to be asked at all.
const DEVICE_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// Who we are to an authorization server.
#[derive(Clone, Debug, Default)]
pub(super) struct Client {
    pub(super) id: Option<String>,
    pub(super) secret: Option<Secret>,
}

/// What came of it.
pub(super) struct Granted {
    pub(super) access_token: Secret,
    pub(super) refresh_token: Option<Secret>,
    /// Where the server said; else those that were asked for.
    pub(super) scopes: Vec<String>,
    pub(super) expires_at: Option<SystemTime>,
}

/// A code flow that waits for its redirect.
pub(super) struct Begun {
    pub(super) address: Url,
    pub(super) state: String,
    verifier: PkceCodeVerifier,
    redirect: Url,
    scopes: Vec<String>,
}

type Speaker = CoreClient<EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet, EndpointNotSet>;

impl Client {
    /// Asks the server for a client id, unless there is one (RFC 7591).
    pub(super) async fn register_if_new(
        &mut self,
        web: &Web,
        server: &Server,
        redirect: Option<&Url>,
    ) -> Result<(), String> {
        if self.id.is_some() {
            return Ok(());
        }
        let endpoint = server.registration.as_ref().ok_or_else(|| {
            format!(
                "`{}` registers no clients: give --client-id, or ask the operator of the gateway for `login`",
                server.issuer
            )
        })?;
        let device = "urn:ietf:params:oauth:grant-type:device_code";
        let grants = if redirect.is_some() {
            vec!["authorization_code", "refresh_token"]
        } else {
            vec![device, "refresh_token"]
        };
        let asked = json!({
            "client_name": CLIENT_NAME,
            "application_type": "native",
            // What uses no redirect must name one all the same where servers know no other clients.
            "redirect_uris": [redirect.map_or("http://127.0.0.1/callback", Url::as_str)],
            "grant_types": if redirect.is_some() { grants } else { [vec!["authorization_code"], grants].concat() },
            "response_types": ["code"],
            "token_endpoint_auth_method": "none",
        });
        let answer = web.post_json(endpoint, &asked).await.map_err(|error| error.to_string())?;
        let told = answer.object().unwrap_or_default();
        let text = |name: &str| told.get(name).and_then(serde_json::Value::as_str);
        match (answer.status, text("client_id")) {
            (200 | 201, Some(id)) => {
                self.id = Some(id.to_owned());
                self.secret = text("client_secret").map(Secret::new);
                Ok(())
            }
            (status, _) => {
                let why = [text("error"), text("error_description")].into_iter().flatten().collect::<Vec<_>>();
                Err(format!(
                    "`{}` does not register this client (HTTP {status}): {}",
                    server.issuer,
                    plain(&why.join(": "))
                ))
            }
        }
    }

    fn speaker(&self, issuer: &str, token: &Url) -> Result<Speaker, String> {
        let id = self.id.clone().ok_or(NO_CLIENT)?;
        let issuer = IssuerUrl::new(issuer.to_owned()).map_err(|_| format!("`{issuer}` is no URL"))?;
        let mut client = CoreClient::new(ClientId::new(id), issuer, JsonWebKeySet::default()).disable_openid_scope();
        if let Some(secret) = &self.secret {
            client = client.set_client_secret(ClientSecret::new(secret.expose().to_owned()));
        }
        Ok(client.set_auth_type(AuthType::RequestBody).set_token_uri(TokenUrl::from_url(token.clone())))
    }
}

pub(super) fn begin(found: &Discovered, client: &Client, scopes: &[String], redirect: &Url) -> Result<Begun, String> {
    let server = &found.server;
    let authorization = server.authorization.clone();
    let authorization = authorization.ok_or_else(|| format!("`{}` has no `authorization_endpoint`", server.issuer))?;
    if !server.pkce {
        // SPEC: authorization §Authorization Code Protection: clients MUST refuse.
        return Err(format!(
            "`{}` does not say that it supports PKCE with S256: use --device, or ask the operator of the gateway for `login`",
            server.issuer
        ));
    }
    let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
    let state = CsrfToken::new_random();
    // Written here: the crate's own form always has a `nonce`, which providers refuse without the `openid` scope.
    let mut address = authorization;
    address
        .query_pairs_mut()
        .append_pair("response_type", "code")
        .append_pair("client_id", client.id.as_deref().ok_or(NO_CLIENT)?)
        .append_pair("redirect_uri", redirect.as_str())
        .append_pair("state", state.secret())
        .append_pair("code_challenge", challenge.as_str())
        .append_pair("code_challenge_method", challenge.method().as_str());
    if let Some(resource) = &found.resource {
        address.query_pairs_mut().append_pair("resource", resource);
    }
    if !scopes.is_empty() {
        address.query_pairs_mut().append_pair("scope", &scopes.join(" "));
    }
    let (redirect, scopes) = (redirect.clone(), scopes.to_vec());
    Ok(Begun { address, state: state.secret().clone(), verifier, redirect, scopes })
}

pub(super) async fn finish(
    web: &Web,
    found: &Discovered,
    client: &Client,
    begun: Begun,
    code: Secret,
) -> Result<Granted, String> {
    let speaker = client.speaker(&found.server.issuer, &found.server.token)?;
    let speaker = speaker.set_redirect_uri(RedirectUrl::from_url(begun.redirect));
    let mut asked = speaker.exchange_code(AuthorizationCode::new(code.expose().to_owned()));
    if let Some(resource) = &found.resource {
        asked = asked.add_extra_param("resource", resource.clone());
    }
    let answer = asked.set_pkce_verifier(begun.verifier).request_async(web).await;
    granted(answer.map_err(|error| refusal(&error))?, &begun.scopes)
}

pub(super) async fn device(
    web: &Web,
    found: &Discovered,
    client: &Client,
    scopes: &[String],
    tell: &(impl Fn(&str) + Sync),
) -> Result<Granted, String> {
    let server = &found.server;
    let endpoint = server.device.clone().ok_or_else(|| format!("`{}` knows no device flow", server.issuer))?;
    let speaker = client.speaker(&server.issuer, &server.token)?;
    let speaker = speaker.set_device_authorization_url(DeviceAuthorizationUrl::from_url(endpoint));
    let mut asked = speaker.exchange_device_code().add_scopes(scopes.iter().cloned().map(Scope::new));
    if let Some(resource) = &found.resource {
        asked = asked.add_extra_param("resource", resource.clone());
    }
    let details: CoreDeviceAuthorizationResponse = asked.request_async(web).await.map_err(|error| refusal(&error))?;
    let place = plain(details.verification_uri().as_str());
    tell(&format!("Open {place} on any device and enter the code:\n\n  {}\n", plain(details.user_code().secret())));
    if let Some(whole) = details.verification_uri_complete() {
        tell(&format!("Or open this address, which has it already:\n\n  {}\n", plain(whole.secret())));
    }
    let mut asked = speaker.exchange_device_access_token(&details);
    if let Some(resource) = &found.resource {
        asked = asked.add_extra_param("resource", resource.clone());
    }
    let answer = asked.set_max_backoff_interval(DEVICE_INTERVAL_MAX).request_async(web, tokio::time::sleep, None).await;
    granted(answer.map_err(|error| refusal(&error))?, scopes)
}

/// A new access token for a refresh token (RFC 6749 section 6).
pub(super) async fn refresh(
    web: &Web,
    (issuer, token): (&str, &Url),
    client: &Client,
    (refresh_token, resource): (&Secret, Option<&str>),
    scopes: &[String],
) -> Result<Granted, String> {
    let speaker = client.speaker(issuer, token)?;
    let old = RefreshToken::new(refresh_token.expose().to_owned());
    let mut asked = speaker.exchange_refresh_token(&old);
    if let Some(resource) = resource {
        asked = asked.add_extra_param("resource", resource.to_owned());
    }
    let answer = asked.request_async(web).await;
    granted(answer.map_err(|error| refusal(&error))?, scopes)
}

fn granted(answer: CoreTokenResponse, asked: &[String]) -> Result<Granted, String> {
    if !answer.token_type().as_ref().eq_ignore_ascii_case("bearer") {
        return Err("the server gives tokens of another type than `Bearer`".to_owned());
    }
    let scopes = answer.scopes().map(|scopes| scopes.iter().map(|scope| scope.to_string()).collect());
    Ok(Granted {
        access_token: Secret::new(answer.access_token().secret().as_str()),
        refresh_token: answer.refresh_token().map(|token| Secret::new(token.secret().as_str())),
        scopes: scopes.unwrap_or_else(|| asked.to_vec()),
        expires_at: answer.expires_in().and_then(|life| SystemTime::now().checked_add(life)),
    })
}

/// Why there is no token, without the tokens that an answer may hold.
fn refusal<T: ErrorResponse>(error: &RequestTokenError<web::Error, T>) -> String {
    match error {
        RequestTokenError::ServerResponse(said) => {
            let said = serde_json::to_value(said).unwrap_or_default();
            let text = |name: &str| said.get(name).and_then(serde_json::Value::as_str);
            let words: Vec<_> = [text("error"), text("error_description")].into_iter().flatten().collect();
            format!("the authorization server refuses: {}", plain(&words.join(": ")))
        }
        RequestTokenError::Request(error) => error.to_string(),
        RequestTokenError::Parse(error, _) => {
            format!("the authorization server's answer is malformed at `{}`", error.path())
        }
        RequestTokenError::Other(words) => plain(words),
    }
}

/// What a server says, on a terminal.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(500).collect()
}
