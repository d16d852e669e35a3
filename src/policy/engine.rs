//! The judgement itself: Cedar asked with more or less of the truth, and what it said remembered.

use std::collections::HashSet;
use std::hash::BuildHasher;
use std::hash::Hash;
use std::hash::Hasher;
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use cedar_policy::Authorizer;
use cedar_policy::Entities;
use cedar_policy::Entity;
use cedar_policy::PartialResponse;
use cedar_policy::PolicyId;
use cedar_policy::PolicySet;
use cedar_policy::Request;
use moka::sync::Cache;
use serde_json::Value;

use super::Context;
use super::Reason;
use super::facts;
use super::facts::Args;
use crate::catalog::Action;
use crate::catalog::Call;
use crate::catalog::Decl;
use crate::catalog::Effect;
use crate::catalog::Kind;
use crate::principal::Principal;

/// Decisions remembered; about 150 bytes each.
const DECISIONS_MAX: u64 = 200_000;

/// Principals whose policies are picked out, times the four questions each usually asks.
const SLICES_MAX: u64 = 40_000;

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
    fn unjudgeable() -> Verdict {
        Verdict::Deny(Reason::Error, Arc::default())
    }
}

/// The policies that may say anything about a principal's action, and the principal as an entity.
struct Slice {
    policies: Arc<PolicySet>,
    principal: Entity,
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
    policies: PolicySet,
    /// What holds for a caller whose groups are not known, where that differs.
    groupless: Option<PolicySet>,
    reads_args: bool,
    memory: Arc<Memory>,
    /// Tells its entries from those of others in the same memory.
    realm: u64,
    /// Random per engine: nobody outside can aim for a collision of two keys, and no two engines have one in common.
    seeds: [RandomState; 2],
}

/// What was answered lately. Engines of tenants share the bounds, and no entry.
pub(super) struct Memory {
    /// Whole-context-unknown verdicts by [`Engine::key`].
    decisions: Cache<u128, Verdict>,
    slices: Cache<(u64, u128, Action, Kind), Arc<Slice>>,
    /// By engine, whether they are taken from `groupless`, and which.
    selections: Cache<(u64, bool, Vec<usize>), Arc<PolicySet>>,
}

impl Default for Memory {
    fn default() -> Self {
        Memory {
            decisions: Cache::new(DECISIONS_MAX),
            slices: Cache::new(SLICES_MAX),
            selections: Cache::new(SELECTIONS_MAX),
        }
    }
}

impl Engine {
    pub(super) fn new(
        policies: PolicySet,
        groupless: Option<PolicySet>,
        reads_args: bool,
        memory: Arc<Memory>,
    ) -> Engine {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Engine {
            authorizer: Authorizer::new(),
            policies,
            groupless,
            reads_args,
            memory,
            realm: COUNT.fetch_add(1, Ordering::Relaxed),
            seeds: [RandomState::new(), RandomState::new()],
        }
    }

    pub(super) fn memory(&self) -> Arc<Memory> {
        self.memory.clone()
    }

    /// The verdict with the whole context unknown, remembered.
    pub(super) fn decide(&self, principal: &Principal, action: Action, decl: &Decl, effect: Effect) -> Verdict {
        let key = self.key(principal, action, decl, effect);
        if let Some(known) = self.memory.decisions.get(&key) {
            return known;
        }
        let verdict = self
            .ask(principal, action, decl, effect, Known::Nothing)
            .as_ref()
            .map_or_else(Verdict::unjudgeable, verdict);
        self.memory.decisions.insert(key, verdict.clone());
        verdict
    }

    /// The verdict with everything but the arguments known.
    pub(super) fn expect(
        &self,
        principal: &Principal,
        action: Action,
        decl: &Decl,
        effect: Effect,
        context: &Context,
    ) -> Verdict {
        self.ask(principal, action, decl, effect, Known::Facts(context))
            .as_ref()
            .map_or_else(Verdict::unjudgeable, verdict)
    }

    /// The verdict with everything known. What is still open then is a policy that reads an unreadable argument.
    pub(super) fn settle(&self, principal: &Principal, call: &Call, effect: Effect, context: &Context) -> Verdict {
        let args = if self.reads_args { Args::read(call.arguments()) } else { Args::none() };
        let answer =
            args.and_then(|args| self.ask(principal, call.action, &call.decl, effect, Known::All(context, args)));
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

    /// 128 bits that stand for the question; no allocation.
    fn key(&self, principal: &Principal, action: Action, decl: &Decl, effect: Effect) -> u128 {
        let [high, low] = self.seeds.each_ref().map(|seed| {
            let mut hasher = seed.build_hasher();
            hasher.write_u64(self.realm);
            hasher.write_u128(principal.authority());
            (action, decl.kind, effect, &decl.backend, &decl.name).hash(&mut hasher);
            u128::from(hasher.finish())
        });
        high << 64 | low
    }

    /// `None` if the question cannot even be put: callers deny.
    fn ask(
        &self,
        principal: &Principal,
        action: Action,
        decl: &Decl,
        effect: Effect,
        known: Known<'_>,
    ) -> Option<PartialResponse> {
        let slice = self.slice(principal, action, decl.kind)?;
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
    /// grants are for others, and a list asks the same a thousand times.
    fn slice(&self, principal: &Principal, action: Action, kind: Kind) -> Option<Arc<Slice>> {
        let key = (self.realm, principal.authority(), action, kind);
        if let Some(known) = self.memory.slices.get(&key) {
            return Some(known);
        }
        let entity = facts::principal(principal)?;
        let entities = Entities::from_entities([entity.clone()], None).ok()?;
        let request = Request::builder().principal(entity.uid()).action(facts::action(action));
        let request = request.unknown_resource_with_type(facts::kind(kind).clone()).build();
        let groupless = self.groupless.as_ref().filter(|_| principal.groups_unknown);
        let all = groupless.unwrap_or(&self.policies);
        let response = self.authorizer.is_authorized_partial(&request, all, &entities);
        let mut matter: HashSet<PolicyId> = response.definitely_errored().cloned().collect();
        matter.extend(
            response.definitely_satisfied().chain(response.nontrivial_residuals()).map(|policy| policy.id().clone()),
        );
        let policies = || all.policies().enumerate().filter(|(_, policy)| matter.contains(policy.id()));
        let selection = (self.realm, groupless.is_some(), policies().map(|(index, _)| index).collect::<Vec<usize>>());
        let policies = match self.memory.selections.get(&selection) {
            Some(known) => known,
            None => {
                let set = Arc::new(PolicySet::from_policies(policies().map(|(_, policy)| policy.clone())).ok()?);
                self.memory.selections.insert(selection, set.clone());
                set
            }
        };
        let slice = Arc::new(Slice { policies, principal: entity });
        self.memory.slices.insert(key, slice.clone());
        Some(slice)
    }
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
