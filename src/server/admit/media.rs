//! Media types: what a body must be, and what a client will take.

use http::HeaderMap;
use http::header;

pub(super) const JSON: (&str, &str) = ("application", "json");
pub(super) const EVENTS: (&str, &str) = ("text", "event-stream");

/// `application/json`, at most with `charset=utf-8`: any other charset is a second way to read the same bytes.
pub(super) fn is_json(media: &str) -> bool {
    let mut parts = media.split(';').map(str::trim);
    parts.next().is_some_and(|media| media.eq_ignore_ascii_case("application/json"))
        && parts.all(|parameter| {
            let parameter = parameter.split_once('=');
            parameter.is_some_and(|(name, value)| {
                name.eq_ignore_ascii_case("charset") && value.trim_matches('"').eq_ignore_ascii_case("utf-8")
            })
        })
}

/// Does `Accept` allow this media type? The most specific range that matches decides (RFC 9110 section 12.5.1).
pub(super) fn accepts(headers: &HeaderMap, (kind, subtype): (&str, &str)) -> bool {
    let mut best = (0, false);
    for value in headers.get_all(header::ACCEPT) {
        let Ok(value) = value.to_str() else { return false };
        for range in value.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let Some((their_kind, their_subtype)) = parts.next().and_then(|range| range.split_once('/')) else {
                continue;
            };
            let specific = if their_kind == "*" && their_subtype == "*" {
                1
            } else if !their_kind.eq_ignore_ascii_case(kind) {
                continue;
            } else if their_subtype == "*" {
                2
            } else if their_subtype.eq_ignore_ascii_case(subtype) {
                3
            } else {
                continue;
            };
            let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            let wanted = weight.is_none_or(|weight| weight.trim().parse::<f32>().is_ok_and(|weight| weight > 0.0));
            if specific > best.0 || (specific == best.0 && wanted) {
                best = (specific, wanted);
            }
        }
    }
    best.1
}
