//! Keeps steered packets away from connection tracking, and so from NAT.
//!
//! The kernel programs see a packet before netfilter: its destination is still the service's virtual address,
//! and that is what the agent answers from. Were the packet tracked, kube-proxy's DNAT would rewrite it after
//! the mark was set, the agent's answer from the virtual address would match no connection, and the client
//! would time out. So packets with the capture mark, which is set on ingress by `steer` and on egress by the
//! agent's sockets, are marked untracked before conntrack (priority -200) sees them.
//!
//! Packets that `guard` turns around have been seen, and maybe translated, on their way to the pod. Seen again, with the
//! translated addresses, they would be taken for a second connection whose answers look like those of the first, and be
//! given another port.
//!
//! One table in the `inet` family, written in one transaction straight over netlink: the node need not have the
//! `nft` tool, and the crates that speak nf_tables are GPL-3, bind the C library, or run the tool.

mod nfnetlink;

#[cfg(test)]
mod tests;

use std::io;

use nfnetlink::{Attributes, Batch, Hook};

use super::{HostError, Mark};

/// The table's name. There is one agent, hence one table, per network namespace.
pub const TABLE: &str = "mesh_agent";

/// `NF_IP_PRI_RAW`: before conntrack, as the `raw` table of iptables.
const PRIORITY_RAW: i32 = -300;

/// Creates the table, or replaces it whole in the same transaction.
///
/// Of what was turned around, the packets to the agent are left out and the answers are not: the connection is known
/// from when the packet came by first, and is the one the answers belong to.
pub fn install(capture: Mark, around: Mark) -> Result<(), HostError> {
    let mut batch = Batch::new();
    // Adding before deleting makes the deletion succeed whether or not the table was there.
    batch.add_table(TABLE);
    batch.delete_table(TABLE);
    batch.add_table(TABLE);
    for (chain, hook) in [("prerouting", Hook::PreRouting), ("output", Hook::Output)] {
        batch.add_chain(TABLE, chain, "filter", hook, PRIORITY_RAW);
        batch.add_rule(TABLE, chain, untrack_marked(capture));
    }
    batch.add_rule(TABLE, "prerouting", untrack_marked(around));
    batch.commit().map_err(|error| match error.raw_os_error() {
        // No nfnetlink, no nf_tables or inet family, no `notrack` expression: in this order.
        Some(libc::EPROTONOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::ENOENT) => {
            HostError::Unsupported {
                what: "nf_tables with the notrack expression",
                mend: "load the kernel modules nf_tables and nft_ct (CONFIG_NF_TABLES_INET, CONFIG_NFT_CT), \
                       or turn untracking off where nothing on the node does NAT",
            }
        }
        _ => HostError::netlink("installing the nftables table")(error),
    })
}

/// Deletes the table; says whether there was one.
pub fn remove() -> Result<bool, HostError> {
    let mut batch = Batch::new();
    batch.delete_table(TABLE);
    match batch.commit() {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(HostError::netlink("deleting the nftables table")(error)),
    }
}

/// Whether the table is there.
pub fn installed() -> Result<bool, HostError> {
    match nfnetlink::table_exists(TABLE) {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(HostError::netlink("looking for the nftables table")(error)),
    }
}

/// No such table, or no nf_tables at all.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL | libc::EAFNOSUPPORT)
    )
}

/// `meta mark & mask == value notrack`
fn untrack_marked(mark: Mark) -> Attributes {
    let mut rule = Attributes::new();
    nfnetlink::match_mark(&mut rule, mark);
    nfnetlink::expression(&mut rule, "notrack", |_| {});
    rule
}
