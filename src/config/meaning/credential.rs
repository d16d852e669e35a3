//! A backend's `credential`, as meant: which kind, which token endpoint, and how the gateway proves itself there.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use http::HeaderValue;
use url::Url;

use super::identity::entra::both_forms;
use crate::config::book::Book;
use crate::config::book::Key;
use crate::config::file;
use crate::config::scalar::Strings;
use crate::config::scalar::short;
use crate::credentials;
use crate::credentials::Algorithm;
use crate::credentials::Client;
use crate::credentials::Grant;
use crate::credentials::Minted;
use crate::credentials::Place;
use crate::credentials::Proof;
use crate::fetch::Reach;
use crate::identity;
use crate::identity::entra::Entra;
use crate::identity::entra::is_id;
use crate::secret::Secret;

/// A provider answers in less than a second; a caller waits for it.
const TIMEOUT: Duration = Duration::from_secs(5);

const AUTHORITY: &str = "https://login.microsoftonline.com";

const CERTIFICATE_BYTES_MAX: u64 = 64 * 1024;

/// Headers that the gateway writes itself, that belong to one connection, or that carry the caller's credential.
const OWN_HEADERS: [&str; 24] = [
    "accept",
    "accept-encoding",
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "last-event-id",
    "origin",
    "proxy-authorization",
    "proxy-connection",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-api-key",
    "x-forwarded-for",
];

/// The one kind that is written.
pub(super) fn credential(book: &mut Book<'_>, key: &Key, mut written: file::Credential) -> credentials::Config {
    let kinds = [
        ("value", written.value.is_some()),
        ("on_behalf_of", written.on_behalf_of.is_some()),
        ("token_exchange", written.token_exchange.is_some()),
        ("client_credentials", written.client_credentials.is_some()),
        ("workload_identity", written.workload_identity.is_some()),
        ("managed_identity", written.managed_identity.is_some()),
        ("forward", written.forward.is_some()),
    ];
    let named: Vec<&str> = kinds.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
    if let [first, second, ..] = named.as_slice() {
        book.error(key, format!("`{first}` and `{second}` exclude each other: a backend has one kind of credential"));
        return credentials::Config::None;
    }
    let kind = named.first().copied().unwrap_or("value");
    fits(book, key, &written, kind);
    match kind {
        "value" => fixed(book, key, written),
        "forward" => {
            let audience = written.forward.and_then(|forward| forward.audience);
            let audience = book.require(&key.at("forward"), "audience", audience, "audience: https://mcp.example.com");
            audience.map_or(credentials::Config::None, |audience| credentials::Config::Forward { audience })
        }
        _ => {
            let discovery = written.discovery.take().map(|one| discovery(book, &key.at("discovery"), one));
            minted(book, key, written, discovery)
        }
    }
}

/// What belongs to another kind is a mistake.
fn fits(book: &mut Book<'_>, key: &Key, written: &file::Credential, kind: &str) {
    let placed = matches!(kind, "on_behalf_of" | "token_exchange" | "client_credentials");
    let personal = matches!(kind, "on_behalf_of" | "token_exchange");
    let minted = !matches!(kind, "value" | "forward");
    let wrong = [
        ("header", written.header.is_some() && kind != "value", "is for `value`"),
        ("scheme", written.scheme.is_some() && kind != "value", "is for `value`"),
        (
            "tenants",
            written.tenants.is_some() && !placed,
            "is for `on_behalf_of`, `token_exchange` and `client_credentials`",
        ),
        ("discovery", written.discovery.is_some() && !personal, "is for `on_behalf_of` and `token_exchange`"),
        ("ca", written.ca.is_some() && !minted, "is for tokens that the gateway gets"),
        ("timeout", written.timeout.is_some() && !minted, "is for tokens that the gateway gets"),
    ];
    for (name, _, message) in wrong.into_iter().filter(|(_, there, _)| *there) {
        book.error(&key.at(name), message);
    }
}

/// A grant with its place; `None` after an error.
type Aim = Option<(Grant, Place)>;

fn minted(
    book: &mut Book<'_>,
    key: &Key,
    written: file::Credential,
    discovery: Option<credentials::Config>,
) -> credentials::Config {
    let aim = on_behalf_of(book, &key.at("on_behalf_of"), written.on_behalf_of)
        .or_else(|| exchange(book, &key.at("token_exchange"), written.token_exchange))
        .or_else(|| own(book, key, (written.client_credentials, written.workload_identity, written.managed_identity)));
    let ca = written.ca.map(|path| book.readable(&key.at("ca"), &path));
    let timeout = book.span(key, "timeout", written.timeout, TIMEOUT);
    let tenants = written.tenants.unwrap_or_default();
    let Some((grant, place)) = aim else { return credentials::Config::None };
    let tenants = tenants_of(book, &key.at("tenants"), tenants, &place);
    let discovery = discovery.map(|mut discovery| {
        if let credentials::Config::Minted(own) = &mut discovery {
            (own.ca, own.timeout) = (ca.clone(), timeout);
        }
        Box::new(discovery)
    });
    credentials::Config::Minted(Box::new(Minted { grant, place, tenants, discovery, ca, timeout }))
}

/// Entra's ids of tenants are in lower case in a caller's token, however the portal or the operator writes them.
fn tenants_of(
    book: &mut Book<'_>,
    key: &Key,
    written: BTreeMap<String, file::TenantPlace>,
    home: &Place,
) -> BTreeMap<String, Place> {
    let mut tenants = BTreeMap::new();
    for (name, other) in written {
        let key = key.at(&name);
        let id = name.to_ascii_lowercase();
        let name = if is_id(&id) { id } else { name };
        match tenants.entry(name) {
            Entry::Occupied(_) => {
                book.error(&key, "is there twice: the ids of tenants are the same in lower and upper case");
            }
            Entry::Vacant(entry) => {
                if let Some(place) = tenant_place(book, &key, other, home) {
                    entry.insert(place);
                }
            }
        }
    }
    tenants
}

/// The caller's tenant is what the issuer of their token says it is: with several issuers, each can say any.
pub(super) fn check_tenants(
    book: &mut Book<'_>,
    root: &Key,
    backends: &[crate::backend::remote::Config],
    identity: &identity::Config,
) {
    let naming = identity.issuers.iter().filter(|issuer| !issuer.tenant_claims.is_empty()).count();
    if naming + identity.entra.len() < 2 {
        return;
    }
    for backend in backends {
        let credentials::Config::Minted(minted) = &backend.credential else { continue };
        if !minted.tenants.is_empty() {
            let key = root.at("backends").at(&backend.name).at("credential").at("tenants");
            book.warn(
                &key,
                "several issuers are trusted, and a caller's tenant is taken from any of them: trust only issuers that give no tenant another's name",
            );
        }
    }
}

type Own = (Option<file::ClientCredentials>, Option<file::WorkloadIdentity>, Option<file::ManagedIdentity>);

/// The kinds that are the gateway's own.
fn own(book: &mut Book<'_>, key: &Key, (client, pod, machine): Own) -> Aim {
    client_credentials(book, &key.at("client_credentials"), client)
        .or_else(|| workload(book, &key.at("workload_identity"), pod))
        .or_else(|| managed(book, &key.at("managed_identity"), machine))
}

fn on_behalf_of(book: &mut Book<'_>, key: &Key, written: Option<file::OnBehalfOf>) -> Aim {
    let written = written?;
    let token_url = endpoint(book, key, written.token_url, written.tenant, written.authority);
    let client = client(book, key, written.client);
    let scope = book.require(key, "scope", written.scope, "scope: api://notes/.default");
    let scope = words(book, &key.at("scope"), scope)?;
    let continuous_access = written.continuous_access.unwrap_or(false);
    Some((Grant::OnBehalfOf { scope, continuous_access }, Place { token_url: Some(token_url?), client: Some(client?) }))
}

fn exchange(book: &mut Book<'_>, key: &Key, written: Option<file::TokenExchange>) -> Aim {
    let written = written?;
    let token_url = book.require(key, "token_url", written.token_url, "token_url: https://idp.example.com/token");
    let token_url = token_url.and_then(|text| url(book, &key.at("token_url"), &text));
    let client = client(book, key, written.client);
    let grant = Grant::Exchange {
        audience: written.audience.unwrap_or_default().0,
        resource: written.resource.unwrap_or_default().0,
        scope: written.scope.and_then(|scope| words(book, &key.at("scope"), Some(scope))),
        actor: written.actor_token_file.map(|path| book.readable(&key.at("actor_token_file"), &path)),
    };
    Some((grant, Place { token_url: Some(token_url?), client: Some(client?) }))
}

fn client_credentials(book: &mut Book<'_>, key: &Key, written: Option<file::ClientCredentials>) -> Aim {
    let written = written?;
    let token_url = endpoint(book, key, written.token_url, written.tenant, written.authority);
    let client = client(book, key, written.client);
    let grant = Grant::Client {
        audience: written.audience.unwrap_or_default().0,
        resource: written.resource.unwrap_or_default().0,
        scope: written.scope.and_then(|scope| words(book, &key.at("scope"), Some(scope))),
    };
    Some((grant, Place { token_url: Some(token_url?), client: Some(client?) }))
}

/// Workload identity is client credentials with an assertion that Kubernetes renews.
fn workload(book: &mut Book<'_>, key: &Key, written: Option<file::WorkloadIdentity>) -> Aim {
    let written = written?;
    let mut known = |name: &str, value: Option<String>, variable: &str| {
        let value = value.or_else(|| std::env::var(variable).ok()).filter(|value| !value.is_empty());
        if value.is_none() && book.options().check_files {
            book.missing(
                &key.at(name),
                format!("is missing, and so is `{variable}` in the environment: does the pod use workload identity?"),
            );
        }
        value.unwrap_or_default()
    };
    let tenant = known("tenant", written.tenant, "AZURE_TENANT_ID");
    let id = known("client_id", written.client_id, "AZURE_CLIENT_ID");
    let file = known("token_file", written.token_file, "AZURE_FEDERATED_TOKEN_FILE");
    let authority = written.authority.or_else(|| std::env::var("AZURE_AUTHORITY_HOST").ok());
    let tenant = if tenant.is_empty() { "unknown".to_owned() } else { tenant };
    let token_url = endpoint(book, key, None, Some(tenant), authority);
    let file: PathBuf = if file.is_empty() { PathBuf::new() } else { book.place(&key.at("token_file"), &file) };
    let scope = book.require(key, "scope", written.scope, "scope: https://vault.azure.net/.default");
    let scope = words(book, &key.at("scope"), scope)?;
    let grant = Grant::Client { audience: Vec::new(), resource: Vec::new(), scope: Some(scope) };
    let client = Client { id, proof: Proof::File(file) };
    Some((grant, Place { token_url: Some(token_url?), client: Some(client) }))
}

fn managed(book: &mut Book<'_>, key: &Key, written: Option<file::ManagedIdentity>) -> Aim {
    let written = written?;
    let scope = book.require(key, "scope", written.scope, "scope: https://vault.azure.net/.default")?;
    if !scope.ends_with("/.default") || scope.contains(char::is_whitespace) {
        book.error(&key.at("scope"), "is one resource and `/.default`, as `https://vault.azure.net/.default`");
    }
    let identity = credentials::Identity { client_id: written.client_id };
    Some((Grant::Managed { identity, scope }, Place { token_url: None, client: None }))
}

fn discovery(book: &mut Book<'_>, key: &Key, written: file::Discovery) -> credentials::Config {
    let count =
        [written.client_credentials.is_some(), written.workload_identity.is_some(), written.managed_identity.is_some()];
    if count.iter().filter(|there| **there).count() != 1 {
        book.missing(key, "is one of `client_credentials`, `workload_identity` and `managed_identity`");
    }
    let aim = own(book, key, (written.client_credentials, written.workload_identity, written.managed_identity));
    let Some((grant, place)) = aim else { return credentials::Config::None };
    let minted = Minted { grant, place, tenants: BTreeMap::new(), discovery: None, ca: None, timeout: TIMEOUT };
    credentials::Config::Minted(Box::new(minted))
}

fn tenant_place(book: &mut Book<'_>, key: &Key, written: file::TenantPlace, home: &Place) -> Option<Place> {
    let elsewhere = written.token_url.is_some() || written.tenant.is_some() || written.authority.is_some();
    let token_url = match elsewhere {
        true => endpoint(book, key, written.token_url, written.tenant, written.authority),
        false => home.token_url.clone(),
    };
    let client = match written.client {
        Some(written) => client(book, key, Some(written)),
        None => home.client.clone(),
    };
    Some(Place { token_url: Some(token_url?), client: Some(client?) })
}

/// The token endpoint, as written or as Entra's follows from the tenant.
fn endpoint(
    book: &mut Book<'_>,
    key: &Key,
    token_url: Option<String>,
    tenant: Option<String>,
    authority: Option<String>,
) -> Option<Url> {
    if let Some(text) = token_url {
        if tenant.is_some() || authority.is_some() {
            book.error(&key.at("token_url"), "and `tenant` with `authority` exclude each other");
        }
        return url(book, &key.at("token_url"), &text);
    }
    let tenant = book.require(key, "tenant", tenant, "tenant: 72f988bf-86f1-41af-91ab-2d7cd011db47")?;
    let plain = !tenant.is_empty() && tenant.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
    if !plain || ["common", "consumers", "organizations"].contains(&tenant.as_str()) {
        book.error(&key.at("tenant"), format!("`{}` is not the id or domain of one directory", short(&tenant)));
        return None;
    }
    let authority = authority.as_deref().unwrap_or(AUTHORITY).trim_end_matches('/');
    url(book, &key.at("authority"), &format!("{authority}/{tenant}/oauth2/v2.0/token"))
}

fn url(book: &mut Book<'_>, key: &Key, text: &str) -> Option<Url> {
    let url = Url::parse(text).ok().filter(|url| url.fragment().is_none() && Reach::of(url).permits(url));
    if url.is_none() {
        book.error(
            key,
            "is not a token endpoint: `https`, without user and password, and not where a cloud keeps its metadata (`http` only on loopback)",
        );
    }
    url
}

/// How the gateway proves itself: exactly one way.
pub(super) fn client(book: &mut Book<'_>, key: &Key, written: Option<file::Client>) -> Option<Client> {
    let example = "client: { id: 11111111-2222-3333-4444-555555555555, secret: file:/run/secrets/client }";
    let written = book.require(key, "client", written, example)?;
    let key = &key.at("client");
    let id = book.require(key, "id", written.id, "id: 11111111-2222-3333-4444-555555555555");
    let ways = [
        ("secret", written.secret.is_some()),
        ("key", written.key.is_some()),
        ("token_file", written.token_file.is_some()),
        ("managed_identity", written.managed_identity.is_some()),
    ];
    let named: Vec<&str> = ways.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
    match named.as_slice() {
        [] => book.missing(key, "proves nothing: give `secret`, `key`, `token_file` or `managed_identity`"),
        [_] => {}
        [first, second, ..] => book.error(key, format!("`{first}` and `{second}` exclude each other")),
    }
    let signs = written.key.is_some();
    let wrong = [
        ("auth", written.auth.is_some() && written.secret.is_none(), "is for `secret`"),
        ("certificate", written.certificate.is_some() && !signs, "is for `key`"),
        ("algorithm", written.algorithm.is_some() && !signs, "is for `key`"),
        ("key_id", written.key_id.is_some() && !signs, "is for `key`"),
    ];
    for (name, _, message) in wrong.into_iter().filter(|(_, there, _)| *there) {
        book.error(&key.at(name), message);
    }
    let proof = if let Some(reference) = &written.secret {
        let secret = book.secret(&key.at("secret"), reference);
        match written.auth {
            Some(file::SecretIn::Basic) => Proof::Basic(secret),
            Some(file::SecretIn::Post) | None => Proof::Post(secret),
        }
    } else if let Some(reference) = &written.key {
        let certificate = written.certificate.map(|path| {
            let key = key.at("certificate");
            let path = book.readable(&key, &path);
            // Where files are not looked at, nothing is in them.
            let pem = book.text(&key, &path, CERTIFICATE_BYTES_MAX).unwrap_or_default();
            (path, pem)
        });
        let algorithm = match written.algorithm {
            Some(file::Signature::Es256) => Algorithm::Es256,
            Some(file::Signature::Rs256) => Algorithm::Rs256,
            Some(file::Signature::Ps256) | None => Algorithm::Ps256,
        };
        let key = book.secret(&key.at("key"), reference);
        Proof::Signed { key, algorithm, key_id: written.key_id, certificate }
    } else if let Some(path) = written.token_file {
        Proof::File(book.readable(&key.at("token_file"), &path))
    } else {
        Proof::Managed(credentials::Identity { client_id: written.managed_identity?.client_id })
    };
    Some(Client { id: id?, proof })
}

/// Scopes in one text, with blanks.
fn words(book: &mut Book<'_>, key: &Key, scopes: Option<Strings>) -> Option<String> {
    let scopes = scopes?.0;
    let good = |scope: &String| !scope.is_empty() && scope.bytes().all(|byte| byte.is_ascii_graphic());
    if scopes.is_empty() || !scopes.iter().all(good) {
        book.error(key, "is one or more scopes without blanks, as `api://notes/.default`");
        return None;
    }
    Some(scopes.join(" "))
}

/// A token may go on as it came only where it is for the server as much as for the gateway.
pub(super) fn check_forwarded(
    book: &mut Book<'_>,
    root: &Key,
    backends: &[crate::backend::remote::Config],
    identity: &identity::Config,
) {
    for backend in backends {
        let credentials::Config::Forward { audience } = &backend.credential else { continue };
        let key = root.at("backends").at(&backend.name).at("credential").at("forward").at("audience");
        let same = |issuer: &identity::Issuer| issuer.audiences.len() == 1 && issuer.audiences.contains(audience);
        let forms = both_forms(vec![audience.clone()]);
        let same_application = |entra: &Entra| entra.audiences.iter().all(|one| forms.contains(one));
        let none = identity.issuers.is_empty() && identity.entra.is_empty();
        if none || !identity.issuers.iter().all(same) || !identity.entra.iter().all(same_application) {
            book.error(
                &key,
                "must be the one audience of every issuer under `identity`: tokens for others must not go on",
            );
        }
    }
}

fn fixed(book: &mut Book<'_>, key: &Key, written: file::Credential) -> credentials::Config {
    let name = written.header.unwrap_or_else(|| "authorization".to_owned());
    let header = match name.parse::<HeaderName>() {
        Ok(header) if header == http::header::AUTHORIZATION || header.as_str() == "x-api-key" => Some(header),
        Ok(header) if OWN_HEADERS.contains(&header.as_str()) || header.as_str().starts_with("mcp-") => {
            book.error(
                &key.at("header"),
                format!("`{header}` cannot carry a credential: the gateway writes it itself"),
            );
            None
        }
        Ok(header) => Some(header),
        Err(_) => {
            book.error(&key.at("header"), format!("`{}` is not a header's name", short(&name)));
            None
        }
    };
    let scheme = match written.scheme {
        Some(scheme) if scheme == "none" => None,
        Some(scheme)
            if scheme.is_empty() || !scheme.chars().all(|c| c.is_ascii_alphanumeric() || "-._~+".contains(c)) =>
        {
            book.error(&key.at("scheme"), "is one word such as `Bearer`, or `none`");
            None
        }
        Some(scheme) => Some(scheme),
        None => header.as_ref().filter(|header| **header == http::header::AUTHORIZATION).map(|_| "Bearer".to_owned()),
    };
    let Some(reference) = book.require(key, "value", written.value, "value: file:/run/secrets/token") else {
        return credentials::Config::None;
    };
    let secret = book.secret(&key.at("value"), &reference);
    let value = match &scheme {
        Some(scheme) => Secret::new(format!("{scheme} {}", secret.expose())),
        None => secret,
    };
    if HeaderValue::from_str(value.expose()).is_err() {
        book.error(
            &key.at("value"),
            "the secret cannot be sent in a header: it has line breaks or characters that are not ASCII",
        );
    }
    header.map_or(credentials::Config::None, |header| credentials::Config::Static { header, value })
}
