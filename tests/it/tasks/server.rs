//! A real server with tasks on the official Rust SDK: the tools that the conformance suite's scenarios about tasks call.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use rmcp::ErrorData;
use rmcp::RoleServer;
use rmcp::ServerHandler;
use rmcp::model::CallToolRequestParams;
use rmcp::model::CallToolResponse;
use rmcp::model::CallToolResult;
use rmcp::model::CancelTaskParams;
use rmcp::model::ClientCapabilities;
use rmcp::model::ContentBlock;
use rmcp::model::CreateTaskResult;
use rmcp::model::ElicitRequest;
use rmcp::model::ElicitRequestParams;
use rmcp::model::GetTaskParams;
use rmcp::model::GetTaskResult;
use rmcp::model::InputRequest;
use rmcp::model::InputRequests;
use rmcp::model::InputRequiredResult;
use rmcp::model::ListToolsResult;
use rmcp::model::PaginatedRequestParams;
use rmcp::model::ProtocolVersion;
use rmcp::model::ServerCapabilities;
use rmcp::model::ServerConfig;
use rmcp::model::Tool;
use rmcp::model::UpdateTaskParams;
use rmcp::service::RequestContext;
use rmcp::task_manager::TaskContext;
use rmcp::task_manager::TaskExit;
use rmcp::task_manager::TaskFuture;
use rmcp::task_manager::TaskManager;
use rmcp::task_manager::TaskOptions;
use rmcp::transport::streamable_http_server::StreamableHttpServerConfig;
use rmcp::transport::streamable_http_server::StreamableHttpService;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use serde_json::Value;
use serde_json::json;

/// The running server; its port closes when it is dropped.
pub struct TaskServer {
    pub url: String,
    task: tokio::task::JoinHandle<()>,
}

impl TaskServer {
    pub async fn start() -> TaskServer {
        let jobs = Jobs { tasks: TaskManager::new() };
        let config = StreamableHttpServerConfig::default()
            .with_legacy_session_mode(false)
            .with_stateless_protocol_metadata_required(true);
        let service =
            StreamableHttpService::new(move || Ok(jobs.clone()), Arc::<NeverSessionManager>::default(), config);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let router = axum::Router::new().route_service("/mcp", service);
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        TaskServer { url, task }
    }
}

impl Drop for TaskServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Jobs {
    tasks: TaskManager,
}

fn said(words: impl Into<String>) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(words.into())])
}

fn form(message: &str, field: &str, kind: &str) -> InputRequest {
    let schema = json!({ "type": "object", "properties": { field: { "type": kind } }, "required": [field] });
    InputRequest::Elicitation(ElicitRequest::new(ElicitRequestParams::FormElicitationParams {
        meta: None,
        message: message.to_owned(),
        requested_schema: serde_json::from_value(schema).unwrap(),
    }))
}

async fn slow(context: TaskContext, seconds: f64) -> Result<CallToolResult, TaskExit> {
    tokio::select! {
        () = context.cancelled() => Err(TaskExit::Cancelled),
        () = tokio::time::sleep(Duration::from_secs_f64(seconds)) => Ok(said(format!("computed for {seconds} s"))),
    }
}

impl Jobs {
    fn begin(&self, work: impl FnOnce(TaskContext) -> TaskFuture) -> CallToolResponse {
        let options = TaskOptions::new().with_poll_interval_ms(50);
        CallToolResponse::Task(CreateTaskResult::new(self.tasks.spawn(options, work)))
    }
}

impl ServerHandler for Jobs {
    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(&[ProtocolVersion::V_2026_07_28])
    }

    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().enable_tasks().build())
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let tool = |name: &str, reads: bool| -> Tool {
            let hints = json!({ "readOnlyHint": reads, "destructiveHint": false });
            serde_json::from_value(json!({ "name": name, "inputSchema": { "type": "object" }, "annotations": hints }))
                .unwrap()
        };
        Ok(ListToolsResult::with_all_items(vec![
            tool("greet", true),
            tool("slow_compute", false),
            tool("failing_job", false),
            tool("protocol_error_job", false),
            tool("confirm_delete", false),
            tool("multi_input", false),
            tool("test_tool_with_task", false),
        ]))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let declared = context.client_capabilities().is_some_and(|capabilities| capabilities.supports_tasks());
        let arguments = Value::Object(request.arguments.clone().unwrap_or_default());
        let seconds = arguments["seconds"].as_f64().unwrap_or(0.0);
        match &*request.name {
            "greet" => Ok(said(format!("Hello, {}!", arguments["name"].as_str().unwrap_or("you"))).into()),
            "slow_compute" if declared => Ok(self.begin(move |context| Box::pin(slow(context, seconds)))),
            "slow_compute" => {
                tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
                Ok(said("computed at once").into())
            }
            _ if !declared => {
                Err(ErrorData::missing_required_client_capability(ClientCapabilities::builder().enable_tasks().build()))
            }
            "failing_job" => Ok(self
                .begin(|_| Box::pin(async { Ok(CallToolResult::error(vec![ContentBlock::text("the job failed")])) }))),
            "protocol_error_job" => Ok(self.begin(|_| {
                Box::pin(async { Err(TaskExit::Error(ErrorData::internal_error("the server broke", None))) })
            })),
            "confirm_delete" => Ok(self.begin(|context| {
                Box::pin(async move {
                    let answer = context.request_input("confirm", form("Delete it?", "confirm", "boolean")).await?;
                    Ok(said(format!("confirmed: {}", answer["content"]["confirm"])))
                })
            })),
            "multi_input" => Ok(self.begin(|context| {
                Box::pin(async move {
                    let one = context.request_input("one", form("Who?", "name", "string"));
                    let two = context.request_input("two", form("Sure?", "confirm", "boolean"));
                    let (one, two) = tokio::join!(one, two);
                    Ok(said(format!("{} {}", one?["action"], two?["action"])))
                })
            })),
            "test_tool_with_task" => {
                let answers = serde_json::to_value(&request.input_responses).unwrap();
                let Some(name) = answers["user_name"]["content"]["name"].as_str().map(str::to_owned) else {
                    let mut asked = InputRequests::new();
                    asked.insert("user_name".to_owned(), form("Who are you?", "name", "string"));
                    return Ok(InputRequiredResult::new(Some(asked), Some("asked".to_owned())).into());
                };
                Ok(self.begin(move |_| Box::pin(async move { Ok(said(format!("done for {name}"))) })))
            }
            other => Err(ErrorData::invalid_params(format!("unknown tool: {other}"), None)),
        }
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        Ok(GetTaskResult::new(self.tasks.get_task(&request.task_id)?))
    }

    async fn update_task(
        &self,
        request: UpdateTaskParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.tasks.update_task(&request.task_id, request.input_responses)
    }

    async fn cancel_task(
        &self,
        request: CancelTaskParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.tasks.cancel_task(&request.task_id)
    }
}
