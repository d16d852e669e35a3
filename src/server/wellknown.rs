//! What anybody may ask for without a token: metadata documents, read by any origin and cached for a while, and registration.

use bytes::Bytes;
use http::HeaderValue;
use http::header::CACHE_CONTROL;

use crate::exchange::Reply;
use crate::identity::facade;

pub(super) use crate::identity::facade::is_registration;
pub(super) use crate::identity::registration::REQUEST_BYTES_MAX as REGISTRATION_BYTES_MAX;

const PROTECTED_RESOURCE: &str = "/.well-known/oauth-protected-resource";

/// Is this the path of such a document (whether there is one or not)?
pub(super) fn is_document(path: &str) -> bool {
    let of_route = path.strip_prefix(PROTECTED_RESOURCE).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    of_route || facade::is_description(path)
}

pub(super) fn reply(document: Bytes) -> Reply {
    Reply::json(200, document).with(CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"))
}
