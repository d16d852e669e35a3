//! `Signer`: how the gateway proves itself to a token endpoint: a secret, an assertion it signs, or one it is given.

use std::path::Path;
use std::time::Duration;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;
use jsonwebtoken::Header;
use ring::digest;
use ring::rand::SecureRandom;
use ring::rand::SystemRandom;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;
use tokio::io::AsyncReadExt;
use url::Url;
use url::form_urlencoded::byte_serialize;
use zeroize::Zeroizing;

use super::Algorithm;
use super::Client;
use super::Proof;
use super::Why;
use super::managed::Managed;
use crate::secret::Secret;

/// An assertion is used at once; Entra and OpenID providers take at most ten minutes.
const LIFETIME: Duration = Duration::from_secs(5 * 60);

/// For a clock that is a little behind ours.
const SKEW: Duration = Duration::from_secs(30);

/// A projected service account token is 1 to 2 KiB.
const FILE_BYTES_MAX: u64 = 64 * 1024;

const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What Entra wants the token of a managed identity to be for, when it stands for an application.
const EXCHANGE: &str = "api://AzureADTokenExchange/.default";

/// A client with its keys parsed.
#[derive(Debug)]
pub(super) struct Signer {
    id: String,
    means: Means,
}

enum Means {
    Basic(Secret),
    Post(Secret),
    Signed { key: EncodingKey, header: Box<Header> },
    File(std::path::PathBuf),
    Managed(Managed),
}

impl std::fmt::Debug for Means {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Means::Basic(_) => "Basic",
            Means::Post(_) => "Post",
            Means::Signed { .. } => "Signed",
            Means::File(_) => "File",
            Means::Managed(_) => "Managed",
        })
    }
}

/// The claims of RFC 7523 section 3.
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    jti: String,
    iat: u64,
    nbf: u64,
    exp: u64,
}

impl Signer {
    /// # Errors
    /// What is wrong with the key or the certificate.
    pub(super) fn new(client: &Client) -> Result<Signer, String> {
        let means = match &client.proof {
            Proof::Basic(secret) => Means::Basic(secret.clone()),
            Proof::Post(secret) => Means::Post(secret.clone()),
            Proof::File(path) => Means::File(path.clone()),
            Proof::Managed(identity) => Means::Managed(Managed::new(identity)?),
            Proof::Signed { key, algorithm, key_id, certificate } => {
                let key = encoding_key(key, *algorithm)?;
                let mut header = Header::new(jws(*algorithm));
                header.kid = key_id.clone();
                if let Some((_, pem)) = certificate {
                    header.x5t_s256 = Some(thumbprint(pem)?);
                }
                // A key that does not fit its algorithm is found now, not with the first caller.
                jsonwebtoken::encode(&header, &serde_json::json!({}), &key)
                    .map_err(|_| format!("the key cannot sign with {}", algorithm.as_str()))?;
                Means::Signed { key, header: Box::new(header) }
            }
        };
        Ok(Signer { id: client.id.clone(), means })
    }

    /// Adds the proof to the form; a value for `Authorization` where it goes there.
    pub(super) async fn prove(&self, form: &mut Form, token_url: &Url, at: SystemTime) -> Result<Option<Secret>, Why> {
        let assertion = match &self.means {
            Means::Basic(secret) => {
                let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
                let pair = Zeroizing::new(format!("{}:{}", encoded(&self.id), encoded(secret.expose())));
                return Ok(Some(Secret::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())))));
            }
            Means::Post(secret) => {
                form.add("client_id", &self.id);
                form.add("client_secret", secret.expose());
                return Ok(None);
            }
            Means::Signed { key, header } => Zeroizing::new(self.sign(key, header, token_url, at)?),
            Means::File(path) => read(path).await?,
            Means::Managed(managed) => Zeroizing::new(managed.token(EXCHANGE).await?.token.expose().to_owned()),
        };
        form.add("client_id", &self.id);
        form.add("client_assertion_type", ASSERTION_TYPE);
        form.add("client_assertion", &assertion);
        Ok(None)
    }

    fn sign(&self, key: &EncodingKey, header: &Header, token_url: &Url, at: SystemTime) -> Result<String, Why> {
        let now = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let claims = Claims {
            iss: &self.id,
            sub: &self.id,
            aud: token_url.as_str(),
            jti: unique()?,
            iat: now,
            nbf: now.saturating_sub(SKEW.as_secs()),
            exp: now.saturating_add(LIFETIME.as_secs()),
        };
        jsonwebtoken::encode(header, &claims, key).map_err(|error| {
            tracing::error!(%error, "a client assertion cannot be signed");
            Why::Misconfigured
        })
    }
}

/// A form in the making; wiped when dropped.
pub(super) struct Form(Zeroizing<String>);

impl Form {
    pub(super) fn new() -> Form {
        // Room for two tokens, so that growing leaves no copies behind.
        Form(Zeroizing::new(String::with_capacity(16 * 1024)))
    }

    pub(super) fn add(&mut self, name: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.extend(byte_serialize(name.as_bytes()));
        self.0.push('=');
        self.0.extend(byte_serialize(value.as_bytes()));
    }

    pub(super) fn finish(self) -> Zeroizing<String> {
        self.0
    }
}

/// 128 random bits.
fn unique() -> Result<String, Why> {
    let mut bytes = [0u8; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Why::Misconfigured)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// An assertion that somebody else renews: read each time.
pub(super) async fn read(path: &Path) -> Result<Zeroizing<String>, Why> {
    let failed = |error: std::io::Error| {
        tracing::error!(path = %path.display(), %error, "the token file cannot be read");
        Why::Misconfigured
    };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut text = Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).await.map_err(failed)?;
    let token = Zeroizing::new(text.trim().to_owned());
    if token.is_empty() || text.len() as u64 > FILE_BYTES_MAX {
        tracing::error!(path = %path.display(), "the token file is empty or too large");
        return Err(Why::Misconfigured);
    }
    Ok(token)
}

fn jws(algorithm: Algorithm) -> jsonwebtoken::Algorithm {
    match algorithm {
        Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
        Algorithm::Ps256 => jsonwebtoken::Algorithm::PS256,
        Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
    }
}

fn encoding_key(key: &Secret, algorithm: Algorithm) -> Result<EncodingKey, String> {
    let pem = key.expose().as_bytes();
    let parsed = match algorithm {
        Algorithm::Es256 => EncodingKey::from_ec_pem(pem),
        Algorithm::Ps256 | Algorithm::Rs256 => EncodingKey::from_rsa_pem(pem),
    };
    parsed.map_err(|_| format!("the key is not a PEM private key for {}", algorithm.as_str()))
}

/// SHA-256 of the first certificate in DER (RFC 7515 section 4.1.8).
fn thumbprint(pem: &str) -> Result<String, String> {
    let first = CertificateDer::pem_slice_iter(pem.as_bytes()).next();
    let leaf = first.and_then(Result::ok).ok_or("the certificate is not PEM")?;
    Ok(URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &leaf)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_encoded_as_forms_are() {
        let mut form = Form::new();
        form.add("scope", "api://a/.default b");
        form.add("client_secret", "a&b=c+d%é");
        assert_eq!(&**form.finish(), "scope=api%3A%2F%2Fa%2F.default+b&client_secret=a%26b%3Dc%2Bd%25%C3%A9");
    }

    #[tokio::test]
    async fn basic_encodes_both_halves_first() {
        let client = Client { id: "a:b".into(), proof: Proof::Basic(Secret::new("s%:é")) };
        let signer = Signer::new(&client).expect("a client");
        let url = Url::parse("https://idp.example/token").expect("a URL");
        let mut form = Form::new();
        let header = signer.prove(&mut form, &url, SystemTime::now()).await.expect("proved").expect("a header");
        let encoded = header.expose().strip_prefix("Basic ").expect("Basic");
        assert_eq!(STANDARD.decode(encoded).expect("base64"), b"a%3Ab:s%25%3A%C3%A9");
        assert!(form.finish().is_empty());
    }

    #[tokio::test]
    async fn a_signed_assertion_says_who_to_whom_and_for_how_long() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate =
            rcgen::CertificateParams::new(Vec::new()).expect("parameters").self_signed(&key).expect("one");
        let proof = Proof::Signed {
            key: Secret::new(key.serialize_pem()),
            algorithm: Algorithm::Es256,
            key_id: Some("k1".into()),
            certificate: Some(("client.crt".into(), certificate.pem())),
        };
        let signer = Signer::new(&Client { id: "gateway".into(), proof }).expect("a client");
        let url = Url::parse("https://idp.example/t/token").expect("a URL");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut seen = Vec::new();
        for _ in 0..2 {
            let mut form = Form::new();
            assert!(signer.prove(&mut form, &url, now).await.expect("proved").is_none());
            let form = form.finish();
            let fields: std::collections::BTreeMap<_, _> = url::form_urlencoded::parse(form.as_bytes()).collect();
            assert_eq!((&*fields["client_id"], &*fields["client_assertion_type"]), ("gateway", ASSERTION_TYPE));
            let parts: Vec<_> = fields["client_assertion"].split('.').map(str::to_owned).collect();
            let part = |index: usize| -> serde_json::Value {
                serde_json::from_slice(&URL_SAFE_NO_PAD.decode(&parts[index]).expect("base64")).expect("JSON")
            };
            let print = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, certificate.der()));
            let header = part(0);
            assert_eq!(
                (&header["alg"], &header["kid"], &header["x5t#S256"]),
                (&"ES256".into(), &"k1".into(), &print.into())
            );
            let claims = part(1);
            assert_eq!(
                (&claims["iss"], &claims["sub"], &claims["aud"]),
                (&"gateway".into(), &"gateway".into(), &"https://idp.example/t/token".into())
            );
            let lifetime = claims["exp"].as_u64().expect("exp") - claims["iat"].as_u64().expect("iat");
            assert!(lifetime <= 600, "{lifetime}");
            seen.push(claims["jti"].clone());
        }
        assert_ne!(seen[0], seen[1], "each assertion is used once");
    }

    #[test]
    fn a_key_that_does_not_fit_is_found_at_start() {
        let key = rcgen::KeyPair::generate().expect("a key");
        for (key, algorithm, certificate) in [
            (key.serialize_pem(), Algorithm::Ps256, None),
            ("nonsense".to_owned(), Algorithm::Es256, None),
            (key.serialize_pem(), Algorithm::Es256, Some(("client.crt".into(), "nonsense".to_owned()))),
        ] {
            let key = Secret::new(key);
            let proof = Proof::Signed { key, algorithm, key_id: None, certificate };
            assert!(Signer::new(&Client { id: "c".into(), proof }).is_err());
        }
    }

    #[tokio::test]
    async fn a_token_file_is_read_each_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        assert_eq!(read(&path).await.err(), Some(Why::Misconfigured));
        for text in ["first\n", "second"] {
            std::fs::write(&path, text).expect("written");
            assert_eq!(&**read(&path).await.expect("a token"), text.trim());
        }
        std::fs::write(&path, "x".repeat(70_000)).expect("written");
        assert_eq!(read(&path).await.err(), Some(Why::Misconfigured));
    }
}
