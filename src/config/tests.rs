//! The configuration room: case files with expected words, the published files, and laws of reading and showing.

use std::path::Path;
use std::path::PathBuf;

use super::*;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files of a folder with this ending, sorted.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(folder)).expect("a folder of cases");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|found| found == ending));
    files.sort();
    files
}

/// Compares with a committed file, or writes it with `WARDGATE_BLESS=1`.
#[track_caller]
fn expect_file(path: &Path, actual: &str) {
    if std::env::var_os("WARDGATE_BLESS").is_some() {
        std::fs::write(path, actual).expect("written");
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        expected == actual,
        "{} is not what the code says; if the change is meant, run `WARDGATE_BLESS=1 cargo test --lib config::` and read the diff\n\
         --- expected\n{expected}\n--- actual\n{actual}",
        path.display()
    );
}

/// As on a machine where nothing that is named exists.
fn unchecked() -> Options {
    Options { check_files: false, check_policies: false, base: Some(PathBuf::new()), ..Options::default() }
}

fn parse_as(text: &str, options: Options) -> Result<Loaded, Errors> {
    parse(text, Path::new("wardgate.yaml"), options)
}

fn case(path: &Path) -> Result<Loaded, Errors> {
    let text = std::fs::read_to_string(path).expect("a case");
    let name = PathBuf::from(path.file_name().expect("a name"));
    parse(&text, &name, unchecked())
}

/// The smallest file that works, with more below it.
fn with(more: &str) -> String {
    format!(
        "listeners: [{{ address: '127.0.0.1:8080' }}]\nidentity: [{{ anonymous: {{}} }}]\ngrants: [{{ allow: [read] }}]\n\
         backends: {{ files: {{ http: {{ url: 'http://127.0.0.1:3001/mcp' }} }} }}\nroutes: [{{ path: /mcp, backends: [files] }}]\n{more}"
    )
}

fn messages(result: Result<Loaded, Errors>) -> Vec<String> {
    result.err().map(|errors| errors.0.iter().map(ToString::to_string).collect()).unwrap_or_default()
}

#[test]
fn valid_cases_load_and_mean_what_their_snapshots_say() {
    let cases = files("tests/cases/config/valid", "yaml");
    assert!(cases.len() >= 8, "where are the cases?");
    for path in cases {
        let loaded = case(&path).unwrap_or_else(|errors| panic!("{} is not valid:\n{errors}", path.display()));
        let warnings: String = loaded.warnings.iter().map(|warning| format!("# {warning}\n")).collect();
        expect_file(&path.with_extension("out"), &format!("{warnings}{}", show(&loaded)));
    }
}

#[test]
fn invalid_cases_say_everything_that_is_wrong_and_where() {
    let cases = files("tests/cases/config/invalid", "yaml");
    assert!(cases.len() >= 25, "where are the cases?");
    for path in cases {
        let errors = case(&path).err().unwrap_or_else(|| panic!("{} is valid", path.display()));
        expect_file(&path.with_extension("err"), &format!("{errors}\n"));
    }
}

#[test]
fn every_case_has_its_expectation_and_every_expectation_its_case() {
    if std::env::var_os("WARDGATE_BLESS").is_some() {
        return; // they are being written
    }
    for (folder, ending) in [("tests/cases/config/valid", "out"), ("tests/cases/config/invalid", "err")] {
        let stems = |ending| files(folder, ending).iter().map(|path| path.with_extension("")).collect::<Vec<_>>();
        assert_eq!(stems("yaml"), stems(ending), "{folder}");
    }
}

#[test]
fn published_files_load_without_errors() {
    let mut published = files("config/examples", "yaml");
    assert!(published.len() >= 7, "where are the examples?");
    published.push(root().join("config/wardgate.yaml"));
    for path in published {
        match load(&path, unchecked()) {
            Ok(loaded) => assert_eq!(loaded.config.refused, [], "{}", path.display()),
            Err(errors) => panic!("{}:\n{errors}", path.display()),
        }
    }
}

/// A key that is nowhere in the commented file is a key nobody finds.
#[test]
fn the_commented_file_has_every_key_of_the_schema() {
    fn keys(value: &serde_json::Value, found: &mut Vec<String>) {
        if let Some(properties) = value["properties"].as_object() {
            found.extend(properties.keys().cloned());
        }
        match value {
            serde_json::Value::Object(entries) => entries.values().for_each(|value| keys(value, found)),
            serde_json::Value::Array(items) => items.iter().for_each(|value| keys(value, found)),
            _ => {}
        }
    }
    let text = std::fs::read_to_string(root().join("config/wardgate.yaml")).expect("the commented file");
    let mut known = Vec::new();
    keys(&schema(), &mut known);
    assert!(known.len() > 80, "the schema lost its keys: {known:?}");
    known.retain(|key| !text.contains(&format!("{key}:")));
    assert!(known.is_empty(), "config/wardgate.yaml does not mention {known:?}");
}

#[test]
fn the_published_schema_is_the_one_of_the_code() {
    expect_file(&root().join("config/wardgate.schema.json"), &format!("{:#}\n", schema()));
}

#[test]
fn the_reference_is_the_one_of_the_code() {
    const BEGIN: &str = "<!-- generated from the schema: begin -->\n";
    const END: &str = "<!-- generated from the schema: end -->";
    let path = root().join("docs/configuration.md");
    let text = std::fs::read_to_string(&path).expect("the guide");
    let (before, rest) = text.split_once(BEGIN).expect("the beginning of the reference");
    let (_, after) = rest.split_once(END).expect("the end of the reference");
    expect_file(&path, &format!("{before}{BEGIN}\n{}{END}{after}", reference::reference()));
}

/// Secrets are masked, so only files without any can be taken up again as they are shown.
#[test]
fn what_is_shown_can_be_loaded_and_means_the_same() {
    for path in files("tests/cases/config/valid", "yaml") {
        let shown = show(&case(&path).expect("valid"));
        if shown.contains("***") {
            continue;
        }
        let again =
            parse_as(&shown, unchecked()).unwrap_or_else(|errors| panic!("{}:\n{errors}\n{shown}", path.display()));
        assert_eq!(show(&again), shown, "{}", path.display());
    }
}

#[test]
fn json_is_read_like_yaml() {
    let file = serde_json::json!({
        "listeners": [{ "address": "127.0.0.1:0" }],
        "public_url": "http://gateway.test",
        "identity": [{ "oidc": { "issuer": "http://127.0.0.1:1/idp \"\\ \u{fc}\n", "jwks_url": "http://127.0.0.1:1/keys", "audience": "a" } }],
        "grants": [{ "scope": "mcp.read", "allow": ["read"] }],
        "backends": { "w": { "http": { "url": "http://127.0.0.1:1/mcp" }, "trust_annotations": false } },
        "routes": [{ "path": "/mcp", "backends": ["w"] }],
    });
    for text in [file.to_string(), format!("{file:#}")] {
        let loaded = parse_as(&text, unchecked()).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(loaded.config.identity.issuers[0].issuer, "http://127.0.0.1:1/idp \"\\ \u{fc}\n");
    }
}

#[test]
fn the_demo_issuer_is_trusted_only_where_that_is_asked_for() {
    let text = with("public_url: http://127.0.0.1:8080")
        .replace("anonymous: {}", "oidc: { issuer: 'http://127.0.0.1:9/wardgate-demo-issuer', audience: a }");
    let refused = messages(parse_as(&text, unchecked()));
    assert!(refused.len() == 1 && refused[0].contains("wardgate demo"), "{refused:?}");
    let allowed = Options { allow_demo_issuer: true, ..unchecked() };
    assert_eq!(messages(parse_as(&text, allowed)), Vec::<String>::new());
}

#[test]
fn a_secret_comes_from_its_file_without_one_newline_and_is_shown_nowhere() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("token");
    std::fs::write(&secret, "canary-7\n").expect("written");
    let text = with("").replace("/mcp' }", "/mcp' }, credential: { value: 'file:token' }");
    let options = || Options { base: Some(folder.path().to_owned()), ..Options::default() };
    for (bits, warned) in [(0o644, true), (0o600, false)] {
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(bits)).expect("changed");
        let loaded = parse_as(&text, options()).unwrap_or_else(|errors| panic!("{errors}"));
        let crate::credentials::Config::Static { header, value } = &loaded.config.backends[0].credential else {
            panic!("no credential")
        };
        assert_eq!((header.as_str(), value.expose()), ("authorization", "Bearer canary-7"));
        assert_eq!(loaded.warnings.iter().any(|warning| warning.message.contains("every user")), warned);
        assert!(loaded.config.watched.contains(&secret));
        assert!(show(&loaded).contains("***"));
        assert!(!show(&loaded).contains("canary") && !format!("{loaded:?}").contains("canary"));
    }
    std::fs::write(&secret, "canary-8\nsecond\n").expect("written");
    let refused = messages(parse_as(&text, options()));
    assert!(refused.len() == 1 && refused[0].contains("line breaks") && !refused[0].contains("canary"), "{refused:?}");
    std::fs::remove_file(&secret).expect("removed");
    let refused = messages(parse_as(&text, options()));
    assert!(refused.len() == 1 && refused[0].contains("cannot be read"), "{refused:?}");
}

#[test]
fn session_keys_are_long_enough_none_twice_and_never_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    write("good", "3031323334353637383930313233343536373839303132333435363738393031\n");
    write("same", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n");
    write("short", "Y2FuYXJ5");
    write("words", "canary battery staple and some more words");
    let options = || Options { base: Some(folder.path().to_owned()), ..Options::default() };
    let loaded = parse_as(&with("sessions: { keys: ['file:good'], lifetime: 2h }"), options())
        .unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(loaded.config.sessions.keys.len(), 1);
    assert!(loaded.config.watched.contains(&folder.path().join("good")), "a changed key is a reload");
    assert!(show(&loaded).contains("***") && show(&loaded).contains("2h"));
    assert!(!format!("{:?}", loaded.config).contains("3031"));
    let file = with("sessions: { keys: ['file:good', 'file:same', 'file:short', 'file:words'], lifetime: 31d }");
    let refused = messages(parse_as(&file, options()));
    let all = refused.join("\n");
    assert_eq!(refused.len(), 4, "{all}");
    for part in [
        "sessions.keys[1]",
        "same key",
        "sessions.keys[2]",
        "fewer than 32 bytes",
        "neither base64 nor hex",
        "at most 30d",
    ] {
        assert!(all.contains(part), "lacks {part}:\n{all}");
    }
    assert!(!all.contains("canary") && !all.contains("Y2Fu"), "{all}");
}

#[test]
fn a_secret_comes_from_the_environment() {
    let text = with("").replace("/mcp' }", "/mcp' }, credential: { header: x-token, value: 'env:PATH' }");
    let loaded = parse_as(&text, Options::default()).unwrap_or_else(|errors| panic!("{errors}"));
    let crate::credentials::Config::Static { value, .. } = &loaded.config.backends[0].credential else {
        panic!("no credential")
    };
    assert_eq!(value.expose(), std::env::var("PATH").expect("set"));
    let refused = messages(parse_as(&text.replace("env:PATH", "env:WARDGATE_NOT_THERE"), Options::default()));
    assert!(refused.len() == 1 && refused[0].contains("`WARDGATE_NOT_THERE` is not set"), "{refused:?}");
}

/// Wherever somebody writes a secret by mistake, the complaint must not repeat it.
#[test]
fn an_inline_secret_is_refused_and_not_repeated() {
    let places = [
        "credential: { value: canary-9 }",
        "credential: { value: 4242424242 }",
        "credential: canary-9",
        "credential: { value: { file: canary-9 } }",
        "credential: [canary-9]",
        "http: 'http://user:canary-9@host/mcp'",
    ];
    for place in places {
        let text = with("").replace(
            "http: { url: 'http://127.0.0.1:3001/mcp' }",
            &format!("{place}, stdio: {{ command: [x], env: {{ A: canary-9 }} }}"),
        );
        let refused = messages(parse_as(&text, Options::default())).join("\n");
        assert!(!refused.is_empty(), "{place} was accepted");
        assert!(!refused.contains("canary") && !refused.contains("4242"), "{refused}");
    }
    let url = with("").replace("http://127.0.0.1:3001/mcp", "http://user:canary-9@127.0.0.1/mcp");
    let refused = messages(parse_as(&url, Options::default())).join("\n");
    assert!(refused.contains("without user and password") && !refused.contains("canary"), "{refused}");
}

#[test]
fn cedar_files_are_read_by_name_and_watched() {
    let folder = tempfile::tempdir().expect("a folder");
    let policies = folder.path().join("policies");
    std::fs::create_dir(&policies).expect("made");
    for (name, text) in [("b.cedar", "// b"), ("a.cedar", "// a"), (".swp.cedar", "// hidden"), ("notes.txt", "no")] {
        std::fs::write(policies.join(name), text).expect("written");
    }
    let options = Options { base: Some(folder.path().to_owned()), ..Options::default() };
    let loaded = parse_as(&with("policies: policies"), options.clone()).unwrap_or_else(|errors| panic!("{errors}"));
    let sources: Vec<&str> = loaded.config.policy.sources.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(sources, ["// a", "// b"]);
    assert!(
        [policies.clone(), policies.join("a.cedar"), policies.join("b.cedar")]
            .iter()
            .all(|path| loaded.config.watched.contains(path))
    );
    let refused = messages(parse_as(&with("policies: [policies, gone.cedar]"), options));
    assert!(
        refused.len() == 1 && refused[0].contains("policies[1]") && refused[0].contains("cannot be read"),
        "{refused:?}"
    );
}

#[test]
fn a_pin_file_must_be_there_and_good_and_is_watched() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("files.tools.yaml");
    let text = with("").replace("3001/mcp' }", "3001/mcp' }, pins: files.tools.yaml");
    let options = Options { base: Some(folder.path().to_owned()), ..Options::default() };
    let refused = messages(parse_as(&text, options.clone()));
    assert!(refused.len() == 1 && refused[0].contains("backends.files.pins: `"), "{refused:?}");
    let later = parse_as(&text, Options { read_pins: false, ..options.clone() });
    assert!(later.is_ok(), "whoever writes the first one needs none");
    std::fs::write(&file, "version: 1\nbackend: files\ntools: {}\n").expect("written");
    let loaded = parse_as(&text, options.clone()).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(loaded.config.watched.contains(&file));
    assert!(loaded.config.backends[0].pins.is_some());
    for (bad, why) in [
        ("version: 1\nbackend: other\ntools: {}\n", "`backend` is `other`, not `files`"),
        ("version: 1\nbackend: files\ntools:\n  a:\n    approved: maybe\n", "line 5: `tools.a.approved` is neither"),
    ] {
        std::fs::write(&file, bad).expect("written");
        let refused = messages(parse_as(&text, options.clone())).join("\n");
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn files_that_are_named_must_be_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = with("audit: { file: nowhere/audit.jsonl }")
        .replace("'127.0.0.1:8080' ", "'127.0.0.1:8080', tls: { certificate: a.crt, key: a.key } ")
        .replace("anonymous: {}", "api_keys: { file: keys }");
    let options = Options { base: Some(folder.path().to_owned()), ..Options::default() };
    let refused = messages(parse_as(&text, options));
    let keys: Vec<&str> = refused.iter().filter_map(|message| message.split(": ").nth(1)).collect();
    assert_eq!(
        keys,
        ["listeners[0].tls.certificate", "listeners[0].tls.key", "identity[0].api_keys.file", "audit.file"],
        "{refused:?}"
    );
}

#[test]
fn a_file_is_loaded_watched_and_the_start_of_its_relative_paths() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("wardgate.yaml");
    std::fs::write(folder.path().join("keys"), "").expect("written");
    std::fs::write(&path, with("").replace("anonymous: {}", "api_keys: { file: keys }")).expect("written");
    let loaded = load(&path, Options::default()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(loaded.config.watched, [path, folder.path().join("keys")]);
    assert_eq!(loaded.config.identity.api_keys, Some(folder.path().join("keys")));
    let gone = load(Path::new("/nowhere/wardgate.yaml"), Options::default()).expect_err("there is no such file");
    assert!(gone.to_string().starts_with("/nowhere/wardgate.yaml: cannot be read: "), "{gone}");
}

/// Half a configuration must never be taken for a whole one, nor bring the reader down.
#[test]
fn no_beginning_of_a_valid_file_panics() {
    for path in files("tests/cases/config/valid", "yaml") {
        let text = std::fs::read_to_string(&path).expect("a case");
        for (end, _) in text.char_indices() {
            drop(parse_as(text.get(..end).expect("a boundary"), unchecked()));
        }
    }
}

#[test]
fn no_key_replaced_by_anything_panics() {
    let things = ["null", "7", "-1", "[]", "{}", "[[]]", "{a: {}}", "text", "true", "''"];
    for path in files("tests/cases/config/valid", "yaml") {
        let text = std::fs::read_to_string(&path).expect("a case");
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let Some((key, _)) = line.split_once(':') else { continue };
            for thing in things {
                let changed = format!("{key}: {thing}");
                let mut lines = lines.clone();
                lines[index] = &changed;
                drop(parse_as(&lines.join("\n"), unchecked()));
            }
        }
    }
}

#[test]
fn nesting_without_end_is_refused() {
    for text in ["[".repeat(100_000), "a: {".repeat(100_000), "- ".repeat(100_000)] {
        assert!(!messages(parse_as(&text, unchecked())).is_empty());
    }
}

#[test]
fn a_hundred_errors_are_enough() {
    let text: String = (0..500).map(|index| format!("wrong{index}: 1\n")).collect();
    let refused = messages(parse_as(&text, unchecked()));
    assert_eq!(refused.len(), 100);
}

proptest::proptest! {
    #[test]
    fn durations_sizes_and_rates_survive_any_text(text in "[0-9a-zA-Z. ]{0,12}") {
        for key in ["shutdown_grace: ", "admission: { body_bytes_max: ", "limits: { address: "] {
            let close = if key.contains('{') { " }" } else { "" };
            drop(parse_as(&with(&format!("{key}'{text}'{close}")), unchecked()));
        }
    }
}
