//! Keeps what the agent sends from other addresses than the node's away from connection tracking, and so from NAT.
//!
//! What comes to the agent never meets netfilter. Of such a connection, conntrack would see the agent's half only: to the rules
//! that kube-proxy and others have for invalid packets, and to masquerading, it would look like a connection of the client's
//! own. So packets with the capture mark, which `deliver` sets, are marked untracked before conntrack (priority -200) sees
//! them. Those that go to a pod of this node do not come by here.
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

const CHAIN: &str = "prerouting";

/// `NF_IP_PRI_RAW`: before conntrack, as the `raw` table of iptables.
const PRIORITY_RAW: i32 = -300;

/// Creates the table, or replaces it whole in the same transaction.
pub fn install(capture: Mark) -> Result<(), HostError> {
    let mut batch = Batch::new();
    // Adding before deleting makes the deletion succeed whether or not the table was there.
    batch.add_table(TABLE);
    batch.delete_table(TABLE);
    batch.add_table(TABLE);
    batch.add_chain(TABLE, CHAIN, "filter", Hook::PreRouting, PRIORITY_RAW);
    batch.add_rule(TABLE, CHAIN, untrack_marked(capture));
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
