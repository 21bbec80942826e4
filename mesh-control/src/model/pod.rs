//! Pods.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mesh_xds::proto::mesh::TrafficRedirection;
use mesh_xds::proto::workload::WorkloadType;

use super::annotations::{self, NETWORK};
use super::findings::{Findings, field};
use super::metadata::{Labels, ObjectName};

/// Label a Deployment puts on the pods of each of its ReplicaSets, whose name ends with it.
const TEMPLATE_HASH: &str = "pod-template-hash";
/// A CronJob names its Jobs after itself and the minute, in digits since the epoch.
const CRON_MINUTE_DIGITS: std::ops::RangeInclusive<usize> = 8..=10;

/// A pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// Addresses; none until the pod has started.
    pub addresses: Vec<IpAddr>,
    /// Node it runs on; empty until it is scheduled.
    pub node: Arc<str>,
    /// Service account.
    pub service_account: String,
    /// Labels.
    pub labels: Labels,
    /// Whether it is enrolled, where its own label says so.
    pub enrolled: Option<bool>,
    /// Whether its traffic is steered, as its agent says. It takes tunnels then, also while it is on its way out of the mesh.
    pub steered: bool,
    /// Whether it shares the network of its node.
    pub host_network: bool,
    /// Whether it takes traffic.
    pub ready: bool,
    /// Whether it is being ended.
    pub terminating: bool,
    /// Whether it is being ended but still answers.
    pub draining: bool,
    /// When it was started, in seconds since 1970, as far as is known: of two pods that say they have one address the
    /// later one has it.
    pub started: Option<i64>,
    /// Whether it came to its end and only its record is left.
    pub finished: bool,
    /// The object that made it.
    pub owner: Owner,
    /// Named ports of its containers.
    pub ports: Vec<ContainerPort>,
    /// Network it is in, where its own label says so.
    pub network: Option<String>,
    /// Which of its traffic is steered, if not all.
    pub redirection: Option<TrafficRedirection>,
}

/// A port with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPort {
    /// Name, unique in the pod.
    pub name: String,
    /// Number.
    pub number: u16,
}

/// The object that makes pods of one kind, for telemetry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its kind.
    pub kind: WorkloadType,
    /// Its name.
    pub name: String,
}

impl Pod {
    /// Reads the object of the API.
    pub fn read(object: core::Pod, findings: &mut Findings) -> Self {
        let name = ObjectName::namespaced(&object.metadata, findings);
        let labels = object.metadata.labels.clone().unwrap_or_default();
        let annotations = object.metadata.annotations.clone().unwrap_or_default();
        let spec = object.spec.unwrap_or_default();
        let status = object.status.unwrap_or_default();
        let terminating = object.metadata.deletion_timestamp.is_some();
        let ready = is_ready(&status);
        let started = status.start_time.as_ref().or(object.metadata.creation_timestamp.as_ref());
        Self {
            addresses: addresses(&status, findings),
            node: spec.node_name.as_deref().unwrap_or_default().into(),
            service_account: spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned()),
            enrolled: annotations::enrolled(&labels, &field!["metadata", "labels"], findings),
            steered: annotations::steered(&annotations),
            host_network: spec.host_network.unwrap_or(false),
            ready: ready && !terminating,
            terminating,
            draining: ready && terminating,
            started: started.map(|time| time.0.as_second()),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            owner: Owner::of(&object.metadata, &labels),
            ports: named_ports(&spec, findings),
            network: labels.get(NETWORK).cloned(),
            redirection: annotations::redirection(&annotations, findings),
            name,
            labels,
        }
    }

    /// The number of the port that its containers call `name`.
    pub fn named_port(&self, name: &str) -> Option<u16> {
        self.ports.iter().find(|port| port.name == name).map(|port| port.number)
    }
}

fn addresses(status: &core::PodStatus, findings: &mut Findings) -> Vec<IpAddr> {
    let listed = status.pod_ips.as_deref().unwrap_or_default();
    let mut addresses: Vec<IpAddr> = listed
        .iter()
        .enumerate()
        .filter_map(|(index, pod_ip)| {
            findings.address(&pod_ip.ip, || field!["status", "podIPs", index, "ip"])
        })
        .collect();
    // podIP repeats the first of podIPs, and stands alone only in manifests written by hand.
    if let (Some(text), true) = (&status.pod_ip, listed.is_empty()) {
        addresses.extend(findings.address(text, || field!["status", "podIP"]));
    }
    addresses
}

/// The Ready condition; without conditions (a manifest written by hand) a running pod is ready.
fn is_ready(status: &core::PodStatus) -> bool {
    let condition = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "Ready")
        .map(|condition| condition.status == "True");
    condition.unwrap_or_else(|| status.phase.as_deref() == Some("Running"))
}

fn named_ports(spec: &core::PodSpec, findings: &mut Findings) -> Vec<ContainerPort> {
    let mut named = Vec::new();
    // An init container that runs along with the others (a sidecar to Kubernetes) has ports that count.
    let along = |container: &core::Container| container.restart_policy.as_deref() == Some("Always");
    let init = spec.init_containers.iter().flatten().enumerate().filter(|(_, container)| along(container));
    let all = spec.containers.iter().enumerate().map(|found| ("containers", found));
    for (list, (c, container)) in all.chain(init.map(|found| ("initContainers", found))) {
        for (p, port) in container.ports.iter().flatten().enumerate() {
            let place = || field!["spec", list, c, "ports", p, "containerPort"];
            let number = findings.port(port.container_port, place);
            let tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
            if let (Some(name), Some(number), true) = (&port.name, number, tcp) {
                named.push(ContainerPort { name: name.clone(), number });
            }
        }
    }
    named
}

impl Owner {
    /// The controller of a pod, seen through the ReplicaSet of a Deployment and the Job of a CronJob.
    fn of(metadata: &ObjectMeta, labels: &Labels) -> Self {
        let controller =
            metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let Some(controller) = controller else {
            let name = metadata.name.clone().unwrap_or_default();
            return Self { kind: WorkloadType::Pod, name };
        };
        let name = controller.name.as_str();
        let (kind, name) = match controller.kind.as_str() {
            "Deployment" => (WorkloadType::Deployment, name),
            "ReplicaSet" => match deployment(name, labels) {
                Some(deployment) => (WorkloadType::Deployment, deployment),
                None => (WorkloadType::Pod, name),
            },
            "CronJob" => (WorkloadType::Cronjob, name),
            "Job" => match cron_job(name) {
                Some(cron_job) => (WorkloadType::Cronjob, cron_job),
                None => (WorkloadType::Job, name),
            },
            // The protocol has no word for StatefulSet, DaemonSet and those of others.
            _ => (WorkloadType::Pod, name),
        };
        Self { kind, name: name.to_owned() }
    }
}

fn deployment<'a>(replica_set: &'a str, labels: &Labels) -> Option<&'a str> {
    replica_set.strip_suffix(labels.get(TEMPLATE_HASH)?.as_str())?.strip_suffix('-')
}

fn cron_job(job: &str) -> Option<&str> {
    let (cron_job, minute) = job.rsplit_once('-')?;
    let named_by_minute =
        CRON_MINUTE_DIGITS.contains(&minute.len()) && minute.bytes().all(|byte| byte.is_ascii_digit());
    named_by_minute.then_some(cron_job)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(manifest: serde_json::Value) -> (Pod, Vec<String>) {
        let mut findings = Findings::default();
        let pod = Pod::read(serde_json::from_value(manifest).unwrap(), &mut findings);
        (pod, findings.into_vec().into_iter().map(|found| found.path.to_string()).collect())
    }

    fn owned(kind: &str, name: &str, hash: &str) -> Owner {
        let (pod, _) = pod(serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "p", "labels": {"pod-template-hash": hash},
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Other", "name": "not-me", "uid": "0"},
                    {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "1", "controller": true},
                ],
            },
        }));
        pod.owner
    }

    #[test]
    fn owners_are_those_people_know() {
        let owner = |kind, name: &str| Owner { kind, name: name.to_owned() };
        assert_eq!(owned("ReplicaSet", "web-7d9f", "7d9f"), owner(WorkloadType::Deployment, "web"));
        assert_eq!(owned("ReplicaSet", "bare", "7d9f"), owner(WorkloadType::Pod, "bare"));
        assert_eq!(owned("Job", "report-28999115", ""), owner(WorkloadType::Cronjob, "report"));
        assert_eq!(owned("Job", "migrate-2", ""), owner(WorkloadType::Job, "migrate-2"));
        assert_eq!(owned("StatefulSet", "db", ""), owner(WorkloadType::Pod, "db"));
    }

    #[test]
    fn readiness_is_the_condition_and_the_phase_where_there_is_none() {
        let ready = |status: serde_json::Value, deleted: bool| {
            let deletion = deleted.then_some("2025-01-01T00:00:00Z");
            pod(serde_json::json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "p", "deletionTimestamp": deletion}, "status": status,
            }))
            .0
            .ready
        };
        let condition = |value: &str| serde_json::json!({"phase": "Running", "conditions": [{"type": "Ready", "status": value}]});
        assert!(ready(condition("True"), false));
        assert!(!ready(condition("False"), false));
        assert!(!ready(condition("True"), true), "a pod that is going takes no new connections");
        assert!(ready(serde_json::json!({"phase": "Running"}), false));
        assert!(!ready(serde_json::json!({"phase": "Pending"}), false));
    }

    #[test]
    fn named_ports_are_those_of_containers_that_stay() {
        let (pod, problems) = pod(serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {
                "containers": [{"name": "a", "ports": [{"name": "web", "containerPort": 80}]}],
                "initContainers": [
                    {"name": "b", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 81}]},
                    {"name": "c", "ports": [{"name": "once", "containerPort": 82}]},
                ],
            },
        }));
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(["web", "side", "once"].map(|name| pod.named_port(name)), [Some(80), Some(81), None]);
    }

    #[test]
    fn every_bad_field_is_found() {
        let (_, paths) = pod(serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "Bad"},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 70000}]}]},
            "status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.256"}]},
        }));
        assert_eq!(
            paths,
            ["metadata.name", "status.podIPs[1].ip", "spec.containers[0].ports[0].containerPort"]
        );
    }
}
