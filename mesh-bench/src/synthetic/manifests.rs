//! The same mesh as the Kubernetes resources that lead to it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use super::{Deployment, SERVICE_PORT, SyntheticMesh, TARGET_PORT, zone};

impl SyntheticMesh {
    /// The manifests, by the names of their files: one for the nodes, one for each namespace.
    pub(crate) fn manifests(self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        let nodes = (0..self.nodes()).map(node).collect();
        files.insert("nodes.yaml".to_owned(), nodes);
        for deployment in self.deployments() {
            let namespace = deployment.namespace();
            let file = files.entry(format!("{namespace}.yaml")).or_insert_with(|| namespace_of(&namespace));
            deployment.write(file);
        }
        files
    }
}

impl Deployment {
    fn write(self, out: &mut String) {
        let (namespace, app) = (self.namespace(), self.app());
        let addresses = self.cluster_ips();
        // Writing to a text does not fail.
        let _ = write!(
            out,
            "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {app}\n  namespace: {namespace}\nspec:\n  selector:\n    \
             app: {app}\n  clusterIP: {first}\n  clusterIPs: {all}\n  ipFamilies: {families}\n  ipFamilyPolicy: {policy}\n  \
             ports:\n  - name: main\n    port: {SERVICE_PORT}\n    targetPort: {TARGET_PORT}\n    protocol: TCP\n",
            first = quoted(addresses.first()),
            all = list(&addresses, |address| quoted(Some(address))),
            families = list(&addresses, |address| if address.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned()),
            policy = if addresses.len() > 1 { "RequireDualStack" } else { "SingleStack" },
        );
        for number in self.numbers() {
            self.write_pod(number, out);
        }
    }

    fn write_pod(self, number: usize, out: &mut String) {
        let (namespace, app, replica_set) = (self.namespace(), self.app(), self.replica_set());
        let hash = replica_set.rsplit('-').next().unwrap_or_default();
        let addresses = self.addresses(number);
        let _ = write!(
            out,
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels:\n    app: {app}\n    \
             pod-template-hash: {hash}\n    version: v1\n  ownerReferences:\n  - apiVersion: apps/v1\n    kind: ReplicaSet\n    \
             name: {replica_set}\n    uid: 7f0b8f1c-0000-4000-8000-{number:012}\n    controller: true\nspec:\n  nodeName: {node}\n  \
             serviceAccountName: {app}\n  containers:\n  - name: main\n    image: registry.example.com/{app}:1.0.0\n    ports:\n    \
             - name: http\n      containerPort: {TARGET_PORT}\nstatus:\n  phase: Running\n  podIP: {first}\n  podIPs: {all}\n  \
             conditions:\n  - type: Ready\n    status: \"True\"\n",
            name = self.pod(number),
            node = self.node(number),
            first = quoted(addresses.first()),
            all = list(&addresses, |address| format!("{{ip: {}}}", quoted(Some(address)))),
        );
    }
}

fn node(number: usize) -> String {
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels:\n    topology.kubernetes.io/region: region-1\n    \
         topology.kubernetes.io/zone: {zone}\n",
        name = Deployment::node_name(number),
        zone = zone(number)
    )
}

fn namespace_of(name: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:\n    istio.io/dataplane-mode: ambient\n"
    )
}

/// IPv6 addresses must be quoted where braces are around them.
fn quoted(address: Option<&IpAddr>) -> String {
    address.map(|address| format!("\"{address}\"")).unwrap_or_default()
}

fn list(addresses: &[IpAddr], item: impl Fn(&IpAddr) -> String) -> String {
    let items: Vec<String> = addresses.iter().map(item).collect();
    format!("[{}]", items.join(", "))
}
