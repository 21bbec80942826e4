//! Keys and values of the maps, their names and their sizes.

use crate::address::Address;
use crate::decision::Direction;

/// Names of the maps in the object file and below the pin directory.
pub mod name {
    /// [`Address`](crate::Address) to [`Pod`](crate::Pod): the known pods of this node.
    pub const PODS: &str = "PODS";
    /// Interface index to [`Device`](crate::Device).
    pub const DEVICES: &str = "DEVICES";
    /// Set of [`Address`](crate::Address): the addresses of the node itself.
    pub const HOST_ADDRS: &str = "HOST_ADDRS";
    /// [`PortRule`](crate::PortRule) to [`Action`](crate::Action).
    pub const PORT_RULES: &str = "PORT_RULES";
    /// [`CidrRule`](crate::CidrRule) prefix to [`Action`](crate::Action).
    pub const CIDR_RULES: &str = "CIDR_RULES";
    /// [`listener_slot`](crate::listener_slot) to the agent's listening sockets.
    pub const LISTENERS: &str = "LISTENERS";
    /// [`Outcome`](crate::Outcome) to its per-CPU count.
    pub const COUNTERS: &str = "COUNTERS";
    /// The one [`Config`](crate::Config).
    pub const CONFIG: &str = "CONFIG";
    /// [`VerdictKey`](crate::VerdictKey) to [`Verdict`](crate::Verdict).
    pub const VERDICTS: &str = "VERDICTS";
    /// Slot of a verdict to the generation that holds.
    pub const GENERATIONS: &str = "GENERATIONS";
    /// [`FlowKey`](crate::FlowKey) to [`FlowState`](crate::FlowState): the connections that pass.
    pub const FLOWS: &str = "FLOWS";
    /// Ring of [`FlowEvent`](crate::FlowEvent)s.
    pub const FLOW_EVENTS: &str = "FLOW_EVENTS";
    /// Number of a cgroup to the [`Address`](crate::Address) of the pod whose it is.
    pub const CGROUPS: &str = "CGROUPS";
    /// [`ServicePort`](crate::ServicePort) to [`LocalEndpoints`](crate::LocalEndpoints).
    pub const SERVICES: &str = "SERVICES";
    /// Socket cookie to [`Replaced`](crate::Replaced), while the socket is being connected.
    pub const CONNECTING: &str = "CONNECTING";
    /// [`Tuple`](crate::Tuple) to the [`ServicePort`](crate::ServicePort) it was opened to, where the kernel has drawn.
    pub const OPENED_TO: &str = "OPENED_TO";

    /// Set of numbers of cgroups: those of the kubelet.
    pub const KUBELETS: &str = "KUBELETS";

    /// All of them.
    pub const ALL: [&str; 17] = [
        PODS,
        DEVICES,
        HOST_ADDRS,
        PORT_RULES,
        CIDR_RULES,
        LISTENERS,
        COUNTERS,
        CONFIG,
        VERDICTS,
        GENERATIONS,
        FLOWS,
        FLOW_EVENTS,
        CGROUPS,
        SERVICES,
        CONNECTING,
        OPENED_TO,
        KUBELETS,
    ];
}

/// Most entries of each map. Hash maps and tries allocate as they fill, so room costs nothing.
pub mod capacity {
    /// Two addresses for each of some thousand pods, far above a kubelet's limit.
    pub const PODS: u32 = 8192;
    /// Devices of the node.
    pub const DEVICES: u32 = 8192;
    /// Addresses of the node.
    pub const HOST_ADDRS: u32 = 4096;
    /// Port rules of all pods.
    pub const PORT_RULES: u32 = 65_536;
    /// Range rules of all pods.
    pub const CIDR_RULES: u32 = 65_536;
    /// Pairs of pods of this node and ports; what finds no room goes through the agent.
    pub const VERDICTS: u32 = 16_384;
    /// Connections that pass; what finds no room goes through the agent. Some 15 MB when full.
    pub const FLOWS: u32 = 65_536;
    /// Bytes of the ring of events: some 7,000 of them, of connections that open or end between two looks of the
    /// agent.
    pub const FLOW_EVENT_BYTES: u32 = 1 << 20;
    /// Pods that are balanced at connect time.
    pub const CGROUPS: u32 = 4096;
    /// Addresses and ports of services that have endpoints on this node.
    pub const SERVICES: u32 = 8192;
    /// Sockets between their `connect` and their SYN, in the same system call. Allocated at once (LRU), because nobody
    /// knows when the last program has read an entry.
    pub const CONNECTING: u32 = 4096;
    /// Connections whose service can be told. Allocated at once (LRU), 2 MB.
    pub const OPENED_TO: u32 = 16_384;
    /// Cgroups of the kubelet: one, and its successor for a moment; more where a distribution has it under several names.
    pub const KUBELETS: u32 = 64;
}

/// Data-plane cores that can have a listener of their own.
pub const MAX_LISTENERS: u32 = 64;

/// The agent's ends of its two devices. Far above what a kernel gives by itself: programs also ask for sockets from devices of
/// the node, and what was turned around is told by this number.
pub mod agent_device {
    /// Where packets arrive that were steered where they came in.
    pub const STEERED: u32 = 1_000_000_001;
    /// Where those arrive that were turned around.
    pub const AROUND: u32 = 1_000_000_002;
    /// Ethernet address of [`AROUND`]: packets are sent there.
    pub const AROUND_MAC: [u8; 6] = [0x02, b'm', b'e', b's', b'h', 4];
}

/// The address family of a listener.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4 = 0,
    /// IPv6.
    V6 = 1,
}

/// How a connection came to the agent, and so which of its listeners takes it: their sockets differ in their mark, by which the answers are routed.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arrival {
    /// Steered where its packets came in. The node has not translated them and does not track them.
    Steered = 0,
    /// Turned around on its way into the pod. The node may have translated its packets, and has to see the answers to
    /// translate them back.
    Around = 1,
}

/// Slots of `LISTENERS`.
pub const LISTENER_SLOTS: u32 = MAX_LISTENERS * 4;

/// Where the listener of a core is in `LISTENERS`.
#[inline(always)]
pub const fn listener_slot(core: u32, family: Family, arrival: Arrival) -> u32 {
    core * 4 + arrival as u32 * 2 + family as u32
}

/// What is known of a pod. The all-zero value stands for "no pod".
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pod {
    /// Names the pod for as long as it lives; the same under each of its addresses, never 0.
    pub id: u32,
    /// What the mesh does with its traffic.
    pub flags: PodFlags,
    /// Interface index of its host-side device; 0 where it is not known.
    pub device: u32,
    /// The rule set it follows; 0 for none. Apart from `id` so that new rules can be written aside and switched
    /// to in one step.
    pub rules: u32,
}

const _: () = assert!(size_of::<Pod>() == 16);

impl Pod {
    /// Nobody.
    pub const UNKNOWN: Self = Self { id: 0, flags: PodFlags(0), device: 0, rules: 0 };

    /// Whether new connections are candidates for capture.
    #[inline(always)]
    pub const fn is_enrolled(&self) -> bool {
        self.flags.has(PodFlags::ENROLLED)
    }

    /// Whether packets may belong to a captured connection: the pod is in the mesh, or was when it was opened.
    #[inline(always)]
    pub const fn may_have_captured(&self) -> bool {
        self.flags.has(PodFlags::ENROLLED) || self.flags.has(PodFlags::LEFT)
    }
}

/// Bits of [`Pod::flags`].
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PodFlags(pub u32);

impl PodFlags {
    /// New connections are captured, as far as the rules say so.
    pub const ENROLLED: Self = Self(1);
    /// Was enrolled once: connections captured then still have to reach the agent.
    pub const LEFT: Self = Self(1 << 1);
    /// Without an agent, drop instead of passing by.
    pub const FAIL_CLOSED: Self = Self(1 << 2);
    /// Outbound connections that no rule names are captured.
    pub const CAPTURE_OUTBOUND: Self = Self(1 << 3);
    /// Inbound connections that no rule names are captured.
    pub const CAPTURE_INBOUND: Self = Self(1 << 4);

    /// Whether all bits of `other` are set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags and `other` where `condition` holds.
    #[must_use]
    pub const fn with(self, other: Self, condition: bool) -> Self {
        if condition { Self(self.0 | other.0) } else { self }
    }
}

/// What is known of a device that programs are attached to.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Device {
    /// The enrolled pod behind it, whose addresses are the only sources allowed; 0 for none.
    pub owner: u32,
    /// How its packets are read and handed on.
    pub flags: DeviceFlags,
}

const _: () = assert!(size_of::<Device>() == 8);

/// Bits of [`Device::flags`].
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceFlags(pub u32);

impl DeviceFlags {
    /// Its packets begin with an Ethernet header, so that the IP header is where it always is.
    pub const ETHERNET: Self = Self(1);
    /// A pod's veth that nobody queues or shapes packets on: packets may be put into the pod without going through it.
    pub const SHORTCUT: Self = Self(1 << 1);

    /// These flags and `other` where `condition` holds.
    #[must_use]
    pub const fn with(self, other: Self, condition: bool) -> Self {
        if condition { Self(self.0 | other.0) } else { self }
    }

    /// Whether all bits of `other` are set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Names one port in a rule set.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(PartialOrd, Ord))]
pub struct PortRule {
    /// The rule set.
    pub rules: u32,
    /// Destination port in host order.
    pub port: u16,
    /// A [`Direction`] as number.
    pub direction: u8,
    /// Always zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<PortRule>() == 8);

impl PortRule {
    /// The key of a destination port in one direction.
    #[inline(always)]
    pub const fn new(rules: u32, direction: Direction, port: u16) -> Self {
        Self { rules, port, direction: direction as u8, reserved: 0 }
    }
}

/// Names a range of destination addresses in a rule set: the data part of a longest-prefix key.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(PartialOrd, Ord))]
pub struct CidrRule {
    /// The rule set.
    pub rules: u32,
    /// A [`Family`] as number: an IPv6 range as wide as `::/0` must not hold the IPv4-mapped addresses.
    pub family: u32,
    /// Outbound destination.
    pub address: Address,
}

const _: () = assert!(size_of::<CidrRule>() == 24);

/// Bits of a [`CidrRule`] in front of the address; always part of the prefix.
pub const CIDR_RULE_PREFIX: u32 = 64;

impl CidrRule {
    /// The key of an address, or of the range that begins with it.
    #[inline(always)]
    pub const fn new(rules: u32, address: Address) -> Self {
        let family = if address.is_v4() { Family::V4 } else { Family::V6 };
        Self { rules, family: family as u32, address }
    }
}

/// What a rule says.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action(pub u32);

impl Action {
    /// Leave the connection alone.
    pub const PASS: Self = Self(0);
    /// Hand the connection to the agent.
    pub const CAPTURE: Self = Self(1);

    /// Whether the connection goes to the agent.
    #[inline(always)]
    pub const fn captures(self) -> bool {
        self.0 == Self::CAPTURE.0
    }
}

/// Settings of the programs.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Config {
    /// The bits of a packet mark that belong to the mesh; all others are left as they are.
    pub mark_mask: u32,
    /// Mark of what the agent sends from addresses that are not the node's.
    pub capture_mark: u32,
    /// Mark of what else the agent sends, and of packets that have been decided about and go on to a pod.
    pub agent_mark: u32,
    /// Data-plane cores that have a listener.
    pub listeners: u32,
    /// What else is to be known of the node.
    pub flags: ConfigFlags,
    /// Number by which the node's network namespace knows the agent's, where its sockets are.
    pub netns: u32,
    /// Interface index of the node's end of the way there for packets that are steered where they come in.
    pub steered_device: u32,
    /// The same for those that are turned around on their way into a pod.
    pub around_device: u32,
}

const _: () = assert!(size_of::<Config>() == 32);

/// Bits of [`Config::flags`].
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConfigFlags(pub u32);

impl ConfigFlags {
    /// The kubelet's cgroup is known: of the node's processes, it alone reaches pods past the agent.
    pub const KUBELET_KNOWN: Self = Self(1);

    /// Whether all bits of `other` are set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags with `other` set or not.
    #[must_use]
    pub const fn put(self, other: Self, set: bool) -> Self {
        if set { Self(self.0 | other.0) } else { Self(self.0 & !other.0) }
    }
}

impl Config {
    /// The mesh's part of a mark.
    #[inline(always)]
    pub const fn owns(&self, mark: u32) -> bool {
        mark & self.mark_mask != 0
    }

    /// `mark` with the mesh's part replaced by the capture mark.
    #[inline(always)]
    pub const fn captured(&self, mark: u32) -> u32 {
        (mark & !self.mark_mask) | self.capture_mark
    }

    /// `mark` with the mesh's part replaced by the agent mark.
    #[inline(always)]
    pub const fn decided(&self, mark: u32) -> u32 {
        (mark & !self.mark_mask) | self.agent_mark
    }
}

#[cfg(feature = "user")]
mod user {
    use super::{Action, CidrRule, Config, Device, Pod, PortRule};
    use crate::{Address, FlowEvent, FlowKey, FlowState, Verdict, VerdictKey};

    macro_rules! plain {
        ($($name:ty),*) => {$(
            // SAFETY: `repr(C)` or `repr(transparent)` over integers, its size asserted to leave no padding; every
            // bit pattern is a value.
            unsafe impl aya::Pod for $name {}
        )*};
    }
    plain!(
        Action, Address, CidrRule, Config, Device, FlowEvent, FlowKey, FlowState, Pod, PortRule, Verdict,
        VerdictKey
    );
}
