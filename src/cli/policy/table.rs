//! Who may do what, as a table: one column for each role, one row for each tool, one word in each cell.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::SystemTime;

use super::cases;
use super::cases::Cases;
use super::rulebook::Rulebook;
use super::rulebook::Tools;
use crate::catalog::Decl;
use crate::catalog::Effect;
use crate::catalog::Kind;
use crate::catalog::Mode;
use crate::policy::Context;
use crate::policy::Prospect;
use crate::policy::Whom;
use crate::principal::Claims;
use crate::principal::Principal;

/// Names that the braces of one pattern stand for; a pattern for more is as good as one for all.
const EXPANDED_MAX: usize = 1000;

/// Under which circumstances the table holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances {
    pub(super) mtls: bool,
    pub(super) ip: Option<IpAddr>,
    pub(super) now: SystemTime,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Cell {
    pub(super) prospect: Prospect,
    /// Policies in shadow mode that would change it.
    pub(super) shadows: Vec<String>,
}

impl Cell {
    pub(super) fn word(&self) -> &'static str {
        match self.prospect {
            Prospect::Allow => "allow",
            Prospect::Depends { .. } => "depends",
            Prospect::Listed => "listed",
            Prospect::Deny(_) => "deny",
        }
    }

    pub(super) fn text(&self) -> String {
        match self.shadows.is_empty() {
            true => self.word().to_owned(),
            false => format!("{} (shadow: {})", self.word(), self.shadows.join(", ")),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) what: String,
    pub(super) effect: Effect,
    pub(super) mode: Mode,
    pub(super) cells: Vec<Cell>,
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) roles: Vec<String>,
    pub(super) rows: Vec<Row>,
}

/// Everybody that rules and cases speak of, by what they have; in order, each once.
#[derive(Default)]
pub(super) struct Roles(Vec<(String, Claims)>);

impl Roles {
    pub(super) fn of(&mut self, rules: &Rulebook) {
        self.add("everybody".to_owned(), nobody());
        for whom in rules.policy.whom() {
            let mut claims = nobody();
            let label = match whom {
                Whom::Scope(id) => format!("scope {id}"),
                Whom::Role(id) => format!("role {id}"),
                Whom::Group(id) => format!("group {id}"),
                Whom::Tenant(id) => format!("tenant {id}"),
                Whom::Subject(id) => format!("subject {id}"),
                // How somebody logged in is nothing to be.
                Whom::Acr(_) | Whom::Amr(_) => continue,
            };
            give(&mut claims, whom);
            self.add(label, claims);
        }
    }

    pub(super) fn of_cases(&mut self, cases: &Cases) -> Result<(), String> {
        for (name, facts) in &cases.file().principals {
            self.add(name.clone(), facts.claims(name)?);
        }
        Ok(())
    }

    fn add(&mut self, label: String, claims: Claims) {
        if !self.0.iter().any(|(known, _)| *known == label) {
            self.0.push((label, claims));
        }
    }
}

/// A caller that is known for nothing.
fn nobody() -> Claims {
    Claims { subject: "somebody".to_owned(), issuer: "https://issuer.example".to_owned(), ..Claims::default() }
}

pub(super) fn give(claims: &mut Claims, whom: &Whom) {
    match whom {
        Whom::Scope(id) => drop(claims.scopes.insert(id.clone())),
        Whom::Role(id) => drop(claims.roles.insert(id.clone())),
        Whom::Group(id) => drop(claims.groups.insert(id.clone())),
        Whom::Tenant(id) => claims.tenant = Some(id.clone()),
        Whom::Subject(id) => claims.subject.clone_from(id),
        Whom::Acr(level) => claims.acr = Some(level.clone()),
        Whom::Amr(means) => drop(claims.amr.insert(means.clone())),
    }
}

/// Everything that can be asked for and whose name is known, with its effect where a case gives one.
#[derive(Default)]
pub(super) struct Things {
    named: BTreeMap<(String, bool, String), Option<Effect>>,
    /// Patterns of effects that say no name.
    pub(super) patterns: BTreeSet<String>,
}

impl Things {
    pub(super) fn of(&mut self, rules: &Rulebook) {
        for backend in rules.backends() {
            self.named.insert((backend.name.to_string(), false, String::new()), None);
            let effects = match &backend.tools {
                Tools::Ruled(effects) => effects,
                Tools::Declared(decls) => {
                    for decl in decls {
                        self.named.entry((backend.name.to_string(), true, decl.name.to_string())).or_default();
                    }
                    continue;
                }
            };
            for rule in &effects.rules {
                let pattern = rule.tools.glob().glob();
                match names(pattern) {
                    Some(names) => {
                        for name in names {
                            self.named.entry((backend.name.to_string(), true, name)).or_default();
                        }
                    }
                    None => drop(self.patterns.insert(format!("{}/{pattern}", backend.name))),
                }
            }
        }
    }

    pub(super) fn of_cases(&mut self, cases: &Cases) -> Result<(), String> {
        for (name, effect) in &cases.file().tools {
            let Some((backend, tool)) = name.split_once('/') else {
                return Err(format!("{}: `{name}` must be `backend/tool`", cases.path.display()));
            };
            self.named.entry((backend.to_owned(), false, String::new())).or_default();
            let known = self.named.entry((backend.to_owned(), true, tool.to_owned())).or_default();
            *known = known.or(*effect);
        }
        Ok(())
    }

    /// The table of these roles and things.
    pub(super) fn judge(&self, roles: &Roles, rules: &Rulebook, at: Circumstances) -> Result<Table, String> {
        let mut rows = Vec::new();
        for ((backend, tool, name), effect) in &self.named {
            let (kind, what) = match tool {
                true => (Kind::Tool, format!("{backend}/{name}")),
                false => (Kind::Backend, backend.clone()),
            };
            // In the other configuration, perhaps.
            if effect.is_none() && rules.backends().next().is_some() && rules.backend(backend).is_none() {
                continue;
            }
            let decl = cases::declaration(kind, &what, *effect, rules)?;
            let mode = rules.ceiling(backend);
            let cells = roles.0.iter().map(|(_, claims)| cell(rules, claims, &decl, mode, at)).collect();
            let what = if *tool { what } else { format!("{backend} (connect)") };
            rows.push(Row { what, effect: decl.effect, mode, cells });
        }
        Ok(Table { roles: roles.0.iter().map(|(label, _)| label.clone()).collect(), rows })
    }
}

fn cell(rules: &Rulebook, claims: &Claims, decl: &Decl, mode: Mode, at: Circumstances) -> Cell {
    let claims = Claims { mtls: claims.mtls || at.mtls, ..claims.clone() };
    let context = Context { mode, ip: at.ip, mtls: claims.mtls, now: at.now };
    let action = cases::action(decl.kind, false);
    let outlook = rules.policy.outlook(&Principal::supposed(claims), action, decl, &context);
    Cell { prospect: outlook.prospect, shadows: outlook.shadows.to_vec() }
}

/// The names that a pattern stands for, if it can be said: braces are written out, any other wildcard says no name.
fn names(pattern: &str) -> Option<Vec<String>> {
    let mut names = vec![String::new()];
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('{') {
        let (choices, behind) = after.split_once('}')?;
        if choices.contains('{') || names.len() * (choices.matches(',').count() + 1) > EXPANDED_MAX {
            return None;
        }
        names = names
            .iter()
            .flat_map(|name| choices.split(',').map(move |choice| format!("{name}{before}{choice}")))
            .collect();
        rest = behind;
    }
    names.iter_mut().for_each(|name| name.push_str(rest));
    let plain = |name: &String| !name.is_empty() && !name.contains(['*', '?', '[', ']', '\\', '}']);
    names.iter().all(plain).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_are_written_out_and_wildcards_say_no_name() {
        let all = |pattern: &str| names(pattern).map(|names| names.join(" "));
        for (pattern, expected) in [
            ("read_file", Some("read_file")),
            ("{get,list}_note", Some("get_note list_note")),
            ("{a,b}{c,d}", Some("ac ad bc bd")),
            ("{get,list}_*", None),
            ("read_?", None),
            ("[ab]", None),
            ("{a,{b,c}}", None),
        ] {
            assert_eq!(all(pattern).as_deref(), expected, "{pattern}");
        }
    }
}
