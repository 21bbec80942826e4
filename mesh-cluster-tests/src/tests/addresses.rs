//! Addresses that go from one pod to another.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use mesh_lab::cluster::Node;
use serde_json::json;

use crate::world::{EFFECT, ENROLLED, Namespace, PORT, World};

/// Where the CNI plugin that hands out addresses keeps its books, on each node.
const BOOKS: &str = "/var/lib/cni/networks/mesh-lab";

pub(super) fn an_address_belongs_to_the_pod_that_has_it_now(world: &World) -> Result<()> {
    let namespace = world.namespace("reuse", &[ENROLLED])?;
    let outside = world.namespace("reuse-outside", &[])?;
    namespace.echo("web", 1, Some("node2"))?;
    namespace.wait_for_enrolment(&namespace.only_pod("web")?, true)?;
    let allow = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "friends" },
        "spec": {
            "selector": { "matchLabels": { "app": "web" } },
            "rules": [{ "from": [{ "source": {
                "principals": [format!("cluster.local/ns/{}/sa/friend", namespace.name())],
            } }] }],
        },
    });
    namespace.apply(allow)?;
    let target = ["http", &format!("http://web.{}", namespace.name())];

    namespace.client_of_its_own("friend", "node1")?;
    namespace.wait_for_enrolment("friend", true)?;
    namespace.wait_for_requests("the friend gets in", "friend", &target, |report| report.failed == 0)?;
    let addresses = namespace.pod_addresses("friend")?;

    hand_over(world, &namespace, "friend", &addresses)?;
    namespace.client_of_its_own("stranger", "node1")?;
    ensure!(namespace.pod_addresses("stranger")? == addresses, "the stranger has another address");
    namespace.wait_for_enrolment("stranger", true)?;
    let report = namespace.requests("stranger", &target, 5)?;
    ensure!(report.succeeded == 0, "a stranger passes for the friend whose address it has:\n{report}");

    // Another that is not in the mesh at all.
    hand_over(world, &namespace, "stranger", &addresses)?;
    outside.client("outsider", Some("node1"))?;
    ensure!(outside.pod_addresses("outsider")? == addresses, "the outsider has another address");
    outside.wait_for_enrolment("outsider", false)?;
    let report = outside.requests("outsider", &target, 5)?;
    ensure!(report.succeeded == 0, "an outsider passes for the friend whose address it has:\n{report}");

    // A server at an address that a client had: nobody is led to the one that is gone.
    hand_over(world, &outside, "outsider", &addresses)?;
    namespace.echo("late", 1, Some("node1"))?;
    let late = namespace.only_pod("late")?;
    ensure!(namespace.pod_addresses(&late)? == addresses, "the server has another address");
    namespace.wait_for_enrolment(&late, true)?;
    namespace.client("client", Some("node2"))?;
    namespace.wait_for_enrolment("client", true)?;
    for address in &addresses {
        let url = format!("http://{}", std::net::SocketAddr::new(*address, PORT));
        let what = format!("{url} answers");
        let report =
            namespace.wait_for_requests(&what, "client", &["http", &url], |report| report.failed == 0)?;
        ensure!(report.pods.contains_key(&late), "somebody else has answered:\n{report}");
    }
    Ok(())
}

/// Deletes a pod of node1, and sees to it that the next pod gets its addresses.
fn hand_over(world: &World, namespace: &Namespace<'_>, pod: &str, addresses: &[IpAddr]) -> Result<()> {
    namespace.delete("pod", pod)?;
    let node = world.cluster().node("node1")?;
    world.cluster().wait_until("the addresses are free", EFFECT, |_| {
        let taken = node.output(&["ls", BOOKS]).map_err(|error| error.to_string())?;
        let free = addresses.iter().all(|address| !taken.lines().any(|line| line == address.to_string()));
        if free { Ok(()) } else { Err(taken) }
    })?;
    addresses.iter().enumerate().try_for_each(|(range, address)| deal_next(node, range, *address))
}

/// The plugin goes on after the address that it gave last: that shall be the one before `address`.
fn deal_next(node: Node<'_>, range: usize, address: IpAddr) -> Result<()> {
    let before = match address {
        IpAddr::V4(address) => IpAddr::V4(address.to_bits().wrapping_sub(1).into()),
        IpAddr::V6(address) => IpAddr::V6(address.to_bits().wrapping_sub(1).into()),
    };
    let script = format!("printf %s {before} > {BOOKS}/last_reserved_ip.{range}");
    node.output(&["sh", "-c", &script])?;
    Ok(())
}
