//! The life of one request, top to bottom. Read this file first.
//!
//! ```text
//! admit → verify → turn → parse → find → prepare → authorize → acquire → obtain → call → apply → close
//! ```
//!
//! Each step returns the value the next one needs; there is no other way to get it.
//! INVARIANT: one request, one reply, one audit record, also when a step fails, panics or the client leaves.

mod apply;
mod arguments;
mod confirm;
mod door;
mod errand;
mod federation;
mod flow;
mod house;
mod leave;
mod legacy;
mod list;
mod old;
mod open;
mod prepare;
mod rejection;
mod seal;
mod stream;
mod tasks;
mod tenants;

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt;
use http::HeaderValue;
use http::header::ALLOW;
use http::header::RETRY_AFTER;
use http::header::WWW_AUTHENTICATE;

pub use house::House;
pub use house::Life;
pub use house::Member;
pub use list::Lists;
pub use rejection::Facts;
pub use rejection::Rejection;
pub use rejection::Side;
pub use seal::Key;
pub use seal::KeyError;
pub use seal::Purpose;
pub use seal::Sealer;
pub use seal::Sessions;
pub use tenants::Certificate;
pub use tenants::Rule;
pub use tenants::Tenant;
pub use tenants::Tenants;
pub use tenants::Trouble;

use crate::audit::Audit;
use crate::exchange::Peer;
use crate::exchange::Reply;
use crate::exchange::Request;
use crate::exchange::RequestId;
use crate::identity::challenge;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::route::Entry;
use crate::telemetry::metrics::Metrics;
use apply::Outgoing;
use door::Lobby;
use errand::Errand;
use old::Berths;
use open::Open;
use prepare::Asked;

/// The spine. One per process, shared by its clones; what a reload changes is in the [`House`].
#[derive(Clone)]
pub struct Gateway {
    house: Arc<ArcSwap<House>>,
    audit: Arc<Audit>,
    metrics: Arc<Metrics>,
    /// What legacy sessions with modern backends are in the middle of.
    lobby: Arc<Lobby>,
    /// The open streams of HTTP+SSE.
    berths: Arc<Berths>,
}

/// What is known of a request that was refused before it could become a [`Request`].
#[derive(Debug)]
pub struct Head {
    pub id: RequestId,
    /// As sent, at most 16 bytes.
    pub http_method: String,
    /// As sent, at most 256 bytes.
    pub path: String,
    pub peer: Arc<Peer>,
    pub at: SystemTime,
    pub started: Instant,
    pub bytes_in: u64,
}

impl Gateway {
    pub fn new(house: Arc<House>, audit: Arc<Audit>, metrics: Arc<Metrics>) -> Gateway {
        Gateway { house: Arc::new(ArcSwap::new(house)), audit, metrics, lobby: Arc::default(), berths: Arc::default() }
    }

    /// The configuration in force. A request takes it once, so it sees one configuration from end to end.
    pub fn house(&self) -> Arc<House> {
        self.house.load_full()
    }

    /// Puts a new configuration in force and returns the old one. A tenant's house that is in both lives on.
    pub fn swap(&self, house: Arc<House>) -> Arc<House> {
        let old = self.house.swap(house.clone());
        let kept: HashSet<*const House> = house.houses().map(Arc::as_ptr).collect();
        old.houses().filter(|house| !kept.contains(&Arc::as_ptr(house))).for_each(|house| house.life.end());
        old
    }

    /// Total: one request, one reply, one audit record. Dropping the future (the client left) still leaves a record.
    pub async fn serve(&self, request: Request) -> Reply {
        let whole = self.house.load_full();
        let request = Arc::new(request);
        let mut open = Open::begin(&request, &self.audit, &self.metrics);
        let house = whole.of(&request); // the gateway's or a tenant's
        open.at(house.name());
        if !self.audit.available() {
            return self.reject(&house, (&request.host, &request.path), open, Rejection::AuditUnavailable);
        }
        // Boxed here, before it is wrapped: each wrapping moves it, and it is large.
        let work = AssertUnwindSafe(self.answer(&whole, &house, &request, &mut open).boxed()).catch_unwind();
        let ended = pingora::time::timeout(request.deadline.saturating_duration_since(Instant::now()), work).await;
        match settled(ended, &open) {
            Ok(outgoing) => outgoing.into_reply(open),
            Err(rejection) => self.reject(&house, (&request.host, &request.path), open, rejection),
        }
    }

    async fn answer(
        &self,
        whole: &House,
        place: &Arc<House>,
        request: &Arc<Request>,
        open: &mut Open,
    ) -> Result<Outgoing, Rejection> {
        let (route, entry) = place.resolve(&request.host, &request.path).ok_or(Rejection::NotFound)?;
        open.on(route);
        if let Entry::Messages(_) = entry {
            open.path(route.messages_path(""));
        }
        let (house, principal) = whole.receive(place.clone(), request).await?; // 401 here, and only here
        open.who(&principal);
        let (route, entry) = house.routes.resolve(&request.host, &request.path).ok_or(Rejection::NotFound)?;
        let (route, reloads) = (route.clone(), house.life.watch());
        // Of the whole process, whosever house it is: nobody crowds others out.
        let turn = Arc::new(whole.limits.turn(&principal, request.body.len()).await?);
        let errand = Errand {
            house: house.clone(),
            route,
            reloads,
            principal,
            request: request.clone(),
            slot: None,
            turn: turn.clone(),
        };
        let outgoing = self.carry_out(errand, entry, open).await;
        turn.end(); // whatever holds the errand on
        outgoing
    }

    async fn carry_out(&self, errand: Errand, entry: Entry<'_>, open: &mut Open) -> Result<Outgoing, Rejection> {
        match entry {
            Entry::Endpoint => {}
            Entry::Stream => return old::stream(self, errand, open).await,
            Entry::Messages(name) => return old::message(self, errand, name, open).boxed().await,
        }
        let asked = Asked::read(&errand.request, open)?; // the message; headers agree with body
        // authorize → acquire → obtain → call → apply
        match asked.era() {
            Era::Modern => errand.modern(asked, open).await,
            Era::Legacy => door::enter(&errand, asked, &self.lobby, open).boxed().await,
        }
    }

    /// An admission refusal: gets its reply and its record.
    pub fn refuse(&self, head: Head, rejection: Rejection) -> Reply {
        let house = self.house.load_full();
        let path = head.path.clone();
        self.reject(&house, ("", &path), Open::begin_bare(head, &self.audit, &self.metrics), rejection)
    }

    /// What the edge answers by itself gets its record too. While records cannot be written it is refused.
    pub fn note(&self, head: Head, reply: Reply) -> Reply {
        if !self.audit.available() {
            return self.refuse(head, Rejection::AuditUnavailable);
        }
        Open::begin_bare(head, &self.audit, &self.metrics).reply("answered", &reply);
        reply
    }

    /// Is this address within its rate, counted now? Before anything is read.
    ///
    /// # Errors
    /// [`Rejection::RateLimited`].
    pub fn admit(&self, peer: &Peer) -> Result<(), Rejection> {
        Ok(self.house.load().limits.admit(peer.address)?)
    }

    /// The document at a well-known path, for `GET` without a token: of a route (RFC 9728), or of a facade (RFC 8414).
    ///
    /// # Errors
    /// [`Rejection::NotFound`], and [`Rejection::Identity`] while the facade's issuer cannot be asked.
    pub async fn document(&self, host: &str, path: &str) -> Result<Bytes, Rejection> {
        let house = self.house.load_full();
        if let Some(document) = house.metadata(host, path) {
            return Ok(document);
        }
        let (facade, identifier, base) = house.authorization_server(path).ok_or(Rejection::NotFound)?;
        Ok(facade.description(&identifier, base).await?)
    }

    /// Registers a client at a facade (RFC 7591): one reply, one record.
    pub fn register(&self, head: Head, path: &str, body: &[u8]) -> Reply {
        let house = self.house.load_full();
        let admitted = if !self.audit.available() {
            Err(Rejection::AuditUnavailable)
        } else {
            house.identity.facade_registering_at(path).ok_or(Rejection::NotFound)
        };
        let admitted = admitted.and_then(|facade| {
            house.limits.register(head.peer.address)?;
            Ok(facade)
        });
        let facade = match admitted {
            Ok(facade) => facade,
            Err(rejection) => return self.refuse(head, rejection),
        };
        let mut open = Open::begin_bare(head, &self.audit, &self.metrics);
        match facade.register(body) {
            Ok(client) => {
                let reply = Reply::json(201, client);
                open.reply("answered", &reply);
                reply
            }
            Err(refused) => {
                let reply = Reply::json(400, refused.document());
                open.reason(refused.error);
                open.reply("refused", &reply);
                reply
            }
        }
    }

    /// Every refusal leaves here: status, headers, JSON-RPC error with the id, record.
    fn reject(&self, house: &House, (host, path): (&str, &str), open: Open, rejection: Rejection) -> Reply {
        let era = open.era();
        let facts = rejection.facts(era).to(open.id());
        let body = error_body(open.id(), facts.code, &rejection.words(), rejection.data(era));
        let mut reply = Reply::json(facts.status, body);
        let metadata_url = || house.metadata_url(host, path);
        let header = match &rejection {
            Rejection::Identity { problem } if facts.status == 401 => Some((
                WWW_AUTHENTICATE,
                challenge::challenge(
                    problem,
                    metadata_url().as_deref(),
                    &house.base_scopes(host, path),
                    house.identity.scheme(),
                ),
            )),
            other if other.asks_to_sign_in().is_some() => {
                let claims = other.asks_to_sign_in().flatten();
                let (scopes, scheme) = (house.base_scopes(host, path), house.identity.scheme());
                Some((WWW_AUTHENTICATE, challenge::interaction(claims, metadata_url().as_deref(), &scopes, scheme)))
            }
            Rejection::InsufficientScope { scopes } => {
                let (scopes, scheme) = (house.identity.asked_as(scopes), house.identity.scheme());
                Some((WWW_AUTHENTICATE, challenge::insufficient_scope(&scopes, metadata_url().as_deref(), scheme)))
            }
            Rejection::MethodNotAllowed { allow } => Some((ALLOW, (*allow).to_owned())),
            other if other.retry_after().is_some() => {
                Some((RETRY_AFTER, rejection::seconds(other.retry_after().unwrap_or_default()).to_string()))
            }
            _ if facts.retryable && facts.status >= 429 => Some((RETRY_AFTER, "1".to_owned())),
            _ => None,
        };
        if let Some((name, value)) = header
            && let Ok(value) = HeaderValue::try_from(value)
        {
            reply = reply.with(name, value);
        }
        for (name, value) in rejection.rate_limit() {
            if let Ok(value) = HeaderValue::try_from(value) {
                reply = reply.with(name, value);
            }
        }
        open.refused(&rejection, facts, &reply);
        reply
    }
}

/// What came of the work in its time.
fn settled<P, E>(ended: Result<Result<Result<Outgoing, Rejection>, P>, E>, open: &Open) -> Result<Outgoing, Rejection> {
    match ended {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_panic)) => Err(Rejection::Internal),
        // Before a backend was chosen nobody upstream is to blame.
        Err(_elapsed) => {
            Err(open.backend().map_or(Rejection::Overloaded, |backend| Rejection::BackendTimeout { backend }))
        }
    }
}

/// A JSON-RPC error message. SPEC: where the id could not be read MCP has none; JSON-RPC's null is no `RequestId`.
fn error_body(id: Option<&Id>, code: i64, words: &str, data: Option<serde_json::Value>) -> Bytes {
    let mut error = serde_json::json!({ "code": code, "message": words });
    if let (Some(data), Some(members)) = (data, error.as_object_mut()) {
        members.insert("data".to_owned(), data);
    }
    let id = id.map(|id| format!("\"id\":{},", id.as_json())).unwrap_or_default();
    format!("{{\"jsonrpc\":\"2.0\",{id}\"error\":{error}}}").into()
}
