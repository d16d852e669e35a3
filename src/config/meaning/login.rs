//! `login` of an issuer, as meant.

use url::Url;

use super::identity::check_url;
use crate::config::book::Book;
use crate::config::book::Key;
use crate::config::file;
use crate::config::scalar::short;
use crate::identity::entra::Named;
use crate::identity::facade;

const CLIENT_ID_BYTES_MAX: usize = 512;
const REDIRECTS_MAX: usize = 64;

/// Schemes that a browser runs, shows or fetches; no application is started by them.
const BROWSER_SCHEMES: [&str; 12] =
    ["about", "blob", "data", "file", "ftp", "http", "javascript", "mailto", "vbscript", "view-source", "ws", "wss"];

/// How clients log in at an issuer, beside the `known` ones; `key` is where it stands, and with it comes what one of Entra's
/// must call itself.
pub(super) fn login(
    book: &mut Book<'_>,
    key: &Key,
    written: Option<file::Login>,
    (issuer, entra): (&str, Option<Named>),
    known: &mut Vec<facade::Login>,
) {
    let Some(written) = written else { return };
    let key = key.at("login");
    let client_id =
        book.require(&key, "client_id", written.client_id, "client_id: 00000000-0000-0000-0000-000000000000");
    if let Some(id) = &client_id
        && (id.is_empty() || id.len() > CLIENT_ID_BYTES_MAX || !id.bytes().all(|byte| (0x20..=0x7e).contains(&byte)))
    {
        book.error(&key.at("client_id"), format!("`{}` is not a client id", short(id)));
    }
    let redirect_uris = written.redirect_uris.unwrap_or_default();
    if redirect_uris.len() > REDIRECTS_MAX {
        book.error(&key.at("redirect_uris"), format!("more than {REDIRECTS_MAX} redirects"));
    }
    for (index, redirect) in redirect_uris.iter().enumerate() {
        check_redirect(book, &key.at("redirect_uris").index(index), redirect);
    }
    let loopback = written.loopback.unwrap_or(true);
    if !loopback && redirect_uris.is_empty() && !book.touched(&key.at("redirect_uris")) {
        book.error(&key, "nobody could log in: `loopback` is off and there are no `redirect_uris`");
    }
    let scope_prefix = written.scope_prefix.unwrap_or_default();
    if !scope_prefix.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\') {
        book.error(&key.at("scope_prefix"), format!("`{}` cannot stand in a scope", short(&scope_prefix)));
    }
    check_url(book, &key, issuer, "where its login is described: `issuer`");
    let Some(client_id) = client_id else { return };
    let login = facade::Login { issuer: issuer.to_owned(), entra, client_id, loopback, redirect_uris, scope_prefix };
    if login.path().is_none() && !issuer.is_empty() {
        book.error(&key, format!("`{}` has characters that the path of its login cannot have", short(issuer)));
    } else if known.iter().any(|other| other.path() == login.path()) {
        book.error(&key, "stands where the login of another issuer stands: they differ only at the end");
    }
    known.push(login);
}

/// Whoever controls a redirect address gets the codes of everybody who follows a link to it.
fn check_redirect(book: &mut Book<'_>, key: &Key, text: &str) {
    let url = Url::parse(text).ok();
    let exact = text.bytes().all(|byte| byte.is_ascii_graphic() && !b"*\\".contains(&byte));
    let good = url.is_some_and(|url| {
        let clean = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
        clean && (if url.scheme() == "https" { url.has_host() } else { !BROWSER_SCHEMES.contains(&url.scheme()) })
    });
    if !exact || !good {
        book.error(
            key,
            format!(
                "`{}` is not an exact address such as `https://app.example.com/callback` or `cursor://mcp/callback`; \
                 redirects to the client's own machine are allowed by `loopback`",
                short(text)
            ),
        );
    }
}
