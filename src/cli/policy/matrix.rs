//! `wardgate policy matrix`: the table of who may do what, to read, to commit and to compare.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use clap::ValueEnum;
use serde_json::Value;
use serde_json::json;

use super::Answer;
use super::cases;
use super::cases::Cases;
use super::rulebook::Rulebook;
use super::table::Circumstances;
use super::table::Roles;
use super::table::Table;
use super::table::Things;
use crate::audit;
use crate::cli::ConfigFile;

#[derive(Args)]
pub(super) struct Matrix {
    /// Files with `principals` and `tools`: more columns and rows. One of them may name the rules.
    files: Vec<PathBuf>,
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    at: At,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Compare with this file instead; exit code 1 and the difference if it says something else.
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
}

/// The circumstances of all cells.
#[derive(Args)]
pub(super) struct At {
    /// Callers have a verified client certificate.
    #[arg(long)]
    mtls: bool,
    /// The moment, in UTC. Default: Wednesday, 2026-01-07T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    now: Option<String>,
    /// The address of the callers. Default: none, as on a Unix socket.
    #[arg(long)]
    ip: Option<IpAddr>,
}

impl At {
    pub(super) fn meant(&self) -> Result<Circumstances, String> {
        let now = self.now.as_deref().map_or(Ok(cases::noon()), cases::moment)?;
        Ok(Circumstances { mtls: self.mtls, ip: self.ip, now })
    }
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
enum Format {
    #[default]
    Text,
    Markdown,
    Json,
}

impl Matrix {
    pub(super) fn run(self) -> Answer {
        let at = self.at.meant()?;
        let cases: Vec<Cases> = self.files.iter().map(|path| Cases::read(path)).collect::<Result<_, _>>()?;
        let mut rules = None;
        for cases in &cases {
            if let Some(named) = cases.rules()?
                && rules.replace(named).is_some()
            {
                return Err("more than one of the files names the rules".to_owned());
            }
        }
        let rules = match rules {
            Some(rules) => rules,
            None => Rulebook::open(&self.config.file)?,
        };
        let (mut roles, mut things) = (Roles::default(), Things::default());
        roles.of(&rules);
        things.of(&rules);
        for cases in &cases {
            roles.of_cases(cases)?;
            things.of_cases(cases)?;
        }
        let table = things.judge(&roles, &rules, at)?;
        let text = match self.format {
            Format::Text => text(&table, &things, at),
            Format::Markdown => markdown(&table, &things, at),
            Format::Json => format!("{:#}", json(&table, &things, at)),
        };
        let Some(path) = self.check else {
            return Ok((crate::cli::OK, text));
        };
        let known =
            std::fs::read_to_string(&path).map_err(|error| format!("`{}` cannot be read: {error}", path.display()))?;
        let differences = compare(known.trim_end(), text.trim_end());
        match differences.is_empty() {
            true => Ok((crate::cli::OK, format!("{}: as committed", path.display()))),
            false => Ok((crate::cli::FAILED, format!("{}: - committed, + now\n{differences}", path.display()))),
        }
    }
}

/// Under which circumstances it holds, in words.
fn header(at: Circumstances) -> String {
    let certificate = if at.mtls { "a" } else { "no" };
    let address = at.ip.map_or_else(|| "no address".to_owned(), |ip| format!("address {ip}"));
    let now = audit::timestamp(at.now);
    format!("at {}Z, {certificate} client certificate, {address}", now.get(..19).unwrap_or(&now))
}

const LEGEND: [&str; 4] = [
    "allow: whatever the arguments and the circumstances",
    "listed: in the list; in these circumstances the arguments of a call decide",
    "depends: on the circumstances (certificate, address, time)",
    "deny: whatever the arguments and the circumstances",
];

fn notes(things: &Things) -> Vec<String> {
    let note = |pattern: &String| {
        format!("{pattern}: a pattern names no tool; name some under `tools` in a file of cases to see them here")
    };
    things.patterns.iter().map(note).collect()
}

fn grid(table: &Table) -> Vec<Vec<String>> {
    let head = ["tool", "effect", "mode"].into_iter().map(str::to_owned).chain(table.roles.iter().cloned());
    let rows = table.rows.iter().map(|row| {
        let facts = [row.what.clone(), row.effect.as_str().to_owned(), row.mode.as_str().to_owned()];
        facts.into_iter().chain(row.cells.iter().map(super::table::Cell::text)).collect()
    });
    std::iter::once(head.collect()).chain(rows).collect()
}

/// In columns.
fn text(table: &Table, things: &Things, at: Circumstances) -> String {
    let mut out = format!("{}\n\n", header(at));
    out.push_str(&columns(&grid(table)));
    out.push('\n');
    for line in LEGEND.into_iter().map(str::to_owned).chain(notes(things)) {
        let _ = writeln!(out, "{line}");
    }
    out
}

/// Each column as wide as its widest cell.
pub(super) fn columns(grid: &[Vec<String>]) -> String {
    let width = |column: usize| {
        grid.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..grid.first().map_or(0, Vec::len)).map(width).collect();
    let mut out = String::new();
    for row in grid {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

fn markdown(table: &Table, things: &Things, at: Circumstances) -> String {
    let mut out = format!("Who may do what, {}.\n\n", header(at));
    for (index, row) in grid(table).iter().enumerate() {
        let cells: Vec<String> = row.iter().map(|cell| super::plain(cell).replace('|', "\\|")).collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
        if index == 0 {
            let _ = writeln!(out, "|{}", "---|".repeat(row.len()));
        }
    }
    out.push('\n');
    for line in LEGEND.into_iter().map(str::to_owned).chain(notes(things)) {
        let _ = writeln!(out, "- {}", line.replace('*', "\\*"));
    }
    out
}

fn json(table: &Table, things: &Things, at: Circumstances) -> Value {
    let rows = table.rows.iter().map(|row| {
        let cells = table.roles.iter().zip(&row.cells).map(|(role, cell)| {
            let mut shown = json!({ "answer": cell.word() });
            if let (Some(members), false) = (shown.as_object_mut(), cell.shadows.is_empty()) {
                members.insert("shadows".to_owned(), json!(cell.shadows));
            }
            (role.clone(), shown)
        });
        let cells: serde_json::Map<String, Value> = cells.collect();
        json!({ "tool": row.what, "effect": row.effect, "mode": row.mode, "roles": cells })
    });
    let rows: Vec<Value> = rows.collect();
    json!({ "circumstances": header(at), "rows": rows, "patterns": things.patterns })
}

/// The lines that are only in one of the texts, in order.
fn compare(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    // Lengths of the longest common subsequences of what is left.
    let mut lengths = vec![vec![0usize; new.len() + 1]; old.len() + 1];
    let at = |lengths: &[Vec<usize>], i: usize, j: usize| {
        lengths.get(i).and_then(|row| row.get(j)).copied().unwrap_or_default()
    };
    for (i, left) in old.iter().enumerate().rev() {
        for (j, right) in new.iter().enumerate().rev() {
            let length = match left == right {
                true => at(&lengths, i + 1, j + 1) + 1,
                false => at(&lengths, i + 1, j).max(at(&lengths, i, j + 1)),
            };
            if let Some(cell) = lengths.get_mut(i).and_then(|row| row.get_mut(j)) {
                *cell = length;
            }
        }
    }
    let (mut i, mut j, mut out) = (0, 0, String::new());
    loop {
        match (old.get(i), new.get(j)) {
            (Some(left), Some(right)) if left == right => (i, j) = (i + 1, j + 1),
            (Some(left), right) if right.is_none() || at(&lengths, i + 1, j) >= at(&lengths, i, j + 1) => {
                let _ = writeln!(out, "- {left}");
                i += 1;
            }
            (_, Some(right)) => {
                let _ = writeln!(out, "+ {right}");
                j += 1;
            }
            _ => return out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lines_that_differ_are_shown() {
        assert_eq!(compare("a\nb\nc", "a\nb\nc"), "");
        assert_eq!(compare("a\nb\nc", "a\nx\nc\nd"), "- b\n+ x\n+ d\n");
        assert_eq!(compare("", "a"), "+ a\n");
        assert_eq!(compare("a", ""), "- a\n");
    }
}
