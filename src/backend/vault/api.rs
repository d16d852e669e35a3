//! Requests to Vault's HTTP API, and what its answers mean: clear tool errors without secrets.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::HeaderName;
use http::Method;
use http::header::AUTHORIZATION;
use serde_json::Value;
use zeroize::Zeroizing;

use super::Vault;
use crate::backend::builtin::Failure;
use crate::backend::builtin::On;
use crate::backend::builtin::Trouble;
use crate::fetch::origin;
use crate::fetch::origin::Ask;
use crate::fetch::origin::Path;

const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
const REQUEST: HeaderName = HeaderName::from_static("x-vault-request");
const WRAP_TTL: HeaderName = HeaderName::from_static("x-vault-wrap-ttl");

/// Of Vault's words in an answer of ours.
const WORDS_CHARS_MAX: usize = 300;

/// What Vault says when another writer was faster.
const CAS_MISMATCH: &str = "check-and-set parameter did not match";

/// One request.
pub(super) struct Call {
    method: Method,
    path: Path,
    body: Option<Value>,
    /// Give a wrapping token in place of the answer.
    wrap: Option<Duration>,
}

impl Call {
    pub(super) fn get(path: Path) -> Call {
        Call { method: Method::GET, path, body: None, wrap: None }
    }

    pub(super) fn list(path: Path) -> Call {
        Call::get(path.query("list", "true"))
    }

    pub(super) fn post(path: Path, body: Value) -> Call {
        Call { method: Method::POST, path, body: Some(body), wrap: None }
    }

    pub(super) fn delete(path: Path) -> Call {
        Call { method: Method::DELETE, path, body: None, wrap: None }
    }

    pub(super) fn wrapped(self, wrap: Option<Duration>) -> Call {
        Call { wrap, ..self }
    }
}

/// What Vault answered: done (2xx), or not there (404; some of these say more).
pub(super) struct Reply {
    pub(super) found: bool,
    pub(super) body: Value,
}

impl Reply {
    pub(super) fn data(&self) -> &Value {
        self.body.get("data").unwrap_or(&Value::Null)
    }

    /// The names of a list; none where there is nothing.
    pub(super) fn keys(&self) -> Vec<String> {
        let keys = self.data().get("keys").and_then(Value::as_array);
        keys.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Done, or the words for what is not there.
    pub(super) fn or_missing(self, message: impl FnOnce() -> String) -> Result<Reply, Failure> {
        if self.found { Ok(self) } else { Err(Failure::missing(message())) }
    }
}

/// `v1/` and the mount.
pub(super) fn within(mount: &str) -> Path {
    Path::fixed("v1").through(mount)
}

impl Vault {
    /// # Errors
    /// Whatever is neither done nor missing.
    pub(super) async fn ask(&self, on: &On<'_>, call: Call) -> Result<Reply, Failure> {
        let wrap = call.wrap.map(|ttl| format!("{}s", ttl.as_secs().max(1)));
        let mut headers = vec![(REQUEST, "true")];
        headers.extend(self.config.namespace.as_deref().map(|namespace| (NAMESPACE, namespace)));
        headers.extend(wrap.as_deref().map(|ttl| (WRAP_TTL, ttl)));
        let reads = call.method == Method::GET;
        let ask = Ask {
            method: call.method,
            path: &call.path,
            headers: &headers,
            // Vault takes its tokens as bearer tokens, too.
            secret: on.secret().map(|secret| (AUTHORIZATION, secret)),
            body: call.body.map(|body| Zeroizing::new(body.to_string())),
            deadline: on.deadline(),
        };
        let answer = self.origin.send(ask).await.map_err(|error| self.silent(&error, reads))?;
        self.healthy.store(!matches!(answer.status, 472 | 473 | 501 | 503), Ordering::Relaxed);
        let done = (200..=299).contains(&answer.status);
        if done && !reads {
            on.changed();
        }
        let body = match serde_json::from_slice(&answer.body) {
            Ok(body) => body,
            Err(_) if answer.body.is_empty() || !done => Value::Null,
            Err(_) => return Err(Failure::upstream("Vault's answer is not JSON")),
        };
        match answer.status {
            _ if done => Ok(Reply { found: true, body }),
            404 => Ok(Reply { found: false, body }),
            403 => Err(self.denied(on, &call.path, &body).await),
            status => Err(refused(status, &body, answer.retry_after)),
        }
    }

    fn silent(&self, error: &origin::Error, reads: bool) -> Failure {
        let unknown = "Whether it was carried out is not known: look before you repeat it.";
        match error {
            origin::Error::Connect { .. } => {
                self.healthy.store(false, Ordering::Relaxed);
                tracing::warn!(%error, "vault does not answer");
                Failure::new(Trouble::Unavailable, "Vault cannot be reached; nothing was changed")
                    .retry_after(Some(Duration::from_secs(2)))
            }
            origin::Error::Timeout if reads => Failure::new(Trouble::Timeout, "Vault does not answer in time"),
            origin::Error::Timeout => Failure::new(Trouble::Timeout, "Vault does not answer in time").hint(unknown),
            origin::Error::TooLong { bytes_max } => {
                Failure::upstream(format!("Vault's answer has more than {bytes_max} bytes"))
            }
            origin::Error::Transport { .. } if reads => {
                Failure::new(Trouble::Unavailable, "the connection to Vault broke")
                    .retry_after(Some(Duration::from_secs(1)))
            }
            origin::Error::Transport { .. } => {
                Failure::new(Trouble::Unavailable, "the connection to Vault broke").hint(unknown)
            }
            origin::Error::Setup { .. } => Failure::upstream("the request to Vault cannot be made"),
        }
    }

    /// 403 says both: this token may not do that, and: I do not know this token.
    async fn denied(&self, on: &On<'_>, path: &Path, body: &Value) -> Failure {
        let place = path.as_str().trim_start_matches("/v1/");
        let dead = words(body).contains("invalid token") || {
            let path = Path::fixed("v1/auth/token/lookup-self");
            let mut headers = vec![(REQUEST, "true")];
            headers.extend(self.config.namespace.as_deref().map(|namespace| (NAMESPACE, namespace)));
            let secret = on.secret().map(|secret| (AUTHORIZATION, secret));
            let ask = Ask {
                method: Method::GET,
                path: &path,
                headers: &headers,
                secret,
                body: None,
                deadline: on.deadline(),
            };
            self.origin.send(ask).await.is_ok_and(|answer| matches!(answer.status, 401 | 403))
        };
        if dead {
            return Failure::new(Trouble::LockedOut, format!("Vault does not let the gateway's token use `{place}`"))
                .hint("The token has ended or was revoked, or its policies do not allow this.");
        }
        Failure::new(Trouble::Forbidden, format!("Vault's policies do not allow this at `{place}`"))
            .hint("Somebody who administers Vault can grant it; another call will not help.")
    }
}

fn refused(status: u16, body: &Value, retry_after: Option<Duration>) -> Failure {
    let said = words(body);
    match status {
        400 if said.contains(CAS_MISMATCH) => {
            Failure::new(Trouble::Conflict, "the secret was changed by somebody else meanwhile")
        }
        400 | 405 | 422 if said.is_empty() => Failure::upstream("Vault refuses the request as malformed"),
        400 | 405 | 422 => Failure::upstream(format!("Vault refuses the request: {said}")),
        412 => Failure::new(Trouble::Unavailable, "this Vault node has not caught up yet")
            .retry_after(Some(Duration::from_secs(1))),
        429 => Failure::new(Trouble::Throttled, "Vault has too many requests")
            .retry_after(retry_after.or(Some(Duration::from_secs(1)))),
        501 => Failure::new(Trouble::Unavailable, "Vault is not initialized"),
        503 if said.contains("sealed") => {
            Failure::new(Trouble::Unavailable, "Vault is sealed").hint("Somebody must unseal it.")
        }
        472 | 473 | 503 => Failure::new(Trouble::Unavailable, "Vault cannot serve now")
            .retry_after(retry_after.or(Some(Duration::from_secs(5)))),
        500.. => Failure::upstream(format!("Vault failed ({status})")).retry_after(retry_after),
        300..=399 => Failure::upstream("Vault sends us elsewhere, which the gateway does not follow")
            .hint("Configure the address of the active node, or of a load balancer that leads to it."),
        _ => Failure::upstream(format!("Vault refuses the request ({status})")),
    }
}

/// Vault's own words, on one line and bounded. INVARIANT: nothing in it looks like a token.
fn words(body: &Value) -> String {
    let errors = body.get("errors").and_then(Value::as_array);
    let texts = errors.into_iter().flatten().filter_map(Value::as_str);
    let mut out = String::new();
    for word in texts.flat_map(str::split_whitespace) {
        let word = masked(word);
        if word == "*" || out.len() + word.len() > WORDS_CHARS_MAX {
            continue;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        out.extend(word.chars().filter(|c| !c.is_control()));
    }
    out
}

/// Tokens of Vault begin with `hvs.`, `hvb.`, `hvr.`, `s.` or `b.`; JWTs with `eyJ`.
fn masked(word: &str) -> Cow<'_, str> {
    const BEGINNINGS: [&str; 6] = ["hvs.", "hvb.", "hvr.", "s.", "b.", "eyJ"];
    let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let secret = bare.len() > 20 && BEGINNINGS.iter().any(|beginning| bare.starts_with(beginning));
    if secret { Cow::Borrowed("***") } else { Cow::Borrowed(word) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_status_of_vault_has_words_and_says_whether_to_come_again() {
        let errors = |text: &str| json!({ "errors": [text] });
        for (status, body, kind, text) in [
            (400, errors("common name x not allowed by this role"), Trouble::Upstream, "x not allowed"),
            (
                400,
                errors("check-and-set parameter did not match the current version"),
                Trouble::Conflict,
                "somebody else",
            ),
            (429, errors(""), Trouble::Throttled, "too many"),
            (501, Value::Null, Trouble::Unavailable, "initialized"),
            (503, errors("Vault is sealed"), Trouble::Unavailable, "sealed"),
            (503, Value::Null, Trouble::Unavailable, "cannot serve"),
            (473, Value::Null, Trouble::Unavailable, "cannot serve"),
            (500, errors("hvs.CAESIJzzzzzzzzzzzzzzzzzzzz leaked"), Trouble::Upstream, "failed (500)"),
            (307, Value::Null, Trouble::Upstream, "elsewhere"),
        ] {
            let failure = refused(status, &body, None);
            assert_eq!(failure.trouble, kind, "{status}");
            assert!(failure.message.contains(text), "{status}: {}", failure.message);
        }
        let after = refused(429, &Value::Null, Some(Duration::from_secs(7))).retry_after;
        assert_eq!(after, Some(Duration::from_secs(7)));
    }

    #[test]
    fn vaults_words_are_one_bounded_line_without_tokens() {
        let body = json!({ "errors": [
            "1 error occurred:\n\t* bad token hvs.CAESIJ0123456789abcdefghij\n",
            "and (s.0123456789abcdefghijklmn) eyJhbGciOiJSUzI1NiJ9.e30.x",
            "long ".repeat(200),
        ]});
        let said = words(&body);
        assert!(said.starts_with("1 error occurred: bad token *** and *** *** long"), "{said}");
        assert!(said.len() <= WORDS_CHARS_MAX + 100 && !said.contains(['\n', '\t']), "{said}");
    }
}
