//! `wardgate policy test`: tables of questions with the answers that are expected, all failures at once.

use std::fmt::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use clap::ValueEnum;
use serde_json::json;

use super::Answer;
use super::cases;
use super::cases::Because;
use super::cases::Cases;
use super::cases::Expect;
use super::cases::Question;
use super::plain;
use super::rulebook::Rulebook;
use crate::cli::ConfigFile;
use crate::policy::Reason;

/// Where tests are looked for when none are named.
const TESTS: &str = "policies/tests";

#[derive(Args)]
pub(super) struct Test {
    /// Files of tests, and folders of them. Default: `policies/tests`.
    files: Vec<PathBuf>,
    #[command(flatten)]
    config: ConfigFile,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
    Junit,
}

/// How one test went.
struct Outcome {
    name: String,
    line: usize,
    failure: Option<Failure>,
}

/// What was expected and what came instead, or why the question could not be put.
enum Failure {
    Differs { question: String, expected: String, got: String, grounds: String },
    Wrong(String),
}

struct Report {
    path: PathBuf,
    outcomes: Vec<Outcome>,
}

impl Test {
    pub(super) fn run(self) -> Answer {
        let named = if self.files.is_empty() { vec![PathBuf::from(TESTS)] } else { self.files.clone() };
        let mut reports = Vec::new();
        let mut problems = Vec::new();
        for path in files(&named)? {
            match self.file(&path) {
                Ok(report) => reports.push(report),
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(problems.join("\n"));
        }
        let failed = reports.iter().flat_map(|report| &report.outcomes).any(|outcome| outcome.failure.is_some());
        let text = match self.format {
            Format::Text => text(&reports),
            Format::Json => json(&reports),
            Format::Junit => junit(&reports),
        };
        Ok((if failed { crate::cli::FAILED } else { crate::cli::OK }, text))
    }

    fn file(&self, path: &Path) -> Result<Report, String> {
        let cases = Cases::read(path)?;
        let rules = match cases.rules()? {
            Some(rules) => rules,
            None => Rulebook::open(&self.config.file)?,
        };
        Ok(Report { path: path.to_owned(), outcomes: run(&cases, &rules) })
    }
}

fn run(cases: &Cases, rules: &Rulebook) -> Vec<Outcome> {
    let tests = cases.file().tests.iter().enumerate();
    tests
        .map(|(index, test)| {
            let failure = match cases.question(test, rules) {
                Ok(question) => check(test, &question, rules),
                Err(what) => Some(Failure::Wrong(what)),
            };
            Outcome { name: test.name.clone(), line: cases.line(index), failure }
        })
        .collect()
}

/// All files of tests, those of a folder by name.
fn files(named: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for path in named {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let unreadable = |error: std::io::Error| format!("`{}` cannot be read: {error}", path.display());
        let mut inside = Vec::new();
        for entry in std::fs::read_dir(path).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml") {
                inside.push(path);
            }
        }
        if inside.is_empty() {
            return Err(format!("there is no test (`*.yaml`) in `{}`", path.display()));
        }
        inside.sort();
        files.append(&mut inside);
    }
    Ok(files)
}

fn check(test: &cases::Test, question: &Question, rules: &Rulebook) -> Option<Failure> {
    let judged = question.judge(rules);
    let (got, reason, policies) = match &judged {
        Ok(permit) => (Expect::Allow, None, permit.policies().clone()),
        Err(denial) => (Expect::Deny, Some(because(denial.reason)), denial.policies.clone()),
    };
    let listed = rules.policy.lists(&question.principal(), &question.decl, &question.context());
    let by = |expected: &Vec<String>| {
        let mut expected = expected.clone();
        expected.sort_unstable();
        expected == *policies
    };
    let good = got == test.expect
        && test.because.is_none_or(|expected| Some(expected) == reason)
        && test.by.as_ref().is_none_or(by)
        && test.listed.is_none_or(|expected| expected == listed);
    if good {
        return None;
    }
    let expected = words(test.expect, test.because, test.by.as_deref(), test.listed);
    let shown = test.listed.is_some().then_some(listed);
    Some(Failure::Differs {
        question: described(question),
        expected,
        got: words(got, reason, Some(&policies), shown),
        grounds: grounds(rules, &policies),
    })
}

fn because(reason: Reason) -> Because {
    match reason {
        Reason::Ceiling => Because::Ceiling,
        Reason::Error => Because::Error,
        Reason::Forbidden => Because::Forbidden,
        Reason::NotGranted => Because::NotGranted,
    }
}

fn words(answer: Expect, because: Option<Because>, by: Option<&[String]>, listed: Option<bool>) -> String {
    let mut words = String::from(match answer {
        Expect::Allow => "allow",
        Expect::Deny => "deny",
    });
    if let Some(because) = because {
        words.push_str(match because {
            Because::Ceiling => " (above the mode's ceiling)",
            Because::Error => " (a policy failed)",
            Because::Forbidden => " (forbidden)",
            Because::NotGranted => " (not granted)",
        });
    }
    if let Some(by) = by.filter(|by| !by.is_empty()) {
        let _ = write!(words, " by `{}`", by.join("`, `"));
    }
    match listed {
        Some(true) => words.push_str(", listed"),
        Some(false) => words.push_str(", not listed"),
        None => {}
    }
    words
}

/// The question in one line: who does what, and under which circumstances.
pub(super) fn described(question: &Question) -> String {
    let Question { claims, decl, action, mode, .. } = question;
    let mut line = format!("{} {}", claims.kind.as_str(), plain(&claims.subject));
    let sets = [("scopes", &claims.scopes), ("roles", &claims.roles), ("groups", &claims.groups), ("amr", &claims.amr)];
    for (name, values) in sets.into_iter().filter(|(_, values)| !values.is_empty()) {
        let values: Vec<String> = values.iter().map(|value| plain(value)).collect();
        let _ = write!(line, ", {name} {}", values.join(" "));
    }
    for (name, value) in [("tenant", &claims.tenant), ("acr", &claims.acr)] {
        if let Some(value) = value {
            let _ = write!(line, ", {name} {}", plain(value));
        }
    }
    if claims.mtls {
        line.push_str(", with a client certificate");
    }
    let target =
        if *decl.backend == *decl.name { plain(&decl.name) } else { plain(&format!("{}/{}", decl.backend, decl.name)) };
    let _ = write!(line, ": {} {target} ({}, mode {})", action.as_str(), decl.effect.as_str(), mode.as_str());
    if let Some(arguments) = question.arguments.as_ref().and_then(|json| std::str::from_utf8(json).ok()) {
        let _ = write!(line, " with {}", plain(arguments));
    }
    line
}

/// The deciding policies with their place and text.
fn grounds(rules: &Rulebook, policies: &Arc<[String]>) -> String {
    policies.iter().map(|id| format!("{}: `{id}`\n{}", rules.place(id), rules.text(id, "  "))).collect()
}

fn text(reports: &[Report]) -> String {
    let mut out = String::new();
    let (mut passed, mut failed) = (0, 0);
    for report in reports {
        let bad: Vec<&Outcome> = report.outcomes.iter().filter(|outcome| outcome.failure.is_some()).collect();
        failed += bad.len();
        passed += report.outcomes.len() - bad.len();
        let verdict = if bad.is_empty() { "ok" } else { "FAILED" };
        let _ = writeln!(out, "{}: {} tests, {verdict}", report.path.display(), report.outcomes.len());
        for outcome in bad {
            let _ = writeln!(out, "\n  {}:{}: {}", report.path.display(), outcome.line, plain(&outcome.name));
            match &outcome.failure {
                Some(Failure::Differs { question, expected, got, grounds }) => {
                    let _ = writeln!(out, "    asked     {question}");
                    let _ = writeln!(out, "    expected  {expected}");
                    let _ = writeln!(out, "    got       {got}");
                    for line in grounds.lines() {
                        let _ = writeln!(out, "      {line}");
                    }
                }
                Some(Failure::Wrong(what)) => {
                    let _ = writeln!(out, "    {what}");
                }
                None => {}
            }
            out.push('\n');
        }
    }
    let _ = writeln!(out, "{} tests in {} files: {passed} passed, {failed} failed", passed + failed, reports.len());
    out
}

fn json(reports: &[Report]) -> String {
    let row = |report: &Report, outcome: &Outcome| {
        let failure = match &outcome.failure {
            Some(Failure::Differs { question, expected, got, grounds }) => {
                Some(json!({ "asked": question, "expected": expected, "got": got, "policies": grounds }))
            }
            Some(Failure::Wrong(what)) => Some(json!({ "wrong": what })),
            None => None,
        };
        json!({
            "file": report.path.display().to_string(),
            "line": outcome.line,
            "name": outcome.name,
            "passed": outcome.failure.is_none(),
            "failure": failure,
        })
    };
    let rows: Vec<serde_json::Value> =
        reports.iter().flat_map(|report| report.outcomes.iter().map(move |outcome| row(report, outcome))).collect();
    format!("{:#}", json!({ "tests": rows }))
}

fn junit(reports: &[Report]) -> String {
    let escaped = |text: &str| {
        let text: String = text.chars().filter(|c| !c.is_control() || *c == '\n').collect();
        text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
    };
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    for report in reports {
        let failures = report.outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
        let file = escaped(&report.path.display().to_string());
        let tests = report.outcomes.len();
        let _ = writeln!(out, "  <testsuite name=\"{file}\" tests=\"{tests}\" failures=\"{failures}\">");
        for outcome in &report.outcomes {
            let name = escaped(&outcome.name);
            let _ = write!(out, "    <testcase classname=\"{file}\" name=\"{name}\" line=\"{}\"", outcome.line);
            let message = match &outcome.failure {
                Some(Failure::Differs { question, expected, got, grounds }) => {
                    format!("{question}\nexpected {expected}\ngot {got}\n{grounds}")
                }
                Some(Failure::Wrong(what)) => what.clone(),
                None => {
                    out.push_str("/>\n");
                    continue;
                }
            };
            let _ = writeln!(out, "><failure>{}</failure></testcase>", escaped(&message));
        }
        out.push_str("  </testsuite>\n");
    }
    out.push_str("</testsuites>\n");
    out
}
