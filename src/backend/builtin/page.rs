//! The tables for people and programs: the page `docs/tools.md`, and what `wardgate tools list --builtin` prints.

use std::fmt::Write as _;

use serde_json::Value;
use serde_json::json;

use super::Declared;
use super::all;

/// One row a tool: name, backend, effect, arguments.
pub fn text() -> String {
    let mut rows = vec![["TOOL", "BACKEND", "GROUP", "EFFECT", "ARGUMENTS"].map(str::to_owned)];
    for tool in all() {
        let arguments = arguments(&tool).map(|(name, star, _)| format!("{name}{star}")).collect::<Vec<_>>().join(" ");
        let effect = tool.spec.effect.as_str();
        rows.push([tool.spec.name, tool.backend, tool.spec.group, effect, &arguments].map(str::to_owned));
    }
    let widest =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or_default();
    let widths = [0, 1, 2, 3].map(widest);
    let mut out = String::new();
    for row in &rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = widths.get(column).copied().unwrap_or_default();
            format!("{cell:width$}")
        });
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// Everything that is declared, for programs.
pub fn json() -> Value {
    let one = |tool: Declared| {
        json!({
            "name": tool.spec.name,
            "backend": tool.backend,
            "group": tool.spec.group,
            "title": tool.spec.title,
            "description": tool.spec.description(),
            "effect": tool.spec.effect.as_str(),
            "idempotent": tool.spec.idempotent,
            "annotations": tool.spec.annotations(),
            "inputSchema": tool.input,
            "outputSchema": tool.output,
        })
    };
    all().into_iter().map(one).collect()
}

/// The page for the user guide.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Built-in tools\n\n<!-- Generated from the declarations in the code; `WARDGATE_BLESS=1 cargo test --lib` writes it. -->\n\n\
         `*`: required. What an effect means for the mode and for grants: [policies](policies.md).\n",
    );
    let mut place = ("", "");
    for tool in all() {
        if place.0 != tool.backend {
            write(&mut out, format_args!("\n## `{}`\n", tool.backend));
        }
        if place != (tool.backend, tool.spec.group) {
            write(&mut out, format_args!("\n### {}\n", tool.spec.group));
        }
        place = (tool.backend, tool.spec.group);
        write(&mut out, format_args!("\n#### `{}`\n\n{}\n\n", tool.spec.name, tool.spec.description()));
        let again = if tool.spec.idempotent { "; a second equal call changes nothing more" } else { "" };
        write(&mut out, format_args!("Effect: `{}`{again}.\n", tool.spec.effect.as_str()));
        let mut arguments = arguments(&tool).peekable();
        if arguments.peek().is_some() {
            out.push_str("\n| Argument | Type | Meaning |\n|---|---|---|\n");
        }
        for (name, star, schema) in arguments {
            let default =
                schema.get("default").map(|value| format!(" Default: `{}`.", plain(value))).unwrap_or_default();
            let words = schema.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " ");
            write(&mut out, format_args!("| `{name}`{star} | {} | {words}{default} |\n", kind(schema)));
        }
    }
    out
}

fn write(out: &mut String, text: std::fmt::Arguments<'_>) {
    // A text takes everything.
    let _ = out.write_fmt(text);
}

/// Name, a star if it is required, schema.
fn arguments(tool: &Declared) -> impl Iterator<Item = (&str, &'static str, &Value)> {
    let required = tool.input.get("required").and_then(Value::as_array);
    let is_required = move |name: &str| required.is_some_and(|names| names.iter().any(|one| one == name));
    let properties = tool.input.get("properties").and_then(Value::as_object);
    properties
        .into_iter()
        .flatten()
        .map(move |(name, schema)| (name.as_str(), if is_required(name) { "*" } else { "" }, schema))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn kind(schema: &Value) -> String {
    let choices = schema.get("enum").or_else(|| schema.get("oneOf")).and_then(Value::as_array);
    if let Some(choices) = choices {
        let words = choices.iter().filter_map(|choice| choice.as_str().or_else(|| choice.get("const")?.as_str()));
        return words.map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    }
    match schema.get("type") {
        Some(Value::String(kind)) => kind.clone(),
        Some(Value::Array(kinds)) => {
            kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null").collect::<Vec<_>>().join(" or ")
        }
        _ => {
            let first = schema.get("anyOf").and_then(|choices| choices.get(0));
            first.map_or_else(|| "any".to_owned(), kind)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_the_guide_is_the_one_of_the_code() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tools.md");
        let page = markdown();
        if std::env::var_os("WARDGATE_BLESS").is_some() {
            std::fs::write(&path, &page).expect("written");
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            there == page,
            "docs/tools.md is not what the code says: WARDGATE_BLESS=1 cargo test --lib builtin::page"
        );
    }

    #[test]
    fn every_tool_is_listed_with_its_effect_and_arguments() {
        let text = text();
        let row = |name: &str| text.lines().find(|line| line.starts_with(&format!("{name} "))).expect(name).to_owned();
        assert!(row("read_secret").contains("read_sensitive"), "{text}");
        assert!(row("read_secret").contains("mount* path*"), "{text}");
        assert_eq!(json().as_array().expect("a list").len(), all().len());
    }
}
