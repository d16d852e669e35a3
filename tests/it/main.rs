//! The one integration binary: a real gateway on real sockets, with real upstreams, clients and referees.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

/// Legacy clients in front of modern upstreams.
mod door;

/// An identity provider in the shape of Entra.
mod entra;
/// Routes with several backends.
mod federation;

/// Starts a gateway with the demo's issuer and workbench behind it.
mod harness;

/// Real MCP servers, official SDK clients, the official conformance suite.
mod live;
/// Every client with every server on both kinds of route.
mod matrix;
/// Acting on behalf of callers.
mod obo;
/// Clients of HTTP+SSE.
mod old;
/// What the program does for a person: `demo --tour`, `check`, `front`, `audit verify`, signals and reload.
mod program;
/// An upstream that lies, for what real ones cannot be made to show.
mod scripted;
/// What one request leaves behind and what it may do: the spine over real sockets.
mod spine;
/// `wardgate stdio` as a client uses it.
mod stdio;
/// Runs `tests/cases/threats/*.yaml`.
mod threats;
