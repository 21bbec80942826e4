use std::net::SocketAddr;

use aya::maps::MapType;
use aya::programs::ProgramType;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, Socket, Type};

use super::*;
use crate::steering::host::namespace::AgentNamespace;
use crate::steering::host::testing::{AGENT, CAPTURE, in_namespace_async, shell};
use crate::steering::host::{HostSettings, HostState};
use crate::steering::{AttachMode, DeviceWatch, Steering, SteeringSettings};

/// On a thread of its own, which stands for a process: capabilities are a thread's.
#[test]
fn what_remains_is_enough_and_no_more() {
    in_namespace_async(async || {
        let bpffs = private_bpffs();
        let Privileged { loader, namespace } = restrict_thread_with_privileged().unwrap();

        for set in [CapSet::Effective, CapSet::Permitted, CapSet::Bounding] {
            assert_eq!(caps::read(None, set).unwrap(), NEEDED.into(), "{set:?}");
        }
        for set in [CapSet::Inheritable, CapSet::Ambient] {
            assert_eq!(caps::read(None, set).unwrap(), CapsHashSet::new(), "{set:?}");
        }
        assert!(nix::sys::prctl::get_no_new_privs().unwrap());
        assert!(unshare(CloneFlags::CLONE_NEWNET).is_err(), "CAP_SYS_ADMIN is gone");

        let of_namespace = namespace.run(|| caps::read(None, CapSet::Permitted).unwrap()).unwrap();
        assert_eq!(of_namespace, NEEDED.into());

        programs_load_only_on_the_loader(loader, bpffs.path());
        bpf_works();
        transparent_sockets_work();
        let directory = tempfile::tempdir().unwrap();
        let settings = HostSettings::new(CAPTURE, AGENT, directory.path());
        let installed = HostState::install(&settings).unwrap();
        let namespace = AgentNamespace::connect(namespace, &settings).await.unwrap();
        namespace.thread().run(transparent_sockets_work).unwrap();
        installed.remove().await.unwrap();
    });
}

/// Each by itself: with all four an agent comes up, without any of them it does not.
#[test]
fn none_of_them_can_be_left_out() {
    let all: Vec<_> = NEEDED_TO_LOAD.into_iter().chain([Capability::CAP_SYS_ADMIN]).collect();
    come_up_with(&all).unwrap();
    for missing in &all {
        let rest: Vec<_> = all.iter().copied().filter(|kept| kept != missing).collect();
        let error = come_up_with(&rest).expect_err(&format!("{missing} would not be needed"));
        // For who reads what the test prints: what it is needed for.
        println!("without {missing}: {error}");
    }
}

/// What an agent does at its start, and for each connection.
fn come_up_with(kept: &[Capability]) -> Result<(), String> {
    in_namespace_async(async || {
        let bpffs = private_bpffs();
        shell("ip link add pod type veth peer name eth0 && ip link set pod up && ip link set eth0 up");
        let directory = tempfile::tempdir().unwrap();
        restrict_thread(kept).unwrap();

        let host = HostSettings::new(CAPTURE, AGENT, directory.path());
        let thread = NamespaceThread::start().map_err(|error| error.to_string())?;
        // It would do in the place of CAP_PERFMON.
        let rest: Vec<_> = kept.iter().copied().filter(|kept| *kept != Capability::CAP_SYS_ADMIN).collect();
        restrict_thread(&rest).unwrap();
        let installed = HostState::install(&host).map_err(|error| error.to_string())?;
        let namespace = AgentNamespace::connect(thread, &host).await.map_err(|error| error.to_string())?;
        let steering =
            Steering::load_or_adopt(&steering_settings(bpffs.path())).map_err(|error| error.to_string())?;
        steering.deliver_to(&namespace).map_err(|error| error.to_string())?;
        // Devices are attached to, or named among those that are not.
        let _watch = DeviceWatch::start(steering.clone()).await.map_err(|error| error.to_string())?;
        if let Some(error) = steering.attachments().into_iter().find_map(|attachment| attachment.error) {
            return Err(error);
        }
        transparent_sockets_work();
        installed.remove().await.map_err(|error| error.to_string())
    })
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
    let settings = steering_settings(bpffs);
    assert!(Steering::load_or_adopt(&settings).is_err(), "CAP_PERFMON would not be needed");
    let load =
        move || (caps::read(None, CapSet::Permitted).unwrap(), Steering::load_or_adopt(&settings).map(drop));
    let (held, loaded) = loader.run(load).unwrap();
    assert_eq!(held, NEEDED_TO_LOAD.into());
    loaded.unwrap();
}

fn steering_settings(bpffs: &Path) -> SteeringSettings {
    SteeringSettings {
        directory: bpffs.join("agent"),
        mark_mask: 0x1040,
        capture_mark: 0x1000,
        agent_mark: 0x40,
        attach: AttachMode::Auto,
    }
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
