//! `Effect`, the ordered scale of what a call does; `Mode`, the ceiling over it; how a remote tool is classified.

use globset::GlobMatcher;
use serde::Deserialize;
use serde::Serialize;

use super::Varies;
use super::When;

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
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, schemars::JsonSchema,
)]
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

    /// The lowest of this ceiling and all the others that are set: of a tenant, a route, a backend.
    #[must_use]
    pub fn lowest(self, others: impl IntoIterator<Item = Option<Mode>>) -> Mode {
        others.into_iter().flatten().fold(self, Mode::min)
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

    /// The effect, raised by what the server warns of.
    pub fn raise(self, effect: Effect) -> Effect {
        self.warned().map_or(effect, |warned| effect.max(warned))
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

/// One line of the operator's classification.
#[derive(Clone, Debug)]
pub struct Rule {
    pub tools: GlobMatcher,
    /// The arguments it is about; without any it is about every call.
    pub when: When,
    pub effect: Effect,
}

/// The operator's classification of a remote backend's tools.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// First match wins.
    pub rules: Vec<Rule>,
    /// The upstream's hints may classify a tool that no rule matches.
    pub trust_annotations: bool,
}

impl Effects {
    /// The highest effect that a call of the tool can have. Ours wins; theirs may raise it and, unless trusted, never
    /// lower it. Nobody said anything: `Destroy`.
    pub fn classify(&self, tool: &str, hints: Hints) -> Effect {
        self.explain(tool, hints).0
    }

    /// The same, and where it comes from.
    pub fn explain(&self, tool: &str, hints: Hints) -> (Effect, &'static str) {
        match self.varies(tool, hints) {
            Some(varies) => (varies.highest(), "the worst of what rules of `effects` say of certain arguments"),
            None => self.settled(tool, hints),
        }
    }

    /// How the effect follows from the arguments, where a rule says so. What a server hints is about the worst that its
    /// tool can do: it raises what no rule says of certain arguments, and leaves alone what one does.
    pub fn varies(&self, tool: &str, hints: Hints) -> Option<Varies> {
        let matching = self.rules.iter().filter(|rule| rule.tools.is_match(tool));
        let rules: Vec<(When, Effect)> =
            matching.take_while(|rule| !rule.when.0.is_empty()).map(|rule| (rule.when.clone(), rule.effect)).collect();
        (!rules.is_empty()).then(|| Varies::by_rules(rules, self.settled(tool, hints).0))
    }

    /// The effect of a call that no rule for certain arguments is about, and where it comes from.
    fn settled(&self, tool: &str, hints: Hints) -> (Effect, &'static str) {
        let ours = self.rules.iter().find(|rule| rule.when.0.is_empty() && rule.tools.is_match(tool));
        match ours.map(|rule| rule.effect) {
            Some(effect) if hints.raise(effect) > effect => {
                (hints.raise(effect), "a rule of `effects`, raised by a hint of the server")
            }
            Some(effect) => (effect, "a rule of `effects`"),
            None if self.trust_annotations => (hints.claimed(), "the server's hints, which are trusted"),
            None => (Effect::Destroy, "nobody classified it"),
        }
    }

    /// Hints about idempotence only matter where the operator trusts them.
    pub fn idempotent(&self, hints: Hints) -> bool {
        self.trust_annotations && hints.idempotent_hint == Some(true)
    }
}

#[cfg(test)]
mod tests {
    use globset::Glob;

    use super::*;

    fn hints(read_only: Option<bool>, destructive: Option<bool>) -> Hints {
        Hints { read_only_hint: read_only, destructive_hint: destructive, idempotent_hint: None }
    }

    fn rule(glob: &str, when: &[(&str, &str)], effect: Effect) -> Rule {
        let when = when.iter().map(|(name, value)| ((*name).to_owned(), vec![(*value).into()])).collect();
        Rule { tools: Glob::new(glob).expect("a glob").compile_matcher(), when: When(when), effect }
    }

    fn effects(rules: &[(&str, Effect)], trust_annotations: bool) -> Effects {
        let rule = |(glob, effect): &(&str, Effect)| rule(glob, &[], *effect);
        Effects { rules: rules.iter().map(rule).collect(), trust_annotations }
    }

    /// Read-only hint, destructive hint, then the effect: unclassified untrusted, unclassified trusted, and with our
    /// `read`, `read_sensitive`, `write` and `destroy`.
    #[test]
    fn ours_wins_theirs_raises_and_only_trust_lowers() {
        use Effect::Destroy as D;
        use Effect::Read as R;
        use Effect::ReadSensitive as S;
        use Effect::Write as W;
        let (yes, no) = (Some(true), Some(false));
        let table = [
            (None, None, [D, D, R, S, W, D]),
            (None, no, [D, W, R, S, W, D]),
            (None, yes, [D, D, D, D, D, D]),
            (no, None, [D, D, W, W, W, D]),
            (no, no, [D, W, W, W, W, D]),
            (no, yes, [D, D, D, D, D, D]),
            (yes, None, [D, R, R, S, W, D]),
            (yes, no, [D, R, R, S, W, D]),
            (yes, yes, [D, R, R, S, W, D]),
        ];
        for (read_only, destructive, [untrusted, trusted, ours @ ..]) in table {
            let hints = hints(read_only, destructive);
            assert_eq!(effects(&[], false).classify("t", hints), untrusted, "{hints:?}, untrusted");
            assert_eq!(effects(&[], true).classify("t", hints), trusted, "{hints:?}, trusted");
            for (own, expected) in Effect::ALL.into_iter().zip(ours) {
                for trust in [false, true] {
                    assert_eq!(
                        effects(&[("t", own)], trust).classify("t", hints),
                        expected,
                        "{hints:?}, ours {own:?}, trust {trust}"
                    );
                }
            }
        }
    }

    #[test]
    fn hints_never_lower_what_we_say() {
        for own in Effect::ALL {
            for read_only in [None, Some(false), Some(true)] {
                for destructive in [None, Some(false), Some(true)] {
                    assert!(effects(&[("*", own)], true).classify("t", hints(read_only, destructive)) >= own);
                }
            }
        }
    }

    #[test]
    fn the_first_rule_that_matches_wins() {
        let effects =
            effects(&[("kv.read", Effect::ReadSensitive), ("kv.*", Effect::Write), ("*", Effect::Read)], false);
        for (tool, expected) in [("kv.read", Effect::ReadSensitive), ("kv.put", Effect::Write), ("ping", Effect::Read)]
        {
            assert_eq!(effects.classify(tool, Hints::default()), expected, "{tool}");
        }
    }

    #[test]
    fn a_rule_for_certain_arguments_counts_until_one_for_all_comes() {
        let effects = Effects {
            rules: vec![
                rule("kube*", &[("action", "list")], Effect::Read),
                rule("kubectl", &[], Effect::Write),
                rule("kubectl", &[("action", "get")], Effect::ReadSensitive),
            ],
            trust_annotations: false,
        };
        let outcomes = |tool: &str, hints: Hints| effects.varies(tool, hints).map(|varies| varies.effects().to_vec());
        assert_eq!(outcomes("kubectl", Hints::default()), Some(vec![Effect::Read, Effect::Write]));
        assert_eq!(outcomes("kubelet", Hints::default()), Some(vec![Effect::Read, Effect::Destroy]));
        assert_eq!(outcomes("other", Hints::default()), None);
        let destructive = hints(None, Some(true));
        assert_eq!(outcomes("kubectl", destructive), Some(vec![Effect::Read, Effect::Destroy]));
        assert_eq!(effects.classify("kubectl", destructive), Effect::Destroy);
        assert_eq!(effects.classify("kubectl", Hints::default()), Effect::Write);
    }

    #[test]
    fn the_lowest_of_all_ceilings_holds() {
        use Mode::Full;
        use Mode::NonDestructive;
        use Mode::ReadOnly;
        assert_eq!(Full.lowest([None, Some(NonDestructive), Some(Full)]), NonDestructive);
        assert_eq!(NonDestructive.lowest([Some(Full), None]), NonDestructive);
        assert_eq!(Full.lowest([Some(Full), Some(ReadOnly), Some(NonDestructive)]), ReadOnly);
    }

    #[test]
    fn idempotence_is_believed_only_where_annotations_are_trusted() {
        for (hint, trust, expected) in
            [(None, true, false), (Some(false), true, false), (Some(true), true, true), (Some(true), false, false)]
        {
            let hints = Hints { idempotent_hint: hint, ..Hints::default() };
            assert_eq!(effects(&[], trust).idempotent(hints), expected, "{hint:?} {trust}");
        }
    }

    #[test]
    fn hints_are_read_by_their_names_on_the_wire() {
        let read: Hints = serde_json::from_str(r#"{"readOnlyHint": true, "idempotentHint": false, "title": "x"}"#)
            .expect("annotations");
        assert_eq!(read, Hints { read_only_hint: Some(true), destructive_hint: None, idempotent_hint: Some(false) });
    }

    #[test]
    fn modes_are_ceilings_over_ordered_effects() {
        let admitted = |mode: Mode| Effect::ALL.into_iter().filter(|effect| mode.admits(*effect)).count();
        assert_eq!([Mode::ReadOnly, Mode::NonDestructive, Mode::Full].map(admitted), [2, 3, 4]);
        assert_eq!(Mode::default(), Mode::ReadOnly);
        assert!(Effect::ALL.is_sorted());
        for effect in Effect::ALL {
            assert!(
                !Mode::ReadOnly.admits(effect) || Mode::NonDestructive.admits(effect),
                "a higher mode admits what a lower one does"
            );
        }
    }

    #[test]
    fn effects_and_modes_are_written_the_same_everywhere() {
        for effect in Effect::ALL {
            assert_eq!(serde_json::to_value(effect).expect("a value"), effect.as_str());
        }
        for mode in [Mode::ReadOnly, Mode::NonDestructive, Mode::Full] {
            assert_eq!(serde_json::to_value(mode).expect("a value"), mode.as_str());
        }
    }
}
