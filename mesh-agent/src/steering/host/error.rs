//! What can go wrong on the node.

use std::io;
use std::path::{Path, PathBuf};

/// Why the node could not be prepared, or put back.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The kernel refused a change or a question over netlink.
    #[error("{doing}: {source}")]
    Netlink {
        /// What was being done.
        doing: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file or a sysctl could not be read or written.
    #[error("{doing} {path}: {source}", path = .path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A sysctl has a value that does not parse.
    #[error("sysctl {name} has the value {value:?}, which is no {expected}")]
    SysctlValue {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A thread of the agent's could not be started, or has ended before its time.
    #[error("the thread {name}: {reason}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// Why.
        reason: String,
    },
    /// The agent's own network namespace could not be made.
    #[error("the agent's network namespace: {0}")]
    Namespace(String),
    /// The kernel lacks something.
    #[error("{what} is missing: {mend}")]
    Unsupported {
        /// What is missing.
        what: &'static str,
        /// How to get it.
        mend: &'static str,
    },
    /// The journal is damaged.
    #[error("journal {path} is damaged ({reason}); sysctls cannot be put back, check them and remove the file", path = .path.display())]
    Journal {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another agent runs here.
    #[error("another agent runs on this node: {holder} holds {lock}; stop it first")]
    AlreadyRunning {
        /// Who, as far as known.
        holder: String,
        /// Which lock.
        lock: String,
    },
    /// Capabilities could not be changed.
    #[error("capabilities: {0}")]
    Capabilities(String),
}

impl HostError {
    pub(super) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }

    pub(super) fn netlink(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Netlink { doing, source }
    }

    /// The same for rtnetlink's error, whose useful part is the kernel's error number.
    pub(super) fn rtnetlink(doing: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let doing = doing.into();
        move |error| Self::Netlink { doing, source: rtnetlink_io(error) }
    }
}

/// The kernel's error number out of an rtnetlink error.
pub(super) fn rtnetlink_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}
