//! What a policy says about one tool: everything about the resource and the action decided, the rest as it stands.

use std::sync::Arc;

use cedar_policy::pst;

use super::load;
use crate::catalog::Action;
use crate::catalog::Effect;
use crate::catalog::Kind;

/// A call of a tool, or of some tool of a backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject<'a> {
    pub(super) backend: &'a str,
    /// `None` for any tool of the backend.
    pub(super) name: Option<&'a str>,
    /// `None` where it is not settled.
    pub(super) effect: Option<Effect>,
}

/// What is known of a question before it is asked.
enum Answer {
    No,
    Open,
    Yes,
}

impl From<bool> for Answer {
    fn from(yes: bool) -> Answer {
        if yes { Answer::Yes } else { Answer::No }
    }
}

impl Subject<'_> {
    /// The policy as it holds for calls of this tool; `None` if it never does. The scope's action and resource become the
    /// tool's, so that it says the same of no other.
    pub(super) fn said_by(&self, policy: &pst::Template) -> Option<pst::Template> {
        let called = match &policy.action {
            pst::ActionConstraint::Any => true,
            pst::ActionConstraint::Eq(action) => is_call(action),
            pst::ActionConstraint::In(actions) => actions.iter().any(is_call),
        };
        let scope = match &policy.resource {
            pst::ResourceConstraint::Any => Answer::Yes,
            pst::ResourceConstraint::Eq(pst::EntityOrSlot::Entity(entity)) => self.is(entity),
            pst::ResourceConstraint::In(pst::EntityOrSlot::Entity(entity)) => self.is_in(entity),
            pst::ResourceConstraint::Is(kind) => (kind.to_string() == Kind::Tool.as_str()).into(),
            pst::ResourceConstraint::IsIn(kind, pst::EntityOrSlot::Entity(entity)) => {
                if kind.to_string() == Kind::Tool.as_str() { self.is_in(entity) } else { Answer::No }
            }
            // Loading refuses templates.
            _ => Answer::Open,
        };
        if !called || matches!(scope, Answer::No) {
            return None;
        }
        let mut clauses = Vec::with_capacity(policy.clauses().len());
        for clause in policy.clauses() {
            match clause {
                pst::Clause::When(expr) => match self.fold(expr) {
                    folded if is(&folded, false) => return None,
                    folded if is(&folded, true) => {}
                    folded => clauses.push(pst::Clause::When(folded)),
                },
                pst::Clause::Unless(expr) => match self.fold(expr) {
                    folded if is(&folded, true) => return None,
                    folded if is(&folded, false) => {}
                    folded => clauses.push(pst::Clause::Unless(folded)),
                },
            }
        }
        let mut said = policy.clone().try_with_clauses(clauses).ok()?;
        said.action = pst::ActionConstraint::Eq(entity("Action", Action::Call.as_str())?);
        if let Some(name) = self.name {
            let tool = entity(Kind::Tool.as_str(), &format!("{}/{name}", self.backend))?;
            said.resource = pst::ResourceConstraint::Eq(pst::EntityOrSlot::Entity(tool));
        } else if matches!(scope, Answer::Yes) {
            let backend = entity(Kind::Backend.as_str(), self.backend)?;
            let tool = entity(Kind::Tool.as_str(), "")?.ty;
            said.resource = pst::ResourceConstraint::IsIn(tool, pst::EntityOrSlot::Entity(backend));
        }
        Some(said)
    }

    fn is(&self, entity: &pst::EntityUID) -> Answer {
        if entity.ty.to_string() != Kind::Tool.as_str() {
            return Answer::No;
        }
        match (entity.eid.strip_prefix(self.backend).and_then(|rest| rest.strip_prefix('/')), self.name) {
            (None, _) => Answer::No,
            (Some(_), None) => Answer::Open,
            (Some(rest), Some(name)) => (rest == name).into(),
        }
    }

    fn is_in(&self, entity: &pst::EntityUID) -> Answer {
        if entity.ty.to_string() == Kind::Backend.as_str() {
            (entity.eid == self.backend).into()
        } else {
            self.is(entity)
        }
    }

    fn attribute(&self, name: &str) -> Option<&str> {
        match name {
            "backend" => Some(self.backend),
            "effect" => self.effect.map(Effect::as_str),
            "name" => self.name,
            _ => None,
        }
    }

    /// The expression with what is known put in, as Cedar's own evaluation would short-circuit it.
    fn fold(&self, expr: &Arc<pst::Expr>) -> Arc<pst::Expr> {
        match expr.as_ref() {
            pst::Expr::BinaryOp { op: op @ (pst::BinaryOp::And | pst::BinaryOp::Or), left, right } => {
                let left = self.fold(left);
                let settles = *op == pst::BinaryOp::Or;
                if is(&left, settles) {
                    return left;
                }
                let right = self.fold(right);
                if is(&left, !settles) {
                    return right;
                }
                Arc::new(pst::Expr::BinaryOp { op: *op, left, right })
            }
            pst::Expr::IfThenElse { cond, then_expr, else_expr } => match self.fold(cond) {
                cond if is(&cond, true) => self.fold(then_expr),
                cond if is(&cond, false) => self.fold(else_expr),
                cond => Arc::new(pst::Expr::IfThenElse {
                    cond,
                    then_expr: self.fold(then_expr),
                    else_expr: self.fold(else_expr),
                }),
            },
            pst::Expr::GetAttr { expr: of, attr } if is_resource(of) => match self.attribute(attr) {
                Some(value) => Arc::new(pst::Expr::Literal(pst::Literal::String(value.into()))),
                None => expr.clone(),
            },
            _ => {
                let folded = load::rebuilt(expr, &|inner| self.fold(inner));
                match self.settled(&folded) {
                    Answer::No => truth(false),
                    Answer::Yes => truth(true),
                    Answer::Open => folded,
                }
            }
        }
    }

    fn settled(&self, expr: &pst::Expr) -> Answer {
        use pst::BinaryOp as Op;
        match expr {
            pst::Expr::UnaryOp { op: pst::UnaryOp::Not, expr } => match expr.as_ref() {
                pst::Expr::Literal(pst::Literal::Bool(value)) => (!value).into(),
                _ => Answer::Open,
            },
            pst::Expr::Like { expr, pattern } => match expr.as_ref() {
                pst::Expr::Literal(pst::Literal::String(text)) => {
                    like(&text.chars().collect::<Vec<_>>(), pattern).into()
                }
                _ => Answer::Open,
            },
            pst::Expr::Is { expr, entity_type, in_expr } if is_resource(expr) => {
                let tool = entity_type.to_string() == Kind::Tool.as_str();
                match in_expr {
                    None => tool.into(),
                    Some(_) if !tool => Answer::No,
                    Some(within) => self.within(within),
                }
            }
            pst::Expr::BinaryOp { op: Op::In, left, right } if is_resource(left) => self.within(right),
            pst::Expr::BinaryOp { op: Op::In | Op::Eq, left, right } if is_action(left) => among(right),
            pst::Expr::BinaryOp { op: Op::NotEq, left, right } if is_action(left) => not(among(right)),
            pst::Expr::BinaryOp { op: Op::Eq, left, right } => self.equal(left, right),
            pst::Expr::BinaryOp { op: Op::NotEq, left, right } => not(self.equal(left, right)),
            pst::Expr::BinaryOp { op: Op::Contains, left, right } => match (left.as_ref(), right.as_ref()) {
                (pst::Expr::Set(items), pst::Expr::Literal(_))
                    if items.iter().all(|item| matches!(item.as_ref(), pst::Expr::Literal(_))) =>
                {
                    items.contains(right).into()
                }
                _ => Answer::Open,
            },
            _ => Answer::Open,
        }
    }

    fn equal(&self, left: &pst::Expr, right: &pst::Expr) -> Answer {
        match (left, right) {
            (pst::Expr::Literal(left), pst::Expr::Literal(right)) => (left == right).into(),
            (pst::Expr::Var(pst::Var::Resource), pst::Expr::Literal(pst::Literal::EntityUID(entity)))
            | (pst::Expr::Literal(pst::Literal::EntityUID(entity)), pst::Expr::Var(pst::Var::Resource)) => {
                self.is(entity)
            }
            _ => Answer::Open,
        }
    }

    fn within(&self, expr: &pst::Expr) -> Answer {
        match expr {
            pst::Expr::Literal(pst::Literal::EntityUID(entity)) => self.is_in(entity),
            pst::Expr::Set(items) => any(items.iter().map(|item| self.within(item))),
            _ => Answer::Open,
        }
    }
}

fn not(answer: Answer) -> Answer {
    match answer {
        Answer::No => Answer::Yes,
        Answer::Open => Answer::Open,
        Answer::Yes => Answer::No,
    }
}

fn any(answers: impl Iterator<Item = Answer>) -> Answer {
    let mut all = Answer::No;
    for answer in answers {
        match answer {
            Answer::Yes => return Answer::Yes,
            Answer::Open => all = Answer::Open,
            Answer::No => {}
        }
    }
    all
}

/// Is the action, which is a call, the one named or one of those named?
fn among(expr: &pst::Expr) -> Answer {
    match expr {
        pst::Expr::Literal(pst::Literal::EntityUID(entity)) => is_call(entity).into(),
        pst::Expr::Set(items) => any(items.iter().map(|item| among(item))),
        _ => Answer::Open,
    }
}

fn is_call(action: &pst::EntityUID) -> bool {
    action.eid == Action::Call.as_str() && action.ty.to_string() == "Action"
}

fn is_resource(expr: &pst::Expr) -> bool {
    matches!(expr, pst::Expr::Var(pst::Var::Resource))
}

fn is_action(expr: &pst::Expr) -> bool {
    matches!(expr, pst::Expr::Var(pst::Var::Action))
}

fn is(expr: &pst::Expr, wanted: bool) -> bool {
    matches!(expr, pst::Expr::Literal(pst::Literal::Bool(value)) if *value == wanted)
}

fn truth(value: bool) -> Arc<pst::Expr> {
    Arc::new(pst::Expr::Literal(pst::Literal::Bool(value)))
}

/// `None` only if Cedar refuses plain names.
fn entity(kind: &str, id: &str) -> Option<pst::EntityUID> {
    let name = pst::Name::unqualified(kind).ok()?;
    Some(pst::EntityUID { ty: pst::EntityType::from_name(name), eid: id.into() })
}

/// Does the text match? Greedy with one step back: a later wildcard makes an earlier one's choice irrelevant.
fn like(text: &[char], pattern: &[pst::PatternElem]) -> bool {
    let (mut at, mut of) = (0, 0);
    let mut last: Option<(usize, usize)> = None;
    while let Some(found) = text.get(at) {
        match (pattern.get(of), last) {
            (Some(pst::PatternElem::Wildcard), _) => {
                last = Some((of, at));
                of += 1;
            }
            (Some(pst::PatternElem::Char(wanted)), _) if wanted == found => {
                at += 1;
                of += 1;
            }
            (_, Some((wildcard, taken))) => {
                last = Some((wildcard, taken + 1));
                at = taken + 1;
                of = wildcard + 1;
            }
            (_, None) => return false,
        }
    }
    pattern.iter().skip(of).all(|element| *element == pst::PatternElem::Wildcard)
}

#[cfg(test)]
mod tests {
    use cedar_policy::Policy;

    use super::*;

    /// The conditions that are left for `vault/kv.read`, a `read_sensitive` tool; `None` if it is not about it.
    fn said(policy: &str) -> Option<String> {
        let policy = Policy::parse(None, policy).expect("a policy");
        let pst::Policy::Static(written) = policy.to_pst().expect("a tree") else {
            panic!("a template");
        };
        let subject = Subject { backend: "vault", name: Some("kv.read"), effect: Some(Effect::ReadSensitive) };
        let said = pst::StaticPolicy::try_from(subject.said_by(written.body())?).expect("a policy");
        let text = Policy::from_pst(pst::Policy::Static(said)).expect("a policy").to_cedar().expect("a text");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Some(text.split_once("when {").map_or(String::new(), |(_, rest)| {
            rest.trim_end_matches(';').trim_end_matches('}').replace(['(', ')', ' '], "")
        }))
    }

    #[test]
    fn a_policy_is_about_a_tool_or_it_is_not() {
        for (scope, about) in [
            ("principal, action, resource", true),
            ("principal, action == Action::\"call\", resource is Tool", true),
            ("principal, action == Action::\"read\", resource", false),
            ("principal, action in [Action::\"read\", Action::\"call\"], resource in Backend::\"vault\"", true),
            ("principal, action, resource in Backend::\"git\"", false),
            ("principal, action, resource == Tool::\"vault/kv.read\"", true),
            ("principal, action, resource == Tool::\"vault/kv.rea\"", false),
            ("principal, action, resource is Prompt", false),
            ("principal, action, resource is Tool in Backend::\"vault\"", true),
        ] {
            assert_eq!(said(&format!("permit ({scope});")).is_some(), about, "{scope}");
        }
    }

    #[test]
    fn what_is_known_is_decided_and_the_rest_is_left() {
        for (condition, expected) in [
            (r#"resource.name == "kv.read""#, Some("")),
            (r#"resource.name != "kv.read""#, None),
            (r#"resource.name like "kv.*" && context.args.n == 1"#, Some("context.args.n==1")),
            (r#"resource.name like "sys.*" && context.args.n == 1"#, None),
            (r#"resource.name like "*v*d""#, Some("")),
            (r#"resource.name like "*v*x*d""#, None),
            (r#"resource.effect == "read" || context.mtls"#, Some("context.mtls")),
            (r#"["read", "read_sensitive"].contains(resource.effect)"#, Some("")),
            (r#"!(resource in Backend::"git") && resource is Tool"#, Some("")),
            (r#"resource in [Backend::"git", Backend::"vault"]"#, Some("")),
            (r#"action == Action::"read" && context.mtls"#, None),
            (r#"if resource.backend == "vault" then context.mtls else context.args.n == 1"#, Some("context.mtls")),
            (r#"context.mtls && resource.name == "x""#, Some("context.mtls&&false")),
        ] {
            let policy = format!("permit (principal, action, resource) when {{ {condition} }};");
            assert_eq!(said(&policy).as_deref(), expected, "{condition}");
        }
    }
}
