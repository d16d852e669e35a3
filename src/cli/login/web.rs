//! `Web`: the HTTP client of a login: bounded, no redirects, HTTPS only, plain HTTP only within this machine.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use openidconnect::AsyncHttpClient;
use openidconnect::HttpRequest;
use openidconnect::HttpResponse;
use serde_json::Map;
use serde_json::Value;
use url::Url;

use crate::cli::stdio::is_loopback;
use crate::cli::stdio::read;
use crate::fetch::chain;

const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum Error {
    #[error("`{0}` is neither at https nor on this machine")]
    Place(String),
    #[error("`{url}` cannot be reached: {reason}")]
    Transport { url: String, reason: String },
    #[error("`{0}` answered more than {ANSWER_BYTES_MAX} bytes")]
    TooLong(String),
}

pub(in crate::cli) struct Web {
    client: reqwest::Client,
    /// The server is on this machine itself, and so its authorization server may be.
    local: bool,
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: http::HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn object(&self) -> Option<Map<String, Value>> {
        serde_json::from_slice(&self.body).ok()
    }
}

impl Web {
    /// For logins at what this server names. `ca`: authorities to trust instead of the system's.
    pub(in crate::cli) async fn new(server: &Url, ca: Option<&Path>) -> Result<Web, String> {
        let mut builder = reqwest::Client::builder()
            // A redirect would carry codes and tokens to wherever the answer says.
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .timeout(EXCHANGE_TIMEOUT)
            .user_agent(concat!("wardgate/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = ca {
            let pem = read("--ca", path).await?;
            let authorities = reqwest::Certificate::from_pem_bundle(&pem).unwrap_or_default();
            if authorities.is_empty() {
                return Err("--ca holds no PEM certificates".to_owned());
            }
            builder = builder.tls_certs_only(authorities);
        }
        let local = is_loopback(server);
        if local {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| format!("no HTTP client can be made: {}", chain(&error)))?;
        Ok(Web { client, local })
    }

    /// May codes and tokens go there? What a server names is not trusted to be a safe place.
    pub(super) fn permits(&self, url: &Url) -> bool {
        let place = url.scheme() == "https" || (self.local && url.scheme() == "http" && is_loopback(url));
        place && url.host().is_some() && url.username().is_empty() && url.password().is_none()
    }

    pub(super) async fn get(&self, url: &Url) -> Result<Answer, Error> {
        self.send(url, self.client.get(url.clone()).header(http::header::ACCEPT, "application/json")).await
    }

    pub(super) async fn post_json(&self, url: &Url, body: &Value) -> Result<Answer, Error> {
        let request = self.client.post(url.clone()).header(http::header::ACCEPT, "application/json").json(body);
        self.send(url, request).await
    }

    pub(super) async fn post_form(&self, url: &Url, fields: &[(&str, &str)]) -> Result<Answer, Error> {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let kind = "application/x-www-form-urlencoded";
        self.send(url, self.client.post(url.clone()).header(http::header::CONTENT_TYPE, kind).body(body)).await
    }

    /// A JSON-RPC message to the MCP server itself, which the person named: any place is right.
    pub(super) async fn post_mcp(
        &self,
        url: &Url,
        token: Option<&str>,
        headers: &[(http::HeaderName, http::HeaderValue)],
        body: &Value,
    ) -> Result<Answer, Error> {
        let mut request = self
            .client
            .post(url.clone())
            .header(http::header::ACCEPT, "application/json, text/event-stream")
            .json(body);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        self.exchange(url, request).await
    }

    async fn send(&self, url: &Url, request: reqwest::RequestBuilder) -> Result<Answer, Error> {
        if !self.permits(url) {
            return Err(Error::Place(url.to_string()));
        }
        self.exchange(url, request).await
    }

    async fn exchange(&self, url: &Url, request: reqwest::RequestBuilder) -> Result<Answer, Error> {
        let failed = |error: reqwest::Error| {
            let mut url = url.clone();
            url.set_query(None);
            Error::Transport { url: url.into(), reason: chain(&error.without_url()) }
        };
        let mut response = request.send().await.map_err(failed)?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(Error::TooLong(url.to_string()));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, headers, body })
    }
}

impl<'c> AsyncHttpClient<'c> for Web {
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, Error>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let text = request.uri().to_string();
            let url = Url::parse(&text).map_err(|_| Error::Place(text))?;
            let (parts, body) = request.into_parts();
            let request = self.client.request(parts.method, url.clone()).headers(parts.headers).body(body);
            let answer = self.send(&url, request).await?;
            let mut response = HttpResponse::new(answer.body);
            *response.status_mut() = http::StatusCode::from_u16(answer.status).unwrap_or_default();
            *response.headers_mut() = answer.headers;
            Ok(response)
        })
    }
}
