//! What can be said about the policies themselves: where each stands, whom they speak of, which are in shadow mode.

use std::collections::BTreeSet;

use cedar_policy::Policy;
use cedar_policy::pst;

use super::Grant;
use super::SHADOW;
use super::grants::CONNECT;
use super::grants::PREFIX;

/// Where a policy comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Origin {
    pub id: String,
    pub place: Place,
    /// As written, or as the grant was lowered.
    pub text: String,
    pub forbids: bool,
    /// Not in force, only noted.
    pub shadow: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// Counted from 0.
    Grant { index: usize },
    /// The line is counted from 1.
    Source { file: String, line: usize },
}

impl Origin {
    pub(super) fn of(policy: &Policy, id: &str, text: &str, place: Place) -> Origin {
        let forbids = policy.effect() == cedar_policy::Effect::Forbid;
        let shadow = policy.annotation(SHADOW).is_some();
        Origin { id: id.to_owned(), place, text: text.trim().to_owned(), forbids, shadow }
    }
}

/// Something that a caller can have and that some policy asks for.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Whom {
    Scope(String),
    Role(String),
    Group(String),
    Tenant(String),
    Subject(String),
    /// Of the login: how strong.
    Acr(String),
    /// Of the login: by which means.
    Amr(String),
}

/// Policies in shadow mode, each with those that belong to it: a grant is one thing with two policies.
pub(super) fn trials(shadows: Vec<Policy>) -> Vec<(String, Vec<Policy>)> {
    let mut trials: Vec<(String, Vec<Policy>)> = Vec::new();
    for policy in shadows {
        let id = policy.id().to_string();
        let whole = id.strip_suffix(CONNECT).filter(|id| id.starts_with(PREFIX)).unwrap_or(&id);
        match trials.iter_mut().find(|(known, _)| known == whole) {
            Some((_, policies)) => policies.push(policy),
            None => trials.push((whole.to_owned(), vec![policy])),
        }
    }
    trials
}

/// Everything the policies name that a caller can have.
pub(super) fn whom(policies: &[Policy], grants: &[Grant]) -> BTreeSet<Whom> {
    let mut found: BTreeSet<Whom> =
        grants.iter().filter_map(|grant| grant.subject.clone()).map(Whom::Subject).collect();
    for policy in policies {
        // What has no such form was refused by loading.
        let Ok(pst::Policy::Static(policy)) = policy.to_pst() else { continue };
        let body = policy.body();
        match &body.principal {
            pst::PrincipalConstraint::Eq(pst::EntityOrSlot::Entity(entity))
            | pst::PrincipalConstraint::In(pst::EntityOrSlot::Entity(entity))
            | pst::PrincipalConstraint::IsIn(_, pst::EntityOrSlot::Entity(entity)) => found.extend(entity_of(entity)),
            _ => {}
        }
        for clause in body.clauses() {
            let (pst::Clause::When(expr) | pst::Clause::Unless(expr)) = clause;
            found.extend(named(expr));
        }
    }
    found
}

fn named(expr: &pst::Expr) -> Vec<Whom> {
    let found = |expr: &pst::Expr| match expr {
        pst::Expr::Literal(pst::Literal::EntityUID(entity)) => Some(entity_of(entity).into_iter().collect()),
        pst::Expr::BinaryOp { op: pst::BinaryOp::Eq, left, right } => {
            compared(left, right).or_else(|| compared(right, left)).map(|whom| vec![whom])
        }
        pst::Expr::BinaryOp { op: pst::BinaryOp::Contains, left, right } => {
            let value = text(right).filter(|_| attribute(left) == Some("amr"))?;
            Some(vec![Whom::Amr(value)])
        }
        _ => None,
    };
    expr.reduce::<Vec<Whom>>(&found, &|left, right| [left, right].concat(), Vec::new())
}

fn compared(side: &pst::Expr, other: &pst::Expr) -> Option<Whom> {
    let value = text(other)?;
    match attribute(side)? {
        "acr" => Some(Whom::Acr(value)),
        "subject" => Some(Whom::Subject(value)),
        "tenant" => Some(Whom::Tenant(value)),
        _ => None,
    }
}

/// The attribute of the principal that is meant.
fn attribute(expr: &pst::Expr) -> Option<&str> {
    match expr {
        pst::Expr::GetAttr { expr, attr } if matches!(expr.as_ref(), pst::Expr::Var(pst::Var::Principal)) => {
            Some(attr.as_str())
        }
        _ => None,
    }
}

fn text(expr: &pst::Expr) -> Option<String> {
    match expr {
        pst::Expr::Literal(pst::Literal::String(value)) => Some(value.to_string()),
        _ => None,
    }
}

fn entity_of(entity: &pst::EntityUID) -> Option<Whom> {
    let id = entity.eid.to_string();
    match entity.ty.to_string().as_str() {
        "Scope" => Some(Whom::Scope(id)),
        "Role" => Some(Whom::Role(id)),
        "Group" => Some(Whom::Group(id)),
        "Tenant" => Some(Whom::Tenant(id)),
        _ => None,
    }
}
