//! `Issuer`: a small OpenID Connect issuer on loopback for the demo and for tests; it signs ES256 tokens for anybody.

use std::io;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use axum::Json;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use axum::routing::post;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use http::header::CACHE_CONTROL;
use ring::rand::SecureRandom;
use serde_json::Value;
use serde_json::json;

use super::loopback::Loopback;

/// The path of every demo issuer. A configuration of `wardgate run` may not trust an issuer with it.
pub const PATH: &str = "/wardgate-demo-issuer";

/// The `client_secret` of all demo clients: no secret at all, and why the issuer must stay on loopback.
pub const CLIENT_SECRET: &str = "demo";

/// The three people of the demo, who are also its OAuth clients, and their scopes.
pub const CLIENTS: [(&str, &str); 3] =
    [("viewer", "mcp.read"), ("editor", "mcp.read mcp.write"), ("admin", "mcp.read mcp.write mcp.admin")];

const TOKEN_SECONDS: u64 = 8 * 60 * 60;
const FORM_BYTES_MAX: usize = 8 * 1024;

/// Why an issuer could not be started or its key not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the issuer's port cannot be bound")]
    Bind(#[source] io::Error),
    #[error("no signing key could be made: {what}")]
    Key { what: String },
}

/// A running issuer. Dropping it closes its port.
#[derive(Debug)]
pub struct Issuer {
    /// The exact `iss` of its tokens.
    pub url: String,
    signer: Arc<Signer>,
    server: Loopback,
}

/// What the endpoints and the owner share.
#[derive(Debug)]
struct Signer {
    url: String,
    key: RwLock<Key>,
    jwks_fetches: AtomicU64,
    /// What `/token` puts into `aud`; a client may name it, or a URL below it, as `resource`.
    audience: RwLock<Option<String>>,
}

#[derive(Debug)]
struct Key {
    id: String,
    pair: rcgen::KeyPair,
}

impl Key {
    fn make() -> Result<Key, Error> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|error| Error::Key { what: error.to_string() })?;
        Ok(Key { id: random_id()?, pair })
    }

    fn to_jwk(&self) -> Value {
        // An uncompressed point: 0x04, then x and y of 32 bytes each.
        let point = self.pair.public_key_raw().get(1..).unwrap_or_default();
        let (x, y) = point.split_at_checked(32).unwrap_or_default();
        json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.id,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        })
    }

    #[expect(clippy::expect_used, reason = "the key was made here for ES256, and a JSON value always serialises")]
    fn sign(&self, claims: &Value) -> String {
        let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
        header.kid = Some(self.id.clone());
        let key = jsonwebtoken::EncodingKey::from_ec_der(self.pair.serialized_der());
        jsonwebtoken::encode(&header, claims, &key).expect("an ES256 key signs")
    }
}

impl Issuer {
    /// Starts on 127.0.0.1 with a new key. Port 0: a free one.
    ///
    /// # Errors
    /// When the port cannot be bound or no key can be made.
    pub async fn start(port: u16) -> Result<Issuer, Error> {
        let key = Key::make()?;
        let mut made = None;
        let server = Loopback::start(port, |address| {
            let signer = Arc::new(Signer {
                url: format!("http://{address}{PATH}"),
                key: RwLock::new(key),
                jwks_fetches: AtomicU64::new(0),
                audience: RwLock::new(None),
            });
            made = Some(signer.clone());
            router(signer)
        })
        .await
        .map_err(Error::Bind)?;
        let signer = made.ok_or_else(|| Error::Bind(io::Error::other("the server has no address")))?;
        Ok(Issuer { url: signer.url.clone(), signer, server })
    }

    /// The audience of the tokens that the token endpoint gives; without one it gives none.
    pub fn serve_tokens_for(&self, audience: &str) {
        *self.signer.audience.write().unwrap_or_else(PoisonError::into_inner) = Some(audience.to_owned());
    }

    /// An access token with the usual claims, good for eight hours. `scopes` are separated by spaces.
    pub fn token(&self, subject: &str, scopes: &str, audience: &str) -> String {
        self.signer.token(subject, scopes, audience)
    }

    /// A token with exactly these claims, however wrong they are.
    pub fn token_with(&self, claims: Value) -> String {
        self.signer.key.read().unwrap_or_else(PoisonError::into_inner).sign(&claims)
    }

    /// The claims that [`Issuer::token`] signs, for tests that change some of them.
    pub fn claims(&self, subject: &str, scopes: &str, audience: &str) -> Value {
        self.signer.claims(subject, scopes, audience)
    }

    /// Puts a new key in the place of the old one, which is gone: tokens signed with it verify no more.
    ///
    /// # Errors
    /// When no key can be made; the old one stays.
    pub fn rotate(&self) -> Result<(), Error> {
        let key = Key::make()?;
        *self.signer.key.write().unwrap_or_else(PoisonError::into_inner) = key;
        Ok(())
    }

    /// The JWKS document as served now.
    pub fn jwks(&self) -> Value {
        self.signer.jwks()
    }

    /// How often the JWKS document was fetched over HTTP.
    pub fn jwks_fetches(&self) -> u64 {
        self.signer.jwks_fetches.load(Ordering::Relaxed)
    }

    /// Closes the port and all idle connections. Tokens can still be signed.
    pub async fn stop(&self) {
        self.server.stop().await;
    }
}

impl Signer {
    fn jwks(&self) -> Value {
        json!({ "keys": [self.key.read().unwrap_or_else(PoisonError::into_inner).to_jwk()] })
    }

    fn claims(&self, subject: &str, scopes: &str, audience: &str) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        json!({
            "iss": self.url, "sub": subject, "aud": audience, "client_id": subject, "scope": scopes,
            "iat": now, "nbf": now, "exp": now + TOKEN_SECONDS, "jti": random_id().unwrap_or_default(),
        })
    }

    fn token(&self, subject: &str, scopes: &str, audience: &str) -> String {
        let claims = self.claims(subject, scopes, audience);
        self.key.read().unwrap_or_else(PoisonError::into_inner).sign(&claims)
    }

    fn metadata(&self) -> Value {
        let url = &self.url;
        json!({
            "issuer": url,
            "authorization_endpoint": format!("{url}/authorize"),
            "token_endpoint": format!("{url}/token"),
            "jwks_uri": format!("{url}/jwks.json"),
            "response_types_supported": ["code"],
            "grant_types_supported": ["client_credentials"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "token_endpoint_auth_methods_supported": ["client_secret_post"],
            "code_challenge_methods_supported": ["S256"],
            "scopes_supported": ["mcp.read", "mcp.write", "mcp.admin"],
        })
    }
}

fn router(signer: Arc<Signer>) -> Router {
    Router::new()
        .route(&format!("{PATH}/.well-known/openid-configuration"), get(metadata))
        // Clients of MCP look for RFC 8414 metadata with the path behind the well-known part.
        .route(&format!("/.well-known/oauth-authorization-server{PATH}"), get(metadata))
        .route(&format!("/.well-known/openid-configuration{PATH}"), get(metadata))
        .route(&format!("{PATH}/jwks.json"), get(jwks))
        .route(&format!("{PATH}/authorize"), get(authorize))
        .route(&format!("{PATH}/token"), post(token))
        .layer(DefaultBodyLimit::max(FORM_BYTES_MAX))
        .with_state(signer)
}

async fn metadata(State(signer): State<Arc<Signer>>) -> Json<Value> {
    Json(signer.metadata())
}

async fn jwks(State(signer): State<Arc<Signer>>) -> Json<Value> {
    signer.jwks_fetches.fetch_add(1, Ordering::Relaxed);
    Json(signer.jwks())
}

/// There is nobody to log in: discovery demands the endpoint, so it says what to do instead.
async fn authorize() -> Response {
    let words = format!(
        "The demo issuer has no login page. Ask its token endpoint with grant_type=client_credentials, \
         client_id=viewer, editor or admin, and client_secret={CLIENT_SECRET}.\n"
    );
    (StatusCode::NOT_IMPLEMENTED, words).into_response()
}

/// RFC 6749 section 4.4, with the client's name and secret in the form.
async fn token(State(signer): State<Arc<Signer>>, body: bytes::Bytes) -> Response {
    let form: Vec<(String, String)> = url::form_urlencoded::parse(&body).into_owned().collect();
    let field = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    if field("grant_type") != Some("client_credentials") {
        return refuse("unsupported_grant_type");
    }
    let client = CLIENTS.into_iter().find(|(name, _)| field("client_id") == Some(name));
    let Some((subject, scopes)) = client.filter(|_| field("client_secret") == Some(CLIENT_SECRET)) else {
        return refuse("invalid_client");
    };
    let audience = signer.audience.read().unwrap_or_else(PoisonError::into_inner).clone();
    // RFC 8707: the gateway itself or one of its endpoints, nothing else.
    let Some(audience) = audience.filter(|audience| field("resource").is_none_or(|asked| is_below(asked, audience)))
    else {
        return refuse("invalid_target");
    };
    let answer = json!({
        "access_token": signer.token(subject, scopes, &audience),
        "token_type": "Bearer", "expires_in": TOKEN_SECONDS, "scope": scopes,
    });
    ([(CACHE_CONTROL, "no-store")], Json(answer)).into_response()
}

fn is_below(asked: &str, audience: &str) -> bool {
    asked.strip_prefix(audience).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn refuse(error: &'static str) -> Response {
    let status = if error == "invalid_client" { StatusCode::UNAUTHORIZED } else { StatusCode::BAD_REQUEST };
    (status, [(CACHE_CONTROL, "no-store")], Json(json!({ "error": error }))).into_response()
}

fn random_id() -> Result<String, Error> {
    let mut bytes = [0_u8; 16];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::Key { what: "the system has no randomness".to_owned() })?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::Algorithm;
    use jsonwebtoken::DecodingKey;
    use jsonwebtoken::Validation;
    use jsonwebtoken::jwk::JwkSet;

    use super::*;

    const AUDIENCE: &str = "http://127.0.0.1:8080";

    fn http() -> reqwest::Client {
        let _: Result<(), _> = rustls::crypto::ring::default_provider().install_default();
        reqwest::Client::builder().no_proxy().build().unwrap()
    }

    async fn fetch(url: &str) -> Value {
        http().get(url).send().await.unwrap().error_for_status().unwrap().json().await.unwrap()
    }

    /// As a gateway would: discovery, then the keys, then the signature and the claims.
    async fn verify(issuer: &Issuer, token: &str) -> Result<Value, jsonwebtoken::errors::Error> {
        let metadata = fetch(&format!("{}/.well-known/openid-configuration", issuer.url)).await;
        assert_eq!(metadata["issuer"], issuer.url.as_str());
        let keys: JwkSet = serde_json::from_value(fetch(metadata["jwks_uri"].as_str().unwrap()).await).unwrap();
        let kid = jsonwebtoken::decode_header(token)?.kid.unwrap();
        let jwk = keys.find(&kid).ok_or(jsonwebtoken::errors::ErrorKind::InvalidKeyFormat)?;
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[&issuer.url]);
        Ok(jsonwebtoken::decode::<Value>(token, &DecodingKey::from_jwk(jwk)?, &validation)?.claims)
    }

    #[tokio::test]
    async fn a_token_verifies_with_the_keys_that_discovery_leads_to() {
        let issuer = Issuer::start(0).await.unwrap();
        let claims = verify(&issuer, &issuer.token("editor", "mcp.read mcp.write", AUDIENCE)).await.unwrap();
        assert_eq!(claims["sub"], "editor");
        assert_eq!(claims["scope"], "mcp.read mcp.write");
        assert_eq!(issuer.jwks_fetches(), 1);
    }

    #[tokio::test]
    async fn discovery_is_complete_enough_for_the_openidconnect_crate() {
        let issuer = Issuer::start(0).await.unwrap();
        let document = fetch(&format!("{}/.well-known/openid-configuration", issuer.url)).await;
        let parsed: openidconnect::core::CoreProviderMetadata = serde_json::from_value(document).unwrap();
        assert_eq!(parsed.issuer().as_str(), issuer.url);
    }

    #[tokio::test]
    async fn after_a_rotation_only_new_tokens_verify() {
        let issuer = Issuer::start(0).await.unwrap();
        let old = issuer.token("viewer", "mcp.read", AUDIENCE);
        issuer.rotate().unwrap();
        assert!(verify(&issuer, &old).await.is_err());
        assert!(verify(&issuer, &issuer.token("viewer", "mcp.read", AUDIENCE)).await.is_ok());
    }

    #[tokio::test]
    async fn the_token_endpoint_serves_its_clients_and_nobody_else() {
        let issuer = Issuer::start(0).await.unwrap();
        issuer.serve_tokens_for(AUDIENCE);
        let ask =
            async |form: &str| http().post(format!("{}/token", issuer.url)).body(form.to_owned()).send().await.unwrap();
        let good = "grant_type=client_credentials&client_id=admin&client_secret=demo";
        let reply: Value = ask(&format!("{good}&resource={AUDIENCE}/mcp")).await.json().await.unwrap();
        let claims = verify(&issuer, reply["access_token"].as_str().unwrap()).await.unwrap();
        assert_eq!(claims["scope"], "mcp.read mcp.write mcp.admin");
        for (form, status) in [
            ("grant_type=client_credentials&client_id=admin&client_secret=wrong".to_owned(), 401),
            ("grant_type=client_credentials&client_id=root&client_secret=demo".to_owned(), 401),
            ("grant_type=password&client_id=admin&client_secret=demo".to_owned(), 400),
            (format!("{good}&resource=https://elsewhere.example"), 400),
            (format!("{good}&resource={AUDIENCE}1"), 400),
        ] {
            assert_eq!(ask(&form).await.status(), status, "{form}");
        }
    }

    #[tokio::test]
    async fn a_stopped_issuer_answers_no_more_even_on_a_kept_alive_connection() {
        let issuer = Issuer::start(0).await.unwrap();
        let (client, url) = (http(), format!("{}/jwks.json", issuer.url));
        client.get(&url).send().await.unwrap().bytes().await.unwrap();
        issuer.stop().await;
        assert!(client.get(&url).send().await.is_err());
    }
}
