//! Drives the official inspector's command line: one run of it for each step.

use std::process::Stdio;

use serde_json::Value;
use serde_json::json;

use crate::live::tool;

/// Runs the steps of a cell; gives the lines that `drive.py` prints.
pub async fn drive(cell: &Value) -> Vec<Value> {
    let line =
        |step: &str, ok: bool, detail: &str| json!({ "cell": cell["cell"], "step": step, "ok": ok, "detail": detail });
    let home = tempfile::tempdir().unwrap();
    // Every run connects, so that a step that succeeds shows it.
    let mut lines = vec![line("connect", true, "")];
    for step in cell["plan"].as_array().unwrap() {
        let name = step["step"].as_str().unwrap();
        let outcome = once(cell, step, home.path()).await;
        lines.push(line(name, outcome.is_ok(), &outcome.err().unwrap_or_default()));
    }
    lines
}

async fn once(cell: &Value, step: &Value, home: &std::path::Path) -> Result<(), String> {
    let text = |key: &str| step[key].as_str().unwrap_or_default().to_owned();
    let pairs = |flag: &str| {
        let pair = |(key, value): (&String, &Value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            [flag.to_owned(), format!("{key}={value}")]
        };
        step["args"].as_object().into_iter().flatten().flat_map(pair).collect::<Vec<_>>()
    };
    let (method, mut arguments) = match text("step").as_str() {
        "list" => ("tools/list", vec![]),
        "call" => ("tools/call", [vec!["--tool-name".to_owned(), text("tool")], pairs("--tool-arg")].concat()),
        "read" => ("resources/read", vec!["--uri".to_owned(), text("uri")]),
        "prompt" => ("prompts/get", [vec!["--prompt-name".to_owned(), text("name")], pairs("--prompt-args")].concat()),
        other => panic!("no such step: {other}"),
    };
    let url = cell["url"].as_str().unwrap();
    let header = format!("Authorization: Bearer {}", cell["token"].as_str().unwrap());
    let mut command = tokio::process::Command::new(tool("WARDGATE_NODE"));
    command.arg(tool("WARDGATE_INSPECTOR")).args(["--cli", url, "--transport", "http", "--method", method]);
    command.args(["--protocol-era", cell["mode"].as_str().unwrap(), "--header", &header]);
    command.args(["--format", "json", "-q", "--stored-auth-only"]).args(arguments.drain(..)).env("HOME", home);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.map_err(|error| error.to_string())?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    judge(step, output.status.success(), &answer["result"], &said)
}

fn judge(step: &Value, success: bool, result: &Value, said: &str) -> Result<(), String> {
    let short = || said.chars().take(300).collect::<String>();
    if step["refused"] == true {
        let refused = !success && said.contains("error");
        return if refused { Ok(()) } else { Err(format!("it was answered, not refused: {}", short())) };
    }
    if !success || result["isError"] == true {
        return Err(short());
    }
    let Some(prefix) = step["prefix"].as_str() else {
        let wanted = step["text"].as_str().unwrap();
        return if said.contains(wanted) { Ok(()) } else { Err(format!("{wanted:?} is not in {:?}", short())) };
    };
    let names = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let listed: Vec<_> = names(&result["tools"]).iter().map(|tool| tool["name"].clone()).collect();
    let ours = |name: &&Value| name.as_str().is_some_and(|name| name.starts_with(prefix));
    let (must, may) = (names(&step["must"]), names(&step["may"]));
    let missing: Vec<_> = must.iter().filter(|name| !listed.contains(name)).collect();
    let extra: Vec<_> = listed.iter().filter(ours).filter(|name| !must.contains(name) && !may.contains(name)).collect();
    if missing.is_empty() && extra.is_empty() {
        return Ok(());
    }
    Err(format!("missing {missing:?}, not expected {extra:?}, {} listed", listed.len()))
}
