//! What an operator may set of the proxy, with the reason for each default.

use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;
use thiserror::Error;

use super::balance;
use super::tunnel::TunnelSettings;

/// Descriptors kept free for everything that is not a relayed connection: listeners, maps, the control plane.
const RESERVED_DESCRIPTORS: u64 = 512;

/// A connection is two sockets.
const DESCRIPTORS_PER_CONNECTION: u64 = 2;

/// When a silent peer is asked whether it is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Keepalive {
    /// Silence before the first probe. Three minutes: below the five after which usual NAT devices forget.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Unanswered probes before the connection is given up.
    pub probes: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(180), interval: Duration::from_secs(30), probes: 6 }
    }
}

/// Settings of the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProxySettings {
    /// Data-plane threads, each with a listener per address family. One per core.
    pub workers: NonZeroUsize,
    /// Where the IPv4 listeners are. Loopback: nobody reaches them but through steering, and a connection that was
    /// dialled all the same gives itself away by its address.
    pub listen_v4: Ipv4Addr,
    /// Where the IPv6 listeners are; left out on a node without IPv6.
    pub listen_v6: Ipv6Addr,
    /// Connections the kernel holds for a listener that is slow to accept. The kernel caps it at
    /// `net.core.somaxconn`, 4096 by default.
    pub backlog: u16,
    /// Firewall mark of sockets with the node's own address, by which their packets are told from those of others. In the agent's
    /// network namespace, of what comes around: it is answered by the device for that.
    pub agent_mark: u32,
    /// Time from the decision to an open connection, all attempts together. Five seconds: clients of a mesh give
    /// up soon after.
    pub connect_timeout: Duration,
    /// Time for one endpoint while there are others to try. Two seconds: a lost SYN is sent again after one.
    pub attempt_timeout: Duration,
    /// Endpoints tried before a connection is refused, 1 to 8.
    pub max_attempts: usize,
    /// Silence in both directions after which a connection is reset. An hour, as Envoy and Istio have it.
    pub idle_timeout: Duration,
    /// How congestion is controlled on the way to other nodes, if not as sockets do by themselves.
    pub network_congestion_control: Option<OsString>,
    /// Keepalive towards clients and endpoints.
    pub keepalive: Keepalive,
    /// Open connections on this node. As many as the descriptors allow.
    pub max_connections: usize,
    /// Open connections of one pod, its own and those to it. Half of the node's: no pod can take all of them.
    pub max_connections_per_pod: usize,
    /// Memory of one worker for bytes on their way. When it is used up, streams go on with the smallest buffers.
    pub buffer_memory: usize,
    /// Tunnels to other nodes.
    pub tunnel: TunnelSettings,
}

impl ProxySettings {
    /// The defaults, for sockets that carry the given mark.
    pub fn new(agent_mark: u32) -> Self {
        let max_connections = descriptor_limit();
        Self {
            workers: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            listen_v4: Ipv4Addr::LOCALHOST,
            listen_v6: Ipv6Addr::LOCALHOST,
            backlog: 4096,
            agent_mark,
            connect_timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(2),
            max_attempts: 3,
            idle_timeout: Duration::from_secs(3600),
            network_congestion_control: None,
            keepalive: Keepalive::default(),
            max_connections,
            max_connections_per_pod: (max_connections / 2).max(1),
            buffer_memory: 32 << 20,
            tunnel: TunnelSettings::default(),
        }
    }

    /// Checks what types cannot; names everything that is wrong.
    pub fn validate(&self) -> Result<(), InvalidSettings> {
        let rules = [
            (
                self.agent_mark != 0,
                "the agent's mark must be set: without it the agent's own packets are turned around into it",
            ),
            (
                (1..=balance::MAX_ATTEMPTS).contains(&self.max_attempts),
                "the number of connection attempts must be 1 to 8",
            ),
            (
                !self.attempt_timeout.is_zero() && self.attempt_timeout <= self.connect_timeout,
                "the time-out of one attempt must be above 0 and not above the connect time-out",
            ),
            (
                self.idle_timeout >= Duration::from_millis(100),
                "the idle time-out must be 100 ms at least; an hour is usual",
            ),
            (
                self.keepalive.idle >= Duration::from_secs(1)
                    && self.keepalive.interval >= Duration::from_secs(1)
                    && (1..=127).contains(&self.keepalive.probes),
                "keepalive needs times of a second or more and 1 to 127 probes",
            ),
            (
                self.max_connections_per_pod > 0 && self.max_connections >= self.max_connections_per_pod,
                "the connections of one pod must be above 0 and not above those of the node",
            ),
            (
                self.tunnel.are_usable(),
                "tunnels need times and limits above 0, and windows of 16 KiB at least",
            ),
        ];
        let wrong: Vec<&str> = rules.iter().filter(|(right, _)| !right).map(|(_, rule)| *rule).collect();
        if wrong.is_empty() { Ok(()) } else { Err(InvalidSettings(wrong.join("; "))) }
    }
}

/// Settings that cannot work.
#[derive(Debug, Error)]
#[error("proxy settings: {0}")]
pub struct InvalidSettings(String);

/// The connections that the process's descriptors are good for.
fn descriptor_limit() -> usize {
    // Without an answer from the kernel, what every process may have.
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    let connections = descriptors.saturating_sub(RESERVED_DESCRIPTORS) / DESCRIPTORS_PER_CONNECTION;
    usize::try_from(connections).unwrap_or(usize::MAX).clamp(64, 1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        ProxySettings::new(1).validate().unwrap();
    }

    #[test]
    fn everything_wrong_is_named_at_once() {
        let settings = ProxySettings { max_attempts: 9, max_connections_per_pod: 0, ..ProxySettings::new(0) };
        let message = settings.validate().unwrap_err().to_string();
        for part in ["mark must be set", "1 to 8", "connections of one pod"] {
            assert!(message.contains(part), "{message:?} misses {part:?}");
        }
    }
}
