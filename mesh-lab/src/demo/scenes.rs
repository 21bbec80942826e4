//! What is shown, in order.

mod failures;
mod live;
pub(super) mod security;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context, Result};
use mesh_lab::echo::Answer;
use mesh_lab::traffic::{Load, Report};

use super::journey::{self, Journey};
use super::{Stage, journey::HEADER};

/// `web.shop`, in both families.
const WEB: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const STATIC: &str = "10.96.0.20";
const CART: [&str; 2] = ["10.96.0.30", "fd00:96::30"];
const ORDERS: &str = "10.96.0.40";
const BILLING: &str = "10.96.0.60";
const PAYMENTS: &str = "10.96.0.70";

/// Plays every scene.
pub(super) fn play(stage: &mut Stage) -> Result<()> {
    curtain_up(stage)?;
    real_clients(stage)?;
    balancing(stage)?;
    left_alone(stage)?;
    security::encrypted(stage)?;
    security::refused(stage)?;
    security::taken_back(stage)?;
    live::endpoints_come_and_go(stage)?;
    live::control_server_gone(stage)?;
    failures::agents_killed(stage)?;
    security::rotated(stage)?;
    explained(stage)
}

fn curtain_up(stage: &mut Stage) -> Result<()> {
    let Stage { show, mesh, .. } = stage;
    show.scene(
        "The mesh comes up",
        "mesh-control on a host of its own, one mesh-agent per node; no pod is touched",
    );
    let begin = Instant::now();
    mesh.start_control()?;
    show.timing("mesh-control read examples/manifests", begin.elapsed());
    for node in mesh.nodes() {
        let begin = Instant::now();
        mesh.start_agent(&node)?;
        show.timing(&format!("{node}: programs loaded, attached, pods enrolled"), begin.elapsed());
    }
    for node in mesh.nodes() {
        show.command(&node, "meshctl pods");
        let text = mesh.meshctl_text(&node, &["pods"])?;
        show.output(&text);
    }
    Ok(())
}

/// One program run in a pod, and what it should say.
struct Call {
    pod: &'static str,
    program: &'static str,
    arguments: Vec<String>,
    expected: &'static str,
}

fn real_clients(stage: &mut Stage) -> Result<()> {
    let Stage { show, mesh, .. } = stage;
    show.scene(
        "Real clients, real servers",
        "curl, redis-cli and psql in the client's pod, by service address",
    );
    let curl = |url: String| vec!["-sg".to_owned(), "--max-time".to_owned(), "10".to_owned(), url];
    let redis = |host: &str| ["-h", host, "INCR", "visits"].map(str::to_owned).to_vec();
    let query = "select 'orders: ' || count(*) from generate_series(1, 42)";
    let psql = ["-h", ORDERS, "-U", "shop", "-d", "postgres", "-Atc", query].map(str::to_owned).to_vec();
    let [v4, v6] = WEB;
    let [cart_v4, cart_v6] = CART;
    let calls = [
        Call { pod: "client", program: "curl", arguments: curl(format!("http://{v4}/")), expected: "web-" },
        Call { pod: "client", program: "curl", arguments: curl(format!("http://[{v6}]/")), expected: "web-" },
        Call {
            pod: "client",
            program: "curl",
            arguments: curl(format!("http://{STATIC}/")),
            expected: "catalogue",
        },
        Call { pod: "client", program: "redis-cli", arguments: redis(cart_v4), expected: "1" },
        Call { pod: "client", program: "redis-cli", arguments: redis(cart_v6), expected: "2" },
        Call { pod: "client", program: "psql", arguments: psql, expected: "orders: 42" },
        Call {
            pod: "client",
            program: "curl",
            arguments: curl(format!("http://{BILLING}:8080/")),
            expected: "billing-1",
        },
        Call {
            pod: "client",
            program: "curl",
            arguments: curl(format!("http://{PAYMENTS}:443/")),
            expected: "payments",
        },
    ];
    let mut journeys = Vec::new();
    let mut sources = BTreeMap::new();
    for Call { pod, program, arguments, expected } in calls {
        let mark = journey::mark(mesh);
        let shown: Vec<String> = arguments
            .iter()
            .map(|text| if text.contains(' ') { format!("{text:?}") } else { text.clone() })
            .collect();
        show.command(pod, &format!("{program} {}", shown.join(" ")));
        let machine = mesh.lab().pod(pod)?;
        let output = machine.program(program)?.args(&arguments).output()?;
        if let Ok(answer) = serde_json::from_str::<Answer>(&output.stdout) {
            show.output(&format!("{} answered; it saw {}", answer.pod, answer.source));
            sources.insert(answer.pod, answer.source.ip());
        } else {
            show.output(&output.stdout);
            show.output(&output.stderr);
        }
        if !output.status.success() || !output.stdout.contains(expected) {
            return show.expect(false, format!("{program} gets {expected:?} and not {:?}", output.stdout));
        }
        journeys.push(journey::wait_for(mesh, &mark, pod)?);
    }
    show.say("");
    show.table(HEADER, journeys.into_iter().map(Journey::row));
    let client = mesh.lab().pod("client")?;
    let kept = sources.iter().filter(|(pod, _)| pod.starts_with("web") || *pod == "billing-1");
    let kept =
        kept.map(|(_, source)| *source).all(|source| client.addresses().iter().any(|own| own == source));
    show.expect(kept, "pods see the client's own address, on either family, on either node")?;
    let node = mesh.lab().node("node1")?.ipv4().map(IpAddr::V4);
    show.expect(
        sources.get("payments").copied() == node,
        "a server outside the cluster sees the node's address, so that its answer finds the way back",
    )
}

fn balancing(stage: &mut Stage) -> Result<()> {
    let Stage { show, mesh, .. } = stage;
    show.scene("Balanced", "600 requests to web.shop, a new connection for each, four at a time");
    let report = requests(mesh.lab().pod("client")?, &format!("http://{}/", WEB[0]), 600)?;
    show.bars(&report.pods);
    let latency = report.latency;
    show.say(format!(
        "{:.0} requests a second, half of them within {} µs, 99 % within {} µs",
        report.rate(),
        latency.p50,
        latency.p99
    ));
    show.expect(report.failed == 0 && report.succeeded == 600, "every request is answered")?;
    let fair = report.pods.len() == 3 && report.pods.values().all(|count| *count >= 60);
    show.expect(fair, "each of the three pods gets a share, whoever answers sooner a larger one")
}

fn requests(from: &mesh_lab::Machine, url: &str, count: u64) -> Result<Report> {
    let load = Load::http(url)?.requests(count).connections(4).new_connection_per_request();
    Ok(from.traffic(load)?.finish())
}

fn left_alone(stage: &mut Stage) -> Result<()> {
    let Stage { show, mesh, .. } = stage;
    show.scene("Left alone", "what the mesh does not touch: excluded ports, other namespaces, UDP");
    let billing = mesh.lab().pod("billing-1")?;
    let orders = mesh.lab().pod("orders-1")?.ipv4().context("orders-1 has no IPv4 address")?;
    let web = mesh.lab().pod("web-2")?.ipv4().context("web-2 has no IPv4 address")?;
    let billing_address = billing.ipv4().context("billing-1 has no IPv4 address")?;

    let mark = journey::mark(mesh);
    let excluded = requests(billing, &format!("http://{orders}:9187/"), 5)?;
    let orders_pod = mesh.lab().pod("orders-1")?;
    let payments = mesh.lab().host("payments")?.ipv4().context("payments has no IPv4 address")?;
    let range = requests(orders_pod, &format!("http://{payments}:8443/"), 5)?;
    let own = requests(billing, &format!("http://{billing_address}:8080/"), 5)?;
    let udp = udp_answer(mesh.lab().pod("client")?, (web, 8080).into())?;
    show.table(
        ["from", "to", "rule", "result"],
        [
            row(
                "legacy/billing-1",
                &format!("orders-1 {orders}:9187"),
                "excludeInboundPorts",
                &answered(&excluded),
            ),
            row(
                "shop/orders-1",
                &format!("payments {payments}:8443"),
                "excludeOutboundIPRanges",
                &answered(&range),
            ),
            row(
                "legacy/billing-1",
                "itself, in a namespace without the label",
                "not enrolled",
                &answered(&own),
            ),
            row(
                "shop/client",
                &format!("web-2 {web}:8080 over UDP"),
                "not TCP",
                &format!("{} answered", udp.pod),
            ),
        ],
    );
    let answered = [&excluded, &range, &own].iter().all(|report| report.failed == 0) && udp.pod == "web-2";
    show.expect(answered, "all of it works as ever")?;
    let kept =
        range.sources.keys().all(|source| *source == orders_pod.ipv4().unwrap_or(payments).to_string());
    show.expect(kept, "the outside server sees the address of the pod itself")?;

    // A steered connection between them is logged after these would have been.
    let steered = requests(billing, &format!("http://{web}:8080/"), 1)?;
    show.expect(steered.failed == 0, "the same pod's call to an enrolled pod works too")?;
    let end = Instant::now() + std::time::Duration::from_secs(5);
    let mut lines = Vec::new();
    while lines.is_empty() && Instant::now() < end {
        // Lines of the scene before may still be on their way.
        lines = journey::since(mesh, &mark);
        lines.retain(|(_, line)| line["src.workload"] == "billing-1" || line["dst.workload"] == "payments");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    show.expect(lines.len() == 1, "and is the only one of these connections that an agent has seen")
}

fn answered(report: &Report) -> String {
    format!("{} of {} answered, direct", report.succeeded, report.requests)
}

fn row(from: &str, to: &str, rule: &str, result: &str) -> [String; 4] {
    [from, to, rule, result].map(str::to_owned)
}

fn udp_answer(from: &mesh_lab::Machine, to: std::net::SocketAddr) -> Result<Answer> {
    let socket = from.namespace().udp_socket(std::net::SocketAddr::from(([0, 0, 0, 0], 0)))?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
    socket.send_to(b"who\n", to)?;
    let mut buffer = [0; 2048];
    let (length, _) = socket.recv_from(&mut buffer).context("no answer over UDP")?;
    Ok(serde_json::from_slice(buffer.get(..length).unwrap_or_default())?)
}

fn explained(stage: &mut Stage) -> Result<()> {
    let Stage { show, mesh, .. } = stage;
    show.scene("Explained", "what would happen to a connection, from the code that decides");
    for (node, arguments) in [
        ("node1", ["explain", "shop/client", "web.shop:80"].as_slice()),
        ("node1", &["explain", "shop/orders-1", "10.96.0.50:8200"]),
        ("node2", &["status"]),
    ] {
        show.command(node, &format!("meshctl {}", arguments.join(" ")));
        let text = mesh.meshctl_text(node, arguments)?;
        show.output(&text);
        show.say("");
    }
    Ok(())
}
