//! Asking an upstream for its tools: eras, pages, loops, single flight, learning.

use crate::catalog::Rule;
use crate::catalog::When;
use crate::catalog::pin::Definition;
use crate::catalog::pin::PinFile;
use crate::catalog::pins::Why;
use crate::mcp::list::ListKind;
use crate::mcp::list::Page;

use super::*;

async fn refresh(backend: &Arc<dyn Backend>) -> Result<Vec<String>, Error> {
    let catalog = backend.refresh(credential(), soon()).await?;
    let mut names: Vec<String> = catalog.tools.keys().map(|name| name.to_string()).collect();
    names.sort();
    Ok(names)
}

/// A page of `tools/list`: one tool named after the cursor, then the next cursor.
fn page(seen: &Seen, modern: bool, next: Option<&str>) -> Reaction {
    let cursor = seen.json()["params"]["cursor"].as_str().unwrap_or("first").to_owned();
    let kind = if modern { r#""resultType":"complete","ttlMs":0,"cacheScope":"private","# } else { "" };
    let next = next.map_or(String::new(), |next| format!(r#","nextCursor":"{next}""#));
    result(seen, &format!(r#"{{{kind}"tools":[{{"name":"t.{cursor}","inputSchema":{{"type":"object"}}}}]{next}}}"#))
}

fn next_of(seen: &Seen) -> Option<&'static str> {
    match seen.json()["params"]["cursor"].as_str() {
        None => Some("a"),
        Some("a") => Some("b"),
        Some(_) => None,
    }
}

#[tokio::test]
async fn a_modern_server_is_read_page_by_page() {
    let server = Server::start(|seen| page(seen, true, next_of(seen))).await;
    assert_eq!(refresh(&backend(&[&server])).await, Ok(vec!["t.a".into(), "t.b".into(), "t.first".into()]));
    let seen = server.all().await;
    assert_eq!(seen.len(), 3);
    for request in &seen {
        assert_eq!(request.headers["mcp-method"], "tools/list");
        assert_eq!(request.headers["mcp-protocol-version"], "2026-07-28");
        assert_eq!(request.json()["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"], "2026-07-28");
        assert_eq!(
            request.json()["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"],
            serde_json::json!({ "elicitation": { "form": {}, "url": {} }, "sampling": {}, "roots": {} }),
            "tools that ask are shown to who can be asked"
        );
    }
}

fn legacy(refuse: &'static (dyn Fn(&Seen) -> Reaction + Sync)) -> impl Fn(&Seen) -> Reaction + Send + Sync + 'static {
    move |seen| {
        if seen.headers.get("mcp-protocol-version").is_some_and(|version| version == "2026-07-28") {
            return refuse(seen);
        }
        let in_session = seen.headers.get("mcp-session-id").is_some_and(|session| session == "s");
        match (seen.line.split(' ').next(), seen.method().as_str(), in_session) {
            (_, "initialize", false) => {
                let body = format!(
                    r#"{{"jsonrpc":"2.0","id":{},"result":{{"protocolVersion":"2025-06-18","capabilities":{{}}}}}}"#,
                    seen.json()["id"]
                );
                Reaction::Raw(http("200 OK", "Mcp-Session-Id: s\r\nContent-Type: application/json\r\n", &body))
            }
            (_, "notifications/initialized", true) => Reaction::Raw(http("202 Accepted", "", "")),
            (_, "tools/list", true) => page(seen, false, next_of(seen)),
            (Some("DELETE"), _, true) => Reaction::Raw(http("204 No Content", "", "")),
            _ => Reaction::Raw(http("400 Bad Request", "", "")),
        }
    }
}

#[tokio::test]
async fn a_legacy_server_is_found_out_and_its_session_ended() {
    let refusals: [&'static (dyn Fn(&Seen) -> Reaction + Sync); 4] = [
        &|_| Reaction::Raw(http("400 Bad Request", "Content-Type: text/plain\r\n", "Bad Request: no session")),
        &|seen| error(seen, "400 Bad Request", -32000),
        &|seen| error(seen, "200 OK", -32601),
        // A stateless legacy server that takes everything, but never says a result's type.
        &|seen| page(seen, false, None),
    ];
    for refuse in refusals {
        let server = Server::start(legacy(refuse)).await;
        let backend = backend(&[&server]);
        assert_eq!(refresh(&backend).await, Ok(vec!["t.a".into(), "t.b".into(), "t.first".into()]));
        let lines: Vec<_> = server
            .all()
            .await
            .iter()
            .map(|seen| if seen.line.starts_with("DELETE") { "DELETE".into() } else { seen.method() })
            .collect();
        assert_eq!(
            lines,
            [
                "tools/list",
                "initialize",
                "notifications/initialized",
                "tools/list",
                "tools/list",
                "tools/list",
                "DELETE"
            ]
        );
    }
}

#[tokio::test]
async fn a_server_without_tools_has_an_empty_catalog() {
    let server = Server::start(|seen| error(seen, "404 Not Found", -32601)).await;
    assert_eq!(refresh(&backend(&[&server])).await, Ok(Vec::new()), "modern: neither tools nor initialize");
    let server = Server::start(|seen| match seen.method().as_str() {
        "initialize" => result(seen, r#"{"protocolVersion":"2025-11-25"}"#),
        "tools/list" => error(seen, "200 OK", -32601),
        _ => Reaction::Raw(http("202 Accepted", "", "")),
    })
    .await;
    assert_eq!(refresh(&backend(&[&server])).await, Ok(Vec::new()), "legacy");
}

#[tokio::test]
async fn a_modern_server_that_refuses_us_is_not_taken_for_a_legacy_one() {
    let server = Server::start(|seen| error(seen, "400 Bad Request", -32022)).await;
    assert!(matches!(refresh(&backend(&[&server])).await, Err(Error::Protocol { .. })));
    assert_eq!(server.all().await.len(), 1);
}

#[tokio::test]
async fn a_cursor_that_comes_again_ends_the_walk() {
    let server = Server::start(|seen| page(seen, true, Some("same"))).await;
    assert!(
        matches!(refresh(&backend(&[&server])).await, Err(Error::Protocol { what, .. }) if what.contains("cursor"))
    );
    assert_eq!(server.all().await.len(), 2);
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let server = Server::start(|seen| page(seen, true, Some(&COUNT.fetch_add(1, Ordering::SeqCst).to_string()))).await;
    assert!(matches!(refresh(&backend(&[&server])).await, Err(Error::Protocol { what, .. }) if what.contains("pages")));
    assert_eq!(server.all().await.len(), 100);
}

#[tokio::test]
async fn an_answer_as_events_is_read_too() {
    let server = Server::start(|seen| {
        let answer = format!(
            r#"{{"jsonrpc":"2.0","id":{},"result":{{"resultType":"complete","tools":[{{"name":"t"}}]}}}}"#,
            seen.json()["id"]
        );
        let note = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{}}"#;
        Reaction::Raw(
            [STREAM_HEAD.as_bytes(), &chunk(&format!("data: {note}\n\ndata: {answer}\n\n")), b"0\r\n\r\n"].concat(),
        )
    })
    .await;
    assert_eq!(refresh(&backend(&[&server])).await, Ok(vec!["t".into()]));
}

#[tokio::test]
async fn callers_at_one_time_share_one_fetch_and_the_next_ones_its_outcome() {
    let (feed, fed) = mpsc::unbounded_channel();
    let fed = std::sync::Mutex::new(Some(fed));
    let server = Server::start(move |_| Reaction::Feed(fed.lock().expect("lock").take().expect("asked once"))).await;
    let backend = backend(&[&server]);
    let callers: Vec<_> = (0..8)
        .map(|_| {
            tokio::spawn({
                let backend = backend.clone();
                async move { refresh(&backend).await }
            })
        })
        .collect();
    let seen = server.next().await;
    let answer = format!(
        r#"{{"jsonrpc":"2.0","id":{},"result":{{"resultType":"complete","tools":[{{"name":"t"}}]}}}}"#,
        seen.json()["id"]
    );
    feed.send(http("200 OK", "Content-Type: application/json\r\n", &answer)).expect("open");
    for caller in callers {
        assert_eq!(caller.await.expect("no panic"), Ok(vec!["t".into()]));
    }
    assert_eq!(refresh(&backend).await, Ok(vec!["t".into()]), "within the cool-down");
    assert!(server.all().await.is_empty());
}

#[tokio::test]
async fn a_failure_is_not_asked_for_again_at_once_and_leaves_the_known_catalog() {
    let server = Server::start(|_| Reaction::Raw(http("503 No", "", ""))).await;
    let backend = backend(&[&server]);
    backend.learn(&entries(r#"[{"name":"known"}]"#));
    let first = refresh(&backend).await.expect_err("down");
    assert_eq!(refresh(&backend).await, Err(first));
    assert_eq!(server.all().await.len(), 1);
    assert!(backend.catalog().tools.contains_key("known"));
}

fn entries(tools: &str) -> Vec<Entry> {
    let answer = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"tools":{tools}}}}}"#);
    Page::parse(ListKind::Tools, &answer.into()).expect("a page").entries
}

#[tokio::test]
async fn what_went_by_is_learned_and_classified() {
    let mut config = config(Transport::Http(http_config(vec![endpoint(1)])));
    let glob = globset::Glob::new("read.*").expect("a glob").compile_matcher();
    let rule = Rule { tools: glob, when: When::default(), effect: Effect::Read };
    config.effects = Effects { rules: vec![rule], trust_annotations: false };
    let backend = new(config).expect("good");
    backend.learn(&entries(r#"[{"name":"read.a"},{"name":"b","annotations":{"readOnlyHint":true}},{"name":"read.c","annotations":{"destructiveHint":true}},{"name":"b ad"}]"#));
    let catalog = backend.catalog();
    let effect = |name: &str| catalog.tools.get(name).map(|decl| decl.effect);
    assert_eq!(
        [effect("read.a"), effect("b"), effect("read.c"), effect("b ad")],
        [Some(Effect::Read), Some(Effect::Destroy), Some(Effect::Destroy), None]
    );
    assert_eq!(catalog.tools["read.a"].wire, r#"{"name":"read.a"}"#);
    backend.learn(&entries(r#"[{"name":"read.a"}]"#));
    assert!(Arc::ptr_eq(&catalog, &backend.catalog()), "nothing new, nothing changed");
    backend.learn(&entries(r#"[{"name":"read.a","annotations":{"destructiveHint":true}},{"name":"b"},{"name":"b"}]"#));
    let changed = backend.catalog();
    assert_eq!(changed.tools["read.a"].effect, Effect::Destroy);
    assert!(!changed.tools.contains_key("b"), "of two tools with one name neither is known");
    assert!(changed.tools.contains_key("read.c"), "what a page does not name stays");
}

/// What a pin file says in which these are approved as reads.
fn pins(tools: &[&str]) -> Arc<Pins> {
    let mut file = PinFile::new("b");
    let read = |tool: &&str| Definition::read(tool.as_bytes()).expect("a definition");
    file.repin(tools.iter().map(read).collect(), &Effects::default());
    for pin in file.tools.values_mut() {
        (pin.approved, pin.effect) = (true, Effect::Read);
    }
    Arc::new(Pins::new(&file).expect("pins"))
}

#[tokio::test]
async fn with_pins_only_what_was_approved_is_in_the_catalog_and_other_pins_judge_anew() {
    let mut config = config(Transport::Http(http_config(vec![endpoint(1)])));
    config.pins = Some(Pinning { file: "b.yaml".into(), pins: pins(&[r#"{"name":"a"}"#, r#"{"name":"b"}"#]) });
    let backend = new(config).expect("good");
    let state = |backend: &Arc<dyn Backend>| {
        let catalog = backend.catalog();
        let mut tools: Vec<_> = catalog.tools.values().map(|decl| (decl.name.to_string(), decl.effect)).collect();
        let mut held: Vec<_> = catalog.quarantined.iter().map(|(name, held)| (name.to_string(), held.why)).collect();
        tools.sort();
        held.sort_by(|left, right| left.0.cmp(&right.0));
        (tools, held)
    };
    let (named, read) = (str::to_owned, |name: &str| (name.to_owned(), Effect::Read));
    let list = entries(r#"[{"name":"a"},{"name":"b","title":"x"},{"name":"c"}]"#);
    backend.learn(&list);
    assert_eq!(state(&backend), (vec![read("a")], vec![(named("b"), Why::Changed), (named("c"), Why::New)]));
    let known = backend.catalog();
    backend.learn(&list);
    assert!(Arc::ptr_eq(&known, &backend.catalog()), "what is in quarantine already is not judged again");
    let [a, b, _] = &list[..] else { panic!("three") };
    assert!(known.offers(a) && !known.offers(b));
    // It changed while it was offered, and the other one is approved as it is now.
    backend.learn(&entries(r#"[{"name":"a","description":"worse"}]"#));
    assert!(state(&backend).0.is_empty());
    backend.pin(Some(pins(&[r#"{"name":"a"}"#, r#"{"title":"x","name":"b"}"#])));
    assert_eq!(state(&backend), (vec![read("b")], vec![(named("a"), Why::Changed), (named("c"), Why::New)]));
    backend.pin(None);
    assert_eq!(state(&backend).0.len(), 3, "without pins all are offered");
    assert_eq!(state(&backend).0[0].1, Effect::Destroy, "and nobody classified them");
    // Doubt is asked about only where it matters.
    backend.doubt();
    assert!(!backend.in_doubt());
    backend.pin(Some(pins(&[])));
    assert!(backend.in_doubt() && state(&backend).0.is_empty());
}

#[tokio::test]
async fn a_call_that_finds_the_catalog_old_has_it_fetched_anew() {
    let server =
        Server::start(|seen| if seen.method() == "tools/list" { page(seen, true, None) } else { result(seen, "{}") })
            .await;
    let mut config = config(Transport::Http(http_config(vec![endpoint(server.port)])));
    config.catalog_ttl = Duration::ZERO;
    let backend = new(config).expect("good");
    body(call(&backend, tool_call(Effect::Read)).await);
    assert_eq!(server.next().await.method(), "tools/call", "a catalog that nobody needed is not fetched");
    refresh(&backend).await.expect("fetched");
    assert_eq!(server.next().await.method(), "tools/list");
    // Beyond the cool-down of the first fetch.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    body(call(&backend, tool_call(Effect::Read)).await);
    let mut methods = [server.next().await.method(), server.next().await.method()];
    methods.sort();
    assert_eq!(methods, ["tools/call", "tools/list"]);
}
