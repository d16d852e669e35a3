//! Rates with a clock that stands still until told, and slots.

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use futures_util::FutureExt as _;
use globset::Glob;
use governor::clock::FakeRelativeClock;

use super::*;

/// 2026-11-21T12:00:00Z
const NOON_S: u64 = 1_795_262_400;

/// Without a shared store nothing is waited for.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().unwrap()
}

fn rate(calls: u32, seconds: u64) -> Rate {
    Rate { calls: NonZeroU32::new(calls).unwrap(), period: Duration::from_secs(seconds) }
}

fn calls(count: u32, seconds: u64) -> Bound {
    Bound { calls: Some(rate(count, seconds)), ..Bound::default() }
}

fn concurrent(count: u32) -> Bound {
    Bound { concurrent: NonZeroU32::new(count), ..Bound::default() }
}

fn tool(glob: &str, bound: Bound) -> (GlobMatcher, Bound) {
    (Glob::new(glob).unwrap().compile_matcher(), bound)
}

fn limits(config: Config) -> (Limits<FakeRelativeClock>, FakeRelativeClock) {
    let clock = FakeRelativeClock::default();
    (Limits::with_clock(config, clock.clone(), || NOON_S).unwrap(), clock)
}

fn ann() -> Arc<str> {
    "idp|t1|ann".into()
}

fn refused(result: Result<Slot, Limited>) -> &'static str {
    result.err().map_or("", |limited| limited.limit)
}

#[test]
fn without_limits_everything_passes() {
    let (limits, _) = limits(Config::default());
    for _ in 0..1000 {
        limits.admit(Some(Ipv4Addr::LOCALHOST.into())).unwrap();
        drop(now(limits.acquire(&ann(), Some("t1"), "vault", Some("kv.read"))).unwrap());
    }
    assert_eq!(limits.slots.keys(), 0);
}

#[test]
fn a_bucket_empties_refills_evenly_and_says_when() {
    let (limits, clock) = limits(Config { address: Some(rate(4, 60)), ..Config::default() });
    let address = Some(IpAddr::from([192, 0, 2, 1]));
    (0..4).for_each(|_| limits.admit(address).unwrap());
    let limited = limits.admit(address).unwrap_err();
    assert_eq!(limited, Limited { limit: "address", retry_after: Duration::from_secs(15), of: Of::Calls(rate(4, 60)) });
    clock.advance(limited.retry_after - Duration::from_millis(1));
    assert_eq!(limits.admit(address).unwrap_err().retry_after, Duration::from_millis(1));
    clock.advance(Duration::from_millis(1));
    limits.admit(address).unwrap();
    assert!(limits.admit(address).is_err());
    clock.advance(Duration::from_secs(3600));
    (0..4).for_each(|_| limits.admit(address).unwrap());
    assert!(limits.admit(address).is_err(), "the bucket holds no more than its size");
}

#[test]
fn addresses_are_counted_apart_and_ipv6_by_its_first_half() {
    let (limits, _) = limits(Config { address: Some(rate(1, 60)), ..Config::default() });
    let v6 = |text: &str| Some(IpAddr::from(text.parse::<Ipv6Addr>().unwrap()));
    limits.admit(v6("2001:db8:0:1::1")).unwrap();
    assert!(limits.admit(v6("2001:db8:0:1:ffff::2")).is_err());
    limits.admit(v6("2001:db8:0:2::1")).unwrap();
    limits.admit(Some(IpAddr::from([192, 0, 2, 1]))).unwrap();
    assert!(limits.admit(v6("::ffff:192.0.2.1")).is_err(), "the same IPv4 address in IPv6 clothes");
    limits.admit(Some(IpAddr::from([192, 0, 2, 2]))).unwrap();
    (0..10).for_each(|_| limits.admit(None).unwrap());
}

#[test]
fn principals_share_nothing_and_tenants_share_their_rate() {
    let (limits, _) = limits(Config { principal: calls(3, 60), tenant: calls(4, 60), ..Config::default() });
    let bob: Arc<str> = "idp|t1|bob".into();
    (0..3).for_each(|_| drop(now(limits.acquire(&ann(), Some("t1"), "b", None)).unwrap()));
    assert_eq!(refused(now(limits.acquire(&ann(), Some("t1"), "b", None))), "principal");
    drop(now(limits.acquire(&bob, Some("t1"), "b", None)).unwrap());
    assert_eq!(refused(now(limits.acquire(&bob, Some("t1"), "b", None))), "tenant");
    drop(now(limits.acquire(&bob, Some("t2"), "b", None)).unwrap());
    assert_eq!(
        refused(now(limits.acquire(&bob, Some("t2"), "b", None))),
        "principal",
        "what the tenant refused was counted"
    );
}

#[test]
fn the_first_tool_rule_that_matches_counts_each_tool_of_each_principal() {
    let tools = vec![tool("vault/kv.delete", calls(1, 60)), tool("vault/*", calls(2, 60))];
    let (limits, _) = limits(Config { tools, ..Config::default() });
    let call =
        |who: &str, backend: &str, name: &str| refused(now(limits.acquire(&who.into(), None, backend, Some(name))));
    assert_eq!(call("ann", "vault", "kv.delete"), "");
    assert_eq!(call("ann", "vault", "kv.delete"), "tool");
    assert_eq!(call("bob", "vault", "kv.delete"), "");
    assert_eq!([call("ann", "vault", "kv.read"), call("ann", "vault", "kv.read")], ["", ""]);
    assert_eq!(call("ann", "vault", "kv.read"), "tool");
    assert_eq!(call("ann", "vault", "kv.list"), "");
    assert!((0..10).all(|_| call("ann", "files", "kv.delete").is_empty()));
    assert!(
        (0..10).all(|_| refused(now(limits.acquire(&"ann".into(), None, "vault", None))).is_empty()),
        "no tool, no tool rule"
    );
}

#[test]
fn a_slot_is_held_until_dropped() {
    let (limits, _) = limits(Config { principal: concurrent(2), ..Config::default() });
    let first = now(limits.acquire(&ann(), None, "b", None)).unwrap();
    let second = now(limits.acquire(&ann(), None, "b", None)).unwrap();
    let limited = now(limits.acquire(&ann(), None, "b", None)).err().unwrap();
    assert_eq!(
        (limited.limit, limited.of, limited.retry_after),
        ("principal-concurrent", Of::Concurrent(2.try_into().unwrap()), SLOT_RETRY_AFTER)
    );
    drop(now(limits.acquire(&"bob".into(), None, "b", None)).unwrap());
    drop(first);
    let third = now(limits.acquire(&ann(), None, "b", None)).unwrap();
    drop((second, third));
    assert_eq!(limits.slots.keys(), 0);
}

#[test]
fn a_refusal_by_a_later_check_gives_back_what_was_taken() {
    let tools = vec![tool("b/t", concurrent(1))];
    let (limits, _) = limits(Config { principal: concurrent(2), tenant: concurrent(9), tools, ..Config::default() });
    let held = now(limits.acquire(&ann(), Some("t1"), "b", Some("t"))).unwrap();
    for _ in 0..10 {
        assert_eq!(refused(now(limits.acquire(&ann(), Some("t1"), "b", Some("t")))), "tool-concurrent");
    }
    drop(now(limits.acquire(&ann(), Some("t1"), "b", Some("other"))).unwrap());
    drop(held);
    assert_eq!(limits.slots.keys(), 0);
}

#[test]
fn a_tenant_bounds_all_its_principals_at_once() {
    let (limits, _) = limits(Config { tenant: concurrent(2), ..Config::default() });
    let held: Vec<_> = ["a", "b"].map(|who| now(limits.acquire(&who.into(), Some("t1"), "b", None)).unwrap()).into();
    assert_eq!(refused(now(limits.acquire(&"c".into(), Some("t1"), "b", None))), "tenant-concurrent");
    drop(now(limits.acquire(&"c".into(), Some("t2"), "b", None)).unwrap());
    drop(held);
}

#[test]
fn slots_come_back_from_threads_that_race_for_them() {
    let limits = Limits::new(Config { principal: concurrent(3), ..Config::default() }).unwrap();
    let most = std::sync::atomic::AtomicU32::new(0);
    let inside = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    if let Ok(slot) = now(limits.acquire(&ann(), None, "b", None)) {
                        most.fetch_max(
                            inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1,
                            std::sync::atomic::Ordering::SeqCst,
                        );
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        drop(slot);
                    }
                }
            });
        }
    });
    assert!((1..=3).contains(&most.into_inner()));
    assert_eq!(limits.slots.keys(), 0);
}

#[test]
fn a_reload_gives_nobody_a_fresh_budget() {
    let config = |rate| Config {
        principal: Bound { calls: Some(rate), concurrent: NonZeroU32::new(1), ..Bound::default() },
        tools: vec![tool("b/t", calls(1, 60))],
        ..Config::default()
    };
    let (before, _) = limits(config(rate(2, 60)));
    let held = now(before.acquire(&ann(), None, "b", Some("t"))).unwrap();
    let mut more = config(rate(2, 60));
    more.tools.insert(0, tool("other/*", calls(9, 60)));
    let after = before.reloaded(more).unwrap();
    assert_eq!(refused(now(after.acquire(&ann(), None, "b", None))), "principal-concurrent");
    drop(held);
    assert_eq!(refused(now(after.acquire(&ann(), None, "b", None))), "principal");
    assert_eq!(
        refused(now(after.reloaded(config(rate(50, 60))).unwrap().acquire(&ann(), None, "b", Some("t")))),
        "tool"
    );
}

#[test]
fn keys_that_used_nothing_lately_are_forgotten() {
    let clock = FakeRelativeClock::default();
    let rates = Rates::new(rate(2, 60), clock.clone());
    (0..1000_u128).for_each(|key| rates.count(key).unwrap());
    rates.sweep();
    assert_eq!(rates.keys(), 1000);
    clock.advance(Duration::from_secs(61));
    rates.count(7).unwrap();
    rates.sweep();
    assert_eq!(rates.keys(), 1);
}

#[test]
fn beyond_the_bound_new_keys_share_a_bucket_and_known_keys_do_not_suffer() {
    let clock = FakeRelativeClock::default();
    let rates = Rates::with_keys_max(rate(2, 60), clock.clone(), 64);
    // One key for each shard, then as many as an attacker likes.
    (0..64_u128).for_each(|key| rates.count(key).unwrap());
    let passed = (64..64_000_u128).filter(|key| rates.count(*key).is_ok()).count();
    assert_eq!((rates.keys(), passed), (64, 128), "two calls for each shard's shared bucket");
    (0..64_u128).for_each(|key| rates.count(key).unwrap());
    clock.advance(Duration::from_secs(61));
    rates.count(1000).unwrap();
    rates.count(1000).unwrap();
    assert!(rates.count(1000).is_err(), "a full shard forgot its old key and gave the new one a bucket of its own");
    rates.count(1064).unwrap();
    assert_eq!(rates.keys(), 64);
}

#[test]
fn extreme_rates_do_not_panic() {
    for rate in [rate(u32::MAX, 0), rate(u32::MAX, 1), rate(1, u64::MAX), rate(1, 0)] {
        let rates = Rates::new(rate, FakeRelativeClock::default());
        rates.count(1).unwrap();
        let _ = rates.count(1);
        rates.sweep();
    }
}

#[test]
fn streams_have_bounds_of_their_own_per_principal_and_tenant_and_are_given_back() {
    let streams = |count| Bound { streams: NonZeroU32::new(count), ..Bound::default() };
    let (limits, _) = limits(Config { principal: streams(2), tenant: streams(3), ..Config::default() });
    let open = |who: &str, tenant: Option<&str>| {
        let who = who.into();
        limits.hold_stream(now(limits.acquire(&who, tenant, "b", None))?, &who, tenant)
    };
    let first = open("ann", Some("t1")).unwrap();
    let _second = open("ann", Some("t1")).unwrap();
    let limited = open("ann", Some("t1")).err().unwrap();
    assert_eq!((limited.limit, limited.of), ("principal-streams", Of::Streams(2.try_into().unwrap())));
    drop(now(limits.acquire(&"ann".into(), Some("t1"), "b", Some("t"))).unwrap());
    let third = open("bob", Some("t1")).unwrap();
    assert_eq!(refused(open("bob", Some("t1"))), "tenant-streams");
    let _elsewhere = open("bob", Some("t2")).unwrap();
    drop(third);
    drop(open("bob", Some("t1")).unwrap());
    drop(first);
    drop(open("ann", Some("t1")).unwrap());
    // A refusal keeps nothing: three principals and tenants hold streams, four keys in all.
    assert_eq!(limits.slots.keys(), 4);
}

fn quotas(day: Option<u64>, month: Option<u64>) -> Bound {
    let quota = |calls: Option<u64>, window| calls.map(|calls| Quota { calls: calls.try_into().unwrap(), window });
    Bound { quotas: [quota(day, Window::Day), quota(month, Window::Month)], ..Bound::default() }
}

#[test]
fn a_quota_is_used_up_until_its_window_ends_and_says_when_that_is() {
    let (limits, _) =
        limits(Config { principal: quotas(Some(2), None), tenant: quotas(None, Some(3)), ..Config::default() });
    let call = |who: &str| now(limits.acquire(&who.into(), Some("t1"), "b", None));
    assert!(call("ann").is_ok() && call("ann").is_ok());
    let limited = call("ann").err().unwrap();
    let quota = Quota { calls: 2.try_into().unwrap(), window: Window::Day };
    let of = Of::Quota { quota, ends_s: NOON_S + 12 * 3600 };
    assert_eq!(limited, Limited { limit: "principal-day", retry_after: Duration::from_secs(12 * 3600), of });
    assert!(call("bob").is_ok());
    assert_eq!(refused(call("bob")), "tenant-month");
    drop(now(limits.acquire(&"bob".into(), Some("t2"), "b", None)).unwrap());
    assert_eq!(
        refused(now(limits.acquire(&"bob".into(), Some("t2"), "b", None))),
        "principal-day",
        "the refused call did not count"
    );
}

#[test]
fn days_are_those_of_the_configured_zone() {
    let config = Config { principal: quotas(Some(1), None), offset_s: 11 * 3600, ..Config::default() };
    let (limits, _) = limits(config);
    drop(now(limits.acquire(&ann(), None, "b", None)).unwrap());
    assert_eq!(now(limits.acquire(&ann(), None, "b", None)).err().unwrap().retry_after, Duration::from_secs(3600));
}

#[test]
fn what_another_limit_refuses_counts_for_rates_and_for_no_quota() {
    let principal = Bound { calls: Some(rate(4, 60)), ..quotas(Some(2), None) };
    let tools = vec![tool("b/t", concurrent(1))];
    let (limits, _) = limits(Config { principal, tools, ..Config::default() });
    let call = || now(limits.acquire(&ann(), None, "b", Some("t")));
    let held = call().unwrap();
    assert_eq!([refused(call()), refused(call())], ["tool-concurrent"; 2]);
    drop(held);
    assert!(call().is_ok(), "the second of the day");
    assert_eq!(refused(call()), "principal", "the fifth of the minute");
}

#[test]
fn a_reload_keeps_quotas_used() {
    let config = || Config { principal: quotas(Some(1), None), ..Config::default() };
    let (before, _) = limits(config());
    drop(now(before.acquire(&ann(), None, "b", None)).unwrap());
    let after = before.reloaded(config()).unwrap();
    assert_eq!(refused(now(after.acquire(&ann(), None, "b", None))), "principal-day");
}

#[test]
fn a_backend_bounds_all_its_callers_at_once_and_a_slot_counts_there_once() {
    let backends = BTreeMap::from([("b".to_owned(), NonZeroU32::new(2).unwrap())]);
    let (limits, _) = limits(Config { backends, ..Config::default() });
    let whole = now(limits.acquire(&ann(), None, "all", None)).unwrap();
    limits.hold_backend(&whole, "b").unwrap();
    limits.hold_backend(&whole, "b").unwrap();
    let other = now(limits.acquire(&"bob".into(), Some("t1"), "b", Some("t"))).unwrap();
    assert_eq!(refused(now(limits.acquire(&"eve".into(), None, "b", None))), "backend-concurrent");
    drop(now(limits.acquire(&"eve".into(), None, "c", None)).unwrap());
    drop((whole, other));
    assert_eq!(limits.slots.keys(), 0);
}

#[test]
fn a_tenant_with_limits_of_its_own_counts_with_everybody_at_the_gateways_backends_and_takes_the_same_turns() {
    let some = |count| NonZeroU32::new(count).unwrap();
    let bounds = |name: &str, count| BTreeMap::from([(name.to_owned(), some(count))]);
    let (gateway, _) = limits(Config { backends: bounds("theirs", 1), ..Config::default() });
    let (name, own) = (Arc::from("contoso"), BTreeSet::from([Arc::from("own")]));
    let config = || Config { principal: calls(2, 60), backends: bounds("own", 1), ..Config::default() };
    let tenant = gateway.within(config(), (&name, &own), None);
    assert!(tenant.counts_with(&gateway));
    let ours = now(gateway.acquire(&"bob".into(), None, "theirs", None)).unwrap();
    assert_eq!(refused(now(tenant.acquire(&ann(), Some(&name), "theirs", None))), "backend-concurrent");
    drop(ours);
    let held = now(tenant.acquire(&ann(), Some(&name), "own", None)).unwrap();
    assert_eq!(refused(now(tenant.acquire(&"eve".into(), Some(&name), "own", None))), "backend-concurrent");
    drop(now(gateway.acquire(&"bob".into(), None, "own", None)).unwrap());
    let after = gateway.within(config(), (&name, &own), Some(&tenant));
    assert_eq!(refused(now(after.acquire(&ann(), Some(&name), "elsewhere", None))), "principal");
    drop(held);
    assert_eq!(gateway.slots.keys(), 0);
    let other_turns = TurnsConfig { in_progress: some(77), ..TurnsConfig::default() };
    let reloaded = gateway.reloaded(Config { turns: other_turns, ..Config::default() }).unwrap();
    assert!(!tenant.counts_with(&reloaded));
}

#[tokio::test]
async fn turns_are_given_back_once_and_who_waits_too_long_is_told() {
    let some = |count| NonZeroU32::new(count).unwrap();
    let turns = TurnsConfig {
        in_progress: some(1),
        waiting_max: some(2),
        waiting_per_tenant_max: some(1),
        wait_max: Duration::from_millis(20),
    };
    let limits = Limits::new(Config { turns, ..Config::default() }).unwrap();
    let caller = |tenant: &str| {
        let claims = crate::principal::Claims { tenant: Some(tenant.to_owned()), ..Default::default() };
        Principal::for_tests(claims)
    };
    let turn = limits.turn(&caller("a"), 10).await.unwrap();
    let limited = limits.turn(&caller("a"), 10).await.err().unwrap();
    assert_eq!((limited.limit, limited.of), ("waiting", Of::Waiting), "too long");
    let one = caller("a");
    let mut waiting = Box::pin(limits.turn(&one, 10));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert_eq!(limits.turn(&caller("a"), 10).await.err().unwrap().limit, "tenant-waiting");
    turn.end();
    turn.end();
    let next = waiting.await.unwrap();
    assert_eq!(limits.turns().taken(), 1);
    drop((turn, next));
    assert_eq!(limits.turns().taken(), 0);
}
