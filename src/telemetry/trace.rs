//! W3C trace context: what a caller's `traceparent` and `tracestate` say, and what goes on to a backend. Pure.

use std::fmt;

/// `00-` 32 hex `-` 16 hex `-` 2 hex.
const TRACEPARENT_BYTES: usize = 55;

/// The standard asks to pass on at least this much; more is dropped rather than cut.
const TRACESTATE_BYTES_MAX: usize = 512;
const TRACESTATE_MEMBERS_MAX: usize = 32;

/// The flags that version 00 knows: sampled, and random trace id (level 2).
const FLAGS_KNOWN: u8 = 0b11;

/// One place in a trace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trace {
    /// Never zero.
    pub trace_id: u128,
    /// Never zero.
    pub span_id: u64,
    pub flags: u8,
    pub tracestate: Option<String>,
}

impl Trace {
    /// A new trace, not sampled. Zeros, which the standard forbids, become ones.
    pub fn root(trace_id: u128, span_id: u64) -> Trace {
        Trace { trace_id: trace_id.max(1), span_id: span_id.max(1), flags: 0, tracestate: None }
    }

    /// Reads a `traceparent`; `None` if anything about it is wrong: then a new trace is started.
    pub fn parse(traceparent: &str) -> Option<Trace> {
        let bytes = traceparent.as_bytes();
        let (known, more) = bytes.split_at_checked(TRACEPARENT_BYTES)?;
        let mut fields = known.split(|byte| *byte == b'-');
        let mut field = |digits: usize| hex(fields.next().filter(|field| field.len() == digits)?);
        let (version, trace_id, span_id, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        // Version 00 ends here; a later one may go on after a dash; ff is forbidden.
        let ends = more.is_empty() || (version != 0 && more.first() == Some(&b'-'));
        if !ends || version == 0xff || trace_id == 0 || span_id == 0 {
            return None;
        }
        let flags = u8::try_from(flags).ok()? & FLAGS_KNOWN;
        Some(Trace { trace_id, span_id: u64::try_from(span_id).ok()?, flags, tracestate: None })
    }

    /// Adds the caller's `tracestate` (several headers joined by commas). One that is too long or malformed is dropped;
    /// the trace goes on without.
    #[must_use]
    pub fn with_state(mut self, tracestate: Option<&str>) -> Trace {
        self.tracestate = tracestate.map(str::trim).filter(|state| is_state(state)).map(str::to_owned);
        self
    }

    /// The same trace, one step further: what a backend gets as its parent.
    #[must_use]
    pub fn child(&self, span_id: u64) -> Trace {
        Trace { span_id: span_id.max(1), ..self.clone() }
    }

    /// 32 hex digits, as in logs and the audit record.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    pub fn sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// The value of the header. Always version 00: what we speak.
    pub fn traceparent(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

/// Lower-case digits only, as the standard has it.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

fn is_state(state: &str) -> bool {
    let members: Vec<&str> =
        state.split(',').map(|member| member.trim_matches([' ', '\t'])).filter(|member| !member.is_empty()).collect();
    let keys: Vec<&str> = members.iter().filter_map(|member| member.split_once('=').map(|(key, _)| key)).collect();
    let unique = keys.iter().enumerate().all(|(index, key)| keys.iter().take(index).all(|other| other != key));
    (1..=TRACESTATE_BYTES_MAX).contains(&state.len())
        && (1..=TRACESTATE_MEMBERS_MAX).contains(&members.len())
        && unique
        && members.iter().all(|member| is_member(member))
}

fn is_member(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else { return false };
    let key_byte = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@');
    let value_byte = |byte: u8| matches!(byte, b' '..=b'~') && !matches!(byte, b',' | b'=');
    (1..=256).contains(&key.len())
        && key.bytes().all(key_byte)
        && key.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && (1..=256).contains(&value.len())
        && value.bytes().all(value_byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_good_parent_is_read_and_written_back() {
        let trace = Trace::parse(GOOD).unwrap();
        assert_eq!(
            (trace.trace_id().as_str(), trace.span_id),
            ("0af7651916cd43dd8448eb211c80319c", 0xb7ad_6b71_6920_3331)
        );
        assert!(trace.sampled());
        assert_eq!(trace.traceparent(), GOOD);
    }

    #[test]
    fn a_child_keeps_the_trace_and_has_its_own_span() {
        let trace = Trace::parse(GOOD).unwrap().with_state(Some("a=1"));
        let child = trace.child(7);
        assert_eq!(child.traceparent(), "00-0af7651916cd43dd8448eb211c80319c-0000000000000007-01");
        assert_eq!(child.tracestate.as_deref(), Some("a=1"));
        assert_eq!(Trace::root(0, 0).child(0).traceparent(), "00-00000000000000000000000000000001-0000000000000001-00");
    }

    #[test]
    fn bad_parents_are_refused() {
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "0g-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x",
            "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01x",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b71692033é-01",
        ] {
            assert_eq!(Trace::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_we_know_it() {
        let trace = Trace::parse("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff-what-ever").unwrap();
        assert_eq!(trace.traceparent(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03");
    }

    #[test]
    fn a_malformed_state_is_dropped() {
        let state = |text: &str| Trace::root(1, 1).with_state(Some(text)).tracestate;
        assert_eq!(
            state(" rojo=00f067aa0ba902b7 , tenant@vendor=t61:x ").as_deref(),
            Some("rojo=00f067aa0ba902b7 , tenant@vendor=t61:x")
        );
        let many = (0..33).map(|index| format!("k{index}=v")).collect::<Vec<_>>().join(",");
        for bad in [
            "",
            ",",
            "a",
            "a=",
            "=1",
            "A=1",
            "a=1,a=2",
            "a=b=c",
            "a=\u{e9}",
            "a=\r\nx",
            &many,
            &format!("a={}", "x".repeat(600)),
        ] {
            assert_eq!(state(bad), None, "{bad:?}");
        }
        assert_eq!(Trace::root(1, 1).with_state(None).tracestate, None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(trace_id in 1..=u128::MAX, span_id in 1..=u64::MAX, flags in 0..=FLAGS_KNOWN) {
            let trace = Trace { trace_id, span_id, flags, tracestate: None };
            prop_assert_eq!(Trace::parse(&trace.traceparent()), Some(trace));
        }

        #[test]
        fn any_text_is_judged_without_a_panic(text in any::<String>()) {
            let _ = Trace::parse(&text).map(|trace| trace.with_state(Some(&text)));
        }
    }
}
