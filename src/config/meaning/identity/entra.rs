//! `entra`, as meant: which tenants, for which application, in which cloud.

use std::ops::RangeInclusive;
use std::time::Duration;

use url::Url;

use super::audiences;
use super::certificate_bound;
use super::check_url;
use super::dpop;
use super::leeway;
use crate::config::book::Book;
use crate::config::book::Key;
use crate::config::file;
use crate::config::file::Access;
use crate::config::meaning::credential;
use crate::config::scalar::Span;
use crate::config::scalar::short;
use crate::identity::entra::Cloud;
use crate::identity::entra::Entra;
use crate::identity::entra::Groups;
use crate::identity::entra::Resolve;
use crate::identity::entra::Tenants;
use crate::identity::entra::is_id;

/// Each has keys of its own to be fetched every few minutes.
const TENANTS_MAX: usize = 256;

/// The App ID URI that an application has unless it is changed begins so, and its client id follows.
const DEFAULT_URI: &str = "api://";

const AUDIENCE: &str = r#"audience: "api://11111111-2222-3333-4444-555555555555""#;
const TENANT: &str = "tenant: contoso.onmicrosoft.com";

/// How long what Graph said is believed.
const KEEP: Duration = Duration::from_secs(5 * 60);
const KEEP_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60 * 60);

/// A caller waits for it.
const TIMEOUT: Duration = Duration::from_secs(3);
const TIMEOUT_RANGE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(10);

pub(super) fn entra(book: &mut Book<'_>, key: &Key, written: file::Entra) -> Option<Entra> {
    let audiences = audiences(book, key, written.audience, AUDIENCE);
    let leeway = leeway(book, key, written.leeway);
    let authority = authority(book, key, written.authority, written.cloud.is_some());
    let cloud = match written.cloud {
        Some(file::Cloud::China) => Cloud::China,
        Some(file::Cloud::UsGovernment) => Cloud::UsGovernment,
        Some(file::Cloud::Public) | None => Cloud::Public,
    };
    let groups = groups(book, &key.at("groups"), written.groups, authority.is_none().then_some(cloud));
    let allowed = |access: Option<Access>| access != Some(Access::Deny);
    let tenants = match (written.tenant, written.tenants) {
        (Some(_), Some(_)) => {
            book.error(key, "`tenant` and `tenants` exclude each other");
            return None;
        }
        (Some(one), None) => Tenants::Listed(vec![name(book, &key.at("tenant"), &one)?]),
        (None, Some(several)) => several_of(book, &key.at("tenants"), &several.0)?,
        (None, None) => {
            book.missing(&key.at("tenant"), format!("is missing; for example `{TENANT}`"));
            return None;
        }
    };
    let audiences = both_forms(audiences?);
    if let Some(groups) = &groups {
        check_assertions(book, &key.at("groups"), groups, &audiences);
    }
    Some(Entra {
        cloud,
        authority,
        tenants,
        audiences,
        leeway,
        guests: allowed(written.guests),
        applications: allowed(written.applications),
        certificate_bound: certificate_bound(written.certificate_bound),
        dpop: dpop(written.dpop),
        groups,
    })
}

/// `cloud`: unless there is an emulator in its place.
fn groups(book: &mut Book<'_>, key: &Key, written: Option<file::Groups>, cloud: Option<Cloud>) -> Option<Groups> {
    let written = written?;
    let resolve = book.require(key, "resolve", written.resolve, "resolve: on_behalf_of").map(|resolve| match resolve {
        file::Resolve::ClientCredentials => Resolve::ClientCredentials,
        file::Resolve::OnBehalfOf => Resolve::OnBehalfOf,
    });
    let client = credential::client(book, key, written.client);
    let graph = match (written.graph, cloud) {
        (Some(written), _) => graph(book, &key.at("graph"), &written),
        (None, Some(cloud)) => Url::parse(cloud.graph()).ok(),
        (None, None) => {
            book.missing(&key.at("graph"), "is missing: beside `authority` nobody else knows where Graph is");
            None
        }
    };
    let within = |book: &mut Book<'_>, name: &str, written: Option<Span>, default, range: RangeInclusive<Duration>| {
        let span = book.span(key, name, written, default);
        if !range.contains(&span) {
            book.error(&key.at(name), format!("must be from {:?} to {:?}", range.start(), range.end()));
        }
        span
    };
    let keep = within(book, "keep", written.keep, KEEP, KEEP_RANGE);
    let timeout = within(book, "timeout", written.timeout, TIMEOUT, TIMEOUT_RANGE);
    let security_only = written.security_only.unwrap_or(true);
    Some(Groups { resolve: resolve?, client: client?, graph: graph?, security_only, keep, timeout })
}

fn graph(book: &mut Book<'_>, key: &Key, written: &str) -> Option<Url> {
    check_url(book, key, written, "where Microsoft Graph is");
    let url = Url::parse(&format!("{}/", written.trim_end_matches('/'))).ok();
    if url.as_ref().is_some_and(|url| url.query().is_some() || url.fragment().is_some()) {
        book.error(key, "must be without query and fragment");
    }
    url
}

/// Entra exchanges a token only for the application that it is for.
fn check_assertions(book: &mut Book<'_>, key: &Key, groups: &Groups, audiences: &[String]) {
    let id = groups.client.id.to_ascii_lowercase();
    let mut ids = audiences.iter().filter(|audience| is_id(audience)).peekable();
    if groups.resolve == Resolve::OnBehalfOf && ids.peek().is_some() && !ids.any(|ours| *ours == id) {
        book.warn(
            &key.at("client").at("id"),
            "is none of the `audience`: Entra exchanges a token only for the application that it is for",
        );
    }
}

fn several_of(book: &mut Book<'_>, key: &Key, written: &[String]) -> Option<Tenants> {
    if let [word] = written {
        match word.as_str() {
            "any" => return Some(Tenants::Any),
            "organizations" => return Some(Tenants::Organizations),
            _ => {}
        }
    }
    if written.is_empty() || written.len() > TENANTS_MAX {
        book.error(key, format!("must be 1 to {TENANTS_MAX} tenants, `organizations` or `any`"));
        return None;
    }
    let names = written.iter().enumerate().map(|(index, one)| {
        let key = if book.has(&key.index(index)) { key.index(index) } else { key.clone() };
        name(book, &key, one)
    });
    // All are looked at, so that all errors are told.
    let names: Vec<Option<String>> = names.collect();
    let mut names: Vec<String> = names.into_iter().collect::<Option<_>>()?;
    names.sort_unstable();
    names.dedup();
    Some(Tenants::Listed(names))
}

/// An id or a domain, in lower case.
fn name(book: &mut Book<'_>, key: &Key, written: &str) -> Option<String> {
    let name = written.to_ascii_lowercase();
    if is_id(&name) || is_domain(&name) {
        return Some(name);
    }
    let all = matches!(name.as_str(), "any" | "common" | "consumers" | "organizations");
    let instead = if all {
        "for the accounts of every organisation write `tenants: organizations`, and `tenants: any` for personal accounts, too"
    } else {
        "a tenant is its id (36 characters, on its overview page in the Entra portal) or one of its verified domains"
    };
    book.error(key, format!("`{}` names no tenant: {instead}", short(written)));
    None
}

fn is_domain(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.contains('.') && name.split('.').all(label)
}

/// Tokens of version 2.0 have the client id as audience, those of 1.0 what was asked for, which is mostly the URI.
pub(in crate::config::meaning) fn both_forms(written: Vec<String>) -> Vec<String> {
    let mut all: Vec<String> = Vec::with_capacity(written.len() * 2);
    for audience in written {
        let id = audience.strip_prefix(DEFAULT_URI).unwrap_or(&audience).to_ascii_lowercase();
        let forms = if is_id(&id) { vec![format!("{DEFAULT_URI}{id}"), id] } else { vec![audience] };
        all.extend(forms);
    }
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|audience| seen.insert(audience.clone()));
    all
}

fn authority(book: &mut Book<'_>, key: &Key, written: Option<String>, cloud: bool) -> Option<String> {
    let written = written?;
    if cloud {
        book.error(key, "`authority` and `cloud` exclude each other");
    }
    let key = key.at("authority");
    check_url(book, &key, &written, "where tokens are issued and keys are fetched");
    if Url::parse(&written).is_ok_and(|url| url.query().is_some() || url.fragment().is_some()) {
        book.error(&key, "must be without query and fragment");
    }
    Some(written.trim_end_matches('/').to_owned())
}

/// Is it an issuer of one of the clouds?
pub(super) fn is_issuer(issuer: &str) -> bool {
    [Cloud::China, Cloud::Public, Cloud::UsGovernment].into_iter().any(|cloud| cloud.tenant_of(issuer).is_some())
}
