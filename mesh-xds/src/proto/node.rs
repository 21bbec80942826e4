//! How a client introduces itself.

use prost_types::{Struct, Value, value::Kind};

use super::discovery::Node;

impl Node {
    /// A client with this id and these facts about it (`NODE_NAME`, `CLUSTER_ID`, ...) as metadata.
    pub fn new<K: Into<String>, V: Into<String>>(
        id: impl Into<String>,
        facts: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let text = |value: V| Value { kind: Some(Kind::StringValue(value.into())) };
        let fields = facts.into_iter().map(|(name, value)| (name.into(), text(value))).collect();
        Self {
            id: id.into(),
            metadata: Some(Struct { fields }),
            user_agent_name: env!("CARGO_PKG_NAME").to_owned(),
            user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Self::default()
        }
    }

    /// A fact about the client, where it is a text.
    pub fn fact(&self, name: &str) -> Option<&str> {
        match &self.metadata.as_ref()?.fields.get(name)?.kind {
            Some(Kind::StringValue(text)) => Some(text),
            _ => None,
        }
    }
}
