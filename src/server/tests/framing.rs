//! Where a request begins and ends, how long it may take and how large it may be.

use super::*;

#[tokio::test]
async fn a_request_arrives_whole_and_the_connection_carries_the_next_one() {
    let rig = Rig::start().await;
    let mut raw = rig.connect().await;
    raw.send(post("/mcp", "{}")).await;
    let first = raw.answer().await;
    raw.send(post("/mcp/", "[1]")).await;
    let second = raw.answer().await;
    assert_eq!((first.status, second.status), (200, 200));
    let seen = second.json();
    assert_eq!(seen["verb"], "POST");
    assert_eq!(seen["host"], "localhost");
    assert_eq!(seen["path"], "/mcp", "one trailing slash is forgiven");
    assert_eq!(seen["body"], "[1]");
    assert_eq!(seen["address"], "127.0.0.1");
    assert_eq!(seen["headers"], 4, "the head came along");
    assert_eq!(second.header("x-request-id"), seen["id"].as_str());
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
    assert_eq!(second.header("connection"), Some("keep-alive"));
}

#[tokio::test]
async fn heads_that_two_parsers_may_read_differently_are_refused_and_the_connection_ends() {
    let shapes: &[(&str, String)] = &[
        ("CL and TE", crafted("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nX")),
        ("TE and CL", crafted("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n", "0\r\n\r\nX")),
        ("equal lengths", crafted("Content-Length: 2\r\nContent-Length: 2\r\n", "{}")),
        ("different lengths", crafted("Content-Length: 2\r\nContent-Length: 3\r\n", "{}")),
        ("a list of lengths", crafted("Content-Length: 2, 2\r\n", "{}")),
        ("a signed length", crafted("Content-Length: +2\r\n", "{}")),
        ("a negative length", crafted("Content-Length: -1\r\n", "{}")),
        ("a hexadecimal length", crafted("Content-Length: 0x2\r\n", "{}")),
        ("an empty length", crafted("Content-Length: \r\n", "{}")),
        ("a huge length", crafted("Content-Length: 99999999999999999999\r\n", "{}")),
        ("TE xchunked", crafted("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n")),
        ("TE list", crafted("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n")),
        ("TE identity", crafted("Transfer-Encoding: identity\r\n", "")),
        ("TE twice", crafted("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        ("TE vertical tab", crafted("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n")),
        ("space before colon", crafted("Content-Length : 2\r\n", "{}")),
        ("TE space before colon", crafted("Transfer-Encoding : chunked\r\n", "0\r\n\r\n")),
        ("folded header", crafted("X-A: b\r\n c\r\nContent-Length: 2\r\n", "{}")),
        ("folded TE", crafted("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n")),
        ("bare LF between headers", crafted("X-A: b\nContent-Length: 2\r\n", "{}")),
        ("bare CR in a value", crafted("X-A: b\rc\r\nContent-Length: 2\r\n", "{}")),
        ("NUL in a value", crafted("X-A: b\0c\r\nContent-Length: 2\r\n", "{}")),
        ("NUL in a name", crafted("X-\0A: b\r\nContent-Length: 2\r\n", "{}")),
        ("escape in a value", crafted("X-A: \x1b[31m\r\nContent-Length: 2\r\n", "{}")),
        ("a line without colon", crafted("nonsense\r\nContent-Length: 2\r\n", "{}")),
        ("an empty name", crafted(": b\r\nContent-Length: 2\r\n", "{}")),
        ("Host twice", crafted("Host: localhost\r\nContent-Length: 2\r\n", "{}")),
        ("no Host", "GET /mcp HTTP/1.1\r\nAccept: text/event-stream\r\n\r\n".to_owned()),
        ("only LF", "GET /mcp HTTP/1.1\nHost: localhost\nAccept: */*\n\n".to_owned()),
        ("HTTP/1.0", "GET /mcp HTTP/1.0\r\nHost: localhost\r\nAccept: */*\r\n\r\n".to_owned()),
        ("HTTP/1.0 kept alive", "GET /mcp HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n".to_owned()),
        ("HTTP/0.9", "GET /mcp\r\n\r\n".to_owned()),
        ("HTTP/2.0 in text", "GET /mcp HTTP/2.0\r\nHost: localhost\r\n\r\n".to_owned()),
        ("two spaces", "GET  /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned()),
        ("tab as separator", "GET\t/mcp HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned()),
        ("space in the target", "GET /m cp HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned()),
        (
            "another authority",
            "GET http://evil.example/mcp HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n".to_owned(),
        ),
        (
            "user info",
            "GET http://localhost@evil.example/mcp HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n".to_owned(),
        ),
        (
            "a body with GET",
            "GET /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nContent-Length: 2\r\n\r\n{}".to_owned(),
        ),
        (
            "chunks with GET",
            "GET /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_owned(),
        ),
        ("a malformed chunk", crafted("Transfer-Encoding: chunked\r\n", "zz\r\n{}\r\n0\r\n\r\n")),
        ("a chunk with a bare LF", crafted("Transfer-Encoding: chunked\r\n", "2\n{}\n0\n\n")),
        ("another Expect", crafted("Expect: 200-ok\r\nContent-Length: 2\r\n", "{}")),
        ("garbage", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned()),
    ];
    let mut rig = Rig::start().await;
    for (name, shape) in shapes {
        let mut raw = rig.connect().await;
        // What follows would be the smuggled request.
        raw.send(format!("{shape}GET /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n")).await;
        let answer = raw.answer().await;
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{name}");
        soon(raw.stream.shutdown()).await.unwrap();
        assert!(raw.is_closed().await, "{name}: nothing more comes");
        let refused = rig.event().await;
        assert!(
            matches!(refused, Event::Refused { rejection: Rejection::BadRequest { .. } | Rejection::BadPath, .. }),
            "{name}: {refused:?}"
        );
    }
    rig.nothing_was_served();
}

#[tokio::test]
async fn what_follows_a_request_in_the_same_packet_is_not_taken_for_the_next_one() {
    let mut rig = Rig::start().await;
    let mut raw = rig.connect().await;
    raw.send(format!("{}{}", post("/mcp", "{}"), post("/second", "{}"))).await;
    assert_eq!(raw.answer().await.status, 200);
    assert!(raw.is_closed().await);
    assert_eq!(rig.event().await, Event::Served("/mcp".into()));
    rig.nothing_was_served();
}

#[tokio::test]
async fn bytes_sent_while_a_call_runs_do_not_cancel_it() {
    let mut rig = Rig::start().await;
    let mut raw = rig.connect().await;
    raw.send(post("/gate", "{}")).await;
    assert_eq!(rig.event().await, Event::Served("/gate".into()));
    raw.send("GET").await;
    rig.spine.open.notify_one();
    assert_eq!(raw.answer().await.status, 200);
    soon(raw.stream.shutdown()).await.unwrap();
    assert!(raw.is_closed().await);
}

#[tokio::test]
async fn absolute_form_with_the_right_authority_is_the_same_request() {
    let rig = Rig::start().await;
    let answer =
        rig.ask("GET http://localhost:80/mcp?x=%41 HTTP/1.1\r\nHost: localhost:80\r\nAccept: */*\r\n\r\n").await;
    assert_eq!(answer.status, 200);
    assert_eq!((answer.json()["path"].as_str(), answer.json()["host"].as_str()), (Some("/mcp"), Some("localhost:80")));
}

#[tokio::test]
async fn chunked_bodies_of_any_size_arrive_whole() {
    let rig = Rig::start().await;
    let mut body = String::new();
    for _ in 0..200 {
        body.push_str(&format!("400;ext=1\r\n{}\r\n", "x".repeat(0x400)));
    }
    body.push_str("0\r\n\r\n");
    let mut raw = rig.connect().await;
    raw.send(crafted("Transfer-Encoding: chunked\r\n", &body)).await;
    assert_eq!(raw.answer().await.json()["bytes"], 200 * 0x400);
    raw.send(post("/mcp", &"y".repeat(3_000_000))).await;
    assert_eq!(raw.answer().await.json()["bytes"], 3_000_000);
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it_and_keeps_its_connection() {
    let rig = Rig::start().await;
    let mut raw = rig.connect().await;
    raw.send(crafted("Content-Length: 2\r\nExpect: 100-Continue\r\n", "")).await;
    assert_eq!(raw.head().await.status, 100);
    raw.send("{}").await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.json()["body"].as_str()), (200, Some("{}")));
    raw.send(post("/mcp", "{}")).await;
    assert_eq!(raw.answer().await.status, 200);
}

#[tokio::test]
async fn a_body_that_would_be_refused_is_not_asked_for() {
    let rig = Rig::start().await;
    let answer = rig.ask(crafted("Content-Length: 99999999\r\nExpect: 100-continue\r\n", "")).await;
    assert_eq!(answer.status, 413);
}

#[tokio::test]
async fn a_body_that_is_announced_too_large_is_refused_while_the_client_still_sends() {
    let mut rig = Rig::with(|config| config.admission.body_bytes_max = 1000).await;
    let mut raw = rig.connect().await;
    raw.send(crafted("Content-Length: 200000\r\n", &"x".repeat(200_000))).await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (413, Some("close")));
    raw.send("still sending").await;
    soon(raw.stream.shutdown()).await.unwrap();
    assert_eq!(soon(raw.stream.read(&mut [0])).await.unwrap(), 0, "closed, not reset");
    let expected = Event::Refused {
        rejection: Rejection::BodyTooLarge { bytes_max: 1000 },
        method: "POST".into(),
        path: "/mcp".into(),
    };
    assert_eq!(rig.event().await, expected);
}

#[tokio::test]
async fn chunks_are_counted_as_they_come() {
    let rig = Rig::with(|config| config.admission.body_bytes_max = 1000).await;
    let chunk = format!("190\r\n{}\r\n", "x".repeat(400));
    let answer = rig.ask(crafted("Transfer-Encoding: chunked\r\n", &format!("{chunk}{chunk}{chunk}"))).await;
    assert_eq!(answer.status, 413, "before the last chunk");
    let answer = rig.ask(crafted("Transfer-Encoding: chunked\r\n", &format!("{chunk}{chunk}0\r\n\r\n"))).await;
    assert_eq!(answer.json()["bytes"], 800);
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused_before_it_ends() {
    let mut rig = Rig::with(|config| config.admission.header_bytes_max = 8 * 1024).await;
    let mut raw = rig.connect().await;
    raw.send(format!("GET /mcp HTTP/1.1\r\nHost: localhost\r\nX-Long: {}", "x".repeat(100_000))).await;
    assert_eq!(raw.answer().await.status, 431);
    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    assert_eq!(rig.ask(crafted(&many, "")).await.status, 431, "too many fields");
    assert_eq!(
        rig.ask(crafted(&format!("X-Long: {}\r\nContent-Length: 2\r\n", "x".repeat(7000)), "{}")).await.status,
        200
    );
    assert!(matches!(rig.event().await, Event::Refused { rejection: Rejection::HeadersTooLarge, .. }));
}

#[tokio::test]
async fn slow_heads_and_slow_bodies_end_at_their_deadlines() {
    let mut rig = Rig::with(|config| {
        config.admission.head_timeout = Duration::from_millis(200);
        config.admission.body_timeout = Duration::from_millis(200);
        config.admission.idle_timeout = Duration::from_millis(200);
    })
    .await;
    let mut silent = rig.connect().await;
    assert!(silent.is_closed().await, "it never spoke");
    let mut slow = rig.connect().await;
    slow.send("GET /mcp HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await;
    assert_eq!(slow.answer().await.status, 400);
    let mut slow = rig.connect().await;
    slow.send(crafted("Content-Length: 10\r\n", "{")).await;
    let answer = slow.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (408, Some("close")));
    let mut idle = rig.connect().await;
    idle.send(post("/mcp", "{}")).await;
    assert_eq!(idle.answer().await.status, 200);
    assert!(idle.is_closed().await, "idle for too long");
    assert!(matches!(rig.event().await, Event::Refused { rejection: Rejection::BadRequest { .. }, .. }));
    assert!(matches!(rig.event().await, Event::Refused { rejection: Rejection::BodyTimeout, .. }));
}

#[tokio::test]
async fn a_client_that_leaves_before_its_body_is_complete_leaves_a_record() {
    let mut rig = Rig::start().await;
    let mut raw = rig.connect().await;
    raw.send(crafted("Content-Length: 10\r\n", "{")).await;
    drop(raw);
    assert!(matches!(rig.event().await, Event::Refused { rejection: Rejection::BadRequest { .. }, .. }));
}
