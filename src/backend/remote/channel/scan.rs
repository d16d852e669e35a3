//! Whose is a message that is too long to be held? A scanner that sees each byte once and keeps a few of them. Pure.

/// A name or a number that is longer is none that counts here: `method` takes 38 bytes where every letter is escaped.
const TOKEN_BYTES_MAX: usize = 64;

/// Whose a message is that nobody has whole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::backend::remote) enum Whose {
    /// The answer to the request with this number of ours.
    Answer(u64),
    /// No answer, or one to a request that is not ours.
    Nobody,
    /// It does not say.
    Unknown,
}

/// Follows one line through its strings and its depth; what counts are the members of the outermost object.
#[derive(Debug, Default)]
pub(in crate::backend::remote) struct Scan {
    depth: u64,
    begun: bool,
    /// It is no JSON object.
    broken: bool,
    in_string: bool,
    escaped: bool,
    /// The name, or what there is of a value, while outermost.
    token: Vec<u8>,
    /// The member whose value is being read.
    member: Option<Member>,
    id: Option<Option<u64>>,
    method: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Member {
    Id,
    Method,
    Other,
}

impl Scan {
    pub(in crate::backend::remote) fn feed(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.take(*byte));
    }

    /// Whose it is, after its last byte.
    pub(in crate::backend::remote) fn whose(&self) -> Whose {
        match self.id {
            _ if self.broken => Whose::Unknown,
            _ if self.method => Whose::Nobody,
            Some(Some(number)) => Whose::Answer(number),
            Some(None) => Whose::Nobody,
            None => Whose::Unknown,
        }
    }

    fn take(&mut self, byte: u8) {
        if self.in_string {
            self.keep(byte);
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return;
        }
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {}
            b'{' | b'[' => self.open(byte),
            b'}' | b']' => self.close(),
            _ if self.depth == 0 => self.broken = true,
            b':' if self.depth == 1 => self.name(),
            b',' if self.depth == 1 => self.member_over(),
            _ => {
                self.in_string = byte == b'"';
                self.keep(byte);
            }
        }
    }

    /// One byte more than may be kept says that the token is too long.
    fn keep(&mut self, byte: u8) {
        if self.depth == 1 && self.token.len() <= TOKEN_BYTES_MAX {
            self.token.push(byte);
        }
    }

    fn open(&mut self, byte: u8) {
        let first = self.depth == 0;
        // One object, and only as a value are there others in it.
        self.broken |= (first && (self.begun || byte != b'{')) || (self.depth == 1 && self.member.is_none());
        self.begun = true;
        self.depth += 1;
    }

    fn close(&mut self) {
        if self.depth == 1 {
            self.member_over();
        }
        match self.depth.checked_sub(1) {
            Some(depth) => self.depth = depth,
            None => self.broken = true,
        }
    }

    fn name(&mut self) {
        self.broken |= self.member.is_some();
        let name = serde_json::from_slice::<String>(&self.token).unwrap_or_default();
        self.member = Some(match name.as_str() {
            "id" => Member::Id,
            "method" => Member::Method,
            _ => Member::Other,
        });
        self.token.clear();
    }

    fn member_over(&mut self) {
        match self.member.take() {
            Some(Member::Id) => {
                // Two readers could take it for two.
                self.broken |= self.id.is_some();
                self.id = Some(serde_json::from_slice(&self.token).ok());
            }
            Some(Member::Method) => self.method = true,
            Some(Member::Other) | None => {}
        }
        self.token.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose(line: &str) -> Whose {
        let mut whole = Scan::default();
        whole.feed(line.as_bytes());
        let mut piecemeal = Scan::default();
        line.as_bytes().iter().for_each(|byte| piecemeal.feed(&[*byte]));
        assert_eq!(whole.whose(), piecemeal.whose(), "{line}");
        whole.whose()
    }

    #[test]
    fn the_id_is_found_wherever_it_stands() {
        for line in [
            r#"{"jsonrpc":"2.0","id":7,"result":{"x":"aaaa"}}"#,
            r#"{"jsonrpc":"2.0","result":{"x":"aaaa","id":8},"id":7}"#,
            r#" { "result" : [ {"id":1}, "}\",\"id\":9," , 1.5e3 ] , "id" : 7 } "#,
            r#"{"result":"\\","id":7,"jsonrpc":"2.0"}"#,
            r#"{"\u0069\u0064":7,"error":{"code":1,"message":"id\":8"}}"#,
            // It breaks off: this one will not be answered again.
            r#"{"jsonrpc":"2.0","id":7,"result":{"x":"aaaa"#,
        ] {
            assert_eq!(whose(line), Whose::Answer(7), "{line}");
        }
        let long = format!(r#"{{"{}":"{}","id":7}}"#, "k".repeat(1_000), "v".repeat(1_000));
        assert_eq!(whose(&long), Whose::Answer(7));
    }

    #[test]
    fn what_is_no_answer_to_us_is_nobodys_and_what_is_no_object_is_unknown() {
        for line in [
            r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"id":7}}"#,
            r#"{"jsonrpc":"2.0","id":7,"params":{},"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":"7","result":{}}"#,
            r#"{"jsonrpc":"2.0","id":null,"error":{}}"#,
            r#"{"jsonrpc":"2.0","id":{"id":7},"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":-7,"result":{}}"#,
        ] {
            assert_eq!(whose(line), Whose::Nobody, "{line}");
        }
        for line in [
            "",
            "xxxxx",
            r#"[{"id":7,"result":{}}]"#,
            r#"{"jsonrpc":"2.0","result":{"id":7}}"#,
            r#"{"id":7,"id":8,"result":{}}"#,
            r#"{"result":{}}{"id":7}"#,
            r#""id":7"#,
            r#"{}}"#,
            r#"{"result":"x "id":7}"#,
        ] {
            assert_eq!(whose(line), Whose::Unknown, "{line}");
        }
    }
}
