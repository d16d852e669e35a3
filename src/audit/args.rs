//! The keyed digest of a call's arguments: equal arguments are recognised, and none can be read or guessed from it.
//!
//! The digest is taken over a canonical form in the manner of RFC 8785: members sorted, no white space, strings with
//! the fewest escapes. Numbers keep the digits that were sent, so `1.0` and `1` differ.

use std::borrow::Cow;

use ring::hmac;

use super::DIGEST_KEY_BYTES_MIN;
use super::Error;
use super::chain::hex;
use crate::secret::Secret;

/// Deeper arguments are digested as they were sent.
const DEPTH_MAX: usize = 128;

pub(super) fn key(configured: Option<&Secret>) -> Result<hmac::Key, Error> {
    match configured {
        Some(secret) if secret.expose().len() < DIGEST_KEY_BYTES_MIN => Err(Error::DigestKey),
        Some(secret) => Ok(hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes())),
        None => hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new()).map_err(|_| Error::Random),
    }
}

pub(super) fn digest(key: &hmac::Key, raw_json: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    match canonical(raw_json) {
        Some(canonical) => {
            context.update(b"json\0");
            context.update(&canonical);
        }
        None => {
            context.update(b"raw\0");
            context.update(raw_json);
        }
    }
    hex(context.sign().as_ref())
}

/// `None` if it is not JSON or too deep.
fn canonical(raw_json: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader { rest: std::str::from_utf8(raw_json).ok()? };
    let node = reader.node(DEPTH_MAX)?;
    reader.skip();
    if !reader.rest.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(raw_json.len());
    node.write(&mut out);
    Some(out)
}

enum Node<'a> {
    Array(Vec<Node<'a>>),
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
    /// Numbers and literals, as sent.
    Plain(&'a str),
    String(Cow<'a, str>),
}

impl Node<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Node::Plain(text) => out.extend_from_slice(text.as_bytes()),
            Node::String(text) => string(text, out),
            Node::Array(nodes) => {
                out.push(b'[');
                for (index, node) in nodes.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    node.write(out);
                }
                out.push(b']');
            }
            Node::Object(members) => {
                out.push(b'{');
                for (index, (name, node)) in members.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    string(name, out);
                    out.push(b':');
                    node.write(out);
                }
                out.push(b'}');
            }
        }
    }
}

fn string(text: &str, out: &mut Vec<u8>) {
    // serde_json writes the shortest escapes, as RFC 8785 asks. Writing a `str` into a `Vec` cannot fail.
    let _ = serde_json::to_writer(out, text);
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn eat(&mut self, c: char) -> bool {
        self.skip();
        self.rest.strip_prefix(c).map(|rest| self.rest = rest).is_some()
    }

    fn node(&mut self, depth: usize) -> Option<Node<'a>> {
        let deeper = depth.checked_sub(1)?;
        self.skip();
        if self.eat('{') {
            return self.object(deeper);
        }
        if self.eat('[') {
            return self.array(deeper);
        }
        if self.rest.starts_with('"') {
            return self.string().map(Node::String);
        }
        let end = self.rest.find([',', ']', '}', ' ', '\t', '\n', '\r']).unwrap_or(self.rest.len());
        let (plain, rest) = self.rest.split_at_checked(end)?;
        // The parser's word on what is a number or a literal; quotes are excluded above.
        serde_json::from_str::<serde::de::IgnoredAny>(plain).ok()?;
        self.rest = rest;
        Some(Node::Plain(plain))
    }

    fn object(&mut self, depth: usize) -> Option<Node<'a>> {
        let mut members = Vec::new();
        if self.eat('}') {
            return Some(Node::Object(members));
        }
        loop {
            self.skip();
            let name = self.string()?;
            if !self.eat(':') {
                return None;
            }
            members.push((name, self.node(depth)?));
            if self.eat('}') {
                members.sort_by(|(one, _), (other, _)| one.cmp(other));
                return Some(Node::Object(members));
            }
            if !self.eat(',') {
                return None;
            }
        }
    }

    fn array(&mut self, depth: usize) -> Option<Node<'a>> {
        let mut nodes = Vec::new();
        if self.eat(']') {
            return Some(Node::Array(nodes));
        }
        loop {
            nodes.push(self.node(depth)?);
            if self.eat(']') {
                return Some(Node::Array(nodes));
            }
            if !self.eat(',') {
                return None;
            }
        }
    }

    fn string(&mut self) -> Option<Cow<'a, str>> {
        let inside = self.rest.strip_prefix('"')?;
        let mut escaped = false;
        let end = inside.bytes().position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        })?;
        let (quoted, rest) = self.rest.split_at_checked(end + 2)?;
        self.rest = rest;
        let text = inside.get(..end)?;
        if text.contains('\\') || text.bytes().any(|byte| byte < b' ') {
            return serde_json::from_str(quoted).ok().map(Cow::Owned);
        }
        Some(Cow::Borrowed(text))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(json: &str) -> Option<String> {
        canonical(json.as_bytes()).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn order_white_space_and_escapes_do_not_matter() {
        assert_eq!(
            text(" { \"b\" : [ 1.0 , true ] , \"a\" : \"\\u0041\\/\" } ").unwrap(),
            r#"{"a":"A/","b":[1.0,true]}"#
        );
        assert_eq!(text("{}").unwrap(), "{}");
        assert_eq!(text("[[],{}]").unwrap(), "[[],{}]");
        assert_eq!(text(r#""a\"b""#).unwrap(), r#""a\"b""#);
    }

    #[test]
    fn numbers_keep_their_digits() {
        assert_eq!(
            text("[1e400,1.00,123456789012345678901234567890]").unwrap(),
            "[1e400,1.00,123456789012345678901234567890]"
        );
    }

    #[test]
    fn what_is_not_json_has_no_canonical_form() {
        for bad in ["", "{", "[1,]", "{\"a\"}", "{\"a\":1,}", "nul", "01", "1 2", "\"\n\"", "\"\\x\"", "{a:1}", "\"a"] {
            assert_eq!(text(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn depth_is_bounded_and_deep_arguments_still_have_a_digest() {
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(text(&deep(DEPTH_MAX)).is_some());
        assert!(text(&deep(DEPTH_MAX + 1)).is_none());
        let key = key(None).unwrap();
        let abyss = "[".repeat(4 * 1024 * 1024);
        assert_eq!(digest(&key, abyss.as_bytes()).len(), 64);
    }

    #[test]
    fn the_digest_depends_on_the_key_and_on_the_value() {
        let one = key(Some(&Secret::new("0123456789abcdef0123456789abcdef"))).unwrap();
        let other = key(None).unwrap();
        assert_eq!(digest(&one, b"{\"a\":1,\"b\":2}"), digest(&one, b"{ \"b\":2, \"a\":1 }"));
        assert_ne!(digest(&one, b"{\"a\":1}"), digest(&one, b"{\"a\":2}"));
        assert_ne!(digest(&one, b"{\"a\":1}"), digest(&other, b"{\"a\":1}"));
        assert_ne!(digest(&one, b"json\0"), digest(&one, b"raw\0"));
    }

    #[test]
    fn a_short_key_is_refused() {
        assert!(matches!(key(Some(&Secret::new("short"))), Err(Error::DigestKey)));
    }

    fn value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            any::<Option<bool>>().prop_map(|value| serde_json::json!(value)),
            any::<i64>().prop_map(|value| serde_json::json!(value)),
            any::<String>().prop_map(|value| serde_json::json!(value)),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(serde_json::Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..5)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_canonical_form_is_the_same_value_and_canonical(value in value()) {
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let canonical = text(&pretty).unwrap();
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&canonical).unwrap(), value);
            prop_assert_eq!(text(&canonical).unwrap(), canonical);
        }

        #[test]
        fn any_bytes_have_a_digest(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
            prop_assert_eq!(digest(&key, &bytes).len(), 64);
        }
    }
}
