//! `Tenants`: whose request is it? Its host, its path, its certificate or what its verified credential says names one tenant.
//!
//! A tenant is a [`House`] of its own, inside the gateway's: who is verified there, what is granted, counted, kept and
//! sealed there is its own, or shared with the gateway where it states nothing.
//!
//! ```text
//! host, path prefix, certificate   known before anybody is verified: the tenant's own issuers verify
//! claim of the verified credential known after the gateway's issuers have verified
//! ```
//!
//! INVARIANT: all that a tenant states about its callers must hold. Whoever does not belong is told what a stranger is
//! told: that a credential is good somewhere else is nobody's to know here.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;

use super::House;
use super::Member;
use crate::exchange::ClientCertificate;
use crate::exchange::Request;
use crate::identity::CertificateMatch;
use crate::identity::Error;
use crate::identity::Subject;
use crate::principal::Principal;
use crate::route;
use crate::route::Entry;
use crate::route::Route;

/// What makes a house a tenant's.
#[derive(Clone, Debug)]
pub struct Tenant {
    pub name: Arc<str>,
    pub rule: Rule,
    /// Does it verify its callers by itself?
    pub own_identity: bool,
    /// Has it limits of its own?
    pub own_limits: bool,
    /// Can its callers' credentials be good for the gateway's issuers too? Then its claims are known there.
    pub known_to_gateway: bool,
    /// Names of the backends that are its own, and not the gateway's.
    pub own_backends: BTreeSet<Arc<str>>,
    /// Equal fingerprints mean the same tenant, all that it has from the gateway included.
    pub fingerprint: [u8; 32],
}

/// How requests and callers of one tenant are known.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    pub hosts: BTreeSet<String>,
    /// Everything at this path and below.
    pub path: Option<String>,
    /// What the credentials of its callers say about their tenant. Empty: whatever they say.
    pub claims: BTreeSet<String>,
    /// Any of them. Empty: with or without one.
    pub certificates: Vec<Certificate>,
}

/// Client certificates of one tenant: what is given must match.
#[derive(Clone, Debug, Default)]
pub struct Certificate {
    pub holder: Option<CertificateMatch>,
    pub issuer: Option<Subject>,
}

impl Certificate {
    fn matches(&self, certificate: &ClientCertificate) -> bool {
        self.holder.as_ref().is_none_or(|holder| holder.matches(certificate))
            && self.issuer.as_ref().is_none_or(|issuer| issuer.matches(&certificate.issuer))
    }
}

impl Rule {
    /// Is it known whose a request is before anybody is verified?
    pub fn has_place(&self) -> bool {
        !self.hosts.is_empty() || self.path.is_some() || !self.certificates.is_empty()
    }

    fn shows(&self, certificate: Option<&ClientCertificate>) -> bool {
        self.certificates.is_empty()
            || certificate.is_some_and(|certificate| self.certificates.iter().any(|one| one.matches(certificate)))
    }
}

/// A tenant that is not as it is written now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trouble {
    pub name: Arc<str>,
    /// It is in force as it was written before.
    pub kept: bool,
    /// Why, each with its place.
    pub problems: Vec<String>,
}

/// The tenants of a gateway, each found at once however many there are.
#[derive(Default)]
pub struct Tenants {
    all: Vec<Arc<House>>,
    by_host: HashMap<String, usize>,
    by_path: HashMap<String, usize>,
    by_claim: HashMap<String, usize>,
    names: HashSet<Arc<str>>,
    /// Those that nothing but a certificate leads to.
    by_certificate: Vec<usize>,
    /// What tenants have at the gateway's own addresses, whoever they are.
    entries: route::Config,
    troubles: Vec<Trouble>,
}

impl Tenants {
    /// INVARIANT: configuration has seen to it that no two claim the same.
    pub fn new(all: Vec<Arc<House>>, troubles: Vec<Trouble>) -> Tenants {
        let mut tenants = Tenants { troubles, ..Tenants::default() };
        let mut seen = BTreeSet::new();
        for (index, house) in all.iter().enumerate() {
            let Some(tenant) = &house.tenant else { continue };
            let rule = &tenant.rule;
            tenants.names.insert(tenant.name.clone());
            tenants.by_host.extend(rule.hosts.iter().map(|host| (host.clone(), index)));
            tenants.by_path.extend(rule.path.iter().map(|path| (path.clone(), index)));
            if rule.hosts.is_empty() && rule.path.is_none() {
                if !rule.certificates.is_empty() {
                    tenants.by_certificate.push(index);
                }
                let new =
                    house.routes.routes.iter().filter(|route| seen.insert((route.path.clone(), route.host.clone())));
                tenants.entries.routes.extend(new.cloned());
            }
            if tenant.known_to_gateway {
                tenants.by_claim.extend(rule.claims.iter().map(|claim| (claim.clone(), index)));
            }
        }
        tenants.all = all;
        tenants
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<House>> {
        self.all.iter()
    }

    pub fn troubles(&self) -> &[Trouble] {
        &self.troubles
    }

    pub fn find(&self, name: &str) -> Option<&Arc<House>> {
        self.all.iter().find(|house| house.tenant.as_ref().is_some_and(|tenant| &*tenant.name == name))
    }

    /// The tenant whose address this is: by host before by path, and by the longest path.
    pub(super) fn at(&self, host: &str, path: &str) -> Option<&Arc<House>> {
        let by_host = || self.by_host.get(route::bare(host));
        let mut part = path;
        let mut by_path = || {
            loop {
                if let Some(index) = self.by_path.get(part) {
                    return Some(index);
                }
                part = part.rsplit_once('/').map(|(before, _)| before).filter(|before| !before.is_empty())?;
            }
        };
        self.all.get(*by_host().or_else(&mut by_path)?)
    }

    /// Something is at the gateway's own addresses for some tenant.
    pub(super) fn entry<'a>(&self, host: &str, path: &'a str) -> Option<(&Arc<Route>, Entry<'a>)> {
        self.entries.resolve(host, path)
    }

    /// The tenant that a certificate alone leads to. Two of them are none: it is not certain whose it is.
    fn showing(&self, certificate: &ClientCertificate) -> Option<&Arc<House>> {
        let mut found = self
            .by_certificate
            .iter()
            .filter_map(|index| self.all.get(*index))
            .filter(|house| house.tenant.as_ref().is_some_and(|tenant| tenant.rule.shows(Some(certificate))));
        found.next().filter(|_| found.next().is_none())
    }

    fn claiming(&self, claim: &str) -> Option<&Arc<House>> {
        self.all.get(*self.by_claim.get(claim)?)
    }
}

impl House {
    /// Its configured name, where it is a tenant's.
    pub fn name(&self) -> Option<&Arc<str>> {
        self.tenant.as_ref().map(|tenant| &tenant.name)
    }

    /// The backends that are its own: a tenant has others from the gateway.
    pub fn own_members(&self) -> impl Iterator<Item = (&Arc<str>, &Member)> {
        let own = |name: &Arc<str>| self.tenant.as_ref().is_none_or(|tenant| tenant.own_backends.contains(name));
        self.members.iter().filter(move |(name, _)| own(name))
    }

    /// The name of its own backend in metrics and logs: of several tenants, several can have one of the same name.
    pub fn label(&self, backend: &str) -> String {
        self.name().map_or_else(|| backend.to_owned(), |tenant| format!("{tenant}/{backend}"))
    }

    /// The gateway and every tenant.
    pub fn houses(self: &Arc<House>) -> impl Iterator<Item = &Arc<House>> {
        std::iter::once(self).chain(self.tenants.iter())
    }

    /// The house that a request is at, as far as it is known before anybody is verified.
    pub(super) fn of(self: &Arc<House>, request: &Request) -> Arc<House> {
        if self.tenants.all.is_empty() {
            return self.clone();
        }
        if let Some(house) = self.tenants.at(&request.host, &request.path) {
            return house.clone();
        }
        // What cannot be understood names nobody here; who is verified is told what is wrong with it.
        let certificate = self.identity.certificate(request).ok().flatten();
        let house = certificate.and_then(|certificate| self.tenants.showing(&certificate)).unwrap_or(self);
        house.clone()
    }

    /// Who asks, and in which house: `place` is [`House::of`] the request.
    ///
    /// # Errors
    /// As [`Identity::verify`](crate::identity::Identity::verify), and the same words for whoever belongs elsewhere.
    pub(super) async fn receive(
        &self,
        place: Arc<House>,
        request: &Request,
    ) -> Result<(Arc<House>, Arc<Principal>), Error> {
        let principal = place.identity.verify(request).await?;
        let claim = principal.tenant.as_deref();
        if let Some(tenant) = &place.tenant {
            let belongs = tenant.has(claim, &self.tenants)
                && (tenant.rule.certificates.is_empty()
                    || tenant.rule.shows(self.identity.certificate(request)?.as_deref()));
            return if belongs {
                let at_home = principal.at_home(&tenant.name);
                // An issuer of its own that may say anything of tenants chooses nothing by what it says.
                let unvouched = tenant.own_identity && tenant.rule.claims.is_empty();
                let principal = if unvouched { at_home.unvouched() } else { at_home };
                Ok((place, Arc::new(principal)))
            } else {
                Err(place.identity.stranger(request))
            };
        }
        let Some(house) = claim.and_then(|claim| self.tenants.claiming(claim)) else {
            // Policies and limits know tenants by their configured names: nobody else may go by one.
            if claim.is_some_and(|claim| self.tenants.names.contains(claim)) {
                return Err(place.identity.stranger(request));
            }
            return Ok((place, principal));
        };
        match &house.tenant {
            Some(tenant) if !tenant.rule.has_place() => Ok((house.clone(), Arc::new(principal.at_home(&tenant.name)))),
            // It has an address of its own, or a certificate: this is not it.
            _ => Err(place.identity.stranger(request)),
        }
    }
}

impl Tenant {
    /// May a credential that says this about its tenant be one of its callers'?
    fn has(&self, claim: Option<&str>, all: &Tenants) -> bool {
        if !self.rule.claims.is_empty() {
            return claim.is_some_and(|claim| self.rule.claims.contains(claim));
        }
        // Its own issuers speak for it alone; those of the gateway for all, and then not for another one.
        let other = || claim.and_then(|claim| all.claiming(claim)).and_then(|house| house.name());
        self.own_identity || other().is_none_or(|other| *other == self.name)
    }
}
