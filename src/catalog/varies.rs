//! Effects that depend on the arguments: `kubectl_rollout status` reads, `undo` writes.

use std::fmt;
use std::sync::Arc;

use serde_json::Map;
use serde_json::Value;

use super::Effect;

/// How the effect of a call follows from its arguments.
///
/// Whatever is in doubt has the highest effect: arguments that are no object, and an argument of another JSON type than
/// those it is compared with (a server may take `"true"` for `true`).
#[derive(Clone, Eq, PartialEq)]
pub struct Varies {
    by: By,
    /// Everything that a call can come out as, lowest first.
    effects: Arc<[Effect]>,
}

#[derive(Clone)]
enum By {
    Function(fn(&[u8]) -> Option<Effect>),
    Rules { rules: Arc<[(When, Effect)]>, otherwise: Effect },
}

/// Arguments that must all be there, each with one of its values.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct When(pub Vec<(String, Vec<Value>)>);

impl Varies {
    /// A built-in tool's own judgement of the raw arguments, from `lowest` to `highest`; `None` where it cannot tell.
    pub fn by_function(lowest: Effect, highest: Effect, of: fn(&[u8]) -> Option<Effect>) -> Varies {
        let within = |effect: &Effect| (lowest..=highest).contains(effect);
        let effects =
            Effect::ALL.into_iter().filter(within).chain([highest]).collect::<std::collections::BTreeSet<_>>();
        Varies { by: By::Function(of), effects: effects.into_iter().collect() }
    }

    /// The first rule that holds; `otherwise` if none does.
    pub fn by_rules(rules: Vec<(When, Effect)>, otherwise: Effect) -> Varies {
        let effects =
            rules.iter().map(|(_, effect)| *effect).chain([otherwise]).collect::<std::collections::BTreeSet<_>>();
        Varies { by: By::Rules { rules: rules.into(), otherwise }, effects: effects.into_iter().collect() }
    }

    /// Everything that a call can come out as, lowest first.
    pub fn effects(&self) -> &[Effect] {
        &self.effects
    }

    pub fn highest(&self) -> Effect {
        self.effects.last().copied().unwrap_or(Effect::Destroy)
    }

    /// The rules and what holds without one, where the arguments are judged by rules.
    pub fn rules(&self) -> Option<(&[(When, Effect)], Effect)> {
        match &self.by {
            By::Function(_) => None,
            By::Rules { rules, otherwise } => Some((rules, *otherwise)),
        }
    }

    /// The effect of a call with these arguments (raw JSON).
    pub fn effect(&self, arguments: Option<&[u8]>) -> Effect {
        let arguments = arguments.unwrap_or(b"{}");
        let effect = match &self.by {
            By::Function(of) => of(arguments),
            By::Rules { rules, otherwise } => serde_json::from_slice::<Map<String, Value>>(arguments)
                .ok()
                .filter(|arguments| {
                    rules.iter().all(|(when, _)| when.is_typed(arguments) && when.is_spelled(arguments))
                })
                .map(|arguments| {
                    rules.iter().find(|(when, _)| when.holds(&arguments)).map_or(*otherwise, |(_, effect)| *effect)
                }),
        };
        effect.filter(|effect| self.effects.contains(effect)).unwrap_or_else(|| self.highest())
    }
}

impl When {
    fn holds(&self, arguments: &Map<String, Value>) -> bool {
        let one_of = |(name, values): &(String, Vec<Value>)| {
            arguments.get(name).is_some_and(|sent| values.iter().any(|value| same(sent, value)))
        };
        self.0.iter().all(one_of)
    }

    /// No argument goes by a name that a reader who ignores case would take for one that it looks at.
    fn is_spelled(&self, arguments: &Map<String, Value>) -> bool {
        let folded = |name: &str| name.chars().flat_map(char::to_lowercase).collect::<String>();
        let other = |name: &String| arguments.keys().any(|sent| sent != name && folded(sent) == folded(name));
        !self.0.iter().any(|(name, _)| other(name))
    }

    /// Each argument it looks at is of the type of one of its values, or was not sent.
    fn is_typed(&self, arguments: &Map<String, Value>) -> bool {
        let typed = |(name, values): &(String, Vec<Value>)| {
            let alike =
                |sent: &Value| values.iter().any(|value| std::mem::discriminant(value) == std::mem::discriminant(sent));
            arguments.get(name).is_none_or(alike)
        };
        self.0.iter().all(typed)
    }
}

/// `1` and `1.0` are one number.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one == other || one.as_f64() == other.as_f64(),
        _ => one == other,
    }
}

impl Eq for By {}

impl PartialEq for By {
    fn eq(&self, other: &By) -> bool {
        match (self, other) {
            (By::Function(one), By::Function(other)) => std::ptr::fn_addr_eq(*one, *other),
            (By::Rules { rules, otherwise }, By::Rules { rules: theirs, otherwise: or }) => {
                rules == theirs && otherwise == or
            }
            _ => false,
        }
    }
}

impl fmt::Debug for Varies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match &self.by {
            By::Function(_) => "function",
            By::Rules { .. } => "rules",
        };
        f.debug_struct("Varies").field("by", &by).field("effects", &self.effects).finish()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn when(members: &[(&str, Value)]) -> When {
        let values = |value: &Value| value.as_array().expect("values").clone();
        When(members.iter().map(|(name, value)| ((*name).to_owned(), values(value))).collect())
    }

    #[test]
    fn the_first_rule_that_holds_decides_and_doubt_is_the_highest() {
        let varies = Varies::by_rules(
            vec![
                (when(&[("action", json!(["list", "get"]))]), Effect::Read),
                (when(&[("action", json!(["set"])), ("force", json!([false]))]), Effect::Write),
                (when(&[("level", json!([1]))]), Effect::ReadSensitive),
            ],
            Effect::Destroy,
        );
        assert_eq!(varies.effects(), Effect::ALL);
        for (arguments, expected) in [
            (r#"{"action": "list"}"#, Effect::Read),
            (r#"{"action": "list", "Action": "set"}"#, Effect::Destroy),
            (r#"{"action": "get", "level": 1, "more": [1]}"#, Effect::Read),
            (r#"{"action": "set"}"#, Effect::Destroy),
            (r#"{"action": "set", "force": false}"#, Effect::Write),
            (r#"{"action": "set", "force": true}"#, Effect::Destroy),
            (r#"{"action": "list", "force": "false"}"#, Effect::Destroy),
            (r#"{"action": ["list"]}"#, Effect::Destroy),
            (r#"{"action": null}"#, Effect::Destroy),
            (r#"{"level": 1.0}"#, Effect::ReadSensitive),
            (r#"{"level": 2}"#, Effect::Destroy),
            ("{}", Effect::Destroy),
            ("[]", Effect::Destroy),
            ("{", Effect::Destroy),
        ] {
            assert_eq!(varies.effect(Some(arguments.as_bytes())), expected, "{arguments}");
        }
        assert_eq!(varies.effect(None), Effect::Destroy);
    }

    #[test]
    fn a_raising_rule_is_not_evaded_by_another_type() {
        let varies = Varies::by_rules(vec![(when(&[("force", json!([true]))]), Effect::Destroy)], Effect::Write);
        for (arguments, expected) in [
            ("{}", Effect::Write),
            (r#"{"force": false}"#, Effect::Write),
            (r#"{"force": true}"#, Effect::Destroy),
            (r#"{"force": "true"}"#, Effect::Destroy),
            (r#"{"force": 1}"#, Effect::Destroy),
            (r#"{"force": null}"#, Effect::Destroy),
        ] {
            assert_eq!(varies.effect(Some(arguments.as_bytes())), expected, "{arguments}");
        }
    }

    #[test]
    fn a_function_stays_within_its_bounds() {
        let of = |arguments: &[u8]| match arguments.len() {
            2 => Some(Effect::Read),
            3 => Some(Effect::Write),
            4 => Some(Effect::Destroy),
            _ => None,
        };
        let varies = Varies::by_function(Effect::ReadSensitive, Effect::Write, of);
        assert_eq!(varies.effects(), [Effect::ReadSensitive, Effect::Write]);
        for (arguments, expected) in
            [("{}", Effect::Write), ("{ }", Effect::Write), ("{  }", Effect::Write), ("{   }", Effect::Write)]
        {
            assert_eq!(varies.effect(Some(arguments.as_bytes())), expected, "{arguments:?}");
        }
        let varies = Varies::by_function(Effect::Read, Effect::Destroy, of);
        let got = ["{}", "{ }", "{  }", "{   }"].map(|arguments| varies.effect(Some(arguments.as_bytes())));
        assert_eq!(got, [Effect::Read, Effect::Write, Effect::Destroy, Effect::Destroy]);
    }
}
