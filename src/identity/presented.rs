//! The one credential that a request carries in its headers.

use crate::exchange::Request;

use super::Error;
use super::Scheme;
use super::api_key;

/// What a caller shows beside the connection.
pub(super) enum Presented<'a> {
    ApiKey(&'a str),
    Nothing,
    Token(Scheme, &'a str),
}

impl Presented<'_> {
    /// Finds the one credential in the headers. The query is never looked at (MCP authorization, RFC 6750 section 5.3).
    pub(super) fn by(request: &Request) -> Result<Presented<'_>, Error> {
        let authorization = request.single_header("authorization").map_err(|()| {
            Error::invalid("the `Authorization` header is there more than once or is not visible ASCII")
        })?;
        let api_key = request
            .single_header("x-api-key")
            .map_err(|()| Error::invalid("the `X-API-Key` header is there more than once or is not visible ASCII"))?;
        match (authorization, api_key) {
            (Some(_), Some(_)) => Err(Error::invalid("`Authorization` and `X-API-Key` must not be sent together")),
            (Some(value), None) => match token(value)? {
                (Scheme::Bearer, key) if key.starts_with(api_key::PREFIX) => Ok(Presented::ApiKey(key)),
                (scheme, token) => Ok(Presented::Token(scheme, token)),
            },
            (None, Some(key)) => Ok(Presented::ApiKey(key)),
            (None, None) => Ok(Presented::Nothing),
        }
    }
}

/// `Bearer` or `DPoP`, SP, b64token (RFC 6750 section 2.1, RFC 9449 section 7.1); the scheme in any case.
fn token(value: &str) -> Result<(Scheme, &str), Error> {
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    let scheme = match scheme {
        scheme if scheme.eq_ignore_ascii_case("bearer") => Scheme::Bearer,
        scheme if scheme.eq_ignore_ascii_case("dpop") => Scheme::Dpop,
        _ => return Err(Error::invalid("the `Authorization` scheme is neither `Bearer` nor `DPoP`")),
    };
    let token = token.trim_start_matches(' ');
    let body = token.trim_end_matches('=');
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
    if body.is_empty() || !body.bytes().all(legal) {
        return Err(Error::invalid("the token is empty or has characters that no token has"));
    }
    Ok((scheme, token))
}
