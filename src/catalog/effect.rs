//! `Effect`, the ordered scale of what a call does; `Mode`, the ceiling over it; how a remote tool is classified.

use globset::GlobMatcher;
use serde::Deserialize;
use serde::Serialize;

/// What a call does, ordered by how much it may hurt.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Changes nothing, returns nothing secret.
    Read,
    /// Changes nothing, returns secrets or personal data.
    ReadSensitive,
    /// Adds or changes in a way that can be undone.
    Write,
    /// Deletes, overwrites for good, or runs arbitrary things.
    Destroy,
}

impl Effect {
    pub const ALL: [Effect; 4] = [Effect::Read, Effect::ReadSensitive, Effect::Write, Effect::Destroy];

    pub fn as_str(self) -> &'static str {
        match self {
            Effect::Read => "read",
            Effect::ReadSensitive => "read_sensitive",
            Effect::Write => "write",
            Effect::Destroy => "destroy",
        }
    }
}

/// A ceiling over effects. It never grants; the lowest of all that apply wins.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Admits `read` and `read_sensitive`.
    #[default]
    ReadOnly,
    /// Adds `write`.
    NonDestructive,
    /// Adds `destroy`.
    Full,
}

impl Mode {
    pub fn admits(self, effect: Effect) -> bool {
        match self {
            Mode::ReadOnly => effect <= Effect::ReadSensitive,
            Mode::NonDestructive => effect <= Effect::Write,
            Mode::Full => true,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Mode::ReadOnly => "read-only",
            Mode::NonDestructive => "non-destructive",
            Mode::Full => "full",
        }
    }
}

/// The annotations of an upstream's tool (MCP schema `ToolAnnotations`), absent ones as `None`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Hints {
    pub read_only_hint: Option<bool>,
    pub destructive_hint: Option<bool>,
    pub idempotent_hint: Option<bool>,
}

impl Hints {
    /// What the server claims. Defaults are the specification's: not read-only, destructive.
    fn claimed(self) -> Effect {
        if self.read_only_hint == Some(true) {
            Effect::Read
        } else if self.destructive_hint == Some(false) {
            Effect::Write
        } else {
            Effect::Destroy
        }
    }

    /// What the server warns of: only explicit hints count, because only they can raise.
    fn warned(self) -> Option<Effect> {
        match (self.read_only_hint, self.destructive_hint) {
            (Some(true), _) => None,
            (_, Some(true)) => Some(Effect::Destroy),
            (Some(false), _) => Some(Effect::Write),
            (None, _) => None,
        }
    }
}

/// The operator's classification of a remote backend's tools.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// First match wins.
    pub rules: Vec<(GlobMatcher, Effect)>,
    /// The upstream's hints may classify a tool that no rule matches.
    pub trust_annotations: bool,
}

impl Effects {
    /// Ours wins; theirs may raise it and, unless trusted, never lower it. Nobody said anything: `Destroy`.
    pub fn classify(&self, tool: &str, hints: Hints) -> Effect {
        let ours = self.rules.iter().find(|(glob, _)| glob.is_match(tool)).map(|(_, effect)| *effect);
        match ours {
            Some(effect) => hints.warned().map_or(effect, |warned| effect.max(warned)),
            None if self.trust_annotations => hints.claimed(),
            None => Effect::Destroy,
        }
    }

    /// Hints about idempotence only matter where the operator trusts them.
    pub fn idempotent(&self, hints: Hints) -> bool {
        self.trust_annotations && hints.idempotent_hint == Some(true)
    }
}
