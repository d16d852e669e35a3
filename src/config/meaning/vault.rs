//! `backends.NAME.vault`, as meant: where Vault is, how a token is got, and which tools there are.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::is_loopback;
use crate::backend::builtin;
use crate::backend::builtin::Names;
use crate::backend::builtin::Selection;
use crate::backend::vault;
use crate::backend::vault::Wrap;
use crate::catalog::Mode;
use crate::config::book::Book;
use crate::config::book::Key;
use crate::config::file;
use crate::config::scalar::short;
use crate::credentials;
use crate::credentials::Grant;
use crate::credentials::Minted;
use crate::credentials::Place;
use crate::credentials::vault::Login;
use crate::credentials::vault::ReadOnly;
use crate::fetch::origin;
use crate::secret::Secret;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// PKI makes keys; nothing else takes a second.
const TIMEOUT: Duration = Duration::from_secs(30);
const CONNECTIONS: u32 = 256;
const CONNECTIONS_MAX: u32 = 10_000;
const ANSWER_BYTES: usize = 16 * 1024 * 1024;
const BYTES_MAX: usize = 1024 * 1024 * 1024;
const WRAP_TTL: Duration = Duration::from_secs(5 * 60);
const POD_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// What else is written of the backend.
pub(super) struct Common {
    pub(super) name: String,
    pub(super) mode: Option<Mode>,
    /// The lowest ceiling that holds for all calls of it.
    pub(super) ceiling: Mode,
    pub(super) connect_timeout: Option<crate::config::scalar::Span>,
    pub(super) answer_bytes_max: Option<crate::config::scalar::Size>,
}

/// `None` after an error.
pub(super) fn vault(book: &mut Book<'_>, root: &Key, written: file::Vault, common: Common) -> Option<builtin::Config> {
    let key = &root.at("vault");
    let base = address(book, key, written.address)?;
    let tls = super::backend::client_tls(book, key, written.ca, written.client_certificate, written.client_key, None);
    if base.scheme() == "http" && (tls.ca.is_some() || tls.client.is_some()) {
        book.error(key, "`ca`, `client_certificate` and `client_key` are for `https://` addresses only");
    }
    let timeout = book.span(key, "timeout", written.timeout, TIMEOUT);
    let connections_max = book.count(key, "connections_max", written.connections_max, CONNECTIONS, CONNECTIONS_MAX);
    let origin = origin::Config {
        base,
        ca: tls.ca,
        client: tls.client,
        connect_timeout: book.span(root, "connect_timeout", common.connect_timeout, CONNECT_TIMEOUT),
        timeout,
        connections_max: usize::try_from(connections_max).unwrap_or(usize::MAX),
        answer_bytes_max: book.size(root, "answer_bytes_max", common.answer_bytes_max, ANSWER_BYTES, 1024..=BYTES_MAX),
    };
    if let Some(namespace) = &written.namespace
        && !is_path(namespace)
    {
        book.error(&key.at("namespace"), "is not a namespace such as `team-a` or `org/team-a`");
    }
    let kv1: Vec<String> = written.kv1_mounts.unwrap_or_default();
    for (index, mount) in kv1.iter().enumerate().filter(|(_, mount)| !is_path(mount)) {
        book.error(&key.at("kv1_mounts").index(index), format!("`{}` is not the path of a mount", short(mount)));
    }
    let login = login(book, &key.at("login"), written.login, origin.client.is_some())?;
    let read_only = read_only(book, &key.at("read_only"), written.read_only, &login, &kv1, &common);
    let mut globs = |name: &str, texts: Option<Vec<String>>| -> Vec<globset::GlobMatcher> {
        let texts = texts.unwrap_or_default().into_iter().enumerate();
        texts.filter_map(|(index, text)| book.glob(&key.at(name).index(index), &text)).collect()
    };
    let mounts = globs("mounts", written.mounts);
    let wrap = wrap(book, &key.at("wrap"), written.wrap);
    let selection = selection(book, &key.at("tools"), written.tools, &vault::GROUPS);
    let grant = Grant::Vault(Box::new(credentials::vault::Config {
        origin: origin.clone(),
        namespace: written.namespace.clone(),
        login,
        read_only,
        writes: common.ceiling > Mode::ReadOnly,
    }));
    let minted = Minted {
        grant,
        place: Place { token_url: None, client: None },
        tenants: std::collections::BTreeMap::new(),
        discovery: None,
        ca: None,
        // A login may take two exchanges, and a child two more.
        timeout: timeout.saturating_mul(2),
    };
    let product = builtin::Product::Vault(Box::new(vault::Config {
        origin,
        namespace: written.namespace,
        mounts,
        mount_management: written.allow_mount_management.unwrap_or(false),
        wrap,
        selection,
    }));
    let credential = credentials::Config::Minted(Box::new(minted));
    Some(builtin::Config { name: common.name.into(), mode: common.mode, credential, product })
}

fn address(book: &mut Book<'_>, key: &Key, text: Option<String>) -> Option<Url> {
    let text = book.require(key, "address", text, "address: https://vault.example.com:8200")?;
    let key = key.at("address");
    match Url::parse(&text).ok().filter(origin::permitted) {
        Some(url) => {
            if url.scheme() == "http" && !is_loopback(&url) {
                book.warn(&key, "is plain http: tokens and secrets cross the network in the clear");
            }
            Some(url)
        }
        None => {
            // INVARIANT: the text may have a password in it.
            book.error(
                &key,
                "is not an address such as `https://vault.example.com:8200`, without user, query and fragment",
            );
            None
        }
    }
}

/// Segments between slashes, none of them empty or dots.
fn is_path(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !text.is_empty() && text.split('/').all(|part| !matches!(part, "" | "." | "..") && part.chars().all(plain))
}

fn mount(book: &mut Book<'_>, key: &Key, written: Option<String>, default: &str) -> String {
    let mount = written.unwrap_or_else(|| default.to_owned());
    if !is_path(&mount) {
        book.error(&key.at("mount"), format!("`{}` is not the path of a mount", short(&mount)));
    }
    mount
}

fn login(book: &mut Book<'_>, key: &Key, written: Option<file::VaultLogin>, certified: bool) -> Option<Login> {
    let Some(written) = written else {
        book.missing(key, "is missing; for example `login: { token: file:/run/secrets/vault-token }`");
        return None;
    };
    let file::VaultLogin { token, approle, kubernetes, jwt, certificate } = written;
    let count = [token.is_some(), approle.is_some(), kubernetes.is_some(), jwt.is_some(), certificate.is_some()];
    match count.into_iter().filter(|there| *there).count() {
        1 => {}
        0 => {
            book.missing(key, "names no way: give `token`, `approle`, `kubernetes`, `jwt` or `certificate`");
            return None;
        }
        _ => {
            book.error(key, "`token`, `approle`, `kubernetes`, `jwt` and `certificate` exclude each other");
            return None;
        }
    }
    if let Some(reference) = token {
        return Some(Login::Token(header_safe(book, &key.at("token"), &reference)));
    }
    if let Some(written) = approle {
        let key = key.at("approle");
        let mount = mount(book, &key, written.mount, "approle");
        let role_id = book.require(&key, "role_id", written.role_id, "role_id: file:/run/secrets/role-id");
        let secret_id = book.require(&key, "secret_id", written.secret_id, "secret_id: file:/run/secrets/secret-id");
        let (role_id, secret_id) = (role_id?, secret_id?);
        let role_id = book.secret(&key.at("role_id"), &role_id);
        return Some(Login::AppRole { mount, role_id, secret_id: book.secret(&key.at("secret_id"), &secret_id) });
    }
    if let Some(written) = kubernetes {
        let key = key.at("kubernetes");
        let mount = mount(book, &key, written.mount, "kubernetes");
        let role = book.require(&key, "role", written.role, "role: wardgate")?;
        let token: PathBuf = match written.token_file {
            Some(path) => book.place(&key.at("token_file"), &path),
            None => POD_TOKEN.into(),
        };
        return Some(Login::Kubernetes { mount, role, token });
    }
    if let Some(written) = jwt {
        let mount = mount(book, &key.at("jwt"), written.mount, "jwt");
        return Some(Login::Jwt { mount, role: written.role });
    }
    let written = certificate?;
    let key = key.at("certificate");
    if !certified {
        book.missing(&key, "needs `client_certificate` and `client_key`");
    }
    let mount = mount(book, &key, written.mount, "cert");
    Some(Login::Certificate { mount, role: written.role })
}

fn header_safe(book: &mut Book<'_>, key: &Key, reference: &crate::config::scalar::Reference) -> Secret {
    let secret = book.secret(key, reference);
    if http::HeaderValue::from_str(secret.expose()).is_err() {
        book.error(key, "the secret cannot be sent in a header: it has line breaks or characters that are not ASCII");
    }
    secret
}

fn read_only(
    book: &mut Book<'_>,
    key: &Key,
    written: Option<file::VaultReadOnly>,
    login: &Login,
    kv1: &[String],
    common: &Common,
) -> Option<ReadOnly> {
    let policy = format!("wardgate-{}-read-only", common.name.to_ascii_lowercase());
    let text = || Some(vault::policy::read_only(kv1));
    let Some(written) = written else {
        // Above `read-only` the login's own policies are the bound, unless something is said.
        return (common.ceiling == Mode::ReadOnly).then(|| ReadOnly::Child { policy, text: text(), token_role: None });
    };
    let child = written.policy.is_some() || written.write_policy.is_some() || written.token_role.is_some();
    let trusted = written.trust_login == Some(true);
    if usize::from(child) + usize::from(written.role.is_some()) + usize::from(trusted) > 1 {
        book.error(
            key,
            "`role`, `trust_login` and the child token (`policy`, `write_policy`, `token_role`) exclude each other",
        );
    }
    if trusted {
        return None;
    }
    if let Some(role) = written.role {
        if matches!(login, Login::Token(_) | Login::AppRole { .. }) {
            book.error(&key.at("role"), "is for the logins `kubernetes`, `jwt` and `certificate`");
        }
        return Some(ReadOnly::Role(role));
    }
    for (name, value) in [("policy", &written.policy), ("token_role", &written.token_role)] {
        if value.as_ref().is_some_and(|value| !is_path(value) || value.contains('/')) {
            book.error(&key.at(name), "is a name of letters, digits, `-`, `_` and `.`");
        }
    }
    let text = if written.write_policy.unwrap_or(true) { text() } else { None };
    Some(ReadOnly::Child { policy: written.policy.unwrap_or(policy), text, token_role: written.token_role })
}

fn wrap(book: &mut Book<'_>, key: &Key, written: Option<file::VaultWrap>) -> Wrap {
    let written = written.unwrap_or(file::VaultWrap { secrets: None, private_keys: None, ttl: None });
    let ttl = book.span(key, "ttl", written.ttl, WRAP_TTL);
    if ttl < Duration::from_secs(1) {
        book.error(&key.at("ttl"), "must be a second at least");
    }
    Wrap { secrets: written.secrets.unwrap_or(false), private_keys: written.private_keys.unwrap_or(false), ttl }
}

/// Which tools of a built-in backend are offered.
fn selection(book: &mut Book<'_>, key: &Key, written: Option<file::ToolChoice>, groups: &[&str]) -> Selection {
    let written = written.unwrap_or(file::ToolChoice { groups: None, disable: None, names: None });
    for (index, group) in written.groups.iter().flatten().enumerate() {
        if !groups.contains(&group.as_str()) {
            let known = groups.join("`, `");
            book.error(
                &key.at("groups").index(index),
                format!("there is no group `{}`; known: `{known}`", short(group)),
            );
        }
    }
    let disable = written.disable.unwrap_or_default().into_iter().enumerate();
    let disable = disable.filter_map(|(index, text)| book.glob(&key.at("disable").index(index), &text)).collect();
    let names = match written.names {
        Some(file::ToolNames::Underscored) => Names::Underscored,
        Some(file::ToolNames::Dotted) | None => Names::Dotted,
    };
    Selection { groups: written.groups, disable, names }
}
