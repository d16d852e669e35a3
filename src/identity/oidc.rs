//! Fetching an issuer's keys over HTTPS: discovery (OpenID's or Entra's) or a fixed URL, bounded in time and size.

use std::collections::HashMap;
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
use url::Url;

use super::StartError;
use super::entra;
use super::jwks::JWKS_BYTES_MAX;
use crate::fetch;
use crate::fetch::Fetch;
use crate::fetch::Reach;

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
    #[error(transparent)]
    Fetch(#[from] fetch::Error),
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
    reach: Reach,
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

    /// May an endpoint be there? Clients go there, not we.
    pub(super) fn permits(&self, url: &Url) -> bool {
        self.reach.permits(url)
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
pub(super) struct Fetchers(HashMap<Reach, Fetch>);

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
        Ok(Description { urls: [openid, oauth], reach: Reach::of(&url), http: self.client(issuer, &url)? })
    }

    /// Only an issuer that is itself on loopback may be asked over plain HTTP.
    fn client(&mut self, issuer: &str, url: &Url) -> Result<Http, StartError> {
        if Reach::of(url).permits(url) {
            return Http::new(url, &mut self.0);
        }
        let reason = "its keys must come from an `https` URL without credentials (`http` only from loopback)".into();
        Err(StartError::Issuer { issuer: issuer.into(), reason })
    }
}

/// The client for what the operator wrote, and where that names another host (a `jwks_uri`) the one for that.
#[derive(Clone)]
struct Http {
    own: Fetch,
    named: Option<Fetch>,
    host: Option<String>,
}

impl Http {
    fn new(url: &Url, clients: &mut HashMap<Reach, Fetch>) -> Result<Http, StartError> {
        let mut client = |reach: Reach| -> Result<Fetch, StartError> {
            if let Some(known) = clients.get(&reach) {
                return Ok(known.clone());
            }
            let made = Fetch::new(reach, None, FETCH_TIMEOUT);
            let made = made.map_err(|error| StartError::Client { reason: error.to_string() })?;
            Ok(clients.entry(reach).or_insert(made).clone())
        };
        let reach = Reach::of(url);
        let own = client(reach)?;
        let named = if reach == Reach::Configured { Some(client(Reach::Named)?) } else { None };
        Ok(Http { own, named, host: url.host_str().map(str::to_owned) })
    }

    async fn read(&self, url: Url) -> Result<Vec<u8>, FetchError> {
        match self.get(&url).await? {
            (200, body) => Ok(body),
            (status, _) => Err(FetchError::Status { status, url: url.into() }),
        }
    }

    /// Also for the `jwks_uri` of a discovery document: on another host it must be public.
    async fn get(&self, url: &Url) -> Result<(u16, Vec<u8>), FetchError> {
        let same = url.host_str() == self.host.as_deref();
        let fetch = self.named.as_ref().filter(|_| !same).unwrap_or(&self.own);
        let mut answer = fetch.get(url, JWKS_BYTES_MAX).await?;
        Ok((answer.status, std::mem::take(&mut *answer.body)))
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
            let (status, body) = self.http.get(&url).await?;
            self.last.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&body);
            let mut response = HttpResponse::new(body);
            *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::BAD_GATEWAY);
            Ok(response)
        })
    }
}
