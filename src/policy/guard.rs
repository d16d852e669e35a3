//! Comparisons of arguments that fail, instead of coming out false, where the argument is of another type.
//!
//! Cedar's `==` between two types is false. So `forbid … when { context.args.namespace == "production" }` would not
//! hold for `{"namespace": ["production"]}`, and whatever the tool makes of that would pass. Each comparison of an
//! argument with something whose type can be told is therefore preceded by an operation that only that type has: a
//! wrongly typed argument then fails like a missing one, and a policy that fails denies.

use std::sync::Arc;

use cedar_policy::Policy;
use cedar_policy::pst;

use super::load;

/// A type that an operation can insist on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Type {
    Bool,
    Decimal,
    Long,
    Set,
    Text,
}

/// The policy with its comparisons guarded; `None` where nothing is to be guarded.
pub(super) fn guarded(policy: &Policy) -> Result<Option<Policy>, String> {
    let pst::Policy::Static(written) = policy.to_pst().map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let changed = load::with_conditions(written.body(), &guard)?;
    if changed.clauses() == written.body().clauses() {
        return Ok(None);
    }
    load::parsed(changed).map(Some)
}

fn guard(expr: &Arc<pst::Expr>) -> Arc<pst::Expr> {
    let expr = load::rebuilt(expr, &guard);
    let pst::Expr::BinaryOp { op, left, right } = expr.as_ref() else {
        return expr;
    };
    let (argument, wanted) = match op {
        pst::BinaryOp::Eq | pst::BinaryOp::NotEq => match (load::args_path(left), load::args_path(right)) {
            (Some(_), None) => (left, typed(right)),
            (None, Some(_)) => (right, typed(left)),
            _ => return expr,
        },
        pst::BinaryOp::Contains if load::args_path(right).is_some() => (right, of_elements(left)),
        _ => return expr,
    };
    let Some(wanted) = wanted else {
        return expr;
    };
    let left = Arc::new(insists(argument.clone(), wanted));
    Arc::new(pst::Expr::BinaryOp { op: pst::BinaryOp::And, left, right: expr })
}

/// True for every value of the type; fails for every other.
fn insists(argument: Arc<pst::Expr>, on: Type) -> pst::Expr {
    let with = |op, right| pst::Expr::BinaryOp { op, left: argument.clone(), right: Arc::new(right) };
    match on {
        Type::Bool => with(pst::BinaryOp::Or, pst::Expr::Literal(pst::Literal::Bool(true))),
        Type::Decimal => {
            let largest = pst::Expr::Literal(pst::Literal::String("922337203685477.5807".into()));
            let largest = pst::Expr::UnaryOp { op: pst::UnaryOp::Decimal, expr: Arc::new(largest) };
            with(pst::BinaryOp::DecimalLessEq, largest)
        }
        Type::Long => with(pst::BinaryOp::LessEq, pst::Expr::Literal(pst::Literal::Long(i64::MAX))),
        Type::Set => with(pst::BinaryOp::ContainsAll, pst::Expr::Set(Vec::new())),
        Type::Text => pst::Expr::Like { expr: argument, pattern: vec![pst::PatternElem::Wildcard] },
    }
}

/// The type of what an argument is compared with, where it can be told.
fn typed(expr: &pst::Expr) -> Option<Type> {
    match expr {
        pst::Expr::Literal(pst::Literal::Bool(_)) => Some(Type::Bool),
        pst::Expr::Literal(pst::Literal::Long(_)) => Some(Type::Long),
        pst::Expr::Literal(pst::Literal::String(_)) => Some(Type::Text),
        pst::Expr::UnaryOp { op: pst::UnaryOp::Decimal, .. } => Some(Type::Decimal),
        pst::Expr::UnaryOp { op: pst::UnaryOp::Neg, .. } => Some(Type::Long),
        pst::Expr::UnaryOp { op: pst::UnaryOp::Not, .. } | pst::Expr::Like { .. } | pst::Expr::HasAttr { .. } => {
            Some(Type::Bool)
        }
        pst::Expr::BinaryOp { op: pst::BinaryOp::Add | pst::BinaryOp::Sub | pst::BinaryOp::Mul, .. } => {
            Some(Type::Long)
        }
        pst::Expr::Set(_) => Some(Type::Set),
        pst::Expr::GetAttr { expr, attr } => match expr.as_ref() {
            pst::Expr::Var(pst::Var::Principal) if attr == "guest" || attr == "groups_unknown" => Some(Type::Bool),
            pst::Expr::Var(pst::Var::Context) if attr == "mtls" => Some(Type::Bool),
            pst::Expr::Var(pst::Var::Context) if attr == "mode" => Some(Type::Text),
            pst::Expr::Var(pst::Var::Principal) if attr == "amr" => Some(Type::Set),
            pst::Expr::Var(pst::Var::Principal) if attr == "auth_time" => None,
            // All their other attributes are strings.
            pst::Expr::Var(pst::Var::Principal | pst::Var::Resource) => Some(Type::Text),
            _ => None,
        },
        _ => None,
    }
}

fn of_elements(set: &pst::Expr) -> Option<Type> {
    let pst::Expr::Set(elements) = set else {
        return None;
    };
    let first = typed(elements.first()?)?;
    elements.iter().all(|element| typed(element) == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(text: &str) -> String {
        let policy = Policy::parse(None, format!("permit (principal, action, resource) when {{ {text} }};"));
        let policy = policy.expect("a policy");
        let policy = guarded(&policy).expect("a policy that can be guarded").unwrap_or(policy);
        let text = policy.to_cedar().expect("a text").split_whitespace().collect::<Vec<_>>().join(" ");
        text.split_once("when {").map(|(_, rest)| rest.trim_end_matches("};").trim().to_owned()).expect("a condition")
    }

    #[test]
    fn a_comparison_insists_on_the_type_of_the_other_side() {
        for (written, guard) in [
            (r#"context.args.a == "x""#, r#"like "*""#),
            (r#""x" != context.args.a.b"#, r#"like "*""#),
            ("context.args.a == 3", "<= 9223372036854775807"),
            ("context.args.a == -3", "<= 9223372036854775807"),
            ("context.args.a == true", "|| true"),
            (r#"context.args.a == decimal("1.5")"#, "lessThanOrEqual"),
            (r#"context.args.a == ["x"]"#, "containsAll"),
            (r#"["x", "y"].contains(context.args.a)"#, r#"like "*""#),
            ("context.args.a == resource.name", r#"like "*""#),
            (r#"context.mtls && !(context.args.a == "x")"#, r#"like "*""#),
        ] {
            let changed = condition(written);
            assert!(changed.contains(guard), "{written}: {changed}");
            assert!(!condition(&format!("{written} || context.mtls")).is_empty());
        }
    }

    #[test]
    fn what_fails_by_itself_and_what_may_be_of_any_type_is_left_alone() {
        for written in [
            "context.args.a > 3",
            r#"context.args.a like "x*""#,
            r#"context.args.a == Json::"null""#,
            r#"context.args.a == context.args.b"#,
            r#"[1, "x"].contains(context.args.a)"#,
            r#"context.args.a.contains("x")"#,
            "context.args has a",
            r#"resource.name == "x""#,
        ] {
            let bare = |text: &str| text.replace(['(', ')', ' '], "");
            assert_eq!(bare(&condition(written)), bare(written));
        }
    }
}
