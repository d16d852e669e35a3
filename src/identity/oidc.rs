//! Fetching an issuer's keys over HTTPS: discovery (OpenID's or Entra's) or a fixed URL, bounded in time and size.

use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use openidconnect::AsyncHttpClient;
use openidconnect::HttpRequest;
use openidconnect::HttpResponse;
use openidconnect::IssuerUrl;
use openidconnect::core::CoreProviderMetadata;
use url::Host;
use url::Url;

use super::StartError;
use super::entra;
use super::jwks::JWKS_BYTES_MAX;

/// One HTTP exchange with an issuer, from connecting to the last byte.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Where to fetch from and with which client.
#[derive(Clone)]
pub(super) struct Origin {
    place: Place,
    http: Http,
}

#[derive(Clone)]
enum Place {
    Discovered(IssuerUrl),
    Entra { metadata: Url, named: entra::Named },
    Fixed(Url),
}

/// What an issuer gave us.
pub(super) struct Fetched {
    /// The JWKS document as served.
    pub(super) document: Vec<u8>,
    /// The tenant that the metadata is about, where it says so.
    pub(super) tenant: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("discovery failed: {reason}")]
    Discovery { reason: String },
    #[error("status {status} from `{url}`")]
    Status { status: u16, url: String },
    #[error("more than {JWKS_BYTES_MAX} bytes from `{url}`")]
    TooLong { url: String },
    #[error("cannot reach `{url}`: {reason}")]
    Transport { url: String, reason: String },
    #[error("`{url}` is not a place to fetch keys from")]
    Url { url: String },
}

impl Origin {
    pub(super) async fn fetch(&self) -> Result<Fetched, FetchError> {
        let mut tenant = None;
        let document = match &self.place {
            Place::Fixed(url) => self.http.read(url.clone()).await?,
            Place::Entra { metadata, named } => {
                let document = self.http.read(metadata.clone()).await?;
                let read = named.read(&document).map_err(|reason| FetchError::Discovery { reason: reason.into() })?;
                tenant = read.tenant;
                self.http.read(read.jwks_uri).await?
            }
            Place::Discovered(issuer) => {
                let recorder = Recorder { http: self.http.clone(), last: Mutex::default() };
                // The crate compares the metadata's `issuer` with ours byte for byte (Discovery section 4.3).
                CoreProviderMetadata::discover_async(issuer.clone(), &recorder).await.map_err(reason)?;
                recorder.last.into_inner().unwrap_or_else(PoisonError::into_inner)
            }
        };
        Ok(Fetched { document, tenant })
    }
}

/// Where an issuer describes its authorization server: OpenID discovery, or RFC 8414 where that is not there.
#[derive(Clone)]
pub(super) struct Description {
    urls: [Url; 2],
    http: Http,
}

impl Description {
    pub(super) async fn fetch(&self) -> Result<Vec<u8>, FetchError> {
        let [openid, oauth] = self.urls.clone();
        match self.http.read(openid).await {
            Err(FetchError::Status { status: 404, .. }) => self.http.read(oauth).await,
            outcome => outcome,
        }
    }

    /// May an endpoint be there?
    pub(super) fn permits(&self, url: &Url) -> bool {
        self.http.permits(url)
    }
}

/// What failed, without the body that the crate's error carries.
fn reason(error: openidconnect::DiscoveryError<FetchError>) -> FetchError {
    use openidconnect::DiscoveryError;
    match error {
        DiscoveryError::Request(error) => error,
        DiscoveryError::Response(_, _, reason) | DiscoveryError::Other(reason) | DiscoveryError::Validation(reason) => {
            FetchError::Discovery { reason: reason.chars().filter(|c| !c.is_control()).take(300).collect() }
        }
        DiscoveryError::Parse(error) => {
            FetchError::Discovery { reason: format!("`{}` is missing or malformed", error.path()) }
        }
        error => FetchError::Discovery { reason: error.to_string() },
    }
}

/// The clients, made when the first issuer needs one: loading the system's certificates takes a while.
#[derive(Default)]
pub(super) struct Fetchers {
    local: Option<Http>,
    remote: Option<Http>,
}

impl Fetchers {
    pub(super) fn discovered(&mut self, issuer: &str) -> Result<Origin, StartError> {
        let fail = |reason: &str| StartError::Issuer { issuer: issuer.into(), reason: reason.into() };
        let place =
            IssuerUrl::new(issuer.into()).map_err(|_| fail("is not a URL, so its keys cannot be discovered"))?;
        if place.url().query().is_some() || place.url().fragment().is_some() {
            return Err(fail("has a query or a fragment, so its keys cannot be discovered"));
        }
        let http = self.client(issuer, place.url())?;
        Ok(Origin { place: Place::Discovered(place), http })
    }

    /// Entra's metadata at this URL, which must name `named`.
    pub(super) fn entra(&mut self, issuer: &str, url: &str, named: entra::Named) -> Result<Origin, StartError> {
        let malformed = |_| StartError::Issuer { issuer: issuer.into(), reason: format!("`{url}` is not a URL") };
        let metadata = Url::parse(url).map_err(malformed)?;
        Ok(Origin { http: self.client(issuer, &metadata)?, place: Place::Entra { metadata, named } })
    }

    pub(super) fn fixed(&mut self, issuer: &str, url: &str) -> Result<Origin, StartError> {
        let malformed = |_| StartError::Issuer { issuer: issuer.into(), reason: format!("`{url}` is not a URL") };
        let url = Url::parse(url).map_err(malformed)?;
        Ok(Origin { http: self.client(issuer, &url)?, place: Place::Fixed(url) })
    }

    pub(super) fn description(&mut self, issuer: &str) -> Result<Description, StartError> {
        let malformed = || StartError::Issuer { issuer: issuer.into(), reason: "is not a URL to ask".into() };
        let url = Url::parse(issuer).ok().filter(|url| url.query().is_none() && url.fragment().is_none());
        let url = url.ok_or_else(malformed)?;
        let path = url.path().trim_end_matches('/');
        let at = |path: String| {
            let mut url = url.clone();
            url.set_path(&path);
            url
        };
        let openid = at(format!("{path}/.well-known/openid-configuration"));
        let oauth = at(format!("/.well-known/oauth-authorization-server{path}"));
        Ok(Description { urls: [openid, oauth], http: self.client(issuer, &url)? })
    }

    /// Only an issuer that is itself on loopback may be asked over plain HTTP.
    fn client(&mut self, issuer: &str, url: &Url) -> Result<Http, StartError> {
        let local = url.scheme() == "http" && is_loopback(url);
        let slot = if local { &mut self.local } else { &mut self.remote };
        let http = match slot {
            Some(http) => http.clone(),
            None => slot.insert(Http::new(local)?).clone(),
        };
        if http.permits(url) {
            return Ok(http);
        }
        let reason = "its keys must come from an `https` URL without credentials (`http` only from loopback)".into();
        Err(StartError::Issuer { issuer: issuer.into(), reason })
    }
}

#[derive(Clone)]
struct Http {
    client: reqwest::Client,
    /// Plain HTTP to loopback, and nothing else.
    local: bool,
}

impl Http {
    fn new(local: bool) -> Result<Http, StartError> {
        // reqwest panics without a provider; if one is installed already this changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .timeout(FETCH_TIMEOUT)
            // Fetches are rare, and a kept connection could belong to a runtime that has ended.
            .pool_max_idle_per_host(0)
            .user_agent(concat!("wardgate/", env!("CARGO_PKG_VERSION")));
        let builder = if local { builder.no_proxy().tls_certs_only([]) } else { builder.https_only(true) };
        let client = builder.build().map_err(|error| StartError::Client { reason: chain(&error) })?;
        Ok(Http { client, local })
    }

    fn permits(&self, url: &Url) -> bool {
        let scheme = if self.local { url.scheme() == "http" && is_loopback(url) } else { url.scheme() == "https" };
        scheme && url.host().is_some() && url.username().is_empty() && url.password().is_none()
    }

    async fn read(&self, url: Url) -> Result<Vec<u8>, FetchError> {
        let (response, body) = self.get(url.clone()).await?;
        match response.as_u16() {
            200 => Ok(body),
            status => Err(FetchError::Status { status, url: url.into() }),
        }
    }

    async fn get(&self, url: Url) -> Result<(http::StatusCode, Vec<u8>), FetchError> {
        // Also for the `jwks_uri` of a discovery document.
        if !self.permits(&url) {
            return Err(FetchError::Url { url: url.into() });
        }
        let failed =
            |error: reqwest::Error| FetchError::Transport { url: url.to_string(), reason: chain(&error.without_url()) };
        let request = self.client.get(url.clone()).header(http::header::ACCEPT, "application/json");
        let mut response = request.send().await.map_err(failed)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > JWKS_BYTES_MAX {
                return Err(FetchError::TooLong { url: url.into() });
            }
            body.extend_from_slice(&chunk);
        }
        Ok((response.status(), body))
    }
}

/// The HTTP client `openidconnect` asks for. It keeps the last body, which is the JWKS document: we read the keys as
/// served, for the crate's own form of them leaves members out.
struct Recorder {
    http: Http,
    last: Mutex<Vec<u8>>,
}

impl<'c> AsyncHttpClient<'c> for Recorder {
    type Error = FetchError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, FetchError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let url = request.uri().to_string();
            let url = Url::parse(&url).map_err(|_| FetchError::Url { url })?;
            let (status, body) = self.http.get(url).await?;
            self.last.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&body);
            let mut response = HttpResponse::new(body);
            *response.status_mut() = status;
            Ok(response)
        })
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// reqwest says what happened only in the sources of its errors.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
