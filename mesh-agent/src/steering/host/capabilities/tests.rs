use std::net::SocketAddr;

use aya::maps::MapType;
use aya::programs::ProgramType;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, Socket, Type};

use super::*;
use crate::steering::host::testing::in_namespace_async;
use crate::steering::host::{HostSettings, HostState, Mark};
use crate::steering::{AttachMode, Steering, SteeringSettings};

/// On a thread of its own, which stands for a process: capabilities are a thread's.
#[test]
fn what_remains_is_enough_and_no_more() {
    in_namespace_async(async || {
        let bpffs = private_bpffs();
        let loader = restrict_thread_with_loader().unwrap();

        for set in [CapSet::Effective, CapSet::Permitted, CapSet::Bounding] {
            assert_eq!(caps::read(None, set).unwrap(), NEEDED.into(), "{set:?}");
        }
        for set in [CapSet::Inheritable, CapSet::Ambient] {
            assert_eq!(caps::read(None, set).unwrap(), CapsHashSet::new(), "{set:?}");
        }
        assert!(nix::sys::prctl::get_no_new_privs().unwrap());
        assert!(unshare(CloneFlags::CLONE_NEWNET).is_err(), "CAP_SYS_ADMIN is gone");

        programs_load_only_on_the_loader(loader, bpffs.path());
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

/// A BPF file system in a mount namespace of the test's own.
fn private_bpffs() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(Some("bpf"), directory.path(), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
    directory
}

fn programs_load_only_on_the_loader(loader: Loader, bpffs: &Path) {
    let settings = SteeringSettings {
        directory: bpffs.join("agent"),
        mark_mask: 0x3000,
        capture_mark: 0x1000,
        agent_mark: 0x2000,
        attach: AttachMode::Auto,
    };
    assert!(Steering::load_or_adopt(&settings).is_err(), "CAP_PERFMON would not be needed");
    let load =
        move || (caps::read(None, CapSet::Permitted).unwrap(), Steering::load_or_adopt(&settings).map(drop));
    let (held, loaded) = loader.run(load).unwrap();
    assert_eq!(held, NEEDED_TO_LOAD.into());
    loaded.unwrap();
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
