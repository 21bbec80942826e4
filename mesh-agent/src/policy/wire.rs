//! Looks at encoded messages for what the generated types skip: fields added to the protocol after this agent was
//! built. A rule with a condition that is not seen would match too much.

use std::ops::RangeInclusive;

use prost::decode_length_delimiter as decode_varint;

/// The fields of an encoded message in order, nested messages not looked into.
pub(super) struct Message<'a>(Vec<(usize, &'a [u8])>);

impl<'a> Message<'a> {
    /// Splits a message; `None` if it is not one.
    pub(super) fn parse(mut bytes: &'a [u8]) -> Option<Self> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = decode_varint(&mut bytes).ok()?;
            // https://protobuf.dev/programming-guides/encoding/#structure: the number of the field and, in the lower three bits, what follows.
            let length = match key & 7 {
                0 => {
                    decode_varint(&mut bytes).ok()?;
                    0
                }
                1 => 8,
                2 => decode_varint(&mut bytes).ok()?,
                5 => 4,
                // Groups, which proto3 does not have.
                _ => return None,
            };
            let (content, rest) = bytes.split_at_checked(length)?;
            fields.push((key >> 3, content));
            bytes = rest;
        }
        Some(Self(fields))
    }

    /// The first field that is none of the `known` ones.
    pub(super) fn unknown(&self, known: RangeInclusive<usize>) -> Option<usize> {
        self.0.iter().map(|(field, _)| *field).find(|field| !known.contains(field))
    }

    /// All fields with their contents, in order.
    pub(super) fn fields(&self) -> impl Iterator<Item = (usize, &'a [u8])> {
        self.0.iter().copied()
    }

    /// The contents of a field, in order.
    pub(super) fn all(&self, field: usize) -> impl Iterator<Item = &'a [u8]> {
        self.fields().filter(move |(tag, _)| *tag == field).map(|(_, content)| content)
    }
}
