//! A packet socket on one device (packet(7)).

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Room for what comes while the reader does not run: it shares the machine with what it watches.
const BUFFER: usize = 64 << 20;

/// Sees every packet of a device, both ways, from its IP header on.
#[derive(Debug)]
pub(super) struct PacketSocket {
    socket: Socket,
}

impl PacketSocket {
    /// Listens on a device of the calling thread's namespace; waits for a packet for as long as `patience`.
    pub(super) fn open(device: &str, patience: Duration) -> io::Result<Self> {
        let index = if_nametoindex(device)?;
        // No protocol yet: until it is bound it would see all devices.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
        setsockopt(&socket, RcvBufForce, &BUFFER)?;
        socket.set_read_timeout(Some(patience))?;
        socket.bind(&every_packet_of(index)?)?;
        Ok(Self { socket })
    }

    /// The length of the next packet, if there is one.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            // recv(2) takes what fits of the packet.
            match io::Read::read(&mut &self.socket, buffer) {
                Ok(length) => return Some(length),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The time is over, or the device has gone: there is nothing more to be seen.
                Err(_) => return None,
            }
        }
    }

    /// How many packets the kernel had no room for.
    pub(super) fn lost(&self) -> io::Result<u64> {
        let mut counts = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = libc::socklen_t::try_from(size_of_val(&counts)).map_err(io::Error::other)?;
        // SAFETY: the kernel writes at most `length` bytes to `counts`, which is that long, made of integers, and outlives the call.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut counts).cast(),
                &raw mut length,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(counts.tp_drops.into())
    }
}

/// The address that stands for a device and every protocol.
fn every_packet_of(index: u32) -> io::Result<SockAddr> {
    let index = i32::try_from(index).map_err(io::Error::other)?;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    // SAFETY: a `sockaddr_ll` fits into the storage that is handed in, which is zeroed and aligned for every kind of address, and
    // `length` is its length.
    let (_, address) = unsafe {
        SockAddr::try_init(|storage, storage_length| {
            *storage_length = length;
            let address = storage.cast::<libc::sockaddr_ll>();
            (*address).sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
            (*address).sll_protocol = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?.to_be();
            (*address).sll_ifindex = index;
            Ok(())
        })?
    };
    Ok(address)
}
