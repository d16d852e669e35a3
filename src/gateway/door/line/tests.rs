//! What a line keeps, for whom, and what gives way.

use super::*;

fn message(text: &str) -> Passing {
    Passing::Message(Event::message(Bytes::copy_from_slice(text.as_bytes())))
}

fn answer(bytes: usize) -> Passing {
    Passing::Answer { event: Event::message(vec![b'x'; bytes].into()), error_code: None, hidden: 0 }
}

fn shelves() -> Shelves {
    [Shelf::of_a_session(), Shelf::of_the_process()]
}

fn on(shelves: &Shelves, version: &str) -> Arc<Line> {
    Line::new("s".into(), Some(&Id::number(7)), version, Mark::default(), shelves)
}

fn line(version: &str) -> Arc<Line> {
    on(&shelves(), version)
}

async fn next(stream: &mut BoxStream<'static, Passing>) -> (Option<String>, String) {
    match stream.next().await {
        Some(Passing::Message(event) | Passing::Answer { event, .. }) => {
            (event.id, String::from_utf8(event.data.unwrap_or_default().to_vec()).expect("text"))
        }
        Some(Passing::End(how)) => (None, how.to_owned()),
        Some(Passing::Fail(rejection)) => (None, rejection.words()),
        None => (None, "nothing".into()),
    }
}

fn id(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[tokio::test]
async fn a_client_that_comes_back_gets_what_it_missed_and_then_the_rest() {
    let line = line("2025-11-25");
    let mut first = line.answer();
    assert_eq!(next(&mut first).await, (id("s-0"), String::new()), "the priming event");
    line.push(message("a")).await;
    assert_eq!(next(&mut first).await, (id("s-1"), "a".into()));
    line.push(message("b")).await;
    drop(first);
    line.push(message("c")).await;
    let mut again = line.replay(1);
    assert_eq!(next(&mut again).await, (id("s-2"), "b".into()));
    assert_eq!(next(&mut again).await, (id("s-3"), "c".into()));
    line.end(Passing::End("streamed"));
    assert_eq!(next(&mut again).await, (None, "streamed".into()));
    assert_eq!(next(&mut again).await, (None, "nothing".into()));
}

#[tokio::test]
async fn a_failure_is_an_answer_for_whoever_comes_back() {
    let line = line("2025-11-25");
    line.end(Passing::Fail(Rejection::Internal));
    let (_, text) = next(&mut line.replay(0)).await;
    assert!(text.starts_with(r#"{"jsonrpc":"2.0","id":7,"error":{"#), "{text}");
}

#[tokio::test]
async fn a_panic_of_the_writer_ends_the_line_with_an_internal_error() {
    let line = line("2025-11-25");
    let mut reader = line.answer();
    next(&mut reader).await;
    let writing = async {
        line.push(message("a")).await;
        panic!("a bug")
    };
    line.end(total(writing).await);
    assert_eq!(next(&mut reader).await.1, "a");
    assert_eq!(next(&mut reader).await, (None, Rejection::Internal.words()));
    assert_eq!(next(&mut reader).await.1, "nothing");
}

#[tokio::test]
async fn a_second_reader_takes_over_from_the_first() {
    let line = line("2025-06-18");
    let mut first = line.answer();
    line.push(message("a")).await;
    let mut second = line.answer();
    assert_eq!(next(&mut second).await, (id("s-0"), "a".into()), "no priming event before 2025-11-25");
    assert_eq!(next(&mut first).await, (None, "resumed".into()));
}

#[tokio::test]
async fn without_a_reader_the_oldest_events_give_way() {
    let line = line("2024-11-05");
    drop(line.answer());
    for number in 0..EVENTS_MAX + 10 {
        line.push(message(&number.to_string())).await;
    }
    let mut late = line.answer();
    assert_eq!(next(&mut late).await, (None, "10".into()), "no ids before 2025-03-26");
    drop(late);
    for _ in 0..3 {
        line.push(message(&"x".repeat(BYTES_MAX / 2))).await;
    }
    let kept = line.state().bytes;
    assert!(kept <= BYTES_MAX, "{kept}");
    let shelves = line.shelves.clone();
    assert!(shelves.iter().all(|shelf| shelf.bytes.load(Relaxed) == kept));
    drop(line);
    assert!(shelves.iter().all(|shelf| shelf.bytes.load(Relaxed) == 0 && shelf.lines().is_empty()));
}

#[tokio::test]
async fn answers_that_nobody_reads_are_bounded_per_session_and_the_oldest_give_way() {
    const ANSWER: usize = 4 * 1024 * 1024;
    let shelves = shelves();
    let lines: Vec<_> = (0..16).map(|_| on(&shelves, "2025-06-18")).collect();
    for line in &lines {
        drop(line.answer());
        line.end(answer(ANSWER));
    }
    let kept = shelves[0].bytes.load(Relaxed);
    assert!(kept <= SESSION_BYTES_MAX, "{kept}");
    assert_eq!(kept, lines.iter().map(|line| line.state().bytes).sum::<usize>(), "nothing is counted twice");
    let (name, newest) = next(&mut lines[15].replay(u64::MAX - 1)).await;
    assert_eq!((name, newest.as_str()), (None, "nothing"), "a number from the future");
    let (_, newest) = next(&mut lines[15].answer()).await;
    assert_eq!(newest.len(), ANSWER, "the newest is there");
    let mut back = lines[0].answer();
    let (name, text) = next(&mut back).await;
    assert_eq!(name, id("s-0"), "the event keeps its id");
    let told: serde_json::Value = serde_json::from_str(&text).expect("json");
    assert_eq!((told["id"].as_u64(), told["error"]["message"].as_str()), (Some(7), Some(NOT_KEPT)));
    assert_eq!(next(&mut back).await.1, "nothing");
}

#[tokio::test]
async fn all_sessions_together_are_bounded_and_who_reads_loses_nothing() {
    let process = Shelf::new(1000);
    let line = |text: &str| {
        let shelves = [Shelf::of_a_session(), process.clone()];
        Line::new(text.into(), Some(&Id::number(1)), "2025-06-18", Mark::default(), &shelves)
    };
    let (read, left, late) = (line("read"), line("left"), line("late"));
    let mut reader = read.answer();
    drop(left.answer());
    drop(late.answer());
    read.push(message(&"r".repeat(400))).await;
    left.push(message(&"l".repeat(200))).await;
    late.push(message("small")).await;
    late.push(message("smaller")).await;
    assert!(process.bytes.load(Relaxed) <= 1000);
    assert_eq!(left.since(0), (Vec::new(), true), "the oldest that nobody reads");
    assert_eq!(left.state().first, 1);
    assert_eq!(next(&mut reader).await.1.len(), 400, "what is about to be read stays");
    assert_eq!(next(&mut late.answer()).await.1, "small");
    drop(reader);
    late.push(message(&"x".repeat(500))).await;
    assert_eq!(read.state().first, 1, "it has been read");
}

#[tokio::test]
async fn a_line_that_nobody_can_find_keeps_nothing() {
    let line = line("2025-06-18");
    let mut reader = line.answer();
    line.push(message("a")).await;
    line.push(message("b")).await;
    line.hide();
    assert_eq!(next(&mut reader).await.1, "a");
    assert_eq!(next(&mut reader).await.1, "b");
    drop(reader);
    line.push(message("c")).await;
    assert_eq!(line.state().bytes, 0);
}

#[tokio::test]
async fn equal_news_that_wait_for_a_reader_are_one() {
    let line = line("2025-06-18");
    let mut reader = line.answer();
    let changed = |text: &'static str| Bytes::from_static(text.as_bytes());
    line.push_once(changed("tools")).await;
    assert_eq!(next(&mut reader).await.1, "tools");
    drop(reader);
    for text in ["tools", "prompts", "tools", "prompts", "tools"] {
        line.push_once(changed(text)).await;
    }
    let missed = vec![changed("tools"), changed("prompts")];
    assert_eq!(line.since(0), (missed.clone(), true), "read before is not read since");
    for number in 0..EVENTS_MAX {
        line.push(message(&number.to_string())).await;
    }
    assert!(!line.since(0).1, "what gave way is missing");
}

#[tokio::test]
async fn the_writer_waits_for_a_slow_reader() {
    let line = line("2025-06-18");
    let mut reader = line.answer();
    for _ in 0..UNREAD_MAX {
        line.push(message("x")).await;
    }
    let mut push = Box::pin(line.push(message("one more")));
    assert!(futures_util::poll!(&mut push).is_pending());
    next(&mut reader).await;
    push.await;
}

#[tokio::test(start_paused = true)]
async fn a_line_is_abandoned_only_when_nobody_reads_it() {
    let line = line("2025-06-18");
    let reader = line.answer();
    let mut waiting = Box::pin(line.abandoned(Duration::ZERO));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(reader);
    waiting.await;
}
