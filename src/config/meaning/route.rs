//! `routes`, as meant: each with its backends, and with names that mean one thing where there are several.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::edge;
use crate::config::book::Book;
use crate::config::book::Key;
use crate::config::file;
use crate::config::scalar::short;
use crate::identity::facade;
use crate::mcp::list::good_name;
use crate::route;
use crate::route::Clash;
use crate::route::Names;
use crate::route::PREFIX_BYTES_MAX;
use crate::route::SEPARATOR_BYTES_MAX;
use crate::route::Share;

/// Each costs a request per list.
const BACKENDS_MAX: usize = 64;

pub(super) fn routes(
    book: &mut Book<'_>,
    root: &Key,
    routes: Option<Vec<file::Route>>,
    backends: &[Arc<str>],
) -> route::Config {
    let key = root.at("routes");
    let routes = routes.unwrap_or_default();
    if routes.is_empty() {
        let name = backends.first().map_or("NAME", |name| name);
        book.missing(
            &key,
            format!("no route leads to a backend; for example `routes: [{{ path: /mcp, backends: [{name}] }}]`"),
        );
    }
    let mut seen: BTreeMap<(String, Option<String>), usize> = BTreeMap::new();
    let mut meant = Vec::new();
    for (index, mut route) in routes.into_iter().enumerate() {
        let key = key.index(index);
        let path = book.require(&key, "path", route.path.take(), "path: /mcp");
        if let Some(path) = &path {
            check_path(book, &key.at("path"), path);
        }
        let host = route.host.take().map(|host| edge::host(book, &key.at("host"), &host));
        let mode = route.mode;
        let old_sse = route.old_sse.unwrap_or(true);
        let reached = destinations(book, &key, root, route, backends);
        if let Some(path) = &path
            && let Some(first) = seen.insert((path.clone(), host.clone()), index)
        {
            book.error(&key.at("path"), format!("`{}` has a route already: `routes[{first}]`", short(path)));
        }
        if let (Some(path), Some((backends, names))) = (path, reached) {
            meant.push((index, Arc::new(route::Route { path, host, backends, names, mode, old_sse })));
        }
    }
    for (index, route) in &meant {
        if let Some((first, old)) = meant.iter().find(|(_, old)| old.overlaps(route)) {
            let message = format!(
                "`{}` is where `routes[{first}]` (`{}`) serves HTTP+SSE: give another path, or `old_sse: false` there",
                short(&route.path),
                short(&old.path)
            );
            book.error(&key.index(*index).at("path"), message);
        }
    }
    let meant: Vec<_> = meant.into_iter().map(|(_, route)| route).collect();
    for name in backends {
        let key = root.at("backends").at(name);
        if !meant.iter().any(|route| route.backends.contains(name)) && !book.touched(&root.at("routes")) {
            book.warn(&key, "no route leads to this backend");
        }
    }
    route::Config { routes: meant }
}

/// Requests are routed by their path as it is: what admission would not let through could never match.
fn check_path(book: &mut Book<'_>, key: &Key, path: &str) {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '%' | '\\');
    let segments = || path.split('/').skip(1);
    if !path.starts_with('/')
        || path == "/"
        || !path.chars().all(plain)
        || segments().any(|part| matches!(part, "" | "." | ".."))
    {
        book.error(key, format!("`{}` is not a path such as `/mcp`: it starts with `/`, has no empty or dot segments, no `%`, no query and no `/` at its end", short(path)));
    } else if path.starts_with("/.well-known/") {
        book.error(key, "paths under `/.well-known/` are the gateway's own");
    } else if path.starts_with(facade::ROOT) {
        book.error(key, "paths under `/login/` are the gateway's own");
    }
}

type Reached = (Vec<Arc<str>>, Option<Arc<Names>>);

fn destinations(
    book: &mut Book<'_>,
    key: &Key,
    root: &Key,
    route: file::Route,
    backends: &[Arc<str>],
) -> Option<Reached> {
    let written = book.require(key, "backends", route.backends, "backends: [files]")?.0;
    let list = key.at("backends");
    if written.is_empty() {
        book.missing(&list, "is empty: name one backend");
        return None;
    }
    if written.len() > BACKENDS_MAX {
        book.error(&list, format!("more than {BACKENDS_MAX} backends on one route"));
        return None;
    }
    let several = written.len() > 1;
    let count = written.len();
    let mut shares: Vec<Share> = Vec::with_capacity(count);
    for (index, destination) in written.into_iter().enumerate() {
        let at = if book.has(&list.index(index)) { list.index(index) } else { list.clone() };
        let Some(share) = share(book, &at, root, destination, backends, several) else { continue };
        if shares.iter().any(|known| known.backend == share.backend) {
            book.error(&at, format!("`{}` is on this route already", share.backend));
            continue;
        }
        shares.push(share);
    }
    let separator = route.separator.as_deref().map(|text| separator(book, &key.at("separator"), text));
    let waits = book.span(key, "member_timeout", route.member_timeout, route::MEMBER_TIMEOUT);
    if !several {
        for (name, written) in [("separator", separator.is_some()), ("member_timeout", route.member_timeout.is_some())]
        {
            if written {
                book.error(&key.at(name), "is for routes with several backends");
            }
        }
        return shares.pop().map(|share| (vec![share.backend], None));
    }
    if shares.len() < count {
        return None;
    }
    let reached = shares.iter().map(|share| share.backend.clone()).collect();
    let separator = separator.flatten().unwrap_or_else(|| route::SEPARATOR.to_owned());
    match Names::new(&separator, waits, shares.clone()) {
        Ok(names) => Some((reached, Some(Arc::new(names)))),
        Err(clashes) => {
            for clash in clashes {
                tell(book, &list, &separator, &shares, &clash);
            }
            None
        }
    }
}

fn separator(book: &mut Book<'_>, key: &Key, text: &str) -> Option<String> {
    let right = (1..=SEPARATOR_BYTES_MAX).contains(&text.len()) && text.chars().all(|c| "_.-".contains(c));
    if !right {
        book.error(key, format!("`{}` is not a separator: write one to four of `_`, `.` and `-`", short(text)));
    }
    right.then(|| text.to_owned())
}

fn share(
    book: &mut Book<'_>,
    key: &Key,
    root: &Key,
    destination: file::Destination,
    backends: &[Arc<str>],
    several: bool,
) -> Option<Share> {
    let name = book.require(key, "backend", destination.backend, "backend: files")?;
    let known = backends.iter().find(|known| ***known == *name);
    if known.is_none() && !book.touched(&root.at("backends").at(&name)) {
        let known: Vec<String> = backends.iter().map(|name| format!("`{name}`")).collect();
        let known = if known.is_empty() { "there is none".to_owned() } else { format!("known: {}", known.join(", ")) };
        book.error(key, format!("there is no backend `{}`; {known}", short(&name)));
    }
    if !several {
        for (name, written) in [("prefix", destination.prefix.is_some()), ("rename", destination.rename.is_some())] {
            if written {
                book.error(&key.at(name), "is for routes with several backends: with one, names are the backend's own");
            }
        }
    }
    let prefix = destination.prefix.unwrap_or_else(|| name.clone());
    let at = if book.has(&key.at("prefix")) { key.at("prefix") } else { key.clone() };
    if several && (!good_name(&prefix) || prefix.len() > PREFIX_BYTES_MAX) {
        let what = "letters, digits, `_`, `.` and `-`";
        let message = format!("`{}` is not a prefix: 1 to {PREFIX_BYTES_MAX} {what}", short(&prefix));
        book.error(&at, message);
    }
    let rename = destination.rename.unwrap_or_default();
    for (own, new) in &rename {
        let key = key.at("rename").at(own);
        if let Some(bad) = [own, new].into_iter().find(|name| !good_name(name)) {
            let message = format!("`{}` is not the name of a tool: letters, digits, `_`, `.` and `-`", short(bad));
            book.error(&key, message);
        } else if own == new {
            book.error(&key, "changes nothing");
        }
    }
    Some(Share { backend: Arc::clone(known?), prefix, rename })
}

fn tell(book: &mut Book<'_>, list: &Key, separator: &str, shares: &[Share], clash: &Clash) {
    match clash {
        Clash::Prefixes { first, second } => {
            let prefix = |index: &usize| shares.get(*index).map_or("", |share| share.prefix.as_str());
            let (one, other) = (prefix(first), prefix(second));
            let message = if one == other {
                format!("the prefix `{other}` is taken already by `backends[{first}]`: give another `prefix`")
            } else {
                format!(
                    "names that begin with `{one}{separator}` and with `{other}{separator}` could be taken for each other's: \
                     give another `prefix`, or the route another `separator`"
                )
            };
            let at = list.index(*second).at("prefix");
            let at = if book.has(&at) { at } else { list.index(*second) };
            book.error(&at, message);
        }
        Clash::Renames { share, name } => {
            let at = list.index(*share).at("rename");
            book.error(&at, format!("two tools would have the name `{}`", short(name)));
        }
    }
}
