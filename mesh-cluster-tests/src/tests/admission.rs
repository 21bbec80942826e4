//! Policies with a mistake: at the API server, and past it.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::world::{ENROLLED, World, ensure_nothing_failed, items};

/// Nobody is called this, and nothing has a port of that name.
fn mistaken() -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "mistaken" },
        "spec": {
            "selector": { "matchLabels": { "app": "web" } },
            "rules": [{
                "from": [{ "source": { "principals": [""] } }],
                "to": [{ "operation": { "ports": ["http"] } }],
            }],
        },
    })
}

pub(super) fn policies_with_a_mistake_are_refused_by_the_api_server(world: &World) -> Result<()> {
    let namespace = world.namespace("mistakes", &[])?;
    let entry = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": { "name": "outside" },
        "spec": { "hosts": ["*.example.com"], "resolution": "DNS", "ports": [{ "number": 0, "name": "tls" }] },
    });
    let cases = [
        (
            mistaken(),
            vec![
                "spec.rules[0].from[0].source.principals[0]: must not be empty",
                "spec.rules[0].to[0].operation.ports[0]: expected a port between 1 and 65535, found \"http\"",
            ],
        ),
        (entry, vec!["spec.ports[0].number"]),
    ];
    for (object, reasons) in cases {
        let said = match namespace.apply(object.clone()) {
            Ok(()) => anyhow::bail!("the API server took {object}"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(said.contains("denied the request"), "it was refused, but not by the webhook: {said}");
        for reason in reasons {
            ensure!(said.contains(reason), "{reason:?} is not in what kubectl said: {said}");
        }
    }
    let policies =
        world.cluster().get(&["authorizationpolicies,serviceentries", "--namespace", namespace.name()])?;
    ensure!(items(&policies).next().is_none(), "something of it was kept: {policies}");
    Ok(())
}

pub(super) fn what_gets_past_a_dead_webhook_denies_and_says_why(world: &World) -> Result<()> {
    let namespace = world.namespace("past", &[ENROLLED])?;
    namespace.echo("web", 1, Some("node2"))?;
    namespace.client("client", Some("node1"))?;
    for pod in ["client", &namespace.only_pod("web")?] {
        namespace.wait_for_enrolment(pod, true)?;
    }
    let target = ["http", &format!("http://web.{}", namespace.name())];
    ensure_nothing_failed(&namespace.requests("client", &target, 5)?)?;

    let system = world.chart().namespace();
    let scale = |replicas: &str| -> Result<()> {
        let replicas = format!("--replicas={replicas}");
        world.cluster().kubectl(["scale", "deployment/mesh-control", "--namespace", system, &replicas])?;
        Ok(())
    };
    world.install_with(json!({ "control": { "admission": { "failurePolicy": "Ignore" } } }))?;
    scale("0")?;
    let selector = "--selector=app.kubernetes.io/name=mesh-control";
    world.cluster().kubectl([
        "wait",
        "pods",
        selector,
        "--namespace",
        system,
        "--for=delete",
        "--timeout=60s",
    ])?;
    let taken = namespace.apply(mistaken());
    scale("2")?;
    taken?;
    world.cluster().wait_for_rollout(system, "deployment/mesh-control")?;

    namespace.wait_for_requests("nobody gets in", "client", &target, |report| report.succeeded == 0)?;
    let agent = world.agent("node2")?;
    let line =
        world.cluster().wait_until("the access log names the policy", crate::world::EFFECT, |cluster| {
            let log = cluster.logs(system, &agent).map_err(|error| error.to_string())?;
            let denied = |line: &&str| line.contains("UAEX") && line.contains(namespace.name());
            log.lines().rev().find(denied).map(str::to_owned).ok_or_else(|| "nothing was denied".to_owned())
        })?;
    ensure!(line.contains("mistaken"), "the access log does not name the policy: {line}");
    let status = |cluster: &mesh_lab::cluster::Cluster| {
        let arguments = ["authorizationpolicy", "mistaken", "--namespace", namespace.name()];
        let policy = cluster.get(&arguments).map_err(|error| error.to_string())?;
        let conditions = policy.pointer("/status/conditions").and_then(Value::as_array);
        let own = conditions
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == "ZtunnelAccepted")
            .cloned();
        own.ok_or_else(|| policy.to_string())
    };
    let condition = world.cluster().wait_until("the policy has a status", crate::world::EFFECT, status)?;
    ensure!(condition["status"] == "False" && condition["reason"] == "Invalid", "{condition}");
    let message = condition["message"].as_str().unwrap_or_default();
    ensure!(message.contains("spec.rules[0].from[0].source.principals[0]: must not be empty"), "{condition}");

    namespace.delete("authorizationpolicy", "mistaken")?;
    namespace.wait_for_requests("everybody gets in again", "client", &target, |report| report.failed == 0)?;
    world.install()
}
