//! The chart, rendered by Helm with values of several kinds and read with Kubernetes' own types: nothing in
//! it may be unknown to them, and what it refers to must be there.

use std::collections::BTreeSet;

use clap::{Args, Command, CommandFactory, Parser};
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingWebhookConfiguration,
    apps::v1::{DaemonSet, Deployment},
    coordination::v1::Lease,
    core::v1::{ConfigMap, Container, PodTemplateSpec, Service, ServiceAccount, Toleration},
    policy::v1::PodDisruptionBudget,
    rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding},
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString};
use mesh_agent::kubernetes::{RIGHTS, Scope};
use mesh_agent::settings::RunArgs;
use mesh_control::settings::ServeArgs;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::*;

/// Sets of values that between them take every branch of the templates.
const VALUES: &[&str] = &[
    "{}",
    // Nodes and pods with IPv6 only, logs for machines, other marks, private images.
    r#"{cluster: {network: "east"}, log: {level: "info,mesh_agent::proxy=debug", format: json}, imagePullSecrets: [registry],
        agent: {http: {address: "::", port: 9000}, accessLog: json, stateOnExit: keep, failureMode: closed,
                startupTaint: mesh-agent/not-ready, kubeletCgroups: [kubelet, "nodes/$(NODE_NAME)/kubelet"],
                marks: {mask: "0x3000000", capture: "0x1000000", agent: "0x2000000"}, maxUnavailable: 10%},
        control: {address: "::", replicas: 3}}"#,
    // Metrics on the node only, with manifests and everything that is copied into pods.
    r#"{agent: {http: {address: 127.0.0.1}, podAnnotations: {a: "1"}, podLabels: {b: "2"}, affinity: {nodeAffinity: {}},
                priorityClassName: "", resources: {limits: {memory: 1Gi}}, image: {tag: v2, pullPolicy: Always}},
        control: {manifests: {shop.yaml: "kind: Namespace\napiVersion: v1\nmetadata:\n  name: shop\n"},
                  tolerations: [{operator: Exists}], affinity: {podAntiAffinity: {}},
                  podAnnotations: {a: "1"}, podLabels: {b: "2"}}}"#,
    // No webhook and no status; no definitions, or those that stay.
    "{control: {manifestsConfigMap: mine, admission: {enabled: false}, writeStatus: false}, crds: {install: never}, agent: {stateOnExit: remove}}",
    r#"{control: {admission: {failurePolicy: Ignore, timeoutSeconds: 3, excludedNamespaces: [a, b]}, writeStatus: false},
        crds: {install: always, keep: true}}"#,
    "{agent: {startupTaint: mesh-agent/not-ready}, control: {tolerations: [{key: a, operator: Exists}]}}",
    // Another control server.
    r#"{control: {enabled: false}, agent: {
        controlServers: ["https://istiod.istio-system.svc:15012", "https://[fd00::1]:15012"],
        rootsConfigMap: istio-ca-root-cert, inKernelPassage: false, connectTimeBalancing: false}}"#,
];

/// Values that must be refused, and what the refusal says.
const REFUSED: &[(&str, &str)] = &[
    ("{agent: {accesslog: text}}", "accesslog"),
    ("{agent: {http: {address: localhost}}}", "/agent/http/address"),
    ("{agent: {controlServers: [istiod]}}", "/agent/controlServers"),
    ("{agent: {marks: {mask: many}}}", "/agent/marks/mask"),
    ("{agent: {stateOnExit: never}}", "/agent/stateOnExit"),
    ("{agent: {startupTaint: a/b/c}}", "/agent/startupTaint"),
    (r#"{agent: {kubeletCgroups: ["a,b"]}}"#, "/agent/kubeletCgroups/0"),
    ("{control: {replicas: 0}}", "/control/replicas"),
    ("{control: {admission: {failurePolicy: Maybe}}}", "/control/admission/failurePolicy"),
    ("{crds: {install: sometimes}}", "/crds/install"),
    ("{control: {enabled: false}}", "agent.controlServers"),
    (r#"{control: {enabled: false}, agent: {controlServers: ["https://a:1"]}}"#, "agent.rootsConfigMap"),
    ("{control: {authority: {leafLifetime: long}}}", "/control/authority/leafLifetime"),
];

#[test]
fn kubernetes_knows_everything_in_it() {
    for values in VALUES {
        for object in objects(values) {
            let read = match object["kind"].as_str().unwrap() {
                "ClusterRole" => same::<ClusterRole>,
                "ClusterRoleBinding" => same::<ClusterRoleBinding>,
                "ConfigMap" => same::<ConfigMap>,
                "CustomResourceDefinition" => same::<CustomResourceDefinition>,
                "DaemonSet" => same::<DaemonSet>,
                "Deployment" => same::<Deployment>,
                "Role" => same::<Role>,
                "RoleBinding" => same::<RoleBinding>,
                "Lease" => same::<Lease>,
                "PodDisruptionBudget" => same::<PodDisruptionBudget>,
                "Service" => same::<Service>,
                "ServiceAccount" => same::<ServiceAccount>,
                "ValidatingWebhookConfiguration" => same::<ValidatingWebhookConfiguration>,
                kind => panic!("{kind}: read it with its type here"),
            };
            read(&object);
        }
    }
}

/// Kubernetes' types skip what they do not know; it is missing when they are written again.
fn same<T: DeserializeOwned + Serialize>(object: &Value) {
    let typed: T =
        serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error} in {object:#}"));
    assert_eq!(&serde_json::to_value(typed).unwrap(), object);
}

#[test]
fn what_it_refers_to_is_there() {
    for values in VALUES {
        let objects = objects(values);
        let exists = |kind: &str, name: &str| {
            objects.iter().any(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        };
        for (selector, pod) in pods(&objects) {
            let labels = pod.metadata.as_ref().unwrap().labels.as_ref().unwrap();
            for (label, value) in selector.match_labels.unwrap() {
                assert_eq!(labels.get(&label), Some(&value), "a selector selects its own pods");
            }
            let spec = pod.spec.unwrap();
            assert!(exists("ServiceAccount", spec.service_account_name.as_ref().unwrap()));
            let volumes = spec.volumes.unwrap_or_default();
            for container in &spec.containers {
                for mount in container.volume_mounts.iter().flatten() {
                    assert!(
                        volumes.iter().any(|volume| volume.name == mount.name),
                        "no volume {}",
                        mount.name
                    );
                }
                for probe in [&container.startup_probe, &container.liveness_probe, &container.readiness_probe]
                    .into_iter()
                    .flatten()
                {
                    assert!(has_port(container, &probe.http_get.as_ref().unwrap().port));
                }
            }
            for map in volumes.iter().filter_map(|volume| Some(&volume.config_map.as_ref()?.name)) {
                assert!(
                    map == "mine" || map == "istio-ca-root-cert" || exists("ConfigMap", map),
                    "no ConfigMap {map}"
                );
            }
        }
        for service in all::<Service>(&objects, "Service") {
            let (spec, pods) = (service.spec.unwrap(), pods(&objects));
            let selected = pods.iter().find(|(selector, _)| selector.match_labels == spec.selector);
            let container = &selected.unwrap().1.spec.as_ref().unwrap().containers[0];
            assert!(
                spec.ports
                    .unwrap()
                    .iter()
                    .all(|port| has_port(container, port.target_port.as_ref().unwrap()))
            );
        }
    }
}

#[test]
fn the_programs_take_what_it_passes_to_them() {
    for values in VALUES {
        let objects = objects(values);
        let agent = container(&objects, "mesh-agent");
        assert_eq!(agent.args.as_ref().unwrap()[0], "run");
        let mut options = Program::<RunArgs>::parsed_from(&agent);
        // Files that the pod has and this machine has not.
        for file in [&mut options.control_root_cert, &mut options.control_token_file] {
            let path = file.replace("/dev/null".into()).unwrap();
            let mounts = agent.volume_mounts.as_ref().unwrap();
            assert!(
                mounts.iter().any(|mount| path.parent().unwrap().ends_with(&mount.mount_path)),
                "{path:?}"
            );
        }
        options.validate().unwrap();
        if let Some(control) = find_container(&objects, "mesh-control") {
            Program::<ServeArgs>::parsed_from(&control);
        }
    }
}

#[test]
fn an_agent_gets_few_of_roots_powers_and_a_control_server_none() {
    let objects = objects("{}");
    let powers = |name| {
        let context = container(&objects, name).security_context.unwrap();
        assert_eq!(
            (context.allow_privilege_escalation, context.read_only_root_filesystem),
            (Some(false), Some(true))
        );
        let capabilities = context.capabilities.unwrap();
        assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]));
        capabilities.add.unwrap_or_default()
    };
    assert_eq!(powers("mesh-agent"), ["BPF", "NET_ADMIN", "PERFMON", "SYS_ADMIN"]);
    assert!(powers("mesh-control").is_empty());
}

/// `mesh_agent::kubernetes::RIGHTS` is what the agent asks of the API; a test of its own compares that with what it does.
#[test]
fn an_agent_may_do_in_the_cluster_what_it_does_and_no_more() {
    for values in VALUES {
        let objects = objects(values);
        let arguments = container(&objects, "mesh-agent").args.unwrap();
        let has = |flag: &str| arguments.iter().any(|argument| argument.starts_with(flag));
        let (of_set, tainted) = (has("--daemonset="), has("--startup-taint="));
        let used = RIGHTS.iter().filter(|right| match right.scope {
            Scope::Cluster => right.resource != "nodes" || of_set || tainted,
            Scope::StartupTaint => tainted,
            Scope::OwnDaemonSet => of_set,
        });
        let is_own = |name: &Option<String>| name.as_ref().is_some_and(|name| name.starts_with("mesh-agent"));
        let cluster = all::<ClusterRole>(&objects, "ClusterRole").into_iter();
        let cluster = cluster.filter(|role| is_own(&role.metadata.name)).flat_map(|role| role.rules.unwrap());
        let own = all::<Role>(&objects, "Role").into_iter().filter(|role| is_own(&role.metadata.name));
        let own: Vec<_> = own.flat_map(|role| role.rules.unwrap()).collect();
        assert!(own.iter().all(|rule| rule.resource_names == Some(vec!["mesh-agent".to_owned()])));
        let granted: BTreeSet<String> = cluster.chain(own).flat_map(|rule| each(&rule)).collect();
        assert_eq!(granted, used.map(ToString::to_string).collect(), "{values}");
    }
}

/// Verbs and resources of a rule, as `RIGHTS` writes them.
fn each(rule: &PolicyRule) -> Vec<String> {
    let mut each = Vec::new();
    for group in rule.api_groups.iter().flatten() {
        let suffix = if group.is_empty() { String::new() } else { format!(".{group}") };
        for resource in rule.resources.iter().flatten() {
            each.extend(rule.verbs.iter().map(|verb| format!("{verb} {resource}{suffix}")));
        }
    }
    each
}

#[test]
fn a_control_server_comes_up_on_nodes_that_wait_for_their_agents() {
    let objects = objects("{agent: {startupTaint: mesh-agent/not-ready}}");
    let deployments = all::<Deployment>(&objects, "Deployment");
    let pod = deployments[0].spec.as_ref().unwrap().template.spec.as_ref().unwrap();
    let tolerated = |toleration: &Toleration| toleration.key.as_deref() == Some("mesh-agent/not-ready");
    assert!(pod.tolerations.iter().flatten().any(tolerated));
}

#[test]
fn wrong_values_are_refused_by_name() {
    let workspace = Workspace::locate().unwrap();
    for (values, reason) in REFUSED {
        let error = render(&workspace, values, None).expect_err(values).to_string();
        assert!(error.contains(reason), "{values}: {error}");
    }
}

/// A program whose options are `T`.
#[derive(Parser)]
struct Program<T: Args> {
    #[command(flatten)]
    options: T,
}

impl<T: Args> Program<T> {
    /// The options of a container, from its arguments and, as the arguments they stand for, its environment.
    fn parsed_from(container: &Container) -> T {
        let flags = container.args.iter().flatten().filter(|argument| argument.starts_with("--")).cloned();
        let variables = container.env.iter().flatten().map(|variable| {
            let value = variable.value.as_deref().unwrap_or(if variable.name == "INSTANCE_IP" {
                "fd00::7"
            } else {
                "name"
            });
            format!("--{}={value}", flag_of(&Self::command(), &variable.name))
        });
        let arguments = ["program".to_owned()].into_iter().chain(flags).chain(variables);
        Self::try_parse_from(arguments).unwrap_or_else(|error| panic!("{error}")).options
    }
}

fn flag_of(command: &Command, variable: &str) -> String {
    let argument =
        command.get_arguments().find(|argument| argument.get_env().is_some_and(|name| name == variable));
    argument.and_then(clap::Arg::get_long).unwrap_or_else(|| panic!("nothing reads {variable}")).to_owned()
}

fn objects(values: &str) -> Vec<Value> {
    let workspace = Workspace::locate().unwrap();
    let rendered = render(&workspace, values, None).unwrap_or_else(|error| panic!("{values}: {error}"));
    let objects: Vec<Value> = serde_saphyr::from_multiple(&rendered).unwrap();
    assert!(objects.len() >= 4, "{rendered}");
    objects
}

fn all<T: DeserializeOwned>(objects: &[Value], kind: &str) -> Vec<T> {
    let objects = objects.iter().filter(|object| object["kind"] == kind);
    objects.map(|object| serde_json::from_value(object.clone()).unwrap()).collect()
}

/// The pods that the objects make, with what selects them.
fn pods(objects: &[Value]) -> Vec<(LabelSelector, PodTemplateSpec)> {
    let agents = all::<DaemonSet>(objects, "DaemonSet")
        .into_iter()
        .map(|set| set.spec.unwrap())
        .map(|spec| (spec.selector, spec.template));
    let controls = all::<Deployment>(objects, "Deployment")
        .into_iter()
        .map(|set| set.spec.unwrap())
        .map(|spec| (spec.selector, spec.template));
    agents.chain(controls).collect()
}

fn container(objects: &[Value], name: &str) -> Container {
    find_container(objects, name).unwrap()
}

fn find_container(objects: &[Value], name: &str) -> Option<Container> {
    let mut containers = pods(objects).into_iter().flat_map(|(_, pod)| pod.spec.unwrap().containers);
    containers.find(|container| container.name == name)
}

fn has_port(container: &Container, port: &IntOrString) -> bool {
    container.ports.iter().flatten().any(|known| match port {
        IntOrString::String(name) => known.name.as_ref() == Some(name),
        IntOrString::Int(number) => known.container_port == *number,
    })
}
