//! A backend's credential as it is in force; secrets masked.

use super::MASK;
use super::Shown;
use super::list;
use super::map;
use super::maybe;
use super::path;
use super::span;
use super::text;
use super::unless_empty;
use super::word;
use crate::credentials::Client;
use crate::credentials::Config;
use crate::credentials::Grant;
use crate::credentials::Identity;
use crate::credentials::Minted;
use crate::credentials::Place;
use crate::credentials::Proof;

pub(super) fn shown(config: &Config) -> Shown {
    match config {
        Config::None => Shown::Nothing,
        Config::Static { header, .. } => map([("header", text(header)), ("value", text(MASK))]),
        Config::Forward { audience } => map([("forward", map([("audience", text(audience))]))]),
        Config::Minted(config) => minted(config),
    }
}

fn minted(config: &Minted) -> Shown {
    let (kind, grant) = grant(&config.grant, &config.place);
    let tenants = config.tenants.iter().map(|(tenant, other)| (tenant.clone(), place(other))).collect();
    map([
        (kind, grant),
        ("tenants", if config.tenants.is_empty() { Shown::Nothing } else { Shown::Map(tenants) }),
        ("discovery", maybe(config.discovery.as_deref(), discovery)),
        ("ca", maybe(config.ca.as_deref(), path)),
        ("timeout", span(config.timeout)),
    ])
}

/// Without what only the outer one can have.
fn discovery(config: &Config) -> Shown {
    match config {
        Config::Minted(config) => {
            let (kind, grant) = grant(&config.grant, &config.place);
            map([(kind, grant)])
        }
        Config::None | Config::Static { .. } | Config::Forward { .. } => Shown::Nothing,
    }
}

fn grant(grant: &Grant, place: &Place) -> (&'static str, Shown) {
    let token_url = || maybe(place.token_url.as_ref(), text);
    let who = || maybe(place.client.as_ref(), client);
    match grant {
        Grant::OnBehalfOf { scope, continuous_access } => (
            "on_behalf_of",
            map([
                ("token_url", token_url()),
                ("client", who()),
                ("scope", scopes(Some(scope))),
                ("continuous_access", word(continuous_access)),
            ]),
        ),
        Grant::Exchange { audience, resource, scope, actor } => (
            "token_exchange",
            map([
                ("token_url", token_url()),
                ("client", who()),
                ("audience", unless_empty(audience, text)),
                ("resource", unless_empty(resource, text)),
                ("scope", scopes(scope.as_deref())),
                ("actor_token_file", maybe(actor.as_deref(), path)),
            ]),
        ),
        Grant::Client { audience, resource, scope } => (
            "client_credentials",
            map([
                ("token_url", token_url()),
                ("client", who()),
                ("audience", unless_empty(audience, text)),
                ("resource", unless_empty(resource, text)),
                ("scope", scopes(scope.as_deref())),
            ]),
        ),
        // Shown with the backend that it is for.
        Grant::Vault(_) => ("vault", Shown::Nothing),
        Grant::Managed { identity, scope } => {
            ("managed_identity", map([("client_id", maybe(identity.client_id.as_ref(), text)), ("scope", text(scope))]))
        }
    }
}

fn scopes(scope: Option<&str>) -> Shown {
    maybe(scope, |scope| list(scope.split(' '), text))
}

fn place(place: &Place) -> Shown {
    map([("token_url", maybe(place.token_url.as_ref(), text)), ("client", maybe(place.client.as_ref(), client))])
}

pub(super) fn client(client: &Client) -> Shown {
    let mut entries = vec![("id".to_owned(), text(&client.id))];
    let mut add = |name: &str, value: Shown| entries.push((name.to_owned(), value));
    match &client.proof {
        Proof::Basic(_) => {
            add("secret", text(MASK));
            add("auth", text("basic"));
        }
        Proof::Post(_) => add("secret", text(MASK)),
        Proof::Signed { algorithm, key_id, certificate, .. } => {
            add("key", text(MASK));
            add("certificate", maybe(certificate.as_ref(), |(file, _)| path(file)));
            add("algorithm", text(algorithm.as_str()));
            add("key_id", maybe(key_id.as_ref(), text));
        }
        Proof::File(file) => add("token_file", path(file)),
        Proof::Managed(Identity { client_id }) => {
            add("managed_identity", map([("client_id", maybe(client_id.as_ref(), text))]));
        }
    }
    Shown::Map(entries)
}
