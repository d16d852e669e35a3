//! The official JSON schemas as the referee: what the gateway writes in a test is judged by the revision in force.
//!
//! Taps stand between client and gateway and between gateway and upstream (`tap`), bytes pass them as they are and are
//! read beside (`http`), every message is noted (`note`), and at the end of the test all notes are judged (`judge`) with
//! the schemas of the protocol's own repository (`schema`, `tests/schemas/`).

mod http;
pub mod judge;
pub mod note;
pub mod schema;
mod tap;
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

use crate::live::real;
use crate::live::tool;
use judge::Verdict;
use note::Note;
use note::Record;
use note::Side;
use tap::Tap;

/// Sees all that is said on both sides of one gateway; a test that ends well fails all the same when this finds a fault.
#[derive(Default)]
pub struct Referee {
    record: Arc<Record>,
    /// By the address before which they stand.
    taps: Mutex<BTreeMap<String, Tap>>,
    /// What tees write, one file for each process.
    lines: Mutex<Option<TempDir>>,
    closed: AtomicBool,
}

impl Referee {
    /// Puts a tap before the gateway's listener; gives the address that clients are to use: the one that the gateway says it
    /// is known by, if that is on this machine.
    pub async fn before_clients(&self, listener: &str, public_url: &Value) -> SocketAddr {
        let known = public_url.as_str().and_then(|url| url.strip_prefix("http://")?.parse().ok());
        let address = known.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let tap = Tap::at(address, listener.to_owned(), Side::Clients, Arc::clone(&self.record)).await;
        let address = tap.address;
        self.taps.lock().unwrap().insert(listener.to_owned(), tap);
        address
    }

    /// Rewrites a configuration so that every backend is reached through a tap, or through a tee where it is a process.
    pub async fn before_upstreams(&self, file: &mut Value) {
        let Some(backends) = file["backends"].as_object_mut() else { return };
        for backend in backends.values_mut() {
            for kind in ["http", "sse"] {
                let Some(url) = backend.pointer_mut(&format!("/{kind}/url")) else { continue };
                if let Some(text) = url.as_str().map(str::to_owned) {
                    *url = json!(self.tapped(&text).await);
                }
            }
            if let Some(command) = backend.pointer_mut("/stdio/command").and_then(Value::as_array_mut) {
                // Without what it does not need, so that processes start about as fast as without it.
                let (script, folder) = (real("tee.py").display().to_string(), self.folder());
                let tee = [tool("WARDGATE_PYTHON"), "-I", "-S", &script, &folder];
                command.splice(0..0, tee.map(Value::from));
            }
        }
    }

    /// The URL of a tap before this one; what is not spoken in plain HTTP on an address is left as it is.
    async fn tapped(&self, url: &str) -> String {
        let Some((host, path)) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')) else {
            return url.to_owned();
        };
        let known = self.taps.lock().unwrap().get(host).map(|tap| tap.address);
        let address = match known {
            Some(address) => address,
            // A test that names an address where nobody is wants to be refused there.
            None if tokio::net::TcpStream::connect(host).await.is_err() => return url.to_owned(),
            None => {
                let tap = Tap::before(host.to_owned(), Side::Upstreams, Arc::clone(&self.record)).await;
                let address = tap.address;
                self.taps.lock().unwrap().insert(host.to_owned(), tap);
                address
            }
        };
        format!("http://{address}/{path}")
    }

    fn folder(&self) -> String {
        let mut lines = self.lines.lock().unwrap();
        lines.get_or_insert_with(|| tempfile::tempdir().unwrap()).path().display().to_string()
    }

    /// Judges all that was seen; fails where the gateway wrote what it may not.
    pub fn close(&self) -> Verdict {
        self.closed.store(true, Ordering::Relaxed);
        let mut notes = self.record.notes();
        if let Some(folder) = &*self.lines.lock().unwrap() {
            let files = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path());
            notes.extend(files.flat_map(|file| Note::lines(&file)));
        }
        let mut verdict = judge::judge(&notes);
        verdict.unread_connections = self.record.unread_connections();
        verdict.assert();
        verdict
    }
}

impl Drop for Referee {
    fn drop(&mut self) {
        // A test that has failed has its own words to say.
        if !std::thread::panicking() && !self.closed.load(Ordering::Relaxed) {
            self.close();
        }
    }
}
