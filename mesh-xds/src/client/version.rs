//! Versions of resources as a client keeps them: of every resource there is, so they are small.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// Which version of a resource is at hand. Opaque; empty where none is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(Form);

/// Versions by the names of resources.
pub type Versions = HashMap<Arc<str>, Version>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// Sixteen hexadecimal digits in lower case, as `mesh-control` makes them.
    Digits(u64),
    Text(Box<str>),
}

impl From<&str> for Version {
    fn from(text: &str) -> Self {
        let digits = u64::from_str_radix(text, 16).ok().filter(|digits| format!("{digits:016x}") == text);
        Self(digits.map_or_else(|| Form::Text(text.into()), Form::Digits))
    }
}

impl From<String> for Version {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl Default for Version {
    fn default() -> Self {
        Self(Form::Text(Box::default()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Digits(digits) => write!(out, "{digits:016x}"),
            Form::Text(text) => out.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_kept_as_it_was_and_small() {
        for text in
            ["", "1", "00000000000000ff", "00000000000000FF", "0123456789abcdef", "+123456789abcdef", "v1-x"]
        {
            assert_eq!(Version::from(text).to_string(), text);
        }
        assert_eq!(size_of::<Version>(), 16);
    }
}
