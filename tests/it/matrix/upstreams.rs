//! The real servers behind the gateway: started once for all cells.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::io::BufReader;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use serde_json::Value;
use serde_json::json;

use super::modern_server::ModernServer;
use crate::live::Fixture;
use crate::live::python;
use crate::live::real;
use crate::live::tool;

/// Names of backends; each is also the path of its transparent route.
pub const ALL: &[&str] = &["python", "rust", "everything", "time", "python-stdio", "everything-stdio"];

/// Those that the gateway starts.
pub const PROCESSES: &[&str] = &["time", "python-stdio", "everything-stdio"];

pub struct Upstreams {
    python: Fixture,
    rust: ModernServer,
    everything: Everything,
    /// The tools of the fixtures, as they list them without a gateway.
    pub listed: BTreeMap<&'static str, Vec<String>>,
}

impl Upstreams {
    pub async fn start() -> Upstreams {
        // In pages, so that every client has to turn them.
        let fixture = Fixture::start(&["--page-size", "17"]);
        let direct = python(&fixture.url, "-", "2026-07-28", &[]).await;
        let tools = direct[0]["tools"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned());
        let tools: Vec<_> = tools.collect();
        let listed = BTreeMap::from([("python", tools.clone()), ("python-stdio", tools)]);
        Upstreams { python: fixture, rust: ModernServer::start().await, everything: Everything::start(), listed }
    }

    pub fn backends(&self) -> Value {
        // What a tool does is not what this is about: their hints may still raise it.
        let backend = |kind: &str, reached: Value| json!({ kind: reached, "effects": [{ "tools": "*", "effect": "read" }], "trust_annotations": true });
        let stdio = |command: &[&str]| backend("stdio", json!({ "command": command, "processes_max": 256 }));
        let fixture = real("stdio_server.py");
        json!({
            "python": backend("http", json!({ "url": self.python.url })),
            "rust": backend("http", json!({ "url": self.rust.url })),
            "everything": backend("http", json!({ "url": self.everything.url })),
            "time": stdio(&[tool("WARDGATE_TIME"), "--local-timezone", "UTC"]),
            "python-stdio": stdio(&[tool("WARDGATE_PYTHON"), fixture.to_str().unwrap(), "all"]),
            "everything-stdio": stdio(&[tool("WARDGATE_NODE"), tool("WARDGATE_EVERYTHING"), "stdio"]),
        })
    }
}

/// npm's server-everything over streamable HTTP; ended when dropped.
pub struct Everything {
    child: Child,
    pub url: String,
}

impl Everything {
    pub fn start() -> Everything {
        let mut child = Command::new(tool("WARDGATE_NODE"))
            .arg("--import")
            .arg(real("loopback.mjs"))
            .args([tool("WARDGATE_EVERYTHING"), "streamableHttp"])
            .env("PORT", "0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let port = lines.find_map(|line| line.strip_prefix("LISTENING ").map(str::to_owned)).expect("it listens");
        // It says something about each request: unread, it would stand still when the pipe is full.
        std::thread::spawn(move || lines.for_each(drop));
        Everything { child, url: format!("http://127.0.0.1:{port}/mcp") }
    }
}

impl Drop for Everything {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
