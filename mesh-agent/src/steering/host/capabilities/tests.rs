use std::net::SocketAddr;

use aya::maps::MapType;
use aya::programs::ProgramType;
use socket2::{Domain, Protocol, Socket, Type};

use super::*;
use crate::steering::host::testing::in_namespace_async;
use crate::steering::host::{HostSettings, HostState, Mark};

/// On a thread of its own, which stands for a process: capabilities are a thread's.
#[test]
fn what_remains_is_enough_and_no_more() {
    in_namespace_async(async || {
        let loader = restrict_thread_with_loader().unwrap();

        for set in [CapSet::Effective, CapSet::Permitted, CapSet::Bounding] {
            assert_eq!(caps::read(None, set).unwrap(), NEEDED.into(), "{set:?}");
        }
        for set in [CapSet::Inheritable, CapSet::Ambient] {
            assert_eq!(caps::read(None, set).unwrap(), CapsHashSet::new(), "{set:?}");
        }
        assert!(nix::sys::prctl::get_no_new_privs().unwrap());
        assert!(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err(), "CAP_SYS_ADMIN is gone");

        let on_loader = loader.run(|| (caps::read(None, CapSet::Permitted).unwrap(), bpf_works())).unwrap();
        assert_eq!(on_loader.0, NEEDED_TO_LOAD.into());
        bpf_works();
        transparent_sockets_work();
        let directory = tempfile::tempdir().unwrap();
        let settings = HostSettings::new(Mark { value: 0x1000, mask: 0x3000 }, 15_109, directory.path());
        HostState::install(&settings).await.unwrap().remove().await.unwrap();
    });
}

#[test]
fn a_process_with_threads_is_refused() {
    let error = restrict_process().unwrap_err().to_string();
    assert!(error.contains("other threads"), "{error}");
}

/// A map, and a program of each kind that steering loads.
fn bpf_works() {
    for kind in [ProgramType::SchedClassifier, ProgramType::SkLookup] {
        assert!(aya::sys::is_program_supported(kind).unwrap(), "{kind:?}");
    }
    for kind in [MapType::Hash, MapType::LpmTrie, MapType::SockMap, MapType::PerCpuArray] {
        assert!(aya::sys::is_map_supported(kind).unwrap(), "{kind:?}");
    }
}

/// Sockets as the proxy makes them: marked, and bound to an address that is not the node's.
fn transparent_sockets_work() {
    for address in ["192.0.2.7:0", "[2001:db8::7]:0"] {
        let address: SocketAddr = address.parse().unwrap();
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap();
        // The option of IPv4 sets the same flag on an IPv6 socket.
        socket.set_ip_transparent_v4(true).unwrap();
        socket.set_mark(0x1000).unwrap();
        socket.bind(&address.into()).unwrap();
    }
}
