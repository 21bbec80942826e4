//! What the client hands to the program it works for, and what it is told in return.

use std::sync::Arc;

use prost::Name;

use crate::proto::discovery::Resource;

/// Receives resources.
pub trait Handler {
    /// A stream was opened, perhaps to another server than before: what comes next are its first answers.
    fn stream_opened(&mut self) {}

    /// The name of a resource where the handler keeps it anyway, so that the client need not keep another copy.
    fn shared_name(&self, name: &str) -> Option<Arc<str>> {
        let _ = name;
        None
    }

    /// Takes in what one response brought and returns the resources that were refused. Those keep their last good
    /// version (the handler keeps its own last good value of them); all others count as accepted.
    ///
    /// Called by one task, in the order of the stream. It should not block for long: meanwhile the server waits.
    fn apply(&mut self, update: &Update) -> Vec<Rejection>;
}

impl<F: FnMut(&Update) -> Vec<Rejection>> Handler for F {
    fn apply(&mut self, update: &Update) -> Vec<Rejection> {
        self(update)
    }
}

/// The content of one response. A name occurs in it once. Names of removed resources may be unknown to the handler, and a resource may come
/// again unchanged.
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// Resource type.
    pub type_url: Arc<str>,
    /// New and changed resources, each with a body of this type.
    pub resources: Vec<Resource>,
    /// Names of resources that are gone. Of an on-demand subscription also names that do not exist.
    pub removed: Vec<String>,
    /// Resources that the client has refused already, because nothing of type [`type_url`](Self::type_url) is in them.
    pub unreadable: Vec<Rejection>,
    /// The change goes on in the next update: a handler that wants to show its users complete changes only can
    /// wait for an update without this.
    pub more: bool,
}

/// A resource that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Name of the resource.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Rejection {
    /// Refuses the resource `name`.
    pub fn new(name: impl Into<String>, reason: impl ToString) -> Self {
        Self { name: name.into(), reason: reason.to_string() }
    }
}

impl Update {
    /// The messages of the resources, with the resources they were in. What cannot be decoded is added to
    /// `rejections`.
    ///
    /// `bytes` fields of a message share the memory of the whole response: convert them, do not keep them.
    pub fn decode<'a, M: Name + Default>(
        &'a self,
        rejections: &'a mut Vec<Rejection>,
    ) -> impl Iterator<Item = (&'a Resource, M)> {
        self.resources.iter().filter_map(|resource| {
            // A resource without a body does not get this far.
            match resource.resource.as_ref()?.unpack::<M>() {
                Ok(message) => Some((resource, message)),
                Err(error) => {
                    rejections.push(Rejection::new(&resource.name, error));
                    None
                }
            }
        })
    }
}
