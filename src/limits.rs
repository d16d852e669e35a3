//! How much may they? Rates per address, principal, tenant and tool; quotas per day and month; concurrency; turns.
//!
//! Everything is keyed by who somebody is (issuer, tenant, subject), never by a session or a connection, which a caller
//! can have many of. What is held at once is counted here, by each replica for itself, and so are addresses, before anything
//! is read. Rates and quotas are judged together, in the shared store if there is one, in memory if not, from the cheapest
//! key to the most special: principal, tenant, tool. What an earlier rate counted stays counted when a later one refuses, so
//! that a caller who hammers against one limit runs out of the others too. A quota counts only what no limit refuses.

mod calendar;
mod gate;
mod queue;
mod quotas;
mod rates;
pub mod shared;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use globset::GlobMatcher;
use governor::clock::Clock;
use governor::clock::DefaultClock;

pub use calendar::Quota;
pub use calendar::Window;
pub use gate::Full;
pub use gate::Gate;
pub use gate::Lines;
pub use gate::Pass;
pub use slots::Slot;

use crate::catalog::Kind;
use crate::catalog::Operation;
use crate::mcp::Method;
use crate::policy::Permit;
use crate::principal::Principal;
use quotas::Quotas;
use rates::Keys;
use rates::Rates;
use shared::Shared;
use shared::Unreachable;
use slots::Slots;

/// Nobody knows when a slot becomes free; clients that ask sooner only hammer.
const SLOT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// A store that is away may be back then.
const SHARED_RETRY_AFTER: Duration = Duration::from_secs(2);

/// Clients registered from one address: a person has a handful, a NAT a few at once, a flood thousands.
const REGISTRATIONS: Rate = Rate { calls: NonZeroU32::MIN.saturating_add(59), period: Duration::from_secs(60) };

/// All limits; `None` and empty mean unlimited.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Per client address, before anything is parsed or verified: refused requests count too.
    pub address: Option<Rate>,
    pub principal: Bound,
    pub tenant: Bound,
    /// Per (principal, tool), first matching `backend/tool` glob.
    pub tools: Vec<(GlobMatcher, Bound)>,
    /// Calls and streams of everybody that one backend has at once.
    pub backends: BTreeMap<String, NonZeroU32>,
    /// Of the time zone that days and months are of.
    pub offset_s: i32,
    /// Where rates and quotas of all replicas are counted together; `None`: each counts for itself.
    pub shared: Option<shared::Config>,
    pub turns: TurnsConfig,
}

/// Requests in progress before the first thing that they wait for, and those in line behind them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TurnsConfig {
    pub in_progress: NonZeroU32,
    pub waiting_max: NonZeroU32,
    pub waiting_per_tenant_max: NonZeroU32,
    pub wait_max: Duration,
}

impl Default for TurnsConfig {
    /// A few for each core: more at once would not be faster, and no fairer.
    fn default() -> Self {
        const PER_CORE: u32 = 4;
        let cores = std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
        let some = |count: u32| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
        TurnsConfig {
            in_progress: some(cores.saturating_mul(PER_CORE)),
            waiting_max: some(10_000),
            waiting_per_tenant_max: some(1000),
            wait_max: Duration::from_secs(5),
        }
    }
}

/// `calls: N per PERIOD`, as a token bucket of size N that refills evenly over PERIOD.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    pub calls: NonZeroU32,
    pub period: Duration,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Bound {
    pub calls: Option<Rate>,
    /// Of the day and of the month.
    pub quotas: [Option<Quota>; 2],
    /// Calls and streams held at once.
    pub concurrent: Option<NonZeroU32>,
    /// Open-ended event streams held at once; of callers and tenants, never of a tool.
    pub streams: Option<NonZeroU32>,
}

/// Which limit said no, and when to ask again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limited {
    /// Whose it is (`address`, `registration`, `principal`, `tenant`, `tool`, `backend`), and if it is no rate what it is of:
    /// `-day`, `-month`, `-concurrent`, `-streams`. Also `tenant-waiting`, `waiting` and `shared`.
    pub limit: &'static str,
    /// Asking sooner is refused again.
    pub retry_after: Duration,
    pub of: Of,
}

/// What there is too much of, and how much there may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Of {
    /// Calls in a time.
    Calls(Rate),
    /// Calls in a day or month, which ends then (seconds since the epoch).
    Quota { quota: Quota, ends_s: u64 },
    /// Calls and streams at once.
    Concurrent(NonZeroU32),
    /// Open-ended event streams at once.
    Streams(NonZeroU32),
    /// Nothing: nobody can tell, because the shared store is away.
    Unavailable,
    /// Requests in line.
    Waiting,
}

impl Limited {
    fn slot(limit: &'static str, max: NonZeroU32) -> Limited {
        Limited { limit, retry_after: SLOT_RETRY_AFTER, of: Of::Concurrent(max) }
    }

    fn stream(limit: &'static str, max: NonZeroU32) -> Limited {
        Limited { limit, retry_after: SLOT_RETRY_AFTER, of: Of::Streams(max) }
    }

    fn waiting(limit: &'static str) -> Limited {
        Limited { limit, retry_after: SLOT_RETRY_AFTER, of: Of::Waiting }
    }
}

/// One rate or quota that a call has to pass.
struct Claim<'a> {
    limit: &'static str,
    counter: Counter,
    /// A principal, a tenant, or a principal, a backend and its tool.
    name: [&'a str; 3],
    of: Of,
}

#[derive(Clone, Copy)]
enum Counter {
    Principal,
    Tenant,
    /// The rule.
    Tool(usize),
}

impl Claim<'_> {
    fn whose(&self) -> &'static str {
        match self.counter {
            Counter::Principal => "principal",
            Counter::Tenant => "tenant",
            Counter::Tool(_) => "tool",
        }
    }

    fn refused(&self, retry_after: Duration, ends_s: u64) -> Limited {
        let of = match self.of {
            Of::Quota { quota, .. } => Of::Quota { quota, ends_s },
            of => of,
        };
        Limited { limit: self.limit, retry_after, of }
    }
}

/// The right to be in progress, until the request waits for something or is done. Given back once.
#[must_use = "a turn that is not held lets everybody in"]
pub struct Turn(Mutex<Option<Pass>>);

impl Turn {
    /// From here on it waits for others: the next one's turn.
    pub fn end(&self) {
        let pass = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(pass);
    }
}

/// All counters. Clocks are an argument for tests alone.
pub struct Limits<C: Clock + Clone = DefaultClock> {
    config: Config,
    keys: Arc<Keys>,
    address: Option<Arc<Rates<C>>>,
    registrations: Arc<Rates<C>>,
    principal: Option<Arc<Rates<C>>>,
    tenant: Option<Arc<Rates<C>>>,
    tools: Vec<Option<Arc<Rates<C>>>>,
    quotas: Arc<Quotas>,
    slots: Arc<Slots>,
    shared: Option<Arc<Shared>>,
    turns: Arc<Gate>,
    /// Of the gateway that these are inside of.
    above: Option<Above>,
    clock: C,
    /// Seconds since the epoch.
    wall: fn() -> u64,
}

/// What a tenant's limits have of the gateway's.
struct Above {
    /// The tenant's name.
    house: Arc<str>,
    /// Bounds for everybody at backends that are the gateway's.
    backends: BTreeMap<String, NonZeroU32>,
}

impl Limits {
    /// # Errors
    /// [`shared::Invalid`]: the store cannot be used as configured. It is not asked yet.
    pub fn new(config: Config) -> Result<Limits, shared::Invalid> {
        Limits::with_clock(config, DefaultClock::default(), wall)
    }
}

fn wall() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl<C: Clock + Clone> Limits<C> {
    pub(crate) fn with_clock(config: Config, clock: C, wall: fn() -> u64) -> Result<Limits<C>, shared::Invalid> {
        let shared = config.shared.as_ref().map(Shared::new).transpose()?.map(Arc::new);
        Ok(Limits::of(config, shared, clock, wall))
    }

    fn of(config: Config, shared: Option<Arc<Shared>>, clock: C, wall: fn() -> u64) -> Limits<C> {
        let rates = |rate: Option<Rate>| rate.map(|rate| Arc::new(Rates::new(rate, clock.clone())));
        Limits {
            address: rates(config.address),
            registrations: Arc::new(Rates::new(REGISTRATIONS, clock.clone())),
            principal: rates(config.principal.calls),
            tenant: rates(config.tenant.calls),
            tools: config.tools.iter().map(|(_, bound)| rates(bound.calls)).collect(),
            turns: gate(config.turns),
            config,
            keys: Arc::default(),
            quotas: Arc::default(),
            slots: Arc::default(),
            shared,
            above: None,
            clock,
            wall,
        }
    }

    /// The limits of a reloaded configuration: slots that are held stay held, quotas stay used, and a rate that did not
    /// change keeps its counts, so that a reload gives nobody a fresh budget.
    ///
    /// # Errors
    /// [`shared::Invalid`], as at the start.
    pub fn reloaded(&self, config: Config) -> Result<Limits<C>, shared::Invalid> {
        let shared = match (&config.shared, &self.shared) {
            (Some(config), Some(old)) if old.is_of(config) => Some(old.clone()),
            (Some(config), old) => {
                let new = Shared::new(config)?;
                old.iter().for_each(|old| new.count_on(old));
                Some(Arc::new(new))
            }
            (None, _) => None,
        };
        let mut new = Limits::of(config, shared, self.clock.clone(), self.wall);
        new.keys = self.keys.clone();
        new.slots = self.slots.clone();
        new.quotas = self.quotas.clone();
        new.registrations = self.registrations.clone();
        if new.config.turns == self.config.turns {
            new.turns = self.turns.clone();
        }
        new.keep_rates(self);
        Ok(new)
    }

    /// The limits of a tenant with figures of its own, which come from `before` where it had such. The process has one store,
    /// one order of turns and one count of who is at a backend: these are the gateway's. `own` are the tenant's own backends.
    #[must_use]
    pub fn within(
        &self,
        config: Config,
        (house, own): (&Arc<str>, &BTreeSet<Arc<str>>),
        before: Option<&Limits<C>>,
    ) -> Limits<C> {
        let config = Config { turns: self.config.turns, ..config };
        let mut new = Limits::of(config, self.shared.clone(), self.clock.clone(), self.wall);
        new.keys = self.keys.clone();
        new.slots = self.slots.clone();
        new.quotas = self.quotas.clone();
        new.registrations = self.registrations.clone();
        new.turns = self.turns.clone();
        let theirs = self.config.backends.iter().filter(|(name, _)| !own.contains(name.as_str()));
        let backends = theirs.map(|(name, max)| (name.clone(), *max)).collect();
        new.above = Some(Above { house: house.clone(), backends });
        before.into_iter().for_each(|before| new.keep_rates(before));
        new
    }

    /// Do these, of a tenant from before a reload, count where the gateway's do now?
    pub fn counts_with(&self, gateway: &Limits<C>) -> bool {
        self.shared.as_ref().map(Arc::as_ptr) == gateway.shared.as_ref().map(Arc::as_ptr)
            && Arc::ptr_eq(&self.turns, &gateway.turns)
    }

    fn keep_rates(&mut self, old: &Limits<C>) {
        keep(&mut self.address, old.address.as_ref());
        keep(&mut self.principal, old.principal.as_ref());
        keep(&mut self.tenant, old.tenant.as_ref());
        for ((glob, _), rates) in self.config.tools.iter().zip(&mut self.tools) {
            let index = old.config.tools.iter().position(|(old, _)| old.glob() == glob.glob());
            keep(rates, index.and_then(|index| old.tools.get(index)?.as_ref()));
        }
    }

    /// Connects to the shared store, if there is one, and waits for the first try. Called once, inside the runtime that
    /// keeps the connections; again after a reload.
    pub async fn start(&self) {
        if let Some(shared) = &self.shared {
            shared.start().await;
        }
    }

    pub fn shared(&self) -> Option<&Shared> {
        self.shared.as_deref()
    }

    pub fn turns(&self) -> &Gate {
        &self.turns
    }

    /// Counts one request of an address. `None` (a Unix socket) is not limited: it has no address to key by.
    ///
    /// # Errors
    /// [`Limited`] by `address`.
    pub fn admit(&self, address: Option<IpAddr>) -> Result<(), Limited> {
        let (Some(rates), Some(address)) = (&self.address, address) else { return Ok(()) };
        counted("address", rates, self.keys.address(address))
    }

    /// Counts one registration of a client from an address; all of a Unix socket together.
    ///
    /// # Errors
    /// [`Limited`] by `registration`.
    pub fn register(&self, address: Option<IpAddr>) -> Result<(), Limited> {
        let key = self.keys.address(address.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)));
        counted("registration", &self.registrations, key)
    }

    /// Waits for this caller's turn, fairly by tenant. `bytes`: of the request; a large one is more work.
    ///
    /// # Errors
    /// [`Limited`] by `tenant-waiting` or `waiting`: too many in line, or too long.
    pub async fn turn(&self, principal: &Principal, bytes: usize) -> Result<Turn, Limited> {
        const COST_BYTES: usize = 64 * 1024;
        if let Some(pass) = self.turns.try_enter() {
            return Ok(Turn(Mutex::new(Some(pass))));
        }
        let cost = u32::try_from(1 + bytes / COST_BYTES).unwrap_or(u32::MAX);
        let entering = self.turns.enter(principal.share(), cost);
        match pingora::time::timeout(self.config.turns.wait_max, entering).await {
            Ok(Ok(pass)) => Ok(Turn(Mutex::new(Some(pass)))),
            Ok(Err(Full::Tenant)) => Err(Limited::waiting("tenant-waiting")),
            Ok(Err(Full::All)) | Err(_) => Err(Limited::waiting("waiting")),
        }
    }

    /// Counts one permitted call and takes its slots. `tool` is `None` for what is not a tool call. The slot is to be
    /// held until the last byte of the answer, streams included.
    ///
    /// # Errors
    /// [`Limited`] by the first limit that is reached.
    pub async fn acquire(
        &self,
        principal: &Arc<str>,
        tenant: Option<&str>,
        backend: &str,
        tool: Option<&str>,
    ) -> Result<Slot, Limited> {
        let rule = tool.and_then(|tool| self.rule(backend, tool));
        // Taken first and told last: what is counted here does not count for a quota, but for rates like anything else.
        let slot = self.slot(principal, tenant, backend, (rule.map(|(_, bound)| bound), tool));
        let mut claims = Vec::with_capacity(4);
        let quotas = slot.is_ok();
        let mut claim =
            |bound: &Bound, counter, name, limits| claims_of(&mut claims, bound, quotas, (counter, name, limits));
        claim(
            &self.config.principal,
            Counter::Principal,
            [principal, "", ""],
            ["principal", "principal-day", "principal-month"],
        );
        if let Some(tenant) = tenant {
            claim(&self.config.tenant, Counter::Tenant, [tenant, "", ""], ["tenant", "tenant-day", "tenant-month"]);
        }
        if let (Some((index, bound)), Some(tool)) = (rule, tool) {
            claim(&bound, Counter::Tool(index), [principal, backend, tool], ["tool", "tool-day", "tool-month"]);
        }
        // Quotas after all rates.
        claims.sort_by_key(|claim| matches!(claim.of, Of::Quota { .. }));
        self.judge(tenant.unwrap_or(principal), &claims).await?;
        slot
    }

    /// [`Limits::acquire`] for a permitted call.
    ///
    /// # Errors
    /// [`Limited`] by the first limit that is reached.
    pub async fn acquire_for(&self, principal: &Principal, permit: &Permit) -> Result<Slot, Limited> {
        let decl = &permit.call().decl;
        let tool = (decl.kind == Kind::Tool).then_some(&*decl.name);
        let tenant = principal.tenant_name();
        let slot = self.acquire(principal.key(), tenant, &decl.backend, tool).await?;
        if is_open_ended(&permit.call().operation) { self.hold_stream(slot, principal.key(), tenant) } else { Ok(slot) }
    }

    /// [`Limits::acquire`] for one open-ended stream, whatever it is made of.
    ///
    /// # Errors
    /// The limit that says no.
    pub async fn acquire_stream(&self, principal: &Principal, backend: &str) -> Result<Slot, Limited> {
        let tenant = principal.tenant_name();
        let slot = self.acquire(principal.key(), tenant, backend, None).await?;
        self.hold_stream(slot, principal.key(), tenant)
    }

    /// Lets a slot that was taken for a whole hold its part at this backend too; once, however often it is asked.
    ///
    /// # Errors
    /// [`Limited`] by `backend-concurrent`.
    pub fn hold_backend(&self, slot: &Slot, backend: &str) -> Result<(), Limited> {
        let held = |max: Option<&NonZeroU32>, house| match max {
            Some(max) => slot
                .take(self.keys.of("backend", [backend, house, ""]), Some(*max))
                .map_err(|max| Limited::slot("backend-concurrent", max)),
            None => Ok(()),
        };
        let own = self.config.backends.get(backend);
        let Some(above) = &self.above else { return held(own, "") };
        held(above.backends.get(backend), "")?;
        held(own, &above.house)
    }

    fn slot(
        &self,
        principal: &str,
        tenant: Option<&str>,
        backend: &str,
        (bound, tool): (Option<Bound>, Option<&str>),
    ) -> Result<Slot, Limited> {
        // A refusal drops the slot, and with it what it holds already.
        let slot = Slot::new(&self.slots);
        let held = |limit, key, max| slot.take(key, max).map_err(|max| Limited::slot(limit, max));
        let of = |kind, name| self.keys.of(kind, [name, "", ""]);
        held("principal-concurrent", of("principal", principal), self.config.principal.concurrent)?;
        if let Some(tenant) = tenant {
            held("tenant-concurrent", of("tenant", tenant), self.config.tenant.concurrent)?;
        }
        if let (Some(bound), Some(tool)) = (bound, tool) {
            held("tool-concurrent", self.keys.of("tool", [principal, backend, tool]), bound.concurrent)?;
        }
        self.hold_backend(&slot, backend)?;
        Ok(slot)
    }

    /// Lets a slot hold an open-ended event stream too. An answer that turns out to be a stream needs none: it ends with
    /// its call, and calls have their own bound.
    fn hold_stream(&self, slot: Slot, principal: &Arc<str>, tenant: Option<&str>) -> Result<Slot, Limited> {
        let held = |limit, kind, name, max| {
            slot.take(self.keys.of(kind, [name, "", ""]), max).map_err(|max| Limited::stream(limit, max))
        };
        held("principal-streams", "principal-streams", principal, self.config.principal.streams)?;
        if let Some(tenant) = tenant {
            held("tenant-streams", "tenant-streams", tenant, self.config.tenant.streams)?;
        }
        Ok(slot)
    }

    /// The one place where rates and quotas are judged.
    async fn judge(&self, share: &str, claims: &[Claim<'_>]) -> Result<(), Limited> {
        if claims.is_empty() {
            return Ok(());
        }
        if let Some(shared) = &self.shared {
            match (shared.judge(share, claims, self.config.offset_s).await, shared.unreachable()) {
                (Ok(verdict), _) => return verdict,
                (Err(_), Unreachable::Refuse) => {
                    return Err(Limited { limit: "shared", retry_after: SHARED_RETRY_AFTER, of: Of::Unavailable });
                }
                (Err(_), Unreachable::Local) => {}
            }
        }
        self.judge_here(claims)
    }

    fn judge_here(&self, claims: &[Claim<'_>]) -> Result<(), Limited> {
        let mut taken = Vec::new();
        for claim in claims {
            let Of::Quota { quota, .. } = claim.of else {
                if let Some(rates) = self.rates_of(claim.counter) {
                    counted(claim.limit, rates, self.keys.of(claim.whose(), claim.name))?;
                }
                continue;
            };
            let now_s = (self.wall)();
            let ends_s = quota.window.ends(now_s, self.config.offset_s);
            let key = self.keys.of(claim.limit, claim.name);
            if !self.quotas.take(key, quota.calls.get(), ends_s, now_s) {
                taken.into_iter().for_each(|key| self.quotas.give_back(key));
                return Err(claim.refused(Duration::from_secs(ends_s.saturating_sub(now_s)), ends_s));
            }
            taken.push(key);
        }
        Ok(())
    }

    fn rates_of(&self, counter: Counter) -> Option<&Rates<C>> {
        match counter {
            Counter::Principal => self.principal.as_deref(),
            Counter::Tenant => self.tenant.as_deref(),
            Counter::Tool(index) => self.tools.get(index)?.as_deref(),
        }
    }

    /// Forgets who has used nothing lately; to be called about once a minute.
    pub fn sweep(&self) {
        [&self.address, &self.principal, &self.tenant]
            .into_iter()
            .chain(&self.tools)
            .flatten()
            .chain([&self.registrations])
            .for_each(|rates| rates.sweep());
        if self.above.is_none() {
            self.quotas.sweep((self.wall)());
        }
    }

    fn rule(&self, backend: &str, tool: &str) -> Option<(usize, Bound)> {
        if self.config.tools.is_empty() {
            return None;
        }
        let name = format!("{backend}/{tool}");
        let rule = self.config.tools.iter().position(|(glob, _)| glob.is_match(&name))?;
        self.config.tools.get(rule).map(|(_, bound)| (rule, *bound))
    }
}

fn gate(turns: TurnsConfig) -> Arc<Gate> {
    let size = |count: NonZeroU32| usize::try_from(count.get()).unwrap_or(usize::MAX);
    let lines =
        Lines { waiting_max: size(turns.waiting_max), waiting_per_tenant_max: size(turns.waiting_per_tenant_max) };
    Gate::new(size(turns.in_progress), lines)
}

fn claims_of<'a>(
    claims: &mut Vec<Claim<'a>>,
    bound: &Bound,
    with_quotas: bool,
    (counter, name, [rate, day, month]): (Counter, [&'a str; 3], [&'static str; 3]),
) {
    claims.extend(bound.calls.map(|calls| Claim { limit: rate, counter, name, of: Of::Calls(calls) }));
    let quotas = bound.quotas.into_iter().flatten().filter(|_| with_quotas);
    claims.extend(quotas.map(|quota| {
        let limit = match quota.window {
            Window::Day => day,
            Window::Month => month,
        };
        Claim { limit, counter, name, of: Of::Quota { quota, ends_s: 0 } }
    }));
}

fn counted<C: Clock + Clone>(limit: &'static str, rates: &Rates<C>, key: rates::Key) -> Result<(), Limited> {
    rates.count(key).map_err(|retry_after| Limited { limit, retry_after, of: Of::Calls(rates.rate()) })
}

/// Streams that wait for news and end when somebody has had enough.
fn is_open_ended(operation: &Operation) -> bool {
    match operation {
        Operation::Stream { .. } => true,
        Operation::Post(message) => message.method == Some(Method::SubscriptionsListen),
        Operation::EndSession => false,
    }
}

fn keep<C: Clock + Clone>(new: &mut Option<Arc<Rates<C>>>, old: Option<&Arc<Rates<C>>>) {
    if let (Some(new), Some(old)) = (new, old)
        && new.rate() == old.rate()
    {
        *new = old.clone();
    }
}
