//! Pods from the Kubernetes API: those of this node, enrolled by label.
//!
//! `istio.io/dataplane-mode: ambient` on a pod or on its namespace enrols it, `none` on the pod keeps it out; the
//! pod's word counts before the namespace's. Which of its traffic is steered says the pod itself
//! ([`annotations`]). A pod whose traffic is steered gets the annotation `ambient.istio.io/redirection: enabled`
//! ([`marker`]), and loses it a moment before it is steered no longer ([`departure`]).
//!
//! The watches resume by themselves, with backoff. While the API is away, what is known stays.

mod annotations;
mod departure;
mod marker;
mod translate;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Api, Client, ResourceExt};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use self::marker::Marker;
use self::translate::Translator;
use super::{DesiredPods, PodStatuses};
use crate::kubernetes::watch_backoff;
use crate::pods::FailureMode;

/// What the agent knows of its place in Kubernetes.
#[derive(Debug, Clone)]
pub struct KubernetesSettings {
    /// Name of this node.
    pub node: Arc<str>,
    /// Name of the cluster, the first part of every pod's uid.
    pub cluster: Arc<str>,
    /// What pods get that do not say themselves.
    pub failure_mode: FailureMode,
}

/// Watches the pods of this node.
pub struct KubernetesSource {
    client: Client,
    settings: KubernetesSettings,
    provisional: DesiredPods,
    statuses: watch::Receiver<PodStatuses>,
}

impl KubernetesSource {
    /// A source that names `provisional` pods until the API has answered for the first time, so that an agent
    /// that starts while the API is away serves whom it knows from its last good configuration. Pods are
    /// annotated as `statuses` says.
    pub fn new(
        client: Client,
        settings: KubernetesSettings,
        provisional: DesiredPods,
        statuses: watch::Receiver<PodStatuses>,
    ) -> Self {
        let provisional = DesiredPods { complete: false, ..provisional };
        Self { client, settings, provisional, statuses }
    }

    pub(super) async fn run(self, desired: watch::Sender<DesiredPods>) {
        desired.send_replace(self.provisional);
        let (pods, pod_writer) = reflector::store::<Pod>();
        let (namespaces, namespace_writer) = reflector::store::<PartialObjectMeta<Namespace>>();
        let here = watcher::Config::default().fields(&format!("spec.nodeName={}", self.settings.node));

        let mut pod_events = watch_objects(Api::<Pod>::all(self.client.clone()), here)
            .backoff(watch_backoff())
            .modify(forget_unused)
            .reflect(pod_writer)
            .boxed();
        let mut namespace_events = watch_objects(
            Api::<PartialObjectMeta<Namespace>>::all(self.client.clone()),
            watcher::Config::default(),
        )
        .backoff(watch_backoff())
        .modify(|namespace| namespace.managed_fields_mut().clear())
        .reflect(namespace_writer)
        .boxed();

        let changed = Arc::new(Notify::new());
        let marker = Marker::new(
            self.client,
            Arc::clone(&self.settings.cluster),
            pods.clone(),
            self.statuses,
            desired.subscribe(),
            Arc::clone(&changed),
        );
        let follow = async {
            let mut translator = Translator::new(self.settings);
            let (mut pods_listed, mut namespaces_listed) = (false, false);
            loop {
                let departure = translator.next_departure();
                tokio::select! {
                    Some(event) = pod_events.next() => pods_listed |= listed("pods", event),
                    Some(event) = namespace_events.next() => namespaces_listed |= listed("namespaces", event),
                    () = until(departure), if departure.is_some() => {}
                    else => return,
                }
                // Half of a list, or pods without their namespaces, would say that pods have left.
                if pods_listed && namespaces_listed {
                    let current =
                        translator.translate(&pods.state(), &labels_of(&namespaces), Instant::now());
                    desired.send_if_modified(|last| {
                        let news = *last != current;
                        if news {
                            *last = current;
                        }
                        news
                    });
                    changed.notify_one();
                }
            }
        };
        tokio::join!(follow, marker.run());
    }
}

async fn until(instant: Option<Instant>) {
    if let Some(instant) = instant {
        sleep_until(instant).await;
    }
}

/// Whether an event completes a list. Errors are retried by the stream itself.
fn listed<K>(what: &'static str, event: Result<Event<K>, watcher::Error>) -> bool {
    match event {
        Ok(event) => matches!(event, Event::InitDone),
        Err(error) => {
            warn!(what, %error, "Kubernetes API does not answer; what is known stays");
            false
        }
    }
}

type Labels = HashMap<String, BTreeMap<String, String>>;

fn labels_of(namespaces: &Store<PartialObjectMeta<Namespace>>) -> Labels {
    namespaces.state().iter().map(|namespace| (namespace.name_any(), namespace.labels().clone())).collect()
}

/// Containers and their states are most of a pod, and none of it is used here.
fn forget_unused(pod: &mut Pod) {
    pod.managed_fields_mut().clear();
    if let Some(spec) = &mut pod.spec {
        spec.containers.clear();
        spec.init_containers = None;
        spec.volumes = None;
    }
    if let Some(status) = &mut pod.status {
        status.conditions = None;
        status.container_statuses = None;
        status.init_container_statuses = None;
    }
}
