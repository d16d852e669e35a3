//! Drives the official Rust SDK's client through a cell's steps, as `tests/real/drive.py` does with Python's (see there).

use std::fmt::Display;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use rmcp::ClientHandler;
use rmcp::ClientLifecycleMode;
use rmcp::ClientServiceExt;
use rmcp::ErrorData;
use rmcp::RoleClient;
use rmcp::model::CallToolRequestParams;
use rmcp::model::CallToolResult;
use rmcp::model::ClientConfig;
use rmcp::model::ElicitRequestParams;
use rmcp::model::ElicitResult;
use rmcp::model::ElicitationAction;
use rmcp::model::GetPromptRequestParams;
use rmcp::model::PaginatedRequestParams;
use rmcp::model::ProgressNotificationParam;
use rmcp::model::ProtocolVersion;
use rmcp::model::ReadResourceRequestParams;
use rmcp::model::ResourceContents;
use rmcp::model::ResourceUpdatedNotificationParam;
use rmcp::model::ServerNotification;
use rmcp::model::SubscribeRequestParams;
use rmcp::model::SubscriptionFilter;
use rmcp::model::UnsubscribeRequestParams;
use rmcp::service::NotificationContext;
use rmcp::service::RequestContext;
use rmcp::service::RunningService;
use rmcp::service::ServiceError;
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use serde_json::Value;
use serde_json::json;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::timeout;

const STEP: Duration = Duration::from_secs(30);
const UPDATE: Duration = Duration::from_secs(12);
const POLL: Duration = Duration::from_millis(100);

/// Why a step is not as wanted.
enum Failure {
    /// The server answered with an error.
    Answered(ErrorData),
    Wrong(String),
}

impl From<ServiceError> for Failure {
    fn from(error: ServiceError) -> Failure {
        match error {
            ServiceError::McpError(error) => Failure::Answered(error),
            other => Failure::Wrong(other.to_string()),
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Answered(error) => write!(f, "error {}: {}", error.code.0, error.message),
            Failure::Wrong(words) => f.write_str(words),
        }
    }
}

type Outcome<T = ()> = Result<T, Failure>;

fn wrong<T>(words: impl Into<String>) -> Outcome<T> {
    Err(Failure::Wrong(words.into()))
}

fn has(text: &str, wanted: &Value) -> Outcome {
    let wanted = wanted.as_str().unwrap_or_default();
    if text.contains(wanted) { Ok(()) } else { wrong(format!("{wanted:?} is not in {text:?}")) }
}

/// What a client has seen besides answers.
#[derive(Clone, Default)]
struct Seen {
    legacy: bool,
    asked: Arc<Mutex<usize>>,
    progress: Arc<Mutex<Vec<f64>>>,
    updates: Arc<Mutex<Vec<String>>>,
}

impl ClientHandler for Seen {
    fn get_info(&self) -> ClientConfig {
        let mut config = ClientConfig::default();
        config.capabilities.elicitation = Some(rmcp::model::ElicitationCapability::default());
        if self.legacy {
            config.protocol_version = ProtocolVersion::V_2025_11_25;
        }
        config
    }

    async fn create_elicitation(
        &self,
        request: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        *self.asked.lock().unwrap() += 1;
        let form = serde_json::to_value(&request).unwrap_or_default();
        let fields = form["requestedSchema"]["properties"].as_object().cloned().unwrap_or_default();
        let required = form["requestedSchema"]["required"].as_array().cloned();
        let wanted = |name: &str| required.as_ref().is_none_or(|required| required.contains(&json!(name)));
        let content: serde_json::Map<_, _> =
            fields.iter().filter(|(name, _)| wanted(name)).map(|(name, field)| (name.clone(), fill(field))).collect();
        let mut result = ElicitResult::new(ElicitationAction::Accept);
        result.content = Some(content.into());
        Ok(result)
    }

    async fn on_progress(&self, params: ProgressNotificationParam, _context: NotificationContext<RoleClient>) {
        self.progress.lock().unwrap().push(params.progress);
    }

    async fn on_resource_updated(
        &self,
        params: ResourceUpdatedNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        self.updates.lock().unwrap().push(params.uri);
    }
}

/// A value for a field of a form.
fn fill(field: &Value) -> Value {
    if let Some(value) = field.get("default") {
        return value.clone();
    }
    match field["type"].as_str() {
        _ if field["enum"].is_array() => field["enum"][0].clone(),
        Some("integer") => json!(7),
        Some("number") => json!(7.5),
        Some("boolean") => json!(true),
        _ => json!("Alice"),
    }
}

struct Driven {
    client: RunningService<RoleClient, Seen>,
    seen: Seen,
}

/// Runs the steps of a cell; gives the lines that `drive.py` prints.
pub async fn drive(cell: &Value) -> Vec<Value> {
    let mut lines = Vec::new();
    let mut out = |step: &str, outcome: Outcome| {
        let detail = outcome.as_ref().err().map(ToString::to_string).unwrap_or_default();
        lines.push(json!({ "cell": cell["cell"], "step": step, "ok": outcome.is_ok(), "detail": detail }));
    };
    let driven = match timeout(STEP, open(cell)).await {
        Ok(Ok(driven)) => driven,
        Ok(Err(failure)) => {
            out("connect", Err(failure));
            return lines;
        }
        Err(_) => {
            out("connect", wrong("nothing within 30 s"));
            return lines;
        }
    };
    out("connect", Ok(()));
    for step in cell["plan"].as_array().unwrap() {
        let outcome = timeout(STEP, driven.step(step)).await.unwrap_or_else(|_| wrong("nothing within 30 s"));
        out(step["step"].as_str().unwrap(), outcome);
    }
    // Closing tells the server; what it says to that is not a step.
    let _ = timeout(STEP, driven.client.cancel()).await;
    lines
}

async fn open(cell: &Value) -> Outcome<Driven> {
    let legacy = cell["mode"] == "legacy";
    let mut config = StreamableHttpClientTransportConfig::with_uri(cell["url"].as_str().unwrap());
    config.auth_header = cell["token"].as_str().map(str::to_owned);
    let transport = StreamableHttpClientTransport::with_client(crate::harness::client(), config);
    let lifecycle = if legacy {
        ClientLifecycleMode::Initialize
    } else {
        ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
    };
    let seen = Seen { legacy, ..Seen::default() };
    match seen.clone().serve_with_lifecycle(transport, lifecycle).await {
        Ok(client) => Ok(Driven { client, seen }),
        Err(error) => wrong(error.to_string()),
    }
}

impl Driven {
    async fn step(&self, step: &Value) -> Outcome {
        if let Some(lacks) = step["lacks"].as_str() {
            let peer = self.client.peer_info().map(|info| serde_json::to_value(&info.capabilities).unwrap_or_default());
            if peer.unwrap_or_default().get(lacks).is_some() {
                return wrong(format!("it announces {lacks}"));
            }
        }
        let outcome = self.act(step).await;
        if step["refused"] != true {
            return outcome;
        }
        match outcome {
            Ok(()) => wrong("it was answered, not refused"),
            Err(Failure::Answered(_)) => Ok(()),
            other => other,
        }
    }

    async fn act(&self, step: &Value) -> Outcome {
        match step["step"].as_str().unwrap() {
            "list" => self.list(step).await,
            "call" => self.called(step).await,
            "progress" => self.progress(step).await,
            "elicit" => self.elicit(step).await,
            "read" => self.read(step).await,
            "prompt" => self.prompt(step).await,
            "subscribe" => self.subscribe(step).await,
            "cancel" => self.cancel(step).await,
            other => panic!("no such step: {other}"),
        }
    }

    async fn call(&self, step: &Value) -> Outcome<CallToolResult> {
        let mut params = CallToolRequestParams::new(step["tool"].as_str().unwrap().to_owned());
        params.arguments = step["args"].as_object().cloned();
        Ok(self.client.call_tool(params).await?)
    }

    async fn called(&self, step: &Value) -> Outcome {
        let result = self.call(step).await?;
        if result.is_error == Some(true) {
            return wrong(format!("the tool failed: {}", text_of(&result)));
        }
        has(&text_of(&result), &step["text"])
    }

    async fn list(&self, step: &Value) -> Outcome {
        let prefix = step["prefix"].as_str().unwrap();
        let (must, may) = (strings(&step["must"]), strings(&step["may"]));
        let listed: Vec<String> =
            self.client.list_all_tools().await?.into_iter().map(|tool| tool.name.to_string()).collect();
        let seen: Vec<_> = listed.iter().filter(|name| name.starts_with(prefix)).cloned().collect();
        let missing: Vec<_> = must.iter().filter(|name| !seen.contains(name)).collect();
        let extra: Vec<_> = seen.iter().filter(|name| !must.contains(name) && !may.contains(name)).collect();
        if missing.is_empty() && extra.is_empty() {
            return Ok(());
        }
        wrong(format!("missing {missing:?}, not expected {extra:?}, {} listed", listed.len()))
    }

    async fn progress(&self, step: &Value) -> Outcome {
        self.seen.progress.lock().unwrap().clear();
        self.called(step).await?;
        // Notifications are handed over beside the answer: the last of them may be seen after it.
        let least = step["least"].as_u64().unwrap();
        let seen = || self.seen.progress.lock().unwrap().clone();
        for _ in 0..20 {
            if seen().len() as u64 >= least {
                break;
            }
            sleep(POLL).await;
        }
        let seen = seen();
        let rises = seen.windows(2).all(|pair| pair[0] < pair[1]);
        if seen.len() as u64 >= least && rises {
            return Ok(());
        }
        wrong(format!("progress {seen:?}, wanted {} that rise", step["least"]))
    }

    async fn elicit(&self, step: &Value) -> Outcome {
        let before = *self.seen.asked.lock().unwrap();
        self.called(step).await?;
        if *self.seen.asked.lock().unwrap() > before { Ok(()) } else { wrong("the client was never asked") }
    }

    async fn read(&self, step: &Value) -> Outcome {
        let uri = step["uri"].as_str().unwrap();
        let result = self.client.read_resource(ReadResourceRequestParams::new(uri)).await?;
        let text: Vec<_> = result
            .contents
            .iter()
            .map(|one| match one {
                ResourceContents::TextResourceContents { text, .. } => text.clone(),
                _ => "[blob]".to_owned(),
            })
            .collect();
        has(&text.join("\n"), &step["text"])?;
        if step["listed"] != true {
            return Ok(());
        }
        let listed: Vec<_> = self.client.list_all_resources().await?.into_iter().map(|one| one.uri.clone()).collect();
        if listed.iter().any(|known| known == uri) { Ok(()) } else { wrong(format!("not listed among {listed:?}")) }
    }

    async fn prompt(&self, step: &Value) -> Outcome {
        let name = step["name"].as_str().unwrap();
        let mut params = GetPromptRequestParams::new(name);
        params.arguments = step["args"].as_object().cloned();
        let result = self.client.get_prompt(params).await?;
        let first = result.messages.first().and_then(|message| message.content.as_text());
        has(first.map_or("", |text| text.text.as_str()), &step["text"])?;
        if step["listed"] != true {
            return Ok(());
        }
        let listed = self.client.list_prompts(Some(PaginatedRequestParams::default())).await?.prompts;
        if listed.iter().any(|known| known.name == name) { Ok(()) } else { wrong("it is not listed") }
    }

    #[expect(deprecated, reason = "legacy servers know no other subscription")]
    async fn subscribe(&self, step: &Value) -> Outcome {
        let uri = step["uri"].as_str().unwrap();
        if self.seen.legacy {
            self.client.subscribe(SubscribeRequestParams::new(uri)).await?;
            if step["refused"] == true {
                return Ok(());
            }
            self.updated(step, uri).await?;
            self.client.unsubscribe(UnsubscribeRequestParams::new(uri)).await?;
            return Ok(());
        }
        let mut listening =
            self.client.listen(SubscriptionFilter::builder().resource_subscription(uri).build()).await?;
        let honored = listening.acknowledged().resource_subscriptions.clone().unwrap_or_default();
        if !honored.iter().any(|known| known == uri) {
            return Err(Failure::Answered(ErrorData::invalid_params("left out of what the server acknowledges", None)));
        }
        let updates = Arc::clone(&self.seen.updates);
        let gathered = tokio::spawn(async move {
            while let Ok(Some(notification)) = listening.next().await {
                if let ServerNotification::ResourceUpdatedNotification(update) = notification {
                    updates.lock().unwrap().push(update.params.uri);
                }
            }
        });
        let outcome = if step["refused"] == true { Ok(()) } else { self.updated(step, uri).await };
        gathered.abort();
        outcome
    }

    async fn updated(&self, step: &Value, uri: &str) -> Outcome {
        let deadline = Instant::now() + UPDATE;
        let mut again = Instant::now();
        while !self.seen.updates.lock().unwrap().iter().any(|known| known == uri) {
            let now = Instant::now();
            if now > deadline {
                return wrong(format!("no update of {uri} within 12 s"));
            }
            if now >= again {
                again = if step["again"] == true { now + Duration::from_secs(1) } else { deadline + UPDATE };
                self.call(&step["trigger"]).await?;
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    async fn cancel(&self, step: &Value) -> Outcome {
        // A dropped call tells the server.
        if timeout(Duration::from_secs_f64(step["after"].as_f64().unwrap()), self.call(step)).await.is_ok() {
            return wrong("the call ended before it was cancelled");
        }
        if let Some(count) = step.get("count") {
            self.counted(count).await?;
        }
        self.called(&step["then"]).await
    }

    async fn counted(&self, count: &Value) -> Outcome {
        let deadline = Instant::now() + UPDATE;
        loop {
            let text = text_of(&self.call(count).await?);
            if count["text"] == text.trim() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return wrong(format!("the server never heard of it: it says {text:?}"));
            }
            sleep(POLL).await;
        }
    }
}

fn text_of(result: &CallToolResult) -> String {
    let texts: Vec<_> =
        result.content.iter().map(|block| block.as_text().map_or("[other]", |text| text.text.as_str())).collect();
    texts.join("\n")
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect()
}
