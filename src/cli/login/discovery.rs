//! From the URL of an MCP server to where one logs in for it: RFC 9728, then RFC 8414 or OpenID discovery.

use serde_json::Map;
use serde_json::Value;
use serde_json::json;
use url::Url;

use super::web::Answer;
use super::web::Error;
use super::web::Web;
use crate::cli::stdio::parameter_of;

const RESOURCE: &str = "/.well-known/oauth-protected-resource";
const OAUTH: &str = "/.well-known/oauth-authorization-server";
const OPENID: &str = "/.well-known/openid-configuration";

/// Everything a login needs to know.
#[derive(Debug)]
pub(super) struct Discovered {
    /// As the server calls itself: sent as `resource` (RFC 8707), so that the token is for it alone. `None`: not to be sent.
    pub(super) resource: Option<String>,
    /// What the server says should be asked for.
    pub(super) scopes: Vec<String>,
    pub(super) server: Server,
}

/// An authorization server, as it describes itself.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) issuer: String,
    pub(super) authorization: Option<Url>,
    pub(super) token: Url,
    pub(super) device: Option<Url>,
    pub(super) registration: Option<Url>,
    pub(super) revocation: Option<Url>,
    /// PKCE with S256 is promised.
    pub(super) pkce: bool,
    /// Redirects name the issuer (RFC 9207): one without the name is an attack.
    pub(super) names_itself: bool,
    /// Refresh tokens are to be had by asking for this scope.
    offline_access: bool,
}

impl Discovered {
    /// What was asked for, or what the server names; and a refresh token, where that is a scope.
    pub(super) fn scopes_to_ask(&self, asked: &[String]) -> Vec<String> {
        let mut scopes = if asked.is_empty() { self.scopes.clone() } else { asked.to_vec() };
        let offline = "offline_access".to_owned();
        if self.server.offline_access && !scopes.contains(&offline) {
            scopes.push(offline);
        }
        scopes
    }
}

pub(super) async fn discover(web: &Web, url: &Url, issuer: Option<&str>) -> Result<Discovered, String> {
    // It does nothing anywhere, and is refused before it is read where a login is wanted.
    let probe = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    let answer = web.post_mcp(url, None, &[], &probe).await.map_err(|error| error.to_string())?;
    let challenge = answer.headers.get_all(http::header::WWW_AUTHENTICATE).iter();
    let challenge = challenge
        .filter_map(|value| value.to_str().ok())
        .find(|value| value.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer")));
    let named = challenge.and_then(|text| parameter_of(text, "resource_metadata"));
    let named = named.and_then(|text| Url::parse(&text).ok());
    let scope = challenge.and_then(|text| parameter_of(text, "scope"));
    if named.as_ref().is_some_and(|named| named.origin() != url.origin()) {
        return Err("the server says that it is described at another server (`resource_metadata`)".to_owned());
    }
    let found = resource_metadata(web, url, named).await?;
    let (place, document) = found.ok_or_else(|| match answer.status {
        401 => "the server wants a login and does not say where (no RFC 9728 metadata)".to_owned(),
        status => format!("the server asks for no login (HTTP {status}, and no RFC 9728 metadata)"),
    })?;
    let resource = document.get("resource").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !is_of(&resource, url, &place) {
        return Err(format!("the server calls itself `{resource}`, which is not the address that was given"));
    }
    let servers = texts(&document, "authorization_servers");
    let chosen = match issuer {
        Some(issuer) => servers.iter().find(|known| *known == issuer),
        None => servers.first(),
    };
    let chosen = chosen.ok_or_else(|| match issuer {
        Some(issuer) => format!("the server does not accept tokens of `{issuer}`, but of: {}", servers.join(", ")),
        None => "the server names no authorization server".to_owned(),
    })?;
    let scopes = match scope {
        Some(scope) => scope.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect(),
        None => texts(&document, "scopes_supported"),
    };
    Ok(Discovered { resource: Some(resource), scopes, server: server(web, chosen).await? })
}

/// The document that the challenge names, or else the one at the path's or the root's well-known place.
async fn resource_metadata(
    web: &Web,
    url: &Url,
    named: Option<Url>,
) -> Result<Option<(Url, Map<String, Value>)>, String> {
    let path = url.path().trim_end_matches('/');
    let mut places = match named {
        Some(named) => vec![named],
        None => vec![at(url, &format!("{RESOURCE}{path}")), at(url, RESOURCE)],
    };
    places.dedup();
    for place in places {
        let answer = web.get(&place).await.map_err(|error| error.to_string())?;
        if let (200, Some(document)) = (answer.status, answer.object()) {
            return Ok(Some((place, document)));
        }
    }
    Ok(None)
}

/// RFC 9728 section 3.3: the very address that was given; or one above it on the same server (HTTP+SSE is below a route's
/// own path), if the description stands at that one's own well-known place. Else whoever has a part of a server could have
/// tokens made out for the whole of it.
fn is_of(resource: &str, url: &Url, place: &Url) -> bool {
    let Ok(resource) = Url::parse(resource) else { return false };
    let bare = |url: &Url| url.path().trim_end_matches('/').to_owned();
    let (above, path) = (bare(&resource), url.path());
    let below = path.strip_prefix(above.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let same = above == bare(url) || bare(place) == format!("{RESOURCE}{above}");
    resource.origin() == url.origin() && below && resource.query() == url.query() && same
}

async fn server(web: &Web, issuer: &str) -> Result<Server, String> {
    let url = Url::parse(issuer).ok().filter(|url| web.permits(url));
    let url =
        url.ok_or_else(|| format!("the authorization server `{issuer}` is neither at https nor on this machine"))?;
    let path = url.path().trim_end_matches('/');
    let mut places = vec![at(&url, &format!("{OAUTH}{path}")), at(&url, &format!("{OPENID}{path}"))];
    places.push(at(&url, &format!("{path}{OPENID}")));
    places.dedup();
    let mut last = String::new();
    for place in places {
        match web.get(&place).await {
            Ok(answer) if answer.status == 200 => return read(web, issuer, &answer),
            Ok(answer) => last = format!("`{place}` answered HTTP {}", answer.status),
            Err(error @ Error::Place(_)) => return Err(error.to_string()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(format!("the authorization server `{issuer}` does not describe itself: {last}"))
}

fn read(web: &Web, issuer: &str, answer: &Answer) -> Result<Server, String> {
    let document = answer.object().ok_or_else(|| format!("the metadata of `{issuer}` is not a JSON object"))?;
    // RFC 8414 section 3.3: a plain comparison, or another server could speak for this one.
    if document.get("issuer").and_then(Value::as_str) != Some(issuer) {
        return Err(format!("the metadata of `{issuer}` names another issuer"));
    }
    let endpoint = |name: &str| {
        let text = document.get(name).and_then(Value::as_str);
        text.and_then(|text| Url::parse(text).ok()).filter(|url| web.permits(url))
    };
    Ok(Server {
        issuer: issuer.to_owned(),
        authorization: endpoint("authorization_endpoint"),
        token: endpoint("token_endpoint").ok_or_else(|| format!("`{issuer}` has no `token_endpoint` at https"))?,
        device: endpoint("device_authorization_endpoint"),
        registration: endpoint("registration_endpoint"),
        revocation: endpoint("revocation_endpoint"),
        pkce: texts(&document, "code_challenge_methods_supported").iter().any(|method| method == "S256"),
        names_itself: document.get("authorization_response_iss_parameter_supported") == Some(&Value::Bool(true)),
        offline_access: texts(&document, "scopes_supported").iter().any(|scope| scope == "offline_access"),
    })
}

fn at(url: &Url, path: &str) -> Url {
    let mut place = url.clone();
    place.set_path(path);
    place.set_query(None);
    place.set_fragment(None);
    place
}

fn texts(document: &Map<String, Value>, name: &str) -> Vec<String> {
    let list = document.get(name).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_the_address_itself_or_above_it_on_the_same_server() {
        let of = |resource: &str, url: &str| {
            let own: Url = resource.parse().unwrap_or_else(|_| "https://gw.test".parse().unwrap());
            is_of(resource, &url.parse().unwrap(), &at(&own, &format!("{RESOURCE}{}", own.path())))
        };
        for (resource, url) in [
            ("https://gw.test/mcp", "https://gw.test/mcp"),
            ("https://GW.test:443/mcp/", "https://gw.test/mcp"),
            ("https://gw.test/mcp", "https://gw.test/mcp/sse"),
            ("https://gw.test", "https://gw.test/mcp"),
        ] {
            assert!(of(resource, url), "{resource} {url}");
        }
        for (resource, url) in [
            ("https://gw.test/mcp", "https://gw.test/mcpx"),
            ("https://gw.test/mcp/sse", "https://gw.test/mcp"),
            ("http://gw.test/mcp", "https://gw.test/mcp"),
            ("https://evil.test/mcp", "https://gw.test/mcp"),
            ("https://gw.test:8443/mcp", "https://gw.test/mcp"),
            ("", "https://gw.test/mcp"),
        ] {
            assert!(!of(resource, url), "{resource} {url}");
        }
    }

    #[test]
    fn who_has_a_part_of_a_server_does_not_speak_for_the_whole() {
        let of = |resource: &str, url: &str, place: &str| {
            is_of(resource, &url.parse().unwrap(), &format!("https://gw.test{place}").parse().unwrap())
        };
        let own = "https://gw.test/team-a/mcp";
        for place in ["/team-a/metadata.json", "/.well-known/oauth-protected-resource/team-a/mcp"] {
            assert!(of(own, own, place), "itself, wherever it is described");
            assert!(!of("https://gw.test", own, place), "{place}");
            assert!(!of("https://gw.test/team-a", own, place), "{place}");
        }
        assert!(of("https://gw.test", own, "/.well-known/oauth-protected-resource"));
        assert!(of("https://gw.test/team-a", own, "/.well-known/oauth-protected-resource/team-a"));
        assert!(!of("https://gw.test", own, "/.well-known/oauth-protected-resource/team-b"));
    }

    #[tokio::test]
    async fn metadata_is_of_the_issuer_that_was_asked_for_and_its_endpoints_are_safe() {
        crate::server::install_crypto();
        let web = Web::new(&"https://gw.test/mcp".parse().unwrap(), None).await.unwrap();
        let whole = json!({
            "issuer": "https://idp.test",
            "authorization_endpoint": "https://idp.test/a",
            "token_endpoint": "https://idp.test/t",
            "device_authorization_endpoint": "http://127.0.0.1/d",
            "code_challenge_methods_supported": ["plain"],
        });
        let answer = |document: &Value| Answer {
            status: 200,
            headers: http::HeaderMap::new(),
            body: document.to_string().into_bytes(),
        };
        let server = read(&web, "https://idp.test", &answer(&whole)).unwrap();
        // A server on the network cannot send us to our own machine.
        assert!(server.device.is_none() && server.authorization.is_some() && !server.pkce && !server.names_itself);
        assert!(read(&web, "https://idp.test/", &answer(&whole)).unwrap_err().contains("another issuer"));
        let mut plain = whole.clone();
        plain["token_endpoint"] = json!("http://idp.test/t");
        assert!(read(&web, "https://idp.test", &answer(&plain)).unwrap_err().contains("token_endpoint"));
    }
}
