//! The JSON Schema of the configuration file, from the same types that read it.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::file::File;

/// For editors and other programs; published as `config/wardgate.schema.json`.
pub fn schema() -> Value {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<File>().to_value()
}
