//! A real server on the official Rust SDK that speaks the modern era only, and every feature of it that cells use.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use rmcp::ErrorData;
use rmcp::RoleServer;
use rmcp::ServerHandler;
use rmcp::handler::server::router::tool::ToolRouter;
use rmcp::handler::server::tool::InputResponses;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::CallToolResponse;
use rmcp::model::CallToolResult;
use rmcp::model::ContentBlock;
use rmcp::model::ElicitRequest;
use rmcp::model::ElicitRequestParams;
use rmcp::model::GetPromptRequestParams;
use rmcp::model::GetPromptResponse;
use rmcp::model::GetPromptResult;
use rmcp::model::Implementation;
use rmcp::model::InputRequest;
use rmcp::model::InputRequests;
use rmcp::model::InputRequiredResult;
use rmcp::model::ListPromptsResult;
use rmcp::model::ListResourcesResult;
use rmcp::model::PaginatedRequestParams;
use rmcp::model::ProgressNotificationParam;
use rmcp::model::Prompt;
use rmcp::model::PromptMessage;
use rmcp::model::ProtocolVersion;
use rmcp::model::ReadResourceRequestParams;
use rmcp::model::ReadResourceResponse;
use rmcp::model::ReadResourceResult;
use rmcp::model::Resource;
use rmcp::model::ResourceContents;
use rmcp::model::Role;
use rmcp::model::ServerCapabilities;
use rmcp::model::ServerConfig;
use rmcp::model::SubscriptionFilter;
use rmcp::service::RequestContext;
use rmcp::service::SubscriptionContext;
use rmcp::tool;
use rmcp::tool_handler;
use rmcp::tool_router;
use rmcp::transport::streamable_http_server::StreamableHttpServerConfig;
use rmcp::transport::streamable_http_server::StreamableHttpService;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast;

pub const WATCHED: &str = "bench://watched";

/// The running server; its port closes when it is dropped.
pub struct ModernServer {
    pub url: String,
    task: tokio::task::JoinHandle<()>,
}

impl ModernServer {
    pub async fn start() -> ModernServer {
        let bench = Bench { cancelled: Arc::default(), updates: broadcast::channel(64).0, tools: Bench::tool_router() };
        let config = StreamableHttpServerConfig::default()
            .with_legacy_session_mode(false)
            .with_stateless_protocol_metadata_required(true);
        let service =
            StreamableHttpService::new(move || Ok(bench.clone()), Arc::<NeverSessionManager>::default(), config);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let router = axum::Router::new().route_service("/mcp", service);
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        ModernServer { url, task }
    }
}

impl Drop for ModernServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Bench {
    /// Labels of cancelled counts.
    cancelled: Arc<Mutex<Vec<String>>>,
    updates: broadcast::Sender<()>,
    tools: ToolRouter<Bench>,
}

#[derive(Deserialize, JsonSchema)]
struct Text {
    text: String,
}

#[derive(Deserialize, JsonSchema)]
struct Count {
    steps: u32,
    pause_ms: u64,
    label: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
struct Label {
    label: String,
}

#[tool_router]
impl Bench {
    /// Returns its text.
    #[tool(annotations(read_only_hint = true))]
    async fn echo(&self, Parameters(Text { text }): Parameters<Text>) -> CallToolResult {
        said(text)
    }

    /// Counts, reports progress, and remembers its label when it is cancelled.
    #[tool(annotations(read_only_hint = true))]
    async fn count(
        &self,
        Parameters(Count { steps, pause_ms, label }): Parameters<Count>,
        context: RequestContext<RoleServer>,
    ) -> CallToolResult {
        let token = context.meta.get_progress_token();
        for step in 1..=steps {
            tokio::select! {
                () = context.ct.cancelled() => {
                    self.cancelled.lock().unwrap().push(label.unwrap_or_default());
                    return said("cancelled".to_owned());
                }
                () = tokio::time::sleep(Duration::from_millis(pause_ms)) => {}
            }
            if let Some(token) = &token {
                let progress = ProgressNotificationParam::new(token.clone(), f64::from(step));
                // Nobody may be listening any more; the cancellation then ends the loop.
                let _ = context.peer.notify_progress(progress.with_total(f64::from(steps))).await;
            }
        }
        said(format!("counted to {steps}"))
    }

    /// How many counts with this label were cancelled.
    #[tool(annotations(read_only_hint = true))]
    async fn cancelled(&self, Parameters(Label { label }): Parameters<Label>) -> CallToolResult {
        let count = self.cancelled.lock().unwrap().iter().filter(|known| **known == label).count();
        said(count.to_string())
    }

    /// Asks the caller's user for a name and greets.
    #[tool(annotations(read_only_hint = true))]
    async fn greet(&self, InputResponses(answers): InputResponses) -> CallToolResponse {
        let answer = answers.as_ref().and_then(|answers| answers.get("name"));
        if let Some(name) = answer.and_then(|answer| answer["content"]["name"].as_str()) {
            return said(format!("Hello, {name}!")).into();
        }
        let schema = json!({ "type": "object", "properties": { "name": { "type": "string" } }, "required": ["name"] });
        let form = ElicitRequestParams::FormElicitationParams {
            meta: None,
            message: "What is your name?".to_owned(),
            requested_schema: serde_json::from_value(schema).unwrap(),
        };
        let mut asked = InputRequests::new();
        asked.insert("name".to_owned(), InputRequest::Elicitation(ElicitRequest::new(form)));
        InputRequiredResult::new(Some(asked), Some("asked".to_owned())).into()
    }

    /// Tells all subscribers that the watched resource has changed.
    #[tool(annotations(read_only_hint = false, destructive_hint = false))]
    async fn touch(&self) -> CallToolResult {
        // Fails only when nobody subscribes.
        let _ = self.updates.send(());
        said("touched".to_owned())
    }
}

fn said(words: String) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(words)])
}

#[tool_handler(router = self.tools)]
impl ServerHandler for Bench {
    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(&[ProtocolVersion::V_2026_07_28])
    }

    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_prompts()
            .enable_resources()
            .enable_resources_subscribe()
            .build();
        ServerConfig::new(capabilities).with_server_info(Implementation::new("modern-bench", "1"))
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.supported_by(&self.get_info().capabilities))
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let mut updates = self.updates.subscribe();
        loop {
            tokio::select! {
                () = context.cancelled() => return Ok(()),
                update = updates.recv() => {
                    if update.is_ok() && context.sink().notify_resource_updated(WATCHED).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn list_resources(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(ListResourcesResult::with_all_items(vec![Resource::new(WATCHED, "watched")]))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        if request.uri != WATCHED {
            return Err(ErrorData::resource_not_found("Resource not found", None));
        }
        Ok(ReadResourceResult::new(vec![ResourceContents::text("what is watched", request.uri)]).into())
    }

    async fn list_prompts(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(ListPromptsResult::with_all_items(vec![Prompt::new("hello", Some("Says hello."), None)]))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        if request.name != "hello" {
            return Err(ErrorData::invalid_params("unknown prompt", None));
        }
        Ok(GetPromptResult::new(vec![PromptMessage::new_text(Role::User, "Say hello.")]).into())
    }
}
