//! The judgement itself: Cedar asked with more or less of the truth, and what it said remembered.
//!
//! A principal is asked about once per action: the policies that can matter are picked out (by the scope, role, group or
//! tenant they are for, then by what Cedar leaves of them), and that selection has a key. Two principals of whom the same
//! is left share every decision from there on, so that a new principal's list of a thousand tools costs look-ups only.

use std::collections::HashMap;
use std::collections::HashSet;
use std::hash::BuildHasher;
use std::hash::Hash;
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use cedar_policy::ActionConstraint;
use cedar_policy::Authorizer;
use cedar_policy::Entities;
use cedar_policy::Entity;
use cedar_policy::EntityUid;
use cedar_policy::PartialResponse;
use cedar_policy::PolicyId;
use cedar_policy::PolicySet;
use cedar_policy::PrincipalConstraint;
use cedar_policy::Request;
use moka::sync::Cache;
use serde_json::Value;

use super::Context;
use super::Reason;
use super::args::Args;
use super::facts;
use super::load::Reads;
use super::shape::Shape;
use crate::catalog::Action;
use crate::catalog::Call;
use crate::catalog::Decl;
use crate::catalog::Effect;
use crate::catalog::Kind;
use crate::principal::Principal;

/// Decisions remembered; about 150 bytes each.
pub(super) const DECISIONS_MAX: u64 = 200_000;

/// Principals whose policies are picked out, times the four questions each usually asks.
const SLICES_MAX: u64 = 40_000;

/// Verdicts of tools whose arguments decide, by the facts they were given with.
const EXPECTATIONS_MAX: u64 = 100_000;

/// Tools whose input schema was read.
const SHAPES_MAX: u64 = 10_000;

/// Different selections of policies remembered; principals with the same scopes share one.
const SELECTIONS_MAX: u64 = 1_000;

/// What is said without, or with, the context.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// The `permit` policies that allow it.
    Allow(Arc<[String]>),
    Deny(Reason, Arc<[String]>),
    /// Open until more is known.
    Depends,
}

impl Verdict {
    pub(super) fn unjudgeable() -> Verdict {
        Verdict::Deny(Reason::Error, Arc::default())
    }
}

/// The policies that may say anything about a principal's action, and the principal as an entity.
pub(super) struct Slice {
    policies: Arc<PolicySet>,
    principal: Entity,
    /// Stands for what is left of the policies: slices with one key give one answer to every question.
    key: u128,
}

/// Some policies, and which of them are for whom.
struct Shelf {
    policies: Vec<cedar_policy::Policy>,
    /// Those whose scope names something that the principal must be in.
    by_parent: HashMap<EntityUid, Vec<usize>>,
    /// All others.
    rest: Vec<usize>,
}

impl Shelf {
    fn new(set: &PolicySet) -> Shelf {
        let mut policies: Vec<cedar_policy::Policy> = set.policies().cloned().collect();
        policies.sort_by_cached_key(|policy| policy.id().to_string());
        let mut by_parent: HashMap<EntityUid, Vec<usize>> = HashMap::new();
        let mut rest = Vec::new();
        for (index, policy) in policies.iter().enumerate() {
            match policy.principal_constraint() {
                PrincipalConstraint::In(parent) | PrincipalConstraint::IsIn(_, parent) => {
                    by_parent.entry(parent).or_default().push(index);
                }
                PrincipalConstraint::Any | PrincipalConstraint::Eq(_) | PrincipalConstraint::Is(_) => rest.push(index),
            }
        }
        Shelf { policies, by_parent, rest }
    }

    /// The policies whose scope admits the principal and the action, or may do.
    fn candidates(&self, principal: &Principal, itself: &EntityUid, action: &EntityUid) -> Vec<usize> {
        // `in` holds for the principal itself, too.
        let parents = facts::parents(principal).chain([itself.clone()]);
        let named = parents.filter_map(|parent| self.by_parent.get(&parent)).flatten();
        let concerned = |index: &usize| {
            self.policies.get(*index).is_some_and(|policy| match policy.action_constraint() {
                ActionConstraint::Any => true,
                ActionConstraint::Eq(one) => one == *action,
                ActionConstraint::In(several) => several.contains(action),
            })
        };
        let mut candidates: Vec<usize> = named.chain(&self.rest).copied().filter(concerned).collect();
        candidates.sort_unstable();
        candidates.dedup();
        candidates
    }
}

/// How much of the truth a question carries.
enum Known<'a> {
    /// Nothing of the context.
    Nothing,
    /// The context without the arguments.
    Facts(&'a Context),
    All(&'a Context, Args),
}

pub(super) struct Engine {
    authorizer: Authorizer,
    policies: Shelf,
    /// What holds for a caller whose groups are not known, where that differs.
    groupless: Option<Shelf>,
    reads: Reads,
    memory: Arc<Memory>,
    /// Tells its entries from those of others in the same memory.
    realm: u64,
    /// Random per engine: nobody outside can aim for a collision of two keys, and no two engines have one in common.
    seeds: [RandomState; 2],
}

/// What was answered lately. Engines of tenants share the bounds, and no entry.
pub(super) struct Memory {
    /// Whole-context-unknown verdicts by [`Engine::key`] of the principal's authority.
    decisions: Cache<u128, Verdict>,
    /// The same by [`Engine::key`] of the slice.
    shared: Cache<u128, Verdict>,
    /// Verdicts with the arguments unknown, by [`Engine::key`] of the slice and the facts.
    expectations: Cache<u128, Verdict>,
    shapes: Cache<u128, Arc<Shape>>,
    /// By engine, and what they are for.
    slices: Cache<(u64, u128, Action, Kind), Arc<Slice>>,
    /// By engine, whether they are taken from `groupless`, and which.
    selections: Cache<(u64, bool, Vec<usize>), Arc<PolicySet>>,
}

impl Memory {
    pub(super) fn of(decisions_max: u64) -> Memory {
        Memory {
            decisions: Cache::new(decisions_max),
            shared: Cache::new(decisions_max),
            expectations: Cache::new(EXPECTATIONS_MAX),
            shapes: Cache::new(SHAPES_MAX),
            slices: Cache::new(SLICES_MAX),
            selections: Cache::new(SELECTIONS_MAX),
        }
    }
}

impl Engine {
    pub(super) fn new(
        policies: &PolicySet,
        groupless: Option<&PolicySet>,
        reads: Reads,
        memory: Arc<Memory>,
    ) -> Engine {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Engine {
            authorizer: Authorizer::new(),
            policies: Shelf::new(policies),
            groupless: groupless.map(Shelf::new),
            reads,
            memory,
            realm: COUNT.fetch_add(1, Ordering::Relaxed),
            seeds: [RandomState::new(), RandomState::new()],
        }
    }

    /// What a verdict that depends on the context depends on besides the arguments and the mode.
    pub(super) fn reads(&self) -> Reads {
        self.reads
    }

    pub(super) fn memory(&self) -> Arc<Memory> {
        self.memory.clone()
    }

    /// The verdict with the whole context unknown, remembered.
    pub(super) fn decide(&self, principal: &Principal, action: Action, decl: &Decl, effect: Effect) -> Verdict {
        let key = self.key(principal.authority(), action, decl, effect);
        if let Some(known) = self.memory.decisions.get(&key) {
            return known;
        }
        let verdict = match self.slice(principal, action, decl.kind) {
            Some(slice) => self.decide_in(&slice, action, decl, effect),
            None => Verdict::unjudgeable(),
        };
        self.memory.decisions.insert(key, verdict.clone());
        verdict
    }

    /// The same for one of many questions about one principal and action.
    pub(super) fn decide_in(&self, slice: &Slice, action: Action, decl: &Decl, effect: Effect) -> Verdict {
        let key = self.key(slice.key, action, decl, effect);
        if let Some(known) = self.memory.shared.get(&key) {
            return known;
        }
        let answer = self.ask(slice, action, decl, effect, Known::Nothing);
        let verdict = answer.as_ref().map_or_else(Verdict::unjudgeable, verdict);
        self.memory.shared.insert(key, verdict.clone());
        verdict
    }

    /// The verdict with everything but the arguments known.
    pub(super) fn expect(
        &self,
        slice: &Slice,
        action: Action,
        decl: &Decl,
        effect: Effect,
        context: &Context,
    ) -> Verdict {
        let expect = || {
            let answer = self.ask(slice, action, decl, effect, Known::Facts(context));
            answer.as_ref().map_or_else(Verdict::unjudgeable, verdict)
        };
        if self.reads.now {
            // The time is another one at every question.
            return expect();
        }
        let facts = self.digest(&(self.key(slice.key, action, decl, effect), context.mode, context.mtls, context.ip));
        if let Some(known) = self.memory.expectations.get(&facts) {
            return known;
        }
        let verdict = expect();
        self.memory.expectations.insert(facts, verdict.clone());
        verdict
    }

    /// The policies that have something to say with everything but the arguments known: those that hold, that fail, and
    /// that are still open.
    pub(super) fn grounds(
        &self,
        principal: &Principal,
        action: Action,
        decl: &Decl,
        effect: Effect,
        context: &Context,
    ) -> Arc<[String]> {
        let slice = self.slice(principal, action, decl.kind);
        let Some(response) = slice.and_then(|slice| self.ask(&slice, action, decl, effect, Known::Facts(context)))
        else {
            return Arc::default();
        };
        let held = response.definitely_satisfied().chain(response.nontrivial_residuals());
        let held = held.map(|policy| policy.id().clone());
        names(held.chain(response.definitely_errored().cloned()).collect::<HashSet<PolicyId>>())
    }

    /// The verdict with everything known. What is still open then is a policy that reads an unreadable argument.
    pub(super) fn settle(&self, principal: &Principal, call: &Call, effect: Effect, context: &Context) -> Verdict {
        let args = if self.reads.args { Args::read(call.arguments(), &self.shape(&call.decl)) } else { Args::none() };
        let slice = self.slice(principal, call.action, call.decl.kind);
        let answer = slice
            .zip(args)
            .and_then(|(slice, args)| self.ask(&slice, call.action, &call.decl, effect, Known::All(context, args)));
        let Some(response) = answer else {
            return Verdict::unjudgeable();
        };
        match verdict(&response) {
            Verdict::Depends => {
                Verdict::Deny(Reason::Error, names(response.nontrivial_residuals().map(|policy| policy.id().clone())))
            }
            settled => settled,
        }
    }

    /// 128 bits that stand for the question of somebody; no allocation.
    fn key(&self, somebody: u128, action: Action, decl: &Decl, effect: Effect) -> u128 {
        self.digest(&(somebody, action, decl.kind, effect, &decl.backend, &decl.name))
    }

    fn digest(&self, of: &impl Hash) -> u128 {
        let [high, low] = self.seeds.each_ref().map(|seed| u128::from(seed.hash_one(of)));
        high << 64 | low
    }

    /// What the tool declares of its arguments.
    fn shape(&self, decl: &Decl) -> Arc<Shape> {
        if decl.kind != Kind::Tool || decl.wire.is_empty() {
            return Arc::new(Shape::Open);
        }
        let key = self.digest(&decl.wire);
        self.memory.shapes.get_with(key, || Arc::new(Shape::of(decl)))
    }

    /// `None` if the question cannot even be put: callers deny.
    fn ask(
        &self,
        slice: &Slice,
        action: Action,
        decl: &Decl,
        effect: Effect,
        known: Known<'_>,
    ) -> Option<PartialResponse> {
        let resource = facts::resource(decl, effect)?;
        let request =
            Request::builder().principal(slice.principal.uid()).action(facts::action(action)).resource(resource.uid());
        let entities = Entities::from_entities([slice.principal.clone(), resource], None).ok()?;
        let ask = |request: &Request| self.authorizer.is_authorized_partial(request, &slice.policies, &entities);
        let (context, args) = match known {
            Known::Nothing => return Some(ask(&request.build())),
            Known::All(context, args) if args.whole => {
                let members = facts::members(context)?.into_iter().chain([("args".to_owned(), args.value)]);
                return Some(ask(&request.context(cedar_policy::Context::from_pairs(members).ok()?).build()));
            }
            Known::Facts(context) => (context, facts::unknown("args")),
            Known::All(context, args) => (context, args.value),
        };
        // A record that holds an unknown beside a date or an address is opaque to Cedar: not even `context.mtls` can be
        // taken out of it. So first every member is unknown, then those that are known are bound.
        let bindings = facts::members(context)?;
        let hollow =
            bindings.iter().map(|(name, _)| (name.clone(), facts::unknown(name))).chain([("args".to_owned(), args)]);
        let first = ask(&request.context(cedar_policy::Context::from_pairs(hollow).ok()?).build());
        if first.definitely_errored().next().is_some() {
            // Binding would forget the errors.
            return Some(first);
        }
        let bindings = bindings.iter().map(|(name, value)| (name.as_str(), value));
        first.reauthorize_with_bindings(bindings, &self.authorizer, &entities).ok()
    }

    /// Leaves out the policies that are false for this principal and action whatever the resource and the context: most
    /// grants are for others, and a list asks the same a thousand times. `None` if the question cannot be put: callers deny.
    pub(super) fn slice(&self, principal: &Principal, action: Action, kind: Kind) -> Option<Arc<Slice>> {
        let key = (self.realm, principal.authority(), action, kind);
        if let Some(known) = self.memory.slices.get(&key) {
            return Some(known);
        }
        let entity = facts::principal(principal)?;
        let entities = Entities::from_entities([entity.clone()], None).ok()?;
        let groupless = self.groupless.as_ref().filter(|_| principal.groups_unknown);
        let shelf = groupless.unwrap_or(&self.policies);
        let action = facts::action(action);
        let candidates = shelf.candidates(principal, &entity.uid(), &action);
        let all = self.selection(shelf, groupless.is_some(), candidates.clone())?;
        let request = Request::builder().principal(entity.uid()).action(action);
        let request = request.unknown_resource_with_type(facts::kind(kind).clone()).build();
        let response = self.authorizer.is_authorized_partial(&request, &all, &entities);
        let mut matter: HashSet<PolicyId> = response.definitely_errored().cloned().collect();
        matter.extend(
            response.definitely_satisfied().chain(response.nontrivial_residuals()).map(|policy| policy.id().clone()),
        );
        let matters = |index: &usize| shelf.policies.get(*index).is_some_and(|policy| matter.contains(policy.id()));
        let chosen: Vec<usize> = candidates.into_iter().filter(matters).collect();
        let key_of_rest = self.rest_of(&response, groupless.is_some(), &chosen, principal);
        let policies = self.selection(shelf, groupless.is_some(), chosen)?;
        let slice = Arc::new(Slice { policies, principal: entity, key: key_of_rest });
        self.memory.slices.insert(key, slice.clone());
        Some(slice)
    }

    /// 128 bits that stand for what is left of the policies once the principal and the action are known.
    fn rest_of(&self, response: &PartialResponse, groupless: bool, chosen: &[usize], principal: &Principal) -> u128 {
        let mut left: Vec<String> = response.definitely_errored().map(|id| format!("!{id}")).collect();
        left.extend(response.definitely_satisfied().map(|policy| format!("={}", policy.id())));
        let mut personal = false;
        for policy in response.nontrivial_residuals() {
            match policy.to_json() {
                Ok(json) => {
                    let text = json.to_string();
                    // What is left may still name the principal itself, whose attributes the text does not tell.
                    personal |= text.contains(principal.key().as_ref()) || names_principals(&text);
                    left.push(format!("?{} {text}", policy.id()));
                }
                Err(_) => personal = true,
            }
        }
        left.sort_unstable();
        let whose = personal.then(|| principal.authority());
        self.digest(&(groupless, chosen, left, whose))
    }

    fn selection(&self, shelf: &Shelf, groupless: bool, chosen: Vec<usize>) -> Option<Arc<PolicySet>> {
        let key = (self.realm, groupless, chosen);
        if let Some(known) = self.memory.selections.get(&key) {
            return Some(known);
        }
        let policies = key.2.iter().filter_map(|index| shelf.policies.get(*index)).cloned();
        let set = Arc::new(PolicySet::from_policies(policies).ok()?);
        self.memory.selections.insert(key, set.clone());
        Some(set)
    }
}

/// Does the text of a policy name an entity of a type that principals have, or the variable?
fn names_principals(text: &str) -> bool {
    [r#""User""#, r#""Service""#, r#""Agent""#, r#""Var":"principal""#].iter().any(|name| text.contains(name))
}

/// Any error denies; then forbid overrides permit; then nothing permits; then all is known, or it depends.
fn verdict(response: &PartialResponse) -> Verdict {
    let errors = names(response.definitely_errored().cloned());
    if !errors.is_empty() {
        return Verdict::Deny(Reason::Error, errors);
    }
    let (mut permits, mut forbids) = (Vec::new(), Vec::new());
    for policy in response.definitely_satisfied() {
        match policy.effect() {
            cedar_policy::Effect::Permit => permits.push(policy.id().clone()),
            cedar_policy::Effect::Forbid => forbids.push(policy.id().clone()),
        }
    }
    let (mut open, mut hopeful) = (false, false);
    for policy in response.nontrivial_residuals() {
        open = true;
        match policy.effect() {
            cedar_policy::Effect::Permit => hopeful |= can_be(&policy, true),
            cedar_policy::Effect::Forbid if can_be(&policy, false) => {}
            // True or failing whatever comes: both deny.
            cedar_policy::Effect::Forbid => forbids.push(policy.id().clone()),
        }
    }
    if !forbids.is_empty() {
        Verdict::Deny(Reason::Forbidden, names(forbids))
    } else if permits.is_empty() && !hopeful {
        Verdict::Deny(Reason::NotGranted, Arc::default())
    } else if open {
        Verdict::Depends
    } else {
        Verdict::Allow(names(permits))
    }
}

/// Sorted: Cedar's answers come out of hash maps.
fn names(ids: impl IntoIterator<Item = PolicyId>) -> Arc<[String]> {
    let mut names: Vec<String> = ids.into_iter().map(|id| id.to_string()).collect();
    names.sort_unstable();
    names.into()
}

/// May what is left of a policy still come out as `wanted`? Cedar keeps `<unknown> && false` as it stands; without this
/// a grant that tests its arguments before its tool would list every tool.
fn can_be(residual: &cedar_policy::Policy, wanted: bool) -> bool {
    // Cedar's own tree for outsiders (`pst`) refuses unknowns; its JSON form takes them.
    let Ok(policy) = residual.to_json() else {
        return true;
    };
    let Some(conditions) = policy.get("conditions").and_then(Value::as_array) else {
        return true;
    };
    let holds = |condition: &Value, wanted: bool| {
        let unless = condition.get("kind").and_then(Value::as_str) == Some("unless");
        condition.get("body").is_none_or(|body| may(body, wanted != unless))
    };
    if wanted {
        conditions.iter().all(|condition| holds(condition, true))
    } else {
        conditions.iter().any(|condition| holds(condition, false))
    }
}

/// May the expression evaluate to `wanted`, without an error? Says yes where it cannot tell.
fn may(expr: &Value, wanted: bool) -> bool {
    let Some((operator, operands)) = expr.as_object().and_then(|node| node.iter().next()) else {
        return true;
    };
    let may = |operand: &str, wanted: bool| operands.get(operand).is_none_or(|expr| may(expr, wanted));
    match operator.as_str() {
        "Value" => operands.as_bool().is_none_or(|value| value == wanted),
        "!" => may("arg", !wanted),
        "&&" if wanted => may("left", true) && may("right", true),
        "&&" => may("left", false) || (may("left", true) && may("right", false)),
        "||" if wanted => may("left", true) || (may("left", false) && may("right", true)),
        "||" => may("left", false) && may("right", false),
        "if-then-else" => (may("if", true) && may("then", wanted)) || (may("if", false) && may("else", wanted)),
        _ => true,
    }
}
