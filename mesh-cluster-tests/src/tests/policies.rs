//! What policies refuse, and what they must not.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::world::{ENROLLED, PORT, World, ensure_nothing_failed, strict};

pub(super) fn probes_pass_where_plain_text_is_refused(world: &World) -> Result<()> {
    let namespace = world.namespace("probes", &[ENROLLED])?;
    namespace.apply(strict())?;
    // It is ready only when the kubelet's probe gets an answer.
    namespace.echo("web", 1, Some("node2"))?;
    namespace.client("friend", Some("node1"))?;
    let stranger = world.namespace("stranger", &[])?;
    stranger.client("client", Some("node1"))?;
    let url = format!("http://web.{}", namespace.name());
    namespace.wait_for_requests("who is in the mesh gets in", "friend", &["http", &url], |report| {
        report.failed == 0
    })?;
    let refused = |report: &mesh_lab::traffic::Report| report.succeeded == 0 && report.failed > 0;
    stranger.wait_for_requests("who is not in the mesh does not", "client", &["http", &url], refused)?;
    // Another pod starts, and is probed, where plain text is refused already.
    world.cluster().kubectl(["rollout", "restart", "deployment/web", "--namespace", namespace.name()])?;
    Ok(world.cluster().wait_for_rollout(namespace.name(), "deployment/web")?)
}

pub(super) fn a_policy_refuses_and_says_which(world: &World) -> Result<()> {
    let namespace = world.namespace("policy", &[ENROLLED])?;
    namespace.echo("web", 1, Some("node2"))?;
    namespace.client("client", Some("node1"))?;
    let server = namespace.only_pod("web")?;
    for pod in ["client", &server] {
        namespace.wait_for_enrolment(pod, true)?;
    }
    let target = ["http", &format!("http://web.{}", namespace.name())];
    ensure_nothing_failed(&namespace.requests("client", &target, 5)?)?;
    let deny = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "nobody" },
        "spec": { "selector": { "matchLabels": { "app": "web" } } },
    });
    namespace.apply(deny)?;
    namespace.wait_for_requests("nobody gets in", "client", &target, |report| report.succeeded == 0)?;
    let pod = format!("{}/{server}", namespace.name());
    let address = namespace.field("pod", &server, "/status/podIP")?;
    let explained = world.cluster().exec_output(
        world.chart().namespace(),
        &world.agent("node2")?,
        &["meshctl", "policies", &pod, "--output=json"],
    )?;
    ensure!(explained.contains("nobody"), "{address}:{PORT}: {explained}");
    world.cluster().kubectl(["delete", "authorizationpolicy", "nobody", "--namespace", namespace.name()])?;
    namespace.wait_for_requests("everybody gets in again", "client", &target, |report| report.failed == 0)?;
    Ok(())
}
