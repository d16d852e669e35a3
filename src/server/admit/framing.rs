//! The framing of an HTTP/1 head, judged on its raw bytes.

use crate::gateway::Rejection;

use super::bad;

/// Checks the framing of an HTTP/1 head on its raw bytes and gives the request target.
///
/// # Errors
/// The connection cannot be used any further: where the next request begins is a matter of opinion.
pub(in crate::server) fn framing(raw: &[u8], head_bytes_max: usize) -> Result<&[u8], Rejection> {
    if raw.len() > head_bytes_max {
        return Err(Rejection::HeadersTooLarge);
    }
    // RFC 9112 section 2.2: one empty line before a request is forgiven.
    let raw = raw.strip_prefix(b"\r\n").unwrap_or(raw);
    let raw = raw.strip_suffix(b"\r\n\r\n").ok_or(bad("lines must end with CRLF"))?;
    let mut lines = raw.split(|byte| *byte == b'\n');
    let mut next = lines.next();
    let mut target = None;
    let mut seen = Fields::default();
    while let Some(line) = next {
        next = lines.next();
        // The last line has lost its CR with the empty line.
        let line = if next.is_some() { line.strip_suffix(b"\r").ok_or(bad("lines must end with CRLF"))? } else { line };
        if line.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
            return Err(bad("control character in the head"));
        }
        match target {
            None => target = Some(request_line(line)?),
            Some(_) => seen.field(line)?,
        }
    }
    seen.judge()?;
    target.ok_or(bad("no request line"))
}

fn request_line(line: &[u8]) -> Result<&[u8], Rejection> {
    let mut parts = line.split(|byte| *byte == b' ');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(_), Some(target), Some(b"HTTP/1.1"), None) if !target.is_empty() => Ok(target),
        (Some(_), Some(_), Some(b"HTTP/1.0"), None) => Err(bad("HTTP/1.0 is not spoken here")),
        _ => Err(bad("malformed request line")),
    }
}

/// The fields that frame a message, counted.
#[derive(Default)]
struct Fields {
    lengths: usize,
    codings: usize,
    hosts: usize,
}

impl Fields {
    fn field(&mut self, line: &[u8]) -> Result<(), Rejection> {
        if line.first().is_some_and(|byte| matches!(byte, b' ' | b'\t')) {
            return Err(bad("folded header line"));
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or(bad("header line without colon"))?;
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if name.is_empty() || !name.iter().all(is_token_byte) {
            return Err(bad("malformed header name"));
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths += 1;
            if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
                return Err(bad("malformed Content-Length"));
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.codings += 1;
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(bad("a Transfer-Encoding other than chunked"));
            }
        } else if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
        }
        Ok(())
    }

    fn judge(&self) -> Result<(), Rejection> {
        match self {
            Fields { lengths: 1.., codings: 1.., .. } => Err(bad("Content-Length beside Transfer-Encoding")),
            Fields { lengths: 2.., .. } => Err(bad("more than one Content-Length")),
            Fields { codings: 2.., .. } => Err(bad("more than one Transfer-Encoding")),
            Fields { hosts: 0, .. } => Err(bad("no Host")),
            Fields { hosts: 2.., .. } => Err(bad("more than one Host")),
            _ => Ok(()),
        }
    }
}

fn is_token_byte(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}
