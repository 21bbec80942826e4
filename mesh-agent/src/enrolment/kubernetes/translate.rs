//! Kubernetes' pods in the agent's own terms.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::{KubernetesSettings, Labels, annotations};
use crate::enrolment::DesiredPods;
use crate::pods::LocalPod;

const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

/// Put there by Istio's injector: the pod has a proxy of its own, and its traffic must not pass two.
const SIDECAR_STATUS: &str = "sidecar.istio.io/status";

/// Of static pods and their mirrors: the kubelet's uid of the pod.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// Translates whole sets of pods, and remembers the last one for its good values.
pub(super) struct Translator {
    settings: KubernetesSettings,
    last: HashMap<Arc<str>, Arc<LocalPod>>,
}

impl Translator {
    pub(super) fn new(settings: KubernetesSettings) -> Self {
        Self { settings, last: HashMap::new() }
    }

    /// The local pods among `pods`, given the labels of all namespaces, in the order of their uids.
    pub(super) fn translate(&mut self, pods: &[Arc<Pod>], namespaces: &Labels) -> DesiredPods {
        let mut desired = DesiredPods { complete: true, ..DesiredPods::default() };
        for pod in pods {
            let labels = pod.namespace().and_then(|name| namespaces.get(&name));
            if let Some((local, problems)) = self.local(pod, labels) {
                if !problems.is_empty() {
                    desired.problems.insert(Arc::clone(&local.uid), problems.join("; "));
                }
                desired.pods.push(Arc::new(local));
            }
        }
        desired.pods.sort_by(|one, other| one.uid.cmp(&other.uid));
        self.last = desired.pods.iter().map(|pod| (Arc::clone(&pod.uid), Arc::clone(pod))).collect();
        desired
    }

    /// `None` for what has no network of its own: a pod in the node's, one that has ended (another may have its
    /// address already), and one that has not got an address yet.
    fn local(
        &self,
        pod: &Pod,
        namespace: Option<&BTreeMap<String, String>>,
    ) -> Option<(LocalPod, Vec<String>)> {
        let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if ended || spec.host_network == Some(true) {
            return None;
        }
        let addresses: Vec<_> =
            status.pod_ips.iter().flatten().filter_map(|address| address.ip.parse().ok()).collect();
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
    wanted && !pod.annotations().contains_key(SIDECAR_STATUS)
}

#[cfg(test)]
mod tests;
