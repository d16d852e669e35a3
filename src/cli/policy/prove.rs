//! `wardgate policy prove`: could any request at all do what it must not? Asked of an SMT solver, not tried out.
//!
//! The policies, as they hold for each tool, are translated by `cedar-policy-symcc` and given to cvc5, a program that is
//! found as `CVC5` or on the path. Whatever it finds is put to the policies as a call, and only what these allow is told
//! as a counterexample.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use cedar_policy_symcc::CedarSymCompiler;
use cedar_policy_symcc::CompiledPolicySet;
use cedar_policy_symcc::err::Error as SolverError;
use cedar_policy_symcc::solver::LocalSolver;
use clap::Args;
use clap::ValueEnum;
use serde_json::Map;
use serde_json::Value;

use super::Answer;
use super::plain;
use super::rulebook::Rulebook;
use crate::app;
use crate::catalog::Action;
use crate::catalog::Call;
use crate::catalog::Decl;
use crate::catalog::Kind;
use crate::catalog::Mode;
use crate::catalog::Operation;
use crate::config::Config;
use crate::mcp;
use crate::policy;
use crate::policy::About;
use crate::policy::Known;
use crate::policy::Policy;
use crate::policy::Question;
use crate::principal;
use crate::principal::Claims;
use crate::principal::Principal;

/// Nothing above the mode can happen.
const PROVEN: u8 = 0;
/// Something can, and this is how.
const REFUTED: u8 = 1;
/// Neither could be shown.
const UNDECIDED: u8 = 2;

/// What the solver may take for one question.
const QUESTION_SECONDS_MAX: u64 = 60;

#[derive(Args)]
pub(super) struct Prove {
    /// The configuration file (YAML).
    #[arg(short = 'c', long = "config", default_value = "/etc/wardgate/wardgate.yaml")]
    file: PathBuf,
    /// What nothing may go beyond: `non-destructive` (nothing destroys) or `read-only` (nothing writes or destroys).
    #[arg(long, default_value = "non-destructive")]
    mode: Claim,
}

#[derive(Clone, Copy, ValueEnum)]
enum Claim {
    ReadOnly,
    NonDestructive,
}

impl Claim {
    fn mode(self) -> Mode {
        match self {
            Claim::ReadOnly => Mode::ReadOnly,
            Claim::NonDestructive => Mode::NonDestructive,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Claim::ReadOnly => "write or destroy",
            Claim::NonDestructive => "destroy",
        }
    }
}

/// What came of one question.
enum Outcome {
    Never,
    /// A call that the policies allow.
    Counterexample(Box<Found>),
    /// Why it is open.
    Open(String),
}

/// A call that was found.
struct Found {
    claims: Claims,
    decl: Arc<Decl>,
    arguments: Map<String, Value>,
    context: policy::Context,
    /// Ids of the policies that allow it.
    policies: Vec<String>,
}

impl Prove {
    pub(super) async fn run(self) -> Answer {
        let answer = match Rulebook::load(&self.file) {
            Ok(loaded) => self.prove(&loaded.config, &app::known(&loaded.config)).await,
            Err(problem) => Err(problem),
        };
        // An answer of 1 would be a counterexample.
        Ok(answer.unwrap_or_else(|problem| (UNDECIDED, format!("not decided: {problem}"))))
    }

    async fn prove(&self, config: &Config, known: &Known) -> Answer {
        let policy = Policy::over(&config.policy, known).map_err(|errors| {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            format!("the policies are not valid:\n{}", lines.join("\n"))
        })?;
        let ceiling = |backend: &str| ceiling(config, backend);
        let questions = policy.questions(known, self.mode.mode(), ceiling)?;
        let mut text = String::new();
        let mut code = PROVEN;
        for question in &questions.open {
            let outcome = ask(&policy, question, &ceiling).await?;
            // INVARIANT: writing to a string does not fail.
            match outcome {
                Outcome::Never => {}
                Outcome::Counterexample(found) => {
                    code = REFUTED;
                    let _ = write!(text, "{}", found.told(question));
                }
                Outcome::Open(why) => {
                    code = if code == REFUTED { REFUTED } else { UNDECIDED };
                    let _ = writeln!(text, "not decided for {}: {why}", names(question));
                }
            }
        }
        let words = self.mode.words();
        let _ = match code {
            PROVEN => writeln!(text, "proven: no request can {words}, whoever sends it and with whatever arguments"),
            REFUTED => writeln!(text, "not proven: a request can {words}"),
            _ => writeln!(text, "not decided: whether a request can {words}"),
        };
        let _ = writeln!(
            text,
            "{} by their effects and the modes, {} because nothing permits it, {} by the solver",
            questions.by_mode,
            questions.by_grant,
            questions.open.iter().map(|question| question.about.len()).sum::<usize>()
        );
        let blurred: BTreeSet<&String> = questions.open.iter().flat_map(|question| &question.blurred).collect();
        for id in blurred {
            let _ = writeln!(
                text,
                "`{}` was taken to say of arguments without a type whatever allows most: the solver needs their types",
                plain(id)
            );
        }
        Ok((code, text))
    }
}

/// The highest mode under which the backend can be reached; `None` if no route leads to it.
fn ceiling(config: &Config, backend: &str) -> Option<Mode> {
    let remote = config.backends.iter().map(|one| (&one.name, one.mode));
    let mut all = remote.chain(config.built_in.iter().map(|one| (&one.name, one.mode)));
    let (_, own) = all.find(|(name, _)| ***name == *backend)?;
    let routes = config.routes.routes.iter().filter(|route| route.backends.iter().any(|name| **name == *backend));
    routes.map(|route| config.policy.mode.lowest([route.mode, own])).max()
}

fn names(question: &Question) -> String {
    let name = |about: &About| match about {
        About::Backend(backend) => format!("the tools of `{}`", plain(backend)),
        About::Tool(decl) => format!("`{}/{}`", plain(&decl.backend), plain(&decl.name)),
    };
    match question.about.as_slice() {
        [] => String::new(),
        [one] => name(one),
        [one, others @ ..] => format!("{} and {} more of which the policies say the same", name(one), others.len()),
    }
}

fn solver() -> Result<CedarSymCompiler<LocalSolver>, String> {
    let limit = format!("--tlimit={}", QUESTION_SECONDS_MAX * 1000);
    let solver = LocalSolver::cvc5_with_args([limit]).map_err(|error| {
        format!("cvc5 is needed and cannot be started ({error}): install it (Debian: `apt-get install cvc5`) or name it in `CVC5`")
    })?;
    CedarSymCompiler::new(solver).map_err(|error| format!("cvc5: {error}"))
}

/// Asks for each type of principal.
async fn ask(policy: &Policy, question: &Question, ceiling: &impl Fn(&str) -> Option<Mode>) -> Result<Outcome, String> {
    let mut open = None;
    let call = |env: &cedar_policy::RequestEnv| env.action().id().unescaped() == Action::Call.as_str();
    for env in question.schema.request_envs().filter(call) {
        // A process for each: one that ran out of time is of no more use.
        let mut solver = solver()?;
        let told = |error: SolverError| match error {
            SolverError::SolverUnknown => format!("cvc5 found no answer within {QUESTION_SECONDS_MAX} s"),
            error => plain(&error.to_string().replace('\n', " ")),
        };
        let compiled = match CompiledPolicySet::compile(&question.policies, &env, &question.schema) {
            Ok(compiled) => compiled,
            Err(error) => return Ok(Outcome::Open(told(error))),
        };
        match solver.check_always_denies_with_counterexample_opt(&compiled).await {
            Ok(None) => {}
            Ok(Some(env)) => match confirmed(policy, question, &env, ceiling) {
                Some(found) => return Ok(Outcome::Counterexample(Box::new(found))),
                None if question.blurred.is_empty() => {
                    open = Some("what the solver found is no call that the policies allow".to_owned());
                }
                None => open = Some("it turns on arguments whose types are not known".to_owned()),
            },
            Err(error) => open = Some(told(error)),
        }
    }
    Ok(open.map_or(Outcome::Never, Outcome::Open))
}

/// What the solver found as a call, if the policies really allow it.
fn confirmed(
    policy: &Policy,
    question: &Question,
    env: &cedar_policy_symcc::Env,
    ceiling: &impl Fn(&str) -> Option<Mode>,
) -> Option<Found> {
    let claims = claims(env)?;
    let sent = env.request.context()?.to_json_value().ok()?;
    let arguments = sent.get("args").and_then(Value::as_object).cloned().unwrap_or_default();
    let arguments: Map<String, Value> = arguments.into_iter().map(|(name, value)| (name, json(value))).collect();
    for about in &question.about {
        let decl = match about {
            About::Tool(decl) => decl.clone(),
            About::Backend(backend) => {
                let name = env.request.resource()?.id().unescaped().split_once('/').map(|(_, name)| name.to_owned());
                let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| "anything".to_owned());
                Arc::new(Decl::plain(Kind::Tool, backend.clone(), &name, question.effect))
            }
        };
        let context = policy::Context {
            mode: ceiling(&decl.backend)?,
            ip: sent.get("ip").and_then(extension).and_then(|ip| ip.split('/').next()?.parse().ok()),
            mtls: sent.get("mtls").and_then(Value::as_bool).unwrap_or_default(),
            now: sent.get("now").and_then(extension).and_then(|now| instant(&now)).unwrap_or_else(SystemTime::now),
        };
        for arguments in [arguments.clone(), doubtful(&decl, &arguments)] {
            let raw = Bytes::from(Value::Object(arguments.clone()).to_string());
            if decl.effect_of(Some(&raw)) != question.effect {
                continue;
            }
            let params = mcp::Params { arguments: Some(raw), ..mcp::Params::default() };
            let message = mcp::Message {
                kind: mcp::Kind::Request { id: mcp::Id::number(1) },
                method: Some(mcp::Method::ToolsCall),
                era: mcp::Era::Modern,
                params,
                outcome: None,
            };
            let call = Call::new(Action::Call, decl.clone(), Operation::Post(message));
            if let Ok(permit) = policy.authorize(&Principal::supposed(claims.clone()), call, &context) {
                let policies = permit.policies().to_vec();
                return Some(Found { claims, decl, arguments, context, policies });
            }
        }
    }
    None
}

/// The same arguments, with those that the effect is judged by of a type that leaves it in doubt.
fn doubtful(decl: &Decl, arguments: &Map<String, Value>) -> Map<String, Value> {
    let mut arguments = arguments.clone();
    let rules = decl.varies.as_ref().and_then(|varies| varies.rules());
    for (when, _) in rules.map(|(rules, _)| rules).unwrap_or_default() {
        arguments.extend(when.0.iter().map(|(name, _)| (name.clone(), Value::Null)));
    }
    arguments
}

/// Whom the solver thought of.
fn claims(env: &cedar_policy_symcc::Env) -> Option<Claims> {
    let uid = env.request.principal()?;
    let entity = env.entities.get(uid)?;
    let entities = env.entities.to_json_value().ok()?;
    let entities = entities.as_array()?;
    let own = entities.iter().find(|one| {
        let id = one.get("uid");
        let member = |name: &str| id.and_then(|id| id.get(name)).and_then(Value::as_str);
        member("type") == Some(uid.type_name().to_string().as_str()) && member("id") == Some(uid.id().unescaped())
    })?;
    let attribute = |name: &str| match entity.attr(name) {
        Some(Ok(cedar_policy::EvalResult::String(value))) => Some(value),
        _ => None,
    };
    let texts = |name: &str| match entity.attr(name) {
        Some(Ok(cedar_policy::EvalResult::Set(values))) => values
            .iter()
            .filter_map(|value| match value {
                cedar_policy::EvalResult::String(text) => Some(text.clone()),
                _ => None,
            })
            .collect(),
        _ => BTreeSet::new(),
    };
    let flag = |name: &str| matches!(entity.attr(name), Some(Ok(cedar_policy::EvalResult::Bool(true))));
    let mut parents: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for parent in own.get("parents").and_then(Value::as_array).into_iter().flatten() {
        let member = |name: &str| parent.get(name).and_then(Value::as_str).map(str::to_owned);
        if let (Some(kind), Some(id)) = (member("type"), member("id")) {
            parents.entry(kind).or_default().insert(id);
        }
    }
    let mut all = |kind: &str| parents.remove(kind).unwrap_or_default();
    let kind = match uid.type_name().to_string().as_str() {
        "Agent" => principal::Kind::Agent,
        "Service" => principal::Kind::Service,
        _ => principal::Kind::User,
    };
    Some(Claims {
        kind,
        subject: attribute("subject")?,
        issuer: attribute("issuer")?,
        scopes: all("Scope"),
        roles: all("Role"),
        groups: all("Group"),
        tenant: all("Tenant").into_iter().next().or_else(|| attribute("tenant")),
        client: attribute("client"),
        actor: attribute("actor"),
        guest: flag("guest"),
        groups_unknown: flag("groups_unknown"),
        acr: attribute("acr"),
        amr: texts("amr"),
        auth_time: own
            .get("attrs")
            .and_then(|attributes| attributes.get("auth_time"))
            .and_then(extension)
            .and_then(|at| instant(&at)),
        ..Claims::default()
    })
}

/// A Cedar value as what a caller would send.
fn json(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            match members.get("__extn").and_then(|_| extension(&Value::Object(members.clone()))) {
                Some(text) => {
                    text.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map_or(Value::Null, Value::Number)
                }
                None if members.contains_key("__entity") => Value::Null,
                None => Value::Object(members.into_iter().map(|(name, member)| (name, json(member))).collect()),
            }
        }
        Value::Array(items) => Value::Array(items.into_iter().map(json).collect()),
        plain => plain,
    }
}

/// The text that a date, an address or a decimal is made of.
fn extension(value: &Value) -> Option<String> {
    let inner = value.get("__extn")?;
    // A date is written as one with an offset: `[date, duration]`.
    let offset = inner.get("args").and_then(|args| args.get(1)).and_then(|offset| offset.get("__extn"));
    offset.unwrap_or(inner).get("arg").and_then(Value::as_str).map(str::to_owned)
}

/// A moment as Cedar writes it back: the milliseconds since 1970, or nothing that is of use here.
fn instant(text: &str) -> Option<SystemTime> {
    let milliseconds: i64 = text.trim_end_matches("ms").parse().ok()?;
    let span = Duration::from_millis(milliseconds.unsigned_abs());
    if milliseconds < 0 { SystemTime::UNIX_EPOCH.checked_sub(span) } else { SystemTime::UNIX_EPOCH.checked_add(span) }
}

impl Found {
    fn told(&self, question: &Question) -> String {
        let claims = &self.claims;
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            if !value.is_empty() {
                // INVARIANT: writing to a string does not fail.
                let _ = writeln!(text, "  {name}: {}", plain(value));
            }
        };
        let list = |of: &BTreeSet<String>| of.iter().map(|one| format!("`{one}`")).collect::<Vec<_>>().join(", ");
        line("caller", &format!("a {} with the subject `{}`", claims.kind.as_str().to_lowercase(), claims.subject));
        line("scopes", &list(&claims.scopes));
        line("roles", &list(&claims.roles));
        line("groups", &list(&claims.groups));
        line("acr", claims.acr.as_deref().unwrap_or_default());
        line("amr", &list(&claims.amr));
        line("tenant", claims.tenant.as_deref().unwrap_or_default());
        line("tool", &format!("`{}/{}`, which would {}", self.decl.backend, self.decl.name, question.effect.as_str()));
        line("arguments", &Value::Object(self.arguments.clone()).to_string());
        line("mode", self.context.mode.as_str());
        line("client certificate", if self.context.mtls { "verified" } else { "" });
        line("address", &self.context.ip.map(|ip| ip.to_string()).unwrap_or_default());
        line("allowed by", &self.policies.join(", "));
        format!("counterexample for {}\n{text}", names(question))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Effect;
    use crate::catalog::Varies;
    use crate::catalog::When;
    use crate::config;

    /// A gateway with `vault` (all of whose tools are known) and, if asked for, `git` (of which nothing is).
    fn config(mode: &str, policies: &str, git: bool) -> Config {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("site.cedar"), policies).expect("written");
        let backend = serde_json::json!({ "http": { "url": "http://127.0.0.1:1/mcp" } });
        let mut file = serde_json::json!({
            "listeners": [{ "address": "127.0.0.1:0" }],
            "identity": [{ "anonymous": {} }],
            "mode": mode,
            "grants": [{ "scope": "reader", "allow": ["read"] }],
            "policies": ["site.cedar"],
            "backends": { "vault": backend.clone() },
            "routes": [{ "path": "/vault", "backends": ["vault"] }],
        });
        if git {
            file["backends"]["git"] = backend;
            let route = serde_json::json!({ "path": "/git", "backends": ["git"], "mode": "full" });
            file["routes"].as_array_mut().expect("routes").push(route);
        }
        let path = folder.path().join("wardgate.yaml");
        std::fs::write(&path, file.to_string()).expect("written");
        config::load(&path, config::Options::default()).expect("a good configuration").config
    }

    fn declared(name: &str, effect: Effect, properties: &str) -> Decl {
        let wire = format!(r#"{{"name": "{name}", "inputSchema": {{"type": "object", "properties": {properties}}}}}"#);
        Decl { wire: wire.into(), ..Decl::plain(Kind::Tool, "vault".into(), name, effect) }
    }

    fn known(git: bool) -> Known {
        let when = When(vec![("action".to_owned(), vec!["list".into()])]);
        let rollout = declared("rollout", Effect::Destroy, r#"{"action": {"type": "string"}}"#);
        let tools = vec![
            Arc::new(declared("get", Effect::Read, r#"{"path": {"type": "string"}}"#)),
            Arc::new(declared(
                "delete",
                Effect::Destroy,
                r#"{"path": {"type": "string"}, "n": {"type": "integer"}, "ratio": {"type": "number"}, "any": {}}"#,
            )),
            Arc::new(rollout.varying(Varies::by_rules(vec![(when, Effect::Read)], Effect::Destroy))),
        ];
        Known::new([("vault".into(), Some(tools))].into_iter().chain(git.then(|| ("git".into(), None))))
    }

    async fn prove(mode: &str, policies: &str, git: bool) -> (u8, String) {
        let claim = Prove { file: PathBuf::new(), mode: Claim::NonDestructive };
        claim.prove(&config(mode, policies, git), &known(git)).await.expect("an answer")
    }

    #[tokio::test]
    async fn what_the_mode_or_the_grants_rule_out_needs_no_solver() {
        let (code, text) = prove("non-destructive", "permit (principal, action, resource);", false).await;
        assert_eq!(code, PROVEN, "{text}");
        assert!(
            text.contains("3 by their effects and the modes, 0 because nothing permits it, 0 by the solver"),
            "{text}"
        );
        let (code, text) = prove("full", "permit (principal, action == Action::\"read\", resource);", false).await;
        assert_eq!(code, PROVEN, "{text}");
        assert!(
            text.contains("1 by their effects and the modes, 2 because nothing permits it, 0 by the solver"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_contradiction_between_policies_is_proven() {
        let policies = r#"permit (principal in Role::"admin", action, resource) when { context.args has n && context.args.n > 3 };
            forbid (principal, action, resource == Tool::"vault/delete") unless { context.args has n && context.args.n < 2 };
            forbid (principal, action, resource == Tool::"vault/rollout") unless { principal.guest };
            forbid (principal, action, resource) when { principal has tenant || principal.guest };"#;
        let policies = policies.replace(
            "resource) when { context.args has n",
            "resource == Tool::\"vault/delete\") when { context.args has n",
        );
        let more = r#"permit (principal in Role::"admin", action, resource == Tool::"vault/rollout");"#;
        let (code, text) = prove("full", &format!("{policies}{more}"), false).await;
        assert_eq!(code, PROVEN, "{text}");
        assert!(text.contains("2 by the solver"), "{text}");
    }

    #[tokio::test]
    async fn a_way_through_is_told_as_a_call() {
        let policies = r#"@id("oops") permit (principal in Role::"admin", action, resource == Tool::"vault/delete")
            when { context.args has n && context.args.n == 42 && context.args has ratio && context.args.ratio.lessThan(decimal("0.5")) && context.mtls };"#;
        let (code, text) = prove("full", policies, false).await;
        assert_eq!(code, REFUTED, "{text}");
        for part in [
            "roles: `admin`",
            "tool: `vault/delete`, which would destroy",
            "\"n\":42",
            "client certificate: verified",
            "allowed by: oops",
        ] {
            assert!(text.contains(part), "lacks {part}:\n{text}");
        }
    }

    #[tokio::test]
    async fn a_call_that_reads_by_its_arguments_is_no_counterexample() {
        let reads =
            r#"permit (principal, action, resource == Tool::"vault/rollout") when { resource.effect == "read" };"#;
        let (code, text) = prove("full", reads, false).await;
        assert_eq!(code, PROVEN, "{text}");
        let all = r#"@id("oops") permit (principal, action, resource == Tool::"vault/rollout");"#;
        let (code, text) = prove("full", all, false).await;
        assert_eq!(code, REFUTED, "{text}");
        assert!(text.contains("allowed by: oops"), "{text}");
    }

    #[tokio::test]
    async fn tools_that_nobody_knows_are_taken_for_the_worst() {
        let (code, text) =
            prove("full", r#"permit (principal in Scope::"s", action, resource in Backend::"git");"#, true).await;
        assert_eq!(code, REFUTED, "{text}");
        assert!(text.contains("the tools of `git`") && text.contains("scopes: `s`"), "{text}");
        let (code, text) = prove("non-destructive", r#"permit (principal, action, resource);"#, true).await;
        assert_eq!(code, PROVEN, "{text}");
    }

    #[tokio::test]
    async fn arguments_without_a_type_leave_it_open() {
        let policies = r#"@id("typeless") permit (principal, action, resource == Tool::"vault/delete") when { context.args has any && context.args.any == Json::"null" };"#;
        let (code, text) = prove("full", policies, false).await;
        assert_eq!(code, UNDECIDED, "{text}");
        assert!(
            text.contains("it turns on arguments whose types are not known") && text.contains("`typeless`"),
            "{text}"
        );
        let closed =
            format!("{policies} forbid (principal, action, resource) when {{ resource.effect == \"destroy\" }};");
        let (code, text) = prove("full", &closed, false).await;
        assert_eq!(code, PROVEN, "{text}");
    }
}
