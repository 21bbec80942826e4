//! Who does the work: directly, through this mesh, through its peers.
//!
//! Every contender has a lab of its own, of the same shape. All are up during a scenario; only one of them has traffic at a time.
//! Pods of this mesh connect to the server's pod and are steered to the agent; peers are spoken to by their own address, so that
//! what it costs to steer traffic to them is not in their figures.

mod agent;
mod plugin;
mod ports;
mod probe;
mod worker;

use std::net::SocketAddr;

use anyhow::{Context, Result};
use mesh_lab::{Lab, Machine, Mesh, Process, Topology};

use crate::bench::DIRECT;
use crate::load::{DriveOptions, Outcome, Work};

pub(crate) use agent::{AgentSetup, Way};
pub(crate) use plugin::Plugin;

use self::agent::Evidence;
use self::ports::Ports;

/// The port of the server.
pub(crate) const PORT: u16 = 8080;

/// The client's pod and node.
const CLIENT: (&str, &str) = ("client", "node1");
/// The namespace of client and server.
const NAMESPACE: &str = "shop";
/// The namespace of their neighbours.
const NEIGHBOURHOOD: &str = "neighbours";

/// Where the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the client's node.
    SameNode,
    /// On another.
    OtherNode,
}

impl Place {
    /// The server's pod.
    pub(crate) fn server(self) -> &'static str {
        match self {
            Self::SameNode => "near",
            Self::OtherNode => "far",
        }
    }

    /// Its node.
    pub(crate) fn server_node(self) -> &'static str {
        match self {
            Self::SameNode => CLIENT.1,
            Self::OtherNode => "node2",
        }
    }
}

/// A contender that is up. Dropping it ends its programs and removes its lab.
pub(crate) struct Contender {
    /// Its name in the report.
    pub(crate) name: String,
    // Before the stage: it ends with its lab.
    _server: Process,
    stage: Stage,
    /// What the client connects to.
    target: SocketAddr,
    ports: Ports,
    /// Connections that were carried at least, since it was started.
    connections: u64,
}

enum Stage {
    Lab(Lab),
    Mesh { mesh: Box<Mesh>, way: Way, before: Evidence },
    // In this order: processes end before what they run in is removed.
    Plugin { _processes: Vec<Process>, lab: Lab, encrypted: bool },
}

impl Stage {
    fn lab(&self) -> &Lab {
        match self {
            Self::Lab(lab) | Self::Plugin { lab, .. } => lab,
            Self::Mesh { mesh, .. } => mesh.lab(),
        }
    }
}

impl Contender {
    /// No mesh at all; with as many neighbours as the mesh has on each node.
    pub(crate) fn direct(place: Place, neighbours: usize) -> Result<Self> {
        Self::new(DIRECT, Stage::Lab(lab(neighbours)?), place, None).context(DIRECT)
    }

    /// Starts the server, looks whether a connection goes the way that is claimed, and makes room for many.
    fn new(name: &str, stage: Stage, place: Place, target: Option<SocketAddr>) -> Result<Self> {
        let pod = stage.lab().pod(place.server())?;
        let server = worker::serve(pod)?;
        let target = target.map_or_else(|| address(pod, PORT), Ok)?;
        probe::check(&stage, place, target)?;
        let ports = Ports::new(stage.lab(), place)?;
        let mut contender =
            Self { name: name.to_owned(), _server: server, stage, target, ports, connections: 0 };
        if let Stage::Mesh { mesh, before, .. } = &mut contender.stage {
            *before = Evidence::of(mesh)?;
        }
        Ok(contender)
    }

    /// Runs the client in its pod; with too few ports if it is to run out of them.
    pub(crate) fn drive(&mut self, options: Drive) -> Result<Outcome> {
        let Drive { work, connections, past_cliff, warm_up, window } = options;
        let lab = self.stage.lab();
        if past_cliff { self.ports.narrow(lab) } else { self.ports.widen(lab) }?;
        let options = DriveOptions { work, to: self.target, connections, warm_up, window };
        let outcome = worker::drive(lab.pod(CLIENT.0)?, &options)?;
        self.connections += outcome.completed.min(match work {
            Work::Connects => u64::MAX,
            Work::Streams | Work::Exchanges => connections as u64,
        });
        Ok(outcome)
    }

    /// Fails where the work since the start went another way than is claimed, by what the contender itself has counted.
    pub(crate) fn prove(&self) -> Result<()> {
        match &self.stage {
            Stage::Mesh { mesh, way, before } => way.prove(mesh, before, self.connections),
            // The address that the server sees and, where that is claimed, encryption have been looked at before.
            Stage::Lab(_) | Stage::Plugin { .. } => Ok(()),
        }
    }
}

/// What the client is to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drive {
    pub(crate) work: Work,
    /// At the same time.
    pub(crate) connections: usize,
    /// Whether there are fewer ports than connections that were closed a moment ago.
    pub(crate) past_cliff: bool,
    pub(crate) warm_up: std::time::Duration,
    pub(crate) window: std::time::Duration,
}

/// Two nodes; the client's pod is on the first, and there is a server's pod on both.
fn lab(neighbours: usize) -> Result<Lab> {
    let neighbours = |node: &str| -> String {
        (0..neighbours)
            .map(|number| format!("      - {{name: {node}-{number}, namespace: {NEIGHBOURHOOD}}}\n"))
            .collect()
    };
    let topology = format!(
        "name: bench\nnodes:\n  - name: node1\n    pods:\n      - {{name: client, namespace: {NAMESPACE}}}\n      \
         - {{name: near, namespace: {NAMESPACE}}}\n{}  - name: node2\n    pods:\n      - {{name: far, namespace: {NAMESPACE}}}\n{}\
         hosts:\n  - {{name: control}}\n",
        neighbours("near"),
        neighbours("far")
    );
    Ok(Lab::up(Topology::parse("bench", &topology)?.unique())?)
}

/// A machine's IPv4 address, which is what everybody speaks here.
fn address(machine: &Machine, port: u16) -> Result<SocketAddr> {
    let ip = machine.ipv4().with_context(|| format!("{} has no IPv4 address", machine.name()))?;
    Ok(SocketAddr::new(ip.into(), port))
}
