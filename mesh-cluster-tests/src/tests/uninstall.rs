//! Another version of the chart, and its end.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::cluster::{Node, PodLoad, SteadyLoad};
use serde_json::json;

use crate::world::{EFFECT, ENROLLED, Namespace, World, ensure_nothing_failed, items};

pub(super) fn an_upgrade_costs_no_request(world: &World) -> Result<()> {
    let namespace = world.namespace("upgrade", &[ENROLLED])?;
    let load = load_on_a_service(world, &namespace)?;
    // Other values are another template of every pod.
    world.install_with(json!({ "log": { "level": "debug" } }))?;
    load.wait_for_more(100, Duration::from_secs(60))?;
    world.install()?;
    load.wait_for_more(100, Duration::from_secs(60))?;
    ensure_nothing_failed(&load.stop()?)
}

pub(super) fn a_new_node_takes_pods_once_its_agent_serves(world: &World) -> Result<()> {
    const TAINT: &str = "mesh-agent/not-ready";
    // Nobody but an agent that is told of it takes it away.
    let taint = format!("{TAINT}=:NoSchedule");
    world.cluster().kubectl(["taint", "nodes", "node2", &taint, "--overwrite"])?;
    let installed = world.install_with(json!({ "agent": { "startupTaint": TAINT } }));
    let released = installed.and_then(|()| {
        // Helm is content with nodes that are about to have their agents.
        Ok(world.cluster().wait_until("pods need not wait for node2's agent", EFFECT, |cluster| {
            let node = cluster.get(&["node", "node2"]).map_err(|error| error.to_string())?;
            let taints = &node["spec"]["taints"];
            if taints.is_null() { Ok(()) } else { Err(taints.to_string()) }
        })?)
    });
    if released.is_err() {
        world.cluster().kubectl(["taint", "nodes", "node2", &format!("{TAINT}-")])?;
    }
    released?;
    world.install()
}

pub(super) fn uninstalling_leaves_nothing(world: &World) -> Result<()> {
    let namespace = world.namespace("uninstall", &[ENROLLED])?;
    let load = load_on_a_service(world, &namespace)?;
    let nodes: Vec<_> = world.cluster().nodes().collect();
    for node in &nodes {
        ensure!(
            !traces(world, *node)?.is_empty(),
            "{}: the mesh leaves traces while it is there",
            node.name()
        );
    }

    world.chart().uninstall(world.cluster())?;
    for node in nodes {
        let what = format!("{} is as it was", node.name());
        world.cluster().wait_until(&what, Duration::from_secs(60), |_| match traces(world, node) {
            Ok(traces) if traces.is_empty() => Ok(()),
            Ok(traces) => Err(traces.into_iter().collect::<Vec<_>>().join("\n")),
            Err(error) => Err(format!("{error:#}")),
        })?;
    }
    load.wait_for_more(100, Duration::from_secs(60))?;
    ensure_nothing_failed(&load.stop()?)?;
    for kind in [
        "customresourcedefinitions",
        "validatingwebhookconfigurations",
        "clusterroles",
        "clusterrolebindings",
    ] {
        let list = world.cluster().get(&[kind])?;
        let left: Vec<&str> = items(&list)
            .filter_map(|object| object.pointer("/metadata/name")?.as_str())
            .filter(|name| name.contains("istio.io") || name.contains("mesh-"))
            .collect();
        ensure!(left.is_empty(), "{kind} that are left: {left:?}");
    }
    Ok(())
}

/// Two enrolled servers, and a load on them that opens a connection for each request.
fn load_on_a_service<'a>(world: &'a World, namespace: &Namespace<'_>) -> Result<PodLoad<'a>> {
    namespace.echo("web", 2, None)?;
    // By its address: what becomes of its name is not the mesh's doing.
    let [_, url] = namespace.urls("web")?;
    let load =
        SteadyLoad::http(namespace.name(), "load", &url).new_connection_per_request().from_node("node1");
    let load = world.cluster().start_load(&load)?;
    namespace.wait_for_enrolment("load", true)?;
    Ok(load)
}

/// What a mesh changes on a node.
const SYSCTLS: [&str; 3] =
    ["net.ipv4.tcp_tw_reuse", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports"];

/// What a mesh has changed on a node and not put back. What it has not changed is as on a machine that it never saw.
fn traces(world: &World, node: Node<'_>) -> Result<BTreeSet<String>> {
    let mut traces = BTreeSet::new();
    let mut note = |command: &[&str], of_the_mesh: &dyn Fn(&str) -> bool| -> Result<()> {
        let printed = node.output(command).with_context(|| format!("{}: {command:?}", node.name()))?;
        traces.extend(printed.lines().filter(|line| of_the_mesh(line)).map(str::to_owned));
        Ok(())
    };
    for family in ["-4", "-6"] {
        note(&["ip", family, "rule"], &|line| line.contains("fwmark 0x10"))?;
        note(&["ip", family, "route", "show", "table", "all"], &|line| line.contains("dev mesh-"))?;
    }
    note(&["ip", "-o", "link"], &|line| line.contains(" mesh-"))?;
    note(&["nft", "list", "tables"], &|line| line.contains("mesh_agent"))?;
    note(&["tc", "qdisc", "show"], &|line| line.contains("clsact"))?;
    // The kernel's own two files in every bpffs end in `.debug`.
    note(&["find", "/sys/fs/bpf", "-mindepth", "1"], &|line| !line.ends_with(".debug"))?;
    let untouched = world.cluster().lab().host("control")?;
    for sysctl in SYSCTLS {
        let expected = untouched.program("sysctl")?.arg(sysctl).output()?.stdout;
        note(&["sysctl", sysctl], &|line| line.trim_end() != expected.trim_end())?;
    }
    Ok(traces)
}
