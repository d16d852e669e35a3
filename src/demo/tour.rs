//! The tour: nine short steps against the running demo, each of which says what it expected if it came otherwise.

mod client;
mod log;
mod steps;

use std::fmt;
use std::path::PathBuf;

use serde_json::Value;

use super::Voice;
pub use client::modern_params;

/// What the tour needs to know of the stage.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The gateway's MCP endpoint on the plain listener.
    pub endpoint: String,
    pub tls_endpoint: String,
    pub metrics_url: String,
    pub issuer_url: String,
    /// PEM of the authority that signed the gateway's certificate.
    pub authority: String,
    pub audit_log: PathBuf,
    pub tokens: Tokens,
}

/// The bearer tokens of the three people.
#[derive(Clone)]
pub struct Tokens {
    pub viewer: String,
    pub editor: String,
    pub admin: String,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(***)")
    }
}

/// A step that went otherwise than expected.
#[derive(Clone, Debug)]
pub struct Failure {
    pub number: usize,
    pub title: &'static str,
    pub surprise: Surprise,
}

/// What was expected and what came.
#[derive(Clone, Debug, thiserror::Error)]
#[error("expected {expected}, but {came}")]
pub struct Surprise {
    expected: String,
    came: String,
}

impl Surprise {
    fn new(expected: impl Into<String>, came: impl fmt::Display) -> Surprise {
        Surprise { expected: expected.into(), came: format!("got {came}") }
    }
}

/// The lines a step has to show.
type Outcome = Result<Vec<String>, Surprise>;

/// Plays all steps, also after one failed, and gives those that did not come out as expected.
pub async fn play(scene: &Scene, voice: &Voice) -> Vec<Failure> {
    let mut tour = Tour { voice, number: 0, failed: Vec::new() };
    tour.step("Nobody gets in without a token", steps::without_token(scene)).await;
    tour.step("What each of the three sees", steps::what_each_sees(scene)).await;
    tour.step("An editor tries to delete a note", steps::editor_deletes(scene)).await;
    tour.step("The editor writes one, and a viewer reads it", steps::write_and_read(scene)).await;
    tour.step("An admin may delete it, over TLS", steps::admin_deletes_over_tls(scene)).await;
    tour.step("A client of an older protocol revision", steps::older_client(scene)).await;
    tour.step("Too many calls", steps::too_many_calls(scene)).await;
    tour.step("The audit log is whole, and a changed word is found", steps::audit(scene)).await;
    tour.step("The metrics", steps::metrics(scene)).await;
    tour.end()
}

struct Tour<'a> {
    voice: &'a Voice,
    number: usize,
    failed: Vec<Failure>,
}

impl Tour<'_> {
    async fn step(&mut self, title: &'static str, step: impl Future<Output = Outcome>) {
        self.number += 1;
        self.voice.headline(&format!("{}. {title}", self.number));
        match step.await {
            Ok(lines) => lines.iter().for_each(|line| self.voice.say(line)),
            Err(surprise) => {
                self.voice.say(&format!("FAILED: {surprise}"));
                self.failed.push(Failure { number: self.number, title, surprise });
            }
        }
    }

    fn end(self) -> Vec<Failure> {
        let failed: Vec<String> = self.failed.iter().map(|failure| failure.number.to_string()).collect();
        if failed.is_empty() {
            self.voice.say(&format!("\nAll {} steps came out as expected.", self.number));
        } else {
            self.voice.say(&format!(
                "\nOf {} steps these did not come out as expected: {}.",
                self.number,
                failed.join(", ")
            ));
        }
        self.failed
    }
}

/// A member of a JSON object as plain text; absent ones as nothing.
fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
