//! Processes that take long to start, or never say a word, and what era they are taken for.

use super::super::super::discover::Shelf;
use super::super::super::speech::Speech;
use super::*;

fn impatient(script: &str, processes: Processes) -> Arc<Upstream> {
    let mut stdio = stdio(script);
    (stdio.processes, stdio.start_timeout) = (processes, Duration::from_millis(200));
    upstream_of(&stdio)
}

#[tokio::test]
async fn a_process_that_does_not_answer_its_greeting_is_ended_and_started_again_after_a_pause() {
    let asks = |method: Method| move || post("1", method, "{}", Era::Modern);
    let greetings: [(Box<dyn Fn() -> Operation>, Processes); 4] = [
        (Box::new(hello), Processes::Shared),
        (Box::new(hello), Processes::Session),
        (Box::new(asks(Method::ServerDiscover)), Processes::Shared),
        (Box::new(asks(Method::ToolsList)), Processes::Principal),
    ];
    for (greeting, processes) in greetings {
        let upstream = impatient("cat >/dev/null", processes);
        let gone = tokio::spawn({
            let (upstream, greeting) = (upstream.clone(), greeting());
            async move { ask(&upstream, greeting, None).await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert_eq!(upstream.0.state().all.len(), 1);
        if processes != Processes::Session {
            // Also when nobody waits any more.
            gone.abort();
        }
        drop(gone.await);
        all_ended(&upstream).await;
        let again = ask(&upstream, greeting(), None).await.map(drop);
        assert!(matches!(&again, Err(Error::Unavailable { what, .. }) if what.contains("started again")), "{again:?}");
    }
}

#[tokio::test]
async fn a_first_call_that_takes_long_is_not_taken_for_a_greeting() {
    let upstream = impatient(r#"read -r line; sleep 1; answer $(id "$line") '{}'; cat >/dev/null"#, Processes::Shared);
    body(ask(&upstream, modern("1", "{}"), None).await);
}

/// What a server is taken for that answers `initialize`, modern questions and legacy ones by these branches of `case`.
async fn taken_for(script: &str) -> Result<Option<Era>, Error> {
    let stdio =
        stdio(&format!(r#"{script}; while read -r line; do n=$(id "$line"); case "$line" in {BRANCHES} esac; done"#));
    let config = Arc::new(config(Transport::Stdio(stdio.clone())));
    let upstream: Arc<dyn Reach> = Arc::new(Upstream::new(&config, &stdio).expect("good"));
    let speech = Arc::new(Speech::new(None));
    let shelf = Shelf::new(&config, speech.clone()).probing_for(Duration::from_millis(100));
    let credential = Arc::new(credentials::own(&credentials::Config::None));
    let catalog = shelf.refresh(&upstream, &credential, soon()).await;
    upstream.stop().await;
    catalog.map(|catalog| {
        assert!(catalog.tools.contains_key("t"));
        speech.known()
    })
}

const BRANCHES: &str = r#"
*'"initialize"'*) greet "$n";;
*notifications/*) ;;
*2026-07-28*) new "$n";;
*tools/list*) answer "$n" '{"tools":[{"name":"t"}]}';;
"#;

const GREETS: &str = r#"greet() { answer "$1" '{"protocolVersion":"2025-06-18","capabilities":{}}'; }"#;
const REFUSES: &str =
    r#"greet() { say "{\"jsonrpc\":\"2.0\",\"id\":$1,\"error\":{\"code\":-32601,\"message\":\"no\"}}"; }"#;
const MODERN: &str = r#"new() { answer "$1" '{"resultType":"complete","tools":[{"name":"t"}]}'; }"#;
const SILENT: &str = "new() { :; }";

#[tokio::test]
async fn a_server_of_both_eras_that_starts_slowly_is_modern() {
    assert_eq!(taken_for(&format!("{GREETS}\n{MODERN}\nsleep 0.5")).await, Ok(Some(Era::Modern)));
}

#[tokio::test]
async fn a_server_that_does_not_know_the_handshake_and_starts_slowly_is_modern() {
    // The second process starts at once, the first one slowly.
    let slow_first = r#"mkdir "$DIR" 2>/dev/null && sleep 0.5"#;
    let folder = tempfile::tempdir().expect("a folder");
    let turn = folder.path().join("first");
    let slow_first = slow_first.replace("$DIR", turn.to_str().expect("UTF-8"));
    assert_eq!(taken_for(&format!("{REFUSES}\n{MODERN}\n{slow_first}")).await, Ok(Some(Era::Modern)));
}

#[tokio::test]
async fn a_server_that_is_silent_before_the_handshake_is_legacy_however_slowly_it_starts() {
    assert_eq!(taken_for(&format!("{GREETS}\n{SILENT}")).await, Ok(Some(Era::Legacy)));
    assert_eq!(taken_for(&format!("{GREETS}\n{SILENT}\nsleep 0.5")).await, Ok(Some(Era::Legacy)));
}

#[tokio::test]
async fn a_slow_refusal_of_the_modern_question_does_not_begin_the_handshake_anew() {
    let refuses = REFUSES.replace("greet()", "new()");
    assert_eq!(taken_for(&format!("{GREETS}\n{refuses}\nsleep 0.5")).await, Ok(Some(Era::Legacy)));
}
