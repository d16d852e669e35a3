//! The policies as they hold for a caller whose groups are not known: what they say of groups is taken against the caller.

use std::sync::Arc;

use cedar_policy::Policy;
use cedar_policy::pst;

const GROUP: &str = "Group";

/// `None` where no policy speaks of groups, so that all callers are judged by the same ones.
///
/// A `permit` for a group is left out, a `forbid` for a group is for everybody. In a condition, each smallest truth that
/// looks at a group becomes what is worse for the caller: false where it would help a `permit`, true where it would help a
/// `forbid`, and the other way round below a negation. The rest of the policy stays as it is, so that
/// `principal in Scope::"a" || principal in Group::"b"` still permits those who have the scope.
pub(super) fn taken_against(policies: &[Policy]) -> Result<Option<Vec<Policy>>, String> {
    let mut changed = false;
    let mut kept = Vec::with_capacity(policies.len());
    for policy in policies {
        match judge(policy)? {
            Holds::AsItIs => kept.push(policy.clone()),
            Holds::Never => changed = true,
            Holds::Otherwise(policy) => {
                changed = true;
                kept.push(*policy);
            }
        }
    }
    Ok(changed.then_some(kept))
}

enum Holds {
    AsItIs,
    Never,
    Otherwise(Box<Policy>),
}

fn judge(policy: &Policy) -> Result<Holds, String> {
    let pst::Policy::Static(written) = policy.to_pst().map_err(|error| error.to_string())? else {
        // Loading refuses templates.
        return Ok(Holds::AsItIs);
    };
    let mut body = written.body().clone();
    let for_group = scope_names_group(&body.principal);
    let expressions = |clause: &pst::Clause| match clause {
        pst::Clause::When(expr) | pst::Clause::Unless(expr) => names_group(expr),
    };
    if !for_group && !body.clauses().iter().any(expressions) {
        return Ok(Holds::AsItIs);
    }
    // What makes the policy more likely to hold is worse for the caller in a `forbid`, better in a `permit`.
    let forbids = body.effect == pst::Effect::Forbid;
    if for_group {
        if !forbids {
            return Ok(Holds::Never);
        }
        body.principal = match body.principal {
            pst::PrincipalConstraint::IsIn(kind, _) => pst::PrincipalConstraint::Is(kind),
            _ => pst::PrincipalConstraint::Any,
        };
    }
    let clauses: Vec<pst::Clause> = body
        .clauses()
        .iter()
        .map(|clause| match clause {
            pst::Clause::When(expr) => pst::Clause::When(worst(expr, forbids, &names_group)),
            pst::Clause::Unless(expr) => pst::Clause::Unless(worst(expr, !forbids, &names_group)),
        })
        .collect();
    let body = body.try_with_clauses(clauses).map_err(|error| error.to_string())?;
    let changed = pst::StaticPolicy::try_from(body).map_err(|error| error.to_string())?;
    let changed = Policy::from_pst(pst::Policy::Static(changed)).map_err(|error| error.to_string())?;
    Ok(Holds::Otherwise(Box::new(changed)))
}

fn is_group(entity: &pst::EntityUID) -> bool {
    entity.ty.to_string() == GROUP
}

fn scope_names_group(principal: &pst::PrincipalConstraint) -> bool {
    match principal {
        pst::PrincipalConstraint::Eq(pst::EntityOrSlot::Entity(entity))
        | pst::PrincipalConstraint::In(pst::EntityOrSlot::Entity(entity))
        | pst::PrincipalConstraint::IsIn(_, pst::EntityOrSlot::Entity(entity)) => is_group(entity),
        _ => false,
    }
}

fn names_group(expr: &pst::Expr) -> bool {
    let found = |expr: &pst::Expr| match expr {
        pst::Expr::Literal(pst::Literal::EntityUID(entity)) => Some(is_group(entity)),
        _ => None,
    };
    expr.reduce(&found, &|left, right| left || right, false)
}

/// The expression with everything that `hides` picks replaced, so that it comes out as `wanted` rather than not.
pub(super) fn worst(expr: &Arc<pst::Expr>, wanted: bool, hides: &dyn Fn(&pst::Expr) -> bool) -> Arc<pst::Expr> {
    if !hides(expr) {
        return expr.clone();
    }
    Arc::new(match expr.as_ref() {
        pst::Expr::UnaryOp { op: pst::UnaryOp::Not, expr } => {
            pst::Expr::UnaryOp { op: pst::UnaryOp::Not, expr: worst(expr, !wanted, hides) }
        }
        pst::Expr::BinaryOp { op: op @ (pst::BinaryOp::And | pst::BinaryOp::Or), left, right } => {
            pst::Expr::BinaryOp { op: *op, left: worst(left, wanted, hides), right: worst(right, wanted, hides) }
        }
        pst::Expr::IfThenElse { cond, then_expr, else_expr } if !hides(cond) => pst::Expr::IfThenElse {
            cond: cond.clone(),
            then_expr: worst(then_expr, wanted, hides),
            else_expr: worst(else_expr, wanted, hides),
        },
        _ => pst::Expr::Literal(pst::Literal::Bool(wanted)),
    })
}
