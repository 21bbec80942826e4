//! What the kernel programs cost, each for the ways a packet can take through it.
//!
//! Programs of devices and of look-ups are run on made-up packets, many times over, against the maps of a node that is
//! steered (`BPF_PROG_TEST_RUN`). The time includes the kernel's loop around the runs, which the contender `empty` has as
//! well: a program that lets everything pass.

mod frames;
mod kernel;
mod node;

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use self::kernel::{Input, Program};
use self::node::PORT;
pub(super) use self::node::SteeredNode;
use crate::bench::Bench;
use crate::metric::Metric;

const SCENARIO: &str = "ebpf";
const EMPTY: &str = "empty";
const AGENT: &str = "mesh-agent";

/// Runs of a program on the same packet, one after the other.
const REPEAT: u32 = 100_000;
/// New connections that each leave something behind, run once each.
const NEW_CONNECTIONS: u16 = 4000;
/// The first of their ports, clear of the range that real sockets take theirs from.
const FIRST_PORT: u16 = 1024;

/// What `steer` returns.
const NEXT: i32 = -1;
/// Straight into a pod or to the agent (`TC_ACT_REDIRECT`).
const REDIRECTED: i32 = 7;

/// One way through a program.
struct Case {
    metric: &'static str,
    packet: Vec<u8>,
    context: Vec<u8>,
    /// What the program returns if the packet took that way.
    returns: i32,
}

pub(super) fn run(bench: &mut Bench) -> Result<()> {
    if !bench.wants_contender(AGENT) {
        return Ok(());
    }
    let node = SteeredNode::up()?;
    let passed_port = PORT + 1;
    let (opened_port, proxied_port) = (PORT + 2, PORT);
    node.allow(passed_port)?;
    node.allow(opened_port)?;
    let passed = node.connect_passed(passed_port)?;
    let proxied = node.connect_proxied()?;
    let id = |name: &str| {
        let reports = node.steering().programs()?;
        let report = reports.iter().find(|report| report.name == name);
        Ok::<_, anyhow::Error>(report.with_context(|| format!("no kernel program {name}"))?.id)
    };
    let steer = Program::by_id(id("steer")?)?;
    let deliver = Program::by_id(id("deliver")?)?;
    let pick_listener = Program::by_id(id("pick_listener")?)?;
    let (empty_classifier, empty_look_up) = (Program::empty_classifier()?, Program::empty_look_up()?);

    let at = |name: &str, port: u16| Ok::<_, anyhow::Error>(SocketAddr::new(node.address(name)?, port));
    let (client_device, server_device) = (node.device("client")?, node.device("server")?);
    let (stranger_device, uplink) = (node.device("stranger")?, node.device("node")?);
    let tcp = |metric, from: SocketAddr, to: SocketAddr, flags, device, returns| Case {
        metric,
        packet: frames::tcp(from, to, flags),
        context: frames::packet_context(device),
        returns,
    };
    let client = at("client", FIRST_PORT)?;
    let cases = [
        tcp(
            "ns_per_packet_steer_pass_not_ours",
            at("outside", PORT)?,
            at("node", PORT)?,
            frames::ACK,
            uplink,
            NEXT,
        ),
        tcp(
            "ns_per_packet_steer_unenrolled_pod",
            at("stranger", FIRST_PORT)?,
            at("outside", PORT)?,
            frames::ACK,
            stranger_device,
            NEXT,
        ),
        tcp(
            "ns_per_packet_steer_to_unenrolled_pod",
            at("outside", PORT)?,
            at("stranger", FIRST_PORT)?,
            frames::ACK,
            uplink,
            NEXT,
        ),
        tcp(
            "ns_per_packet_steer_established_proxied",
            proxied.client,
            proxied.server,
            frames::ACK,
            client_device,
            REDIRECTED,
        ),
        tcp(
            "ns_per_packet_steer_established_passed",
            passed.client,
            passed.server,
            frames::ACK,
            client_device,
            REDIRECTED,
        ),
        tcp(
            "ns_per_packet_steer_established_passed_back",
            passed.server,
            passed.client,
            frames::ACK,
            server_device,
            REDIRECTED,
        ),
        tcp(
            "ns_per_packet_steer_syn_proxied",
            client,
            at("outside", proxied_port)?,
            frames::SYN,
            client_device,
            REDIRECTED,
        ),
        tcp(
            "ns_per_packet_steer_syn_proxied_same_node",
            client,
            at("server", proxied_port)?,
            frames::SYN,
            client_device,
            REDIRECTED,
        ),
        Case {
            metric: "ns_per_packet_steer_udp",
            packet: frames::udp(client, at("outside", PORT)?),
            context: frames::packet_context(client_device),
            returns: NEXT,
        },
    ];
    let agent_device = node.agent_device()?;
    let deliveries = [
        tcp(
            "ns_per_packet_deliver_to_pod",
            proxied.server,
            proxied.client,
            frames::ACK,
            agent_device,
            REDIRECTED,
        ),
        tcp(
            "ns_per_packet_deliver_to_node",
            client,
            at("outside", proxied_port)?,
            frames::ACK,
            agent_device,
            NEXT,
        ),
    ];
    let look_up = Case {
        metric: "ns_per_look_up_pick_listener",
        packet: Vec::new(),
        context: frames::look_up_context(client, at("outside", PORT)?),
        returns: 1,
    };

    let namespace = node.machine("node")?.namespace();
    for round in 0..bench.rounds() {
        bench.turn(AGENT, round)?;
        let samples = namespace.run(|| {
            let mut samples = Vec::new();
            for case in &cases {
                samples.push((EMPTY, case.metric, time(&empty_classifier, case, NEXT)?));
                samples.push((AGENT, case.metric, time(&steer, case, case.returns)?));
            }
            for case in &deliveries {
                samples.push((EMPTY, case.metric, time(&empty_classifier, case, NEXT)?));
                samples.push((AGENT, case.metric, time(&deliver, case, case.returns)?));
            }
            samples.push((EMPTY, look_up.metric, time(&empty_look_up, &look_up, 1)?));
            samples.push((AGENT, look_up.metric, time(&pick_listener, &look_up, 1)?));
            let metric = "ns_per_packet_steer_syn_passed";
            let destination = at("server", opened_port)?;
            samples.push((
                EMPTY,
                metric,
                time_opening(&empty_classifier, client, destination, client_device)?,
            ));
            samples.push((AGENT, metric, time_opening(&steer, client, destination, client_device)?));
            Ok::<_, anyhow::Error>(samples)
        })??;
        forget_opened(&node, passed_port)?;
        for (contender, metric, nanoseconds) in samples {
            bench.record(SCENARIO, contender, Metric::lower(metric, "ns"), round, nanoseconds);
        }
    }
    Ok(())
}

/// Nanoseconds a run takes.
fn time(program: &Program, case: &Case, returns: i32) -> Result<f64> {
    let input = Input { packet: &case.packet, context: &case.context };
    let ran = program.run(input, REPEAT)?;
    ensure!(ran.returned == returns, "{}: the program returned {}, not {returns}", case.metric, ran.returned);
    Ok(ran.nanoseconds.into())
}

/// Nanoseconds a run takes on the SYN of a connection that is then there, so that every run takes another. With them goes
/// a reading of the clock, in every run.
fn time_opening(program: &Program, client: SocketAddr, server: SocketAddr, device: u32) -> Result<f64> {
    let context = frames::packet_context(device);
    let mut total = 0_u64;
    for port in FIRST_PORT..FIRST_PORT + NEW_CONNECTIONS {
        let packet = frames::tcp(SocketAddr::new(client.ip(), port), server, frames::SYN);
        let ran = program.run(Input { packet: &packet, context: &context }, 1)?;
        ensure!(ran.returned == NEXT, "the SYN of a connection that may pass returned {}", ran.returned);
        total += u64::from(ran.nanoseconds);
    }
    Ok(total as f64 / f64::from(NEW_CONNECTIONS))
}

/// Makes room for the next round's new connections.
fn forget_opened(node: &SteeredNode, keep: u16) -> Result<()> {
    for (key, state) in node.steering().flow_reader()?.all()? {
        let flow = mesh_agent::steering::FlowId::new(key, &state);
        if flow.server.port() != keep {
            node.steering().forget_flow(&flow)?;
        }
    }
    Ok(())
}
