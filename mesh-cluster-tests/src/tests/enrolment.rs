//! Into the mesh and out of it, by a label.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_lab::cluster::SteadyLoad;

use crate::world::{ENROLLED, World, ensure_nothing_failed};

const CONNECTIONS: u32 = 4;

pub(super) fn connections_live_on_when_pods_are_enrolled_and_leave(world: &World) -> Result<()> {
    let namespace = world.namespace("enrol", &[])?;
    namespace.echo("web", 1, Some("node2"))?;
    let url = format!("http://web.{}", namespace.name());
    let old = SteadyLoad::http(namespace.name(), "old", &url).connections(CONNECTIONS).from_node("node1");
    let old = world.cluster().start_load(&old)?;
    // Joining and leaving take a moment each, in which connections are opened.
    let fresh = SteadyLoad::http(namespace.name(), "fresh", &url)
        .new_connection_per_request()
        .rate(50)
        .from_node("node1");
    let fresh = world.cluster().start_load(&fresh)?;
    let server = namespace.only_pod("web")?;
    ensure!(!namespace.is_enrolled(&server)?, "nobody has enrolled the namespace yet");

    namespace.label(ENROLLED)?;
    for pod in ["old", "fresh", &server] {
        namespace.wait_for_enrolment(pod, true)?;
    }
    for load in [&old, &fresh] {
        load.wait_for_more(100, Duration::from_secs(30))?;
    }
    // Connections that are opened now go through the mesh, and outlive its end as well.
    let new = SteadyLoad::http(namespace.name(), "new", &url).connections(CONNECTIONS).from_node("node1");
    let new = world.cluster().start_load(&new)?;
    namespace.wait_for_enrolment("new", true)?;
    new.wait_for_more(100, Duration::from_secs(30))?;

    namespace.label("istio.io/dataplane-mode-")?;
    for pod in ["old", "new", "fresh", &server] {
        namespace.wait_for_enrolment(pod, false)?;
    }
    for load in [&old, &new, &fresh] {
        load.wait_for_more(100, Duration::from_secs(30))?;
    }
    for load in [old, new] {
        let report = load.stop()?;
        ensure_nothing_failed(&report)?;
        ensure!(report.connections == u64::from(CONNECTIONS), "connections were opened anew:\n{report}");
    }
    ensure_nothing_failed(&fresh.stop()?)
}
