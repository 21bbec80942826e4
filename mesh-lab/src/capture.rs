//! Reads what passes a device of a lab, so that tests and the demo can say what is on the wire.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let lab = mesh_lab::Lab::open("shop")?;
//! use mesh_lab::{UPLINK, capture::Capture};
//!
//! let running = Capture::of(lab.node("node1")?.namespace(), UPLINK).start()?;
//! // ... traffic ...
//! let seen = running.stop()?;
//! assert!(!seen.contains(b"the secret"));
//! # Ok(())
//! # }
//! ```
//!
//! A capture is complete or an error: where packets were lost, nothing could be said about what was *not* seen.

mod packet;
mod pcap;
mod socket;
mod stream;
mod tls;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

pub use stream::Stream;

use crate::netns::Namespace;
use packet::{Headers, Segment};
use pcap::Writer;
use socket::PacketSocket;

/// How much is kept, unless somebody says otherwise: more than a test should send in plain sight.
const LIMIT: usize = 256 << 20;
/// How soon a capture notices that it shall stop.
const TURN: Duration = Duration::from_millis(5);
/// Larger than any packet, those included that the kernel has not cut into segments yet.
const LARGEST: usize = 256 * 1024;

/// Why there is no capture, or none that can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The device cannot be listened to.
    #[error("cannot capture on {device} (captures need root)")]
    Device {
        /// The device.
        device: String,
        /// What the system says.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write the capture to {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Packets were lost, so that nothing can be said about what was not seen.
    #[error(
        "the capture on {device} is not complete: {lost} packets were lost and {left_out} were beyond its limit; \
         select ports or hosts, or raise the limit"
    )]
    Incomplete {
        /// The device.
        device: String,
        /// Those the kernel had no room for.
        lost: u64,
        /// Those the capture had no room for.
        left_out: u64,
    },
}

/// What to capture. Everything on the device, both ways, until told otherwise.
#[derive(Debug)]
pub struct Capture<'a> {
    namespace: &'a Namespace,
    device: String,
    selection: Selection,
    snap_length: usize,
    limit: usize,
    file: Option<PathBuf>,
}

/// Empty sets select everything.
#[derive(Debug, Default)]
struct Selection {
    ports: BTreeSet<u16>,
    hosts: BTreeSet<IpAddr>,
}

impl<'a> Capture<'a> {
    /// Of a device: an uplink, a bridge, either end of a veth.
    #[must_use]
    pub fn of(namespace: &'a Namespace, device: &str) -> Self {
        Self {
            namespace,
            device: device.to_owned(),
            selection: Selection::default(),
            snap_length: LARGEST,
            limit: LIMIT,
            file: None,
        }
    }

    /// Only TCP from or to one of these ports.
    #[must_use]
    pub fn ports(mut self, ports: impl IntoIterator<Item = u16>) -> Self {
        self.selection.ports.extend(ports);
        self
    }

    /// Only packets from or to one of these addresses.
    #[must_use]
    pub fn hosts(mut self, hosts: impl IntoIterator<Item = IpAddr>) -> Self {
        self.selection.hosts.extend(hosts);
        self
    }

    /// Keeps only the beginning of every packet. What is cut off is not found.
    #[must_use]
    pub fn snap_length(mut self, bytes: usize) -> Self {
        self.snap_length = bytes;
        self
    }

    /// Keeps so many bytes; a capture that would need more is an error.
    #[must_use]
    pub fn limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }

    /// Also writes a file that Wireshark and tcpdump read.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Starts: what passes the device once this has returned is seen.
    ///
    /// # Errors
    /// When the device cannot be listened to, or the file cannot be made.
    pub fn start(self) -> Result<RunningCapture, CaptureError> {
        let Self { namespace, device, selection, snap_length, limit, file } = self;
        let failed = |source| CaptureError::Device { device: device.clone(), source };
        let socket =
            namespace.run(|| PacketSocket::open(&device, TURN)).and_then(|opened| opened).map_err(failed)?;
        let writer = file.map(Writer::create).transpose()?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut recorder = Recorder {
            socket,
            selection,
            snap_length,
            limit,
            writer,
            packets: Vec::new(),
            kept: 0,
            left_out: 0,
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || recorder.run().map(|()| recorder))
            .map_err(failed)?;
        Ok(RunningCapture { device, stop, thread: Some(thread) })
    }
}

/// A capture that goes on until it is stopped or dropped.
#[derive(Debug)]
pub struct RunningCapture {
    device: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Recorder, CaptureError>>>,
}

impl RunningCapture {
    /// Ends the capture. Everything that passed before is in it.
    ///
    /// # Errors
    /// When it is not complete, or the file could not be written.
    pub fn stop(mut self) -> Result<Captured, CaptureError> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        let recorder = match ended {
            Some(Ok(ended)) => ended?,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => unreachable!("the thread is taken only here and in drop"),
        };
        let device = self.device.clone();
        let lost = recorder
            .socket
            .lost()
            .map_err(|source| CaptureError::Device { device: device.clone(), source })?;
        if lost > 0 || recorder.left_out > 0 {
            return Err(CaptureError::Incomplete { device, lost, left_out: recorder.left_out });
        }
        Ok(Captured::new(recorder.packets))
    }
}

impl Drop for RunningCapture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Nobody wants to know how it went.
            let _ = thread.join();
        }
    }
}

/// Reads packets on a thread of its own.
#[derive(Debug)]
struct Recorder {
    socket: PacketSocket,
    selection: Selection,
    snap_length: usize,
    limit: usize,
    writer: Option<Writer>,
    packets: Vec<Box<[u8]>>,
    kept: usize,
    left_out: u64,
    stop: Arc<AtomicBool>,
}

impl Recorder {
    fn run(&mut self) -> Result<(), CaptureError> {
        let mut buffer = vec![0; LARGEST];
        loop {
            // Read before the packets: those that came before the stop are still taken.
            let stopping = self.stop.load(Ordering::Relaxed);
            match self.socket.receive(&mut buffer) {
                Some(length) => self.take(buffer.get(..length).unwrap_or_default())?,
                None if stopping => break,
                None => {}
            }
        }
        self.writer.as_mut().map_or(Ok(()), Writer::finish)
    }

    fn take(&mut self, packet: &[u8]) -> Result<(), CaptureError> {
        if !self.selection.takes(packet) {
            return Ok(());
        }
        let kept = packet.get(..self.snap_length).unwrap_or(packet);
        if let Some(writer) = &mut self.writer {
            writer.packet(SystemTime::now(), kept, packet.len())?;
        }
        self.kept += kept.len();
        if self.kept > self.limit {
            self.left_out += 1;
        } else {
            self.packets.push(kept.into());
        }
        Ok(())
    }
}

impl Selection {
    fn takes(&self, packet: &[u8]) -> bool {
        if self.ports.is_empty() && self.hosts.is_empty() {
            return true;
        }
        let Some(headers) = Headers::parse(packet) else { return false };
        let of_host = self.hosts.is_empty()
            || self.hosts.contains(&headers.source)
            || self.hosts.contains(&headers.destination);
        let of_port = self.ports.is_empty()
            || Segment::parse(&headers).is_some_and(|segment| {
                self.ports.contains(&segment.from.port()) || self.ports.contains(&segment.to.port())
            });
        of_host && of_port
    }
}

/// What passed the device.
#[derive(Debug)]
pub struct Captured {
    packets: Vec<Box<[u8]>>,
    streams: Vec<Stream>,
}

impl Captured {
    fn new(packets: Vec<Box<[u8]>>) -> Self {
        let segments = packets.iter().filter_map(|packet| Segment::parse(&Headers::parse(packet)?));
        let streams = stream::reassemble(segments);
        Self { packets, streams }
    }

    /// Packets that were seen.
    #[must_use]
    pub fn packets(&self) -> usize {
        self.packets.len()
    }

    /// Whether these bytes passed: in one packet of whatever kind, or in a TCP stream, over as many segments as it took.
    #[must_use]
    pub fn contains(&self, bytes: &[u8]) -> bool {
        self.packets.iter().any(|packet| find(packet, bytes))
            || self.streams.iter().any(|stream| stream.contains(bytes))
    }

    /// Every TCP stream, one per direction, in the order they began.
    #[must_use]
    pub fn streams(&self) -> &[Stream] {
        &self.streams
    }

    /// Whether there were TCP streams with bytes, and all of them were nothing but TLS 1.3 from their beginning to their end.
    #[must_use]
    pub fn is_tls13_only(&self) -> bool {
        let mut spoken = self.streams.iter().filter(|stream| !stream.is_empty()).peekable();
        spoken.peek().is_some() && spoken.all(Stream::is_tls13)
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && haystack.windows(needle.len()).any(|window| window == needle)
}
