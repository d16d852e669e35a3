//! What the configuration has, and what is wrong with a policy that speaks of something else.
//!
//! Cedar could carry one action per tool, with the tool's arguments as its context; but then every judgement, grant and
//! policy would have to name that action, and a list could not ask about tools that are not in the schema. Instead a
//! policy is looked at once for each known tool that it can be about: with the tool's backend, name and effect put in
//! (`about`), so that `resource.name == "kv.put" && context.args.version > 3` is not held against `kv.read`, and against
//! a schema in which `context.args` is what that tool declares (`shape`). Tools that are not known before a caller comes
//! are held to nothing but the static schema.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use cedar_policy::Policy;
use cedar_policy::Schema;
use cedar_policy::Validator;
use cedar_policy::pst;

use super::about::Subject;
use super::load;
use super::shape::Place;
use super::shape::Shape;
use crate::catalog::Action;
use crate::catalog::Decl;
use crate::catalog::Kind;

/// What there is to name. By default nothing is known, and nothing is refused for its name.
#[derive(Debug, Default)]
pub struct Known {
    /// Every backend of the configuration, by name; `None` where its tools are known only once it is asked.
    backends: BTreeMap<Arc<str>, Option<Vec<Tool>>>,
}

#[derive(Debug)]
pub(super) struct Tool {
    pub(super) decl: Arc<Decl>,
    pub(super) shape: Shape,
}

/// What came of looking at a policy.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) errors: Vec<String>,
    pub(super) notes: Vec<String>,
}

impl Known {
    /// Every backend that is configured, with its tools where they are known before it is asked.
    pub fn new(backends: impl IntoIterator<Item = (Arc<str>, Option<Vec<Arc<Decl>>>)>) -> Known {
        let tool = |decl: Arc<Decl>| Tool { shape: Shape::of(&decl), decl };
        let backend = |(name, decls): (Arc<str>, Option<Vec<Arc<Decl>>>)| {
            let tools = |decls: Vec<Arc<Decl>>| {
                decls.into_iter().filter(|decl| decl.kind == Kind::Tool).map(tool).collect::<Vec<Tool>>()
            };
            (name, decls.map(tools))
        };
        Known { backends: backends.into_iter().map(backend).collect() }
    }

    pub(super) fn tools(&self) -> impl Iterator<Item = &Tool> {
        self.backends.values().flatten().flatten()
    }

    /// The backends of which it is not known what they have.
    pub(super) fn blanks(&self) -> impl Iterator<Item = &Arc<str>> {
        self.backends.iter().filter(|(_, tools)| tools.is_none()).map(|(name, _)| name)
    }

    /// Holds a policy to what there is.
    pub(super) fn hold(&self, policy: &Policy) -> Held {
        let mut held = Held::default();
        let Ok(pst::Policy::Static(written)) = policy.to_pst() else {
            return held;
        };
        let body = written.body();
        if self.backends.is_empty() {
            if load::conditions(body).any(|expr| reads(expr)) {
                held.notes.push(unheld(policy));
            }
            return held;
        }
        self.names(body, &mut held);
        if held.errors.is_empty() && load::conditions(body).any(|expr| reads(expr)) {
            self.arguments(policy, body, &mut held);
        }
        held
    }

    /// Every backend and tool that it names must be there.
    fn names(&self, body: &pst::Template, held: &mut Held) {
        let mut wrong: BTreeSet<String> = BTreeSet::new();
        let mut doubtful: BTreeSet<String> = BTreeSet::new();
        for entity in entities(body) {
            wrong.extend(self.misnamed(&entity));
        }
        let only_tools = is_only_about_tools(body);
        for (attribute, value) in load::conditions(body).flat_map(|expr| compared(expr)) {
            match attribute {
                Attribute::Backend if !self.backends.contains_key(value.as_str()) => {
                    wrong.insert(format!("there is no backend `{value}`"));
                }
                Attribute::Name if !self.may_have(body, &value) => {
                    let what = format!("no backend that it is about has a tool `{value}`");
                    // Prompts and resources have names, too, and are not known.
                    if only_tools {
                        wrong.insert(what)
                    } else {
                        doubtful.insert(what)
                    };
                }
                Attribute::Backend | Attribute::Name => {}
            }
        }
        held.errors.extend(wrong);
        held.notes.extend(doubtful.into_iter().map(|what| format!("`{}`: {what}", body.id.0)));
    }

    fn misnamed(&self, entity: &pst::EntityUID) -> Option<String> {
        let kind = entity.ty.to_string();
        if kind == Kind::Backend.as_str() {
            let known = self.backends.contains_key(entity.eid.as_str());
            return (!known).then(|| format!("there is no backend `{}`", entity.eid));
        }
        if ![Kind::Prompt, Kind::Resource, Kind::Tool].iter().any(|one| one.as_str() == kind) {
            return None;
        }
        let Some((backend, name)) = entity.eid.split_once('/') else {
            return Some(format!("`{kind}::\"{}\"` must be a backend and a name, as in `vault/kv.read`", entity.eid));
        };
        let Some(tools) = self.backends.get(backend) else {
            return Some(format!("there is no backend `{backend}`"));
        };
        let tools = tools.as_ref().filter(|_| kind == Kind::Tool.as_str())?;
        let known = tools.iter().any(|tool| tool.decl.name.as_ref() == name);
        (!known).then(|| format!("backend `{backend}` has no tool `{name}`"))
    }

    /// Could a backend that the policy can be about have a tool of this name?
    fn may_have(&self, body: &pst::Template, name: &str) -> bool {
        self.backends.iter().any(|(backend, tools)| {
            let has = tools.as_ref().is_none_or(|tools| tools.iter().any(|tool| tool.decl.name.as_ref() == name));
            has && Subject { backend, name: Some(name), effect: None }.said_by(body).is_some()
        })
    }

    /// What it reads of arguments must be declared, and used as what it is declared to be.
    fn arguments(&self, policy: &Policy, body: &pst::Template, held: &mut Held) {
        let validators = Validators::default();
        let mut open = self.blanks().any(|backend| {
            let said = Subject { backend, name: None, effect: None }.said_by(body);
            said.is_some_and(|said| load::conditions(&said).any(|expr| reads(expr)))
        });
        let elsewhere = open;
        let mut about = 0;
        // Each path that is read, and whether some tool has it.
        let mut paths: BTreeMap<String, bool> = BTreeMap::new();
        let mut wrong: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for tool in self.tools() {
            let decl = &tool.decl;
            let subject = Subject { backend: &decl.backend, name: Some(&decl.name), effect: decl.only_effect() };
            let Some(said) = subject.said_by(body) else {
                continue;
            };
            if !load::conditions(&said).any(|expr| reads(expr)) {
                continue;
            }
            about += 1;
            for expr in load::conditions(&said) {
                open |= is_open(expr, &tool.shape);
                for (path, place) in places(expr, &tool.shape) {
                    *paths.entry(path).or_default() |= place != Place::Missing;
                }
            }
            let name = format!("{}/{}", decl.backend, decl.name);
            for what in validators.wrong(&said, &tool.shape) {
                wrong.entry(what).or_default().push(name.clone());
            }
        }
        let missing: Vec<&String> = paths.iter().filter(|(_, found)| !**found).map(|(path, _)| path).collect();
        if !elsewhere && !missing.is_empty() {
            let what = |path| format!("no tool that it is about has the argument `{path}`");
            held.errors.extend(missing.into_iter().map(what));
        } else {
            held.errors.extend(wrong.into_iter().map(|(what, tools)| told(&what, &tools)));
        }
        if about == 0 && !elsewhere && is_only_about_tools(body) {
            held.notes.push(format!("`{}` is about no tool there is", policy.id()));
        }
        if open {
            held.notes.push(unheld(policy));
        }
    }
}

fn unheld(policy: &Policy) -> String {
    format!(
        "`{}` reads `context.args` of tools whose arguments are not known: what it compares them with is not type-checked",
        policy.id()
    )
}

fn told(what: &str, tools: &[String]) -> String {
    match tools {
        [] => what.to_owned(),
        [one] => format!("for `{one}`: {what}"),
        [one, others @ ..] => format!("for `{one}` and {} more: {what}", others.len()),
    }
}

/// The validators of the shapes met so far: making one takes longer than using it.
#[derive(Default)]
struct Validators {
    made: RefCell<HashMap<String, Option<Rc<Validator>>>>,
}

impl Validators {
    fn wrong(&self, said: &pst::Template, shape: &Shape) -> Vec<String> {
        let arguments = shape.to_cedar();
        let validator = self
            .made
            .borrow_mut()
            .entry(arguments)
            .or_insert_with_key(|arguments| schema_of(arguments).map(|schema| Rc::new(Validator::new(schema))))
            .clone();
        let Some(validator) = validator else {
            return vec!["its arguments have names that Cedar cannot write".to_owned()];
        };
        let visible = load::with_conditions(said, &|expr| load::blind(expr, &|expr| is_open(expr, shape)));
        match visible.and_then(load::parsed) {
            Ok(policy) => {
                let (found, _) = load::validate(&validator, &[policy]);
                found.into_iter().map(|found| found.what).collect()
            }
            Err(what) => vec![what],
        }
    }
}

/// The schema in which the arguments are of this type.
pub(super) fn schema_of(arguments: &str) -> Option<Schema> {
    let text = load::SCHEMA.replace("type Args = {};", &format!("type Args = {arguments};"));
    Schema::from_cedarschema_str(&text).ok().map(|(schema, _)| schema)
}

/// Does it look at anything that has no type?
pub(super) fn is_open(expr: &pst::Expr, shape: &Shape) -> bool {
    let found = |expr: &pst::Expr| place(expr, shape).map(|(_, place)| place == Place::Open);
    expr.reduce(&found, &|left, right| left || right, false)
}

pub(super) fn reads(expr: &pst::Expr) -> bool {
    is_open(expr, &Shape::Open)
}

fn place<'a>(expr: &'a pst::Expr, shape: &Shape) -> Option<(Vec<&'a str>, Place)> {
    if let Some(path) = load::args_asked(expr) {
        let place = shape.has(&path);
        return Some((path, place));
    }
    let path = load::args_path(expr)?;
    let place = shape.read(&path);
    Some((path, place))
}

/// Everything of the arguments that is read, by its path.
fn places(expr: &pst::Expr, shape: &Shape) -> Vec<(String, Place)> {
    let found = |expr: &pst::Expr| place(expr, shape).map(|(path, place)| vec![(path.join("."), place)]);
    expr.reduce(&found, &|left, right| left.into_iter().chain(right).collect(), Vec::new())
}

/// Every entity that is named anywhere.
fn entities(body: &pst::Template) -> Vec<pst::EntityUID> {
    let mut named = Vec::new();
    match &body.resource {
        pst::ResourceConstraint::Eq(pst::EntityOrSlot::Entity(entity))
        | pst::ResourceConstraint::In(pst::EntityOrSlot::Entity(entity))
        | pst::ResourceConstraint::IsIn(_, pst::EntityOrSlot::Entity(entity)) => named.push(entity.clone()),
        _ => {}
    }
    let found = |expr: &pst::Expr| match expr {
        pst::Expr::Literal(pst::Literal::EntityUID(entity)) => Some(vec![entity.clone()]),
        _ => None,
    };
    let join = |left: Vec<_>, right: Vec<_>| left.into_iter().chain(right).collect();
    named.extend(load::conditions(body).flat_map(|expr| expr.reduce(&found, &join, Vec::new())));
    named
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Attribute {
    Backend,
    Name,
}

fn attribute(expr: &pst::Expr) -> Option<Attribute> {
    match expr {
        pst::Expr::GetAttr { expr, attr } if matches!(expr.as_ref(), pst::Expr::Var(pst::Var::Resource)) => {
            match attr.as_str() {
                "backend" => Some(Attribute::Backend),
                "name" => Some(Attribute::Name),
                _ => None,
            }
        }
        _ => None,
    }
}

fn texts(expr: &pst::Expr) -> Vec<String> {
    match expr {
        pst::Expr::Literal(pst::Literal::String(text)) => vec![text.to_string()],
        pst::Expr::Set(items) => items.iter().flat_map(|item| texts(item)).collect(),
        _ => Vec::new(),
    }
}

/// What the backend and the name of the resource are compared with.
fn compared(expr: &pst::Expr) -> Vec<(Attribute, String)> {
    let found = |expr: &pst::Expr| {
        let pst::Expr::BinaryOp { op, left, right } = expr else {
            return None;
        };
        let (attribute, values) = match op {
            pst::BinaryOp::Eq | pst::BinaryOp::NotEq => match (attribute(left), attribute(right)) {
                (Some(attribute), None) => (attribute, right),
                (None, Some(attribute)) => (attribute, left),
                _ => return None,
            },
            pst::BinaryOp::Contains => (attribute(right)?, left),
            _ => return None,
        };
        Some(texts(values).into_iter().map(|text| (attribute, text)).collect::<Vec<_>>())
    };
    expr.reduce(&found, &|left, right| left.into_iter().chain(right).collect(), Vec::new())
}

fn is_only_about_tools(body: &pst::Template) -> bool {
    let call = |action: &pst::EntityUID| action.eid == Action::Call.as_str();
    let by_action = match &body.action {
        pst::ActionConstraint::Any => false,
        pst::ActionConstraint::Eq(action) => call(action),
        pst::ActionConstraint::In(actions) => actions.iter().all(call),
    };
    let tool = |name: String| name == Kind::Tool.as_str();
    let by_resource = match &body.resource {
        pst::ResourceConstraint::Eq(pst::EntityOrSlot::Entity(entity)) => tool(entity.ty.to_string()),
        pst::ResourceConstraint::Is(kind) | pst::ResourceConstraint::IsIn(kind, _) => tool(kind.to_string()),
        _ => false,
    };
    by_action || by_resource
}
