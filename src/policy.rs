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
//! Policies may read `context.args.<name>`. Every JSON value has a Cedar value (`args`); where the tool's input schema gives
//! an argument a type (`shape`), it has a value of that type or cannot be read. Reading an argument that was not sent,
//! cannot be read, or is compared with something of another type fails (`guard`), and a policy that fails denies. So write
//! `context.args has name && …`, and test the tool before its arguments.
//!
//! A policy is validated in everything else as strictly as Cedar does. What it says of arguments is validated for each tool
//! that is known when the policy is loaded and that it can be about (`known`).
//!
//! # Effects that depend on arguments
//! A call is judged by the effect that its arguments give it; a list by every effect that some arguments could give.
//!
//! # A person's yes
//! A call that is allowed by nothing but policies with `@confirm("…")` needs a person's yes; the permit says so, and the
//! spine asks. One permit without it is enough to do without. For lists it makes no difference.
//!
//! # Groups that are not known
//! A token may say that it leaves groups out. Whatever a policy says about the groups of such a caller is then taken
//! against the caller: a `permit` that asks for a group does not hold, a `forbid` that asks for one does (`groupless`).

mod about;
mod args;
mod engine;
mod facts;
mod grants;
mod grounds;
mod groupless;
mod guard;
mod judge;
mod known;
mod load;
mod question;
mod shape;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use self::engine::Engine;
use self::engine::Memory;
use self::grants::Lowered;
pub use self::grounds::Origin;
pub use self::grounds::Place;
pub use self::grounds::Whom;
use self::judge::Lister;
pub use self::known::Known;
use self::load::Inherited;
use self::load::Loaded;
use self::load::Reads;
pub use self::question::About;
pub use self::question::Question;
pub use self::question::Questions;
use crate::catalog::Action;
use crate::catalog::Call;
use crate::catalog::Decl;
use crate::catalog::Effect;
#[cfg(test)]
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
    /// Not in force: noted where it would have changed the answer.
    pub shadow: bool,
    /// What it allows needs a person's yes, each time.
    pub confirm: bool,
}

/// The annotation of a policy that is only noted.
const SHADOW: &str = "shadow";

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
///     wardgate::policy::Permit { call, caller: None, owner: "".into(), policies: std::sync::Arc::new([]), confirm: None, shadows: std::sync::Arc::new([]) }
/// }
/// ```
#[derive(Debug)]
pub struct Permit {
    call: Call,
    /// Whom it was given to; tests have permits of nobody.
    caller: Option<Principal>,
    owner: Arc<str>,
    policies: Arc<[String]>,
    shadows: Arc<[String]>,
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

    /// In whose line it waits where lines are fair: the tenant's, or without one the principal's own.
    pub fn share(&self) -> &str {
        self.caller.as_ref().map_or(&*self.owner, |caller| caller.share())
    }

    /// Whom it was given to, for what is done on their behalf.
    pub fn caller(&self) -> Option<&Principal> {
        self.caller.as_ref()
    }

    /// Ids of the policies that allowed it.
    pub fn policies(&self) -> &Arc<[String]> {
        &self.policies
    }

    /// Ids of the policies in shadow mode that would have made it a no.
    pub fn shadows(&self) -> &Arc<[String]> {
        &self.shadows
    }
}

#[cfg(test)]
impl Permit {
    /// A permit that no policy gave: for tests of the rooms behind policy.
    pub fn for_tests(call: Call) -> Permit {
        Permit::for_tests_of(call, "test||test")
    }

    pub fn for_tests_of(call: Call, owner: &str) -> Permit {
        let (policies, shadows) = (Arc::new([]), Arc::new([]));
        Permit { call, caller: None, owner: owner.into(), policies, shadows, confirm: None }
    }

    pub fn for_tests_by(call: Call, caller: &Principal) -> Permit {
        let (owner, caller) = (caller.key().clone(), Some(caller.clone()));
        Permit { call, owner, caller, policies: Arc::new([]), shadows: Arc::new([]), confirm: None }
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
    /// Ids of the policies in shadow mode that would have made it a yes.
    pub shadows: Arc<[String]>,
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
    /// And no policy in shadow mode has anything to say, which is to be noted each time.
    pub cacheable: bool,
    /// Ids of the policies in shadow mode that would have shown or hidden some.
    pub shadows: Arc<[String]>,
}

/// What comes of a question before its arguments are known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outlook {
    pub prospect: Prospect,
    /// Ids of the policies that decide it, now or once the arguments are known.
    pub policies: Arc<[String]>,
    /// Ids of the policies in shadow mode that would change the prospect.
    pub shadows: Arc<[String]>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Prospect {
    /// Allowed, whatever the arguments and the circumstances (certificate, address, time).
    Allow,
    /// The circumstances decide; whether these are such that it is allowed.
    Depends { allowed: bool },
    /// In these circumstances the arguments decide.
    Listed,
    /// Denied, whatever the arguments and the circumstances.
    Deny(Reason),
}

/// A policy in shadow mode: judged as if it were in force beside those that are, and only noted.
struct Trial {
    id: String,
    engine: Engine,
}

/// Each costs every judgement one more.
const SHADOWS_MAX: usize = 16;

/// The judgement as configured. Immutable: a reload makes a new one, with nothing remembered.
pub struct Policy {
    engine: Engine,
    trials: Vec<Trial>,
    /// The `forbid` policies among the sources: they hold for tenants, too.
    forbids: Inherited,
    lowered: Lowered,
    /// As they were written, for those who want to know more than a judgement.
    written: Vec<cedar_policy::Policy>,
    origins: Vec<Origin>,
    whom: BTreeSet<Whom>,
    notes: Vec<String>,
    /// The `permit` policies that want a person's yes, and what each says to that person.
    confirms: HashMap<String, Arc<str>>,
}

impl Policy {
    /// Lowers the grants, parses and validates everything; names and arguments are taken on trust.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn new(config: &Config) -> Result<Policy, Vec<Error>> {
        Policy::over(config, &Known::default())
    }

    /// The same, held to the backends and tools that there are.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn over(config: &Config, known: &Known) -> Result<Policy, Vec<Error>> {
        Policy::build(config, Loaded::new(known), Arc::new(Memory::of(engine::DECISIONS_MAX)))
    }

    /// The judgement of a tenant with grants or policies of its own: those, and what the gateway's `forbid`. What was
    /// answered before is remembered within the same bounds, and never for each other.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn within(&self, config: &Config, known: &Known) -> Result<Policy, Vec<Error>> {
        Policy::build(config, Loaded::with(known, &self.forbids), self.engine.memory())
    }

    fn build(config: &Config, mut loaded: Loaded<'_>, memory: Arc<Memory>) -> Result<Policy, Vec<Error>> {
        let mut errors = Vec::new();
        let lowered = grants::lower(&config.grants, &mut errors);
        loaded.grants(&lowered, &mut errors);
        for (file, text) in &config.sources {
            loaded.source(file, text, &mut errors);
        }
        let forbids = loaded.forbids();
        let Loaded { written, policies, reads, notes, origins, .. } = loaded;
        let wrong = |what: String| Error::Set { what };
        let whom = grounds::whom(&written, &config.grants);
        let (shadows, enforced): (Vec<_>, Vec<_>) =
            policies.into_iter().partition(|policy| policy.annotation(SHADOW).is_some());
        let asks = |policy: &cedar_policy::Policy| Some((policy.id().to_string(), policy.annotation(CONFIRM)?.into()));
        let confirms: HashMap<String, Arc<str>> = enforced.iter().filter_map(asks).collect();
        let engine = engine_of(enforced.clone(), reads, memory);
        let mut trials = Vec::new();
        for (id, policies) in grounds::trials(shadows) {
            let together = enforced.iter().cloned().chain(policies).collect();
            let memory = Memory::of(engine::DECISIONS_MAX / SHADOWS_MAX as u64);
            match engine_of(together, reads, Arc::new(memory)) {
                Ok(engine) => trials.push(Trial { id, engine }),
                Err(what) => errors.push(wrong(what)),
            }
        }
        if trials.len() > SHADOWS_MAX {
            errors.push(wrong(format!("more than {SHADOWS_MAX} policies are in shadow mode")));
        }
        match engine {
            Ok(engine) if errors.is_empty() => {
                Ok(Policy { engine, trials, forbids, lowered, written, origins, whom, notes, confirms })
            }
            engine => {
                errors.extend(engine.err().map(wrong));
                Err(errors)
            }
        }
    }

    /// Judges a call with everything known. The permit owns it.
    ///
    /// # Errors
    /// The denial, with its reason.
    pub fn authorize(&self, principal: &Principal, call: Call, context: &Context) -> Result<Permit, Denial> {
        let judged = judge::judge(&self.engine, principal, &call, context);
        let shadows = self.trying(|engine| judge::judge(engine, principal, &call, context).is_ok() != judged.is_ok());
        match judged {
            Ok(policies) => {
                let (owner, caller) = (principal.key().clone(), Some(principal.clone()));
                let confirm = self.confirm(&policies);
                Ok(Permit { call, owner, caller, policies, shadows, confirm })
            }
            Err((reason, policies)) => {
                // Above the ceiling, and for what nobody asks, there is no list to look at.
                let listed = judge::fits(call.action, call.decl.kind) && self.lists(principal, &call.decl, context);
                Err(Denial { reason, policies, listed, shadows })
            }
        }
    }

    /// The same judgement with the arguments unknown: could some arguments be allowed?
    pub fn lists(&self, principal: &Principal, decl: &Decl, context: &Context) -> bool {
        judge::shows(&self.engine, principal, decl, context).0
    }

    /// [`Policy::lists`] for each declaration.
    pub fn list(&self, principal: &Principal, decls: &[Arc<Decl>], context: &Context) -> Listed {
        let mut cacheable = true;
        let mut lister = Lister::new(&self.engine, principal);
        let show = |decl: &Arc<Decl>| {
            let (listed, lasting) = lister.shows(decl, context);
            cacheable &= lasting;
            listed
        };
        let listed: Vec<bool> = decls.iter().map(show).collect();
        let shadows = self.trying(|engine| {
            let mut lister = Lister::new(engine, principal);
            let mut differs = |(decl, listed): (&Arc<Decl>, &bool)| {
                let (shown, lasting) = lister.shows(decl, context);
                cacheable &= lasting;
                shown != *listed
            };
            // All of them are asked: each may depend on the context.
            decls.iter().zip(&listed).filter(|pair| differs(*pair)).count() > 0
        });
        Listed { listed, cacheable: cacheable && shadows.is_empty(), shadows }
    }

    /// The same judgement before anything is called, for those who want to know what would come of it: first whatever
    /// the context, then in this context with the arguments unknown.
    pub fn outlook(&self, principal: &Principal, action: Action, decl: &Decl, context: &Context) -> Outlook {
        let ask = |engine: &Engine| judge::prospect(engine, principal, action, decl, context);
        let (prospect, policies) = ask(&self.engine);
        let shadows = self.trying(|engine| ask(engine).0 != prospect);
        Outlook { prospect, policies, shadows }
    }

    /// Where a policy stands, by its id.
    pub fn origin(&self, id: &str) -> Option<&Origin> {
        self.origins.iter().find(|origin| origin.id == id)
    }

    /// Where all policies stand, those of the grants first.
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// Whom the policies and grants speak of.
    pub fn whom(&self) -> &BTreeSet<Whom> {
        &self.whom
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

    /// The policies in shadow mode of which something is true.
    fn trying(&self, mut changes: impl FnMut(&Engine) -> bool) -> Arc<[String]> {
        if self.trials.is_empty() {
            return Arc::default();
        }
        self.trials.iter().filter(|trial| changes(&trial.engine)).map(|trial| trial.id.clone()).collect()
    }
}

fn engine_of(policies: Vec<cedar_policy::Policy>, reads: Reads, memory: Arc<Memory>) -> Result<Engine, String> {
    let groupless = groupless::taken_against(&policies)?.map(set_of).transpose()?;
    Ok(Engine::new(&set_of(policies)?, groupless.as_ref(), reads, memory))
}

fn set_of(policies: Vec<cedar_policy::Policy>) -> Result<cedar_policy::PolicySet, String> {
    cedar_policy::PolicySet::from_policies(policies).map_err(|error| error.to_string())
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("notes", &self.notes).finish_non_exhaustive()
    }
}
