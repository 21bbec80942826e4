//! The same mesh as the objects that a Kubernetes API has of it, with all that is in them besides what the mesh reads.

use serde_json::{Value, json};

use super::{Deployment, SERVICE_PORT, SyntheticMesh, TARGET_PORT, generated, zone};

/// A pod whose endpoint is in one slice alone.
#[derive(Debug, Clone)]
pub(crate) struct SlicedPod {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    /// Its slice. It is the first endpoint there.
    pub(crate) slice: String,
}

impl SlicedPod {
    /// The name of its workload.
    pub(crate) fn uid(&self) -> String {
        format!("Kubernetes//Pod/{}/{}", self.namespace, self.pod)
    }
}

impl SyntheticMesh {
    /// The objects: nodes, namespaces, services, the slices of their endpoints, pods.
    pub(crate) fn objects(self) -> impl Iterator<Item = Value> {
        let mut last = None;
        let of_deployments = self.deployments().flat_map(move |deployment| {
            let namespace = deployment.namespace();
            let first = last.as_ref() != Some(&namespace);
            let namespace_object = first.then(|| namespace_of(&namespace));
            last = Some(namespace);
            let pods = deployment.numbers().map(move |number| deployment.pod_object(number));
            let own = namespace_object.into_iter().chain([deployment.service_object()]);
            own.chain(deployment.slice_objects()).chain(pods)
        });
        (0..self.nodes()).map(node).chain(of_deployments)
    }

    /// One pod of each deployment whose endpoints are all in one slice.
    pub(crate) fn sliced_pods(self) -> impl Iterator<Item = SlicedPod> {
        self.deployments().filter(|deployment| deployment.cluster_ips().len() == 1).map(|deployment| {
            SlicedPod {
                namespace: deployment.namespace(),
                pod: deployment.pod(deployment.first),
                slice: deployment.slice(0),
            }
        })
    }
}

impl Deployment {
    /// The name of the slice of an address family.
    fn slice(self, family: usize) -> String {
        format!("{}-{}", self.app(), generated(self.number * 2 + family, 5))
    }

    fn service_object(self) -> Value {
        let (namespace, app, addresses) = (self.namespace(), self.app(), self.cluster_ips());
        let families: Vec<_> = addresses.iter().map(|address| family(address.is_ipv4())).collect();
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": app, "namespace": namespace, "labels": {"app": app},
                "creationTimestamp": CREATED, "managedFields": [managed_by("helm"), managed_by("kube-controller-manager")],
            },
            "spec": {
                "selector": {"app": app}, "type": "ClusterIP", "sessionAffinity": "None",
                "internalTrafficPolicy": "Cluster", "clusterIP": addresses.first(), "clusterIPs": addresses,
                "ipFamilies": families,
                "ipFamilyPolicy": if families.len() > 1 { "RequireDualStack" } else { "SingleStack" },
                "ports": [{"name": "main", "port": SERVICE_PORT, "targetPort": TARGET_PORT, "protocol": "TCP"}],
            },
            "status": {"loadBalancer": {}},
        })
    }

    fn slice_objects(self) -> impl Iterator<Item = Value> {
        let families = 0..self.cluster_ips().len();
        families.map(move |family_number| {
            let (namespace, app) = (self.namespace(), self.app());
            let endpoints = self.numbers().map(|number| {
                json!({
                    "addresses": self.addresses(number).get(family_number..=family_number),
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                    "nodeName": self.node(number), "zone": self.zone(number),
                    "targetRef": {
                        "kind": "Pod", "namespace": namespace, "name": self.pod(number), "uid": uid(number),
                    },
                })
            });
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family(family_number == 0),
                "metadata": {
                    "name": self.slice(family_number), "namespace": namespace, "generateName": format!("{app}-"),
                    "creationTimestamp": CREATED, "generation": 3,
                    "labels": {
                        "app": app, "kubernetes.io/service-name": app,
                        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    },
                    "ownerReferences": [{
                        "apiVersion": "v1", "kind": "Service", "name": app, "uid": uid(self.number), "controller": true,
                    }],
                    "managedFields": [managed_by("kube-controller-manager")],
                },
                "endpoints": endpoints.collect::<Vec<_>>(),
                "ports": [{"name": "main", "port": TARGET_PORT, "protocol": "TCP"}],
            })
        })
    }

    fn pod_object(self, number: usize) -> Value {
        let (namespace, app, replica_set) = (self.namespace(), self.app(), self.replica_set());
        let hash = replica_set.rsplit('-').next().unwrap_or_default();
        let addresses = self.addresses(number);
        let ips: Vec<_> = addresses.iter().map(|address| json!({"ip": address})).collect();
        let image = format!("registry.example.com/{namespace}/{app}:1.0.0");
        let volume = format!("kube-api-access-{}", generated(number, 5));
        let environment: Vec<_> = (0..8)
            .map(|n| json!({"name": format!("SETTING_{n}"), "value": format!("value-of-setting-{n}")}))
            .collect();
        let condition = |of: &str| json!({"type": of, "status": "True", "lastProbeTime": null, "lastTransitionTime": CREATED});
        let probe = json!({
            "httpGet": {"path": "/healthz", "port": TARGET_PORT, "scheme": "HTTP"}, "periodSeconds": 10,
            "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3,
        });
        let toleration = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": self.pod(number), "namespace": namespace, "generateName": format!("{replica_set}-"),
                "uid": uid(number), "creationTimestamp": CREATED,
                "labels": {"app": app, "pod-template-hash": hash, "version": "v1"},
                "annotations": {"prometheus.io/scrape": "true", "checksum/config": "0f1e2d3c4b5a69788796a5b4c3d2e1f0"},
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": replica_set, "uid": uid(self.number),
                    "controller": true, "blockOwnerDeletion": true,
                }],
                "managedFields": [managed_by("kube-controller-manager"), managed_by("kubelet")],
            },
            "spec": {
                "nodeName": self.node(number), "serviceAccountName": app, "serviceAccount": app,
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
                "terminationGracePeriodSeconds": 30, "enableServiceLinks": true, "priority": 0,
                "tolerations": [toleration("node.kubernetes.io/not-ready"), toleration("node.kubernetes.io/unreachable")],
                "volumes": [{"name": volume, "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                ]}}],
                "containers": [{
                    "name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "env": environment,
                    "ports": [{"name": "http", "containerPort": TARGET_PORT, "protocol": "TCP"}],
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                    "livenessProbe": probe, "readinessProbe": probe,
                    "volumeMounts": [{
                        "name": volume, "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                    }],
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }],
            },
            "status": {
                "phase": "Running", "qosClass": "Burstable", "startTime": CREATED,
                "podIP": addresses.first(), "podIPs": ips,
                "conditions": [
                    condition("PodReadyToStartContainers"), condition("Initialized"), condition("Ready"),
                    condition("ContainersReady"), condition("PodScheduled"),
                ],
                "containerStatuses": [{
                    "name": "main", "image": image, "ready": true, "started": true, "restartCount": 0, "lastState": {},
                    "imageID": format!("{image}@sha256:4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a"),
                    "containerID": format!("containerd://4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cc{number:012}"),
                    "state": {"running": {"startedAt": CREATED}},
                }],
            },
        })
    }
}

const CREATED: &str = "2026-01-01T00:00:00Z";

fn uid(number: usize) -> String {
    format!("7f0b8f1c-0000-4000-8000-{number:012}")
}

fn family(v4: bool) -> &'static str {
    if v4 { "IPv4" } else { "IPv6" }
}

/// Who set which fields, as the API server notes it: a good part of every object.
fn managed_by(manager: &str) -> Value {
    json!({
        "manager": manager, "operation": "Update", "apiVersion": "v1", "time": CREATED, "fieldsType": "FieldsV1",
        "fieldsV1": {
            "f:metadata": {
                "f:annotations": {".": {}, "f:checksum/config": {}, "f:prometheus.io/scrape": {}},
                "f:labels": {".": {}, "f:app": {}, "f:pod-template-hash": {}, "f:version": {}},
                "f:ownerReferences": {".": {}, "k:{\"uid\":\"7f0b8f1c-0000-4000-8000-000000000000\"}": {}},
            },
            "f:spec": {"f:containers": {"k:{\"name\":\"main\"}": {
                ".": {}, "f:env": {".": {}}, "f:image": {}, "f:imagePullPolicy": {}, "f:livenessProbe": {".": {}},
                "f:name": {}, "f:ports": {".": {}}, "f:readinessProbe": {".": {}}, "f:resources": {".": {}},
            }}},
        },
    })
}

fn node(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": Deployment::node_name(number), "creationTimestamp": CREATED, "managedFields": [managed_by("kubelet")],
            "labels": {
                "kubernetes.io/hostname": Deployment::node_name(number), "kubernetes.io/os": "linux",
                "topology.kubernetes.io/region": "region-1", "topology.kubernetes.io/zone": zone(number),
            },
        },
    })
}

fn namespace_of(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": name, "creationTimestamp": CREATED,
            "labels": {"istio.io/dataplane-mode": "ambient", "kubernetes.io/metadata.name": name},
        },
    })
}
