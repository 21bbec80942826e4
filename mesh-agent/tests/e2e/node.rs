//! What an agent does to its node, and undoes.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use aya::programs::{SchedClassifier, TcAttachType};

use crate::world::World;

/// Everything on a node that an agent changes, in one text that can be compared.
fn traces(world: &World, node: &str) -> String {
    let machine = world.machine(node);
    let mut text = String::new();
    for command in [
        ["ip", "-4", "rule"].as_slice(),
        &["ip", "-6", "rule"],
        &["ip", "-4", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "-o", "link"],
    ] {
        let output = machine.program(command[0]).unwrap().args(&command[1..]).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", output.stderr);
        text.push_str(&format!("== {command:?}\n{}", without_what_changes(&output.stdout)));
    }
    let sysctls = machine
        .program("sysctl")
        .unwrap()
        .arg("-n")
        .args([
            "net.ipv4.tcp_early_demux",
            "net.ipv4.ip_local_reserved_ports",
            "net.ipv4.tcp_tw_reuse",
            "net.ipv4.ip_local_port_range",
            "net.ipv4.ip_forward",
            "net.ipv4.conf.all.rp_filter",
            "net.ipv4.conf.lo.rp_filter",
            "net.ipv4.conf.lo.accept_local",
            "net.ipv4.conf.all.src_valid_mark",
            "net.ipv6.conf.all.forwarding",
        ])
        .output()
        .unwrap();
    assert!(sysctls.status.success(), "{}", sysctls.stderr);
    text.push_str(&sysctls.stdout);
    text.push_str(&format!("== tcx\n{}\n", machine.namespace().run(tcx_programs).unwrap()));
    let pins: BTreeSet<String> = files_below(&world.mesh.bpffs());
    text.push_str(&format!("== pins\n{pins:#?}\n"));
    text
}

/// How many programs are attached to each device of the calling thread's namespace.
fn tcx_programs() -> String {
    let devices = nix::net::if_::if_nameindex().unwrap();
    let hooks = [TcAttachType::Ingress, TcAttachType::Egress];
    let count = |device: &str| hooks.map(|hook| SchedClassifier::query_tcx(device, hook).unwrap().1.len());
    let names = devices.iter().map(|device| device.name().to_str().unwrap());
    names.map(|name| format!("{name}: {:?}\n", count(name))).collect()
}

/// Takes out what changes by itself: ages of routes, and link-local addresses, which the kernel adds when it likes.
fn without_what_changes(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.contains("fe80:"));
    let lines = lines.map(|line| line.split(" expires ").next().unwrap_or(line).trim_end());
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

fn files_below(directory: &std::path::Path) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        all.insert(entry.path().display().to_string());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(files_below(&entry.path()));
        }
    }
    all
}

/// Compares line by line, so that a failure shows what is different.
fn assert_same(now: &str, before: &str) {
    let missing: Vec<_> = before.lines().filter(|line| !now.lines().any(|other| other == *line)).collect();
    let added: Vec<_> = now.lines().filter(|line| !before.lines().any(|other| other == *line)).collect();
    assert!(missing.is_empty() && added.is_empty(), "missing: {missing:#?}\nadded: {added:#?}");
}

fn detach(world: &World, node: &str) -> mesh_lab::Output {
    world
        .machine(node)
        .program(world.mesh.programs().path("mesh-agent"))
        .unwrap()
        .arg("detach")
        .args(["--node-name", node])
        .arg("--bpffs")
        .arg(world.mesh.bpffs())
        .arg("--state-dir")
        .arg(world.mesh.state_directory(node))
        .arg("--run-dir")
        .arg(world.mesh.run_directory(node))
        .output()
        .unwrap()
}

#[test]
fn an_agent_that_stops_leaves_nothing() {
    let mut world = World::lab();
    world.apply_usual();
    let before = ["routed", "bridged"].map(|node| traces(&world, node));
    world.mesh.start().unwrap();
    assert_ne!(traces(&world, "routed"), before[0], "the comparison sees what an agent does");
    for node in ["routed", "bridged"] {
        world.mesh.stop_agent(node, Duration::from_secs(30)).unwrap();
    }
    for (node, before) in ["routed", "bridged"].into_iter().zip(before) {
        assert_same(&traces(&world, node), &before);
    }
}

#[test]
fn detach_removes_every_trace_of_a_crashed_agent() {
    let mut world = World::lab();
    world.apply_usual();
    let before = ["routed", "bridged"].map(|node| traces(&world, node));
    world.mesh.start().unwrap();
    let refused = detach(&world, "routed");
    assert!(!refused.status.success(), "a running agent is not detached");
    assert!(refused.stderr.contains("run"), "{}", refused.stderr);

    for node in ["routed", "bridged"] {
        world.mesh.kill_agent(node);
        assert_ne!(traces(&world, node), before[0]);
        let output = detach(&world, node);
        assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    }
    for (node, before) in ["routed", "bridged"].into_iter().zip(before) {
        assert_same(&traces(&world, node), &before);
        // Nothing to do is no error.
        assert!(detach(&world, node).status.success());
    }
}

#[test]
fn a_second_agent_on_a_node_is_refused() {
    let world = World::up();
    let mut second = world.mesh.agent_process("routed").unwrap();
    let status = second.wait(Duration::from_secs(20)).unwrap();
    assert!(!status.success());
    let said = second.log();
    assert!(said.contains("already") || said.contains("holds"), "{said}");
    // The first one goes on.
    assert_eq!(world.ask("client-r", world.address("web-r", [127, 0, 0, 1].into())).pod, "web-r");
}

#[test]
fn wrong_settings_are_refused_before_anything_is_touched() {
    let world = World::lab();
    let before = traces(&world, "routed");
    let output = world
        .machine("routed")
        .program(world.mesh.programs().path("mesh-agent"))
        .unwrap()
        .args(["run", "--node-name", "routed", "--control-server", "nonsense", "--agent-mark", "0x1000"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(
        output.stderr.contains("nonsense") && output.stderr.contains("--agent-mark"),
        "{}",
        output.stderr
    );
    assert_same(&traces(&world, "routed"), &before);
}
