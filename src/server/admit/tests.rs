//! Tables of heads and what admission says to them.

use super::*;

#[track_caller]
fn framing_says(head: &str, expected: Result<&str, &str>) {
    let found = framing(head.as_bytes(), 4096).map(|target| String::from_utf8_lossy(target).into_owned());
    match (found, expected) {
        (Ok(target), Ok(expected)) => assert_eq!(target, expected),
        (Err(Rejection::BadRequest { what }), Err(expected)) => assert_eq!(what, expected),
        (found, expected) => panic!("{head:?}: {found:?} instead of {expected:?}"),
    }
}

#[test]
fn the_target_is_found_in_sound_heads_only() {
    framing_says("GET /a HTTP/1.1\r\nHost: h\r\n\r\n", Ok("/a"));
    framing_says("\r\nGET /a HTTP/1.1\r\nHost:h\r\nX: \t a\tb \r\n\r\n", Ok("/a"));
    framing_says("POST /a HTTP/1.1\r\nHost: h\r\nTRANSFER-ENCODING: Chunked\r\n\r\n", Ok("/a"));
    framing_says("GET /a HTTP/1.1\r\n\r\n", Err("no Host"));
    framing_says("GET /a HTTP/1.1\r\nHost: h\r\n\n", Err("lines must end with CRLF"));
    framing_says("GET /a HTTP/1.1\nHost: h\r\n\r\n", Err("lines must end with CRLF"));
    framing_says("\r\n\r\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n", Err("malformed request line"));
    framing_says("GET /a HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n", Err("control character in the head"));
    framing_says("GET /a HTTP/1.1\r\nHost: h\r\nX: a\x7f\r\n\r\n", Err("control character in the head"));
    framing_says("GET /a HTTP/1.1 \r\nHost: h\r\n\r\n", Err("malformed request line"));
    framing_says("GET  HTTP/1.1\r\nHost: h\r\n\r\n", Err("malformed request line"));
    framing_says("GET /a HTTP/1.1\r\nHost: h\r\nA b: c\r\n\r\n", Err("malformed header name"));
    assert_eq!(framing(&[b'x'; 5000], 4096), Err(Rejection::HeadersTooLarge));
}

#[test]
fn hosts_have_one_spelling() {
    let parse = |text: &str| Host::parse(text).map(|host| (host.name, host.authority));
    let same = |name: &str, authority: &str| Some((name.to_owned(), authority.to_owned()));
    assert_eq!(parse("Example.COM"), same("example.com", "example.com"));
    assert_eq!(parse("example.com.:0443"), same("example.com", "example.com:443"));
    assert_eq!(parse("[0:0::1]:80"), same("[::1]", "[::1]:80"));
    for bad in [
        "",
        ".",
        "a..b",
        "a b",
        "a/b",
        "a@b",
        "a:",
        "a:b",
        "a:70000",
        "a:1:2",
        "::1",
        "[::1",
        "[::1]x",
        "[v1.x]",
        "ä.example",
        "a,b",
    ] {
        let parsed = parse(bad);
        assert!(parsed.is_none(), "{bad}: {parsed:?}");
    }
}

#[test]
fn only_verified_hosts_make_an_own_origin() {
    let host = Host::parse("gateway.example:8443").unwrap();
    let open = Gate::new(&Config::default());
    assert!(open.knows_host(&host, Reach::Network));
    assert!(!open.knows_origin("https://gateway.example:8443", &host, Reach::Network), "a page may bring any name");
    let mut config = Config::default();
    config.admission.hosts = vec!["gateway.example".into()];
    let listed = Gate::new(&config);
    assert!(listed.knows_host(&host, Reach::Network));
    assert!(listed.knows_origin("https://gateway.example:8443", &host, Reach::Network));
    assert!(!listed.knows_origin("https://gateway.example", &host, Reach::Network), "another port");
    assert!(!listed.knows_origin("null", &host, Reach::Network));
    assert!(!listed.knows_host(&Host::parse("localhost").unwrap(), Reach::Network));
    assert!(listed.knows_host(&Host::parse("localhost").unwrap(), Reach::Loopback));
}

#[test]
fn behind_a_proxy_on_this_machine_the_public_name_is_right() {
    let mut config = Config::default();
    let host = Host::parse("mcp.example.com").unwrap();
    assert!(!Gate::new(&config).knows_host(&host, Reach::Loopback));
    config.admission.public_host = Some("MCP.example.com".into());
    let gate = Gate::new(&config);
    assert!(gate.knows_host(&host, Reach::Loopback));
    assert!(!gate.knows_host(&Host::parse("evil.example.com").unwrap(), Reach::Loopback));
}

#[test]
fn the_most_specific_range_decides_what_is_accepted() {
    let accepts_events = |value: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(value));
        accepts(&headers, EVENTS)
    };
    for yes in [
        "*/*",
        "text/*",
        "text/event-stream",
        "TEXT/EVENT-STREAM;q=0.001",
        "text/*;q=0, text/event-stream",
        "a/b, */*;q=0.1",
    ] {
        assert!(accepts_events(yes), "{yes}");
    }
    for no in
        ["", "text", "text/html", "*/*;q=0", "*/*, text/event-stream;q=0", "text/event-stream;q=x", "application/json"]
    {
        assert!(!accepts_events(no), "{no}");
    }
}
