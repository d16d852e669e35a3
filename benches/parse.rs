//! How long does reading take? One inbound call, one upstream answer, one list of 1,000 tools, server-sent events.

#![expect(clippy::expect_used, reason = "a measuring program may stop where it stands")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;
use std::time::SystemTime;

use bytes::Bytes;
use criterion::Criterion;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;
use wardgate::exchange::Request;
use wardgate::exchange::RequestId;
use wardgate::exchange::Verb;
use wardgate::mcp;
use wardgate::mcp::Incoming;
use wardgate::mcp::list::ListKind;
use wardgate::mcp::list::Page;

fn request(body: String) -> Request {
    Request {
        id: RequestId(1),
        verb: Verb::Post,
        host: "localhost".into(),
        path: "/mcp".into(),
        headers: http::HeaderMap::new(),
        body: body.into(),
        peer: Arc::default(),
        at: SystemTime::now(),
        started: Instant::now(),
        deadline: Instant::now(),
    }
}

/// A `tools/list` answer of about 600 bytes a tool.
fn list(tools: usize) -> Bytes {
    let tool = |number: usize| {
        let words = "Looks one thing up and says what it found. ".repeat(6);
        format!(
            r#"{{"name":"tool_{number}","description":"{words}","inputSchema":{{"type":"object","properties":{{"query":{{"type":"string","description":"What to look for"}},"limit":{{"type":"integer","minimum":1,"maximum":100}}}},"required":["query"]}},"annotations":{{"readOnlyHint":{},"destructiveHint":false}}}}"#,
            !number.is_multiple_of(10)
        )
    };
    let tools: Vec<_> = (0..tools).map(tool).collect();
    format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"tools":[{}],"ttlMs":0,"cacheScope":"public"}}}}"#, tools.join(","))
        .into()
}

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    for (name, filler) in [("call of 250 B", 100), ("call of 64 KiB", 65_000)] {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":17,"method":"tools/call","params":{{"name":"read_note","arguments":{{"id":"welcome","text":"{}"}},"_meta":{{"progressToken":3}}}}}}"#,
            "x".repeat(filler)
        );
        group.throughput(Throughput::Bytes(body.len() as u64));
        let request = request(body);
        group.bench_function(name, |bencher| bencher.iter(|| mcp::parse(black_box(&request))));
    }
    let answer = format!(
        r#"{{"jsonrpc":"2.0","id":17,"result":{{"content":[{{"type":"text","text":"{}"}}]}}}}"#,
        "y".repeat(520)
    );
    group.throughput(Throughput::Bytes(answer.len() as u64));
    group.bench_function("answer of 600 B", |bencher| bencher.iter(|| Incoming::read(black_box(answer.as_bytes()))));

    let answer = list(1000);
    let page = Page::parse(ListKind::Tools, &answer).expect("a page");
    let keep: Vec<bool> = page.entries.iter().map(|entry| entry.hints.read_only_hint == Some(true)).collect();
    group.throughput(Throughput::Bytes(answer.len() as u64));
    group.bench_function("list of 1,000 tools", |bencher| {
        bencher.iter(|| Page::parse(ListKind::Tools, black_box(&answer)))
    });
    group.bench_function("list of 1,000 tools, 900 kept", |bencher| bencher.iter(|| page.keep(black_box(&keep))));
    group.finish();
}

criterion_group!(benches, parse);
criterion_main!(benches);
