//! A record as the members of one JSON object: one line whatever the strings hold, and bounded in length.

use std::io::Write as _;
use std::time::SystemTime;

use super::Record;
use super::time::timestamp;

/// Bytes of one string as written, escapes included. Longer ones are cut and end in `…`.
const STRING_BYTES_MAX: usize = 512;
/// Tool names, prompt names, resource URIs.
const TARGET_BYTES_MAX: usize = 256;
/// Of a policy's id, a scope, a role, a group.
const VALUE_BYTES_MAX: usize = 128;
/// More policies than these are only counted, as `policies_more`.
const POLICIES_MAX: usize = 16;
/// More scopes, roles or groups than these are only counted, as `scopes_more` and so on.
const AUTHORITY_MAX: usize = 32;

/// What most lines need; longer ones grow.
const LINE_BYTES: usize = 1024;

/// The members of a request's record; absent facts are left out.
pub(super) fn request(record: &Record) -> Vec<u8> {
    let mut line = Members::of("request");
    line.text("at", &record.at);
    line.text("request_id", &record.request_id);
    line.maybe("peer", record.peer.as_deref());
    line.text("listener", &record.listener);
    line.text("http_method", record.http_method);
    line.text("path", &record.path);
    line.maybe("auth", record.auth);
    line.maybe("subject", record.subject.as_deref());
    line.maybe("issuer", record.issuer.as_deref());
    line.maybe("actor", record.actor.as_deref());
    line.maybe("client", record.client.as_deref());
    line.maybe("tenant", record.tenant.as_deref());
    line.maybe("caller", record.caller);
    line.list("scopes", "scopes_more", &record.scopes, AUTHORITY_MAX);
    line.list("roles", "roles_more", &record.roles, AUTHORITY_MAX);
    line.list("groups", "groups_more", &record.groups, AUTHORITY_MAX);
    line.flag("mtls", record.mtls);
    line.maybe("acr", record.acr.as_deref());
    line.list("amr", "amr_more", &record.amr, AUTHORITY_MAX);
    line.maybe("auth_time", record.auth_time.as_deref());
    line.flag("guest", record.guest);
    line.flag("groups_unknown", record.groups_unknown);
    line.maybe("route", record.route.as_deref());
    line.maybe("backend", record.backend.as_deref());
    line.maybe("era", record.era);
    line.maybe("method", record.method.as_deref());
    if let Some(target) = &record.target {
        line.capped("target", target, TARGET_BYTES_MAX);
    }
    line.maybe("effect", record.effect);
    line.maybe("mode", record.mode);
    line.maybe("args_digest", record.args_digest.as_deref());
    line.maybe("decision", record.decision);
    line.maybe("reason", record.reason);
    line.maybe("denial", record.denial);
    line.maybe("limit", record.limit);
    line.list("policies", "policies_more", &record.policies, POLICIES_MAX);
    line.list("shadows", "shadows_more", &record.shadows, POLICIES_MAX);
    if record.hidden > 0 {
        line.number("hidden", record.hidden);
    }
    if let Some((what, id)) = &record.confirmation {
        line.text("confirmation", what);
        line.text("confirmation_id", id);
    }
    line.counts("filtered", &record.filtered);
    line.maybe("outcome", record.outcome);
    if let Some(status) = record.status {
        line.number("status", status);
    }
    if let Some(code) = record.error_code {
        line.number("error_code", code);
    }
    line.number("bytes_in", record.bytes_in);
    line.number("bytes_out", record.bytes_out);
    if record.events_out > 0 {
        line.number("events_out", record.events_out);
    }
    line.number("duration_us", record.duration_us);
    if let Some(upstream) = record.upstream_us {
        line.number("upstream_us", upstream);
    }
    line.maybe("trace_id", record.trace_id.as_deref());
    line.out
}

/// The members of a record that is not a request.
pub(super) fn event(kind: &str, fields: &[(&'static str, &str)]) -> Vec<u8> {
    let mut line = Members::of(kind);
    line.text("at", &timestamp(SystemTime::now()));
    for (name, value) in fields {
        line.text(name, value);
    }
    line.out
}

/// After records found the queue full: how many since the last such record.
pub(super) fn lost(count: u64) -> Vec<u8> {
    let mut line = Members::of("lost");
    line.text("at", &timestamp(SystemTime::now()));
    line.number("count", count);
    line.out
}

/// After a crash tore the line before this one.
pub(super) fn recovered(torn_bytes: u64, torn_sha256: &str) -> Vec<u8> {
    let mut line = Members::of("recovered");
    line.text("at", &timestamp(SystemTime::now()));
    line.number("torn_bytes", torn_bytes);
    line.text("torn_sha256", torn_sha256);
    line.out
}

struct Members {
    out: Vec<u8>,
}

impl Members {
    fn of(kind: &str) -> Members {
        let mut line = Members { out: Vec::with_capacity(LINE_BYTES) };
        line.out.extend_from_slice(b"\"kind\":");
        quote(kind, STRING_BYTES_MAX, &mut line.out);
        line
    }

    fn name(&mut self, name: &str) {
        self.out.extend_from_slice(b",\"");
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn text(&mut self, name: &'static str, value: &str) {
        self.capped(name, value, STRING_BYTES_MAX);
    }

    fn capped(&mut self, name: &'static str, value: &str, bytes_max: usize) {
        self.name(name);
        quote(value, bytes_max, &mut self.out);
    }

    fn maybe(&mut self, name: &'static str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    /// Only where it is so.
    fn flag(&mut self, name: &'static str, value: bool) {
        if value {
            self.name(name);
            self.out.extend_from_slice(b"true");
        }
    }

    fn number(&mut self, name: &'static str, value: impl Into<i128>) {
        self.name(name);
        // Writing into a `Vec` cannot fail.
        let _ = write!(self.out, "{}", value.into());
    }

    fn counts(&mut self, name: &'static str, counts: &[(std::sync::Arc<str>, u64)]) {
        if counts.is_empty() {
            return;
        }
        self.name(name);
        for (index, (what, count)) in counts.iter().enumerate() {
            self.out.push(if index == 0 { b'{' } else { b',' });
            quote(what, STRING_BYTES_MAX, &mut self.out);
            // Writing into a `Vec` cannot fail.
            let _ = write!(self.out, ":{count}");
        }
        self.out.push(b'}');
    }

    /// At most so many; the rest is counted.
    fn list(&mut self, name: &'static str, more_name: &'static str, values: &[String], values_max: usize) {
        if values.is_empty() {
            return;
        }
        self.name(name);
        for (index, value) in values.iter().take(values_max).enumerate() {
            self.out.push(if index == 0 { b'[' } else { b',' });
            quote(value, VALUE_BYTES_MAX, &mut self.out);
        }
        self.out.push(b']');
        if let Some(more @ 1..) = values.len().checked_sub(values_max) {
            self.number(more_name, more as u64);
        }
    }
}

/// Appends `value` as a JSON string of at most `bytes_max` bytes between the quotes. Escaped is all that could end the
/// line, the string or the reader's trust in what they see.
fn quote(value: &str, bytes_max: usize, out: &mut Vec<u8>) {
    out.push(b'"');
    let plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    if value.len() <= bytes_max && value.as_bytes().iter().all(plain) {
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
        return;
    }
    const CUT: char = '…';
    // The end of what still leaves room for the mark of a cut.
    let from = out.len();
    let mut fits = from;
    for c in value.chars() {
        escape(c, out);
        let written = out.len() - from;
        if written > bytes_max {
            out.truncate(fits);
            escape(CUT, out);
            break;
        }
        if written + CUT.len_utf8() <= bytes_max {
            fits = out.len();
        }
    }
    out.push(b'"');
}

fn escape(c: char, out: &mut Vec<u8>) {
    match c {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        '\t' => out.extend_from_slice(b"\\t"),
        c if misleading(c) => {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing into a `Vec` cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
        c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

/// Characters that move the cursor, break lines, turn the direction of text or cannot be seen: never raw in a log.
pub(crate) fn misleading(c: char) -> bool {
    matches!(c,
        '\0'..='\x1f' | '\x7f'..='\u{9f}'
        | '\u{ad}' | '\u{61c}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quoted(value: &str, bytes_max: usize) -> String {
        let mut out = Vec::new();
        quote(value, bytes_max, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn object(members: &[u8]) -> serde_json::Value {
        serde_json::from_slice(&[b"{", members, b"}"].concat()).unwrap()
    }

    #[test]
    fn hostile_characters_are_escaped() {
        assert_eq!(quoted("a\r\n\"b\\\x1b[31m", 99), r#""a\r\n\"b\\\u001b[31m""#);
        assert_eq!(quoted("\u{202e}\u{2028}\u{85}\u{e0041}", 99), r#""\u202e\u2028\u0085\udb40\udc41""#);
        assert_eq!(quoted("größe 東京", 99), "\"größe 東京\"");
    }

    #[test]
    fn a_long_string_is_cut_at_a_character_and_says_so() {
        assert_eq!(quoted("abcdef", 6), "\"abcdef\"");
        assert_eq!(quoted("abcdefg", 6), "\"abc…\"");
        assert_eq!(quoted("äöüß", 7), "\"äö…\"");
        assert_eq!(quoted("\n\n\n\n", 7), "\"\\n\\n…\"");
    }

    #[test]
    fn absent_facts_are_left_out_and_present_ones_stand() {
        let mut record =
            Record { subject: Some("ann".into()), status: Some(200), error_code: Some(-32_600), ..Record::default() };
        record.policies = (0..18).map(|index| format!("p{index}")).collect();
        let json = object(&request(&record));
        assert_eq!(json["subject"], "ann");
        assert_eq!(json["status"], 200);
        assert_eq!(json["error_code"], -32_600);
        assert_eq!(json["policies"].as_array().unwrap().len(), POLICIES_MAX);
        assert_eq!(json["policies_more"], 2);
        assert!(json.get("issuer").is_none());
        assert!(json.get("trace_id").is_none());
    }

    proptest! {
        #[test]
        fn any_strings_make_exactly_one_json_line_that_parses_back(
            texts in prop::collection::vec(any::<String>(), 6),
            policies in prop::collection::vec(any::<String>(), 0..20),
        ) {
            let [path, subject, target, method, tenant, peer] = <[String; 6]>::try_from(texts).unwrap();
            let record = Record {
                path: path.clone(), subject: Some(subject.clone()), target: Some(target), method: Some(method),
                tenant: Some(tenant), peer: Some(peer), policies, ..Record::default()
            };
            let members = request(&record);
            prop_assert!(members.len() < 16 * 1024);
            let text = std::str::from_utf8(&members).unwrap();
            prop_assert!(!text.chars().any(misleading));
            let json = object(&members);
            for (name, sent) in [("path", &path), ("subject", &subject)] {
                let read = json[name].as_str().unwrap();
                let same = read == sent;
                let cut = read.strip_suffix('…').is_some_and(|start| sent.starts_with(start));
                prop_assert!(same || cut, "{sent:?} became {read:?}");
            }
        }
    }
}
