//! Requests of an audit log under other rules: what is recorded decides, and what is not recorded is never guessed.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

use super::cases;
use super::matrix::columns;
use super::rulebook::Rulebook;
use crate::catalog::Action;
use crate::catalog::Decl;
use crate::catalog::Effect;
use crate::catalog::Kind;
use crate::catalog::Mode;
use crate::mcp::Method;
use crate::policy::Context;
use crate::policy::Outlook;
use crate::policy::Prospect;
use crate::principal;
use crate::principal::Claims;
use crate::principal::Principal;

/// A record has a few kilobytes at most; a longer line is none.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// What the log cuts ends in this.
const CUT: char = '…';

/// A record, as far as a judgement needs it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Record {
    kind: String,
    at: String,
    peer: Option<String>,
    subject: Option<String>,
    issuer: Option<String>,
    actor: Option<String>,
    client: Option<String>,
    tenant: Option<String>,
    caller: Option<String>,
    scopes: Vec<String>,
    scopes_more: u64,
    roles: Vec<String>,
    roles_more: u64,
    groups: Vec<String>,
    groups_more: u64,
    mtls: bool,
    acr: Option<String>,
    amr: Vec<String>,
    amr_more: u64,
    auth_time: Option<String>,
    guest: bool,
    groups_unknown: bool,
    route: Option<String>,
    backend: Option<String>,
    method: Option<String>,
    target: Option<String>,
    effect: Option<Effect>,
    mode: Option<Mode>,
    args_digest: Option<String>,
    decision: Option<String>,
    denial: Option<String>,
    policies: Vec<String>,
}

/// What became of one request.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Turn {
    Denied,
    Allowed,
    Unknown,
}

impl Turn {
    fn as_str(self) -> &'static str {
        match self {
            Turn::Denied => "denied",
            Turn::Allowed => "allowed",
            Turn::Unknown => "unknown",
        }
    }
}

/// All requests of a log.
#[derive(Debug, Default)]
pub(super) struct Replay {
    requests: u64,
    /// No policy had judged them: refused before, or no request.
    unjudged: u64,
    same: u64,
    turns: BTreeMap<(Turn, String, String), u64>,
}

/// How many requests of the log at `path`, decided by `old`, would `new` decide otherwise?
pub(super) fn replay(path: &Path, old: &Rulebook, new: &Rulebook) -> Result<Replay, String> {
    let unreadable = |error: std::io::Error| format!("`{}` cannot be read: {error}", path.display());
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut replay = Replay::default();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(unreadable)?;
        if line.trim().is_empty() {
            continue;
        }
        let wrong = || format!("{}:{}: is no audit record", path.display(), index + 1);
        if line.len() > LINE_BYTES_MAX {
            return Err(wrong());
        }
        let record: Record = serde_json::from_str(&line).map_err(|_| wrong())?;
        if record.kind == "request" {
            replay.take(&record, old, new);
        }
    }
    Ok(replay)
}

impl Replay {
    fn take(&mut self, record: &Record, old: &Rulebook, new: &Rulebook) {
        self.requests += 1;
        let Some(was) = record.was() else {
            self.unjudged += 1;
            return;
        };
        let (turn, why) = match record.judge(old, new) {
            Ok(Judged { allowed, .. }) if allowed == was => {
                self.same += 1;
                return;
            }
            Ok(Judged { allowed: true, why }) => (Turn::Allowed, why),
            Ok(Judged { allowed: false, why }) => (Turn::Denied, why),
            Err(Unknown::Same) => {
                self.same += 1;
                return;
            }
            Err(Unknown::Because(why)) => (Turn::Unknown, why),
        };
        *self.turns.entry((turn, record.what(), why)).or_default() += 1;
    }

    /// Nothing is known to change.
    pub(super) fn is_the_same(&self) -> bool {
        self.turns.keys().all(|(turn, ..)| *turn == Turn::Unknown)
    }

    fn count(&self, wanted: Turn) -> u64 {
        self.turns.iter().filter(|((turn, ..), _)| *turn == wanted).map(|(_, count)| count).sum()
    }

    pub(super) fn text(&self) -> String {
        let mut out = format!(
            "{} requests: {} as before, {} denied instead of allowed, {} allowed instead of denied, {} unknown, {} that \
             no policy had judged\n",
            self.requests,
            self.same,
            self.count(Turn::Denied),
            self.count(Turn::Allowed),
            self.count(Turn::Unknown),
            self.unjudged
        );
        if self.turns.is_empty() {
            return out;
        }
        let head = ["requests", "now", "tool", "why"].map(str::to_owned).to_vec();
        let rows = self.turns.iter().map(|((turn, what, why), count)| {
            vec![count.to_string(), turn.as_str().to_owned(), super::plain(what), super::plain(why)]
        });
        let grid: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
        let _ = write!(out, "\n{}", columns(&grid));
        out
    }

    pub(super) fn json(&self) -> Value {
        let turns: Vec<Value> = self
            .turns
            .iter()
            .map(|((turn, what, why), count)| {
                json!({ "now": turn.as_str(), "target": what, "why": why, "requests": count })
            })
            .collect();
        json!({ "requests": self.requests, "same": self.same, "unjudged": self.unjudged, "changes": turns })
    }
}

struct Judged {
    allowed: bool,
    why: String,
}

enum Unknown {
    /// Whatever it is, it is what it was.
    Same,
    Because(String),
}

fn unknown<T>(why: &str) -> Result<T, Unknown> {
    Err(Unknown::Because(why.to_owned()))
}

impl Record {
    /// What the policies said; `None` if they were not asked.
    fn was(&self) -> Option<bool> {
        match (&self.denial, self.decision.as_deref()) {
            (Some(_), _) => Some(false),
            (None, Some("allowed")) => Some(true),
            // Allowed, and refused for something else.
            (None, Some(_)) if !self.policies.is_empty() => Some(true),
            _ => None,
        }
    }

    fn method(&self) -> Option<Method> {
        self.method.as_deref().and_then(Method::find)
    }

    fn what(&self) -> String {
        let backend = self.backend.as_deref().unwrap_or("?");
        match self.asked() {
            Some((_, Kind::Backend)) | None => format!("{backend} ({})", self.method.as_deref().unwrap_or("connect")),
            Some(_) => format!("{backend}/{}", self.target.as_deref().unwrap_or("?")),
        }
    }

    /// `None` where the record does not say it.
    fn asked(&self) -> Option<(Action, Kind)> {
        Some(match self.method() {
            Some(Method::ToolsCall) => (Action::Call, Kind::Tool),
            Some(Method::TasksList) => return None,
            Some(method) if method.is_of_task() => (Action::Call, Kind::Tool),
            Some(Method::PromptsGet) => (Action::Get, Kind::Prompt),
            Some(Method::ResourcesRead | Method::ResourcesSubscribe | Method::ResourcesUnsubscribe) => {
                (Action::Read, Kind::Resource)
            }
            // Of a prompt or of a resource.
            Some(Method::CompletionComplete) => return None,
            _ => (Action::Connect, Kind::Backend),
        })
    }

    fn judge(&self, old: &Rulebook, new: &Rulebook) -> Result<Judged, Unknown> {
        let Some((action, kind)) = self.asked() else {
            return unknown("the record does not say what was asked for");
        };
        let (Some(backend), Some(target), Some(then), Some(effect)) =
            (&self.backend, &self.target, self.mode, self.effect)
        else {
            return unknown("the record does not say what was asked for");
        };
        if target.ends_with(CUT) {
            return unknown("the record holds only the beginning of the name");
        }
        if kind == Kind::Backend && **backend != **target {
            return unknown("several backends were asked");
        }
        let claims = self.claims()?;
        let principal = Principal::supposed(claims);
        let mode = self.mode_under(new, backend, then)?;
        let now = effect_under(old, new, backend, target, kind, effect)?;
        let context = |mode| self.context(mode);
        let decl = |effect| Decl::plain(kind, backend.as_str().into(), target, effect);
        let outlook = new.policy.outlook(&principal, action, &decl(now), &context(mode)?);
        let why = |allowed: bool, outlook: &Outlook| Judged { allowed, why: self.why(allowed, outlook, new) };
        match outlook.prospect {
            Prospect::Allow => Ok(why(true, &outlook)),
            Prospect::Deny(_) => Ok(why(false, &outlook)),
            Prospect::Depends { allowed } => Ok(why(allowed, &outlook)),
            // Nothing was sent, or nothing is sent again: that is known.
            Prospect::Listed if self.args_digest.is_none() => {
                let method = self.method().unwrap_or(Method::ToolsCall);
                let call = cases::call(action, &decl(now), None, method);
                Ok(match new.policy.authorize(&principal, call, &context(mode)?) {
                    Ok(permit) => {
                        let outlook = Outlook { policies: permit.policies().clone(), ..outlook };
                        why(true, &outlook)
                    }
                    Err(denial) => {
                        let prospect = Prospect::Deny(denial.reason);
                        let outlook = Outlook { prospect, policies: denial.policies, ..outlook };
                        why(false, &outlook)
                    }
                })
            }
            Prospect::Listed => {
                let before = old.policy.outlook(&principal, action, &decl(effect), &context(then)?);
                let same = before.prospect == Prospect::Listed
                    && (then, effect) == (mode, now)
                    && texts(old, &before) == texts(new, &outlook);
                if same { Err(Unknown::Same) } else { unknown("depends on arguments, which no record holds") }
            }
        }
    }

    /// Which policies make the difference.
    fn why(&self, allowed: bool, outlook: &Outlook, new: &Rulebook) -> String {
        let named = |ids: &[String]| {
            let ids: Vec<String> = ids.iter().map(|id| format!("`{id}` ({})", new.place(id))).collect();
            ids.join(", ")
        };
        match outlook.prospect {
            _ if allowed => format!("permitted by {}", named(&outlook.policies)),
            Prospect::Deny(crate::policy::Reason::Ceiling) => "above the mode's ceiling".to_owned(),
            _ if !outlook.policies.is_empty() => format!("by {}", named(&outlook.policies)),
            _ => format!("nothing permits it; it was permitted by `{}`", self.policies.join("`, `")),
        }
    }

    fn claims(&self) -> Result<Claims, Unknown> {
        let Some(kind) = [principal::Kind::Agent, principal::Kind::Service, principal::Kind::User]
            .into_iter()
            .find(|kind| self.caller.as_deref() == Some(kind.as_str()))
        else {
            return unknown("the record is of an older version and lacks the caller's scopes, roles and groups");
        };
        let names = [&self.subject, &self.issuer, &self.actor, &self.client, &self.tenant, &self.acr];
        let sets = [&self.scopes, &self.roles, &self.groups, &self.amr];
        let cut = names.into_iter().flatten().chain(sets.into_iter().flatten()).any(|value| value.ends_with(CUT));
        if cut || [self.scopes_more, self.roles_more, self.groups_more, self.amr_more] != [0; 4] {
            return unknown("the record holds only a part of the caller's facts");
        }
        let auth_time = self.auth_time.as_deref().map(cases::moment).transpose();
        let set = |values: &[String]| values.iter().cloned().collect();
        Ok(Claims {
            kind,
            subject: self.subject.clone().unwrap_or_default(),
            issuer: self.issuer.clone().unwrap_or_default(),
            actor: self.actor.clone(),
            client: self.client.clone(),
            tenant: self.tenant.clone(),
            scopes: set(&self.scopes),
            roles: set(&self.roles),
            groups: set(&self.groups),
            groups_unknown: self.groups_unknown,
            guest: self.guest,
            acr: self.acr.clone(),
            amr: set(&self.amr),
            auth_time: auth_time.map_err(Unknown::Because)?,
            mtls: self.mtls,
            ..Claims::default()
        })
    }

    fn context(&self, mode: Mode) -> Result<Context, Unknown> {
        let now = cases::moment(&self.at).map_err(Unknown::Because)?;
        let ip = self.peer.as_deref().and_then(|peer| peer.parse().ok());
        Ok(Context { mode, ip, mtls: self.mtls, now })
    }

    fn mode_under(&self, new: &Rulebook, backend: &str, then: Mode) -> Result<Mode, Unknown> {
        if new.backends().next().is_none() {
            return Ok(then);
        }
        let route = self.route.as_deref().unwrap_or_default();
        let found = new.ceiling_on(route, backend);
        found.map_or_else(|| unknown("the new configuration has not one route at this path to this backend"), Ok)
    }
}

/// The effect that the tool has under the new rules. The server's hints, which may raise it, are in no record; what
/// they did then can be told from the effect that was recorded.
fn effect_under(
    old: &Rulebook,
    new: &Rulebook,
    backend: &str,
    target: &str,
    kind: Kind,
    then: Effect,
) -> Result<Effect, Unknown> {
    if kind != Kind::Tool {
        return Ok(then);
    }
    match (old.effect(backend, target), new.effect(backend, target)) {
        (_, None) => Ok(then),
        (Some(before), Some(after)) if before == after => Ok(then),
        // The hints were below the rule then, so they are below a higher one.
        (Some(before), Some(after)) if before == then && after > before => Ok(after),
        _ => unknown("depends on the server's hints, which no record holds"),
    }
}

fn texts(rules: &Rulebook, outlook: &Outlook) -> BTreeSet<String> {
    let text = |id: &String| rules.policy.origin(id).map(|origin| origin.text.clone());
    outlook.policies.iter().filter_map(text).collect()
}
