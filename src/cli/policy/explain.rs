//! `wardgate policy explain`: one judgement with its grounds, and what would make it a yes.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use clap::ValueEnum;
use serde_json::Value;
use serde_json::json;

use super::Answer;
use super::Format;
use super::cases;
use super::cases::Question;
use super::needs;
use super::needs::Needs;
use super::rulebook::Rulebook;
use super::test::described;
use crate::catalog::Effect;
use crate::catalog::Kind;
use crate::catalog::Mode;
use crate::cli::ConfigFile;
use crate::cli::whoami;
use crate::config;
use crate::policy::Denial;
use crate::policy::Outlook;
use crate::policy::Permit;
use crate::policy::Prospect;
use crate::policy::Reason;
use crate::principal;
use crate::principal::Claims;

/// More ways to a yes are only counted.
const WAYS_MAX: usize = 12;

#[derive(Args)]
pub(super) struct Explain {
    /// `backend/tool`.
    tool: String,
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    caller: Caller,
    /// File with the caller's token or API key; what it says is verified as the gateway would.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["token", "Caller"])]
    token_file: Option<PathBuf>,
    /// The caller's token or API key comes on standard input.
    #[arg(long, conflicts_with = "Caller")]
    token: bool,
    /// What it names is a resource (`backend/URI`), a prompt (`backend/name`), or a backend to connect to.
    #[arg(long, value_enum, default_value_t)]
    kind: Thing,
    /// The arguments of the call, as JSON.
    #[arg(long, value_name = "JSON")]
    arguments: Option<String>,
    /// The tool's effect, where the configuration does not say it, or to see what another would do.
    #[arg(long, value_parser = effect)]
    effect: Option<Effect>,
    /// The ceiling: `read-only`, `non-destructive` or `full`. Default: the highest under which the backend is reached.
    #[arg(long, value_parser = mode)]
    mode: Option<Mode>,
    /// A client certificate was verified.
    #[arg(long)]
    mtls: bool,
    /// The caller's address. Default: none, as on a Unix socket.
    #[arg(long)]
    ip: Option<IpAddr>,
    /// The moment, in UTC. Default: now.
    #[arg(long, value_name = "TIME")]
    now: Option<String>,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Who asks, by facts.
#[derive(Args)]
struct Caller {
    #[arg(long)]
    subject: Option<String>,
    #[arg(long)]
    issuer: Option<String>,
    /// Repeat for several.
    #[arg(long = "scope")]
    scopes: Vec<String>,
    /// Repeat for several.
    #[arg(long = "role")]
    roles: Vec<String>,
    /// Repeat for several.
    #[arg(long = "group")]
    groups: Vec<String>,
    #[arg(long)]
    tenant: Option<String>,
    /// The OAuth client.
    #[arg(long)]
    client: Option<String>,
    /// Who acts for the subject; the caller is then an `Agent`.
    #[arg(long)]
    actor: Option<String>,
    /// The caller is a `Service`.
    #[arg(long)]
    service: bool,
    /// The caller is a guest in the tenant.
    #[arg(long)]
    guest: bool,
    /// How strong the login was.
    #[arg(long)]
    acr: Option<String>,
    /// By which means they logged in; repeat for several.
    #[arg(long)]
    amr: Vec<String>,
    /// When they logged in, in UTC.
    #[arg(long, value_name = "TIME")]
    auth_time: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
enum Thing {
    #[default]
    Tool,
    Resource,
    Prompt,
    Backend,
}

fn effect(text: &str) -> Result<Effect, String> {
    let known = Effect::ALL.into_iter().find(|effect| effect.as_str() == text);
    known.ok_or_else(|| "expected `read`, `read_sensitive`, `write` or `destroy`".to_owned())
}

fn mode(text: &str) -> Result<Mode, String> {
    let known = [Mode::ReadOnly, Mode::NonDestructive, Mode::Full].into_iter().find(|mode| mode.as_str() == text);
    known.ok_or_else(|| "expected `read-only`, `non-destructive` or `full`".to_owned())
}

impl Caller {
    fn claims(&self) -> Result<Claims, String> {
        let set = |words: &[String]| words.iter().cloned().collect();
        Ok(Claims {
            kind: match (&self.actor, self.service) {
                (Some(_), _) => principal::Kind::Agent,
                (None, true) => principal::Kind::Service,
                (None, false) => principal::Kind::User,
            },
            subject: self.subject.clone().unwrap_or_else(|| "somebody".to_owned()),
            issuer: self.issuer.clone().unwrap_or_else(|| "https://issuer.example".to_owned()),
            tenant: self.tenant.clone(),
            client: self.client.clone(),
            actor: self.actor.clone(),
            scopes: set(&self.scopes),
            roles: set(&self.roles),
            groups: set(&self.groups),
            guest: self.guest,
            acr: self.acr.clone(),
            amr: set(&self.amr),
            auth_time: self.auth_time.as_deref().map(cases::moment).transpose()?,
            ..Claims::default()
        })
    }
}

/// A judgement and all that is said about it.
struct Explained {
    question: Question,
    judged: Result<Permit, Denial>,
    outlook: Outlook,
    listed: bool,
    /// Only of a no.
    needs: Option<Needs>,
}

impl Explain {
    pub(super) async fn run(self) -> Answer {
        let (rules, mut claims) = if self.token || self.token_file.is_some() {
            // A token is verified: keys and certificates must be there.
            let loaded = config::load(&self.config.file, config::Options::default())
                .map_err(|errors| format!("the configuration is not valid:\n{errors}"))?;
            let principal = whoami::verified(&loaded, self.token_file.as_deref()).await?;
            (Rulebook::of_config(&loaded)?, Claims::clone(&principal))
        } else {
            (Rulebook::open(&self.config.file)?, self.caller.claims()?)
        };
        claims.mtls |= self.mtls;
        let kind = match self.kind {
            Thing::Tool => Kind::Tool,
            Thing::Resource => Kind::Resource,
            Thing::Prompt => Kind::Prompt,
            Thing::Backend => Kind::Backend,
        };
        let decl = cases::declaration(kind, &self.tool, self.effect, &rules)?;
        let question = Question {
            claims,
            action: cases::action(kind, false),
            mode: self.mode.unwrap_or_else(|| rules.ceiling(&decl.backend)),
            decl,
            arguments: self.arguments.as_deref().map(cases::object).transpose()?,
            now: self.now.as_deref().map_or_else(|| Ok(std::time::SystemTime::now()), cases::moment)?,
            ip: self.ip,
        };
        let explained = Explained::of(question, &rules);
        let code = if explained.judged.is_ok() { crate::cli::OK } else { crate::cli::FAILED };
        Ok(match self.format {
            Format::Text => (code, explained.text(&rules)),
            Format::Json => (code, format!("{:#}", explained.json(&rules))),
        })
    }
}

impl Explained {
    fn of(question: Question, rules: &Rulebook) -> Explained {
        let (principal, context) = (question.principal(), question.context());
        let judged = question.judge(rules);
        let outlook = rules.policy.outlook(&principal, question.action, &question.decl, &context);
        let listed = rules.policy.lists(&principal, &question.decl, &context);
        let needs = judged.is_err().then(|| needs::needed(&question, rules));
        Explained { question, judged, outlook, listed, needs }
    }

    fn policies(&self) -> (&Arc<[String]>, &Arc<[String]>) {
        match &self.judged {
            Ok(permit) => (permit.policies(), permit.shadows()),
            Err(denial) => (&denial.policies, &denial.shadows),
        }
    }

    fn reason(&self) -> String {
        let Question { mode, decl, .. } = &self.question;
        match &self.judged {
            Ok(_) => "allow".to_owned(),
            Err(denial) => match denial.reason {
                Reason::Ceiling => {
                    format!("deny: the mode {} does not admit {}", mode.as_str(), decl.effect.as_str())
                }
                Reason::Error => "deny: a policy failed, and a policy that fails denies".to_owned(),
                Reason::Forbidden => "deny: forbidden".to_owned(),
                Reason::NotGranted => "deny: nothing permits it".to_owned(),
            },
        }
    }

    /// What the answer hangs on.
    fn hangs_on(&self) -> &'static str {
        match self.outlook.prospect {
            Prospect::Allow => "nothing else: it is allowed whatever the arguments and the circumstances",
            Prospect::Depends { .. } => "the circumstances (certificate, address, time)",
            Prospect::Listed => "the arguments",
            Prospect::Deny(_) => "nothing else: it is denied whatever the arguments and the circumstances",
        }
    }

    fn text(&self, rules: &Rulebook) -> String {
        let mut out = format!("{}\n", self.reason());
        let Question { mode, decl, .. } = &self.question;
        let _ = writeln!(out, "asked:    {}", described(&self.question));
        let admits = if mode.admits(decl.effect) { "admits" } else { "does not admit" };
        let _ = writeln!(out, "mode:     {} {admits} {}", mode.as_str(), decl.effect.as_str());
        let _ =
            writeln!(out, "list:     {}", if self.listed { "shown to this caller" } else { "hidden from this caller" });
        let _ = writeln!(out, "hangs on: {}", self.hangs_on());
        let (policies, shadows) = self.policies();
        let mut show = |title: &str, ids: &[String]| {
            if !ids.is_empty() {
                let _ = writeln!(out, "{title}");
            }
            for id in ids {
                let _ = writeln!(out, "  `{id}` ({})\n{}", rules.place(id), rules.text(id, "    ").trim_end());
            }
        };
        show("decided by:", policies);
        if self.outlook.prospect == Prospect::Listed && policies.is_empty() {
            show("for other arguments these decide:", &self.outlook.policies);
        }
        show("in shadow mode, and would change it:", shadows);
        if let Some(needs) = &self.needs {
            if self.outlook.prospect == Prospect::Listed {
                out.push_str("needed:   other arguments; or, for these:\n");
            }
            out.push_str(&words(needs));
        }
        out
    }

    fn json(&self, rules: &Rulebook) -> Value {
        let named = |ids: &[String]| -> Vec<Value> {
            let origin = |id: &String| {
                let text = rules.policy.origin(id).map(|origin| origin.text.clone());
                json!({ "id": id, "place": rules.place(id), "text": text })
            };
            ids.iter().map(origin).collect()
        };
        let (policies, shadows) = self.policies();
        let Question { mode, decl, action, .. } = &self.question;
        let ways = self.needs.as_ref().map(|needs| {
            let way = |way: &Vec<needs::Change>| way.iter().map(ToString::to_string).collect::<Vec<_>>();
            needs.ways.iter().map(way).collect::<Vec<_>>()
        });
        json!({
            "decision": if self.judged.is_ok() { "allow" } else { "deny" },
            "reason": self.judged.as_ref().err().map(|denial| denial.reason.as_str()),
            "action": action.as_str(),
            "target": format!("{}/{}", decl.backend, decl.name),
            "effect": decl.effect,
            "mode": mode,
            "admitted_by_mode": mode.admits(decl.effect),
            "listed": self.listed,
            "policies": named(policies),
            "shadows": named(shadows),
            "needed": ways,
            "needed_complete": self.needs.as_ref().map(|needs| needs.complete),
        })
    }
}

fn words(needs: &Needs) -> String {
    let mut out = String::new();
    if needs.ways.is_empty() {
        out.push_str("needed:   no change of scopes, roles, groups, tenant, login, certificate, mode or effect");
        out.push_str(if needs.complete { " allows it\n" } else { " was found that allows it\n" });
        return out;
    }
    out.push_str("needed:   one of\n");
    for way in needs.ways.iter().take(WAYS_MAX) {
        let way: Vec<String> = way.iter().map(|change| super::plain(&change.to_string())).collect();
        let _ = writeln!(out, "  - {}", way.join(" and "));
    }
    if let Some(more @ 1..) = needs.ways.len().checked_sub(WAYS_MAX) {
        let _ = writeln!(out, "  and {more} more");
    }
    if !needs.complete {
        let _ = writeln!(out, "  (not everything was tried)");
    }
    out
}
