//! May they? Cedar is the one engine; grants are lowered to it; the mode is a ceiling over it. Pure: no clock, no I/O.
//!
//! Lists and calls ask the same question: [`Policy::lists`] with the arguments unknown, [`Policy::authorize`] with
//! everything known. So what may be called is listed, and what is not listed may not be called. A tool that is listed
//! may still be denied for its arguments, or where policies contradict each other in ways that only a solver could see.
//!
//! # How an answer comes about
//! 1. The mode: an effect above the ceiling is denied, whatever the policies say.
//! 2. Cedar with the whole context unknown. This answer is remembered per (authority of the principal, action, tool,
//!    effect), and for most policies it is final.
//! 3. Only if it depends on the context: Cedar once more, with everything known.
//!
//! Default deny; `forbid` overrides `permit`; a policy that fails denies, whatever the others say.
//!
//! # Arguments
//! Policies may read `context.args.<name>`, whose shape no schema knows: Cedar's records are closed, and its validator
//! has no type for "anything". So a policy that reads arguments is validated with each comparison (`==`, `like`,
//! `has`, `contains`, …) that touches `context.args` taken for a Boolean of unknown value; the scope and all other
//! conditions are held to the schema as strictly as anywhere. Objects are records, arrays are sets, integers are
//! `Long`. Null, fractions and integers beyond 64 bits have no Cedar value: `has` sees them, reading them fails. As a
//! member that was not sent fails too, write `context.args has name && …`, and test the tool before its arguments.
//!
//! # A person's yes
//! A call that is allowed by nothing but policies with `@confirm("…")` needs a person's yes; the permit says so, and the
//! spine asks. One permit without it is enough to do without. For lists it makes no difference.
//!
//! # Groups that are not known
//! A token may say that it leaves groups out. Whatever a policy says about the groups of such a caller is then taken
//! against the caller: a `permit` that asks for a group does not hold, a `forbid` that asks for one does (`groupless`).

mod engine;
mod facts;
mod grants;
mod groupless;
mod load;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use self::engine::Engine;
use self::engine::Verdict;
use self::grants::Lowered;
use self::load::Loaded;
use crate::catalog::Action;
use crate::catalog::Call;
use crate::catalog::Decl;
use crate::catalog::Effect;
use crate::catalog::Kind;
use crate::catalog::Mode;
use crate::principal::Principal;

/// The annotation of a `permit` that wants a person's yes: `@confirm("Restart production?")`.
const CONFIRM: &str = "confirm";

/// What the room is configured with: everything decided, nothing to look up.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The gateway-wide ceiling.
    pub mode: Mode,
    pub grants: Vec<Grant>,
    /// Cedar sources: (file name for messages, text).
    pub sources: Vec<(String, String)>,
}

/// The simple case without Cedar: who may do what, lowered to Cedar policies named `grant-N`.
#[derive(Clone, Debug, Default)]
pub struct Grant {
    /// Exactly one of these names whom the grant is for; all empty means every verified principal.
    pub scope: Option<String>,
    pub role: Option<String>,
    pub group: Option<String>,
    pub subject: Option<String>,
    /// Effects it allows. `connect` is implied for the backends it reaches.
    pub allow: Vec<Effect>,
    /// `backend/tool` globs; empty means all.
    pub tools: Vec<String>,
    /// What it allows needs a person's yes, each time.
    pub confirm: bool,
}

impl Grant {
    /// Is it for this caller? What the policies that it becomes ask first.
    pub fn is_for(&self, principal: &Principal) -> bool {
        match (&self.scope, &self.role, &self.group, &self.subject) {
            (Some(scope), ..) => principal.scopes.contains(scope),
            (_, Some(role), ..) => principal.roles.contains(role),
            (_, _, Some(group), _) => principal.groups.contains(group),
            (.., Some(subject)) => principal.subject == *subject,
            (None, None, None, None) => true,
        }
    }
}

/// Facts about the exchange that policy conditions may use as `context`.
#[derive(Clone, Debug)]
pub struct Context {
    /// Lowest of the global, route, backend (and tenant) ceilings.
    pub mode: Mode,
    pub ip: Option<IpAddr>,
    pub mtls: bool,
    pub now: SystemTime,
}

/// Why the policies cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("grants[{index}]: {what}")]
    Grant { index: usize, what: String },
    #[error("the policies do not fit together: {what}")]
    Set { what: String },
    #[error("{file}:{line}:{column}: {what}")]
    Source { file: String, line: usize, column: usize, what: String },
}

/// Proof that a call was judged and allowed. It owns the call: what was judged is what runs.
///
/// Nothing but [`Policy::authorize`] makes one. Reading it is for everybody:
/// ```
/// fn runs(permit: &wardgate::policy::Permit) -> &wardgate::catalog::Call {
///     permit.call()
/// }
/// ```
/// Making it is not:
/// ```compile_fail,E0451
/// fn forge(call: wardgate::catalog::Call) -> wardgate::policy::Permit {
///     wardgate::policy::Permit { call, caller: None, owner: "".into(), policies: std::sync::Arc::new([]), confirm: None }
/// }
/// ```
#[derive(Debug)]
pub struct Permit {
    call: Call,
    /// Whom it was given to; tests have permits of nobody.
    caller: Option<Principal>,
    owner: Arc<str>,
    policies: Arc<[String]>,
    confirm: Option<Arc<str>>,
}

impl Permit {
    /// It was allowed by nothing but policies that want a person's yes first: what that person is told (perhaps nothing).
    pub fn confirm(&self) -> Option<&Arc<str>> {
        self.confirm.as_ref()
    }

    pub fn call(&self) -> &Call {
        &self.call
    }

    /// [`Principal::key`] of whom it was given to: what is kept upstream for one principal serves no other.
    pub fn owner(&self) -> &Arc<str> {
        &self.owner
    }

    /// Whom it was given to, for what is done on their behalf.
    pub fn caller(&self) -> Option<&Principal> {
        self.caller.as_ref()
    }

    /// Ids of the policies that allowed it.
    pub fn policies(&self) -> &Arc<[String]> {
        &self.policies
    }
}

#[cfg(test)]
impl Permit {
    /// A permit that no policy gave: for tests of the rooms behind policy.
    pub fn for_tests(call: Call) -> Permit {
        Permit::for_tests_of(call, "test||test")
    }

    pub fn for_tests_of(call: Call, owner: &str) -> Permit {
        Permit { call, caller: None, owner: owner.into(), policies: Arc::new([]), confirm: None }
    }

    pub fn for_tests_by(call: Call, caller: &Principal) -> Permit {
        Permit {
            call,
            owner: caller.key().clone(),
            caller: Some(caller.clone()),
            policies: Arc::new([]),
            confirm: None,
        }
    }
}

/// A reasoned no.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Denial {
    pub reason: Reason,
    /// Ids of the `forbid` policies that decided, or of those that failed; for the record only, never for the client.
    pub policies: Arc<[String]>,
    /// The call is denied for these arguments only: the tool itself is listed for this principal.
    pub listed: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// The effect is above the mode's ceiling.
    Ceiling,
    /// A policy failed to evaluate.
    Error,
    /// A `forbid` policy matched.
    Forbidden,
    /// No policy permits it.
    NotGranted,
}

impl Reason {
    /// The audit field.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Ceiling => "ceiling",
            Reason::Error => "error",
            Reason::Forbidden => "forbidden",
            Reason::NotGranted => "not_granted",
        }
    }
}

/// Which declarations of a list a principal may see.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listed {
    /// One answer for each declaration, in order.
    pub listed: Vec<bool>,
    /// No answer depends on the context (the mode aside): they hold for this authority and mode as long as the policies.
    pub cacheable: bool,
}

/// The judgement as configured. Immutable: a reload makes a new one, with nothing remembered.
pub struct Policy {
    engine: Engine,
    lowered: Lowered,
    notes: Vec<String>,
    /// The `permit` policies that want a person's yes, and what each says to that person.
    confirms: HashMap<String, Arc<str>>,
}

impl Policy {
    /// Lowers the grants, parses and validates everything.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn new(config: &Config) -> Result<Policy, Vec<Error>> {
        let mut errors = Vec::new();
        let lowered = grants::lower(&config.grants, &mut errors);
        let mut loaded = Loaded::default();
        loaded.grants(&lowered, &mut errors);
        for (file, text) in &config.sources {
            loaded.source(file, text, &mut errors);
        }
        let Loaded { policies, reads_args, notes, .. } = loaded;
        let asks = |policy: &cedar_policy::Policy| Some((policy.id().to_string(), policy.annotation(CONFIRM)?.into()));
        let confirms: HashMap<String, Arc<str>> = policies.iter().filter_map(asks).collect();
        let wrong = |what: String| Error::Set { what };
        let groupless = groupless::taken_against(&policies).and_then(|policies| policies.map(set_of).transpose());
        match (set_of(policies), groupless) {
            (Ok(policies), Ok(groupless)) if errors.is_empty() => {
                Ok(Policy { engine: Engine::new(policies, groupless, reads_args), lowered, notes, confirms })
            }
            (policies, groupless) => {
                errors.extend(policies.err().into_iter().chain(groupless.err()).map(wrong));
                Err(errors)
            }
        }
    }

    /// Judges a call with everything known. The permit owns it.
    ///
    /// # Errors
    /// The denial, with its reason.
    pub fn authorize(&self, principal: &Principal, call: Call, context: &Context) -> Result<Permit, Denial> {
        let deny = |reason, policies, listed| Err(Denial { reason, policies, listed });
        // Until a declaration states the lowest effect it can have, lists judge the highest; so must calls.
        let effect = call.effect.max(call.decl.effect);
        if !context.mode.admits(effect) {
            return deny(Reason::Ceiling, Arc::default(), false);
        }
        if !fits(call.action, call.decl.kind) {
            return deny(Reason::NotGranted, Arc::default(), false);
        }
        let verdict = match self.engine.decide(principal, call.action, &call.decl, effect) {
            // Arguments that could be allowed were; which they were, nobody says again.
            Verdict::Depends if call.is_follow_up() => {
                match self.engine.expect(principal, call.action, &call.decl, effect, context) {
                    Verdict::Depends => Verdict::Allow(Arc::default()),
                    settled => settled,
                }
            }
            Verdict::Depends => self.engine.settle(principal, &call, effect, context),
            settled => settled,
        };
        match verdict {
            // Completing the arguments of what is hidden would tell that it exists.
            Verdict::Allow(_) if call.action == Action::Complete && !self.lists(principal, &call.decl, context) => {
                deny(Reason::NotGranted, Arc::default(), false)
            }
            Verdict::Allow(policies) => {
                let confirm = self.confirm(&policies);
                Ok(Permit { call, owner: principal.key().clone(), caller: Some(principal.clone()), policies, confirm })
            }
            Verdict::Deny(reason, policies) => deny(reason, policies, self.lists(principal, &call.decl, context)),
            // INVARIANT: `settle` leaves nothing open.
            Verdict::Depends => deny(Reason::Error, Arc::default(), false),
        }
    }

    /// The same judgement with the arguments unknown: could some arguments be allowed?
    pub fn lists(&self, principal: &Principal, decl: &Decl, context: &Context) -> bool {
        self.shows(principal, decl, context).0
    }

    /// [`Policy::lists`] for each declaration.
    pub fn list(&self, principal: &Principal, decls: &[Arc<Decl>], context: &Context) -> Listed {
        let mut cacheable = true;
        let show = |decl: &Arc<Decl>| {
            let (listed, lasting) = self.shows(principal, decl, context);
            cacheable &= lasting;
            listed
        };
        let listed = decls.iter().map(show).collect();
        Listed { listed, cacheable }
    }

    /// Does any policy want a person's yes?
    pub fn confirms(&self) -> bool {
        !self.confirms.is_empty()
    }

    /// One permit that asks nobody is enough.
    fn confirm(&self, permits: &[String]) -> Option<Arc<str>> {
        let asking = permits.iter().map(|id| self.confirms.get(id)).collect::<Option<Vec<_>>>()?;
        asking.iter().find(|words| !words.is_empty()).or(asking.first()).map(|words| Arc::clone(words))
    }

    /// The grants as Cedar policies.
    pub fn sources(&self) -> String {
        self.lowered.text()
    }

    /// What `check` should tell the operator that is no error.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// All scopes that grants name, in the order of the configuration.
    pub fn scopes(&self) -> Vec<String> {
        self.lowered.scopes()
    }

    /// The scopes that open something of this backend.
    pub fn scopes_for(&self, backend: &str) -> Vec<String> {
        self.lowered.scopes_for(backend)
    }

    /// Is it listed, and will it be for this authority and mode whatever the rest of the context?
    fn shows(&self, principal: &Principal, decl: &Decl, context: &Context) -> (bool, bool) {
        if !context.mode.admits(decl.effect) {
            return (false, true);
        }
        let action = natural(decl.kind);
        match self.engine.decide(principal, action, decl, decl.effect) {
            Verdict::Allow(_) => (true, true),
            Verdict::Deny(..) => (false, true),
            Verdict::Depends => {
                let verdict = self.engine.expect(principal, action, decl, decl.effect, context);
                (!matches!(verdict, Verdict::Deny(..)), false)
            }
        }
    }
}

fn set_of(policies: Vec<cedar_policy::Policy>) -> Result<cedar_policy::PolicySet, String> {
    cedar_policy::PolicySet::from_policies(policies).map_err(|error| error.to_string())
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("notes", &self.notes).finish_non_exhaustive()
    }
}

/// What listing a declaration promises.
fn natural(kind: Kind) -> Action {
    match kind {
        Kind::Backend => Action::Connect,
        Kind::Prompt => Action::Get,
        Kind::Resource => Action::Read,
        Kind::Tool => Action::Call,
    }
}

/// Everything else is a mistake of ours, which no policy was written for.
fn fits(action: Action, kind: Kind) -> bool {
    action == natural(kind) || (action == Action::Complete && matches!(kind, Kind::Prompt | Kind::Resource))
}
