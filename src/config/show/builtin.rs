//! Built-in backends as they are in force; secrets masked.

use super::MASK;
use super::Shown;
use super::list;
use super::map;
use super::maybe;
use super::mode;
use super::path;
use super::size;
use super::span;
use super::text;
use super::unless_empty;
use super::word;
use crate::backend::builtin::Config;
use crate::backend::builtin::Product;
use crate::backend::builtin::Selection;
use crate::backend::vault;
use crate::credentials;
use crate::credentials::Grant;
use crate::credentials::vault::Login;
use crate::credentials::vault::ReadOnly;

/// `held`: the filters.
pub(super) fn shown(config: &Config, held: Shown) -> Shown {
    match &config.product {
        Product::Vault(vault) => map([
            ("vault", self::vault(vault, &config.credential)),
            ("mode", maybe(config.mode, mode)),
            ("connect_timeout", span(vault.origin.connect_timeout)),
            ("answer_bytes_max", size(vault.origin.answer_bytes_max)),
            ("filters", held),
        ]),
    }
}

fn vault(vault: &vault::Config, credential: &credentials::Config) -> Shown {
    let (login, read_only, kv1) = match credential {
        credentials::Config::Minted(minted) => match &minted.grant {
            Grant::Vault(config) => (login(&config.login), read_only(config), kv1(config)),
            _ => (Shown::Nothing, Shown::Nothing, Shown::Nothing),
        },
        _ => (Shown::Nothing, Shown::Nothing, Shown::Nothing),
    };
    let client = vault.origin.client.as_ref();
    map([
        ("address", text(vault.origin.base.as_str().trim_end_matches('/'))),
        ("namespace", maybe(vault.namespace.as_ref(), text)),
        ("ca", maybe(vault.origin.ca.as_deref(), path)),
        ("client_certificate", maybe(client, |(certificate, _)| path(certificate))),
        ("client_key", maybe(client, |(_, key)| path(key))),
        ("login", login),
        ("read_only", read_only),
        ("mounts", unless_empty(&vault.mounts, |glob| text(glob.glob()))),
        ("kv1_mounts", kv1),
        ("allow_mount_management", word(vault.mount_management)),
        (
            "wrap",
            map([
                ("secrets", word(vault.wrap.secrets)),
                ("private_keys", word(vault.wrap.private_keys)),
                ("ttl", span(vault.wrap.ttl)),
            ]),
        ),
        ("tools", selection(&vault.selection)),
        ("timeout", span(vault.origin.timeout)),
        ("connections_max", word(vault.origin.connections_max)),
    ])
}

fn selection(selection: &Selection) -> Shown {
    map([
        ("groups", maybe(selection.groups.as_ref(), |groups| list(groups, text))),
        ("disable", unless_empty(&selection.disable, |glob| text(glob.glob()))),
        ("names", word(selection.names.as_str())),
    ])
}

fn login(login: &Login) -> Shown {
    match login {
        Login::Token(_) => map([("token", text(MASK))]),
        Login::AppRole { mount, .. } => {
            map([("approle", map([("mount", text(mount)), ("role_id", text(MASK)), ("secret_id", text(MASK))]))])
        }
        Login::Kubernetes { mount, role, token } => {
            map([("kubernetes", map([("mount", text(mount)), ("role", text(role)), ("token_file", path(token))]))])
        }
        Login::Jwt { mount, role } => {
            map([("jwt", map([("mount", text(mount)), ("role", maybe(role.as_ref(), text))]))])
        }
        Login::Certificate { mount, role } => {
            map([("certificate", map([("mount", text(mount)), ("role", maybe(role.as_ref(), text))]))])
        }
    }
}

fn read_only(config: &credentials::vault::Config) -> Shown {
    match &config.read_only {
        Some(ReadOnly::Child { policy, text: written, token_role }) => map([
            ("policy", text(policy)),
            ("write_policy", word(written.is_some())),
            ("token_role", maybe(token_role.as_ref(), text)),
        ]),
        Some(ReadOnly::Role(role)) => map([("role", text(role))]),
        // Below `full` this was said; above, it is the default.
        None if !config.writes => map([("trust_login", word(true))]),
        None => Shown::Nothing,
    }
}

/// They are in the text of the policy only.
fn kv1(config: &credentials::vault::Config) -> Shown {
    let Some(ReadOnly::Child { text: Some(written), .. }) = &config.read_only else { return Shown::Nothing };
    let mounts: Vec<&str> = vault::policy::kv1(written).collect();
    unless_empty(&mounts, text)
}
