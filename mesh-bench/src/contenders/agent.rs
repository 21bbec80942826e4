//! This mesh.

mod evidence;

use anyhow::{Context, Result};
use mesh_lab::{Manifests, Mesh};

pub(super) use self::evidence::Evidence;
pub(crate) use self::evidence::Way;
use super::{CLIENT, Contender, NAMESPACE, NEIGHBOURHOOD, Place, Stage, lab};

/// Allows what the client does, in its name: every connection is authorized.
const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: client-only, namespace: shop}
spec:
  action: ALLOW
  rules:
    - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
";

/// Nobody opens a tunnel to these pods.
const PLAIN: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: DISABLE}}
";

/// How the mesh is set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AgentSetup {
    /// Its name in the report.
    pub(crate) name: &'static str,
    /// Where the server is.
    pub(crate) place: Place,
    /// The way that connections go.
    pub(crate) way: Way,
    /// Enrolled pods on each node that do nothing.
    pub(crate) neighbours: usize,
    /// Further arguments of the agents.
    pub(crate) arguments: &'static [&'static str],
}

impl AgentSetup {
    /// Brings it up.
    pub(crate) fn start(&self) -> Result<Contender> {
        self.up().context(self.name)
    }

    fn up(&self) -> Result<Contender> {
        let mut mesh = Mesh::new(lab(self.neighbours)?, "control")?
            .agent_arguments(self.arguments.iter().copied())
            .without_access_log();
        let mut manifests =
            Manifests::new().namespace(NAMESPACE, self.way != Way::Past).namespace(NEIGHBOURHOOD, true);
        let neighbours =
            (0..self.neighbours).flat_map(|number| ["near", "far"].map(|name| format!("{name}-{number}")));
        for pod in [CLIENT.0, "near", "far"].map(str::to_owned).into_iter().chain(neighbours) {
            manifests = manifests.pod(mesh.lab().pod(&pod)?, &pod);
        }
        mesh.apply("mesh.yaml", manifests.text())?;
        match self.way {
            Way::Tunnel | Way::Kernel | Way::Relay => mesh.apply("policy.yaml", POLICY)?,
            // Who comes from another node without a tunnel is nobody, and policy in his name would deny him.
            Way::Plain | Way::PlainRelay => mesh.apply("policy.yaml", PLAIN)?,
            Way::Past => {}
        }
        mesh.start()?;
        let stage = Stage::Mesh { mesh: Box::new(mesh), way: self.way, before: Evidence::default() };
        Contender::new(self.name, stage, self.place, None)
    }
}
