//! What does a credential cost a call: a fixed secret against a token that was got for this caller and is remembered?
#![expect(clippy::expect_used, reason = "a measuring program may stop where it stands")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use criterion::Criterion;
use criterion::criterion_group;
use criterion::criterion_main;
use url::Url;
use wardgate::catalog::Action;
use wardgate::catalog::Call;
use wardgate::catalog::Decl;
use wardgate::catalog::Effect;
use wardgate::catalog::Kind;
use wardgate::catalog::Mode;
use wardgate::catalog::Operation;
use wardgate::credentials;
use wardgate::credentials::Client;
use wardgate::credentials::Config;
use wardgate::credentials::Grant;
use wardgate::credentials::Minted;
use wardgate::credentials::Place;
use wardgate::credentials::Proof;
use wardgate::credentials::Source;
use wardgate::policy;
use wardgate::policy::Permit;
use wardgate::policy::Policy;
use wardgate::principal::Claims;
use wardgate::principal::Principal;
use wardgate::secret::Secret;

/// As long as Entra's: 2 KiB.
const TOKEN_BYTES: usize = 2048;

/// A token endpoint that gives everybody the same.
fn endpoint() -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/token", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = vec![0; 64 * 1024];
            let _ = stream.read(&mut request).expect("a request");
            let token = "t".repeat(TOKEN_BYTES);
            let body = format!(r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":3600}}"#);
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).expect("written");
        }
    });
    Url::parse(&url).expect("a URL")
}

fn permit() -> Permit {
    let claims = Claims {
        subject: "8f4d6a3e-4b1c-4a55-9d0e-0d6f0a1b2c3d".into(),
        issuer: "https://login.microsoftonline.com/72f988bf-86f1-41af-91ab-2d7cd011db47/v2.0".into(),
        tenant: Some("72f988bf-86f1-41af-91ab-2d7cd011db47".into()),
        scopes: ["mcp.read".to_owned()].into(),
        ..Claims::default()
    };
    let token = "a".repeat(TOKEN_BYTES);
    let expires = SystemTime::now() + Duration::from_secs(3600);
    let principal = Principal::verified(claims).bearing(credentials::assertion(&token, Some(expires)));
    let grant = policy::Grant { allow: vec![Effect::Read], ..policy::Grant::default() };
    let policy = policy::Config { mode: Mode::Full, grants: vec![grant], sources: Vec::new() };
    let decl = Arc::new(Decl::plain(Kind::Backend, "notes".into(), "notes", Effect::Read));
    let operation = Operation::Stream { last_event_id: None };
    let call = Call { action: Action::Connect, effect: Effect::Read, decl, operation, session: None, version: None };
    let context = policy::Context { mode: Mode::Full, ip: None, mtls: false, now: SystemTime::now() };
    Policy::new(&policy).expect("a policy").authorize(&principal, call, &context).expect("a permit")
}

fn obtaining(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let client = Client { id: "gateway".into(), proof: Proof::Post(Secret::new("secret")) };
    let minted = Minted {
        grant: Grant::OnBehalfOf { scope: "api://notes/.default".into(), continuous_access: false },
        place: Place { token_url: Some(endpoint()), client: Some(client) },
        tenants: BTreeMap::new(),
        discovery: None,
        ca: None,
        timeout: Duration::from_secs(5),
    };
    let fixed = Config::Static {
        header: http::header::AUTHORIZATION,
        value: Secret::new(format!("Bearer {}", "t".repeat(TOKEN_BYTES))),
    };
    let permit = permit();
    let mut group = criterion.benchmark_group("credential");
    for (name, config) in [("fixed", fixed), ("on_behalf_of, remembered", Config::Minted(Box::new(minted)))] {
        let source = Source::new(&"notes".into(), &config).expect("a source");
        let deadline = Instant::now() + Duration::from_secs(3600);
        runtime.block_on(source.obtain(&permit, deadline)).expect("a credential");
        group.bench_function(name, |bencher| {
            bencher.iter(|| runtime.block_on(source.obtain(black_box(&permit), deadline)).map(drop));
        });
    }
    group.finish();
}

criterion_group!(benches, obtaining);
criterion_main!(benches);
