//! Metrics (Prometheus), logs (`tracing`), trace context (W3C), and the names of the metrics.

pub mod logs;
pub mod metrics;
pub mod names;
mod process;
pub mod trace;
