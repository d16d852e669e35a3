//! `Remote`: the HTTP side of `wardgate stdio`: one client, one URL, and what is sent along with every request.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use http::HeaderValue;
use http::header;
use reqwest::Method;
use reqwest::Response;
use url::Url;

use crate::cli::login;
use crate::fetch::chain;
use crate::secret::Secret;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Notices a dead peer under a stream on which nothing is said.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// From a request to the head of its answer. Long: a tool may work for minutes before it says anything.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15 * 60);

const TOKEN_BYTES_MAX: u64 = 64 * 1024;

/// Where the bearer token is.
#[derive(Clone)]
pub(super) enum Bearer {
    /// Read anew for each request: something else may renew it.
    File(PathBuf),
    Fixed(Secret),
    /// Of `wardgate login`; renewed before it ends.
    Login(Arc<login::Renewing>),
}

pub(super) struct Remote {
    client: reqwest::Client,
    url: Url,
    bearer: Option<Bearer>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// Authorities to trust instead of the system's, and what to prove ourselves with; PEM.
#[derive(Default)]
pub(super) struct Tls {
    pub ca: Option<Vec<u8>>,
    /// Certificate chain and private key.
    pub client: Option<Vec<u8>>,
}

impl Remote {
    /// # Errors
    /// What is wrong with the certificates.
    pub(super) fn new(
        url: Url,
        bearer: Option<Bearer>,
        headers: Vec<(HeaderName, HeaderValue)>,
        tls: Tls,
    ) -> Result<Remote, String> {
        let mut builder = reqwest::Client::builder()
            // A redirect would carry the token to wherever the answer says.
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(TCP_KEEPALIVE)
            .user_agent(concat!("wardgate/", env!("CARGO_PKG_VERSION")));
        if let Some(pem) = tls.ca {
            let authorities = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|error| format!("--ca holds no PEM certificates: {}", chain(&error)))?;
            if authorities.is_empty() {
                return Err("--ca holds no PEM certificates".to_owned());
            }
            builder = builder.tls_certs_only(authorities);
        }
        if let Some(pem) = tls.client {
            let identity = reqwest::Identity::from_pem(&pem)
                .map_err(|error| format!("--client-cert and --client-key are of no use: {}", chain(&error)))?;
            builder = builder.identity(identity);
        }
        let client = builder.build().map_err(|error| format!("no HTTP client can be made: {}", chain(&error)))?;
        Ok(Remote { client, url, bearer, headers })
    }

    pub(super) fn has_bearer(&self) -> bool {
        self.bearer.is_some()
    }

    pub(super) async fn post(&self, body: Bytes, headers: Vec<(HeaderName, HeaderValue)>) -> Result<Response, String> {
        let request = self.request(Method::POST, headers).await?;
        let request = request
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, text/event-stream")
            .body(body);
        send(request).await
    }

    /// GET: the stream of server messages, after an event if named.
    pub(super) async fn listen(
        &self,
        mut headers: Vec<(HeaderName, HeaderValue)>,
        last_event_id: Option<&str>,
    ) -> Result<Response, String> {
        // What cannot stand in a header came from no event the server would know again.
        if let Some(id) = last_event_id.and_then(|id| HeaderValue::from_str(id).ok()) {
            headers.push((HeaderName::from_static("last-event-id"), id));
        }
        let request = self.request(Method::GET, headers).await?;
        send(request.header(header::ACCEPT, "text/event-stream")).await
    }

    /// DELETE: ends the session.
    pub(super) async fn end(&self, headers: Vec<(HeaderName, HeaderValue)>) -> Result<Response, String> {
        send(self.request(Method::DELETE, headers).await?).await
    }

    async fn request(
        &self,
        method: Method,
        headers: Vec<(HeaderName, HeaderValue)>,
    ) -> Result<reqwest::RequestBuilder, String> {
        let mut request = self.client.request(method, self.url.clone());
        for (name, value) in self.headers.iter().cloned().chain(headers) {
            request = request.header(name, value);
        }
        match &self.bearer {
            None => Ok(request),
            Some(Bearer::Fixed(token)) => Ok(request.bearer_auth(token.expose())),
            Some(Bearer::Login(login)) => Ok(request.bearer_auth(login.token().await?.expose())),
            Some(Bearer::File(path)) => Ok(request.bearer_auth(token_of(path).await?.expose())),
        }
    }
}

/// The token in a file, without the line end behind it.
pub(super) async fn token_of(path: &std::path::Path) -> Result<Secret, String> {
    let wrong = |what: &str| format!("--bearer-file `{}` {what}", path.display());
    let facts = tokio::fs::metadata(path).await.map_err(|error| wrong(&format!("cannot be read: {error}")))?;
    if facts.len() > TOKEN_BYTES_MAX {
        return Err(wrong("is too large for a token"));
    }
    let text = tokio::fs::read_to_string(path).await.map_err(|error| wrong(&format!("cannot be read: {error}")))?;
    token(&text).ok_or_else(|| wrong("holds no token: one line of visible characters"))
}

pub(in crate::cli) fn token(text: &str) -> Option<Secret> {
    let text = text.trim();
    let fits = !text.is_empty() && text.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
    fits.then(|| Secret::new(text))
}

async fn send(request: reqwest::RequestBuilder) -> Result<Response, String> {
    match tokio::time::timeout(HEAD_TIMEOUT, request.send()).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(chain(&error.without_url())),
        Err(_) => Err(format!("no answer in {} s", HEAD_TIMEOUT.as_secs())),
    }
}
