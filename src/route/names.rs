//! Names on a route with several backends: whose tool, prompt or resource a name means, and what each is called there.
//!
//! A tool is `PREFIX` `SEPARATOR` `tool`, a prompt likewise, a resource is its URI inside a URI of ours ([`super::uris`]).
//!
//! INVARIANT: one name means one thing of one backend. [`Names::new`] refuses prefixes of which one could begin a name of
//! the other, so no choice is ever made while a request is served; within a backend a rename takes the old name away.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::uris;

/// What stands between a prefix and a name. Hosts that hand tools to a model take `[A-Za-z0-9_-]` only, so no dot; and
/// `__` is what several of them put between their own name for a server and its tool.
pub const SEPARATOR: &str = "_";

/// SPEC: server/tools §Tool Names. A longer one is hidden.
pub const NAME_BYTES_MAX: usize = 128;

/// Something must be left for the tool.
pub const PREFIX_BYTES_MAX: usize = 48;

pub const SEPARATOR_BYTES_MAX: usize = 4;

/// As long as a person waits for a list.
pub const MEMBER_TIMEOUT: Duration = Duration::from_secs(5);

/// One backend of the route, as configured.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Share {
    pub backend: Arc<str>,
    pub prefix: String,
    /// The backend's name of a tool, and what it is called on this route instead (after the prefix).
    pub rename: BTreeMap<String, String>,
}

/// The names of a route with several backends. A backend is meant by its place in the route's list.
#[derive(Clone, Debug)]
pub struct Names {
    separator: String,
    /// How long a merged answer waits for each backend.
    pub member_timeout: Duration,
    spaces: Vec<Space>,
}

#[derive(Clone, Debug)]
struct Space {
    share: Share,
    /// Prefix and separator: what all its names begin with.
    head: String,
    /// What all its URIs begin with.
    scheme: String,
    /// New names to the backend's own.
    renamed: HashMap<String, String>,
}

/// Why the names are not unambiguous.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Clash {
    /// These two backends' names could be taken for each other's.
    Prefixes { first: usize, second: usize },
    /// Two tools of this backend would have this name.
    Renames { share: usize, name: String },
}

/// What a name means: the place of its backend, and the backend's own name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Found {
    pub share: usize,
    pub name: String,
}

impl Names {
    /// # Errors
    /// Every ambiguity.
    pub fn new(separator: &str, member_timeout: Duration, shares: Vec<Share>) -> Result<Names, Vec<Clash>> {
        let spaces: Vec<Space> = shares.into_iter().map(|share| Space::new(separator, share)).collect();
        let mut clashes = Vec::new();
        for (second, space) in spaces.iter().enumerate() {
            let meets = |other: &Space| space.head.starts_with(&other.head) || other.head.starts_with(&space.head);
            let earlier = spaces.iter().take(second).enumerate().filter(|(_, other)| meets(other));
            clashes.extend(earlier.map(|(first, _)| Clash::Prefixes { first, second }));
            let mut seen: HashMap<&str, usize> = HashMap::new();
            for name in space.share.rename.values() {
                *seen.entry(name).or_default() += 1;
            }
            let twice = seen.into_iter().filter(|(_, count)| *count > 1);
            clashes.extend(twice.map(|(name, _)| Clash::Renames { share: second, name: name.to_owned() }));
        }
        if clashes.is_empty() {
            Ok(Names { separator: separator.to_owned(), member_timeout, spaces })
        } else {
            Err(clashes)
        }
    }

    pub fn separator(&self) -> &str {
        &self.separator
    }

    pub fn shares(&self) -> impl ExactSizeIterator<Item = &Share> {
        self.spaces.iter().map(|space| &space.share)
    }

    pub fn share(&self, index: usize) -> Option<&Share> {
        self.spaces.get(index).map(|space| &space.share)
    }

    /// What a backend's tool is called on the route. `None`: it has no name there (too long, or a rename took its name).
    pub fn tool(&self, share: usize, name: &str) -> Option<String> {
        let space = self.spaces.get(share)?;
        let name = match space.share.rename.get(name) {
            Some(renamed) => renamed,
            None if space.renamed.contains_key(name) => return None,
            None => name,
        };
        Some(format!("{}{name}", space.head)).filter(|whole| whole.len() <= NAME_BYTES_MAX)
    }

    /// Which tool of which backend a name means. Whether there is such a tool, the backend knows.
    pub fn find_tool(&self, whole: &str) -> Option<Found> {
        let (share, space, name) = self.split(whole)?;
        if whole.len() > NAME_BYTES_MAX {
            return None;
        }
        let name = match space.renamed.get(name) {
            Some(own) => own,
            // Renamed away: the old name is nobody's.
            None if space.share.rename.contains_key(name) => return None,
            None => name,
        };
        Some(Found { share, name: name.to_owned() })
    }

    pub fn prompt(&self, share: usize, name: &str) -> Option<String> {
        self.spaces.get(share).map(|space| format!("{}{name}", space.head))
    }

    pub fn find_prompt(&self, whole: &str) -> Option<Found> {
        let (share, _, name) = self.split(whole)?;
        Some(Found { share, name: name.to_owned() })
    }

    /// A backend's URI, or URI template, as it is known on the route.
    pub fn uri(&self, share: usize, uri: &str) -> Option<String> {
        self.spaces.get(share).map(|space| uris::wrap(&space.scheme, uri))
    }

    pub fn find_uri(&self, whole: &str) -> Option<Found> {
        let unwrapped = |(share, space): (usize, &Space)| {
            uris::unwrap(&space.scheme, whole).map(|uri| Found { share, name: uri.to_owned() })
        };
        self.spaces.iter().enumerate().find_map(unwrapped)
    }

    fn split<'n>(&self, whole: &'n str) -> Option<(usize, &Space, &'n str)> {
        let split = |(share, space)| {
            let space: &Space = space;
            let name = whole.strip_prefix(&space.head).filter(|name| !name.is_empty())?;
            Some((share, space, name))
        };
        self.spaces.iter().enumerate().find_map(split)
    }
}

impl Space {
    fn new(separator: &str, share: Share) -> Space {
        let head = format!("{}{separator}", share.prefix);
        let scheme = uris::scheme(&share.prefix);
        let renamed = share.rename.iter().map(|(own, new)| (new.clone(), own.clone())).collect();
        Space { share, head, scheme, renamed }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn share(prefix: &str, rename: &[(&str, &str)]) -> Share {
        let rename = rename.iter().map(|(own, new)| ((*own).to_owned(), (*new).to_owned())).collect();
        Share { backend: prefix.into(), prefix: prefix.to_owned(), rename }
    }

    fn names(separator: &str, shares: Vec<Share>) -> Result<Names, Vec<Clash>> {
        Names::new(separator, MEMBER_TIMEOUT, shares)
    }

    fn found(share: usize, name: &str) -> Option<Found> {
        Some(Found { share, name: name.to_owned() })
    }

    #[test]
    fn a_name_means_one_tool_of_one_backend() {
        let names =
            names("_", vec![share("vault", &[]), share("fs", &[("read_file", "open"), ("a", "b")])]).expect("ok");
        assert_eq!(names.tool(0, "kv.read").as_deref(), Some("vault_kv.read"));
        assert_eq!(names.find_tool("vault_kv.read"), found(0, "kv.read"));
        assert_eq!(names.tool(1, "read_file").as_deref(), Some("fs_open"));
        assert_eq!(names.find_tool("fs_open"), found(1, "read_file"));
        assert_eq!(names.find_tool("fs_read_file"), None, "renamed away");
        assert_eq!(names.tool(1, "open"), None, "the rename took its name");
        for nobodys in ["", "vault", "vault_", "Vault_x", "git_x", "open", "_x"] {
            assert_eq!(names.find_tool(nobodys), None, "{nobodys}");
        }
        assert_eq!(names.find_prompt("fs_read_file"), found(1, "read_file"), "renames are for tools");
    }

    #[test]
    fn two_tools_may_change_names_with_each_other() {
        let names = names(".", vec![share("x", &[("a", "b"), ("b", "a")])]).expect("ok");
        assert_eq!(names.tool(0, "a").as_deref(), Some("x.b"));
        assert_eq!(names.tool(0, "b").as_deref(), Some("x.a"));
        assert_eq!(names.find_tool("x.a"), found(0, "b"));
    }

    #[test]
    fn prefixes_that_could_be_taken_for_each_other_are_refused() {
        for (separator, one, other, clash) in [
            ("_", "a", "a", true),
            ("_", "a", "a_b", true),
            (".", "a", "a.b", true),
            (".", "a.b", "a", true),
            ("_", "a", "ab", false),
            (".", "a", "a_b", false),
            ("__", "git", "git_hub", false),
            ("__", "git", "git_", true),
        ] {
            let made = names(separator, vec![share(one, &[]), share(other, &[])]);
            let wanted = clash.then(|| vec![Clash::Prefixes { first: 0, second: 1 }]);
            // `git__` and `git___`: the second begins with the first.
            assert_eq!(made.err(), wanted, "{one}{separator} {other}{separator}");
        }
    }

    #[test]
    fn two_tools_with_one_new_name_are_refused() {
        let made = names("_", vec![share("a", &[("x", "z"), ("y", "z")])]);
        assert_eq!(made.err(), Some(vec![Clash::Renames { share: 0, name: "z".into() }]));
    }

    #[test]
    fn a_name_too_long_is_no_name() {
        let names = names("_", vec![share("a", &[])]).expect("ok");
        assert!(names.tool(0, &"x".repeat(126)).is_some());
        assert_eq!(names.tool(0, &"x".repeat(127)), None);
        assert_eq!(names.find_tool(&format!("a_{}", "x".repeat(127))), None);
    }

    fn word() -> impl Strategy<Value = String> {
        "[ab_.-]{1,4}"
    }

    fn shares() -> impl Strategy<Value = Vec<Share>> {
        let rename = prop::collection::btree_map(word(), word(), 0..4);
        let one =
            (word(), rename).prop_map(|(prefix, rename)| Share { backend: prefix.as_str().into(), prefix, rename });
        prop::collection::vec(one, 1..5)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Few letters, so that collisions are tried all the time.
        #[test]
        fn what_is_shown_is_found_again_and_nothing_else_has_the_name(
            separator in "[_.-]{1,2}", shares in shares(), tools in prop::collection::btree_set(word(), 1..12),
        ) {
            let Ok(names) = names(&separator, shares) else { return Ok(()) };
            let mut seen = std::collections::HashSet::new();
            for share in 0..names.shares().len() {
                for tool in &tools {
                    let Some(shown) = names.tool(share, tool) else { continue };
                    prop_assert!(seen.insert(shown.clone()), "{shown} means two things");
                    prop_assert_eq!(names.find_tool(&shown), found(share, tool));
                    let prompt = names.prompt(share, tool).expect("a prompt");
                    prop_assert_eq!(names.find_prompt(&prompt), found(share, tool));
                }
            }
        }

        #[test]
        fn what_is_found_is_shown_by_that_name(separator in "[_.-]{1,2}", shares in shares(), whole in "[ab_.-]{1,9}") {
            let Ok(names) = names(&separator, shares) else { return Ok(()) };
            if let Some(Found { share, name }) = names.find_tool(&whole) {
                prop_assert_eq!(names.tool(share, &name), Some(whole));
            }
        }

        #[test]
        fn a_uri_comes_back_as_it_went(shares in shares(), uri in "([a-z+.-]{0,5}:)?[a-z/{}+:%?#]{0,12}") {
            let Ok(names) = names("_", shares) else { return Ok(()) };
            let mut seen = std::collections::HashSet::new();
            for share in 0..names.shares().len() {
                let whole = names.uri(share, &uri).expect("a URI");
                prop_assert!(seen.insert(whole.clone()), "{} means two things", whole);
                prop_assert_eq!(names.find_uri(&whole), found(share, &uri));
            }
        }
    }
}
