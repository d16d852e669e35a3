//! The one integration binary: a real gateway on real sockets, with real upstreams, clients and referees.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

/// Calls that a person is asked about first.
mod confirm;
/// Legacy clients in front of modern upstreams.
mod door;
/// An identity provider in the shape of Entra.
mod entra;
/// Routes with several backends.
mod federation;
/// Groups that Entra's tokens leave out.
mod groups;
/// Starts a gateway with the demo's issuer and workbench behind it.
mod harness;
/// What is hidden, missing or out of date.
mod hidden;

/// What may leave of what an upstream says.
mod leaving;
/// Real MCP servers, official SDK clients, the official conformance suite.
mod live;
/// Logging in at a real OpenID provider: SDK clients, the facade, `wardgate login` and `whoami`.
mod login;
/// Every client with every server on both kinds of route.
mod matrix;
/// The stream of news of legacy sessions in front of modern backends.
mod news;
/// Acting on behalf of callers.
mod obo;
/// Clients of HTTP+SSE.
mod old;
/// Tools that change after they were approved.
mod pins;
/// What the program does for a person: `demo --tour`, `check`, `front`, `audit verify`, signals and reload.
mod program;
/// Proofs beyond the token: DPoP, certificates.
mod proof;
/// What no request can do: policies put to a real solver.
#[cfg(feature = "prove")]
mod prove;
/// A real OpenID provider that exchanges tokens, hangs, goes away and comes back with other keys.
mod provider;
/// Judges what the gateway writes by the protocol's own schemas.
mod referee;
/// Every revision on both sides, and every kind of message.
mod revisions;
/// An upstream that lies, for what real ones cannot be made to show.
mod scripted;
/// Limits that replicas share, on real stores; fair lines.
mod shared;
/// What one request leaves behind and what it may do: the spine over real sockets.
mod spine;
/// `wardgate stdio` as a client uses it.
mod stdio;
/// Tool calls that are answered later.
mod tasks;
/// Many tenants behind one gateway.
mod tenants;
/// Runs `tests/cases/threats/*.yaml`.
mod threats;
/// HashiCorp Vault as a built-in backend, against a real OpenBao.
mod vault;
