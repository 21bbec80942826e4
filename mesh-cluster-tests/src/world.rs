//! What the tests of one cluster share: the cluster, the chart, and how servers and clients are made.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
pub(crate) use mesh_lab::cluster::workloads::ECHO_PORT as PORT;
use mesh_lab::cluster::{Chart, Cluster, workloads};
use mesh_lab::traffic::Report;
use serde_json::{Value, json};

/// How long the mesh may take to act on a change; it takes milliseconds, where the machine has time.
pub(crate) const EFFECT: Duration = Duration::from_secs(30);
/// The label that enrols a namespace, or a pod.
pub(crate) const ENROLLED: &str = "istio.io/dataplane-mode=ambient";

/// The cluster with the mesh on it.
#[derive(Debug)]
pub(crate) struct World {
    cluster: Cluster,
    chart: Chart,
    namespaces: AtomicUsize,
}

impl World {
    pub(crate) fn new(cluster: Cluster, chart: Chart) -> Self {
        Self { cluster, chart, namespaces: AtomicUsize::new(0) }
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub(crate) fn chart(&self) -> &Chart {
        &self.chart
    }

    /// Installs the chart, as its users do.
    pub(crate) fn install(&self) -> Result<()> {
        self.install_with(json!({}))
    }

    /// The same, with values that differ from the chart's. Where the kubelet is must be said: the cgroups of a cluster's
    /// nodes are in one hierarchy, below one that names the cluster. Agents that end wait for the tests' connections, which
    /// do not end: so not for as long as usual.
    pub(crate) fn install_with(&self, mut values: Value) -> Result<()> {
        let kubelet = format!("mesh-lab/{}/$(NODE_NAME)/kubelet", self.cluster.name());
        values["agent"]["kubeletCgroups"] = json!([kubelet]);
        values["agent"]["drainSeconds"] = json!(10);
        self.chart.install(&self.cluster, &values.to_string())?;
        Ok(())
    }

    /// A namespace that nobody else has; with all in it, it is gone when this is dropped.
    pub(crate) fn namespace(&self, name: &str, labels: &[&str]) -> Result<Namespace<'_>> {
        let number = self.namespaces.fetch_add(1, Ordering::Relaxed);
        let namespace = Namespace { world: self, name: format!("{name}-{number}") };
        self.cluster.kubectl(["create", "namespace", &namespace.name])?;
        for label in labels {
            namespace.label(label)?;
        }
        Ok(namespace)
    }

    /// What may explain a failure.
    pub(crate) fn state(&self) -> String {
        let ask = |arguments: &[&str]| {
            self.cluster.kubectl(arguments.iter().copied()).unwrap_or_else(|error| error.to_string())
        };
        let agents = [
            "logs",
            "--namespace=mesh-system",
            "--selector=app.kubernetes.io/name=mesh-agent",
            "--tail=15",
            "--prefix",
        ];
        let control = [
            "logs",
            "--namespace=mesh-system",
            "--selector=app.kubernetes.io/name=mesh-control",
            "--tail=15",
            "--prefix",
        ];
        let refused = self.refused().join("\n");
        [ask(&["get", "pods", "--all-namespaces", "--output=wide"]), refused, ask(&agents), ask(&control)]
            .join("\n")
    }

    /// The last connections that did not end in good order, as the access logs have them.
    fn refused(&self) -> Vec<String> {
        const LINES: usize = 15;
        let nodes = self.cluster.nodes().filter_map(|node| self.agent(node.name()).ok());
        let logs = nodes.filter_map(|agent| self.cluster.logs(self.chart.namespace(), &agent).ok());
        let mut lines = Vec::new();
        for log in logs {
            let bad = |line: &&str| line.contains("response_flags=") && !line.contains("response_flags=-");
            let last: Vec<_> = log.lines().rev().filter(bad).take(LINES).map(str::to_owned).collect();
            lines.extend(last.into_iter().rev());
        }
        lines
    }

    /// Runs `meshctl` on a node and returns what it says, as JSON.
    pub(crate) fn meshctl(&self, node: &str, arguments: &[&str]) -> Result<Value> {
        let agent = self.agent(node)?;
        let command: Vec<&str> =
            ["meshctl"].iter().chain(arguments).chain(&["--output=json"]).copied().collect();
        let text = self.cluster.exec_output(self.chart.namespace(), &agent, &command)?;
        serde_json::from_str(&text).with_context(|| format!("meshctl {arguments:?} printed {text}"))
    }

    /// The name of the agent's pod on a node.
    pub(crate) fn agent(&self, node: &str) -> Result<String> {
        let field = format!("--field-selector=spec.nodeName={node}");
        let found = self.cluster.get(&[
            "pods",
            "--namespace",
            self.chart.namespace(),
            "--selector=app.kubernetes.io/name=mesh-agent",
            &field,
        ])?;
        let mut names =
            items(&found).filter_map(|pod| Some(pod.pointer("/metadata/name")?.as_str()?.to_owned()));
        names.next().with_context(|| format!("no agent runs on {node}"))
    }
}

/// The objects of a list.
pub(crate) fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

/// A policy that refuses plain text in its namespace.
pub(crate) fn strict() -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": { "name": "default" },
        "spec": { "mtls": { "mode": "STRICT" } },
    })
}

/// A load must not have lost anything.
pub(crate) fn ensure_nothing_failed(report: &Report) -> Result<()> {
    ensure!(report.failed == 0 && report.succeeded > 0, "requests were lost:\n{report}");
    Ok(())
}

/// A namespace of a test.
#[derive(Debug)]
pub(crate) struct Namespace<'a> {
    world: &'a World,
    name: String,
}

impl Namespace<'_> {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn cluster(&self) -> &Cluster {
        self.world.cluster()
    }

    /// Gives the namespace a label, or with `name-` takes it away.
    pub(crate) fn label(&self, label: &str) -> Result<()> {
        self.cluster().kubectl(["label", "namespace", &self.name, label, "--overwrite"])?;
        Ok(())
    }

    /// Applies an object here.
    pub(crate) fn apply(&self, mut object: Value) -> Result<()> {
        object["metadata"]["namespace"] = json!(self.name);
        Ok(self.cluster().apply(&object.to_string())?)
    }

    /// Deletes an object of this namespace, and waits until it is gone.
    pub(crate) fn delete(&self, kind: &str, name: &str) -> Result<()> {
        self.cluster().kubectl(["delete", kind, name, "--namespace", &self.name, "--wait"])?;
        Ok(())
    }

    /// Echo servers behind a service of the same name, ready.
    pub(crate) fn echo(&self, name: &str, replicas: u32, node: Option<&str>) -> Result<()> {
        self.cluster().apply(&workloads::echo_servers(&self.name, name, replicas, node))?;
        Ok(self.cluster().wait_for_rollout(&self.name, &format!("deployment/{name}"))?)
    }

    /// A pod to run programs in.
    pub(crate) fn client(&self, name: &str, node: Option<&str>) -> Result<()> {
        self.client_with(name, node, |_| ())
    }

    /// A pod to run programs in, with something changed in its specification.
    pub(crate) fn client_with(
        &self,
        name: &str,
        node: Option<&str>,
        change: impl FnOnce(&mut Value),
    ) -> Result<()> {
        let mut pod: Value = serde_json::from_str(&workloads::client(&self.name, name, node))?;
        change(&mut pod["spec"]);
        self.cluster().apply(&pod.to_string())?;
        self.wait_for_pod(name)
    }

    /// A pod to run programs in, with a service account of its own name.
    pub(crate) fn client_of_its_own(&self, name: &str, node: &str) -> Result<()> {
        self.cluster().kubectl(["create", "serviceaccount", name, "--namespace", &self.name])?;
        self.client_with(name, Some(node), |spec| spec["serviceAccountName"] = json!(name))
    }

    /// The only pod of a deployment.
    pub(crate) fn only_pod(&self, app: &str) -> Result<String> {
        let pods = self.pods(app)?;
        <[String; 1]>::try_from(pods)
            .map(|[pod]| pod)
            .map_err(|pods| anyhow!("one pod of {app}, not {pods:?}"))
    }

    /// Waits until a pod is ready.
    pub(crate) fn wait_for_pod(&self, name: &str) -> Result<()> {
        let pod = format!("pod/{name}");
        self.cluster().kubectl([
            "wait",
            "--namespace",
            &self.name,
            &pod,
            "--for=condition=Ready",
            "--timeout=90s",
        ])?;
        Ok(())
    }

    /// Sends requests from a pod, and tells what became of them.
    pub(crate) fn requests(&self, client: &str, target: &[&str], number: u32) -> Result<Report> {
        let number = number.to_string();
        let options = ["--requests", &number, "--new-connection-per-request", "--timeout=3", "--output=json"];
        let command: Vec<&str> =
            ["mesh-lab", "traffic"].iter().chain(target).chain(&options).copied().collect();
        // Failed requests are told by the exit status as well.
        let output = self.cluster().exec(&self.name, client, &command)?;
        serde_json::from_str(&output.stdout)
            .with_context(|| format!("no report of {target:?}:\n{}{}", output.stdout, output.stderr))
    }

    /// Waits until requests from a pod do as `reached` says.
    pub(crate) fn wait_for_requests(
        &self,
        what: &str,
        client: &str,
        target: &[&str],
        reached: impl Fn(&Report) -> bool,
    ) -> Result<Report> {
        Ok(self.cluster().wait_until(what, EFFECT, |_| match self.requests(client, target, 5) {
            Ok(report) if reached(&report) => Ok(report),
            Ok(report) => Err(report.to_string()),
            Err(error) => Err(format!("{error:#}")),
        })?)
    }

    /// An object of this namespace.
    pub(crate) fn get(&self, kind: &str, name: &str) -> Result<Value> {
        Ok(self.cluster().get(&[kind, name, "--namespace", &self.name])?)
    }

    /// The addresses of a pod, one of each family.
    pub(crate) fn pod_addresses(&self, pod: &str) -> Result<Vec<IpAddr>> {
        let object = self.get("pod", pod)?;
        of_each_family(&object["status"]["podIPs"], |entry| entry["ip"].as_str())
            .with_context(|| pod.to_owned())
    }

    /// The cluster IPs of a service, one of each family.
    pub(crate) fn cluster_ips(&self, service: &str) -> Result<Vec<IpAddr>> {
        let object = self.get("service", service)?;
        of_each_family(&object["spec"]["clusterIPs"], Value::as_str).with_context(|| service.to_owned())
    }

    /// A service at its cluster IPs, one of each family.
    pub(crate) fn urls(&self, service: &str) -> Result<[String; 2]> {
        let urls = self.cluster_ips(service)?.into_iter();
        let urls: Vec<_> = urls.map(|address| format!("http://{}", SocketAddr::new(address, 80))).collect();
        urls.try_into().map_err(|urls| anyhow!("{service}: one address of each family, not {urls:?}"))
    }

    /// The port that a service of type NodePort was given.
    pub(crate) fn node_port(&self, service: &str) -> Result<u16> {
        let object = self.get("service", service)?;
        let port = object.pointer("/spec/ports/0/nodePort").and_then(Value::as_u64);
        Ok(u16::try_from(port.context("no node port was given")?)?)
    }

    /// A field of an object of this namespace.
    pub(crate) fn field(&self, kind: &str, name: &str, pointer: &str) -> Result<String> {
        let object = self.get(kind, name)?;
        let text = object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        text.with_context(|| format!("{kind} {name} has no {pointer}"))
    }

    /// Whether the agent of a pod's node has it in the mesh.
    pub(crate) fn is_enrolled(&self, pod: &str) -> Result<bool> {
        let node = self.field("pod", pod, "/spec/nodeName")?;
        let pods = self.world.meshctl(&node, &["pods"])?;
        let known = |entry: &&Value| entry["namespace"] == self.name.as_str() && entry["name"] == pod;
        Ok(pods
            .as_array()
            .into_iter()
            .flatten()
            .find(known)
            .is_some_and(|entry| entry["state"] == "enrolled"))
    }

    /// Waits until the mesh has, or has not, a pod.
    pub(crate) fn wait_for_enrolment(&self, pod: &str, enrolled: bool) -> Result<()> {
        let what = format!("{pod} is {}in the mesh", if enrolled { "" } else { "not " });
        Ok(self.cluster().wait_until(&what, EFFECT, |_| match self.is_enrolled(pod) {
            Ok(is) if is == enrolled => Ok(()),
            Ok(is) => Err(format!("enrolled: {is}")),
            Err(error) => Err(format!("{error:#}")),
        })?)
    }

    /// The pods of a deployment.
    pub(crate) fn pods(&self, app: &str) -> Result<Vec<String>> {
        let selector = format!("--selector=app={app}");
        let found = self.cluster().get(&["pods", "--namespace", &self.name, &selector])?;
        Ok(items(&found)
            .filter_map(|pod| Some(pod.pointer("/metadata/name")?.as_str()?.to_owned()))
            .collect())
    }
}

/// The addresses in a list of an object; there must be two.
fn of_each_family(list: &Value, address: impl Fn(&Value) -> Option<&str>) -> Result<Vec<IpAddr>> {
    let entries = list.as_array().into_iter().flatten();
    let addresses: Vec<IpAddr> = entries.filter_map(|entry| address(entry)?.parse().ok()).collect();
    ensure!(addresses.len() == 2, "one address of each family was expected, not {list}");
    Ok(addresses)
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // Nobody waits for its end; where it cannot be removed, the cluster's end does it.
        let _ = self.cluster().kubectl(["delete", "namespace", &self.name, "--wait=false"]);
    }
}
