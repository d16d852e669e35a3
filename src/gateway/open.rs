//! `Open`: the record of a request that is still alive. It is written exactly once: when closed, or when dropped.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Instant;

use super::Facts;
use super::Head;
use super::Rejection;
use super::leave::Tally;
use crate::audit;
use crate::audit::Audit;
use crate::audit::Record;
use crate::backend;
use crate::backend::Answer;
use crate::catalog::Call;
use crate::catalog::Mode;
use crate::exchange::Body;
use crate::exchange::Owes;
use crate::exchange::Peer;
use crate::exchange::Reply;
use crate::exchange::Request;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::policy::Denial;
use crate::policy::Permit;
use crate::principal::Principal;
use crate::route::Route;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::Trace;

pub(super) struct Open {
    record: Record,
    id: Option<Id>,
    era: Option<Era>,
    started: Instant,
    audit: Arc<Audit>,
    metrics: Arc<Metrics>,
    closed: bool,
    /// What the filters found, here and in whatever is done for this request.
    tally: Arc<Tally>,
    /// Its stream may carry answers to requests that were made elsewhere: is one to come?
    pub(super) owes: Option<Owes>,
    shadows: Shadows,
}

/// What policies in shadow mode would have changed, also where it is found out after the record went with a stream.
#[derive(Clone, Default)]
pub(super) struct Shadows(Arc<Mutex<BTreeSet<String>>>);

impl Shadows {
    pub(super) fn note(&self, ids: &[String]) {
        if !ids.is_empty() {
            self.ids().extend(ids.iter().cloned());
        }
    }

    fn ids(&self) -> MutexGuard<'_, BTreeSet<String>> {
        // A set of names is whole whatever happened to who held it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    pub(super) fn begin(request: &Request, audit: &Arc<Audit>, metrics: &Arc<Metrics>) -> Open {
        let record = Record {
            at: audit::timestamp(request.at),
            request_id: request.id.to_string(),
            http_method: request.verb.as_str(),
            path: request.path.clone(),
            bytes_in: request.body.len() as u64,
            trace_id: trace_of(request),
            ..Open::of_peer(&request.peer)
        };
        metrics.in_flight.inc();
        Open {
            record,
            id: None,
            era: None,
            started: request.started,
            audit: audit.clone(),
            metrics: metrics.clone(),
            closed: false,
            tally: Arc::new(Tally::new(metrics)),
            owes: None,
            shadows: Shadows::default(),
        }
    }

    /// For a request that never became a [`Request`].
    pub(super) fn begin_bare(head: Head, audit: &Arc<Audit>, metrics: &Arc<Metrics>) -> Open {
        let record = Record {
            at: audit::timestamp(head.at),
            request_id: head.id.to_string(),
            http_method: known_method(&head.http_method),
            path: head.path,
            bytes_in: head.bytes_in,
            ..Open::of_peer(&head.peer)
        };
        metrics.in_flight.inc();
        Open {
            record,
            id: None,
            era: None,
            started: head.started,
            audit: audit.clone(),
            metrics: metrics.clone(),
            closed: false,
            tally: Arc::new(Tally::new(metrics)),
            owes: None,
            shadows: Shadows::default(),
        }
    }

    /// One that stands for this request where something is done for it, and writes no record.
    pub(super) fn shadow(&self) -> Open {
        Open {
            record: Record { backend: self.record.backend.clone(), ..Record::default() },
            id: self.id.clone(),
            era: self.era,
            started: self.started,
            audit: self.audit.clone(),
            metrics: self.metrics.clone(),
            closed: true,
            tally: self.tally.clone(),
            owes: None,
            shadows: Shadows::default(),
        }
    }

    /// Gives the record to somebody who may outlive this request; what stays writes none.
    pub(super) fn lend(&mut self) -> Open {
        let shadow = self.shadow();
        std::mem::replace(self, shadow)
    }

    fn of_peer(peer: &Peer) -> Record {
        Record {
            peer: peer.address.map(|address| address.to_string()),
            listener: peer.listener.clone(),
            ..Record::default()
        }
    }

    /// The id to answer with, once it could be read.
    pub(super) fn id(&self) -> Option<&Id> {
        self.id.as_ref()
    }

    pub(super) fn era(&self) -> Option<Era> {
        self.era
    }

    pub(super) fn asks(&mut self, id: Option<&Id>, era: Era) {
        self.id = id.cloned();
        self.era = Some(era);
        self.record.era = Some(era.as_str());
    }

    pub(super) fn method(&mut self, method: &str) {
        self.record.method = Some(method.to_owned());
    }

    pub(super) fn who(&mut self, principal: &Principal) {
        self.record.auth = Some(principal.method.as_str());
        self.record.subject = Some(principal.subject.clone());
        self.record.issuer = Some(principal.issuer.clone());
        self.record.actor.clone_from(&principal.actor);
        self.record.client.clone_from(&principal.client);
        self.record.tenant = principal.tenant_name().map(str::to_owned);
        self.record.home = principal.home().cloned();
        self.record.caller = Some(principal.kind.as_str());
        self.record.scopes = principal.scopes.iter().cloned().collect();
        self.record.roles = principal.roles.iter().cloned().collect();
        self.record.groups = principal.groups.iter().cloned().collect();
        self.record.mtls = principal.mtls;
        self.record.acr.clone_from(&principal.acr);
        self.record.amr = principal.amr.iter().cloned().collect();
        self.record.auth_time = principal.auth_time.map(audit::timestamp);
        self.record.guest = principal.guest;
        self.record.groups_unknown = principal.groups_unknown;
    }

    /// In whose place it was asked for, whoever asks.
    pub(super) fn at(&mut self, tenant: Option<&Arc<str>>) {
        self.record.tenant = tenant.map(|name| name.to_string());
        self.record.home = tenant.cloned();
    }

    pub(super) fn on(&mut self, route: &Route) {
        self.record.route = Some(route.path.as_str().into());
    }

    /// What the record says of the path, where the path holds what is nobody else's to know.
    pub(super) fn path(&mut self, path: String) {
        self.record.path = path;
    }

    /// The backend it goes to; of several, the last.
    pub(super) fn to(&mut self, backend: &Arc<str>) {
        self.record.backend = Some(backend.clone());
    }

    pub(super) fn backend(&self) -> Option<Arc<str>> {
        self.record.backend.clone()
    }

    /// What was asked for by name, where nothing more is known of it.
    pub(super) fn target(&mut self, name: &str) {
        self.record.target = Some(name.to_owned());
    }

    /// For one of several calls that one request becomes: it notes into its own record, which is never written but
    /// [absorbed](Open::absorb).
    pub(super) fn branch(&self) -> Open {
        Open {
            record: Record { request_id: self.record.request_id.clone(), ..Record::default() },
            id: self.id.clone(),
            era: self.era,
            started: self.started,
            audit: self.audit.clone(),
            metrics: self.metrics.clone(),
            closed: true,
            tally: self.tally.clone(),
            owes: None,
            shadows: Shadows::default(),
        }
    }

    /// What a branch noted: the longest wait, all policies, the first one's mode; one yes is a yes.
    pub(super) fn absorb(&mut self, branch: Open) {
        let noted: Vec<String> = branch.shadows.ids().iter().cloned().collect();
        self.shadows.note(&noted);
        let branch = branch.record();
        self.record.upstream_us = self.record.upstream_us.max(branch.upstream_us);
        self.record.hidden += branch.hidden;
        self.record.effect = self.record.effect.or(branch.effect);
        self.record.mode = self.record.mode.or(branch.mode);
        if self.record.decision != Some("allowed") {
            self.record.decision = branch.decision.or(self.record.decision);
            self.record.denial = branch.denial;
        }
        for policy in branch.policies {
            if !self.record.policies.contains(&policy) {
                self.record.policies.push(policy);
            }
        }
    }

    fn record(mut self) -> Record {
        std::mem::take(&mut self.record)
    }

    /// For what is judged later, in the answer.
    pub(super) fn shadows(&self) -> Shadows {
        self.shadows.clone()
    }

    pub(super) fn what(&mut self, call: &Call, mode: Mode) {
        self.record.target = Some(call.decl.name.to_string());
        self.record.effect = Some(call.effect.as_str());
        self.record.mode = Some(mode.as_str());
        self.record.args_digest = call.arguments().map(|arguments| self.audit.digest_args(arguments));
    }

    pub(super) fn allowed_by(&mut self, permit: &Permit) {
        self.record.decision = Some("allowed");
        self.record.policies = permit.policies().to_vec();
        self.shadows.note(permit.shadows());
    }

    pub(super) fn denied_by(&mut self, denial: &Denial) {
        self.record.decision = Some("refused");
        self.record.denial = Some(denial.reason.as_str());
        self.record.policies = denial.policies.to_vec();
        self.shadows.note(&denial.shadows);
    }

    /// Runs an upstream call and notes how long it took to the start of its answer.
    pub(super) async fn timed(
        &mut self,
        call: impl Future<Output = Result<Answer, backend::Error>>,
    ) -> Result<Answer, backend::Error> {
        let from = Instant::now();
        let answer = call.await;
        self.record.upstream_us = Some(micros(from));
        if let Err(error) = &answer {
            tracing::warn!(request_id = %self.record.request_id, %error, "upstream call failed");
        }
        answer
    }

    pub(super) fn error_code(&mut self, code: Option<i64>) {
        self.record.error_code = code;
    }

    /// Entries of a list that this caller does not see.
    pub(super) fn hid(&mut self, hidden: usize) {
        self.record.hidden += hidden as u64;
    }

    pub(super) fn streamed(&mut self, bytes: usize) {
        self.record.bytes_out += bytes as u64;
        self.record.events_out += 1;
    }

    pub(super) fn refused(mut self, rejection: &Rejection, facts: Facts, reply: &Reply) {
        self.record.decision = Some("refused");
        self.record.reason = Some(facts.reason);
        self.record.limit = rejection.limit();
        self.record.error_code = Some(facts.code);
        tracing::info!(
            request_id = %self.record.request_id, reason = facts.reason, side = facts.side.as_str(), status = facts.status,
            "request refused"
        );
        let failed = facts.side != super::Side::Downstream;
        self.reply(if failed { "failed" } else { "refused" }, reply);
    }

    /// Closes with a whole reply.
    pub(super) fn reply(mut self, outcome: &'static str, reply: &Reply) {
        self.record.bytes_out = match &reply.body {
            Body::Full(bytes) => bytes.len() as u64,
            Body::Empty | Body::Events(_) => 0,
        };
        self.record.status = Some(reply.status);
        self.close(outcome);
    }

    pub(super) fn status(&mut self, status: u16) {
        self.record.status = Some(status);
    }

    pub(super) fn reason(&mut self, reason: &'static str) {
        self.record.reason = Some(reason);
    }

    /// Where the filters count what they find.
    pub(super) fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    pub(super) fn close(&mut self, outcome: &'static str) {
        if self.closed {
            return;
        }
        self.closed = true;
        self.record.outcome = Some(outcome);
        self.record.shadows = self.shadows.ids().iter().cloned().collect();
        self.record.duration_us = micros(self.started);
        self.record.filtered = self.tally.counts();
        self.record.confirmation = self.tally.confirmation();
        self.metrics.in_flight.dec();
        self.metrics.observe(&self.record);
        self.audit.record(std::mem::take(&mut self.record));
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Dropped while alive: the client left, or the process is going down.
        self.close("client_gone");
    }
}

fn micros(from: Instant) -> u64 {
    from.elapsed().as_micros().try_into().unwrap_or(u64::MAX)
}

fn known_method(sent: &str) -> &'static str {
    ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"]
        .into_iter()
        .find(|known| *known == sent)
        .unwrap_or("other")
}

fn trace_of(request: &Request) -> Option<String> {
    let sent = request.single_header("traceparent").ok().flatten()?;
    Trace::parse(sent).map(|trace| trace.trace_id())
}
