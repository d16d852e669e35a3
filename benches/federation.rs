//! What does merging cost? `tools/list` over 20 backends of 50 tools through `Gateway::serve`: warm (nothing changed, and
//! everything public), with backends of which the slowest answers after 19 ms, and with lists that are new each time, so
//! that all is read and judged again. No sockets.
#![expect(clippy::unwrap_used, reason = "a measuring program may stop where it stands")]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use criterion::Criterion;
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
use wardgate::exchange::Body;
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
use wardgate::mcp::list::Entry;
use wardgate::policy;
use wardgate::policy::Permit;
use wardgate::policy::Policy;
use wardgate::route;
use wardgate::route::MEMBER_TIMEOUT;
use wardgate::route::Names;
use wardgate::route::Route;
use wardgate::route::SEPARATOR;
use wardgate::route::Share;
use wardgate::telemetry::metrics::Metrics;

const AUDIENCE: &str = "http://bench.test";
const BACKENDS: usize = 20;
const TOOLS: usize = 50;

/// Answers every call with its list, after a while.
struct Later {
    name: Arc<str>,
    catalog: Arc<Catalog>,
    list: Bytes,
    after: Duration,
    /// How many lists were given, if each is to be another.
    given: Option<AtomicU64>,
}

impl Later {
    fn new(number: usize, scope: &str, after: Duration, new_each_time: bool) -> Later {
        let name: Arc<str> = format!("backend{number:02}").into();
        let words = "Looks one thing up and says what it found. ".repeat(9);
        let schema = json!({ "type": "object", "properties": { "query": { "type": "string" } } });
        let tool =
            |number: usize| json!({ "name": format!("tool_{number}"), "description": words, "inputSchema": schema });
        let tools: Vec<_> = (0..TOOLS).map(tool).collect();
        let result = json!({ "resultType": "complete", "tools": tools, "ttlMs": 600_000, "cacheScope": scope });
        let list = json!({ "jsonrpc": "2.0", "id": 1, "result": result }).to_string().into();
        let effect = |number: usize| if number.is_multiple_of(10) { Effect::Write } else { Effect::Read };
        let decl =
            |number: usize| Arc::new(Decl::plain(Kind::Tool, name.clone(), &format!("tool_{number}"), effect(number)));
        let tools = (0..TOOLS).map(|number| (format!("tool_{number}").into(), decl(number))).collect();
        Later {
            name: name.clone(),
            catalog: Arc::new(Catalog { tools, ..Catalog::default() }),
            list,
            after,
            given: new_each_time.then(AtomicU64::default),
        }
    }
}

#[async_trait]
impl Backend for Later {
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

    async fn call(&self, _permit: Permit, _credential: Credential, _deadline: Instant) -> Result<Answer, Error> {
        if !self.after.is_zero() {
            tokio::time::sleep(self.after).await;
        }
        let list = match &self.given {
            Some(given) => {
                let number = format!("{:09}", given.fetch_add(1, Ordering::Relaxed));
                String::from_utf8_lossy(&self.list).replacen("one thing", &number, 1).into()
            }
            None => self.list.clone(),
        };
        Ok(Answer { status: 200, session: None, content: Content::Json(list) })
    }

    fn healthy(&self) -> bool {
        true
    }
}

/// `after` of backend N is N times this.
fn gateway(issuer: &Issuer, folder: &Path, scope: &str, after: Duration, new_each_time: bool) -> Gateway {
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
    let backends: Vec<Arc<Later>> = (0..BACKENDS)
        .map(|number| Arc::new(Later::new(number, scope, after * u32::try_from(number).unwrap(), new_each_time)))
        .collect();
    let share = |backend: &Arc<Later>| Share {
        backend: backend.name.clone(),
        prefix: backend.name.to_string(),
        ..Share::default()
    };
    let names = Names::new(SEPARATOR, MEMBER_TIMEOUT, backends.iter().map(share).collect()).unwrap();
    let reached = backends.iter().map(|backend| backend.name.clone()).collect();
    let member = |backend: Arc<Later>| {
        let name = backend.name.clone();
        (
            name,
            Member {
                backend,
                credential: credentials::Source::none(),
                mode: None,
                filters: Arc::default(),
                era: None,
                fingerprint: [0; 32],
            },
        )
    };
    let route = Route {
        path: "/mcp".to_owned(),
        host: None,
        backends: reached,
        names: Some(Arc::new(names)),
        mode: None,
        old_sse: true,
    };
    let house = House {
        sealer: Arc::new(Sealer::new().unwrap()),
        tenant: None,
        tenants: Tenants::default(),
        life: Life::default(),
        identity: Arc::new(
            Identity::new(identity::Config { issuers: vec![trusted], ..identity::Config::default() }).unwrap(),
        ),
        limits: Arc::new(Limits::new(limits::Config::default()).unwrap()),
        members: backends.into_iter().map(member).collect(),
        mode: Mode::ReadOnly,
        policy: Policy::new(&policy::Config { mode: Mode::ReadOnly, grants: vec![grant], sources: Vec::new() })
            .unwrap()
            .into(),
        public_url: url::Url::parse(AUDIENCE).ok(),
        routes: route::Config { routes: vec![Arc::new(route)] },
        lists: Lists::new(),
        first_scopes: Vec::new(),
    };
    let config = audit::Config {
        sink: audit::Sink::File(folder.join(format!("audit-{scope}.jsonl"))),
        ..audit::Config::default()
    };
    let audit = Audit::open(&config).unwrap();
    Gateway::new(Arc::new(house), audit, Arc::new(Metrics::new()))
}

fn request(token: &str) -> Request {
    let mut headers = http::HeaderMap::new();
    for (name, value) in [
        ("authorization", format!("Bearer {token}")),
        ("mcp-protocol-version", "2026-07-28".to_owned()),
        ("mcp-method", "tools/list".to_owned()),
    ] {
        headers.insert(name, value.parse().unwrap());
    }
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    Request {
        id: RequestId(7),
        verb: Verb::Post,
        host: "localhost".into(),
        path: "/mcp".into(),
        headers,
        body: json!({ "jsonrpc": "2.0", "id": 9, "method": "tools/list", "params": { "_meta": meta } })
            .to_string()
            .into(),
        peer: Arc::default(),
        at: SystemTime::now(),
        started: Instant::now(),
        deadline: Instant::now() + Duration::from_secs(60),
    }
}

fn federation(criterion: &mut Criterion) {
    wardgate::server::install_crypto();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let issuer = runtime.block_on(Issuer::start(0)).unwrap();
    let token = issuer.token("bench", "mcp.read", AUDIENCE);
    let mut group = criterion.benchmark_group("federation");
    for (name, scope, after, new_each_time) in [
        ("20 backends of 50 tools, public and warm", "public", Duration::ZERO, false),
        ("20 backends of 50 tools, private and unchanged", "private", Duration::ZERO, false),
        ("the same, the slowest after 19 ms", "private-slow", Duration::from_millis(1), false),
        ("the same, new each time, the slowest after 19 ms", "private-new", Duration::from_millis(1), true),
    ] {
        let gateway = gateway(&issuer, folder.path(), scope, after, new_each_time);
        let reply = runtime.block_on(gateway.serve(request(&token)));
        assert_eq!(reply.status, 200, "{name}");
        assert!(matches!(&reply.body, Body::Full(bytes) if bytes.len() > BACKENDS * TOOLS * 300), "{name}");
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || request(&token),
                |request| runtime.block_on(gateway.serve(black_box(request))).status,
                criterion::BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, federation);
criterion_main!(benches);
