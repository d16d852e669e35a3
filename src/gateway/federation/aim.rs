//! `Aim`: which backend a message means, and the same message in that backend's own names.

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::gateway::Rejection;
use crate::gateway::splice;
use crate::gateway::splice::Edits;
use crate::mcp::Message;
use crate::mcp::Method;
use crate::mcp::Reference;
use crate::mcp::quoted;
use crate::route::Found;
use crate::route::Names;

pub(super) struct Aim {
    pub(super) share: usize,
    /// As the backend knows it: one value changed, every other byte the client's.
    pub(super) message: Message,
    /// The name or URI in the client's words.
    pub(super) wanted: String,
}

impl Aim {
    /// What nobody on this route has is unknown, in the words for what is hidden.
    pub(super) fn of(names: &Names, mut message: Message) -> Result<Aim, (String, Rejection)> {
        let (wanted, kind) = wanted(&message).ok_or((String::new(), Rejection::Internal))?;
        let unknown = |wanted: String| {
            let rejection = kind.unknown(wanted.clone());
            (wanted, rejection)
        };
        let found = match kind {
            Wanted::Tool => names.find_tool(&wanted),
            Wanted::Prompt => names.find_prompt(&wanted),
            Wanted::Resource => names.find_uri(&wanted),
        };
        let Some(Found { share, name }) = found else { return Err(unknown(wanted)) };
        let raw = message.params.raw.take().unwrap_or_default();
        let replaced = place(&raw, message.method, kind).map(|value| {
            let mut edits = Edits::of(&raw);
            edits.replace(value, quoted(&name));
            edits.finish()
        });
        let Some(replaced) = replaced else { return Err((wanted, Rejection::Internal)) };
        message.params.raw = Some(replaced);
        match (message.method, kind) {
            (Some(Method::CompletionComplete), Wanted::Resource) => {
                message.params.reference = Some(Reference::Resource(name));
            }
            (Some(Method::CompletionComplete), _) => message.params.reference = Some(Reference::Prompt(name)),
            (_, Wanted::Resource) => message.params.uri = Some(name),
            (_, Wanted::Prompt | Wanted::Tool) => message.params.name = Some(name),
        }
        Ok(Aim { share, message, wanted })
    }
}

#[derive(Clone, Copy)]
enum Wanted {
    Prompt,
    Resource,
    Tool,
}

impl Wanted {
    fn unknown(self, name: String) -> Rejection {
        match self {
            Wanted::Prompt => Rejection::UnknownPrompt { name },
            Wanted::Resource => Rejection::UnknownResource { uri: name },
            Wanted::Tool => Rejection::UnknownTool { name },
        }
    }
}

fn wanted(message: &Message) -> Option<(String, Wanted)> {
    let params = &message.params;
    match message.method? {
        Method::ToolsCall => Some((params.name.clone()?, Wanted::Tool)),
        Method::PromptsGet => Some((params.name.clone()?, Wanted::Prompt)),
        Method::ResourcesRead => Some((params.uri.clone()?, Wanted::Resource)),
        Method::CompletionComplete => match params.reference.clone()? {
            Reference::Prompt(name) => Some((name, Wanted::Prompt)),
            Reference::Resource(uri) => Some((uri, Wanted::Resource)),
        },
        _ => None,
    }
}

/// Where the name stands in `params`.
fn place(params: &Bytes, method: Option<Method>, kind: Wanted) -> Option<&RawValue> {
    let params = std::str::from_utf8(params).ok()?;
    let name = match kind {
        Wanted::Prompt | Wanted::Tool => "name",
        Wanted::Resource => "uri",
    };
    match method {
        Some(Method::CompletionComplete) => splice::member(splice::member(params, "ref")?.get(), name),
        _ => splice::member(params, name),
    }
}

/// A refusal that names the thing asked for names it as the client did.
pub(super) fn in_words_of(wanted: &str, rejection: Rejection) -> Rejection {
    match rejection {
        Rejection::ArgumentsDenied { .. } => Rejection::ArgumentsDenied { tool: wanted.to_owned() },
        Rejection::UnknownPrompt { .. } => Rejection::UnknownPrompt { name: wanted.to_owned() },
        Rejection::UnknownResource { .. } => Rejection::UnknownResource { uri: wanted.to_owned() },
        Rejection::UnknownTool { .. } => Rejection::UnknownTool { name: wanted.to_owned() },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::Era;
    use crate::mcp::Id;
    use crate::mcp::Kind;
    use crate::mcp::Params;
    use crate::route::MEMBER_TIMEOUT;
    use crate::route::Share;

    fn names() -> Names {
        let share = |prefix: &str| Share { backend: prefix.into(), prefix: prefix.into(), ..Share::default() };
        let mut second = share("fs");
        second.rename.insert("read_file".into(), "open".into());
        Names::new("_", MEMBER_TIMEOUT, vec![share("vault"), second]).expect("names")
    }

    fn message(method: Method, raw: &'static str, params: Params) -> Message {
        let raw = Some(Bytes::from_static(raw.as_bytes()));
        let kind = Kind::Request { id: Id::number(1) };
        Message { kind, method: Some(method), era: Era::Modern, params: Params { raw, ..params }, outcome: None }
    }

    #[test]
    fn only_the_name_changes_in_what_the_backend_gets() {
        let raw = r#"{ "arguments":{"name":"fs_open", "x":1.0e2},"name" : "fs_\u006fpen"}"#;
        let asked = message(Method::ToolsCall, raw, Params { name: Some("fs_open".into()), ..Params::default() });
        let aim = Aim::of(&names(), asked).unwrap_or_else(|(wanted, _)| panic!("{wanted} is found"));
        assert_eq!((aim.share, aim.message.params.name.as_deref()), (1, Some("read_file")));
        let want = r#"{ "arguments":{"name":"fs_open", "x":1.0e2},"name" : "read_file"}"#;
        assert_eq!(aim.message.params.raw.as_deref(), Some(want.as_bytes()));
        assert_eq!(aim.wanted, "fs_open");
    }

    #[test]
    fn completions_are_aimed_by_what_they_refer_to() {
        let raw =
            r#"{"ref":{"uri":"wardgate+fs+note://{id}","type":"ref/resource"},"argument":{"name":"id","value":"a"}}"#;
        let reference = Some(Reference::Resource("wardgate+fs+note://{id}".into()));
        let aim =
            Aim::of(&names(), message(Method::CompletionComplete, raw, Params { reference, ..Params::default() }));
        let aim = aim.unwrap_or_else(|(wanted, _)| panic!("{wanted} is found"));
        let want = r#"{"ref":{"uri":"note://{id}","type":"ref/resource"},"argument":{"name":"id","value":"a"}}"#;
        assert_eq!(aim.message.params.raw.as_deref(), Some(want.as_bytes()));
        assert_eq!(aim.message.params.reference, Some(Reference::Resource("note://{id}".into())));
    }

    #[test]
    fn what_nobody_has_is_unknown_by_the_clients_name() {
        for name in ["open", "fs_read_file", "git_x"] {
            let asked = message(Method::ToolsCall, "{}", Params { name: Some(name.into()), ..Params::default() });
            let rejection = Aim::of(&names(), asked).err().map(|(_, rejection)| rejection);
            assert_eq!(rejection, Some(Rejection::UnknownTool { name: name.into() }));
        }
    }
}
