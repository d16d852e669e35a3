//! Cedar sources become one validated policy set, with every error at once and where it stands.

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
use super::grants;
use super::grants::Lowered;

static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| Validator::new(schema()));

#[expect(clippy::expect_used, reason = "the schema is the file beside this one; every test reads it")]
fn schema() -> Schema {
    let (schema, _) = Schema::from_cedarschema_str(include_str!("schema.cedarschema")).expect("a Cedar schema");
    schema
}

/// What was read.
#[derive(Default)]
pub(super) struct Loaded {
    pub(super) policies: Vec<Policy>,
    /// Some policy looks at `context.args`.
    pub(super) reads_args: bool,
    /// What is no error, and yet worth telling the operator.
    pub(super) notes: Vec<String>,
    ids: HashSet<String>,
}

impl Loaded {
    pub(super) fn grants(&mut self, lowered: &Lowered, errors: &mut Vec<Error>) {
        for (index, id, text) in &lowered.policies {
            let wrong = |what: String| Error::Grant { index: *index, what };
            match Policy::parse(Some(PolicyId::new(id)), text) {
                Ok(policy) => {
                    let checked = std::slice::from_ref(&policy);
                    errors.extend(validate(checked).0.into_iter().map(|found| wrong(found.what)));
                    self.ids.insert(id.clone());
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
            let mut complain = |what: String| errors.push(wrong(Found { what, offset }));
            let id = id_of(policy, file);
            if policy.annotation("shadow").is_some() {
                complain(format!("`{id}`: `@shadow` is not supported: the policy would be enforced"));
            }
            if policy.annotation(super::CONFIRM).is_some() && policy.effect() == cedar_policy::Effect::Forbid {
                complain(format!(
                    "`{id}`: `@confirm` is for `permit`: what is forbidden stays so, whatever a person says"
                ));
            }
            if id.starts_with(grants::PREFIX) {
                complain(format!("`{id}`: ids that begin with `{}` belong to grants", grants::PREFIX));
            }
            if !self.ids.insert(id.clone()) {
                complain(format!("`{id}` is the id of two policies"));
                continue;
            }
            let policy = policy.new_id(PolicyId::new(&id));
            match without_args(&policy) {
                Ok(None) => typed.push(policy.clone()),
                Ok(Some(blind)) => {
                    self.reads_args = true;
                    self.notes.push(format!(
                        "`{id}` reads `context.args`: what it compares arguments with is not type-checked"
                    ));
                    let (found, notes) = validate(&[blind]);
                    errors.extend(
                        found.into_iter().map(|found| wrong(Found { offset: found.offset.or(offset), ..found })),
                    );
                    self.notes.extend(notes);
                }
                Err(what) => complain(format!("`{id}`: {what}")),
            }
            self.policies.push(policy);
        }
        let (found, notes) = validate(&typed);
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
struct Found {
    what: String,
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
fn validate(policies: &[Policy]) -> (Vec<Found>, Vec<String>) {
    let set = match PolicySet::from_policies(policies.iter().cloned()) {
        Ok(set) => set,
        Err(error) => return (vec![Found { what: error.to_string(), offset: None }], Vec::new()),
    };
    let result = VALIDATOR.validate(&set, ValidationMode::Strict);
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
    let expressions = || {
        policy.body().clauses().iter().map(|clause| match clause {
            pst::Clause::When(expr) | pst::Clause::Unless(expr) => expr,
        })
    };
    if expressions().any(|expr| takes_context_whole(expr)) {
        return Err("name the member of `context` that is meant: it cannot be used as a whole".to_owned());
    }
    if !expressions().any(|expr| reads_args(expr)) {
        return Ok(None);
    }
    let clauses: Vec<pst::Clause> = policy
        .body()
        .clauses()
        .iter()
        .map(|clause| match clause {
            pst::Clause::When(expr) => pst::Clause::When(blind(expr)),
            pst::Clause::Unless(expr) => pst::Clause::Unless(blind(expr)),
        })
        .collect();
    let template = policy.body().clone().try_with_clauses(clauses).map_err(|error| error.to_string())?;
    let policy = pst::StaticPolicy::try_from(template).map_err(|error| error.to_string())?;
    Policy::from_pst(pst::Policy::Static(policy)).map(Some).map_err(|error| error.to_string())
}

fn is_context(expr: &pst::Expr) -> bool {
    matches!(expr, pst::Expr::Var(pst::Var::Context))
}

fn any(expr: &pst::Expr, found: &dyn Fn(&pst::Expr) -> Option<bool>) -> bool {
    expr.reduce(found, &|left, right| left || right, false)
}

fn reads_args(expr: &pst::Expr) -> bool {
    any(expr, &|expr| match expr {
        pst::Expr::GetAttr { expr, attr } if is_context(expr) => Some(attr == "args"),
        pst::Expr::HasAttr { expr, attrs } if is_context(expr) => Some(attrs.first() == "args"),
        _ => None,
    })
}

fn takes_context_whole(expr: &pst::Expr) -> bool {
    any(expr, &|expr| match expr {
        pst::Expr::GetAttr { expr, .. } | pst::Expr::HasAttr { expr, .. } if is_context(expr) => Some(false),
        expr => is_context(expr).then_some(true),
    })
}

/// Connectives are kept, so that everything that does not look at arguments is still validated as it stands.
fn blind(expr: &Arc<pst::Expr>) -> Arc<pst::Expr> {
    if !reads_args(expr) {
        return expr.clone();
    }
    Arc::new(match expr.as_ref() {
        pst::Expr::UnaryOp { op: pst::UnaryOp::Not, expr } => {
            pst::Expr::UnaryOp { op: pst::UnaryOp::Not, expr: blind(expr) }
        }
        pst::Expr::BinaryOp { op: op @ (pst::BinaryOp::And | pst::BinaryOp::Or), left, right } => {
            pst::Expr::BinaryOp { op: *op, left: blind(left), right: blind(right) }
        }
        pst::Expr::IfThenElse { cond, then_expr, else_expr } => {
            pst::Expr::IfThenElse { cond: blind(cond), then_expr: blind(then_expr), else_expr: blind(else_expr) }
        }
        // A Boolean that the validator knows nothing about.
        _ => pst::Expr::GetAttr { expr: Arc::new(pst::Expr::Var(pst::Var::Context)), attr: "mtls".into() },
    })
}
