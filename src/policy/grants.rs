//! `grants:` become Cedar policies that can be read: `grant-1`, and `grant-1-connect` for the backends it reaches.

use std::fmt::Write;

use super::Error;
use super::Grant;
use crate::catalog::Action;

/// Ids that begin like this belong to grants.
pub(super) const PREFIX: &str = "grant-";

/// Ends the id of the second policy of a grant.
pub(super) const CONNECT: &str = "-connect";

/// A `backend/name` pattern; `*` stands for any characters, within the backend's name or within the rest.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Glob {
    backend: String,
    name: String,
}

impl Glob {
    fn parse(text: &str) -> Result<Glob, String> {
        if let Some(wild) = text.chars().find(|c| matches!(c, '?' | '[' | ']' | '{' | '}' | '\\')) {
            return Err(format!("`{text}`: `{wild}` has no meaning in a tool pattern, only `*` has"));
        }
        let (backend, name) = match text.split_once('/') {
            Some((backend, name)) => (backend, name),
            None if text == "*" => ("*", "*"),
            None => return Err(format!("`{text}` must name a backend and a tool, as in `vault/kv.*`")),
        };
        if backend.is_empty() || name.is_empty() {
            return Err(format!("`{text}` must name a backend and a tool, as in `vault/kv.*`"));
        }
        Ok(Glob { backend: backend.to_owned(), name: name.to_owned() })
    }
}

/// What the grants came to.
pub(super) struct Lowered {
    /// The id and the text of each policy, in order.
    pub(super) policies: Vec<(usize, String, String)>,
    /// Each scope that is named, with the backends it reaches.
    reach: Vec<(String, Vec<Glob>)>,
}

impl Lowered {
    pub(super) fn text(&self) -> String {
        self.policies.iter().map(|(_, _, text)| text.as_str()).collect::<Vec<_>>().join("\n")
    }

    pub(super) fn scopes(&self) -> Vec<String> {
        self.scopes_where(|_| true)
    }

    pub(super) fn scopes_for(&self, backend: &str) -> Vec<String> {
        self.scopes_where(|globs| globs.is_empty() || globs.iter().any(|glob| matches(&glob.backend, backend)))
    }

    fn scopes_where(&self, reaches: impl Fn(&[Glob]) -> bool) -> Vec<String> {
        let mut scopes = Vec::new();
        for (scope, globs) in &self.reach {
            if reaches(globs) && !scopes.contains(scope) {
                scopes.push(scope.clone());
            }
        }
        scopes
    }
}

/// Whom a grant is for, as the scope of a Cedar policy and as a condition.
struct Whom {
    principal: String,
    condition: Option<String>,
}

pub(super) fn lower(grants: &[Grant], errors: &mut Vec<Error>) -> Lowered {
    let mut lowered = Lowered { policies: Vec::new(), reach: Vec::new() };
    for (index, grant) in grants.iter().enumerate() {
        let globs: Vec<_> = grant.tools.iter().map(|text| Glob::parse(text)).collect();
        let whom = whom(grant);
        let allow = if grant.allow.is_empty() { Err("`allow` names no effect".to_owned()) } else { Ok(()) };
        let wrong =
            globs.iter().filter_map(|glob| glob.as_ref().err()).chain(whom.as_ref().err()).chain(allow.as_ref().err());
        errors.extend(wrong.map(|what| Error::Grant { index, what: what.clone() }));
        let (Ok(globs), Ok(whom), Ok(())) = (globs.into_iter().collect::<Result<Vec<Glob>, _>>(), whom, allow) else {
            continue;
        };
        let id = format!("{PREFIX}{}", index + 1);
        let connect = format!("{id}{CONNECT}");
        let shadow = if grant.shadow { "@shadow(\"true\")\n" } else { "" };
        let text = format!("{shadow}{}", use_policy(&id, &whom, grant, &globs));
        lowered.policies.push((index, id, text));
        let text = format!("{shadow}{}", connect_policy(&connect, &whom, &globs));
        lowered.policies.push((index, connect, text));
        // What opens nothing yet is nothing to ask for.
        if let Some(scope) = grant.scope.as_ref().filter(|_| !grant.shadow) {
            lowered.reach.push((scope.clone(), globs));
        }
    }
    lowered
}

fn whom(grant: &Grant) -> Result<Whom, String> {
    let named = [("scope", &grant.scope), ("role", &grant.role), ("group", &grant.group), ("subject", &grant.subject)];
    let mut named = named.into_iter().filter_map(|(kind, value)| value.as_deref().map(|value| (kind, value)));
    let (first, second) = (named.next(), named.next());
    if let (Some((one, _)), Some((other, _))) = (first, second) {
        return Err(format!("names a `{one}` and a `{other}`; a grant is for one of scope, role, group and subject"));
    }
    let Some((kind, value)) = first else {
        return Ok(Whom { principal: "principal".to_owned(), condition: None });
    };
    if value.is_empty() {
        return Err(format!("`{kind}` is empty"));
    }
    let value = quoted(value);
    Ok(match kind {
        "scope" => Whom { principal: format!("principal in Scope::{value}"), condition: None },
        "role" => Whom { principal: format!("principal in Role::{value}"), condition: None },
        "group" => Whom { principal: format!("principal in Group::{value}"), condition: None },
        _ => Whom { principal: "principal".to_owned(), condition: Some(format!("principal.subject == {value}")) },
    })
}

fn use_policy(id: &str, whom: &Whom, grant: &Grant, globs: &[Glob]) -> String {
    let actions: Vec<String> = Action::ALL
        .into_iter()
        .filter(|action| *action != Action::Connect)
        .map(|action| format!("Action::\"{}\"", action.as_str()))
        .collect();
    let mut effects = grant.allow.clone();
    effects.sort_unstable();
    effects.dedup();
    let effects: Vec<String> = effects.into_iter().map(|effect| format!("\"{}\"", effect.as_str())).collect();
    let mut text = if grant.confirm { format!("@{}(\"\")\n", super::CONFIRM) } else { String::new() };
    text.push_str(&opening(id, whom, &format!("action in [{}]", actions.join(", "))));
    condition(&mut text, &format!("[{}].contains(resource.effect)", effects.join(", ")));
    if !globs.is_empty() {
        let tools: Vec<String> = globs
            .iter()
            .map(|glob| {
                format!("({} && {})", like("resource.backend", &glob.backend), like("resource.name", &glob.name))
            })
            .collect();
        condition(&mut text, &tools.join(" || "));
    }
    text + ";\n"
}

fn connect_policy(id: &str, whom: &Whom, globs: &[Glob]) -> String {
    let mut text = opening(id, whom, "action == Action::\"connect\"");
    if !globs.is_empty() {
        let mut backends: Vec<String> = globs.iter().map(|glob| like("resource.backend", &glob.backend)).collect();
        backends.dedup();
        condition(&mut text, &backends.join(" || "));
    }
    text + ";\n"
}

fn opening(id: &str, whom: &Whom, action: &str) -> String {
    let mut text = format!("@id(\"{id}\")\npermit (\n  {},\n  {action},\n  resource\n)", whom.principal);
    if let Some(subject) = &whom.condition {
        condition(&mut text, subject);
    }
    text
}

fn condition(text: &mut String, what: &str) {
    // Writing into a String cannot fail.
    let _ = write!(text, "\nwhen {{ {what} }}");
}

/// `*` is the pattern's only wildcard, in Cedar as in ours.
fn like(attribute: &str, pattern: &str) -> String {
    let operator = if pattern.contains('*') { "like" } else { "==" };
    format!("{attribute} {operator} {}", quoted(pattern))
}

/// A Cedar string literal. Rust's debug escapes are the ones Cedar reads: quotes, backslashes and whatever a reader of
/// the lowered text could not see.
pub(super) fn quoted(value: &str) -> String {
    format!("\"{}\"", value.escape_debug())
}

/// Does the whole text match a pattern in which `*` stands for any characters?
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else {
            return false;
        };
        rest = after;
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "vault", true),
            ("vault", "vault", true),
            ("vault", "vaults", false),
            ("va*", "vault", true),
            ("*lt", "vault", true),
            ("v*l*t", "vault", true),
            ("a*a", "a", false),
            ("**", "vault", true),
            ("v*x*t", "vault", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
