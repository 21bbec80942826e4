//! The pods of this node, as far as steering is concerned.
//!
//! A pod source (`enrolment`) says which pods the node has, `steering` writes them into the
//! kernel, and the proxy looks up in the published [`LocalPods`] who a connection belongs to. The snapshot is
//! published *before* the kernel starts to steer a pod and withdrawn *after* it stopped, so that a steered
//! connection always finds its pod here.

mod redirection;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_xds::identity::Identity;
use serde::Serialize;

pub use redirection::{CidrSelection, PortSelection, Reason, Redirection, Verdict};

/// What happens to new connections of a pod while no agent is there to take them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureMode {
    /// They pass the mesh by, straight to their destination: availability first.
    #[default]
    Open,
    /// They are dropped: nothing leaves or reaches the pod without the mesh's policy.
    Closed,
}

/// The network device of a pod in the node's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodDevice {
    /// Interface index in the node's network namespace.
    pub index: u32,
    /// Interface name, for people.
    pub name: String,
}

/// A pod of this node, enrolled in the mesh or only known to be here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LocalPod {
    /// Unique for the life of the pod: the workload uid where the control server named the pod, else
    /// `<cluster>//Pod/<namespace>/<name>`, which is the same text.
    pub uid: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Pod namespace.
    pub namespace: Arc<str>,
    /// The uid by which the kubelet names its cgroup; `None` for a pod that no kubelet runs, as far as is known.
    pub kubernetes_uid: Option<Arc<str>>,
    /// Kubernetes service account, the base of the pod's identity.
    pub service_account: Arc<str>,
    /// All addresses of the pod, IPv4 and IPv6.
    pub addresses: Vec<IpAddr>,
    /// Host-side device, once discovered; until then the source of its packets is not checked against it.
    pub device: Option<PodDevice>,
    /// Whether the pod's traffic is steered. A pod that is known but not enrolled still owns its addresses:
    /// nobody else may send from them.
    pub enrolled: bool,
    /// Which of its traffic is steered.
    pub redirection: Redirection,
    /// What happens while no agent runs.
    pub failure_mode: FailureMode,
}

impl LocalPod {
    /// Who the pod is, in the trust domain of its node.
    pub fn identity(&self, trust_domain: &Arc<str>) -> Identity {
        Identity::new(
            Arc::clone(trust_domain),
            Arc::clone(&self.namespace),
            Arc::clone(&self.service_account),
        )
    }
}

/// An immutable set of local pods, indexed by address and by uid.
#[derive(Debug, Default)]
pub struct LocalPods {
    by_uid: HashMap<Arc<str>, Arc<LocalPod>>,
    by_address: HashMap<IpAddr, Arc<LocalPod>>,
}

impl LocalPods {
    /// Indexes `pods`. Where two pods claim one address (one is leaving, the other took its address over), the
    /// later one in iteration order has it.
    pub fn new(pods: impl IntoIterator<Item = Arc<LocalPod>>) -> Self {
        let mut set = Self::default();
        for pod in pods {
            for address in &pod.addresses {
                set.by_address.insert(*address, Arc::clone(&pod));
            }
            set.by_uid.insert(Arc::clone(&pod.uid), pod);
        }
        set
    }

    /// The pod that owns `address`, enrolled or not.
    pub fn by_address(&self, address: IpAddr) -> Option<&Arc<LocalPod>> {
        self.by_address.get(&address)
    }

    /// The pod that owns `address`, if its traffic is steered.
    pub fn enrolled_by_address(&self, address: IpAddr) -> Option<&Arc<LocalPod>> {
        self.by_address(address).filter(|pod| pod.enrolled)
    }

    /// The pod with this uid.
    pub fn by_uid(&self, uid: &str) -> Option<&Arc<LocalPod>> {
        self.by_uid.get(uid)
    }

    /// All pods, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<LocalPod>> {
        self.by_uid.values()
    }

    /// Number of pods.
    pub fn len(&self) -> usize {
        self.by_uid.len()
    }

    /// Whether there is no pod at all.
    pub fn is_empty(&self) -> bool {
        self.by_uid.is_empty()
    }
}
