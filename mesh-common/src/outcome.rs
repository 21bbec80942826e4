//! Everything that can become of a packet, by a name that metrics keep for ever.

/// What an outcome does to the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It goes its way untouched.
    Pass,
    /// It goes to the agent.
    Capture,
    /// It is dropped.
    Drop,
    /// It becomes a reset, for both ends of its connection.
    Reset,
    /// Nothing more: a listener look-up, counted beside the packet's own outcome.
    Lookup,
    /// Nothing more: something about a passed connection, counted beside the packet's own outcome.
    Passage,
    /// It comes from the agent.
    Deliver,
    /// Nothing yet: no packet was sent.
    Connect,
}

macro_rules! outcomes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $effect:ident;)*) => {
        /// What became of a packet, or of a look-up for a listener; each has its counter.
        #[repr(u32)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[cfg_attr(feature = "user", derive(PartialOrd, Ord))]
        pub enum Outcome {
            $($(#[$doc])* $variant,)*
        }

        impl Outcome {
            /// All of them, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Stable name, for metrics and people.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it does to the packet.
            pub const fn effect(self) -> Effect {
                match self { $(Self::$variant => Effect::$effect,)* }
            }
        }
    };
}

outcomes! {
    /// Neither IPv4 nor IPv6, or inside a VLAN whose own device will see it.
    NotIp = "pass_not_ip", Pass;
    /// IP, but not TCP: UDP, ICMP and everything else is none of our business.
    NotTcp = "pass_not_tcp", Pass;
    /// Part of a fragmented datagram.
    Fragment = "pass_fragment", Pass;
    /// IPv6 with extension headers in front of the transport header.
    ExtensionHeader = "pass_extension_header", Pass;
    /// Shorter than its headers claim; the IP stack refuses it.
    Malformed = "pass_malformed", Pass;
    /// Carries a mark of the mesh already.
    Marked = "pass_marked", Pass;
    /// Neither end is an enrolled pod of this node.
    NotEnrolled = "pass_not_enrolled", Pass;
    /// Addressed to the node itself.
    HostAddress = "pass_host_address", Pass;
    /// A new connection that the pod's rules leave alone.
    Excluded = "pass_excluded", Pass;
    /// Belongs to no connection of the agent: excluded, or older than the enrolment.
    NoSocket = "pass_no_socket", Pass;
    /// A new connection that should be captured, but no agent listens and the pod fails open.
    FailOpen = "pass_fail_open", Pass;
    /// A new connection that a verdict lets pass.
    Verdict = "pass_verdict", Pass;
    /// A packet of a connection that a verdict let pass.
    Flow = "pass_flow", Pass;
    /// A new connection of the kubelet to an enrolled pod.
    Kubelet = "pass_kubelet", Pass;
    /// A new connection of a process of the node to an enrolled pod, while the kubelet cannot be told from the others.
    NodeProcess = "pass_node_process", Pass;
    /// A new connection of an enrolled pod.
    Outbound = "capture_outbound", Capture;
    /// A new connection to an enrolled pod.
    Inbound = "capture_inbound", Capture;
    /// A packet of a connection that the agent holds.
    Established = "capture_established", Capture;
    /// The acknowledgement of a SYN cookie that the agent's listener sent.
    Cookie = "capture_cookie", Capture;
    /// A new connection to an enrolled pod that did not come in where it would have been steered: from the node itself, or
    /// translated to the pod's address on the way.
    Around = "capture_around", Capture;
    /// A packet of a connection that came so, and that the agent holds.
    AroundEstablished = "capture_around_established", Capture;
    /// A source address that does not belong to the device the packet came from.
    Spoofed = "drop_spoofed", Drop;
    /// A new connection that should be captured, but no agent listens and the pod fails closed.
    FailClosed = "drop_fail_closed", Drop;
    /// The packet could not be made what it has to be to go on: addressed to the agent, or a reset.
    Rewrite = "drop_rewrite", Drop;
    /// TCP to an enrolled pod in fragments or behind extension headers, so that nobody can tell what it is about.
    Hidden = "drop_hidden", Drop;
    /// A packet of a connection that was passed and may not go on.
    Cut = "reset_cut", Reset;
    /// A verdict was there, but no room for another connection: the packet goes on to be captured.
    FlowsFull = "passage_flows_full", Passage;
    /// A verdict was there, but the agent itself has a connection with the same addresses and ports: the same.
    TupleTaken = "passage_tuple_taken", Passage;
    /// The ring had no room; the agent finds out when it next goes through all connections.
    EventLost = "passage_event_lost", Passage;
    /// `pick_listener` chose a listener.
    Picked = "lookup_picked", Lookup;
    /// `pick_listener` found no listener alive.
    NoListener = "lookup_no_listener", Lookup;
    /// Put into a pod by the agent, without the node's IP stack.
    DeliveredToPod = "deliver_pod", Deliver;
    /// Sent by the agent from a client's address, on to the node's IP stack.
    DeliveredToNode = "deliver_node", Deliver;
    /// An answer of the agent's to what was turned around, on to the node's IP stack, which may have to translate it.
    DeliveredAround = "deliver_around", Deliver;
    /// A pod connects to a service and was given an endpoint on its node.
    ConnectLocal = "connect_same_node", Connect;
    /// A pod connects to a service with endpoints on its node, and the agent is to choose among the others.
    ConnectElsewhere = "connect_elsewhere", Connect;
    /// A pod was to be given an endpoint on its node, which it is itself, or its rules keep it from.
    ConnectRefused = "connect_left_alone", Connect;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_follow_the_order_and_names_are_unique() {
        for (index, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index);
            assert!(Outcome::ALL.iter().all(|other| other == outcome || other.name() != outcome.name()));
        }
    }
}
