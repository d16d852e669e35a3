//! Patterns over the names in a certificate: globs, and the one part of a name that says whose tenant it is.

use std::fmt;

use globset::Glob;
use globset::GlobBuilder;
use globset::GlobMatcher;

/// Stands for the part of a name that is the tenant.
pub(super) const TENANT: &str = "{tenant}";

const TENANT_BYTES_MAX: usize = 256;

/// What kind of name a pattern is over: it says where parts begin and which of them is the root.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Names {
    /// Parted by dots, the root at the end; `*` stands for any characters.
    Dns,
    /// Local part and domain.
    Email,
    /// Parted by slashes, the root at the start; `*` stays within one part.
    Uri,
}

impl Names {
    fn separator(self) -> char {
        match self {
            Names::Dns => '.',
            Names::Email => '@',
            Names::Uri => '/',
        }
    }

    fn glob(self, text: &str) -> Result<GlobMatcher, PatternError> {
        let glob = match self {
            Names::Dns | Names::Email => Glob::new(text),
            Names::Uri => GlobBuilder::new(text).literal_separator(true).build(),
        };
        glob.map(|glob| glob.compile_matcher()).map_err(|error| PatternError::Glob(error.kind().to_string()))
    }
}

/// Why a text is no pattern.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    #[error("is empty; `*` matches everything")]
    Empty,
    #[error("is not a glob: {0}")]
    Glob(String),
    #[error("`{{tenant}}` must be one whole part between `{0}`, and be there once")]
    Part(char),
    #[error("beside `{{tenant}}` there can be `*` and `?`, but no `[`, `{{` and `\\`")]
    Beside,
    #[error("which part is the `{{tenant}}` must be certain: {0}")]
    Uncertain(&'static str),
}

/// A glob over names of one kind. One part may be `{tenant}`: what stands there is the tenant.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    form: Form,
}

#[derive(Clone)]
enum Form {
    Whole(GlobMatcher),
    Around(Box<Around>),
}

/// The parts before and after the tenant, each a glob of its own (or none), and where the tenant is counted from.
#[derive(Clone)]
struct Around {
    names: Names,
    before: Option<GlobMatcher>,
    after: Option<GlobMatcher>,
    /// Parts between the root and the tenant.
    depth: usize,
}

/// A name that matches, with the tenant it names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Matched<'a> {
    pub(super) tenant: Option<&'a str>,
}

impl Pattern {
    /// # Errors
    /// In words for the one who wrote it.
    pub fn new(text: &str, names: Names) -> Result<Pattern, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        let form = if text.contains(TENANT) {
            Form::Around(Around::new(text, names)?.into())
        } else {
            Form::Whole(names.glob(text)?)
        };
        Ok(Pattern { text: text.to_owned(), form })
    }

    /// As written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Does it take the tenant from the name?
    pub fn names_tenant(&self) -> bool {
        matches!(self.form, Form::Around(_))
    }

    pub(super) fn find<'a>(&self, name: &'a str) -> Option<Matched<'a>> {
        match &self.form {
            Form::Whole(glob) => glob.is_match(name).then_some(Matched { tenant: None }),
            Form::Around(around) => around.find(name).map(|tenant| Matched { tenant: Some(tenant) }),
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pattern").field(&self.text).finish()
    }
}

impl Around {
    fn new(text: &str, names: Names) -> Result<Around, PatternError> {
        let separator = names.separator();
        let parts: Vec<&str> = text.split(separator).collect();
        let place = parts.iter().position(|part| *part == TENANT);
        let place = place.filter(|_| text.matches(TENANT).count() == 1).ok_or(PatternError::Part(separator))?;
        let (before, after) = (parts.get(..place).unwrap_or_default(), parts.get(place + 1..).unwrap_or_default());
        if before.iter().chain(after).any(|part| part.contains(['[', ']', '{', '}', '\\'])) {
            return Err(PatternError::Beside);
        }
        let depth = match names {
            Names::Uri if before.iter().any(|part| part.contains("**")) => {
                return Err(PatternError::Uncertain("`**` cannot stand before it"));
            }
            Names::Dns | Names::Email if after.iter().any(|part| part.contains(['*', '?'])) => {
                return Err(PatternError::Uncertain("`*` and `?` cannot stand behind it"));
            }
            Names::Uri => before.len(),
            Names::Dns | Names::Email => after.len(),
        };
        let glob = |parts: &[&str]| match parts {
            [] => Ok(None),
            parts => names.glob(&parts.join(separator.encode_utf8(&mut [0; 4]))).map(Some),
        };
        Ok(Around { names, before: glob(before)?, after: glob(after)?, depth })
    }

    fn find<'a>(&self, name: &'a str) -> Option<&'a str> {
        let separator = self.names.separator();
        let parts: Vec<&str> = name.split(separator).collect();
        let place = match self.names {
            Names::Uri => self.depth,
            Names::Dns | Names::Email => parts.len().checked_sub(self.depth + 1)?,
        };
        let tenant = *parts.get(place)?;
        let holds = |glob: &Option<GlobMatcher>, parts: &[&str]| match glob {
            None => parts.is_empty(),
            Some(glob) => !parts.is_empty() && glob.is_match(parts.join(separator.encode_utf8(&mut [0; 4]))),
        };
        let matches = holds(&self.before, parts.get(..place)?) && holds(&self.after, parts.get(place + 1..)?);
        (matches && is_tenant(tenant)).then_some(tenant)
    }
}

/// What a certificate says may become a tenant's name only in a plain form: a wildcard or a path is none.
pub(super) fn is_tenant(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=TENANT_BYTES_MAX).contains(&text.len()) && text.bytes().all(plain) && !matches!(text, "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tenant (`-` for none) where the name matches.
    #[track_caller]
    fn found(names: Names, pattern: &str, name: &str) -> Option<String> {
        let pattern = Pattern::new(pattern, names).expect("a pattern");
        pattern.find(name).map(|matched| matched.tenant.unwrap_or("-").to_owned())
    }

    #[test]
    fn the_tenant_is_the_part_at_its_place_and_no_other() {
        for (names, pattern, name, expected) in [
            (Names::Uri, "spiffe://p/tenant/{tenant}/agent/*", "spiffe://p/tenant/contoso/agent/a", Some("contoso")),
            (Names::Uri, "spiffe://p/tenant/{tenant}/agent/*", "spiffe://p/tenant/contoso/agent/a/b", None),
            (Names::Uri, "spiffe://p/tenant/{tenant}/agent/*", "spiffe://q/tenant/contoso/agent/a", None),
            (Names::Uri, "spiffe://p/tenant/{tenant}/agent/*", "spiffe://p/tenant/a/agent/tenant/b/agent/c", None),
            (Names::Uri, "spiffe://p/tenant/{tenant}/**", "spiffe://p/tenant/a/agent/b", Some("a")),
            (Names::Uri, "spiffe://p/tenant/{tenant}", "spiffe://p/tenant/a", Some("a")),
            (Names::Uri, "spiffe://p/tenant/{tenant}", "spiffe://p/tenant/a/b", None),
            (Names::Uri, "spiffe://{tenant}/agents/*", "spiffe://contoso.example/agents/x", Some("contoso.example")),
            (Names::Uri, "https://id/{tenant}/x", "https://id/../x", None),
            (Names::Uri, "https://id/{tenant}/x", "https://id//x", None),
            (Names::Uri, "https://id/{tenant}/x", "https://id/a%2fb/x", None),
            (Names::Dns, "*.{tenant}.agents.example", "one.contoso.agents.example", Some("contoso")),
            (Names::Dns, "*.{tenant}.agents.example", "one.two.contoso.agents.example", Some("contoso")),
            (Names::Dns, "{tenant}.agents.example", "contoso.agents.example", Some("contoso")),
            (Names::Dns, "{tenant}.agents.example", "one.contoso.agents.example", None),
            (Names::Dns, "{tenant}.agents.example", "agents.example", None),
            (Names::Dns, "{tenant}.agents.example", "*.agents.example", None),
            (Names::Email, "*@{tenant}", "bot@contoso.com", Some("contoso.com")),
            (Names::Email, "*@{tenant}", "a@b@contoso.com", Some("contoso.com")),
            (Names::Email, "*@contoso.com", "bot@contoso.com", Some("-")),
            (Names::Dns, "*.example", "a.b.example", Some("-")),
        ] {
            assert_eq!(found(names, pattern, name).as_deref(), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_tenant_whose_place_is_in_doubt_is_refused_when_written() {
        for (names, pattern, expected) in [
            (Names::Uri, "", "is empty"),
            (Names::Uri, "spiffe://p/[", "is not a glob"),
            (Names::Uri, "spiffe://p/t-{tenant}/x", "one whole part between `/`"),
            (Names::Uri, "spiffe://{tenant}/{tenant}", "one whole part between `/`"),
            (Names::Uri, "spiffe://p/**/{tenant}/x", "`**` cannot stand before it"),
            (Names::Uri, "spiffe://p/{tenant}/{a,b}", "no `[`"),
            (Names::Dns, "{tenant}.*.example", "cannot stand behind it"),
            (Names::Dns, "{tenant}-x.example", "one whole part between `.`"),
            (Names::Email, "*@{tenant}.example", "one whole part between `@`"),
        ] {
            let error = Pattern::new(pattern, names).expect_err(pattern).to_string();
            assert!(error.contains(expected), "{pattern}: {error}");
        }
    }
}
