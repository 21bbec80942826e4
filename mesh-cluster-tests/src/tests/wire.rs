//! What is on the wire between the nodes.

use anyhow::{Result, ensure};
use mesh_lab::Captured;

use crate::world::{ENROLLED, Namespace, World, ensure_nothing_failed};

const SECRET: &str = "the-word-that-nobody-must-read";

pub(super) fn enrolled_pods_speak_in_tls_between_nodes_only(world: &World) -> Result<()> {
    let namespace = world.namespace("wire", &[])?;
    namespace.echo("web", 1, Some("node2"))?;
    namespace.client("client", Some("node1"))?;
    let before = watched(world, &namespace)?;
    ensure!(before.contains(SECRET.as_bytes()), "the capture does not see what is sent in plain text");

    namespace.label(ENROLLED)?;
    let server = namespace.only_pod("web")?;
    for pod in ["client", &server] {
        namespace.wait_for_enrolment(pod, true)?;
    }
    let after = watched(world, &namespace)?;
    ensure!(!after.contains(SECRET.as_bytes()), "plain text between enrolled pods of two nodes");
    ensure!(after.is_tls13_only(), "something other than TLS 1.3 between enrolled pods of two nodes");
    Ok(())
}

/// What passes the client's uplink, from or to the server's addresses, while the client sends requests with the secret in it, over
/// both families.
fn watched(world: &World, namespace: &Namespace<'_>) -> Result<Captured> {
    let addresses = namespace.pod_addresses(&namespace.only_pod("web")?)?;
    let capture = world.cluster().node("node1")?.capture().hosts(addresses.clone()).start()?;
    for address in addresses {
        let address = std::net::SocketAddr::new(address, crate::world::PORT);
        let url = format!("http://{address}/{SECRET}");
        ensure_nothing_failed(&namespace.requests("client", &["http", &url], 5)?)?;
    }
    Ok(capture.stop()?)
}
