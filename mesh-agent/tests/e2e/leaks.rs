//! Ten thousand connections leave nothing behind.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use crate::world::{SERVICE_PORT, VIPS, World, eventually, proc};

/// Memory of a process in KiB.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(proc(pid, "status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(proc(pid, "fd")).unwrap().count()
}

#[test]
fn ten_thousand_short_connections_leave_nothing_behind() {
    let mut world = World::up();
    let service = SocketAddr::new(VIPS[0].parse::<IpAddr>().unwrap(), SERVICE_PORT);
    let pids = ["routed", "bridged"].map(|node| world.mesh.agent(node).unwrap().pid());
    // What is made once, at first use, is there after the first thousand.
    assert_eq!(world.requests("client-r", service, 1_000).failed, 0);
    let settled = |pid: u32| {
        eventually("all connections have ended", || {
            let now = descriptors(pid);
            (now < 150).then_some(now)
        })
    };
    let descriptors_before = pids.map(settled);
    let entries = |world: &World| {
        ["routed", "bridged"].map(|node| world.mesh.meshctl(node, &["bpf"]).unwrap()["maps"].clone())
    };
    let entries_before = entries(&world);
    assert!(entries_before[0].as_object().is_some_and(|maps| !maps.is_empty()), "{entries_before:?}");
    let memory_before = pids.map(resident);

    let report = world.requests("client-r", service, 10_000);
    assert_eq!((report.failed, report.succeeded), (0, 10_000), "{report}");

    for (pid, before) in pids.into_iter().zip(descriptors_before) {
        eventually("descriptors are back to where they were", || (descriptors(pid) <= before).then_some(()));
    }
    for (pid, before) in pids.into_iter().zip(memory_before) {
        let after = resident(pid);
        assert!(after < before + 8 * 1024, "the agent grew from {before} to {after} KiB");
    }
    assert_eq!(entries(&world), entries_before, "kernel maps have other entries than before");
    for node in ["routed", "bridged"] {
        let connections = world.mesh.meshctl(node, &["connections"]).unwrap();
        let open = connections.as_array().or_else(|| connections["connections"].as_array()).unwrap();
        assert!(open.is_empty(), "{connections}");
    }
}
