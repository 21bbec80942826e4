//! What the agent's changes to a node cost each packet that the node forwards for pods outside of the mesh: the hook of the
//! nftables table, and all of it with the kernel programs. What those cost by themselves is in the scenario `ebpf`.
//!
//! A packet that a pod sends here is carried through the node and into the other pod within the system call that sends it:
//! veth devices hand it on in a softirq of the sender's own thread. So the thread's processor time is that of the whole
//! way, and a busy machine makes it take longer, not more. Nobody listens where the packets go.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result};
use mesh_agent::steering::host::{Mark, untrack};
use mesh_lab::{Lab, Topology};
use nix::time::{ClockId, clock_gettime};

use super::super::ebpf::SteeredNode;
use super::SCENARIO;
use crate::bench::{Bench, DIRECT, STEERING, UNTRACKING};
use crate::metric::Metric;
use crate::quantile::quantile;

const TOPOLOGY: &str = "
name: forwarding
nodes: [{name: node, cni: routed, pods: [{name: client}, {name: server}, {name: neighbour}]}]
";
/// The mark of an agent by default, which none of these packets has.
const CAPTURE: Mark = Mark { value: 0x1000, mask: 0x1040 };
/// The discard service.
const PORT: u16 = 9;
const PACKETS: u32 = 1_000;
const SAMPLES: usize = 200;
const SAMPLES_QUICK: usize = 60;

/// A node, and a pod that sends to another.
struct Side {
    name: &'static str,
    times: Vec<f64>,
    socket: UdpSocket,
    server: SocketAddr,
    _node: Changed,
}

/// A node, and what was changed on it.
enum Changed {
    Lab { _lab: Lab },
    Steered { _node: SteeredNode },
}

pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let mut sides = [
        Side::up(DIRECT, |lab| Ok(Changed::Lab { _lab: lab }))?,
        Side::up(UNTRACKING, |lab| {
            untrack(&lab)?;
            Ok(Changed::Lab { _lab: lab })
        })?,
        Side::up(STEERING, |lab| {
            untrack(&lab)?;
            let node = SteeredNode::on(lab, &[("neighbour", true), ("client", false), ("server", false)])?;
            Ok(Changed::Steered { _node: node })
        })?,
    ];
    let samples = if bench.is_quick() { SAMPLES_QUICK } else { SAMPLES };
    for round in 0..bench.rounds() {
        bench.turn(DIRECT, round)?;
        for _ in 0..samples {
            for side in &mut sides {
                side.send()?;
            }
            sides.rotate_left(1);
        }
        for side in &mut sides {
            let metric = Metric::lower("ns_per_forwarded_packet", "ns");
            bench.record(SCENARIO, side.name, metric, round, quantile(&mut side.times, 0.5));
            side.times.clear();
        }
    }
    Ok(())
}

fn untrack(lab: &Lab) -> Result<()> {
    Ok(lab.node("node")?.namespace().run(|| untrack::install(CAPTURE))??)
}

impl Side {
    /// Brings it up, and changes the node.
    fn up(name: &'static str, change: impl FnOnce(Lab) -> Result<Changed>) -> Result<Self> {
        let lab = Lab::up(Topology::parse("forwarding", TOPOLOGY)?.unique())?;
        // A socket stays in the namespace it was made in.
        let socket = lab.pod("client")?.namespace().run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        let server = lab.pod("server")?.ipv4().context("the lab has IPv4")?;
        let node = change(lab).context(name)?;
        Ok(Self { name, times: Vec::new(), socket, server: (server, PORT).into(), _node: node })
    }

    /// Sends some packets and notes what one has taken, in nanoseconds.
    fn send(&mut self) -> Result<()> {
        let began = processor_nanoseconds()?;
        for _ in 0..PACKETS {
            self.socket.send_to(&[0; 64], self.server)?;
        }
        self.times.push((processor_nanoseconds()? - began) / f64::from(PACKETS));
        Ok(())
    }
}

/// Processor time of this thread.
fn processor_nanoseconds() -> Result<f64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64)
}
