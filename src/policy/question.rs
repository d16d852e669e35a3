//! What a solver is asked: could any call of these tools have an effect above a ceiling, and be allowed?
//!
//! A question is a set of policies of which nothing may ever be allowed. It allows everything that the judgement would
//! allow, and perhaps more, so that a proof holds for the judgement: a policy that fails is left out here and denies
//! there, and what a policy says of arguments that have no type is taken in the caller's favour. Callers whose groups
//! are not known are allowed less than others with the same token, so they need no question of their own. Arguments
//! that are not of their type are covered: a policy that reads one fails and denies, and for all others the value may
//! as well be of the type.

use std::collections::BTreeMap;
use std::sync::Arc;

use cedar_policy::PolicySet;
use cedar_policy::Schema;
use cedar_policy::pst;

use super::Policy;
use super::about::Subject;
use super::groupless;
use super::known;
use super::known::Known;
use super::load;
use super::set_of;
use super::shape::Shape;
use crate::catalog::Decl;
use crate::catalog::Effect;
use crate::catalog::Mode;

/// Tools of which the policies say the same.
#[derive(Debug)]
pub struct Question {
    pub effect: Effect,
    pub about: Vec<About>,
    pub schema: Schema,
    pub policies: PolicySet,
    /// Ids of the policies whose conditions on arguments could not be carried over.
    pub blurred: Vec<String>,
}

#[derive(Clone, Debug)]
pub enum About {
    /// Any tool of a backend whose tools are known only once it is asked.
    Backend(Arc<str>),
    Tool(Arc<Decl>),
}

/// What is to be proven, and what of it needs no solver.
#[derive(Debug, Default)]
pub struct Questions {
    pub open: Vec<Question>,
    /// Tools and backends that the mode alone keeps below.
    pub by_mode: usize,
    /// Tools and backends for which no policy permits anything of that effect.
    pub by_grant: usize,
}

impl Policy {
    /// What has to be asked to know that nothing above `claim` is ever allowed. `ceiling` is the highest mode under which
    /// a backend can be reached; `None` if it cannot.
    ///
    /// # Errors
    /// What Cedar does not take.
    pub fn questions(
        &self,
        known: &Known,
        claim: Mode,
        ceiling: impl Fn(&str) -> Option<Mode>,
    ) -> Result<Questions, String> {
        let mut questions = Questions::default();
        let mut asked: BTreeMap<(Effect, String, String), usize> = BTreeMap::new();
        let blanks = known.blanks().map(|backend| (About::Backend(backend.clone()), &Shape::Open));
        let tools = known.tools().map(|tool| (About::Tool(tool.decl.clone()), &tool.shape));
        for (about, shape) in tools.chain(blanks) {
            let (backend, name, effects) = match &about {
                About::Backend(backend) => (backend, None, Effect::ALL.as_slice()),
                About::Tool(decl) => (&decl.backend, Some(decl.name.as_ref()), decl.effects()),
            };
            let admitted = |effect: &&Effect| ceiling(backend).is_some_and(|mode| mode.admits(**effect));
            let above: Vec<Effect> =
                effects.iter().filter(|effect| !claim.admits(**effect)).filter(admitted).copied().collect();
            questions.by_mode += usize::from(above.is_empty());
            for effect in above {
                let subject = Subject { backend, name, effect: Some(effect) };
                let Some((policies, blurred)) = self.lenient(&subject, shape)? else {
                    questions.by_grant += 1;
                    continue;
                };
                let text = said(&policies, &subject);
                let key = (effect, shape.to_cedar(), text);
                if let Some(question) = asked.get(&key).and_then(|index| questions.open.get_mut(*index)) {
                    question.about.push(about.clone());
                    continue;
                }
                let schema = known::schema_of(&key.1).ok_or("arguments have names that Cedar cannot write")?;
                let policies = set_of(policies)?;
                asked.insert(key, questions.open.len());
                questions.open.push(Question { effect, about: vec![about.clone()], schema, policies, blurred });
            }
        }
        Ok(questions)
    }

    /// The policies as they hold for the subject, with what has no type taken in the caller's favour; `None` if none of
    /// them permits anything.
    #[expect(clippy::type_complexity, reason = "read by one caller, just above")]
    fn lenient(
        &self,
        subject: &Subject<'_>,
        shape: &Shape,
    ) -> Result<Option<(Vec<cedar_policy::Policy>, Vec<String>)>, String> {
        let (mut policies, mut blurred, mut permits) = (Vec::new(), Vec::new(), false);
        let enforced = self.written.iter().filter(|policy| policy.annotation(super::SHADOW).is_none());
        for policy in enforced {
            let pst::Policy::Static(written) = policy.to_pst().map_err(|error| error.to_string())? else {
                continue;
            };
            let Some(said) = subject.said_by(written.body()) else {
                continue;
            };
            let permit = said.effect == pst::Effect::Permit;
            let hides = |expr: &pst::Expr| known::is_open(expr, shape);
            let clear = if load::conditions(&said).any(|expr| hides(expr)) {
                blurred.push(policy.id().to_string());
                let clauses = said.clauses().iter().map(|clause| match clause {
                    pst::Clause::When(expr) => pst::Clause::When(groupless::worst(expr, permit, &hides)),
                    pst::Clause::Unless(expr) => pst::Clause::Unless(groupless::worst(expr, !permit, &hides)),
                });
                let clauses = clauses.collect::<Vec<_>>();
                said.try_with_clauses(clauses).map_err(|error| error.to_string())?
            } else {
                said
            };
            permits |= permit;
            policies.push(load::parsed(clear)?);
        }
        Ok(permits.then_some((policies, blurred)))
    }
}

/// What the policies say, without the name of the tool in their scopes: the same for tools that nothing tells apart.
fn said(policies: &[cedar_policy::Policy], subject: &Subject<'_>) -> String {
    let scope =
        subject.name.map(|name| format!("Tool::{}", super::grants::quoted(&format!("{}/{name}", subject.backend))));
    let text = |policy: &cedar_policy::Policy| {
        let text = policy.to_cedar().unwrap_or_else(|| policy.id().to_string());
        scope.as_ref().map_or(text.clone(), |scope| text.replacen(scope, "Tool", 1))
    };
    policies.iter().map(text).collect::<Vec<_>>().join("\n")
}
