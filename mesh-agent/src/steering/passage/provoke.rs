//! Ends connections that nobody sends anything on.
//!
//! The kernel ends a connection with its next packet. Where there is none, one is made up: the program is run on a
//! packet as each end might have sent it (`BPF_PROG_TEST_RUN`), on that end's device, and answers it with a reset like
//! any other. The packet itself goes nowhere. This takes no right to send raw packets, and no route.

use mesh_common::{Address, End, FlowKey, FlowState, SideFlags, TcpFlags};

const ETHERNET: [u16; 2] = [0x0800, 0x86dd];
const TCP: u8 = 6;
const TCP_HEADER: u16 = 20;
const HOP_LIMIT: u8 = 64;

/// A packet that one end might have sent: an acknowledgement of all it has received.
pub(in crate::steering) struct Provocation {
    /// Who might.
    pub(in crate::steering) sender: Address,
    /// The whole Ethernet frame. Of checksums it has the IP header's only, which the answers keep.
    pub(in crate::steering) frame: Vec<u8>,
}

impl Provocation {
    /// For both ends of a flow, as far as they have opened it.
    pub(in crate::steering) fn both(key: &FlowKey, state: &FlowState) -> impl Iterator<Item = Self> {
        [End::Low, End::High].into_iter().filter_map(|end| Self::of(key, state, end))
    }

    fn of(key: &FlowKey, state: &FlowState, end: End) -> Option<Self> {
        let (own, other) = (state.side(end), state.side(end.other()));
        if !own.flags.has(SideFlags::OPEN) {
            return None;
        }
        let ((source, source_port), (destination, destination_port)) = (key.end(end), key.end(end.other()));
        let [ipv4, ipv6] = ETHERNET;
        let protocol = if source.is_v4() { ipv4 } else { ipv6 };

        let mut frame = Vec::with_capacity(74);
        frame.extend(other.mac);
        frame.extend(own.mac);
        frame.extend(protocol.to_be_bytes());
        if source.is_v4() {
            frame.extend([0x45, 0]);
            frame.extend((20 + TCP_HEADER).to_be_bytes());
            frame.extend([0, 0, 0, 0, HOP_LIMIT, TCP]);
            frame.extend(checksum(&source, &destination).to_be_bytes());
            frame.extend(bytes(&source).skip(12));
            frame.extend(bytes(&destination).skip(12));
        } else {
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(TCP_HEADER.to_be_bytes());
            frame.extend([TCP, HOP_LIMIT]);
            frame.extend(bytes(&source));
            frame.extend(bytes(&destination));
        }
        frame.extend(source_port.to_be_bytes());
        frame.extend(destination_port.to_be_bytes());
        frame.extend(own.next().to_be_bytes());
        frame.extend(other.next().to_be_bytes());
        frame.extend([5 << 4, TcpFlags::ACK.0, 0, 0, 0, 0, 0, 0]);
        Some(Self { sender: source, frame })
    }
}

/// The checksum of the IPv4 header above: the complement of the sum of its words.
fn checksum(source: &Address, destination: &Address) -> u16 {
    let fixed = [0x4500, 20 + u32::from(TCP_HEADER), u32::from(HOP_LIMIT) << 8 | u32::from(TCP)];
    let addresses = [source, destination].map(|address| {
        let [.., word] = address.words.map(u32::from_be);
        (word >> 16) + (word & 0xffff)
    });
    let sum: u32 = fixed.into_iter().chain(addresses).sum();
    // The carry may carry once more.
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    u16::try_from(sum).map_or(0, |sum| !sum)
}

/// Its bytes in network order, as the words are.
fn bytes(address: &Address) -> impl Iterator<Item = u8> {
    address.words.into_iter().flat_map(u32::to_ne_bytes)
}
