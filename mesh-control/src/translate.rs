//! From resources to what agents are told: the `Address` and `Authorization` resources of Istio's ambient protocols.
//!
//! Every input that becomes an output is an `Item`. A change marks the items that look at what changed
//! (`inputs::Inputs` knows who looks at what), each marked item is translated anew by a function of the inputs
//! alone, and only what came out different goes on. The result is therefore the same whichever way the inputs came
//! to be what they are, which the tests check with random changes.

mod authorization;
mod endpoint;
mod index;
mod inputs;
mod membership;
mod mutual_tls;
mod output;
mod pod;
mod policies;
mod service;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use mesh_xds::proto::workload::NetworkAddress;
use tracing::warn;

use crate::model::{Kind, ObjectName};
use crate::source::Change;
use index::Few;
pub(crate) use index::Labelled;
use inputs::Inputs;
use output::Summary;
pub use output::{Message, Output, OutputName, OutputType, Served};

/// The usual trust domain. Where a policy names it, whatever trust domain the mesh has is meant.
const CLUSTER_LOCAL: &str = "cluster.local";

/// What items have been translated to.
type Fresh = HashMap<Item, Vec<Output>>;

/// What is the same for everything in the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    /// Name of the cluster, the first part of every workload's uid.
    pub cluster_id: String,
    /// Domain of Kubernetes services, `cluster.local`.
    pub cluster_domain: String,
    /// Network of what does not say otherwise.
    pub network: String,
    /// Trust domain of the identities.
    pub trust_domain: String,
    /// Other names of it: an identity that a policy names in one of them is meant in all of them.
    pub trust_domain_aliases: Vec<String>,
    /// Namespace whose policies are for the whole mesh.
    pub root_namespace: String,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            cluster_id: "Kubernetes".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            network: String::new(),
            trust_domain: CLUSTER_LOCAL.to_owned(),
            trust_domain_aliases: Vec::new(),
            root_namespace: "istio-system".to_owned(),
        }
    }
}

impl Mesh {
    /// The host name of a Kubernetes service.
    fn hostname(&self, service: &ObjectName) -> String {
        format!("{}.{}.svc.{}", service.name, service.namespace, self.cluster_domain)
    }

    /// The trust domain as the protocol has it: the usual one is left out.
    fn wire_trust_domain(&self) -> String {
        if self.trust_domain == CLUSTER_LOCAL { String::new() } else { self.trust_domain.clone() }
    }

    fn uid(&self, kind: Kind, name: &ObjectName) -> String {
        format!("{}/{}/{kind}/{}/{}", self.cluster_id, kind.group(), name.namespace, name.name)
    }
}

/// An input that becomes one or more outputs. Where two of them claim one name, the smaller has it: a Kubernetes
/// service before a service entry for the same host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Item {
    Service(ObjectName),
    ServiceEntry(ObjectName),
    Pod(ObjectName),
    WorkloadEntry(ObjectName),
    EndpointSlice(ObjectName),
    AuthorizationPolicy(ObjectName),
    PeerAuthentication(ObjectName),
}

/// What a change of inputs amounts to.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Delta {
    /// Resources that are new or different, by name.
    pub upserts: Vec<Arc<Output>>,
    /// Names of resources that are gone.
    pub removals: Vec<OutputName>,
}

impl Delta {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }
}

/// Keeps the outputs up to date with the inputs. They themselves are not kept: they follow from the inputs.
#[derive(Debug, Default)]
pub struct Translator {
    mesh: Mesh,
    inputs: Inputs,
    known: HashMap<OutputName, Known>,
    /// What an item produces.
    produced: HashMap<Item, Box<[OutputName]>>,
    served: Served,
}

/// What is known of a resource of a name.
#[derive(Debug, Default)]
struct Known {
    /// Who produces it, the one that counts first.
    claims: Few<Item>,
    /// What it was when it was told last; none while it is not there.
    told: Option<Summary>,
}

impl Translator {
    /// Nothing yet.
    pub fn new(mesh: Mesh) -> Self {
        Self { inputs: Inputs::new(mesh.root_namespace.as_str().into()), mesh, ..Self::default() }
    }

    /// Works the changes in and returns what they change.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Delta {
        let mut dirty = BTreeSet::new();
        for change in changes {
            self.inputs.apply(change, &mut dirty);
        }
        let mut fresh = Fresh::new();
        let mut touched = BTreeSet::new();
        for item in dirty {
            self.refresh(item, &mut fresh, &mut touched);
        }
        let mut delta = Delta::default();
        for name in touched {
            let now = self.resource(&name, &mut fresh);
            let summary = now.as_ref().map(Output::summary);
            let Some(known) = self.known.get_mut(&name) else { continue };
            let was = std::mem::replace(&mut known.told, summary);
            if known.claims.is_empty() {
                self.known.remove(&name);
            }
            self.served.replace(was, summary);
            match (was, now) {
                (was, Some(_)) if was == summary => {}
                (_, Some(now)) => delta.upserts.push(Arc::new(now)),
                (Some(_), None) => delta.removals.push(name),
                (None, None) => {}
            }
        }
        delta
    }

    /// Number of inputs of each kind.
    pub fn inputs(&self) -> impl Iterator<Item = (Kind, usize)> {
        Kind::ALL.into_iter().map(|kind| (kind, self.inputs.count(kind)))
    }

    /// Number of outputs.
    pub fn served(&self) -> Served {
        self.served
    }

    /// The output of this name, by whoever it counts of.
    fn resource(&self, name: &OutputName, fresh: &mut Fresh) -> Option<Output> {
        let owner = self.known.get(name)?.claims.iter().next()?;
        // One that did not change comes to count when the one before it is gone.
        let outputs = fresh.entry(owner.clone()).or_insert_with(|| self.translate(owner));
        let place = outputs.iter().rposition(|output| output.name == *name)?;
        Some(outputs.swap_remove(place))
    }

    /// Translates an item anew; notes the names of what it produces now, and did until now, as touched.
    fn refresh(&mut self, item: Item, fresh: &mut Fresh, touched: &mut BTreeSet<OutputName>) {
        for name in self.produced.remove(&item).unwrap_or_default() {
            if let Some(known) = self.known.get_mut(&name) {
                known.claims.remove(&item);
            }
            touched.insert(name);
        }
        let outputs = self.translate(&item);
        if outputs.is_empty() {
            return;
        }
        for output in &outputs {
            let claims = &mut self.known.entry(output.name.clone()).or_default().claims;
            claims.insert(item.clone());
            let mut owners = claims.iter();
            if let (Some(owner), Some(second)) = (owners.next(), owners.next()) {
                let name = &*output.name.name;
                warn!(name, ?owner, ?second, "two resources claim one name: only the first is served");
            }
        }
        touched.extend(outputs.iter().map(|output| output.name.clone()));
        self.produced.insert(item.clone(), outputs.iter().map(|output| output.name.clone()).collect());
        fresh.insert(item, outputs);
    }

    fn translate(&self, item: &Item) -> Vec<Output> {
        let (mesh, inputs) = (&self.mesh, &self.inputs);
        let resources = match item {
            Item::Service(name) => inputs
                .services
                .get(name)
                .and_then(|service| service::kubernetes(mesh, inputs, service))
                .map(|service| vec![service.into()]),
            Item::ServiceEntry(name) => {
                inputs.service_entries.get(name).map(|entry| service::entry(mesh, inputs, entry))
            }
            Item::Pod(name) => inputs
                .pods
                .get(name)
                .and_then(|pod| pod::workload(mesh, inputs, pod))
                .map(|workload| vec![workload.into()]),
            Item::WorkloadEntry(name) => inputs
                .workload_entries
                .get(name)
                .map(|entry| vec![endpoint::workload_entry(mesh, inputs, entry).into()]),
            Item::EndpointSlice(name) => {
                inputs.slices.get(name).map(|slice| endpoint::opaque(mesh, inputs, slice))
            }
            Item::AuthorizationPolicy(name) => inputs
                .policies
                .authorization(name)
                .map(|policy| vec![authorization::of_policy(mesh, policy).into()]),
            Item::PeerAuthentication(name) => inputs
                .policies
                .peer(name)
                .and_then(|policy| mutual_tls::authorization(&inputs.policies, policy))
                .map(|authorization| vec![authorization.into()]),
        };
        resources.unwrap_or_default()
    }
}

/// An address as the protocol has it: 4 or 16 bytes.
pub(crate) fn octets(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(address) => Bytes::copy_from_slice(&address.octets()),
        IpAddr::V6(address) => Bytes::copy_from_slice(&address.octets()),
    }
}

fn network_address(network: &str, address: IpAddr) -> NetworkAddress {
    NetworkAddress { network: network.to_owned(), address: octets(address), length: None }
}
