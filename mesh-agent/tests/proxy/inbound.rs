//! Connections to a local pod, which sits in a network namespace of its own.

use std::sync::mpsc;
use std::thread;

use mesh_agent::telemetry::{Direction, ResponseFlag};
use nix::unistd::gettid;

use super::mesh::*;

/// Runs a server that names its client, on one port of each family, in a namespace behind a veth pair.
fn pod_behind_a_veth(ports: [u16; 2]) -> mpsc::Sender<()> {
    let (ready, is_ready) = mpsc::channel();
    let (stop, stopped) = mpsc::channel::<()>();
    let (wired, is_wired) = mpsc::channel::<()>();
    thread::spawn(move || {
        in_namespace(move || {
            ready.send(gettid()).unwrap();
            is_wired.recv().unwrap();
            for command in [
                "link set eth0 up",
                "addr add 10.1.0.2/32 dev eth0",
                "route add default dev eth0",
                "-6 addr add fd00::2/128 dev eth0 nodad",
                "-6 addr add fe80::2/64 dev eth0 nodad",
                "-6 route add default via fe80::1 dev eth0",
            ] {
                ip(command);
            }
            for (at, port) in [("10.1.0.2", ports[0]), ("fd00::2", ports[1])] {
                Server::start_on(at, port, |mut stream, client| {
                    use std::io::Write;
                    write!(stream, "pod {}", client.ip()).unwrap();
                });
            }
            ready.send(gettid()).unwrap();
            let _ = stopped.recv();
        });
    });
    let pod = is_ready.recv().unwrap();
    ip(&format!("link add veth0 type veth peer name eth0 netns {pod}"));
    ip("link set veth0 up");
    ip("-6 addr add fe80::1/64 dev veth0 nodad");
    wired.send(()).unwrap();
    is_ready.recv().unwrap();
    stop
}

#[test]
fn a_pod_sees_its_clients_own_address() {
    on_a_node(|| {
        let mut mesh = Mesh::start(settings());
        let _pod = pod_behind_a_veth([mesh.port("10.1.0.2"), mesh.port("fd00::2")]);
        // The pod is not local to the node but behind its device.
        for command in [
            "rule add pref 0 fwmark 0x77 lookup 100",
            "-6 rule add pref 0 fwmark 0x77 lookup 100",
            "route add 10.1.0.2/32 dev veth0 table 50",
            "-6 route add fd00::2/128 dev veth0 table 50",
        ] {
            ip(command);
        }
        for family in ["-4", "-6"] {
            // Before the table of local addresses: all of 10/8 and fd00::/16 is in there.
            ip(&format!("{family} rule add pref 1 from all lookup 50"));
            ip(&format!("{family} rule add pref 2 from all lookup local"));
            ip(&format!("{family} rule del pref 0 from all lookup local"));
        }
        for name in ["all", "veth0"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "0").unwrap();
        }
        mesh.add_workload("remote", &["10.2.0.7", "fd00:2::7"], "n2", &[]);
        mesh.add_pod("pod", &["10.1.0.2", "fd00::2"], &[]);
        for (client, pod) in [("10.2.0.7", "10.1.0.2"), ("fd00:2::7", "fd00::2")] {
            let answer = read_all(mesh.connect(client, pod)).unwrap();
            assert_eq!(answer, format!("pod {client}"));
            let told = mesh.recorder.end();
            assert_eq!((told.direction, told.flag), (Direction::Inbound, ResponseFlag::None));
            assert_eq!(told.source.as_deref(), Some("remote"));
            assert_eq!(told.destination.unwrap().1.as_deref(), Some("pod"));
            mesh.recorder.closed.lock().unwrap().clear();
        }
    });
}
