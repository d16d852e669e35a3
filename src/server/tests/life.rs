//! How connections and calls end: clients that leave, streams, shutdown, caps, Unix sockets.

use super::*;

fn listen(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_call() {
    let mut rig = Rig::start().await;
    let mut raw = rig.connect().await;
    raw.send(post("/hang", "{}")).await;
    assert_eq!(rig.event().await, Event::Served("/hang".into()));
    drop(raw);
    assert_eq!(rig.event().await, Event::Dropped("/hang".into()));
}

#[tokio::test]
async fn events_arrive_one_by_one_and_silence_is_filled_with_comments() {
    let mut rig = Rig::with(|config| config.admission.keepalive_interval = Duration::from_millis(100)).await;
    let mut raw = rig.connect().await;
    raw.send(post("/events", "{}")).await;
    let head = raw.head().await;
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    assert_eq!(head.header("transfer-encoding"), Some("chunked"));
    assert_eq!(head.header("x-accel-buffering"), Some("no"));
    assert_eq!(head.header("cache-control"), Some("private, no-store, no-transform"));
    rig.news.send(Bytes::from_static(b"data: 1\n\n")).unwrap();
    assert_eq!(raw.chunk().await, "data: 1\n\n");
    assert_eq!(raw.chunk().await, ":\n\n");
    rig.news.send(Bytes::from_static(b"data: 2\n\n")).unwrap();
    while raw.chunk().await != "data: 2\n\n" {}
    // The stream ends, the connection goes on.
    let (news, _) = mpsc::unbounded_channel();
    drop(std::mem::replace(&mut rig.news, news));
    while !raw.chunk().await.is_empty() {}
    raw.send(post("/mcp", "{}")).await;
    assert_eq!(raw.answer().await.status, 200);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_stream() {
    let mut rig = Rig::start().await;
    let mut raw = rig.connect().await;
    raw.send(listen("/events")).await;
    assert_eq!(raw.head().await.status, 200);
    assert_eq!(rig.event().await, Event::Served("/events".into()));
    drop(raw);
    assert_eq!(rig.event().await, Event::Dropped("/events stream".into()));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_after_the_write_timeout() {
    let mut rig = Rig::with(|config| config.admission.write_timeout = Duration::from_millis(200)).await;
    let mut raw = rig.connect().await;
    raw.send(post("/big", "{}")).await;
    assert_eq!(rig.event().await, Event::Served("/big".into()));
    // Wait for the edge to give up; only then read what had been sent.
    soon(async {
        while rig.server.counts().connections > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut read = 0;
    while let Ok(more @ 1..) = soon(raw.stream.read(&mut [0; 64 * 1024])).await {
        read += more;
    }
    assert!(read < 64 * 1024 * 1024, "{read}");
}

#[tokio::test]
async fn a_stream_whose_client_does_not_read_is_ended_and_let_go() {
    let mut rig = Rig::with(|config| config.admission.write_timeout = Duration::from_millis(200)).await;
    let mut raw = rig.connect().await;
    raw.send(listen("/events")).await;
    assert_eq!(raw.head().await.status, 200);
    assert_eq!(rig.event().await, Event::Served("/events".into()));
    // More than any socket buffer takes.
    let event = Bytes::from(format!("data: {}\n\n", "x".repeat(256 * 1024)));
    for _ in 0..256 {
        rig.news.send(event.clone()).unwrap();
    }
    assert_eq!(rig.event().await, Event::Dropped("/events stream".into()));
    drop(raw);
}

#[tokio::test]
async fn at_shutdown_a_running_call_finishes_and_says_close() {
    let mut rig = Rig::start().await;
    let mut raw = rig.connect().await;
    raw.send(post("/gate", "{}")).await;
    assert_eq!(rig.event().await, Event::Served("/gate".into()));
    rig.stop.send(true).unwrap();
    // Nothing new gets in.
    soon(async { while TcpStream::connect(rig.address).await.is_ok() {} }).await;
    rig.spine.open.notify_one();
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(raw.is_closed().await);
    soon(rig.running).await.unwrap();
}

#[tokio::test]
async fn at_shutdown_idle_connections_linger_and_still_answer() {
    let rig = Rig::start().await;
    let (mut used, mut idle) = (rig.connect().await, rig.connect().await);
    for raw in [&mut used, &mut idle] {
        raw.send(post("/mcp", "{}")).await;
        assert_eq!(raw.answer().await.status, 200);
    }
    rig.stop.send(true).unwrap();
    used.send(post("/mcp", "{}")).await;
    let answer = used.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(used.is_closed().await);
    assert!(idle.is_closed().await);
    soon(rig.running).await.unwrap();
}

#[tokio::test]
async fn at_shutdown_a_stream_that_waits_for_news_ends_cleanly() {
    let mut rig = Rig::start().await;
    let mut raw = rig.connect().await;
    raw.send(listen("/events")).await;
    assert_eq!(raw.head().await.status, 200);
    rig.stop.send(true).unwrap();
    assert_eq!(raw.chunk().await, "", "the last chunk");
    assert!(raw.is_closed().await);
    assert_eq!(rig.event().await, Event::Served("/events".into()));
    assert_eq!(rig.event().await, Event::Dropped("/events stream".into()));
    soon(rig.running).await.unwrap();
}

#[tokio::test]
async fn at_shutdown_a_stream_that_answers_a_call_may_finish() {
    let mut rig = Rig::start().await;
    let mut raw = rig.connect().await;
    raw.send(post("/events", "{}")).await;
    assert_eq!(raw.head().await.status, 200);
    rig.stop.send(true).unwrap();
    soon(async { while TcpStream::connect(rig.address).await.is_ok() {} }).await;
    tokio::time::sleep(Duration::from_millis(300)).await; // longer than streams without a call live
    rig.news.send(Bytes::from_static(b"data: result\n\n")).unwrap();
    assert_eq!(raw.chunk().await, "data: result\n\n");
    let (news, _) = mpsc::unbounded_channel();
    drop(std::mem::replace(&mut rig.news, news));
    assert_eq!(raw.chunk().await, "");
    soon(rig.running).await.unwrap();
}

#[tokio::test]
async fn what_outlives_the_grace_is_cut() {
    let mut rig = Rig::with(|config| config.shutdown_grace = Duration::from_millis(200)).await;
    let mut raw = rig.connect().await;
    raw.send(post("/hang", "{}")).await;
    assert_eq!(rig.event().await, Event::Served("/hang".into()));
    rig.stop.send(true).unwrap();
    soon(rig.running).await.unwrap();
    assert_eq!(soon(rig.events.recv()).await, Some(Event::Dropped("/hang".into())));
    assert!(raw.is_closed().await);
}

#[tokio::test]
async fn connections_over_the_cap_are_closed_and_counted() {
    let rig = Rig::with(|config| config.admission.connections_max = 2).await;
    let (mut first, mut second) = (rig.connect().await, rig.connect().await);
    for raw in [&mut first, &mut second] {
        raw.send(post("/mcp", "{}")).await;
        assert_eq!(raw.answer().await.status, 200);
    }
    let mut third = rig.connect().await;
    assert!(third.is_closed().await);
    assert_eq!(rig.server.counts().connections_refused, 1);
    drop(first);
    soon(async {
        while rig.server.counts().connections > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(rig.ask(post("/mcp", "{}")).await.status, 200);
}

#[tokio::test]
async fn a_unix_socket_serves_with_its_permissions_and_goes_away() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wardgate.sock");
    // A stale socket: its owner is gone.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let address = Address::Unix(path.clone(), 0o660);
    let rig = Rig::with(|config| config.listeners[0].address = address.clone()).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let mut raw = Raw::new(tokio::net::UnixStream::connect(&path).await.unwrap());
    raw.send(post("/mcp", "{}").replace("Host: localhost", "Host: anything")).await;
    let seen = raw.answer().await.json();
    assert_eq!(seen["address"], Value::Null);
    let mut config = configuration();
    config.listeners[0].address = address;
    let second = Server::bind(&config).await.err().unwrap().to_string();
    assert!(second.contains("somebody answers") && second.contains("wardgate.sock"), "{second}");
    drop(raw);
    rig.stop.send(true).unwrap();
    soon(rig.running).await.unwrap();
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    assert!(Server::bind(&config).await.is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious", "not ours to remove");
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = configuration();
    config.listeners[0].address = Address::Tcp(taken.local_addr().unwrap());
    let error = Server::bind(&config).await.err().unwrap().to_string();
    assert!(error.contains(&taken.local_addr().unwrap().to_string()), "{error}");
}

#[tokio::test]
async fn reload_changes_admission_and_says_what_needs_a_restart() {
    let rig = Rig::start().await;
    let mut raw = rig.connect().await;
    raw.send(post("/mcp", "{}")).await;
    assert_eq!(raw.answer().await.status, 200);
    let mut config = configuration();
    config.admission.origins = vec!["https://new.example".into()];
    assert_eq!(rig.server.reload(&config).unwrap(), Vec::<String>::new());
    raw.send(post("/mcp", "{}").replace("Host:", "Origin: https://new.example\r\nHost:")).await;
    assert_eq!(raw.answer().await.status, 200, "on the same connection");
    config.listeners[0].address = Address::Tcp("127.0.0.1:1".parse().unwrap());
    config.admin = None;
    let notes = rig.server.reload(&config).unwrap();
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert!(notes[0].contains("127.0.0.1:1") && notes[1].contains("127.0.0.1:0"), "{notes:?}");
}
