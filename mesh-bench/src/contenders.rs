//! Who does the work: directly, through this mesh, through its peers.
//!
//! Every contender has a lab of its own, of the same shape. All are up during a scenario; only one of them has traffic at a time.

mod agent;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_lab::{Lab, Mesh, Process, Topology};

use crate::bench::DIRECT;
use crate::load;

pub(crate) use agent::{AgentSetup, proxied};

/// The port of the server.
pub(crate) const PORT: u16 = 8080;

/// Time for anything to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// Two nodes; the client's pod is on the first, and there is a server's pod on both.
const TOPOLOGY: &str = "
name: bench
nodes:
  - name: node1
    pods:
      - {name: client, namespace: shop}
      - {name: near, namespace: shop}
  - name: node2
    pods:
      - {name: far, namespace: shop}
hosts:
  - {name: control}
";

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
}

/// A contender that is up.
pub(crate) struct Contender {
    /// Its name in the report.
    pub(crate) name: String,
    // Before the stage: it ends with its lab.
    _server: Process,
    stage: Stage,
    /// What the client connects to.
    pub(crate) target: SocketAddr,
    /// Says whether the work went the way that is claimed.
    check: fn(&Mesh) -> Result<()>,
}

enum Stage {
    Lab(Lab),
    Mesh(Box<Mesh>),
}

impl Stage {
    fn lab(&self) -> &Lab {
        match self {
            Self::Lab(lab) => lab,
            Self::Mesh(mesh) => mesh.lab(),
        }
    }
}

impl Contender {
    /// No mesh at all.
    pub(crate) fn direct(place: Place) -> Result<Self> {
        let lab = lab()?;
        Self::new(DIRECT, Stage::Lab(lab), place, |_| Ok(()))
    }

    fn new(name: &str, stage: Stage, place: Place, check: fn(&Mesh) -> Result<()>) -> Result<Self> {
        let pod = stage.lab().pod(place.server())?;
        let own = std::env::current_exe().context("the path of this program")?;
        let mut server = pod.program(own)?.args(["serve", "--listen", &format!("0.0.0.0:{PORT}")]).spawn()?;
        server.wait_for_log(load::LISTENING, PATIENCE)?;
        let address = pod.ipv4().context("the lab has IPv4")?;
        let target = SocketAddr::new(address.into(), PORT);
        Ok(Self { name: name.to_owned(), _server: server, stage, target, check })
    }

    /// The lab it runs in.
    pub(crate) fn lab(&self) -> &Lab {
        self.stage.lab()
    }

    /// Fails where the work went another way than is claimed.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.stage {
            Stage::Lab(_) => Ok(()),
            Stage::Mesh(mesh) => (self.check)(mesh),
        }
    }
}

fn lab() -> Result<Lab> {
    Ok(Lab::up(Topology::parse("bench", TOPOLOGY)?.unique())?)
}
