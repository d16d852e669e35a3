//! Wardgate is a reverse-proxy gateway and sidecar for the Model Context Protocol (MCP). This page is the map.
//!
//! An agent reaches tools only through it: it finds out who is calling, decides what they may see and do, limits how
//! much, obtains the right credential for the other side, forwards, filters what comes back, and leaves one audit
//! record for every request.
//!
//! # Where to start
//!
//! [`gateway`] holds the life of one request, top to bottom, in one function. [`app`] puts the rooms together.
//! [`cli`] is what a person types.
//!
//! # The rooms, in reading order
//!
//! A room answers one question and uses only rooms above it in this list (`tests/tidy.rs` holds that).
//!
//! * words: [`secret`] (a value never shown), [`mcp`] (the protocol, pure), [`exchange`] (a request and a reply)
//! * facts: [`principal`] (who), [`catalog`] (what can be asked, and what it does)
//! * judgement, without clock or I/O: [`route`] (where does it go), [`policy`] (may they), [`filters`] (what may leave)
//! * work: [`fetch`] (our own requests), [`identity`] (who is calling), [`limits`] (how much), [`credentials`] (with
//!   what), [`backend`] (where is it done), [`audit`] (what happened), [`telemetry`] (how is it going)
//! * spine: [`gateway`] (in which order)
//! * edge: [`server`] (over which wire), [`config`] (as written, as meant), [`app`], [`cli`]
//!
//! # Invariants
//!
//! * One request, one reply, one audit record: also when a step fails, panics, or the client leaves.
//! * A [`policy::Permit`] is made only by the judgement and owns the [`catalog::Call`]: what was judged is what runs.
//! * A [`credentials::Credential`] comes from a permit, never from a request. The caller's own token is sealed at
//!   verification; only [`credentials`] can open it, to exchange it (or, for a sidecar's own server, to forward it).
//! * What goes upstream is written from our own parse, headers included: nothing of the client's is copied.
//! * A tool that is hidden and a tool that does not exist get the same bytes.
//! * Absent means no: no policy, no effect, no key, no audit: no.
//!
//! # What is absent
//!
//! `policy` does no I/O. Nothing is logged twice. No header decides anything. No middleware chain. No `unsafe`.

pub mod exchange;
pub mod mcp;
pub mod secret;

pub mod catalog;
pub mod principal;

pub mod filters;
pub mod policy;
pub mod route;

pub mod audit;
pub mod backend;
pub mod credentials;
pub mod fetch;
pub mod identity;
pub mod limits;
pub mod telemetry;

pub mod gateway;

pub mod app;
pub mod cli;
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
pub mod server;
