//! `{name}` in a plug-in's texts.

use std::collections::BTreeMap;

/// The names that there are, and what they stand for.
pub(super) const NAMES: [(&str, &str); 14] = [
    ("node_ip", "address of the program's own node"),
    ("client_node_ip", "address of the client's node"),
    ("server_node_ip", "address of the server's node; on one node the same"),
    ("client_pod_ip", "address of the client's pod"),
    ("server_pod_ip", "address of the server's pod"),
    ("port", "port of the server in its pod"),
    ("cores", "number of cores"),
    ("dir", "directory of the program's files"),
    ("cert", "PEM file: certificate of the program's side, the client's or the server's identity"),
    ("key", "PEM file: its key"),
    ("cert_and_key", "PEM file: both"),
    ("root", "PEM file: root of all certificates"),
    ("client_id", "SPIFFE identity of the client"),
    ("server_id", "SPIFFE identity of the server"),
];

/// What names stand for in one lab, and for one program of it.
pub(super) type Values = BTreeMap<&'static str, String>;

/// Replaces every name in braces. Other braces stay: configuration files are full of them.
pub(super) fn fill(text: &str, values: &Values) -> String {
    let mut filled = String::with_capacity(text.len());
    for part in parts(text) {
        match part {
            Part::Text(text) => filled.push_str(text),
            Part::Name(name) => match values.get(name) {
                Some(value) => filled.push_str(value),
                None => filled.extend(["{", name, "}"]),
            },
        }
    }
    filled
}

/// The names in a text that there are not.
pub(super) fn unknown(text: &str) -> impl Iterator<Item = &str> {
    parts(text).filter_map(|part| match part {
        Part::Name(name) if NAMES.iter().all(|(known, _)| *known != name) => Some(name),
        Part::Name(_) | Part::Text(_) => None,
    })
}

enum Part<'a> {
    Text(&'a str),
    /// Between braces: lower-case letters and underscores, nothing else.
    Name(&'a str),
}

fn parts(mut rest: &str) -> impl Iterator<Item = Part<'_>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if let Some((name, behind)) = leading_name(rest) {
            rest = behind;
            return Some(Part::Name(name));
        }
        // The brace that may be first is none of a name's.
        let next = rest
            .char_indices()
            .skip(1)
            .map(|(at, _)| at)
            .find(|at| rest.get(*at..).is_some_and(|behind| leading_name(behind).is_some()));
        let (text, behind) = rest.split_at(next.unwrap_or(rest.len()));
        rest = behind;
        Some(Part::Text(text))
    })
}

fn leading_name(text: &str) -> Option<(&str, &str)> {
    let (name, behind) = text.strip_prefix('{')?.split_once('}')?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    is_name.then_some((name, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_and_other_braces_stay() {
        let values = Values::from([("port", "80".to_owned()), ("dir", "/tmp/x".to_owned())]);
        let text = "{port}{dir}: { connect_matcher: {} } {port }{ port} {{port}} ${HOME} {";
        assert_eq!(fill(text, &values), "80/tmp/x: { connect_matcher: {} } {port }{ port} {80} ${HOME} {");
        assert_eq!(unknown("{port} {prot} {} {a b}").collect::<Vec<_>>(), ["prot"]);
    }
}
