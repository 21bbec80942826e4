//! The headers of a tunnelled connection: who opened it, for the other side's telemetry. Nothing is decided by them.
//!
//! The names and their order are ztunnel's (W3C baggage with OpenTelemetry's resource attributes; RFC 7239).

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::Workload;

/// Who sends, in OpenTelemetry's terms.
pub(super) const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// The trace that a connection belongs to (W3C trace context).
pub(super) const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// Why a server refused, in words. Ours; others neither send nor miss it.
pub(super) const MESH_ERROR: HeaderName = HeaderName::from_static("x-mesh-error");

/// Longest reason that is sent or believed.
const LONGEST_REASON: usize = 200;

/// Longest header value that is looked into, and longest part of one that is kept.
const LONGEST_VALUE: usize = 2048;
const LONGEST_PART: usize = 256;

/// What a client says of itself: claims, good for telemetry only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// Kubernetes cluster.
    pub cluster: Option<Box<str>>,
    /// Kubernetes namespace.
    pub namespace: Option<Box<str>>,
    /// The kind of workload (`deployment`) and its name.
    pub workload: Option<(Box<str>, Box<str>)>,
    /// Canonical service.
    pub service: Option<Box<str>>,
    /// Its revision.
    pub version: Option<Box<str>>,
    /// Region.
    pub region: Option<Box<str>>,
    /// Zone.
    pub zone: Option<Box<str>>,
    /// The client's address where a gateway stands between.
    pub forwarded_for: Option<IpAddr>,
    /// The service that the client asked for.
    pub forwarded_host: Option<Box<str>>,
    /// The trace it belongs to.
    pub trace_parent: Option<HeaderValue>,
}

/// The baggage of a workload's connections.
pub fn baggage(workload: &Workload) -> HeaderValue {
    let mut text = String::with_capacity(192);
    let parts: [(&str, &str); 7] = [
        ("k8s.cluster.name", &workload.cluster),
        ("k8s.namespace.name", &workload.namespace),
        // The kind is not kept of workloads; ztunnel's default, which the owner of most pods is.
        ("k8s.deployment.name", &workload.workload_name),
        ("service.name", &workload.canonical_name),
        ("service.version", &workload.canonical_revision),
        ("cloud.region", &workload.locality.region),
        ("cloud.availability_zone", &workload.locality.zone),
    ];
    for (name, value) in parts.into_iter().filter(|(_, value)| !value.is_empty()) {
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{name}={}", Encoded(value));
    }
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The client's address, and the service it asked for, where that was one.
pub(super) fn forwarded(client: SocketAddr, host: Option<&str>) -> HeaderValue {
    let mut text = match client.ip() {
        IpAddr::V4(address) => format!("for={address}"),
        IpAddr::V6(address) => format!("for=\"[{address}]\""),
    };
    // A name with other characters would need quotes; no service has one.
    let plain = |host: &&str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    if let Some(host) = host.filter(plain) {
        let _ = write!(text, ";host={host}");
    }
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// A value with everything encoded that means something in baggage (percent encoding).
struct Encoded<'a>(&'a str);

impl std::fmt::Display for Encoded<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
                out.write_char(char::from(byte))?;
            } else {
                write!(out, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

impl Claims {
    /// What a request says, as far as it can be understood.
    pub(super) fn read(headers: &HeaderMap) -> Self {
        let mut claims = Self::default();
        for value in texts(headers, &BAGGAGE) {
            for member in value.split(',') {
                claims.read_member(member);
            }
        }
        for value in texts(headers, &FORWARDED) {
            // The first element is the one of the client; proxies add theirs after it.
            for pair in value.split(',').next().unwrap_or_default().split(';') {
                claims.read_forwarded(pair);
            }
        }
        claims.trace_parent = headers.get(&TRACE_PARENT).filter(|value| is_trace_parent(value)).cloned();
        claims
    }

    /// What these header values say; empty ones say nothing.
    pub(super) fn of(baggage: &str, forwarded: &str, trace_parent: &str) -> Self {
        let mut headers = HeaderMap::with_capacity(3);
        for (name, value) in [(BAGGAGE, baggage), (FORWARDED, forwarded), (TRACE_PARENT, trace_parent)] {
            if let Ok(value) = HeaderValue::from_str(value)
                && !value.is_empty()
            {
                headers.insert(name, value);
            }
        }
        Self::read(&headers)
    }

    fn read_member(&mut self, member: &str) {
        // Properties after a semicolon are not ours.
        let Some((name, value)) = member.split(';').next().and_then(|pair| pair.split_once('=')) else {
            return;
        };
        let Some(value) = decoded(value.trim()) else {
            return;
        };
        match name.trim() {
            "k8s.cluster.name" => self.cluster = Some(value),
            "k8s.namespace.name" => self.namespace = Some(value),
            "service.name" => self.service = Some(value),
            "service.version" => self.version = Some(value),
            "cloud.region" => self.region = Some(value),
            "cloud.availability_zone" => self.zone = Some(value),
            name => {
                let kind = name.strip_prefix("k8s.").and_then(|name| name.strip_suffix(".name"));
                if let Some(kind @ ("deployment" | "pod" | "job" | "cronjob")) = kind {
                    self.workload = Some((kind.into(), value));
                }
            }
        }
    }

    fn read_forwarded(&mut self, pair: &str) {
        let Some((name, value)) = pair.trim().split_once('=') else {
            return;
        };
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        if name.eq_ignore_ascii_case("for") && self.forwarded_for.is_none() {
            self.forwarded_for = node_address(value);
        } else if name.eq_ignore_ascii_case("host") && self.forwarded_host.is_none() {
            self.forwarded_host = Some(value).filter(|host| is_printable(host)).map(Into::into);
        }
    }
}

/// The values of a header that are text and not too long.
fn texts<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    values.filter_map(|value| value.to_str().ok()).filter(|value| value.len() <= LONGEST_VALUE).take(2)
}

/// Decodes percent encoding. Nothing where the result is empty, too long or not printable.
fn decoded(text: &str) -> Option<Box<str>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            let digits = str::from_utf8(&digits).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| is_printable(text)).map(Into::into)
}

fn is_printable(text: &str) -> bool {
    !text.is_empty() && text.len() <= LONGEST_PART && !text.chars().any(char::is_control)
}

/// The address in RFC 7239's `for`, with or without a port.
fn node_address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

/// `00-<32 hexadecimal digits>-<16>-<2>`.
fn is_trace_parent(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    bytes.len() == 55
        && bytes.iter().enumerate().all(|(position, byte)| match position {
            2 | 35 | 52 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// A reason as a header may carry it: printable ASCII, not too long.
pub(super) fn reason_value(reason: &str) -> HeaderValue {
    HeaderValue::from_str(&plain_reason(reason)).unwrap_or_else(|_| HeaderValue::from_static("?"))
}

/// A reason as it is sent, and as it is believed.
pub(super) fn plain_reason(reason: &str) -> String {
    let plain = |character: char| if matches!(character, ' '..='~') { character } else { '?' };
    reason.chars().take(LONGEST_REASON).map(plain).collect()
}

/// The reason that a server gives, if it does.
pub(super) fn reason(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(&MESH_ERROR)?.to_str().ok()?;
    Some(text.chars().take(LONGEST_REASON).collect()).filter(|text: &String| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::fixtures::{at, ip, workload};

    fn claims(headers: &[(HeaderName, &str)]) -> Claims {
        let headers =
            headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        Claims::read(&headers.collect())
    }

    #[test]
    fn a_workload_introduces_itself_as_ztunnel_does() {
        let mut web = workload("web", &["10.1.0.1"], "n1", &[]);
        std::sync::Arc::make_mut(&mut web.locality).region = "eu, west".into();
        let value = baggage(&web);
        assert_eq!(
            value,
            "k8s.cluster.name=c,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,\
             service.version=latest,cloud.region=eu%2C%20west"
        );
        let claims = claims(&[(BAGGAGE, value.to_str().unwrap())]);
        assert_eq!(claims.workload, Some(("deployment".into(), "web".into())));
        assert_eq!(claims.namespace.as_deref(), Some("shop"));
        assert_eq!(claims.region.as_deref(), Some("eu, west"));
        assert_eq!(claims.zone, None);
    }

    #[test]
    fn the_client_is_forwarded() {
        for (client, host, expected) in [
            ("10.1.0.1:4000", None, "for=10.1.0.1"),
            ("10.1.0.1:4000", Some("web.shop"), "for=10.1.0.1;host=web.shop"),
            ("[fd00::1]:4000", Some("web"), "for=\"[fd00::1]\";host=web"),
            ("10.1.0.1:4000", Some("a;b"), "for=10.1.0.1"),
        ] {
            let value = forwarded(at(client), host);
            assert_eq!(value, expected);
            let claims = claims(&[(FORWARDED, value.to_str().unwrap())]);
            assert_eq!(claims.forwarded_for, Some(at(client).ip()));
        }
    }

    #[test]
    fn what_others_write_is_read_as_far_as_it_goes() {
        let claims = claims(&[
            (FORWARDED, "For=\"[fd00::9]:4711\";HOST=web;by=x, for=10.0.0.1"),
            (BAGGAGE, " service.name = a%20b ;prop=1,=,nonsense,service.version=%zz,k8s.pod.name=p-1"),
            (TRACE_PARENT, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ]);
        assert_eq!(claims.forwarded_for, Some(ip("fd00::9")));
        assert_eq!(claims.forwarded_host.as_deref(), Some("web"));
        assert_eq!(claims.service.as_deref(), Some("a b"));
        assert_eq!(claims.version, None);
        assert_eq!(claims.workload, Some(("pod".into(), "p-1".into())));
        assert!(claims.trace_parent.is_some());
    }

    #[test]
    fn what_is_too_long_or_not_printable_is_left_out() {
        let long = format!("service.name={}", "x".repeat(300));
        let too_long = format!("service.version=1,x={}", "x".repeat(LONGEST_VALUE));
        for text in [&*long, &*too_long, "service.name=a%0Ab", "service.name=%"] {
            assert_eq!(claims(&[(BAGGAGE, text)]), Claims::default(), "{text}");
        }
        assert_eq!(claims(&[(TRACE_PARENT, "00-zz")]), Claims::default());
    }

    #[test]
    fn reasons_are_plain_and_short() {
        let value = reason_value(&format!("no\r\nway \u{1f600}{}", "x".repeat(300)));
        assert_eq!(value.len(), LONGEST_REASON);
        assert!(value.to_str().unwrap().starts_with("no??way ?xxx"));
        let headers = [(MESH_ERROR, value)].into_iter().collect();
        assert_eq!(reason(&headers).unwrap().len(), LONGEST_REASON);
    }
}
