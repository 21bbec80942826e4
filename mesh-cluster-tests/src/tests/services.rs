//! The kinds of services, for enrolled pods.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::world::{ENROLLED, PORT, World, ensure_nothing_failed};

pub(super) fn services_are_reached_by_name_and_by_cluster_ip(world: &World) -> Result<()> {
    let namespace = world.namespace("services", &[ENROLLED])?;
    namespace.echo("web", 2, None)?;
    namespace.client("client", Some("node1"))?;
    for pod in namespace.pods("web")?.iter().map(String::as_str).chain(["client"]) {
        namespace.wait_for_enrolment(pod, true)?;
    }
    let addresses = namespace.cluster_ips("web")?;
    let name = namespace.name();
    let names = [format!("web.{name}"), format!("web.{name}.svc.cluster.local"), "web".to_owned()];
    let targets = addresses.iter().map(|address| SocketAddr::new(*address, 80).to_string()).chain(names);
    for target in targets {
        let report = namespace.requests("client", &["http", &format!("http://{target}")], 40)?;
        ensure_nothing_failed(&report)?;
        ensure!(report.pods.len() == 2, "{target} is not balanced over both pods:\n{report}");
    }
    Ok(())
}

pub(super) fn headless_services_are_reached_by_the_names_of_their_pods(world: &World) -> Result<()> {
    let namespace = world.namespace("headless", &[ENROLLED])?;
    namespace.echo("web", 1, Some("node2"))?;
    let headless = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "each" },
        "spec": { "clusterIP": "None", "selector": { "app": "web" }, "ports": [{ "name": "http", "port": PORT }] },
    });
    namespace.apply(headless)?;
    namespace.client("client", Some("node1"))?;
    namespace.wait_for_enrolment("client", true)?;
    let url = format!("http://each.{}:{PORT}", namespace.name());
    // Until the name is there.
    let report = namespace
        .wait_for_requests("each pod answers", "client", &["http", &url], |report| report.failed == 0)?;
    let server = namespace.only_pod("web")?;
    ensure!(report.pods.contains_key(&server), "{report}");
    Ok(())
}

pub(super) fn a_service_keeps_a_client_at_one_pod_where_it_is_to(world: &World) -> Result<()> {
    let namespace = world.namespace("affinity", &[ENROLLED])?;
    namespace.echo("web", 4, None)?;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "sticky" },
        "spec": {
            "selector": { "app": "web" },
            "sessionAffinity": "ClientIP",
            "ports": [{ "name": "http", "port": 80, "targetPort": PORT }],
        },
    });
    namespace.apply(service)?;
    namespace.client("client", Some("node1"))?;
    for pod in namespace.pods("web")?.iter().map(String::as_str).chain(["client"]) {
        namespace.wait_for_enrolment(pod, true)?;
    }
    let url = format!("http://sticky.{}", namespace.name());
    namespace
        .wait_for_requests("the service answers", "client", &["http", &url], |report| report.failed == 0)?;
    let report = namespace.requests("client", &["http", &url], 40)?;
    ensure_nothing_failed(&report)?;
    ensure!(report.pods.len() == 1, "a client was sent to more than one pod:\n{report}");
    Ok(())
}

pub(super) fn a_service_that_stays_on_the_node_refuses_where_it_has_no_pod(world: &World) -> Result<()> {
    let namespace = world.namespace("local", &[ENROLLED])?;
    namespace.echo("web", 1, Some("node2"))?;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "here" },
        "spec": {
            "selector": { "app": "web" },
            "internalTrafficPolicy": "Local",
            "ports": [{ "name": "http", "port": 80, "targetPort": PORT }],
        },
    });
    namespace.apply(service)?;
    let url = format!("http://here.{}", namespace.name());
    for (client, node) in [("near", "node2"), ("far", "node1")] {
        namespace.client(client, Some(node))?;
        namespace.wait_for_enrolment(client, true)?;
    }
    namespace.wait_for_requests("the pod of the own node answers", "near", &["http", &url], |report| {
        report.failed == 0
    })?;
    let report = namespace.requests("far", &["http", &url], 3)?;
    ensure!(report.succeeded == 0, "a pod of another node has answered:\n{report}");
    let log = world.cluster().logs(world.chart().namespace(), &world.agent("node1")?)?;
    let said =
        log.lines().find(|line| line.contains("here.") && line.contains("internalTrafficPolicy: Local"));
    ensure!(said.is_some(), "the access log of node1 does not say why:\n{log}");
    Ok(())
}

pub(super) fn node_ports_are_reached_from_outside(world: &World) -> Result<()> {
    let namespace = world.namespace("nodeport", &[ENROLLED])?;
    namespace.echo("web", 1, Some("node2"))?;
    let server = namespace.only_pod("web")?;
    namespace.wait_for_enrolment(&server, true)?;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "outside" },
        "spec": {
            "type": "NodePort",
            "selector": { "app": "web" },
            "ports": [{ "name": "http", "port": 80, "targetPort": PORT }],
        },
    });
    namespace.apply(service)?;
    let port = namespace.node_port("outside")?;
    let outside = world.cluster().lab().host("control")?;
    // By way of the server's own node and of another one.
    for node in world.cluster().nodes() {
        let address = node.machine().ipv4().context("a node without an address")?;
        let url = format!("http://{address}:{port}/");
        let ask = || -> Result<String> {
            let curl =
                outside.program("curl")?.args(["--silent", "--fail", "--max-time", "3", &url]).output()?;
            ensure!(curl.status.success(), "curl {url}: {}", curl.status);
            Ok(curl.stdout)
        };
        let within = crate::world::EFFECT;
        let answer = world
            .cluster()
            .wait_until(&format!("{url} answers"), within, |_| ask().map_err(|error| format!("{error:#}")))?;
        ensure!(answer.contains(&server), "{answer}");
    }
    Ok(())
}
