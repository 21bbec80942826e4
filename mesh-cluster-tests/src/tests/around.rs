//! The ways to a pod that come past the devices where packets are steered: kube-proxy's node ports, the CNI's host ports, pods in
//! the network of their node, and the node's own processes. And next to them, that of any pod that is not in the mesh.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use mesh_lab::process::Program;
use serde_json::json;

use crate::world::{EFFECT, ENROLLED, Namespace, PORT, World, strict};

const NODES: [&str; 2] = ["node1", "node2"];
const HOST_PORT: u16 = 18_080;

pub(super) fn nothing_reaches_a_pod_around_the_policy(world: &World) -> Result<()> {
    for node in world.cluster().nodes() {
        let report = world.meshctl(node.name(), &["check"])?;
        let kubelet =
            report["checks"].as_array().into_iter().flatten().find(|check| check["name"] == "kubelet");
        ensure!(kubelet.is_some_and(|check| check["status"] == "ok"), "{}: {kubelet:?}", node.name());
    }
    let namespace = world.namespace("around", &[ENROLLED])?;
    let stranger = world.namespace("around-stranger", &[])?;
    server(&namespace, "web", Some(HOST_PORT))?;
    namespace.client("friend", Some("node1"))?;
    for pod in ["web", "friend"] {
        namespace.wait_for_enrolment(pod, true)?;
    }
    for node in NODES {
        stranger.client(&format!("pod-{node}"), Some(node))?;
        stranger
            .client_with(&format!("host-{node}"), Some(node), |spec| spec["hostNetwork"] = json!(true))?;
    }
    let ways = ways(world, &namespace, &stranger)?;
    let friend = Way {
        name: "an enrolled pod".to_owned(),
        from: From::Pod(&namespace, "friend".to_owned()),
        url: format!("http://web.{}/", namespace.name()),
    };
    let expect = |way: &Way<'_>, reached: bool, when: &str| -> Result<()> {
        let what = format!("{when}: {} {}", way.name, if reached { "gets an answer" } else { "is refused" });
        Ok(world.cluster().wait_until(&what, EFFECT, |_| match way.reaches(world) {
            Ok(does) if does == reached => Ok(()),
            Ok(_) => Err(format!("{} {}", way.url, if reached { "does not answer" } else { "answers" })),
            Err(error) => Err(format!("{error:#}")),
        })?)
    };
    let all = |reached: bool, when: &str| ways.iter().try_for_each(|way| expect(way, reached, when));
    all(true, "without a policy")?;

    namespace.apply(strict())?;
    all(false, "STRICT")?;
    expect(&friend, true, "STRICT")?;
    probes_go_on(world, &namespace)?;
    server(&namespace, "probed-under-strict", None)?;
    namespace.delete("peerauthentication", "default")?;
    all(true, "after STRICT")?;

    let deny = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "nobody" },
        "spec": {},
    });
    namespace.apply(deny)?;
    all(false, "where nobody is let in")?;
    expect(&friend, false, "where nobody is let in")?;
    server(&namespace, "probed-where-nobody-gets-in", None)?;
    probes_go_on(world, &namespace)?;
    let log = world.cluster().logs(world.chart().namespace(), &world.agent("node2")?)?;
    let refusals = log.lines().filter(|line| line.contains(namespace.name()) && line.contains("nobody"));
    ensure!(refusals.count() >= ways.len(), "the access log does not name the policy each time:\n{log}");
    namespace.delete("authorizationpolicy", "nobody")?;
    all(true, "in the end")
}

/// The kubelet goes on asking, and gets its answers.
fn probes_go_on(world: &World, namespace: &Namespace<'_>) -> Result<()> {
    let probes = || -> Result<u64> {
        let report = world.meshctl("node2", &["bpf"])?;
        report["counters"]["pass_kubelet"].as_u64().with_context(|| format!("nothing is counted: {report}"))
    };
    let before = probes()?;
    // One more than it takes to be found not ready.
    world.cluster().wait_until("the kubelet goes on probing", EFFECT, |_| match probes() {
        Ok(now) if now >= before + 4 => Ok(()),
        Ok(now) => Err(format!("{} probes", now - before)),
        Err(error) => Err(format!("{error:#}")),
    })?;
    namespace.wait_for_pod("web")
}

/// A server on node2 that is ready once the kubelet has got an answer.
fn server(namespace: &Namespace<'_>, name: &str, host_port: Option<u16>) -> Result<()> {
    namespace.client_with(name, Some("node2"), |spec| {
        let container = &mut spec["containers"][0];
        container["command"] = json!(["mesh-lab", "echo", format!("--listen={PORT}")]);
        container["readinessProbe"] = json!({ "httpGet": { "path": "/", "port": PORT }, "periodSeconds": 1 });
        if let Some(port) = host_port {
            container["ports"] = json!([{ "containerPort": PORT, "hostPort": port }]);
        }
    })
}

/// A way to the server.
struct Way<'a> {
    name: String,
    from: From<'a>,
    url: String,
}

enum From<'a> {
    /// A machine outside of the cluster.
    Outside,
    /// A process of a node.
    Node(&'static str),
    /// A pod.
    Pod(&'a Namespace<'a>, String),
}

impl Way<'_> {
    /// Whether there is an answer.
    fn reaches(&self, world: &World) -> Result<bool> {
        let curl = |program: Program| -> Result<bool> {
            let arguments = ["--silent", "--fail", "--globoff", "--max-time", "3", &self.url];
            Ok(program.args(arguments).output()?.status.success())
        };
        match &self.from {
            From::Outside => curl(world.cluster().lab().host("control")?.program("curl")?),
            From::Node(node) => curl(world.cluster().node(node)?.program("curl")?),
            From::Pod(namespace, pod) => Ok(namespace.requests(pod, &["http", &self.url], 1)?.succeeded > 0),
        }
    }
}

/// All ways to the server that do not lead through the mesh on the client's side.
fn ways<'a>(world: &World, namespace: &Namespace<'_>, stranger: &'a Namespace<'a>) -> Result<Vec<Way<'a>>> {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "web" },
        "spec": {
            "type": "NodePort",
            "selector": { "app": "web" },
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [{ "name": "http", "port": 80, "targetPort": PORT }],
        },
    });
    namespace.apply(service)?;
    let node_port = namespace.node_port("web")?;
    let (pod_addresses, service_addresses) = (namespace.pod_addresses("web")?, namespace.cluster_ips("web")?);

    let mut ways = Vec::new();
    let mut add = |name: String, from: From<'a>, address: IpAddr, port: u16| {
        let url = format!("http://{}/", SocketAddr::new(address, port));
        ways.push(Way { name: format!("{name} at {url}"), from, url });
    };
    for node in world.cluster().nodes() {
        for address in node.machine().addresses().iter() {
            add(format!("a node port of {}, from outside,", node.name()), From::Outside, address, node_port);
            let pod = From::Pod(stranger, "pod-node1".to_owned());
            add(format!("a node port of {}, from a pod,", node.name()), pod, address, node_port);
        }
    }
    for address in world.cluster().node("node2")?.machine().addresses().iter() {
        add("a host port, from outside,".to_owned(), From::Outside, address, HOST_PORT);
    }
    let everywhere = pod_addresses.iter().map(|address| (*address, PORT));
    let everywhere: Vec<_> =
        everywhere.chain(service_addresses.iter().map(|address| (*address, 80))).collect();
    for node in NODES {
        for (address, port) in &everywhere {
            add(format!("a process of {node}"), From::Node(node), *address, *port);
            for kind in ["host", "pod"] {
                let pod = format!("{kind}-{node}");
                let kind = if kind == "host" { "a pod in the network of" } else { "a pod of" };
                add(format!("{kind} {node}"), From::Pod(stranger, pod), *address, *port);
            }
        }
    }
    Ok(ways)
}
