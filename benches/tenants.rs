//! How long do 1,000 tenants take to load, and how much memory? Files in a folder, read, checked and put in force.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measuring program may stop where it stands")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use criterion::Criterion;
use criterion::criterion_group;
use criterion::criterion_main;
use tokio::runtime::Runtime;
use wardgate::app::App;
use wardgate::config;
use wardgate::config::Options;

const TENANTS: usize = 1_000;

/// A gateway of one issuer, and a folder of tenants, each with grants, limits and a backend of its own.
fn write(folder: &Path) -> PathBuf {
    let gateway = r#"
listeners: [{ address: "127.0.0.1:0" }]
public_url: https://gw.example
identity: [{ oidc: { issuer: "https://idp.example", audience: gw, jwks_url: "https://127.0.0.1:1/keys" } }]
grants: [{ scope: mcp.read, allow: [read] }]
backends: { shared: { http: { url: "http://127.0.0.1:1/mcp" } } }
routes: [{ path: /mcp, backends: [shared] }]
tenants: { folder: tenants }
log: { level: error }
"#;
    std::fs::create_dir(folder.join("tenants")).unwrap();
    for index in 0..TENANTS {
        let mut text = format!("path: /t/{index}\nmode: read-only\n");
        writeln!(text, "limits: {{ principal: {{ calls: 600 per 1m }}, tenant: {{ calls: 6000 per 1m }} }}").unwrap();
        writeln!(text, "grants:\n  - {{ scope: mcp.read, allow: [read], tools: \"own/*\" }}").unwrap();
        writeln!(text, "  - {{ group: team-{index}, allow: [read, write] }}").unwrap();
        writeln!(text, "backends: {{ own: {{ http: {{ url: \"http://127.0.0.1:1/t/{index}/mcp\" }} }} }}").unwrap();
        writeln!(text, "routes: [{{ path: /mcp, backends: [own, shared] }}]").unwrap();
        std::fs::write(folder.join(format!("tenants/tenant-{index:04}.yaml")), text).unwrap();
    }
    let path = folder.join("wardgate.yaml");
    std::fs::write(&path, gateway).unwrap();
    path
}

fn resident_mib() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096 / 1024 / 1024
}

fn tenants(criterion: &mut Criterion) {
    wardgate::server::install_crypto();
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path());
    let runtime = Runtime::new().unwrap();
    let (before, from) = (resident_mib(), Instant::now());
    let loaded = config::load(&path, Options::default()).unwrap();
    let read = from.elapsed();
    let app = runtime.block_on(App::start(loaded)).unwrap();
    let took = from.elapsed();
    println!(
        "{TENANTS} tenants: read in {read:?}, in force after {took:?}; {} MiB resident, {} MiB of them for these",
        resident_mib(),
        resident_mib().saturating_sub(before)
    );
    let mut group = criterion.benchmark_group("tenants");
    group.sample_size(10).measurement_time(Duration::from_secs(20));
    group.bench_function("read", |b| b.iter(|| black_box(config::load(&path, Options::default()).unwrap())));
    group.bench_function("reload_unchanged", |b| {
        b.iter(|| {
            let loaded = config::load(&path, Options::default()).unwrap();
            runtime.block_on(app.take(loaded)).unwrap()
        });
    });
    group.finish();
    runtime.block_on(app.shutdown());
}

criterion_group!(benches, tenants);
criterion_main!(benches);
