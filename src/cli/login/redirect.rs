//! The loopback address that a browser brings the code to (RFC 8252), and what is checked of what it brings.

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use url::Url;

use crate::secret::Secret;

const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Browsers open connections that they do not use: each has a moment, and the next one comes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// What a redirect must be like.
pub(super) struct Expected<'a> {
    pub(super) path: &'a str,
    pub(super) state: &'a str,
    pub(super) issuer: &'a str,
    pub(super) names_itself: bool,
}

/// Listens on a port of the system's choice; gives the redirect address with it.
pub(super) async fn listen(registered: &Url) -> Result<(TcpListener, Url), String> {
    let wrong = || {
        format!("--redirect-uri `{registered}` is not of this machine: http://127.0.0.1/PATH or http://localhost/PATH")
    };
    let bare = registered.query().is_none() && registered.fragment().is_none();
    let host = match (registered.scheme(), registered.host_str()) {
        ("http", Some("127.0.0.1" | "localhost")) if bare => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        ("http", Some("[::1]")) if bare => SocketAddr::from((Ipv6Addr::LOCALHOST, 0)),
        _ => return Err(wrong()),
    };
    let address = SocketAddr::new(host.ip(), registered.port().unwrap_or(0));
    let listening = TcpListener::bind(address).await;
    let listening = listening.map_err(|error| format!("cannot listen on `{address}` for the browser: {error}"))?;
    let port = listening.local_addr().map_err(|error| error.to_string())?.port();
    let mut redirect = registered.clone();
    redirect.set_port(Some(port)).map_err(|()| wrong())?;
    Ok((listening, redirect))
}

/// The code of the redirect that is ours. Others may knock: they get an error page and change nothing.
pub(super) async fn wait(listening: TcpListener, expected: &Expected<'_>) -> Result<Secret, String> {
    loop {
        let (mut stream, _) =
            listening.accept().await.map_err(|error| format!("the browser cannot come back: {error}"))?;
        let Ok(Some(target)) = tokio::time::timeout(HEAD_TIMEOUT, target(&mut stream)).await else { continue };
        let outcome = judge(&target, expected);
        let (status, words) = match &outcome {
            None => ("404 Not Found", "There is nothing here."),
            Some(Ok(_)) => ("200 OK", "That was all here: this window can be closed, the terminal says the rest."),
            Some(Err(_)) => ("400 Bad Request", "The login failed: see the terminal."),
        };
        let _ = tokio::time::timeout(HEAD_TIMEOUT, say(&mut stream, status, words)).await;
        if let Some(outcome) = outcome {
            return outcome;
        }
    }
}

/// The target of a GET.
async fn target(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut piece = [0; 2048];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut piece).await.ok().filter(|read| *read > 0)?;
        head.extend_from_slice(piece.get(..read)?);
        if head.len() > HEAD_BYTES_MAX {
            return None;
        }
    }
    let head = std::str::from_utf8(&head).ok()?;
    let mut words = head.lines().next()?.split(' ');
    (words.next() == Some("GET")).then(|| words.next().map(str::to_owned)).flatten()
}

/// `None`: not the redirect that we wait for.
fn judge(target: &str, expected: &Expected<'_>) -> Option<Result<Secret, String>> {
    let url = Url::parse("http://127.0.0.1").ok()?.join(target).ok()?;
    let all =
        |name: &str| url.query_pairs().filter(|(known, _)| known == name).map(|(_, value)| value).collect::<Vec<_>>();
    if url.path() != expected.path || all("state") != [expected.state] {
        return None;
    }
    // RFC 9207 section 2.4: before anything else is believed. A redirect of another server carries a code that must
    // not be shown to this one, and one that hides where it is from may be of any.
    let issuers = all("iss");
    match issuers.as_slice() {
        [] if expected.names_itself => {
            return Some(Err(
                "the redirect does not say which server it is from (`iss`), though that server always does".into(),
            ));
        }
        [] => {}
        [issuer] if issuer == expected.issuer => {}
        _ => return Some(Err("the redirect is from another authorization server (`iss`)".into())),
    }
    if let Some(error) = all("error").first() {
        let clean = |text: &str| text.chars().filter(|c| !c.is_control()).take(300).collect::<String>();
        let why = all("error_description").first().map_or_else(String::new, |text| format!(": {}", clean(text)));
        return Some(Err(format!("the login was refused: {}{why}", clean(error))));
    }
    match all("code").as_slice() {
        [code] if !code.is_empty() => Some(Ok(Secret::new(code.as_ref()))),
        _ => Some(Err("the redirect brings no code".into())),
    }
}

async fn say(stream: &mut TcpStream, status: &str, words: &str) -> std::io::Result<()> {
    let page = format!("<!doctype html><meta charset=utf-8><title>wardgate</title><p>{words}</p>\n");
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\
         Cache-Control: no-store\r\nReferrer-Policy: no-referrer\r\nX-Content-Type-Options: nosniff\r\n\
         Content-Security-Policy: default-src 'none'; frame-ancestors 'none'\r\n\r\n{page}",
        page.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: Expected<'_> =
        Expected { path: "/callback", state: "s-1", issuer: "https://idp.test", names_itself: false };
    const NAMED: Expected<'_> = Expected { names_itself: true, ..EXPECTED };

    fn code(target: &str, expected: &Expected<'_>) -> Option<Result<String, String>> {
        judge(target, expected).map(|outcome| outcome.map(|code| code.expose().to_owned()))
    }

    #[test]
    fn a_redirect_of_another_server_or_of_none_is_refused_before_its_code_is_read() {
        let good = Some(Ok("c".to_owned()));
        assert_eq!(code("/callback?code=c&state=s-1", &EXPECTED), good);
        for expected in [&EXPECTED, &NAMED] {
            assert_eq!(code("/callback?code=c&state=s-1&iss=https%3A%2F%2Fidp.test", expected), good);
            for bad in ["https://evil.test", "https://idp.test/", "HTTPS://idp.test", ""] {
                let words =
                    code(&format!("/callback?code=c&state=s-1&iss={bad}&error=x"), expected).unwrap().unwrap_err();
                assert!(words.contains("another"), "{bad}: {words}");
            }
            let twice = "/callback?code=c&state=s-1&iss=https://idp.test&iss=https://evil.test";
            assert!(code(twice, expected).unwrap().is_err());
        }
        assert!(code("/callback?code=c&state=s-1", &NAMED).unwrap().unwrap_err().contains("does not say"));
    }

    #[test]
    fn a_redirect_without_our_state_is_nothing_to_us() {
        for foreign in [
            "/callback?code=c",
            "/callback?code=c&state=s-2",
            "/callback?code=c&state=s-1&state=s-2",
            "/callback?code=c&state=",
            "/other?code=c&state=s-1",
            "/favicon.ico",
        ] {
            assert_eq!(code(foreign, &EXPECTED), None, "{foreign}");
        }
        let refused = code("/callback?state=s-1&error=access_denied&error_description=no%0Away", &EXPECTED);
        assert_eq!(refused, Some(Err("the login was refused: access_denied: noway".to_owned())));
        for bad in ["/callback?state=s-1", "/callback?state=s-1&code=", "/callback?state=s-1&code=a&code=b"] {
            assert!(code(bad, &EXPECTED).unwrap().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn the_browser_comes_back_to_a_port_of_this_machine_alone() {
        for bad in ["https://127.0.0.1/callback", "http://example.com/callback", "http://127.0.0.1/?x=1"] {
            assert!(listen(&bad.parse().unwrap()).await.is_err(), "{bad}");
        }
        let (listening, redirect) = listen(&"http://localhost/callback".parse().unwrap()).await.unwrap();
        let address = listening.local_addr().unwrap();
        assert!(address.ip().is_loopback());
        assert_eq!(redirect.as_str(), format!("http://localhost:{}/callback", address.port()));
        let knock = |target: &'static str| async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let browser = async {
            assert!(knock("/callback?code=evil&state=guess").await.starts_with("HTTP/1.1 404"));
            assert!(knock("/callback?code=c&state=s-1").await.starts_with("HTTP/1.1 200"));
        };
        let (code, ()) = tokio::join!(wait(listening, &EXPECTED), browser);
        assert_eq!(code.unwrap().expose(), "c");
    }
}
