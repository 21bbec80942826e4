//! Endpoints, agents and control servers come and go under load.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_lab::traffic::{Report, Traffic};

use crate::world::{PATIENCE, SERVICE_PORT, VIPS, World, eventually, who};

fn service() -> SocketAddr {
    SocketAddr::new(VIPS[0].parse::<IpAddr>().unwrap(), SERVICE_PORT)
}

/// Waits until this many more requests were answered.
fn go_on(traffic: &Traffic, more: u64) -> Report {
    let so_far = traffic.report().succeeded;
    traffic.wait_for(PATIENCE, |report| report.succeeded >= so_far + more).unwrap()
}

/// Answers by pod among the next requests.
fn next_answers(traffic: &Traffic, count: u64) -> std::collections::BTreeMap<String, u64> {
    let before = traffic.report().pods;
    let after = go_on(traffic, count).pods;
    after
        .into_iter()
        .map(|(pod, total)| {
            let answers = total - before.get(&pod).copied().unwrap_or(0);
            (pod, answers)
        })
        .filter(|(_, answers)| *answers > 0)
        .collect()
}

#[test]
fn endpoints_come_and_go_without_a_failed_request() {
    let world = World::up();
    let traffic = world.steady("client-r", service());
    for _ in 0..3 {
        go_on(&traffic, 30);
        world.apply_pod("web-b", false, &[]);
        eventually("only web-r answers", || {
            let answers = next_answers(&traffic, 20);
            (answers.keys().eq(["web-r"])).then_some(())
        });
        world.apply_pod("web-b", true, &[]);
        eventually("both answer", || (next_answers(&traffic, 20).len() == 2).then_some(()));
        world.mesh.withdraw("web-r.yaml").unwrap();
        eventually("only web-b answers", || (next_answers(&traffic, 20).keys().eq(["web-b"])).then_some(()));
        world.apply_pod("web-r", true, &[]);
        eventually("both answer again", || (next_answers(&traffic, 20).len() == 2).then_some(()));
    }
    let report = traffic.stop();
    assert_eq!(report.failed, 0, "{report}");
}

#[test]
fn a_dead_endpoint_costs_no_request() {
    let mut world = World::lab();
    world.apply_usual();
    // Listed and ready, but nothing listens there: the legacy pod's manifest claims the app's label and port.
    let silent = mesh_lab::Manifests::new().service(
        "shop",
        "half",
        &["10.96.0.99".parse().unwrap()],
        SERVICE_PORT,
        9999,
    );
    let text = silent.text().replace("selector: {app: half}", "selector: {app: web}");
    world.mesh.apply("half.yaml", &text).unwrap();
    world.echo("web-b", 9999);
    world.mesh.start().unwrap();
    let report =
        world.requests("client-r", SocketAddr::new("10.96.0.99".parse().unwrap(), SERVICE_PORT), 100);
    assert_eq!(report.failed, 0, "{report}");
    assert!(report.pods.keys().eq(["web-b"]), "{report}");
}

#[test]
fn the_control_server_is_killed_under_load() {
    let mut world = World::up();
    let traffic = world.steady("client-r", service());
    go_on(&traffic, 50);
    world.mesh.kill_control();
    go_on(&traffic, 200);
    // What changes while it is away arrives when it is back.
    world.apply_pod("web-b", false, &[]);
    world.mesh.start_control().unwrap();
    eventually("only web-r answers", || (next_answers(&traffic, 20).keys().eq(["web-r"])).then_some(()));
    let report = traffic.stop();
    assert_eq!(report.failed, 0, "{report}");
}

#[test]
fn an_agent_alone_serves_from_its_last_good_configuration() {
    let mut world = World::up();
    assert_eq!(world.requests("client-r", service(), 20).failed, 0);
    let cache = world.mesh.state_directory("routed").join("configuration");
    eventually("the configuration is on disk", || cache.is_file().then_some(()));
    world.mesh.kill_control();
    world.mesh.kill_agent("routed");
    world.mesh.start_agent("routed").unwrap();
    let report = world.requests("client-r", service(), 20);
    assert_eq!(report.failed, 0, "{report}");
}

#[test]
fn a_damaged_last_good_configuration_is_reported_and_replaced() {
    let mut world = World::up();
    let cache = world.mesh.state_directory("routed").join("configuration");
    eventually("the configuration is on disk", || cache.is_file().then_some(()));
    world.mesh.kill_agent("routed");
    let mut bytes = std::fs::read(&cache).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&cache, &bytes).unwrap();
    world.mesh.start_agent("routed").unwrap();
    let log = std::fs::read_to_string(world.mesh.agent_log("routed")).unwrap();
    assert!(log.contains("is damaged"), "{log}");
    assert_eq!(world.requests("client-r", service(), 20).failed, 0);
    eventually("a good file is there again", || {
        std::fs::read(&cache).is_ok_and(|now| now != bytes && !now.is_empty()).then_some(())
    });
}

/// With the agent dead, a pod that fails open goes direct and one that fails closed goes nowhere; a restarted agent
/// captures again.
#[test]
fn a_killed_agent_fails_open_or_closed_and_captures_again() {
    let mut world = World::lab();
    world.apply_usual();
    world.apply_pod("web-r", true, &[("mesh-agent/failure-mode", "closed")]);
    world.mesh.start().unwrap();
    let (open, closed) = (
        world.address("web-b", IpAddr::from([127, 0, 0, 1])),
        world.address("web-r", IpAddr::from([127, 0, 0, 1])),
    );
    world.ask("outside", open);
    // What is allowed for one client, and holds without an agent, is no verdict about another.
    world.ask("legacy-b", closed);

    for node in ["routed", "bridged"] {
        world.mesh.kill_agent(node);
    }
    let stream = world.connect("outside", open);
    assert_eq!(who(&stream).unwrap().source, stream.local_addr().unwrap(), "fail open goes direct");
    assert!(world.try_ask("outside", closed).is_err(), "fail closed refuses");
    assert!(world.try_ask("client-r", closed).is_err(), "fail closed refuses pods of its own node, too");

    for node in ["routed", "bridged"] {
        world.mesh.start_agent(node).unwrap();
    }
    let stream = world.connect("outside", closed);
    let own = stream.local_addr().unwrap();
    assert_eq!(who(&stream).unwrap().pod, "web-r");
    drop(stream);
    world.logged("routed", "inbound", own);
}

/// SIGTERM: connections that are open end by themselves or at the end of the drain time, not before.
#[test]
fn an_agent_that_is_told_to_stop_drains() {
    let mut world = World::lab();
    world.apply_usual();
    // What passes in the kernel goes direct as well.
    world.mesh = world.mesh.agent_arguments(["--drain-time", "30s", "--in-kernel-passage", "off"]);
    world.mesh.start().unwrap();
    let stream = world.connect("client-r", service());
    who(&stream).unwrap();
    world.mesh.agent("routed").unwrap().signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    // New connections go direct from now on: a server outside sees the client's own port.
    let direct = world.address("outside", service().ip());
    eventually("new connections are not steered any more", || {
        let stream = world.connect("client-r", direct);
        let own = stream.local_addr().unwrap();
        who(&stream).ok().filter(|answer| answer.source == own).map(drop)
    });
    who(&stream).expect("an open connection goes on");
    drop(stream);
    world.mesh.stop_agent("routed", Duration::from_secs(10)).unwrap();
}
