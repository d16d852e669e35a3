//! The Prometheus registry: fed from closed audit records and from gauges that the assembly sets; rendered as text.

use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use prometheus::Counter;
use prometheus::Gauge;
use prometheus::Histogram;
use prometheus::HistogramOpts;
use prometheus::HistogramVec;
use prometheus::IntCounter;
use prometheus::IntCounterVec;
use prometheus::IntGauge;
use prometheus::IntGaugeVec;
use prometheus::Opts;
use prometheus::Registry;
use prometheus::TextEncoder;
use prometheus::core::Collector;

use super::names;
use super::names::Metric;
use super::process;
use crate::audit;
use crate::audit::Record;
use crate::identity::api_key;
use crate::limits::shared::Shared;
use crate::mcp::Method;

/// What [`Metrics::render`] returns.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Half a millisecond (a call that the gateway answers itself) to half a minute (a slow tool), in seconds.
const BUCKETS: [f64; 15] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// API keys shown: those of a person's file, not of a machine's.
const API_KEYS_MAX: usize = 1000;

/// For a label that is known for no request of its kind.
const NONE: &str = "";
/// For a method that is none of the protocol's.
const OTHER: &str = "other";

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    upstream_duration: HistogramVec,
    rejections: IntCounterVec,
    limited: IntCounterVec,
    tool_calls: IntCounterVec,
    shadows: IntCounterVec,
    filtered: IntCounterVec,
    confirmations: IntCounterVec,
    /// Raised when a request is admitted, lowered when its record is closed.
    pub in_flight: IntGauge,
    /// Raised when a stream to a client starts, lowered when it ends.
    pub open_streams: IntGauge,
    connections: IntGauge,
    connections_refused: IntCounter,
    handshakes_failed: IntCounter,
    backend_up: IntGaugeVec,
    catalog_tools: IntGaugeVec,
    catalog_quarantined: IntGaugeVec,
    quarantines: IntCounterVec,
    api_key_used: IntGaugeVec,
    entra_groups: IntCounterVec,
    limits_node_up: IntGaugeVec,
    limits_judged: IntCounterVec,
    turns_in_progress: IntGauge,
    turns_waiting: IntGauge,
    audit_records: IntCounter,
    audit_dropped: IntCounter,
    audit_available: IntGauge,
    tenants: IntGaugeVec,
    tenant_requests: IntCounterVec,
    config_reloads: IntCounterVec,
    config_loaded: Gauge,
    process_cpu: Counter,
    process_memory: IntGauge,
    process_open_fds: IntGauge,
    process_start: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let build = gauges(&registry, names::BUILD);
        set(&build, &[env!("CARGO_PKG_VERSION")], 1);
        Metrics {
            requests: counters(&registry, names::REQUESTS),
            request_duration: histograms(&registry, names::REQUEST_DURATION),
            upstream_duration: histograms(&registry, names::UPSTREAM_DURATION),
            rejections: counters(&registry, names::REJECTIONS),
            limited: counters(&registry, names::LIMITED),
            tool_calls: counters(&registry, names::TOOL_CALLS),
            shadows: counters(&registry, names::SHADOWS),
            confirmations: counters(&registry, names::CONFIRMATIONS),
            filtered: counters(&registry, names::FILTERED),
            in_flight: register(&registry, IntGauge::with_opts(opts(names::IN_FLIGHT))),
            open_streams: register(&registry, IntGauge::with_opts(opts(names::OPEN_STREAMS))),
            connections: register(&registry, IntGauge::with_opts(opts(names::CONNECTIONS))),
            connections_refused: register(&registry, IntCounter::with_opts(opts(names::CONNECTIONS_REFUSED))),
            handshakes_failed: register(&registry, IntCounter::with_opts(opts(names::HANDSHAKES_FAILED))),
            backend_up: gauges(&registry, names::BACKEND_UP),
            catalog_tools: gauges(&registry, names::CATALOG_TOOLS),
            catalog_quarantined: gauges(&registry, names::CATALOG_QUARANTINED),
            quarantines: counters(&registry, names::QUARANTINES),
            api_key_used: gauges(&registry, names::API_KEY_USED),
            entra_groups: counters(&registry, names::ENTRA_GROUPS),
            limits_node_up: gauges(&registry, names::LIMITS_NODE_UP),
            limits_judged: counters(&registry, names::LIMITS_JUDGED),
            turns_in_progress: register(&registry, IntGauge::with_opts(opts(names::TURNS_IN_PROGRESS))),
            turns_waiting: register(&registry, IntGauge::with_opts(opts(names::TURNS_WAITING))),
            audit_records: register(&registry, IntCounter::with_opts(opts(names::AUDIT_RECORDS))),
            audit_dropped: register(&registry, IntCounter::with_opts(opts(names::AUDIT_DROPPED))),
            audit_available: register(&registry, IntGauge::with_opts(opts(names::AUDIT_AVAILABLE))),
            tenants: gauges(&registry, names::TENANTS),
            tenant_requests: counters(&registry, names::TENANT_REQUESTS),
            config_reloads: counters(&registry, names::CONFIG_RELOADS),
            config_loaded: register(&registry, Gauge::with_opts(opts(names::CONFIG_LOADED))),
            process_cpu: register(&registry, Counter::with_opts(opts(names::PROCESS_CPU))),
            process_memory: register(&registry, IntGauge::with_opts(opts(names::PROCESS_MEMORY))),
            process_open_fds: register(&registry, IntGauge::with_opts(opts(names::PROCESS_OPEN_FDS))),
            process_start: register(&registry, Gauge::with_opts(opts(names::PROCESS_START))),
            registry,
        }
    }

    /// Counts one closed record. Labels are the configured routes and backends, the protocol's methods and the slugs of
    /// our own tables: a client cannot make a new one.
    pub fn observe(&self, record: &Record) {
        let route = record.route.as_deref().unwrap_or(NONE);
        let backend = record.backend.as_deref().unwrap_or(NONE);
        let method = record.method.as_deref().map_or(NONE, |method| Method::find(method).map_or(OTHER, Method::as_str));
        let reason = record.reason.unwrap_or(NONE);
        count(&self.requests, &[route, backend, method, record.outcome.unwrap_or(NONE), reason]);
        time(&self.request_duration, &[route, method], record.duration_us);
        if let Some(upstream_us) = record.upstream_us {
            time(&self.upstream_duration, &[backend], upstream_us);
        }
        if let Some(tenant) = &record.home {
            count(&self.tenant_requests, &[tenant, record.outcome.unwrap_or(NONE)]);
        }
        if let Some(reason) = record.reason {
            count(&self.rejections, &[reason]);
        }
        if let Some(limit) = record.limit {
            count(&self.limited, &[limit]);
        }
        if let (Some(effect), Some(decision), "tools/call") = (record.effect, record.decision, method) {
            count(&self.tool_calls, &[backend, effect, decision]);
        }
        // Ids are those of the configured policies, and few of them are in shadow mode.
        for policy in &record.shadows {
            count(&self.shadows, &[policy, record.decision.unwrap_or(NONE)]);
        }
    }

    /// Whether a person allows a call was asked, or answered.
    pub fn confirmation(&self, backend: &str, outcome: &'static str) {
        count(&self.confirmations, &[backend, outcome]);
    }

    /// A filter found something in what a backend said. The kinds are ours and the operator's.
    pub fn filtered(&self, backend: &str, kind: &str, times: u64) {
        if let Ok(counter) = self.filtered.get_metric_with_label_values(&[backend, kind]) {
            counter.inc_by(times);
        }
    }

    /// To be called before each [`Metrics::render`]: what the listeners have counted so far.
    pub fn listeners(&self, open: usize, refused: u64, handshakes_failed: u64) {
        self.connections.set(open.try_into().unwrap_or(i64::MAX));
        self.connections_refused.inc_by(refused.saturating_sub(self.connections_refused.get()));
        self.handshakes_failed.inc_by(handshakes_failed.saturating_sub(self.handshakes_failed.get()));
    }

    pub fn backend(&self, backend: &str, up: bool, tools: usize) {
        set(&self.backend_up, &[backend], i64::from(up));
        set(&self.catalog_tools, &[backend], tools.try_into().unwrap_or(i64::MAX));
    }

    /// What came of asking for groups so far.
    pub fn entra_groups(&self, asked: &[(&'static str, u64)]) {
        for (outcome, count) in asked {
            if let Ok(counter) = self.entra_groups.get_metric_with_label_values(&[outcome]) {
                counter.inc_by(count.saturating_sub(counter.get()));
            }
        }
    }

    /// How many tools of a pinned backend are in quarantine, and how many came since it was last asked.
    pub fn quarantined(&self, backend: &str, now: usize, more: usize) {
        set(&self.catalog_quarantined, &[backend], now.try_into().unwrap_or(i64::MAX));
        add(&self.quarantines, &[backend], more.try_into().unwrap_or(u64::MAX));
    }

    /// Those that were used last; keys that are no longer in the file are no longer shown.
    pub fn api_keys(&self, used: &[api_key::Use]) {
        let mut used: Vec<_> = used.iter().collect();
        used.sort_by_key(|key| std::cmp::Reverse(key.at));
        self.api_key_used.reset();
        for key in used.into_iter().take(API_KEYS_MAX) {
            set(&self.api_key_used, &[&key.name, &key.print], key.at);
        }
    }

    pub fn turns(&self, in_progress: u32, waiting: usize) {
        self.turns_in_progress.set(in_progress.into());
        self.turns_waiting.set(waiting.try_into().unwrap_or(i64::MAX));
    }

    /// To be called before each [`Metrics::render`]. `None`: no store is shared (any more).
    pub fn shared_limits(&self, shared: Option<&Shared>) {
        self.limits_node_up.reset();
        let Some(shared) = shared else { return };
        for node in shared.nodes() {
            set(&self.limits_node_up, &[&node.name], i64::from(node.up));
        }
        let judged = shared.judged();
        for (by, calls) in [("shared", judged.shared), ("local", judged.local), ("refused", judged.refused)] {
            if let Ok(counter) = self.limits_judged.get_metric_with_label_values(&[by]) {
                counter.inc_by(calls.saturating_sub(counter.get()));
            }
        }
    }

    /// After a reload: a backend that is no longer configured is no longer shown.
    pub fn forget_backend(&self, backend: &str) {
        // An error says that there was no such backend, which is what is wanted.
        let _ = self.backend_up.remove_label_values(&[backend]);
        let _ = self.catalog_tools.remove_label_values(&[backend]);
        let _ = self.catalog_quarantined.remove_label_values(&[backend]);
        let _ = self.quarantines.remove_label_values(&[backend]);
    }

    /// After a start or reload: how many tenants are in which state.
    pub fn tenants(&self, states: &[(&'static str, usize)]) {
        for (state, count) in states {
            set(&self.tenants, &[state], (*count).try_into().unwrap_or(i64::MAX));
        }
    }

    /// After a reload: a tenant that is no longer configured is no longer shown.
    pub fn forget_tenant(&self, tenant: &str) {
        for family in self.tenant_requests.collect() {
            for metric in family.get_metric() {
                let label = |name: &str| {
                    metric.get_label().iter().find(|label| label.name() == name).map(|label| label.value())
                };
                if let (Some(of), Some(outcome)) = (label("tenant"), label("outcome"))
                    && of == tenant
                {
                    let _ = self.tenant_requests.remove_label_values(&[of, outcome]);
                }
            }
        }
    }

    /// A configuration came into use just now, the first one included.
    pub fn loaded(&self) {
        self.config_loaded.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    }

    pub fn reloaded(&self, ok: bool) {
        count(&self.config_reloads, &[if ok { "ok" } else { "failed" }]);
    }

    /// To be called before each [`Metrics::render`].
    pub fn audit(&self, status: &audit::Status) {
        self.audit_records.inc_by(status.written.saturating_sub(self.audit_records.get()));
        self.audit_dropped.inc_by(status.dropped.saturating_sub(self.audit_dropped.get()));
        self.audit_available.set(i64::from(status.healthy));
    }

    /// The Prometheus text format, version 0.0.4.
    pub fn render(&self) -> String {
        if let Some(now) = process::read() {
            self.process_cpu.inc_by((now.cpu_seconds - self.process_cpu.get()).max(0.0));
            self.process_memory.set(now.resident_bytes);
            self.process_open_fds.set(now.open_fds);
            self.process_start.set(now.started_at_seconds);
        }
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_else(|error| {
            tracing::error!(%error, "the metrics cannot be rendered");
            String::new()
        })
    }
}

fn opts(metric: Metric) -> Opts {
    Opts::new(metric.name, metric.help)
}

fn counters(registry: &Registry, metric: Metric) -> IntCounterVec {
    register(registry, IntCounterVec::new(opts(metric), metric.labels))
}

fn gauges(registry: &Registry, metric: Metric) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(opts(metric), metric.labels))
}

fn histograms(registry: &Registry, metric: Metric) -> HistogramVec {
    let opts = HistogramOpts::new(metric.name, metric.help).buckets(BUCKETS.to_vec());
    register(registry, HistogramVec::new(opts, metric.labels))
}

#[expect(
    clippy::expect_used,
    reason = "the names are constants, and any test that makes a `Metrics` registers them all"
)]
fn register<M: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<M>) -> M {
    let metric = made.expect("the name and labels of a metric are well formed");
    registry.register(Box::new(metric.clone())).expect("the name of a metric is used once");
    metric
}

// The number of labels is the only thing that can be wrong below, and the tests feed every family.

fn count(counters: &IntCounterVec, labels: &[&str]) {
    if let Ok(counter) = counters.get_metric_with_label_values(labels) {
        counter.inc();
    }
}

fn add(counters: &IntCounterVec, labels: &[&str], more: u64) {
    if let Ok(counter) = counters.get_metric_with_label_values(labels) {
        counter.inc_by(more);
    }
}

fn set(gauges: &IntGaugeVec, labels: &[&str], value: i64) {
    if let Ok(gauge) = gauges.get_metric_with_label_values(labels) {
        gauge.set(value);
    }
}

fn time(histograms: &HistogramVec, labels: &[&str], micros: u64) {
    let histogram: prometheus::Result<Histogram> = histograms.get_metric_with_label_values(labels);
    if let Ok(histogram) = histogram {
        histogram.observe(micros as f64 / 1e6);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::limits::shared;

    fn shared() -> Shared {
        let node = shared::Address { tls: false, host: "127.0.0.1".into(), port: 1, database: 0 };
        let config = shared::Config {
            nodes: vec![node],
            user: None,
            password: None,
            ca: None,
            prefix: String::new(),
            key: None,
            timeout: std::time::Duration::ZERO,
            connect_timeout: std::time::Duration::ZERO,
            unreachable: shared::Unreachable::Local,
        };
        Shared::new(&config).unwrap()
    }

    fn fed() -> Metrics {
        let metrics = Metrics::new();
        metrics.observe(&Record {
            route: Some("/mcp".into()),
            backend: Some("vault".into()),
            method: Some("tools/call".into()),
            target: Some("kv.read".into()),
            subject: Some("canary-ann".into()),
            effect: Some("read"),
            decision: Some("refused"),
            outcome: Some("refused"),
            reason: Some("rate_limited"),
            limit: Some("principal"),
            home: Some("contoso".into()),
            duration_us: 1500,
            upstream_us: Some(700),
            shadows: ["grant-1".to_owned()].into(),
            ..Record::default()
        });
        metrics.filtered("vault", "jwt", 2);
        metrics.confirmation("vault", "asked");
        metrics.listeners(1, 2, 3);
        metrics.backend("vault", true, 7);
        metrics.api_keys(&[api_key::Use { name: "ci".into(), print: "2f1c07be".into(), at: 9 }]);
        metrics.entra_groups(&[("refused", 1), ("resolved", 2)]);
        metrics.turns(1, 2);
        metrics.quarantined("vault", 1, 2);
        metrics.shared_limits(Some(&shared()));
        metrics.audit(&audit::Status { written: 5, dropped: 1, healthy: true, seq: 5, hash: [0; 32] });
        metrics.tenants(&[("in_force", 2)]);
        metrics.loaded();
        metrics.reloaded(false);
        metrics
    }

    #[test]
    fn every_declared_name_is_rendered_with_its_kind_and_labels_and_no_other() {
        let metrics = fed();
        let text = metrics.render();
        let declared: BTreeSet<String> =
            names::ALL.iter().map(|metric| format!("# TYPE {} {}", metric.name, metric.kind.as_str())).collect();
        let rendered: BTreeSet<String> =
            text.lines().filter(|line| line.starts_with("# TYPE")).map(str::to_owned).collect();
        assert_eq!(declared, rendered);
        for family in metrics.registry.gather() {
            let metric = names::ALL.iter().find(|metric| metric.name == family.name()).unwrap();
            let labels: BTreeSet<&str> = family.get_metric()[0].get_label().iter().map(|label| label.name()).collect();
            assert_eq!(labels, metric.labels.iter().copied().collect(), "{}", metric.name);
        }
    }

    #[test]
    fn a_record_is_counted_under_its_labels() {
        let text = fed().render();
        for line in [
            r#"wardgate_requests_total{backend="vault",method="tools/call",outcome="refused",reason="rate_limited",route="/mcp"} 1"#,
            r#"wardgate_request_duration_seconds_bucket{method="tools/call",route="/mcp",le="0.001"} 0"#,
            r#"wardgate_request_duration_seconds_bucket{method="tools/call",route="/mcp",le="0.0025"} 1"#,
            r#"wardgate_upstream_duration_seconds_sum{backend="vault"} 0.0007"#,
            r#"wardgate_rejections_total{reason="rate_limited"} 1"#,
            r#"wardgate_limited_total{limit="principal"} 1"#,
            r#"wardgate_tool_calls_total{backend="vault",decision="refused",effect="read"} 1"#,
            r#"wardgate_tenant_requests_total{outcome="refused",tenant="contoso"} 1"#,
            r#"wardgate_tenants{state="in_force"} 2"#,
            r#"wardgate_filtered_total{backend="vault",kind="jwt"} 2"#,
            "wardgate_connections 1",
            "wardgate_connections_refused_total 2",
            "wardgate_tls_handshakes_failed_total 3",
            r#"wardgate_catalog_tools{backend="vault"} 7"#,
            "wardgate_audit_records_total 5",
            "wardgate_audit_dropped_total 1",
            r#"wardgate_config_reloads_total{result="failed"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn what_a_client_chooses_makes_no_label() {
        let metrics = fed();
        let before = metrics.render().lines().count();
        for index in 0..100 {
            metrics.observe(&Record {
                method: Some(format!("canary/{index}")),
                subject: Some(format!("canary-{index}")),
                target: Some(format!("canary-{index}")),
                path: format!("/canary/{index}"),
                tenant: Some(format!("canary-{index}")),
                outcome: Some("refused"),
                reason: Some("method_not_found"),
                ..Record::default()
            });
        }
        let text = metrics.render();
        assert!(!text.contains("canary"));
        // One request series, one rejection series, one histogram.
        assert_eq!(text.lines().count() - before, 1 + 1 + BUCKETS.len() + 3);
    }

    #[test]
    fn audit_counters_follow_the_status_and_never_fall() {
        let metrics = fed();
        metrics.audit(&audit::Status { written: 9, dropped: 1, healthy: false, seq: 9, hash: [0; 32] });
        metrics.audit(&audit::Status { written: 8, dropped: 0, healthy: false, seq: 8, hash: [0; 32] });
        let text = metrics.render();
        assert!(text.contains("wardgate_audit_records_total 9\n"));
        assert!(text.contains("wardgate_audit_dropped_total 1\n"));
        assert!(text.contains("wardgate_audit_available 0\n"));
    }

    #[test]
    fn a_backend_or_tenant_that_is_gone_is_not_shown() {
        let metrics = fed();
        metrics.forget_tenant("fabrikam");
        assert!(metrics.render().contains("contoso"));
        metrics.forget_tenant("contoso");
        assert!(!metrics.render().contains("contoso"));
        metrics.forget_backend("vault");
        metrics.forget_backend("never");
        assert!(!metrics.render().contains("wardgate_backend_up{"));
    }
}
