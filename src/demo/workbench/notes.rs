//! `Notes`: the workbench's tools, resources and prompt over a handful of notes in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::time::Duration;

use rmcp::ErrorData;
use rmcp::RoleServer;
use rmcp::ServerHandler;
use rmcp::handler::server::router::tool::ToolRouter;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::CallToolResult;
use rmcp::model::ContentBlock;
use rmcp::model::GetPromptRequestParams;
use rmcp::model::GetPromptResponse;
use rmcp::model::GetPromptResult;
use rmcp::model::Implementation;
use rmcp::model::ListPromptsResult;
use rmcp::model::ListResourceTemplatesResult;
use rmcp::model::ListResourcesResult;
use rmcp::model::PaginatedRequestParams;
use rmcp::model::ProgressNotificationParam;
use rmcp::model::Prompt;
use rmcp::model::PromptArgument;
use rmcp::model::PromptMessage;
use rmcp::model::ReadResourceRequestParams;
use rmcp::model::ReadResourceResponse;
use rmcp::model::ReadResourceResult;
use rmcp::model::Resource;
use rmcp::model::ResourceContents;
use rmcp::model::ResourceTemplate;
use rmcp::model::Role;
use rmcp::model::ServerCapabilities;
use rmcp::model::ServerConfig;
use rmcp::service::RequestContext;
use rmcp::tool;
use rmcp::tool_handler;
use rmcp::tool_router;
use schemars::JsonSchema;
use serde::Deserialize;

const NOTES_MAX: usize = 100;
const NOTE_BYTES_MAX: usize = 16 * 1024;
const ID_BYTES_MAX: usize = 64;
const COUNT_MAX: u32 = 20;
const PAUSE_MS_MAX: u64 = 1000;
const SCHEME: &str = "note://";

/// The notes everybody finds at first.
const PREFILLED: [(&str, &str); 3] = [
    ("welcome", "Welcome to the workbench. Every call you make here came through Wardgate."),
    ("shopping", "Oat milk, rye bread, two lemons, and the good olives."),
    ("ideas", "Teach the espresso machine to speak MCP, read-only of course."),
];

#[derive(Clone)]
pub(super) struct Notes {
    texts: Arc<RwLock<BTreeMap<String, String>>>,
    tools: ToolRouter<Notes>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Named {
    /// The note's id, for example `welcome`.
    id: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Written {
    /// Lower-case letters, digits and hyphens, at most 64.
    id: String,
    /// What the note says, at most 16 KiB.
    text: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Counted {
    /// Where to stop, 1 to 20.
    to: u32,
    /// Milliseconds between two numbers, at most 1000; 100 if not given.
    pause_ms: Option<u64>,
}

impl Notes {
    pub(super) fn prefilled() -> Notes {
        let texts = PREFILLED.into_iter().map(|(id, text)| (id.to_owned(), text.to_owned())).collect();
        Notes { texts: Arc::new(RwLock::new(texts)), tools: Notes::tool_router() }
    }

    fn read(&self, id: &str) -> Option<String> {
        self.texts.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// All changes go through here, so nobody holds the lock across an await.
    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<String, String>) -> T) -> T {
        change(&mut self.texts.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn ids(&self) -> Vec<String> {
        self.texts.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

#[tool_router]
impl Notes {
    /// Lists the notes: one id per line, with the beginning of its text.
    #[tool(annotations(title = "List notes", read_only_hint = true, open_world_hint = false))]
    async fn list_notes(&self) -> CallToolResult {
        let line = |id: String| {
            let text = self.read(&id).unwrap_or_default();
            format!("{id}: {}", text.chars().take(60).collect::<String>())
        };
        let lines: Vec<String> = self.ids().into_iter().map(line).collect();
        said(if lines.is_empty() { "there are no notes".to_owned() } else { lines.join("\n") })
    }

    /// Reads one note.
    #[tool(annotations(title = "Read a note", read_only_hint = true, open_world_hint = false))]
    async fn read_note(&self, Parameters(Named { id }): Parameters<Named>) -> CallToolResult {
        self.read(&id).map_or_else(|| no_such(&id), said)
    }

    /// Writes a new note. A note that exists already is left alone.
    #[tool(annotations(
        title = "Write a note",
        read_only_hint = false,
        destructive_hint = false,
        open_world_hint = false
    ))]
    async fn write_note(&self, Parameters(Written { id, text }): Parameters<Written>) -> CallToolResult {
        let well_named = !id.is_empty() && id.len() <= ID_BYTES_MAX;
        if !well_named || !id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
            return failed("an id is 1 to 64 lower-case letters, digits and hyphens");
        }
        if text.len() > NOTE_BYTES_MAX {
            return failed("the text is longer than 16 KiB");
        }
        self.change(|texts| {
            if texts.contains_key(&id) {
                return failed(&format!("note `{id}` exists already; use append_note"));
            }
            if texts.len() >= NOTES_MAX {
                return failed("there are 100 notes already; delete one first");
            }
            let words = format!("wrote note `{id}` ({} bytes)", text.len());
            texts.insert(id, text);
            said(words)
        })
    }

    /// Adds a line at the end of a note.
    #[tool(annotations(
        title = "Append to a note",
        read_only_hint = false,
        destructive_hint = false,
        open_world_hint = false
    ))]
    async fn append_note(&self, Parameters(Written { id, text }): Parameters<Written>) -> CallToolResult {
        self.change(|texts| {
            let Some(note) = texts.get_mut(&id) else { return no_such(&id) };
            if note.len() + 1 + text.len() > NOTE_BYTES_MAX {
                return failed("the note would be longer than 16 KiB");
            }
            note.push('\n');
            note.push_str(&text);
            said(format!("note `{id}` has {} bytes now", note.len()))
        })
    }

    /// Deletes one note for good.
    #[tool(annotations(
        title = "Delete a note",
        read_only_hint = false,
        destructive_hint = true,
        open_world_hint = false
    ))]
    async fn delete_note(&self, Parameters(Named { id }): Parameters<Named>) -> CallToolResult {
        match self.change(|texts| texts.remove(&id)) {
            Some(_) => said(format!("deleted note `{id}`")),
            None => no_such(&id),
        }
    }

    /// Deletes all notes for good.
    #[tool(annotations(
        title = "Wipe all notes",
        read_only_hint = false,
        destructive_hint = true,
        open_world_hint = false
    ))]
    async fn wipe_notes(&self) -> CallToolResult {
        let count = self.change(|texts| std::mem::take(texts).len());
        said(format!("deleted all {count} notes"))
    }

    /// Counts from one, slowly, and reports its progress on the way.
    #[tool(annotations(title = "Count slowly", read_only_hint = true, open_world_hint = false))]
    async fn count_slowly(
        &self,
        Parameters(Counted { to, pause_ms }): Parameters<Counted>,
        context: RequestContext<RoleServer>,
    ) -> CallToolResult {
        let pause = Duration::from_millis(pause_ms.unwrap_or(100));
        if !(1..=COUNT_MAX).contains(&to) || pause > Duration::from_millis(PAUSE_MS_MAX) {
            return failed("count to 1 to 20, with at most 1000 ms between two numbers");
        }
        let progress_token = context.meta.get_progress_token();
        for number in 1..=to {
            if context.ct.is_cancelled() {
                return failed(&format!("cancelled before {number}"));
            }
            if let Some(token) = &progress_token {
                let progress = ProgressNotificationParam::new(token.clone(), f64::from(number))
                    .with_total(f64::from(to))
                    .with_message(format!("{number}"));
                if context.peer.notify_progress(progress).await.is_err() {
                    return failed("nobody listens any more");
                }
            }
            if number < to {
                tokio::time::sleep(pause).await;
            }
        }
        said(format!("counted to {to}"))
    }
}

#[tool_handler(router = self.tools)]
impl ServerHandler for Notes {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().enable_resources().enable_prompts().build();
        ServerConfig::new(capabilities)
            .with_server_info(Implementation::new("wardgate-workbench", env!("CARGO_PKG_VERSION")))
            .with_instructions(
                "A few notes in memory: list, read, write, append, delete, wipe. They are gone when the demo ends.",
            )
    }

    async fn list_resources(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let resource = |id: String| Resource::new(format!("{SCHEME}{id}"), id).with_mime_type("text/plain");
        Ok(ListResourcesResult::with_all_items(self.ids().into_iter().map(resource).collect()))
    }

    async fn list_resource_templates(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let template = ResourceTemplate::new("note://{id}", "note")
            .with_description("The text of one note.")
            .with_mime_type("text/plain");
        Ok(ListResourceTemplatesResult::with_all_items(vec![template]))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let text = request.uri.strip_prefix(SCHEME).and_then(|id| self.read(id));
        let Some(text) = text else {
            let data = serde_json::json!({ "uri": request.uri });
            return Err(ErrorData::resource_not_found("Resource not found", Some(data)));
        };
        Ok(ReadResourceResult::new(vec![ResourceContents::text(text, request.uri)]).into())
    }

    async fn list_prompts(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        let id = PromptArgument::new("id").with_description("The note to summarise.").with_required(true);
        let prompt = Prompt::new("summarise", Some("Summarise one note in a sentence."), Some(vec![id]));
        Ok(ListPromptsResult::with_all_items(vec![prompt]))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        if request.name != "summarise" {
            return Err(ErrorData::invalid_params("unknown prompt", None));
        }
        let id = request.arguments.as_ref().and_then(|arguments| arguments.get("id")).and_then(|id| id.as_str());
        let Some(text) = id.and_then(|id| self.read(id)) else {
            return Err(ErrorData::invalid_params("`id` must name a note", None));
        };
        let words = format!("Summarise this note in one sentence:\n\n{text}");
        Ok(GetPromptResult::new(vec![PromptMessage::new_text(Role::User, words)]).into())
    }
}

fn said(words: String) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(words)])
}

/// A failure the model should read, so no protocol error.
fn failed(words: &str) -> CallToolResult {
    CallToolResult::error(vec![ContentBlock::text(words)])
}

fn no_such(id: &str) -> CallToolResult {
    failed(&format!("there is no note `{id}`"))
}
