//! Kubernetes' pods in the agent's own terms.
//!
//! A pod is here from when it has an address until the API forgets it, also while it terminates: it still serves what is
//! open, and what is on the way to it. One that has ended no longer has its address; of one that is being deleted the address may be
//! another's before the API knows. So where two pods claim an address, the one that stays has it, and of two such the younger.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::Instant;

use super::departure::Departures;
use super::marker::is_marked;
use super::{KubernetesSettings, Labels, annotations};
use crate::enrolment::DesiredPods;
use crate::pods::LocalPod;

const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

/// What injectors write on pods that they give a proxy, and whose that is. Traffic must not pass two.
const SIDECARS: [(&str, &str); 4] = [
    ("sidecar.istio.io/status", "Istio"),
    ("linkerd.io/proxy-version", "Linkerd"),
    ("kuma.io/sidecar-injected", "Kuma"),
    ("consul.hashicorp.com/connect-inject-status", "Consul"),
];

/// Of static pods and their mirrors: the kubelet's uid of the pod.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// Translates whole sets of pods, and remembers the last one for its good values.
pub(super) struct Translator {
    settings: KubernetesSettings,
    last: HashMap<Arc<str>, Arc<LocalPod>>,
    departures: Departures,
}

impl Translator {
    pub(super) fn new(settings: KubernetesSettings) -> Self {
        Self { settings, last: HashMap::new(), departures: Departures::default() }
    }

    /// The local pods among `pods`, given the labels of all namespaces, in the order of their uids.
    pub(super) fn translate(&mut self, pods: &[Arc<Pod>], namespaces: &Labels, now: Instant) -> DesiredPods {
        let mut desired = DesiredPods { complete: true, ..DesiredPods::default() };
        let owners = owners(pods);
        for pod in pods {
            let labels = pod.namespace().and_then(|name| namespaces.get(&name));
            if let Some((mut local, problems)) = self.local(pod, labels, &owners) {
                if !local.enrolled && self.was_enrolled(&local) {
                    local.enrolled = self.departures.holds(&local.uid, is_marked(pod), now);
                    if local.enrolled {
                        desired.leaving.insert(Arc::clone(&local.uid));
                    }
                }
                if !problems.is_empty() {
                    desired.problems.insert(Arc::clone(&local.uid), problems.join("; "));
                }
                desired.pods.push(Arc::new(local));
            }
        }
        desired.pods.sort_by(|one, other| one.uid.cmp(&other.uid));
        self.departures.retain(&desired.leaving);
        self.last = desired.pods.iter().map(|pod| (Arc::clone(&pod.uid), Arc::clone(pod))).collect();
        desired
    }

    /// When it is time to translate again, though nothing has changed.
    pub(super) fn next_departure(&self) -> Option<Instant> {
        self.departures.next()
    }

    /// Whether the same pod, at the same addresses, was enrolled until now.
    fn was_enrolled(&self, pod: &LocalPod) -> bool {
        self.last.get(&pod.uid).is_some_and(|last| {
            last.enrolled && last.kubernetes_uid == pod.kubernetes_uid && last.addresses == pod.addresses
        })
    }

    /// `None` for what has no address of its own.
    fn local(
        &self,
        pod: &Pod,
        namespace: Option<&BTreeMap<String, String>>,
        owners: &Owners<'_>,
    ) -> Option<(LocalPod, Vec<String>)> {
        let spec = pod.spec.as_ref()?;
        let mine = |address: &IpAddr| owners.get(address).is_some_and(|owner| std::ptr::eq(*owner, pod));
        let addresses: Vec<_> = addresses(pod).filter(mine).collect();
        if addresses.is_empty() {
            return None;
        }

        let uid = uid(&self.settings.cluster, pod);
        let last = self.last.get(&uid).map(Arc::as_ref);
        let settings = annotations::read(pod.annotations(), self.settings.failure_mode, last);
        let mut problems = settings.problems;
        let local = LocalPod {
            uid,
            name: pod.name_any().into(),
            namespace: pod.namespace().unwrap_or_default().into(),
            kubernetes_uid: kubelet_uid(pod),
            service_account: spec.service_account_name.as_deref().unwrap_or("default").into(),
            addresses,
            device: None,
            enrolled: enrolled(pod, namespace, &mut problems),
            redirection: settings.redirection,
            failure_mode: settings.failure_mode,
        };
        Some((local, problems))
    }
}

/// Whose each address is.
type Owners<'a> = HashMap<IpAddr, &'a Pod>;

fn owners(pods: &[Arc<Pod>]) -> Owners<'_> {
    let mut owners = Owners::new();
    for pod in pods {
        for address in addresses(pod) {
            let owner = owners.entry(address).or_insert(pod);
            if claim(pod) > claim(owner) {
                *owner = pod;
            }
        }
    }
    owners
}

/// How good a pod's claim to an address is: better than that of one that is being deleted, and of an older one.
fn claim(pod: &Pod) -> (bool, Option<Timestamp>) {
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (pod.metadata.deletion_timestamp.is_none(), created)
}

/// The addresses that are a pod's own. None of a pod in its node's network, of one that has ended (another may have its
/// address already), and of one that has not got any yet.
fn addresses(pod: &Pod) -> impl Iterator<Item = IpAddr> + '_ {
    let in_nodes_network = pod.spec.as_ref().is_none_or(|spec| spec.host_network == Some(true));
    let has_network =
        |phase: Option<&str>| !in_nodes_network && !matches!(phase, Some("Succeeded" | "Failed"));
    let status = pod.status.as_ref().filter(|status| has_network(status.phase.as_deref()));
    let listed = status.and_then(|status| status.pod_ips.as_deref()).unwrap_or_default();
    listed.iter().filter_map(|address| address.ip.parse().ok())
}

/// The uid that the control server gives the same pod.
pub(super) fn uid(cluster: &str, pod: &Pod) -> Arc<str> {
    format!("{cluster}//Pod/{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()).into()
}

/// The uid the kubelet knows the pod by. That of a static pod is a hash of its manifest; the API's is its mirror's.
fn kubelet_uid(pod: &Pod) -> Option<Arc<str>> {
    let of_static_pod = pod.annotations().get(CONFIG_HASH);
    of_static_pod.or(pod.metadata.uid.as_ref()).map(|uid| uid.as_str().into())
}

fn enrolled(pod: &Pod, namespace: Option<&BTreeMap<String, String>>, problems: &mut Vec<String>) -> bool {
    let wanted = match pod.labels().get(DATAPLANE_MODE).map(String::as_str) {
        Some("ambient") => true,
        Some("none") => false,
        other => {
            if let Some(other) = other {
                problems.push(format!("label {DATAPLANE_MODE}: expected ambient or none, found {other:?}"));
            }
            namespace.and_then(|labels| labels.get(DATAPLANE_MODE)).is_some_and(|mode| mode == "ambient")
        }
    };
    let sidecar = SIDECARS.iter().find(|(annotation, _)| pod.annotations().contains_key(*annotation));
    if let Some((_, mesh)) = sidecar.filter(|_| wanted) {
        problems.push(format!(
            "not enrolled: it has a sidecar of {mesh}, and traffic must not pass two proxies; restart it without injection"
        ));
    }
    wanted && sidecar.is_none()
}

#[cfg(test)]
mod tests;
