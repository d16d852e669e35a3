//! A listener: binds an address, accepts, caps, shakes hands, and drives each connection until it ends or is cut.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use arc_swap::ArcSwap;
use pingora::apps::ServerApp;
use pingora::protocols::TcpKeepalive;
use pingora::protocols::l4::stream::Stream;
use tokio::net::TcpListener;
use tokio::net::TcpSocket;
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::exchange::Peer;

use super::Address;
use super::Error;
use super::Listener;
use super::Spine;
use super::admit::Gate;
use super::admit::Reach;
use super::drain::Crowd;
use super::drain::raised;
use super::http::Connection;
use super::tls;
use super::tls::Terms;
use super::wire::Gauge;
use super::wire::Transport;
use super::wire::Wire;

const BACKLOG: u32 = 1024;

/// After an accept that failed for want of descriptors or memory: trying at once would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A peer that vanished without a word (a laptop that was closed) is found out by the kernel.
const KEEPALIVE: TcpKeepalive = TcpKeepalive {
    idle: Duration::from_secs(60),
    interval: Duration::from_secs(15),
    count: 4,
    #[cfg(target_os = "linux")]
    user_timeout: Duration::from_secs(60),
};

/// What all MCP connections share.
pub(super) struct Edge {
    pub(super) spine: Arc<dyn Spine>,
    pub(super) gate: Arc<ArcSwap<Gate>>,
    pub(super) crowd: Arc<Crowd>,
    /// True when everything is to be cut.
    cut: watch::Receiver<bool>,
}

impl Edge {
    pub(super) fn new(
        spine: Arc<dyn Spine>,
        gate: Arc<ArcSwap<Gate>>,
        crowd: Arc<Crowd>,
        cut: watch::Receiver<bool>,
    ) -> Edge {
        Edge { spine, gate, crowd, cut }
    }
}

/// The part of a listener that outlives its socket: what reload and shutdown speak to.
pub(super) struct Post {
    address: Address,
    label: Arc<str>,
    bound: String,
    reach: Reach,
    terms: Option<ArcSwap<Terms>>,
    /// Becomes true when the connections made under it are to finish; then a new one takes its place.
    drain: Mutex<watch::Sender<bool>>,
}

impl Post {
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn label(&self) -> &Arc<str> {
        &self.label
    }

    pub(super) fn bound(&self) -> &str {
        &self.bound
    }

    pub(super) fn reach(&self) -> Reach {
        self.reach
    }

    pub(super) fn speaks_tls(&self) -> bool {
        self.terms.is_some()
    }

    /// New handshakes follow these terms. Connections whose client proved itself under other rules are drained.
    pub(super) fn renew(&self, fresh: Terms) {
        let Some(terms) = &self.terms else { return };
        let alike = terms.load().judge_clients_like(&fresh);
        terms.store(Arc::new(fresh));
        if !alike {
            let mut drain = self.drain.lock().unwrap_or_else(PoisonError::into_inner);
            let closing = *drain.borrow();
            let old = std::mem::replace(&mut *drain, watch::Sender::new(closing));
            old.send_replace(true);
        }
    }

    /// All connections of this listener are to finish.
    pub(super) fn close(&self) {
        self.drain.lock().unwrap_or_else(PoisonError::into_inner).send_replace(true);
    }

    fn drains(&self) -> watch::Receiver<bool> {
        self.drain.lock().unwrap_or_else(PoisonError::into_inner).subscribe()
    }
}

/// A bound listener.
pub(super) struct Door {
    socket: Socket,
    post: Arc<Post>,
}

enum Socket {
    Tcp(TcpListener),
    /// The file goes when the listener does.
    Unix(UnixListener, #[expect(dead_code, reason = "held for its drop")] SocketFile),
}

impl Door {
    /// Reads the TLS files and binds.
    ///
    /// # Errors
    /// Names the address or the file.
    pub(super) async fn open(listener: &Listener) -> Result<Door, Error> {
        let terms = listener.tls.as_ref().map(tls::load).transpose()?;
        let label = listener.address.to_string();
        let failed = |cause| Error::Bind { address: label.clone(), cause };
        let (socket, bound, reach) = match &listener.address {
            Address::Tcp(address) => {
                let socket =
                    if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
                socket.set_reuseaddr(true).map_err(failed)?;
                socket.bind(*address).map_err(failed)?;
                let socket = socket.listen(BACKLOG).map_err(failed)?;
                let bound = socket.local_addr().map_err(failed)?;
                let reach = if bound.ip().to_canonical().is_loopback() { Reach::Loopback } else { Reach::Network };
                (Socket::Tcp(socket), bound.to_string(), reach)
            }
            Address::Unix(path, mode) => {
                let (socket, file) = bind_unix(path, *mode).map_err(failed)?;
                (Socket::Unix(socket, file), label.clone(), Reach::Unix)
            }
        };
        let post = Post {
            address: listener.address.clone(),
            label: label.as_str().into(),
            bound,
            reach,
            terms: terms.map(ArcSwap::from_pointee),
            drain: Mutex::new(watch::Sender::new(false)),
        };
        Ok(Door { socket, post: Arc::new(post) })
    }

    pub(super) fn post(&self) -> &Arc<Post> {
        &self.post
    }

    /// The next connection; `None` after a failure, which has been logged and waited for.
    pub(super) async fn accept(&self) -> Option<(Stream, Option<IpAddr>)> {
        let accepted: io::Result<(Stream, Option<IpAddr>)> = match &self.socket {
            Socket::Tcp(socket) => {
                socket.accept().await.map(|(stream, peer)| (stream.into(), Some(peer.ip().to_canonical())))
            }
            Socket::Unix(socket, _) => socket.accept().await.map(|(stream, _)| (stream.into(), None)),
        };
        match accepted {
            Ok((mut stream, peer)) => {
                // These fail only on a connection that is gone already.
                stream.set_nodelay().ok()?;
                stream.set_keepalive(&KEEPALIVE).ok()?;
                Some((stream, peer))
            }
            Err(error) => {
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
                    tracing::warn!(listener = &*self.post.label, "cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                None
            }
        }
    }

    /// Accepts until shutdown; the socket closes when this returns.
    pub(super) async fn welcome(self, edge: Arc<Edge>, shutdown: watch::Receiver<bool>) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = raised(&shutdown) => return,
                accepted = self.accept() => accepted,
            };
            let Some((stream, peer)) = accepted else { continue };
            let Some(presence) = edge.crowd.enter(edge.gate.load().admission.connections_max) else { continue };
            let (edge, post) = (edge.clone(), self.post.clone());
            tokio::spawn(async move {
                let cut = edge.cut.clone();
                tokio::select! {
                    biased;
                    () = raised(&cut) => {}
                    () = converse(edge, post, stream, peer) => {}
                }
                drop(presence);
            });
        }
    }
}

/// One connection, from handshake to close.
async fn converse(edge: Arc<Edge>, post: Arc<Post>, stream: Stream, address: Option<IpAddr>) {
    // Before the terms are read: a reload in between then drains this connection rather than missing it.
    let drain = post.drains();
    let (transport, certificate) = match &post.terms {
        None => (Transport::Plain(Box::new(stream)), None),
        Some(terms) => match Box::pin(tls::shake(&terms.load_full(), stream)).await {
            Ok((stream, certificate)) => (Transport::Tls(Box::new(stream)), certificate),
            Err(failure) => {
                edge.crowd.handshake_failed();
                tracing::debug!(listener = &*post.label, "no TLS session: {failure}");
                return;
            }
        },
    };
    let peer = Peer { address, listener: post.label.clone(), tls: post.speaks_tls(), certificate };
    let gate = edge.gate.load_full();
    let gauge = Gauge::new();
    let wire = Wire::new(transport, gauge.clone(), gate.admission.head_timeout, gate.admission.write_timeout);
    let connection = Arc::new(Connection::new(edge, &gate, Arc::new(peer), post.reach, gauge));
    drop(gate);
    connection.process_new(Box::new(wire), &drain).await;
}

/// Removes the socket file when the listener closes, unless a successor has put its own in place.
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// Binds beside the path and moves into place, so that the file is never there with other permissions than asked for.
fn bind_unix(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    if let Ok(there) = std::fs::symlink_metadata(path) {
        if !there.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is not a socket"));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody answers on this socket"));
        }
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push("~");
    let beside = PathBuf::from(beside);
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixListener::bind(&beside)?;
    let moved = std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(mode))
        .and_then(|()| std::fs::symlink_metadata(&beside))
        .and_then(|file| std::fs::rename(&beside, path).map(|()| file.ino()));
    match moved {
        Ok(inode) => Ok((socket, SocketFile { path: path.to_owned(), inode })),
        Err(error) => {
            drop(std::fs::remove_file(&beside));
            Err(error)
        }
    }
}
