//! `Entry`: a row of a backend's `const` table: a tool's declaration beside the functions that its types give.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;
use serde_json::json;

use super::Client;
use super::Failure;
use super::On;
use super::Output;
use super::Selection;
use super::Spec;
use super::Tool;
use super::arguments;
use crate::catalog::Decl;
use crate::catalog::Effect;
use crate::catalog::Kind;
use crate::catalog::Varies;

/// What a tool gave: the object as JSON, and the text for it.
pub(super) struct Done {
    pub(super) text: String,
    pub(super) structured: String,
}

type Run<C> = for<'a> fn(&'a C, &'a On<'a>, &'a [u8]) -> BoxFuture<'a, Result<Done, Failure>>;

/// A tool as a row of a table. A constant: function pointers instead of macros, registries and start-up code.
pub struct Entry<C: 'static> {
    pub spec: Spec,
    input: fn() -> Value,
    output: fn() -> Value,
    lowest: Effect,
    effect: fn(&[u8]) -> Option<Effect>,
    run: Run<C>,
}

impl<C: Client> Entry<C> {
    pub const fn of<T: Tool<Client = C>>() -> Entry<C> {
        Entry {
            spec: T::SPEC,
            input: input::<T::Args>,
            output: output::<T::Output>,
            lowest: T::LOWEST,
            effect: effect::<T>,
            run: run::<T>,
        }
    }

    /// Decodes the arguments and carries the tool out.
    pub(super) fn run<'a>(
        &self,
        client: &'a C,
        on: &'a On<'a>,
        arguments: &'a [u8],
    ) -> BoxFuture<'a, Result<Done, Failure>> {
        (self.run)(client, on, arguments)
    }

    /// What is judged and listed of it under this name.
    fn decl(&self, backend: &Arc<str>, shown: &str) -> Decl {
        let decl = Decl {
            idempotent: self.spec.idempotent,
            wire: Bytes::from(self.wire(shown).to_string()),
            ..Decl::plain(Kind::Tool, backend.clone(), shown, self.spec.effect)
        };
        if self.lowest == self.spec.effect {
            return decl;
        }
        decl.varying(Varies::by_function(self.lowest, self.spec.effect, self.effect))
    }

    pub fn input_schema(&self) -> Value {
        (self.input)()
    }

    pub fn output_schema(&self) -> Value {
        (self.output)()
    }

    /// The entry of `tools/list`.
    pub fn wire(&self, shown: &str) -> Value {
        json!({
            "name": shown,
            "title": self.spec.title,
            "description": self.spec.description(),
            "inputSchema": self.input_schema(),
            "outputSchema": self.output_schema(),
            "annotations": self.spec.annotations(),
        })
    }
}

/// The rows that are to be had as configured, each with what is judged and listed of it, in the order of the table.
pub(in crate::backend) fn chosen<C: Client>(
    backend: &Arc<str>,
    selection: &Selection,
    offers: impl Fn(&Spec) -> bool,
) -> Vec<(&'static Entry<C>, Decl)> {
    let rows = C::TOOLS.iter().filter(|entry| selection.has(&entry.spec) && offers(&entry.spec));
    rows.map(|entry| (entry, entry.decl(backend, &selection.names.shown(entry.spec.name)))).collect()
}

/// A tool of any backend, as lists and documentation have it.
pub struct Declared {
    /// The key under `backends.NAME` that makes such a backend.
    pub backend: &'static str,
    pub spec: Spec,
    pub input: Value,
    pub output: Value,
}

/// Every row of a backend's table.
pub fn declared<C: Client>(backend: &'static str) -> Vec<Declared> {
    let one = |entry: &Entry<C>| Declared {
        backend,
        spec: entry.spec,
        input: entry.input_schema(),
        output: entry.output_schema(),
    };
    C::TOOLS.iter().map(one).collect()
}

fn input<A: JsonSchema>() -> Value {
    schema::<A>(SchemaSettings::draft2020_12())
}

fn output<O: JsonSchema>() -> Value {
    schema::<O>(SchemaSettings::draft2020_12().for_serialize())
}

/// Without references, which some clients do not follow, and without what only names the Rust type.
fn schema<T: JsonSchema>(settings: SchemaSettings) -> Value {
    let settings = settings.with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    if let Some(members) = schema.as_object_mut() {
        members.remove("title");
        members.remove("description");
    }
    schema
}

fn effect<T: Tool>(text: &[u8]) -> Option<Effect> {
    arguments::read::<T::Args>(text).ok().map(|args| T::effect(&args))
}

fn run<'a, T: Tool>(client: &'a T::Client, on: &'a On<'a>, text: &'a [u8]) -> BoxFuture<'a, Result<Done, Failure>> {
    Box::pin(async move {
        let args = arguments::read::<T::Args>(text)?;
        let output = T::call(client, on, args).await?;
        let structured =
            serde_json::to_string(&output).map_err(|_| Failure::upstream("the result cannot be written"))?;
        Ok(Done { text: output.text().unwrap_or_else(|| structured.clone()), structured })
    })
}
