//! How much may they? Rates per address, principal, tenant and tool; concurrency slots; both bounded in memory.
//!
//! Everything is keyed by who somebody is (issuer, tenant, subject), never by a session or a connection, which a caller
//! can have many of. Checks run from the cheapest key to the most special: address, then principal, tenant, tool rates,
//! then the slots. What an earlier check counted stays counted when a later one refuses, so that a caller who hammers
//! against one limit runs out of the others too; slots that were taken are given back at once.

mod rates;
mod slots;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use globset::GlobMatcher;
use governor::clock::Clock;
use governor::clock::DefaultClock;

use crate::catalog::Kind;
use crate::catalog::Operation;
use crate::mcp::Method;
use crate::policy::Permit;
use crate::principal::Principal;
use rates::Keys;
use rates::Rates;
pub use slots::Slot;
use slots::Slots;

/// Nobody knows when a slot becomes free; clients that ask sooner only hammer.
const SLOT_RETRY_AFTER: Duration = Duration::from_secs(1);

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
    /// Calls and streams held at once.
    pub concurrent: Option<NonZeroU32>,
    /// Open-ended event streams held at once; of callers and tenants, never of a tool.
    pub streams: Option<NonZeroU32>,
}

/// Which limit said no, and when to ask again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limited {
    /// `address`, `registration`, `principal`, `tenant`, `tool`, `principal-concurrent`, `tenant-concurrent`,
    /// `tool-concurrent`, `principal-streams`, `tenant-streams`.
    pub limit: &'static str,
    /// Asking sooner is refused again.
    pub retry_after: Duration,
    pub of: Of,
}

/// What there is too much of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Of {
    /// Calls in a time.
    Calls,
    /// Calls and streams at once.
    Concurrent,
    /// Open-ended event streams at once.
    Streams,
}

impl Limited {
    fn rate(limit: &'static str, retry_after: Duration) -> Limited {
        Limited { limit, retry_after, of: Of::Calls }
    }

    fn slot(limit: &'static str) -> Limited {
        Limited { limit, retry_after: SLOT_RETRY_AFTER, of: Of::Concurrent }
    }

    fn stream(limit: &'static str) -> Limited {
        Limited { limit, retry_after: SLOT_RETRY_AFTER, of: Of::Streams }
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
    slots: Arc<Slots>,
    clock: C,
}

impl Limits {
    pub fn new(config: Config) -> Limits {
        Limits::with_clock(config, DefaultClock::default())
    }
}

impl<C: Clock + Clone> Limits<C> {
    pub(crate) fn with_clock(config: Config, clock: C) -> Limits<C> {
        let rates = |rate: Option<Rate>| rate.map(|rate| Arc::new(Rates::new(rate, clock.clone())));
        Limits {
            address: rates(config.address),
            registrations: Arc::new(Rates::new(REGISTRATIONS, clock.clone())),
            principal: rates(config.principal.calls),
            tenant: rates(config.tenant.calls),
            tools: config.tools.iter().map(|(_, bound)| rates(bound.calls)).collect(),
            config,
            keys: Arc::default(),
            slots: Arc::default(),
            clock,
        }
    }

    /// The limits of a reloaded configuration: slots that are held stay held, and a rate that did not change keeps its
    /// counts, so that a reload gives nobody a fresh budget.
    #[must_use]
    pub fn reloaded(&self, config: Config) -> Limits<C> {
        let mut new = Limits::with_clock(config, self.clock.clone());
        new.keys = self.keys.clone();
        new.slots = self.slots.clone();
        new.registrations = self.registrations.clone();
        keep(&mut new.address, self.address.as_ref());
        keep(&mut new.principal, self.principal.as_ref());
        keep(&mut new.tenant, self.tenant.as_ref());
        for ((glob, _), rates) in new.config.tools.iter().zip(&mut new.tools) {
            let old = self.config.tools.iter().position(|(old, _)| old.glob() == glob.glob());
            keep(rates, old.and_then(|index| self.tools.get(index)?.as_ref()));
        }
        new
    }

    /// Counts one request of an address. `None` (a Unix socket) is not limited: it has no address to key by.
    ///
    /// # Errors
    /// [`Limited`] by `address`.
    pub fn admit(&self, address: Option<IpAddr>) -> Result<(), Limited> {
        let (Some(rates), Some(address)) = (&self.address, address) else { return Ok(()) };
        rates.count(self.keys.address(address)).map_err(|retry_after| Limited::rate("address", retry_after))
    }

    /// Counts one registration of a client from an address; all of a Unix socket together.
    ///
    /// # Errors
    /// [`Limited`] by `registration`.
    pub fn register(&self, address: Option<IpAddr>) -> Result<(), Limited> {
        let key = self.keys.address(address.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)));
        self.registrations.count(key).map_err(|retry_after| Limited::rate("registration", retry_after))
    }

    /// Counts one permitted call and takes its slots. `tool` is `None` for what is not a tool call. The slot is to be
    /// held until the last byte of the answer, streams included.
    ///
    /// # Errors
    /// [`Limited`] by the first limit that is reached.
    pub fn acquire(
        &self,
        principal: &Arc<str>,
        tenant: Option<&str>,
        backend: &str,
        tool: Option<&str>,
    ) -> Result<Slot, Limited> {
        let rule = tool.and_then(|tool| self.rule(backend, tool));
        let principal_key = self.keys.principal(principal);
        let tenant_key = tenant.map(|tenant| self.keys.tenant(tenant));
        let tool_key = tool.map(|tool| self.keys.tool(principal, backend, tool));

        if let Some(rates) = &self.principal {
            rates.count(principal_key).map_err(|retry_after| Limited::rate("principal", retry_after))?;
        }
        if let (Some(rates), Some(key)) = (&self.tenant, tenant_key) {
            rates.count(key).map_err(|retry_after| Limited::rate("tenant", retry_after))?;
        }
        let tool_rates = rule.and_then(|(index, _)| self.tools.get(index)?.as_ref());
        if let (Some(rates), Some(key)) = (tool_rates, tool_key) {
            rates.count(key).map_err(|retry_after| Limited::rate("tool", retry_after))?;
        }

        // A refusal drops the slot, and with it what it holds already.
        let mut slot = Slot::new(&self.slots);
        slot.take(principal_key, self.config.principal.concurrent)
            .map_err(|()| Limited::slot("principal-concurrent"))?;
        if let Some(key) = tenant_key {
            slot.take(key, self.config.tenant.concurrent).map_err(|()| Limited::slot("tenant-concurrent"))?;
        }
        if let (Some((_, bound)), Some(key)) = (rule, tool_key) {
            slot.take(key, bound.concurrent).map_err(|()| Limited::slot("tool-concurrent"))?;
        }
        Ok(slot)
    }

    /// [`Limits::acquire`] for a permitted call.
    ///
    /// # Errors
    /// [`Limited`] by the first limit that is reached.
    pub fn acquire_for(&self, principal: &Principal, permit: &Permit) -> Result<Slot, Limited> {
        let decl = &permit.call().decl;
        let tool = (decl.kind == Kind::Tool).then_some(&*decl.name);
        let tenant = principal.tenant_name();
        let slot = self.acquire(principal.key(), tenant, &decl.backend, tool)?;
        if is_open_ended(&permit.call().operation) { self.hold_stream(slot, principal.key(), tenant) } else { Ok(slot) }
    }

    /// [`Limits::acquire`] for one open-ended stream, whatever it is made of.
    ///
    /// # Errors
    /// The limit that says no.
    pub fn acquire_stream(&self, principal: &Principal, backend: &str) -> Result<Slot, Limited> {
        let tenant = principal.tenant_name();
        let slot = self.acquire(principal.key(), tenant, backend, None)?;
        self.hold_stream(slot, principal.key(), tenant)
    }

    /// Lets a slot hold an open-ended event stream too. An answer that turns out to be a stream needs none: it ends with
    /// its call, and calls have their own bound.
    fn hold_stream(&self, mut slot: Slot, principal: &Arc<str>, tenant: Option<&str>) -> Result<Slot, Limited> {
        slot.take(self.keys.streams("principal", principal), self.config.principal.streams)
            .map_err(|()| Limited::stream("principal-streams"))?;
        if let Some(tenant) = tenant {
            slot.take(self.keys.streams("tenant", tenant), self.config.tenant.streams)
                .map_err(|()| Limited::stream("tenant-streams"))?;
        }
        Ok(slot)
    }

    /// Forgets who has used nothing lately; to be called about once a minute.
    pub fn sweep(&self) {
        [&self.address, &self.principal, &self.tenant]
            .into_iter()
            .chain(&self.tools)
            .flatten()
            .chain([&self.registrations])
            .for_each(|rates| rates.sweep());
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
