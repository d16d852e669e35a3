//! `tools/list` answers: finding the tools in the raw bytes, and writing the answer anew with some left out.

use bytes::Bytes;

use crate::catalog::Hints;

/// One entry of a list answer.
#[derive(Clone, Debug)]
pub struct Listed {
    pub name: String,
    pub hints: Hints,
    /// The entry as the upstream wrote it.
    pub wire: Bytes,
}
