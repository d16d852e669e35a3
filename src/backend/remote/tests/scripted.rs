//! A scripted HTTP/1.1 server over any byte stream: every reaction is decided by the test, every request is kept.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use pingora::tls::TlsAcceptor;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::UnixListener;
use tokio::sync::mpsc;

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Which connection, counted from 0, and which request on it.
    pub connection: usize,
    pub turn: usize,
    pub line: String,
    pub headers: HashMap<String, String>,
    pub raw: String,
    pub body: Bytes,
}

impl Seen {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub fn method(&self) -> String {
        self.json()["method"].as_str().unwrap_or_default().to_owned()
    }
}

pub enum Reaction {
    /// Raw bytes; the connection stays open.
    Raw(Vec<u8>),
    /// Closes without a byte.
    Close,
    /// Raw bytes, then closes.
    Last(Vec<u8>),
    /// Raw bytes as the test sends them; closes when the test drops the sender.
    Feed(mpsc::UnboundedReceiver<Vec<u8>>),
    /// Says nothing until the client leaves.
    Hang,
}

type Script = dyn Fn(&Seen) -> Reaction + Send + Sync;

pub struct Server {
    pub port: u16,
    /// Requests in the order of their arrival.
    pub seen: tokio::sync::Mutex<mpsc::UnboundedReceiver<Seen>>,
    /// Connections whose client has left.
    pub left: tokio::sync::Mutex<mpsc::UnboundedReceiver<usize>>,
}

impl Server {
    pub async fn start(script: impl Fn(&Seen) -> Reaction + Send + Sync + 'static) -> Server {
        Server::start_with(None, script).await
    }

    pub async fn start_with(
        tls: Option<TlsAcceptor>,
        script: impl Fn(&Seen) -> Reaction + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (desk, server) = desk(port, script);
        tokio::spawn(async move {
            let mut count = 0;
            while let Ok((stream, _)) = listener.accept().await {
                let (desk, tls, connection) = (desk.clone(), tls.clone(), count);
                count += 1;
                tokio::spawn(async move {
                    match tls {
                        None => desk.serve(stream, connection).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                desk.serve(stream, connection).await;
                            }
                        }
                    }
                });
            }
        });
        server
    }

    pub fn start_unix(path: &Path, script: impl Fn(&Seen) -> Reaction + Send + Sync + 'static) -> Server {
        let listener = UnixListener::bind(path).expect("a socket");
        let (desk, server) = desk(0, script);
        tokio::spawn(async move {
            let mut count = 0;
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(desk.clone().serve_owned(stream, count));
                count += 1;
            }
        });
        server
    }

    pub async fn next(&self) -> Seen {
        self.seen.lock().await.recv().await.expect("the server runs")
    }

    /// All requests so far.
    pub async fn all(&self) -> Vec<Seen> {
        let mut seen = self.seen.lock().await;
        std::iter::from_fn(|| seen.try_recv().ok()).collect()
    }

    pub async fn client_left(&self) -> usize {
        self.left.lock().await.recv().await.expect("the server runs")
    }
}

struct Desk {
    script: Box<Script>,
    seen: mpsc::UnboundedSender<Seen>,
    left: mpsc::UnboundedSender<usize>,
    lock: Mutex<()>,
}

fn desk(port: u16, script: impl Fn(&Seen) -> Reaction + Send + Sync + 'static) -> (Arc<Desk>, Server) {
    let (to_seen, seen) = mpsc::unbounded_channel();
    let (to_left, left) = mpsc::unbounded_channel();
    let desk = Desk { script: Box::new(script), seen: to_seen, left: to_left, lock: Mutex::new(()) };
    (Arc::new(desk), Server { port, seen: seen.into(), left: left.into() })
}

impl Desk {
    async fn serve_owned<S: AsyncRead + AsyncWrite + Unpin>(self: Arc<Self>, stream: S, connection: usize) {
        self.serve(stream, connection).await;
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S, connection: usize) {
        let mut turn = 0;
        while let Some(seen) = read(&mut stream, connection, turn).await {
            turn += 1;
            let reaction = {
                let _one_at_a_time = self.lock.lock().expect("no panic");
                let reaction = (self.script)(&seen);
                self.seen.send(seen).ok();
                reaction
            };
            match reaction {
                Reaction::Close => return,
                Reaction::Hang => {
                    let mut rest = [0u8; 1024];
                    while stream.read(&mut rest).await.is_ok_and(|count| count > 0) {}
                    break;
                }
                Reaction::Raw(bytes) => stream.write_all(&bytes).await.expect("written"),
                Reaction::Last(bytes) => {
                    stream.write_all(&bytes).await.expect("written");
                    stream.shutdown().await.ok();
                    return;
                }
                Reaction::Feed(mut feed) => {
                    let mut rest = [0u8; 1024];
                    loop {
                        tokio::select! {
                            bytes = feed.recv() => match bytes {
                                Some(bytes) => stream.write_all(&bytes).await.expect("written"),
                                None => return,
                            },
                            count = stream.read(&mut rest) => if count.is_ok_and(|count| count > 0) { continue } else { break },
                        }
                        stream.flush().await.expect("flushed");
                    }
                    break;
                }
            }
            stream.flush().await.ok();
        }
        self.left.send(connection).ok();
    }
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S, connection: usize, turn: usize) -> Option<Seen> {
    let mut raw = Vec::new();
    while !raw.ends_with(b"\r\n\r\n") {
        raw.push(stream.read_u8().await.ok()?);
    }
    let raw = String::from_utf8(raw).expect("ASCII");
    let mut lines = raw.lines();
    let line = lines.next()?.to_owned();
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().expect("a number"))];
    stream.read_exact(&mut body).await.ok()?;
    Some(Seen { connection, turn, line, headers, raw, body: body.into() })
}

/// An answer with a length.
pub fn http(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

pub fn json(body: &str) -> Reaction {
    Reaction::Raw(http("200 OK", "Content-Type: application/json\r\n", body))
}

/// The result of the request that was seen.
pub fn result(seen: &Seen, result: &str) -> Reaction {
    json(&format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, seen.json()["id"]))
}

pub fn error(seen: &Seen, status: &str, code: i64) -> Reaction {
    let body = format!(r#"{{"jsonrpc":"2.0","id":{},"error":{{"code":{code},"message":"m"}}}}"#, seen.json()["id"]);
    Reaction::Raw(http(status, "Content-Type: application/json\r\n", &body))
}

pub const STREAM_HEAD: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

pub fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}
