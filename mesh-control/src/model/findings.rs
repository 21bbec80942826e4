//! What is wrong with a resource, collected rather than thrown, so that a user sees all of it at once.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// A step into a resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    /// A field of a mapping.
    Field(String),
    /// An item of a sequence.
    Index(usize),
}

impl From<&str> for Segment {
    fn from(name: &str) -> Self {
        Self::Field(name.to_owned())
    }
}

impl From<&String> for Segment {
    fn from(name: &String) -> Self {
        Self::Field(name.clone())
    }
}

impl From<usize> for Segment {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// The place of a field in a resource, such as `spec.ports[0].port`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldPath(Vec<Segment>);

impl FieldPath {
    /// The steps from the root.
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    /// One step further.
    #[must_use]
    pub fn then(mut self, segment: impl Into<Segment>) -> Self {
        self.0.push(segment.into());
        self
    }
}

impl FromIterator<Segment> for FieldPath {
    fn from_iter<I: IntoIterator<Item = Segment>>(segments: I) -> Self {
        Self(segments.into_iter().collect())
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(out, "[{index}]")?,
                // Annotation keys have dots and slashes of their own.
                Segment::Field(name) if name.contains(['.', '/']) => write!(out, "[{name:?}]")?,
                Segment::Field(name) if position == 0 => out.write_str(name)?,
                Segment::Field(name) => write!(out, ".{name}")?,
            }
        }
        Ok(())
    }
}

/// `field!["spec", "ports", 0]` is the [`FieldPath`] of `spec.ports[0]`.
macro_rules! field {
    ($($segment:expr),* $(,)?) => {
        [$($crate::model::findings::Segment::from($segment)),*]
            .into_iter()
            .collect::<$crate::model::findings::FieldPath>()
    };
}
pub(crate) use field;

/// Something wrong with a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The field it is about.
    pub path: FieldPath,
    /// What is wrong with it and what would be right.
    pub reason: String,
    /// Whether the resource can be used nevertheless.
    pub severity: Severity,
    /// Whether it would be right elsewhere, but is not something that the mesh does.
    pub unsupported: bool,
}

impl Finding {
    /// The resource cannot be used.
    pub fn refusal(path: FieldPath, reason: impl Into<String>) -> Self {
        Self { path, reason: reason.into(), severity: Severity::Refused, unsupported: false }
    }

    /// A part of the resource has no effect.
    pub fn warning(path: FieldPath, reason: impl Into<String>) -> Self {
        Self { path, reason: reason.into(), severity: Severity::Warning, unsupported: false }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.segments().is_empty() {
            write!(out, "{}: ", self.path)?;
        }
        out.write_str(&self.reason)
    }
}

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The resource is used; a part of it has no effect.
    Warning,
    /// The resource is not used.
    Refused,
}

/// All findings of one resource.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// The resource cannot be used.
    pub fn refuse(&mut self, path: FieldPath, reason: impl Into<String>) {
        self.0.push(Finding::refusal(path, reason));
    }

    /// The resource cannot be used, since it asks for something that the mesh does not do.
    pub fn unsupported(&mut self, path: FieldPath, reason: impl Into<String>) {
        self.0.push(Finding { unsupported: true, ..Finding::refusal(path, reason) });
    }

    /// A part of the resource has no effect.
    pub fn warn(&mut self, path: FieldPath, reason: impl Into<String>) {
        self.0.push(Finding::warning(path, reason));
    }

    /// Whether the resource cannot be used.
    pub fn refused(&self) -> bool {
        self.0.iter().any(|finding| finding.severity == Severity::Refused)
    }

    /// The findings in the order they were made.
    pub fn into_vec(self) -> Vec<Finding> {
        self.0
    }

    /// Reads an address.
    pub fn address(&mut self, text: &str, path: impl FnOnce() -> FieldPath) -> Option<IpAddr> {
        let address = text.parse();
        if address.is_err() {
            self.refuse(path(), format!("expected an IPv4 or IPv6 address, found {text:?}"));
        }
        address.ok()
    }

    /// Reads a port number.
    pub fn port(&mut self, number: impl Into<i64>, path: impl FnOnce() -> FieldPath) -> Option<u16> {
        let number = number.into();
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        if port.is_none() {
            self.refuse(path(), format!("expected a port between 1 and 65535, found {number}"));
        }
        port
    }

    /// Reads a comma-separated list of ports.
    pub fn ports(&mut self, text: &str, path: &FieldPath) -> Vec<u32> {
        self.list(text, path, "a port between 1 and 65535", |item| {
            item.parse::<u16>().ok().filter(|port| *port != 0).map(u32::from)
        })
    }

    /// Reads a comma-separated list of address ranges; a single address is a range of one.
    pub fn ranges(&mut self, text: &str, path: &FieldPath) -> Vec<IpNet> {
        self.list(text, path, "an address range such as 10.0.0.0/8 or fd00::/8", |item| {
            let range = item.parse::<IpNet>().map(|range| range.trunc());
            range.or_else(|_| item.parse::<IpAddr>().map(IpNet::from)).ok()
        })
    }

    fn list<T: Ord>(
        &mut self,
        text: &str,
        path: &FieldPath,
        expected: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        let mut items = Vec::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            match read(item) {
                Some(value) => items.push(value),
                None => self.refuse(path.clone(), format!("expected {expected}, found {item:?}")),
            }
        }
        // One meaning, one encoding.
        items.sort_unstable();
        items.dedup();
        items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_like_the_manifest() {
        assert_eq!(field!["spec", "ports", 0, "port"].to_string(), "spec.ports[0].port");
        assert_eq!(
            field!["metadata", "annotations", "a.b/c"].to_string(),
            r#"metadata.annotations["a.b/c"]"#
        );
    }

    #[test]
    fn lists_are_read_whole_and_put_in_order() {
        let mut findings = Findings::default();
        assert_eq!(findings.ports("443, 80,80,,x,0", &field!["a"]), [80, 443]);
        assert_eq!(findings.ranges("fd00::/8,10.0.0.1", &field!["b"]).len(), 2);
        let reasons: Vec<_> = findings.into_vec().into_iter().map(|finding| finding.reason).collect();
        assert_eq!(
            reasons,
            [
                "expected a port between 1 and 65535, found \"x\"",
                "expected a port between 1 and 65535, found \"0\"",
            ]
        );
    }
}
