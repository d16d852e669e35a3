//! `wardgate policy prove` as a person uses it, with the real cvc5.

use serde_json::json;
use tokio::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_wardgate");

/// The exit code and everything said, with the solver from `CVC5` or the path, or this one.
async fn prove(mode: &str, policies: &str, solver: Option<&str>) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("site.cedar"), policies).unwrap();
    let path = folder.path().join("wardgate.yaml");
    let file = json!({
        "listeners": [{ "address": "127.0.0.1:0" }],
        "identity": [{ "anonymous": {} }],
        "mode": mode,
        "policies": ["site.cedar"],
        "backends": { "files": { "http": { "url": "http://127.0.0.1:1/mcp" } } },
        "routes": [{ "path": "/mcp", "backends": ["files"] }],
    });
    std::fs::write(&path, file.to_string()).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["policy", "prove", "-c", path.to_str().unwrap()]);
    if let Some(solver) = solver {
        command.env("CVC5", solver);
    }
    let output = command.output().await.expect("the program runs");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code(), said)
}

const ADMINS: &str = r#"@id("admins") permit (principal in Role::"mcp.admin", action, resource);"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_real_solver_finds_the_way_through_and_says_when_there_is_none() {
    let (code, said) = prove("full", ADMINS, None).await;
    assert_eq!(code, Some(1), "{said}");
    for part in
        ["counterexample for the tools of `files`", "roles: `mcp.admin`", "which would destroy", "allowed by: admins"]
    {
        assert!(said.contains(part), "lacks {part}:\n{said}");
    }
    let closed = format!(
        "{ADMINS} forbid (principal, action, resource) unless {{ [\"read\", \"write\"].contains(resource.effect) || principal.guest && !principal.guest }};"
    );
    let (code, said) = prove("full", &closed, None).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("proven: no request can destroy"), "{said}");
    let (code, said) = prove("non-destructive", ADMINS, Some("/nowhere/cvc5")).await;
    assert_eq!(code, Some(0), "no solver is needed: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_solver_or_a_good_file_nothing_is_decided() {
    let (code, said) = prove("full", ADMINS, Some("/nowhere/cvc5")).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("cvc5 is needed"), "{said}");
    let (code, said) = prove("full", "permit (principal, action, resorce);", None).await;
    assert_eq!(code, Some(2), "{said}");
}
