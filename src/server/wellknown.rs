//! RFC 9728 documents: public, so read by any origin and cached for a while.

use bytes::Bytes;
use http::HeaderValue;
use http::header::CACHE_CONTROL;

use crate::exchange::Reply;

const PROTECTED_RESOURCE: &str = "/.well-known/oauth-protected-resource";

/// Is this the path of such a document (whether there is one or not)?
pub(super) fn is_document(path: &str) -> bool {
    path.strip_prefix(PROTECTED_RESOURCE).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub(super) fn reply(document: Bytes) -> Reply {
    Reply::json(200, document).with(CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"))
}
