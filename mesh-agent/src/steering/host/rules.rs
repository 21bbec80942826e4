//! The node's policy rules. The agent has none, and looks whose rules would match its marks.

use futures::TryStreamExt;
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion};

use super::error::rtnetlink_io;
use super::netlink::{connect, lacks_family};
use super::{HostError, Mark};

#[cfg(test)]
mod tests;

/// Policy rules that look at bits of `mark`, in words.
pub(super) async fn on_marks(mark: Mark) -> Result<Vec<String>, HostError> {
    let netlink = connect()?;
    let mut found = Vec::new();
    for family in [IpVersion::V4, IpVersion::V6] {
        for rule in rules(&netlink, family).await? {
            let (mut preference, mut value, mut mask) = (0, 0, 0);
            for attribute in &rule.attributes {
                match attribute {
                    RuleAttribute::Priority(number) => preference = *number,
                    RuleAttribute::FwMark(bits) => value = *bits,
                    RuleAttribute::FwMask(bits) => mask = *bits,
                    _ => {}
                }
            }
            if mask & mark.mask != 0 {
                found.push(format!("pref {preference} fwmark {value:#x}/{mask:#x}"));
            }
        }
    }
    Ok(found)
}

/// A family that the kernel does not have has no rules.
async fn rules(netlink: &Handle, family: IpVersion) -> Result<Vec<RuleMessage>, HostError> {
    let found: Result<Vec<_>, _> = netlink.rule().get(family).execute().try_collect().await;
    match found.map_err(rtnetlink_io) {
        Err(error) if lacks_family(&error) => Ok(Vec::new()),
        found => found.map_err(HostError::netlink("listing the policy rules")),
    }
}
