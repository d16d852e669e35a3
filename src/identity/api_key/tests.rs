//! Lines of the keys file, and the keys that they open to.

use super::*;
use std::io::Write;

fn at(text: &str) -> SystemTime {
    time(text).expect("a time")
}

fn keys(text: &str) -> Result<Keys, StartError> {
    let mut file = tempfile::NamedTempFile::new().expect("file");
    file.write_all(text.as_bytes()).expect("written");
    Keys::read(file.path(), None)
}

#[test]
fn a_generated_key_opens_with_the_scopes_of_its_line() {
    let scopes = ["files:read".to_owned(), "mcp.read".to_owned()];
    let (key, line) = generate("ci-runner", &scoped(&scopes)).expect("key");
    assert!(!line.contains(key.expose()), "the line does not hold the key");
    let keys = keys(&format!("# our keys\n\n{line} tenant=contoso\n")).expect("file");
    let principal = keys.verify(key.expose(), at("2026-01-01"), true).expect("known");
    assert_eq!(principal.subject, "ci-runner");
    assert_eq!(principal.issuer, "api-key");
    assert_eq!(principal.kind, Kind::Service);
    assert_eq!(principal.method, Method::ApiKey);
    assert_eq!(principal.scopes, BTreeSet::from(scopes));
    assert_eq!(principal.tenant.as_deref(), Some("contoso"));
    assert!(principal.mtls);
    assert!(!keys.verify(key.expose(), at("2026-01-01"), false).expect("known").mtls);
}

fn scoped(scopes: &[String]) -> Fields {
    Fields { scopes: scopes.to_vec(), ..Fields::default() }
}

#[test]
fn every_field_of_a_line_can_be_given_when_the_key_is_made() {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let fields = Fields {
        scopes: words("a b"),
        roles: words("operator"),
        groups: words("ops eu"),
        tenant: Some("contoso".into()),
        not_before: Some("2026-01-01".into()),
        expires: Some("2027-01-01".into()),
    };
    let (key, line) = generate("one", &fields).expect("key");
    let ending = " scopes=a,b roles=operator groups=ops,eu tenant=contoso not_before=2026-01-01 expires=2027-01-01";
    assert!(line.ends_with(ending), "{line}");
    let keys = keys(&line).expect("file");
    let early = keys.verify(key.expose(), at("2025-12-31T23:59:59Z"), false).expect_err("early").to_string();
    assert_eq!(early, "the API key is not valid yet");
    let principal = keys.verify(key.expose(), at("2026-01-01"), false).expect("good");
    assert_eq!((principal.roles.len(), principal.groups.len()), (1, 2));
    for bad in [
        Fields { tenant: Some("a b".into()), ..Fields::default() },
        Fields { expires: Some("tomorrow".into()), ..Fields::default() },
        Fields { roles: words("a,b"), ..Fields::default() },
        Fields { scopes: vec![String::new()], ..Fields::default() },
    ] {
        assert!(generate("one", &bad).is_err(), "{bad:?}");
    }
    assert!(generate("a b", &Fields::default()).is_err());
}

#[test]
fn when_a_key_was_used_is_told_without_the_key_and_kept_over_a_reload() {
    let (old, first) = generate("one", &Fields::default()).expect("key");
    let (_, second) = generate("one", &Fields::default()).expect("key");
    let mut file = tempfile::NamedTempFile::new().expect("file");
    writeln!(file, "{first}\n{second}").expect("written");
    let keys = Keys::read(file.path(), None).expect("file");
    assert_eq!(keys.used(), []);
    keys.verify(old.expose(), at("2026-01-02"), false).expect("good");
    keys.verify(old.expose(), at("2026-01-01"), false).expect("good");
    let print = first.split(' ').nth(1).expect("hash").chars().take(8).collect();
    let expected = [Use { name: "one".into(), print, at: super::super::seconds(at("2026-01-02")) }];
    assert_eq!(keys.used(), expected);
    assert_eq!(Keys::read(file.path(), Some(&keys)).expect("file").used(), expected);
}

#[test]
fn an_unknown_or_malformed_key_is_refused() {
    let (_, line) = generate("one", &Fields::default()).expect("key");
    let (other, _) = generate("two", &Fields::default()).expect("key");
    let keys = keys(&line).expect("file");
    let refused = |key: &str| keys.verify(key, at("2026-01-01"), false).expect_err("refused").to_string();
    assert_eq!(refused(other.expose()), "the API key is not known");
    let digest = line.split(' ').next_back().expect("digest");
    let too_long = format!("{}A", other.expose());
    for malformed in ["", "wgk_", "wgk_short", "xyz", digest, too_long.as_str(), "wgk_ééééééééééééééééééééé1"]
    {
        assert_eq!(refused(malformed), "the API key does not have the form of one", "{malformed}");
    }
}

#[test]
fn a_key_ends_at_the_moment_it_expires() {
    let (key, line) = generate("one", &Fields::default()).expect("key");
    let keys = keys(&format!("{line} expires=2027-01-31T12:00:00Z")).expect("file");
    let principal = keys.verify(key.expose(), at("2027-01-31T11:59:59Z"), false).expect("still good");
    assert_eq!(principal.expires_at(), Some(at("2027-01-31T12:00:00Z")));
    let error = keys.verify(key.expose(), at("2027-01-31T12:00:00Z"), false).expect_err("expired");
    assert_eq!(error.to_string(), "the API key has expired");
}

#[test]
fn two_keys_of_one_name_are_the_same_caller() {
    let (old, first) = generate("one", &Fields::default()).expect("key");
    let (new, second) = generate("one", &Fields::default()).expect("key");
    let keys = keys(&format!("{first}\n{second}\n")).expect("file");
    let who = |key: &Secret| keys.verify(key.expose(), at("2026-01-01"), false).expect("known").key().clone();
    assert_eq!(who(&old), who(&new));
}

#[test]
fn a_bad_line_is_named_with_its_number() {
    let hash = "ab".repeat(32);
    for (line, expected) in [
        (format!("a:b {hash}"), "the name must be"),
        (format!("one {}", "ab".repeat(31)), "the second field"),
        (format!("one {}zz", "ab".repeat(31)), "the second field"),
        ("one".to_owned(), "the second field"),
        (format!("one {hash} scopes=a,,b"), "`scopes`, `roles`"),
        (format!("one {hash} scopes=a\"b"), "`scopes`, `roles`"),
        (format!("one {hash} tenant="), "`tenant` must be"),
        (format!("one {hash} tenant=a|b"), "`tenant` must be"),
        (format!("one {hash} expires=2027-02-29"), "`expires` must be"),
        (format!("one {hash} expires=2027-01-01T24:00:00Z"), "`expires` must be"),
        (format!("one {hash} expires=2027-01-01T00:00:00+01:00"), "`expires` must be"),
        (format!("one {hash} expires=2027-1-1"), "`expires` must be"),
        (format!("one {hash} scopes=a scopes=b"), "a field is there twice"),
        (format!("one {hash} admin"), "a field must be"),
        (format!("one {hash} role=admin"), "a field must be"),
        (format!("one {hash} roles=a,"), "`scopes`, `roles`"),
        (format!("one {hash} not_before=soon"), "`not_before` must be"),
        (format!("one {hash} expires=2027-01-01 not_before=2027-01-01"), "never be good"),
        (format!("two {hash}"), "the same key is there twice"),
    ] {
        let Err(error) =
            keys(&format!("# comment\nfirst {hash}\n{line}\n").replace(&format!("first {hash}"), &first(&line, &hash)))
        else {
            panic!("`{line}` must be refused");
        };
        let error = error.to_string();
        assert!(error.contains("line 3") && error.contains(expected), "`{line}`: {error}");
    }
}

/// A good second line, with the hash of the third where the two shall clash.
fn first(line: &str, hash: &str) -> String {
    if line.starts_with("two") { format!("first {hash}") } else { format!("first {}", "cd".repeat(32)) }
}

#[test]
fn dates_are_counted_right() {
    let since = |text: &str| at(text).duration_since(SystemTime::UNIX_EPOCH).expect("after the epoch").as_secs();
    assert_eq!(since("1970-01-01"), 0);
    assert_eq!(since("2000-02-29T00:00:01Z"), 951_782_401);
    assert_eq!(since("2026-12-31T23:59:59Z"), 1_798_761_599);
    assert_eq!(since("2100-03-01"), 4_107_542_400);
}

#[test]
fn a_name_that_would_break_the_line_makes_no_key() {
    assert!(generate("a b", &Fields::default()).is_err());
    assert!(generate("a\nb", &Fields::default()).is_err());
    assert!(generate("a", &scoped(&["x tenant=y".to_owned()])).is_err());
}
