//! `Managed`: the machine's identity on Azure (IMDS, App Service), by `azure_identity` over a transport that reaches only that.

use std::env;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;
use std::time::Duration;

use azure_core::credentials::TokenCredential;
use azure_core::error::Error;
use azure_core::error::ErrorKind;
use azure_core::http::AsyncRawResponse;
use azure_core::http::ClientOptions;
use azure_core::http::HttpClient;
use azure_core::http::Method;
use azure_core::http::Request;
use azure_core::http::RetryOptions;
use azure_core::http::StatusCode;
use azure_core::http::Transport;
use azure_core::http::headers::Headers;
use azure_identity::ManagedIdentityCredential;
use azure_identity::ManagedIdentityCredentialOptions;
use azure_identity::UserAssignedId;
use url::Host;
use url::Url;

use super::Identity;
use super::Why;
use super::answer;
use super::answer::Issued;
use crate::secret::Secret;

/// Where the metadata service of Azure gives tokens, and nothing else of it.
const IMDS: &str = "169.254.169.254";
const IMDS_PATH: &str = "/metadata/identity/oauth2/token";

const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The metadata service is on this machine's host.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The only way from here to the metadata service. Developer tools (`az`, environment secrets) are not looked at.
pub(super) struct Managed {
    identity: Identity,
    client: Arc<dyn HttpClient>,
}

impl Managed {
    pub(super) fn new(identity: &Identity) -> Result<Managed, String> {
        Ok(Managed { identity: identity.clone(), client: Arc::new(Wire::new()?) })
    }

    /// A token for `<resource>/.default`. Nothing is kept here: there is one cache.
    pub(super) async fn token(&self, scope: &str) -> Result<Issued, Why> {
        let client = Arc::new(Noting { client: self.client.clone(), status: AtomicU16::new(0) });
        let options = ManagedIdentityCredentialOptions {
            user_assigned_id: self.identity.client_id.clone().map(UserAssignedId::ClientId),
            client_options: ClientOptions {
                transport: Some(Transport::new(client.clone())),
                retry: RetryOptions::none(),
                ..ClientOptions::default()
            },
        };
        // INVARIANT: the error's words may quote the answer; the status does not.
        let failed = |_error: Error| {
            let status = client.status.load(Ordering::Relaxed);
            tracing::warn!(status, "no token of the managed identity");
            match status {
                // SPEC: IMDS says 404 and 410 while it is being updated, 429 when it is asked too often.
                400..=403 => Why::Misconfigured,
                _ => answer::silent(),
            }
        };
        let credential = ManagedIdentityCredential::new(Some(options)).map_err(failed)?;
        let token = credential.get_token(&[scope], None).await.map_err(failed)?;
        let until = std::time::SystemTime::from(token.expires_on);
        let lifetime = until.duration_since(std::time::SystemTime::now()).unwrap_or_default();
        Ok(Issued { token: Secret::new(token.token.secret()), lifetime, renew_in: None })
    }
}

/// Remembers the status, which the crate's errors tell only in words.
#[derive(Debug)]
struct Noting {
    client: Arc<dyn HttpClient>,
    status: AtomicU16,
}

#[async_trait::async_trait]
impl HttpClient for Noting {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let response = self.client.execute_request(request).await?;
        self.status.store(response.status().into(), Ordering::Relaxed);
        Ok(response)
    }
}

/// `azure_core`'s transport over our own client: no redirects, no proxy, bounded, one place.
#[derive(Debug)]
struct Wire {
    client: reqwest::Client,
}

impl Wire {
    fn new() -> Result<Wire, String> {
        // reqwest panics without a provider; if one is installed already this changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .no_proxy()
            .tls_certs_only([])
            .build();
        Ok(Wire { client: client.map_err(|_| "cannot make an HTTP client".to_owned())? })
    }
}

/// IMDS for tokens, or the endpoint that App Service puts on loopback or a link-local address of the container.
fn permits(url: &Url, app_service: Option<&str>) -> bool {
    if url.scheme() != "http" || !url.username().is_empty() || url.password().is_some() {
        return false;
    }
    if let Some(endpoint) = app_service {
        let endpoint = Url::parse(endpoint).ok();
        let near = match url.host() {
            Some(Host::Ipv4(address)) => address.is_loopback() || address.is_link_local(),
            Some(Host::Ipv6(address)) => address.is_loopback() || IpAddr::V6(address).is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        };
        return near
            && endpoint.is_some_and(|endpoint| endpoint.origin() == url.origin() && endpoint.path() == url.path());
    }
    url.host_str() == Some(IMDS) && url.port_or_known_default() == Some(80) && url.path() == IMDS_PATH
}

#[async_trait::async_trait]
impl HttpClient for Wire {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let refused = |what: &'static str| Error::with_message(ErrorKind::Io, what);
        let app_service = env::var("IDENTITY_ENDPOINT").ok();
        if request.method() != Method::Get || !permits(request.url(), app_service.as_deref()) {
            return Err(refused("not a place of the machine's identity"));
        }
        let mut sent = self.client.get(request.url().clone());
        for (name, value) in request.headers().iter() {
            sent = sent.header(name.as_str(), value.as_str());
        }
        let mut response = sent.send().await.map_err(|_| refused("the metadata service does not answer"))?;
        let status = StatusCode::from(response.status().as_u16());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|_| refused("the answer broke off"))? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(refused("the answer is too large"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(AsyncRawResponse::from_bytes(status, Headers::new(), body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Scripted {
        seen: std::sync::Mutex<Vec<String>>,
        answer: (u16, &'static str),
    }

    #[async_trait::async_trait]
    impl HttpClient for Scripted {
        async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
            let metadata = request.headers().iter().find(|(name, _)| name.as_str() == "metadata");
            let flag = metadata.map_or("", |(_, value)| value.as_str());
            self.seen.lock().expect("a lock").push(format!("{} {flag}", request.url()));
            let (status, body) = self.answer;
            Ok(AsyncRawResponse::from_bytes(StatusCode::from(status), Headers::new(), body.as_bytes().to_vec()))
        }
    }

    async fn asked(answer: (u16, &'static str)) -> (Result<Issued, Why>, Vec<String>) {
        let client = Arc::new(Scripted { seen: std::sync::Mutex::default(), answer });
        let identity = Identity { client_id: Some("7f3c".into()) };
        let managed = Managed { identity, client: client.clone() };
        let outcome = managed.token("https://vault.azure.net/.default").await;
        let seen = client.seen.lock().expect("a lock").clone();
        (outcome, seen)
    }

    #[tokio::test]
    async fn the_metadata_service_is_asked_as_it_wants_to_be() {
        let good = r#"{"access_token":"machine","expires_on":"4102444800","resource":"r","token_type":"Bearer"}"#;
        let (outcome, seen) = asked((200, good)).await;
        assert_eq!(outcome.expect("a token").token.expose(), "machine");
        assert_eq!(seen.len(), 1, "{seen:?}");
        let (url, flag) = seen[0].split_once(' ').expect("a URL and the header");
        let url = Url::parse(url).expect("a URL");
        let fields: std::collections::BTreeMap<_, _> = url.query_pairs().collect();
        // The trailing `/.default` is of scopes; the service wants the resource.
        assert_eq!((&*fields["resource"], &*fields["client_id"]), ("https://vault.azure.net", "7f3c"));
        assert_eq!(flag, "true", "the `Metadata` header");
        assert!(permits(&url, None));
    }

    /// Its absence is not tested here: the crate asks again for minutes, and the exchange's own time limit ends that.
    #[tokio::test]
    async fn what_the_metadata_service_refuses_is_for_the_operator_to_repair() {
        assert_eq!(asked((400, "{}")).await.0.err(), Some(Why::Misconfigured));
    }

    #[test]
    fn nothing_else_of_the_metadata_service_can_be_asked() {
        for url in [
            "http://169.254.169.254/metadata/instance?api-version=2021-02-01",
            "http://169.254.169.254:8080/metadata/identity/oauth2/token",
            "https://169.254.169.254/metadata/identity/oauth2/token",
            "http://metadata.example/metadata/identity/oauth2/token",
            "http://168.63.129.16/metadata/identity/oauth2/token",
            "http://127.0.0.1/metadata/identity/oauth2/token",
        ] {
            assert!(!permits(&Url::parse(url).expect("a URL"), None), "{url}");
        }
        let endpoint = Some("http://127.0.0.1:41741/msi/token");
        assert!(permits(&Url::parse("http://127.0.0.1:41741/msi/token?resource=x").expect("a URL"), endpoint));
        assert!(!permits(&Url::parse("http://127.0.0.1:41741/other").expect("a URL"), endpoint));
        let outside = Some("http://attacker.example/msi/token");
        assert!(!permits(&Url::parse("http://attacker.example/msi/token").expect("a URL"), outside));
    }
}
