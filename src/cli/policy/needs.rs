//! What would be needed for a yes: found by asking the same question with other facts, never by reading the policies.

use std::fmt;

use super::cases::Question;
use super::rulebook::Rulebook;
use super::table::give;
use crate::catalog::Effect;
use crate::catalog::Mode;
use crate::policy::Whom;

/// More facts than these together nobody changes at once.
const TOGETHER_MAX: usize = 3;

/// Questions that are asked at most; a few microseconds to a millisecond each.
const QUESTIONS_MAX: usize = 5_000;

/// One fact that would be different.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Change {
    Mode(Mode),
    With(Whom),
    Without(Whom),
    Certificate(bool),
    NoGuest,
    GroupsKnown,
    /// The tool would be classified otherwise.
    Effect(Effect),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, whom) = match self {
            Change::Mode(mode) => return write!(f, "mode {}", mode.as_str()),
            Change::Certificate(true) => return f.write_str("a verified client certificate"),
            Change::Certificate(false) => return f.write_str("no client certificate"),
            Change::NoGuest => return f.write_str("not a guest"),
            Change::GroupsKnown => return f.write_str("a token that leaves no groups out"),
            Change::Effect(effect) => return write!(f, "the tool classified as {}", effect.as_str()),
            Change::With(whom) => ("", whom),
            Change::Without(whom) => ("not ", whom),
        };
        match whom {
            Whom::Scope(id) => write!(f, "{word}scope {id}"),
            Whom::Role(id) => write!(f, "{word}role {id}"),
            Whom::Group(id) => write!(f, "{word}group {id}"),
            Whom::Tenant(id) => write!(f, "{word}tenant {id}"),
            Whom::Subject(id) => write!(f, "{word}subject {id}"),
            Whom::Acr(level) => write!(f, "{word}a login of level (acr) {level}"),
            Whom::Amr(means) => write!(f, "{word}a login by (amr) {means}"),
        }
    }
}

/// What was found, and whether everything was tried.
pub(super) struct Needs {
    /// Each is enough, and nothing of it can be left out.
    pub(super) ways: Vec<Vec<Change>>,
    pub(super) complete: bool,
}

pub(super) fn needed(question: &Question, rules: &Rulebook) -> Needs {
    let changes = changes(question, rules);
    let mut needs = Needs { ways: Vec::new(), complete: true };
    let mut asked = 0;
    let mut open: Vec<Vec<usize>> = vec![Vec::new()];
    for _ in 0..TOGETHER_MAX {
        let mut longer = Vec::new();
        for chosen in &open {
            let from = chosen.last().map_or(0, |last| last + 1);
            for (index, change) in changes.iter().enumerate().skip(from) {
                let picked = |index: &usize| changes.get(*index);
                if chosen.iter().filter_map(picked).any(|known| excludes(known, change)) {
                    continue;
                }
                let way: Vec<Change> = chosen.iter().filter_map(picked).chain([change]).cloned().collect();
                if needs.ways.iter().any(|known| known.iter().all(|change| way.contains(change))) {
                    continue;
                }
                if asked >= QUESTIONS_MAX {
                    needs.complete = false;
                    return needs;
                }
                asked += 1;
                if changed(question, &way).judge(rules).is_ok() {
                    needs.ways.push(way);
                } else {
                    longer.push(chosen.iter().copied().chain([index]).collect());
                }
            }
        }
        open = longer;
    }
    needs
}

/// Of one fact there is one.
fn excludes(one: &Change, other: &Change) -> bool {
    match (one, other) {
        (Change::Mode(_), Change::Mode(_)) | (Change::Effect(_), Change::Effect(_)) => true,
        (Change::With(one), Change::With(other)) => matches!(
            (one, other),
            (Whom::Tenant(_), Whom::Tenant(_)) | (Whom::Subject(_), Whom::Subject(_)) | (Whom::Acr(_), Whom::Acr(_))
        ),
        _ => false,
    }
}

/// Everything that the policies speak of and that is otherwise here.
fn changes(question: &Question, rules: &Rulebook) -> Vec<Change> {
    let claims = &question.claims;
    let modes = [Mode::NonDestructive, Mode::Full].into_iter().filter(|mode| *mode > question.mode).map(Change::Mode);
    let mut changes: Vec<Change> = modes.collect();
    for whom in rules.policy.whom().iter().cloned() {
        let has = match &whom {
            Whom::Scope(id) => claims.scopes.contains(id),
            Whom::Role(id) => claims.roles.contains(id),
            Whom::Group(id) => claims.groups.contains(id),
            Whom::Tenant(id) => claims.tenant.as_ref() == Some(id),
            Whom::Subject(id) => claims.subject == *id,
            Whom::Acr(level) => claims.acr.as_ref() == Some(level),
            Whom::Amr(means) => claims.amr.contains(means),
        };
        changes.push(if has { Change::Without(whom) } else { Change::With(whom) });
    }
    changes.push(Change::Certificate(!claims.mtls));
    if claims.guest {
        changes.push(Change::NoGuest);
    }
    if claims.groups_unknown {
        changes.push(Change::GroupsKnown);
    }
    changes.extend(Effect::ALL.into_iter().filter(|effect| *effect < question.decl.effect).map(Change::Effect));
    changes
}

fn changed(question: &Question, way: &[Change]) -> Question {
    let mut question = question.clone();
    let claims = &mut question.claims;
    for change in way {
        match change {
            Change::Mode(mode) => question.mode = *mode,
            Change::Effect(effect) => question.decl.effect = *effect,
            Change::Certificate(there) => claims.mtls = *there,
            Change::NoGuest => claims.guest = false,
            Change::GroupsKnown => claims.groups_unknown = false,
            Change::With(whom) => give(claims, whom),
            Change::Without(whom) => match whom {
                Whom::Scope(id) => drop(claims.scopes.remove(id)),
                Whom::Role(id) => drop(claims.roles.remove(id)),
                Whom::Group(id) => drop(claims.groups.remove(id)),
                Whom::Tenant(_) => claims.tenant = None,
                Whom::Subject(_) => "somebody else".clone_into(&mut claims.subject),
                Whom::Acr(_) => claims.acr = None,
                Whom::Amr(means) => drop(claims.amr.remove(means)),
            },
        }
    }
    question
}
