//! `Loopback`: an axum router served on 127.0.0.1 until it is stopped; what the demo's issuer and workbench stand on.

use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How long running answers may go on after `stop`, before they are cut off.
const STOP_GRACE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Loopback {
    address: SocketAddr,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    quit: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Loopback {
    /// Serves the router on 127.0.0.1. Port 0: a free one. `router` is told the address before the first request.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub(super) async fn start(port: u16, router: impl FnOnce(SocketAddr) -> axum::Router) -> io::Result<Loopback> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let router = router(address);
        let (quit, asked_to_quit) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let until = async move {
                // A dropped sender means the same as a sent word: nobody holds this server any more.
                let _: Result<(), oneshot::error::RecvError> = asked_to_quit.await;
            };
            if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(until).await {
                tracing::warn!(%address, %error, "demo server ended");
            }
        });
        Ok(Loopback { address, running: Mutex::new(Some(Running { quit, task })) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port and idle connections, and waits for running answers, but not for ever.
    pub(super) async fn stop(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { quit, mut task }) = running else { return };
        drop(quit);
        if tokio::time::timeout(STOP_GRACE, &mut task).await.is_err() {
            task.abort();
        }
    }
}
