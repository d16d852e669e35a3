//! A backend's resource URIs on a route with several backends: `file:///a` of `fs` is `wardgate+fs+file:///a`.
//!
//! The upstream's URI stands whole behind a scheme of ours, so that templates keep their variables where they were
//! (RFC 6570) and what was hierarchical stays so. A text without a scheme of its own (`{scheme}://x`, `notes`) stands
//! behind a colon instead: `wardgate+fs:notes`.

const OURS: &str = "wardgate+";

/// The first part of all URIs of a backend. Schemes are letters, digits, `+`, `.` and `-`, and clients may write them in
/// lower case: everything else of the prefix becomes `.` and two hex digits. No `+` is in it, and no two are equal.
pub(super) fn scheme(prefix: &str) -> String {
    let mut out = String::from(OURS);
    for byte in prefix.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' => out.push(char::from(byte)),
            other => out.push_str(&format!(".{other:02x}")),
        }
    }
    out
}

pub(super) fn wrap(scheme: &str, uri: &str) -> String {
    let joint = if has_scheme(uri) { '+' } else { ':' };
    format!("{scheme}{joint}{uri}")
}

pub(super) fn unwrap<'u>(scheme: &str, whole: &'u str) -> Option<&'u str> {
    // Both joints are taken: an expanded template may have become a URI with a scheme.
    whole.strip_prefix(scheme)?.strip_prefix(['+', ':'])
}

/// RFC 3986 §3.1.
fn has_scheme(uri: &str) -> bool {
    uri.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_and_templates_stay_what_they_were() {
        for (prefix, uri, whole) in [
            ("fs", "file:///a/b", "wardgate+fs+file:///a/b"),
            ("fs", "file:///{path}{?q*}", "wardgate+fs+file:///{path}{?q*}"),
            ("my_FS.1", "note://a", "wardgate+my.5f.46.53.2e1+note://a"),
            ("git", "git+ssh://h/x", "wardgate+git+git+ssh://h/x"),
            ("fs", "{scheme}://x", "wardgate+fs:{scheme}://x"),
            ("fs", "notes", "wardgate+fs:notes"),
            ("fs", "", "wardgate+fs:"),
        ] {
            assert_eq!(wrap(&scheme(prefix), uri), whole);
            assert_eq!(unwrap(&scheme(prefix), whole), Some(uri), "{whole}");
        }
        assert_eq!(unwrap(&scheme("fs"), "wardgate+fs:file://x"), Some("file://x"), "an expanded template");
        for foreign in ["file:///a", "wardgate+f+file:///a", "wardgate+fsx+file:///a", "wardgate+fs", "WARDGATE+fs+a:b"]
        {
            assert_eq!(unwrap(&scheme("fs"), foreign), None, "{foreign}");
        }
    }
}
