//! The one spelling of a Host.

use std::net::IpAddr;
use std::net::Ipv6Addr;

/// A parsed Host.
#[derive(Debug, Eq, PartialEq)]
pub(in crate::server) struct Host {
    /// Lower case, no trailing dot, IPv6 in brackets.
    pub(super) name: String,
    /// The name, with the port if it was sent.
    pub(super) authority: String,
}

impl Host {
    pub(in crate::server) fn parse(text: &str) -> Option<Host> {
        let (name, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, after) = rest.split_once(']')?;
                let address: Ipv6Addr = address.parse().ok()?;
                (format!("[{address}]"), after)
            }
            None => {
                let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
                let name = name.strip_suffix('.').unwrap_or(name);
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
                if name.is_empty() || name.len() > 253 || !name.bytes().all(plain) || name.split('.').any(str::is_empty)
                {
                    return None;
                }
                (name.to_ascii_lowercase(), port)
            }
        };
        let authority = match port.strip_prefix(':') {
            None if port.is_empty() => name.clone(),
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                format!("{name}:{}", digits.parse::<u16>().ok()?)
            }
            _ => return None,
        };
        Some(Host { name, authority })
    }

    pub(in crate::server) fn is_local(&self) -> bool {
        let address = self.name.trim_start_matches('[').trim_end_matches(']');
        self.name == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}
