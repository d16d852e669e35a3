//! What the measuring programs share: programs pinned to a core, load by wrk, CPU and memory of a process, verdicts.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

const ROUNDS: usize = 3;
const SECONDS: u32 = 5;

/// A program that is ended with the benchmark.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

pub fn spawn(core: &str, program: &str, arguments: &[&str]) -> Running {
    let child = Command::new("taskset")
        .args(["-c", core, program])
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    Running(
        child.unwrap_or_else(|error| panic!("{program}: {error} (Debian: apt-get install nginx-light wrk util-linux)")),
    )
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn wait_for(port: u16) {
    let from = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(from.elapsed() < Duration::from_secs(20), "nobody listens on {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn answer(id: &str, result: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)
}

pub fn wardgate(folder: &Path, name: &str, configuration: &str, port: u16) -> Running {
    let path = folder.join(format!("{name}.yaml"));
    fs::write(&path, configuration).unwrap();
    let mut running = spawn("0", env!("CARGO_BIN_EXE_wardgate"), &["run", "-c", path.to_str().unwrap()]);
    // The log goes through a pipe: somebody must read it.
    let log = running.0.stderr.take().unwrap();
    std::thread::spawn(move || {
        BufReader::new(log)
            .lines()
            .map_while(Result::ok)
            .filter(|line| line.contains("ERROR"))
            .for_each(|line| eprintln!("{line}"))
    });
    wait_for(port);
    running
}

#[derive(Clone, Copy, Default)]
pub struct Measured {
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub cpu_us: f64,
    pub rss_mib: f64,
}

pub fn load(script: &str, port: u16, connections: u32, process: Option<u32>) -> Measured {
    let before = process.map(cpu_seconds);
    let output = Command::new("taskset")
        .args([
            "-c",
            "1",
            "wrk",
            "-t1",
            &format!("-c{connections}"),
            &format!("-d{SECONDS}s"),
            "-s",
            script,
            &format!("http://127.0.0.1:{port}/mcp"),
        ])
        .output()
        .expect("wrk runs (Debian: apt-get install wrk)");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("RESULT ")).unwrap_or_else(|| panic!("{text}"));
    let numbers: Vec<f64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
    let [requests, micros, p50_us, p99_us, errors] = numbers[..] else { panic!("{line}") };
    assert!(errors == 0.0 && requests > 0.0, "{errors} errors: {text}");
    let used = process.zip(before).map_or(0.0, |(process, before)| cpu_seconds(process) - before);
    Measured {
        per_second: requests / micros * 1e6,
        p50_us,
        p99_us,
        cpu_us: used * 1e6 / requests,
        rss_mib: process.map_or(0.0, rss_mib),
    }
}

/// User and system time of a process and its children (nginx works in one).
pub fn cpu_seconds(process: u32) -> f64 {
    let ticks = |process: u32| -> f64 {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let after = stat.rsplit(") ").next().unwrap_or_default().split(' ').map(str::to_owned).collect::<Vec<_>>();
        [11, 12].iter().filter_map(|at| after.get(*at)?.parse::<f64>().ok()).sum()
    };
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    (ticks(process) + children.split_whitespace().filter_map(|child| child.parse().ok()).map(ticks).sum::<f64>())
        / 100.0
}

pub fn rss_mib(process: u32) -> f64 {
    let of = |process: u32| -> f64 {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next()?.parse::<f64>().ok())
            .unwrap_or(0.0)
            / 1024.0
    };
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    of(process) + children.split_whitespace().filter_map(|child| child.parse().ok()).map(of).sum::<f64>()
}

pub fn median(mut all: Vec<Measured>) -> Measured {
    all.sort_by(|left, right| left.per_second.total_cmp(&right.per_second));
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// What is loaded: a name for the table, the load, the port, the process whose CPU is counted.
pub type Target<'a> = (&'a str, &'a str, u16, Option<u32>);

/// Interleaved rounds, so that a noisy moment hits all alike; the rounds of each target, in order.
pub fn rounds(title: &str, rounds: usize, connections: u32, targets: &[Target]) -> Vec<Vec<Measured>> {
    let mut all = vec![Vec::new(); targets.len()];
    for _ in 0..rounds {
        for (index, (_, script, port, process)) in targets.iter().enumerate() {
            all[index].push(load(script, *port, connections, *process));
        }
    }
    println!(
        "\n{title}\n{:<32}{:>12}{:>10}{:>10}{:>14}{:>10}",
        "", "requests/s", "p50 us", "p99 us", "CPU us/req", "RSS MiB"
    );
    for ((name, ..), measured) in targets.iter().zip(&all) {
        let one = median(measured.clone());
        println!(
            "{name:<32}{:>12.0}{:>10.0}{:>10.0}{:>14.1}{:>10.1}",
            one.per_second, one.p50_us, one.p99_us, one.cpu_us, one.rss_mib
        );
    }
    all
}

/// The median of what [`rounds`] measured for each.
pub fn compare(title: &str, script: &str, connections: u32, targets: &[(&str, u16, Option<u32>)]) -> Vec<Measured> {
    let targets: Vec<Target> = targets.iter().map(|(name, port, process)| (*name, script, *port, *process)).collect();
    rounds(title, ROUNDS, connections, &targets).into_iter().map(median).collect()
}

/// How much more CPU a call of one target takes than one of the other: the median over the rounds, each of which
/// measured both within seconds of each other.
pub fn cpu_ratio(of: &[Measured], over: &[Measured]) -> f64 {
    let mut ratios: Vec<f64> = of.iter().zip(over).map(|(of, over)| of.cpu_us / over.cpu_us).collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "ratios of the rounds: {}",
        ratios.iter().map(|ratio| format!("{ratio:.2}")).collect::<Vec<_>>().join(" ")
    );
    ratios.get(ratios.len() / 2).copied().unwrap_or_default()
}

pub fn verdict(what: &str, got: f64, bound: f64, at_least: bool) {
    let good = if at_least { got >= bound } else { got <= bound };
    println!(
        "{} {what}: {got:.2} (goal: at {} {bound:.2})",
        if good { "reached" } else { "MISSED " },
        if at_least { "least" } else { "most" }
    );
}
