//! Names that the specification reserves and the gateway reads, writes or removes: keys of `_meta`, ids of extensions.

/// In a result: who made it.
pub const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";

/// In what comes of `subscriptions/listen`: the id of that request.
pub const SUBSCRIPTION_ID: &str = "io.modelcontextprotocol/subscriptionId";

/// The extension by which a tool call may be answered later, by a task (2026-07-28, SEP-2663).
pub const TASKS: &str = "io.modelcontextprotocol/tasks";

/// In messages about a task of the core of 2025-11-25: which one.
pub const RELATED_TASK: &str = "io.modelcontextprotocol/related-task";
