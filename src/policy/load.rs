//! Cedar sources become one validated policy set, with every error at once and where it stands.
//!
//! Every policy is held to the static schema, with what it says of arguments taken for some Boolean or other. Then it is
//! held once more to each tool that is known and that it can be about, with the arguments that tool declares (`known`).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::LazyLock;

use cedar_policy::Policy;
use cedar_policy::PolicyId;
use cedar_policy::PolicySet;
use cedar_policy::Schema;
use cedar_policy::ValidationMode;
use cedar_policy::Validator;
use cedar_policy::ffi::DetailedError;
use cedar_policy::pst;

use super::Error;
use super::Origin;
use super::Place;
use super::SHADOW;
use super::grants;
use super::grants::Lowered;
use super::guard;
use super::known::Known;

static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| Validator::new(schema()));

#[expect(clippy::expect_used, reason = "the schema is the file beside this one; every test reads it")]
fn schema() -> Schema {
    let (schema, _) = Schema::from_cedarschema_str(SCHEMA).expect("a Cedar schema");
    schema
}

pub(super) const SCHEMA: &str = include_str!("schema.cedarschema");

/// What was read.
pub(super) struct Loaded<'a> {
    known: &'a Known,
    /// As they were written.
    pub(super) written: Vec<Policy>,
    /// As they are judged by: a comparison with an argument of another type fails (`guard`).
    pub(super) policies: Vec<Policy>,
    pub(super) reads: Reads,
    /// What is no error, and yet worth telling the operator.
    pub(super) notes: Vec<String>,
    pub(super) origins: Vec<Origin>,
    ids: HashSet<String>,
}

/// Which parts of the context, the mode aside, some policy looks at.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Reads {
    pub(super) args: bool,
    /// The address or the client certificate.
    pub(super) connection: bool,
    pub(super) now: bool,
}

impl Reads {
    fn note(&mut self, policy: &Policy) {
        let Ok(pst::Policy::Static(policy)) = policy.to_pst() else {
            return;
        };
        let reads = |name: &str| {
            let found = |expr: &pst::Expr| match expr {
                pst::Expr::GetAttr { expr, attr } if is_context(expr) => Some(attr == name),
                pst::Expr::HasAttr { expr, attrs } if is_context(expr) => Some(attrs.first() == name),
                _ => None,
            };
            conditions(policy.body()).any(|expr| any(expr, &found))
        };
        self.args |= reads("args");
        self.connection |= reads("ip") || reads("mtls");
        self.now |= reads("now");
    }
}

/// `forbid` policies of the gateway, as its tenants have them: validated already.
#[derive(Clone, Default)]
pub(super) struct Inherited {
    written: Arc<[Policy]>,
    policies: Arc<[Policy]>,
    origins: Arc<[Origin]>,
    reads: Reads,
}

impl<'a> Loaded<'a> {
    pub(super) fn new(known: &'a Known) -> Loaded<'a> {
        Loaded {
            known,
            written: Vec::new(),
            policies: Vec::new(),
            reads: Reads::default(),
            notes: Vec::new(),
            origins: Vec::new(),
            ids: HashSet::new(),
        }
    }

    pub(super) fn with(known: &'a Known, inherited: &Inherited) -> Loaded<'a> {
        Loaded {
            written: inherited.written.to_vec(),
            policies: inherited.policies.to_vec(),
            reads: inherited.reads,
            origins: inherited.origins.to_vec(),
            ids: inherited.policies.iter().map(|policy| policy.id().to_string()).collect(),
            ..Loaded::new(known)
        }
    }

    /// What tenants have of these. A grant forbids nothing.
    pub(super) fn forbids(&self) -> Inherited {
        let forbids = |policies: &[Policy]| {
            policies.iter().filter(|policy| policy.effect() == cedar_policy::Effect::Forbid).cloned().collect()
        };
        Inherited {
            written: forbids(&self.written),
            policies: forbids(&self.policies),
            origins: self.origins.iter().filter(|origin| origin.forbids).cloned().collect(),
            reads: self.reads,
        }
    }

    pub(super) fn grants(&mut self, lowered: &Lowered, errors: &mut Vec<Error>) {
        for (index, id, text) in &lowered.policies {
            let wrong = |what: String| Error::Grant { index: *index, what };
            match Policy::parse(Some(PolicyId::new(id)), text) {
                Ok(policy) => {
                    let checked = std::slice::from_ref(&policy);
                    errors.extend(validate(&VALIDATOR, checked).0.into_iter().map(|found| wrong(found.what)));
                    let held = self.known.hold(&policy);
                    errors.extend(held.errors.into_iter().map(wrong));
                    self.notes.extend(held.notes);
                    self.ids.insert(id.clone());
                    self.written.push(policy.clone());
                    let place = Place::Grant { index: *index };
                    self.origins.push(Origin::of(&policy, id, text, place));
                    self.policies.push(policy);
                }
                Err(found) => errors.push(wrong(found.to_string())),
            }
        }
    }

    pub(super) fn source(&mut self, file: &str, text: &str, errors: &mut Vec<Error>) {
        let wrong = |found: Found| {
            let (line, column) = position(text, found.offset.unwrap_or_default());
            Error::Source { file: file.to_owned(), line, column, what: found.what }
        };
        let set: PolicySet = match text.parse() {
            Ok(set) => set,
            Err(found) => {
                let found: &cedar_policy::ParseErrors = &found;
                errors.extend(found.iter().map(|error| wrong(Found::of(&DetailedError::from(error)))));
                return;
            }
        };
        for template in set.templates() {
            let offset = text.find(&template.to_cedar());
            errors.push(wrong(Found { what: "a template is of no use: nothing links it".to_owned(), offset }));
        }
        let mut typed = Vec::new();
        for policy in set.policies() {
            let offset = policy.to_cedar().and_then(|policy| text.find(&policy));
            let complain = |errors: &mut Vec<Error>, what: String| errors.push(wrong(Found { what, offset }));
            let id = id_of(policy, file);
            if policy.annotation(SHADOW).is_some_and(|value| value != "true") {
                complain(
                    errors,
                    format!("`{id}`: `@shadow` can only be \"true\"; leave it out to put the policy in force"),
                );
            }
            if policy.annotation(super::CONFIRM).is_some() && policy.effect() == cedar_policy::Effect::Forbid {
                let what =
                    format!("`{id}`: `@confirm` is for `permit`: what is forbidden stays so, whatever a person says");
                complain(errors, what);
            }
            if id.starts_with(grants::PREFIX) {
                complain(errors, format!("`{id}`: ids that begin with `{}` belong to grants", grants::PREFIX));
            }
            if !self.ids.insert(id.clone()) {
                complain(errors, format!("`{id}` is the id of two policies"));
                continue;
            }
            let policy = policy.new_id(PolicyId::new(&id));
            let (line, _) = position(text, offset.unwrap_or_default());
            let words = offset.and_then(|_| policy.to_cedar()).unwrap_or_default();
            self.origins.push(Origin::of(&policy, &id, &words, Place::Source { file: file.to_owned(), line }));
            let sound = errors.len();
            self.reads.note(&policy);
            match without_args(&policy) {
                Ok(None) => typed.push(policy.clone()),
                Ok(Some(blind)) => {
                    let (found, notes) = validate(&VALIDATOR, &[blind]);
                    errors.extend(
                        found.into_iter().map(|found| wrong(Found { offset: found.offset.or(offset), ..found })),
                    );
                    self.notes.extend(notes);
                }
                Err(what) => complain(errors, format!("`{id}`: {what}")),
            }
            if errors.len() == sound {
                let held = self.known.hold(&policy);
                errors.extend(
                    held.errors.into_iter().map(|what| wrong(Found { what: format!("`{id}`: {what}"), offset })),
                );
                self.notes.extend(held.notes);
            }
            match guard::guarded(&policy) {
                Ok(guarded) => self.policies.push(guarded.unwrap_or_else(|| policy.clone())),
                Err(what) => complain(errors, format!("`{id}`: {what}")),
            }
            self.written.push(policy);
        }
        let (found, notes) = validate(&VALIDATOR, &typed);
        errors.extend(found.into_iter().map(wrong));
        self.notes.extend(notes);
    }
}

/// The `@id` annotation, or the file's name and the policy's number in it.
fn id_of(policy: &Policy, file: &str) -> String {
    if let Some(id) = policy.annotation("id").filter(|id| !id.is_empty()) {
        return id.to_owned();
    }
    // Cedar numbers the statements of a text from 0: `policy0`, `policy1`, …
    let number = policy.id().to_string().trim_start_matches("policy").parse::<usize>().map_or(0, |number| number + 1);
    format!("{file}#{number}")
}

/// An error before it is known whose it is.
pub(super) struct Found {
    pub(super) what: String,
    /// Bytes from the beginning of the source.
    offset: Option<usize>,
}

impl Found {
    fn of(error: &DetailedError) -> Found {
        let mut what = error.message.replace('\n', " ");
        if let Some(help) = &error.help {
            what.push_str("; ");
            what.push_str(&help.replace('\n', " "));
        }
        Found { what, offset: error.source_locations.first().map(|label| label.loc.start) }
    }

    /// What is wrong, without the entity type or the action it is wrong for.
    fn mistake(&self) -> &str {
        let what = self.what.split(" on entity type").next().unwrap_or_default();
        what.split(" in context for").next().unwrap_or_default()
    }
}

/// Errors and warnings of the strict validator.
pub(super) fn validate(validator: &Validator, policies: &[Policy]) -> (Vec<Found>, Vec<String>) {
    let set = match PolicySet::from_policies(policies.iter().cloned()) {
        Ok(set) => set,
        Err(error) => return (vec![Found { what: error.to_string(), offset: None }], Vec::new()),
    };
    let result = validator.validate(&set, ValidationMode::Strict);
    let mut errors: Vec<Found> =
        result.validation_errors().map(|error| Found::of(&DetailedError::from(error))).collect();
    // Cedar tells of a wrong attribute once for every entity type and action that lacks it, in no order; once will do.
    errors.sort_by(|left, right| (left.offset, &left.what).cmp(&(right.offset, &right.what)));
    errors.dedup_by(|later, first| later.offset == first.offset && later.mistake() == first.mistake());
    (errors, result.validation_warnings().map(ToString::to_string).collect())
}

/// Line and column, both from 1, the column in characters.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    (line, column)
}

/// The policy with each smallest truth that looks at `context.args` taken for some Boolean or other, if there is one.
fn without_args(policy: &Policy) -> Result<Option<Policy>, String> {
    let pst::Policy::Static(policy) = policy.to_pst().map_err(|error| error.to_string())? else {
        return Err("a template is of no use: nothing links it".to_owned());
    };
    let body = policy.body();
    if conditions(body).any(|expr| takes_context_whole(expr)) {
        return Err("name the member of `context` that is meant: it cannot be used as a whole".to_owned());
    }
    if !conditions(body).any(|expr| reads_args(expr)) {
        return Ok(None);
    }
    parsed(with_conditions(body, &|expr| blind(expr, &reads_args))?).map(Some)
}

fn is_context(expr: &pst::Expr) -> bool {
    matches!(expr, pst::Expr::Var(pst::Var::Context))
}

fn any(expr: &pst::Expr, found: &dyn Fn(&pst::Expr) -> Option<bool>) -> bool {
    expr.reduce(found, &|left, right| left || right, false)
}

/// The names after `context.args`, where an expression is nothing but a member of the arguments.
pub(super) fn args_path(expr: &pst::Expr) -> Option<Vec<&str>> {
    let pst::Expr::GetAttr { expr, attr } = expr else {
        return None;
    };
    if is_context(expr) {
        return (attr == "args").then(Vec::new);
    }
    let mut path = args_path(expr)?;
    path.push(attr);
    Some(path)
}

/// The names after `context.args` that a `has` asks for.
pub(super) fn args_asked(expr: &pst::Expr) -> Option<Vec<&str>> {
    let pst::Expr::HasAttr { expr, attrs } = expr else {
        return None;
    };
    let mut attrs = attrs.iter().map(|attr| attr.as_str());
    let mut path = if is_context(expr) {
        attrs.next().filter(|first| *first == "args").map(|_| Vec::new())?
    } else {
        args_path(expr)?
    };
    path.extend(attrs);
    Some(path)
}

pub(super) fn conditions(policy: &pst::Template) -> impl Iterator<Item = &Arc<pst::Expr>> {
    policy.clauses().iter().map(|clause| match clause {
        pst::Clause::When(expr) | pst::Clause::Unless(expr) => expr,
    })
}

fn reads_args(expr: &pst::Expr) -> bool {
    any(expr, &|expr| (args_path(expr).is_some() || args_asked(expr).is_some()).then_some(true))
}

fn takes_context_whole(expr: &pst::Expr) -> bool {
    any(expr, &|expr| match expr {
        pst::Expr::GetAttr { expr, .. } | pst::Expr::HasAttr { expr, .. } if is_context(expr) => Some(false),
        expr => is_context(expr).then_some(true),
    })
}

/// The expression with each of its parts replaced.
pub(super) fn rebuilt(expr: &Arc<pst::Expr>, part: &dyn Fn(&Arc<pst::Expr>) -> Arc<pst::Expr>) -> Arc<pst::Expr> {
    Arc::new(match expr.as_ref() {
        pst::Expr::UnaryOp { op, expr } => pst::Expr::UnaryOp { op: *op, expr: part(expr) },
        pst::Expr::BinaryOp { op, left, right } => {
            pst::Expr::BinaryOp { op: *op, left: part(left), right: part(right) }
        }
        pst::Expr::GetAttr { expr, attr } => pst::Expr::GetAttr { expr: part(expr), attr: attr.clone() },
        pst::Expr::HasAttr { expr, attrs } => pst::Expr::HasAttr { expr: part(expr), attrs: attrs.clone() },
        pst::Expr::Like { expr, pattern } => pst::Expr::Like { expr: part(expr), pattern: pattern.clone() },
        pst::Expr::Is { expr, entity_type, in_expr } => {
            pst::Expr::Is { expr: part(expr), entity_type: entity_type.clone(), in_expr: in_expr.as_ref().map(part) }
        }
        pst::Expr::IfThenElse { cond, then_expr, else_expr } => {
            pst::Expr::IfThenElse { cond: part(cond), then_expr: part(then_expr), else_expr: part(else_expr) }
        }
        pst::Expr::Set(items) => pst::Expr::Set(items.iter().map(part).collect()),
        pst::Expr::Record(members) => {
            pst::Expr::Record(members.iter().map(|(name, member)| (name.clone(), part(member))).collect())
        }
        _ => return expr.clone(),
    })
}

/// The expression with each smallest truth that `hides` picks taken for a Boolean that nothing is known of. Connectives
/// are kept, so that everything else is still validated as it stands.
pub(super) fn blind(expr: &Arc<pst::Expr>, hides: &dyn Fn(&pst::Expr) -> bool) -> Arc<pst::Expr> {
    if !hides(expr) {
        return expr.clone();
    }
    match expr.as_ref() {
        pst::Expr::UnaryOp { op: pst::UnaryOp::Not, .. }
        | pst::Expr::BinaryOp { op: pst::BinaryOp::And | pst::BinaryOp::Or, .. }
        | pst::Expr::IfThenElse { .. } => rebuilt(expr, &|part| blind(part, hides)),
        _ => Arc::new(pst::Expr::GetAttr { expr: Arc::new(pst::Expr::Var(pst::Var::Context)), attr: "mtls".into() }),
    }
}

pub(super) fn parsed(policy: pst::Template) -> Result<Policy, String> {
    let policy = pst::StaticPolicy::try_from(policy).map_err(|error| error.to_string())?;
    Policy::from_pst(pst::Policy::Static(policy)).map_err(|error| error.to_string())
}

/// The policy with its conditions replaced.
pub(super) fn with_conditions(
    policy: &pst::Template,
    change: &dyn Fn(&Arc<pst::Expr>) -> Arc<pst::Expr>,
) -> Result<pst::Template, String> {
    let clauses = policy.clauses().iter().map(|clause| match clause {
        pst::Clause::When(expr) => pst::Clause::When(change(expr)),
        pst::Clause::Unless(expr) => pst::Clause::Unless(change(expr)),
    });
    policy.clone().try_with_clauses(clauses.collect::<Vec<_>>()).map_err(|error| error.to_string())
}
