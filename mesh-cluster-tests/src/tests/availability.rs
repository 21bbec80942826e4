//! What may end, restart or be away without costing a request.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_lab::cluster::{Part, PodLoad, SteadyLoad};
use serde_json::json;

use crate::world::{ENROLLED, Namespace, World, ensure_nothing_failed, items};

/// How long a load may take to show that all is well again.
const ALL_WELL: Duration = Duration::from_secs(60);

pub(super) fn a_rolling_update_costs_no_request(world: &World) -> Result<()> {
    under_load(world, "rolling", 3, |namespace, _| {
        world.cluster().kubectl(["rollout", "restart", "deployment/web", "--namespace", namespace.name()])?;
        Ok(world.cluster().wait_for_rollout(namespace.name(), "deployment/web")?)
    })
}

pub(super) fn scaling_up_and_down_costs_no_request(world: &World) -> Result<()> {
    under_load(world, "scaling", 1, |namespace, loads| {
        for replicas in ["4", "1"] {
            let replicas = format!("--replicas={replicas}");
            world.cluster().kubectl([
                "scale",
                "deployment/web",
                "--namespace",
                namespace.name(),
                &replicas,
            ])?;
            world.cluster().wait_for_rollout(namespace.name(), "deployment/web")?;
            for load in loads {
                load.wait_for_more(100, ALL_WELL)?;
            }
        }
        world.cluster().wait_until("the last pods are gone", ALL_WELL, |_| match namespace.pods("web") {
            Ok(pods) if pods.len() == 1 => Ok(()),
            Ok(pods) => Err(pods.join(" ")),
            Err(error) => Err(error.to_string()),
        })?;
        Ok(())
    })
}

pub(super) fn draining_a_node_costs_no_request(world: &World) -> Result<()> {
    under_load(world, "drain", 2, |namespace, _| {
        let budget = json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": { "name": "web" },
            "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "web" } } },
        });
        namespace.apply(budget)?;
        // The load itself, and the cluster's only DNS server, would be missed.
        let these = "--pod-selector=app=web";
        for node in ["node1", "node2"] {
            let drained =
                world.cluster().kubectl(["drain", node, "--ignore-daemonsets", these, "--timeout=120s"]);
            world.cluster().kubectl(["uncordon", node])?;
            drained?;
            world.cluster().wait_for_rollout(namespace.name(), "deployment/web")?;
        }
        Ok(())
    })
}

pub(super) fn the_end_of_control_servers_costs_no_request(world: &World) -> Result<()> {
    under_load(world, "control", 2, |namespace, _| {
        let system = world.chart().namespace();
        let selector = "--selector=app.kubernetes.io/name=mesh-control";
        let list = world.cluster().get(&["pods", "--namespace", system, selector])?;
        let pods: Vec<&str> =
            items(&list).filter_map(|pod| pod.pointer("/metadata/name")?.as_str()).collect();
        ensure!(!pods.is_empty(), "no mesh-control runs");
        for pod in pods {
            world.cluster().kubectl(["delete", "pod", pod, "--namespace", system, "--now"])?;
            world.cluster().wait_for_rollout(system, "deployment/mesh-control")?;
        }
        // What is new is still told.
        namespace.client("late", None)?;
        namespace.wait_for_enrolment("late", true)
    })
}

pub(super) fn a_minute_without_the_api_server_costs_no_request(world: &World) -> Result<()> {
    const AWAY: Duration = Duration::from_secs(60);
    let lost = under_load(world, "api", 2, |namespace, _| {
        let api_server = world.cluster().api_server()?;
        // Where these have to hold a lease they end without an API server, and are started again.
        let holders = ["kube-controller-manager", "kube-scheduler"].map(|name| world.cluster().part(name));
        let holders = holders.into_iter().collect::<Result<Vec<_>, _>>()?;
        holders.iter().try_for_each(Part::stop)?;
        // One that is asked to end takes its address out of the service `kubernetes` first, and kube-proxies, which have no API
        // either, are late to put it back.
        api_server.kill()?;
        let stopped = Instant::now();
        // The minute is what is tested: longer than any lease, poll or backoff of those who need the API server.
        thread::sleep(AWAY.saturating_sub(stopped.elapsed()));
        api_server.start()?;
        holders.iter().try_for_each(Part::start)?;
        world.cluster().wait_until("the API works again", ALL_WELL, |_| {
            namespace.label("noticed=yes").map_err(|error| format!("{error:#}"))
        })?;
        // Kubelets and kube-proxies wait for up to a minute before they ask it again, the cluster's DNS for up to two. Those
        // that begin anew do not, and tests that follow need them.
        for node in world.cluster().nodes() {
            for part in ["kube-proxy", "kubelet"] {
                let part = world.cluster().part(&format!("{part}-{}", node.name()))?;
                part.stop()?;
                part.start()?;
            }
        }
        namespace.client("late", None)?;
        namespace.wait_for_enrolment("late", true)
    });
    world.cluster().kubectl(["rollout", "restart", "deployment/coredns", "--namespace=kube-system"])?;
    world.cluster().wait_for_rollout("kube-system", "deployment/coredns")?;
    lost
}

pub(super) fn the_end_of_an_agent_costs_no_request(world: &World) -> Result<()> {
    under_load(world, "agent", 2, |_, loads| {
        for node in ["node1", "node2"] {
            let agent = world.agent(node)?;
            world.cluster().kubectl(["delete", "pod", &agent, "--namespace", world.chart().namespace()])?;
            world.cluster().wait_for_rollout(world.chart().namespace(), "daemonset/mesh-agent")?;
            for load in loads {
                load.wait_for_more(100, ALL_WELL)?;
            }
        }
        Ok(())
    })
}

/// Does something while two loads call a service: one over connections that it keeps, one over a new connection for each request.
/// None of their requests may fail. They name the service by its addresses: what becomes of its name is not the mesh's doing.
fn under_load(
    world: &World,
    name: &str,
    replicas: u32,
    disturb: impl FnOnce(&Namespace<'_>, &[PodLoad<'_>]) -> Result<()>,
) -> Result<()> {
    let namespace = world.namespace(name, &[ENROLLED])?;
    namespace.echo("web", replicas, None)?;
    let [one, other] = namespace.urls("web")?;
    let kept = SteadyLoad::http(namespace.name(), "kept", &one).from_node("node1");
    let fresh =
        SteadyLoad::http(namespace.name(), "fresh", &other).new_connection_per_request().from_node("node2");
    let loads = [world.cluster().start_load(&kept)?, world.cluster().start_load(&fresh)?];
    for pod in ["kept", "fresh"] {
        namespace.wait_for_enrolment(pod, true)?;
    }
    disturb(&namespace, &loads)?;
    for load in &loads {
        load.wait_for_more(100, ALL_WELL)?;
    }
    for load in loads {
        ensure_nothing_failed(&load.stop()?)?;
    }
    Ok(())
}
