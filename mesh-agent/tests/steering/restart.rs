//! The next agent takes over; the last one leaves nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use mesh_agent::pods::{FailureMode, LocalPod};
use mesh_agent::steering::{self, AttachMode};

use crate::node::{FAMILIES, Family, Node, Wiring, until};

fn the_next_agent_takes_over(attach: AttachMode) {
    let node = Node::new(Wiring::Routed);
    let first = node.agent_with(attach);
    let closed = |name: &str| LocalPod { failure_mode: FailureMode::Closed, ..node.pod(name) };
    let (a, b) = (closed("a"), closed("b"));
    node.enrol(&first, &a);
    node.enrol(&first, &b);
    let programs = |agent: &crate::node::Agent| -> Vec<u32> {
        agent.steering.programs().unwrap().iter().map(|program| program.id).collect()
    };
    let former = programs(&first);

    // Connections all the while: not one may go past the agents, of which there is one at a time.
    let done = AtomicBool::new(false);
    let (second, calls) = std::thread::scope(|scope| {
        let calling = scope.spawn(|| {
            let mut calls = 0;
            while !done.load(Ordering::Relaxed) {
                for (from, to) in [("a", "outside"), ("outside", "b")] {
                    if let Ok(connection) = node.call(from, to, Family::V4) {
                        assert_eq!(connection.who, "agent");
                        calls += 1;
                    }
                }
            }
            calls
        });
        drop(first);
        assert!(node.call_briefly("b", "outside", Family::V6).is_err());
        let second = node.agent_with(attach);
        for _ in 0..3 {
            assert_eq!(node.call("b", "outside", Family::V6).unwrap().who, "agent");
        }
        done.store(true, Ordering::Relaxed);
        (second, calling.join().unwrap())
    });
    assert!(calls > 0);
    assert!(programs(&second).iter().all(|program| !former.contains(program)), "the programs are new");
    assert_eq!(node.program_ids("a"), [programs(&second)[0]], "and no others are attached");

    // The pod source speaks: `b` is gone.
    second.steering.reconcile([&a]).unwrap();
    for family in FAMILIES {
        assert_eq!(node.call("outside", "a", family).unwrap().who, "agent");
        assert_eq!(node.call("outside", "b", family).unwrap().who, "b");
    }
}

#[test]
fn the_next_agent_takes_over_and_nothing_goes_past() {
    the_next_agent_takes_over(AttachMode::Auto);
}

#[test]
fn the_next_agent_takes_over_without_tcx() {
    the_next_agent_takes_over(AttachMode::Clsact);
}

#[test]
fn a_node_keeps_its_state_while_no_agent_is_there() {
    let node = Node::new(Wiring::Bridge);
    let first = node.agent();
    node.enrol(&first, &node.pod("a"));
    drop(first);
    assert_eq!(node.call("a", "outside", Family::V4).unwrap().who, "outside", "fails open");
    let second = node.agent();
    assert_eq!(
        node.call("a", "outside", Family::V4).unwrap().who,
        "agent",
        "captured before any pod is named"
    );
    assert!(second.count("pass_fail_open") > 0, "counters go on");
}

fn detach_leaves_nothing(attach: AttachMode) {
    let node = Node::new(Wiring::Routed);
    let agent = node.agent_with(attach);
    node.enrol(&agent, &node.pod("a"));
    let directory = node.pin_directory();
    assert!(directory.exists());
    drop(agent);
    let removed = node.inside(|| steering::detach(&directory)).unwrap();
    assert_eq!(removed, std::slice::from_ref(&directory));
    assert!(!directory.exists());
    assert_eq!(node.call("a", "outside", Family::V4).unwrap().who, "outside");
    // The kernel lets a link's program go some time after its last handle.
    until("its programs are gone", || node.program_ids("a").is_empty());
    assert!(!node.shell("tc qdisc show").contains("clsact"));
    assert!(node.inside(|| steering::detach(&directory)).unwrap().is_empty(), "nothing is left to remove");
}

#[test]
fn detach_leaves_nothing_behind() {
    detach_leaves_nothing(AttachMode::Auto);
}

#[test]
fn detach_leaves_nothing_behind_without_tcx() {
    detach_leaves_nothing(AttachMode::Clsact);
}

#[test]
fn a_directory_on_another_file_system_is_refused() {
    let elsewhere = tempfile::tempdir().unwrap();
    let settings = steering::SteeringSettings {
        directory: elsewhere.path().join("agent"),
        mark_mask: 0x1040,
        capture_mark: 0x1000,
        agent_mark: 0x40,
        attach: AttachMode::Auto,
    };
    let error = steering::Steering::load_or_adopt(&settings).err().unwrap().to_string();
    assert!(error.contains("mount -t bpf"), "{error}");
}
