//! A message of an upstream: which kind it is, which request it answers, without touching its content.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Id;

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Incoming {
    Notification {
        method: String,
    },
    /// A server's request to the client (legacy era).
    Request {
        method: String,
    },
    Response {
        id: Option<Id>,
        error_code: Option<i64>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<'a> {
    #[serde(borrow)]
    jsonrpc: Cow<'a, str>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "params")]
    _params: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<ErrorWire>,
}

#[derive(Deserialize)]
struct ErrorWire {
    code: i64,
}

impl Incoming {
    /// # Errors
    /// What is wrong with it, in words that hold nothing of its content.
    pub fn read(bytes: &[u8]) -> Result<Incoming, &'static str> {
        let wire: Wire<'_> = serde_json::from_slice(bytes).map_err(|_| "not one JSON-RPC message")?;
        if wire.jsonrpc != "2.0" {
            return Err("jsonrpc is not 2.0");
        }
        let id = match wire.id {
            None => None,
            Some(raw) => Some(Id::from_json(raw.get()).ok_or("the id is neither string nor integer")?),
        };
        match (wire.method, id, wire.result.is_some(), wire.error) {
            (Some(method), Some(_), false, None) => Ok(Incoming::Request { method: method.into_owned() }),
            (Some(method), None, false, None) => Ok(Incoming::Notification { method: method.into_owned() }),
            (None, Some(id), true, None) => Ok(Incoming::Response { id: Some(id), error_code: None }),
            (None, id, false, Some(error)) => Ok(Incoming::Response { id, error_code: Some(error.code) }),
            _ => Err("neither request, notification nor response"),
        }
    }
}
