//! JSON-RPC and MCP error codes, with the section that allots each.

/// JSON-RPC 2.0 §5.1.
pub const PARSE_ERROR: i64 = -32700;
pub const INVALID_REQUEST: i64 = -32600;
pub const METHOD_NOT_FOUND: i64 = -32601;
pub const INVALID_PARAMS: i64 = -32602;
pub const INTERNAL_ERROR: i64 = -32603;

/// Resource not found, legacy era only; never emitted to modern clients.
pub const LEGACY_RESOURCE_NOT_FOUND: i64 = -32002;

/// MCP 2026-07-28, basic/index §Error Codes.
pub const HEADER_MISMATCH: i64 = -32020;
pub const MISSING_CLIENT_CAPABILITY: i64 = -32021;
pub const UNSUPPORTED_PROTOCOL_VERSION: i64 = -32022;

/// URL elicitation required, 2025-11-25 only; never emitted to modern clients.
pub const LEGACY_URL_ELICITATION: i64 = -32042;

/// Is it one of the codes that implementations of the legacy era gave meanings of their own (-32099 to -32000)? A modern
/// server emits three of them only.
pub fn is_legacy(code: i64) -> bool {
    let modern = [HEADER_MISMATCH, MISSING_CLIENT_CAPABILITY, UNSUPPORTED_PROTOCOL_VERSION].contains(&code);
    (-32099..=-32000).contains(&code) && !modern
}

/// The gateway's own refusals. The specification asks implementations to stay outside -32768…-32000.
pub const REFUSED: i64 = -31403;
pub const LIMITED: i64 = -31429;
pub const UPSTREAM: i64 = -31502;
