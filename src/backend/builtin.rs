//! Built-in backends: MCP servers of our own. Each is a client beside a `const` table of tools, declared once as data.
//!
//! To add a backend: a type that is its [`Client`], a unit struct with a [`Spec`] and typed arguments for each [`Tool`],
//! and `const TOOLS: &[Entry<TheClient>] = &[Entry::of::<TheTool>(), …]`. [`BuiltIn`] makes an MCP server of that: the
//! list entries with their schemas and annotations, what the policy judges, decoding of arguments, text and structured
//! results, tool errors, resources, prompts, completion, subscriptions. Nothing restates what the table says.
//!
//! # Life of a call
//! The spine has judged it and obtained the credential. The arguments are decoded ([`arguments`]), the tool runs until its
//! deadline; dropping the future ends its work. If the credential turns out to be dead before anything was changed, it is
//! renewed once and the tool runs again. What the tool says, good or bad, is an MCP result: a [`Failure`] is a result with
//! `isError`, in words for the model, without secrets.

mod answer;
pub mod arguments;
mod config;
mod failure;
mod news;
pub mod page;
mod selection;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Answer;
use super::Backend;
use super::Error;
use crate::catalog::Catalog;
use crate::catalog::Decl;
use crate::catalog::Effect;
use crate::catalog::Kind;
use crate::catalog::Operation;
use crate::credentials::Credential;
use crate::mcp::Era;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::Reference;
use crate::mcp::list::Entry as Listed;
use crate::policy::Permit;
use crate::principal::Principal;
use crate::secret::Secret;
pub use config::Config;
pub use config::Product;
pub use config::all;
pub use config::declarations;
pub use config::new;
pub use failure::Failure;
pub use failure::Trouble;
use news::News;
pub use selection::Names;
pub use selection::Selection;
pub use table::Declared;
pub use table::Entry;
pub(super) use table::chosen;
pub use table::declared;

/// An answer must arrive before the spine gives up on it: a clear word from us is better than a bare timeout.
const SLACK: Duration = Duration::from_millis(200);

/// What a tool is, as data. No field has a default: every tool must say it.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Which group of the backend's tools it belongs to; groups can be switched off.
    pub group: &'static str,
    /// As the table has it, dots included; how it is shown is the configuration's ([`Names`]).
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// One sentence for the model.
    pub summary: &'static str,
    /// What else the model should know; may be empty.
    pub details: &'static str,
    /// The highest effect that a call of it can have.
    pub effect: Effect,
    /// It replaces what was there: clients are told that it is destructive, although it can be undone.
    pub overwrites: bool,
    /// A second identical call changes nothing more.
    pub idempotent: bool,
    /// It reaches beyond the one system it is configured with.
    pub open_world: bool,
}

impl Spec {
    /// What clients are told beside the schemas: computed, never set.
    pub fn annotations(&self) -> Value {
        let reads = self.effect <= Effect::ReadSensitive;
        serde_json::json!({
            "title": self.title,
            "readOnlyHint": reads,
            "destructiveHint": !reads && (self.effect == Effect::Destroy || self.overwrites),
            "idempotentHint": reads || self.idempotent,
            "openWorldHint": self.open_world,
        })
    }

    /// The whole description.
    pub fn description(&self) -> String {
        if self.details.is_empty() { self.summary.to_owned() } else { format!("{} {}", self.summary, self.details) }
    }
}

/// One tool: a unit struct with a declaration, typed arguments and what it does.
pub trait Tool: 'static {
    const SPEC: Spec;
    type Client: Client;
    /// Gives `inputSchema`; must refuse unknown fields. Doc comments become descriptions.
    type Args: DeserializeOwned + JsonSchema + Send;
    /// Gives `outputSchema` and `structuredContent`.
    type Output: Output;

    /// The lowest effect that a call of it can have, where that depends on the arguments.
    const LOWEST: Effect = Self::SPEC.effect;

    /// The effect of a call with these arguments, from `LOWEST` to `SPEC.effect`.
    fn effect(_args: &Self::Args) -> Effect {
        Self::SPEC.effect
    }

    /// Carries it out.
    fn call(
        client: &Self::Client,
        on: &On<'_>,
        args: Self::Args,
    ) -> impl Future<Output = Result<Self::Output, Failure>> + Send;
}

/// What a tool gives: an object, and the text that is shown for it.
pub trait Output: Serialize + JsonSchema + Send {
    /// Other words than the object as JSON.
    fn text(&self) -> Option<String> {
        None
    }
}

/// What a tool acts with: whose credential, for whom, until when.
pub struct On<'a> {
    credential: &'a Credential,
    caller: Option<&'a Principal>,
    deadline: Instant,
    changed: &'a AtomicBool,
    news: &'a News,
}

impl On<'_> {
    /// The value of the header that opens the upstream.
    pub fn secret(&self) -> Option<&Secret> {
        self.credential.header().map(|(_, value)| value)
    }

    /// Names whose credential it is, where it is one caller's.
    pub fn identity(&self) -> Option<[u8; 32]> {
        self.credential.identity()
    }

    /// Whom the call is for; tests have calls of nobody.
    pub fn caller(&self) -> Option<&Principal> {
        self.caller
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Something has been changed upstream: from now on the call is not begun again.
    pub fn changed(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Tells who subscribed that a resource is not what it was.
    pub fn announce(&self, uri: &str) {
        self.news.announce(uri);
    }
}

/// A resource, as a list has it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource {
    pub uri: String,
    pub name: String,
    pub description: String,
    pub mime_type: &'static str,
}

/// A family of resources.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    pub uri_template: String,
    pub name: String,
    pub description: String,
    pub mime_type: &'static str,
}

/// A resource as it was read.
#[derive(Clone, Debug)]
pub struct Contents {
    pub mime_type: &'static str,
    pub text: String,
}

/// A prompt, as a list has it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Prompt {
    pub name: &'static str,
    pub title: &'static str,
    pub description: &'static str,
    pub arguments: &'static [PromptArgument],
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct PromptArgument {
    pub name: &'static str,
    pub description: &'static str,
    pub required: bool,
}

/// A prompt with its arguments filled in: what the user says, and what may help the client to act on it.
#[derive(Clone, Debug, Default)]
pub struct Prompted {
    pub description: String,
    pub text: String,
    /// Goes into `_meta`; keys as MCP wants them.
    pub meta: BTreeMap<&'static str, Value>,
}

/// What a built-in backend talks to, and what it offers beside tools. Only tools are common to all.
#[async_trait]
pub trait Client: Send + Sync + Sized + 'static {
    /// For people: what this is.
    const TITLE: &'static str;
    /// Every tool there is, whatever the configuration switches off.
    const TOOLS: &'static [Entry<Self>];

    /// What a model should know before it uses any of the tools.
    fn instructions(&self) -> Option<String>;

    /// Is this tool to be had as configured? Groups and single tools that are switched off are left out already.
    fn offers(&self, _spec: &Spec) -> bool {
        true
    }

    /// A call takes no longer than this.
    fn timeout(&self) -> Duration;

    fn healthy(&self) -> bool;

    /// Has it resources at all?
    fn has_resources(&self) -> bool {
        false
    }

    /// How sensitive it is to read a resource.
    fn sensitivity(&self, _uri: &str) -> Effect {
        Effect::Read
    }

    async fn resources(&self, _on: &On<'_>) -> Result<Vec<Resource>, Failure> {
        Ok(Vec::new())
    }

    fn templates(&self) -> Vec<Template> {
        Vec::new()
    }

    async fn read(&self, _on: &On<'_>, _uri: &str) -> Result<Contents, Failure> {
        Err(Failure::missing("there is no such resource"))
    }

    /// May this caller be told of changes of this resource?
    fn may_watch(&self, _caller: Option<&Principal>, _uri: &str) -> bool {
        false
    }

    fn prompts(&self) -> &'static [Prompt] {
        &[]
    }

    fn prompt(&self, _name: &str, _arguments: &BTreeMap<String, String>) -> Result<Prompted, Failure> {
        Err(Failure::missing("there is no such prompt"))
    }

    /// Values for an argument of a prompt or a template that begin with what was typed.
    async fn complete(&self, _on: &On<'_>, _of: &Reference, _argument: &str, _typed: &str) -> Vec<String> {
        Vec::new()
    }

    /// Ends background work, gives back what was lent.
    async fn stop(&self) {}
}

/// An MCP server made of a client and its table. Speaks the modern era; legacy clients come through the gateway's door.
pub struct BuiltIn<C: Client> {
    name: Arc<str>,
    client: C,
    catalog: Arc<Catalog>,
    tools: HashMap<Arc<str>, &'static Entry<C>>,
    /// The entries of `tools/list`, in the order of the table, as one JSON array.
    listed: String,
    news: News,
}

impl<C: Client> BuiltIn<C> {
    pub fn new(name: &Arc<str>, client: C, selection: &Selection) -> BuiltIn<C> {
        let mut catalog = Catalog::default();
        let (mut tools, mut listed) = (HashMap::new(), Vec::new());
        for (entry, decl) in chosen::<C>(name, selection, |spec| client.offers(spec)) {
            listed.push(String::from_utf8_lossy(&decl.wire).into_owned());
            tools.insert(decl.name.clone(), entry);
            catalog.tools.insert(decl.name.clone(), Arc::new(decl));
        }
        BuiltIn {
            name: name.clone(),
            client,
            catalog: Arc::new(catalog),
            tools,
            listed: format!("[{}]", listed.join(",")),
            news: News::new(),
        }
    }

    async fn answer(&self, message: &Message, on: &On<'_>) -> answer::Said {
        let params = &message.params;
        if params.cursor.is_some() {
            return answer::Said::invalid("this cursor is not known here");
        }
        match message.method {
            Some(Method::ServerDiscover) => answer::discovered::<C>(&self.client),
            Some(Method::ToolsList) => answer::list("tools", &self.listed, true),
            Some(Method::ToolsCall) => self.run(message, on).await,
            Some(Method::PromptsList) => answer::list("prompts", &answer::json(&self.client.prompts()), true),
            Some(Method::PromptsGet) => {
                let name = params.name.as_deref().unwrap_or_default();
                answer::prompted(self.client.prompts(), name, params.arguments.as_ref(), |name, arguments| {
                    self.client.prompt(name, arguments)
                })
            }
            Some(Method::ResourcesList) => match self.client.resources(on).await {
                Ok(resources) => answer::list("resources", &answer::json(&resources), false),
                Err(failure) => answer::Said::failed(&failure),
            },
            Some(Method::ResourcesTemplatesList) => {
                answer::list("resourceTemplates", &answer::json(&self.client.templates()), true)
            }
            Some(Method::ResourcesRead) => {
                let uri = params.uri.as_deref().unwrap_or_default();
                match self.client.read(on, uri).await {
                    Ok(contents) => answer::contents(uri, &contents),
                    Err(failure) => answer::Said::failed(&failure),
                }
            }
            Some(Method::CompletionComplete) => match answer::asked_to_complete(message) {
                Some((of, argument, typed)) => answer::completed(self.client.complete(on, of, &argument, &typed).await),
                None => answer::Said::invalid("params.argument must have a name and a value"),
            },
            method => answer::Said::unknown(method),
        }
    }

    async fn run(&self, message: &Message, on: &On<'_>) -> answer::Said {
        let Some(entry) = message.params.name.as_deref().and_then(|name| self.tools.get(name)) else {
            return answer::Said::invalid("there is no such tool");
        };
        let none = Bytes::from_static(b"{}");
        let arguments = message.params.arguments.as_ref().unwrap_or(&none);
        let left = on.deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, entry.run(&self.client, on, arguments)).await {
            Ok(Ok(done)) => answer::done(&done),
            Ok(Err(failure)) => answer::Said::Failed(failure),
            Err(_) => answer::Said::Failed(Failure::late(entry.spec.effect)),
        }
    }
}

#[async_trait]
impl<C: Client> Backend for BuiltIn<C> {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn catalog(&self) -> Arc<Catalog> {
        self.catalog.clone()
    }

    async fn refresh(&self, _: Credential, _: Instant) -> Result<Arc<Catalog>, Error> {
        Ok(self.catalog.clone())
    }

    fn learn(&self, _: &[Listed]) {}

    fn era(&self) -> Option<Era> {
        Some(Era::Modern)
    }

    async fn speaks(&self, _: Credential, _: Instant) -> Result<Era, Error> {
        Ok(Era::Modern)
    }

    fn plain(&self, kind: Kind, name: &str) -> Decl {
        let effect = if kind == Kind::Resource { self.client.sensitivity(name) } else { Effect::Read };
        Decl::plain(kind, self.name.clone(), name, effect)
    }

    async fn call(&self, permit: Permit, credential: Credential, deadline: Instant) -> Result<Answer, Error> {
        let Operation::Post(message) = &permit.call().operation else { return Ok(Answer::empty(405)) };
        let Some(id) = message.id().filter(|_| message.is_request()) else { return Ok(Answer::empty(202)) };
        if message.method == Some(Method::SubscriptionsListen) {
            let may = |uri: &str| self.client.may_watch(permit.caller(), uri);
            return Ok(self.news.listen(id, message, self.client.has_resources(), may));
        }
        let end = deadline.checked_sub(SLACK).unwrap_or(deadline);
        let end = Instant::now().checked_add(self.client.timeout()).map_or(end, |own| own.min(end));
        let (changed, mut credential, mut renewed) = (AtomicBool::new(false), credential, false);
        loop {
            let spare = credential.spare();
            let caller = permit.caller();
            let on = On { credential: &credential, caller, deadline: end, changed: &changed, news: &self.news };
            let said = self.answer(message, &on).await;
            match (said.is_locked_out(), spare) {
                (true, Some(spare)) if !renewed && !changed.load(Ordering::Relaxed) => {
                    credential = spare.renewed(None, deadline).await.map_err(Error::Credential)?;
                    renewed = true;
                }
                _ => return Ok(said.into_answer(id)),
            }
        }
    }

    fn healthy(&self) -> bool {
        self.client.healthy()
    }

    async fn stop(&self) {
        self.client.stop().await;
    }
}
