//! Each kind of secret as it comes, and what only looks like one.

use super::*;

fn text(text: &str) -> String {
    let message = json!({ "result": { "content": [{ "type": "text", "text": text }] } }).to_string();
    let out: Value = serde_json::from_str(&said(&message).0).expect("JSON");
    out["result"]["content"][0]["text"].as_str().expect("text").to_owned()
}

#[test]
fn each_kind_is_known_by_its_form() {
    let a = |count: usize| "Ab9".repeat(count);
    for (secret, shown) in [
        (format!("{JWT} z"), "[redacted:jwt] z".to_owned()),
        (format!("eyJlbmMiOiJBMjU2R0NNIn0..{}.{}.{}", a(5), a(9), a(7)), "[redacted:jwt]".to_owned()),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIcanary\n-----END RSA PRIVATE KEY----- ok".to_owned(),
            "[redacted:private_key] ok".to_owned(),
        ),
        ("x -----BEGIN OPENSSH PRIVATE KEY-----\ncanary".to_owned(), "x [redacted:private_key]".to_owned()),
        (
            format!("client-key-data: {}", STANDARD.encode("-----BEGIN EC PRIVATE KEY-----\ncanary\n")),
            "client-key-data: [redacted:private_key]".to_owned(),
        ),
        (format!("token hvs.{} z", a(10)), "token [redacted:vault] z".to_owned()),
        (format!("hvb.{}", a(40)), "[redacted:vault]".to_owned()),
        (format!("(s.{})", a(8)), "([redacted:vault])".to_owned()),
        (
            format!("https://x.blob.core.windows.net/c?sv=1&sig={}%3D&se=2", a(12)),
            "https://x.blob.core.windows.net/c?sv=1&sig=[redacted:azure]&se=2".to_owned(),
        ),
        (format!("abc8Q~{}", "a".repeat(34)), "[redacted:azure]".to_owned()),
        (
            format!("DefaultEndpointsProtocol=https;AccountKey={}==;E=1", a(28)),
            "DefaultEndpointsProtocol=https;AccountKey=[redacted:azure];E=1".to_owned(),
        ),
        (
            format!("aws_secret_access_key = {}", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            "aws_secret_access_key = [redacted:aws]".to_owned(),
        ),
        (format!("ghp_{} z", a(12)), "[redacted:github] z".to_owned()),
        (format!("github_pat_{}", a(12)), "[redacted:github]".to_owned()),
        (["xox", "b-123456789012-abcdefghij"].concat(), "[redacted:slack]".to_owned()),
        (format!("AIza{}", "a".repeat(35)), "[redacted:google]".to_owned()),
        (
            "postgres://app:s3cr%2Fet@db.example:5432/x".to_owned(),
            "postgres://app:[redacted:connection_string]@db.example:5432/x".to_owned(),
        ),
        (
            "Server=db;Password=hunter2;Encrypt=1".to_owned(),
            "Server=db;Password=[redacted:password];Encrypt=1".to_owned(),
        ),
        ("PWD = 'a b c';".to_owned(), "PWD = '[redacted:password]';".to_owned()),
        (r#"{"password": "hun\u0074er2"}"#.to_owned(), r#"{"password": "[redacted:password]"}"#.to_owned()),
        ("card 4111 1111 1111 1111, 378282246310005".to_owned(), "card [redacted:card], [redacted:card]".to_owned()),
        ("order 12 4111-1111-1111-1111".to_owned(), "order 12 [redacted:card]".to_owned()),
    ] {
        assert_eq!(text(&secret), shown, "{secret}");
        assert_eq!(text(&shown), shown, "twice is once");
    }
    assert_eq!(text(&["AKIA", "IOSFODNN7EXAMPLE"].concat()), "[redacted:aws]");
}

#[test]
fn what_only_looks_like_a_secret_stays() {
    for plain in [
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "eyJhbGciOiJIUzI1NiJ9",
        "certificate-authority-data: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t",
        "https://example.com:8443/a@b",
        "4111 1111 1111 1112",
        "1234567890123456",
        "https://user@example.com/",
        "the password is not told",
        "files.ThisIsNoTokenAtAll",
        "2026-11-21 22:00:00.000 4711",
    ] {
        assert_eq!(text(plain), plain);
    }
}

#[test]
fn members_that_name_a_secret_are_taken_whatever_they_say() {
    let (out, found) = said(
        r#"{"result":{"structuredContent":{"SecretAccessKey":"canary-1","db_password":"x","Password":"canary-2","password":{"type":"string"},"pwd":12345}}}"#,
    );
    assert_eq!(
        out,
        r#"{"result":{"structuredContent":{"SecretAccessKey":"[redacted:aws]","db_password":"x","Password":"[redacted:password]","password":{"type":"string"},"pwd":12345}}}"#
    );
    assert_eq!((count(&found, "aws"), count(&found, "password")), (1, 1));
}

#[test]
fn only_what_is_configured_is_taken_out() {
    let one = Filters::new(&Config { redact: vec![Kind::Vault], ..Config::default() }).expect("filters");
    let message = format!(r#"{{"result":{{"t":"{JWT} hvs.aaaaaaaaaaaaaaaaaaaaaaaa password=x"}}}}"#);
    let (out, _) = through(&one, Place::Said, &message);
    assert_eq!(out, message.replace("hvs.aaaaaaaaaaaaaaaaaaaaaaaa", "[redacted:vault]"));
}

#[test]
fn operators_have_patterns_of_their_own() {
    let with = |name: &str, pattern: &str| {
        let patterns = BTreeMap::from([(name.to_owned(), pattern.to_owned())]);
        Filters::new(&Config { patterns, ..Config::default() })
    };
    let filters = with("employee", "EMP-[0-9]{6}").expect("filters");
    let message = r#"{"id":1,"result":{"t":"EMP-123456 and EMP-1"}}"#;
    let (out, found) = through(&filters, Place::Said, message);
    assert_eq!(out, r#"{"id":1,"result":{"t":"[redacted:employee] and EMP-1"}}"#);
    assert_eq!(count(&found, "employee"), 1);
    // A pattern that matches its own mark.
    let greedy = with("word", "[a-z]+").expect("filters");
    let (once, _) = through(&greedy, Place::Said, r#"{"id":1,"result":{"type":"text","T":"AB cd"}}"#);
    assert_eq!(once, r#"{"id":1,"result":{"type":"text","T":"AB [redacted:word]"}}"#);
    assert_eq!(through(&greedy, Place::Said, &once).0, once);
    assert!(matches!(with("jwt", "x"), Err(Error::Name { .. })));
    assert!(matches!(with("x", "y*"), Err(Error::Empty { .. })));
    assert!(matches!(with("x", "("), Err(Error::Malformed { .. })));
    assert!(matches!(with("x", "(a{1000}){1000}"), Err(Error::Malformed { .. })));
}
