//! A listener on loopback that passes bytes on as they come, in both directions, and reads them beside.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::task::JoinHandle;
use tokio::task::JoinSet;

use super::http::Talk;
use super::note::Record;
use super::note::Role;
use super::note::Side;

/// Closed, with all its connections, when it is dropped.
pub struct Tap {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Tap {
    pub async fn before(target: String, side: Side, record: Arc<Record>) -> Tap {
        Tap::at(SocketAddr::from(([127, 0, 0, 1], 0)), target, side, record).await
    }

    pub async fn at(address: SocketAddr, target: String, side: Side, record: Arc<Record>) -> Tap {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, target.clone(), side, Arc::clone(&record)));
                while connections.try_join_next().is_some() {}
            }
        });
        Tap { address, task }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: TcpStream, target: String, side: Side, record: Arc<Record>) {
    let Ok(server) = TcpStream::connect(&target).await else {
        // The nearest to a refused connection that is left.
        let _ = client.set_zero_linger();
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let talk = Arc::new(Mutex::new(Talk::new(target, side, record)));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let asked = pass(from_client, to_server, Role::Client, Arc::clone(&talk));
    let answered = pass(from_server, to_client, Role::Server, talk);
    // An error on one way ends both, as it would without a tap; an end of one way does not.
    let _ = tokio::try_join!(asked, answered);
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    writer: Role,
    talk: Arc<Mutex<Talk>>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut buffer).await?;
        // Noted before it is passed on, so that an answer cannot be noted before its question.
        talk.lock().unwrap().heard(writer, &buffer[..count]);
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
    }
}
