//! One accepted connection as pingora's sessions see it: coalesced writes, deadlines, a cap on heads, a gentle close.
//!
//! pingora times body reads and writes, but not the first bytes, not the flush of a head, not an h2 preface; it caps
//! heads at 1 MiB; and it closes with unread bytes in the socket, which resets the connection and destroys the
//! answer. All of that is done here, once for HTTP/1.1 and h2, under the session.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;
use pingora::protocols::ALPN;
use pingora::protocols::GetProxyDigest;
use pingora::protocols::GetSocketDigest;
use pingora::protocols::GetTimingDigest;
use pingora::protocols::Peek;
use pingora::protocols::Shutdown;
use pingora::protocols::SocketDigest;
use pingora::protocols::Ssl;
use pingora::protocols::TimingDigest;
use pingora::protocols::UniqueID;
use pingora::protocols::UniqueIDType;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::tls::TlsRef;
use pingora::protocols::tls::TlsStream;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::io::ReadBuf;
use tokio::time::Sleep;

/// A head and a body up to this size leave in one write (and one TLS record).
const COALESCE_BYTES: usize = 16 * 1024;

/// RFC 9113 section 3.4; also what counts as having begun to speak.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is read and dropped at most when a connection is closed on a client that is still sending.
const LINGER_BYTES: usize = 256 * 1024;
const LINGER: Duration = Duration::from_millis(500);

/// What the session's owner tells the wire and learns from it. Both live in one task, so nothing is ordered.
pub(super) struct Gauge {
    head_bytes: AtomicUsize,
    head_bytes_max: AtomicUsize,
    lingering: AtomicBool,
}

impl Gauge {
    pub(super) fn new() -> Arc<Gauge> {
        Arc::new(Gauge {
            head_bytes: AtomicUsize::new(0),
            head_bytes_max: AtomicUsize::new(usize::MAX),
            lingering: AtomicBool::new(false),
        })
    }

    /// From here on a head is read: reads fail when it is over `bytes_max` and still not complete.
    pub(super) fn expect_head(&self, bytes_max: usize) {
        self.head_bytes.store(0, Relaxed);
        self.head_bytes_max.store(bytes_max, Relaxed);
    }

    /// The head is here; bodies have limits of their own.
    pub(super) fn head_is_read(&self) {
        self.head_bytes_max.store(usize::MAX, Relaxed);
    }

    /// Has anything of the expected head arrived?
    pub(super) fn head_has_begun(&self) -> bool {
        self.head_bytes.load(Relaxed) > 0
    }

    pub(super) fn head_is_too_large(&self) -> bool {
        self.head_bytes.load(Relaxed) > self.head_bytes_max.load(Relaxed)
    }

    /// The client may still be sending: close so that it sees the answer.
    pub(super) fn linger(&self) {
        self.lingering.store(true, Relaxed);
    }

    fn read(&self, bytes: usize) {
        self.head_bytes.store(self.head_bytes.load(Relaxed).saturating_add(bytes), Relaxed);
    }
}

pub(super) enum Transport {
    Plain(Box<Stream>),
    Tls(Box<TlsStream<Stream>>),
}

pub(super) struct Wire {
    transport: Transport,
    gauge: Arc<Gauge>,
    /// Read to see which protocol it is, to be read again.
    ahead: Bytes,
    /// Written by the session, not yet by us.
    out: BytesMut,
    coalesce: bool,
    /// Bytes that have come in, counted until the client has begun to speak.
    heard: usize,
    opening: Option<Pin<Box<Sleep>>>,
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    lingering: Option<Lingering>,
}

/// After our last byte: what still comes is read and dropped until it ends, is too much or takes too long.
struct Lingering {
    until: Pin<Box<Sleep>>,
    dropped: usize,
}

impl Wire {
    pub(super) fn new(transport: Transport, gauge: Arc<Gauge>, opening: Duration, write_timeout: Duration) -> Wire {
        let h2 = matches!(&transport, Transport::Tls(tls) if matches!(tls.selected_alpn_proto(), Some(ALPN::H2)));
        Wire {
            transport,
            gauge,
            ahead: Bytes::new(),
            out: BytesMut::new(),
            coalesce: !h2, // h2 gathers frames itself
            heard: 0,
            opening: Some(Box::pin(tokio::time::sleep(opening))),
            write_timeout,
            stalled: None,
            lingering: None,
        }
    }

    /// Writes what was gathered. Says nothing about progress when there was nothing to write.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = Pin::new(&mut self.transport).poll_write(cx, &self.out);
            let written = ready!(self.unless_stalled(cx, written))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
            if self.out.is_empty() {
                self.out = BytesMut::new(); // an idle connection keeps no buffer
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Fails a write that makes no progress for `write_timeout`. The timer exists only while one is stuck.
    fn unless_stalled<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read"))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let lingering =
            self.lingering.get_or_insert_with(|| Lingering { until: Box::pin(tokio::time::sleep(LINGER)), dropped: 0 });
        let mut scratch = [0; 4 * 1024];
        while lingering.dropped < LINGER_BYTES {
            let mut scratch = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.transport).poll_read(cx, &mut scratch) {
                Poll::Ready(Ok(())) if !scratch.filled().is_empty() => lingering.dropped += scratch.filled().len(),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return lingering.until.as_mut().poll(cx),
            }
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.gauge.head_is_too_large() {
            return Poll::Ready(Err(io::Error::other("the head is too large")));
        }
        if !me.ahead.is_empty() {
            let again = me.ahead.split_to(me.ahead.len().min(buf.remaining()));
            me.gauge.read(again.len());
            buf.put_slice(&again);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut me.transport).poll_read(cx, buf);
        if result.is_ready() {
            let read = buf.filled().len() - before;
            me.gauge.read(read);
            if me.opening.is_some() {
                me.heard += read;
                if me.heard >= PREFACE.len() {
                    me.opening = None;
                }
            }
            return result;
        }
        match me.opening.as_mut().map(|opening| opening.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not speak")))
            }
            _ => Poll::Pending,
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        if me.out.len() + bytes.len() > COALESCE_BYTES {
            ready!(me.poll_drain(cx))?;
        }
        if !me.coalesce || bytes.len() >= COALESCE_BYTES {
            let written = Pin::new(&mut me.transport).poll_write(cx, bytes);
            return me.unless_stalled(cx, written);
        }
        me.out.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        ready!(me.poll_drain(cx))?;
        let flushed = Pin::new(&mut me.transport).poll_flush(cx);
        me.unless_stalled(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        ready!(me.poll_drain(cx))?;
        if me.lingering.is_none() {
            let closed = Pin::new(&mut me.transport).poll_shutdown(cx);
            ready!(me.unless_stalled(cx, closed))?;
        }
        if me.gauge.lingering.load(Relaxed) {
            ready!(me.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.coalesce {
            let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
            return self.poll_write(cx, first);
        }
        let me = self.get_mut();
        let written = Pin::new(&mut me.transport).poll_write_vectored(cx, bufs);
        me.unless_stalled(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        !self.coalesce && self.transport.is_write_vectored()
    }
}

#[async_trait]
impl Peek for Wire {
    /// Reads until it is clear whether an h2 preface is coming, and gives back what it read.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        let mut seen = 0;
        while let Some(rest) = buf.get_mut(seen..).filter(|rest| !rest.is_empty()) {
            let read = self.read(rest).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            seen += read;
            let matches = buf.iter().zip(PREFACE).take(seen).all(|(ours, theirs)| ours == theirs);
            if !matches {
                break;
            }
        }
        self.ahead = Bytes::copy_from_slice(buf.get(..seen).unwrap_or_default());
        Ok(true)
    }
}

#[async_trait]
impl Shutdown for Wire {
    async fn shutdown(&mut self) {
        drop(AsyncWriteExt::shutdown(self).await);
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

impl UniqueID for Wire {
    fn id(&self) -> UniqueIDType {
        match &self.transport {
            Transport::Plain(stream) => stream.id(),
            Transport::Tls(stream) => stream.id(),
        }
    }
}

impl Ssl for Wire {
    fn get_ssl(&self) -> Option<&TlsRef> {
        match &self.transport {
            Transport::Plain(stream) => stream.get_ssl(),
            Transport::Tls(stream) => stream.get_ssl(),
        }
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        match &self.transport {
            Transport::Plain(stream) => stream.get_ssl_digest(),
            Transport::Tls(stream) => stream.get_ssl_digest(),
        }
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        match &self.transport {
            Transport::Plain(stream) => stream.selected_alpn_proto(),
            Transport::Tls(stream) => stream.selected_alpn_proto(),
        }
    }
}

// Nobody reads these: the peer is known from the accept, and durations are measured by the spine.
impl GetTimingDigest for Wire {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Wire {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Wire {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Wire, tokio::net::UnixStream) {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let transport = Transport::Plain(Box::new(ours.into()));
        (Wire::new(transport, Gauge::new(), Duration::from_secs(10), Duration::from_secs(10)), theirs)
    }

    #[tokio::test]
    async fn a_head_and_a_small_body_leave_together() {
        let (mut wire, mut theirs) = pair();
        wire.write_all(b"head ").await.unwrap();
        assert!(theirs.try_read(&mut [0; 64]).is_err(), "not yet");
        wire.write_all(b"body").await.unwrap();
        wire.flush().await.unwrap();
        let mut read = [0; 64];
        let bytes = theirs.read(&mut read).await.unwrap();
        assert_eq!(&read[..bytes], b"head body");
        assert_eq!(wire.out.capacity(), 0, "nothing is kept");
    }

    #[tokio::test]
    async fn what_was_peeked_at_is_read_again() {
        let (mut wire, mut theirs) = pair();
        theirs.write_all(b"PRI * HTTP/1.1\r\n").await.unwrap();
        assert!(wire.try_peek(&mut [0; 24]).await.unwrap());
        let mut again = [0; 16];
        wire.read_exact(&mut again).await.unwrap();
        assert_eq!(&again, b"PRI * HTTP/1.1\r\n");
    }
}
