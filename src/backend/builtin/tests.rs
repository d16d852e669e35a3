//! Laws of all tables, and the frame as an MCP server, on a client that needs nothing.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicUsize;

use futures_util::StreamExt;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use super::*;
use crate::backend::Content;
use crate::catalog::Action;
use crate::catalog::Call;
use crate::credentials;
use crate::mcp::Id;
use crate::mcp::list::good_name;

/// Model APIs take no more.
const NAME_BYTES_MAX: usize = 64;

#[test]
fn every_tool_of_every_table_keeps_the_laws() {
    let mut seen = BTreeSet::new();
    for Declared { backend, spec, input, output } in all() {
        let name = spec.name;
        for shown in [Names::Dotted.shown(name), Names::Underscored.shown(name)] {
            assert!(good_name(&shown) && shown.len() <= NAME_BYTES_MAX, "{name}: not a name for all clients");
        }
        assert!(seen.insert((backend, Names::Underscored.shown(name))), "{name} is there twice");
        let sentence = |text: &str| {
            text.starts_with(|c: char| c.is_uppercase())
                && text.ends_with('.')
                && !text.contains("  ")
                && !text.contains('\n')
        };
        assert!(sentence(spec.summary) && spec.summary.len() <= 200, "{name}: the summary is a sentence");
        assert!(spec.details.is_empty() || spec.details.ends_with('.'), "{name}: the details are sentences");
        assert!(!spec.title.is_empty() && !spec.title.ends_with('.'), "{name}: the title is a few words");
        assert_eq!(input["type"], "object", "{name}");
        assert_eq!(input["additionalProperties"], false, "{name}: the arguments must be closed");
        assert_eq!(output["type"], "object", "{name}: legacy clients know objects only");
        for (argument, schema) in input["properties"].as_object().into_iter().flatten() {
            assert!(schema["description"].is_string(), "{name}: argument `{argument}` has no description");
        }
        for schema in [&input, &output] {
            assert!(!schema.to_string().contains("\"$ref\""), "{name}: some clients follow no references");
            jsonschema::draft202012::new(schema).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        if spec.effect <= Effect::ReadSensitive {
            assert!(!spec.overwrites, "{name}: what reads replaces nothing");
        }
    }
    assert!(seen.len() >= 16, "tables are missing");
}

#[test]
fn annotations_follow_from_the_effect() {
    for Declared { spec, .. } in all() {
        let hints = spec.annotations();
        let reads = spec.effect <= Effect::ReadSensitive;
        assert_eq!(hints["readOnlyHint"], reads, "{}", spec.name);
        if spec.effect == Effect::Destroy {
            assert_eq!(hints["destructiveHint"], true, "{}", spec.name);
        }
        assert!(!reads || hints["destructiveHint"] == false, "{}", spec.name);
        assert!(!reads || hints["idempotentHint"] == true, "{}", spec.name);
    }
}

/// A client with three tools.
#[derive(Default)]
struct Toy {
    runs: AtomicUsize,
    /// The credential is dead for so many runs.
    locked_out: usize,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Note {
    /// Which.
    name: String,
    /// What to do.
    #[serde(default)]
    write: bool,
}

#[derive(JsonSchema, Serialize)]
struct Noted {
    name: String,
}

impl Output for Noted {
    fn text(&self) -> Option<String> {
        Some(format!("noted {}", self.name))
    }
}

struct Take;

impl Tool for Take {
    const SPEC: Spec = Spec {
        group: "notes",
        name: "note.take",
        title: "Take a note",
        summary: "Take a note.",
        details: "",
        effect: Effect::Write,
        overwrites: false,
        idempotent: false,
        open_world: false,
    };
    type Client = Toy;
    type Args = Note;
    type Output = Noted;
    const LOWEST: Effect = Effect::Read;

    fn effect(args: &Note) -> Effect {
        if args.write { Effect::Write } else { Effect::Read }
    }

    async fn call(toy: &Toy, on: &On<'_>, args: Note) -> Result<Noted, Failure> {
        let run = toy.runs.fetch_add(1, Ordering::Relaxed);
        if run < toy.locked_out {
            if args.write {
                on.changed();
            }
            return Err(Failure::new(Trouble::LockedOut, "the key does not fit"));
        }
        on.announce(&format!("toy://{}", args.name));
        Ok(Noted { name: args.name })
    }
}

struct Sleep;

impl Tool for Sleep {
    const SPEC: Spec = Spec { name: "note.sleep", group: "slow", ..Take::SPEC };
    type Client = Toy;
    type Args = Note;
    type Output = Noted;

    async fn call(_: &Toy, _: &On<'_>, _: Note) -> Result<Noted, Failure> {
        std::future::pending().await
    }
}

#[async_trait]
impl Client for Toy {
    const TITLE: &'static str = "Toy";
    const TOOLS: &'static [Entry<Toy>] = &[Entry::of::<Take>(), Entry::of::<Sleep>()];

    fn instructions(&self) -> Option<String> {
        Some("Play.".to_owned())
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(50)
    }

    fn healthy(&self) -> bool {
        true
    }

    fn has_resources(&self) -> bool {
        true
    }

    fn sensitivity(&self, uri: &str) -> Effect {
        if uri.ends_with("secret") { Effect::ReadSensitive } else { Effect::Read }
    }

    async fn resources(&self, _: &On<'_>) -> Result<Vec<Resource>, Failure> {
        let (uri, name) = ("toy://a".to_owned(), "a".to_owned());
        Ok(vec![Resource { uri, name, description: "A.".to_owned(), mime_type: "text/plain" }])
    }

    async fn read(&self, _: &On<'_>, uri: &str) -> Result<Contents, Failure> {
        match uri {
            "toy://a" => Ok(Contents { mime_type: "text/plain", text: "A".to_owned() }),
            _ => Err(Failure::missing("there is no such resource")),
        }
    }

    fn may_watch(&self, _: Option<&Principal>, uri: &str) -> bool {
        !uri.contains("secret")
    }

    fn prompts(&self) -> &'static [Prompt] {
        const ARGUMENTS: &[PromptArgument] = &[PromptArgument { name: "name", description: "Which.", required: true }];
        &[Prompt { name: "note", title: "Note", description: "Takes a note.", arguments: ARGUMENTS }]
    }

    fn prompt(&self, _: &str, arguments: &BTreeMap<String, String>) -> Result<Prompted, Failure> {
        Ok(Prompted { text: format!("Note {}.", arguments["name"]), ..Prompted::default() })
    }

    async fn complete(&self, _: &On<'_>, _: &Reference, _: &str, typed: &str) -> Vec<String> {
        (0..150).map(|number| format!("{typed}{number}")).collect()
    }
}

fn toy(toy: Toy, selection: &Selection) -> BuiltIn<Toy> {
    BuiltIn::new(&"toy".into(), toy, selection)
}

/// A permit for this message, as the spine would have it.
fn permit(backend: &BuiltIn<Toy>, method: Method, params: Value) -> Permit {
    let message = Message::modern(Id::from_json("7").unwrap(), method, Bytes::from(params.to_string())).unwrap();
    let name = params["name"].as_str().unwrap_or_default();
    let decl = backend.catalog().tools.get(name).cloned();
    let decl = decl.unwrap_or_else(|| Arc::new(Decl::plain(Kind::Backend, "toy".into(), "toy", Effect::Read)));
    let (effect, action) = (decl.effect, Action::Call);
    let operation = Operation::Post(message);
    Permit::for_tests(Call { action, decl, effect, operation, session: None, version: None })
}

fn meta(mut params: Value) -> Value {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    params
}

async fn ask(backend: &BuiltIn<Toy>, method: Method, params: Value) -> (u16, Value) {
    let permit = permit(backend, method, meta(params));
    let credential = credentials::own(&credentials::Config::None);
    let answer = backend.call(permit, credential, Instant::now() + Duration::from_secs(10)).await.unwrap();
    let Content::Json(body) = answer.content else { panic!("no JSON") };
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&body["jsonrpc"], &body["id"]), (&json!("2.0"), &json!(7)));
    (answer.status, body)
}

#[tokio::test]
async fn a_client_with_a_table_is_an_mcp_server() {
    let backend = toy(Toy::default(), &Selection::default());
    let (_, discovered) = ask(&backend, Method::ServerDiscover, json!({})).await;
    let capabilities = &discovered["result"]["capabilities"];
    assert_eq!(
        capabilities,
        &json!({ "tools": {}, "resources": { "subscribe": true }, "prompts": {}, "completions": {} })
    );
    let (_, listed) = ask(&backend, Method::ToolsList, json!({})).await;
    let names: Vec<_> = listed["result"]["tools"].as_array().unwrap().iter().map(|tool| tool["name"].clone()).collect();
    assert_eq!(names, ["note.take", "note.sleep"]);
    assert_eq!(listed["result"]["resultType"], "complete");
    let (_, called) =
        ask(&backend, Method::ToolsCall, json!({ "name": "note.take", "arguments": { "name": "x" } })).await;
    assert_eq!(called["result"]["content"][0]["text"], "noted x");
    assert_eq!(called["result"]["structuredContent"], json!({ "name": "x" }));
    assert_eq!(called["result"]["isError"], false);
    let (_, read) = ask(&backend, Method::ResourcesRead, json!({ "uri": "toy://a" })).await;
    assert_eq!(read["result"]["contents"][0]["text"], "A");
    let (status, missing) = ask(&backend, Method::ResourcesRead, json!({ "uri": "toy://b" })).await;
    assert_eq!((status, &missing["error"]["code"]), (400, &json!(-32602)));
    let (_, prompt) = ask(&backend, Method::PromptsGet, json!({ "name": "note", "arguments": { "name": "x" } })).await;
    assert_eq!(prompt["result"]["messages"][0]["content"]["text"], "Note x.");
    for arguments in [json!({}), json!({ "name": "x", "more": "y" })] {
        let (status, _) = ask(&backend, Method::PromptsGet, json!({ "name": "note", "arguments": arguments })).await;
        assert_eq!(status, 400);
    }
    let of = json!({ "ref": { "type": "ref/prompt", "name": "note" }, "argument": { "name": "name", "value": "v" } });
    let (_, completed) = ask(&backend, Method::CompletionComplete, of).await;
    let completion = &completed["result"]["completion"];
    assert_eq!((completion["values"].as_array().unwrap().len(), &completion["hasMore"]), (100, &json!(true)));
    let (status, cursor) = ask(&backend, Method::ToolsList, json!({ "cursor": "made up" })).await;
    assert_eq!((status, &cursor["error"]["code"]), (400, &json!(-32602)));
}

#[tokio::test]
async fn arguments_that_are_not_the_tools_are_a_tool_error() {
    let backend = toy(Toy::default(), &Selection::default());
    for arguments in [json!({}), json!({ "name": 7 }), json!({ "name": "x", "more": "hunter2" })] {
        let (status, said) =
            ask(&backend, Method::ToolsCall, json!({ "name": "note.take", "arguments": arguments })).await;
        assert_eq!((status, &said["result"]["isError"]), (200, &json!(true)), "{said}");
        assert_eq!(said["result"]["_meta"]["io.wardgate/failure"]["kind"], "arguments");
        assert!(!said.to_string().contains("hunter2"));
    }
    assert_eq!(backend.client.runs.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_tool_that_takes_too_long_is_ended_and_says_that_it_may_have_been_carried_out() {
    let backend = toy(Toy::default(), &Selection::default());
    let (_, said) =
        ask(&backend, Method::ToolsCall, json!({ "name": "note.sleep", "arguments": { "name": "x" } })).await;
    assert_eq!(said["result"]["_meta"]["io.wardgate/failure"], json!({ "kind": "timeout", "retryable": true }));
    assert!(said["result"]["content"][0]["text"].as_str().unwrap().contains("look before you repeat"), "{said}");
}

#[test]
fn groups_and_tools_are_switched_and_names_are_written_as_configured() {
    let glob = |text: &str| globset::Glob::new(text).unwrap().compile_matcher();
    let names = |selection: &Selection| {
        let backend = toy(Toy::default(), selection);
        backend.catalog().tools.keys().map(|name| name.to_string()).collect::<BTreeSet<_>>()
    };
    let groups = |groups: &[&str]| Some(groups.iter().map(|group| (*group).to_owned()).collect());
    assert_eq!(
        names(&Selection { groups: groups(&["notes"]), ..Selection::default() }),
        ["note.take".to_owned()].into()
    );
    let underscored = Selection { names: Names::Underscored, disable: vec![glob("note.sleep")], groups: None };
    assert_eq!(names(&underscored), ["note_take".to_owned()].into());
    let by_shown = Selection { names: Names::Underscored, disable: vec![glob("note_s*")], groups: None };
    assert_eq!(names(&by_shown), ["note_take".to_owned()].into());
    assert!(names(&Selection { groups: groups(&[]), ..Selection::default() }).is_empty());
}

#[test]
fn the_effect_of_a_call_follows_its_arguments_and_never_rises() {
    let backend = toy(Toy::default(), &Selection::default());
    let decl = backend.catalog().tools["note.take"].clone();
    let effect = |text: &'static str| decl.effect_of(Some(&Bytes::from_static(text.as_bytes())));
    assert_eq!(effect(r#"{"name":"x"}"#), Effect::Read);
    assert_eq!(effect(r#"{"name":"x","write":true}"#), Effect::Write);
    assert_eq!(effect(r#"{"nonsense":1}"#), Effect::Write, "what cannot be read is judged as the highest");
    assert_eq!(decl.effects(), [Effect::Read, Effect::ReadSensitive, Effect::Write]);
    assert!(backend.catalog().tools["note.sleep"].varies.is_none(), "where nothing varies, nothing is asked");
    assert_eq!(backend.plain(Kind::Resource, "toy://secret").effect, Effect::ReadSensitive);
    assert_eq!(backend.plain(Kind::Resource, "toy://a").effect, Effect::Read);
}

#[tokio::test]
async fn a_subscriber_hears_of_what_it_may_watch_and_of_nothing_else() {
    let backend = toy(Toy::default(), &Selection::default());
    let uris = json!(["toy://x", "toy://folder/", "toy://secret"]);
    let permit = permit(
        &backend,
        Method::SubscriptionsListen,
        meta(json!({ "notifications": { "resourceSubscriptions": uris } })),
    );
    let credential = credentials::own(&credentials::Config::None);
    let answer = backend.call(permit, credential, Instant::now() + Duration::from_secs(10)).await.unwrap();
    let Content::Events(mut events) = answer.content else { panic!("no stream") };
    let mut next = async || -> Value {
        let event = events.next().await.unwrap().unwrap();
        serde_json::from_slice(&event.data.unwrap()).unwrap()
    };
    let first = next().await;
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
    assert_eq!(first["params"]["notifications"], json!({ "resourceSubscriptions": ["toy://x", "toy://folder/"] }));
    for name in ["secret", "other", "folder/in", "x"] {
        let arguments = json!({ "name": "note.take", "arguments": { "name": name } });
        ask(&backend, Method::ToolsCall, arguments).await;
    }
    for expected in ["toy://folder/", "toy://x"] {
        let news = next().await;
        assert_eq!(
            (&news["method"], &news["params"]["uri"]),
            (&json!("notifications/resources/updated"), &json!(expected))
        );
        assert_eq!(news["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], 7);
    }
}

#[tokio::test]
async fn a_fixed_credential_that_is_dead_is_a_tool_error() {
    let backend = toy(Toy { locked_out: 9, ..Toy::default() }, &Selection::default());
    let (_, said) =
        ask(&backend, Method::ToolsCall, json!({ "name": "note.take", "arguments": { "name": "x" } })).await;
    assert_eq!(said["result"]["_meta"]["io.wardgate/failure"]["kind"], "unauthenticated");
    assert_eq!(backend.client.runs.load(Ordering::Relaxed), 1, "there is no other credential to try");
}
