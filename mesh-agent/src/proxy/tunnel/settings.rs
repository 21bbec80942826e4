//! What may be set of tunnels, with the reason for each default, and the arithmetic of their flow control.
//!
//! A stream's window is all that its sender may have on the way, and so all that the receiver must be ready to hold
//! for a slow reader. The window of the tunnel is the sum of those of all the streams it may carry: streams that
//! nobody reads cannot use it up, so they never stop one that is read. What a tunnel can pin down in a receiver is
//! therefore `streams_per_tunnel * stream_window`, and in a sender two buffers of 64 KiB for each stream
//! ([`UNSENT_CHUNKS`](super::stream)). Nothing is pinned down for streams whose readers keep up.

use std::time::Duration;

use serde::Serialize;

/// The largest payload of a frame that we send or accept. With its header of 9 bytes it fills exactly four TLS
/// records of 16 KiB, which is what rustls takes at once: a frame is one write, and no record is a runt.
pub(super) const FRAME_PAYLOAD: usize = (64 << 10) - FRAME_HEADER;

/// Bytes in front of every frame (RFC 9113, 4.1).
const FRAME_HEADER: usize = 9;

/// All header fields of a request or an answer. Ours take a few hundred bytes; a gateway may add some.
pub(super) const HEADER_LIST: u32 = 16 << 10;

/// Settings of tunnels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TunnelSettings {
    /// Whether other agents of ours are spoken to in something leaner than HBONE ([`trunk`](super::trunk)).
    pub trunks: bool,
    /// Time for TCP, TLS and HTTP/2 to be set up, on either side. Whoever takes longer is not there, or does it on
    /// purpose.
    pub handshake_timeout: Duration,
    /// How long an endpoint is asked again at whose port of tunnels nothing listens, by the connection that is refused. A second: an
    /// agent takes milliseconds to steer a pod that joins, and clients of one that is gone should not wait for long.
    pub joining_time: Duration,
    /// A tunnel without streams is closed after this time. A minute: as long as a burst of requests is likely to
    /// come back.
    pub idle_timeout: Duration,
    /// A server waits this much longer for the client to close an idle tunnel first, so that no stream is opened in
    /// the moment of closing.
    pub idle_grace: Duration,
    /// A tunnel's peer is asked this often whether it is there. As ztunnel does.
    pub ping_interval: Duration,
    /// A peer that does not answer for this long is gone, and so are its streams.
    pub ping_timeout: Duration,
    /// Streams of one tunnel, on either side. As many as ztunnel opens.
    pub streams_per_tunnel: u32,
    /// What a stream may have on its way: 256 KiB in a millisecond, the round trip between zones, are 2 Gbit/s.
    pub stream_window: u32,
    /// Tunnels of one worker from one pod to one destination.
    pub tunnels_per_destination: usize,
    /// Tunnels of one worker that it has opened. Idle ones make room for new ones.
    pub tunnels: usize,
    /// Clients of one worker that may be in their handshake; others wait. It bounds the memory that strangers take, a
    /// few tens of KiB each, and must be large as they need not be in a hurry.
    pub handshakes: usize,
}

impl Default for TunnelSettings {
    fn default() -> Self {
        Self {
            trunks: true,
            handshake_timeout: Duration::from_secs(5),
            joining_time: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(60),
            idle_grace: Duration::from_secs(30),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(10),
            streams_per_tunnel: 100,
            stream_window: 256 << 10,
            tunnels_per_destination: 64,
            tunnels: 2048,
            handshakes: 512,
        }
    }
}

impl TunnelSettings {
    /// Whether tunnels can work with them.
    pub(in crate::proxy) fn are_usable(&self) -> bool {
        let times = [self.handshake_timeout, self.idle_timeout, self.ping_interval, self.ping_timeout];
        times.iter().all(|time| !time.is_zero())
            && self.streams_per_tunnel > 0
            && self.stream_window >= 16 << 10
            && self.tunnels_per_destination > 0
            && self.tunnels > 0
            && self.handshakes > 0
    }

    /// Streams of one tunnel, as a count.
    pub(super) fn streams(&self) -> usize {
        usize::try_from(self.streams_per_tunnel).unwrap_or(usize::MAX)
    }

    /// The window of a tunnel: enough for all of its streams, within what HTTP/2 allows.
    pub(super) fn connection_window(&self) -> u32 {
        const LARGEST: u32 = (1 << 31) - 1;
        self.streams_per_tunnel.saturating_mul(self.stream_window).min(LARGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_that_nobody_reads_leave_the_tunnel_room() {
        let settings = TunnelSettings::default();
        let all = u64::from(settings.streams_per_tunnel) * u64::from(settings.stream_window);
        assert!(u64::from(settings.connection_window()) >= all);
    }

    #[test]
    fn a_frame_fills_whole_records() {
        assert_eq!((FRAME_PAYLOAD + FRAME_HEADER) % (16 << 10), 0);
    }
}
