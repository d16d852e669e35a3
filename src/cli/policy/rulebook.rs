//! The rules that are asked: the policies of a configuration or of a folder, and what the configuration says of tools.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::backend::builtin;
use crate::backend::remote;
use crate::catalog::Decl;
use crate::catalog::Effect;
use crate::catalog::Effects;
use crate::catalog::Hints;
use crate::catalog::Mode;
use crate::config;
use crate::policy;
use crate::policy::Known;
use crate::policy::Place;
use crate::policy::Policy;
use crate::route::Route;

/// A policy set that can be asked, with the ceilings and effects of the configuration it is from.
pub(super) struct Rulebook {
    pub(super) policy: Policy,
    /// The gateway-wide ceiling.
    mode: Mode,
    backends: Vec<Backend>,
    routes: Vec<Arc<Route>>,
}

/// What the configuration says of a backend.
pub(super) struct Backend {
    pub(super) name: Arc<str>,
    mode: Option<Mode>,
    pub(super) tools: Tools,
}

pub(super) enum Tools {
    /// It has these and no others: they are pinned, or built in.
    Declared(Vec<Arc<Decl>>),
    /// What it has, it says itself.
    Ruled(Effects),
}

impl Backend {
    fn remote(config: &remote::Config) -> Backend {
        let tools = match &config.pins {
            Some(pinning) => Tools::Declared(pinning.pins.declarations().to_vec()),
            None => Tools::Ruled(config.effects.clone()),
        };
        Backend { name: config.name.clone(), mode: config.mode, tools }
    }

    fn built_in(config: &builtin::Config) -> Backend {
        let tools = Tools::Declared(builtin::declarations(config));
        Backend { name: config.name.clone(), mode: config.mode, tools }
    }
}

impl Rulebook {
    /// Of a configuration, of one `.cedar` file, or of a folder of them.
    pub(super) fn open(path: &Path) -> Result<Rulebook, String> {
        if path.is_dir() || path.extension().is_some_and(|ending| ending == "cedar") {
            // `.` and `/` have no name.
            let inside = path.join("x");
            let (beside, name) = match path.file_name() {
                Some(name) => (path, name.to_string_lossy().into_owned()),
                None => (inside.as_path(), ".".to_owned()),
            };
            return Rulebook::of_policies(&[name], beside, Vec::new(), Mode::Full);
        }
        Rulebook::of_config(&Rulebook::load(path)?)
    }

    /// Certificates and secrets need not be there: nothing is served.
    pub(super) fn load(path: &Path) -> Result<config::Loaded, String> {
        let options = config::Options { check_files: false, ..config::Options::default() };
        config::load(path, options).map_err(|errors| format!("the configuration is not valid:\n{errors}"))
    }

    pub(super) fn of_config(loaded: &config::Loaded) -> Result<Rulebook, String> {
        let config = &loaded.config;
        let remote = config.backends.iter().map(Backend::remote);
        let sources = config.policy.sources.iter().map(|(name, text)| (tidy(name), text.clone())).collect();
        Ok(Rulebook {
            policy: build(&policy::Config { sources, ..config.policy.clone() }, &crate::app::known(config))?,
            mode: config.policy.mode,
            backends: remote.chain(config.built_in.iter().map(Backend::built_in)).collect(),
            routes: config.routes.routes.clone(),
        })
    }

    /// Of policies alone, whose paths are relative to the file `beside`.
    pub(super) fn of_policies(
        paths: &[String],
        beside: &Path,
        grants: Vec<policy::Grant>,
        mode: Mode,
    ) -> Result<Rulebook, String> {
        let sources = config::cedar(paths, beside).map_err(|errors| errors.to_string())?;
        let sources = sources.into_iter().map(|(name, text)| (tidy(&name), text)).collect();
        let policy = build(&policy::Config { mode, grants, sources }, &Known::default())?;
        Ok(Rulebook { policy, mode, backends: Vec::new(), routes: Vec::new() })
    }

    pub(super) fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.backends.iter()
    }

    pub(super) fn backend(&self, name: &str) -> Option<&Backend> {
        self.backends.iter().find(|backend| *backend.name == *name)
    }

    /// The effect that the configuration gives a tool, hints of its server aside: these can raise it.
    pub(super) fn effect(&self, backend: &str, tool: &str) -> Option<Effect> {
        self.backend(backend).map(|backend| match &backend.tools {
            Tools::Declared(decls) => {
                decls.iter().find(|decl| *decl.name == *tool).map_or(Effect::Destroy, |decl| decl.effect)
            }
            Tools::Ruled(effects) => effects.classify(tool, Hints::default()),
        })
    }

    /// The highest ceiling under which anybody can reach the backend.
    pub(super) fn ceiling(&self, backend: &str) -> Mode {
        let own = self.backend(backend).and_then(|backend| backend.mode);
        let routes = self.routes.iter().filter(|route| route.backends.iter().any(|name| **name == *backend));
        let ways = routes.map(|route| route.mode.unwrap_or(Mode::Full)).max();
        [own, ways].into_iter().flatten().fold(self.mode, Mode::min)
    }

    /// The ceiling of one route to a backend.
    pub(super) fn ceiling_on(&self, route: &str, backend: &str) -> Option<Mode> {
        let own = self.backend(backend).and_then(|backend| backend.mode);
        let leads = |known: &&Arc<Route>| known.path == route && known.backends.iter().any(|name| **name == *backend);
        // Two hosts may have the same path, with different ceilings: then the record does not tell.
        let mut modes = self.routes.iter().filter(leads).map(|route| route.mode.unwrap_or(Mode::Full));
        let first = modes.next()?;
        let rest = [own, Some(first)].into_iter().flatten().fold(self.mode, Mode::min);
        modes.all(|mode| mode == first).then_some(rest)
    }

    /// Where a policy stands, as `file:line` or as a path in the configuration.
    pub(super) fn place(&self, id: &str) -> String {
        match self.policy.origin(id).map(|origin| &origin.place) {
            Some(Place::Grant { index }) => format!("grants[{index}]"),
            Some(Place::Source { file, line }) => format!("{file}:{line}"),
            None => "unknown".to_owned(),
        }
    }

    /// The text of a policy, each line indented.
    pub(super) fn text(&self, id: &str, indent: &str) -> String {
        let text = self.policy.origin(id).map(|origin| origin.text.as_str()).unwrap_or_default();
        text.lines().map(|line| format!("{indent}{line}\n")).collect()
    }
}

fn build(config: &policy::Config, known: &Known) -> Result<Policy, String> {
    Policy::over(config, known).map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        format!("the policies are not valid:\n{}", errors.join("\n"))
    })
}

/// `policies/tests/../x.cedar` is `policies/x.cedar`.
fn tidy(path: &str) -> String {
    let mut tidy = PathBuf::new();
    for part in Path::new(path).components() {
        let back = part == std::path::Component::ParentDir;
        let named = matches!(tidy.components().next_back(), Some(std::path::Component::Normal(_)));
        if back && named {
            tidy.pop();
        } else if part != std::path::Component::CurDir {
            tidy.push(part);
        }
    }
    tidy.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_back_is_left_out_of_a_path_and_a_way_up_is_not() {
        for (path, expected) in [
            ("policies/tests/../x.cedar", "policies/x.cedar"),
            ("../a/./b", "../a/b"),
            ("/a/../b", "/b"),
            ("x.cedar", "x.cedar"),
        ] {
            assert_eq!(tidy(path), expected);
        }
    }
}
