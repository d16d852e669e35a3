//! `Workbench`: an MCP server on the official SDK with a few notes in memory, served in both protocol eras over HTTP.

mod notes;

use std::io;
use std::sync::Arc;

use rmcp::transport::streamable_http_server::StreamableHttpServerConfig;
use rmcp::transport::streamable_http_server::StreamableHttpService;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;

use super::loopback::Loopback;
use notes::Notes;

/// What the workbench calls itself in configurations: the backend's name.
pub const NAME: &str = "workbench";

/// A running MCP server. Dropping it closes its port.
pub struct Workbench {
    /// The MCP endpoint.
    pub url: String,
    server: Loopback,
    end_streams: Box<dyn Fn() + Send + Sync>,
}

impl Workbench {
    /// Starts on 127.0.0.1, pre-filled with three notes. Port 0: a free one.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub async fn start(port: u16) -> io::Result<Workbench> {
        let notes = Notes::prefilled();
        let config = StreamableHttpServerConfig::default().enforce_origin_validation();
        let token = config.cancellation_token.clone();
        // One desk of notes for all: the SDK asks for a handler per session and per stateless request.
        let service =
            StreamableHttpService::new(move || Ok(notes.clone()), Arc::new(LocalSessionManager::default()), config);
        let server = Loopback::start(port, |_| axum::Router::new().route_service("/mcp", service)).await?;
        let url = format!("http://{}/mcp", server.address());
        Ok(Workbench { url, server, end_streams: Box::new(move || token.cancel()) })
    }

    /// Ends sessions and open streams, then closes the port.
    pub async fn stop(&self) {
        (self.end_streams)();
        self.server.stop().await;
    }
}

#[cfg(test)]
mod tests;
