//! Where the messages of a session go: what the server says, held to the origin that the session was opened at. Pure.

use url::Url;

use super::Endpoint;

/// A longer URI names no endpoint.
const URI_BYTES_MAX: usize = 4096;

/// The endpoint that the server names, relative to the one of the stream.
///
/// The credential goes with every message, so no other origin can be named, nor an address that only we can reach.
///
/// # Errors
/// What is wrong with it.
pub(super) fn resolve(base: &Endpoint, said: &str) -> Result<Endpoint, &'static str> {
    if said.len() > URI_BYTES_MAX || said.chars().any(char::is_control) {
        return Err("its endpoint is no URI");
    }
    let scheme = if base.tls { "https" } else { "http" };
    let opened = Url::parse(&format!("{scheme}://{}{}", base.authority, base.path));
    let opened = opened.map_err(|_| "the URL of its stream is no base for an endpoint")?;
    let named = opened.join(said).map_err(|_| "its endpoint is no URI")?;
    let origin = |url: &Url| (url.scheme().to_owned(), url.host_str().map(str::to_owned), url.port_or_known_default());
    if origin(&named) != origin(&opened) {
        return Err("its endpoint is of another origin");
    }
    if !named.username().is_empty() || named.password().is_some() {
        return Err("its endpoint has a user or a password in it");
    }
    let path = named.query().map_or_else(|| named.path().to_owned(), |query| format!("{}?{query}", named.path()));
    Ok(Endpoint { path, ..base.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::remote::Place;

    fn base(tls: bool, authority: &str) -> Endpoint {
        let place = Place::Tcp { host: "127.0.0.1".into(), port: 1 };
        Endpoint { tls, authority: authority.into(), place, path: "/a/sse?x=1".into() }
    }

    #[test]
    fn an_endpoint_of_the_same_origin_is_taken() {
        let base = base(false, "up.example:81");
        for (said, path) in [
            ("/messages?session_id=1", "/messages?session_id=1"),
            ("messages", "/a/messages"),
            ("?session=1", "/a/sse?session=1"),
            ("http://up.example:81/m#part", "/m"),
            ("http://UP.example:81/m", "/m"),
            ("//up.example:81/m", "/m"),
            ("/a b", "/a%20b"),
        ] {
            let resolved = resolve(&base, said).expect(said);
            assert_eq!(resolved, Endpoint { path: path.into(), ..base.clone() });
        }
        let secure = self::base(true, "up.example");
        assert!(resolve(&secure, "https://up.example:443/m").is_ok());
    }

    #[test]
    fn an_endpoint_of_another_origin_is_refused() {
        let base = base(false, "up.example:81");
        for said in [
            "http://other.example:81/m",
            "http://up.example:82/m",
            "http://up.example/m",
            "https://up.example:81/m",
            "//169.254.169.254/latest",
            "http://up.example:81@evil.example/m",
            "http://user@up.example:81/m",
            "\\\\evil.example/m",
            "file:///etc/passwd",
            "javascript:1",
            "http://up.example.:81/m",
            "/m\r\nX-Evil: 1",
        ] {
            assert!(resolve(&base, said).is_err(), "{said}");
        }
        assert!(resolve(&base, &format!("/{}", "x".repeat(5_000))).is_err());
    }
}
