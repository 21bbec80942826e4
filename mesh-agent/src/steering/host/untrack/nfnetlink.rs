//! As much of nfnetlink as one table of simple rules takes: transactions of tables, chains and rules.
//!
//! Wire format: `linux/netfilter/nfnetlink.h` and `linux/netfilter/nf_tables.h`. Numbers in attributes are big
//! endian, message headers are in host order, everything is padded to four bytes.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::steering::host::Mark;

/// `NFPROTO_INET`: rules for IPv4 and IPv6 alike.
const FAMILY_INET: u8 = 1;
const SUBSYSTEM_NFTABLES: u16 = 10;

const MESSAGE_BATCH_BEGIN: u16 = 16;
const MESSAGE_BATCH_END: u16 = 17;
const MESSAGE_ERROR: u16 = 2;
const MESSAGE_NEW_TABLE: u16 = 0;
const MESSAGE_GET_TABLE: u16 = 1;
const MESSAGE_DELETE_TABLE: u16 = 2;
const MESSAGE_NEW_CHAIN: u16 = 3;
const MESSAGE_NEW_RULE: u16 = 6;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;

const META_DESTINATION: u16 = 1;
const META_KEY: u16 = 2;
const META_KEY_MARK: u32 = 3;
const BITWISE_SOURCE: u16 = 1;
const BITWISE_DESTINATION: u16 = 2;
const BITWISE_LENGTH: u16 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const COMPARE_SOURCE: u16 = 1;
const COMPARE_OPERATOR: u16 = 2;
const COMPARE_DATA: u16 = 3;
const COMPARE_EQUAL: u32 = 0;

/// `NFT_REG_1`, the register that the expressions of a rule pass values in.
pub(super) const REGISTER: u32 = 1;

const NESTED: u16 = 1 << 15;
const HEADER: usize = 16;

/// Where in the way of a packet a chain hangs (`NF_INET_*`).
#[derive(Clone, Copy)]
pub(super) enum Hook {
    PreRouting = 0,
}

/// A list of netlink attributes.
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        // An attribute's length is its header and value, without the padding.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), b"\0"].concat());
    }

    pub(super) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::new();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0);
    }

    /// A value for a register, as the kernel takes it: nested once more.
    pub(super) fn data(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |data| data.bytes(DATA_VALUE, value));
    }
}

/// Appends an expression to a rule.
pub(super) fn expression(rule: &mut Attributes, name: &str, fill: impl FnOnce(&mut Attributes)) {
    rule.nested(LIST_ELEMENT, |element| {
        element.text(EXPRESSION_NAME, name);
        element.nested(EXPRESSION_DATA, fill);
    });
}

/// Appends `meta mark & mask == value`. Marks are in host order, unlike everything else.
pub(super) fn match_mark(rule: &mut Attributes, mark: Mark) {
    expression(rule, "meta", |meta| {
        meta.number(META_KEY, META_KEY_MARK);
        meta.number(META_DESTINATION, REGISTER);
    });
    expression(rule, "bitwise", |bitwise| {
        bitwise.number(BITWISE_SOURCE, REGISTER);
        bitwise.number(BITWISE_DESTINATION, REGISTER);
        bitwise.number(BITWISE_LENGTH, 4);
        bitwise.data(BITWISE_MASK, &mark.mask.to_ne_bytes());
        bitwise.data(BITWISE_XOR, &[0; 4]);
    });
    match_equal(rule, &mark.value.to_ne_bytes());
}

/// Appends the comparison of the register with `value`.
pub(super) fn match_equal(rule: &mut Attributes, value: &[u8]) {
    expression(rule, "cmp", |compare| {
        compare.number(COMPARE_SOURCE, REGISTER);
        compare.number(COMPARE_OPERATOR, COMPARE_EQUAL);
        compare.data(COMPARE_DATA, value);
    });
}

/// Changes that take effect together or not at all.
pub(super) struct Batch {
    buffer: Vec<u8>,
    /// Sequence number of the last message; the first is 1, and only the batch's frame has 0.
    sequence: u32,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut batch = Self { buffer: Vec::new(), sequence: 0 };
        batch.frame(MESSAGE_BATCH_BEGIN);
        batch
    }

    pub(super) fn add_table(&mut self, name: &str) {
        let mut table = Attributes::new();
        table.text(TABLE_NAME, name);
        self.change(MESSAGE_NEW_TABLE, NLM_F_CREATE, &table);
    }

    pub(super) fn delete_table(&mut self, name: &str) {
        let mut table = Attributes::new();
        table.text(TABLE_NAME, name);
        self.change(MESSAGE_DELETE_TABLE, 0, &table);
    }

    pub(super) fn add_chain(&mut self, table: &str, name: &str, kind: &str, hook: Hook, priority: i32) {
        let mut chain = Attributes::new();
        chain.text(CHAIN_TABLE, table);
        chain.text(CHAIN_NAME, name);
        chain.nested(CHAIN_HOOK, |attributes| {
            attributes.number(HOOK_NUMBER, hook as u32);
            attributes.number(HOOK_PRIORITY, priority.cast_unsigned());
        });
        chain.text(CHAIN_TYPE, kind);
        self.change(MESSAGE_NEW_CHAIN, NLM_F_CREATE, &chain);
    }

    pub(super) fn add_rule(&mut self, table: &str, chain: &str, expressions: Attributes) {
        let mut rule = Attributes::new();
        rule.text(RULE_TABLE, table);
        rule.text(RULE_CHAIN, chain);
        rule.bytes(RULE_EXPRESSIONS | NESTED, &expressions.0);
        self.change(MESSAGE_NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, &rule);
    }

    /// Sends the batch and waits for the kernel's word on every message; the first refusal is the result.
    pub(super) fn commit(mut self) -> io::Result<()> {
        self.frame(MESSAGE_BATCH_END);
        transact(&self.buffer, self.sequence)
    }

    fn change(&mut self, message: u16, flags: u16, attributes: &Attributes) {
        self.sequence += 1;
        let kind = SUBSYSTEM_NFTABLES << 8 | message;
        let flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        put_message(&mut self.buffer, kind, flags, self.sequence, FAMILY_INET, 0, &attributes.0);
    }

    /// Begin and end of a batch name the subsystem in the place of a resource id.
    fn frame(&mut self, message: u16) {
        put_message(&mut self.buffer, message, NLM_F_REQUEST, 0, 0, SUBSYSTEM_NFTABLES, &[]);
    }
}

/// Succeeds if the kernel knows a table of this name.
pub(super) fn table_exists(name: &str) -> io::Result<()> {
    let mut table = Attributes::new();
    table.text(TABLE_NAME, name);
    let mut buffer = Vec::new();
    let kind = SUBSYSTEM_NFTABLES << 8 | MESSAGE_GET_TABLE;
    put_message(&mut buffer, kind, NLM_F_REQUEST | NLM_F_ACK, 1, FAMILY_INET, 0, &table.0);
    transact(&buffer, 1)
}

/// Appends a message: `nlmsghdr`, `nfgenmsg`, attributes (already padded).
fn put_message(
    buffer: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    attributes: &[u8],
) {
    let length = u32::try_from(HEADER + 4 + attributes.len()).unwrap_or(u32::MAX);
    buffer.extend_from_slice(&length.to_ne_bytes());
    buffer.extend_from_slice(&kind.to_ne_bytes());
    buffer.extend_from_slice(&flags.to_ne_bytes());
    buffer.extend_from_slice(&sequence.to_ne_bytes());
    buffer.extend_from_slice(&0_u32.to_ne_bytes());
    buffer.extend_from_slice(&[family, 0]);
    buffer.extend_from_slice(&resource.to_be_bytes());
    buffer.extend_from_slice(attributes);
}

/// Sends `messages` and reads until the message with the sequence number `last` has been answered.
///
/// The kernel answers within the call that sends, so reading need never wait. A batch that is refused as a whole
/// is answered with one error under the sequence number of its frame, 0.
fn transact(messages: &[u8], last: u32) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    socket.send(messages, 0)?;
    let mut refusal = None;
    loop {
        let (answers, _) = socket.recv_from_full()?;
        for answer in split(&answers) {
            if answer.kind != MESSAGE_ERROR {
                continue;
            }
            if answer.error != 0 && refusal.is_none() {
                refusal = Some(io::Error::from_raw_os_error(-answer.error));
            }
            if answer.sequence == last || answer.sequence == 0 {
                return refusal.map_or(Ok(()), Err);
            }
        }
    }
}

/// What matters of an answer.
struct Answer {
    kind: u16,
    sequence: u32,
    /// Only in an error message: 0 is an acknowledgement.
    error: i32,
}

/// Takes a datagram of netlink messages apart. What the kernel cut short ends the list.
fn split(mut bytes: &[u8]) -> impl Iterator<Item = Answer> + '_ {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let message = bytes.get(..length).filter(|message| message.len() >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
        let sequence = u32::from_ne_bytes(*message.get(8..)?.first_chunk()?);
        let error = message.get(HEADER..)?.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
        Some(Answer { kind, sequence, error })
    })
}
