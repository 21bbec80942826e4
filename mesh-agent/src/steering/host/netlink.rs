//! Netlink for everything that changes the node or looks at it.

use std::io;

use rtnetlink::Handle;

use super::HostError;

/// A connection that lives as long as its handle. Its socket is of the current network namespace.
pub(super) fn connect() -> Result<Handle, HostError> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(HostError::netlink("opening a netlink socket"))?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The kernel was built, or booted, without the address family.
pub(super) fn lacks_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}
