//! The demo on Kubernetes: one install, pods enrolled by a label while they run, and what becomes of their requests.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_lab::cluster::{Chart, Cluster, PodLoad, SteadyLoad, workloads};
use serde_json::{Value, json};

use super::show::Show;

const SHOP: &str = "shop";
const STREET: &str = "street";
const SECRET: &str = "the-secret-of-the-shop";
/// How long anything of the demo may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to run the demo with.
#[derive(Debug, clap::Args)]
pub(crate) struct ClusterDemoArguments {
    /// Helm, version 3
    #[arg(long)]
    helm: PathBuf,
    /// The folder of the chart
    #[arg(long)]
    chart: PathBuf,
}

/// Plays the demo on a cluster that has the images.
pub(crate) fn run(cluster: &Cluster, arguments: &ClusterDemoArguments) -> Result<()> {
    let started = Instant::now();
    let mut show = Show::default();
    the_cluster(&mut show, cluster)?;
    let chart = Chart::new(&arguments.helm, &arguments.chart);
    install(&mut show, cluster, &chart, &arguments.chart)?;
    let load = enrolment(&mut show, cluster, &chart)?;
    encryption(&mut show, cluster)?;
    refusal(&mut show, cluster, &chart)?;
    rolling_update(&mut show, cluster, load)?;
    show.finale(started.elapsed());
    Ok(())
}

fn the_cluster(show: &mut Show, cluster: &Cluster) -> Result<()> {
    let subtitle = format!("two nodes, CNI plugin {}, no Docker", cluster.settings().cni.name());
    show.scene("A Kubernetes cluster", &subtitle);
    kubectl(show, cluster, &["get", "nodes", "--output=wide"])?;
    cluster.apply(
        &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": SHOP } }).to_string(),
    )?;
    cluster.apply(&workloads::echo_servers(SHOP, "web", 3, Some("node2")))?;
    cluster.apply(&workloads::client(SHOP, "client", Some("node1")))?;
    cluster.wait_for_rollout(SHOP, "deployment/web")?;
    cluster.kubectl(["wait", "pod/client", "--namespace", SHOP, "--for=condition=Ready", "--timeout=60s"])?;
    Ok(())
}

fn install(show: &mut Show, cluster: &Cluster, chart: &Chart, folder: &Path) -> Result<()> {
    show.scene("One install", "the agent on every node, two control servers");
    let namespace = chart.namespace();
    let folder = folder.file_name().unwrap_or_default().display();
    show.command(
        "",
        &format!("helm install mesh deploy/{folder} --namespace {namespace} --create-namespace"),
    );
    let begin = Instant::now();
    chart.install(cluster, "{}")?;
    show.timing("ready", begin.elapsed());
    kubectl(show, cluster, &["get", "pods", "--namespace", namespace, "--output=wide"])
}

/// Leaves the load running.
fn enrolment<'a>(show: &mut Show, cluster: &'a Cluster, chart: &Chart) -> Result<PodLoad<'a>> {
    show.scene("Pods that run already", "enrolled by a label, with their connections open");
    let load = SteadyLoad::http(SHOP, "buyers", &format!("http://web.{SHOP}")).from_node("node1");
    let load = cluster.start_load(&load)?;
    show.say("50 requests a second over 4 connections that stay open");
    kubectl(show, cluster, &["label", "namespace", SHOP, "istio.io/dataplane-mode=ambient"])?;
    let begin = Instant::now();
    cluster.wait_until("the client is enrolled", PATIENCE, |_| {
        let pods = meshctl(cluster, chart, "node1", &["pods", "--namespace", SHOP, "--output=json"]);
        let pods: Value = serde_json::from_str(&pods.map_err(|error| format!("{error:#}"))?)
            .map_err(|error| error.to_string())?;
        let enrolled = |pod: &Value| pod.get("state").is_some_and(|state| state == "enrolled");
        let all = pods.as_array().is_some_and(|pods| pods.len() == 2 && pods.iter().all(enrolled));
        if all { Ok(()) } else { Err(pods.to_string()) }
    })?;
    show.timing("seen in the mesh", begin.elapsed());
    let pods = meshctl(cluster, chart, "node1", &["pods", "--namespace", SHOP])?;
    show.command("node1", &format!("meshctl pods --namespace {SHOP}"));
    show.output(&pods);
    let progress = load.wait_for_more(100, PATIENCE)?;
    show.expect(progress.failed == 0, format!("{} requests, none failed", progress.succeeded))?;
    Ok(load)
}

fn encryption(show: &mut Show, cluster: &Cluster) -> Result<()> {
    show.scene("On the wire", "what passes between the nodes");
    let node = cluster.node("node1")?;
    let capture = node.capture().ports([15008, workloads::ECHO_PORT]).start()?;
    let url = format!("http://web.{SHOP}/{SECRET}");
    show.command("client", &format!("wget -qO- {url}"));
    show.output(&cluster.exec_output(SHOP, "client", &["wget", "-qO-", &url])?);
    let seen = capture.stop()?;
    let tunnels = seen.streams().iter().filter(|stream| stream.contains(&[0x17, 0x03, 0x03])).count();
    show.expect(tunnels > 0, "there is TLS between the nodes")?;
    show.expect(!seen.contains(SECRET.as_bytes()), "and the path of the request is nowhere to be read")
}

fn refusal(show: &mut Show, cluster: &Cluster, chart: &Chart) -> Result<()> {
    show.scene("A refusal", "who is not meant to come in, and a policy with a mistake");
    let street = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": STREET, "labels": { "istio.io/dataplane-mode": "ambient" } },
    });
    cluster.apply(&street.to_string())?;
    cluster.apply(&workloads::client(STREET, "stranger", Some("node1")))?;
    cluster.kubectl([
        "wait",
        "pod/stranger",
        "--namespace",
        STREET,
        "--for=condition=Ready",
        "--timeout=60s",
    ])?;
    let policy = |principal: &str| {
        json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": { "name": "shop-only", "namespace": SHOP },
            "spec": { "rules": [{ "from": [{ "source": { "principals": [principal] } }] }] },
        })
        .to_string()
    };
    let url = format!("http://web.{SHOP}/");
    // busybox's wget crashes when it is given a time-out.
    let asks = || {
        let command = ["mesh-lab", "traffic", "http", &url, "--requests=1", "--timeout=3"];
        cluster.exec(STREET, "stranger", &command)
    };
    // It has just started, and is given its certificate now.
    let answered = cluster.wait_until("the stranger gets an answer", PATIENCE, |_| match asks() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(output.stderr),
        Err(error) => Err(error.to_string()),
    });
    if let Err(error) = &answered {
        show.output(&error.to_string());
    }
    show.expect(answered.is_ok(), "without a policy, a pod of another namespace gets an answer")?;
    show.command(
        "",
        "kubectl apply --filename shop-only.yaml    # principals: [cluster.local/ns/shop/sa/default]",
    );
    cluster.apply(&policy("cluster.local/ns/shop/sa/default"))?;
    let begin = Instant::now();
    cluster.wait_until("the stranger is refused", PATIENCE, |_| match asks() {
        Ok(output) if !output.status.success() => Ok(()),
        Ok(_) => Err("it gets an answer".to_owned()),
        Err(error) => Err(error.to_string()),
    })?;
    show.timing("refused", begin.elapsed());
    let log = cluster.logs(chart.namespace(), &agent(cluster, chart, "node2")?)?;
    let line = log.lines().rev().find(|line| line.contains("UAEX"));
    show.output(line.unwrap_or_default());
    show.expect(line.is_some_and(|line| line.contains("shop-only")), "the access log names the policy")?;

    show.command("", "kubectl apply --filename mistake.yaml    # principals: [\"\"]");
    let mistake = cluster.apply(&policy(""));
    show.output(&mistake.as_ref().map_or_else(ToString::to_string, |()| "taken".to_owned()));
    show.expect(mistake.is_err(), "a policy with a mistake is refused by the API server, with the reason")
}

fn rolling_update(show: &mut Show, cluster: &Cluster, load: PodLoad<'_>) -> Result<()> {
    show.scene("A rolling update under load", "every server is replaced");
    kubectl(show, cluster, &["rollout", "restart", "deployment/web", "--namespace", SHOP])?;
    let begin = Instant::now();
    cluster.wait_for_rollout(SHOP, "deployment/web")?;
    show.timing("replaced", begin.elapsed());
    load.wait_for_more(100, PATIENCE)?;
    let report = load.stop()?;
    show.bars(&report.pods);
    show.expect(report.failed == 0, format!("{} requests since the beginning, none failed", report.requests))
}

/// Runs kubectl as a user would, and shows both.
fn kubectl(show: &mut Show, cluster: &Cluster, arguments: &[&str]) -> Result<()> {
    show.command("", &format!("kubectl {}", arguments.join(" ")));
    show.output(&cluster.kubectl(arguments.iter().copied())?);
    Ok(())
}

/// What `meshctl` says on a node.
fn meshctl(cluster: &Cluster, chart: &Chart, node: &str, arguments: &[&str]) -> Result<String> {
    let command: Vec<&str> = ["meshctl"].iter().chain(arguments).copied().collect();
    Ok(cluster.exec_output(chart.namespace(), &agent(cluster, chart, node)?, &command)?)
}

/// The agent's pod on a node.
fn agent(cluster: &Cluster, chart: &Chart, node: &str) -> Result<String> {
    let field = format!("--field-selector=spec.nodeName={node}");
    let selector = "--selector=app.kubernetes.io/name=mesh-agent";
    let pods = cluster.get(&["pods", "--namespace", chart.namespace(), selector, &field])?;
    let name = pods.pointer("/items/0/metadata/name").and_then(Value::as_str);
    Ok(name.with_context(|| format!("no agent runs on {node}"))?.to_owned())
}
