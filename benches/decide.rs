//! What does a decision cost: remembered, fresh, dependent on arguments; and a list of a thousand tools?
#![expect(clippy::expect_used, reason = "a measuring program may stop where it stands")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use criterion::BatchSize;
use criterion::Criterion;
use criterion::criterion_group;
use criterion::criterion_main;
use wardgate::catalog::Action;
use wardgate::catalog::Call;
use wardgate::catalog::Decl;
use wardgate::catalog::Effect;
use wardgate::catalog::Kind;
use wardgate::catalog::Mode;
use wardgate::catalog::Operation;
use wardgate::mcp;
use wardgate::policy::Config;
use wardgate::policy::Context;
use wardgate::policy::Grant;
use wardgate::policy::Known;
use wardgate::policy::Policy;
use wardgate::principal::Claims;
use wardgate::principal::Principal;

/// 50 grants are 100 policies: each lowers to one for its tools and one for its backends.
const GRANTS: usize = 50;

fn policy(source: &str) -> Policy {
    let grant = |number: usize| Grant {
        scope: Some(format!("scope-{number}")),
        allow: vec![Effect::Read, Effect::Write],
        tools: vec!["vault/kv.*".into(), "git/*".into()],
        ..Grant::default()
    };
    let sources = vec![("bench.cedar".to_owned(), source.to_owned())];
    Policy::new(&Config { mode: Mode::Full, grants: (0..GRANTS).map(grant).collect(), sources })
        .expect("policies that load")
}

fn caller(number: u64) -> Principal {
    Principal::verified(Claims {
        subject: format!("user-{number}"),
        issuer: "https://idp.example.com".into(),
        scopes: ["scope-3".to_owned(), "scope-30".to_owned(), "openid".to_owned()].into(),
        ..Claims::default()
    })
}

fn tool(name: &str) -> Arc<Decl> {
    Arc::new(Decl::plain(Kind::Tool, "vault".into(), name, Effect::Write))
}

fn call(decl: &Arc<Decl>) -> Call {
    let arguments =
        Bytes::from_static(br#"{"namespace":"dev","path":"secret/app","replicas":3,"labels":{"team":"a"}}"#);
    let message = mcp::Message {
        kind: mcp::Kind::Request { id: mcp::Id::number(1) },
        method: Some(mcp::Method::ToolsCall),
        era: mcp::Era::Modern,
        params: mcp::Params { arguments: Some(arguments), ..mcp::Params::default() },
        outcome: None,
    };
    Call {
        action: Action::Call,
        effect: decl.effect,
        decl: decl.clone(),
        operation: Operation::Post(message),
        session: None,
        version: None,
    }
}

fn decide(criterion: &mut Criterion) {
    let context = Context {
        mode: Mode::Full,
        ip: Some([10, 0, 0, 7].into()),
        mtls: false,
        now: UNIX_EPOCH + Duration::from_secs(1_785_240_000),
    };
    let plain = policy("");
    let timed = policy(
        r#"forbid (principal, action, resource) when { context.args has namespace && context.args.namespace == "production" };"#,
    );
    let alice = caller(0);
    let decl = tool("kv.put");
    let decls: Vec<Arc<Decl>> = (0..1000).map(|number| tool(&format!("kv.tool-{number}"))).collect();
    let mut next = 1;
    let mut stranger = || {
        next += 1;
        caller(next)
    };

    criterion.bench_function("decide/remembered", |b| {
        b.iter_batched(
            || call(&decl),
            |call| black_box(plain.authorize(&alice, call, &context)),
            BatchSize::SmallInput,
        );
    });
    criterion.bench_function("decide/remembered, as a list asks", |b| {
        b.iter(|| black_box(plain.lists(&alice, &decl, &context)))
    });
    criterion.bench_function("decide/fresh principal, 100 policies", |b| {
        b.iter_batched(
            || (stranger(), call(&decl)),
            |(who, call)| black_box(plain.authorize(&who, call, &context)),
            BatchSize::SmallInput,
        );
    });
    let mut number = 0;
    criterion.bench_function("decide/fresh tool, 100 policies", |b| {
        let setup = || {
            number += 1;
            call(&tool(&format!("kv.{number}")))
        };
        b.iter_batched(setup, |call| black_box(plain.authorize(&alice, call, &context)), BatchSize::SmallInput);
    });
    criterion.bench_function("decide/on its arguments, 101 policies", |b| {
        b.iter_batched(
            || call(&decl),
            |call| black_box(timed.authorize(&alice, call, &context)),
            BatchSize::SmallInput,
        );
    });
    let mut lists = criterion.benchmark_group("list of 1,000 tools");
    lists.sample_size(20);
    lists.bench_function("new principal", |b| {
        b.iter_batched(&mut stranger, |who| black_box(plain.list(&who, &decls, &context)), BatchSize::SmallInput);
    });
    lists.bench_function("seen principal", |b| b.iter(|| black_box(plain.list(&alice, &decls, &context))));
    lists.bench_function("seen principal, dependent on arguments", |b| {
        b.iter(|| black_box(timed.list(&alice, &decls, &context)))
    });
    lists.bench_function("new principal, dependent on arguments", |b| {
        b.iter_batched(&mut stranger, |who| black_box(timed.list(&who, &decls, &context)), BatchSize::SmallInput);
    });
    // Nobody like them was asked about before: every tool is judged.
    lists.bench_function("first principal of all", |b| {
        b.iter_batched(|| policy(""), |fresh| black_box(fresh.list(&alice, &decls, &context)), BatchSize::SmallInput);
    });
    lists.finish();
    load(criterion);
}

/// A policy that reads arguments, held to each of a thousand tools with arguments of their own.
fn load(criterion: &mut Criterion) {
    let schema = |number: usize| {
        format!(
            r#"{{"inputSchema":{{"type":"object","properties":{{"namespace":{{"type":"string"}},"n{number}":{{"type":"integer"}}}}}}}}"#
        )
    };
    let decls: Vec<Arc<Decl>> = (0..1000)
        .map(|number| {
            let plain = Decl::plain(Kind::Tool, "vault".into(), &format!("kv.tool-{number}"), Effect::Write);
            Arc::new(Decl { wire: schema(number).into(), ..plain })
        })
        .collect();
    let known = Known::new([("vault".into(), Some(decls))]);
    let text = r#"forbid (principal, action == Action::"call", resource) when { context.args has namespace && context.args.namespace == "production" };"#;
    let sources = vec![("bench.cedar".to_owned(), text.to_owned())];
    let config = Config { mode: Mode::Full, sources, ..Config::default() };
    let mut group = criterion.benchmark_group("load");
    group.sample_size(10);
    group.bench_function("a policy held to 1,000 tools", |b| {
        b.iter(|| black_box(Policy::over(&config, &known).map_err(|errors| errors.len())));
    });
    group.finish();
}

criterion_group!(benches, decide);
criterion_main!(benches);
