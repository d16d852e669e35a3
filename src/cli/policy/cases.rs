//! A file of cases: principals, tools and tests in YAML, and the questions that they come to.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use serde::Deserialize;
use serde::Deserializer;
use serde::de;
use serde::de::value::MapAccessDeserializer;

use super::rulebook::Rulebook;
use crate::catalog::Action;
use crate::catalog::Call;
use crate::catalog::Decl;
use crate::catalog::Effect;
use crate::catalog::Kind;
use crate::catalog::Mode;
use crate::catalog::Operation;
use crate::config;
use crate::config::Document;
use crate::identity::api_key;
use crate::mcp;
use crate::mcp::Era;
use crate::mcp::Id;
use crate::mcp::Message;
use crate::mcp::Params;
use crate::policy;
use crate::policy::Context;
use crate::principal;
use crate::principal::Claims;
use crate::principal::Principal;

/// A case file is a few pages.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Wednesday, 2026-01-07, 12:00:00 UTC: the moment of a question that names none, so that answers do not change by
/// themselves.
const NOON: Duration = Duration::from_secs(1_767_787_200);

/// A file as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    /// Cedar files, and folders of them, relative to this file.
    policies: Vec<String>,
    /// Grants that are in force beside them.
    grants: Vec<Grant>,
    /// A configuration, relative to this file, instead of policies and grants.
    config: Option<String>,
    /// The ceiling where a test names none. Default: that of the configuration, else `full`.
    mode: Option<Mode>,
    /// The moment where a test names none.
    now: Option<String>,
    pub(super) principals: BTreeMap<String, Facts>,
    /// `backend/tool`, and its effect where the configuration does not say it.
    pub(super) tools: BTreeMap<String, Option<Effect>>,
    pub(super) tests: Vec<Test>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grant {
    scope: Option<String>,
    role: Option<String>,
    group: Option<String>,
    subject: Option<String>,
    allow: Vec<Effect>,
    #[serde(default)]
    tools: Vec<String>,
    #[serde(default)]
    shadow: bool,
    #[serde(default)]
    confirm: bool,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Sort {
    Agent,
    Service,
    #[default]
    User,
}

/// What is known of a caller.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Facts {
    kind: Sort,
    subject: Option<String>,
    issuer: Option<String>,
    tenant: Option<String>,
    client: Option<String>,
    actor: Option<String>,
    scopes: Vec<String>,
    roles: Vec<String>,
    groups: Vec<String>,
    groups_unknown: bool,
    guest: bool,
    mtls: bool,
    acr: Option<String>,
    amr: Vec<String>,
    auth_time: Option<String>,
}

impl Facts {
    /// Without a name of its own, the one it has in the file.
    pub(super) fn claims(&self, name: &str) -> Result<Claims, String> {
        let set = |words: &[String]| words.iter().cloned().collect();
        Ok(Claims {
            kind: match self.kind {
                Sort::Agent => principal::Kind::Agent,
                Sort::Service => principal::Kind::Service,
                Sort::User => principal::Kind::User,
            },
            subject: self.subject.clone().unwrap_or_else(|| name.to_owned()),
            issuer: self.issuer.clone().unwrap_or_else(|| "https://issuer.example".to_owned()),
            tenant: self.tenant.clone(),
            client: self.client.clone(),
            actor: self.actor.clone(),
            scopes: set(&self.scopes),
            roles: set(&self.roles),
            groups: set(&self.groups),
            groups_unknown: self.groups_unknown,
            guest: self.guest,
            mtls: self.mtls,
            acr: self.acr.clone(),
            amr: set(&self.amr),
            auth_time: self.auth_time.as_deref().map(moment).transpose()?,
            ..Claims::default()
        })
    }
}

/// By name, or described on the spot.
#[derive(Debug)]
pub(super) enum Who {
    Named(String),
    Given(Box<Facts>),
}

impl<'de> Deserialize<'de> for Who {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> de::Visitor<'de> for Either {
            type Value = Who;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a principal, or a mapping with its facts")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Who, E> {
                Ok(Who::Named(name.to_owned()))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Who, A::Error> {
                Facts::deserialize(MapAccessDeserializer::new(map)).map(|facts| Who::Given(Box::new(facts)))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Expect {
    Allow,
    Deny,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Because {
    Ceiling,
    Error,
    Forbidden,
    NotGranted,
}

/// One row of the table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Test {
    /// What it shows, as a sentence.
    pub(super) name: String,
    principal: Who,
    /// One of these: `backend/name`, or the name of a backend.
    tool: Option<String>,
    resource: Option<String>,
    prompt: Option<String>,
    connect: Option<String>,
    /// An argument of the prompt or resource is completed.
    #[serde(default)]
    complete: bool,
    effect: Option<Effect>,
    /// A mapping; or JSON in quotes, for what YAML has no word for.
    arguments: Option<serde_json::Value>,
    mode: Option<Mode>,
    now: Option<String>,
    ip: Option<IpAddr>,
    /// Overrides that of the principal.
    mtls: Option<bool>,
    pub(super) expect: Expect,
    /// Exactly the policies that decide it.
    pub(super) by: Option<Vec<String>>,
    /// Why it is denied.
    pub(super) because: Option<Because>,
    /// Is it in the caller's list?
    pub(super) listed: Option<bool>,
}

/// A question as it can be put.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) claims: Claims,
    pub(super) action: Action,
    pub(super) decl: Decl,
    /// As JSON.
    pub(super) arguments: Option<Bytes>,
    pub(super) mode: Mode,
    pub(super) now: SystemTime,
    pub(super) ip: Option<IpAddr>,
}

impl Question {
    pub(super) fn principal(&self) -> Principal {
        Principal::supposed(self.claims.clone())
    }

    pub(super) fn context(&self) -> Context {
        Context { mode: self.mode, ip: self.ip, mtls: self.claims.mtls, now: self.now }
    }

    /// Of which a gateway would judge the same.
    pub(super) fn call(&self) -> Call {
        call(self.action, &self.decl, self.arguments.clone(), mcp::Method::ToolsCall)
    }

    pub(super) fn judge(&self, rules: &Rulebook) -> Result<policy::Permit, policy::Denial> {
        rules.policy.authorize(&self.principal(), self.call(), &self.context())
    }
}

/// A call as the gateway would have made it of a message.
pub(super) fn call(action: Action, decl: &Decl, arguments: Option<Bytes>, method: mcp::Method) -> Call {
    let message = Message {
        kind: mcp::Kind::Request { id: Id::number(1) },
        method: Some(method),
        era: Era::Modern,
        params: Params { arguments, ..Params::default() },
        outcome: None,
    };
    let operation = Operation::Post(message);
    Call { action, effect: decl.effect, decl: Arc::new(decl.clone()), operation, session: None, version: None }
}

/// A file that was read.
pub(super) struct Cases {
    pub(super) path: PathBuf,
    document: Document<File>,
}

impl Cases {
    pub(super) fn read(path: &Path) -> Result<Cases, String> {
        let unreadable = |what: String| format!("`{}` {what}", path.display());
        let size = std::fs::metadata(path).map_err(|error| unreadable(format!("cannot be read: {error}")))?.len();
        if size > FILE_BYTES_MAX {
            return Err(unreadable(format!("is larger than {FILE_BYTES_MAX} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(format!("cannot be read: {error}")))?;
        let document = config::document::<File>(&text, path).map_err(|errors| errors.to_string())?;
        Ok(Cases { path: path.to_owned(), document })
    }

    pub(super) fn file(&self) -> &File {
        &self.document.content
    }

    pub(super) fn line(&self, index: usize) -> usize {
        self.document.line("tests", index)
    }

    /// The rules that the file says it is about; `None` if it does not.
    pub(super) fn rules(&self) -> Result<Option<Rulebook>, String> {
        let file = self.file();
        let own = !file.policies.is_empty() || !file.grants.is_empty();
        let wrong = |what: &str| format!("{}: {what}", self.path.display());
        match &file.config {
            Some(_) if own => Err(wrong("`config` and `policies` or `grants` exclude each other")),
            Some(config) => {
                let folder = self.path.parent().unwrap_or(Path::new(""));
                Rulebook::open(&folder.join(config)).map(Some)
            }
            None if own => {
                let grants = file.grants.iter().map(Grant::meant).collect();
                let mode = file.mode.unwrap_or(Mode::Full);
                Rulebook::of_policies(&file.policies, &self.path, grants, mode).map(Some)
            }
            None => Ok(None),
        }
    }

    /// A named principal.
    pub(super) fn claims(&self, name: &str) -> Result<Claims, String> {
        match self.file().principals.get(name) {
            Some(facts) => facts.claims(name),
            None => Err(format!("there is no principal `{name}` under `principals`")),
        }
    }

    /// The question of a test.
    pub(super) fn question(&self, test: &Test, rules: &Rulebook) -> Result<Question, String> {
        let file = self.file();
        let mut claims = match &test.principal {
            Who::Named(name) => self.claims(name)?,
            Who::Given(facts) => facts.claims("somebody")?,
        };
        claims.mtls = test.mtls.unwrap_or(claims.mtls);
        let whole = [&test.tool, &test.resource, &test.prompt, &test.connect];
        if whole.iter().filter(|given| given.is_some()).count() != 1 {
            return Err("name one of `tool`, `resource`, `prompt` and `connect`".to_owned());
        }
        let (kind, name) = match (&test.tool, &test.resource, &test.prompt, &test.connect) {
            (Some(name), ..) => (Kind::Tool, name),
            (_, Some(name), ..) => (Kind::Resource, name),
            (_, _, Some(name), _) => (Kind::Prompt, name),
            (.., name) => (Kind::Backend, name.as_ref().ok_or("nothing is asked for")?),
        };
        let effect = test.effect.or_else(|| file.tools.get(name).copied().flatten());
        let decl = declaration(kind, name, effect, rules)?;
        Ok(Question {
            claims,
            action: action(kind, test.complete),
            mode: test.mode.or(file.mode).unwrap_or_else(|| rules.ceiling(&decl.backend)),
            decl,
            arguments: test.arguments.as_ref().map(arguments).transpose()?,
            now: self.now(test.now.as_deref())?,
            ip: test.ip,
        })
    }

    fn now(&self, own: Option<&str>) -> Result<SystemTime, String> {
        own.or(self.file().now.as_deref()).map_or(Ok(noon()), moment)
    }
}

impl Grant {
    fn meant(&self) -> policy::Grant {
        policy::Grant {
            scope: self.scope.clone(),
            role: self.role.clone(),
            group: self.group.clone(),
            subject: self.subject.clone(),
            allow: self.allow.clone(),
            tools: self.tools.clone(),
            shadow: self.shadow,
            confirm: self.confirm,
        }
    }
}

/// What is done to a thing of this kind.
pub(super) fn action(kind: Kind, complete: bool) -> Action {
    match kind {
        Kind::Prompt | Kind::Resource if complete => Action::Complete,
        Kind::Backend => Action::Connect,
        Kind::Prompt => Action::Get,
        Kind::Resource => Action::Read,
        Kind::Tool => Action::Call,
    }
}

/// The declaration of `backend/name`, or of a backend.
pub(super) fn declaration(kind: Kind, name: &str, effect: Option<Effect>, rules: &Rulebook) -> Result<Decl, String> {
    if kind == Kind::Backend {
        return Ok(Decl::plain(kind, name.into(), name, effect.unwrap_or(Effect::Read)));
    }
    let Some((backend, own)) = name.split_once('/').filter(|(backend, own)| !backend.is_empty() && !own.is_empty())
    else {
        return Err(format!("`{name}` must be `backend/name`"));
    };
    let effect = match kind {
        Kind::Tool => effect.or_else(|| rules.effect(backend, own)),
        Kind::Backend | Kind::Prompt | Kind::Resource => Some(effect.unwrap_or(Effect::Read)),
    };
    let unknown = || format!("the effect of `{name}` is not known: no configuration has its backend; give `effect`");
    Ok(Decl::plain(kind, backend.into(), own, effect.ok_or_else(unknown)?))
}

/// As they would come in a request.
fn arguments(written: &serde_json::Value) -> Result<Bytes, String> {
    let text = match written {
        serde_json::Value::String(json) => json.clone(),
        serde_json::Value::Object(_) => written.to_string(),
        _ => return Err("`arguments` must be a mapping, or JSON in quotes".to_owned()),
    };
    object(&text)
}

/// JSON text of an object.
pub(super) fn object(text: &str) -> Result<Bytes, String> {
    match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text) {
        Ok(_) => Ok(Bytes::copy_from_slice(text.as_bytes())),
        Err(error) => Err(format!("the arguments are not a JSON object: {error}")),
    }
}

pub(super) fn noon() -> SystemTime {
    UNIX_EPOCH + NOON
}

/// RFC 3339 in UTC; fractions of a second are left out.
pub(super) fn moment(text: &str) -> Result<SystemTime, String> {
    let whole = match text.split_once('.') {
        Some((whole, fraction)) if fraction.ends_with('Z') => format!("{whole}Z"),
        _ => text.to_owned(),
    };
    let wrong = || format!("`{}` is no moment: write YYYY-MM-DD or YYYY-MM-DDThh:mm:ssZ", super::plain(text));
    api_key::time(&whole).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noon_is_noon_and_fractions_are_left_out() {
        assert_eq!(moment("2026-01-07T12:00:00Z"), Ok(noon()));
        assert_eq!(moment("2026-01-07T12:00:00.999999Z"), Ok(noon()));
        assert!(moment("noon").is_err());
    }
}
