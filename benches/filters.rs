//! What do filters cost on the way out: nothing configured, nothing found, and something found in a large result.

use std::hint::black_box;

use bytes::Bytes;
use criterion::Criterion;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;
use wardgate::filters::Config;
use wardgate::filters::Filters;
use wardgate::filters::Found;
use wardgate::filters::Hidden;
use wardgate::filters::Kind;
use wardgate::filters::Place;

fn answer(paragraph: &str) -> Bytes {
    let text = paragraph.repeat(64 * 1024 / paragraph.len());
    let result = serde_json::json!({ "content": [{ "type": "text", "text": text }] });
    serde_json::json!({ "jsonrpc": "2.0", "id": 1, "result": result }).to_string().into()
}

fn filters(c: &mut Criterion) {
    let plain = answer("The quick brown fox jumps over the lazy dog, then reads the log of line 4711. ");
    let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U";
    let secret = answer(&format!("a token in a log line: {jwt}; and much else that is of no interest at all here\n"));
    let all = Config { redact: Kind::ALL.to_vec(), hidden_said: Some(Hidden::Strip), ..Config::default() };
    let cases = [
        ("default", Config::default(), &plain),
        ("nothing_found", all.clone(), &plain),
        ("tokens_found", all, &secret),
    ];
    let mut group = c.benchmark_group("filters");
    for (name, config, message) in cases {
        let Ok(filters) = Filters::new(&config) else { continue };
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_function(name, |bench| {
            bench.iter(|| filters.message(Place::Said, black_box(message), &mut Found::default()));
        });
    }
    group.finish();
}

criterion_group!(benches, filters);
criterion_main!(benches);
