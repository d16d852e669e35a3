//! Which ports the demo's gateway listens on: the usual ones where they are free, and any free one where not.

use std::io;
use std::net::Ipv4Addr;
use std::net::TcpListener;

/// Ports that were free a moment ago.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Ports {
    pub(super) plain: u16,
    pub(super) tls: u16,
    pub(super) admin: u16,
}

/// What newcomers will find in the documentation.
pub(super) const USUAL: Ports = Ports { plain: 8080, tls: 8443, admin: 9090 };

impl Ports {
    /// The usual ports, or others; `tell` hears of every port that is taken.
    ///
    /// # Errors
    /// When there is no free port at all.
    pub(super) fn find(usual: Ports, mut tell: impl FnMut(&str)) -> io::Result<Ports> {
        let mut held = Vec::new();
        let mut find = |usual: u16, what: &str| {
            let (listener, taken) = match TcpListener::bind((Ipv4Addr::LOCALHOST, usual)) {
                Ok(listener) => (listener, false),
                Err(_) => (TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, true),
            };
            let port = listener.local_addr()?.port();
            if taken {
                tell(&format!("Port {usual} is taken: the {what} listener uses {port} instead."));
            }
            // Held until all are found, so that no port is found twice.
            held.push(listener);
            io::Result::Ok(port)
        };
        Ok(Ports {
            plain: find(usual.plain, "plain")?,
            tls: find(usual.tls, "TLS")?,
            admin: find(usual.admin, "admin")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_replaced_and_said() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut told = Vec::new();
        let found = Ports::find(Ports { plain: port, tls: 0, admin: 0 }, |words| told.push(words.to_owned())).unwrap();
        assert_ne!(found.plain, port);
        assert_eq!(told, [format!("Port {port} is taken: the plain listener uses {} instead.", found.plain)]);
    }

    #[test]
    fn no_port_is_found_twice() {
        let found = Ports::find(Ports { plain: 0, tls: 0, admin: 0 }, |_| {}).unwrap();
        assert!(found.plain != found.tls && found.tls != found.admin && found.plain != found.admin);
    }
}
