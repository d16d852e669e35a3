//! `wardgate policy diff`: whose rights two sets of rules tell apart, and what would have become of past requests.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;
use serde_json::json;

use super::Answer;
use super::Format;
use super::cases::Cases;
use super::matrix::At;
use super::matrix::columns;
use super::replay;
use super::replay::Replay;
use super::rulebook::Rulebook;
use super::table::Roles;
use super::table::Row;
use super::table::Table;
use super::table::Things;

#[derive(Args)]
pub(super) struct Diff {
    /// A configuration, a `.cedar` file, or a folder of them.
    old: PathBuf,
    /// What would take its place.
    new: PathBuf,
    /// Files with `principals` and `tools` to compare, beside those that the configurations name.
    #[arg(long, value_name = "FILE")]
    cases: Vec<PathBuf>,
    /// An audit log: which of its requests would be decided otherwise?
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    #[command(flatten)]
    at: At,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A cell, or a tool's effect or ceiling, that is not the same.
struct Difference {
    what: String,
    whom: String,
    old: String,
    new: String,
}

impl Diff {
    pub(super) fn run(self) -> Answer {
        let at = self.at.meant()?;
        let open = |path: &PathBuf| Rulebook::open(path).map_err(|problem| format!("{}: {problem}", path.display()));
        let (old, new) = (open(&self.old)?, open(&self.new)?);
        let (mut roles, mut things) = (Roles::default(), Things::default());
        for rules in [&old, &new] {
            roles.of(rules);
            things.of(rules);
        }
        for path in &self.cases {
            let cases = Cases::read(path)?;
            roles.of_cases(&cases)?;
            things.of_cases(&cases)?;
        }
        let tables = (things.judge(&roles, &old, at)?, things.judge(&roles, &new, at)?);
        if tables.0.rows.is_empty() && tables.1.rows.is_empty() && self.replay.is_none() {
            return Err(
                "there is no tool to compare: name some in a file with `tools`, and give it with --cases".into()
            );
        }
        let differences = differences(&tables.0, &tables.1);
        let replay = self.replay.as_deref().map(|path| replay::replay(path, &old, &new)).transpose()?;
        let same = differences.is_empty() && replay.as_ref().is_none_or(Replay::is_the_same);
        let text = match self.format {
            Format::Text => text(&differences, replay.as_ref(), &things),
            Format::Json => format!("{:#}", json(&differences, replay.as_ref(), &things)),
        };
        Ok((if same { crate::cli::OK } else { crate::cli::FAILED }, text))
    }
}

fn differences(old: &Table, new: &Table) -> Vec<Difference> {
    let mut names: Vec<&String> = old.rows.iter().chain(&new.rows).map(|row| &row.what).collect();
    names.sort();
    names.dedup();
    let row = |table: &Table, name: &String| table.rows.iter().find(|row| row.what == *name).cloned();
    let mut differences = Vec::new();
    for name in names {
        match (row(old, name), row(new, name)) {
            (Some(before), Some(after)) => differences.extend(between(&old.roles, &before, &after)),
            (before, after) => {
                let word = |row: Option<Row>| if row.is_some() { "there" } else { "not there" }.to_owned();
                let (old, new) = (word(before), word(after));
                differences.push(Difference { what: name.clone(), whom: "(tool)".to_owned(), old, new });
            }
        }
    }
    differences
}

fn between(roles: &[String], before: &Row, after: &Row) -> Vec<Difference> {
    let difference = |whom: &str, old: String, new: String| {
        (old != new).then(|| Difference { what: before.what.clone(), whom: whom.to_owned(), old, new })
    };
    let effect = difference("(effect)", before.effect.as_str().to_owned(), after.effect.as_str().to_owned());
    let mode = difference("(mode)", before.mode.as_str().to_owned(), after.mode.as_str().to_owned());
    let cells = roles.iter().zip(before.cells.iter().zip(&after.cells));
    let cells = cells.filter_map(|(role, (old, new))| difference(role, old.text(), new.text()));
    effect.into_iter().chain(mode).chain(cells).collect()
}

fn text(differences: &[Difference], replay: Option<&Replay>, things: &Things) -> String {
    let mut out = String::new();
    if differences.is_empty() {
        out.push_str("no difference in who may do what\n");
    } else {
        let head = ["tool", "whom", "old", "new"].map(str::to_owned).to_vec();
        let rows = differences.iter().map(|difference| {
            let Difference { what, whom, old, new } = difference;
            vec![what.clone(), whom.clone(), old.clone(), new.clone()]
        });
        let grid: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
        out.push_str(&columns(&grid));
    }
    for pattern in &things.patterns {
        let _ = writeln!(
            out,
            "not compared: {pattern} (a pattern names no tool; name some under `tools` in a file for --cases)"
        );
    }
    if let Some(replay) = replay {
        let _ = write!(out, "\n{}", replay.text());
    }
    out
}

fn json(differences: &[Difference], replay: Option<&Replay>, things: &Things) -> Value {
    let rows: Vec<Value> = differences
        .iter()
        .map(|Difference { what, whom, old, new }| json!({ "tool": what, "whom": whom, "old": old, "new": new }))
        .collect();
    json!({ "differences": rows, "patterns": things.patterns, "replay": replay.map(Replay::json) })
}
