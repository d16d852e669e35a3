//! Caps: what is refused, what is cut, and that a cut is told.

use super::*;

fn with(result: Option<usize>, item: Option<usize>, oversize: Oversize) -> Filters {
    let config = Config { result_bytes_max: result, item_bytes_max: item, oversize, ..Config::default() };
    Filters::new(&config).expect("filters")
}

fn hold(filters: &Filters, message: &Value) -> Result<(Value, Found), Excess> {
    let mut found = Found::default();
    let out = filters.answer(Place::Said, &message.to_string().into(), &mut found)?;
    Ok((serde_json::from_slice(&out).expect("JSON"), found))
}

#[test]
fn a_result_over_its_cap_does_not_leave() {
    let message = json!({ "id": 1, "result": { "content": [{ "type": "text", "text": "x".repeat(2000) }] } });
    let excess = hold(&with(Some(1024), None, Oversize::Truncate), &message).expect_err("too large");
    assert_eq!(excess, Excess { cap: "result_bytes_max", bytes_max: 1024 });
    assert_eq!(hold(&with(Some(4096), None, Oversize::Refuse), &message).expect("fits").0, message);
    let mut found = Found::default();
    let listed =
        with(Some(1024), None, Oversize::Refuse).answer(Place::Declared, &message.to_string().into(), &mut found);
    assert!(listed.is_ok(), "lists have no cap");
}

#[test]
fn a_text_over_its_cap_is_cut_at_a_character_and_says_so() {
    for text in ["\"é\u{1f600}\n".repeat(300), "x".repeat(3000), "\u{1}".repeat(800)] {
        let message = json!({ "id": 1, "result": { "content": [
            { "type": "text", "text": text, "annotations": { "priority": 1 } },
            { "type": "text", "text": "short" },
        ] } });
        let filters = with(None, Some(1000), Oversize::Truncate);
        let (out, found) = hold(&filters, &message).expect("cut");
        let shown = out["result"]["content"][0]["text"].as_str().expect("text");
        let (kept, mark) = shown.rsplit_once('\n').expect("a mark");
        assert!(text.starts_with(kept) && kept.len() > 100, "{shown}");
        assert_eq!(mark, format!("[truncated: {} of {} bytes]", kept.len(), text.len()));
        assert!(out["result"]["content"][0].to_string().len() <= 1000);
        assert_eq!(out["result"]["content"][1]["text"], "short");
        assert_eq!(out["result"]["content"][0]["annotations"]["priority"], 1);
        assert_eq!(count(&found, TRUNCATED), 1);
        assert_eq!(hold(&filters, &out).expect("fits").0, out);
        assert!(hold(&with(None, Some(1000), Oversize::Refuse), &message).is_err());
    }
}

#[test]
fn what_a_program_reads_is_whole_or_withheld() {
    let large = "x".repeat(2000);
    let filters = with(None, Some(1000), Oversize::Truncate);
    for result in [
        json!({ "content": [], "structuredContent": { "a": large } }),
        json!({ "contents": [{ "uri": "u", "text": large }] }),
        json!({ "content": [{ "type": "image", "data": large, "mimeType": "image/png" }] }),
        json!({ "content": [{ "type": "resource", "resource": { "uri": "u", "text": large } }] }),
        json!({ "task": { "taskId": "1", "result": { "structuredContent": { "a": large } } } }),
    ] {
        let excess = hold(&filters, &json!({ "id": 1, "result": result })).expect_err("too large");
        assert_eq!(excess.cap, "item_bytes_max");
    }
}

#[test]
fn a_secret_is_taken_out_before_its_text_is_cut() {
    let config = Config {
        redact: vec![Kind::Jwt],
        item_bytes_max: Some(300),
        oversize: Oversize::Truncate,
        ..Config::default()
    };
    let filters = Filters::new(&config).expect("filters");
    for before in 0..200 {
        let text = format!("{}{JWT}{}", "x".repeat(before), " y".repeat(400));
        let message = json!({ "id": 1, "result": { "content": [{ "type": "text", "text": text }] } });
        let (out, _) = hold(&filters, &message).expect("cut");
        assert!(!out.to_string().contains("eyJ"), "{out}");
    }
}
