//! Keys of `_meta` that the specification reserves and the gateway writes or removes (2026-07-28, basic/index §_meta).

/// In a result: who made it.
pub const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";

/// In what comes of `subscriptions/listen`: the id of that request.
pub const SUBSCRIPTION_ID: &str = "io.modelcontextprotocol/subscriptionId";
