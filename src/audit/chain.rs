//! The chain: how a record's fields become a sealed line, and how a line is taken apart again.
//!
//! `{"seq":N,"prev":"<64 hex>",` fields `,"hash":"<64 hex>"}`: the hash is the SHA-256 of every byte before `,"hash":`.
//! Nothing is parsed and written again to check a line, so there is no canonical form to disagree about.

use std::io::Write as _;

use ring::digest;

/// The `prev` of the first record of all.
pub(super) const GENESIS: [u8; 32] = [0; 32];

const TRAILER: &[u8] = b",\"hash\":\"";
/// `,"hash":"`, 64 hex digits, `"}`.
const TRAILER_BYTES: usize = TRAILER.len() + 64 + 2;

/// The last record: the next one follows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Head {
    pub(super) seq: u64,
    pub(super) hash: [u8; 32],
}

impl Head {
    pub(super) const NONE: Head = Head { seq: 0, hash: GENESIS };

    /// Appends the sealed line of `fields` (members without braces) with its newline, and becomes its head.
    pub(super) fn seal(&mut self, fields: &[u8], out: &mut Vec<u8>) {
        let from = out.len();
        self.seq = self.seq.saturating_add(1);
        out.extend_from_slice(b"{\"seq\":");
        // Writing into a `Vec` cannot fail.
        let _ = write!(out, "{}", self.seq);
        out.extend_from_slice(b",\"prev\":\"");
        push_hex(&self.hash, out);
        out.extend_from_slice(b"\",");
        out.extend_from_slice(fields);
        self.hash = sha256(out.get(from..).unwrap_or_default());
        out.extend_from_slice(TRAILER);
        push_hex(&self.hash, out);
        out.extend_from_slice(b"\"}\n");
    }
}

/// A line that has the form of a record. Whether the hash is right is a separate question.
pub(super) struct Sealed<'a> {
    pub(super) seq: u64,
    pub(super) prev: [u8; 32],
    pub(super) hash: [u8; 32],
    body: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// Takes a line (without newline) apart.
    pub(super) fn parse(line: &'a [u8]) -> Option<Sealed<'a>> {
        let (body, trailer) = line.split_at_checked(line.len().checked_sub(TRAILER_BYTES)?)?;
        let hash = unhex(trailer.strip_prefix(TRAILER)?.strip_suffix(b"\"}")?)?;
        let rest = body.strip_prefix(b"{\"seq\":")?;
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = rest.split_at_checked(digits)?;
        // One spelling of a number: no leading zero, nothing that overflows.
        if digits.first() == Some(&b'0') {
            return None;
        }
        let seq = std::str::from_utf8(digits).ok()?.parse().ok()?;
        let (prev, rest) = rest.strip_prefix(b",\"prev\":\"")?.split_at_checked(64)?;
        rest.strip_prefix(b"\",")?;
        Some(Sealed { seq, prev: unhex(prev)?, hash, body })
    }

    pub(super) fn is_intact(&self) -> bool {
        sha256(self.body) == self.hash
    }

    pub(super) fn head(&self) -> Head {
        Head { seq: self.seq, hash: self.hash }
    }
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len() * 2);
    push_hex(bytes, &mut out);
    out.into_iter().map(char::from).collect()
}

fn push_hex(bytes: &[u8], out: &mut Vec<u8>) {
    let digit = |nibble: u8| if nibble < 10 { b'0' + nibble } else { b'a' + (nibble - 10) };
    out.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
}

/// Lower-case hex only: one spelling of a hash.
pub(super) fn unhex(text: &[u8]) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 64 {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(text.as_chunks::<2>().0) {
        let [high, low] = *pair;
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_line_parses_back_and_is_intact() {
        let mut head = Head::NONE;
        let mut out = Vec::new();
        head.seal(b"\"kind\":\"request\"", &mut out);
        let line = out.strip_suffix(b"\n").unwrap();
        let sealed = Sealed::parse(line).unwrap();
        assert!(sealed.is_intact());
        assert_eq!((sealed.head(), sealed.prev, sealed.seq), (head, GENESIS, 1));
        let json: serde_json::Value = serde_json::from_slice(line).unwrap();
        assert_eq!(json["hash"], hex(&head.hash));
    }

    #[test]
    fn any_changed_byte_of_a_line_is_noticed() {
        let mut out = Vec::new();
        Head::NONE.clone().seal(b"\"kind\":\"request\",\"subject\":\"ann\"", &mut out);
        out.pop();
        for at in 0..out.len() {
            let mut changed = out.clone();
            changed[at] ^= 1;
            assert!(!Sealed::parse(&changed).is_some_and(|sealed| sealed.is_intact()), "byte {at}");
        }
    }

    #[test]
    fn hex_reads_what_it_writes_and_nothing_else() {
        let hash = sha256(b"x");
        assert_eq!(unhex(hex(&hash).as_bytes()), Some(hash));
        assert_eq!(unhex(hex(&hash).to_uppercase().as_bytes()), None);
        assert_eq!(unhex(b"00"), None);
    }
}
