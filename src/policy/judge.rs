//! The steps of a judgement: the mode, Cedar without the context, Cedar with it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Context;
use super::Prospect;
use super::Reason;
use super::engine::Engine;
use super::engine::Slice;
use super::engine::Verdict;
use crate::catalog::Action;
use crate::catalog::Call;
use crate::catalog::Decl;
use crate::catalog::Effect;
use crate::catalog::Kind;
use crate::principal::Principal;

type Denied = (Reason, Arc<[String]>);

/// The ids that allow it, or why not.
pub(super) fn judge(
    engine: &Engine,
    principal: &Principal,
    call: &Call,
    context: &Context,
) -> Result<Arc<[String]>, Denied> {
    let (action, decl) = (call.action, call.decl.as_ref());
    if !fits(action, decl.kind) {
        return Err((Reason::NotGranted, Arc::default()));
    }
    if call.is_follow_up() {
        return follows(engine, principal, call, context);
    }
    // An effect that no call of it can have is a mistake of ours: the highest counts.
    let effect = if decl.effects().contains(&call.effect) { call.effect } else { call.effect.max(decl.effect) };
    if !context.mode.admits(effect) {
        return Err((Reason::Ceiling, Arc::default()));
    }
    let verdict = match engine.decide(principal, action, decl, effect) {
        Verdict::Depends => engine.settle(principal, call, effect, context),
        settled => settled,
    };
    match verdict {
        Verdict::Allow(_) if !completes(engine, principal, action, decl, context) => {
            Err((Reason::NotGranted, Arc::default()))
        }
        Verdict::Allow(policies) => Ok(policies),
        Verdict::Deny(reason, policies) => Err((reason, policies)),
        // INVARIANT: `settle` leaves nothing open.
        Verdict::Depends => Err((Reason::Error, Arc::default())),
    }
}

/// Arguments that could be allowed were; which they were, and so their effect, nobody says again: the highest it can be.
fn follows(engine: &Engine, principal: &Principal, call: &Call, context: &Context) -> Result<Arc<[String]>, Denied> {
    let (action, decl) = (call.action, call.decl.as_ref());
    let effect = decl.effect;
    if !context.mode.admits(effect) {
        return Err((Reason::Ceiling, Arc::default()));
    }
    let verdict = match engine.decide(principal, action, decl, effect) {
        Verdict::Depends => expect(engine, principal, action, decl, effect, context),
        settled => settled,
    };
    match verdict {
        Verdict::Allow(policies) => Ok(policies),
        Verdict::Depends => Ok(Arc::default()),
        Verdict::Deny(reason, policies) => Err((reason, policies)),
    }
}

fn expect(
    engine: &Engine,
    principal: &Principal,
    action: Action,
    decl: &Decl,
    effect: Effect,
    context: &Context,
) -> Verdict {
    match engine.slice(principal, action, decl.kind) {
        Some(slice) => engine.expect(&slice, action, decl, effect, context),
        None => Verdict::unjudgeable(),
    }
}

/// Completing the arguments of what is hidden would tell that it exists.
fn completes(engine: &Engine, principal: &Principal, action: Action, decl: &Decl, context: &Context) -> bool {
    action != Action::Complete || shows(engine, principal, decl, context).0
}

/// Is it listed, and will it be for this authority and mode whatever the rest of the context?
pub(super) fn shows(engine: &Engine, principal: &Principal, decl: &Decl, context: &Context) -> (bool, bool) {
    let action = natural(decl.kind);
    let slice = || engine.slice(principal, action, decl.kind);
    shown(engine, decl, context, &slice, &|effect| engine.decide(principal, action, decl, effect))
}

/// The questions of one list, all about one principal.
pub(super) struct Lister<'a> {
    engine: &'a Engine,
    principal: &'a Principal,
    slices: Vec<(Kind, Option<Arc<Slice>>)>,
}

impl<'a> Lister<'a> {
    pub(super) fn new(engine: &'a Engine, principal: &'a Principal) -> Lister<'a> {
        Lister { engine, principal, slices: Vec::new() }
    }

    /// As [`shows`].
    pub(super) fn shows(&mut self, decl: &Decl, context: &Context) -> (bool, bool) {
        let action = natural(decl.kind);
        let slice = match self.slices.iter().find(|(kind, _)| *kind == decl.kind) {
            Some((_, slice)) => slice.clone(),
            None => {
                let slice = self.engine.slice(self.principal, action, decl.kind);
                self.slices.push((decl.kind, slice.clone()));
                slice
            }
        };
        let decide = |effect| match &slice {
            Some(slice) => self.engine.decide_in(slice, action, decl, effect),
            None => Verdict::unjudgeable(),
        };
        shown(self.engine, decl, context, &|| slice.clone(), &decide)
    }
}

fn shown(
    engine: &Engine,
    decl: &Decl,
    context: &Context,
    slice: &dyn Fn() -> Option<Arc<Slice>>,
    decide: &dyn Fn(Effect) -> Verdict,
) -> (bool, bool) {
    let reads = engine.reads();
    let mut lasting = true;
    for effect in decl.effects().iter().filter(|effect| context.mode.admits(**effect)) {
        match decide(*effect) {
            Verdict::Allow(_) => return (true, true),
            Verdict::Deny(..) => {}
            Verdict::Depends => {
                lasting &= !reads.connection && !reads.now;
                let verdict = slice().map(|slice| engine.expect(&slice, natural(decl.kind), decl, *effect, context));
                if verdict.is_some_and(|verdict| !matches!(verdict, Verdict::Deny(..))) {
                    return (true, lasting);
                }
            }
        }
    }
    (false, lasting)
}

pub(super) fn prospect(
    engine: &Engine,
    principal: &Principal,
    action: Action,
    decl: &Decl,
    context: &Context,
) -> (Prospect, Arc<[String]>) {
    if !context.mode.admits(decl.lowest_effect()) {
        return (Prospect::Deny(Reason::Ceiling), Arc::default());
    }
    if !fits(action, decl.kind) || !completes(engine, principal, action, decl, context) {
        return (Prospect::Deny(Reason::NotGranted), Arc::default());
    }
    let mut all: Vec<(Prospect, Arc<[String]>)> = Vec::new();
    for effect in decl.effects() {
        all.push(prospect_of(engine, principal, action, decl, *effect, context));
    }
    // INVARIANT: every declaration has an effect.
    let Some((first, _)) = all.first() else {
        return (Prospect::Deny(Reason::Error), Arc::default());
    };
    let hopeful = |(prospect, _): &(Prospect, Arc<[String]>)| {
        matches!(prospect, Prospect::Allow | Prospect::Listed | Prospect::Depends { allowed: true })
    };
    let together = if all.iter().all(|(prospect, _)| prospect == first) {
        *first
    } else if all.iter().any(hopeful) {
        Prospect::Listed
    } else {
        let later = all.iter().find(|(prospect, _)| matches!(prospect, Prospect::Depends { .. }));
        later.map_or(*first, |(prospect, _)| *prospect)
    };
    let policies: BTreeSet<String> = all.iter().flat_map(|(_, policies)| policies.iter().cloned()).collect();
    (together, policies.into_iter().collect())
}

/// What comes of a call that has this effect.
fn prospect_of(
    engine: &Engine,
    principal: &Principal,
    action: Action,
    decl: &Decl,
    effect: Effect,
    context: &Context,
) -> (Prospect, Arc<[String]>) {
    if !context.mode.admits(effect) {
        return (Prospect::Deny(Reason::Ceiling), Arc::default());
    }
    match engine.decide(principal, action, decl, effect) {
        Verdict::Allow(policies) => (Prospect::Allow, policies),
        Verdict::Deny(reason, policies) => (Prospect::Deny(reason), policies),
        Verdict::Depends => match expect(engine, principal, action, decl, effect, context) {
            Verdict::Allow(policies) => (Prospect::Depends { allowed: true }, policies),
            Verdict::Deny(_, policies) => (Prospect::Depends { allowed: false }, policies),
            Verdict::Depends => (Prospect::Listed, engine.grounds(principal, action, decl, effect, context)),
        },
    }
}

/// What listing a declaration promises.
pub(super) fn natural(kind: Kind) -> Action {
    match kind {
        Kind::Backend => Action::Connect,
        Kind::Prompt => Action::Get,
        Kind::Resource => Action::Read,
        Kind::Tool => Action::Call,
    }
}

/// Everything else is a mistake of ours, which no policy was written for.
pub(super) fn fits(action: Action, kind: Kind) -> bool {
    action == natural(kind) || (action == Action::Complete && matches!(kind, Kind::Prompt | Kind::Resource))
}
