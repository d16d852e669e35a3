//! Every real client with every real server through the gateway, on a transparent and on a federated route.
//!
//! A cell is data: `CLIENTS` × `offers` × the two routes. One driver per SDK runs the cell's steps (`drive.py`, `drive.mjs`,
//! `rust_client`, `inspector`); what a server does not offer is stated with its reason and must be refused.

mod inspector;
mod modern_server;
mod offers;
mod rust_client;
mod upstreams;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::harness::Rig;
use crate::live::real;
use crate::live::tool;
use crate::referee::note::Side;
use crate::referee::schema::Revision;
use offers::EXCEPTIONS;
use offers::Era;
use offers::Feature;
use offers::Offer;
pub use upstreams::Everything;
use upstreams::Upstreams;

/// Which program drives a client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Driver {
    Python,
    Node,
    Rust,
    Inspector,
}

struct Client {
    name: &'static str,
    driver: Driver,
    /// What its driver calls the way it negotiates.
    mode: &'static str,
    era: Era,
}

const fn client(name: &'static str, driver: Driver, mode: &'static str, era: Era) -> Client {
    Client { name, driver, mode, era }
}

const CLIENTS: &[Client] = &[
    client("python legacy", Driver::Python, "legacy", Era::Legacy),
    client("python auto", Driver::Python, "auto", Era::Modern),
    client("python modern", Driver::Python, "2026-07-28", Era::Modern),
    client("typescript v1", Driver::Node, "v1", Era::Legacy),
    client("typescript v2 legacy", Driver::Node, "v2-legacy", Era::Legacy),
    client("typescript v2 auto", Driver::Node, "v2-auto", Era::Modern),
    client("typescript v2 modern", Driver::Node, "v2-modern", Era::Modern),
    client("rust legacy", Driver::Rust, "legacy", Era::Legacy),
    client("rust modern", Driver::Rust, "modern", Era::Modern),
    client("inspector legacy", Driver::Inspector, "legacy", Era::Legacy),
    client("inspector modern", Driver::Inspector, "modern", Era::Modern),
];

/// The inspector's command line ends with each answer: there is nothing to watch, to answer or to cancel.
const INSPECTOR_CANNOT: &[Feature] = &[Feature::Progress, Feature::Elicit, Feature::Subscribe, Feature::Cancel];

/// Cells run at once, by driver: two cores serve all of them.
const AT_ONCE: &[(Driver, usize)] =
    &[(Driver::Python, 2), (Driver::Node, 2), (Driver::Rust, 1), (Driver::Inspector, 1)];

const TRANSPARENT: &str = "transparent";
const FEDERATED: &str = "federated";
const ROUTES: &[&str] = &[TRANSPARENT, FEDERATED];

fn only() -> String {
    std::env::var("WARDGATE_MATRIX").unwrap_or_default()
}

struct Cell {
    client: &'static Client,
    upstream: &'static str,
    route: &'static str,
}

impl Cell {
    /// All cells, or those whose names contain `$WARDGATE_MATRIX`, for whoever looks into one of them.
    fn all() -> Vec<Cell> {
        let only = only();
        let of = |client: &'static Client| {
            let routes = move |upstream: &&'static str| {
                let upstream = *upstream;
                ROUTES.iter().map(move |route| Cell { client, upstream, route })
            };
            upstreams::ALL.iter().flat_map(routes)
        };
        CLIENTS.iter().flat_map(of).filter(|cell| cell.name().contains(&only)).collect()
    }

    /// That server's tool turns updates on and off for a whole session, which clients of one caller may share.
    fn token(&self, rig: &Rig) -> String {
        if self.upstream.starts_with("everything") { rig.admin_named(&self.name()) } else { rig.admin_token() }
    }

    fn name(&self) -> String {
        format!("{} → {} ({})", self.client.name, self.upstream, self.route)
    }

    /// The steps its driver is to run.
    fn plan(&self, listed: &BTreeMap<&str, Vec<String>>) -> Vec<Value> {
        let names = Names { upstream: self.upstream, federated: self.route == FEDERATED };
        let mut plan = Vec::new();
        for (feature, offer) in offers::offers(self.upstream, listed) {
            if self.client.driver == Driver::Inspector && INSPECTOR_CANNOT.contains(&feature) {
                continue;
            }
            let exception = EXCEPTIONS
                .iter()
                .find(|(era, upstream, of, _)| (*era, *upstream, *of) == (self.client.era, self.upstream, feature));
            let mut step = match (offer, exception) {
                (Offer::Has(step), None) => step,
                // The steps of what is refused say with what it was tried.
                (Offer::Has(mut step), Some(_)) | (Offer::Lacks(_, Some(mut step)), _) => {
                    step["refused"] = json!(true);
                    step
                }
                (Offer::Lacks(_, None), _) => continue,
            };
            step["step"] = json!(feature.name());
            names.apply(&mut step, &format!("{} {}", self.client.name, self.route));
            plan.push(step);
        }
        plan
    }
}

/// What the names of an upstream are on a route.
struct Names {
    upstream: &'static str,
    federated: bool,
}

impl Names {
    /// Rewrites names in a step and in the steps within it, and fills the cell's label in.
    fn apply(&self, step: &mut Value, label: &str) {
        let Some(fields) = step.as_object_mut() else { return };
        for (key, value) in fields.iter_mut() {
            match key.as_str() {
                "tool" | "name" => *value = json!(self.named(value.as_str().unwrap())),
                "uri" => *value = json!(self.uri(value.as_str().unwrap())),
                "prefix" => *value = json!(self.named("")),
                "must" | "may" => {
                    let named = |name: &Value| json!(self.named(name.as_str().unwrap()));
                    *value = value.as_array().unwrap().iter().map(named).collect();
                }
                "args" if value.get("label").is_some() => value["label"] = json!(label),
                "trigger" | "count" | "then" => self.apply(value, label),
                _ => {}
            }
        }
        // What a server announces is its own only where it is alone.
        if self.federated {
            fields.remove("lacks");
        }
    }

    fn named(&self, name: &str) -> String {
        if self.federated { format!("{}_{name}", self.upstream) } else { name.to_owned() }
    }

    fn uri(&self, uri: &str) -> String {
        if self.federated { format!("wardgate+{}+{uri}", self.upstream) } else { uri.to_owned() }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_client_works_with_every_server_on_both_kinds_of_route() {
    let upstreams = Upstreams::start().await;
    let rig = gateway(&upstreams).await;
    ready(&rig).await;
    let mut jobs: BTreeMap<Driver, Vec<Value>> = BTreeMap::new();
    let mut results = Results::default();
    for cell in Cell::all() {
        let name = cell.name();
        let path = if cell.route == FEDERATED { "all" } else { cell.upstream };
        jobs.entry(cell.client.driver).or_default().push(json!({
            "cell": name,
            "url": format!("{}/{path}", rig.base),
            "token": cell.token(&rig),
            "mode": cell.client.mode,
            "plan": cell.plan(&upstreams.listed),
        }));
    }
    let mut running = JoinSet::new();
    for (driver, cells) in jobs {
        running.spawn(run(driver, cells));
    }
    while let Some(lines) = running.join_next().await {
        lines.unwrap().iter().for_each(|line| results.add(line));
    }
    let report = results.judge(&upstreams.listed);
    println!("{}", report.text);
    if !report.failures.is_empty() {
        // What the gateway has to say of it.
        let audit = std::fs::read_to_string(&rig.audit).unwrap_or_default();
        audit.lines().filter(|line| line.contains("\"reason\":")).for_each(|line| println!("{line}"));
    }
    assert!(report.failures.is_empty(), "\n{}\n{} failures", report.failures.join("\n"), report.failures.len());
    rig.app.shutdown().await;
    let verdict = rig.referee.close();
    println!("{}", verdict.summary());
    assert_eq!(verdict.unread_connections, 0, "nothing escapes the referee");
    // What the SDKs and servers of the matrix agree on; `revisions` has the others.
    for revision in [Revision::LAST_LEGACY, Revision::MODERN] {
        for side in [Side::Clients, Side::Upstreams] {
            assert!(
                verdict.count(revision, side) > 0 || !only().is_empty(),
                "nothing of {} to {side:?}",
                revision.name()
            );
        }
    }
}

/// Every client of the official SDKs at this address, each with a plan of its own; gives their lines, and how many there are.
pub async fn official(url: &str, token: &str, plan: impl Fn(usize) -> Vec<Value>) -> (usize, Vec<Value>) {
    let mut jobs: BTreeMap<Driver, Vec<Value>> = BTreeMap::new();
    let clients = CLIENTS.iter().filter(|client| matches!(client.driver, Driver::Python | Driver::Node));
    for (index, client) in clients.clone().enumerate() {
        let cell = json!({ "cell": client.name, "url": url, "token": token, "mode": client.mode, "plan": plan(index) });
        jobs.entry(client.driver).or_default().push(cell);
    }
    let mut lines = Vec::new();
    for (driver, cells) in jobs {
        lines.extend(run(driver, cells).await);
    }
    (clients.count(), lines)
}

/// One gateway with a route for each upstream and one for all.
async fn gateway(upstreams: &Upstreams) -> Rig {
    Rig::with(|file| {
        file["backends"] = upstreams.backends();
        let routes = upstreams::ALL.iter().map(|name| json!({ "path": format!("/{name}"), "backends": [name] }));
        file["routes"] = routes.chain([json!({ "path": "/all", "backends": upstreams::ALL })]).collect();
    })
    .await
}

/// Waits until the processes have said what their tools are: they are slow to start, and slower when all start at once,
/// so that the question for their era could run out of time.
async fn ready(rig: &Rig) {
    let mut backends = Value::Null;
    for _ in 0..60 {
        for name in upstreams::PROCESSES {
            // Whatever comes of it, the gateway has to know the process first.
            let url = format!("{}/{name}", rig.base);
            let request = crate::harness::modern_request(&rig.client, &url, "tools/list", json!({}));
            request.bearer_auth(rig.admin_token()).send().await.unwrap();
        }
        let status: Value = rig.client.get(format!("{}/status", rig.admin)).send().await.unwrap().json().await.unwrap();
        backends = status["backends"].clone();
        let known = |name: &&str| backends.as_array().unwrap().iter().any(|of| of["name"] == *name && of["tools"] != 0);
        if upstreams::PROCESSES.iter().all(known) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    panic!("not every process is ready within a minute: {backends}");
}

/// Gives all cells of one driver to it; gives its lines.
async fn run(driver: Driver, cells: Vec<Value>) -> Vec<Value> {
    let at_once = AT_ONCE.iter().find(|(known, _)| *known == driver).unwrap().1;
    match driver {
        Driver::Python => piped(tool("WARDGATE_PYTHON"), "drive.py", at_once, cells).await,
        Driver::Node => piped(tool("WARDGATE_NODE"), "drive.mjs", at_once, cells).await,
        Driver::Rust => each(at_once, cells, |cell| async move { rust_client::drive(&cell).await }).await,
        Driver::Inspector => each(at_once, cells, |cell| async move { inspector::drive(&cell).await }).await,
    }
}

async fn each<F, R>(at_once: usize, cells: Vec<Value>, drive: F) -> Vec<Value>
where
    F: Fn(Value) -> R,
    R: Future<Output = Vec<Value>> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(at_once));
    let mut running = JoinSet::new();
    for cell in cells {
        let (slots, driven) = (Arc::clone(&slots), drive(cell));
        running.spawn(async move {
            let _slot = slots.acquire().await.unwrap();
            driven.await
        });
    }
    running.join_all().await.into_iter().flatten().collect()
}

async fn piped(program: &str, script: &str, at_once: usize, cells: Vec<Value>) -> Vec<Value> {
    let mut child = tokio::process::Command::new(program)
        .arg(real(script))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("WARDGATE_NODE_MODULES", tool("WARDGATE_NODE_MODULES"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the driver runs");
    let asked = json!({ "at_once": at_once, "cells": cells }).to_string();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(asked.as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script} ended with {}: {said}", output.status);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// What the drivers saw, by cell and step.
#[derive(Default)]
struct Results(BTreeMap<String, Vec<(String, bool, String)>>);

struct Report {
    text: String,
    failures: Vec<String>,
}

impl Results {
    fn add(&mut self, line: &Value) {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let entry = (text("step"), line["ok"] == true, text("detail"));
        self.0.entry(text("cell")).or_default().push(entry);
    }

    /// The steps of a cell that were not as wanted, also those that never ran.
    fn wrong(&self, cell: &Cell, plan: &[Value]) -> Vec<String> {
        let seen = self.0.get(&cell.name()).map(Vec::as_slice).unwrap_or_default();
        let mut wrong: Vec<_> =
            seen.iter().filter(|(_, ok, _)| !ok).map(|(step, _, detail)| format!("{step}: {detail}")).collect();
        let ran = |step: &str| seen.iter().any(|(known, ..)| known == step);
        if wrong.is_empty() || ran("list") {
            let steps = std::iter::once("connect").chain(plan.iter().map(|step| step["step"].as_str().unwrap()));
            wrong.extend(steps.filter(|step| !ran(step)).map(|step| format!("{step}: did not run")));
        }
        wrong
    }

    fn judge(&self, listed: &BTreeMap<&str, Vec<String>>) -> Report {
        let mut text = String::new();
        let mut failures = Vec::new();
        let mut passed = 0;
        for cell in Cell::all() {
            let wrong = self.wrong(&cell, &cell.plan(listed));
            if wrong.is_empty() {
                passed += 1;
                continue;
            }
            failures.push(cell.name());
            failures.extend(wrong.iter().map(|line| format!("    {line}")));
        }
        for upstream in upstreams::ALL {
            for (feature, offer) in offers::offers(upstream, listed) {
                if let Offer::Lacks(why, _) = offer {
                    writeln!(text, "lacks    {upstream} {}: {why}", feature.name()).unwrap();
                }
            }
        }
        for (era, upstream, feature, why) in EXCEPTIONS {
            writeln!(text, "refused  {upstream} {} to {era:?} clients: {why}", feature.name()).unwrap();
        }
        writeln!(text, "{passed} cells passed").unwrap();
        Report { text, failures }
    }
}

#[test]
fn every_upstream_states_every_feature() {
    let listed = BTreeMap::from([("python", vec![]), ("python-stdio", vec![])]);
    for upstream in upstreams::ALL {
        let stated: Vec<_> = offers::offers(upstream, &listed).into_iter().map(|(feature, _)| feature).collect();
        assert_eq!(stated, Feature::ALL, "{upstream}");
    }
}
