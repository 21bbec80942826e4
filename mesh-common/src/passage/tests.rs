use super::*;
use crate::maps::PodFlags;

const CLIENT: (Address, u16) = (Address::v4(9), 40_000);
const SERVER: (Address, u16) = (Address::v4(3), 80);

const SYN: TcpFlags = TcpFlags::SYN;
const ACK: TcpFlags = TcpFlags::ACK;
const SYN_ACK: TcpFlags = SYN.and(ACK);
const FIN_ACK: TcpFlags = TcpFlags::FIN.and(ACK);
const RST: TcpFlags = TcpFlags::RST;

/// Numbers near the wrap, so that every comparison meets it.
const CLIENT_INITIAL: u32 = u32::MAX - 5;
const SERVER_INITIAL: u32 = u32::MAX;

struct Conversation {
    flow: FlowState,
    client: End,
}

impl Conversation {
    /// After the SYN.
    fn begin() -> Self {
        let (_, client) = FlowKey::of(CLIENT, SERVER);
        let syn = Segment { sequence: CLIENT_INITIAL, acknowledgement: 0, payload: 0, flags: SYN };
        let mut sides = [Side::default(); 2];
        sides[client as usize] = Side::opened(&syn, 0, [0; 6]);
        let flow = FlowState {
            opened: 1,
            cut: 0,
            slot: 0,
            generation: 1,
            client: client as u32,
            shortcut: 0,
            sides,
        };
        Self { flow, client }
    }

    /// After the handshake.
    fn open() -> Self {
        let mut conversation = Self::begin();
        assert_eq!(conversation.server(0, SYN_ACK, 0, 1), Progress::Opened);
        assert_eq!(conversation.client(1, ACK, 0, 1), Progress::None);
        conversation
    }

    /// The client sends, with numbers relative to the SYNs.
    fn client(&mut self, sequence: u32, flags: TcpFlags, payload: u32, acknowledgement: u32) -> Progress {
        let segment = Segment {
            sequence: CLIENT_INITIAL.wrapping_add(sequence),
            acknowledgement: SERVER_INITIAL.wrapping_add(acknowledgement),
            payload,
            flags,
        };
        self.flow.advance(self.client, &segment)
    }

    /// The server sends.
    fn server(&mut self, sequence: u32, flags: TcpFlags, payload: u32, acknowledgement: u32) -> Progress {
        let segment = Segment {
            sequence: SERVER_INITIAL.wrapping_add(sequence),
            acknowledgement: CLIENT_INITIAL.wrapping_add(acknowledgement),
            payload,
            flags,
        };
        self.flow.advance(self.client.other(), &segment)
    }

    fn bytes(&self) -> (u64, u64) {
        (self.flow.side(self.client).bytes, self.flow.side(self.client.other()).bytes)
    }
}

#[test]
fn both_directions_have_one_key_and_two_ends() {
    let v6 = |last| Address::v6([1, 0, 0, last]);
    for (one, other) in [(CLIENT, SERVER), ((v6(1), 1), (v6(2), 1)), ((v6(1), 1), (v6(1), 2))] {
        let ((there, sender), (back, receiver)) = (FlowKey::of(one, other), FlowKey::of(other, one));
        assert_eq!((there, sender), (back, receiver.other()));
        assert_eq!((there.end(sender), there.end(receiver)), (one, other));
    }
}

#[test]
fn each_byte_counts_once() {
    let mut conversation = Conversation::open();
    conversation.client(1, ACK, 100, 1);
    conversation.client(101, ACK, 50, 1);
    conversation.client(1, ACK, 100, 1);
    assert_eq!(conversation.bytes(), (150, 0), "a repeated segment");
    conversation.server(1, ACK, 1000, 151);
    conversation.client(150, ACK, 1, 1001);
    conversation.client(150, ACK, 0, 1001);
    assert_eq!(conversation.bytes(), (150, 1000), "keepalive probes");
    conversation.client(301, ACK, 10, 1001);
    assert_eq!(
        conversation.bytes(),
        (310, 1000),
        "what another CPU has yet to count is counted with what follows it"
    );
}

#[test]
fn more_bytes_are_counted_than_sequence_numbers_exist() {
    let mut conversation = Conversation::open();
    let (mut sequence, step) = (1_u32, 0x4000_0000_u32);
    for _ in 0..9 {
        conversation.client(sequence, ACK, step, 1);
        sequence = sequence.wrapping_add(step);
    }
    assert_eq!(conversation.bytes().0, 9 * u64::from(step));
    assert_eq!(conversation.flow.side(conversation.client).next(), CLIENT_INITIAL.wrapping_add(sequence));
}

#[test]
fn it_ends_when_both_ends_know_that_the_other_is_finished() {
    let mut conversation = Conversation::open();
    conversation.client(1, ACK, 10, 1);
    assert_eq!(conversation.client(11, FIN_ACK, 0, 1), Progress::None);
    assert_eq!(conversation.server(1, ACK, 20, 12), Progress::None, "half of it is open");
    assert_eq!(conversation.server(21, FIN_ACK, 0, 12), Progress::None);
    assert_eq!(conversation.client(12, ACK, 0, 22), Progress::Ended);
    assert_eq!(conversation.bytes(), (10, 20));
}

#[test]
fn a_forged_end_is_none() {
    let mut conversation = Conversation::open();
    conversation.server(1, ACK, 20, 1);
    conversation.server(21, FIN_ACK, 0, 1);
    // The server has not received it: it does not acknowledge it, whatever the client says.
    assert_eq!(conversation.client(9999, FIN_ACK, 0, 22), Progress::None);
    assert_eq!(conversation.client(9999, RST, 0, 0), Progress::Broken);
    assert!(conversation.flow.is_broken());
}

#[test]
fn a_reset_ends_it_where_the_other_end_must_take_it() {
    let mut conversation = Conversation::open();
    conversation.client(1, ACK, 10, 1);
    assert_eq!(conversation.client(11, RST, 0, 0), Progress::Broken, "ten bytes are not acknowledged");
    assert_eq!(conversation.server(1, ACK, 0, 11), Progress::None);
    assert_eq!(conversation.client(11, RST, 0, 0), Progress::Ended);
}

#[test]
fn a_refused_connection_is_over() {
    let mut conversation = Conversation::begin();
    assert_eq!(conversation.server(0, RST.and(ACK), 0, 7), Progress::Broken, "an answer to something else");
    let mut conversation = Conversation::begin();
    assert_eq!(conversation.server(0, RST.and(ACK), 0, 1), Progress::Ended);
    assert!(!conversation.flow.is_open());
}

#[test]
fn a_repeated_syn_changes_nothing_once_it_is_answered() {
    let mut conversation = Conversation::begin();
    assert_eq!(conversation.client(5, SYN, 0, 0), Progress::None);
    assert_eq!(
        conversation.flow.side(conversation.client).initial,
        CLIENT_INITIAL.wrapping_add(5),
        "begun anew"
    );
    let mut conversation = Conversation::open();
    let before = conversation.flow;
    assert_eq!(conversation.client(0, SYN, 0, 0), Progress::None);
    assert_eq!(conversation.server(0, SYN_ACK, 0, 1), Progress::None);
    assert_eq!(conversation.flow, before);
}

#[test]
fn a_tuple_is_free_a_while_after_its_ends_were_told() {
    let mut flow = Conversation::open().flow;
    assert!(!flow.is_over(u64::MAX), "they were not");
    flow.cut = 5_000;
    assert!(!flow.is_over(5_000) && !flow.is_over(10_005_000));
    assert!(flow.is_over(10_005_001));
}

#[test]
fn data_in_the_syn_counts() {
    let mut conversation = Conversation::begin();
    conversation.client(0, SYN, 30, 0);
    conversation.server(0, SYN_ACK, 0, 31);
    conversation.client(31, ACK, 5, 1);
    assert_eq!(conversation.bytes(), (35, 0));
}

#[test]
fn pods_pass_where_they_are_steered_and_their_devices_known() {
    let pod = |flags, device| Pod { id: 1 + device, flags, device, rules: 0 };
    let (one, two) = (pod(PodFlags::ENROLLED, 1), pod(PodFlags::ENROLLED, 2));
    let elsewhere = Pod::UNKNOWN;
    for (source, destination) in [(&one, &two), (&one, &elsewhere), (&elsewhere, &one)] {
        assert!(can_pass(source, destination), "{source:?} {destination:?}");
    }
    assert!(!can_pass(&one, &one), "itself");
    assert!(!can_pass(&elsewhere, &elsewhere), "none of ours");
    for other in [pod(PodFlags::ENROLLED, 0), pod(PodFlags::LEFT, 3), pod(PodFlags(0), 3)] {
        for end in [&one, &elsewhere] {
            assert!(!can_pass(end, &other) && !can_pass(&other, end), "{end:?} {other:?}");
        }
    }
}
