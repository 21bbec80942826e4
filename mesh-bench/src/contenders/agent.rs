//! This mesh.

use anyhow::{Result, ensure};
use mesh_lab::{Manifests, Mesh};

use super::{Contender, Place, Stage, lab};

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

/// How the mesh is set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AgentSetup {
    /// Its name in the report.
    pub(crate) name: &'static str,
    /// Where the server is.
    pub(crate) place: Place,
    /// Whether there are certificates, and so tunnels between the nodes; without them, everything is plain text.
    pub(crate) certificates: bool,
    /// Further arguments of the agents.
    pub(crate) arguments: &'static [&'static str],
    /// Says whether the work went the way that is claimed.
    pub(crate) check: fn(&Mesh) -> Result<()>,
}

impl AgentSetup {
    /// Brings it up.
    pub(crate) fn start(&self) -> Result<Contender> {
        let mut mesh = Mesh::new(lab()?, "control")?
            .agent_arguments(self.arguments.iter().copied())
            .without_access_log();
        if !self.certificates {
            mesh = mesh.without_authority();
        }
        let mut manifests = Manifests::new().namespace("shop", true);
        for pod in ["client", "near", "far"] {
            manifests = manifests.pod(mesh.lab().pod(pod)?, pod);
        }
        mesh.apply("mesh.yaml", manifests.text())?;
        if self.certificates {
            mesh.apply("policy.yaml", POLICY)?;
        }
        mesh.start()?;
        Contender::new(self.name, Stage::Mesh(Box::new(mesh)), self.place, self.check)
    }
}

/// The agents relayed the connections.
pub(crate) fn proxied(mesh: &Mesh) -> Result<()> {
    let status = mesh.meshctl("node1", &["status"])?;
    let total = status["connections"]["total"].as_u64().unwrap_or(u64::MAX);
    ensure!(total > 0, "the agent has seen no connection: {status}");
    Ok(())
}
