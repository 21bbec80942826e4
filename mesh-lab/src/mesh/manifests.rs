//! Kubernetes manifests for the pods of a lab, for tests that do not want to write them by hand.

use std::fmt::Write;
use std::net::IpAddr;

use crate::machine::{Kind, Machine};

/// A multi-document YAML file in the making.
#[derive(Debug, Clone, Default)]
pub struct Manifests {
    text: String,
}

impl Manifests {
    /// An empty file.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a namespace; its pods are in the mesh if it is `enrolled`.
    #[must_use]
    pub fn namespace(self, name: &str, enrolled: bool) -> Self {
        let mode = if enrolled { "ambient" } else { "none" };
        self.document(format_args!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{istio.io/dataplane-mode: {mode}}}\n"
        ))
    }

    /// Adds a pod of the lab with the label `app`.
    #[must_use]
    pub fn pod(self, machine: &Machine, app: &str) -> Self {
        self.pod_with(machine, app, true, &[])
    }

    /// Adds a pod with annotations, ready for traffic or not.
    #[must_use]
    pub fn pod_with(self, machine: &Machine, app: &str, ready: bool, annotations: &[(&str, &str)]) -> Self {
        let Kind::Pod { node, namespace, .. } = machine.kind() else {
            return self;
        };
        let mut notes = String::new();
        for (key, value) in annotations {
            let _ = writeln!(notes, "    {key}: \"{value}\"");
        }
        let notes = if notes.is_empty() { String::new() } else { format!("  annotations:\n{notes}") };
        let ips: Vec<String> = machine.addresses().iter().map(|ip| format!("{{ip: \"{ip}\"}}")).collect();
        let first = machine.address().map(|ip| ip.to_string()).unwrap_or_default();
        let name = machine.name();
        let status = if ready { "True" } else { "False" };
        self.document(format_args!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels: {{app: {app}}}\n{notes}\
             spec:\n  nodeName: {node}\n  serviceAccountName: {app}\n  containers: [{{name: main, image: example.com/main:1}}]\n\
             status:\n  phase: Running\n  podIP: \"{first}\"\n  podIPs: [{ips}]\n  conditions: [{{type: Ready, status: \"{status}\"}}]\n",
            ips = ips.join(", ")
        ))
    }

    /// Adds a service with the label selector `app` and one port.
    #[must_use]
    pub fn service(self, namespace: &str, name: &str, addresses: &[IpAddr], port: u16, target: u16) -> Self {
        let ips: Vec<String> = addresses.iter().map(|ip| format!("\"{ip}\"")).collect();
        let first = ips.first().cloned().unwrap_or_else(|| "None".to_owned());
        let all = if ips.is_empty() { "None".to_owned() } else { ips.join(", ") };
        self.document(format_args!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n  selector: {{app: {name}}}\n\
             \x20 clusterIP: {first}\n  clusterIPs: [{all}]\n  ipFamilyPolicy: PreferDualStack\n  ports: [{{name: main, port: {port}, targetPort: {target}, protocol: TCP}}]\n"
        ))
    }

    /// The file.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    fn document(mut self, text: std::fmt::Arguments<'_>) -> Self {
        let _ = write!(self.text, "---\n{text}");
        self
    }
}
