//! YAML text to a tree in which every node knows where it stands; one document, no anchors, no tags, no duplicate keys.

use saphyr_parser::Event;
use saphyr_parser::Marker;
use saphyr_parser::Parser;
use saphyr_parser::ScalarStyle;
use saphyr_parser::Span;
use serde_json::Value;

/// Nothing that can be configured nests deeper than ten.
const DEPTH_MAX: usize = 32;
/// Keys and values together. A file of this size is a mistake, or not a configuration.
const NODES_MAX: usize = 200_000;

/// Line and column, both counted from 1.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Mark {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl From<Marker> for Mark {
    fn from(marker: Marker) -> Self {
        Mark { line: marker.line().max(1), column: marker.col() + 1 }
    }
}

/// One step from a node to one below it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    Index(usize),
    Name(String),
}

/// The path of a node under `parent`, as it is shown: `backends.files.http.urls[1]`.
pub(super) fn below(parent: &str, step: &Step) -> String {
    match step {
        Step::Index(index) => format!("{parent}[{index}]"),
        Step::Name(name) if parent.is_empty() => name.clone(),
        Step::Name(name) => format!("{parent}.{name}"),
    }
}

#[derive(Debug)]
pub(crate) struct Node {
    /// Where the value begins.
    pub(crate) at: Mark,
    /// Where its key begins, if it has one.
    pub(crate) key_at: Option<Mark>,
    /// As in the file, also after siblings were pruned.
    pub(crate) path: String,
    pub(crate) content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    Mapping(Vec<(String, Node)>),
    Scalar(Value),
    Sequence(Vec<Node>),
}

impl Node {
    fn empty() -> Node {
        let start = Mark { line: 1, column: 1 };
        Node { at: start, key_at: None, path: String::new(), content: Content::Mapping(Vec::new()) }
    }

    pub(super) fn child(&self, step: &Step) -> Option<&Node> {
        match (&self.content, step) {
            (Content::Mapping(entries), Step::Name(name)) => {
                entries.iter().find(|(known, _)| known == name).map(|(_, node)| node)
            }
            (Content::Sequence(items), Step::Index(index)) => items.get(*index),
            _ => None,
        }
    }

    /// The deepest node on the way that is there, and how many steps lead to it.
    pub(super) fn find(&self, steps: &[Step]) -> (&Node, usize) {
        let mut found = (self, 0);
        for step in steps {
            match found.0.child(step) {
                Some(node) => found = (node, found.1 + 1),
                None => break,
            }
        }
        found
    }

    pub(super) fn remove(&mut self, steps: &[Step]) {
        let Some((last, way)) = steps.split_last() else { return };
        let mut node = self;
        for step in way {
            let next = match (&mut node.content, step) {
                (Content::Mapping(entries), Step::Name(name)) => {
                    entries.iter_mut().find(|(known, _)| known == name).map(|(_, node)| node)
                }
                (Content::Sequence(items), Step::Index(index)) => items.get_mut(*index),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => return,
            }
        }
        match (&mut node.content, last) {
            (Content::Mapping(entries), Step::Name(name)) => entries.retain(|(known, _)| known != name),
            (Content::Sequence(items), Step::Index(index)) if *index < items.len() => drop(items.remove(*index)),
            _ => {}
        }
    }

    /// Where to point for a problem with this node: at a scalar itself, at the key of what has parts.
    pub(crate) fn mark(&self) -> Mark {
        match self.content {
            Content::Scalar(_) => self.at,
            Content::Mapping(_) | Content::Sequence(_) => self.key_at.unwrap_or(self.at),
        }
    }
}

/// Is `inner` the path `outer` or one below it?
pub(super) fn within(inner: &str, outer: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || outer.is_empty() || rest.starts_with(['.', '[']))
}

/// What is wrong with the text as YAML, and where.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) at: Mark,
    pub(crate) path: String,
    pub(crate) message: String,
}

/// The tree, and what was left out of it because it was wrong.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) root: Node,
    pub(crate) faults: Vec<Fault>,
}

impl Default for Tree {
    fn default() -> Self {
        Tree { root: Node::empty(), faults: Vec::new() }
    }
}

/// Reads the text. `Err` when it is not YAML at all; what is only not allowed comes as `faults` beside the tree.
pub(crate) fn parse(text: &str) -> Result<Tree, Vec<Fault>> {
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(next) = parser.next_event() {
        let taken = match next {
            Ok((event, span)) => builder.take(event, span),
            Err(error) => Err(builder.fault((*error.marker()).into(), format!("this is not YAML: {}", error.info()))),
        };
        if let Err(fault) = taken {
            builder.faults.push(fault);
            return Err(builder.faults);
        }
    }
    let root = match builder.root {
        None => Node::empty(),
        Some(node) => match node.content {
            Content::Scalar(Value::Null) => Node::empty(),
            Content::Mapping(_) => node,
            Content::Scalar(_) | Content::Sequence(_) => {
                let message = "the file must be a mapping, for example `listeners: …`".to_owned();
                builder.faults.push(Fault { at: node.at, path: String::new(), message });
                return Err(builder.faults);
            }
        },
    };
    Ok(Tree { root, faults: builder.faults })
}

/// A collection that is not closed yet.
struct Open {
    node: Node,
    /// The key whose value comes next, in a mapping.
    key: Option<Key>,
}

struct Key {
    name: String,
    at: Mark,
    duplicate: bool,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    documents: usize,
    nodes: usize,
    faults: Vec<Fault>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Fault> {
        let at = Mark::from(span.start);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(self.fault(at, "a second YAML document: one file is one document".to_owned()));
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.check(at, anchor, tag.is_some());
                if self.expects_key() {
                    self.key(text.into_owned(), at);
                    return Ok(());
                }
                let node = self.node(at, Content::Scalar(scalar(&text, style)))?;
                self.close(node);
                Ok(())
            }
            Event::Alias(_) => {
                self.refuse(at, "aliases (`*name`) are not supported: write the value out");
                let node = self.node(at, Content::Scalar(Value::Null))?;
                self.close(node);
                Ok(())
            }
            Event::MappingStart(anchor, tag) => {
                self.check(at, anchor, tag.is_some());
                self.start(at, Content::Mapping(Vec::new()))
            }
            Event::SequenceStart(anchor, tag) => {
                self.check(at, anchor, tag.is_some());
                self.start(at, Content::Sequence(Vec::new()))
            }
            Event::MappingEnd | Event::SequenceEnd => {
                if let Some(open) = self.open.pop() {
                    self.close(open.node);
                }
                Ok(())
            }
        }
    }

    fn check(&mut self, at: Mark, anchor: usize, tagged: bool) {
        if anchor > 0 {
            self.refuse(at, "anchors (`&name`) are not supported: write the value out where it is needed");
        }
        if tagged {
            self.refuse(at, "tags (`!name`) are not supported");
        }
    }

    fn refuse(&mut self, at: Mark, message: &str) {
        let fault = self.fault(at, message.to_owned());
        self.faults.push(fault);
    }

    fn fault(&self, at: Mark, message: String) -> Fault {
        Fault { at, path: self.path(), message }
    }

    /// The path of the value that comes next.
    fn path(&self) -> String {
        match self.open.last() {
            None => String::new(),
            Some(open) => match (&open.key, &open.node.content) {
                (Some(key), _) => below(&open.node.path, &Step::Name(key.name.clone())),
                (None, Content::Sequence(items)) => below(&open.node.path, &Step::Index(items.len())),
                (None, _) => open.node.path.clone(),
            },
        }
    }

    fn expects_key(&self) -> bool {
        self.open.last().is_some_and(|open| open.key.is_none() && matches!(open.node.content, Content::Mapping(_)))
    }

    fn key(&mut self, name: String, at: Mark) {
        let Some(open) = self.open.last_mut() else { return };
        let first = open.node.child(&Step::Name(name.clone())).map(|node| node.key_at.unwrap_or(node.at).line);
        if let Some(line) = first {
            let path = below(&open.node.path, &Step::Name(name.clone()));
            self.faults.push(Fault { at, path, message: format!("this key is here twice: first on line {line}") });
        }
        open.key = Some(Key { name, at, duplicate: first.is_some() });
    }

    fn node(&mut self, at: Mark, content: Content) -> Result<Node, Fault> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(self.fault(at, format!("more than {NODES_MAX} values in one file")));
        }
        let key_at = self.open.last().and_then(|open| open.key.as_ref()).map(|key| key.at);
        Ok(Node { at, key_at, path: self.path(), content })
    }

    fn start(&mut self, at: Mark, content: Content) -> Result<(), Fault> {
        if self.expects_key() {
            return Err(self.fault(at, "a key must be plain text".to_owned()));
        }
        if self.open.len() >= DEPTH_MAX {
            return Err(self.fault(at, format!("nested deeper than {DEPTH_MAX}")));
        }
        let node = self.node(at, content)?;
        self.open.push(Open { node, key: None });
        Ok(())
    }

    fn close(&mut self, node: Node) {
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return;
        };
        match &mut open.node.content {
            Content::Sequence(items) => items.push(node),
            Content::Mapping(entries) => {
                if let Some(key) = open.key.take().filter(|key| !key.duplicate) {
                    entries.push((key.name, node));
                }
            }
            Content::Scalar(_) => {}
        }
    }
}

/// The core schema, but for what is only ever a surprise: `0660` and `1.10` stay text.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::from(text);
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let padded = digits.len() > 1 && digits.starts_with('0');
    match text.parse::<i64>() {
        Ok(number) if !padded => Value::from(number),
        _ => Value::from(text),
    }
}
