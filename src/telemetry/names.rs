//! Every metric name, once. A renamed metric is a broken dashboard: the list is a committed snapshot.

/// One metric family. Labels have values from closed or configured lists: never a user, a tool or an argument.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    pub labels: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, help, labels }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, help, labels }
}

const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, help, labels }
}

pub const REQUESTS: Metric = counter(
    "wardgate_requests_total",
    &["route", "backend", "method", "outcome", "reason"],
    "Requests by how they ended; reason is the refusal's slug, empty when there was none.",
);
pub const REQUEST_DURATION: Metric = histogram(
    "wardgate_request_duration_seconds",
    &["route", "method"],
    "From admission to the end of the answer, streams included.",
);
pub const UPSTREAM_DURATION: Metric = histogram(
    "wardgate_upstream_duration_seconds",
    &["backend"],
    "From the call of a backend to the start of its answer.",
);
pub const REJECTIONS: Metric =
    counter("wardgate_rejections_total", &["reason"], "Requests refused or failed, by the refusal's slug.");
pub const LIMITED: Metric =
    counter("wardgate_limited_total", &["limit"], "Requests refused by a rate or concurrency limit, by limit.");
pub const TOOL_CALLS: Metric = counter(
    "wardgate_tool_calls_total",
    &["backend", "effect", "decision"],
    "Tool calls that were judged, by effect and decision.",
);
pub const SHADOWS: Metric = counter(
    "wardgate_shadow_policies_total",
    &["policy", "decision"],
    "Requests whose answer a policy in shadow mode would have changed, by policy and by the decision that was in force.",
);
pub const FILTERED: Metric = counter(
    "wardgate_filtered_total",
    &["backend", "kind"],
    "What filters took out of answers, by kind: secrets by theirs, hidden_text, truncated.",
);
pub const CONFIRMATIONS: Metric = counter(
    "wardgate_confirmations_total",
    &["backend", "outcome"],
    "Calls that need a person's yes: asked, confirmed, declined, cancelled, invalid or unsupported.",
);
pub const IN_FLIGHT: Metric =
    gauge("wardgate_in_flight_requests", &[], "Requests admitted and not yet closed, streams included.");
pub const OPEN_STREAMS: Metric = gauge("wardgate_open_streams", &[], "Event streams open to clients.");
pub const CONNECTIONS: Metric = gauge("wardgate_connections", &[], "Connections open to the MCP listeners.");
pub const CONNECTIONS_REFUSED: Metric =
    counter("wardgate_connections_refused_total", &[], "Connections closed at once because the maximum was open.");
pub const HANDSHAKES_FAILED: Metric =
    counter("wardgate_tls_handshakes_failed_total", &[], "TLS handshakes that were not finished or not trusted.");
pub const BACKEND_UP: Metric =
    gauge("wardgate_backend_up", &["backend"], "1 when the backend answered its last health check.");
pub const CATALOG_TOOLS: Metric = gauge("wardgate_catalog_tools", &["backend"], "Tools known of a backend.");
pub const CATALOG_QUARANTINED: Metric =
    gauge("wardgate_catalog_quarantined", &["backend"], "Tools of a backend that nobody approved as they are.");
pub const QUARANTINES: Metric = counter(
    "wardgate_quarantines_total",
    &["backend"],
    "Tools that were found new, changed or malformed, and are not offered.",
);
pub const API_KEY_USED: Metric = gauge(
    "wardgate_api_key_last_used_timestamp_seconds",
    &["name", "hash"],
    "When a key of the keys file was used last, by its name and the start of its hash; keys never used are not shown.",
);
pub const ENTRA_GROUPS: Metric = counter(
    "wardgate_entra_groups_total",
    &["outcome"],
    "Questions to Microsoft Graph for groups that a token left out: resolved, refused, unavailable or too_many.",
);
pub const LIMITS_NODE_UP: Metric =
    gauge("wardgate_limits_node_up", &["node"], "1 while this server of the shared limits answers.");
pub const LIMITS_JUDGED: Metric = counter(
    "wardgate_limits_judged_total",
    &["by"],
    "Calls judged by shared limits: by the store (shared), while it was away by this replica (local), or not at all (refused).",
);
pub const TURNS_IN_PROGRESS: Metric =
    gauge("wardgate_turns_in_progress", &[], "Requests that are being read and judged.");
pub const TURNS_WAITING: Metric = gauge("wardgate_turns_waiting", &[], "Requests in line to be read and judged.");
pub const AUDIT_RECORDS: Metric = counter("wardgate_audit_records_total", &[], "Audit records written.");
pub const AUDIT_DROPPED: Metric =
    counter("wardgate_audit_dropped_total", &[], "Audit records that found the queue full and are lost.");
pub const AUDIT_AVAILABLE: Metric = gauge("wardgate_audit_available", &[], "1 while audit records can be written.");
pub const TENANTS: Metric = gauge(
    "wardgate_tenants",
    &["state"],
    "Tenants in force; of these, kept as they were because their file is wrong; and refused, so that they are absent.",
);
pub const TENANT_REQUESTS: Metric = counter(
    "wardgate_tenant_requests_total",
    &["tenant", "outcome"],
    "Requests by configured tenant and how they ended; requests of no tenant are not here.",
);
pub const CONFIG_RELOADS: Metric =
    counter("wardgate_config_reloads_total", &["result"], "Reloads of the configuration: ok or failed.");
pub const CONFIG_LOADED: Metric = gauge(
    "wardgate_config_loaded_timestamp_seconds",
    &[],
    "When the configuration in use was loaded, in seconds since the epoch.",
);
pub const BUILD: Metric = gauge("wardgate_build_info", &["version"], "1, with the version of the program.");
pub const PROCESS_CPU: Metric =
    counter("process_cpu_seconds_total", &[], "User and system CPU time spent, in seconds.");
pub const PROCESS_MEMORY: Metric = gauge("process_resident_memory_bytes", &[], "Resident memory in bytes.");
pub const PROCESS_OPEN_FDS: Metric = gauge("process_open_fds", &[], "Open file descriptors.");
pub const PROCESS_START: Metric =
    gauge("process_start_time_seconds", &[], "When the process started, in seconds since the epoch.");

pub const ALL: &[Metric] = &[
    REQUESTS,
    REQUEST_DURATION,
    UPSTREAM_DURATION,
    REJECTIONS,
    LIMITED,
    TOOL_CALLS,
    SHADOWS,
    FILTERED,
    CONFIRMATIONS,
    IN_FLIGHT,
    OPEN_STREAMS,
    CONNECTIONS,
    CONNECTIONS_REFUSED,
    HANDSHAKES_FAILED,
    BACKEND_UP,
    CATALOG_TOOLS,
    CATALOG_QUARANTINED,
    QUARANTINES,
    API_KEY_USED,
    ENTRA_GROUPS,
    LIMITS_NODE_UP,
    LIMITS_JUDGED,
    TURNS_IN_PROGRESS,
    TURNS_WAITING,
    AUDIT_RECORDS,
    AUDIT_DROPPED,
    AUDIT_AVAILABLE,
    TENANTS,
    TENANT_REQUESTS,
    CONFIG_RELOADS,
    CONFIG_LOADED,
    BUILD,
    PROCESS_CPU,
    PROCESS_MEMORY,
    PROCESS_OPEN_FDS,
    PROCESS_START,
];

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn the_names_are_the_committed_ones() {
        let mut text = String::new();
        for metric in ALL {
            writeln!(
                text,
                "{} {} {{{}}}\n    {}",
                metric.kind.as_str(),
                metric.name,
                metric.labels.join(","),
                metric.help
            )
            .unwrap();
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/metrics.txt");
        if std::env::var_os("WARDGATE_BLESS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(
            text, committed,
            "if the change is meant, run the tests with WARDGATE_BLESS=1 and review the snapshot"
        );
    }

    #[test]
    fn names_are_unique_and_follow_the_conventions() {
        for (index, metric) in ALL.iter().enumerate() {
            assert!(ALL.iter().take(index).all(|other| other.name != metric.name), "{}", metric.name);
            assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            for forbidden in ["subject", "user", "tenant", "tool", "target", "peer", "path"] {
                // Of tenants that are configured, and of no other.
                let bounded = metric.name == TENANT_REQUESTS.name && forbidden == "tenant";
                assert!(
                    bounded || !metric.labels.contains(&forbidden),
                    "{} must not be labelled by {forbidden}",
                    metric.name
                );
            }
        }
    }
}
