//! The topology file: its YAML form, and the way from there to a [`Topology`] or to a list of everything that is wrong.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::addressing::{self, HOSTS_MAX, NODES_MAX, Pool};
use super::{Addresses, Cidrs, Cni, Families, Host, Node, Pod, Problem, Topology};

/// Longest name of a lab: with a process id, a counter and a machine's name it must fit a file name and stay readable.
pub(super) const LAB_NAME_MAX: usize = 48;
/// Longest name of a node, pod or host: a DNS label, as in Kubernetes.
const MACHINE_NAME_MAX: usize = 63;
/// Longest device name: the kernel's IFNAMSIZ without its end mark.
const DEVICE_NAME_MAX: usize = 15;
/// Pods' addresses start here in their range: the first is the gateway's.
const FIRST_POD: usize = 2;
/// Name of the namespace that joins the uplinks.
pub(crate) const SWITCH: &str = "switch";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    name: Spanned<String>,
    families: Option<Spanned<String>>,
    cni: Option<Spanned<String>>,
    bridge_netfilter: Option<bool>,
    #[serde(default)]
    nodes: Vec<NodeEntry>,
    #[serde(default)]
    hosts: Vec<HostEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NodeEntry {
    name: Spanned<String>,
    cni: Option<Spanned<String>>,
    bridge_netfilter: Option<bool>,
    #[serde(default)]
    uplink: Vec<Spanned<String>>,
    #[serde(default)]
    pod_cidrs: Vec<Spanned<String>>,
    #[serde(default)]
    pods: Vec<PodEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PodEntry {
    name: Spanned<String>,
    namespace: Option<Spanned<String>>,
    #[serde(default)]
    addresses: Vec<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct HostEntry {
    name: Spanned<String>,
    #[serde(default)]
    addresses: Vec<Spanned<String>>,
}

pub(super) fn parse(text: &str) -> Result<Topology, Vec<Problem>> {
    let document: Document = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        vec![Problem { line, reason: error.without_snippet().to_string() }]
    })?;
    let mut check = Check::default();
    let topology = check.topology(&document);
    if check.problems.is_empty() {
        return Ok(topology);
    }
    check.problems.sort_by_key(|problem| problem.line);
    Err(check.problems)
}

/// A name becomes part of file names and of DNS names.
pub(super) fn check_name(name: &str, max: usize) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty()
        || name.len() > max
        || !name.chars().all(allowed)
        || name.starts_with('-')
        || name.ends_with('-')
    {
        return Err(format!("name {name:?}: use 1 to {max} lower-case letters, digits and inner hyphens"));
    }
    Ok(())
}

/// A name of a node, pod or host, by itself.
pub(super) fn check_machine_name(name: &str) -> Result<(), String> {
    check_name(name, MACHINE_NAME_MAX)?;
    if name == SWITCH {
        return Err(format!("the name {SWITCH:?} is taken by the lab's own switch: use another"));
    }
    Ok(())
}

/// One pod more for a node, in the default namespace.
pub(super) fn next_pod(node: &Node, name: &str) -> Result<Pod, String> {
    let mut pool = Pool::default();
    let taken = node.pods.iter().map(|pod| pod.addresses).chain([node.pod_cidrs.gateways()]);
    for address in taken.flat_map(|addresses| addresses.iter()) {
        pool.claim(address);
    }
    let addresses = Addresses {
        v4: node.pod_cidrs.v4.and_then(|range| pool.next_v4(range, FIRST_POD)),
        v6: node.pod_cidrs.v6.and_then(|range| pool.next_v6(range, FIRST_POD)),
    };
    if addresses.iter().count() != node.pod_cidrs.iter().count() {
        return Err(format!("no free address is left on {}", node.name));
    }
    // A number that no pod has had, so that two long names cannot be cut to the same.
    let unused = |position: &usize| node.pods.iter().all(|pod| pod.device != device_name(name, *position));
    let position = (node.pods.len()..).find(unused).unwrap_or(usize::MAX);
    Ok(Pod {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        addresses,
        device: device_name(name, position),
    })
}

/// Goes through a document once, filling in what is missing and noting what is wrong. After a problem it goes on with a default, so
/// that one run finds them all.
#[derive(Default)]
struct Check {
    problems: Vec<Problem>,
    /// Name of a machine to the line that has it.
    names: HashMap<String, u64>,
    pool: Pool,
}

impl Check {
    fn topology(&mut self, document: &Document) -> Topology {
        if let Err(reason) = check_name(&document.name.value, LAB_NAME_MAX) {
            self.problem(&document.name, reason);
        }
        let families = document.families.as_ref().map_or(Families::Dual, |text| self.families(text));
        let cni = document.cni.as_ref().map_or(Cni::Routed, |text| self.cni(text));
        if document.nodes.is_empty() {
            self.problem(&document.name, "the lab has no nodes: name at least one under `nodes`".to_owned());
        }
        self.limit(&document.name, "nodes", document.nodes.len(), NODES_MAX);
        self.limit(&document.name, "hosts", document.hosts.len(), HOSTS_MAX);

        // Addresses named in the file are claimed before any is handed out, so that their order in the file does not matter.
        let uplinks = Cidrs {
            v4: families.v4().then(addressing::uplink_v4),
            v6: families.v6().then(addressing::uplink_v6),
        };
        let mut nodes: Vec<Node> = document
            .nodes
            .iter()
            .zip(1..=NODES_MAX)
            .map(|(entry, number)| self.node(document, entry, number, families, cni, &uplinks))
            .collect();
        let mut hosts: Vec<Host> = document
            .hosts
            .iter()
            .map(|entry| Host {
                name: self.machine(&entry.name),
                addresses: self.addresses(&entry.addresses, &uplinks),
            })
            .collect();
        self.overlaps(document, &nodes);

        for (node, number) in nodes.iter_mut().zip(1_usize..) {
            self.fill(&mut node.uplink, &uplinks, number, document);
            let range = node.pod_cidrs;
            for pod in &mut node.pods {
                self.fill(&mut pod.addresses, &range, FIRST_POD, document);
            }
        }
        for (host, number) in hosts.iter_mut().zip(usize::from(NODES_MAX) + 1..) {
            self.fill(&mut host.addresses, &uplinks, number, document);
        }
        Topology { name: document.name.value.clone(), families, nodes, hosts }
    }

    fn node(
        &mut self,
        document: &Document,
        entry: &NodeEntry,
        number: u8,
        families: Families,
        cni: Cni,
        uplinks: &Cidrs,
    ) -> Node {
        let mut pod_cidrs = Cidrs::default();
        for text in &entry.pod_cidrs {
            match text.value.parse::<IpNet>() {
                Ok(IpNet::V4(range)) if families.v4() && pod_cidrs.v4.is_none() => {
                    pod_cidrs.v4 = Some(range.trunc())
                }
                Ok(IpNet::V6(range)) if families.v6() && pod_cidrs.v6.is_none() => {
                    pod_cidrs.v6 = Some(range.trunc())
                }
                Ok(_) => self.problem(
                    text,
                    format!("pod range {}: the lab does not use this family, or it has two", text.value),
                ),
                Err(_) => self.problem(
                    text,
                    format!("pod range {:?} is not an address range such as 10.77.1.0/24", text.value),
                ),
            }
        }
        pod_cidrs.v4 = families.v4().then(|| pod_cidrs.v4.unwrap_or_else(|| addressing::pods_v4(number)));
        pod_cidrs.v6 = families.v6().then(|| pod_cidrs.v6.unwrap_or_else(|| addressing::pods_v6(number)));
        for gateway in pod_cidrs.gateways().iter() {
            self.pool.claim(gateway);
        }
        let pods = entry
            .pods
            .iter()
            .enumerate()
            .map(|(position, pod)| self.pod(pod, position, &pod_cidrs))
            .collect();
        Node {
            name: self.machine(&entry.name),
            cni: entry.cni.as_ref().map_or(cni, |text| self.cni(text)),
            bridge_netfilter: entry.bridge_netfilter.or(document.bridge_netfilter),
            uplink: self.addresses(&entry.uplink, uplinks),
            pod_cidrs,
            pods,
        }
    }

    fn pod(&mut self, entry: &PodEntry, position: usize, range: &Cidrs) -> Pod {
        let namespace = entry.namespace.as_ref().map_or("default", |text| {
            if let Err(reason) = check_name(&text.value, MACHINE_NAME_MAX) {
                self.problem(text, format!("namespace {reason}"));
            }
            &text.value
        });
        Pod {
            name: self.machine(&entry.name),
            namespace: namespace.to_owned(),
            addresses: self.addresses(&entry.addresses, range),
            device: device_name(&entry.name.value, position),
        }
    }

    /// A name of a node, pod or host. They share one set of names, because each is a network namespace of its own.
    fn machine(&mut self, name: &Spanned<String>) -> String {
        if let Err(reason) = check_machine_name(&name.value) {
            self.problem(name, reason);
        }
        if let Some(line) = self.names.insert(name.value.clone(), name.referenced.line()) {
            self.problem(name, format!("the name {:?} is used twice, first on line {line}: nodes, pods and hosts share one set of names", name.value));
        }
        name.value.clone()
    }

    fn addresses(&mut self, texts: &[Spanned<String>], range: &Cidrs) -> Addresses {
        let mut addresses = Addresses::default();
        for text in texts {
            let Ok(address) = text.value.parse::<IpAddr>() else {
                self.problem(text, format!("{:?} is not an IP address", text.value));
                continue;
            };
            if !range.iter().any(|range| range.contains(&address)) {
                let ranges: Vec<String> = range.iter().map(|range| range.to_string()).collect();
                self.problem(text, format!("address {address} is outside of {}", ranges.join(" and ")));
            } else if !self.pool.claim(address) {
                self.problem(text, format!("address {address} is used twice or is a gateway"));
            }
            let repeated = match address {
                IpAddr::V4(v4) => addresses.v4.replace(v4).is_some(),
                IpAddr::V6(v6) => addresses.v6.replace(v6).is_some(),
            };
            if repeated {
                self.problem(text, format!("address {address}: give one address for each family"));
            }
        }
        addresses
    }

    /// Hands out the addresses that the file does not name.
    fn fill(&mut self, addresses: &mut Addresses, range: &Cidrs, first: usize, document: &Document) {
        if let (None, Some(range)) = (addresses.v4, range.v4) {
            addresses.v4 = self.pool.next_v4(range, first);
            if addresses.v4.is_none() {
                self.problem(&document.name, format!("no free address is left in {range}"));
            }
        }
        if let (None, Some(range)) = (addresses.v6, range.v6) {
            addresses.v6 = self.pool.next_v6(range, first);
        }
    }

    /// Two nodes with overlapping ranges would take each other's packets.
    fn overlaps(&mut self, document: &Document, nodes: &[Node]) {
        let mut ranges: Vec<(IpNet, &str)> = vec![
            (addressing::uplink_v4().into(), "the uplink network"),
            (addressing::uplink_v6().into(), "the uplink network"),
        ];
        for (node, entry) in nodes.iter().zip(&document.nodes) {
            for range in node.pod_cidrs.iter() {
                if let Some((other, owner)) =
                    ranges.iter().find(|(other, _)| other.contains(&range) || range.contains(other))
                {
                    let reason = format!("pod range {range} of {} overlaps {other} of {owner}", node.name);
                    self.problem(entry.pod_cidrs.first().unwrap_or(&entry.name), reason);
                }
                ranges.push((range, &node.name));
            }
        }
    }

    fn families(&mut self, text: &Spanned<String>) -> Families {
        match text.value.as_str() {
            "v4" => Families::V4,
            "v6" => Families::V6,
            "dual" => Families::Dual,
            other => {
                self.problem(text, format!("families {other:?} is not known: use v4, v6 or dual"));
                Families::Dual
            }
        }
    }

    fn cni(&mut self, text: &Spanned<String>) -> Cni {
        match text.value.as_str() {
            "routed" => Cni::Routed,
            "bridge" => Cni::Bridge,
            other => {
                self.problem(text, format!("cni {other:?} is not known: use routed or bridge"));
                Cni::Routed
            }
        }
    }

    fn limit(&mut self, place: &Spanned<String>, what: &str, count: usize, max: u8) {
        if count > usize::from(max) {
            self.problem(place, format!("{count} {what} are too many: at most {max} have addresses"));
        }
    }

    fn problem(&mut self, place: &Spanned<String>, reason: String) {
        self.problems.push(Problem { line: place.referenced.line(), reason });
    }
}

/// The node's end of a pod's veth: `p-<pod>`, or, when that is too long for the kernel, `p<position>-<start of the name>`.
fn device_name(pod: &str, position: usize) -> String {
    let name = format!("p-{pod}");
    if name.len() <= DEVICE_NAME_MAX {
        return name;
    }
    format!("p{position}-{pod}").chars().take(DEVICE_NAME_MAX).collect()
}
