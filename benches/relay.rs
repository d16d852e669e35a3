//! What does the spine itself cost? Requests through `Gateway::serve` with everything on and a backend that answers at
//! once: no sockets. A filtered list of 1,000 tools stands beside the same bytes relayed unfiltered.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a measuring program may stop where it stands")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use criterion::Criterion;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;
use serde_json::json;
use wardgate::audit;
use wardgate::audit::Audit;
use wardgate::backend::Answer;
use wardgate::backend::Backend;
use wardgate::backend::Content;
use wardgate::backend::Error;
use wardgate::catalog::Catalog;
use wardgate::catalog::Decl;
use wardgate::catalog::Effect;
use wardgate::catalog::Kind;
use wardgate::catalog::Mode;
use wardgate::credentials;
use wardgate::credentials::Credential;
use wardgate::demo::issuer::Issuer;
use wardgate::exchange::Request;
use wardgate::exchange::RequestId;
use wardgate::exchange::Verb;
use wardgate::gateway::Gateway;
use wardgate::gateway::House;
use wardgate::gateway::Life;
use wardgate::gateway::Lists;
use wardgate::gateway::Member;
use wardgate::gateway::Sealer;
use wardgate::gateway::Tenants;
use wardgate::identity;
use wardgate::identity::Identity;
use wardgate::limits;
use wardgate::limits::Limits;
use wardgate::mcp::Era;
use wardgate::mcp::Method;
use wardgate::mcp::list::Entry;
use wardgate::mcp::sse::Event;
use wardgate::mcp::sse::Parser;
use wardgate::policy;
use wardgate::policy::Permit;
use wardgate::policy::Policy;
use wardgate::route;
use wardgate::route::Route;
use wardgate::telemetry::metrics::Metrics;

const AUDIENCE: &str = "http://bench.test";
const TOOLS: usize = 1_000;

/// Answers at once, from memory.
struct Instantly {
    name: Arc<str>,
    catalog: Arc<Catalog>,
    list: Bytes,
    small: Bytes,
    big: Bytes,
}

impl Instantly {
    fn new() -> Instantly {
        let name: Arc<str> = "bench".into();
        let words = "Looks one thing up and says what it found. ".repeat(9);
        let tool = |number: usize| json!({ "name": format!("tool_{number}"), "description": words, "inputSchema": { "type": "object", "properties": { "query": { "type": "string" } } } });
        let tools: Vec<_> = (0..TOOLS).map(tool).collect();
        let list =
            json!({ "jsonrpc": "2.0", "id": 1, "result": { "tools": tools, "ttlMs": 0, "cacheScope": "public" } })
                .to_string();
        let text = |length: usize| {
            json!({ "jsonrpc": "2.0", "id": 1, "result": { "content": [{ "type": "text", "text": "z".repeat(length) }] } }).to_string()
        };
        let effect = |number: usize| if number.is_multiple_of(10) { Effect::Write } else { Effect::Read };
        let decl =
            |number: usize| Arc::new(Decl::plain(Kind::Tool, name.clone(), &format!("tool_{number}"), effect(number)));
        let tools = (0..TOOLS).map(|number| (format!("tool_{number}").into(), decl(number))).collect();
        let big = text(list.len());
        Instantly {
            name: name.clone(),
            catalog: Arc::new(Catalog { tools, ..Catalog::default() }),
            list: list.into(),
            small: text(500).into(),
            big: big.into(),
        }
    }
}

#[async_trait]
impl Backend for Instantly {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn catalog(&self) -> Arc<Catalog> {
        self.catalog.clone()
    }

    async fn refresh(&self, _credential: Credential, _deadline: Instant) -> Result<Arc<Catalog>, Error> {
        Ok(self.catalog.clone())
    }

    fn era(&self) -> Option<Era> {
        None
    }

    async fn speaks(&self, _: Credential, _: Instant) -> Result<Era, Error> {
        Ok(Era::Modern)
    }

    fn learn(&self, _tools: &[Entry]) {}

    async fn call(&self, permit: Permit, _credential: Credential, _deadline: Instant) -> Result<Answer, Error> {
        let message = permit.call().message();
        let body = match message.and_then(|message| message.method) {
            Some(Method::ToolsList) => &self.list,
            _ if permit.call().decl.name.as_ref() == "tool_7" => &self.big,
            _ => &self.small,
        };
        Ok(Answer { status: 200, session: None, content: Content::Json(body.clone()) })
    }

    fn healthy(&self) -> bool {
        true
    }
}

fn gateway(issuer: &Issuer, folder: &std::path::Path) -> Gateway {
    let jwks = folder.join("jwks.json");
    std::fs::write(&jwks, issuer.jwks().to_string()).unwrap();
    let trusted = identity::Issuer {
        issuer: issuer.url.clone(),
        audiences: vec![AUDIENCE.to_owned()],
        keys: identity::Keys::File(jwks),
        algorithms: vec![jsonwebtoken::Algorithm::ES256],
        leeway: Duration::from_secs(30),
        tenant_claims: Vec::new(),
        groups_claim: "groups".to_owned(),
        certificate_bound: identity::Demand::Optional,
        dpop: identity::Demand::Optional,
    };
    let grant =
        policy::Grant { scope: Some("mcp.read".to_owned()), allow: vec![Effect::Read], ..policy::Grant::default() };
    let backend = Arc::new(Instantly::new());
    let name = backend.name.clone();
    let member = Member {
        backend,
        credential: credentials::Source::none(),
        mode: None,
        filters: Arc::default(),
        era: None,
        fingerprint: [0; 32],
    };
    let rate = Some(limits::Rate { calls: 1_000_000_000.try_into().unwrap(), period: Duration::from_secs(1) });
    let house = House {
        identity: Arc::new(
            Identity::new(identity::Config { issuers: vec![trusted], ..identity::Config::default() }).unwrap(),
        ),
        limits: Arc::new(
            Limits::new(limits::Config {
                principal: limits::Bound { calls: rate, concurrent: 1_000.try_into().ok(), ..limits::Bound::default() },
                ..limits::Config::default()
            })
            .unwrap(),
        ),
        members: [(name.clone(), member)].into(),
        mode: Mode::ReadOnly,
        policy: Policy::new(&policy::Config { mode: Mode::ReadOnly, grants: vec![grant], sources: Vec::new() })
            .unwrap_or_else(|_| unreachable_policy())
            .into(),
        public_url: url::Url::parse(AUDIENCE).ok(),
        routes: route::Config {
            routes: vec![Arc::new(Route {
                path: "/mcp".to_owned(),
                host: None,
                backends: vec![name],
                names: None,
                mode: None,
                old_sse: true,
            })],
        },
        lists: Lists::new(),
        first_scopes: Vec::new(),
        sealer: Arc::new(Sealer::new().unwrap()),
        tenant: None,
        tenants: Tenants::default(),
        life: Life::default(),
    };
    let audit =
        Audit::open(&audit::Config { sink: audit::Sink::File(folder.join("audit.jsonl")), ..audit::Config::default() })
            .unwrap();
    Gateway::new(Arc::new(house), audit, Arc::new(Metrics::new()))
}

#[expect(clippy::panic, reason = "the policy above is a constant")]
fn unreachable_policy() -> Policy {
    panic!("the benchmark's policy does not load")
}

fn request(token: &str, method: &str, tool: Option<&str>) -> Request {
    let params =
        tool.map_or_else(|| json!({}), |tool| json!({ "name": tool, "arguments": { "query": "what is new" } }));
    let mut headers = http::HeaderMap::new();
    headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    Request {
        id: RequestId(7),
        verb: Verb::Post,
        host: "localhost".into(),
        path: "/mcp".into(),
        headers,
        body: json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string().into(),
        peer: Arc::default(),
        at: SystemTime::now(),
        started: Instant::now(),
        deadline: Instant::now() + Duration::from_secs(60),
    }
}

fn relay(criterion: &mut Criterion) {
    wardgate::server::install_crypto();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let issuer = runtime.block_on(Issuer::start(0)).unwrap();
    let gateway = gateway(&issuer, folder.path());
    let token = issuer.token("bench", "mcp.read", AUDIENCE);
    let mut group = criterion.benchmark_group("relay");
    for (name, method, tool) in [
        ("a call", "tools/call", Some("tool_1")),
        ("a list of 1,000 tools, filtered", "tools/list", None),
        ("the same size, unfiltered", "tools/call", Some("tool_7")),
    ] {
        let status = runtime.block_on(gateway.serve(request(&token, method, tool))).status;
        assert_eq!(status, 200, "{name}");
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || request(&token, method, tool),
                |request| runtime.block_on(gateway.serve(black_box(request))).status,
                criterion::BatchSize::SmallInput,
            );
        });
    }
    let events: Bytes = (0..100).map(|number| format!("id: {number}\ndata: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{{\"progress\":{number}}}}}\n\n")).collect::<String>().into();
    group.throughput(Throughput::Bytes(events.len() as u64));
    group.bench_function("100 events, read and written", |bencher| {
        bencher.iter(|| {
            let mut parsed = std::collections::VecDeque::new();
            Parser::new(64 * 1024).feed(black_box(&events), &mut parsed).expect("small events");
            parsed.iter().map(Event::to_bytes).map(|bytes| bytes.len()).sum::<usize>()
        });
    });
    group.finish();
}

criterion_group!(benches, relay);
criterion_main!(benches);
