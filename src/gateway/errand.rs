//! `Errand`: who asks, where, and under which configuration; and the way of one message to one backend.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::watch;

use super::House;
use super::Member;
use super::Open;
use super::Rejection;
use super::apply;
use super::apply::Desk;
use super::apply::Outgoing;
use super::arguments;
use super::confirm;
use super::confirm::Settled;
use super::federation::Federation;
use super::leave::Leaving;
use super::prepare;
use super::prepare::Asked;
use super::tasks;
use super::tasks::Named;
use crate::catalog::Action;
use crate::catalog::Call;
use crate::catalog::Decl;
use crate::catalog::Operation;
use crate::catalog::Session;
use crate::credentials::Credential;
use crate::exchange::Request;
use crate::limits::Slot;
use crate::limits::Turn;
use crate::mcp::list::ListKind;
use crate::policy::Permit;
use crate::principal::Principal;
use crate::route::Route;

/// What every step of one exchange needs, fixed once the caller is known. Owned, because streams outlive requests.
#[derive(Clone)]
pub(super) struct Errand {
    pub(super) house: Arc<House>,
    pub(super) route: Arc<Route>,
    pub(super) reloads: watch::Receiver<u64>,
    pub(super) principal: Arc<Principal>,
    pub(super) request: Arc<Request>,
    /// What is asked is a part of something that was counted and holds this.
    pub(super) slot: Option<Arc<Slot>>,
    /// Of the request that it began with: ends before anything is waited for.
    pub(super) turn: Arc<Turn>,
}

impl Errand {
    /// The only backend of a transparent route.
    pub(super) fn only_member(&self, open: &mut Open) -> Result<&Member, Rejection> {
        // INVARIANT: configuration refuses a route without a backend.
        let name = self.route.backends.first().ok_or(Rejection::Internal)?;
        self.member(name, open)
    }

    pub(super) fn member(&self, name: &Arc<str>, open: &mut Open) -> Result<&Member, Rejection> {
        open.to(name);
        // INVARIANT: configuration refuses a route to an unknown backend.
        self.house.members.get(name).ok_or(Rejection::Internal)
    }

    /// A transparent route: the message goes to its only backend as the client meant it.
    pub(super) async fn straight(&self, asked: Asked, open: &mut Open) -> Result<Outgoing, Rejection> {
        let member = self.only_member(open)?;
        let session = asked.session(&self.house.sealer, &self.principal, member, self.request.at)?;
        self.run(member, asked, session, open).await
    }

    /// A modern message, whatever the route: to its only backend, or to one or all of several.
    pub(super) async fn modern(&self, asked: Asked, open: &mut Open) -> Result<Outgoing, Rejection> {
        if let Some(names) = &self.route.names {
            return Box::pin(Federation::new(self, names).answer(asked, open)).await;
        }
        let member = self.only_member(open)?;
        self.run(member, asked, None, open).await
    }

    /// May the caller open a stream to any of the route's backends? Counted like a stream of one of them.
    pub(super) async fn connects(&self, open: &mut Open) -> Result<Slot, Rejection> {
        let permit = self.reaches(open)?;
        self.turn.end();
        Ok(self.house.limits.acquire_for(&self.principal, &permit).await?)
    }

    /// May the caller talk to any of the route's backends? Counted like a message to one of them.
    pub(super) async fn talks(&self, open: &mut Open) -> Result<(), Rejection> {
        let (key, tenant) = (self.principal.key(), self.principal.tenant_name());
        let permit = self.reaches(open)?;
        self.turn.end();
        drop(self.house.limits.acquire(key, tenant, &permit.call().decl.backend, None).await?);
        Ok(())
    }

    /// May the caller talk to any of the route's backends? Not counted: what is asked of them is.
    pub(super) fn is_admitted(&self, open: &mut Open) -> Result<(), Rejection> {
        self.reaches(open).map(drop)
    }

    fn reaches(&self, open: &mut Open) -> Result<Permit, Rejection> {
        let mut scopes: Vec<String> = Vec::new();
        for name in &self.route.backends {
            let member = self.member(name, open)?;
            let decl = prepare::connect(member);
            let (action, operation) = (Action::Connect, Operation::Stream { last_event_id: None });
            let call = Call { action, effect: decl.effect, decl, operation, session: None, version: None };
            let mode = self.house.ceiling(&self.route, member);
            open.what(&call, mode);
            let judged = prepare::Judged::of(&call, mode, &self.principal, &self.request, false);
            match self.house.policy.authorize(&self.principal, call, &judged.context) {
                Ok(permit) => {
                    open.allowed_by(&permit);
                    return Ok(permit);
                }
                Err(denial) => open.denied_by(&denial),
            }
            for scope in self.house.scopes_of(name) {
                if !scopes.contains(&scope) {
                    scopes.push(scope);
                }
            }
        }
        Err(Rejection::InsufficientScope { scopes })
    }

    /// With what a backend is asked about itself: the gateway's own credential, or where only callers have one this
    /// caller's, who must be allowed to talk to it.
    pub(super) async fn asks_with(&self, member: &Member) -> Result<Credential, Rejection> {
        self.turn.end();
        let deadline = self.request.deadline;
        if let Some(own) = member.credential.own(deadline).await? {
            return Ok(own);
        }
        let decl = prepare::connect(member);
        let (action, operation) = (Action::Connect, Operation::Stream { last_event_id: None });
        let call = Call { action, effect: decl.effect, decl, operation, session: None, version: None };
        let mode = self.house.ceiling(&self.route, member);
        let judged = prepare::Judged::of(&call, mode, &self.principal, &self.request, false);
        let permit = self.house.policy.authorize(&self.principal, call, &judged.context);
        let permit = permit
            .map_err(|_denial| Rejection::InsufficientScope { scopes: self.house.scopes_of(member.backend.name()) })?;
        Ok(member.credential.obtain(&permit, deadline).await?)
    }

    /// The same errand begun now: for what goes on after its request has been answered in part.
    pub(super) fn anew(&self) -> Errand {
        let old = &*self.request;
        let started = Instant::now();
        let request = Request {
            id: old.id,
            verb: old.verb,
            host: old.host.clone(),
            path: old.path.clone(),
            headers: old.headers.clone(),
            body: Bytes::new(),
            peer: old.peer.clone(),
            at: SystemTime::now(),
            started,
            deadline: started + self.span(),
        };
        Errand { request: Arc::new(request), ..self.clone() }
    }

    /// How long a request may take.
    pub(super) fn span(&self) -> Duration {
        self.request.deadline.saturating_duration_since(self.request.started)
    }

    /// One message to one backend: the judgement, and what comes after a yes.
    pub(super) async fn run(
        &self,
        member: &Member,
        asked: Asked,
        session: Option<Session>,
        open: &mut Open,
    ) -> Result<Outgoing, Rejection> {
        self.run_within(member, asked, session, None, open).await
    }

    /// [`Errand::run`] as a part of something that was counted and holds its slot already.
    pub(super) async fn run_within(
        &self,
        member: &Member,
        mut asked: Asked,
        session: Option<Session>,
        slot: Option<Arc<Slot>>,
        open: &mut Open,
    ) -> Result<Outgoing, Rejection> {
        let named = tasks::open(self, member, &mut asked)?; // ids in the upstream's words
        let said = confirm::take(self, member, &mut asked);
        let outcome = self.carry(member, asked, session, (slot, said), &named, open).await;
        outcome.map_err(|rejection| named.in_words_of_client(rejection))
    }

    async fn carry(
        &self,
        member: &Member,
        asked: Asked,
        session: Option<Session>,
        (slot, said): (Option<Arc<Slot>>, Option<confirm::Said>),
        named: &Named,
        open: &mut Open,
    ) -> Result<Outgoing, Rejection> {
        let (house, request) = (&self.house, &*self.request);
        let mode = house.ceiling(&self.route, member);
        let mirrors = asked.mirrors();
        let known = member.backend.catalog();
        if let Some(name) = asked.message().and_then(|message| message.params.name.as_deref()) {
            open.target(name); // what is found nowhere has been asked for all the same
        }
        let context = prepare::context(mode, &self.principal, request);
        let may_read = |decl: &Decl| house.policy.lists(&self.principal, decl, &context);
        let call = prepare::call(asked, session, member, self, may_read).await?; // target and effect known
        if !Arc::ptr_eq(&known, &member.backend.catalog()) {
            house.lists.changed(member.backend.name(), ListKind::Tools);
        }
        open.what(&call, mode);
        let judged = prepare::Judged::of(&call, mode, &self.principal, request, mirrors);
        let permit = match house.policy.authorize(&self.principal, call, &judged.context) {
            Ok(permit) => permit, // what was judged is what runs
            Err(denial) => return Err(Box::pin(judged.refuse(denial, member, open, self)).await),
        };
        judged.after(house, &self.principal, member)?;
        named.judge(self, member, &judged.context).await?;
        open.allowed_by(&permit);
        self.turn.end();
        let slot = match slot.or_else(|| self.slot.clone()) {
            Some(slot) => slot,
            None => Arc::new(house.limits.acquire_for(&self.principal, &permit).await?),
        };
        if let Some(told) = arguments::refused(permit.call(), &member.backend.catalog()) {
            open.reason("arguments_invalid");
            return Ok(told);
        }
        let confirmed = match confirm::settle(self, &permit, said, open)? {
            Settled::Ask(question) => return Ok(question),
            Settled::Go(confirmed) => confirmed,
        };
        house.limits.hold_backend(&slot, member.backend.name())?;
        let leaving = Leaving::of(member, permit.call(), open);
        let mut want = apply::Want::of(&permit, &house.lists, named);
        if member.credential.is_personal() {
            want.keep_nothing(); // whatever the upstream calls public, it was asked as this caller
        }
        let answer = match want.known(&house.lists) {
            Some(answer) => answer, // public, and asked for a moment ago
            None => {
                let credential = member.credential.obtain(&permit, request.deadline).await?;
                open.timed(member.backend.call(permit, credential, request.deadline)).await?
            }
        };
        let desk = Desk::new(self, member, judged.context, open.shadows());
        let outgoing = desk.apply(answer, want, slot, request).await?;
        let outgoing = match leaving {
            Some(leaving) => leaving.through(outgoing)?,
            None => outgoing,
        };
        Ok(match confirmed {
            Some(confirmed) => confirmed.goes_on(outgoing),
            None => outgoing,
        })
    }
}
