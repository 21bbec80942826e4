//! Configuration that changes, or cannot, while traffic runs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_lab::traffic::{Load, Progress, Traffic};

use super::super::Stage;
use super::WEB;

/// Requests per second of the background traffic.
const RATE: f64 = 200.0;
/// How long a change may take until it shows.
const EFFECT: Duration = Duration::from_secs(10);

/// How long an agent may take to come back to its control server: it waits up to 10 s between attempts.
const RECONNECT: Duration = Duration::from_secs(30);

/// An endpoint is added, another removed.
pub(super) fn endpoints_come_and_go(stage: &mut Stage) -> Result<()> {
    let Stage { show, mesh, examples, .. } = stage;
    show.scene(
        "Edited live",
        "manifests change while 200 requests a second go to web.shop, each on a new connection",
    );
    let traffic = steady(mesh)?;
    let before = phase(&traffic, EFFECT, |seen| seen.len() == 3)?;

    let added = std::fs::read_to_string(examples.join("more/web-4.yaml"))?;
    show.command("you", "cp examples/more/web-4.yaml manifests/");
    let begin = Instant::now();
    mesh.apply("21-web-4.yaml", &added)?;
    let during = phase(&traffic, EFFECT, |seen| seen.contains_key("web-4"))?;
    show.timing("web-4 got its first request", begin.elapsed());
    let with_four = phase(&traffic, EFFECT, |seen| seen.len() == 4 && seen.values().sum::<u64>() > 100)?;

    let web = std::fs::read_to_string(examples.join("manifests/20-web.yaml"))?;
    let without = without_pod(&web, "web-1")?;
    show.command("you", "delete the pod web-1 from manifests/20-web.yaml");
    mesh.apply("20-web.yaml", &without)?;
    let begin = Instant::now();
    let after =
        phase(&traffic, EFFECT, |seen| seen.values().sum::<u64>() > 100 && !seen.contains_key("web-1"))?;
    show.timing("100 requests in a row without web-1, seen", begin.elapsed());

    let report = traffic.stop();
    let columns = ["web-1", "web-2", "web-3", "web-4"];
    let rows = [
        ("before", before),
        ("as it was added", during),
        ("with web-4", with_four),
        ("without web-1", after),
    ];
    show.table(
        ["requests answered by", "web-1", "web-2", "web-3", "web-4"],
        rows.map(|(name, seen)| {
            let [one, two, three, four] = columns.map(|pod| seen.get(pod).copied().unwrap_or(0).to_string());
            [name.to_owned(), one, two, three, four]
        }),
    );
    show.say(format!("{} requests, {} failed", report.requests, report.failed));
    show.expect(report.failed == 0, "an endpoint came and another went without one failed request")?;
    mesh.apply("20-web.yaml", &web)?;
    mesh.withdraw("21-web-4.yaml")?;
    Ok(())
}

/// The control server dies; an agent even restarts without it.
pub(super) fn control_server_gone(stage: &mut Stage) -> Result<()> {
    let Stage { show, mesh, examples, .. } = stage;
    show.scene("Without a control server", "mesh-control is killed; the agents go on with what they know");
    let traffic = steady(mesh)?;
    phase(&traffic, EFFECT, |seen| seen.len() == 3)?;
    show.command("control", "kill -9 mesh-control");
    mesh.kill_control();
    let alone = phase(&traffic, EFFECT, |seen| seen.values().sum::<u64>() > 300)?;
    show.bars(&alone);

    show.command("node2", "restart mesh-agent, with nobody to ask");
    mesh.stop_agent("node2", Duration::from_secs(30))?;
    let begin = Instant::now();
    mesh.start_agent("node2")?;
    show.timing("node2 serves from its last good configuration", begin.elapsed());
    let restarted = phase(&traffic, EFFECT, |seen| seen.values().sum::<u64>() > 300)?;
    show.bars(&restarted);

    show.command("control", "start mesh-control, with web-4 in its manifests");
    mesh.apply("21-web-4.yaml", &std::fs::read_to_string(examples.join("more/web-4.yaml"))?)?;
    let begin = Instant::now();
    mesh.start_control()?;
    phase(&traffic, RECONNECT, |seen| seen.contains_key("web-4")).context("the change never arrived")?;
    show.timing("the agents are connected again and have the change", begin.elapsed());
    let report = traffic.stop();
    show.say(format!("{} requests, {} failed", report.requests, report.failed));
    show.expect(
        report.failed == 0,
        "no request failed, with the control server gone and an agent restarted",
    )?;
    mesh.withdraw("21-web-4.yaml")?;
    Ok(())
}

pub(super) fn steady(mesh: &mesh_lab::Mesh) -> Result<Traffic> {
    let load =
        Load::http(&format!("http://{}/", WEB[0]))?.rate(RATE).connections(4).new_connection_per_request();
    Ok(mesh.lab().pod("client")?.traffic(load)?)
}

/// Looks at who answers, from now on, until it is as expected. What is counted starts over every half second, so
/// that the end of a change can be seen.
fn phase(
    traffic: &Traffic,
    within: Duration,
    reached: impl Fn(&BTreeMap<String, u64>) -> bool,
) -> Result<BTreeMap<String, u64>> {
    const WINDOW: Duration = Duration::from_millis(1500);
    let end = Instant::now() + within;
    let mut seen = BTreeMap::new();
    let mut begin = Instant::now();
    // What came before does not count.
    let _ = traffic.progress();
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let Progress { lately, failed, .. } = traffic.progress();
        anyhow::ensure!(failed == 0, "requests fail: {:?}", traffic.report().errors);
        for (pod, count) in lately.pods {
            *seen.entry(pod).or_insert(0) += count;
        }
        if reached(&seen) {
            return Ok(seen);
        }
        anyhow::ensure!(Instant::now() < end, "within {within:?} only this was seen: {seen:?}");
        if begin.elapsed() > WINDOW {
            begin = Instant::now();
            seen.clear();
        }
    }
}

/// Takes the document of one pod out of a file.
fn without_pod(text: &str, pod: &str) -> Result<String> {
    let wanted = format!("\n  name: {pod}\n");
    let documents: Vec<&str> = text.split("---\n").collect();
    let rest: Vec<&str> = documents.iter().copied().filter(|document| !document.contains(&wanted)).collect();
    anyhow::ensure!(rest.len() + 1 == documents.len(), "the pod {pod} is not in the file once");
    Ok(rest.join("---\n"))
}
