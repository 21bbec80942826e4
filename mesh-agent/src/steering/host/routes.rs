//! Policy routing that turns the capture mark into local delivery.
//!
//! ```text
//! 99:  fwmark M/mask iif lo  goto 101       the agent's own packets go where they would go unmarked
//! 100: fwmark M/mask         lookup T       steered packets are delivered here
//! 101: fwmark M/mask         nop            where 99 goes on
//! 102: fwmark A/mask         lookup T       so are packets that were turned around; no socket sends with their mark
//! table T: local default dev lo
//! ```
//!
//! The rule for the agent's own packets jumps instead of looking up `main`: a destination without a route would
//! fall through to table T and come back to the agent, and the rules of CNIs that route by source (one table per
//! network interface) keep their effect.
//!
//! Rules and routes carry a protocol number of their own, by which they are found again after a crash.

use std::io;

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion};
use serde::{Deserialize, Serialize};

use super::error::rtnetlink_io;
use super::{HostError, Mark};

#[cfg(test)]
mod tests;

/// `rtm_protocol` of everything the agent adds (`ip route show proto 109`). Unassigned in `rtnetlink.h` and in
/// iproute2's `rt_protos`.
pub const PROTOCOL: RouteProtocol = RouteProtocol::Other(109);

/// Interface index of `lo`, 1 in every network namespace.
const LOOPBACK: u32 = 1;

/// The rules and the route, for both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRouting {
    /// The capture mark.
    pub mark: Mark,
    /// The mark of packets that were turned around.
    pub around: Mark,
    /// Routing table with the local default route.
    pub table: u32,
    /// Preference of the first of four rules.
    pub preference: u32,
}

/// What was installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Installed {
    /// Whether the node has IPv6 at all.
    pub ipv6: bool,
}

impl PolicyRouting {
    /// Adds what is missing and deletes what an agent with other settings left behind. What is right already is
    /// not touched, so that capture goes on meanwhile.
    pub async fn install(&self) -> Result<Installed, HostError> {
        let netlink = connect()?;
        self.install_family(&netlink, IpVersion::V4).await?;
        let ipv6 = match self.install_family(&netlink, IpVersion::V6).await {
            Ok(()) => true,
            // EACCES: `disable_ipv6` is set on lo, so nothing can be delivered locally.
            Err(HostError::Netlink { source, .. })
                if lacks_family(&source) || source.raw_os_error() == Some(libc::EACCES) =>
            {
                false
            }
            Err(error) => return Err(error),
        };
        Ok(Installed { ipv6 })
    }

    /// What is not there, in words: somebody has removed it, or it was never installed.
    pub async fn missing(&self) -> Result<Vec<String>, HostError> {
        let netlink = connect()?;
        let mut missing = Vec::new();
        for (family, name) in [(IpVersion::V4, "IPv4"), (IpVersion::V6, "IPv6")] {
            let existing = routes(&netlink, family.clone()).await?;
            if !existing
                .iter()
                .any(|route| table_of(route) == self.table && route.header.protocol == PROTOCOL)
            {
                missing.push(format!("{name} local route in table {}", self.table));
            }
            let present: Vec<_> = rules(&netlink, family.clone()).await?.iter().map(RuleKey::of).collect();
            for rule in self.rules(&family).iter().map(RuleKey::of) {
                if !present.contains(&rule) {
                    missing.push(format!("{name} rule with preference {}", rule.preference));
                }
            }
        }
        Ok(missing)
    }

    /// The route goes first: a rule without its table would send steered packets onwards.
    async fn install_family(&self, netlink: &Handle, family: IpVersion) -> Result<(), HostError> {
        let existing: Vec<RouteMessage> = routes(netlink, family.clone()).await?;
        let existing: Vec<_> = existing.iter().filter(|route| table_of(route) == self.table).collect();
        if let Some(foreign) = existing.iter().find(|route| route.header.protocol != PROTOCOL) {
            return Err(HostError::TableInUse { table: self.table, route: describe(foreign) });
        }
        if existing.is_empty() {
            let route = netlink.route().add(self.route(&family));
            route.execute().await.map_err(HostError::rtnetlink("adding the local route"))?;
        }

        let wanted = self.rules(&family).map(|rule| (RuleKey::of(&rule), rule));
        let existing = rules(netlink, family).await?;
        let mut present = Vec::new();
        for rule in existing {
            let key = RuleKey::of(&rule);
            if wanted.iter().any(|(wanted, _)| *wanted == key) {
                present.push(key);
            } else if key.protocol == PROTOCOL || self.claims(&key) {
                delete_rule(netlink, rule).await?;
            }
        }
        for (_, rule) in wanted.into_iter().filter(|(key, _)| !present.contains(key)) {
            let mut request = netlink.rule().add();
            *request.message_mut() = rule;
            request.execute().await.map_err(HostError::rtnetlink("adding a policy rule"))?;
        }
        Ok(())
    }

    /// Whether a rule sits in our place for our mark, whoever put it there.
    fn claims(&self, rule: &RuleKey) -> bool {
        (self.preference..=self.preference + 3).contains(&rule.preference)
            && [self.mark, self.around].contains(&Mark { value: rule.mark, mask: rule.mask })
    }

    fn rules(&self, family: &IpVersion) -> [RuleMessage; 4] {
        let rule = |offset: u32, mark: Mark, action: RuleAction, specific: &[RuleAttribute]| {
            let mut rule = RuleMessage::default();
            rule.header.family = address_family(family);
            rule.header.action = action;
            rule.attributes = vec![
                RuleAttribute::Priority(self.preference + offset),
                RuleAttribute::FwMark(mark.value),
                RuleAttribute::FwMask(mark.mask),
                RuleAttribute::Protocol(PROTOCOL),
            ];
            rule.attributes.extend_from_slice(specific);
            rule
        };
        let own = [RuleAttribute::Iifname("lo".into()), RuleAttribute::Goto(self.preference + 2)];
        let delivery = [RuleAttribute::Table(self.table)];
        // The target before the jump: a jump to a rule that is not there is skipped.
        [
            rule(2, self.mark, RuleAction::Nop, &[]),
            rule(0, self.mark, RuleAction::Goto, &own),
            rule(1, self.mark, RuleAction::ToTable, &delivery),
            rule(3, self.around, RuleAction::ToTable, &delivery),
        ]
    }

    fn route(&self, family: &IpVersion) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = address_family(family);
        route.header.protocol = PROTOCOL;
        route.header.kind = RouteType::Local;
        route.header.scope = RouteScope::Host;
        route.attributes = vec![RouteAttribute::Table(self.table), RouteAttribute::Oif(LOOPBACK)];
        route
    }
}

/// Deletes all rules and routes of the agent's protocol, whatever its settings were; says how many there were.
pub async fn remove() -> Result<usize, HostError> {
    let netlink = connect()?;
    let mut removed = 0;
    for family in [IpVersion::V4, IpVersion::V6] {
        for rule in rules(&netlink, family.clone()).await? {
            if RuleKey::of(&rule).protocol == PROTOCOL {
                delete_rule(&netlink, rule).await?;
                removed += 1;
            }
        }
        for route in routes(&netlink, family).await? {
            if route.header.protocol == PROTOCOL {
                netlink
                    .route()
                    .del(route)
                    .execute()
                    .await
                    .map_err(HostError::rtnetlink("deleting the local route"))?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// Policy rules of others that look at bits of `mark`, in words.
pub(super) async fn foreign_marks(mark: Mark) -> Result<Vec<String>, HostError> {
    let netlink = connect()?;
    let mut found = Vec::new();
    for family in [IpVersion::V4, IpVersion::V6] {
        let keys = rules(&netlink, family).await?;
        let foreign = keys
            .iter()
            .map(RuleKey::of)
            .filter(|rule| rule.protocol != PROTOCOL && rule.mask & mark.mask != 0)
            .map(|rule| format!("pref {} fwmark {:#x}/{:#x}", rule.preference, rule.mark, rule.mask));
        found.extend(foreign);
    }
    Ok(found)
}

/// What tells one rule from another.
#[derive(Debug, PartialEq, Eq)]
struct RuleKey {
    action: u8,
    preference: u32,
    mark: u32,
    mask: u32,
    input: Option<String>,
    target: u32,
    table: u32,
    protocol: RouteProtocol,
}

impl RuleKey {
    fn of(rule: &RuleMessage) -> Self {
        let mut key = Self {
            action: rule.header.action.into(),
            preference: 0,
            mark: 0,
            mask: 0,
            input: None,
            target: 0,
            table: rule.header.table.into(),
            protocol: RouteProtocol::Unspec,
        };
        for attribute in &rule.attributes {
            match attribute {
                RuleAttribute::Priority(preference) => key.preference = *preference,
                RuleAttribute::FwMark(mark) => key.mark = *mark,
                RuleAttribute::FwMask(mask) => key.mask = *mask,
                RuleAttribute::Iifname(name) => key.input = Some(name.clone()),
                RuleAttribute::Goto(target) => key.target = *target,
                RuleAttribute::Table(table) => key.table = *table,
                RuleAttribute::Protocol(protocol) => key.protocol = *protocol,
                _ => {}
            }
        }
        key
    }
}

async fn rules(netlink: &Handle, family: IpVersion) -> Result<Vec<RuleMessage>, HostError> {
    let found = netlink.rule().get(family).execute().try_collect().await;
    if_supported(found, "listing the policy rules")
}

async fn routes(netlink: &Handle, family: IpVersion) -> Result<Vec<RouteMessage>, HostError> {
    let mut all = RouteMessage::default();
    all.header.address_family = address_family(&family);
    let found = netlink.route().get(all).execute().try_collect().await;
    if_supported(found, "listing the routes")
}

/// A family that the kernel does not have has no entries.
fn if_supported<T>(found: Result<Vec<T>, rtnetlink::Error>, doing: &str) -> Result<Vec<T>, HostError> {
    match found.map_err(rtnetlink_io) {
        Err(error) if lacks_family(&error) => Ok(Vec::new()),
        found => found.map_err(HostError::netlink(doing)),
    }
}

async fn delete_rule(netlink: &Handle, rule: RuleMessage) -> Result<(), HostError> {
    netlink.rule().del(rule).execute().await.map_err(HostError::rtnetlink("deleting a policy rule"))
}

/// A netlink connection that lives as long as its handle. Its socket is of the current network namespace.
fn connect() -> Result<Handle, HostError> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(HostError::netlink("opening a netlink socket"))?;
    tokio::spawn(connection);
    Ok(handle)
}

fn address_family(family: &IpVersion) -> AddressFamily {
    match family {
        IpVersion::V4 => AddressFamily::Inet,
        IpVersion::V6 => AddressFamily::Inet6,
    }
}

/// The kernel was built, or booted, without the family.
fn lacks_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

fn table_of(route: &RouteMessage) -> u32 {
    let attribute = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(route.header.table.into())
}

fn describe(route: &RouteMessage) -> String {
    let prefix = route.header.destination_prefix_length;
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(format!("{address}/{prefix}")),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(format!("{address}/{prefix}")),
        _ => None,
    });
    destination.unwrap_or_else(|| "default".into())
}
