//! Balancing at connect time: what the programs of the pods' cgroups read and leave behind.
//!
//! When a pod connects to a service, the kernel draws one of its endpoints by weight, as the agent would. An endpoint
//! on the same node takes the place of the service's address there and then; for all others the address stays what
//! it is, and the agent balances over these. The two draws together are the one draw over all endpoints.

use crate::address::Address;
use crate::decision::{Tables, captures_outbound};
use crate::maps::Pod;

/// Most endpoints of one service and port that the kernel chooses from. The agent balances over the rest, with the
/// shares they would have had.
pub const MAX_LOCAL_ENDPOINTS: usize = 16;

/// How far below the root of the hierarchy the cgroup of a pod may be. Nested kubelets (kind) have 6.
pub const MAX_CGROUP_DEPTH: i32 = 12;

/// An address and a port that clients connect to.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(PartialOrd, Ord))]
pub struct ServicePort {
    /// The service's address.
    pub address: Address,
    /// Its port in host order.
    pub port: u16,
    /// Always zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<ServicePort>() == 20);

impl ServicePort {
    /// The key of a service's address and port.
    #[inline(always)]
    pub const fn new(address: Address, port: u16) -> Self {
        Self { address, port, reserved: 0 }
    }
}

/// An endpoint on this node.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// Its address, of the service address's family.
    pub address: Address,
    /// The weights up to and with this one, added up: a draw below is this endpoint's or one's before it.
    pub until: u32,
    /// Its port in host order.
    pub port: u16,
    /// Always zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<LocalEndpoint>() == 24);

impl LocalEndpoint {
    /// No endpoint; nothing is ever drawn below 0.
    pub const NONE: Self = Self { address: Address::v6([0; 4]), until: 0, port: 0, reserved: 0 };
}

/// The endpoints of a service and port that are on this node, and what they weigh among all.
///
/// One value of one map, so that one write replaces the whole: no draw ever meets half a change.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalEndpoints {
    /// The weights of all endpoints that may be chosen now, here and elsewhere.
    pub total: u32,
    /// How many of the places below are taken.
    pub count: u32,
    /// The endpoints.
    pub endpoints: [LocalEndpoint; MAX_LOCAL_ENDPOINTS],
}

const _: () = assert!(size_of::<LocalEndpoints>() == 8 + 24 * MAX_LOCAL_ENDPOINTS);

impl LocalEndpoints {
    /// The endpoint that a random number chooses; `None` is one elsewhere.
    #[inline(always)]
    pub fn draw(&self, random: u32) -> Option<&LocalEndpoint> {
        // Below `total`, and as even as 32 random bits can be.
        let drawn = (random as u64 * self.total as u64) >> 32;
        let mut rest: &[LocalEndpoint] = &self.endpoints;
        while let [endpoint, tail @ ..] = rest {
            if drawn < endpoint.until as u64 {
                return Some(endpoint);
            }
            rest = tail;
        }
        None
    }
}

/// What a socket asked for and what it was given.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replaced {
    /// The service it asked for.
    pub service: ServicePort,
    /// The endpoint it is being connected to, or the service where one elsewhere was drawn.
    pub endpoint: ServicePort,
    /// The socket's port in host order, once it has one.
    pub source_port: u32,
}

const _: () = assert!(size_of::<Replaced>() == 44);

/// A connection as its client's socket sees it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(PartialOrd, Ord))]
pub struct Tuple {
    /// The client's address.
    pub source: Address,
    /// The address it is connected to.
    pub destination: Address,
    /// The client's port in host order.
    pub source_port: u16,
    /// The port it is connected to, in host order.
    pub destination_port: u16,
}

const _: () = assert!(size_of::<Tuple>() == 36);

/// Whether `client` may be connected to `endpoint`, which is `pod`, in place of a service.
///
/// Not to itself: its own stack would answer, and nobody would see the connection. And not where its rules keep the
/// endpoint out of the mesh, although the service is in it.
#[inline(always)]
pub fn admits<T: Tables>(tables: &T, client: &Pod, pod: &Pod, endpoint: &LocalEndpoint) -> bool {
    pod.is_enrolled()
        && pod.id != client.id
        && captures_outbound(tables, client, &endpoint.address, endpoint.port)
}

#[cfg(feature = "user")]
mod user {
    use super::{LocalEndpoints, ServicePort, Tuple};

    // SAFETY: `repr(C)` over integers, the sizes asserted above to leave no padding; every bit pattern is a value.
    unsafe impl aya::Pod for ServicePort {}
    // SAFETY: as above.
    unsafe impl aya::Pod for LocalEndpoints {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Tuple {}
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use super::*;

    #[test]
    fn a_draw_follows_the_weights() {
        let mut value =
            LocalEndpoints { total: 10, count: 2, endpoints: [LocalEndpoint::NONE; MAX_LOCAL_ENDPOINTS] };
        value.endpoints[0] = LocalEndpoint { until: 1, port: 1, ..LocalEndpoint::NONE };
        value.endpoints[1] = LocalEndpoint { until: 4, port: 2, ..LocalEndpoint::NONE };
        let mut drawn = [0_u32; 3];
        for step in 0..1000_u32 {
            let random = step * (u32::MAX / 1000);
            drawn[value.draw(random).map_or(0, |endpoint| usize::from(endpoint.port))] += 1;
        }
        assert!(drawn[0].abs_diff(600) < 5 && drawn[1].abs_diff(100) < 5 && drawn[2].abs_diff(300) < 5);
        assert_eq!(value.draw(0).unwrap().port, 1);
        assert_eq!(value.draw(u32::MAX), None);
    }

    #[test]
    fn where_all_are_here_one_is_always_drawn() {
        let mut value = LocalEndpoints {
            total: u32::MAX,
            count: 1,
            endpoints: [LocalEndpoint::NONE; MAX_LOCAL_ENDPOINTS],
        };
        value.endpoints[0].until = u32::MAX;
        assert!([0, 1, u32::MAX / 2, u32::MAX].iter().all(|random| value.draw(*random).is_some()));
        value.total = 0;
        value.endpoints[0].until = 0;
        assert_eq!(value.draw(0), None);
    }
}
