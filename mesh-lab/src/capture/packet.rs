//! The headers of a packet, as far as a capture needs them. Takes packets as they begin at the IP header.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const TCP: u8 = 6;

/// Who sends what kind of payload to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Headers<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    protocol: u8,
    payload: &'a [u8],
}

/// A TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) sequence: u32,
    pub(super) syn: bool,
    pub(super) payload: &'a [u8],
}

impl<'a> Headers<'a> {
    /// `None` for what is not IP, and for all fragments: nothing in a lab sends any.
    pub(super) fn parse(packet: &'a [u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::v4(packet),
            6 => Self::v6(packet),
            _ => None,
        }
    }

    fn v4(packet: &'a [u8]) -> Option<Self> {
        let header_length = usize::from(packet.first()? & 0x0f) * 4;
        // More fragments, or not the first.
        if u16_at(packet, 6)? & 0x3fff != 0 {
            return None;
        }
        let source: [u8; 4] = bytes_at(packet, 12)?;
        let destination: [u8; 4] = bytes_at(packet, 16)?;
        let end = usize::from(u16_at(packet, 2)?).min(packet.len());
        Some(Self {
            source: Ipv4Addr::from(source).into(),
            destination: Ipv4Addr::from(destination).into(),
            protocol: *packet.get(9)?,
            payload: packet.get(header_length..end)?,
        })
    }

    fn v6(packet: &'a [u8]) -> Option<Self> {
        const FIXED: usize = 40;
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const DESTINATION_OPTIONS: u8 = 60;
        let source: [u8; 16] = bytes_at(packet, 8)?;
        let destination: [u8; 16] = bytes_at(packet, 24)?;
        // 0: a jumbogram, whose length is that of the packet.
        let end = match usize::from(u16_at(packet, 4)?) {
            0 => packet.len(),
            length => (FIXED + length).min(packet.len()),
        };
        let mut protocol = *packet.get(6)?;
        let mut payload = packet.get(FIXED..end)?;
        while matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
            let length = (usize::from(*payload.get(1)?) + 1) * 8;
            protocol = *payload.first()?;
            payload = payload.get(length..)?;
        }
        Some(Self {
            source: Ipv6Addr::from(source).into(),
            destination: Ipv6Addr::from(destination).into(),
            protocol,
            payload,
        })
    }
}

impl<'a> Segment<'a> {
    /// `None` for what is not TCP.
    pub(super) fn parse(headers: &Headers<'a>) -> Option<Self> {
        const SYN: u8 = 0x02;
        if headers.protocol != TCP {
            return None;
        }
        let segment = headers.payload;
        let header_length = usize::from(segment.get(12)? >> 4) * 4;
        Some(Self {
            from: SocketAddr::new(headers.source, u16_at(segment, 0)?),
            to: SocketAddr::new(headers.destination, u16_at(segment, 2)?),
            sequence: u32::from_be_bytes(bytes_at(segment, 4)?),
            syn: segment.get(13)? & SYN != 0,
            payload: segment.get(header_length..)?,
        })
    }
}

fn bytes_at<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
    packet.get(at..)?.first_chunk().copied()
}

fn u16_at(packet: &[u8], at: usize) -> Option<u16> {
    bytes_at(packet, at).map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment with two options words, its payload, and padding behind it as Ethernet adds.
    fn tcp() -> Vec<u8> {
        let mut segment = vec![0x1f, 0x90, 0x9c, 0x40, 1, 2, 3, 4, 0, 0, 0, 0, 0x70, 0x12, 0, 0, 0, 0, 0, 0];
        segment.extend([1; 8]);
        segment.extend(b"hello");
        segment
    }

    #[test]
    fn ipv4_is_read_up_to_its_length() {
        let tcp = tcp();
        let length = u8::try_from(24 + tcp.len()).unwrap();
        let mut packet = vec![0x46, 0, 0, length, 0, 0, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend([0; 4]);
        packet.extend(&tcp);
        packet.extend([0xee; 6]);
        let segment = Segment::parse(&Headers::parse(&packet).unwrap()).unwrap();
        assert_eq!(
            (segment.from.to_string(), segment.to.to_string()),
            ("10.0.0.1:8080".into(), "10.0.0.2:40000".into())
        );
        assert_eq!(
            (segment.sequence, segment.syn, segment.payload),
            (0x0102_0304, true, b"hello".as_slice())
        );

        packet[6] = 0x20;
        assert_eq!(Headers::parse(&packet), None, "a fragment");
    }

    #[test]
    fn ipv6_is_read_behind_its_extension_headers() {
        let tcp = tcp();
        let mut packet = vec![0x60, 0, 0, 0, 0, u8::try_from(8 + tcp.len()).unwrap(), 60, 64];
        packet.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend([TCP, 0, 1, 4, 0, 0, 0, 0]);
        packet.extend(&tcp);
        let segment = Segment::parse(&Headers::parse(&packet).unwrap()).unwrap();
        assert_eq!(segment.from.to_string(), "[fd00::1]:8080");
        assert_eq!(segment.payload, b"hello");
    }

    #[test]
    fn damaged_packets_are_no_packets() {
        let tcp = tcp();
        let mut packet = vec![0x45, 0, 0, 60, 0, 0, 0, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend(&tcp);
        for length in 0..packet.len() {
            if let Some(headers) = Headers::parse(&packet[..length]) {
                let _ = Segment::parse(&headers);
            }
        }
        packet[32] = 0xf0;
        assert_eq!(Segment::parse(&Headers::parse(&packet).unwrap()), None);
        assert_eq!(Headers::parse(&[]), None);
        assert_eq!(Headers::parse(&[0x20; 60]), None);
    }
}
