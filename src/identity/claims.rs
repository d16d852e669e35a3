//! From the claims of a token whose signature is good to `Claims`: audience, times, kind of token, who it names.

use std::collections::BTreeSet;
use std::time::Duration;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Map;
use serde_json::Value;

use crate::principal::Claims;
use crate::principal::Kind;
use crate::principal::Method;

use super::Error;
use super::Issuer;
use super::dpop::Thumbprint;
use super::entra::Entra;
use super::key::Key;

/// Scopes, roles, groups: more of any of them is refused, for a cut list could miss the one that forbids.
const VALUES_MAX: usize = 256;

const VALUE_BYTES_MAX: usize = 256;

/// `sub`, tenant, client, actor.
const NAME_BYTES_MAX: usize = 512;

/// The last second of the year 9999: whatever lies behind is no time but an accident or an attack.
const TIME_MAX: i64 = 253_402_300_799;

/// The cache needs a bound; a token that lives longer is verified again once a day.
const CACHED_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Members that only ID tokens have (OpenID Connect Core section 2 and 3.3.2.11).
const ID_TOKEN_CLAIMS: [&str; 4] = ["at_hash", "c_hash", "nonce", "s_hash"];

/// Names of audiences that a refusal lists at most.
const EXPECTED_MAX: usize = 3;

/// What an issuer's claims mean.
pub(super) enum Rules<'a> {
    /// With the tenant that `iss` names.
    Entra(&'a Entra, String),
    Oidc(&'a Issuer),
}

impl Rules<'_> {
    /// May this key of the issuer's sign for whom the token says it is from?
    pub(super) fn admit(&self, key: &Key) -> bool {
        match self {
            Rules::Entra(entra, tenant) => key.signs_for(&entra.issuer(tenant), tenant),
            Rules::Oidc(_) => true,
        }
    }

    fn audiences(&self) -> &[String] {
        match self {
            Rules::Entra(entra, _) => &entra.audiences,
            Rules::Oidc(issuer) => &issuer.audiences,
        }
    }

    fn groups_claim(&self) -> &str {
        match self {
            Rules::Entra(..) => "groups",
            Rules::Oidc(issuer) => &issuer.groups_claim,
        }
    }
}

pub(super) struct Accepted {
    pub(super) claims: Claims,
    pub(super) times: Times,
    pub(super) bound_to: BoundTo,
}

/// The proofs of possession that must come along with a token (RFC 7800); all that are named.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct BoundTo {
    /// Hex SHA-256 of a client certificate (RFC 8705 section 3.1).
    pub(super) certificate: Option<String>,
    /// Thumbprint of a key (RFC 9449 section 6.1).
    pub(super) key: Option<Thumbprint>,
}

/// Seconds since the epoch; fractions are rounded to the careful side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    expires: i64,
    not_before: Option<i64>,
    issued: Option<i64>,
}

impl Times {
    fn read(payload: &Payload<'_>) -> Result<Times, Error> {
        let expires = payload.time("exp", f64::floor)?;
        let expires = expires.ok_or_else(|| Error::invalid("the token has no `exp`"))?;
        Ok(Times { expires, not_before: payload.time("nbf", f64::ceil)?, issued: payload.time("iat", f64::ceil)? })
    }

    pub(super) fn check(&self, now: i64, leeway_s: i64) -> Result<(), Error> {
        let latest = now.saturating_add(leeway_s);
        if now >= self.expires.saturating_add(leeway_s) {
            return Err(Error::invalid("the token has expired"));
        }
        if self.not_before.is_some_and(|time| time > latest) {
            return Err(Error::invalid("the token is not valid yet (`nbf`)"));
        }
        if self.issued.is_some_and(|time| time > latest) {
            return Err(Error::invalid("the token was issued in the future (`iat`)"));
        }
        Ok(())
    }

    pub(super) fn until_expiry(&self, now: i64) -> Duration {
        let left = u64::try_from(self.expires.saturating_sub(now)).unwrap_or(0);
        Duration::from_secs(left).min(CACHED_MAX)
    }
}

/// Checks what the claims say about the token, then reads whom they name.
pub(super) fn accept(payload: &Map<String, Value>, rules: &Rules<'_>, mtls: bool) -> Result<Accepted, Error> {
    let payload = Payload(payload);
    let times = Times::read(&payload)?;
    payload.check_type()?;
    if let Rules::Entra(..) = rules {
        Entra::check_type(&payload)?;
    }
    payload.check_audience(rules.audiences())?;
    let bound_to = payload.confirmation()?;

    let mut scopes = payload.words("scope")?;
    scopes.extend(payload.words("scp")?);
    bounded("scp", &scopes)?;
    let claims = Claims {
        actor: payload.actor()?,
        scopes,
        roles: payload.values("roles")?,
        groups: payload.values(rules.groups_claim())?,
        groups_unknown: payload.leaves_out(rules.groups_claim()),
        acr: payload.assurance()?,
        amr: payload.values("amr")?,
        auth_time: payload.time("auth_time", f64::floor)?.and_then(moment),
        method: if bound_to.key.is_some() { Method::Dpop } else { Method::Bearer },
        mtls,
        expires_at: moment(times.expires),
        ..Claims::default()
    };
    let claims = match rules {
        Rules::Entra(entra, tenant) => entra.name(&payload, tenant, claims)?,
        Rules::Oidc(issuer) => name(issuer, &payload, claims)?,
    };
    Ok(Accepted { claims, times, bound_to })
}

/// Completes what `claims` has so far with whom a token of any issuer names.
fn name(issuer: &Issuer, payload: &Payload<'_>, claims: Claims) -> Result<Claims, Error> {
    let client = payload.first_name(["azp", "client_id", "appid"])?;
    let subject = payload.subject()?;
    let kind = match &claims.actor {
        // Somebody acts for the subject: an agent, never mistaken for the person.
        Some(_) => Kind::Agent,
        None => payload.kind(&subject, client.as_deref(), &claims.scopes),
    };
    let tenant = payload.tenant(&issuer.tenant_claims)?;
    Ok(Claims { kind, subject, issuer: issuer.issuer.clone(), client, tenant, ..claims })
}

/// The claims as sent, with readers that refuse what has the wrong form instead of passing over it.
pub(super) struct Payload<'a>(&'a Map<String, Value>);

impl<'a> Payload<'a> {
    pub(super) fn get(&self, claim: &str) -> Option<&'a Value> {
        self.0.get(claim)
    }

    pub(super) fn has(&self, claim: &str) -> bool {
        self.0.contains_key(claim)
    }

    /// The claim if it is a text, for a comparison.
    pub(super) fn text(&self, claim: &str) -> Option<&'a str> {
        self.0.get(claim).and_then(Value::as_str)
    }

    /// A NumericDate (RFC 7519 section 2): a JSON number, not negative, within the calendar.
    fn time(&self, claim: &str, round: fn(f64) -> f64) -> Result<Option<i64>, Error> {
        let Some(value) = self.0.get(claim) else { return Ok(None) };
        let whole = value.as_i64().or_else(|| {
            let number =
                value.as_f64().filter(|number| number.is_finite() && (0.0..=TIME_MAX as f64).contains(number))?;
            // Within 0 and TIME_MAX, so the conversion is exact.
            Some(round(number) as i64)
        });
        match whole {
            Some(time) if (0..=TIME_MAX).contains(&time) => Ok(Some(time)),
            _ => Err(Error::invalid(format!("the token's `{claim}` is not a time in seconds"))),
        }
    }

    fn check_audience(&self, accepted: &[String]) -> Result<(), Error> {
        let is_ours = |value: &Value| value.as_str().is_some_and(|name| accepted.iter().any(|ours| ours == name));
        let good = match self.0.get("aud") {
            Some(Value::Array(names)) => names.iter().all(Value::is_string) && names.iter().any(is_ours),
            Some(value) => is_ours(value),
            None => false,
        };
        if good {
            return Ok(());
        }
        let expected = super::expected(accepted.get(..EXPECTED_MAX).unwrap_or(accepted));
        Err(Error::invalid(format!("the token's `aud` does not contain an accepted audience; expected {expected}")))
    }

    /// Tokens of other types that the same issuer signs with the same keys.
    fn check_type(&self) -> Result<(), Error> {
        if ID_TOKEN_CLAIMS.iter().any(|claim| self.0.contains_key(*claim)) {
            return Err(Error::invalid("the token is an ID token, not an access token"));
        }
        // Keycloak tells its token types apart here; access tokens are `Bearer`.
        let kind = self.0.get("typ").and_then(Value::as_str).unwrap_or_default();
        if ["id", "logout", "offline", "refresh"].iter().any(|other| kind.eq_ignore_ascii_case(other)) {
            return Err(Error::invalid("the token's `typ` claim is not that of an access token"));
        }
        Ok(())
    }

    /// RFC 7800: a proof that we cannot check must not be passed over, or a stolen token would be as good as its own.
    fn confirmation(&self) -> Result<BoundTo, Error> {
        let Some(confirmation) = self.0.get("cnf") else { return Ok(BoundTo::default()) };
        let unknown = || Error::invalid("the token is bound to a proof of possession that is not supported (`cnf`)");
        let digest = |value: &Value| URL_SAFE_NO_PAD.decode(value.as_str()?).ok()?.try_into().ok();
        let members = confirmation.as_object().filter(|members| !members.is_empty()).ok_or_else(unknown)?;
        let mut bound_to = BoundTo::default();
        for (member, value) in members {
            let print: Thumbprint = digest(value).ok_or_else(unknown)?;
            match member.as_str() {
                "jkt" => bound_to.key = Some(print),
                "x5t#S256" => bound_to.certificate = Some(super::hex(&print)),
                _ => return Err(unknown()),
            }
        }
        Ok(bound_to)
    }

    /// `sub`; tokens of Entra applications may have `oid` alone.
    fn subject(&self) -> Result<String, Error> {
        let application = self.text("idtyp") == Some("app");
        let subject = match self.name("sub")? {
            None if application => self.name("oid")?,
            subject => subject,
        };
        subject.ok_or_else(|| Error::invalid("the token has no `sub`"))
    }

    /// An application that acts for itself is a service: as Entra says it, as RFC 9068 section 2.2 says it
    /// (`sub` is the client), or as Entra tokens without `idtyp` show it (no delegated scopes, `sub` is `oid`).
    fn kind(&self, subject: &str, client: Option<&str>, scopes: &BTreeSet<String>) -> Kind {
        match self.text("idtyp") {
            Some("app") => return Kind::Service,
            Some("user") => return Kind::User,
            _ => {}
        }
        let itself = client == Some(subject);
        let entra = scopes.is_empty() && self.has("roles") && self.text("oid") == Some(subject);
        if itself || entra { Kind::Service } else { Kind::User }
    }

    /// RFC 8693 section 4.1: the outermost `act` is who acts now.
    fn actor(&self) -> Result<Option<String>, Error> {
        match self.0.get("act") {
            None => Ok(None),
            Some(Value::Object(actor)) => match Payload(actor).name("sub")? {
                None => Err(Error::invalid("the token's `act` has no `sub`")),
                name => Ok(name),
            },
            Some(_) => Err(Error::invalid("the token's `act` is not an object")),
        }
    }

    /// `acr`; some issuers count their levels.
    fn assurance(&self) -> Result<Option<String>, Error> {
        match self.0.get("acr") {
            Some(Value::Number(level)) if level.is_u64() => Ok(Some(level.to_string())),
            _ => self.name("acr"),
        }
    }

    fn tenant(&self, claims: &[String]) -> Result<Option<String>, Error> {
        let Some(claim) = claims.iter().find(|claim| self.0.contains_key(claim.as_str())) else { return Ok(None) };
        let tenant = self.name(claim)?;
        // `|` separates the parts of a principal's key.
        if tenant.as_ref().is_some_and(|tenant| tenant.contains('|')) {
            return Err(Error::invalid(format!("the token's `{claim}` is not fit to name a tenant")));
        }
        Ok(tenant)
    }

    pub(super) fn first_name<const N: usize>(&self, claims: [&str; N]) -> Result<Option<String>, Error> {
        claims.iter().find(|claim| self.0.contains_key(**claim)).map_or(Ok(None), |claim| self.name(claim))
    }

    /// A claim that names one thing.
    pub(super) fn name(&self, claim: &str) -> Result<Option<String>, Error> {
        match self.0.get(claim) {
            None => Ok(None),
            Some(Value::String(name)) if is_name(name, NAME_BYTES_MAX) => Ok(Some(name.clone())),
            Some(_) => Err(Error::invalid(format!("the token's `{claim}` is not a name"))),
        }
    }

    /// Scopes: words in one string, or an array with one word each. Never a part of a word.
    fn words(&self, claim: &str) -> Result<BTreeSet<String>, Error> {
        match self.0.get(claim) {
            Some(Value::String(text)) => {
                let words = text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
                bounded(claim, &words)?;
                Ok(words)
            }
            _ => {
                let words = self.values(claim)?;
                match words.iter().any(|word| word.contains(' ')) {
                    true => Err(malformed(claim)),
                    false => Ok(words),
                }
            }
        }
    }

    /// Roles and groups: an array of strings, or one string that is one value whatever it contains.
    fn values(&self, claim: &str) -> Result<BTreeSet<String>, Error> {
        let values = match self.0.get(claim) {
            None => BTreeSet::new(),
            Some(Value::String(value)) => BTreeSet::from([value.clone()]),
            Some(Value::Array(values)) if values.len() <= VALUES_MAX => {
                let texts = values.iter().map(|value| value.as_str().map(str::to_owned));
                texts.collect::<Option<_>>().ok_or_else(|| malformed(claim))?
            }
            Some(_) => return Err(malformed(claim)),
        };
        bounded(claim, &values)?;
        Ok(values)
    }

    /// Entra leaves out the groups of a user who has too many and names a place to ask for them. To take that for a user
    /// without groups would let them past every rule that forbids by group.
    fn leaves_out(&self, groups_claim: &str) -> bool {
        let elsewhere = match self.0.get("_claim_names") {
            None => false,
            Some(Value::Object(names)) => names.contains_key(groups_claim),
            // Something is left out, and who knows what.
            Some(_) => true,
        };
        elsewhere || self.0.get("hasgroups").is_some_and(|has| *has != Value::Bool(false))
    }
}

/// `None` for what no clock can show.
fn moment(seconds: i64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

fn is_name(name: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&name.len()) && !name.contains(char::is_control)
}

fn bounded(claim: &str, values: &BTreeSet<String>) -> Result<(), Error> {
    let good = values.len() <= VALUES_MAX && values.iter().all(|value| is_name(value, VALUE_BYTES_MAX));
    if good { Ok(()) } else { Err(malformed(claim)) }
}

fn malformed(claim: &str) -> Error {
    Error::invalid(format!("the token's `{claim}` is not at most {VALUES_MAX} short texts"))
}
