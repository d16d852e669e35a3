//! `Selection`: which of a backend's tools are offered, and how their names are written.

use globset::GlobMatcher;

use super::Spec;

/// How names are written. Some model APIs take no dots.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Names {
    /// `kv.read`
    #[default]
    Dotted,
    /// `kv_read`
    Underscored,
}

impl Names {
    pub fn as_str(self) -> &'static str {
        match self {
            Names::Dotted => "dotted",
            Names::Underscored => "underscored",
        }
    }

    pub fn shown(self, name: &str) -> String {
        match self {
            Names::Dotted => name.to_owned(),
            Names::Underscored => name.replace('.', "_"),
        }
    }
}

/// Which tools there are.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// `None`: all groups.
    pub groups: Option<Vec<String>>,
    /// Tools that are not offered, by their names in the table or as shown.
    pub disable: Vec<GlobMatcher>,
    pub names: Names,
}

impl Selection {
    pub(super) fn has(&self, spec: &Spec) -> bool {
        let group = self.groups.as_ref().is_none_or(|groups| groups.iter().any(|group| group == spec.group));
        let shown = self.names.shown(spec.name);
        group && !self.disable.iter().any(|glob| glob.is_match(spec.name) || glob.is_match(&shown))
    }
}
