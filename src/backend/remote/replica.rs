//! Replicas of one upstream: addresses, which one takes the next call, and which ones are fit to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use pingora::protocols::TcpKeepalive;
use pingora::upstreams::peer::HttpPeer;

use super::Endpoint;
use super::Health;
use super::Place;

/// How long a DNS answer is used.
const ADDRESSES_TTL: Duration = Duration::from_secs(30);

/// Of a name with very many addresses only so many are tried.
const ADDRESSES_MAX: usize = 8;

/// Sessions whose replica is remembered. An evicted one is found by hash, or lost, and the client begins a new one.
const SESSIONS_MAX: u64 = 100_000;

/// Without active checks an unfit replica is tried again after this.
const REST: Duration = Duration::from_secs(10);

/// Consecutive connect failures that make a replica unfit where no health checks say otherwise.
const FAILURES_MAX: u32 = 3;

/// What every connection of a backend has in common.
#[derive(Clone, Debug)]
pub(super) struct Connecting {
    pub(super) connect_timeout: Duration,
    pub(super) write_timeout: Duration,
    pub(super) idle_timeout: Duration,
}

pub(super) struct Replica {
    pub(super) index: usize,
    pub(super) endpoint: Endpoint,
    sni: String,
    group_key: u64,
    connecting: Connecting,
    /// Resolved peers, the one that worked last in front.
    peers: Mutex<Option<(Instant, Arc<[HttpPeer]>)>>,
    in_flight: AtomicUsize,
    fitness: Mutex<Fitness>,
    failures: AtomicU32,
}

struct Fitness {
    fit: bool,
    /// Consecutive successes of an unfit one, failures of a fit one.
    streak: u32,
    /// When an unfit replica may be tried although no check found it fit.
    again: Instant,
}

/// A call that runs on a replica; counted until dropped.
pub(super) struct InFlight(Arc<Replica>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Replica {
    pub(super) fn new(
        index: usize,
        endpoint: Endpoint,
        sni: String,
        group_key: u64,
        connecting: Connecting,
    ) -> Replica {
        let fitness = Mutex::new(Fitness { fit: true, streak: 0, again: Instant::now() });
        let (peers, in_flight, failures) = (Mutex::new(None), AtomicUsize::new(0), AtomicU32::new(0));
        Replica { index, endpoint, sni, group_key, connecting, peers, in_flight, fitness, failures }
    }

    pub(super) fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// The addresses to try, in order.
    pub(super) async fn peers(&self) -> Result<Arc<[HttpPeer]>, String> {
        let known = self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, peers)) = &known
            && at.elapsed() < ADDRESSES_TTL
        {
            return Ok(peers.clone());
        }
        match self.resolve().await {
            Ok(peers) => {
                *self.peers.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), peers.clone()));
                Ok(peers)
            }
            // A name server that is down must not take working upstreams with it.
            Err(what) => known.map(|(_, peers)| peers).ok_or(what),
        }
    }

    /// The address at this place of [`Replica::peers`] worked: it is tried first from now on.
    pub(super) fn prefer(&self, place: usize) {
        if place == 0 {
            return;
        }
        if let Some((_, peers)) = self.peers.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            let mut order = peers.to_vec();
            if place < order.len() {
                order.rotate_left(place);
                *peers = order.into();
            }
        }
    }

    /// No address worked: the name is resolved again for the next call.
    pub(super) fn forget_addresses(&self) {
        if let Some((at, _)) = self.peers.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            *at = at.checked_sub(ADDRESSES_TTL).unwrap_or(*at);
        }
    }

    async fn resolve(&self) -> Result<Arc<[HttpPeer]>, String> {
        let (host, port) = match &self.endpoint.place {
            Place::Unix(path) => {
                let path = path.to_str().ok_or("the socket path is not UTF-8")?;
                let peer = HttpPeer::new_uds(path, self.endpoint.tls, self.sni.clone())
                    .map_err(|_| "the socket path is not usable")?;
                return Ok([self.dress(peer)].into());
            }
            Place::Tcp { host, port } => (bare(host), *port),
        };
        let found =
            pingora::time::timeout(self.connecting.connect_timeout, tokio::net::lookup_host((host, port))).await;
        let addresses: Vec<SocketAddr> = match found {
            Err(_) => return Err(format!("`{host}` was not resolved in time")),
            Ok(Err(error)) => return Err(format!("`{host}` cannot be resolved: {error}")),
            Ok(Ok(addresses)) => addresses.take(ADDRESSES_MAX).collect(),
        };
        if addresses.is_empty() {
            return Err(format!("`{host}` has no address"));
        }
        Ok(addresses
            .into_iter()
            .map(|address| self.dress(HttpPeer::new(address, self.endpoint.tls, self.sni.clone())))
            .collect())
    }

    fn dress(&self, mut peer: HttpPeer) -> HttpPeer {
        peer.group_key = self.group_key;
        let options = &mut peer.options;
        options.connection_timeout = Some(self.connecting.connect_timeout);
        options.total_connection_timeout = Some(self.connecting.connect_timeout);
        options.write_timeout = Some(self.connecting.write_timeout);
        options.idle_timeout = Some(self.connecting.idle_timeout);
        // A peer that vanished without a word is noticed, also under a stream that is silent for hours.
        options.tcp_keepalive = matches!(self.endpoint.place, Place::Tcp { .. }).then(|| TcpKeepalive {
            idle: Duration::from_secs(60),
            interval: Duration::from_secs(10),
            count: 3,
            #[cfg(target_os = "linux")]
            user_timeout: Duration::ZERO,
        });
        peer
    }

    /// A connection was made, or a check passed.
    pub(super) fn succeeded(&self, needed: u32) {
        if self.failures.swap(0, Ordering::Relaxed) == 0 && self.is_fit() {
            return;
        }
        let mut fitness = self.fitness.lock().unwrap_or_else(PoisonError::into_inner);
        if !fitness.fit {
            fitness.streak += 1;
            if fitness.streak >= needed {
                *fitness = Fitness { fit: true, streak: 0, again: Instant::now() };
                tracing::info!(authority = %self.endpoint.authority, "replica is fit again");
            }
        }
    }

    /// A connection could not be made, or a check failed.
    pub(super) fn failed(&self, bearable: u32) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let mut fitness = self.fitness.lock().unwrap_or_else(PoisonError::into_inner);
        if fitness.fit && failures >= bearable {
            tracing::warn!(authority = %self.endpoint.authority, failures, "replica is unfit");
        }
        if !fitness.fit || failures >= bearable {
            *fitness = Fitness { fit: false, streak: 0, again: Instant::now() + REST };
        }
    }

    pub(super) fn is_fit(&self) -> bool {
        self.fitness.lock().unwrap_or_else(PoisonError::into_inner).fit
    }

    fn may_be_tried(&self, checked: bool) -> bool {
        let fitness = self.fitness.lock().unwrap_or_else(PoisonError::into_inner);
        fitness.fit || (!checked && fitness.again <= Instant::now())
    }
}

/// A host without the brackets that an IPv6 address wears in a URL.
pub(super) fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

pub(super) struct Replicas {
    all: Vec<Arc<Replica>>,
    health: Option<Health>,
    turn: AtomicUsize,
    /// Upstream session id → index of the replica that holds it.
    sessions: moka::sync::Cache<String, usize>,
}

impl Replicas {
    pub(super) fn new(all: Vec<Arc<Replica>>, health: Option<Health>) -> Replicas {
        Replicas { all, health, turn: AtomicUsize::new(0), sessions: moka::sync::Cache::new(SESSIONS_MAX) }
    }

    pub(super) fn all(&self) -> &[Arc<Replica>] {
        &self.all
    }

    pub(super) fn healthy(&self) -> bool {
        self.all.iter().any(|replica| replica.is_fit())
    }

    /// The replica for the next attempt: the session's own while it may be tried, else the least busy fit one, else
    /// the least bad of the rest. `None` when all were tried.
    pub(super) fn choose(&self, session: Option<&str>, tried: &[usize]) -> Option<&Arc<Replica>> {
        let untried = |replica: &&Arc<Replica>| !tried.contains(&replica.index);
        let usable = |replica: &&Arc<Replica>| untried(replica) && replica.may_be_tried(self.health.is_some());
        if let Some(replica) = session.and_then(|session| self.home(session)).filter(usable) {
            return Some(replica);
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = self.all.len().max(1);
        // Equally busy replicas take turns.
        let order = |replica: &&Arc<Replica>| {
            (replica.in_flight.load(Ordering::Relaxed), (replica.index + count - turn % count) % count)
        };
        self.all.iter().filter(usable).min_by_key(order).or_else(|| {
            let badness = |replica: &&Arc<Replica>| replica.failures.load(Ordering::Relaxed);
            self.all.iter().filter(untried).min_by_key(badness)
        })
    }

    /// The replica that holds a session; by hash where nobody remembers, so that it is at least always the same.
    fn home(&self, session: &str) -> Option<&Arc<Replica>> {
        if let [only] = self.all.as_slice() {
            return Some(only);
        }
        let index = self.sessions.get(session).or_else(|| {
            let digest = ring::digest::digest(&ring::digest::SHA256, session.as_bytes());
            let sum = digest
                .as_ref()
                .iter()
                .take(8)
                .fold(0usize, |sum, byte| sum.wrapping_mul(256).wrapping_add(usize::from(*byte)));
            sum.checked_rem(self.all.len())
        })?;
        self.all.get(index)
    }

    pub(super) fn remember(&self, session: &str, replica: &Replica) {
        if self.all.len() > 1 {
            self.sessions.insert(session.to_owned(), replica.index);
        }
    }

    pub(super) fn forget(&self, session: &str) {
        self.sessions.invalidate(session);
    }

    pub(super) fn succeeded(&self, replica: &Replica) {
        replica.succeeded(self.health.map_or(1, |health| health.healthy_after));
    }

    pub(super) fn failed(&self, replica: &Replica) {
        replica.failed(self.health.map_or(FAILURES_MAX, |health| health.unhealthy_after));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replicas(count: usize, health: Option<Health>) -> Replicas {
        let connecting = Connecting {
            connect_timeout: Duration::from_secs(1),
            write_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(1),
        };
        let replica = |index| {
            let place = Place::Tcp { host: "127.0.0.1".into(), port: 1 };
            let endpoint = Endpoint { tls: false, authority: "a".into(), place, path: "/".into() };
            Arc::new(Replica::new(index, endpoint, "a".into(), 0, connecting.clone()))
        };
        Replicas::new((0..count).map(replica).collect(), health)
    }

    const CHECKED: Health = Health {
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        unhealthy_after: 2,
        healthy_after: 2,
    };

    #[test]
    fn idle_replicas_take_turns_and_busy_ones_wait() {
        let replicas = replicas(3, None);
        let mut seen: Vec<usize> = (0..6).map(|_| replicas.choose(None, &[]).expect("one").index).collect();
        assert_eq!(seen.iter().filter(|index| **index == 0).count(), 2);
        let _busy = (replicas.all[0].enter(), replicas.all[1].enter());
        seen = (0..3).map(|_| replicas.choose(None, &[]).expect("one").index).collect();
        assert_eq!(seen, [2, 2, 2]);
        assert!(replicas.choose(None, &[0, 1, 2]).is_none());
    }

    #[test]
    fn a_checked_replica_becomes_unfit_and_fit_again_only_by_streaks() {
        let replicas = replicas(2, Some(CHECKED));
        let first = &replicas.all[0];
        replicas.failed(first);
        assert!(first.is_fit());
        replicas.succeeded(first);
        replicas.failed(first);
        assert!(first.is_fit(), "failures must follow one another");
        replicas.failed(first);
        assert!(!first.is_fit());
        assert!((0..4).all(|_| replicas.choose(None, &[]).expect("one").index == 1));
        assert_eq!(replicas.choose(None, &[1]).expect("the least bad").index, 0);
        replicas.succeeded(first);
        assert!(!first.is_fit());
        replicas.succeeded(first);
        assert!(first.is_fit());
    }

    #[test]
    fn a_session_stays_where_it_began() {
        let replicas = replicas(3, None);
        replicas.remember("s", &replicas.all[2]);
        assert!((0..5).all(|_| replicas.choose(Some("s"), &[]).expect("one").index == 2));
        let hashed = replicas.choose(Some("unknown"), &[]).expect("one").index;
        assert!((0..5).all(|_| replicas.choose(Some("unknown"), &[]).expect("one").index == hashed));
        assert_ne!(replicas.choose(Some("s"), &[2]).expect("another").index, 2);
        replicas.forget("s");
    }
}
