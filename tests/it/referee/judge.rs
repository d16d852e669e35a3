//! Follows the conversations of a test, finds the revision in force and the definition of each message, and judges.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::fmt::Write;

use serde_json::Value;
use serde_json::json;
use wardgate::identity::facade;

use super::note::Note;
use super::note::Role;
use super::note::Side;
use super::schema::Fault;
use super::schema::Revision;
use super::schema::TASKS;

/// Members that a message may have.
const ENVELOPE: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];

/// The only requests that may be answered with questions.
const MAY_ASK: [&str; 3] = ["tools/call", "prompts/get", "resources/read"];

const VERSION: &str = "io.modelcontextprotocol/protocolVersion";

/// A message that is not as its revision says.
#[derive(Debug)]
pub struct Finding {
    pub revision: Revision,
    pub side: Side,
    pub kind: String,
    pub faults: Vec<Fault>,
    pub text: String,
}

#[derive(Default)]
pub struct Verdict {
    /// How many messages of the gateway were judged.
    pub tally: BTreeMap<(Revision, Side, String), usize>,
    /// The gateway's own faults.
    pub wrong: Vec<Finding>,
    /// Faults that the gateway passed on as it got them.
    pub mirrored: Vec<Finding>,
    /// Faults of what others wrote.
    pub foreign: Vec<Finding>,
    pub foreign_judged: usize,
    /// Connections on which something else than HTTP/1.1 was spoken: nothing of them was judged.
    pub unread_connections: usize,
}

impl Verdict {
    pub fn count(&self, revision: Revision, side: Side) -> usize {
        self.tally.iter().filter(|((of, at, _), _)| (*of, *at) == (revision, side)).map(|(_, count)| count).sum()
    }

    pub fn saw(&self, revision: Revision, side: Side, kind: &str) -> bool {
        self.tally.contains_key(&(revision, side, kind.to_owned()))
    }

    /// One line for each revision and side.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for revision in Revision::all() {
            for side in [Side::Clients, Side::Upstreams] {
                let count = self.count(revision, side);
                if count > 0 {
                    writeln!(text, "judged   {} to {side:?}: {count} messages", revision.name()).unwrap();
                }
            }
        }
        let (mirrored, foreign, all) = (self.mirrored.len(), self.foreign.len(), self.foreign_judged);
        writeln!(text, "judged   of others: {all} messages, {foreign} with faults, {mirrored} passed on as they came")
            .unwrap();
        writeln!(text, "unread   {} connections", self.unread_connections).unwrap();
        text
    }

    pub fn assert(&self) {
        let mut text = String::new();
        // The same fault again and again says nothing new.
        let mut said = HashSet::new();
        for finding in &self.wrong {
            let words: Vec<_> =
                finding.faults.iter().map(|fault| format!("{}: {}", fault.at, short(&fault.what))).collect();
            if said.insert((finding.revision, finding.side, finding.kind.clone(), words.clone())) {
                let (revision, side) = (finding.revision.name(), finding.side);
                writeln!(text, "{revision} to {side:?}, {}:", finding.kind).unwrap();
                words.iter().for_each(|line| writeln!(text, "    {line}").unwrap());
                writeln!(text, "    in {}", short(&finding.text)).unwrap();
            }
        }
        assert!(text.is_empty(), "\nthe gateway wrote what the protocol's schemas do not allow:\n{text}");
    }
}

fn short(text: &str) -> String {
    const CHARS: usize = 600;
    if text.chars().count() <= CHARS { text.to_owned() } else { text.chars().take(CHARS).chain(['…']).collect() }
}

/// Judges all messages of a test.
pub fn judge(notes: &[Note]) -> Verdict {
    let mut court = Court::default();
    for note in notes {
        court.hear(note);
    }
    court.verdict()
}

/// Where ids and revisions mean something: a session, a process, or else everything that is said to one peer.
type Place = (String, String);

/// A request that may be answered.
#[derive(Clone)]
struct Asked {
    method: String,
    revision: Revision,
}

/// The request of an HTTP exchange.
#[derive(Clone, Default)]
struct Exchange {
    id: Option<Value>,
    asked: Option<Asked>,
    /// The endpoint that its stream has named (HTTP+SSE).
    endpoint: Option<String>,
}

#[derive(Default)]
struct Court {
    revisions: HashMap<Place, Revision>,
    asked: HashMap<(Place, Role, String), Asked>,
    exchanges: HashMap<u64, Exchange>,
    endpoints: HashSet<(String, String)>,
    /// Messages that differ in nothing but their id are judged once.
    known: HashMap<(Revision, Role, String, String), Vec<Fault>>,
    verdict: Verdict,
    found: Vec<Finding>,
}

impl Court {
    fn hear(&mut self, note: &Note) {
        if note.event.as_deref() == Some("endpoint") {
            let endpoint = String::from_utf8_lossy(&note.text).into_owned();
            self.endpoints.insert((note.peer.clone(), endpoint.clone()));
            self.exchanges.entry(note.exchange).or_default().endpoint = Some(endpoint);
            return;
        }
        // Clients that register themselves (RFC 7591) speak another protocol.
        if facade::is_registration(&note.path) {
            return;
        }
        let place = self.place(note);
        let Ok(value) = serde_json::from_slice::<Value>(&note.text) else {
            // Web pages that refuse are not messages; everything else that the gateway says must be.
            if note.ours() && (note.writer == Role::Client || note.status < 300) {
                let text = String::from_utf8_lossy(&note.text).into_owned();
                self.file(note, Revision::SILENT, "text", vec![Fault::of("it is not JSON")], text);
            }
            return;
        };
        match value {
            Value::Array(messages) => messages.into_iter().for_each(|message| self.message(note, &place, message)),
            // Metadata documents and refusals outside the protocol.
            message
                if message.get("jsonrpc").is_none()
                    && (note.verb != "POST" && !note.verb.is_empty() || note.status >= 300) => {}
            message => self.message(note, &place, message),
        }
    }

    fn place(&self, note: &Note) -> Place {
        let exchange = self.exchanges.get(&note.exchange).and_then(|exchange| exchange.endpoint.clone());
        let path = || self.endpoints.contains(&(note.peer.clone(), note.path.clone())).then(|| note.path.clone());
        let name = note.session.clone().or(exchange).or_else(path);
        (note.peer.clone(), name.unwrap_or_else(|| format!("path {}", note.path)))
    }

    fn message(&mut self, note: &Note, place: &Place, message: Value) {
        let text = message.to_string();
        let method = message["method"].as_str().map(str::to_owned);
        let id = message.get("id").cloned();
        if let (Some(method), Some(id)) = (&method, &id) {
            let revision = self.revision(note, place, &message);
            let asked = Asked { method: method.clone(), revision };
            if note.writer == Role::Client && note.exchange != 0 {
                let exchange = self.exchanges.entry(note.exchange).or_default();
                (exchange.id, exchange.asked) = (Some(id.clone()), Some(asked.clone()));
            }
            self.asked.insert((place.clone(), note.writer, id.to_string()), asked);
            let faults = self.request(revision, note.writer, method, message);
            return self.file(note, revision, method, faults, text);
        }
        if let Some(method) = &method {
            let revision = self.revision(note, place, &message);
            let faults = self.notification(revision, note.writer, method, message);
            return self.file(note, revision, method, faults, text);
        }
        if let Some(id) = &id
            && message.get("result").is_none()
            && message.get("error").is_none()
        {
            // What is no message, but has an id, may be refused with that id.
            let asked = Asked { method: String::new(), revision: self.revision(note, place, &message) };
            self.asked.insert((place.clone(), note.writer, id.to_string()), asked);
        }
        let asked = self.question(note, place, id.as_ref());
        if let Some(version) = message["result"]["protocolVersion"].as_str().and_then(Revision::named)
            && asked.as_ref().is_some_and(|asked| asked.method == "initialize")
        {
            self.revisions.insert(place.clone(), version);
        }
        let revision = match &asked {
            // An answer to `initialize` is of the revision that it names.
            Some(asked) if asked.method != "initialize" => asked.revision,
            _ => self.revision(note, place, &message),
        };
        let (kind, mut faults) = self.answer(revision, note.writer, asked.as_ref(), message);
        // A line can be answered in no other way when its id could not be read.
        if id.is_none() && note.exchange != 0 && note.status < 300 {
            faults.push(Fault::of("it does not say what it answers"));
        }
        self.file(note, revision, &kind, faults, text);
    }

    /// The request that this answers.
    fn question(&self, note: &Note, place: &Place, id: Option<&Value>) -> Option<Asked> {
        let exchange = self.exchanges.get(&note.exchange);
        if note.writer == Role::Server
            && let Some(Exchange { id: known, asked: Some(asked), .. }) = exchange
            // An answer without an id answers what could not be read.
            && (known.as_ref() == id || id.is_none_or(Value::is_null))
        {
            return Some(asked.clone());
        }
        self.asked.get(&(place.clone(), note.writer.other(), id?.to_string())).cloned()
    }

    /// The revision in force for what is no answer to a known request.
    fn revision(&mut self, note: &Note, place: &Place, message: &Value) -> Revision {
        let params = &message["params"];
        if let Some(version) = params["_meta"][VERSION].as_str() {
            let revision = Revision::named(version).unwrap_or(Revision::MODERN);
            // A process has one revision, also for what it says unasked; HTTP has none beyond the request.
            if note.exchange == 0 {
                self.revisions.insert(place.clone(), revision);
            }
            return revision;
        }
        if message["method"] == "initialize" {
            let asked = params["protocolVersion"].as_str().and_then(Revision::named);
            return asked.filter(|revision| *revision != Revision::MODERN).unwrap_or(Revision::LAST_LEGACY);
        }
        let exchange = || self.exchanges.get(&note.exchange)?.asked.as_ref().map(|asked| asked.revision);
        let header = || note.version.as_deref().map(|name| Revision::named(name).unwrap_or(Revision::LAST_LEGACY));
        let modern = exchange().filter(|revision| *revision == Revision::MODERN);
        let known = modern.or_else(|| self.revisions.get(place).copied());
        known.or_else(header).or_else(exchange).unwrap_or(Revision::SILENT)
    }

    fn request(&mut self, revision: Revision, writer: Role, method: &str, mut message: Value) -> Vec<Fault> {
        let schema = revision.schema();
        let mut faults = envelope(&message);
        faults.extend(schema.faults("JSONRPCRequest", &message));
        if let Some((request, _)) = extension(revision, writer, method) {
            message["id"] = json!(0);
            faults.extend(TASKS.faults(request, &message));
            return faults;
        }
        let Some(definition) = schema.request(writer, method) else {
            faults.push(Fault::of(format!("`{method}` is no request that a {writer:?} sends in this revision")));
            return faults;
        };
        message["id"] = json!(0);
        faults.extend(self.known(revision, writer, definition, message));
        faults
    }

    fn notification(&mut self, revision: Revision, writer: Role, method: &str, message: Value) -> Vec<Fault> {
        let schema = revision.schema();
        let mut faults = envelope(&message);
        faults.extend(schema.faults("JSONRPCNotification", &message));
        if revision == Revision::MODERN && writer == Role::Server && method == "notifications/tasks" {
            faults.extend(TASKS.faults("TaskNotification", &message));
            return faults;
        }
        match schema.notification(writer, method) {
            Some(definition) => faults.extend(self.known(revision, writer, definition, message)),
            None => faults
                .push(Fault::of(format!("`{method}` is no notification that a {writer:?} sends in this revision"))),
        }
        faults
    }

    /// What kind of answer it is, and what is wrong with it.
    fn answer(
        &mut self,
        revision: Revision,
        writer: Role,
        asked: Option<&Asked>,
        mut message: Value,
    ) -> (String, Vec<Fault>) {
        let schema = revision.schema();
        let mut faults = envelope(&message);
        let named = message.get("id").is_some_and(|id| !id.is_null());
        if message.get("error").is_some() {
            // The transport's text has refusals without an id from the first; the schemas have them since 2025-11-25.
            if message.get("id").is_none() {
                message["id"] = json!(0);
            }
            faults.extend(schema.faults(schema.first(&["JSONRPCErrorResponse", "JSONRPCError"]), &message));
            let code = message["error"]["code"].as_i64().unwrap_or_default();
            for (known, definition, whole) in ERRORS {
                if *known == code && schema.has(definition) {
                    faults.extend(schema.faults(definition, if *whole { &message } else { &message["error"] }));
                }
            }
            if asked.is_none() && named {
                faults.push(unasked(&message["id"]));
            }
            return ("error".to_owned(), faults);
        }
        faults.extend(schema.faults(schema.first(&["JSONRPCResultResponse", "JSONRPCResponse"]), &message));
        let Some(Asked { method, .. }) = asked else {
            faults.push(unasked(&message["id"]));
            return ("result".to_owned(), faults);
        };
        let result = message["result"].take();
        if result["resultType"] == "input_required" && revision == Revision::MODERN {
            if !MAY_ASK.contains(&method.as_str()) {
                faults.push(Fault::of(format!("`{method}` may not be answered with questions")));
            }
            if result.get("inputRequests").is_none() && result.get("requestState").is_none() {
                faults.push(Fault::of("it asks nothing and has nothing to be remembered"));
            }
            faults.extend(self.known(revision, writer, "InputRequiredResult", result));
            return (format!("{method} → input_required"), faults);
        }
        // Where a task was asked for or declared, it may be the answer to a call.
        if method == "tools/call" && revision == Revision::MODERN && result["resultType"] == "task" {
            faults.extend(TASKS.faults("TaskResult", &result));
            return (format!("{method} → task"), faults);
        }
        if schema.has("CreateTaskResult") && result.get("task").is_some() {
            faults.extend(self.known(revision, writer, "CreateTaskResult", result));
            return (format!("{method} → task"), faults);
        }
        if let Some((_, definition)) = extension(revision, writer.other(), method) {
            faults.extend(TASKS.faults(definition, &result));
            return (format!("{method} → result"), faults);
        }
        let Some(request) = schema.request(writer.other(), method) else {
            faults.push(Fault::of(format!("a result for `{method}`, which this revision does not have")));
            return (format!("{method} → result"), faults);
        };
        let own = format!("{}Result", request.trim_end_matches("Request"));
        let definition = if schema.has(&own) { own } else { "EmptyResult".to_owned() };
        faults.extend(self.known(revision, writer, &definition, result));
        (format!("{method} → result"), faults)
    }

    fn known(&mut self, revision: Revision, writer: Role, definition: &str, value: Value) -> Vec<Fault> {
        let key = (revision, writer, definition.to_owned(), value.to_string());
        self.known.entry(key).or_insert_with(|| revision.schema().faults(definition, &value)).clone()
    }

    fn file(&mut self, note: &Note, revision: Revision, kind: &str, faults: Vec<Fault>, text: String) {
        let side = note.side;
        if note.ours() {
            *self.verdict.tally.entry((revision, side, kind.to_owned())).or_default() += 1;
        } else {
            self.verdict.foreign_judged += 1;
        }
        if !faults.is_empty() {
            let finding = Finding { revision, side, kind: kind.to_owned(), faults, text };
            if note.ours() { self.found.push(finding) } else { self.verdict.foreign.push(finding) }
        }
    }

    /// Tells the gateway's own faults from those that it was given on its other side.
    fn verdict(self) -> Verdict {
        let mut verdict = self.verdict;
        let mut marks: HashSet<(Side, String)> = HashSet::new();
        for finding in &verdict.foreign {
            let of = finding.faults.iter().flat_map(|fault| &fault.marks);
            marks.extend(of.map(|mark| (finding.side, mark.clone())));
        }
        for finding in self.found {
            let other = if finding.side == Side::Clients { Side::Upstreams } else { Side::Clients };
            let given = |fault: &Fault| fault.marks.iter().any(|mark| marks.contains(&(other, mark.clone())));
            let list = if finding.faults.iter().all(given) { &mut verdict.mirrored } else { &mut verdict.wrong };
            list.push(finding);
        }
        verdict
    }
}

/// The definitions of a request of the tasks extension and of its result.
fn extension(revision: Revision, writer: Role, method: &str) -> Option<(&'static str, &'static str)> {
    if revision != Revision::MODERN || writer != Role::Client {
        return None;
    }
    Some(match method {
        "tasks/get" => ("GetTaskRequest", "GetTaskResult"),
        "tasks/update" => ("UpdateTaskRequest", "AcknowledgeResult"),
        "tasks/cancel" => ("CancelTaskRequest", "AcknowledgeResult"),
        _ => return None,
    })
}

fn unasked(id: &Value) -> Fault {
    let what = "it answers nothing that was asked";
    Fault { marks: vec![format!("{what}: {id}")], ..Fault::of(what) }
}

/// Codes that have a definition of their own, and whether it is of the whole message.
const ERRORS: &[(i64, &str, bool)] = &[
    (-32700, "ParseError", false),
    (-32603, "InternalError", false),
    (-32602, "InvalidParamsError", false),
    (-32601, "MethodNotFoundError", false),
    (-32600, "InvalidRequestError", false),
    (-32042, "URLElicitationRequiredError", true),
    (-32022, "UnsupportedProtocolVersionError", true),
    (-32021, "MissingRequiredClientCapabilityError", true),
    (-32020, "HeaderMismatchError", true),
];

/// What the schemas leave open: they allow any further member, and both a result and an error.
fn envelope(message: &Value) -> Vec<Fault> {
    let Some(members) = message.as_object() else { return vec![Fault::of("it is no object")] };
    let has = |name: &str| members.contains_key(name);
    let mut faults: Vec<_> = members
        .keys()
        .filter(|name| !ENVELOPE.contains(&name.as_str()))
        .map(|name| Fault::of(format!("`{name}` is no member of a message")))
        .collect();
    let kinds = [has("method"), has("result"), has("error")].into_iter().filter(|kind| *kind).count();
    if kinds != 1 || has("params") && !has("method") {
        faults.push(Fault::of("it is not one of request, notification, result and error"));
    }
    faults
}
