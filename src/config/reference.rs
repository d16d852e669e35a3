//! The reference in `docs/configuration.md`, written from the schema: every key with its type and meaning.

use std::fmt::Write as _;

use serde_json::Value;

/// One table per mapping, in the order of the file.
pub(super) fn reference() -> String {
    let schema = super::schema();
    let mut pages = vec![("The file".to_owned(), schema.clone())];
    let mut out = String::new();
    let mut done: Vec<String> = Vec::new();
    let mut next = 0;
    while let Some((title, page)) = pages.get(next).cloned() {
        next += 1;
        section(&mut out, &title, &page);
        for name in referenced(&page) {
            let Some(definition) = schema["$defs"].get(&name) else { continue };
            if !done.contains(&name) && (definition.get("properties").is_some() || definition.get("oneOf").is_some()) {
                done.push(name.clone());
                pages.push((name, definition.clone()));
            }
        }
    }
    out
}

fn section(out: &mut String, title: &str, page: &Value) {
    writeln!(out, "### {}\n", if title == "The file" { title.to_owned() } else { format!("`{title}`") }).unwrap();
    if let Some(words) = page["description"].as_str() {
        writeln!(out, "{}\n", cell(words)).unwrap();
    }
    if let Some(properties) = page["properties"].as_object() {
        let required: Vec<&str> = page["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        writeln!(out, "| Key | Type | Meaning |\n|---|---|---|").unwrap();
        for (name, property) in properties {
            let star = if required.contains(&name.as_str()) { " (required)" } else { "" };
            writeln!(
                out,
                "| `{name}`{star} | {} | {} |",
                kind(property),
                cell(property["description"].as_str().unwrap_or(""))
            )
            .unwrap();
        }
    } else {
        writeln!(out, "| Value | Meaning |\n|---|---|").unwrap();
        for choice in page["oneOf"].as_array().into_iter().flatten() {
            let words = cell(choice["description"].as_str().unwrap_or(""));
            match choice["properties"].as_object().and_then(|properties| properties.iter().next()) {
                Some((name, property)) => writeln!(out, "| `{name}:` {} | {words} |", kind(property)).unwrap(),
                None => {
                    let values = choice["const"].as_str().map(str::to_owned).into_iter().chain(
                        choice["enum"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned),
                    );
                    for value in values {
                        writeln!(out, "| `{value}` | {words} |").unwrap();
                    }
                }
            }
        }
    }
    out.push('\n');
}

/// Names of definitions, in the order in which they are mentioned.
fn referenced(value: &Value) -> Vec<String> {
    match value {
        Value::Object(entries) => entries
            .iter()
            .filter(|(name, _)| *name != "$defs")
            .flat_map(|(name, value)| match value.as_str() {
                Some(reference) if name == "$ref" => vec![last(reference)],
                _ => referenced(value),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(referenced).collect(),
        _ => Vec::new(),
    }
}

fn last(reference: &str) -> String {
    reference.rsplit('/').next().unwrap_or_default().to_owned()
}

fn kind(property: &Value) -> String {
    if let Some(word) = property["const"].as_str() {
        return format!("`{word}`");
    }
    if let Some(reference) = property["$ref"].as_str() {
        return named(&last(reference));
    }
    if let Some(choices) = property["anyOf"].as_array() {
        let kinds: Vec<String> = choices.iter().filter(|choice| choice["type"] != "null").map(kind).collect();
        return kinds.join(" or ");
    }
    let kinds: Vec<&str> = match &property["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let words = kinds.into_iter().filter(|kind| *kind != "null").map(|kind| match kind {
        "array" => format!("list of {}", kind_of_items(property)),
        "boolean" => "`true` or `false`".to_owned(),
        "integer" => "number".to_owned(),
        "object" => match property.get("additionalProperties").filter(|items| items.is_object()) {
            Some(items) => format!("mapping of names to {}", self::kind(items)),
            None => "mapping".to_owned(),
        },
        other => other.to_owned(),
    });
    words.collect::<Vec<_>>().join(" or ")
}

fn kind_of_items(property: &Value) -> String {
    property.get("items").map_or_else(|| "values".to_owned(), kind)
}

fn named(name: &str) -> String {
    match name {
        "Span" => "duration".to_owned(),
        "OptionalSpan" => "duration or `none`".to_owned(),
        "Size" => "size".to_owned(),
        "Rate" => "rate".to_owned(),
        "Reference" => "secret reference".to_owned(),
        "Variable" => "secret reference or `plain:TEXT`".to_owned(),
        "Strings" => "string or list of strings".to_owned(),
        other => format!("[`{other}`](#{})", other.to_lowercase()),
    }
}

fn cell(words: &str) -> String {
    words.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
