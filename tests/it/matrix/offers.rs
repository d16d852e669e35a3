//! The table of what each server offers, with what it is tried and what must come of it.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::json;

use super::modern_server::WATCHED;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Era {
    Legacy,
    Modern,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Feature {
    List,
    Call,
    Progress,
    Elicit,
    Read,
    Prompt,
    Subscribe,
    Cancel,
}

impl Feature {
    pub const ALL: &[Feature] = &[
        Feature::List,
        Feature::Call,
        Feature::Progress,
        Feature::Elicit,
        Feature::Read,
        Feature::Prompt,
        Feature::Subscribe,
        Feature::Cancel,
    ];

    /// What drivers call it.
    pub fn name(self) -> &'static str {
        match self {
            Feature::List => "list",
            Feature::Call => "call",
            Feature::Progress => "progress",
            Feature::Elicit => "elicit",
            Feature::Read => "read",
            Feature::Prompt => "prompt",
            Feature::Subscribe => "subscribe",
            Feature::Cancel => "cancel",
        }
    }
}

pub enum Offer {
    /// The step must succeed.
    Has(Value),
    /// Why there is no such thing, and the step that must be refused; none where the complete list of its tools, which
    /// `List` compares, shows that nothing has the feature.
    Lacks(&'static str, Option<Value>),
}

use Offer::Has;
use Offer::Lacks;

/// Features that a server has, but that clients of an era cannot have of it through the gateway, and why. The step must
/// then be refused.
pub const EXCEPTIONS: &[(Era, &str, Feature, &str)] = &[];

/// Every feature of an upstream. `listed`: the tools of the fixtures, as they say themselves.
pub fn offers(upstream: &str, listed: &BTreeMap<&str, Vec<String>>) -> Vec<(Feature, Offer)> {
    let steps = match upstream {
        "python" | "python-stdio" => fixture(&listed[upstream]),
        "rust" => rust(),
        "everything" | "everything-stdio" => everything(),
        "time" => time(),
        other => panic!("no table for {other}"),
    };
    Feature::ALL.iter().copied().zip(steps).collect()
}

/// `fixture.py`, over HTTP and over stdio: both eras.
fn fixture(listed: &[String]) -> [Offer; 8] {
    let echo = json!({ "tool": "echo", "args": { "text": "hällo" }, "text": "hällo" });
    [
        Has(json!({ "prefix": "", "must": listed, "may": [] })),
        Has(echo.clone()),
        Has(
            json!({ "tool": "slow_count", "args": { "seconds": 0.3, "steps": 3 }, "text": "counted to 3", "least": 3 }),
        ),
        Has(json!({ "tool": "test_elicitation", "args": { "message": "Who are you?" }, "text": "action=accept" })),
        Has(json!({ "uri": "test://static-text", "text": "the static text resource", "listed": true })),
        Has(
            json!({ "name": "test_prompt_with_arguments", "args": { "arg1": "one", "arg2": "two" }, "text": "arg2='two'",
            "listed": true }),
        ),
        Has(json!({ "uri": "test://watched-resource", "again": true,
            "trigger": { "tool": "test_trigger_resource_update", "args": {} } })),
        Has(json!({ "tool": "slow_count", "args": { "seconds": 30, "steps": 60, "label": "" }, "after": 0.7,
            "count": { "tool": "cancelled_count", "args": { "label": "" }, "text": "1" }, "then": echo })),
    ]
}

/// `modern_server.rs`: modern only.
fn rust() -> [Offer; 8] {
    let echo = json!({ "tool": "echo", "args": { "text": "hällo" }, "text": "hällo" });
    [
        Has(json!({ "prefix": "", "must": ["echo", "count", "cancelled", "greet", "touch"], "may": [] })),
        Has(echo.clone()),
        Has(json!({ "tool": "count", "args": { "steps": 3, "pause_ms": 100 }, "text": "counted to 3", "least": 3 })),
        Has(json!({ "tool": "greet", "args": {}, "text": "Hello, Alice!" })),
        Has(json!({ "uri": WATCHED, "text": "what is watched", "listed": true })),
        Has(json!({ "name": "hello", "text": "Say hello.", "listed": true })),
        Has(json!({ "uri": WATCHED, "again": true, "trigger": { "tool": "touch", "args": {} } })),
        Has(json!({ "tool": "count", "args": { "steps": 60, "pause_ms": 500, "label": "" }, "after": 0.7,
            "count": { "tool": "cancelled", "args": { "label": "" }, "text": "1" }, "then": echo })),
    ]
}

/// npm's server-everything, over HTTP and over stdio: legacy only.
fn everything() -> [Offer; 8] {
    let echo = json!({ "tool": "echo", "args": { "message": "hällo" }, "text": "Echo: hällo" });
    let text = "demo://resource/dynamic/text/1";
    [
        Has(json!({
            "prefix": "",
            "must": ["echo", "get-annotated-message", "get-env", "get-resource-links", "get-resource-reference",
                "get-structured-content", "get-sum", "get-tiny-image", "gzip-file-as-resource", "simulate-research-query",
                "toggle-simulated-logging", "toggle-subscriber-updates", "trigger-long-running-operation"],
            // It lists these for clients with the capability.
            "may": ["get-roots-list", "trigger-elicitation-request", "trigger-elicitation-request-async",
                "trigger-sampling-request", "trigger-sampling-request-async", "trigger-url-elicitation"],
        })),
        Has(echo.clone()),
        Has(json!({ "tool": "trigger-long-running-operation", "args": { "duration": 0.3, "steps": 3 },
            "text": "operation completed", "least": 3 })),
        Has(
            json!({ "tool": "trigger-elicitation-request", "args": {}, "text": "User provided the requested information" }),
        ),
        Has(json!({ "uri": "demo://resource/static/document/features.md", "text": "Features", "listed": true })),
        Has(json!({ "name": "args-prompt", "args": { "city": "Paris" }, "text": "weather in Paris", "listed": true })),
        // It sends one at once and the next five seconds later; a second call would end it.
        Has(json!({ "uri": text, "trigger": { "tool": "toggle-subscriber-updates", "args": {} } })),
        // Its operation does not look whether it is cancelled, so only the client's side of it is to be seen.
        Has(json!({ "tool": "trigger-long-running-operation", "args": { "duration": 20, "steps": 20 }, "after": 0.7,
            "then": echo })),
    ]
}

/// PyPI's mcp-server-time over stdio: both eras, tools only.
fn time() -> [Offer; 8] {
    let convert = json!({ "tool": "convert_time", "text": "+9.0h",
        "args": { "source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo" } });
    [
        Has(json!({ "prefix": "", "must": ["convert_time", "get_current_time"], "may": [] })),
        Has(convert),
        Lacks("its tools answer at once and report no progress", None),
        Lacks("its tools never ask", None),
        Lacks("it has no resources", Some(json!({ "uri": "time://now" }))),
        Lacks("it has no prompts", Some(json!({ "name": "now" }))),
        Lacks("it has no resources", Some(json!({ "uri": "time://now" }))),
        Lacks("its tools answer at once", None),
    ]
}
