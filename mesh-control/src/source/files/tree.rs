//! A YAML document as Kubernetes sees it, with the line of every field.
//!
//! Kubernetes turns YAML into JSON before it looks at types, so an unquoted `8080` is a number wherever it stands.
//! This tree does the same, which is why a manifest that passes here passes there. The lines serve problems that
//! only show later: an unknown field, a port out of range.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Options, Spanned};

use crate::model::findings::{FieldPath, Segment};

/// Nesting that no Kubernetes object comes near.
const MAX_DEPTH: usize = 64;
/// Room for a list of tens of thousands of objects.
const MAX_NODES: usize = 8_000_000;
/// Aliases are a convenience in hand-written files and a weapon in others: they may not multiply a document.
const MAX_REPLAYED_EVENTS: usize = 100_000;

/// A document or an item of a sequence, and the line it begins at.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) line: u64,
    pub(super) value: Value,
}

/// A JSON value whose parts know their lines.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Scalar(serde_json::Value),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// A field of a mapping.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Line of the key; asking for that of the value as well would double the cost of parsing.
    pub(super) line: u64,
    pub(super) value: Value,
}

/// Why a text is not a YAML document.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SyntaxError {
    /// Line within the text, if the parser knows it.
    pub(super) line: Option<u64>,
    pub(super) reason: String,
}

impl Node {
    /// Parses one document. `None` when it is empty.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, SyntaxError> {
        let node: Self =
            serde_saphyr::from_str_with_options(text, options()).map_err(|error| SyntaxError::of(&error))?;
        Ok((node.value != Value::Scalar(serde_json::Value::Null)).then_some(node))
    }

    /// The line of the field at `path`, or of the nearest field around it that exists.
    pub(super) fn line_of(&self, path: &FieldPath) -> u64 {
        let (mut line, mut value) = (self.line, &self.value);
        for segment in path.segments() {
            let next = match (value, segment) {
                (Value::Mapping(entries), Segment::Field(name)) => {
                    entries.iter().find(|entry| entry.key == *name).map(|entry| (entry.line, &entry.value))
                }
                (Value::Sequence(items), Segment::Index(index)) => {
                    items.get(*index).map(|item| (item.line, &item.value))
                }
                _ => None,
            };
            let Some(next) = next else {
                break;
            };
            (line, value) = next;
        }
        line
    }
}

impl Value {
    /// The field `key` of a mapping.
    pub(super) fn field(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Mapping(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value),
            Self::Scalar(_) | Self::Sequence(_) => None,
        }
    }

    /// The text of a string.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Scalar(value) => value.as_str(),
            Self::Sequence(_) | Self::Mapping(_) => None,
        }
    }

    /// The value without its lines.
    pub(super) fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Scalar(value) => value.clone(),
            Self::Sequence(items) => items.iter().map(|item| item.value.to_json()).collect(),
            Self::Mapping(entries) => {
                entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json())).collect()
            }
        }
    }
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: MAX_NODES * 2,
            max_documents: 1,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED_EVENTS,
        },
        emit_comments: false,
        with_snippet: false,
    }
}

impl SyntaxError {
    fn of(error: &serde_saphyr::Error) -> Self {
        let message = error.render();
        // The message may draw the source below the reason.
        let mut reason = message.lines().next().unwrap_or("not a YAML document").trim().to_owned();
        let location = error.location().filter(|location| location.line() > 0);
        if let Some(location) = &location {
            // Counted from the start of the document, which would mislead in a file of several.
            let place = format!(" at line {}, column {}", location.line(), location.column());
            reason = reason.replace(&place, "");
        }
        Self { line: location.map(|location| location.line()), reason }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { line: spanned.referenced.line(), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl ValueVisitor {
    fn scalar<E>(value: impl Into<serde_json::Value>) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }
}

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a scalar, a sequence or a mapping")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Self::scalar(value)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Self::scalar(value)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Self::scalar(value)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Self::scalar(value)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Self::scalar(value)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Self::scalar(serde_json::Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Self::scalar(serde_json::Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Value::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut mapping: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = mapping.next_key::<Spanned<String>>()? {
            let value = mapping.next_value()?;
            entries.push(Entry { key: key.value, line: key.referenced.line(), value });
        }
        Ok(Value::Mapping(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::findings::field;

    fn parse(text: &str) -> Node {
        Node::parse(text).unwrap().unwrap()
    }

    #[test]
    fn every_field_knows_its_line() {
        let tree =
            parse("kind: Service\nspec:\n  ports:\n    - port: 80\n      name: http\n  selector: {a: b}\n");
        assert_eq!(tree.line_of(&field!["kind"]), 1);
        assert_eq!(tree.line_of(&field!["spec", "ports", 0, "name"]), 5);
        assert_eq!(tree.line_of(&field!["spec", "selector", "a"]), 6);
        // What is not there is reported at what should hold it.
        assert_eq!(tree.line_of(&field!["spec", "ports", 0, "targetPort"]), 4);
    }

    #[test]
    fn scalars_have_the_types_of_json() {
        let tree = parse("a: 8080\nb: '8080'\nc: true\nd: null\ne: 1.5\nf: plain\n8080: g\n");
        assert_eq!(
            tree.value.to_json(),
            serde_json::json!({"a": 8080, "b": "8080", "c": true, "d": null, "e": 1.5, "f": "plain", "8080": "g"})
        );
    }

    #[test]
    fn json_is_yaml() {
        let tree = parse("{\n\t\"kind\": \"Pod\",\n\t\"spec\": {\"a\": [1, 2]}\n}\n");
        assert_eq!(tree.value.to_json(), serde_json::json!({"kind": "Pod", "spec": {"a": [1, 2]}}));
    }

    #[test]
    fn empty_documents_are_nothing() {
        assert_eq!(Node::parse(""), Ok(None));
        assert_eq!(Node::parse("# only a comment\n"), Ok(None));
        assert_eq!(Node::parse("---\n"), Ok(None));
    }

    #[test]
    fn mistakes_have_a_line_and_one_line_of_reason() {
        for text in ["a: 1\nb: [1, 2\nc: 3\n", "a: 1\na: 2\n", "a: *unknown\n", "a:\n\t- b\n", "a: \"open\n"]
        {
            let error = Node::parse(text).unwrap_err();
            assert!(error.line.is_some(), "{text:?}: {error:?}");
            assert!(!error.reason.contains('\n') && !error.reason.is_empty(), "{error:?}");
            assert!(!error.reason.contains(" line "), "{error:?}");
        }
    }

    #[test]
    fn depth_and_aliases_are_bounded() {
        let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
        assert!(Node::parse(&deep).is_err());

        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = level - 1;
            let aliases = vec![format!("*a{below}"); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        assert!(Node::parse(&bomb).is_err());
    }
}
