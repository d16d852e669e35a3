//! Rates and quotas that all replicas share: counted in Redis or Valkey, one script call for all keys of a request.
//!
//! Several nodes stand side by side, not as a Redis Cluster: each tenant (or caller without one) belongs to one of them by
//! rendezvous hashing. What is counted needs neither replication nor moving slots: a node that is lost takes the counts of its
//! tenants with it and nobody else's, and there is no topology to learn on the way of a call.

mod node;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::task::JoinHandle;

use super::Claim;
use super::Limited;
use super::Of;
use super::calendar::Window;
use crate::secret::Secret;
use node::Node;
use node::Question;

/// A principal's name becomes so many bytes.
const NAME_BYTES: usize = 16;

/// Where the limits are counted together.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// At least one.
    pub nodes: Vec<Address>,
    pub user: Option<String>,
    pub password: Option<Secret>,
    /// PEM bundle; `None`: the system's roots.
    pub ca: Option<PathBuf>,
    /// Every key begins with it.
    pub prefix: String,
    /// Keys the hashes of names, so that who reads the store cannot find out names by trying them.
    pub key: Option<Secret>,
    /// For one question.
    pub timeout: Duration,
    pub connect_timeout: Duration,
    pub unreachable: Unreachable,
}

/// Of one node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Address {
    pub tls: bool,
    /// An IPv6 address without brackets.
    pub host: String,
    pub port: u16,
    pub database: u16,
}

/// What holds while a node cannot be asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unreachable {
    /// The same limits, counted by each replica for itself.
    Local,
    Refuse,
}

impl Unreachable {
    pub fn as_str(self) -> &'static str {
        match self {
            Unreachable::Local => "local",
            Unreachable::Refuse => "refuse",
        }
    }
}

/// Why the store cannot be used as configured.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("limits.shared: {what}")]
pub struct Invalid {
    pub what: String,
}

/// A node did not answer as it should.
#[derive(Debug)]
pub(super) struct Away;

/// One node, for `/status` and metrics.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeState {
    /// `host:port/database`
    pub name: String,
    pub up: bool,
}

/// What became of the calls since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Judged {
    /// By a node.
    pub shared: u64,
    /// Here, because the node was away.
    pub local: u64,
    /// Refused, because the node was away.
    pub refused: u64,
}

pub struct Shared {
    config: Config,
    ca: Option<Vec<u8>>,
    nodes: Vec<Arc<Node>>,
    keepers: Mutex<Vec<JoinHandle<()>>>,
    hmac: Option<ring::hmac::Key>,
    shared: AtomicU64,
    local: AtomicU64,
    refused: AtomicU64,
}

impl Shared {
    /// Connects to nothing: that begins with `start`.
    ///
    /// # Errors
    /// [`Invalid`]: a file that is no certificate.
    pub fn new(config: &Config) -> Result<Shared, Invalid> {
        let ca = read_ca(config)?;
        let nodes = config.nodes.iter().map(|address| Node::new(address, config, ca.clone()).map(Arc::new));
        Ok(Shared {
            nodes: nodes.collect::<Result<_, _>>()?,
            keepers: Mutex::default(),
            hmac: config.key.as_ref().map(|key| ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.expose().as_bytes())),
            config: config.clone(),
            ca,
            shared: AtomicU64::new(0),
            local: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// A counter never falls, whatever is configured anew.
    pub(super) fn count_on(&self, old: &Shared) {
        let Judged { shared, local, refused } = old.judged();
        self.shared.store(shared, Relaxed);
        self.local.store(local, Relaxed);
        self.refused.store(refused, Relaxed);
    }

    /// Would the same be built from this?
    pub(super) fn is_of(&self, config: &Config) -> bool {
        self.config == *config && read_ca(config).is_ok_and(|ca| ca == self.ca)
    }

    /// Begins to keep connections to the nodes and waits for the first try at each.
    pub(super) async fn start(&self) {
        {
            let mut keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
            if keepers.is_empty() {
                keepers.extend(self.nodes.iter().map(|node| tokio::spawn(node.clone().keep())));
            }
        }
        for node in &self.nodes {
            node.tried().await;
        }
    }

    pub fn unreachable(&self) -> Unreachable {
        self.config.unreachable
    }

    pub fn nodes(&self) -> Vec<NodeState> {
        self.nodes.iter().map(|node| NodeState { name: node.name().to_owned(), up: node.is_up() }).collect()
    }

    pub fn judged(&self) -> Judged {
        Judged {
            shared: self.shared.load(Relaxed),
            local: self.local.load(Relaxed),
            refused: self.refused.load(Relaxed),
        }
    }

    /// Counts the claims of one call: all of them, or none after the first that is refused; quotas only when no rate
    /// refuses. One round trip.
    pub(super) async fn judge(
        &self,
        share: &str,
        claims: &[Claim<'_>],
        offset_s: i32,
    ) -> Result<Result<(), Limited>, Away> {
        let mut question = Question::default();
        for claim in claims {
            let name = self.name_of(claim);
            let prefix = &self.config.prefix;
            match claim.of {
                Of::Quota { quota, .. } => {
                    let window = match quota.window {
                        Window::Day => "d",
                        Window::Month => "m",
                    };
                    question.add(format!("{prefix}{window}:{name}"), window, quota.calls.get(), i64::from(offset_s));
                }
                // Another figure is another bucket, as in memory.
                Of::Calls(rate) => {
                    let (calls, period) = (rate.calls.get(), rate.period);
                    let each_us = u64::try_from(period.as_micros()).unwrap_or(u64::MAX) / u64::from(calls);
                    let key = format!("{prefix}r:{calls}/{}:{name}", period.as_millis());
                    question.add(key, "r", each_us.max(1), i64::from(calls));
                }
                Of::Concurrent(_) | Of::Streams(_) | Of::Unavailable | Of::Waiting => {}
            }
        }
        let node = self.node_of(share).ok_or(Away)?;
        match node.ask(&question).await {
            Ok(verdict) => {
                self.shared.fetch_add(1, Relaxed);
                Ok(match claims.get(verdict.refused_by.unwrap_or(usize::MAX)) {
                    Some(claim) => Err(claim.refused(verdict.wait, verdict.ends_s)),
                    None => Ok(()),
                })
            }
            Err(Away) => {
                let count = match self.config.unreachable {
                    Unreachable::Local => &self.local,
                    Unreachable::Refuse => &self.refused,
                };
                count.fetch_add(1, Relaxed);
                Err(Away)
            }
        }
    }

    /// `principal:` and so on, and a hash: no id of a user stands in the store.
    fn name_of(&self, claim: &Claim<'_>) -> String {
        let mut text = Vec::with_capacity(128);
        for part in claim.name {
            text.extend_from_slice(&(part.len() as u64).to_le_bytes());
            text.extend_from_slice(part.as_bytes());
        }
        let hash = |digest: &[u8]| URL_SAFE_NO_PAD.encode(digest.get(..NAME_BYTES).unwrap_or(digest));
        let hash = match &self.hmac {
            Some(key) => hash(ring::hmac::sign(key, &text).as_ref()),
            None => hash(ring::digest::digest(&ring::digest::SHA256, &text).as_ref()),
        };
        format!("{}:{hash}", claim.whose())
    }

    fn node_of(&self, share: &str) -> Option<&Arc<Node>> {
        match self.nodes.as_slice() {
            [only] => Some(only),
            several => several.iter().max_by_key(|node| weight(node.name(), share)),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let keepers = self.keepers.get_mut().unwrap_or_else(PoisonError::into_inner);
        keepers.drain(..).for_each(|keeper| keeper.abort());
    }
}

fn read_ca(config: &Config) -> Result<Option<Vec<u8>>, Invalid> {
    let Some(path) = &config.ca else { return Ok(None) };
    let unreadable = |error| Invalid { what: format!("`{}` cannot be read: {error}", path.display()) };
    std::fs::read(path).map(Some).map_err(unreadable)
}

/// Rendezvous hashing: every replica of every version must come to the same figure. FNV-1a, finished as SplitMix64 is.
fn weight(node: &str, share: &str) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in node.bytes().chain([0]).chain(share.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(ports: &[u16], key: Option<&str>) -> Config {
        let address = |port: &u16| Address { tls: false, host: "127.0.0.1".into(), port: *port, database: 0 };
        Config {
            nodes: ports.iter().map(address).collect(),
            user: None,
            password: None,
            ca: None,
            prefix: "wardgate:".into(),
            key: key.map(Secret::new),
            timeout: Duration::from_millis(50),
            connect_timeout: Duration::from_secs(1),
            unreachable: Unreachable::Local,
        }
    }

    #[test]
    fn tenants_spread_over_the_nodes_and_a_lost_node_moves_nobody_elses() {
        let three = Shared::new(&config(&[1, 2, 3], None)).unwrap();
        let two = Shared::new(&config(&[1, 3], None)).unwrap();
        let mut counts = [0; 3];
        for tenant in 0..3000 {
            let tenant = format!("tenant-{tenant}");
            let name = three.node_of(&tenant).unwrap().name().to_owned();
            let place =
                ["127.0.0.1:1/0", "127.0.0.1:2/0", "127.0.0.1:3/0"].iter().position(|one| *one == name).unwrap();
            counts[place] += 1;
            if place != 1 {
                assert_eq!(two.node_of(&tenant).unwrap().name(), name, "stays where it was");
            }
        }
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }

    #[test]
    fn names_are_hashed_and_a_key_makes_them_unguessable() {
        let claim = |name| Claim {
            limit: "principal",
            counter: super::super::Counter::Principal,
            name: [name, "", ""],
            of: Of::Unavailable,
        };
        let (plain, keyed) =
            (Shared::new(&config(&[1], None)).unwrap(), Shared::new(&config(&[1], Some("k"))).unwrap());
        let name = plain.name_of(&claim("idp|t1|ann@example.com"));
        assert!(name.starts_with("principal:") && !name.contains("ann"), "{name}");
        assert_eq!(name, plain.name_of(&claim("idp|t1|ann@example.com")));
        assert_ne!(name, plain.name_of(&claim("idp|t1|bob@example.com")));
        assert_ne!(name, keyed.name_of(&claim("idp|t1|ann@example.com")));
    }

    #[tokio::test]
    async fn a_node_that_is_not_there_costs_no_call_its_timeout() {
        // Nobody listens there: the port was ours a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let shared = Shared::new(&config(&[port], None)).unwrap();
        shared.start().await;
        assert_eq!(shared.nodes(), [NodeState { name: format!("127.0.0.1:{port}/0"), up: false }]);
        let asked = std::time::Instant::now();
        for _ in 0..1000 {
            assert!(shared.judge("t", &[], 0).await.is_err());
        }
        assert!(asked.elapsed() < Duration::from_millis(50) * 20, "{:?}", asked.elapsed());
        assert_eq!(shared.judged(), Judged { shared: 0, local: 1000, refused: 0 });
    }
}
