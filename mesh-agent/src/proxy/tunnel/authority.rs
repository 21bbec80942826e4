//! The authority of a CONNECT request: where the client wants to go.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use thiserror::Error;

/// Longest host name (RFC 1035, 2.3.4, in text form).
const LONGEST_NAME: usize = 253;

/// An address or a name, always with a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authority {
    /// `10.0.0.1:80` or `[fd00::1]:80`.
    Address(SocketAddr),
    /// `web.shop.svc.cluster.local:80`, in lower case.
    Name {
        /// The host name.
        host: Box<str>,
        /// Never 0.
        port: u16,
    },
}

/// An authority that names no place to connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the authority must be address:port, [address]:port or name:port")]
pub struct InvalidAuthority;

impl FromStr for Authority {
    type Err = InvalidAuthority;

    fn from_str(text: &str) -> Result<Self, InvalidAuthority> {
        let (host, port) = text.rsplit_once(':').ok_or(InvalidAuthority)?;
        let port = parse_port(port)?;
        if let Some(address) = host.strip_prefix('[') {
            let address = address.strip_suffix(']').ok_or(InvalidAuthority)?;
            let address: Ipv6Addr = address.parse().map_err(|_| InvalidAuthority)?;
            return Ok(Self::Address(SocketAddr::new(address.into(), port)));
        }
        if let Ok(address) = host.parse::<IpAddr>() {
            // Without brackets nobody can tell where an IPv6 address ends and the port begins.
            let address = Some(address).filter(IpAddr::is_ipv4).ok_or(InvalidAuthority)?;
            return Ok(Self::Address(SocketAddr::new(address, port)));
        }
        if !is_name(host) {
            return Err(InvalidAuthority);
        }
        Ok(Self::Name { host: host.to_ascii_lowercase().into(), port })
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(out),
            Self::Name { host, port } => write!(out, "{host}:{port}"),
        }
    }
}

/// Digits only: `parse` would take a sign as well.
fn parse_port(text: &str) -> Result<u16, InvalidAuthority> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = digits.then(|| text.parse::<u16>().ok()).flatten();
    port.filter(|port| *port != 0).ok_or(InvalidAuthority)
}

/// A DNS name. One whose last label is a number is none: some parsers take it for an IPv4 address (RFC 3696, 2).
fn is_name(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= LONGEST_NAME
        && host.split('.').all(is_label)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_understood() {
        for text in ["10.1.0.5:8080", "[fd00::5]:80", "web.shop.svc.cluster.local:80", "a_b-c:1"] {
            assert_eq!(text.parse::<Authority>().unwrap().to_string(), text);
        }
        let name = Authority::Name { host: "web.shop".into(), port: 80 };
        assert_eq!("Web.SHOP:80".parse(), Ok(name));
    }

    #[test]
    fn everything_else_is_refused() {
        let long = format!("{}:80", "a.".repeat(126) + "a");
        assert!(long.parse::<Authority>().is_ok());
        let too_long = format!("{}:80", "a.".repeat(126) + "aa");
        for text in [
            "",
            ":",
            ":80",
            "10.1.0.5",
            "10.1.0.5:",
            "10.1.0.5:0",
            "10.1.0.5:65536",
            "10.1.0.5:+80",
            "10.1.0.5: 80",
            "10.1.0.05:80",
            "10.1.5:80",
            "0x7f.1:80",
            "fd00::5:80",
            "[fd00::5]",
            "[fd00::5]80",
            "[10.1.0.5]:80",
            "[fe80::1%eth0]:80",
            "user@web:80",
            "web/:80",
            "http://web:80",
            "web..shop:80",
            "web.:80",
            "-web:80",
            "we b:80",
            "wéb:80",
            &too_long,
        ] {
            assert_eq!(text.parse::<Authority>(), Err(InvalidAuthority), "{text:?}");
        }
    }
}
