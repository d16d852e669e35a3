//! What Cedar is told: the principal, the resource and the context as Cedar entities and values.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use cedar_policy::Entity;
use cedar_policy::EntityId;
use cedar_policy::EntityTypeName;
use cedar_policy::EntityUid;
use cedar_policy::RestrictedExpression;

use super::Context;
use crate::catalog::Action;
use crate::catalog::Decl;
use crate::catalog::Effect;
use crate::catalog::Kind;
use crate::principal;
use crate::principal::Principal;

/// The entity types, parsed once.
struct Types {
    action: EntityTypeName,
    agent: EntityTypeName,
    backend: EntityTypeName,
    group: EntityTypeName,
    json: EntityTypeName,
    prompt: EntityTypeName,
    resource: EntityTypeName,
    role: EntityTypeName,
    scope: EntityTypeName,
    service: EntityTypeName,
    tenant: EntityTypeName,
    tool: EntityTypeName,
    user: EntityTypeName,
}

static TYPES: LazyLock<Types> = LazyLock::new(|| Types {
    action: entity_type("Action"),
    agent: entity_type("Agent"),
    backend: entity_type("Backend"),
    group: entity_type("Group"),
    json: entity_type("Json"),
    prompt: entity_type("Prompt"),
    resource: entity_type("Resource"),
    role: entity_type("Role"),
    scope: entity_type("Scope"),
    service: entity_type("Service"),
    tenant: entity_type("Tenant"),
    tool: entity_type("Tool"),
    user: entity_type("User"),
});

#[expect(
    clippy::expect_used,
    reason = "the names are the literals above, each a Cedar identifier; every test reads them"
)]
fn entity_type(name: &'static str) -> EntityTypeName {
    name.parse().expect("a Cedar identifier")
}

fn uid(of: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(of.clone(), EntityId::new(id))
}

fn text(value: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(value.to_owned())
}

/// What stands for a JSON value that Cedar has none for.
pub(super) fn json(value: &str) -> EntityUid {
    uid(&TYPES.json, value)
}

pub(super) fn action(action: Action) -> EntityUid {
    uid(&TYPES.action, action.as_str())
}

pub(super) fn kind(kind: Kind) -> &'static EntityTypeName {
    match kind {
        Kind::Backend => &TYPES.backend,
        Kind::Prompt => &TYPES.prompt,
        Kind::Resource => &TYPES.resource,
        Kind::Tool => &TYPES.tool,
    }
}

/// `None` only if Cedar refuses plain strings: callers deny.
pub(super) fn principal(principal: &Principal) -> Option<Entity> {
    let of = match principal.kind {
        principal::Kind::Agent => &TYPES.agent,
        principal::Kind::Service => &TYPES.service,
        principal::Kind::User => &TYPES.user,
    };
    let mut attributes = HashMap::from([
        ("subject".to_owned(), text(&principal.subject)),
        ("issuer".to_owned(), text(&principal.issuer)),
        ("guest".to_owned(), RestrictedExpression::new_bool(principal.guest)),
        ("groups_unknown".to_owned(), RestrictedExpression::new_bool(principal.groups_unknown)),
    ]);
    attributes.insert("amr".to_owned(), RestrictedExpression::new_set(principal.amr.iter().map(|means| text(means))));
    if let Some(at) = principal.auth_time {
        attributes.insert("auth_time".to_owned(), RestrictedExpression::new_datetime(datetime(at)?));
    }
    let named = [
        ("acr", principal.acr.as_deref()),
        ("actor", principal.actor.as_deref()),
        ("client", principal.client.as_deref()),
        ("tenant", principal.tenant_name()),
    ];
    for (name, value) in named {
        if let Some(value) = value {
            attributes.insert(name.to_owned(), text(value));
        }
    }
    let parents = parents(principal).collect();
    Entity::new(uid(of, principal.name()), attributes, parents).ok()
}

/// Everything that the principal is in.
pub(super) fn parents(principal: &Principal) -> impl Iterator<Item = EntityUid> {
    let scopes = principal.scopes.iter().map(|id| uid(&TYPES.scope, id));
    let roles = principal.roles.iter().map(|id| uid(&TYPES.role, id));
    let groups = principal.groups.iter().map(|id| uid(&TYPES.group, id));
    scopes.chain(roles).chain(groups).chain(principal.tenant_name().map(|id| uid(&TYPES.tenant, id)))
}

/// The id of a tool, resource or prompt is `backend/name`: backend names hold no `/`, so it says which.
pub(super) fn resource(decl: &Decl, effect: Effect) -> Option<Entity> {
    let attributes = HashMap::from([
        ("name".to_owned(), text(&decl.name)),
        ("effect".to_owned(), text(effect.as_str())),
        ("backend".to_owned(), text(&decl.backend)),
    ]);
    let (id, parents) = match decl.kind {
        Kind::Backend => (uid(&TYPES.backend, &decl.name), HashSet::new()),
        Kind::Prompt | Kind::Resource | Kind::Tool => {
            let id = format!("{}/{}", decl.backend, decl.name);
            (uid(kind(decl.kind), &id), HashSet::from([uid(&TYPES.backend, &decl.backend)]))
        }
    };
    Entity::new(id, attributes, parents).ok()
}

pub(super) fn unknown(name: &str) -> RestrictedExpression {
    RestrictedExpression::new_unknown(name)
}

/// The members of `context` except `args`. `None` for a clock that no calendar has: callers deny.
pub(super) fn members(context: &Context) -> Option<Vec<(String, RestrictedExpression)>> {
    let mut members = vec![
        ("mtls".to_owned(), RestrictedExpression::new_bool(context.mtls)),
        ("now".to_owned(), RestrictedExpression::new_datetime(datetime(context.now)?)),
        ("mode".to_owned(), text(context.mode.as_str())),
    ];
    if let Some(ip) = context.ip {
        members.push(("ip".to_owned(), RestrictedExpression::new_ip(ip.to_string())));
    }
    Some(members)
}

/// RFC 3339 with milliseconds, the form that Cedar's `datetime` reads.
pub(super) fn datetime(at: SystemTime) -> Option<String> {
    let milliseconds = match at.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).ok()?,
        Err(before) => -i64::try_from(before.duration().as_millis()).ok()?,
    };
    let (days, rest) = (milliseconds.div_euclid(86_400_000), milliseconds.rem_euclid(86_400_000));
    let (year, month, day) = civil(days);
    if !(0..=9999).contains(&year) {
        return None;
    }
    let (hour, minute, second, fraction) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60, rest % 1000);
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:03}Z"))
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant's `civil_from_days`: years begin in March, so
/// that the leap day comes last).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}
