//! Which core a connection goes to.

use crate::address::Address;

/// Spreads connections evenly over `cores`.
///
/// By a hash of the tuple and not by the CPU that runs the look-up: a repeated SYN and the acknowledgement of a SYN
/// cookie find the listener that saw the first SYN wherever they are processed, and the connections of one busy pod,
/// whose packets all arrive on the CPU that the pod runs on, still use every core.
#[inline(always)]
pub const fn spread(
    source: &Address,
    source_port: u16,
    destination: &Address,
    destination_port: u16,
    cores: u32,
) -> u32 {
    let [s0, s1, s2, s3] = source.words;
    let [d0, d1, d2, d3] = destination.words;
    // The upper words are prefixes that most connections share; mixing them in costs little more than leaving out.
    let mut hash = ((source_port as u32) << 16) | destination_port as u32;
    hash = mix(hash ^ s3 ^ s2.rotate_left(7) ^ s1.rotate_left(15) ^ s0.rotate_left(23));
    hash = mix(hash ^ d3 ^ d2.rotate_left(7) ^ d1.rotate_left(15) ^ d0.rotate_left(23));
    // Multiply and shift instead of a division: unbiased enough for a handful of cores.
    ((hash as u64 * cores as u64) >> 32) as u32
}

/// The finaliser of MurmurHash3: every input bit changes every output bit with probability one half.
#[inline(always)]
const fn mix(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_differ_in_one_port_spread_evenly() {
        let (source, destination) = (Address::v4(0x0100_000a), Address::v4(0x0200_000a));
        for cores in [1_u32, 2, 3, 8, 64] {
            let mut taken = vec![0_u32; cores as usize];
            for port in 32_768..60_768_u16 {
                taken[spread(&source, port, &destination, 80, cores) as usize] += 1;
            }
            let fair = 28_000 / cores;
            assert!(taken.iter().all(|count| count.abs_diff(fair) < fair / 4), "{cores}: {taken:?}");
        }
    }
}
