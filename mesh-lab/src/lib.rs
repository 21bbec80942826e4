//! Nodes and pods out of network namespaces: for the demo, the tests and the benchmarks.
//!
//! ```no_run
//! use mesh_lab::{Lab, Topology};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let topology = Topology::parse("inline", "
//! name: example
//! nodes:
//!   - name: node1
//!     pods: [{name: client}]
//!   - name: node2
//!     cni: bridge
//!     pods: [{name: server}]
//! ")?;
//! let lab = Lab::up(topology.unique())?;
//! let server = lab.pod("server")?;
//! let _nginx = server.program("nginx")?.args(["-g", "daemon off;"]).spawn()?;
//! let answer = lab.pod("client")?.program("curl")?.arg(format!("http://{}/", server.ipv4().unwrap())).output()?;
//! println!("{}", answer.stdout);
//! # Ok(())
//! # } // All of it is gone here.
//! ```

pub mod api_server;
pub mod background;
pub mod capture;
pub mod certificates;
pub mod cluster;
pub mod echo;
pub mod lab;
pub mod machine;
pub mod mesh;
mod mounts;
pub mod netns;
pub mod process;
pub mod state;
pub mod topology;
pub mod traffic;
pub mod translation;

mod cgroup;
mod network;

pub use api_server::{ApiServer, ResourceType};
pub use background::Background;
pub use capture::{Capture, CaptureError, Captured, RunningCapture};
pub use cgroup::OwnCgroup;
pub use lab::{Lab, LabError};
pub use machine::{Kind, Machine};
pub use mesh::{Manifests, Mesh, MeshError, Programs, TokenState};
pub use netns::Namespace;
pub use network::{NetworkError, POD_BRIDGE, UPLINK};
pub use process::{Output, Process, ProcessError, Program};
pub use topology::{Addresses, Cidrs, Cni, Families, Host, Node, Pod, Topology, TopologyError};
