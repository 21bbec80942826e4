//! One key type for both address families.

/// An IP address as the maps hold it: the 16 bytes in network order, IPv4 as IPv4-mapped IPv6 (`::ffff:a.b.c.d`).
///
/// Kept as words because the BPF target copies and compares words in one instruction and has no `memcmp`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(PartialOrd, Ord))]
pub struct Address {
    /// The address, each word in network byte order.
    pub words: [u32; 4],
}

const _: () = assert!(size_of::<Address>() == 16);

/// Bits in front of the IPv4 address in an IPv4-mapped one.
const MAPPED_PREFIX_BITS: u8 = 96;

impl Address {
    /// An IPv4 address, its four bytes in network order.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self { words: [0, 0, 0xffff_u32.to_be(), word] }
    }

    /// An IPv6 address, its words in network order.
    #[inline(always)]
    pub const fn v6(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let [first, second, third, _] = self.words;
        first == 0 && second == 0 && third == 0xffff_u32.to_be()
    }

    /// Whether this is a link-local IPv6 address (fe80::/10), which names a neighbour and never a workload.
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        let [first, ..] = self.words;
        first & 0xffc0_0000_u32.to_be() == 0xfe80_0000_u32.to_be()
    }

    /// The length of a prefix of `bits` bits of an address of the family, counted in this representation.
    pub const fn prefix_bits(is_v4: bool, bits: u8) -> u8 {
        if is_v4 { MAPPED_PREFIX_BITS + bits } else { bits }
    }
}

#[cfg(feature = "user")]
impl From<std::net::IpAddr> for Address {
    fn from(address: std::net::IpAddr) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = match address {
            std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            std::net::IpAddr::V6(v6) => v6.octets(),
        };
        Self { words: [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes) }
    }
}

#[cfg(feature = "user")]
impl From<Address> for std::net::IpAddr {
    fn from(address: Address) -> Self {
        let [w0, w1, w2, w3] = address.words.map(u32::from_be);
        let bits = (u128::from(w0) << 96) | (u128::from(w1) << 64) | (u128::from(w2) << 32) | u128::from(w3);
        std::net::Ipv6Addr::from_bits(bits).to_canonical()
    }
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn addresses_survive_the_way_to_the_kernel_and_back() {
        for text in ["10.0.0.1", "255.255.255.255", "fd00::1", "::1", "fe80::1:2"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
        }
    }

    #[test]
    fn ipv4_is_mapped_and_link_local_is_seen() {
        let v4 = Address::from("10.1.2.3".parse::<IpAddr>().unwrap());
        assert_eq!(v4, Address::v4(u32::from_ne_bytes([10, 1, 2, 3])));
        assert!(!v4.is_link_local());
        assert!(Address::from("febf::1".parse::<IpAddr>().unwrap()).is_link_local());
        assert!(!Address::from("fec0::1".parse::<IpAddr>().unwrap()).is_link_local());
    }
}
