//! Lets the program around a server count what it does.

use std::fmt;

/// Is told what a server does, as it does it, on the tasks that serve clients: it must not block.
pub trait Observer: fmt::Debug + Send + Sync {
    /// A client was sent a response.
    fn sent(&self, response: &SentResponse<'_>);

    /// A client refused a response, at least in part.
    fn refused(&self, type_url: &str);
}

/// A response that was sent to one client.
#[derive(Debug, Clone, Copy)]
pub struct SentResponse<'a> {
    /// Type of its resources.
    pub type_url: &'a str,
    /// Version of the store up to which the client had been sent changes before; 0 if it had been sent none.
    pub after: u64,
    /// Version of the store up to which it has been sent them now.
    pub upto: u64,
    /// Resources in it.
    pub resources: usize,
    /// Bytes of its resources and names.
    pub bytes: usize,
}
