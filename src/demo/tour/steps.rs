//! The nine steps: each asks the running gateway something and compares the answer with what must come.

use serde_json::Value;
use serde_json::json;

use super::Outcome;
use super::Scene;
use super::Surprise;
use super::client::Client;
use super::client::LEGACY;
use super::client::Reply;
use super::log;
use super::text;
use crate::audit;
use crate::demo::stage::COUNTS_PER_MINUTE;

const READS: [&str; 3] = ["count_slowly", "list_notes", "read_note"];
const WRITES: [&str; 2] = ["append_note", "write_note"];
const DESTROYS: [&str; 2] = ["delete_note", "wipe_notes"];

/// The note that the tour writes and deletes again.
const NOTE: &str = "tour";

const METRICS_SHOWN: usize = 5;

/// 401 with a challenge that leads to the RFC 9728 document, which leads to the issuer.
pub(super) async fn without_token(scene: &Scene) -> Outcome {
    let client = Client::new(&scene.endpoint, None)?;
    let reply = client.modern("tools/list", json!({})).await?;
    let challenge = reply.header("www-authenticate");
    if reply.status != 401 || !challenge.starts_with("Bearer") {
        return Err(Surprise::new("401 with a Bearer challenge", &reply));
    }
    let url = parameter(challenge, "resource_metadata");
    let url = url.ok_or_else(|| Surprise::new("a challenge with resource_metadata", challenge))?;
    let (status, document) = client.get(url).await?;
    let document: Value = serde_json::from_str(&document).unwrap_or_default();
    let issuers = document.get("authorization_servers").cloned().unwrap_or_default();
    if status != 200 || text(&document, "/resource") != scene.endpoint || issuers != json!([scene.issuer_url]) {
        let came = format!("HTTP {status} with {document}");
        return Err(Surprise::new("metadata with this endpoint and the demo's issuer", came));
    }
    Ok(vec![
        format!("tools/list without a token -> {}", reply.status),
        format!("WWW-Authenticate: {challenge}"),
        format!("The document it names sends clients to {issuers}: they log in by themselves."),
    ])
}

/// One endpoint, three lists.
pub(super) async fn what_each_sees(scene: &Scene) -> Outcome {
    let tokens = &scene.tokens;
    let editor = [&READS[..], &WRITES].concat();
    let admin = [&editor[..], &DESTROYS].concat();
    let mut lines = Vec::new();
    for (who, token, expected) in [
        ("viewer", &tokens.viewer, READS.to_vec()),
        ("editor", &tokens.editor, editor),
        ("admin", &tokens.admin, admin),
    ] {
        let reply = Client::new(&scene.endpoint, Some(token))?.modern("tools/list", json!({})).await?;
        let seen = same(reply.tools()?, expected, who)?;
        lines.push(format!("{who:<8}{}", seen.join(", ")));
    }
    Ok(lines)
}

/// To the editor the tool does not exist; the record says why.
pub(super) async fn editor_deletes(scene: &Scene) -> Outcome {
    let client = Client::new(&scene.endpoint, Some(&scene.tokens.editor))?;
    let refused = client.call("delete_note", json!({ "id": "welcome" })).await?;
    let unknown = client.call("no_such_tool", json!({ "id": "welcome" })).await?;
    if refused.message.get("error").is_none() {
        return Err(Surprise::new("a refusal", &refused));
    }
    let nameless = |reply: &Reply, name: &str| format!("{reply}").replace(name, "…");
    if nameless(&refused, "delete_note") != nameless(&unknown, "no_such_tool") {
        return Err(Surprise::new(format!("the words for an unknown tool ({unknown})"), &refused));
    }
    let members = [("subject", "editor"), ("method", "tools/call"), ("target", "delete_note")];
    let record = log::find(&scene.audit_log, &members).await?;
    if text(&record, "/decision") != "refused" || text(&record, "/denial") != "not_granted" {
        return Err(Surprise::new("a record that says refused, not_granted", log::show(&record)));
    }
    let kept = client.call("read_note", json!({ "id": "welcome" })).await?;
    kept.said()?;
    Ok(vec![
        format!("The client reads   {refused}"),
        "                   (the same words as for a tool that does not exist)".to_owned(),
        format!("The record says    {}", log::show(&record)),
        "The note           is still there".to_owned(),
    ])
}

/// What is granted works, and the record names the policy's answer.
pub(super) async fn write_and_read(scene: &Scene) -> Outcome {
    let editor = Client::new(&scene.endpoint, Some(&scene.tokens.editor))?;
    let viewer = Client::new(&scene.endpoint, Some(&scene.tokens.viewer))?;
    let words = "Written through the gateway.";
    let wrote = editor.call("write_note", json!({ "id": NOTE, "text": words })).await?;
    let read = viewer.call("read_note", json!({ "id": NOTE })).await?;
    if read.said()? != words {
        return Err(Surprise::new(format!("the text `{words}`"), &read));
    }
    let members = [("subject", "editor"), ("method", "tools/call"), ("target", "write_note")];
    let record = log::find(&scene.audit_log, &members).await?;
    if text(&record, "/decision") != "allowed" {
        return Err(Surprise::new("a record that says allowed", log::show(&record)));
    }
    Ok(vec![
        format!("editor  {}", wrote.said()?),
        format!("viewer  reads: {}", read.said()?),
        format!("The record says    {}", log::show(&record)),
    ])
}

/// The certificate was made at start; only the demo's own authority is trusted here.
pub(super) async fn admin_deletes_over_tls(scene: &Scene) -> Outcome {
    let admin = Client::trusting(&scene.authority, &scene.tls_endpoint, &scene.tokens.admin)?;
    let deleted = admin.call("delete_note", json!({ "id": NOTE })).await?;
    let members = [("subject", "admin"), ("method", "tools/call"), ("target", "delete_note")];
    let said = format!("admin   {} ({})", deleted.said()?, scene.tls_endpoint);
    let record = log::find(&scene.audit_log, &members).await?;
    if text(&record, "/effect") != "destroy" || text(&record, "/decision") != "allowed" {
        return Err(Surprise::new("a record that says destroy, allowed", log::show(&record)));
    }
    Ok(vec![said, format!("The record says    {}", log::show(&record))])
}

/// `initialize` and a session, as every client before 2026-07-28 does; with the same rules.
pub(super) async fn older_client(scene: &Scene) -> Outcome {
    let client = Client::new(&scene.endpoint, Some(&scene.tokens.viewer))?;
    let hello = json!({
        "protocolVersion": LEGACY, "capabilities": {}, "clientInfo": { "name": "wardgate-tour", "version": env!("CARGO_PKG_VERSION") },
    });
    let welcome = client.legacy(None, Some(1), "initialize", hello).await?;
    let session = welcome.header("mcp-session-id");
    if text(&welcome.message, "/result/protocolVersion") != LEGACY || session.is_empty() {
        return Err(Surprise::new(format!("a session of {LEGACY}"), &welcome));
    }
    let ready = client.legacy(Some(session), None, "notifications/initialized", json!({})).await?;
    if ready.status != 202 {
        return Err(Surprise::new("202 for a notification", &ready));
    }
    let list = client.legacy(Some(session), Some(2), "tools/list", json!({})).await?;
    let seen = same(list.tools()?, READS.to_vec(), "viewer")?;
    // The session's id is bound to the viewer: in another's hands it opens nothing.
    let thief = Client::new(&scene.endpoint, Some(&scene.tokens.admin))?;
    let stolen = thief.legacy(Some(session), Some(3), "tools/list", json!({})).await?;
    if stolen.status != 404 {
        return Err(Surprise::new("404 for another's session", &stolen));
    }
    let ended = client.end(session).await?;
    if !(200..300).contains(&ended) {
        return Err(Surprise::new("a session that ends", format!("HTTP {ended}")));
    }
    Ok(vec![
        format!("viewer  initialize -> a session of {LEGACY}; sees {}", seen.join(", ")),
        format!("admin   with the viewer's session -> {}", stolen.status),
    ])
}

/// The fourth call within a minute is one too many.
pub(super) async fn too_many_calls(scene: &Scene) -> Outcome {
    let client = Client::new(&scene.endpoint, Some(&scene.tokens.viewer))?;
    let params = json!({
        "name": "count_slowly", "arguments": { "to": 2, "pause_ms": 20 }, "_meta": { "progressToken": "tour" },
    });
    let mut lines = Vec::new();
    for number in 1..=COUNTS_PER_MINUTE {
        let counted = client.modern("tools/call", params.clone()).await?;
        let said = counted.said()?;
        let heard =
            counted.notifications.iter().filter(|note| text(note, "/method") == "notifications/progress").count();
        if heard != 2 {
            return Err(Surprise::new("two progress notifications on the way", heard));
        }
        lines.push(format!("call {number}  {said}, with {heard} progress notifications on the way"));
    }
    let limited = client.modern("tools/call", params).await?;
    let seconds = limited.header("retry-after");
    if limited.status != 429 || !seconds.parse::<u32>().is_ok_and(|seconds| (1..=60).contains(&seconds)) {
        return Err(Surprise::new("429 with Retry-After of at most a minute", &limited));
    }
    lines.push(format!("call {}  {limited}", COUNTS_PER_MINUTE + 1));
    lines.push(format!("        Retry-After: {seconds}"));
    let members = [("subject", "viewer"), ("target", "count_slowly"), ("reason", "rate_limited")];
    log::find(&scene.audit_log, &members).await?;
    Ok(lines)
}

/// The chain of hashes holds; in a copy with one word changed it does not.
pub(super) async fn audit(scene: &Scene) -> Outcome {
    let forged = scene.audit_log.with_extension("forged.jsonl");
    let verify = || -> Outcome {
        let whole = audit::verify(&scene.audit_log, &audit::Expect::default())
            .map_err(|broken| Surprise::new("a whole log", broken))?;
        let came_not = |error: std::io::Error| Surprise::new("a copy of the log", error);
        let text = std::fs::read_to_string(&scene.audit_log).map_err(came_not)?;
        let changed = text.replacen("\"editor\"", "\"viewer\"", 1);
        if changed == text {
            return Err(Surprise::new("a record of the editor", "none"));
        }
        std::fs::write(&forged, changed).map_err(came_not)?;
        match audit::verify(&forged, &audit::Expect::default()) {
            Ok(_) => Err(Surprise::new("a changed word that is found", "a log that verifies")),
            Err(broken) => Ok(vec![
                format!("wardgate audit verify {}", scene.audit_log.display()),
                format!("  {whole}"),
                "The same log with one `editor` made a `viewer`:".to_owned(),
                format!("  {broken}"),
            ]),
        }
    };
    let outcome = verify();
    drop(std::fs::remove_file(&forged));
    outcome
}

/// The counters of what the tour did, from the admin listener.
pub(super) async fn metrics(scene: &Scene) -> Outcome {
    let (status, page) = Client::new(&scene.endpoint, None)?.get(&scene.metrics_url).await?;
    let counted = |line: &&str| {
        let (series, value) = line.rsplit_once(' ').unwrap_or_default();
        let name = series.split_once('{').map_or(series, |(name, _)| name);
        name.starts_with("wardgate_") && name.ends_with("_total") && value.parse::<f64>().is_ok_and(|value| value > 0.0)
    };
    let mut counters: Vec<&str> = page.lines().filter(counted).collect();
    // Requests first: they are what the tour made.
    counters.sort_by_key(|line| !line.starts_with("wardgate_requests"));
    if status != 200 || counters.is_empty() {
        return Err(Surprise::new("counted requests", format!("HTTP {status} with {} lines", page.lines().count())));
    }
    let mut lines = vec![format!("GET {}", scene.metrics_url)];
    lines.extend(counters.iter().take(METRICS_SHOWN).map(|line| (*line).to_owned()));
    let series = page.lines().filter(|line| line.starts_with("wardgate_")).count();
    lines.push(format!("… {series} series in all"));
    Ok(lines)
}

/// Both lists sorted, if they are the same.
fn same<'a>(mut seen: Vec<&'a str>, mut expected: Vec<&str>, who: &str) -> Result<Vec<&'a str>, Surprise> {
    seen.sort_unstable();
    expected.sort_unstable();
    if seen == expected {
        Ok(seen)
    } else {
        Err(Surprise::new(format!("that {who} sees {}", expected.join(", ")), seen.join(", ")))
    }
}

/// A quoted parameter of a challenge.
fn parameter<'a>(challenge: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = challenge.split_once(&format!("{name}=\""))?;
    rest.split_once('"').map(|(value, _)| value)
}
