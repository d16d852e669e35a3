//! Microsoft Entra ID: whose tokens are accepted, where each tenant's keys are, and what is special about the claims.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use futures_util::future::join_all;
use jsonwebtoken::Algorithm;
use serde_json::Value;
use url::Url;

use crate::credentials;
use crate::principal::Claims;
use crate::principal::Kind;

use super::Demand;
use super::Error;
use super::StartError;
use super::claims::Payload;
use super::groups::Resolver;
use super::groups::Tally;
use super::jwks::Source;
use super::jwt::Demanded;
use super::shared::Shared;
use crate::mcp::strict;

/// What stands for the tenant in the `issuer` of metadata and keys that several tenants share.
pub(super) const TENANT_PLACE: &str = "{tenantid}";

/// The tenant of all personal Microsoft accounts.
const PERSONAL: &str = "9188040d-6c67-4c5b-b112-36a304b66dad";

/// The one algorithm Entra signs with.
const ALGORITHMS: [Algorithm; 1] = [Algorithm::RS256];

/// Tokens of one or several Entra tenants, of version 1.0 and 2.0.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entra {
    pub cloud: Cloud,
    /// Another host in place of the cloud's, for both versions: an emulator of one's own. Without a slash at its end.
    pub authority: Option<String>,
    pub tenants: Tenants,
    /// Any of these must be in `aud`: the client id (version 2.0), the App ID URI (version 1.0).
    pub audiences: Vec<String>,
    /// At most 60 s.
    pub leeway: Duration,
    /// Accounts of other organisations that were invited are let in.
    pub guests: bool,
    /// Applications that act for themselves are let in.
    pub applications: bool,
    /// As of an [`Issuer`](super::Issuer).
    pub certificate_bound: Demand,
    pub dpop: Demand,
    /// Where the groups come from that tokens leave out; `None`: they stay unknown.
    pub groups: Option<Groups>,
}

/// Microsoft Graph is asked for the groups of callers who are in more than a token holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Groups {
    pub resolve: Resolve,
    /// The gateway's own application.
    pub client: credentials::Client,
    /// With a slash at its end; tokens are for it.
    pub graph: Url,
    /// Without distribution lists, roles and administrative units.
    pub security_only: bool,
    /// How long an answer is believed.
    pub keep: Duration,
    /// One question, the token for it included: a caller waits for it.
    pub timeout: Duration,
}

/// As whom Graph is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Resolve {
    /// As the gateway, about anybody.
    ClientCredentials,
    /// As the caller, about themselves.
    OnBehalfOf,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Cloud {
    China,
    #[default]
    Public,
    UsGovernment,
}

impl Cloud {
    /// Where people log in; begins the issuers of version 2.0.
    fn login(self) -> &'static str {
        match self {
            Cloud::China => "https://login.partner.microsoftonline.cn",
            Cloud::Public => "https://login.microsoftonline.com",
            Cloud::UsGovernment => "https://login.microsoftonline.us",
        }
    }

    /// Microsoft Graph; the one of the US Department of Defense (`dod-graph.microsoft.us`) has its login with the others.
    pub fn graph(self) -> &'static str {
        match self {
            Cloud::China => "https://microsoftgraph.chinacloudapi.cn/",
            Cloud::Public => "https://graph.microsoft.com/",
            Cloud::UsGovernment => "https://graph.microsoft.us/",
        }
    }

    /// Begins the issuers of version 1.0.
    fn sts(self) -> &'static str {
        match self {
            Cloud::China => "https://sts.chinacloudapi.cn",
            Cloud::Public | Cloud::UsGovernment => "https://sts.windows.net",
        }
    }

    /// The tenant that an `iss` of this cloud speaks of, of either version.
    pub fn tenant_of(self, iss: &str) -> Option<&str> {
        tenant_in(iss, self.login(), self.sts())
    }
}

fn tenant_in<'a>(iss: &'a str, login: &str, sts: &str) -> Option<&'a str> {
    let below = |base: &str| iss.strip_prefix(base)?.strip_prefix('/');
    let new = below(login).and_then(|rest| rest.strip_suffix("/v2.0"));
    let old = || below(sts).and_then(|rest| rest.strip_suffix('/'));
    new.filter(|tenant| is_id(tenant)).or_else(|| old().filter(|tenant| is_id(tenant)))
}

/// Whose accounts and applications.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Tenants {
    /// Personal accounts, too.
    Any,
    /// Ids in lower case, or verified domains.
    Listed(Vec<String>),
    /// Those of every organisation.
    Organizations,
}

impl Entra {
    /// The address of the cloud, or what stands in its place: tenants of one name there are one tenant.
    pub fn place_of_logins(&self) -> &str {
        self.login()
    }

    pub(super) fn login(&self) -> &str {
        self.authority.as_deref().unwrap_or(self.cloud.login())
    }

    fn sts(&self) -> &str {
        self.authority.as_deref().unwrap_or(self.cloud.sts())
    }

    /// What a principal of this tenant has as issuer, whichever version its token is of.
    pub(super) fn issuer(&self, tenant: &str) -> String {
        format!("{}/{tenant}/v2.0", self.login())
    }

    /// Where a client logs in: at the one tenant, or where any tenant's people can.
    pub fn place(&self) -> String {
        self.issuer(self.place_name())
    }

    /// What the metadata there must say it is of.
    pub fn named_there(&self) -> Named {
        self.named(self.place_name())
    }

    fn place_name(&self) -> &str {
        match &self.tenants {
            Tenants::Listed(names) => match names.as_slice() {
                [one] => one,
                _ => self.anybody(),
            },
            Tenants::Any | Tenants::Organizations => self.anybody(),
        }
    }

    /// The name of no tenant that stands for all.
    fn anybody(&self) -> &'static str {
        if self.tenants == Tenants::Any { "common" } else { "organizations" }
    }

    fn named(&self, name: &str) -> Named {
        let whose = match name {
            id if is_id(id) => Whose::Tenants(id.to_owned()),
            name if name == self.anybody() => Whose::Everybodys,
            _ => Whose::Somebodys,
        };
        Named { login: self.login().to_owned(), whose }
    }

    fn old_issuer(&self, tenant: &str) -> String {
        format!("{}/{tenant}/", self.sts())
    }

    /// The tenant that an `iss` speaks of, of either version.
    pub(super) fn tenant_of<'a>(&self, iss: &'a str) -> Option<&'a str> {
        tenant_in(iss, self.login(), self.sts())
    }

    /// Could a token be for both?
    pub fn overlaps(&self, other: &Entra) -> bool {
        let same_place = self.login() == other.login() || self.sts() == other.sts();
        same_place
            && match (&self.tenants, &other.tenants) {
                (Tenants::Listed(ours), Tenants::Listed(theirs)) => ours.iter().any(|one| theirs.contains(one)),
                _ => true,
            }
    }

    /// A token of an application, or of somebody it acts for? `scp` is what a person lets it do.
    fn is_application(payload: &Payload<'_>) -> bool {
        match payload.text("idtyp") {
            Some("app") => true,
            Some(_) => false,
            None => !payload.has("scp") && payload.text("oid").is_some() && payload.text("oid") == payload.text("sub"),
        }
    }

    /// Access tokens of both versions name the application that asked for them; ID tokens do not. It matters where one
    /// registration is client and API, for then the `aud` is the same.
    pub(super) fn check_type(payload: &Payload<'_>) -> Result<(), Error> {
        if payload.has("azp") || payload.has("appid") {
            return Ok(());
        }
        Err(Error::invalid("the token is an ID token, not an access token: it has neither `azp` nor `appid`"))
    }

    /// Completes what `claims` has so far with whom the token names. The token is verified, and from `tenant`.
    pub(super) fn name(&self, payload: &Payload<'_>, tenant: &str, claims: Claims) -> Result<Claims, Error> {
        if payload.text("tid") != Some(tenant) {
            return Err(Error::invalid("the token's `tid` is not the tenant that its `iss` names"));
        }
        // `sub` differs from application to application, and names can be given to somebody else.
        let subject = payload.name("oid")?.ok_or_else(|| Error::invalid("the token has no `oid`"))?;
        let application = Entra::is_application(payload);
        if application {
            self.check_application(payload, &claims)?;
        } else if !payload.has("scp") {
            return Err(Error::invalid("the token has no `scp`: ask for a scope of this API, not for its ID token"));
        }
        let guest = !application && self.is_guest(payload, tenant)?;
        if guest && !self.guests {
            return Err(Error::invalid("guests of the tenant are not accepted here"));
        }
        let kind = match &claims.actor {
            Some(_) => Kind::Agent,
            None if application => Kind::Service,
            None => Kind::User,
        };
        Ok(Claims {
            kind,
            subject,
            issuer: self.issuer(tenant),
            client: payload.first_name(["azp", "appid"])?,
            tenant: Some(tenant.to_owned()),
            guest,
            ..claims
        })
    }

    fn check_application(&self, payload: &Payload<'_>, claims: &Claims) -> Result<(), Error> {
        if !self.applications {
            return Err(Error::invalid("applications that act for themselves are not accepted here"));
        }
        if payload.has("scp") || !claims.scopes.is_empty() {
            return Err(Error::invalid("the token is an application's own, and has scopes, which only people give"));
        }
        // Any application of the tenant gets a token for any API; what tells those that were meant is a role.
        if claims.roles.is_empty() {
            return Err(Error::invalid("the token is an application's own and has no `roles`: give it an app role"));
        }
        Ok(())
    }

    /// `acct` says it (an optional claim); without it, `idp` is there and is another than the issuer.
    fn is_guest(&self, payload: &Payload<'_>, tenant: &str) -> Result<bool, Error> {
        let account = match payload.get("acct") {
            None => None,
            Some(Value::Number(number)) if number.as_u64().is_some_and(|kind| kind <= 1) => number.as_u64(),
            Some(Value::String(text)) if text == "0" || text == "1" => Some(u64::from(text == "1")),
            Some(_) => return Err(Error::invalid("the token's `acct` is neither 0 nor 1")),
        };
        let home = payload.name("idp")?;
        let elsewhere = home.is_some_and(|home| home != self.issuer(tenant) && home != self.old_issuer(tenant));
        Ok(account == Some(1) || (account.is_none() && elsewhere))
    }
}

/// The form of Entra's ids, in lower case as tokens have them.
pub fn is_id(text: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let good = |(index, byte)| if matches!(index, 8 | 13 | 18 | 23) { byte == b'-' } else { digit(byte) };
    text.len() == 36 && text.bytes().enumerate().all(good)
}

/// What the metadata at one place must say it is of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Named {
    login: String,
    whose: Whose,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Whose {
    Everybodys,
    /// Of the tenant that a domain belongs to: the metadata says which that is.
    Somebodys,
    Tenants(String),
}

pub(super) struct Metadata {
    pub(super) jwks_uri: Url,
    pub(super) tenant: Option<String>,
}

impl Named {
    /// Is this the issuer?
    pub(super) fn is(&self, issuer: &str) -> bool {
        self.tenant_in(issuer).is_some()
    }

    fn tenant_in<'a>(&self, issuer: &'a str) -> Option<&'a str> {
        let tenant = issuer.strip_prefix(self.login.as_str())?.strip_prefix('/')?.strip_suffix("/v2.0")?;
        let right = match &self.whose {
            Whose::Everybodys => tenant == TENANT_PLACE,
            Whose::Somebodys => is_id(tenant),
            Whose::Tenants(ours) => tenant == ours,
        };
        right.then_some(tenant)
    }

    pub(super) fn read(&self, document: &[u8]) -> Result<Metadata, &'static str> {
        let document = strict::object(document).ok_or("the metadata is not one strict JSON object")?;
        let text = |member: &str| document.get(member).and_then(Value::as_str);
        let tenant = text("issuer").and_then(|issuer| self.tenant_in(issuer));
        let tenant = tenant.ok_or("the metadata's `issuer` is not the one that was asked for")?;
        let jwks_uri = text("jwks_uri").and_then(|url| Url::parse(url).ok());
        Ok(Metadata {
            jwks_uri: jwks_uri.ok_or("the metadata's `jwks_uri` is missing or is not a URL")?,
            tenant: is_id(tenant).then(|| tenant.to_owned()),
        })
    }
}

/// The tenants of one entry of the configuration, each with the keys of its own.
pub(super) struct Directory {
    pub(super) config: Entra,
    /// One for each listed tenant, by the name it is listed with; one nameless for all.
    members: Vec<Member>,
    pub(super) groups: Option<Arc<Resolver>>,
}

struct Member {
    name: String,
    source: Arc<Source>,
}

impl Member {
    /// The id, as soon as it is known.
    fn tenant(&self) -> Option<&str> {
        if is_id(&self.name) { Some(&self.name) } else { self.source.tenant() }
    }
}

impl Directory {
    /// Keys that `previous` fetched from the same places are carried over, and groups that were asked for alike.
    pub(super) fn new(
        config: Entra,
        previous: &[Directory],
        shared: &mut Shared,
        tally: &Arc<Tally>,
    ) -> Result<Directory, StartError> {
        let fail = |reason: &str| StartError::Issuer { issuer: config.login().to_owned(), reason: reason.to_owned() };
        if config.audiences.is_empty() {
            return Err(fail("has no audience, so no token could be for us"));
        }
        let names = match &config.tenants {
            Tenants::Listed(names) if names.is_empty() => return Err(fail("has no tenant")),
            Tenants::Listed(names) => names.clone(),
            Tenants::Any | Tenants::Organizations => vec![config.anybody().to_owned()],
        };
        let mut members = Vec::with_capacity(names.len());
        for name in names {
            let known = previous.iter().filter(|old| old.config.login() == config.login());
            let known = known.flat_map(|old| &old.members).find(|member| member.name == name);
            let known = known.map(|known| Arc::clone(&known.source));
            let source = match known.or_else(|| shared.member(config.login(), &name)) {
                Some(known) => known,
                None => {
                    let issuer = config.issuer(&name);
                    let metadata = format!("{issuer}/.well-known/openid-configuration");
                    let origin = shared.fetchers.entra(&issuer, &metadata, config.named(&name))?;
                    Arc::new(Source::remote(&issuer, origin))
                }
            };
            members.push(Member { name, source });
        }
        let alike = |old: &&Directory| old.config.login() == config.login() && old.config.groups == config.groups;
        let groups = match (&config.groups, previous.iter().find(alike)) {
            (Some(_), Some(old)) => old.groups.clone(),
            (Some(groups), None) => {
                let resolver = Resolver::new(config.login(), groups, tally);
                Some(Arc::new(resolver.map_err(|reason| fail(&format!("groups: {reason}")))?))
            }
            (None, _) => None,
        };
        Ok(Directory { config, members, groups })
    }

    /// Each tenant by its name, with its keys.
    pub(super) fn named_sources(&self) -> impl Iterator<Item = (&str, &Arc<Source>)> {
        self.members.iter().map(|member| (member.name.as_str(), &member.source))
    }

    pub(super) fn demanded(&self) -> Demanded {
        Demanded { certificate_bound: self.config.certificate_bound, dpop: self.config.dpop }
    }

    pub(super) fn algorithms(&self) -> &[Algorithm] {
        &ALGORITHMS
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = &Arc<Source>> {
        self.members.iter().map(|member| &member.source)
    }

    /// Where a client logs in, by the tenant's id as soon as it is known.
    pub(super) fn login_at(&self) -> String {
        match self.members.as_slice() {
            [one] => self.config.issuer(one.tenant().unwrap_or(&one.name)),
            _ => self.config.place(),
        }
    }

    /// The issuer in its two forms, for whoever has sent a token of another.
    pub(super) fn expected(&self) -> [String; 2] {
        let tenant = match (&self.config.tenants, self.members.as_slice()) {
            (Tenants::Listed(_), [one]) => one.tenant().unwrap_or(&one.name),
            _ => TENANT_PLACE,
        };
        [self.config.issuer(tenant), self.config.old_issuer(tenant)]
    }

    /// The keys of an accepted tenant; asks whose a domain is, where that is not known yet.
    pub(super) async fn source(&self, tenant: &str, now: Instant) -> Result<Arc<Source>, Error> {
        let unaccepted = || Error::invalid("the token's tenant (`tid`) is not accepted here");
        let everybodys = match self.config.tenants {
            Tenants::Any => true,
            Tenants::Organizations if tenant == PERSONAL => return Err(unaccepted()),
            Tenants::Organizations => true,
            Tenants::Listed(_) => false,
        };
        let find = || {
            let member = self.members.iter().find(|member| everybodys || member.tenant() == Some(tenant));
            member.map(|member| Arc::clone(&member.source))
        };
        if let Some(source) = find() {
            return Ok(source);
        }
        let unknown = || self.members.iter().filter(|member| member.tenant().is_none());
        join_all(unknown().map(|member| member.source.prefetch(now))).await;
        if let Some(source) = find() {
            return Ok(source);
        }
        // It may be one of those.
        let unavailable = unknown().next().map(|member| Error::Unavailable { issuer: member.source.issuer().into() });
        Err(unavailable.unwrap_or_else(unaccepted))
    }
}
