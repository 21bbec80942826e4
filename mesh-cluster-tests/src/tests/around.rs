//! The ways to a pod that come past the devices where packets are steered: kube-proxy's NodePorts, the CNI's host ports, pods in
//! the network of their node, and the node's own processes.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use mesh_lab::cluster::TEST_IMAGE;
use serde_json::{Value, json};

use crate::world::{EFFECT, ENROLLED, Namespace, PORT, World};

/// A port of the nodes that is nobody else's.
const HOST_PORT: u16 = 18_080;
/// Pods that are not in the mesh: their names, their nodes, and whether they are in the nodes' network.
const STRANGERS: [(&str, &str, bool); 4] = [
    ("near", "node2", false),
    ("far", "node1", false),
    ("near-host", "node2", true),
    ("far-host", "node1", true),
];

/// Who asks.
#[derive(Debug, Clone, Copy)]
enum Asker<'a> {
    /// A process of this node that is not its kubelet.
    Node(&'a str),
    /// A host that is no node.
    Outside,
    /// One of the strangers.
    Pod(&'a str),
}

pub(super) fn every_way_around_is_refused_and_probes_pass(world: &World) -> Result<()> {
    for node in world.cluster().nodes() {
        let report = world.meshctl(node.name(), &["check"])?;
        let kubelet =
            report["checks"].as_array().into_iter().flatten().find(|check| check["name"] == "kubelet");
        ensure!(kubelet.is_some_and(|check| check["status"] == "ok"), "{}: {kubelet:?}", node.name());
    }
    let namespace = world.namespace("around", &[ENROLLED])?;
    serve(&namespace)?;
    let strangers = world.namespace("strangers", &[])?;
    for (name, node, in_its_network) in STRANGERS {
        strangers.apply(&stranger(name, node, in_its_network).to_string())?;
        strangers.wait_for_pod(name)?;
    }
    let ways = ways(world, &namespace)?;
    for (asker, url) in &ways {
        wait_until(world, &strangers, *asker, url, true)?;
    }

    let strict = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": { "name": "default" },
        "spec": { "mtls": { "mode": "STRICT" } },
    });
    let deny = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "nobody" },
        "spec": {},
    });
    for (policy, name) in [(strict, "peerauthentication/default"), (deny, "authorizationpolicy/nobody")] {
        namespace.apply(&policy.to_string())?;
        for (asker, url) in &ways {
            wait_until(world, &strangers, *asker, url, false)?;
        }
        // A single probe that is refused takes the readiness away.
        let before = probes(world)?;
        world.cluster().wait_until("the kubelet goes on probing", EFFECT, |_| match probes(world) {
            Ok(now) if now >= before + 3 => Ok(()),
            Ok(now) => Err(format!("{} probes", now - before)),
            Err(error) => Err(format!("{error:#}")),
        })?;
        let pod = world.cluster().get(&["pod", "web", "--namespace", namespace.name()])?;
        let ready = pod["status"]["conditions"].as_array().into_iter().flatten().any(is_ready);
        ensure!(ready, "probes are refused: {}", pod["status"]);
        world.cluster().kubectl(["delete", name, "--namespace", namespace.name()])?;
    }
    Ok(())
}

fn is_ready(condition: &Value) -> bool {
    condition["type"] == "Ready" && condition["status"] == "True"
}

/// Connections of the kubelet that passed on the server's node.
fn probes(world: &World) -> Result<u64> {
    let report = world.meshctl("node2", &["bpf"])?;
    report["counters"]["pass_kubelet"].as_u64().with_context(|| format!("nothing is counted: {report}"))
}

/// A server, in the mesh, with a port on its node and a port on every node.
fn serve(namespace: &Namespace<'_>) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "web", "labels": { "app": "web" } },
        "spec": {
            "nodeName": "node2",
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "echo",
                "image": TEST_IMAGE,
                "imagePullPolicy": "Never",
                "args": ["echo", format!("--listen={PORT}")],
                "ports": [{ "containerPort": PORT, "hostPort": HOST_PORT }],
                "readinessProbe": {
                    "httpGet": { "path": "/", "port": PORT },
                    "periodSeconds": 1,
                    "failureThreshold": 1,
                },
            }],
        },
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "web" },
        "spec": {
            "type": "NodePort",
            "selector": { "app": "web" },
            "ports": [{ "name": "http", "port": 80, "targetPort": PORT }],
        },
    });
    namespace.apply(&format!("{pod}\n---\n{service}"))?;
    namespace.wait_for_pod("web")?;
    namespace.wait_for_enrolment("web", true)
}

/// A pod that programs are run in.
fn stranger(name: &str, node: &str, in_its_network: bool) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "nodeName": node,
            "hostNetwork": in_its_network,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "client",
                "image": TEST_IMAGE,
                "imagePullPolicy": "Never",
                "command": ["sleep", "3600"],
            }],
        },
    })
}

/// Who can ask, and where the server is to be reached from there.
fn ways(world: &World, namespace: &Namespace<'_>) -> Result<Vec<(Asker<'static>, String)>> {
    let service = world.cluster().get(&["service", "web", "--namespace", namespace.name()])?;
    let node_port = service.pointer("/spec/ports/0/nodePort").and_then(Value::as_u64);
    let node_port = u16::try_from(node_port.context("no node port was given")?)?;
    let cluster_ip: IpAddr = namespace.field("service", "web", "/spec/clusterIP")?.parse()?;
    let pod: IpAddr = namespace.field("pod", "web", "/status/podIP")?.parse()?;
    let mut from_outside = Vec::new();
    for node in world.cluster().nodes() {
        let address = node.machine().ipv4().context("a node without an address")?.into();
        from_outside.push(SocketAddr::new(address, node_port));
        if node.name() == "node2" {
            from_outside.push(SocketAddr::new(address, HOST_PORT));
        }
    }
    let mut from_inside = from_outside.clone();
    from_inside.extend([SocketAddr::new(cluster_ip, 80), SocketAddr::new(pod, PORT)]);

    let nodes = ["node1", "node2"].map(Asker::Node);
    let pods = STRANGERS.map(|(name, ..)| Asker::Pod(name));
    let mut ways: Vec<_> = from_outside.iter().map(|to| (Asker::Outside, format!("http://{to}/"))).collect();
    for asker in nodes.into_iter().chain(pods) {
        ways.extend(from_inside.iter().map(|to| (asker, format!("http://{to}/"))));
    }
    Ok(ways)
}

fn wait_until(
    world: &World,
    strangers: &Namespace<'_>,
    asker: Asker<'_>,
    url: &str,
    answered: bool,
) -> Result<()> {
    let what = format!("{asker:?} is {}answered by {url}", if answered { "" } else { "not " });
    Ok(world.cluster().wait_until(&what, EFFECT, |_| match ask(world, strangers, asker, url) {
        Ok(got) if got == answered => Ok(()),
        Ok(got) => Err(format!("answered: {got}")),
        Err(error) => Err(format!("{error:#}")),
    })?)
}

/// Whether a request is answered.
fn ask(world: &World, strangers: &Namespace<'_>, asker: Asker<'_>, url: &str) -> Result<bool> {
    let curl = match asker {
        Asker::Pod(name) => return Ok(strangers.requests(name, &["http", url], 1)?.failed == 0),
        Asker::Node(name) => world.cluster().node(name)?.program("curl")?,
        Asker::Outside => world.cluster().lab().host("control")?.program("curl")?,
    };
    let output = curl.args(["--silent", "--fail", "--max-time", "3", url]).output()?;
    Ok(output.status.success())
}
