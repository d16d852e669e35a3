//! The Model Context Protocol as a gateway needs it: strict JSON-RPC, eras, mirrored headers, canonical writer. Pure.

mod era;
pub mod error;
mod headers;
mod incoming;
mod jsonrpc;
pub mod list;
mod message;
pub mod meta;
pub mod object;
pub mod sse;
pub(crate) mod strict;

pub use era::Era;
pub use era::LEGACY_VERSIONS;
pub use era::MODERN_VERSIONS;
pub use headers::Binding;
pub use headers::bindings;
pub use headers::check_params;
pub use headers::mirror;
pub use headers::mirrored;
pub use incoming::Incoming;
pub use jsonrpc::Id;
pub use jsonrpc::quoted;
pub use message::Fault;
pub use message::FaultKind;
pub use message::Kind;
pub use message::Message;
pub use message::Method;
pub use message::Params;
pub use message::Reference;
pub use message::parse;
